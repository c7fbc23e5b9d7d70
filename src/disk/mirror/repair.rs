//! Repair: from a copy that proves itself, over a copy that does not, proven again from the medium.
//!
//! *Guarantees*: only bytes that match the checksum are ever written (invariant 8), and only over a copy that was
//! just read from the medium and did not prove itself. So the number of correct copies never falls, and repeated or
//! concurrent repairs count each damaged copy once.
//! *Assumes*: the address stays pinned.
//! *Fails when*: no copy proves itself: [`DiskError::Lost`], nothing is written. A replica that cannot take its
//! repair goes out (not the last one in sync, and not one that was opened for reading only).
//! *Order*: one block's repairs take turns.
//! *Not here*: which blocks to prove (walkers in `store`); blocks that no replica proves (`combine`).

use super::batch::Trouble;
use super::read::data;
use super::write::{REQUEST_BLOCKS_MAX, describe};
use super::{Happened, Lane, Mirror, REPAIR_TURNS, ReplicaState, What};
use crate::disk::DiskError;
use crate::disk::backing::{Op, Ticket};
use crate::disk::buffer::{Buf, Slice};
use crate::format::Addr;
use std::collections::VecDeque;

/// Requests that a proof keeps outstanding.
const PROOFS_OUTSTANDING: usize = 4;

/// Said of a replica that is not asked, because a further request would only hang as well.
pub(super) const HANGS: &str = "is out and has not answered yet";

/// Why a copy is an omission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Damage {
    /// The bytes do not match the pointer that names them.
    Checksum,
    /// All bytes are zero, and should not be.
    Zeros,
    /// The medium gave an error.
    Unreadable(String),
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Damage::Checksum => f.write_str("does not match its checksum"),
            Damage::Zeros => f.write_str("is all zeros"),
            Damage::Unreadable(error) => write!(f, "cannot be read: {error}"),
        }
    }
}

/// What was found about one block on one replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// Matches its pointer.
    Correct,
    /// Did not, and was repaired and proven again.
    Healed(Damage),
    /// Does not; not repaired (not asked for, or the repair failed).
    Damaged(Damage),
    /// Does not, and no other replica has it.
    Lost(Damage),
    /// The replica could not be asked: missing, hung, gone out. Nothing is known of the block.
    Unproven(String),
}

/// One replica's copy of a block.
pub(super) enum Copy {
    Correct(Buf),
    /// With what could be read.
    Damaged(Damage, Option<Buf>),
    Unknown(String),
}

/// What a repair turn found.
struct Turn {
    /// Proven bytes of the block, if any replica has them.
    good: Option<Buf>,
    /// What was found on the replica that was asked first.
    first: Proof,
    /// All that was found, in words.
    detail: String,
}

impl Mirror {
    /// `slot` did not prove the block: get it from wherever it is proven, and repair.
    pub(super) fn recover(&self, slot: usize, addr: Addr, sum: u64, owner: u64) -> Result<Buf, DiskError> {
        let lane = self.lane(slot).or_else(|| self.lanes(|state| state == ReplicaState::InSync).into_iter().next());
        let Some(lane) = lane else {
            return Err(DiskError::Lost { addr, detail: "the replica went away".into() });
        };
        let turn = self.repair(&lane, addr, sum, owner);
        if turn.good.is_some() && turn.first == Proof::Correct {
            self.count(slot, |counted| &counted.transient);
        }
        turn.good.ok_or(DiskError::Lost { addr, detail: turn.detail })
    }

