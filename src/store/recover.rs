//! Opening a volume: which replicas belong to it, which root is the newest, and what the log adds to it.
//!
//! *Guarantees*: the newest root that proves itself and whose members are there is taken, never a majority of older
//! ones; a replica that is behind, old, foreign or forked serves nothing. Every acknowledged record is replayed; a
//! tail that one replica lacks is healed before anything else. Recovery may be cut at any write and run again: it
//! writes only to free space until its own root is durable.
//! *Assumes*: backings are open and locked. *Fails when*: [`StoreError::Refused`], with a text that says what to do.
//! *Order*: labels → roots → choice → newest root everywhere → a root that names who is absent → log → commit of what
//! was replayed, as a new root with a new life of the ring.
//! *Not here*: opening paths (`volume`), finding the records of the log (`reading`).

mod follower;
pub mod fork;
mod former;
mod reading;

pub(crate) use former::believe_older;
pub use reading::{LogEnd, Waiting};

use super::commit::{Force, RootState};
use super::delta::Segment;
use super::history::ShrinkHook;
use super::log::Log;
use super::space::Span;
use super::{Opening, Store, StoreError, StoreOptions, add_signed, tree};
use crate::disk::backing::{Backing, Done, Op};
use crate::disk::buffer::{Buf, Slice};
use crate::disk::{Mirror, ReplicaName};
use crate::format::geometry::ROOT_SLOTS;
use crate::format::log::Entry;
use crate::format::node::Node;
use crate::format::{BLOCK, Geometry, INO_MAX, ItemKind, Key, Kinship, Label, MemberState, Role, Root, VolumeSeed};
use crate::sync::Instant;
use crate::sync::atomic::Ordering;
use crate::world::World;
use std::sync::Arc;
use std::time::Duration;

/// Groups by which a replica in sync can lag behind another: a crash while the root of a group was being written.
const LAG_MAX: u64 = 1;

/// What stands on a replica.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its identity.
    pub label: Label,
    /// Roots that prove themselves: slot and root, newest first.
    pub roots: Vec<(usize, Root)>,
    /// Slots that hold no root that proves itself: each held one since the volume was made, so zeros are damage too.
    pub damaged: Vec<usize>,
    /// Of those: slots that could not be read, and may hold anything.
    pub unreadable: Vec<usize>,
    /// Slots with roots that a person said are not to count, and their versions.
    pub given_up: Vec<(usize, u64)>,
}

/// A replica that is there.
pub struct Present {
    /// Path as the user gave it.
    pub path: String,
    /// Its medium.
    pub backing: Arc<dyn Backing>,
    /// What stands on it.
    pub found: Found,
}

/// How to open.
pub struct OpenStore {
    /// Open although replicas in sync are missing.
    pub degraded: bool,
    /// Deadline of one request to a replica.
    pub deadline: Duration,
    /// Behaviour.
    pub store: StoreOptions,
    /// Told before anything is acknowledged with fewer replicas.
    pub on_shrink: Option<ShrinkHook>,
    /// Neither replay nor write anything before [`Store::resume`]: for `fsck`, which checks what is there first.
    pub hold: bool,
}

/// What opening found and did.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Records replayed.
    pub replayed: u64,
    /// Records that one replica lacked and got back.
    pub healed: u64,
    /// Records that one replica lacked: replica, sequence, block.
    pub lacking: Vec<(usize, u64, u64)>,
    /// Replicas that are there but not in sync: path and why.
    pub behind: Vec<(String, String)>,
    /// Replicas that are missing.
    pub missing: usize,
    /// The root that was found.
    pub version: u64,
}

/// Ask for all of these blocks at once, and wait for them together: a disk that hangs costs `wait` once.
fn read_all(backing: &dyn Backing, addrs: impl Iterator<Item = u64>, wait: Duration) -> Vec<Option<Buf>> {
    let asked: Vec<_> = addrs.map(|addr| backing.submit(Op::Read { addr, blocks: 1 })).collect();
    let until = Instant::now() + wait;
    let answer = |ticket: crate::disk::backing::Ticket| match ticket.wait(Some(until)) {
        Some(Ok(Done::Data(buf))) => Some(buf),
        _ => None,
    };
    asked.into_iter().map(answer).collect()
}

