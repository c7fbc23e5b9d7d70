//! A volume as the daemon and the offline tools use it: paths in, a running store out.
//!
//! *Guarantees*: nothing is written to a path that holds foreign data without `force`; a volume is open once; every
//! refusal says what to do next. *Assumes*: nothing of the paths. *Fails when*: [`StoreError::Refused`].
//! *Order*: inspect → open (locks) → examine → recover → threads. *Not here*: mounting.

pub mod anew;
pub mod availability;
pub mod away;
pub mod beat;
pub mod events;
pub mod follow;
pub mod fsck;
pub mod members;
mod pace;
pub mod replace;
pub mod resolve;
pub mod risk;
pub mod scrub;
pub mod slowed;
pub mod status;
pub mod witness;

use crate::disk::backing::{Backing, BackingKind};
use crate::disk::file::{self, CreateOptions, Inspection, Mode};
use crate::disk::{Mirror, ReplicaHealth, ReplicaState};
use crate::format::{BLOCK, Geometry, Label, MemberState, REPLICAS_MAX, REPLICAS_MIN, Role, Uuid};
use crate::fs::Filesystem;
use crate::store::commit::Force;
use crate::store::create::{CreateStore, create};
use crate::store::engine::Engine;
use crate::store::recover::{self, LogEnd, OpenStore, Present, Report};
use crate::store::{Store, StoreError, StoreOptions};
use crate::sync::Instant;
use crate::sync::Mutex;
use crate::sync::atomic::AtomicU64;
use crate::world::{Machine, World};
use beat::opening::Opening;
use beat::watch::Patience;
use beat::{Beating, Heart, Use};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use witness::Witness;

/// Smallest volume: 16 MiB.
pub const SIZE_MIN: u64 = 16 << 20;
/// How long opening waits for one read of a label or root.
const EXAMINE_WAIT: Duration = Duration::from_secs(10);
/// How long opening waits for a daemon that has been unmounted and has still to write.
const ENDING_WAIT: Duration = Duration::from_secs(30);
/// Share of a call's deadline for writing the witness.
const WITNESS_SHARE: f64 = 0.2;
/// Longest time between a change and the commit that holds it.
const COMMIT_INTERVAL: Duration = Duration::from_secs(5);

/// How to make a volume.
#[derive(Debug, Clone)]
pub struct FormatOptions {
    /// Bytes of the volume; `None`: as much as the smallest replica has room for.
    pub size_bytes: Option<u64>,
    /// What the user calls it.
    pub label: String,
    /// Overwrite what is there.
    pub force: bool,
    /// Owner of the root directory.
    pub uid: u32,
    /// Group of the root directory.
    pub gid: u32,
}

/// What was made.
#[derive(Debug, Clone, serde::Serialize)]
pub struct FormatReport {
    /// Identity of the volume.
    pub volume: String,
    /// Paths of the replicas.
    pub replicas: Vec<String>,
    /// Bytes of the volume, metadata included.
    pub size_bytes: u64,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// How to open a volume.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// For reading only.
    pub read_only: bool,
    /// Although replicas that were in sync are missing.
    pub degraded: bool,
    /// Although this host has seen a newer state of the volume on a replica that is missing now.
    pub accept_stale: bool,
    /// Although another host may still use the volume: its heartbeat is not waited for.
    pub force_owner: bool,
    /// Longest wait for one call; a replica gets 40 % of it for one request.
    pub deadline: Duration,
    /// How far a warm replica may be behind.
    pub lag: Lag,
    /// A slow replica becomes warm, and hot again later.
    pub slow_becomes_warm: bool,
    /// A replica without room for new data is left behind, as long as another one has some.
    pub full_leaves: bool,
    /// Store behaviour beside `read_only`.
    pub store: StoreOptions,
}

impl Default for OpenOptions {
    fn default() -> OpenOptions {
        OpenOptions {
            read_only: false,
            degraded: false,
            accept_stale: false,
            force_owner: false,
            deadline: Duration::from_secs(5),
            lag: Lag::default(),
            slow_becomes_warm: false,
            full_leaves: false,
            store: StoreOptions::default(),
        }
    }
}

/// How far a warm replica may be behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lag {
    /// In time.
    pub time: Duration,
    /// In bytes that it misses.
    pub bytes: Option<u64>,
}

impl Default for Lag {
    fn default() -> Lag {
        Lag { time: Duration::from_secs(10), bytes: None }
    }
}

