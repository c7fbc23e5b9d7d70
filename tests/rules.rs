//! The rules of recovery as a model: safe with one fault, refusing with two; and the product's traces replayed on it.
//!
//! Goal: no order of operations, power cuts, faults, returns and mounts breaks a promise of `docs/RULES.md`; and the
//! model decides as the code does. Method: every state up to a bound is looked at (`stateright`, breadth first); each
//! rule is dropped once, and the checker must find what it was good for; histories of the simulator are replayed.

mod common;
#[path = "rules/model.rs"]
mod model;
#[path = "rules/replay.rs"]
mod replay;
#[path = "rules/roots.rs"]
mod roots;
#[path = "rules/world.rs"]
mod world;

use model::{Bounds, Checked, Fault};
use roots::{RULES, Rules};
use stateright::{Checker, Expectation, HasDiscoveries, Model};

/// Two replicas, one operation or two, two cuts.
const PAIR: Bounds = Bounds {
    replicas: 2,
    spares: 0,
    slots: 3,
    operations: 2,
    mounts: 2,
    cuts: 2,
    faults: 0,
    replaces: 0,
    returns: 0,
    kinds: &[],
};

/// Larger bounds were asked for: minutes, not seconds.
fn large() -> bool {
    std::env::var("STABLEFS_TEST_SCALE").is_ok_and(|scale| scale == "all")
}

