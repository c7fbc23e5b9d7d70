//! Attributes: chmod, chown, truncate, utimes; access times.
//!
//! *Guarantees*: one SETATTR is one change, except that a truncate of a very large file goes from the end in
//! pieces, each of which leaves a shorter, whole file (trap 8): what was cut never comes back, also not from the rest
//! of the last block: whoever makes a file longer zeroes the gap. A chmod keeps the ACL's mask in step (trap 18).
//! *Assumes*: the kernel has checked permissions. *Fails when*: [`FsError::Invalid`] for impossible times or sizes
//! of what has no size, [`FsError::FileTooLarge`]. *Order*: the inode exclusively.
//! *Not here*: data that is written (`file`); what is taken from a
//! file along with that (`privileges`).

use super::acl::Acl;
use super::cache::Entry;
use super::change::Change;
use super::lock::{Held, LockKey, Mode};
use super::names::{attr_unknown, attr_with};
use super::privileges::{Taken, take_set_id};
use super::{ACL_ACCESS, Attr, Caller, Filesystem, FsError, S_IFMT, S_IFREG, SetAttr, TimeOrNow};
use crate::disk::buffer::Slice;
use crate::format::item::Time;
use crate::format::{BLOCK, FILE_SIZE_MAX, Inode};
use crate::store::Need;
use std::sync::Arc;

/// Most access times that wait in memory.
const ATIMES_MAX: usize = 4096;
/// relatime: an access time older than this is renewed, s.
const ATIME_AGE_MAX_S: i64 = 86_400;

/// What has to be done to cut a file.
#[derive(Default)]
struct Cut {
    /// Last block with a zeroed tail.
    tail: Vec<(u64, Slice)>,
    /// Runs of blocks that go, rising.
    pieces: Vec<(u64, u64)>,
}

impl Filesystem {
    /// Change attributes of `ino`; its change time also if nothing else (`chown` to -1 and -1).
    pub fn setattr(&self, ino: u64, caller: &Caller, change: &SetAttr) -> Result<Attr, FsError> {
        self.with_room(|| self.watch(ino, "changing", self.set(ino, caller, change).map(|(attr, _)| attr)))
    }

    /// As [`Filesystem::setattr`], for who may still hold what has ended (see [`Filesystem::getattr_held`]). The kernel's
    /// writeback cache does, too: it sends the times of a file that it has removed, and tells the next syncfs(2) of a refusal.
    pub fn setattr_held(&self, ino: u64, caller: &Caller, wanted: &SetAttr) -> Result<Attr, FsError> {
        match self.setattr(ino, caller, wanted) {
            Err(FsError::Stale) if wanted.size.is_none() => {
                let ended = self.ended.change(ino, |inode| apply(inode, wanted, self.store.now()));
                // It reads nothing but the type from the answer.
                let is_late = self.options.writeback_cache && wanted.is_late_times();
                let forgotten = || is_late.then(|| attr_unknown(ino, S_IFREG));
                ended.map(|inode| attr_with(ino, &inode, 0)).or_else(forgotten).ok_or(FsError::Stale)
            }
            done => done,
        }
    }

