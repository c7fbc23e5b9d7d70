//! The store: items and file data, made durable. One call each to read, to begin a change, to make it durable.
//!
//! *Guarantees*: a [`Transaction`] joins its group whole or not at all; what `fsync` answered survives a power cut and
//! the loss of any replica but the last; what [`Store::sync`] answered is in a durable root. No unproven byte leaves
//! (invariant 1). *Assumes*: callers exclude each other where their changes do not commute (fs locks), from their
//! reads until `commit` returned; keys and values obey `format::item`.
//! *Fails when*: no space (before anything changed); a block is lost on all replicas (that block only); no replica
//! takes writes (latched until the next mount).
//! *Order*: commit lock → place lock → gate → view → shards; root lock and space locks are taken under any of them but
//! the shards'. Nothing that commits waits for an operation that waits for a disk: [`Store::begin`] waits *before*
//! joining, joining is memory only (trap 3).
//! *Not here*: names, permissions, threads (`store::engine` starts them; without it the caller drives).
//!
//! A read asks: open group, closing group, committed tree. All three are pinned by the [`View`] that it holds.

mod ahead;
pub mod begin;
pub mod check;
pub mod commit;
pub mod convert;
pub mod create;
pub mod delta;
pub mod engine;
pub mod error;
pub mod file;
pub mod history;
pub mod log;
pub mod place;
mod reach;
pub mod recover;
mod risk;
pub mod space;
pub mod tree;
pub mod walk;

pub use error::StoreError;

use crate::disk::Mirror;
use crate::disk::buffer::Slice;
use crate::format::node::{self, Node};
use crate::format::{BlockPtr, Key, Label, Uuid, VolumeSeed};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Condvar, Mutex, RwLock};
use crate::world::World;
use delta::{Committed, Group, Segment, View};
use quick_cache::sync::Cache;
use space::{Class, Space, Span};
use std::sync::Arc;
use tree::{CachedNode, NodeStore};

/// Value of an item.
pub type Value = Arc<[u8]>;

/// Inode numbers that a root sets aside beyond those handed out; a crash skips what was not used.
pub const INO_RANGE: u64 = 1 << 20;

/// How the store behaves; all bounds are memory bounds.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Answer reads only; a log is replayed in memory.
    pub read_only: bool,
    /// Most blocks of file data in memory, open and closing group together.
    pub pages_max: u64,
    /// Blocks of file data from which write-out begins.
    pub pages_start: u64,
    /// Most bytes of items and segments in the open group.
    pub items_bytes_max: u64,
    /// Placed blocks after which a group is closed.
    pub placed_max: u64,
    /// Nodes in the cache (about 5 KiB each).
    pub cache_nodes: usize,
    /// Retained roots.
    pub window: u64,
    /// Bytes a second that a resync moves at most; 0: as fast as it goes beside others.
    pub resync_rate: u64,
}

impl Default for StoreOptions {
    fn default() -> StoreOptions {
        StoreOptions {
            read_only: false,
            pages_max: 12_288,
            pages_start: 2_048,
            items_bytes_max: 24 << 20,
            placed_max: 131_072,
            cache_nodes: 8_192,
            window: 3,
            resync_rate: 0,
        }
    }
}

/// What a change will need at most.
#[derive(Debug, Clone, Copy, Default)]
pub struct Need {
    /// Items put or deleted.
    pub items: u32,
    /// File blocks written or reserved.
    pub data_blocks: u64,
    /// It frees space or only changes attributes: it may use the reserve.
    pub may_use_reserve: bool,
}

/// Space in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpaceInfo {
    /// Of the volume.
    pub blocks: u64,
    /// For new data.
    pub free: u64,
    /// What the next commits give back beside that; whoever needs it waits for them.
    pub waiting: u64,
    /// In use, waiting for reuse and reserved.
    pub used: u64,
    /// Inodes in use.
    pub inodes: u64,
}

