//! What changed since the last commit: items and file blocks of one transaction group, in memory.
//!
//! *Guarantees*: a [`Group`] answers for each key and each file block whether it says something of it; a [`View`] is a
//! consistent triple of open group, closing group and committed root. Holding a view pins all three.
//! *Assumes*: callers apply the changes of one operation under the gate (`store`), so that a group never holds half
//! of one. *Fails when*: never; memory is bounded by the throttle in `store`.
//! *Order*: shard locks are leaves; at most one is held at a time. *Not here*: I/O.
//!
//! Of a file, a group holds *holes* (ranges emptied since the group began; they hide what older groups and the tree
//! say) and, above them, *segments* by block:
//!
//! | segment | bytes are | on disk |
//! |---|---|---|
//! | `Page` | in memory | nowhere yet |
//! | `Placed` | proven by a checksum | written at its final address, maybe not flushed |
//! | `Reserved` | zeros | an address is set aside |

use super::Value;
use super::space::Span;
use crate::disk::buffer::Slice;
use crate::format::{Addr, ItemKind, Key, Root, Txg};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

const SHARDS: usize = 16;
/// What an item costs beside its value: key, map node, reference counts.
const ITEM_COST: u64 = 120;
/// What a segment costs.
pub const SEGMENT_COST: u64 = 80;

/// A file block that the group says something of.
#[derive(Debug, Clone)]
pub enum Segment {
    /// Bytes in memory.
    Page {
        /// One block; frozen: it is replaced, never changed.
        page: Slice,
        /// Tells this page from one that replaced it while it was being written.
        serial: u64,
        /// A log record holds it.
        logged: bool,
    },
    /// At its place on disk.
    Placed {
        /// Where.
        addr: Addr,
        /// Its checksum.
        sum: u32,
        /// A log record names it.
        logged: bool,
    },
    /// Set aside on disk, reads as zeros.
    Reserved {
        /// Where.
        addr: Addr,
        /// A log record names it.
        logged: bool,
    },
}

/// Disjoint ranges of file blocks: start → end (exclusive).
#[derive(Debug, Clone, Default)]
pub struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Add `start..end`, merging neighbours.
    pub fn insert(&mut self, mut start: u64, mut end: u64) {
        if start >= end {
            return;
        }
        while let Some((s, e)) = self.0.range(..=end).next_back().map(|(s, e)| (*s, *e)) {
            if e < start {
                break;
            }
            self.0.remove(&s);
            start = start.min(s);
            end = end.max(e);
        }
        self.0.insert(start, end);
    }
    /// Whether `block` is in a range.
    pub fn contains(&self, block: u64) -> bool {
        self.0.range(..=block).next_back().is_some_and(|(_, end)| *end > block)
    }
    /// Ranges that meet `start..end`, in order, uncut.
    pub fn meeting(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let first = self.0.range(..=start).next_back().filter(|(_, e)| **e > start).map(|(s, _)| *s).unwrap_or(start);
        self.0.range(first..end).map(|(s, e)| (*s, *e))
    }
    /// All ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter().map(|(s, e)| (*s, *e))
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What a group says of one file.
#[derive(Debug)]
pub struct FileDelta {
    /// Emptied ranges.
    pub holes: Ranges,
    /// Emptied ranges that no log record holds yet.
    pub holes_unlogged: Ranges,
    /// Blocks, above the holes.
    pub segments: BTreeMap<u64, Segment>,
    /// Segments that are pages.
    pub pages: u64,
    /// No byte at or above this offset is durable although the inode's size says more; `u64::MAX`: all is as it says.
    pub floor: u64,
    /// A log record holds the inode with its size cut to `floor`.
    pub floor_logged: bool,
    /// Blocks that belong to a change of size: the next log record must have them, whoever is synced.
    pub edges: BTreeSet<u64>,
    /// How often something was emptied.
    pub punches: u64,
    /// Blocks below this group that the holes hide, once counted.
    pub hidden: Option<u64>,
}

