//! Names that go: unlink and rmdir, and what happens to an inode without a name.
//!
//! *Guarantees*: name, counts and (if nobody has it open and it is small) content go together. Otherwise the inode
//! becomes an orphan, named in the list of orphans in the same transaction, and `reclaim` ends it.
//! *Assumes*: the kernel has checked permissions and sticky bits.
//! *Fails when*: [`FsError::NotFound`], [`FsError::IsDirectory`], [`FsError::NotDirectory`],
//! [`FsError::NotEmpty`]. Never for lack of room: it may use the reserve.
//! *Order*: look up, lock, look up again; on a difference let go and try anew.
//! *Not here*: the piecewise removal of large files (`reclaim`).

use super::cache::Entry;
use super::change::{Change, touch};
use super::lock::{LockKey, Mode};
use super::names::{Found, check_name};
use super::{Filesystem, FsError};
use crate::format::item::{COOKIE_END, COOKIE_MIN, Time};
use crate::format::{Inode, ItemKind, Key, ORPHANS};
use crate::store::Need;
use std::sync::Arc;

/// Largest file, in blocks, that is removed together with its last name.
const AT_ONCE_BLOCKS_MAX: u64 = 4096;

/// How an inode that loses its last name ends; made ready before the transaction.
pub(super) struct Ending {
    /// Keys of its extended attributes, if it can end at once.
    xattrs: Option<Vec<Key>>,
    /// Whether it can have blocks.
    content: bool,
}

/// What became of the inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// It lives: other names.
    Named,
    /// It is gone.
    Gone,
    /// It is an orphan that is open: `release` ends it.
    Open,
    /// It is an orphan that nobody has open.
    Orphan,
}

impl Filesystem {
    /// Remove a name that is not a directory's.
    pub fn unlink(&self, parent: u64, name: &[u8]) -> Result<(), FsError> {
        self.remove(parent, name, false)
    }

    /// Remove an empty directory.
    pub fn rmdir(&self, parent: u64, name: &[u8]) -> Result<(), FsError> {
        self.remove(parent, name, true)
    }

    fn remove(&self, parent: u64, name: &[u8], is_rmdir: bool) -> Result<(), FsError> {
        check_name(name)?;
        loop {
            let (directory, _) = self.directory(parent)?;
            let seen = self.find(parent, name)?.ok_or(FsError::NotFound)?;
            let ino = seen.entry.ino;
            let mut keys = vec![
                (LockKey::Alive(parent), Mode::Shared),
                (self.name_lock(parent, name), Mode::Exclusive),
                (LockKey::Inode(ino), Mode::Exclusive),
            ];
            keys.extend(is_rmdir.then_some((LockKey::Alive(ino), Mode::Exclusive)));
            let held = self.locks.acquire(&keys);
            if self.find(parent, name)? != Some(seen.clone()) {
                continue;
            }
            let (entry, inode) = if is_rmdir { self.directory(ino)? } else { self.load(ino)? };
            if is_rmdir && !self.is_empty(ino)? {
                return Err(FsError::NotEmpty);
            }
            if !is_rmdir && inode.is_dir() {
                return Err(FsError::IsDirectory);
            }
            let ending = self.prepare_ending(&entry, &inode)?;
            let now = self.store.now();
            let ended = self.change(&held, ending.need(4), &[&directory, &entry], |change| {
                change.delete(Key::new(parent, ItemKind::Dirent, seen.cookie));
                let directory = change.inode(parent)?;
                directory.size = directory.size.saturating_sub(1);
                directory.nlink = directory.nlink.saturating_sub(u32::from(is_rmdir));
                touch(directory, now);
                if is_rmdir {
                    return end_directory(change, ino, &ending, now);
                }
                drop_link(change, ino, &seen, parent, &ending, now)
            })?;
            drop(held);
            self.after_ending(ino, ended);
            return Ok(());
        }
    }

