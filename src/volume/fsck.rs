//! Offline check and repair, as fsck(8) expects it.
//!
//! *Guarantees*: without repair nothing is written. With it, the order is: what is on disk is proven and healed first;
//! wrong bitmaps are put right before anything new is written, so that no live block is handed out; then the log is
//! replayed; then counts and names; then replicas that are absent or behind are rebuilt from the others; and all of it
//! is checked once more. The last correct copy of a block is never written over.
//! *Assumes*: the volume is not mounted (backings are locked). *Fails when*: no replica proves a root: exit code 8.
//! *Order*: as above. *Not here*: what is wrong (`store::check`), the command line.
//!
//! Exit codes, as in fsck(8): 0 no errors · 1 errors corrected · 4 errors left uncorrected · 8 operational error.

use super::beat::Use;
use super::beat::opening::Opening;
use super::beat::watch::Patience;
use super::{EXAMINE_WAIT, OpenOptions, Volume, open_paths, refused};
use crate::disk::ReplicaState;
use crate::disk::backing::Backing;
use crate::disk::file::Mode;
use crate::format::item::Dirent;
use crate::format::{Inode, ItemKind, Key, MemberState, ROOT_INO, Root, Uuid};
use crate::store::check::{self, CheckOptions, Repairs, Report, StoreSource};
use crate::store::commit::Force;
use crate::store::history::ShrinkHook;
use crate::store::recover::{self, LogEnd, OpenStore};
use crate::store::{Need, Store, StoreError, StoreOptions};
use crate::sync::Mutex;
use crate::world::{Machine, World};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Rounds of check and repair: each can uncover what the one before hid.
const ROUNDS_MAX: usize = 6;
/// Lines about what was put together that a report holds; the rest is counted.
const LINES_MAX: usize = 100;
/// Of one request to a replica.
const DEADLINE: Duration = Duration::from_secs(30);
/// Items that one repair transaction changes.
const ITEMS_AT_ONCE: usize = 256;

/// What to do.
#[derive(Debug, Clone, Default)]
pub struct FsckOptions {
    /// Put right what can be put right; otherwise only look.
    pub repair: bool,
    /// Prove metadata only, not file data.
    pub quick: bool,
}

/// What was found and done.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct FsckReport {
    /// Exit code, as in fsck(8).
    pub exit_code: u8,
    /// One line for each finding of the first look, and for each replica that is absent or behind.
    pub findings: Vec<String>,
    /// Findings beyond those listed.
    pub findings_dropped: u64,
    /// How many of these are of replicas that are absent or behind: they come first.
    #[serde(skip)]
    pub absent_or_behind: usize,
    /// What was put right, one line each.
    pub repaired: Vec<String>,
    /// What is still wrong at the end.
    pub left: Vec<String>,
    /// Damaged blocks: one for each block on each replica.
    pub detected: u64,
    /// Of those healed.
    pub healed: u64,
    /// Blocks that no replica proves.
    pub lost: u64,
    /// Blocks damaged on every replica that were put together from the parts; without repair: that can be.
    pub combined: u64,
    /// Blocks damaged on every replica of which there are too many combinations: not tried.
    pub untried: u64,
    /// What was (or can be) put together, from which sectors of which replicas; at most 100 lines.
    pub combined_from: Vec<String>,
    /// Blocks proven in the last pass, all replicas together.
    pub proven: u64,
    /// Inodes seen.
    pub inodes: u64,
    /// Log records that waited for replay.
    pub log_records: u64,
    /// By replica and kind of structure, from the first look.
    pub statistics: check::Statistics,
}

/// Told what is being done, blocks done, blocks in all.
pub type FsckProgress<'a> = &'a mut (dyn FnMut(&str, u64, u64) + Send);

/// Whether a repair may write whole replicas anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rebuild {
    /// Those that are absent or behind.
    Allowed,
    /// None, as at boot, where a disk may only be late.
    Never,
}

/// Check (and repair) the volume on `paths`.
pub fn fsck(
    paths: &[PathBuf],
    options: &FsckOptions,
    rebuilding: Rebuild,
    progress: FsckProgress<'_>,
) -> Result<FsckReport, StoreError> {
    fsck_owned(paths, options, rebuilding, Patience::Wait, progress)
}

