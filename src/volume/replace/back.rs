//! Return: a replica that was away is sent what it missed, and nothing else.
//!
//! *Guarantees*: it serves nothing before a root calls it in sync; and none does before every block born since it went
//! was read from its medium and proven. One that was written apart, is another's, or has requests that may still land on it
//! is refused, and nothing on it is changed. It may be cut at any write and begun again, also by another mount (invariant 7).
//! *Assumes*: the backing is open and locked. *Fails when*: it fails on the way: it is out, the others are as they were.
//! *Order*: identity and history → its roots renounced → a root that says *returning* → commit → sample → what is to be sent is
//! counted, and its metadata sent → space below given back and taken → data → proof, until a round finds nothing missing → labels → in sync, named so by a root.
//! *Not here*: when it is tried (`daemon`); the walk and its argument (`super`, `store::walk`).
//!
//! **What it holds already.** The last root that called it in sync was written after everything that this root reaches had
//! been flushed on it (invariant 3). A block that was born in that root's group or before, and is in use now, was in use all
//! the time since, and has not been written over on anybody. The group is noted in each root while the replica is away
//! (`Member::synced_txg`). If its own newest root is older than that root, it is an old copy, and holds what its own root says. An
//! old copy may have been made while its newest root was one that nobody else ever had, because the power failed (decision
//! 0007): of the group of that root nothing is believed; the one before was on both.
//!
//! Blocks born later are copied and proven. Of those before, a random sample is proven; if one is missing, nothing is believed
//! any more and every block in use is compared. What rotted there while it was away is found by the next scrub, or by a read.

use super::{Place, ReplicaName, Resync, Tally, give_up, nothing_hangs, refused, stays_in};
use crate::control::Progress;
use crate::disk::backing::{Backing, Op, Ticket};
use crate::disk::buffer::{Buf, Slice};
use crate::disk::{Proof, ReplicaState};
use crate::format::geometry::ROOT_SLOTS;
use crate::format::{Addr, BLOCK, Kinship, MemberState, Root, Txg, Uuid};
use crate::store::commit::Force;
use crate::store::recover::Found;
use crate::store::walk::{Part, Piece, Sink};
use crate::store::{Store, StoreError};
use crate::sync::Instant;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

/// Random ways from the top of the tree to a block that are proven before the rest is believed.
const SAMPLE_WAYS: u32 = 256;
/// The same of a simulated replica, which is so small that many ways would be all of it.
const SAMPLE_WAYS_SIMULATED: u32 = 2;
/// How often it is asked whether the return is still wanted, while a request is waited for.
const LOOK: Duration = Duration::from_millis(100);

/// What a return did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReturnReport {
    /// One line.
    pub summary: String,
    /// Path of the replica.
    pub path: String,
    /// It was taken to hold what was born in this group or before; 0: everything was compared.
    pub since_group: u64,
    /// Blocks in use that were born later.
    pub blocks_missed: u64,
    /// Of them, written to it beside new writes.
    pub blocks_copied: u64,
    /// The same in bytes.
    pub bytes_copied: u64,
    /// Blocks read from its medium and proven, in the last round.
    pub blocks_proven: u64,
    /// Older blocks that were proven as a sample.
    pub sampled: u64,
    /// Rounds of proof.
    pub rounds: u64,
    /// Blocks that no replica has.
    pub lost: u64,
    /// Whose they are; at most 100 lines.
    pub lost_paths: Vec<String>,
}

