//! The store's threads: log, write-out, commit. Without them (simulator, tests, offline tools) the caller drives.
//!
//! *Guarantees*: an fsync is answered by the log thread; pages are written out as they come; a group is closed at
//! least every few seconds while anything changed; containers are looked at every second, also where nothing is
//! written. *Assumes*: [`Store::stop`] is called before the store is dropped.
//! *Fails when*: never itself; a failed commit latches the store. *Order*: none held while working.
//! *Not here*: the work.

use super::commit::Force;
use super::{Store, StoreError};
use crate::sync::Instant;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::thread::JoinHandle;
use crate::sync::{Condvar, Mutex};
use std::sync::Arc;
use std::time::Duration;

#[derive(Default)]
struct Wanted {
    commit: bool,
    place: bool,
    log: bool,
    stop: bool,
}

/// What the threads are asked for.
#[derive(Default)]
pub struct Signals {
    wanted: Mutex<Wanted>,
    bell: [Condvar; 3],
    running: AtomicBool,
}

/// How often the containers are looked at.
const LOOK: Duration = Duration::from_secs(1);
const COMMIT: usize = 0;
const PLACE: usize = 1;
const LOG: usize = 2;

impl Signals {
    /// Whether threads do the work.
    pub fn is_running(&self) -> bool {
        self.running.load(Ordering::Acquire)
    }
    /// Ask for a commit.
    pub fn want_commit(&self) {
        self.want(COMMIT, |w| &mut w.commit);
    }
    /// Ask for write-out.
    pub fn want_place(&self) {
        self.want(PLACE, |w| &mut w.place);
    }
    /// Ask for a log record.
    pub fn want_log(&self) {
        self.want(LOG, |w| &mut w.log);
    }
    fn want(&self, bell: usize, which: fn(&mut Wanted) -> &mut bool) {
        if !self.is_running() {
            return;
        }
        let mut wanted = self.wanted.lock();
        let flag = which(&mut wanted);
        if !*flag {
            *flag = true;
            self.bell[bell].notify_one();
        }
    }
    /// Wait until asked (`Some(true)`), until `timeout` passes (`Some(false)`), or until stopped (`None`).
    fn wait(&self, bell: usize, which: fn(&mut Wanted) -> &mut bool, timeout: Option<Duration>) -> Option<bool> {
        let mut wanted = self.wanted.lock();
        loop {
            if std::mem::take(which(&mut wanted)) {
                return Some(true);
            }
            if wanted.stop {
                return None;
            }
            match timeout {
                Some(timeout) => {
                    if self.bell[bell].wait_for(&mut wanted, timeout).timed_out() {
                        return Some(false);
                    }
                }
                None => self.bell[bell].wait(&mut wanted),
            }
        }
    }
}

/// The running threads.
pub struct Engine {
    store: Arc<Store>,
    threads: Vec<JoinHandle<()>>,
}

impl Engine {
    /// Start the threads; a group is closed at least every `interval` while anything changed.
    pub fn start(store: &Arc<Store>, interval: Duration) -> Result<Engine, StoreError> {
        store.engine.running.store(true, Ordering::Release);
        store.engine.wanted.lock().stop = false;
        let mut engine = Engine { store: store.clone(), threads: Vec::new() };
        engine.spawn("stablefs-commit", move |store| {
            let mut last = Instant::now();
            while let Some(asked) = store.engine.wait(COMMIT, |w| &mut w.commit, Some(LOOK.min(interval))) {
                // A container can vanish under an open descriptor also while nothing is written.
                store.mirror.check();
                let due = asked || last.elapsed() >= interval;
                let result = if due { store.commit(Force::IfChanged) } else { store.declare() };
                if due {
                    last = Instant::now();
                }
                if result.is_err() {
                    crate::sync::thread::sleep(Duration::from_millis(100));
                }
            }
        })?;
        engine.spawn("stablefs-place", |store| {
            while store.engine.wait(PLACE, |w| &mut w.place, None).is_some() {
                match store.place_step() {
                    Ok(_) => {}
                    Err(StoreError::NoSpace) => store.engine.want_commit(),
                    Err(error) => store.fail(&error),
                }
            }
        })?;
        engine.spawn("stablefs-log", |store| {
            while store.engine.wait(LOG, |w| &mut w.log, None).is_some() {
                store.log_step();
            }
            store.log_step();
        })?;
        Ok(engine)
    }

    /// Only look at the containers now and then: what a store needs that answers reads only.
    pub fn watch(store: &Arc<Store>) -> Result<Engine, StoreError> {
        store.engine.wanted.lock().stop = false;
        let mut engine = Engine { store: store.clone(), threads: Vec::new() };
        engine.spawn("stablefs-look", |store| {
            while store.engine.wait(COMMIT, |w| &mut w.commit, Some(LOOK)).is_some() {
                store.mirror.check();
            }
        })?;
        Ok(engine)
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce(&Store) + Send + 'static) -> Result<(), StoreError> {
        let store = self.store.clone();
        let thread = crate::sync::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&store)));
            if worked.is_err() {
                // Those who wait for this thread must hear of it.
                store.fail(&StoreError::Failed("a thread of the store has panicked (a bug; see the log)".into()));
                store.log_step();
            }
        });
        match thread {
            Ok(thread) => {
                self.threads.push(thread);
                Ok(())
            }
            Err(error) => Err(StoreError::Failed(format!("cannot start a thread: {error}"))),
        }
    }

    /// Stop the threads; what waits is answered first.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.store.engine.wanted.lock().stop = true;
        for bell in &self.store.engine.bell {
            bell.notify_all();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        self.store.engine.running.store(false, Ordering::Release);
        self.store.log_step();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.end();
    }
}
