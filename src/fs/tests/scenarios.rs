//! One scenario per operation.

use super::*;
use crate::format::{BLOCK, FILE_SIZE_MAX, LINK_MAX};
use std::sync::atomic::{AtomicBool, Ordering};

const BLOCK_U64: u64 = BLOCK as u64;

macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod in_memory {
            $(#[test] fn $name() { super::$name(&super::Rig::memory().1) })*
        }
        mod on_disks {
            $(#[test] fn $name() { super::$name(&super::Rig::disks(1)) })*
        }
    };
}

on_both! {
    made_things_are_found_listed_and_gone,
    listings_resume_at_every_cookie_in_spite_of_collisions,
    colliding_names_keep_their_cookies,
    bytes_are_read_as_written_and_cut_ends_stay_cut,
    hard_links_count_and_share,
    large_files_go_in_the_background,
    create_opens_what_is_there_unless_exclusive,
    renames_do_what_the_manual_says,
    exchange_swaps_and_whiteout_leaves_a_mark,
    times_modes_and_owners,
    late_pages_do_not_move_a_time_set_by_hand,
    access_times_are_relative_and_reach_the_store,
    holes_are_told_only_when_nobody_writes,
    ranges_are_reserved_punched_and_zeroed,
    copies_inside_and_between_files,
    extended_attributes_of_all_lengths,
    acls_and_modes_stay_in_step,
}

fn file(filesystem: &Filesystem, name: &[u8], data: &[u8]) -> u64 {
    let attr = filesystem.mknod(ROOT_INO, name, S_IFREG | 0o644, 0, &USER).unwrap();
    assert_eq!(filesystem.write(attr.ino, 0, data, false, false).unwrap(), data.len() as u32);
    attr.ino
}

fn names(filesystem: &Filesystem, dir: u64) -> Vec<Vec<u8>> {
    let mut all: Vec<_> = filesystem.readdir(dir, 0, 10_000, false).unwrap().into_iter().map(|e| e.name).collect();
    all.sort();
    all
}

fn rename(filesystem: &Filesystem, from: (u64, &[u8]), to: (u64, &[u8]), flags: u32) -> Result<(), FsError> {
    filesystem.rename(from.0, from.1, to.0, to.1, flags, &USER)
}

fn made_things_are_found_listed_and_gone(rig: &Rig) {
    let fs = rig.mount();
    let dir = fs.mkdir(ROOT_INO, b"dir", 0o750, &USER).unwrap();
    assert_eq!((dir.mode, dir.nlink, dir.uid, dir.gid), (S_IFDIR | 0o750, 2, 1000, 100));
    let umask = Caller { umask: 0o027, ..USER };
    let node = fs.mknod(dir.ino, b"fifo", S_IFIFO | 0o666, 0, &umask).unwrap();
    assert_eq!(node.mode, S_IFIFO | 0o640);
    let device = fs.mknod(dir.ino, b"device", S_IFCHR | 0o600, 0x103, &USER).unwrap();
    assert_eq!(device.rdev, 0x103);
    let link = fs.symlink(dir.ino, b"link", &[b'x'; 3000], &USER).unwrap();
    assert_eq!((link.size, link.mode), (3000, S_IFLNK | 0o777));
    assert_eq!(fs.readlink(link.ino).unwrap(), vec![b'x'; 3000]);
    assert_eq!(fs.listxattr(link.ino).unwrap(), b"");
    assert_eq!(errno(fs.getxattr(link.ino, xattr::SYMLINK_TARGET)), libc::EOPNOTSUPP);
    assert_eq!(fs.lookup(dir.ino, b"fifo").unwrap().ino, node.ino);
    assert_eq!(fs.lookup(dir.ino, b"..").unwrap().ino, ROOT_INO);
    assert_eq!(fs.lookup(dir.ino, b".").unwrap().ino, dir.ino);
    assert_eq!(errno(fs.lookup(12345, b".")), libc::ESTALE);
    assert_eq!(errno(fs.lookup(dir.ino, b"nothing")), libc::ENOENT);
    assert_eq!(errno(fs.lookup(node.ino, b"x")), libc::ENOTDIR);
    assert_eq!(errno(fs.mkdir(ROOT_INO, b"dir", 0o755, &USER)), libc::EEXIST);
    assert_eq!(errno(fs.mkdir(ROOT_INO, &[b'n'; 256], 0o755, &USER)), libc::ENAMETOOLONG);
    assert_eq!(names(&fs, dir.ino), [&b"."[..], b"..", b"device", b"fifo", b"link"]);
    assert_eq!(fs.getattr(dir.ino).unwrap().size, 3);
    assert_eq!(fs.getattr(ROOT_INO).unwrap().nlink, 3);
    rig.check();
    assert_eq!(errno(fs.rmdir(ROOT_INO, b"dir")), libc::ENOTEMPTY);
    assert_eq!(errno(fs.unlink(ROOT_INO, b"dir")), libc::EISDIR);
    assert_eq!(errno(fs.rmdir(dir.ino, b"fifo")), libc::ENOTDIR);
    for name in [&b"fifo"[..], b"device", b"link"] {
        fs.unlink(dir.ino, name).unwrap();
    }
    fs.rmdir(ROOT_INO, b"dir").unwrap();
    assert_eq!(errno(fs.mknod(dir.ino, b"late", S_IFREG, 0, &USER)), libc::ESTALE);
    assert_eq!(rig.items().len(), 1);
    rig.check();
}

