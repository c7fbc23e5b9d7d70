//! Promise: the commands work on a real mount. Without `/dev/fuse` and the right to mount, this says so and stops.

use assert_cmd::cargo::CommandCargoExt;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

struct Rig {
    directory: tempfile::TempDir,
}

impl Rig {
    /// Two replicas and a mount point; `None` where mounting is not possible.
    fn new() -> Option<Rig> {
        let root = rustix::process::geteuid().is_root();
        if !root || !std::path::Path::new("/dev/fuse").exists() {
            eprintln!("skipped: needs root and /dev/fuse");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        for name in ["a", "b", "mnt"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        let rig = Rig { directory };
        rig.must(&["format", "--size", "128M", "a", "b"]);
        Some(rig)
    }

    fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::cargo_bin("stablefs").unwrap();
        // What this host knows of volumes is theirs, too.
        command.env("STABLEFS_STATE_DIR", self.directory.path().join("state"));
        command.args(words).current_dir(self.directory.path()).stdin(Stdio::null()).output().unwrap()
    }

    fn must(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn mnt(&self, name: &str) -> PathBuf {
        self.directory.path().join("mnt").join(name)
    }

    fn is_mounted(&self) -> bool {
        let entries = stablefs::mount::table::read().unwrap();
        stablefs::mount::table::at(&entries, &self.directory.path().join("mnt").canonicalize().unwrap()).is_some()
    }

    fn process(&self) -> i32 {
        let status: serde_json::Value = serde_json::from_str(&self.must(&["status", "--json", "mnt"])).unwrap();
        status["mount"]["process"].as_i64().unwrap() as i32
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.run(&["umount", "--lazy", "mnt"]);
        let path = self.directory.path().join("mnt");
        let _ = rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH); // a dead daemon's
    }
}

/// Whether a process has ended; perhaps nobody has asked for its exit code yet.
fn is_gone(process: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('Z'))
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < until, "{what} did not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn what_is_written_is_there_after_every_kind_of_end() {
    let Some(rig) = Rig::new() else { return };
    // In order.
    rig.must(&["mount", "a", "b", "mnt"]);
    std::fs::write(rig.mnt("file"), vec![7; 300_000]).unwrap();
    std::fs::hard_link(rig.mnt("file"), rig.mnt("twin")).unwrap();
    let process = rig.process();
    rig.must(&["umount", "mnt"]);
    assert!(!rig.is_mounted());
    assert!(is_gone(process), "the daemon is gone");
    // By umount(8).
    rig.must(&["mount", "a", "b", "mnt"]);
    assert_eq!(std::fs::read(rig.mnt("twin")).unwrap(), vec![7; 300_000]);
    assert_eq!(std::fs::metadata(rig.mnt("twin")).unwrap().nlink(), 2);
    std::fs::write(rig.mnt("second"), b"by umount").unwrap();
    let process = rig.process();
    rustix::mount::unmount(rig.directory.path().join("mnt"), rustix::mount::UnmountFlags::empty()).unwrap();
    wait_until("the end of the daemon", || is_gone(process));
    // By SIGTERM, with a file open.
    rig.must(&["mount", "a", "b", "mnt"]);
    let open = std::fs::File::open(rig.mnt("second")).unwrap();
    std::fs::write(rig.mnt("third"), b"by signal").unwrap();
    let process = rig.process();
    let pid = rustix::process::Pid::from_raw(process).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    wait_until("the end of the daemon", || is_gone(process));
    drop(open);
    // By SIGKILL: what was synced is there.
    rig.must(&["mount", "a", "b", "mnt"]);
    let mut file = std::fs::File::create(rig.mnt("fourth")).unwrap();
    file.write_all(b"synced").unwrap();
    file.sync_all().unwrap();
    let pid = rustix::process::Pid::from_raw(rig.process()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    drop(file);
    wait_until("the death of the daemon", || std::fs::metadata(rig.mnt("fourth")).is_err());
    let output = rig.run(&["status", "mnt"]);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("stablefs umount"), "{said}");
    rig.run(&["umount", "mnt"]);
    assert!(!rig.is_mounted());
    rig.must(&["mount", "a", "b", "mnt"]);
    for (name, content) in [("second", &b"by umount"[..]), ("third", b"by signal"), ("fourth", b"synced")] {
        assert_eq!(std::fs::read(rig.mnt(name)).unwrap(), content);
    }
    rig.must(&["umount", "mnt"]);
}

#[test]
fn a_busy_mount_is_refused_and_can_be_detached() {
    let Some(rig) = Rig::new() else { return };
    rig.must(&["mount", "a", "b", "mnt"]);
    std::fs::write(rig.mnt("file"), b"still here").unwrap();
    let open = std::fs::File::open(rig.mnt("file")).unwrap();
    let output = rig.run(&["umount", "mnt"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("fuser -vm") && said.contains("--lazy"), "{said}");
    assert!(rig.is_mounted());
    let process = rig.process();
    rig.must(&["umount", "--lazy", "mnt"]);
    assert!(!rig.is_mounted());
    assert_eq!(std::io::read_to_string(&open).unwrap(), "still here");
    drop(open);
    wait_until("the end of the daemon", || is_gone(process));
}

#[test]
fn times_before_1970_and_at_the_ends_of_time_are_kept() {
    let Some(rig) = Rig::new() else { return };
    rig.must(&["mount", "a", "b", "mnt"]);
    std::fs::write(rig.mnt("file"), b"").unwrap();
    let set = |seconds, nanoseconds| {
        let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(rustix::fs::CWD, rig.mnt("file"), &times, rustix::fs::AtFlags::empty()).unwrap();
        let found = std::fs::metadata(rig.mnt("file")).unwrap();
        (found.mtime(), found.mtime_nsec())
    };
    for (seconds, nanoseconds) in
        [(-1, 0), (-2, 800_000_000), (-1_000_000_000, 1), (i64::MIN, 0), (i64::MAX, 0), (0, 1)]
    {
        assert_eq!(set(seconds, nanoseconds), (seconds, nanoseconds));
    }
    rig.must(&["umount", "mnt"]);
}

#[test]
fn what_lies_below_is_not_unmounted() {
    let Some(rig) = Rig::new() else { return };
    let path = rig.directory.path().join("mnt");
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("none", &path, "tmpfs", flags, None::<&std::ffi::CStr>).unwrap();
    std::fs::write(path.join("below"), b"").unwrap();
    rig.must(&["mount", "a", "b", "mnt"]);
    let process = rig.process();
    assert!(!path.join("below").exists());
    rustix::mount::unmount(&path, rustix::mount::UnmountFlags::empty()).unwrap();
    wait_until("the end of the daemon", || is_gone(process));
    assert!(path.join("below").exists(), "the tmpfs below was unmounted too");
    rustix::mount::unmount(&path, rustix::mount::UnmountFlags::empty()).unwrap();
}
