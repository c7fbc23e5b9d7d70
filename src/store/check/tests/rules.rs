//! Each broken rule is found as that rule, and doing what `Repairs` says leads back to a clean volume.

use super::*;
use crate::format::ExtentBody;
use crate::format::event::{Event, EventKind, event_key};
use crate::store::space::Class;

/// Do what the repairs say, as a repairing program would.
fn repair(v: &mut Volume, repairs: &Repairs) {
    for (ino, inode) in &repairs.inodes {
        v.put(Key::inode(*ino), inode.encode());
        v.inodes.insert(*ino, inode.clone());
    }
    for (ino, map) in &repairs.file_maps {
        v.put(Key::new(*ino, ItemKind::FileMap, 0), map.encode());
    }
    for ino in &repairs.orphans_to_add {
        v.put(Key::new(ORPHANS, ItemKind::Orphan, *ino), vec![0; 8]);
    }
    for ino in &repairs.orphans_to_drop {
        v.delete(Key::new(ORPHANS, ItemKind::Orphan, *ino));
    }
    for (directory, cookie, _) in &repairs.entries_to_drop {
        v.delete(Key::new(*directory, ItemKind::Dirent, *cookie));
    }
    for fix in &repairs.entries_to_retype {
        v.put(Key::new(fix.directory, ItemKind::Dirent, fix.cookie), fix.entry.encode());
    }
    for m in &repairs.entries_to_move {
        v.delete(Key::new(m.directory, ItemKind::Dirent, m.cookie));
        v.put(Key::new(m.directory, ItemKind::Dirent, m.to), m.entry.encode());
    }
    for key in &repairs.items_to_drop {
        v.delete(*key);
    }
    for ino in &repairs.ownerless {
        for (key, _) in v.store.scan(Key::inode(*ino), Key::inode(ino + 1), 1000).unwrap() {
            v.delete(key);
        }
    }
    for ino in &repairs.to_attach {
        let inode = v.inodes[ino].clone();
        let name = format!("#{ino}");
        let cookie = v.cookie(name.as_bytes());
        v.entry(ROOT_INO, name.as_bytes(), *ino, inode.mode);
        v.edit(ROOT_INO, |root| {
            root.size += 1;
            root.nlink += u32::from(inode.is_dir());
        });
        v.edit(*ino, |inode| (inode.parent, inode.parent_cookie) = (ROOT_INO, cookie));
    }
    if let Some(count) = repairs.inode_count {
        v.count(count as i64 - v.store.durable_root().inodes as i64);
        v.edit(ROOT_INO, |_| {});
    }
}

/// `plant` breaks a rule of a small volume (directories 16 `a` and 17 `a/b`, files 18 `a/f` and 19 `a/b/g`): the check
/// says `expected` (parts of texts, one for each finding) and repairs lead back to a clean volume.
fn broken(plant: impl FnOnce(&mut Volume), expected: &[&str]) {
    let mut v = Volume::empty(false);
    let a = v.make(ROOT_INO, b"a", DIR, b"");
    let b = v.make(a, b"b", DIR, b"");
    v.make(a, b"f", FILE, &[1; 20_000]);
    v.make(b, b"g", FILE, &[2; 50]);
    assert_eq!((a, b), (16, 17));
    let clean = v.check(false);
    assert!(clean.is_clean(), "{}", said(&clean));
    plant(&mut v);
    let report = v.check(false);
    let texts: Vec<String> = report.findings.iter().map(Finding::to_string).collect();
    for part in expected {
        assert!(texts.iter().any(|text| text.contains(part)), "no {part:?} in {texts:#?}");
    }
    assert_eq!(texts.len(), expected.len(), "{texts:#?}");
    assert!(report.worst() >= Some(Severity::Warning) && report.complete);
    if report.findings.iter().all(Finding::is_repairable) && report.repairs.zones.is_empty() {
        for _ in 0..2 {
            let report = v.check(false);
            repair(&mut v, &report.repairs);
        }
        let after = v.check(false);
        assert!(after.is_clean(), "{texts:#?}\nafter repair:\n{}", said(&after));
    }
}