/// Read the root slots. One that cannot be read is asked for again: the newest root is not to be missed for an error that
/// passes.
fn read_slots(backing: &dyn Backing, wait: Duration) -> Vec<Option<Buf>> {
    let until = Instant::now() + wait;
    let mut blocks = read_all(backing, (0..ROOT_SLOTS).map(Root::addr), wait);
    for _ in 0..2 {
        let missing: Vec<usize> = (0..ROOT_SLOTS).filter(|slot| blocks[*slot].is_none()).collect();
        if missing.is_empty() || Instant::now() >= until {
            break;
        }
        let again = read_all(backing, missing.iter().map(|slot| Root::addr(*slot)), wait);
        missing.into_iter().zip(again).for_each(|(slot, block)| blocks[slot] = block);
    }
    blocks
}

/// Read label and roots of a replica. The text of the error completes "replica PATH …".
pub fn examine(backing: &dyn Backing, wait: Duration) -> Result<Found, String> {
    let mut why = "cannot be read".to_owned();
    let mut label = None;
    for (addr, block) in
        Geometry::label_copies().into_iter().zip(read_all(backing, Geometry::label_copies().into_iter(), wait))
    {
        match block.map(|block| Label::decode(&block, addr)) {
            Some(Ok(found)) => {
                label = Some(found);
                break;
            }
            Some(Err(corrupt)) => why = format!("holds no stablefs label ({corrupt})"),
            None => {}
        }
    }
    let Some(label) = label else { return Err(why) };
    let mut found =
        Found { label, roots: Vec::new(), damaged: Vec::new(), unreadable: Vec::new(), given_up: Vec::new() };
    for (slot, block) in read_slots(backing, wait).into_iter().enumerate() {
        let Some(block) = block else {
            found.damaged.push(slot);
            found.unreadable.push(slot);
            continue;
        };
        match Root::decode(&block, slot, found.label.volume, &found.label.geometry) {
            Ok(root) => found.roots.push((slot, root)),
            Err(_) => found.damaged.push(slot),
        }
    }
    found.roots.sort_by_key(|(_, root)| std::cmp::Reverse(root.version));
    Ok(found)
}

/// Roots of the volume of `label` that prove themselves on `backing`, whatever its own label is; newest first.
pub fn roots_on(backing: &dyn Backing, label: &Label, wait: Duration) -> Vec<Root> {
    let blocks = read_slots(backing, wait).into_iter().enumerate();
    let decode = |(slot, block): (usize, Option<Buf>)| Root::decode(&block?, slot, label.volume, &label.geometry).ok();
    let mut roots: Vec<Root> = blocks.filter_map(decode).collect();
    roots.sort_by_key(|root| std::cmp::Reverse(root.version));
    roots
}

/// The newest root of a volume and what each of its members is.
pub struct Choice {
    /// The root.
    pub root: Root,
    /// Its slot.
    pub slot: usize,
    /// For each member of the root: index of the present replica, and whether it is in sync.
    pub members: Vec<(Option<usize>, bool)>,
    /// Versions in the slots of all replicas in sync.
    pub slots: [Option<u64>; ROOT_SLOTS],
    /// Present replicas that are not in sync, with the reason.
    pub behind: Vec<(String, String)>,
    /// Members in sync that are not there.
    pub missing: usize,
    /// Slots in which something stands on a present replica that proves nothing.
    pub damaged: [bool; ROOT_SLOTS],
    /// A slot that no replica in sync proves holds something on one of them: perhaps a root newer than this one.
    pub may_be_newer: bool,
}

