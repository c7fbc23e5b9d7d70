//! Refusals that need a mount, rights or a missing device. (What is refused without one: `tests/errors.rs`.)

use super::beat::content;
use super::bed::{Bed, Said, as_ordinary_user, can_mount, can_mount_as_root, fingerprint, program, run, shell};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

#[track_caller]
fn refused(said: Said, says: &str) {
    assert_ne!(said.code, 0, "was not refused: {said}");
    assert_eq!(said.err.trim_end().lines().count(), 1, "more than one line: {said}");
    assert!(said.err.contains(says), "does not say {says:?}: {said}");
}

/// Goal: what is mounted is protected from everybody else, and keeps working.
#[test]
fn a_mounted_volume_is_left_alone() {
    // SEMANTICS: REFUSE-1, REFUSE-2, REFUSE-3
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("64M");
    fs::write(bed.at("file"), b"content").unwrap();
    bed.sync();
    let (a, b) = (bed.a.to_str().unwrap(), bed.b.to_str().unwrap());
    let second = bed.path().join("second");
    fs::create_dir(&second).unwrap();
    // All but the heartbeat, which the daemon writes meanwhile.
    let before = (content(&bed.a), content(&bed.b));
    refused(bed.stablefs(["mount", a, b, second.to_str().unwrap()]), "in use");
    refused(bed.stablefs(["mount", a, b, bed.mnt.to_str().unwrap()]), "");
    refused(bed.stablefs(["format", "--force", "--size", "32M", a, b]), "in use");
    refused(bed.stablefs(["format", "--size", "32M", a, b]), "");
    for flag in ["-n", "-y"] {
        let said = bed.fsck(flag);
        assert_eq!(said.code & 8, 8, "{said}");
        refused(said, "in use");
    }
    // The commit thread may have written meanwhile only if something changed: nothing did.
    assert!(before == (content(&bed.a), content(&bed.b)), "a refused command wrote to a replica");
    refused(bed.stablefs(["replace", bed.mnt.to_str().unwrap(), b, a]), "");
    refused(bed.stablefs(["replace", bed.mnt.to_str().unwrap(), "/no/such/replica", second.to_str().unwrap()]), "");
    // (A refused replace may commit what is open, so bytes may differ, but nothing else.)
    assert_eq!(bed.status()["state"], "healthy");
    assert_eq!(fs::read(bed.at("file")).unwrap(), b"content");
    // Another volume must not be mounted over it, nor replicas of two volumes together.
    let other = Bed::formatted("32M");
    refused(other.mount_of(&[&other.a, &other.b], "").code_is_ok_then_umount(&other), "");
    refused(bed.stablefs(["mount", other.a.to_str().unwrap(), other.b.to_str().unwrap(), a]), "hidden");
    bed.umount_and_check();
}

/// Goal: a volume is never asked to hold its own replica: that would wait for itself.
#[test]
fn a_replica_inside_its_own_mount_is_refused() {
    // SEMANTICS: REFUSE-1
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("64M");
    fs::create_dir(bed.at("inside")).unwrap();
    std::os::unix::fs::symlink(bed.at("inside"), bed.path().join("link")).unwrap();
    let mnt = bed.mnt.to_str().unwrap();
    for place in [bed.at("inside"), bed.at("inside/missing"), bed.path().join("link")] {
        let words = ["replace", mnt, bed.b.to_str().unwrap(), place.to_str().unwrap()];
        refused(bed.stablefs(words), "lies in the volume");
    }
    assert_eq!(fs::read_dir(bed.at("inside")).unwrap().count(), 0);
    bed.umount_and_check();
}

