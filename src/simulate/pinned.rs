//! A state that a reader holds must stay whole, however much is written after it.
//!
//! *Guarantees*: every node and every block of file data that the root reaches was read from the medium and proven.
//! *Assumes*: the root is pinned. *Fails when*: something is not as the root says. *Order*: none.
//! *Not here*: space; bitmaps stand at fixed places and are overwritten.

use crate::format::node::{self, Node};
use crate::format::{BlockPtr, Extent, ExtentBody, ItemKind, Root, Uuid};
use crate::store::tree::{CachedNode, NodeStore, walk};
use crate::store::{Store, StoreError};
use std::ops::ControlFlow;
use std::sync::Arc;

/// The store without its cache.
struct Uncached<'a>(&'a Store);

impl NodeStore for Uncached<'_> {
    fn volume(&self) -> Uuid {
        self.0.label().volume
    }
    fn read_node(&self, level: u8, ptr: &BlockPtr) -> Result<Arc<CachedNode>, StoreError> {
        let block = self.0.mirror().read(ptr.addr, &[ptr.sum])?.to_vec();
        let node = node::decode(&block, self.volume(), ptr, level)?;
        Ok(Arc::new(CachedNode { block, node }))
    }
}

/// Prove everything that `root` reaches.
///
/// # Errors
/// The first block that is not what the root says.
pub fn prove(store: &Store, root: &Root) -> Result<(), StoreError> {
    let mut outcome = Ok(());
    let visit = |node: Result<&CachedNode, &StoreError>| -> Result<(), StoreError> {
        let node = node.map_err(Clone::clone)?;
        let Node::Leaf(entries) = &node.node else { return Ok(()) };
        for (key, range) in entries.iter().filter(|(key, _)| key.kind == ItemKind::Extent) {
            if let ExtentBody::Written { addr, sums } = Extent::decode(*key, &node.block[range.clone()])?.body {
                let sums: Vec<u64> = sums.into_iter().map(u64::from).collect();
                store.mirror().read(addr, &sums)?;
            }
        }
        Ok(())
    };
    let _ = walk(&Uncached(store), root.tree, &mut |_, _, node| {
        outcome = visit(node);
        if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    outcome
}
