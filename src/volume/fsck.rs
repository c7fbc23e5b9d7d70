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

use super::{OpenOptions, Volume, open_paths, refused};
use crate::disk::backing::Backing;
use crate::disk::file::Mode;
use crate::format::item::Dirent;
use crate::format::{Inode, ItemKind, Key, ROOT_INO, Root, Uuid};
use crate::store::check::{self, CheckOptions, Repairs, Report, StoreSource};
use crate::store::commit::Force;
use crate::store::history::ShrinkHook;
use crate::store::recover::{self, LogEnd, OpenStore};
use crate::store::{Need, Store, StoreError, StoreOptions};
use crate::world::{Machine, World};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Rounds of check and repair: each can uncover what the one before hid.
const ROUNDS_MAX: usize = 6;
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

/// Check (and repair) the volume on `paths`.
pub fn fsck(paths: &[PathBuf], options: &FsckOptions, progress: FsckProgress<'_>) -> Result<FsckReport, StoreError> {
    let mode = if options.repair { Mode::Write } else { Mode::ReadOnly };
    let (present, absent) = open_paths(paths, mode)?;
    let backings: Vec<Arc<dyn Backing>> = present.iter().map(|p| p.backing.clone()).collect();
    if present.is_empty() {
        let why: Vec<String> = absent.iter().map(|(path, why)| super::sentence(path, why)).collect();
        return refused(format!("nothing to check: {}", why.join("; ")));
    }
    let known: Vec<String> = present.iter().map(|p| p.path.clone()).collect();
    let host = Host {
        world: Arc::new(Machine),
        deadline: Duration::from_secs(30),
        check: &super::witness::check,
        on_shrink: Box::new(move |root| super::witness::write(root, &known)),
    };
    let result = run(present, &absent, options, host, progress);
    super::close_all(&backings);
    let (mut report, behind) = result?;
    if options.repair && report.left.iter().all(|l| l.starts_with(REBUILD)) {
        rebuild(paths, absent.into_iter().chain(behind).collect(), options, &mut report, progress)?;
    }
    report.exit_code = exit_code(&report);
    Ok(report)
}

/// What fsck(8) would answer.
pub(crate) fn exit_code(report: &FsckReport) -> u8 {
    match (report.findings.is_empty(), report.left.is_empty()) {
        (true, _) => 0,
        (false, true) => 1,
        (false, false) => 4,
    }
}

/// Begins the line of a replica that is to be rebuilt.
const REBUILD: &str = "replica ";

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
    if options.repair {
        let here: Vec<_> = present.iter().map(|p| p.found.label.replica).collect();
        (host.check)(&recover::choose(&present)?.root, &here)?;
    }
    let open = OpenStore {
        degraded: true,
        deadline: host.deadline,
        store: StoreOptions { read_only: !options.repair, ..StoreOptions::default() },
        on_shrink: Some(host.on_shrink),
        hold: true,
    };
    let (store, mut opened) = recover::open(present, open, host.world)?;
    let behind = opened.behind.clone();
    for (path, why) in absent.iter().chain(&behind) {
        report.findings.push(format!("{REBUILD}{}", super::sentence(path, why)));
    }
    if opened.missing > absent.len() + behind.len() {
        let count = opened.missing - absent.len();
        report.findings.push(format!("{count} replica(s) of this volume were not given: their blocks are not proven"));
    }
    let not_given = report.findings.len();
    if options.repair && opened.missing > absent.len() + behind.len() {
        return refused(
            "a replica that was in sync is not given: repairing without it would leave it behind. Give all replicas; \
             or mount what is there with `-o degraded` and replace the missing one"
                .into(),
        );
    }
    if options.repair {
        store.enforce_root()?;
    }
    let first = look_at(&StoreSource::before_recovery(&store), options, options.repair, "checking", progress);
    note_first(&mut report, &first);
    match store.log_waiting() {
        Ok(records) => report.log_records = records,
        Err(error) => report.findings.push(error.to_string()),
    }
    if !options.repair {
        report.left = report.findings.clone();
        return Ok((report, Vec::new()));
    }
    let last = repair(&store, first, options, &mut report, &mut opened, progress)?;
    report.left = last.findings.iter().filter(|f| !is_healed(f)).map(ToString::to_string).collect();
    report.proven = last.statistics.sum().proven;
    report.left.extend(report.findings[..not_given].iter().cloned());
    store.commit(Force::Clean)?;
    Ok((report, behind))
}

