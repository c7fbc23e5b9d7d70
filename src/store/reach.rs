//! Nodes that are lost on every replica, and what they cost: nothing but what lies in them.
//!
//! *Guarantees*: [`Transaction::prepare`] refuses a change that needs a node that cannot be read, before it joins: no
//! commit meets it. What is new to the committed tree (inodes made since) needs no old node, so that new files can be
//! made beside any loss. Where a commit meets a lost node all the same (it was lost in between, or a log record of
//! before asks for it), the changes of those inodes and names are left out, and said: all others become durable, and who
//! syncs is told. *Assumes*: the caller of `prepare` holds what excludes other changes of the same items until it commits.
//! *Fails when*: a node on the way is lost or corrupt: that change only. *Order*: as reading: none is held.
//! *Not here*: repair.
//!
//! What a commit reads of the old tree, and so what `prepare` looks for: the leaf of each changed item; of a file
//! with changed blocks the leaves of its inode and file map, every leaf from the first changed block to the extent
//! that holds the last one, and the leaf for what is left of an extent whose end is cut off.

use super::delta::{Committed, Group, View};
use super::tree::{self, CachedNode, Cursor, NodeStore};
use super::{FileChange, Store, StoreError, Transaction, Value};
use crate::format::item::EXTENT_BLOCKS_MAX;
use crate::format::{BlockPtr, ItemKind, Key, Uuid};
use crate::sync::atomic::{AtomicBool, Ordering};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a commit does without: what it changes lies in nodes that cannot be read.
#[derive(Default)]
pub(crate) struct Unreached {
    /// Inodes, with all they have but their names.
    inos: BTreeMap<u64, StoreError>,
    /// Names in directories. Each stands for itself: it costs no other one, which another leaf holds.
    names: BTreeMap<Key, StoreError>,
}

impl Unreached {
    /// All of `ino` but its names.
    pub fn inode(&mut self, ino: u64, error: StoreError) {
        self.inos.entry(ino).or_insert(error);
    }
    /// Whether it has `ino`.
    pub fn has_inode(&self, ino: u64) -> bool {
        self.inos.contains_key(&ino)
    }
    /// Whether the item at `key` is left out.
    pub fn has(&self, key: Key) -> bool {
        if key.kind == ItemKind::Dirent { self.names.contains_key(&key) } else { self.has_inode(key.ino) }
    }
    fn item(&mut self, key: Key, error: StoreError) {
        if key.kind == ItemKind::Dirent {
            self.names.insert(key, error);
        } else {
            self.inode(key.ino, error);
        }
    }
    fn len(&self) -> usize {
        self.inos.len() + self.names.len()
    }
}

/// Inodes whose changes could not be made durable.
#[derive(Default)]
pub(crate) struct LeftOut {
    /// With the reason; each fsync of them fails until the next mount.
    inos: BTreeMap<u64, StoreError>,
    /// No sync has told anybody yet.
    unsaid: Option<StoreError>,
}

/// Runs of consecutive numbers in `blocks`, which rise: (first, last).
fn runs(blocks: impl Iterator<Item = u64>) -> Vec<(u64, u64)> {
    let mut out: Vec<(u64, u64)> = Vec::new();
    for block in blocks {
        match out.last_mut() {
            Some((_, last)) if *last + 1 == block => *last = block,
            _ => out.push((block, block)),
        }
    }
    out
}

/// Keys of the extents of `ino` from the one that holds block `first` to those that can hold block `last`.
fn extents_of(ino: u64, first: u64, last: u64) -> (Key, Key) {
    let key = |block| Key::new(ino, ItemKind::Extent, block);
    // An extent is named by its last block.
    (key(first), key(last.saturating_add(u64::from(EXTENT_BLOCKS_MAX))))
}

/// The committed items in `from..end`. A damaged node hides nothing of an inode that is new to the tree.
fn items_of<'a>(nodes: &'a dyn NodeStore, committed: &Committed, from: Key, end: Key) -> Cursor<'a> {
    let cursor = Cursor::new(nodes, committed.root.tree, from).until(end);
    if from.ino < committed.fence_ino { cursor } else { cursor.ending_at_damage() }
}

