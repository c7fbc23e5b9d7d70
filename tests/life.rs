//! Lives of volumes: operations among crashes, faults, late I/O, remounts, degraded mounts, replace, scrub and fsck.
//!
//! Goal: the ordinary weights of the simulator find nothing. Method: `stablefs::simulate::life` for many seeds; a
//! failure names the seed and tells the story. `STABLEFS_SEEDS=7` (or `0..20000`) chooses other seeds.

mod common;

use stablefs::disk::sim::CrashPlan;
use stablefs::simulate::life::life;
use stablefs::simulate::worlds::Kind;
use stablefs::simulate::{Bench, clean};
use stablefs::store::commit::Force;

#[test]
fn many_lives_break_no_promise() {
    let sum = common::run("lives", common::seeds(0..600), life);
    assert!(sum.replaces > 0 && sum.scrubs > 0 && sum.fscks > 0 && sum.degraded > 0 && sum.late > 0, "{sum}");
}

/// Seeds that once broke a promise, and what was wrong.
const REGRESSIONS: [(Kind, u64, &str); 6] = [
    (Kind::Life, 0, "replace called a disk in sync that lost even the root that says so"),
    (Kind::Life, 474, "fsck -n called a root damaged that the power cut had kept from one disk"),
    (Kind::Life, 823, "a disk that was proven whole when the power failed"),
    (Kind::Life, 3170, "a root that was never acknowledged was taken for a second history"),
    (Kind::Life, 6771, "what a scrub had healed was lost again with the power"),
    (Kind::Life, 12801, "a disk that came back with old content"),
];

#[test]
fn what_was_mended_stays_mended() {
    for (kind, seed, what) in REGRESSIONS {
        kind.run(seed).unwrap_or_else(|failure| panic!("{what}: {failure}"));
    }
}

/// Life 3170: the power fails while a root is being written, and one disk has it; then the other one is mounted alone. What
/// the first one holds was never acknowledged: it is behind, and no second history.
#[test]
fn a_root_that_was_never_acknowledged_is_no_second_history() {
    let mut seen = 0;
    for at in 1..40 {
        let mut bench = Bench::new(5);
        let mut driver = bench.mount().unwrap();
        bench.run(&mut driver, 30).unwrap();
        bench.power.cut_at(Some(bench.power.io_count() + at));
        let _cut = driver.store.commit(Force::Always);
        if !bench.power.is_cut() {
            break;
        }
        let ahead = bench.disks[0].snapshot();
        drop(driver);
        bench.disks = bench.power.revive(CrashPlan::DropAll);
        // The first disk kept everything that it was asked to write, the second one nothing.
        bench.disks[0].restore(ahead);
        drop(bench.open(&[1], true).unwrap());
        let (store, report) = bench.open(&[0, 1], false).unwrap_or_else(|error| panic!("cut {at}: {error}"));
        assert_eq!(report.behind.len(), 1, "cut {at}: {:?}", report.behind);
        assert!(report.behind[0].0.ends_with('0'));
        clean(&store).unwrap();
        seen += 1;
    }
    assert!(seen > 4, "only {seen} cuts");
}

/// But two disks that were both written alone are two histories, in whatever order they come back.
#[test]
fn two_disks_that_were_written_alone_are_refused() {
    for first in [0, 1] {
        let mut bench = Bench::new(6);
        let mut driver = bench.mount().unwrap();
        bench.run(&mut driver, 30).unwrap();
        bench.finish(&mut driver).unwrap();
        drop(driver);
        drop(bench.open(&[first], true).unwrap());
        drop(bench.open(&[1 - first], true).unwrap());
        assert!(bench.open(&[0, 1], true).is_err() && bench.open(&[1, 0], false).is_err());
    }
}
