//! Space under check: bitmaps and counts against what is in use.
//!
//! *Guarantees*: every allocated block is used exactly once: reached from the root, or named by a dead list.
//! *Assumes*: all that is reachable has been marked before [`compare`]. *Fails when*: never; after a loss, blocks that
//! nothing seems to use are not judged. *Order*: none. *Not here*: who allocates (`store::space`).

use super::blocks::{Marks, Tracker};
use super::finding::{Finding, Structure};
use crate::format::geometry::{SPACE_FANOUT, ZONE_UNITS};
use crate::format::space::{Bitmap, SpaceEntry, decode_node};
use crate::format::{Addr, Corrupt, Geometry, dead};
use std::collections::BTreeMap;

/// Mark what the dead lists hold.
pub(super) fn dead_lists(tracker: &Tracker<'_>) {
    let label = tracker.source.label();
    for head in &tracker.source.root().dead {
        let mut blocks = 0;
        let mut next = Some(head.ptr);
        // Ends: a block that was marked before is not followed.
        while let Some(ptr) = next {
            let structure = Structure::DeadList;
            if tracker.stopped() || tracker.mark(ptr.addr, 1, structure, None).is_empty() {
                tracker.set_incomplete();
                break;
            }
            let Some(buf) = tracker.fetch(ptr.addr, ptr.sum, structure, None) else { break };
            match dead::decode(&buf, label.volume, &ptr) {
                Ok((after, runs)) => {
                    for run in runs {
                        tracker.mark(run.addr, u64::from(run.blocks), Structure::Dead, None);
                        blocks += u64::from(run.blocks);
                    }
                    next = after;
                    if next.is_none() && blocks != head.blocks {
                        tracker.add(Finding::DeadCount { addr: head.ptr.addr, says: head.blocks, is: blocks });
                    }
                }
                Err(corrupt) => {
                    invalid(tracker, ptr.addr, structure, corrupt);
                    break;
                }
            }
        }
    }
}

fn invalid(tracker: &Tracker<'_>, addr: Addr, structure: Structure, corrupt: Corrupt) {
    tracker.set_incomplete();
    tracker.add(Finding::Invalid { addr, structure, owner: None, corrupt });
}

/// What the comparison of all zones adds up to.
struct Compare<'t, 'a> {
    tracker: &'t Tracker<'a>,
    geometry: &'t Geometry,
    grows: bool,
    marks: BTreeMap<u64, Marks>,
    zones: BTreeMap<u64, Bitmap>,
    /// Whether absences can be judged.
    complete: bool,
    backed: u64,
    /// All of `backed` could be read.
    backed_known: bool,
    /// The last bitmap that was read.
    last: Option<(u64, Bitmap)>,
}

/// Compare bitmaps and counts with the marks. Returns the bitmaps and the count of backed blocks that are wrong, put
/// right. Where something was not reached, what is in use is only added: no bit is taken away, and no count is judged.
pub(super) fn compare(tracker: &Tracker<'_>) -> (BTreeMap<u64, Bitmap>, Option<u64>) {
    let (marks, complete) = {
        let mut inner = tracker.inner();
        (std::mem::take(&mut inner.marks), !inner.incomplete && !inner.stopped)
    };
    let label = tracker.source.label();
    let (geometry, grows) = (&label.geometry, label.grows);
    let mut compare = Compare {
        tracker,
        geometry,
        grows,
        marks,
        zones: BTreeMap::new(),
        complete,
        backed: 0,
        backed_known: true,
        last: None,
    };
    let root = tracker.source.root();
    compare.node(geometry.space_levels(), 0, &root.space);
    let mut backed = None;
    if compare.backed_known && compare.backed != root.backed && !tracker.stopped() {
        tracker.add(Finding::BackedCount { says: root.backed, is: compare.backed });
        backed = Some(compare.backed);
    }
    (compare.zones, backed.filter(|_| complete))
}

impl Compare<'_, '_> {
    /// Check the space node that `entry` names, and all below.
    fn node(&mut self, level: usize, index: u64, entry: &SpaceEntry) {
        if self.tracker.stopped() {
            return;
        }
        let structure = Structure::SpaceNode { level, index };
        let width = SPACE_FANOUT.pow(level as u32);
        let (first, end) = (index * width, ((index + 1) * width).min(self.geometry.zones));
        if entry.is_pristine() {
            return self.pristine(first, end, structure, entry);
        }
        let addr = self.geometry.space_node(level, index, entry.slot);
        let count = self.geometry.space_entries(level, index);
        let label = self.tracker.source.label();
        // A lost bitmap or node hides nothing that is in use: what it said follows from the marks.
        let before = self.tracker.inner().incomplete;
        let entries = self.tracker.fetch(addr, entry.sum, structure, None).and_then(|buf| {
            decode_node(&buf, label.volume, addr, entry.birth, level as u8, count)
                .map_err(|corrupt| invalid(self.tracker, addr, structure, corrupt))
                .ok()
        });
        let Some(entries) = entries else {
            self.tracker.inner().incomplete = before;
            self.backed_known = false;
            if !self.complete {
                return;
            }
            let used: Vec<u64> = self.marks.range(first..end).map(|(zone, _)| *zone).collect();
            for zone in used {
                self.rebuild(zone);
            }
            return;
        };
        let free = entries.iter().fold(0_u64, |sum, e| sum.saturating_add(e.free));
        if free != entry.free {
            self.tracker.add(Finding::FreeCount { structure, says: entry.free, is: free });
        }
        for (i, below) in entries.iter().enumerate() {
            let child = index * SPACE_FANOUT + i as u64;
            if level > 1 { self.node(level - 1, child, below) } else { self.zone(child, below) }
        }
        if free != entry.free && !self.zones.range(first..end).any(|_| true) {
            // Writing any zone below anew counts again.
            let pristine = || (first, Bitmap::pristine(self.geometry.zone_len(first), !self.grows));
            let last = self.last.take().filter(|(zone, _)| (first..end).contains(zone));
            let (zone, map) = last.unwrap_or_else(pristine);
            self.zones.insert(zone, map);
        }
    }

