//! Blocks under check: who uses which, and what each replica has.
//!
//! *Guarantees*: each block is proven once on each replica, however often it is named; all replicas are asked before
//! anything is read or healed, so that no repair hides another one's damage from the count.
//! *Assumes*: the root's blocks stay pinned. *Fails when*: never; what cannot be read becomes a finding.
//! *Order*: the inner lock is a leaf; it is not held while the source is asked.
//! *Not here*: what the blocks mean.

use super::finding::{Finding, Outcome, Owner, Structure};
use super::{CheckOptions, CheckSource, Progress, ProgressFn, Statistics};
use crate::disk::{Buf, Combination, Damage, Proof, Recipe};
use crate::format::node::{self, LEVEL_MAX, Node};
use crate::format::space::BITS;
use crate::format::{Addr, BlockPtr, Corrupt, Geometry, Key, Uuid};
use crate::store::StoreError;
use crate::store::tree::{CachedNode, NodeStore};
use crate::sync::{Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Data blocks that are proven together.
const BATCH_BLOCKS: usize = 4096;

/// Blocks of one zone that are in use.
pub(super) type Marks = Box<[u64; BITS / 8]>;

/// A run of file blocks that waits to be proven.
struct DataRun {
    addr: Addr,
    sums: Vec<u64>,
    ino: u64,
    first: u64,
}

/// What came of a run of blocks.
#[derive(Default)]
struct Judged {
    /// A block of it is damaged on all replicas, for good.
    lost: bool,
    /// The last block that was put together.
    combined: Option<Buf>,
}

/// What became of a damaged copy, proven `again` if it was to be healed. `good`: another replica proves the block.
fn outcome_of(again: Option<Proof>, damage: Damage, good: bool, recipe: Option<&Recipe>) -> Outcome {
    match (again, recipe) {
        (Some(Proof::Correct | Proof::Healed(_)), Some(recipe)) => Outcome::Combined(damage, recipe.clone()),
        (Some(Proof::Correct | Proof::Healed(_)), None) => Outcome::Healed(damage),
        (Some(Proof::Damaged(damage)), _) => Outcome::Damaged(damage),
        (None | Some(Proof::Lost(_) | Proof::Unproven(_)), Some(recipe)) => Outcome::Combinable(damage, recipe.clone()),
        (Some(Proof::Lost(damage)), None) => Outcome::Lost(damage),
        (None | Some(Proof::Unproven(_)), None) if good => Outcome::Damaged(damage),
        (None | Some(Proof::Unproven(_)), None) => Outcome::Lost(damage),
    }
}

/// The state of a check's walk over blocks.
pub(super) struct Tracker<'a> {
    pub source: &'a dyn CheckSource,
    pub options: &'a CheckOptions,
    replicas: Vec<usize>,
    inner: Mutex<Inner<'a>>,
}

pub(super) struct Inner<'a> {
    pub marks: BTreeMap<u64, Marks>,
    pub findings: Vec<Finding>,
    pub dropped: u64,
    /// Blocks damaged on every replica that have too many combinations.
    pub untried: u64,
    pub statistics: Statistics,
    unproven: BTreeMap<usize, (u64, Addr, String)>,
    pending: Vec<DataRun>,
    pending_blocks: usize,
    done: u64,
    total: u64,
    progress: &'a mut ProgressFn<'a>,
    pub stopped: bool,
    /// Something could not be read: absences prove nothing.
    pub incomplete: bool,
    /// Inner nodes on the way down, by level.
    path: Vec<Option<Arc<CachedNode>>>,
    /// A finding about this block was made just now.
    said: Option<Addr>,
}

impl Inner<'_> {
    pub fn add(&mut self, finding: Finding, limit: usize) {
        if self.findings.len() < limit {
            self.findings.push(finding);
        } else {
            self.dropped += 1;
        }
    }
}

