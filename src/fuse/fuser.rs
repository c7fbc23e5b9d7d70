//! The only file that names the FUSE library: its trait, translated into [`Requests`].
//!
//! *Guarantees*: no callback panics: a bug in a call is logged and answered EIO. Capabilities are asked for one by one,
//! so that one that the kernel lacks costs only itself. An fsync is parked and holds no thread.
//! *Assumes*: fuser 0.18 (its defects are listed at [`capabilities`] and in `times`); the descriptor was mounted by us,
//! so that the library never unmounts. *Fails when*: the kernel does not say INIT: [`std::io::Error`].
//! *Order*: see `lanes`. *Not here*: what requests mean (`fs`).

use super::lanes::{Lanes, Matter};
use super::{Requests, ServeOptions, WriteKind, times};
use crate::fs::{Attr, Caller, DirEntry, SetAttr};
use fuser::{
    AccessFlags, BsdFileFlags, Config, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, FopenFlags,
    Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags,
    PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    SessionACL, TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

/// How long the kernel may trust names and attributes: nobody else changes them.
const TRUST: Duration = Duration::from_secs(3600);
/// Entries asked of `fs` at once for a listing.
const LISTING_STEP: usize = 64;
/// Bytes of one COPY_FILE_RANGE; a shorter answer than was asked for is one (and the answer has 32 bits).
const COPY_MAX: u64 = 64 << 20;
/// Requests that the kernel may have waiting in the background.
const BACKGROUND_MAX: u16 = 64;

/// A mount that is being served.
pub struct Session {
    inner: fuser::BackgroundSession,
    stopped: Arc<AtomicBool>,
}

impl Session {
    /// Greet the kernel over the descriptor of `/dev/fuse` and serve `requests` on threads of its own.
    /// `on_end` is called once nothing is mounted any more.
    ///
    /// # Errors
    /// The kernel hung up, or threads cannot be started.
    pub fn start(
        descriptor: OwnedFd,
        requests: Arc<dyn Requests>,
        options: &ServeOptions,
        on_end: Box<dyn FnOnce() + Send + Sync>,
    ) -> io::Result<Session> {
        let stopped = Arc::new(AtomicBool::new(false));
        let mut open_flags = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
        open_flags.set(FopenFlags::FOPEN_NOFLUSH, !options.writeback);
        let core = Arc::new(Core { requests, stopped: stopped.clone(), open_flags });
        let adapter =
            Adapter { core, lanes: Lanes::start(options.threads)?, writeback: options.writeback, on_end: Some(on_end) };
        let mut config = Config::default();
        config.n_threads = Some(options.threads);
        // Each clone opens the device again: an ordinary user may not be allowed to.
        config.clone_fd =
            rustix::fs::access("/dev/fuse", rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK).is_ok();
        let session = fuser::Session::from_fd(adapter, descriptor, SessionACL::All, config)?;
        Ok(Session { inner: session.spawn()?, stopped })
    }

    /// Answer every request from now on with ENOTCONN.
    pub fn stop_answering(&self) {
        self.stopped.store(true, Ordering::SeqCst);
    }

    /// Whether nothing is mounted any more.
    pub fn is_ended(&self) -> bool {
        self.inner.guard.is_finished()
    }
}

/// What a request needs to be answered on any thread.
struct Core {
    requests: Arc<dyn Requests>,
    stopped: Arc<AtomicBool>,
    open_flags: FopenFlags,
}

struct Adapter {
    core: Arc<Core>,
    lanes: Lanes,
    writeback: bool,
    on_end: Option<Box<dyn FnOnce() + Send + Sync>>,
}

/// A reply that can say no.
trait Refuse: Send + 'static {
    fn refuse(self, errno: Errno);
}

macro_rules! refuse {
    ($($reply:ty),*) => { $(impl Refuse for $reply {
        fn refuse(self, errno: Errno) {
            self.error(errno);
        }
    })* };
}
refuse!(ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek);
refuse!(ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr);

type Outcome<T> = Result<T, super::Errno>;

