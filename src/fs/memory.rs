//! The store as a map: a test double.
//!
//! *Guarantees*: the store's contract, without durability: transactions apply at once when they are committed.
//! Checks what callers promise: nobody commits without room, changes of one key within a transaction count once.
//! *Assumes*: nothing. *Fails when*: told to ([`MemoryStore::set_free`], [`MemoryStore::fail_syncs`]).
//! *Order*: one mutex. *Not here*: anything real.

use super::api::{StoreApi, Synced, TransactionApi};
use crate::disk::buffer::{Buf, Slice};
use crate::format::item::Time;
use crate::format::{BLOCK, Corrupt, FIRST_INO, ItemKind, Key};
use crate::store::{Need, SpaceInfo, StoreError, Value};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use crate::world::{Seeded, World};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

#[derive(Default, Clone)]
struct Content {
    items: BTreeMap<Key, Value>,
    /// Blocks of files; `None`: reserved.
    blocks: BTreeMap<(u64, u64), Option<Slice>>,
    inodes: i64,
}

/// A store in memory.
pub struct MemoryStore {
    content: Mutex<Content>,
    world: Seeded,
    inos: AtomicU64,
    blocks: AtomicU64,
    fails_syncs: AtomicBool,
    read_only: AtomicBool,
    /// How far the clock has been put forward, s.
    passed: AtomicU64,
    lost: Mutex<BTreeSet<Key>>,
    refused_begins: AtomicU64,
    on_read: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

enum Step {
    Put(Key, Vec<u8>),
    Delete(Key),
    Write(u64, Vec<(u64, Slice)>),
    Punch(u64, u64, u64),
    Reserve(u64, u64, u64),
    Inodes(i64),
}

struct MemoryTransaction<'a> {
    store: &'a MemoryStore,
    need: Need,
    steps: Vec<Step>,
}

impl MemoryStore {
    pub fn new(seed: u64, root: Vec<(Key, Vec<u8>)>) -> MemoryStore {
        let items = root.into_iter().map(|(key, value)| (key, Value::from(value))).collect();
        MemoryStore {
            content: Mutex::new(Content { items, blocks: BTreeMap::new(), inodes: 1 }),
            world: Seeded::new(seed),
            inos: AtomicU64::new(FIRST_INO),
            blocks: AtomicU64::new(1 << 20),
            fails_syncs: AtomicBool::new(false),
            read_only: AtomicBool::new(false),
            passed: AtomicU64::new(0),
            lost: Mutex::default(),
            refused_begins: AtomicU64::new(0),
            on_read: Mutex::default(),
        }
    }
    /// Leave room for `free` more blocks.
    pub fn set_free(&self, free: u64) {
        self.blocks.store(self.content.lock().blocks.len() as u64 + free, SeqCst);
    }
    /// The next change must read the disk before it can join; `work` is done meanwhile.
    pub fn on_read(&self, work: impl FnOnce() + Send + 'static) {
        *self.on_read.lock() = Some(Box::new(work));
    }
    /// The next `count` changes find no room, whoever asks.
    pub fn refuse_begins(&self, count: u64) {
        self.refused_begins.store(count, SeqCst);
    }
    pub fn fail_syncs(&self, fails: bool) {
        self.fails_syncs.store(fails, SeqCst);
    }
    pub fn set_read_only(&self) {
        self.read_only.store(true, SeqCst);
    }
    /// Put the clock forward.
    pub fn pass(&self, seconds: u64) {
        self.passed.fetch_add(seconds, SeqCst);
    }
    /// Set an item behind everybody's back.
    pub fn put(&self, key: Key, value: Vec<u8>) {
        self.content.lock().items.insert(key, value.into());
    }
    /// From now on the item at `key` (it need not exist) cannot be read.
    pub fn lose(&self, key: Key) {
        self.lost.lock().insert(key);
    }
    fn check_lost(&self, from: Key, end: Key) -> Result<(), StoreError> {
        let corrupt = Corrupt { what: "item", rule: "was not lost by a test" };
        match self.lost.lock().range(from..end).next() {
            Some(key) => Err(StoreError::Corrupt { addr: key.ino, corrupt }),
            None => Ok(()),
        }
    }
    /// What a mount after a crash that lost nothing would find.
    pub fn copy(&self) -> MemoryStore {
        let copy = MemoryStore::new(1, vec![]);
        *copy.content.lock() = self.content.lock().clone();
        copy.inos.store(self.inos.load(SeqCst), SeqCst);
        copy
    }
    /// Inodes that own blocks.
    pub fn owners(&self) -> Vec<u64> {
        let mut owners: Vec<u64> = self.content.lock().blocks.keys().map(|(ino, _)| *ino).collect();
        owners.dedup();
        owners
    }
    fn inodes(&self) -> i64 {
        self.content.lock().inodes
    }
    fn free(&self) -> u64 {
        self.blocks.load(SeqCst).saturating_sub(self.content.lock().blocks.len() as u64)
    }
}

