//! Scrub: prove every reachable block on every replica in sync, from the medium, and heal what is not there.
//!
//! *Guarantees*: each damaged copy is counted once as detected, and then as healed, or as lost with the path of its
//! file. A block that no replica proves is put together from the parts where that can be done, and the report says from
//! which. Nothing is written but proven bytes over copies that did not prove themselves (invariant 8). What was healed is
//! durable when the report is given.
//! *Assumes*: replicas that go out meanwhile are not proven any further, and the report says so.
//! *Fails when*: never for damage; it is refused while other long work runs.
//! *Order*: labels, roots, log; then the walk (`store::walk`); paths of what was lost come last, because looking them up
//! reads. Each block is proven on all replicas in parallel without healing; only then what is damaged is healed, so that
//! the repair of one copy hides no other one.
//! *Not here*: blocks that only the open group knows (they were never promised), bytes in memory.

use super::Volume;
use crate::control::Progress;
use crate::disk::{Combination, Proof};
use crate::format::Addr;
use crate::store::walk::fixed::FixedProof;
use crate::store::walk::{Part, Piece, Sink};
use crate::store::{Store, StoreError, check};
use crate::sync::Instant;
use crate::sync::atomic::Ordering;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::time::Duration;

/// Lines about what was lost, and about what was put together, that a report holds; the rest is counted.
const LINES_MAX: usize = 100;
/// From so many blocks on, replicas are proven by a thread each.
const PARALLEL_MIN: usize = 16;
/// Longest pause in favour of other work.
const YIELD_MAX: Duration = Duration::from_millis(50);

/// Copies that were looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Which replica or which structure.
    pub name: String,
    /// Matched what names them.
    pub proven: u64,
    /// Did not.
    pub detected: u64,
    /// Of those: repaired and proven again.
    pub healed: u64,
    /// Of those: no replica has the block.
    pub lost: u64,
    /// Of those: the repair failed, or the replica went out before.
    pub failed: u64,
    /// Copies of which nothing is known, since the replica could not be asked.
    #[serde(default)]
    pub unproven: u64,
}

impl Count {
    fn add(&mut self, proof: &Verdict) {
        match proof {
            Verdict::Correct => self.proven += 1,
            Verdict::Healed => (self.detected, self.healed) = (self.detected + 1, self.healed + 1),
            Verdict::Lost => (self.detected, self.lost) = (self.detected + 1, self.lost + 1),
            Verdict::Failed => (self.detected, self.failed) = (self.detected + 1, self.failed + 1),
            Verdict::Unknown => self.unproven += 1,
        }
    }
}

/// What a scrub found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubReport {
    /// One line.
    pub summary: String,
    /// Whether it came to its end.
    pub complete: bool,
    /// Blocks in use that were looked at, fixed structures included.
    pub blocks: u64,
    /// Copies that were correct.
    pub proven: u64,
    /// Copies that were not.
    pub detected: u64,
    /// Of those: repaired and proven again.
    pub healed: u64,
    /// Blocks that no replica has.
    pub lost: u64,
    /// Blocks that no replica had, put together from the parts of their copies; those are counted as healed.
    #[serde(default)]
    pub combined: u64,
    /// Of the lost blocks: of which there are too many combinations; not tried.
    #[serde(default)]
    pub untried: u64,
    /// Copies whose repair failed.
    pub failed: u64,
    /// Copies of which nothing is known, since the replica could not be asked.
    #[serde(default)]
    pub unproven: u64,
    /// Subtrees that were not reached, each with all that hangs on it; the notes name them.
    #[serde(default)]
    pub unreached: u64,
    /// Only one replica is in sync: nothing can be healed.
    pub held_once: bool,
    /// By replica.
    pub replicas: Vec<Count>,
    /// By structure.
    pub structures: Vec<Count>,
    /// What was lost, by path where one leads there; at most 100 lines.
    pub lost_paths: Vec<String>,
    /// What was put together, from which sectors of which replicas; at most 100 lines.
    #[serde(default)]
    pub combined_from: Vec<String>,
    /// What else a person should know.
    pub notes: Vec<String>,
}