/// An open volume.
pub struct Volume {
    /// Items and data.
    pub store: Arc<Store>,
    /// The replicas.
    pub mirror: Arc<Mirror>,
    /// Identity.
    pub label: Label,
    /// What opening did.
    pub report: Report,
    /// Replicas that were named but could not be opened: path and why.
    pub absent: Vec<(String, String)>,
    options: OpenOptions,
    opened: Instant,
    engine: Mutex<Option<Engine>>,
    heart: Arc<Heart>,
    beating: Mutex<Option<Beating>>,
    found_as: events::FoundAs,
    recorder: Mutex<Option<events::Recorder>>,
    /// Long work that is under way.
    work: Mutex<Option<&'static str>>,
    /// Slots that were sent away.
    /// Repairs that failed before a scrub proved everything.
    forgiven: AtomicU64,
    kept_away: Mutex<BTreeSet<usize>>,
    /// Who is not hot.
    roles: Mutex<BTreeMap<Uuid, follow::Tracked>>,
    /// One follows at a time.
    following: Mutex<()>,
    /// Who was made warm for being slow.
    slowed: Mutex<slowed::Slowed>,
    /// Slots whose container was seen to be deleted.
    deleted: Mutex<BTreeMap<usize, anew::Deleted>>,
}

/// Long work; while it lives no other can begin.
struct Alone<'a>(&'a Volume);

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        *self.0.work.lock() = None;
    }
}

fn refused<T>(text: String) -> Result<T, StoreError> {
    Err(StoreError::Refused(text))
}

/// Make a volume on `paths`.
pub fn format(paths: &[PathBuf], options: &FormatOptions) -> Result<FormatReport, StoreError> {
    if !(REPLICAS_MIN..=REPLICAS_MAX).contains(&paths.len()) {
        return refused(format!("a volume has {REPLICAS_MIN} to {REPLICAS_MAX} replicas, {} given", paths.len()));
    }
    if options.label.len() > crate::format::label::VOLUME_LABEL_MAX {
        return refused("a label has at most 64 bytes".into());
    }
    let found = paths
        .iter()
        .map(|path| file::inspect(path).map_err(|error| StoreError::Refused(error.to_string())))
        .collect::<Result<Vec<Inspection>, _>>()?;
    for (i, one) in found.iter().enumerate() {
        if found[..i].iter().any(|other| other.path == one.path) {
            return refused(format!("{}: given twice; a replica of itself protects nothing", one.path.display()));
        }
        check_overwrite(one, options.force)?;
    }
    let size_bytes = size_of(&found, options)?;
    let replicas: Vec<PathBuf> = found.iter().filter(|one| one.label.is_some()).map(|one| one.path.clone()).collect();
    beat::opening::check_unused(&replicas, &Machine)?;
    let blocks = size_bytes / BLOCK as u64;
    let log_blocks = (blocks / 32).clamp(64, 8192) as u32;
    let geometry = Geometry::new(blocks, crate::format::geometry::ZONE_BLOCKS_MAX, log_blocks)?;
    let mut backings: Vec<(String, Arc<dyn Backing>)> = Vec::new();
    for one in &found {
        let length = if one.kind == BackingKind::Directory { 0 } else { blocks };
        let create = CreateOptions { blocks: length, replace: options.force, only_in: None };
        let backing =
            file::open(&one.path, Mode::Write, Some(create)).map_err(|error| StoreError::Refused(error.to_string()))?;
        backings.push((one.path.display().to_string(), backing));
    }
    let world: Arc<dyn World> = Arc::new(Machine);
    let grows = found.iter().any(|one| one.kind == BackingKind::Directory);
    let root_items = Filesystem::root_items(world.now(), options.uid, options.gid);
    let make = CreateStore { geometry, name: options.label.clone(), grows, root_items, deadline: EXAMINE_WAIT };
    let kept: Vec<Arc<dyn Backing>> = backings.iter().map(|(_, b)| b.clone()).collect();
    let labels = create(backings, make, world);
    close_all(&kept);
    let labels = labels.map_err(|error| match error {
        StoreError::NoSpace => StoreError::Refused("not enough room on a replica's filesystem for the volume".into()),
        other => other,
    })?;
    let here: Vec<_> = labels.iter().zip(&found).map(|(l, one)| (l.replica, one.path.display().to_string())).collect();
    witness::note_places(labels[0].volume, &[], &here, EXAMINE_WAIT);
    Ok(FormatReport {
        volume: labels[0].volume.to_string(),
        replicas: found.iter().map(|one| one.path.display().to_string()).collect(),
        size_bytes,
        warnings: same_device(&found),
    })
}

