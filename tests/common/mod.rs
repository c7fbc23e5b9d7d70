//! Running many seeded histories, on all cores, and saying which one failed.

use stablefs::simulate::{Failure, Tally};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Failures that are collected before a run gives up; `STABLEFS_FAILURES` asks for more.
pub fn failures_max() -> usize {
    std::env::var("STABLEFS_FAILURES").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Seeds that `STABLEFS_SEEDS=from..to` asks for, else `usual`.
pub fn seeds(usual: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("STABLEFS_SEEDS") else { return usual };
    let ends: Vec<u64> = text.split("..").map(|end| end.parse().expect("STABLEFS_SEEDS=from..to")).collect();
    match ends[..] {
        [one] => one..one + 1,
        [from, to] => from..to,
        _ => panic!("STABLEFS_SEEDS=from..to"),
    }
}

/// Run `one` for each seed; prints the sum.
///
/// # Panics
/// One failed: with its text, or its panic.
#[allow(dead_code)] // Not every test program needs it.
pub fn run(name: &str, seeds: std::ops::Range<u64>, one: impl Fn(u64) -> Result<Tally, Failure> + Sync) -> Tally {
    let (sum, failures) = try_run(name, seeds, one);
    assert!(failures.is_empty(), "{name}: {}", failures.join("\n\n"));
    sum
}

/// As [`run`], but gives the failures back.
pub fn try_run(
    name: &str,
    seeds: std::ops::Range<u64>,
    one: impl Fn(u64) -> Result<Tally, Failure> + Sync,
) -> (Tally, Vec<String>) {
    let next = AtomicU64::new(seeds.start);
    let sum = Mutex::new(Tally::default());
    let failures = Mutex::new(Vec::new());
    let began = std::time::Instant::now();
    let failures_max = failures_max();
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end || failures.lock().unwrap().len() >= failures_max {
                return;
            }
            match catch_unwind(AssertUnwindSafe(|| one(seed))) {
                Ok(Ok(tally)) => sum.lock().unwrap().add(&tally),
                Ok(Err(failure)) => failures.lock().unwrap().push(failure.to_string()),
                Err(panic) => {
                    let text = panic.downcast_ref::<String>().cloned();
                    let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
                    failures.lock().unwrap().push(format!("seed {seed}: panic: {}", text.unwrap_or_default()));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(work);
        }
    });
    let sum = *sum.lock().unwrap();
    let failures = failures.into_inner().unwrap();
    println!("{name}: {sum}, {:.1} s", began.elapsed().as_secs_f64());
    (sum, failures)
}
