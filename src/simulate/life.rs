//! The life of a volume: one history of about a hundred operations among crashes, remounts, degraded mounts, faults at
//! rates, late I/O, replace, scrub and fsck. These are the simulator's ordinary weights.
//!
//! *Guarantees*: [`life`] fails if a promise was broken while faults stayed inside the single-fault assumption: at any
//! time damage stands on one disk only (`suspect`), or, on both, on different blocks (`split`); a second disk is touched
//! only after the first was proven whole. Everything is compared with the model after each step and after each recovery.
//! *Assumes*: one thread. *Fails when*: the product breaks a promise: the seed replays it, the story says what happened.
//! *Order*: damage → (operations, crashes, mounts) → scrub, fsck or replace that proves everything → damage elsewhere.
//! *Not here*: two faults on one block (`tests/structures.rs`), every cut of one history (`history`).
//!
//! | event | what must hold afterwards |
//! |---|---|
//! | power cut, kill | acknowledged fsyncs are there; what is there is a prefix of history |
//! | clean remount | everything is there |
//! | degraded mount of either disk | the same; the absent one is not trusted until it is replaced |
//! | a disk fails, hangs, fills up, vanishes | no error to the application, a root names it out |
//! | replace, also cut | everything proven on the new disk; or it is no replica, and nothing else changed |
//! | scrub | what was damaged is healed, the number of correct copies fell nowhere |
//! | fsck -n, fsck -y | finds what there is to find, writes nothing; afterwards nothing is found |
//! | old content, forks | refused, or known as behind; never mixed |

mod places;
mod trouble;

use super::driver::Driver;
use super::judge::{self, Known};
use super::model::Op;
use super::{Bench, DEADLINE, Failure, Setup, Tally, clean};
use crate::disk::sim::{CrashPlan, Image, Random};
use crate::store::commit::Force;
use crate::store::recover::Report;
use crate::store::{Store, StoreError};
use crate::volume::fsck::{self, FsckOptions, FsckReport, Host};
use crate::volume::replace::{Place, resync};
use crate::volume::scrub;
use std::sync::Arc;

/// Operations of one history, about.
pub const OPERATIONS: usize = 100;
/// Operations between two looks at the disks.
const AT_ONCE: usize = 8;
/// Lines of the story that a failure tells.
const STORY_MAX: usize = 80;

/// What happened.
enum Line {
    Event(String),
    Did(Op),
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Line::Event(text) => write!(f, "* {text}"),
            Line::Did(op) => write!(f, "{op:?}"),
        }
    }
}

/// One volume's life.
struct Life {
    bench: Bench,
    random: Random,
    /// Which disk of the world stands in which slot.
    slots: Vec<usize>,
    /// Where a replace was going to when the power failed.
    half_way: Option<usize>,
    /// The disk that was being replaced, or brought back, when the power failed.
    joining: Option<usize>,
    /// The last disk that was replaced while it was in sync, and its slot.
    former: Option<(usize, usize)>,
    /// The only slot whose disk may hold damage, be behind, or fail.
    suspect: Option<usize>,
    /// Both hold damage, on different blocks.
    split: bool,
    /// Requests to the suspect may fail or hang, now or since its last proof.
    unreliable: bool,
    /// What had been acknowledged when the suspect was first seen to be out.
    out_since: Option<usize>,
    /// Something was acknowledged without this disk: it must not be called in sync.
    behind: Option<usize>,
    /// The suspect came back with old content: alone it cannot know that it is old (the host's witness does).
    restored: bool,
    /// For each slot: its disk, and what that held at an earlier mount.
    snapshots: Vec<Option<(usize, Image)>>,
    story: Vec<Line>,
    left: usize,
}

/// How a mount ended.
enum Ended {
    /// Commit, clean root.
    Cleanly,
    /// kill -9: what was written is there, what was only in memory is not.
    Killed,
    /// Power cut.
    Cut,
}