/// Refuse replicas that do not belong together: of two volumes, the same one twice, with labels that contradict each other.
pub(crate) fn check_one_volume(present: &[Present]) -> Result<(), StoreError> {
    let refuse = |text: String| Err(StoreError::Refused(text));
    let Some(first) = present.first() else { return refuse("no replica was given".into()) };
    for (i, a) in present.iter().enumerate() {
        if a.found.label.volume != first.found.label.volume {
            return refuse(format!(
                "{} and {} are replicas of two volumes ({} and {}): mount each with its own twin",
                first.path, a.path, first.found.label.volume, a.found.label.volume
            ));
        }
        if let Some(b) = present[..i].iter().find(|b| b.found.label.replica == a.found.label.replica) {
            return refuse(format!(
                "{} and {} are the same replica, or one is a copy of the other: give its twin",
                b.path, a.path
            ));
        }
        let but_for_name = |label: &Label| Label { replica: first.found.label.replica, ..label.clone() };
        if but_for_name(&a.found.label) != first.found.label {
            return refuse(format!(
                "{} and {} disagree about the layout of the volume: one label was forged; mount one alone with \
                 -o degraded,ro to see which",
                first.path, a.path
            ));
        }
    }
    Ok(())
}

/// Choose the newest root among `present`.
pub fn choose(present: &[Present]) -> Result<Choice, StoreError> {
    let refuse = |text: String| Err(StoreError::Refused(text));
    check_one_volume(present)?;
    let newest = present.iter().enumerate().filter_map(|(i, p)| p.found.roots.first().map(|(s, r)| (i, *s, r)));
    let Some((owner, slot, root)) = newest.max_by_key(|(_, _, root)| root.version) else {
        return refuse(format!("no root proves itself on {}: nothing is left of the volume there", list(present)));
    };
    let is = |p: &&Present, kinship: Kinship| {
        p.found.roots.first().is_some_and(|(_, other)| root.kinship(other.epoch().id, other.version) == kinship)
    };
    if present.iter().any(|p| is(&p, Kinship::Forked)) {
        return refuse(fork::refusal(present, &fork::sides(present)));
    }
    if let Some(old) = present.iter().find(|p| is(p, Kinship::TooOld)) {
        let theirs = &old.found.roots[0].1;
        return refuse(format!(
            "{}: is too old to compare (root {} of {}): {} remembers {} epochs, and that one was before. It may be left \
             behind, or have been written apart; look at it alone with -o degraded,ro, or mount without it and replace it",
            old.path,
            theirs.version,
            when(theirs.time_ns),
            present[owner].path,
            root.chain.len()
        ));
    }
    // A version is used once: two roots of one version cannot both be this history's.
    let other =
        present.iter().find(|p| p.found.roots.first().is_some_and(|(_, r)| r.version == root.version && r != root));
    if let Some(other) = other {
        return refuse(format!(
            "{} and {} both hold root {}, and it is not the same: one was forged; mount one alone with -o degraded,ro \
             to look at it, then `stablefs replace` the other",
            present[owner].path, other.path, root.version
        ));
    }
    Ok(judge(present, root.clone(), slot))
}

/// Whether `replica`, whose newest root that proves itself is `newest`, never had a root that another one has and that
/// came before `root`: one was on all replicas in sync before the next was written. What is damaged on it may have been
/// that root.
fn lacks_roots(present: &[Present], replica: &Present, newest: u64, root: &Root) -> bool {
    let between = |(_, other): &&(usize, Root)| other.version > newest && other.version < root.version;
    let roots = present.iter().flat_map(|p| &p.found.roots);
    let mut wanted = roots.filter(between).map(|(slot, _)| slot).peekable();
    wanted.peek().is_none() || wanted.any(|slot| !replica.found.damaged.contains(slot))
}

