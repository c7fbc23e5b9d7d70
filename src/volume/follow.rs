//! Follow: bring a warm or cold replica to a newer state of the volume, without making it one that is in sync.
//!
//! *Guarantees*: nobody waits for its disk, but a commit may for [`HELD_SHARE`] of the deadline, once, for a few blocks. Its new root is
//! written after everything that it reaches was flushed on it, read from its medium and proven; before that its last root
//! stays. While it is less than the window of retained roots behind, nothing that its last root reaches is written over
//! (but bitmaps, which fsck makes anew), so that cut at any write it holds the old state or the new one. If it is further behind, blocks
//! may be missing from the old state, and are known to be. What was written apart is refused, and nothing on it is changed.
//! *Assumes*: the backing is open and locked. *Fails when*: its disk fails or is too slow; it keeps its last root.
//! *Order*: identity and history → commit → rounds of copy, flush, proof, until little is left → with commits held: copy, space below,
//! flush, proof, root, flush → the others' root says how far it is. *Not here*: when (`daemon`), roles (`super::away`).
//!
//! **Why it holds a whole state.** A round shows every block that was in use when it began, is still in use when it ends, and was born
//! after the round before began. The last round is walked while no commit can begin, so it ends with exactly what the newest durable root
//! reaches: each such block was there already (`replace::back`), or was born later and shown.

use super::Volume;
use super::away::Opened;
use super::pace::Pace;
use super::replace::back::holds_until;
use super::replace::backed_runs;
use crate::control::Progress;
use crate::disk::backing::{Backing, Done, Op};
use crate::disk::buffer::{Buf, Slice};
use crate::format::geometry::ROOT_SLOTS;
use crate::format::{Addr, BLOCK, MemberState, Role, Root, Txg, Uuid};
use crate::store::commit::Force;
use crate::store::recover::Found;
use crate::store::walk::{Part, Piece, Sink};
use crate::store::{Store, StoreError};
use crate::sync::Instant;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::ops::ControlFlow;

/// Rounds until it is told that it cannot keep up.
const ROUNDS_MAX: u32 = 8;
/// Blocks that are copied while commits are held: 4 MiB.
const HELD_BLOCKS: u64 = 1024;
/// Share of the deadline for which commits are held.
const HELD_SHARE: f64 = 0.25;

/// What a follow did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowReport {
    /// One line.
    pub summary: String,
    /// Path of the replica.
    pub path: String,
    /// Group of the state that it holds now.
    pub group: u64,
    /// It held everything up to this group; 0: everything was compared.
    pub since_group: u64,
    /// Blocks written to it.
    pub blocks_copied: u64,
    /// The same in bytes.
    pub bytes_copied: u64,
    /// Blocks read from its medium and proven.
    pub blocks_proven: u64,
    /// Blocks that no replica in sync has.
    pub lost: u64,
}

/// The state that a follow left on a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Followed {
    /// Version of its root.
    pub version: u64,
    /// Its group.
    pub txg: Txg,
}

/// What a walk does with what it is shown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Write it.
    Copy,
    /// Read it from the medium, and write what is not there.
    Prove,
    /// Write it and remember it, while commits wait.
    Held,
}

struct Follow<'a> {
    store: &'a Store,
    backing: &'a dyn Backing,
    progress: &'a mut dyn FnMut(&Progress) -> bool,
    pace: Pace,
    mode: Mode,
    /// Until when commits may be held.
    until: Option<Instant>,
    /// Written while commits are held.
    held: Vec<Piece>,
    held_blocks: u64,
    /// Zones whose bitmaps have changed.
    zones: BTreeSet<u64>,
    round: u64,
    copied: u64,
    proven: u64,
    lost: BTreeSet<Addr>,
    failure: Option<String>,
}