/// Goal: `stablefs umount` leaves mounts of others alone, and does not take its own for others'.
#[test]
fn mounts_of_other_programs_are_left_alone() {
    if !can_mount_as_root("to take a socket away") {
        return;
    }
    let bed = Bed::formatted("32M");
    let mounted = || !super::bed::mounts_in(bed.path()).is_empty();
    bed.mount("subtype=other").ok();
    super::bed::end(bed.daemon());
    bed.umount().ok(); // its socket tells that it was ours
    assert!(!mounted());
    bed.mount("subtype=other").ok();
    let socket = PathBuf::from(bed.status()["mount"]["log"].as_str().unwrap()).with_extension("sock");
    super::bed::end(bed.daemon());
    fs::remove_file(socket).unwrap();
    refused(bed.umount(), "type fuse.other");
    assert!(mounted(), "the dead mount of another program was detached");
    super::bed::detach(&bed.mnt);
}

impl Said {
    /// Not every mount is refused: undo one that was not, and hand on a refusal of something that is.
    fn code_is_ok_then_umount(self, bed: &Bed) -> Said {
        self.ok();
        let used = bed.mount("");
        bed.umount().ok();
        used
    }
}

/// Goal: without the right to open a replica, or without FUSE, there is one clear line and nothing is written.
#[test]
fn without_rights_or_fuse_there_is_one_clear_line() {
    // SEMANTICS: REFUSE-1
    if !can_mount_as_root("to give up rights") {
        return;
    }
    let bed = Bed::formatted("32M");
    bed.open_to_others();
    let readable = bed.path().join("stablefs");
    fs::copy(program(), &readable).unwrap();
    shell(bed.path(), "install -d -o 65534 -g 65534 -m 700 run").ok();
    let as_nobody = |words: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]).arg(&readable);
        command.env("XDG_RUNTIME_DIR", bed.path().join("run")).env("STABLEFS_STATE_DIR", "/nonexistent");
        run(command.args(words).current_dir(bed.path()))
    };
    for container in ["a/stablefs.data", "b/stablefs.data"] {
        fs::set_permissions(bed.path().join(container), fs::Permissions::from_mode(0o600)).unwrap();
    }
    let before = (fingerprint(&bed.a), fingerprint(&bed.b));
    refused(as_nobody(&["mount", "a", "b", "mnt"]), "");
    refused(as_nobody(&["format", "--force", "--size", "32M", "a", "b"]), "");
    refused(as_nobody(&["fsck", "-n", "a", "b"]), "");
    // A mount namespace of its own, in which /dev has no fuse.
    let script = format!(
        "mount -t tmpfs none /dev && mknod /dev/null c 1 3 && mknod /dev/urandom c 1 9 && exec {} mount a b mnt",
        program().display()
    );
    let said = run(Command::new("unshare").args(["-m", "bash", "-c", &script]).current_dir(bed.path()));
    refused(said, "/dev/fuse");
    assert_eq!(before, (fingerprint(&bed.a), fingerprint(&bed.b)), "a refused command wrote to a replica");
}

/// Goal: an ordinary user formats, mounts through fusermount3, works and unmounts.
#[test]
fn an_ordinary_user_mounts_with_fusermount() {
    if !can_mount_as_root("to become another user (as an ordinary user, every other test shows it)") {
        return;
    }
    let folder = tempfile::Builder::new().prefix("stablefs-user.").tempdir().unwrap();
    let script =
        "export HOME=$PWD XDG_RUNTIME_DIR=$PWD/run STABLEFS_STATE_DIR=$PWD/state; mkdir -m 700 run; mkdir a b mnt
        ./stablefs format --size 64M a b; ./stablefs mount a b mnt; trap './stablefs umount mnt' EXIT
        echo hello >mnt/file; test $(stat -c %u mnt/file) = 65534; ./stablefs sync mnt; ./stablefs status mnt
        trap - EXIT; ./stablefs umount mnt; ./stablefs mount a b mnt; cat mnt/file; ./stablefs umount mnt
        ./stablefs fsck -n a b";
    let said = as_ordinary_user(folder.path(), "", script);
    assert!(said.ok().out.contains("hello\n"));
    let left = shell(folder.path(), "ls run/stablefs 2>/dev/null || true").ok();
    assert!(!left.out.contains(".sock"), "a control socket is left: {left}");
}
