//! Running many seeded cases on all cores, and saying which ones failed.

#![allow(dead_code)] // Not every test program needs all of it.

use stablefs::simulate::crew::{caught, cores, crew};
use stablefs::simulate::{Failure, Tally};
use std::ops::Range;

/// Failures that are collected before a run gives up; `STABLEFS_FAILURES` asks for more.
pub fn failures_max() -> usize {
    std::env::var("STABLEFS_FAILURES").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Whether this is the long run.
pub fn is_long() -> bool {
    std::env::var("STABLEFS_TEST_SCALE").as_deref() == Ok("all")
}

/// Seeds that `STABLEFS_SEEDS=from..to`, or `=one`, asks for, else `usual`.
pub fn seeds(usual: Range<u64>) -> Range<u64> {
    let Ok(text) = std::env::var("STABLEFS_SEEDS") else { return usual };
    let ends: Vec<u64> = text.split("..").map(|end| end.parse().expect("STABLEFS_SEEDS=from..to")).collect();
    match ends[..] {
        [one] => one..one + 1,
        [from, to] => from..to,
        _ => panic!("STABLEFS_SEEDS=from..to"),
    }
}

/// Run `one` on each of `cases`, on all cores, until there are too many failures. Gives back what came out, in any order.
pub fn each<T: Send, R: Send>(
    cases: impl IntoIterator<Item = T, IntoIter: Send>,
    one: impl Fn(&T) -> Result<R, Failure> + Sync,
) -> (Vec<(T, R)>, Vec<String>) {
    let (mut done, mut failures) = (Vec::new(), Vec::new());
    let failures_max = failures_max();
    crew(cores(), cases, one, |case, outcome| {
        match outcome {
            Ok(value) => done.push((case, value)),
            Err(failure) => failures.push(failure.to_string()),
        }
        failures.len() < failures_max
    });
    (done, failures)
}

/// Run `one` for each seed; prints the sum.
///
/// # Panics
/// One failed: with its text, or its panic.
pub fn run(name: &str, seeds: Range<u64>, one: impl Fn(u64) -> Result<Tally, Failure> + Sync) -> Tally {
    let (sum, failures) = try_run(name, seeds, one);
    assert!(failures.is_empty(), "{name}: {}", failures.join("\n\n"));
    sum
}

/// As [`run`], but gives the failures back.
pub fn try_run(
    name: &str,
    seeds: Range<u64>,
    one: impl Fn(u64) -> Result<Tally, Failure> + Sync,
) -> (Tally, Vec<String>) {
    let began = std::time::Instant::now();
    let (done, failures) = each(seeds, |seed| caught(&format!("seed {seed}"), || one(*seed)));
    let mut sum = Tally::default();
    done.iter().for_each(|(_, tally)| sum.add(tally));
    println!("{name}: {sum}, {:.1} s", began.elapsed().as_secs_f64());
    (sum, failures)
}