/// The history of `seed`.
///
/// # Errors
/// A promise was broken.
pub fn life(seed: u64) -> Result<Tally, Failure> {
    let mut random = Random::new(seed ^ 0x11fe);
    let mut drawn = random.fork();
    let setup = Setup::draw(&mut drawn);
    let bench = Bench::with(seed, setup, drawn);
    let slots: Vec<usize> = (0..bench.disks.len()).collect();
    let mut life = Life {
        snapshots: vec![None; slots.len()],
        slots,
        half_way: None,
        joining: None,
        former: None,
        bench,
        random,
        suspect: None,
        split: false,
        unreliable: false,
        out_since: None,
        behind: None,
        restored: false,
        story: Vec::new(),
        left: OPERATIONS,
    };
    let outcome = life.run();
    let mut tally = life.bench.tally;
    tally.requests = life.bench.power.io_count();
    tally.faults += life.bench.power.faults();
    outcome.map(|()| tally).map_err(|text| {
        // All events, and the last operations.
        let first = life.story.len().saturating_sub(STORY_MAX);
        let story = life.story.iter().enumerate().filter(|(i, line)| *i >= first || matches!(line, Line::Event(_)));
        let story: Vec<String> = story.map(|(_, line)| format!("  {line}")).collect();
        let setup = &life.bench.setup;
        Failure { text: format!("seed {seed}: {text}\n{setup:?}\nwhat happened:\n{}", story.join("\n")) }
    })
}

impl Life {
    fn tell(&mut self, line: impl Into<String>) {
        self.story.push(Line::Event(line.into()));
    }

    fn run(&mut self) -> Result<(), String> {
        let mut driver = self.mount(None)?;
        while self.left > 0 {
            driver = self.chapter(driver)?;
        }
        self.last_chapter(driver)
    }

    /// Some operations, among which the power may fail; then an event.
    fn chapter(&mut self, mut driver: Driver) -> Result<Driver, String> {
        let count = (self.random.range(6, 40) as usize).min(self.left);
        self.left -= count;
        if self.random.below(3) == 0 {
            self.cut_soon(120);
        }
        self.maybe_trouble();
        let mut left = count;
        while left > 0 && !self.bench.power.is_cut() {
            let some = left.min(AT_ONCE);
            self.operate(&mut driver, some)?;
            left -= some;
            self.trouble_goes_on();
        }
        if self.bench.power.is_cut() {
            return self.remount(driver, Ended::Cut);
        }
        self.bench.power.cut_at(None);
        self.event(driver)
    }

    fn operate(&mut self, driver: &mut Driver, count: usize) -> Result<(), String> {
        let from = driver.log.len();
        let outcome = self.bench.run_on(driver, count);
        self.story.extend(driver.log[from..].iter().cloned().map(Line::Did));
        outcome?;
        self.note_out(driver);
        self.good_ones_are_in(&driver.store)
    }

    fn event(&mut self, mut driver: Driver) -> Result<Driver, String> {
        match self.random.below(16) {
            0..2 => self.remount(driver, Ended::Cleanly),
            2..4 => self.remount(driver, Ended::Killed),
            4..7 => self.remount(driver, Ended::Cut),
            7..9 => {
                self.scrub(&mut driver)?;
                self.after_work(driver)
            }
            9..13 => {
                self.replace(&mut driver)?;
                self.after_work(driver)
            }
            _ => Ok(driver),
        }
    }

    /// The power may have failed in it.
    fn after_work(&mut self, driver: Driver) -> Result<Driver, String> {
        if self.bench.power.is_cut() {
            return self.remount(driver, Ended::Cut);
        }
        self.bench.power.cut_at(None);
        Ok(driver)
    }

    fn cut_soon(&mut self, within: u64) {
        let at = self.bench.power.io_count() + self.random.range(1, within);
        self.bench.power.cut_at(Some(at));
    }

    /// Prove and heal everything; then nobody is suspected.
    fn scrub(&mut self, driver: &mut Driver) -> Result<(), String> {
        self.tell("scrub");
        self.relieve();
        // What only a reader still holds is not walked.
        driver.unpin()?;
        if self.random.below(4) == 0 {
            self.cut_soon(60);
        }
        let committed = driver.store.commit(Force::IfChanged);
        if self.bench.power.is_cut() {
            return Ok(());
        }
        committed.map_err(|error| format!("commit before a scrub: {error}"))?;
        self.bench.tally.scrubs += 1;
        let before = driver.store.mirror().members();
        let report = scrub::run(&driver.store, &mut |_| true);
        if self.bench.power.is_cut() {
            return Ok(());
        }
        self.bench.power.cut_at(None);
        self.bench.tally.healed += report.healed;
        let after = driver.store.mirror().members();
        if report.lost > 0 || report.failed > 0 || before != after {
            let more = (report.lost_paths.clone(), report.notes.clone());
            return Err(format!("scrub, members {before:?} then {after:?}: {report}; {more:?}"));
        }
        if after.count() == self.slots.len() {
            clean(&driver.store).map_err(|text| format!("after a scrub: {text}"))?;
            self.trust();
        }
        Ok(())
    }

