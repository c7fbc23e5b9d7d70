//! File content: what stands for each block of a file, newest first, and how pages are put together.
//!
//! *Guarantees*: every byte returned was proven or is a zero of a hole. *Assumes*: the caller holds the file's lock
//! against writers. *Fails when*: a block is lost on all replicas: that read only.
//! *Order*: takes a view, then shard locks one at a time. *Not here*: sizes.

use super::delta::{Committed, FileDelta, Group, Says, Segment, View};
use super::{Store, StoreError};
use crate::disk::buffer::{Buf, Slice};
use crate::format::item::FileMap;
use crate::format::{Addr, BLOCK, Extent, ExtentBody, ItemKind, Key};
use std::ops::Range;
use std::sync::Arc;

/// What stands for a file block.
#[derive(Debug, Clone)]
pub enum Source {
    /// Nothing: zeros.
    Hole,
    /// Set aside: zeros.
    Reserved,
    /// In memory, possibly shorter than a block (the rest is zeros).
    Bytes(Slice),
    /// Inside its item.
    Inline(Arc<[u8]>),
    /// On disk, proven by a checksum.
    Disk {
        /// Where.
        addr: Addr,
        /// Checksum.
        sum: u32,
    },
}

impl Store {
    /// What stands for file blocks `first..first + count`.
    pub fn sources(&self, view: &View, ino: u64, first: u64, count: usize) -> Result<Vec<Source>, StoreError> {
        self.sources_in(Layers::of(view), ino, first, count)
    }

    fn sources_in(&self, layers: Layers<'_>, ino: u64, first: u64, count: usize) -> Result<Vec<Source>, StoreError> {
        let mut out: Vec<Option<Source>> = vec![None; count];
        let mut open = count;
        for group in layers.groups() {
            group.with_file(ino, |file| open -= ask(file, first, &mut out));
            if open == 0 {
                break;
            }
        }
        if open > 0 {
            self.ask_tree(layers.committed, ino, first, &mut out)?;
        }
        Ok(out.into_iter().map(|s| s.unwrap_or(Source::Hole)).collect())
    }

    fn ask_tree(
        &self,
        committed: &Committed,
        ino: u64,
        first: u64,
        out: &mut [Option<Source>],
    ) -> Result<(), StoreError> {
        let end = first + out.len() as u64;
        let mut cursor = self.committed_extents(committed, ino, first, end - 1);
        while let Some((key, value)) = cursor.next()? {
            let extent = self.decode_extent(key, &value)?;
            let from = extent.first(key);
            if from >= end {
                break;
            }
            for block in from.max(first)..(key.off + 1).min(end) {
                let slot = &mut out[(block - first) as usize];
                if slot.is_none() {
                    let i = (block - from) as usize;
                    *slot = Some(match &extent.body {
                        ExtentBody::Written { addr, sums } => Source::Disk { addr: addr + i as u64, sum: sums[i] },
                        ExtentBody::Unwritten { .. } => Source::Reserved,
                        ExtentBody::Inline(bytes) => Source::Inline(bytes.as_slice().into()),
                    });
                }
            }
            if key.off >= end - 1 {
                break;
            }
        }
        Ok(())
    }

    /// Decode an extent and check that it stands inside a zone.
    pub(crate) fn decode_extent(&self, key: Key, value: &[u8]) -> Result<Extent, StoreError> {
        let extent = Extent::decode(key, value)?;
        let inside = extent.addr().is_none_or(|a| self.label.geometry.holds_data(a, u64::from(extent.blocks)));
        crate::format::require(inside, "extent item", "stands inside a zone")?;
        Ok(extent)
    }

    /// Fill `out` with the bytes of a file from `offset` on; holes are zeros. Knows nothing of the size.
    pub fn read_file(&self, ino: u64, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        if out.is_empty() {
            return Ok(());
        }
        let view = self.view();
        let block = BLOCK as u64;
        let first = offset / block;
        let count = ((offset + out.len() as u64).div_ceil(block) - first) as usize;
        let sources = self.sources(&view, ino, first, count)?;
        let mut at = 0;
        while at < count {
            let run = run_length(&sources[at..]);
            let begin = (first + at as u64) * block;
            match &sources[at] {
                Source::Disk { addr, .. } => {
                    let sums: Vec<u64> = sources[at..at + run].iter().map(sum_of).collect();
                    let found = self.mirror.read_for(*addr, &sums, ino)?;
                    copy_part(out, offset, begin, &found);
                }
                Source::Hole | Source::Reserved => zero_part(out, offset, begin),
                Source::Bytes(page) => copy_part(out, offset, begin, page),
                Source::Inline(bytes) => {
                    zero_part(out, offset, begin);
                    copy_part(out, offset, begin, bytes);
                }
            }
            at += run;
        }
        Ok(())
    }