fn listings_resume_at_every_cookie_in_spite_of_collisions(rig: &Rig) {
    let fs = rig.mount();
    for i in 0..300 {
        fs.mknod(ROOT_INO, format!("file {i}").as_bytes(), S_IFREG, 0, &USER).unwrap();
    }
    let all = fs.readdir(ROOT_INO, 0, 1000, true).unwrap();
    assert_eq!(all.len(), 302);
    assert!(all.windows(2).all(|pair| pair[0].cookie < pair[1].cookie));
    assert!(all.iter().all(|entry| entry.cookie < 1 << 63));
    assert!(all[2..].iter().all(|entry| entry.attr.as_ref().unwrap().ino == entry.ino));
    for at in [0, 1, 2, 7, 150, 301] {
        assert_eq!(fs.readdir(ROOT_INO, all[at].cookie, 1000, true).unwrap(), all[at + 1..]);
    }
    let mut one_by_one = vec![];
    let mut after = 0;
    while let Some(entry) = fs.readdir(ROOT_INO, after, 1, false).unwrap().pop() {
        after = entry.cookie;
        one_by_one.push(entry.name);
    }
    assert_eq!(one_by_one, all.iter().map(|entry| entry.name.clone()).collect::<Vec<_>>());
}

fn colliding_names_keep_their_cookies(rig: &Rig) {
    let fs = rig.mount();
    let ino = fs.mknod(ROOT_INO, b"name", S_IFREG, 0, &USER).unwrap().ino;
    // Two entries that stand where "other" would: as if the hashes collided.
    let base = fs.base(b"other");
    let mut transaction =
        rig.store.begin(crate::store::Need { items: 2, data_blocks: 0, may_use_reserve: true }).unwrap();
    for (sequence, name) in [(0, &b"first"[..]), (2, b"third")] {
        let entry = Dirent { ino, file_type: 8, name: name.to_vec() };
        transaction.put(Key::new(ROOT_INO, ItemKind::Dirent, base + sequence), entry.encode());
    }
    transaction.commit();
    fs.mknod(ROOT_INO, b"other", S_IFREG, 0, &USER).unwrap();
    let all = fs.readdir(ROOT_INO, 0, 100, false).unwrap();
    let cookie = all.iter().find(|entry| entry.name == b"other").unwrap().cookie;
    assert_eq!(cookie, base + 1);
    fs.unlink(ROOT_INO, b"other").unwrap();
    assert_eq!(errno(fs.lookup(ROOT_INO, b"other")), libc::ENOENT);
    assert!(fs.readdir(ROOT_INO, cookie, 100, false).unwrap().iter().any(|entry| entry.name == b"third"));
}

fn bytes_are_read_as_written_and_cut_ends_stay_cut(rig: &Rig) {
    let fs = rig.mount();
    let ino = file(&fs, b"file", &[1; 10_000]);
    assert_eq!(fs.write(ino, 9_000, &[2; 3_000], false, false).unwrap(), 3_000);
    let mut expected = vec![1; 9_000];
    expected.extend([2; 3_000]);
    assert_eq!(read_all(&fs, ino), expected);
    let mut out = vec![9];
    fs.read(ino, 11_990, &mut out, 100).unwrap();
    assert_eq!(out, [2; 10]);
    fs.read(ino, 12_000, &mut out, 100).unwrap();
    assert!(out.is_empty());
    let resize = |size| fs.setattr(ino, &USER, &SetAttr { size: Some(size), ..SetAttr::default() }).unwrap();
    assert_eq!(resize(5_000).size, 5_000);
    assert_eq!(resize(20_000).blocks512, 16);
    expected.truncate(5_000);
    expected.resize(20_000, 0);
    assert_eq!(read_all(&fs, ino), expected);
    assert_eq!(errno(fs.write(ino, FILE_SIZE_MAX, b"x", false, false)), libc::EFBIG);
    assert_eq!(fs.write(ino, FILE_SIZE_MAX - 2, b"xyz", false, false).unwrap(), 2);
    resize(0);
    assert!(rig.owners().is_empty());
    rig.check();
}

#[test]
fn a_full_volume_refuses_writes_and_lets_go() {
    let (store, rig) = Rig::memory();
    let fs = rig.mount();
    let ino = file(&fs, b"file", &[1; 8 * BLOCK]);
    store.set_free(256 + 3);
    assert_eq!(fs.write(ino, 8 * BLOCK_U64, &[2; 3 << 20], false, false).unwrap() as usize, (1 << 20) - 8 * BLOCK);
    store.set_free(2);
    assert_eq!(errno(fs.write(ino, 1 << 20, &[3; 3 * BLOCK], false, false)), libc::ENOSPC);
    assert_eq!(errno(fs.fallocate(ino, 1 << 30, 3 * BLOCK_U64, 0)), libc::ENOSPC);
    assert_eq!(read_all(&fs, ino)[..10], [1; 10]);
    assert_eq!(fs.getattr(ino).unwrap().size, 1 << 20);
    store.set_free(0);
    fs.setattr(ino, &USER, &SetAttr { size: Some(100), ..SetAttr::default() }).unwrap();
    fs.unlink(ROOT_INO, b"file").unwrap();
    rig.check();
    assert_eq!(fs.statfs().bsize, 4096);
}

/// What fallocate promised on a volume that is full by now: the blocks take data, in small pieces and again and again.
#[test]
fn a_full_volume_takes_what_was_set_aside() {
    // SEMANTICS: SPACE-4
    let rig = Rig::disks(5);
    let fs = rig.mount();
    let ino = file(&fs, b"reserved", b"");
    const RESERVED: u64 = 6 << 20;
    fs.fallocate(ino, 0, RESERVED, 0).unwrap();
    let filler = file(&fs, b"filler", b"");
    let mut full = 0;
    for piece in [1 << 20, BLOCK_U64] {
        loop {
            match fs.write(filler, full, &vec![7; piece as usize], false, false) {
                Ok(count) => full += u64::from(count),
                Err(FsError::Store(StoreError::NoSpace)) => break,
                Err(other) => panic!("{other}"),
            }
        }
    }
    // Nearly four times what is kept back, first in pieces of less than a block.
    for (round, piece) in [(1_u8, 100_000), (2, 1_000_000), (3, 1 << 20), (4, 1 << 20)] {
        let mut at = 0;
        while at < RESERVED {
            let length = piece.min(RESERVED - at);
            let data = vec![round; length as usize];
            assert_eq!(fs.write(ino, at, &data, false, false).unwrap(), length as u32, "round {round} at {at}");
            at += length;
        }
    }
    assert_eq!(errno(fs.write(filler, full + (1 << 20), &[7; 1 << 20], false, false)), libc::ENOSPC);
    assert_eq!(read_all(&fs, ino), vec![4; RESERVED as usize]);
    assert!(read_all(&fs, filler).iter().all(|byte| *byte == 7));
    fs.unlink(ROOT_INO, b"filler").unwrap();
    settle(&fs);
    rig.check();
}

