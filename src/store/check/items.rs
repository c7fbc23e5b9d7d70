//! Items under check: what one inode says of itself, and what its items say.
//!
//! *Guarantees*: takes items in key order and holds those of one inode's summary at a time, beside one [`Link`] for
//! each inode. *Assumes*: rising keys. *Fails when*: never. *Order*: none.
//! *Not here*: what inodes say of each other (`names`).

use super::blocks::Tracker;
use super::finding::{Finding, Owner};
use crate::format::event;
use crate::format::item::{COOKIE_END, COOKIE_MIN, Dirent, FileMap, XATTR_CHUNK, decode_xattr_head, name_cookie_base};
use crate::format::{Corrupt, Extent, ExtentBody, FIRST_INO, INO_MAX, Inode, ItemKind, Key, ORPHANS, ROOT_INO};
use std::collections::{BTreeMap, HashMap};

/// The inode item was seen.
pub(super) const HAS_INODE: u8 = 1;
/// The list of orphans names it.
pub(super) const IS_ORPHAN: u8 = 2;
/// `parent` is the directory whose entry names it; without this, what its inode says.
pub(super) const HAS_PARENT: u8 = 4;
/// Entries disagree about its type.
pub(super) const MIXED: u8 = 8;
/// Its chain of parents ends at the root.
pub(super) const ROOTED: u8 = 16;
/// On the chain of parents being followed.
pub(super) const ON_CHAIN: u8 = 32;
/// Its inode names another parent than the entry that was seen.
pub(super) const OTHER_PARENT: u8 = 64;

/// What is kept of each inode: 32 bytes with its number, some 40 in the map.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Link {
    /// Directories: their parent; else 0.
    pub parent: u64,
    /// What its inode says.
    pub nlink: u32,
    /// Entries that name it.
    pub names: u32,
    /// `S_IFMT` >> 12 by its inode.
    pub kind: u8,
    /// The same by the first entry.
    pub entry_kind: u8,
    pub flags: u8,
}

/// A correction of an inode.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Fix {
    pub nlink: Option<u32>,
    pub size: Option<u64>,
    pub parent: Option<(u64, u64)>,
}

/// A run of chunks of one extended attribute.
struct XattrRun {
    base: u64,
    next: u64,
    left: usize,
}

#[derive(Default)]
struct Current {
    ino: u64,
    items: u64,
    inode: Option<Inode>,
    /// An inode item that does not decode counts as there.
    inode_bad: bool,
    map_blocks: Option<u64>,
    map_bad: bool,
    entries: u64,
    subdirectories: u64,
    bucket: (u64, Vec<Vec<u8>>),
    blocks: u64,
    extent_end: u64,
    xattr: Option<XattrRun>,
    xattr_bucket: (u64, Vec<Vec<u8>>),
}

/// All that is learned from items.
pub(super) struct Items<'t, 'a> {
    tracker: &'t Tracker<'a>,
    hash_key: [u64; 2],
    current: Current,
    pub links: HashMap<u64, Link>,
    pub inodes: u64,
    pub ino_max: u64,
    pub fixes: BTreeMap<u64, Fix>,
    pub file_maps: Vec<(u64, FileMap)>,
    pub items_to_drop: Vec<Key>,
    pub ownerless: Vec<u64>,
    /// Second entries of one name: directory, cookie, entry.
    pub duplicates: Vec<(u64, u64, Dirent)>,
    /// Entries under a cookie that is not their name's.
    pub misplaced: Vec<(u64, u64, Dirent)>,
    /// Findings that hold only if nothing was lost.
    pub if_complete: Vec<Finding>,
}

impl<'t, 'a> Items<'t, 'a> {
    pub fn new(tracker: &'t Tracker<'a>) -> Items<'t, 'a> {
        Items {
            tracker,
            hash_key: tracker.source.label().hash_key,
            current: Current::default(),
            links: HashMap::new(),
            inodes: 0,
            ino_max: 0,
            fixes: BTreeMap::new(),
            file_maps: Vec::new(),
            items_to_drop: Vec::new(),
            ownerless: Vec::new(),
            duplicates: Vec::new(),
            misplaced: Vec::new(),
            if_complete: Vec::new(),
        }
    }