    /// Bring back what is out, or move what is in sync to another disk.
    fn replace(&mut self, driver: &mut Driver) -> Result<(), String> {
        let members = driver.store.mirror().members();
        let out = (0..self.slots.len()).find(|slot| !members.contains(*slot));
        let slot = out.or(self.suspect).unwrap_or_else(|| self.random.below(self.slots.len() as u64) as usize);
        if self.split {
            // The source may be damaged where the other one is the only good copy.
            return self.scrub(driver);
        }
        if out.is_some() && self.hangs(&driver.store, slot) {
            self.late(driver, slot)?;
        }
        let relieved = self.random.below(4) > 0;
        if relieved {
            self.relieve();
        }
        // A reader that holds an old state for longer than a replace takes would need the disk that goes.
        driver.unpin()?;
        let fresh = out.is_none() || self.random.below(3) == 0;
        let (place, target) = self.place_for(slot, out.is_some(), fresh);
        self.tell(format!("replace slot {slot} by disk {target} ({place:?})"));
        self.bench.tally.replaces += 1;
        if self.random.below(3) == 0 {
            self.cut_soon(150);
        }
        let outcome = self.resync(driver, place, target)?;
        if self.bench.power.is_cut() {
            self.half_way = (!self.slots.contains(&target)).then_some(target);
            self.joining = Some(target);
            return Ok(());
        }
        self.bench.power.cut_at(None);
        let report = match outcome {
            Ok(report) => report,
            Err(StoreError::Refused(text)) if !fresh && self.unreliable => {
                self.tell(format!("replace refused: {text}"));
                self.relieve();
                return self.good_ones_are_in(&driver.store);
            }
            Err(error) => return Err(format!("replace: {error}")),
        };
        if report.lost > 0 {
            return Err(format!("replace: {}: {:?}", report.summary, report.lost_paths));
        }
        if out.is_none() {
            self.former = Some((slot, self.slots[slot]));
        }
        self.slots[slot] = target;
        self.behind = None;
        self.relieve();
        if !relieved && !fresh {
            // It may have been damaged again since the proof.
            self.out_since = None;
            return self.good_ones_are_in(&driver.store);
        }
        clean(&driver.store).map_err(|text| format!("after a replace: {text}"))?;
        self.trust();
        Ok(())
    }

    /// The resync itself, with some operations beside it.
    fn resync(
        &mut self,
        driver: &mut Driver,
        place: Place,
        target: usize,
    ) -> Result<Result<crate::volume::replace::ReplaceReport, StoreError>, String> {
        let store = Arc::clone(&driver.store);
        if let Place::Free(slot) = place {
            store.mirror().release(slot);
        }
        let name = self.new_name(&store, target);
        let backing = self.bench.power.disk_at(target);
        let mut failed = Ok(());
        let mut beside = self.random.below(8);
        let outcome = resync(&store, place, name, backing, &mut |_| {
            if beside > 0 && failed.is_ok() && !self.bench.power.is_cut() {
                beside -= 1;
                let from = driver.log.len();
                failed = self.bench.run_on(driver, 1);
                self.story.extend(driver.log[from..].iter().cloned().map(Line::Did));
            }
            true
        });
        failed.map_err(|text| format!("beside a replace: {text}"))?;
        Ok(outcome)
    }

    /// End the mount, and mount again: both, or one of them alone.
    fn remount(&mut self, driver: Driver, ended: Ended) -> Result<Driver, String> {
        let known = self.end(driver, &ended)?;
        self.maybe_bring_back_old();
        if self.random.below(5) == 0 && self.half_way.is_none() {
            self.check_offline()?;
        }
        if self.random.below(4) == 0 {
            self.distrust()?;
        }
        let alone = self.choose_alone();
        let driver = self.mount(alone)?;
        judge::judge(&known, driver.now()).map_err(|text| format!("after the mount: {text}"))?;
        if self.suspect.is_none() && !self.split {
            clean(&driver.store).map_err(|text| format!("after the mount: {text}"))?;
        }
        Ok(driver)
    }