fn judge(present: &[Present], root: Root, slot: usize) -> Choice {
    let mut members = Vec::new();
    let mut behind = Vec::new();
    let mut slots: [Option<u64>; ROOT_SLOTS] = [None; ROOT_SLOTS];
    let mut missing = 0;
    for member in &root.members {
        let is_detached = member.state == MemberState::Detached;
        let at = present.iter().position(|p| p.found.label.replica == member.replica);
        let Some(index) = at.filter(|_| !is_detached) else {
            missing += usize::from(member.state == MemberState::InSync);
            members.push((None, false));
            continue;
        };
        let replica = &present[index];
        let newest = replica.found.roots.first().map_or(0, |(_, r)| r.version);
        let newest_txg = replica.found.roots.first().map_or(0, |(_, r)| r.txg);
        let is_old = newest_txg + LAG_MAX < root.txg && lacks_roots(present, replica, newest, &root);
        let why = match member.state {
            MemberState::Out if follower::follows(member, replica, &root) => {
                Some(format!("it is {}, and holds the state of {}", member.role.name(), when(root.time_ns)))
            }
            MemberState::Out if member.role != Role::Hot => {
                Some(format!("it is {}: it follows the others", member.role.name()))
            }
            MemberState::Out => Some(format!("it was left behind at root {}", member.since_version)),
            MemberState::Returning => Some("its return was not finished".to_owned()),
            MemberState::Detached => None, // is not here
            MemberState::InSync if is_old => {
                missing += 1;
                Some(format!("it is an old copy: its newest root is {newest}, the volume is at {}", root.version))
            }
            MemberState::InSync => None,
        };
        if why.is_none() {
            let versions = replica.found.roots.iter().map(|(slot, found)| (*slot, found.version));
            for (slot, version) in versions.chain(replica.found.given_up.iter().copied()) {
                slots[slot] = slots[slot].max(Some(version));
            }
        }
        members.push((Some(index), why.is_none()));
        behind.extend(why.map(|why| (replica.path.clone(), why)));
    }
    for replica in present {
        behind.extend(former::why_no_member(&root, &replica.found.label).map(|why| (replica.path.clone(), why)));
    }
    // Perhaps only one that is returning has it; it is put on all that are in sync, and its slot is no free one.
    slots[slot] = slots[slot].max(Some(root.version));
    let mut damaged = [false; ROOT_SLOTS];
    present.iter().flat_map(|p| &p.found.damaged).for_each(|slot| damaged[*slot] = true);
    let may_be_newer = (0..ROOT_SLOTS).any(|slot| damaged[slot] && slots[slot].is_none());
    Choice { root, slot, members, slots, damaged, behind, missing, may_be_newer }
}

fn in_sync(choice: &Choice) -> usize {
    choice.members.iter().filter(|(_, in_sync)| *in_sync).count()
}

fn list(present: &[Present]) -> String {
    present.iter().map(|p| p.path.as_str()).collect::<Vec<_>>().join(" and ")
}

/// A time for people.
fn when(ns: u64) -> String {
    crate::world::utc(ns)
}

/// Open the volume on `present`. Returns the store, ready for use, and what was done.
pub fn open(present: Vec<Present>, options: OpenStore, world: Arc<dyn World>) -> Result<(Store, Report), StoreError> {
    open_or_follower(present, options, world, false)
}

/// As [`open`]; with `accept_stale` also on a warm or cold replica alone, in the state to which it has followed.
pub fn open_or_follower(
    present: Vec<Present>,
    options: OpenStore,
    world: Arc<dyn World>,
    accept_stale: bool,
) -> Result<(Store, Report), StoreError> {
    let mut choice = choose(&present)?;
    let goes_apart = follower::take_if_alone(&present, &mut choice, accept_stale)?;
    let alive = in_sync(&choice);
    if choice.missing > 0 && !options.degraded {
        let behind: String = choice.behind.iter().map(|(p, w)| format!(" {p}: {w};")).collect();
        return Err(StoreError::Refused(format!(
            "{} of {} replicas in sync {} missing:{behind} give all of them, or mount what is there with `-o degraded`",
            choice.missing,
            choice.missing + alive,
            if choice.missing == 1 { "is" } else { "are" }
        )));
    }
    if !options.hold {
        refuse_blind(&present, &choice)?;
    }
    let label = present[0].found.label.clone();
    let replicas: Vec<_> = choice
        .members
        .iter()
        .zip(&choice.root.members)
        .map(|((index, in_sync), member)| {
            let path = index.map_or_else(|| "(missing)".to_owned(), |i| present[i].path.clone());
            (ReplicaName { uuid: member.replica, path }, index.map(|i| present[i].backing.clone()), *in_sync)
        })
        .collect();
    let mirror =
        Arc::new(Mirror::new(VolumeSeed::new(label.volume), label.geometry.clone(), replicas, options.deadline));
    let members = choice.root.members.iter().enumerate();
    members.filter(|(_, m)| m.state == MemberState::Detached).for_each(|(slot, _)| mirror.leave_free(slot));
    let report = Report {
        behind: choice.behind.clone(),
        missing: choice.missing,
        version: choice.root.version,
        ..Report::default()
    };
    finish(label, mirror, choice, options, world, report, goes_apart)
}

