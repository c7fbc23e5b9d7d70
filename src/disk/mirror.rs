//! The mirror: careful reads, careful writes, repair, and the health of each replica.
//!
//! *Guarantees*: no unverified byte leaves [`Mirror::read`] (invariant 1). A write or flush that returns Ok is on
//! every replica that is in sync when it returns. Repair re-reads what it wrote, from the medium (invariant 8), and
//! never writes anything that did not prove itself. A replica that misses the deadline goes out only if a twin did
//! the same meanwhile; the last replica in sync is never timed out and never put out.
//! *Assumes*: callers keep an address pinned while they read it, and never write a block that anybody reads.
//! *Fails when*: no replica proves a block ([`DiskError::Lost`], that block alone); the last replica in sync fails a
//! write or a flush ([`DiskError::NoReplica`], latched for good); a backing is full ([`DiskError::Full`]).
//! *Order*: a flush covers writes that had returned when it was called. Locks: a repair turn, then the gate, then
//! the table; none is held while calling into a backing that may block, except the turn and the gate.
//! *Not here*: durable membership; the store polls [`Mirror::members`] and writes roots.
//!
//! A replica's state, and what moves it:
//!
//! | from | to | by |
//! |---|---|---|
//! | InSync | Out | failed write, flush or repair; missed deadline; failed check; `set_out`; never the last one |
//! | Out, Missing | Returning | `start_returning`: takes all new writes, serves no reads |
//! | (none) | Returning | `attach`: as above, in a further slot, beside replicas that all are in sync |
//! | Returning | InSync | `join`, or `take_over` in the slot of another one |
//! | Returning | Out | as InSync |
//! | any but the last InSync | Detached | `leave`: nobody's slot, until `settle` moves an attached replica there |
//!
//! Beside it one that is in sync may be slow (`slow`): it stays what it is, and gets no reads; or full (`write`): nothing new is
//! taken, or by choice it goes out.
//!
//! Each of these is told to a listener (`happened`).

mod batch;
mod combine;
mod full;
mod guard;
mod happened;
mod membership;
mod read;
mod repair;
mod slot;
mod slow;
mod write;

pub use combine::{CANDIDATES_MAX, Combination, Recipe};
pub use guard::{Guard, Standing};
pub use happened::{Happened, LOST_MAX, WAITING_MAX, What};
pub use membership::Left;
pub use repair::{Damage, Proof};
pub use slot::{ReplicaCounters, ReplicaHealth, ReplicaState};
pub use slow::Pace;

use super::backing::Backing;
use super::{DiskError, ReplicaName};
use crate::format::{Geometry, REPLICAS_MAX, VolumeSeed};
use crate::sync::Instant;
use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use crate::sync::{Mutex, RwLock, RwLockWriteGuard};
use repair::Copy;
use slot::{Counted, Row, Table, wall_ns};
use std::sync::Arc;
use std::time::Duration;

/// Repairs of one block exclude each other; different blocks rarely meet.
const REPAIR_TURNS: usize = 16;

/// Which replicas are in sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Members {
    /// Bit i: slot i is in sync.
    pub in_sync: u8,
    /// Changes whenever a replica changes its state.
    pub generation: u64,
}

impl Members {
    /// Whether slot `replica` is in sync.
    pub fn contains(self, replica: usize) -> bool {
        self.in_sync >> replica & 1 == 1
    }
    /// How many are in sync.
    pub fn count(self) -> usize {
        self.in_sync.count_ones() as usize
    }
}

/// A replica that a request goes to.
#[derive(Clone)]
struct Lane {
    slot: usize,
    backing: Arc<dyn Backing>,
    state: ReplicaState,
}

/// What happened to a replica that was to go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    /// It is out (or was before).
    Out,
    /// It is the last one in sync and stays.
    Last,
}

/// The mirror over up to four replicas.
pub struct Mirror {
    seed: VolumeSeed,
    geometry: Geometry,
    deadline: Duration,
    table: RwLock<Table>,
    counted: Vec<Counted>,
    /// Shared by writers; exclusive while the set that takes writes grows.
    gate: RwLock<()>,
    turns: Vec<Mutex<()>>,
    served_last: AtomicUsize,
    events: happened::Events,
    paces: slow::Paces,
    /// Who has no room for new data goes out, and does not end the growth of all.
    leaves_full: AtomicBool,
    /// Bit i: slot i had no room when it was last asked for more.
    full: AtomicU8,
}

