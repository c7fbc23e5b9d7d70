//! Which blocks are free: zones, their bitmaps, and the space nodes above.
//!
//! *Guarantees*: [`Space::alloc`] never hands out a block that a retained root reaches, that an open or closing group
//! uses, or that has no space below on every replica. What [`Space::write_out`] puts on disk for group n is exactly
//! what the root of group n reaches plus its dead lists.
//! *Assumes*: the mirror proves what it returns; [`Space::release`] is told only runs below `reuse_below`
//! (invariant 6). *Fails when*: no block is left ([`StoreError::NoSpace`]). A lost bitmap costs its zone (`trust`).
//! *Order*: `grow` lock before `inner`; both are leaves of the lock order (I/O to load a zone happens under them).
//! *Not here*: what is reachable (`commit`), and when a dead list is due (`commit`).
//!
//! Two views of each loaded zone: `disk`, what the next commit writes, and `busy`, what the allocator avoids:
//!
//! | step | disk | busy |
//! |---|---|---|
//! | `alloc` in group n | – | set |
//! | commit n references it: `claim` | set | – |
//! | commit n does not: `forget` once root n is durable | – | cleared |
//! | freed by group n | – | – (a dead list names it) |
//! | its dead list is due: `release` in commit n | cleared | cleared once root n is durable |
//!
//! The slot written is the one that the last durable root does not name: new entries wait in `pending` until
//! [`Space::finish`].

use super::StoreError;
use crate::disk::buffer::{Buf, Slice};
use crate::disk::{DiskError, Mirror};
use crate::format::geometry::{SPACE_FANOUT, ZONE_UNITS};
use crate::format::space::{Bitmap, SpaceEntry, encode_node};
use crate::format::{Addr, Geometry, Root, Txg, Uuid, VolumeSeed};
use crate::sync::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap};

mod level;
mod reading;
mod trust;
use reading::{find_run, read_bitmap, read_node};

/// Loaded zones that are kept although nothing in them waits: 8 KiB each.
const ZONES_KEPT: usize = 2048;
/// Zones searched for a long run before a shorter one is taken.
const ZONES_SEARCHED: u64 = 8;
/// Blocks by which a container grows at most in one step: 64 MiB.
const GROW_BLOCKS_MAX: u64 = 16_384;
/// Backed free blocks kept before any unit is given back: 64 MiB.
const KEEP_BLOCKS: u64 = 16_384;

/// What a block is for: the two are kept in different zones where there are several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// File content.
    Data,
    /// Nodes and dead lists.
    Meta,
}

/// Consecutive blocks that were handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First block.
    pub addr: Addr,
    /// How many.
    pub blocks: u32,
}

struct Zone {
    disk: Bitmap,
    busy: Bitmap,
    dirty: bool,
    /// Blocks were freed since units were last given back.
    loosened: bool,
}

struct Inner {
    top: SpaceEntry,
    nodes: HashMap<(usize, u64), Vec<SpaceEntry>>,
    pending: HashMap<(usize, u64), SpaceEntry>,
    zones: BTreeMap<u64, Zone>,
    /// Nodes (and at level 0 bitmaps) that no replica proves: nothing below is handed out or taken back.
    distrusted: HashMap<(usize, u64), StoreError>,
    cursor: [(u64, u32); 2],
    /// Blocks not allocated and not pending, with or without space below.
    free: u64,
    /// Blocks of zones with space below.
    backed: u64,
    grow_zone: u64,
    /// Units given back by the commit under way: punched once it is durable.
    to_punch: Vec<Span>,
    /// Blocks that the commit under way frees: handed out again once it is durable.
    to_release: Vec<Span>,
}

/// The allocator.
pub struct Space {
    geometry: Geometry,
    volume: Uuid,
    seed: VolumeSeed,
    grows: bool,
    data_blocks: u64,
    grow: Mutex<()>,
    inner: Mutex<Inner>,
}

/// What a commit has to write and to name.
pub struct SpaceWrites {
    /// Blocks to write.
    pub writes: Vec<(Addr, Slice)>,
    /// Entry of the top node, for the root.
    pub top: SpaceEntry,
    /// For the root.
    pub backed: u64,
    /// For the root.
    pub grow_zone: u64,
}

