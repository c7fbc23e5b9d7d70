//! A disk's bytes while they are damaged, and the checksums that are made good again.
//!
//! *Guarantees*: [`Canvas::reseal`] gives a block, and everything above it up to the depth asked for, the checksum that
//! its bytes have now. *Assumes*: links stand where the survey saw them; if another mutation moved them, the checksum
//! lands elsewhere, which is one more mutation. *Fails when*: never. *Order*: bytes first, then reseal.
//! *Not here*: which bytes change (`damage`, `rewrite`).

use super::survey::{LinkKind, Place, Survey, block};
use crate::disk::sim::{Block, Image};
use crate::format::block::HEADER;
use crate::format::{Addr, BLOCK};
use crate::store::walk::Part;
use std::sync::Arc;

/// Offset of a block's own checksum.
const SELF_SUM: std::ops::Range<usize> = 48..52;
/// Offset of a record's entries.
pub const ENTRIES_AT: usize = 144;

/// One disk.
pub struct Canvas<'a> {
    /// Its content.
    pub image: Image,
    /// What stood where.
    pub survey: &'a Survey,
    /// Blocks of the disk.
    pub blocks: u64,
}

/// Write `value` into `width` bytes of `bytes` at `at`; false if they do not fit.
pub fn put(bytes: &mut [u8], at: usize, width: usize, value: u64) -> bool {
    let Some(field) = bytes.get_mut(at..at.saturating_add(width)) else { return false };
    field.copy_from_slice(&value.to_le_bytes()[..width]);
    true
}

/// The little-endian number in `width` bytes at `at`; 0 where they do not fit.
pub fn get(bytes: &[u8], at: usize, width: usize) -> u64 {
    let mut wide = [0; 8];
    if let Some(field) = bytes.get(at..at.saturating_add(width)) {
        wide[..width].copy_from_slice(field);
    }
    u64::from_le_bytes(wide)
}

impl Canvas<'_> {
    /// The block at `addr`.
    pub fn block(&self, addr: Addr) -> Block {
        block(&self.image, addr)
    }

    /// Change the block at `addr`; beyond the end of the disk nothing happens.
    pub fn set(&mut self, addr: Addr, bytes: Block) {
        if addr < self.blocks {
            Arc::make_mut(&mut self.image).insert(addr, Arc::new(bytes));
        }
    }

    /// Change a field of the block at `addr`.
    pub fn put(&mut self, addr: Addr, at: usize, width: usize, value: u64) {
        let mut bytes = self.block(addr);
        put(&mut bytes, at, width, value);
        self.set(addr, bytes);
    }

    /// Make good the checksums of place `index` and of what is above it, `depth` levels (0: nothing).
    pub fn reseal(&mut self, index: usize, depth: usize) {
        let Some(place) = self.survey.places.get(index).cloned() else { return };
        if depth == 0 {
            return;
        }
        let Some(link) = place.link else { return self.seal(&place) };
        let sum = self.survey.seed.checksum(place.addr, &self.block(place.addr));
        let parent = self.survey.places[link.parent].addr;
        let width = if link.kind == LinkKind::Extent { 4 } else { 8 };
        self.put(parent, link.at, width, sum);
        self.reseal(link.parent, depth - 1);
    }

    /// Make good what a block that proves itself says of itself.
    fn seal(&mut self, place: &Place) {
        let mut bytes = self.block(place.addr);
        if place.part == Part::LogRecord {
            let used = get(&bytes, 124, 4) as usize;
            let blocks = (ENTRIES_AT.saturating_add(used)).div_ceil(BLOCK).min(64);
            let whole: Vec<u8> = (0..blocks as u64).flat_map(|i| self.block(place.addr + i)).collect();
            if let Some(entries) = whole.get(ENTRIES_AT..ENTRIES_AT.saturating_add(used)) {
                put(&mut bytes, 128, 4, u64::from(crc32c::crc32c(entries)));
            }
        }
        bytes[SELF_SUM].fill(0);
        let sum = crc32c::crc32c(&bytes);
        put(&mut bytes, SELF_SUM.start, 4, u64::from(sum));
        self.set(place.addr, bytes);
    }

    /// Let the dead list at place `index` go on with itself: its next pointer names it, with the right checksum.
    pub fn make_ring(&mut self, index: usize) -> bool {
        let addr = self.survey.places[index].addr;
        let mut bytes = self.block(addr);
        let birth = get(&bytes, 40, 8);
        put(&mut bytes, HEADER, 8, addr);
        put(&mut bytes, HEADER + 16, 8, birth);
        put(&mut bytes, HEADER + 24, 8, 0x0101);
        for variant in 0..16 {
            // The birth of the first run is free to be anything.
            put(&mut bytes, HEADER + 32 + 16, 8, variant);
            let sum = |x: u32| {
                let mut bytes = bytes;
                put(&mut bytes, HEADER + 8, 8, u64::from(x));
                self.survey.seed.checksum(addr, &bytes) as u32
            };
            if let Some(x) = fixed_point(sum) {
                put(&mut bytes, HEADER + 8, 8, u64::from(x));
                self.set(addr, bytes);
                return true;
            }
        }
        false
    }
}

/// An `x` with `f(x) = x`, for a function that is affine over bits, as a CRC is.
pub fn fixed_point(f: impl Fn(u32) -> u32) -> Option<u32> {
    let constant = f(0);
    // Rows of (A + I) x = constant: 32 bits of coefficients, and the right side above.
    let columns: Vec<u32> = (0..32).map(|i| f(1 << i) ^ constant ^ (1 << i)).collect();
    let mut rows: Vec<u64> = (0..32)
        .map(|bit| {
            let coefficients = (0..32).fold(0_u64, |row, i| row | u64::from(columns[i] >> bit & 1) << i);
            coefficients | u64::from(constant >> bit & 1) << 32
        })
        .collect();
    let mut pivots = Vec::new();
    for column in 0..32 {
        let from = pivots.len();
        let Some(found) = (from..32).find(|row| rows[*row] >> column & 1 == 1) else { continue };
        rows.swap(from, found);
        let pivot = rows[from];
        for (i, row) in rows.iter_mut().enumerate() {
            if i != from && *row >> column & 1 == 1 {
                *row ^= pivot;
            }
        }
        pivots.push(column);
    }
    if rows[pivots.len()..].iter().any(|row| *row != 0) {
        return None;
    }
    let x = pivots.iter().zip(&rows).fold(0_u32, |x, (column, row)| x | ((row >> 32 & 1) as u32) << column);
    (f(x) == x).then_some(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_can_hold_its_own_checksum() {
        let mut bytes = [7_u8; BLOCK];
        let found = (0..8).find_map(|variant| {
            bytes[0] = variant;
            fixed_point(|x| {
                let mut bytes = bytes;
                put(&mut bytes, 100, 4, u64::from(x));
                crc32c::crc32c(&bytes)
            })
        });
        let x = found.expect("one of eight has one");
        put(&mut bytes, 100, 4, u64::from(x));
        assert_eq!(crc32c::crc32c(&bytes), x);
    }
}
