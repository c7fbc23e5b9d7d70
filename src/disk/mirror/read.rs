//! Careful reads: balanced over the replicas in sync that are not slow, hedged when one is slow, proven block by block.
//!
//! *Guarantees*: every byte of the answer proved itself by the caller's checksum. What one replica could not prove
//! came from another one, and was repaired on the way.
//! *Assumes*: the caller pins the addresses until the call returns, so that repair cannot hit a reused block.
//! *Fails when*: no replica proves a block: [`DiskError::Lost`] names the first such block.
//! *Order*: none.
//! *Not here*: repair itself (`repair`).

use super::slow::Sample;
use super::write::REQUEST_BLOCKS_MAX;
use super::{Damage, Lane, Mirror, ReplicaState};
use crate::disk::DiskError;
use crate::disk::backing::{Bell, Done, Op, Ticket};
use crate::disk::buffer::Buf;
use crate::format::{Addr, BLOCK};
use crate::sync::Instant;
use crate::sync::atomic::Ordering;
use std::io;
use std::time::Duration;

/// From this length on a read is shared out among the replicas.
const SPLIT_BLOCKS_MIN: usize = 64;
/// How often to look again where no answer can wake us.
const POLL: Duration = Duration::from_millis(1);

/// A read that was sent to a replica.
struct Asked {
    lane: Lane,
    ticket: Ticket,
    /// When the next replica is asked the same.
    patience_until: Instant,
    /// Until when it is waited for where the other replicas answered with errors.
    limit: Instant,
}

/// A part of a read that one replica is asked for.
struct Piece {
    start: usize,
    blocks: usize,
    asked: Option<Asked>,
}

pub(super) fn data(done: Done, blocks: usize) -> io::Result<Buf> {
    match done {
        Done::Data(buf) if buf.blocks() == blocks => Ok(buf),
        _ => Err(io::Error::other("answered a read with something else")),
    }
}

impl Mirror {
    /// Careful read of `sums.len()` consecutive blocks from `addr`; block i is proven by `sums[i]`.
    /// Damage is repaired from another replica and counted.
    ///
    /// # Panics
    /// If `sums` is empty: our bug.
    pub fn read(&self, addr: Addr, sums: &[u64]) -> Result<Buf, DiskError> {
        self.read_for(addr, sums, 0)
    }

    /// As [`Mirror::read`]; what happens meanwhile is told as a fault that hurt inode `owner`.
    pub fn read_for(&self, addr: Addr, sums: &[u64], owner: u64) -> Result<Buf, DiskError> {
        assert!(!sums.is_empty());
        let end = addr.checked_add(sums.len() as u64);
        if end.is_none_or(|end| end > self.geometry.blocks) {
            return Err(DiskError::Lost { addr, detail: "outside of the volume".into() });
        }
        let lanes = self.lanes(|state| state == ReplicaState::InSync);
        if lanes.is_empty() {
            return Err(DiskError::Lost { addr, detail: "no replica is in sync".into() });
        }
        self.probe_slow(&lanes, addr, sums.len());
        let mut pieces = self.share_out(&self.quick(lanes), addr, sums.len());
        if let [piece] = &mut pieces[..] {
            let (slot, answer) = self.hedge(piece.asked.take(), addr, sums.len() as u32);
            return self.prove_answer(slot, answer, addr, sums, owner);
        }
        let mut whole = Buf::zeroed(sums.len() * BLOCK);
        for piece in &mut pieces {
            let at = addr + piece.start as u64;
            let (slot, answer) = self.hedge(piece.asked.take(), at, piece.blocks as u32);
            let part = self.prove_answer(slot, answer, at, &sums[piece.start..piece.start + piece.blocks], owner)?;
            whole[piece.start * BLOCK..(piece.start + piece.blocks) * BLOCK].copy_from_slice(&part);
        }
        Ok(whole)
    }

    /// Cut a read into pieces and ask: small reads in turn, large ones from all at once.
    fn share_out(&self, lanes: &[Lane], addr: Addr, blocks: usize) -> Vec<Piece> {
        let piece_blocks = match blocks {
            0..SPLIT_BLOCKS_MIN => blocks,
            _ => blocks.div_ceil(lanes.len()).min(REQUEST_BLOCKS_MAX as usize),
        };
        let mut pieces = Vec::new();
        for start in (0..blocks).step_by(piece_blocks) {
            let lane = &lanes[self.served_last.fetch_add(1, Ordering::Relaxed) % lanes.len()];
            let count = piece_blocks.min(blocks - start);
            let asked = Some(self.ask(lane, addr + start as u64, count as u32));
            pieces.push(Piece { start, blocks: count, asked });
        }
        pieces
    }

