//! Replicas that were away and come back: by themselves, with what they missed, and when they are told to.

use super::bed::{Bed, Scale, bytes, can_mount, can_work_hard, scale, shell, state_of};
use super::degraded::{check_still_files, load, still_files};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(120);

/// Of the resync that ran last.
#[track_caller]
fn returned(status: &Value) -> &Value {
    assert_eq!((&status["task"]["kind"], &status["task"]["state"]), (&"resync".into(), &"done".into()), "{status:#}");
    &status["task"]["result"]
}

#[track_caller]
fn wait_until_back(bed: &Bed, replica: &Path) -> Value {
    let back = |status: &Value| state_of(status, replica) == "in sync" && status["task"]["state"] == "done";
    bed.wait_for(PATIENCE, "the replica is back by itself", back)
}

/// Everything on b, and nothing of a.
fn b_holds_everything(bed: &Bed, count: u64) {
    let scrub = bed.scrub();
    assert_eq!(scrub["detected"].as_u64(), Some(0), "{scrub:#}");
    bed.umount_and_check();
    shell(bed.path(), "mv a a-away").ok();
    bed.mount_of(&[&bed.b], "degraded").ok();
    check_still_files(bed, count);
    bed.umount().ok();
    shell(bed.path(), "mv a-away a").ok();
}

/// Goal: a replica whose container goes away and comes back under load is taken back without a person, is sent what it
/// missed and no more, and holds everything.
#[test]
fn a_replica_that_was_away_returns_by_itself_with_what_it_missed() {
    // SEMANTICS: RET-1, RET-2, DEG-1
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("1G");
    still_files(&bed, 60);
    fs::write(bed.at("before"), bytes(1, 96 << 20)).unwrap();
    bed.sync();
    let ((), longest) = load(&bed.at("load"), || {
        shell(bed.path(), "mv b/stablefs.data gone").ok();
        bed.wait_for(Duration::from_secs(5), "b is named out", |status| state_of(status, &bed.b) == "out");
        fs::write(bed.at("while-away"), bytes(2, 6 << 20)).unwrap();
        bed.sync();
        assert_ne!(state_of(&bed.status(), &bed.b), "in sync", "nobody is there");
        shell(bed.path(), "mv gone b/stablefs.data").ok();
        let status = wait_until_back(&bed, &bed.b);
        let report = returned(&status);
        println!("{report:#}");
        assert!(report["since_group"].as_u64().unwrap() > 0 && report["sampled"].as_u64().unwrap() > 0, "{report:#}");
        let missed = report["blocks_missed"].as_u64().unwrap() * 4096;
        assert!((6 << 20..64 << 20).contains(&missed), "{missed} bytes were missed of 100 MiB and more");
        assert!(report["bytes_copied"].as_u64().unwrap() < 64 << 20, "{report:#}");
    });
    println!("longest call: {longest:?}");
    assert!(fs::read(bed.at("before")).unwrap() == bytes(1, 96 << 20));
    b_holds_everything(&bed, 60);
}

