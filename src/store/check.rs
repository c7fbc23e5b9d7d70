//! The checker: walks everything that a root reaches, on every replica, and compares what must agree. Never writes,
//! but for healing blocks from a twin where it is asked to.
//!
//! *Guarantees*: every reachable block is proven once on every replica in sync: N damaged blocks give N
//! [`Finding::Block`]s. Allocated blocks are exactly those that something uses; links, directories, orphans and counts
//! agree, or a finding says what does not. What can be put right without loss stands in [`Repairs`].
//! *Assumes*: [`CheckSource`] keeps the root's blocks pinned. Bytes may be hostile.
//! *Fails when*: never; what cannot be read is a finding, and then absences are not judged.
//! *Order*: labels and root; tree, with file data in batches; dead lists; space; names; paths last, because looking
//! them up may read, and so heal, what was not proven yet.
//! *Not here*: writing repairs (a normal commit does), log records, older roots.
//!
//! Memory: one bit for each block of zones in use (4 KiB a zone), some 40 bytes for each inode, 4096 checksums of
//! file data, and the findings up to [`CheckOptions::findings_max`].

mod blocks;
mod finding;
mod items;
mod names;
mod paths;
mod source;
mod space;
#[cfg(test)]
mod tests;

pub use finding::{Finding, Outcome, Owner, Severity, Structure};
pub use source::{CheckSource, FixedProof, MirrorSource, StoreSource};

use super::tree;
use crate::disk::Proof;
use crate::format::item::{Dirent, FileMap};
use crate::format::node::Node;
use crate::format::space::Bitmap;
use crate::format::{Inode, Key};
use blocks::Tracker;
use items::Items;
use paths::Paths;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// Findings whose paths are looked up.
const PATHS_MAX: usize = 10_000;

/// What to do.
#[derive(Debug, Clone)]
pub struct CheckOptions {
    /// Prove file data, too; without it only metadata.
    pub data: bool,
    /// Repair damaged blocks from a twin.
    pub heal: bool,
    /// Ask the replicas about file data at the same time, on threads of their own.
    pub parallel: bool,
    /// Findings kept; more are only counted.
    pub findings_max: usize,
}

impl Default for CheckOptions {
    fn default() -> CheckOptions {
        CheckOptions { data: true, heal: false, parallel: true, findings_max: 100_000 }
    }
}

/// How far a check is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Blocks looked at.
    pub done: u64,
    /// Blocks in use (an estimate).
    pub total: u64,
}

/// Told of progress, often; `Break` ends the check early.
pub type ProgressFn<'a> = dyn FnMut(Progress) -> ControlFlow<()> + Send + 'a;

/// Counts of blocks of one kind on one replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Tally {
    /// Matched their pointers.
    pub proven: u64,
    /// Did not.
    pub detected: u64,
    /// Of those: repaired and proven again.
    pub healed: u64,
    /// Of those: proven by no replica.
    pub lost: u64,
    /// Of the healed: put together from parts, since no replica proved the block.
    pub combined: u64,
}

/// Counts of one replica.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct ReplicaStatistics {
    /// Its slot.
    pub replica: usize,
    /// What the user calls it.
    pub name: String,
    /// By kind of structure.
    pub kinds: BTreeMap<&'static str, Tally>,
}

/// Counts of all replicas.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Statistics {
    /// In order of slots.
    pub replicas: Vec<ReplicaStatistics>,
}

