//! Allocation: bitmaps of zones and the space nodes above them.
//!
//! *Guarantees*: what is decoded fits the geometry. *Assumes*: the block was proven by its entry in the level
//! above. *Fails when*: [`Corrupt`]. *Order*: none. *Not here*: who allocates (`store::space`).
//!
//! Bitmap payload (after the 64-byte header): 16 bytes *backed* (bit u: unit u of the zone has space below on
//! every replica), 16 reserved, 4000 bytes of bits (1 = allocated; the bitmap's own two slots and bits past the
//! end of the zone are 1). Space node payload: 125 entries of 32 bytes, 32 reserved.
//!
//! Entry: birth 8, checksum 8, free blocks 8, slot 1, state 1, reserved 6. Birth 0 is *pristine*: nothing was
//! ever allocated below, and nothing stands on disk.

use super::block::{self, HEADER, Header, Kind, PAYLOAD};
use super::geometry::SPACE_FANOUT;
use super::item::le64;
use super::{Addr, BLOCK, Corrupt, Txg, Uuid, all_zero, require};

/// Bytes of an entry.
pub const ENTRY: usize = 32;
/// Bytes of allocation bits.
pub const BITS: usize = 4000;
const BACKED: usize = 16;
const BITS_AT: usize = HEADER + 32;
const _: () = assert!(BITS_AT + BITS == BLOCK);
const _: () = assert!(BITS * 8 == super::geometry::ZONE_BLOCKS_MAX as usize);
const _: () = assert!(SPACE_FANOUT as usize * ENTRY + 32 == PAYLOAD);

/// What a level says of one child (a bitmap or a space node); the root says the same of the top.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpaceEntry {
    /// Group that wrote the child; 0: pristine.
    pub birth: Txg,
    /// Checksum of the child.
    pub sum: u64,
    /// Free blocks below.
    pub free: u64,
    /// Slot that holds the child, 0 or 1.
    pub slot: u8,
}

impl SpaceEntry {
    /// Encode as 32 bytes.
    pub fn encode(&self) -> [u8; ENTRY] {
        let mut out = [0; ENTRY];
        out[..8].copy_from_slice(&self.birth.to_le_bytes());
        out[8..16].copy_from_slice(&self.sum.to_le_bytes());
        out[16..24].copy_from_slice(&self.free.to_le_bytes());
        out[24] = self.slot;
        out
    }
    /// Decode.
    pub fn decode(bytes: &[u8]) -> Result<SpaceEntry, Corrupt> {
        const WHAT: &str = "space entry";
        require(bytes.len() >= ENTRY && all_zero(&bytes[25..ENTRY]), WHAT, "has zero in reserved bytes")?;
        let entry = SpaceEntry { birth: le64(bytes, 0), sum: le64(bytes, 8), free: le64(bytes, 16), slot: bytes[24] };
        require(entry.slot < 2 && entry.sum >> 32 == 0, WHAT, "has a slot and a checksum in range")?;
        Ok(entry)
    }
    /// Whether nothing was ever allocated below.
    pub fn is_pristine(&self) -> bool {
        self.birth == 0
    }
}

/// Encode a space node; missing entries are pristine.
pub fn encode_node(volume: Uuid, addr: Addr, birth: Txg, level: u8, entries: &[SpaceEntry]) -> Vec<u8> {
    assert!(entries.len() <= SPACE_FANOUT as usize);
    let mut out = vec![0; BLOCK];
    for (i, entry) in entries.iter().enumerate() {
        out[HEADER + i * ENTRY..][..ENTRY].copy_from_slice(&entry.encode());
    }
    let count = entries.len();
    let header =
        Header { kind: Kind::SpaceNode, level, count: count as u32, used: (count * ENTRY) as u32, volume, addr, birth };
    block::seal(&mut out, &header);
    out
}

/// Decode a space node of `count` entries.
pub fn decode_node(
    bytes: &[u8],
    volume: Uuid,
    addr: Addr,
    birth: Txg,
    level: u8,
    count: u64,
) -> Result<Vec<SpaceEntry>, Corrupt> {
    const WHAT: &str = "space node";
    let header = block::open(bytes, Kind::SpaceNode, Some(volume), addr)?;
    require(header.birth == birth && header.level == level, WHAT, "has the birth and level that its entry says")?;
    require(u64::from(header.count) == count && count <= SPACE_FANOUT, WHAT, "has as many entries as the geometry")?;
    require(header.used as usize == count as usize * ENTRY, WHAT, "is as long as its entries")?;
    require(all_zero(&bytes[HEADER + count as usize * ENTRY..]), WHAT, "has zeros behind its entries")?;
    (0..count as usize).map(|i| SpaceEntry::decode(&bytes[HEADER + i * ENTRY..][..ENTRY])).collect()
}

