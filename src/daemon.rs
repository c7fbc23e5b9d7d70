//! The process behind a mount: opens the volume, mounts, serves, and ends in order.
//!
//! *Guarantees*: `stablefs mount` returns success only when the mount answers; when the daemon ends by request, signal or
//! `umount(8)`, everything done on the mount is durable, and what failed is said. Only what was mounted here is unmounted.
//! *Assumes*: no threads run yet when [`serve`] is called (process settings are inherited by threads).
//! *Fails when*: a part cannot be had; the parts before it are undone and one line tells why.
//! *Order*: process settings → mount point → volume → filesystem → mount → threads → requests → control socket → ready.
//! The end runs backwards: commit, unmount, stop answering, commit and close.
//! *Not here*: becoming a background process (`launch`), what status says (`report`), long work (`task`).

mod following;
pub mod hook;
pub mod journal;
pub mod launch;
pub mod report;
mod returning;
mod service;
pub mod task;
mod work;

use crate::cli::options::{self, MountOptions};
use crate::control::{Server, place};
use crate::fs::{Filesystem, FsOptions};
use crate::fuse::ServeOptions;
use crate::fuse::fuser::Session;
use crate::mount::{self, MountError, MountPlan, Mounted};
use crate::store::{Store, StoreOptions};
use crate::volume::events::Listener;
use crate::volume::{OpenOptions, Volume};
use hook::Hook;
use parking_lot::RwLock;
use service::Service;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// How long the kernel may take to end a session after its mount is gone; it takes longer only if another mount
/// namespace holds a copy.
const SESSION_END_MAX: Duration = Duration::from_secs(3);
/// How long a client may take to read the last answer.
const LAST_ANSWER_MAX: Duration = Duration::from_secs(2);
/// Pause of the background reclaim when there was nothing to do.
const RECLAIM_PAUSE: Duration = Duration::from_secs(1);

/// What to mount, as the user said it.
#[derive(Debug, Clone)]
pub struct Job {
    /// Paths of the replicas.
    pub replicas: Vec<PathBuf>,
    /// Where to.
    pub mountpoint: PathBuf,
    /// `-o`.
    pub options: MountOptions,
}

/// Outcome of an end: paths of replicas that still hang, or what could not be made durable.
pub(crate) type Ended = Result<Vec<String>, String>;

/// Something that the main thread must act on.
pub(crate) enum Event {
    /// SIGTERM, SIGINT or SIGHUP.
    Signal(i32),
    /// Nothing is mounted any more.
    SessionEnded,
    /// A client wants the mount to end.
    Umount {
        /// Detach although files are open.
        lazy: bool,
        /// Where the outcome goes.
        answer: Sender<Ended>,
    },
}

/// What came of waiting for the kernel to let go of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waited {
    /// It did.
    Ended,
    /// It did not, and a signal came that asks for the end all the same.
    Signalled,
    /// It did not: files are open.
    StillThere,
}

/// The volume as the threads of the daemon share it; `None` once it is closed.
pub(crate) type SharedVolume = Arc<RwLock<Option<Volume>>>;

struct Running {
    volume: SharedVolume,
    session: Session,
    mounted: Mounted,
    service: Arc<Service>,
    server: Server,
    events: Receiver<Event>,
    stopping: Arc<AtomicBool>,
    hook: Option<Hook>,
}

/// Mount, serve until the mount ends, close. `ready` is called when the mount answers, with the file for the log.
///
/// # Errors
/// One line for the user: it could not be mounted, or the last changes could not be made durable.
pub fn serve(job: &Job, ready: &mut dyn FnMut(Option<&Path>) -> Result<(), String>) -> Result<(), String> {
    prepare_process();
    let (running, log) = start(job)?;
    if let Err(error) = ready(log.as_deref()) {
        running.service.stop_tasks();
        let _ = running.mounted.unmount(true); // nobody has used it yet
        let _ = running.finish();
        return Err(error);
    }
    log::info!("mounted at {}", running.mounted.path.display());
    running.run()
}

/// Best effort each; none is needed to be right.
fn prepare_process() {
    rustix::process::umask(rustix::fs::Mode::empty());
    let _ = rustix::thread::set_name(c"stablefs");
    let _ = rustix::process::configure_io_flusher_behavior(true); // our writes must not wait for our own mount's
    let _ = std::fs::write("/proc/self/oom_score_adj", "-900");
}

