//! The mirror and what it stands on: the only layer that moves bytes to and from backings.
//!
//! *Guarantees*: no unverified byte leaves [`Mirror::read`]; damage found on one replica is repaired from another
//! one; a write is on every replica that [`Mirror::members`] still calls in sync when the call returns.
//! *Assumes*: a second fault does not strike the same block before the first is repaired. Addresses stay pinned
//! (not reused) while a read of them is under way.
//! *Fails when*: [`DiskError`]; one replica's failure is none of the caller's, unless it is the last.
//! *Order*: [`Mirror`] says which writes a flush covers. Files below: `mirror` uses `backing`; `file` and `sim`
//! implement it; `buffer` is memory.
//! *Not here*: what blocks mean, durable membership, which replica is newest (`store`).

pub mod backing;
pub mod buffer;
pub mod file;
pub mod mirror;
pub mod sim;

pub use backing::{Backing, BackingFacts, BackingKind, Done, Facts, Op, Ticket};
pub use buffer::{Buf, Slice};
pub use file::{CreateOptions, Inspection, Mode, OpenError, inspect, open};
pub use mirror::{
    Combination, Damage, Guard, Happened, Left, Members, Mirror, Pace, Proof, Recipe, ReplicaCounters, ReplicaHealth,
    ReplicaState, Standing, What,
};

use crate::format::{Addr, Uuid};

/// Why the mirror could not do what was asked.
#[derive(Debug, thiserror::Error, Clone)]
pub enum DiskError {
    /// No replica proves this block: the block is lost, others are not.
    #[error("block {addr} is damaged on every replica ({detail})")]
    Lost {
        /// The block.
        addr: Addr,
        /// What was found on each replica.
        detail: String,
    },
    /// No replica takes writes any more. Latched: every later write and flush fails too.
    #[error("no replica is left that takes writes: {0}")]
    NoReplica(String),
    /// The backing filesystem of a replica is full; nothing is wrong with the replica.
    #[error("replica {replica} has no room: {detail}")]
    Full {
        /// Index of the replica.
        replica: usize,
        /// What the backing said.
        detail: String,
    },
    /// One replica's raw I/O failed (only from the raw calls).
    #[error("replica {replica}: {detail}")]
    Replica {
        /// Index of the replica.
        replica: usize,
        /// What the backing said.
        detail: String,
    },
}

/// Stable identity and place of a replica, as status shows it.
#[derive(Debug, Clone)]
pub struct ReplicaName {
    /// Identity from the label.
    pub uuid: Uuid,
    /// Path as the user gave it, made absolute.
    pub path: String,
}
