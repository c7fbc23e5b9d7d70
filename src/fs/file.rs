//! Bytes of files: open, read, write, seek, copy.
//!
//! *Guarantees*: reads and writes of one inode exclude each other, so a read never sees half of a write of up to
//! 1 MiB. Blocks that are there take new data also on a full volume. A hole is reported only where no data can be, also
//! not in dirty pages that the kernel still holds (trap 7). *Assumes*: the kernel gives the offset of `O_APPEND` writes.
//! *Fails when*: [`FsError::FileTooLarge`], [`FsError::IsDirectory`], [`FsError::NoSuchOffset`], no room: a write
//! of more than 1 MiB may then be cut short.
//! *Order*: the inode shared for reading, exclusively for writing; pages are merged with what is there before the
//! transaction begins (trap 9). *Not here*: where the bytes go (`store`).

use super::attributes::XattrChange;
use super::cache::{Entry, State};
use super::lock::{Held, LockKey, Mode};
use super::privileges::take_set_id;
use super::xattr::SYMLINK_TARGET;
use super::{Caller, Filesystem, FsError, PIECE, S_IFLNK, S_IFMT};
use crate::disk::buffer::Slice;
use crate::format::item::Time;
use crate::format::{BLOCK, FILE_SIZE_MAX, Inode, reject, require};
use crate::store::{Need, StoreError};
use crate::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;

/// Most bytes that one call copies.
const COPY_MAX: u64 = 8 << 20;

/// How long the kernel may hold back pages that were written before a time was set by hand, s (it writes pages that are
/// 30 s old every 5 s, both by default).
const LATE_MAX_S: i64 = 60;

/// Whether a page that comes `now` may have been written before the time was set by hand at `set`.
fn is_late(set: Time, now: Time) -> bool {
    (0..=LATE_MAX_S).contains(&now.sec.saturating_sub(set.sec))
}

/// How bytes come to be written.
#[derive(Clone, Copy)]
struct How {
    kill_privileges: bool,
    from_cache: bool,
}

impl Filesystem {
    /// Open `ino` (also a directory) for root; gives a handle for `release`. `O_TRUNC` cuts a file.
    pub fn open(&self, ino: u64, flags: i32) -> Result<u64, FsError> {
        self.open_by(ino, flags, &Caller::default())
    }

    /// As [`Filesystem::open`], for `caller`.
    pub fn open_by(&self, ino: u64, flags: i32, caller: &Caller) -> Result<u64, FsError> {
        let entry = self.entry(ino)?;
        let mut state = entry.state.lock();
        let inode = state.inode.as_ref().ok_or(FsError::Stale)?;
        if inode.nlink == 0 && state.opens == 0 {
            return Err(FsError::Stale);
        }
        let truncates = flags & libc::O_TRUNC != 0 && inode.is_file();
        let handle = self.count_open(&entry, &mut state, flags);
        drop(state);
        if truncates && let Err(error) = self.truncate(ino, caller) {
            self.release(ino, handle);
            return Err(error);
        }
        Ok(handle)
    }

    /// Count a new handle of `entry`.
    pub(super) fn count_open(&self, entry: &Entry, state: &mut State, flags: i32) -> u64 {
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        state.opens += 1;
        state.writers += u32::from(writes);
        entry.pin();
        self.next_handle.fetch_add(1, Relaxed) << 1 | u64::from(writes)
    }

    /// Close a handle. The last one of a file without a name ends the file.
    pub fn release(&self, ino: u64, handle: u64) {
        let entry = self.cache.entry(ino);
        let mut state = entry.state.lock();
        if state.opens == 0 {
            log::warn!("inode {ino} is released more often than it was opened");
            return;
        }
        state.opens -= 1;
        state.writers = state.writers.saturating_sub((handle & 1) as u32);
        if state.writers == 0 {
            state.mtime_set = None;
        }
        let ends = state.opens == 0 && state.inode.as_ref().is_some_and(|inode| inode.nlink == 0);
        drop(state);
        entry.unpin();
        if ends {
            self.reclaim.push(ino);
        }
    }

    /// Target of a symbolic link.
    pub fn readlink(&self, ino: u64) -> Result<Vec<u8>, FsError> {
        let (entry, inode) = self.load(ino)?;
        if inode.mode & S_IFMT != S_IFLNK {
            return Err(FsError::Invalid);
        }
        // No lock: a target never changes, it only goes with its link.
        let Some(target) = self.watch(ino, "reading", self.xattr_value(ino, SYMLINK_TARGET))? else {
            self.load(ino)?;
            return Ok(reject("symbolic link", "has a target")?);
        };
        require(target.len() as u64 == inode.size, "symbolic link", "has a target of its size")?;
        self.accessed(&entry);
        Ok(target)
    }