/// The store.
pub struct Store {
    label: Label,
    world: Arc<dyn World>,
    mirror: Arc<Mirror>,
    seed: VolumeSeed,
    space: Space,
    cache: Cache<BlockPtr, Arc<CachedNode>>,
    ahead: Mutex<ahead::Ahead>,
    options: StoreOptions,
    gate: RwLock<()>,
    view: RwLock<Arc<View>>,
    commit_lock: Mutex<commit::CommitState>,
    root: Mutex<commit::RootState>,
    /// The newest durable root, for reports: asking waits for no disk.
    named: Mutex<Arc<crate::format::Root>>,
    place_lock: Mutex<()>,
    log: log::Log,
    next_ino: AtomicU64,
    mounts: AtomicU64,
    inodes: AtomicU64,
    pages: AtomicU64,
    promised: AtomicU64,
    failed: Mutex<Option<String>>,
    left_out: Mutex<reach::LeftOut>,
    is_failed: AtomicBool,
    room: (Mutex<u64>, Condvar),
    engine: engine::Signals,
}

impl Store {
    /// Identity and geometry.
    pub fn label(&self) -> &Label {
        &self.label
    }
    /// Time and randomness.
    pub fn world(&self) -> &dyn World {
        &*self.world
    }
    /// The mirror below.
    pub fn mirror(&self) -> &Arc<Mirror> {
        &self.mirror
    }
    /// The allocator.
    pub fn allocator(&self) -> &Space {
        &self.space
    }
    /// Options in force.
    pub fn options(&self) -> &StoreOptions {
        &self.options
    }
    /// Mounts for writing so far, this one included.
    pub fn mount_count(&self) -> u64 {
        self.mounts.load(Ordering::Relaxed)
    }
    /// The newest durable root.
    pub fn durable_root(&self) -> crate::format::Root {
        self.root.lock().root.clone()
    }
    /// A consistent state, pinned while it is held.
    pub fn view(&self) -> Arc<View> {
        self.view.read().clone()
    }

    /// Value of the item with `key`.
    pub fn get(&self, key: Key) -> Result<Option<Value>, StoreError> {
        let view = self.view();
        for group in view.groups() {
            if let Some(value) = group.get(key) {
                return Ok(value);
            }
        }
        self.committed_item(&view.committed, key)
    }

    /// Up to `max` items in `from..end`, in rising order.
    pub fn scan(&self, from: Key, end: Key, max: usize) -> Result<Vec<(Key, Value)>, StoreError> {
        let view = self.view();
        let mut out = Vec::new();
        let mut from = from;
        let mut cursor = self.committed_items(&view.committed, from, end);
        let mut below = cursor.next()?;
        while out.len() < max && from < end {
            // One stretch: as far as every group's answer reaches.
            let mut stretch_end = end;
            let mut changed = std::collections::BTreeMap::new();
            for group in view.groups() {
                let part = group.range(from, end, max);
                if part.len() == max {
                    stretch_end = stretch_end.min(part[max - 1].0.next());
                }
                for (key, value) in part {
                    changed.entry(key).or_insert(value);
                }
            }
            let mut changed = changed.into_iter().take_while(|(k, _)| *k < stretch_end).peekable();
            while out.len() < max {
                let above = changed.peek().map(|(k, _)| *k);
                let under = below.as_ref().map(|(k, _)| *k).filter(|k| *k < stretch_end);
                match (above, under) {
                    (None, None) => break,
                    (Some(a), u) if u.is_none_or(|u| a <= u) => {
                        let (key, value) = changed.next().expect("peeked");
                        out.extend(value.map(|v| (key, v)));
                        // No further than is asked for: what comes next may be lost.
                        if u == Some(a) && out.len() < max {
                            below = cursor.next()?;
                        }
                    }
                    _ => {
                        out.extend(below.take());
                        if out.len() < max {
                            below = cursor.next()?;
                        }
                    }
                }
            }
            from = stretch_end;
        }
        Ok(out)
    }

    /// A number that was never an inode's, also not before a crash.
    pub fn new_ino(&self) -> u64 {
        self.next_ino.fetch_add(1, Ordering::Relaxed)
    }

