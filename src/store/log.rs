//! The log: fsync between two commits.
//!
//! *Guarantees*: a record holds every metadata change since the record before, and the data of the files being
//! synced; it is acknowledged only when it is durable on every replica in sync, and when a durable root names those
//! (invariant 5). So what survives is always a prefix of history.
//! *Assumes*: a commit covers everything logged before it began. *Fails when*: no replica takes writes: latched.
//! *Order*: write lock → commit lock → place lock → gate → shards; `state` is a leaf. *Not here*: replay (`recover`).
//!
//! While group n is closing and n+1 is open, what is unlogged of each goes into a record of its own, so that replay
//! on root n skips the first. Replay applies records by (group, sequence). Data that a record only names is flushed
//! before the record is written: so a large fsync takes two flushes, a small one takes one.
//!
//! The ring: records stand one behind the other; one that does not fit at the end begins at block 0.
//!
//! ```text
//! 0        tail                head          log_blocks
//! |  free   | records not yet covered | free |
//! ```

use super::commit::Force;
use super::delta::{FileDelta, Group, Segment};
use super::{Store, StoreError, Value};
use crate::disk::buffer::{Buf, Slice};
use crate::format::item::{INODE, Inode};
use crate::format::log::{Entry, RecordHead, blocks_for, encode};
use crate::format::{BLOCK, ItemKind, Key, Txg};
use crate::sync::{Mutex, MutexGuard};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

/// Pages of one file that go into the record itself; more are written to their place first.
const INLINE_PAGES: u64 = 16;

/// Answer to an fsync.
pub type Answer = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

#[derive(Debug, Clone, Copy)]
struct Record {
    seq: u64,
    txg: Txg,
    at: u32,
    blocks: u32,
}

/// A record that replay would need.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LiveRecord {
    /// Sequence.
    pub seq: u64,
    /// Its first block in the ring.
    pub at: u32,
    /// Its blocks.
    pub blocks: u32,
}

#[derive(Debug)]
struct LogState {
    id: u64,
    next_seq: u64,
    head: u32,
    records: VecDeque<Record>,
    acked: u64,
}

/// The ring and those who wait for it.
pub struct Log {
    blocks: u32,
    state: Mutex<LogState>,
    write_lock: Mutex<()>,
    queue: Mutex<Vec<(u64, Answer)>>,
}

/// Where a root says that replay begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogStart {
    /// Life of the ring.
    pub id: u64,
    /// First sequence.
    pub seq: u64,
    /// Its block in the ring (or 0, if it does not fit there).
    pub at: u32,
}

impl Log {
    /// An empty ring of `blocks` in a new life.
    pub fn new(blocks: u32, id: u64) -> Log {
        let state = LogState { id, next_seq: 1, head: 0, records: VecDeque::new(), acked: 0 };
        Log { blocks, state: Mutex::new(state), write_lock: Mutex::new(()), queue: Mutex::new(Vec::new()) }
    }

    /// Whether a commit should make room.
    pub fn is_crowded(&self) -> bool {
        let state = self.state.lock();
        state.records.iter().map(|r| r.blocks).sum::<u32>() > self.blocks / 2
    }

    /// Where replay begins if a root of group `txg` becomes durable.
    pub fn start_after(&self, txg: Txg) -> LogStart {
        let state = self.state.lock();
        let first = state.records.iter().find(|r| r.txg > txg);
        LogStart { id: state.id, seq: first.map_or(state.next_seq, |r| r.seq), at: first.map_or(state.head, |r| r.at) }
    }

    /// A root that says to replay from `seq` on is durable: what stands before that is free.
    pub fn release(&self, seq: u64) {
        let mut state = self.state.lock();
        while state.records.front().is_some_and(|r| r.seq < seq) {
            state.records.pop_front();
        }
    }

    /// The ring's life, and the records in it that replay would need.
    pub(crate) fn live(&self) -> (u64, Vec<LiveRecord>) {
        let state = self.state.lock();
        let record = |r: &Record| LiveRecord { seq: r.seq, at: r.at, blocks: r.blocks };
        (state.id, state.records.iter().map(record).collect())
    }

    /// Whether replay would need record `seq`.
    pub(crate) fn is_live(&self, seq: u64) -> bool {
        self.state.lock().records.iter().any(|r| r.seq == seq)
    }

