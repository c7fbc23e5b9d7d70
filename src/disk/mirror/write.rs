//! Careful writes: to every replica that takes writes, in parallel; and the raw calls on one replica.
//!
//! *Guarantees*: Ok means that everything is on every replica that is in sync when the call returns, and that there
//! is one. A replica that failed while another one succeeded is out. A failed flush is never tried again.
//! *Assumes*: writes of one call do not overlap; nobody reads what is being written.
//! *Fails when*: the last replica in sync fails: [`DiskError::NoReplica`], latched; no space: [`DiskError::Full`].
//! *Order*: the gate is held shared during each write, so that a replica that starts to return misses none.
//! *Not here*: deadlines (`batch`).

use super::batch::{Outcome, Trouble};
use super::repair::HANGS;
use super::{Lane, Leaving, Mirror, ReplicaState};
use crate::disk::DiskError;
use crate::disk::backing::{Done, Op};
use crate::disk::buffer::{Buf, Slice};
use crate::format::{Addr, BLOCK};
use std::io;

/// Blocks in the largest request: 1 MiB.
pub(super) const REQUEST_BLOCKS_MAX: u64 = 256;

/// An error of a medium in words that tell a full or read-only replica from a broken one (invariant 9).
pub(super) fn describe(what: &str, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => format!("full: {what} failed: {error}"),
        io::ErrorKind::ReadOnlyFilesystem => format!("read-only: {what} failed: {error}"),
        _ => format!("{what} failed: {error}"),
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Sort by address, cut at 1 MiB, join neighbours.
fn coalesce(mut writes: Vec<(Addr, Slice)>) -> Vec<(Addr, Vec<Slice>)> {
    writes.sort_by_key(|(addr, _)| *addr);
    let mut requests: Vec<(Addr, Vec<Slice>)> = Vec::new();
    let mut filled = 0;
    let mut end = 0;
    for (addr, slice) in writes {
        assert!(addr >= end, "writes of one call do not overlap");
        let (mut at, mut start, blocks) = (addr, 0, slice.blocks());
        while start < blocks {
            let joins = at == end && filled > 0 && filled < REQUEST_BLOCKS_MAX;
            let room = if joins { REQUEST_BLOCKS_MAX - filled } else { REQUEST_BLOCKS_MAX };
            let take = room.min(blocks - start);
            let part = slice.part(start as usize * BLOCK, take as usize * BLOCK);
            match requests.last_mut().filter(|_| joins) {
                Some((_, parts)) => parts.push(part),
                None => requests.push((at, vec![part])),
            }
            filled = if joins { filled + take } else { take };
            (at, start, end) = (at + take, start + take, at + take);
        }
    }
    requests
}

impl Mirror {
    /// Careful write of blocks to all replicas that take writes, in parallel. Neighbours are joined.
    ///
    /// # Panics
    /// If writes overlap or leave the volume: our bug.
    pub fn write(&self, writes: Vec<(Addr, Slice)>) -> Result<(), DiskError> {
        let requests = coalesce(writes);
        let Some((last, parts)) = requests.last() else { return self.check_latch() };
        let end = last + parts.iter().map(Slice::blocks).sum::<u64>();
        assert!(end <= self.geometry.blocks, "writes stay inside the volume");
        let make = |index: usize| {
            let (addr, data) = &requests[index];
            Op::Write { addr: *addr, data: data.clone() }
        };
        self.on_writable(requests.len(), "a write", &make)
    }

    /// Make durable, on every replica that takes writes, all writes that returned before this call.
    pub fn flush(&self) -> Result<(), DiskError> {
        self.on_writable(1, "a flush", &|_| Op::Flush)
    }

    /// Back `blocks` blocks from `addr` with space on every replica that takes writes.
    /// [`DiskError::Full`] if any has none; those that had some keep it. With [`Mirror::leave_full`] whoever has none goes out,
    /// unless it is the last; one that is on its way back always does.
    pub fn allocate(&self, addr: Addr, blocks: u64) -> Result<(), DiskError> {
        assert!(addr.checked_add(blocks).is_some_and(|end| end <= self.geometry.blocks), "inside the volume");
        self.on_writable(1, "an allocation", &|_| Op::Allocate { addr, blocks })
    }

    /// Give the space of a range back on every replica that takes writes; failures cost nothing but space.
    pub fn punch(&self, addr: Addr, blocks: u64) {
        self.punch_lanes(addr, blocks, |_| true);
    }

    /// The same on one replica, if it takes writes.
    pub fn punch_on(&self, replica: usize, addr: Addr, blocks: u64) {
        self.punch_lanes(addr, blocks, |lane| lane.slot == replica);
    }

    fn punch_lanes(&self, addr: Addr, blocks: u64, wanted: impl Fn(&Lane) -> bool) {
        if self.check_guard().is_err() {
            return;
        }
        let _open = self.gate.read();
        let mut lanes = self.lanes(ReplicaState::takes_writes);
        lanes.retain(wanted);
        // Waited for: a punch that lands late would hit what was written meanwhile.
        for (lane, outcome) in lanes.iter().zip(self.run_batch(&lanes, 1, "a punch", &|_| Op::Punch { addr, blocks })) {
            if let Outcome::Failed(error) = outcome {
                log::warn!("replica {}: space at block {addr} was not given back: {error}", lane.slot);
            }
        }
    }

    /// Check that every container is still there and unchanged, and ask how much space is left below.
    /// One that vanished, shrank or became another goes out; if it is the last one, writes fail from now on.
    pub fn check(&self) {
        self.probe_idle();
        let lanes = self.lanes(ReplicaState::takes_writes);
        for (lane, outcome) in lanes.iter().zip(self.run_batch(&lanes, 1, "a check", &|_| Op::Check)) {
            match outcome {
                Outcome::Finished(Done::Facts(facts)) => {
                    if let Some(row) = self.table.write().rows.get_mut(lane.slot).filter(|row| row.holds(lane)) {
                        row.facts = Some(facts);
                    }
                }
                Outcome::Finished(_) | Outcome::Missed => {}
                Outcome::Failed(error) => {
                    self.leave_or_latch(lane, &format!("the container changed: {error}"));
                }
            }
        }
    }

    /// Write a root, durably: first to those in sync, then to those that are returning, which must never have one that
    /// the others lack.
    pub fn write_root(&self, addr: Addr, block: Slice) -> Result<(), DiskError> {
        let returning = self.lanes(|state| state == ReplicaState::Returning);
        if returning.is_empty() {
            self.write(vec![(addr, block)])?;
            return self.flush();
        }
        let in_sync = |state| state == ReplicaState::InSync;
        self.on_lanes(in_sync, 1, "a write", &|_| Op::Write { addr, data: vec![block.clone()] })?;
        // Of these, what the root reaches was flushed before it.
        self.on_lanes(in_sync, 1, "a flush", &|_| Op::Flush)?;
        for lane in returning {
            // One that fails is out: the root that follows says so.
            if self.write_raw(lane.slot, addr, block.clone()).is_ok() {
                let _ = self.flush_raw(lane.slot); // it is out then
            }
        }
        self.check_latch()
    }

    /// Unproven blocks of one replica, from the medium.
    pub fn read_raw(&self, replica: usize, addr: Addr, blocks: u32) -> Result<Buf, DiskError> {
        let lane = self.raw_lane(replica)?;
        match self.one(&lane, Op::ReadMedium { addr, blocks }, "a read") {
            Ok(Done::Data(buf)) => Ok(buf),
            Ok(_) => Err(DiskError::Replica { replica, detail: "answered a read without data".into() }),
            Err(error) => Err(DiskError::Replica { replica, detail: error.to_string() }),
        }
    }

    /// Write to one replica only. A failure puts the replica out, or, if it is the last in sync, ends all writing.
    pub fn write_raw(&self, replica: usize, addr: Addr, data: Slice) -> Result<(), DiskError> {
        self.raw(replica, "a write", Op::Write { addr, data: vec![data] })
    }

    /// Flush one replica only; failures as in [`Mirror::write_raw`].
    pub fn flush_raw(&self, replica: usize) -> Result<(), DiskError> {
        self.raw(replica, "a flush", Op::Flush)
    }

    fn raw_lane(&self, replica: usize) -> Result<Lane, DiskError> {
        let Some(lane) = self.lane(replica) else {
            return Err(DiskError::Replica { replica, detail: "is missing".into() });
        };
        if self.hangs(&lane) {
            return Err(DiskError::Replica { replica, detail: HANGS.into() });
        }
        Ok(lane)
    }

    fn raw(&self, replica: usize, what: &str, op: Op) -> Result<(), DiskError> {
        self.check_latch()?;
        let _open = self.gate.read();
        let lane = self.raw_lane(replica)?;
        let flush = matches!(op, Op::Flush);
        match self.one(&lane, op, what) {
            Ok(_) => {
                self.count_done(replica, flush);
                Ok(())
            }
            // What it may do later must not find it in sync.
            Err(missed @ Trouble::Missed(_)) => {
                self.leave_or_latch(&lane, &format!("{what} failed: {missed}"));
                Err(DiskError::Replica { replica, detail: format!("{what} failed: {missed}") })
            }
            Err(Trouble::Failed(error)) => {
                let detail = describe(what, &error);
                if lane.state.takes_writes() {
                    self.count_failed(replica, flush);
                    self.set_out(replica, &detail);
                }
                Err(DiskError::Replica { replica, detail })
            }
        }
    }

    fn count_done(&self, replica: usize, flush: bool) {
        self.count(replica, if flush { |counted| &counted.flushes } else { |counted| &counted.writes });
    }

    fn count_failed(&self, replica: usize, flush: bool) {
        self.count(replica, if flush { |counted| &counted.flush_failed } else { |counted| &counted.write_failed });
    }

    /// Run requests on all replicas that take writes, and draw the consequences.
    fn on_writable(&self, count: usize, what: &str, op: &dyn Fn(usize) -> Op) -> Result<(), DiskError> {
        self.on_lanes(ReplicaState::takes_writes, count, what, op)
    }

    /// Run requests on all replicas in these states, of which those in sync are some, and draw the consequences.
    fn on_lanes(
        &self,
        wanted: impl Fn(ReplicaState) -> bool,
        count: usize,
        what: &str,
        op: &dyn Fn(usize) -> Op,
    ) -> Result<(), DiskError> {
        self.check_latch()?;
        self.on_lanes_now(wanted, count, what, op)
    }

    /// As [`Mirror::on_writable`], for whoever may write.
    pub(super) fn on_writable_now(&self, count: usize, what: &str, op: &dyn Fn(usize) -> Op) -> Result<(), DiskError> {
        self.on_lanes_now(ReplicaState::takes_writes, count, what, op)
    }

    fn on_lanes_now(
        &self,
        wanted: impl Fn(ReplicaState) -> bool,
        count: usize,
        what: &str,
        op: &dyn Fn(usize) -> Op,
    ) -> Result<(), DiskError> {
        let _open = self.gate.read();
        let lanes = self.lanes(wanted);
        if !lanes.iter().any(|lane| lane.state == ReplicaState::InSync) {
            return Err(self.latch("none is in sync"));
        }
        let first = op(0);
        let (flush, allocation) = (matches!(first, Op::Flush), matches!(first, Op::Allocate { .. }));
        let mut failed: Vec<(usize, io::Error)> = Vec::new();
        let mut done: Vec<usize> = Vec::new();
        for (lane, outcome) in lanes.iter().zip(self.run_batch(&lanes, count, what, op)) {
            match outcome {
                Outcome::Finished(_) => {
                    if !allocation {
                        self.count_done(lane.slot, flush);
                    }
                    done.push(lane.slot);
                    if allocation && self.is_full(lane.slot) {
                        self.has_room(&self.table.read(), lane.slot, "there is room again");
                    }
                }
                Outcome::Failed(error) => {
                    // An allocation that finds no room has not damaged anything.
                    if !(allocation && is_full(&error)) {
                        self.count_failed(lane.slot, flush);
                    }
                    failed.push((lane.slot, error));
                }
                Outcome::Missed => {}
            }
        }
        if failed.is_empty() && self.any_in_sync(&done) {
            return Ok(());
        }
        self.conclude(what, flush, allocation, &done, &failed)
    }

    fn any_in_sync(&self, slots: &[usize]) -> bool {
        let members = self.members();
        slots.iter().any(|slot| members.contains(*slot))
    }

    /// Some replica failed: who goes out, and what the caller hears.
    fn conclude(
        &self,
        what: &str,
        flush: bool,
        allocation: bool,
        done: &[usize],
        failed: &[(usize, io::Error)],
    ) -> Result<(), DiskError> {
        let full = failed.iter().find(|(_, error)| !flush && is_full(error));
        let full = full.map(|(replica, error)| DiskError::Full { replica: *replica, detail: describe(what, error) });
        let takes_part = |slot: usize| self.state(slot) == ReplicaState::InSync;
        if self.any_in_sync(done) {
            let mut refused = false;
            for (slot, error) in failed {
                // While others have done it, one that cannot is behind; but room is asked for before it is needed. One that
                // is on its way back protects nothing yet, and is not to cost anybody anything.
                let leaves = self.leaves_full() || self.state(*slot) == ReplicaState::Returning;
                if allocation && is_full(error) && !leaves {
                    self.has_no_room(*slot, &describe(what, error));
                    refused = true;
                } else if self.put_out(*slot, &describe(what, error)) == Leaving::Last {
                    return Err(self.latch(&describe(what, error)));
                }
            }
            if self.any_in_sync(done) {
                return full.filter(|_| refused).map_or(Ok(()), Err);
            }
        } else if let Some(full) = full
            && failed.iter().all(|(slot, error)| !takes_part(*slot) || is_full(error))
        {
            return Err(full);
        }
        let causes: Vec<String> =
            failed.iter().map(|(slot, error)| format!("replica {slot}: {}", describe(what, error))).collect();
        let cause = if causes.is_empty() { "the replicas that answered are out".to_owned() } else { causes.join("; ") };
        Err(self.latch(&cause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_joined_and_giants_are_cut() {
        let block = || Slice::whole(Buf::zeroed(BLOCK));
        let big = Slice::whole(Buf::zeroed(600 * BLOCK));
        let shape = |writes| -> Vec<(Addr, u64)> {
            coalesce(writes).iter().map(|(a, p)| (*a, p.iter().map(Slice::blocks).sum())).collect()
        };
        assert_eq!(shape(vec![(9, block()), (8, block()), (11, block())]), [(8, 2), (11, 1)]);
        assert_eq!(shape(vec![(99, block()), (100, big)]), [(99, 256), (355, 256), (611, 89)]);
        assert_eq!(shape(vec![]), []);
    }

    #[test]
    #[should_panic(expected = "overlap")]
    fn overlapping_writes_are_our_bug() {
        coalesce(vec![(8, Slice::whole(Buf::zeroed(2 * BLOCK))), (9, Slice::whole(Buf::zeroed(BLOCK)))]);
    }
}
