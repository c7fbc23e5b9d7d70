//! Damage that rewrites a whole structure: items of a leaf, entries of a log record, lists of a root.
//!
//! *Guarantees*: as `damage`. *Assumes*: the block decodes as far as it is rewritten; what does not is left out.
//! *Fails when*: never. *Order*: none. *Not here*: single fields (`damage`).

use super::canvas::{Canvas, ENTRIES_AT, get, put};
use super::damage::{Field, hostile, pick_part, value_fields};
use super::survey::Survey;
use crate::disk::sim::{Block, Random};
use crate::format::block::HEADER;
use crate::format::item::{Dirent, FileMap, Inode, name_cookie_base};
use crate::format::log::{Entry, blocks_for};
use crate::format::root::{Epoch, Member};
use crate::format::{BLOCK, Extent, ExtentBody, ItemKind, Key, MemberState, Root, Uuid};
use crate::store::walk::Part;

type Item = ([u8; 24], Vec<u8>);

/// Rewrite the items of a leaf.
pub fn items(canvas: &mut Canvas<'_>, random: &mut Random) -> (String, usize) {
    let Some(index) = pick_part(random, canvas.survey, Part::Leaf) else { return ("nothing".into(), 0) };
    let addr = canvas.survey.places[index].addr;
    let block = canvas.block(addr);
    let mut items: Vec<Item> = Survey::items(&block)
        .into_iter()
        .map(|(at, _, value)| (block[at..at + 24].try_into().expect("24 bytes"), block[value].to_vec()))
        .collect();
    let mut what = Vec::new();
    for _ in 0..random.range(1, 4) {
        what.push(change_items(&mut items, canvas.survey, random, addr));
    }
    if random.below(8) > 0 {
        items.sort_by_key(|(key, _)| Key::decode(key).unwrap_or(Key::MAX));
        if random.below(4) > 0 {
            items.dedup_by_key(|(key, _)| *key);
        }
    }
    let mut out = [0; BLOCK];
    out[..HEADER].copy_from_slice(&block[..HEADER]);
    let (mut at, mut count) = (HEADER, 0);
    for (key, value) in &items {
        let end = at + 26 + value.len();
        if end > BLOCK {
            break;
        }
        out[at..at + 24].copy_from_slice(key);
        put(&mut out, at + 24, 2, value.len() as u64);
        out[at + 26..end].copy_from_slice(value);
        (at, count) = (end, count + 1);
    }
    put(&mut out, 8, 4, count);
    put(&mut out, 12, 4, (at - HEADER) as u64);
    canvas.set(addr, out);
    (format!("leaf at {addr}: {}", what.join(", ")), index)
}

fn change_items(items: &mut Vec<Item>, survey: &Survey, random: &mut Random, addr: u64) -> String {
    if items.is_empty() {
        return "empty".into();
    }
    let at = random.below(items.len() as u64) as usize;
    let key = Key::decode(&items[at].0).unwrap_or(Key::MIN);
    match random.below(9) {
        0 => {
            items.remove(at);
            format!("without {key:?}")
        }
        1 => {
            let (mut twin, value) = items[at].clone();
            put(&mut twin, 8, 8, key.off.wrapping_add(*random.pick(&[1, 2, u64::MAX, 64])));
            items.push((twin, value));
            format!("{key:?} twice")
        }
        2 => {
            let (offset, width) = *random.pick(&[(0, 8), (8, 8), (16, 1)]);
            let new = hostile(random, survey, get(&items[at].0, offset, width), width, addr);
            let new = if width == 1 { random.range(1, 7) } else { new };
            put(&mut items[at].0, offset, width, new);
            format!("{key:?}: key at {offset} -> {new:#x}")
        }
        3 => {
            let value = &mut items[at].1;
            let length = *random.pick(&[0, 1, value.len() / 2, value.len().saturating_sub(1), value.len() + 1, 1984]);
            value.resize(length.min(1984), 0x41);
            format!("{key:?}: {length} bytes")
        }
        4 | 5 => {
            let fields = value_fields(key.kind, items[at].1.len());
            if fields.is_empty() {
                return "nothing".into();
            }
            let (offset, width) = *random.pick(&fields);
            let new = hostile(random, survey, get(&items[at].1, offset, width), width, addr);
            put(&mut items[at].1, offset, width, new);
            format!("{key:?}: {width} bytes at {offset} -> {new:#x}")
        }
        6 => {
            let (key, value) = hostile_item(random, survey, items);
            let text = format!("new {key:?}");
            items.push((key.encode(), value));
            text
        }
        _ => {
            let kind = key.kind;
            let bytes = std::mem::take(&mut items[at].1);
            items[at].1 = hostile_value(random, survey, key, &bytes);
            format!("hostile {kind:?} of {}", key.ino)
        }
    }
}

