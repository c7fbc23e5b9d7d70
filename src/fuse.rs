//! The edge towards the kernel: requests in, one `fs` call each, answers out.
//!
//! *Guarantees*: [`Requests`] is all that a FUSE library must be able to call; the library itself is named in
//! `fuse/fuser` only, so that it can be patched or replaced. A bug in a call is an EIO of that call.
//! *Assumes*: the kernel checks permissions (`default_permissions`). Inode numbers are never reused, so that lookups are not counted.
//! *Fails when*: never by itself; errors of `fs` become errno here.
//! *Order*: none. *Not here*: policy, locks, caches (`fs`); mounting (`mount`).
//!
//! | file | part |
//! |---|---|
//! | `fuser` | the library's trait, translated into [`Requests`] |
//! | `lanes` | which thread does what may wait for a disk |
//! | `times` | the library's times before 1970 |

pub mod fuser;
pub mod lanes;
mod times;

use crate::error::errno;
use crate::fs::{Attr, Caller, DirEntry, Filesystem, FsError, ModeTold, SetAttr, StatFs};

/// An errno of Linux.
pub type Errno = i32;
/// Answer to a request that was parked.
pub type Done = Box<dyn FnOnce(Result<(), Errno>) + Send>;

/// How the kernel is to treat the mount.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Requests served at once; at least 3.
    pub threads: usize,
    /// The kernel may hold written pages back.
    pub writeback: bool,
}

/// Flags of a WRITE that matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WriteKind {
    /// Clear suid and sgid.
    pub kill_privileges: bool,
    /// From the kernel's page cache: not by the process that asks.
    pub from_cache: bool,
}

/// One method per request of the kernel. Names are bytes, inodes and handles numbers.
pub trait Requests: Send + Sync + 'static {
    /// From now on tell the kernel by this of modes that changed and are in no answer.
    fn tell_of_modes(&self, tell: ModeTold);
    /// LOOKUP, also of `.` and `..`.
    fn lookup(&self, parent: u64, name: &[u8]) -> Result<Attr, Errno>;
    /// GETATTR.
    fn getattr(&self, ino: u64) -> Result<Attr, Errno>;
    /// SETATTR.
    fn setattr(&self, ino: u64, caller: &Caller, change: &SetAttr) -> Result<Attr, Errno>;
    /// READLINK.
    fn readlink(&self, ino: u64) -> Result<Vec<u8>, Errno>;
    /// MKNOD.
    fn mknod(&self, parent: u64, name: &[u8], mode: u32, rdev: u32, caller: &Caller) -> Result<Attr, Errno>;
    /// MKDIR.
    fn mkdir(&self, parent: u64, name: &[u8], mode: u32, caller: &Caller) -> Result<Attr, Errno>;
    /// CREATE: the file and a handle on it.
    fn create(&self, parent: u64, name: &[u8], mode: u32, flags: i32, caller: &Caller) -> Result<(Attr, u64), Errno>;
    /// SYMLINK.
    fn symlink(&self, parent: u64, name: &[u8], target: &[u8], caller: &Caller) -> Result<Attr, Errno>;
    /// LINK.
    fn link(&self, ino: u64, new_parent: u64, new_name: &[u8]) -> Result<Attr, Errno>;
    /// UNLINK.
    fn unlink(&self, parent: u64, name: &[u8]) -> Result<(), Errno>;
    /// RMDIR.
    fn rmdir(&self, parent: u64, name: &[u8]) -> Result<(), Errno>;
    /// RENAME and RENAME2.
    fn rename(&self, from: (u64, &[u8]), to: (u64, &[u8]), flags: u32, caller: &Caller) -> Result<(), Errno>;
    /// OPEN; O_TRUNC truncates.
    fn open(&self, ino: u64, flags: i32, caller: &Caller) -> Result<u64, Errno>;
    /// RELEASE.
    fn release(&self, ino: u64, handle: u64);
    /// READ, cut at the end of the file.
    fn read(&self, ino: u64, offset: u64, out: &mut Vec<u8>, size: u32) -> Result<(), Errno>;
    /// WRITE; bytes taken.
    fn write(&self, ino: u64, offset: u64, data: &[u8], kind: WriteKind) -> Result<u32, Errno>;
    /// FSYNC and FSYNCDIR; does not wait.
    fn fsync(&self, ino: u64, done: Done);
    /// READDIR and READDIRPLUS.
    fn readdir(&self, ino: u64, after_cookie: u64, max: usize, with_attr: bool) -> Result<Vec<DirEntry>, Errno>;
    /// STATFS.
    fn statfs(&self) -> StatFs;
    /// SETXATTR by somebody who is also in `groups`.
    fn setxattr(&self, ino: u64, name: &[u8], value: &[u8], flags: i32, asks: (&Caller, &[u32])) -> Result<(), Errno>;
    /// GETXATTR.
    fn getxattr(&self, ino: u64, name: &[u8]) -> Result<Vec<u8>, Errno>;
    /// LISTXATTR: names, each ended by a NUL.
    fn listxattr(&self, ino: u64, caller: &Caller) -> Result<Vec<u8>, Errno>;
    /// REMOVEXATTR.
    fn removexattr(&self, ino: u64, name: &[u8], caller: &Caller) -> Result<(), Errno>;
    /// FALLOCATE.
    fn fallocate(&self, ino: u64, offset: u64, length: u64, mode: i32, caller: &Caller) -> Result<(), Errno>;
    /// Whether the kernel may hold written pages of the file.
    fn may_be_dirty(&self, ino: u64) -> bool;
    /// LSEEK with SEEK_DATA or SEEK_HOLE; `all_is_here`: the kernel holds no written pages.
    fn lseek(&self, ino: u64, offset: i64, whence: i32, all_is_here: bool) -> Result<u64, Errno>;
    /// COPY_FILE_RANGE; bytes copied.
    fn copy_file_range(&self, from: (u64, u64), to: (u64, u64), length: u64, caller: &Caller) -> Result<u64, Errno>;
}

