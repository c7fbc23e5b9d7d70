//! The walker: shows everything that the newest durable state reaches to a [`Sink`], in bounded chunks, on a live store.
//!
//! *Guarantees*: what is shown is pinned until [`Sink::pieces`] returns; nothing is pinned while [`Sink::pause`] runs.
//! Every block that was reachable when the walk began and still is when it ends has been shown, parents before what
//! they point at (the argument is below). On a volume that does not change each block is shown once.
//! *Assumes*: nothing of the bytes; keys rise and stay within their parent's bounds or the subtree is not entered.
//! *Fails when*: never; what cannot be read is told to [`Sink::unreadable`], and the walk goes on behind it.
//! *Order*: tree with file data, dead lists, space. The space part holds the commit lock for a few zones at a time, so
//! that no slot is written twice meanwhile; the other parts hold no lock.
//! *Not here*: what to do with a block (`volume::scrub`, `volume::replace`); what proves itself ([`fixed`]);
//! a random part of it (`sample`).
//!
//! **Why no one state is pinned for the whole walk, and nothing is missed.** A block that is reachable at the start and
//! at the end was reachable all the time: copy-on-write never links again what it has unlinked. Take such a node. It
//! covers a range of keys, and the cursor passes over every key; in the state that is pinned when it comes to that
//! range the node stands on the path, and is shown. For data the same holds of the extent that names it, but for one
//! thing: an extent is keyed by its last block, so that cutting it moves its head to a smaller key, perhaps behind the
//! cursor. Therefore the cursor steps back by the longest extent whenever the state has changed between two chunks.

pub mod fixed;
mod sample;

use super::tree::{Top, read_within};
use super::{Store, StoreError};
use crate::format::geometry::SPACE_FANOUT;
use crate::format::item::EXTENT_BLOCKS_MAX;
use crate::format::node::Node;
use crate::format::{Addr, BlockPtr, Extent, ExtentBody, ItemKind, Key, Root, Txg, dead, space};
use std::ops::ControlFlow;

/// Leaves whose data is shown before the walk pauses: 30 MiB of data at most.
const LEAVES_AT_ONCE: usize = 8;
/// Blocks in the longest piece: 1 MiB.
const PIECE_BLOCKS_MAX: usize = 256;
/// Zones for which commits are held at a time; divides the fanout of space nodes.
const ZONES_AT_ONCE: u64 = 25;
const _: () = assert!(SPACE_FANOUT.is_multiple_of(ZONES_AT_ONCE));
/// Blocks of dead lists that are shown before the walk pauses.
const DEAD_AT_ONCE: usize = 256;

/// What a block is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// A copy of the label.
    Label,
    /// A root in its slot.
    Root,
    /// A block of a log record that replay would need.
    LogRecord,
    /// A node above bitmaps.
    SpaceNode,
    /// A zone's bitmap.
    Bitmap,
    /// A block of a dead list.
    DeadList,
    /// A node of the tree above leaves.
    InnerNode,
    /// A leaf of the tree.
    Leaf,
    /// Content of a file.
    Data,
}

impl Part {
    /// Name used in reports.
    pub fn name(self) -> &'static str {
        match self {
            Part::Label => "label",
            Part::Root => "root",
            Part::LogRecord => "log record",
            Part::SpaceNode => "space node",
            Part::Bitmap => "bitmap",
            Part::DeadList => "dead list",
            Part::InnerNode => "inner node",
            Part::Leaf => "leaf",
            Part::Data => "file data",
        }
    }
}

/// Consecutive blocks of one part, with what proves each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// What they are part of.
    pub part: Part,
    /// Inode that they belong to; of a node the first one that it may hold; 0: none.
    pub ino: u64,
    /// First block.
    pub addr: Addr,
    /// A checksum for each block.
    pub sums: Vec<u64>,
}

impl Piece {
    fn one(part: Part, ino: u64, ptr: &BlockPtr) -> Piece {
        Piece { part, ino, addr: ptr.addr, sums: vec![ptr.sum] }
    }
}

/// What a walk shows its finds to. `Break` ends the walk.
pub trait Sink {
    /// Blocks in use, pinned until this returns. Locks of the store may be held: it must not be called from here.
    fn pieces(&mut self, pieces: &[Piece]) -> ControlFlow<()>;
    /// What hangs on this block cannot be reached. The block itself was shown before.
    fn unreadable(&mut self, part: Part, addr: Addr, ino: u64, error: &StoreError);
    /// Nothing is pinned or locked now.
    fn pause(&mut self) -> ControlFlow<()>;
}