/// As [`fsck`], where another host may still use the volume.
pub fn fsck_owned(
    paths: &[PathBuf],
    options: &FsckOptions,
    rebuilding: Rebuild,
    patience: Patience,
    progress: FsckProgress<'_>,
) -> Result<FsckReport, StoreError> {
    let mode = if options.repair { Mode::Write } else { Mode::ReadOnly };
    let (mut present, absent) = open_paths(paths, mode)?;
    let backings: Vec<Arc<dyn Backing>> = present.iter().map(|p| p.backing.clone()).collect();
    if present.is_empty() {
        let why: Vec<String> = absent.iter().map(|(path, why)| super::sentence(path, why)).collect();
        return refused(format!("nothing to check: {}", why.join("; ")));
    }
    let known: Vec<String> = present.iter().map(|p| p.path.clone()).collect();
    let world: Arc<dyn World> = Arc::new(Machine);
    let usage = if options.repair { Use::Write } else { Use::Read };
    let opening = match Opening::look(&mut present, usage, patience, DEADLINE, &world) {
        Ok(opening) => opening,
        Err(refusal) => {
            super::close_all(&backings);
            return Err(refusal);
        }
    };
    let beating = Mutex::new(None);
    let claim = |store: &Store| {
        opening.claim(store)?;
        *beating.lock() = Some(opening.beat_for(store.mirror())?);
        Ok(())
    };
    let host = Host {
        world,
        deadline: DEADLINE,
        claim: &claim,
        check: &|root, present| super::witness::check(root, present, EXAMINE_WAIT),
        on_shrink: Box::new(move |root| super::witness::write(root, &known, EXAMINE_WAIT)),
    };
    let judged = if options.repair { judge_absent(&present, &absent, rebuilding) } else { Ok(Vec::new()) };
    let result = judged.and_then(|vanished| Ok((vanished, run(present, &absent, options, host, progress)?)));
    drop(beating.lock().take());
    opening.give_up();
    super::close_all(&backings);
    let (vanished, (mut report, behind)) = result?;
    if options.repair && rebuilding == Rebuild::Allowed && report.left.len() == absent.len() + behind.len() {
        let hurt: Vec<Hurt> = vanished.into_iter().chain(behind.into_iter().map(|(path, _)| (path, None))).collect();
        rebuild(paths, &hurt, &mut report, progress)?;
    }
    report.conclude();
    Ok(report)
}

/// A replica that is to be rebuilt: its path, and who it was if it is not there.
type Hurt = (String, Option<Uuid>);

/// Whose places the absent paths are. A path counts as that of a member only where this host last saw it: a wrong path,
/// or a disk that is not mounted yet, must not cost the volume a healthy replica.
fn judge_absent(
    present: &[recover::Present],
    absent: &[(String, String)],
    rebuilding: Rebuild,
) -> Result<Vec<Hurt>, StoreError> {
    let choice = recover::choose(present)?;
    let mut away: Vec<(Uuid, MemberState)> = Vec::new();
    for (member, (index, _)) in choice.root.members.iter().zip(&choice.members) {
        if index.is_none() && member.state != MemberState::Detached {
            away.push((member.replica, member.state));
        }
    }
    let mut hurt = Vec::new();
    for (path, why) in absent {
        let was =
            |(uuid, _): &(Uuid, MemberState)| super::witness::stood_at(choice.root.volume, *uuid, path, EXAMINE_WAIT);
        let Some(index) = away.iter().position(was).filter(|_| rebuilding == Rebuild::Allowed) else {
            let told = super::sentence(path, why);
            return refused(match rebuilding {
                Rebuild::Never => format!("{told}: nothing was changed; only `stablefs fsck -y` rebuilds a replica"),
                Rebuild::Allowed => format!(
                    "{told}: nothing was changed, since this host never saw a replica of the volume there. Is its disk \
                     mounted? If the replica is lost, mount what is there with `-o degraded` and replace it"
                ),
            });
        };
        hurt.push((path.clone(), Some(away.swap_remove(index).0)));
    }
    if away.iter().any(|(_, state)| *state == MemberState::InSync) {
        return not_given();
    }
    if rebuilding == Rebuild::Never {
        recover::refuse_blind(present, &choice)?;
    }
    if rebuilding == Rebuild::Never && choice.missing > 0 {
        let behind: Vec<String> = choice.behind.iter().map(|(path, why)| super::sentence(path, why)).collect();
        return refused(format!(
            "{}: nothing was changed; only `stablefs fsck -y` rebuilds a replica",
            behind.join("; ")
        ));
    }
    Ok(hurt)
}

