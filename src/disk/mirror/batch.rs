//! Requests to several replicas in parallel, several outstanding on each, and the rule of the deadline.
//!
//! *Guarantees*: returns when every lane has finished, failed, or missed. A lane misses only when a twin that is in
//! sync has finished the whole batch, the lane has answered nothing for the deadline (or has not finished within
//! twice that), and it was allowed to leave. While nobody has finished, everybody is waited for; but once no replica in
//! sync is still at it, one that is only returning is timed by the deadline alone.
//! *Assumes*: requests of one batch may land in any order.
//! *Fails when*: never itself; each lane has its own outcome.
//! *Order*: a lane is put out here when it misses; when it fails, the caller decides.
//! *Not here*: what a failure means (`write`).

use super::slow::Sample;
use super::{Lane, Leaving, Mirror, ReplicaState};
use crate::disk::backing::{Bell, Done, Op, Ticket};
use crate::sync::Instant;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Requests outstanding on one replica for one batch: enough to keep a disk busy, few enough that a small urgent
/// request behind them waits for 8 MiB at most.
const OUTSTANDING_MAX: usize = 8;
/// How often to look again where no answer can wake us.
const POLL: Duration = Duration::from_millis(1);

pub(super) enum Outcome {
    /// Answered everything; the last answer.
    Finished(Done),
    Failed(io::Error),
    /// Did not answer; it is out.
    Missed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Probe {
    Answers,
    Fails,
    Silent,
}

/// Why one request to one replica gave nothing.
pub(super) enum Trouble {
    /// No answer within our deadline. (A medium may well answer ETIMEDOUT: that is an error.)
    Missed(Duration),
    Failed(io::Error),
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Trouble::Missed(deadline) => write!(f, "no answer within {deadline:?}"),
            Trouble::Failed(error) => error.fmt(f),
        }
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Trouble {
        Trouble::Failed(error)
    }
}

struct Run<'a> {
    lane: &'a Lane,
    next: usize,
    outstanding: Vec<Ticket>,
    last: Done,
    failure: Option<io::Error>,
    started: Instant,
    /// From the start to the last answer, as the backing says.
    took: Duration,
    is_simulated: bool,
    progress: Instant,
    finished: Option<Instant>,
    outcome: Option<Outcome>,
}

impl Run<'_> {
    /// Harvest answers and submit what there is room for, until nothing moves.
    fn advance(&mut self, count: usize, op: &dyn Fn(usize) -> Op, bell: &Arc<Bell>) {
        while self.outcome.is_none() {
            let mut index = 0;
            while index < self.outstanding.len() {
                if !self.outstanding[index].is_done() {
                    index += 1;
                    continue;
                }
                let ticket = self.outstanding.swap_remove(index);
                self.took = match (ticket.took(), ticket.asked()) {
                    (Some(took), Some(asked)) => self.took.max(asked + took - self.started),
                    // Simulated: one after the other.
                    (took, _) => {
                        self.is_simulated = true;
                        self.took + took.unwrap_or_default()
                    }
                };
                self.progress = Instant::now();
                match ticket.wait(None).expect("the answer is there") {
                    Ok(done) => self.last = done,
                    Err(error) => self.failure = self.failure.take().or(Some(error)),
                }
            }
            if self.failure.is_some() {
                // Nothing more is submitted, but what is under way must not land after the caller was told.
                if self.outstanding.is_empty() {
                    self.outcome = self.failure.take().map(Outcome::Failed);
                }
                return;
            }
            if self.next == count && self.outstanding.is_empty() {
                self.finished = Some(Instant::now());
                let last = std::mem::replace(&mut self.last, Done::Nothing);
                return self.outcome = Some(Outcome::Finished(last));
            }
            let mut moved = false;
            while self.next < count && self.outstanding.len() < OUTSTANDING_MAX {
                let ticket = self.lane.backing.submit(op(self.next));
                ticket.listen(bell);
                moved |= ticket.is_done();
                self.outstanding.push(ticket);
                self.next += 1;
            }
            if !moved {
                return;
            }
        }
    }

    fn is_frozen(&self) -> bool {
        self.outstanding.iter().any(Ticket::is_frozen)
    }

    fn limit(&self, deadline: Duration) -> Instant {
        (self.progress + deadline).min(self.started + 2 * deadline)
    }
}

