//! New names: files, directories, nodes, symbolic links, hard links.
//!
//! *Guarantees*: name, inode, and what the inode inherits (group and setgid of its directory, default ACL) appear
//! together. *Assumes*: the kernel has checked permissions and stripped what the caller may not set.
//! *Fails when*: [`FsError::Exists`], [`FsError::TooManyLinks`], no room. *Order*: see `lock` for the keys.
//! *Not here*: opening (`file`).

use super::acl::{Acl, Inherited};
use super::cache::Entry;
use super::change::{Change, touch};
use super::lock::{LockKey, Mode};
use super::names::{attr_with, check_name};
use super::xattr::SYMLINK_TARGET;
use super::{
    ACL_ACCESS, ACL_DEFAULT, Attr, Caller, Filesystem, FsError, S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT,
    S_IFREG, S_IFSOCK, S_ISGID,
};
use crate::format::item::Dirent;
use crate::format::{Inode, ItemKind, Key, LINK_MAX, require};
use crate::store::Need;
use std::sync::Arc;

/// Longest target of a symbolic link, bytes (`PATH_MAX` - 1).
const SYMLINK_MAX: usize = 4095;

/// What is to be made.
struct New<'a> {
    mode: u32,
    rdev: u32,
    target: &'a [u8],
    open_flags: Option<i32>,
}

impl Filesystem {
    /// Make a file, fifo, socket or device node; `mode` holds the type (none: a regular file).
    pub fn mknod(&self, parent: u64, name: &[u8], mode: u32, rdev: u32, caller: &Caller) -> Result<Attr, FsError> {
        let mode = if mode & S_IFMT == 0 { mode | S_IFREG } else { mode };
        match mode & S_IFMT {
            S_IFREG | S_IFIFO | S_IFSOCK => self.make(parent, name, caller, &New::plain(mode)).map(|made| made.0),
            S_IFCHR | S_IFBLK => self.make(parent, name, caller, &New { rdev, ..New::plain(mode) }).map(|made| made.0),
            S_IFDIR => Err(FsError::NotPermitted),
            _ => Err(FsError::Invalid),
        }
    }

    /// Make a directory.
    pub fn mkdir(&self, parent: u64, name: &[u8], mode: u32, caller: &Caller) -> Result<Attr, FsError> {
        self.make(parent, name, caller, &New::plain(S_IFDIR | mode & 0o7777)).map(|made| made.0)
    }

    /// Make a regular file and open it; without `O_EXCL` an existing one is opened (and cut with `O_TRUNC`).
    /// Also gives the handle.
    pub fn create(
        &self,
        parent: u64,
        name: &[u8],
        mode: u32,
        flags: i32,
        caller: &Caller,
    ) -> Result<(Attr, u64), FsError> {
        let new = New { open_flags: Some(flags), ..New::plain(S_IFREG | mode & 0o7777) };
        loop {
            match self.make(parent, name, caller, &new) {
                Err(FsError::Exists) if flags & libc::O_EXCL == 0 => {}
                outcome => return outcome,
            }
            // Somebody else made it: open theirs, unless it is gone again.
            let ino = match self.lookup(parent, name) {
                Err(FsError::NotFound) => continue,
                found => found?.ino,
            };
            let handle = match self.open_by(ino, flags, caller) {
                // It has no link: either its name has just gone, too, or the volume contradicts itself.
                Err(FsError::Stale | FsError::NotFound)
                    if self.find(parent, name)?.is_none_or(|found| found.entry.ino != ino) =>
                {
                    continue;
                }
                opened => opened?,
            };
            return match self.getattr(ino) {
                Ok(attr) => Ok((attr, handle)),
                Err(error) => {
                    self.release(ino, handle);
                    Err(error)
                }
            };
        }
    }

