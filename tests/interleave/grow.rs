//! A file that grows, and is synced by nobody, beside commits and fsyncs of another one; then a power cut.
//!
//! Goal: no size outlives the data that it rests on: whatever the order, the file has only bytes that were written to it.
//! Method: one thread appends and touches the inode, one syncs another file, one commits; the power fails at a write that
//! the seed chooses, and what was not flushed is gone.

use crate::explorer::{explore, seed};
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
pub fn scenario() {
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
        let (fs, mut random) = (fs.clone(), random.fork());
        move || {
            let mut size = 0;
            for _ in 0..4 {
                let bytes = vec![BYTE; random.range(1, 30_000) as usize];
                let Ok(count) = fs.write(grows, size, &bytes, false, false) else { return };
                size += u64::from(count);
                let mode = SetAttr { mode: Some(0o600), ..SetAttr::default() };
                if random.below(2) == 0 && fs.setattr(grows, &CALLER, &mode).is_err() {
                    return;
                }
            }
        }
    }));
    threads.push(thread::spawn({
        let (fs, store) = (fs.clone(), store.clone());
        move || {
            for at in 0..4 {
                if fs.write(other, at * 100, &[1; 100], false, false).is_err() || store.fsync_wait(other).is_err() {
                    return;
                }
            }
        }
    }));
    threads.push(thread::spawn(move || {
        for _ in 0..3 {
            // Fails once the power is cut.
            let _ = store.commit(Force::Always);
        }
    }));
    threads.into_iter().for_each(|thread| thread.join().expect("it does not panic"));
    drop(fs);
    let mut bench = volume.abandon();
    bench.disks = bench.power.revive(CrashPlan::DropAll);
    let (store, _) = bench.open(&[0, 1], false).expect("it opens again");
    let fs = Filesystem::new(Arc::new(store) as Arc<dyn StoreApi>, FsOptions::default()).expect("it mounts");
    let size = fs.getattr(grows).expect("it was committed").size;
    let mut found = Vec::new();
    fs.read(grows, 0, &mut found, 1 << 20).expect("it can be read");
    assert_eq!(found.len() as u64, size);
    let wrong = found.iter().position(|byte| *byte != BYTE);
    assert_eq!(wrong, None, "of {size} bytes, one that nobody wrote");
}

#[test]
fn no_size_outlives_the_data_that_it_rests_on() {
    explore("grow", 2_000, scenario);
}