/// How far a walk over the tree is.
struct Place {
    /// What was born in this group or before is left out.
    since: Txg,
    /// Everything below was shown.
    from: Key,
    /// State in which that was so.
    txg: Txg,
    /// Inner nodes above the last chunk: shown already.
    seen: Vec<BlockPtr>,
}

impl Place {
    /// Go on at `next`; false if there is none.
    fn skip_to(&mut self, next: Option<Key>) -> ControlFlow<(), bool> {
        if let Some(next) = next {
            self.from = next;
        }
        ControlFlow::Continue(next.is_some())
    }
}

impl Store {
    /// Show everything reachable by pointers to `sink`.
    pub fn walk(&self, sink: &mut dyn Sink) -> ControlFlow<()> {
        self.walk_since(0, sink)
    }

    /// The same, without what was born in group `since` or before. It is not looked at either: what a block points at is no
    /// younger than the block, so that the cost grows with what was born since, and not with the volume.
    pub fn walk_since(&self, since: Txg, sink: &mut dyn Sink) -> ControlFlow<()> {
        let mut place = Place { since, from: Key::MIN, txg: 0, seen: Vec::new() };
        while self.walk_chunk(&mut place, sink)? {
            sink.pause()?;
        }
        sink.pause()?;
        self.walk_dead(since, sink)?;
        self.walk_space(since, sink)
    }

    /// Show what was born after `since` in the newest durable state while no commit can begin, so in one piece; then run `end` on
    /// that root and its slot, still so. What the sink is shown must be little: commits wait for it.
    pub(crate) fn walk_held<S: Sink, T>(
        &self,
        since: Txg,
        sink: &mut S,
        end: impl FnOnce(&mut S, usize, &Root) -> T,
    ) -> ControlFlow<(), T> {
        let _held = self.commit_lock.lock();
        let (slot, root) = self.newest_root();
        let mut place = Place { since, from: Key::MIN, txg: 0, seen: Vec::new() };
        while self.walk_chunk(&mut place, sink)? {}
        self.walk_dead(since, sink)?;
        let (mut seen, mut zone) = (Vec::new(), 0);
        while zone < self.label.geometry.zones {
            zone = self.show_zones(&root, zone, since, &mut seen, sink)?;
        }
        ControlFlow::Continue(end(sink, slot, &root))
    }

    /// Run `work` on the newest durable root while no commit can begin.
    pub(crate) fn with_commits_held<T>(&self, work: impl FnOnce(&Root) -> T) -> T {
        let _held = self.commit_lock.lock();
        let root = self.root.lock().root.clone();
        work(&root)
    }

    /// Show one chunk of the newest state; false if it was the last one.
    fn walk_chunk(&self, place: &mut Place, sink: &mut dyn Sink) -> ControlFlow<(), bool> {
        // Not the view: the open group must not be held as long as this takes.
        let pinned = self.view().committed.clone();
        let goal = place.from;
        if place.txg != pinned.root.txg {
            place.txg = pinned.root.txg;
            if goal.kind == ItemKind::Extent {
                place.from.off = goal.off.saturating_sub(u64::from(EXTENT_BLOCKS_MAX));
            }
        }
        loop {
            let more = self.walk_leaves(pinned.root.tree, place, sink)?;
            // Past the point from which it stepped back, or a busy volume would be walked for ever.
            if !more || place.from > goal {
                return ControlFlow::Continue(more);
            }
        }
    }