/// Goal: what is moved follows what was missed, and not what is there. Prints both, at volumes of three sizes.
#[test]
fn heavy_what_is_moved_follows_what_was_missed() {
    // SEMANTICS: RET-1
    if !can_work_hard() {
        return;
    }
    const MIB: u64 = 1 << 20;
    // MiB: of the volume, of what is on it, of what is missed.
    let cases = match scale() {
        Scale::All => [(1 << 10, 700, 100), (5 << 10, 3500, 100), (20 << 10, 10_000, 100)],
        _ => [(256, 100, 20), (512, 300, 20), (1 << 10, 700, 20)],
    };
    for (volume, content, missed) in cases {
        let bed = Bed::mounted(&format!("{volume}M"));
        for part in 0..content / 50 {
            fs::write(bed.at(&format!("content-{part}")), bytes(part, 50 << 20)).unwrap();
        }
        bed.sync();
        let offline = |word: &str| bed.stablefs([word.as_ref(), bed.mnt.as_os_str(), bed.b.as_os_str()]).ok();
        offline("offline");
        for part in 0..missed / 10 {
            fs::write(bed.at(&format!("missed-{part}")), bytes(1000 + part, 10 << 20)).unwrap();
        }
        bed.sync();
        offline("online");
        let status = bed.status();
        let report = returned(&status);
        let of = |name: &str| report[name].as_u64().unwrap();
        let moved = of("bytes_copied");
        println!(
            "volume of {volume} MiB with {content} MiB on it: {missed} MiB missed, {:.1} MiB moved, {} blocks proven, {} sampled",
            moved as f64 / MIB as f64,
            of("blocks_proven"),
            of("sampled")
        );
        assert!(moved >= missed * MIB && moved < missed * MIB * 11 / 10, "{report:#}");
        assert!(of("blocks_proven") * 4096 < missed * MIB * 11 / 10, "{report:#}");
        let scrub = bed.scrub();
        assert_eq!(scrub["detected"].as_u64(), Some(0), "{scrub:#}");
        bed.umount_and_check();
    }
}

/// Goal: the same at a mount that finds a replica behind; it serves nothing before.
#[test]
fn a_replica_that_is_behind_at_the_mount_is_brought_up() {
    // SEMANTICS: RET-1, RET-2
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("256M");
    still_files(&bed, 30);
    bed.umount().ok();
    bed.mount_of(&[&bed.a], "degraded").ok();
    fs::write(bed.at("file"), bytes(3, 3 << 20)).unwrap();
    bed.umount().ok();
    bed.mount("noreturn").ok();
    assert_eq!(state_of(&bed.status(), &bed.b), "out");
    bed.umount().ok();
    bed.mount("").ok();
    let status = wait_until_back(&bed, &bed.b);
    assert!(returned(&status)["since_group"].as_u64().unwrap() > 0, "{status:#}");
    assert!(fs::read(bed.at("file")).unwrap() == bytes(3, 3 << 20));
    b_holds_everything(&bed, 30);
}

/// Goal: who is sent away stays away, also over a mount, until told to return; `-t` only until the next mount. The last one
/// in sync is not sent away.
#[test]
fn who_is_sent_away_stays_away() {
    // SEMANTICS: RET-3
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("256M");
    still_files(&bed, 30);
    let say = |words: &[&str], replica: &Path| {
        let mut all: Vec<std::ffi::OsString> = words.iter().map(Into::into).collect();
        all.extend([bed.mnt.clone().into(), replica.into()]);
        bed.stablefs(all)
    };
    say(&["offline"], &bed.b).ok();
    let said = say(&["offline"], &bed.a).code(1);
    assert!(said.err.contains("only replica in sync"), "{said}");
    fs::write(bed.at("file"), b"without b").unwrap();
    bed.umount().ok();
    bed.mount("").ok();
    std::thread::sleep(Duration::from_secs(3)); // longer than it takes to return
    let status = bed.status();
    assert_eq!(state_of(&status, &bed.b), "out", "{status:#}");
    assert!(status["action"].as_str().unwrap().contains("stablefs online"), "{status:#}");
    let report = say(&["online", "--json"], &bed.b).ok().json();
    assert!(report["since_group"].as_u64().unwrap() > 0 && report["lost"] == 0, "{report:#}");
    assert_eq!(bed.status()["state"], "healthy");
    say(&["offline", "-t"], &bed.b).ok();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(state_of(&bed.status(), &bed.b), "out");
    bed.umount().ok();
    bed.mount("").ok();
    wait_until_back(&bed, &bed.b);
    b_holds_everything(&bed, 30);
}

