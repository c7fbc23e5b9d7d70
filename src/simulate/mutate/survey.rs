//! Where each structure of a whole volume stands, and what proves it.
//!
//! *Guarantees*: every block that the newest root reaches, every label, root and live log record is a [`Place`], parents
//! before what they name. *Assumes*: the image is whole; it was made by the product. *Fails when*: it is not: a panic,
//! for samples are ours. *Order*: none. *Not here*: what is done to them.

use crate::disk::sim::{Block, Image};
use crate::format::block::{BlockPtr, HEADER, VolumeSeed};
use crate::format::geometry::{ROOT_SLOTS, SPACE_FANOUT};
use crate::format::node::{self, INNER_ENTRY, Node};
use crate::format::space::{ENTRY, SpaceEntry, decode_node};
use crate::format::{Addr, BLOCK, Extent, ExtentBody, Geometry, ItemKind, Key, Label, Root, dead, log};
use crate::store::walk::Part;
use std::ops::Range;

/// Where in a root its lists stand.
pub const ROOT_DEAD_AT: usize = 2048;
/// Bytes of a dead list's head in a root.
pub const ROOT_DEAD: usize = 64;

/// The field that proves a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Index of the place that holds it.
    pub parent: usize,
    /// Offset of the checksum there.
    pub at: usize,
    /// 8 bytes, with an address 8 bytes before (pointers); else 8 or 4 bytes without.
    pub kind: LinkKind,
}

/// What holds a checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    /// A block pointer: the address stands 8 bytes before.
    Pointer,
    /// A space entry.
    Entry,
    /// A checksum in an extent.
    Extent,
}

/// A structure.
#[derive(Debug, Clone)]
pub struct Place {
    /// What it is.
    pub part: Part,
    /// Its first block.
    pub addr: Addr,
    /// How many.
    pub blocks: u32,
    /// What proves it; `None`: it proves itself.
    pub link: Option<Link>,
}

/// All of a volume.
pub struct Survey {
    /// Identity.
    pub label: Label,
    /// Of checksums.
    pub seed: VolumeSeed,
    /// The newest root.
    pub root: Root,
    /// All structures.
    pub places: Vec<Place>,
}

/// The block at `addr`.
pub fn block(image: &Image, addr: Addr) -> Block {
    image.get(&addr).map_or([0; BLOCK], |block| **block)
}

impl Survey {
    /// Look at everything on a disk.
    pub fn of(image: &Image) -> Survey {
        let label = Label::decode(&block(image, 0), 0).expect("a label");
        let decode =
            |slot: usize| Root::decode(&block(image, Root::addr(slot)), slot, label.volume, &label.geometry).ok();
        let roots: Vec<(usize, Root)> = (0..ROOT_SLOTS).filter_map(|slot| Some((slot, decode(slot)?))).collect();
        let (newest, root) = roots.iter().max_by_key(|(_, root)| root.version).cloned().expect("a root");
        let seed = VolumeSeed::new(label.volume);
        let mut survey = Survey { label, seed, root, places: Vec::new() };
        for addr in Geometry::label_copies() {
            survey.add(Part::Label, addr, None);
        }
        let top = survey.add(Part::Root, Root::addr(newest), None);
        roots.iter().filter(|(slot, _)| *slot != newest).for_each(|(slot, _)| {
            survey.add(Part::Root, Root::addr(*slot), None);
        });
        survey.log(image);
        let root = survey.root.clone();
        if let Some((level, ptr)) = root.tree {
            survey.tree(image, level, &ptr, Link { parent: top, at: 152, kind: LinkKind::Pointer });
        }
        for (i, head) in root.dead.iter().enumerate() {
            let at = ROOT_DEAD_AT + i * ROOT_DEAD + 24;
            survey.dead_list(image, head.ptr, Link { parent: top, at, kind: LinkKind::Pointer });
        }
        let levels = survey.label.geometry.space_levels();
        survey.space(image, levels, 0, &root.space, Link { parent: top, at: 184, kind: LinkKind::Entry });
        survey
    }

    fn add(&mut self, part: Part, addr: Addr, link: Option<Link>) -> usize {
        self.places.push(Place { part, addr, blocks: 1, link });
        self.places.len() - 1
    }

