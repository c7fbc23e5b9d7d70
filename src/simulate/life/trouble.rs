//! What goes wrong in a life, inside the single-fault assumption.
//!
//! *Guarantees*: damage strikes the suspect's disk only; or both, each on its own half of the addresses (`split`), and
//! then never anything that puts a replica out. One copy of a label always stays: one fault does not take both.
//! *Assumes*: [`Life::trust`] is called only when both disks were proven whole. *Fails when*: never.
//! *Order*: none. *Not here*: what must hold nevertheless (`life`).

use super::Life;
use crate::disk::sim::{Image, Rates, SimDisk};
use crate::format::geometry::SPACE_AT;
use crate::format::{Addr, Geometry};
use crate::simulate::driver::Driver;
use crate::simulate::fault::Kind;
use crate::simulate::foreign;
use crate::store::Store;
use std::sync::Arc;

/// Highest rate of each fault: a tenth of all requests.
const RATE_MAX: u64 = 100_000;

impl Life {
    /// At the beginning of a chapter.
    pub(super) fn maybe_trouble(&mut self) {
        if self.random.below(5) < 2 {
            return;
        }
        if self.split {
            self.damage_both();
            return;
        }
        if self.suspect.is_none() {
            if self.random.below(4) == 0 {
                self.tell("damage on both disks, never on the same block");
                self.split = true;
                self.damage_both();
                return;
            }
            self.suspect = Some(self.random.below(self.slots.len() as u64) as usize);
        }
        let slot = self.suspect.expect("just chosen");
        match self.random.below(8) {
            0..2 => self.damage(slot),
            2..5 => self.set_rates(slot),
            _ => self.strike(slot),
        }
    }

    /// Between operations.
    pub(super) fn trouble_goes_on(&mut self) {
        if self.bench.power.is_cut() || self.random.below(4) > 0 {
            return;
        }
        match self.suspect {
            _ if self.split => self.damage_both(),
            Some(slot) if self.random.below(2) == 0 => self.damage(slot),
            Some(slot) => {
                let count = self.disk(slot).release_hung();
                if count > 0 {
                    self.bench.tally.late += count as u64;
                    self.tell(format!("{count} late requests land on slot {slot}"));
                }
            }
            None => {}
        }
    }

    /// Faults by chance, of several kinds at once.
    fn set_rates(&mut self, slot: usize) {
        let mut rate = |likely: u64| {
            let drawn = self.random.below(RATE_MAX + 1) as u32;
            // Seldom ones show what often ones hide: the replica is out at once then.
            let seldom = [1, 4, 16, 64][self.random.below(4) as usize];
            if self.random.below(likely) == 0 { drawn / seldom } else { 0 }
        };
        let rates = Rates {
            read_error: rate(2),
            write_error: rate(6),
            flush_error: rate(8),
            lost_write: rate(3),
            misdirected_write: rate(3),
            misdirected_read: rate(2),
            torn_write: rate(3),
            lying_flush: rate(4),
            bit_rot: rate(2),
            hang: rate(6) / 4,
        };
        self.tell(format!("slot {slot}: {rates:?}"));
        self.unreliable = true;
        self.hurt = true;
        self.disk(slot).set_rates(rates);
    }

    /// One thing that goes wrong with a request.
    fn strike(&mut self, slot: usize) {
        let kind = *self.random.pick(&Kind::ALL);
        let skip = self.random.below(24) as u32;
        // What does not grow has its space from the beginning.
        if kind.is_damage() || kind == Kind::Mixed || kind == Kind::Full && !self.bench.setup.grows {
            return self.damage(slot);
        }
        self.tell(format!("slot {slot}: {kind:?} after {skip} requests"));
        self.unreliable = true;
        self.hurt |= !kind.puts_out();
        self.disk(slot).faults(|faults| kind.arm(faults, skip));
    }

    /// Damage some blocks of the suspect.
    fn damage(&mut self, slot: usize) {
        self.hurt = true;
        let disk = self.disk(slot);
        let all = disk.addresses();
        if all.is_empty() {
            return;
        }
        let count = self.random.range(1, 9);
        self.tell(format!("{count} blocks of slot {slot} are damaged"));
        for _ in 0..count {
            let addr = *self.random.pick(&all);
            if addr != Geometry::label_copies()[1] {
                self.hurt(&disk, addr);
            }
        }
    }

