//! The daemon as a neighbour: how it starts and ends, what it holds, and how it is reached.

use super::bed::{
    Bed, Said, as_ordinary_user, can_mount, can_mount_as_root, is_root, lives, run, shell, state_of, wait_until,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Goal: a log that cannot be opened, or that would lie in the mount, is told in one line, and nothing stays mounted.
#[test]
fn a_log_that_cannot_be_is_refused_with_its_reason() {
    // SEMANTICS: REFUSE-1
    if !can_mount() {
        return;
    }
    let bed = Bed::formatted("64M");
    let before = super::bed::fingerprint(&bed.path().join("state"));
    for (log, word) in [(PathBuf::from("/nonexistent/x"), "log"), (bed.at("log"), "in the mount itself")] {
        let said = bed.mount(&format!("log={}", log.display())).code(1);
        assert!(said.err.contains(word) && said.err.contains(log.to_str().unwrap()), "{said}");
        assert_eq!(said.err.trim_end().lines().count(), 1, "{said}");
        assert!(super::bed::mounts_in(bed.path()).is_empty());
    }
    let inside = run(bed.command().env("STABLEFS_STATE_DIR", bed.at("state")).args([
        "mount".as_ref(),
        bed.a.as_os_str(),
        bed.b.as_os_str(),
        bed.mnt.as_os_str(),
    ]));
    assert!(inside.code == 1 && inside.err.contains("in the mount itself"), "{inside}");
    assert_eq!(before, super::bed::fingerprint(&bed.path().join("state")));
    bed.mount("").ok();
    bed.umount_and_check();
}

/// Goal: what whoever mounts has open and locked is not kept by the daemon.
#[test]
fn the_daemon_inherits_no_descriptors() {
    if !can_mount() {
        return;
    }
    let bed = Bed::formatted("64M");
    let (program, a, b, mnt) = (super::bed::program(), &bed.a, &bed.b, &bed.mnt);
    let line = format!("{} mount {} {} {}", program.display(), a.display(), b.display(), mnt.display());
    let script =
        format!("exec 9>lock; flock -n 9; export STABLEFS_STATE_DIR=$PWD/state; {line}; exec 9>&-; flock -n lock true");
    shell(bed.path(), &script).ok();
    let held = fs::read_dir(format!("/proc/{}/fd", bed.daemon())).unwrap();
    let held: Vec<PathBuf> = held.flatten().filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
    assert!(!held.contains(&bed.path().join("lock")), "{held:?}");
    bed.umount_and_check();
}

/// Goal: a control socket that is taken away, with its directory or without, is made again.
///
/// Method: the one socket of this mount is removed; its directory is shared with others.
#[test]
fn a_control_socket_that_vanishes_comes_back() {
    if !can_mount_as_root("to know where the socket stands") {
        return;
    }
    let bed = Bed::mounted("64M");
    let log = bed.status()["mount"]["log"].as_str().unwrap().to_owned();
    let socket = Path::new(&log).with_extension("sock");
    for _ in 0..2 {
        fs::remove_file(&socket).unwrap();
        let until = Instant::now() + Duration::from_secs(30);
        let ask = || bed.stablefs(["status".as_ref(), bed.mnt.as_os_str()]);
        let mut said = ask();
        assert!(said.code == 2 && said.err.contains("no stablefs daemon answers"), "{said}");
        while said.code != 0 {
            assert!(Instant::now() < until, "the socket does not come back: {said}");
            std::thread::sleep(Duration::from_millis(100));
            said = ask();
        }
    }
    bed.umount_and_check();
    assert!(!socket.exists());
}

/// Goal: a log that is removed is begun anew in its place, and says what is logged from then on; at the level asked for.
#[test]
fn a_log_that_is_removed_is_begun_anew() {
    if !can_mount() {
        return;
    }
    let bed = Bed::formatted("64M");
    let log = bed.path().join("log");
    let words = ["mount".into(), "-o".into(), format!("log={}", log.display())];
    let places = [&bed.a, &bed.b, &bed.mnt].map(|path| path.display().to_string());
    run(bed.command().env("STABLEFS_LOG", "debug").args(words).args(places)).ok();
    fs::write(bed.at("file"), b"content").unwrap();
    assert!(fs::read_to_string(&log).unwrap().contains("DEBUG"), "STABLEFS_LOG=debug is not heard");
    fs::remove_file(&log).unwrap();
    fs::remove_file(bed.b.join("stablefs.data")).unwrap();
    let status = bed.wait_for(Duration::from_secs(5), "b is out", |status| state_of(status, &bed.b) == "out");
    assert_eq!(status["mount"]["log"].as_str(), log.to_str());
    bed.umount().ok();
    let said = fs::read_to_string(&log).expect("a log again");
    assert!(said.contains("was removed") && said.contains("is out") && said.contains("closed"), "{said}");
}

/// Goal: when a user's runtime directory goes, as at a logout, socket and log go on in the next place, and are found there.
#[test]
fn a_mount_outlives_the_logout_of_its_user() {
    if !can_mount_as_root("to become another user") {
        return;
    }
    let folder = tempfile::Builder::new().prefix("stablefs-user.").tempdir().unwrap();
    let script = "export XDG_RUNTIME_DIR=$PWD/run STABLEFS_STATE_DIR=$PWD/state; mkdir -m 700 run; mkdir a b mnt
        ./stablefs format --size 64M a b; ./stablefs mount a b mnt; trap './stablefs umount mnt' EXIT
        rm -r run; timeout 60 bash -c 'until ./stablefs status mnt >/dev/null 2>&1; do sleep 0.1; done'
        rm b/stablefs.data; timeout 60 bash -c 'while ./stablefs status mnt >/dev/null 2>&1; do sleep 0.1; done'
        log=$(./stablefs status mnt | sed -n 's/^ *log: *//p'); echo \"log $log\"; cat \"$log\"
        trap - EXIT; ./stablefs umount mnt";
    // The next place is one that nobody else uses.
    let before = "mount -t tmpfs none /run; install -d -o 65534 -g 65534 -m 700 /run/user/65534";
    let said = as_ordinary_user(folder.path(), before, script).ok();
    assert!(said.out.contains("log /run/user/65534/stablefs/") && said.out.contains("was removed"), "{said}");
}

/// Goal: a read-only mount that nobody reads from notices that a replica is gone.
#[test]
fn a_read_only_mount_looks_at_its_replicas() {
    // SEMANTICS: DEG-3
    if !can_mount() {
        return;
    }
    let bed = Bed::formatted("64M");
    bed.mount("ro").ok();
    assert_eq!(bed.status()["state"], "healthy");
    fs::rename(bed.b.join("stablefs.data"), bed.path().join("away")).unwrap();
    bed.wait_for(Duration::from_secs(5), "b is out", |status| state_of(status, &bed.b) == "out");
    bed.umount().ok();
}

/// Goal: `status` without a place finds a mount of another type name; what it advises can be typed as it stands.
#[test]
fn status_finds_and_advises_in_spite_of_odd_names() {
    if !can_mount_as_root("to choose the name of the type") {
        return;
    }
    let bed = Bed::bare();
    let (a, b) = (bed.path().join("disk MOUNTPOINT a"), bed.path().join("disk b"));
    fs::create_dir(&a).unwrap();
    fs::create_dir(&b).unwrap();
    bed.stablefs(["format".as_ref(), "--size".as_ref(), "64M".as_ref(), a.as_os_str(), b.as_os_str()]).ok();
    bed.mount_of(&[&a, &b], "subtype=other,noreturn").ok();
    let all = bed.stablefs(["status", "--json"]).json();
    let here = |status: &&serde_json::Value| status["mount"]["path"].as_str() == bed.mnt.to_str();
    assert_eq!(all.as_array().unwrap().iter().filter(here).count(), 1, "{all:#}");
    fs::remove_file(b.join("stablefs.data")).unwrap();
    bed.wait_for(Duration::from_secs(5), "b is out", |status| state_of(status, &b) == "out");
    let advice = bed.status()["action"].as_str().unwrap().to_owned();
    let line = advice.split("  (").next().unwrap().replace("NEW", &format!("'{}'", b.display()));
    let program = super::bed::program();
    let script = line.replacen("stablefs", program.to_str().unwrap(), 1);
    shell(bed.path(), &script).ok();
    assert_eq!(bed.status()["state"], "healthy", "{script}");
    bed.umount().ok();
}

/// Two replicas on filesystems of their own, which can be frozen.
struct Frozen(Bed);

impl Drop for Frozen {
    fn drop(&mut self) {
        shell(self.0.path(), "for d in a b; do fsfreeze -u $d 2>/dev/null || true; done");
        self.0.stablefs(["umount".as_ref(), self.0.mnt.as_os_str()]);
        shell(self.0.path(), "for d in a b; do umount $d 2>/dev/null || umount -l $d 2>/dev/null || true; done");
    }
}

fn can_freeze() -> bool {
    let root = can_mount() && is_root();
    let loops = root && run(Command::new("losetup").arg("-f")).out.starts_with("/dev/loop");
    if !loops {
        println!("skipped: needs root and loop devices");
    }
    loops
}

fn frozen() -> (Frozen, [PathBuf; 2], i32) {
    frozen_with("deadline=1s")
}

fn frozen_with(options: &str) -> (Frozen, [PathBuf; 2], i32) {
    let disks = Frozen(Bed::bare());
    let bed = &disks.0;
    shell(
        bed.path(),
        "for d in a b; do truncate -s 320M $d.img; mkfs.xfs -q $d.img; mount -o loop $d.img $d; mkdir $d/replica; done",
    )
    .ok();
    let places = [bed.a.join("replica"), bed.b.join("replica")];
    let [a, b] = &places;
    bed.stablefs(["format".as_ref(), "--size".as_ref(), "100M".as_ref(), a.as_os_str(), b.as_os_str()]).ok();
    bed.mount_of(&[a, b], options).ok();
    fs::write(bed.at("synced"), b"synced").unwrap();
    bed.sync();
    let daemon = bed.daemon();
    fs::write(bed.at("late"), b"late").unwrap();
    shell(bed.path(), "fsfreeze -f a; fsfreeze -f b").ok();
    (disks, places, daemon)
}

fn thaw_and_check(disks: &Frozen, [a, b]: &[PathBuf; 2], daemon: i32) {
    let bed = &disks.0;
    shell(bed.path(), "fsfreeze -u a; fsfreeze -u b").ok();
    wait_until("the daemon ends as its disks answer again", || !lives(daemon));
    bed.mount_of(&[a, b], "").ok();
    assert_eq!(fs::read(bed.at("synced")).unwrap(), b"synced");
}

/// Goal: where no disk answers any more, a lazy umount detaches all the same, and says what is not durable; once the disks
/// answer, everything is.
#[test]
fn a_lazy_umount_does_not_wait_for_disks_that_hang() {
    // SEMANTICS: DUR-4
    if !can_freeze() {
        return;
    }
    let (disks, places, daemon) = frozen();
    let bed = &disks.0;
    let began = Instant::now();
    let said: Said = run(bed.command().args(["umount".as_ref(), "--lazy".as_ref(), bed.mnt.as_os_str()])).code(1);
    println!("after {:?}: {said}", began.elapsed());
    assert!(said.err.contains("not durable yet") && said.err.contains("replica"), "{said}");
    assert!(!super::bed::mounts_in(bed.path()).contains(&bed.mnt));
    thaw_and_check(&disks, &places, daemon);
    assert_eq!(fs::read(bed.at("late")).unwrap(), b"late");
    bed.umount().ok();
}

/// Goal: SIGTERM detaches the mount although no disk answers, and a second one ends the wait for them.
#[test]
fn signals_are_heard_while_disks_hang() {
    if !can_freeze() {
        return;
    }
    let (disks, places, daemon) = frozen();
    let bed = &disks.0;
    let process = rustix::process::Pid::from_raw(daemon).unwrap();
    let terminate = || rustix::process::kill_process(process, rustix::process::Signal::TERM);
    terminate().unwrap();
    wait_until("SIGTERM detaches the mount", || !super::bed::mounts_in(bed.path()).contains(&bed.mnt));
    wait_until("a second SIGTERM ends the daemon", || {
        let has_ended = !lives(daemon) || is_ending(daemon);
        if !has_ended {
            let _ = terminate(); // it may just have
        }
        has_ended
    });
    thaw_and_check(&disks, &places, daemon);
    bed.umount().ok();
}

/// Goal: whoever mounts again what `umount` has just detached gets it when the daemon has written its last commit; one that
/// serves a mount is not waited for.
#[test]
fn a_mount_waits_for_the_daemon_before_it() {
    // SEMANTICS: REFUSE-3
    if !can_freeze() {
        return;
    }
    let (disks, [a, b], daemon) = frozen_with("deadline=60s");
    let bed = &disks.0;
    let second = bed.path().join("second");
    fs::create_dir(&second).unwrap();
    let said = run(bed.command().args(["mount".as_ref(), a.as_os_str(), b.as_os_str(), second.as_os_str()])).code(1);
    assert!(said.err.contains("is in use") && !said.err.contains("waiting"), "{said}");
    rustix::mount::unmount(&bed.mnt, rustix::mount::UnmountFlags::empty()).unwrap();
    let told = bed.path().join("told");
    let mut mount = bed.command();
    mount.arg("mount").args([&a, &b]).arg(&bed.mnt).stderr(fs::File::create(&told).unwrap());
    let mut mount = mount.spawn().unwrap();
    let tells = || fs::read_to_string(&told).unwrap().contains(&format!("waiting for process {daemon}"));
    wait_until("the mount waits", || tells() || mount.try_wait().unwrap().is_some());
    assert!(tells(), "{}", fs::read_to_string(&told).unwrap());
    shell(bed.path(), "fsfreeze -u a; fsfreeze -u b").ok();
    assert!(mount.wait().unwrap().success(), "{}", fs::read_to_string(&told).unwrap());
    assert_eq!(fs::read(bed.at("late")).unwrap(), b"late");
    bed.umount().ok();
}

/// Whether the main thread of a process has ended: others may hang in the kernel.
fn is_ending(process: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('Z'))
}