    /// Read up to `size` bytes at `offset` into `out` (its old content goes); less only at the end of the file.
    pub fn read(&self, ino: u64, offset: u64, out: &mut Vec<u8>, size: u32) -> Result<(), FsError> {
        out.clear();
        let _held = self.locks.acquire(&[(LockKey::Inode(ino), Mode::Shared)]);
        let (entry, inode) = self.load_file(ino)?;
        let length = inode.size.saturating_sub(offset).min(u64::from(size)) as usize;
        if length > 0 {
            out.resize(length, 0);
            let outcome = self.store.read_file(ino, offset, out).map_err(FsError::from);
            if outcome.is_err() {
                out.clear();
            }
            self.watch(ino, "reading", outcome)?;
        }
        self.accessed(&entry);
        Ok(())
    }

    /// Attributes of a regular file.
    pub(super) fn load_file(&self, ino: u64) -> Result<(Arc<Entry>, Inode), FsError> {
        let (entry, inode) = self.load(ino)?;
        if inode.is_dir() {
            return Err(FsError::IsDirectory);
        }
        if inode.is_file() { Ok((entry, inode)) } else { Err(FsError::Invalid) }
    }

    /// Write `data` at `offset`; gives the bytes written. `from_cache`: late pages of the kernel's cache.
    pub fn write(
        &self,
        ino: u64,
        offset: u64,
        data: &[u8],
        kill_privileges: bool,
        from_cache: bool,
    ) -> Result<u32, FsError> {
        let how = How { kill_privileges, from_cache };
        self.with_room(|| {
            let held = self.locks.acquire(&[(LockKey::Inode(ino), Mode::Exclusive)]);
            let (entry, inode) = self.load_file(ino)?;
            let outcome = self.write_held(&held, &entry, (inode.size, offset), data, how);
            Ok(self.watch(ino, "writing", outcome)? as u32)
        })
    }

