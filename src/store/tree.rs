//! The copy-on-write B+tree of items.
//!
//! *Guarantees*: a committed tree never changes: [`apply`] writes new nodes and names the old ones that it replaced,
//! each exactly once. Reading visits each node at most once and ends also on hostile trees: levels fall strictly,
//! and the keys of a node lie in `[own bound, next sibling's bound)`, so that no node can be reached twice.
//! *Assumes*: [`NodeStore::read_node`] returns proven, decoded nodes of the asked level and birth.
//! *Fails when*: a node is lost or breaks a rule: [`StoreError::Lost`], [`StoreError::Corrupt`]; there is no room for
//! a new node. A failed [`apply`] harms nothing: its caller drops what was allocated, written and freed.
//! *Order*: none; nodes may reach the medium in any order before the root that names them.
//! *Not here*: caching, allocation, reuse of what was freed (`store::space`), the delta above the tree.

mod apply;
#[cfg(test)]
mod tests;

pub use apply::apply;

use super::{StoreError, Value};
use crate::format::node::{LEVEL_MAX, Node};
use crate::format::{Addr, BlockPtr, Corrupt, Key, Txg, Uuid};
use std::ops::ControlFlow;
use std::sync::Arc;

/// What reading a tree needs.
pub trait NodeStore: Sync {
    /// The volume that nodes belong to.
    fn volume(&self) -> Uuid;
    /// The proven, decoded node at `ptr`, which must be at `level`; perhaps from a cache.
    fn read_node(&self, level: u8, ptr: &BlockPtr) -> Result<Arc<CachedNode>, StoreError>;
    /// Leaf `i` of these children of the node at `parent` is read next: a store may read what follows with it.
    fn will_read_leaf(&self, _parent: Addr, _children: &[(Key, BlockPtr)], _i: usize) {}
}

/// What changing a tree needs beside reading.
pub trait NodeWriter: NodeStore {
    /// Take one metadata block.
    fn alloc(&mut self) -> Result<Addr, StoreError>;
    /// Queue the sealed block for writing; returns its checksum.
    fn write(&mut self, addr: Addr, block: Vec<u8>) -> u64;
    /// The block is dead after this group.
    fn free(&mut self, ptr: &BlockPtr);
    /// The old tree holds no item at or above this key. What comes there needs no old node, readable or not.
    fn fence(&self) -> Key {
        Key::MAX
    }
}

/// A proven node: the block and its decoded shape.
#[derive(Debug)]
pub struct CachedNode {
    /// The block; a leaf's ranges point into it.
    pub block: Vec<u8>,
    /// What it holds.
    pub node: Node,
}

/// The top of a tree: level and pointer; `None`: no item.
pub type Top = Option<(u8, BlockPtr)>;

/// The value of `key`.
pub fn get(store: &dyn NodeStore, top: Top, key: Key) -> Result<Option<Value>, StoreError> {
    let Some(leaf) = leaf_of(store, top, key)? else { return Ok(None) };
    let Node::Leaf(items) = &leaf.node else { unreachable!("the level was checked") };
    let found = items.binary_search_by_key(&key, |item| item.0).ok();
    Ok(found.map(|i| Value::from(&leaf.block[items[i].1.clone()])))
}

/// The leaf that holds `key`, or would; `None`: all items lie above it.
pub fn leaf_of(store: &dyn NodeStore, top: Top, key: Key) -> Result<Option<Arc<CachedNode>>, StoreError> {
    let Some((mut level, mut ptr)) = top else { return Ok(None) };
    let (mut lower, mut upper) = (Key::MIN, None);
    loop {
        let node = read_within(store, level, &ptr, lower, upper)?;
        match &node.node {
            Node::Leaf(_) => return Ok(Some(node)),
            Node::Inner(children) => {
                let Some(i) = children.partition_point(|child| child.0 <= key).checked_sub(1) else { return Ok(None) };
                upper = children.get(i + 1).map(|next| next.0).or(upper);
                if level == 1 {
                    store.will_read_leaf(ptr.addr, children, i);
                }
                (lower, ptr) = children[i];
                level -= 1;
            }
        }
    }
}

/// Read a node and check that its keys lie in `[lower, upper)`; `None`: no upper bound.
pub(crate) fn read_within(
    store: &dyn NodeStore,
    level: u8,
    ptr: &BlockPtr,
    lower: Key,
    upper: Option<Key>,
) -> Result<Arc<CachedNode>, StoreError> {
    let broken = |rule| StoreError::Corrupt { addr: ptr.addr, corrupt: Corrupt { what: "tree node", rule } };
    if level >= LEVEL_MAX {
        return Err(broken("is at a possible level"));
    }
    let node = store.read_node(level, ptr)?;
    let (is_leaf, first, last) = match &node.node {
        Node::Leaf(items) => (true, items.first().map(|i| i.0), items.last().map(|i| i.0)),
        Node::Inner(children) => (false, children.first().map(|c| c.0), children.last().map(|c| c.0)),
    };
    let (Some(first), Some(last)) = (first, last) else { return Err(broken("has entries")) };
    if is_leaf != (level == 0) {
        return Err(broken("is at the expected level"));
    }
    if first < lower || upper.is_some_and(|bound| last >= bound) {
        return Err(broken("has keys inside its parent's bounds"));
    }
    Ok(node)
}

