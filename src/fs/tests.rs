//! Scenarios, one per operation, and random histories against a map.

use super::acl::tests::named;
use super::memory::MemoryStore;
use super::*;
use crate::disk::backing::Backing;
use crate::disk::sim::{CrashPlan, SimDisk, World as Power};
use crate::format::Geometry;
use crate::format::item::{Dirent, ItemKind};
use crate::store::check::{CheckOptions, StoreSource, check as store_check};
use crate::store::create::{CreateStore, create};
use crate::store::recover::{OpenStore, Present, examine, open};
use crate::store::{Store, StoreOptions, Value};
use crate::world::Seeded;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

mod histories;
mod model;
mod room;
mod scenarios;

/// A caller with no umask.
pub(super) const USER: Caller = Caller { uid: 1000, gid: 100, umask: 0, lacks_fsetid: false };

/// A store to run on: a map, or the real one on two simulated disks.
pub(super) struct Rig {
    pub store: Arc<dyn StoreApi>,
    memory: Option<Arc<MemoryStore>>,
    pub real: Option<Arc<Store>>,
    pub power: Power,
}

impl Rig {
    pub fn memory() -> (Arc<MemoryStore>, Rig) {
        let store = Arc::new(MemoryStore::new(7, Filesystem::root_items(Time::default(), 0, 0)));
        (Arc::clone(&store), Rig::of_memory(store))
    }

    pub fn of_memory(memory: Arc<MemoryStore>) -> Rig {
        let store = Arc::clone(&memory) as Arc<dyn StoreApi>;
        Rig { store, memory: Some(memory), real: None, power: Power::new(1) }
    }

    /// A fresh volume on two simulated disks of 128 MiB.
    pub fn disks(seed: u64) -> Rig {
        const BLOCKS: u64 = 32_768;
        let power = Power::new(seed);
        let disks: Vec<_> = (0..2).map(|_| power.disk(BLOCKS)).collect();
        let make = CreateStore {
            geometry: Geometry::new(BLOCKS, 2048, 256).unwrap(),
            name: "test".into(),
            grows: true,
            root_items: Filesystem::root_items(Time::default(), 0, 0),
            deadline: DEADLINE,
        };
        create(backings(&disks), make, Arc::new(Seeded::new(seed))).unwrap();
        Rig::open(power, &disks, seed)
    }

    fn open(power: Power, disks: &[Arc<SimDisk>], seed: u64) -> Rig {
        let present = backings(disks).into_iter().map(|(path, backing)| {
            let found = examine(&*backing, DEADLINE).unwrap();
            Present { path, backing, found }
        });
        let store = StoreOptions { pages_max: 1024, pages_start: 256, cache_nodes: 256, ..StoreOptions::default() };
        let options = OpenStore { degraded: false, deadline: DEADLINE, store, on_shrink: None, hold: false };
        let (store, _) = open(present.collect(), options, Arc::new(Seeded::new(seed + 1))).unwrap();
        let real = Arc::new(store);
        Rig { store: Arc::clone(&real) as Arc<dyn StoreApi>, memory: None, real: Some(real), power }
    }

    /// Cut the power and mount again; every handle on this rig's store must be gone.
    pub fn crash(self, plan: CrashPlan, seed: u64) -> Rig {
        let Rig { power, .. } = self;
        power.cut_now();
        let disks = power.revive(plan);
        Rig::open(power, &disks, seed)
    }

    pub fn mount(&self) -> Filesystem {
        Filesystem::new(Arc::clone(&self.store), FsOptions::default()).unwrap()
    }

    /// All items once everything has been committed.
    pub fn items(&self) -> Vec<(Key, Value)> {
        self.store.sync().unwrap();
        self.store.scan(Key::MIN, Key::MAX, usize::MAX).unwrap()
    }

    /// Inodes that own file data.
    pub fn owners(&self) -> Vec<u64> {
        if let Some(memory) = &self.memory {
            return memory.owners();
        }
        let mut owners: Vec<_> =
            self.items().iter().filter(|i| i.0.kind == ItemKind::Extent).map(|i| i.0.ino).collect();
        owners.dedup();
        owners
    }

    /// What fsck checks; for the real store also with its own checker.
    pub fn check(&self) {
        check(&self.items(), &self.owners(), self.store.space().inodes);
        if let Some(real) = &self.real {
            let options = CheckOptions { parallel: false, ..CheckOptions::default() };
            let report = store_check(&StoreSource::new(real), &options, &mut |_| ControlFlow::Continue(()));
            assert!(report.is_clean(), "{:?}", report.findings);
        }
    }
}

const DEADLINE: Duration = Duration::from_secs(5);

fn backings(disks: &[Arc<SimDisk>]) -> Vec<(String, Arc<dyn Backing>)> {
    disks.iter().enumerate().map(|(i, d)| (format!("/disk/{i}"), d.reopen() as Arc<dyn Backing>)).collect()
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
fn check(items: &[(Key, Value)], owners: &[u64], inodes_counted: u64) {
    let mut inodes = BTreeMap::new();
    let (mut names, mut entries, mut subdirectories) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let mut orphans = vec![];
    for (key, value) in items {
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
    for (key, _) in items.iter().filter(|(key, _)| key.kind == ItemKind::Xattr) {
        assert!(inodes.contains_key(&key.ino), "attributes of nothing: {key:?}");
    }
    for owner in owners {
        assert!(inodes.contains_key(owner), "data of nothing: {owner}");
    }
    assert_eq!(inodes_counted, inodes.len() as u64);
}