/// Blocks of all zones but their bitmaps.
fn data_blocks(geometry: &Geometry) -> u64 {
    let last = geometry.zones - 1;
    last * u64::from(geometry.zone_blocks) + u64::from(geometry.zone_len(last)) - 2 * geometry.zones
}

/// The entry of the top node of a volume that was never written.
pub fn pristine_top(geometry: &Geometry) -> SpaceEntry {
    SpaceEntry { free: data_blocks(geometry), ..SpaceEntry::default() }
}

/// Blocks of zones with space below in a volume that does not grow.
pub fn all_backed(geometry: &Geometry) -> u64 {
    data_blocks(geometry) + 2 * geometry.zones
}

impl Space {
    /// The space of `root`.
    pub fn new(geometry: &Geometry, volume: Uuid, grows: bool, root: &Root) -> Space {
        // Metadata starts half-way in the first zone, or in the second one where there is one.
        let meta = if geometry.zones > 3 { (1, 2) } else { (0, geometry.zone_len(0) / 2) };
        Space {
            geometry: geometry.clone(),
            volume,
            seed: VolumeSeed::new(volume),
            grows,
            data_blocks: data_blocks(geometry),
            grow: Mutex::new(()),
            inner: Mutex::new(Inner {
                top: root.space,
                nodes: HashMap::new(),
                pending: HashMap::new(),
                zones: BTreeMap::new(),
                distrusted: HashMap::new(),
                cursor: [(0, 2), meta],
                free: root.space.free,
                backed: root.backed,
                grow_zone: root.grow_zone,
                to_punch: Vec::new(),
                to_release: Vec::new(),
            }),
        }
    }

    /// Blocks for data and nodes in the whole volume.
    pub fn total(&self) -> u64 {
        self.data_blocks
    }
    /// Free blocks, with or without space below.
    pub fn free(&self) -> u64 {
        self.inner.lock().free
    }
    /// Free blocks with space below on every replica.
    pub fn free_backed(&self) -> u64 {
        let inner = self.inner.lock();
        inner.free_backed(self)
    }

    /// Hand out between 1 and `want` consecutive blocks.
    pub fn alloc(&self, mirror: &Mirror, class: Class, want: u32) -> Result<Span, StoreError> {
        assert!(want >= 1);
        let mut inner = self.inner.lock();
        let at = class as usize;
        let (first, _) = inner.cursor[at];
        let other = inner.cursor[1 - at].0;
        let mut best: Option<(u64, u32, u32)> = None;
        let (mut next, mut wrapped, mut searched) = (first, false, 0);
        loop {
            let zone = match inner.next_free(self, mirror, next) {
                Some(zone) if !wrapped || zone <= first => zone,
                _ if !wrapped => {
                    (next, wrapped) = (0, true);
                    continue;
                }
                _ => break,
            };
            next = zone + 1;
            // The other class' zone is taken only when nothing else is left.
            if zone == other && first != other && best.is_none() {
                continue;
            }
            let from = if zone == first && !wrapped { inner.cursor[at].1 } else { 2 };
            // A bitmap that is lost on every replica costs its zone, not the volume.
            let Ok(loaded) = inner.load(self, mirror, zone) else { continue };
            if let Some((bit, len)) = find_run(&loaded.busy, from, want) {
                if best.is_none_or(|b| b.2 < len) {
                    best = Some((zone, bit, len));
                }
                if len >= want || searched >= ZONES_SEARCHED {
                    break;
                }
            }
            searched += 1;
        }
        if best.is_none() {
            best = inner.anywhere(self, mirror, want)?;
        }
        let Some((zone, bit, len)) = best else { return Err(StoreError::NoSpace) };
        let len = len.min(want);
        inner.zones.get_mut(&zone).expect("just loaded").busy.set(bit, len);
        inner.free = inner.free.saturating_sub(u64::from(len));
        inner.cursor[at] = (zone, bit + len);
        Ok(Span { addr: self.geometry.zone_at(zone) + u64::from(bit), blocks: len })
    }

