//! How many correct copies each block has, counted on the disks themselves, past the product's reading and healing.
//!
//! *Guarantees*: [`Copies::of`] follows the newest root that any disk proves to everything that it reaches (tree, file
//! data, dead lists, space nodes, bitmaps), adds that root, the log records that replay would need and the labels of
//! replicas in sync, and says for each block on which disks it is correct. It shares no cache and no repair with the
//! product, only its decoders. *Assumes*: the disks belong to one volume and one history.
//! *Fails when*: never; without a root there is nothing to count ([`None`]), and below a block without a correct copy
//! nothing is counted. *Order*: none. *Not here*: older retained roots; whether what is reachable makes sense (`store::check`).

use crate::disk::DiskError;
use crate::disk::sim::{Block, Image, SimDisk};
use crate::format::geometry::ROOT_SLOTS;
use crate::format::node::{self, Node};
use crate::format::root::MemberState;
use crate::format::{Addr, BLOCK, BlockPtr, Extent, ExtentBody, Geometry, ItemKind, Label, Root, Uuid, VolumeSeed};
use crate::format::{dead, log, space};
use crate::store::StoreError;
use crate::store::tree::{CachedNode, NodeStore, walk};
use crate::store::walk::Part;
use crate::sync::Mutex;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

/// A block and what it should be: address and checksum (labels differ from disk to disk and have a place each).
type What = (Addr, u64);

/// A block that something names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// What it is part of.
    pub part: Part,
    /// Bit i: disk i holds a correct copy.
    pub disks: u8,
}

/// Correct copies of everything that the newest root reaches.
#[derive(Debug, Clone)]
pub struct Copies {
    /// The newest root.
    pub root: Root,
    /// Bit i: disk i is a replica that the root calls in sync.
    pub in_sync: u8,
    /// By address and checksum.
    pub blocks: BTreeMap<What, Held>,
}

static ZEROS: Block = [0; BLOCK];

fn at(image: &Image, addr: Addr) -> &Block {
    image.get(&addr).map_or(&ZEROS, |block| block)
}

struct Counter<'a> {
    images: &'a [Image],
    label: Label,
    seed: VolumeSeed,
    blocks: Mutex<BTreeMap<What, Held>>,
}

impl Counter<'_> {
    /// Count the copies of a block; gives a correct one.
    fn count(&self, part: Part, addr: Addr, sum: u64) -> Option<&Block> {
        let mut disks = 0;
        let mut good = None;
        for (i, image) in self.images.iter().enumerate() {
            let block = at(image, addr);
            // Blocks that disks share are the same bytes: one look will do.
            let same = good.is_some_and(|good: &Block| std::ptr::eq(good, block));
            if same || self.seed.checksum(addr, block) == sum {
                disks |= 1 << i;
                good = good.or(Some(block));
            }
        }
        self.blocks.lock().insert((addr, sum), Held { part, disks });
        good
    }

    fn extents(&self, leaf: &CachedNode) {
        let Node::Leaf(items) = &leaf.node else { return };
        for (key, range) in items.iter().filter(|(key, _)| key.kind == ItemKind::Extent) {
            let Ok(extent) = Extent::decode(*key, &leaf.block[range.clone()]) else { continue };
            if let ExtentBody::Written { addr, sums } = extent.body {
                for (at, sum) in (addr..).zip(sums) {
                    self.count(Part::Data, at, u64::from(sum));
                }
            }
        }
    }

    fn dead(&self, root: &Root) {
        for head in &root.dead {
            let mut next = Some(head.ptr);
            let mut left = head.blocks.saturating_add(2);
            while let Some(ptr) = next.filter(|_| left > 0) {
                left -= 1;
                let block = self.count(Part::DeadList, ptr.addr, ptr.sum);
                next = block.and_then(|block| dead::decode(block, self.label.volume, &ptr).ok()?.0);
            }
        }
    }

    /// The space node that `entry` names, and all below.
    fn space(&self, level: usize, index: u64, entry: &space::SpaceEntry) {
        if entry.is_pristine() {
            return;
        }
        let geometry = &self.label.geometry;
        if level == 0 {
            self.count(Part::Bitmap, geometry.bitmap(index, entry.slot), entry.sum);
            return;
        }
        let addr = geometry.space_node(level, index, entry.slot);
        let Some(block) = self.count(Part::SpaceNode, addr, entry.sum) else { return };
        let entries = geometry.space_entries(level, index);
        let decoded = space::decode_node(block, self.label.volume, addr, entry.birth, level as u8, entries);
        for (i, below) in (0..).zip(decoded.unwrap_or_default()) {
            self.space(level - 1, index * crate::format::geometry::SPACE_FANOUT + i, &below);
        }
    }

    /// The records that follow `root`, each as long as any disk proves it.
    fn log(&self, root: &Root) {
        let ring = self.label.geometry.log_blocks;
        if root.clean {
            return;
        }
        let (mut seq, mut stands) = (root.log_seq, root.log_at);
        loop {
            let found = self.record(root, seq, stands).or_else(|| {
                stands = 0;
                self.record(root, seq, 0)
            });
            let Some(blocks) = found else { return };
            seq += 1;
            stands = if stands + blocks >= ring { 0 } else { stands + blocks };
        }
    }

    /// Count the blocks of a record; gives how many there are.
    fn record(&self, root: &Root, seq: u64, stands: u32) -> Option<u32> {
        let addr = self.label.geometry.log_at + u64::from(stands);
        let proven = |image: &Image| -> Option<(u32, Vec<u8>)> {
            let head =
                log::decode_head(at(image, addr), self.label.volume, addr, self.label.geometry.log_blocks).ok()?;
            let whole: Vec<u8> = (0..u64::from(head.blocks)).flat_map(|i| *at(image, addr + i)).collect();
            let ours = head.log_id == root.log_id && head.seq == seq;
            (ours && log::entries(&whole, &head).is_ok()).then_some((head.blocks, whole))
        };
        let (blocks, whole) = self.images.iter().find_map(proven)?;
        for (i, block) in whole.chunks_exact(BLOCK).enumerate() {
            let here = addr + i as u64;
            self.count(Part::LogRecord, here, self.seed.checksum(here, block));
        }
        Some(blocks)
    }
}

