//! Interleavings of threads through the very code of the product, on simulated disks.
//!
//! Goal: semantic locks, the swap of the delta at a commit, reuse beside pinned readers, late I/O, and replicas that come and
//! go are right in whatever order threads run. Method: shuttle instead of the machine's threads (`src/sync.rs`); each seed is
//! one scenario and one interleaving of it (`explorer`), judged by the model of the simulator.
//!
//! Run: `cargo test --release --features shuttle --test interleave`. A failure prints the line that repeats it alone.
//! `STABLEFS_SEEDS=a..b` chooses seeds, `STABLEFS_TEST_SCALE=all` runs ten times as many. Each scenario counts what it is about;
//! one in which it never happened fails.
//!
//! | file | what |
//! |---|---|
//! | `explorer` | the scheduler |
//! | `locks` | the lock manager |
//! | `linear` | operations on one tree: some serial order explains all that was seen |
//! | `deeds` `crash` | fsyncs, commits, replicas that change, late I/O; then a power cut |
//! | `pins` | reuse of space beside readers |
//! | `grow` | sizes that rest on data of a group being committed |
//! | `volume` | a mounted volume |

#![cfg(feature = "shuttle")]

#[path = "../common/mod.rs"]
mod common;
mod crash;
mod deeds;
mod explorer;
mod grow;
mod linear;
mod locks;
mod pins;
mod volume;

/// A failure must be repeatable by its seed alone.
#[test]
fn equal_seeds_give_equal_interleavings() {
    let others = [&locks::SCENARIO, &pins::SCENARIO, &grow::SCENARIO];
    let all = linear::SCENARIOS.iter().chain(&crash::SCENARIOS).chain(others);
    for explorer::Scenario { name, run: scenario, .. } in all {
        for seed in 0..24 {
            let run = || explorer::run(name, seed..seed + 1, scenario).fingerprint;
            assert_eq!(run(), run(), "{name}: seed {seed} gives two interleavings");
        }
    }
}
