//! `simulate`: run seeded histories of the simulator, so that a report can be reproduced anywhere.
//!
//! *Guarantees*: touches no file and no mount. A violation prints what happened and one line that replays it, and makes
//! the exit code 1. Equal seeds do the same in the same version. *Assumes*: nothing.
//! *Fails when*: wrong usage. *Order*: seeds are begun in order, on all cores; SIGINT and SIGTERM end it after the
//! histories under way, which are named; a second one ends it at once. *Not here*: the histories (`simulate`).

use super::{FAILED, SimulateArgs, progress_bar};
use crate::simulate::worlds::Kind;
use crate::simulate::{Failure, Tally};
use indicatif::ProgressBar;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Violations after which a run ends.
const VIOLATIONS_MAX: usize = 10;

/// What was run and found.
#[derive(Debug, Default, serde::Serialize)]
struct Summary {
    /// First seed.
    first: u64,
    /// Seeds that were run.
    seeds: u64,
    seconds: f64,
    /// Histories in a second on one core.
    histories_per_core_second: f64,
    tally: Tally,
    violations: Vec<Violation>,
}

/// A broken promise.
#[derive(Debug, serde::Serialize)]
struct Violation {
    seed: u64,
    text: String,
    /// The command that does the same again.
    replay: String,
}

/// When to stop.
struct Limits {
    next: AtomicU64,
    end: Option<u64>,
    until: Option<Instant>,
    asked: Arc<AtomicBool>,
    under_way: Mutex<BTreeSet<u64>>,
}

impl Limits {
    fn next(&self) -> Option<u64> {
        let late = self.until.is_some_and(|until| Instant::now() >= until);
        if late || self.asked.load(Ordering::Relaxed) {
            return None;
        }
        let seed =
            Some(self.next.fetch_add(1, Ordering::Relaxed)).filter(|seed| self.end.is_none_or(|end| *seed < end))?;
        self.seeds().insert(seed);
        Some(seed)
    }

    fn seeds(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Once it is asked to stop, say which seeds it waits for: one may never end.
    fn tell_under_way(&self, kind: Kind, done: &AtomicBool) {
        while !done.load(Ordering::Relaxed) {
            if self.asked.load(Ordering::Relaxed) {
                for seed in &*self.seeds() {
                    eprintln!("under way: {}", replay(kind, *seed));
                }
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Run what was asked for; the exit code.
pub(super) fn simulate(args: &SimulateArgs) -> u8 {
    let seed = args.seed.unwrap_or_else(fresh_seed);
    let count = args.count.or((args.minutes.is_none()).then_some(1));
    let asked = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // Without a handler the signal just ends the program, which leaves nothing behind; so does the second one.
        let _second = signal_hook::flag::register_conditional_default(signal, Arc::clone(&asked));
        let _registered = signal_hook::flag::register(signal, Arc::clone(&asked));
    }
    let limits = Limits {
        next: AtomicU64::new(seed),
        end: count.map(|count| seed.saturating_add(count)),
        until: args.minutes.map(|minutes| Instant::now() + Duration::from_secs_f64(minutes * 60.0)),
        asked,
        under_way: Mutex::default(),
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = args.jobs.unwrap_or(cores).max(1);
    if args.jobs.is_none() && count == Some(1) {
        eprintln!("seed {seed}, kind {}", args.kind.name());
    }
    let bar = progress_bar("{elapsed_precise} {wide_bar} {pos}/{len} seeds, {per_sec}", count, args.json);
    let summary = run(args.kind, seed, jobs, &limits, &bar);
    report(&summary, args)
}

pub(super) fn fresh_seed() -> u64 {
    use crate::world::World;
    // Short enough to be typed.
    crate::world::Machine.random() >> 24
}

fn run(kind: Kind, first: u64, jobs: usize, limits: &Limits, bar: &ProgressBar) -> Summary {
    let sum = Mutex::new(Summary { first, ..Summary::default() });
    let began = Instant::now();
    let work = || {
        while let Some(seed) = limits.next() {
            let outcome = catch_unwind(AssertUnwindSafe(|| kind.run(seed)));
            let outcome =
                outcome.unwrap_or_else(|panic| Err(Failure { text: format!("seed {seed}: {}", words(&*panic)) }));
            limits.seeds().remove(&seed);
            let Ok(mut sum) = sum.lock() else { return };
            sum.seeds += 1;
            match outcome {
                Ok(tally) => sum.tally.add(&tally),
                Err(failure) => {
                    let replay = replay(kind, seed);
                    // At once: the report may be long in coming.
                    bar.suspend(|| eprintln!("violation: {replay}"));
                    sum.violations.push(Violation { seed, text: failure.text, replay });
                    if sum.violations.len() >= VIOLATIONS_MAX {
                        limits.asked.store(true, Ordering::Relaxed);
                    }
                }
            }
            bar.inc(1);
        }
    };
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| limits.tell_under_way(kind, &done));
        let others: Vec<_> = (1..jobs).map(|_| scope.spawn(work)).collect();
        work();
        others.into_iter().for_each(|other| drop(other.join()));
        done.store(true, Ordering::Relaxed);
    });
    bar.finish_and_clear();
    let mut sum = sum.into_inner().unwrap_or_default();
    sum.violations.sort_by_key(|violation| violation.seed);
    sum.seconds = began.elapsed().as_secs_f64();
    sum.histories_per_core_second = sum.tally.histories as f64 / sum.seconds.max(1e-9) / jobs as f64;
    sum
}

/// The command that does the same again.
fn replay(kind: Kind, seed: u64) -> String {
    format!("stablefs simulate --seed {seed} --kind {}", kind.name())
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
    format!("panic: {}", text.unwrap_or_default())
}

fn report(summary: &Summary, args: &SimulateArgs) -> u8 {
    if args.json {
        match serde_json::to_string_pretty(summary) {
            Ok(text) => println!("{text}"),
            Err(error) => super::complain(&error.to_string()),
        }
    } else {
        for violation in &summary.violations {
            println!("violation: {}\nreplay: {}\n", violation.text, violation.replay);
        }
        println!("{} of {} seeds from {} on: {}", args.kind.name(), summary.seeds, summary.first, summary.tally);
        println!(
            "{} violations; {:.1} s, {:.0} histories a second on each core",
            summary.violations.len(),
            summary.seconds,
            summary.histories_per_core_second
        );
    }
    if summary.violations.is_empty() { 0 } else { FAILED }
}
