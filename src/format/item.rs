//! Items: the keys and values of the one ordered set that holds all metadata.
//!
//! *Guarantees*: [`Key`] orders as its encoding is meant: inode, kind, offset. Values decode only if every field
//! is in range. *Assumes*: nothing. *Fails when*: a rule is broken: [`Corrupt`]. *Order*: none.
//! *Not here*: which items belong together (`fs`, `store::check`).
//!
//! | kind | key offset | value |
//! |---|---|---|
//! | 1 inode | 0 | [`Inode`] |
//! | 2 file map | 0 | [`FileMap`]: blocks that the file occupies |
//! | 3 xattr | name hash 31 bits, sequence 8 bits, chunk 16 bits | [`encode_xattr`] |
//! | 4 dirent | cookie: name hash 55 bits, sequence 8 bits; 3 ≤ cookie < 2^63 | [`Dirent`] |
//! | 5 extent | **last** file block of the extent | [`Extent`] |
//! | 6 orphan | inode number (owner: inode 2) | 8 bytes, zero |
//! | 7 tombstone | reserved: first file block of a range being reclaimed | |
//! | 8 reference count | reserved: shared runs | |
//!
//! A key is 24 bytes: inode 8, offset 8, kind 1, reserved 3, tree 4 (zero in this version).
//! Extents are keyed by their last block, so that the one which holds a block is found by a forward scan.

use super::{ADDR_BITS, Addr, Corrupt, FILE_SIZE_MAX, NAME_MAX, Txg, all_zero, reject, require};
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Largest value of an item: two of them fit in a leaf.
pub const VALUE_MAX: usize = 1984;
/// Largest file content kept inside its item.
pub const INLINE_MAX: usize = 1920;
/// Most blocks of one extent.
pub const EXTENT_BLOCKS_MAX: u32 = 64;
/// Bytes of an encoded key.
pub const KEY: usize = 24;
/// Bytes of xattr data in one chunk.
pub const XATTR_CHUNK: usize = 1600;

/// Kinds of items; stable numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum ItemKind {
    /// Attributes of an inode.
    Inode = 1,
    /// Blocks that a file occupies.
    FileMap = 2,
    /// Extended attribute.
    Xattr = 3,
    /// Directory entry.
    Dirent = 4,
    /// Where file blocks stand.
    Extent = 5,
    /// An inode without a name.
    Orphan = 6,
}

impl ItemKind {
    fn from_tag(tag: u8) -> Option<ItemKind> {
        use ItemKind::*;
        [Inode, FileMap, Xattr, Dirent, Extent, Orphan].into_iter().find(|k| *k as u8 == tag)
    }
}

/// Key of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Inode that owns the item.
    pub ino: u64,
    /// Kind of the item.
    pub kind: ItemKind,
    /// Offset within the kind.
    pub off: u64,
}

impl Key {
    /// The smallest key.
    pub const MIN: Key = Key { ino: 0, kind: ItemKind::Inode, off: 0 };
    /// The largest key.
    pub const MAX: Key = Key { ino: u64::MAX, kind: ItemKind::Orphan, off: u64::MAX };
    /// Make a key.
    pub fn new(ino: u64, kind: ItemKind, off: u64) -> Key {
        Key { ino, kind, off }
    }
    /// Key of the attributes of `ino`.
    pub fn inode(ino: u64) -> Key {
        Key::new(ino, ItemKind::Inode, 0)
    }
    /// The smallest key above this one.
    pub fn next(self) -> Key {
        if let Some(off) = self.off.checked_add(1) {
            return Key { off, ..self };
        }
        match ItemKind::from_tag(self.kind as u8 + 1) {
            Some(kind) => Key { ino: self.ino, kind, off: 0 },
            None => Key { ino: self.ino.saturating_add(1), kind: ItemKind::Inode, off: 0 },
        }
    }
    /// Encode as 24 bytes.
    pub fn encode(&self) -> [u8; KEY] {
        let mut out = [0; KEY];
        out[..8].copy_from_slice(&self.ino.to_le_bytes());
        out[8..16].copy_from_slice(&self.off.to_le_bytes());
        out[16] = self.kind as u8;
        out
    }
    /// Decode.
    pub fn decode(bytes: &[u8]) -> Result<Key, Corrupt> {
        const WHAT: &str = "item key";
        require(bytes.len() >= KEY, WHAT, "is 24 bytes long")?;
        require(all_zero(&bytes[17..KEY]), WHAT, "has zero in reserved bytes")?;
        let Some(kind) = ItemKind::from_tag(bytes[16]) else {
            return reject(WHAT, "is of a known kind");
        };
        Ok(Key { ino: le64(bytes, 0), kind, off: le64(bytes, 8) })
    }
}