fn check_overwrite(found: &Inspection, force: bool) -> Result<(), StoreError> {
    if force {
        return Ok(());
    }
    let path = found.path.display();
    if let Some(label) = &found.label {
        return refused(format!("{path}: is a replica of volume {}; --force makes a new one over it", label.volume));
    }
    match &found.foreign {
        Some(what) => refused(format!("{path}: {what}; --force overwrites it")),
        None => Ok(()),
    }
}

fn size_of(found: &[Inspection], options: &FormatOptions) -> Result<u64, StoreError> {
    let room = |one: &Inspection| match one.kind {
        BackingKind::Directory => one.free_bytes + one.size_bytes,
        BackingKind::File if options.size_bytes.is_some() => one.free_bytes + one.size_bytes,
        _ => one.size_bytes,
    };
    let smallest = found.iter().min_by_key(|one| room(one)).expect("at least two");
    // A little stays for the filesystem below.
    let most = match smallest.kind {
        BackingKind::Directory => room(smallest) / 100 * 99,
        _ => room(smallest),
    };
    let size = options.size_bytes.unwrap_or(most);
    let path = smallest.path.display();
    if size < SIZE_MIN {
        return refused(format!("{path}: {} MiB are too small; a volume has at least 16 MiB", size >> 20));
    }
    if size > most && !options.force {
        return refused(format!("{path}: no space for {} MiB, only {} MiB are free there", size >> 20, most >> 20));
    }
    Ok(size / BLOCK as u64 * BLOCK as u64)
}

fn same_device(found: &[Inspection]) -> Vec<String> {
    let mut out = Vec::new();
    for (i, one) in found.iter().enumerate() {
        if let Some(other) = found[..i].iter().find(|other| other.device == one.device) {
            out.push(format!(
                "{} and {} lie on the same device: its death takes both replicas",
                other.path.display(),
                one.path.display()
            ));
        }
    }
    out
}

fn close_all(backings: &[Arc<dyn Backing>]) {
    backings.iter().for_each(|b| b.close());
    let until = Instant::now() + Duration::from_secs(5);
    while backings.iter().any(|b| !b.is_closed()) && Instant::now() < until {
        crate::sync::thread::sleep(Duration::from_millis(1));
    }
}

/// Open a replica; if a daemon holds it that has been unmounted, once that one has let go, waiting not longer than `until`.
fn open_after_its_holder(path: &Path, mode: Mode, until: Instant) -> Result<Arc<dyn Backing>, file::OpenError> {
    let mut told = false;
    loop {
        let opened = file::open(path, mode, None);
        if !matches!(opened, Err(file::OpenError::Busy(_))) || Instant::now() >= until {
            return opened;
        }
        let Some(process) = file::ending_holder(path) else { return opened };
        if !std::mem::replace(&mut told, true) {
            let place = path.display();
            log::warn!("{place}: waiting for process {process}, which has been unmounted and has still to write");
        }
    }
}

/// Open what is there of `paths`: (replicas, those that are not there with the reason).
#[allow(clippy::type_complexity)]
pub fn open_paths(paths: &[PathBuf], mode: Mode) -> Result<(Vec<Present>, Vec<(String, String)>), StoreError> {
    let mut present: Vec<Present> = Vec::new();
    let mut absent = Vec::new();
    let mut seen: Vec<PathBuf> = Vec::new();
    let until = Instant::now() + ENDING_WAIT;
    for path in paths {
        let full = path.canonicalize().unwrap_or_else(|_| path.clone());
        if seen.contains(&full) {
            return refused(format!("{}: given twice", path.display()));
        }
        seen.push(full.clone());
        match open_after_its_holder(&full, mode, until) {
            Ok(backing) => match recover::examine(&*backing, EXAMINE_WAIT) {
                Ok(found) => present.push(Present { path: full.display().to_string(), backing, found }),
                Err(why) => {
                    close_all(&[backing]);
                    absent.push((full.display().to_string(), why));
                }
            },
            Err(error @ (file::OpenError::Busy(_) | file::OpenError::Permission(_))) => {
                present.iter().for_each(|p| p.backing.close());
                return refused(error.to_string());
            }
            Err(error) => absent.push((full.display().to_string(), error.to_string())),
        }
    }
    Ok((present, absent))
}