impl NodeStore for Counter<'_> {
    fn volume(&self) -> Uuid {
        self.label.volume
    }
    fn read_node(&self, level: u8, ptr: &BlockPtr) -> Result<Arc<CachedNode>, StoreError> {
        let part = if level == 0 { Part::Leaf } else { Part::InnerNode };
        let lost = || DiskError::Lost { addr: ptr.addr, detail: "no disk has it".into() };
        let block = self.count(part, ptr.addr, ptr.sum).ok_or_else(lost)?.to_vec();
        let node = node::decode(&block, self.label.volume, ptr, level)?;
        Ok(Arc::new(CachedNode { block, node }))
    }
}

/// The label of a disk, from either copy.
fn label_of(image: &Image) -> Option<Label> {
    Geometry::label_copies().into_iter().find_map(|addr| Label::decode(at(image, addr), addr).ok())
}

impl Copies {
    /// Count on `disks`, what no flush covers included. `None`: none has a label and a root.
    pub fn of(disks: &[Arc<SimDisk>]) -> Option<Copies> {
        let images: Vec<Image> = disks.iter().map(|disk| disk.snapshot()).collect();
        Copies::of_images(&images)
    }

    /// As [`Copies::of`], on what disks hold.
    pub fn of_images(images: &[Image]) -> Option<Copies> {
        let labels: Vec<Option<Label>> = images.iter().map(label_of).collect();
        let label = labels.iter().flatten().next()?.clone();
        let roots = images.iter().flat_map(|image| (0..ROOT_SLOTS).map(move |slot| (image, slot)));
        let decoded = roots.filter_map(|(image, slot)| {
            let block = at(image, Root::addr(slot));
            Some((slot, Root::decode(block, slot, label.volume, &label.geometry).ok()?, block))
        });
        let (slot, root, block) = decoded.max_by_key(|(_, root, _)| root.version)?;
        let seed = VolumeSeed::new(label.volume);
        let counter = Counter { images, seed, label, blocks: Mutex::default() };
        let addr = Root::addr(slot);
        counter.count(Part::Root, addr, seed.checksum(addr, block));
        let _ = walk(&counter, root.tree, &mut |level, _, node| {
            if let (0, Ok(leaf)) = (level, node) {
                counter.extents(leaf);
            }
            ControlFlow::Continue(())
        });
        counter.dead(&root);
        counter.space(counter.label.geometry.space_levels(), 0, &root.space);
        counter.log(&root);
        let mut blocks = counter.blocks.into_inner();
        let mut in_sync = 0;
        for (i, (image, label)) in images.iter().zip(&labels).enumerate() {
            let Some(label) = label else { continue };
            let named = |m: &crate::format::Member| m.replica == label.replica && m.state == MemberState::InSync;
            if root.members.iter().any(named) {
                in_sync |= 1 << i;
                for addr in Geometry::label_copies() {
                    let correct = Label::decode(at(image, addr), addr).is_ok_and(|found| found == *label);
                    let disks = u8::from(correct) << i;
                    blocks.insert((addr, i as u64), Held { part: Part::Label, disks });
                }
            }
        }
        Some(Copies { root, in_sync, blocks })
    }

