//! What the filesystem can answer instead of doing what it was asked.
//!
//! *Guarantees*: every failure of `fs` and of the layers below arrives at the edge as one of these.
//! *Assumes*: nothing. *Fails when*: never. *Order*: none. *Not here*: errno (`crate::error`).

use crate::format::Corrupt;
use crate::store::StoreError;

/// Failure of a filesystem call. Unless said otherwise nothing was changed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FsError {
    /// No such name.
    #[error("no such file or directory")]
    NotFound,
    /// The name is taken.
    #[error("file exists")]
    Exists,
    /// A directory was needed.
    #[error("not a directory")]
    NotDirectory,
    /// Something other than a directory was needed.
    #[error("is a directory")]
    IsDirectory,
    /// The directory still has entries.
    #[error("directory not empty")]
    NotEmpty,
    /// A name of more than 255 bytes, or a symbolic link of more than 4095.
    #[error("file name too long")]
    NameTooLong,
    /// An argument makes no sense.
    #[error("invalid argument")]
    Invalid,
    /// Not allowed on this kind of object.
    #[error("operation not permitted")]
    NotPermitted,
    /// A default ACL is for directories.
    #[error("permission denied")]
    Denied,
    /// The inode number stands for nothing any more.
    #[error("stale file handle")]
    Stale,
    /// The inode has as many links as it can have.
    #[error("too many links")]
    TooManyLinks,
    /// Past the largest possible offset.
    #[error("file too large")]
    FileTooLarge,
    /// No such extended attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// A value larger than its limit.
    #[error("value too large")]
    TooBig,
    /// No data or hole at or after this offset.
    #[error("no such offset")]
    NoSuchOffset,
    /// Not supported here.
    #[error("operation not supported")]
    Unsupported,
    /// Only regular files can do this.
    #[error("not a regular file")]
    NotFile,
    /// 256 names of one directory share one hash: no place for one more.
    #[error("no room for this name in its directory")]
    DirectoryFull,
    /// An earlier fsync of this inode failed, and what it lost is not known to be safe.
    #[error("an earlier fsync failed: {0}")]
    SyncFailed(String),
    /// The store says no.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<Corrupt> for FsError {
    fn from(corrupt: Corrupt) -> FsError {
        FsError::Store(StoreError::from(corrupt))
    }
}
