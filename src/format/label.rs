//! The label: the immutable identity of a replica, at blocks 0 and 16 of each.
//!
//! *Guarantees*: what it says never changes after `format` or `replace` wrote it.
//! *Assumes*: nothing. *Fails when*: bytes break a rule, or the incompatible features are not ours: [`Corrupt`].
//! *Order*: the label is written last by `format`, so that a half-made replica is not one.
//! *Not here*: anything that changes (that is in roots).
//!
//! Payload, after the 64-byte header (self-proving):
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 64 | 8 | signature `STABLEFS` |
//! | 72 | 4 | format version (1) |
//! | 76 | 4 | flags: bit 0: containers grow, space below is allocated as it is needed |
//! | 80 | 8 | compatible feature bits |
//! | 88 | 8 | features that allow reading only |
//! | 96 | 8 | incompatible feature bits |
//! | 104 | 16 | replica |
//! | 120 | 8 | created, ns since 1970 |
//! | 128 | 8 | blocks of the volume |
//! | 136 | 4 | blocks in a zone |
//! | 140 | 4 | blocks in the log ring |
//! | 144 | 8 | key of the name hash, low half |
//! | 152 | 8 | key of the name hash, high half |
//! | 160 | 64 | volume label, UTF-8, padded with zeros |
//! | 224 | 3872 | reserved, zero |

use super::block::{self, HEADER, Header, Kind};
use super::{Addr, BLOCK, Corrupt, Geometry, Uuid, all_zero, reject, require};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const WHAT: &str = "label";
const SIGNATURE: [u8; 8] = *b"STABLEFS";
/// Format version that this release writes and reads.
pub const FORMAT_VERSION: u32 = 1;
/// Bytes of a volume label.
pub const VOLUME_LABEL_MAX: usize = 64;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawLabel {
    signature: [u8; 8],
    version: U32,
    flags: U32,
    compatible: U64,
    read_only: U64,
    incompatible: U64,
    replica: [u8; 16],
    created_ns: U64,
    blocks: U64,
    zone_blocks: U32,
    log_blocks: U32,
    hash_key: [U64; 2],
    name: [u8; VOLUME_LABEL_MAX],
}
const RAW: usize = size_of::<RawLabel>();
const _: () = assert!(HEADER + RAW == 224);

/// Identity of a replica and the unchanging facts of its volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// The volume.
    pub volume: Uuid,
    /// This replica.
    pub replica: Uuid,
    /// When the volume was made, ns since 1970.
    pub created_ns: u64,
    /// Where everything stands.
    pub geometry: Geometry,
    /// Whether space below is allocated as it is needed (a replica is a directory), not all at once.
    pub grows: bool,
    /// Key of the hash of names in directories.
    pub hash_key: [u64; 2],
    /// What the user called it; may be empty.
    pub name: String,
}

impl Label {
    /// Encode for the copy at `addr`.
    pub fn encode(&self, addr: Addr) -> Vec<u8> {
        let mut name = [0; VOLUME_LABEL_MAX];
        let len = self.name.len().min(VOLUME_LABEL_MAX);
        name[..len].copy_from_slice(&self.name.as_bytes()[..len]);
        let raw = RawLabel {
            signature: SIGNATURE,
            version: U32::new(FORMAT_VERSION),
            flags: U32::new(u32::from(self.grows)),
            compatible: U64::new(0),
            read_only: U64::new(0),
            incompatible: U64::new(0),
            replica: self.replica.0,
            created_ns: U64::new(self.created_ns),
            blocks: U64::new(self.geometry.blocks),
            zone_blocks: U32::new(self.geometry.zone_blocks),
            log_blocks: U32::new(self.geometry.log_blocks),
            hash_key: self.hash_key.map(U64::new),
            name,
        };
        let mut out = vec![0; BLOCK];
        out[HEADER..HEADER + RAW].copy_from_slice(raw.as_bytes());
        let header =
            Header { kind: Kind::Label, level: 0, count: 1, used: RAW as u32, volume: self.volume, addr, birth: 0 };
        block::seal(&mut out, &header);
        out
    }

    /// Decode the copy that was read at `addr`.
    pub fn decode(bytes: &[u8], addr: Addr) -> Result<Label, Corrupt> {
        let header = block::open(bytes, Kind::Label, None, addr)?;
        let Ok((raw, _)) = RawLabel::read_from_prefix(&bytes[HEADER..]) else {
            return reject(WHAT, "is long enough");
        };
        require(raw.signature == SIGNATURE, WHAT, "has the signature STABLEFS")?;
        require(raw.version.get() == FORMAT_VERSION, WHAT, "is of format version 1")?;
        require(raw.incompatible.get() == 0, WHAT, "asks for no feature that this release lacks")?;
        require(raw.read_only.get() == 0, WHAT, "asks for no feature that this release cannot write")?;
        require(raw.flags.get() <= 1 && all_zero(&bytes[HEADER + RAW..]), WHAT, "has zero in reserved bytes")?;
        require(header.count == 1 && header.used as usize == RAW, WHAT, "has its own length")?;
        require(header.level == 0 && header.birth == 0, WHAT, "has no level and no birth")?;
        let geometry = Geometry::new(raw.blocks.get(), raw.zone_blocks.get(), raw.log_blocks.get())?;
        let len = raw.name.iter().position(|b| *b == 0).unwrap_or(VOLUME_LABEL_MAX);
        require(all_zero(&raw.name[len..]), WHAT, "has a name padded with zeros")?;
        let Ok(name) = std::str::from_utf8(&raw.name[..len]) else {
            return reject(WHAT, "has a name in UTF-8");
        };
        let label = Label {
            volume: header.volume,
            replica: Uuid(raw.replica),
            created_ns: raw.created_ns.get(),
            geometry,
            grows: raw.flags.get() & 1 == 1,
            hash_key: [raw.hash_key[0].get(), raw.hash_key[1].get()],
            name: name.to_owned(),
        };
        require(!label.volume.is_nil() && !label.replica.is_nil(), WHAT, "names a volume and a replica")?;
        Ok(label)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_wrong_place() {
        let label = Label {
            volume: Uuid([1; 16]),
            replica: Uuid([2; 16]),
            created_ns: 77,
            geometry: Geometry::new(16384, 32000, 256).unwrap(),
            grows: true,
            hash_key: [3, 4],
            name: "photos".into(),
        };
        let bytes = label.encode(16);
        assert_eq!(Label::decode(&bytes, 16), Ok(label));
        assert!(Label::decode(&bytes, 0).is_err());
    }
}