/// Bring the replica in `slot`, which is warm or cold and open as `backing`, to the newest state. `last`: what the last follow left on it,
/// if this process made it.
///
/// # Errors
/// It is not the one, was written apart, failed or is too slow; its last root stays.
pub fn follow(
    store: &Store,
    slot: usize,
    (path, backing, found): (&str, &dyn Backing, &Found),
    last: Option<Followed>,
    progress: &mut dyn FnMut(&Progress) -> bool,
) -> Result<(FollowReport, Followed), StoreError> {
    let refused = |why: String| StoreError::Refused(format!("{path}: {why}"));
    store.declare()?;
    let since = may_follow(store, slot, found, last).map_err(refused)?;
    store.commit(Force::IfChanged)?;
    let mut follow = Follow {
        store,
        backing,
        progress,
        pace: Pace::new(store.mirror(), slot, store.options().resync_rate),
        mode: Mode::Copy,
        until: None,
        held: Vec::new(),
        held_blocks: 0,
        zones: BTreeSet::new(),
        round: 0,
        copied: 0,
        proven: 0,
        lost: BTreeSet::new(),
        failure: None,
    };
    let newest = found.roots.first().map(|(slot, own)| (*slot, own.version));
    let now = match last.filter(|last| Some(last.version) == newest.map(|(_, version)| version)) {
        Some(last) if last.txg == store.durable_root().txg => last,
        _ => follow.catch_up(since, newest.map(|(slot, _)| slot)).map_err(refused)?,
    };
    store.note_followed(slot, found.label.replica, (now.txg, now.version))?;
    let (copied, proven, lost) = (follow.copied, follow.proven, follow.lost.len() as u64);
    let mut summary = format!("{path} holds the state of group {}; {copied} blocks were sent", now.txg);
    if lost > 0 {
        summary += &format!("; {lost} are lost on every replica");
    }
    let report = FollowReport {
        summary,
        path: path.to_owned(),
        group: now.txg,
        since_group: since,
        blocks_copied: copied,
        bytes_copied: copied * BLOCK as u64,
        blocks_proven: proven,
        lost,
    };
    Ok((report, now))
}

/// Whether it is the one, and up to which group it holds everything.
fn may_follow(store: &Store, slot: usize, found: &Found, last: Option<Followed>) -> Result<Txg, String> {
    let (ours, root) = (store.label(), store.durable_root());
    if found.label.volume != ours.volume || found.label.geometry != ours.geometry {
        return Err(format!("is a replica of another volume ({})", found.label.volume));
    }
    let member = root.members.get(slot).filter(|member| member.replica == found.label.replica);
    let Some(member) = member else { return Err("is another replica of this volume".into()) };
    if member.role == Role::Hot || member.state != MemberState::Out {
        return Err("is hot: it does not follow".into());
    }
    let since = holds_until(&root, member.replica, &found.roots)?;
    let is_last = |last: &Followed| found.roots.first().is_some_and(|(_, own)| own.version == last.version);
    Ok(last.filter(is_last).map_or(since, |last| last.txg.max(since)))
}

