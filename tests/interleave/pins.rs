//! Readers beside writers that overwrite, delete and commit on a volume with little room.
//!
//! Goal: what a reader holds stays whole although its blocks are freed and space is reused as soon as it may be; each read
//! gives the bytes of one write, and never fails. Method: a reader pins the durable state and proves everything that it
//! reaches, past the cache, again and again; another one reads whole files; writers replace them, each write whole and its
//! own, and make every commit a reclaiming one.

use crate::explorer::{Scenario, explore, happened, seed};
use crate::volume::{CALLER, Volume};
use stablefs::disk::sim::Random;
use stablefs::format::{BLOCK, ROOT_INO};
use stablefs::fs::{FsError, SetAttr};
use stablefs::simulate::{clean, pinned};
use stablefs::store::commit::Force;
use stablefs::sync::thread;
use std::sync::Arc;

/// Blocks of a file: a few of them fill what the reserve leaves.
const FILE_BLOCKS: usize = 60;

fn whole(version: u64) -> Vec<u8> {
    version.to_le_bytes().repeat(FILE_BLOCKS * BLOCK / 8)
}

/// Write the file anew: from nothing (its blocks are freed first), or over what is there.
fn replace(volume: &Volume, ino: u64, version: u64, from_nothing: bool) -> Result<(), FsError> {
    if from_nothing {
        volume.fs.setattr(ino, &CALLER, &SetAttr { size: Some(0), ..SetAttr::default() })?;
    }
    let written = volume.fs.write(ino, 0, &whole(version), false, false)?;
    assert_eq!(written as usize, FILE_BLOCKS * BLOCK, "writes of this size are whole");
    Ok(())
}

/// Pins, reads, writes and commits, as the seed says.
fn scenario() {
    let mut random = Random::new(seed() ^ 0x9145);
    let mut volume = Volume::new(seed(), 1100);
    let make = |name: &str| {
        let (attr, handle) = volume.fs.create(ROOT_INO, name.as_bytes(), 0o644, libc::O_RDWR, &CALLER).expect("room");
        volume.fs.release(attr.ino, handle);
        replace(&volume, attr.ino, 1, false).expect("room");
        attr.ino
    };
    let files = [make("a"), make("b")];
    let filler = make("filler");
    volume.store.commit(Force::Always).expect("disks are whole");
    // Blocks stand everywhere, so that what is freed is what is reused.
    let free = volume.store.space().free;
    let fill = vec![7; (free.saturating_sub(random.range(140, 400)) as usize).min(500) * BLOCK];
    volume.fs.write(filler, (FILE_BLOCKS * BLOCK) as u64, &fill, false, false).expect("room");
    volume.store.commit(Force::Always).expect("disks are whole");
    if random.below(2) == 0 {
        volume.start_engine();
    }
    let volume = Arc::new(volume);
    let mut threads = Vec::new();
    for ino in files {
        let (volume, mut random) = (volume.clone(), random.fork());
        threads.push(thread::spawn(move || {
            for version in 2..2 + random.range(2, 6) {
                match replace(&volume, ino, version << 32 | ino, random.below(2) == 0) {
                    // Pinned blocks are not given back: the volume may be full for a while.
                    Err(FsError::Store(stablefs::store::StoreError::NoSpace)) => happened("no room"),
                    Ok(()) => {}
                    Err(error) => panic!("writing: {error}"),
                }
                volume.store.commit(*random.pick(&[Force::Reclaim, Force::Always])).expect("disks are whole");
            }
        }));
    }
    for pins in [true, false] {
        let (volume, mut random) = (volume.clone(), random.fork());
        threads.push(thread::spawn(move || {
            for _ in 0..random.range(1, 5) {
                if pins {
                    let held = volume.store.view().committed.clone();
                    for _ in 0..random.range(1, 4) {
                        thread::yield_now();
                        let now = volume.store.durable_root();
                        if now.version > held.root.version + 1 {
                            happened("held a root while two were committed");
                        }
                        pinned::prove(&volume.store, &held.root).expect("what is pinned stays whole");
                    }
                } else {
                    let mut out = Vec::new();
                    volume.fs.read(*random.pick(&files), 0, &mut out, 1 << 20).expect("a read does not fail");
                    let first = out.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
                    happened(if out.is_empty() { "read nothing" } else { "read a file" });
                    assert!(out.is_empty() || out == whole(first), "a read gave pieces of two writes");
                }
            }
        }));
    }
    threads.into_iter().for_each(|thread| thread.join().expect("it does not panic"));
    let mut volume = Arc::into_inner(volume).expect("all threads have ended");
    volume.stop_engine();
    volume.store.commit(Force::Reclaim).expect("disks are whole");
    if seed().is_multiple_of(4) {
        clean(&volume.store).unwrap_or_else(|found| panic!("{found}"));
    }
}

pub const SCENARIO: Scenario = Scenario {
    name: "pins",
    count: 600,
    happens: &["no room", "held a root while two were committed", "read a file"],
    run: scenario,
};

#[test]
fn what_a_reader_holds_stays_whole_while_space_is_reused() {
    explore(&SCENARIO);
}
