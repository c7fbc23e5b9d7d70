//! fallocate: reserving, punching and zeroing ranges of a file.
//!
//! *Guarantees*: room is asked for before anything changes; a reserved block takes its data also on a full volume
//! (the data goes elsewhere, out of a part of the reserve; what was set aside comes back with the commit). Punched and
//! zeroed bytes read as zeros at once. Ranges of more than 32 MiB go in pieces: a failure
//! or a crash in between leaves a shorter range done.
//! *Assumes*: whoever makes a file longer zeroes the gap (`attributes`). *Fails when*: [`FsError::Unsupported`] for other modes,
//! [`FsError::NotFile`], [`FsError::FileTooLarge`], no room. *Order*: the inode exclusively.
//! *Not here*: collapsing and inserting ranges.

use super::cache::Entry;
use super::change::touch;
use super::lock::{Held, LockKey, Mode};
use super::{Caller, Filesystem, FsError};
use crate::disk::buffer::Slice;
use crate::format::item::EXTENT_BLOCKS_MAX;
use crate::format::{BLOCK, FILE_SIZE_MAX};
use crate::store::Need;
use std::sync::Arc;

/// Blocks reserved in one transaction (32 MiB).
const STEP_BLOCKS: u64 = 8192;
const ALLOCATE: i32 = 0;
const KEEP_SIZE: i32 = libc::FALLOC_FL_KEEP_SIZE;
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
const ZERO_KEEP_SIZE: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

impl Filesystem {
    /// Reserve, punch or zero `length` bytes at `offset` for root. `mode`: `FALLOC_FL_*`.
    pub fn fallocate(&self, ino: u64, offset: u64, length: u64, mode: i32) -> Result<(), FsError> {
        self.fallocate_by(ino, offset, length, mode, &Caller::default())
    }

    /// As [`Filesystem::fallocate`], for `caller`.
    pub fn fallocate_by(&self, ino: u64, offset: u64, length: u64, mode: i32, caller: &Caller) -> Result<(), FsError> {
        if !matches!(mode, ALLOCATE | KEEP_SIZE | PUNCH | ZERO | ZERO_KEEP_SIZE) {
            return Err(FsError::Unsupported);
        }
        let end = offset.checked_add(length).filter(|end| *end <= FILE_SIZE_MAX).ok_or(FsError::FileTooLarge)?;
        if length == 0 {
            return Err(FsError::Invalid);
        }
        self.with_room(|| self.fallocate_held(ino, (offset, end), mode, caller))
    }

    fn fallocate_held(&self, ino: u64, (offset, end): (u64, u64), mode: i32, caller: &Caller) -> Result<(), FsError> {
        let held = self.locks.acquire(&[(LockKey::Inode(ino), Mode::Exclusive)]);
        let (entry, inode) = self.load(ino)?;
        if !inode.is_file() {
            return Err(if inode.is_dir() { FsError::IsDirectory } else { FsError::NotFile });
        }
        self.take_privileges(&held, &entry, &inode, caller)?;
        let outcome = match mode {
            PUNCH => self.punch_range(&held, &entry, inode.size, offset, end),
            ALLOCATE | KEEP_SIZE => self.allocate(&held, &entry, (inode.size, mode == KEEP_SIZE), offset, end),
            _ => self.zero_range(&held, &entry, (inode.size, mode == ZERO_KEEP_SIZE), offset, end),
        };
        self.watch(ino, "allocating", outcome)
    }

    /// Whether `blocks` blocks can be had, once freed ones that wait are given back; nothing is taken.
    fn check_room(&self, blocks: u64) -> Result<(), FsError> {
        let need = Need { items: 0, data_blocks: blocks, may_use_reserve: false };
        drop(self.store.begin(need)?);
        Ok(())
    }

    /// Holes in blocks `first..end`: (blocks, runs).
    fn holes(&self, ino: u64, first: u64, end: u64) -> Result<(u64, u32), FsError> {
        let (mut blocks, mut runs, mut at) = (0, 0, first);
        while at < end {
            let hole = self.store.next_hole(ino, at)?;
            if hole >= end {
                break;
            }
            let data = self.store.next_data(ino, hole)?.unwrap_or(end).min(end);
            blocks += data - hole;
            runs += 1;
            at = data;
        }
        Ok((blocks, runs))
    }

