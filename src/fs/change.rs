//! The one skeleton of all mutations: locks → reads → [`Filesystem::change`] → commit, or nothing.
//!
//! *Guarantees*: the body runs with the attribute mutexes of all inodes that it changes; what it changed joins the
//! open group as one transaction, before any of these mutexes is released, so a later transaction never carries
//! older attributes. If the body fails, memory is as before and the transaction is dropped. So it is
//! if the change needs a block that is lost: it is found out here, and never by a commit.
//! *Assumes*: the entries are loaded, the caller holds the semantic locks of the operation (asserted on each item).
//! *Fails when*: the store has no room or takes no changes, or the body says so.
//! *Order*: semantic locks, `begin` (may wait for room), attribute mutexes in rising order of inode numbers, body
//! (memory only), prepare (reads nodes that are not in memory), commit (memory only).
//! *Not here*: what is changed.

use super::api::TransactionApi;
use super::cache::{Entry, State, XattrFacts};
use super::lock::{Held, LockKey, Mode};
use super::{Filesystem, FsError};
use crate::disk::buffer::Slice;
use crate::format::item::Time;
use crate::format::{Inode, ItemKind, Key, ORPHANS};
use crate::store::Need;
use crate::sync::MutexGuard;
use std::sync::Arc;

/// A transaction being filled, with the attributes of the inodes that it changes.
pub(super) struct Change<'a> {
    transaction: Box<dyn TransactionApi + 'a>,
    held: &'a Held<'a>,
    fresh: Vec<u64>,
    rewritten: Vec<u64>,
    states: Vec<(u64, MutexGuard<'a, State>)>,
}

