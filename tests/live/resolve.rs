//! Split brain on real mounts: refused, shown, decided, saved; and strangers, named for what they are.

use super::bed::{Bed, Said, bytes, can_mount, end, fingerprint, shell, state_of, wait_until};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// Both had the same; then each was written alone, on a host that does not know of the other.
fn split(bed: &Bed) {
    fs::create_dir(bed.at("folder")).unwrap();
    for number in 0..40 {
        fs::write(bed.at(&format!("folder/{number}")), bytes(number, 30_000)).unwrap();
    }
    bed.umount().ok();
    bed.mount_of(&[&bed.a], "degraded").ok();
    fs::write(bed.at("of-a"), bytes(100, 500_000)).unwrap();
    fs::write(bed.at("folder/1"), b"changed on a").unwrap();
    bed.umount().ok();
    let said = bed.mount_of(&[&bed.b], "degraded").code(1);
    assert!(said.err.contains("left behind") && said.err.contains("accept_stale"), "{said}");
    // The override is an option of its own; it says plainly what it costs.
    assert!(said.err.contains("everything written since then is lost"), "{said}");
    bed.mount_of(&[&bed.b], "degraded,accept_stale").ok();
    fs::write(bed.at("of-b"), bytes(200, 3 << 20)).unwrap();
    fs::write(bed.at("folder/2"), b"changed on b").unwrap();
    fs::create_dir(bed.at("folder/new")).unwrap();
    std::os::unix::fs::symlink("../of-b", bed.at("folder/new/link")).unwrap();
    bed.umount().ok();
}

fn resolve(bed: &Bed, words: &[&str], replicas: &[&Path]) -> Said {
    let words = words.iter().map(PathBuf::from);
    let replicas = replicas.iter().map(|path| path.to_path_buf());
    bed.stablefs(std::iter::once(PathBuf::from("resolve")).chain(words).chain(replicas))
}

fn is_a_everywhere(bed: &Bed) {
    bed.mount("").ok();
    let status = bed.status();
    assert_eq!(status["state"], "healthy", "{status:#}");
    let scrub = bed.scrub();
    assert_eq!(scrub["detected"].as_u64(), Some(0), "{scrub:#}");
    bed.umount_and_check();
    for alone in [&bed.a, &bed.b] {
        bed.mount_of(&[alone], "degraded,ro").ok();
        assert!(fs::read(bed.at("of-a")).unwrap() == bytes(100, 500_000));
        assert_eq!(fs::read(bed.at("folder/1")).unwrap(), b"changed on a");
        assert!(!bed.at("of-b").exists() && !bed.at("folder/new").exists());
        for number in 2..40 {
            assert!(fs::read(bed.at(&format!("folder/{number}"))).unwrap() == bytes(number, 30_000), "{number}");
        }
        bed.umount().ok();
    }
}

/// Goal: two histories are refused, both are shown, one is chosen and the other one's files are saved; nothing of either changes
/// before.
#[test]
fn a_split_brain_is_shown_saved_and_decided() {
    // SEMANTICS: SPLIT-1, SPLIT-2, SPLIT-3, DEG-6
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("128M");
    split(&bed);
    let (a, b) = (bed.a.to_str().unwrap().to_owned(), bed.b.to_str().unwrap().to_owned());
    let before = (fingerprint(&bed.a), fingerprint(&bed.b));
    for options in ["", "degraded"] {
        let said = bed.mount(options).code(1);
        assert_eq!(said.err.trim_end().lines().count(), 1, "{said}");
        for says in ["split brain", "commits since", "UTC", &format!("{a} has root"), &format!("{b} has root")] {
            assert!(said.err.contains(says), "{says}: {said}");
        }
        assert!(said.err.contains("stablefs resolve"), "{said}");
    }
    // What the refusal says is typed, and shown the same for either order.
    let said = resolve(&bed, &[], &[&bed.a, &bed.b]).ok();
    for path in ["/of-a", "/of-b", "/folder/1", "/folder/2", "/folder/new/", "/folder/new/link"] {
        let lines = said.out.lines().filter(|line| line.trim() == format!("changed: {path}")).count();
        assert_eq!(lines, 1, "{path}: {said}");
    }
    let told: Value = resolve(&bed, &["--json"], &[&bed.b, &bed.a]).ok().json();
    assert_eq!(told["histories"].as_array().unwrap().len(), 2, "{told:#}");
    let saved = bed.path().join("saved");
    let save = saved.to_str().unwrap();
    let said = resolve(&bed, &["--keep", &a, "--save", save, "--dry-run"], &[&bed.a, &bed.b]).ok();
    assert!(said.out.contains("is given up, after it was saved"), "{said}");
    let said = resolve(&bed, &["--keep", &a], &[&bed.a, &bed.b]).code(1);
    assert!(said.err.contains("nothing was changed") && said.err.contains("--yes"), "{said}");
    fs::create_dir(&saved).unwrap();
    fs::write(saved.join("mine"), b"mine").unwrap();
    let said = resolve(&bed, &["--keep", &a, "--yes", "--save", save], &[&bed.a, &bed.b]).code(1);
    assert!(said.err.contains("is not empty"), "{said}");
    fs::remove_file(saved.join("mine")).unwrap();
    let inside = bed.b.join("saved");
    let said = resolve(&bed, &["-y", "--keep", &a, "--save", inside.to_str().unwrap()], &[&bed.a, &bed.b]).code(1);
    assert!(said.err.contains("lies in a replica") && !inside.exists(), "{said}");
    let said = resolve(&bed, &["-y", "--keep", save], &[&bed.a, &bed.b]).code(1);
    assert!(said.err.contains("none of the replicas"), "{said}");
    assert_eq!(before, (fingerprint(&bed.a), fingerprint(&bed.b)), "something was written without a word");

    let said = resolve(&bed, &["--keep", &a, "--yes", "--save", save], &[&bed.b, &bed.a]).ok();
    println!("{said}");
    assert!(fs::read(saved.join("of-b")).unwrap() == bytes(200, 3 << 20));
    assert_eq!(fs::read(saved.join("folder/2")).unwrap(), b"changed on b");
    assert_eq!(fs::read_link(saved.join("folder/new/link")).unwrap(), Path::new("../of-b"));
    assert!(!saved.join("of-a").exists() && !saved.join("folder/3").exists(), "what was not changed there was saved");
    is_a_everywhere(&bed);
    let said = resolve(&bed, &["--keep", &a, "-y"], &[&bed.a, &bed.b]).ok();
    assert!(said.out.contains("nothing has to be decided"), "{said}");
    // Not while it is mounted.
    bed.mount("").ok();
    for words in [&[][..], &["-y", "--keep", &a]] {
        let said = resolve(&bed, words, &[&bed.a, &bed.b]).code(1);
        assert!(said.err.contains("in use"), "{said}");
    }
    bed.umount_and_check();
}

