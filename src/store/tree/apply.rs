//! Applying sorted changes to a copy-on-write tree.
//!
//! *Guarantees*: rewrites only nodes that a change touches, their ancestors, and at most one sibling beside a node
//! that would fall below a third; frees every node that it replaces, once. A sibling that cannot be read is left
//! alone: repacking is a favour, not a duty. *Assumes*: changes rise strictly; values ≤ `VALUE_MAX`.
//! *Fails when*: a touched node cannot be read, unless what comes there is new to the tree ([`NodeWriter::fence`]); no block is left for a new one. *Order*: nodes are written as they are
//! finished, children before parents. *Not here*: reading (the parent module).
//!
//! The old tree is streamed in key order through one packer per level. A packer holds back up to two nodes of
//! entries, so that what ends a stretch of rewritten nodes can still be spread evenly. A subtree without changes is
//! handed to the packer above as it stands, once the packers below have been closed; if one of those holds too
//! little for a node, the subtree is opened down to that level instead and its first node pulled in.

use super::{CachedNode, NodeWriter, Top, read_within};
use crate::format::block::PAYLOAD;
use crate::format::node::{self, INNER_ENTRY, INNER_MAX, LEAF_ENTRY, Node};
use crate::format::{BlockPtr, Key, Txg};
use crate::store::{StoreError, Value};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// A changed item: its new value, or `None` if it is deleted.
type Change = (Key, Option<Value>);

/// Bytes of a full inner node.
const INNER_FULL: usize = INNER_MAX * INNER_ENTRY;
const _: () = assert!(INNER_FULL <= PAYLOAD);

/// Write the tree that `changes` (strictly rising) make of `top`; `None`: no item is left.
///
/// # Errors
/// [`StoreError::Lost`] or [`StoreError::Corrupt`] of a node that holds or would hold a changed item, and what
/// [`NodeWriter::alloc`] returns. The old tree stands; the caller drops what was allocated, written and freed.
pub fn apply(store: &mut dyn NodeWriter, top: Top, birth: Txg, changes: &[Change]) -> Result<Top, StoreError> {
    debug_assert!(changes.windows(2).all(|pair| pair[0].0 < pair[1].0), "changes rise");
    if changes.is_empty() {
        return Ok(top);
    }
    let mut rewrite = Rewrite { store, birth, leaf: Packer::default(), inner: Vec::new(), append: false };
    match top {
        Some((level, ptr)) => rewrite.visit(level, (Key::MIN, ptr), None, changes, true)?,
        None => rewrite.merge(&[], None, changes, true)?,
    }
    rewrite.finish()
}

/// A value in a leaf being packed.
enum Item {
    Old(Arc<CachedNode>, Range<usize>),
    New(Value),
}

impl AsRef<[u8]> for Item {
    fn as_ref(&self) -> &[u8] {
        match self {
            Item::Old(node, range) => &node.block[range.clone()],
            Item::New(value) => value,
        }
    }
}

/// What a packer packs.
trait Entry {
    /// Bytes of a full node of such entries.
    const FULL: usize;
    /// Bytes that the entry takes.
    fn weight(&self) -> usize;
}

impl Entry for Item {
    const FULL: usize = PAYLOAD;
    fn weight(&self) -> usize {
        LEAF_ENTRY + self.as_ref().len()
    }
}

impl Entry for BlockPtr {
    const FULL: usize = INNER_FULL;
    fn weight(&self) -> usize {
        INNER_ENTRY
    }
}

/// Entries of one level that are not in a node yet.
struct Packer<T> {
    entries: VecDeque<(Key, T)>,
    bytes: usize,
}

impl<T> Default for Packer<T> {
    fn default() -> Packer<T> {
        Packer { entries: VecDeque::new(), bytes: 0 }
    }
}

impl<T: Entry> Packer<T> {
    fn push(&mut self, key: Key, entry: T) {
        self.bytes += entry.weight();
        self.entries.push_back((key, entry));
    }
    /// Take the last entry back out.
    fn pop(&mut self) {
        if let Some((_, entry)) = self.entries.pop_back() {
            self.bytes -= entry.weight();
        }
    }
    fn prepend(&mut self, entries: impl DoubleEndedIterator<Item = (Key, T)>) {
        for (key, entry) in entries.rev() {
            self.bytes += entry.weight();
            self.entries.push_front((key, entry));
        }
    }
    /// Take entries for one node from the front: as close to `target` bytes as they come, at least one.
    fn cut(&mut self, target: usize) -> Vec<(Key, T)> {
        let (mut taken, mut count) = (0, 0);
        for (_, entry) in &self.entries {
            let weight = entry.weight();
            let near = target >= T::FULL || taken + weight / 2 <= target;
            if taken + weight > T::FULL || count > 0 && !near {
                break;
            }
            taken += weight;
            count += 1;
        }
        assert!(count > 0, "an entry fits in a node");
        self.bytes -= taken;
        self.entries.drain(..count).collect()
    }
    /// A node that can be written while more entries come; at least a whole node stays behind.
    fn cut_early(&mut self, append: bool) -> Option<Vec<(Key, T)>> {
        // Beside appends, room is left for later inserts.
        let target = if append { T::FULL } else { T::FULL / 8 * 7 };
        (self.bytes > 2 * T::FULL).then(|| self.cut(target))
    }
    /// The next of the last nodes; spread evenly unless appending.
    fn cut_last(&mut self, append: bool) -> Option<Vec<(Key, T)>> {
        let nodes = self.bytes.div_ceil(T::FULL);
        let target = if append || nodes == 1 { T::FULL } else { self.bytes.div_ceil(nodes.max(1)) };
        (!self.entries.is_empty()).then(|| self.cut(target))
    }
}

