//! Nodes of the copy-on-write B+tree.
//!
//! *Guarantees*: keys of a decoded node rise strictly; at least one entry; nothing points outside the block.
//! *Assumes*: the block was proven by its pointer, yet may be hostile. *Fails when*: [`Corrupt`].
//! *Order*: none. *Not here*: the tree's shape across nodes (`store::tree`).
//!
//! Leaf (level 0) payload: entries of key 24, length 2, value. Inner payload: entries of key 24, pointer 32;
//! the key is a lower bound of all keys below the pointer, and the first one bounds the whole node.

use super::block::{self, BlockPtr, HEADER, Header, Kind, PAYLOAD, PTR};
use super::item::{KEY, VALUE_MAX, le16};
use super::{Addr, BLOCK, Corrupt, Key, Txg, Uuid, reject, require};
use std::ops::Range;

const WHAT: &str = "tree node";
/// Bytes that an item takes in a leaf beside its value.
pub const LEAF_ENTRY: usize = KEY + 2;
/// Bytes of an entry of an inner node.
pub const INNER_ENTRY: usize = KEY + PTR;
/// Entries of a full inner node.
pub const INNER_MAX: usize = PAYLOAD / INNER_ENTRY;
/// Tallest tree that is read: 2^12 leaves at fanout 2 is passed long before.
pub const LEVEL_MAX: u8 = 16;
const _: () = assert!(2 * (LEAF_ENTRY + VALUE_MAX) <= PAYLOAD);
const _: () = assert!(INNER_MAX >= 4);

/// A decoded node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// Items: keys and where in the block their values stand.
    Leaf(Vec<(Key, Range<usize>)>),
    /// Children: lower bound and pointer.
    Inner(Vec<(Key, BlockPtr)>),
}

/// Encode a leaf of `items`, which must fit and rise.
pub fn encode_leaf<V: AsRef<[u8]>>(volume: Uuid, addr: Addr, birth: Txg, items: &[(Key, V)]) -> Vec<u8> {
    let mut out = vec![0; BLOCK];
    let mut at = HEADER;
    for (key, value) in items {
        let value = value.as_ref();
        assert!(value.len() <= VALUE_MAX && at + LEAF_ENTRY + value.len() <= BLOCK, "leaf overflows");
        out[at..at + KEY].copy_from_slice(&key.encode());
        out[at + KEY..at + LEAF_ENTRY].copy_from_slice(&(value.len() as u16).to_le_bytes());
        out[at + LEAF_ENTRY..at + LEAF_ENTRY + value.len()].copy_from_slice(value);
        at += LEAF_ENTRY + value.len();
    }
    finish(out, volume, addr, birth, 0, items.len(), at - HEADER)
}

/// Encode an inner node at `level` ≥ 1.
pub fn encode_inner(volume: Uuid, addr: Addr, birth: Txg, level: u8, children: &[(Key, BlockPtr)]) -> Vec<u8> {
    assert!(level >= 1 && children.len() <= INNER_MAX);
    let mut out = vec![0; BLOCK];
    for (i, (key, ptr)) in children.iter().enumerate() {
        let at = HEADER + i * INNER_ENTRY;
        out[at..at + KEY].copy_from_slice(&key.encode());
        out[at + KEY..at + INNER_ENTRY].copy_from_slice(&ptr.encode());
    }
    finish(out, volume, addr, birth, level, children.len(), children.len() * INNER_ENTRY)
}

fn finish(mut out: Vec<u8>, volume: Uuid, addr: Addr, birth: Txg, level: u8, count: usize, used: usize) -> Vec<u8> {
    assert!(count >= 1, "a node is never empty");
    let header = Header { kind: Kind::Node, level, count: count as u32, used: used as u32, volume, addr, birth };
    block::seal(&mut out, &header);
    out
}

/// Decode the node at `ptr`, expected at `level`.
pub fn decode(bytes: &[u8], volume: Uuid, ptr: &BlockPtr, level: u8) -> Result<Node, Corrupt> {
    let header = block::open(bytes, Kind::Node, Some(volume), ptr.addr)?;
    require(header.birth == ptr.birth, WHAT, "has the birth that its pointer says")?;
    require(header.level == level, WHAT, "is at the expected level")?;
    let used = header.used as usize;
    require(used <= PAYLOAD && header.count >= 1, WHAT, "has entries inside the block")?;
    let end = HEADER + used;
    let node = if level == 0 { decode_leaf(bytes, &header, end)? } else { decode_inner(bytes, &header, end)? };
    require(bytes[end..].iter().all(|b| *b == 0), WHAT, "has zeros behind its entries")?;
    Ok(node)
}

