//! Recovery, log replay, replace, return, follow, attach, detach, scrub and repair, each cut at every write and flush, and run again.
//!
//! *Guarantees*: [`cut_everywhere`] proves invariant 7 (after any cut the procedure, run again, ends in the same state) and
//! invariant 8 (no block has fewer correct copies than before, not even for a moment). *Assumes*: the procedure is
//! deterministic up to the cut. *Fails when*: either is not so: [`Failure`], whose first line replays the case.
//! *Order*: none. *Not here*: operations of users (`small`).

use super::tape::{Crashes, Outcome, Tape, fingerprint, record};
use super::twin::{damage, wanted};
use super::{Covered, Ground, Sequence, prepared, seed_of, setup};
use crate::disk::ReplicaName;
use crate::disk::backing::{Backing, Op as Request};
use crate::disk::sim::{CrashPlan, Image, Random, SimDisk};
use crate::format::item::Dirent;
use crate::format::{Inode, ItemKind, Key, MemberState, ROOT_INO, Role, Uuid};
use crate::simulate::copies::Copies;
use crate::simulate::driver::Driver;
use crate::simulate::judge::same;
use crate::simulate::model::{Op, State};
use crate::simulate::{Failure, clean, disk_path, examine_store};
use crate::store::commit::Force;
use crate::store::recover::{Report as Opened, examine};
use crate::store::space::Class;
use crate::store::walk::Part;
use crate::store::{Need, Store};
use crate::volume::follow::follow;
use crate::volume::fsck::{self, FsckOptions, FsckReport};
use crate::volume::members::leave;
use crate::volume::replace::back::bring_back;
use crate::volume::replace::{Place, resync};
use crate::volume::scrub;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// Identity of the replica that a replace brings.
const NEW: Uuid = Uuid([8; 16]);

