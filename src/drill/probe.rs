//! Every call of the applications passes through here: how long it took, whether it failed, and whether that is excused.
//!
//! *Guarantees*: a call that has not returned yet is seen, too ([`Probe::longest_now`]). Errors are excused only while the
//! daemon is known to be dead, or where the scenario says that there is no room, and are counted apart.
//! *Assumes*: one call at a time on each lane. *Fails when*: never. *Order*: none.
//! *Not here*: what is a broken promise (`judge`).

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Lines of errors and of wrong bytes that are kept; the rest is counted.
const LINES_MAX: usize = 12;

/// The longest call.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Stall {
    /// How long it took.
    pub ms: u64,
    /// Which call on which file.
    pub call: String,
    /// When it began, ms after the scenario did.
    pub at_ms: u64,
}

/// What the applications saw.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// Calls that were made.
    pub calls: u64,
    /// Calls that failed, and should not have.
    pub errors: u64,
    /// Calls that failed because the daemon had been killed.
    pub errors_while_dead: u64,
    /// Calls that were refused for lack of room, where the scenario took it.
    pub refused_for_space: u64,
    /// The first errors.
    pub error_lines: Vec<String>,
    /// Reads of other bytes than were written, names that should not be, files that are gone.
    pub wrong: u64,
    /// The first of them.
    pub wrong_lines: Vec<String>,
    /// Bytes that applications wrote.
    pub bytes_written: u64,
    /// Bytes that applications read and proved.
    pub bytes_read: u64,
    /// Longest call before the first fault.
    pub longest_before: Stall,
    /// Longest call from the first fault on.
    pub longest: Stall,
}

/// What errors are expected now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Excuse {
    /// None.
    Nothing = 0,
    /// Any: the daemon is dead.
    Dead = 1,
    /// `ENOSPC`: there is no room.
    Space = 2,
}

/// One application's place in the probe.
#[derive(Debug)]
pub struct Lane {
    name: String,
    /// When the call under way began, us after the probe; 0: none is.
    began_us: AtomicU64,
    what: Mutex<String>,
    /// The call under way is a write or an fsync.
    writes: AtomicBool,
}

/// Watches the calls.
#[derive(Debug)]
pub struct Probe {
    began: Instant,
    lanes: Mutex<Vec<Arc<Lane>>>,
    tally: Mutex<Tally>,
    hurt: AtomicBool,
    excuse: AtomicU8,
}

