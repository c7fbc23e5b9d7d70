//! Losing a replica, working on without it, and getting it back.

use super::bed::{Bed, bytes, can_mount, counter, shell, state_of};
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Programs that write, sync, read back and compare until told to stop. Any error fails the test.
pub fn load<R>(folder: &Path, work: impl FnOnce() -> R) -> (R, Duration) {
    fs::create_dir_all(folder).unwrap();
    let stop = AtomicBool::new(false);
    let longest = AtomicU64::new(0);
    let result = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..3_u64)
            .map(|worker| {
                let (stop, longest) = (&stop, &longest);
                scope.spawn(move || {
                    let mut turns = 0_u64;
                    while !stop.load(Ordering::Relaxed) {
                        turn(folder, worker, turns, longest);
                        turns += 1;
                    }
                    turns
                })
            })
            .collect();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, Ordering::Relaxed);
        let turns: Vec<u64> = handles.into_iter().map(|handle| handle.join().expect("an application error")).collect();
        println!("load: {turns:?} turns");
        assert!(turns.iter().all(|turns| *turns > 0), "a worker did nothing");
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    (result, Duration::from_micros(longest.into_inner()))
}

fn turn(folder: &Path, worker: u64, turn: u64, longest_us: &AtomicU64) {
    let timed = |what: &mut dyn FnMut() -> std::io::Result<()>| {
        let began = Instant::now();
        what().unwrap_or_else(|error| panic!("worker {worker}, turn {turn}: {error}"));
        longest_us.fetch_max(began.elapsed().as_micros() as u64, Ordering::Relaxed);
    };
    let name = folder.join(format!("load-{worker}-{}", turn % 20));
    let len = [300, 20_000, 600_000][turn as usize % 3];
    let data = bytes(worker * 1000 + turn, len);
    let mut file = fs::File::options().read(true).write(true).create(true).truncate(true).open(&name).unwrap();
    timed(&mut || file.write_all(&data));
    timed(&mut || file.sync_all());
    let mut found = Vec::new();
    timed(&mut || file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut found)).map(|_| ()));
    assert!(found == data, "worker {worker}, turn {turn}: other bytes were read than written");
    let other = folder.join(format!("moved-{worker}-{}", turn % 20));
    timed(&mut || fs::rename(&name, &other));
    timed(&mut || fs::metadata(&other).map(|_| ()));
    if turn % 5 == 4 {
        timed(&mut || fs::remove_file(&other));
    }
}

/// Files that nobody changes, to prove that reads stay right.
pub fn still_files(bed: &Bed, count: u64) {
    fs::create_dir(bed.at("still")).unwrap();
    for i in 0..count {
        fs::write(bed.at(&format!("still/{i}")), bytes(i, still_len(i))).unwrap();
    }
    bed.sync();
}

pub fn still_len(i: u64) -> usize {
    [700, 9_000, 130_000][i as usize % 3]
}

pub fn check_still_files(bed: &Bed, count: u64) {
    for i in 0..count {
        let found = fs::read(bed.at(&format!("still/{i}"))).unwrap_or_else(|e| panic!("still/{i}: {e}"));
        assert!(found == bytes(i, still_len(i)), "still/{i} reads as other bytes");
    }
}

fn replace(bed: &Bed, old: &Path, new: &Path) {
    bed.stablefs(["replace".as_ref(), bed.mnt.as_os_str(), old.as_os_str(), new.as_os_str()]).ok();
}

/// Goal: the container of one replica vanishes under load; nobody notices but `status`, and `replace` brings it back.
#[test]
fn an_emptied_replica_costs_nothing_and_is_replaced() {
    // SEMANTICS: DEG-1, DEG-3, DEG-7, DUR-3
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("1G");
    still_files(&bed, 60);
    let ((), longest) = load(&bed.at("load"), || {
        std::thread::sleep(Duration::from_secs(1));
        shell(&bed.b, "rm -rf ./* && test -z \"$(ls -A)\"").ok();
        let began = Instant::now();
        let status = bed.wait_for(Duration::from_secs(5), "b is named out", |status| state_of(status, &bed.b) == "out");
        println!("named out after {:?}", began.elapsed());
        assert_eq!(status["state"], "degraded");
        let action = status["action"].as_str().unwrap();
        assert!(action.contains("replace") && action.contains(bed.mnt.to_str().unwrap()), "{action}");
        let said = bed.stablefs(["status".as_ref(), bed.mnt.as_os_str()]).code(1);
        assert!(said.out.contains("DEGRADED") && said.out.contains(bed.b.to_str().unwrap()), "{said}");
        std::thread::sleep(Duration::from_secs(1));
        replace(&bed, &bed.b, &bed.b);
        let status = bed.status();
        assert_eq!((status["state"].as_str(), state_of(&status, &bed.b).as_str()), (Some("healthy"), "in sync"));
    });
    println!("longest call: {longest:?}");
    assert!(longest < Duration::from_secs(6), "a call took {longest:?}");
    check_still_files(&bed, 60);
    let scrub = bed.scrub();
    assert_eq!(scrub["detected"].as_u64(), Some(0), "{scrub:#}");
    bed.umount_and_check();
    // The new replica is enough by itself.
    let away = bed.path().join("away");
    fs::rename(&bed.a, &away).unwrap();
    bed.mount_of(&[&bed.b], "degraded").ok();
    check_still_files(&bed, 60);
    bed.umount().ok();
}