/// The group up to which a replica, on which `roots` stand (newest first), has everything that is in use in `now`; 0: not known.
///
/// # Errors
/// It is no member, or was written apart: why.
pub fn holds_until(now: &Root, replica: Uuid, roots: &[(usize, Root)]) -> Result<Txg, String> {
    let Some(member) = now.member(replica) else {
        return Err("is not a replica of this volume any more: it was detached, or another one took its place".into());
    };
    let Some((_, own)) = roots.first() else { return Ok(0) };
    let root = || format!("root {} of {}", own.version, crate::world::utc(own.time_ns));
    match now.kinship(own.epoch().id, own.version) {
        Kinship::Past => {}
        Kinship::Forked => {
            return Err(format!(
                "was written apart from the others ({}); its changes would be lost. Unmount, then `stablefs resolve` with \
                 all replicas shows what was changed on each, and has one of them win",
                root()
            ));
        }
        // By birth nothing can be said of it, and whether it was written apart neither.
        Kinship::TooOld => {
            return Err(format!(
                "is too old to compare ({}): whether it was written apart is not known any more. Look at it with \
                 `stablefs mount -o degraded,ro`, then empty it and replace it: everything is copied",
                root()
            ));
        }
    }
    let in_own = own.members.iter().find(|member| member.replica == replica);
    // A root that was being written when the power failed is the next one after the last of both, and its version was left
    // free. Further on lie versions that a mount skipped because a damaged slot may have held them: here is one that did.
    // The root that called it out began an epoch.
    let went = now.chain.iter().map(|epoch| epoch.first_version).find(|first| *first > member.synced_version);
    let is_newer = own.version > member.synced_version && went.is_some_and(|went| own.version + 1 < went);
    if is_newer && member.synced_version > 0 && in_own.is_some_and(|own| own.state == MemberState::InSync) {
        return Err(format!(
            "has {}, which the others had lost when they went on without it; what it alone has would be lost. Unmount, then \
             `stablefs resolve` with all replicas shows what that is, and has one of them win",
            root()
        ));
    }
    Ok(match in_own {
        Some(own_member) if own_member.state == MemberState::InSync => match own.version >= member.synced_version {
            true => member.synced_txg,
            false => member.synced_txg.min(own.txg.saturating_sub(1)),
        },
        Some(own_member) => member.synced_txg.min(own_member.synced_txg),
        None => 0,
    })
}

/// Bring the replica in `slot`, which is out or missing, back from `backing`, on which `found` stands.
///
/// # Errors
/// It may not be taken back, or failed on the way: it is out, and the others are as they were.
pub fn bring_back(
    store: &Store,
    slot: usize,
    path: String,
    backing: Arc<dyn Backing>,
    found: &Found,
    progress: &mut dyn FnMut(&Progress) -> bool,
) -> Result<ReturnReport, StoreError> {
    let name = ReplicaName { uuid: found.label.replica, path: path.clone() };
    // A root must call it out before it is asked what it holds: one that calls it in sync does not say.
    let begun = store.declare().and_then(|()| may_return(store, slot, &name, found)).and_then(|since| {
        let root = store.announce(slot, since)?;
        let deadline = store.mirror().deadline();
        let mut wanted = || progress(&Progress { what: "renouncing".into(), total: 1, ..Progress::default() });
        renounce(&*backing, &root, deadline, &mut wanted).map_err(|why| refused(format!("{path}: {why}")))?;
        store.change_members(|mirror| mirror.start_returning(slot, name, backing.clone()))?;
        Ok(since)
    });
    let said = store.end_announcement();
    let since = match begun {
        Ok(since) => since,
        Err(refusal) => {
            if store.mirror().health().get(slot).is_none_or(|health| health.state != ReplicaState::Returning) {
                backing.close();
            }
            return Err(refusal);
        }
    };
    said?;
    let mut resync = Resync::new(store, slot, path.clone(), progress);
    resync.since = since;
    let done = resync.catch_up().and_then(|caught| resync.join(Place::Free(slot)).map(|_| caught));
    let report = match done {
        Ok((rounds, missed, sampled)) => resync.return_report(rounds, missed, sampled),
        Err(why) => return Err(give_up(store, Place::Free(slot), slot, &path, &why)),
    };
    stays_in(store, slot, &path)?;
    Ok(report)
}

