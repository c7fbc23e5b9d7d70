//! The one skeleton of all mutations: locks → reads → [`Filesystem::change`] → commit, or nothing.
//!
//! *Guarantees*: the body runs with the attribute mutexes of all inodes that it changes; what it changed joins the
//! open group as one transaction, before any of these mutexes is released, so a later transaction never carries
//! older attributes. If the body fails, memory is as before and the transaction is dropped. So it is
//! if the change needs a block that is lost: it is found out here, and never by a commit.
//! *Assumes*: the entries are loaded, the caller holds the semantic locks of the operation (asserted on each item).
//! *Fails when*: the store has no room or takes no changes, or the body says so.
//! *Order*: semantic locks, `begin` (may wait for room), attribute mutexes in rising order of inode numbers, body
//! (memory only), prepare (memory only), commit (memory only). Where nodes are missing in memory, everything is undone,
//! the mutexes are released, the nodes are read, and the body runs again: lookups and getattrs wait for no disk.
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

/// How often a change is tried with what is in memory, before it reads under the attribute mutexes: nodes can be driven
/// out of memory again before they are used.
const ROUNDS: usize = 3;

/// A transaction being filled, with the attributes of the inodes that it changes.
pub(super) struct Change<'a> {
    transaction: Box<dyn TransactionApi + 'a>,
    held: &'a Held<'a>,
    fresh: Vec<u64>,
    rewritten: Vec<u64>,
    gone: Vec<(u64, Inode)>,
    states: Vec<(u64, MutexGuard<'a, State>)>,
}

impl Filesystem {
    /// Run `body` as one atomic change of the inodes `entries` (any order, repeats allowed).
    pub(super) fn change<'a, T>(
        &'a self,
        held: &'a Held<'a>,
        need: Need,
        entries: &[&'a Arc<Entry>],
        body: impl FnMut(&mut Change<'a>) -> Result<T, FsError>,
    ) -> Result<T, FsError> {
        self.join(held, self.store.begin(need)?, entries, body)
    }

    /// As [`Filesystem::change`], for a transaction that has begun.
    pub(super) fn join<'a, T>(
        &'a self,
        held: &'a Held<'a>,
        mut transaction: Box<dyn TransactionApi + 'a>,
        entries: &[&'a Arc<Entry>],
        mut body: impl FnMut(&mut Change<'a>) -> Result<T, FsError>,
    ) -> Result<T, FsError> {
        let mut sorted = entries.to_vec();
        sorted.sort_unstable_by_key(|entry| entry.ino);
        sorted.dedup_by_key(|entry| entry.ino);
        for may_read in std::iter::repeat_n(false, ROUNDS).chain(std::iter::repeat(true)) {
            match self.attempt(held, transaction, &sorted, may_read, &mut body) {
                Attempt::Done(outcome) => return outcome,
                Attempt::Unread(unread) => transaction = unread,
            }
            // Whoever only looks at these inodes does not wait for this.
            transaction.prepare()?;
            transaction.clear();
        }
        unreachable!("the last round ends in any case")
    }

    /// Run the body and commit. `may_read`: what is not in memory is read under the attribute mutexes.
    fn attempt<'a, T>(
        &'a self,
        held: &'a Held<'a>,
        transaction: Box<dyn TransactionApi + 'a>,
        sorted: &[&'a Arc<Entry>],
        may_read: bool,
        body: &mut impl FnMut(&mut Change<'a>) -> Result<T, FsError>,
    ) -> Attempt<'a, T> {
        let states: Vec<_> = sorted.iter().map(|entry| (entry.ino, entry.state.lock())).collect();
        let before: Vec<(Option<Inode>, Option<XattrFacts>)> =
            states.iter().map(|(_, state)| (state.inode.clone(), state.facts)).collect();
        let mut change = Change { transaction, held, fresh: vec![], rewritten: vec![], gone: vec![], states };
        let outcome = body(&mut change);
        let mut written = Vec::with_capacity(before.len());
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
        let outcome = match outcome {
            Ok(done) if may_read => Some(change.transaction.prepare().map(|()| done).map_err(FsError::from)),
            Ok(done) => {
                change.transaction.prepare_in_memory().map(|proven| proven.map(|()| done).map_err(FsError::from))
            }
            Err(error) => Some(Err(error)),
        };
        let joins = matches!(outcome, Some(Ok(_)));
        for ((((_, state), before), entry), written) in change.states.iter_mut().zip(before).zip(sorted).zip(written) {
            if !joins {
                (state.inode, state.facts) = before;
            } else if written && std::mem::take(&mut state.atime_waits) {
                entry.unpin();
            }
        }
        let Change { transaction, states, gone, .. } = change;
        if joins {
            transaction.commit(); // before the mutexes are released
            self.ended.remember(gone);
            drop(states);
            return Attempt::Done(outcome.expect("it joins"));
        }
        match outcome {
            Some(outcome) => Attempt::Done(outcome),
            None => Attempt::Unread(transaction),
        }
    }
}

/// What came of running a body once.
enum Attempt<'a, T> {
    /// It has joined, or failed and changed nothing.
    Done(Result<T, FsError>),
    /// Nothing has changed: something must be read first.
    Unread(Box<dyn TransactionApi + 'a>),
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
        let gone = self.state(ino).inode.take().expect("an inode ends once");
        self.gone.push((ino, gone));
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