impl std::fmt::Display for ScrubReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "detected = {}, healed = {}, lost = {}", self.detected, self.healed, self.lost)?;
        if self.combined > 0 {
            write!(f, ", put together = {}", self.combined)?;
        }
        if self.failed > 0 {
            write!(f, ", not repaired = {}", self.failed)?;
        }
        if self.unproven > 0 {
            write!(f, ", not proven = {}", self.unproven)?;
        }
        if self.unreached > 0 {
            write!(f, ", not reached = {}", self.unreached)?;
        }
        write!(f, " ({} blocks, {} copies correct)", self.blocks, self.proven)?;
        if self.held_once {
            f.write_str("; every block is held once")?;
        }
        if !self.complete { f.write_str("; stopped before the end") } else { Ok(()) }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Correct,
    Healed,
    Lost,
    Failed,
    Unknown,
}

impl Verdict {
    /// Of a copy that was damaged, after the repair.
    fn of_repair(proof: &Proof) -> Verdict {
        match proof {
            // Somebody else has healed it meanwhile.
            Proof::Correct | Proof::Healed(_) => Verdict::Healed,
            Proof::Lost(_) => Verdict::Lost,
            Proof::Damaged(_) | Proof::Unproven(_) => Verdict::Failed,
        }
    }
}

/// A block that no replica had.
struct Lost {
    part: Part,
    ino: u64,
    addr: Addr,
}

/// What was put together, and from what.
struct Made {
    block: Lost,
    from: String,
}

struct Scrub<'a> {
    store: &'a Store,
    progress: &'a mut dyn FnMut(&Progress) -> bool,
    targets: Vec<usize>,
    replicas: BTreeMap<usize, Count>,
    structures: BTreeMap<Part, Count>,
    blocks: u64,
    /// Blocks that no replica has; a walk may show a block twice.
    lost_blocks: BTreeSet<Addr>,
    lost: Vec<Lost>,
    combined: u64,
    made: Vec<Made>,
    untried: BTreeSet<Addr>,
    notes: Vec<String>,
    unreached: u64,
    total: u64,
    pace: Pace,
}

/// Prove and heal everything in `store`.
pub fn run(store: &Store, progress: &mut dyn FnMut(&Progress) -> bool) -> ScrubReport {
    let members = store.mirror().members();
    let targets: Vec<usize> = (0..store.mirror().replicas()).filter(|r| members.contains(*r)).collect();
    let health = store.mirror().health();
    let mut scrub = Scrub {
        store,
        progress,
        replicas: targets
            .iter()
            .map(|r| (*r, Count { name: health[*r].name.path.clone(), ..Count::default() }))
            .collect(),
        targets,
        structures: BTreeMap::new(),
        blocks: 0,
        lost_blocks: BTreeSet::new(),
        lost: Vec::new(),
        combined: 0,
        made: Vec::new(),
        untried: BTreeSet::new(),
        notes: Vec::new(),
        unreached: 0,
        total: blocks_in_use(store),
        pace: Pace::new(store),
    };
    let ended = scrub.everything();
    if scrub.sum().healed > 0
        && let Err(error) = store.mirror().flush()
    {
        // A replica that fails here goes out.
        scrub.notes.push(format!("what was healed may not be durable: {error}"));
    }
    let mut report = scrub.report(ended.is_continue());
    report.summary = report.to_string();
    report
}

/// Roughly what a walk will show.
pub(super) fn blocks_in_use(store: &Store) -> u64 {
    store.allocator().total().saturating_sub(store.allocator().free())
}