/// A replica that alone is in sync and cannot read a root slot cannot know that no newer root stands there.
pub(crate) fn refuse_blind(present: &[Present], choice: &Choice) -> Result<(), StoreError> {
    let mut alone = choice.members.iter().filter_map(|(index, in_sync)| index.filter(|_| *in_sync));
    let (Some(index), None) = (alone.next(), alone.next()) else { return Ok(()) };
    let replica = &present[index];
    if replica.found.unreadable.is_empty() {
        return Ok(());
    }
    Err(StoreError::Refused(format!(
        "{}: a root slot cannot be read, and the newest state may stand there: give its twin, or let `stablefs fsck -y` \
         go on from root {} of {}",
        replica.path,
        choice.root.version,
        when(choice.root.time_ns)
    )))
}

fn finish(
    label: Label,
    mirror: Arc<Mirror>,
    choice: Choice,
    options: OpenStore,
    world: Arc<dyn World>,
    mut report: Report,
    goes_apart: bool,
) -> Result<(Store, Report), StoreError> {
    let log = Log::new(label.geometry.log_blocks, world.random());
    let mut roots = RootState::new(choice.root.clone(), choice.slot, choice.slots);
    roots.on_shrink = options.on_shrink;
    roots.damaged = choice.damaged;
    // A replica that was returning may have got, alone, a root that calls it in sync.
    let returning = choice.root.members.iter().any(|member| member.state == MemberState::Returning);
    roots.fork_next = returning || goes_apart;
    if choice.may_be_newer {
        ::log::warn!(
            "a root slot is damaged on every replica that is here: if it held a root newer than {}, what was written \
             after that one is lost, unless a replica that is away has it: look at that one alone before it is replaced",
            choice.root.version
        );
        roots.skip_versions();
    }
    let store = Store::assemble(Opening { label, world, mirror, options: options.store, roots, log });
    if !options.hold {
        store.resume(LogEnd::Proven, &mut report)?;
    }
    Ok((store, report))
}

impl Store {
    /// Replay the log and make that a root of its own (opened for reading only: in memory).
    pub fn resume(&self, end: LogEnd, report: &mut Report) -> Result<(), StoreError> {
        let root = self.view().committed.root.clone();
        if !self.options.read_only {
            self.enforce_root()?;
            self.mend_slots()?;
            self.declare_absent()?;
        }
        if !root.clean {
            let records = self.read_log(&root, end, report)?;
            self.replay(records)?;
        }
        if !self.options.read_only {
            self.space.check_any_trusted(&self.mirror)?;
            self.lift_next_ino();
            let mut state = self.root.lock();
            state.root.mount_count = state.root.mount_count.saturating_add(1);
            self.mounts.store(state.root.mount_count, Ordering::Relaxed);
            drop(state);
            // Space below that was allocated since the last commit is not known any more; what was replayed needs it.
            let _enough = self.space.ensure_backed(&self.mirror, self.taken(self.reserve_blocks()))?;
            self.commit(Force::Always)?;
            // Whoever syncs from now on asks of what was done since.
            let _logged = self.say_left_out();
        }
        Ok(())
    }

    /// No number that has items may be handed out again, whatever the root says. What cannot be read is left to the
    /// root.
    fn lift_next_ino(&self) {
        let Some((mut level, mut ptr)) = self.view().committed.root.tree else { return };
        let mut lower = Key::MIN;
        while let Ok(found) = tree::read_within(self, level, &ptr, lower, None) {
            match &found.node {
                Node::Inner(children) => match children.last() {
                    Some(last) => (lower, ptr, level) = (last.0, last.1, level - 1),
                    None => return,
                },
                Node::Leaf(items) => {
                    let last = items.last().map(|(key, _)| key.ino).filter(|ino| *ino < INO_MAX);
                    if let Some(ino) = last {
                        self.next_ino.fetch_max(ino + 1, Ordering::Relaxed);
                    }
                    return;
                }
            }
        }
    }