    /// No record is written while this is held, and each live one has been.
    pub(crate) fn hold(&self) -> MutexGuard<'_, ()> {
        self.write_lock.lock()
    }

    /// Take `blocks` of the ring for a record of group `txg`; `None`: no room.
    fn take(&self, blocks: u32, txg: Txg) -> Option<(u64, u32, u64, u64)> {
        let mut state = self.state.lock();
        if blocks > self.blocks / 4 {
            return None;
        }
        let tail = state.records.front().map(|r| r.at);
        let at = match tail {
            None if state.head + blocks <= self.blocks => state.head,
            None => 0,
            Some(tail) if state.head >= tail => {
                if state.head + blocks <= self.blocks {
                    state.head
                } else if blocks < tail {
                    0
                } else {
                    return None;
                }
            }
            Some(tail) if state.head + blocks < tail => state.head,
            Some(_) => return None,
        };
        let seq = state.next_seq;
        state.next_seq += 1;
        // A head at the very end of the ring is block 0: a root must name a block inside.
        state.head = if at + blocks == self.blocks { 0 } else { at + blocks };
        if state.head == 0 && tail == Some(0) {
            // The ring would look empty: give the record back.
            state.next_seq -= 1;
            state.head = at;
            return None;
        }
        state.records.push_back(Record { seq, txg, at, blocks });
        Some((seq, at, state.acked, state.id))
    }

    fn acknowledge(&self, seq: u64) {
        let mut state = self.state.lock();
        state.acked = state.acked.max(seq);
    }

    /// Requests that wait.
    pub fn take_queue(&self) -> Vec<(u64, Answer)> {
        std::mem::take(&mut *self.queue.lock())
    }
}

/// Unlogged changes of one group, as entries of a record.
struct Cut {
    txg: Txg,
    bytes: Vec<u8>,
    /// It names blocks that were written to their place.
    names_blocks: bool,
}

impl Store {
    /// Make durable everything done so far to the data of `ino`, and all metadata; `answer` is called then, from the
    /// log thread (or at once, where none runs).
    pub fn fsync(&self, ino: u64, answer: Answer) {
        if self.options.read_only {
            return answer(Ok(()));
        }
        if let Err(error) = self.check_alive().and_then(|()| self.check_kept(ino)) {
            return answer(Err(error));
        }
        self.log.queue.lock().push((ino, answer));
        if self.engine.is_running() {
            self.engine.want_log();
            if self.check_alive().is_err() {
                // The thread that would have answered may be dead.
                self.log_step();
            }
        } else {
            self.log_step();
        }
    }

    /// As [`Store::fsync`], waiting.
    pub fn fsync_wait(&self, ino: u64) -> Result<(), StoreError> {
        let (sender, receiver) = crate::sync::mpsc::channel();
        self.fsync(ino, Box::new(move |result| drop(sender.send(result))));
        receiver.recv().unwrap_or_else(|_| Err(StoreError::Failed("the log has stopped".into())))
    }

    /// Answer all waiting requests with one record. Returns whether there were any.
    pub fn log_step(&self) -> bool {
        let waiting = self.log.take_queue();
        if waiting.is_empty() {
            return false;
        }
        let inos: BTreeSet<u64> = waiting.iter().map(|(ino, _)| *ino).collect();
        let result = self.log_sync(&inos);
        for (_, answer) in waiting {
            answer(result.clone());
        }
        true
    }

    fn log_sync(&self, inos: &BTreeSet<u64>) -> Result<(), StoreError> {
        let _writer = self.log.write_lock.lock();
        self.check_alive()?;
        self.place_large(inos)?;
        let cuts = self.cut(inos)?;
        let mut writes = Vec::new();
        let mut last = None;
        for cut in &cuts {
            match self.log.take(blocks_for(cut.bytes.len()), cut.txg) {
                Some((seq, at, acked, id)) => {
                    writes.push(self.record(cut, seq, at, acked, id));
                    last = Some(seq);
                }
                None => return self.commit_instead(inos),
            }
        }
        let names_blocks = cuts.iter().any(|cut| cut.names_blocks);
        let result = self.write_records(writes, names_blocks);
        match result {
            Ok(()) => {
                last.inspect(|seq| self.log.acknowledge(*seq));
                Ok(())
            }
            Err(error) => {
                self.fail(&error);
                Err(error)
            }
        }
    }

    fn write_records(&self, writes: Vec<(u64, Slice)>, names_blocks: bool) -> Result<(), StoreError> {
        if !writes.is_empty() {
            if names_blocks {
                // A power cut may keep the record and drop what it names: first the one, then the other. And a replica
                // that failed to take or flush what it names is called out before: else recovery, which gives the
                // record to all that the root calls in sync, would trust it again.
                self.mirror.flush()?;
                self.declare_members()?;
            }
            self.mirror.write(writes)?;
            self.mirror.flush()?;
        }
        self.declare_members()
    }

    /// No room in the ring, or too much for it: a commit covers everything that was cut, and more.
    fn commit_instead(&self, inos: &BTreeSet<u64>) -> Result<(), StoreError> {
        self.commit(Force::Always)?;
        inos.iter().try_for_each(|ino| self.check_kept(*ino))
    }

