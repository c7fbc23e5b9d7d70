//! Replace and attach: bring an empty place, or a replica that was left behind, up to everything the volume holds, on the live mount.
//!
//! *Guarantees*: the new replica is called in sync only after every reachable block on it was read from its medium and
//! proven. Until then the others serve everything; a replica that is in sync stays so until the new one takes its place
//! in one root. Nothing is written over data that is not ours. It may be cut at any write and begun again (invariant 7).
//! *Assumes*: nobody else uses the new place. *Fails when*: the place is in use, foreign, too small or fails; then the new
//! replica is out, and what to do is said. Blocks that no replica has are listed and skipped.
//! *Order*: blank (labels and roots gone first) → returning, named so by a root → commit → space below → copy → proof, until
//! a round finds nothing missing → labels → in sync, named so by a root. The label comes last: what is cut before is no replica.
//! *Not here*: a replica that returns and is sent only what it missed (`back`), though the copying and proving is the same.
//!
//! **Why copy and new writes together are everything.** From `start_returning` (or `attach`) on, every write goes to the new
//! replica too; the mirror waits for those that began before. The commit that follows closes the group that was open then,
//! so whatever was written before stands in the tree, the dead lists or the space of the state that the walk begins with, and
//! what is written later is on the new replica. The walk shows every block that was reachable when it began and still is
//! (see `store::walk`); so when it ends, each reachable block was copied by it or born after it began. Log records that
//! replay still needs were all written after that commit.

use super::pace::Pace;
use super::scrub::blocks_in_use;
use crate::control::Progress;
use crate::disk::backing::{Backing, BackingKind, Done, Op};
use crate::disk::buffer::{Buf, Slice};
use crate::disk::{DiskError, Left, Mirror, Proof, ReplicaHealth, ReplicaName, ReplicaState};
use crate::format::geometry::{ROOT_SLOTS, SPACE_AT};
use crate::format::{Addr, BLOCK, Geometry, REPLICAS_MAX, Root, Txg};
use crate::store::commit::Force;
use crate::store::walk::fixed::FixedProof;
use crate::store::walk::{Part, Piece, Sink};
use crate::store::{Store, StoreError, check};
use crate::sync::Instant;
use crate::sync::atomic::{AtomicUsize, Ordering};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

pub mod back;
pub mod overrule;
mod place;

/// Proofs until nothing is missing.
const ROUNDS_MAX: u64 = 5;
/// Longest wait for one request to a place that is no replica yet.
const WAIT: Duration = Duration::from_secs(60);
/// Blocks of zeros written at once.
const ZEROS: u64 = 256;
/// Blocks allocated at once: 256 MiB.
const ALLOCATE_MAX: u64 = 65_536;
/// Pieces copied at the same time.
const COPIERS: usize = 3;
/// Longest wait for readers of older states, in ms.
const READERS_MS: u32 = 2000;
/// Lines about what was lost that a report holds.
const LINES_MAX: usize = 100;

/// What a replace did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplaceReport {
    /// One line.
    pub summary: String,
    /// Path of the new replica.
    pub new: String,
    /// Blocks written to it beside new writes.
    pub blocks_copied: u64,
    /// The same in bytes.
    pub bytes_copied: u64,
    /// Blocks read from its medium and proven, in the last round.
    pub blocks_proven: u64,
    /// Rounds of proof.
    pub rounds: u64,
    /// Blocks that no replica has.
    pub lost: u64,
    /// Whose they are; at most 100 lines.
    pub lost_paths: Vec<String>,
}

/// Whose place the new replica takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Of one that is out or missing.
    Free(usize),
    /// Of one that is in sync and stays so meanwhile.
    Taken(usize),
    /// Nobody's: it is attached beside the others.
    New,
}

fn refused(text: String) -> StoreError {
    StoreError::Refused(text)
}

/// One request to a backing that is no replica yet.
fn ask(backing: &dyn Backing, op: Op) -> Result<Done, String> {
    match backing.submit(op).wait(Some(Instant::now() + WAIT)) {
        Some(result) => result.map_err(|error| error.to_string()),
        None => Err(format!("no answer within {} s", WAIT.as_secs())),
    }
}