impl Scrub<'_> {
    fn everything(&mut self) -> ControlFlow<()> {
        self.pause()?;
        let heals = !self.store.options().read_only;
        for prove in [Store::prove_labels, Store::prove_roots, Store::prove_log, Store::prove_spare] {
            let proofs = prove(self.store, &self.targets, heals);
            self.fixed(proofs);
            self.pause()?;
        }
        let store = self.store;
        store.walk(self)
    }

    fn fixed(&mut self, proofs: Vec<FixedProof>) {
        self.blocks += proofs.iter().map(|p| p.addr).collect::<BTreeSet<_>>().len() as u64;
        for one in proofs {
            let verdict = match &one.proof {
                Proof::Correct => Verdict::Correct,
                Proof::Unproven(_) => Verdict::Unknown,
                damaged => Verdict::of_repair(damaged),
            };
            self.count(one.part, 0, one.replica, one.addr, verdict);
        }
    }

    fn count(&mut self, part: Part, ino: u64, replica: usize, addr: Addr, verdict: Verdict) {
        if verdict == Verdict::Lost && self.lost_blocks.insert(addr) && self.lost.len() < LINES_MAX {
            ::log::error!("block {addr} ({}, inode {ino}) is damaged on every replica", part.name());
            self.lost.push(Lost { part, ino, addr });
        }
        let structure = || Count { name: part.name().into(), ..Count::default() };
        self.structures.entry(part).or_insert_with(structure).add(&verdict);
        if let Some(count) = self.replicas.get_mut(&replica) {
            count.add(&verdict);
        }
    }

    /// Heal a damaged copy: from another replica; else, where none has the block, from what the copies have left.
    fn heal(&mut self, replica: usize, piece: &Piece, index: usize) -> Verdict {
        let (addr, sum) = (piece.addr + index as u64, piece.sums[index]);
        let mirror = self.store.mirror();
        let heals = !self.store.options().read_only;
        let mut proof = mirror.prove(replica, addr, &[sum], heals).remove(0);
        if matches!(proof, Proof::Lost(_)) {
            match mirror.combine(addr, sum, heals) {
                Combination::Proven { recipe, .. } => {
                    proof = mirror.prove(replica, addr, &[sum], heals).remove(0);
                    // Else nobody took it.
                    if !matches!(proof, Proof::Lost(_)) {
                        let block = Lost { part: piece.part, ino: piece.ino, addr };
                        self.note_made(Made { block, from: recipe.to_string() });
                    }
                }
                Combination::TooMany => drop(self.untried.insert(addr)),
                Combination::Needless => proof = mirror.prove(replica, addr, &[sum], heals).remove(0),
                Combination::Impossible => {}
            }
        }
        Verdict::of_repair(&proof)
    }

    fn note_made(&mut self, made: Made) {
        self.combined += 1;
        if self.made.len() < LINES_MAX {
            self.made.push(made);
        }
    }

    fn sum(&self) -> Count {
        let mut sum = Count::default();
        for count in self.replicas.values() {
            sum.proven += count.proven;
            sum.detected += count.detected;
            sum.healed += count.healed;
            sum.failed += count.failed;
            sum.unproven += count.unproven;
        }
        sum
    }

    fn report(mut self, complete: bool) -> ScrubReport {
        let sum = self.sum();
        let mut paths: BTreeMap<u64, Option<String>> = BTreeMap::new();
        let mut place = |lost: &Lost| {
            let path = paths.entry(lost.ino).or_insert_with(|| check::path_of(self.store, lost.ino));
            let owner = match (path, lost.ino) {
                (_, 0) => "the volume itself".to_owned(),
                (Some(path), _) => path.clone(),
                (None, ino) => format!("inode {ino}"),
            };
            format!("{owner}: {} at block {}", lost.part.name(), lost.addr)
        };
        let lost_paths: Vec<String> = self.lost.iter().map(&mut place).collect();
        let made = self.made.iter().map(|made| format!("{}: {}", place(&made.block), made.from));
        let combined_from: Vec<String> = made.collect();
        if self.combined > 0 {
            self.notes.push(
                "what was put together is proven by a checksum of 32 bits: each block is wrong with a chance of its \
                 candidates in 2^32"
                    .into(),
            );
        }
        if self.made.iter().any(|made| matches!(made.block.part, Part::Bitmap | Part::SpaceNode)) {
            self.notes.push(
                "free space of a bitmap or space node that was put together is used from the next mount on".into(),
            );
        }
        if self.made.iter().any(|made| matches!(made.block.part, Part::Leaf | Part::InnerNode)) {
            self.notes.push(
                "changes that had to be left out while a node of the tree was damaged do not come back with it: unmount and \
                 run fsck"
                    .into(),
            );
        }
        if !self.untried.is_empty() {
            let count = self.untried.len();
            self.notes.push(format!("{count} lost blocks have too many combinations of their parts; not tried"));
        }
        ScrubReport {
            summary: String::new(),
            complete,
            blocks: self.blocks,
            proven: sum.proven,
            detected: sum.detected,
            healed: sum.healed,
            lost: self.lost_blocks.len() as u64,
            combined: self.combined,
            untried: self.untried.len() as u64,
            failed: sum.failed,
            unproven: sum.unproven,
            unreached: self.unreached,
            held_once: self.store.mirror().members().count() < 2,
            replicas: self.replicas.into_values().collect(),
            structures: self.structures.into_values().collect(),
            lost_paths,
            combined_from,
            notes: self.notes,
        }
    }
}