    fn ask(&self, lane: &Lane, addr: Addr, blocks: u32) -> Asked {
        let ticket = lane.backing.submit(Op::Read { addr, blocks });
        let now = Instant::now();
        let limit = now + self.deadline + self.grace();
        Asked { lane: lane.clone(), ticket, patience_until: now + self.deadline.mul_f32(0.4), limit }
    }

    /// Wait for a read; when the replica is slow, ask the next one too, and take what comes first. One that has not
    /// answered when its twin, asked later, has, misses. Where the others answered with errors it is waited for until the deadline.
    /// The last one in sync is waited for without end.
    fn hedge(&self, first: Option<Asked>, addr: Addr, blocks: u32) -> (usize, io::Result<Buf>) {
        let mut asked: Vec<Asked> = first.into_iter().collect();
        let first_slot = asked[0].lane.slot;
        let mut tried = 1u8 << first_slot;
        let mut error = None;
        let bell = Bell::new();
        asked[0].ticket.listen(&bell);
        loop {
            let seen = bell.count();
            while let Some(index) = asked.iter().position(|one| one.ticket.is_done()) {
                let one = asked.swap_remove(index);
                let sample = Sample::of(&one.ticket);
                let result = one.ticket.wait(None).expect("the answer is there");
                match result.and_then(|done| data(done, blocks as usize)) {
                    Ok(buf) => {
                        self.count(one.lane.slot, |counted| &counted.reads);
                        self.note_read(one.lane.slot, blocks as usize, sample);
                        self.judge_slow(&asked);
                        return (one.lane.slot, Ok(buf));
                    }
                    // The first error is what repair looks at; others still under way may answer.
                    Err(reason) => error = error.or(Some((one.lane.slot, reason))),
                }
            }
            let now = Instant::now();
            let impatient = asked.iter().all(|one| one.ticket.is_frozen() || now >= one.patience_until);
            let next = if impatient && (error.is_none() || !asked.is_empty()) { self.untried(tried) } else { None };
            if let Some(lane) = next {
                tried |= 1 << lane.slot;
                let one = self.ask(&lane, addr, blocks);
                one.ticket.listen(&bell);
                asked.push(one);
                continue;
            }
            if asked.is_empty() {
                let (slot, reason) = error.expect("every replica that was asked has failed");
                return (slot, Err(reason));
            }
            let late = |one: &Asked| one.ticket.is_frozen() || now >= one.limit;
            if asked.iter().all(late)
                && let Some((slot, reason)) = error.take()
            {
                // Nobody who could prove it is there: an error now, not whenever the one that hangs comes back.
                return (slot, Err(reason));
            }
            let frozen = asked.iter().any(|one| one.ticket.is_frozen());
            let more = self.untried(tried).is_some();
            let wake = match (frozen, more) {
                (true, _) => Some(now + POLL),
                (false, true) => asked.iter().map(|one| one.patience_until).max(),
                (false, false) => error.as_ref().and_then(|_| asked.iter().map(|one| one.limit).max()),
            };
            bell.wait(seen, wake);
        }
    }

    fn untried(&self, tried: u8) -> Option<Lane> {
        let mut lanes = self.lanes(|state| state == ReplicaState::InSync);
        lanes.retain(|lane| tried >> lane.slot & 1 == 0);
        self.quick(lanes).into_iter().next()
    }

    /// A replica has answered. Those that were asked before it, and whose patience is over, get the grace, then go.
    fn judge_slow(&self, waiting: &[Asked]) {
        for one in waiting.iter().filter(|one| one.ticket.is_frozen() || Instant::now() >= one.patience_until) {
            if one.ticket.wait(Some(Instant::now() + self.grace())).is_none() {
                self.miss(&one.lane, "a read");
            }
        }
    }

    /// Prove what `slot` answered, block by block, and get what it could not prove elsewhere.
    fn prove_answer(
        &self,
        slot: usize,
        answer: io::Result<Buf>,
        addr: Addr,
        sums: &[u64],
        owner: u64,
    ) -> Result<Buf, DiskError> {
        let (mut buf, unreadable) = match answer {
            Ok(buf) => (buf, None),
            Err(error) => (Buf::zeroed(sums.len() * BLOCK), Some(Damage::Unreadable(error.to_string()))),
        };
        for (index, sum) in sums.iter().enumerate() {
            let at = addr + index as u64;
            let block = &mut buf[index * BLOCK..(index + 1) * BLOCK];
            if unreadable.is_some() || self.seed.checksum(at, block) != *sum {
                block.copy_from_slice(&self.recover(slot, at, *sum, owner)?);
            }
        }
        Ok(buf)
    }
}