/// What is done, and may be cut and done again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Procedure {
    /// Opening for use: newest root everywhere, replay, commit.
    Recover,
    /// As before, of one disk whose twin is missing.
    RecoverAlone,
    /// Recovery, then scrub.
    Scrub,
    /// Recovery, then the checker, healing.
    Check,
    /// Offline check and repair.
    Fsck,
    /// Recovery, then the last disk takes the place of the second one, which is out, and scrub.
    ReplaceOut,
    /// As before, but of one that is in sync.
    ReplaceInSync,
    /// Recovery, then the second disk, which is out, returns with what it missed; a scrub finds nothing.
    Return,
    /// Recovery, then the second disk is made warm, follows, is made hot and returns; a scrub finds nothing.
    Follow,
    /// Recovery, then this disk becomes one more replica, and scrub.
    Attach(usize),
    /// Recovery, then the replica of this disk and slot is one no more, and scrub.
    Detach(usize),
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl Procedure {
    /// Run it to its end; gives what is in the volume then.
    fn run(self, images: &[Image], stage: u64) -> Result<(State, Vec<Image>, Tape), String> {
        let mut ground = Ground::new(images, stage);
        let tape = record(&ground.power);
        let all: Vec<usize> = (0..images.len()).collect();
        let hold = self == Procedure::Fsck;
        let alone = self == Procedure::RecoverAlone;
        let (store, mut opened) = ground.open_held(&all, alone, hold).map_err(text)?;
        match self {
            Procedure::Recover | Procedure::RecoverAlone => {}
            Procedure::Scrub => Procedure::scrub(&store)?,
            Procedure::Check => {
                if let Some(bad) = examine_store(&store, true).findings.iter().find(|f| !fsck::is_healed(f)) {
                    return Err(format!("the checker, healing: {bad}"));
                }
                store.commit(Force::Always).map_err(text)?;
            }
            Procedure::Fsck => {
                mend(&store, &mut opened)?;
                drop(store);
                let images = durable(&ground);
                // What this last mount writes is not part of the repair.
                ground.power.listen(None);
                let (store, _) = ground.open(&all, false).map_err(text)?;
                clean(&store)?;
                return Ok((Driver::new(store, &ground.power)?.now().clone(), images, tape));
            }
            Procedure::ReplaceOut | Procedure::ReplaceInSync => self.replace(&store, &ground)?,
            Procedure::Return => Procedure::bring_back(&store, &ground, 1, 1)?,
            Procedure::Follow => Procedure::follow(&store, &ground)?,
            Procedure::Attach(disk) => Procedure::attach(&store, &ground, disk)?,
            Procedure::Detach(slot) => Procedure::detach(&store, slot)?,
        }
        let images = durable(&ground);
        Ok((Driver::new(store, &ground.power)?.now().clone(), images, tape))
    }

    fn replace(self, store: &Store, ground: &Ground) -> Result<(), String> {
        let members = store.mirror().members();
        if store.durable_root().members[1].replica != NEW || !members.contains(1) {
            let place = if members.contains(1) { Place::Taken(1) } else { Place::Free(1) };
            let new = ground.disks.len() - 1;
            if let Place::Free(slot) = place {
                store.mirror().release(slot);
            }
            let name = ReplicaName { uuid: NEW, path: disk_path(new) };
            resync(store, place, name, ground.disks[new].reopen(), &mut |_| true).map_err(text)?;
        }
        // What the others lack, the new one may have brought.
        Procedure::scrub(store)
    }

    fn attach(store: &Store, ground: &Ground, disk: usize) -> Result<(), String> {
        let uuid = Uuid([NEW.0[0] + disk as u8; 16]);
        let members = store.durable_root().members;
        match members.iter().position(|member| member.replica == uuid) {
            // It had been proven, and a root had named it: it returns.
            Some(slot) => return Procedure::bring_back(store, ground, slot, disk),
            None => {
                let name = ReplicaName { uuid, path: disk_path(disk) };
                resync(store, Place::New, name, ground.disks[disk].reopen(), &mut |_| true).map_err(text)?;
            }
        }
        let in_sync = store.mirror().members().count();
        let wanted = members.iter().filter(|member| member.state == MemberState::InSync).count() + 1;
        if in_sync != wanted {
            return Err(format!("{in_sync} replicas are in sync after an attach, not {wanted}"));
        }
        Procedure::scrub(store)
    }

    fn detach(store: &Store, slot: usize) -> Result<(), String> {
        if store.durable_root().members[slot].state != MemberState::Detached {
            leave(store, slot).map_err(text)?;
        }
        if store.durable_root().members[slot].state != MemberState::Detached || store.mirror().backing(slot).is_some() {
            return Err("it was detached and is a member".into());
        }
        Procedure::scrub(store)
    }

    fn follow(store: &Store, ground: &Ground) -> Result<(), String> {
        store.set_role(1, Role::Warm).map_err(text)?;
        store.mirror().release(1);
        let backing = ground.disks[1].reopen();
        let found = examine(&*backing, Duration::from_secs(1))?;
        let (report, now) = follow(store, 1, (&disk_path(1), &*backing, &found), None, &mut |_| true).map_err(text)?;
        backing.close();
        let root = store.durable_root();
        if report.lost > 0 || now.txg != root.txg || root.members[1].synced_txg != now.txg {
            return Err(format!("it followed to group {} of {}: {report:?}", now.txg, root.txg));
        }
        store.set_role(1, Role::Hot).map_err(text)?;
        Procedure::bring_back(store, ground, 1, 1)
    }

    fn bring_back(store: &Store, ground: &Ground, slot: usize, disk: usize) -> Result<(), String> {
        if !store.mirror().members().contains(slot) {
            store.mirror().release(slot);
            let backing = ground.disks[disk].reopen();
            let found = examine(&*backing, Duration::from_secs(1))?;
            bring_back(store, slot, disk_path(disk), backing, &found, &mut |_| true).map_err(text)?;
        }
        let report = scrub::run(store, &mut |_| true);
        let whole = report.complete && report.detected == 0;
        if whole { Ok(()) } else { Err(format!("after a return, scrub: {report}")) }
    }

    fn scrub(store: &Store) -> Result<(), String> {
        let report = scrub::run(store, &mut |_| true);
        let whole = report.complete && report.lost + report.combined + report.failed == 0;
        if whole { Ok(()) } else { Err(format!("scrub: {report}")) }
    }

    /// Whether nothing may be damaged at its end.
    fn heals(self) -> bool {
        !matches!(self, Procedure::Recover | Procedure::RecoverAlone)
    }
}

