//! Lives of volumes: operations among crashes, faults, late I/O, remounts, degraded mounts, replace, scrub and fsck.
//!
//! Goal: the ordinary weights of the simulator find nothing. Method: `stablefs::simulate::life` for many seeds; a
//! failure names the seed and tells the story. `STABLEFS_SEEDS=7` (or `0..20000`) chooses other seeds.

mod common;

use stablefs::simulate::life::life;

#[test]
fn many_lives_break_no_promise() {
    let sum = common::run("lives", common::seeds(0..600), life);
    assert!(sum.replaces > 0 && sum.scrubs > 0 && sum.fscks > 0 && sum.degraded > 0 && sum.late > 0, "{sum}");
}
