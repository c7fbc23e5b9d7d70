//! The program that the user wants to be run for each event (`-o on-event=`).
//!
//! *Guarantees*: only the program that was named at the mount is run, without a shell; nothing that stands on a disk is.
//! One at a time; one that takes longer than [`RUN_MAX`] is killed with its process group. It gets the event as JSON on
//! standard input and in its environment, `/dev/null` for the rest, and no other descriptor of ours. Telling never waits:
//! at most [`WAITING_MAX`] events wait, the oldest is dropped for a newer one, and that is logged.
//! *Assumes*: nothing of the program. *Fails when*: it cannot be started or fails: logged, once for each event.
//! *Order*: of the events. At the end of the daemon what waits may take [`END_MAX`]; the rest is killed or dropped, and
//! logged. *Not here*: which events there are (`volume::events`).

use crate::disk::file::isolate_for_programs;
use crate::volume::events::EventReport;
use parking_lot::{Condvar, Mutex};
use rustix::process::{Pid, Signal, kill_process_group};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Events that wait for the program.
pub const WAITING_MAX: usize = 64;
/// How long it may take for one event.
pub const RUN_MAX: Duration = Duration::from_secs(60);
/// How long the end of the daemon waits for it.
pub const END_MAX: Duration = Duration::from_secs(5);
/// How often a program that runs is looked at.
const LOOK: Duration = Duration::from_millis(20);

#[derive(Default)]
struct Waiting {
    events: VecDeque<EventReport>,
    dropped: u64,
    /// Until when what waits may still run.
    end: Option<Instant>,
    is_done: bool,
}

struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

/// Runs the program.
#[derive(Clone)]
pub struct Hook {
    shared: Arc<Shared>,
}

/// Whether this can be run, before anything depends on it.
///
/// # Errors
/// One line: it is not there, or no program.
pub fn check(program: &Path) -> Result<(), String> {
    let shown = program.display();
    let found = std::fs::metadata(program).map_err(|error| format!("on-event={shown}: {error}"))?;
    if found.is_file() && found.permissions().mode() & 0o111 != 0 {
        return Ok(());
    }
    Err(format!("on-event={shown}: not a program that can be run"))
}

impl Hook {
    /// A thread that runs `program`, up to `run_max` for each event.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start(program: PathBuf, run_max: Duration) -> io::Result<Hook> {
        let shared = Arc::new(Shared { waiting: Mutex::default(), changed: Condvar::new() });
        let of_thread = shared.clone();
        std::thread::Builder::new().name("on-event".into()).spawn(move || {
            // What is started here inherits from this thread: none of the daemon's descriptors.
            match isolate_for_programs() {
                Ok(()) => of_thread.serve(&program, run_max),
                Err(error) => log::error!("{}: not run, its descriptors would be ours: {error}", program.display()),
            }
            of_thread.waiting.lock().is_done = true;
            of_thread.changed.notify_all();
        })?;
        Ok(Hook { shared })
    }

    /// Have the program run for this event; never waits.
    pub fn tell(&self, event: &EventReport) {
        let mut waiting = self.shared.waiting.lock();
        if waiting.events.len() == WAITING_MAX {
            waiting.events.pop_front();
            waiting.dropped += 1;
        }
        waiting.events.push_back(event.clone());
        drop(waiting);
        self.shared.changed.notify_all();
    }

    /// No more events come: wait up to `patience` for those that wait.
    pub fn end(&self, patience: Duration) {
        let until = Instant::now() + patience;
        let mut waiting = self.shared.waiting.lock();
        waiting.end = Some(until);
        self.shared.changed.notify_all();
        while !waiting.is_done {
            // A little longer than the program gets, which is killed then.
            if self.shared.changed.wait_until(&mut waiting, until + patience).timed_out() {
                return;
            }
        }
    }
}

impl Shared {
    fn serve(&self, program: &Path, run_max: Duration) {
        let _ = rustix::process::configure_io_flusher_behavior(false);
        while let Some((event, dropped)) = self.next() {
            if dropped > 0 {
                log::warn!("{}: not run for {dropped} events, it takes too long", program.display());
            }
            if let Err(why) = self.run(program, &event, run_max) {
                log::warn!("{}: event {} ({}): {why}", program.display(), event.sequence, event.event);
            }
        }
    }

    fn next(&self) -> Option<(EventReport, u64)> {
        let mut waiting = self.waiting.lock();
        loop {
            if waiting.end.is_some_and(|end| Instant::now() >= end) && !waiting.events.is_empty() {
                log::warn!("the program for events is not run for the last {} of them", waiting.events.len());
                return None;
            }
            if let Some(event) = waiting.events.pop_front() {
                return Some((event, std::mem::take(&mut waiting.dropped)));
            }
            if waiting.end.is_some() {
                return None;
            }
            self.changed.wait(&mut waiting);
        }
    }

    fn run(&self, program: &Path, event: &EventReport, run_max: Duration) -> Result<(), String> {
        let mut line = serde_json::to_vec(event).map_err(|error| error.to_string())?;
        line.push(b'\n');
        let mut command = Command::new(program);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/").process_group(0);
        for (name, value) in environment(event) {
            command.env(name, value);
        }
        let mut child = command.spawn().map_err(|error| format!("cannot be run: {error}"))?;
        // The daemon's own protection is not for others.
        let _ = std::fs::write(format!("/proc/{}/oom_score_adj", child.id()), "0");
        if let Some(mut stdin) = child.stdin.take() {
            let _ = stdin.write_all(&line); // shorter than a pipe: waits for nobody; not everybody reads
        }
        match self.wait(&mut child, run_max).map_err(|error| error.to_string())? {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(status.to_string()),
            None => Err(format!("killed, it did not end within {run_max:?}")),
        }
    }

