//! Errors at the edges of the program: errno for the kernel, exit codes for the shell.
//!
//! *Guarantees*: one exhaustive mapping of each; no other file invents an errno for an [`FsError`].
//! *Assumes*: nothing. *Fails when*: never. *Order*: none. *Not here*: texts (they are with the enums).

use crate::fs::FsError;
use crate::store::StoreError;

/// Linux errno of a failed filesystem call.
pub fn errno(error: &FsError) -> i32 {
    match error {
        FsError::NotFound => libc::ENOENT,
        FsError::Exists => libc::EEXIST,
        FsError::NotDirectory => libc::ENOTDIR,
        FsError::IsDirectory => libc::EISDIR,
        FsError::NotEmpty => libc::ENOTEMPTY,
        FsError::NameTooLong => libc::ENAMETOOLONG,
        FsError::Invalid => libc::EINVAL,
        FsError::NotPermitted => libc::EPERM,
        FsError::Stale => libc::ESTALE,
        FsError::TooManyLinks => libc::EMLINK,
        FsError::FileTooLarge => libc::EFBIG,
        FsError::NoAttribute => libc::ENODATA,
        FsError::TooBig => libc::E2BIG,
        FsError::NoSuchOffset => libc::ENXIO,
        FsError::Unsupported => libc::EOPNOTSUPP,
        FsError::NotFile => libc::ENODEV,
        FsError::DirectoryFull => libc::ENOSPC,
        FsError::SyncFailed(_) => libc::EIO,
        FsError::Store(error) => store_errno(error),
    }
}

fn store_errno(error: &StoreError) -> i32 {
    match error {
        StoreError::NoSpace => libc::ENOSPC,
        StoreError::ReadOnly => libc::EROFS,
        StoreError::Lost(_) | StoreError::Corrupt { .. } | StoreError::Failed(_) => libc::EIO,
        StoreError::Refused(_) => libc::EINVAL,
    }
}

/// Exit codes of the commands, as in mount(8).
pub mod exit {
    /// Done.
    pub const OK: u8 = 0;
    /// Wrong usage, or refused before anything was changed.
    pub const USAGE: u8 = 1;
    /// The system or a replica failed.
    pub const SYSTEM: u8 = 2;
    /// The volume could not be mounted.
    pub const MOUNT: u8 = 32;
}

/// Exit code of a command that failed with `error`.
pub fn exit_code(error: &StoreError) -> u8 {
    match error {
        StoreError::Refused(_) | StoreError::ReadOnly | StoreError::NoSpace => exit::USAGE,
        StoreError::Lost(_) | StoreError::Corrupt { .. } | StoreError::Failed(_) => exit::SYSTEM,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_store_keep_their_meaning() {
        assert_eq!(errno(&FsError::from(StoreError::NoSpace)), libc::ENOSPC);
        assert_eq!(errno(&FsError::from(StoreError::ReadOnly)), libc::EROFS);
        assert_eq!(errno(&FsError::from(StoreError::Failed("x".into()))), libc::EIO);
        assert_eq!(exit_code(&StoreError::Refused("x".into())), exit::USAGE);
    }
}