impl Mirror {
    /// A mirror over `replicas`, whose order gives the slots. Each has a backing (`None`, or a plain
    /// `Arc<dyn Backing>`) and whether it is in sync; one without a backing is missing. `deadline` is for one
    /// request, not for a whole call of a user.
    ///
    /// # Panics
    /// With no or more than four replicas: our bug.
    pub fn new<B: Into<Option<Arc<dyn Backing>>>>(
        seed: VolumeSeed,
        geometry: Geometry,
        replicas: Vec<(ReplicaName, B, bool)>,
        deadline: Duration,
    ) -> Mirror {
        assert!(!replicas.is_empty() && replicas.len() <= REPLICAS_MAX);
        let since_ns = wall_ns();
        let rows: Vec<Row> = replicas
            .into_iter()
            .map(|(name, backing, in_sync)| {
                let backing: Option<Arc<dyn Backing>> = backing.into();
                let (state, cause) = match (&backing, in_sync) {
                    (None, _) => (ReplicaState::Missing, "missing"),
                    (Some(_), true) => (ReplicaState::InSync, ""),
                    (Some(_), false) => (ReplicaState::Out, "not in sync when it was mounted"),
                };
                Row::new(name, backing, state, since_ns, cause)
            })
            .collect();
        Mirror {
            seed,
            geometry,
            deadline,
            counted: (0..=REPLICAS_MAX).map(|_| Counted::default()).collect(),
            table: RwLock::new(Table { rows, generation: 1, latched: None, guard: None }),
            gate: RwLock::new(()),
            turns: (0..REPAIR_TURNS).map(|_| Mutex::new(())).collect(),
            served_last: AtomicUsize::new(0),
            events: happened::Events::default(),
            paces: slow::Paces::default(),
            leaves_full: AtomicBool::new(false),
            full: AtomicU8::new(0),
        }
    }

    /// Slots, those without a working replica included; slots are stable indices.
    pub fn replicas(&self) -> usize {
        self.table.read().rows.len()
    }

    /// Geometry of the volume.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Seed of the volume's checksums.
    pub fn seed(&self) -> VolumeSeed {
        self.seed
    }

    /// Deadline of one request.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// The set in sync now.
    pub fn members(&self) -> Members {
        let table = self.table.read();
        Members { in_sync: table.in_sync(), generation: table.generation }
    }

    /// Whether a replica that has no room for new data is left behind, as long as another one has; else nobody gets any.
    pub fn leave_full(&self, leaves: bool) {
        self.leaves_full.store(leaves, Ordering::Relaxed);
    }

    /// The same.
    pub fn leaves_full(&self) -> bool {
        self.leaves_full.load(Ordering::Relaxed)
    }

    /// Why writes fail for good, if they do.
    pub fn latched(&self) -> Option<String> {
        self.table.read().latched.clone()
    }

    /// State, counters and cause of each slot.
    pub fn health(&self) -> Vec<ReplicaHealth> {
        let table = self.table.read();
        table
            .rows
            .iter()
            .zip(&self.counted)
            .enumerate()
            .map(|(slot, (row, counted))| self.look(&table, slot, row, counted))
            .collect()
    }

    fn look(&self, table: &Table, slot: usize, row: &Row, counted: &Counted) -> ReplicaHealth {
        let is_full = row.state.takes_writes() && self.is_full(slot);
        ReplicaHealth { is_full, ..row.health(slot, counted, self.paces.pace(slot, table.in_sync())) }
    }

    /// The backing of slot `replica`, if it has one.
    pub fn backing(&self, replica: usize) -> Option<Arc<dyn Backing>> {
        self.table.read().rows.get(replica)?.backing.clone()
    }

    /// Put `replica` out because of something the layers above found. The last replica in sync stays in, but
    /// takes no writes any more.
    pub fn set_out(&self, replica: usize, cause: &str) {
        if self.put_out(replica, cause) == Leaving::Last {
            self.latch(cause);
        }
    }

    /// Put `replica` out because a person wants it. False: it is the last one in sync, and stays as it was.
    pub fn send_out(&self, replica: usize, cause: &str) -> bool {
        self.put_out(replica, cause) == Leaving::Out
    }

    /// Close the backing of a replica that is out, so that it can be opened anew. I/O that still hangs in it keeps
    /// its lock, and counts in [`ReplicaHealth::in_flight`]. Nothing happens to a replica that takes writes.
    pub fn release(&self, replica: usize) {
        let mut table = self.table.write();
        // One that was attached may be gone.
        let Some(row) = table.rows.get_mut(replica) else { return };
        if row.state == ReplicaState::Out
            && let Some(backing) = row.backing.take()
        {
            backing.close();
            row.released.push(backing);
        }
    }

