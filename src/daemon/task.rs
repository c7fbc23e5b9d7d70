//! Long work on a mounted volume: scrub and replace, in the background, watched by any number of clients.
//!
//! *Guarantees*: at most one task runs; it goes on when the client that began it is gone; the last outcome is kept.
//! *Assumes*: the work calls its progress function at least every second or so, and ends when that returns false.
//! *Fails when*: a task runs already; the work fails. *Order*: the state's lock is held for copies only.
//! *Not here*: the work itself (`Volume`).

use crate::control::Progress;
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often a watching client hears of a task.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// What a task is or was, as status tells it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskReport {
    /// `scrub` or `replace`.
    pub kind: String,
    /// `running`, `done`, `stopped` or `failed`.
    pub state: String,
    /// ns since 1970.
    pub began_ns: i64,
    /// ns since 1970, 0 while it runs.
    pub ended_ns: i64,
    /// How far it is or came.
    pub progress: Progress,
    /// Its result, if done.
    pub result: Value,
    /// Why it failed; empty if not.
    pub error: String,
}

/// The work of a task: gets a function to report with, which says false when it is to stop.
pub type Work = Box<dyn FnOnce(&mut dyn FnMut(Progress) -> bool) -> Result<Value, String> + Send>;

/// The task of a mount: at most one runs, and none begins once the end has begun.
#[derive(Default)]
pub struct Tasks {
    current: Mutex<Option<Arc<Task>>>,
    /// Changed and asked under the lock of `current`.
    ending: AtomicBool,
}

impl Tasks {
    /// Begin `work`.
    ///
    /// # Errors
    /// Another task runs, the end has begun, or no thread can be had.
    pub fn begin(&self, kind: &str, now_ns: fn() -> i64, work: Work) -> Result<Arc<Task>, NotBegun> {
        let mut current = self.current.lock();
        if self.ending.load(Ordering::Relaxed) {
            return Err(NotBegun::Ending);
        }
        if let Some(task) = current.as_ref().filter(|task| task.is_running()) {
            return Err(NotBegun::Busy(task.report().kind));
        }
        let task = Task::begin(kind, now_ns, work).map_err(NotBegun::Failed)?;
        *current = Some(task.clone());
        Ok(task)
    }

    /// The task that runs or ran last.
    pub fn current(&self) -> Option<Arc<Task>> {
        self.current.lock().clone()
    }

    /// Let no task begin from now on; gives the one to wait for.
    pub fn end(&self) -> Option<Arc<Task>> {
        let mut current = self.current.lock();
        self.ending.store(true, Ordering::Relaxed);
        current.take().inspect(|task| task.stop())
    }
}

/// Why a task did not begin.
#[derive(Debug, PartialEq, Eq)]
pub enum NotBegun {
    /// One of this kind runs.
    Busy(String),
    /// The daemon is ending.
    Ending,
    /// No thread can be had.
    Failed(String),
}

/// A task, running or ended.
pub struct Task {
    report: Mutex<TaskReport>,
    changed: Condvar,
    stop: AtomicBool,
}

