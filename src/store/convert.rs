//! From a group's file segments to extents: the space diff of a commit.
//!
//! *Guarantees*: what the new extents name and what the old ones lose is exact: every block that the old state mapped
//! and the new one does not is in `freed`, every new one in `claims`, each once. *Assumes*: all pages were placed
//! but those that go inline; the group is closed; extents of a file change only here.
//! *Fails when*: a node or an item of the old state is lost or corrupt. *Order*: none.
//! *Not here*: writing.

use super::delta::{Group, Ranges, Segment, View};
use super::reach::Unreached;
use super::space::Span;
use super::{Store, StoreError, Value};
use crate::format::dead::Run;
use crate::format::item::{EXTENT_BLOCKS_MAX, FileMap, INLINE_MAX, Inode};
use crate::format::{BLOCK, Extent, ExtentBody, ItemKind, Key, Txg};
use std::collections::BTreeMap;

/// What a commit changes.
#[derive(Default)]
pub struct Changes {
    /// Items, to be applied to the tree.
    pub items: Vec<(Key, Option<Value>)>,
    /// Blocks that the new state names and the old one did not.
    pub claims: Vec<Span>,
    /// Blocks that the old state named and the new one does not.
    pub freed: Vec<Run>,
}

/// Extents of one file while they change.
struct FileChange {
    ino: u64,
    txg: Txg,
    items: BTreeMap<Key, Option<Value>>,
    claims: Vec<Span>,
    freed: Vec<Run>,
    mapped: i64,
    /// Rest of an old extent behind the range that cut it.
    tail: Option<(u64, Extent)>,
}

impl Store {
    /// Whether the block 0 of `ino` goes into its item: the file is at most [`INLINE_MAX`] bytes. Returns the size.
    pub(crate) fn inline_size(&self, view: &View, group: &Group, ino: u64) -> Result<Option<usize>, StoreError> {
        let key = Key::inode(ino);
        let value = match group.get(key) {
            Some(value) => value,
            None => self.committed_item(&view.committed, key)?,
        };
        let Some(value) = value else { return Ok(None) };
        let inode = Inode::decode(&value)?;
        Ok(usize::try_from(inode.size).ok().filter(|size| *size <= INLINE_MAX))
    }

    /// All changes of `group` against the committed state of `view`, but for what is `left_out`. Files whose old state
    /// is damaged join that.
    pub(crate) fn changes(&self, view: &View, group: &Group, left_out: &mut Unreached) -> Result<Changes, StoreError> {
        let mut out = Changes { items: group.all_items(), ..Changes::default() };
        let mut inos: Vec<u64> = group.files().into_iter().map(|(ino, _)| ino).collect();
        inos.sort_unstable();
        for ino in inos {
            if left_out.has_inode(ino) {
                continue;
            }
            let change = match self.file_change(view, group, ino) {
                Err(error) if error.is_damage() => {
                    left_out.inode(ino, error);
                    continue;
                }
                found => found?,
            };
            out.items.extend(change.items);
            out.claims.extend(change.claims);
            out.freed.extend(change.freed);
        }
        out.items.retain(|(key, _)| !left_out.has(*key));
        out.items.sort_by_key(|(key, _)| *key);
        assert!(out.items.windows(2).all(|w| w[0].0 < w[1].0), "an extent was put by hand");
        Ok(out)
    }

    fn file_change(&self, view: &View, group: &Group, ino: u64) -> Result<FileChange, StoreError> {
        let (holes, segments) = group
            .with_file(ino, |file| {
                let holes: Vec<(u64, u64)> = file.holes.iter().collect();
                let segments: Vec<(u64, Segment)> = file.segments.iter().map(|(b, s)| (*b, s.clone())).collect();
                (holes, segments)
            })
            .unwrap_or_default();
        let inline = match segments.first() {
            Some((0, Segment::Page { .. })) => self.inline_size(view, group, ino)?,
            _ => None,
        };
        let mut touched = Ranges::default();
        holes.iter().for_each(|(s, e)| touched.insert(*s, *e));
        segments.iter().for_each(|(b, _)| touched.insert(*b, b + 1));
        let mut change = FileChange {
            ino,
            txg: group.txg,
            items: BTreeMap::new(),
            claims: Vec::new(),
            freed: Vec::new(),
            mapped: 0,
            tail: None,
        };
        let mut rest = &segments[..];
        for (start, end) in touched.iter() {
            self.cut_old(view, &mut change, start, end)?;
            let here = rest.iter().take_while(|(b, _)| *b < end).count();
            let (now, later) = rest.split_at(here);
            change.put_new(now, inline);
            rest = later;
        }
        if let Some((first, extent)) = change.tail.take() {
            change.emit(first, &extent);
        }
        self.count_mapped(view, &mut change)?;
        Ok(change)
    }

