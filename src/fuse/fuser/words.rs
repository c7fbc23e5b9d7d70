//! Between the library's words and ours.
//!
//! *Guarantees*: pure translation; a type of file that is none is EIO. *Assumes*: nothing. *Fails when*: see above.
//! *Order*: none. *Not here*: what is done (`super`).

use super::super::{Requests, times};
use super::{LISTING_STEP, Outcome, TRUST};
use crate::fs::{Attr, Caller, DirEntry};
use fuser::{
    Errno, FileAttr, FileType, Generation, INodeNo, ReplyAttr, ReplyEmpty, ReplyEntry, ReplyXattr, Request, TimeOrNow,
};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

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

pub(super) fn caller(request: &Request, umask: u32) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), umask }
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

/// Hand entries from `after` on to `add` until it is full or there are no more.
pub(super) fn list(
    requests: &dyn Requests,
    ino: u64,
    mut after: u64,
    with_attr: bool,
    mut add: impl FnMut(&DirEntry) -> bool,
) -> Outcome<()> {
    let mut any = false;
    loop {
        let entries = match requests.readdir(ino, after, LISTING_STEP, with_attr) {
            Ok(entries) => entries,
            Err(_) if any => return Ok(()), // what was found is an answer; the next call meets the error again
            Err(code) => return Err(code),
        };
        for entry in &entries {
            if add(entry) {
                return Ok(());
            }
            any = true;
        }
        match entries.last() {
            Some(last) if entries.len() >= LISTING_STEP => after = last.cookie,
            _ => return Ok(()),
        }
    }
}

/// Attributes for READDIRPLUS. The kernel takes only the number and type of `.` and `..`.
pub(super) fn plus(entry: &DirEntry, dots: bool) -> Option<(FileAttr, Generation)> {
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
    let attr = if dots { dots_attr() } else { entry.attr.clone()? };
    self::entry(&attr).ok()
}
