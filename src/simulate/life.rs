//! The life of a volume: one history of about a hundred operations among crashes, remounts, degraded mounts, faults at
//! rates, late I/O, replace, scrub and fsck. These are the simulator's ordinary weights.
//!
//! *Guarantees*: [`life`] fails if a promise was broken while faults stayed inside the single-fault assumption: at any
//! time damage stands on one disk only (`suspect`), or, on both, on different blocks (`split`); a second disk is touched
//! only after the first was proven whole. Each result is compared with the model, everything every sixteen operations and after each recovery.
//! *Assumes*: one thread. *Fails when*: the product breaks a promise: the seed replays it, the story says what happened.
//! *Order*: damage → (operations, crashes, mounts) → scrub, fsck or replace that proves everything → damage elsewhere.
//! *Not here*: two faults on one block (`tests/structures`), every cut of one history (`history`), three replicas.
//!
//! | event | what must hold afterwards |
//! |---|---|
//! | power cut, kill | acknowledged fsyncs are there; what is there is a prefix of history |
//! | clean remount | everything is there |
//! | degraded mount of either disk | the same; the absent one is not trusted until it is replaced |
//! | a disk fails, hangs, fills up, vanishes | no error to the application, a root names it out |
//! | replace, also cut | everything proven on the new disk; or it is no replica, and nothing else changed |
//! | return | it has what it missed, without what it had being sent; if nothing else befell it, every block is right |
//! | follow, also cut | a warm disk holds, alone, what the volume shows |
//! | scrub | what was damaged is healed; on a disk that is good nothing was to be healed, by reads neither |
//! | fsck -n, fsck -y | finds what there is to find, writes nothing; afterwards nothing is found |
//! | refusal of both | only where the suspect cannot be examined, is older, foreign or a copy |
//! | left behind, replaced | alone refused by what the host saw; beside the others known as such |
//! | old, foreign, copied content, forks | refused, or known as behind; never mixed |

mod deciding;
mod following;
mod places;
mod returning;
mod trouble;

