//! Takes back replicas whose place answers again, without a person.
//!
//! *Guarantees*: each place is looked at now and then, the less often the more often it failed ([`PAUSE_MIN`] to
//! [`PAUSE_MAX`]); one that hangs when it is looked at keeps a thread of its own busy, and nothing else.
//! *Assumes*: the volume says who is away. *Fails when*: never; what came of an attempt is in the log and the status.
//! *Order*: ask who is away → let go of the place → open and read it, or see that it may be made anew → a task. *Not here*: how (`volume::away`).

use super::service::Service;
use crate::volume::away::Away;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often it is asked who is away.
const LOOK: Duration = Duration::from_millis(500);
/// Shortest time between two looks at one place.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest time between two looks at one place.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// What is known of a replica that was away.
#[derive(Debug, Clone, Copy)]
struct Attempt {
    next: Instant,
    pause: Duration,
    /// Somebody is at it.
    busy: bool,
    last_seen_away: Instant,
}

impl Attempt {
    fn first(now: Instant) -> Attempt {
        Attempt { next: now, pause: PAUSE_MIN, busy: false, last_seen_away: now }
    }

    /// An attempt begins now.
    fn begin(&mut self) {
        self.busy = true;
    }

    /// It ended now. However long it took, it was away all the time: otherwise one that fails late would be tried for ever.
    fn end(&mut self, now: Instant) {
        self.busy = false;
        self.last_seen_away = now;
        self.next = now + self.pause;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }
}

type Attempts = Arc<Mutex<HashMap<usize, Attempt>>>;

/// Begin to look.
pub fn start(service: Arc<Service>, stopping: Arc<AtomicBool>) {
    let attempts = Attempts::default();
    let work = move || {
        while !stopping.load(Ordering::Relaxed) {
            for away in due(&service.away(), &attempts, Instant::now()) {
                attempt(&service, away, &attempts);
            }
            std::thread::sleep(LOOK);
        }
    };
    if let Err(error) = std::thread::Builder::new().name("returning".into()).spawn(work) {
        log::error!("no thread to take replicas back: {error}; use stablefs online");
    }
}

/// Whose turn it is. Who has been in sync for a while begins anew.
fn due(away: &[Away], attempts: &Attempts, now: Instant) -> Vec<Away> {
    let mut attempts = attempts.lock();
    let mut due = Vec::new();
    for one in away {
        let attempt = attempts.entry(one.slot).or_insert_with(|| Attempt::first(now));
        if !attempt.busy && now.duration_since(attempt.last_seen_away) > PAUSE_MAX {
            *attempt = Attempt::first(now);
        }
        attempt.last_seen_away = now;
        if !attempt.busy && now >= attempt.next {
            attempt.begin();
            due.push(one.clone());
        }
    }
    due
}

/// Look at the place of one, on a thread that may hang.
fn attempt(service: &Arc<Service>, away: Away, attempts: &Attempts) {
    let (slot, of_thread, attempts_of_thread) = (away.slot, service.clone(), attempts.clone());
    let work = move || {
        of_thread.let_go(&away);
        match away.open() {
            Ok(opened) => match of_thread.begin_return(opened) {
                Ok(task) => while !task.wait(PAUSE_MAX) {},
                Err(why) => log::debug!("replica {slot} answers, but not now: {why}"),
            },
            Err(why) => match away.may_be_made() {
                Some(Ok(())) => match of_thread.begin_anew(away) {
                    Ok(task) => while !task.wait(PAUSE_MAX) {},
                    Err(why) => log::debug!("replica {slot} is to be made anew, but not now: {why}"),
                },
                Some(Err(why)) => log::warn!("replica {slot} is not made anew: {why}"),
                None => log::debug!("replica {slot} is not taken back yet: {why}"),
            },
        }
        if let Some(attempt) = attempts_of_thread.lock().get_mut(&slot) {
            attempt.end(Instant::now());
        }
    };
    if let Err(error) = std::thread::Builder::new().name(format!("return-{slot}")).spawn(work) {
        log::error!("no thread to take replica {slot} back: {error}");
        if let Some(attempt) = attempts.lock().get_mut(&slot) {
            attempt.end(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_bound() {
        let now = Instant::now();
        let mut attempt = Attempt::first(now);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            attempt.begin();
            attempt.end(now);
            pauses.push((attempt.next - now).as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn one_that_fails_late_is_not_tried_at_once() {
        let attempts = Attempts::default();
        let begun = Instant::now();
        let mut attempt = Attempt { pause: PAUSE_MAX, ..Attempt::first(begun) };
        attempt.begin();
        attempt.end(begun + 10 * PAUSE_MAX);
        attempts.lock().insert(0, attempt);
        let waits = |now| {
            let attempt = attempts.lock()[&0];
            attempt.next > now && attempt.pause == PAUSE_MAX && now.duration_since(attempt.last_seen_away) < PAUSE_MAX
        };
        assert!(waits(begun + 10 * PAUSE_MAX + LOOK));
    }
}