/// A reader that moves forward over the items of one tree and reads each node once.
///
/// After an error the next call goes on behind the subtree that could not be read.
pub struct Cursor<'a> {
    store: &'a dyn NodeStore,
    /// Where to go next, deepest last.
    path: Vec<Step>,
    /// The top, until the first call has read it.
    top: Top,
    from: Key,
    /// Where it ends, exclusive.
    end: Option<Key>,
    /// Behind a node that cannot be read there is nothing.
    damage_ends: bool,
}

/// A node of the path and what of it comes next.
struct Step {
    node: Arc<CachedNode>,
    addr: Addr,
    level: u8,
    next: usize,
    upper: Option<Key>,
}

impl<'a> Cursor<'a> {
    /// Before the first item at or above `from`. Reads nothing yet.
    pub fn new(store: &'a dyn NodeStore, top: Top, from: Key) -> Cursor<'a> {
        Cursor { store, path: Vec::new(), top, from, end: None, damage_ends: false }
    }

    /// End before `end`: no node is read whose keys all lie at or above it.
    pub fn until(self, end: Key) -> Cursor<'a> {
        Cursor { end: Some(end), ..self }
    }

    /// What cannot be read holds nothing at or above where this begins: end there, without an error.
    pub fn ending_at_damage(self) -> Cursor<'a> {
        Cursor { damage_ends: true, ..self }
    }

    /// The next item, in rising order.
    #[allow(clippy::should_implement_trait)] // A fallible next that may go on after an error is not an iterator's.
    pub fn next(&mut self) -> Result<Option<(Key, Value)>, StoreError> {
        if let Some((level, ptr)) = self.top.take() {
            self.descend(level, &ptr, Key::MIN, None)?;
        }
        loop {
            let Some(step) = self.path.last_mut() else { return Ok(None) };
            let i = step.next;
            step.next += 1;
            let (level, parent_upper) = (step.level, step.upper);
            match &step.node.node {
                Node::Leaf(items) if i < items.len() => {
                    let (key, range) = &items[i];
                    if self.end.is_some_and(|end| *key >= end) {
                        self.path.clear();
                        return Ok(None);
                    }
                    return Ok(Some((*key, Value::from(&step.node.block[range.clone()]))));
                }
                Node::Inner(children) if i < children.len() => {
                    let (lower, ptr) = children[i];
                    if self.end.is_some_and(|end| lower >= end) {
                        self.path.clear();
                        return Ok(None);
                    }
                    let upper = children.get(i + 1).map(|next| next.0).or(parent_upper);
                    if level == 1 {
                        self.store.will_read_leaf(step.addr, children, i);
                    }
                    self.descend(level - 1, &ptr, lower, upper)?;
                }
                _ => {
                    self.path.pop();
                }
            }
        }
    }

    fn descend(&mut self, level: u8, ptr: &BlockPtr, lower: Key, upper: Option<Key>) -> Result<(), StoreError> {
        let node = match read_within(self.store, level, ptr, lower, upper) {
            Err(error) if self.damage_ends && error.is_damage() => {
                self.path.clear();
                return Ok(());
            }
            found => found?,
        };
        let next = match &node.node {
            Node::Leaf(items) => items.partition_point(|item| item.0 < self.from),
            Node::Inner(children) => children.partition_point(|child| child.0 <= self.from).saturating_sub(1),
        };
        self.path.push(Step { node, addr: ptr.addr, level, next, upper });
        Ok(())
    }
}

/// What [`walk`] calls for each node: level, pointer, and the node or why it could not be read.
pub type Visit<'a> = dyn FnMut(u8, &BlockPtr, Result<&CachedNode, &StoreError>) -> ControlFlow<()> + 'a;

/// Visit every node once, parents before children, in key order; goes on past nodes that cannot be read.
/// `Break` ends the walk.
pub fn walk(store: &dyn NodeStore, top: Top, visit: &mut Visit<'_>) -> ControlFlow<()> {
    walk_born_after(store, top, 0, visit)
}

/// As [`walk`], but leaves out (and does not read) every subtree whose top was born at or before `birth`; 0: none.
pub fn walk_born_after(store: &dyn NodeStore, top: Top, birth: Txg, visit: &mut Visit<'_>) -> ControlFlow<()> {
    match top {
        Some((level, ptr)) => walk_below(store, level, ptr, (Key::MIN, None), birth, visit),
        None => ControlFlow::Continue(()),
    }
}

fn walk_below(
    store: &dyn NodeStore,
    level: u8,
    ptr: BlockPtr,
    bounds: (Key, Option<Key>),
    birth: Txg,
    visit: &mut Visit<'_>,
) -> ControlFlow<()> {
    if birth > 0 && ptr.birth <= birth {
        return ControlFlow::Continue(());
    }
    let node = match read_within(store, level, &ptr, bounds.0, bounds.1) {
        Ok(node) => node,
        Err(error) => return visit(level, &ptr, Err(&error)),
    };
    visit(level, &ptr, Ok(&node))?;
    if let Node::Inner(children) = &node.node {
        for (i, (lower, child)) in children.iter().enumerate() {
            let upper = children.get(i + 1).map(|next| next.0).or(bounds.1);
            walk_below(store, level - 1, *child, (*lower, upper), birth, visit)?;
        }
    }
    ControlFlow::Continue(())
}