    /// Descend to the next few leaves and show them, their data, and the nodes above that were not shown yet.
    fn walk_leaves(&self, top: Top, place: &mut Place, sink: &mut dyn Sink) -> ControlFlow<(), bool> {
        let Some((mut level, mut ptr)) = top.filter(|(_, ptr)| ptr.birth > place.since) else {
            return ControlFlow::Continue(false);
        };
        let (mut lower, mut upper) = (Key::MIN, None);
        let mut path = Vec::new();
        loop {
            if level == 0 {
                self.show_leaves(&[(lower, ptr, upper)], place, sink)?;
                return ControlFlow::Continue(false);
            }
            path.push(ptr);
            if !place.seen.contains(&ptr) {
                sink.pieces(&[Piece::one(Part::InnerNode, lower.ino, &ptr)])?;
            }
            let node = match read_within(self, level, &ptr, lower, upper) {
                Ok(node) => node,
                Err(error) => {
                    sink.unreadable(Part::InnerNode, ptr.addr, lower.ino, &error);
                    place.seen = path;
                    return place.skip_to(upper);
                }
            };
            let Node::Inner(children) = &node.node else { unreachable!("the level was checked") };
            let at = children.partition_point(|child| child.0 <= place.from).saturating_sub(1);
            let end_of = |i: usize| children.get(i + 1).map(|child| child.0).or(upper);
            let mut young = (at..children.len()).filter(|i| children[*i].1.birth > place.since);
            if level == 1 {
                place.seen = path;
                let leaves: Vec<_> = young.by_ref().take(LEAVES_AT_ONCE).collect();
                let next = young.next().map(|i| children[i].0).or(upper);
                let leaves: Vec<_> = leaves.iter().map(|i| (children[*i].0, children[*i].1, end_of(*i))).collect();
                self.show_leaves(&leaves, place, sink)?;
                return place.skip_to(next);
            }
            let Some(at) = young.next() else {
                place.seen = path;
                return place.skip_to(upper);
            };
            place.from = place.from.max(children[at].0);
            upper = end_of(at);
            (lower, ptr) = children[at];
            level -= 1;
        }
    }

    /// Show leaves, each with its bounds, then the data that their items from the place on name.
    fn show_leaves(
        &self,
        leaves: &[(Key, BlockPtr, Option<Key>)],
        place: &Place,
        sink: &mut dyn Sink,
    ) -> ControlFlow<()> {
        let one = |(lower, ptr, _): &(Key, BlockPtr, _)| Piece::one(Part::Leaf, lower.ino, ptr);
        let mut pieces: Vec<Piece> = leaves.iter().map(one).collect();
        pieces.sort_by_key(|piece| piece.addr);
        sink.pieces(&pieces)?;
        let mut data: Vec<Piece> = Vec::new();
        for (lower, ptr, upper) in leaves {
            let node = match read_within(self, 0, ptr, *lower, *upper) {
                Ok(node) => node,
                Err(error) => {
                    sink.unreadable(Part::Leaf, ptr.addr, lower.ino, &error);
                    continue;
                }
            };
            let Node::Leaf(items) = &node.node else { unreachable!("the level was checked") };
            let wanted = |key: &Key| key.kind == ItemKind::Extent && *key >= place.from;
            for (key, range) in items.iter().filter(|(key, _)| wanted(key)) {
                if let Err(error) = self.add_extent(*key, &node.block[range.clone()], place.since, &mut data) {
                    sink.unreadable(Part::Data, ptr.addr, key.ino, &error);
                }
            }
        }
        if data.is_empty() { ControlFlow::Continue(()) } else { sink.pieces(&data) }
    }

    fn add_extent(&self, key: Key, value: &[u8], since: Txg, data: &mut Vec<Piece>) -> Result<(), StoreError> {
        let extent = Extent::decode(key, value)?;
        if extent.birth <= since {
            return Ok(());
        }
        let ExtentBody::Written { addr, sums } = extent.body else { return Ok(()) };
        if !self.label.geometry.holds_data(addr, sums.len() as u64) {
            let corrupt = crate::format::Corrupt { what: "extent", rule: "stands inside a zone" };
            return Err(StoreError::Corrupt { addr, corrupt });
        }
        let sums = sums.into_iter().map(u64::from);
        match data.last_mut() {
            Some(last)
                if last.ino == key.ino
                    && last.addr + last.sums.len() as u64 == addr
                    && last.sums.len() + sums.len() <= PIECE_BLOCKS_MAX =>
            {
                last.sums.extend(sums);
            }
            _ => data.push(Piece { part: Part::Data, ino: key.ino, addr, sums: sums.collect() }),
        }
        Ok(())
    }

