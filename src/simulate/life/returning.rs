//! A disk that was away is brought back in a life.
//!
//! *Guarantees*: where it only went away, or came back with what it held some time ago, every block is right afterwards, and
//! only what was born since was sent. *Assumes*: the slot is out, nothing hangs in it, and it is the suspect's.
//! *Fails when*: the return is refused without a reason, or leaves something out. *Order*: none.
//! *Not here*: replacing (`life`).

use super::Life;
use crate::simulate::driver::Driver;
use crate::simulate::{clean, disk_path};
use crate::store::StoreError;
use crate::store::recover::examine;
use crate::volume::replace::back::{ReturnReport, bring_back};
use std::time::Duration;

impl Life {
    /// Whether what is out in its own place is to be brought back this time.
    pub(super) fn wants_return(&mut self) -> bool {
        !self.strange && self.returns.as_mut().is_some_and(|random| random.below(3) > 0)
    }

    /// Bring back what is out.
    pub(super) fn bring_back(&mut self, driver: &mut Driver, slot: usize) -> Result<(), String> {
        let disk = self.slots[slot];
        self.tell(format!("disk {disk} returns to slot {slot}, hurt: {}", self.hurt));
        self.bench.tally.returns += 1;
        if self.random.below(3) == 0 {
            self.cut_soon(150);
        }
        let outcome = self.return_of(driver, slot, disk)?;
        if self.bench.power.is_cut() {
            self.joining = Some(disk);
            return Ok(());
        }
        self.bench.power.cut_at(None);
        let report = match outcome {
            Ok(report) => report,
            Err(StoreError::Refused(text)) if self.unreliable => {
                self.tell(format!("return refused: {text}"));
                self.relieve();
                self.release_hung();
                return self.good_ones_are_in(&driver.store);
            }
            Err(error) => return Err(format!("return: {error}")),
        };
        self.tell(report.summary.clone());
        if report.lost > 0 {
            return Err(format!("return: {}: {:?}", report.summary, report.lost_paths));
        }
        self.behind = None;
        self.relieve();
        if self.hurt {
            self.out_since = None;
            return self.good_ones_are_in(&driver.store);
        }
        clean(&driver.store).map_err(|text| format!("after a return ({report:?}): {text}"))?;
        self.trust(&driver.store);
        Ok(())
    }

    /// The return itself, with some operations beside it.
    fn return_of(
        &mut self,
        driver: &mut Driver,
        slot: usize,
        disk: usize,
    ) -> Result<Result<ReturnReport, StoreError>, String> {
        driver.store.mirror().release(slot);
        let backing = self.bench.power.disk_at(disk);
        let found = match examine(&*backing, Duration::from_secs(1)) {
            Ok(found) => found,
            Err(why) => return Ok(Err(StoreError::Refused(format!("{}: {why}", disk_path(disk))))),
        };
        self.beside(driver, |store, progress| bring_back(store, slot, disk_path(disk), backing, &found, progress))
    }
}
