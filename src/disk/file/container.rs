//! An open backing and the system calls on it. Lives in the I/O threads only.
//!
//! *Guarantees*: reads and writes are whole or an error; a read beyond the end of what can grow gives zeros; after a
//! failed `fdatasync` every later flush fails, also when the failed one was made for a proof.
//! *Assumes*: the descriptor holds the lock.
//! *Fails when*: the kernel says so, unchanged; `Check` finds another file, a shorter one or none.
//! *Order*: none.
//! *Not here*: opening (`open`), threads (`threads`).

use crate::disk::backing::{BackingKind, Directory, Done, Facts, Op};
use crate::disk::buffer::{Buf, Slice};
use crate::format::{Addr, BLOCK};
use parking_lot::Mutex;
use rustix::fd::OwnedFd;
use rustix::fs::{Advice, AtFlags, FallocateFlags, FileType, SeekFrom, Stat};
use rustix::io::Errno;
use std::ffi::OsString;
use std::io;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Most parts of one vectored write (IOV_MAX).
const PARTS_MAX: usize = 1024;

/// A directory entry that must go on naming the same thing.
pub(super) struct Entry {
    /// The directory that holds it, opened before anything was mounted over it (trap 20).
    pub parent: OwnedFd,
    pub name: OsString,
    pub what: &'static str,
    pub expected: Identity,
}

/// What tells one file from another: device and inode, or the device that a node stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Identity {
    Inode(u64, u64),
    Device(u64),
}

impl Identity {
    pub fn of(stat: &Stat) -> Identity {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::BlockDevice => Identity::Device(stat.st_rdev),
            _ => Identity::Inode(stat.st_dev, stat.st_ino),
        }
    }
}

/// Flushes one after the other: the kernel tells only one of two that run at once that writing failed, and the other
/// one must not answer before it knows.
#[derive(Default)]
pub(super) struct Latch(Mutex<bool>);

impl Latch {
    /// Run `flush`; after one that failed, all fail.
    pub fn run(&self, flush: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut broken = self.0.lock();
        if *broken {
            return Err(io::Error::other("an earlier flush failed"));
        }
        let result = flush();
        *broken = result.is_err();
        result
    }
}

pub(super) struct Container {
    pub fd: OwnedFd,
    pub kind: BackingKind,
    pub direct: bool,
    pub read_only: bool,
    /// Length in bytes when it was opened.
    pub length: u64,
    pub entries: Vec<Entry>,
    /// Bytes that the container must have, because they were there, written or allocated.
    pub length_min: AtomicU64,
    pub flushing: Latch,
    pub growing: Mutex<()>,
    /// The directory that holds it, if it is one's container.
    pub directory: Option<Directory>,
    /// It was deleted from there; shared with who has no descriptors.
    pub deleted: Arc<AtomicBool>,
}

fn range(addr: Addr, blocks: u64) -> io::Result<(u64, u64)> {
    let beyond = || io::Error::new(io::ErrorKind::InvalidInput, "beyond the largest offset");
    let start = addr.checked_mul(BLOCK as u64).ok_or_else(beyond)?;
    let len = blocks.checked_mul(BLOCK as u64).ok_or_else(beyond)?;
    start.checked_add(len).filter(|end| *end <= i64::MAX as u64).ok_or_else(beyond)?;
    Ok((start, len))
}

fn changed(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, what)
}

impl Container {
    pub fn run(&self, op: Op) -> io::Result<Done> {
        match op {
            Op::Read { addr, blocks } => self.read(addr, blocks).map(Done::Data),
            Op::ReadMedium { addr, blocks } => self.read_medium(addr, blocks).map(Done::Data),
            Op::Write { addr, data } => self.write(addr, &data).map(|()| Done::Nothing),
            Op::Flush => self.flush().map(|()| Done::Nothing),
            Op::Allocate { addr, blocks } => self.allocate(addr, blocks).map(|()| Done::Nothing),
            Op::Punch { addr, blocks } => self.punch(addr, blocks).map(|()| Done::Nothing),
            Op::Check => self.check().map(Done::Facts),
        }
    }

    fn grows(&self) -> bool {
        self.kind != BackingKind::Device
    }

    fn writable(&self) -> io::Result<()> {
        if self.read_only { Err(Errno::ROFS.into()) } else { Ok(()) }
    }

