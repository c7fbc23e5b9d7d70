//! Transaction groups: how what changed becomes a durable root.
//!
//! *Guarantees*: when [`Store::commit`] returned, everything that had joined before is in a root that is durable on
//! every replica in sync. A power cut at any point leaves the old root or the new one, each whole.
//! *Assumes*: nothing that joined waits for a disk. *Fails when*: no replica takes writes, or the reserve was too
//! small: latched, the old root stands. What hangs on a lost block is left out, and said (`reach`). *Order*: one commit at a time (commit lock).
//! *Not here*: the threads that call it.
//!
//! | step | what | a cut here leaves |
//! |---|---|---|
//! | 1 | swap the delta: later changes join group n+1 | old root, log |
//! | 2 | place the remaining pages; diff extents; write tree nodes, dead list, bitmaps, space nodes | old root, log |
//! | 3 | flush all | old root, log |
//! | 4 | write the root into a slot that no retained root uses | old root, or new root |
//! | 5 | flush all; if a replica failed, one more root without it | new root |
//! | 6 | publish; free the log behind it; read the root back | new root |
//!
//! **Reuse.** What group g freed is reachable from roots of groups below g. It stands in the dead list of g until no
//! retained root and no pinned view is older than g: `limit = min(n − window, oldest pin)`, lists up to `limit` go.

use super::delta::{Committed, Group, View};
use super::history::ShrinkHook;
use super::reach::Unreached;
use super::risk::Grown;
use super::space::{Class, Span};
use super::tree::{self, CachedNode, NodeStore, NodeWriter};
use super::{INO_RANGE, Store, StoreError};
use crate::disk::buffer::{Buf, Slice};
use crate::format::dead::{self, DEAD_MAX, Ring, Run};
use crate::format::geometry::ROOT_SLOTS;
use crate::format::root::{DEAD_LISTS_MAX, DeadHead};
use crate::format::{Addr, BlockPtr, Key, Root, Txg, Uuid};
use crate::sync::MutexGuard;
use crate::sync::atomic::Ordering;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};

/// Blocks of nodes that wait before they are written: 4 MiB.
const WRITES_MAX: usize = 1024;
/// Runs of a dead list that are kept in memory; longer ones are read again.
const RUNS_KEPT: usize = 65_536;

/// Dead blocks for which an idle volume makes no commit.
const DEAD_LEFT: u64 = 64;

/// Which commits may be skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Force {
    /// Nothing to do if nothing changed.
    IfChanged,
    /// A new root in any case.
    Always,
    /// Space is needed: shrink the window, so that what was freed comes back.
    Reclaim,
    /// The last one: the root says that there is no log to replay.
    Clean,
}

/// What commits remember of each other.
pub struct CommitState {
    /// States that readers may still hold.
    pins: Vec<(Txg, Weak<Committed>)>,
    /// Runs of dead lists, by their last group.
    runs: HashMap<Txg, Vec<Run>>,
    /// Blocks that were handed out in a group and not kept by it.
    orphans: Vec<(Txg, Vec<Span>)>,
}

/// The newest durable root and the slots.
pub struct RootState {
    /// Durable on every replica that it calls in sync.
    pub root: Root,
    /// Its slot.
    pub newest_slot: usize,
    /// Versions that the slots may hold.
    pub slots: [Option<u64>; ROOT_SLOTS],
    /// Highest version ever seen or used.
    pub version_max: u64,
    /// Generation of the members that `root` names.
    pub generation: u64,
    /// The next root begins a new epoch, and leaves one version free.
    pub fork_next: bool,
    /// A slot whose replica is out, and is about to take writes: roots call it returning.
    pub coming: Option<usize>,
    /// Blocks that the group being published made and kept: what a replica misses that goes out in it.
    pub grown: u64,
    /// The same of the last groups, oldest first.
    pub made: VecDeque<(Txg, u64)>,
    /// Slots in which something stands that proves nothing on a replica, to be put in order by recovery.
    pub damaged: [bool; crate::format::geometry::ROOT_SLOTS],
    /// Told before anything is acknowledged with fewer replicas.
    pub on_shrink: Option<ShrinkHook>,
}

