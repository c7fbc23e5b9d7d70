//! Semantic locks: what operations exclude each other, and nothing more.
//!
//! Compatibility. A row's operation takes the locks of its row; two operations run together unless they want the
//! same lock and one of them wants it exclusively (X against S or X).
//!
//! | operation | Rename | Alive(directory) | Name(directory, hash) | Inode |
//! |---|---|---|---|---|
//! | lookup | | | S | |
//! | create, mknod, mkdir, symlink | | S | X | S of the directory if it has a default ACL |
//! | link | | S | X | |
//! | unlink | | S | X | X of the file |
//! | rmdir | | S of the parent, X of the victim | X | X of the victim |
//! | rename in one directory | | S | X, X | X of a replaced file |
//! | rename to another directory | X if a directory changes parent | S, S; X of a replaced directory | X, X | X of what is replaced |
//! | readdir, getattr, open, release | | | | |
//! | read, lseek, getxattr, listxattr | | | | S |
//! | write, setattr, fallocate, setxattr, removexattr, reclaim | | | | X |
//! | copy_file_range | | | | S of the source, X of the target |
//!
//! So operations on different names of one directory commute; what they change in common (the directory's times,
//! link and entry counts) is added up under the attribute mutex of its cached inode (`cache`), innermost of all.
//!
//! *Guarantees*: all keys of an operation are asked for at once; the manager sorts them, keeps the strongest mode
//! of each and takes them in one global order, so nothing can deadlock. Writers and readers take turns: no starvation.
//! *Assumes*: a thread asks once per operation and never while it holds locks (asserted).
//! *Fails when*: never; it waits. *Order*: Rename < Alive < Name < Inode, then by number; attribute mutexes come
//! after all of them. *Not here*: which keys an operation needs (the operations).

use crate::sync::RandomState;
use crate::sync::{Condvar, Mutex};
use std::cell::Cell;
use std::collections::HashMap;
use std::hash::BuildHasher;
use std::marker::PhantomData;

/// What a lock protects. The derived order is the order of taking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LockKey {
    /// The shape of the tree of directories.
    Rename,
    /// That a directory goes on existing.
    Alive(u64),
    /// All names of a directory with one hash: (directory, cookie base).
    Name(u64, u64),
    /// Content, size, mode and extended attributes of an inode.
    Inode(u64),
}

/// How a lock is held. Exclusive is the stronger one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Together with others.
    Shared,
    /// Alone.
    Exclusive,
}

#[derive(Default)]
struct LockState {
    shared: u32,
    exclusive: bool,
    waiting_shared: u32,
    waiting_exclusive: u32,
    /// Shared waiters that an exclusive holder left behind and that go next, before any other exclusive one.
    tickets: u32,
}

#[derive(Default)]
struct Shard {
    locks: Mutex<HashMap<LockKey, LockState>>,
    changed: Condvar,
}

/// All locks of a mounted filesystem.
pub struct LockManager {
    shards: Vec<Shard>,
    hasher: RandomState,
}

const SHARDS: usize = 64;

crate::sync::thread_local! {
    static HOLDS: Cell<bool> = const { Cell::new(false) };
}

impl Default for LockManager {
    fn default() -> LockManager {
        LockManager { shards: (0..SHARDS).map(|_| Shard::default()).collect(), hasher: RandomState::new() }
    }
}

impl LockManager {
    /// Take all of `wanted`, waiting as long as it takes.
    ///
    /// # Panics
    /// If this thread holds locks already: our bug, it could deadlock.
    pub fn acquire(&self, wanted: &[(LockKey, Mode)]) -> Held<'_> {
        let mut keys = wanted.to_vec();
        keys.sort_unstable();
        // Equal keys are neighbours, the stronger mode last: it is the one to keep.
        keys.dedup_by(|later, kept| {
            let same = later.0 == kept.0;
            if same {
                kept.1 = later.1;
            }
            same
        });
        HOLDS.with(|holds| assert!(!holds.replace(true), "locks are asked for all at once"));
        for (key, mode) in &keys {
            self.lock(*key, *mode);
        }
        Held { manager: self, keys, one_thread: PhantomData }
    }

    fn shard(&self, key: &LockKey) -> &Shard {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }

    fn lock(&self, key: LockKey, mode: Mode) {
        let shard = self.shard(&key);
        let mut locks = shard.locks.lock();
        let state = locks.entry(key).or_default();
        if grant(state, mode, false) {
            return;
        }
        *waiters(state, mode) += 1;
        loop {
            shard.changed.wait(&mut locks);
            let state = locks.get_mut(&key).expect("a lock that is waited for is kept");
            if grant(state, mode, true) {
                *waiters(state, mode) -= 1;
                return;
            }
        }
    }

    fn unlock(&self, key: LockKey, mode: Mode) {
        let shard = self.shard(&key);
        let mut locks = shard.locks.lock();
        let state = locks.get_mut(&key).expect("a held lock is known");
        match mode {
            Mode::Shared => {
                assert!(state.shared > 0 && !state.exclusive);
                state.shared -= 1;
            }
            Mode::Exclusive => {
                assert!(state.exclusive && state.shared == 0);
                state.exclusive = false;
                state.tickets = state.waiting_shared;
            }
        }
        if state.waiting_shared + state.waiting_exclusive > 0 {
            shard.changed.notify_all();
        } else if state.shared == 0 {
            locks.remove(&key);
        }
    }

    /// Locks that are held or waited for; for tests.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|s| s.locks.lock().len()).sum()
    }
}

