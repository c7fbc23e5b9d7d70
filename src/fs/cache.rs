//! Inodes in memory: the one live copy of the attributes of each inode in use.
//!
//! *Guarantees*: at any time there is at most one [`Entry`] for an inode number that anybody can reach, so attribute
//! changes of different operations add up. What an entry says is what the store holds, except for access times
//! that are not written yet. Memory is bounded by [`ENTRIES_MAX`] plus what is open or in use.
//! *Assumes*: inode numbers are never reused. *Fails when*: the item cannot be read; the entry stays unloaded.
//! *Order*: shard mutex, then nothing; an entry's mutex is taken without holding its shard. Several entries are
//! locked in rising order of their inode numbers (`change`). Loading reads the store under the entry's mutex, so it
//! is done before a transaction begins, never inside one.
//! *Not here*: what the attributes mean.

use crate::format::Inode;
use crate::format::item::Time;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering, Ordering::Relaxed, fence};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Entries kept although nobody uses them.
pub const ENTRIES_MAX: usize = 65_536;
const SHARDS: usize = 64;

/// What is known of the extended attributes of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct XattrFacts {
    /// It has some.
    pub any: bool,
    /// It has file capabilities.
    pub capability: bool,
    /// It has an access ACL beyond its mode.
    pub access_acl: bool,
    /// It has a default ACL.
    pub default_acl: bool,
}

/// Attributes and open counts of an inode.
#[derive(Debug, Default)]
pub struct State {
    /// Whether `inode` was read from the store (or the inode was made here).
    pub loaded: bool,
    /// The attributes; `None`: there is no such inode.
    pub inode: Option<Inode>,
    /// Its extended attributes, once looked at; changed only under the inode's exclusive lock.
    pub facts: Option<XattrFacts>,
    /// Counts changes of the extended attributes, so that a look at them knows whether it is still true.
    pub facts_version: u64,
    /// Open handles.
    pub opens: u32,
    /// Open handles that can write.
    pub writers: u32,
    /// When the modification time was set by hand, while somebody can have it mapped for writing: writes from the
    /// page cache that come soon after it do not move it (trap 10).
    pub mtime_set: Option<Time>,
    /// The access time here is newer than the one in the store.
    pub atime_waits: bool,
    /// When it last lost a name and kept others.
    pub name_lost: Option<Time>,
}

/// An inode in memory.
#[derive(Debug)]
pub struct Entry {
    /// Its number.
    pub ino: u64,
    /// Attributes and open counts.
    pub state: Mutex<State>,
    /// Reasons to keep it although nobody holds it: open handles, a waiting access time.
    pins: AtomicU32,
    used: AtomicBool,
}

impl Entry {
    /// Keep the entry until [`Entry::unpin`].
    pub fn pin(&self) {
        self.pins.fetch_add(1, Relaxed);
    }
    /// Whether there is a reason to keep it.
    #[cfg(test)]
    pub fn is_pinned(&self) -> bool {
        self.pins.load(Relaxed) > 0
    }
    /// Undo one [`Entry::pin`].
    pub fn unpin(&self) {
        let before = self.pins.fetch_sub(1, Relaxed);
        assert!(before > 0, "an entry is unpinned as often as it was pinned");
    }
}

/// What inodes were when they ended, for those who still hold one by a working directory or an `O_PATH` descriptor: the
/// kernel does not tell of these. The last so many.
#[derive(Default)]
pub struct EndedInodes {
    inner: Mutex<(HashMap<u64, Inode>, VecDeque<u64>)>,
}

/// Ended inodes that are remembered.
const ENDED_MAX: usize = 4096;

impl EndedInodes {
    /// These have ended.
    pub fn remember(&self, gone: Vec<(u64, Inode)>) {
        if gone.is_empty() {
            return;
        }
        let mut inner = self.inner.lock();
        let (inodes, order) = &mut *inner;
        for (ino, inode) in gone {
            if order.len() >= ENDED_MAX
                && let Some(oldest) = order.pop_front()
            {
                inodes.remove(&oldest);
            }
            order.push_back(ino);
            inodes.insert(ino, Inode { nlink: 0, ..inode });
        }
    }

    /// Change what is remembered of `ino`; gives what it is then.
    pub fn change(&self, ino: u64, change: impl FnOnce(&mut Inode)) -> Option<Inode> {
        let mut inner = self.inner.lock();
        let inode = inner.0.get_mut(&ino)?;
        change(inode);
        Some(inode.clone())
    }

    /// What `ino` was.
    pub fn get(&self, ino: u64) -> Option<Inode> {
        self.inner.lock().0.get(&ino).cloned()
    }
}

#[derive(Default)]
struct Shard {
    entries: HashMap<u64, Arc<Entry>>,
    clock: VecDeque<u64>,
}

/// All inodes in memory.
pub struct InodeCache {
    shards: Vec<Mutex<Shard>>,
    shard_max: usize,
}

impl InodeCache {
    /// A cache that keeps about `entries_max` unused entries.
    pub fn new(entries_max: usize) -> InodeCache {
        let shards = (0..SHARDS).map(|_| Mutex::new(Shard::default())).collect();
        InodeCache { shards, shard_max: (entries_max / SHARDS).max(1) }
    }

    /// The entry of `ino`; a new one is not loaded.
    pub fn entry(&self, ino: u64) -> Arc<Entry> {
        let mut shard = self.shards[ino as usize % SHARDS].lock();
        if let Some(entry) = shard.entries.get(&ino) {
            entry.used.store(true, Relaxed);
            return Arc::clone(entry);
        }
        shard.evict(self.shard_max);
        let (pins, used) = (AtomicU32::new(0), AtomicBool::new(false));
        let entry = Arc::new(Entry { ino, state: Mutex::new(State::default()), pins, used });
        shard.entries.insert(ino, Arc::clone(&entry));
        shard.clock.push_back(ino);
        entry
    }

    /// Entries in memory.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|s| s.lock().entries.len()).sum()
    }
}

impl Shard {
    /// Make room for one, by the clock algorithm. Nobody can get hold of an entry meanwhile: the shard is locked
    /// and the map's is the only reference.
    fn evict(&mut self, max: usize) {
        let mut looks = 16;
        while self.entries.len() >= max && looks > 0 {
            looks -= 1;
            let Some(ino) = self.clock.pop_front() else { return };
            let entry = &self.entries[&ino];
            let unused = Arc::strong_count(entry) == 1 && entry.pins.load(Relaxed) == 0;
            if unused && !entry.used.swap(false, Relaxed) {
                // Orders the last holder's commit before a reload of what it wrote.
                fence(Ordering::Acquire);
                self.entries.remove(&ino);
            } else {
                self.clock.push_back(ino);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_or_pinned_stays_the_only_copy() {
        let cache = InodeCache::new(SHARDS);
        let held = cache.entry(64);
        held.state.lock().opens = 7;
        let pinned = cache.entry(128);
        pinned.pin();
        pinned.state.lock().opens = 8;
        drop(pinned);
        for ino in 3..1000 {
            cache.entry(ino * 64);
        }
        assert_eq!(cache.entry(64).state.lock().opens, 7);
        assert_eq!(cache.entry(128).state.lock().opens, 8);
        cache.entry(128).unpin();
        for ino in 3..1000 {
            cache.entry(ino * 64);
        }
        assert_eq!(cache.entry(128).state.lock().opens, 0, "evicted when nobody needed it");
        assert!(cache.len() < 100, "{}", cache.len());
    }
}