/// Before anything else is written to it, its own roots stop calling it in sync: what they reach is about to be written over.
/// The newest root, which calls it out, is durable there before the others are void. Each step is waited for as a member
/// would be, for `deadline`, and for as long as it is `wanted`.
pub(super) fn renounce(
    backing: &dyn Backing,
    (slot, root): &(usize, Root),
    deadline: Duration,
    wanted: &mut dyn FnMut() -> bool,
) -> Result<(), String> {
    let put = |slot: usize, bytes: &[u8]| Op::Write {
        addr: Root::addr(slot),
        data: vec![Slice::whole(Buf::from_slice(bytes))],
    };
    let void = |old: usize| put(old, &[Root::VOID; BLOCK]);
    let others = (0..ROOT_SLOTS).filter(|old| old != slot);
    let steps = [vec![put(*slot, &root.encode(*slot))], vec![Op::Flush], others.map(void).collect(), vec![Op::Flush]];
    for step in steps {
        let until = Instant::now() + deadline;
        let asked: Vec<Ticket> = step.into_iter().map(|op| backing.submit(op)).collect();
        for ticket in asked {
            answered(&ticket, until, wanted)?;
        }
    }
    Ok(())
}

/// Wait for the answer until then, and look now and then whether it is still wanted.
fn answered(ticket: &Ticket, until: Instant, wanted: &mut dyn FnMut() -> bool) -> Result<(), String> {
    loop {
        let now = Instant::now();
        match ticket.wait(Some(until.min(now + LOOK))) {
            Some(result) => return result.map(drop).map_err(|error| error.to_string()),
            None if ticket.is_frozen() || now >= until => return Err("it does not answer".into()),
            None if !wanted() => return Err("stopped".into()),
            None => {}
        }
    }
}

/// Whether it is the one, and what it holds.
fn may_return(store: &Store, slot: usize, name: &ReplicaName, found: &Found) -> Result<Txg, StoreError> {
    let path = &name.path;
    let ours = store.label();
    if found.label.volume != ours.volume || found.label.geometry != ours.geometry {
        return Err(refused(format!("{path}: is a replica of another volume ({})", found.label.volume)));
    }
    let root = store.durable_root();
    let since = holds_until(&root, name.uuid, &found.roots).map_err(|why| refused(format!("{path}: {why}")))?;
    if root.members[slot].replica != name.uuid {
        return Err(refused(format!("{path}: is another replica of this volume")));
    }
    nothing_hangs(store, name)?;
    Ok(since)
}

