//! A slot of the mirror: who is in it, in what state, and what was counted.
//!
//! *Guarantees*: counters only grow. *Assumes*: the mirror's table lock guards rows.
//! *Fails when*: never. *Order*: none.
//! *Not here*: the rules of moving between states (`mirror`).
//!
//! | what a replica is | where that is known | here it is |
//! |---|---|---|
//! | in sync, out, missing, returning | the mirror | a [`ReplicaState`] |
//! | detached: no replica any more | the root, as long as its slot is free | a slot that is passed over: a [`ReplicaState`] |
//! | full | beside the state: `full`, and `volume::status`, from the room below and the cause | in sync or out |
//! | read-only | beside the state: `volume::status`, from the cause | out |
//! | slow | beside the state: `slow`, by its times and its twin's | in sync |
//! | warm, cold | `volume::follow`, from the roles in the root | out |
//! | behind | at the mount: `store::recover` | out |
//! | foreign, forked | at the mount, which is refused: `store::recover` | not here |

use super::slow::Pace;
use crate::disk::ReplicaName;
use crate::disk::backing::{Backing, BackingKind, Facts};
use crate::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Where a replica stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReplicaState {
    /// Holds everything; serves reads, takes writes.
    InSync,
    /// Failed, hung, or was left behind; neither read nor written.
    Out,
    /// Has no backing.
    Missing,
    /// Takes new writes while it is brought up to date; serves no reads.
    Returning,
    /// Nobody's slot: its replica was detached.
    Detached,
}

impl ReplicaState {
    /// Name used in reports.
    pub fn name(self) -> &'static str {
        match self {
            ReplicaState::InSync => "in sync",
            ReplicaState::Out => "out",
            ReplicaState::Missing => "missing",
            ReplicaState::Returning => "returning",
            ReplicaState::Detached => "detached",
        }
    }
    /// Whether it takes writes.
    pub fn takes_writes(self) -> bool {
        matches!(self, ReplicaState::InSync | ReplicaState::Returning)
    }
}

/// What was counted on a replica since the mirror was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReplicaCounters {
    /// Read requests of the mirror that it answered.
    pub reads: u64,
    /// Write requests that it answered.
    pub writes: u64,
    /// Flushes that it answered.
    pub flushes: u64,
    /// Omissions: blocks that could not be read.
    pub unreadable: u64,
    /// Omissions: blocks that did not prove themselves.
    pub checksum: u64,
    /// Blocks that were wrong once and right when read again; nothing was repaired.
    pub transient: u64,
    /// Omissions that were repaired and proven.
    pub healed: u64,
    /// Omissions whose repair failed.
    pub heal_failed: u64,
    /// Blocks brought up to date by repair while it was returning.
    pub copied: u64,
    /// Writes that failed.
    pub write_failed: u64,
    /// Flushes that failed.
    pub flush_failed: u64,
    /// Deadlines missed while a twin finished.
    pub deadline_missed: u64,
}

impl ReplicaCounters {
    /// Omissions of both kinds.
    pub fn omissions(&self) -> u64 {
        self.unreadable + self.checksum
    }
}

#[derive(Default)]
pub(super) struct Counted {
    pub reads: AtomicU64,
    pub writes: AtomicU64,
    pub flushes: AtomicU64,
    pub unreadable: AtomicU64,
    pub checksum: AtomicU64,
    pub transient: AtomicU64,
    pub healed: AtomicU64,
    pub heal_failed: AtomicU64,
    pub copied: AtomicU64,
    pub write_failed: AtomicU64,
    pub flush_failed: AtomicU64,
    pub deadline_missed: AtomicU64,
}

impl Counted {
    /// Another replica is in the slot now.
    pub fn reset(&self) {
        let all = [
            &self.reads,
            &self.writes,
            &self.flushes,
            &self.unreadable,
            &self.checksum,
            &self.transient,
            &self.healed,
            &self.heal_failed,
            &self.copied,
            &self.write_failed,
            &self.flush_failed,
            &self.deadline_missed,
        ];
        all.iter().for_each(|counter| counter.store(0, Ordering::Relaxed));
    }

    fn now(&self) -> ReplicaCounters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ReplicaCounters {
            reads: get(&self.reads),
            writes: get(&self.writes),
            flushes: get(&self.flushes),
            unreadable: get(&self.unreadable),
            checksum: get(&self.checksum),
            transient: get(&self.transient),
            healed: get(&self.healed),
            heal_failed: get(&self.heal_failed),
            copied: get(&self.copied),
            write_failed: get(&self.write_failed),
            flush_failed: get(&self.flush_failed),
            deadline_missed: get(&self.deadline_missed),
        }
    }
}