impl CommitState {
    pub(crate) fn new(committed: &Arc<Committed>) -> CommitState {
        CommitState {
            pins: vec![(committed.root.txg, Arc::downgrade(committed))],
            runs: HashMap::new(),
            orphans: Vec::new(),
        }
    }

    /// The oldest state that somebody holds; the newest one is always held.
    fn oldest_pin(&mut self) -> Txg {
        self.pins.retain(|(_, pin)| pin.strong_count() > 0);
        self.pins.iter().map(|(txg, _)| *txg).min().expect("the newest state is held by the store")
    }
}

/// Nodes on their way to disk.
struct Writer<'a> {
    store: &'a Store,
    txg: Txg,
    fence_ino: u64,
    writes: Vec<(Addr, Slice)>,
    freed: Vec<Run>,
    claims: Vec<Span>,
    error: Option<StoreError>,
    /// Blocks taken from the allocator in advance, so that nodes stand together.
    stock: Span,
}

impl Writer<'_> {
    fn push(&mut self, addr: Addr, block: &[u8]) {
        self.writes.push((addr, Slice::whole(Buf::from_slice(block))));
        if self.writes.len() >= WRITES_MAX && self.error.is_none() {
            let writes = std::mem::take(&mut self.writes);
            self.error = self.store.mirror.write(writes).err().map(StoreError::from);
        }
    }

    fn take(&mut self) -> Result<Addr, StoreError> {
        if self.stock.blocks == 0 {
            self.stock = self.store.space.alloc(&self.store.mirror, Class::Meta, 32)?;
        }
        let addr = self.stock.addr;
        self.stock = Span { addr: addr + 1, blocks: self.stock.blocks - 1 };
        self.claims.push(Span { addr, blocks: 1 });
        Ok(addr)
    }

    /// What was written so far is not wanted: its blocks can be handed out again.
    fn undo(&mut self, kept: usize) -> Result<(), StoreError> {
        self.return_stock()?;
        self.claims.drain(kept..).try_for_each(|span| self.store.space.forget(&self.store.mirror, span))
    }

    fn return_stock(&mut self) -> Result<(), StoreError> {
        if self.stock.blocks > 0 {
            self.store.space.forget(&self.store.mirror, self.stock)?;
            self.stock.blocks = 0;
        }
        Ok(())
    }
}

impl NodeStore for Writer<'_> {
    fn volume(&self) -> Uuid {
        self.store.label.volume
    }
    fn read_node(&self, level: u8, ptr: &BlockPtr) -> Result<Arc<CachedNode>, StoreError> {
        self.store.read_node(level, ptr)
    }
}

impl NodeWriter for Writer<'_> {
    fn alloc(&mut self) -> Result<Addr, StoreError> {
        self.take()
    }
    fn write(&mut self, addr: Addr, block: Vec<u8>) -> u64 {
        let sum = self.store.seed.checksum(addr, &block);
        self.push(addr, &block);
        let level = block[5];
        self.store.remember(&BlockPtr { addr, sum, birth: self.txg }, block, level);
        sum
    }
    fn free(&mut self, ptr: &BlockPtr) {
        self.freed.push(Run { addr: ptr.addr, blocks: 1, birth: ptr.birth });
    }
    fn fence(&self) -> Key {
        Key::inode(self.fence_ino)
    }
}

impl Store {
    /// A barrier: everything that joined before is in a durable root when this returns.
    pub fn sync(&self) -> Result<(), StoreError> {
        if self.options.read_only {
            return Ok(());
        }
        self.commit(Force::IfChanged)?;
        self.say_left_out()
    }

    /// Group of the oldest state that a reader still holds.
    pub(crate) fn oldest_held(&self) -> Txg {
        self.commit_lock.lock().oldest_pin()
    }

    /// Commit the open group.
    pub fn commit(&self, force: Force) -> Result<(), StoreError> {
        let mut state = self.commit_lock.lock();
        self.check_alive()?;
        let view = self.view();
        let idle = view.current.is_empty();
        let waiting = !view.committed.root.dead.is_empty() || !state.orphans.is_empty();
        // Freed space comes back also when nothing else changes; the lists' own blocks are not worth a commit.
        let dead: u64 = view.committed.root.dead_blocks();
        drop(view);
        let skip = match force {
            Force::IfChanged => idle && dead <= DEAD_LEFT,
            Force::Reclaim => idle && !waiting,
            Force::Always | Force::Clean => false,
        };
        let result = if skip { self.declare_members() } else { self.commit_group(&mut state, force) };
        if let Err(error) = &result {
            self.fail(error);
        } else if !skip {
            drop(state);
            self.verify_root();
        }
        result
    }