impl StoreApi for MemoryStore {
    fn hash_key(&self) -> [u64; 2] {
        [3, 4]
    }
    fn now(&self) -> Time {
        let now = self.world.now();
        Time { sec: now.sec + self.passed.load(SeqCst) as i64, ..now }
    }
    fn mount_count(&self) -> u64 {
        1
    }
    fn get(&self, key: Key) -> Result<Option<Value>, StoreError> {
        self.check_lost(key, key.next())?;
        Ok(self.content.lock().items.get(&key).cloned())
    }
    fn scan(&self, from: Key, end: Key, max: usize) -> Result<Vec<(Key, Value)>, StoreError> {
        assert!(from <= end, "{from:?} {end:?}");
        let content = self.content.lock();
        let last = content.items.range(from..end).nth(max.saturating_sub(1)).map_or(end, |(key, _)| key.next());
        self.check_lost(from, last)?;
        Ok(content.items.range(from..end).take(max).map(|(key, value)| (*key, Arc::clone(value))).collect())
    }
    fn read_file(&self, ino: u64, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        out.fill(0);
        let content = self.content.lock();
        let last = (offset + out.len() as u64).div_ceil(BLOCK as u64);
        for ((_, block), slice) in content.blocks.range((ino, offset / BLOCK as u64)..(ino, last)) {
            let Some(slice) = slice else { continue };
            let start = block * BLOCK as u64;
            let (from, to) = (start.max(offset), (start + BLOCK as u64).min(offset + out.len() as u64));
            let source = &slice[(from - start) as usize..(to - start) as usize];
            out[(from - offset) as usize..(to - offset) as usize].copy_from_slice(source);
        }
        Ok(())
    }
    fn prepare_pages(&self, ino: u64, offset: u64, data: &[u8]) -> Result<Vec<(u64, Slice)>, StoreError> {
        let first = offset / BLOCK as u64;
        let count = (offset + data.len() as u64).div_ceil(BLOCK as u64) - first;
        let mut buf = Buf::zeroed(count as usize * BLOCK);
        self.read_file(ino, first * BLOCK as u64, &mut buf)?;
        let at = (offset % BLOCK as u64) as usize;
        buf[at..at + data.len()].copy_from_slice(data);
        let buf = Arc::new(buf);
        let page = |i: u64| (first + i, Slice::new(Arc::clone(&buf), i as usize * BLOCK, BLOCK));
        Ok((0..count).map(page).collect())
    }
    fn next_data(&self, ino: u64, block: u64) -> Result<Option<u64>, StoreError> {
        let content = self.content.lock();
        Ok(content.blocks.range((ino, block)..=(ino, u64::MAX)).next().map(|((_, block), _)| *block))
    }
    fn next_hole(&self, ino: u64, block: u64) -> Result<u64, StoreError> {
        let content = self.content.lock();
        Ok((block..).find(|block| !content.blocks.contains_key(&(ino, *block))).expect("files end"))
    }
    fn file_blocks(&self, ino: u64) -> Result<u64, StoreError> {
        self.check_lost(Key::new(ino, ItemKind::FileMap, 0), Key::new(ino, ItemKind::FileMap, 1))?;
        Ok(self.content.lock().blocks.range((ino, 0)..=(ino, u64::MAX)).count() as u64)
    }
    fn begin(&self, need: Need) -> Result<Box<dyn TransactionApi + '_>, StoreError> {
        if self.read_only.load(SeqCst) {
            return Err(StoreError::ReadOnly);
        }
        let refused = self.refused_begins.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
        if refused || (need.data_blocks > self.free() && !need.may_use_reserve) {
            return Err(StoreError::NoSpace);
        }
        Ok(Box::new(MemoryTransaction { store: self, need, steps: vec![] }))
    }
    fn begin_write(
        &self,
        need: Need,
        ino: u64,
        mut blocks: Range<u64>,
    ) -> Result<Box<dyn TransactionApi + '_>, StoreError> {
        let is_backed = blocks.all(|block| self.content.lock().blocks.contains_key(&(ino, block)));
        self.begin(Need { may_use_reserve: is_backed, ..need })
    }
    fn fsync(&self, _ino: u64, done: Synced) {
        let fails = self.fails_syncs.load(SeqCst);
        done(if fails { Err(StoreError::Failed("told to".into())) } else { Ok(()) });
    }
    fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }
    fn space(&self) -> SpaceInfo {
        let blocks = self.blocks.load(SeqCst);
        let free = self.free();
        SpaceInfo { blocks, free, waiting: 0, used: blocks - free, inodes: self.inodes() as u64 }
    }
    fn new_ino(&self) -> u64 {
        self.inos.fetch_add(1, SeqCst)
    }
}

