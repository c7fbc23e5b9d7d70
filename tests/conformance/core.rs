//! The core alone, on two simulated disks: every call goes where the kernel's request would go.

use super::place::{Entry, Errno, Handle, Kind, Moment, Place, Result, Stat, When, Who};
use stablefs::disk::backing::Backing;
use stablefs::disk::sim::{SimDisk, World as Power};
use stablefs::format::item::Time;
use stablefs::format::{FILE_SIZE_MAX, Geometry, NAME_MAX, ROOT_INO};
use stablefs::fs::{Attr, Caller, Filesystem, FsOptions, SetAttr, TimeOrNow};
use stablefs::fuse::{Requests, WriteKind};
use stablefs::store::check::{CheckOptions, StoreSource, check};
use stablefs::store::create::{CreateStore, create};
use stablefs::store::recover::{OpenStore, Present, examine, open};
use stablefs::store::{Store, StoreOptions};
use stablefs::world::{Seeded, World};
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(5);
const FLAT: u32 = libc::S_IFMT;

/// What an open file is.
#[derive(Clone, Copy)]
struct Opened {
    ino: u64,
    number: u64,
}

/// A filesystem that nobody has mounted.
pub struct Core {
    pub store: Arc<Store>,
    pub filesystem: Filesystem,
    pub disks: Vec<Arc<SimDisk>>,
    caller: Mutex<(Caller, Vec<u32>)>,
    open: Mutex<HashMap<Handle, Opened>>,
    next: AtomicU64,
}

impl Core {
    /// A fresh volume on two disks of `blocks` blocks.
    pub fn new(blocks: u64) -> Core {
        Core::in_world(blocks, |seed| Arc::new(Seeded::new(seed)))
    }

    /// As [`Core::new`], with time and randomness from `world`, which is asked for twice.
    pub fn in_world(blocks: u64, world: impl Fn(u64) -> Arc<dyn World>) -> Core {
        let power = Power::new(1);
        let disks: Vec<_> = (0..2).map(|_| power.disk(blocks)).collect();
        let backings = || {
            let named =
                |(index, disk): (usize, &Arc<SimDisk>)| (format!("/disk/{index}"), disk.reopen() as Arc<dyn Backing>);
            disks.iter().enumerate().map(named).collect::<Vec<_>>()
        };
        let make = CreateStore {
            geometry: Geometry::new(blocks, 2048, 256).unwrap(),
            name: "conformance".into(),
            grows: true,
            root_items: Filesystem::root_items(Time::default(), 0, 0),
            deadline: DEADLINE,
        };
        create(backings(), make, world(1)).unwrap();
        let present = backings().into_iter().map(|(path, backing)| {
            let found = examine(&*backing, DEADLINE).unwrap();
            Present { path, backing, found }
        });
        let store = StoreOptions { pages_max: 1024, pages_start: 256, cache_nodes: 256, ..StoreOptions::default() };
        let options = OpenStore { degraded: false, deadline: DEADLINE, store, on_shrink: None, hold: false };
        let (store, _) = open(present.collect(), options, world(2)).unwrap();
        let store = Arc::new(store);
        let filesystem = Filesystem::new(store.clone(), FsOptions::default()).unwrap();
        let root = (Caller::default(), vec![]);
        Core { store, filesystem, disks, caller: Mutex::new(root), open: Mutex::default(), next: AtomicU64::new(1) }
    }

    /// End what waits to be ended, commit, and have the checker find nothing.
    #[track_caller]
    pub fn check(&self) {
        while self.filesystem.reclaim_step().unwrap() {}
        self.filesystem.sync().unwrap();
        let options = CheckOptions { parallel: false, ..CheckOptions::default() };
        let report = check(&StoreSource::new(&self.store), &options, &mut |_| ControlFlow::Continue(()));
        assert!(report.is_clean(), "{:?}", report.findings);
    }

    fn requests(&self) -> &dyn Requests {
        &self.filesystem
    }
    fn caller(&self) -> Caller {
        self.caller.lock().unwrap().0
    }
    fn opened(&self, handle: Handle) -> Opened {
        self.open.lock().unwrap()[&handle]
    }

    /// Where a path ends: the directory and the name in it.
    fn parent<'a>(&self, path: &'a str) -> Result<(u64, &'a str)> {
        let (mut at, path) = match path.strip_prefix('#').and_then(|rest| rest.split_once('/')) {
            Some((handle, name)) => (self.opened(handle.parse().unwrap()).ino, name),
            None => (ROOT_INO, path),
        };
        let (folders, name) = path.rsplit_once('/').unwrap_or(("", path));
        for folder in folders.split('/').filter(|name| !name.is_empty()) {
            at = code(self.requests().lookup(at, folder.as_bytes()))?.ino;
        }
        // The kernel refuses a path through a file, and long names of directories that it knows.
        if code(self.requests().getattr(at))?.mode & FLAT != libc::S_IFDIR {
            return Err(Errno::NOTDIR);
        }
        if name.len() > NAME_MAX { Err(Errno::NAMETOOLONG) } else { Ok((at, name)) }
    }

    fn attr(&self, path: &str) -> Result<Attr> {
        let (parent, name) = self.parent(path)?;
        code(self.requests().lookup(parent, name.as_bytes()))
    }
    fn ino(&self, path: &str) -> Result<u64> {
        Ok(self.attr(path)?.ino)
    }
    fn set(&self, ino: u64, change: &SetAttr) -> Result<()> {
        code(self.requests().setattr(ino, &self.caller(), change)).map(drop)
    }
    /// What the core made: as `mount`, directories and nodes are made with the caller's umask.
    fn remember(&self, ino: u64, number: u64) -> Handle {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.lock().unwrap().insert(handle, Opened { ino, number });
        handle
    }
}