impl Sink for Scrub<'_> {
    fn pieces(&mut self, pieces: &[Piece]) -> ControlFlow<()> {
        let mirror = self.store.mirror();
        let count: usize = pieces.iter().map(|piece| piece.sums.len()).sum();
        let prove = |replica: usize| -> Vec<Vec<Proof>> {
            pieces.iter().map(|piece| mirror.prove(replica, piece.addr, &piece.sums, false)).collect()
        };
        let proofs: Vec<Vec<Vec<Proof>>> = if count < PARALLEL_MIN {
            self.targets.iter().map(|r| prove(*r)).collect()
        } else {
            crate::sync::thread::scope(|scope| {
                let threads: Vec<_> = self.targets.iter().map(|r| scope.spawn(|| prove(*r))).collect();
                threads.into_iter().map(|thread| thread.join().expect("a proof does not panic")).collect()
            })
        };
        self.blocks += count as u64;
        for (replica, proofs) in self.targets.clone().into_iter().zip(proofs) {
            for (piece, proofs) in pieces.iter().zip(proofs) {
                for (i, proof) in proofs.iter().enumerate() {
                    let addr = piece.addr + i as u64;
                    let verdict = match proof {
                        Proof::Correct => Verdict::Correct,
                        Proof::Unproven(_) => Verdict::Unknown,
                        _ => self.heal(replica, piece, i),
                    };
                    self.count(piece.part, piece.ino, replica, addr, verdict);
                }
            }
        }
        ControlFlow::Continue(())
    }

    fn unreadable(&mut self, part: Part, addr: Addr, ino: u64, error: &StoreError) {
        self.unreached += 1;
        if self.notes.len() < LINES_MAX {
            let note =
                format!("what hangs on the {} at block {addr} (inode {ino} on) was not reached: {error}", part.name());
            ::log::error!("{note}");
            self.notes.push(note);
        }
    }

    fn pause(&mut self) -> ControlFlow<()> {
        let members = self.store.mirror().members();
        for gone in self.targets.iter().filter(|r| !members.contains(**r)) {
            self.notes.push(format!("replica {gone} went out meanwhile; it was not proven any further"));
        }
        self.targets.retain(|r| members.contains(*r));
        let sum = self.sum();
        let progress = Progress {
            what: "scrub".into(),
            done: self.blocks.min(self.total.max(1)),
            total: self.total.max(1),
            damaged: sum.detected,
            healed: sum.healed,
        };
        if !(self.progress)(&progress) {
            return ControlFlow::Break(());
        }
        self.pace.yield_to_others(self.store);
        ControlFlow::Continue(())
    }
}

/// Keeps a walk from crowding out those who wait for an answer.
struct Pace {
    requests: u64,
    since: Instant,
}

impl Pace {
    fn new(store: &Store) -> Pace {
        Pace { requests: Pace::requests(store), since: Instant::now() }
    }

    /// Requests of others: walkers' proofs are not counted as reads.
    fn requests(store: &Store) -> u64 {
        store.mirror().health().iter().map(|h| h.counters.reads + h.counters.writes + h.counters.flushes).sum()
    }

    /// Where others worked meanwhile, leave the disks to them for half as long as the last step took.
    fn yield_to_others(&mut self, store: &Store) {
        let requests = Pace::requests(store);
        if requests > self.requests + 8 {
            crate::sync::thread::sleep((self.since.elapsed() / 2).min(YIELD_MAX));
        }
        *self = Pace { requests: Pace::requests(store), since: Instant::now() };
    }
}

impl Volume {
    /// Prove every block on every replica in sync, from the medium, and heal. `progress` is told now and then, while
    /// nothing is locked; the scrub ends early when it answers false.
    ///
    /// # Errors
    /// Other long work runs.
    pub fn scrub(&self, progress: &mut dyn FnMut(&Progress) -> bool) -> Result<ScrubReport, StoreError> {
        let _alone = self.begin_work("scrub")?;
        let report = run(&self.store, progress);
        ::log::info!("scrub: {report}");
        let is_whole = report.complete && report.healed == report.detected;
        if is_whole && report.lost + report.failed + report.unproven == 0 {
            // What a repair could not do before, somebody has done.
            self.forgiven.store(self.heal_failed(), Ordering::Relaxed);
        }
        self.note_scrub(&report);
        Ok(report)
    }
}

#[cfg(test)]
pub(crate) mod tests;
