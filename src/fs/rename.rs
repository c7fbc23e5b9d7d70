//! Rename: the one operation that touches two names and up to four inodes.
//!
//! *Guarantees*: both names change together. No directory ever becomes its own ancestor. The parent that a moved
//! directory names is exact; that of a file follows if it named the entry that moved.
//! *Assumes*: the kernel has checked permissions and sticky bits.
//! *Fails when*: as rename(2): [`FsError::NotFound`], [`FsError::Exists`] (`RENAME_NOREPLACE`),
//! [`FsError::NotEmpty`], [`FsError::IsDirectory`], [`FsError::NotDirectory`], [`FsError::Invalid`] (a directory
//! into itself, contradictory flags).
//! *Order*: look up both names, lock what they and their inodes need, look up again (trap 15); then one change.
//! *Not here*: the end of what was replaced (`remove`, `reclaim`).

use super::cache::Entry;
use super::change::{Change, touch};
use super::lock::{Held, LockKey, Mode};
use super::names::{DEPTH_MAX, Found, check_name};
use super::remove::{Ended, Ending, drop_link, end_directory};
use super::{Caller, Filesystem, FsError, S_IFCHR};
use crate::format::item::{Dirent, Time};
use crate::format::{Inode, ItemKind, Key, ROOT_INO, reject};
use crate::store::Need;
use std::sync::Arc;

/// Fail if the new name is taken.
pub const RENAME_NOREPLACE: u32 = 1;
/// Exchange the two names.
pub const RENAME_EXCHANGE: u32 = 2;
/// Leave a whiteout (character device 0:0) at the old name.
pub const RENAME_WHITEOUT: u32 = 4;

/// One side of a rename.
struct Side<'a> {
    parent: u64,
    directory: Arc<Entry>,
    name: &'a [u8],
    found: Option<Found>,
    /// What the name stands for.
    node: Option<(Arc<Entry>, Inode)>,
}

/// A rename whose names have been looked up.
struct Plan<'a> {
    source: Side<'a>,
    target: Side<'a>,
    exchange: bool,
}

impl Filesystem {
    /// Give what `name` in `parent` stands for the name `new_name` in `new_parent`. `flags`: `RENAME_*`.
    #[allow(clippy::too_many_arguments)]
    pub fn rename(
        &self,
        parent: u64,
        name: &[u8],
        new_parent: u64,
        new_name: &[u8],
        flags: u32,
        caller: &Caller,
    ) -> Result<(), FsError> {
        let known = RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT;
        let exchange = flags & RENAME_EXCHANGE != 0;
        if flags & !known != 0 || (exchange && flags != RENAME_EXCHANGE) {
            return Err(FsError::Invalid);
        }
        check_name(name)?;
        check_name(new_name)?;
        self.with_room(|| self.try_rename((parent, name), (new_parent, new_name), flags, caller))
    }

    fn try_rename(
        &self,
        (parent, name): (u64, &[u8]),
        (new_parent, new_name): (u64, &[u8]),
        flags: u32,
        caller: &Caller,
    ) -> Result<(), FsError> {
        let exchange = flags & RENAME_EXCHANGE != 0;
        loop {
            let source = self.side(parent, name)?;
            let target = self.side(new_parent, new_name)?;
            let plan = Plan { source, target, exchange };
            if plan.source.found.is_none() || (exchange && plan.target.found.is_none()) {
                return Err(FsError::NotFound);
            }
            let held = self.locks.acquire(&self.rename_locks(&plan));
            if self.find(parent, name)? != plan.source.found || self.find(new_parent, new_name)? != plan.target.found {
                continue;
            }
            let source = plan.source.load(self)?;
            let target = plan.target.load(self)?;
            let plan = Plan { source, target, exchange };
            if flags & RENAME_NOREPLACE != 0 && plan.target.found.is_some() {
                return Err(FsError::Exists);
            }
            if plan.source.ino() == plan.target.ino() {
                return Ok(());
            }
            self.check_shape(&plan)?;
            if exchange {
                return self.exchange(&held, &plan);
            }
            let replaced = plan.target.ino();
            let ended = self.replace(&held, &plan, (flags & RENAME_WHITEOUT != 0).then_some(caller))?;
            drop(held);
            if let (Some(ino), Some(ended)) = (replaced, ended) {
                self.after_ending(ino, ended);
            }
            return Ok(());
        }
    }