fn start(job: &Job) -> Result<(Running, Option<PathBuf>), String> {
    let say = |error: &dyn std::fmt::Display| error.to_string();
    let replicas = job.replicas.iter().map(|path| absolute(path)).collect::<Result<Vec<_>, _>>()?;
    mount::check_device().map_err(|error| say(&error))?;
    let mountpoint =
        mount::check_mountpoint(&job.mountpoint, &replicas, place::is_ours).map_err(|error| say(&error))?;
    let on_event = job.options.on_event.as_deref().map(absolute).transpose()?;
    on_event.as_deref().map_or(Ok(()), hook::check)?;
    let place = place::prepare().map_err(|error| format!("no place for the control socket: {error}"))?;
    let open = OpenOptions {
        read_only: job.options.read_only,
        degraded: job.options.degraded,
        accept_stale: job.options.accept_stale,
        force_owner: job.options.force_owner,
        deadline: job.options.deadline,
        full_leaves: job.options.full_leaves,
        lag: job.options.lag,
        slow_becomes_warm: job.options.slow_becomes_warm,
        store: StoreOptions { resync_rate: job.options.resync_rate, ..StoreOptions::default() },
    };
    let volume = Volume::open(&replicas, &open).map_err(|error| say(&error))?;
    let filesystem_options = FsOptions {
        noatime: job.options.no_access_times || job.options.read_only,
        writeback_cache: job.options.writeback,
    };
    let filesystem = match Filesystem::new(volume.store.clone(), filesystem_options) {
        Ok(filesystem) => Arc::new(filesystem),
        Err(error) => return Err(abandon(volume, format!("the root directory cannot be read: {error}"))),
    };
    let (descriptor, mounted) = match mount::mount(&plan(job, &replicas, mountpoint)) {
        Ok(both) => both,
        Err(error) => return Err(abandon(volume, error.to_string())),
    };
    if let Err(error) = volume.start() {
        let _ = mounted.unmount(true); // the error below is what matters
        return Err(abandon(volume, error.to_string()));
    }
    let (sender, events) = channel();
    let at_end = sender.clone();
    let on_end = Box::new(move || {
        let _ = at_end.send(Event::SessionEnded); // nobody listens: the end has begun already
    });
    let serve_options = ServeOptions { threads: job.options.threads, writeback: job.options.writeback };
    let session = match Session::start(descriptor, filesystem.clone(), &serve_options, on_end) {
        Ok(session) => session,
        Err(error) => {
            let _ = mounted.unmount(true); // the error below is what matters
            return Err(abandon(volume, format!("the kernel does not talk to us: {error}")));
        }
    };
    let log = job.options.log.clone().unwrap_or_else(|| place.join(place::name(mounted.device, "log")));
    let volume: SharedVolume = Arc::new(RwLock::new(Some(volume)));
    let service = Arc::new(Service::new(volume.clone(), mounted.clone(), job, sender.clone()));
    let rest = check_outside(&log, on_event.as_deref(), &mounted)
        .and_then(|()| record(&volume, on_event))
        .and_then(|hook| {
            Server::start(&place.join(place::name(mounted.device, "sock")), service.clone())
                .map(|server| (server, hook))
                .map_err(|error| format!("the control socket cannot be made in {}: {error}", place.display()))
        })
        .and_then(|both| watch_signals(sender).map(|()| both));
    let (server, hook) = match rest {
        Ok(both) => both,
        Err(error) => {
            let _ = mounted.unmount(true);
            session.stop_answering();
            return Err(volume.write().take().map_or(error.clone(), |volume| abandon(volume, error)));
        }
    };
    let stopping = Arc::new(AtomicBool::new(false));
    start_reclaim(filesystem, stopping.clone());
    if job.options.takes_back {
        returning::start(service.clone(), stopping.clone());
        following::start(service.clone(), job.options.lag.time, stopping.clone());
    }
    Ok((Running { volume, session, mounted, service, server, events, stopping, hook }, Some(log)))
}

/// Begin to record events, and to run `program` for them if there is one.
fn record(volume: &SharedVolume, program: Option<PathBuf>) -> Result<Option<Hook>, String> {
    let hook = program.map(|program| Hook::start(program, hook::RUN_MAX)).transpose();
    let hook = hook.map_err(|error| format!("no thread for the program for events: {error}"))?;
    let listener = hook.clone().map(|hook| Box::new(move |event: &_| hook.tell(event)) as Listener);
    let volume = volume.read();
    volume.as_ref().map_or(Ok(()), |volume| volume.record(listener)).map_err(|error| error.to_string())?;
    Ok(hook)
}

/// Refuse to write about the mount into the mount, or to run what stands in it: we would wait for ourselves, and keep it
/// busy.
fn check_outside(log: &Path, on_event: Option<&Path>, mounted: &Mounted) -> Result<(), String> {
    let state = std::env::var_os("STABLEFS_STATE_DIR").map(PathBuf::from);
    let places = [(Some(log), "log"), (state.as_deref(), "state directory"), (on_event, "program for events")];
    for (path, what) in places {
        let Some(path) = path else { continue };
        let path = absolute(path)?;
        if service::device_of(&path) == Some(mounted.device) {
            let (path, place) = (path.display(), mounted.path.display());
            return Err(format!("the {what} {path} would lie in the mount itself, at {place}; choose another place"));
        }
    }
    Ok(())
}

