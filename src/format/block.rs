//! What every metadata block begins with, how a checksum is computed, and the pointer that proves a block.
//!
//! *Guarantees*: a block accepted by [`open`] is of the asked kind, of this volume, and was written for this
//! address. [`VolumeSeed::checksum`] of equal bytes differs between volumes and between addresses, so a block
//! at the wrong place is wrong.
//! *Assumes*: CRC-32C (RFC 3720, seeded) detects the damage of the fault model; it does not resist forgery.
//! *Fails when*: any field breaks its rule: [`Corrupt`].
//! *Order*: fill the payload, then [`seal`]; nothing may change after that.
//! *Not here*: kinds' payloads (their own files).
//!
//! Header, 64 bytes:
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `SFSb` |
//! | 4 | 1 | kind |
//! | 5 | 1 | level (tree nodes: 0 = leaf; space nodes: 1 = above bitmaps) |
//! | 6 | 2 | version of this kind's layout |
//! | 8 | 4 | count of entries |
//! | 12 | 4 | bytes of payload used |
//! | 16 | 16 | volume |
//! | 32 | 8 | address |
//! | 40 | 8 | birth: the transaction group that wrote it |
//! | 48 | 4 | CRC-32C of the block with this field zero, for kinds that nothing points at, else 0 |
//! | 52 | 12 | reserved, zero |

use super::{ADDR_BITS, Addr, BLOCK, Corrupt, Txg, Uuid, all_zero, reject, require};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of the header.
pub const HEADER: usize = 64;
/// Bytes left for the payload.
pub const PAYLOAD: usize = BLOCK - HEADER;
const MAGIC: [u8; 4] = *b"SFSb";

/// What a block holds. Numbers are stable; 0 is never valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Identity of a replica.
    Label = 1,
    /// A committed state of the volume.
    Root = 2,
    /// First block of a log record.
    LogRecord = 3,
    /// Entries of bitmaps or of space nodes below.
    SpaceNode = 4,
    /// Allocation bits of one zone.
    Bitmap = 5,
    /// Runs that a group freed.
    DeadList = 6,
    /// B+tree node.
    Node = 7,
    /// Who uses the replica now.
    Beat = 8,
}

impl Kind {
    fn from_tag(tag: u8) -> Option<Kind> {
        use Kind::*;
        [Label, Root, LogRecord, SpaceNode, Bitmap, DeadList, Node, Beat].into_iter().find(|k| *k as u8 == tag)
    }
    /// Name used in errors and reports.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Label => "label",
            Kind::Root => "root",
            Kind::LogRecord => "log record",
            Kind::SpaceNode => "space node",
            Kind::Bitmap => "bitmap",
            Kind::DeadList => "dead list",
            Kind::Node => "tree node",
            Kind::Beat => "heartbeat",
        }
    }
    /// Whether nothing points at blocks of this kind, so that they carry their own checksum.
    pub fn proves_itself(self) -> bool {
        matches!(self, Kind::Label | Kind::Root | Kind::LogRecord | Kind::Beat)
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 4],
    kind: u8,
    level: u8,
    version: U16,
    count: U32,
    used: U32,
    volume: [u8; 16],
    addr: U64,
    birth: U64,
    self_sum: U32,
    reserved: [u8; 12],
}
const _: () = assert!(size_of::<RawHeader>() == HEADER);

/// The decoded header of a metadata block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the block holds.
    pub kind: Kind,
    /// Height above the leaves; 0 where it has no meaning.
    pub level: u8,
    /// Entries in the payload.
    pub count: u32,
    /// Bytes of payload in use, at most [`PAYLOAD`] (log records: see there).
    pub used: u32,
    /// Volume that the block belongs to.
    pub volume: Uuid,
    /// Address that the block was written for.
    pub addr: Addr,
    /// Group that wrote it.
    pub birth: Txg,
}

/// Layout version of all kinds in this release.
pub const LAYOUT_VERSION: u16 = 1;