impl Default for FileDelta {
    fn default() -> FileDelta {
        FileDelta {
            holes: Ranges::default(),
            holes_unlogged: Ranges::default(),
            segments: BTreeMap::new(),
            pages: 0,
            floor: u64::MAX,
            floor_logged: false,
            edges: BTreeSet::new(),
            punches: 0,
            hidden: None,
        }
    }
}

/// What a group says of one block.
#[derive(Debug, Clone)]
pub enum Says {
    /// Nothing: ask what is older.
    Nothing,
    /// It is a hole.
    Hole,
    /// This.
    Segment(Segment),
}

impl FileDelta {
    /// What this says of `block`.
    pub fn says(&self, block: u64) -> Says {
        match self.segments.get(&block) {
            Some(segment) => Says::Segment(segment.clone()),
            None if self.holes.contains(block) => Says::Hole,
            None => Says::Nothing,
        }
    }
}

#[derive(Default)]
struct ItemShard {
    map: BTreeMap<Key, Option<Value>>,
    unlogged: HashSet<Key>,
}

#[derive(Default)]
struct FileShard {
    map: HashMap<u64, FileDelta>,
    /// Files with holes or reservations that no log record holds.
    unlogged: HashSet<u64>,
}

/// A transaction group's changes.
pub struct Group {
    /// Its number.
    pub txg: Txg,
    items: [Mutex<ItemShard>; SHARDS],
    files: [Mutex<FileShard>; SHARDS],
    /// Approximate bytes of items and segments.
    pub bytes: AtomicU64,
    /// Items changed and file ranges touched: how much of the tree a commit rewrites.
    pub changes: AtomicU64,
    /// Blocks in `Page` segments.
    pub pages: AtomicU64,
    /// Blocks placed.
    pub placed: AtomicU64,
    /// Change of the number of inodes.
    pub inodes: AtomicI64,
    serial: AtomicU64,
    /// Blocks that were placed or reserved and then replaced: nobody's once this group's root is durable.
    pub orphans: Mutex<Vec<Span>>,
}

impl Group {
    /// An empty group.
    pub fn new(txg: Txg) -> Group {
        Group {
            txg,
            items: Default::default(),
            files: Default::default(),
            bytes: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            pages: AtomicU64::new(0),
            placed: AtomicU64::new(0),
            inodes: AtomicI64::new(0),
            serial: AtomicU64::new(0),
            orphans: Mutex::new(Vec::new()),
        }
    }

    fn shard(ino: u64) -> usize {
        (ino.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60) as usize
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.changes.load(Ordering::Relaxed) == 0
    }

    /// Set or delete an item.
    pub fn put(&self, key: Key, value: Option<Value>) {
        self.put_all(vec![(key, value)]);
    }

    /// Set or delete items, those of one inode at once: who lists a directory never sees half of a rename in it.
    pub fn put_all(&self, mut items: Vec<(Key, Option<Value>)>) {
        let size = |value: &Option<Value>| ITEM_COST + value.as_ref().map_or(0, |v| v.len() as u64);
        items.sort_by_key(|(key, _)| Group::shard(key.ino));
        let (mut new, mut come, mut gone) = (0, 0, 0);
        let mut items = items.into_iter().peekable();
        while let Some((first, _)) = items.peek() {
            let index = Group::shard(first.ino);
            let mut shard = self.items[index].lock();
            while let Some((key, value)) = items.next_if(|(key, _)| Group::shard(key.ino) == index) {
                come += size(&value);
                match shard.map.insert(key, value) {
                    None => new += 1,
                    Some(old) => gone += size(&old),
                }
                shard.unlogged.insert(key);
            }
        }
        self.changes.fetch_add(new, Ordering::Relaxed);
        self.bytes.fetch_add(come, Ordering::Relaxed);
        self.bytes.fetch_sub(gone, Ordering::Relaxed);
    }