/// Close a volume that is not to be served after all.
fn abandon(volume: Volume, error: String) -> String {
    match volume.close() {
        Ok(_hanging) => error,
        Err(close) => format!("{error}; and the volume did not close: {close}"),
    }
}

/// `path` as it is called from any directory; one line if that cannot be said.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf, String> {
    std::path::absolute(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// How `job` is to be mounted.
pub(crate) fn plan(job: &Job, replicas: &[PathBuf], mountpoint: PathBuf) -> MountPlan {
    let root = rustix::process::geteuid().is_root();
    MountPlan {
        mountpoint,
        source: job.options.fsname.clone().unwrap_or_else(|| options::join_source(replicas)),
        subtype: job.options.subtype.clone(),
        read_only: job.options.read_only,
        allow_other: job.options.allow_other.unwrap_or(root),
        device_nodes: root && job.options.device_nodes,
        set_user_id: root && job.options.set_user_id,
        execute: job.options.execute,
        no_access_times: job.options.no_access_times,
    }
}

fn watch_signals(events: Sender<Event>) -> Result<(), String> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP])
        .map_err(|error| format!("signals cannot be caught: {error}"))?;
    let spawned = std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            if events.send(Event::Signal(signal)).is_err() {
                return;
            }
        }
    });
    spawned.map(|_| ()).map_err(|error| format!("no thread for signals: {error}"))
}