    /// A crash can leave the newest root on one replica only: write it to the others in sync before anything else, so
    /// that no chain of interrupted recoveries makes one of them look older than it is.
    pub(crate) fn enforce_root(&self) -> Result<(), StoreError> {
        let (slot, root) = self.newest_root();
        let expected = root.encode(slot);
        let lacks = |replica: &usize| {
            !self.mirror.read_raw(*replica, Root::addr(slot), 1).is_ok_and(|block| block[..] == expected[..])
        };
        for replica in self.in_sync().filter(lacks) {
            self.give_slots(replica, &[(slot, expected.clone())], "it could not take back the newest root");
        }
        Ok(())
    }

    /// Put in order what stands in root slots and proves nothing: it becomes the root that another replica has there. Where
    /// none has one, the slot is made void on all. For the power may have torn a root there, whose missing sectors are just
    /// those that the next root has in that place: that one, torn in its turn, would make the first one whole, whose space
    /// is written over by then. And what is damaged on one replica makes recovery skip versions: whoever goes on without
    /// that replica must find the reason.
    fn mend_slots(&self) -> Result<(), StoreError> {
        let mut state = self.root.lock();
        let mut orders = vec![Vec::new(); self.mirror.replicas()];
        for slot in (0..ROOT_SLOTS).filter(|slot| state.damaged[*slot] && *slot != state.newest_slot) {
            let (mut good, mut bad) = (None, Vec::new());
            for replica in self.in_sync() {
                let block = self.mirror.read_raw(replica, Root::addr(slot), 1).ok();
                let decode = |block: &Buf| Root::decode(block, slot, self.label.volume, &self.label.geometry).ok();
                match block.and_then(|block| decode(&block)) {
                    Some(root) if root.version > state.root.version => {
                        let text = format!("root {} can be read now, and could not be before: try again", root.version);
                        return Err(StoreError::Refused(text));
                    }
                    Some(root) => good = Some(root.encode(slot)),
                    None => bad.push(replica),
                }
            }
            let order = good.unwrap_or_else(|| vec![Root::VOID; BLOCK]);
            bad.into_iter().for_each(|replica| orders[replica].push((slot, order.clone())));
        }
        for replica in self.in_sync().filter(|replica| !orders[*replica].is_empty()) {
            self.give_slots(replica, &orders[replica], "a damaged root slot on it could not be written");
        }
        state.damaged = [false; ROOT_SLOTS];
        Ok(())
    }

    fn in_sync(&self) -> impl Iterator<Item = usize> + use<> {
        let members = self.mirror.members();
        (0..self.mirror.replicas()).filter(move |replica| members.contains(*replica))
    }

    /// Make this stand in these slots of a replica, or put it out.
    fn give_slots(&self, replica: usize, slots: &[(usize, Vec<u8>)], why_out: &str) {
        let mut write = |(slot, bytes): &(usize, Vec<u8>)| {
            self.mirror.write_raw(replica, Root::addr(*slot), Slice::whole(Buf::from_slice(bytes)))
        };
        if slots.iter().try_for_each(&mut write).and_then(|()| self.mirror.flush_raw(replica)).is_err() {
            self.mirror.set_out(replica, why_out);
        }
    }

    /// Put what the records say into the open group.
    fn replay(&self, records: Vec<reading::Record>) -> Result<(), StoreError> {
        let view = self.view();
        let group = &view.current;
        for record in records {
            for entry in record.entries {
                let pages = self.replay_entry(group, entry)?;
                add_signed(&self.pages, pages);
            }
        }
        let mut inodes = 0;
        for (key, value) in group.all_items().into_iter().filter(|(key, _)| key.kind == ItemKind::Inode) {
            let before = match self.committed_item(&view.committed, key) {
                // Its change is left out by the commit.
                Err(error) if error.is_damage() => continue,
                found => found?.is_some(),
            };
            inodes += i64::from(value.is_some()) - i64::from(before);
            self.next_ino.fetch_max(key.ino + 1, Ordering::Relaxed);
        }
        group.inodes.store(inodes, Ordering::Relaxed);
        add_signed(&self.inodes, inodes);
        Ok(())
    }

