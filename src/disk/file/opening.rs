//! Opening a backing: finding out what stands at a path, locking it, making it.
//!
//! *Guarantees*: what is returned is locked on the very description that does the I/O; nothing is changed before the
//! lock is held. A path that is swapped while it is opened is refused or checked by identity later.
//! *Assumes*: runs in the replica's own I/O thread, since any call here may hang.
//! *Fails when*: [`OpenError`]. *Order*: look, open, lock, make, probe.
//! *Not here*: threads, timeouts (`threads`).

use super::container::{Container, Entry, Identity, Latch};
use super::isolate::DESCRIPTOR_MIN;
use super::{CONTAINER, CreateOptions, Inspection, Mode, OpenError, inspect};
use crate::disk::backing::{BackingKind, Directory};
use crate::format::BLOCK;
use parking_lot::Mutex;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, OFlags, ResolveFlags, SeekFrom, StatxFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// How long a lock may still be held by I/O threads that are just ending.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// The error for `path` as the user gave it.
pub(super) fn explain(path: &Path, source: impl Into<io::Error>) -> OpenError {
    let source = source.into();
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => OpenError::NotFound(path),
        io::ErrorKind::PermissionDenied => OpenError::Permission(path),
        io::ErrorKind::ReadOnlyFilesystem => OpenError::ReadOnly(path),
        io::ErrorKind::ResourceBusy => OpenError::Busy(path),
        _ => OpenError::Io { path, source },
    }
}

/// Whether direct I/O may be used; tests exercise the other way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caching {
    DirectIfPossible,
    #[cfg_attr(not(test), allow(dead_code))]
    Buffered,
}

pub(super) fn open_container(
    path: &Path,
    mode: Mode,
    create: Option<CreateOptions>,
    caching: Caching,
) -> Result<Container, OpenError> {
    let fail = |error: Errno| explain(path, error);
    let found = inspect(path)?;
    if let Some(create) = create {
        refuse_foreign(path, &found, create)?;
    }
    let (fd, entries, directory) = match found.kind {
        BackingKind::Directory => open_in_directory(path, &found.path, mode, create)?,
        _ => {
            let (fd, entries) = open_file(path, &found, mode)?;
            (fd, entries, None)
        }
    };
    // Away from the low numbers, where a stray write would look for a log file.
    let fd = rustix::io::fcntl_dupfd_cloexec(&fd, DESCRIPTOR_MIN).unwrap_or(fd);
    lock(path, &fd, mode)?;
    let stat = rustix::fs::fstat(&fd).map_err(fail)?;
    let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    if regular && let Some(create) = create {
        rustix::fs::ftruncate(&fd, 0).map_err(fail)?;
        rustix::fs::ftruncate(&fd, create.blocks * BLOCK as u64).map_err(fail)?;
        rustix::fs::fsync(&fd).map_err(fail)?;
    }
    let length = if regular {
        rustix::fs::fstat(&fd).map_err(fail)?.st_size as u64
    } else {
        rustix::fs::seek(&fd, SeekFrom::End(0)).map_err(fail)?
    };
    let mut container = Container {
        fd,
        kind: found.kind,
        direct: false,
        read_only: mode == Mode::ReadOnly,
        length,
        entries,
        length_min: AtomicU64::new(length),
        flushing: Latch::default(),
        growing: Mutex::new(()),
        directory,
        deleted: Arc::default(),
    };
    if caching == Caching::DirectIfPossible {
        container.direct = try_direct(&container);
    }
    Ok(container)
}

fn refuse_foreign(path: &Path, found: &Inspection, create: CreateOptions) -> Result<(), OpenError> {
    if create.replace {
        return Ok(());
    }
    let what = match (&found.label, &found.foreign) {
        (Some(_), _) => "already holds a replica of a stablefs volume".to_owned(),
        (None, Some(foreign)) => foreign.clone(),
        (None, None) => return Ok(()),
    };
    Err(OpenError::Foreign { path: path.to_owned(), what })
}

fn access(mode: Mode) -> OFlags {
    let access = if mode == Mode::Write { OFlags::RDWR } else { OFlags::RDONLY };
    access | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK
}

/// The directory that holds `path`, if it has one, as an entry to watch.
fn watch(path: &Path, what: &'static str, expected: Identity) -> Result<Option<Entry>, Errno> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = rustix::fs::open(parent, flags, rustix::fs::Mode::empty())?;
    Ok(Some(Entry { parent, name: name.to_owned(), what, expected }))
}