/// Little-endian u64 at `at`; the caller has checked the length.
pub(crate) fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
/// Little-endian u32 at `at`; the caller has checked the length.
pub(crate) fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}
/// Little-endian u16 at `at`; the caller has checked the length.
pub(crate) fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

/// A moment: seconds since 1970 (may be negative) and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord)]
pub struct Time {
    /// Seconds since 1970-01-01 UTC.
    pub sec: i64,
    /// 0 to 999,999,999.
    pub nsec: u32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawTime {
    sec: I64,
    nsec: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawInode {
    mode: U32,
    uid: U32,
    gid: U32,
    nlink: U32,
    size: U64,
    times: [RawTime; 4],
    rdev: U32,
    flags: U32,
    parent: U64,
    parent_cookie: U64,
    generation: U32,
    reserved: [u8; 28],
}
/// Bytes of an encoded inode.
pub const INODE: usize = 128;
const _: () = assert!(size_of::<RawInode>() == INODE + 4 - 4);

/// Attributes of an inode (128 bytes: mode, owner, links, size, four times, device, flags, parent hint).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// Type and permission bits, as in `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Links; directories: 2 + subdirectories.
    pub nlink: u32,
    /// Bytes; directories: number of entries.
    pub size: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of content.
    pub mtime: Time,
    /// Last change of attributes.
    pub ctime: Time,
    /// Birth.
    pub btime: Time,
    /// Device number of device nodes.
    pub rdev: u32,
    /// Reserved for flags such as immutable; zero.
    pub flags: u32,
    /// A directory that names this inode: exact for directories, a hint for files.
    pub parent: u64,
    /// Cookie of that entry in `parent`: a hint.
    pub parent_cookie: u64,
    /// Mount count at creation.
    pub generation: u32,
}

impl Inode {
    /// Encode.
    pub fn encode(&self) -> Vec<u8> {
        let time = |t: Time| RawTime { sec: I64::new(t.sec), nsec: U32::new(t.nsec) };
        let raw = RawInode {
            mode: U32::new(self.mode),
            uid: U32::new(self.uid),
            gid: U32::new(self.gid),
            nlink: U32::new(self.nlink),
            size: U64::new(self.size),
            times: [time(self.atime), time(self.mtime), time(self.ctime), time(self.btime)],
            rdev: U32::new(self.rdev),
            flags: U32::new(self.flags),
            parent: U64::new(self.parent),
            parent_cookie: U64::new(self.parent_cookie),
            generation: U32::new(self.generation),
            reserved: [0; 28],
        };
        raw.as_bytes().to_vec()
    }
    /// Decode.
    pub fn decode(bytes: &[u8]) -> Result<Inode, Corrupt> {
        const WHAT: &str = "inode item";
        let Ok(raw) = RawInode::read_from_bytes(bytes) else {
            return reject(WHAT, "is 128 bytes long");
        };
        require(all_zero(&raw.reserved) && raw.flags.get() == 0, WHAT, "has zero in reserved bytes")?;
        require(raw.times.iter().all(|t| t.nsec.get() < 1_000_000_000), WHAT, "has nanoseconds below 1e9")?;
        require(raw.mode.get() >> 16 == 0, WHAT, "has a mode of 16 bits")?;
        let kinds = [0o010_000, 0o020_000, 0o040_000, 0o060_000, 0o100_000, 0o120_000, 0o140_000];
        require(kinds.contains(&(raw.mode.get() & 0o170_000)), WHAT, "is of a known file type")?;
        require(raw.size.get() <= FILE_SIZE_MAX, WHAT, "has a possible size")?;
        let time = |i: usize| Time { sec: raw.times[i].sec.get(), nsec: raw.times[i].nsec.get() };
        Ok(Inode {
            mode: raw.mode.get(),
            uid: raw.uid.get(),
            gid: raw.gid.get(),
            nlink: raw.nlink.get(),
            size: raw.size.get(),
            atime: time(0),
            mtime: time(1),
            ctime: time(2),
            btime: time(3),
            rdev: raw.rdev.get(),
            flags: raw.flags.get(),
            parent: raw.parent.get(),
            parent_cookie: raw.parent_cookie.get(),
            generation: raw.generation.get(),
        })
    }
    /// Whether this is a directory.
    pub fn is_dir(&self) -> bool {
        self.mode & 0o170_000 == 0o040_000
    }
    /// Whether this is a regular file.
    pub fn is_file(&self) -> bool {
        self.mode & 0o170_000 == 0o100_000
    }
}

/// Blocks that a file occupies, kept by the store: 8 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FileMap {
    /// Blocks in extents, written or reserved.
    pub blocks: u64,
}