/// Content of files without a name is reclaimed in small steps.
fn start_reclaim(filesystem: Arc<Filesystem>, stopping: Arc<AtomicBool>) {
    let work = move || {
        while !stopping.load(Ordering::Relaxed) {
            match filesystem.reclaim_step() {
                Ok(true) => {}
                Ok(false) => filesystem.wait_for_orphans(RECLAIM_PAUSE),
                Err(error) => {
                    log::warn!("reclaiming space of deleted files: {error}");
                    std::thread::sleep(10 * RECLAIM_PAUSE);
                }
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("reclaim".into()).spawn(work) {
        log::error!("no thread to reclaim space of deleted files: {error}");
    }
}

impl Running {
    /// Until the mount ends.
    fn run(self) -> Result<(), String> {
        loop {
            match self.events.recv() {
                Ok(Event::SessionEnded) | Err(_) => {
                    log::info!("unmounted");
                    return self.finish();
                }
                Ok(Event::Signal(signal)) => {
                    log::info!("signal {signal}: unmounting");
                    let _ = self.commit_before_end(); // it comes again at the close, and is told there
                    self.detach_for_signal();
                    self.wait_for_session();
                    return self.finish();
                }
                Ok(Event::Umount { lazy, answer }) => {
                    // A disk that hangs must not keep the mount in the table of who wants it detached.
                    let early = if lazy { Ok(()) } else { self.commit_before_end() };
                    if let Err(error) = self.mounted.unmount(lazy) {
                        let _ = answer.send(Err(error.to_string())); // the client may have gone
                        continue;
                    }
                    if lazy && self.wait_for_session() == Waited::StillThere {
                        let committed = early.and_then(|()| self.commit_before_end());
                        let _ = answer.send(committed.map(|()| Vec::new()));
                        continue; // open files stay usable; the session ends with the last of them
                    }
                    self.wait_for_session();
                    return self.finish_for(&answer, lazy);
                }
            }
        }
    }

    /// Unmount, whoever uses it; what stays is said in the log.
    fn detach_for_signal(&self) {
        let Err(first) = self.mounted.unmount(false) else { return };
        match first {
            MountError::Busy(_) => log::warn!("files are open: they answer ENOTCONN from now on"),
            MountError::Refused(text) => log::warn!("{text}"),
        }
        if let Err(error) = self.mounted.unmount(true) {
            let place = report::shell_word(&self.mounted.path.to_string_lossy());
            log::error!("{error}; a dead mount stays at {place}, detach it: umount -l {place}");
        }
    }

    /// What is waited for while a disk does not answer, and how long it may be silent before that is said.
    fn patience(&self) -> Option<(Arc<Store>, Duration)> {
        self.volume.read().as_ref().map(|volume| (volume.store.clone(), volume.options().deadline))
    }

    /// Make the last commit short. It is not waited for longer than the deadline: the last disk may hang.
    fn commit_before_end(&self) -> Result<(), String> {
        let Some((store, patience)) = self.patience() else { return Ok(()) };
        let (sender, outcome) = channel();
        let committing = store.clone();
        let work = move || drop(sender.send(committing.sync())); // nobody may listen any more
        if let Err(error) = std::thread::Builder::new().name("last-commit".into()).spawn(work) {
            log::warn!("no thread for the commit before unmounting: {error}");
            return Ok(()); // it comes again at the close
        }
        match outcome.recv_timeout(patience) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                log::error!("commit before unmounting: {error}");
                Err(format!("detached, but the last changes could not be made durable: {error}"))
            }
            Err(_) => Err(waiting_for(&store)),
        }
    }

    /// Wait a little for the kernel to let go.
    fn wait_for_session(&self) -> Waited {
        if self.session.is_ended() {
            return Waited::Ended;
        }
        let mut signalled = false;
        let until = std::time::Instant::now() + SESSION_END_MAX;
        while let Ok(event) = self.events.recv_timeout(until.saturating_duration_since(std::time::Instant::now())) {
            match event {
                Event::SessionEnded => return Waited::Ended,
                Event::Signal(signal) => {
                    log::info!("signal {signal}: ending");
                    signalled = true;
                }
                Event::Umount { answer, .. } => {
                    let _ = answer.send(Err("the daemon is ending already".into()));
                }
            }
        }
        match (self.session.is_ended(), signalled) {
            (true, _) => Waited::Ended,
            (false, true) => Waited::Signalled,
            (false, false) => Waited::StillThere,
        }
    }

    fn finish(self) -> Result<(), String> {
        let (answer, _outcome) = channel();
        self.finish_for(&answer, false)
    }

    /// Stop everything, make everything durable, tell `answer`; a `lazy` one is told early if a disk does not answer.
    fn finish_for(self, answer: &Sender<Ended>, lazy: bool) -> Result<(), String> {
        self.session.stop_answering();
        self.server.close();
        crate::disk::file::say_ending();
        self.stopping.store(true, Ordering::Relaxed);
        self.service.stop_tasks();
        let outcome = self.close(answer, lazy);
        match &outcome {
            Ok(hanging) => {
                hanging.iter().for_each(|path| log::warn!("{path} still hangs; what it was sent may land later"));
                log::info!("closed");
            }
            Err(error) => log::error!("{error}"),
        }
        let _ = answer.send(outcome.clone()); // the client may have gone
        if let Some(hook) = &self.hook {
            hook.end(hook::END_MAX);
        }
        self.server.drain(LAST_ANSWER_MAX);
        outcome.map(|_hanging| ())
    }

    /// Close the volume on a thread of its own: the last disk may hang, and signals must be heard. One that comes after
    /// the deadline means: wait no longer.
    fn close(&self, answer: &Sender<Ended>, lazy: bool) -> Ended {
        /// How often events are looked at.
        const STEP: Duration = Duration::from_millis(200);
        let Some((store, patience)) = self.patience() else { return Ok(Vec::new()) };
        let (sender, closed) = channel();
        let shared = self.volume.clone();
        let work = move || {
            let volume = shared.write().take();
            let outcome = volume.map_or(Ok(Vec::new()), Volume::close);
            let failed = |error| format!("the last changes could not be made durable: {error}");
            drop(sender.send(outcome.map_err(failed))); // nobody may listen any more
        };
        if let Err(error) = std::thread::Builder::new().name("close".into()).spawn(work) {
            return Err(format!("the last changes could not be made durable, there is no thread for it: {error}"));
        }
        let began = std::time::Instant::now();
        let mut is_told = false;
        loop {
            match closed.recv_timeout(STEP) {
                Ok(outcome) => return outcome,
                Err(RecvTimeoutError::Disconnected) => return Err("the volume was not closed: a bug, see above".into()),
                Err(RecvTimeoutError::Timeout) => {}
            }
            let is_late = began.elapsed() > patience;
            if is_late && !is_told {
                is_told = true;
                let text = waiting_for(&store);
                log::warn!("{text}; a signal ends the wait");
                if lazy {
                    let _ = answer.send(Err(text)); // the client may have gone
                }
            }
            for event in self.events.try_iter() {
                match event {
                    Event::Signal(signal) if is_late => {
                        return Err(format!("signal {signal}: the last changes are not durable, given up"));
                    }
                    Event::Umount { answer, .. } => {
                        let text = if is_late { waiting_for(&store) } else { "the daemon is ending already".into() };
                        let _ = answer.send(Err(text)); // the client may have gone
                    }
                    Event::Signal(_) | Event::SessionEnded => {}
                }
            }
        }
    }
}

/// Which disks are waited for, in one line.
fn waiting_for(store: &Store) -> String {
    let health = store.mirror().health();
    let late: Vec<String> = health.into_iter().filter(|one| one.in_flight > 0).map(|one| one.name.path).collect();
    let late = if late.is_empty() { "the disks".to_owned() } else { late.join(", ") };
    format!("the mount is detached, but the last changes are not durable yet: still waiting for {late}")
}
