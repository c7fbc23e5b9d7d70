//! Names in directories: finding, listing, and the cookies that both rest on.
//!
//! *Guarantees*: an entry's cookie never changes while the entry exists, and no two entries of a directory share
//! one: a listing that resumes after a cookie shows each entry that is there all the time exactly once (trap 14).
//! *Assumes*: the name hash is keyed per volume; 256 names with one hash are not met by chance.
//! *Fails when*: [`FsError::NotFound`], [`FsError::NotDirectory`], [`FsError::NameTooLong`], and
//! [`FsError::DirectoryFull`] for the 257th name of one hash.
//! *Order*: `lookup` holds the name shared, so it never sees a name whose inode is half gone; listings lock nothing.
//! *Not here*: changes of names (`make`, `remove`, `rename`).

use super::lock::{LockKey, Mode};
use super::{Attr, DirEntry, Filesystem, Found as Listed, FsError, S_IFDIR};
use crate::format::item::{COOKIE_END, COOKIE_MIN, Dirent, Time, name_cookie_base};
use crate::format::{BLOCK, Inode, ItemKind, Key, NAME_MAX, ROOT_INO};

/// How long the kernel may take to hear that a name is gone, s, rounded up.
const ANSWERED_WITHIN: u64 = 2;
/// Cookie of `.` in listings.
const COOKIE_DOT: u64 = 1;
/// Cookie of `..` in listings.
const COOKIE_DOT_DOT: u64 = 2;
/// Names of one directory that can share a hash.
const SEQUENCES: u64 = 256;
/// Most steps up the tree of directories before it must be damaged.
pub(super) const DEPTH_MAX: usize = 1 << 20;

/// An entry and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// Its cookie.
    pub cookie: u64,
    /// What it says.
    pub entry: Dirent,
}

/// Where a name stands or could stand.
pub(super) struct Place {
    /// The entry, if there is one.
    pub found: Option<Found>,
    /// A free cookie of the same hash.
    pub free: Option<u64>,
}

/// Refuse what cannot be the name of a new or existing entry.
pub(super) fn check_name(name: &[u8]) -> Result<(), FsError> {
    if name.len() > NAME_MAX {
        return Err(FsError::NameTooLong);
    }
    if name.is_empty() {
        return Err(FsError::NotFound);
    }
    let bad = name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0);
    if bad { Err(FsError::Invalid) } else { Ok(()) }
}

impl Filesystem {
    /// Cookie of the first place that `name` can have in a directory.
    pub(super) fn base(&self, name: &[u8]) -> u64 {
        name_cookie_base(self.hash_key, name)
    }

    /// Lock of `name` in `dir`.
    pub(super) fn name_lock(&self, dir: u64, name: &[u8]) -> LockKey {
        LockKey::Name(dir, self.base(name))
    }

    /// The entry of `name` in `dir`.
    pub(super) fn find(&self, dir: u64, name: &[u8]) -> Result<Option<Found>, FsError> {
        let base = self.base(name);
        let key = |off| Key::new(dir, ItemKind::Dirent, off);
        // One look: mostly there is one such hash, or none. No further than need be: what comes next may be lost.
        let Some((first, value)) = self.store.scan(key(base), key(base + SEQUENCES), 1)?.into_iter().next() else {
            return Ok(None);
        };
        let entry = Dirent::decode(&value)?;
        if entry.name == name {
            return Ok(Some(Found { cookie: first.off, entry }));
        }
        Ok(self.place(dir, name)?.found)
    }

    /// Where `name` stands in `dir`, and where it could.
    pub(super) fn place(&self, dir: u64, name: &[u8]) -> Result<Place, FsError> {
        let base = self.base(name);
        let from = Key::new(dir, ItemKind::Dirent, base);
        let end = Key::new(dir, ItemKind::Dirent, base + SEQUENCES);
        let (mut found, mut free) = (None, base);
        for (key, value) in self.store.scan(from, end, SEQUENCES as usize)? {
            let entry = Dirent::decode(&value)?;
            if entry.name == name {
                found = Some(Found { cookie: key.off, entry });
            }
            if key.off == free {
                free += 1;
            }
        }
        Ok(Place { found, free: (free < base + SEQUENCES).then_some(free) })
    }

    /// Attributes of what `name` stands for in `parent`; also `.` and `..`.
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Result<Attr, FsError> {
        if name == b"." {
            return self.getattr(parent);
        }
        let (_, directory) = self.directory(parent)?;
        if name == b".." {
            return self.getattr(directory.parent);
        }
        check_name(name)?;
        let _held = self.locks.acquire(&[(self.name_lock(parent, name), Mode::Shared)]);
        let found = self.watch(parent, "looking up a name in", self.find(parent, name))?;
        let found = found.ok_or(FsError::NotFound)?;
        self.watch(found.entry.ino, "looking up", self.attr(found.entry.ino))
    }

    /// Attributes of `ino`.
    pub fn getattr(&self, ino: u64) -> Result<Attr, FsError> {
        self.watch(ino, "reading the attributes of", self.attr(ino))
    }

    /// As [`Filesystem::getattr`], for who may still hold what has ended: a working directory, say. Such an inode has no
    /// links, and shows what it was.
    pub fn getattr_held(&self, ino: u64) -> Result<Attr, FsError> {
        match self.getattr(ino) {
            Err(FsError::Stale) => self.ended.get(ino).map(|inode| attr_with(ino, &inode, 0)).ok_or(FsError::Stale),
            found => found,
        }
    }

