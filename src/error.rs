//! Errors at the edge towards the kernel.
//!
//! *Guarantees*: one exhaustive mapping; no other file invents an errno for an [`FsError`].
//! *Assumes*: nothing. *Fails when*: never. *Order*: none. *Not here*: texts (they are with the enums), exit codes (`cli`).

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
        FsError::Denied => libc::EACCES,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_store_keep_their_meaning() {
        assert_eq!(errno(&FsError::from(StoreError::NoSpace)), libc::ENOSPC);
        assert_eq!(errno(&FsError::from(StoreError::ReadOnly)), libc::EROFS);
        assert_eq!(errno(&FsError::from(StoreError::Failed("x".into()))), libc::EIO);
    }
}