use super::driver::Driver;
use super::judge::{self, Known};
use super::model::Op;
use super::{Ask, Bench, Failure, Seen, Setup, Tally, clean, disk_path};
use crate::control::Progress;
use crate::disk::sim::{CrashPlan, Image, Random};
use crate::format::Root;
use crate::format::geometry::ROOT_SLOTS;
use crate::store::commit::Force;
use crate::store::recover::Report;
use crate::store::{Store, StoreError};
use crate::volume::fsck::{FsckOptions, FsckReport};
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
    /// Version of the newest root that was known to be durable.
    acknowledged: u64,
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
    /// What the suspect holds may have been damaged since it was last proven; else it only went away, or came back old.
    hurt: bool,
    /// Whether a replica that was away is sometimes brought back, and not always replaced; drawn apart, so that other
    /// histories stay what they were.
    returns: Option<Random>,
    /// What had been acknowledged when the suspect was first seen to be out.
    out_since: Option<usize>,
    /// Something was acknowledged without this disk: it must not be called in sync.
    behind: Option<usize>,
    /// The suspect came back with what was never its own: alone it is another volume, its twin, or nothing.
    strange: bool,
    /// This mount replayed the log.
    replayed: bool,
    /// By slot: blocks healed there when all were last known to be good.
    healed: Vec<u64>,
    /// For each slot: its disk, what that held at an earlier mount, and whether that may be damaged.
    snapshots: Vec<Option<(usize, Image, bool)>>,
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
        healed: vec![0; slots.len()],
        slots,
        half_way: None,
        acknowledged: 0,
        joining: None,
        former: None,
        bench,
        random,
        suspect: None,
        split: false,
        unreliable: false,
        hurt: false,
        returns: seed.is_multiple_of(2).then(|| Random::new(seed ^ 0xbac4)),
        out_since: None,
        behind: None,
        strange: false,
        replayed: false,
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
        let good = |name: &str| !self.split && self.suspect.is_none_or(|bad| *name != disk_path(self.slots[bad]));
        if let Some(count) = report.replicas.iter().find(|count| good(&count.name) && count.detected > 0) {
            return Err(format!("a scrub found damage on a disk that is good: {count:?}; {report:?}"));
        }
        let after = driver.store.mirror().members();
        if report.lost + report.combined > 0 || report.failed > 0 || before != after {
            let more = (report.lost_paths.clone(), report.notes.clone());
            return Err(format!("scrub, members {before:?} then {after:?}: {report}; {more:?}"));
        }
        if after.count() == self.slots.len() {
            clean(&driver.store).map_err(|text| format!("after a scrub: {text}"))?;
            self.trust(&driver.store);
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
        if out.is_some() && !fresh && self.wants_return() {
            return self.bring_back(driver, slot);
        }
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
                // Its lock stands until what hangs has come back: nobody can take it before.
                self.release_hung();
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
        self.trust(&driver.store);
        Ok(())
    }

    /// The resync itself, with some operations beside it.
    fn resync(
        &mut self,
        driver: &mut Driver,
        place: Place,
        target: usize,
    ) -> Result<Result<crate::volume::replace::ReplaceReport, StoreError>, String> {
        if let Place::Free(slot) = place {
            driver.store.mirror().release(slot);
        }
        let name = self.new_name(&driver.store, target);
        let backing = self.bench.power.disk_at(target);
        self.beside(driver, |store, progress| resync(store, place, name, backing, progress))
    }

    /// Do `work` on the store, with some operations beside it.
    fn beside<T>(
        &mut self,
        driver: &mut Driver,
        work: impl FnOnce(&Store, &mut dyn FnMut(&Progress) -> bool) -> T,
    ) -> Result<T, String> {
        let store = Arc::clone(&driver.store);
        let mut failed = Ok(());
        let mut left = self.random.below(8);
        let outcome = work(&store, &mut |_| {
            if left > 0 && failed.is_ok() && !self.bench.power.is_cut() {
                left -= 1;
                let from = driver.log.len();
                failed = self.bench.run_on(driver, 1);
                self.story.extend(driver.log[from..].iter().cloned().map(Line::Did));
            }
            true
        });
        failed.map_err(|text| format!("beside a resync: {text}"))?;
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
        let anyway = self.random.below(3) == 0;
        if self.suspect.is_none() && !self.split && (anyway || self.replayed) {
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
        self.acknowledged = driver.store.durable_root().version;
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
        let mut found = None;
        for _ in 0..self.random.below(3) {
            self.cut_soon(24);
            let opened = self.open(alone);
            if !self.bench.power.is_cut() {
                found = Some(opened?);
                break;
            }
            drop(opened);
            self.bench.tally.cuts_in_recovery += 1;
            self.power_fails();
        }
        self.bench.power.cut_at(None);
        let (store, report) = match found {
            Some(opened) => opened,
            None => {
                self.release_hung();
                self.open(alone)?
            }
        };
        self.bench.tally.replayed += report.replayed;
        self.replayed = report.replayed > 0;
        let out: Vec<String> = store.mirror().health().iter().map(|health| health.cause.clone()).collect();
        let (root, replayed, behind) = (store.durable_root().version, report.replayed, &report.behind);
        self.tell(format!(
            "mounted (alone: {alone:?}), root {root}, {replayed} replayed, behind: {behind:?}, out: {out:?}"
        ));
        if let Some(alone) = alone {
            self.bench.tally.degraded += 1;
            self.suspect = Some(1 - alone);
            self.unreliable = true;
        }
        self.bench.tally.mounts += 1;
        self.note_members(&store, &report)?;
        self.healed = vec![0; self.slots.len()];
        self.good_ones_are_in(&store)?;
        for slot in 0..self.slots.len() {
            // One that is kept makes the next writes copy.
            if self.random.below(3) == 0 && !(self.strange && self.suspect == Some(slot)) {
                let hurt = self.split || self.suspect == Some(slot) && self.hurt;
                self.snapshots[slot] = Some((self.slots[slot], self.disk(slot).snapshot(), hurt));
            }
        }
        Driver::new(store, &self.bench.power)
    }

    /// Open what there is; whatever is refused must have a reason.
    fn open(&mut self, alone: Option<usize>) -> Result<(Store, Report), String> {
        let mut disks = alone.map_or_else(|| self.all_disks(), |slot| vec![self.slots[slot]]);
        let has_former = !self.split
            && self.half_way.is_none()
            && self.suspect.is_none()
            && self.former.is_some_and(|(slot, _)| alone != Some(slot))
            && self.random.below(3) == 0;
        if has_former {
            disks.extend(self.former.map(|(_, disk)| disk));
        }
        let (seen, opened) = self.open_disks(&disks, Ask { degraded: alone.is_some(), accept_stale: false });
        match opened {
            Ok((store, report)) => {
                if let Some((one, other)) = seen.strangers() {
                    return Err(format!("disks {one} and {other} were taken for one volume: {seen:?}"));
                }
                if has_former {
                    self.former_is_known(&seen, &report)?;
                }
                Ok((store, report))
            }
            Err(_) if self.bench.power.is_cut() => Err("power cut".into()),
            Err(StoreError::Refused(text)) if alone.is_none() => {
                let excuse =
                    self.excuse(&seen, &text).ok_or_else(|| format!("opening {disks:?} was refused: {text}"))?;
                // No root could say so any more, or it is not what it was: the other one alone must do.
                self.tell(format!("refused, {excuse}: {text}"));
                *(if self.strange { &mut self.bench.tally.strangers } else { &mut self.bench.tally.refused }) += 1;
                let bad = self.slots[self.suspect.expect("only a suspect is unreliable")];
                self.release_hung();
                let one = self.strange || self.half_way.is_none() && self.random.below(2) == 0;
                let which: Vec<usize> = self.all_disks().into_iter().filter(|disk| !one || *disk != bad).collect();
                // The power failed between the witness and its root: only a person can know that this was never reached.
                let accept_stale = self.bench.witnessed() > self.acknowledged;
                let opened = self.open_disks(&which, Ask { degraded: true, accept_stale }).1;
                opened.map_err(|error| format!("opening {which:?} degraded: {error}"))
            }
            Err(error) => Err(format!("opening {disks:?}: {error}")),
        }
    }

    /// Why a person may have to say that it goes on without the suspect.
    fn excuse(&self, seen: &Seen, text: &str) -> Option<&'static str> {
        let bad = self.suspect.filter(|_| self.unreliable && !self.split)?;
        if text.contains("can be read now") {
            return Some("it can be read now and then");
        }
        seen.excuse(self.slots[bad], self.slots[1 - bad])
    }

    /// fsck, looking or repairing.
    fn check_offline(&mut self) -> Result<(), String> {
        self.relieve();
        if self.random.below(2) == 0 {
            let written = self.bench.power.io_count();
            let quick = self.random.below(4) == 0;
            let Some(report) = self.fsck(false, quick)? else { return Ok(()) };
            if self.bench.power.io_count() != written {
                return Err("fsck -n has written something".into());
            }
            let found: Vec<&String> = report.findings.iter().filter(|line| !self.is_torn_root(line)).collect();
            if self.suspect.is_none() && !self.split && !found.is_empty() {
                return Err(format!("fsck -n found on good disks: {found:?}"));
            }
            if report.lost + report.combined > 0 {
                return Err(format!("fsck -n calls blocks lost on both: {:?}", report.findings));
            }
            return Ok(());
        }
        if self.random.below(3) == 0 {
            self.cut_soon(40);
        }
        let Some(report) = self.fsck(true, false)? else { return Ok(()) };
        let left = self.but_for_the_suspect(&report.left, &report)?;
        if !left.is_empty() || report.lost + report.combined > 0 {
            return Err(format!("fsck -y left {left:?}, lost {}, put together {}", report.lost, report.combined));
        }
        let Some(again) = self.fsck(false, false)? else { return Ok(()) };
        let found = self.but_for_the_suspect(&again.findings, &again)?;
        if !found.is_empty() {
            return Err(format!("after fsck -y, fsck -n found {found:?}"));
        }
        Ok(())
    }

    /// Whether a finding is of a root that the power cut tore on one disk: fsck -n cannot tell it from one that rotted.
    fn is_torn_root(&self, line: &str) -> bool {
        (0..self.slots.len()).any(|slot| {
            (0..ROOT_SLOTS).any(|root| {
                let addr = Root::addr(root);
                let path = disk_path(self.slots[slot]);
                line.starts_with(&format!("replica {slot} ({path}): block {addr}, root in slot {root},"))
                    && self.disk(slot).is_torn(addr, &self.disk(1 - slot).peek(addr))
            })
        })
    }

    /// `lines` without those that say that the suspect is absent or behind: the rest is to be put right.
    fn but_for_the_suspect<'a>(&self, lines: &'a [String], report: &FsckReport) -> Result<Vec<&'a String>, String> {
        let about = &report.findings[..report.absent_or_behind];
        let name = self.suspect.map(|slot| format!("replica {}: ", disk_path(self.slots[slot])));
        let is_his = |line: &String| name.as_ref().is_some_and(|name| line.starts_with(name.as_str()));
        match about.iter().find(|line| !is_his(line)) {
            Some(line) => Err(format!("fsck says of a disk that is good: {line}")),
            None => Ok(lines.iter().filter(|line| !about.contains(line)).collect()),
        }
    }

    /// The real one, on these disks; `None`: the power failed, or it was refused for a reason.
    fn fsck(&mut self, repair: bool, quick: bool) -> Result<Option<FsckReport>, String> {
        self.tell(format!("fsck, repair: {repair}"));
        let slots = self.slots.clone();
        let (seen, outcome) = self.bench.fsck_disks(&slots, &FsckOptions { repair, quick });
        if self.bench.power.is_cut() {
            self.power_fails();
            return Ok(None);
        }
        self.bench.power.cut_at(None);
        match outcome {
            Ok(report) => {
                self.bench.tally.fscks += 1;
                Ok(Some(report))
            }
            // Repair wants all replicas.
            Err(StoreError::Refused(text)) => {
                let excuse =
                    self.excuse(&seen, &text).ok_or_else(|| format!("fsck, repair: {repair}, was refused: {text}"))?;
                self.tell(format!("fsck refused, {excuse}: {text}"));
                self.bench.tally.fscks_refused += 1;
                Ok(None)
            }
            Err(error) => Err(format!("fsck, repair: {repair}: {error}")),
        }
    }

    /// Everything is brought back and proven; then each disk alone holds everything.
    fn last_chapter(&mut self, mut driver: Driver) -> Result<(), String> {
        driver = self.make_whole(driver)?;
        if let Some(slot) = self.wants_to_follow() {
            driver = self.follow_for_a_while(driver, slot)?;
            driver = self.make_whole(driver)?;
        }
        driver.finish().map_err(|text| format!("at the end: {text}"))?;
        driver.store.commit(Force::Clean).map_err(|error| format!("the last commit: {error}"))?;
        driver.all_is_durable();
        let known = Known::take(driver);
        let first = self.random.below(self.slots.len() as u64) as usize;
        self.alone(first, false, &known)?;
        if self.random.below(4) == 0 { self.fork(1 - first, &known) } else { Ok(()) }
    }

    /// What this slot holds, without its twin, is everything.
    fn alone(&mut self, slot: usize, accept_stale: bool, known: &Known) -> Result<(), String> {
        let fail = |what: String| format!("slot {slot} alone: {what}");
        let disk = self.slots[slot];
        let (_, opened) = self.open_disks(&[disk], Ask { degraded: true, accept_stale });
        let (store, _) = opened.map_err(|error| fail(error.to_string()))?;
        let driver = Driver::new(store, &self.bench.power).map_err(fail)?;
        judge::judge(known, driver.now()).map_err(fail)?;
        clean(&driver.store).map_err(fail)
    }

    /// The other one was written alone. This one knows nothing of it, but this host does; and if a person insists, there
    /// are two histories, which are never mixed.
    fn fork(&mut self, other: usize, known: &Known) -> Result<(), String> {
        self.bench.tally.forks += 1;
        let disk = self.slots[other];
        self.must_be_refused(&[disk], "the one that was left behind at the end")?;
        self.alone(other, true, known)?;
        let both = self.slots.clone();
        self.must_be_refused(&both, "two histories that were written apart")?;
        self.decide(known)
    }

    /// Disks that must not be taken for the volume, not even where replicas may be missing.
    fn distrust(&mut self) -> Result<(), String> {
        if let Some(disk) = self.behind.filter(|_| !self.strange) {
            self.must_be_refused(&[disk], "the one that was left behind")?;
        }
        match self.former.filter(|_| self.half_way.is_none()) {
            Some((_, disk)) => self.must_be_refused(&[disk], "a disk that was replaced"),
            None => Ok(()),
        }
    }
}
