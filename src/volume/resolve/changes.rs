//! What was changed in one history since it parted from another one.
//!
//! *Guarantees*: each inode that has a name, and of which something was written since the fork that the other history does not
//! have, is shown; once. *Assumes*: of the group given, that both histories have it (0: none is known). *Fails when*: never; what
//! cannot be read is told. *Order*: rising inode numbers, those in the log last. *Not here*: what was deleted: the directory that
//! held the name is shown.
//!
//! Blocks that both had are not looked at, so that the cost follows what was written since the fork, and not the volume. A leaf that
//! was written since also holds items that were not: those equal to the other history's are left out. One that differs may
//! have been changed there alone: it is *certain* only if data of it was written here since, or its time of change says so.

use super::super::StoreError;
use crate::format::item::{Dirent, Time};
use crate::format::node::Node;
use crate::format::{Extent, Inode, ItemKind, Key, ORPHANS, ROOT_INO, Txg};
use crate::store::Store;
use crate::store::tree;
use std::collections::BTreeSet;
use std::ops::ControlFlow;

/// Longest chain of parents that is followed.
const DEPTH_MAX: usize = 1024;
/// Entries of a directory that are searched where the hint is stale, and at once.
const ENTRIES_SEARCHED: usize = 10_000;
const ENTRIES_AT_ONCE: usize = 500;

/// The fork, as one side sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Since {
    /// What was born in this group or before, both have.
    pub group: Txg,
    /// When this side went on alone; `None`: not known.
    pub moment: Option<Time>,
}

/// An inode that was changed.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub ino: u64,
    pub inode: Inode,
    /// It was changed on this side, and not on the other one alone.
    pub is_certain: bool,
}

/// Told of changes (`Break` ends it), and of what cannot be read.
pub(super) trait Watcher {
    /// One more leaf was looked at.
    fn looked(&mut self) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
    fn changed(&mut self, change: &Change) -> ControlFlow<()>;
    fn unreadable(&mut self, what: String);
}

/// What is known of an inode while its items pass.
struct Passing {
    ino: u64,
    differs: bool,
    has_data: bool,
}

struct Look<'a> {
    own: &'a Store,
    other: &'a Store,
    since: Since,
    watcher: &'a mut dyn Watcher,
    passing: Option<Passing>,
    /// In the log: shown last.
    logged: BTreeSet<u64>,
}

/// Show what was changed in `own` since it parted from `other`.
pub(super) fn changes(own: &Store, other: &Store, since: Since, watcher: &mut dyn Watcher) -> ControlFlow<()> {
    let view = own.view();
    let mut logged = BTreeSet::new();
    for group in view.groups() {
        logged.extend(group.all_items().iter().map(|(key, _)| key.ino));
        logged.extend(group.files().iter().map(|(ino, _)| *ino));
    }
    let mut look = Look { own, other, since, watcher, passing: None, logged };
    tree::walk_born_after(own, view.committed.root.tree, since.group, &mut |_, ptr, node| {
        match node {
            Err(error) => look.watcher.unreadable(format!("the node at block {}: {error}", ptr.addr)),
            Ok(node) => {
                if let Node::Leaf(items) = &node.node {
                    look.watcher.looked()?;
                    for (key, range) in items {
                        look.item(*key, &node.block[range.clone()])?;
                    }
                }
            }
        }
        ControlFlow::Continue(())
    })?;
    look.passed()?;
    for ino in std::mem::take(&mut look.logged) {
        look.show(&Passing { ino, differs: true, has_data: true })?;
    }
    ControlFlow::Continue(())
}

