//! Opening a volume: which replicas belong to it, which root is the newest, and what the log adds to it.
//!
//! *Guarantees*: the newest root that proves itself and whose members are there is taken, never a majority of older
//! ones; a replica that is behind, old, foreign or forked serves nothing. Every acknowledged record is replayed; a
//! tail that one replica lacks is healed before anything else. Recovery may be cut at any write and run again: it
//! writes only to free space until its own root is durable.
//! *Assumes*: backings are open and locked. *Fails when*: [`StoreError::Refused`], with a text that says what to do.
//! *Order*: labels → roots → choice → newest root everywhere → log → commit of what was replayed, as a new root with
//! a new life of the ring.
//! *Not here*: opening paths (`volume`).

use super::commit::{Force, RootState};
use super::delta::Segment;
use super::history::ShrinkHook;
use super::log::Log;
use super::space::Span;
use super::{Opening, Store, StoreError, StoreOptions, add_signed};
use crate::disk::backing::{Backing, Done, Op};
use crate::disk::buffer::{Buf, Slice};
use crate::disk::{Mirror, ReplicaName};
use crate::format::geometry::ROOT_SLOTS;
use crate::format::log::{self, Entry, RecordHead};
use crate::format::{BLOCK, Geometry, ItemKind, Key, Label, MemberState, Root, VolumeSeed};
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
    /// Slots that hold something that does not prove itself.
    pub damaged: Vec<usize>,
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
    /// Replicas that are there but not in sync: path and why.
    pub behind: Vec<(String, String)>,
    /// Replicas that are missing.
    pub missing: usize,
    /// The root that was found.
    pub version: u64,
}

fn read(backing: &dyn Backing, addr: u64, blocks: u32, wait: Duration) -> Option<Buf> {
    match backing.submit(Op::Read { addr, blocks }).wait(Some(Instant::now() + wait)) {
        Some(Ok(Done::Data(buf))) => Some(buf),
        _ => None,
    }
}

/// Read label and roots of a replica. The text of the error completes "replica PATH …".
pub fn examine(backing: &dyn Backing, wait: Duration) -> Result<Found, String> {
    let mut why = "cannot be read".to_owned();
    let mut label = None;
    for addr in Geometry::label_copies() {
        match read(backing, addr, 1, wait).map(|block| Label::decode(&block, addr)) {
            Some(Ok(found)) => {
                label = Some(found);
                break;
            }
            Some(Err(corrupt)) => why = format!("holds no stablefs label ({corrupt})"),
            None => {}
        }
    }
    let Some(label) = label else { return Err(why) };
    let mut roots = Vec::new();
    let mut damaged = Vec::new();
    for slot in 0..ROOT_SLOTS {
        let block = read(backing, Root::addr(slot), 1, wait);
        match block.as_ref().map(|block| Root::decode(block, slot, label.volume, &label.geometry)) {
            Some(Ok(root)) => roots.push((slot, root)),
            Some(Err(_)) if block.is_some_and(|block| crate::format::all_zero(&block)) => {}
            _ => damaged.push(slot),
        }
    }
    roots.sort_by_key(|(_, root)| std::cmp::Reverse(root.version));
    Ok(Found { label, roots, damaged })
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
    /// A slot that no replica in sync proves holds something on one of them: perhaps a root newer than this one.
    pub may_be_newer: bool,
}

/// Choose the newest root among `present`.
pub fn choose(present: &[Present]) -> Result<Choice, StoreError> {
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
        if a.found.label.geometry != first.found.label.geometry {
            return refuse(format!("{} and {} disagree about the layout of the volume", first.path, a.path));
        }
    }
    let newest = present.iter().enumerate().filter_map(|(i, p)| p.found.roots.first().map(|(s, r)| (i, *s, r)));
    let Some((owner, slot, root)) = newest.max_by_key(|(_, _, root)| root.version) else {
        return refuse(format!("no root proves itself on {}: nothing is left of the volume there", list(present)));
    };
    let forked = present
        .iter()
        .find(|p| p.found.roots.first().is_some_and(|(_, other)| !root.follows(other.epoch().id, other.version)));
    if let Some(other) = forked {
        let theirs = &other.found.roots[0].1;
        return refuse(format!(
            "{} and {} were written apart (split brain): {} has root {} of {}, {} has root {} of {}; \
             mount one alone with -o degraded to look at it, then `stablefs replace` the other, whose changes are lost then",
            present[owner].path,
            other.path,
            present[owner].path,
            root.version,
            when(root.time_ns),
            other.path,
            theirs.version,
            when(theirs.time_ns)
        ));
    }
    Ok(judge(present, root.clone(), slot))
}