impl FileMap {
    /// Encode.
    pub fn encode(&self) -> Vec<u8> {
        self.blocks.to_le_bytes().to_vec()
    }
    /// Decode.
    pub fn decode(bytes: &[u8]) -> Result<FileMap, Corrupt> {
        require(bytes.len() == 8, "file map item", "is 8 bytes long")?;
        Ok(FileMap { blocks: le64(bytes, 0) })
    }
}

/// Smallest cookie of an entry; 0 to 2 stand for the start, `.` and `..`.
pub const COOKIE_MIN: u64 = 256;
/// Cookies stay below this.
pub const COOKIE_END: u64 = 1 << 63;

/// Cookie of a name without its sequence number: 55 bits of SipHash-2-4 keyed with the label's hash key, never 0,
/// shifted left by the 8 bits of the sequence number.
pub fn name_cookie_base(hash_key: [u64; 2], name: &[u8]) -> u64 {
    use siphasher::sip::SipHasher24;
    use std::hash::Hasher;
    let mut hasher = SipHasher24::new_with_keys(hash_key[0], hash_key[1]);
    hasher.write(name);
    (hasher.finish() >> 9).max(1) << 8
}

/// A directory entry: inode 8, file type 1 (`S_IFMT` >> 12), name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dirent {
    /// Inode that the name stands for.
    pub ino: u64,
    /// `S_IFMT` bits of its mode, shifted right by 12.
    pub file_type: u8,
    /// The name: 1 to 255 bytes without `/` and NUL, not `.` or `..`.
    pub name: Vec<u8>,
}

impl Dirent {
    /// Encode.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(9 + self.name.len());
        out.extend_from_slice(&self.ino.to_le_bytes());
        out.push(self.file_type);
        out.extend_from_slice(&self.name);
        out
    }
    /// Decode.
    pub fn decode(bytes: &[u8]) -> Result<Dirent, Corrupt> {
        const WHAT: &str = "directory entry";
        require(bytes.len() > 9 && bytes.len() <= 9 + NAME_MAX, WHAT, "has a name of 1 to 255 bytes")?;
        let name = &bytes[9..];
        require(!name.contains(&b'/') && !name.contains(&0), WHAT, "has no slash or NUL in its name")?;
        require(name != b"." && name != b"..", WHAT, "does not name . or ..")?;
        require(matches!(bytes[8], 1 | 2 | 4 | 6 | 8 | 10 | 12), WHAT, "is of a known file type")?;
        Ok(Dirent { ino: le64(bytes, 0), file_type: bytes[8], name: name.to_vec() })
    }
}

/// Chunk 0 of an xattr begins with: total value length 4, name length 1, name; then data as every other chunk.
pub fn encode_xattr(name: &[u8], value: &[u8]) -> Vec<Vec<u8>> {
    let mut head = Vec::with_capacity(5 + name.len() + value.len().min(XATTR_CHUNK));
    head.extend_from_slice(&(value.len() as u32).to_le_bytes());
    head.push(name.len() as u8);
    head.extend_from_slice(name);
    let first = value.len().min(XATTR_CHUNK);
    head.extend_from_slice(&value[..first]);
    let mut out = vec![head];
    out.extend(value[first..].chunks(XATTR_CHUNK).map(<[u8]>::to_vec));
    out
}

/// Decode chunk 0 of an xattr: (name, total length of the value, data in this chunk).
pub fn decode_xattr_head(bytes: &[u8]) -> Result<(&[u8], usize, &[u8]), Corrupt> {
    const WHAT: &str = "xattr item";
    require(bytes.len() >= 6, WHAT, "has a head")?;
    let total = le32(bytes, 0) as usize;
    let name_len = usize::from(bytes[4]);
    require(total <= 65_536 && name_len >= 1 && bytes.len() >= 5 + name_len, WHAT, "has a name and a possible length")?;
    let data = &bytes[5 + name_len..];
    require(data.len() == total.min(XATTR_CHUNK), WHAT, "has the data that its length says")?;
    Ok((&bytes[5..5 + name_len], total, data))
}

