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
//! | `crew` | many of them on all cores |
//! | `copies` | correct copies of each block |
//! | `small` | small worlds, exhaustively |
//! | `worlds` | kinds of runs, by name |

pub mod copies;
pub mod crew;
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
use crate::format::item::Time;
use crate::format::{Geometry, Root, Uuid};
use crate::fs::Filesystem;
use crate::store::check::{CheckOptions, Finding, Outcome, Report as CheckReport, StoreSource, check};
use crate::store::create::{CreateStore, create};
use crate::store::history::ShrinkHook;
use crate::store::recover::{Found, OpenStore, Present, Report, examine};
use crate::store::{Store, StoreError, StoreOptions};
use crate::volume::fsck::{self, FsckOptions, FsckReport, Host};
use crate::volume::witness::Witness;
use crate::world::Seeded;
use driver::Driver;
use generate::Weights;
use judge::Known;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
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
            resync_rate: 0,
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

/// A struct of counts, which can be added up and told in words.
macro_rules! tally {
    ($(#[$about:meta])* $name:ident, $($(#[$doc:meta])* $field:ident: $words:literal,)*) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, Default, serde::Serialize)]
        pub struct $name {
            $($(#[$doc])* pub $field: u64,)*
        }

        impl $name {
            /// Both together.
            pub fn add(&mut self, other: &$name) {
                $(self.$field += other.$field;)*
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let all = [$((self.$field, $words)),*];
                let words = all.iter().filter(|(count, _)| *count > 0).map(|(count, words)| format!("{count} {words}"));
                f.write_str(&words.collect::<Vec<_>>().join(", "))
            }
        }
    };
}
pub(crate) use tally;

tally! {
    /// What a run did.
    Tally,
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
    /// Mounts of lives.
    mounts: "mounts",
    /// Mounts that were refused because a disk had failed, or was older than its twin.
    refused: "mounts refused",
    /// Mounts that were refused because a disk was not of this volume, or a copy.
    strangers: "mounts refused with a foreign or copied disk",
    /// Replaces begun.
    replaces: "replaces",
    /// Returns begun.
    returns: "returns",
    /// Warm disks that followed.
    follows: "follows",
    /// Scrubs.
    scrubs: "scrubs",
    /// Offline checks.
    fscks: "fscks",
    /// Offline checks that were refused because a disk had failed, or was not what it had been.
    fscks_refused: "fscks refused",
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

type Formatted = Mutex<HashMap<(u64, u32, usize, bool, u64), Vec<(Image, Space)>>>;

/// Disks of an empty volume.
fn formatted(setup: &Setup) -> Vec<(Image, Space)> {
    made(setup, 1)
}

/// Disks of an empty volume of the same shape that is not this one.
fn foreign(setup: &Setup) -> Vec<(Image, Space)> {
    made(setup, 2)
}

/// As `seed` says who it is; made once for each shape.
fn made(setup: &Setup, seed: u64) -> Vec<(Image, Space)> {
    static MADE: OnceLock<Formatted> = OnceLock::new();
    let mut made = MADE.get_or_init(Formatted::default).lock();
    let key = (setup.blocks, setup.zone_blocks, setup.replicas, setup.grows, seed);
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
        // No history's own randomness: it would give the same identities again.
        create(backings(&disks), wanted, Arc::new(Seeded::new(!seed))).expect("simulated disks without faults");
        disks.iter().map(|disk| (disk.snapshot(), disk.space())).collect()
    };
    made.entry(key).or_insert_with(make).clone()
}

fn backings(disks: &[Arc<SimDisk>]) -> Vec<(String, Arc<dyn Backing>)> {
    disks.iter().enumerate().map(|(i, d)| (disk_path(i), d.reopen() as Arc<dyn Backing>)).collect()
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
    /// What this world's host has written down of each volume.
    witness: Arc<Mutex<BTreeMap<Uuid, Witness>>>,
}

/// With which words a volume is opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ask {
    /// Although replicas in sync are missing.
    pub degraded: bool,
    /// Although this host has seen a newer state on a replica that is missing.
    pub accept_stale: bool,
}

/// What could be seen of disks before they were opened.
#[derive(Debug, Clone, Default)]
pub struct Seen(Vec<(usize, Head)>);

/// Label and newest root of a disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    pub volume: Uuid,
    pub replica: Uuid,
    /// Version of the newest root; 0: none proves itself.
    pub newest: u64,
}

impl Seen {
    fn of(present: &[Present]) -> Seen {
        let head = |found: &Found| Head {
            volume: found.label.volume,
            replica: found.label.replica,
            newest: found.roots.first().map_or(0, |(_, root)| root.version),
        };
        Seen(present.iter().filter_map(|one| Some((disk_of(&one.path)?, head(&one.found)))).collect())
    }

    /// What was seen of a disk; `None`: it has no label that can be read.
    pub(crate) fn head(&self, disk: usize) -> Option<&Head> {
        self.0.iter().find(|(at, _)| *at == disk).map(|(_, head)| head)
    }

    /// Two disks that can never be given together: of two volumes, or the same replica twice.
    pub(crate) fn strangers(&self) -> Option<(usize, usize)> {
        let other = |i: usize| {
            let (at, head) = &self.0[i];
            let strange = |(_, b): &&(usize, Head)| b.volume != head.volume || b.replica == head.replica;
            self.0[..i].iter().find(strange).map(|(before, _)| (*before, *at))
        };
        (0..self.0.len()).find_map(other)
    }

    /// Why `bad` beside `good` may make opening refuse: a person has to say that it is to go on without it.
    pub(crate) fn excuse(&self, bad: usize, good: usize) -> Option<&'static str> {
        let good = self.head(good)?;
        match self.head(bad) {
            None => Some("it cannot be examined"),
            Some(bad) if bad.volume != good.volume => Some("it belongs to another volume"),
            Some(bad) if bad.replica == good.replica => Some("it is a copy of its twin"),
            Some(bad) if bad.newest < good.newest => Some("its newest root is older"),
            Some(_) => None,
        }
    }
}

