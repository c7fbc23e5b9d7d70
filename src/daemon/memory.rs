//! The allocator's settings for a process that moves gigabytes through buffers of a few sizes.
//!
//! *Guarantees*: large buffers go back to the system when they are freed. *Assumes*: called before threads start.
//! *Fails when*: never; on another C library than glibc nothing is done. *Order*: none.
//! *Not here*: bounds on what is held at once (`store`, `fuse::lanes`).
//!
//! glibc raises the size from which it maps buffers one by one up to 32 MiB as they are freed, and then keeps them in
//! arenas of each thread: a gigabyte written left 600 to 900 MiB resident here, of which 90 were in use.
#![allow(unsafe_code)]

/// Bytes from which a buffer is mapped by itself; naming it switches the raising off.
const MAPPED_FROM: i32 = 64 * 1024;
/// Arenas at most: fewer leave fewer half-empty ones behind.
const ARENAS_MAX: i32 = 4;

/// Set it all.
pub(super) fn settle() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two numbers, and no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM);
        libc::mallopt(libc::M_ARENA_MAX, ARENAS_MAX);
    }
}
