//! What the control socket is answered with.
//!
//! *Guarantees*: status looks at memory only, so that it answers while a backing hangs. *Assumes*: the main thread acts on
//! events. *Fails when*: the volume is closed already: "the daemon is ending". *Order*: the volume's lock is taken shared,
//! and exclusively only at the end, when tasks have been asked to stop. *Not here*: the protocol (`control`).

use super::report::{self, MountReport, Report};
use super::task::{NotBegun, Task, TaskReport, Tasks, Work};
use super::{Event, Job, SharedVolume, journal};
use crate::control::{Control, Progress, Request, ScrubAction};
use crate::format::Role;
use crate::mount::Mounted;
use crate::volume::Volume;
use crate::volume::away::{Away, Opened};
use crate::volume::follow::FollowReport;
use crate::world::{Machine, World};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

/// How long the end of the daemon waits for a task that was asked to stop.
const TASK_END_MAX: Duration = Duration::from_secs(30);
const ENDING: &str = "the daemon is ending";

/// The daemon's side of the control socket.
pub struct Service {
    volume: SharedVolume,
    mount: MountReport,
    mounted: Mounted,
    events: Mutex<Sender<Event>>,
    tasks: Tasks,
}

fn now_ns() -> i64 {
    Machine.now_ns()
}

impl Service {
    /// A service over `volume`, mounted as `mounted`.
    pub fn new(volume: SharedVolume, mounted: Mounted, job: &Job, events: Sender<Event>) -> Service {
        let mount = MountReport {
            path: mounted.path.to_string_lossy().into_owned(),
            writeback: job.options.writeback,
            since_ns: now_ns(),
            process: std::process::id(),
            log: String::new(),
        };
        Service { volume, mount, mounted, events: Mutex::new(events), tasks: Tasks::default() }
    }

    /// Ask the running task to stop and wait for it; no other one begins.
    pub fn stop_tasks(&self) {
        if let Some(task) = self.tasks.end()
            && !task.wait(TASK_END_MAX)
        {
            log::warn!("the {} does not stop", task.report().kind);
        }
    }

    fn status(&self) -> Result<Value, String> {
        let volume = self.volume.try_read().ok_or(ENDING)?;
        let volume = volume.as_ref().ok_or(ENDING)?;
        let task: Option<TaskReport> = self.tasks.current().map(|task| task.report());
        let log = journal::place().map_or_else(|| "standard error".into(), |log| log.to_string_lossy().into_owned());
        let report: Report = report::make(volume, MountReport { log, ..self.mount.clone() }, task);
        serde_json::to_value(report).map_err(|error| error.to_string())
    }

    fn events(&self, after: u64) -> Result<Value, String> {
        let volume = self.volume.try_read().ok_or(ENDING)?;
        let log = volume.as_ref().ok_or(ENDING)?.events(after);
        serde_json::to_value(log).map_err(|error| error.to_string())
    }

    fn sync(&self) -> Result<Value, String> {
        let volume = self.volume.read();
        let volume = volume.as_ref().ok_or(ENDING)?;
        volume.store.sync().map_err(|error| error.to_string())?;
        Ok(json!({}))
    }

    /// Begin a task, unless another one runs.
    fn begin(&self, kind: &str, work: Work) -> Result<Arc<Task>, String> {
        self.tasks.begin(kind, now_ns, work).map_err(|why| match why {
            NotBegun::Busy(other) => {
                format!("a {other} is running; see how far: stablefs status {}", self.mount.path)
            }
            NotBegun::Ending => ENDING.into(),
            NotBegun::Failed(text) => text,
        })
    }

    fn running(&self, kind: &str) -> Option<Arc<Task>> {
        self.tasks.current().filter(|task| task.is_running() && task.report().kind == kind)
    }

