//! A filesystem in memory on the same FUSE library: what a mount costs that stores nothing and proves nothing.
//!
//! Goal: the ceiling for every other filesystem in user space that `scripts/bench` compares. Method: one lock, one map of
//! inodes, contents in vectors; the settings of the FUSE connection are those of stablefs. Run: `nullfs MOUNTPOINT`,
//! ends when it is unmounted. Not here: permissions (the kernel's), links to directories, limits.

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, SessionACL,
    TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

const TRUST: Duration = Duration::from_secs(3600);
const OPEN: FopenFlags =
    FopenFlags::FOPEN_KEEP_CACHE.union(FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES).union(FopenFlags::FOPEN_NOFLUSH);

/// Names, and the order in which they came: a listing goes on where it was, whatever is removed meanwhile.
#[derive(Default)]
struct Directory {
    names: HashMap<OsString, (u64, u64)>,
    order: BTreeMap<u64, (OsString, u64)>,
    last: u64,
}

impl Directory {
    fn get(&self, name: &OsStr) -> Option<u64> {
        self.names.get(name).map(|(ino, _)| *ino)
    }
    fn insert(&mut self, name: &OsStr, ino: u64) {
        self.last += 1;
        self.names.insert(name.to_owned(), (ino, self.last));
        self.order.insert(self.last, (name.to_owned(), ino));
    }
    fn remove(&mut self, name: &OsStr) -> Option<u64> {
        let (ino, place) = self.names.remove(name)?;
        self.order.remove(&place);
        Some(ino)
    }
}

enum Content {
    Bytes(Vec<u8>),
    Entries(Directory),
}

struct Inode {
    attr: FileAttr,
    content: Content,
}

#[derive(Default)]
struct State {
    inodes: HashMap<u64, Inode>,
    last: u64,
}

type Answer<T> = Result<T, Errno>;

impl State {
    fn inode(&mut self, ino: u64) -> Answer<&mut Inode> {
        self.inodes.get_mut(&ino).ok_or(Errno::ENOENT)
    }

    fn entries(&mut self, ino: u64) -> Answer<&mut Directory> {
        match &mut self.inode(ino)?.content {
            Content::Entries(entries) => Ok(entries),
            Content::Bytes(_) => Err(Errno::ENOTDIR),
        }
    }

    fn bytes(&mut self, ino: u64) -> Answer<&mut Vec<u8>> {
        match &mut self.inode(ino)?.content {
            Content::Bytes(bytes) => Ok(bytes),
            Content::Entries(_) => Err(Errno::EISDIR),
        }
    }

    fn attr(&mut self, ino: u64) -> Answer<FileAttr> {
        let inode = self.inode(ino)?;
        if let Content::Bytes(bytes) = &inode.content {
            inode.attr.size = bytes.len() as u64;
            inode.attr.blocks = inode.attr.size.div_ceil(512);
        }
        Ok(inode.attr)
    }

    fn make(&mut self, kind: FileType, mode: u32, owner: (u32, u32)) -> u64 {
        self.last += 1;
        let now = SystemTime::now();
        let attr = FileAttr {
            ino: INodeNo(self.last),
            size: 0,
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: now,
            crtime: now,
            kind,
            perm: (mode & 0o7777) as u16,
            nlink: if kind == FileType::Directory { 2 } else { 1 },
            uid: owner.0,
            gid: owner.1,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        };
        let is_directory = kind == FileType::Directory;
        let content = if is_directory { Content::Entries(Directory::default()) } else { Content::Bytes(Vec::new()) };
        self.inodes.insert(self.last, Inode { attr, content });
        self.last
    }

    fn add(&mut self, parent: u64, name: &OsStr, kind: FileType, mode: u32, request: &Request) -> Answer<FileAttr> {
        if self.entries(parent)?.get(name).is_some() {
            return Err(Errno::EEXIST);
        }
        let ino = self.make(kind, mode, (request.uid(), request.gid()));
        self.entries(parent)?.insert(name, ino);
        self.attr(ino)
    }