    /// Read one replica from the medium and prove each of `sums.len()` blocks from `addr`; with `heal`, repair what
    /// is damaged from the other replicas. Works on replicas in any state that have a backing.
    pub fn prove(&self, replica: usize, addr: Addr, sums: &[u64], heal: bool) -> Vec<Proof> {
        let Some(lane) = self.lane(replica) else {
            return vec![Proof::Unproven("the replica is missing".into()); sums.len()];
        };
        if addr.checked_add(sums.len() as u64).is_none_or(|end| end > self.geometry.blocks) {
            return vec![Proof::Unproven("outside of the volume".into()); sums.len()];
        }
        let mut proofs = Vec::with_capacity(sums.len());
        let mut asked: VecDeque<(Addr, &[u64], Ticket)> = VecDeque::new();
        let mut chunks = sums.chunks(REQUEST_BLOCKS_MAX as usize);
        let mut next = addr;
        loop {
            while asked.len() < PROOFS_OUTSTANDING {
                if self.hangs(&lane) {
                    break;
                }
                let Some(chunk) = chunks.next() else { break };
                let op = Op::ReadMedium { addr: next, blocks: chunk.len() as u32 };
                asked.push_back((next, chunk, lane.backing.submit(op)));
                next += chunk.len() as u64;
            }
            let Some((at, chunk, ticket)) = asked.pop_front() else {
                // It hangs: nothing is known of the rest.
                proofs.resize(sums.len(), Proof::Unproven(HANGS.into()));
                return proofs;
            };
            let answer = self.await_one(&lane, &ticket, "a proof").and_then(|done| Ok(data(done, chunk.len())?));
            self.prove_chunk(&lane, at, chunk, answer, heal, &mut proofs);
        }
    }

    fn prove_chunk(
        &self,
        lane: &Lane,
        addr: Addr,
        sums: &[u64],
        answer: Result<Buf, Trouble>,
        heal: bool,
        proofs: &mut Vec<Proof>,
    ) {
        for (index, sum) in sums.iter().enumerate() {
            let at = addr + index as u64;
            let proof = match &answer {
                Ok(buf) if self.seed.checksum(at, buf.block(index)) == *sum => Proof::Correct,
                Err(missed @ Trouble::Missed(_)) => Proof::Unproven(missed.to_string()),
                // Anything else is looked at again, alone, so that one bad sector costs one block.
                _ if heal => self.repair(lane, at, *sum, 0).first,
                _ => match self.copy(lane, at, *sum) {
                    Copy::Correct(_) => Proof::Correct,
                    Copy::Damaged(damage, _) => Proof::Damaged(damage),
                    Copy::Unknown(reason) => Proof::Unproven(reason),
                },
            };
            proofs.push(proof);
        }
    }

    /// One block of one replica, from the medium.
    pub(super) fn copy(&self, lane: &Lane, addr: Addr, sum: u64) -> Copy {
        if self.hangs(lane) {
            return Copy::Unknown(HANGS.into());
        }
        match self.one(lane, Op::ReadMedium { addr, blocks: 1 }, "a read").and_then(|done| Ok(data(done, 1)?)) {
            Ok(buf) if self.seed.checksum(addr, &buf) == sum => Copy::Correct(buf),
            Ok(buf) if buf.iter().all(|byte| *byte == 0) => Copy::Damaged(Damage::Zeros, Some(buf)),
            Ok(buf) => Copy::Damaged(Damage::Checksum, Some(buf)),
            Err(missed @ Trouble::Missed(_)) => Copy::Unknown(missed.to_string()),
            Err(Trouble::Failed(error)) => Copy::Damaged(Damage::Unreadable(error.to_string()), None),
        }
    }