    pub fn read(&self, addr: Addr, blocks: u32) -> io::Result<Buf> {
        let (start, len) = range(addr, u64::from(blocks))?;
        let mut buf = Buf::zeroed(len as usize);
        let mut at = 0;
        while at < buf.len() {
            let got = match rustix::io::pread(&self.fd, &mut buf[at..], start + at as u64) {
                Ok(got) => got,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            at += got;
            // The end; a length that is no multiple of a block also ends here, as O_DIRECT could not go on from it.
            if got == 0 || at % BLOCK != 0 {
                if self.grows() {
                    break;
                }
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "beyond the end of the device"));
            }
        }
        Ok(buf)
    }

    fn read_medium(&self, addr: Addr, blocks: u32) -> io::Result<Buf> {
        if !self.direct {
            let (start, len) = range(addr, u64::from(blocks))?;
            if !self.read_only {
                // Only clean pages can be dropped. A failure is remembered for the next flush, not swallowed.
                self.sync()?;
            }
            rustix::fs::fadvise(&self.fd, start, NonZeroU64::new(len), Advice::DontNeed)?;
        }
        self.read(addr, blocks)
    }

    fn write(&self, addr: Addr, data: &[Slice]) -> io::Result<()> {
        self.writable()?;
        if self.grows() {
            // Before a write behind the end makes a container that was cut look as long as it was.
            self.check_length()?;
        }
        let (start, len) = range(addr, data.iter().map(Slice::blocks).sum())?;
        let (mut part, mut offset, mut at) = (0, 0, start);
        while at < start + len {
            let parts: Vec<io::IoSlice> = data[part..]
                .iter()
                .take(PARTS_MAX)
                .enumerate()
                .map(|(i, slice)| io::IoSlice::new(if i == 0 { &slice[offset..] } else { slice }))
                .collect();
            let put = match rustix::io::pwritev(&self.fd, &parts, at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(put) => put,
                Err(Errno::INTR) => continue,
                // What the kernel says behind the end of a device, and of a thin one that is full.
                Err(Errno::NOSPC) if !self.grows() => {
                    self.check_length()?;
                    return Err(Errno::NOSPC.into());
                }
                Err(error) => return Err(error.into()),
            };
            at += put as u64;
            offset += put;
            while part < data.len() && offset >= data[part].len() {
                offset -= data[part].len();
                part += 1;
            }
        }
        self.length_min.fetch_max(start + len, Ordering::Relaxed);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.flushing.run(|| rustix::fs::fdatasync(&self.fd).map_err(Into::into))
    }

    fn flush(&self) -> io::Result<()> {
        self.writable()?;
        self.sync()
    }

    fn allocate(&self, addr: Addr, blocks: u64) -> io::Result<()> {
        self.writable()?;
        let (start, len) = range(addr, blocks)?;
        if !self.grows() {
            return if start + len <= self.length { Ok(()) } else { Err(Errno::NOSPC.into()) };
        }
        if len == 0 {
            return Ok(());
        }
        loop {
            match rustix::fs::fallocate(&self.fd, FallocateFlags::empty(), start, len) {
                Ok(()) => break,
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                    // No promise of space then, but at least of length.
                    let _alone = self.growing.lock();
                    if (rustix::fs::fstat(&self.fd)?.st_size as u64) < start + len {
                        rustix::fs::ftruncate(&self.fd, start + len)?;
                    }
                    break;
                }
                // The filesystem below cannot hold a file this long.
                Err(Errno::FBIG) => return Err(io::Error::new(io::ErrorKind::StorageFull, Errno::FBIG)),
                Err(error) => return Err(error.into()),
            }
        }
        self.length_min.fetch_max(start + len, Ordering::Relaxed);
        Ok(())
    }

    fn punch(&self, addr: Addr, blocks: u64) -> io::Result<()> {
        self.writable()?;
        let (start, len) = range(addr, blocks)?;
        if !self.grows() || len == 0 {
            return Ok(());
        }
        match rustix::fs::fallocate(&self.fd, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, start, len) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn check_length(&self) -> io::Result<u64> {
        // In this order: another thread may make it longer in between.
        let length_min = self.length_min.load(Ordering::Acquire);
        let length = match self.grows() {
            true => rustix::fs::fstat(&self.fd)?.st_size as u64,
            false => rustix::fs::seek(&self.fd, SeekFrom::End(0))?,
        };
        if length < length_min {
            return Err(changed(format!("the container shrank from at least {length_min} to {length} bytes")));
        }
        Ok(length)
    }

    fn check(&self) -> io::Result<Facts> {
        for entry in &self.entries {
            let named = match rustix::fs::statat(&entry.parent, &entry.name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT | Errno::NOTDIR) => {
                    // The directory was checked before.
                    if entry.what == "container" && rustix::fs::fstat(&self.fd)?.st_nlink == 0 {
                        self.deleted.store(true, Ordering::Release);
                    }
                    return Err(changed(format!("the {} {:?} has vanished", entry.what, entry.name)));
                }
                Err(error) => return Err(error.into()),
            };
            if Identity::of(&named) != entry.expected {
                return Err(changed(format!("the {} {:?} is another one now", entry.what, entry.name)));
            }
        }
        let stat = rustix::fs::fstat(&self.fd)?;
        if stat.st_nlink == 0 && self.grows() {
            return Err(changed("the container was deleted".into()));
        }
        let length = self.check_length()?;
        let bytes_free_below = if self.grows() {
            let below = rustix::fs::fstatvfs(&self.fd)?;
            below.f_bavail.saturating_mul(below.f_frsize)
        } else {
            u64::MAX
        };
        Ok(Facts { bytes_free_below, length, direct: self.direct })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    /// Of two flushes at once the kernel tells one that writing failed, and the other one that all is well.
    #[test]
    fn the_other_one_of_two_flushes_at_once_is_told_too() {
        let latch = Latch::default();
        let (entered, inside) = channel();
        let (other_done, wait) = channel();
        std::thread::scope(|scope| {
            let latch = &latch;
            let first = scope.spawn(move || {
                latch.run(|| {
                    entered.send(()).unwrap();
                    // The other one, if nothing holds it up, is through by then.
                    let _ = wait.recv_timeout(Duration::from_millis(300));
                    Err(Errno::IO.into())
                })
            });
            inside.recv().unwrap();
            let second = latch.run(|| Ok(()));
            let _ = other_done.send(());
            assert!(first.join().unwrap().is_err());
            assert!(second.is_err(), "acknowledged what may be lost");
        });
    }
}