/// Open the store of `present` and recover, where this host has `seen` a state of it. `open` must hold. `claim` is called
/// before anything is written.
pub(crate) fn open_store(
    mut present: Vec<Present>,
    open: OpenStore,
    seen: Option<Witness>,
    accept_stale: bool,
    world: Arc<dyn World>,
    claim: &dyn Fn(&Store) -> Result<(), StoreError>,
) -> Result<(Store, Report), StoreError> {
    if accept_stale {
        recover::believe_older(&mut present)?;
    }
    let choice = recover::choose(&present)?;
    if let Some(seen) = seen.as_ref().filter(|_| !accept_stale) {
        let here: Vec<_> = present.iter().map(|p| p.found.label.replica).collect();
        seen.check(&choice.root, &here)?;
    }
    recover::refuse_blind(&present, &choice)?;
    let (store, mut report) = recover::open_or_follower(present, open, world, accept_stale)?;
    claim(&store)?;
    if seen.is_some_and(|seen| seen.is_apart(&choice.root)) {
        store.begin_apart();
    }
    store.resume(LogEnd::Proven, &mut report)?;
    Ok((store, report))
}

impl Volume {
    /// Open the volume on `paths`, recover, and leave it ready; [`Volume::start`] starts its threads.
    pub fn open(paths: &[PathBuf], options: &OpenOptions) -> Result<Volume, StoreError> {
        let mode = if options.read_only { Mode::ReadOnly } else { Mode::Write };
        let (present, absent) = open_paths(paths, mode)?;
        let backings: Vec<Arc<dyn Backing>> = present.iter().map(|p| p.backing.clone()).collect();
        let opened = Volume::recover(present, absent, options);
        if opened.is_err() {
            close_all(&backings);
        }
        opened
    }

    fn recover(
        mut present: Vec<Present>,
        absent: Vec<(String, String)>,
        options: &OpenOptions,
    ) -> Result<Volume, StoreError> {
        let why = absent.iter().map(|(path, why)| sentence(path, why)).collect::<Vec<_>>().join("; ");
        if present.is_empty() {
            return refused(if why.is_empty() { "no replica was given".into() } else { why });
        }
        let label = present[0].found.label.clone();
        let paths = present.iter().map(|p| p.path.clone()).collect::<Vec<_>>();
        let patience = options.deadline.mul_f64(WITNESS_SHARE);
        let world: Arc<dyn World> = Arc::new(Machine);
        let usage = if options.read_only { Use::Read } else { Use::Write };
        let force = if options.force_owner { Patience::Force } else { Patience::Wait };
        let deadline = options.deadline.mul_f64(0.4);
        let opening = Opening::look(&mut present, usage, force, deadline, &world)?;
        let store = OpenStore {
            degraded: options.degraded,
            deadline,
            store: StoreOptions { read_only: options.read_only, ..options.store.clone() },
            on_shrink: Some(Box::new(move |root| witness::write(root, &paths, patience))),
            hold: true,
        };
        let seen = witness::read(label.volume, EXAMINE_WAIT);
        // What cannot be chosen from is refused below.
        let found_as = recover::choose(&present)
            .map(|choice| events::FoundAs { clean: choice.root.clean, last_root_ns: choice.root.time_ns })
            .unwrap_or_default();
        let absent_places = Volume::places_of_absent(&present, &absent);
        let opened =
            open_store(present, store, seen, options.accept_stale, world, &|store: &Store| opening.claim(store));
        let (store, report) = match opened {
            Ok(both) => both,
            Err(error) => {
                opening.give_up();
                return Err(match error {
                    StoreError::Refused(text) if !why.is_empty() => StoreError::Refused(format!("{why}; {text}")),
                    StoreError::Refused(text) if !absent_places.is_empty() => StoreError::Refused(format!(
                        "{text}; a replica that is not given was last seen at {absent_places}"
                    )),
                    other => other,
                });
            }
        };
        for (path, why) in &report.behind {
            log::warn!("replica {path} is not in sync ({why})");
        }
        let mirror = store.mirror().clone();
        mirror.leave_full(options.full_leaves);
        let members = store.durable_root().members;
        let kept_away = (0..members.len()).filter(|slot| members[*slot].offline).collect();
        let follows = members.iter().filter(|member| member.role != Role::Hot);
        let roles = follows.map(|member| (member.replica, follow::Tracked::new(member.role))).collect();
        let volume = Volume {
            store: Arc::new(store),
            mirror,
            label,
            report,
            absent,
            options: options.clone(),
            opened: Instant::now(),
            engine: Mutex::new(None),
            heart: opening.into_heart(),
            beating: Mutex::new(None),
            found_as,
            recorder: Mutex::new(None),
            work: Mutex::new(None),
            forgiven: AtomicU64::new(0),
            kept_away: Mutex::new(kept_away),
            roles: Mutex::new(roles),
            following: Mutex::new(()),
            slowed: Mutex::default(),
            deleted: Mutex::default(),
        };
        if !options.read_only {
            volume.note_places();
        }
        Ok(volume)
    }