    fn commit_group(&self, state: &mut CommitState, force: Force) -> Result<(), StoreError> {
        let (group, fence_ino) = self.close_group();
        let txg = group.txg;
        self.signal_room();
        let view = self.view();
        let mut left_out = Unreached::default();
        self.place_rest(&view, &group, &mut left_out)?;
        let (mut writer, tree) = self.write_tree(&view, &group, &mut left_out)?;
        let before = view.committed.root.clone();
        drop(view);

        let mut dead = before.dead.clone();
        self.release_due(state, force, txg, &mut dead, &mut writer.freed)?;
        self.write_dead(state, &mut writer, txg, &mut dead)?;
        writer.return_stock()?;
        for span in &writer.claims {
            self.space.claim(&self.mirror, *span)?;
        }
        let grown = Grown::new(&writer.claims, std::mem::take(&mut writer.freed));
        let space = self.space.write_out(&self.mirror, txg)?;
        writer.writes.extend(space.writes);
        if let Some(error) = writer.error {
            return Err(error);
        }
        self.mirror.write(writer.writes)?;
        self.mirror.check();
        self.mirror.flush()?;

        let mut root = before;
        root.txg = txg;
        root.tree = tree;
        root.space = space.top;
        root.backed = space.backed;
        root.grow_zone = space.grow_zone;
        root.dead = dead;
        let inodes = self.root.lock().root.inodes;
        root.inodes = inodes.saturating_add_signed(group.inodes.load(Ordering::Relaxed));
        self.publish(state, force, (root, fence_ino), &group, &grown)?;
        self.note_left_out(left_out);
        Ok(())
    }

    /// Step 1: swap the delta under the gate. Also returns the first inode number that the group cannot hold.
    fn close_group(&self) -> (Arc<Group>, u64) {
        let _gate = self.gate.write();
        let mut view = self.view.write();
        assert!(view.closing.is_none(), "one commit at a time");
        let closing = view.current.clone();
        *view = Arc::new(View {
            current: Arc::new(Group::new(closing.txg + 1)),
            closing: Some(closing.clone()),
            committed: view.committed.clone(),
        });
        (closing, self.next_ino.load(Ordering::Relaxed))
    }

    /// Place all pages but those that go into their item.
    fn place_rest(&self, view: &View, group: &Group, left_out: &mut Unreached) -> Result<(), StoreError> {
        let files = self.files_to_place(view, group, left_out)?;
        let inos: Vec<u64> = files.keys().copied().collect();
        let held = self.place_lock.lock();
        self.place_files(&held, group, &inos, &|ino, block| block == 0 && files[&ino])?;
        Ok(())
    }

    /// Write what the group makes of the tree, without what is `left_out`; what cannot be changed joins it.
    fn write_tree(
        &self,
        view: &View,
        group: &Group,
        left_out: &mut Unreached,
    ) -> Result<(Writer<'_>, tree::Top), StoreError> {
        let before = view.committed.root.tree;
        loop {
            let changes = self.changes(view, group, left_out)?;
            let mut writer = Writer {
                store: self,
                txg: group.txg,
                fence_ino: view.committed.fence_ino,
                writes: Vec::new(),
                freed: changes.freed,
                claims: changes.claims,
                error: None,
                stock: Span { addr: 0, blocks: 0 },
            };
            if changes.items.is_empty() {
                return Ok((writer, before));
            }
            let kept = writer.claims.len();
            match tree::apply(&mut writer, before, group.txg, &changes.items) {
                Err(error) if error.is_damage() && self.leave_out(view, &changes.items, left_out) > 0 => {
                    writer.undo(kept)?;
                }
                written => return written.map(|top| (writer, top)),
            }
        }
    }