fn hard_links_count_and_share(rig: &Rig) {
    let fs = rig.mount();
    let ino = file(&fs, b"one", b"data");
    let dir = fs.mkdir(ROOT_INO, b"dir", 0o755, &USER).unwrap().ino;
    assert_eq!(fs.link(ino, dir, b"two").unwrap().nlink, 2);
    assert_eq!(errno(fs.link(dir, ROOT_INO, b"dir2")), libc::EPERM);
    assert_eq!(errno(fs.link(ino, dir, b"two")), libc::EEXIST);
    fs.unlink(ROOT_INO, b"one").unwrap();
    assert_eq!(read_all(&fs, fs.lookup(dir, b"two").unwrap().ino), b"data");
    assert_eq!(fs.path_hint(ino), "…", "the hint went with the name");
    fs.link(ino, dir, b"three").unwrap();
    assert_eq!(fs.path_hint(ino), "/dir/three");
    rig.check();
    let (entry, _) = fs.load(ino).unwrap();
    entry.state.lock().inode.as_mut().unwrap().nlink = LINK_MAX;
    assert_eq!(errno(fs.link(ino, ROOT_INO, b"four")), libc::EMLINK);
}

#[test]
fn open_files_outlive_their_names_and_a_crash_ends_them() {
    let (store, rig) = Rig::memory();
    let fs = rig.mount();
    let (attr, handle) = fs.create(ROOT_INO, b"file", 0o600, libc::O_RDWR, &USER).unwrap();
    fs.write(attr.ino, 0, &[5; 9000], false, false).unwrap();
    let second = fs.open(attr.ino, libc::O_RDONLY).unwrap();
    fs.unlink(ROOT_INO, b"file").unwrap();
    assert_eq!(errno(fs.lookup(ROOT_INO, b"file")), libc::ENOENT);
    settle(&fs);
    assert_eq!(read_all(&fs, attr.ino), [5; 9000]);
    assert_eq!(fs.getattr(attr.ino).unwrap().nlink, 0);
    assert_eq!(errno(fs.link(attr.ino, ROOT_INO, b"back")), libc::ENOENT);
    rig.check();
    let crashed = Rig::of_memory(Arc::new(store.copy()));
    fs.release(attr.ino, handle);
    settle(&fs);
    assert_eq!(read_all(&fs, attr.ino), [5; 9000]);
    fs.release(attr.ino, second);
    settle(&fs);
    assert_eq!(errno(fs.getattr(attr.ino)), libc::ESTALE);
    assert_eq!(rig.items().len(), 1);
    rig.check();
    let again = crashed.mount();
    settle(&again);
    assert_eq!(crashed.items().len(), 1);
    crashed.check();
}

fn large_files_go_in_the_background(rig: &Rig) {
    let fs = rig.mount();
    let ino = file(&fs, b"file", &vec![1; 17 << 20]);
    fs.setxattr(ino, b"user.long", &[7; 5000], 0, &USER).unwrap();
    fs.unlink(ROOT_INO, b"file").unwrap();
    rig.check();
    assert_eq!(rig.owners(), [ino]);
    assert_eq!(errno(fs.open(ino, libc::O_RDONLY)), libc::ESTALE);
    settle(&fs);
    assert_eq!(rig.items().len(), 1);
    rig.check();
}

fn create_opens_what_is_there_unless_exclusive(rig: &Rig) {
    let fs = rig.mount();
    let (attr, first) = fs.create(ROOT_INO, b"file", 0o600, libc::O_RDWR | libc::O_EXCL, &USER).unwrap();
    fs.write(attr.ino, 0, b"content", false, false).unwrap();
    assert_eq!(errno(fs.create(ROOT_INO, b"file", 0o600, libc::O_RDWR | libc::O_EXCL, &USER)), libc::EEXIST);
    let (same, second) = fs.create(ROOT_INO, b"file", 0o600, libc::O_RDWR | libc::O_TRUNC, &USER).unwrap();
    assert_eq!((same.ino, same.size), (attr.ino, 0));
    assert_ne!(first, second);
}

/// Goal: what was done is not answered with an error, and an error leaves no handle behind.
#[test]
fn blocks_that_cannot_be_counted_undo_nothing() {
    let (store, rig) = Rig::memory();
    let fs = rig.mount();
    let next = store.new_ino() + 1;
    store.lose(Key::new(next, ItemKind::FileMap, 0));
    let (attr, handle) = fs.create(ROOT_INO, b"file", 0o600, libc::O_RDWR, &USER).unwrap();
    assert_eq!((attr.ino, attr.blocks512), (next, 0));
    assert_eq!(errno(fs.getattr(next)), libc::EIO);
    assert_eq!(fs.link(next, ROOT_INO, b"second").unwrap().nlink, 2);
    let mode = SetAttr { mode: Some(0o640), ..SetAttr::default() };
    assert_eq!(fs.setattr(next, &USER, &mode).unwrap().mode, S_IFREG | 0o640);
    assert_eq!(errno(fs.create(ROOT_INO, b"file", 0o600, libc::O_RDWR, &USER)), libc::EIO);
    let (entry, _) = fs.load(next).unwrap();
    assert_eq!(entry.state.lock().opens, 1);
    fs.release(next, handle);
    assert!(!entry.is_pinned());
}