pub(crate) fn is_healed(finding: &check::Finding) -> bool {
    matches!(finding, check::Finding::Block { outcome: check::Outcome::Healed(_), .. })
}

fn note_first(report: &mut FsckReport, first: &Report) {
    report.findings.extend(first.findings.iter().map(ToString::to_string));
    report.findings_dropped = first.findings_dropped;
    let sum = first.statistics.sum();
    (report.detected, report.healed, report.lost, report.proven) = (sum.detected, sum.healed, sum.lost, sum.proven);
    report.inodes = first.inodes;
    report.statistics = first.statistics.clone();
    if sum.healed > 0 {
        report.repaired.push(format!("{} damaged blocks healed from another replica", sum.healed));
    }
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
    match store.resume(LogEnd::Proven, opened) {
        Ok(()) => {}
        Err(StoreError::Refused(why)) => {
            store.resume(LogEnd::Accepted, opened)?;
            report.repaired.push(format!("the log was cut: {why}"));
        }
        Err(other) => return Err(other),
    }
    if lost_dead_list(&first) {
        // The lists go as soon as their groups are due; what they named shows as leaked then.
        store.commit(Force::Reclaim)?;
    }
    if opened.replayed > 0 {
        report.repaired.push(format!("{} log records replayed", opened.replayed));
    }
    let mut last = first;
    for _ in 0..ROUNDS_MAX {
        let changed = correct_items(store, &last.repairs, report)?;
        store.sync()?;
        last = look(store, options, true, "proving", progress);
        if last.repairs.is_empty() || !changed && correct_space(store, &last.repairs, report)? == 0 {
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
fn correct_space(store: &Store, repairs: &Repairs, report: &mut FsckReport) -> Result<usize, StoreError> {
    for (zone, bitmap) in &repairs.zones {
        store.allocator().correct(store.mirror(), *zone, bitmap.clone())?;
    }
    if let Some(blocks) = repairs.backed {
        store.allocator().correct_backed(blocks);
    }
    if !repairs.zones.is_empty() {
        report.repaired.push(format!("bitmaps of {} zones put right", repairs.zones.len()));
    }
    Ok(repairs.zones.len() + usize::from(repairs.backed.is_some()))
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
        for (key, _) in store.scan(Key::inode(*ino), Key::inode(ino + 1), usize::MAX)? {
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

/// Rebuild replicas that are absent or behind from the others.
fn rebuild(
    paths: &[PathBuf],
    hurt: Behind,
    options: &FsckOptions,
    report: &mut FsckReport,
    progress: FsckProgress<'_>,
) -> Result<(), StoreError> {
    if hurt.is_empty() || !options.repair {
        return Ok(());
    }
    let volume = Volume::open(paths, &OpenOptions { degraded: true, ..OpenOptions::default() })?;
    volume.start()?;
    let outcome = rebuild_all(&volume, &hurt, report, progress);
    let closed = volume.close();
    outcome?;
    closed.map(|_| ())
}

fn rebuild_all(
    volume: &Volume,
    hurt: &Behind,
    report: &mut FsckReport,
    progress: FsckProgress<'_>,
) -> Result<(), StoreError> {
    for (path, _) in hurt {
        // The slot of a replica that is not there has no path: the first one that is not in sync.
        let health = volume.mirror.health();
        let in_sync = crate::disk::ReplicaState::InSync;
        let slot = health
            .iter()
            .find(|h| h.name.path == *path)
            .or_else(|| health.iter().find(|h| h.state != in_sync))
            .filter(|h| h.state != in_sync)
            .map(|h| h.slot);
        let Some(slot) = slot else {
            report.left.push(format!("{path}: every replica of the volume is in sync; this one is not needed"));
            continue;
        };
        let rebuilt = volume.replace(&slot.to_string(), std::path::Path::new(path), &mut |at| {
            progress("rebuilding", at.done, at.total);
            true
        });
        match rebuilt {
            Ok(done) => {
                report.repaired.push(format!("replica {path} rebuilt: {} blocks proven on it", done.blocks_proven));
                report.left.retain(|line| !line.contains(path.as_str()));
            }
            Err(error) => report.left.push(format!("replica {path} could not be rebuilt: {error}")),
        }
    }
    Ok(())
}
