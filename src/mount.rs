//! Mounting and unmounting without fuser: `mount(2)` where we may, `fusermount3` where not.
//!
//! *Guarantees*: what is unmounted is what was mounted here: the device at the mount point is compared first, so that
//! something mounted below or above it by others stays (fuser 0.18 unmounts it). A refused mount changes nothing.
//! *Assumes*: `/proc` is mounted; the caller answers FUSE_INIT on the descriptor.
//! *Fails when*: the mount point does not serve or the rights are missing: [`MountError`], one line that says what to type next.
//! *Order*: checks, `/dev/fuse`, `mount(2)`, the table of mounts.
//! *Not here*: requests (`fuse`), option texts (`cli`), who may use the mount (the kernel: `default_permissions`, `allow_other`).

mod helper;
pub mod table;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Why something could not be mounted or unmounted; the text names the next command.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The request cannot be served as it stands.
    #[error("{0}")]
    Refused(String),
    /// Files are open below the mount point.
    #[error("{path} is in use; see who: fuser -vm {path}; or detach it: stablefs umount --lazy {path}", path = .0.display())]
    Busy(PathBuf),
}

/// What to mount, and how.
#[derive(Debug, Clone)]
pub struct MountPlan {
    /// From [`check_mountpoint`].
    pub mountpoint: PathBuf,
    /// Source as the table of mounts shows it.
    pub source: String,
    /// Type is `fuse.SUBTYPE`, or `fuse` if empty.
    pub subtype: String,
    /// Mount for reading only.
    pub read_only: bool,
    /// Let other users in.
    pub allow_other: bool,
    /// Device nodes work (only as root).
    pub device_nodes: bool,
    /// Set-user-id bits work (only as root).
    pub set_user_id: bool,
    /// Programs can be run.
    pub execute: bool,
    /// Times of reading are not kept.
    pub no_access_times: bool,
}

/// A mount that this process made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Where.
    pub path: PathBuf,
    /// Device of the filesystem: `(major, minor)`.
    pub device: (u32, u32),
    /// Whether `fusermount3` did it.
    by_helper: bool,
}

/// Check that `path` can become a mount point; returns it made absolute, without links. `is_ours` knows our mounts.
///
/// # Errors
/// Not a directory, no daemon behind an old mount, a stablefs there already, or it lies inside a replica or a replica inside it.
pub fn check_mountpoint(
    path: &Path,
    replicas: &[PathBuf],
    is_ours: impl FnOnce(&table::Entry) -> bool,
) -> Result<PathBuf, MountError> {
    let shown = path.display();
    let refuse = |text: String| Err(MountError::Refused(text));
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {
            return refuse(format!("the mount at {shown} has lost its daemon; detach it first: umount -l {shown}"));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return refuse(format!("mount point {shown} does not exist; make it first: mkdir {shown}"));
        }
        Err(error) => return refuse(format!("mount point {shown}: {error}")),
    };
    if !metadata.is_dir() {
        return refuse(format!("mount point {shown} is not a directory"));
    }
    let mountpoint = match path.canonicalize() {
        Ok(mountpoint) => mountpoint,
        Err(error) => return refuse(format!("mount point {shown}: {error}")),
    };
    let entries =
        table::read().map_err(|error| MountError::Refused(format!("cannot read the table of mounts: {error}")))?;
    if table::at(&entries, &mountpoint).is_some_and(is_ours) {
        return refuse(format!("a stablefs is mounted at {shown} already; look at it: stablefs status {shown}"));
    }
    for replica in replicas {
        check_apart(&mountpoint, replica)?;
    }
    if mountpoint.join("stablefs.data").exists() {
        return refuse(format!("{shown} is a replica of a volume and would be hidden; choose another mount point"));
    }
    Ok(mountpoint)
}

/// Check that this machine can mount FUSE at all, before anything is opened.
///
/// # Errors
/// There is no `/dev/fuse`.
pub fn check_device() -> Result<(), MountError> {
    match std::fs::symlink_metadata("/dev/fuse") {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(MountError::Refused("there is no /dev/fuse; load the module: modprobe fuse".into()))
        }
        _ => Ok(()), // what else may be wrong with it shows when it is opened
    }
}