    fn record(&self, cut: &Cut, seq: u64, at: u32, acked: u64, id: u64) -> (u64, Slice) {
        let root = self.root.lock();
        let head = RecordHead {
            log_id: id,
            seq,
            txg: cut.txg,
            root_version: root.root.version,
            acked,
            epoch: root.root.epoch().id,
            blocks: 0,
            used: 0,
            sum: 0,
        };
        drop(root);
        let addr = self.label.geometry.log_at + u64::from(at);
        (addr, Slice::whole(Buf::from_slice(&encode(self.label.volume, addr, &head, &cut.bytes))))
    }

    /// Write what is too large for a record to its place.
    fn place_large(&self, inos: &BTreeSet<u64>) -> Result<(), StoreError> {
        if self.view().groups().all(|group| large_files(group, inos).is_empty()) {
            return Ok(());
        }
        // The view is taken under the lock: a group that was published meanwhile must not be touched.
        let held = self.place_lock.lock();
        let view = self.view();
        if let Some(closing) = &view.closing {
            // Its commit keeps small files inline, and may have cloned their pages already.
            let large = large_files(closing, inos);
            let mut inline = std::collections::HashSet::new();
            for ino in &large {
                if self.inline_size(&view, closing, *ino)?.is_some() {
                    inline.insert(*ino);
                }
            }
            self.place_files(&held, closing, &large, &|ino, block| block == 0 && inline.contains(&ino))?;
        }
        self.place_files(&held, &view.current, &large_files(&view.current, inos), &|_, _| false)?;
        Ok(())
    }

    /// Take everything unlogged, in one instant.
    fn cut(&self, inos: &BTreeSet<u64>) -> Result<Vec<Cut>, StoreError> {
        if let Some(cuts) = self.cut_now(inos) {
            return Ok(cuts);
        }
        // Wait for the commit under way, and let none begin.
        let _settled = self.commit_lock.lock();
        self.check_alive()?;
        self.cut_now(inos).ok_or_else(|| StoreError::Failed("a group is closing, and no commit is under way".into()))
    }

    /// As [`Store::cut`]; `None` if a size that would be logged rests on data of the closing group that no record holds: it
    /// is durable with that group, and cut short it would be wrong once that group is.
    fn cut_now(&self, inos: &BTreeSet<u64>) -> Option<Vec<Cut>> {
        let gate = self.gate.write();
        let view = self.view();
        let rests_on = |closing: &Arc<Group>| {
            let grows = |ino: &u64| closing.with_file(*ino, |file| file.floor != u64::MAX).unwrap_or(false);
            view.current.unlogged_inodes().iter().any(|ino| !inos.contains(ino) && grows(ino))
        };
        if view.closing.as_ref().is_some_and(rests_on) {
            return None;
        }
        let taken: Vec<Taken> =
            view.closing.iter().chain([&view.current]).map(|group| Taken::from(group, inos)).collect();
        drop(gate);
        Some(taken.into_iter().filter_map(Taken::encode).collect())
    }
}

/// Those of `inos` whose pages are too many for a record.
fn large_files(group: &Group, inos: &BTreeSet<u64>) -> Vec<u64> {
    let mut sum = 0;
    let is_large = |ino: &u64| {
        let pages = group.with_file(*ino, |f| f.pages).unwrap_or(0);
        sum += pages;
        pages > INLINE_PAGES || (pages > 0 && sum > 8 * INLINE_PAGES)
    };
    inos.iter().copied().filter(is_large).collect()
}

/// Unlogged changes, not yet encoded.
struct Taken {
    txg: Txg,
    items: Vec<(Key, Option<Value>)>,
    entries: Vec<Entry>,
    pages: Vec<(u64, u64, Slice)>,
}

impl Taken {
    fn from(group: &Group, inos: &BTreeSet<u64>) -> Taken {
        let mut taken = Taken { txg: group.txg, items: group.take_unlogged(), entries: Vec::new(), pages: Vec::new() };
        let logged: std::collections::HashSet<u64> =
            taken.items.iter().filter(|(k, v)| k.kind == ItemKind::Inode && v.is_some()).map(|(k, _)| k.ino).collect();
        let files: BTreeSet<u64> = group.take_unlogged_files().into_iter().chain(inos.iter().copied()).collect();
        for ino in files {
            let synced = inos.contains(&ino);
            let again = group.with_file(ino, |file| taken.file(ino, file, synced)).unwrap_or(false);
            if again && !logged.contains(&ino) {
                // Its size was logged cut short; now all of it is durable.
                let key = Key::inode(ino);
                taken.items.extend(group.get(key).map(|value| (key, value)));
            }
        }
        for (key, value) in &mut taken.items {
            if key.kind == ItemKind::Inode
                && let Some(bytes) = value
                && let Some(cut) = group.with_file(key.ino, |file| cut_size(bytes, file)).flatten()
            {
                *value = Some(cut);
            }
        }
        taken
    }

