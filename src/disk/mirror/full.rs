//! Replicas that have no room for new data.
//!
//! *Guarantees*: one that is full is told once, and again when it has room. It stays in sync: what it holds is whole (invariant 9).
//! *Assumes*: room is asked for before it is needed ([`Mirror::allocate`]), so that nothing is half written for want of it.
//! *Fails when*: never. *Order*: told under the table's lock.
//! *Not here*: who goes out for it (`write`); when it returns (`volume::away`).

use super::slot::Table;
use super::{Happened, Mirror, What};
use crate::sync::atomic::Ordering;

impl Mirror {
    pub(super) fn is_full(&self, slot: usize) -> bool {
        self.full.load(Ordering::Relaxed) >> slot & 1 == 1
    }

    /// `slot` was asked for room and has none.
    pub(super) fn has_no_room(&self, slot: usize, why: &str) {
        let table = self.table.read();
        let Some(row) = table.rows.get(slot) else { return };
        if row.state.takes_writes() && self.full.fetch_or(1 << slot, Ordering::Relaxed) >> slot & 1 == 0 {
            self.events.tell(Happened::new(What::Full, why).of(slot, row));
            log::warn!("replica {slot} ({}) is full: {why}", row.name.path);
        }
    }

    /// `slot` has room, or is not asked any more.
    pub(super) fn has_room(&self, table: &Table, slot: usize, why: &str) {
        if self.is_full(slot)
            && self.full.fetch_and(!(1 << slot), Ordering::Relaxed) >> slot & 1 == 1
            && let Some(row) = table.rows.get(slot)
        {
            self.events.tell(Happened::new(What::Room, why).of(slot, row));
        }
    }
}