    /// Slot `replica` gets this backing, takes all new writes and serves no reads. Waits for writes that began
    /// without it. What was in the slot is closed.
    ///
    /// # Panics
    /// If the slot is in sync: our bug.
    pub fn start_returning(&self, replica: usize, name: ReplicaName, backing: Arc<dyn Backing>) {
        let _alone = self.gate.write();
        let mut table = self.table.write();
        table.generation += 1;
        let row = &mut table.rows[replica];
        assert!(row.state != ReplicaState::InSync, "a replica in sync does not return");
        let old = row.backing.replace(backing.clone());
        if let Some(old) = old.filter(|old| !Arc::ptr_eq(old, &backing)) {
            old.close();
            row.released.push(old);
        }
        log::info!("replica {replica} ({}) is returning", name.path);
        let mut was = Some(row.state);
        if row.name.uuid != name.uuid {
            self.counted[replica].reset();
            self.events.tell(Happened::left(replica, row, &format!("replaced by {}", name.path)));
            was = None;
        }
        row.name = name;
        row.enter(ReplicaState::Returning, "");
        self.paces.forget(replica);
        self.events.tell(Happened::moved(replica, row, was, "it is brought up to date"));
    }

    /// A returning replica has been proven to hold everything: it is in sync again.
    ///
    /// # Panics
    /// If the slot is neither returning nor in sync nor out: our bug. A replica that went out meanwhile stays out.
    pub fn join(&self, replica: usize) {
        let _alone = self.gate.write();
        let mut table = self.table.write();
        let state = table.rows[replica].state;
        assert!(state != ReplicaState::Missing, "a missing replica cannot join");
        if state == ReplicaState::Returning {
            table.generation += 1;
            log::info!("replica {replica} ({}) is in sync", table.rows[replica].name.path);
            let row = &mut table.rows[replica];
            row.enter(ReplicaState::InSync, "");
            self.events.tell(Happened::moved(replica, row, Some(state), "proven to hold everything"));
        }
    }

    /// Close all backings and wait up to `patience` until their locks are released, a quarter of it where one that is out
    /// is known to hang. Returns the paths of those that still hang.
    pub fn close(&self, patience: Duration) -> Vec<String> {
        let began = Instant::now();
        let rows: Vec<(String, Arc<dyn Backing>, Instant)> = {
            let table = self.table.read();
            let limit = |row: &Row, backing: &Arc<dyn Backing>| {
                let hangs = row.state != ReplicaState::InSync && backing.in_flight() > 0;
                began + if hangs { patience / 4 } else { patience }
            };
            let all = |row: &Row| {
                row.all_backings().map(|b| (row.name.path.clone(), b.clone(), limit(row, b))).collect::<Vec<_>>()
            };
            table.rows.iter().flat_map(all).collect()
        };
        for (_, backing, _) in &rows {
            backing.close();
        }
        while rows
            .iter()
            .any(|(_, backing, until)| !backing.is_closed() && backing_may_close(backing) && Instant::now() < *until)
        {
            crate::sync::thread::sleep(Duration::from_millis(1));
        }
        rows.into_iter().filter(|(_, backing, _)| !backing.is_closed()).map(|(path, _, _)| path).collect()
    }

    /// Whether slot `replica` takes writes.
    pub fn is_writable(&self, replica: usize) -> bool {
        let table = self.table.read();
        let row = table.rows.get(replica);
        row.is_some_and(|row| {
            row.state.takes_writes() && row.backing.as_ref().is_some_and(|backing| !backing.facts().read_only)
        })
    }

    /// Count an omission of a block that proves itself, repaired by the layers above.
    pub fn count_healed(&self, replica: usize) {
        if self.state(replica) == ReplicaState::InSync {
            self.count(replica, |counted| &counted.checksum);
            self.count(replica, |counted| &counted.healed);
            self.tell_of(replica, Happened::new(What::Omission, "a block that proves itself"));
        } else {
            self.count(replica, |counted| &counted.copied);
        }
    }

    /// Replicas whose state is one of `states`, in slot order.
    fn lanes(&self, wanted: impl Fn(ReplicaState) -> bool) -> Vec<Lane> {
        let table = self.table.read();
        let lane = |(slot, row): (usize, &Row)| {
            let backing = row.backing.clone()?;
            wanted(row.state).then_some(Lane { slot, backing, state: row.state })
        };
        table.rows.iter().enumerate().filter_map(lane).collect()
    }

