//! `kill -9` of the daemon under load. (Power cuts, which lose more, are simulated: `store` and `tests/crash.rs`.)

use super::bed::{Bed, bytes, can_mount};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What the load was told is safe.
#[derive(Default)]
struct Acknowledged {
    files: Mutex<Vec<(String, u64, usize)>>,
    names_before: AtomicU64,
    stop: AtomicBool,
}

/// Write files with fsync until the daemon is gone; note each that was acknowledged.
fn write_and_sync(mnt: &Path, writer: u64, said: &Acknowledged) {
    for i in 0.. {
        let name = format!("w{writer}-{i}");
        let len = [100, 5_000, 70_000, 1_500_000][i as usize % 4];
        let seed = writer * 1_000_000 + i;
        // Names that have been made when the fsync begins are safe when it returns.
        let names = said.names_before.load(Ordering::SeqCst);
        let write = || -> std::io::Result<()> {
            let mut file = fs::File::create(mnt.join(&name))?;
            file.write_all(&bytes(seed, len))?;
            file.sync_all()
        };
        if write().is_err() || said.stop.load(Ordering::SeqCst) {
            return; // an fsync that came back after the kill proves nothing
        }
        said.files.lock().unwrap().push((name, seed, len));
        SAFE_NAMES.fetch_max(names, Ordering::SeqCst);
    }
}

/// Highest numbered name that an acknowledged fsync covers.
static SAFE_NAMES: AtomicU64 = AtomicU64::new(0);

/// Goal: after kill -9 at any moment every acknowledged fsync is there, names are a prefix of what was done, and the
/// checker finds nothing. Method: three rounds on one volume, each killed at another moment.
#[test]
fn kill_9_loses_nothing_that_was_synced() {
    // SEMANTICS: DUR-1, DUR-2, CRASH-1, CRASH-2, CRASH-3, CRASH-5
    if !can_mount() {
        return;
    }
    let bed = Bed::formatted("2G");
    for (round, wait_ms) in [700_u64, 2_300, 6_100].into_iter().enumerate() {
        bed.mount("").ok();
        let folder = bed.at(&format!("round-{round}"));
        fs::create_dir_all(folder.join("names")).unwrap();
        fs::create_dir_all(folder.join("renamed")).unwrap();
        bed.sync();
        SAFE_NAMES.store(0, Ordering::SeqCst);
        let said = Acknowledged::default();
        std::thread::scope(|scope| {
            let (said, folder) = (&said, &folder);
            for writer in 0..3 {
                scope.spawn(move || write_and_sync(folder, writer, said));
            }
            scope.spawn(move || {
                // One after the other, no fsync: what survives must be the first so many. Every third moves on.
                for i in 0_u64.. {
                    let name = folder.join(format!("names/{i:08}"));
                    let mut done = fs::write(&name, i.to_string());
                    if i % 3 == 0 {
                        done = done.and_then(|()| fs::rename(&name, folder.join(format!("renamed/{i:08}"))));
                    }
                    if done.is_err() {
                        return;
                    }
                    said.names_before.store(i + 1, Ordering::SeqCst);
                }
            });
            std::thread::sleep(Duration::from_millis(wait_ms));
            said.stop.store(true, Ordering::SeqCst);
            bed.kill();
        });
        let began = Instant::now();
        bed.mount("").ok();
        let took = began.elapsed();
        assert!(took < Duration::from_secs(10), "mounting after the crash took {took:?}");
        let acknowledged = said.files.into_inner().unwrap();
        assert!(acknowledged.len() > 5, "the load did nothing");
        for (name, seed, len) in &acknowledged {
            let found = fs::read(folder.join(name)).unwrap_or_else(|e| panic!("round {round}: {name} is gone: {e}"));
            assert!(found == bytes(*seed, *len), "round {round}: {name} has other bytes");
        }
        let count = check_prefix(&folder);
        let safe = SAFE_NAMES.load(Ordering::SeqCst);
        assert!(count >= safe, "round {round}: {count} names survived, {safe} were acknowledged by a later fsync");
        println!(
            "round {round}: {} files, {count} names ({safe} acknowledged), mounted in {took:?}",
            acknowledged.len()
        );
        bed.umount_and_check();
    }
}

/// The names are the first so many, each in one place; returns how many.
fn check_prefix(folder: &Path) -> u64 {
    let numbers = |place: &str| -> BTreeSet<u64> {
        let entries = fs::read_dir(folder.join(place)).unwrap();
        entries.map(|e| e.unwrap().file_name().to_string_lossy().parse().unwrap()).collect()
    };
    let (stayed, moved) = (numbers("names"), numbers("renamed"));
    assert!(stayed.is_disjoint(&moved), "a rename shows both names");
    let all: BTreeSet<u64> = stayed.union(&moved).copied().collect();
    let count = all.len() as u64;
    assert_eq!(all.last().map_or(0, |last| last + 1), count, "a name is missing among the first {count}");
    assert!(moved.iter().all(|i| i % 3 == 0));
    let late = stayed.iter().filter(|i| **i % 3 == 0 && **i + 1 != count).count();
    assert_eq!(late, 0, "{late} renames are missing although later changes are there");
    count
}

/// Goal: a file that was deleted while open does not come back, and its space does.
#[test]
fn files_deleted_while_open_are_gone_after_a_crash() {
    // SEMANTICS: CRASH-4
    if !can_mount() {
        return;
    }
    let bed = Bed::mounted("256M");
    fs::write(bed.at("keep"), b"keep").unwrap();
    bed.sync();
    let used_before = bed.status()["used_bytes"].as_u64().unwrap();
    let mut file = fs::File::create(bed.at("ghost")).unwrap();
    file.write_all(&bytes(9, 60 << 20)).unwrap();
    file.sync_all().unwrap();
    fs::remove_file(bed.at("ghost")).unwrap();
    bed.sync();
    assert_eq!(file.metadata().unwrap().len(), 60 << 20, "an open file outlives its name");
    bed.kill();
    drop(file);
    bed.mount("").ok();
    assert!(!bed.at("ghost").exists());
    bed.wait_for(Duration::from_secs(60), "the space of the deleted file is free", |status| {
        bed.sync();
        status["used_bytes"].as_u64().unwrap() < used_before + (10 << 20)
    });
    assert_eq!(fs::read(bed.at("keep")).unwrap(), b"keep");
    bed.umount_and_check();
}
