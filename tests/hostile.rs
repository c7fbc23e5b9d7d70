//! Hostile bytes: invariant 10, "bytes from disk never panic, loop, or allocate without bound".
//!
//! Goal: volumes, log records, control messages and tables that no honest program wrote get errors, and nothing else.
//! Method: a seeded mutator in the product (`stablefs::simulate::mutate`), because cargo-fuzz needs a nightly compiler
//! (`-Zsanitizer=…`) and this project builds with the stable one. It knows every structure: it puts extremes into any
//! field, redirects pointers, rewrites leaves, log records and roots, and then makes good the checksums all the way up,
//! which blind fuzzing hardly ever does; on one replica, or on all in the same way. Each volume is then looked at, opened,
//! walked, worked in, checked, repaired, and opened again.
//!
//! What fails a case: a panic; more than `REQUESTS_MAX` requests to the disks; `GUARD_S` of processor time (a loop that
//! asks no disk: the guard prints the seed and ends the program); `PEAK_MAX` of memory, or `SINGLE_MAX` at once; a write
//! outside of all structures; an undamaged file that is not served; a root that does not decode.
//!
//! Replay one seed with `STABLEFS_SEEDS=n cargo test --test hostile volumes`. `STABLEFS_TEST_SCALE=all` runs more.

mod common;
#[path = "hostile/decoders.rs"]
mod decoders;
#[path = "hostile/memory.rs"]
mod memory;
#[path = "hostile/regressions.rs"]
mod regressions;
#[path = "hostile/words.rs"]
mod words;

use common::{failures_max, is_long, seeds};
use memory::{Guarded, SINGLE_MAX, peak_max};
use stablefs::simulate::mutate::sample::samples;
use stablefs::simulate::mutate::{Case, Tally, walk_case};

#[global_allocator]
static COUNTING: memory::Counting = memory::Counting;

/// Walk over one volume, with memory and time watched.
fn guarded(case: &Case<'_>, seed: u64) -> Result<Tally, String> {
    let guard = Guarded::begin(seed);
    let outcome = walk_case(case, seed).map_err(|failure| failure.to_string());
    let used = guard.end();
    let tally = outcome?;
    if used.peak > peak_max(case.sample.blocks) || used.single > SINGLE_MAX {
        return Err(format!("hostile seed {seed}: {used:?} bytes of memory, sample {}", case.sample.name));
    }
    Ok(tally)
}

#[test]
fn volumes() {
    let _alone = memory::alone();
    samples();
    let mut sum = Tally::default();
    let mut failures = Vec::new();
    // One after the other: memory is watched.
    for seed in seeds(if is_long() { 0..40_000 } else { 0..2500 }) {
        match guarded(&Case::draw(seed, None), seed) {
            Ok(tally) => sum.add(&tally),
            Err(text) => {
                eprintln!("{text}");
                failures.push(text);
            }
        }
        if failures.len() >= failures_max() {
            break;
        }
    }
    println!("hostile volumes: {sum:?}");
    let is_whole_run = sum.cases >= 2500;
    assert!(!is_whole_run || (sum.compared > 0 && sum.healed > 0 && sum.refused > 0 && sum.latched > 0), "{sum:?}");
    assert!(failures.is_empty(), "{} failures, the first: {}", failures.len(), failures[0]);
}

#[test]
fn samples_are_whole_and_undamaged_ones_pass() {
    let _alone = memory::alone();
    for sample in samples() {
        let sides = if sample.degraded { 3 } else { 1 };
        let case = Case::made(sample, sides, &|_| Vec::new());
        let tally = guarded(&case, 0).unwrap_or_else(|text| panic!("{text}"));
        assert!(
            tally.refused == 0 && (tally.compared > 0 || sample.degraded) && tally.latched == 0,
            "{}: {tally:?}",
            sample.name
        );
        println!("{}: {} blocks, {} structures, {tally:?}", sample.name, sample.blocks, sample.survey.places.len());
    }
}