    fn end(&mut self, mut driver: Driver, ended: &Ended) -> Result<Known, String> {
        if let Ended::Cleanly = ended {
            self.tell("unmount");
            driver.settle()?;
            driver.store.commit(Force::Clean).map_err(|error| format!("the last commit: {error}"))?;
            driver.all_is_durable();
            self.bench.tally.remounts += 1;
        }
        self.note_out(&driver);
        // It may just have been proven whole.
        let joining = self.joining.take();
        self.behind = self.behind.filter(|behind| joining != Some(*behind));
        let known = Known::take(driver);
        match ended {
            Ended::Cleanly => self.release_hung(),
            Ended::Killed => {
                self.tell("kill -9");
                self.bench.tally.kills += 1;
                // The lock stands until what hangs has come back.
                self.release_hung();
            }
            Ended::Cut => self.power_fails(),
        }
        if self.random.below(2) == 0 {
            self.relieve();
        }
        self.out_since = None;
        Ok(known)
    }

    fn power_fails(&mut self) {
        let plans = [CrashPlan::DropAll, CrashPlan::KeepAll, CrashPlan::Random, CrashPlan::Random, CrashPlan::Lossy];
        let plan = *self.random.pick(&plans);
        self.tell(format!("power cut, {plan:?}"));
        self.bench.tally.cuts += 1;
        self.bench.power.revive(plan);
    }

    /// One disk alone, now and then; never one that may be damaged.
    fn choose_alone(&mut self) -> Option<usize> {
        if self.split || self.half_way.is_some() || self.random.below(4) > 0 {
            return None;
        }
        Some(match self.suspect {
            Some(suspect) => 1 - suspect,
            None => self.random.below(self.slots.len() as u64) as usize,
        })
    }

    /// Mount both (or one alone); the power may fail in recovery, again and again.
    fn mount(&mut self, alone: Option<usize>) -> Result<Driver, String> {
        for _ in 0..self.random.below(3) {
            self.cut_soon(24);
            let opened = self.open(alone);
            if !self.bench.power.is_cut() {
                break;
            }
            drop(opened);
            self.bench.tally.cuts_in_recovery += 1;
            self.power_fails();
        }
        self.bench.power.cut_at(None);
        self.release_hung();
        let (store, report) = self.open(alone)?;
        self.bench.tally.replayed += report.replayed;
        self.tell(format!("mounted (alone: {alone:?}), {} replayed, behind: {:?}", report.replayed, report.behind));
        if let Some(alone) = alone {
            self.bench.tally.degraded += 1;
            self.suspect = Some(1 - alone);
            self.unreliable = true;
        }
        self.note_members(&store, &report, alone)?;
        for slot in 0..self.slots.len() {
            self.snapshots[slot] = Some((self.slots[slot], self.disk(slot).snapshot()));
        }
        Driver::new(store, &self.bench.power)
    }

    /// Open what there is; whatever is refused must have a reason.
    fn open(&mut self, alone: Option<usize>) -> Result<(Store, Report), String> {
        let disks = alone.map_or_else(|| self.all_disks(), |slot| vec![self.slots[slot]]);
        match self.open_disks(&disks, alone.is_some()) {
            Ok(opened) => Ok(opened),
            Err(_) if self.bench.power.is_cut() => Err("power cut".into()),
            Err(StoreError::Refused(text)) if alone.is_none() && self.unreliable => {
                // It failed, and no root could say so any more: the other one alone must do.
                self.tell(format!("refused: {text}"));
                self.bench.tally.refused += 1;
                let good = 1 - self.suspect.expect("only a suspect is unreliable");
                self.release_hung();
                let one = self.half_way.is_none() && self.random.below(2) == 0;
                let which = if one { vec![self.slots[good]] } else { self.all_disks() };
                self.open_disks(&which, true).map_err(|error| format!("opening {which:?} degraded: {error}"))
            }
            Err(error) => Err(format!("opening {disks:?}: {error}")),
        }
    }