fn not_given<T>() -> Result<T, StoreError> {
    refused(
        "a replica that was in sync is not given: repairing without it would leave it behind. Give all replicas; \
         or mount what is there with `-o degraded` and replace the missing one"
            .into(),
    )
}

impl FsckReport {
    /// The exit code that follows from the lines.
    fn conclude(&mut self) {
        self.exit_code = match (self.left.is_empty(), self.findings.is_empty() && self.repaired.is_empty()) {
            (false, _) => 4,
            (true, false) => 1,
            (true, true) => 0,
        };
    }
}

/// Replicas that are to be rebuilt, and why.
pub(crate) type Behind = Vec<(String, String)>;

/// Refuses a root, on these replicas, that is older than what the host has seen.
pub(crate) type WitnessCheck = dyn Fn(&Root, &[Uuid]) -> Result<(), StoreError>;

/// Where the check runs.
pub(crate) struct Host<'a> {
    /// Time and randomness.
    pub world: Arc<dyn World>,
    /// Of one request to a replica.
    pub deadline: Duration,
    /// What this host has seen.
    pub check: &'a WitnessCheck,
    /// Told before anything is acknowledged with fewer replicas.
    pub on_shrink: ShrinkHook,
    /// Called before a repair writes anything.
    pub claim: &'a dyn Fn(&Store) -> Result<(), StoreError>,
}

/// Check (and repair) what is on the replicas that are there; rebuilds none.
pub(crate) fn run(
    present: Vec<recover::Present>,
    absent: &[(String, String)],
    options: &FsckOptions,
    host: Host<'_>,
    progress: FsckProgress<'_>,
) -> Result<(FsckReport, Behind), StoreError> {
    let mut report = FsckReport::default();
    let choice = recover::choose(&present)?;
    if options.repair {
        let here: Vec<_> = present.iter().map(|p| p.found.label.replica).collect();
        (host.check)(&choice.root, &here)?;
    }
    let in_sync = choice.root.members.iter().zip(&choice.members).filter(|(m, _)| m.state == MemberState::InSync);
    let gone = in_sync.filter(|(_, (index, _))| index.is_none()).count();
    let open = OpenStore {
        degraded: true,
        deadline: host.deadline,
        store: StoreOptions { read_only: !options.repair, ..StoreOptions::default() },
        on_shrink: Some(host.on_shrink),
        hold: true,
    };
    let (store, mut opened) = recover::open(present, open, host.world)?;
    if options.repair {
        (host.claim)(&store)?;
    }
    let behind = opened.behind.clone();
    for (path, why) in absent.iter().chain(&behind) {
        report.findings.push(format!("replica {}", super::sentence(path, why)));
    }
    if gone > absent.len() {
        let count = gone - absent.len();
        report.findings.push(format!("replica not given ({count} of this volume): its blocks are not proven"));
    }
    let hurt = report.findings.len();
    report.absent_or_behind = hurt;
    if options.repair && gone > absent.len() {
        return not_given();
    }
    if options.repair {
        store.enforce_root()?;
    }
    let first = look_at(&StoreSource::before_recovery(&store), options, options.repair, "checking", progress);
    note_first(&mut report, &first);
    let mut waiting = match store.log_waiting() {
        Ok(waiting) => waiting,
        Err(error) => {
            report.findings.push(error.to_string());
            recover::Waiting::default()
        }
    };
    report.log_records = waiting.records;
    note_combined(&mut report, std::mem::take(&mut waiting.combined).into_values().collect(), options.repair);
    report.findings.append(&mut waiting.findings);
    if waiting.healed > 0 && options.repair {
        report.healed += waiting.healed;
        let acknowledged = report.findings.iter().any(|line| line.ends_with("; healed"));
        if acknowledged {
            report.repaired.push(format!("{} blocks and records that wait in the log healed", waiting.healed));
        }
    }
    if !options.repair {
        report.left = report.findings.clone();
        report.conclude();
        return Ok((report, Vec::new()));
    }
    let last = repair(&store, first, options, &mut report, &mut opened, progress)?;
    let is_right = |finding: &check::Finding| is_healed(finding) || is_combined(finding);
    report.left = last.findings.iter().filter(|f| !is_right(f)).map(ToString::to_string).collect();
    report.proven = last.statistics.sum().proven;
    report.left.extend(waiting.left);
    report.left.extend(report.findings[..hurt].iter().cloned());
    report.conclude();
    store.commit(Force::Clean)?;
    Ok((report, behind))
}

