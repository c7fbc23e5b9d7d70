//! Saving what was changed in one history, before it is given up.
//!
//! *Guarantees*: each file that is shown as changed stands below the folder with its path, its type and the bytes that prove
//! themselves, durable when this returns; what could not be read is listed. Nothing is written outside of the folder,
//! whatever names and links the history holds. *Assumes*: nobody else writes there meanwhile. *Fails when*: the folder is not
//! empty or does not take it: nothing else has happened then. *Order*: files and links → attributes of directories → to the disk.
//! *Not here*: what was changed (`changes`). Owners, modes, times and extended attributes are kept as far as the folder's
//! filesystem and the caller's rights allow; what is not is counted. Of several names of a file one is kept. Directories that
//! were not changed themselves are made for what is below them, with mode 0700.

use super::super::{StoreError, refused};
use super::changes::{Change, Since, Watcher, changes, names, shown};
use crate::format::item::Time;
use crate::format::{BLOCK, Inode};
use crate::fs::{Filesystem, FsOptions};
use crate::store::Store;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Blocks read at once.
const PIECE: u64 = 256;
/// Lines about what could not be read that a report holds.
const LINES_MAX: usize = 100;

/// What was saved.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct SaveReport {
    /// Where.
    pub directory: String,
    /// Regular files.
    pub files: u64,
    /// Directories that had been changed themselves.
    pub directories: u64,
    /// Symbolic links, device nodes, pipes and sockets.
    pub others: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// What could not be read, wholly or in part: not saved. At most 100 lines.
    pub unreadable: Vec<String>,
    /// How many there are.
    pub unreadable_count: u64,
    /// Owners, modes, times and extended attributes that could not be set.
    pub attributes_lost: u64,
}

/// Which of the changes are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// All.
    Content,
    /// Attributes of directories: writing into them changes their times.
    Directories,
}

struct Saver<'a> {
    store: &'a Store,
    names: Filesystem,
    top: OwnedFd,
    pass: Pass,
    report: SaveReport,
    failure: Option<String>,
    progress: &'a mut dyn FnMut(u64),
}

/// Make sure that `directory` is there, empty, and not inside of a place of these `replicas`.
///
/// # Errors
/// It is not.
pub(super) fn prepare(directory: &Path, replicas: &[String]) -> Result<PathBuf, StoreError> {
    let path = directory.display();
    let fail = |error: io::Error| StoreError::Refused(format!("{path}: {error}; nothing was overwritten"));
    let inside = |place: &Path| replicas.iter().any(|replica| place.starts_with(replica));
    let whole = std::path::absolute(directory).map_err(fail)?;
    let above = whole.parent().and_then(|above| above.canonicalize().ok());
    if inside(&whole) || above.is_some_and(|above| inside(&above)) {
        return refused(format!("{path}: lies in a replica; choose a folder elsewhere"));
    }
    match std::fs::DirBuilder::new().mode(0o700).create(&whole) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(fail(error)),
        _ => {}
    }
    let whole = whole.canonicalize().map_err(fail)?;
    if inside(&whole) {
        return refused(format!("{path}: lies in a replica; choose a folder elsewhere"));
    }
    if std::fs::read_dir(&whole).map_err(fail)?.next().is_some() {
        return refused(format!("{path}: is not empty; choose another folder, or empty it"));
    }
    Ok(whole)
}