impl Filesystem {
    /// Run `body` as one atomic change of the inodes `entries` (any order, repeats allowed).
    pub(super) fn change<'a, T>(
        &'a self,
        held: &'a Held<'a>,
        need: Need,
        entries: &[&'a Arc<Entry>],
        body: impl FnOnce(&mut Change<'a>) -> Result<T, FsError>,
    ) -> Result<T, FsError> {
        self.join(held, self.store.begin(need)?, entries, body)
    }

    /// As [`Filesystem::change`], for a transaction that has begun.
    pub(super) fn join<'a, T>(
        &'a self,
        held: &'a Held<'a>,
        transaction: Box<dyn TransactionApi + 'a>,
        entries: &[&'a Arc<Entry>],
        body: impl FnOnce(&mut Change<'a>) -> Result<T, FsError>,
    ) -> Result<T, FsError> {
        let mut sorted = entries.to_vec();
        sorted.sort_unstable_by_key(|entry| entry.ino);
        sorted.dedup_by_key(|entry| entry.ino);
        let states: Vec<_> = sorted.iter().map(|entry| (entry.ino, entry.state.lock())).collect();
        let before: Vec<(Option<Inode>, Option<XattrFacts>)> =
            states.iter().map(|(_, state)| (state.inode.clone(), state.facts)).collect();
        let mut change = Change { transaction, held, fresh: vec![], rewritten: vec![], states };
        let mut outcome = body(&mut change);
        let mut written = Vec::with_capacity(sorted.len());
        for ((ino, state), (inode, _)) in change.states.iter().zip(&before) {
            assert!(state.loaded, "inodes are loaded before they are changed");
            let changed = state.inode != *inode || (inode.is_some() && change.rewritten.contains(ino));
            match &state.inode {
                Some(inode) if changed => change.transaction.put(Key::inode(*ino), inode.encode()),
                None if changed => change.transaction.delete(Key::inode(*ino)),
                _ => {}
            }
            written.push(changed);
        }
        if outcome.is_ok()
            && let Err(error) = change.transaction.prepare()
        {
            outcome = Err(error.into());
        }
        for ((((_, state), before), entry), written) in change.states.iter_mut().zip(before).zip(&sorted).zip(written) {
            if outcome.is_err() {
                (state.inode, state.facts) = before;
            } else if written && std::mem::take(&mut state.atime_waits) {
                entry.unpin();
            }
        }
        if outcome.is_ok() {
            change.transaction.commit();
        }
        outcome
    }
}

impl<'a> Change<'a> {
    /// What is known of `ino`, which must be one of the inodes of this change.
    pub(super) fn state(&mut self, ino: u64) -> &mut State {
        let found = self.states.iter_mut().find(|(number, _)| *number == ino);
        &mut found.expect("an operation changes only inodes that it named").1
    }

    /// Attributes of `ino`, which must be one of the inodes of this change and exist.
    pub(super) fn inode(&mut self, ino: u64) -> Result<&mut Inode, FsError> {
        self.state(ino).inode.as_mut().ok_or(FsError::Stale)
    }

    /// Set an item that is not an inode.
    pub(super) fn put(&mut self, key: Key, value: Vec<u8>) {
        self.check(key);
        self.transaction.put(key, value);
    }

    /// Remove an item that is not an inode.
    pub(super) fn delete(&mut self, key: Key) {
        self.check(key);
        self.transaction.delete(key);
    }

    /// Set whole blocks of `ino`. `size_before`: its size, bytes; `u64::MAX` if it does not grow by them.
    pub(super) fn write_pages(&mut self, ino: u64, pages: Vec<(u64, Slice)>, size_before: u64) {
        self.check(Key::new(ino, ItemKind::Extent, 0));
        self.transaction.write_pages(ino, pages, size_before);
    }

    /// `ino` gets `size` bytes; `edges` are whole blocks that are zeros from its old or new end on.
    pub(super) fn resize(&mut self, ino: u64, size: u64, edges: Vec<(u64, Slice)>) {
        self.check(Key::new(ino, ItemKind::Extent, 0));
        self.transaction.resize(ino, size, edges);
    }

    /// Make blocks `first..end` of `ino` a hole.
    pub(super) fn punch(&mut self, ino: u64, first: u64, end: u64) {
        assert!(first < end);
        self.check(Key::new(ino, ItemKind::Extent, 0));
        self.transaction.punch(ino, first, end);
    }

    /// Bring a new inode into being.
    pub(super) fn make(&mut self, ino: u64, inode: Inode) {
        let state = self.state(ino);
        assert!(state.inode.is_none(), "inode numbers are never reused");
        state.inode = Some(inode);
        state.facts = Some(XattrFacts::default());
        self.fresh.push(ino);
        self.transaction.count_inodes(1);
    }

    /// Write the attributes of `ino` although this operation does not change them.
    pub(super) fn rewrite(&mut self, ino: u64) {
        self.rewritten.push(ino);
    }

    /// End an inode; the caller removes its content and extended attributes.
    pub(super) fn unmake(&mut self, ino: u64) {
        let gone = self.state(ino).inode.take();
        assert!(gone.is_some(), "an inode ends once");
        self.transaction.count_inodes(-1);
    }

    /// Assert that the operation holds what protects `key`: our bug if not. A new inode is nobody else's yet: it is
    /// protected by being unknown.
    fn check(&mut self, key: Key) {
        let held = match key.kind {
            ItemKind::Dirent => {
                let name = LockKey::Name(key.ino, key.off & !0xff);
                self.held.has(name, Mode::Exclusive) && self.held.has(LockKey::Alive(key.ino), Mode::Shared)
            }
            ItemKind::Xattr | ItemKind::Extent => {
                self.held.has(LockKey::Inode(key.ino), Mode::Exclusive) || self.fresh.contains(&key.ino)
            }
            ItemKind::Orphan => key.ino == ORPHANS && self.states.iter().any(|(ino, _)| *ino == key.off),
            ItemKind::Inode | ItemKind::FileMap => false,
        };
        assert!(held, "{key:?} is changed without its lock");
    }
}

/// Set the modification and change times.
pub(super) fn touch(inode: &mut Inode, now: Time) {
    inode.mtime = now;
    inode.ctime = now;
}
