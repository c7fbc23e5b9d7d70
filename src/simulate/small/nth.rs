//! The loop that SQLite runs: in a fixed history the first request of one disk fails, then the second, the third, to the end.
//!
//! *Guarantees*: [`every`] runs the history once for each request of one disk that can fail in one way, and stops when
//! none did. Each time no application sees an error, everything that was written is there, a scrub heals what the fault
//! left on that disk and nothing else is found, and a power cut at the end loses nothing.
//! *Assumes*: one fault in a history; nobody reads a state from before a replace when it is over. *Fails when*: it cost anything: [`Failure`], whose first line replays the case.
//! *Order*: operations, with a remount, a scrub, a replace and another remount between them.
//! *Not here*: faults by chance (`fault`), two faults.

use super::{Covered, setup};
use crate::disk::ReplicaName;
use crate::disk::sim::{CrashPlan, Fault, Faults, Random};
use crate::format::Uuid;
use crate::simulate::driver::Driver;
use crate::simulate::generate::Weights;
use crate::simulate::judge::{Known, judge, same};
use crate::simulate::model::{Op, State};
use crate::simulate::{Bench, Failure, clean, disk_path, heal_only};
use crate::store::commit::Force;
use crate::volume::replace::{Place, resync};
use crate::volume::scrub;

/// Operations in a history.
const OPERATIONS: usize = 60;
/// Operations after which a request that hung lands.
const LATE: usize = 9;

/// How a request fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // As the fields of `Faults`.
pub enum Way {
    ReadError,
    WriteError,
    FlushError,
    LostWrite,
    TornWrite,
    /// Any request; it lands late.
    Hang,
    /// This write or flush, and every request after it.
    Dies,
}

impl Way {
    /// All ways.
    pub const ALL: [Way; 7] =
        [Way::ReadError, Way::WriteError, Way::FlushError, Way::LostWrite, Way::TornWrite, Way::Hang, Way::Dies];

    /// Whether the disk must be out once it has struck.
    fn puts_out(self) -> bool {
        matches!(self, Way::WriteError | Way::FlushError | Way::Dies)
    }

    fn arm(self, faults: &mut Faults, after: u32) {
        let once = Fault::Once(after);
        match self {
            Way::ReadError => faults.fail_reads = once,
            Way::WriteError => faults.fail_writes = once,
            Way::FlushError => faults.fail_flushes = once,
            Way::LostWrite => faults.lost_writes = once,
            Way::TornWrite => faults.torn_writes = once,
            Way::Hang => faults.hang = once,
            Way::Dies => faults.dies = once,
        }
    }
}

/// A history and the disk that fails in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// Of the history.
    pub seed: u64,
    /// 0 or 1; 2: the one that a replace brings.
    pub disk: usize,
    /// How it fails.
    pub way: Way,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "nth:{}:{}:{:?}", self.seed, self.disk, self.way)
    }
}

struct Nth {
    bench: Bench,
    bad: usize,
    way: Way,
    /// Operations since something hangs.
    hanging: usize,
}

impl Nth {
    fn step(&mut self, driver: &mut Driver, op: &Op) -> Result<(), String> {
        driver.step(op)?;
        if self.bench.disks.iter().any(|disk| crate::disk::backing::Backing::in_flight(&**disk) > 0) {
            self.hanging += 1;
            if self.hanging > LATE {
                self.release();
            }
        }
        Ok(())
    }

    /// What hangs lands now.
    fn release(&mut self) {
        self.bench.disks[self.bad].release_hung();
        self.hanging = 0;
    }

    fn operations(&mut self, driver: &mut Driver, count: usize) -> Result<(), String> {
        for _ in 0..count {
            let op = crate::simulate::generate::next(driver.now(), &mut self.bench.random, &Weights::usual(false));
            self.step(driver, &op)?;
        }
        driver.compare()
    }

    /// What is there without open handles.
    fn close(driver: &mut Driver) -> Result<State, String> {
        let open: Vec<u64> = driver.now().opens.iter().flat_map(|(ino, count)| vec![*ino; *count as usize]).collect();
        open.into_iter().try_for_each(|ino| driver.step(&Op::Release { ino }))?;
        driver.settle()?;
        driver.compare()?;
        Ok(driver.now().clone())
    }

    fn remount(&mut self, mut driver: Driver) -> Result<Driver, String> {
        let before = Nth::close(&mut driver)?;
        driver.store.commit(Force::Clean).map_err(|error| format!("unmounting: {error}"))?;
        drop(driver);
        self.release();
        let driver = self.bench.mount_on(&[0, 1, 2], false)?;
        same(&before, driver.now()).map_err(|text| format!("after the remount: {text}"))?;
        Ok(driver)
    }

    fn scrub(driver: &Driver) -> Result<(), String> {
        let report = scrub::run(&driver.store, &mut |_| true);
        if report.lost + report.combined > 0 { Err(format!("scrub: {report}")) } else { Ok(()) }
    }