pub(crate) fn is_healed(finding: &check::Finding) -> bool {
    matches!(finding, check::Finding::Block { outcome: check::Outcome::Healed(_), .. })
}

/// Put together from copies none of which was right, and written.
pub(crate) fn is_combined(finding: &check::Finding) -> bool {
    matches!(finding, check::Finding::Block { outcome: check::Outcome::Combined(..), .. })
}

/// Tell of each block that was put together, or can be, once.
fn note_combined(report: &mut FsckReport, lines: Vec<String>, written: bool) {
    report.combined += lines.len() as u64;
    let room = LINES_MAX.saturating_sub(report.combined_from.len());
    if written && !lines.is_empty() {
        report.repaired.push(format!(
            "{} blocks that no replica had put together from the parts; a checksum of 32 bits proves each, so it is wrong \
             with a chance of its candidates in 2^32",
            lines.len()
        ));
    }
    report.combined_from.extend(lines.into_iter().take(room));
}

fn note_first(report: &mut FsckReport, first: &Report) {
    report.findings.extend(first.findings.iter().map(ToString::to_string));
    report.findings_dropped = first.findings_dropped;
    let sum = first.statistics.sum();
    (report.detected, report.healed, report.lost, report.proven) = (sum.detected, sum.healed, sum.lost, sum.proven);
    report.inodes = first.inodes;
    report.statistics = first.statistics.clone();
    if sum.healed > sum.combined {
        report.repaired.push(format!("{} damaged blocks healed from another replica", sum.healed - sum.combined));
    }
    report.untried = first.untried;
    note_combined(report, first.combined(), first.findings.iter().any(is_combined));
}

pub(crate) fn look(store: &Store, options: &FsckOptions, heal: bool, what: &str, progress: FsckProgress<'_>) -> Report {
    look_at(&StoreSource::new(store), options, heal, what, progress)
}

fn look_at(
    source: &StoreSource<'_>,
    options: &FsckOptions,
    heal: bool,
    what: &str,
    progress: FsckProgress<'_>,
) -> Report {
    let options = CheckOptions { data: !options.quick, heal, ..CheckOptions::default() };
    let mut tell = |at: check::Progress| {
        progress(what, at.done, at.total);
        ControlFlow::Continue(())
    };
    check::check(source, &options, &mut tell)
}

/// Put right what `first` found; returns what the last look found.
pub(crate) fn repair(
    store: &Store,
    first: Report,
    options: &FsckOptions,
    report: &mut FsckReport,
    opened: &mut recover::Report,
    progress: FsckProgress<'_>,
) -> Result<Report, StoreError> {
    correct_space(store, &first.repairs, report)?;
    match store.log_damage()? {
        None => store.resume(LogEnd::Proven, opened)?,
        Some(why) => {
            store.resume(LogEnd::Accepted, opened)?;
            report.repaired.push(format!("the log was cut: {why}"));
        }
    }
    if lost_dead_list(&first) {
        // The lists go as soon as their groups are due; what they named shows as leaked then.
        store.commit(Force::Reclaim)?;
    }
    let mut last = first;
    for _ in 0..ROUNDS_MAX {
        let changed = correct_items(store, &last.repairs, report)?;
        // A count that was put right is in a new root, never written over the newest one.
        store.commit(if changed { Force::Always } else { Force::IfChanged })?;
        let before = std::mem::replace(&mut last, look(store, options, true, "proving", progress));
        note_combined(report, last.combined(), last.findings.iter().any(is_combined));
        if last.repairs.is_empty() || last.repairs == before.repairs {
            break;
        }
        correct_space(store, &last.repairs, report)?;
        store.commit(Force::Always)?;
    }
    Ok(last)
}

