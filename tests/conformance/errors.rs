//! Which call refuses what, and with which errno.

use super::place::{Errno, Place, Usual, When, refused};

const RDONLY: i32 = libc::O_RDONLY;
const NOW: When = When::Now;

/// What `call` says of each of `paths`.
fn all(place: &dyn Place, paths: &[&str], errno: Errno, call: impl Fn(&dyn Place, &str) -> Result<(), Errno>) {
    for path in paths {
        assert_eq!(call(place, path), Err(errno), "{path}");
    }
}

type Call = (&'static str, fn(&dyn Place, &str) -> Result<(), Errno>);

/// Every call that needs a name that is there.
const USES: &[Call] = &[
    ("stat", |p, path| p.stat(path).map(drop)),
    ("open", |p, path| p.open(path, RDONLY, 0).map(drop)),
    ("unlink", |p, path| p.unlink(path)),
    ("rmdir", |p, path| p.rmdir(path)),
    ("rename from", |p, path| p.rename(path, "fresh", 0)),
    ("exchange from", |p, path| p.rename(path, "file", libc::RENAME_EXCHANGE)),
    ("exchange to", |p, path| p.rename("file", path, libc::RENAME_EXCHANGE)),
    ("link from", |p, path| p.link(path, "fresh")),
    ("chmod", |p, path| p.chmod(path, 0o600)),
    ("chown", |p, path| p.chown(path, Some(0), None)),
    ("truncate", |p, path| p.resize_path(path, 1)),
    ("utimes", |p, path| p.utimes(path, NOW, NOW)),
    ("readlink", |p, path| p.readlink(path).map(drop)),
    ("getxattr", |p, path| p.attribute(path, "user.x").map(drop)),
    ("setxattr", |p, path| p.set_attribute(path, "user.x", b"x", 0)),
    ("listxattr", |p, path| p.attributes(path).map(drop)),
    ("removexattr", |p, path| p.remove_attribute(path, "user.x")),
];

/// Every call that makes a name.
const MAKES: &[Call] = &[
    ("create", |p, path| p.open(path, libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY, 0o600).map(drop)),
    ("mkdir", |p, path| p.mkdir(path, 0o700)),
    ("mknod", |p, path| p.mknod(path, libc::S_IFREG | 0o600, 0)),
    ("mkfifo", |p, path| p.mknod(path, libc::S_IFIFO | 0o600, 0)),
    ("symlink", |p, path| p.symlink("target", path)),
    ("link to", |p, path| p.link("file", path)),
    ("rename to", |p, path| p.rename("file", path, libc::RENAME_NOREPLACE)),
];

fn some_of_each(place: &dyn Place) {
    place.make("file", b"content");
    place.mkdir("folder", 0o755).unwrap();
    place.symlink("nowhere", "symlink").unwrap();
    place.mknod("fifo", libc::S_IFIFO | 0o600, 0).unwrap();
}

pub fn names_that_are_not_there(place: &dyn Place) {
    some_of_each(place);
    for (name, call) in USES {
        println!("{name}");
        all(place, &["missing", "folder/missing", "missing/below"], Errno::NOENT, call);
    }
    for (name, call) in MAKES {
        println!("{name}");
        all(place, &["missing/name", "folder/missing/name"], Errno::NOENT, call);
    }
    assert_eq!(place.names("."), ["fifo", "file", "folder", "symlink"]);
}

pub fn names_that_are_taken(place: &dyn Place) {
    some_of_each(place);
    for (name, call) in MAKES {
        println!("{name}");
        all(place, &["folder", "symlink", "fifo"], Errno::EXIST, call);
    }
    refused(place.rename("file", "file", libc::RENAME_NOREPLACE), Errno::EXIST);
    refused(place.rename("folder", "file", libc::RENAME_NOREPLACE), Errno::EXIST);
    assert_eq!(place.content("file"), b"content");
}

pub fn files_are_no_directories(place: &dyn Place) {
    some_of_each(place);
    for (name, call) in USES {
        println!("{name}");
        all(place, &["file/below", "fifo/below"], Errno::NOTDIR, call);
    }
    for (name, call) in MAKES {
        println!("{name}");
        all(place, &["file/below", "fifo/below"], Errno::NOTDIR, call);
    }
    all(place, &["file", "symlink", "fifo"], Errno::NOTDIR, |p, path| p.rmdir(path));
    all(place, &["file", "symlink", "fifo"], Errno::NOTDIR, |p, path| p.rename("folder", path, 0));
    all(place, &["file", "fifo"], Errno::NOTDIR, |p, path| p.open(path, RDONLY | libc::O_DIRECTORY, 0).map(drop));
    assert_eq!(place.names("."), ["fifo", "file", "folder", "symlink"]);
}

pub fn directories_are_no_files(place: &dyn Place) {
    some_of_each(place);
    refused(place.open("folder", libc::O_WRONLY, 0), Errno::ISDIR);
    refused(place.open("folder", libc::O_RDWR, 0), Errno::ISDIR);
    refused(place.unlink("folder"), Errno::ISDIR);
    refused(place.resize_path("folder", 0), Errno::ISDIR);
    all(place, &["file", "symlink", "fifo"], Errno::ISDIR, |p, path| p.rename(path, "folder", 0));
    refused(place.link("folder", "fresh"), Errno::PERM);
    all(place, &["file", "folder", "fifo"], Errno::INVAL, |p, path| p.readlink(path).map(drop));
    refused(place.resize_path("fifo", 0), Errno::INVAL);
    assert_eq!(place.names("."), ["fifo", "file", "folder", "symlink"]);
}

pub fn directories_with_entries_stay(place: &dyn Place) {
    place.mkdir("full", 0o755).unwrap();
    place.make("full/file", b"");
    place.mkdir("other", 0o755).unwrap();
    refused(place.rmdir("full"), Errno::NOTEMPTY);
    refused(place.rename("other", "full", 0), Errno::NOTEMPTY);
    place.rename("other", "full", libc::RENAME_EXCHANGE).unwrap();
    assert_eq!((place.names("other"), place.names("full")), (vec!["file".to_owned()], vec![]));
    place.rename("other", "full", 0).unwrap();
    assert_eq!((place.names("."), place.names("full")), (vec!["full".to_owned()], vec!["file".to_owned()]));
    place.unlink("full/file").unwrap();
    place.rmdir("full").unwrap();
    refused(place.rmdir("full"), Errno::NOENT);
}

pub fn names_and_targets_that_are_too_long(place: &dyn Place) {
    some_of_each(place);
    let (long, longer) = ("n".repeat(255), "n".repeat(256));
    for (name, call) in USES.iter().chain(MAKES) {
        println!("{name}");
        all(place, &[&longer, &format!("folder/{longer}")], Errno::NAMETOOLONG, call);
    }
    place.make(&long, b"x");
    place.rename(&long, &format!("folder/{long}"), 0).unwrap();
    assert_eq!(place.names("folder"), [long]);
    refused(place.symlink("", "fresh"), Errno::NOENT);
    refused(place.symlink(&"t".repeat(4096), "fresh"), Errno::NAMETOOLONG);
    for length in [1, 59, 60, 1919, 1920, 1921, 4094, 4095] {
        let target = "t".repeat(length);
        place.symlink(&target, "fresh").unwrap();
        assert_eq!(place.stat("fresh").unwrap().size, length as u64);
        assert_eq!(place.readlink("fresh").unwrap(), target);
        place.unlink("fresh").unwrap();
    }
}

pub fn renames_that_make_no_sense(place: &dyn Place) {
    const EXCHANGE: u32 = libc::RENAME_EXCHANGE;
    for folder in ["a", "a/b", "a/b/c", "z"] {
        place.mkdir(folder, 0o755).unwrap();
    }
    place.make("file", b"");
    refused(place.rename("a", "a/x", 0), Errno::INVAL);
    refused(place.rename("a", "a/b/c/x", 0), Errno::INVAL);
    refused(place.rename("a", "a/b/c", 0), Errno::INVAL);
    refused(place.rename("a/b", "a", 0), Errno::NOTEMPTY);
    refused(place.rename("a/b/c", "a", 0), Errno::NOTEMPTY);
    refused(place.rename("a", "a/b", EXCHANGE), Errno::INVAL);
    refused(place.rename("a/b/c", "a", EXCHANGE), Errno::INVAL);
    for flags in [8, EXCHANGE | libc::RENAME_NOREPLACE, EXCHANGE | libc::RENAME_WHITEOUT, 1 << 31] {
        refused(place.rename("file", "z", flags), Errno::INVAL);
    }
    place.rename("a", "a", 0).unwrap();
    place.rename("a/b", "a/b", EXCHANGE).unwrap();
    assert_eq!((place.names("."), place.names("a/b")), (vec!["a".into(), "file".into(), "z".into()], vec!["c".into()]));
}

pub fn files_that_would_be_too_large(place: &dyn Place) {
    let max = place.size_max();
    let file = place.open_to_write("file");
    if place.is_ext4() {
        // How far it goes depends on its blocks; ours goes on.
        refused(place.resize(file, max + 4096), Errno::FBIG);
        refused(place.write(file, max, b"x"), Errno::FBIG);
    } else {
        refused(place.resize(file, max + 1), Errno::FBIG);
        if !place.holds_back() {
            refused(place.write(file, max, b"x"), Errno::FBIG);
        }
        assert_eq!(place.stat_open(file).unwrap().size, 0);
    }
    refused(place.allocate(file, 0, max - 4096, 8192), Errno::FBIG);
    refused(place.allocate(file, 0, i64::MAX as u64, 1), Errno::FBIG);
    refused(place.allocate(file, libc::FALLOC_FL_KEEP_SIZE, max, 8192), Errno::FBIG);
    assert_eq!(place.stat_open(file).unwrap().size, 0);
    place.resize(file, max).unwrap();
    assert_eq!(place.read(file, max - 2, 10).unwrap(), [0, 0]);
    // The kernel's own end is 4095 bytes further (MAX_LFS_FILESIZE); what it holds back it takes up to there.
    let data = if place.holds_back() { &b"123"[..] } else { b"12345" };
    assert_eq!(place.write(file, max - 3, data).unwrap(), 3, "as far as it goes");
    assert_eq!(place.read(file, max - 4, 10).unwrap(), b"\x00123");
    assert_eq!(place.read(file, max, 10).unwrap(), b"");
    place.close(file);
    let file = place.open("file", RDONLY, 0).unwrap();
    place.settled(&Ok(max - 4096), || place.seek(file, 0, libc::SEEK_DATA));
    assert_eq!(place.seek(file, max - 1, libc::SEEK_HOLE).unwrap(), max);
    assert_eq!(place.seek(file, 1, libc::SEEK_HOLE).unwrap(), 1);
    place.close(file);
    place.resize_path("file", 3).unwrap();
    assert_eq!(place.content("file"), [0; 3]);
}

pub fn as_many_links_as_ext4_has(place: &dyn Place) {
    const LINKS: u64 = 65_000;
    place.make("file", b"");
    let name = |index: u64| format!("folder{}/{index}", index % 7);
    (0..7).for_each(|index| place.mkdir(&format!("folder{index}"), 0o755).unwrap());
    (1..LINKS).for_each(|index| place.link("file", &name(index)).unwrap());
    refused(place.link("file", "more"), Errno::MLINK);
    assert_eq!(place.stat(&name(9)).unwrap().nlink, LINKS);
    place.unlink(&name(11)).unwrap();
    place.link("file", "more").unwrap();
    refused(place.link("more", "yet more"), Errno::MLINK);
    assert_eq!(place.stat("more").unwrap().nlink, LINKS);
    (1..LINKS).filter(|index| *index != 11).for_each(|index| place.unlink(&name(index)).unwrap());
    assert_eq!(place.stat("file").unwrap().nlink, 2);
}

pub fn offsets_without_data_or_hole(place: &dyn Place) {
    place.make("file", b"0123456789");
    place.make("empty", b"");
    let file = place.open("file", RDONLY, 0).unwrap();
    let empty = place.open("empty", RDONLY, 0).unwrap();
    for whence in [libc::SEEK_DATA, libc::SEEK_HOLE] {
        refused(place.seek(file, 10, whence), Errno::NXIO);
        refused(place.seek(file, 1 << 40, whence), Errno::NXIO);
        refused(place.seek(empty, 0, whence), Errno::NXIO);
    }
    assert_eq!(place.seek(file, 9, libc::SEEK_DATA).unwrap(), 9);
    assert_eq!(place.seek(file, 3, libc::SEEK_HOLE).unwrap(), 10, "every file ends with a hole");
    let writer = place.open_to_write("sparse");
    place.resize(writer, 1 << 20).unwrap();
    place.close(writer);
    let sparse = place.open("sparse", RDONLY, 0).unwrap();
    place.settled(&Err(Errno::NXIO), || place.seek(sparse, 0, libc::SEEK_DATA));
    assert_eq!(place.seek(sparse, 5, libc::SEEK_HOLE).unwrap(), 5);
    [file, empty, sparse].into_iter().for_each(|handle| place.close(handle));
}

/// What the kernel passes on and ext4 does. The kernel itself refuses FUSE the others (`fuse_file_fallocate` in
/// fs/fuse/file.c: anything but KEEP_SIZE, PUNCH_HOLE and ZERO_RANGE is EOPNOTSUPP), and PUNCH_HOLE without KEEP_SIZE to
/// everybody (`vfs_fallocate` in fs/open.c).
pub fn modes_of_allocation(place: &dyn Place) {
    use libc::{FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_INSERT_RANGE, FALLOC_FL_UNSHARE_RANGE};
    use libc::{FALLOC_FL_KEEP_SIZE as KEEP, FALLOC_FL_PUNCH_HOLE as PUNCH, FALLOC_FL_ZERO_RANGE as ZERO};
    let file = place.open_to_write("file");
    place.write_all(file, 0, &[1; 20_000]);
    for mode in [0, KEEP, PUNCH | KEEP, ZERO, ZERO | KEEP] {
        place.allocate(file, mode, 4096, 4096).unwrap();
    }
    for mode in [PUNCH, PUNCH | ZERO | KEEP, FALLOC_FL_UNSHARE_RANGE, 1 << 20] {
        refused(place.allocate(file, mode, 4096, 4096), Errno::OPNOTSUPP);
    }
    for mode in [FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_INSERT_RANGE] {
        let outcome = place.allocate(file, mode, 4096, 4096);
        // Not promised, with that reason.
        if place.is_ext4() { outcome.unwrap() } else { refused(outcome, Errno::OPNOTSUPP) }
    }
    refused(place.allocate(file, 0, 0, 0), Errno::INVAL);
    assert_eq!(place.stat_open(file).unwrap().size, 20_000);
    place.close(file);
}

pub fn attributes_and_their_flags(place: &dyn Place) {
    place.make("file", b"");
    place.mkdir("folder", 0o755).unwrap();
    for path in ["file", "folder"] {
        refused(place.attribute(path, "user.one"), Errno::NODATA);
        refused(place.remove_attribute(path, "user.one"), Errno::NODATA);
        refused(place.set_attribute(path, "user.one", b"1", libc::XATTR_REPLACE), Errno::NODATA);
        place.set_attribute(path, "user.one", b"1", libc::XATTR_CREATE).unwrap();
        refused(place.set_attribute(path, "user.one", b"2", libc::XATTR_CREATE), Errno::EXIST);
        place.set_attribute(path, "user.one", b"two", libc::XATTR_REPLACE).unwrap();
        place.set_attribute(path, "user.empty", b"", 0).unwrap();
        assert_eq!(place.attribute(path, "user.one").unwrap(), b"two");
        assert_eq!(place.attribute(path, "user.empty").unwrap(), b"");
        assert_eq!(place.attributes(path).unwrap(), ["user.empty", "user.one"]);
        refused(place.set_attribute(path, "user.one", b"2", 4), Errno::INVAL);
        refused(place.set_attribute(path, "user.big", &[0; 65_537], 0), Errno::TOOBIG);
        place.remove_attribute(path, "user.one").unwrap();
        refused(place.attribute(path, "user.one"), Errno::NODATA);
    }
}

pub fn attributes_until_there_is_no_room(place: &dyn Place) {
    place.make("file", b"");
    let name = |index: usize| format!("user.{index:0240}");
    let mut count = 0;
    let refusal = loop {
        match place.set_attribute("file", &name(count), count.to_string().as_bytes(), 0) {
            Ok(()) => count += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refusal, Errno::NOSPC, "after {count}");
    assert!(count > 10, "only {count}");
    let names: Vec<String> = (0..count).map(name).collect();
    assert_eq!(place.attributes("file").unwrap(), names);
    for (index, name) in names.iter().enumerate() {
        assert_eq!(place.attribute("file", name).unwrap(), index.to_string().as_bytes());
    }
    // What was there can go, and its room is there again.
    place.remove_attribute("file", &names[3]).unwrap();
    place.set_attribute("file", &name(count), b"7777", 0).unwrap();
    place.set_attribute("file", &names[4], b"new", libc::XATTR_REPLACE).unwrap();
    assert_eq!(place.attribute("file", &names[4]).unwrap(), b"new");
    place.unlink("file").unwrap();
}

/// The largest value that the kernel lets through; ext4 has room for a block at most.
pub fn the_largest_attribute(place: &dyn Place) {
    place.make("file", b"");
    let value: Vec<u8> = (0..65_536_u32).map(|index| (index % 251) as u8).collect();
    let outcome = place.set_attribute("file", "user.big", &value, 0);
    if place.is_ext4() {
        return refused(outcome, Errno::NOSPC);
    }
    outcome.unwrap();
    assert_eq!(place.attribute("file", "user.big").unwrap(), value);
    place.set_attribute("file", "user.big", &value[..5000], 0).unwrap();
    assert_eq!(place.attribute("file", "user.big").unwrap(), value[..5000]);
}
