//! `docs/FORMAT.md` and the code say the same.
//!
//! Goal: nobody is misled by the document. Method: layout tables of the sources must stand in it word for word, tables
//! must have no gap, constants and worked sizes must have the code's values, and encoders must put fields where the
//! tables say.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use stablefs::format::block::{self, BlockPtr};
use stablefs::format::event::{self, Event, EventKind, EventState};
use stablefs::format::geometry as geo;
use stablefs::format::item::{self, Dirent, FileMap, Time};
use stablefs::format::space::{self, Bitmap, SpaceEntry};
use stablefs::format::{self, Beat, BeatState, Geometry, Inode, ItemKind, Key, Uuid, beat, dead, label, node, root};

fn root_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn document() -> String {
    fs::read_to_string(root_folder().join("docs/FORMAT.md")).expect("docs/FORMAT.md")
}

fn format_sources() -> Vec<(String, String)> {
    let mut out = vec![("src/format.rs".to_owned(), String::new())];
    for entry in fs::read_dir(root_folder().join("src/format")).expect("src/format").flatten() {
        out.push((format!("src/format/{}", entry.file_name().to_string_lossy()), String::new()));
    }
    for (name, text) in &mut out {
        *text = fs::read_to_string(root_folder().join(&*name)).expect("a source");
    }
    assert!(out.len() >= 10);
    out
}

#[test]
fn tables_of_the_sources_stand_in_the_document() {
    let document = document();
    let lines: Vec<&str> = document.lines().collect();
    let mut rows = 0;
    for (name, text) in format_sources() {
        for line in text.lines() {
            let line = line.trim_start();
            let Some(comment) = line.strip_prefix("//!").or_else(|| line.strip_prefix("///")) else { continue };
            let row = comment.trim();
            if row.starts_with('|') {
                rows += 1;
                assert!(lines.contains(&row), "{name}: this row does not stand in docs/FORMAT.md:\n{row}");
            }
        }
    }
    assert!(rows > 80, "only {rows} rows were found in the sources");
}

fn constants() -> BTreeMap<&'static str, u64> {
    BTreeMap::from([
        ("BLOCK", format::BLOCK as u64),
        ("REPLICAS_MIN", format::REPLICAS_MIN as u64),
        ("REPLICAS_MAX", format::REPLICAS_MAX as u64),
        ("NAME_MAX", format::NAME_MAX as u64),
        ("FILE_SIZE_MAX", format::FILE_SIZE_MAX),
        ("LINK_MAX", format::LINK_MAX.into()),
        ("ROOT_INO", format::ROOT_INO),
        ("ORPHANS", format::ORPHANS),
        ("FIRST_INO", format::FIRST_INO),
        ("INO_MAX", format::INO_MAX),
        ("ADDR_BITS", format::ADDR_BITS.into()),
        ("HEADER", block::HEADER as u64),
        ("PAYLOAD", block::PAYLOAD as u64),
        ("LAYOUT_VERSION", block::LAYOUT_VERSION.into()),
        ("CHECKSUM_CRC32C", block::CHECKSUM_CRC32C.into()),
        ("PTR", block::PTR as u64),
        ("FORMAT_VERSION", label::FORMAT_VERSION.into()),
        ("BEAT_AT", geo::BEAT_AT),
        ("HOST_NAME_MAX", beat::HOST_NAME_MAX as u64),
        ("VOLUME_LABEL_MAX", label::VOLUME_LABEL_MAX as u64),
        ("ROOT_SLOTS", geo::ROOT_SLOTS as u64),
        ("ROOT_STRIDE", geo::ROOT_STRIDE),
        ("ROOTS_AT", geo::ROOTS_AT),
        ("SPACE_AT", geo::SPACE_AT),
        ("ZONE_BLOCKS_MAX", geo::ZONE_BLOCKS_MAX.into()),
        ("ZONE_BLOCKS_MIN", geo::ZONE_BLOCKS_MIN.into()),
        ("SPACE_FANOUT", geo::SPACE_FANOUT),
        ("ZONE_UNITS", geo::ZONE_UNITS.into()),
        ("SPACE_LEVELS_MAX", geo::SPACE_LEVELS_MAX as u64),
        ("LOG_BLOCKS_MIN", geo::LOG_BLOCKS_MIN.into()),
        ("LOG_BLOCKS_MAX", geo::LOG_BLOCKS_MAX.into()),
        ("BLOCKS_MAX", geo::BLOCKS_MAX),
        ("ENTRY", space::ENTRY as u64),
        ("BITS", space::BITS as u64),
        ("CHAIN_MAX", root::CHAIN_MAX as u64),
        ("DEAD_LISTS_MAX", root::DEAD_LISTS_MAX as u64),
        ("DEAD_MAX", dead::DEAD_MAX as u64),
        ("VALUE_MAX", item::VALUE_MAX as u64),
        ("INLINE_MAX", item::INLINE_MAX as u64),
        ("EXTENT_BLOCKS_MAX", item::EXTENT_BLOCKS_MAX.into()),
        ("KEY", item::KEY as u64),
        ("XATTR_CHUNK", item::XATTR_CHUNK as u64),
        ("INODE", item::INODE as u64),
        ("EVENTS_MAX", event::EVENTS_MAX),
        ("EVENT_SEQUENCE_END", event::EVENT_SEQUENCE_END),
        ("EVENT_HEAD", event::EVENT_HEAD as u64),
        ("COOKIE_MIN", item::COOKIE_MIN),
        ("COOKIE_END", item::COOKIE_END),
        ("LEAF_ENTRY", node::LEAF_ENTRY as u64),
        ("INNER_ENTRY", node::INNER_ENTRY as u64),
        ("INNER_MAX", node::INNER_MAX as u64),
        ("LEVEL_MAX", node::LEVEL_MAX.into()),
    ])
}

