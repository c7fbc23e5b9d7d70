//! Names under check: every inode has the names that it counts, and every directory leads to the root.
//!
//! *Guarantees*: judges each inode once, in order of number; entries are looked at a second time only if one of them
//! is wrong. *Assumes*: [`Items`] has seen all items. *Fails when*: never; if something was lost, absences are not
//! judged. *Order*: none. *Not here*: what an inode says of its own items (`items`).

use super::finding::{Finding, Owner};
use super::items::{Fix, HAS_INODE, HAS_PARENT, IS_ORPHAN, Items, MIXED, ON_CHAIN, OTHER_PARENT, ROOTED};
use super::paths::Paths;
use super::{EntryFix, EntryMove, Repairs, blocks::Tracker};
use crate::format::item::{Dirent, name_cookie_base};
use crate::format::{Inode, ItemKind, Key, ROOT_INO};
use crate::store::tree::Cursor;
use std::collections::{BTreeMap, HashSet};

const DIRECTORY: u8 = 4;

/// Judge all links; adds findings, returns what would put it right.
pub(super) fn judge(tracker: &Tracker<'_>, mut items: Items<'_, '_>, paths: &Paths<'_>) -> Repairs {
    let mut repairs = Repairs::default();
    let root = tracker.source.root();
    let mut inos: Vec<u64> = items.links.keys().copied().collect();
    inos.sort_unstable();
    let mut suspects = HashSet::new();
    let mut found = std::mem::take(&mut items.if_complete);
    for ino in &inos {
        judge_one(*ino, &mut items, &mut repairs, &mut suspects, &mut found);
    }
    for ino in &inos {
        if let Some(top) = find_ring(*ino, &mut items) {
            found.push(Finding::Ring { owner: Owner::new(top) });
            suspects.insert(top);
            repairs.to_attach.push(top);
        }
    }
    if root.inodes != items.inodes {
        found.push(Finding::InodeCount { says: root.inodes, is: items.inodes });
        repairs.inode_count = Some(items.inodes);
    }
    if items.ino_max >= root.next_ino {
        let owner = Owner::new(items.ino_max);
        found.push(Finding::InodeNumber { owner, next: root.next_ino });
        repairs.next_ino = Some(items.ino_max + 1);
    }
    if !suspects.is_empty() {
        look_again(tracker, &items, &suspects, paths, &mut found, &mut repairs);
    }
    for finding in found {
        tracker.add(finding);
    }
    repairs.entries_to_drop.append(&mut items.duplicates);
    for (directory, cookie, entry) in std::mem::take(&mut items.misplaced) {
        place(tracker, directory, cookie, entry, paths, &mut repairs);
    }
    repairs.entries_to_drop.sort_unstable_by_key(|(directory, cookie, _)| (*directory, *cookie));
    repairs.entries_to_drop.dedup_by_key(|(directory, cookie, _)| (*directory, *cookie));
    drop_entries(&mut items.fixes, &repairs, paths);
    for (ino, fix) in &items.fixes {
        if let Some(inode) = paths.inode(*ino) {
            repairs.inodes.push((*ino, apply(inode, fix)));
        }
    }
    repairs.file_maps = items.file_maps;
    repairs.items_to_drop = items.items_to_drop;
    repairs.ownerless = items.ownerless;
    repairs
}

/// Find the place that a misplaced entry should have. If its name stands there already, or there is no place, it goes.
fn place(tracker: &Tracker<'_>, directory: u64, cookie: u64, entry: Dirent, paths: &Paths<'_>, repairs: &mut Repairs) {
    let base = name_cookie_base(tracker.source.label().hash_key, &entry.name);
    let mut taken: HashSet<u64> =
        repairs.entries_to_move.iter().map(|m| m.to).filter(|to| *to & !0xff == base).collect();
    let mut twice = repairs.entries_to_move.iter().any(|m| m.directory == directory && m.entry.name == entry.name);
    let key = |off| Key::new(directory, ItemKind::Dirent, off);
    let mut cursor = Cursor::new(paths, tracker.source.root().tree, key(base));
    while let Ok(Some((found, value))) = cursor.next() {
        if found > key(base | 0xff) {
            break;
        }
        taken.insert(found.off);
        twice |= Dirent::decode(&value).is_ok_and(|other| other.name == entry.name);
    }
    match (base..=base | 0xff).find(|to| !taken.contains(to)) {
        Some(to) if !twice => repairs.entries_to_move.push(EntryMove { directory, cookie, to, entry }),
        _ => repairs.entries_to_drop.push((directory, cookie, entry)),
    }
}