    /// Nothing below was ever allocated.
    fn pristine(&mut self, first: u64, end: u64, structure: Structure, entry: &SpaceEntry) {
        if first >= end {
            return;
        }
        let last = u64::from(self.geometry.zone_len(end - 1));
        let all = (end - first - 1) * u64::from(self.geometry.zone_blocks) + last;
        let free = all - 2 * (end - first);
        self.backed += if self.grows { 0 } else { all };
        if entry.free != free {
            self.tracker.add(Finding::FreeCount { structure, says: entry.free, is: free });
        }
        let used: Vec<u64> = self.marks.range(first..end).map(|(zone, _)| *zone).collect();
        for zone in used {
            let disk = Bitmap::pristine(self.geometry.zone_len(zone), !self.grows);
            self.bitmap(zone, disk);
        }
    }

    fn zone(&mut self, zone: u64, entry: &SpaceEntry) {
        if self.tracker.stopped() {
            return;
        }
        let structure = Structure::Bitmap { zone };
        if entry.is_pristine() {
            return self.pristine(zone, zone + 1, structure, entry);
        }
        let addr = self.geometry.bitmap(zone, entry.slot);
        let len = self.geometry.zone_len(zone);
        let volume = self.tracker.source.label().volume;
        let before = self.tracker.inner().incomplete;
        let disk = self.tracker.fetch(addr, entry.sum, structure, None).and_then(|buf| {
            Bitmap::decode(&buf, volume, addr, entry.birth, len)
                .map_err(|corrupt| invalid(self.tracker, addr, structure, corrupt))
                .ok()
        });
        let Some(disk) = disk else {
            self.tracker.inner().incomplete = before;
            self.backed_known = false;
            // Lost bits may be those of blocks that were not reached.
            if self.complete {
                self.rebuild(zone);
            }
            return;
        };
        let free = u64::from(disk.free());
        if free != entry.free {
            self.tracker.add(Finding::FreeCount { structure, says: entry.free, is: free });
            self.zones.insert(zone, disk.clone());
        }
        let units = len.div_ceil(self.geometry.unit_blocks());
        for unit in (0..units).filter(|u| disk.backed >> u & 1 == 1) {
            let from = unit * self.geometry.unit_blocks();
            self.backed += u64::from(self.geometry.unit_blocks().min(len - from));
        }
        self.last = Some((zone, disk.clone()));
        self.bitmap(zone, disk);
    }

    /// What the bitmap of `zone` should be, given which units are backed.
    fn right(&self, zone: u64, backed: u128) -> Bitmap {
        let mut map = Bitmap { backed, ..Bitmap::pristine(self.geometry.zone_len(zone), false) };
        if let Some(marks) = self.marks.get(&zone) {
            for (word, mark) in map.bits.iter_mut().zip(marks.iter()) {
                *word |= mark;
            }
        }
        map
    }

    fn rebuild(&mut self, zone: u64) {
        let mut map = self.right(zone, if self.grows { 1 } else { u128::MAX });
        for unit in self.used_units(zone) {
            map.backed |= 1 << unit;
        }
        self.zones.insert(zone, map);
    }

    /// Units in which blocks are in use.
    fn used_units(&self, zone: u64) -> Vec<u32> {
        let Some(marks) = self.marks.get(&zone) else { return Vec::new() };
        let (len, unit_blocks) = (self.geometry.zone_len(zone), self.geometry.unit_blocks());
        let used = |bit: u32| marks[bit as usize / 64] >> (bit % 64) & 1 == 1;
        (0..ZONE_UNITS).filter(|unit| (unit * unit_blocks..((unit + 1) * unit_blocks).min(len)).any(used)).collect()
    }

    /// Compare what the disk says of `zone` with what is in use.
    fn bitmap(&mut self, zone: u64, disk: Bitmap) {
        let mut right = self.right(zone, disk.backed);
        if !self.complete {
            right.bits.iter_mut().zip(disk.bits.iter()).for_each(|(word, have)| *word |= have);
        }
        let at = self.geometry.zone_at(zone);
        let differing = |have: &Bitmap, want: &Bitmap| {
            let bits = want.bits.iter().zip(have.bits.iter()).enumerate();
            let mut blocks = 0;
            let mut first = None;
            for (i, (want, have)) in bits {
                let more = want & !have;
                blocks += u64::from(more.count_ones());
                if more != 0 && first.is_none() {
                    first = Some(at + i as u64 * 64 + u64::from(more.trailing_zeros()));
                }
            }
            first.map(|addr| (addr, blocks))
        };
        let mut wrong = false;
        if let Some((addr, blocks)) = differing(&disk, &right) {
            self.tracker.add(Finding::NotAllocated { zone, addr, blocks });
            wrong = true;
        }
        if let Some((addr, blocks)) = differing(&right, &disk).filter(|_| self.complete) {
            self.tracker.add(Finding::Leaked { zone, addr, blocks });
            wrong = true;
        }
        let bare: Vec<u32> = self.used_units(zone).into_iter().filter(|u| disk.backed >> u & 1 == 0).collect();
        if let Some(unit) = bare.first() {
            let addr = at + u64::from(unit * self.geometry.unit_blocks());
            self.tracker.add(Finding::Unbacked { zone, addr, units: bare.len() as u32 });
            wrong = true;
        }
        for unit in bare {
            right.backed |= 1 << unit;
        }
        if wrong {
            self.zones.insert(zone, right);
        }
    }
}
