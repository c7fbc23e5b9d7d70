//! Times.

use super::place::{Errno, Handle, Moment, Place, Stat, Usual, When, refused};

/// Before 1970, after 2038, and the ends of what ext4 can keep.
const MOMENTS: [Moment; 9] = [
    (-0x8000_0000, 0),
    (-1, 999_999_999),
    (-1, 1),
    (-2, 500_000_000),
    (0, 0),
    (0x7fff_ffff, 999_999_999),
    (0x8000_0000, 1),
    (0x1_0000_0000, 5),
    (0x3_7fff_fffe, 999_999_999),
];

pub fn times_are_kept_to_the_nanosecond(place: &dyn Place) {
    place.make("file", b"");
    place.mkdir("folder", 0o755).unwrap();
    place.symlink("x", "symlink").unwrap();
    for path in ["file", "folder", "symlink"] {
        for moment in MOMENTS {
            for other in [(7, 7), moment] {
                place.utimes(path, When::At(moment), When::At(other)).unwrap();
                let stat = place.stat(path).unwrap();
                assert_eq!((stat.atime, stat.mtime), (moment, other), "{path}");
            }
        }
    }
}

pub fn special_times(place: &dyn Place) {
    place.make("file", b"");
    let old = |sec| When::At((sec, 5));
    place.utimes("file", old(100), old(200)).unwrap();
    place.tick();
    let before = place.stat("file").unwrap();
    place.utimes("file", When::Omit, When::Omit).unwrap();
    assert_eq!(place.stat("file").unwrap(), before, "nothing was asked for");
    place.utimes("file", When::Now, When::Omit).unwrap();
    let after = place.stat("file").unwrap();
    assert!(after.atime > before.ctime && after.mtime == (200, 5) && after.ctime > before.ctime, "{after:?}");
    place.tick();
    place.utimes("file", When::Omit, When::Now).unwrap();
    let last = place.stat("file").unwrap();
    assert!(last.atime == after.atime && last.mtime > after.atime && last.ctime > after.ctime, "{last:?}");
    refused(place.utimes("file", When::At((1, 1_000_000_000)), When::Omit), Errno::INVAL);
    refused(place.utimes("file", When::Omit, When::At((1, 2_000_000_000))), Errno::INVAL);
    assert_eq!(place.stat("file").unwrap(), last);
}

/// What happens to the times of one object: a letter for each that becomes newer.
fn newer(before: &Stat, after: &Stat) -> String {
    let pairs = [("a", before.atime, after.atime), ("m", before.mtime, after.mtime), ("c", before.ctime, after.ctime)];
    pairs.into_iter().filter(|(_, before, after)| before != after).map(|(name, ..)| name).collect()
}

/// Name of a call, what it does, and which times of `file`, `folder` and `other` (directories) it makes new.
type Row = (&'static str, fn(&dyn Place, Handle), [&'static str; 3]);

const CHANGES: &[Row] = &[
    ("chmod", |p, _| p.chmod("folder/file", 0o640).unwrap(), ["c", "", ""]),
    ("chmod to the same", |p, _| p.chmod("folder/file", 0o644).unwrap(), ["c", "", ""]),
    ("chown to the same", |p, _| p.chown("folder/file", Some(0), Some(0)).unwrap(), ["c", "", ""]),
    ("utimes", |p, _| p.utimes("folder/file", When::Omit, When::Now).unwrap(), ["mc", "", ""]),
    ("write", |p, file| p.write_all(file, 0, b"x"), ["mc", "", ""]),
    ("write of nothing", |p, file| assert_eq!(p.write(file, 0, b"").unwrap(), 0), ["", "", ""]),
    ("read", |p, file| drop(p.read(file, 0, 3).unwrap()), ["", "", ""]),
    ("fsync", |p, file| p.fsync(file).unwrap(), ["", "", ""]),
    ("cut", |p, file| p.resize(file, 3).unwrap(), ["mc", "", ""]),
    ("made longer", |p, file| p.resize(file, 30_000).unwrap(), ["mc", "", ""]),
    ("ftruncate to the same size", |p, file| p.resize(file, 10_000).unwrap(), ["mc", "", ""]),
    ("truncate by name", |p, _| p.resize_path("folder/file", 30_000).unwrap(), ["mc", "", ""]),
    ("open and cut", |p, _| open_and_close(p, "folder/file", libc::O_TRUNC), ["mc", "", ""]),
    ("open", |p, _| open_and_close(p, "folder/file", 0), ["", "", ""]),
    ("allocate beyond", |p, file| p.allocate(file, 0, 10_000, 9000).unwrap(), ["mc", "", ""]),
    ("allocate, keeping", |p, file| p.allocate(file, KEEP, 20_000, 9000).unwrap(), ["mc", "", ""]),
    ("allocate what is there", |p, file| p.allocate(file, 0, 0, 4096).unwrap(), ["mc", "", ""]),
    ("punch", |p, file| p.allocate(file, PUNCH, 0, 4096).unwrap(), ["mc", "", ""]),
    ("punch a hole", |p, file| p.allocate(file, PUNCH, 1 << 20, 4096).unwrap(), ["mc", "", ""]),
    ("zero", |p, file| p.allocate(file, libc::FALLOC_FL_ZERO_RANGE, 0, 4096).unwrap(), ["mc", "", ""]),
    ("link", |p, _| p.link("folder/file", "other/link").unwrap(), ["c", "", "mc"]),
    ("rename within", |p, _| p.rename("folder/file", "folder/new", 0).unwrap(), ["c", "mc", ""]),
    ("rename away", |p, _| p.rename("folder/file", "other/new", 0).unwrap(), ["c", "mc", "mc"]),
    ("replace", |p, _| p.rename("other/victim", "folder/file", 0).unwrap(), ["c", "mc", "mc"]),
    ("exchange", |p, _| p.rename("other/victim", "folder/file", libc::RENAME_EXCHANGE).unwrap(), ["c", "mc", "mc"]),
    ("rename to itself", |p, _| p.rename("folder/file", "folder/file", 0).unwrap(), ["", "", ""]),
    ("rename onto its link", |p, _| p.rename("folder/file", "folder/twin", 0).unwrap(), ["", "", ""]),
    ("unlink", |p, _| p.unlink("folder/file").unwrap(), ["c", "mc", ""]),
    ("mkdir", |p, _| p.mkdir("folder/new", 0o755).unwrap(), ["", "mc", ""]),
    ("rmdir", |p, _| p.rmdir("folder/below").unwrap(), ["", "mc", ""]),
    ("move a directory", |p, _| p.rename("folder/below", "other/below", 0).unwrap(), ["", "mc", "mc"]),
    ("mkdir below", |p, _| p.mkdir("folder/below/new", 0o755).unwrap(), ["", "", ""]),
    ("mknod", |p, _| p.mknod("folder/new", libc::S_IFIFO | 0o600, 0).unwrap(), ["", "mc", ""]),
    ("symlink", |p, _| p.symlink("x", "folder/new").unwrap(), ["", "mc", ""]),
    ("create", |p, _| p.make("folder/new", b""), ["", "mc", ""]),
    ("setxattr", |p, _| p.set_attribute("folder/file", "user.x", b"x", 0).unwrap(), ["c", "", ""]),
    ("removexattr", |p, _| p.remove_attribute("folder/file", "user.there").unwrap(), ["c", "", ""]),
    ("getxattr", |p, _| drop(p.attribute("folder/file", "user.there").unwrap()), ["", "", ""]),
    ("setxattr of a directory", |p, _| p.set_attribute("folder", "user.x", b"x", 0).unwrap(), ["", "c", ""]),
    ("a name that is taken", |p, _| refused(p.mkdir("folder/file", 0o755), Errno::EXIST), ["", "", ""]),
    ("a directory with entries", |p, _| refused(p.rmdir("folder"), Errno::NOTEMPTY), ["", "", ""]),
    ("a link to a directory", |p, _| refused(p.link("other", "folder/new"), Errno::PERM), ["", "", ""]),
    ("a copy", |p, file| copy_from_other(p, file), ["mc", "", ""]),
];