fn renames_do_what_the_manual_says(rig: &Rig) {
    let fs = rig.mount();
    let a = fs.mkdir(ROOT_INO, b"a", 0o755, &USER).unwrap().ino;
    let b = fs.mkdir(a, b"b", 0o755, &USER).unwrap().ino;
    let f = file(&fs, b"f", b"f");
    let g = file(&fs, b"g", b"g");
    assert_eq!(errno(rename(&fs, (ROOT_INO, b"a"), (b, b"x"), 0)), libc::EINVAL);
    assert_eq!(errno(rename(&fs, (ROOT_INO, b"a"), (a, b"x"), 0)), libc::EINVAL);
    assert_eq!(errno(rename(&fs, (ROOT_INO, b"f"), (ROOT_INO, b"a"), 0)), libc::EISDIR);
    assert_eq!(errno(rename(&fs, (ROOT_INO, b"a"), (ROOT_INO, b"f"), 0)), libc::ENOTDIR);
    assert_eq!(errno(rename(&fs, (a, b"b"), (ROOT_INO, b"a"), 0)), libc::ENOTEMPTY);
    assert_eq!(errno(rename(&fs, (ROOT_INO, b"no"), (ROOT_INO, b"f"), 0)), libc::ENOENT);
    assert_eq!(errno(rename(&fs, (ROOT_INO, b"f"), (ROOT_INO, b"g"), RENAME_NOREPLACE)), libc::EEXIST);
    assert_eq!(errno(rename(&fs, (ROOT_INO, b"f"), (ROOT_INO, b"g"), RENAME_EXCHANGE | 1)), libc::EINVAL);
    rename(&fs, (ROOT_INO, b"f"), (ROOT_INO, b"g"), 0).unwrap();
    assert_eq!(errno(fs.getattr(g)), libc::ESTALE);
    assert_eq!(fs.lookup(ROOT_INO, b"g").unwrap().ino, f);
    assert_eq!(fs.path_hint(f), "/g");
    rename(&fs, (a, b"b"), (ROOT_INO, b"c"), 0).unwrap();
    assert_eq!(fs.lookup(b, b"..").unwrap().ino, ROOT_INO);
    assert_eq!((fs.getattr(a).unwrap().nlink, fs.getattr(ROOT_INO).unwrap().nlink), (2, 4));
    rename(&fs, (ROOT_INO, b"c"), (ROOT_INO, b"a"), 0).unwrap();
    assert_eq!(fs.lookup(ROOT_INO, b"a").unwrap().ino, b);
    assert_eq!(errno(fs.getattr(a)), libc::ESTALE);
    rig.check();
    fs.link(f, b, b"same").unwrap();
    rename(&fs, (ROOT_INO, b"g"), (b, b"same"), 0).unwrap();
    assert_eq!(fs.getattr(f).unwrap().nlink, 2, "two names of one file: nothing happens");
    rename(&fs, (ROOT_INO, b"g"), (ROOT_INO, b"g"), 0).unwrap();
    rig.check();
}

fn exchange_swaps_and_whiteout_leaves_a_mark(rig: &Rig) {
    let fs = rig.mount();
    let a = fs.mkdir(ROOT_INO, b"a", 0o755, &USER).unwrap().ino;
    let b = fs.mkdir(a, b"b", 0o755, &USER).unwrap().ino;
    let f = file(&fs, b"f", b"f");
    rename(&fs, (a, b"b"), (ROOT_INO, b"f"), RENAME_EXCHANGE).unwrap();
    assert_eq!((fs.lookup(ROOT_INO, b"f").unwrap().ino, fs.lookup(a, b"b").unwrap().ino), (b, f));
    assert_eq!(fs.lookup(b, b"..").unwrap().ino, ROOT_INO);
    rig.check();
    assert_eq!(errno(rename(&fs, (ROOT_INO, b"a"), (a, b"b"), RENAME_EXCHANGE)), libc::EINVAL);
    assert_eq!(errno(rename(&fs, (a, b"b"), (ROOT_INO, b"a"), RENAME_EXCHANGE)), libc::EINVAL);
    assert_eq!(errno(rename(&fs, (a, b"b"), (ROOT_INO, b"no"), RENAME_EXCHANGE)), libc::ENOENT);
    rename(&fs, (a, b"b"), (ROOT_INO, b"moved"), RENAME_WHITEOUT).unwrap();
    let mark = fs.lookup(a, b"b").unwrap();
    assert_eq!((mark.mode & S_IFMT, mark.rdev), (S_IFCHR, 0));
    assert_eq!(fs.lookup(ROOT_INO, b"moved").unwrap().ino, f);
    rig.check();
}

fn times_modes_and_owners(rig: &Rig) {
    let fs = rig.mount();
    let ino = file(&fs, b"f", b"f");
    let early = Time { sec: -5_000_000_000, nsec: 7 };
    let ctime = Time { sec: 9, nsec: 1 };
    let wanted = SetAttr {
        atime: Some(TimeOrNow::Time(early)),
        mtime: Some(TimeOrNow::Time(early)),
        ctime: Some(ctime),
        mode: Some(0o6775),
        ..SetAttr::default()
    };
    let attr = fs.setattr(ino, &USER, &wanted).unwrap();
    assert_eq!((attr.atime, attr.mtime, attr.ctime, attr.mode), (early, early, ctime, S_IFREG | 0o6775));
    let bad = Time { sec: 0, nsec: 1_000_000_000 };
    let wanted = SetAttr { mtime: Some(TimeOrNow::Time(bad)), ..SetAttr::default() };
    assert_eq!(errno(fs.setattr(ino, &USER, &wanted)), libc::EINVAL);
    let attr = fs.setattr(ino, &USER, &SetAttr { uid: Some(7), gid: Some(8), ..SetAttr::default() }).unwrap();
    assert_eq!((attr.uid, attr.gid, attr.mode & 0o7777), (7, 8, 0o775));
    fs.setattr(ino, &USER, &SetAttr { mode: Some(0o4711), ..SetAttr::default() }).unwrap();
    fs.write(ino, 0, b"x", true, false).unwrap();
    assert_eq!(fs.getattr(ino).unwrap().mode & 0o7777, 0o711);
    let dir = fs.mkdir(ROOT_INO, b"shared", 0o2777, &Caller { gid: 55, ..USER }).unwrap().ino;
    let inside = fs.mkdir(dir, b"inside", 0o755, &USER).unwrap();
    assert_eq!((inside.gid, inside.mode & 0o7777), (55, 0o2755));
    assert_eq!(fs.mknod(dir, b"plain", S_IFREG | 0o644, 0, &USER).unwrap().gid, 55);
    assert_eq!(errno(fs.setattr(dir, &USER, &SetAttr { size: Some(1), ..SetAttr::default() })), libc::EISDIR);
}

