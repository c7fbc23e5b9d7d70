//! Names, inodes and bytes: one method per filesystem operation.
//!
//! *Guarantees*: each method is atomic towards all others and, as far as one transaction goes, towards crashes:
//! what survives is a prefix of the operations done (writes of more than 1 MiB, and truncates and fallocates of very
//! large ranges, are several). Errors change nothing, except that a long write may be cut short.
//! *Assumes*: permissions, sticky bits and path walking are the kernel's (`default_permissions`). The node id of
//! FUSE is the inode number; numbers are never reused, so no lookup counts are kept and FORGET does nothing; who still looks
//! at what has ended is told from memory (`cache::EndedInodes`).
//! *Fails when*: [`FsError`] names why; `crate::error` gives the errno.
//! *Order*: every mutation runs through one skeleton (`change`): semantic locks (`lock`) → reads → begin →
//! attribute mutexes → commit. Reads of the disk happen before `begin`, or with everything undone and released.
//! *Not here*: durability, caching of data and the tree (`store`); requests and replies (`fuse`).
//!
//! | file | part |
//! |---|---|
//! | `lock` `cache` `change` | exclusion, inodes in memory, the skeleton |
//! | `names` `make` `remove` `rename` | directories |
//! | `attributes` `file` `allocate` | inodes and bytes |
//! | `privileges` | what such a change takes from a file |
//! | `xattr` `acl` | extended attributes |
//! | `reclaim` | content of inodes without a name |

pub mod acl;
mod allocate;
pub mod api;
mod attributes;
mod cache;
mod change;
mod error;
mod file;
pub mod lock;
mod make;
#[cfg(test)]
pub(crate) mod memory;
mod names;
mod privileges;
mod reclaim;
mod remove;
mod rename;
#[cfg(test)]
mod tests;
mod xattr;

pub use acl::{ACL_ACCESS, ACL_DEFAULT};
pub use error::FsError;
pub use privileges::ModeTold;
pub use rename::{RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT};
pub use xattr::{XATTR_CREATE, XATTR_REPLACE};

use crate::format::item::Time;
use crate::format::{Inode, Key, NAME_MAX, ROOT_INO};
use crate::store::StoreError;
use crate::sync::Mutex;
use crate::sync::atomic::AtomicU64;
use api::StoreApi;
use cache::{Entry, InodeCache};
use lock::LockManager;
use std::collections::HashMap;
use std::sync::Arc;

/// File type bits of a mode.
pub(crate) const S_IFMT: u32 = 0o170_000;
pub(crate) const S_IFIFO: u32 = 0o010_000;
pub(crate) const S_IFCHR: u32 = 0o020_000;
pub(crate) const S_IFDIR: u32 = 0o040_000;
pub(crate) const S_IFBLK: u32 = 0o060_000;
pub(crate) const S_IFREG: u32 = 0o100_000;
pub(crate) const S_IFLNK: u32 = 0o120_000;
pub(crate) const S_IFSOCK: u32 = 0o140_000;
pub(crate) const S_ISUID: u32 = 0o4000;
pub(crate) const S_ISGID: u32 = 0o2000;
/// Bytes of one transaction's worth of file data.
const PIECE: usize = 1 << 20;

/// Who asks. Permission checks are the kernel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Mode bits that a new file does not get, unless its directory has a default ACL.
    pub umask: u32,
    /// Root without CAP_FSETID: files that he changes lose their set-id bits.
    pub lacks_fsetid: bool,
}

/// Attributes of an inode, as stat(2) shows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: u64,
    /// Tells this inode from another one that had the number before (there is none).
    pub generation: u64,
    /// Bytes; directories: entries.
    pub size: u64,
    /// Units of 512 bytes occupied.
    pub blocks512: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of content.
    pub mtime: Time,
    /// Last change of attributes.
    pub ctime: Time,
    /// Birth.
    pub btime: Time,
    /// Type and permission bits.
    pub mode: u32,
    /// Links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of device nodes.
    pub rdev: u32,
}