    /// The next item.
    pub fn item(&mut self, key: Key, value: &[u8]) {
        if key.ino != self.current.ino {
            self.finish();
            self.current.ino = key.ino;
        }
        self.current.items += 1;
        let result = match key.kind {
            ItemKind::Inode => self.inode(key, value),
            ItemKind::FileMap => self.file_map(key, value),
            ItemKind::Xattr if key.ino == ORPHANS => event::decode(key, value).map(drop),
            ItemKind::Xattr => self.xattr(key, value),
            ItemKind::Dirent => self.dirent(key, value),
            ItemKind::Extent => self.extent(key, value),
            ItemKind::Orphan => self.orphan(key, value),
        };
        if let Err(corrupt) = result {
            self.tracker.add(Finding::BadItem { owner: Owner::new(key.ino), key, corrupt });
            match key.kind {
                ItemKind::Inode => self.current.inode_bad = true,
                ItemKind::FileMap => self.current.map_bad = true,
                _ => self.items_to_drop.push(key),
            }
        }
    }

    fn link(&mut self, ino: u64) -> &mut Link {
        self.links.entry(ino).or_default()
    }

    fn inode(&mut self, key: Key, value: &[u8]) -> Result<(), Corrupt> {
        rule(key.off == 0, "inode item", "stands at offset 0")?;
        let possible = key.ino == ROOT_INO || (FIRST_INO..INO_MAX).contains(&key.ino);
        rule(possible, "inode item", "has a number that files may have")?;
        let inode = Inode::decode(value)?;
        rule(key.ino != ROOT_INO || inode.is_dir(), "inode item", "is a directory at the root")?;
        self.inodes += 1;
        self.ino_max = self.ino_max.max(key.ino);
        let link = self.links.entry(key.ino).or_default();
        link.flags |= HAS_INODE;
        link.nlink = inode.nlink;
        link.kind = (inode.mode >> 12) as u8;
        if inode.is_dir() {
            if link.flags & HAS_PARENT == 0 {
                link.parent = inode.parent;
            } else if link.parent != inode.parent {
                link.flags |= OTHER_PARENT;
            }
        }
        self.current.inode = Some(inode);
        Ok(())
    }

    fn file_map(&mut self, key: Key, value: &[u8]) -> Result<(), Corrupt> {
        rule(key.off == 0, "file map item", "stands at offset 0")?;
        self.current.map_blocks = Some(FileMap::decode(value)?.blocks);
        Ok(())
    }

    fn dirent(&mut self, key: Key, value: &[u8]) -> Result<(), Corrupt> {
        rule((COOKIE_MIN..COOKIE_END).contains(&key.off), "directory entry", "has a possible cookie")?;
        let entry = Dirent::decode(value)?;
        rule((FIRST_INO..INO_MAX).contains(&entry.ino), "directory entry", "names a number that files may have")?;
        let base = key.off & !0xff;
        if base != name_cookie_base(self.hash_key, &entry.name) {
            let directory = Owner::new(key.ino);
            self.tracker.add(Finding::Cookie { directory, name: entry.name.clone(), cookie: key.off });
            self.misplaced.push((key.ino, key.off, entry.clone()));
        }
        let bucket = &mut self.current.bucket;
        if bucket.0 != base {
            *bucket = (base, Vec::new());
        }
        if bucket.1.contains(&entry.name) {
            self.tracker.add(Finding::DuplicateName { directory: Owner::new(key.ino), name: entry.name.clone() });
            self.duplicates.push((key.ino, key.off, entry.clone()));
        } else {
            bucket.1.push(entry.name.clone());
        }
        self.current.entries += 1;
        let is_dir = entry.file_type == 4;
        self.current.subdirectories += u64::from(is_dir);
        let link = self.link(entry.ino);
        link.names += 1;
        if link.entry_kind != 0 && link.entry_kind != entry.file_type {
            link.flags |= MIXED;
        }
        if is_dir {
            let had_inode = link.flags & (HAS_INODE | HAS_PARENT) == HAS_INODE;
            if had_inode && link.kind == 4 && link.parent != key.ino {
                link.flags |= OTHER_PARENT;
            }
            if link.flags & HAS_PARENT == 0 {
                link.parent = key.ino;
                link.flags |= HAS_PARENT;
            }
        }
        link.entry_kind = entry.file_type;
        Ok(())
    }

    fn extent(&mut self, key: Key, value: &[u8]) -> Result<(), Corrupt> {
        let extent = Extent::decode(key, value)?;
        let birth_max = self.tracker.source.root().txg;
        rule(extent.birth <= birth_max, "extent item", "is not younger than the root")?;
        let first = extent.first(key);
        if first < self.current.extent_end {
            self.tracker.add(Finding::ExtentOverlap { owner: Owner::new(key.ino), block: first });
        }
        self.current.extent_end = key.off + 1;
        let blocks = u64::from(extent.blocks);
        match &extent.body {
            ExtentBody::Written { addr, sums } => self.tracker.data(key.ino, first, *addr, blocks, Some(sums)),
            ExtentBody::Unwritten { addr } => self.tracker.data(key.ino, first, *addr, blocks, None),
            ExtentBody::Inline(_) => {}
        }
        // Inline content counts as a block: a file that has data does not occupy none.
        self.current.blocks += blocks;
        Ok(())
    }