    /// Space as `statfs(2)` shows it.
    pub fn space(&self) -> SpaceInfo {
        let blocks = self.space.total();
        let taken = self.taken(self.reserve_blocks());
        // A container cannot grow beyond what is free below the fullest replica, unless that one is left behind then.
        let below =
            self.mirror.health().into_iter().filter(|h| h.state.takes_writes()).filter_map(|h| h.bytes_free_below);
        let below = if self.mirror.leaves_full() { below.max() } else { below.min() };
        let below = below.filter(|_| self.label.grows).map_or(u64::MAX, |bytes| bytes / crate::format::BLOCK as u64);
        let free = self.space.free().min(self.space.free_backed().saturating_add(below)).saturating_sub(taken);
        // Something always waits: what each group rewrites.
        let waiting = self.view().committed.root.dead_blocks().saturating_sub(self.reserve_blocks());
        SpaceInfo { blocks, free, waiting, used: blocks - free.min(blocks), inodes: counted(&self.inodes) }
    }

    /// The newest durable root, without waiting for a disk.
    pub fn named_root(&self) -> Arc<crate::format::Root> {
        self.named.lock().clone()
    }

    /// Blocks in use, what waits for reuse and the bitmaps included.
    pub fn allocated(&self) -> u64 {
        self.space.total().saturating_sub(self.space.free())
    }

    /// Blocks kept back so that deletes and repair stay possible: 5 %, 2 MiB to 128 MiB.
    fn reserve_blocks(&self) -> u64 {
        (self.space.total() / 20).clamp(512.min(self.space.total() / 8), 32_768)
    }

    /// Free blocks that are spoken for: pages without a place, promises, nodes that the open groups will rewrite.
    fn taken(&self, reserve: u64) -> u64 {
        let view = self.view();
        let nodes: u64 = view.groups().map(|g| g.changes.load(Ordering::Relaxed) + counted(&g.bytes) / 2048).sum();
        // A rewritten node is counted once however many changes fall on it; past the reserve a commit is forced.
        counted(&self.pages) + self.promised.load(Ordering::Relaxed) + reserve + nodes.min(2 * reserve)
    }

    /// The reason why no change is taken, if there is one.
    pub fn check_alive(&self) -> Result<(), StoreError> {
        if self.is_failed.load(Ordering::Acquire) {
            let why = self.failed.lock().clone().unwrap_or_default();
            return Err(StoreError::Failed(why));
        }
        Ok(())
    }

    /// Latch: no change is taken from now on.
    pub(crate) fn fail(&self, error: &StoreError) {
        let mut failed = self.failed.lock();
        if failed.is_none() {
            ::log::error!("the volume takes no more changes: {error}");
            *failed = Some(error.to_string());
            self.is_failed.store(true, Ordering::Release);
        }
        drop(failed);
        self.signal_room();
    }

    pub(crate) fn signal_room(&self) {
        *self.room.0.lock() += 1;
        self.room.1.notify_all();
    }

    /// The checker counted the inodes: the next root says so.
    pub fn correct_inodes(&self, count: u64) {
        self.inodes.store(count, Ordering::Relaxed);
        self.root.lock().root.inodes = count;
    }

    /// The checker found inodes at or above the next number.
    pub fn correct_next_ino(&self, next: u64) {
        self.next_ino.fetch_max(next, Ordering::Relaxed);
    }

    /// The node at `ptr`, which must be at `level`, if it is in memory.
    pub(crate) fn cached_node(&self, level: u8, ptr: &BlockPtr) -> Option<Arc<CachedNode>> {
        self.cache.get(ptr).filter(|found| matches!(found.node, Node::Leaf(_)) == (level == 0))
    }

    /// Remember that a block of metadata was written, so that reading it costs nothing.
    pub(crate) fn remember(&self, ptr: &BlockPtr, block: Vec<u8>, level: u8) {
        if let Ok(node) = node::decode(&block, self.label.volume, ptr, level) {
            self.cache.insert(*ptr, Arc::new(CachedNode { block, node }));
        }
    }
}