#[test]
fn wrong_counts_are_found() {
    broken(|v| v.edit(18, |i| i.nlink = 3), &["/a/f (inode 18): says 3 links, has 1"]);
    broken(|v| v.edit(16, |i| i.nlink = 2), &["/a (inode 16): says 2 links, has 3"]);
    broken(|v| v.edit(17, |i| i.size = 9), &["/a/b (inode 17): says 9 entries, has 1"]);
    broken(|v| v.edit(1, |i| i.parent = 16), &["directory / (inode 1): says its parent is inode 16, it is 1"]);
    let count = |v: &mut Volume| {
        v.count(5);
        v.edit(18, |i| i.uid = 1);
    };
    broken(count, &["says 10 inodes, has 5"]);
    let map = |v: &mut Volume| {
        v.store.sync().unwrap();
        v.put(Key::new(18, ItemKind::FileMap, 0), FileMap { blocks: 77 }.encode());
    };
    broken(map, &["/a/f (inode 18): says 77 blocks, has 5"]);
    let next = |v: &mut Volume| {
        let ino = v.store.durable_root().next_ino + 100;
        v.add_inode(ino, FILE, 1, 0, (1, 0));
        v.entry(1, b"far", ino, FILE);
        v.edit(1, |i| i.size += 1);
        let report = v.check(false);
        assert_eq!(report.repairs.next_ino, Some(ino + 1), "{}", said(&report));
        v.delete(Key::inode(ino));
        v.delete(Key::new(1, ItemKind::Dirent, v.cookie(b"far")));
        v.edit(1, |i| i.size = 7);
        v.count(-1);
    };
    broken(next, &["says 7 entries, has 1"]);
}

#[test]
fn wrong_entries_are_found() {
    let add = |v: &mut Volume, directory: u64, name: &[u8], ino: u64, mode: u32| {
        v.entry(directory, name, ino, mode);
        v.edit(directory, |i| {
            i.size += 1;
            i.nlink += u32::from(mode == DIR);
        });
    };
    broken(|v| add(v, 16, b"gone", 999, FILE), &["\"gone\" names inode 999, which does not exist"]);
    broken(|v| add(v, 16, b"gone", 999, DIR), &["\"gone\" names inode 999"]);
    broken(|v| add(v, 1, b"again", 17, DIR), &["directory / (inode 1): \"again\" is a second name of directory 17"]);
    let retype = |v: &mut Volume| {
        v.delete(Key::new(16, ItemKind::Dirent, v.cookie(b"f")));
        v.entry(16, b"f", 18, 0o120_777);
    };
    broken(retype, &["\"f\" says that inode 18 is of type 0xa, it is 0x8"]);
    let as_dir = |v: &mut Volume| {
        v.entry(16, b"f", 18, DIR);
        v.edit(16, |i| i.nlink += 1);
    };
    broken(as_dir, &["\"f\" says that inode 18 is of type 0x4, it is 0x8"]);
    broken(|v| v.edit(17, |i| i.parent = 1), &["says its parent is inode 1, it is 16"]);
    let unreachable = |v: &mut Volume| {
        v.delete(Key::new(16, ItemKind::Dirent, v.cookie(b"f")));
        v.edit(16, |i| i.size -= 1);
    };
    broken(unreachable, &["inode 18: no directory names it"]);
    let unreachable_dir = |v: &mut Volume| {
        v.delete(Key::new(16, ItemKind::Dirent, v.cookie(b"b")));
        v.edit(16, |i| (i.size, i.nlink) = (i.size - 1, i.nlink - 1));
    };
    broken(unreachable_dir, &["inode 17: no directory names it"]);
    let ring = |v: &mut Volume| {
        v.delete(Key::new(1, ItemKind::Dirent, v.cookie(b"a")));
        v.edit(1, |i| (i.size, i.nlink) = (0, 2));
        add(v, 17, b"a", 16, DIR);
        let cookie = v.cookie(b"a");
        v.edit(16, |i| (i.parent, i.parent_cookie) = (17, cookie));
    };
    broken(ring, &["directory inode 16: is its own ancestor"]);
    let beside = |v: &mut Volume, name: &[u8]| {
        v.put(Key::new(16, ItemKind::Dirent, v.cookie(b"f") + 1), entry(name, 18, FILE));
        v.edit(16, |i| i.size += 1);
        v.edit(18, |i| i.nlink += 1);
    };
    broken(|v| beside(v, b"other"), &["\"other\" stands under the wrong cookie"]);
    broken(|v| beside(v, b"f"), &["directory /a (inode 16): \"f\" stands there twice"]);
}

