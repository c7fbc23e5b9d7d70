//! Small worlds, exhaustively: no short sequence of operations, cut at any write and recovered in any way, loses anything.
//!
//! Method: `simulate::small`. A failure prints `STABLEFS_CASE=…`, which replays that case alone. In release all is run but
//! sequences of two operations with a disk that is not good (`STABLEFS_TEST_SCALE=all` runs these, too). In the dev
//! profile, and with `STABLEFS_TEST_SCALE=quick`, it is a part, which `STABLEFS_SEEDS=n` chooses. Each test says what must
//! have happened in it: one that did nothing fails.

mod common;

use stablefs::simulate::Failure;
use stablefs::simulate::crew::caught;
use stablefs::simulate::small::nth;
use stablefs::simulate::small::procedure::{self, Start};
use stablefs::simulate::small::twin::Twin;
use stablefs::simulate::small::{self, Covered, Sequence};

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

/// Which part is run, where it is one.
fn seed() -> usize {
    let seeds = common::seeds(0..1);
    assert!(seeds.end == seeds.start + 1, "a part is chosen by one number, not by {seeds:?}");
    seeds.start as usize
}

/// What must have happened, or nothing was shown.
type Happens = (&'static str, fn(&Covered) -> bool);

/// Run `one` on each of `cases`, on all cores; prints what was covered, and wants what `happens` names.
fn run<T: Sync>(
    name: &str,
    cases: &[T],
    who: impl Fn(&T) -> String + Sync,
    one: impl Fn(&T) -> Result<Covered, Failure> + Sync,
    happens: &[Happens],
) {
    let begins = |case: &str| only().is_none_or(|only| only.split('@').next() == Some(case));
    let cases: Vec<&T> = cases.iter().filter(|case| begins(&who(case))).collect();
    assert!(!cases.is_empty(), "{name}: no case ({:?})", only());
    let count = cases.len();
    let began = std::time::Instant::now();
    let (done, failures) = common::each(cases, |case| caught(&who(case), || one(case)));
    assert!(failures.is_empty(), "{name}: {}", failures.join("\n\n"));
    let mut sum = Covered::default();
    done.iter().for_each(|(_, covered)| sum.add(covered));
    println!("{name}: {count} cases, {sum}, {:.1} s", began.elapsed().as_secs_f64());
    if only().is_none() {
        let never: Vec<&str> = happens.iter().filter(|(_, happened)| !happened(&sum)).map(|(what, _)| *what).collect();
        assert!(never.is_empty(), "{name}: it never happened: {never:?}");
    }
}

/// Those that the scale leaves: every `step`-th in a part.
fn chosen(all: Vec<Sequence>, step: usize) -> Vec<Sequence> {
    let step = if scale() == Scale::Part && only().is_none() { step } else { 1 };
    all.into_iter().skip(seed() % step).step_by(step).collect()
}

#[test]
fn one_operation_cut_everywhere_and_recovered_in_every_way() {
    let refused = small::refused().unwrap();
    println!("{refused} operations were refused, as they must be");
    assert!(refused > 10, "operations that must be refused were asked for");
    let one = |sequence: &Sequence| small::run(sequence, &Twin::WRONG, only().as_deref());
    run(
        "one operation",
        &chosen(small::sequences(false), 7),
        Sequence::to_string,
        one,
        &[
            ("a crash left several states", |sum| sum.images > sum.sequences),
            ("each was recovered in several ways", |sum| sum.recoveries > 3 * sum.images),
            ("the log was replayed", |sum| sum.replayed > sum.sequences),
            ("a disk was corrupt, stale or absent", |sum| sum.faults > sum.images),
            ("a copy was healed", |sum| sum.healed > sum.sequences),
        ],
    );
}

#[test]
fn two_operations_cut_everywhere() {
    let sequences = small::sequences(true);
    println!("{} sequences of two operations", sequences.len());
    let twins: &[Twin] = if scale() == Scale::All || only().is_some() { &Twin::WRONG } else { &[] };
    let one = |sequence: &Sequence| small::run(sequence, twins, only().as_deref());
    run(
        "two operations",
        &chosen(sequences, 400),
        Sequence::to_string,
        one,
        &[
            ("a crash left several states", |sum| sum.images > sum.sequences),
            ("each was recovered", |sum| sum.recoveries >= sum.images),
            ("the log was replayed", |sum| sum.replayed > sum.sequences),
        ],
    );
}

fn cut_all(name: &str, starts: &[Start], happens: &[Happens]) {
    let one = |start: &Start| procedure::cut_everywhere(start, only().as_deref());
    run(name, starts, |start| start.name.clone(), one, happens);
}

#[test]
fn recovery_and_replay_cut_everywhere_end_in_the_same_state() {
    let starts = procedure::recoveries(&chosen(small::sequences(false), 25)).unwrap();
    cut_all(
        "recovery",
        &starts,
        &[
            ("a recovery was cut", |sum| sum.cuts > 0 && sum.recoveries > 0),
            ("one was cut again", |sum| sum.recoveries_cut > 0),
        ],
    );
}

#[test]
fn replace_scrub_and_repair_cut_everywhere_end_in_the_same_state() {
    cut_all(
        "replace, scrub and repair",
        &procedure::repairs().unwrap(),
        &[
            ("a procedure was cut", |sum| sum.cuts > 0 && sum.recoveries > 0),
            ("one was cut again", |sum| sum.recoveries_cut > 0),
        ],
    );
}

#[test]
fn attach_and_detach_cut_everywhere_end_in_the_same_state() {
    // SEMANTICS: MEM-1, MEM-2
    cut_all(
        "attach and detach",
        &procedure::memberships().unwrap(),
        &[
            ("a procedure was cut", |sum| sum.cuts > 0 && sum.recoveries > 0),
            ("one was cut again", |sum| sum.recoveries_cut > 0),
        ],
    );
}

#[test]
fn any_one_request_of_one_disk_may_fail() {
    let seeds = if scale() == Scale::All { 1..12 } else { 1..5 };
    let (from, step) = if scale() == Scale::Part { (seed() as u32 % 40, 40) } else { (0, 1) };
    let one = |case: &nth::Case| nth::every(case, from, step, only().as_deref());
    run(
        "the N-th request",
        &nth::cases(seeds),
        nth::Case::to_string,
        one,
        &[("many requests failed", |sum| sum.faults > 100)],
    );
}
