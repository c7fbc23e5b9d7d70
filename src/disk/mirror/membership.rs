//! Who has a slot: replicas that are attached, that take the place of another one, and that leave for ever.
//!
//! *Guarantees*: the slot of a replica never changes while it is a member; one that is left stays free, in its place, until
//! another replica settles there. *Assumes*: a root says so before anything is acknowledged (`store::history`); at most one
//! replica is attached at a time. *Fails when*: the last replica in sync is to leave: it stays.
//! *Order*: `attach` → `take_over`, or `settle` → `join`; or `detach`. Each waits for writes that began before it.
//! *Not here*: replicas that go out and come back (`mirror`).

use super::slot::{Row, wall_ns};
use super::{Happened, Mirror, ReplicaState};
use crate::disk::ReplicaName;
use crate::disk::backing::Backing;
use crate::format::Uuid;
use std::sync::Arc;

/// What became of a replica that was to leave.
pub enum Left {
    /// It has left; this is its backing, which is to be closed.
    Gone(Option<Arc<dyn Backing>>),
    /// It is the last one in sync, and stays.
    Last,
}

impl Mirror {
    /// A further slot with this backing, which takes all new writes and serves no reads. No root names it. Waits for
    /// writes that began without it.
    ///
    /// # Panics
    /// If there is such a slot already: our bug.
    pub fn attach(&self, name: ReplicaName, backing: Arc<dyn Backing>) -> usize {
        let _alone = self.gate.write();
        let mut table = self.table.write();
        let slot = table.rows.len();
        assert!(slot < self.counted.len(), "one replica is attached at a time");
        self.counted[slot].reset();
        table.generation += 1;
        log::info!("replica {slot} ({}) is attached and returning", name.path);
        let row = Row::new(name, Some(backing), ReplicaState::Returning, wall_ns(), "");
        self.events.tell(Happened::moved(slot, &row, None, "attached, it is brought up to date"));
        table.rows.push(row);
        slot
    }

    /// The attached replica has been proven to hold everything: it takes the place of `replica`, in sync, and its own
    /// slot is gone. Returns the backing that was there, which takes no more requests of ours. `None`: the attached
    /// replica went out meanwhile; nothing has changed.
    ///
    /// # Panics
    /// If `attached` is not the last slot: our bug.
    pub fn take_over(&self, attached: usize, replica: usize) -> Option<Option<Arc<dyn Backing>>> {
        let _alone = self.gate.write();
        let mut table = self.table.write();
        assert!(attached + 1 == table.rows.len() && replica < attached, "the attached slot is the last one");
        if table.rows[attached].state != ReplicaState::Returning {
            return None;
        }
        let mut new = table.rows.pop().expect("just looked at");
        new.enter(ReplicaState::InSync, "");
        table.generation += 1;
        log::info!("replica {replica}: {} takes the place of {}", new.name.path, table.rows[replica].name.path);
        self.counted[replica].reset();
        self.forget_pace(&table, replica, "it is replaced");
        let place = new.name.path.clone();
        let old = std::mem::replace(&mut table.rows[replica], new);
        let row = &mut table.rows[replica];
        self.events.tell(Happened::left(replica, &old, &format!("replaced by {place}")));
        let was = Some(ReplicaState::Returning);
        self.events.tell(Happened::moved(replica, row, was, "proven to hold everything"));
        row.released = old.released;
        Some(old.backing)
    }

    /// Give up an attached replica. False: it has taken its place already.
    pub fn detach(&self, attached: usize) -> bool {
        let _alone = self.gate.write();
        let mut table = self.table.write();
        if attached + 1 != table.rows.len() {
            return false;
        }
        table.generation += 1;
        if let Some(row) = table.rows.pop() {
            self.events.tell(Happened::left(attached, &row, "given up"));
            row.all_backings().for_each(|backing| backing.close());
        }
        true
    }

    /// The attached replica is to become a member: it moves to the first slot that was left, if there is one, and keeps its own
    /// otherwise. Gives that slot and who it is. `None`: it went out meanwhile; nothing has changed.
    ///
    /// # Panics
    /// If `attached` is not the last slot: our bug.
    pub fn settle(&self, attached: usize) -> Option<(usize, Uuid)> {
        let _alone = self.gate.write();
        let mut table = self.table.write();
        assert!(attached + 1 == table.rows.len(), "the attached slot is the last one");
        let uuid = table.rows[attached].name.uuid;
        if table.rows[attached].state != ReplicaState::Returning {
            return None;
        }
        let Some(free) = table.rows.iter().position(|row| row.state == ReplicaState::Detached) else {
            return Some((attached, uuid));
        };
        log::info!("replica {attached} is replica {free} from now on");
        table.generation += 1;
        let row = table.rows.pop().expect("just looked at");
        self.counted[free].reset();
        let old = std::mem::replace(&mut table.rows[free], row);
        table.rows[free].released.extend(old.released);
        Some((free, uuid))
    }

    /// The replica in this slot is no member any more: nothing is asked of it from now on.
    pub fn leave(&self, replica: usize, cause: &str) -> Left {
        let _alone = self.gate.write();
        let mut table = self.table.write();
        if table.in_sync() == 1 << replica {
            return Left::Last;
        }
        let Some(row) = table.rows.get_mut(replica).filter(|row| row.state != ReplicaState::Detached) else {
            return Left::Gone(None);
        };
        self.events.tell(Happened::left(replica, row, cause));
        log::info!("replica {replica} ({}) is a member no more: {cause}", row.name.path);
        let backing = row.vacate(cause);
        table.generation += 1;
        Left::Gone(backing)
    }

    /// This slot is nobody's, as the root says that was found.
    pub fn leave_free(&self, replica: usize) {
        self.table.write().rows[replica].vacate("");
    }
}