    /// Damage blocks of both disks, each on its own half.
    fn damage_both(&mut self) {
        let log = self.log_of_split();
        for slot in 0..2 {
            let disk = self.disk(slot);
            let all = disk.addresses();
            for _ in 0..self.random.range(1, 12) {
                let addr = *self.random.pick(&all);
                let mine = match addr {
                    // A record is taken whole from one replica.
                    _ if log.contains(&addr) => self.slots[0].is_multiple_of(2) == (slot == 0),
                    // Labels and roots have no pointer that tells two halves apart.
                    0..SPACE_AT => false,
                    _ => (addr.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) % 2 == slot as u64,
                };
                if mine {
                    self.hurt(&disk, addr);
                }
            }
        }
    }

    fn log_of_split(&self) -> std::ops::Range<Addr> {
        let geometry = self.bench.setup.geometry();
        geometry.log_at..geometry.log_at + u64::from(geometry.log_blocks)
    }

    fn hurt(&mut self, disk: &Arc<SimDisk>, addr: Addr) {
        self.bench.tally.faults += 1;
        let kind = *self.random.pick(&[Kind::Rot, Kind::Zeros, Kind::Junk, Kind::Stale, Kind::Unreadable]);
        kind.hurt(disk, addr, &mut self.random);
    }

    /// No new faults; what is damaged stays so. A disk that was dead answers again, with what it has.
    pub(super) fn relieve(&mut self) {
        (0..self.slots.len()).for_each(|slot| self.disk(slot).relieve(true));
    }

    /// What hangs lands now, late.
    pub(super) fn release_hung(&mut self) {
        for slot in 0..self.slots.len() {
            let late = self.disk(slot).release_hung();
            self.bench.tally.late += late as u64;
        }
    }

    /// Requests of the old replica in this slot that have not come back: it is not taken back before. Then they land.
    pub(super) fn late(&mut self, driver: &mut Driver, slot: usize) -> Result<(), String> {
        self.tell(format!("slot {slot} cannot be replaced in place while requests to it hang"));
        let target = self.slots[slot];
        driver.store.mirror().release(slot);
        let name = self.new_name(&driver.store, target);
        let place = crate::volume::replace::Place::Free(slot);
        let handle = self.bench.power.disk_at(target);
        let outcome = crate::volume::replace::resync(&driver.store, place, name, handle, &mut |_| true);
        self.release_hung();
        match outcome {
            Err(crate::store::StoreError::Refused(_)) => Ok(()),
            Err(error) => Err(format!("replacing what hangs: {error}")),
            Ok(_) => {
                let wrong = crate::simulate::clean(&driver.store).err().unwrap_or_default();
                Err(format!("a replica was taken back while writes to it were still to land {wrong}"))
            }
        }
    }

    /// Both disks were proven whole.
    pub(super) fn trust(&mut self, store: &Store) {
        self.healed = store.mirror().health().iter().map(|health| health.counters.healed).collect();
        self.suspect = None;
        self.hurt = false;
        self.out_since = None;
        self.strange = false;
        self.split = false;
        if std::mem::take(&mut self.unreliable) {
            // A cache that lied about a flush has drained meanwhile.
            (0..self.slots.len()).for_each(|slot| self.disk(slot).drain());
        }
    }

    /// A slot comes back with what its disk held some time ago, or with what was never its own.
    pub(super) fn maybe_bring_back_old(&mut self) {
        let slot = match self.suspect {
            Some(suspect) => suspect,
            None => self.random.below(self.slots.len() as u64) as usize,
        };
        let Some((disk, image, hurt)) = self.snapshots[slot].clone() else { return };
        if self.split || disk != self.slots[slot] || self.random.below(5) > 0 {
            return;
        }
        // Who is on the way to a place is then told from who is not by what they hold.
        let drawn = if self.half_way.is_some() { 5 } else { self.random.below(6) };
        let (what, image) = match drawn {
            0 => ("nothing at all", Image::default()),
            1 => ("another volume", foreign(&self.bench.setup)[slot].0.clone()),
            2 => ("a copy of its twin", self.disk(1 - slot).snapshot()),
            _ => ("old content", image),
        };
        self.tell(format!("slot {slot} comes back with {what}"));
        self.bench.tally.stale += 1;
        self.disk(slot).restore(image);
        self.suspect = Some(slot);
        self.unreliable = true;
        self.strange = what != "old content";
        // A block that could not be read cannot be now either.
        self.hurt |= hurt;
    }
}
