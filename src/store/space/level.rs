//! Space below a replica that comes back: as much of it as the others have, and no more.
//!
//! *Guarantees*: only units that no bitmap calls backed are given back, and while that is so; so nothing that any retained
//! root reaches is touched. What a commit gave back and has not punched yet is left to that commit.
//! *Assumes*: the replica takes writes already, and so gets whatever is allocated from now on.
//! *Fails when*: the bitmap cannot be read. What the medium does not give back is space lost there, and nothing else.
//! *Order*: the growth lock, so that no unit is backed meanwhile. *Not here*: space for what the others have (`volume::replace`).

use super::Space;
use crate::disk::Mirror;
use crate::store::StoreError;

impl Space {
    /// Give back, on the replica in `slot` only, the units of `zone` that have no space below on the others.
    pub fn punch_unbacked(&self, mirror: &Mirror, slot: usize, zone: u64) -> Result<(), StoreError> {
        if !self.grows {
            return Ok(());
        }
        let _grow = self.grow.lock();
        let backed = self.backed_units(mirror, zone)?;
        let (at, len, unit_blocks) =
            (self.geometry.zone_at(zone), self.geometry.zone_len(zone), self.geometry.unit_blocks());
        let mut waiting: Vec<_> = self.inner.lock().to_punch.iter().map(|span| span.addr).collect();
        waiting.sort_unstable();
        let is_spare = |unit: u32| {
            let addr = at + u64::from(unit * unit_blocks);
            backed >> unit & 1 == 0 && waiting.binary_search(&addr).is_err()
        };
        let units = len.div_ceil(unit_blocks);
        let mut unit = 0;
        while unit < units {
            let end = (unit..units).find(|unit| !is_spare(*unit)).unwrap_or(units);
            if end > unit {
                let (from, to) = (unit * unit_blocks, (end * unit_blocks).min(len));
                mirror.punch_on(slot, at + u64::from(from), u64::from(to - from));
            }
            unit = end + 1;
        }
        Ok(())
    }
}