/// What was written to a place and has not come back may still land there, on what is copied now (invariant 6).
pub(crate) fn nothing_hangs(store: &Store, name: &ReplicaName) -> Result<(), StoreError> {
    let here = |health: &&ReplicaHealth| health.name.path == name.path && health.in_flight > 0;
    match store.mirror().health().iter().find(here) {
        None => Ok(()),
        Some(old) => Err(hanging(old)),
    }
}

/// Said where there is no slot for one more.
pub(in crate::volume) fn full_up() -> String {
    format!("the volume has {REPLICAS_MAX} replicas and can have no more: replace one, or detach one first")
}

fn hanging(old: &ReplicaHealth) -> StoreError {
    refused(format!(
        "{}: {} requests to it have not come back; what hangs there could still overwrite what is copied now. \
         Wait until the disk answers or is gone, or choose another place",
        old.name.path, old.in_flight
    ))
}

/// Make sure that nothing on the place passes for a replica, a root or a record.
fn blank(backing: &dyn Backing, geometry: &Geometry) -> Result<(), String> {
    let facts = backing.facts();
    if facts.kind == BackingKind::Device && facts.blocks < geometry.blocks {
        let mib = |blocks: u64| (blocks * BLOCK as u64) >> 20;
        return Err(format!("is too small: {} MiB, the volume has {} MiB", mib(facts.blocks), mib(geometry.blocks)));
    }
    let zero = |from: Addr, end: Addr| {
        let mut at = from;
        while at < end {
            let blocks = ZEROS.min(end - at);
            let data = vec![Slice::whole(Buf::zeroed(blocks as usize * BLOCK))];
            ask(backing, Op::Write { addr: at, data })?;
            at += blocks;
        }
        ask(backing, Op::Flush).map(drop)
    };
    zero(0, SPACE_AT)?;
    ask(backing, Op::Allocate { addr: 0, blocks: geometry.front_blocks() })?;
    zero(geometry.log_at, geometry.log_at + u64::from(geometry.log_blocks))
}

/// Bring `backing` up to everything in `store`, and make it the replica in `place`.
///
/// # Errors
/// The new replica failed on the way, or `progress` said no: it is none, and the others are as they were.
pub fn resync(
    store: &Store,
    place: Place,
    name: ReplicaName,
    backing: Arc<dyn Backing>,
    progress: &mut dyn FnMut(&Progress) -> bool,
) -> Result<ReplaceReport, StoreError> {
    let path = name.path.clone();
    if let Err(refusal) = nothing_hangs(store, &name) {
        backing.close();
        return Err(refusal);
    }
    // What is blanked now must be called out by a durable root (invariant 4).
    if let Err(error) = store.declare() {
        backing.close();
        return Err(error);
    }
    if place == Place::New && !store.has_free_slot() {
        backing.close();
        return Err(refused(full_up()));
    }
    if let Err(why) = blank(&*backing, &store.label().geometry) {
        backing.close();
        return Err(refused(format!("{path}: {why}")));
    }
    let slot = match place {
        Place::Free(slot) => {
            store.change_members(|mirror| mirror.start_returning(slot, name, backing))?;
            slot
        }
        Place::Taken(_) | Place::New => store.mirror().attach(name, backing),
    };
    let mut resync = Resync::new(store, slot, path, progress);
    let done = resync.bring_up().and_then(|rounds| resync.join(place).map(|now| (rounds, now)));
    let (report, now) = match done {
        Ok((rounds, now)) => (resync.report(rounds), now),
        Err(why) => return Err(give_up(store, place, resync.slot, &resync.path, &why)),
    };
    stays_in(store, now, &report.new)?;
    Ok(report)
}

/// Look once more at one that has just been called in sync.
fn stays_in(store: &Store, slot: usize, path: &str) -> Result<(), StoreError> {
    store.verify_root();
    if store.mirror().members().contains(slot) {
        return Ok(());
    }
    // A disk that loses even the root that calls it in sync.
    let why = store.mirror().health().get(slot).map(|health| health.cause.clone()).unwrap_or_default();
    Err(refused(format!("{path}: {why}: it is out again; choose another place")))
}