fn code<T>(outcome: std::result::Result<T, i32>) -> Result<T> {
    outcome.map_err(Errno::from_raw_os_error)
}

fn moment(time: Time) -> Moment {
    (time.sec, time.nsec)
}

fn shown(attr: &Attr) -> Stat {
    Stat {
        ino: attr.ino,
        mode: attr.mode,
        nlink: attr.nlink.into(),
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev.into(),
        size: attr.size,
        blocks: attr.blocks512,
        atime: moment(attr.atime),
        mtime: moment(attr.mtime),
        ctime: moment(attr.ctime),
    }
}

fn when(time: When) -> Option<TimeOrNow> {
    match time {
        When::At((sec, nsec)) => Some(TimeOrNow::Time(Time { sec, nsec })),
        When::Now => Some(TimeOrNow::Now),
        When::Omit => None,
    }
}

impl Place for Core {
    fn kind(&self) -> Kind {
        Kind::Core
    }
    fn size_max(&self) -> u64 {
        FILE_SIZE_MAX
    }
    fn tick(&self) {} // time passes with every look at the clock
    fn act(&self, who: &Who, deed: &mut (dyn FnMut() + Send)) {
        let caller = Caller { uid: who.uid, gid: who.gid, umask: who.umask, lacks_fsetid: false };
        let before = std::mem::replace(&mut *self.caller.lock().unwrap(), (caller, who.groups.to_vec()));
        deed();
        *self.caller.lock().unwrap() = before;
    }

    fn open(&self, path: &str, flags: i32, mode: u32) -> Result<Handle> {
        let (requests, caller) = (self.requests(), self.caller());
        let (parent, name) = self.parent(path)?;
        let found = match code(requests.lookup(parent, name.as_bytes())) {
            Err(Errno::NOENT) if flags & libc::O_CREAT != 0 => {
                let (attr, number) = code(requests.create(parent, name.as_bytes(), mode, flags, &caller))?;
                return Ok(self.remember(attr.ino, number));
            }
            found => found?,
        };
        if flags & libc::O_CREAT != 0 && flags & libc::O_EXCL != 0 {
            code(requests.create(parent, name.as_bytes(), mode, flags, &caller))?;
        }
        // What the kernel decides by the mode that it knows.
        match found.mode & FLAT {
            libc::S_IFDIR if flags & (libc::O_ACCMODE | libc::O_CREAT) != 0 => return Err(Errno::ISDIR),
            libc::S_IFLNK => return Err(Errno::LOOP),
            kind if kind != libc::S_IFDIR && flags & libc::O_DIRECTORY != 0 => return Err(Errno::NOTDIR),
            _ => {}
        }
        let number = code(requests.open(found.ino, flags, &caller))?;
        Ok(self.remember(found.ino, number))
    }
    fn close(&self, handle: Handle) {
        let opened = self.open.lock().unwrap().remove(&handle).unwrap();
        self.requests().release(opened.ino, opened.number);
        while self.filesystem.reclaim_step().unwrap() {}
    }
    fn read(&self, handle: Handle, offset: u64, length: usize) -> Result<Vec<u8>> {
        let mut out = vec![];
        code(self.requests().read(self.opened(handle).ino, offset, &mut out, length as u32))?;
        Ok(out)
    }
    fn write(&self, handle: Handle, offset: u64, data: &[u8]) -> Result<usize> {
        let caller = self.caller();
        let kind = WriteKind { kill_privileges: caller.uid != 0, from_cache: false };
        Ok(code(self.requests().write(self.opened(handle).ino, offset, data, kind))? as usize)
    }
    fn fsync(&self, handle: Handle) -> Result<()> {
        let (sender, receiver) = std::sync::mpsc::channel();
        self.requests().fsync(self.opened(handle).ino, Box::new(move |outcome| sender.send(outcome).unwrap()));
        code(receiver.recv().expect("an answer"))
    }
    fn forget(&self, _handle: Handle) {}
    fn seek(&self, handle: Handle, offset: u64, whence: i32) -> Result<u64> {
        code(self.requests().lseek(self.opened(handle).ino, offset as i64, whence, true))
    }
    fn allocate(&self, handle: Handle, mode: i32, offset: u64, length: u64) -> Result<()> {
        code(self.requests().fallocate(self.opened(handle).ino, offset, length, mode, &self.caller()))
    }
    fn copy(&self, from: (Handle, u64), to: (Handle, u64), length: usize) -> Result<usize> {
        let (from, to) = ((self.opened(from.0).ino, from.1), (self.opened(to.0).ino, to.1));
        Ok(code(self.requests().copy_file_range(from, to, length as u64, &self.caller()))? as usize)
    }
    fn resize(&self, handle: Handle, size: u64) -> Result<()> {
        self.set(self.opened(handle).ino, &SetAttr { size: Some(size), ..SetAttr::default() })
    }
    fn resize_path(&self, path: &str, size: u64) -> Result<()> {
        self.set(self.ino(path)?, &SetAttr { size: Some(size), ..SetAttr::default() })
    }
    fn stat(&self, path: &str) -> Result<Stat> {
        self.attr(path).map(|attr| shown(&attr))
    }
    fn stat_open(&self, handle: Handle) -> Result<Stat> {
        code(self.requests().getattr(self.opened(handle).ino)).map(|attr| shown(&attr))
    }