/// An inode number: one of the volume's, or an impossible one.
fn some_ino(random: &mut Random, survey: &Survey) -> u64 {
    let next = survey.root.next_ino;
    match random.below(6) {
        0 => *random.pick(&[0, 1, 2, 15, u64::MAX, u64::MAX - 1, 1 << 63, u64::MAX / 4, u64::MAX / 4 - 1, 1 << 40]),
        1 => next.wrapping_add(random.below(3)).wrapping_sub(1),
        2 => 1,
        _ => random.range(16, 80),
    }
}

fn some_name(random: &mut Random) -> Vec<u8> {
    match random.below(8) {
        0 => Vec::new(),
        1 => b"a/b".to_vec(),
        2 => b"a\0b".to_vec(),
        3 => b"..".to_vec(),
        4 => vec![b'n'; 255],
        5 => vec![b'n'; 256],
        6 => vec![0xff, 0xfe, b'\n'],
        _ => b"dir".to_vec(),
    }
}

/// An address: in use, or an impossible one.
fn some_addr(random: &mut Random, survey: &Survey) -> u64 {
    let geometry = &survey.label.geometry;
    match random.below(4) {
        0 => survey.places[random.below(survey.places.len() as u64) as usize].addr,
        1 => *random.pick(&[0, 1, 32, 288, geometry.log_at, geometry.zones_at, geometry.blocks - 1, geometry.blocks]),
        2 => random.range(geometry.zones_at, geometry.blocks),
        _ => *random.pick(&[1 << 48, (1 << 56) - 1, 1 << 56, u64::MAX]),
    }
}

fn hostile_extent(random: &mut Random, survey: &Survey, off: u64) -> Vec<u8> {
    let blocks = (*random.pick(&[1, 2, 64])).min(u32::try_from(off.saturating_add(1)).unwrap_or(64).max(1));
    let addr = some_addr(random, survey);
    let birth = *random.pick(&[0, 1, survey.root.txg, survey.root.txg + 1, u64::MAX]);
    let body = match random.below(3) {
        0 => ExtentBody::Unwritten { addr },
        1 => ExtentBody::Written { addr, sums: (0..blocks).map(|_| random.bits() as u32).collect() },
        _ => {
            let block = survey.places[random.below(survey.places.len() as u64) as usize].addr;
            ExtentBody::Written { addr: block, sums: vec![0; blocks as usize] }
        }
    };
    Extent { blocks, birth, body }.encode()
}

fn hostile_value(random: &mut Random, survey: &Survey, key: Key, old: &[u8]) -> Vec<u8> {
    match key.kind {
        ItemKind::Inode => {
            let Ok(mut inode) = Inode::decode(old) else { return old.to_vec() };
            match random.below(8) {
                0 => inode.size = *random.pick(&[0, 1, 1920, 4096, 1 << 40, i64::MAX as u64, (1 << 63) - 4096]),
                1 => inode.nlink = *random.pick(&[0, 1, 2, 65_000, u32::MAX, u32::MAX - 1]),
                2 => inode.mode = inode.mode & 0o7777 | (*random.pick(&[1, 2, 4, 6, 8, 10, 12, 0, 15]) << 12),
                3 => inode.parent = some_ino(random, survey),
                4 => inode.parent_cookie = random.bits(),
                5 => inode.mtime.sec = *random.pick(&[i64::MIN, i64::MAX, -1]),
                6 => inode.atime.sec = *random.pick(&[i64::MIN, i64::MAX, -1]),
                _ => (inode.nlink, inode.size) = (0, (1 << 63) - 4096),
            }
            inode.encode()
        }
        ItemKind::Dirent => {
            let ino = some_ino(random, survey);
            let file_type = *random.pick(&[4, 8, 10, 1, 0, 15]);
            match Dirent::decode(old) {
                // The name stays: so that it is found.
                Ok(entry) if random.below(3) > 0 => Dirent { ino, file_type, ..entry }.encode(),
                _ => Dirent { ino, file_type, name: some_name(random) }.encode(),
            }
        }
        ItemKind::FileMap => FileMap { blocks: *random.pick(&[0, 1, u64::MAX, 1 << 61, 1 << 63]) }.encode(),
        ItemKind::Extent => hostile_extent(random, survey, key.off),
        ItemKind::Xattr => {
            let mut value = old.to_vec();
            put(&mut value, 0, 4, *random.pick(&[0, 1, 1600, 1601, 65_536, 65_537, u64::from(u32::MAX)]));
            value
        }
        ItemKind::Orphan => vec![1; random.below(20) as usize],
    }
}