/// Save what was changed in `own` since it parted from `other` into `directory`, which is empty.
///
/// # Errors
/// The folder does not take it.
pub(super) fn save(
    own: &Arc<Store>,
    other: &Store,
    since: Since,
    directory: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<SaveReport, StoreError> {
    let fail = |error: io::Error| StoreError::Refused(format!("{}: {error}", directory.display()));
    let names = Filesystem::new(own.clone(), FsOptions { noatime: true, ..FsOptions::default() })
        .map_err(|error| StoreError::Refused(format!("the top directory cannot be read: {error}")))?;
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let top = rustix::fs::open(directory, flags, Mode::empty()).map_err(|error| fail(error.into()))?;
    let report = SaveReport { directory: directory.display().to_string(), ..SaveReport::default() };
    let mut saver = Saver { store: own, names, top, pass: Pass::Content, report, failure: None, progress };
    for pass in [Pass::Content, Pass::Directories] {
        saver.pass = pass;
        let _ended_early = changes(own, other, since, &mut saver).is_break();
        if let Some(failure) = saver.failure.take() {
            return refused(format!("{}: {failure}; nothing was overwritten", directory.display()));
        }
    }
    rustix::fs::syncfs(&saver.top).map_err(|error| fail(error.into()))?;
    let above = directory.parent().map(|above| File::open(above).and_then(|above| above.sync_all()));
    above.unwrap_or(Ok(())).map_err(fail)?;
    Ok(saver.report)
}

impl Watcher for Saver<'_> {
    fn changed(&mut self, change: &Change) -> ControlFlow<()> {
        let is_directory = change.inode.is_dir();
        if self.pass == Pass::Directories && !is_directory {
            return ControlFlow::Continue(());
        }
        let Some(names) = names(self.store, change.ino) else {
            self.note(format!("inode {}: its name cannot be found", change.ino));
            return ControlFlow::Continue(());
        };
        let Some(name) = names.last() else { return ControlFlow::Continue(()) };
        let path = shown(&names, is_directory);
        let done = self.folder_of(&names).and_then(|folder| match self.pass {
            Pass::Content => self.write(change, &folder, name, &path),
            Pass::Directories => self.open_folder(&folder, name).map(|folder| self.dress(change, &folder)),
        });
        if let Err(error) = done {
            self.failure = Some(format!("{path} cannot be saved ({error})"));
            return ControlFlow::Break(());
        }
        (self.progress)(self.report.files + self.report.directories + self.report.others);
        ControlFlow::Continue(())
    }

    fn unreadable(&mut self, what: String) {
        self.note(what);
    }
}

