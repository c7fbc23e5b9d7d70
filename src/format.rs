//! On-disk format: units, limits and the index of the structures. Pure functions over bytes.
//!
//! *Guarantees*: each structure has one file below, with its layout table, size assertions, an encoder and a
//! decoder that rejects everything the encoder cannot produce. Decoding never panics, loops or allocates more
//! than the block it was given.
//! *Assumes*: nothing of the bytes. Little-endian integers everywhere. The medium writes 512-byte sectors whole
//! or not at all, in any order between two flushes; nothing else is assumed of it.
//! *Fails when*: bytes do not prove themselves: [`Corrupt`] names the structure and the rule that was broken.
//! *Order*: none; no I/O, clock, lock or randomness lives here.
//! *Not here*: which copy to trust, where to read or write, what to do about damage (`disk`, `store`).
//!
//! Reserved bytes are written zero and checked zero. Type tag 0 is never valid.

pub mod beat;
pub mod block;
pub mod chain;
pub mod dead;
pub mod event;
pub mod geometry;
pub mod item;
pub mod label;
pub mod log;
pub mod node;
pub mod root;
pub mod space;

pub use beat::{Beat, BeatState};
pub use block::{BlockPtr, Header, Kind, VolumeSeed};
pub use chain::Kinship;
pub use geometry::Geometry;
pub use item::{Extent, ExtentBody, Inode, ItemKind, Key};
pub use label::Label;
pub use root::{Member, MemberState, Role, Root};

/// Bytes in a block: the unit of address, checksum and repair.
pub const BLOCK: usize = 4096;
/// Most replicas that a volume can have.
pub const REPLICAS_MAX: usize = 4;
/// Fewest replicas of a volume that is not degraded.
pub const REPLICAS_MIN: usize = 2;
/// Bytes in a file name, as in POSIX `NAME_MAX` on Linux.
pub const NAME_MAX: usize = 255;
/// Largest file: block numbers stay below 2^51, offsets below 2^63.
pub const FILE_SIZE_MAX: u64 = i64::MAX as u64 & !(BLOCK as u64 - 1);
/// Hard links to one inode.
pub const LINK_MAX: u32 = 65_000;
/// Inode number of the root directory.
pub const ROOT_INO: u64 = 1;
/// First inode number handed out to files.
pub const FIRST_INO: u64 = 16;
/// Inode numbers stay below this, so that a root can set a range aside.
pub const INO_MAX: u64 = u64::MAX / 4;
/// Pseudo inode that owns the list of orphans, `(ORPHANS, Orphan, ino)`, and the events (`event`).
pub const ORPHANS: u64 = 2;

const _: () = assert!(REPLICAS_MIN <= REPLICAS_MAX);
const _: () = assert!(ROOT_INO < FIRST_INO && ORPHANS < FIRST_INO);

/// A block number on every replica. The top 8 bits name a group of replicas and are zero in this version.
pub type Addr = u64;
/// Number of a transaction group; also the *birth* of what it wrote.
pub type Txg = u64;

/// Bits of an address that number the block; the rest is the replica group.
pub const ADDR_BITS: u32 = 56;

/// 128-bit random identity of volumes, replicas and epochs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// The identity of nothing; never handed out.
    pub const NIL: Uuid = Uuid([0; 16]);
    /// Whether this is [`Uuid::NIL`].
    pub fn is_nil(&self) -> bool {
        self.0 == [0; 16]
    }
    /// Turn 16 random bytes into an RFC 9562 version 4 UUID.
    pub fn from_random(mut bytes: [u8; 16]) -> Uuid {
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Uuid(bytes)
    }
}

impl std::fmt::Display for Uuid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Uuid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// Bytes that do not prove themselves.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {rule}")]
pub struct Corrupt {
    /// The structure that was expected.
    pub what: &'static str,
    /// The rule that the bytes break.
    pub rule: &'static str,
}

/// Shorthand to reject bytes.
pub(crate) fn reject<T>(what: &'static str, rule: &'static str) -> Result<T, Corrupt> {
    Err(Corrupt { what, rule })
}

/// `Ok` if `holds`, else the rejection.
pub(crate) fn require(holds: bool, what: &'static str, rule: &'static str) -> Result<(), Corrupt> {
    if holds { Ok(()) } else { reject(what, rule) }
}

/// Whether every byte is zero (reserved fields).
pub(crate) fn all_zero(bytes: &[u8]) -> bool {
    // By words of a register, not byte by byte.
    bytes.chunks(128).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuid_prints_as_rfc_9562() {
        let id = Uuid::from_random([0xff; 16]);
        assert_eq!(id.to_string(), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert!(!id.is_nil());
    }
}
