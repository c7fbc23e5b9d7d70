//! A descriptor table of its own for a replica's I/O threads (trap 1).
//!
//! *Guarantees*: after [`isolate`] the calling thread, and threads that it starts, share no descriptor with the rest
//! of the process; 0, 1 and 2 are `/dev/null`. So a thread that the kernel cannot end keeps nothing alive but its own
//! backing, and no pipe or terminal of whoever started the daemon stays open.
//! *Assumes*: called first on a new thread, which owns no descriptors. *Fails when*: the kernel refuses.
//! *Order*: before anything is opened. Descriptors must then be closed by the threads that share the table: a number
//! means something else elsewhere. For the same reason these threads never log.
//! *Not here*: threads.
#![allow(unsafe_code)]

use rustix::fs::{Mode, OFlags};
use std::io;
use std::time::Duration;

/// First descriptor number that the backing may get: a stray write to a low number must not hit a container.
pub(super) const DESCRIPTOR_MIN: i32 = 512;

/// Give this thread its own table with nothing in it but `/dev/null` at 0, 1 and 2.
pub fn isolate() -> io::Result<()> {
    // SAFETY: the table is copied, so no descriptor that anybody else holds changes.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FILES)? };
    // In this thread's own table only, and this thread holds no descriptor objects.
    close_all()?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

/// As [`isolate`], for a thread that starts programs of others: they get the usual umask, not the daemon's.
pub fn isolate_for_programs() -> io::Result<()> {
    isolate()?;
    // SAFETY: the table of directory and umask is copied; no memory is touched.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS)? };
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    Ok(())
}

/// Close every descriptor but 0, 1 and 2: what whoever started this process left open in it. Locks, pipes and disks of
/// theirs would be held for as long as it lives. To be called before this process has opened anything.
pub fn close_inherited() -> io::Result<()> {
    close_all()
}

fn close_all() -> io::Result<()> {
    // SAFETY: both callers own no descriptor objects with these numbers.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32) };
    if closed < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Run `work` on a thread with a table of its own, and wait for it for `patience`. What has not come back then goes on
/// by itself, and keeps nothing alive; the error is of kind `TimedOut`. It must not log.
pub fn apart<T: Send + 'static>(
    patience: Duration,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::Builder::new().name("stablefs-apart".into()).spawn(move || {
        // Without a table of its own it is no worse than on the caller's thread.
        let _ = isolate();
        let _ = sender.send(work());
    })?;
    receiver
        .recv_timeout(patience)
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {patience:?}"))))
}