/// One run of [`apply`].
struct Rewrite<'a> {
    store: &'a mut dyn NodeWriter,
    birth: Txg,
    leaf: Packer<Item>,
    /// Packer of level 1 first.
    inner: Vec<Packer<BlockPtr>>,
    /// The stream has passed the last old item and goes on: pack full, more will follow there.
    append: bool,
}

impl Rewrite<'_> {
    /// Stream the subtree at `entry`, whose keys lie below `upper`, and its changes.
    fn visit(
        &mut self,
        level: u8,
        entry: (Key, BlockPtr),
        upper: Option<Key>,
        changes: &[Change],
        rightmost: bool,
    ) -> Result<(), StoreError> {
        let read = |this: &Self| read_within(&*this.store, level, &entry.1, entry.0, upper);
        let node = if changes.is_empty() {
            let wanted = self.lacks_entries(level).then(|| read(self).ok()).flatten();
            let Some(node) = wanted else {
                (0..=level).try_for_each(|l| self.close(l))?;
                return self.push_inner(level + 1, entry);
            };
            node
        } else {
            match read(self) {
                // Nothing of it can lie among the changes: it stands as it is, and they come behind it.
                Err(error) if error.is_damage() && changes[0].0 >= self.store.fence() => {
                    (0..=level).try_for_each(|l| self.close(l))?;
                    self.push_inner(level + 1, entry)?;
                    return self.merge(&[], None, changes, rightmost);
                }
                found => found?,
            }
        };
        self.store.free(&entry.1);
        let children = match &node.node {
            Node::Leaf(items) => return self.merge(items, Some(&node), changes, rightmost),
            Node::Inner(children) => children,
        };
        let mut rest = changes;
        for (i, child) in children.iter().enumerate() {
            let next = children.get(i + 1).map(|next| next.0);
            let share = next.map_or(rest.len(), |bound| rest.partition_point(|change| change.0 < bound));
            let (mine, others) = rest.split_at(share);
            rest = others;
            self.visit(level - 1, *child, next.or(upper), mine, rightmost && next.is_none())?;
        }
        assert!(rest.is_empty());
        Ok(())
    }

    /// Stream the items of a leaf, merged with its changes.
    fn merge(
        &mut self,
        items: &[(Key, Range<usize>)],
        node: Option<&Arc<CachedNode>>,
        changes: &[Change],
        rightmost: bool,
    ) -> Result<(), StoreError> {
        let mut changes = changes.iter().peekable();
        for (key, range) in items {
            while let Some((new_key, value)) = changes.next_if(|change| change.0 < *key) {
                self.push_new(*new_key, value.as_ref())?;
            }
            if let Some((_, value)) = changes.next_if(|change| change.0 == *key) {
                self.push_new(*key, value.as_ref())?;
            } else if let Some(node) = node {
                self.push_leaf(*key, Item::Old(node.clone(), range.clone()))?;
            }
        }
        for (key, value) in changes {
            self.append |= rightmost && value.is_some();
            self.push_new(*key, value.as_ref())?;
        }
        Ok(())
    }

    fn push_new(&mut self, key: Key, value: Option<&Value>) -> Result<(), StoreError> {
        value.map_or(Ok(()), |value| self.push_leaf(key, Item::New(value.clone())))
    }

    fn push_leaf(&mut self, key: Key, item: Item) -> Result<(), StoreError> {
        self.leaf.push(key, item);
        while let Some(items) = self.leaf.cut_early(self.append) {
            self.write_leaf(&items)?;
        }
        Ok(())
    }

    fn push_inner(&mut self, level: u8, child: (Key, BlockPtr)) -> Result<(), StoreError> {
        let append = self.append;
        let packer = self.packer(level);
        packer.push(child.0, child.1);
        while let Some(children) = self.packer(level).cut_early(append) {
            self.write_inner(level, &children)?;
        }
        Ok(())
    }

    fn packer(&mut self, level: u8) -> &mut Packer<BlockPtr> {
        let index = usize::from(level) - 1;
        if index >= self.inner.len() {
            self.inner.resize_with(index + 1, Packer::default);
        }
        &mut self.inner[index]
    }

    /// Bytes that the packer of `level` holds.
    fn bytes(&self, level: u8) -> usize {
        match level {
            0 => self.leaf.bytes,
            _ => self.inner.get(usize::from(level) - 1).map_or(0, |packer| packer.bytes),
        }
    }

    /// Whether closing the packers up to `level` would leave a node below a third.
    fn lacks_entries(&self, level: u8) -> bool {
        let mut nodes_below = 0;
        (0..=level).any(|l| {
            let full = if l == 0 { PAYLOAD } else { INNER_FULL };
            let bytes = self.bytes(l) + nodes_below * INNER_ENTRY;
            nodes_below = bytes.div_ceil(full);
            bytes > 0 && bytes < full / 3
        })
    }

    /// Write all that the packer of `level` holds.
    fn close(&mut self, level: u8) -> Result<(), StoreError> {
        let append = self.append;
        if level == 0 {
            while let Some(items) = self.leaf.cut_last(append) {
                self.write_leaf(&items)?;
            }
        } else {
            while let Some(children) = self.packer(level).cut_last(append) {
                self.write_inner(level, &children)?;
            }
        }
        Ok(())
    }

    fn write_leaf(&mut self, items: &[(Key, Item)]) -> Result<(), StoreError> {
        let addr = self.store.alloc()?;
        let block = node::encode_leaf(self.store.volume(), addr, self.birth, items);
        let ptr = BlockPtr { addr, sum: self.store.write(addr, block), birth: self.birth };
        self.push_inner(1, (items[0].0, ptr))
    }

    fn write_inner(&mut self, level: u8, children: &[(Key, BlockPtr)]) -> Result<(), StoreError> {
        let addr = self.store.alloc()?;
        let block = node::encode_inner(self.store.volume(), addr, self.birth, level, children);
        let ptr = BlockPtr { addr, sum: self.store.write(addr, block), birth: self.birth };
        self.push_inner(level + 1, (children[0].0, ptr))
    }

    /// The stream has ended: write what is left, level by level, until one node bounds it all.
    fn finish(mut self) -> Result<Top, StoreError> {
        let mut level = 0;
        loop {
            let alone = self.inner.iter().skip(usize::from(level)).all(|packer| packer.bytes == 0);
            if alone && level > 0 && self.packer(level).entries.len() == 1 {
                let ptr = self.packer(level).entries[0].1;
                return Ok(Some(self.collapse(level - 1, ptr)));
            }
            if alone && self.bytes(level) == 0 {
                return Ok(None);
            }
            // Appending leaves a small last node on purpose: it is filled next.
            let full = if level == 0 { PAYLOAD } else { INNER_FULL };
            if !alone && !self.append && self.bytes(level) > 0 && self.bytes(level) < full / 3 {
                self.pull_previous(level);
            }
            self.close(level)?;
            level += 1;
        }
    }

    /// Pull the last node before the entries of `level` back in. It is an old one: a packer holds back a whole node
    /// of what it was given since an old node was last handed over. Does nothing if that node cannot be read.
    fn pull_previous(&mut self, level: u8) {
        let first = match level {
            0 => self.leaf.entries.front().map(|entry| entry.0),
            _ => self.packer(level).entries.front().map(|entry| entry.0),
        };
        loop {
            let Some(above) = (level + 1..=self.inner.len() as u8).find(|l| self.bytes(*l) > 0) else { return };
            let Some(&(lower, ptr)) = self.packer(above).entries.back() else { return };
            let Ok(node) = read_within(&*self.store, above - 1, &ptr, lower, first) else { return };
            self.packer(above).pop();
            self.store.free(&ptr);
            match &node.node {
                Node::Leaf(items) => {
                    self.leaf.prepend(items.iter().map(|(key, range)| (*key, Item::Old(node.clone(), range.clone()))));
                }
                Node::Inner(children) => self.packer(above - 1).prepend(children.iter().copied()),
            }
            if above - 1 == level {
                return;
            }
        }
    }

    /// Give up tops that have one child. (A top that was written here has more.)
    fn collapse(&mut self, mut level: u8, mut ptr: BlockPtr) -> (u8, BlockPtr) {
        while level > 0 && ptr.birth < self.birth {
            let Ok(node) = read_within(&*self.store, level, &ptr, Key::MIN, None) else { break };
            let Node::Inner(children) = &node.node else { break };
            let [(_, child)] = children[..] else { break };
            self.store.free(&ptr);
            (level, ptr) = (level - 1, child);
        }
        (level, ptr)
    }
}