    /// Look at the block on `first`, then on the others until one proves it, and repair those that did not.
    fn repair(&self, first: &Lane, addr: Addr, sum: u64, owner: u64) -> Turn {
        let _turn = self.turns[addr as usize % REPAIR_TURNS].lock();
        let mut good = None;
        let mut details = Vec::new();
        let mut first_proof = Proof::Correct;
        let mut damaged: Vec<(Lane, Damage)> = Vec::new();
        let mut all_answer = true;
        for lane in self.by_trust(first) {
            match self.copy(&lane, addr, sum) {
                Copy::Correct(buf) => {
                    good = Some(buf);
                    break;
                }
                Copy::Damaged(damage, _) => {
                    details.push(format!("replica {}: {damage}", lane.slot));
                    if lane.slot == first.slot {
                        first_proof = Proof::Lost(damage.clone());
                    }
                    damaged.push((lane, damage));
                }
                Copy::Unknown(reason) => {
                    all_answer = false;
                    details.push(format!("replica {}: {reason}", lane.slot));
                    if lane.slot == first.slot {
                        first_proof = Proof::Unproven(reason);
                    }
                }
            }
        }
        if let Some(good) = &good {
            for (lane, damage) in damaged {
                let healed = self.heal(&lane, addr, sum, (good, owner), &damage);
                if lane.slot == first.slot {
                    first_proof = if healed { Proof::Healed(damage) } else { Proof::Damaged(damage) };
                }
            }
        }
        let detail = details.join(", ");
        if good.is_none() && all_answer {
            self.events.tell(Happened { addr, owner, ..Happened::new(What::Lost, &detail) });
        }
        Turn { good, first: first_proof, detail }
    }

    /// `first`, then all others by trust.
    fn by_trust(&self, first: &Lane) -> Vec<Lane> {
        let mut lanes = vec![first.clone()];
        lanes.extend(self.lanes_by_trust().into_iter().filter(|lane| lane.slot != first.slot));
        lanes
    }

    /// Those in sync, then, as a last resort, others that do not hang: a proof is a proof.
    pub(super) fn lanes_by_trust(&self) -> Vec<Lane> {
        let mut lanes = self.lanes(|state| state == ReplicaState::InSync);
        let rest = self.lanes(|state| state != ReplicaState::InSync);
        lanes.extend(rest.into_iter().filter(|lane| !self.hangs(lane)));
        lanes
    }

    /// Whether asking this lane is pointless for now.
    pub(super) fn hangs(&self, lane: &Lane) -> bool {
        self.table.read().rows.get(lane.slot).is_some_and(|row| row.holds(lane) && row.hangs())
    }

    /// Write proven bytes over a copy that is damaged, and prove it. False if the copy stays damaged.
    pub(super) fn heal(&self, lane: &Lane, addr: Addr, sum: u64, (good, owner): (&Buf, u64), damage: &Damage) -> bool {
        assert_eq!(self.seed.checksum(addr, good), sum, "only proven bytes repair");
        let state = self.state(lane.slot);
        if state == ReplicaState::InSync {
            self.count(
                lane.slot,
                match damage {
                    Damage::Unreadable(_) => |counted| &counted.unreadable,
                    Damage::Checksum | Damage::Zeros => |counted| &counted.checksum,
                },
            );
            let happened = Happened::new(What::Omission, &format!("block {addr} {damage}"));
            self.tell_of(lane.slot, Happened { addr, owner, ..happened });
        }
        if !state.takes_writes() || lane.backing.facts().read_only || self.check_guard().is_err() {
            return false;
        }
        let write = Op::Write { addr, data: vec![Slice::whole(good.clone())] };
        let failure = match self.one(lane, write, "a repair") {
            Err(Trouble::Failed(error)) => Some(describe("a repair", &error)),
            Err(missed) => Some(format!("a repair failed: {missed}")),
            Ok(_) => match self.copy(lane, addr, sum) {
                Copy::Correct(_) => None,
                Copy::Damaged(damage, _) => Some(format!("a repair did not hold: block {addr} {damage}")),
                Copy::Unknown(reason) => Some(format!("a repair could not be proven: {reason}")),
            },
        };
        match (failure, state) {
            (None, ReplicaState::InSync) => {
                log::warn!("replica {}: block {addr} {damage}; healed", lane.slot);
                self.count(lane.slot, |counted| &counted.healed);
                true
            }
            (None, _) => {
                self.count(lane.slot, |counted| &counted.copied);
                true
            }
            (Some(failure), _) => {
                log::error!("replica {}: block {addr} {damage}; {failure}", lane.slot);
                self.count(lane.slot, |counted| &counted.heal_failed);
                self.put_lane_out_for(lane, &failure, owner);
                false
            }
        }
    }
}