fn lost_dead_list(report: &Report) -> bool {
    let lost = |finding: &check::Finding| {
        let check::Finding::Block { structure, outcome, .. } = finding else { return false };
        *structure == check::Structure::DeadList && matches!(outcome, check::Outcome::Lost(_))
    };
    report.findings.iter().any(lost)
}

/// Bitmaps and counts of space; nothing may have been handed out since the last commit.
fn correct_space(store: &Store, repairs: &Repairs, report: &mut FsckReport) -> Result<(), StoreError> {
    for (zone, bitmap) in &repairs.zones {
        store.allocator().correct(store.mirror(), *zone, bitmap.clone())?;
    }
    if let Some(blocks) = repairs.backed {
        store.allocator().correct_backed(blocks);
    }
    if !repairs.zones.is_empty() {
        report.repaired.push(format!("bitmaps of {} zones put right", repairs.zones.len()));
    }
    Ok(())
}

enum Step {
    Put(Key, Vec<u8>),
    Delete(Key),
    Punch(u64),
}

/// Items; returns whether there was anything to do.
fn correct_items(store: &Store, repairs: &Repairs, report: &mut FsckReport) -> Result<bool, StoreError> {
    let mut steps = Vec::new();
    let entry = |directory: u64, cookie: u64| Key::new(directory, ItemKind::Dirent, cookie);
    for (ino, inode) in &repairs.inodes {
        steps.push(Step::Put(Key::inode(*ino), inode.encode()));
    }
    for (ino, map) in &repairs.file_maps {
        let key = Key::new(*ino, ItemKind::FileMap, 0);
        steps.push(if map.blocks > 0 { Step::Put(key, map.encode()) } else { Step::Delete(key) });
    }
    for ino in &repairs.orphans_to_add {
        steps.push(Step::Put(recover::orphan_key(*ino), vec![0; 8]));
    }
    steps.extend(repairs.orphans_to_drop.iter().map(|ino| Step::Delete(recover::orphan_key(*ino))));
    steps.extend(repairs.entries_to_drop.iter().map(|(dir, cookie, _)| Step::Delete(entry(*dir, *cookie))));
    for fix in &repairs.entries_to_retype {
        steps.push(Step::Put(entry(fix.directory, fix.cookie), fix.entry.encode()));
    }
    for step in &repairs.entries_to_move {
        steps.push(Step::Delete(entry(step.directory, step.cookie)));
        steps.push(Step::Put(entry(step.directory, step.to), step.entry.encode()));
    }
    steps.extend(repairs.items_to_drop.iter().map(|key| Step::Delete(*key)));
    for ino in &repairs.ownerless {
        steps.push(Step::Punch(*ino));
        for (key, _) in store.scan(Key::inode(*ino), Key::inode(ino.saturating_add(1)), usize::MAX)? {
            if !matches!(key.kind, ItemKind::Extent | ItemKind::FileMap) {
                steps.push(Step::Delete(key));
            }
        }
    }
    attach(store, &repairs.to_attach, &mut steps)?;
    let done = !steps.is_empty() || repairs.inode_count.is_some() || repairs.next_ino.is_some();
    if !steps.is_empty() {
        report.repaired.push(format!("{} items put right", steps.len()));
    }
    apply(store, &steps)?;
    if let Some(count) = repairs.inode_count {
        store.correct_inodes(count);
        report.repaired.push("count of inodes put right".into());
    }
    if let Some(next) = repairs.next_ino {
        store.correct_next_ino(next);
    }
    Ok(done)
}