    /// Give back what the dead lists that are due name; their own blocks die now.
    fn release_due(
        &self,
        state: &mut CommitState,
        force: Force,
        txg: Txg,
        dead: &mut Vec<DeadHead>,
        freed: &mut Vec<Run>,
    ) -> Result<(), StoreError> {
        let window = if force == Force::Reclaim { 1 } else { self.options.window };
        let pin = state.oldest_pin();
        let limit = txg.saturating_sub(window).min(pin);
        while dead.first().is_some_and(|head| head.last <= limit) {
            let head = dead.remove(0);
            for run in self.dead_runs(state, &head, freed)? {
                self.space.release(&self.mirror, Span { addr: run.addr, blocks: run.blocks })?;
            }
        }
        let (due, later) = std::mem::take(&mut state.orphans).into_iter().partition(|(group, _)| *group <= pin);
        state.orphans = later;
        for (_, spans) in due {
            for span in spans {
                self.space.forget(&self.mirror, span)?;
            }
        }
        // Few heads fit into a root: merge the oldest ones.
        if dead.len() >= DEAD_LISTS_MAX - 1 {
            let oldest: Vec<DeadHead> = dead.drain(..dead.len() - (DEAD_LISTS_MAX - 3)).collect();
            let mut runs = Vec::new();
            for head in &oldest {
                runs.extend(self.dead_runs(state, head, freed)?);
            }
            let (first, last) = (oldest[0].first, oldest[oldest.len() - 1].last);
            let merged = self.write_runs(txg, first, last, &runs)?;
            if runs.len() <= RUNS_KEPT {
                state.runs.insert(last, runs);
            }
            dead.insert(0, merged);
        }
        Ok(())
    }

    /// The runs of a dead list; the blocks that it stands on are added to `freed`.
    fn dead_runs(
        &self,
        state: &mut CommitState,
        head: &DeadHead,
        freed: &mut Vec<Run>,
    ) -> Result<Vec<Run>, StoreError> {
        let kept = state.runs.remove(&head.last);
        let mut runs = Vec::new();
        match self.read_dead(head, &mut runs, freed) {
            // What the rest names stays allocated, until a check finds that nothing uses it.
            Err(error) if error.is_damage() => log::error!("a list of freed blocks is lost: {error}"),
            other => other?,
        }
        Ok(kept.unwrap_or(runs))
    }

    fn read_dead(&self, head: &DeadHead, runs: &mut Vec<Run>, freed: &mut Vec<Run>) -> Result<(), StoreError> {
        let mut next = Some(head.ptr);
        let mut ring = Ring::default();
        while let Some(ptr) = next {
            freed.push(Run { addr: ptr.addr, blocks: 1, birth: ptr.birth });
            let bad = |rule| StoreError::Corrupt {
                addr: ptr.addr,
                corrupt: crate::format::Corrupt { what: "dead list", rule },
            };
            if !self.label.geometry.holds_data(ptr.addr, 1) {
                return Err(bad("stands inside a zone"));
            }
            ring.step(ptr.addr)?;
            let block = self.mirror.read(ptr.addr, &[ptr.sum])?;
            let (follows, here) = dead::decode(&block, self.label.volume, &ptr)
                .map_err(|corrupt| StoreError::Corrupt { addr: ptr.addr, corrupt })?;
            runs.extend(here);
            next = follows;
        }
        Ok(())
    }

    /// What this group freed goes into a dead list of its own.
    fn write_dead(
        &self,
        state: &mut CommitState,
        writer: &mut Writer<'_>,
        txg: Txg,
        dead: &mut Vec<DeadHead>,
    ) -> Result<(), StoreError> {
        for head in dead.iter().filter(|head| head.ptr.birth == txg) {
            // Merged lists were written by this very group.
            let mut next = Some(head.ptr);
            while let Some(ptr) = next {
                writer.claims.push(Span { addr: ptr.addr, blocks: 1 });
                let block = self.mirror.read(ptr.addr, &[ptr.sum])?;
                next = dead::decode(&block, self.label.volume, &ptr)?.0;
            }
        }
        let runs = coalesce(&writer.freed)?;
        if runs.is_empty() {
            return Ok(());
        }
        let (head, blocks) = self.encode_runs(txg, txg, txg, &runs, &mut || writer.take())?;
        for (addr, block) in blocks {
            writer.push(addr, &block);
        }
        dead.push(head);
        if runs.len() <= RUNS_KEPT {
            state.runs.insert(txg, runs);
        }
        Ok(())
    }