    /// Wait for its end; `None`: it did not come in time, and was made.
    fn wait(&self, child: &mut Child, run_max: Duration) -> io::Result<Option<ExitStatus>> {
        let until = Instant::now() + run_max;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(Some(status));
            }
            let mut waiting = self.waiting.lock();
            let until = waiting.end.map_or(until, |end| end.min(until));
            if Instant::now() >= until {
                drop(waiting);
                if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                    let _ = kill_process_group(group, Signal::KILL);
                }
                let _ = child.kill(); // it may have left its group
                child.wait()?;
                return Ok(None);
            }
            self.changed.wait_for(&mut waiting, LOOK);
        }
    }
}

/// The event in the environment.
fn environment(event: &EventReport) -> [(&'static str, String); 8] {
    let replica = event.replica.as_ref().map_or("", |replica| &replica.path);
    [
        ("STABLEFS_EVENT", event.event.clone()),
        ("STABLEFS_REPLICA", plain(replica)),
        ("STABLEFS_FROM", event.from.clone()),
        ("STABLEFS_TO", event.to.clone()),
        ("STABLEFS_CAUSE", plain(&event.cause)),
        ("STABLEFS_PATH", plain(&event.path)),
        ("STABLEFS_VOLUME", event.volume.clone()),
        ("STABLEFS_TIME", event.time_ns.to_string()),
    ]
}

/// A variable holds no NUL.
fn plain(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(folder: &Path, text: &str) -> PathBuf {
        let path = folder.join("hook");
        // Renamed into place: a file that is open for writing cannot be run, and forks of other tests may hold it open.
        let made = std::process::Command::new("sh")
            .args(["-c", "printf '%s' \"$1\" > \"$2\" && chmod 755 \"$2\"", "sh", &format!("#!/bin/bash\n{text}\n")])
            .arg(&path)
            .status();
        assert!(made.unwrap().success());
        path
    }

    fn event(sequence: u64) -> EventReport {
        EventReport { sequence, event: "state".into(), cause: "it's; $(broken)\n".into(), ..EventReport::default() }
    }

    /// What it is given, and that no descriptor of this process reaches it.
    #[test]
    fn it_gets_the_event_and_no_descriptor() {
        let folder = tempfile::tempdir().unwrap();
        let told = folder.path().join("told");
        let text = format!(
            "exec > {0}\ncat; echo \"$STABLEFS_EVENT|$STABLEFS_CAUSE|$STABLEFS_TIME\"; umask; ls -l /proc/$$/fd",
            told.display()
        );
        let program = script(folder.path(), &text);
        check(&program).unwrap();
        let open = std::fs::File::create(folder.path().join("secret")).unwrap();
        rustix::io::fcntl_setfd(&open, rustix::io::FdFlags::empty()).unwrap(); // it would be inherited
        let hook = Hook::start(program, RUN_MAX).unwrap();
        hook.tell(&event(7));
        hook.end(Duration::from_secs(60));
        let told = std::fs::read_to_string(told).unwrap();
        let lines: Vec<&str> = told.lines().collect();
        let json: EventReport = serde_json::from_str(lines[0]).unwrap();
        assert_eq!(json, event(7));
        assert_eq!(lines[1], "state|it's; $(broken)");
        assert_eq!(lines[2], "|0");
        assert_eq!(lines[3], "0022");
        assert!(lines[4..].iter().any(|line| line.contains(" 0 -> pipe:")), "{lines:#?}");
        assert!(lines[4..].iter().all(|line| !line.contains("secret") && !line.contains("socket:")), "{lines:#?}");
        drop(open);
    }

    /// It hangs with a child of its own: both are killed, and the next event has its turn.
    #[test]
    fn one_that_hangs_is_killed_with_all_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let text = format!("if mkdir {at}/first; then sleep 1000 & echo $! > {at}/child; wait; fi; touch {at}/second");
        let hook = Hook::start(script(folder.path(), &text), Duration::from_secs(5)).unwrap();
        hook.tell(&event(1));
        hook.tell(&event(2));
        hook.end(Duration::from_secs(60));
        assert!(folder.path().join("second").exists(), "the second event had no turn");
        let child = std::fs::read_to_string(folder.path().join("child")).unwrap();
        let state = std::fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z "), "its child lives: {state}");
    }

    #[test]
    fn more_events_than_wait_drop_the_oldest() {
        let hook = Hook { shared: Arc::new(Shared { waiting: Mutex::default(), changed: Condvar::new() }) };
        (0..WAITING_MAX as u64 + 5).for_each(|sequence| hook.tell(&event(sequence)));
        let (first, dropped) = hook.shared.next().unwrap();
        assert_eq!((first.sequence, dropped), (5, 5));
    }

    #[test]
    fn what_is_no_program_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(check(folder.path()).unwrap_err().contains("not a program"));
        assert!(check(&folder.path().join("none")).unwrap_err().starts_with("on-event="));
    }
}