    /// Also gives whether set-id bits were taken.
    fn set(&self, ino: u64, caller: &Caller, wanted: &SetAttr) -> Result<(Attr, bool), FsError> {
        for time in [wanted.atime, wanted.mtime].into_iter().flatten() {
            if let TimeOrNow::Time(time) = time {
                check_time(time)?;
            }
        }
        wanted.ctime.map_or(Ok(()), check_time)?;
        let held = self.locks.acquire(&[(LockKey::Inode(ino), Mode::Exclusive)]);
        let (entry, inode) = self.load(ino)?;
        if let Some(size) = wanted.size {
            check_resize(&inode, size)?;
        }
        let mut xattrs = XattrChange::default();
        let facts = self.facts(&entry)?;
        if let (Some(mode), true) = (wanted.mode, facts.access_acl) {
            xattrs = self.acl_after_chmod(ino, mode)?;
        }
        let may_write = entry.state.lock().writers > 0;
        let taken = Taken::by(wanted, caller, &inode, may_write)?;
        if taken.capability {
            xattrs.delete = self.capability_to_take(&entry)?;
        }
        let mut cut = Cut::default();
        match wanted.size {
            Some(size) if size <= inode.size => {
                cut = self.cut(ino, inode.size, size)?;
                self.cut_ahead(&held, &entry, &mut cut)?;
            }
            Some(size) => cut.tail = self.zero_gap(ino, inode.size, size)?,
            None => {}
        }
        let need = Need {
            items: 4 + xattrs.len(),
            data_blocks: cut.tail.len() as u64,
            may_use_reserve: wanted.size.is_none_or(|size| size <= inode.size),
        };
        let now = self.store.now();
        let (inode, took) = self.change(&held, need, &[&entry], |change| {
            xattrs.apply(change, ino);
            if let Some(size) = wanted.size {
                apply_cut(change, ino, size, &cut);
            }
            let state = change.state(ino);
            state.mtime_set = match wanted.mtime {
                Some(_) => (state.writers > 0).then_some(now),
                None => state.mtime_set.filter(|_| wanted.size.is_none()),
            };
            let inode = change.inode(ino)?;
            let took = taken.set_id && take_set_id(inode);
            apply(inode, wanted, now);
            Ok((inode.clone(), took))
        })?;
        Ok((self.attr_after(ino, &inode), took))
    }

    /// Cut `ino` to nothing; for `O_TRUNC`.
    pub(super) fn truncate(&self, ino: u64, caller: &Caller) -> Result<(), FsError> {
        let (_, took) = self.set(ino, caller, &SetAttr { size: Some(0), ..SetAttr::default() })?;
        if took {
            self.mode_taken(ino);
        }
        Ok(())
    }

    fn acl_after_chmod(&self, ino: u64, mode: u32) -> Result<XattrChange, FsError> {
        let Some(value) = self.xattr_value(ino, ACL_ACCESS)? else { return Ok(XattrChange::default()) };
        let mut acl = Acl::decode(&value)?;
        acl.chmod(mode);
        let put = self.replaced_xattr(ino, ACL_ACCESS, &acl.encode())?;
        Ok(XattrChange { put, delete: vec![] })
    }

    /// Find out what a cut from `old` to `size` bytes takes.
    fn cut(&self, ino: u64, old: u64, size: u64) -> Result<Cut, FsError> {
        let mut cut =
            Cut { tail: self.zero_edge(ino, size, old.min(size.next_multiple_of(BLOCK as u64)))?, ..Cut::default() };
        let mut from = size.div_ceil(BLOCK as u64);
        // Without gaps: whoever counts the blocks has one hole to think of, and that to the end.
        while let Some((_, end)) = self.next_piece(ino, from)? {
            cut.pieces.push((from, end));
            from = end;
        }
        Ok(cut)
    }