    /// A commit references these blocks: they count as allocated from its root on.
    pub fn claim(&self, mirror: &Mirror, span: Span) -> Result<(), StoreError> {
        let mut handed_out = true;
        self.change(mirror, span, |zone, bit| {
            handed_out = (bit..bit + span.blocks).all(|b| !zone.disk.get(b) && zone.busy.get(b));
            if handed_out {
                zone.disk.set(bit, span.blocks);
                zone.dirty = true;
            }
        })?;
        if handed_out {
            return Ok(());
        }
        let corrupt = crate::format::Corrupt { what: "volume", rule: "names each block once" };
        Err(StoreError::Corrupt { addr: span.addr, corrupt })
    }

    /// These blocks were handed out, are referenced by no root, and nobody reads them any more.
    pub fn forget(&self, mirror: &Mirror, span: Span) -> Result<(), StoreError> {
        let mut handed_out = true;
        let forgotten = self.change(mirror, span, |zone, bit| {
            handed_out = (bit..bit + span.blocks).all(|b| !zone.disk.get(b) && zone.busy.get(b));
            if handed_out {
                zone.busy.clear(bit, span.blocks);
            }
        });
        match forgotten {
            Err(error) if error.is_damage() => return Ok(()),
            other => other?,
        }
        if !handed_out {
            let corrupt = crate::format::Corrupt { what: "volume", rule: "names each block once" };
            return Err(StoreError::Corrupt { addr: span.addr, corrupt });
        }
        let mut inner = self.inner.lock();
        inner.free = inner.free.saturating_add(u64::from(span.blocks));
        Ok(())
    }

    /// These blocks were freed below `reuse_below`. A run that is already free is hostile or damaged input. One whose
    /// bitmap is lost stays allocated until a check has made a new bitmap.
    pub fn release(&self, mirror: &Mirror, span: Span) -> Result<(), StoreError> {
        let mut doubly = false;
        let changed = self.change(mirror, span, |zone, bit| {
            doubly = (bit..bit + span.blocks).any(|b| !zone.disk.get(b));
            if !doubly {
                zone.disk.clear(bit, span.blocks);
                zone.dirty = true;
            }
        });
        match changed {
            Err(error) if self.is_distrusted(span.addr) => {
                log::warn!("{} blocks at {} stay allocated: {error}", span.blocks, span.addr);
                return Ok(());
            }
            other => other?,
        }
        if doubly {
            return Err(StoreError::Corrupt {
                addr: span.addr,
                corrupt: crate::format::Corrupt { what: "dead list", rule: "frees only allocated blocks" },
            });
        }
        // The durable root still calls them allocated: a log record that named them now could not be replayed.
        self.inner.lock().to_release.push(span);
        Ok(())
    }

    /// Replay found these blocks named by a log record: keep the allocator off them, and count them as backed.
    pub fn occupy(&self, mirror: &Mirror, span: Span) -> Result<(), StoreError> {
        if !self.geometry.holds_data(span.addr, u64::from(span.blocks)) {
            return Err(outside(span));
        }
        let mut inner = self.inner.lock();
        let (zone, bit) = self.geometry.locate(span.addr).expect("checked");
        for b in bit..bit + span.blocks {
            let loaded = inner.load(self, mirror, zone)?;
            let unit = b / self.geometry.unit_blocks();
            if loaded.disk.backed >> unit & 1 == 0 {
                inner.back_units(self, zone, unit, 1);
            }
            let loaded = inner.zones.get_mut(&zone).expect("just loaded");
            if loaded.busy.get(b) {
                let corrupt = crate::format::Corrupt { what: "log record", rule: "names each block once" };
                return Err(StoreError::Corrupt { addr: span.addr, corrupt });
            }
            loaded.busy.set(b, 1);
            inner.free = inner.free.saturating_sub(1);
        }
        Ok(())
    }

    /// Whether a durable root counts `addr` as allocated.
    pub fn is_allocated(&self, mirror: &Mirror, addr: Addr) -> Result<bool, StoreError> {
        let Some((zone, bit)) = self.geometry.locate(addr) else { return Ok(true) };
        Ok(self.inner.lock().load(self, mirror, zone)?.disk.get(bit))
    }