    fn scrub(&self, action: ScrubAction, progress: &mut dyn FnMut(&Progress) -> bool) -> Result<Value, String> {
        match (action, self.running("scrub")) {
            (ScrubAction::Start, Some(task)) => task.follow(progress),
            (ScrubAction::Start, None) => {
                let volume = self.volume.clone();
                let work: Work = Box::new(move |tell| super::work::scrub(volume.read().as_ref().ok_or(ENDING)?, tell));
                self.begin("scrub", work)?.follow(progress)
            }
            (ScrubAction::Status, _) => {
                let task = self.tasks.current().map(|task| task.report()).filter(|task| task.kind == "scrub");
                let task = task.ok_or_else(|| {
                    format!("no scrub since the mount; start one: stablefs scrub {}", self.mount.path)
                })?;
                serde_json::to_value(task).map_err(|error| error.to_string())
            }
            (ScrubAction::Stop, Some(task)) => {
                task.stop();
                task.wait(TASK_END_MAX);
                Ok(json!({}))
            }
            (ScrubAction::Stop, None) => Err("no scrub is running".into()),
        }
    }

    /// Nobody holds itself.
    fn is_elsewhere(&self, new: &str) -> Result<(), String> {
        if device_of(Path::new(new)) == Some(self.mounted.device) {
            return Err(format!(
                "{new} lies in the volume that it is to hold, at {}; choose another place",
                self.mount.path
            ));
        }
        Ok(())
    }

    fn attach(&self, new: String, force: bool, progress: &mut dyn FnMut(&Progress) -> bool) -> Result<Value, String> {
        self.is_elsewhere(&new)?;
        let volume = self.volume.clone();
        let work: Work =
            Box::new(move |tell| super::work::attach(volume.read().as_ref().ok_or(ENDING)?, &new, force, tell));
        self.begin("attach", work)?.follow(progress)
    }

    fn detach(&self, replica: &str) -> Result<Value, String> {
        let volume = self.volume.read();
        let report = volume.as_ref().ok_or(ENDING)?.detach(replica).map_err(|error| error.to_string())?;
        serde_json::to_value(report).map_err(|error| error.to_string())
    }

    fn replace(&self, old: String, new: String, progress: &mut dyn FnMut(&Progress) -> bool) -> Result<Value, String> {
        self.is_elsewhere(&new)?;
        let volume = self.volume.clone();
        let work: Work =
            Box::new(move |tell| super::work::replace(volume.read().as_ref().ok_or(ENDING)?, &old, &new, tell));
        self.begin("replace", work)?.follow(progress)
    }

    /// Bring back a replica whose place answers.
    pub(super) fn begin_return(&self, opened: Opened) -> Result<Arc<Task>, String> {
        let volume = self.volume.clone();
        let work: Work = Box::new(move |tell| {
            let volume = volume.read();
            super::work::bring_back(volume.as_ref().ok_or(ENDING)?, opened, tell)
        });
        self.begin("resync", work)
    }

    /// Make the deleted container of a replica anew.
    pub(super) fn begin_anew(&self, away: Away) -> Result<Arc<Task>, String> {
        let volume = self.volume.clone();
        let work: Work = Box::new(move |tell| {
            let volume = volume.read();
            super::work::make_anew(volume.as_ref().ok_or(ENDING)?, &away, tell)
        });
        self.begin("resync", work)
    }

    /// Who may return.
    pub(super) fn away(&self) -> Vec<Away> {
        let Some(volume) = self.volume.try_read() else { return Vec::new() };
        volume.as_ref().map(Volume::away).unwrap_or_default()
    }

    /// Let go of its place.
    pub(super) fn let_go(&self, away: &Away) {
        if let Some(volume) = self.volume.try_read()
            && let Some(volume) = volume.as_ref()
        {
            volume.let_go(away);
        }
    }

    fn offline(&self, replica: &str, temporary: bool) -> Result<Value, String> {
        let volume = self.volume.read();
        volume.as_ref().ok_or(ENDING)?.offline(replica, temporary).map_err(|error| error.to_string())?;
        Ok(json!({}))
    }

    fn online(&self, replica: &str, progress: &mut dyn FnMut(&Progress) -> bool) -> Result<Value, String> {
        let asked = now_ns();
        let away = {
            let volume = self.volume.read();
            volume.as_ref().ok_or(ENDING)?.online(replica).map_err(|error| error.to_string())?
        };
        let Some(away) = away else {
            let running = self.running("resync");
            return running.map_or_else(|| Ok(json!({ "summary": "it is in sync" })), |task| task.follow(progress));
        };
        self.let_go(&away);
        if self.role(&away) != Role::Hot {
            return away.open().and_then(|opened| self.begin_follow(opened))?.follow(progress);
        }
        let begun = away.open().and_then(|opened| self.begin_return(opened));
        // Whoever looks after replicas that are away may have been quicker.
        let others = || self.tasks.current().filter(|task| task.is_of("resync", asked));
        begun.or_else(|why| others().ok_or(why))?.follow(progress)
    }