    /// Whole pages for a write of `data` at `offset`: the edges are merged with what is there (may read the disk).
    pub fn prepare_pages(&self, ino: u64, offset: u64, data: &[u8]) -> Result<Vec<(u64, Slice)>, StoreError> {
        if data.is_empty() {
            return Ok(Vec::new());
        }
        let block = BLOCK as u64;
        let end = offset + data.len() as u64;
        let (first, last) = (offset / block, (end - 1) / block);
        let mut buf = Buf::zeroed((last - first + 1) as usize * BLOCK);
        if !offset.is_multiple_of(block) || (first == last && !end.is_multiple_of(block)) {
            self.read_file(ino, first * block, &mut buf[..BLOCK])?;
        }
        if last != first && !end.is_multiple_of(block) {
            let at = (last - first) as usize * BLOCK;
            self.read_file(ino, last * block, &mut buf[at..at + BLOCK])?;
        }
        let at = (offset - first * block) as usize;
        buf[at..at + data.len()].copy_from_slice(data);
        let buf = Arc::new(buf);
        Ok((first..=last).map(|b| (b, Slice::new(buf.clone(), (b - first) as usize * BLOCK, BLOCK))).collect())
    }

    /// Whether something stands for each of these file blocks that a commit gives back once they are overwritten: then
    /// a write takes room only until the next commit.
    pub(super) fn is_backed(&self, ino: u64, blocks: Range<u64>) -> Result<bool, StoreError> {
        let sources = self.sources(&self.view(), ino, blocks.start, (blocks.end - blocks.start) as usize)?;
        Ok(!sources.iter().any(|source| matches!(source, Source::Hole | Source::Inline(_))))
    }

    /// First file block at or after `block` that is not a hole.
    pub fn next_data(&self, ino: u64, block: u64) -> Result<Option<u64>, StoreError> {
        let view = self.view();
        let mut from = block;
        loop {
            let next = self.candidate(Layers::of(&view), ino, from)?;
            let Some(next) = next else { return Ok(None) };
            if !matches!(self.sources(&view, ino, next, 1)?[0], Source::Hole) {
                return Ok(Some(next));
            }
            // A hole above an old extent: skip to where that hole or the extent ends.
            from = self.hole_end(&view, ino, next);
        }
    }

