//! What happened, told while it happens, and after the next mount.

use super::bed::{Bed, bytes, can_mount, shell, state_of, wait_until};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

fn events(bed: &Bed) -> Vec<Value> {
    let said = bed.stablefs(["events".as_ref(), "--json".as_ref(), bed.mnt.as_os_str()]).ok();
    said.json().as_array().expect("a list").clone()
}

/// Wait for an event, and give it.
fn event(bed: &Bed, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let mut found = None;
    wait_until(what, || {
        found = events(bed).into_iter().rev().find(|event| holds(event));
        found.is_some()
    });
    found.expect("just found")
}

fn is_move(event: &Value, replica: &Path, from: &str, to: &str) -> bool {
    event["event"] == "state"
        && event["replica"]["path"].as_str() == replica.to_str()
        && (event["from"].as_str(), event["to"].as_str()) == (Some(from), Some(to))
}

/// A program for events that keeps what it is told in `told` and `environment`.
fn hook(bed: &Bed) -> PathBuf {
    let path = bed.path().join("hook");
    let text = format!(
        "#!/bin/bash\ncd {}\ncat >> told\n\
         echo \"$STABLEFS_EVENT|$STABLEFS_REPLICA|$STABLEFS_FROM|$STABLEFS_TO|$STABLEFS_CAUSE|$STABLEFS_PATH|\
         $STABLEFS_VOLUME|$STABLEFS_TIME\" >> environment\n",
        bed.path().display()
    );
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn told(bed: &Bed) -> Vec<Value> {
    let text = fs::read_to_string(bed.path().join("told")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn figures<'s>(status: &'s Value, replica: &Path) -> &'s Value {
    let all = status["availability"]["replicas"].as_array().expect("figures");
    all.iter().find(|one| one["path"].as_str() == replica.to_str()).expect("figures of the replica")
}

/// Goal: a replica is taken away on a live mount: the event with its cause, the program that is run for it, the figures;
/// all of it is still there after the next mount, with the other replica alone.
#[test]
fn a_replica_taken_away_is_told_and_remembered() {
    // SEMANTICS: EVENT-1, EVENT-2, EVENT-3
    if !can_mount() {
        return;
    }
    let bed = Bed::formatted("128M");
    let program = hook(&bed);
    bed.mount(&format!("on-event={}", program.display())).ok();
    let all = events(&bed);
    assert_eq!(all[0]["event"], "mounted", "{all:#?}");
    assert!(is_move(&all[1], &bed.a, "", "in sync") && is_move(&all[2], &bed.b, "", "in sync"), "{all:#?}");
    fs::write(bed.at("file"), b"before").unwrap();
    bed.sync();
    shell(&bed.b, "rm -rf ./*").ok();
    fs::write(bed.at("file"), b"after").unwrap();
    bed.sync();
    let status = bed.wait_for(Duration::from_secs(60), "b is out", |status| state_of(status, &bed.b) == "out");
    let out = event(&bed, "b is told to be out", |event| is_move(event, &bed.b, "in sync", "out"));
    let cause = status["replicas"][1]["cause"].as_str().unwrap();
    assert!(!cause.is_empty() && out["cause"].as_str() == Some(cause), "{out:#}");
    assert_eq!(out["replica"]["uuid"], status["replicas"][1]["replica"]);

    wait_until("the program is told", || told(&bed).contains(&out));
    assert_eq!(told(&bed), events(&bed), "the program is told all, in order");
    let line = format!(
        "state|{}|in sync|out|{cause}||{}|{}",
        bed.b.display(),
        status["volume"].as_str().unwrap(),
        out["time_ns"]
    );
    let environment = || fs::read_to_string(bed.path().join("environment")).unwrap_or_default();
    wait_until("it has written that down", || environment().lines().count() == told(&bed).len());
    assert!(environment().lines().any(|one| one == line), "{line}\n{}", environment());
    let said = bed.stablefs(["events".as_ref(), bed.mnt.as_os_str()]).ok();
    let last = said.out.lines().last().unwrap();
    assert!(last.contains("in sync -> out") && last.contains(bed.b.to_str().unwrap()), "{said}");

    std::thread::sleep(Duration::from_millis(1100));
    let status = bed.status();
    let b = figures(&status, &bed.b);
    assert_eq!(b["outages"], 1, "{b:#}");
    assert!(b["down_ms"].as_u64() >= Some(1000) && b["availability"].as_f64() < Some(1.0), "{b:#}");
    assert_eq!(b["mttr_ms"], b["down_ms"], "{b:#}");
    assert_eq!(figures(&status, &bed.a)["outages"], 0);
    let all = &status["availability"];
    assert!(all["held_once_ms"].as_u64() >= Some(1000), "{all:#}");
    // SEMANTICS: RISK-1
    // Both clocks began with the same event.
    let risk = &status["risk"];
    let since = |one: &Value| one.as_u64().unwrap() / 1_000_000;
    assert!(since(&risk["since_ns"]).abs_diff(since(&out["time_ns"])) < 1000, "{risk:#}\n{out:#}");
    let at_risk_ms = all["at_risk_ms"].as_u64().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
    assert!(at_risk_ms > 0 && at_risk_ms <= now - since(&risk["since_ns"]) + 1000, "{risk:#}\n{all:#}");
    assert!(risk["held_once_bytes"].as_u64() > Some(0), "{risk:#}");
    assert!(risk["held_once_bytes"].as_u64() < risk["held_once_if_lost_bytes"].as_u64(), "{risk:#}");
    assert_eq!((&all["reads"]["outages"], &all["writes"]["down_ms"]), (&0.into(), &0.into()), "{all:#}");
    let said = bed.stablefs(["status".as_ref(), bed.mnt.as_os_str()]).code(1);
    assert!(said.out.contains("service: reads 100 %, writes 100 %") && said.out.contains("held once for"), "{said}");

    let before = events(&bed);
    bed.umount().ok();
    wait_until("the program is told of the end", || told(&bed).last().is_some_and(|e| e["event"] == "unmounted"));
    fs::rename(&bed.b, bed.path().join("away")).unwrap();
    bed.mount_of(&[&bed.a], "degraded").ok();
    let after = events(&bed);
    assert_eq!(after[..before.len()], before, "what a has alone");
    let rest: Vec<&str> = after[before.len()..].iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(rest, ["unmounted", "mounted", "state"]);
    assert_eq!(
        (after.last().unwrap()["from"].as_str(), after.last().unwrap()["to"].as_str()),
        (Some("out"), Some("missing"))
    );
    assert_eq!(told(&bed).len(), before.len() + 1, "no program was named this time");
    bed.umount().ok();
}

/// Goal: damage is told with the path of the file, a scrub with what it found, a crash at the next mount; the checker and
/// other mounts take the log for what it is.
#[test]
fn damage_scrub_and_crash_are_events() {
    // SEMANTICS: EVENT-1, EVENT-3
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("128M");
    let data = bytes(5, 64 * 4096);
    fs::create_dir(bed.at("dir")).unwrap();
    fs::write(bed.at("dir/victim"), &data).unwrap();
    bed.umount_and_check();
    let image = bed.b.join("stablefs.data");
    let blocks = fs::read(&image).unwrap();
    let at = blocks.chunks(4096).position(|block| block == &data[10 * 4096..11 * 4096]).expect("its tenth block");
    let file = fs::File::options().write(true).open(&image).unwrap();
    file.write_all_at(&[0x5a; 4096], at as u64 * 4096).unwrap();
    bed.mount("").ok();
    // Replicas are read in turns, past the kernel's cache.
    wait_until("b is asked for it", || {
        shell(&bed.mnt, "dd if=dir/victim bs=256K iflag=direct status=none | cmp - dir/victim").ok();
        events(&bed).iter().any(|event| event["event"] == "omission")
    });
    assert!(fs::read(bed.at("dir/victim")).unwrap() == data, "wrong bytes");
    let omission = event(&bed, "the omission", |event| event["event"] == "omission");
    assert_eq!(omission["path"], "/dir/victim", "{omission:#}");
    assert_eq!(omission["replica"]["path"].as_str(), bed.b.to_str(), "{omission:#}");
    assert_eq!(omission["detail"]["block"].as_u64(), Some(at as u64), "{omission:#}");
    bed.scrub();
    let scrubbed = event(&bed, "the scrub", |event| event["event"] == "scrubbed");
    assert_eq!(scrubbed["detail"]["lost"], 0, "{scrubbed:#}");
    fs::write(bed.at("other"), b"x").unwrap();
    bed.sync();
    bed.kill();
    bed.mount("").ok();
    let recovered = event(&bed, "the recovery", |event| event["event"] == "recovered");
    assert!(recovered["detail"]["last_root_ns"].as_u64() <= recovered["time_ns"].as_u64(), "{recovered:#}");
    let status = bed.status();
    let reads = &status["availability"]["reads"];
    assert_eq!(reads["outages"], 1, "{reads:#}");
    assert!(reads["nines"].is_number() && reads["availability"].as_f64() < Some(1.0), "{reads:#}");
    bed.umount_and_check();
}

/// Goal: a program that hangs holds neither the mount nor its end; what cannot be run is refused before anything is mounted.
#[test]
fn a_program_for_events_that_hangs_or_is_none_harms_nobody() {
    // SEMANTICS: EVENT-2
    if !can_mount() {
        return;
    }
    let bed = Bed::formatted("64M");
    let none = bed.path().join("none");
    for said in [bed.mount(&format!("on-event={}", none.display())), run_mount(&bed, &bed.path().join("a"))] {
        assert_eq!((said.code, said.err.trim_end().lines().count()), (1, 1), "{said}");
        assert!(said.err.contains("on-event="), "{said}");
    }
    let program = bed.path().join("hangs");
    fs::write(&program, format!("#!/bin/bash\necho $$ >> {}/runs\nsleep 1000\n", bed.path().display())).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    run_mount(&bed, &program).ok();
    let runs = || fs::read_to_string(bed.path().join("runs")).unwrap_or_default();
    wait_until("it runs", || runs().lines().count() == 1);
    fs::write(bed.at("file"), b"x").unwrap();
    bed.sync();
    assert_eq!(fs::read(bed.at("file")).unwrap(), b"x");
    bed.umount().ok();
    let process: i32 = runs().lines().next().unwrap().parse().unwrap();
    wait_until("it is ended with the daemon", || !super::bed::lives(process));
    assert_eq!(runs().lines().count(), 1, "one at a time");
    bed.fsck("-n").ok();
}

fn run_mount(bed: &Bed, program: &Path) -> super::bed::Said {
    let words = ["mount".as_ref(), "--on-event".as_ref(), program.as_os_str()];
    bed.stablefs(words.into_iter().chain([bed.a.as_os_str(), bed.b.as_os_str(), bed.mnt.as_os_str()]))
}