#[test]
fn what_changes_nothing_changes_the_change_time_and_what_adds_bytes_both() {
    let (_, rig) = Rig::memory();
    let fs = rig.mount();
    let ino = file(&fs, b"f", b"f");
    let before = fs.getattr(ino).unwrap();
    let attr = fs.setattr(ino, &USER, &SetAttr::default()).unwrap();
    assert!(attr.ctime > before.ctime);
    assert_eq!(attr, Attr { ctime: attr.ctime, ..before });
    fs.fallocate(ino, 0, 100, libc::FALLOC_FL_KEEP_SIZE).unwrap();
    assert_eq!(fs.getattr(ino).unwrap().mtime, attr.mtime);
    fs.fallocate(ino, 0, 100, 0).unwrap();
    let longer = fs.getattr(ino).unwrap();
    assert_eq!((longer.size, longer.mtime), (100, longer.ctime));
    assert!(longer.mtime > attr.mtime);
    fs.fallocate(ino, 0, 50, 0).unwrap();
    assert_eq!(fs.getattr(ino).unwrap().mtime, longer.mtime);
}

fn late_pages_do_not_move_a_time_set_by_hand(rig: &Rig) {
    let fs = rig.mount();
    let ino = file(&fs, b"f", b"f");
    let handle = fs.open(ino, libc::O_RDWR).unwrap();
    let time = Time { sec: 5, nsec: 0 };
    let wanted = SetAttr { mtime: Some(TimeOrNow::Time(time)), ..SetAttr::default() };
    fs.setattr(ino, &USER, &wanted).unwrap();
    fs.write(ino, 0, b"late", false, true).unwrap();
    assert_eq!(fs.getattr(ino).unwrap().mtime, time);
    fs.write(ino, 0, b"real", false, false).unwrap();
    assert_ne!(fs.getattr(ino).unwrap().mtime, time);
    fs.setattr(ino, &USER, &wanted).unwrap();
    fs.release(ino, handle);
    fs.write(ino, 0, b"later", false, true).unwrap();
    assert_ne!(fs.getattr(ino).unwrap().mtime, time);
}

/// Goal: a time set by hand holds for pages that were written before it, not for ever.
#[test]
fn a_time_set_by_hand_is_kept_from_late_pages_only() {
    let (store, rig) = Rig::memory();
    let fs = rig.mount();
    let ino = file(&fs, b"f", b"f");
    let _handle = fs.open(ino, libc::O_RDWR).unwrap();
    let time = Time { sec: 5, nsec: 0 };
    let wanted = SetAttr { mtime: Some(TimeOrNow::Time(time)), ..SetAttr::default() };
    let from_cache = || {
        fs.write(ino, 0, b"late", false, true).unwrap();
        fs.getattr(ino).unwrap().mtime
    };
    fs.setattr(ino, &USER, &wanted).unwrap();
    store.pass(59);
    assert_eq!(from_cache(), time);
    store.pass(2);
    assert_ne!(from_cache(), time, "long after");
    fs.setattr(ino, &USER, &wanted).unwrap();
    assert_eq!(from_cache(), time);
    fs.fsync(ino, false, Box::new(|outcome| outcome.unwrap()));
    assert_ne!(from_cache(), time, "after an fsync");
}

fn access_times_are_relative_and_reach_the_store(rig: &Rig) {
    let fs = rig.mount();
    let ino = file(&fs, b"f", b"f");
    let before = fs.getattr(ino).unwrap().atime;
    read_all(&fs, ino);
    let first = fs.getattr(ino).unwrap().atime;
    assert!(first > before);
    read_all(&fs, ino);
    assert_eq!(fs.getattr(ino).unwrap().atime, first);
    settle(&fs);
    let value = rig.store.get(Key::inode(ino)).unwrap().unwrap();
    assert_eq!(Inode::decode(&value).unwrap().atime, first);
}

#[test]
fn access_times_that_cannot_be_written_are_not_kept() {
    let (store, rig) = Rig::memory();
    let fs = rig.mount();
    let inos: Vec<u64> = (0..10).map(|i| file(&fs, format!("f{i}").as_bytes(), b"f")).collect();
    store.set_read_only();
    inos.iter().for_each(|ino| drop(read_all(&fs, *ino)));
    assert!(inos.iter().all(|ino| fs.entry(*ino).unwrap().is_pinned()), "they wait");
    settle(&fs);
    assert!(!inos.iter().any(|ino| fs.entry(*ino).unwrap().is_pinned()), "nobody will ever write them");
}

fn holes_are_told_only_when_nobody_writes(rig: &Rig) {
    let fs = rig.mount();
    let ino = file(&fs, b"f", b"");
    fs.write(ino, 3 * BLOCK_U64, &[1; BLOCK], false, false).unwrap();
    fs.setattr(ino, &USER, &SetAttr { size: Some(10 * BLOCK_U64), ..SetAttr::default() }).unwrap();
    let seek = |offset, whence| fs.lseek(ino, offset, whence);
    assert_eq!(seek(5, libc::SEEK_DATA).unwrap(), 3 * BLOCK_U64);
    assert_eq!(seek(5, libc::SEEK_HOLE).unwrap(), 5);
    assert_eq!(seek(3 * BLOCK as i64 + 1, libc::SEEK_HOLE).unwrap(), 4 * BLOCK_U64);
    assert_eq!(errno(seek(5 * BLOCK as i64, libc::SEEK_DATA)), libc::ENXIO);
    assert_eq!(errno(seek(10 * BLOCK as i64, libc::SEEK_HOLE)), libc::ENXIO);
    assert_eq!(errno(seek(-1, libc::SEEK_HOLE)), libc::ENXIO);
    let handle = fs.open(ino, libc::O_WRONLY).unwrap();
    assert_eq!(seek(5, libc::SEEK_DATA).unwrap(), 5);
    assert_eq!(seek(5, libc::SEEK_HOLE).unwrap(), 10 * BLOCK_U64);
    fs.release(ino, handle);
    assert_eq!(seek(5, libc::SEEK_HOLE).unwrap(), 5);
}