    /// Do all of a cut but its first piece, from the end.
    fn cut_ahead(&self, held: &Held<'_>, entry: &Arc<Entry>, cut: &mut Cut) -> Result<(), FsError> {
        while cut.pieces.len() > 1 {
            let Some((first, end)) = cut.pieces.pop() else { return Ok(()) };
            let need = Need { items: 2, data_blocks: 0, may_use_reserve: true };
            self.change(held, need, &[entry], |change| {
                change.punch(entry.ino, first, end);
                let inode = change.inode(entry.ino)?;
                inode.size = inode.size.min(first * BLOCK as u64);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The page that holds the end of `ino`, if the file is to go on at `until`, with zeros in between.
    ///
    /// A cut zeroes what it leaves behind in the last block, but after a crash the size may be the new one and the
    /// block still the old one: only metadata is logged without an fsync. So nobody relies on those zeros.
    pub(super) fn zero_gap(&self, ino: u64, size: u64, until: u64) -> Result<Vec<(u64, Slice)>, FsError> {
        self.zero_edge(ino, size, until.min(size.next_multiple_of(BLOCK as u64)))
    }

    /// The page of `ino` with bytes `from..to` of one block zeroed; none if there is nothing to zero.
    pub(super) fn zero_edge(&self, ino: u64, from: u64, to: u64) -> Result<Vec<(u64, Slice)>, FsError> {
        let block = from / BLOCK as u64;
        if from >= to || self.store.next_data(ino, block)? != Some(block) {
            return Ok(vec![]);
        }
        assert!(to - block * BLOCK as u64 <= BLOCK as u64);
        if from.is_multiple_of(BLOCK as u64) && to.is_multiple_of(BLOCK as u64) {
            return Ok(vec![]);
        }
        Ok(self.store.prepare_pages(ino, from, &vec![0; (to - from) as usize])?)
    }

    /// Somebody read `entry`: renew its access time as `relatime` does, in memory; it is written with the next
    /// change of the inode or in the background. Never waits, never fails.
    pub(super) fn accessed(&self, entry: &Arc<Entry>) {
        if self.options.noatime {
            return;
        }
        let now = self.store.now();
        let mut state = entry.state.lock();
        let Some(inode) = &mut state.inode else { return };
        let due = inode.atime <= inode.mtime
            || inode.atime <= inode.ctime
            || now.sec.saturating_sub(inode.atime.sec) >= ATIME_AGE_MAX_S;
        if !due {
            return;
        }
        let mut waiting = self.atimes.lock();
        if !state.atime_waits {
            if waiting.len() >= ATIMES_MAX {
                return;
            }
            waiting.push(Arc::clone(entry));
            entry.pin();
        }
        drop(waiting);
        state.atime_waits = true;
        if let Some(inode) = &mut state.inode {
            inode.atime = now;
        }
    }
}

/// Extended attribute items to change along with something else.
#[derive(Default)]
pub(super) struct XattrChange {
    pub put: Vec<(crate::format::Key, Vec<u8>)>,
    pub delete: Vec<crate::format::Key>,
}

impl XattrChange {
    pub(super) fn len(&self) -> u32 {
        (self.put.len() + self.delete.len()) as u32
    }
    /// Do it. What is known of the attributes is looked up anew when something goes; whoever looks sees a change.
    pub(super) fn apply(&self, change: &mut Change, ino: u64) {
        if self.len() > 0 {
            change.state(ino).facts_version += 1;
        }
        if !self.delete.is_empty() {
            change.state(ino).facts = None;
        }
        for key in &self.delete {
            change.delete(*key);
        }
        for (key, value) in &self.put {
            change.put(*key, value.clone());
        }
    }
}

impl SetAttr {
    /// Whether this can be the times that the kernel's writeback cache has kept.
    fn is_late_times(&self) -> bool {
        let times = SetAttr { mtime: self.mtime, ctime: self.ctime, ..SetAttr::default() };
        self.ctime.is_some() && *self == times
    }
}

fn check_time(time: Time) -> Result<(), FsError> {
    if time.nsec < 1_000_000_000 { Ok(()) } else { Err(FsError::Invalid) }
}

fn check_resize(inode: &Inode, size: u64) -> Result<(), FsError> {
    if inode.is_dir() {
        return Err(FsError::IsDirectory);
    }
    if !inode.is_file() {
        return Err(FsError::Invalid);
    }
    if size > FILE_SIZE_MAX { Err(FsError::FileTooLarge) } else { Ok(()) }
}

fn apply_cut(change: &mut Change, ino: u64, size: u64, cut: &Cut) {
    for (first, end) in &cut.pieces {
        change.punch(ino, *first, *end);
    }
    change.resize(ino, size, cut.tail.clone());
}

fn apply(inode: &mut Inode, wanted: &SetAttr, now: Time) {
    let moment = |time: TimeOrNow| match time {
        TimeOrNow::Time(time) => time,
        TimeOrNow::Now => now,
    };
    inode.ctime = wanted.ctime.unwrap_or(now);
    if let Some(size) = wanted.size {
        inode.size = size;
        inode.mtime = now;
    }
    if let Some(mode) = wanted.mode {
        inode.mode = inode.mode & S_IFMT | mode & 0o7777;
    }
    inode.uid = wanted.uid.unwrap_or(inode.uid);
    inode.gid = wanted.gid.unwrap_or(inode.gid);
    inode.atime = wanted.atime.map_or(inode.atime, moment);
    inode.mtime = wanted.mtime.map_or(inode.mtime, moment);
}
