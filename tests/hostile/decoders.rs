//! Every decoder of `format`, on whole blocks that were damaged and sealed again, and on junk of any length.
//!
//! Goal: no decoder panics, and none accepts what its encoder cannot produce: what it accepts encodes to the same bytes.

use super::{is_long, memory, seeds};
use stablefs::disk::sim::Random;
use stablefs::format::block::{BlockPtr, Kind};
use stablefs::format::event::{self, Event, EventKind, EventState};
use stablefs::format::geometry::BEAT_AT;
use stablefs::format::item::{FileMap, decode_xattr_head, encode_xattr};
use stablefs::format::log::{self, Entry};
use stablefs::format::node::{self, Node};
use stablefs::format::space::{Bitmap, SpaceEntry, decode_node, encode_node};
use stablefs::format::{BLOCK, Beat, BeatState, Extent, Inode, ItemKind, Key, Label, Root, Uuid, block, dead, item};
use stablefs::fs::acl::Acl;
use stablefs::simulate::mutate::canvas::{Canvas, get};
use stablefs::simulate::mutate::damage;
use stablefs::simulate::mutate::sample::{Sample, samples};
use std::fmt::Debug;

/// Number of things that were accepted, by decoder.
#[derive(Default, Debug)]
struct Accepted {
    blocks: u64,
    items: u64,
}

fn same<T: Debug>(found: &T, encoded: &[u8], bytes: &[u8]) {
    assert!(encoded == bytes, "accepted, but never written so: {found:?}");
}

/// Decode `bytes`, which stand at `addr`, as everything that a block can be.
fn as_blocks(sample: &Sample, bytes: &[u8], addr: u64, accepted: &mut Accepted) {
    let label = &sample.survey.label;
    let (volume, geometry) = (label.volume, &label.geometry);
    let (level, count, birth) = (get(bytes, 5, 1), get(bytes, 8, 4), get(bytes, 40, 8));
    let before = accepted.blocks;
    let kinds = [
        Kind::Label,
        Kind::Root,
        Kind::LogRecord,
        Kind::SpaceNode,
        Kind::Bitmap,
        Kind::DeadList,
        Kind::Node,
        Kind::Beat,
    ];
    kinds.iter().for_each(|kind| drop(block::open(bytes, *kind, None, addr)));
    if let Ok(found) = Label::decode(bytes, addr) {
        // Compatible features are for later versions to set.
        assert!(get(bytes, 80, 8) != 0 || found.encode(addr) == bytes, "accepted, but never written so: {found:?}");
        accepted.blocks += 1;
    }
    if let Ok(found) = Beat::decode(bytes, volume) {
        same(&found, &found.encode(volume), bytes);
        accepted.blocks += 1;
    }
    if let Ok(found) = Root::decode(bytes, (addr.saturating_sub(32) / 16 % 16) as usize, volume, geometry) {
        same(&found, &found.encode((addr.saturating_sub(32) / 16 % 16) as usize), bytes);
        let _ = (found.follows(found.epoch().id, u64::MAX), found.dead_blocks());
        accepted.blocks += 1;
    }
    if let Ok(head) = log::decode_head(bytes, volume, addr, geometry.log_blocks)
        && let Ok(entries) = log::entries(&bytes[..BLOCK * usize::from(head.blocks == 1)], &head)
    {
        same(&head, &log::encode(volume, addr, &head, entries), bytes);
        as_items(entries, accepted);
        accepted.blocks += 1;
    }
    if let Ok(found) = decode_node(bytes, volume, addr, birth, level as u8, count) {
        same(&found, &encode_node(volume, addr, birth, level as u8, &found), bytes);
        accepted.blocks += 1;
    }
    for length in [64, 256, geometry.zone_blocks] {
        if let Ok(found) = Bitmap::decode(bytes, volume, addr, birth, length) {
            same(&found.backed, &found.encode(volume, addr, birth), bytes);
            accepted.blocks += 1;
        }
    }
    let ptr = BlockPtr { addr, sum: 0, birth };
    if let Ok((next, runs)) = dead::decode(bytes, volume, &ptr) {
        same(&runs, &dead::encode(volume, addr, birth, next, &runs), bytes);
        accepted.blocks += 1;
    }
    match node::decode(bytes, volume, &ptr, level as u8) {
        Ok(Node::Leaf(items)) => {
            let found: Vec<(Key, &[u8])> = items.iter().map(|(key, range)| (*key, &bytes[range.clone()])).collect();
            same(&items, &node::encode_leaf(volume, addr, birth, &found), bytes);
            items.iter().for_each(|(key, range)| as_value(*key, &bytes[range.clone()], accepted));
            accepted.blocks += 1;
        }
        Ok(Node::Inner(children)) => {
            same(&children, &node::encode_inner(volume, addr, birth, level as u8, &children), bytes);
            accepted.blocks += 1;
        }
        Err(_) => {}
    }
    assert!(accepted.blocks <= before + 3, "a block is of one kind");
}