    /// Make a symbolic link to `target`.
    pub fn symlink(&self, parent: u64, name: &[u8], target: &[u8], caller: &Caller) -> Result<Attr, FsError> {
        if target.is_empty() {
            return Err(FsError::NotFound);
        }
        if target.len() > SYMLINK_MAX {
            return Err(FsError::NameTooLong);
        }
        self.make(parent, name, caller, &New { target, ..New::plain(S_IFLNK | 0o777) }).map(|made| made.0)
    }

    fn make(&self, parent: u64, name: &[u8], caller: &Caller, new: &New) -> Result<(Attr, u64), FsError> {
        self.with_room(|| self.try_make(parent, name, caller, new))
    }

    fn try_make(&self, parent: u64, name: &[u8], caller: &Caller, new: &New) -> Result<(Attr, u64), FsError> {
        check_name(name)?;
        let (directory, _) = self.directory(parent)?;
        let mut keys = vec![(LockKey::Alive(parent), Mode::Shared), (self.name_lock(parent, name), Mode::Exclusive)];
        let inherits = new.mode & S_IFMT != S_IFLNK && self.facts(&directory)?.default_acl;
        if inherits {
            keys.push((LockKey::Inode(parent), Mode::Shared));
        }
        let held = self.locks.acquire(&keys);
        let place = self.place(parent, name)?;
        if place.found.is_some() {
            return Err(FsError::Exists);
        }
        let cookie = place.free.ok_or(FsError::DirectoryFull)?;
        let mut inherited = self.inherit(parent, inherits, new.mode, caller.umask)?;
        if !new.target.is_empty() {
            inherited.items = self.new_xattr(SYMLINK_TARGET, new.target);
            inherited.facts.any = true;
        }
        let (ino, entry) = self.new_entry()?;
        let need = Need { items: 3 + inherited.items.len() as u32, data_blocks: 0, may_use_reserve: false };
        let inode = self.change(&held, need, &[&directory, &entry], |change| {
            let node = self.new_inode(change.inode(parent)?, (parent, cookie), new, inherited.mode, caller)?;
            let file_type = (node.mode >> 12) as u8;
            add_entry(change, parent, &node)?;
            change.make(ino, node.clone());
            change.put(
                Key::new(parent, ItemKind::Dirent, cookie),
                Dirent { ino, file_type, name: name.to_vec() }.encode(),
            );
            for (off, value) in &inherited.items {
                change.put(Key::new(ino, ItemKind::Xattr, *off), value.clone());
            }
            change.state(ino).facts = Some(inherited.facts);
            Ok(node)
        })?;
        // Only now: what fails leaves no handle. Nobody can remove the file yet: its name is held.
        let handle = new.open_flags.map_or(0, |flags| self.count_open(&entry, &mut entry.state.lock(), flags));
        // It is done: nothing may fail any more. A new file has no blocks.
        Ok((attr_with(ino, &inode, 0), handle))
    }

    /// A number that no inode has, and its entry.
    pub(super) fn new_entry(&self) -> Result<(u64, Arc<Entry>), FsError> {
        let ino = self.store.new_ino();
        let entry = self.cache.entry(ino);
        let mut state = entry.state.lock();
        // Our own roots never name such a next number; a hostile one can.
        require(state.inode.is_none(), "root", "has a next inode number that no inode has")?;
        state.loaded = true;
        drop(state);
        Ok((ino, entry))
    }

    /// Mode and ACLs of a new inode in `parent`.
    fn inherit(&self, parent: u64, inherits: bool, mode: u32, umask: u32) -> Result<Inherited, FsError> {
        let plain = mode & S_IFMT == S_IFLNK;
        let without = Inherited { mode: if plain { mode } else { mode & !(umask & 0o777) }, ..Inherited::default() };
        if !inherits {
            return Ok(without);
        }
        let Some(value) = self.xattr_value(parent, ACL_DEFAULT)? else { return Ok(without) };
        let mut access = Acl::decode(&value)?;
        let mut inherited = Inherited { mode: access.create(mode), ..Inherited::default() };
        if !access.is_minimal() {
            inherited.items.extend(self.new_xattr(ACL_ACCESS, &access.encode()));
            inherited.facts.access_acl = true;
        }
        if mode & S_IFMT == S_IFDIR {
            inherited.items.extend(self.new_xattr(ACL_DEFAULT, &value));
            inherited.facts.default_acl = true;
        }
        inherited.facts.any = !inherited.items.is_empty();
        Ok(inherited)
    }

