//! Bitmaps and space nodes as they stand on disk, and the search for free runs in them.
//!
//! *Guarantees*: what is returned was proven by the entry above, or computed for a pristine child. *Assumes*: the
//! entry is that of a durable root. *Fails when*: the block is lost or breaks a rule. *Order*: none.
//! *Not here*: what is handed out (`space`).

use super::Space;
use crate::disk::Mirror;
use crate::format::Geometry;
use crate::format::geometry::SPACE_FANOUT;
use crate::format::space::{Bitmap, SpaceEntry, decode_node};
use crate::store::StoreError;

/// Read and prove the space node that `entry` names; a pristine one is computed.
pub(super) fn read_node(
    space: &Space,
    mirror: &Mirror,
    level: usize,
    index: u64,
    entry: &SpaceEntry,
) -> Result<Vec<SpaceEntry>, StoreError> {
    let geometry = &space.geometry;
    let count = geometry.space_entries(level, index);
    if entry.is_pristine() {
        return Ok((0..count)
            .map(|i| SpaceEntry {
                free: pristine_free(geometry, level - 1, index * SPACE_FANOUT + i),
                ..Default::default()
            })
            .collect());
    }
    let addr = geometry.space_node(level, index, entry.slot);
    let block = mirror.read(addr, &[entry.sum])?;
    decode_node(&block, space.volume, addr, entry.birth, level as u8, count)
        .map_err(|corrupt| StoreError::Corrupt { addr, corrupt })
}

pub(super) fn read_bitmap(space: &Space, mirror: &Mirror, zone: u64, entry: &SpaceEntry) -> Result<Bitmap, StoreError> {
    let len = space.geometry.zone_len(zone);
    if entry.is_pristine() {
        return Ok(Bitmap::pristine(len, !space.grows));
    }
    let addr = space.geometry.bitmap(zone, entry.slot);
    let block = mirror.read(addr, &[entry.sum])?;
    Bitmap::decode(&block, space.volume, addr, entry.birth, len)
        .map_err(|corrupt| StoreError::Corrupt { addr, corrupt })
}

/// Free blocks of a pristine child: zone `index` (level 0) or space node.
fn pristine_free(geometry: &Geometry, level: usize, index: u64) -> u64 {
    let width = SPACE_FANOUT.pow(level as u32);
    let first = index * width;
    let end = ((index + 1) * width).min(geometry.zones);
    if first >= end {
        return 0;
    }
    let last = u64::from(geometry.zone_len(end - 1));
    (end - first - 1) * u64::from(geometry.zone_blocks) + last - 2 * (end - first)
}

/// The first run of at least `want` clear bits from `from` on, else the longest one: (bit, length capped at `want`).
pub(super) fn find_run(map: &Bitmap, from: u32, want: u32) -> Option<(u32, u32)> {
    let end = (crate::format::space::BITS * 8) as u32;
    let mut best: Option<(u32, u32)> = None;
    let mut bit = from;
    while bit < end {
        let word = !map.bits[bit as usize / 64] >> (bit % 64);
        if word == 0 {
            bit = (bit / 64 + 1) * 64;
            continue;
        }
        bit += word.trailing_zeros();
        let start = bit;
        while bit < end && bit - start < want {
            let word = map.bits[bit as usize / 64] >> (bit % 64);
            let room = 64 - bit % 64;
            let run = word.trailing_zeros().min(room);
            bit += run;
            if run < room {
                break;
            }
        }
        let len = (bit - start).min(want);
        if best.is_none_or(|b| b.1 < len) {
            best = Some((start, len));
        }
        if len >= want {
            break;
        }
        bit = bit.max(start + 1);
    }
    best
}