#[test]
fn wrong_orphans_and_ownerless_items_are_found() {
    let orphan = |v: &mut Volume, ino| v.put(Key::new(ORPHANS, ItemKind::Orphan, ino), vec![0; 8]);
    broken(|v| orphan(v, 18), &["is on the list of orphans and has a name"]);
    broken(|v| orphan(v, 500), &["list of orphans: inode 500 does not exist"]);
    broken(|v| v.add_inode(20, FILE, 0, 0, (1, 0)), &["inode 20: has no link and is not on the list of orphans"]);
    let linked = |v: &mut Volume| {
        v.add_inode(20, FILE, 2, 0, (1, 0));
        orphan(v, 20);
    };
    broken(linked, &["inode 20: says 2 links, has 0"]);
    broken(|v| v.xattr(40, b"user.x", 4000), &["inode 40 does not exist, but has 3 items"]);
    let cut = |v: &mut Volume| {
        v.xattr(18, b"user.x", 4000);
        v.delete(Key::new(18, ItemKind::Xattr, 77 << 24 | 2));
    };
    broken(cut, &["extended attribute at 0x4d000000: lacks its last parts"]);
    let tail = |v: &mut Volume| {
        v.xattr(18, b"user.x", 4000);
        v.delete(Key::new(18, ItemKind::Xattr, 77 << 24));
    };
    broken(tail, &["follows its first part", "follows its first part"]);
    broken(|v| v.put(Key::new(16, ItemKind::Dirent, 5000), vec![1, 2]), &["has a name of 1 to 255 bytes"]);
}

#[test]
fn events_are_known_and_nothing_else_passes_for_one() {
    let put = |v: &mut Volume, at, number| {
        v.put(event_key(at), Event::new(EventKind::Mounted, 1).encode(number));
    };
    let twice = |v: &mut Volume| {
        put(v, 5, 5);
        put(v, 6, 7);
    };
    broken(twice, &["event: is named as its key"]);
    let short = |v: &mut Volume| {
        put(v, 1, 1);
        v.put(event_key(2), vec![8, 0, 0, 0, 1, b'x', 1, 1, 1, 1, 1, 1, 1, 1]);
    };
    broken(short, &["event: is named as its key"]);
    broken(|v| v.xattr(ORPHANS, b"user.x", 10), &["event: is named as its key"]);
}

#[test]
fn wrong_space_is_found() {
    // The extents of a file are these now, and have so many blocks.
    let put = |v: &Volume, ino, first, extent: Extent, blocks| {
        v.put(Key::new(ino, ItemKind::Extent, first), extent.encode());
        v.put(Key::new(ino, ItemKind::FileMap, 0), FileMap { blocks }.encode());
    };
    let leak = |v: &mut Volume| {
        let span = v.store.allocator().alloc(v.store.mirror(), Class::Data, 9).unwrap();
        v.store.allocator().claim(v.store.mirror(), span).unwrap();
        v.edit(18, |i| i.uid = 1);
    };
    broken(leak, &["9 blocks are marked allocated and not in use"]);
    let free = |v: &mut Volume| {
        v.free(v.extent(18).1.addr().unwrap() + 1, 2);
        v.edit(18, |i| i.uid = 1);
    };
    broken(free, &["2 blocks in use are marked free"]);
    let twice = |v: &mut Volume| {
        let (_, other) = v.extent(18);
        let blocks = 1 + u64::from(other.blocks);
        put(v, 19, 10, Extent { birth: 1, ..other }, blocks);
    };
    broken(twice, &["of /a/b/g (inode 19): 5 blocks at"]);
    let outside = |v: &mut Volume| {
        put(v, 19, 10, Extent { blocks: 2, birth: 1, body: ExtentBody::Unwritten { addr: 3 } }, 3);
    };
    broken(outside, &["2 blocks at 3 cannot hold it"]);
    let overlap = |v: &mut Volume| {
        put(v, 18, 0, Extent { blocks: 1, birth: 1, body: ExtentBody::Inline(vec![1]) }, 6);
    };
    broken(overlap, &["/a/f (inode 18): two extents cover block 0"]);
}
