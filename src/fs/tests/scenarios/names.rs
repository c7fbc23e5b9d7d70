//! Names: what is made is found and listed; links, renames and what goes with the last name.

use super::*;

on_both! {
    made_things_are_found_listed_and_gone,
    listings_resume_at_every_cookie_in_spite_of_collisions,
    colliding_names_keep_their_cookies,
    create_opens_what_is_there_unless_exclusive,
    hard_links_count_and_share,
    renames_do_what_the_manual_says,
    exchange_swaps_and_whiteout_leaves_a_mark,
    large_files_go_in_the_background,
}

fn names(filesystem: &Filesystem, dir: u64) -> Vec<Vec<u8>> {
    let mut all: Vec<_> = filesystem.readdir(dir, 0, 10_000, false).unwrap().into_iter().map(|e| e.name).collect();
    all.sort();
    all
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

fn create_opens_what_is_there_unless_exclusive(rig: &Rig) {
    let fs = rig.mount();
    let (attr, first) = fs.create(ROOT_INO, b"file", 0o600, libc::O_RDWR | libc::O_EXCL, &USER).unwrap();
    fs.write(attr.ino, 0, b"content", false, false).unwrap();
    assert_eq!(errno(fs.create(ROOT_INO, b"file", 0o600, libc::O_RDWR | libc::O_EXCL, &USER)), libc::EEXIST);
    let (same, second) = fs.create(ROOT_INO, b"file", 0o600, libc::O_RDWR | libc::O_TRUNC, &USER).unwrap();
    assert_eq!((same.ino, same.size), (attr.ino, 0));
    assert_ne!(first, second);
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
