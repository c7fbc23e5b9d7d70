//! Log records: what makes an fsync durable between two commits.
//!
//! *Guarantees*: a decoded record is whole: its checksum covers every byte. Entries decode one by one and reject.
//! *Assumes*: nothing of the ring's content. *Fails when*: [`Corrupt`].
//! *Order*: sequence numbers of one `log_id` have no gap; a record stands right behind the one before, or at the
//! start of the ring where it does not fit. *Not here*: replay (`store::recover`), what goes in (`store::log`).
//!
//! A record is a whole number of blocks. The first begins with the 64-byte header (self-proving; birth = group;
//! level 0), then:
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 64 | 8 | log id: the ring's present life (a root names it) |
//! | 72 | 8 | sequence |
//! | 80 | 8 | transaction group that the changes belong to |
//! | 88 | 8 | version of the root that it follows |
//! | 96 | 8 | highest sequence acknowledged when it was written |
//! | 104 | 16 | epoch |
//! | 120 | 4 | blocks of the record |
//! | 124 | 4 | bytes of entries |
//! | 128 | 4 | CRC-32C of the entries |
//! | 132 | 12 | reserved, zero |
//! | 144 | | entries, running on through the following blocks; zeros behind |
//!
//! Entries: tag 1, then: 1 put: key 24, length 2, value · 2 delete: key 24 · 3 hole: inode 8, first block 8, end
//! block 8 · 4 run: inode 8, first file block 8, blocks 4, address 8, checksums 4 each · 5 page: inode 8, file
//! block 8, length 2, bytes (rest of the block is zeros) · 6 reserved run: as 4, without checksums · 7 next inode: 8.

use super::block::{self, HEADER, Header, Kind};
use super::item::{KEY, VALUE_MAX, le16, le32, le64};
use super::{ADDR_BITS, Addr, BLOCK, Corrupt, Key, Txg, Uuid, all_zero, reject, require};

const WHAT: &str = "log record";
const ENTRIES_AT: usize = 144;

/// What a record's first block says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHead {
    /// Life of the ring.
    pub log_id: u64,
    /// Sequence.
    pub seq: u64,
    /// Group of the changes.
    pub txg: Txg,
    /// Root that it follows.
    pub root_version: u64,
    /// Highest sequence acknowledged when it was written.
    pub acked: u64,
    /// Epoch in which it was written.
    pub epoch: Uuid,
    /// Blocks of the record.
    pub blocks: u32,
    /// Bytes of entries.
    pub used: u32,
    /// Checksum of the entries.
    pub sum: u32,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// An item has this value.
    Put(Key, Vec<u8>),
    /// An item is gone.
    Delete(Key),
    /// File blocks `first..end` are a hole.
    Hole {
        /// File.
        ino: u64,
        /// First file block.
        first: u64,
        /// Block behind the last one.
        end: u64,
    },
    /// File blocks stand on disk.
    Run {
        /// File.
        ino: u64,
        /// First file block.
        first: u64,
        /// First block on disk.
        addr: Addr,
        /// One checksum a block.
        sums: Vec<u32>,
    },
    /// A file block's bytes; the rest of it is zeros.
    Page {
        /// File.
        ino: u64,
        /// File block.
        block: u64,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// File blocks are reserved on disk and read as zeros.
    Reserved {
        /// File.
        ino: u64,
        /// First file block.
        first: u64,
        /// First block on disk.
        addr: Addr,
        /// How many.
        blocks: u32,
    },
    /// No inode number at or above this was handed out.
    NextIno(u64),
}

