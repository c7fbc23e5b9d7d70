//! Histories on a pair of disks of which one is faulty.
//!
//! *Guarantees*: [`fault_history`] fails if a single fault costs anything: a wrong byte, an error to the application,
//! damage that a scrub does not heal, an acknowledged change that is gone after a power cut, or a replica that was
//! left behind and is taken for whole. *Assumes*: faults strike one disk only.
//! *Fails when*: any of these is found: the seed and the fault are named. *Order*: faults are switched off before the scrub, as after the repair of a cable.
//! *Not here*: two faults on one block (`tests/faults.rs`).

use super::driver::Driver;
use super::judge::{self, Known};
use super::{Ask, Bench, Failure, Tally, heal_only};
use crate::disk::sim::{CrashPlan, Fault, Faults, Random, Rates, SimDisk};
use crate::format::{Addr, Geometry};
use crate::store::StoreError;
use crate::store::commit::Force;

/// What is wrong with one disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // As the fields of `Faults`.
pub enum Kind {
    Rot,
    Zeros,
    Junk,
    Stale,
    Unreadable,
    ReadErrors,
    LostWrite,
    TornWrite,
    MisdirectedWrite,
    MisdirectedRead,
    LyingFlush,
    WriteError,
    FlushError,
    /// Fail-stop in the middle of a write or flush.
    Dies,
    Hangs,
    HangsInFlush,
    ReadOnly,
    /// The filesystem below has no room for what was never written.
    Full,
    /// The container vanishes.
    Vanishes,
    /// A little of everything that can be healed, all the time.
    Mixed,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 20] = [
        Kind::Rot,
        Kind::Zeros,
        Kind::Junk,
        Kind::Stale,
        Kind::Unreadable,
        Kind::ReadErrors,
        Kind::LostWrite,
        Kind::TornWrite,
        Kind::MisdirectedWrite,
        Kind::MisdirectedRead,
        Kind::LyingFlush,
        Kind::WriteError,
        Kind::FlushError,
        Kind::Dies,
        Kind::Hangs,
        Kind::HangsInFlush,
        Kind::ReadOnly,
        Kind::Full,
        Kind::Vanishes,
        Kind::Mixed,
    ];

    /// Whether it damages the medium itself, between requests.
    pub(super) fn is_damage(self) -> bool {
        matches!(self, Kind::Rot | Kind::Zeros | Kind::Junk | Kind::Stale | Kind::Unreadable)
    }

    /// Whether the disk must be out once it has struck.
    pub(super) fn puts_out(self) -> bool {
        matches!(
            self,
            Kind::WriteError
                | Kind::FlushError
                | Kind::Dies
                | Kind::Hangs
                | Kind::HangsInFlush
                | Kind::ReadOnly
                | Kind::Vanishes
        )
    }

    /// Damage the block at `addr`; what is no damage of the medium makes it unreadable.
    pub(super) fn hurt(self, disk: &SimDisk, addr: Addr, random: &mut Random) {
        match self {
            Kind::Rot => disk.rot(addr, random.bits()),
            Kind::Zeros => disk.zero(addr),
            Kind::Junk => disk.junk(addr),
            Kind::Stale => {
                disk.stale(addr);
            }
            _ => disk.faults(|faults| {
                faults.unreadable.insert(addr);
            }),
        }
    }

    /// Switch on what strikes requests: after `skip` of them, or from now on.
    pub(super) fn arm(self, faults: &mut Faults, skip: u32) {
        match self {
            Kind::ReadErrors => faults.fail_reads = Fault::Next(skip + 1),
            Kind::LostWrite => faults.lost_writes = Fault::Once(skip),
            Kind::TornWrite => faults.torn_writes = Fault::Once(skip),
            Kind::MisdirectedWrite => faults.misdirected_writes = Fault::Once(skip),
            Kind::MisdirectedRead => faults.misdirected_reads = Fault::Once(skip),
            Kind::LyingFlush => faults.lying_flushes = Fault::Once(skip),
            Kind::WriteError => faults.fail_writes = Fault::Once(skip),
            Kind::FlushError => faults.fail_flushes = Fault::Once(skip),
            Kind::Dies => faults.dies = Fault::Once(skip),
            Kind::Hangs => faults.hang = Fault::Once(skip),
            Kind::HangsInFlush => faults.hang_flushes = Fault::Once(skip),
            Kind::ReadOnly => faults.read_only = true,
            Kind::Full => faults.full = true,
            Kind::Vanishes => faults.fail_checks = Fault::Always,
            _ => {}
        }
    }
}