/// Refuse a mount point inside a replica and a replica inside the mount point: requests would come back to ourselves.
fn check_apart(mountpoint: &Path, replica: &Path) -> Result<(), MountError> {
    let Ok(replica_path) = replica.canonicalize() else {
        return Ok(()); // missing: opening it says so
    };
    let (inner, outer) = (mountpoint.display(), replica.display());
    if is_below(mountpoint, &replica_path) {
        return Err(MountError::Refused(format!(
            "mount point {inner} lies inside the replica {outer}; choose a mount point outside of all replicas"
        )));
    }
    if is_below(&replica_path, mountpoint) {
        return Err(MountError::Refused(format!(
            "the replica {outer} lies inside the mount point {inner} and would be hidden by it; choose another mount point"
        )));
    }
    Ok(())
}

/// Whether `inner` is `outer` or lies below it, by identity and not by name (bind mounts, links).
fn is_below(inner: &Path, outer: &Path) -> bool {
    let identity = |path: &Path| std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    let Some(wanted) = identity(outer) else { return false };
    inner.ancestors().any(|ancestor| identity(ancestor) == Some(wanted))
}

/// Mount. The kernel waits for the answer to FUSE_INIT on the descriptor that is returned.
///
/// # Errors
/// No `/dev/fuse`, no permission and no helper, or the kernel refuses.
pub fn mount(plan: &MountPlan) -> Result<(OwnedFd, Mounted), MountError> {
    let (descriptor, by_helper) = match mount_directly(plan)? {
        Some(descriptor) => (descriptor, false),
        None => (helper::mount(plan)?, true),
    };
    let entries = match table::read() {
        Ok(entries) => entries,
        Err(error) => {
            drop(descriptor); // ends the session, so that nothing waits for an answer
            let left = match detach(&plan.mountpoint, by_helper, true) {
                Ok(()) => String::new(),
                Err(why) => format!("; and a dead mount stays behind: {why}"),
            };
            return Err(MountError::Refused(format!("cannot read the table of mounts: {error}{left}")));
        }
    };
    let Some(entry) = table::at(&entries, &plan.mountpoint).filter(|entry| entry.is_fuse()) else {
        return Err(MountError::Refused(format!(
            "the mount at {} vanished as soon as it was made; is another program unmounting it?",
            plan.mountpoint.display()
        )));
    };
    let mounted = Mounted { path: plan.mountpoint.clone(), device: entry.device, by_helper };
    Ok((descriptor, mounted))
}

/// `mount(2)`; `None` if this process lacks the right to it.
fn mount_directly(plan: &MountPlan) -> Result<Option<OwnedFd>, MountError> {
    let descriptor = match rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        Ok(descriptor) => descriptor,
        Err(Errno::ACCESS | Errno::PERM) => return Ok(None),
        Err(Errno::NOENT | Errno::NODEV | Errno::NXIO) => {
            return Err(MountError::Refused("there is no /dev/fuse; load the module: modprobe fuse".into()));
        }
        Err(error) => return Err(MountError::Refused(format!("cannot open /dev/fuse: {error}"))),
    };
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
        descriptor.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw()
    );
    if plan.allow_other {
        data.push_str(",allow_other");
    }
    let data = CString::new(data).expect("digits and names have no NUL");
    let kind = if plan.subtype.is_empty() { "fuse".to_owned() } else { format!("fuse.{}", plan.subtype) };
    match rustix::mount::mount(plan.source.as_str(), &plan.mountpoint, kind.as_str(), flags(plan), data.as_c_str()) {
        Ok(()) => Ok(Some(descriptor)),
        Err(Errno::PERM | Errno::ACCESS) => Ok(None),
        Err(error) => Err(MountError::Refused(format!("cannot mount at {}: {error}", plan.mountpoint.display()))),
    }
}

fn flags(plan: &MountPlan) -> MountFlags {
    let mut flags = MountFlags::empty();
    flags.set(MountFlags::RDONLY, plan.read_only);
    flags.set(MountFlags::NODEV, !plan.device_nodes);
    flags.set(MountFlags::NOSUID, !plan.set_user_id);
    flags.set(MountFlags::NOEXEC, !plan.execute);
    flags.set(MountFlags::NOATIME, plan.no_access_times);
    flags
}

/// Detach the mount that `entry` names if its process has died; nothing happens to one that is served.
///
/// # Errors
/// It is served, or must not be unmounted by this user.
pub fn detach_dead(entry: &table::Entry) -> Result<(), MountError> {
    // Attributes may come from the kernel's memory, although nobody serves the mount any more; this never does.
    match rustix::fs::statfs(&entry.path) {
        Err(Errno::NOTCONN | Errno::CONNABORTED) => {}
        _ => return Err(MountError::Refused(format!("{} is served by some process", entry.path.display()))),
    }
    let by_helper = !rustix::process::geteuid().is_root();
    Mounted { path: entry.path.clone(), device: entry.device, by_helper }.unmount(true)
}

