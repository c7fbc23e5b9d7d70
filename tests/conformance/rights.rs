//! Modes, owners and access control lists. All of it needs root, to act as others.

use super::place::{Errno, Place, Result, Usual, Who, refused};

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
const SETGID: u32 = 0o2000;
const OWNER: Who = Who { uid: 1234, gid: 4321, groups: &[4321, 4322], umask: 0 };
const OTHER: Who = Who { uid: 1235, gid: 5321, groups: &[], umask: 0 };

/// What `who` gets.
fn by<T: Send>(place: &dyn Place, who: &Who, mut deed: impl FnMut() -> T + Send) -> T {
    let mut out = None;
    place.act(who, &mut || out = Some(deed()));
    out.unwrap()
}

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHERS: u16 = 0x20;
const NOBODY: u32 = u32::MAX;

/// The value of a list: tag, permissions, number.
fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut out = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        out.extend(tag.to_le_bytes());
        out.extend(permissions.to_le_bytes());
        out.extend(id.to_le_bytes());
    }
    out
}

/// Owner, one named user, group, one named group, mask, others.
fn named(owner: u16, user: u16, group: u16, others_group: u16, mask: u16, others: u16) -> Vec<u8> {
    list(&[
        (USER_OBJ, owner, NOBODY),
        (USER, user, OTHER.uid),
        (GROUP_OBJ, group, NOBODY),
        (GROUP, others_group, 777),
        (MASK, mask, NOBODY),
        (OTHERS, others, NOBODY),
    ])
}

fn minimal(owner: u16, group: u16, others: u16) -> Vec<u8> {
    list(&[(USER_OBJ, owner, NOBODY), (GROUP_OBJ, group, NOBODY), (OTHERS, others, NOBODY)])
}

fn mode(place: &dyn Place, path: &str) -> u32 {
    place.stat(path).unwrap().mode & 0o7777
}

fn create(place: &dyn Place, path: &str, mode: u32) -> Result<()> {
    place.open(path, libc::O_CREAT | libc::O_EXCL | libc::O_RDONLY, mode).map(|file| place.close(file))
}

pub fn modes_are_kept(place: &dyn Place) {
    place.make("file", b"");
    place.mkdir("folder", 0o755).unwrap();
    for (path, kind) in [("file", libc::S_IFREG), ("folder", libc::S_IFDIR)] {
        for mode in [0, 0o7777, 0o4000, 0o2000, 0o1000, 0o111, 0o644] {
            place.chmod(path, mode).unwrap();
            assert_eq!(place.stat(path).unwrap().mode, kind | mode);
        }
    }
    place.mknod("fifo", libc::S_IFIFO | 0o640, 0).unwrap();
    place.mknod("socket", libc::S_IFSOCK | 0o600, 0).unwrap();
    assert_eq!(place.stat("fifo").unwrap().mode, libc::S_IFIFO | 0o640);
    assert_eq!(place.stat("socket").unwrap().mode, libc::S_IFSOCK | 0o600);
}

pub fn device_nodes(place: &dyn Place) {
    for (index, device) in [0x103, 0x501, 0].into_iter().enumerate() {
        for (kind, name) in [(libc::S_IFCHR, "char"), (libc::S_IFBLK, "block")] {
            let path = format!("{name}{index}");
            place.mknod(&path, kind | 0o640, device).unwrap();
            let stat = place.stat(&path).unwrap();
            assert_eq!((stat.mode, stat.rdev, stat.size), (kind | 0o640, device, 0));
        }
    }
}