    fn attr(&self, ino: u64) -> Result<Attr, FsError> {
        let (_, inode) = self.load(ino)?;
        self.attr_of(ino, &inode)
    }

    /// The attributes `inode` of `ino`, with the room that it occupies.
    pub(super) fn attr_of(&self, ino: u64, inode: &Inode) -> Result<Attr, FsError> {
        let blocks = if inode.is_file() { self.store.file_blocks(ino)? } else { 0 };
        Ok(attr_with(ino, inode, blocks))
    }

    /// As [`Filesystem::attr_of`], after a change that is done: if the blocks cannot be counted, all are thought to be
    /// there.
    pub(super) fn attr_after(&self, ino: u64, inode: &Inode) -> Attr {
        let attr = self.watch(ino, "counting the blocks of", self.attr_of(ino, inode));
        attr.unwrap_or_else(|_| attr_with(ino, inode, inode.size.div_ceil(BLOCK as u64)))
    }

    /// At most `max` entries of `ino` after `after_cookie` (0: from the start), beginning with `.` and `..`.
    pub fn readdir(&self, ino: u64, after_cookie: u64, max: usize, with_attr: bool) -> Result<Vec<DirEntry>, FsError> {
        let outcome = self.list(ino, after_cookie, max, with_attr);
        self.watch(ino, "listing", outcome)
    }

    fn list(&self, ino: u64, after_cookie: u64, max: usize, with_attr: bool) -> Result<Vec<DirEntry>, FsError> {
        let (entry, directory) = self.directory(ino)?;
        let mut out = Vec::new();
        let dots = [(COOKIE_DOT, ino, &b"."[..]), (COOKIE_DOT_DOT, directory.parent, &b".."[..])];
        for (cookie, ino, name) in dots {
            if after_cookie < cookie && out.len() < max {
                let file_type = (S_IFDIR >> 12) as u8;
                out.push(DirEntry { ino, cookie, file_type, name: name.to_vec(), attr: None, found: Listed::Whole });
            }
        }
        let from = after_cookie.saturating_add(1).max(COOKIE_MIN);
        if out.len() < max && from < COOKIE_END {
            let key = |off| Key::new(ino, ItemKind::Dirent, off);
            for (key, value) in self.store.scan(key(from), key(COOKIE_END), max - out.len())? {
                let entry = Dirent::decode(&value)?;
                let (attr, found) = if with_attr { self.listed(&entry) } else { (None, Listed::Whole) };
                let Dirent { ino, file_type, name } = entry;
                out.push(DirEntry { ino, cookie: key.off, file_type, name, attr, found });
            }
        }
        self.accessed(&entry);
        Ok(out)
    }

    /// Attributes for a listing. An inode that is damaged does not spoil it, and its name does not vanish from it.
    fn listed(&self, entry: &Dirent) -> (Option<Attr>, Listed) {
        match self.getattr(entry.ino) {
            // Looked at after the attributes: both are set at once.
            Ok(attr) if self.has_just_lost_a_name(entry.ino) => (Some(attr), Listed::LostName),
            Ok(attr) => (Some(attr), Listed::Whole),
            Err(FsError::Stale) => (None, Listed::Gone),
            // Somebody may have it open: a size that is not its own would cut what the kernel has in memory.
            Err(_) => match self.load(entry.ino) {
                Ok((_, inode)) => (Some(attr_with(entry.ino, &inode, 0)), Listed::Damaged),
                Err(_) => (Some(attr_unknown(entry.ino, u32::from(entry.file_type) << 12)), Listed::Damaged),
            },
        }
    }

    fn has_just_lost_a_name(&self, ino: u64) -> bool {
        let Ok((entry, _)) = self.load(ino) else { return false };
        let lost = entry.state.lock().name_lost;
        lost.is_some_and(|at| self.store.now().sec.abs_diff(at.sec) <= ANSWERED_WITHIN)
    }

    /// A path of `ino` as far as hints and intact entries tell; for messages.
    pub(super) fn path_hint(&self, ino: u64) -> String {
        let (mut path, mut at) = (Vec::new(), ino);
        for _ in 0..64 {
            if at == ROOT_INO {
                return String::from_utf8_lossy(&if path.is_empty() { b"/".to_vec() } else { path }).into_owned();
            }
            let Ok((_, inode)) = self.load(at) else { break };
            let key = Key::new(inode.parent, ItemKind::Dirent, inode.parent_cookie);
            let Ok(Some(value)) = self.store.get(key) else { break };
            let Ok(entry) = Dirent::decode(&value) else { break };
            if entry.ino != at {
                break;
            }
            path = [b"/", &entry.name[..], &path].concat();
            at = inode.parent;
        }
        format!("…{}", String::from_utf8_lossy(&path))
    }
}

/// The attributes `inode` of `ino`, which occupies `blocks` blocks.
pub(super) fn attr_with(ino: u64, inode: &Inode, blocks: u64) -> Attr {
    Attr {
        ino,
        generation: u64::from(inode.generation),
        size: inode.size,
        blocks512: blocks.saturating_mul(8),
        atime: inode.atime,
        mtime: inode.mtime,
        ctime: inode.ctime,
        btime: inode.btime,
        mode: inode.mode,
        nlink: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        rdev: inode.rdev,
    }
}

/// What number and type alone tell of an inode.
pub(super) fn attr_unknown(ino: u64, mode: u32) -> Attr {
    let time = Time::default();
    Attr {
        ino,
        generation: 0,
        size: 0,
        blocks512: 0,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
        mode,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
    }
}