impl<'a> Tracker<'a> {
    pub fn new(source: &'a dyn CheckSource, options: &'a CheckOptions, progress: &'a mut ProgressFn<'a>) -> Self {
        let geometry = &source.label().geometry;
        let zones = geometry.zones;
        let all = (zones - 1) * u64::from(geometry.zone_blocks) + u64::from(geometry.zone_len(zones - 1)) - 2 * zones;
        let replicas = source.replicas();
        Tracker {
            inner: Mutex::new(Inner {
                marks: BTreeMap::new(),
                findings: Vec::new(),
                dropped: 0,
                untried: 0,
                statistics: Statistics::new(replicas.iter().map(|r| (*r, source.replica_name(*r)))),
                unproven: BTreeMap::new(),
                pending: Vec::new(),
                pending_blocks: 0,
                done: 0,
                total: all.saturating_sub(source.root().space.free),
                progress,
                stopped: false,
                incomplete: false,
                path: vec![None; usize::from(LEVEL_MAX) + 1],
                said: None,
            }),
            source,
            options,
            replicas,
        }
    }

    pub fn geometry(&self) -> &Geometry {
        &self.source.label().geometry
    }
    pub fn inner(&self) -> MutexGuard<'_, Inner<'a>> {
        self.inner.lock()
    }
    pub fn add(&self, finding: Finding) {
        self.inner.lock().add(finding, self.options.findings_max);
    }
    pub fn stopped(&self) -> bool {
        self.inner.lock().stopped
    }
    /// Absences prove nothing any more.
    pub fn set_incomplete(&self) {
        self.inner.lock().incomplete = true;
    }

    /// Note that `structure` uses these blocks. Returns the stretches (offset, blocks) that nothing used before.
    pub fn mark(&self, addr: Addr, blocks: u64, structure: Structure, ino: Option<u64>) -> Vec<(u64, u64)> {
        let owner = ino.map(Owner::new);
        if !self.geometry().holds_data(addr, blocks) {
            self.add(Finding::OutsideZones { addr, blocks, structure, owner });
            return Vec::new();
        }
        let (zone, first) = self.geometry().locate(addr).expect("inside a zone");
        let mut inner = self.inner.lock();
        let marks = inner.marks.entry(zone).or_insert_with(|| Box::new([0; BITS / 8]));
        let mut fresh: Vec<(u64, u64)> = Vec::new();
        let (mut used, mut used_at) = (0, addr);
        for i in 0..blocks {
            let bit = first as usize + i as usize;
            if marks[bit / 64] >> (bit % 64) & 1 == 1 {
                used_at = if used == 0 { addr + i } else { used_at };
                used += 1;
                continue;
            }
            marks[bit / 64] |= 1 << (bit % 64);
            match fresh.last_mut() {
                Some((at, len)) if *at + *len == i => *len += 1,
                _ => fresh.push((i, 1)),
            }
        }
        if used > 0 {
            inner.add(Finding::UsedTwice { addr: used_at, blocks: used, structure, owner }, self.options.findings_max);
        }
        inner.done += blocks - used;
        let now = Progress { done: inner.done, total: inner.total.max(inner.done) };
        let end = (inner.progress)(now);
        inner.stopped |= end.is_break();
        fresh
    }

    /// Prove a metadata block on every replica, then read it. `None`: it could not be read, which has been said.
    pub fn fetch(&self, addr: Addr, sum: u64, structure: Structure, ino: Option<u64>) -> Option<Buf> {
        let proofs: Vec<Vec<Proof>> =
            self.replicas.iter().map(|r| self.source.prove(*r, addr, &[sum], false)).collect();
        let judged = self.judge(addr, &[sum], &proofs, &|_| (structure, ino));
        if judged.lost {
            self.set_incomplete();
            return None;
        }
        if judged.combined.is_some() {
            return judged.combined;
        }
        match self.source.read(addr, &[sum]) {
            Ok(buf) => Some(buf),
            Err(error) => {
                self.set_incomplete();
                let owner = ino.map(Owner::new);
                self.add(Finding::Unreadable { addr, structure, owner, error: error.to_string() });
                None
            }
        }
    }

    /// A run of an extent: mark it, and prove it (soon) if data is to be proven.
    pub fn data(&self, ino: u64, first: u64, addr: Addr, blocks: u64, sums: Option<&[u32]>) {
        let fresh = self.mark(addr, blocks, Structure::Data { block: first }, Some(ino));
        let Some(sums) = sums.filter(|_| self.options.data) else { return };
        let mut inner = self.inner.lock();
        for (at, len) in fresh {
            let sums = sums[at as usize..(at + len) as usize].iter().map(|s| u64::from(*s)).collect();
            inner.pending.push(DataRun { addr: addr + at, sums, ino, first: first + at });
            inner.pending_blocks += len as usize;
        }
        if inner.pending_blocks >= BATCH_BLOCKS {
            drop(inner);
            self.prove_pending();
        }
    }