    /// Whether an open or closing group, a retained root or a dead list uses `addr`.
    pub fn is_busy(&self, mirror: &Mirror, addr: Addr) -> Result<bool, StoreError> {
        let Some((zone, bit)) = self.geometry.locate(addr) else { return Ok(true) };
        Ok(self.inner.lock().load(self, mirror, zone)?.busy.get(bit))
    }

    fn change(&self, mirror: &Mirror, span: Span, f: impl FnOnce(&mut Zone, u32)) -> Result<(), StoreError> {
        if !self.geometry.holds_data(span.addr, u64::from(span.blocks)) {
            return Err(outside(span));
        }
        let (zone, bit) = self.geometry.locate(span.addr).expect("checked");
        let mut inner = self.inner.lock();
        f(inner.load(self, mirror, zone)?, bit);
        Ok(())
    }

    /// Let the containers grow until `need` free blocks have space below. `Ok(false)`: they cannot.
    pub fn ensure_backed(&self, mirror: &Mirror, need: u64) -> Result<bool, StoreError> {
        if self.free_backed() >= need {
            return Ok(true);
        }
        let _grow = self.grow.lock();
        loop {
            let mut inner = self.inner.lock();
            let have = inner.free_backed(self);
            if have >= need {
                return Ok(true);
            }
            let Some((zone, unit, units)) = inner.next_unbacked(self, mirror, need - have)? else { return Ok(false) };
            drop(inner);
            let from = unit * self.geometry.unit_blocks();
            let len = (units * self.geometry.unit_blocks()).min(self.geometry.zone_len(zone) - from);
            match mirror.allocate(self.geometry.zone_at(zone) + u64::from(from), u64::from(len)) {
                Ok(()) => {}
                Err(DiskError::Full { .. }) => return Ok(false),
                Err(other) => return Err(other.into()),
            }
            self.inner.lock().back_units(self, zone, unit, units);
        }
    }

    /// Wait until the growth under way, which may not reach a replica that has just come, is in memory.
    pub fn settle_growth(&self) {
        drop(self.grow.lock());
    }

    /// Units of `zone` that have space below, or are about to, as bits.
    pub fn backed_units(&self, mirror: &Mirror, zone: u64) -> Result<u128, StoreError> {
        let mut inner = self.inner.lock();
        if let Some(loaded) = inner.zones.get(&zone) {
            return Ok(loaded.disk.backed);
        }
        let entry = inner.entry(self, mirror, 0, zone)?;
        Ok(read_bitmap(self, mirror, zone, &entry)?.backed)
    }

    /// Encode all dirty bitmaps and the nodes above, for group `txg`.
    pub fn write_out(&self, mirror: &Mirror, txg: Txg) -> Result<SpaceWrites, StoreError> {
        let mut inner = self.inner.lock();
        assert!(inner.pending.is_empty(), "one commit at a time");
        inner.give_back(self);
        let mut writes = Vec::new();
        let mut dirty: Vec<u64> = inner.zones.iter().filter(|(_, z)| z.dirty).map(|(i, _)| *i).collect();
        dirty.sort_unstable();
        let mut parents = BTreeSet::new();
        for zone in dirty {
            let old = inner.entry(self, mirror, 0, zone)?;
            let slot = if old.is_pristine() { 0 } else { 1 - old.slot };
            let addr = self.geometry.bitmap(zone, slot);
            let loaded = inner.zones.get_mut(&zone).expect("it is dirty");
            // What changes from here on is for the next commit.
            loaded.dirty = false;
            let disk = &loaded.disk;
            let bytes = disk.encode(self.volume, addr, txg);
            let entry =
                SpaceEntry { birth: txg, sum: self.seed.checksum(addr, &bytes), free: u64::from(disk.free()), slot };
            writes.push((addr, Slice::whole(Buf::from_slice(&bytes))));
            inner.pending.insert((0, zone), entry);
            parents.insert(zone / SPACE_FANOUT);
        }
        for level in 1..=self.geometry.space_levels() {
            for index in std::mem::take(&mut parents) {
                let entry = inner.write_node(self, mirror, level, index, txg, &mut writes)?;
                inner.pending.insert((level, index), entry);
                parents.insert(index / SPACE_FANOUT);
            }
        }
        let top = inner.pending.get(&(self.geometry.space_levels(), 0)).copied().unwrap_or(inner.top);
        Ok(SpaceWrites { writes, top, backed: inner.backed, grow_zone: inner.grow_zone })
    }