    /// Cut `start..end` out of the old extents.
    fn cut_old(&self, view: &View, change: &mut FileChange, start: u64, end: u64) -> Result<(), StoreError> {
        let mut olds: Vec<(u64, Extent)> = Vec::new();
        let mut from = start;
        if let Some((first, extent)) = change.tail.take() {
            let tail_end = first + u64::from(extent.blocks);
            if tail_end > start {
                from = tail_end;
                olds.push((first, extent));
            } else {
                change.emit(first, &extent);
            }
        }
        if from < end {
            let mut cursor = self.committed_extents(&view.committed, change.ino, from, end - 1);
            while let Some((key, value)) = cursor.next()? {
                let extent = self.decode_extent(key, &value)?;
                let first = extent.first(key);
                if first >= end {
                    break;
                }
                crate::format::require(
                    olds.last().is_none_or(|(f, e)| f + u64::from(e.blocks) <= first),
                    "extent items",
                    "do not overlap",
                )?;
                change.items.insert(key, None);
                olds.push((first, extent));
                if key.off >= end - 1 {
                    break;
                }
            }
        }
        for (first, extent) in olds {
            let extent_end = first + u64::from(extent.blocks);
            if first < start {
                change.emit(first, &part(&extent, 0, (start - first) as u32));
            }
            let (lost_from, lost_to) = (first.max(start), extent_end.min(end));
            let lost = (lost_to - lost_from) as u32;
            change.mapped -= i64::from(lost);
            if let Some(addr) = extent.addr() {
                change.freed.push(Run { addr: addr + (lost_from - first), blocks: lost, birth: extent.birth });
            }
            if extent_end > end {
                let skip = (end - first) as u32;
                change.tail = Some((end, part(&extent, skip, extent.blocks - skip)));
            }
        }
        Ok(())
    }

    fn count_mapped(&self, view: &View, change: &mut FileChange) -> Result<(), StoreError> {
        if change.mapped == 0 {
            return Ok(());
        }
        let key = Key::new(change.ino, ItemKind::FileMap, 0);
        let before = match self.committed_item(&view.committed, key)? {
            Some(value) => FileMap::decode(&value)?.blocks,
            None => 0,
        };
        let Some(blocks) = before.checked_add_signed(change.mapped) else {
            return Err(crate::format::Corrupt { what: "file map item", rule: "counts the extents" }.into());
        };
        let value = (blocks > 0).then(|| FileMap { blocks }.encode().into());
        change.items.insert(key, value);
        Ok(())
    }
}

/// `count` blocks of an extent from block `skip` on.
fn part(extent: &Extent, skip: u32, count: u32) -> Extent {
    let body = match &extent.body {
        ExtentBody::Written { addr, sums } => ExtentBody::Written {
            addr: addr + u64::from(skip),
            sums: sums[skip as usize..(skip + count) as usize].to_vec(),
        },
        ExtentBody::Unwritten { addr } => ExtentBody::Unwritten { addr: addr + u64::from(skip) },
        ExtentBody::Inline(bytes) => ExtentBody::Inline(bytes.clone()),
    };
    Extent { blocks: count, birth: extent.birth, body }
}

impl FileChange {
    fn emit(&mut self, first: u64, extent: &Extent) {
        let key = Key::new(self.ino, ItemKind::Extent, first + u64::from(extent.blocks) - 1);
        self.items.insert(key, Some(extent.encode().into()));
    }

    /// New extents for `segments`, which rise.
    fn put_new(&mut self, segments: &[(u64, Segment)], inline: Option<usize>) {
        let mut at = 0;
        while at < segments.len() {
            let (first, segment) = &segments[at];
            let body = match segment {
                Segment::Page { page, .. } => {
                    assert!(*first == 0 && inline.is_some(), "only block 0 of a small file stays a page");
                    let size = inline.expect("just asserted").min(BLOCK);
                    at += 1;
                    if size > 0 {
                        self.mapped += 1;
                        let extent =
                            Extent { blocks: 1, birth: self.txg, body: ExtentBody::Inline(page[..size].to_vec()) };
                        self.emit(*first, &extent);
                    }
                    continue;
                }
                Segment::Placed { addr, .. } => {
                    let sums = run(&segments[at..], *addr, true);
                    ExtentBody::Written { addr: *addr, sums }
                }
                Segment::Reserved { addr, .. } => ExtentBody::Unwritten { addr: *addr },
            };
            let blocks = match (&body, segment) {
                (ExtentBody::Written { sums, .. }, _) => sums.len() as u32,
                (_, Segment::Reserved { addr, .. }) => run(&segments[at..], *addr, false).len() as u32,
                _ => unreachable!("inline was handled"),
            };
            let addr = match &body {
                ExtentBody::Written { addr, .. } | ExtentBody::Unwritten { addr } => *addr,
                ExtentBody::Inline(_) => unreachable!("inline was handled"),
            };
            self.claims.push(Span { addr, blocks });
            self.mapped += i64::from(blocks);
            self.emit(*first, &Extent { blocks, birth: self.txg, body });
            at += blocks as usize;
        }
    }
}

/// Checksums (zeros for reserved blocks) of the run at the head of `segments`: consecutive in the file and on disk.
fn run(segments: &[(u64, Segment)], from: u64, written: bool) -> Vec<u32> {
    let first = segments[0].0;
    let mut sums = Vec::new();
    for (i, (block, segment)) in segments.iter().enumerate().take(EXTENT_BLOCKS_MAX as usize) {
        if *block != first + i as u64 {
            break;
        }
        match segment {
            Segment::Placed { addr, sum, .. } if written && *addr == from + i as u64 => sums.push(*sum),
            Segment::Reserved { addr, .. } if !written && *addr == from + i as u64 => sums.push(0),
            _ => break,
        }
    }
    sums
}
