//! What the store can answer instead of doing what it was asked.
//!
//! *Guarantees*: every failure of the layers below arrives here as one of these. *Assumes*: nothing.
//! *Fails when*: never. *Order*: none. *Not here*: errno (the edge maps it).

use crate::disk::DiskError;
use crate::format::Corrupt;

/// Failure of a call to the store.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// No room for new data; deletes still work.
    #[error("no space left on the volume")]
    NoSpace,
    /// The volume is mounted for reading only.
    #[error("the volume is open for reading only")]
    ReadOnly,
    /// This block is damaged on every replica; others are not.
    #[error("{0}")]
    Lost(DiskError),
    /// Proven bytes that still break a rule: a bug or a hostile volume.
    #[error("block {addr}: {corrupt}")]
    Corrupt {
        /// Where it stood (0: in a log record or nowhere).
        addr: u64,
        /// The broken rule.
        corrupt: Corrupt,
    },
    /// Nothing can be made durable any more; stays so until the next mount.
    #[error("the volume takes no more changes: {0}")]
    Failed(String),
    /// The volume cannot be opened as asked; the text says what to do.
    #[error("{0}")]
    Refused(String),
}

impl StoreError {
    /// Whether it says that a block is lost or breaks a rule: that block alone, not the volume.
    pub fn is_damage(&self) -> bool {
        matches!(self, StoreError::Lost(_) | StoreError::Corrupt { .. })
    }
}

impl From<DiskError> for StoreError {
    fn from(error: DiskError) -> StoreError {
        match error {
            DiskError::Lost { .. } => StoreError::Lost(error),
            DiskError::Full { .. } => StoreError::NoSpace,
            DiskError::NoReplica(_) | DiskError::Replica { .. } => StoreError::Failed(error.to_string()),
        }
    }
}

impl From<Corrupt> for StoreError {
    fn from(corrupt: Corrupt) -> StoreError {
        StoreError::Corrupt { addr: 0, corrupt }
    }
}