    fn side<'a>(&self, parent: u64, name: &'a [u8]) -> Result<Side<'a>, FsError> {
        let (directory, inode) = self.directory(parent)?;
        if inode.nlink == 0 {
            return Err(FsError::NotFound);
        }
        Side { parent, directory, name, found: self.find(parent, name)?, node: None }.load(self)
    }

    fn rename_locks(&self, plan: &Plan) -> Vec<(LockKey, Mode)> {
        let (source, target) = (&plan.source, &plan.target);
        let mut keys = vec![
            (LockKey::Alive(source.parent), Mode::Shared),
            (LockKey::Alive(target.parent), Mode::Shared),
            (self.name_lock(source.parent, source.name), Mode::Exclusive),
            (self.name_lock(target.parent, target.name), Mode::Exclusive),
        ];
        if plan.moves_directory() {
            keys.push((LockKey::Rename, Mode::Exclusive));
        }
        if let (Some((entry, inode)), false) = (&target.node, plan.exchange) {
            keys.push((LockKey::Inode(entry.ino), Mode::Exclusive));
            if inode.is_dir() {
                keys.push((LockKey::Alive(entry.ino), Mode::Exclusive));
            }
        }
        keys
    }

    /// Refuse what would break the tree of directories.
    fn check_shape(&self, plan: &Plan) -> Result<(), FsError> {
        let (source, target) = (&plan.source, &plan.target);
        for side in [source, target] {
            if side.directory.state.lock().inode.as_ref().is_none_or(|inode| inode.nlink == 0) {
                return Err(FsError::NotFound);
            }
        }
        // In one directory nothing can come below itself, and without the rename lock a walk could err.
        let moves = source.parent != target.parent;
        if moves && source.is_dir() {
            self.check_not_below(target.parent, source.ino())?;
        }
        if plan.exchange {
            if moves && target.is_dir() {
                self.check_not_below(source.parent, target.ino())?;
            }
            return Ok(());
        }
        match (&target.node, source.is_dir()) {
            (Some((_, replaced)), true) if !replaced.is_dir() => Err(FsError::NotDirectory),
            (Some((_, replaced)), false) if replaced.is_dir() => Err(FsError::IsDirectory),
            (Some((entry, _)), true) if !self.is_empty(entry.ino)? => Err(FsError::NotEmpty),
            _ => Ok(()),
        }
    }

    /// Refuse to put `moved` below itself: `dir` must not be it or below it. The caller holds the volume's rename
    /// lock, so no directory moves meanwhile.
    fn check_not_below(&self, dir: u64, moved: Option<u64>) -> Result<(), FsError> {
        let mut at = dir;
        for _ in 0..DEPTH_MAX {
            if Some(at) == moved {
                return Err(FsError::Invalid);
            }
            if at == ROOT_INO {
                return Ok(());
            }
            at = self.directory(at)?.1.parent;
        }
        Ok(reject("directory tree", "has a root above every directory")?)
    }

    fn exchange<'a>(&'a self, held: &'a Held<'a>, plan: &'a Plan<'a>) -> Result<(), FsError> {
        let (source, target) = (&plan.source, &plan.target);
        let ((Some((a, a_inode)), Some(a_found)), (Some((b, b_inode)), Some(b_found))) =
            ((&source.node, &source.found), (&target.node, &target.found))
        else {
            return Err(FsError::NotFound);
        };
        let now = self.store.now();
        let need = Need { items: 6, data_blocks: 0, may_use_reserve: true };
        self.change(held, need, &[&source.directory, &target.directory, a, b], |change| {
            for (from, found, entry, inode) in [(target, b_found, a, a_inode), (source, a_found, b, b_inode)] {
                let file_type = (inode.mode >> 12) as u8;
                let dirent = Dirent { ino: entry.ino, file_type, name: from.name.to_vec() };
                change.put(Key::new(from.parent, ItemKind::Dirent, found.cookie), dirent.encode());
            }
            let old = [(source.parent, a_found.cookie), (target.parent, b_found.cookie)];
            moved(change, a.ino, old[0], old[1], now)?;
            moved(change, b.ino, old[1], old[0], now)?;
            for (parent, gone, come) in [(source.parent, a_inode, b_inode), (target.parent, b_inode, a_inode)] {
                let directory = change.inode(parent)?;
                touch(directory, now);
                directory.nlink = directory.nlink.saturating_sub(u32::from(gone.is_dir()));
                add_subdirectory(directory, come.is_dir())?;
            }
            Ok(())
        })
    }

    fn replace<'a>(
        &'a self,
        held: &'a Held<'a>,
        plan: &'a Plan<'a>,
        whiteout: Option<&Caller>,
    ) -> Result<Option<Ended>, FsError> {
        let (source, target) = (&plan.source, &plan.target);
        let (Some((node, inode)), Some(found)) = (&source.node, &source.found) else {
            return Err(FsError::NotFound);
        };
        let cookie = match &target.found {
            Some(found) => found.cookie,
            None => self.place(target.parent, target.name)?.free.ok_or(FsError::DirectoryFull)?,
        };
        let ending = match &target.node {
            Some((entry, inode)) => Some(self.prepare_ending(entry, inode)?),
            None => None,
        };
        let whiteout = match whiteout {
            Some(caller) => Some((self.new_entry()?.1, caller)),
            None => None,
        };
        let mut entries = vec![&source.directory, &target.directory, node];
        entries.extend(target.node.iter().map(|(entry, _)| entry));
        entries.extend(whiteout.iter().map(|(entry, _)| entry));
        let mut need = ending.as_ref().map_or(Need { items: 0, ..RENAME_NEED }, |ending| ending.need(0));
        need.items += RENAME_NEED.items;
        need.may_use_reserve = need.may_use_reserve && whiteout.is_none();
        let now = self.store.now();
        self.change(held, need, &entries, |change| {
            let old = (source.parent, found.cookie);
            let new = (target.parent, cookie);
            change.delete(Key::new(old.0, ItemKind::Dirent, old.1));
            let dirent = Dirent { ino: node.ino, file_type: (inode.mode >> 12) as u8, name: target.name.to_vec() };
            change.put(Key::new(new.0, ItemKind::Dirent, new.1), dirent.encode());
            moved(change, node.ino, old, new, now)?;
            count_move(change, plan, now)?;
            if let Some((entry, caller)) = &whiteout {
                self.put_whiteout(change, entry.ino, old, source.name, caller)?;
            }
            match (&target.node, &ending) {
                (Some((entry, inode)), Some(ending)) => {
                    end_replaced(change, (entry.ino, inode), &target.found, target.parent, ending, now).map(Some)
                }
                _ => Ok(None),
            }
        })
    }

    fn put_whiteout(
        &self,
        change: &mut Change,
        ino: u64,
        (parent, cookie): (u64, u64),
        name: &[u8],
        caller: &Caller,
    ) -> Result<(), FsError> {
        let now = self.store.now();
        let inode = Inode {
            mode: S_IFCHR,
            uid: caller.uid,
            gid: caller.gid,
            nlink: 1,
            size: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            rdev: 0,
            flags: 0,
            parent,
            parent_cookie: cookie,
            generation: self.store.mount_count() as u32,
        };
        change.make(ino, inode);
        change.inode(parent)?.size += 1;
        let dirent = Dirent { ino, file_type: (S_IFCHR >> 12) as u8, name: name.to_vec() };
        change.put(Key::new(parent, ItemKind::Dirent, cookie), dirent.encode());
        Ok(())
    }
}

