//! The kinds of seeded runs, by name, so that a report can be replayed by anyone who has the program.
//!
//! *Guarantees*: [`Kind::run`] with equal seeds does the same in the same version of the program.
//! *Assumes*: nothing. *Fails when*: a promise was broken: the failure's first line says which.
//! *Order*: none. *Not here*: many seeds at once (`cli::simulate`, `tests/common`).

use super::fault::{self, fault_history};
use super::life::{OPERATIONS, life};
use super::{Cut, Failure, Tally, history};
use crate::disk::sim::{CrashPlan, Random};

/// What kind of run a seed stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Everything in one history: the ordinary weights.
    Life,
    /// One history, run again and again with the power cut at random writes, also in recovery and with one disk left.
    Cuts,
    /// One history, run again with the power cut at each of its writes and flushes.
    Everywhere,
    /// One history on a pair of disks of which one has one kind of fault.
    Fault,
    /// A mixture of these, most of them lives.
    Soak,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 5] = [Kind::Life, Kind::Cuts, Kind::Everywhere, Kind::Fault, Kind::Soak];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Life => "life",
            Kind::Cuts => "cuts",
            Kind::Everywhere => "everywhere",
            Kind::Fault => "fault",
            Kind::Soak => "soak",
        }
    }

    /// Run `seed`.
    ///
    /// # Errors
    /// A promise was broken.
    pub fn run(self, seed: u64) -> Result<Tally, Failure> {
        match self {
            Kind::Life => life(seed),
            Kind::Cuts => cut_somewhere(seed, 4),
            Kind::Everywhere => cut_everywhere(seed),
            Kind::Fault => {
                let kinds = fault::Kind::ALL;
                fault_history(seed, kinds[(seed % kinds.len() as u64) as usize], OPERATIONS)
            }
            // One run of `Everywhere` is some hundred histories.
            Kind::Soak => match Random::new(seed).below(400) {
                0 => cut_everywhere(seed),
                1..21 => cut_somewhere(seed, 4),
                21..81 => Kind::Fault.run(seed),
                _ => life(seed),
            },
        }
    }
}

fn cut_of(random: &mut Random, at: Option<u64>) -> Cut {
    let plans = [CrashPlan::DropAll, CrashPlan::KeepAll, CrashPlan::Random, CrashPlan::Random];
    Cut { at, plan: *random.pick(&plans), more: 0, alone: None }
}

/// The history of `seed`, cut at `cuts` random writes and flushes, half of the times also during recovery.
fn cut_somewhere(seed: u64, cuts: u32) -> Result<Tally, Failure> {
    let mut random = Random::new(seed ^ 0x5eed);
    let cut = cut_of(&mut random, None);
    let mut sum = history(seed, OPERATIONS, cut)?;
    let requests = sum.requests;
    for _ in 0..cuts {
        let at = random.range(1, requests + 1);
        let more = random.below(2) as u32 * random.range(1, 4) as u32;
        // Either disk alone must do, too.
        let alone = (random.below(4) == 0).then(|| random.below(2) as usize);
        sum.add(&history(seed, OPERATIONS, Cut { more, alone, ..cut_of(&mut random, Some(at)) })?);
    }
    Ok(sum)
}

/// The history of `seed`, cut at each of its writes and flushes.
fn cut_everywhere(seed: u64) -> Result<Tally, Failure> {
    let mut random = Random::new(seed);
    let mut sum = history(seed, OPERATIONS, cut_of(&mut random, None))?;
    for at in 1..=sum.requests {
        sum.add(&history(seed, OPERATIONS, cut_of(&mut random, Some(at)))?);
    }
    Ok(sum)
}
