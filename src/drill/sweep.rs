//! Leaving nothing behind: mounts, daemons, loop devices and files in one scratch folder.
//!
//! *Guarantees*: touches only what lies inside the folder by its path, and processes of this program whose command line
//! names a path inside it. May be run at any time, by several at once, and again. Nothing is removed while anything is
//! mounted inside. *Assumes*: the folder's name is ours alone. *Fails when*: something stays in spite of all: it is named.
//! *Order*: thaw; end daemons; abort FUSE connections; detach mounts; loop devices; files.
//! *Not here*: a polite end (`bed`).

use super::disks;
use crate::control::place;
use crate::mount::table::{self, Entry};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a busy thing is asked again.
const PATIENCE: Duration = Duration::from_secs(20);
/// After so long mounts of disks are detached although something still uses them.
const POLITE: Duration = Duration::from_secs(8);

/// Undo everything inside `root` but the files; what could not be undone.
pub fn sweep(root: &Path) -> Vec<String> {
    let began = Instant::now();
    loop {
        let mounts = mounts_in(root);
        for entry in mounts.iter().filter(|entry| !entry.is_fuse()) {
            let _frozen = disks::thaw(&entry.path); // mostly it is not
        }
        daemons_in(root).into_iter().for_each(end);
        for entry in &mounts {
            undo(entry, began.elapsed() > POLITE);
        }
        loops_in(root).iter().for_each(|device| detach_loop(device));
        let mut left: Vec<String> =
            mounts_in(root).iter().map(|entry| format!("mount {}", entry.path.display())).collect();
        left.extend(loops_in(root).iter().map(|device| format!("loop device {}", device.display())));
        left.extend(daemons_in(root).iter().map(|process| format!("process {}", process.as_raw_nonzero())));
        if left.is_empty() || began.elapsed() > PATIENCE {
            return left;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Remove the folder itself.
///
/// # Errors
/// Something is still mounted inside, or a file cannot be removed; one line.
pub fn remove(root: &Path) -> Result<(), String> {
    if let Some(entry) = mounts_in(root).first() {
        return Err(format!("{} stays: {} is still mounted", root.display(), entry.path.display()));
    }
    match std::fs::remove_dir_all(root) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(format!("{}: {error}", root.display())),
        _ => Ok(()),
    }
}

/// Mounts inside `root`, newest first.
fn mounts_in(root: &Path) -> Vec<Entry> {
    let mut entries = table::read().unwrap_or_default();
    entries.retain(|entry| entry.path.starts_with(root));
    entries.reverse();
    entries
}

fn undo(entry: &Entry, force: bool) {
    if entry.is_fuse() {
        // The number of a connection is that of its device. Whoever waits for an answer gets an error.
        let abort = format!("/sys/fs/fuse/connections/{}/abort", entry.device.1);
        let _ended = std::fs::write(abort, "1"); // most often the daemon has ended already
        place::forget(entry);
    }
    if rustix::process::geteuid().is_root() {
        let how = if entry.is_fuse() || force { UnmountFlags::DETACH } else { UnmountFlags::empty() };
        let _busy = unmount(&entry.path, how | UnmountFlags::NOFOLLOW); // tried again
        return;
    }
    let mut helper = Command::new("fusermount3");
    let _busy = quiet(helper.arg("-uz").arg("--").arg(&entry.path)).status();
}

fn quiet(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())
}

/// Processes of this program whose command line names a path inside `root`.
fn daemons_in(root: &Path) -> Vec<Pid> {
    let inside = format!("{}/", root.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let number = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
        let Some(process) = number.and_then(Pid::from_raw) else { continue };
        let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).into_owned();
        let is_ours = words.split('\0').next().is_some_and(|first| first.ends_with("stablefs"));
        if is_ours && words.contains(&inside) && process != rustix::process::getpid() {
            found.push(process);
        }
    }
    found
}

/// End one of them, and not whoever got its number meanwhile.
fn end(process: Pid) {
    if let Ok(handle) = pidfd_open(process, PidfdFlags::empty()) {
        let _gone = pidfd_send_signal(&handle, Signal::KILL);
    }
}

/// Loop devices whose image lies inside `root`.
fn loops_in(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let image = std::fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        if Path::new(image.trim_end()).starts_with(root) {
            found.push(Path::new("/dev").join(entry.file_name()));
        }
    }
    found
}

fn detach_loop(device: &Path) {
    let mut command = Command::new("losetup");
    let _busy = quiet(command.env("PATH", disks::search_path()).arg("-d").arg(device)).status(); // tried again
}