    /// fsck, looking or repairing.
    fn check_offline(&mut self) -> Result<(), String> {
        self.relieve();
        self.bench.tally.fscks += 1;
        // A replica that is not there or behind, in one line or the other.
        let about_replicas = |line: &&String| {
            let of_a_block = line.contains(": block ");
            !of_a_block && (line.starts_with("replica ") || line.contains("were not given"))
        };
        if self.random.below(2) == 0 {
            let written = self.bench.power.io_count();
            let quick = self.random.below(4) == 0;
            let report = self.fsck(false, quick)?;
            if self.bench.power.io_count() != written {
                return Err("fsck -n has written something".into());
            }
            if self.suspect.is_none() && !self.split && !report.findings.is_empty() {
                return Err(format!("fsck -n found on good disks: {:?}", report.findings));
            }
            if report.lost > 0 {
                return Err(format!("fsck -n calls {} blocks lost: {:?}", report.lost, report.findings));
            }
            return Ok(());
        }
        if self.random.below(3) == 0 {
            self.cut_soon(40);
        }
        let report = self.fsck(true, false)?;
        if self.bench.power.is_cut() {
            self.power_fails();
            return Ok(());
        }
        self.bench.power.cut_at(None);
        let left: Vec<&String> = report.left.iter().filter(|line| !about_replicas(line)).collect();
        if !left.is_empty() || report.lost > 0 {
            return Err(format!("fsck -y left {left:?}, lost {}", report.lost));
        }
        let again = self.fsck(false, false)?;
        let found: Vec<&String> = again.findings.iter().filter(|line| !about_replicas(line)).collect();
        if !found.is_empty() {
            return Err(format!("after fsck -y, fsck -n found {found:?}"));
        }
        Ok(())
    }

    /// The real one, on these disks; a power cut gives an empty report.
    fn fsck(&mut self, repair: bool, quick: bool) -> Result<FsckReport, String> {
        let (present, absent) = self.present(&self.slots, repair);
        let host =
            Host { world: self.bench.clock(), deadline: DEADLINE, check: &|_, _| Ok(()), on_shrink: Box::new(|_| ()) };
        self.tell(format!("fsck, repair: {repair}"));
        match fsck::run(present, &absent, &FsckOptions { repair, quick }, host, &mut |_, _, _| ()) {
            Ok((report, _)) => Ok(report),
            Err(_) if self.bench.power.is_cut() => Ok(FsckReport::default()),
            // Repair wants all replicas, or says so.
            Err(StoreError::Refused(text)) if self.unreliable => {
                self.tell(format!("fsck refused: {text}"));
                Ok(FsckReport::default())
            }
            Err(error) => Err(format!("fsck, repair: {repair}: {error}")),
        }
    }

    /// Everything is brought back and proven; then each disk alone holds everything.
    fn last_chapter(&mut self, mut driver: Driver) -> Result<(), String> {
        loop {
            self.bench.power.cut_at(None);
            self.relieve();
            self.release_hung();
            let whole = driver.store.mirror().members().count() == self.slots.len();
            if whole && self.suspect.is_none() && !self.split {
                break;
            }
            if whole {
                self.scrub(&mut driver)?
            } else {
                self.replace(&mut driver)?
            }
            driver = self.after_work(driver)?;
        }
        self.bench.finish(&mut driver).map_err(|text| format!("at the end: {text}"))?;
        driver.store.commit(Force::Clean).map_err(|error| format!("the last commit: {error}"))?;
        driver.all_is_durable();
        let known = Known::take(driver);
        let alone = self.random.below(self.slots.len() as u64) as usize;
        let opened = self.open_disks(&[self.slots[alone]], true);
        let (store, _) = opened.map_err(|error| format!("slot {alone} alone: {error}"))?;
        let driver = Driver::new(store, &self.bench.power).map_err(|text| format!("slot {alone} alone: {text}"))?;
        judge::judge(&known, driver.now()).map_err(|text| format!("slot {alone} alone: {text}"))?;
        drop(driver);
        if self.random.below(4) == 0 { self.fork(1 - alone) } else { Ok(()) }
    }

    /// The other one was written alone: now `other` is, too. Together they are refused.
    fn fork(&mut self, other: usize) -> Result<(), String> {
        self.bench.tally.forks += 1;
        let opened = self.open_disks(&[self.slots[other]], true);
        drop(opened.map_err(|error| format!("slot {other} alone: {error}"))?);
        match self.open_disks(&self.slots, true) {
            Err(StoreError::Refused(_)) => Ok(()),
            Err(error) => Err(format!("two histories: {error}")),
            Ok(_) => Err("two histories that were written apart were opened as one".into()),
        }
    }

    /// Disks that must not be taken for the volume.
    fn distrust(&mut self) -> Result<(), String> {
        if let (Some(disk), false) = (self.behind, self.restored) {
            self.must_be_refused(&[disk], "the one that was left behind")?;
        }
        if self.suspect.is_none() && self.half_way.is_none() { self.old_disk_is_refused() } else { Ok(()) }
    }
}