impl TransactionApi for MemoryTransaction<'_> {
    fn put(&mut self, key: Key, value: Vec<u8>) {
        assert!(value.len() <= crate::format::item::VALUE_MAX);
        self.steps.push(Step::Put(key, value));
    }
    fn delete(&mut self, key: Key) {
        self.steps.push(Step::Delete(key));
    }
    fn write_pages(&mut self, ino: u64, pages: Vec<(u64, Slice)>, _size_before: u64) {
        assert!(pages.len() <= 257, "a transaction writes at most 1 MiB");
        self.steps.push(Step::Write(ino, pages));
    }
    fn resize(&mut self, ino: u64, size: u64, edges: Vec<(u64, Slice)>) {
        self.write_pages(ino, edges, size);
    }
    fn punch(&mut self, ino: u64, first: u64, end: u64) {
        self.steps.push(Step::Punch(ino, first, end));
    }
    fn reserve(&mut self, ino: u64, first: u64, blocks: u64) -> Result<(), StoreError> {
        // As the real one: what is a hole now becomes reserved.
        let content = self.store.content.lock();
        let holes = (first..first + blocks).filter(|block| !content.blocks.contains_key(&(ino, *block)));
        self.steps.extend(holes.map(|block| Step::Reserve(ino, block, 1)));
        Ok(())
    }
    fn count_inodes(&mut self, change: i64) {
        self.steps.push(Step::Inodes(change));
    }
    fn prepare(&self) -> Result<(), StoreError> {
        let work = self.store.on_read.lock().take();
        if let Some(work) = work {
            work();
        }
        let keys = self.steps.iter().filter_map(|step| match step {
            Step::Put(key, _) | Step::Delete(key) => Some(*key),
            _ => None,
        });
        keys.into_iter().try_for_each(|key| self.store.check_lost(key, key.next()))
    }
    fn prepare_in_memory(&self) -> Option<Result<(), StoreError>> {
        let must_read = self.store.on_read.lock().is_some();
        (!must_read).then(|| self.prepare())
    }
    fn clear(&mut self) {
        self.steps.retain(|step| matches!(step, Step::Reserve(..)));
    }
    fn commit(self: Box<Self>) {
        let mut content = self.store.content.lock();
        let (mut items, before) = (vec![], content.blocks.len());
        let mut written = 0;
        for step in self.steps {
            match step {
                Step::Put(key, value) => {
                    items.push(key);
                    content.items.insert(key, value.into());
                }
                Step::Delete(key) => {
                    items.push(key);
                    content.items.remove(&key);
                }
                Step::Write(ino, pages) => {
                    for (block, slice) in pages {
                        written += 1;
                        content.blocks.insert((ino, block), Some(slice));
                    }
                }
                Step::Punch(ino, first, end) => {
                    let mut rest = content.blocks.split_off(&(ino, first));
                    content.blocks.extend(rest.split_off(&(ino, end)));
                }
                Step::Reserve(ino, first, blocks) => {
                    for block in first..first + blocks {
                        content.blocks.entry((ino, block)).or_insert(None);
                    }
                }
                Step::Inodes(change) => content.inodes += change,
            }
        }
        items.sort_unstable();
        items.dedup();
        assert!(items.len() <= self.need.items as usize, "{} items, asked for {}", items.len(), self.need.items);
        let grown = (content.blocks.len() as u64).saturating_sub(before as u64);
        assert!(grown.max(written) <= self.need.data_blocks.max(written.min(self.need.data_blocks)));
    }
}