/// An item that should not be there.
fn hostile_item(random: &mut Random, survey: &Survey, items: &[Item]) -> (Key, Vec<u8>) {
    let owner = Key::decode(&items[random.below(items.len() as u64) as usize].0).map_or(1, |key| key.ino);
    let ino = if random.below(3) == 0 { some_ino(random, survey) } else { owner };
    match random.below(6) {
        0 => {
            let name = some_name(random);
            let cookie = name_cookie_base(survey.label.hash_key, &name) + random.below(3);
            let entry = Dirent { ino: some_ino(random, survey), file_type: 4, name };
            (Key::new(ino, ItemKind::Dirent, cookie), entry.encode())
        }
        1 => (Key::new(2, ItemKind::Orphan, some_ino(random, survey)), vec![0; 8]),
        2 => {
            let off = *random.pick(&[0, 1, 63, (1 << 51) - 1, 1 << 40, u64::MAX]);
            (Key::new(ino, ItemKind::Extent, off), hostile_extent(random, survey, off & ((1 << 51) - 1)))
        }
        3 => (Key::new(ino, ItemKind::FileMap, 0), FileMap { blocks: random.bits() }.encode()),
        4 => {
            let inode = items.iter().find_map(|(_, value)| Inode::decode(value).ok());
            (Key::inode(ino), inode.map_or_else(|| vec![0; 128], |inode| inode.encode()))
        }
        _ => {
            let mut value = (*random.pick(&[10_u32, 1700, 65_536])).to_le_bytes().to_vec();
            value.extend([4, b'u', b's', b'e', b'r']);
            value.resize(*random.pick(&[9, 19, 1609]), 7);
            (Key::new(ino, ItemKind::Xattr, random.below(1 << 31) << 24 | random.below(3)), value)
        }
    }
}

/// Fields of the entries in the first block of a log record.
pub fn log_fields(bytes: &Block) -> Vec<Field> {
    let used = get(bytes, 124, 4) as usize;
    let end = ENTRIES_AT.saturating_add(used).min(BLOCK);
    let mut out = Vec::new();
    let mut at = ENTRIES_AT;
    while at < end {
        let Ok((entry, rest)) = Entry::decode(&bytes[at..end]) else { break };
        out.push((at, 1));
        match &entry {
            Entry::Put(key, value) => {
                out.extend([(at + 1, 8), (at + 9, 8), (at + 17, 1), (at + 25, 2)]);
                out.extend(value_fields(key.kind, value.len()).iter().map(|(o, w)| (at + 27 + o, *w)));
            }
            Entry::Delete(_) => out.extend([(at + 1, 8), (at + 9, 8), (at + 17, 1)]),
            Entry::Hole { .. } => out.extend([(at + 1, 8), (at + 9, 8), (at + 17, 8)]),
            Entry::Run { .. } | Entry::Reserved { .. } => {
                out.extend([(at + 1, 8), (at + 9, 8), (at + 17, 8), (at + 25, 4)]);
            }
            Entry::Page { .. } => out.extend([(at + 1, 8), (at + 9, 8), (at + 17, 2)]),
            Entry::NextIno(_) => out.push((at + 1, 8)),
        }
        at = end - rest.len();
    }
    out
}

fn hostile_entry(random: &mut Random, survey: &Survey) -> Entry {
    let ino = some_ino(random, survey);
    let first = *random.pick(&[0, 1, 5, 1 << 40, (1 << 51) - 1, 1 << 51, u64::MAX - 1, u64::MAX]);
    match random.below(8) {
        0 => Entry::Hole { ino, first, end: *random.pick(&[0, 1, first.wrapping_add(1), u64::MAX]) },
        1 => Entry::Run { ino, first, addr: some_addr(random, survey), sums: vec![7; random.range(1, 70) as usize] },
        2 => {
            let blocks = *random.pick(&[1, 64, 10_000, u32::MAX]);
            Entry::Reserved { ino, first, addr: some_addr(random, survey), blocks }
        }
        3 => Entry::Page { ino, block: first, bytes: vec![9; random.below(4097) as usize] },
        4 => Entry::NextIno(*random.pick(&[0, 1, u64::MAX, u64::MAX / 4 - 1, u64::MAX / 4, 1 << 40])),
        5 => Entry::Delete(Key::new(ino, ItemKind::Inode, 0)),
        6 => {
            let kind = *random.pick(&[ItemKind::Inode, ItemKind::Dirent, ItemKind::Orphan, ItemKind::Xattr]);
            let key = Key::new(ino, kind, if kind == ItemKind::Inode { 0 } else { random.bits() });
            Entry::Put(key, hostile_value(random, survey, key, &[4; 128]))
        }
        _ => Entry::Put(Key::new(ino, ItemKind::Extent, 0), hostile_extent(random, survey, 0)),
    }
}