    fn replay_entry(&self, group: &super::delta::Group, entry: Entry) -> Result<i64, StoreError> {
        Ok(match entry {
            Entry::Put(key, value) => {
                replayable(key)?;
                group.put(key, Some(value.into()));
                0
            }
            Entry::Delete(key) => {
                replayable(key)?;
                group.put(key, None);
                0
            }
            Entry::Hole { ino, first, end } => {
                possible(ino, first, 0)?;
                group.punch(ino, first, end)
            }
            Entry::Run { ino, first, addr, sums } => {
                possible(ino, first, sums.len() as u64)?;
                self.occupy_new(Span { addr, blocks: sums.len() as u32 })?;
                let put = |(i, sum): (usize, u32)| {
                    let segment = Segment::Placed { addr: addr + i as u64, sum, logged: true };
                    group.put_segment(ino, first + i as u64, segment)
                };
                sums.into_iter().enumerate().map(put).sum()
            }
            Entry::Reserved { ino, first, addr, blocks } => {
                possible(ino, first, u64::from(blocks))?;
                self.occupy_new(Span { addr, blocks })?;
                let put =
                    |i: u64| group.put_segment(ino, first + i, Segment::Reserved { addr: addr + i, logged: true });
                (0..u64::from(blocks)).map(put).sum()
            }
            Entry::Page { ino, block, bytes } => {
                possible(ino, block, 1)?;
                let mut page = Buf::zeroed(BLOCK);
                page[..bytes.len()].copy_from_slice(&bytes);
                group.put_pages(ino, vec![(block, Slice::whole(page))], u64::MAX)
            }
            Entry::NextIno(next) => {
                crate::format::require(next < INO_MAX, "log record", "names possible inodes")?;
                self.next_ino.fetch_max(next, Ordering::Relaxed);
                0
            }
        })
    }

    /// A record names these blocks: they must be nobody's.
    fn occupy_new(&self, span: Span) -> Result<(), StoreError> {
        let corrupt = |rule| StoreError::Corrupt {
            addr: span.addr,
            corrupt: crate::format::Corrupt { what: "log record", rule },
        };
        if !self.label.geometry.holds_data(span.addr, u64::from(span.blocks)) {
            return Err(corrupt("names blocks inside a zone"));
        }
        for addr in span.addr..span.addr + u64::from(span.blocks) {
            if self.space.is_allocated(&self.mirror, addr).map_err(unknown_space)? {
                return Err(corrupt("names blocks that are free"));
            }
        }
        self.space.occupy(&self.mirror, span)?;
        if self.options.read_only {
            return Ok(());
        }
        self.mirror.allocate(span.addr, u64::from(span.blocks)).map_err(StoreError::from)
    }
}

/// An inode and blocks of it that a record can name.
fn possible(ino: u64, first: u64, blocks: u64) -> Result<(), StoreError> {
    crate::format::require(ino < INO_MAX, "log record", "names possible inodes")?;
    let inside = first.checked_add(blocks).is_some_and(|end| end <= 1 << 51);
    Ok(crate::format::require(inside, "log record", "names possible file blocks")?)
}

/// The log names blocks of which it is not known any more whether they are free.
fn unknown_space(error: StoreError) -> StoreError {
    if !error.is_damage() {
        return error;
    }
    StoreError::Refused(format!(
        "the log cannot be replayed, what is free where it points is not known any more ({error}): \
         `stablefs fsck -y` finds it out and loses nothing"
    ))
}

/// Extents and maps are made by commits; a record never holds them.
fn replayable(key: Key) -> Result<(), StoreError> {
    crate::format::require(key.ino < INO_MAX, "log record", "names possible inodes")?;
    let plain = !matches!(key.kind, ItemKind::Extent | ItemKind::FileMap);
    Ok(crate::format::require(plain, "log record", "names items that are logged")?)
}

/// Key of the item that names `ino` as an orphan.
pub fn orphan_key(ino: u64) -> Key {
    Key::new(crate::format::ORPHANS, ItemKind::Orphan, ino)
}
