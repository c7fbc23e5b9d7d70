//! Scenarios, one per operation, and random histories against a map.

use super::acl::tests::named;
use super::memory::MemoryStore;
use super::*;
use crate::format::item::{Dirent, ItemKind};
use std::collections::BTreeMap;

mod histories;
mod scenarios;

/// A caller with no umask.
pub(super) const USER: Caller = Caller { uid: 1000, gid: 100, umask: 0 };

/// A fresh filesystem in memory.
pub(super) fn fresh() -> (Arc<MemoryStore>, Filesystem) {
    let store = Arc::new(MemoryStore::new(7, Filesystem::root_items(Time::default(), 0, 0)));
    let filesystem = Filesystem::new(Arc::clone(&store) as Arc<dyn StoreApi>, FsOptions::default()).unwrap();
    (store, filesystem)
}

/// Finish all background work.
pub(super) fn settle(filesystem: &Filesystem) {
    while filesystem.reclaim_step().unwrap() {}
}

pub(super) fn errno<T: std::fmt::Debug>(outcome: Result<T, FsError>) -> i32 {
    crate::error::errno(&outcome.unwrap_err())
}

pub(super) fn read_all(filesystem: &Filesystem, ino: u64) -> Vec<u8> {
    let mut out = vec![];
    filesystem.read(ino, 0, &mut out, u32::MAX).unwrap();
    out
}

/// What fsck would check: entries, link counts, entry counts, parents, orphans, owners of data.
pub(super) fn check(store: &MemoryStore) {
    let items: BTreeMap<Key, _> = store.items().into_iter().collect();
    let mut inodes = BTreeMap::new();
    let (mut names, mut entries, mut subdirectories) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let mut orphans = vec![];
    for (key, value) in &items {
        match key.kind {
            ItemKind::Inode => drop(inodes.insert(key.ino, Inode::decode(value).unwrap())),
            ItemKind::Orphan => orphans.push(key.off),
            _ => {}
        }
    }
    for (key, value) in items.iter().filter(|(key, _)| key.kind == ItemKind::Dirent) {
        let entry = Dirent::decode(value).unwrap();
        let inode = inodes.get(&entry.ino).unwrap_or_else(|| panic!("{key:?} names nothing"));
        assert_eq!(u32::from(entry.file_type), inode.mode >> 12);
        assert!(inodes[&key.ino].is_dir());
        *names.entry(entry.ino).or_insert(0_u32) += 1;
        *entries.entry(key.ino).or_insert(0_u64) += 1;
        if inode.is_dir() {
            *subdirectories.entry(key.ino).or_insert(0_u32) += 1;
            assert_eq!((inode.parent, inode.parent_cookie), (key.ino, key.off), "parent of {}", entry.ino);
        }
    }
    for (ino, inode) in &inodes {
        let named = names.get(ino).copied().unwrap_or(0);
        let is_orphan = orphans.contains(ino);
        if inode.is_dir() {
            assert!(*ino == ROOT_INO || named == 1 || (is_orphan && named == 0));
            let links = if is_orphan { 0 } else { 2 + subdirectories.get(ino).copied().unwrap_or(0) };
            assert_eq!(inode.nlink, links, "links of directory {ino}");
            assert_eq!(inode.size, entries.get(ino).copied().unwrap_or(0), "entries of directory {ino}");
        } else {
            assert_eq!(inode.nlink, named, "links of {ino}");
            assert_eq!(is_orphan, named == 0, "orphan {ino}");
        }
    }
    for key in items.keys().filter(|key| key.kind == ItemKind::Xattr) {
        assert!(inodes.contains_key(&key.ino), "attributes of nothing: {key:?}");
    }
    for owner in store.owners() {
        assert!(inodes.contains_key(&owner), "data of nothing: {owner}");
    }
    assert_eq!(store.inodes(), inodes.len() as i64);
}
