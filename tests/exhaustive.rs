//! Small worlds, exhaustively: no short sequence of operations, cut at any write and recovered in any way, loses anything.
//!
//! Method: `simulate::small`. A failure prints `STABLEFS_CASE=…`, which replays that case alone. In release all is run but
//! sequences of two operations with a disk that is not good (`STABLEFS_TEST_SCALE=all` runs these, too). In the dev
//! profile, and with `STABLEFS_TEST_SCALE=quick`, it is a part, which `STABLEFS_SEEDS=n` chooses.

use stablefs::simulate::Failure;
use stablefs::simulate::small::nth;
use stablefs::simulate::small::procedure::{self, Start};
use stablefs::simulate::small::twin::Twin;
use stablefs::simulate::small::{self, Covered, Sequence};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// As the product has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How much is run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scale {
    Part,
    Default,
    All,
}

fn scale() -> Scale {
    match std::env::var("STABLEFS_TEST_SCALE").as_deref() {
        // Without optimisation even the default would take too long.
        _ if cfg!(debug_assertions) => Scale::Part,
        Ok("quick") => Scale::Part,
        Ok("all") => Scale::All,
        _ => Scale::Default,
    }
}

/// The case that `STABLEFS_CASE` asks for.
fn only() -> Option<String> {
    std::env::var("STABLEFS_CASE").ok()
}

fn seed() -> usize {
    std::env::var("STABLEFS_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Run `one` on each of `cases`, on all cores; prints what was covered.
fn run<T: Sync>(name: &str, cases: &[T], one: impl Fn(&T) -> Result<Covered, Failure> + Sync) -> Covered {
    let next = AtomicUsize::new(0);
    let sum = Mutex::new(Covered::default());
    let failures = Mutex::new(Vec::new());
    let began = std::time::Instant::now();
    let work = || {
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            if !failures.lock().unwrap().is_empty() {
                return;
            }
            match catch_unwind(AssertUnwindSafe(|| one(case))) {
                Ok(Ok(covered)) => sum.lock().unwrap().add(&covered),
                Ok(Err(failure)) => failures.lock().unwrap().push(failure.to_string()),
                Err(_) => failures.lock().unwrap().push("a panic (see above)".into()),
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(work);
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{name}: {}", failures.join("\n\n"));
    let sum = *sum.lock().unwrap();
    println!("{name}: {sum}, {:.1} s", began.elapsed().as_secs_f64());
    sum
}

/// Those that the scale and `STABLEFS_CASE` leave; every `step`-th in a part.
fn chosen(all: Vec<Sequence>, step: usize) -> Vec<Sequence> {
    if let Some(only) = only() {
        return all.into_iter().filter(|sequence| only.split('@').next() == Some(&sequence.to_string())).collect();
    }
    let step = if scale() == Scale::Part { step } else { 1 };
    all.into_iter().skip(seed() % step).step_by(step).collect()
}

#[test]
fn one_operation_cut_everywhere_and_recovered_in_every_way() {
    let refused = small::refused().unwrap();
    println!("{refused} operations were refused, as they must be");
    let sequences = chosen(small::sequences(false), 7);
    run("one operation", &sequences, |sequence| small::run(sequence, &Twin::WRONG, only().as_deref()));
}

#[test]
fn two_operations_cut_everywhere() {
    let sequences = small::sequences(true);
    println!("{} sequences of two operations", sequences.len());
    let sequences = chosen(sequences, 400);
    let twins: &[Twin] = if scale() == Scale::All || only().is_some() { &Twin::WRONG } else { &[] };
    run("two operations", &sequences, |sequence| small::run(sequence, twins, only().as_deref()));
}

fn cut_all(name: &str, starts: Vec<Start>) {
    let named = |start: &Start| only().is_none_or(|only| only.split('@').next() == Some(&start.name));
    let starts: Vec<Start> = starts.into_iter().filter(named).collect();
    run(name, &starts, |start| procedure::cut_everywhere(start, only().as_deref()));
}

#[test]
fn recovery_and_replay_cut_everywhere_end_in_the_same_state() {
    let mut sequences = small::sequences(false);
    if only().is_none() && scale() == Scale::Part {
        sequences = sequences.into_iter().skip(seed() % 25).step_by(25).collect();
    }
    cut_all("recovery", procedure::recoveries(&sequences).unwrap());
}

#[test]
fn replace_scrub_and_repair_cut_everywhere_end_in_the_same_state() {
    cut_all("replace, scrub and repair", procedure::repairs().unwrap());
}

#[test]
fn any_one_request_of_one_disk_may_fail() {
    let seeds = if scale() == Scale::All { 1..12 } else { 1..5 };
    let mut cases = nth::cases(seeds);
    let (from, step) = if scale() == Scale::Part { (seed() as u32 % 40, 40) } else { (0, 1) };
    if let Some(only) = only() {
        cases.retain(|case| only.split('@').next() == Some(&case.to_string()));
    }
    run("the N-th request", &cases, |case| nth::every(case, from, step, only().as_deref()));
}