/// The properties that are broken, or (with `must_see`) were to be seen and were not.
fn check(name: &str, rules: Rules, bounds: Bounds, must_see: &[&'static str]) -> Vec<String> {
    let began = std::time::Instant::now();
    let model = Checked { rules, bounds };
    let checker = model.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    println!(
        "{name}: {} states, {} transitions, depth {}, {:.1} s",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        began.elapsed().as_secs_f64()
    );
    let found = checker.discoveries();
    let mut broken = Vec::new();
    for (property, path) in &found {
        if matches!(checker.model().property(property).expectation, Expectation::Always) {
            let steps: Vec<String> = path.clone().into_actions().iter().map(|a| format!("{a:?}")).collect();
            broken.push(format!("{property}: {}", steps.join(" → ")));
        }
    }
    broken.extend(must_see.iter().filter(|p| !found.contains_key(*p)).map(|p| format!("never seen: {p}")));
    broken
}

fn holds(name: &str, usual: Bounds, larger: Bounds, must_see: &[&'static str]) {
    let broken = check(name, RULES, if large() { larger } else { usual }, must_see);
    assert!(broken.is_empty(), "{name}:\n{}", broken.join("\n"));
}

const FORK: &str = "a fork is refused";
const LEFT: &str = "who was left behind is refused";
const RETURNED: &str = "a replica has returned";
const MISSING: &str = "two replicas are lost, and a mount refused";

#[test]
fn a_disk_that_fails_or_lies() {
    let usual = Bounds { faults: 1, mounts: 3, cuts: 1, kinds: &[Fault::Gone, Fault::Lies], ..PAIR };
    holds("one disk fails or lies", usual, Bounds { cuts: 2, ..usual }, &[FORK, LEFT, MISSING]);
}

#[test]
fn a_replica_that_returns() {
    let usual = Bounds { replaces: 1, operations: 1, mounts: 3, cuts: 1, ..PAIR };
    holds(
        "a replica returns",
        usual,
        Bounds { faults: 1, kinds: &[Fault::Gone], ..usual },
        &[FORK, LEFT, RETURNED, MISSING],
    );
}

/// One that was away comes back and is sent what it missed; it may be cut, and come back again.
#[test]
fn a_replica_that_was_away() {
    let usual = Bounds { returns: 2, operations: 2, mounts: 3, cuts: 1, ..PAIR };
    let larger = Bounds { cuts: 2, ..usual };
    holds("one that was away returns", usual, larger, &[FORK, LEFT, RETURNED, MISSING]);
}

#[test]
fn a_replica_that_failed_and_answers_again() {
    let usual = Bounds { returns: 2, operations: 1, mounts: 2, cuts: 1, faults: 1, kinds: &[Fault::Gone], ..PAIR };
    holds("one that failed returns", usual, Bounds { mounts: 3, ..usual }, &[RETURNED]);
}

#[test]
fn a_replica_that_comes_back_changed() {
    let usual = Bounds {
        returns: 1,
        operations: 1,
        mounts: 2,
        cuts: 1,
        faults: 1,
        kinds: &[Fault::Stale, Fault::Damage],
        ..PAIR
    };
    holds("an old copy, or one beside a damaged root, returns", usual, Bounds { mounts: 3, ..usual }, &[RETURNED]);
}

#[test]
fn one_of_three_replicas_that_was_away() {
    let usual = Bounds { replicas: 3, returns: 1, operations: 1, mounts: 2, cuts: 1, ..PAIR };
    holds("one of three returns", usual, Bounds { operations: 2, ..usual }, &[RETURNED]);
}

#[test]
fn a_replica_that_is_replaced() {
    let usual = Bounds { replaces: 1, spares: 1, operations: 1, mounts: 2, cuts: 2, ..PAIR };
    holds("a replica is replaced", usual, Bounds { mounts: 3, ..usual }, &[RETURNED]);
}

#[test]
fn old_content_and_damage() {
    let usual = Bounds { operations: 1, mounts: 3, cuts: 1, faults: 1, kinds: &[Fault::Stale, Fault::Damage], ..PAIR };
    holds("old content, damage", usual, Bounds { operations: 2, ..usual }, &[FORK, LEFT, MISSING]);
}

#[test]
fn two_faults() {
    let usual = Bounds {
        operations: 1,
        mounts: 3,
        cuts: 1,
        faults: 2,
        kinds: &[Fault::Gone, Fault::Lies, Fault::Witness],
        ..PAIR
    };
    holds("two faults", usual, Bounds { mounts: 3, ..usual }, &[LEFT, MISSING]);
}

/// A torn root, and another cut while that is put in order.
fn torn() -> Bounds {
    Bounds { operations: 1, mounts: 4, cuts: 2, ..PAIR }
}

#[test]
fn power_cuts_in_recovery() {
    holds("power cuts in recovery", torn(), Bounds { operations: 2, ..torn() }, &[MISSING]);
}

#[test]
fn three_replicas() {
    let usual = Bounds { replicas: 3, operations: 1, mounts: 2, cuts: 1, ..PAIR };
    let larger = Bounds { faults: 1, kinds: &[Fault::Gone, Fault::Lies], ..usual };
    holds("three replicas", usual, larger, &[LEFT, MISSING]);
}

/// What was dropped, the rules without it, and bounds that show what it was good for.
fn mutants() -> Vec<(&'static str, Rules, Bounds)> {
    let gone = Bounds { mounts: 3, faults: 1, kinds: &[Fault::Gone], ..PAIR };
    let apart = Bounds { mounts: 3, cuts: 1, ..PAIR };
    let stale = Bounds { operations: 3, mounts: 4, cuts: 1, faults: 1, kinds: &[Fault::Stale], ..PAIR };
    let back = Bounds { replaces: 1, operations: 1, mounts: 3, cuts: 1, ..PAIR };
    let away = Bounds { returns: 2, operations: 2, mounts: 3, cuts: 1, ..PAIR };
    let failed = Bounds { returns: 2, operations: 2, mounts: 2, cuts: 0, faults: 1, kinds: &[Fault::Gone], ..PAIR };
    let old = Bounds { returns: 1, mounts: 2, operations: 1, faults: 1, kinds: &[Fault::Stale], ..away };
    let no_epoch = Rules { epoch_degraded: false, epoch_shrunk: false, ..RULES };
    let three = Bounds { replicas: 3, mounts: 2, cuts: 1, ..PAIR };
    vec![
        ("no witness", Rules { witness: false, ..RULES }, apart),
        ("a witness that never forgets", Rules { witness_renewed: false, ..RULES }, gone),
        ("acknowledged before the members are durable", Rules { declare: false, ..RULES }, gone),
        ("chosen by version alone", Rules { chain: false, ..RULES }, Bounds { mounts: 4, ..apart }),
        ("any lag", Rules { lag_max: u64::MAX / 2, ..RULES }, stale),
        ("slots by parity of the group", Rules { oldest_slot: false, ..RULES }, gone),
        ("no new epoch at a degraded mount", no_epoch, Bounds { mounts: 4, ..apart }),
        ("no new epoch when a replica goes out", Rules { epoch_shrunk: false, ..RULES }, gone),
        (
            "no new epoch when one that returns goes out",
            Rules { epoch_returning: false, ..RULES },
            Bounds { cuts: 2, ..back },
        ),
        ("the root is written before the flush", Rules { flush_first: false, ..RULES }, gone),
        ("the newest root is not enforced", Rules { enforce: false, ..RULES }, Bounds { cuts: 3, ..apart }),
        (
            "what the missing one may have is written over",
            Rules { absent_first: false, ..RULES },
            Bounds { operations: 1, cuts: 2, ..apart },
        ),
        ("nobody is asked for", Rules { need_all: false, ..RULES }, apart),
        ("in sync without a proof", Rules { prove: false, ..RULES }, back),
        ("a return in sync without a proof", Rules { prove: false, ..RULES }, away),
        ("nobody else knows that it takes roots", Rules { announce: false, ..RULES }, away),
        (
            "what one that was returning may have is written over",
            Rules { returning_first: false, ..RULES },
            Bounds { cuts: 2, ..away },
        ),
        (
            "its own roots stay while it is written to",
            Rules { renounce: false, ..RULES },
            Bounds { cuts: 2, operations: 1, ..away },
        ),
        ("one that was written apart is taken back", Rules { back_past: false, ..RULES }, Bounds { mounts: 4, ..away }),
        (
            "one that has what the others had lost is taken back",
            Rules { back_skipped: false, ..RULES },
            Bounds { faults: 1, kinds: &[Fault::Damage], ..away },
        ),
        ("it holds what the root reaches that calls it out", Rules { held_before: false, ..RULES }, failed),
        ("an old copy holds what the last of both did", Rules { old_copy: false, ..RULES }, old),
        ("the root that most have", Rules { newest: false, ..RULES }, three),
        ("damage excuses any lag", Rules { damage_bounded: false, ..RULES }, stale),
        (
            "records do not tell of a lost root",
            Rules { records_know: false, ..RULES },
            Bounds { kinds: &[Fault::Damage], ..gone },
        ),
    ]
}

#[test]
fn every_rule_is_needed() {
    for (name, rules, bounds) in mutants() {
        let broken = check(name, rules, bounds, &[]);
        assert!(!broken.is_empty(), "without a rule ({name}) nothing breaks: the model is blind there");
        println!("  {}", broken[0]);
    }
}

/// Histories of the simulator, with their mounts, faults, replaces and power cuts, are histories of the model.
#[test]
fn the_code_does_what_the_model_allows() {
    let seeds = common::seeds(if large() { 0..6000 } else { 0..300 });
    let began = std::time::Instant::now();
    let (mut events, mut cuts, mut faults) = (0, 0, 0);
    let (mut mounts, mut replaces) = ([0, 0], [0, 0]);
    let count = seeds.end - seeds.start;
    for seed in seeds {
        let trace = stablefs::simulate::trace::trace(seed);
        match replay::replay(&trace) {
            Ok(seen) => events += seen,
            Err(text) => panic!("seed {seed}: {text}"),
        }
        cuts += trace.cuts;
        faults += trace.faults;
        for i in 0..2 {
            mounts[i] += trace.mounts[i];
            replaces[i] += trace.replaces[i];
        }
    }
    println!(
        "{count} histories agree: {events} events, {cuts} power cuts, {faults} faults, {} mounts and {} refused, {} \
         replaces and {} given up, {:.1} s",
        mounts[0],
        mounts[1],
        replaces[0],
        replaces[1],
        began.elapsed().as_secs_f64()
    );
    if count >= 100 {
        assert!(mounts[1] > 0 && replaces[0] > 0 && faults > 0 && cuts > 0, "the histories are too tame");
    }
}