/// Goal: the daemon dies in the middle of a return; the next mount takes it up, and sends again only what is missing.
#[test]
fn a_return_that_was_cut_is_taken_up() {
    // SEMANTICS: RET-2
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("1G");
    still_files(&bed, 30);
    bed.umount().ok();
    bed.mount_of(&[&bed.a], "degraded").ok();
    fs::write(bed.at("file"), bytes(4, 200 << 20)).unwrap();
    bed.umount().ok();
    bed.mount("").ok();
    bed.wait_for(PATIENCE, "the return has begun", |status| {
        state_of(status, &bed.b) == "returning" && status["task"]["progress"]["done"].as_u64() > Some(2000)
    });
    bed.kill();
    bed.mount("noreturn").ok();
    assert_eq!(state_of(&bed.status(), &bed.b), "out", "what was not finished is not in sync");
    bed.umount().ok();
    let said = bed.mount_of(&[&bed.b], "degraded");
    assert_eq!(said.code, 1, "a replica that was on its way back was served alone: {said}");
    bed.mount("").ok();
    let status = wait_until_back(&bed, &bed.b);
    let report = returned(&status);
    println!("{report:#}");
    assert!(report["blocks_copied"].as_u64() < report["blocks_missed"].as_u64(), "{report:#}");
    assert!(fs::read(bed.at("file")).unwrap() == bytes(4, 200 << 20));
    b_holds_everything(&bed, 30);
}

/// Goal: a return can be stopped: who is sent away in the middle of it is away at once, and takes it up when told to.
#[test]
fn a_return_is_stopped_by_sending_it_away() {
    // SEMANTICS: RET-3
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("1G");
    still_files(&bed, 10);
    let say = |word: &str| bed.stablefs([word.as_ref(), bed.mnt.as_os_str(), bed.b.as_os_str()]);
    say("offline").ok();
    fs::write(bed.at("file"), bytes(5, 300 << 20)).unwrap();
    bed.sync();
    let online = std::thread::scope(|scope| {
        let online = scope.spawn(|| say("online"));
        bed.wait_for(PATIENCE, "the return has begun", |status| state_of(status, &bed.b) == "returning");
        say("offline").ok();
        assert_eq!(state_of(&bed.status(), &bed.b), "out");
        online.join().unwrap()
    });
    assert_eq!(online.code, 1, "{online}");
    say("online").ok();
    assert!(fs::read(bed.at("file")).unwrap() == bytes(5, 300 << 20));
    b_holds_everything(&bed, 10);
}

fn allocated(replica: &Path) -> u64 {
    fs::metadata(replica.join("stablefs.data")).unwrap().blocks() * 512
}

/// Goal: what was deleted while a replica was away takes no space below it after its return.
#[test]
fn space_that_was_given_back_meanwhile_is_given_back() {
    // SEMANTICS: RET-5
    if !can_mount() {
        return;
    }
    const MIB: u64 = 1 << 20;
    let bed = Bed::mounted("1G");
    still_files(&bed, 10);
    fs::write(bed.at("big"), bytes(6, 320 << 20)).unwrap();
    bed.sync();
    let before = allocated(&bed.b);
    assert!(before > 320 * MIB, "{before}");
    let say = |word: &str| bed.stablefs([word.as_ref(), bed.mnt.as_os_str(), bed.b.as_os_str()]);
    say("offline").ok();
    fs::remove_file(bed.at("big")).unwrap();
    let given = || before - allocated(&bed.a).min(before);
    for round in 0..200 {
        if given() > 100 * MIB {
            break;
        }
        fs::write(bed.at("small"), [round as u8; 100]).unwrap();
        bed.sync();
        std::thread::sleep(Duration::from_millis(50)); // the space is freed in the background
    }
    assert!(given() > 100 * MIB, "nothing was given back: {} MiB are allocated", allocated(&bed.a) / MIB);
    assert_eq!(allocated(&bed.b), before, "it is away");
    say("online").ok();
    let (a, b) = (allocated(&bed.a), allocated(&bed.b));
    println!("MiB allocated: before {}, a {}, b {}", before / MIB, a / MIB, b / MIB);
    assert!(b < a + 16 * MIB, "{b} bytes below b, {a} below a");
    b_holds_everything(&bed, 10);
}
