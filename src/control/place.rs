//! Where the control socket of a mount stands.
//!
//! *Guarantees*: a socket is used only in a directory that belongs to the owner of the mount, is no link, and lets nobody
//! else in. *Assumes*: device numbers of mounted filesystems are unique on a machine.
//! *Fails when*: somebody else made the directory first. *Order*: make, then look at what is there.
//! *Not here*: the protocol (`control`).
//!
//! | mounted by | directory |
//! |---|---|
//! | root | `/run/stablefs` |
//! | a user | `$XDG_RUNTIME_DIR/stablefs`, else `/run/user/UID/stablefs`, else `/tmp/stablefs-UID` |
//!
//! The name is the device of the mount: `0-57.sock`.

use crate::mount::table::Entry;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Directories that the daemon of user `uid` may use, best first.
fn candidates(uid: u32) -> Vec<PathBuf> {
    if uid == 0 {
        return vec!["/run/stablefs".into()];
    }
    let mut places = Vec::new();
    if rustix::process::getuid().as_raw() == uid
        && let Some(runtime) = std::env::var_os("XDG_RUNTIME_DIR").filter(|value| Path::new(value).is_absolute())
    {
        places.push(Path::new(&runtime).join("stablefs"));
    }
    places.push(format!("/run/user/{uid}/stablefs").into());
    places.push(format!("/tmp/stablefs-{uid}").into());
    places
}

/// Whether `directory` is one, belongs to `uid` and is closed to others.
fn is_private(directory: &Path, uid: u32) -> bool {
    std::fs::symlink_metadata(directory)
        .is_ok_and(|found| found.is_dir() && found.uid() == uid && found.mode() & 0o077 == 0)
}

/// Make the directory for sockets of this process's user; returns it.
///
/// # Errors
/// None of the places can be made private.
pub fn prepare() -> io::Result<PathBuf> {
    let uid = rustix::process::geteuid().as_raw();
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for place in candidates(uid) {
        match make(&place) {
            Ok(()) => return Ok(place),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Make `directory`, unless it is there, and see that it is this user's alone.
///
/// # Errors
/// It cannot be made, or not be trusted.
pub fn make(directory: &Path) -> io::Result<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ if is_private(directory, rustix::process::geteuid().as_raw()) => Ok(()),
        _ => {
            let text = format!("{} belongs to somebody else or is open to others; remove it", directory.display());
            Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
        }
    }
}

/// Name of the socket of the filesystem with this device; `extension` is `sock` or `log`.
pub fn name(device: (u32, u32), extension: &str) -> String {
    format!("{}-{}.{extension}", device.0, device.1)
}

/// Whether a mount is one of ours, dead or alive: by its type, or (where `subtype=` made that another) by the control
/// socket of its device. Nobody is asked.
pub fn is_ours(entry: &Entry) -> bool {
    let uid = entry.owner().unwrap_or(0);
    let mut places = candidates(uid).into_iter().filter(|place| is_private(place, uid));
    entry.kind == "fuse.stablefs"
        || (entry.is_fuse() && places.any(|place| place.join(name(entry.device, "sock")).symlink_metadata().is_ok()))
}

/// Remove the control socket that the dead daemon of a mount has left.
pub fn forget(entry: &Entry) {
    let uid = entry.owner().unwrap_or(0);
    for place in candidates(uid).into_iter().filter(|place| is_private(place, uid)) {
        let socket = place.join(name(entry.device, "sock"));
        // One that answers is not dead; device numbers are used again.
        let dead = UnixStream::connect(&socket).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
        if dead {
            let _ = std::fs::remove_file(socket); // it is only litter
        }
    }
}

/// Connect to the daemon of a mount.
///
/// # Errors
/// Nobody listens at any of the places, or not the owner of the mount.
pub fn connect(entry: &Entry) -> io::Result<UnixStream> {
    let uid = entry.owner().unwrap_or(0);
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for place in candidates(uid).into_iter().filter(|place| is_private(place, uid)) {
        match UnixStream::connect(place.join(name(entry.device, "sock"))) {
            Ok(stream) => {
                let peer = rustix::net::sockopt::socket_peercred(&stream)?;
                if peer.uid.as_raw() == uid {
                    return Ok(stream);
                }
                last = io::ErrorKind::PermissionDenied.into();
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn only_a_closed_directory_of_ones_own_is_private() {
        let scratch = tempfile::tempdir().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        let directory = scratch.path().join("d");
        std::fs::create_dir(&directory).unwrap();
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o700)).unwrap();
        assert!(is_private(&directory, uid));
        assert!(!is_private(&directory, uid + 1));
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o750)).unwrap();
        assert!(!is_private(&directory, uid));
        std::os::unix::fs::symlink("d", scratch.path().join("link")).unwrap();
        assert!(!is_private(&scratch.path().join("link"), uid));
    }

    #[test]
    fn names_tell_devices_apart() {
        assert_ne!(name((0, 57), "sock"), name((0, 5), "sock"));
        assert_eq!(name((0, 57), "log"), "0-57.log");
    }
}
