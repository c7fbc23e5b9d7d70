//! Room that was given up is there for whoever asks next.
//!
//! Goal: a full volume from which something was removed takes new data at once, however it is removed: at once, by a
//! commit that is still to come, or piece by piece in the background.
//! Method: the real store on simulated disks without threads, so that nothing happens that nobody waits for; where a
//! failure must come at a certain place, the map.

use super::*;
use std::sync::mpsc::channel;

fn file(filesystem: &Filesystem, name: &[u8]) -> u64 {
    filesystem.mknod(ROOT_INO, name, S_IFREG | 0o644, 0, &USER).unwrap().ino
}

/// Write to `ino` until nothing more goes; gives the bytes.
fn fill(fs: &Filesystem, ino: u64) -> u64 {
    let mut full = 0;
    for piece in [1 << 20, BLOCK_U64] {
        loop {
            match fs.write(ino, full, &vec![7; piece as usize], false, false) {
                Ok(count) => full += u64::from(count),
                Err(FsError::Store(StoreError::NoSpace)) => break,
                Err(other) => panic!("{other}"),
            }
        }
    }
    full
}

const BLOCK_U64: u64 = crate::format::BLOCK as u64;

/// One file too large to go at once: what it held is there for the very next write, without any background work.
#[test]
fn a_large_file_that_is_removed_makes_room_at_once() {
    // SEMANTICS: SPACE-2
    let rig = Rig::disks(21);
    let fs = rig.mount();
    let big = file(&fs, b"big");
    let full = fill(&fs, big);
    assert!(full > 32 << 20, "{full}: removed at once");
    let other = file(&fs, b"other");
    assert_eq!(errno(fs.write(other, 0, &[8; 1 << 20], false, false)), libc::ENOSPC);
    fs.unlink(ROOT_INO, b"big").unwrap();
    let mut at = 0;
    while at < full / 2 {
        at += u64::from(fs.write(other, at, &[8; 1 << 20], false, false).expect("room that was given up"));
    }
    assert_eq!(read_all(&fs, other).len() as u64, at);
    // The same for a file that was open when it lost its name, and for a reservation.
    fs.setattr(other, &USER, &SetAttr { size: Some(0), ..SetAttr::default() }).unwrap();
    let handle = fs.open(other, libc::O_RDWR).unwrap();
    fill(&fs, other);
    fs.unlink(ROOT_INO, b"other").unwrap();
    let third = file(&fs, b"third");
    assert_eq!(errno(fs.fallocate(third, 0, full / 2, 0)), libc::ENOSPC);
    fs.release(other, handle);
    fs.fallocate(third, 0, full / 2, 0).expect("room that was given up");
    settle(&fs);
    rig.check();
}

/// What the open group frees counts, whole: a large reservation right after many small removals.
#[test]
fn a_reservation_waits_for_the_commit_that_gives_room_back() {
    // SEMANTICS: SPACE-2
    let rig = Rig::disks(22);
    let fs = rig.mount();
    let name = |i: u32| format!("file-{i}").into_bytes();
    let mut count = 0;
    loop {
        let ino = match fs.mknod(ROOT_INO, &name(count), S_IFREG | 0o644, 0, &USER) {
            Ok(attr) => attr.ino,
            Err(FsError::Store(StoreError::NoSpace)) => break,
            Err(other) => panic!("{other}"),
        };
        count += 1;
        if fs.write(ino, 0, &[3; 1 << 20], false, false).is_err() {
            break;
        }
    }
    assert!(count > 60, "{count}");
    rig.store.sync().unwrap();
    for i in 0..count - 1 {
        fs.unlink(ROOT_INO, &name(i)).unwrap();
    }
    let ino = fs.lookup(ROOT_INO, &name(count - 1)).unwrap().ino;
    fs.fallocate(ino, 0, u64::from(count / 2) << 20, 0).expect("room that was given up");
    assert_eq!(errno(fs.fallocate(ino, 0, 1 << 40, 0)), libc::ENOSPC);
    rig.check();
}

/// An orphan that finds no room to go is not forgotten until the next mount.
#[test]
fn an_orphan_that_finds_no_room_is_tried_again() {
    let (store, rig) = Rig::memory();
    let fs = rig.mount();
    let ino = file(&fs, b"file");
    for at in 0..17 {
        fs.write(ino, at << 20, &[1; 1 << 20], false, false).unwrap();
    }
    fs.unlink(ROOT_INO, b"file").unwrap();
    store.refuse_begins(1);
    assert!(matches!(fs.reclaim_step(), Err(FsError::Store(StoreError::NoSpace))));
    settle(&fs);
    assert!(rig.owners().is_empty(), "its room is gone for the life of the mount");
    rig.check();
}

/// A damaged orphan that stands first in the list keeps nobody from the room that others have given up.
#[test]
fn a_damaged_orphan_keeps_no_room_from_others() {
    // SEMANTICS: SPACE-2
    let (store, rig) = Rig::memory();
    let fs = rig.mount();
    let made = [b"hurt", b"fine"].map(|name| {
        let ino = file(&fs, name);
        for at in 0..17 {
            fs.write(ino, at << 20, &[1; 1 << 20], false, false).unwrap();
        }
        ino
    });
    let other = file(&fs, b"other");
    settle(&fs);
    [b"hurt", b"fine"].map(|name| fs.unlink(ROOT_INO, name)).into_iter().for_each(Result::unwrap);
    store.lose(Key::new(made[0], ItemKind::Extent, 5));
    store.set_free(0);
    assert_eq!(fs.write(other, 0, &[2; 1 << 20], false, false).expect("room that was given up"), 1 << 20);
    // What is left of the damaged one gives no room, and is no endless search for it.
    store.set_free(0);
    settle(&fs);
    store.set_free(0);
    assert_eq!(errno(fs.write(other, 1 << 20, &[2; 1 << 20], false, false)), libc::ENOSPC);
}