    fn remove(&mut self, parent: u64, name: &OsStr) -> Answer<()> {
        let ino = self.entries(parent)?.remove(name).ok_or(Errno::ENOENT)?;
        let inode = self.inode(ino)?;
        inode.attr.nlink -= 1;
        // One that is open stays readable in the kernel's cache only: nobody here needs more.
        if inode.attr.nlink == 0 || inode.attr.kind == FileType::Directory {
            self.inodes.remove(&ino);
        }
        Ok(())
    }
}

struct NullFs(Mutex<State>);

impl NullFs {
    fn entry(reply: ReplyEntry, found: Answer<FileAttr>) {
        match found {
            Ok(attr) => reply.entry(&TRUST, &attr, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn empty(reply: ReplyEmpty, done: Answer<()>) {
        match done {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn list(&self, ino: u64, from: u64) -> Answer<Vec<(u64, OsString, FileAttr)>> {
        let mut state = self.0.lock();
        let after = state.entries(ino)?.order.range(from + 1..).take(128);
        let found: Vec<(u64, OsString, u64)> = after.map(|(place, (name, ino))| (*place, name.clone(), *ino)).collect();
        found.into_iter().map(|(place, name, ino)| Ok((place, name, state.attr(ino)?))).collect()
    }
}

impl Filesystem for NullFs {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_ATOMIC_O_TRUNC
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_EXPLICIT_INVAL_DATA
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2
            | InitFlags::FUSE_POSIX_ACL;
        let _ = config.add_capabilities(wanted); // without them it is slower
        let _ = config.set_max_background(64);
        Ok(())
    }
    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut state = self.0.lock();
        let found = state.entries(parent.0).and_then(|entries| entries.get(name).ok_or(Errno::ENOENT));
        NullFs::entry(reply, found.and_then(|ino| state.attr(ino)));
    }
    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.0.lock().attr(ino.0) {
            Ok(attr) => reply.attr(&TRUST, &attr),
            Err(error) => reply.error(error),
        }
    }
    fn setattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut state = self.0.lock();
        let change = |state: &mut State| {
            if let Some(size) = size {
                state.bytes(ino.0)?.resize(size as usize, 0);
            }
            let attr = &mut state.inode(ino.0)?.attr;
            attr.perm = mode.map_or(attr.perm, |mode| (mode & 0o7777) as u16);
            attr.uid = uid.unwrap_or(attr.uid);
            attr.gid = gid.unwrap_or(attr.gid);
            match mtime {
                Some(TimeOrNow::SpecificTime(time)) => attr.mtime = time,
                Some(TimeOrNow::Now) => attr.mtime = SystemTime::now(),
                None => {}
            }
            state.attr(ino.0)
        };
        match change(&mut state) {
            Ok(attr) => reply.attr(&TRUST, &attr),
            Err(error) => reply.error(error),
        }
    }
    // It could have attributes and access lists: with one that cannot, the kernel would not ask at all.
    fn getxattr(&self, _request: &Request, _ino: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::NO_XATTR);
    }
    fn listxattr(&self, _request: &Request, _ino: INodeNo, _size: u32, reply: ReplyXattr) {
        reply.size(0);
    }
    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        match self.0.lock().bytes(ino.0) {
            Ok(target) => reply.data(target),
            Err(error) => reply.error(error),
        }
    }
    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        NullFs::entry(reply, self.0.lock().add(parent.0, name, FileType::Directory, mode & !umask, request));
    }
    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        NullFs::empty(reply, self.0.lock().remove(parent.0, name));
    }
    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let mut state = self.0.lock();
        let ino = state.entries(parent.0).ok().and_then(|entries| entries.get(name)).unwrap_or(0);
        let done = match state.entries(ino) {
            Ok(entries) if !entries.names.is_empty() => Err(Errno::ENOTEMPTY),
            Ok(_) => state.remove(parent.0, name),
            Err(error) => Err(error),
        };
        NullFs::empty(reply, done);
    }
    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let mut state = self.0.lock();
        let made = state.add(parent.0, name, FileType::Symlink, 0o777, request);
        let made = made.and_then(|attr| {
            *state.bytes(attr.ino.0)? = target.as_os_str().as_bytes().to_vec();
            state.attr(attr.ino.0)
        });
        NullFs::entry(reply, made);
    }
    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut state = self.0.lock();
        let mut move_it = || {
            let ino = state.entries(parent.0)?.remove(name).ok_or(Errno::ENOENT)?;
            if state.entries(new_parent.0)?.get(new_name).is_some() {
                state.remove(new_parent.0, new_name)?;
            }
            state.entries(new_parent.0)?.insert(new_name, ino);
            Ok(())
        };
        NullFs::empty(reply, move_it());
    }
    fn link(&self, _request: &Request, ino: INodeNo, new_parent: INodeNo, new_name: &OsStr, reply: ReplyEntry) {
        let mut state = self.0.lock();
        let mut link = || {
            state.inode(ino.0)?.attr.nlink += 1;
            state.entries(new_parent.0)?.insert(new_name, ino.0);
            state.attr(ino.0)
        };
        NullFs::entry(reply, link());
    }
    fn open(&self, _request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.0 & libc::O_TRUNC != 0
            && let Ok(bytes) = self.0.lock().bytes(ino.0)
        {
            bytes.clear();
        }
        reply.opened(FileHandle(0), OPEN);
    }
    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        match self.0.lock().add(parent.0, name, FileType::RegularFile, mode & !umask, request) {
            Ok(attr) => reply.created(&TRUST, &attr, Generation(0), FileHandle(0), OPEN),
            Err(error) => reply.error(error),
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
        match self.0.lock().bytes(ino.0) {
            Ok(bytes) => {
                let from = (offset as usize).min(bytes.len());
                reply.data(&bytes[from..(from + size as usize).min(bytes.len())]);
            }
            Err(error) => reply.error(error),
        }
    }
    fn write(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = self.0.lock();
        match state.bytes(ino.0) {
            Ok(bytes) => {
                let end = offset as usize + data.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[offset as usize..end].copy_from_slice(data);
                reply.written(data.len() as u32);
            }
            Err(error) => reply.error(error),
        }
    }
    fn fsync(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }
    fn fsyncdir(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }
    fn readdir(&self, _request: &Request, ino: INodeNo, _handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        match self.list(ino.0, offset) {
            Ok(found) => {
                for (cookie, name, attr) in found {
                    if reply.add(attr.ino, cookie, attr.kind, name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(error),
        }
    }
    fn readdirplus(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        match self.list(ino.0, offset) {
            Ok(found) => {
                for (cookie, name, attr) in found {
                    if reply.add(attr.ino, cookie, name, &TRUST, &attr, Generation(0)) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(error),
        }
    }
    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        reply.statfs(1 << 24, 1 << 23, 1 << 23, 1 << 20, 1 << 20, 4096, 255, 4096);
    }
}

fn main() {
    let Some(mountpoint) = std::env::args_os().skip(1).find(|word| !word.as_bytes().starts_with(b"--")) else {
        eprintln!("usage: nullfs MOUNTPOINT");
        std::process::exit(2);
    };
    let mut state = State::default();
    state.make(FileType::Directory, 0o755, (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw()));
    let mut config = Config::default();
    config.n_threads = Some(4);
    config.clone_fd = true;
    config.acl = SessionACL::All;
    config.mount_options = vec![MountOption::FSName("nullfs".into()), MountOption::DefaultPermissions];
    if let Err(error) = fuser::mount(NullFs(Mutex::new(state)), &mountpoint, &config) {
        eprintln!("nullfs: {error}");
        std::process::exit(1);
    }
}