impl Look<'_> {
    fn item(&mut self, key: Key, value: &[u8]) -> ControlFlow<()> {
        if key.ino == ORPHANS || self.logged.contains(&key.ino) {
            return ControlFlow::Continue(());
        }
        if self.passing.as_ref().is_none_or(|passing| passing.ino != key.ino) {
            self.passed()?;
            self.passing = Some(Passing { ino: key.ino, differs: false, has_data: false });
        }
        let is_data = key.kind == ItemKind::Extent;
        let differs = match key.kind {
            ItemKind::FileMap | ItemKind::Orphan => false,
            ItemKind::Extent => {
                let is_young = Extent::decode(key, value).map_or(true, |extent| extent.birth > self.since.group);
                is_young && !self.has(key, |theirs| theirs == value)
            }
            ItemKind::Inode => !self.has(key, |theirs| is_like(theirs, value)),
            ItemKind::Xattr | ItemKind::Dirent => !self.has(key, |theirs| theirs == value),
        };
        if let Some(passing) = &mut self.passing {
            passing.differs |= differs;
            passing.has_data |= differs && is_data;
        }
        ControlFlow::Continue(())
    }

    /// Whether the other history has an item with this key that is `equal`; what cannot be read there is not.
    fn has(&self, key: Key, equal: impl Fn(&[u8]) -> bool) -> bool {
        self.other.get(key).is_ok_and(|found| found.is_some_and(|value| equal(&value)))
    }

    fn passed(&mut self) -> ControlFlow<()> {
        match self.passing.take() {
            Some(passing) if passing.differs => self.show(&passing),
            _ => ControlFlow::Continue(()),
        }
    }

    fn show(&mut self, passing: &Passing) -> ControlFlow<()> {
        let ino = passing.ino;
        let inode = match inode(self.own, ino) {
            Ok(Some(inode)) if inode.nlink > 0 => inode,
            Ok(_) => return ControlFlow::Continue(()),
            Err(error) => {
                self.watcher.unreadable(format!("inode {ino}: {error}"));
                return ControlFlow::Continue(());
            }
        };
        let theirs = inode_of_other(self.other, ino);
        let is_certain = passing.has_data || self.is_recent(&inode, theirs.as_ref());
        self.watcher.changed(&Change { ino, inode, is_certain })
    }

    /// Whether its time of change lies behind the fork, or is not the older one.
    fn is_recent(&self, own: &Inode, theirs: Option<&Inode>) -> bool {
        let Some(moment) = self.since.moment else { return true };
        own.ctime >= moment || theirs.is_some_and(|theirs| own.ctime >= theirs.ctime)
    }
}

/// Whether two inodes are the same but for the time when somebody read.
fn is_like(a: &[u8], b: &[u8]) -> bool {
    match (Inode::decode(a), Inode::decode(b)) {
        (Ok(a), Ok(b)) => Inode { atime: b.atime, ..a } == b,
        _ => a == b,
    }
}

pub(super) fn inode(store: &Store, ino: u64) -> Result<Option<Inode>, StoreError> {
    let Some(value) = store.get(Key::inode(ino))? else { return Ok(None) };
    Ok(Some(Inode::decode(&value)?))
}

fn inode_of_other(store: &Store, ino: u64) -> Option<Inode> {
    inode(store, ino).ok().flatten()
}

/// The names on a way from the top to `ino`; `None`: there is none, or it cannot be found.
pub(super) fn names(store: &Store, ino: u64) -> Option<Vec<Vec<u8>>> {
    let mut names: Vec<Vec<u8>> = Vec::new();
    let mut at = ino;
    while at != ROOT_INO {
        if names.len() == DEPTH_MAX {
            return None;
        }
        let inode = inode(store, at).ok()??;
        names.push(name_in(store, inode.parent, inode.parent_cookie, at)?);
        at = inode.parent;
    }
    names.reverse();
    Some(names)
}

/// The name of `ino` in `parent`.
fn name_in(store: &Store, parent: u64, hint: u64, ino: u64) -> Option<Vec<u8>> {
    let is_it = |value: &[u8]| Dirent::decode(value).ok().filter(|entry| entry.ino == ino).map(|entry| entry.name);
    let hinted = store.get(Key::new(parent, ItemKind::Dirent, hint)).ok()?;
    if let Some(name) = hinted.and_then(|value| is_it(&value)) {
        return Some(name);
    }
    let end = Key::new(parent, ItemKind::Extent, 0);
    let mut from = Key::new(parent, ItemKind::Dirent, 0);
    for _ in 0..ENTRIES_SEARCHED / ENTRIES_AT_ONCE {
        let some = store.scan(from, end, ENTRIES_AT_ONCE).ok()?;
        if let Some(name) = some.iter().find_map(|(_, value)| is_it(value)) {
            return Some(name);
        }
        from = some.last()?.0.next();
    }
    None
}

/// A path for people.
pub(super) fn shown(names: &[Vec<u8>], is_directory: bool) -> String {
    let one = |name: &Vec<u8>| format!("/{}", String::from_utf8_lossy(name).escape_debug());
    let path: String = names.iter().map(one).collect();
    if is_directory { path + "/" } else { path }
}