impl Statistics {
    fn new(replicas: impl Iterator<Item = (usize, String)>) -> Statistics {
        let empty = |(replica, name)| ReplicaStatistics { replica, name, kinds: BTreeMap::new() };
        Statistics { replicas: replicas.map(empty).collect() }
    }
    fn tally(&mut self, replica: usize, kind: &'static str) -> &mut Tally {
        let at = match self.replicas.iter().position(|r| r.replica == replica) {
            Some(at) => at,
            None => {
                self.replicas.push(ReplicaStatistics { replica, ..ReplicaStatistics::default() });
                self.replicas.len() - 1
            }
        };
        self.replicas[at].kinds.entry(kind).or_default()
    }
    /// All kinds and replicas together.
    pub fn sum(&self) -> Tally {
        let mut sum = Tally::default();
        for tally in self.replicas.iter().flat_map(|r| r.kinds.values()) {
            sum.proven += tally.proven;
            sum.detected += tally.detected;
            sum.healed += tally.healed;
            sum.lost += tally.lost;
            sum.combined += tally.combined;
        }
        sum
    }
}

/// An entry whose type is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryFix {
    /// Directory that it stands in.
    pub directory: u64,
    /// Where it stands there.
    pub cookie: u64,
    /// Its type now.
    pub was: u8,
    /// What it should be.
    pub entry: Dirent,
}

/// An entry that stands under the cookie of another name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryMove {
    /// Directory that it stands in.
    pub directory: u64,
    /// Where it stands there.
    pub cookie: u64,
    /// A free place that its name leads to.
    pub to: u64,
    /// The entry.
    pub entry: Dirent,
}

/// What a normal commit can put right without loss. Write it, then check again: what hid behind these shows then.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Repairs {
    /// Bitmaps as they should be. Writing one counts its free blocks and those of the nodes above anew.
    pub zones: BTreeMap<u64, Bitmap>,
    /// The root's count of blocks with space below, if it is wrong.
    pub backed: Option<u64>,
    /// Inodes with links, size or parent put right (with the other repairs done).
    pub inodes: Vec<(u64, Inode)>,
    /// Counts of blocks of files.
    pub file_maps: Vec<(u64, FileMap)>,
    /// Inodes without links that must go on the list of orphans.
    pub orphans_to_add: Vec<u64>,
    /// Inodes that must go off it.
    pub orphans_to_drop: Vec<u64>,
    /// Entries that name nothing, or a directory a second time: directory, cookie, entry.
    pub entries_to_drop: Vec<(u64, u64, Dirent)>,
    /// Entries with a wrong type.
    pub entries_to_retype: Vec<EntryFix>,
    /// Entries under the wrong cookie.
    pub entries_to_move: Vec<EntryMove>,
    /// Directories with another parent than they say: inode, parent, cookie. Contained in `inodes`.
    pub parents: Vec<(u64, u64, u64)>,
    /// Items that mean nothing.
    pub items_to_drop: Vec<Key>,
    /// Inode numbers that have items and no inode: punch their data, delete the items.
    pub ownerless: Vec<u64>,
    /// Inodes that no directory names: give them a name, say in `/lost+found`.
    pub to_attach: Vec<u64>,
    /// The root's count of inodes.
    pub inode_count: Option<u64>,
    /// The root's next inode number.
    pub next_ino: Option<u64>,
}

impl Repairs {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Repairs::default()
    }
}

/// A path that leads to `ino` in the newest durable state, from its hints; reads, and so may heal.
pub fn path_of(store: &super::Store, ino: u64) -> Option<String> {
    Paths::new(&StoreSource::new(store)).path(ino)
}

/// What a check found.
#[derive(Debug, Clone)]
pub struct Report {
    /// In the order of the walk; at most [`CheckOptions::findings_max`].
    pub findings: Vec<Finding>,
    /// Findings beyond that.
    pub findings_dropped: u64,
    /// Blocks damaged on every replica that were not put together because there are too many combinations.
    pub untried: u64,
    /// Counts of blocks.
    pub statistics: Statistics,
    /// What can be put right.
    pub repairs: Repairs,
    /// Everything could be read, so that absences were judged.
    pub complete: bool,
    /// The progress function ended it early.
    pub stopped: bool,
    /// Inodes seen.
    pub inodes: u64,
}