const MIXED: Rates = Rates {
    read_error: 20_000,
    write_error: 0,
    flush_error: 0,
    lost_write: 5_000,
    misdirected_write: 5_000,
    misdirected_read: 20_000,
    torn_write: 5_000,
    lying_flush: 0,
    bit_rot: 5_000,
    hang: 0,
};

/// A bench of which disk `bad` is faulty.
struct Faulty {
    bench: Bench,
    random: Random,
    kind: Kind,
    bad: usize,
    /// What was acknowledged when the bad disk was first seen to be out.
    out_at: Option<usize>,
}

impl Faulty {
    /// Damage a few blocks of the bad disk. One copy of the label stays, as one fault cannot take both.
    fn damage(&mut self) {
        let disk = self.bench.disks[self.bad].clone();
        let all = disk.addresses();
        for _ in 0..self.random.range(1, 9) {
            let addr = *self.random.pick(&all);
            if addr == Geometry::label_copies()[1] {
                continue;
            }
            self.bench.tally.faults += 1;
            self.kind.hurt(&disk, addr, &mut self.random);
        }
    }

    fn strike(&mut self) {
        let (kind, skip) = (self.kind, self.random.below(24) as u32);
        if kind.is_damage() {
            self.damage();
        } else if kind == Kind::Mixed {
            self.bench.disks[self.bad].set_rates(MIXED);
        } else if kind != Kind::Full || self.bench.setup.grows {
            // What does not grow has its space from the beginning.
            self.bench.disks[self.bad].faults(|faults| kind.arm(faults, skip));
        }
    }

    /// Whatever it was, it is over; a dead disk stays dead.
    fn relieve(&mut self) {
        let disk = &self.bench.disks[self.bad];
        disk.relieve(false);
        disk.release_hung();
    }

    /// Scrub: everything that is found is on the bad disk, and healed. Then nothing is found.
    fn scrub(&self, driver: &Driver) -> Result<(), String> {
        heal_only(&driver.store, |replica| replica == self.bad)
    }

    fn count_healed(&mut self, driver: &Driver) {
        let healed: u64 = driver.store.mirror().health().iter().map(|health| health.counters.healed).sum();
        self.bench.tally.healed += healed;
    }

    fn is_in_sync(&self, driver: &Driver) -> bool {
        driver.store.mirror().members().contains(self.bad)
    }

    /// The history up to its end or the power cut.
    fn before(&mut self, operations: usize, cut: bool) -> Result<Driver, String> {
        let mut driver = self.bench.mount()?;
        let first = self.random.below(operations as u64 / 2) as usize;
        self.bench.run(&mut driver, first)?;
        if cut {
            self.bench.power.cut_at(Some(self.bench.power.io_count() + self.random.range(1, 200)));
        }
        let mut left = operations - first;
        self.strike();
        while left > 0 && !self.bench.power.is_cut() {
            let some = left.min(12);
            self.bench.run(&mut driver, some)?;
            left -= some;
            if self.out_at.is_none() && !self.is_in_sync(&driver) {
                self.out_at = Some(driver.floor);
            }
            if self.kind.is_damage() && !self.bench.power.is_cut() {
                self.damage();
            }
        }
        Ok(driver)
    }