impl NodeStore for Store {
    fn volume(&self) -> Uuid {
        self.label.volume
    }
    fn read_node(&self, level: u8, ptr: &BlockPtr) -> Result<Arc<CachedNode>, StoreError> {
        if let Some(found) = self.cached_node(level, ptr) {
            return Ok(found);
        }
        if !self.label.geometry.holds_data(ptr.addr, 1) {
            let corrupt = crate::format::Corrupt { what: "tree node", rule: "stands inside a zone" };
            return Err(StoreError::Corrupt { addr: ptr.addr, corrupt });
        }
        let block = self.mirror.read(ptr.addr, &[ptr.sum])?.to_vec();
        let node = node::decode(&block, self.label.volume, ptr, level)
            .map_err(|corrupt| StoreError::Corrupt { addr: ptr.addr, corrupt })?;
        let found = Arc::new(CachedNode { block, node });
        self.cache.insert(*ptr, found.clone());
        Ok(found)
    }
    fn will_read_leaf(&self, parent: crate::format::Addr, children: &[(Key, BlockPtr)], i: usize) {
        self.read_ahead(parent, children, i);
    }
}

enum FileChange {
    Pages { ino: u64, pages: Vec<(u64, Slice)>, size_before: u64 },
    Resize { ino: u64, size: u64, edges: Vec<(u64, Slice)> },
    Punch { ino: u64, first: u64, end: u64 },
    Reserve { ino: u64, blocks: Vec<(u64, u64)> },
}

/// A change being put together; dropped without [`Transaction::commit`], nothing happened.
pub struct Transaction<'a> {
    store: &'a Store,
    promised: u64,
    items: Vec<(Key, Option<Value>)>,
    files: Vec<FileChange>,
    inodes: i64,
}

impl Transaction<'_> {
    /// Set an item.
    pub fn put(&mut self, key: Key, value: Vec<u8>) {
        assert!(value.len() <= crate::format::item::VALUE_MAX, "value too large");
        self.items.push((key, Some(value.into())));
    }
    /// Delete an item; it need not exist.
    pub fn delete(&mut self, key: Key) {
        self.items.push((key, None));
    }
    /// Write whole file blocks. `size_before`: size of the file before (`u64::MAX`: it does not grow by them); no size
    /// beyond durable data is ever logged.
    pub fn write_pages(&mut self, ino: u64, pages: Vec<(u64, Slice)>, size_before: u64) {
        assert!(pages.iter().all(|(_, p)| p.len() == crate::format::BLOCK));
        self.files.push(FileChange::Pages { ino, pages, size_before });
    }
    /// The file gets `size` bytes, whatever is written; `edges` are whole file blocks that are zeros from its old or
    /// new end on, and logged with the size.
    pub fn resize(&mut self, ino: u64, size: u64, edges: Vec<(u64, Slice)>) {
        assert!(edges.iter().all(|(_, p)| p.len() == crate::format::BLOCK));
        self.files.push(FileChange::Resize { ino, size, edges });
    }
    /// File blocks `first..end` become a hole; `u64::MAX` is the end of all files.
    pub fn punch(&mut self, ino: u64, first: u64, end: u64) {
        if first < end {
            self.files.push(FileChange::Punch { ino, first, end });
        }
    }
    /// Holes in the range become blocks that are set aside and read as zeros. May read the disk.
    pub fn reserve(&mut self, ino: u64, first: u64, blocks: u64) -> Result<(), StoreError> {
        let mut holes = Vec::new();
        let mut at = first;
        while at < first + blocks {
            let hole = self.store.next_hole(ino, at)?;
            if hole >= first + blocks {
                break;
            }
            let end = self.store.next_data(ino, hole)?.unwrap_or(u64::MAX).min(first + blocks);
            holes.extend(hole..end);
            at = end;
        }
        let mut placed = Vec::with_capacity(holes.len());
        let mut rest = &holes[..];
        while !rest.is_empty() {
            match self.store.space.alloc(&self.store.mirror, Class::Data, rest.len() as u32) {
                Ok(span) => {
                    let (now, later) = rest.split_at(span.blocks as usize);
                    placed.extend(now.iter().zip(span.addr..).map(|(b, a)| (*b, a)));
                    rest = later;
                }
                Err(error) => {
                    self.files.push(FileChange::Reserve { ino, blocks: placed });
                    self.give_back();
                    return Err(error);
                }
            }
        }
        self.promised = self.release_promise(placed.len() as u64);
        self.files.push(FileChange::Reserve { ino, blocks: placed });
        Ok(())
    }
    /// Count inodes made (positive) and gone.
    pub fn count_inodes(&mut self, change: i64) {
        self.inodes += change;
    }

    fn release_promise(&self, blocks: u64) -> u64 {
        let less = blocks.min(self.promised);
        self.store.promised.fetch_sub(less, Ordering::Relaxed);
        self.promised - less
    }

    fn give_back(&mut self) {
        for change in self.files.drain(..) {
            if let FileChange::Reserve { blocks, .. } = change {
                for (_, addr) in blocks {
                    let _ = self.store.space.forget(&self.store.mirror, Span { addr, blocks: 1 });
                }
            }
        }
    }

    /// Join the open group: memory only, atomic, infallible. [`Transaction::prepare`] has said that it can be applied.
    pub fn commit(mut self) {
        let store = self.store;
        let items = std::mem::take(&mut self.items);
        let files = std::mem::take(&mut self.files);
        let gate = store.gate.read();
        let group = store.view.read().current.clone();
        group.put_all(items);
        for change in files {
            let pages = match change {
                FileChange::Pages { ino, pages, size_before } => group.put_pages(ino, pages, size_before),
                FileChange::Resize { ino, size, edges } => group.resize(ino, size, edges),
                FileChange::Punch { ino, first, end } => group.punch(ino, first, end),
                FileChange::Reserve { ino, blocks } => blocks
                    .into_iter()
                    .map(|(block, addr)| group.put_segment(ino, block, Segment::Reserved { addr, logged: false }))
                    .sum(),
            };
            add_signed(&store.pages, pages);
        }
        group.inodes.fetch_add(self.inodes, Ordering::Relaxed);
        add_signed(&store.inodes, self.inodes);
        drop(gate);
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        self.give_back();
        self.store.promised.fetch_sub(self.promised, Ordering::Relaxed);
    }
}

