//! Drill: break a scratch volume for real, under a load whose every byte is known, bring it back, prove every byte.
//!
//! *Guarantees*: works on scratch replicas that it makes itself and leaves nothing behind, however it ends. A verdict is
//! *passed* only if every promise was seen to be kept (`judge`). Commands are those that a user types.
//! *Assumes*: the machine can mount FUSE. *Fails when*: a promise is broken, or a scenario cannot be carried out: the
//! verdict says which; a signal ends the run after clearing up.
//! *Order*: for each scenario: folder and guard, volume, load, fault, return, proof, clearing up.
//! *Not here*: how it looks (`cli`); simulated worlds (`simulate`), which reach what no machine can be made to do on demand.
//!
//! | part | what |
//! |---|---|
//! | `content` `known` `names` | what may be read, byte by byte and name by name |
//! | `apps` `load` `outage` `probe` | programs at work, and a watch on every call |
//! | `verify` `judge` | the proof, the verdict |
//! | `bed` `disks` `sweep` | the scratch volume, filesystems below it, leaving nothing |
//! | `stage` `scenario` | what every scenario does, and what each does |

mod apps;
mod bed;
mod content;
mod disks;
pub mod judge;
mod known;
mod load;
mod names;
mod outage;
pub mod probe;
pub mod scenario;
mod stage;
mod sweep;
mod verify;

pub use bed::guard;

use judge::{Event, Outcome, Summary, Verdict};
use scenario::Scenario;
use stage::Stage;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Whether somebody asked for the end: the number of the signal, or 0.
#[derive(Debug, Clone, Default)]
pub struct Halt(pub Arc<AtomicUsize>);

impl Halt {
    /// Go on?
    ///
    /// # Errors
    /// Somebody asked for the end.
    pub fn check(&self) -> Result<(), Stop> {
        match self.0.load(Ordering::SeqCst) {
            0 => Ok(()),
            _ => Err(Stop::Interrupted),
        }
    }
}

/// Why a scenario ends early.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// A signal asked for it.
    #[error("interrupted")]
    Interrupted,
    /// A promise was broken, so that going on makes no sense.
    #[error("{0}")]
    Broken(String),
    /// The scenario could not be carried out.
    #[error("could not be carried out: {0}")]
    Unable(String),
}

/// What a run is told to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// Contents and choices follow from it; moments do not.
    pub seed: u64,
    /// Where scratch folders are made.
    pub directory: Option<PathBuf>,
    /// Leave the scratch folders (not mounted).
    pub keep: bool,
}

/// Who is told how it goes.
pub trait Tell {
    /// A scenario begins.
    fn begin(&mut self, scenario: &dyn Scenario);
    /// Something happened.
    fn event(&mut self, event: &Event);
    /// What is going on now; often.
    fn progress(&mut self, text: &str);
    /// A scenario has ended.
    fn end(&mut self, outcome: &Outcome);
}

/// Run `scenarios`, one after the other.
pub fn run(scenarios: &[&dyn Scenario], options: &Options, halt: &Halt, tell: &mut dyn Tell) -> Summary {
    let began = Instant::now();
    let mut outcomes = Vec::new();
    for scenario in scenarios {
        if halt.check().is_err() {
            break;
        }
        tell.begin(*scenario);
        let outcome = run_one(*scenario, options, halt, tell);
        tell.end(&outcome);
        outcomes.push(outcome);
    }
    let count = |verdict: Verdict| outcomes.iter().filter(|outcome| outcome.verdict == verdict).count();
    Summary {
        version: env!("CARGO_PKG_VERSION").into(),
        seed: options.seed,
        root: rustix::process::geteuid().is_root(),
        interrupted: halt.check().is_err(),
        passed: count(Verdict::Passed),
        failed: count(Verdict::Failed),
        skipped: count(Verdict::Skipped),
        seconds: began.elapsed().as_secs_f64(),
        scenarios: outcomes,
    }
}

fn run_one(scenario: &dyn Scenario, options: &Options, halt: &Halt, tell: &mut dyn Tell) -> Outcome {
    if let Some(reason) = scenario.lacking() {
        return Outcome::skipped(scenario.name(), options.seed, reason);
    }
    let began = Instant::now();
    let mut outcome = Outcome::new(scenario.name(), options.seed);
    let kept = {
        let stage = Stage::new(scenario.name(), options, halt.clone(), tell, &mut outcome, began);
        stage.and_then(|mut stage| {
            let ended = scenario.run(&mut stage);
            stage.close(ended)
        })
    };
    outcome.seconds = Duration::as_secs_f64(&began.elapsed());
    let whole = kept.is_ok();
    outcome.broken.extend(kept.err().map(|stop| stop.to_string()));
    outcome.decide(whole);
    outcome
}