    /// The root that names what `write_out` returned is durable. Gives back what it unbacked.
    pub fn finish(&self, mirror: &Mirror) {
        let grow = self.grow.lock();
        let punch = {
            let mut inner = self.inner.lock();
            let pending = std::mem::take(&mut inner.pending);
            for ((level, index), entry) in pending {
                if level == self.geometry.space_levels() {
                    inner.top = entry;
                } else if let Some(node) = inner.nodes.get_mut(&(level + 1, index / SPACE_FANOUT)) {
                    node[(index % SPACE_FANOUT) as usize] = entry;
                }
            }
            for span in std::mem::take(&mut inner.to_release) {
                let (zone, bit) = self.geometry.locate(span.addr).expect("checked when it was released");
                let loaded = inner.zones.get_mut(&zone).expect("a zone with blocks on their way out stays loaded");
                loaded.busy.clear(bit, span.blocks);
                loaded.loosened = true;
                inner.free = inner.free.saturating_add(u64::from(span.blocks));
            }
            inner.evict();
            std::mem::take(&mut inner.to_punch)
        };
        for span in &punch {
            mirror.punch(span.addr, u64::from(span.blocks));
        }
        drop(grow);
    }
}

fn outside(span: Span) -> StoreError {
    StoreError::Corrupt {
        addr: span.addr,
        corrupt: crate::format::Corrupt { what: "run of blocks", rule: "stands inside a zone" },
    }
}

impl Inner {
    fn free_backed(&self, space: &Space) -> u64 {
        let all = space.data_blocks + 2 * space.geometry.zones;
        self.free.saturating_sub(all - self.backed.min(all))
    }

    /// The entry of child `index` at `level` (0: a bitmap), as the last durable root says.
    fn entry(&mut self, space: &Space, mirror: &Mirror, level: usize, index: u64) -> Result<SpaceEntry, StoreError> {
        if level == space.geometry.space_levels() {
            return Ok(self.top);
        }
        let parent = (level + 1, index / SPACE_FANOUT);
        if !self.nodes.contains_key(&parent) {
            self.check_trust(parent)?;
            let entry = self.entry(space, mirror, parent.0, parent.1)?;
            let node = read_node(space, mirror, parent.0, parent.1, &entry);
            let node = node.map_err(|error| self.distrust(parent, entry.free, error))?;
            self.nodes.insert(parent, node);
        }
        Ok(self.nodes[&parent][(index % SPACE_FANOUT) as usize])
    }

    fn zone_free(&mut self, space: &Space, mirror: &Mirror, zone: u64) -> Result<u64, StoreError> {
        if self.zones.contains_key(&zone) {
            return Ok(1);
        }
        let entry = self.entry(space, mirror, 0, zone)?;
        Ok(if space.grows && entry.is_pristine() { 0 } else { entry.free })
    }

    fn load(&mut self, space: &Space, mirror: &Mirror, zone: u64) -> Result<&mut Zone, StoreError> {
        if !self.zones.contains_key(&zone) {
            self.check_trust((0, zone))?;
            let entry = self.entry(space, mirror, 0, zone)?;
            let disk = read_bitmap(space, mirror, zone, &entry);
            let disk = disk.map_err(|error| self.distrust((0, zone), entry.free, error))?;
            self.zones.insert(zone, Inner::fresh(space, zone, disk));
        }
        Ok(self.zones.get_mut(&zone).expect("just inserted"))
    }