fn cells(row: &str) -> Vec<&str> {
    row.trim().trim_matches('|').split('|').map(str::trim).collect()
}

#[test]
fn constants_have_the_values_of_the_code() {
    let document = document();
    let mut documented = BTreeMap::new();
    for line in document.lines().filter(|line| line.starts_with("| `")) {
        let cells = cells(line);
        let value: u64 = cells[1].parse().unwrap_or_else(|_| panic!("not a number: {line}"));
        documented.insert(cells[0].trim_matches('`').to_owned(), value);
    }
    let code = constants();
    for (name, value) in &code {
        assert_eq!(documented.get(*name), Some(value), "{name} in docs/FORMAT.md");
    }
    assert_eq!(documented.len(), code.len(), "docs/FORMAT.md names a constant that this test does not know");
    for (name, text) in format_sources() {
        for line in text.lines() {
            let Some(rest) = line.strip_prefix("pub const ") else { continue };
            let constant = rest.split(':').next().expect("a name");
            assert!(code.contains_key(constant), "{name}: {constant} is missing in docs/FORMAT.md and in this test");
        }
    }
}

#[test]
fn worked_sizes_are_the_geometry_s() {
    let document = document();
    for (name, blocks) in [("16 MiB", 4096_u64), ("1 GiB", 1 << 18), ("1 TiB", 1 << 28), ("1 PiB", 1 << 38)] {
        let log_blocks = (blocks / 32).clamp(64, 8192) as u32; // as volume::format has it
        let g = Geometry::new(blocks, geo::ZONE_BLOCKS_MAX, log_blocks).expect("a possible volume");
        let nodes = g.space_nodes.iter().map(u64::to_string).collect::<Vec<_>>().join(" + ");
        let row = format!(
            "| {name} | {blocks} | {log_blocks} | {nodes} | {} | {} | {} | {} | {} |",
            g.log_at,
            g.zones_at,
            g.zones,
            g.zone_len(g.zones - 1),
            2 * g.zones
        );
        assert!(document.contains(&row), "docs/FORMAT.md should say:\n{row}");
    }
}

/// Bytes as a table has them: `8`, `125 × 32`, or nothing where the length varies.
fn bytes_of(cell: &str) -> Option<u64> {
    if cell.is_empty() {
        return None;
    }
    Some(cell.split('×').map(|factor| factor.trim().parse::<u64>().expect("a number of bytes")).product())
}

#[test]
fn layout_tables_have_no_gap() {
    // Where each table of the document ends; tables of varying length end where that begins.
    let mut ends = Vec::new();
    let mut at: Option<u64> = None;
    for line in document().lines() {
        if line.starts_with("| at | bytes | field |") {
            at = Some(u64::MAX);
        } else if let (Some(expected), true) = (at, line.starts_with('|')) {
            if line.starts_with("|---") {
                continue;
            }
            let cells = cells(line);
            let begins: u64 = cells[0].parse().expect("an offset");
            assert!(expected == u64::MAX || expected == begins, "there is a gap before: {line}");
            at = Some(begins + bytes_of(cells[1]).unwrap_or(0));
        } else if let Some(end) = at.take() {
            ends.push(end);
        }
    }
    // header, pointer, label, heartbeat, root, entry, space node, bitmap, dead list, log record, key, inode, file map, dirent,
    // xattr, event, extent
    assert_eq!(ends, [64, 32, 4096, 4096, 4096, 32, 4096, 4096, 4096, 144, 24, 128, 8, 9, 5, 64, 32]);
}

