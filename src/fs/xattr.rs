//! Extended attributes.
//!
//! *Guarantees*: a value is read as it was set, whole. Setting an access ACL sets the mode with it. That an inode
//! has none, or no file capabilities, is remembered: the kernel asks before every write (trap 23).
//! *Assumes*: the kernel decides who may see and set which namespace.
//! *Fails when*: [`FsError::NoAttribute`], [`FsError::Exists`], [`FsError::TooBig`], [`FsError::Unsupported`] for
//! names other than those of `user.`, `trusted.`, `security.` and the two ACLs (the kernel passes any name on).
//! *Order*: the inode exclusively for changing; a look at them takes no lock and is repeated if they changed meanwhile.
//! *Not here*: what ACLs mean (`acl`).
//!
//! The target of a symbolic link is kept as an attribute with a name that users cannot say: it must be metadata, so
//! that it survives with the name (bytes of files survive only with their own fsync).
//!
//! Key offset: 31 bits of the name's hash, sequence 8 bits, chunk 16 bits; chunk 0 names the attribute.

use super::acl::Acl;
use super::attributes::XattrChange;
use super::cache::{Entry, XattrFacts};
use super::change::Change;
use super::lock::{Held, LockKey, Mode};
use super::{ACL_ACCESS, ACL_DEFAULT, Caller, Filesystem, FsError, S_IFLNK, S_IFMT, S_ISGID};
use crate::format::item::{XATTR_CHUNK, decode_xattr_head, encode_xattr};
use crate::format::{Inode, ItemKind, Key, NAME_MAX, reject, require};
use crate::store::Need;
use std::sync::Arc;

/// Fail if the attribute exists.
pub const XATTR_CREATE: i32 = 1;
/// Fail if the attribute does not exist.
pub const XATTR_REPLACE: i32 = 2;
/// Bytes of the largest value, and of all names of an inode with their ends.
const VALUE_BYTES_MAX: usize = 65_536;
/// Name of the target of a symbolic link.
pub(super) const SYMLINK_TARGET: &[u8] = b"system.stablefs.target";
const CAPABILITY: &[u8] = b"security.capability";
const SEQUENCE_SHIFT: u32 = 16;
const HASH_SHIFT: u32 = 24;
const SEQUENCES: u64 = 256;

/// An attribute that is there.
struct Attribute {
    name: Vec<u8>,
    /// Key offset of chunk 0.
    off: u64,
    /// Bytes of the value.
    total: usize,
    /// The beginning of the value.
    first: Vec<u8>,
}

impl Attribute {
    fn keys(&self, ino: u64) -> impl Iterator<Item = Key> + use<> {
        let off = self.off;
        (0..chunks(self.total)).map(move |chunk| Key::new(ino, ItemKind::Xattr, off + chunk))
    }
}

fn chunks(total: usize) -> u64 {
    total.div_ceil(XATTR_CHUNK).max(1) as u64
}

impl Filesystem {
    /// The value of `name`.
    pub fn getxattr(&self, ino: u64, name: &[u8]) -> Result<Vec<u8>, FsError> {
        check_xattr_name(name)?;
        let entry = self.entry(ino)?;
        let known = self.facts(&entry)?;
        let absent = !known.any
            || (name == CAPABILITY && !known.capability)
            || (name == ACL_ACCESS && !known.access_acl)
            || (name == ACL_DEFAULT && !known.default_acl);
        if absent {
            return Err(FsError::NoAttribute);
        }
        let value = self.unchanged(&entry, || self.xattr_value(ino, name));
        self.watch(ino, "reading an extended attribute of", value)?.ok_or(FsError::NoAttribute)
    }

    /// The names of all attributes, each with a NUL behind it.
    pub fn listxattr(&self, ino: u64) -> Result<Vec<u8>, FsError> {
        let entry = self.entry(ino)?;
        if !self.facts(&entry)?.any {
            return Ok(vec![]);
        }
        self.unchanged(&entry, || self.xattr_names(ino))
    }