    fn role(&self, away: &Away) -> Role {
        self.volume.read().as_ref().map_or(Role::Hot, |volume| volume.role(away.replica()))
    }

    fn begin_follow(&self, opened: Opened) -> Result<Arc<Task>, String> {
        let volume = self.volume.clone();
        let work: Work = Box::new(move |tell| {
            let volume = volume.read();
            super::work::follow(volume.as_ref().ok_or(ENDING)?, opened, tell)
        });
        self.begin("follow", work)
    }

    /// Change how a replica is kept; one that becomes hot is brought back.
    fn set_role(
        &self,
        replica: &str,
        role: &str,
        progress: &mut dyn FnMut(&Progress) -> bool,
    ) -> Result<Value, String> {
        let role = Role::from_name(role).ok_or_else(|| format!("{role}: a role is hot, warm or cold"))?;
        {
            let volume = self.volume.read();
            volume.as_ref().ok_or(ENDING)?.set_role(replica, role).map_err(|error| error.to_string())?;
        }
        if role == Role::Hot { self.online(replica, progress) } else { Ok(json!({})) }
    }

    /// Have slow replicas become warm, and hot again, if that is wanted.
    pub(super) fn mind_the_slow(&self) {
        let Some(volume) = self.volume.try_read() else { return };
        if let Some(volume) = volume.as_ref() {
            volume.mind_the_slow();
        }
    }

    /// Who follows, and how it is kept.
    pub(super) fn followers(&self) -> Vec<(Role, Away)> {
        let Some(volume) = self.volume.try_read() else { return Vec::new() };
        volume.as_ref().map(Volume::followers).unwrap_or_default()
    }

    /// Have one follow whose place answers.
    pub(super) fn follow(
        &self,
        opened: Opened,
        progress: &mut dyn FnMut(&Progress) -> bool,
    ) -> Result<FollowReport, String> {
        let volume = self.volume.read();
        volume.as_ref().ok_or(ENDING)?.follow(opened, progress).map_err(|error| error.to_string())
    }

    /// One that follows is not there.
    pub(super) fn note_unfollowed(&self, away: &Away, why: &str) {
        let Some(volume) = self.volume.try_read() else { return };
        if let Some(volume) = volume.as_ref() {
            volume.note_unfollowed(away.replica(), why);
        }
    }

    fn umount(&self, lazy: bool, mount: Option<u64>) -> Result<Value, String> {
        if let Some(id) = mount
            && !self.mounted.is_mount(id)
        {
            return Ok(json!({ "copy": true, "last": self.mounted.is_last(id) }));
        }
        let (answer, outcome) = channel();
        self.events.lock().send(Event::Umount { lazy, answer }).map_err(|_| ENDING)?;
        let hanging = outcome.recv().map_err(|_| ENDING)??;
        Ok(json!({ "hanging": hanging }))
    }
}

/// Device of the filesystem that `path` lies in, or would if it were made: `(major, minor)`.
pub(super) fn device_of(path: &Path) -> Option<(u32, u32)> {
    let found = path.ancestors().find_map(|ancestor| std::fs::metadata(ancestor).ok())?;
    Some((rustix::fs::major(found.dev()), rustix::fs::minor(found.dev())))
}

impl Control for Service {
    fn answer(&self, request: Request, progress: &mut dyn FnMut(&Progress) -> bool) -> Result<Value, String> {
        match request {
            Request::Status {} => self.status(),
            Request::Events { after } => self.events(after),
            Request::Sync {} => self.sync(),
            Request::Scrub { action } => self.scrub(action, progress),
            Request::Replace { old, new } => self.replace(old, new, progress),
            Request::Attach { new, force } => self.attach(new, force, progress),
            Request::Detach { replica } => self.detach(&replica),
            Request::Offline { replica, temporary } => self.offline(&replica, temporary),
            Request::Role { replica, role } => self.set_role(&replica, &role, progress),
            Request::Online { replica } => self.online(&replica, progress),
            Request::Umount { lazy, mount } => self.umount(lazy, mount),
        }
    }
}