    fn new_inode(
        &self,
        directory: &Inode,
        (parent, parent_cookie): (u64, u64),
        new: &New,
        mode: u32,
        caller: &Caller,
    ) -> Result<Inode, FsError> {
        if directory.nlink == 0 {
            return Err(FsError::NotFound);
        }
        let now = self.store.now();
        let is_dir = mode & S_IFMT == S_IFDIR;
        let of_group = directory.mode & S_ISGID != 0;
        Ok(Inode {
            mode: if is_dir && of_group { mode | S_ISGID } else { mode },
            uid: caller.uid,
            gid: if of_group { directory.gid } else { caller.gid },
            nlink: if is_dir { 2 } else { 1 },
            size: new.target.len() as u64,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            rdev: new.rdev,
            flags: 0,
            parent,
            parent_cookie,
            generation: self.store.mount_count() as u32,
        })
    }

    /// Give `ino` one more name.
    pub fn link(&self, ino: u64, new_parent: u64, new_name: &[u8]) -> Result<Attr, FsError> {
        self.with_room(|| self.try_link(ino, new_parent, new_name))
    }

    fn try_link(&self, ino: u64, new_parent: u64, new_name: &[u8]) -> Result<Attr, FsError> {
        check_name(new_name)?;
        let (directory, _) = self.directory(new_parent)?;
        let (entry, inode) = self.load(ino)?;
        if inode.is_dir() {
            return Err(FsError::NotPermitted);
        }
        let name_lock = self.name_lock(new_parent, new_name);
        let held = self.locks.acquire(&[(LockKey::Alive(new_parent), Mode::Shared), (name_lock, Mode::Exclusive)]);
        let place = self.place(new_parent, new_name)?;
        if place.found.is_some() {
            return Err(FsError::Exists);
        }
        let cookie = place.free.ok_or(FsError::DirectoryFull)?;
        let need = Need { items: 3, data_blocks: 0, may_use_reserve: false };
        let now = self.store.now();
        let inode = self.change(&held, need, &[&directory, &entry], |change| {
            let inode = change.inode(ino)?;
            if inode.nlink == 0 {
                return Err(FsError::NotFound);
            }
            if inode.nlink >= LINK_MAX {
                return Err(FsError::TooManyLinks);
            }
            inode.nlink += 1;
            inode.ctime = now;
            if inode.parent == 0 {
                (inode.parent, inode.parent_cookie) = (new_parent, cookie);
            }
            let inode = inode.clone();
            let directory = change.inode(new_parent)?;
            if directory.nlink == 0 {
                return Err(FsError::NotFound);
            }
            directory.size += 1;
            touch(directory, now);
            let file_type = (inode.mode >> 12) as u8;
            let value = Dirent { ino, file_type, name: new_name.to_vec() }.encode();
            change.put(Key::new(new_parent, ItemKind::Dirent, cookie), value);
            Ok(inode)
        })?;
        Ok(self.attr_after(ino, &inode))
    }
}

/// Count the entry of the new inode `node` in `parent`.
fn add_entry(change: &mut Change, parent: u64, node: &Inode) -> Result<(), FsError> {
    let directory = change.inode(parent)?;
    directory.size += 1;
    if node.is_dir() {
        directory.nlink = directory.nlink.checked_add(1).ok_or(FsError::TooManyLinks)?;
    }
    touch(directory, node.ctime);
    Ok(())
}

impl New<'_> {
    fn plain(mode: u32) -> New<'static> {
        New { mode, rdev: 0, target: b"", open_flags: None }
    }
}
