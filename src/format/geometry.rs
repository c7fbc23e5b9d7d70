//! Where the fixed structures stand, computed from four numbers.
//!
//! *Guarantees*: all regions are disjoint, aligned as the table says and inside `blocks`; every replica of a
//! volume has the same geometry.
//! *Assumes*: nothing. *Fails when*: the numbers are out of range: [`Corrupt`]. *Order*: none.
//! *Not here*: what the regions hold.
//!
//! | region | first block | blocks |
//! |---|---|---|
//! | label, label copy | 0, 16 | 1 each |
//! | heartbeat | 24 | 1 |
//! | root slot i of 16 | 32 + 16 i | 1 each (64 KiB apart) |
//! | space nodes, level by level, two slots each | 288 | 2 × nodes |
//! | log ring | next multiple of 256 | `log_blocks` |
//! | zone z | `zones_at` + z × `zone_blocks` | `zone_blocks`, the last one shorter |
//!
//! In each zone, block 0 and block 1 are the two slots of its bitmap.

use super::{Addr, Corrupt, require};

/// The heartbeat, between the copies of the label and the root slots.
pub const BEAT_AT: Addr = 24;
/// Root slots.
pub const ROOT_SLOTS: usize = 16;
/// Blocks between root slots: 64 KiB.
pub const ROOT_STRIDE: u64 = 16;
/// First root slot.
pub const ROOTS_AT: Addr = 32;
/// First space node.
pub const SPACE_AT: Addr = 288;
/// Bits in a bitmap, so the most blocks in a zone: 125 MiB.
pub const ZONE_BLOCKS_MAX: u32 = 32_000;
/// Fewest blocks in a zone (tests and very small volumes).
pub const ZONE_BLOCKS_MIN: u32 = 256;
/// Entries in a space node.
pub const SPACE_FANOUT: u64 = 125;
/// Units of backing in a zone; a unit of a full zone is 1 MiB.
pub const ZONE_UNITS: u32 = 125;
/// Most levels of space nodes; 125^8 zones are far beyond any address.
pub const SPACE_LEVELS_MAX: usize = 8;
/// Smallest and largest log ring, in blocks.
pub const LOG_BLOCKS_MIN: u32 = 64;
/// Largest log ring: 64 MiB.
pub const LOG_BLOCKS_MAX: u32 = 16_384;
/// Largest volume in blocks: 2^48 × 4 KiB = 1 EiB.
pub const BLOCKS_MAX: u64 = 1 << 48;

const _: () = assert!(ROOTS_AT + ROOT_SLOTS as u64 * ROOT_STRIDE == SPACE_AT);
const _: () = assert!(ZONE_BLOCKS_MAX == ZONE_UNITS * 256);

/// The four numbers and what follows from them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    /// Blocks of the volume, on each replica.
    pub blocks: u64,
    /// Blocks in a zone.
    pub zone_blocks: u32,
    /// Blocks in the log ring.
    pub log_blocks: u32,
    /// First block of the log ring.
    pub log_at: Addr,
    /// First block of zone 0.
    pub zones_at: Addr,
    /// Zones, the last one perhaps shorter.
    pub zones: u64,
    /// Nodes at each level of space nodes, level 1 first; the last has one node.
    pub space_nodes: Vec<u64>,
}

impl Geometry {
    /// Compute; rejects numbers that leave no room for at least one zone with data.
    pub fn new(blocks: u64, zone_blocks: u32, log_blocks: u32) -> Result<Geometry, Corrupt> {
        const WHAT: &str = "geometry";
        require(blocks <= BLOCKS_MAX, WHAT, "is at most 2^48 blocks")?;
        require((ZONE_BLOCKS_MIN..=ZONE_BLOCKS_MAX).contains(&zone_blocks), WHAT, "has zones of 256 to 32000 blocks")?;
        require((LOG_BLOCKS_MIN..=LOG_BLOCKS_MAX).contains(&log_blocks), WHAT, "has a log of 64 to 16384 blocks")?;
        // Sized for the zones that would fit if nothing else stood there: at most a few nodes too many.
        let zones_most = blocks.div_ceil(u64::from(zone_blocks)).max(1);
        let mut space_nodes = Vec::new();
        let mut below = zones_most;
        loop {
            below = below.div_ceil(SPACE_FANOUT);
            space_nodes.push(below);
            if below == 1 {
                break;
            }
        }
        assert!(space_nodes.len() <= SPACE_LEVELS_MAX);
        let space_blocks: u64 = 2 * space_nodes.iter().sum::<u64>();
        let log_at = (SPACE_AT + space_blocks).next_multiple_of(256);
        let zones_at = (log_at + u64::from(log_blocks)).next_multiple_of(256);
        require(zones_at + u64::from(ZONE_BLOCKS_MIN) <= blocks, WHAT, "has room for a zone")?;
        let mut zones = (blocks - zones_at).div_ceil(u64::from(zone_blocks));
        // A last zone too short for its bitmaps and some data is left out.
        let last = (blocks - zones_at) - (zones - 1) * u64::from(zone_blocks);
        if last < 64 && zones > 1 {
            zones -= 1;
        }
        Ok(Geometry { blocks, zone_blocks, log_blocks, log_at, zones_at, zones, space_nodes })
    }