/// Goal: the same with the other ways in which a container can be hurt under a running mount.
#[test]
fn a_replica_that_is_truncated_or_swapped_is_out_at_once() {
    // SEMANTICS: DEG-1, DEG-3
    if !can_mount() {
        return;
    }
    for (name, script) in [
        ("truncated", "truncate -s 8K stablefs.data"),
        ("swapped", "cp --sparse=always stablefs.data new && mv new stablefs.data"),
        ("moved", "mkdir ../elsewhere && mv stablefs.data ../elsewhere/"),
    ] {
        let bed = Bed::formatted("256M");
        bed.mount("noreturn").ok();
        still_files(&bed, 20);
        load(&bed.at("load"), || {
            std::thread::sleep(Duration::from_millis(500));
            shell(&bed.b, script).ok();
            bed.wait_for(Duration::from_secs(5), name, |status| state_of(status, &bed.b) == "out");
        });
        check_still_files(&bed, 20);
        fs::create_dir(bed.path().join("c")).unwrap();
        replace(&bed, &bed.b, &bed.path().join("c"));
        check_still_files(&bed, 20);
        bed.umount().ok();
        let c = bed.path().join("c");
        bed.stablefs(["fsck".as_ref(), "-n".as_ref(), bed.a.as_os_str(), c.as_os_str()]).ok();
    }
}

/// Goal: who was left behind never passes for the newest, and nothing is decided where both went on.
#[test]
fn who_was_left_behind_does_not_come_back_as_the_newest() {
    // SEMANTICS: DEG-4, DEG-5, DEG-6
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("128M");
    fs::write(bed.at("file"), b"old").unwrap();
    bed.umount().ok();
    let said = bed.mount_of(&[&bed.a], "");
    assert_eq!(said.code, 1, "{said}");
    assert!(said.err.contains("degraded") && said.err.trim_end().lines().count() == 1, "{said}");
    bed.mount_of(&[&bed.a], "degraded").ok();
    assert_eq!(bed.status()["state"], "degraded");
    fs::write(bed.at("file"), b"new").unwrap();
    bed.umount().ok();
    // b alone: this host remembers that a went on without it.
    let said = bed.mount_of(&[&bed.b], "degraded");
    assert_eq!(said.code, 1, "a replica that was left behind was mounted: {said}");
    assert!(said.err.contains("left behind"), "{said}");
    // Both: a is served, b is not.
    bed.mount("noreturn").ok();
    assert_eq!(fs::read(bed.at("file")).unwrap(), b"new");
    assert_ne!(state_of(&bed.status(), &bed.b), "in sync", "a replica that missed something is in sync by itself");
    fs::write(bed.at("file2"), b"newer").unwrap();
    bed.umount().ok();
    // Fork: on a host that knows nothing, b goes on alone, too.
    let image = bed.path().join("b-before");
    shell(bed.path(), "mv state state-away; mkdir state; cp -r --sparse=always b b-before").ok();
    bed.mount_of(&[&bed.b], "degraded").ok();
    fs::write(bed.at("file"), b"forked").unwrap();
    bed.umount().ok();
    let before = (super::bed::fingerprint(&bed.a), super::bed::fingerprint(&bed.b));
    for options in ["", "degraded"] {
        let said = bed.mount(options);
        assert_eq!(said.code, 1, "two histories were mounted together: {said}");
        assert_eq!(said.err.trim_end().lines().count(), 1, "{said}");
    }
    assert_eq!(before, (super::bed::fingerprint(&bed.a), super::bed::fingerprint(&bed.b)));
    // As it was before, b is only behind; replace makes it whole.
    shell(bed.path(), "rm -r b; mv b-before b; rm -r state; mv state-away state").ok();
    assert!(!image.exists());
    bed.mount("noreturn").ok();
    replace(&bed, &bed.b, &bed.b);
    assert_eq!(bed.status()["state"], "healthy");
    assert_eq!(fs::read(bed.at("file2")).unwrap(), b"newer");
    bed.umount_and_check();
}

/// Goal: fsck names a vanished container, and rebuilds it.
#[test]
fn fsck_rebuilds_a_vanished_container() {
    // SEMANTICS: HEAL-3, HEAL-4
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("256M");
    still_files(&bed, 30);
    bed.umount_and_check();
    shell(&bed.b, "rm -rf ./*").ok();
    let before = super::bed::fingerprint(bed.path());
    let said = bed.fsck("-n").code(4);
    assert!(said.out.contains(bed.b.to_str().unwrap()) || said.err.contains(bed.b.to_str().unwrap()), "{said}");
    assert_eq!(before, super::bed::fingerprint(bed.path()), "fsck -n wrote something");
    bed.fsck("-y").code(1);
    bed.fsck("-n").code(0);
    shell(&bed.a, "rm -rf ./*").ok();
    bed.mount_of(&[&bed.b], "degraded").ok();
    check_still_files(&bed, 30);
    assert_eq!(counter(&bed.status(), "heal_failed"), 0);
    bed.umount().ok();
}