    /// As [`Filesystem::listxattr`], for `caller`: names of `trusted.` are root's, and the kernel leaves that to us. (It asks
    /// for CAP_SYS_ADMIN elsewhere, of which nobody tells us.)
    pub fn listxattr_by(&self, ino: u64, caller: &Caller) -> Result<Vec<u8>, FsError> {
        let names = self.listxattr(ino)?;
        if caller.uid == 0 {
            return Ok(names);
        }
        let shown = names.split_inclusive(|byte| *byte == 0).filter(|name| !name.starts_with(b"trusted."));
        Ok(shown.flatten().copied().collect())
    }

    /// What `look` sees of the extended attributes of `entry` while nobody changes them. Does not wait for whoever
    /// writes to the file, who may wait for room: it runs on a thread that must stay free.
    fn unchanged<T>(&self, entry: &Entry, look: impl Fn() -> Result<T, FsError>) -> Result<T, FsError> {
        const LOOKS_MAX: usize = 100;
        let version = || entry.state.lock().facts_version;
        for _ in 0..LOOKS_MAX {
            let before = version();
            let seen = look();
            if version() == before {
                return seen;
            }
        }
        let _held = self.locks.acquire(&[(LockKey::Inode(entry.ino), Mode::Shared)]);
        look()
    }

    fn xattr_names(&self, ino: u64) -> Result<Vec<u8>, FsError> {
        let mut out = vec![];
        self.each_xattr(ino, |attribute| {
            if attribute.name != SYMLINK_TARGET {
                out.extend_from_slice(&attribute.name);
                out.push(0);
            }
        })?;
        Ok(out)
    }

    /// Set `name`. `flags`: 0, [`XATTR_CREATE`] or [`XATTR_REPLACE`].
    pub fn setxattr(&self, ino: u64, name: &[u8], value: &[u8], flags: i32, caller: &Caller) -> Result<(), FsError> {
        self.setxattr_of_group(ino, name, value, flags, caller, &[])
    }

    /// As [`Filesystem::setxattr`], for a caller who is also in `groups`.
    pub fn setxattr_of_group(
        &self,
        ino: u64,
        name: &[u8],
        value: &[u8],
        flags: i32,
        caller: &Caller,
        groups: &[u32],
    ) -> Result<(), FsError> {
        check_xattr_name(name)?;
        if value.len() > VALUE_BYTES_MAX {
            return Err(FsError::TooBig);
        }
        if !matches!(flags, 0 | XATTR_CREATE | XATTR_REPLACE) {
            return Err(FsError::Invalid);
        }
        let is_acl = name == ACL_ACCESS || name == ACL_DEFAULT;
        if is_acl && Acl::is_empty_value(value) {
            return self.removexattr(ino, name);
        }
        self.with_room(|| self.try_setxattr(ino, name, value, flags, (caller, groups)))
    }

    fn try_setxattr(
        &self,
        ino: u64,
        name: &[u8],
        value: &[u8],
        flags: i32,
        (caller, groups): (&Caller, &[u32]),
    ) -> Result<(), FsError> {
        let is_acl = name == ACL_ACCESS || name == ACL_DEFAULT;
        let held = self.locks.acquire(&[(LockKey::Inode(ino), Mode::Exclusive)]);
        let (entry, inode) = self.load(ino)?;
        let mut mode = inode.mode;
        let mut is_set = true;
        if is_acl {
            let acl = check_acl(&inode, name, value)?;
            if name == ACL_ACCESS {
                mode = inode.mode & !0o777 | acl.mode_bits();
                if caller.uid != 0 && caller.gid != inode.gid && !groups.contains(&inode.gid) {
                    mode &= !S_ISGID;
                }
                is_set = !acl.is_minimal();
            }
        }
        let old = self.find_xattr(ino, name)?;
        if flags == XATTR_CREATE && old.is_some() {
            return Err(FsError::Exists);
        }
        if flags == XATTR_REPLACE && old.is_none() {
            return Err(FsError::NoAttribute);
        }
        if old.is_none() && self.xattr_names(ino)?.len() + name.len() + 1 > VALUE_BYTES_MAX {
            return Err(FsError::DirectoryFull);
        }
        let put = if is_set { self.replaced_xattr(ino, name, value)? } else { vec![] };
        let delete = old.iter().flat_map(|old| old.keys(ino)).filter(|key| put.iter().all(|(kept, _)| kept != key));
        let xattrs = XattrChange { delete: delete.collect(), put };
        self.change_xattr(&held, &entry, xattrs, mode)
    }