    /// After the last operation: everything is whole, scrub heals the bad disk.
    fn settle(&mut self, driver: &mut Driver) -> Result<(), String> {
        driver.settle()?;
        driver.store.commit(Force::Always).map_err(|error| format!("commit: {error}"))?;
        driver.compare()?;
        let struck = self.bench.disks[self.bad].counters().faults > 0;
        if struck && self.kind.puts_out() && self.is_in_sync(driver) {
            return Err("a replica that failed is still called in sync".into());
        }
        self.relieve();
        if !driver.store.mirror().members().contains(1 - self.bad) {
            return Err("the good replica is out".into());
        }
        self.scrub(driver)
    }

    /// Power cut, then open what there is.
    fn after(&mut self, driver: Driver) -> Result<Driver, String> {
        self.count_healed(&driver);
        let without_it = self.out_at.is_some_and(|floor| driver.floor > floor);
        let known = Known::take(driver);
        self.bench.tally.cuts += 1;
        let plan = *self.random.pick(&[CrashPlan::DropAll, CrashPlan::KeepAll, CrashPlan::Random]);
        self.bench.disks = self.bench.power.revive(plan);
        self.relieve();
        let (good, bad) = (1 - self.bad, self.bad);
        if without_it {
            // Nobody may take the one that was left behind for whole: this host knows better.
            match self.bench.open(&[bad], true) {
                Err(StoreError::Refused(_)) => {}
                Err(error) => return Err(format!("the bad replica alone: {error}")),
                Ok(_) => return Err("the bad replica alone was opened".into()),
            }
        }
        let (seen, opened) = self.bench.open_disks(&[0, 1], Ask::default());
        let (store, report) = match opened {
            Ok(opened) => opened,
            Err(StoreError::Refused(text)) => {
                // It failed, but no root could say so any more; or a long write that went astray took both labels.
                let excuse =
                    seen.excuse(bad, good).filter(|_| matches!(self.kind, Kind::Dies | Kind::MisdirectedWrite));
                excuse.ok_or_else(|| format!("refused: {text}"))?;
                self.bench.tally.refused += 1;
                self.bench.open(&[good], true).map_err(|error| format!("the good replica alone: {error}"))?
            }
            Err(error) => return Err(format!("opening: {error}")),
        };
        self.bench.tally.replayed += report.replayed;
        if without_it && report.behind.is_empty() && report.missing == 0 && self.kind != Kind::Dies {
            return Err("something was acknowledged without the bad replica, and no root says so".into());
        }
        let driver = Driver::new(store, &self.bench.power)?;
        judge::judge(&known, driver.now())?;
        self.scrub(&driver)?;
        Ok(driver)
    }

    fn run(&mut self, operations: usize) -> Result<(), String> {
        let cut = self.random.below(2) == 0;
        let mut driver = self.before(operations, cut)?;
        if !self.bench.power.is_cut() {
            self.bench.power.cut_at(None);
            self.settle(&mut driver)?;
        }
        let mut driver = self.after(driver).map_err(|text| format!("after the power cut: {text}"))?;
        let life = self.bench.run(&mut driver, operations / 5).and_then(|()| self.bench.finish(&mut driver));
        self.count_healed(&driver);
        life.map_err(|text| format!("after recovery: {text}"))
    }
}

/// One history with one faulty disk.
///
/// # Errors
/// The fault cost something.
pub fn fault_history(seed: u64, kind: Kind, operations: usize) -> Result<Tally, Failure> {
    let mut random = Random::new(seed ^ 0xfa_17);
    let bad = random.below(2) as usize;
    let mut faulty = Faulty { bench: Bench::new(seed), random, kind, bad, out_at: None };
    let outcome = faulty.run(operations);
    let mut tally = faulty.bench.tally;
    tally.requests = faulty.bench.power.io_count();
    tally.faults += faulty.bench.disks[bad].counters().faults;
    let setup = faulty.bench.setup;
    outcome.map(|()| tally).map_err(|text| Failure {
        text: format!("seed {seed}, {operations} operations, {kind:?} on disk {bad}, {setup:?}:\n{text}"),
    })
}