/// What no power cut can take any more.
fn durable(ground: &Ground) -> Vec<Image> {
    let image = |disk: &Arc<SimDisk>| disk.crash_image(CrashPlan::DropAll, &mut Random::new(0));
    ground.disks.iter().map(image).collect()
}

/// As `volume::fsck` does with a volume whose replicas are all given.
fn mend(store: &Store, opened: &mut Opened) -> Result<(), String> {
    let options = FsckOptions { repair: true, quick: false };
    let mut report = FsckReport::default();
    let mut quiet = |_: &str, _: u64, _: u64| {};
    let first = fsck::look(store, &options, true, "checking", &mut quiet);
    let last = fsck::repair(store, first, &options, &mut report, opened, &mut quiet).map_err(text)?;
    if let Some(left) = last.findings.iter().find(|finding| !fsck::is_healed(finding)) {
        return Err(format!("fsck leaves: {left}"));
    }
    store.commit(Force::Clean).map_err(text)
}

/// A state of the disks from which a procedure begins.
pub struct Start {
    /// For reports and replays.
    pub name: String,
    /// What is done.
    pub procedure: Procedure,
    /// The disks.
    pub images: Vec<Image>,
    /// Power cuts in a row, and every how many-th crash is cut again.
    pub again: Option<u64>,
}

/// Run a procedure, cut it at each write and flush, with each outcome; run it again; compare.
///
/// # Errors
/// A promise was broken.
pub fn cut_everywhere(start: &Start, only: Option<&str>) -> Result<Covered, Failure> {
    let mut covered = Covered { sequences: 1, ..Covered::default() };
    let all = || {
        let before = Copies::of_images(&start.images).ok_or("no root is there to begin with")?;
        let (end, images, tape) = start.procedure.run(&start.images, 100)?;
        check_end(start.procedure, &images)?;
        let events = tape.lock().clone();
        let cut = Cut { start, end: &end, depth: 0, name: start.name.clone(), only };
        cut.all(&start.images, &before, &events, &mut covered)
    };
    let mut all = all;
    all().map_err(|text| Failure {
        text: if text.starts_with("STABLEFS_CASE") { text } else { format!("STABLEFS_CASE={}: {text}", start.name) },
    })?;
    Ok(covered)
}

fn check_end(procedure: Procedure, images: &[Image]) -> Result<(), String> {
    let copies = Copies::of_images(images).ok_or("no root is left")?;
    match copies.lacking().first() {
        Some((addr, held)) if procedure.heals() => {
            Err(format!("at the end the {} at {addr} is correct on {:#b} only", held.part.name(), held.disks))
        }
        _ => Ok(()),
    }
}

struct Cut<'a> {
    start: &'a Start,
    end: &'a State,
    depth: u64,
    name: String,
    only: Option<&'a str>,
}