    /// Whether a directory has no entries; stays so while the caller holds it exclusively.
    pub(super) fn is_empty(&self, dir: u64) -> Result<bool, FsError> {
        let from = Key::new(dir, ItemKind::Dirent, COOKIE_MIN);
        Ok(self.store.scan(from, Key::new(dir, ItemKind::Dirent, COOKIE_END), 1)?.is_empty())
    }

    /// Find out how `entry` could end; the caller holds its inode exclusively.
    pub(super) fn prepare_ending(&self, entry: &Arc<Entry>, inode: &Inode) -> Result<Ending, FsError> {
        let last = inode.is_dir() || inode.nlink <= 1;
        if !last || entry.state.lock().opens > 0 {
            return Ok(Ending { xattrs: None, content: false });
        }
        match self.prepare_end(entry, inode) {
            // What is left of a damaged file stays an orphan; its name can go.
            Err(FsError::Store(error)) if error.is_damage() => Ok(Ending { xattrs: None, content: true }),
            prepared => prepared,
        }
    }

    fn prepare_end(&self, entry: &Arc<Entry>, inode: &Inode) -> Result<Ending, FsError> {
        let blocks = if inode.is_file() { self.store.file_blocks(entry.ino)? } else { 0 };
        if blocks > AT_ONCE_BLOCKS_MAX {
            return Ok(Ending { xattrs: None, content: true });
        }
        if inode.is_file() {
            self.store.probe_content(entry.ino)?;
        }
        let xattrs = if self.facts(entry)?.any { self.xattr_keys(entry.ino, 256)? } else { vec![] };
        // A file with very many attributes goes piece by piece.
        Ok(Ending { xattrs: (xattrs.len() < 256).then_some(xattrs), content: inode.is_file() })
    }

    /// What is left to do once the locks are released.
    pub(super) fn after_ending(&self, ino: u64, ended: Ended) {
        if ended == Ended::Orphan {
            self.reclaim.push(ino);
        }
    }
}

impl Ending {
    /// Room for the ending and `items` other items.
    pub(super) fn need(&self, items: u32) -> Need {
        let xattrs = self.xattrs.as_ref().map_or(0, Vec::len) as u32;
        Need { items: items + xattrs + 2, data_blocks: 0, may_use_reserve: true }
    }
}

/// Take one link from `ino`, whose name `found` in `parent` goes.
pub(super) fn drop_link(
    change: &mut Change,
    ino: u64,
    found: &Found,
    parent: u64,
    ending: &Ending,
    now: Time,
) -> Result<Ended, FsError> {
    let inode = change.inode(ino)?;
    inode.nlink = inode.nlink.saturating_sub(1);
    inode.ctime = now;
    if inode.nlink > 0 {
        if (inode.parent, inode.parent_cookie) == (parent, found.cookie) {
            (inode.parent, inode.parent_cookie) = (0, 0);
        }
        change.state(ino).name_lost = Some(now);
        return Ok(Ended::Named);
    }
    Ok(end(change, ino, ending))
}

/// End an empty directory, whose only name goes.
pub(super) fn end_directory(change: &mut Change, ino: u64, ending: &Ending, now: Time) -> Result<Ended, FsError> {
    let inode = change.inode(ino)?;
    inode.nlink = 0;
    inode.size = 0;
    inode.ctime = now;
    Ok(end(change, ino, ending))
}

/// End an inode with no name left, or make it an orphan.
fn end(change: &mut Change, ino: u64, ending: &Ending) -> Ended {
    let opens = change.state(ino).opens;
    match &ending.xattrs {
        Some(xattrs) if opens == 0 => {
            for key in xattrs {
                change.delete(*key);
            }
            if ending.content {
                change.punch(ino, 0, u64::MAX);
            }
            change.unmake(ino);
            Ended::Gone
        }
        _ => {
            change.put(Key::new(ORPHANS, ItemKind::Orphan, ino), vec![0; 8]);
            if opens == 0 { Ended::Orphan } else { Ended::Open }
        }
    }
}