pub fn umask_takes_bits(place: &dyn Place) {
    place.chmod(".", 0o777).unwrap();
    let who = Who { umask: 0o027, ..OWNER };
    by(place, &who, || {
        create(place, "file", 0o666).unwrap();
        place.mkdir("folder", 0o777).unwrap();
        place.mknod("fifo", libc::S_IFIFO | 0o666, 0).unwrap();
        place.symlink("x", "symlink").unwrap();
    });
    for (path, expected) in [("file", 0o640), ("folder", 0o750), ("fifo", 0o640), ("symlink", 0o777)] {
        let stat = place.stat(path).unwrap();
        assert_eq!((stat.mode & 0o7777, stat.uid, stat.gid), (expected, OWNER.uid, OWNER.gid), "{path}");
    }
}

pub fn setgid_directories_give_their_group(place: &dyn Place) {
    place.mkdir("folder", 0o755).unwrap();
    place.chown("folder", None, Some(777)).unwrap();
    place.chmod("folder", 0o2777).unwrap();
    by(place, &OWNER, || {
        create(place, "folder/file", 0o644).unwrap();
        place.mkdir("folder/below", 0o755).unwrap();
        place.mkdir("folder/below/further", 0o700).unwrap();
        place.mknod("folder/fifo", libc::S_IFIFO | 0o644, 0).unwrap();
        place.symlink("x", "folder/symlink").unwrap();
    });
    for (path, expected) in [
        ("folder/file", 0o644),
        ("folder/below", SETGID | 0o755),
        ("folder/below/further", SETGID | 0o700),
        ("folder/fifo", 0o644),
        ("folder/symlink", 0o777),
    ] {
        let stat = place.stat(path).unwrap();
        assert_eq!((stat.mode & 0o7777, stat.uid, stat.gid), (expected, OWNER.uid, 777), "{path}");
    }
    // What moves keeps its group.
    by(place, &OWNER, || place.rename("folder/file", "folder/below/moved", 0)).unwrap();
    place.make("outside", b"");
    place.rename("outside", "folder/outside", 0).unwrap();
    assert_eq!(place.stat("folder/outside").unwrap().gid, 0);
}

/// The kernel decides this (`setattr_prepare` and `mode_strip_sgid` in fs/attr.c and fs/inode.c).
pub fn setgid_goes_where_its_owner_is_no_member(place: &dyn Place) {
    place.mkdir("folder", 0o755).unwrap();
    place.chown("folder", None, Some(777)).unwrap();
    place.chmod("folder", 0o2777).unwrap();
    by(place, &OWNER, || {
        create(place, "folder/program", 0o2755).unwrap();
        create(place, "folder/text", 0o2644).unwrap();
    });
    assert_eq!((mode(place, "folder/program"), mode(place, "folder/text")), (0o755, SETGID | 0o644));
    by(place, &OWNER, || place.chmod("folder/program", 0o2755)).unwrap();
    assert_eq!(mode(place, "folder/program"), 0o755);
    place.chown("folder/program", None, Some(4322)).unwrap();
    by(place, &OWNER, || place.chmod("folder/program", 0o2755)).unwrap();
    assert_eq!(mode(place, "folder/program"), 0o2755, "of a group that he is in");
}

pub fn sticky_directories_keep_what_is_others(place: &dyn Place) {
    place.mkdir("folder", 0o755).unwrap();
    place.chmod("folder", 0o1777).unwrap();
    by(place, &OWNER, || {
        create(place, "folder/file", 0o666).unwrap();
        place.mkdir("folder/below", 0o777).unwrap();
    });
    by(place, &OTHER, || {
        create(place, "folder/his", 0o666).unwrap();
        refused(place.unlink("folder/file"), Errno::PERM);
        refused(place.rmdir("folder/below"), Errno::PERM);
        refused(place.rename("folder/file", "folder/x", 0), Errno::PERM);
        refused(place.rename("folder/his", "folder/file", 0), Errno::PERM);
        refused(place.rename("folder/his", "folder/file", libc::RENAME_EXCHANGE), Errno::PERM);
        place.rename("folder/his", "folder/hers", 0).unwrap();
    });
    by(place, &OWNER, || place.unlink("folder/file")).unwrap();
    place.chown("folder", Some(OWNER.uid), None).unwrap();
    by(place, &OWNER, || place.unlink("folder/hers")).unwrap();
    assert_eq!(place.names("folder"), ["below"]);
}