/// Change the flags of what is mounted at the mount point of `plan`.
///
/// # Errors
/// Not root, or files are open for writing that no longer may.
pub fn remount(plan: &MountPlan) -> Result<(), MountError> {
    let place = plan.mountpoint.display();
    match rustix::mount::mount_remount(&plan.mountpoint, flags(plan), c"") {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => {
            Err(MountError::Refused(format!("files in {place} are open for writing; see which: fuser -vm {place}")))
        }
        Err(Errno::PERM | Errno::ACCESS) => Err(MountError::Refused(format!("only root can remount {place}"))),
        Err(error) => Err(MountError::Refused(format!("cannot remount {place}: {error}"))),
    }
}

/// Unmount a copy of a mount (`mount --bind`, another namespace): the daemon is not asked, it serves the others.
///
/// # Errors
/// Busy, or not allowed to this user.
pub fn unmount_copy(entry: &table::Entry, lazy: bool) -> Result<(), MountError> {
    let by_helper = !rustix::process::geteuid().is_root();
    Mounted { path: entry.path.clone(), device: entry.device, by_helper }.unmount(lazy)
}

impl Mounted {
    /// Whether `id` is the number of this mount, and not of a copy of it.
    pub fn is_mount(&self, id: u64) -> bool {
        table::read().is_ok_and(|entries| {
            entries.iter().any(|entry| (entry.id, entry.device, &entry.path) == (id, self.device, &self.path))
        })
    }

    /// Whether no other mount of the same filesystem than `id` is left in this namespace.
    pub fn is_last(&self, id: u64) -> bool {
        table::read().is_ok_and(|entries| !entries.iter().any(|entry| entry.device == self.device && entry.id != id))
    }

    /// Unmount it, if it is still there. `lazy` detaches it although files are open; they stay usable.
    ///
    /// # Errors
    /// Busy, or something else is mounted over it.
    pub fn unmount(&self, lazy: bool) -> Result<(), MountError> {
        let entries =
            table::read().map_err(|error| MountError::Refused(format!("cannot read the table of mounts: {error}")))?;
        let here: Vec<_> = entries.iter().filter(|entry| entry.path == self.path).collect();
        if !here.iter().any(|entry| entry.device == self.device) {
            return Ok(());
        }
        if here.last().is_some_and(|top| top.device != self.device) {
            return Err(MountError::Refused(format!(
                "something else is mounted over {path}; unmount that first: umount {path}",
                path = self.path.display()
            )));
        }
        detach(&self.path, self.by_helper, lazy)
    }
}

/// Unmount what is on top at `path`; the caller knows what that is.
fn detach(path: &Path, by_helper: bool, lazy: bool) -> Result<(), MountError> {
    if by_helper {
        return helper::unmount(path, lazy);
    }
    let how = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(path, how | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(Errno::BUSY) => Err(MountError::Busy(path.to_owned())),
        Err(error) => Err(MountError::Refused(format!("cannot unmount {}: {error}", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(path: &Path, replicas: &[PathBuf]) -> String {
        check_mountpoint(path, replicas, |_| false).unwrap_err().to_string()
    }

    #[test]
    fn unsuitable_mount_points_are_refused_with_the_next_step() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path();
        std::fs::create_dir_all(root.join("replica/inner")).unwrap();
        std::fs::create_dir_all(root.join("mnt/replica")).unwrap();
        std::fs::write(root.join("file"), b"").unwrap();
        std::os::unix::fs::symlink("replica/inner", root.join("link")).unwrap();
        let replica = [root.join("replica")];
        assert!(refusal(&root.join("none"), &replica).contains("mkdir"));
        assert!(refusal(&root.join("file"), &replica).contains("not a directory"));
        assert!(refusal(&root.join("replica/inner"), &replica).contains("inside the replica"));
        assert!(refusal(&root.join("link"), &replica).contains("inside the replica"));
        assert!(refusal(&root.join("replica"), &replica).contains("inside the replica"));
        assert!(refusal(&root.join("mnt"), &[root.join("mnt/replica")]).contains("inside the mount point"));
        let fine =
            check_mountpoint(&root.join("mnt"), &[root.join("replica"), root.join("missing")], |_| false).unwrap();
        assert_eq!(fine, root.join("mnt").canonicalize().unwrap());
    }

    #[test]
    fn what_is_not_ours_is_not_unmounted() {
        let proc = Mounted { path: "/proc".into(), device: (4_000, 4_000), by_helper: false };
        proc.unmount(false).unwrap();
        assert!(Path::new("/proc/self").exists());
    }
}
