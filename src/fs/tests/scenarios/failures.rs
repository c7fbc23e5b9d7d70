//! What fails leaves things as they were: a full volume, blocks that are lost, a failed fsync.

use super::*;

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
    resize(&fs, ino, 100);
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

#[test]
fn a_failed_fsync_keeps_failing() {
    // SEMANTICS: DUR-5
    let (store, rig) = Rig::memory();
    let fs = rig.mount();
    let ino = file(&fs, b"f", b"");
    let other = file(&fs, b"g", b"");
    let sync = |ino| {
        let (sender, receiver) = crate::sync::mpsc::channel();
        fs.fsync(ino, Box::new(move |outcome| sender.send(outcome).unwrap()));
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