    /// Where this host last saw the replicas that should be there and were not named.
    fn places_of_absent(present: &[Present], absent: &[(String, String)]) -> String {
        let Ok(choice) = recover::choose(present) else { return String::new() };
        let members = choice.root.members.iter().zip(&choice.members);
        let gone = members.filter(|(member, (index, _))| member.state == MemberState::InSync && index.is_none());
        let gone: Vec<_> = gone.map(|(member, _)| member.replica).collect();
        let mut places = witness::last_seen(choice.root.volume, &gone, EXAMINE_WAIT);
        places.retain(|place| present.iter().all(|p| p.path != *place) && absent.iter().all(|(path, _)| path != place));
        places.join(" and ")
    }

    /// Start the store's threads.
    pub fn start(&self) -> Result<(), StoreError> {
        let mut engine = self.engine.lock();
        if engine.is_none() {
            *engine = Some(match self.options.read_only {
                true => Engine::watch(&self.store)?,
                false => Engine::start(&self.store, COMMIT_INTERVAL)?,
            });
            let store = self.store.clone();
            let on_taken = move |error: &StoreError| store.fail(error);
            *self.beating.lock() = Some(Beating::start(self.heart.clone(), self.mirror.clone(), on_taken)?);
        }
        Ok(())
    }

    /// Write down where the replicas in sync stand.
    fn note_places(&self) {
        let health: Vec<_> = self.mirror.health().into_iter().filter(ReplicaHealth::is_member).collect();
        let members: Vec<_> = health.iter().map(|h| h.name.uuid).collect();
        let in_sync = health.into_iter().filter(|h| h.state == ReplicaState::InSync);
        let here: Vec<_> = in_sync.map(|h| (h.name.uuid, h.name.path)).collect();
        witness::note_places(self.label.volume, &members, &here, EXAMINE_WAIT);
    }

    fn begin_work(&self, what: &'static str) -> Result<Alone<'_>, StoreError> {
        let mut work = self.work.lock();
        if let Some(other) = *work {
            let stop = match other {
                "scrub" => " (stablefs scrub --stop)",
                away::RESYNC => " (stablefs offline)",
                _ => "",
            };
            return refused(format!("a {other} is running: wait for it or stop it{stop}"));
        }
        *work = Some(what);
        Ok(Alone(self))
    }

    /// Options in force.
    pub fn options(&self) -> &OpenOptions {
        &self.options
    }

    /// Final commit, clean root, release. Returns the paths of replicas whose I/O still hangs.
    pub fn close(self) -> Result<Vec<String>, StoreError> {
        // While the engine runs: a change may wait for it.
        if let Some(recorder) = self.recorder.lock().take() {
            recorder.end();
        }
        if let Some(engine) = self.engine.lock().take() {
            engine.stop();
        }
        let result = if self.options.read_only { Ok(()) } else { self.store.commit(Force::Clean) };
        drop(self.beating.lock().take());
        let result = result.and_then(|()| Ok(self.heart.release(&self.mirror)?));
        self.mirror.set_guard(None);
        let hanging = self.mirror.close(self.options.deadline);
        result.map(|()| hanging)
    }
}

fn sentence(path: &str, why: &str) -> String {
    // Errors of opening name the path themselves.
    if why.starts_with(path) { why.to_owned() } else { format!("{path}: {why}") }
}

/// The path of `path` made absolute, for messages and for `replace`.
pub fn absolute(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| std::path::absolute(path).unwrap_or_else(|_| path.to_owned()))
}
