//! Filesystems of their own below a replica, and the calls that shut them down, freeze and thaw them.
//!
//! *Guarantees*: what is made lies in the scratch folder: image, mount point, loop device (which goes with its mount).
//! *Assumes*: root. *Fails when*: the tools or the kernel refuse; [`lacking`] says so before anything is begun.
//! *Order*: image, mkfs, mount. *Not here*: undoing it (`sweep`).
#![allow(unsafe_code)]

use rustix::ioctl::{Setter, ioctl, opcode};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// What lies on the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskKind {
    /// ext4
    Ext4,
    /// xfs
    Xfs,
}

impl DiskKind {
    /// Program that makes it, with what it needs to be quiet.
    pub fn maker(self) -> (&'static str, &'static [&'static str]) {
        match self {
            DiskKind::Ext4 => ("mkfs.ext4", &["-q", "-F"]),
            DiskKind::Xfs => ("mkfs.xfs", &["-q"]),
        }
    }
    /// As mount(8) names it.
    pub fn name(self) -> &'static str {
        match self {
            DiskKind::Ext4 => "ext4",
            DiskKind::Xfs => "xfs",
        }
    }
}

/// Folders that hold programs, beside those of `PATH`.
const SYSTEM_FOLDERS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// `PATH` with the folders of system programs.
pub fn search_path() -> std::ffi::OsString {
    let given = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&given).chain(SYSTEM_FOLDERS.map(PathBuf::from));
    std::env::join_paths(folders).unwrap_or(given)
}

fn is_there(program: &str) -> bool {
    std::env::split_paths(&search_path()).any(|folder| folder.join(program).exists())
}

/// Why no filesystem of its own can be made here.
pub fn lacking(kind: DiskKind) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root, for a filesystem of its own in a loop device".into());
    }
    if !Path::new("/dev/loop-control").exists() {
        return Some("this machine has no loop devices".into());
    }
    let missing = [kind.maker().0, "mount"].into_iter().find(|program| !is_there(program))?;
    Some(format!("{missing} is not installed"))
}

/// Shut the filesystem at `path` down without writing anything more: everything in it answers with errors from then on.
///
/// # Errors
/// It is neither ext4 nor xfs, or we are not root.
pub fn shut_down(path: &Path) -> io::Result<()> {
    /// `XFS_IOC_GOINGDOWN`, which is `EXT4_IOC_SHUTDOWN`, too.
    const SHUTDOWN: rustix::ioctl::Opcode = opcode::read::<u32>(b'X', 125);
    const WITHOUT_LOG: u32 = 2;
    let folder = File::open(path)?;
    // SAFETY: the kernel reads one u32, which Setter passes.
    unsafe { ioctl(&folder, Setter::<SHUTDOWN, u32>::new(WITHOUT_LOG)) }.map_err(Into::into)
}

/// Let nothing be written to the filesystem at `path`: who tries hangs.
///
/// # Errors
/// It cannot be frozen, or we are not root.
pub fn freeze(path: &Path) -> io::Result<()> {
    const FREEZE: rustix::ioctl::Opcode = opcode::read_write::<i32>(b'X', 119);
    let folder = File::open(path)?;
    // SAFETY: FIFREEZE takes no argument that is looked at; Setter passes a valid i32.
    unsafe { ioctl(&folder, Setter::<FREEZE, i32>::new(0)) }.map_err(Into::into)
}

/// Undo [`freeze`].
///
/// # Errors
/// It is not frozen.
pub fn thaw(path: &Path) -> io::Result<()> {
    const THAW: rustix::ioctl::Opcode = opcode::read_write::<i32>(b'X', 120);
    let folder = File::open(path)?;
    // SAFETY: FITHAW takes no argument that is looked at; Setter passes a valid i32.
    unsafe { ioctl(&folder, Setter::<THAW, i32>::new(0)) }.map_err(Into::into)
}