fn ranges_are_reserved_punched_and_zeroed(rig: &Rig) {
    let fs = rig.mount();
    let ino = file(&fs, b"f", &[9; 5 * BLOCK]);
    let mut expected = vec![9; 5 * BLOCK];
    let allocate = |offset, length, mode| fs.fallocate(ino, offset, length, mode);
    allocate(100, 2 * BLOCK_U64, PUNCH).unwrap();
    expected[100..100 + 2 * BLOCK].fill(0);
    assert_eq!(read_all(&fs, ino), expected);
    assert_eq!(fs.getattr(ino).unwrap().blocks512, 4 * 8);
    allocate(4 * BLOCK_U64 + 10, 10 * BLOCK_U64, PUNCH).unwrap();
    expected[4 * BLOCK + 10..].fill(0);
    assert_eq!(read_all(&fs, ino), expected);
    allocate(3 * BLOCK_U64 + 5, 10, libc::FALLOC_FL_ZERO_RANGE).unwrap();
    expected[3 * BLOCK + 5..3 * BLOCK + 15].fill(0);
    allocate(4 * BLOCK_U64, 2 * BLOCK_U64, libc::FALLOC_FL_ZERO_RANGE).unwrap();
    expected[4 * BLOCK..].fill(0);
    expected.resize(6 * BLOCK, 0);
    assert_eq!(read_all(&fs, ino), expected);
    allocate(0, 20 * BLOCK_U64, libc::FALLOC_FL_KEEP_SIZE).unwrap();
    assert_eq!(fs.getattr(ino).unwrap().blocks512, 20 * 8);
    assert_eq!(read_all(&fs, ino), expected);
    allocate(0, 7 * BLOCK_U64, 0).unwrap();
    assert_eq!(fs.getattr(ino).unwrap().size, 7 * BLOCK_U64);
    assert_eq!(errno(allocate(0, 0, 0)), libc::EINVAL);
    assert_eq!(errno(allocate(0, 5, libc::FALLOC_FL_COLLAPSE_RANGE)), libc::EOPNOTSUPP);
    assert_eq!(errno(allocate(FILE_SIZE_MAX, 5, 0)), libc::EFBIG);
    fs.setattr(ino, &USER, &SetAttr { size: Some(7 * BLOCK_U64), ..SetAttr::default() }).unwrap();
    assert_eq!(fs.getattr(ino).unwrap().blocks512, 7 * 8, "what is past the end goes");
    fs.unlink(ROOT_INO, b"f").unwrap();
    rig.check();
}

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

fn copies_inside_and_between_files(rig: &Rig) {
    let fs = rig.mount();
    let source = file(&fs, b"a", &(0..100_000_u32).map(|i| i as u8).collect::<Vec<_>>());
    let target = file(&fs, b"b", b"");
    assert_eq!(fs.copy_file_range(source, 10, target, 5, 1 << 30).unwrap(), 99_990);
    assert_eq!(read_all(&fs, target)[5..], read_all(&fs, source)[10..]);
    assert_eq!(fs.copy_file_range(source, 100_000, target, 0, 10).unwrap(), 0);
    assert_eq!(errno(fs.copy_file_range(source, 0, source, 50, 100)), libc::EINVAL);
    assert_eq!(fs.copy_file_range(source, 0, source, 100_000, 100).unwrap(), 100);
    assert_eq!(read_all(&fs, source)[100_000..], read_all(&fs, source)[..100]);
    let large = file(&fs, b"c", &vec![3; 9 << 20]);
    assert_eq!(fs.copy_file_range(large, 0, target, 0, 9 << 20).unwrap(), 8 << 20);
}

fn extended_attributes_of_all_lengths(rig: &Rig) {
    let fs = rig.mount();
    let ino = file(&fs, b"f", b"");
    assert_eq!(errno(fs.getxattr(ino, b"user.a")), libc::ENODATA);
    for length in [0, 1, 1599, 1600, 1601, 3200, 65_536, 10] {
        let value: Vec<u8> = (0..length).map(|i| i as u8).collect();
        fs.setxattr(ino, b"user.a", &value, 0, &USER).unwrap();
        assert_eq!(fs.getxattr(ino, b"user.a").unwrap(), value);
    }
    assert_eq!(fs.xattr_keys(ino, 100).unwrap().len(), 1);
    fs.setxattr(ino, b"user.b", b"b", XATTR_CREATE, &USER).unwrap();
    assert_eq!(errno(fs.setxattr(ino, b"user.b", b"c", XATTR_CREATE, &USER)), libc::EEXIST);
    assert_eq!(errno(fs.setxattr(ino, b"user.c", b"c", XATTR_REPLACE, &USER)), libc::ENODATA);
    assert_eq!(errno(fs.setxattr(ino, b"user.c", &[0; 65_537], 0, &USER)), libc::E2BIG);
    assert_eq!(errno(fs.setxattr(ino, b"system.other", b"", 0, &USER)), libc::EOPNOTSUPP);
    let list = fs.listxattr(ino).unwrap();
    let mut names: Vec<_> = list.split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    names.sort();
    assert_eq!(names, [b"user.a", b"user.b"]);
    fs.removexattr(ino, b"user.a").unwrap();
    assert_eq!(errno(fs.removexattr(ino, b"user.a")), libc::ENODATA);
    fs.setxattr(ino, b"security.capability", b"cap", 0, &USER).unwrap();
    fs.write(ino, 0, b"x", false, true).unwrap();
    assert_eq!(fs.getxattr(ino, b"security.capability").unwrap(), b"cap");
    fs.write(ino, 0, b"x", false, false).unwrap();
    assert_eq!(errno(fs.getxattr(ino, b"security.capability")), libc::ENODATA);
    assert_eq!(fs.getxattr(ino, b"user.b").unwrap(), b"b");
    fs.unlink(ROOT_INO, b"f").unwrap();
    assert_eq!(rig.items().len(), 1);
}