/// A moment, or the moment when the change is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeOrNow {
    /// This moment.
    Time(Time),
    /// Now.
    Now,
}

/// Attributes to change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits; the type is not changed.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Bytes (regular files only).
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<TimeOrNow>,
    /// Last change of content.
    pub mtime: Option<TimeOrNow>,
    /// Last change of attributes; otherwise now.
    pub ctime: Option<Time>,
}

/// An entry of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// Inode number.
    pub ino: u64,
    /// Where to resume after this entry.
    pub cookie: u64,
    /// `S_IFMT` bits of the mode, shifted right by 12.
    pub file_type: u8,
    /// Name.
    pub name: Vec<u8>,
    /// Attributes, if they were asked for and the inode is still there. Never for `.` and `..`.
    pub attr: Option<Attr>,
    /// What the attributes are worth.
    pub found: Found,
}

/// What became of the inode of a listed name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Its attributes are true (or nobody asked).
    Whole,
    /// Its attributes are true, but it has just lost a name and kept others. The kernel, when the answer to that reaches it,
    /// takes one from the link count that it knows then (`fuse_entry_unlinked`, fs/fuse/dir.c): if it has learnt the
    /// new one from this listing meanwhile, it holds one too few, and a last link that is none cannot be linked to.
    LostName,
    /// It cannot be read: only number and type of the attributes are known, and nobody should remember the others.
    Damaged,
    /// It has gone since its name was read.
    Gone,
}

/// Room and limits, as statvfs(3) shows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatFs {
    /// Blocks of the volume.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Free blocks for new data.
    pub bavail: u64,
    /// Inodes in use and free.
    pub files: u64,
    /// Inodes that could still be made.
    pub ffree: u64,
    /// Bytes of a block.
    pub bsize: u32,
    /// Bytes of the longest name.
    pub namelen: u32,
}

/// How the filesystem behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FsOptions {
    /// Never change access times by reading (otherwise: as `relatime`).
    pub noatime: bool,
    /// The kernel's writeback cache is on: it keeps the modification times of files and sends them itself.
    pub writeback_cache: bool,
}

/// A mounted filesystem; shared by all threads.
pub struct Filesystem {
    store: Arc<dyn StoreApi>,
    options: FsOptions,
    hash_key: [u64; 2],
    locks: LockManager,
    cache: InodeCache,
    next_handle: AtomicU64,
    reclaim: reclaim::Reclaim,
    ended: cache::EndedInodes,
    /// Inodes with access times that wait to be written.
    atimes: Mutex<Vec<Arc<Entry>>>,
    /// Inodes whose fsync failed, and how (invariant 5: it keeps failing).
    sync_failed: Arc<Mutex<HashMap<u64, String>>>,
    mode_told: Mutex<Option<ModeTold>>,
}

/// Most inodes remembered one by one as failed; the next one makes every fsync fail.
const SYNC_FAILED_MAX: usize = 100_000;

impl Filesystem {
    /// The filesystem that `store` holds.
    ///
    /// # Errors
    /// The root directory cannot be read.
    pub fn new(store: Arc<dyn StoreApi>, options: FsOptions) -> Result<Filesystem, FsError> {
        let filesystem = Filesystem {
            hash_key: store.hash_key(),
            store,
            options,
            locks: LockManager::default(),
            cache: InodeCache::new(cache::ENTRIES_MAX),
            next_handle: AtomicU64::new(1),
            reclaim: reclaim::Reclaim::default(),
            ended: cache::EndedInodes::default(),
            atimes: Mutex::default(),
            sync_failed: Arc::default(),
            mode_told: Mutex::default(),
        };
        filesystem.directory(ROOT_INO)?;
        Ok(filesystem)
    }

