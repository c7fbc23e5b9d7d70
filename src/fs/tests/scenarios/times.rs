//! Times, modes and owners: what moves them, and what must not.

use super::*;

on_both! {
    times_modes_and_owners,
    late_pages_do_not_move_a_time_set_by_hand,
    access_times_are_relative_and_reach_the_store,
}

const BY_HAND: Time = Time { sec: 5, nsec: 0 };

fn modified(time: Time) -> SetAttr {
    SetAttr { mtime: Some(TimeOrNow::Time(time)), ..SetAttr::default() }
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
    assert_eq!(errno(fs.setattr(ino, &USER, &modified(bad))), libc::EINVAL);
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
fn what_changes_nothing_changes_the_change_time_and_allocation_both() {
    let (_, rig) = Rig::memory();
    let fs = rig.mount();
    let ino = file(&fs, b"f", b"f");
    let before = fs.getattr(ino).unwrap();
    let attr = fs.setattr(ino, &USER, &SetAttr::default()).unwrap();
    assert!(attr.ctime > before.ctime);
    assert_eq!(attr, Attr { ctime: attr.ctime, ..before });
    // As on ext4, whatever is there already and whether or not the size is kept.
    let mut last = attr;
    for (length, mode, size) in [(100, libc::FALLOC_FL_KEEP_SIZE, 1), (100, 0, 100), (50, 0, 100)] {
        fs.fallocate(ino, 0, length, mode).unwrap();
        let attr = fs.getattr(ino).unwrap();
        assert_eq!((attr.size, attr.mtime), (size, attr.ctime));
        assert!(attr.mtime > last.mtime);
        last = attr;
    }
}

fn late_pages_do_not_move_a_time_set_by_hand(rig: &Rig) {
    let fs = rig.mount();
    let ino = file(&fs, b"f", b"f");
    let handle = fs.open(ino, libc::O_RDWR).unwrap();
    let (time, wanted) = (BY_HAND, modified(BY_HAND));
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
    let (time, wanted) = (BY_HAND, modified(BY_HAND));
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
    fsync(&fs, ino);
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

/// The kernel's writeback cache sends times of files that have gone meanwhile; who holds them by number can change them.
#[test]
fn times_of_what_has_ended_are_taken() {
    let (store, _rig) = Rig::memory();
    let mount = |writeback_cache| {
        let options = FsOptions { writeback_cache, ..FsOptions::default() };
        Filesystem::new(Arc::clone(&store) as Arc<dyn StoreApi>, options).unwrap()
    };
    let time = Time { sec: 7, nsec: 7 };
    let late = SetAttr { mtime: Some(TimeOrNow::Time(time)), ctime: Some(time), ..SetAttr::default() };
    let cut = SetAttr { size: Some(0), ..SetAttr::default() };
    let fs = mount(true);
    let ino = file(&fs, b"f", b"content");
    fs.unlink(ROOT_INO, b"f").unwrap();
    let attr = fs.setattr_held(ino, &USER, &late).unwrap();
    assert_eq!((attr.ino, attr.nlink, attr.mtime, attr.mode), (ino, 0, time, S_IFREG | 0o644));
    assert_eq!(fs.getattr_held(ino).unwrap().ctime, time);
    assert_eq!(errno(fs.setattr_held(ino, &USER, &cut)), libc::ESTALE);
    // Of one that nobody remembers only the type matters; without that cache nobody asks so.
    let forgotten = mount(true);
    assert_eq!(forgotten.setattr_held(ino, &USER, &late).unwrap().mode, S_IFREG);
    let mode = SetAttr { mode: Some(0o600), ..late };
    assert_eq!(errno(forgotten.setattr_held(ino, &USER, &mode)), libc::ESTALE);
    assert_eq!(errno(mount(false).setattr_held(ino, &USER, &late)), libc::ESTALE);
}