    /// First file block at or after `block` that is a hole.
    pub fn next_hole(&self, ino: u64, block: u64) -> Result<u64, StoreError> {
        let view = self.view();
        // One walk along the tree, however long the file: an extent and not a block at a time.
        let mut cursor = self.committed_extents(&view.committed, ino, block, u64::MAX);
        let mut extent = block..block;
        let mut at = block;
        'next: loop {
            let mut silent_until = u64::MAX;
            for group in view.groups() {
                match group.with_file(ino, |file| stretch(file, at)) {
                    Some(Stretch::Filled(end)) => {
                        // No further than a younger group is silent: it may have emptied what comes then.
                        at = end.min(silent_until);
                        continue 'next;
                    }
                    Some(Stretch::Hole) => return Ok(at),
                    Some(Stretch::Silent(end)) => silent_until = silent_until.min(end),
                    None => {}
                }
            }
            while extent.end <= at {
                let Some((key, value)) = cursor.next()? else { return Ok(at) };
                extent = self.decode_extent(key, &value)?.first(key)..key.off + 1;
            }
            if at < extent.start {
                return Ok(at);
            }
            at = extent.end.min(silent_until);
        }
    }

    /// The first block at or after `from` of which a group's segment or the tree says something.
    fn candidate(&self, layers: Layers<'_>, ino: u64, from: u64) -> Result<Option<u64>, StoreError> {
        let mut best: Option<u64> = None;
        for group in layers.groups() {
            let next = group.with_file(ino, |f| f.segments.range(from..).next().map(|(b, _)| *b)).flatten();
            best = [best, next].into_iter().flatten().min();
        }
        if let Some((key, value)) = self.committed_extents(layers.committed, ino, from, u64::MAX).next()? {
            let start = self.decode_extent(key, &value)?.first(key).max(from);
            best = Some(best.map_or(start, |b| b.min(start)));
        }
        Ok(best)
    }

    /// `block` is a hole: the end of the group range that says so, or where that group or a younger one has something;
    /// at least the next block.
    fn hole_end(&self, view: &View, ino: u64, block: u64) -> u64 {
        let mut limit = u64::MAX;
        for group in view.groups() {
            let hole = group.with_file(ino, |file| {
                limit = limit.min(file.segments.range(block..).next().map_or(u64::MAX, |(b, _)| *b));
                file.holes.meeting(block, block + 1).map(|(_, end)| end).next()
            });
            if let Some(end) = hole.flatten() {
                return end.min(limit).max(block + 1);
            }
        }
        block + 1
    }

    /// File blocks that are not holes, what is in memory included; never too few.
    pub fn file_blocks(&self, ino: u64) -> Result<u64, StoreError> {
        let view = self.view();
        let mut total = self.committed_blocks(&view.committed, ino)?;
        // Oldest first: each group changes what is below it.
        let mut below = Layers { groups: [None, None], committed: &view.committed };
        for group in view.closing.iter().chain([&view.current]) {
            total = self.count_change(below, group, ino, total)?;
            below.groups[0] = Some(group);
        }
        Ok(total)
    }

    fn committed_blocks(&self, committed: &Committed, ino: u64) -> Result<u64, StoreError> {
        let map = self.committed_item(committed, Key::new(ino, ItemKind::FileMap, 0))?;
        map.map_or(Ok(0), |value| Ok(FileMap::decode(&value)?.blocks))
    }

    /// What becomes of `total` blocks of `ino` below by what `group` says.
    fn count_change(&self, below: Layers<'_>, group: &Group, ino: u64, total: u64) -> Result<u64, StoreError> {
        /// Segments that are compared one by one; beyond that the answer is an upper bound.
        const EXACT_MAX: usize = 1024;
        let said = group.with_file(ino, |file| {
            let part = file.segments.keys().take(EXACT_MAX).map(|block| (*block, file.holes.contains(*block)));
            let holes = if file.hidden.is_none() { file.holes.iter().collect() } else { Vec::new() };
            (part.collect::<Vec<_>>(), file.segments.len(), file.hidden, holes, file.punches)
        });
        let Some((segments, count, hidden, holes, punches)) = said else { return Ok(total) };
        let hidden = match hidden {
            Some(hidden) => hidden,
            None => {
                let counted = holes.iter().map(|(start, end)| self.count_below(below, ino, *start, *end));
                let hidden = counted.sum::<Result<u64, _>>()?;
                // What is below never changes: this is true until the next hole.
                group.with_file(ino, |file| file.hidden = (file.punches == punches).then_some(hidden));
                hidden
            }
        };
        let mut total = total.saturating_sub(hidden);
        if count > EXACT_MAX {
            return Ok(total + count as u64);
        }
        let mut at = 0;
        while at < segments.len() {
            let first = segments[at].0;
            let run = segments[at..].iter().zip(first..).take_while(|((block, _), want)| block == want).count();
            let sources = self.sources_in(below, ino, first, run)?;
            let is_new = |(source, (_, in_hole)): &(&Source, &(u64, bool))| matches!(source, Source::Hole) || *in_hole;
            total += sources.iter().zip(&segments[at..]).filter(is_new).count() as u64;
            at += run;
        }
        Ok(total)
    }

    /// Blocks of `ino` in `start..end` that are not holes.
    fn count_below(&self, below: Layers<'_>, ino: u64, start: u64, end: u64) -> Result<u64, StoreError> {
        /// Blocks at the begin of a file that are walked so that those behind them need not be.
        const HEAD_MAX: u64 = 1 << 14;
        if below.groups().all(|group| group.with_file(ino, |_| ()).is_none()) {
            return match end {
                u64::MAX if start <= HEAD_MAX => {
                    let all = self.committed_blocks(below.committed, ino)?;
                    Ok(all.saturating_sub(self.count_committed(below.committed, ino, 0, start)?))
                }
                _ => self.count_committed(below.committed, ino, start, end),
            };
        }
        let mut count = 0;
        let mut at = start;
        while let Some(data) = self.candidate(below, ino, at)? {
            if data >= end {
                break;
            }
            let step = (end - data).min(256) as usize;
            let sources = self.sources_in(below, ino, data, step)?;
            count += sources.iter().filter(|s| !matches!(s, Source::Hole)).count() as u64;
            at = data + step as u64;
        }
        Ok(count)
    }

    /// As [`Store::count_below`] of the committed tree alone: one walk, an extent and not a block at a time.
    fn count_committed(&self, committed: &Committed, ino: u64, start: u64, end: u64) -> Result<u64, StoreError> {
        let mut count = 0;
        if start >= end {
            return Ok(count);
        }
        let mut cursor = self.committed_extents(committed, ino, start, end - 1);
        while let Some((key, value)) = cursor.next()? {
            let first = self.decode_extent(key, &value)?.first(key);
            if first >= end {
                break;
            }
            count += (key.off + 1).min(end) - first.max(start);
        }
        Ok(count)
    }
}

