//! Directories, regular files and block devices as backings; the only place that opens one.
//!
//! *Guarantees*: exclusive use: the lock lives on the description that does the I/O, so even a dead daemon's stuck
//! write still excludes a new one (trap 2). Every call on a backing that may hang runs in that replica's own threads.
//! *Assumes*: nobody else writes to the container past the lock (`Check` finds some of that, proofs the rest).
//! *Fails when*: [`OpenError`], one line that names the path.
//! *Order*: `opening` finds, locks and makes; `threads` runs requests on `container`; `inspecting` only looks.
//! *Not here*: labels' meaning, which replicas belong together (`store`).
//!
//! I/O is direct where the filesystem below can do that, else buffered, with `fdatasync`, and with the cache dropped
//! before a block is read to be proven.

mod container;
mod holder;
mod inspecting;
mod isolate;
mod opening;
mod threads;

pub use holder::{ending_holder, say_ending};
pub use inspecting::inspect;
pub use isolate::{apart, close_inherited, isolate, isolate_for_programs};
pub use opening::directory_at;

use super::backing::{Backing, BackingKind, Directory};
use crate::format::Label;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Name of the container file in a directory.
pub const CONTAINER: &str = "stablefs.data";

/// How a backing is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Read and write, exclusively.
    Write,
    /// Read only; other readers are welcome, writers are not.
    ReadOnly,
}

/// How `format` and `replace` make a backing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CreateOptions {
    /// Length in blocks that a container or file gets, sparse; 0 leaves it empty to be grown.
    pub blocks: u64,
    /// Overwrite what is there, also foreign data.
    pub replace: bool,
    /// Make a container that is not there, in this very directory, and nowhere else.
    pub only_in: Option<Directory>,
}

/// Why a backing could not be opened. One line each, naming the path.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Nothing there.
    #[error("{0}: no such file or directory")]
    NotFound(PathBuf),
    /// A directory without a container.
    #[error("{0}: holds no stablefs.data: not a replica, or an emptied one")]
    Empty(PathBuf),
    /// A pipe, socket, character device.
    #[error("{0}: is not a directory, a regular file or a block device")]
    WrongKind(PathBuf),
    /// Locked by another process or another open of ours.
    #[error("{0}: is in use (mounted, or another stablefs command works on it)")]
    Busy(PathBuf),
    /// Not allowed.
    #[error("{0}: permission denied")]
    Permission(PathBuf),
    /// The filesystem that holds it is read-only.
    #[error("{0}: is on a read-only filesystem")]
    ReadOnly(PathBuf),
    /// No answer in 10 seconds.
    #[error("{0}: did not answer within 10 s")]
    Timeout(PathBuf),
    /// Holds something that is not ours.
    #[error("{path}: {what}")]
    Foreign {
        /// Path as given.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// Anything else.
    #[error("{path}: {source}")]
    Io {
        /// Path as given.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What stands at a path, found without locking it.
#[derive(Debug, Clone)]
pub struct Inspection {
    /// Absolute path without symbolic links.
    pub path: PathBuf,
    /// What it is.
    pub kind: BackingKind,
    /// Bytes: of the container (0 if there is none), the file, the device.
    pub size_bytes: u64,
    /// Bytes free in the filesystem that holds it; 0 for devices.
    pub free_bytes: u64,
    /// `st_dev` of the filesystem that holds it; for a block device the device itself.
    pub device: u64,
    /// Whether there is something to open: always for files and devices, for directories if the container is there.
    pub container: bool,
    /// The stablefs label, if one proves itself at block 0 (or its copy at 16).
    pub label: Option<Label>,
    /// What data that is not ours it holds, in words; `None` if it is free to be used.
    pub foreign: Option<String>,
}

/// Open the backing at `path`, with its own I/O threads. With `create` it is made first: a container in an empty
/// directory, or a file or device that holds nothing (or anything, with `replace`).
pub fn open(path: &Path, mode: Mode, create: Option<CreateOptions>) -> Result<Arc<dyn Backing>, OpenError> {
    threads::open(path, mode, create, opening::Caching::DirectIfPossible)
}

#[cfg(test)]
mod tests;