pub fn owners_are_changed_by_root_alone(place: &dyn Place) {
    place.chmod(".", 0o777).unwrap();
    by(place, &OWNER, || {
        create(place, "file", 0o644).unwrap();
        refused(place.chown("file", Some(OTHER.uid), None), Errno::PERM);
        refused(place.chown("file", None, Some(777)), Errno::PERM);
        place.chown("file", None, Some(4322)).unwrap();
        place.chown("file", Some(OWNER.uid), None).unwrap();
    });
    by(place, &OTHER, || {
        refused(place.chmod("file", 0o600), Errno::PERM);
        refused(place.chown("file", Some(OTHER.uid), None), Errno::PERM);
        refused(place.open("file", libc::O_WRONLY, 0), Errno::ACCESS);
        refused(place.resize_path("file", 0), Errno::ACCESS);
        refused(place.set_attribute("file", "user.x", b"x", 0), Errno::ACCESS);
    });
    assert_eq!(place.stat("file").unwrap().gid, 4322);
}

pub fn masks_follow_the_mode(place: &dyn Place) {
    place.make("file", b"");
    place.chmod("file", 0o644).unwrap();
    refused(place.attribute("file", ACCESS), Errno::NODATA);
    place.set_attribute("file", ACCESS, &named(7, 6, 5, 4, 6, 1), 0).unwrap();
    assert_eq!(mode(place, "file"), 0o761, "the group's bits are the mask");
    assert_eq!(place.attribute("file", ACCESS).unwrap(), named(7, 6, 5, 4, 6, 1));
    place.chmod("file", 0o4714).unwrap();
    assert_eq!(place.attribute("file", ACCESS).unwrap(), named(7, 6, 5, 4, 1, 4));
    assert_eq!(mode(place, "file"), 0o4714);
    assert!(place.attributes("file").unwrap().contains(&ACCESS.to_owned()));
    // A list that says no more than the mode is none.
    place.set_attribute("file", ACCESS, &minimal(6, 4, 0), 0).unwrap();
    assert_eq!(mode(place, "file"), 0o4640);
    refused(place.attribute("file", ACCESS), Errno::NODATA);
    place.set_attribute("file", ACCESS, &named(6, 6, 6, 6, 5, 0), 0).unwrap();
    place.remove_attribute("file", ACCESS).unwrap();
    refused(place.attribute("file", ACCESS), Errno::NODATA);
    assert_eq!(mode(place, "file"), 0o4650, "the mask stays in the mode");
    // Without a mask the group's own entry follows.
    let without = [(USER_OBJ, 6, NOBODY), (GROUP_OBJ, 6, NOBODY), (MASK, 4, NOBODY), (OTHERS, 0, NOBODY)];
    place.set_attribute("file", ACCESS, &list(&without), 0).unwrap();
    assert_eq!(mode(place, "file"), 0o4640);
}