fn waiters(state: &mut LockState, mode: Mode) -> &mut u32 {
    match mode {
        Mode::Shared => &mut state.waiting_shared,
        Mode::Exclusive => &mut state.waiting_exclusive,
    }
}

/// Take the lock if it is free for `mode`. Shared newcomers do not pass a waiting writer, and writers do not pass
/// the readers that the last writer kept waiting.
fn grant(state: &mut LockState, mode: Mode, waited: bool) -> bool {
    match mode {
        Mode::Shared if waited && !state.exclusive && state.tickets > 0 => {
            state.tickets -= 1;
            state.shared += 1;
            true
        }
        Mode::Shared if !state.exclusive && state.waiting_exclusive == 0 => {
            state.shared += 1;
            true
        }
        Mode::Exclusive if !state.exclusive && state.shared == 0 && state.tickets == 0 => {
            state.exclusive = true;
            true
        }
        Mode::Shared | Mode::Exclusive => false,
    }
}

/// The locks of one operation; released on drop.
pub struct Held<'a> {
    manager: &'a LockManager,
    keys: Vec<(LockKey, Mode)>,
    one_thread: PhantomData<*const ()>,
}

impl Held<'_> {
    /// Whether `key` is held at least as strongly as `mode`.
    pub fn has(&self, key: LockKey, mode: Mode) -> bool {
        self.keys.iter().any(|(held, how)| *held == key && *how >= mode)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        for (key, mode) in self.keys.iter().rev() {
            self.manager.unlock(*key, *mode);
        }
        HOLDS.with(|holds| assert!(holds.replace(false)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::atomic::{AtomicU64, Ordering::SeqCst};

    #[test]
    fn the_strongest_mode_wins_and_nothing_is_left() {
        let manager = LockManager::default();
        let held = manager.acquire(&[
            (LockKey::Inode(4), Mode::Exclusive),
            (LockKey::Inode(4), Mode::Shared),
            (LockKey::Alive(9), Mode::Shared),
        ]);
        assert!(held.has(LockKey::Inode(4), Mode::Exclusive));
        assert!(held.has(LockKey::Alive(9), Mode::Shared) && !held.has(LockKey::Alive(9), Mode::Exclusive));
        assert_eq!(held.keys.len(), 2);
        drop(held);
        assert_eq!(manager.len(), 0);
    }

    #[test]
    fn exclusive_excludes_and_opposite_orders_do_not_deadlock() {
        let manager = LockManager::default();
        let (inside, total) = (AtomicU64::new(0), AtomicU64::new(0));
        crate::sync::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let (manager, inside, total) = (&manager, &inside, &total);
                scope.spawn(move || {
                    for round in 0..2000 {
                        let (a, b) = if (thread + round) % 2 == 0 { (1, 2) } else { (2, 1) };
                        let third = if round % 3 == 0 { Mode::Shared } else { Mode::Exclusive };
                        let _held = manager.acquire(&[
                            (LockKey::Inode(a), Mode::Exclusive),
                            (LockKey::Inode(b), Mode::Exclusive),
                            (LockKey::Rename, third),
                        ]);
                        assert_eq!(inside.fetch_add(1, SeqCst), 0, "two holders of an exclusive lock");
                        total.fetch_add(1, SeqCst);
                        inside.fetch_sub(1, SeqCst);
                    }
                });
            }
        });
        assert_eq!(total.load(SeqCst), 8000);
        assert_eq!(manager.len(), 0);
    }

    #[test]
    fn shared_holders_meet() {
        let manager = LockManager::default();
        let barrier = std::sync::Barrier::new(3);
        crate::sync::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let _held = manager.acquire(&[(LockKey::Alive(1), Mode::Shared)]);
                    barrier.wait();
                });
            }
        });
        assert_eq!(manager.len(), 0);
    }
}
