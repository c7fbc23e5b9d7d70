//! A guard that is asked before each write whether this process may still write, and what it needs for its answer.
//!
//! *Guarantees*: with a guard, no write, flush, allocation, punch or repair is submitted before it has said yes; once
//! it has said that another writes here, none ever is ([`Mirror::stop`]). *Assumes*: a guard answers from memory nearly
//! always, and may use only what stands in this file. *Fails when*: the guard says no: its error.
//! *Order*: no lock of the mirror but a repair turn is held while the guard is asked.
//! *Not here*: who the other is (`volume::beat`); without a guard nothing here costs anything.

use super::batch::Outcome;
use super::{Mirror, ReplicaState};
use crate::disk::backing::{Done, Op};
use crate::disk::buffer::{Buf, Slice};
use crate::disk::{DiskError, ReplicaName};
use crate::format::Addr;
use std::sync::Arc;

/// Says whether this process may still write.
pub trait Guard: Send + Sync {
    /// Asked before each write. It may look at the replicas first.
    ///
    /// # Errors
    /// It may not: another owner was seen, or it cannot be known.
    fn may_write(&self, mirror: &Mirror) -> Result<(), DiskError>;
}

/// A block of one replica, unproven.
pub struct Standing {
    /// The replica's slot.
    pub slot: usize,
    /// Who it is.
    pub name: ReplicaName,
    /// What its medium answered.
    pub answer: Result<Buf, String>,
}

impl Mirror {
    /// From now on `guard` (`None`: nobody) is asked before each write.
    pub fn set_guard(&self, guard: Option<Arc<dyn Guard>>) {
        self.table.write().guard = guard;
    }

    pub(super) fn check_latch(&self) -> Result<(), DiskError> {
        let (latched, guard) = {
            let table = self.table.read();
            (table.latched.clone(), table.guard.clone())
        };
        match (latched, guard) {
            (Some(cause), _) => Err(DiskError::NoReplica(cause)),
            (None, Some(guard)) => guard.may_write(self),
            (None, None) => Ok(()),
        }
    }

    /// For what is written although the mirror is latched.
    pub(super) fn check_guard(&self) -> Result<(), DiskError> {
        let guard = self.table.read().guard.clone();
        guard.map_or(Ok(()), |guard| guard.may_write(self))
    }

    /// Ends all writing for good, because of something the layers above found.
    pub fn stop(&self, cause: &str) -> DiskError {
        self.latch(cause)
    }

    /// One block of each replica that takes writes, from the medium, all at once. One that does not answer in time goes out,
    /// as with any request, and is left out here.
    pub fn read_each(&self, addr: Addr) -> Vec<Standing> {
        let lanes = self.lanes(ReplicaState::takes_writes);
        let names: Vec<ReplicaName> = self.health().into_iter().map(|health| health.name).collect();
        let outcomes = self.run_batch(&lanes, 1, "a read", &|_| Op::ReadMedium { addr, blocks: 1 });
        let answered = lanes.iter().zip(outcomes).filter_map(|(lane, outcome)| {
            let answer = match outcome {
                Outcome::Finished(Done::Data(buf)) => Ok(buf),
                Outcome::Finished(_) => Err("answered a read without data".to_owned()),
                Outcome::Failed(error) => Err(error.to_string()),
                Outcome::Missed => return None,
            };
            Some(Standing { slot: lane.slot, name: names.get(lane.slot)?.clone(), answer })
        });
        answered.collect()
    }

    /// Write one block to every replica that takes writes, as [`Mirror::write`] does; for the guard itself, which is not
    /// asked. It is durable where the page cache lies between.
    ///
    /// # Errors
    /// As [`Mirror::write`].
    pub fn write_guards(&self, addr: Addr, data: &Slice) -> Result<(), DiskError> {
        if let Some(cause) = self.latched() {
            return Err(DiskError::NoReplica(cause));
        }
        self.on_writable_now(1, "a heartbeat", &|_| Op::Write { addr, data: vec![data.clone()] })?;
        let lanes = self.lanes(ReplicaState::takes_writes);
        if lanes.iter().all(|lane| lane.backing.facts().direct) {
            return Ok(());
        }
        self.on_writable_now(1, "a flush", &|_| Op::Flush)
    }
}