/// Rewrite the entries of a log record, which may grow over what follows it.
pub fn log(canvas: &mut Canvas<'_>, random: &mut Random) -> (String, usize) {
    let Some(index) = pick_part(random, canvas.survey, Part::LogRecord) else { return items(canvas, random) };
    let place = canvas.survey.places[index].clone();
    let whole: Vec<u8> = (0..u64::from(place.blocks)).flat_map(|i| canvas.block(place.addr + i)).collect();
    let used = get(&whole, 124, 4) as usize;
    let mut rest = whole.get(ENTRIES_AT..ENTRIES_AT.saturating_add(used)).unwrap_or_default();
    let mut entries = Vec::new();
    while let Ok((entry, next)) = Entry::decode(rest) {
        entries.push(entry);
        rest = next;
    }
    let mut what = Vec::new();
    for _ in 0..random.range(1, 4) {
        let at = random.below(entries.len() as u64 + 1) as usize;
        match random.below(4) {
            0 if at < entries.len() => what.push(format!("without {:?}", short(&entries.remove(at)))),
            1 if at < entries.len() => {
                let twin = entries[at].clone();
                what.push(format!("twice {:?}", short(&twin)));
                entries.insert(random.below(entries.len() as u64) as usize, twin);
            }
            _ => {
                let entry = hostile_entry(random, canvas.survey);
                what.push(format!("with {:?}", short(&entry)));
                entries.insert(at, entry);
            }
        }
    }
    let mut bytes = Vec::new();
    entries.iter().for_each(|entry| entry.encode(&mut bytes));
    let geometry = &canvas.survey.label.geometry;
    let ring_end = geometry.log_at + u64::from(geometry.log_blocks);
    let blocks = u64::from(blocks_for(bytes.len()));
    if place.addr + blocks > ring_end {
        return ("nothing: too long".into(), index);
    }
    let mut out = whole[..ENTRIES_AT].to_vec();
    put(&mut out, 120, 4, blocks);
    put(&mut out, 124, 4, bytes.len() as u64);
    out.extend(bytes);
    out.resize(blocks as usize * BLOCK, 0);
    for (addr, block) in (place.addr..).zip(out.chunks(BLOCK)) {
        canvas.set(addr, block.try_into().expect("a block"));
    }
    (format!("log record at {}: {}", place.addr, what.join(", ")), index)
}

fn short(entry: &Entry) -> String {
    let mut text = format!("{entry:?}");
    text.truncate(90);
    text
}

/// Rewrite a root as the product would, with members, epochs, dead lists and counters that cannot be.
pub fn root(canvas: &mut Canvas<'_>, random: &mut Random) -> (String, usize) {
    let Some(index) = pick_part(random, canvas.survey, Part::Root) else { return ("nothing".into(), 0) };
    let addr = canvas.survey.places[index].addr;
    let label = &canvas.survey.label;
    let slot = ((addr - 32) / 16) as usize;
    let Ok(mut root) = Root::decode(&canvas.block(addr), slot, label.volume, &label.geometry) else {
        return ("nothing: no root any more".into(), index);
    };
    let extreme =
        *random.pick(&[0, 1, u64::MAX / 2 - 1, u64::MAX / 4, u64::MAX / 4 + (1 << 32) - 1, u64::MAX, 1 << 40]);
    let choice = random.below(16);
    match choice {
        0 => root.members.swap(0, 1),
        1 => root.members.iter_mut().for_each(|member| member.state = MemberState::Returning),
        2 => {
            let state = if root.version.is_multiple_of(2) { MemberState::Out } else { MemberState::Detached };
            root.members[random.below(2) as usize].state = state;
        }
        3 => root.members[random.below(2) as usize].replica = Uuid([9; 16]),
        4 => {
            let more = Member { replica: Uuid([3; 16]), ..root.members[0] };
            root.members.push(more);
            root.members.truncate(4);
        }
        5 => root.chain.reverse(),
        6 => root.chain = vec![Epoch { id: Uuid([8; 16]), first_version: extreme }; random.range(1, 65) as usize],
        7 => root.chain.truncate(1),
        8 => {
            if let Some(head) = root.dead.first().copied() {
                root.dead = (0..32).map(|i| crate::format::root::DeadHead { first: i, last: i, ..head }).collect();
            }
        }
        9 => root.dead.iter_mut().for_each(|head| head.blocks = u64::MAX - random.below(2)),
        10 => (root.version, root.time_ns) = (extreme, u64::MAX),
        11 => root.txg = extreme,
        12 => (root.next_ino, root.inodes) = (*random.pick(&[0, 1, 16, 20, extreme]), extreme),
        13 => (root.log_seq, root.mount_count) = (extreme, u64::MAX),
        14 => (root.space.free, root.backed) = (extreme, *random.pick(&[0, 1, label.geometry.blocks])),
        _ => (root.grow_zone, root.clean) = (label.geometry.zones, !root.clean),
    }
    let block: Block = root.encode(slot).try_into().expect("a block");
    canvas.set(addr, block);
    (format!("root at {addr}: rewritten ({choice}, {extreme:#x})"), index)
}
