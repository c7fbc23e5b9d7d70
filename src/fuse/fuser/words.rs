//! Between the library's words and ours.
//!
//! *Guarantees*: pure translation; a type of file that is none is EIO. *Assumes*: nothing. *Fails when*: see above.
//! *Order*: none. *Not here*: what is done (`super`).

use super::super::{Requests, times};
use super::{LISTING_STEP, Outcome, TRUST};
use crate::fs::{Attr, Caller, DirEntry, Found};
use fuser::{
    Errno, FileAttr, FileType, Generation, INodeNo, ReplyAttr, ReplyEmpty, ReplyEntry, ReplyXattr, Request, TimeOrNow,
};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

pub(super) fn kind_of(mode: u32) -> Option<FileType> {
    Some(match mode & libc::S_IFMT {
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFREG => FileType::RegularFile,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFSOCK => FileType::Socket,
        _ => return None,
    })
}

/// Attributes in the library's words; EIO if the type is none.
pub(super) fn shown(attr: &Attr) -> Outcome<FileAttr> {
    Ok(FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks512,
        atime: times::sent(attr.atime),
        mtime: times::sent(attr.mtime),
        ctime: times::sent(attr.ctime),
        crtime: times::sent(attr.btime),
        kind: kind_of(attr.mode).ok_or(libc::EIO)?,
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: crate::format::BLOCK as u32,
        flags: 0,
    })
}

pub(super) fn entry(attr: &Attr) -> Outcome<(FileAttr, Generation)> {
    Ok((shown(attr)?, Generation(attr.generation)))
}

/// That there is no such name, in a form that the kernel remembers.
pub(super) fn nothing() -> (FileAttr, Generation) {
    let time = times::sent(Default::default());
    let attr = FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: crate::format::BLOCK as u32,
        flags: 0,
    };
    (attr, Generation(0))
}

pub(super) fn caller(request: &Request, umask: u32) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), umask, lacks_fsetid: false }
}

/// `who`, of whom the kernel knows whether he has CAP_FSETID, and the library does not tell: of root it is looked up, where
/// `ino` has set-id bits. Who cannot be seen (another namespace) has it not.
pub(super) fn looked_up(to: &dyn Requests, ino: u64, who: Caller, process: u32) -> Caller {
    const SET_ID: u32 = libc::S_ISUID | libc::S_ISGID;
    let lacks_fsetid = || to.getattr(ino).is_ok_and(|attr| attr.mode & SET_ID != 0) && !has_fsetid(process);
    Caller { lacks_fsetid: who.uid == 0 && lacks_fsetid(), ..who }
}

/// Whether `process` has CAP_FSETID.
fn has_fsetid(process: u32) -> bool {
    const CAP_FSETID: u32 = 4;
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap_or_default();
    u64::from_str_radix(line.trim(), 16).is_ok_and(|set| set >> CAP_FSETID & 1 == 1)
}

/// Supplementary groups of a process, as the kernel shows them; none if it cannot be seen (another namespace).
pub(super) fn groups_of(process: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    line.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

pub(super) fn bytes(name: &OsStr) -> Vec<u8> {
    name.as_bytes().to_vec()
}

pub(super) fn answer_entry(reply: ReplyEntry, (attr, generation): (FileAttr, Generation)) {
    reply.entry(&TRUST, &attr, generation);
}

pub(super) fn answer_attr(reply: ReplyAttr, attr: FileAttr) {
    reply.attr(&TRUST, &attr);
}

pub(super) fn answer_empty(reply: ReplyEmpty, _done: ()) {
    reply.ok();
}

pub(super) fn answer_empty_outcome(reply: ReplyEmpty, outcome: Outcome<()>) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(code) => reply.error(Errno::from_i32(code)),
    }
}

/// getxattr(2) and listxattr(2): the size alone, or all of it, or ERANGE.
pub(super) fn answer_xattr(reply: ReplyXattr, value: &[u8], room: u32) {
    if room == 0 {
        reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX));
    } else if value.len() > room as usize {
        reply.error(Errno::ERANGE);
    } else {
        reply.data(value);
    }
}

pub(super) fn moment(time: TimeOrNow) -> crate::fs::TimeOrNow {
    match time {
        TimeOrNow::SpecificTime(time) => crate::fs::TimeOrNow::Time(times::received(time)),
        TimeOrNow::Now => crate::fs::TimeOrNow::Now,
    }
}

/// What became of an entry of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Added {
    /// It is in the answer.
    Yes,
    /// It does not belong there.
    No,
    /// The answer is full without it.
    Full,
}

impl Added {
    pub(super) fn unless_full(is_full: bool) -> Added {
        if is_full { Added::Full } else { Added::Yes }
    }
}

/// Hand entries from `after` on to `add` until it is full or there are no more.
pub(super) fn list(
    requests: &dyn Requests,
    ino: u64,
    mut after: u64,
    with_attr: bool,
    mut add: impl FnMut(&DirEntry) -> Added,
) -> Outcome<()> {
    let mut any = false;
    // With attributes a page of answer takes about 20, and those that do not fit are work for nothing.
    let mut step = if with_attr { LISTING_STEP / 4 } else { LISTING_STEP };
    loop {
        let entries = match requests.readdir(ino, after, step, with_attr) {
            Ok(entries) => entries,
            // What was found is an answer; the next call meets the error again. An empty answer would be the end.
            Err(_) if any => return Ok(()),
            Err(code) => return Err(code),
        };
        for entry in &entries {
            match add(entry) {
                Added::Full => return Ok(()),
                Added::Yes => any = true,
                Added::No => {}
            }
        }
        match entries.last() {
            Some(last) if entries.len() >= step => after = last.cookie,
            _ => return Ok(()),
        }
        step = (2 * step).min(4 * LISTING_STEP);
    }
}