    fn xattr(&mut self, key: Key, value: &[u8]) -> Result<(), Corrupt> {
        const WHAT: &str = "xattr item";
        let (base, chunk) = (key.off >> 16, key.off & 0xffff);
        if chunk == 0 {
            self.end_xattr();
            let (name, total, data) = decode_xattr_head(value)?;
            let hash = base >> 8;
            let bucket = &mut self.current.xattr_bucket;
            if bucket.0 != hash {
                *bucket = (hash, Vec::new());
            }
            let twice = bucket.1.iter().any(|n| n == name);
            bucket.1.push(name.to_vec());
            self.current.xattr = Some(XattrRun { base, next: 1, left: total - data.len() });
            return rule(!twice, WHAT, "has a name that the inode has once");
        }
        let Some(run) = self.current.xattr.as_mut().filter(|run| run.base == base && run.next == chunk) else {
            return Err(Corrupt { what: WHAT, rule: "follows its first part" });
        };
        rule(value.len() == run.left.min(XATTR_CHUNK) && !value.is_empty(), WHAT, "has the length that is due")?;
        run.left -= value.len();
        run.next += 1;
        Ok(())
    }

    fn end_xattr(&mut self) {
        let Some(run) = self.current.xattr.take().filter(|run| run.left > 0) else { return };
        let key = Key::new(self.current.ino, ItemKind::Xattr, run.base << 16);
        let owner = Owner::new(self.current.ino);
        self.if_complete.push(Finding::Xattr { owner, key, rule: "lacks its last parts" });
        self.items_to_drop.extend((0..run.next).map(|i| Key { off: key.off | i, ..key }));
    }

    fn orphan(&mut self, key: Key, value: &[u8]) -> Result<(), Corrupt> {
        rule(key.ino == ORPHANS, "orphan item", "stands in the list of orphans")?;
        rule(value == [0; 8], "orphan item", "holds 8 zero bytes")?;
        self.link(key.off).flags |= IS_ORPHAN;
        Ok(())
    }

    /// All items of the current inode have been seen.
    pub fn finish(&mut self) {
        self.end_xattr();
        let current = std::mem::take(&mut self.current);
        let (ino, owner) = (current.ino, Owner::new(current.ino));
        if current.items == 0 || ino == ORPHANS || current.inode_bad {
            return;
        }
        let Some(inode) = current.inode else {
            self.if_complete.push(Finding::Ownerless { ino, items: current.items });
            self.ownerless.push(ino);
            return;
        };
        let map_blocks = current.map_blocks.unwrap_or(0);
        if map_blocks != current.blocks || current.map_bad {
            if !current.map_bad {
                self.if_complete.push(Finding::FileBlocks {
                    owner: owner.clone(),
                    says: map_blocks,
                    is: current.blocks,
                });
            }
            self.file_maps.push((ino, FileMap { blocks: current.blocks }));
        }
        if !inode.is_dir() {
            if current.entries > 0 {
                let rule = "belongs to a directory";
                let key = Key::new(ino, ItemKind::Dirent, 0);
                let corrupt = Corrupt { what: "directory entry", rule };
                self.tracker.add(Finding::BadItem { owner, key, corrupt });
            }
            return;
        }
        if inode.size != current.entries {
            self.if_complete.push(Finding::DirectorySize {
                owner: owner.clone(),
                says: inode.size,
                is: current.entries,
            });
            self.fixes.entry(ino).or_default().size = Some(current.entries);
        }
        let links = u32::try_from(2 + current.subdirectories).unwrap_or(u32::MAX);
        // A directory that was removed while it was open has no link and no entry.
        if inode.nlink != links && (inode.nlink != 0 || current.entries > 0) {
            self.if_complete.push(Finding::LinkCount { owner: owner.clone(), says: inode.nlink, is: links });
            self.fixes.entry(ino).or_default().nlink = Some(links);
        }
        if ino == ROOT_INO && inode.parent != ROOT_INO {
            self.if_complete.push(Finding::ParentField { owner, says: inode.parent, is: ROOT_INO });
            self.fixes.entry(ino).or_default().parent = Some((ROOT_INO, 0));
        }
    }
}

fn rule(holds: bool, what: &'static str, rule: &'static str) -> Result<(), Corrupt> {
    if holds { Ok(()) } else { Err(Corrupt { what, rule }) }
}