    /// A zone in which nothing is pending: units without space below are busy.
    fn fresh(space: &Space, zone: u64, disk: Bitmap) -> Zone {
        let mut busy = disk.clone();
        let len = space.geometry.zone_len(zone);
        for unit in (0..ZONE_UNITS).filter(|u| disk.backed >> u & 1 == 0) {
            let from = (unit * space.geometry.unit_blocks()).min(len);
            busy.set(from, space.geometry.unit_blocks().min(len - from));
        }
        Zone { disk, busy, dirty: false, loosened: false }
    }

    /// Any free run, from the first zone on: the last resort.
    fn anywhere(&mut self, space: &Space, mirror: &Mirror, want: u32) -> Result<Option<(u64, u32, u32)>, StoreError> {
        let mut from = 0;
        while let Some(zone) = self.next_free(space, mirror, from) {
            from = zone + 1;
            let Ok(loaded) = self.load(space, mirror, zone) else { continue };
            if let Some((bit, len)) = find_run(&loaded.busy, 2, want) {
                return Ok(Some((zone, bit, len)));
            }
        }
        Ok(None)
    }

    /// The first zone from `from` on that may have free blocks: loaded, or so says its entry. Takes time for what stands
    /// on disk, not for how many zones the label says there are.
    fn next_free(&mut self, space: &Space, mirror: &Mirror, from: u64) -> Option<u64> {
        let mut at = from;
        let stands = loop {
            if at >= space.geometry.zones {
                break None;
            }
            match self.free_from(space, mirror, at) {
                Ok(zone) => break Some(zone),
                Err(next) => at = next,
            }
        };
        let loaded = self.zones.range(from..).next().map(|(zone, _)| *zone);
        [stands, loaded].into_iter().flatten().min()
    }

    /// `zone` if it may have free blocks; otherwise the next zone to ask. Counts above the zones' own are not relied on.
    fn free_from(&mut self, space: &Space, mirror: &Mirror, zone: u64) -> Result<u64, u64> {
        for level in (1..=space.geometry.space_levels()).rev() {
            let width = SPACE_FANOUT.pow(level as u32);
            let behind = (zone / width + 1) * width;
            match self.entry(space, mirror, level, zone / width) {
                Ok(entry) if entry.is_pristine() => return if space.grows { Err(behind) } else { Ok(zone) },
                Ok(_) if self.entry(space, mirror, level - 1, zone / (width / SPACE_FANOUT)).is_ok() => {}
                _ => return Err(behind),
            }
        }
        if self.zone_free(space, mirror, zone).unwrap_or(0) > 0 { Ok(zone) } else { Err(zone + 1) }
    }

    /// First stretch of units without space below: (zone, unit, units), sized for `need` blocks.
    fn next_unbacked(
        &mut self,
        space: &Space,
        mirror: &Mirror,
        need: u64,
    ) -> Result<Option<(u64, u32, u32)>, StoreError> {
        let unit_blocks = space.geometry.unit_blocks();
        if !space.grows {
            return Ok(None);
        }
        let step = need.max(space.data_blocks / 64).min(GROW_BLOCKS_MAX).div_ceil(u64::from(unit_blocks)).max(1) as u32;
        // A zone whose bitmap is lost is passed over, but not for ever.
        let mut passed = false;
        let mut at = self.grow_zone;
        while at < space.geometry.zones {
            let zone = at;
            at += 1;
            let units = space.geometry.zone_len(zone).div_ceil(unit_blocks);
            let backed = match self.load(space, mirror, zone) {
                Ok(loaded) => loaded.disk.backed,
                Err(error) if error.is_damage() => {
                    passed = true;
                    at = self.behind_lost(space, mirror, zone);
                    continue;
                }
                Err(error) => return Err(error),
            };
            if let Some(unit) = (0..units).find(|u| backed >> u & 1 == 0) {
                let end = (unit..units).find(|u| backed >> u & 1 == 1).unwrap_or(units);
                return Ok(Some((zone, unit, (end - unit).min(step))));
            }
            if !passed {
                self.grow_zone = zone + 1;
            }
        }
        Ok(None)
    }