impl Task {
    /// Begin `work` on a thread of its own.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn begin(kind: &str, now_ns: fn() -> i64, work: Work) -> Result<Arc<Task>, String> {
        let report =
            TaskReport { kind: kind.into(), state: "running".into(), began_ns: now_ns(), ..TaskReport::default() };
        let task = Arc::new(Task { report: Mutex::new(report), changed: Condvar::new(), stop: AtomicBool::new(false) });
        let of_thread = task.clone();
        let spawned = std::thread::Builder::new().name(kind.into()).spawn(move || of_thread.run(now_ns, work));
        spawned.map(|_| task).map_err(|error| format!("no thread for the {kind}: {error}"))
    }

    fn run(&self, now_ns: fn() -> i64, work: Work) {
        let mut tell = |progress: Progress| {
            self.report.lock().progress = progress;
            self.changed.notify_all();
            !self.stop.load(Ordering::Relaxed)
        };
        let work = std::panic::AssertUnwindSafe(|| work(&mut tell));
        let outcome =
            std::panic::catch_unwind(work).unwrap_or_else(|_| Err("it hit a bug; the log has the place".into()));
        let mut report = self.report.lock();
        report.ended_ns = now_ns();
        match outcome {
            Ok(result) => {
                report.state = if self.stop.load(Ordering::Relaxed) { "stopped" } else { "done" }.into();
                report.result = result;
            }
            Err(_) if self.stop.load(Ordering::Relaxed) => report.state = "stopped".into(),
            Err(error) => {
                report.state = "failed".into();
                report.error = error;
            }
        }
        log::info!("{} {}: {}", report.kind, report.state, report.error);
        drop(report);
        self.changed.notify_all();
    }

    /// What it is now.
    pub fn report(&self) -> TaskReport {
        self.report.lock().clone()
    }

    /// Whether it is of this kind and began at `since` or later.
    pub fn is_of(&self, kind: &str, since_ns: i64) -> bool {
        let report = self.report.lock();
        report.kind == kind && report.began_ns >= since_ns
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> bool {
        self.report.lock().ended_ns == 0
    }

    /// Ask it to stop; does not wait.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Wait for its end; false if it did not come before `patience` was over.
    pub fn wait(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut report = self.report.lock();
        while report.ended_ns == 0 {
            if self.changed.wait_until(&mut report, until).timed_out() {
                return report.ended_ns != 0;
            }
        }
        true
    }

    /// Tell `progress` of it until it ends, or `progress` says false.
    ///
    /// # Errors
    /// It failed or was stopped, or nobody watches any more.
    pub fn follow(&self, progress: &mut dyn FnMut(&Progress) -> bool) -> Result<Value, String> {
        loop {
            let report = self.report();
            if report.ended_ns != 0 {
                return match report.state.as_str() {
                    "done" => Ok(report.result),
                    "stopped" => Err(format!("the {} was stopped", report.kind)),
                    _ => Err(format!("the {} failed: {}", report.kind, report.error)),
                };
            }
            if !progress(&report.progress) {
                return Err("nobody watches any more".into());
            }
            self.wait(TELL_EVERY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    fn now() -> i64 {
        7
    }

    #[test]
    fn a_task_is_followed_to_its_end() {
        let (go, wait) = channel::<()>();
        let work: Work = Box::new(move |tell| {
            assert!(tell(Progress { done: 1, total: 2, ..Progress::default() }));
            let _ = wait.recv();
            Ok(Value::from(42))
        });
        let task = Task::begin("scrub", now, work).unwrap();
        let mut told = 0;
        let result = task.follow(&mut |_| {
            told += 1;
            let _ = go.send(());
            true
        });
        assert_eq!(result, Ok(Value::from(42)));
        assert!(told > 0 && !task.is_running());
        assert_eq!(task.report().state, "done");
    }

    #[test]
    fn one_task_at_a_time_and_none_after_the_end_has_begun() {
        let tasks = Tasks::default();
        let until_stopped: fn() -> Work = || {
            Box::new(|tell| {
                while tell(Progress::default()) {
                    std::thread::yield_now();
                }
                Ok(Value::Null)
            })
        };
        let first = tasks.begin("scrub", now, until_stopped()).unwrap();
        assert_eq!(tasks.begin("replace", now, until_stopped()).err(), Some(NotBegun::Busy("scrub".into())));
        let ended = tasks.end().unwrap();
        assert!(Arc::ptr_eq(&first, &ended) && ended.wait(Duration::from_secs(60)));
        let late = tasks.begin("replace", now, Box::new(|_| Ok(Value::Null)));
        assert_eq!(late.err(), Some(NotBegun::Ending), "it would hold the volume that is to be closed");
    }

    #[test]
    fn a_task_is_stopped_and_a_bug_is_a_failure() {
        let task = Task::begin(
            "scrub",
            now,
            Box::new(|tell| {
                while tell(Progress::default()) {
                    std::thread::yield_now();
                }
                Err("cut".into())
            }),
        )
        .unwrap();
        task.stop();
        assert!(task.wait(Duration::from_secs(60)));
        assert_eq!(task.report().state, "stopped");
        let task = Task::begin("replace", now, Box::new(|_| panic!("a bug"))).unwrap();
        assert!(task.follow(&mut |_| true).unwrap_err().contains("bug"));
    }
}
