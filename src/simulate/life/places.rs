//! Which disk stands in which slot of a life, and who may be trusted.
//!
//! *Guarantees*: after each mount and each piece of work the mirror's members are those that must be in sync: everyone
//! but the suspect. *Assumes*: nothing. *Fails when*: a good replica is out, or one that was left behind is not.
//! *Order*: none. *Not here*: what happens to disks (`trouble`).

use super::Life;
use crate::disk::ReplicaName;
use crate::disk::backing::Backing;
use crate::disk::sim::SimDisk;
use crate::simulate::DEADLINE;
use crate::simulate::driver::Driver;
use crate::store::recover::{OpenStore, Present, Report, examine, open};
use crate::store::{Store, StoreError};
use crate::volume::replace::Place;
use std::sync::Arc;

fn path(disk: usize) -> String {
    format!("/disk/{disk}")
}

impl Life {
    /// The disk in a slot, past the volume.
    pub(super) fn disk(&self, slot: usize) -> Arc<SimDisk> {
        self.bench.power.disk_at(self.slots[slot])
    }

    /// As the daemon opens it, or as one who only looks.
    fn backing(&self, disk: usize, write: bool) -> (String, Arc<dyn Backing>) {
        let power = &self.bench.power;
        (path(disk), if write { power.disk_at(disk) } else { power.disk_to_read(disk) } as Arc<dyn Backing>)
    }

    pub(super) fn new_name(&self, store: &Store, disk: usize) -> ReplicaName {
        ReplicaName { uuid: store.world().uuid(), path: path(disk) }
    }

    /// What can be examined of these disks, and what cannot.
    pub(super) fn present(&self, disks: &[usize], write: bool) -> (Vec<Present>, Vec<(String, String)>) {
        let (mut present, mut absent) = (Vec::new(), Vec::new());
        for disk in disks {
            let (path, backing) = self.backing(*disk, write);
            match examine(&*backing, DEADLINE) {
                Ok(found) => present.push(Present { path, backing, found }),
                Err(why) => absent.push((path, why)),
            }
        }
        (present, absent)
    }

    /// Open the volume on these disks.
    pub(super) fn open_disks(&self, disks: &[usize], degraded: bool) -> Result<(Store, Report), StoreError> {
        let store = self.bench.setup.store.clone();
        let options = OpenStore { degraded, deadline: DEADLINE, store, on_shrink: None, hold: false };
        open(self.present(disks, true).0, options, self.bench.clock())
    }

    /// Disks of all slots, and one more that a replace was at when the power failed.
    pub(super) fn all_disks(&self) -> Vec<usize> {
        self.slots.iter().copied().chain(self.half_way).collect()
    }

    /// The slots as the mirror has them; everyone but the suspect must be in sync.
    pub(super) fn note_members(&mut self, store: &Store, report: &Report, alone: Option<usize>) -> Result<(), String> {
        let members = store.mirror().members();
        for health in store.mirror().health() {
            if let Some(disk) = health.name.path.strip_prefix("/disk/").and_then(|number| number.parse().ok()) {
                self.slots[health.slot] = disk;
            }
        }
        self.half_way = None;
        self.good_ones_are_in(store)?;
        if let (Some(disk), None) = (self.behind.take(), alone)
            && (0..self.slots.len()).any(|slot| self.slots[slot] == disk && members.contains(slot))
        {
            return Err(format!("disk {disk} was left behind and is called in sync: {:?}", report.behind));
        }
        if let Some(alone) = alone {
            self.behind = Some(self.slots[1 - alone]);
        }
        Ok(())
    }

    /// Everyone but the suspect is in sync.
    pub(super) fn good_ones_are_in(&self, store: &Store) -> Result<(), String> {
        let members = store.mirror().members();
        for slot in (0..self.slots.len()).filter(|slot| self.suspect != Some(*slot)) {
            if !members.contains(slot) && !self.bench.power.is_cut() {
                return Err(format!("slot {slot} is good and is out: {}", store.mirror().health()[slot].cause));
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

    /// Nobody may take these for the volume as it is now.
    pub(super) fn must_be_refused(&self, disks: &[usize], who: &str) -> Result<(), String> {
        match self.open_disks(disks, false) {
            Err(StoreError::Refused(_)) => Ok(()),
            Err(error) => Err(format!("{who}: {error}")),
            Ok(_) => Err(format!("{who} was opened")),
        }
    }

    /// A disk that was replaced, with the twin of its successor.
    pub(super) fn old_disk_is_refused(&self) -> Result<(), String> {
        let Some((slot, disk)) = self.former else { return Ok(()) };
        let twin = self.slots[1 - slot];
        self.must_be_refused(&[disk, twin], "a disk that was replaced, beside the twin of its successor")?;
        self.must_be_refused(&[disk], "a disk that was replaced")
    }
}