impl Cut<'_> {
    fn all(
        &self,
        images: &[Image],
        before: &Copies,
        events: &[(usize, Request)],
        covered: &mut Covered,
    ) -> Result<(), String> {
        let mut crashes = Crashes::new(images, setup().blocks, events);
        let mut seen: HashSet<u64> = HashSet::new();
        let mut held: Vec<Vec<Image>> = Vec::new();
        for index in 0..=events.len() {
            if matches!(events.get(index), Some((_, Request::Punch { .. }))) {
                continue;
            }
            crashes.go_to(index);
            covered.cuts += 1;
            for outcome in Outcome::of(images.len()) {
                let name = format!("{}@{index}:{outcome}", self.name);
                if self.only.is_some_and(|only| only.contains('@') && !only.starts_with(&name)) {
                    continue;
                }
                covered.crashes += 1;
                let left = crashes.images(outcome, seed_of(&name));
                if !seen.insert(fingerprint(&left)) {
                    continue;
                }
                held.push(left.clone());
                covered.images += 1;
                self.one(&name, &left, before, covered).map_err(|text| match text.starts_with("STABLEFS_CASE") {
                    true => text,
                    false => format!("STABLEFS_CASE={name}: {text}"),
                })?;
            }
        }
        Ok(())
    }

    fn one(&self, name: &str, left: &[Image], before: &Copies, covered: &mut Covered) -> Result<(), String> {
        let copies = Copies::of_images(left).ok_or("no root is left")?;
        before.check_kept(&copies)?;
        covered.recoveries += 1;
        covered.recoveries_cut += u64::from(self.depth > 0);
        let (found, images, tape) = self.start.procedure.run(left, 101 + self.depth)?;
        same(self.end, &found).map_err(|text| format!("run again, it ends elsewhere: {text}"))?;
        check_end(self.start.procedure, &images)?;
        let deeper = self.start.again.is_some_and(|every| self.depth == 0 && seed_of(name).is_multiple_of(every));
        if deeper || self.only.is_some_and(|only| only.starts_with(name) && only.len() > name.len()) {
            let events = tape.lock().clone();
            let cut = Cut { depth: self.depth + 1, name: name.to_owned(), ..*self };
            cut.all(left, &copies, &events, covered)?;
        }
        Ok(())
    }
}

/// Run `ops` on the prepared volume and leave the disks as a power cut at event `back` before the end with `outcome`
/// would; what is damaged on `bad` then, in so many of a million blocks.
fn crashed(
    ops: &Sequence,
    back: usize,
    outcome: Outcome,
    bad: Option<(usize, u32)>,
    seed: u64,
) -> Result<Vec<Image>, String> {
    let run = super::Run::new(ops)?;
    let mut crashes = Crashes::new(&prepared().images, setup().blocks, &run.events);
    let first = run.marks[0].event;
    crashes.go_to(run.events.len().saturating_sub(back).max(first));
    let mut images = crashes.images(outcome, seed);
    if let Some((disk, per_million)) = bad {
        let copies = Copies::of_images(&images).ok_or("no root is there")?;
        damage(&mut images[disk], &wanted(&copies), per_million, &mut Random::new(seed));
    }
    Ok(images)
}

/// Recoveries to be cut: after each of `sequences`, with what a cut somewhere left; with one disk damaged, missing, or not.
///
/// # Errors
/// A sequence cannot be run.
pub fn recoveries(sequences: &[Sequence]) -> Result<Vec<Start>, Failure> {
    let mut starts = Vec::new();
    for (i, sequence) in sequences.iter().enumerate() {
        let seed = seed_of(&sequence.to_string());
        let back = if i % 2 == 0 { 0 } else { (seed >> 8) as usize % 8 };
        let outcome = Outcome::ALL[(seed >> 16) as usize % 5];
        let bad = [None, Some((0, 500_000)), Some((1, 500_000)), None, Some((0, 1_000_000)), Some((1, 100_000))][i % 6];
        let name = format!("recover:{sequence}");
        let images =
            crashed(sequence, back, outcome, bad, seed).map_err(|text| Failure { text: format!("{name}: {text}") })?;
        let alone = i % 6 == 3;
        let procedure = if alone { Procedure::RecoverAlone } else { Procedure::Recover };
        let images = if alone { vec![images[i / 6 % 2].clone()] } else { images };
        starts.push(Start { name, procedure, images, again: (i % 8 < 3).then_some(3) });
    }
    Ok(starts)
}

