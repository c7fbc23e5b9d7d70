//! What happened to replicas: a bounded queue between the mirror and whoever writes it down.
//!
//! *Guarantees*: telling never waits and never calls out, so that it may be done under any lock. At most
//! [`WAITING_MAX`] wait; the oldest is dropped for a newer one, and counted. Each lost block is told once, [`LOST_MAX`]
//! blocks at most, and the first omission of each replica only.
//! *Assumes*: one listener. *Fails when*: never. *Order*: changes of state are told under the table's lock, so in the
//! order in which they happened; the queue's own lock is a leaf.
//! *Not here*: what becomes of it (`volume::events`).

use super::slot::{Row, wall_ns};
use super::{Mirror, ReplicaState};
use crate::disk::ReplicaName;
use crate::format::{Addr, Uuid};
use crate::sync::{Condvar, Mutex};
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

/// Most that waits for the listener.
pub const WAITING_MAX: usize = 256;
/// Lost blocks that are told.
pub const LOST_MAX: usize = 64;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A replica has another state.
    State,
    /// A replica in sync is slow from now on.
    Slow,
    /// It is so no longer.
    Quick,
    /// A replica in sync has no room for new data.
    Full,
    /// It has some again.
    Room,
    /// The first omission on a replica.
    Omission,
    /// A block that no replica proves.
    Lost,
    /// No replica takes writes any more.
    Failed,
}

/// Something that happened.
#[derive(Debug, Clone)]
pub struct Happened {
    /// What.
    pub what: What,
    /// When, ns since 1970.
    pub time_ns: u64,
    /// The replica and its slot, if it is about one.
    pub replica: Option<(usize, ReplicaName)>,
    /// State before; `None`: it was not there.
    pub from: Option<ReplicaState>,
    /// State after; `None`: it is not there any more.
    pub to: Option<ReplicaState>,
    /// Why.
    pub cause: String,
    /// The block, or 0.
    pub addr: Addr,
    /// Inode of the file that was read meanwhile, or 0.
    pub owner: u64,
}

impl Happened {
    pub(super) fn new(what: What, cause: &str) -> Happened {
        let (time_ns, cause) = (wall_ns(), cause.to_owned());
        Happened { what, time_ns, replica: None, from: None, to: None, cause, addr: 0, owner: 0 }
    }
    pub(super) fn of(self, slot: usize, row: &Row) -> Happened {
        Happened { replica: Some((slot, row.name.clone())), ..self }
    }
    pub(super) fn moved(slot: usize, row: &Row, from: Option<ReplicaState>, cause: &str) -> Happened {
        Happened { from, to: Some(row.state), ..Happened::new(What::State, cause).of(slot, row) }
    }
    /// The one in `row` leaves the slot for good.
    pub(super) fn left(slot: usize, row: &Row, cause: &str) -> Happened {
        Happened { from: Some(row.state), ..Happened::new(What::State, cause).of(slot, row) }
    }
}

#[derive(Default)]
struct Waiting {
    queue: VecDeque<Happened>,
    dropped: u64,
    is_woken: bool,
    lost: BTreeSet<Addr>,
    omitted: BTreeSet<Uuid>,
}

/// The queue.
#[derive(Default)]
pub(super) struct Events {
    waiting: Mutex<Waiting>,
    more: Condvar,
}

impl Events {
    pub fn tell(&self, happened: Happened) {
        let mut waiting = self.waiting.lock();
        let is_new = match (happened.what, &happened.replica) {
            (What::Lost, _) => waiting.lost.len() < LOST_MAX && waiting.lost.insert(happened.addr),
            (What::Omission, Some((_, name))) => waiting.omitted.insert(name.uuid),
            _ => true,
        };
        if !is_new {
            return;
        }
        if waiting.queue.len() == WAITING_MAX {
            waiting.queue.pop_front();
            waiting.dropped += 1;
        }
        waiting.queue.push_back(happened);
        drop(waiting);
        self.more.notify_all();
    }
}

impl Mirror {
    /// What has happened since the last call, oldest first, and how much was dropped before it. Waits for something, for
    /// [`Mirror::wake_listener`], or for `patience`.
    pub fn listen(&self, patience: Duration) -> (Vec<Happened>, u64) {
        let mut waiting = self.events.waiting.lock();
        if waiting.queue.is_empty() && !waiting.is_woken {
            self.events.more.wait_for(&mut waiting, patience);
        }
        waiting.is_woken = false;
        (waiting.queue.drain(..).collect(), std::mem::take(&mut waiting.dropped))
    }

    /// Have [`Mirror::listen`] return, now or when it is called.
    pub fn wake_listener(&self) {
        self.events.waiting.lock().is_woken = true;
        self.events.more.notify_all();
    }

    /// Tell something of the replica in `slot`, as it is now.
    pub(super) fn tell_of(&self, slot: usize, happened: Happened) {
        let table = self.table.read();
        if let Some(row) = table.rows.get(slot) {
            self.events.tell(happened.of(slot, row));
        }
    }
}