impl Follow<'_> {
    /// Rounds, then the last one with commits held. `newest`: slot of its own newest root.
    fn catch_up(&mut self, since: Txg, newest: Option<usize>) -> Result<Followed, String> {
        let mut from = since;
        for _ in 0..ROUNDS_MAX {
            let at = self.store.durable_root().txg;
            self.round = 0;
            // Of one of which nothing is known much may be there.
            if from > 0 {
                self.walk(Mode::Copy, from)?;
                self.ask(Op::Flush)?;
            }
            self.walk(Mode::Prove, from)?;
            self.ask(Op::Flush)?;
            from = at;
            if self.round > HELD_BLOCKS / 2 {
                continue;
            }
            self.store.allocator().settle_growth();
            self.allocate()?;
            if let Some(now) = self.hold_commits(from, newest)? {
                return Ok(now);
            }
        }
        Err("the volume changes faster than it can follow; it is tried again".into())
    }

    fn walk(&mut self, mode: Mode, from: Txg) -> Result<(), String> {
        self.mode = mode;
        let ended = self.store.walk_since(from, self);
        match self.failure.take() {
            Some(failure) => Err(failure),
            None if ended.is_break() => Err("stopped".into()),
            None => Ok(()),
        }
    }

    /// The last round. Nothing: more is left than commits may wait for.
    fn hold_commits(&mut self, from: Txg, newest: Option<usize>) -> Result<Option<Followed>, String> {
        self.mode = Mode::Held;
        (self.held_blocks, self.until) = (0, Some(Instant::now() + self.store.mirror().deadline().mul_f64(HELD_SHARE)));
        self.held.clear();
        let store = self.store;
        let ended = store.walk_held(from, self, |follow, slot, root| follow.finish(newest, slot, root));
        self.until = None;
        match (ended, self.failure.take()) {
            (ControlFlow::Continue(finished), None) => finished.map(Some),
            (_, Some(failure)) => Err(failure),
            (ControlFlow::Break(()), None) => Ok(None),
        }
    }

    /// Everything that `root` reaches was written: prove what is not proven yet, and write the root.
    fn finish(&mut self, newest: Option<usize>, slot: usize, root: &Root) -> Result<Followed, String> {
        self.allocate()?;
        self.ask(Op::Flush)?;
        for piece in std::mem::take(&mut self.held) {
            let read = self.read_medium(piece.addr, piece.sums.len())?;
            let is_there = |i: usize| {
                let at = piece.addr + i as u64;
                self.lost.contains(&at) || self.store.mirror().seed().checksum(at, read.block(i)) == piece.sums[i]
            };
            if let Some(missing) = (0..piece.sums.len()).find(|i| !is_there(*i)) {
                return Err(format!("block {} was written, and is not on it", piece.addr + missing as u64));
            }
            self.proven += piece.sums.len() as u64;
        }
        // Its last root stays until this one stands.
        let slot = if Some(slot) == newest { (slot + 1) % ROOT_SLOTS } else { slot };
        let bytes = root.encode(slot);
        self.ask(Op::Write { addr: Root::addr(slot), data: vec![Slice::whole(Buf::from_slice(&bytes))] })?;
        self.ask(Op::Flush)?;
        if self.read_medium(Root::addr(slot), 1)?[..] != bytes[..] {
            return Err("its new root was written, and is not on it".into());
        }
        Ok(Followed { version: root.version, txg: root.txg })
    }

    /// Space below for everything in the zones that have changed.
    fn allocate(&mut self) -> Result<(), String> {
        let zones = std::mem::take(&mut self.zones);
        let store = self.store;
        backed_runs(store, zones.into_iter(), |addr, blocks| {
            self.ask(Op::Allocate { addr, blocks }).map(drop).map_err(|why| format!("no space there: {why}"))
        })
    }

    /// One request; waits for the deadline, or as long as commits may be held.
    fn ask(&self, op: Op) -> Result<Done, String> {
        let until = self.until.unwrap_or_else(|| Instant::now() + self.store.mirror().deadline());
        match self.backing.submit(op).wait(Some(until)) {
            Some(done) => done.map_err(|error| error.to_string()),
            None => Err("does not answer in time".into()),
        }
    }

    fn read_medium(&self, addr: Addr, blocks: usize) -> Result<Buf, String> {
        match self.ask(Op::ReadMedium { addr, blocks: blocks as u32 })? {
            Done::Data(buf) if buf.len() == blocks * BLOCK => Ok(buf),
            _ => Err(format!("a read of block {addr} was answered by something else")),
        }
    }

    fn write(&mut self, addr: Addr, sums: &[u64]) -> Result<(), String> {
        let mirror = self.store.mirror();
        self.pace.announce();
        match mirror.read(addr, sums) {
            Ok(buf) => {
                self.ask(Op::Write { addr, data: vec![Slice::whole(buf)] })?;
                (self.copied, self.round) = (self.copied + sums.len() as u64, self.round + sums.len() as u64);
                Ok(())
            }
            // The others of them are not lost.
            Err(_) if sums.len() > 1 => (0..sums.len()).try_for_each(|i| self.write(addr + i as u64, &sums[i..=i])),
            Err(error) => {
                if self.lost.insert(addr) {
                    ::log::error!("block {addr} is not sent: {error}");
                }
                Ok(())
            }
        }
    }

    fn prove(&mut self, piece: &Piece) -> Result<(), String> {
        let seed = self.store.mirror().seed();
        let holds = |read: &Buf, i: usize| seed.checksum(piece.addr + i as u64, read.block(i)) == piece.sums[i];
        // A sector that cannot be read is written, and read again.
        let read = self.read_medium(piece.addr, piece.sums.len()).ok();
        let missing: Vec<usize> =
            (0..piece.sums.len()).filter(|i| !read.as_ref().is_some_and(|read| holds(read, *i))).collect();
        for run in missing.chunk_by(|a, b| a + 1 == *b) {
            let (first, last) = (run[0], run[run.len() - 1]);
            self.write(piece.addr + first as u64, &piece.sums[first..=last])?;
        }
        if !missing.is_empty() {
            let read = self.read_medium(piece.addr, piece.sums.len())?;
            let bad = missing.iter().find(|i| !self.lost.contains(&(piece.addr + **i as u64)) && !holds(&read, **i));
            if let Some(bad) = bad {
                return Err(format!("block {} was written, and is not on it", piece.addr + *bad as u64));
            }
        }
        self.proven += piece.sums.len() as u64;
        Ok(())
    }

    fn take(&mut self, piece: &Piece) -> Result<ControlFlow<()>, String> {
        if piece.part == Part::Bitmap {
            let geometry = &self.store.label().geometry;
            self.zones.insert((piece.addr - geometry.zones_at) / u64::from(geometry.zone_blocks));
        }
        let (began, copied) = (Instant::now(), self.copied);
        match self.mode {
            Mode::Prove => self.prove(piece)?,
            Mode::Copy => self.write(piece.addr, &piece.sums)?,
            Mode::Held => {
                self.held_blocks += piece.sums.len() as u64;
                if self.held_blocks > HELD_BLOCKS || self.until.is_some_and(|until| Instant::now() >= until) {
                    return Ok(ControlFlow::Break(()));
                }
                self.write(piece.addr, &piece.sums)?;
                self.held.push(piece.clone());
                return Ok(ControlFlow::Continue(()));
            }
        }
        self.pace.rest(self.store.mirror(), (self.copied - copied) * BLOCK as u64, began.elapsed());
        Ok(ControlFlow::Continue(()))
    }
}