/// Attributes for READDIRPLUS and how long they may be trusted; none if the inode has gone. The kernel takes only the
/// number and type of `.` and `..`.
pub(super) fn plus(entry: &DirEntry) -> Option<(FileAttr, Generation, Duration)> {
    let dots_attr = || Attr {
        ino: entry.ino,
        mode: libc::S_IFDIR,
        generation: 0,
        size: 0,
        blocks512: 0,
        atime: Default::default(),
        mtime: Default::default(),
        ctime: Default::default(),
        btime: Default::default(),
        nlink: 2,
        uid: 0,
        gid: 0,
        rdev: 0,
    };
    let trust = match entry.found {
        Found::Gone => return None,
        Found::Damaged => Duration::ZERO, // whoever looks at it asks us, and hears of the damage
        Found::LostName => Duration::ZERO,
        Found::Whole => TRUST,
    };
    let dots = entry.name == b"." || entry.name == b"..";
    let mut attr = if dots { dots_attr() } else { entry.attr.clone()? };
    if kind_of(attr.mode).is_none() {
        attr.mode = libc::S_IFREG; // a damaged type; the name must appear all the same
    }
    if entry.found == Found::LostName {
        attr.nlink = attr.nlink.saturating_add(1); // from which the kernel takes one; whoever asks is told by us
    }
    let (attr, generation) = self::entry(&attr).ok()?;
    Some((attr, generation, trust))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::item::Dirent;
    use crate::format::{ItemKind, Key, ROOT_INO};
    use crate::fs::memory::MemoryStore;
    use crate::fs::{Filesystem, FsOptions};
    use std::sync::Arc;

    fn filesystem() -> (Arc<MemoryStore>, Filesystem) {
        let store = Arc::new(MemoryStore::new(7, Filesystem::root_items(Default::default(), 0, 0)));
        let filesystem = Filesystem::new(store.clone(), FsOptions::default()).unwrap();
        (store, filesystem)
    }

    fn add(entry: &DirEntry, names: &mut Vec<(Vec<u8>, Duration)>) -> Added {
        let Some((attr, _, trust)) = plus(entry) else { return Added::No };
        assert_eq!(attr.ino, INodeNo(entry.ino));
        names.push((entry.name.clone(), trust));
        Added::Yes
    }

    #[test]
    fn a_name_whose_inode_is_damaged_is_listed_and_one_that_has_gone_is_not() {
        let (store, filesystem) = filesystem();
        let make = |name: &[u8]| {
            let who = Caller { uid: 0, gid: 0, umask: 0, lacks_fsetid: false };
            Filesystem::mkdir(&filesystem, ROOT_INO, name, 0o755, &who).unwrap().ino
        };
        let damaged = make(b"damaged");
        make(b"whole");
        let entry = Dirent { ino: 999_999, file_type: 8, name: b"gone".to_vec() };
        store.put(Key::new(ROOT_INO, ItemKind::Dirent, 1 << 40), entry.encode());
        store.lose(Key::inode(damaged));
        let filesystem = Filesystem::new(store.clone(), FsOptions::default()).unwrap(); // nothing in memory
        let mut names = vec![];
        list(&filesystem, ROOT_INO, 2, true, |entry| add(entry, &mut names)).unwrap();
        names.sort();
        assert_eq!(names, [(b"damaged".to_vec(), Duration::ZERO), (b"whole".to_vec(), TRUST)]);
        let damaged = filesystem.lookup(ROOT_INO, b"damaged").map_err(|error| crate::error::errno(&error));
        assert_eq!(damaged, Err(libc::EIO));
    }

    /// The kernel takes one from what it is told here, once it hears that the name is gone.
    #[test]
    fn a_file_that_has_just_lost_a_name_is_listed_with_one_link_more_that_is_not_trusted() {
        let (store, filesystem) = filesystem();
        let who = Caller { uid: 0, gid: 0, umask: 0, lacks_fsetid: false };
        let file = Filesystem::mknod(&filesystem, ROOT_INO, b"a", libc::S_IFREG | 0o644, 0, &who).unwrap().ino;
        Filesystem::link(&filesystem, file, ROOT_INO, b"b").unwrap();
        let listed = || {
            let mut found = None;
            list(&filesystem, ROOT_INO, 2, true, |entry| {
                found = plus(entry).map(|(attr, _, trust)| (attr.nlink, trust));
                Added::Yes
            })
            .unwrap();
            found.unwrap()
        };
        assert_eq!(listed(), (2, TRUST));
        Filesystem::unlink(&filesystem, ROOT_INO, b"a").unwrap();
        assert_eq!(listed(), (2, Duration::ZERO));
        assert_eq!(Filesystem::getattr(&filesystem, file).unwrap().nlink, 1);
        store.pass(10);
        assert_eq!(listed(), (1, TRUST));
    }

    #[test]
    fn an_error_behind_names_that_have_gone_is_not_the_end_of_the_directory() {
        let (store, filesystem) = filesystem();
        for number in 0..LISTING_STEP as u64 {
            let entry = Dirent { ino: 900_000 + number, file_type: 8, name: format!("gone {number}").into_bytes() };
            store.put(Key::new(ROOT_INO, ItemKind::Dirent, (1 + number) << 40), entry.encode());
        }
        store.lose(Key::new(ROOT_INO, ItemKind::Dirent, 1 << 60));
        let mut names = vec![];
        let outcome = list(&filesystem, ROOT_INO, 2, true, |entry| add(entry, &mut names));
        assert_eq!((outcome, names), (Err(libc::EIO), vec![]));
    }
}