    /// Write in pieces; once something is written, an error only cuts the write short.
    fn write_held(
        &self,
        held: &Held<'_>,
        entry: &Arc<Entry>,
        (size, offset): (u64, u64),
        data: &[u8],
        how: How,
    ) -> Result<usize, FsError> {
        if data.is_empty() {
            return Ok(0);
        }
        if offset >= FILE_SIZE_MAX {
            return Err(FsError::FileTooLarge);
        }
        let length = data.len().min(usize::try_from(FILE_SIZE_MAX - offset).unwrap_or(usize::MAX));
        let mut gap = vec![];
        if offset > size && !size.is_multiple_of(BLOCK as u64) {
            if offset / BLOCK as u64 == size / BLOCK as u64 {
                // The gap is in the block where the write begins: write its zeros, too.
                let padding = (offset - size) as usize;
                let padded = [&vec![0; padding], &data[..length]].concat();
                let done = self.write_held(held, entry, (size, size), &padded, how)?;
                return if done > padding { Ok(done - padding) } else { Err(StoreError::NoSpace.into()) };
            }
            gap = self.zero_gap(entry.ino, size, offset)?;
        }
        let mut done = 0;
        while done < length {
            let at = offset + done as u64;
            let piece = (length - done).min(PIECE - at as usize % PIECE);
            match self.write_piece(held, entry, (at, &data[done..done + piece]), std::mem::take(&mut gap), how) {
                Ok(()) => done += piece,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    fn write_piece(
        &self,
        held: &Held<'_>,
        entry: &Arc<Entry>,
        (offset, data): (u64, &[u8]),
        gap: Vec<(u64, Slice)>,
        how: How,
    ) -> Result<(), FsError> {
        let ino = entry.ino;
        let mut xattrs = XattrChange::default();
        if !how.from_cache {
            xattrs.delete = self.capability_to_take(entry)?;
        }
        let mut pages = gap;
        pages.extend(self.store.prepare_pages(ino, offset, data)?);
        let need = Need { items: 3 + xattrs.len(), data_blocks: pages.len() as u64, may_use_reserve: false };
        let now = self.store.now();
        // What fallocate set aside must take its data, also where nothing is free (the gap's page is backed anyway).
        let blocks = offset / BLOCK as u64..(offset + data.len() as u64).div_ceil(BLOCK as u64);
        let transaction = self.store.begin_write(need, ino, blocks)?;
        let took = self.join(held, transaction, &[entry], |change| {
            xattrs.apply(change, ino);
            let state = change.state(ino);
            state.mtime_set = state.mtime_set.filter(|set| how.from_cache && is_late(*set, now));
            let keeps_time = how.from_cache && (self.options.writeback_cache || state.mtime_set.is_some());
            let inode = change.inode(ino)?;
            let end = offset + data.len() as u64;
            let size_before = if end > inode.size { inode.size } else { u64::MAX };
            inode.size = inode.size.max(end);
            if !keeps_time {
                inode.mtime = now;
                inode.ctime = now;
            }
            let took = how.kill_privileges && take_set_id(inode);
            change.write_pages(ino, pages.clone(), size_before);
            Ok(took)
        })?;
        if took {
            self.mode_taken(ino);
        }
        Ok(())
    }

    /// Whether somebody has `ino` open for writing: the kernel may hold pages of which nobody here knows.
    pub fn may_be_dirty(&self, ino: u64) -> bool {
        self.cache.entry(ino).state.lock().writers > 0
    }

    /// Next data or hole at or after `offset`. `whence`: `SEEK_DATA` or `SEEK_HOLE`. Unless `all_is_here`, all of a file
    /// that [`Filesystem::may_be_dirty`] is shown as data, as lseek(2) allows.
    pub fn lseek(&self, ino: u64, offset: i64, whence: i32, all_is_here: bool) -> Result<u64, FsError> {
        let _held = self.locks.acquire(&[(LockKey::Inode(ino), Mode::Shared)]);
        let (entry, inode) = self.load_file(ino)?;
        let offset = u64::try_from(offset).map_err(|_| FsError::NoSuchOffset)?;
        if offset >= inode.size {
            return Err(FsError::NoSuchOffset);
        }
        let may_be_dirty = !all_is_here && entry.state.lock().writers > 0;
        let block = offset / BLOCK as u64;
        match whence {
            libc::SEEK_DATA if may_be_dirty => Ok(offset),
            libc::SEEK_HOLE if may_be_dirty => Ok(inode.size),
            libc::SEEK_DATA => {
                let found = self.store.next_data(ino, block)?.and_then(|block| block.checked_mul(BLOCK as u64));
                let found = found.ok_or(FsError::NoSuchOffset)?.max(offset);
                if found < inode.size { Ok(found) } else { Err(FsError::NoSuchOffset) }
            }
            libc::SEEK_HOLE => {
                let found = self.store.next_hole(ino, block)?.saturating_mul(BLOCK as u64);
                Ok(found.max(offset).min(inode.size))
            }
            _ => Err(FsError::Invalid),
        }
    }

    /// Copy for root up to `len` bytes, at most 8 MiB a call; gives the bytes copied, 0 at the end of the source.
    pub fn copy_file_range(
        &self,
        ino_in: u64,
        off_in: u64,
        ino_out: u64,
        off_out: u64,
        len: u64,
    ) -> Result<u64, FsError> {
        self.copy_file_range_by((ino_in, off_in), (ino_out, off_out), len, &Caller::default())
    }

    /// As [`Filesystem::copy_file_range`], for `caller`; each end is an inode and an offset.
    pub fn copy_file_range_by(
        &self,
        from: (u64, u64),
        to: (u64, u64),
        len: u64,
        caller: &Caller,
    ) -> Result<u64, FsError> {
        let how = How { kill_privileges: caller.takes_set_id(), from_cache: false };
        self.with_room(|| self.copy(from, to, len, how))
    }

    fn copy(
        &self,
        (ino_in, off_in): (u64, u64),
        (ino_out, off_out): (u64, u64),
        len: u64,
        how: How,
    ) -> Result<u64, FsError> {
        let held =
            self.locks.acquire(&[(LockKey::Inode(ino_in), Mode::Shared), (LockKey::Inode(ino_out), Mode::Exclusive)]);
        let (source, inode) = self.load_file(ino_in)?;
        let (target, target_inode) = self.load_file(ino_out)?;
        let len = len.min(inode.size.saturating_sub(off_in));
        let overlap = off_out < off_in.saturating_add(len) && off_in < off_out.saturating_add(len);
        if ino_in == ino_out && overlap && len > 0 {
            return Err(FsError::Invalid);
        }
        let len = len.min(COPY_MAX);
        let mut done = 0;
        let mut buffer = vec![0; len.min(PIECE as u64) as usize];
        while done < len {
            let size = target_inode.size.max(if done > 0 { off_out + done } else { 0 });
            let piece = &mut buffer[..(len - done).min(PIECE as u64) as usize];
            let copied = self.store.read_file(ino_in, off_in + done, piece).map_err(FsError::from);
            let copied = copied.and_then(|()| self.write_held(&held, &target, (size, off_out + done), piece, how));
            match copied {
                Ok(count) => {
                    done += count as u64;
                    if count < piece.len() {
                        break;
                    }
                }
                Err(error) if done == 0 => return self.watch(ino_in, "copying", Err(error)),
                Err(_) => break,
            }
        }
        self.accessed(&source);
        Ok(done)
    }
}
