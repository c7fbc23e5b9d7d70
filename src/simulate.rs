//! A seeded world: simulated disks, a volume, a history of operations, a model, power cuts, and a judge.
//!
//! *Guarantees*: equal seeds and plans give equal runs; every result was compared with the model, and what a crash
//! left with what it may leave (`judge`). *Assumes*: one thread.
//! *Fails when*: the product breaks a promise: [`Failure`] names the seed, where it was cut, and how.
//! *Order*: none. *Not here*: the product.
//!
//! | file | part |
//! |---|---|
//! | `model` | what operations must do |
//! | `generate` | random operations |
//! | `driver` | both side by side |
//! | `judge` | what may be found after a crash |
//! | `fault` | histories with a faulty disk |
//! | `life` | all of it in one history: the ordinary weights |
//! | `mutate` | hostile volumes |
//! | `pinned` | what a reader holds stays whole |
//! | `trace` | what the rules of recovery saw of a history |
//! | `copies` | correct copies of each block |
//! | `small` | small worlds, exhaustively |
//! | `worlds` | kinds of runs, by name |

pub mod copies;
pub mod driver;
pub mod fault;
pub mod generate;
pub mod judge;
pub mod life;
pub mod model;
pub mod mutate;
pub mod pinned;
pub mod small;
pub mod trace;
pub mod worlds;

use crate::disk::backing::Backing;
use crate::disk::sim::{CrashPlan, Image, Random, SimDisk, Space, World as Power};
use crate::format::Geometry;
use crate::format::item::Time;
use crate::fs::Filesystem;
use crate::store::check::{CheckOptions, Report as CheckReport, StoreSource, check};
use crate::store::commit::Force;
use crate::store::create::{CreateStore, create};
use crate::store::recover::{OpenStore, Present, Report, examine, open};
use crate::store::{Store, StoreError, StoreOptions};
use crate::volume::fsck::{self, FsckOptions, FsckReport, Host};
use crate::world::Seeded;
use driver::Driver;
use generate::Weights;
use judge::Known;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Deadline of a request; simulated disks answer at once or never.
const DEADLINE: Duration = Duration::from_millis(50);

/// What a volume of the simulation is.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Blocks of each disk.
    pub blocks: u64,
    /// Blocks of a zone.
    pub zone_blocks: u32,
    /// Disks.
    pub replicas: usize,
    /// Whether space below is allocated as it is needed.
    pub grows: bool,
    /// What is done with it.
    pub weights: Weights,
    /// How the store behaves.
    pub store: StoreOptions,
}

impl Setup {
    /// A small volume, whose log wraps, whose space runs out and whose cache is cold.
    pub fn draw(random: &mut Random) -> Setup {
        let (blocks, zone_blocks) =
            *random.pick(&[(1100, 256), (1100, 256), (1200, 256), (1500, 256), (2200, 384), (3000, 512)]);
        let pages_max = *random.pick(&[24, 64, 256]);
        let store = StoreOptions {
            read_only: false,
            pages_max,
            pages_start: pages_max / 4,
            items_bytes_max: *random.pick(&[2 << 10, 8 << 10, 64 << 10, 1 << 20]),
            placed_max: *random.pick(&[64, 512]),
            cache_nodes: *random.pick(&[8, 64, 512]),
            window: random.range(1, 5),
        };
        let greedy = random.below(3) == 0;
        let weights = if random.below(2) == 0 { Weights::usual(greedy) } else { Weights::draw(random, greedy) };
        Setup { blocks, zone_blocks, replicas: 2, grows: random.below(2) == 0, weights, store }
    }
}

impl Setup {
    /// How the disks are divided.
    pub fn geometry(&self) -> Geometry {
        Geometry::new(self.blocks, self.zone_blocks, 64).expect("a possible geometry")
    }
}

/// A broken promise.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What, where, when.
    pub text: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