impl Entry {
    /// Append the encoding to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut put = |tag: u8, words: &[u64]| {
            out.push(tag);
            words.iter().for_each(|w| out.extend_from_slice(&w.to_le_bytes()));
        };
        match self {
            Entry::Put(key, value) => {
                put(1, &[]);
                out.extend_from_slice(&key.encode());
                out.extend_from_slice(&(value.len() as u16).to_le_bytes());
                out.extend_from_slice(value);
            }
            Entry::Delete(key) => {
                put(2, &[]);
                out.extend_from_slice(&key.encode());
            }
            Entry::Hole { ino, first, end } => put(3, &[*ino, *first, *end]),
            Entry::Run { ino, first, addr, sums } => {
                put(4, &[*ino, *first, *addr]);
                out.extend_from_slice(&(sums.len() as u32).to_le_bytes());
                out.extend(sums.iter().flat_map(|s| s.to_le_bytes()));
            }
            Entry::Page { ino, block, bytes } => {
                put(5, &[*ino, *block]);
                out.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
                out.extend_from_slice(bytes);
            }
            Entry::Reserved { ino, first, addr, blocks } => {
                put(6, &[*ino, *first, *addr]);
                out.extend_from_slice(&blocks.to_le_bytes());
            }
            Entry::NextIno(ino) => put(7, &[*ino]),
        }
    }

    /// Decode the entry at the head of `bytes`; returns it and what follows.
    pub fn decode(bytes: &[u8]) -> Result<(Entry, &[u8]), Corrupt> {
        let Some((tag, rest)) = bytes.split_first() else { return reject(WHAT, "has whole entries") };
        let need = |n: usize| require(rest.len() >= n, WHAT, "has whole entries");
        match tag {
            1 => {
                need(KEY + 2)?;
                let len = usize::from(le16(rest, KEY));
                require(len <= VALUE_MAX, WHAT, "has values of possible length")?;
                need(KEY + 2 + len)?;
                let value = rest[KEY + 2..KEY + 2 + len].to_vec();
                Ok((Entry::Put(Key::decode(rest)?, value), &rest[KEY + 2 + len..]))
            }
            2 => {
                need(KEY)?;
                Ok((Entry::Delete(Key::decode(rest)?), &rest[KEY..]))
            }
            3 => {
                need(24)?;
                let (ino, first, end) = (le64(rest, 0), le64(rest, 8), le64(rest, 16));
                require(first < end, WHAT, "has holes that are not empty")?;
                Ok((Entry::Hole { ino, first, end }, &rest[24..]))
            }
            4 | 6 => decode_run(*tag == 4, rest),
            5 => {
                need(18)?;
                let len = usize::from(le16(rest, 16));
                require(len <= BLOCK, WHAT, "has pages of at most a block")?;
                need(18 + len)?;
                let entry =
                    Entry::Page { ino: le64(rest, 0), block: le64(rest, 8), bytes: rest[18..18 + len].to_vec() };
                Ok((entry, &rest[18 + len..]))
            }
            7 => {
                need(8)?;
                Ok((Entry::NextIno(le64(rest, 0)), &rest[8..]))
            }
            _ => reject(WHAT, "has known entries"),
        }
    }
}

fn decode_run(written: bool, rest: &[u8]) -> Result<(Entry, &[u8]), Corrupt> {
    require(rest.len() >= 28, WHAT, "has whole entries")?;
    let (ino, first, addr, blocks) = (le64(rest, 0), le64(rest, 8), le64(rest, 16), le32(rest, 24));
    require(blocks >= 1 && addr >> ADDR_BITS == 0 && first < 1 << 51, WHAT, "has possible runs")?;
    if !written {
        return Ok((Entry::Reserved { ino, first, addr, blocks }, &rest[28..]));
    }
    let end = 28 + 4 * blocks as usize;
    require(rest.len() >= end, WHAT, "has whole entries")?;
    let sums = (0..blocks as usize).map(|i| le32(rest, 28 + 4 * i)).collect();
    Ok((Entry::Run { ino, first, addr, sums }, &rest[end..]))
}

/// Blocks that a record with `used` bytes of entries takes.
pub fn blocks_for(used: usize) -> u32 {
    (ENTRIES_AT + used).div_ceil(BLOCK) as u32
}

/// Encode a record that stands at `addr`; `head.blocks`, `used` and `sum` are computed.
pub fn encode(volume: Uuid, addr: Addr, head: &RecordHead, entries: &[u8]) -> Vec<u8> {
    let blocks = blocks_for(entries.len());
    let mut out = vec![0; blocks as usize * BLOCK];
    for (i, word) in [head.log_id, head.seq, head.txg, head.root_version, head.acked].iter().enumerate() {
        out[HEADER + 8 * i..][..8].copy_from_slice(&word.to_le_bytes());
    }
    out[104..120].copy_from_slice(&head.epoch.0);
    out[120..124].copy_from_slice(&blocks.to_le_bytes());
    out[124..128].copy_from_slice(&(entries.len() as u32).to_le_bytes());
    out[128..132].copy_from_slice(&crc32c::crc32c(entries).to_le_bytes());
    out[ENTRIES_AT..ENTRIES_AT + entries.len()].copy_from_slice(entries);
    let header = Header { kind: Kind::LogRecord, level: 0, count: 0, used: 0, volume, addr, birth: head.txg };
    block::seal(&mut out[..BLOCK], &header);
    out
}