    fn mkdir(&self, path: &str, mode: u32) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        code(self.requests().mkdir(parent, name.as_bytes(), mode, &self.caller())).map(drop)
    }
    fn mknod(&self, path: &str, mode: u32, device: u64) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        code(self.requests().mknod(parent, name.as_bytes(), mode, device as u32, &self.caller())).map(drop)
    }
    fn symlink(&self, target: &str, path: &str) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        code(self.requests().symlink(parent, name.as_bytes(), target.as_bytes(), &self.caller())).map(drop)
    }
    fn readlink(&self, path: &str) -> Result<String> {
        code(self.requests().readlink(self.ino(path)?)).map(|target| String::from_utf8(target).unwrap())
    }
    fn link(&self, from: &str, to: &str) -> Result<()> {
        let (parent, name) = self.parent(to)?;
        code(self.requests().link(self.ino(from)?, parent, name.as_bytes())).map(drop)
    }
    fn link_open(&self, handle: Handle, to: &str) -> Result<()> {
        let (parent, name) = self.parent(to)?;
        code(self.requests().link(self.opened(handle).ino, parent, name.as_bytes())).map(drop)
    }
    fn unlink(&self, path: &str) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        code(self.requests().unlink(parent, name.as_bytes()))
    }
    fn rmdir(&self, path: &str) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        code(self.requests().rmdir(parent, name.as_bytes()))
    }
    fn rename(&self, from: &str, to: &str, flags: u32) -> Result<()> {
        let (from, to) = (self.parent(from)?, self.parent(to)?);
        let (from, to) = ((from.0, from.1.as_bytes()), (to.0, to.1.as_bytes()));
        code(self.requests().rename(from, to, flags, &self.caller()))
    }
    fn chmod(&self, path: &str, mode: u32) -> Result<()> {
        self.set(self.ino(path)?, &SetAttr { mode: Some(mode), ..SetAttr::default() })
    }
    fn chown(&self, path: &str, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        self.set(self.ino(path)?, &SetAttr { uid, gid, ..SetAttr::default() })
    }
    fn utimes(&self, path: &str, atime: When, mtime: When) -> Result<()> {
        let ino = self.ino(path)?;
        if (atime, mtime) == (When::Omit, When::Omit) {
            return Ok(()); // never reaches a filesystem
        }
        self.set(ino, &SetAttr { atime: when(atime), mtime: when(mtime), ..SetAttr::default() })
    }
    fn list(&self, handle: Handle, cookie: u64) -> Result<Vec<Entry>> {
        let found = code(self.requests().readdir(self.opened(handle).ino, cookie, 7, false))?;
        let entry = |entry: stablefs::fs::DirEntry| Entry {
            name: String::from_utf8(entry.name).unwrap(),
            ino: entry.ino,
            cookie: entry.cookie,
        };
        Ok(found.into_iter().map(entry).collect())
    }

    fn set_attribute(&self, path: &str, name: &str, value: &[u8], flags: i32) -> Result<()> {
        let (caller, groups) = self.caller.lock().unwrap().clone();
        let asks = (&caller, &groups[..]);
        code(self.requests().setxattr(self.ino(path)?, name.as_bytes(), value, flags, asks))
    }
    fn attribute(&self, path: &str, name: &str) -> Result<Vec<u8>> {
        code(self.requests().getxattr(self.ino(path)?, name.as_bytes()))
    }
    fn attributes(&self, path: &str) -> Result<Vec<String>> {
        let all = code(self.requests().listxattr(self.ino(path)?, &self.caller()))?;
        let names = all.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        let mut names: Vec<String> = names.map(|name| String::from_utf8(name.to_vec()).unwrap()).collect();
        names.sort();
        Ok(names)
    }
    fn remove_attribute(&self, path: &str, name: &str) -> Result<()> {
        code(self.requests().removexattr(self.ino(path)?, name.as_bytes(), &self.caller()))
    }
}
