//! Warm and cold replicas on real mounts: they follow by themselves, hold a whole state alone, and become hot again.

use super::bed::{Bed, bytes, can_mount, shell, state_of};
use super::degraded::{check_still_files, load, still_files};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

fn of<'s>(status: &'s Value, replica: &Path) -> &'s Value {
    let all = status["replicas"].as_array().unwrap_or_else(|| panic!("{status:#}"));
    let path = replica.to_str().unwrap();
    all.iter().find(|one| one["path"] == path).unwrap_or_else(|| panic!("{path}: {status:#}"))
}

fn role(bed: &Bed, replica: &Path, role: &str) -> super::bed::Said {
    bed.stablefs(["role".as_ref(), bed.mnt.as_os_str(), replica.as_os_str(), role.as_ref()])
}

/// It has followed, and nothing has changed since.
#[track_caller]
fn wait_until_up(bed: &Bed, replica: &Path) -> Value {
    bed.wait_for(PATIENCE, "it holds the same", |status| of(status, replica)["lag_ms"] == 0)
}

/// What b holds if all others are lost.
fn on_b_alone(bed: &Bed, look: impl FnOnce()) {
    bed.umount().ok();
    shell(bed.path(), "mv a a-away").ok();
    let refused = bed.mount_of(&[&bed.b], "degraded").code(1);
    assert!(refused.err.contains("it is ") && refused.err.contains("accept_stale"), "{refused}");
    bed.mount_of(&[&bed.b], "degraded,accept_stale,ro").ok();
    look();
    bed.umount().ok();
    shell(bed.path(), "mv a-away a").ok();
}

/// Goal: a warm replica follows under load, holds a whole state if all others are lost, and becomes hot again with what it has not.
#[test]
fn a_warm_replica_follows_and_becomes_hot_again() {
    // SEMANTICS: ROLE-1, ROLE-2, ROLE-3
    if !can_mount() {
        return;
    }
    let bed = Bed::formatted("1G");
    bed.mount("lag=1s").ok();
    still_files(&bed, 60);
    role(&bed, &bed.b, "warm").ok();
    let status = bed.status();
    assert_eq!((&of(&status, &bed.b)["role"], &of(&status, &bed.b)["state"]), (&"warm".into(), &"out".into()));
    assert_eq!(status["state"], "degraded", "what is new is held once: {status:#}");
    let last = role(&bed, &bed.a, "warm").code(1);
    assert!(last.err.contains("only replica in sync"), "{last}");
    let ((), longest) = load(&bed.at("load"), || {
        fs::write(bed.at("file"), bytes(7, 64 << 20)).unwrap();
        bed.sync();
        let followed = |status: &Value| of(status, &bed.b)["lag_ms"].as_u64().is_some_and(|ms| ms < 5000);
        bed.wait_for(PATIENCE, "it follows while there is work", followed);
    });
    println!("longest call: {longest:?}");
    shell(bed.path(), "rm -rf mnt/load").ok();
    bed.sync();
    wait_until_up(&bed, &bed.b);
    on_b_alone(&bed, || {
        check_still_files(&bed, 60);
        assert!(fs::read(bed.at("file")).unwrap() == bytes(7, 64 << 20));
    });
    bed.mount("lag=1s").ok();
    assert_eq!(of(&bed.status(), &bed.b)["role"], "warm", "it is remembered");
    fs::write(bed.at("more"), bytes(8, 8 << 20)).unwrap();
    role(&bed, &bed.b, "hot").ok();
    let status = bed.status();
    assert_eq!(state_of(&status, &bed.b), "in sync", "{status:#}");
    let copied = status["task"]["result"]["bytes_copied"].as_u64().unwrap();
    assert!(copied < 64 << 20, "100 MiB lay there already: {status:#}");
    let scrub = bed.scrub();
    assert_eq!(scrub["detected"].as_u64(), Some(0), "{scrub:#}");
    bed.umount_and_check();
}

/// Goal: a cold replica is caught up when its disk comes, without a person, and its place is left alone in between.
#[test]
fn a_cold_replica_is_caught_up_when_it_is_attached() {
    // SEMANTICS: ROLE-1, ROLE-2
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("512M");
    still_files(&bed, 20);
    role(&bed, &bed.b, "cold").ok();
    wait_until_up(&bed, &bed.b);
    shell(bed.path(), "mv b b-away").ok();
    bed.wait_for(PATIENCE, "it is seen that nobody is there", |status| {
        of(status, &bed.b)["follow_failure"].is_string()
    });
    fs::write(bed.at("file"), bytes(9, 16 << 20)).unwrap();
    bed.sync();
    let online = || bed.stablefs(["online".as_ref(), bed.mnt.as_os_str(), bed.b.as_os_str()]);
    online().code(1);
    assert_eq!(bed.status()["state"], "degraded");
    shell(bed.path(), "mv b-away b").ok();
    bed.wait_for(PATIENCE, "it has followed", |status| of(status, &bed.b)["lag_ms"] == 0);
    fs::write(bed.at("more"), bytes(10, 1 << 20)).unwrap();
    bed.sync();
    online().ok();
    on_b_alone(&bed, || {
        check_still_files(&bed, 20);
        assert!(fs::read(bed.at("file")).unwrap() == bytes(9, 16 << 20));
        assert!(fs::read(bed.at("more")).unwrap() == bytes(10, 1 << 20));
    });
}