/// Where a run of file blocks stands.
///
/// | at | bytes | field |
/// |---|---|---|
/// | 0 | 1 | body: 1 written run, 2 unwritten run, 3 inline |
/// | 1 | 1 | checksum kind (1: CRC-32C, 4 bytes a block) |
/// | 2 | 2 | blocks (inline: 1) |
/// | 4 | 4 | stored bytes (= blocks × 4096; inline: bytes) |
/// | 8 | 8 | birth |
/// | 16 | 8 | address (inline: 0) |
/// | 24 | 1 | flags: reserved for *shared*; zero |
/// | 25 | 7 | reserved, zero |
/// | 32 | | written: 4 bytes a block; inline: the bytes, the rest of the block is zeros |
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// File blocks covered, 1 to 64.
    pub blocks: u32,
    /// Group that wrote it.
    pub birth: Txg,
    /// What stands for them.
    pub body: ExtentBody,
}

/// The three kinds of extent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExtentBody {
    /// Consecutive blocks with one CRC-32C each.
    Written {
        /// First block.
        addr: Addr,
        /// One checksum a block.
        sums: Vec<u32>,
    },
    /// Consecutive blocks that are reserved and read as zeros.
    Unwritten {
        /// First block.
        addr: Addr,
    },
    /// The bytes themselves (only file block 0); the rest of the block is zeros.
    Inline(Vec<u8>),
}

const EXTENT_HEAD: usize = 32;
const _: () = assert!(EXTENT_HEAD + 4 * EXTENT_BLOCKS_MAX as usize <= VALUE_MAX);
const _: () = assert!(EXTENT_HEAD + INLINE_MAX <= VALUE_MAX);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawExtent {
    body: u8,
    sum_kind: u8,
    blocks: U16,
    stored: U32,
    birth: U64,
    addr: U64,
    flags: u8,
    reserved: [u8; 7],
}
const _: () = assert!(size_of::<RawExtent>() == EXTENT_HEAD);