fn apply(mut inode: Inode, fix: &Fix) -> Inode {
    inode.nlink = fix.nlink.unwrap_or(inode.nlink);
    inode.size = fix.size.unwrap_or(inode.size);
    (inode.parent, inode.parent_cookie) = fix.parent.unwrap_or((inode.parent, inode.parent_cookie));
    inode
}

fn judge_one(
    ino: u64,
    items: &mut Items<'_, '_>,
    repairs: &mut Repairs,
    suspects: &mut HashSet<u64>,
    found: &mut Vec<Finding>,
) {
    let link = items.links[&ino];
    let owner = || Owner::new(ino);
    let orphan = link.flags & IS_ORPHAN != 0;
    if link.flags & HAS_INODE == 0 {
        if link.names > 0 {
            suspects.insert(ino);
        }
        if orphan {
            found.push(Finding::OrphanDangling { ino });
            repairs.orphans_to_drop.push(ino);
        }
        return;
    }
    if ino == ROOT_INO {
        return;
    }
    let is_dir = link.kind == DIRECTORY;
    if link.names == 0 {
        match (orphan, link.nlink) {
            (true, 0) => {}
            (true, says) => {
                found.push(Finding::LinkCount { owner: owner(), says, is: 0 });
                items.fixes.entry(ino).or_default().nlink = Some(0);
            }
            (false, 0) => {
                found.push(Finding::OrphanMissing { owner: owner() });
                repairs.orphans_to_add.push(ino);
            }
            (false, _) => {
                found.push(Finding::Unreachable { owner: owner() });
                repairs.to_attach.push(ino);
            }
        }
        return;
    }
    if orphan {
        found.push(Finding::OrphanNamed { owner: owner() });
        repairs.orphans_to_drop.push(ino);
    }
    if !is_dir && link.nlink != link.names {
        found.push(Finding::LinkCount { owner: owner(), says: link.nlink, is: link.names });
        items.fixes.entry(ino).or_default().nlink = Some(link.names);
    }
    if is_dir && link.nlink == 0 {
        // Its own items agree with an orphan; its name says otherwise.
        found.push(Finding::LinkCount { owner: owner(), says: 0, is: 2 });
        items.fixes.entry(ino).or_default().nlink = Some(2);
    }
    let wrong_kind = link.flags & MIXED != 0 || link.entry_kind != link.kind;
    if wrong_kind || is_dir && (link.names > 1 || link.flags & OTHER_PARENT != 0) {
        suspects.insert(ino);
    }
}

/// Follow the parents of a directory; returns the smallest directory of a ring that was not known.
fn find_ring(ino: u64, items: &mut Items<'_, '_>) -> Option<u64> {
    let mut chain = Vec::new();
    let mut at = ino;
    let mut ring = None;
    loop {
        let link = items.links.get_mut(&at).filter(|link| link.kind == DIRECTORY);
        let Some(link) = link else { break };
        if at == ROOT_INO || link.flags & (ROOTED | HAS_PARENT) != HAS_PARENT {
            break;
        }
        if link.flags & ON_CHAIN != 0 {
            let from = chain.iter().position(|i| *i == at)?;
            ring = chain[from..].iter().min().copied();
            break;
        }
        link.flags |= ON_CHAIN;
        chain.push(at);
        at = link.parent;
    }
    // Rooted, hanging from a top that has been reported, or a ring that is reported now.
    for ino in chain {
        let link = items.links.get_mut(&ino).expect("on the chain");
        link.flags = link.flags & !ON_CHAIN | ROOTED;
    }
    ring
}