/// Goal: what the kernel asks on threads that must stay free does not wait for a writer that waits for room.
#[test]
fn attributes_are_read_while_somebody_writes() {
    let (_, rig) = Rig::memory();
    let fs = rig.mount();
    let ino = file(&fs, b"f", b"");
    fs.setxattr(ino, b"user.a", &[5; 5_000], 0, &USER).unwrap();
    let link = fs.symlink(ROOT_INO, b"link", b"target", &USER).unwrap().ino;
    let keys = [ino, link].map(|ino| (lock::LockKey::Inode(ino), lock::Mode::Exclusive));
    let held = fs.locks.acquire(&keys);
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let answer = (fs.getxattr(ino, b"user.a"), fs.listxattr(ino), fs.readlink(link));
            sender.send(answer).unwrap();
        });
        let answer = receiver.recv_timeout(std::time::Duration::from_secs(20));
        drop(held); // or a failure would never end
        let (value, names, target) = answer.expect("an answer while the inodes are locked");
        assert_eq!(
            (value.unwrap(), names.unwrap(), target.unwrap()),
            (vec![5; 5_000], b"user.a\0".to_vec(), b"target".to_vec())
        );
    });
}

/// Goal: a value is read whole or not at all while it changes.
#[test]
fn attributes_are_read_whole_while_they_change() {
    let (_, rig) = Rig::memory();
    let fs = rig.mount();
    let ino = file(&fs, b"f", b"");
    let values = [vec![1; 10_000], vec![2; 3_000], vec![3; 60_000]];
    fs.setxattr(ino, b"user.a", &values[0], 0, &USER).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..600 {
                fs.setxattr(ino, b"user.a", &values[round % 3], 0, &USER).unwrap();
            }
            done.store(true, Ordering::SeqCst);
        });
        while !done.load(Ordering::SeqCst) {
            let value = fs.getxattr(ino, b"user.a").unwrap();
            assert!(values.contains(&value), "{} bytes", value.len());
        }
    });
}

fn acls_and_modes_stay_in_step(rig: &Rig) {
    let fs = rig.mount();
    let dir = fs.mkdir(ROOT_INO, b"dir", 0o755, &USER).unwrap().ino;
    fs.setxattr(dir, ACL_DEFAULT, &named(7, 6, 5, 7, 0), 0, &USER).unwrap();
    let umask = Caller { umask: 0o777, ..USER };
    let f = fs.mknod(dir, b"f", S_IFREG | 0o666, 0, &umask).unwrap();
    assert_eq!(f.mode & 0o777, 0o660, "the default ACL counts, not the umask");
    assert_eq!(fs.getxattr(f.ino, ACL_ACCESS).unwrap(), named(6, 6, 5, 6, 0));
    let sub = fs.mkdir(dir, b"sub", 0o777, &umask).unwrap();
    assert_eq!(fs.getxattr(sub.ino, ACL_DEFAULT).unwrap(), named(7, 6, 5, 7, 0));
    let attr = fs.setattr(f.ino, &USER, &SetAttr { mode: Some(0o604), ..SetAttr::default() }).unwrap();
    assert_eq!(attr.mode & 0o777, 0o604);
    assert_eq!(fs.getxattr(f.ino, ACL_ACCESS).unwrap(), named(6, 6, 5, 0, 4));
    fs.setxattr(f.ino, ACL_ACCESS, &named(4, 7, 4, 5, 1), 0, &USER).unwrap();
    assert_eq!(fs.getattr(f.ino).unwrap().mode & 0o777, 0o451);
    assert_eq!(errno(fs.setxattr(f.ino, ACL_ACCESS, b"junk", 0, &USER)), libc::EINVAL);
    assert_eq!(errno(fs.setxattr(f.ino, ACL_DEFAULT, &named(7, 7, 7, 7, 7), 0, &USER)), libc::EPERM);
    for (groups, keeps) in [(&[][..], false), (&[7, 555][..], true), (&[7][..], false)] {
        let owner = SetAttr { gid: Some(555), mode: Some(0o2755), ..SetAttr::default() };
        fs.setattr(f.ino, &Caller::default(), &owner).unwrap();
        fs.setxattr_of_group(f.ino, ACL_ACCESS, &named(4, 7, 4, 5, 1), 0, &USER, groups).unwrap();
        assert_eq!(fs.getattr(f.ino).unwrap().mode & S_ISGID != 0, keeps, "{groups:?}");
    }
    fs.removexattr(f.ino, ACL_ACCESS).unwrap();
    fs.removexattr(f.ino, ACL_ACCESS).unwrap();
    assert_eq!(errno(fs.getxattr(f.ino, ACL_ACCESS)), libc::ENODATA);
    fs.unlink(dir, b"f").unwrap();
    fs.rmdir(dir, b"sub").unwrap();
    fs.rmdir(ROOT_INO, b"dir").unwrap();
    assert_eq!(rig.items().len(), 1);
    rig.check();
}

#[test]
fn a_failed_fsync_keeps_failing() {
    // SEMANTICS: DUR-5
    let (store, rig) = Rig::memory();
    let fs = rig.mount();
    let ino = file(&fs, b"f", b"");
    let other = file(&fs, b"g", b"");
    let sync = |ino| {
        let (sender, receiver) = crate::sync::mpsc::channel();
        fs.fsync(ino, false, Box::new(move |outcome| sender.send(outcome).unwrap()));
        receiver.recv().unwrap()
    };
    sync(ino).unwrap();
    store.fail_syncs(true);
    assert_eq!(errno(sync(ino)), libc::EIO);
    store.fail_syncs(false);
    assert_eq!(errno(sync(ino)), libc::EIO);
    sync(other).unwrap();
}