impl Extent {
    /// Address of the first block, if it has any on disk.
    pub fn addr(&self) -> Option<Addr> {
        match self.body {
            ExtentBody::Written { addr, .. } | ExtentBody::Unwritten { addr } => Some(addr),
            ExtentBody::Inline(_) => None,
        }
    }
    /// Encode.
    pub fn encode(&self) -> Vec<u8> {
        let (tag, addr, stored) = match &self.body {
            ExtentBody::Written { addr, .. } => (1, *addr, self.blocks * super::BLOCK as u32),
            ExtentBody::Unwritten { addr } => (2, *addr, self.blocks * super::BLOCK as u32),
            ExtentBody::Inline(bytes) => (3, 0, bytes.len() as u32),
        };
        let raw = RawExtent {
            body: tag,
            sum_kind: super::block::CHECKSUM_CRC32C,
            blocks: U16::new(self.blocks as u16),
            stored: U32::new(stored),
            birth: U64::new(self.birth),
            addr: U64::new(addr),
            flags: 0,
            reserved: [0; 7],
        };
        let mut out = raw.as_bytes().to_vec();
        match &self.body {
            ExtentBody::Written { sums, .. } => {
                assert_eq!(sums.len(), self.blocks as usize);
                out.extend(sums.iter().flat_map(|s| s.to_le_bytes()));
            }
            ExtentBody::Unwritten { .. } => {}
            ExtentBody::Inline(bytes) => out.extend_from_slice(bytes),
        }
        assert!(out.len() <= VALUE_MAX);
        out
    }
    /// Decode the value of the item with `key`.
    pub fn decode(key: Key, bytes: &[u8]) -> Result<Extent, Corrupt> {
        const WHAT: &str = "extent item";
        let Ok((raw, rest)) = RawExtent::read_from_prefix(bytes) else {
            return reject(WHAT, "has a head of 32 bytes");
        };
        let blocks = u32::from(raw.blocks.get());
        require((1..=EXTENT_BLOCKS_MAX).contains(&blocks), WHAT, "covers 1 to 64 blocks")?;
        require(key.off < 1 << 51 && u64::from(blocks) <= key.off + 1, WHAT, "covers possible file blocks")?;
        require(raw.flags == 0 && all_zero(&raw.reserved), WHAT, "has zero in reserved bytes")?;
        require(raw.sum_kind == super::block::CHECKSUM_CRC32C, WHAT, "uses a known checksum kind")?;
        let addr = raw.addr.get();
        let on_disk = addr != 0 && addr >> ADDR_BITS == 0;
        let full = raw.stored.get() as usize == blocks as usize * super::BLOCK;
        let body = match raw.body {
            1 => {
                require(on_disk && full && rest.len() == 4 * blocks as usize, WHAT, "has one checksum a block")?;
                ExtentBody::Written { addr, sums: (0..blocks as usize).map(|i| le32(rest, 4 * i)).collect() }
            }
            2 => {
                require(on_disk && full && rest.is_empty(), WHAT, "has nothing behind an unwritten run")?;
                ExtentBody::Unwritten { addr }
            }
            3 => {
                let fits = rest.len() <= INLINE_MAX && rest.len() == raw.stored.get() as usize;
                require(fits && blocks == 1 && key.off == 0 && addr == 0, WHAT, "is inline only in block 0")?;
                ExtentBody::Inline(rest.to_vec())
            }
            _ => return reject(WHAT, "has a known body"),
        };
        Ok(Extent { blocks, birth: raw.birth.get(), body })
    }
    /// First file block, given the key it stands under.
    pub fn first(&self, key: Key) -> u64 {
        key.off + 1 - u64::from(self.blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_order_and_step() {
        let a = Key::new(5, ItemKind::Extent, u64::MAX);
        assert_eq!(a.next(), Key::new(5, ItemKind::Orphan, 0));
        assert_eq!(Key::new(5, ItemKind::Orphan, u64::MAX).next(), Key::new(6, ItemKind::Inode, 0));
        assert!(Key::new(5, ItemKind::Dirent, 9) < a && a < a.next());
        assert_eq!(Key::decode(&a.encode()), Ok(a));
        let mut bad = a.encode();
        bad[20] = 1;
        assert!(Key::decode(&bad).is_err());
    }

    #[test]
    fn cookie_bases_are_keyed_and_in_range() {
        for name in [&b"a"[..], b"b", b"a longer name", b"\xff\xfe"] {
            let base = name_cookie_base([1, 2], name);
            assert!(base >= COOKIE_MIN && base + 255 < COOKIE_END && base & 0xff == 0);
            assert_ne!(base, name_cookie_base([1, 3], name));
        }
        // The reference vector of SipHash-2-4 for the key 00..0f and no input: the format is stable.
        let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        assert_eq!(name_cookie_base(key, b""), (0x726f_db47_dd0e_0e31 >> 9) << 8);
    }

    #[test]
    fn values_round_trip() {
        let inode = Inode {
            mode: 0o100_644,
            uid: 1,
            gid: 2,
            nlink: 1,
            size: 9,
            atime: Time { sec: -5, nsec: 999_999_999 },
            mtime: Time::default(),
            ctime: Time::default(),
            btime: Time::default(),
            rdev: 0,
            flags: 0,
            parent: 1,
            parent_cookie: 300,
            generation: 4,
        };
        assert_eq!(Inode::decode(&inode.encode()), Ok(inode));
        let entry = Dirent { ino: 17, file_type: 8, name: b"name".to_vec() };
        assert_eq!(Dirent::decode(&entry.encode()), Ok(entry));
        assert!(Dirent::decode(b"12345678\x08..").is_err());
        let key = Key::new(17, ItemKind::Extent, 9);
        for body in [ExtentBody::Written { addr: 700, sums: vec![1, 2, 3] }, ExtentBody::Unwritten { addr: 700 }] {
            let extent = Extent { blocks: 3, birth: 8, body };
            assert_eq!(Extent::decode(key, &extent.encode()), Ok(extent.clone()));
            assert_eq!(extent.first(key), 7);
            assert!(Extent::decode(Key::new(17, ItemKind::Extent, 1), &extent.encode()).is_err());
        }
        let value = vec![7; 4000];
        let chunks = encode_xattr(b"user.x", &value);
        assert_eq!(chunks.len(), 3);
        let (name, total, data) = decode_xattr_head(&chunks[0]).unwrap();
        assert_eq!((name, total, data.len()), (&b"user.x"[..], 4000, XATTR_CHUNK));
    }
}