    /// Prove the file data that waits, in order of address.
    pub fn prove_pending(&self) {
        let mut runs = {
            let mut inner = self.inner.lock();
            inner.pending_blocks = 0;
            std::mem::take(&mut inner.pending)
        };
        runs.sort_unstable_by_key(|run| run.addr);
        let mut stretches: Vec<(Addr, Vec<u64>)> = Vec::new();
        for run in &runs {
            match stretches.last_mut() {
                Some((addr, sums)) if *addr + sums.len() as u64 == run.addr => sums.extend_from_slice(&run.sums),
                _ => stretches.push((run.addr, run.sums.clone())),
            }
        }
        let ask = |replica: usize| -> Vec<Vec<Proof>> {
            stretches.iter().map(|(addr, sums)| self.source.prove(replica, *addr, sums, false)).collect()
        };
        let answers: Vec<Vec<Vec<Proof>>> = if self.options.parallel {
            crate::sync::thread::scope(|scope| {
                let threads: Vec<_> = self.replicas.iter().map(|replica| scope.spawn(|| ask(*replica))).collect();
                threads.into_iter().map(|t| t.join().unwrap_or_else(|e| std::panic::resume_unwind(e))).collect()
            })
        } else {
            self.replicas.iter().map(|replica| ask(*replica)).collect()
        };
        let mut answers: Vec<_> = answers.into_iter().map(Vec::into_iter).collect();
        for (addr, sums) in &stretches {
            let proofs: Vec<Vec<Proof>> = answers.iter_mut().map(|a| a.next().unwrap_or_default()).collect();
            self.judge(*addr, sums, &proofs, &|i| {
                let at = addr + i as u64;
                let run = &runs[runs.partition_point(|run| run.addr <= at) - 1];
                (Structure::Data { block: run.first + (at - run.addr) }, Some(run.ino))
            });
        }
    }

    /// Turn each replica's proofs of a run into counts and findings, and heal if asked.
    fn judge(
        &self,
        addr: Addr,
        sums: &[u64],
        proofs: &[Vec<Proof>],
        owner_of: &dyn Fn(usize) -> (Structure, Option<u64>),
    ) -> Judged {
        let mut judged = Judged::default();
        for (i, sum) in sums.iter().enumerate() {
            let at = addr + i as u64;
            let kind = owner_of(i).0.kind();
            let good = proofs.iter().any(|p| matches!(p.get(i), Some(Proof::Correct)));
            let is_damage = |p: &Proof| matches!(p, Proof::Healed(_) | Proof::Damaged(_) | Proof::Lost(_));
            let damaged = proofs.iter().filter_map(|p| p.get(i)).any(is_damage);
            let recipe = if damaged && !good { self.combine(at, *sum, &mut judged) } else { None };
            let mut lost = 0;
            for (replica, proofs) in self.replicas.iter().zip(proofs) {
                let damage = match proofs.get(i) {
                    Some(Proof::Correct) => {
                        self.inner.lock().statistics.tally(*replica, kind).proven += 1;
                        continue;
                    }
                    Some(Proof::Healed(damage) | Proof::Damaged(damage) | Proof::Lost(damage)) => damage.clone(),
                    Some(Proof::Unproven(reason)) => {
                        self.unproven(*replica, at, reason.clone());
                        continue;
                    }
                    None => {
                        self.unproven(*replica, at, "no answer".into());
                        continue;
                    }
                };
                let again = self.options.heal.then(|| self.source.prove(*replica, at, &[*sum], true).pop()).flatten();
                let outcome = outcome_of(again, damage, good, recipe.as_ref());
                lost += usize::from(matches!(outcome, Outcome::Lost(_)));
                let (structure, ino) = owner_of(i);
                self.report_block(*replica, at, structure, ino, outcome);
            }
            judged.lost |= lost > 0 && lost == self.replicas.len();
        }
        judged
    }

    /// No replica in sync proves this block: put it together, if that can be done.
    fn combine(&self, addr: Addr, sum: u64, judged: &mut Judged) -> Option<Recipe> {
        match self.source.combine(addr, sum, self.options.heal) {
            Combination::Proven { block, recipe } => {
                judged.combined = Some(block);
                Some(recipe)
            }
            Combination::TooMany => {
                self.inner.lock().untried += 1;
                None
            }
            Combination::Needless | Combination::Impossible => None,
        }
    }