/// A volume with more in it, and a log to replay.
fn filled() -> Result<Vec<Image>, String> {
    let mut ground = Ground::new(&prepared().images, super::RUNS);
    let (store, _) = ground.open(&[0, 1], false).map_err(text)?;
    let mut driver = Driver::new(store, &ground.power)?;
    for i in 0..8 {
        let dir = ROOT_INO;
        driver.step(&Op::Create { dir, name: format!("file{i}"), mode: 0o600 })?;
        let ino = driver.now().find(dir, &format!("file{i}")).expect("it was just made");
        driver.step(&Op::Write { ino, offset: 0, length: 900 * (i * i + 1), fill: i + 1 })?;
        driver.step(&Op::SetXattr { ino, name: "user.b".into(), length: 600, fill: i + 2 })?;
        driver.step(&if i % 3 == 2 { Op::Sync } else { Op::Fsync { ino } })?;
    }
    Ok(ground.disks.iter().map(|disk| disk.snapshot()).collect())
}

/// Scrubs, healing checks, repairs and replaces to be cut.
///
/// # Errors
/// The volume cannot be made.
pub fn repairs() -> Result<Vec<Start>, Failure> {
    let all = || -> Result<Vec<Start>, String> {
        let whole = filled()?;
        let mut starts = Vec::new();
        for (i, per_million) in [1_000_000, 500_000, 100_000, 500_000].into_iter().enumerate() {
            let bad = i % 2;
            let mut images = whole.clone();
            let copies = Copies::of_images(&images).ok_or("no root is there")?;
            damage(&mut images[bad], &wanted(&copies), per_million, &mut Random::new(i as u64));
            for procedure in [Procedure::Scrub, Procedure::Check, Procedure::Fsck] {
                let name = format!("{procedure:?}{i}");
                starts.push(Start { name, procedure, images: images.clone(), again: (i == 2).then_some(12) });
            }
        }
        let wrong = make_wrong(&whole)?;
        let again = Some(40);
        starts.push(Start { name: "FsckWrong".into(), procedure: Procedure::Fsck, images: wrong, again });
        starts.extend(replaces(&whole)?);
        Ok(starts)
    };
    all().map_err(|text| Failure { text: format!("preparing repairs: {text}") })
}

/// Attaches and detaches to be cut: a third disk comes; each of three goes; one comes where another one went.
///
/// # Errors
/// The volume cannot be made.
pub fn memberships() -> Result<Vec<Start>, Failure> {
    let all = || -> Result<Vec<Start>, String> {
        let two = filled()?;
        let beside = [two.as_slice(), &[Image::default()]].concat();
        let (_, three, _) = Procedure::Attach(2).run(&beside, super::RUNS_AGAIN)?;
        let (_, gap, _) = Procedure::Detach(1).run(&three, super::RUNS_AGAIN + 1)?;
        let (_, one, _) = Procedure::Detach(0).run(&two, super::RUNS_AGAIN)?;
        let mut starts = Vec::new();
        let mut add = |name: &str, procedure, images: &[Image], every| {
            starts.push(Start { name: name.into(), procedure, images: images.to_vec(), again: Some(every) });
        };
        add("AttachThird", Procedure::Attach(2), &beside, 60);
        add("AttachInGap", Procedure::Attach(3), &[gap.as_slice(), &[Image::default()]].concat(), 60);
        add("AttachFormer", Procedure::Attach(1), &gap, 60);
        add("AttachToOne", Procedure::Attach(2), &[one.as_slice(), &[Image::default()]].concat(), 60);
        add("DetachFirst", Procedure::Detach(0), &three, 10);
        add("DetachMiddle", Procedure::Detach(1), &three, 10);
        add("DetachLast", Procedure::Detach(2), &three, 10);
        add("DetachSecondLast", Procedure::Detach(0), &gap, 10);
        Ok(starts)
    };
    all().map_err(|text| Failure { text: format!("preparing attaches: {text}") })
}