fn judge(present: &[Present], root: Root, slot: usize) -> Choice {
    let mut members = Vec::new();
    let mut behind = Vec::new();
    let mut slots: [Option<u64>; ROOT_SLOTS] = [None; ROOT_SLOTS];
    let mut missing = 0;
    // Slots of roots that a replica in sync may have as its newest.
    let roots = present.iter().flat_map(|p| &p.found.roots);
    let recent: Vec<usize> = roots.filter(|(_, r)| r.txg + LAG_MAX >= root.txg).map(|(slot, _)| *slot).collect();
    for member in &root.members {
        let at = present.iter().position(|p| p.found.label.replica == member.replica);
        let Some(index) = at else {
            missing += usize::from(member.state == MemberState::InSync);
            members.push((None, false));
            continue;
        };
        let replica = &present[index];
        let newest = replica.found.roots.first().map_or(0, |(_, r)| r.version);
        let newest_txg = replica.found.roots.first().map_or(0, |(_, r)| r.txg);
        // Where its copy of a root that would do is damaged, what it lacks is that block, not the groups before.
        let is_old = newest_txg + LAG_MAX < root.txg && !recent.iter().any(|s| replica.found.damaged.contains(s));
        let why = match member.state {
            MemberState::Out => Some(format!("it was left behind at root {}", member.since_version)),
            MemberState::Returning => Some("its return was not finished".to_owned()),
            MemberState::InSync if is_old => {
                missing += 1;
                Some(format!("it is an old copy: its newest root is {newest}, the volume is at {}", root.version))
            }
            MemberState::InSync => None,
        };
        if why.is_none() {
            for (slot, found) in &replica.found.roots {
                slots[*slot] = slots[*slot].max(Some(found.version));
            }
        }
        members.push((Some(index), why.is_none()));
        behind.extend(why.map(|why| (replica.path.clone(), why)));
    }
    for replica in present {
        if root.members.iter().all(|m| m.replica != replica.found.label.replica) {
            behind.push((replica.path.clone(), "it was replaced by another replica".to_owned()));
        }
    }
    let damaged = present.iter().flat_map(|p| &p.found.damaged);
    let may_be_newer = damaged.into_iter().any(|slot| slots[*slot].is_none());
    Choice { root, slot, members, slots, behind, missing, may_be_newer }
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
    let choice = choose(&present)?;
    let alive = choice.members.iter().filter(|(_, in_sync)| *in_sync).count();
    if alive == 0 {
        let behind = choice.behind.iter().map(|(p, w)| format!("{p}: {w}")).collect::<Vec<_>>().join("; ");
        return Err(StoreError::Refused(format!("no replica that was in sync is there ({behind}): give its twin")));
    }
    if choice.missing > 0 && !options.degraded {
        let behind: String = choice.behind.iter().map(|(p, w)| format!(" {p}: {w};")).collect();
        return Err(StoreError::Refused(format!(
            "{} of {} replicas in sync {} missing:{behind} give all of them, or mount what is there with `-o degraded`",
            choice.missing,
            choice.missing + alive,
            if choice.missing == 1 { "is" } else { "are" }
        )));
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
    let report = Report {
        behind: choice.behind.clone(),
        missing: choice.missing,
        version: choice.root.version,
        ..Report::default()
    };
    finish(label, mirror, choice, options, world, report)
}

fn finish(
    label: Label,
    mirror: Arc<Mirror>,
    choice: Choice,
    options: OpenStore,
    world: Arc<dyn World>,
    mut report: Report,
) -> Result<(Store, Report), StoreError> {
    let log = Log::new(label.geometry.log_blocks, world.random());
    let mut roots = RootState::new(choice.root.clone(), choice.slot, choice.slots);
    roots.on_shrink = options.on_shrink;
    roots.fork_next = choice.missing > 0;
    if choice.may_be_newer {
        ::log::warn!(
            "a root slot is damaged on every replica: if it held a root newer than {}, bytes that nobody had synced are lost",
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

/// What to do where the log ends at a record that had been acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogEnd {
    /// Refuse: something acknowledged would be lost.
    Proven,
    /// Go on without it and what followed: a person said so.
    Accepted,
}

/// A record with its entries.
struct Record {
    head: RecordHead,
    entries: Vec<Entry>,
}

impl Store {
    /// Replay the log and make that a root of its own (opened for reading only: in memory).
    pub fn resume(&self, end: LogEnd, report: &mut Report) -> Result<(), StoreError> {
        let root = self.view().committed.root.clone();
        if !self.options.read_only {
            self.enforce_root()?;
        }
        if !root.clean {
            let records = self.read_log(&root, end, report)?;
            self.replay(records)?;
        }
        if !self.options.read_only {
            self.space.check_any_trusted(&self.mirror)?;
            self.root.lock().root.mount_count += 1;
            self.mounts.fetch_add(1, Ordering::Relaxed);
            // Space below that was allocated since the last commit is not known any more; what was replayed needs it.
            let _enough = self.space.ensure_backed(&self.mirror, self.taken(self.reserve_blocks()))?;
            self.commit(Force::Always)?;
            // Whoever syncs from now on asks of what was done since.
            let _logged = self.say_left_out();
        }
        Ok(())
    }

    /// A crash can leave the newest root on one replica only: write it to the others in sync before anything else, so
    /// that no chain of interrupted recoveries makes one of them look older than it is.
    pub(crate) fn enforce_root(&self) -> Result<(), StoreError> {
        let (slot, root) = self.newest_root();
        let expected = root.encode(slot);
        let members = self.mirror.members();
        for replica in (0..self.mirror.replicas()).filter(|r| members.contains(*r)) {
            let there = self.mirror.read_raw(replica, Root::addr(slot), 1);
            if there.is_ok_and(|block| block[..] == expected[..]) {
                continue;
            }
            let block = Slice::whole(Buf::from_slice(&expected));
            let written = self.mirror.write_raw(replica, Root::addr(slot), block);
            if written.and_then(|()| self.mirror.flush_raw(replica)).is_err() {
                self.mirror.set_out(replica, "it could not take back the newest root");
            }
        }
        Ok(())
    }

    /// How many log records wait for replay; looks only.
    pub fn log_waiting(&self) -> Result<u64, StoreError> {
        let root = self.view().committed.root.clone();
        if root.clean {
            return Ok(0);
        }
        Ok(self.read_log(&root, LogEnd::Proven, &mut Report::default())?.len() as u64)
    }

    /// All records that follow `root`, in order; each from whichever replica proves it.
    fn read_log(&self, root: &Root, end: LogEnd, report: &mut Report) -> Result<Vec<Record>, StoreError> {
        let ring = self.label.geometry.log_blocks;
        let mut records = Vec::new();
        let (mut seq, mut at) = (root.log_seq, root.log_at);
        loop {
            let found = match self.read_record(root, seq, at, report)? {
                Some(found) => Some((found, at)),
                None if at != 0 => self.read_record(root, seq, 0, report)?.map(|found| (found, 0)),
                None => None,
            };
            let Some((record, stands)) = found else { break };
            seq += 1;
            let next = stands + record.head.blocks;
            at = if next >= ring { 0 } else { next };
            records.push(record);
        }
        if end == LogEnd::Proven {
            self.check_end(root, seq)?;
        }
        report.replayed = records.len() as u64;
        // Group n's changes come before those of n+1, whatever the order in which they were logged.
        records.sort_by_key(|r| (r.head.txg, r.head.seq));
        records.retain(|r| r.head.txg > root.txg);
        Ok(records)
    }

    fn read_record(&self, root: &Root, seq: u64, at: u32, report: &mut Report) -> Result<Option<Record>, StoreError> {
        let addr = self.label.geometry.log_at + u64::from(at);
        let members = self.mirror.members();
        let mut proven: Option<(RecordHead, Buf)> = None;
        let mut lacking = Vec::new();
        for replica in (0..self.mirror.replicas()).filter(|r| members.contains(*r)) {
            match self.record_on(replica, root, seq, at, addr) {
                Some(found) => drop(proven.get_or_insert(found)),
                None => lacking.push(replica),
            }
        }
        let Some((head, buf)) = proven else { return Ok(None) };
        let mut rest = log::entries(&buf, &head)?;
        let mut entries = Vec::new();
        while !rest.is_empty() {
            let (entry, next) = Entry::decode(rest)?;
            entries.push(entry);
            rest = next;
        }
        if !lacking.is_empty() && !self.options.read_only {
            let data = Slice::whole(buf);
            for replica in lacking {
                if self.mirror.write_raw(replica, addr, data.clone()).is_err() {
                    self.mirror.set_out(replica, "it could not take back a log record");
                } else {
                    report.healed += 1;
                }
            }
            self.mirror.flush()?;
        }
        Ok(Some(Record { head, entries }))
    }

    fn record_on(&self, replica: usize, root: &Root, seq: u64, at: u32, addr: u64) -> Option<(RecordHead, Buf)> {
        let ring = self.label.geometry.log_blocks;
        let first = self.mirror.read_raw(replica, addr, 1).ok()?;
        let head = log::decode_head(&first, self.label.volume, addr, ring).ok()?;
        if head.log_id != root.log_id || head.seq != seq || at + head.blocks > ring {
            return None;
        }
        let whole = if head.blocks == 1 { first } else { self.mirror.read_raw(replica, addr, head.blocks).ok()? };
        log::entries(&whole, &head).ok()?;
        Some((head, whole))
    }

    /// The log ends before `missing`. If a later record says that it had been acknowledged, that is damage.
    fn check_end(&self, root: &Root, missing: u64) -> Result<(), StoreError> {
        const STEP: u32 = 256;
        let ring = self.label.geometry.log_blocks;
        let members = self.mirror.members();
        for replica in (0..self.mirror.replicas()).filter(|r| members.contains(*r)) {
            for start in (0..ring).step_by(STEP as usize) {
                let blocks = STEP.min(ring - start);
                let from = self.label.geometry.log_at + u64::from(start);
                let whole = self.mirror.read_raw(replica, from, blocks).ok();
                for i in 0..blocks as usize {
                    let at = from + i as u64;
                    // One bad sector must not hide what stands beside it.
                    let alone = if whole.is_none() { self.mirror.read_raw(replica, at, 1).ok() } else { None };
                    let block = whole.as_ref().map(|buf| &buf[i * BLOCK..(i + 1) * BLOCK]);
                    let Some(block) = block.or(alone.as_deref()) else { continue };
                    let head = log::decode_head(block, self.label.volume, at, ring);
                    if head.is_ok_and(|h| h.log_id == root.log_id && h.seq > missing && h.acked >= missing) {
                        return Err(StoreError::Refused(format!(
                            "log record {missing} had been acknowledged and is damaged on every replica: \
                             `stablefs fsck -y` goes on without it and what followed it"
                        )));
                    }
                }
            }
        }
        Ok(())
    }

    /// Put what the records say into the open group.
    fn replay(&self, records: Vec<Record>) -> Result<(), StoreError> {
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
            Entry::Hole { ino, first, end } => group.punch(ino, first, end),
            Entry::Run { ino, first, addr, sums } => {
                self.occupy_new(Span { addr, blocks: sums.len() as u32 })?;
                let put = |(i, sum): (usize, u32)| {
                    let segment = Segment::Placed { addr: addr + i as u64, sum, logged: true };
                    group.put_segment(ino, first + i as u64, segment)
                };
                sums.into_iter().enumerate().map(put).sum()
            }
            Entry::Reserved { ino, first, addr, blocks } => {
                self.occupy_new(Span { addr, blocks })?;
                let put =
                    |i: u64| group.put_segment(ino, first + i, Segment::Reserved { addr: addr + i, logged: true });
                (0..u64::from(blocks)).map(put).sum()
            }
            Entry::Page { ino, block, bytes } => {
                crate::format::require(block < 1 << 51, "log record", "names possible file blocks")?;
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

/// Inode numbers in a log record stay below this, so that a root can set a range aside.
const INO_MAX: u64 = u64::MAX / 4;

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
