//! Two histories at the end of a life: a person has one of them win.
//!
//! *Guarantees*: afterwards both disks are in sync without a word, nothing is damaged, and each holds everything; also if the power
//! was cut in the middle, and it was said again. *Assumes*: both histories show the same operations; nothing is hurt.
//! *Fails when*: the decision is refused, leaves something out, or the two pass for one before. *Order*: none.
//! *Not here*: how it came to two histories (`life`).

use super::{Ask, Known, Life, judge};
use crate::disk::sim::CrashPlan;
use crate::simulate::driver::Driver;
use crate::simulate::{clean, disk_path};
use crate::volume::resolve::{Host, Resolve};
use std::path::Path;

impl Life {
    /// Have one of them win; `known` is what both hold.
    pub(super) fn decide(&mut self, known: &Known) -> Result<(), String> {
        let both = self.slots.clone();
        let winner = self.random.below(2) as usize;
        let keep = disk_path(both[winner]);
        if self.random.below(2) == 0 {
            self.cut_soon(300);
        }
        self.tell(format!("disk {} wins", both[winner]));
        loop {
            let (present, _) = self.bench.look(&both);
            let host = Host {
                claim: &|_| Ok(()),
                admit: &|_| Ok(()),
                world: self.bench.clock.clone(),
                seen: self.bench.witnessed(),
                on_shrink: Some(self.bench.on_shrink(false)),
                store: self.bench.setup.store.clone(),
            };
            let outcome = Resolve::new(present).and_then(|resolve| resolve.keep(Path::new(&keep), host, &mut |_| true));
            if self.bench.power.is_cut() {
                self.tell("cut while it was decided");
                self.bench.power.cut_at(None);
                self.bench.tally.cuts += 1;
                let plan = *self.random.pick(&[CrashPlan::DropAll, CrashPlan::KeepAll, CrashPlan::Random]);
                self.bench.power.revive(plan);
                continue;
            }
            self.bench.power.cut_at(None);
            match outcome {
                Ok(report) if report.left.is_empty() => break,
                Ok(report) => return Err(format!("a decision left something out: {report:?}")),
                Err(error) => return Err(format!("a decision: {error}")),
            }
        }
        let fail = |what: String| format!("after a decision: {what}");
        let opened = self.open_disks(&both, Ask::default()).1;
        let (store, _) = opened.map_err(|error| fail(error.to_string()))?;
        if store.mirror().members().count() != both.len() {
            return Err(fail("somebody is not in sync".into()));
        }
        let driver = Driver::new(store, &self.bench.power).map_err(fail)?;
        judge::judge(known, driver.now()).map_err(fail)?;
        clean(&driver.store).map_err(fail)?;
        drop(driver);
        self.alone(1 - winner, false, known)
    }
}