impl Saver<'_> {
    fn note(&mut self, line: String) {
        // Told once.
        if self.pass == Pass::Directories {
            return;
        }
        self.report.unreadable_count += 1;
        if self.report.unreadable.len() < LINES_MAX {
            self.report.unreadable.push(line);
        }
    }

    /// No link is followed: a name of this history never leads out of the folder.
    fn open_folder(&self, above: impl AsFd, name: &[u8]) -> io::Result<OwnedFd> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(above, name, flags, Mode::empty())?)
    }

    fn make_folder(&self, above: impl AsFd, name: &[u8]) -> io::Result<OwnedFd> {
        match rustix::fs::mkdirat(above.as_fd(), name, Mode::RWXU) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => self.open_folder(above, name),
            Err(error) => Err(error.into()),
        }
    }

    /// The folder in which the last of `names` stands; made if need be.
    fn folder_of(&self, names: &[Vec<u8>]) -> io::Result<OwnedFd> {
        let mut folder = self.top.try_clone()?;
        for name in &names[..names.len().saturating_sub(1)] {
            folder = self.make_folder(&folder, name)?;
        }
        Ok(folder)
    }

    fn write(&mut self, change: &Change, folder: &OwnedFd, name: &[u8], path: &str) -> io::Result<()> {
        let inode = &change.inode;
        if inode.is_dir() {
            self.make_folder(folder, name)?;
            self.report.directories += 1;
            return Ok(());
        }
        if inode.is_file() {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = File::from(rustix::fs::openat(folder, name, flags, Mode::RUSR | Mode::WUSR)?);
            self.write_file(change, &file, path)?;
            self.dress(change, &file.into());
            self.report.files += 1;
            return Ok(());
        }
        let kind = FileType::from_raw_mode(inode.mode);
        if kind == FileType::Symlink {
            let target = match self.names.readlink(change.ino) {
                Ok(target) => target,
                Err(error) => {
                    self.note(format!("{path}: {error}"));
                    return Ok(());
                }
            };
            rustix::fs::symlinkat(target.as_slice(), folder, name)?;
        } else if let Err(error) =
            rustix::fs::mknodat(folder, name, kind, Mode::RUSR | Mode::WUSR, u64::from(inode.rdev))
        {
            // Device nodes are root's to make.
            self.note(format!("{path}: {error}"));
            return Ok(());
        }
        self.report.others += 1;
        self.dress_by_name(inode, folder, name);
        Ok(())
    }

    /// The bytes that prove themselves; what is lost stays a hole.
    fn write_file(&mut self, change: &Change, file: &File, path: &str) -> io::Result<()> {
        let size = change.inode.size;
        file.set_len(size)?;
        let blocks = size.div_ceil(BLOCK as u64);
        let (mut at, mut lost) = (0, 0_u64);
        let mut buffer = vec![0; PIECE as usize * BLOCK];
        while at < blocks {
            match self.store.next_data(change.ino, at) {
                Ok(Some(next)) if next < blocks => at = next,
                Ok(_) => break,
                Err(error) => {
                    self.note(format!("{path}: from byte {} on: {error}", at * BLOCK as u64));
                    return Ok(());
                }
            }
            let end = self.store.next_hole(change.ino, at).unwrap_or(at + 1).clamp(at + 1, blocks.min(at + PIECE));
            if !self.copy(change, file, at..end, &mut buffer)? {
                for block in at..end {
                    lost += u64::from(!self.copy(change, file, block..block + 1, &mut buffer)?);
                }
            }
            at = end;
        }
        if lost > 0 {
            self.note(format!("{path}: {lost} blocks of 4096 bytes are lost"));
        }
        Ok(())
    }

    /// Copy these blocks; false: they cannot be read.
    fn copy(
        &mut self,
        change: &Change,
        file: &File,
        blocks: std::ops::Range<u64>,
        buffer: &mut [u8],
    ) -> io::Result<bool> {
        let from = blocks.start * BLOCK as u64;
        let bytes = &mut buffer[..((blocks.end * BLOCK as u64).min(change.inode.size) - from) as usize];
        if self.store.read_file(change.ino, from, bytes).is_err() {
            return Ok(false);
        }
        file.write_all_at(bytes, from)?;
        self.report.bytes += bytes.len() as u64;
        Ok(true)
    }

    /// Owner, mode, extended attributes and times, as far as may be.
    fn dress(&mut self, change: &Change, file: &OwnedFd) {
        let inode = &change.inode;
        let owned = rustix::fs::fchown(file, Some(Uid::from_raw(inode.uid)), Some(Gid::from_raw(inode.gid)));
        // Rights of one owner are not given to another.
        let bits = if owned.is_ok() { 0o7777 } else { 0o1777 };
        let mut kept = vec![owned, rustix::fs::fchmod(file, Mode::from_raw_mode(inode.mode & bits))];
        let listed = self.names.listxattr(change.ino);
        let mut lost = u64::from(listed.is_err());
        for name in listed.unwrap_or_default().split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            match self.names.getxattr(change.ino, name) {
                Ok(value) => kept.push(rustix::fs::fsetxattr(file, name, &value, XattrFlags::empty())),
                Err(_) => lost += 1,
            }
        }
        kept.push(rustix::fs::futimens(file, &times(inode)));
        self.report.attributes_lost += lost + kept.iter().filter(|result| result.is_err()).count() as u64;
    }

    /// The same of what is not opened. The mode of a link is nobody's.
    fn dress_by_name(&mut self, inode: &Inode, folder: &OwnedFd, name: &[u8]) {
        let is_link = FileType::from_raw_mode(inode.mode) == FileType::Symlink;
        let (uid, gid) = (Uid::from_raw(inode.uid), Gid::from_raw(inode.gid));
        let mut kept = vec![rustix::fs::chownat(folder, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)];
        if !is_link {
            let mode = Mode::from_raw_mode(inode.mode & 0o1777);
            kept.push(rustix::fs::chmodat(folder, name, mode, AtFlags::empty()));
        }
        kept.push(rustix::fs::utimensat(folder, name, &times(inode), AtFlags::SYMLINK_NOFOLLOW));
        self.report.attributes_lost += kept.iter().filter(|result| result.is_err()).count() as u64;
    }
}

fn times(inode: &Inode) -> Timestamps {
    let of = |time: Time| Timespec { tv_sec: time.sec, tv_nsec: time.nsec.into() };
    Timestamps { last_access: of(inode.atime), last_modification: of(inode.mtime) }
}
