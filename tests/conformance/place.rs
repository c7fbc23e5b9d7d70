//! A place where files are: what the scenarios work on.
//!
//! Paths are relative to the scenario's own folder, `.` is that folder, and `#HANDLE/name` ([`at`]) begins at an open
//! directory. Links at the end of a path are never followed.

pub use rustix::io::Errno;
use std::fmt::Debug;

pub type Result<T> = std::result::Result<T, Errno>;
/// An open file or directory.
pub type Handle = u64;

/// Whose files they are; each program of tests knows some.
#[allow(dead_code)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Our core, called directly on simulated disks.
    Core,
    /// Our mount.
    Mount,
    /// Our mount, with written pages held back by the kernel (`-o writeback`).
    Writeback,
    /// The judge.
    Ext4,
}

/// What stat(2) shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub ino: u64,
    pub mode: u32,
    pub nlink: u64,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    pub size: u64,
    /// Units of 512 bytes.
    pub blocks: u64,
    pub atime: Moment,
    pub mtime: Moment,
    pub ctime: Moment,
}

/// Seconds since 1970 and nanoseconds, which count forward.
pub type Moment = (i64, u32);

/// A time to be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    At(Moment),
    Now,
    Omit,
}

/// An entry of a listing, with where to go on after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub ino: u64,
    pub cookie: u64,
}

/// Who does something.
#[derive(Debug, Clone, Copy, Default)]
pub struct Who {
    pub uid: u32,
    pub gid: u32,
    pub groups: &'static [u32],
    pub umask: u32,
}

/// The calls of POSIX that matter.
pub trait Place: Sync {
    fn kind(&self) -> Kind;
    /// Bytes of the largest file.
    fn size_max(&self) -> u64;
    /// Let time pass, so that the next change has another time.
    fn tick(&self);
    /// Do `deed` as `who`; root has no umask otherwise.
    fn act(&self, who: &Who, deed: &mut (dyn FnMut() + Send));

    fn open(&self, path: &str, flags: i32, mode: u32) -> Result<Handle>;
    fn close(&self, handle: Handle);
    fn read(&self, handle: Handle, offset: u64, length: usize) -> Result<Vec<u8>>;
    fn write(&self, handle: Handle, offset: u64, data: &[u8]) -> Result<usize>;
    fn fsync(&self, handle: Handle) -> Result<()>;
    /// Forget what the kernel holds of the file.
    fn forget(&self, handle: Handle);
    fn seek(&self, handle: Handle, offset: u64, whence: i32) -> Result<u64>;
    fn allocate(&self, handle: Handle, mode: i32, offset: u64, length: u64) -> Result<()>;
    fn copy(&self, from: (Handle, u64), to: (Handle, u64), length: usize) -> Result<usize>;
    fn resize(&self, handle: Handle, size: u64) -> Result<()>;
    fn resize_path(&self, path: &str, size: u64) -> Result<()>;
    fn stat(&self, path: &str) -> Result<Stat>;
    fn stat_open(&self, handle: Handle) -> Result<Stat>;

    fn mkdir(&self, path: &str, mode: u32) -> Result<()>;
    fn mknod(&self, path: &str, mode: u32, device: u64) -> Result<()>;
    fn symlink(&self, target: &str, path: &str) -> Result<()>;
    fn readlink(&self, path: &str) -> Result<String>;
    fn link(&self, from: &str, to: &str) -> Result<()>;
    fn link_open(&self, handle: Handle, to: &str) -> Result<()>;
    fn unlink(&self, path: &str) -> Result<()>;
    fn rmdir(&self, path: &str) -> Result<()>;
    fn rename(&self, from: &str, to: &str, flags: u32) -> Result<()>;
    fn chmod(&self, path: &str, mode: u32) -> Result<()>;
    fn chown(&self, path: &str, uid: Option<u32>, gid: Option<u32>) -> Result<()>;
    fn utimes(&self, path: &str, atime: When, mtime: When) -> Result<()>;
    /// Some entries after `cookie` (0: from the beginning); none at the end.
    fn list(&self, handle: Handle, cookie: u64) -> Result<Vec<Entry>>;

    fn set_attribute(&self, path: &str, name: &str, value: &[u8], flags: i32) -> Result<()>;
    fn attribute(&self, path: &str, name: &str) -> Result<Vec<u8>>;
    fn attributes(&self, path: &str) -> Result<Vec<String>>;
    fn remove_attribute(&self, path: &str, name: &str) -> Result<()>;
}

/// `name` in an open directory.
pub fn at(handle: Handle, name: &str) -> String {
    format!("#{handle}/{name}")
}

/// It is refused with `errno`.
#[track_caller]
pub fn refused<T: Debug>(outcome: Result<T>, errno: Errno) {
    match outcome {
        Err(found) => assert_eq!(found, errno),
        Ok(done) => panic!("gave {done:?}, should fail: {errno:?}"),
    }
}

/// What scenarios do all the time.
pub trait Usual: Place {
    fn make(&self, path: &str, data: &[u8]) {
        let file = self.open(path, libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY, 0o644).unwrap();
        self.write_all(file, 0, data);
        self.close(file);
    }

    #[track_caller]
    fn write_all(&self, file: Handle, offset: u64, data: &[u8]) {
        if !data.is_empty() {
            assert_eq!(self.write(file, offset, data).unwrap(), data.len());
        }
    }

    #[track_caller]
    fn content(&self, path: &str) -> Vec<u8> {
        let file = self.open(path, libc::O_RDONLY, 0).unwrap();
        let found = self.read(file, 0, 1 << 20).unwrap();
        self.close(file);
        found
    }

    fn open_to_write(&self, path: &str) -> Handle {
        self.open(path, libc::O_RDWR | libc::O_CREAT, 0o644).unwrap()
    }

    /// All names in a directory but `.` and `..`, sorted.
    fn names(&self, path: &str) -> Vec<String> {
        let folder = self.open(path, libc::O_RDONLY | libc::O_DIRECTORY, 0).unwrap();
        let mut found: Vec<String> = self.list_from(folder, 0).into_iter().map(|entry| entry.name).collect();
        self.close(folder);
        found.sort();
        found
    }

    /// All entries after `cookie` but `.` and `..`.
    fn list_from(&self, folder: Handle, mut cookie: u64) -> Vec<Entry> {
        let mut found = vec![];
        loop {
            let some = self.list(folder, cookie).unwrap();
            let Some(last) = some.last() else { break };
            cookie = last.cookie;
            found.extend(some.into_iter().filter(|entry| entry.name != "." && entry.name != ".."));
        }
        found
    }

    fn exists(&self, path: &str) -> bool {
        match self.stat(path) {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error, Errno::NOENT, "{path}");
                false
            }
        }
    }

    /// What `look` sees once nobody has the file open for writing: a mount hears of close(2) a moment later.
    #[track_caller]
    fn settled<T: PartialEq + Debug>(&self, expected: &T, look: impl Fn() -> T) {
        for _ in 0..500 {
            if look() == *expected {
                return;
            }
            self.tick();
        }
        assert_eq!(look(), *expected);
    }

    /// Whether the kernel holds back pages of which we know nothing.
    fn holds_back(&self) -> bool {
        self.kind() == Kind::Writeback
    }

    fn is_ext4(&self) -> bool {
        self.kind() == Kind::Ext4
    }
}

impl<P: Place + ?Sized> Usual for P {}