impl Resync<'_> {
    /// Copy and prove what was missed; gives rounds, blocks missed, blocks sampled.
    pub(super) fn catch_up(&mut self) -> Result<(u64, u64, u64), String> {
        // Growth that began without it must stand in the bitmaps that are about to be committed.
        self.store.allocator().settle_growth();
        self.store.commit(Force::Always).map_err(|error| error.to_string())?;
        let sampled = if self.since > 0 { self.sample()? } else { 0 };
        let (missed, changed) = self.send_metadata()?;
        let changed: Vec<u64> = match self.since {
            0 => (0..self.store.label().geometry.zones).collect(),
            _ => changed.into_iter().collect(),
        };
        self.give_back(&changed)?;
        self.allocate(changed.into_iter())?;
        // What cannot be read there might hold something, were it alone.
        let spare = self.store.prove_spare(&[self.slot], true);
        self.fixed(spare)?;
        Ok((self.copy_and_prove()?, missed, sampled))
    }

    /// What the others gave back while it was away, it gives back now; before it is asked for more.
    fn give_back(&mut self, zones: &[u64]) -> Result<(), String> {
        self.what = "giving back";
        let store = self.store;
        for zone in zones {
            if let Err(error) = store.allocator().punch_unbacked(store.mirror(), self.slot, *zone) {
                ::log::warn!("{}: space in zone {zone} is not given back: {error}", self.path);
            }
            if self.pause().is_break() {
                return Err(self.failure.take().unwrap_or_else(|| "stopped".into()));
            }
        }
        Ok(())
    }

    /// Prove some of what it is taken to hold. If something is not there, believe nothing.
    fn sample(&mut self) -> Result<u64, String> {
        let (mirror, slot) = (self.store.mirror(), self.slot);
        let mut seen: BTreeSet<Addr> = BTreeSet::new();
        let mut missing = 0;
        let mut unknown = None;
        // One copier: it is simulated.
        let ways = if self.copiers == 1 { SAMPLE_WAYS_SIMULATED } else { SAMPLE_WAYS };
        self.what = "proving a sample";
        let store = self.store;
        let mut show = |piece: &Piece| {
            if unknown.is_some() || !seen.insert(piece.addr) {
                return;
            }
            for proof in mirror.prove(slot, piece.addr, &piece.sums, false) {
                match proof {
                    Proof::Correct => {}
                    Proof::Unproven(why) => unknown = Some(why),
                    _ => missing += 1,
                }
            }
        };
        if store.sample(self.since, ways, &mut show, &mut || self.pause()).is_break() {
            return Err(self.failure.take().unwrap_or_else(|| "stopped".into()));
        }
        if let Some(why) = unknown {
            return Err(why);
        }
        if missing > 0 {
            let of = seen.len();
            ::log::warn!("{}: {missing} of {of} blocks that it must hold are not there: all are compared", self.path);
            self.since = 0;
            // Were this return cut, the next one's sample might have more luck.
            self.store.note_synced(slot, 0).map_err(|error| error.to_string())?;
        }
        Ok(seen.len() as u64)
    }

    /// Send the metadata, before any file's data: what all else hangs on is held once no longer than it must be. With it
    /// comes how much is to be sent, and which zones have changed.
    fn send_metadata(&mut self) -> Result<(u64, BTreeSet<u64>), String> {
        self.what = "copying metadata";
        self.tally = Tally::default();
        let (store, since) = (self.store, self.since);
        let mut missed = Missed { resync: self, blocks: 0, zones: BTreeSet::new() };
        let ended = store.walk_since(since, &mut missed);
        let (blocks, zones) = (missed.blocks, missed.zones);
        if ended.is_break() {
            return Err(self.failure.take().unwrap_or_else(|| "stopped".into()));
        }
        self.total = blocks;
        Ok((blocks, zones))
    }

    pub(super) fn return_report(self, rounds: u64, missed: u64, sampled: u64) -> ReturnReport {
        let (proven, copied, lost) = (self.tally.correct, self.copied, self.lost.len() as u64);
        let what = if self.since == 0 { "blocks" } else { "blocks that it missed are" };
        let mut summary = format!("{proven} of {proven} {what} present and correct on {}", self.path);
        if lost > 0 {
            summary += &format!("; {lost} more are lost on every replica");
        }
        ReturnReport {
            summary,
            path: self.path.clone(),
            since_group: self.since,
            blocks_missed: missed,
            blocks_copied: copied,
            bytes_copied: copied * BLOCK as u64,
            blocks_proven: proven,
            sampled,
            rounds,
            lost,
            lost_paths: self.lost_paths(),
        }
    }
}

/// Counts what a walk shows, and sends what is metadata.
struct Missed<'a, 'b> {
    resync: &'a mut Resync<'b>,
    blocks: u64,
    /// Zones whose bitmaps have changed.
    zones: BTreeSet<u64>,
}

impl Sink for Missed<'_, '_> {
    fn pieces(&mut self, pieces: &[Piece]) -> ControlFlow<()> {
        let geometry = &self.resync.store.label().geometry;
        for piece in pieces {
            self.blocks += piece.sums.len() as u64;
            if piece.part == Part::Bitmap {
                self.zones.insert((piece.addr - geometry.zones_at) / u64::from(geometry.zone_blocks));
            }
        }
        // A call shows data or metadata.
        if pieces.iter().all(|piece| piece.part != Part::Data) {
            self.resync.pieces(pieces)?;
        }
        ControlFlow::Continue(())
    }
    // The walk that copies the rest comes by again.
    fn unreadable(&mut self, _: Part, _: Addr, _: u64, _: &StoreError) {}
    fn pause(&mut self) -> ControlFlow<()> {
        self.resync.pause()
    }
}

#[cfg(test)]
mod tests;
