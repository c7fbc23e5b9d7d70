//! Replicas that come and go while the volume is mounted: attach, detach, three of them.

use super::bed::{Bed, Said, bytes, can_mount, shell, state_of};
use super::degraded::{check_still_files, load, still_files};
use serde_json::Value;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(120);

fn directory(bed: &Bed, name: &str) -> PathBuf {
    let path = bed.path().join(name);
    fs::create_dir(&path).unwrap();
    path
}

/// A command about a replica of the mount.
#[track_caller]
fn say(bed: &Bed, words: &[&str], replica: &Path) -> Said {
    let words = words.iter().map(OsStr::new);
    bed.stablefs(words.chain([bed.mnt.as_os_str(), replica.as_os_str()]))
}

#[track_caller]
fn attach(bed: &Bed, new: &Path) -> Value {
    let report = say(bed, &["attach", "--json"], new).ok().json();
    let summary = report["summary"].as_str().unwrap();
    assert!(summary.contains("blocks present and correct on"), "{report:#}");
    assert!(summary.contains(new.to_str().unwrap()) && report["lost"] == 0, "{report:#}");
    report
}

#[track_caller]
fn check(bed: &Bed, replicas: &[&Path]) {
    bed.stablefs(["fsck".as_ref(), "-n".as_ref()].into_iter().chain(replicas.iter().map(|r| r.as_os_str()))).ok();
}

#[track_caller]
fn empty(bed: &Bed, replica: &Path) {
    shell(replica, "rm -rf ./* && test -z \"$(ls -A)\"").ok();
    bed.wait_for(PATIENCE, "it is named out", |status| state_of(status, replica) == "out");
}

/// Goal: a third replica comes under load; then two are lost, one after the other, and nobody notices; both come back, and each
/// of the three holds everything by itself.
#[test]
fn a_third_one_is_attached_and_two_may_die() {
    // SEMANTICS: MEM-1, MEM-3, DEG-1
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("512M");
    still_files(&bed, 60);
    let c = directory(&bed, "c");
    let ((), longest) = load(&bed.at("load"), || {
        let report = attach(&bed, &c);
        assert!(report["blocks_proven"].as_u64().unwrap() > 500, "{report:#}");
        let status = bed.status();
        assert_eq!((status["state"].as_str(), state_of(&status, &c).as_str()), (Some("healthy"), "in sync"));
        assert_eq!(status["replicas"].as_array().unwrap().len(), 3);
        empty(&bed, &bed.b);
        std::thread::sleep(Duration::from_millis(500));
        empty(&bed, &bed.a);
        std::thread::sleep(Duration::from_millis(500));
        check_still_files(&bed, 60);
        let said = say(&bed, &["detach"], &c).code(1);
        assert!(said.err.contains("only replica in sync"), "{said}");
        for replica in [&bed.a, &bed.b] {
            bed.stablefs(["replace".as_ref(), bed.mnt.as_os_str(), replica.as_os_str(), replica.as_os_str()]).ok();
        }
        assert_eq!(bed.status()["state"], "healthy");
    });
    println!("longest call: {longest:?}");
    assert!(longest < Duration::from_secs(6), "a call took {longest:?}");
    let scrub = bed.scrub();
    assert_eq!(scrub["detected"].as_u64(), Some(0), "{scrub:#}");
    bed.umount().ok();
    check(&bed, &[&c, &bed.b, &bed.a]);
    let said = bed.mount_of(&[&bed.a, &bed.b], "").code(1);
    assert!(said.err.contains("1 of 3 replicas in sync is missing"), "{said}");
    assert!(said.err.contains(&format!("last seen at {}", c.display())), "it says which one: {said}");
    bed.mount_of(&[&bed.b, &c, &bed.a], "").ok();
    check_still_files(&bed, 60);
    bed.umount().ok();
    // Each by itself. Without the others it goes on in a history of its own, so look only.
    for replica in [&bed.a, &bed.b, &c] {
        bed.mount_of(&[replica], "degraded,ro").ok();
        check_still_files(&bed, 60);
        bed.umount().ok();
    }
}