/// Whoever does the background work hears of an orphan at once. (Without the bell this waits for an hour.)
#[test]
fn an_orphan_rings_the_bell() {
    let (_, rig) = Rig::memory();
    let fs = rig.mount();
    let ino = file(&fs, b"file");
    for at in 0..17 {
        fs.write(ino, at << 20, &[1; 1 << 20], false, false).unwrap();
    }
    settle(&fs);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| fs.wait_for_orphans(Duration::from_secs(3600)));
        fs.unlink(ROOT_INO, b"file").unwrap();
        waiter.join().unwrap();
    });
    assert!(fs.reclaim_step().unwrap());
}

/// A create that fails late leaves nothing behind that would be kept in memory for ever.
#[test]
fn a_create_that_fails_leaves_no_handle() {
    let (store, rig) = Rig::memory();
    let fs = rig.mount();
    for _ in 0..3 {
        let next = store.new_ino() + 1;
        store.lose(Key::inode(next));
        // What the next mount would not find, a commit would not either.
        let entry = fs.cache.entry(next);
        entry.state.lock().loaded = true;
        assert_eq!(errno(fs.create(ROOT_INO, b"file", 0o600, libc::O_RDWR | libc::O_EXCL, &USER)), libc::EIO);
        let state = entry.state.lock();
        assert_eq!((state.opens, state.writers, entry.is_pinned()), (0, 0, false), "inode {next}");
    }
    assert_eq!(errno(fs.lookup(ROOT_INO, b"file")), libc::ENOENT);
}

/// A change that must read the disk first keeps nobody from looking at the inodes that it changes.
#[test]
fn who_only_looks_waits_for_no_disk() {
    let (store, rig) = Rig::memory();
    let fs = Arc::new(rig.mount());
    let looker = Arc::clone(&fs);
    let (sender, seen) = channel();
    store.on_read(move || {
        // If a mutex of the directory were held here, this would never answer.
        let (answer, answered) = channel();
        std::thread::spawn(move || answer.send(looker.getattr(ROOT_INO).unwrap().size));
        sender.send(answered.recv_timeout(Duration::from_secs(20))).unwrap();
    });
    let ino = file(&fs, b"file");
    assert_eq!(seen.recv().unwrap(), Ok(0), "the directory's attributes as they were before");
    assert_eq!((fs.getattr(ROOT_INO).unwrap().size, fs.lookup(ROOT_INO, b"file").unwrap().ino), (1, ino));
    // The same for data, which must be all there after the second run of the change.
    let (sender, seen) = channel();
    let looker = Arc::clone(&fs);
    store.on_read(move || sender.send(looker.getattr(ino).unwrap().size).unwrap());
    fs.write(ino, 100, &[9; 10_000], false, false).unwrap();
    assert_eq!(seen.recv().unwrap(), 0);
    assert_eq!(read_all(&fs, ino), [vec![0; 100], vec![9; 10_000]].concat());
    rig.check();
}

/// The blocks of a file that is cut, punched and written are counted right, in memory and after a commit, and what a
/// hole hides is counted once.
#[test]
fn blocks_of_a_cut_file_are_counted_once() {
    let rig = Rig::disks(23);
    let fs = rig.mount();
    let real = rig.real.as_ref().unwrap();
    let ino = file(&fs, b"file");
    let blocks = || fs.getattr(ino).unwrap().blocks512 / 8;
    let slow = || {
        let (mut count, mut at) = (0, 0);
        while let Some(data) = real.next_data(ino, at).unwrap() {
            at = real.next_hole(ino, data).unwrap();
            count += at - data;
        }
        count
    };
    let check = |when: &str| {
        assert_eq!(blocks(), slow(), "{when}, in memory");
        rig.store.sync().unwrap();
        assert_eq!(blocks(), slow(), "{when}, committed");
    };
    let cut = |size| {
        fs.setattr(ino, &USER, &SetAttr { size: Some(size), ..SetAttr::default() }).unwrap();
    };
    for at in 0..80_u64 {
        fs.write(ino, at << 20, &[1; (1 << 20) - 8192], false, false).unwrap();
    }
    check("with holes");
    // Beyond what is counted from the begin of the file, then from there.
    cut((70 << 20) + 5);
    let group = real.view().current.clone();
    let hidden = |set: Option<u64>| group.with_file(ino, |file| std::mem::replace(&mut file.hidden, set)).flatten();
    let counted = hidden(None).expect("the cut has counted");
    let right = blocks();
    assert_eq!(hidden(Some(counted + 7)), Some(counted));
    assert_eq!(blocks(), right - 7, "what is known is counted anew");
    hidden(Some(counted));
    check("cut far behind");
    cut((3 << 20) + 5);
    fs.write(ino, 9 << 20, &[2; 300_000], false, false).unwrap();
    check("cut near the begin");
    fs.fallocate(ino, 1 << 20, 1 << 19, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE).unwrap();
    fs.write(ino, 5 << 20, &[3; 5], false, false).unwrap();
    check("punched");
    cut(0);
    assert_eq!(blocks(), 0);
    assert_eq!(
        real.view().current.with_file(ino, |file| file.holes.iter().collect::<Vec<_>>()),
        Some(vec![(0, u64::MAX)])
    );
    fs.write(ino, 0, &[4; 10], false, false).unwrap();
    check("emptied and written");
    rig.check();
}