/// Write `header` into the first bytes of `block` and, for kinds that prove themselves, the checksum.
///
/// # Panics
/// If `block` is not exactly one block: our bug.
pub fn seal(block: &mut [u8], header: &Header) {
    assert_eq!(block.len(), BLOCK);
    let mut raw = RawHeader {
        magic: MAGIC,
        kind: header.kind as u8,
        level: header.level,
        version: U16::new(LAYOUT_VERSION),
        count: U32::new(header.count),
        used: U32::new(header.used),
        volume: header.volume.0,
        addr: U64::new(header.addr),
        birth: U64::new(header.birth),
        self_sum: U32::new(0),
        reserved: [0; 12],
    };
    block[..HEADER].copy_from_slice(raw.as_bytes());
    if header.kind.proves_itself() {
        raw.self_sum = U32::new(crc32c::crc32c(block));
        block[..HEADER].copy_from_slice(raw.as_bytes());
    }
}

/// Check the header of `block` against what the reader expects. `volume`: `None` while it is not known yet.
pub fn open(block: &[u8], kind: Kind, volume: Option<Uuid>, addr: Addr) -> Result<Header, Corrupt> {
    let what = kind.name();
    require(block.len() == BLOCK, what, "is one block long")?;
    let Ok((raw, _)) = RawHeader::read_from_prefix(block) else {
        return reject(what, "has a header");
    };
    require(raw.magic == MAGIC, what, "begins with the magic")?;
    let Some(found) = Kind::from_tag(raw.kind) else {
        return reject(what, "has a known kind");
    };
    require(found == kind, what, "is of the expected kind")?;
    require(raw.version.get() == LAYOUT_VERSION, what, "has a known layout version")?;
    require(all_zero(&raw.reserved), what, "has zero in reserved bytes")?;
    if kind.proves_itself() {
        let mut sum = crc32c::crc32c(&block[..48]);
        sum = crc32c::crc32c_append(sum, &[0; 4]);
        sum = crc32c::crc32c_append(sum, &block[52..]);
        require(sum == raw.self_sum.get(), what, "matches its own checksum")?;
    } else {
        require(raw.self_sum.get() == 0, what, "carries no checksum of its own")?;
    }
    require(raw.addr.get() == addr, what, "was written for this address")?;
    require(raw.addr.get() >> ADDR_BITS == 0, what, "is in replica group 0")?;
    let found_volume = Uuid(raw.volume);
    require(volume.is_none_or(|v| v == found_volume), what, "belongs to this volume")?;
    Ok(Header {
        kind,
        level: raw.level,
        count: raw.count.get(),
        used: raw.used.get(),
        volume: found_volume,
        addr,
        birth: raw.birth.get(),
    })
}

/// Per-volume start value of checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumeSeed(u32);

impl VolumeSeed {
    /// Seed of `volume`.
    pub fn new(volume: Uuid) -> VolumeSeed {
        VolumeSeed(crc32c::crc32c(&volume.0))
    }
    /// Checksum (kind 1: CRC-32C, in the low 32 bits) of one block at `addr`.
    pub fn checksum(self, addr: Addr, block: &[u8]) -> u64 {
        debug_assert_eq!(block.len(), BLOCK);
        let seed = crc32c::crc32c_append(self.0, &addr.to_le_bytes());
        u64::from(crc32c::crc32c_append(seed, block))
    }
}

/// Checksum kinds; stable numbers.
pub const CHECKSUM_CRC32C: u8 = 1;

/// A pointer to a metadata block: a block is correct iff it matches the pointer that names it.
///
/// | at | bytes | field |
/// |---|---|---|
/// | 0 | 8 | address |
/// | 8 | 8 | checksum, seeded with volume and address |
/// | 16 | 8 | birth |
/// | 24 | 1 | checksum kind |
/// | 25 | 1 | length in blocks (1) |
/// | 26 | 6 | reserved, zero |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockPtr {
    /// Where the block stands, on every replica.
    pub addr: Addr,
    /// Its checksum.
    pub sum: u64,
    /// The group that wrote it.
    pub birth: Txg,
}