fn code<T>(outcome: Result<T, FsError>) -> Result<T, Errno> {
    outcome.map_err(|error| errno(&error))
}

impl Requests for Filesystem {
    fn tell_of_modes(&self, tell: ModeTold) {
        self.tell_of_modes(tell);
    }
    fn lookup(&self, parent: u64, name: &[u8]) -> Result<Attr, Errno> {
        code(self.lookup(parent, name))
    }
    fn getattr(&self, ino: u64) -> Result<Attr, Errno> {
        code(self.getattr_held(ino))
    }
    fn setattr(&self, ino: u64, caller: &Caller, change: &SetAttr) -> Result<Attr, Errno> {
        code(self.setattr_held(ino, caller, change))
    }
    fn readlink(&self, ino: u64) -> Result<Vec<u8>, Errno> {
        code(self.readlink(ino))
    }
    fn mknod(&self, parent: u64, name: &[u8], mode: u32, rdev: u32, caller: &Caller) -> Result<Attr, Errno> {
        code(self.mknod(parent, name, mode, rdev, caller))
    }
    fn mkdir(&self, parent: u64, name: &[u8], mode: u32, caller: &Caller) -> Result<Attr, Errno> {
        code(self.mkdir(parent, name, mode, caller))
    }
    fn create(&self, parent: u64, name: &[u8], mode: u32, flags: i32, caller: &Caller) -> Result<(Attr, u64), Errno> {
        code(self.create(parent, name, mode, flags, caller))
    }
    fn symlink(&self, parent: u64, name: &[u8], target: &[u8], caller: &Caller) -> Result<Attr, Errno> {
        code(self.symlink(parent, name, target, caller))
    }
    fn link(&self, ino: u64, new_parent: u64, new_name: &[u8]) -> Result<Attr, Errno> {
        code(self.link(ino, new_parent, new_name))
    }
    fn unlink(&self, parent: u64, name: &[u8]) -> Result<(), Errno> {
        code(self.unlink(parent, name))
    }
    fn rmdir(&self, parent: u64, name: &[u8]) -> Result<(), Errno> {
        code(self.rmdir(parent, name))
    }
    fn rename(&self, from: (u64, &[u8]), to: (u64, &[u8]), flags: u32, caller: &Caller) -> Result<(), Errno> {
        code(self.rename(from.0, from.1, to.0, to.1, flags, caller))
    }
    fn open(&self, ino: u64, flags: i32, caller: &Caller) -> Result<u64, Errno> {
        code(self.open_by(ino, flags, caller))
    }
    fn release(&self, ino: u64, handle: u64) {
        self.release(ino, handle);
    }
    fn read(&self, ino: u64, offset: u64, out: &mut Vec<u8>, size: u32) -> Result<(), Errno> {
        code(self.read(ino, offset, out, size))
    }
    fn write(&self, ino: u64, offset: u64, data: &[u8], kind: WriteKind) -> Result<u32, Errno> {
        code(self.write(ino, offset, data, kind.kill_privileges, kind.from_cache))
    }
    fn fsync(&self, ino: u64, done: Done) {
        self.fsync(ino, Box::new(move |outcome| done(code(outcome))));
    }
    fn readdir(&self, ino: u64, after_cookie: u64, max: usize, with_attr: bool) -> Result<Vec<DirEntry>, Errno> {
        code(self.readdir(ino, after_cookie, max, with_attr))
    }
    fn statfs(&self) -> StatFs {
        self.statfs()
    }
    fn setxattr(&self, ino: u64, name: &[u8], value: &[u8], flags: i32, asks: (&Caller, &[u32])) -> Result<(), Errno> {
        code(self.setxattr_of_group(ino, name, value, flags, asks.0, asks.1))
    }
    fn getxattr(&self, ino: u64, name: &[u8]) -> Result<Vec<u8>, Errno> {
        code(self.getxattr(ino, name))
    }
    fn listxattr(&self, ino: u64, caller: &Caller) -> Result<Vec<u8>, Errno> {
        code(self.listxattr_by(ino, caller))
    }
    fn removexattr(&self, ino: u64, name: &[u8], _caller: &Caller) -> Result<(), Errno> {
        code(self.removexattr(ino, name))
    }
    fn fallocate(&self, ino: u64, offset: u64, length: u64, mode: i32, caller: &Caller) -> Result<(), Errno> {
        code(self.fallocate_by(ino, offset, length, mode, caller))
    }
    fn may_be_dirty(&self, ino: u64) -> bool {
        self.may_be_dirty(ino)
    }
    fn lseek(&self, ino: u64, offset: i64, whence: i32, all_is_here: bool) -> Result<u64, Errno> {
        code(self.lseek(ino, offset, whence, all_is_here))
    }
    fn copy_file_range(&self, from: (u64, u64), to: (u64, u64), length: u64, caller: &Caller) -> Result<u64, Errno> {
        code(self.copy_file_range_by(from, to, length, caller))
    }
}