/// The new replica is not to be: nothing else is affected.
fn give_up(store: &Store, place: Place, slot: usize, path: &str, why: &str) -> StoreError {
    let apart = match place {
        Place::Free(_) => {
            // Who looks for those that had no room looks at the beginning.
            let full = if why.starts_with(crate::volume::away::FULL) { "full: " } else { "" };
            store.mirror().set_out(slot, &format!("{full}its resync was not finished: {why}"));
            store.mirror().release(slot);
            true
        }
        // No commit names the replicas while the slot goes.
        Place::Taken(_) => store.with_commits_held(|_| store.mirror().detach(slot)),
        // A root may name it already: a cut then leaves a member that returns by itself. Here it is none again.
        Place::New => store.with_commits_held(|_| match store.is_member(slot) {
            true => {
                store.mirror().set_out(slot, why);
                matches!(store.detach(slot, "its attach was not finished"), Ok(Left::Gone(_)))
            }
            false => store.mirror().detach(slot),
        }),
    };
    if let Err(error) = store.declare_members() {
        store.fail(&error);
    }
    if place == Place::New && apart {
        return refused(format!(
            "{path}: {why}. It is not a replica; the others are as they were: mend it or choose another place, and attach again"
        ));
    }
    if !apart {
        return refused(format!("{path}: {why}, when it had just taken its place: it is out; replace it"));
    }
    refused(format!(
        "{path}: {why}. It is not a replica; the others are as they were: mend it or choose another place, and replace again"
    ))
}

/// The newest root on a replica that is none any more, so that it says so of itself; not over the root in slot `but`.
pub(in crate::volume) fn tell(store: &Store, old: &dyn Backing, but: Option<usize>) -> Result<(), String> {
    let (slot, root) = store.newest_root();
    let slot = if but == Some(slot) { (slot + 1) % ROOT_SLOTS } else { slot };
    let data = vec![Slice::whole(Buf::from_slice(&root.encode(slot)))];
    ask(old, Op::Write { addr: Root::addr(slot), data }).and_then(|_| ask(old, Op::Flush)).map(drop)
}

/// What came of the blocks of one piece, or of a whole walk.
#[derive(Default)]
struct Tally {
    correct: u64,
    copied: u64,
    missing: u64,
    lost: Vec<Addr>,
    failure: Option<String>,
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.correct += other.correct;
        self.copied += other.copied;
        self.missing += other.missing;
        self.failure = self.failure.take().or(other.failure);
    }
}

struct Resync<'a> {
    store: &'a Store,
    slot: usize,
    path: String,
    copiers: usize,
    progress: &'a mut dyn FnMut(&Progress) -> bool,
    what: &'static str,
    /// What was born in this group or before is on it already.
    since: Txg,
    total: u64,
    /// Of the walk under way.
    tally: Tally,
    /// In all walks.
    copied: u64,
    lost: BTreeMap<Addr, (Part, u64)>,
    failure: Option<String>,
    pace: Pace,
}