impl Report {
    /// The gravest finding's grade; `None`: nothing was found.
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(Finding::severity).max()
    }
    /// Nothing was found, and everything was looked at.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty() && self.complete && !self.stopped
    }
    /// Blocks that were put together, or can be, each once: where it belongs, and what it is made from.
    pub fn combined(&self) -> Vec<String> {
        let mut lines: BTreeMap<u64, String> = BTreeMap::new();
        for finding in &self.findings {
            if let Finding::Block { addr, structure, owner, outcome, .. } = finding
                && let Outcome::Combined(_, recipe) | Outcome::Combinable(_, recipe) = outcome
            {
                let owner = owner.as_ref().map_or("the volume itself".to_owned(), ToString::to_string);
                lines.entry(*addr).or_insert_with(|| format!("{owner}: {structure} at block {addr}: {recipe}"));
            }
        }
        lines.into_values().collect()
    }
    /// Damaged blocks found: one for each block on each replica.
    pub fn block_findings(&self) -> usize {
        self.findings.iter().filter(|finding| matches!(finding, Finding::Block { .. })).count()
    }
}

/// Check the state of `source`'s root.
pub fn check<'a>(source: &'a dyn CheckSource, options: &'a CheckOptions, progress: &'a mut ProgressFn<'a>) -> Report {
    let tracker = Tracker::new(source, options, progress);
    fixed(&tracker);
    let mut items = Items::new(&tracker);
    walk_tree(&tracker, &mut items);
    tracker.prove_pending();
    space::dead_lists(&tracker);
    let (zones, backed) = space::compare(&tracker);
    tracker.report_unproven();
    let (complete, stopped) = {
        let inner = tracker.inner();
        (!inner.incomplete && !inner.stopped, inner.stopped)
    };
    let inodes = items.inodes;
    let paths = Paths::new(source);
    let mut repairs = Repairs::default();
    if complete {
        repairs = names::judge(&tracker, items, &paths);
        (repairs.zones, repairs.backed) = (zones, backed);
    } else if !stopped {
        drop(items);
        repairs.zones = zones;
        tracker.add(Finding::Incomplete);
    }
    let mut inner = tracker.inner();
    let mut findings = std::mem::take(&mut inner.findings);
    let mut known: BTreeMap<u64, Option<String>> = BTreeMap::new();
    for owner in findings.iter_mut().filter_map(Finding::owners) {
        if !known.contains_key(&owner.ino) && known.len() >= PATHS_MAX {
            continue;
        }
        owner.path = known.entry(owner.ino).or_insert_with(|| paths.path(owner.ino)).clone();
    }
    Report {
        findings,
        findings_dropped: inner.dropped,
        untried: inner.untried,
        statistics: std::mem::take(&mut inner.statistics),
        repairs,
        complete,
        stopped,
        inodes,
    }
}

/// Labels and root.
fn fixed(tracker: &Tracker<'_>) {
    for FixedProof { replica, addr, structure, proof } in tracker.source.prove_fixed(tracker.options.heal) {
        let outcome = match proof {
            Proof::Correct => {
                tracker.inner().statistics.tally(replica, structure.kind()).proven += 1;
                continue;
            }
            Proof::Unproven(reason) => {
                tracker.unproven(replica, addr, reason);
                continue;
            }
            Proof::Healed(damage) => Outcome::Healed(damage),
            Proof::Damaged(damage) => Outcome::Damaged(damage),
            Proof::Lost(damage) => Outcome::Lost(damage),
        };
        tracker.report_block(replica, addr, structure, None, outcome);
    }
}

fn walk_tree(tracker: &Tracker<'_>, items: &mut Items<'_, '_>) {
    let _ = tree::walk(tracker, tracker.source.root().tree, &mut |level, ptr, node| {
        match node {
            Ok(node) => {
                if let Node::Leaf(entries) = &node.node {
                    for (key, range) in entries {
                        items.item(*key, &node.block[range.clone()]);
                    }
                }
            }
            Err(error) => tracker.bad_node(level, ptr, error),
        }
        if tracker.stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    items.finish();
}