/// Find the entries that name suspects, and judge them.
fn look_again(
    tracker: &Tracker<'_>,
    items: &Items<'_, '_>,
    suspects: &HashSet<u64>,
    paths: &Paths<'_>,
    found: &mut Vec<Finding>,
    repairs: &mut Repairs,
) {
    // The entries of directories with several names: which one stays is decided when all are known.
    let mut names: BTreeMap<u64, Vec<(u64, u64, Vec<u8>)>> = BTreeMap::new();
    let mut cursor = Cursor::new(paths, tracker.source.root().tree, Key::MIN);
    loop {
        let (key, value) = match cursor.next() {
            Ok(Some(item)) => item,
            Ok(None) => break,
            Err(_) => continue,
        };
        if key.kind != ItemKind::Dirent {
            continue;
        }
        let Ok(entry) = Dirent::decode(&value) else { continue };
        if !suspects.contains(&entry.ino) {
            continue;
        }
        let (directory, ino, name) = (Owner::new(key.ino), entry.ino, entry.name.clone());
        let link = items.links.get(&ino).copied().unwrap_or_default();
        if link.flags & HAS_INODE == 0 {
            found.push(Finding::Dangling { directory, name, ino });
            repairs.entries_to_drop.push((key.ino, key.off, entry));
            continue;
        }
        if entry.file_type != link.kind {
            found.push(Finding::EntryType { directory, name, ino, says: entry.file_type, is: link.kind });
            let (was, right) = (entry.file_type, Dirent { file_type: link.kind, ..entry });
            repairs.entries_to_retype.push(EntryFix { directory: key.ino, cookie: key.off, was, entry: right });
        }
        if link.kind == DIRECTORY {
            names.entry(ino).or_default().push((key.ino, key.off, entry_name(&value)));
        }
    }
    for (ino, names) in names {
        judge_directory(ino, names, paths, found, repairs);
    }
}

fn entry_name(value: &[u8]) -> Vec<u8> {
    value.get(9..).unwrap_or_default().to_vec()
}

/// A directory has one name, in the parent that it says; what says otherwise is wrong.
fn judge_directory(
    ino: u64,
    names: Vec<(u64, u64, Vec<u8>)>,
    paths: &Paths<'_>,
    found: &mut Vec<Finding>,
    repairs: &mut Repairs,
) {
    let Some(inode) = paths.inode(ino) else { return };
    let is_ring = repairs.to_attach.contains(&ino);
    let own = |exact: bool| names.iter().position(|n| n.0 == inode.parent && (!exact || n.1 == inode.parent_cookie));
    let kept = own(true).or(own(false)).unwrap_or(0);
    let keeps = (names[kept].0, names[kept].1);
    if !is_ring && keeps.0 != inode.parent {
        found.push(Finding::ParentField { owner: Owner::new(ino), says: inode.parent, is: keeps.0 });
        repairs.parents.push((ino, keeps.0, keeps.1));
    }
    for (i, (directory, cookie, name)) in names.into_iter().enumerate() {
        if i == kept && !is_ring {
            continue;
        }
        let entry = Dirent { ino, file_type: DIRECTORY, name: name.clone() };
        repairs.entries_to_drop.push((directory, cookie, entry));
        if i != kept {
            found.push(Finding::SecondName { directory: Owner::new(directory), name, ino });
        }
    }
}

/// Sizes and links of directories once entries are dropped; parents put right.
fn drop_entries(fixes: &mut BTreeMap<u64, Fix>, repairs: &Repairs, paths: &Paths<'_>) {
    for (directory, _, entry) in &repairs.entries_to_drop {
        let Some(inode) = paths.inode(*directory) else { continue };
        let fix = fixes.entry(*directory).or_default();
        fix.size = Some(fix.size.unwrap_or(inode.size).saturating_sub(1));
        if entry.file_type == DIRECTORY {
            fix.nlink = Some(fix.nlink.unwrap_or(inode.nlink).saturating_sub(1));
        }
    }
    for EntryFix { directory, was, entry, .. } in &repairs.entries_to_retype {
        let Some(inode) = paths.inode(*directory) else { continue };
        let fix = fixes.entry(*directory).or_default();
        let nlink = fix.nlink.unwrap_or(inode.nlink);
        // The entry counted, or did not count, as a subdirectory.
        fix.nlink = Some(match (*was == DIRECTORY, entry.file_type == DIRECTORY) {
            (false, true) => nlink + 1,
            (true, false) => nlink.saturating_sub(1),
            _ => nlink,
        });
    }
    for EntryMove { directory, cookie, to, entry } in &repairs.entries_to_move {
        if paths.inode(entry.ino).is_some_and(|i| (i.parent, i.parent_cookie) == (*directory, *cookie)) {
            fixes.entry(entry.ino).or_default().parent = Some((*directory, *to));
        }
    }
    for (ino, parent, cookie) in &repairs.parents {
        fixes.entry(*ino).or_default().parent = Some((*parent, *cookie));
    }
}
