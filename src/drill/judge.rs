//! What a scenario found, and the verdict on it.
//!
//! *Guarantees*: the verdict follows from the facts alone, so that it can be tested with facts that were made up.
//! *Assumes*: nothing. *Fails when*: never: a broken promise is a line of [`broken`].
//! *Order*: none. *Not here*: how the facts were come by (`stage`), how they look (`cli`).

use super::probe::Tally;
use serde::{Deserialize, Serialize};

/// What kind of thing happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The stage was set, or the load did something.
    Begun,
    /// A fault was injected.
    Injected,
    /// stablefs, or an application, noticed.
    Detected,
    /// Harm was undone.
    Healed,
    /// Bytes were proven.
    Proven,
    /// A promise was broken.
    Broken,
}

impl Kind {
    /// One word.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Begun => "begun",
            Kind::Injected => "injected",
            Kind::Detected => "detected",
            Kind::Healed => "healed",
            Kind::Proven => "proven",
            Kind::Broken => "BROKEN",
        }
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, ms after the scenario began.
    pub at_ms: u64,
    /// What kind of thing.
    pub kind: Kind,
    /// In words.
    pub text: String,
}

/// How a scenario ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Everything as promised.
    Passed,
    /// A promise was broken, or the scenario could not be carried out.
    Failed,
    /// This machine or user cannot do it; the reason is said.
    Skipped,
}

impl Verdict {
    /// One word.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Passed => "passed",
            Verdict::Failed => "FAILED",
            Verdict::Skipped => "skipped",
        }
    }
}

/// Everything that is told of one scenario.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Name of the scenario.
    pub name: String,
    /// How it ended.
    pub verdict: Verdict,
    /// Why it was skipped.
    pub reason: Option<String>,
    /// Promises that were broken, one line each.
    pub broken: Vec<String>,
    /// Its seed.
    pub seed: u64,
    /// How long it took, s.
    pub seconds: f64,
    /// Longest that a call may take, ms.
    pub stall_max_ms: u64,
    /// Time from each injection to its detection, ms.
    pub detected_after_ms: Vec<u64>,
    /// Blocks copied or repaired to make the volume whole.
    pub blocks_healed: u64,
    /// Longest times without a daemon, from the kill until the mount served again, ms.
    pub outages_ms: Vec<u64>,
    /// Files and bytes proven on each replica alone.
    pub proven_alone: Vec<Alone>,
    /// What the applications saw.
    pub applications: Tally,
    /// What happened, in order.
    pub events: Vec<Event>,
}

/// What was proven with one replica alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alone {
    /// Which.
    pub replica: String,
    /// Files, each whole.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Outcome {
    /// Nothing has happened yet.
    pub fn new(name: &str, seed: u64) -> Outcome {
        Outcome {
            name: name.to_owned(),
            verdict: Verdict::Failed,
            reason: None,
            broken: Vec::new(),
            seed,
            seconds: 0.0,
            stall_max_ms: 0,
            detected_after_ms: Vec::new(),
            blocks_healed: 0,
            outages_ms: Vec::new(),
            proven_alone: Vec::new(),
            applications: Tally::default(),
            events: Vec::new(),
        }
    }
    /// A scenario that cannot run here.
    pub fn skipped(name: &str, seed: u64, reason: String) -> Outcome {
        Outcome { verdict: Verdict::Skipped, reason: Some(reason), ..Outcome::new(name, seed) }
    }
    /// Decide, now that everything is known; `whole`: the scenario came to its end.
    pub fn decide(&mut self, whole: bool) {
        let mut lines = broken(self);
        if whole {
            lines.append(&mut missing(self));
        }
        self.broken.append(&mut lines);
        self.verdict = if self.broken.is_empty() { Verdict::Passed } else { Verdict::Failed };
    }
}

/// Which promises the facts of a scenario break.
pub fn broken(outcome: &Outcome) -> Vec<String> {
    let mut broken = Vec::new();
    let seen = &outcome.applications;
    if seen.wrong > 0 {
        let lines = seen.wrong_lines.join("; ");
        broken.push(format!("READ-1: applications met {} wrong bytes or names: {lines}", seen.wrong));
    }
    if seen.errors > 0 {
        broken.push(format!("DEG-1: {} calls failed: {}", seen.errors, seen.error_lines.join("; ")));
    }
    if seen.longest.ms > outcome.stall_max_ms {
        let (ms, max) = (seen.longest.ms, outcome.stall_max_ms);
        broken.push(format!("DEG-2: {} took {ms} ms, at most {max} are promised", seen.longest.call));
    }
    broken
}