    /// `Some`: the group says that the item has this value (or is gone).
    pub fn get(&self, key: Key) -> Option<Option<Value>> {
        self.items[Group::shard(key.ino)].lock().map.get(&key).cloned()
    }

    /// Up to `max` changed items in `from..end`, in order.
    pub fn range(&self, from: Key, end: Key, max: usize) -> Vec<(Key, Option<Value>)> {
        if from >= end {
            return Vec::new();
        }
        let take = |shard: &Mutex<ItemShard>| -> Vec<(Key, Option<Value>)> {
            shard.lock().map.range(from..end).take(max).map(|(k, v)| (*k, v.clone())).collect()
        };
        if from.ino == end.ino {
            return take(&self.items[Group::shard(from.ino)]);
        }
        let mut all: Vec<_> = self.items.iter().flat_map(take).collect();
        all.sort_unstable_by_key(|(k, _)| *k);
        all.truncate(max);
        all
    }

    /// Take the changed items out of the unlogged set, with their values. The caller holds the gate.
    pub fn take_unlogged(&self) -> Vec<(Key, Option<Value>)> {
        let mut out = Vec::new();
        for shard in &self.items {
            let mut shard = shard.lock();
            let keys = std::mem::take(&mut shard.unlogged);
            out.extend(keys.into_iter().map(|key| (key, shard.map[&key].clone())));
        }
        out
    }

    /// Files whose inode has changed, and no record holds that.
    pub fn unlogged_inodes(&self) -> Vec<u64> {
        let inodes = |shard: &Mutex<ItemShard>| -> Vec<u64> {
            shard.lock().unlogged.iter().filter(|key| key.kind == ItemKind::Inode).map(|key| key.ino).collect()
        };
        self.items.iter().flat_map(inodes).collect()
    }

    /// Files with holes or reservations that no record holds; the caller logs them and holds the gate.
    pub fn take_unlogged_files(&self) -> Vec<u64> {
        self.files.iter().flat_map(|s| std::mem::take(&mut s.lock().unlogged)).collect()
    }

    /// All changed items in order: for the commit. Nobody changes them any more.
    pub fn all_items(&self) -> Vec<(Key, Option<Value>)> {
        let mut out: Vec<_> = self
            .items
            .iter()
            .flat_map(|s| s.lock().map.iter().map(|(k, v)| (*k, v.clone())).collect::<Vec<_>>())
            .collect();
        out.sort_unstable_by_key(|(k, _)| *k);
        out
    }

    /// Run `f` on what the group says of a file, if it says anything.
    pub fn with_file<T>(&self, ino: u64, f: impl FnOnce(&mut FileDelta) -> T) -> Option<T> {
        self.files[Group::shard(ino)].lock().map.get_mut(&ino).map(f)
    }

    /// Files that the group says something of, with the number of their pages.
    pub fn files(&self) -> Vec<(u64, u64)> {
        self.files
            .iter()
            .flat_map(|s| s.lock().map.iter().map(|(ino, f)| (*ino, f.pages)).collect::<Vec<_>>())
            .collect()
    }

    /// A file gets `size` bytes, and pages that are zeros from its old or new end on: those go into the log with the
    /// size, which without them would show again what was cut off before. Returns by how much the number of pages grew.
    pub fn resize(&self, ino: u64, size: u64, edges: Vec<(u64, Slice)>) -> i64 {
        let blocks: Vec<u64> = edges.iter().map(|(block, _)| *block).collect();
        let change = if edges.is_empty() { 0 } else { self.put_pages(ino, edges, u64::MAX) };
        let mut files = self.files[Group::shard(ino)].lock();
        if let Some(file) = files.map.get_mut(&ino) {
            if size <= file.floor {
                file.floor = u64::MAX;
            }
            if !blocks.is_empty() {
                file.edges.extend(blocks);
                files.unlogged.insert(ino);
            }
        }
        change
    }

