//! Reading leaves ahead: who needs several leaves of one parent soon needs the next ones.
//!
//! *Guarantees*: only nodes that prove themselves come into the cache; at most [`AHEAD_MAX`] leaves, and an eighth of the
//! cache, are read at once, in one request. Whoever jumps about in a large tree reads nothing ahead: the count starts at
//! one for each parent, and grows with each miss below the same one.
//! *Assumes*: the children are those of one node of a tree that is held. *Fails when*: never: what cannot be read ahead is
//! read alone by whoever needs it, with its own error.
//! *Order*: the count's lock is held for no read. *Not here*: the cache (`store`), data of files (the kernel reads ahead).

use super::Store;
use crate::format::{Addr, BLOCK, BlockPtr, Key};

/// Leaves in one request: 128 KiB.
const AHEAD_MAX: usize = 32;

/// The parent whose leaf was last missed, and how many leaves to read at the next miss.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    parent: Addr,
    leaves: usize,
}

impl Ahead {
    fn missed(&mut self, parent: Addr, most: usize) -> usize {
        self.leaves = if self.parent == parent { (4 * self.leaves).min(most) } else { 1 };
        self.parent = parent;
        self.leaves
    }
}

impl Store {
    /// Leaf `i` of these children of one node, which stands at `parent`, is wanted: if it is not in memory, those that
    /// stand behind it on the medium may be read with it.
    pub(super) fn read_ahead(&self, parent: Addr, children: &[(Key, BlockPtr)], i: usize) {
        let is_here = |ptr: &BlockPtr| self.cache.contains_key(ptr);
        if is_here(&children[i].1) {
            return;
        }
        let most = AHEAD_MAX.min(self.options.cache_nodes / 8).max(1);
        let leaves = self.ahead.lock().missed(parent, most);
        let first = children[i].1.addr;
        let stands_behind = |(place, ptr): &(u64, &BlockPtr)| first.checked_add(*place) == Some(ptr.addr);
        let run: Vec<&BlockPtr> = (0..)
            .zip(children[i..].iter().map(|(_, ptr)| ptr))
            .take(leaves)
            .take_while(|child| stands_behind(child) && !is_here(child.1))
            .map(|(_, ptr)| ptr)
            .collect();
        if run.len() < 2 || !self.label.geometry.holds_data(first, run.len() as u64) {
            return;
        }
        let sums: Vec<u64> = run.iter().map(|ptr| ptr.sum).collect();
        let Ok(blocks) = self.mirror.read(first, &sums) else {
            // One of them is lost: below this parent each is read alone, or the lost one would be asked for again and again.
            self.ahead.lock().leaves = 0;
            return;
        };
        for (ptr, block) in run.into_iter().zip(blocks.chunks_exact(BLOCK)) {
            self.remember(ptr, block.to_vec(), 0);
        }
    }
}