impl Core {
    /// Do `work` and answer. A panic drops the reply, and that answers EIO.
    fn run<R: Refuse, T>(&self, reply: R, work: impl FnOnce(&dyn Requests) -> Outcome<T>, answer: impl FnOnce(R, T)) {
        if self.stopped.load(Ordering::Relaxed) {
            return reply.refuse(Errno::ENOTCONN);
        }
        let whole = AssertUnwindSafe(|| match work(&*self.requests) {
            Ok(value) => answer(reply, value),
            Err(code) => reply.refuse(Errno::from_i32(code)),
        });
        if catch_unwind(whole).is_err() {
            log::error!(
                "a request hit a bug and was answered with an I/O error; the place is in the message before this"
            );
        }
    }
}

impl Adapter {
    /// Do `work` on this thread: it looks at memory, or at most reads a little.
    fn now<R: Refuse, T>(&self, reply: R, work: impl FnOnce(&dyn Requests) -> Outcome<T>, answer: impl FnOnce(R, T)) {
        self.core.run(reply, work, answer);
    }

    /// Do `work` on this thread or on another: it may wait for a disk or for room.
    fn waits<R: Refuse, T>(
        &self,
        matter: Matter,
        reply: R,
        work: impl FnOnce(&dyn Requests) -> Outcome<T> + Send + 'static,
        answer: impl FnOnce(R, T) + Send + 'static,
    ) {
        if let Some(_pass) = self.lanes.enter(matter) {
            return self.core.run(reply, work, answer);
        }
        let core = self.core.clone();
        let job = Box::new(move || core.run(reply, work, answer));
        match matter {
            Matter::Names => self.lanes.push_names(job),
            Matter::Data => self.lanes.push_data(0, job),
        }
    }

    /// As [`Adapter::waits`], for changes of names and attributes.
    fn names<R: Refuse, T>(
        &self,
        reply: R,
        work: impl FnOnce(&dyn Requests) -> Outcome<T> + Send + 'static,
        answer: impl FnOnce(R, T) + Send + 'static,
    ) {
        self.waits(Matter::Names, reply, work, answer);
    }

    /// As [`Adapter::waits`], for content of files.
    fn data<R: Refuse, T>(
        &self,
        reply: R,
        work: impl FnOnce(&dyn Requests) -> Outcome<T> + Send + 'static,
        answer: impl FnOnce(R, T) + Send + 'static,
    ) {
        self.waits(Matter::Data, reply, work, answer);
    }

    fn sync(&self, ino: INodeNo, datasync: bool, reply: ReplyEmpty) {
        if self.core.stopped.load(Ordering::Relaxed) {
            return reply.error(Errno::ENOTCONN);
        }
        let done = Box::new(move |outcome: Outcome<()>| answer_empty_outcome(reply, outcome));
        if catch_unwind(AssertUnwindSafe(|| self.core.requests.fsync(ino.0, datasync, done))).is_err() {
            log::error!("an fsync hit a bug and was answered with an I/O error");
        }
    }
}

/// What we ask of the kernel. Never with fuser 0.18: SETXATTR_EXT (panics), HANDLE_KILLPRIV_V2 (leaves suid bits),
/// SECURITY_CTX, CREATE_SUPP_GROUP, ALLOW_IDMAP, REQUEST_TIMEOUT (accepted, not implemented).
fn capabilities(writeback: bool) -> InitFlags {
    let mut wanted = InitFlags::FUSE_PARALLEL_DIROPS
        | InitFlags::FUSE_DO_READDIRPLUS
        | InitFlags::FUSE_READDIRPLUS_AUTO
        | InitFlags::FUSE_ASYNC_DIO
        | InitFlags::FUSE_ATOMIC_O_TRUNC
        | InitFlags::FUSE_CACHE_SYMLINKS
        | InitFlags::FUSE_EXPLICIT_INVAL_DATA
        | InitFlags::FUSE_EXPORT_SUPPORT
        | InitFlags::FUSE_DONT_MASK
        | InitFlags::FUSE_POSIX_ACL;
    wanted.set(InitFlags::FUSE_WRITEBACK_CACHE, writeback);
    wanted
}

fn kind_of(mode: u32) -> Option<FileType> {
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
fn shown(attr: &Attr) -> Outcome<FileAttr> {
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

fn entry(attr: &Attr) -> Outcome<(FileAttr, Generation)> {
    Ok((shown(attr)?, Generation(attr.generation)))
}

fn caller(request: &Request, umask: u32) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), umask }
}

fn bytes(name: &OsStr) -> Vec<u8> {
    name.as_bytes().to_vec()
}

fn answer_entry(reply: ReplyEntry, (attr, generation): (FileAttr, Generation)) {
    reply.entry(&TRUST, &attr, generation);
}

