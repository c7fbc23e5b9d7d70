//! The mirror and what it stands on. (Contract; the implementation lives in the files below.)
pub mod backing;

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
    /// No replica takes writes any more.
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