fn apply(store: &Store, steps: &[Step]) -> Result<(), StoreError> {
    for chunk in steps.chunks(ITEMS_AT_ONCE) {
        let need = Need { items: chunk.len() as u32, data_blocks: 0, may_use_reserve: true };
        let mut transaction = store.begin(need)?;
        for step in chunk {
            match step {
                Step::Put(key, value) => transaction.put(*key, value.clone()),
                Step::Delete(key) => transaction.delete(*key),
                Step::Punch(ino) => transaction.punch(*ino, 0, u64::MAX),
            }
        }
        transaction.prepare()?;
        transaction.commit();
    }
    Ok(())
}

/// Give nameless inodes a name in `/lost+found`; counts that this changes are put right in the next round.
fn attach(store: &Store, inos: &[u64], steps: &mut Vec<Step>) -> Result<(), StoreError> {
    if inos.is_empty() {
        return Ok(());
    }
    let hash_key = store.label().hash_key;
    let base = crate::format::item::name_cookie_base(hash_key, b"lost+found");
    let found = store.scan(
        Key::new(ROOT_INO, ItemKind::Dirent, base),
        Key::new(ROOT_INO, ItemKind::Dirent, base + 256),
        256,
    )?;
    let existing = found
        .iter()
        .filter_map(|(_, value)| Dirent::decode(value).ok())
        .find(|e| e.name == b"lost+found" && e.file_type == 4);
    let directory = match existing {
        Some(entry) => entry.ino,
        None => {
            let ino = store.new_ino();
            let free = (base..base + 256).find(|c| found.iter().all(|(k, _)| k.off != *c)).unwrap_or(base);
            let entry = Dirent { ino, file_type: 4, name: b"lost+found".to_vec() };
            steps.push(Step::Put(Key::new(ROOT_INO, ItemKind::Dirent, free), entry.encode()));
            steps.push(Step::Put(Key::inode(ino), lost_and_found(store, free).encode()));
            ino
        }
    };
    for ino in inos {
        let Some(value) = store.get(Key::inode(*ino))? else { continue };
        let inode = Inode::decode(&value)?;
        let name = format!("#{ino}").into_bytes();
        let cookie = crate::format::item::name_cookie_base(hash_key, &name);
        let entry = Dirent { ino: *ino, file_type: (inode.mode >> 12) as u8, name };
        steps.push(Step::Put(Key::new(directory, ItemKind::Dirent, cookie), entry.encode()));
    }
    Ok(())
}

fn lost_and_found(store: &Store, cookie: u64) -> Inode {
    let now = store.world().now();
    Inode {
        mode: 0o040_700,
        uid: 0,
        gid: 0,
        nlink: 2,
        size: 0,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
        rdev: 0,
        flags: 0,
        parent: ROOT_INO,
        parent_cookie: cookie,
        generation: store.mount_count() as u32,
    }
}

/// Rebuild replicas that are absent or behind from the others; nothing else is left.
fn rebuild(
    paths: &[PathBuf],
    hurt: &[Hurt],
    report: &mut FsckReport,
    progress: FsckProgress<'_>,
) -> Result<(), StoreError> {
    if hurt.is_empty() {
        return Ok(());
    }
    let volume = Volume::open(paths, &OpenOptions { degraded: true, ..OpenOptions::default() })?;
    volume.start()?;
    report.left.clear();
    for (path, was) in hurt {
        match rebuild_one(&volume, path, *was, progress) {
            Ok(blocks) => report.repaired.push(format!("replica {path} rebuilt: {blocks} blocks proven on it")),
            Err(why) => report.left.push(format!("replica {path} could not be rebuilt: {why}")),
        }
    }
    volume.close().map(|_| ())
}

/// Returns the blocks that were proven on it.
fn rebuild_one(volume: &Volume, path: &str, was: Option<Uuid>, progress: FsckProgress<'_>) -> Result<u64, StoreError> {
    let health = volume.mirror.health();
    let found = health.iter().find(|h| match was {
        Some(uuid) => h.name.uuid == uuid,
        None => h.name.path == path,
    });
    let Some(old) = found.filter(|h| h.state != ReplicaState::InSync) else {
        return refused("it is no member of the volume, or in sync".into());
    };
    let done = volume.replace(&old.slot.to_string(), std::path::Path::new(path), &mut |at| {
        progress("rebuilding", at.done, at.total);
        true
    })?;
    Ok(done.blocks_proven)
}

#[cfg(test)]
mod tests;