    /// Put pages of a file. Returns by how much the number of pages grew. `size_before`: size of the file before;
    /// `u64::MAX` if it does not grow by them.
    pub fn put_pages(&self, ino: u64, pages: Vec<(u64, Slice)>, size_before: u64) -> i64 {
        let mut orphans = Vec::new();
        let mut change = 0;
        let mut new = 0;
        let mut files = self.files[Group::shard(ino)].lock();
        let file = files.map.entry(ino).or_default();
        for (block, page) in pages {
            let end = (block + 1).saturating_mul(crate::format::BLOCK as u64);
            if end > size_before {
                file.floor = file.floor.min(size_before);
            }
            let serial = self.serial.fetch_add(1, Ordering::Relaxed);
            match file.segments.insert(block, Segment::Page { page, serial, logged: false }) {
                Some(Segment::Page { .. }) => {}
                Some(Segment::Placed { addr, .. } | Segment::Reserved { addr, .. }) => {
                    orphans.push(Span { addr, blocks: 1 });
                    change += 1;
                }
                None => {
                    change += 1;
                    new += 1;
                }
            }
        }
        file.pages = file.pages.strict_add_signed(change);
        drop(files);
        self.changes.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(new * SEGMENT_COST, Ordering::Relaxed);
        self.add_pages(change);
        self.orphans.lock().extend(orphans);
        change
    }

    /// Empty `first..end` of a file. Returns by how much the number of pages grew (it shrinks).
    pub fn punch(&self, ino: u64, first: u64, end: u64) -> i64 {
        let mut orphans = Vec::new();
        let mut gone = 0;
        let mut files = self.files[Group::shard(ino)].lock();
        let file = files.map.entry(ino).or_default();
        file.holes.insert(first, end);
        file.punches += 1;
        file.hidden = None;
        file.holes_unlogged.insert(first, end);
        let hit: Vec<u64> = file.segments.range(first..end).map(|(b, _)| *b).collect();
        for block in &hit {
            match file.segments.remove(block) {
                Some(Segment::Page { .. }) => gone += 1,
                Some(Segment::Placed { addr, .. } | Segment::Reserved { addr, .. }) => {
                    orphans.push(Span { addr, blocks: 1 })
                }
                None => {}
            }
        }
        file.pages -= gone;
        if end == u64::MAX && first.saturating_mul(crate::format::BLOCK as u64) <= file.floor {
            file.floor = u64::MAX;
        }
        files.unlogged.insert(ino);
        drop(files);
        self.changes.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(SEGMENT_COST, Ordering::Relaxed);
        self.bytes
            .fetch_sub((hit.len() as u64 * SEGMENT_COST).min(self.bytes.load(Ordering::Relaxed)), Ordering::Relaxed);
        self.add_pages(-(gone as i64));
        self.orphans.lock().extend(orphans);
        -(gone as i64)
    }

    /// Put blocks that stand on disk already (reservations, replay). They must be new to the group.
    pub fn put_segment(&self, ino: u64, block: u64, segment: Segment) -> i64 {
        let is_page = matches!(segment, Segment::Page { .. });
        let mut files = self.files[Group::shard(ino)].lock();
        let file = files.map.entry(ino).or_default();
        let old = file.segments.insert(block, segment);
        let was_page = matches!(old, Some(Segment::Page { .. }));
        let change = i64::from(is_page) - i64::from(was_page);
        file.pages = file.pages.strict_add_signed(change);
        files.unlogged.insert(ino);
        drop(files);
        if let Some(Segment::Placed { addr, .. } | Segment::Reserved { addr, .. }) = old {
            self.orphans.lock().push(Span { addr, blocks: 1 });
        }
        self.changes.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(SEGMENT_COST, Ordering::Relaxed);
        self.add_pages(change);
        change
    }

    /// Pages of a file, up to `max`, from block `from` on: what is to be placed.
    pub fn pages_of(&self, ino: u64, from: u64, max: usize) -> Vec<(u64, Slice, u64)> {
        self.with_file(ino, |file| {
            file.segments
                .range(from..)
                .filter_map(|(block, segment)| match segment {
                    Segment::Page { page, serial, .. } => Some((*block, page.clone(), *serial)),
                    _ => None,
                })
                .take(max)
                .collect()
        })
        .unwrap_or_default()
    }