/// Decode `value` as the value of `key`, and of every other kind.
fn as_value(key: Key, value: &[u8], accepted: &mut Accepted) {
    if let Ok(found) = Inode::decode(value) {
        same(&found, &found.encode(), value);
        accepted.items += 1;
    }
    if let Ok(found) = FileMap::decode(value) {
        same(&found, &found.encode(), value);
        accepted.items += 1;
    }
    if let Ok(found) = item::Dirent::decode(value) {
        same(&found, &found.encode(), value);
        accepted.items += 1;
    }
    if let Ok((name, total, data)) = decode_xattr_head(value) {
        let mut whole = data.to_vec();
        whole.resize(total, 0);
        same(&name, &encode_xattr(name, &whole)[0], value);
        accepted.items += 1;
    }
    // The name is the number: with the key that it asks for.
    let number = value.get(5..13).map_or(0, |name| u64::from_le_bytes(name.try_into().expect("eight bytes")));
    if let Ok((number, found)) = event::decode(event::event_key(number % event::EVENT_SEQUENCE_END), value) {
        // What later releases may add is read as something else.
        let is_known = found.kind != EventKind::Other && ![found.from, found.to].contains(&EventState::Other);
        assert!(!is_known || found.encode(number) == value, "accepted, but never written so: {found:?}");
        accepted.items += 1;
    }
    for key in [key, Key::new(20, ItemKind::Extent, 63), Key::new(20, ItemKind::Extent, 0)] {
        if let Ok(found) = Extent::decode(key, value) {
            let _ = (found.first(key), found.addr());
            same(&found, &found.encode(), value);
            accepted.items += 1;
        }
    }
}

/// Decode `bytes` as everything that has no block of its own.
fn as_items(bytes: &[u8], accepted: &mut Accepted) {
    let mut rest = bytes;
    while let Ok((entry, next)) = Entry::decode(rest) {
        let mut encoded = Vec::new();
        entry.encode(&mut encoded);
        same(&entry, &encoded, &rest[..rest.len() - next.len()]);
        if let Entry::Put(key, value) = &entry {
            as_value(*key, value, accepted);
        }
        rest = next;
        accepted.items += 1;
    }
    if let Ok(found) = Key::decode(bytes) {
        same(&found, &found.encode(), &bytes[..24]);
        assert!(found.next() > found || found == Key::MAX);
    }
    if let Ok(Some(found)) = BlockPtr::decode(bytes, "test") {
        same(&found, &found.encode(), &bytes[..32]);
    }
    if let Ok(found) = SpaceEntry::decode(bytes) {
        same(&found, &found.encode(), &bytes[..32]);
    }
    if let Ok(mut found) = Acl::decode(bytes) {
        let _ = (found.is_minimal(), found.mode_bits(), found.create(0o777));
        found.chmod(0o640);
        assert!(Acl::decode(&found.encode()).is_ok());
        accepted.items += 1;
    }
    as_value(Key::new(20, ItemKind::Extent, 0), bytes, accepted);
}

fn some_event() -> Event {
    let text = |length: usize| "é".repeat(length);
    let (place, cause, file) = (text(3), text(20), text(50));
    Event { slot: Some(1), place, cause, file, to: EventState::Out, ..Event::new(EventKind::State, 1 << 60) }
}

/// A heartbeat in which some bytes are others, sealed again.
fn some_beat(volume: Uuid, random: &mut Random) -> Vec<u8> {
    let beat = Beat {
        owner: Uuid([1; 16]),
        host: Uuid([2; 16]),
        boot: Uuid([3; 16]),
        sequence: u64::MAX,
        time_ns: 5,
        started: 6,
        process: 7,
        lease_ms: u32::MAX,
        state: BeatState::Running,
        name: "é".repeat(30),
    };
    let mut bytes = beat.encode(volume);
    for _ in 0..random.below(4) {
        bytes[(4 + random.below(216)) as usize] = random.below(256) as u8;
    }
    bytes[48..52].fill(0);
    let sum = crc32c::crc32c(&bytes);
    bytes[48..52].copy_from_slice(&sum.to_le_bytes());
    bytes
}

#[test]
fn decoders() {
    let _alone = memory::alone();
    let mut accepted = Accepted::default();
    for seed in seeds(if is_long() { 0..2_000_000 } else { 0..30_000 }) {
        let mut random = Random::new(seed ^ 0xdec0de);
        let sample = random.pick(samples());
        let mut canvas = Canvas { image: sample.images[0].clone(), survey: &sample.survey, blocks: sample.blocks };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let done = damage::damage(&mut canvas, &mut random, 1);
            let addr = sample.survey.places[done.place].addr;
            as_blocks(sample, &canvas.block(addr), addr, &mut accepted);
            as_blocks(sample, &canvas.block(addr)[..random.below(BLOCK as u64 + 1) as usize], addr, &mut accepted);
            let mut junk = vec![0; random.below(300) as usize];
            random.fill(&mut junk);
            if random.below(2) == 0 {
                // Small numbers are more often tags and lengths.
                junk.iter_mut().for_each(|byte| *byte %= 9);
            }
            as_items(&junk, &mut accepted);
            let beat = some_beat(sample.survey.label.volume, &mut random);
            as_blocks(sample, &beat, BEAT_AT, &mut accepted);
            let mut value = some_event().encode(5);
            for _ in 0..=random.below(3) {
                let at = random.below(value.len() as u64) as usize;
                value[at] = random.below(256) as u8;
            }
            as_value(event::event_key(5), &value, &mut accepted);
        }));
        assert!(outcome.is_ok(), "decoders: STABLEFS_SEEDS={seed}, sample {}", sample.name);
    }
    println!("{accepted:?}");
    assert!(accepted.blocks > 100 && accepted.items > 1000, "too little is accepted to prove anything: {accepted:?}");
}
