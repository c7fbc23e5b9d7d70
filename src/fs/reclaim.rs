//! The end of inodes without a name: large ones, ones that were open, ones that a crash left behind.
//!
//! *Guarantees*: an orphan's content goes in bounded pieces, each one a transaction, so nobody else is stalled
//! (trap 8); inode and list entry go last and together, so a crash in between leaves an orphan that the next mount
//! finds. An orphan that is open is left alone.
//! Who finds no room waits for orphans first: their room was given up by whoever removed them ([`Filesystem::with_room`]).
//! *Assumes*: somebody calls [`Filesystem::reclaim_step`] whenever [`Filesystem::wait_for_orphans`] returns.
//! *Fails when*: the store does; the orphan stays in the list. Damage lets it wait for the next mount, lack of room for
//! the next call.
//! *Order*: the inode exclusively, piece by piece; never begun while a semantic lock is held. Also writes access times
//! that wait.
//! *Not here*: who becomes an orphan (`remove`, `rename`, `file`).

use super::cache::Entry;
use super::lock::{LockKey, Mode};
use super::{Filesystem, FsError};
use crate::format::{ItemKind, Key, ORPHANS};
use crate::store::{Need, StoreError};
use crate::sync::{Condvar, Mutex};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Extents removed in one transaction.
const EXTENTS_MAX: usize = 8192;
/// Blocks removed in one transaction (64 GiB).
const BLOCKS_MAX: u64 = 1 << 24;
/// Extended attribute items removed in one transaction.
const XATTRS_MAX: usize = 1024;
/// How long somebody without room waits for a piece that somebody else is at.
const STEP_MAX: Duration = Duration::from_secs(10);
/// Orphans of an earlier mount looked up at once.
const FOUND_MAX: usize = 256;

#[derive(Default)]
struct Work {
    waiting: VecDeque<u64>,
    /// First file block that may still be there, of inodes that are begun.
    progress: HashMap<u64, u64>,
    /// Where the list of an earlier mount's orphans goes on; `None`: it has been read.
    listed: Option<u64>,
    started: bool,
    /// Orphans being worked on.
    busy: u32,
    /// Pieces done, failed ones too.
    steps: u64,
}

impl Work {
    /// Whether nobody has anything to begin.
    fn is_idle(&self) -> bool {
        self.started && self.waiting.is_empty() && self.listed.is_none()
    }
}

/// Orphans that wait for their end.
#[derive(Default)]
pub(super) struct Reclaim {
    work: Mutex<Work>,
    /// Rung when there is work, and when a piece is done.
    bell: Condvar,
}

impl Reclaim {
    /// `ino` is an orphan that nobody has open.
    pub(super) fn push(&self, ino: u64) {
        self.work.lock().waiting.push_back(ino);
        self.bell.notify_all();
    }
}

impl Filesystem {
    /// Do one bounded piece of work in the background; `true`: there is more to do.
    ///
    /// # Errors
    /// The store's. The inode concerned waits: for the next call if there was no room, else for the next mount; other
    /// work goes on with the next call.
    pub fn reclaim_step(&self) -> Result<bool, FsError> {
        self.write_atimes()?;
        self.reclaim_next()
    }

    /// Wait until orphans wait, at most for `timeout`.
    pub fn wait_for_orphans(&self, timeout: Duration) {
        let mut work = self.reclaim.work.lock();
        if work.is_idle() {
            self.reclaim.bell.wait_for(&mut work, timeout);
        }
    }

    /// Do `operation`. If it finds no room while content waits for its end that was removed already, end that and do it
    /// again. The caller holds no locks.
    pub(super) fn with_room<T>(&self, operation: impl Fn() -> Result<T, FsError>) -> Result<T, FsError> {
        loop {
            match operation() {
                Err(FsError::Store(StoreError::NoSpace)) if self.reclaim_for_room() => {}
                outcome => return outcome,
            }
        }
    }

    /// End a piece of an orphan, or wait until somebody else has; `false`: there is none.
    fn reclaim_for_room(&self) -> bool {
        let mut work = self.reclaim.work.lock();
        let seen = work.steps;
        if !work.is_idle() {
            drop(work);
            return match self.reclaim_next() {
                Ok(_) => true,
                // A damaged one has left the list: the others may have room to give.
                Err(FsError::Store(error)) if error.is_damage() => self.reclaim.work.lock().steps != seen,
                Err(_) => false,
            };
        }
        while work.busy > 0 && work.steps == seen {
            if self.reclaim.bell.wait_for(&mut work, STEP_MAX).timed_out() {
                break;
            }
        }
        work.steps != seen
    }

    /// End a piece of the next orphan; `true`: there is more to do.
    fn reclaim_next(&self) -> Result<bool, FsError> {
        let Some(ino) = self.next_orphan()? else { return Ok(false) };
        let outcome = self.reclaim(ino);
        let mut work = self.reclaim.work.lock();
        work.busy -= 1;
        work.steps += 1;
        match &outcome {
            Ok(true) | Err(FsError::Store(StoreError::NoSpace)) => work.waiting.push_back(ino),
            _ => drop(work.progress.remove(&ino)),
        }
        self.reclaim.bell.notify_all();
        let more = !work.is_idle();
        drop(work);
        match outcome {
            Err(FsError::Store(StoreError::ReadOnly)) => Ok(false),
            outcome => self.watch(ino, "reclaiming", outcome).map(|_| more),
        }
    }