/// Decode the first block of a record read at `addr`.
pub fn decode_head(bytes: &[u8], volume: Uuid, addr: Addr, log_blocks: u32) -> Result<RecordHead, Corrupt> {
    let header = block::open(bytes, Kind::LogRecord, Some(volume), addr)?;
    require(all_zero(&bytes[132..ENTRIES_AT]), WHAT, "has zero in reserved bytes")?;
    require(header.level == 0 && header.count == 0 && header.used == 0, WHAT, "has its own length in its own fields")?;
    let word = |i: usize| le64(bytes, HEADER + 8 * i);
    let head = RecordHead {
        log_id: word(0),
        seq: word(1),
        txg: word(2),
        root_version: word(3),
        acked: word(4),
        epoch: Uuid(bytes[104..120].try_into().expect("16 bytes")),
        blocks: le32(bytes, 120),
        used: le32(bytes, 124),
        sum: le32(bytes, 128),
    };
    require(header.birth == head.txg, WHAT, "has the group that its header says")?;
    require(head.blocks >= 1 && head.blocks <= log_blocks, WHAT, "fits the ring")?;
    require(blocks_for(head.used as usize) == head.blocks, WHAT, "is as long as its entries")?;
    Ok(head)
}

/// Check the whole record `bytes` (`head.blocks` blocks) and return its entries' bytes.
pub fn entries<'a>(bytes: &'a [u8], head: &RecordHead) -> Result<&'a [u8], Corrupt> {
    require(bytes.len() == head.blocks as usize * BLOCK, WHAT, "was read whole")?;
    let entries = &bytes[ENTRIES_AT..ENTRIES_AT + head.used as usize];
    require(crc32c::crc32c(entries) == head.sum, WHAT, "matches the checksum of its entries")?;
    require(all_zero(&bytes[ENTRIES_AT + head.used as usize..]), WHAT, "has zeros behind its entries")?;
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ItemKind;

    #[test]
    fn record_round_trip() {
        let key = Key::new(17, ItemKind::Inode, 0);
        let list = vec![
            Entry::Put(key, vec![1; 128]),
            Entry::Delete(key),
            Entry::Hole { ino: 17, first: 0, end: u64::MAX },
            Entry::Run { ino: 17, first: 3, addr: 900, sums: vec![1, 2] },
            Entry::Page { ino: 17, block: 5, bytes: vec![9; 4096] },
            Entry::Reserved { ino: 17, first: 8, addr: 990, blocks: 4 },
            Entry::NextIno(99),
        ];
        let mut bytes = Vec::new();
        list.iter().for_each(|e| e.encode(&mut bytes));
        let head = RecordHead {
            log_id: 1,
            seq: 2,
            txg: 3,
            root_version: 4,
            acked: 1,
            epoch: Uuid([3; 16]),
            blocks: 0,
            used: 0,
            sum: 0,
        };
        let mut record = encode(Uuid([1; 16]), 400, &head, &bytes);
        let found = decode_head(&record[..BLOCK], Uuid([1; 16]), 400, 64).unwrap();
        assert_eq!((found.seq, found.blocks), (2, 2));
        let mut rest = entries(&record, &found).unwrap();
        let mut decoded = Vec::new();
        while !rest.is_empty() {
            let (entry, next) = Entry::decode(rest).unwrap();
            decoded.push(entry);
            rest = next;
        }
        assert_eq!(decoded, list);
        let last = record.len() - 1;
        record[last] ^= 1;
        assert!(entries(&record, &found).is_err());
        for cut in 0..bytes.len() {
            let mut rest = &bytes[..cut];
            while let Ok((_, next)) = Entry::decode(rest) {
                rest = next;
            }
        }
    }
}