/// Items of a plain rename: two entries, two directories, the inode, a whiteout.
const RENAME_NEED: Need = Need { items: 7, data_blocks: 0, may_use_reserve: true };

impl Side<'_> {
    /// Read what the name stands for.
    fn load(mut self, filesystem: &Filesystem) -> Result<Self, FsError> {
        self.node = match &self.found {
            Some(found) => match filesystem.load(found.entry.ino) {
                // Gone since it was looked up: the check under the locks sees that the entry changed.
                Err(FsError::Stale) => None,
                loaded => Some(loaded?),
            },
            None => None,
        };
        Ok(self)
    }
    fn ino(&self) -> Option<u64> {
        self.found.as_ref().map(|found| found.entry.ino)
    }
    fn is_dir(&self) -> bool {
        self.node.as_ref().is_some_and(|(_, inode)| inode.is_dir())
    }
}

impl Plan<'_> {
    /// Whether a directory changes its parent.
    fn moves_directory(&self) -> bool {
        let any = self.source.is_dir() || (self.exchange && self.target.is_dir());
        any && self.source.parent != self.target.parent
    }
}

/// `ino` was named by the entry `old` (parent, cookie) and is now named by `new`.
fn moved(change: &mut Change, ino: u64, old: (u64, u64), new: (u64, u64), now: Time) -> Result<(), FsError> {
    let inode = change.inode(ino)?;
    inode.ctime = now;
    if inode.is_dir() || (inode.parent, inode.parent_cookie) == old || inode.parent == 0 {
        (inode.parent, inode.parent_cookie) = new;
    }
    Ok(())
}

/// Counts and times of both directories.
fn count_move(change: &mut Change, plan: &Plan, now: Time) -> Result<(), FsError> {
    let (source, target) = (&plan.source, &plan.target);
    let is_dir = source.is_dir();
    let directory = change.inode(source.parent)?;
    directory.size = directory.size.saturating_sub(1);
    directory.nlink = directory.nlink.saturating_sub(u32::from(is_dir));
    touch(directory, now);
    let directory = change.inode(target.parent)?;
    directory.nlink = directory.nlink.saturating_sub(u32::from(target.is_dir()));
    directory.size += u64::from(target.found.is_none());
    add_subdirectory(directory, is_dir)?;
    touch(directory, now);
    Ok(())
}

fn add_subdirectory(directory: &mut Inode, is_dir: bool) -> Result<(), FsError> {
    directory.nlink = directory.nlink.checked_add(u32::from(is_dir)).ok_or(FsError::TooManyLinks)?;
    Ok(())
}

/// End what stood at the new name.
fn end_replaced(
    change: &mut Change,
    (ino, inode): (u64, &Inode),
    found: &Option<Found>,
    parent: u64,
    ending: &Ending,
    now: Time,
) -> Result<Ended, FsError> {
    match found {
        _ if inode.is_dir() => end_directory(change, ino, ending, now),
        Some(found) => drop_link(change, ino, found, parent, ending, now),
        None => Err(FsError::Stale),
    }
}