impl<'a> Resync<'a> {
    fn new(store: &'a Store, slot: usize, path: String, progress: &'a mut dyn FnMut(&Progress) -> bool) -> Resync<'a> {
        let backing = store.mirror().backing(slot);
        let simulated = backing.is_some_and(|backing| backing.facts().kind == BackingKind::Simulated);
        Resync {
            store,
            slot,
            path,
            copiers: if simulated { 1 } else { COPIERS },
            progress,
            what: "copying",
            since: 0,
            total: blocks_in_use(store),
            tally: Tally::default(),
            copied: 0,
            lost: BTreeMap::new(),
            failure: None,
            pace: Pace::new(store.mirror(), slot, store.options().resync_rate),
        }
    }

    fn mirror(&self) -> &Mirror {
        self.store.mirror()
    }

    /// Whether it is to go on; says how far it is.
    fn look_up(&mut self) -> ControlFlow<()> {
        let state = self.mirror().health().get(self.slot).map(|h| h.state);
        if state != Some(ReplicaState::Returning) {
            self.failure = Some(self.why_out());
            return ControlFlow::Break(());
        }
        let progress = Progress {
            what: self.what.into(),
            done: (self.tally.correct + self.tally.copied + self.tally.missing).min(self.total.max(1)),
            total: self.total.max(1),
            damaged: self.tally.missing,
            healed: self.tally.missing,
        };
        if !(self.progress)(&progress) {
            self.failure = Some("stopped".into());
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    /// Copy and prove; returns the rounds that it took.
    fn bring_up(&mut self) -> Result<u64, String> {
        self.store.commit(Force::Always).map_err(|error| error.to_string())?;
        self.allocate(0..self.store.label().geometry.zones)?;
        self.copy_and_prove()
    }

    fn copy_and_prove(&mut self) -> Result<u64, String> {
        self.walk("copying")?;
        for round in 1..=ROUNDS_MAX {
            self.mirror().flush_raw(self.slot).map_err(|error| error.to_string())?;
            self.walk("proving")?;
            let logged = self.store.prove_log(&[self.slot], true);
            self.fixed(logged)?;
            let (proven, missing) = (self.tally.correct, self.tally.missing);
            ::log::info!("replace {}: {proven} of {} blocks present and correct", self.path, proven + missing);
            if missing == 0 {
                self.let_readers_go()?;
                return Ok(round);
            }
        }
        Err(format!("blocks are still missing after {ROUNDS_MAX} rounds of repair"))
    }

    /// A reader that holds an older state may want blocks that are not reachable any more, and were not copied: it would
    /// have them once only. It is waited for, but not for ever.
    fn let_readers_go(&mut self) -> Result<(), String> {
        let newest = self.store.durable_root().txg;
        self.what = "waiting for readers";
        let simulated = self.copiers == 1;
        for _ in 0..if simulated { 3 } else { READERS_MS } {
            if self.store.oldest_held() >= newest {
                return Ok(());
            }
            if self.pause().is_break() {
                return Err(self.failure.take().unwrap_or_else(|| "stopped".into()));
            }
            if !simulated {
                crate::sync::thread::sleep(Duration::from_millis(1));
            }
        }
        ::log::warn!("replace {}: a reader has held an old state for {READERS_MS} ms; it is left behind", self.path);
        Ok(())
    }

    fn walk(&mut self, what: &'static str) -> Result<(), String> {
        self.what = what;
        self.tally = Tally::default();
        let store = self.store;
        let ended = store.walk_since(self.since, self);
        match self.failure.take() {
            Some(failure) => Err(failure),
            None if ended.is_break() => Err("stopped".into()),
            None => Ok(()),
        }
    }

    /// Space below for everything in `zones` that has it on the others.
    fn allocate(&mut self, zones: impl Iterator<Item = u64>) -> Result<(), String> {
        let store = self.store;
        store.allocator().settle_growth();
        backed_runs(store, zones, |addr, blocks| self.allocate_run((addr, blocks)))
    }

    fn allocate_run(&mut self, (addr, blocks): (Addr, u64)) -> Result<(), String> {
        let Some(backing) = self.mirror().backing(self.slot) else { return Err("went away".into()) };
        ask(&*backing, Op::Allocate { addr, blocks })
            .map_err(|why| format!("full: no space for the replica there: {why}"))?;
        self.what = "allocating";
        if self.pause().is_break() {
            return Err(self.failure.take().unwrap_or_else(|| "stopped".into()));
        }
        Ok(())
    }

    fn fixed(&mut self, proofs: Vec<FixedProof>) -> Result<(), String> {
        for one in proofs {
            match one.proof {
                Proof::Correct => {}
                Proof::Healed(_) => self.copied += 1,
                // Only a record can be: the next commit covers it.
                Proof::Lost(_) => {}
                Proof::Damaged(damage) => {
                    return Err(format!("the {} at block {} {damage}", one.part.name(), one.addr));
                }
                Proof::Unproven(why) => return Err(why),
            }
        }
        Ok(())
    }

    /// Labels, and the root that calls it in sync. Gives its slot.
    fn join(&mut self, place: Place) -> Result<usize, String> {
        let store = self.store;
        let slot = self.slot;
        let old = store.with_commits_held(|_| {
            let say = |error: StoreError| error.to_string();
            self.fixed(store.prove_roots(&[slot], true))?;
            self.fixed(store.prove_labels(&[slot], true))?;
            self.mirror().flush_raw(slot).map_err(|error| error.to_string())?;
            match place {
                Place::Free(_) => {
                    store.change_members(|mirror| mirror.join(slot)).map_err(say)?;
                    Ok(None)
                }
                Place::Taken(old) => {
                    let taken = store.change_members(|mirror| mirror.take_over(slot, old));
                    taken.map_err(say)?.ok_or_else(|| self.why_out())
                }
                Place::New => {
                    let named = store.name_attached(slot).map_err(say)?.ok_or_else(|| self.why_out())?;
                    self.slot = named;
                    store.change_members(|mirror| mirror.join(named)).map_err(say)?;
                    Ok(None)
                }
            }
        })?;
        let now = if let Place::Taken(old) = place { old } else { self.slot };
        if !self.mirror().members().contains(now) {
            return Err(self.why_out());
        }
        if let Some(old) = old {
            if let Err(why) = tell(self.store, &*old, None) {
                ::log::warn!("the replica that was replaced could not be told: {why}");
            }
            old.close();
        }
        Ok(now)
    }

    fn why_out(&self) -> String {
        let health = self.mirror().health();
        let cause = health.get(self.slot).map(|h| h.cause.clone()).unwrap_or_default();
        if cause.is_empty() { "it went out".into() } else { cause }
    }

    /// Whose the lost blocks are.
    fn lost_paths(&self) -> Vec<String> {
        let mut paths: BTreeMap<u64, Option<String>> = BTreeMap::new();
        let line = |(addr, (part, ino)): (&Addr, &(Part, u64))| {
            let path = paths.entry(*ino).or_insert_with(|| check::path_of(self.store, *ino));
            let owner = path.clone().unwrap_or_else(|| format!("inode {ino}"));
            format!("{owner}: {} at block {addr}", part.name())
        };
        self.lost.iter().take(LINES_MAX).map(line).collect()
    }

    fn report(self, rounds: u64) -> ReplaceReport {
        let lost_paths = self.lost_paths();
        let (lost, proven, copied) = (self.lost.len(), self.tally.correct, self.copied);
        let mut summary = format!("{proven} of {proven} blocks present and correct on {}", self.path);
        if lost > 0 {
            summary += &format!("; {lost} more are lost on every replica");
        }
        ReplaceReport {
            summary,
            new: self.path,
            blocks_copied: copied,
            bytes_copied: copied * BLOCK as u64,
            blocks_proven: proven,
            rounds,
            lost: lost as u64,
            lost_paths,
        }
    }
}

/// Show each run of blocks in `zones` that has space below.
pub(super) fn backed_runs(
    store: &Store,
    zones: impl Iterator<Item = u64>,
    mut show: impl FnMut(Addr, u64) -> Result<(), String>,
) -> Result<(), String> {
    let (space, geometry) = (store.allocator(), &store.label().geometry);
    let mut run = (0, 0);
    for zone in zones {
        // A bitmap that is lost does not stop the rest; writes will allocate.
        let units = space.backed_units(store.mirror(), zone).unwrap_or(0);
        let len = geometry.zone_len(zone);
        for unit in (0..len.div_ceil(geometry.unit_blocks())).filter(|unit| units >> unit & 1 == 1) {
            let from = unit * geometry.unit_blocks();
            let addr = geometry.zone_at(zone) + u64::from(from);
            let blocks = u64::from(geometry.unit_blocks().min(len - from));
            if run.1 > 0 && (run.0 + run.1 != addr || run.1 >= ALLOCATE_MAX) {
                show(run.0, run.1)?;
                run.1 = 0;
            }
            run = if run.1 == 0 { (addr, blocks) } else { (run.0, run.1 + blocks) };
        }
    }
    if run.1 > 0 { show(run.0, run.1) } else { Ok(()) }
}

/// Copy what the new replica lacks of `piece`. Written runs are proven by the walk that follows.
fn copy(mirror: &Mirror, slot: usize, piece: &Piece, pace: &Pace) -> Tally {
    let mut tally = Tally::default();
    let seed = mirror.seed();
    let have = mirror.read_raw(slot, piece.addr, piece.sums.len() as u32).ok();
    let holds = |i: usize| {
        let at = piece.addr + i as u64;
        have.as_ref().is_some_and(|buf| seed.checksum(at, &buf[i * BLOCK..(i + 1) * BLOCK]) == piece.sums[i])
    };
    let mut at = 0;
    while at < piece.sums.len() {
        if holds(at) {
            tally.correct += 1;
            at += 1;
            continue;
        }
        let end = (at + 1..piece.sums.len()).find(|i| holds(*i)).unwrap_or(piece.sums.len());
        let addr = piece.addr + at as u64;
        let sums = &piece.sums[at..end];
        at = end;
        pace.announce();
        match mirror.read(addr, sums) {
            Ok(buf) => match mirror.write_raw(slot, addr, Slice::whole(buf)) {
                Ok(()) => tally.copied += sums.len() as u64,
                Err(DiskError::Replica { detail, .. }) => tally.failure = Some(detail),
                Err(error) => tally.failure = Some(error.to_string()),
            },
            // One of them is lost: the others are not.
            Err(_) => repair(mirror, slot, addr, sums, &mut tally),
        }
        if tally.failure.is_some() {
            break;
        }
    }
    tally
}

/// Block by block.
fn repair(mirror: &Mirror, slot: usize, addr: Addr, sums: &[u64], tally: &mut Tally) {
    for (i, proof) in mirror.prove(slot, addr, sums, true).into_iter().enumerate() {
        match proof {
            Proof::Correct => tally.correct += 1,
            Proof::Healed(_) => tally.copied += 1,
            Proof::Lost(_) => tally.lost.push(addr + i as u64),
            Proof::Damaged(damage) => tally.failure = Some(format!("block {} {damage}", addr + i as u64)),
            Proof::Unproven(why) => tally.failure = Some(why),
        }
    }
}

/// Read `piece` from the new replica's medium and prove it; what is missing is copied, and counted.
fn prove(mirror: &Mirror, slot: usize, piece: &Piece, _: &Pace) -> Tally {
    let mut tally = Tally::default();
    for (i, proof) in mirror.prove(slot, piece.addr, &piece.sums, false).into_iter().enumerate() {
        match proof {
            Proof::Correct => tally.correct += 1,
            Proof::Unproven(why) => tally.failure = Some(why),
            _ => {
                let mut repaired = Tally::default();
                repair(mirror, slot, piece.addr + i as u64, &piece.sums[i..=i], &mut repaired);
                tally.missing += repaired.correct + repaired.copied;
                tally.copied += repaired.copied;
                tally.lost.append(&mut repaired.lost);
                tally.failure = tally.failure.take().or(repaired.failure);
            }
        }
    }
    tally
}

impl Sink for Resync<'_> {
    fn pieces(&mut self, pieces: &[Piece]) -> ControlFlow<()> {
        let (mirror, slot) = (self.store.mirror(), self.slot);
        let copies = self.what.starts_with("copying");
        let work: fn(&Mirror, usize, &Piece, &Pace) -> Tally = if copies { copy } else { prove };
        let pace = (self.copiers > 1).then_some(&self.pace); // else it is simulated
        let next = AtomicUsize::new(0);
        let run = || {
            let mut done = Vec::new();
            while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                let begun = Instant::now();
                let tally = work(mirror, slot, piece, &self.pace);
                let failed = tally.failure.is_some();
                done.push((piece, tally));
                if failed {
                    break;
                }
                // No commit can begin while these are shown.
                let holds_commits = matches!(piece.part, Part::SpaceNode | Part::Bitmap);
                if let Some(pace) = pace.filter(|_| !holds_commits) {
                    pace.rest(mirror, (piece.sums.len() * BLOCK) as u64, begun.elapsed());
                }
            }
            done
        };
        let done = match self.copiers.min(pieces.len()) {
            0 | 1 => run(),
            threads => crate::sync::thread::scope(|scope| {
                let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
                threads.into_iter().flat_map(|t| t.join().expect("a copy does not panic")).collect()
            }),
        };
        for (piece, mut tally) in done {
            for addr in std::mem::take(&mut tally.lost) {
                if self.lost.insert(addr, (piece.part, piece.ino)).is_none() {
                    ::log::error!("block {addr} ({}, inode {}) is lost on every replica", piece.part.name(), piece.ino);
                }
            }
            self.copied += tally.copied;
            self.tally.add(tally);
        }
        if self.tally.failure.is_some() {
            self.failure = self.tally.failure.take();
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    fn unreadable(&mut self, part: Part, addr: Addr, ino: u64, error: &StoreError) {
        ::log::error!("what hangs on the {} at block {addr} (inode {ino} on) is lost: {error}", part.name());
    }

    fn pause(&mut self) -> ControlFlow<()> {
        loop {
            self.look_up()?;
            let owed = self.pace.owed();
            if owed.is_zero() {
                return ControlFlow::Continue(());
            }
            crate::sync::thread::sleep(owed);
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
