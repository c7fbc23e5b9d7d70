//! A file that grows, and is synced by nobody, beside commits and fsyncs of another one; then a power cut.
//!
//! Goal: no size outlives the data that it rests on: whatever the order, the file has only bytes that were written to it.
//! Method: one thread appends and touches the inode, one syncs another file, one commits; the power fails at a write that
//! the seed chooses, and what was not flushed is gone.

use crate::explorer::{Scenario, explore, happened, seed};
use crate::volume::{CALLER, Volume};
use stablefs::disk::sim::{CrashPlan, Random};
use stablefs::format::ROOT_INO;
use stablefs::fs::api::StoreApi;
use stablefs::fs::{Filesystem, FsOptions, SetAttr};
use stablefs::store::commit::Force;
use stablefs::sync::thread;
use std::sync::Arc;

const BYTE: u8 = 0xa7;

/// Appends, fsyncs of another file and commits, as the seed says.
fn scenario() {
    let mut random = Random::new(seed() ^ 0x9c0a);
    let volume = Volume::new(seed(), 1500);
    let power = volume.bench.power.clone();
    let [grows, other] = ["grows", "other"].map(|name| {
        let made = volume.fs.create(ROOT_INO, name.as_bytes(), 0o644, libc::O_RDWR, &CALLER);
        made.expect("an empty volume has room").0.ino
    });
    volume.store.commit(Force::Always).expect("disks are whole");
    power.cut_at(Some(power.io_count() + random.range(1, 60)));
    let (fs, store) = (volume.fs.clone(), volume.store.clone());
    let mut threads = Vec::new();
    threads.push(thread::spawn({
        let (fs, mut random, grower) = (fs.clone(), random.fork(), power.clone());
        move || {
            let mut size = 0;
            for _ in 0..4 {
                let bytes = vec![BYTE; random.range(1, 30_000) as usize];
                let mode = SetAttr { mode: Some(0o600), ..SetAttr::default() };
                let touches = random.below(2) == 0;
                let done = fs.write(grows, size, &bytes, false, false).and_then(|count| {
                    size += u64::from(count);
                    if touches { fs.setattr(grows, &CALLER, &mode).map(drop) } else { Ok(()) }
                });
                if let Err(error) = done {
                    return assert!(grower.is_cut(), "growing failed although a replica lives: {error}");
                }
            }
        }
    }));
    threads.push(thread::spawn({
        let (fs, store, power) = (fs.clone(), store.clone(), power.clone());
        move || {
            for at in 0..4 {
                let written = fs.write(other, at * 100, &[1; 100], false, false).map(drop);
                if let Err(error) = written.and_then(|()| Ok(store.fsync_wait(other)?)) {
                    return assert!(power.is_cut(), "syncing failed although a replica lives: {error}");
                }
                happened("another file was synced");
            }
        }
    }));
    let committing = power.clone();
    threads.push(thread::spawn(move || {
        for _ in 0..3 {
            if let Err(error) = store.commit(Force::Always) {
                return assert!(committing.is_cut(), "a commit failed although a replica lives: {error}");
            }
            happened("a commit beside writers");
        }
    }));
    threads.into_iter().for_each(|thread| thread.join().expect("it does not panic"));
    drop(fs);
    if power.is_cut() {
        happened("the power failed");
    }
    let mut bench = volume.abandon();
    bench.disks = bench.power.revive(CrashPlan::DropAll);
    let (store, _) = bench.open(&[0, 1], false).expect("it opens again");
    let fs = Filesystem::new(Arc::new(store) as Arc<dyn StoreApi>, FsOptions::default()).expect("it mounts");
    let size = fs.getattr(grows).expect("it was committed").size;
    let mut found = Vec::new();
    fs.read(grows, 0, &mut found, 1 << 20).expect("it can be read");
    assert_eq!(found.len() as u64, size);
    happened(if size > 0 { "a size survived" } else { "no size survived" });
    let wrong = found.iter().position(|byte| *byte != BYTE);
    assert_eq!(wrong, None, "of {size} bytes, one that nobody wrote");
}

pub const SCENARIO: Scenario = Scenario {
    name: "grow",
    count: 2_000,
    happens: &[
        "another file was synced",
        "a commit beside writers",
        "the power failed",
        "a size survived",
        "no size survived",
    ],
    run: scenario,
};

#[test]
fn no_size_outlives_the_data_that_it_rests_on() {
    explore(&SCENARIO);
}