#[test]
fn encoders_put_fields_where_the_tables_say() {
    let volume = Uuid([7; 16]);
    let le = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));

    let entry = SpaceEntry { birth: 3, sum: 9, free: 77, slot: 1 };
    let bytes = entry.encode();
    assert_eq!((le(&bytes, 0), le(&bytes, 8), le(&bytes, 16), bytes[24]), (3, 9, 77, 1));
    let bytes = space::encode_node(volume, 290, 4, 1, &[SpaceEntry::default(), entry]);
    assert_eq!((bytes[4], bytes[5], le(&bytes, 64 + 32), le(&bytes, 32)), (4, 1, 3, 290));

    let mut map = Bitmap::pristine(1000, false);
    map.backed = 5;
    map.set(9, 1);
    let bytes = map.encode(volume, 800, 3);
    assert_eq!((bytes[4], bytes[64], bytes[96], bytes[97]), (5, 5, 0b11, 0b10));

    let next = BlockPtr { addr: 9000, sum: 1, birth: 4 };
    let run = dead::Run { addr: 600, blocks: 3, birth: 2 };
    let bytes = dead::encode(volume, 800, 4, Some(next), &[run]);
    assert_eq!((bytes[4], le(&bytes, 64), le(&bytes, 96), bytes[104], le(&bytes, 112)), (6, 9000, 600, 3, 2));

    let beat = Beat {
        owner: Uuid([1; 16]),
        host: Uuid([2; 16]),
        boot: Uuid([3; 16]),
        sequence: 4,
        time_ns: 5,
        started: 6,
        process: 7,
        lease_ms: 8,
        state: BeatState::Released,
        name: "nm".into(),
    };
    let bytes = beat.encode(volume);
    assert_eq!((bytes[4], le(&bytes, 32), bytes[64], bytes[80], bytes[96]), (8, 24, 1, 2, 3));
    assert_eq!([le(&bytes, 112), le(&bytes, 120), le(&bytes, 128)], [4, 5, 6]);
    assert_eq!((bytes[136], bytes[140], bytes[144], &bytes[152..155]), (7, 8, 2, &b"nm\0"[..]));

    let key = Key::new(5, ItemKind::Extent, 8);
    let bytes = node::encode_leaf(volume, 500, 7, &[(key, [1, 2, 3])]);
    assert_eq!((bytes[4], le(&bytes, 64), le(&bytes, 72), bytes[80], bytes[88], bytes[90]), (7, 5, 8, 5, 3, 1));
    let bytes = node::encode_inner(volume, 500, 7, 1, &[(key, next)]);
    assert_eq!((le(&bytes, 64), le(&bytes, 88)), (5, 9000));

    assert_eq!(Dirent { ino: 9, file_type: 8, name: b"x".to_vec() }.encode(), b"\x09\0\0\0\0\0\0\0\x08x");
    assert_eq!(FileMap { blocks: 4 }.encode(), [4, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(item::encode_xattr(b"ab", b"cde"), [b"\x03\0\0\0\x02abcde".to_vec()]);

    let event = Event {
        slot: Some(3),
        replica: Uuid([9; 16]),
        place: "ab".into(),
        from: EventState::InSync,
        to: EventState::Out,
        cause: "c".into(),
        file: "def".into(),
        numbers: [5, 6, 7],
        ..Event::new(EventKind::Scrubbed, 4)
    };
    let bytes = event.encode(300);
    assert_eq!((event::event_key(300).off, &bytes[..13]), (300 << 16, &b"\x46\0\0\0\x08\x2c\x01\0\0\0\0\0\0"[..]));
    let value = &bytes[13..];
    assert_eq!(value[..5], [1, 5, 3, 1, 2]);
    assert_eq!((le(value, 8), value[16], le(value, 32), le(value, 40), le(value, 48)), (4, 9, 5, 6, 7));
    assert_eq!((value[56], value[58], value[60], &value[64..]), (2, 1, 3, &b"abcdef"[..]));

    let time = |sec| Time { sec, nsec: 1 };
    let inode = Inode {
        mode: 0o100_644,
        uid: 11,
        gid: 12,
        nlink: 13,
        size: 14,
        atime: time(15),
        mtime: time(16),
        ctime: time(17),
        btime: time(18),
        rdev: 19,
        flags: 0,
        parent: 20,
        parent_cookie: 21,
        generation: 22,
    };
    let bytes = inode.encode();
    assert_eq!([bytes[4], bytes[8], bytes[12], bytes[16]], [11, 12, 13, 14]);
    assert_eq!([bytes[24], bytes[36], bytes[48], bytes[60]], [15, 16, 17, 18]);
    assert_eq!([bytes[72], bytes[80], bytes[88], bytes[96]], [19, 20, 21, 22]);
}