impl Sink for Follow<'_> {
    fn pieces(&mut self, pieces: &[Piece]) -> ControlFlow<()> {
        for piece in pieces {
            match self.take(piece) {
                Ok(going) => going?,
                Err(why) => {
                    self.failure = Some(why);
                    return ControlFlow::Break(());
                }
            }
        }
        ControlFlow::Continue(())
    }

    fn unreadable(&mut self, part: Part, addr: Addr, ino: u64, error: &StoreError) {
        ::log::error!("what hangs on the {} at block {addr} (inode {ino} on) is not sent: {error}", part.name());
    }

    fn pause(&mut self) -> ControlFlow<()> {
        let progress = Progress { what: "following".into(), done: self.copied + self.proven, ..Progress::default() };
        if !(self.progress)(&progress) {
            self.failure = Some("stopped".into());
            return ControlFlow::Break(());
        }
        let owed = self.pace.owed();
        if !owed.is_zero() {
            crate::sync::thread::sleep(owed);
        }
        ControlFlow::Continue(())
    }
}

/// How a warm or cold replica is doing.
#[derive(Debug, Clone)]
pub(super) struct Tracked {
    pub role: Role,
    /// What the last follow left, and the time of that state, ns since 1970.
    pub last: Option<(Followed, u64)>,
    /// Why the last one failed.
    pub failure: Option<String>,
}

impl Tracked {
    pub(super) fn new(role: Role) -> Tracked {
        Tracked { role, last: None, failure: None }
    }
}

impl Volume {
    /// Bring a warm or cold replica, whose place answers, to the newest state.
    ///
    /// # Errors
    /// As [`follow`].
    pub fn follow(
        &self,
        opened: Opened,
        progress: &mut dyn FnMut(&Progress) -> bool,
    ) -> Result<FollowReport, StoreError> {
        let _one = self.following.lock();
        let replica = opened.found.label.replica;
        let last = self.roles.lock().get(&replica).and_then(|tracked| tracked.last);
        let began_ns = u64::try_from(self.store.world().now_ns()).unwrap_or(0);
        let slot = opened.slot;
        let mut progress =
            |told: &Progress| self.role(replica) != Role::Hot && !self.is_sent_away(slot) && progress(told);
        let place = (&opened.path[..], &*opened.backing, &opened.found);
        let done = follow(&self.store, opened.slot, place, last.map(|(last, _)| last), &mut progress);
        opened.close();
        if let Some(tracked) = self.roles.lock().get_mut(&replica) {
            match &done {
                Ok((_, now)) => (tracked.last, tracked.failure) = (Some((*now, began_ns)), None),
                Err(why) => tracked.failure = Some(why.to_string()),
            }
        }
        done.map(|(report, _)| report)
    }

    /// One that follows could not be opened.
    pub fn note_unfollowed(&self, replica: Uuid, why: &str) {
        if let Some(tracked) = self.roles.lock().get_mut(&replica) {
            tracked.failure = Some(why.to_owned());
        }
    }

    /// How the replica with this identity is kept.
    pub fn role(&self, replica: Uuid) -> Role {
        self.roles.lock().get(&replica).map_or(Role::Hot, |tracked| tracked.role)
    }

    /// How far a warm or cold replica is behind, ms; nothing: it is not known yet.
    pub(super) fn lag_ms(&self, replica: Uuid) -> Option<u64> {
        let (last, time_ns) = self.roles.lock().get(&replica)?.last?;
        let view = self.store.view();
        if view.committed.root.txg == last.txg && view.current.is_empty() {
            return Some(0);
        }
        let now = u64::try_from(self.store.world().now_ns()).unwrap_or(0);
        Some(now.saturating_sub(time_ns) / 1_000_000)
    }
}

#[cfg(test)]
mod tests;