/// Counts, links, entries and bitmaps that are wrong, in a durable state.
fn make_wrong(images: &[Image]) -> Result<Vec<Image>, String> {
    let mut ground = Ground::new(images, super::RUNS_AGAIN);
    let (store, _) = ground.open(&[0, 1], false).map_err(text)?;
    let ino = prepared().state.find(ROOT_INO, "foo").expect("it was prepared");
    let value = store.get(Key::inode(ino)).map_err(text)?.ok_or("foo has no inode")?;
    let inode = Inode { nlink: 7, ..Inode::decode(&value).map_err(text)? };
    let mut transaction = store.begin(Need { items: 2, data_blocks: 0, may_use_reserve: true }).map_err(text)?;
    transaction.put(Key::inode(ino), inode.encode());
    let entry = Dirent { ino: 7777, file_type: 8, name: b"nowhere".to_vec() };
    let cookie = crate::format::item::name_cookie_base(store.label().hash_key, b"nowhere");
    transaction.put(Key::new(ROOT_INO, ItemKind::Dirent, cookie), entry.encode());
    transaction.commit();
    let leaked = store.allocator().alloc(store.mirror(), Class::Data, 9).map_err(text)?;
    store.allocator().claim(store.mirror(), leaked).map_err(text)?;
    store.correct_inodes(99);
    store.commit(Force::Always).map_err(text)?;
    Ok(ground.disks.iter().map(|disk| disk.snapshot()).collect())
}

/// Replaces of a disk that is out (by an empty disk, by itself, by itself while it holds the last copies), and of one
/// that is in sync.
fn replaces(whole: &[Image]) -> Result<Vec<Start>, String> {
    let mut ground = Ground::new(whole, super::RUNS_AGAIN);
    let (store, _) = ground.open(&[0, 1], false).map_err(text)?;
    let mut driver = Driver::new(store, &ground.power)?;
    ground.disks[1].faults(|faults| faults.gone = true);
    driver.step(&Op::Create { dir: ROOT_INO, name: "alone".into(), mode: 0o600 })?;
    driver.step(&Op::Sync)?;
    let ino = driver.now().find(ROOT_INO, "alone").expect("it was just made");
    driver.step(&Op::Write { ino, offset: 0, length: 9000, fill: 9 })?;
    driver.step(&Op::Fsync { ino })?;
    let [survivor, behind] = [0, 1].map(|disk| ground.disks[disk].snapshot());
    let copies = Copies::of_images(&[survivor.clone(), behind.clone()]).ok_or("no root is there")?;
    // Of these the one that was left behind holds the last copy.
    let last: BTreeSet<u64> = copies
        .blocks
        .iter()
        .filter(|(_, held)| held.disks == 0b11 && held.part == Part::Data)
        .map(|((addr, _), _)| *addr)
        .collect();
    let mut hurt = survivor.clone();
    damage(&mut hurt, &last, 1_000_000, &mut Random::new(5));
    let start = |name: &str, procedure, images: Vec<Image>, every| Start {
        name: name.into(),
        procedure,
        images,
        again: Some(every),
    };
    Ok(vec![
        start("ReplaceEmpty", Procedure::ReplaceOut, vec![survivor.clone(), Image::default()], 60),
        start("ReplaceBehind", Procedure::ReplaceOut, vec![survivor.clone(), behind.clone()], 60),
        start("ReturnBehind", Procedure::Return, vec![survivor.clone(), behind.clone()], 20),
        start("FollowBehind", Procedure::Follow, vec![survivor.clone(), behind.clone()], 20),
        start("Follow", Procedure::Follow, whole.to_vec(), 20),
        start("ReturnOld", Procedure::Return, vec![survivor, whole[1].clone()], 20),
        start("ReplaceLast", Procedure::ReplaceOut, vec![hurt, behind], 60),
        start("ReplaceInSync", Procedure::ReplaceInSync, [whole, &[Image::default()]].concat(), 60),
    ])
}