/// Goal: a decision that is killed anywhere goes on with the same words; until then nothing is mounted by mistake, and the one that
/// wins loses nothing.
#[test]
fn a_decision_that_is_killed_goes_on() {
    // SEMANTICS: SPLIT-2
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("256M");
    fs::write(bed.at("large"), bytes(1, 100 << 20)).unwrap();
    split(&bed);
    let a = bed.a.to_str().unwrap().to_owned();
    let words =
        ["resolve".as_ref(), "-y".as_ref(), "--keep".as_ref(), bed.a.as_os_str(), bed.a.as_os_str(), bed.b.as_os_str()];
    let before = fingerprint(&bed.b);
    // As long as it has not begun to write to b, and later.
    for pause_ms in [0, 60, 200, 400, 800] {
        let mut command = bed.command();
        command.args(words).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(pause_ms));
        end(child.id() as i32);
        let _ = child.wait();
        // Until the decision has begun, this host knows b as the one that went on last.
        let said = bed.mount_of(&[&bed.a], "degraded,ro,accept_stale").ok();
        assert!(fs::read(bed.at("of-a")).unwrap() == bytes(100, 500_000), "{said}");
        bed.umount().ok();
        println!(
            "killed after {pause_ms} ms: b is {}",
            if fingerprint(&bed.b) == before { "as it was" } else { "changed" }
        );
        let alone = bed.mount_of(&[&bed.b], "degraded,ro,accept_stale");
        if alone.code == 0 {
            let old = fs::read(bed.at("of-b")).is_ok_and(|found| found == bytes(200, 3 << 20));
            let new = fs::read(bed.at("of-a")).is_ok_and(|found| found == bytes(100, 500_000));
            bed.umount().ok();
            assert!(old != new, "b alone is a mixture");
        }
    }
    resolve(&bed, &["-y", "--keep", &a], &[&bed.a, &bed.b]).ok();
    bed.mount("").ok();
    assert!(fs::read(bed.at("large")).unwrap() == bytes(1, 100 << 20));
    bed.umount().ok();
    is_a_everywhere(&bed);
}

/// Goal: an old backup, a copy, a foreign replica and swapped disks are named for what they are; none is a fork.
#[test]
fn strangers_are_named_for_what_they_are() {
    // SEMANTICS: SPLIT-4
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("64M");
    fs::write(bed.at("file"), b"one").unwrap();
    bed.umount().ok();
    shell(bed.path(), "cp -r --sparse=always b b-old; cp -r --sparse=always a a-copy").ok();
    for content in ["two", "three"] {
        bed.mount("").ok();
        fs::write(bed.at("file"), content).unwrap();
        bed.umount().ok();
    }
    let at = |name: &str| bed.path().join(name);
    let refused = |replicas: &[&Path], says: &str| {
        let said = bed.mount_of(replicas, "degraded").code(1);
        assert_eq!(said.err.trim_end().lines().count(), 1, "{said}");
        assert!(said.err.contains(says), "{says}: {said}");
    };
    refused(&[&bed.a, &at("a-copy")], "are the same replica, or one is a copy of the other");
    refused(&[&bed.a, &bed.a], "given twice");
    let other = Bed::formatted("64M");
    refused(&[&bed.a, &other.b], "are replicas of two volumes");
    let said = resolve(&bed, &[], &[&bed.a, &other.b]).code(1);
    assert!(said.err.contains("are replicas of two volumes"), "{said}");
    // Swapped: each says by itself who it is.
    shell(bed.path(), "mv a x; mv b a; mv x b").ok();
    bed.mount("").ok();
    assert_eq!(fs::read(bed.at("file")).unwrap(), b"three");
    assert_eq!(bed.status()["state"], "healthy");
    bed.umount_and_check();
    shell(bed.path(), "mv a x; mv b a; mv x b").ok();
    // An old backup in the place of b: behind, asked for by a word, and taken back.
    shell(bed.path(), "rm -r b; mv b-old b").ok();
    let said = bed.mount("").code(1);
    assert!(said.err.contains("it is an old copy") && said.err.contains("degraded"), "{said}");
    let said = resolve(&bed, &[], &[&bed.a, &bed.b]).ok();
    assert!(said.out.contains("nothing has to be decided") && said.out.contains("is behind"), "{said}");
    bed.mount("degraded").ok();
    wait_until("the old copy is brought up", || state_of(&bed.status(), &bed.b) == "in sync");
    assert_eq!(fs::read(bed.at("file")).unwrap(), b"three");
    bed.umount_and_check();
}
