//! The library's trait: each callback is one call of [`Requests`].
//!
//! *Guarantees*: nothing is decided here. *Assumes*: as `super`. *Fails when*: never. *Order*: none.
//! *Not here*: threads, panics (`super`), translation (`words`).

use super::words::{
    Added, answer_attr, answer_empty, answer_entry, answer_xattr, bytes, caller, entry, groups_of, kind_of, list,
    looked_up, moment, nothing, plus, shown,
};
use super::{Adapter, BACKGROUND_MAX, Matter, TRUST, capabilities};
use crate::fs::{ACL_ACCESS, SetAttr};
use crate::fuse::{Requests, WriteKind, times};
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, FileType, FopenFlags, INodeNo, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek,
    ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, SystemTime};

impl fuser::Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for capability in capabilities(self.writeback).iter() {
            if config.add_capabilities(capability).is_err() {
                log::info!("the kernel lacks {capability:?}");
            }
        }
        let _ = config.set_max_background(BACKGROUND_MAX); // both keep the default if refused
        let _ = config.set_time_granularity(Duration::from_nanos(1));
        Ok(())
    }

    fn destroy(&mut self) {
        if let Some(on_end) = self.on_end.take() {
            on_end();
        }
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let work = |to: &dyn Requests| match to.lookup(parent.0, name.as_bytes()) {
            // The kernel may remember that, too: every name is made through it.
            Err(libc::ENOENT) => Ok(nothing()),
            found => entry(&found?),
        };
        self.now(reply, work, answer_entry);
    }

    fn forget(&self, _request: &Request, _ino: INodeNo, _lookups: u64) {}

    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        self.now(reply, |to| shown(&to.getattr(ino.0)?), answer_attr);
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (mut who, process) = (caller(request, 0), request.pid());
        let change = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(moment),
            mtime: mtime.map(moment),
            ctime: ctime.map(times::received),
        };
        let work = move |to: &dyn Requests| {
            if change.size.is_some() || change.sets_nothing() {
                who = looked_up(to, ino.0, who, process);
            }
            shown(&to.setattr(ino.0, &who, &change)?)
        };
        self.names(reply, work, answer_attr);
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        self.now(reply, |to| to.readlink(ino.0), |reply, target| reply.data(&target));
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (name, who) = (bytes(name), caller(request, umask));
        self.names(reply, move |to| entry(&to.mknod(parent.0, &name, mode, rdev, &who)?), answer_entry);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let (name, who) = (bytes(name), caller(request, umask));
        self.names(reply, move |to| entry(&to.mkdir(parent.0, &name, mode, &who)?), answer_entry);
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = bytes(name);
        self.names(reply, move |to| to.unlink(parent.0, &name), answer_empty);
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = bytes(name);
        self.names(reply, move |to| to.rmdir(parent.0, &name), answer_empty);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (name, target, who) = (bytes(name), bytes(target.as_os_str()), caller(request, 0));
        self.names(reply, move |to| entry(&to.symlink(parent.0, &name, &target, &who)?), answer_entry);
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (name, new_name, who) = (bytes(name), bytes(new_name), caller(request, 0));
        let work = move |to: &dyn Requests| to.rename((parent.0, &name), (new_parent.0, &new_name), flags.bits(), &who);
        self.names(reply, work, answer_empty);
    }

    fn link(&self, _request: &Request, ino: INodeNo, new_parent: INodeNo, new_name: &OsStr, reply: ReplyEntry) {
        let new_name = bytes(new_name);
        self.names(reply, move |to| entry(&to.link(ino.0, new_parent.0, &new_name)?), answer_entry);
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (who, open_flags) = (caller(request, 0), self.core.open_flags);
        let answer = move |reply: ReplyOpen, handle| reply.opened(FileHandle(handle), open_flags);
        if flags.0 & libc::O_TRUNC != 0 {
            let process = request.pid();
            let work = move |to: &dyn Requests| to.open(ino.0, flags.0, &looked_up(to, ino.0, who, process));
            self.data(reply, work, answer);
        } else {
            self.now(reply, |to| to.open(ino.0, flags.0, &who), answer);
        }
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let work = move |to: &dyn Requests| {
            let mut out = Vec::with_capacity(size as usize);
            to.read(ino.0, offset, &mut out, size)?;
            Ok(out)
        };
        self.data(reply, work, move |reply, out| reply.data(&out[..out.len().min(size as usize)]));
    }

    fn write(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let kind = WriteKind {
            kill_privileges: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
            from_cache: write_flags.contains(WriteFlags::FUSE_WRITE_CACHE),
        };
        let pass = self.lanes.enter(Matter::Data);
        if pass.is_some() || !self.lanes.has_room(data.len()) {
            return self.now(reply, |to| to.write(ino.0, offset, data, kind), ReplyWrite::written);
        }
        let (core, data) = (self.core.clone(), data.to_vec());
        let held = data.len();
        let work = move || core.run(reply, |to| to.write(ino.0, offset, &data, kind), ReplyWrite::written);
        self.lanes.push_data(held, Box::new(work));
    }

    fn flush(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.ok(); // no barrier: that is fsync
    }

    fn release(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let work = move |to: &dyn Requests| {
            to.release(ino.0, handle.0);
            Ok(())
        };
        self.now(reply, work, answer_empty);
    }

    fn fsync(&self, _request: &Request, ino: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.sync(ino, reply);
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // A handle keeps a directory that is removed meanwhile, as it does a file.
        let answer = |reply: ReplyOpen, handle| reply.opened(FileHandle(handle), FopenFlags::empty());
        let who = caller(request, 0);
        self.now(reply, |to| to.open(ino.0, libc::O_RDONLY, &who), answer);
    }

    fn releasedir(&self, _request: &Request, ino: INodeNo, handle: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        let work = move |to: &dyn Requests| {
            to.release(ino.0, handle.0);
            Ok(())
        };
        self.now(reply, work, answer_empty);
    }

    fn readdir(&self, _request: &Request, ino: INodeNo, _handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let core = &self.core;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            list(&*core.requests, ino.0, offset, false, |entry| {
                let kind = kind_of(u32::from(entry.file_type) << 12).unwrap_or(FileType::RegularFile);
                let name = OsStr::from_bytes(&entry.name);
                Added::unless_full(reply.add(INodeNo(entry.ino), entry.cookie, kind, name))
            })
        }));
        let outcome = outcome.unwrap_or(Err(libc::EIO));
        self.now(reply, |_| outcome, |reply, ()| reply.ok());
    }

    fn readdirplus(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let core = &self.core;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            list(&*core.requests, ino.0, offset, true, |entry| {
                let name = OsStr::from_bytes(&entry.name);
                let Some((attr, generation, trust)) = plus(entry) else { return Added::No }; // gone meanwhile
                Added::unless_full(reply.add(INodeNo(entry.ino), entry.cookie, name, &trust, &attr, generation))
            })
        }));
        let outcome = outcome.unwrap_or(Err(libc::EIO));
        self.now(reply, |_| outcome, |reply, ()| reply.ok());
    }

    fn fsyncdir(&self, _request: &Request, ino: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.sync(ino, reply);
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let answer = |reply: ReplyStatfs, room: crate::fs::StatFs| {
            reply.statfs(
                room.blocks,
                room.bfree,
                room.bavail,
                room.files,
                room.ffree,
                room.bsize,
                room.namelen,
                room.bsize,
            );
        };
        self.now(reply, |to| Ok(to.statfs()), answer);
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let (name, value, who) = (bytes(name), value.to_vec(), caller(request, 0));
        // Only this asks for them: whether an ACL takes setgid away.
        let groups = if name == ACL_ACCESS && who.uid != 0 { groups_of(request.pid()) } else { vec![] };
        self.names(reply, move |to| to.setxattr(ino.0, &name, &value, flags, (&who, &groups)), answer_empty);
    }

    fn getxattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let answer = |reply, value: Vec<u8>| answer_xattr(reply, &value, size);
        self.now(reply, |to| to.getxattr(ino.0, name.as_bytes()), answer);
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let who = caller(request, 0);
        self.now(reply, |to| to.listxattr(ino.0, &who), |reply, names: Vec<u8>| answer_xattr(reply, &names, size));
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (name, who) = (bytes(name), caller(request, 0));
        self.names(reply, move |to| to.removexattr(ino.0, &name, &who), answer_empty);
    }

    fn access(&self, _request: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.ok(); // default_permissions: the kernel has checked
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (name, who, open_flags) = (bytes(name), caller(request, umask), self.core.open_flags);
        let work = move |to: &dyn Requests| {
            let (attr, handle) = to.create(parent.0, &name, mode, flags, &who)?;
            Ok((entry(&attr)?, handle))
        };
        self.names(reply, work, move |reply, ((attr, generation), handle)| {
            reply.created(&TRUST, &attr, generation, FileHandle(handle), open_flags);
        });
    }

    fn bmap(&self, _request: &Request, _ino: INodeNo, _block_size: u32, _block: u64, reply: ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _notifier: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let who = caller(request, 0);
        self.data(reply, move |to| to.fallocate(ino.0, offset, length, mode, &who), answer_empty);
    }

    fn lseek(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let work = move |to: &dyn Requests, all_is_here| {
            i64::try_from(to.lseek(ino.0, offset, whence, all_is_here)?).map_err(|_| libc::EOVERFLOW)
        };
        let answer = |reply: ReplyLseek, found| reply.offset(found);
        if !self.core.requests.may_be_dirty(ino.0) {
            return self.data(reply, move |to| work(to, false), answer);
        }
        let (core, kernel) = (self.core.clone(), self.kernel.clone());
        let job = move || {
            let sent = kernel.send_pages(ino, offset);
            core.run(reply, |to| work(to, sent), answer);
        };
        self.seekers.push_names(Box::new(job));
    }

    fn copy_file_range(
        &self,
        request: &Request,
        ino_in: INodeNo,
        _handle_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _handle_out: FileHandle,
        offset_out: u64,
        length: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (from, target, who) = ((ino_in.0, offset_in), (ino_out.0, offset_out), caller(request, 0));
        let work = move |to: &dyn Requests| to.copy_file_range(from, target, length, &who);
        self.data(reply, work, |reply, copied| reply.written(u32::try_from(copied).unwrap_or(u32::MAX)));
    }
}