/// The path of a disk of the world.
pub(crate) fn disk_path(disk: usize) -> String {
    format!("/disk/{disk}")
}

/// The disk at a path of the world.
pub(crate) fn disk_of(path: &str) -> Option<usize> {
    path.strip_prefix("/disk/")?.parse().ok()
}

/// What can be examined of disks, and what cannot, with the reason.
pub(crate) fn look_at(
    backings: impl IntoIterator<Item = (usize, Arc<dyn Backing>)>,
) -> (Vec<Present>, Vec<(String, String)>) {
    let (mut present, mut absent) = (Vec::new(), Vec::new());
    for (disk, backing) in backings {
        let path = disk_path(disk);
        match examine(&*backing, DEADLINE) {
            Ok(found) => present.push(Present { path, backing, found }),
            Err(why) => absent.push((path, why)),
        }
    }
    (present, absent)
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
        Bench { power, disks, setup, random, clock: Arc::new(Seeded::new(seed)), tally, witness: Arc::default() }
    }

    /// The clock of this world.
    pub fn clock(&self) -> Arc<Seeded> {
        self.clock.clone()
    }

    /// Look at `disks`, as after the death of the daemon: handles from before no longer reach them.
    fn look(&mut self, disks: &[usize]) -> (Vec<Present>, Vec<(String, String)>) {
        let handle = |disk: &usize| match self.disks.get_mut(*disk) {
            Some(known) => {
                *known = known.reopen();
                (*disk, known.clone() as Arc<dyn Backing>)
            }
            None => (*disk, self.power.disk_at(*disk) as Arc<dyn Backing>),
        };
        look_at(disks.iter().map(handle).collect::<Vec<_>>())
    }

    /// Who is told that the volume goes on with fewer replicas: this world's host writes it down, as the product does.
    /// `outlives`: the power cut takes the disks only, not the host.
    fn on_shrink(&self, outlives: bool) -> ShrinkHook {
        let (witness, power) = (self.witness.clone(), self.power.clone());
        Box::new(move |root| {
            if outlives || !power.is_cut() {
                witness.lock().insert(root.volume, Witness::of(root, &[]));
            }
        })
    }

    /// Version of the newest root that this world's host has written down.
    pub(crate) fn witnessed(&self) -> u64 {
        self.witness.lock().values().map(Witness::version).max().unwrap_or(0)
    }

    /// Check all disks while nothing is mounted, and repair. Nothing is rebuilt.
    ///
    /// # Errors
    /// As fsck.
    pub fn fsck(&mut self, repair: bool) -> Result<FsckReport, StoreError> {
        let all: Vec<usize> = (0..self.disks.len()).collect();
        self.fsck_disks(&all, &FsckOptions { repair, quick: false }).1
    }

    /// fsck of these disks; beside it what could be seen of them.
    pub(crate) fn fsck_disks(
        &mut self,
        disks: &[usize],
        options: &FsckOptions,
    ) -> (Seen, Result<FsckReport, StoreError>) {
        let (present, absent) = if options.repair {
            self.look(disks)
        } else {
            look_at(disks.iter().map(|disk| (*disk, self.power.disk_to_read(*disk) as Arc<dyn Backing>)))
        };
        let seen = Seen::of(&present);
        let witness = self.witness.clone();
        let check = move |root: &Root, here: &[Uuid]| {
            let known = witness.lock().get(&root.volume).cloned();
            known.map_or(Ok(()), |known| known.check(root, here))
        };
        let host = Host {
            world: self.clock.clone(),
            deadline: DEADLINE,
            check: &check,
            on_shrink: self.on_shrink(false),
            claim: &|_| Ok(()),
        };
        let outcome = if present.is_empty() {
            Err(StoreError::Refused("nothing to check".into()))
        } else {
            fsck::run(present, &absent, options, host, &mut |_, _, _| {}).map(|(report, _)| report)
        };
        (seen, outcome)
    }

    /// Open the volume on the disks numbered `which`, as the product does: this world's host remembers what went on
    /// without whom.
    ///
    /// # Errors
    /// It is refused, or the power fails.
    pub fn open(&mut self, which: &[usize], degraded: bool) -> Result<(Store, Report), StoreError> {
        self.open_disks(which, Ask { degraded, accept_stale: false }).1
    }

    /// Open the volume on `disks`; beside it what could be seen of them before.
    pub fn open_disks(&mut self, disks: &[usize], ask: Ask) -> (Seen, Result<(Store, Report), StoreError>) {
        let (present, _) = self.look(disks);
        let seen = Seen::of(&present);
        (seen, self.open_present(present, ask, self.on_shrink(false)))
    }

    fn open_present(
        &self,
        present: Vec<Present>,
        ask: Ask,
        on_shrink: ShrinkHook,
    ) -> Result<(Store, Report), StoreError> {
        let Some(first) = present.first() else { return Err(StoreError::Refused("no replica was given".into())) };
        let seen = self.witness.lock().get(&first.found.label.volume).cloned();
        let options = OpenStore {
            degraded: ask.degraded,
            deadline: DEADLINE,
            store: self.setup.store.clone(),
            on_shrink: Some(on_shrink),
            hold: true,
        };
        crate::volume::open_store(present, options, seen, ask.accept_stale, self.clock.clone(), &|_| Ok(()))
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
        let opened = self.open(which, degraded);
        self.drive(opened)
    }

    fn drive(&mut self, opened: Result<(Store, Report), StoreError>) -> Result<Driver, String> {
        let (store, report) = opened.map_err(|error| format!("opening: {error}"))?;
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
        let mut found = None;
        for _ in 0..cut.more {
            let at = self.power.io_count() + self.random.range(1, 24);
            self.power.cut_at(Some(at));
            let opened = self.open(&which, cut.alone.is_some());
            if !self.power.is_cut() {
                self.power.cut_at(None);
                found = Some(opened);
                break;
            }
            self.tally.cuts_in_recovery += 1;
            let plan = *self.random.pick(&[CrashPlan::DropAll, CrashPlan::KeepAll, CrashPlan::Random]);
            self.disks = self.power.revive(plan);
        }
        let opened = found.unwrap_or_else(|| self.open(&which, cut.alone.is_some()));
        let driver = self.drive(opened)?;
        clean(&driver.store)?;
        judge::judge(&known, driver.now())?;
        Ok(driver)
    }

    /// Everything settled and durable: the checker finds nothing, and what is there is what the model says.
    ///
    /// # Errors
    /// Something is wrong.
    pub fn finish(&mut self, driver: &mut Driver) -> Result<(), String> {
        driver.finish()
    }
}

/// Prove every block on every replica.
pub fn examine_store(store: &Store, heal: bool) -> CheckReport {
    let options = CheckOptions { data: true, heal, parallel: false, findings_max: 10_000 };
    check(&StoreSource::new(store), &options, &mut |_| ControlFlow::Continue(()))
}

/// Prove and heal everything: all that is found is a block on a slot that `may_be_bad`, and healed. Then nothing is found.
///
/// # Errors
/// What else was found.
pub fn heal_only(store: &Store, may_be_bad: impl Fn(usize) -> bool) -> Result<(), String> {
    for finding in examine_store(store, true).findings {
        let healed =
            matches!(finding, Finding::Block { replica, outcome: Outcome::Healed(_), .. } if may_be_bad(replica));
        if !healed {
            return Err(format!("scrub: {finding}"));
        }
    }
    clean(store)
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