impl Probe {
    /// A probe whose clock began at `began`.
    pub fn new(began: Instant) -> Probe {
        Probe {
            began,
            lanes: Mutex::default(),
            tally: Mutex::default(),
            hurt: AtomicBool::new(false),
            excuse: AtomicU8::new(Excuse::Nothing as u8),
        }
    }
    /// A place for one more application.
    pub fn lane(&self, name: &str) -> Arc<Lane> {
        let lane = Arc::new(Lane {
            name: name.to_owned(),
            began_us: AtomicU64::new(0),
            what: Mutex::default(),
            writes: AtomicBool::new(false),
        });
        self.lanes.lock().push(lane.clone());
        lane
    }
    /// From now on calls count as made under the fault.
    pub fn hurt(&self) {
        self.hurt.store(true, Ordering::SeqCst);
    }
    /// What errors are expected from now on.
    pub fn excuse(&self, excuse: Excuse) {
        self.excuse.store(excuse as u8, Ordering::SeqCst);
    }
    /// Make one call.
    ///
    /// # Errors
    /// As the call.
    pub fn call<T>(
        &self,
        lane: &Lane,
        what: &'static str,
        path: &Path,
        make: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        let began = Instant::now();
        *lane.what.lock() = format!("{what} {}", path.file_name().unwrap_or_default().to_string_lossy());
        lane.writes.store(matches!(what, "write" | "fsync"), Ordering::SeqCst);
        lane.began_us.store(self.us(began).max(1), Ordering::SeqCst);
        let result = make();
        lane.began_us.store(0, Ordering::SeqCst);
        self.note(lane, began, began.elapsed(), result.as_ref().err());
        result
    }
    /// Count a call that began at `began` and took so long.
    pub fn note(&self, lane: &Lane, began: Instant, took: Duration, error: Option<&io::Error>) {
        let excuse = self.excuse.load(Ordering::SeqCst);
        let mut tally = self.tally.lock();
        tally.calls += 1;
        if let Some(error) = error {
            if excuse == Excuse::Dead as u8 {
                tally.errors_while_dead += 1;
                return; // how long it took says nothing
            }
            if excuse == Excuse::Space as u8 && error.raw_os_error() == Some(libc::ENOSPC) {
                tally.refused_for_space += 1;
            } else {
                tally.errors += 1;
                let line = format!("{:.2} s: {}: {error}", self.us(began) as f64 / 1e6, lane.doing());
                keep(&mut tally.error_lines, line);
            }
        }
        let ms = took.as_millis() as u64;
        let hurt = self.hurt.load(Ordering::SeqCst);
        let longest = if hurt { &mut tally.longest } else { &mut tally.longest_before };
        if ms > longest.ms || longest.call.is_empty() {
            *longest = Stall { ms, call: lane.doing(), at_ms: self.us(began) / 1000 };
        }
    }
    /// Other bytes were found than had been written, or other names.
    pub fn wrong(&self, lines: Vec<String>) {
        let mut tally = self.tally.lock();
        tally.wrong += lines.len() as u64;
        lines.into_iter().for_each(|line| keep(&mut tally.wrong_lines, line));
    }
    /// Bytes that were written and read.
    pub fn moved(&self, written: u64, read: u64) {
        let mut tally = self.tally.lock();
        tally.bytes_written += written;
        tally.bytes_read += read;
    }
    /// What was seen so far. A call that has not returned counts with its time up to now.
    pub fn tally(&self) -> Tally {
        let mut tally = self.tally.lock().clone();
        if let Some(stall) = self.longest_now().filter(|stall| stall.ms > tally.longest.ms) {
            tally.longest = Stall { call: format!("{}, which has not returned", stall.call), ..stall };
        }
        tally
    }
    /// The call that is under way for the longest time.
    pub fn longest_now(&self) -> Option<Stall> {
        let now = self.us(Instant::now());
        let lanes = self.lanes.lock();
        let busy =
            lanes.iter().map(|lane| (lane, lane.began_us.load(Ordering::SeqCst))).filter(|(_, began)| *began > 0);
        let (lane, began) = busy.min_by_key(|(_, began)| *began)?;
        Some(Stall { ms: now.saturating_sub(began) / 1000, call: lane.doing(), at_ms: began / 1000 })
    }
    /// Whether some application is in the middle of a write or an fsync.
    pub fn is_writing(&self) -> bool {
        let busy = |lane: &Arc<Lane>| lane.began_us.load(Ordering::SeqCst) > 0 && lane.writes.load(Ordering::SeqCst);
        self.lanes.lock().iter().any(busy)
    }
    fn us(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.began).as_micros() as u64
    }
}

impl Lane {
    fn doing(&self) -> String {
        format!("{} by {}", self.what.lock(), self.name)
    }
}

fn keep(lines: &mut Vec<String>, line: String) {
    if lines.len() < LINES_MAX {
        lines.push(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_does_not_return_is_seen() {
        let began = Instant::now().checked_sub(Duration::from_secs(60)).expect("the machine is up for a minute");
        let probe = Probe::new(began);
        let lane = probe.lane("writer 1");
        assert_eq!(probe.longest_now(), None);
        lane.began_us.store(1, Ordering::SeqCst);
        assert!(probe.tally().longest.ms >= 59_000 && probe.tally().longest.call.contains("not returned"));
    }

    #[test]
    fn errors_are_excused_only_where_they_are_expected() {
        let probe = Probe::new(Instant::now());
        let lane = probe.lane("writer 1");
        let fail = |code: i32| {
            let made =
                probe.call(&lane, "write", Path::new("/m/f"), || Err::<(), _>(io::Error::from_raw_os_error(code)));
            assert!(made.is_err());
        };
        fail(libc::ENOTCONN);
        probe.excuse(Excuse::Space);
        fail(libc::ENOSPC);
        fail(libc::EIO);
        probe.excuse(Excuse::Dead);
        fail(libc::EIO);
        let tally = probe.tally();
        assert_eq!((tally.calls, tally.errors, tally.refused_for_space, tally.errors_while_dead), (4, 2, 1, 1));
        assert!(tally.error_lines[1].contains("write f by writer 1"), "{:?}", tally.error_lines);
    }
}