    fn back_units(&mut self, space: &Space, zone: u64, unit: u32, units: u32) {
        let len = space.geometry.zone_len(zone);
        let loaded = self.zones.get_mut(&zone).expect("loaded by the caller");
        let at = space.geometry.zone_at(zone);
        for unit in unit..unit + units {
            if loaded.disk.backed >> unit & 1 == 1 {
                continue;
            }
            // Given back by the commit under way, and wanted again: it must not be punched.
            let unit_at = at + u64::from(unit * space.geometry.unit_blocks());
            self.to_punch.retain(|span| span.addr != unit_at);
            loaded.disk.backed |= 1 << unit;
            let from = unit * space.geometry.unit_blocks();
            let count = space.geometry.unit_blocks().min(len - from);
            for bit in from..from + count {
                if !loaded.disk.get(bit) {
                    loaded.busy.clear(bit, 1);
                }
            }
            self.backed += u64::from(count);
        }
        loaded.dirty = true;
    }

    /// Units of dirty zones that are wholly free go back to the filesystem below, as long as enough stays.
    fn give_back(&mut self, space: &Space) {
        if !space.grows {
            return;
        }
        let mut spare = self.free_backed(space).saturating_sub(KEEP_BLOCKS + space.data_blocks / 16);
        let unit_blocks = space.geometry.unit_blocks();
        let mut given = 0;
        let mut lowest = self.grow_zone;
        for (index, zone) in self.zones.iter_mut().filter(|(_, z)| z.dirty || z.loosened) {
            zone.loosened = false;
            let len = space.geometry.zone_len(*index);
            // Unit 0 holds the bitmap itself.
            for unit in 1..len.div_ceil(unit_blocks) {
                let from = unit * unit_blocks;
                let count = unit_blocks.min(len - from);
                let idle = zone.disk.backed >> unit & 1 == 1
                    && u64::from(count) <= spare
                    && (from..from + count).all(|b| !zone.disk.get(b) && !zone.busy.get(b));
                if idle {
                    zone.disk.backed &= !(1 << unit);
                    zone.busy.set(from, count);
                    zone.dirty = true;
                    lowest = lowest.min(*index);
                    spare -= u64::from(count);
                    given += u64::from(count);
                    let addr = space.geometry.zone_at(*index) + u64::from(from);
                    self.to_punch.push(Span { addr, blocks: count });
                }
            }
        }
        self.backed = self.backed.saturating_sub(given);
        self.grow_zone = lowest;
    }

    fn write_node(
        &mut self,
        space: &Space,
        mirror: &Mirror,
        level: usize,
        index: u64,
        txg: Txg,
        writes: &mut Vec<(Addr, Slice)>,
    ) -> Result<SpaceEntry, StoreError> {
        let old = self.entry(space, mirror, level, index)?;
        self.entry(space, mirror, level - 1, index * SPACE_FANOUT)?; // loads this node's entries
        let mut entries = self.nodes[&(level, index)].clone();
        for (i, entry) in entries.iter_mut().enumerate() {
            if let Some(new) = self.pending.get(&(level - 1, index * SPACE_FANOUT + i as u64)) {
                *entry = *new;
            }
        }
        let slot = if old.is_pristine() { 0 } else { 1 - old.slot };
        let addr = space.geometry.space_node(level, index, slot);
        let bytes = encode_node(space.volume, addr, txg, level as u8, &entries);
        let entry = SpaceEntry {
            birth: txg,
            sum: space.seed.checksum(addr, &bytes),
            free: entries.iter().fold(0, |sum: u64, e| sum.saturating_add(e.free)),
            slot,
        };
        writes.push((addr, Slice::whole(Buf::from_slice(&bytes))));
        Ok(entry)
    }

    fn evict(&mut self) {
        if self.zones.len() > ZONES_KEPT {
            let current = [self.cursor[0].0, self.cursor[1].0];
            self.zones
                .retain(|index, zone| zone.dirty || current.contains(index) || zone.busy.bits != busy_when_idle(zone));
        }
    }
}

/// What `busy` would be if nothing were pending in the zone; approximated by the allocated bits when all is backed.
fn busy_when_idle(zone: &Zone) -> Box<[u64; crate::format::space::BITS / 8]> {
    zone.disk.bits.clone()
}
