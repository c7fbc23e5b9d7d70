//! Locks, atomics, channels, threads and the monotonic clock of the core: the one place that says whose they are.
//!
//! *Guarantees*: without the feature `shuttle` these are parking_lot's and std's own types, at no cost. With it (tests
//! of thread interleavings only, `tests/interleave.rs`) the same names stand for types whose every operation is a
//! scheduling point, so that one seed gives one interleaving of the very same code (`explored`).
//! *Assumes*: the core, `format` to `volume` and `simulate`, takes these from nowhere else (`tests/tidy.rs`); `Arc` and
//! `Weak` are std's own in both. What touches the machine (`disk::file`, `fuse`, `daemon`, `control`, `cli`) does not run
//! under exploration, and stays with parking_lot and std.
//! *Fails when*: never. *Order*: none.
//! *Not here*: the scheduler that explores (`tests/interleave`); weak memory: explored atomics are all sequentially
//! consistent, whatever ordering they are asked for.

#[cfg(feature = "shuttle")]
mod explored;

#[cfg(feature = "shuttle")]
pub use explored::{
    Condvar, Instant, Mutex, MutexGuard, RandomState, RwLock, RwLockWriteGuard, asleep, atomic, mpsc, restart, thread,
    thread_local,
};
#[cfg(not(feature = "shuttle"))]
pub use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockWriteGuard};
#[cfg(not(feature = "shuttle"))]
pub use std::{
    hash::RandomState,
    sync::{atomic, mpsc},
    thread, thread_local,
    time::Instant,
};