    /// Count and report a damaged block.
    pub fn report_block(&self, replica: usize, addr: Addr, structure: Structure, ino: Option<u64>, outcome: Outcome) {
        let mut inner = self.inner.lock();
        let tally = inner.statistics.tally(replica, structure.kind());
        tally.detected += 1;
        match outcome {
            Outcome::Healed(_) => tally.healed += 1,
            Outcome::Lost(_) => tally.lost += 1,
            Outcome::Combined(..) => (tally.healed, tally.combined) = (tally.healed + 1, tally.combined + 1),
            Outcome::Damaged(_) | Outcome::Combinable(..) => {}
        }
        let replica_name = self.source.replica_name(replica);
        let owner = ino.map(Owner::new);
        let finding = Finding::Block { replica, replica_name, addr, structure, owner, outcome };
        inner.add(finding, self.options.findings_max);
    }

    /// Nothing could be learned of this block.
    pub fn unproven(&self, replica: usize, addr: Addr, reason: String) {
        self.inner.lock().unproven.entry(replica).or_insert((0, addr, reason)).0 += 1;
    }

    /// One finding for each replica that could not be asked.
    pub fn report_unproven(&self) {
        let unproven = std::mem::take(&mut self.inner.lock().unproven);
        for (replica, (blocks, first, reason)) in unproven {
            let replica_name = self.source.replica_name(replica);
            self.add(Finding::Unproven { replica, replica_name, blocks, first, reason });
        }
    }

    /// The lower bound of the keys below `ptr`, from its parent.
    fn bound(&self, level: u8, ptr: &BlockPtr) -> Option<Key> {
        let inner = self.inner.lock();
        let parent = inner.path.get(usize::from(level) + 1)?.as_ref()?;
        let Node::Inner(children) = &parent.node else { return None };
        children.iter().find(|(_, child)| child == ptr).map(|(key, _)| *key)
    }
}

impl NodeStore for Tracker<'_> {
    fn volume(&self) -> Uuid {
        self.source.label().volume
    }

    /// Errors have been reported when this returns.
    fn read_node(&self, level: u8, ptr: &BlockPtr) -> Result<Arc<CachedNode>, StoreError> {
        let structure = Structure::Node { level };
        let ino = self.bound(level, ptr).map(|key| key.ino).filter(|ino| *ino != 0 && level == 0);
        let broken = |rule| StoreError::Corrupt { addr: ptr.addr, corrupt: Corrupt { what: "tree node", rule } };
        if self.mark(ptr.addr, 1, structure, ino).is_empty() {
            self.inner.lock().said = Some(ptr.addr);
            return Err(broken("stands in one place only"));
        }
        let Some(buf) = self.fetch(ptr.addr, ptr.sum, structure, ino) else {
            self.inner.lock().said = Some(ptr.addr);
            return Err(broken("can be read"));
        };
        let node = node::decode(&buf, self.volume(), ptr, level)
            .map_err(|corrupt| StoreError::Corrupt { addr: ptr.addr, corrupt })?;
        let node = Arc::new(CachedNode { block: buf.to_vec(), node });
        let mut inner = self.inner.lock();
        inner.said = None;
        inner.path[usize::from(level)] = (level > 0).then(|| node.clone());
        Ok(node)
    }
}

impl Tracker<'_> {
    /// The walk could not use the node at `ptr`; say so unless it has been said.
    pub fn bad_node(&self, level: u8, ptr: &BlockPtr, error: &StoreError) {
        let ino = self.bound(level, ptr).map(|key| key.ino).filter(|ino| *ino != 0 && level == 0);
        let mut inner = self.inner.lock();
        inner.incomplete = true;
        if inner.said.take() == Some(ptr.addr) {
            return;
        }
        let (addr, structure, owner) = (ptr.addr, Structure::Node { level }, ino.map(Owner::new));
        let finding = match error {
            StoreError::Corrupt { corrupt, .. } => {
                Finding::Invalid { addr, structure, owner, corrupt: corrupt.clone() }
            }
            other => Finding::Unreadable { addr, structure, owner, error: other.to_string() },
        };
        inner.add(finding, self.options.findings_max);
    }
}