    /// The page with `serial` now stands at `addr`. `false`: it was replaced meanwhile, the block is nobody's.
    pub fn page_placed(&self, ino: u64, block: u64, serial: u64, addr: Addr, sum: u32) -> bool {
        let placed = self.with_file(ino, |file| match file.segments.get_mut(&block) {
            Some(segment @ Segment::Page { .. }) => {
                let Segment::Page { serial: now, logged, .. } = segment else { unreachable!("matched above") };
                if *now != serial {
                    return false;
                }
                // A record that holds the bytes keeps them durable; naming the block again is not needed.
                let logged = *logged;
                *segment = Segment::Placed { addr, sum, logged };
                file.pages -= 1;
                true
            }
            _ => false,
        });
        let placed = placed == Some(true);
        if placed {
            self.add_pages(-1);
            self.placed.fetch_add(1, Ordering::Relaxed);
        } else {
            self.orphans.lock().push(Span { addr, blocks: 1 });
        }
        placed
    }

    fn add_pages(&self, change: i64) {
        if change >= 0 {
            self.pages.fetch_add(change as u64, Ordering::Relaxed);
        } else {
            self.pages.fetch_sub(change.unsigned_abs(), Ordering::Relaxed);
        }
    }
}

/// The state that the last commit made durable. Holding it pins every block that it reaches.
#[derive(Debug)]
pub struct Committed {
    /// Its root.
    pub root: Root,
    /// It holds no item of an inode with this number or a higher one.
    pub fence_ino: u64,
}

/// What readers look at: newest first.
pub struct View {
    /// Takes new changes.
    pub current: Arc<Group>,
    /// Is being committed.
    pub closing: Option<Arc<Group>>,
    /// Is durable.
    pub committed: Arc<Committed>,
}

impl View {
    /// The groups, newest first.
    pub fn groups(&self) -> impl Iterator<Item = &Arc<Group>> {
        std::iter::once(&self.current).chain(self.closing.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::buffer::Buf;

    fn page(byte: u8) -> Slice {
        let mut buf = Buf::zeroed(4096);
        buf.fill(byte);
        Slice::whole(buf)
    }

    #[test]
    fn ranges_merge_and_answer() {
        let mut ranges = Ranges::default();
        ranges.insert(10, 20);
        ranges.insert(30, 40);
        ranges.insert(5, 8);
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [(5, 8), (10, 20), (30, 40)]);
        ranges.insert(8, 31);
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [(5, 40)]);
        assert!(ranges.contains(5) && ranges.contains(39) && !ranges.contains(40));
        assert_eq!(ranges.meeting(39, 50).count(), 1);
        assert_eq!(ranges.meeting(40, 50).count(), 0);
    }

    #[test]
    fn a_page_replaced_while_it_was_written_stays_a_page() {
        let group = Group::new(1);
        group.put_pages(7, vec![(0, page(1))], 4096);
        let (_, _, serial) = group.pages_of(7, 0, 10)[0].clone();
        group.put_pages(7, vec![(0, page(2))], 4096);
        assert!(!group.page_placed(7, 0, serial, 500, 9));
        assert_eq!(group.orphans.lock().len(), 1);
        assert_eq!(group.pages.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn punch_hides_and_forgets_the_floor() {
        let group = Group::new(1);
        group.put_pages(7, vec![(3, page(1))], 100);
        assert_eq!(group.with_file(7, |f| f.floor), Some(100));
        group.punch(7, 0, u64::MAX);
        assert_eq!(group.with_file(7, |f| (f.floor, f.pages)), Some((u64::MAX, 0)));
        assert!(matches!(group.with_file(7, |f| f.says(3)), Some(Says::Hole)));
    }
}
