//! Availability in figures, from events.
//!
//! *Guarantees*: a pure function: equal events give equal figures; nothing is counted as served of which no event tells.
//! *Assumes*: events are in order. Their times may step: where the clock goes back, no time passes, and it counts on from
//! there. *Fails when*: never.
//! *Order*: none. *Not here*: where events come from (`events`).
//!
//! What is counted, and what is not:
//!
//! | time | the service | a replica |
//! |---|---|---|
//! | mounted | served; writes only if not read-only, and until no replica takes writes | available in sync, else not |
//! | from the last sign of life before a crash to the next mount | an outage | not counted |
//! | unmounted in order | not counted: nobody was to be served | not counted |
//! | before a replica was in sync for the first time | | not counted |
//!
//! A mount that follows none is a crash, also if nothing says so: its last sign of life is the event before. Where the log
//! was cut at its bound, the figures begin with its oldest event, and a replica was in the state that its first event
//! leaves, or is in now.

use crate::format::Uuid;
use crate::format::event::{Event, EventKind, EventState};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// How well something was available.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Available, ms.
    pub up_ms: u64,
    /// Wanted and not available, ms.
    pub down_ms: u64,
    /// How often it became unavailable.
    pub outages: u64,
    /// Mean time between failures: available time by outages, ms.
    pub mtbf_ms: Option<u64>,
    /// Mean time to repair: unavailable time by outages, ms.
    pub mttr_ms: Option<u64>,
    /// Share of the time, 0 to 1; nothing if no time has passed.
    pub availability: Option<f64>,
    /// Number of nines of that share; nothing if it was always available.
    pub nines: Option<f64>,
}

/// Figures of one replica.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ReplicaFigures {
    /// Identity.
    pub replica: String,
    /// Where it stands or stood.
    pub path: String,
    /// How well.
    #[serde(flatten)]
    pub figures: Figures,
}

/// Availability of a volume.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Availability {
    /// Oldest event that they are made of, ns since 1970; 0 if there is none.
    pub since_ns: u64,
    /// The service, for reads.
    pub reads: Figures,
    /// The service, for writes.
    pub writes: Figures,
    /// Mounted while only one replica was in sync, ms.
    pub held_once_ms: u64,
    /// Mounted while not all replicas were in sync that are not warm or cold now, ms. With two hot ones it is the same.
    #[serde(default)]
    pub at_risk_ms: u64,
    /// By replica.
    pub replicas: Vec<ReplicaFigures>,
}

/// A replica as it is now.
#[derive(Debug, Clone)]
pub struct Now {
    /// Identity.
    pub replica: Uuid,
    /// Where it stands.
    pub path: String,
    /// Its state.
    pub state: EventState,
    /// Warm or cold.
    pub follows: bool,
}

/// Time on one clock, ns.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    up: u64,
    down: u64,
    outages: u64,
}

impl Tally {
    fn figures(self) -> Figures {
        const MS: u64 = 1_000_000;
        let whole = self.up.saturating_add(self.down);
        let mean = |time: u64| time.checked_div(self.outages).map(|ns| ns / MS);
        let missing = self.down as f64 / whole as f64;
        Figures {
            up_ms: self.up / MS,
            down_ms: self.down / MS,
            outages: self.outages,
            mtbf_ms: mean(self.up),
            mttr_ms: mean(self.down),
            availability: (whole > 0).then_some(1.0 - missing),
            // Rounded down: 99.89 % is not three nines. The small term is for powers of ten.
            nines: (self.down > 0).then(|| (-missing.log10() * 100.0 + 1e-9).floor() / 100.0),
        }
    }
}

struct Track {
    path: String,
    state: EventState,
    /// Whether it has been in sync: what fills for the first time is not missed yet.
    is_counted: bool,
    tally: Tally,
}

#[derive(Default)]
struct Count {
    at: u64,
    is_mounted: bool,
    is_failed: bool,
    is_read_only: bool,
    reads: Tally,
    writes: Tally,
    held_once: u64,
    at_risk: u64,
    replicas: BTreeMap<Uuid, Track>,
    /// Warm or cold now: behind because somebody wants it.
    followers: BTreeSet<Uuid>,
}