    fn lane(&self, replica: usize) -> Option<Lane> {
        self.lanes(|_| true).into_iter().find(|lane| lane.slot == replica)
    }

    fn state(&self, replica: usize) -> ReplicaState {
        self.table.read().rows.get(replica).map_or(ReplicaState::Missing, |row| row.state)
    }

    /// Put out whoever is in this slot, unless it is the last in sync.
    fn put_out(&self, replica: usize, cause: &str) -> Leaving {
        self.put_out_of(self.table.write(), replica, cause, 0)
    }

    /// As [`Mirror::put_out`], unless another backing has taken the slot meanwhile.
    fn put_lane_out(&self, lane: &Lane, cause: &str) -> Leaving {
        self.put_lane_out_for(lane, cause, 0)
    }

    /// As [`Mirror::put_lane_out`], while file `owner` was read.
    fn put_lane_out_for(&self, lane: &Lane, cause: &str, owner: u64) -> Leaving {
        let table = self.table.write();
        let is_there = table.rows.get(lane.slot).is_some_and(|row| row.holds(lane));
        if is_there { self.put_out_of(table, lane.slot, cause, owner) } else { Leaving::Out }
    }

    /// Put the one of this lane out; if it is the last in sync, end all writing.
    fn leave_or_latch(&self, lane: &Lane, cause: &str) {
        if self.put_lane_out(lane, cause) == Leaving::Last {
            self.latch(cause);
        }
    }

    /// From now on every write and flush fails (invariant 5). The first cause stays.
    fn latch(&self, cause: &str) -> DiskError {
        let mut table = self.table.write();
        let is_first = table.latched.is_none();
        let why = table.latched.get_or_insert_with(|| cause.to_owned()).clone();
        drop(table);
        if is_first {
            self.events.tell(Happened::new(What::Failed, cause));
            log::error!("no replica takes writes any more: {cause}");
        }
        DiskError::NoReplica(why)
    }

    fn count(&self, replica: usize, counter: fn(&Counted) -> &crate::sync::atomic::AtomicU64) {
        counter(&self.counted[replica]).fetch_add(1, Ordering::Relaxed);
    }

    /// Nobody is slow any more because of what was measured in `slot` before.
    fn forget_pace(&self, table: &Table, slot: usize, why: &str) {
        if self.paces.forget(slot)
            && let Some(row) = table.rows.get(slot)
        {
            self.events.tell(Happened::new(What::Quick, why).of(slot, row));
        }
    }

    /// Time that a replica still gets after the deadline and after its twin was seen to have finished, so that a
    /// machine that was paused blames nobody (trap 6).
    fn grace(&self) -> Duration {
        self.deadline / 10
    }

    /// The rule of leaving: anyone but the last in sync. Logged once the lock is released: a log can hang like any file.
    fn put_out_of(&self, mut table: RwLockWriteGuard<'_, Table>, replica: usize, cause: &str, owner: u64) -> Leaving {
        let last = table.in_sync() == 1 << replica;
        let was = table.rows[replica].state;
        match was {
            ReplicaState::InSync if last => return Leaving::Last,
            ReplicaState::InSync | ReplicaState::Returning => {}
            ReplicaState::Out | ReplicaState::Missing | ReplicaState::Detached => return Leaving::Out,
        }
        table.generation += 1;
        self.forget_pace(&table, replica, "it goes out");
        self.has_room(&table, replica, "it goes out");
        let row = &mut table.rows[replica];
        row.enter(ReplicaState::Out, cause);
        let path = row.name.path.clone();
        self.events.tell(Happened { owner, ..Happened::moved(replica, row, Some(was), cause) });
        if table.in_sync().count_ones() == 1 {
            self.forget_pace(&table, table.in_sync().trailing_zeros() as usize, "it is the only one in sync");
        }
        drop(table);
        log::error!("replica {replica} ({path}) is out: {cause}");
        Leaving::Out
    }
}

/// Whether waiting for this backing to close makes sense.
fn backing_may_close(backing: &Arc<dyn Backing>) -> bool {
    backing.facts().kind != super::BackingKind::Simulated || backing.in_flight() == 0
}

impl Drop for Mirror {
    fn drop(&mut self) {
        for row in &self.table.get_mut().rows {
            row.all_backings().for_each(|backing| backing.close());
        }
    }
}

#[cfg(test)]
mod tests;