    /// The new disk takes the place of the one that is out, else of the second one.
    fn replace(&mut self, driver: &Driver) -> Result<(), String> {
        let mirror = driver.store.mirror();
        let out = (0..2).find(|slot| !mirror.members().contains(*slot));
        if let Some(slot) = out {
            self.release();
            mirror.release(slot);
        }
        let place = out.map_or(Place::Taken(1), Place::Free);
        let name = ReplicaName { uuid: Uuid([9; 16]), path: disk_path(2) };
        let new = self.bench.disks[2].clone();
        match resync(&driver.store, place, name, new, &mut |_| true) {
            Ok(_) => Ok(()),
            // The new disk is no good: that is said, and nothing else is affected.
            Err(_) if self.bad == 2 && self.bench.disks[2].counters().faults > 0 => Ok(()),
            Err(error) => Err(format!("replace: {error}")),
        }
    }

    fn history(&mut self) -> Result<Driver, String> {
        let mut driver = self.bench.mount_on(&[0, 1, 2], false)?;
        self.operations(&mut driver, OPERATIONS / 4)?;
        let mut driver = self.remount(driver)?;
        self.operations(&mut driver, OPERATIONS / 4)?;
        Nth::scrub(&driver)?;
        self.operations(&mut driver, OPERATIONS / 8)?;
        // A replace waits for those who read an older state; here that is this thread.
        driver.settle()?;
        self.replace(&driver)?;
        self.operations(&mut driver, OPERATIONS / 8)?;
        let mut driver = self.remount(driver)?;
        self.operations(&mut driver, OPERATIONS / 4)?;
        Ok(driver)
    }

    /// The fault is over: a scrub heals what it left, on that disk alone.
    fn relieve(&mut self, driver: &Driver) -> Result<(), String> {
        let (mirror, bad) = (driver.store.mirror(), disk_path(self.bad));
        let struck = self.bench.disks[self.bad].counters().faults > 0;
        let in_sync = mirror.health().iter().any(|h| h.name.path == bad && mirror.members().contains(h.slot));
        if struck && in_sync && self.way.puts_out() {
            return Err("a replica that failed is still called in sync".into());
        }
        self.bench.disks[self.bad].faults(|faults| *faults = Faults { gone: faults.gone, ..Faults::default() });
        self.release();
        let slot = mirror.health().iter().find(|health| health.name.path == bad).map(|health| health.slot);
        heal_only(&driver.store, |replica| Some(replica) == slot)?;
        // A flush: what was healed on the way is durable with it.
        driver.store.commit(Force::Always).map_err(|error| format!("commit: {error}"))?;
        clean(&driver.store)
    }

    fn run(&mut self) -> Result<(), String> {
        let mut driver = self.history()?;
        Nth::close(&mut driver)?;
        driver.store.commit(Force::Always).map_err(|error| format!("commit: {error}"))?;
        driver.compare()?;
        self.relieve(&driver)?;
        let known = Known::take(driver);
        self.bench.disks = self.bench.power.revive(CrashPlan::DropAll);
        let driver = self.bench.mount_on(&[0, 1, 2], false).map_err(|text| format!("after the power cut: {text}"))?;
        judge(&known, driver.now()).map_err(|text| format!("after the power cut: {text}"))?;
        clean(&driver.store)
    }
}

/// Run the history of `case` with its `after + 1`-st request failing. False: there are not so many.
fn one(case: &Case, after: u32, covered: &mut Covered) -> Result<bool, String> {
    let mut bench = Bench::with(case.seed, setup(), Random::new(case.seed));
    bench.disks.push(bench.power.disk(setup().blocks));
    bench.disks[case.disk].faults(|faults| case.way.arm(faults, after));
    let mut nth = Nth { bench, bad: case.disk, way: case.way, hanging: 0 };
    let outcome = nth.run();
    covered.sequences += 1;
    covered.recoveries += 1;
    covered.cuts += 1;
    covered.crashes += 1;
    let struck = nth.bench.disks[case.disk].counters().faults > 0;
    covered.faults += u64::from(struck);
    outcome.map(|()| struck)
}

/// Let every request fail in turn. `from`, `step`: begin with this one, go on with every so-manieth.
///
/// # Errors
/// A single fault cost something.
pub fn every(case: &Case, from: u32, step: u32, only: Option<&str>) -> Result<Covered, Failure> {
    let mut covered = Covered::default();
    let mut after = from;
    loop {
        let name = format!("{case}@{after}");
        if only.is_none_or(|only| only == name) {
            let struck = one(case, after, &mut covered);
            let struck = struck.map_err(|text| Failure { text: format!("STABLEFS_CASE={name}: {text}") })?;
            if !struck || only.is_some() {
                return Ok(covered);
            }
        }
        after += if only.is_some() { 1 } else { step };
    }
}

/// Every disk of the histories `seeds`, failing in every way.
pub fn cases(seeds: std::ops::Range<u64>) -> Vec<Case> {
    let mut all = Vec::new();
    for seed in seeds {
        for disk in 0..3 {
            all.extend(Way::ALL.map(|way| Case { seed, disk, way }));
        }
    }
    all
}