impl Transaction<'_> {
    /// Whether the commit will find what it must rewrite. May read the disk; nothing has changed if it fails.
    ///
    /// # Errors
    /// [`StoreError::Lost`] or [`StoreError::Corrupt`] of a node on the way.
    pub fn prepare(&self) -> Result<(), StoreError> {
        self.prove(self.store)
    }

    /// As [`Transaction::prepare`], without the disk; `None`: something would have to be read.
    pub fn prepare_in_memory(&self) -> Option<Result<(), StoreError>> {
        let nodes = InMemory { store: self.store, missed: AtomicBool::new(false) };
        let outcome = self.prove(&nodes);
        (!nodes.missed.load(Ordering::Relaxed)).then_some(outcome)
    }

    fn prove(&self, nodes: &dyn NodeStore) -> Result<(), StoreError> {
        let store = self.store;
        let view = store.view();
        let (committed, group) = (&view.committed, &view.current);
        // What the open group has was looked for when it came.
        for (key, _) in self.items.iter().filter(|(key, _)| group.get(*key).is_none()) {
            store.probe_item(nodes, committed, *key)?;
        }
        for change in &self.files {
            let ino = change.ino();
            let known = group.with_file(ino, |file| change.touched(|block| file.segments.contains_key(&block)));
            if known.is_none() {
                store.probe_item(nodes, committed, Key::inode(ino))?;
                store.probe_item(nodes, committed, Key::new(ino, ItemKind::FileMap, 0))?;
            }
            for (first, last) in known.unwrap_or_else(|| change.touched(|_| false)) {
                store.probe_extents(nodes, committed, ino, first, last)?;
            }
        }
        Ok(())
    }

    /// Forget everything but what was reserved, to be filled anew.
    pub fn clear(&mut self) {
        self.items.clear();
        self.files.retain(|change| matches!(change, FileChange::Reserve { .. }));
        self.inodes = 0;
    }
}

impl FileChange {
    fn ino(&self) -> u64 {
        let (FileChange::Pages { ino, .. }
        | FileChange::Resize { ino, .. }
        | FileChange::Punch { ino, .. }
        | FileChange::Reserve { ino, .. }) = self;
        *ino
    }

    /// Runs of blocks that change: (first, last); of those that get something without those that `has` them.
    fn touched(&self, has: impl Fn(u64) -> bool) -> Vec<(u64, u64)> {
        match self {
            FileChange::Punch { first, end, .. } => vec![(*first, end - 1)],
            _ => runs(self.blocks().filter(|block| !has(*block))),
        }
    }

    /// Blocks that get something, rising.
    fn blocks(&self) -> impl Iterator<Item = u64> {
        let pages = match self {
            FileChange::Pages { pages, .. } | FileChange::Resize { edges: pages, .. } => &pages[..],
            FileChange::Punch { .. } | FileChange::Reserve { .. } => &[],
        };
        let reserved = match self {
            FileChange::Reserve { blocks, .. } => &blocks[..],
            _ => &[],
        };
        pages.iter().map(|(block, _)| *block).chain(reserved.iter().map(|(block, _)| *block))
    }
}

/// The nodes that are in memory.
struct InMemory<'a> {
    store: &'a Store,
    /// One was asked for that is not.
    missed: AtomicBool,
}

impl NodeStore for InMemory<'_> {
    fn volume(&self) -> Uuid {
        self.store.label.volume
    }
    fn read_node(&self, level: u8, ptr: &BlockPtr) -> Result<Arc<CachedNode>, StoreError> {
        self.store.cached_node(level, ptr).ok_or_else(|| {
            self.missed.store(true, Ordering::Relaxed);
            StoreError::Failed("a node is not in memory".into())
        })
    }
}

impl Store {
    /// The committed item at `key`. A damaged node hides nothing of an inode that is new to the tree.
    pub(crate) fn committed_item(&self, committed: &Committed, key: Key) -> Result<Option<Value>, StoreError> {
        match tree::get(self, committed.root.tree, key) {
            Err(error) if error.is_damage() && key.ino >= committed.fence_ino => Ok(None),
            found => found,
        }
    }