/// Bytes of an encoded pointer.
pub const PTR: usize = 32;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawPtr {
    addr: U64,
    sum: U64,
    birth: U64,
    sum_kind: u8,
    blocks: u8,
    reserved: [u8; 6],
}
const _: () = assert!(size_of::<RawPtr>() == PTR);

impl BlockPtr {
    /// Encode as 32 bytes.
    pub fn encode(&self) -> [u8; PTR] {
        let raw = RawPtr {
            addr: U64::new(self.addr),
            sum: U64::new(self.sum),
            birth: U64::new(self.birth),
            sum_kind: CHECKSUM_CRC32C,
            blocks: 1,
            reserved: [0; 6],
        };
        let mut out = [0; PTR];
        out.copy_from_slice(raw.as_bytes());
        out
    }
    /// Decode; `what` names the structure that holds the pointer. All zero bytes decode to `None`.
    pub fn decode(bytes: &[u8], what: &'static str) -> Result<Option<BlockPtr>, Corrupt> {
        let Ok((raw, _)) = RawPtr::read_from_prefix(bytes) else {
            return reject(what, "has room for a pointer");
        };
        if all_zero(&bytes[..PTR]) {
            return Ok(None);
        }
        require(raw.sum_kind == CHECKSUM_CRC32C, what, "uses a known checksum kind")?;
        require(raw.sum.get() >> 32 == 0, what, "has a checksum of its kind's width")?;
        require(raw.blocks == 1, what, "points at one block")?;
        require(all_zero(&raw.reserved), what, "has zero in reserved bytes of a pointer")?;
        require(raw.addr.get() != 0, what, "never points at block 0")?;
        require(raw.addr.get() >> ADDR_BITS == 0, what, "points into replica group 0")?;
        Ok(Some(BlockPtr { addr: raw.addr.get(), sum: raw.sum.get(), birth: raw.birth.get() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header { kind: Kind::Root, level: 0, count: 3, used: 9, volume: Uuid([7; 16]), addr: 32, birth: 5 }
    }

    #[test]
    fn every_flipped_bit_of_a_self_proving_block_is_rejected() {
        let mut block = vec![0; BLOCK];
        block[100] = 42;
        seal(&mut block, &header());
        assert_eq!(open(&block, Kind::Root, Some(Uuid([7; 16])), 32), Ok(header()));
        for bit in (0..BLOCK * 8).step_by(7) {
            block[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&block, Kind::Root, None, 32).is_err(), "bit {bit}");
            block[bit / 8] ^= 1 << (bit % 8);
        }
        assert!(open(&block, Kind::Root, None, 33).is_err());
        assert!(open(&block, Kind::Label, None, 32).is_err());
        assert!(open(&block, Kind::Root, Some(Uuid([8; 16])), 32).is_err());
    }

    #[test]
    fn checksum_depends_on_volume_and_address() {
        let block = vec![1; BLOCK];
        let seed = VolumeSeed::new(Uuid([1; 16]));
        assert_ne!(seed.checksum(5, &block), seed.checksum(6, &block));
        assert_ne!(seed.checksum(5, &block), VolumeSeed::new(Uuid([2; 16])).checksum(5, &block));
    }

    #[test]
    fn pointer_round_trip_and_rejections() {
        let ptr = BlockPtr { addr: 9, sum: 0xdead_beef, birth: 3 };
        let mut bytes = ptr.encode();
        assert_eq!(BlockPtr::decode(&bytes, "t"), Ok(Some(ptr)));
        bytes[26] = 1;
        assert!(BlockPtr::decode(&bytes, "t").is_err());
        assert_eq!(BlockPtr::decode(&[0; PTR], "t"), Ok(None));
        assert!(BlockPtr::decode(&[0; 5], "t").is_err());
    }
}
