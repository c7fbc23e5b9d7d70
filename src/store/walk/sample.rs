//! A random sample of what is in use.
//!
//! *Guarantees*: what is shown is pinned until the caller returns, was born in the wanted group or before, and is reachable.
//! The cost grows with the sample and the height of the tree. *Assumes*: nothing of the bytes.
//! *Fails when*: never; a way down that cannot be read shows nothing. *Order*: each way down looks at the newest state.
//! *Not here*: what is made of it (`volume::replace`). Ways down are equally likely, blocks are not.

use super::{Part, Piece};
use crate::format::node::Node;
use crate::format::{BlockPtr, ExtentBody, ItemKind, Key, Txg};
use crate::store::Store;
use crate::store::tree::read_within;
use std::ops::ControlFlow;

impl Store {
    /// Go `ways` random ways from the top of the tree to a leaf and to a block of a file that is named there, and show each
    /// block on the way that was born in group `until` or before. Between two ways, with nothing pinned, `pause` may end it.
    pub fn sample(
        &self,
        until: Txg,
        ways: u32,
        show: &mut dyn FnMut(&Piece),
        pause: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        for _ in 0..ways {
            pause()?;
            let pinned = self.view().committed.clone();
            let Some((level, ptr)) = pinned.root.tree else { break };
            self.sample_way(level, ptr, &mut |birth, piece| {
                if birth <= until {
                    show(&piece);
                }
            });
        }
        ControlFlow::Continue(())
    }

    fn sample_way(&self, mut level: u8, mut ptr: BlockPtr, show: &mut dyn FnMut(Txg, Piece)) {
        let (mut lower, mut upper) = (Key::MIN, None);
        loop {
            let part = if level == 0 { Part::Leaf } else { Part::InnerNode };
            show(ptr.birth, Piece::one(part, lower.ino, &ptr));
            let Ok(node) = read_within(self, level, &ptr, lower, upper) else { return };
            match &node.node {
                Node::Inner(children) => {
                    let Some(at) = self.pick(children.len()) else { return };
                    upper = children.get(at + 1).map(|child| child.0).or(upper);
                    (lower, ptr) = children[at];
                    level -= 1;
                }
                Node::Leaf(items) => {
                    let extents: Vec<_> = items.iter().filter(|(key, _)| key.kind == ItemKind::Extent).collect();
                    let Some(at) = self.pick(extents.len()) else { return };
                    let (key, range) = extents[at];
                    let Ok(extent) = crate::format::Extent::decode(*key, &node.block[range.clone()]) else { return };
                    let ExtentBody::Written { addr, sums } = extent.body else { return };
                    let Some(at) = self.pick(sums.len()) else { return };
                    if self.label.geometry.holds_data(addr, sums.len() as u64) {
                        let piece = Piece {
                            part: Part::Data,
                            ino: key.ino,
                            addr: addr + at as u64,
                            sums: vec![sums[at].into()],
                        };
                        show(extent.birth, piece);
                    }
                    return;
                }
            }
        }
    }

    fn pick(&self, count: usize) -> Option<usize> {
        (count > 0).then(|| (self.world.random() % count as u64) as usize)
    }
}