    fn write_runs(&self, txg: Txg, first: Txg, last: Txg, runs: &[Run]) -> Result<DeadHead, StoreError> {
        let mut take = || self.space.alloc(&self.mirror, Class::Meta, 1).map(|span| span.addr);
        let (head, blocks) = self.encode_runs(txg, first, last, runs, &mut take)?;
        let writes = blocks.into_iter().map(|(addr, b)| (addr, Slice::whole(Buf::from_slice(&b)))).collect();
        self.mirror.write(writes)?;
        Ok(head)
    }

    /// Encode the chain from its end, so that each block can point at the next.
    #[allow(clippy::type_complexity)]
    fn encode_runs(
        &self,
        txg: Txg,
        first: Txg,
        last: Txg,
        runs: &[Run],
        take: &mut dyn FnMut() -> Result<Addr, StoreError>,
    ) -> Result<(DeadHead, Vec<(Addr, Vec<u8>)>), StoreError> {
        let mut next = None;
        let mut blocks = Vec::new();
        for chunk in runs.chunks(DEAD_MAX).rev() {
            let addr = take()?;
            let block = dead::encode(self.label.volume, addr, txg, next, chunk);
            next = Some(BlockPtr { addr, sum: self.seed.checksum(addr, &block), birth: txg });
            blocks.push((addr, block));
        }
        let ptr = next.expect("a dead list is never empty");
        let count = runs.iter().map(|r| u64::from(r.blocks)).sum();
        Ok((DeadHead { first, last, ptr, blocks: count }, blocks))
    }

    /// Steps 4 to 6.
    fn publish(
        &self,
        state: &mut CommitState,
        force: Force,
        (mut root, fence_ino): (Root, u64),
        group: &Group,
        grown: &Grown,
    ) -> Result<(), StoreError> {
        let txg = root.txg;
        let mut roots: MutexGuard<'_, RootState> = self.root.lock();
        let clean = force == Force::Clean;
        let start = self.log.start_after(txg);
        root.clean = clean;
        root.log_id = start.id;
        root.log_seq = start.seq;
        root.log_at = start.at;
        root.next_ino = self.next_ino.load(Ordering::Relaxed) + if clean { 0 } else { INO_RANGE };
        // Members and history may have moved on since this group began.
        root.members = roots.root.members.clone();
        root.chain = roots.root.chain.clone();
        root.mount_count = roots.root.mount_count;
        root.at_risk_since_ns = roots.root.at_risk_since_ns;
        roots.grown = grown.count(&mut root, roots.root.txg, self.label.geometry.blocks);
        super::risk::remember(&mut roots, txg);
        self.write_root(&mut roots, root)?;
        roots.fork_next = false;
        let committed = Arc::new(Committed { root: roots.root.clone(), fence_ino });
        drop(roots);

        self.space.finish(&self.mirror);
        self.log.release(start.seq);
        let orphans = std::mem::take(&mut *group.orphans.lock());
        if !orphans.is_empty() {
            state.orphans.push((txg, orphans));
        }
        state.pins.push((txg, Arc::downgrade(&committed)));
        // Pages that went into their items are no longer pages.
        let left = group.pages.load(Ordering::Relaxed);
        super::add_signed(&self.pages, -(left as i64));
        let mut view = self.view.write();
        *view = Arc::new(View { current: view.current.clone(), closing: None, committed });
        drop(view);
        self.signal_room();
        Ok(())
    }
}

/// Sort, and join neighbours of the same birth.
fn coalesce(runs: &[Run]) -> Result<Vec<Run>, StoreError> {
    let mut sorted = runs.to_vec();
    sorted.sort_unstable();
    let mut out: Vec<Run> = Vec::with_capacity(sorted.len());
    for run in sorted {
        if let Some(last) = out.last_mut() {
            if last.addr + u64::from(last.blocks) > run.addr {
                let corrupt = crate::format::Corrupt { what: "volume", rule: "names each block once" };
                return Err(StoreError::Corrupt { addr: run.addr, corrupt });
            }
            if last.addr + u64::from(last.blocks) == run.addr && last.birth == run.birth {
                last.blocks += run.blocks;
                continue;
            }
        }
        out.push(run);
    }
    Ok(out)
}
