//! Which disk stands in which slot of a life, and who may be trusted.
//!
//! *Guarantees*: after each mount and each piece of work the mirror's members are those that must be in sync: everyone
//! but the suspect. *Assumes*: nothing. *Fails when*: a good replica is out, or one that was left behind is not.
//! *Order*: none. *Not here*: what happens to disks (`trouble`).

use super::Life;
use crate::disk::ReplicaName;
use crate::disk::sim::SimDisk;
use crate::format::MemberState;
use crate::simulate::driver::Driver;
use crate::simulate::{Ask, Seen, disk_of, disk_path};
use crate::store::recover::Report;
use crate::store::{Store, StoreError};
use crate::volume::replace::Place;
use std::sync::Arc;

impl Life {
    /// The disk in a slot, past the volume.
    pub(super) fn disk(&self, slot: usize) -> Arc<SimDisk> {
        self.bench.power.disk_at(self.slots[slot])
    }

    pub(super) fn new_name(&self, store: &Store, disk: usize) -> ReplicaName {
        ReplicaName { uuid: store.world().uuid(), path: disk_path(disk) }
    }

    /// Open the volume on these disks, given in any order.
    pub(super) fn open_disks(&mut self, disks: &[usize], ask: Ask) -> (Seen, Result<(Store, Report), StoreError>) {
        let mut disks = disks.to_vec();
        if self.random.below(2) == 0 {
            disks.reverse();
        }
        let (seen, opened) = self.bench.open_disks(&disks, ask);
        if let Ok((store, _)) = &opened {
            self.acknowledged = self.acknowledged.max(store.durable_root().version);
        }
        (seen, opened)
    }

    /// Open the volume although replicas are missing; nothing newer was seen elsewhere.
    pub(super) fn open_degraded(&mut self, disks: &[usize]) -> Result<(Store, Report), StoreError> {
        self.open_disks(disks, Ask { degraded: true, accept_stale: false }).1
    }

    /// Disks of all slots, and one more that a replace was at when the power failed.
    pub(super) fn all_disks(&self) -> Vec<usize> {
        self.slots.iter().copied().chain(self.half_way).collect()
    }

    /// The slots as the mirror has them; everyone but the suspect must be in sync.
    pub(super) fn note_members(&mut self, store: &Store, report: &Report) -> Result<(), String> {
        let members = store.mirror().members();
        for health in store.mirror().health() {
            if let Some(disk) = disk_of(&health.name.path) {
                self.slots[health.slot] = disk;
            }
        }
        self.half_way = None;
        self.good_ones_are_in(store)?;
        if let Some(disk) = self.behind.take()
            && (0..self.slots.len()).any(|slot| self.slots[slot] == disk && members.contains(slot))
        {
            return Err(format!("disk {disk} was left behind and is called in sync: {:?}", report.behind));
        }
        // It goes on without the suspect, and a root says so. (A replica that lost just the root of recovery has no root
        // against it before something is acknowledged.)
        let root = store.durable_root();
        let named_out = |slot: &usize| root.members[*slot].state != MemberState::InSync;
        self.behind = self.suspect.filter(named_out).map(|slot| self.slots[slot]);
        Ok(())
    }

    /// Everyone but the suspect is in sync.
    pub(super) fn good_ones_are_in(&self, store: &Store) -> Result<(), String> {
        let members = store.mirror().members();
        for slot in (0..self.slots.len()).filter(|slot| self.suspect != Some(*slot)) {
            if !members.contains(slot) && !self.bench.power.is_cut() {
                return Err(format!("slot {slot} is good and is out: {}", store.mirror().health()[slot].cause));
            }
            let healed = store.mirror().health()[slot].counters.healed;
            if healed > self.healed[slot] && !self.split {
                return Err(format!(
                    "slot {slot} is good, and {} blocks on it had to be healed",
                    healed - self.healed[slot]
                ));
            }
        }
        Ok(())
    }

    /// Whether the suspect went out in this mount, and something was acknowledged without it.
    pub(super) fn note_out(&mut self, driver: &Driver) {
        let Some(slot) = self.suspect else {
            self.out_since = None;
            return;
        };
        if driver.store.mirror().members().contains(slot) {
            self.out_since = None;
        } else if self.out_since.is_none() {
            self.out_since = Some(driver.floor);
        }
        if self.out_since.is_some_and(|floor| driver.floor > floor) {
            self.behind = Some(self.slots[slot]);
            self.tell(format!("acknowledged without slot {slot}"));
        }
    }

    /// Whether requests to a slot have not come back.
    pub(super) fn hangs(&self, store: &Store, slot: usize) -> bool {
        store.mirror().health()[slot].in_flight > 0
    }

    /// Where a replace goes to.
    pub(super) fn place_for(&mut self, slot: usize, is_out: bool, fresh: bool) -> (Place, usize) {
        let target = if fresh { self.bench.power.add(self.bench.setup.blocks) } else { self.slots[slot] };
        (if is_out { Place::Free(slot) } else { Place::Taken(slot) }, target)
    }

    /// Nobody may take these for the volume as it is now, whatever is said but that it may be old.
    pub(super) fn must_be_refused(&mut self, disks: &[usize], who: &str) -> Result<(), String> {
        match self.open_degraded(disks) {
            Err(StoreError::Refused(_)) => Ok(()),
            Err(error) => Err(format!("{who}: {error}")),
            Ok((_, report)) => Err(format!("{who} was opened: {report:?}")),
        }
    }

    /// A disk that was replaced may be given beside those of the volume: it is known as such, and serves nothing.
    pub(super) fn former_is_known(&self, seen: &Seen, report: &Report) -> Result<(), String> {
        let Some((_, disk)) = self.former.filter(|(_, disk)| seen.head(*disk).is_some()) else { return Ok(()) };
        if report.behind.iter().any(|(path, _)| *path == disk_path(disk)) {
            return Ok(());
        }
        Err(format!("disk {disk} was replaced and is not called so: {:?}", report.behind))
    }
}