fn answer_attr(reply: ReplyAttr, attr: FileAttr) {
    reply.attr(&TRUST, &attr);
}

fn answer_empty(reply: ReplyEmpty, _done: ()) {
    reply.ok();
}

fn answer_empty_outcome(reply: ReplyEmpty, outcome: Outcome<()>) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(code) => reply.error(Errno::from_i32(code)),
    }
}

/// getxattr(2) and listxattr(2): the size alone, or all of it, or ERANGE.
fn answer_xattr(reply: ReplyXattr, value: &[u8], room: u32) {
    if room == 0 {
        reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX));
    } else if value.len() > room as usize {
        reply.error(Errno::ERANGE);
    } else {
        reply.data(value);
    }
}

fn moment(time: TimeOrNow) -> crate::fs::TimeOrNow {
    match time {
        TimeOrNow::SpecificTime(time) => crate::fs::TimeOrNow::Time(times::received(time)),
        TimeOrNow::Now => crate::fs::TimeOrNow::Now,
    }
}

/// Hand entries from `after` on to `add` until it is full or there are no more.
fn list(
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
        self.now(reply, |to| entry(&to.lookup(parent.0, name.as_bytes())?), answer_entry);
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
        let who = caller(request, 0);
        let change = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(moment),
            mtime: mtime.map(moment),
            ctime: ctime.map(times::received),
            ..SetAttr::default()
        };
        self.names(reply, move |to| shown(&to.setattr(ino.0, &who, &change)?), answer_attr);
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

    fn open(&self, _request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let open_flags = self.core.open_flags;
        let answer = move |reply: ReplyOpen, handle| reply.opened(FileHandle(handle), open_flags);
        if flags.0 & libc::O_TRUNC != 0 {
            self.data(reply, move |to| to.open(ino.0, flags.0), answer);
        } else {
            self.now(reply, |to| to.open(ino.0, flags.0), answer);
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

    fn fsync(&self, _request: &Request, ino: INodeNo, _handle: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.sync(ino, datasync, reply);
    }

    fn opendir(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn readdir(&self, _request: &Request, ino: INodeNo, _handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let core = &self.core;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            list(&*core.requests, ino.0, offset, false, |entry| {
                let kind = kind_of(u32::from(entry.file_type) << 12).unwrap_or(FileType::RegularFile);
                reply.add(INodeNo(entry.ino), entry.cookie, kind, OsStr::from_bytes(&entry.name))
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
                let dots = entry.name == b"." || entry.name == b"..";
                let Some((attr, generation)) = plus(entry, dots) else { return false }; // gone meanwhile
                reply.add(INodeNo(entry.ino), entry.cookie, name, &TRUST, &attr, generation)
            })
        }));
        let outcome = outcome.unwrap_or(Err(libc::EIO));
        self.now(reply, |_| outcome, |reply, ()| reply.ok());
    }

    fn fsyncdir(&self, _request: &Request, ino: INodeNo, _handle: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.sync(ino, datasync, reply);
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
        self.names(reply, move |to| to.setxattr(ino.0, &name, &value, flags, &who), answer_empty);
    }

    fn getxattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let answer = |reply, value: Vec<u8>| answer_xattr(reply, &value, size);
        self.now(reply, |to| to.getxattr(ino.0, name.as_bytes()), answer);
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.now(reply, |to| to.listxattr(ino.0), |reply, names: Vec<u8>| answer_xattr(reply, &names, size));
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
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.data(reply, move |to| to.fallocate(ino.0, offset, length, mode), answer_empty);
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
        let work =
            move |to: &dyn Requests| i64::try_from(to.lseek(ino.0, offset, whence)?).map_err(|_| libc::EOVERFLOW);
        self.now(reply, work, |reply, found| reply.offset(found));
    }

    fn copy_file_range(
        &self,
        _request: &Request,
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
        let length = length.min(COPY_MAX);
        let work = move |to: &dyn Requests| to.copy_file_range((ino_in.0, offset_in), (ino_out.0, offset_out), length);
        self.data(reply, work, |reply, copied| reply.written(u32::try_from(copied).unwrap_or(u32::MAX)));
    }
}

/// Attributes for READDIRPLUS. The kernel takes only the number and type of `.` and `..`.
fn plus(entry: &DirEntry, dots: bool) -> Option<(FileAttr, Generation)> {
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
