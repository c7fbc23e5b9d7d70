//! At the end of some lives a disk is warm for a while.
//!
//! *Guarantees*: after each follow it holds, alone, exactly what the volume shows; also after a power cut in one before. A mount after a cut
//! loses nothing that was acknowledged. *Assumes*: both disks are in sync before. *Fails when*: a follow is refused
//! without a reason, or leaves something out. *Order*: warm → operations and follows → hot. *Not here*: returning.

use super::{Ended, Life};
use crate::disk::Backing;
use crate::format::Role;
use crate::simulate::driver::Driver;
use crate::simulate::{disk_path, judge};
use crate::store::StoreError;
use crate::store::StoreOptions;
use crate::store::recover::{OpenStore, Present, examine, open_or_follower};
use crate::volume::follow::follow;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

impl Life {
    /// Whether a disk is to be warm for a while, and which.
    pub(super) fn wants_to_follow(&mut self) -> Option<usize> {
        let random = self.returns.as_mut()?;
        (random.below(4) == 0).then(|| random.below(2) as usize)
    }

    /// The disk in `slot` is warm for a while.
    pub(super) fn follow_for_a_while(&mut self, mut driver: Driver, slot: usize) -> Result<Driver, String> {
        self.tell(format!("slot {slot} is warm"));
        driver.unpin()?;
        let made = driver.store.set_role(slot, Role::Warm);
        if !made.map_err(|error| format!("making slot {slot} warm: {error}"))? {
            return Err(format!("slot {slot} was not made warm"));
        }
        driver.store.mirror().release(slot);
        self.suspect = Some(slot);
        for _ in 0..3 {
            self.operate(&mut driver, 6)?;
            driver = self.follow_once(driver, slot)?;
            if self.strange || driver.store.durable_root().members[slot].role != Role::Warm {
                return Ok(driver);
            }
        }
        let made = driver.store.set_role(slot, Role::Hot);
        made.map_err(|error| format!("making slot {slot} hot: {error}"))?;
        // A replace that is cut leaves something in its place that is no replica.
        self.unreliable = true;
        Ok(driver)
    }

    /// Nobody is out or suspected.
    pub(super) fn make_whole(&mut self, mut driver: Driver) -> Result<Driver, String> {
        loop {
            self.bench.power.cut_at(None);
            self.relieve();
            self.release_hung();
            let whole = driver.store.mirror().members().count() == self.slots.len();
            if whole && self.suspect.is_none() && !self.split {
                return Ok(driver);
            }
            if whole {
                self.scrub(&mut driver)?
            } else {
                self.replace(&mut driver)?
            }
            driver = self.after_work(driver)?;
        }
    }

    fn follow_once(&mut self, mut driver: Driver, slot: usize) -> Result<Driver, String> {
        let disk = self.slots[slot];
        driver.settle()?;
        if self.random.below(3) == 0 {
            self.cut_soon(80);
        }
        self.bench.tally.follows += 1;
        let backing = self.bench.power.disk_at(disk);
        let outcome = match examine(&*backing, SECOND) {
            Ok(found) => follow(&driver.store, slot, (&disk_path(disk), &*backing, &found), None, &mut |_| true),
            Err(why) => Err(StoreError::Refused(why)),
        };
        backing.close();
        if self.bench.power.is_cut() {
            self.tell(format!("cut while disk {disk} follows"));
            return self.remount(driver, Ended::Cut);
        }
        self.bench.power.cut_at(None);
        match outcome {
            Ok((report, _)) => {
                self.tell(report.summary);
                // What was damaged on it before is believed.
                if !self.hurt {
                    self.holds_the_same(&driver, disk)?;
                }
            }
            Err(StoreError::Refused(text)) if self.strange || self.unreliable => {
                self.tell(format!("does not follow: {text}"))
            }
            Err(error) => return Err(format!("disk {disk} does not follow: {error}")),
        }
        Ok(driver)
    }

    /// What this disk shows alone, to somebody who has lost all others, is what the volume shows.
    fn holds_the_same(&mut self, driver: &Driver, disk: usize) -> Result<(), String> {
        let fail = |what: String| format!("disk {disk} alone, after it has followed: {what}");
        let backing = self.bench.power.disk_to_read(disk);
        let found = examine(&*backing, SECOND).map_err(fail)?;
        let present = vec![Present { path: disk_path(disk), backing, found }];
        let store = StoreOptions { read_only: true, ..self.bench.setup.store.clone() };
        let open = OpenStore { degraded: true, deadline: SECOND, store, on_shrink: None, hold: false };
        let opened = open_or_follower(present, open, self.bench.clock.clone(), true);
        let (store, _) = opened.map_err(|error| fail(error.to_string()))?;
        let alone = Driver::new(store, &self.bench.power).map_err(fail)?;
        // What has no name any more, and is open, goes with who has it open.
        let mut should = driver.now().clone();
        should.nodes.retain(|_, node| node.nlink > 0);
        judge::same(&should, alone.now()).map_err(fail)
    }
}