macro_rules! tally {
    ($($(#[$doc:meta])* $field:ident: $name:literal,)*) => {
        /// What a run did.
        #[derive(Debug, Clone, Copy, Default, serde::Serialize)]
        pub struct Tally {
            $($(#[$doc])* pub $field: u64,)*
        }

        impl Tally {
            /// Both together.
            pub fn add(&mut self, other: &Tally) {
                $(self.$field += other.$field;)*
            }
            /// What is not zero, in words.
            fn words(&self) -> Vec<String> {
                let all = [$((self.$field, $name)),*];
                all.iter().filter(|(count, _)| *count > 0).map(|(count, name)| format!("{count} {name}")).collect()
            }
        }
    };
}

tally! {
    /// Histories run.
    histories: "histories",
    /// Operations.
    operations: "operations",
    /// Power cuts.
    cuts: "power cuts",
    /// Power cuts during recovery.
    cuts_in_recovery: "power cuts in recovery",
    /// Daemons killed.
    kills: "kills",
    /// Clean unmounts.
    remounts: "clean remounts",
    /// Mounts of one disk alone.
    degraded: "degraded mounts",
    /// Mounts that were refused because a disk had failed.
    refused: "mounts refused",
    /// Replaces begun.
    replaces: "replaces",
    /// Scrubs.
    scrubs: "scrubs",
    /// Offline checks.
    fscks: "fscks",
    /// Disks that came back with old content.
    stale: "disks back with old content",
    /// Volumes that were written apart.
    forks: "forks",
    /// Requests that landed after their deadline.
    late: "late requests",
    /// Log records replayed.
    replayed: "log records replayed",
    /// Operations that found no room.
    no_space: "operations without room",
    /// Writes and flushes: the points where the power can fail.
    requests: "writes and flushes",
    /// Faults that struck.
    faults: "faults",
    /// Blocks that were healed, by reading and by scrub.
    healed: "blocks healed",
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.words().join(", "))
    }
}

type Formatted = Mutex<HashMap<(u64, u32, usize, bool), Vec<(Image, Space)>>>;

/// Disks of an empty volume; made once for each shape.
fn formatted(setup: &Setup) -> Vec<(Image, Space)> {
    static MADE: OnceLock<Formatted> = OnceLock::new();
    let mut made = MADE.get_or_init(Formatted::default).lock();
    let key = (setup.blocks, setup.zone_blocks, setup.replicas, setup.grows);
    let make = || {
        let power = Power::new(1);
        let disks: Vec<Arc<SimDisk>> = (0..setup.replicas).map(|_| power.disk(setup.blocks)).collect();
        let wanted = CreateStore {
            geometry: setup.geometry(),
            name: "simulated".into(),
            grows: setup.grows,
            root_items: Filesystem::root_items(Time::default(), 0, 0),
            deadline: DEADLINE,
        };
        create(backings(&disks), wanted, Arc::new(Seeded::new(1))).expect("simulated disks without faults");
        disks.iter().map(|disk| (disk.snapshot(), disk.space())).collect()
    };
    made.entry(key).or_insert_with(make).clone()
}

fn backings(disks: &[Arc<SimDisk>]) -> Vec<(String, Arc<dyn Backing>)> {
    disks.iter().enumerate().map(|(i, d)| (format!("/disk/{i}"), d.reopen() as Arc<dyn Backing>)).collect()
}

/// Disks with a volume.
pub struct Bench {
    /// Their power supply.
    pub power: Power,
    /// The disks.
    pub disks: Vec<Arc<SimDisk>>,
    /// What the volume is.
    pub setup: Setup,
    /// Randomness of the history.
    pub random: Random,
    clock: Arc<Seeded>,
    /// What was done.
    pub tally: Tally,
}

impl Bench {
    /// The world of `seed`, with an empty volume.
    pub fn new(seed: u64) -> Bench {
        let mut random = Random::new(seed);
        let setup = Setup::draw(&mut random);
        Bench::with(seed, setup, random)
    }

    /// The world of `seed`, with an empty volume as `setup` says.
    pub fn with(seed: u64, setup: Setup, random: Random) -> Bench {
        let power = Power::new(seed);
        let disks = formatted(&setup)
            .into_iter()
            .map(|(image, space)| {
                let disk = power.disk_from(setup.blocks, image);
                disk.set_space(space);
                disk
            })
            .collect();
        let tally = Tally { histories: 1, ..Tally::default() };
        Bench { power, disks, setup, random, clock: Arc::new(Seeded::new(seed)), tally }
    }

    /// The clock of this world.
    pub fn clock(&self) -> Arc<Seeded> {
        self.clock.clone()
    }

    /// Look at the disks numbered `which`, as after the death of the daemon. One without a label is not among them.
    fn present(&mut self, which: &[usize]) -> Vec<Present> {
        let mut present = Vec::new();
        for index in which {
            self.disks[*index] = self.disks[*index].reopen();
            let (path, backing) = (format!("/disk/{index}"), self.disks[*index].clone() as Arc<dyn Backing>);
            if let Ok(found) = examine(&*backing, DEADLINE) {
                present.push(Present { path, backing, found });
            }
        }
        present
    }

    /// Check all disks while nothing is mounted, and repair. Nothing is rebuilt.
    ///
    /// # Errors
    /// As fsck.
    pub fn fsck(&mut self, repair: bool) -> Result<FsckReport, StoreError> {
        let all: Vec<usize> = (0..self.disks.len()).collect();
        let present = self.present(&all);
        let host =
            Host { world: self.clock.clone(), deadline: DEADLINE, check: &|_, _| Ok(()), on_shrink: Box::new(|_| {}) };
        let options = FsckOptions { repair, quick: false };
        let (report, _) = fsck::run(present, &[], &options, host, &mut |_, _, _| {})?;
        Ok(report)
    }

    /// Open the volume on the disks numbered `which`.
    ///
    /// # Errors
    /// It is refused, or the power fails.
    pub fn open(&mut self, which: &[usize], degraded: bool) -> Result<(Store, Report), StoreError> {
        let present = self.present(which);
        let store = self.setup.store.clone();
        let options = OpenStore { degraded, deadline: DEADLINE, store, on_shrink: None, hold: false };
        open(present, options, self.clock.clone())
    }

    /// Open on all disks, and mount.
    ///
    /// # Errors
    /// It cannot be opened or read.
    pub fn mount(&mut self) -> Result<Driver, String> {
        let all: Vec<usize> = (0..self.disks.len()).collect();
        self.mount_on(&all, false)
    }

    fn mount_on(&mut self, which: &[usize], degraded: bool) -> Result<Driver, String> {
        let (store, report) = self.open(which, degraded).map_err(|error| format!("opening: {error}"))?;
        self.tally.replayed += report.replayed;
        Driver::new(store, &self.power)
    }

    /// Run up to `count` operations.
    ///
    /// # Errors
    /// Filesystem and model disagree.
    pub fn run(&mut self, driver: &mut Driver, count: usize) -> Result<(), String> {
        let before = (driver.log.len(), driver.no_space);
        let outcome = driver.run(&mut self.random, count, &self.setup.weights);
        self.tally.operations += (driver.log.len() - before.0) as u64;
        self.tally.no_space += (driver.no_space - before.1) as u64;
        outcome
    }

    /// As `run`, but everything is compared only now and then.
    ///
    /// # Errors
    /// Filesystem and model disagree.
    pub fn run_on(&mut self, driver: &mut Driver, count: usize) -> Result<(), String> {
        let before = (driver.log.len(), driver.no_space);
        let outcome = driver.go(&mut self.random, count, &self.setup.weights);
        self.tally.operations += (driver.log.len() - before.0) as u64;
        self.tally.no_space += (driver.no_space - before.1) as u64;
        outcome
    }

    /// Cut the power now (if it is not cut), open again, and judge.
    ///
    /// # Errors
    /// What was found is not what may be found.
    pub fn crash(&mut self, driver: Driver, cut: Cut) -> Result<Driver, String> {
        let known = Known::take(driver);
        self.tally.cuts += 1;
        self.disks = self.power.revive(cut.plan);
        let which: Vec<usize> = (0..self.disks.len()).filter(|i| cut.alone.is_none_or(|alone| alone == *i)).collect();
        for _ in 0..cut.more {
            let at = self.power.io_count() + self.random.range(1, 24);
            self.power.cut_at(Some(at));
            let opened = self.open(&which, cut.alone.is_some());
            if !self.power.is_cut() {
                self.power.cut_at(None);
                drop(opened);
                break;
            }
            self.tally.cuts_in_recovery += 1;
            let plan = *self.random.pick(&[CrashPlan::DropAll, CrashPlan::KeepAll, CrashPlan::Random]);
            self.disks = self.power.revive(plan);
        }
        let driver = self.mount_on(&which, cut.alone.is_some())?;
        clean(&driver.store)?;
        judge::judge(&known, driver.now())?;
        Ok(driver)
    }

    /// Everything settled and durable: the checker finds nothing, and what is there is what the model says.
    ///
    /// # Errors
    /// Something is wrong.
    pub fn finish(&mut self, driver: &mut Driver) -> Result<(), String> {
        driver.settle()?;
        driver.store.commit(Force::IfChanged).map_err(|error| format!("the last commit: {error}"))?;
        driver.compare()?;
        clean(&driver.store)
    }
}

/// Prove every block on every replica.
pub fn examine_store(store: &Store, heal: bool) -> CheckReport {
    let options = CheckOptions { data: true, heal, parallel: false, findings_max: 10_000 };
    check(&StoreSource::new(store), &options, &mut |_| ControlFlow::Continue(()))
}

/// The checker finds nothing, and no read found damage.
///
/// # Errors
/// What it found.
pub fn clean(store: &Store) -> Result<(), String> {
    let report = examine_store(store, false);
    if !report.is_clean() {
        let findings: Vec<String> = report.findings.iter().take(10).map(ToString::to_string).collect();
        return Err(format!("the checker (complete: {}) found:\n  {}", report.complete, findings.join("\n  ")));
    }
    Ok(())
}

/// When to cut the power in a history.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    /// At this write or flush after the volume was formatted; `None`: after the last operation.
    pub at: Option<u64>,
    /// What becomes of what no flush covered.
    pub plan: CrashPlan,
    /// Power cuts during recovery.
    pub more: u32,
    /// The only disk that is left afterwards.
    pub alone: Option<usize>,
}

/// One history of `operations`, with the power cut as `cut` says; then judged, continued, and judged again.
///
/// # Errors
/// A promise was broken.
pub fn history(seed: u64, operations: usize, cut: Cut) -> Result<Tally, Failure> {
    let mut bench = Bench::new(seed);
    let mut log = Vec::new();
    let outcome = in_bench(&mut bench, operations, cut, &mut log);
    bench.tally.requests = bench.power.io_count();
    match outcome {
        Ok(()) => Ok(bench.tally),
        Err(text) => {
            let first = log.len().saturating_sub(40);
            let tail: Vec<String> = log[first..].iter().map(|op| format!("  {op:?}")).collect();
            let text = format!(
                "seed {seed}, {operations} operations, {cut:?}, {:?}:\n{text}\nlast operations:\n{}",
                bench.setup,
                tail.join("\n")
            );
            Err(Failure { text })
        }
    }
}

fn in_bench(bench: &mut Bench, operations: usize, cut: Cut, log: &mut Vec<model::Op>) -> Result<(), String> {
    let before = bench.power.io_count();
    bench.power.cut_at(cut.at.map(|at| before + at));
    let mut found = match bench.mount() {
        Ok(mut driver) => {
            let outcome = bench.run(&mut driver, operations);
            log.clone_from(&driver.log);
            outcome?;
            bench.crash(driver, cut)?
        }
        Err(_) if bench.power.is_cut() => {
            bench.disks = bench.power.revive(cut.plan);
            bench.mount()?
        }
        Err(text) => return Err(text),
    };
    // Life goes on.
    let outcome = bench.run(&mut found, operations / 5).and_then(|()| bench.finish(&mut found));
    outcome.map_err(|text| format!("after recovery: {text}\n  after recovery: {:?}", found.log))?;
    let again = Cut { at: None, plan: CrashPlan::DropAll, more: 0, alone: cut.alone };
    let driver = bench.crash(found, again).map_err(|text| format!("second crash: {text}"))?;
    drop(driver);
    Ok(())
}