    fn next_orphan(&self) -> Result<Option<u64>, FsError> {
        let mut work = self.reclaim.work.lock();
        if !work.started {
            work.started = true;
            work.listed = Some(0);
        }
        if let (true, Some(from)) = (work.waiting.is_empty(), work.listed) {
            drop(work);
            let key = |off| Key::new(ORPHANS, ItemKind::Orphan, off);
            let found = self.store.scan(key(from), key(u64::MAX), FOUND_MAX)?;
            work = self.reclaim.work.lock();
            work.listed = match found.last() {
                Some((last, _)) if found.len() == FOUND_MAX => Some(last.off + 1),
                _ => None,
            };
            work.waiting.extend(found.iter().map(|(key, _)| key.off));
        }
        let next = work.waiting.pop_front();
        work.busy += u32::from(next.is_some());
        Ok(next)
    }

    /// Remove a piece of `ino`; `true`: there is more of it.
    fn reclaim(&self, ino: u64) -> Result<bool, FsError> {
        let held = self.locks.acquire(&[(LockKey::Inode(ino), Mode::Exclusive)]);
        let orphan = Key::new(ORPHANS, ItemKind::Orphan, ino);
        let entry = self.entry(ino)?;
        let state = entry.state.lock();
        let (is_there, opens) = (state.inode.is_some(), state.opens);
        let is_named = state.inode.as_ref().is_some_and(|inode| inode.nlink > 0);
        drop(state);
        if !is_there || is_named || opens > 0 {
            return Ok(false);
        }
        let need = Need { items: 4, data_blocks: 0, may_use_reserve: true };
        let from = self.reclaim.work.lock().progress.get(&ino).copied().unwrap_or(0);
        if let Some((first, end)) = self.next_piece(ino, from)? {
            self.change(&held, need, &[&entry], |change| {
                change.punch(ino, first, end);
                Ok(())
            })?;
            self.reclaim.work.lock().progress.insert(ino, end);
            return Ok(true);
        }
        let xattrs = self.xattr_keys(ino, XATTRS_MAX)?;
        let need = Need { items: need.items + xattrs.len() as u32, ..need };
        let more = xattrs.len() == XATTRS_MAX;
        self.change(&held, need, &[&entry], |change| {
            if change.state(ino).opens > 0 {
                return Ok(());
            }
            for key in &xattrs {
                change.delete(*key);
            }
            if !more {
                change.delete(orphan);
                change.unmake(ino);
            }
            Ok(())
        })?;
        Ok(more)
    }

    /// The next run of file blocks that one transaction may remove: not too many extents, not too many blocks.
    pub(super) fn next_piece(&self, ino: u64, from: u64) -> Result<Option<(u64, u64)>, FsError> {
        if from == u64::MAX {
            return Ok(None);
        }
        let Some(first) = self.store.next_data(ino, from)? else { return Ok(None) };
        let key = |off| Key::new(ino, ItemKind::Extent, off);
        let extents = self.store.scan(key(first), key(u64::MAX), EXTENTS_MAX)?;
        let by_extents = match extents.last() {
            Some((last, _)) if extents.len() == EXTENTS_MAX => last.off + 1,
            _ => u64::MAX,
        };
        // Blocks that stand only in memory have no extents yet: the second limit is for them.
        let end = by_extents.min(first.saturating_add(BLOCKS_MAX));
        let is_last = end < u64::MAX && self.store.next_data(ino, end)?.is_none();
        Ok(Some((first, if is_last { u64::MAX } else { end })))
    }

    /// Write the access times that wait.
    fn write_atimes(&self) -> Result<(), FsError> {
        let waiting = std::mem::take(&mut *self.atimes.lock());
        let mut written = Ok(());
        for entry in waiting {
            if written.is_ok() && entry.state.lock().atime_waits {
                written = self.write_atime(&entry);
            }
            // After a failure the others would fail as well: forget them, or they would be kept in memory for ever.
            if written.is_err() && std::mem::take(&mut entry.state.lock().atime_waits) {
                entry.unpin();
            }
            // A damaged inode costs its own access time, and the others nothing.
            if let Err(FsError::Store(error)) = &written
                && error.is_damage()
            {
                log::warn!("the access time of inode {} cannot be kept: {error}", entry.ino);
                written = Ok(());
            }
        }
        match written {
            Err(FsError::Store(StoreError::ReadOnly)) => Ok(()),
            other => other,
        }
    }

    fn write_atime(&self, entry: &Arc<Entry>) -> Result<(), FsError> {
        let held = self.locks.acquire(&[]);
        let need = Need { items: 1, data_blocks: 0, may_use_reserve: true };
        self.change(&held, need, &[entry], |change| {
            change.rewrite(entry.ino);
            Ok(())
        })
    }
}