/// What a scenario that came to its end should have shown, and has not.
pub fn missing(outcome: &Outcome) -> Vec<String> {
    let mut broken = Vec::new();
    let seen = &outcome.applications;
    let count = |kind: Kind| outcome.events.iter().filter(|event| event.kind == kind).count();
    if count(Kind::Injected) == 0 {
        broken.push("the scenario came to no fault".into());
    } else if count(Kind::Detected) == 0 {
        broken.push("nothing was detected".into());
    }
    if outcome.proven_alone.len() < 2 {
        broken.push(format!("only {} replicas were proven alone", outcome.proven_alone.len()));
    }
    if seen.calls == 0 || outcome.proven_alone.iter().any(|alone| alone.files == 0) {
        broken.push("the applications did nothing that could be proven".into());
    }
    broken
}

/// A whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Of the program.
    pub version: String,
    /// First seed: that of every scenario.
    pub seed: u64,
    /// As root.
    pub root: bool,
    /// Ended by a signal before its end.
    pub interrupted: bool,
    /// How many passed.
    pub passed: usize,
    /// How many failed.
    pub failed: usize,
    /// How many were skipped.
    pub skipped: usize,
    /// How long it took, s.
    pub seconds: f64,
    /// Each of them.
    pub scenarios: Vec<Outcome>,
}

#[cfg(test)]
mod tests {
    use super::super::probe::{Probe, Stall};
    use super::*;
    use std::time::{Duration, Instant};

    fn good() -> Outcome {
        let event = |kind| Event { at_ms: 1, kind, text: "x".into() };
        let alone = |replica: &str| Alone { replica: replica.into(), files: 3, bytes: 9 };
        Outcome {
            stall_max_ms: 6000,
            proven_alone: vec![alone("a"), alone("b")],
            applications: Tally { calls: 10, ..Tally::default() },
            events: vec![event(Kind::Injected), event(Kind::Detected)],
            ..Outcome::new("test", 1)
        }
    }

    fn verdict(change: impl FnOnce(&mut Outcome)) -> (Verdict, String) {
        let mut outcome = good();
        change(&mut outcome);
        outcome.decide(true);
        (outcome.verdict, outcome.broken.join("\n"))
    }

    #[test]
    fn what_kept_its_promises_passes() {
        assert_eq!(verdict(|_| {}), (Verdict::Passed, String::new()));
    }

    #[test]
    fn one_wrong_byte_turns_the_verdict() {
        let probe = Probe::new(Instant::now());
        probe.wrong(vec!["still/f0: block 0, byte 300: zeroes".into()]);
        let (verdict, why) = verdict(|outcome| outcome.applications = Tally { calls: 10, ..probe.tally() });
        assert!(verdict == Verdict::Failed && why.contains("READ-1") && why.contains("byte 300"), "{why}");
    }

    #[test]
    fn a_stall_above_the_deadline_turns_the_verdict() {
        let probe = Probe::new(Instant::now());
        let lane = probe.lane("writer 0");
        probe.hurt();
        probe.note(&lane, Instant::now(), Duration::from_millis(5_999), None);
        assert_eq!(verdict(|outcome| outcome.applications = probe.tally()).0, Verdict::Passed);
        probe.note(&lane, Instant::now(), Duration::from_millis(6_001), None);
        let (verdict, why) = verdict(|outcome| outcome.applications = probe.tally());
        assert!(verdict == Verdict::Failed && why.contains("DEG-2") && why.contains("6001 ms"), "{why}");
    }

    #[test]
    fn everything_else_that_is_not_as_promised_turns_the_verdict() {
        let failed = |change: fn(&mut Outcome), what: &str| {
            let (verdict, why) = verdict(change);
            assert!(verdict == Verdict::Failed && why.contains(what), "{what}: {why}");
        };
        failed(|outcome| outcome.applications.errors = 1, "DEG-1");
        failed(|outcome| outcome.events.clear(), "no fault");
        failed(|outcome| drop(outcome.events.pop()), "nothing was detected");
        failed(|outcome| drop(outcome.proven_alone.pop()), "proven alone");
        failed(|outcome| outcome.applications.calls = 0, "did nothing");
        failed(|outcome| outcome.broken.push("fsck found something".into()), "fsck found");
        let before =
            |outcome: &mut Outcome| outcome.applications.longest_before = Stall { ms: 9999, ..Stall::default() };
        assert_eq!(verdict(before).0, Verdict::Passed, "no fault of the fault's");
    }
}