    /// Items of an empty filesystem: the root directory, owned by `uid` and `gid`.
    pub fn root_items(now: Time, uid: u32, gid: u32) -> Vec<(Key, Vec<u8>)> {
        let root = Inode {
            mode: S_IFDIR | 0o755,
            uid,
            gid,
            nlink: 2,
            size: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            rdev: 0,
            flags: 0,
            parent: ROOT_INO,
            parent_cookie: 0,
            generation: 0,
        };
        vec![(Key::inode(ROOT_INO), root.encode())]
    }

    /// Room and limits.
    pub fn statfs(&self) -> StatFs {
        let space = self.store.space();
        let free = space.free.saturating_add(space.waiting);
        // Nodes for what fills it: who asks how much there is, and takes it, is to get it.
        let free = free.saturating_sub((free / 1024 + 512).min(free / 8));
        StatFs {
            blocks: space.blocks,
            bfree: free,
            bavail: free,
            files: space.inodes.saturating_add(free),
            ffree: free,
            bsize: crate::format::BLOCK as u32,
            namelen: NAME_MAX as u32,
        }
    }

    /// Make durable everything that was done to `ino` and all changes of names and attributes before now.
    /// `done` is called once, perhaps on another thread. `fdatasync` needs no less: attributes travel with the log.
    pub fn fsync(&self, ino: u64, done: Box<dyn FnOnce(Result<(), FsError>) + Send>) {
        // The kernel has sent all its pages before it asks: those that come later were written later.
        self.cache.entry(ino).state.lock().mtime_set = None;
        let failed = self.sync_failed.lock();
        if let Some(cause) = failed.get(&ino).or_else(|| failed.get(&u64::MAX)) {
            let error = FsError::SyncFailed(cause.clone());
            drop(failed);
            return done(Err(error));
        }
        drop(failed);
        let sync_failed = Arc::clone(&self.sync_failed);
        self.store.fsync(
            ino,
            Box::new(move |outcome| {
                if let Err(error) = &outcome {
                    log::error!("fsync of inode {ino} failed: {error}");
                    let mut failed = sync_failed.lock();
                    let place = if failed.len() < SYNC_FAILED_MAX { ino } else { u64::MAX };
                    failed.insert(place, error.to_string());
                }
                done(outcome.map_err(FsError::from));
            }),
        );
    }

    /// Make everything durable: a barrier for all that was done before.
    pub fn sync(&self) -> Result<(), FsError> {
        Ok(self.store.sync()?)
    }

    /// The entry of `ino`, loaded; whether there is such an inode stands in it.
    fn entry(&self, ino: u64) -> Result<Arc<Entry>, FsError> {
        let entry = self.cache.entry(ino);
        let mut state = entry.state.lock();
        if !state.loaded {
            if let Some(value) = self.store.get(Key::inode(ino))? {
                state.inode = Some(Inode::decode(&value)?);
            }
            state.loaded = true;
        }
        drop(state);
        Ok(entry)
    }

    /// A copy of the attributes of `ino`, and its entry.
    fn load(&self, ino: u64) -> Result<(Arc<Entry>, Inode), FsError> {
        let entry = self.entry(ino)?;
        let inode = entry.state.lock().inode.clone().ok_or(FsError::Stale)?;
        Ok((entry, inode))
    }

    /// As [`Filesystem::load`], for a directory.
    fn directory(&self, ino: u64) -> Result<(Arc<Entry>, Inode), FsError> {
        let (entry, inode) = self.load(ino)?;
        if inode.is_dir() { Ok((entry, inode)) } else { Err(FsError::NotDirectory) }
    }

    /// Say in the log which inode a damaged block belongs to.
    fn watch<T>(&self, ino: u64, doing: &str, outcome: Result<T, FsError>) -> Result<T, FsError> {
        if let Err(FsError::Store(error @ (StoreError::Lost(_) | StoreError::Corrupt { .. }))) = &outcome {
            log::error!("{doing} inode {ino} ({}): {error}", self.path_hint(ino));
        }
        outcome
    }
}