impl Mirror {
    /// Run requests `0..count`, made by `op`, on every lane. `what` names them in causes.
    pub(super) fn run_batch(&self, lanes: &[Lane], count: usize, what: &str, op: &dyn Fn(usize) -> Op) -> Vec<Outcome> {
        let bell = Bell::new();
        let started = Instant::now();
        let run = |lane| Run {
            lane,
            next: 0,
            outstanding: Vec::new(),
            last: Done::Nothing,
            failure: None,
            started,
            took: Duration::ZERO,
            is_simulated: false,
            progress: started,
            finished: None,
            outcome: None,
        };
        let mut runs: Vec<Run> = lanes.iter().map(run).collect();
        loop {
            let seen = bell.count();
            for run in &mut runs {
                run.advance(count, op, &bell);
            }
            let twin_at = runs
                .iter()
                .filter(|run| self.state(run.lane.slot) == ReplicaState::InSync)
                .filter_map(|run| run.finished)
                .min();
            let is_in_sync = |run: &Run<'_>| self.state(run.lane.slot) == ReplicaState::InSync;
            let decided = !runs.iter().any(|run| run.outcome.is_none() && is_in_sync(run));
            let now = Instant::now();
            let mut wake: Option<Instant> = None;
            for run in runs.iter_mut().filter(|run| run.outcome.is_none()) {
                let limit = match twin_at {
                    Some(at) => Some(run.limit(self.deadline).max(at + self.grace())),
                    None => decided.then(|| run.limit(self.deadline)),
                };
                let late = limit.is_some_and(|limit| run.is_frozen() || now >= limit);
                if late && self.miss(run.lane, what) == Leaving::Out {
                    run.outcome = Some(Outcome::Missed);
                    continue;
                }
                let again = if run.is_frozen() || late { Some(now + POLL) } else { limit };
                wake = [wake, again].into_iter().flatten().min();
            }
            if runs.iter().all(|run| run.outcome.is_some()) {
                if let Op::Write { .. } | Op::Flush = op(0) {
                    self.note_runs(&runs);
                }
                return runs.into_iter().filter_map(|run| run.outcome).collect();
            }
            bell.wait(seen, wake);
        }
    }

    /// What those took who did the same.
    fn note_runs(&self, runs: &[Run<'_>]) {
        let finished = runs.iter().filter(|run| matches!(run.outcome, Some(Outcome::Finished(_))));
        let sample = |run: &Run<'_>| {
            let asked = (!run.is_simulated).then_some(run.started);
            (run.lane.slot, Sample { asked, took: run.took })
        };
        self.note_writes(&finished.map(sample).collect::<Vec<_>>());
    }

    /// `lane` missed the deadline while a twin did not.
    pub(super) fn miss(&self, lane: &Lane, what: &str) -> Leaving {
        let cause = format!("no answer to {what} within {:?}, while another replica answered", self.deadline);
        let was = self.state(lane.slot);
        let leaving = self.put_lane_out(lane, &cause);
        if leaving == Leaving::Out && was.takes_writes() {
            self.count(lane.slot, |counted| &counted.deadline_missed);
            if let Some(row) = self.table.write().rows.get_mut(lane.slot).filter(|row| row.holds(lane)) {
                row.silent = row.state == ReplicaState::Out;
            }
        }
        leaving
    }

    /// Wait for one request to one replica. A replica in sync is timed out only if another one in sync answers a
    /// probe; others after the deadline. Then it has missed, and is out (not if the others only fail).
    pub(super) fn await_one(&self, lane: &Lane, ticket: &Ticket, what: &str) -> Result<Done, Trouble> {
        loop {
            if let Some(result) = ticket.wait(Some(Instant::now() + self.deadline)) {
                return Ok(result?);
            }
            if let Some(result) = ticket.wait(Some(Instant::now() + self.grace())) {
                return Ok(result?);
            }
            let in_sync = self.state(lane.slot) == ReplicaState::InSync;
            let probe = if in_sync { self.probe_twins(lane.slot) } else { Probe::Answers };
            // A twin that only fails is none to go on with: nobody goes out, but nobody waits without end either.
            if probe == Probe::Fails || probe == Probe::Answers && self.miss(lane, what) == Leaving::Out {
                return Err(Trouble::Missed(self.deadline));
            }
            if ticket.is_frozen() {
                crate::sync::thread::sleep(POLL);
            }
        }
    }

    /// Whether any other replica in sync answers a read now: with data, with an error only, or not at all.
    fn probe_twins(&self, replica: usize) -> Probe {
        let mut found = Probe::Silent;
        for twin in self.lanes(|state| state == ReplicaState::InSync).iter().filter(|twin| twin.slot != replica) {
            let ticket = twin.backing.submit(Op::Read { addr: 0, blocks: 1 });
            match ticket.wait(Some(Instant::now() + self.deadline)) {
                Some(Ok(_)) => return Probe::Answers,
                Some(Err(_)) => found = Probe::Fails,
                None => {}
            }
        }
        found
    }

    /// One request to one replica, waited for as in [`Mirror::await_one`].
    pub(super) fn one(&self, lane: &Lane, op: Op, what: &str) -> Result<Done, Trouble> {
        self.await_one(lane, &lane.backing.submit(op), what)
    }
}