    /// Remove `name`.
    pub fn removexattr(&self, ino: u64, name: &[u8]) -> Result<(), FsError> {
        check_xattr_name(name)?;
        let held = self.locks.acquire(&[(LockKey::Inode(ino), Mode::Exclusive)]);
        let (entry, inode) = self.load(ino)?;
        let Some(old) = self.find_xattr(ino, name)? else {
            let is_acl = name == ACL_ACCESS || name == ACL_DEFAULT;
            return if is_acl { Ok(()) } else { Err(FsError::NoAttribute) };
        };
        let xattrs = XattrChange { delete: old.keys(ino).collect(), put: vec![] };
        self.change_xattr(&held, &entry, xattrs, inode.mode)
    }

    fn change_xattr(&self, held: &Held<'_>, entry: &Arc<Entry>, xattrs: XattrChange, mode: u32) -> Result<(), FsError> {
        let need = Need { items: 1 + xattrs.len(), data_blocks: 0, may_use_reserve: xattrs.put.is_empty() };
        let now = self.store.now();
        self.change(held, need, &[entry], |change: &mut Change| {
            xattrs.apply(change, entry.ino);
            let inode = change.inode(entry.ino)?;
            inode.ctime = now;
            inode.mode = mode;
            // What is known is looked up anew; whoever is looking right now sees that it changed.
            let state = change.state(entry.ino);
            state.facts = None;
            state.facts_version += 1;
            Ok(())
        })
    }

    /// What is known of the attributes of `entry`; looked up at first need.
    pub(super) fn facts(&self, entry: &Arc<Entry>) -> Result<XattrFacts, FsError> {
        let state = entry.state.lock();
        if let Some(facts) = state.facts {
            return Ok(facts);
        }
        let version = state.facts_version;
        drop(state);
        let mut facts = XattrFacts::default();
        self.each_xattr(entry.ino, |attribute| {
            facts.any = true;
            facts.capability |= attribute.name == CAPABILITY;
            facts.access_acl |= attribute.name == ACL_ACCESS;
            facts.default_acl |= attribute.name == ACL_DEFAULT;
        })?;
        let mut state = entry.state.lock();
        if state.facts_version == version {
            state.facts = Some(facts);
        }
        Ok(facts)
    }

    /// The value of `name`; the caller holds the inode, or wants what was there at some moment.
    pub(super) fn xattr_value(&self, ino: u64, name: &[u8]) -> Result<Option<Vec<u8>>, FsError> {
        let Some(found) = self.find_xattr(ino, name)? else { return Ok(None) };
        let mut value = found.first;
        let key = |chunk| Key::new(ino, ItemKind::Xattr, found.off + chunk);
        let rest = chunks(found.total) - 1;
        for (index, (at, data)) in self.store.scan(key(1), key(1 + rest), rest as usize)?.iter().enumerate() {
            require(*at == key(1 + index as u64), "xattr item", "is followed by its next chunk")?;
            value.extend_from_slice(data);
        }
        require(value.len() == found.total, "xattr item", "has chunks of its length")?;
        Ok(Some(value))
    }

    /// Keys of at most `max` attribute items of `ino`.
    pub(super) fn xattr_keys(&self, ino: u64, max: usize) -> Result<Vec<Key>, FsError> {
        let key = |off| Key::new(ino, ItemKind::Xattr, off);
        Ok(self.store.scan(key(0), key(u64::MAX), max)?.into_iter().map(|(key, _)| key).collect())
    }

    /// Keys of the file capabilities of `ino`.
    pub(super) fn capability_keys(&self, ino: u64) -> Result<Vec<Key>, FsError> {
        Ok(self.find_xattr(ino, CAPABILITY)?.iter().flat_map(|found| found.keys(ino)).collect())
    }