/// Goal: an attach that is killed with the daemon leaves no replica and no trace in the volume, and is begun again as it is.
#[test]
fn an_attach_that_is_killed_is_begun_again() {
    // SEMANTICS: MEM-1
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("1G");
    still_files(&bed, 30);
    fs::write(bed.at("file"), bytes(4, 300 << 20)).unwrap();
    bed.sync();
    let c = directory(&bed, "c");
    std::thread::scope(|scope| {
        let attaching = scope.spawn(|| say(&bed, &["attach"], &c));
        bed.wait_for(PATIENCE, "some of it is there", |status| {
            state_of(status, &c) == "returning" && status["task"]["progress"]["done"].as_u64() > Some(2000)
        });
        bed.kill();
        attaching.join().unwrap().code(1)
    });
    let said = bed.mount_of(&[&c], "degraded").code(1);
    assert!(said.err.contains("label"), "half a replica is none: {said}");
    bed.mount("").ok();
    let status = bed.status();
    assert_eq!((status["state"].as_str(), status["replicas"].as_array().unwrap().len()), (Some("healthy"), 2));
    attach(&bed, &c);
    assert!(fs::read(bed.at("file")).unwrap() == bytes(4, 300 << 20));
    bed.umount().ok();
    check(&bed, &[&bed.a, &bed.b, &c]);
}

/// Goal: who was detached is named for what it is beside the others, is refused alone, shows what it held to who insists, and
/// may be attached again.
#[test]
fn who_was_detached_is_known_as_such() {
    // SEMANTICS: MEM-2
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("256M");
    still_files(&bed, 30);
    let c = directory(&bed, "c");
    attach(&bed, &c);
    let report = say(&bed, &["detach", "--json"], &bed.b).ok().json();
    assert_eq!((report["told"].as_bool(), report["in_sync"].as_u64()), (Some(true), Some(2)), "{report:#}");
    let status = bed.status();
    assert_eq!((status["state"].as_str(), status["replicas"].as_array().unwrap().len()), (Some("healthy"), 2));
    fs::write(bed.at("later"), b"not on b").unwrap();
    bed.umount().ok();
    let said = bed.mount_of(&[&bed.b, &bed.a, &c], "").ok();
    assert!(said.err.contains("was detached at root"), "{said}");
    let status = bed.status();
    assert_eq!((status["state"].as_str(), state_of(&status, &bed.b).as_str()), (Some("healthy"), "unknown"));
    let note = status["notes"][0].as_str().unwrap();
    assert!(note.starts_with(bed.b.to_str().unwrap()) && note.contains("was detached at root"), "{note}");
    assert_eq!(fs::read(bed.at("later")).unwrap(), b"not on b");
    bed.umount().ok();
    for options in ["", "degraded"] {
        let said = bed.mount_of(&[&bed.b], options).code(1);
        assert!(said.err.contains("was detached at root") && said.err.contains("accept_stale"), "{said}");
    }
    bed.mount_of(&[&bed.b], "degraded,accept_stale,ro").ok();
    check_still_files(&bed, 30);
    assert!(!bed.at("later").exists());
    bed.umount().ok();
    bed.mount_of(&[&bed.a, &c], "").ok();
    attach(&bed, &bed.b);
    let status = bed.status();
    assert_eq!((status["state"].as_str(), status["replicas"].as_array().unwrap().len()), (Some("healthy"), 3));
    // One that was sent away is told, too; and one that is gone for good is given up.
    say(&bed, &["offline"], &c).ok();
    let report = say(&bed, &["detach", "--json"], &c).ok().json();
    assert_eq!(report["told"].as_bool(), Some(true), "{report:#}");
    empty(&bed, &bed.a);
    let report = say(&bed, &["detach", "--json"], &bed.a).ok().json();
    assert_eq!((report["told"].as_bool(), report["in_sync"].as_u64()), (Some(false), Some(1)), "{report:#}");
    let status = bed.status();
    assert!(status["state"] == "degraded" && status["action"].as_str().unwrap().contains("attach"), "{status:#}");
    bed.umount().ok();
    bed.mount_of(&[&bed.b], "").ok();
    attach(&bed, &bed.a);
    assert_eq!(bed.status()["state"], "healthy");
    check_still_files(&bed, 30);
    bed.umount().ok();
    check(&bed, &[&bed.a, &bed.b]);
}