    /// Take what is unlogged of a file; returns whether its inode must be logged once more.
    fn file(&mut self, ino: u64, file: &mut FileDelta, synced: bool) -> bool {
        for (first, end) in std::mem::take(&mut file.holes_unlogged).iter() {
            self.entries.push(Entry::Hole { ino, first, end });
        }
        // Those beyond the size that is logged would show up when the file grows again.
        let stay = match file.floor.div_ceil(BLOCK as u64) {
            _ if synced => BTreeSet::new(),
            end => file.edges.split_off(&end),
        };
        let edges = std::mem::replace(&mut file.edges, stay);
        for (&block, segment) in &mut file.segments {
            let synced = synced || edges.contains(&block);
            match segment {
                Segment::Reserved { addr, logged } if !*logged => {
                    *logged = true;
                    self.reserved(ino, block, *addr);
                }
                Segment::Placed { addr, sum, logged } if synced && !*logged => {
                    *logged = true;
                    self.placed(ino, block, *addr, *sum);
                }
                Segment::Page { page, logged, .. } if synced && !*logged => {
                    *logged = true;
                    self.pages.push((ino, block, page.clone()));
                }
                _ => {}
            }
        }
        if !synced {
            return false;
        }
        file.floor = u64::MAX;
        std::mem::take(&mut file.floor_logged)
    }

    fn placed(&mut self, ino: u64, block: u64, at: u64, sum: u32) {
        if let Some(Entry::Run { ino: i, first, addr, sums }) = self.entries.last_mut()
            && *i == ino
            && *first + sums.len() as u64 == block
            && *addr + sums.len() as u64 == at
        {
            sums.push(sum);
            return;
        }
        self.entries.push(Entry::Run { ino, first: block, addr: at, sums: vec![sum] });
    }

    fn reserved(&mut self, ino: u64, block: u64, at: u64) {
        if let Some(Entry::Reserved { ino: i, first, addr, blocks }) = self.entries.last_mut()
            && *i == ino
            && *first + u64::from(*blocks) == block
            && *addr + u64::from(*blocks) == at
        {
            *blocks += 1;
            return;
        }
        self.entries.push(Entry::Reserved { ino, first: block, addr: at, blocks: 1 });
    }

    fn encode(self) -> Option<Cut> {
        let mut bytes = Vec::new();
        for (key, value) in self.items {
            match value {
                Some(value) => Entry::Put(key, value.to_vec()).encode(&mut bytes),
                None => Entry::Delete(key).encode(&mut bytes),
            }
        }
        for entry in &self.entries {
            entry.encode(&mut bytes);
        }
        for (ino, block, page) in self.pages {
            let len = page.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
            assert!(len <= BLOCK);
            Entry::Page { ino, block, bytes: page[..len].to_vec() }.encode(&mut bytes);
        }
        let names_blocks = self.entries.iter().any(|entry| matches!(entry, Entry::Run { .. }));
        (!bytes.is_empty()).then_some(Cut { txg: self.txg, bytes, names_blocks })
    }
}

/// The inode's item with no size beyond durable data, if that differs.
fn cut_size(bytes: &Value, file: &mut FileDelta) -> Option<Value> {
    if file.floor == u64::MAX || bytes.len() != INODE {
        return None;
    }
    let mut inode = Inode::decode(bytes).ok()?;
    if !inode.is_file() || inode.size <= file.floor {
        return None;
    }
    inode.size = file.floor;
    file.floor_logged = true;
    Some(inode.encode().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_wraps_and_never_overruns_its_tail() {
        let log = Log::new(64, 1);
        let mut txg = 1;
        let mut held: VecDeque<(u64, u32, u32)> = VecDeque::new();
        for i in 0..500_u32 {
            let blocks = 1 + i * 7 % 13;
            while let Some((seq, at, ..)) = log.take(blocks, txg) {
                for (_, a, b) in &held {
                    assert!(at + blocks <= *a || *a + *b <= at, "overlap");
                }
                assert!(at + blocks <= 64);
                held.push_back((seq, at, blocks));
                txg += 1;
            }
            let start = log.start_after(0);
            assert_eq!(held.front().map(|h| (h.0, h.1)), Some((start.seq, start.at)));
            held.pop_front();
            log.release(held.front().map_or(u64::MAX, |h| h.0));
        }
    }
}