/// What is asked in turn: groups, newest first, then a committed tree.
#[derive(Clone, Copy)]
struct Layers<'a> {
    groups: [Option<&'a Group>; 2],
    committed: &'a Committed,
}

impl<'a> Layers<'a> {
    fn of(view: &'a View) -> Layers<'a> {
        Layers { groups: [Some(&view.current), view.closing.as_deref()], committed: &view.committed }
    }

    fn groups(&self) -> impl Iterator<Item = &'a Group> {
        self.groups.into_iter().flatten()
    }
}

/// Fill the gaps in `out` with what `file` says; returns how many were filled.
fn ask(file: &FileDelta, first: u64, out: &mut [Option<Source>]) -> usize {
    let mut filled = 0;
    for (i, slot) in out.iter_mut().enumerate().filter(|(_, s)| s.is_none()) {
        *slot = match file.says(first + i as u64) {
            Says::Nothing => continue,
            Says::Hole => Some(Source::Hole),
            Says::Segment(Segment::Page { page, .. }) => Some(Source::Bytes(page)),
            Says::Segment(Segment::Placed { addr, sum, .. }) => Some(Source::Disk { addr, sum }),
            Says::Segment(Segment::Reserved { .. }) => Some(Source::Reserved),
        };
        filled += 1;
    }
    filled
}

/// What a group says of the blocks from some block on.
enum Stretch {
    /// It has something for each, up to here (exclusive).
    Filled(u64),
    /// The first is a hole.
    Hole,
    /// Nothing, up to here (exclusive).
    Silent(u64),
}

fn stretch(file: &FileDelta, at: u64) -> Stretch {
    /// Segments looked at under one lock.
    const STEP: usize = 4096;
    let run = file.segments.range(at..).take(STEP).zip(at..).take_while(|((block, _), want)| *block == want).count();
    if run > 0 {
        return Stretch::Filled(at + run as u64);
    }
    let hole = file.holes.meeting(at, u64::MAX).next().map_or(u64::MAX, |(start, _)| start);
    if hole <= at {
        return Stretch::Hole;
    }
    Stretch::Silent(file.segments.range(at..).next().map_or(hole, |(block, _)| hole.min(*block)))
}

fn sum_of(source: &Source) -> u64 {
    match source {
        Source::Disk { sum, .. } => u64::from(*sum),
        _ => unreachable!("a run on disk holds only blocks on disk"),
    }
}

/// How many of the first sources are one run on disk (1 for anything else).
fn run_length(sources: &[Source]) -> usize {
    let Source::Disk { addr, .. } = &sources[0] else { return 1 };
    sources
        .iter()
        .enumerate()
        .take_while(|(i, s)| matches!(s, Source::Disk { addr: a, .. } if *a == addr + *i as u64))
        .count()
}

/// Copy the part of `bytes` (which stand at `begin` in the file) that falls into `out` (which begins at `offset`).
fn copy_part(out: &mut [u8], offset: u64, begin: u64, bytes: &[u8]) {
    let from = begin.max(offset);
    let to = (begin + bytes.len() as u64).min(offset + out.len() as u64);
    if from < to {
        let source = &bytes[(from - begin) as usize..(to - begin) as usize];
        out[(from - offset) as usize..(to - offset) as usize].copy_from_slice(source);
    }
}

/// Zero the part of `out` that the block at `begin` covers.
fn zero_part(out: &mut [u8], offset: u64, begin: u64) {
    let from = begin.max(offset);
    let to = (begin + BLOCK as u64).min(offset + out.len() as u64);
    if from < to {
        out[(from - offset) as usize..(to - offset) as usize].fill(0);
    }
}