/// A replica as status shows it.
#[derive(Debug, Clone)]
pub struct ReplicaHealth {
    /// Index of the slot.
    pub slot: usize,
    /// Who it is.
    pub name: ReplicaName,
    /// What its backing is, if there is one.
    pub kind: Option<BackingKind>,
    /// Whether I/O goes past the page cache; false without a backing.
    pub direct: bool,
    /// Where it stands.
    pub state: ReplicaState,
    /// Since when, ns since 1970.
    pub since_ns: u64,
    /// Why, in words; empty when in sync.
    pub cause: String,
    /// Requests not answered, those of released backings included.
    pub in_flight: usize,
    /// Bytes free below at the last check; `None` before the first.
    pub bytes_free_below: Option<u64>,
    /// What was counted.
    pub counters: ReplicaCounters,
    /// How long requests take it.
    pub pace: Pace,
    /// It had no room when it was last asked for more.
    pub is_full: bool,
}

impl ReplicaHealth {
    /// Whether it is a replica of the volume, and not only a slot that one has left.
    pub fn is_member(&self) -> bool {
        self.state != ReplicaState::Detached
    }
}

pub(super) struct Row {
    pub name: ReplicaName,
    pub backing: Option<Arc<dyn Backing>>,
    /// Closed backings of this slot, kept while their I/O may still land.
    pub released: Vec<Arc<dyn Backing>>,
    pub state: ReplicaState,
    pub since_ns: u64,
    pub cause: String,
    /// Went out because it did not answer: while requests are in flight, more of them would only hang too.
    pub silent: bool,
    pub facts: Option<Facts>,
}

impl Row {
    pub fn new(
        name: ReplicaName,
        backing: Option<Arc<dyn Backing>>,
        state: ReplicaState,
        since_ns: u64,
        cause: &str,
    ) -> Row {
        Row {
            name,
            backing,
            released: Vec::new(),
            state,
            since_ns,
            cause: cause.to_owned(),
            silent: false,
            facts: None,
        }
    }

    pub fn enter(&mut self, state: ReplicaState, cause: &str) {
        self.state = state;
        self.since_ns = wall_ns();
        self.cause = cause.to_owned();
        self.silent = false;
        self.released.retain(|old| !old.is_closed() || old.in_flight() > 0);
    }

    /// Nobody is in the slot from now on. Gives the backing; what may still land on it is counted until it is closed.
    pub fn vacate(&mut self, cause: &str) -> Option<Arc<dyn Backing>> {
        let backing = self.backing.take();
        self.released.extend(backing.clone());
        self.facts = None;
        self.enter(ReplicaState::Detached, cause);
        backing
    }

    /// Whether it is still the backing of this lane that is in the slot.
    pub fn holds(&self, lane: &super::Lane) -> bool {
        self.backing.as_ref().is_some_and(|now| Arc::ptr_eq(now, &lane.backing))
    }

    /// Whether asking is pointless for now.
    pub fn hangs(&self) -> bool {
        self.silent && self.backing.as_ref().is_some_and(|backing| backing.in_flight() > 0)
    }

    pub fn all_backings(&self) -> impl Iterator<Item = &Arc<dyn Backing>> {
        self.backing.iter().chain(&self.released)
    }

    pub fn health(&self, slot: usize, counted: &Counted, pace: Pace) -> ReplicaHealth {
        let facts = self.backing.as_ref().map(|backing| backing.facts());
        ReplicaHealth {
            slot,
            name: self.name.clone(),
            kind: facts.as_ref().map(|facts| facts.kind),
            direct: facts.is_some_and(|facts| facts.direct),
            state: self.state,
            since_ns: self.since_ns,
            cause: self.cause.clone(),
            in_flight: self.all_backings().map(|backing| backing.in_flight()).sum(),
            bytes_free_below: self.facts.map(|facts| facts.bytes_free_below),
            counters: counted.now(),
            pace,
            is_full: false,
        }
    }
}

pub(super) struct Table {
    pub rows: Vec<Row>,
    pub generation: u64,
    /// Why every write fails for good.
    pub latched: Option<String>,
    /// Asked before each write.
    pub guard: Option<Arc<dyn super::Guard>>,
}

impl Table {
    pub fn in_sync(&self) -> u8 {
        let bit = |(slot, row): (usize, &Row)| u8::from(row.state == ReplicaState::InSync) << slot;
        self.rows.iter().enumerate().map(bit).sum()
    }
}

/// For reports only: nothing is decided by it.
pub(super) fn wall_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}
