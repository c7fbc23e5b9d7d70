//! stablefs: a mirrored filesystem in user space that is stable memory.
//!
//! *Guarantees*: see `docs/SEMANTICS.md`. *Assumes*: one fault at a time strikes a block (`docs/DESIGN.md`).
//! *Fails when*: both copies of a block are damaged: that block alone, with a clear error.
//! *Order*: a request goes down through the layers once and returns once.
//! *Not here*: anything but the map:
//!
//! ```text
//! drill         breaks scratch volumes for real, with those commands
//! cli, daemon   commands, the process that serves a mount, its control socket
//! fuse, mount   requests of the kernel <-> one call of fs
//! fs            names, inodes, bytes; semantic locks; one skeleton for every change
//! volume        paths in, a running store out; scrub, replace, fsck, status
//! store         items and file data; delta, log, transaction groups, space
//! disk          the mirror: careful read and write, repair, health, deadlines; backings; simulated disks
//! format        on-disk structures, pure functions
//! ```
pub mod format;

pub mod cli;
pub mod control;
pub mod daemon;
pub mod disk;
pub mod drill;
pub mod error;
pub mod fs;
pub mod fuse;
pub mod mount;
pub mod simulate;
pub mod store;
pub mod sync;
pub mod volume;
pub mod world;
