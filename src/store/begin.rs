//! The begin of a change: it waits for memory and room, so that nothing waits once it has joined a group (trap 3).
//!
//! *Guarantees*: what was promised to a change is there until its commit. *Assumes*: the caller holds nothing that a
//! commit waits for. *Fails when*: no room even after commits, or no change is taken any more; nothing has changed then.
//! *Order*: none held while waiting. *Not here*: the change itself (`store`).

use super::{Need, Store, StoreError, Transaction, commit, counted};
use crate::sync::atomic::Ordering;
use std::ops::Range;

impl Store {
    /// Begin a change. Waits for memory and space, never while joined; nothing has changed if it fails.
    pub fn begin(&self, need: Need) -> Result<Transaction<'_>, StoreError> {
        let reserve = self.reserve_blocks();
        self.begin_keeping(need, || Ok(if need.may_use_reserve { reserve / 4 } else { reserve }))
    }

    /// As [`Store::begin`], for data of `blocks` of file `ino`. On a full volume, if something stands for each of them,
    /// what they replace comes back with the commit: so a part of the reserve is lent to them. Deletes must not miss
    /// it: it is a smaller part than theirs.
    pub fn begin_write(&self, need: Need, ino: u64, blocks: Range<u64>) -> Result<Transaction<'_>, StoreError> {
        /// One piece of file data with its edges, and nodes.
        const PIECE_BLOCKS: u64 = 272;
        self.begin_keeping(need, || {
            let reserve = self.reserve_blocks();
            if !self.is_backed(ino, blocks.clone())? {
                return Ok(reserve);
            }
            let lent = if reserve / 3 >= PIECE_BLOCKS { (reserve / 4).max(PIECE_BLOCKS) } else { reserve / 4 };
            Ok(reserve - lent)
        })
    }

    /// Begin a change that leaves `kept` blocks of the reserve alone; asked only where what is free is short.
    fn begin_keeping(
        &self,
        need: Need,
        kept: impl Fn() -> Result<u64, StoreError>,
    ) -> Result<Transaction<'_>, StoreError> {
        if self.options.read_only {
            return Err(StoreError::ReadOnly);
        }
        self.check_alive()?;
        self.check_room(need)?;
        self.wait_for_memory(need)?;
        self.promised.fetch_add(need.data_blocks, Ordering::Relaxed);
        let transaction =
            Transaction { store: self, promised: need.data_blocks, items: Vec::new(), files: Vec::new(), inodes: 0 };
        self.wait_for_space(kept)?;
        Ok(transaction)
    }

    /// Refuse what cannot be had at all before it is promised: others would find no room meanwhile. What the open groups
    /// free is known once they are committed.
    fn check_room(&self, need: Need) -> Result<(), StoreError> {
        let has_room = || need.data_blocks <= self.space.free().saturating_add(self.freed_waiting());
        if has_room() {
            return Ok(());
        }
        if need.data_blocks <= self.space.total() && self.view().groups().any(|group| !group.is_empty()) {
            self.commit(commit::Force::Reclaim)?;
        }
        if has_room() { Ok(()) } else { Err(StoreError::NoSpace) }
    }

    /// Nodes that may be rewritten before the group must close, given what is free.
    fn changes_max(&self) -> u64 {
        (self.space.free_backed().saturating_sub(counted(&self.pages)) / 8).max(16)
    }

    fn wait_for_memory(&self, need: Need) -> Result<(), StoreError> {
        let first = self.view().current.txg;
        loop {
            self.check_alive()?;
            let seen = *self.room.0.lock();
            let group = self.view().current.clone();
            // A reservation of many blocks holds no memory: half of the bound stands for it.
            let pages = counted(&self.pages) + need.data_blocks.min(self.options.pages_max / 2);
            let many_pages = pages > self.options.pages_max;
            let many_items = counted(&group.bytes) > self.options.items_bytes_max
                || group.placed.load(Ordering::Relaxed) > 2 * self.options.placed_max;
            // Space is short: what the commit of this group rewrites must fit. One commit is waited for.
            let tight = group.txg == first && group.changes.load(Ordering::Relaxed) > self.changes_max();
            if pages > self.options.pages_start {
                self.engine.want_place();
            }
            if many_items || tight || self.log.is_crowded() {
                self.engine.want_commit();
            }
            if !(many_pages || many_items || tight) {
                return Ok(());
            }
            drop(group);
            if self.engine.is_running() {
                let mut count = self.room.0.lock();
                if *count == seen {
                    self.room.1.wait_for(&mut count, std::time::Duration::from_millis(100));
                }
            } else {
                self.commit(commit::Force::IfChanged)?;
            }
        }
    }

    fn wait_for_space(&self, kept: impl Fn() -> Result<u64, StoreError>) -> Result<(), StoreError> {
        let reserve = self.reserve_blocks();
        for round in 0..5 {
            // The promise of this change is counted in `taken` already.
            if self.space.ensure_backed(&self.mirror, self.taken(reserve))? {
                return Ok(());
            }
            let taken = self.taken(kept()?);
            let have = self.space.free_backed();
            if have >= taken {
                return Ok(());
            }
            let waiting = self.freed_waiting();
            if round == 4 || waiting == 0 {
                break;
            }
            self.commit(commit::Force::Reclaim)?;
        }
        Err(StoreError::NoSpace)
    }

    /// Blocks that the next commits may give back: dead lists, and whatever the open groups free.
    fn freed_waiting(&self) -> u64 {
        let view = self.view();
        let open: u64 = view.groups().map(|g| u64::from(!g.is_empty())).sum();
        view.committed.root.dead_blocks().saturating_add(open)
    }
}