fn decode_leaf(bytes: &[u8], header: &Header, end: usize) -> Result<Node, Corrupt> {
    let mut items: Vec<(Key, Range<usize>)> = Vec::with_capacity((header.count as usize).min(PAYLOAD / LEAF_ENTRY));
    let mut at = HEADER;
    while at < end {
        require(at + LEAF_ENTRY <= end, WHAT, "has whole entries")?;
        let key = Key::decode(&bytes[at..at + KEY])?;
        let len = usize::from(le16(bytes, at + KEY));
        at += LEAF_ENTRY;
        require(len <= VALUE_MAX && at + len <= end, WHAT, "has values inside the block")?;
        require(items.last().is_none_or(|(last, _)| *last < key), WHAT, "has rising keys")?;
        items.push((key, at..at + len));
        at += len;
    }
    require(items.len() == header.count as usize, WHAT, "has as many entries as it says")?;
    Ok(Node::Leaf(items))
}

fn decode_inner(bytes: &[u8], header: &Header, end: usize) -> Result<Node, Corrupt> {
    let count = header.count as usize;
    require(count <= INNER_MAX && end == HEADER + count * INNER_ENTRY, WHAT, "has as many entries as it says")?;
    let mut children: Vec<(Key, BlockPtr)> = Vec::with_capacity(count);
    for i in 0..count {
        let at = HEADER + i * INNER_ENTRY;
        let key = Key::decode(&bytes[at..at + KEY])?;
        let Some(child) = BlockPtr::decode(&bytes[at + KEY..at + INNER_ENTRY], WHAT)? else {
            return reject(WHAT, "has no empty pointer");
        };
        require(child.birth <= header.birth, WHAT, "is not older than its children")?;
        require(children.last().is_none_or(|(last, _)| *last < key), WHAT, "has rising keys")?;
        children.push((key, child));
    }
    Ok(Node::Inner(children))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ItemKind;

    #[test]
    fn leaf_and_inner_round_trip() {
        let volume = Uuid([9; 16]);
        let items: Vec<(Key, Vec<u8>)> =
            (0..20).map(|i| (Key::new(i, ItemKind::Inode, 0), vec![i as u8; i as usize])).collect();
        let bytes = encode_leaf(volume, 500, 7, &items);
        let ptr = BlockPtr { addr: 500, sum: 0, birth: 7 };
        let Ok(Node::Leaf(found)) = decode(&bytes, volume, &ptr, 0) else { panic!() };
        assert_eq!(found.len(), 20);
        assert!(found.iter().zip(&items).all(|(f, i)| f.0 == i.0 && bytes[f.1.clone()] == i.1[..]));
        assert!(decode(&bytes, volume, &ptr, 1).is_err());
        let children: Vec<_> = items.iter().map(|(k, _)| (*k, ptr)).collect();
        let bytes = encode_inner(volume, 501, 7, 1, &children);
        let ptr = BlockPtr { addr: 501, sum: 0, birth: 7 };
        assert_eq!(decode(&bytes, volume, &ptr, 1), Ok(Node::Inner(children)));
    }

    #[test]
    fn random_damage_never_panics() {
        let volume = Uuid([9; 16]);
        let items: Vec<(Key, Vec<u8>)> = (0..20).map(|i| (Key::new(i, ItemKind::Inode, 0), vec![3; 100])).collect();
        let good = encode_leaf(volume, 500, 7, &items);
        let ptr = BlockPtr { addr: 500, sum: 0, birth: 7 };
        let mut state = 1_u64;
        for _ in 0..20_000 {
            let mut bytes = good.clone();
            for _ in 0..3 {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                bytes[(state >> 33) as usize % BLOCK] = (state >> 20) as u8;
            }
            let _ = decode(&bytes, volume, &ptr, 0);
            let _ = decode(&bytes, volume, &ptr, 1);
        }
    }
}