    /// Show the blocks that dead lists stand on.
    fn walk_dead(&self, since: Txg, sink: &mut dyn Sink) -> ControlFlow<()> {
        let pinned = self.view().committed.clone();
        for head in pinned.root.dead.iter().filter(|head| head.ptr.birth > since) {
            let mut next = Some(head.ptr);
            let mut ring = dead::Ring::default();
            let mut shown = 0;
            while let Some(ptr) = next.filter(|ptr| ring.step(ptr.addr).is_ok()) {
                sink.pieces(&[Piece::one(Part::DeadList, 0, &ptr)])?;
                next = match self.dead_next(&ptr) {
                    Ok(next) => next,
                    Err(error) => {
                        sink.unreadable(Part::DeadList, ptr.addr, 0, &error);
                        None
                    }
                };
                shown += 1;
                if shown % DEAD_AT_ONCE == 0 {
                    sink.pause()?;
                }
            }
        }
        drop(pinned);
        sink.pause()
    }

    fn dead_next(&self, ptr: &BlockPtr) -> Result<Option<BlockPtr>, StoreError> {
        if !self.label.geometry.holds_data(ptr.addr, 1) {
            let corrupt = crate::format::Corrupt { what: "dead list", rule: "stands inside a zone" };
            return Err(StoreError::Corrupt { addr: ptr.addr, corrupt });
        }
        let block = self.mirror.read(ptr.addr, &[ptr.sum])?;
        Ok(dead::decode(&block, self.label.volume, ptr)?.0)
    }

    /// Show space nodes and bitmaps in the slots that the newest root names.
    fn walk_space(&self, since: Txg, sink: &mut dyn Sink) -> ControlFlow<()> {
        let mut seen = Vec::new();
        let mut zone = 0;
        while zone < self.label.geometry.zones {
            zone = self.with_commits_held(|root| self.show_zones(root, zone, since, &mut seen, sink))?;
            sink.pause()?;
        }
        ControlFlow::Continue(())
    }

    /// Show the bitmaps of a few zones from `first` on, and the nodes above; returns the zone to go on with.
    fn show_zones(
        &self,
        root: &Root,
        first: u64,
        since: Txg,
        seen: &mut Vec<BlockPtr>,
        sink: &mut dyn Sink,
    ) -> ControlFlow<(), u64> {
        let geometry = &self.label.geometry;
        let mut entry = root.space;
        let mut path = Vec::new();
        for level in (1..=geometry.space_levels()).rev() {
            let width = SPACE_FANOUT.pow(level as u32);
            let index = first / width;
            if entry.is_pristine() || entry.birth <= since {
                return ControlFlow::Continue((index + 1) * width);
            }
            let addr = geometry.space_node(level, index, entry.slot);
            let ptr = BlockPtr { addr, sum: entry.sum, birth: entry.birth };
            path.push(ptr);
            if !seen.contains(&ptr) {
                sink.pieces(&[Piece::one(Part::SpaceNode, 0, &ptr)])?;
            }
            let entries = match self.space_entries(level, index, &ptr) {
                Ok(entries) => entries,
                Err(error) => {
                    sink.unreadable(Part::SpaceNode, addr, 0, &error);
                    *seen = path;
                    return ControlFlow::Continue((index + 1) * width);
                }
            };
            if level > 1 {
                entry = entries[(first / (width / SPACE_FANOUT) % SPACE_FANOUT) as usize];
                continue;
            }
            *seen = std::mem::take(&mut path);
            let end = (first + ZONES_AT_ONCE).min(geometry.zones);
            let bitmap = |zone: u64| {
                let entry = entries[(zone % SPACE_FANOUT) as usize];
                let addr = geometry.bitmap(zone, entry.slot);
                let ptr = BlockPtr { addr, sum: entry.sum, birth: entry.birth };
                (!entry.is_pristine() && entry.birth > since).then(|| Piece::one(Part::Bitmap, 0, &ptr))
            };
            let pieces: Vec<Piece> = (first..end).filter_map(bitmap).collect();
            if !pieces.is_empty() {
                sink.pieces(&pieces)?;
            }
            return ControlFlow::Continue(end);
        }
        unreachable!("there is at least one level")
    }

    fn space_entries(&self, level: usize, index: u64, ptr: &BlockPtr) -> Result<Vec<space::SpaceEntry>, StoreError> {
        let count = self.label.geometry.space_entries(level, index);
        let block = self.mirror.read(ptr.addr, &[ptr.sum])?;
        let decoded = space::decode_node(&block, self.label.volume, ptr.addr, ptr.birth, level as u8, count);
        decoded.map_err(|corrupt| StoreError::Corrupt { addr: ptr.addr, corrupt })
    }
}