    /// Whether disk `disk` holds all that is counted, labels of others aside.
    pub fn is_whole_on(&self, disk: usize) -> bool {
        let others_label = |what: &What, held: &Held| held.part == Part::Label && what.1 != disk as u64;
        self.blocks.iter().all(|(what, held)| others_label(what, held) || held.disks >> disk & 1 == 1)
    }

    /// Blocks of which some replica in sync holds no correct copy.
    pub fn lacking(&self) -> Vec<(Addr, Held)> {
        let lacks = |held: &Held, sum: u64| match held.part {
            Part::Label => held.disks != 1 << sum,
            _ => held.disks & self.in_sync != self.in_sync,
        };
        self.blocks
            .iter()
            .filter(|((_, sum), held)| lacks(held, *sum))
            .map(|((addr, _), held)| (*addr, *held))
            .collect()
    }

    /// Nothing that is named both here and in `later` has fewer correct copies there (invariant 8); and what only
    /// `later` names is on every replica that it calls in sync (invariant 4), log records and the root itself aside:
    /// a power cut may leave these on one.
    ///
    /// # Errors
    /// The first block for which that is not so.
    pub fn check_kept(&self, later: &Copies) -> Result<(), String> {
        for (what, now) in &later.blocks {
            let (addr, disks) = (what.0, format!("{:#b}", now.disks));
            match self.blocks.get(what) {
                Some(before) if now.disks.count_ones() < before.disks.count_ones() => {
                    let before = before.disks;
                    return Err(format!(
                        "{} at {addr}: correct on {before:#b} before, on {disks} now",
                        now.part.name()
                    ));
                }
                Some(_) => {}
                None if matches!(now.part, Part::Root | Part::LogRecord | Part::Label) => {}
                None if now.disks & later.in_sync == later.in_sync => {}
                None => {
                    let root = later.root.version;
                    return Err(format!(
                        "{} at {addr}: named by root {root}, correct on {disks} only",
                        now.part.name()
                    ));
                }
            }
        }
        if later.root.version == self.root.version {
            // The same root names the same blocks, unless what leads to them is gone.
            if let Some((what, held)) =
                self.blocks.iter().find(|(what, held)| held.disks != 0 && !later.blocks.contains_key(what))
            {
                return Err(format!("{} at {}: was there before and is not reached now", held.part.name(), what.0));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::{Bench, Setup, examine_store};
    use crate::store::check::Finding;
    use std::collections::BTreeSet;

    /// The count agrees with the checker about what there is, and sees one rotten bit.
    #[test]
    fn every_copy_is_counted_and_each_damage_is_seen() {
        for seed in 0..10 {
            let mut bench = Bench::new(seed);
            let setup = Setup { weights: crate::simulate::generate::Weights::usual(false), ..bench.setup.clone() };
            bench.setup = setup;
            let mut driver = bench.mount().unwrap();
            bench.run(&mut driver, 120).unwrap();
            bench.finish(&mut driver).unwrap();
            let copies = Copies::of(&bench.disks).unwrap();
            assert!(copies.lacking().is_empty() && copies.in_sync == 0b11, "seed {seed}: {:?}", copies.lacking());
            assert!(copies.is_whole_on(0) && copies.is_whole_on(1));
            bench.disks[1].faults(|faults| faults.fail_reads = crate::disk::sim::Fault::Always);
            let found: BTreeSet<Addr> = examine_store(&driver.store, false)
                .findings
                .iter()
                .filter_map(|finding| if let Finding::Block { addr, .. } = finding { Some(*addr) } else { None })
                .collect();
            let counted = copies.blocks.iter().filter(|(what, held)| match held.part {
                Part::Label => what.1 == 1,
                part => part != Part::LogRecord,
            });
            let counted: BTreeSet<Addr> = counted.map(|(what, _)| what.0).collect();
            assert_eq!(found, counted, "seed {seed}: what the checker reads is what is counted");
            let addr = *found.iter().nth(seed as usize * 7 % found.len()).unwrap();
            bench.disks[0].rot(addr, seed * 97);
            let after = Copies::of(&bench.disks).unwrap();
            assert_eq!(after.lacking().len(), 1, "seed {seed}");
            assert!(after.is_whole_on(1) && !after.is_whole_on(0));
            let kept = copies.check_kept(&after);
            assert!(kept.is_err_and(|text| text.contains(&addr.to_string())), "seed {seed}");
            after.check_kept(&copies).unwrap();
        }
    }
}
