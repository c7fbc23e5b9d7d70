//! Containers that are deleted while the volume is mounted: made anew where they stood, and nowhere else.

use super::bed::{Bed, can_mount, can_mount_as_root, detach, shell, state_of};
use super::degraded::{check_still_files, load, still_files};
use std::fs;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(120);
/// Longer than it takes until a container that was deleted is made anew.
const LONG: Duration = Duration::from_secs(25);

/// Goal: what empties the directory of a replica under load is undone without a person: every block is on both again.
#[test]
fn a_deleted_container_is_made_anew_by_itself() {
    // SEMANTICS: RET-6, DEG-1
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("256M");
    still_files(&bed, 40);
    let of_b = |status: &serde_json::Value| status["replicas"][1]["replica"].as_str().unwrap().to_owned();
    let before = of_b(&bed.status());
    load(&bed.at("load"), || {
        shell(bed.path(), "rm -rf b/*").ok();
        let status = bed.wait_for(Duration::from_secs(5), "b is out", |status| state_of(status, &bed.b) == "out");
        assert_ne!(status["state"], "healthy");
        bed.wait_for(PATIENCE, "b is said to be made anew", |status| {
            status["action"].as_str().is_some_and(|action| action.contains("made anew"))
                || state_of(status, &bed.b) != "out"
        });
        let status = bed.wait_for(PATIENCE, "b is whole by itself", |status| {
            state_of(status, &bed.b) == "in sync" && status["task"]["state"] == "done"
        });
        assert!(status["task"]["result"]["blocks_copied"].as_u64().unwrap() > 40, "{status:#}");
        assert_ne!(of_b(&status), before, "it is another replica: the old one could still be somewhere");
    });
    assert_eq!(bed.status()["state"], "healthy");
    let scrub = bed.scrub();
    assert_eq!(scrub["detected"].as_u64(), Some(0), "{scrub:#}");
    bed.umount_and_check();
    bed.mount_of(&[&bed.b], "degraded").ok();
    check_still_files(&bed, 40);
    bed.umount().ok();
}

/// Goal: a container that was moved away is not made anew, nor one beside which something else stands, nor with `noreturn`.
#[test]
fn what_is_not_known_to_be_deleted_is_not_made_anew() {
    // SEMANTICS: RET-6
    if !can_mount() {
        return;
    }
    for (options, script) in [
        ("", "mv b/stablefs.data moved"),
        ("", "rm b/stablefs.data; echo mine > b/mine"),
        ("noreturn", "rm b/stablefs.data"),
    ] {
        let bed = Bed::formatted("64M");
        bed.mount(options).ok();
        fs::write(bed.at("file"), b"content").unwrap();
        shell(bed.path(), script).ok();
        bed.wait_for(Duration::from_secs(5), "b is out", |status| state_of(status, &bed.b) == "out");
        std::thread::sleep(LONG);
        assert_eq!(state_of(&bed.status(), &bed.b), "out", "{script}");
        assert!(!bed.b.join("stablefs.data").exists(), "{script}");
        assert!(bed.status()["action"].as_str().unwrap().contains("stablefs replace"), "{script}");
        bed.umount().ok();
    }
}

/// A filesystem of its own on b.
struct OnB(Bed);

impl Drop for OnB {
    fn drop(&mut self) {
        self.0.stablefs(["umount".as_ref(), self.0.mnt.as_os_str()]);
        detach(&self.0.b);
    }
}

/// Goal: where the disk of a replica is not mounted any more there is an empty directory; nothing is written into it, not even
/// if its container was deleted just before.
#[test]
fn nothing_is_made_where_the_disk_is_not_mounted() {
    // SEMANTICS: RET-6
    if !can_mount_as_root("to mount a filesystem for a replica") {
        return;
    }
    for deleted in [false, true] {
        let on_b = OnB(Bed::bare());
        let bed = &on_b.0;
        shell(bed.path(), "mount -t tmpfs none b").ok();
        bed.stablefs(["format".as_ref(), "--size".as_ref(), "64M".as_ref(), bed.a.as_os_str(), bed.b.as_os_str()]).ok();
        bed.mount("").ok();
        fs::write(bed.at("file"), b"content").unwrap();
        if deleted {
            fs::remove_file(bed.b.join("stablefs.data")).unwrap();
            bed.wait_for(Duration::from_secs(5), "b is out", |status| state_of(status, &bed.b) == "out");
        }
        shell(bed.path(), "umount -l b").ok();
        bed.wait_for(Duration::from_secs(10), "b is out", |status| state_of(status, &bed.b) == "out");
        std::thread::sleep(LONG);
        assert_eq!(fs::read_dir(&bed.b).unwrap().count(), 0, "something was made in the mount point");
        let status = bed.status();
        assert_eq!(state_of(&status, &bed.b), "out", "{status:#}");
        assert!(status["action"].as_str().unwrap().contains("stablefs replace"), "{status:#}");
        assert_eq!(fs::read(bed.at("file")).unwrap(), b"content");
    }
}