    fn allocate(
        &self,
        held: &Held<'_>,
        entry: &Arc<Entry>,
        (size, keeps_size): (u64, bool),
        offset: u64,
        end: u64,
    ) -> Result<(), FsError> {
        let ino = entry.ino;
        let (mut first, end_block) = (offset / BLOCK as u64, end.div_ceil(BLOCK as u64));
        self.check_room(self.holes(ino, first, end_block)?.0)?;
        let mut gap = if keeps_size { vec![] } else { self.zero_gap(ino, size, end)? };
        while first < end_block {
            let stop = end_block.min(first + STEP_BLOCKS);
            let (blocks, runs) = self.holes(ino, first, stop)?;
            let until = end.min(stop * BLOCK as u64);
            let grows = !keeps_size && until > size;
            let gap = if grows { std::mem::take(&mut gap) } else { vec![] };
            let items = 3 + runs + extents(blocks);
            let need = Need { items, data_blocks: blocks + gap.len() as u64, may_use_reserve: false };
            let now = self.store.now();
            let mut transaction = self.store.begin(need)?;
            if blocks > 0 {
                // May read the disk, so before the attributes are locked. Exclusive: nobody else changes the file.
                assert!(held.has(LockKey::Inode(ino), Mode::Exclusive));
                transaction.reserve(ino, first, stop - first)?;
            }
            self.join(held, transaction, &[entry], |change| {
                let inode = change.inode(ino)?;
                touch(inode, now);
                if grows {
                    inode.size = until;
                    change.resize(ino, until, gap.clone());
                }
                Ok(())
            })?;
            first = stop;
        }
        Ok(())
    }

    /// Pages at both ends of `offset..end` that keep some of their bytes, the others zeroed.
    fn zero_edges(&self, ino: u64, offset: u64, end: u64) -> Result<Vec<(u64, Slice)>, FsError> {
        let block = BLOCK as u64;
        let head_end = offset.next_multiple_of(block).min(end);
        let mut pages = self.zero_edge(ino, offset, head_end)?;
        pages.extend(self.zero_edge(ino, (end - end % block).max(head_end), end)?);
        Ok(pages)
    }

    fn punch_range(
        &self,
        held: &Held<'_>,
        entry: &Arc<Entry>,
        size: u64,
        offset: u64,
        end: u64,
    ) -> Result<(), FsError> {
        let (ino, block) = (entry.ino, BLOCK as u64);
        // Nothing is past the end of the file: the last block can go as a whole.
        let end = if end >= size { end.next_multiple_of(block) } else { end };
        let mut pages = self.zero_edges(ino, offset, end)?;
        let (mut at, end_block) = (offset.div_ceil(block), end / block);
        let mut is_first = true;
        loop {
            let piece = match self.next_piece(ino, at)? {
                Some((first, stop)) if at < end_block && first < end_block => Some((first, stop.min(end_block))),
                _ => None,
            };
            if piece.is_none() && !is_first {
                return Ok(());
            }
            is_first = false;
            let pages = std::mem::take(&mut pages);
            let need = Need { items: 4, data_blocks: pages.len() as u64, may_use_reserve: true };
            let now = self.store.now();
            self.change(held, need, &[entry], |change| {
                if let Some((first, stop)) = piece {
                    change.punch(ino, first, stop);
                }
                if !pages.is_empty() {
                    change.write_pages(ino, pages.clone(), u64::MAX);
                }
                touch(change.inode(ino)?, now);
                Ok(())
            })?;
            let Some((_, stop)) = piece else { return Ok(()) };
            at = stop;
        }
    }

    fn zero_range(
        &self,
        held: &Held<'_>,
        entry: &Arc<Entry>,
        (size, keeps_size): (u64, bool),
        offset: u64,
        end: u64,
    ) -> Result<(), FsError> {
        // Blocks inside are replaced by new ones before the old ones are free.
        let blocks = end.div_ceil(BLOCK as u64) - offset / BLOCK as u64;
        self.check_room(blocks)?;
        self.punch_range(held, entry, size, offset, end)?;
        self.allocate(held, entry, (size, keeps_size), offset, end)
    }
}

/// Extents that `blocks` blocks take at least.
fn extents(blocks: u64) -> u32 {
    u32::try_from(blocks / u64::from(EXTENT_BLOCKS_MAX)).unwrap_or(u32::MAX) + 1
}