/// Add a signed number to a counter.
pub(crate) fn add_signed(counter: &AtomicU64, change: i64) {
    if change >= 0 {
        counter.fetch_add(change as u64, Ordering::Relaxed);
    } else {
        counter.fetch_sub(change.unsigned_abs(), Ordering::Relaxed);
    }
}

/// A counter from which one thread may take what another one has put into the group and has yet to add: below zero, for a
/// moment.
pub(crate) fn counted(counter: &AtomicU64) -> u64 {
    (counter.load(Ordering::Relaxed) as i64).max(0) as u64
}

/// Parts of a store that is being opened.
pub(crate) struct Opening {
    pub label: Label,
    pub world: Arc<dyn World>,
    pub mirror: Arc<Mirror>,
    pub options: StoreOptions,
    pub roots: commit::RootState,
    pub log: log::Log,
}

impl Store {
    /// A store on `roots.root`, with an empty open group.
    pub(crate) fn assemble(opening: Opening) -> Store {
        let Opening { label, world, mirror, options, roots, log } = opening;
        let root = roots.root.clone();
        // A root that is not clean has set a range aside beyond what was handed out when its state was closed.
        let aside = if root.clean { 0 } else { INO_RANGE };
        let committed = Arc::new(Committed { root: root.clone(), fence_ino: root.next_ino.saturating_sub(aside) });
        let commit_state = commit::CommitState::new(&committed);
        let view = View { current: Arc::new(Group::new(root.txg + 1)), closing: None, committed };
        Store {
            seed: VolumeSeed::new(label.volume),
            space: Space::new(&label.geometry, label.volume, label.grows, &root),
            cache: Cache::new(options.cache_nodes),
            ahead: Mutex::default(),
            gate: RwLock::new(()),
            view: RwLock::new(Arc::new(view)),
            commit_lock: Mutex::new(commit_state),
            named: Mutex::new(Arc::new(roots.root.clone())),
            root: Mutex::new(roots),
            place_lock: Mutex::new(()),
            log,
            next_ino: AtomicU64::new(root.next_ino),
            mounts: AtomicU64::new(root.mount_count),
            inodes: AtomicU64::new(root.inodes),
            pages: AtomicU64::new(0),
            promised: AtomicU64::new(0),
            failed: Mutex::new(None),
            left_out: Mutex::default(),
            is_failed: AtomicBool::new(false),
            room: (Mutex::new(0), Condvar::new()),
            engine: engine::Signals::default(),
            label,
            world,
            mirror,
            options,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
