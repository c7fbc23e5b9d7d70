//! A descriptor table of its own for a replica's I/O threads (trap 1).
//!
//! *Guarantees*: after [`isolate`] the calling thread, and threads that it starts, share no descriptor with the rest
//! of the process but 0, 1 and 2. So a thread that the kernel cannot end keeps nothing alive but its own backing.
//! *Assumes*: called first on a new thread, which owns no descriptors. *Fails when*: the kernel refuses.
//! *Order*: before anything is opened. Descriptors must then be closed by the threads that share the table: a number
//! means something else elsewhere. For the same reason these threads never log.
//! *Not here*: threads.
#![allow(unsafe_code)]

use std::io;

/// First descriptor number that the backing may get: a stray write to a low number must not hit a container.
pub(super) const DESCRIPTOR_MIN: i32 = 512;

/// Give this thread its own table with only 0, 1 and 2 in it.
pub(super) fn isolate() -> io::Result<()> {
    // SAFETY: the table is copied, so no descriptor that anybody else holds changes.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FILES)? };
    // SAFETY: closes numbers in this thread's own table only; this thread holds no descriptor objects.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32) };
    if closed < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