fn open_in_directory(
    path: &Path,
    canonical: &Path,
    mode: Mode,
    create: Option<CreateOptions>,
) -> Result<(OwnedFd, Vec<Entry>, Option<Directory>), OpenError> {
    let fail = |error: Errno| explain(path, error);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(CWD, canonical, flags, rustix::fs::Mode::empty()).map_err(fail)?;
    let outer = Identity::of(&rustix::fs::fstat(&directory).map_err(fail)?);
    let mut entries: Vec<Entry> = watch(canonical, "directory", outer).map_err(fail)?.into_iter().collect();
    let here = describe(directory.as_fd()).map_err(fail)?;
    let only_in = create.and_then(|create| create.only_in);
    if only_in.is_some_and(|expected| expected != here) {
        return Err(OpenError::Foreign { path: path.to_owned(), what: "is another directory than before".into() });
    }
    let fd = match open_beneath(directory.as_fd(), access(mode)) {
        Ok(_) if only_in.is_some() => {
            return Err(OpenError::Foreign { path: path.to_owned(), what: "holds a container again".into() });
        }
        Err(Errno::NOENT) if create.is_some() => {
            let flags = access(mode) | OFlags::CREATE | OFlags::EXCL;
            let fd = rustix::fs::openat(&directory, CONTAINER, flags, 0o600.into()).map_err(fail)?;
            rustix::fs::fsync(&directory).map_err(fail)?;
            fd
        }
        Err(Errno::NOENT) => return Err(OpenError::Empty(path.to_owned())),
        Err(Errno::LOOP | Errno::XDEV) => return Err(OpenError::WrongKind(path.join(CONTAINER))),
        other => other.map_err(fail)?,
    };
    let stat = rustix::fs::fstat(&fd).map_err(fail)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(OpenError::WrongKind(path.join(CONTAINER)));
    }
    let expected = Identity::of(&stat);
    entries.push(Entry { parent: directory, name: CONTAINER.into(), what: "container", expected });
    Ok((fd, entries, Some(here)))
}

/// What tells the directory at `path` from every other one. May hang with the disk.
///
/// # Errors
/// It cannot be opened, or is none.
pub fn directory_at(path: &Path) -> io::Result<Directory> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(describe(rustix::fs::open(path, flags, rustix::fs::Mode::empty())?.as_fd())?)
}

fn describe(directory: rustix::fd::BorrowedFd<'_>) -> Result<Directory, Errno> {
    let stat = rustix::fs::fstat(directory)?;
    let told = rustix::fs::statx(directory, "", AtFlags::EMPTY_PATH, StatxFlags::BTIME).ok();
    let told = told.filter(|told| told.stx_mask & StatxFlags::BTIME.bits() != 0);
    let born = told.map(|told| (told.stx_btime.tv_sec, told.stx_btime.tv_nsec));
    Ok(Directory { device: stat.st_dev, inode: stat.st_ino, born })
}

/// The container below `directory`, and not something mounted over it (trap 20).
fn open_beneath(directory: rustix::fd::BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
    match rustix::fs::openat2(directory, OsStr::new(CONTAINER), flags, rustix::fs::Mode::empty(), resolve) {
        // Forbidden by some sandboxes.
        Err(Errno::NOSYS | Errno::PERM) => rustix::fs::openat(directory, CONTAINER, flags, rustix::fs::Mode::empty()),
        other => other,
    }
}

fn open_file(path: &Path, found: &Inspection, mode: Mode) -> Result<(OwnedFd, Vec<Entry>), OpenError> {
    let fail = |error: Errno| explain(path, error);
    let mut flags = access(mode);
    if found.kind == BackingKind::Device && mode == Mode::Write {
        // Without O_CREAT this claims a block device: no mount, no RAID, no second claim.
        flags |= OFlags::EXCL;
    }
    let fd = rustix::fs::openat(CWD, &found.path, flags, rustix::fs::Mode::empty()).map_err(fail)?;
    let stat = rustix::fs::fstat(&fd).map_err(fail)?;
    if !matches!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile | FileType::BlockDevice) {
        return Err(OpenError::WrongKind(path.to_owned()));
    }
    let what = found.kind.name();
    let entries = watch(&found.path, what, Identity::of(&stat)).map_err(fail)?.into_iter().collect();
    Ok((fd, entries))
}

fn lock(path: &Path, fd: &OwnedFd, mode: Mode) -> Result<(), OpenError> {
    let operation = match mode {
        Mode::Write => FlockOperation::NonBlockingLockExclusive,
        Mode::ReadOnly => FlockOperation::NonBlockingLockShared,
    };
    for _ in 0..LOCK_TRIES {
        match rustix::fs::flock(fd, operation) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) => std::thread::sleep(LOCK_PAUSE),
            Err(error) => return Err(explain(path, error)),
        }
    }
    Err(OpenError::Busy(path.to_owned()))
}

/// Switch the page cache off if the filesystem below can do without; proven by a read.
fn try_direct(container: &Container) -> bool {
    let Ok(flags) = rustix::fs::fcntl_getfl(&container.fd) else { return false };
    if rustix::fs::fcntl_setfl(&container.fd, flags | OFlags::DIRECT).is_err() {
        return false;
    }
    let probe = container.length < BLOCK as u64 || container.read(0, 1).is_ok();
    if !probe {
        // Not direct then; if reading fails for another reason the first reader is told.
        let _ = rustix::fs::fcntl_setfl(&container.fd, flags);
    }
    probe
}