const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;

fn open_and_close(place: &dyn Place, path: &str, flags: i32) {
    let file = place.open(path, libc::O_WRONLY | flags, 0).unwrap();
    place.close(file);
}

fn copy_from_other(place: &dyn Place, file: Handle) {
    let from = place.open("other/victim", libc::O_RDONLY, 0).unwrap();
    assert_eq!(place.copy((from, 0), (file, 100), 6).unwrap(), 6);
    place.close(from);
}

pub fn which_call_changes_which_time(place: &dyn Place) {
    let mut wrong = vec![];
    for (index, (name, call, expected)) in CHANGES.iter().enumerate() {
        place.mkdir("folder", 0o755).unwrap();
        place.mkdir("folder/below", 0o755).unwrap();
        place.mkdir("other", 0o755).unwrap();
        place.make("folder/file", &[7; 10_000]);
        place.chmod("folder/file", 0o644).unwrap();
        place.link("folder/file", "folder/twin").unwrap();
        place.make("other/victim", b"victim");
        place.set_attribute("folder/file", "user.there", b"x", 0).unwrap();
        let file = place.open("folder/file", libc::O_RDWR, 0).unwrap();
        // An access time of the future: reading does not change it, and anything that does is seen.
        let later = When::At((3_000_000_000, 0));
        for path in ["folder/file", "folder", "other"] {
            place.utimes(path, later, When::At((1_000_000_000, 1))).unwrap();
        }
        let look = || [place.stat_open(file), place.stat("folder"), place.stat("other")].map(Result::unwrap);
        place.tick();
        let before = look();
        call(place, file);
        let after = look();
        let found: Vec<String> = before.iter().zip(&after).map(|(before, after)| newer(before, after)).collect();
        if found != *expected {
            wrong.push(format!("{name}: file, folder, other: {found:?}, should be {expected:?}"));
        }
        place.close(file);
        place.rename("folder", &format!("folder{index}"), 0).unwrap();
        place.rename("other", &format!("other{index}"), 0).unwrap();
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// relatime: a look renews an access time that is older than the last change.
pub fn looks_renew_access_times(place: &dyn Place) {
    place.make("file", b"content");
    place.mkdir("folder", 0o755).unwrap();
    place.make("folder/entry", b"");
    place.symlink("target", "symlink").unwrap();
    let looks: [(&str, &dyn Fn()); 3] = [
        ("file", &|| {
            let file = place.open("file", libc::O_RDONLY, 0).unwrap();
            place.forget(file); // what the kernel answers alone is no look
            place.read(file, 0, 3).unwrap();
            place.close(file);
        }),
        ("folder", &|| drop(place.names("folder"))),
        ("symlink", &|| drop(place.readlink("symlink").unwrap())),
    ];
    for (path, look) in looks {
        place.utimes(path, When::At((100, 0)), When::At((200, 0))).unwrap();
        place.tick();
        let before = place.stat(path).unwrap();
        look();
        let after = place.stat(path).unwrap();
        assert!(after.atime > before.ctime, "{path} was looked at: {before:?} {after:?}");
        assert_eq!((after.mtime, after.ctime), (before.mtime, before.ctime), "{path}");
        place.tick();
        look();
        assert_eq!(place.stat(path).unwrap(), after, "{path}: one look is enough");
    }
}