impl Count {
    /// Time goes on to `until`, in service.
    fn serve(&mut self, until: u64) {
        let passed = until.saturating_sub(self.at);
        self.at = until;
        if !self.is_mounted {
            return;
        }
        self.reads.up += passed;
        match (self.is_read_only, self.is_failed) {
            (true, _) => {}
            (false, true) => self.writes.down += passed,
            (false, false) => self.writes.up += passed,
        }
        let (mut in_sync, mut away) = (0, 0);
        for (replica, track) in self.replicas.iter_mut().filter(|(_, track)| track.is_counted) {
            match track.state {
                state if state.is_in_sync() => {
                    track.tally.up += passed;
                    in_sync += 1;
                }
                EventState::Absent => {}
                _ => {
                    track.tally.down += passed;
                    away += u64::from(!self.followers.contains(replica));
                }
            }
        }
        self.held_once += if in_sync == 1 { passed } else { 0 };
        self.at_risk += if away > 0 { passed } else { 0 };
    }

    /// It crashed after `alive`, and is to be mounted again at `until`.
    fn crash(&mut self, alive: u64, until: u64) {
        self.serve(alive.clamp(self.at.min(until), until));
        let passed = until.saturating_sub(self.at);
        self.at = until;
        self.reads.down += passed;
        self.reads.outages += 1;
        if !self.is_read_only {
            self.writes.down += passed;
            // It went on from a failure that was counted already.
            self.writes.outages += u64::from(!self.is_failed);
        }
        self.is_mounted = false;
    }

    fn event(&mut self, event: &Event) {
        match event.kind {
            EventKind::Recovered if self.is_mounted => self.crash(event.numbers[2], event.time_ns),
            EventKind::Mounted if self.is_mounted => self.crash(self.at, event.time_ns),
            _ => self.serve(event.time_ns),
        }
        match event.kind {
            EventKind::Mounted => {
                (self.is_mounted, self.is_failed, self.is_read_only) = (true, false, event.numbers[0] != 0);
            }
            EventKind::Unmounted => self.is_mounted = false,
            EventKind::Failed if !self.is_failed => {
                self.is_failed = true;
                self.writes.outages += 1;
            }
            EventKind::State => self.state(event),
            _ => {}
        }
    }

    fn state(&mut self, event: &Event) {
        let new = Track { path: String::new(), state: EventState::Absent, is_counted: false, tally: Tally::default() };
        let track = self.replicas.entry(event.replica).or_insert(new);
        event.place.clone_into(&mut track.path);
        let leaves = track.state.is_in_sync() && !event.to.is_in_sync() && event.to != EventState::Absent;
        track.tally.outages += u64::from(leaves);
        track.state = event.to;
        track.is_counted |= event.to.is_in_sync();
    }
}

/// The figures of a volume that is mounted at `now_ns`, with these replicas, after these events (oldest first).
pub fn availability<'e>(
    events: impl Iterator<Item = &'e Event> + Clone,
    now_ns: u64,
    replicas: &[Now],
) -> Availability {
    let mut count = Count::default();
    let Some(first) = events.clone().next() else { return Availability::default() };
    count.at = first.time_ns;
    count.followers = replicas.iter().filter(|now| now.follows).map(|now| now.replica).collect();
    count.is_mounted = !matches!(first.kind, EventKind::Mounted | EventKind::Recovered);
    for event in events.clone().filter(|event| event.kind == EventKind::State) {
        let was = || Track {
            path: event.place.clone(),
            state: event.from,
            is_counted: event.from != EventState::Absent,
            tally: Tally::default(),
        };
        count.replicas.entry(event.replica).or_insert_with(was);
    }
    for now in replicas {
        let is = || Track { path: now.path.clone(), state: now.state, is_counted: true, tally: Tally::default() };
        count.replicas.entry(now.replica).or_insert_with(is);
    }
    events.for_each(|event| count.event(event));
    count.serve(now_ns);
    let figures = |(replica, track): (&Uuid, &Track)| ReplicaFigures {
        replica: replica.to_string(),
        path: track.path.clone(),
        figures: track.tally.figures(),
    };
    Availability {
        since_ns: first.time_ns,
        reads: count.reads.figures(),
        writes: count.writes.figures(),
        held_once_ms: count.held_once / 1_000_000,
        at_risk_ms: count.at_risk / 1_000_000,
        replicas: count.replicas.iter().filter(|(_, track)| track.is_counted).map(figures).collect(),
    }
}

#[cfg(test)]
mod tests;