    fn log(&mut self, image: &Image) {
        let geometry = self.label.geometry.clone();
        let (mut seq, mut at) = (self.root.log_seq, self.root.log_at);
        while !self.root.clean {
            let addr = geometry.log_at + u64::from(at);
            let head = log::decode_head(&block(image, addr), self.label.volume, addr, geometry.log_blocks);
            let Ok(head) = head.map_err(drop) else { return };
            if head.log_id != self.root.log_id || head.seq != seq {
                return;
            }
            let index = self.add(Part::LogRecord, addr, None);
            self.places[index].blocks = head.blocks;
            (seq, at) = (seq + 1, (at + head.blocks) % geometry.log_blocks);
        }
    }

    fn tree(&mut self, image: &Image, level: u8, ptr: &BlockPtr, link: Link) {
        let part = if level == 0 { Part::Leaf } else { Part::InnerNode };
        let index = self.add(part, ptr.addr, Some(link));
        let bytes = block(image, ptr.addr);
        match node::decode(&bytes, self.label.volume, ptr, level).expect("a whole node") {
            Node::Inner(children) => {
                for (i, (_, child)) in children.iter().enumerate() {
                    let at = HEADER + i * INNER_ENTRY + 32;
                    self.tree(image, level - 1, child, Link { parent: index, at, kind: LinkKind::Pointer });
                }
            }
            Node::Leaf(items) => {
                for (key, range) in items.iter().filter(|(key, _)| key.kind == ItemKind::Extent) {
                    self.extent(index, *key, range, &bytes);
                }
            }
        }
    }

    fn extent(&mut self, leaf: usize, key: Key, range: &Range<usize>, bytes: &Block) {
        let extent = Extent::decode(key, &bytes[range.clone()]).expect("a whole extent");
        let ExtentBody::Written { addr, sums } = extent.body else { return };
        for i in 0..sums.len() {
            let link = Link { parent: leaf, at: range.start + 32 + 4 * i, kind: LinkKind::Extent };
            self.add(Part::Data, addr + i as u64, Some(link));
        }
    }

    fn dead_list(&mut self, image: &Image, ptr: BlockPtr, link: Link) {
        let index = self.add(Part::DeadList, ptr.addr, Some(link));
        let decoded = dead::decode(&block(image, ptr.addr), self.label.volume, &ptr).expect("a whole dead list");
        if let Some(next) = decoded.0 {
            self.dead_list(image, next, Link { parent: index, at: HEADER + 8, kind: LinkKind::Pointer });
        }
    }

    fn space(&mut self, image: &Image, level: usize, index: u64, entry: &SpaceEntry, link: Link) {
        if entry.is_pristine() {
            return;
        }
        let geometry = self.label.geometry.clone();
        if level == 0 {
            self.add(Part::Bitmap, geometry.bitmap(index, entry.slot), Some(link));
            return;
        }
        let addr = geometry.space_node(level, index, entry.slot);
        let place = self.add(Part::SpaceNode, addr, Some(link));
        let count = geometry.space_entries(level, index);
        let bytes = block(image, addr);
        let entries = decode_node(&bytes, self.label.volume, addr, entry.birth, level as u8, count);
        for (i, below) in entries.expect("a whole space node").iter().enumerate() {
            let link = Link { parent: place, at: HEADER + i * ENTRY + 8, kind: LinkKind::Entry };
            self.space(image, level - 1, index * SPACE_FANOUT + i as u64, below, link);
        }
    }

    /// Items of the leaf in `bytes`: offset of the key, kind, and where the value stands. Stops at what is no item.
    pub fn items(bytes: &Block) -> Vec<(usize, Key, Range<usize>)> {
        let used = u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]) as usize;
        let end = HEADER.saturating_add(used).min(BLOCK);
        let mut out = Vec::new();
        let mut at = HEADER;
        while at + 26 <= end {
            let Ok(key) = Key::decode(&bytes[at..at + 24]) else { break };
            let length = usize::from(u16::from_le_bytes([bytes[at + 24], bytes[at + 25]]));
            let value = at + 26..at + 26 + length;
            if value.end > end {
                break;
            }
            at = value.end;
            out.push((value.start - 26, key, value));
        }
        out
    }
}