pub fn defaults_are_inherited(place: &dyn Place) {
    place.mkdir("folder", 0o777).unwrap();
    place.chmod("folder", 0o777).unwrap();
    place.set_attribute("folder", DEFAULT, &named(7, 6, 5, 4, 7, 5), 0).unwrap();
    assert_eq!(mode(place, "folder"), 0o777, "it is for others");
    refused(place.attribute("folder", ACCESS), Errno::NODATA);
    let who = Who { umask: 0o077, ..OWNER };
    by(place, &who, || {
        create(place, "folder/file", 0o666).unwrap();
        create(place, "folder/private", 0o600).unwrap();
        place.mkdir("folder/below", 0o777).unwrap();
        place.mknod("folder/fifo", libc::S_IFIFO | 0o666, 0).unwrap();
        place.symlink("x", "folder/symlink").unwrap();
    });
    // The umask counts for nothing here.
    assert_eq!(mode(place, "folder/file"), 0o664);
    assert_eq!(place.attribute("folder/file", ACCESS).unwrap(), named(6, 6, 5, 4, 6, 4));
    assert_eq!(mode(place, "folder/private"), 0o600);
    assert_eq!(place.attribute("folder/private", ACCESS).unwrap(), named(6, 6, 5, 4, 0, 0));
    assert_eq!(mode(place, "folder/fifo"), 0o664);
    assert_eq!(mode(place, "folder/below"), 0o775);
    assert_eq!(place.attribute("folder/below", ACCESS).unwrap(), named(7, 6, 5, 4, 7, 5));
    assert_eq!(place.attribute("folder/below", DEFAULT).unwrap(), named(7, 6, 5, 4, 7, 5));
    refused(place.attribute("folder/file", DEFAULT), Errno::NODATA);
    assert_eq!(place.attributes("folder/symlink").unwrap(), Vec::<String>::new());
    // A default that says no more than a mode acts as a umask does.
    place.set_attribute("folder", DEFAULT, &minimal(7, 5, 0), 0).unwrap();
    by(place, &who, || {
        create(place, "folder/plain", 0o666).unwrap();
        place.mkdir("folder/open", 0o777).unwrap();
    });
    assert_eq!((mode(place, "folder/plain"), mode(place, "folder/open")), (0o640, 0o750));
    refused(place.attribute("folder/plain", ACCESS), Errno::NODATA);
    assert_eq!(place.attribute("folder/open", DEFAULT).unwrap(), minimal(7, 5, 0));
    place.remove_attribute("folder", DEFAULT).unwrap();
    by(place, &who, || create(place, "folder/masked", 0o666)).unwrap();
    assert_eq!(mode(place, "folder/masked"), 0o600);
}

pub fn lists_that_make_no_sense(place: &dyn Place) {
    place.make("file", b"");
    place.mkdir("folder", 0o755).unwrap();
    place.symlink("x", "symlink").unwrap();
    let wrong: [Vec<u8>; 6] = [
        list(&[(USER_OBJ, 7, NOBODY)]),
        list(&[(USER_OBJ, 7, NOBODY), (USER, 7, 5), (GROUP_OBJ, 7, NOBODY), (OTHERS, 7, NOBODY)]),
        list(&[(GROUP_OBJ, 7, NOBODY), (USER_OBJ, 7, NOBODY), (OTHERS, 7, NOBODY)]),
        list(&[(USER_OBJ, 8, NOBODY), (GROUP_OBJ, 7, NOBODY), (OTHERS, 7, NOBODY)]),
        minimal(7, 7, 7)[..20].to_vec(),
        vec![9; 28],
    ];
    for value in wrong {
        let outcome = place.set_attribute("file", ACCESS, &value, 0).unwrap_err();
        // Another version is "not supported" (`posix_acl_from_xattr` in fs/posix_acl.c); the core's word for it is another.
        assert!(matches!(outcome, Errno::INVAL | Errno::OPNOTSUPP), "{outcome} for {value:?}");
    }
    refused(place.set_attribute("symlink", ACCESS, &named(7, 7, 7, 7, 7, 7), 0), Errno::OPNOTSUPP);
    refused(place.set_attribute("file", DEFAULT, &named(7, 7, 7, 7, 7, 7), 0), Errno::ACCESS);
    assert_eq!(place.attributes("file").unwrap(), Vec::<String>::new());
}