    /// Address of root slot `slot`.
    pub fn root_slot(slot: usize) -> Addr {
        assert!(slot < ROOT_SLOTS);
        ROOTS_AT + slot as u64 * ROOT_STRIDE
    }
    /// Addresses of the two copies of the label.
    pub fn label_copies() -> [Addr; 2] {
        [0, 16]
    }
    /// Levels of space nodes.
    pub fn space_levels(&self) -> usize {
        self.space_nodes.len()
    }
    /// Address of slot `slot` (0 or 1) of space node `index` at `level` (1 = above bitmaps).
    pub fn space_node(&self, level: usize, index: u64, slot: u8) -> Addr {
        assert!(level >= 1 && level <= self.space_nodes.len());
        assert!(index < self.space_nodes[level - 1] && slot < 2);
        let before: u64 = self.space_nodes[..level - 1].iter().sum();
        SPACE_AT + 2 * (before + index) + u64::from(slot)
    }
    /// Entries that space node `index` at `level` really has (children that exist).
    pub fn space_entries(&self, level: usize, index: u64) -> u64 {
        let below = if level == 1 { self.zones } else { self.space_nodes[level - 2] };
        below.saturating_sub(index * SPACE_FANOUT).min(SPACE_FANOUT)
    }
    /// First block of zone `zone`.
    pub fn zone_at(&self, zone: u64) -> Addr {
        assert!(zone < self.zones);
        self.zones_at + zone * u64::from(self.zone_blocks)
    }
    /// Blocks that zone `zone` has.
    pub fn zone_len(&self, zone: u64) -> u32 {
        let left = self.blocks - self.zone_at(zone);
        left.min(u64::from(self.zone_blocks)) as u32
    }
    /// Address of slot `slot` of the bitmap of `zone`.
    pub fn bitmap(&self, zone: u64, slot: u8) -> Addr {
        assert!(slot < 2);
        self.zone_at(zone) + u64::from(slot)
    }
    /// The zone and the bit of `addr`, if a zone holds it.
    pub fn locate(&self, addr: Addr) -> Option<(u64, u32)> {
        let from = addr.checked_sub(self.zones_at)?;
        let zone = from / u64::from(self.zone_blocks);
        let bit = (from % u64::from(self.zone_blocks)) as u32;
        (zone < self.zones && bit < self.zone_len(zone)).then_some((zone, bit))
    }
    /// Whether `count` blocks from `addr` are data blocks of one zone (not bitmaps, not fixed structures).
    pub fn holds_data(&self, addr: Addr, count: u64) -> bool {
        let Some((zone, bit)) = self.locate(addr) else { return false };
        bit >= 2 && count >= 1 && count <= u64::from(self.zone_len(zone) - bit)
    }
    /// Blocks in a unit of backing of a zone.
    pub fn unit_blocks(&self) -> u32 {
        self.zone_blocks.div_ceil(ZONE_UNITS)
    }
    /// Blocks that are needed before the first zone.
    pub fn front_blocks(&self) -> u64 {
        self.zones_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_disjoint_and_inside() {
        for (blocks, zone, log) in
            [(2048, 256, 64), (16384, 32000, 512), (1 << 28, 32000, 16384), (1 << 45, 32000, 16384)]
        {
            let g = Geometry::new(blocks, zone, log).unwrap();
            let top = g.space_levels();
            assert_eq!(g.space_nodes[top - 1], 1);
            let last = g.space_node(top, 0, 1);
            assert!(last < g.log_at && g.log_at + u64::from(log) <= g.zones_at);
            let z = g.zones - 1;
            assert!(g.zone_at(z) + u64::from(g.zone_len(z)) <= blocks);
            assert_eq!(g.locate(g.zone_at(z) + 1), Some((z, 1)));
            assert!(!g.holds_data(g.zone_at(z) + 1, 1) && g.holds_data(g.zone_at(z) + 2, 1));
            assert_eq!(
                (1..=top)
                    .map(|l| (0..g.space_nodes[l - 1].min(400)).map(|i| g.space_entries(l, i)).sum::<u64>())
                    .next()
                    .unwrap()
                    .min(g.zones),
                g.zones.min(400 * SPACE_FANOUT)
            );
        }
        assert!(Geometry::new(300, 256, 64).is_err());
        assert!(Geometry::new(u64::MAX, 256, 64).is_err());
        assert!(Geometry::new(4096, 1, 64).is_err());
    }
}