    /// The committed items in `from..end`. As above, for inodes that are new to the tree.
    pub(crate) fn committed_items<'a>(&'a self, committed: &Committed, from: Key, end: Key) -> Cursor<'a> {
        items_of(self, committed, from, end)
    }

    /// The committed extents of `ino` from the one that holds block `first` (or the next one) to those that can hold
    /// block `last`.
    pub(crate) fn committed_extents<'a>(
        &'a self,
        committed: &Committed,
        ino: u64,
        first: u64,
        last: u64,
    ) -> Cursor<'a> {
        let (from, end) = extents_of(ino, first, last);
        self.committed_items(committed, from, end)
    }

    fn probe_item(&self, nodes: &dyn NodeStore, committed: &Committed, key: Key) -> Result<(), StoreError> {
        match tree::leaf_of(nodes, committed.root.tree, key) {
            Err(error) if error.is_damage() && key.ino >= committed.fence_ino => Ok(()),
            found => found.map(drop),
        }
    }

    /// Whether blocks `first..=last` of `ino` can be written anew or given up.
    fn probe_extents(
        &self,
        nodes: &dyn NodeStore,
        committed: &Committed,
        ino: u64,
        first: u64,
        last: u64,
    ) -> Result<(), StoreError> {
        let (from, end) = extents_of(ino, first, last);
        let mut cursor = items_of(nodes, committed, from, end);
        let mut is_first = true;
        while let Some((key, value)) = cursor.next()? {
            if std::mem::take(&mut is_first) && self.decode_extent(key, &value)?.first(key) < first {
                self.probe_item(nodes, committed, Key::new(ino, ItemKind::Extent, first - 1))?;
            }
            if key.off >= last {
                return Ok(());
            }
        }
        self.probe_item(nodes, committed, Key::new(ino, ItemKind::Extent, last))
    }

    /// Whether all content of `ino` can be given up at once.
    pub fn probe_content(&self, ino: u64) -> Result<(), StoreError> {
        self.probe_extents(self, &self.view().committed, ino, 0, u64::MAX - 1)
    }

    /// A commit could not apply `items`: the inodes and names whose leaves cannot be read join `left_out`. Returns how many.
    pub(crate) fn leave_out(&self, view: &View, items: &[(Key, Option<Value>)], left_out: &mut Unreached) -> usize {
        let before = left_out.len();
        for (key, _) in items {
            if !left_out.has(*key)
                && let Err(error) = self.probe_item(self, &view.committed, *key)
                && error.is_damage()
            {
                left_out.item(*key, error);
            }
        }
        left_out.len() - before
    }

    /// Files with pages of `group`, rising, but those whose inode cannot be read: these join `left_out`. With each:
    /// whether its block 0 goes into its item.
    pub(crate) fn files_to_place(
        &self,
        view: &View,
        group: &Group,
        left_out: &mut Unreached,
    ) -> Result<BTreeMap<u64, bool>, StoreError> {
        let mut found = BTreeMap::new();
        for (ino, _) in group.files().into_iter().filter(|(_, pages)| *pages > 0) {
            match self.inline_size(view, group, ino) {
                Ok(size) => drop(found.insert(ino, size.is_some())),
                Err(error) if error.is_damage() => left_out.inode(ino, error),
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// A root is durable without these changes.
    pub(crate) fn note_left_out(&self, left_out: Unreached) {
        let mut noted = self.left_out.lock();
        let names = left_out.names.into_iter().map(|(key, error)| ("a name in directory", key.ino, error));
        let inodes = left_out.inos.into_iter().map(|(ino, error)| ("inode", ino, error));
        for (what, ino, error) in names.chain(inodes) {
            ::log::error!("changes of {what} {ino} are lost, what they belong to cannot be read: {error}");
            noted.unsaid = Some(error.clone());
            noted.inos.insert(ino, error);
        }
    }

    /// What a sync has to say of changes that were left out; once.
    pub(crate) fn say_left_out(&self) -> Result<(), StoreError> {
        self.left_out.lock().unsaid.take().map_or(Ok(()), Err)
    }

    /// Whether changes of `ino` were left out since the volume was opened.
    pub(crate) fn check_kept(&self, ino: u64) -> Result<(), StoreError> {
        self.left_out.lock().inos.get(&ino).map_or(Ok(()), |error| Err(error.clone()))
    }
}