/// The kernel grants and refuses by the list, masked.
pub fn lists_are_obeyed(place: &dyn Place) {
    place.make("file", b"secret");
    place.chmod("file", 0o600).unwrap();
    let may = |flags| by(place, &OTHER, || place.open("file", flags, 0).map(|file| place.close(file)));
    refused(may(libc::O_RDONLY), Errno::ACCESS);
    place.set_attribute("file", ACCESS, &named(6, 6, 0, 0, 6, 0), 0).unwrap();
    may(libc::O_RDWR).unwrap();
    place.chmod("file", 0o640).unwrap();
    may(libc::O_RDONLY).unwrap();
    refused(may(libc::O_RDWR), Errno::ACCESS);
    let group = Who { uid: 1300, gid: 777, groups: &[], umask: 0 };
    refused(by(place, &group, || place.open("file", libc::O_RDONLY, 0)), Errno::ACCESS);
    place.set_attribute("file", ACCESS, &named(6, 0, 0, 4, 6, 4), 0).unwrap();
    refused(may(libc::O_RDONLY), Errno::ACCESS);
    by(place, &group, || place.open("file", libc::O_RDONLY, 0).map(|file| place.close(file))).unwrap();
}

pub fn a_list_set_by_a_stranger_to_the_group_takes_setgid(place: &dyn Place) {
    place.make("file", b"");
    place.chown("file", Some(OWNER.uid), Some(777)).unwrap();
    place.chmod("file", 0o2755).unwrap();
    by(place, &OWNER, || place.set_attribute("file", ACCESS, &named(7, 7, 5, 5, 5, 5), 0)).unwrap();
    assert_eq!(mode(place, "file"), 0o755);
    place.chmod("file", 0o2755).unwrap();
    place.chown("file", None, Some(4322)).unwrap();
    place.chmod("file", 0o2755).unwrap();
    by(place, &OWNER, || place.set_attribute("file", ACCESS, &named(7, 7, 5, 5, 5, 5), 0)).unwrap();
    assert_eq!(mode(place, "file"), 0o2755, "of a group that he is in");
}

/// Who may have which namespace is the kernel's business (`xattr_permission` in fs/xattr.c).
pub fn namespaces_of_attributes(place: &dyn Place) {
    place.chmod(".", 0o777).unwrap();
    place.make("file", b"");
    place.chown("file", Some(OWNER.uid), None).unwrap();
    place.mknod("fifo", libc::S_IFIFO | 0o666, 0).unwrap();
    place.symlink("file", "symlink").unwrap();
    for name in ["user.x", "trusted.x", "security.x"] {
        place.set_attribute("file", name, name.as_bytes(), 0).unwrap();
        assert_eq!(place.attribute("file", name).unwrap(), name.as_bytes());
    }
    assert_eq!(place.attributes("file").unwrap(), ["security.x", "trusted.x", "user.x"]);
    for path in ["fifo", "symlink"] {
        refused(place.set_attribute(path, "user.x", b"x", 0), Errno::PERM);
        refused(place.attribute(path, "user.x"), Errno::NODATA);
        refused(place.remove_attribute(path, "user.x"), Errno::PERM);
        place.set_attribute(path, "trusted.x", b"x", 0).unwrap();
        assert_eq!(place.attribute(path, "trusted.x").unwrap(), b"x");
    }
    for name in ["nothing.x", "nodot", "system.x"] {
        refused(place.set_attribute("file", name, b"x", 0), Errno::OPNOTSUPP);
        refused(place.attribute("file", name), Errno::OPNOTSUPP);
    }
    refused(place.set_attribute("file", "", b"x", 0), Errno::RANGE);
    refused(place.set_attribute("file", &format!("user.{}", "x".repeat(251)), b"x", 0), Errno::RANGE);
    place.set_attribute("file", &format!("user.{}", "x".repeat(250)), b"x", 0).unwrap();
    by(place, &OWNER, || {
        refused(place.set_attribute("file", "trusted.x", b"x", 0), Errno::PERM);
        refused(place.attribute("file", "trusted.x"), Errno::NODATA);
        assert!(!place.attributes("file").unwrap().contains(&"trusted.x".to_owned()), "it is root's");
        place.set_attribute("file", "user.x", b"his", 0).unwrap();
        refused(place.set_attribute("file", "security.x", b"his", 0), Errno::PERM);
    });
}