#[test]
fn a_failed_change_leaves_memory_as_it_was() {
    let (store, rig) = Rig::memory();
    let fs = rig.mount();
    let ino = file(&fs, b"f", &[1; BLOCK]);
    let before = fs.getattr(ino).unwrap();
    store.set_free(0);
    assert_eq!(errno(fs.write(ino, BLOCK_U64, &[1; BLOCK], false, false)), libc::ENOSPC);
    assert_eq!(fs.getattr(ino).unwrap(), before);
    let (entry, _) = fs.load(ino).unwrap();
    entry.state.lock().inode.as_mut().unwrap().nlink = LINK_MAX;
    let root = fs.getattr(ROOT_INO).unwrap();
    assert_eq!(errno(fs.link(ino, ROOT_INO, b"more")), libc::EMLINK);
    assert_eq!(fs.getattr(ROOT_INO).unwrap(), root);
    entry.state.lock().inode.as_mut().unwrap().nlink = 1;
    rig.check();
}

/// A file made longer keeps its length if anything later survives, and shows zeros there: also where the last block held
/// other bytes before, or was written to without an fsync.
#[test]
fn a_size_that_grew_survives_with_later_names() {
    for way in 0..7 {
        let rig = Rig::disks(way);
        let fs = rig.mount();
        let ino = file(&fs, b"f", &[0xaa; 3_000]);
        let other = file(&fs, b"other", b"x");
        fs.sync().unwrap();
        let resize = |size| {
            fs.setattr(ino, &USER, &SetAttr { size: Some(size), ..SetAttr::default() }).unwrap();
        };
        let mut from = 3_000;
        match way {
            0 => resize(1 << 20),
            1 => fs.fallocate(ino, 0, 1 << 20, 0).unwrap(),
            2 => {
                fs.write(ino, 0, &[0xaa; 10], false, false).unwrap();
                resize(1 << 20);
            }
            3 => {
                resize(100);
                resize(1 << 20);
                fs.write(ino, 50, &[0xaa; 10], false, false).unwrap();
                from = 100;
            }
            4 => {
                fs.fallocate(ino, 10, 20, PUNCH).unwrap();
                fs.write(ino, 10, &[0xaa; 20], false, false).unwrap();
                resize(1 << 20);
            }
            5 => {
                fs.write(ino, 3_000, &[0xaa; 6_000], false, false).unwrap();
                resize(2_000);
                resize(1 << 20);
                from = 2_000;
            }
            _ => {
                resize(1_000);
                resize(1 << 20);
                rig.real.as_ref().unwrap().place_step().unwrap();
                from = 1_000;
            }
        }
        rename(&fs, (ROOT_INO, b"other"), (ROOT_INO, b"renamed"), 0).unwrap();
        fs.fsync(other, false, Box::new(|outcome| outcome.unwrap()));
        drop(fs);
        let rig = rig.crash(crate::disk::sim::CrashPlan::DropAll, way);
        let fs = rig.mount();
        assert_eq!(fs.lookup(ROOT_INO, b"renamed").unwrap().ino, other);
        let bytes = read_all(&fs, ino);
        assert_eq!(bytes.len(), 1 << 20, "way {way}");
        assert!(bytes[..from].iter().all(|byte| *byte == 0xaa || (way == 4 && *byte == 0)), "way {way}");
        assert!(bytes[from..].iter().all(|byte| *byte == 0), "way {way}");
        rig.check();
    }
}

/// Bytes that were not made durable may be lost with the size that they gave the file, but do not turn up when it grows.
#[test]
fn bytes_beyond_a_size_that_was_cut_short_stay_away() {
    let rig = Rig::disks(3);
    let fs = rig.mount();
    let ino = file(&fs, b"f", &[0xaa; 3_000]);
    let other = file(&fs, b"other", b"x");
    fs.sync().unwrap();
    let resize = |fs: &Filesystem, size| {
        fs.setattr(ino, &USER, &SetAttr { size: Some(size), ..SetAttr::default() }).unwrap();
    };
    fs.write(ino, 3_000, &[0xbb; 6_000], false, false).unwrap();
    resize(&fs, 8_500);
    resize(&fs, 1 << 20);
    fs.fsync(other, false, Box::new(|outcome| outcome.unwrap()));
    drop(fs);
    let rig = rig.crash(crate::disk::sim::CrashPlan::DropAll, 3);
    let fs = rig.mount();
    assert_eq!(fs.getattr(ino).unwrap().size, 3_000);
    resize(&fs, 20_000);
    assert!(read_all(&fs, ino)[3_000..].iter().all(|byte| *byte == 0));
}

/// What was cut off does not come back, whatever of the cut survived a power cut.
#[test]
fn cut_bytes_stay_gone_after_a_power_cut() {
    for grows in 0..4 {
        let rig = Rig::disks(grows);
        let fs = rig.mount();
        let ino = file(&fs, b"f", &[0xaa; 10_000]);
        let other = file(&fs, b"other", b"x");
        fs.sync().unwrap();
        fs.setattr(ino, &USER, &SetAttr { size: Some(5_000), ..SetAttr::default() }).unwrap();
        fs.fsync(other, false, Box::new(|outcome| outcome.unwrap()));
        rig.real.as_ref().unwrap().log_step();
        drop(fs);
        let rig = rig.crash(crate::disk::sim::CrashPlan::DropAll, grows);
        let fs = rig.mount();
        assert_eq!(read_all(&fs, ino), [0xaa; 5_000]);
        match grows {
            0 => drop(fs.setattr(ino, &USER, &SetAttr { size: Some(9_000), ..SetAttr::default() }).unwrap()),
            1 => assert_eq!(fs.write(ino, 6_000, &[1; 3_000], false, false).unwrap(), 3_000),
            2 => assert_eq!(fs.write(ino, 8_500, &[1; 500], false, false).unwrap(), 500),
            _ => fs.fallocate(ino, 7_000, 2_000, 0).unwrap(),
        }
        let bytes = read_all(&fs, ino);
        assert_eq!(bytes.len(), 9_000);
        assert_eq!(bytes[..5_000], [0xaa; 5_000]);
        let zeros = [6_000, 6_000, 8_500, 9_000][grows as usize];
        assert!(bytes[5_000..zeros].iter().all(|byte| *byte == 0), "way {grows}");
    }
}