/// Goal: a place that holds something is not taken, unless a person says so; a volume does not hold itself.
#[test]
fn a_place_that_holds_something_is_refused() {
    // SEMANTICS: MEM-1
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("128M");
    let c = directory(&bed, "c");
    fs::write(c.join("mine"), b"dear").unwrap();
    let said = say(&bed, &["attach"], &c).code(1);
    assert!(said.err.contains("--force") && said.err.trim_end().lines().count() == 1, "{said}");
    let other = (directory(&bed, "d"), directory(&bed, "e"));
    bed.stablefs(["format".as_ref(), "--size".as_ref(), "64M".as_ref(), other.0.as_os_str(), other.1.as_os_str()]).ok();
    let said = say(&bed, &["attach"], &other.0).code(1);
    assert!(said.err.contains("another volume"), "{said}");
    let said = say(&bed, &["attach"], &bed.b).code(1);
    assert!(said.err.contains("already"), "{said}");
    fs::create_dir(bed.at("inside")).unwrap();
    let said = say(&bed, &["attach"], &bed.at("inside")).code(1);
    assert!(said.err.contains("lies in the volume"), "{said}");
    let said = say(&bed, &["detach"], Path::new("7")).code(1);
    assert!(said.err.contains("no replica"), "{said}");
    assert_eq!(bed.status()["replicas"].as_array().unwrap().len(), 2);
    say(&bed, &["attach", "--force"], &other.0).ok();
    say(&bed, &["attach", "--force"], &c).ok();
    assert_eq!(fs::read(c.join("mine")).unwrap(), b"dear", "what lies beside the container is nobody's business");
    let said = say(&bed, &["attach", "--force"], &other.1).code(1);
    assert!(said.err.contains("4 replicas"), "{said}");
    bed.umount().ok();
    check(&bed, &[&bed.a, &bed.b, &c, &other.0]);
}

/// Where the first block of `content` stands in a container.
fn find(replica: &Path, content: &[u8]) -> BTreeSet<u64> {
    let file = fs::File::open(replica.join("stablefs.data")).unwrap();
    let blocks = file.metadata().unwrap().len() / 4096;
    let mut block = [0; 4096];
    let mut at = BTreeSet::new();
    for addr in 0..blocks {
        file.read_exact_at(&mut block, addr * 4096).unwrap();
        if block == content[..4096] {
            at.insert(addr);
        }
    }
    assert!(!at.is_empty(), "the file is not there");
    at
}

/// Goal: a block that no replica has is listed with the path of its file, and skipped: by replace and by attach; the rest is
/// proven on the new replica, and the old one is there until then.
#[test]
fn what_nobody_has_is_listed_with_its_path_and_skipped() {
    // SEMANTICS: MEM-4, DEG-7
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("256M");
    still_files(&bed, 30);
    fs::create_dir(bed.at("folder")).unwrap();
    for (seed, name) in [(71, "folder/one"), (72, "folder/two")] {
        let content = bytes(seed, 200_000);
        fs::write(bed.at(name), &content).unwrap();
        bed.sync();
        for replica in [&bed.a, &bed.b] {
            let file = fs::File::options().write(true).open(replica.join("stablefs.data")).unwrap();
            find(replica, &content).iter().for_each(|at| file.write_all_at(&[0xaa; 4096], at * 4096).unwrap());
            file.sync_data().unwrap();
        }
    }
    let (c, d) = (directory(&bed, "c"), directory(&bed, "d"));
    let listed = |report: &Value| {
        let lines: Vec<&str> = report["lost_paths"].as_array().unwrap().iter().map(|l| l.as_str().unwrap()).collect();
        assert_eq!((report["lost"].as_u64(), lines.len()), (Some(2), 2), "{report:#}");
        for path in ["/folder/one", "/folder/two"] {
            assert!(lines.iter().any(|line| line.starts_with(path)), "{path}: {report:#}");
        }
        assert!(report["summary"].as_str().unwrap().contains("present and correct on"), "{report:#}");
    };
    listed(&say(&bed, &["attach", "--json"], &c).ok().json());
    let replace = ["replace", "--json"].map(OsStr::new).into_iter();
    listed(&bed.stablefs(replace.chain([bed.mnt.as_os_str(), bed.b.as_os_str(), d.as_os_str()])).ok().json());
    assert_eq!(bed.status()["replicas"].as_array().unwrap().len(), 3);
    bed.umount().ok();
    bed.mount_of(&[&bed.a, &c, &d], "").ok();
    check_still_files(&bed, 30);
    let mut rest = [0; 4096];
    fs::File::open(bed.at("folder/one")).unwrap().read_exact_at(&mut rest, 160 * 1024).unwrap();
    assert!(rest[..] == bytes(71, 200_000)[160 * 1024..][..4096], "the rest is there");
    assert!(fs::read(bed.at("folder/one")).is_err(), "an error, and no wrong byte");
}
