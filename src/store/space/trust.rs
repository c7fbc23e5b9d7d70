//! Bitmaps and space nodes that are lost on every replica: what is below is not trusted, and the rest goes on.
//!
//! *Guarantees*: nothing of a zone that is not trusted is handed out or counted as free; what is freed in it stays
//! allocated. The checker, which knows from the tree what is in use, makes bitmaps and nodes anew.
//! *Assumes*: a node that could not be read once is not tried again until the next mount, or until it is corrected.
//! *Fails when*: nothing at all is trusted ([`StoreError::Refused`], at mount). *Order*: as `space`.
//! *Not here*: what should stand in a bitmap (`check`).

use super::reading::read_node;
use super::{Inner, Space};
use crate::disk::Mirror;
use crate::format::Addr;
use crate::format::geometry::{SPACE_FANOUT, ZONE_UNITS};
use crate::format::space::{Bitmap, SpaceEntry};
use crate::store::StoreError;

impl Inner {
    /// Why `node` (level, index) is not read again.
    pub(super) fn check_trust(&self, node: (usize, u64)) -> Result<(), StoreError> {
        self.distrusted.get(&node).map_or(Ok(()), |error| Err(error.clone()))
    }

    /// `node`, above `free` free blocks, could not be read. Returns the error.
    pub(super) fn distrust(&mut self, node: (usize, u64), free: u64, error: StoreError) -> StoreError {
        if error.is_damage() {
            log::error!("{free} free blocks cannot be used, which ones is not known: {error}");
            self.distrusted.insert(node, error.clone());
            self.free = self.free.saturating_sub(free);
        }
        error
    }

    /// `zone` could not be loaded: the next one that is not below the same lost node. A label can speak of any number of
    /// zones; those below what is lost are passed over at once.
    pub(super) fn behind_lost(&mut self, space: &Space, mirror: &Mirror, zone: u64) -> u64 {
        for level in (1..=space.geometry.space_levels()).rev() {
            let width = SPACE_FANOUT.pow(level as u32);
            if self.entry(space, mirror, level - 1, zone / (width / SPACE_FANOUT)).is_err() {
                return (zone / width + 1) * width;
            }
        }
        zone + 1
    }

    /// Nodes above `zone` that are lost become such of a space that nothing was taken from: the checker corrects every
    /// zone below that is in use.
    fn trust_above(&mut self, space: &Space, mirror: &Mirror, zone: u64) -> Result<(), StoreError> {
        for level in (1..=space.geometry.space_levels()).rev() {
            let node = (level, zone / SPACE_FANOUT.pow(level as u32));
            let below = (level - 1, zone / SPACE_FANOUT.pow(level as u32 - 1));
            match self.entry(space, mirror, below.0, below.1) {
                Err(error) if error.is_damage() => {
                    let pristine = read_node(space, mirror, node.0, node.1, &SpaceEntry::default())?;
                    let free = pristine.iter().map(|entry| entry.free).fold(0, u64::saturating_add);
                    self.free = self.free.saturating_add(free);
                    self.nodes.insert(node, pristine);
                    self.distrusted.remove(&node);
                }
                other => drop(other?),
            }
        }
        Ok(())
    }
}

impl Space {
    /// Whether the bitmap of the zone of `addr` is lost.
    pub(super) fn is_distrusted(&self, addr: Addr) -> bool {
        let Some((zone, _)) = self.geometry.locate(addr) else { return false };
        let inner = self.inner.lock();
        let above = |level: &usize| inner.distrusted.contains_key(&(*level, zone / SPACE_FANOUT.pow(*level as u32)));
        (0..=self.geometry.space_levels()).any(|level| above(&level))
    }

    /// Whether anything can be handed out: at least one bitmap can be read.
    ///
    /// # Errors
    /// [`StoreError::Refused`]: each one is lost on every replica.
    pub fn check_any_trusted(&self, mirror: &Mirror) -> Result<(), StoreError> {
        let mut inner = self.inner.lock();
        let mut lost = None;
        let mut zone = 0;
        while zone < self.geometry.zones {
            match inner.load(self, mirror, zone) {
                Err(error) if error.is_damage() => lost = lost.or(Some(error)),
                other => return other.map(drop),
            }
            zone = inner.behind_lost(self, mirror, zone);
        }
        let lost = lost.expect("a volume has a zone");
        Err(StoreError::Refused(format!(
            "what is free is not known any more ({lost}): `stablefs fsck -y` finds it out; until then mount with `-o ro`"
        )))
    }

    /// The checker found what the bitmap of `zone` should be: written by the next commit. What was handed out and is
    /// not claimed yet stays so.
    pub fn correct(&self, mirror: &Mirror, zone: u64, bitmap: Bitmap) -> Result<(), StoreError> {
        let mut inner = self.inner.lock();
        inner.trust_above(self, mirror, zone)?;
        if inner.load(self, mirror, zone).is_err() {
            // Lost everywhere: as if nothing of it were free or had space below.
            let full = Bitmap { backed: 0, bits: Box::new([u64::MAX; crate::format::space::BITS / 8]) };
            inner.zones.insert(zone, Inner::fresh(self, zone, full));
            inner.distrusted.remove(&(0, zone));
        }
        let old = inner.zones.remove(&zone).expect("just loaded");
        let len = self.geometry.zone_len(zone);
        inner.free = inner.free.saturating_sub(u64::from(old.disk.free())).saturating_add(u64::from(bitmap.free()));
        let mut fresh = Inner::fresh(self, zone, bitmap);
        fresh.dirty = true;
        let idle = Inner::fresh(self, zone, old.disk.clone()).busy;
        for ((busy, old), idle) in fresh.busy.bits.iter_mut().zip(old.busy.bits.iter()).zip(idle.bits.iter()) {
            *busy |= old & !idle;
        }
        let backed = |map: &Bitmap| -> u64 {
            let unit = self.geometry.unit_blocks();
            let blocks = |u: u32| u64::from(unit.min(len.saturating_sub(u * unit)));
            (0..ZONE_UNITS).filter(|u| map.backed >> u & 1 == 1).map(blocks).sum()
        };
        inner.backed = (inner.backed + backed(&fresh.disk)).saturating_sub(backed(&old.disk));
        inner.zones.insert(zone, fresh);
        Ok(())
    }

    /// The checker found how many blocks have space below: written by the next commit.
    pub fn correct_backed(&self, blocks: u64) {
        self.inner.lock().backed = blocks;
    }
}