/// Decoded bitmap of a zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitmap {
    /// Bit u: unit u is backed.
    pub backed: u128,
    /// Bit b: block b of the zone is allocated; little-endian words.
    pub bits: Box<[u64; BITS / 8]>,
}

impl Bitmap {
    /// The bitmap of a pristine zone of `len` blocks. `backed`: whether all of it has space below.
    pub fn pristine(len: u32, backed: bool) -> Bitmap {
        let mut map = Bitmap { backed: if backed { u128::MAX } else { 0 }, bits: Box::new([0; BITS / 8]) };
        map.set(0, 2);
        map.set(len, (BITS * 8) as u32 - len);
        map
    }
    /// Whether block `bit` is allocated.
    pub fn get(&self, bit: u32) -> bool {
        self.bits[bit as usize / 64] >> (bit % 64) & 1 == 1
    }
    /// Mark `count` blocks from `bit` allocated.
    pub fn set(&mut self, bit: u32, count: u32) {
        for b in bit..bit + count {
            self.bits[b as usize / 64] |= 1 << (b % 64);
        }
    }
    /// Mark `count` blocks from `bit` free.
    pub fn clear(&mut self, bit: u32, count: u32) {
        for b in bit..bit + count {
            self.bits[b as usize / 64] &= !(1 << (b % 64));
        }
    }
    /// Free blocks.
    pub fn free(&self) -> u32 {
        self.bits.iter().map(|w| w.count_zeros()).sum()
    }
    /// Encode.
    pub fn encode(&self, volume: Uuid, addr: Addr, birth: Txg) -> Vec<u8> {
        let mut out = vec![0; BLOCK];
        out[HEADER..HEADER + BACKED].copy_from_slice(&self.backed.to_le_bytes());
        for (i, word) in self.bits.iter().enumerate() {
            out[BITS_AT + 8 * i..][..8].copy_from_slice(&word.to_le_bytes());
        }
        let header = Header { kind: Kind::Bitmap, level: 0, count: 1, used: PAYLOAD as u32, volume, addr, birth };
        block::seal(&mut out, &header);
        out
    }
    /// Decode the bitmap of a zone of `len` blocks.
    pub fn decode(bytes: &[u8], volume: Uuid, addr: Addr, birth: Txg, len: u32) -> Result<Bitmap, Corrupt> {
        const WHAT: &str = "bitmap";
        let header = block::open(bytes, Kind::Bitmap, Some(volume), addr)?;
        require(header.birth == birth, WHAT, "has the birth that its entry says")?;
        require(header.count == 1 && header.used as usize == PAYLOAD && header.level == 0, WHAT, "has its own length")?;
        require(all_zero(&bytes[HEADER + BACKED..BITS_AT]), WHAT, "has zero in reserved bytes")?;
        let backed = u128::from_le_bytes(bytes[HEADER..HEADER + BACKED].try_into().expect("16 bytes"));
        let mut bits = Box::new([0; BITS / 8]);
        for (i, word) in bits.iter_mut().enumerate() {
            *word = le64(bytes, BITS_AT + 8 * i);
        }
        let map = Bitmap { backed, bits };
        let fixed = Bitmap::pristine(len, false);
        let kept = map.bits.iter().zip(fixed.bits.iter()).all(|(m, f)| m & f == *f);
        require(kept, WHAT, "has its own slots and what is past the zone allocated")?;
        Ok(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bitmap_round_trip() {
        let mut map = Bitmap::pristine(1000, false);
        assert_eq!(map.free(), 998);
        map.set(100, 50);
        map.clear(149, 1);
        map.backed = 5;
        let bytes = map.encode(Uuid([1; 16]), 800, 3);
        assert_eq!(Bitmap::decode(&bytes, Uuid([1; 16]), 800, 3, 1000), Ok(map));
        assert!(Bitmap::decode(&bytes, Uuid([1; 16]), 800, 4, 1000).is_err());
        assert!(Bitmap::decode(&bytes, Uuid([1; 16]), 800, 3, 900).is_err());
    }

    #[test]
    fn node_round_trip() {
        let entries = vec![SpaceEntry { birth: 3, sum: 9, free: 1, slot: 1 }, SpaceEntry::default()];
        let bytes = encode_node(Uuid([1; 16]), 290, 4, 1, &entries);
        assert_eq!(decode_node(&bytes, Uuid([1; 16]), 290, 4, 1, 2), Ok(entries));
        assert!(decode_node(&bytes, Uuid([1; 16]), 290, 4, 1, 3).is_err());
    }
}