    /// Items that make `value` the value of `name`, in the place of the old one if there is one.
    pub(super) fn replaced_xattr(&self, ino: u64, name: &[u8], value: &[u8]) -> Result<Vec<(Key, Vec<u8>)>, FsError> {
        let off = match self.find_xattr(ino, name)? {
            Some(found) => found.off,
            None => self.free_xattr(ino, name)?,
        };
        let items = (off..).zip(encode_xattr(name, value));
        Ok(items.map(|(off, value)| (Key::new(ino, ItemKind::Xattr, off), value)).collect())
    }

    /// Items (key offset, value) of an attribute of an inode that has none of this hash.
    pub(super) fn new_xattr(&self, name: &[u8], value: &[u8]) -> Vec<(u64, Vec<u8>)> {
        // Access and default ACL of one new inode: different sequences, should their hashes be equal.
        let sequence = u64::from(name == ACL_DEFAULT);
        (self.xattr_hash(name) << HASH_SHIFT | sequence << SEQUENCE_SHIFT..).zip(encode_xattr(name, value)).collect()
    }

    fn xattr_hash(&self, name: &[u8]) -> u64 {
        siphasher::sip::SipHasher24::new_with_keys(self.hash_key[0], self.hash_key[1]).hash(name) >> 33
    }

    /// The first attribute of `ino` at or after key offset `from` and before `end`.
    fn next_xattr(&self, ino: u64, from: u64, end: u64) -> Result<Option<Attribute>, FsError> {
        let key = |off| Key::new(ino, ItemKind::Xattr, off);
        let Some((found, value)) = self.store.scan(key(from), key(end), 1)?.pop() else { return Ok(None) };
        if found.off & 0xffff != 0 {
            return Ok(reject("xattr item", "has its first chunk")?);
        }
        let (name, total, first) = decode_xattr_head(&value)?;
        Ok(Some(Attribute { name: name.to_vec(), off: found.off, total, first: first.to_vec() }))
    }

    fn each_xattr(&self, ino: u64, mut visit: impl FnMut(&Attribute)) -> Result<(), FsError> {
        let mut from = 0;
        while let Some(attribute) = self.next_xattr(ino, from, 1 << 55)? {
            visit(&attribute);
            from = attribute.off + (1 << SEQUENCE_SHIFT);
        }
        Ok(())
    }

    fn find_xattr(&self, ino: u64, name: &[u8]) -> Result<Option<Attribute>, FsError> {
        let first = self.xattr_hash(name) << HASH_SHIFT;
        let (mut from, end) = (first, first + (1 << HASH_SHIFT));
        while let Some(attribute) = self.next_xattr(ino, from, end)? {
            if attribute.name == name {
                return Ok(Some(attribute));
            }
            from = attribute.off + (1 << SEQUENCE_SHIFT);
        }
        Ok(None)
    }

    fn free_xattr(&self, ino: u64, name: &[u8]) -> Result<u64, FsError> {
        let first = self.xattr_hash(name) << HASH_SHIFT;
        for sequence in 0..SEQUENCES {
            let off = first + (sequence << SEQUENCE_SHIFT);
            if self.next_xattr(ino, off, off + (1 << SEQUENCE_SHIFT))?.is_none() {
                return Ok(off);
            }
        }
        Err(FsError::DirectoryFull)
    }
}

fn check_xattr_name(name: &[u8]) -> Result<(), FsError> {
    if name.is_empty() || name.contains(&0) {
        return Err(FsError::Invalid);
    }
    if name.len() > NAME_MAX {
        return Err(FsError::NameTooLong);
    }
    let mut spaces = [&b"user."[..], b"trusted.", b"security."].into_iter();
    match spaces.find_map(|space| name.strip_prefix(space)) {
        Some(b"") => Err(FsError::Invalid),
        Some(_) => Ok(()),
        None if name == ACL_ACCESS || name == ACL_DEFAULT => Ok(()),
        None => Err(FsError::Unsupported),
    }
}

fn check_acl(inode: &Inode, name: &[u8], value: &[u8]) -> Result<Acl, FsError> {
    if inode.mode & S_IFMT == S_IFLNK {
        return Err(FsError::Unsupported);
    }
    if name == ACL_DEFAULT && !inode.is_dir() {
        return Err(FsError::Denied);
    }
    Acl::decode(value)
}
