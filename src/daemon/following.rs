//! Brings warm replicas to a newer state again and again, and cold ones when their place answers.
//!
//! *Guarantees*: a warm replica is begun with anew after half of the lag that the mount allows; a cold one when its place answers after it
//! did not (it is looked for each [`PAUSE_MIN`], without opening it), and after [`COLD_AGAIN`] while it stays. One that fails is tried again after a pause that grows to [`PAUSE_MAX`]. Between
//! two of them its place is closed, so that its disk can be unmounted. One that hangs keeps a thread of its own busy, and nothing else.
//! *Assumes*: the volume says who follows. *Fails when*: never; what came of it is in the status.
//! *Order*: ask who follows → let go of the place → open and read it → follow → close. *Not here*: how (`volume::follow`).

use super::service::Service;
use crate::format::Role;
use crate::volume::away::Away;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often it is asked who follows.
const LOOK: Duration = Duration::from_millis(200);
/// Longest time between two attempts that failed.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// First pause after a failure, and how often it is looked for a cold replica.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Time between two of a cold replica that stays attached.
const COLD_AGAIN: Duration = Duration::from_secs(3600);

/// What is known of one that follows.
#[derive(Debug, Clone, Copy)]
struct Turn {
    next: Instant,
    pause: Duration,
    busy: bool,
    /// A cold one that has followed, until it is to follow again or its place is empty.
    rests_until: Option<Instant>,
}

impl Turn {
    fn end(&mut self, now: Instant, role: Role, came: &Came, lag: Duration) {
        self.busy = false;
        match (role, came) {
            (Role::Cold, Came::Up) => self.rests_until = Some(now + COLD_AGAIN),
            (_, Came::Rests) => {}
            _ => self.rests_until = None,
        }
        match rest(role, came, lag) {
            Some(rest) => (self.next, self.pause) = (now + rest, PAUSE_MIN),
            None => {
                self.next = now + self.pause;
                self.pause = (self.pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

/// What came of looking at a place.
enum Came {
    /// It has followed.
    Up,
    /// It is there, and failed or was refused.
    Failed,
    /// Nobody is there.
    Gone,
    /// It is there, and has followed not long ago.
    Rests,
}

type Turns = Arc<Mutex<HashMap<usize, Turn>>>;

/// Begin to look.
pub fn start(service: Arc<Service>, lag: Duration, stopping: Arc<AtomicBool>) {
    let turns = Turns::default();
    let work = move || {
        while !stopping.load(Ordering::Relaxed) {
            service.mind_the_slow();
            for (role, away, rests) in due(service.followers(), &turns, Instant::now()) {
                attempt(&service, (role, away, rests), lag, &turns, &stopping);
            }
            std::thread::sleep(LOOK);
        }
    };
    if let Err(error) = std::thread::Builder::new().name("following".into()).spawn(work) {
        log::error!("no thread for warm and cold replicas: {error}; use stablefs online");
    }
}

fn due(followers: Vec<(Role, Away)>, turns: &Turns, now: Instant) -> Vec<(Role, Away, bool)> {
    let mut turns = turns.lock();
    turns.retain(|slot, turn| turn.busy || followers.iter().any(|(_, away)| away.slot == *slot));
    let mut due = Vec::new();
    for (role, away) in followers {
        let turn =
            turns.entry(away.slot).or_insert(Turn { next: now, pause: PAUSE_MIN, busy: false, rests_until: None });
        // By bytes, if not by time; but not one that has just failed.
        let hurries = away.hurries && turn.pause == PAUSE_MIN;
        if !turn.busy && (now >= turn.next || hurries) {
            turn.busy = true;
            due.push((role, away, turn.rests_until.is_some_and(|until| now < until)));
        }
    }
    due
}

/// How long it rests after this, and nothing where the pause is to grow.
fn rest(role: Role, came: &Came, lag: Duration) -> Option<Duration> {
    match (role, came) {
        (Role::Warm | Role::Slowed, Came::Up) => Some(lag / 2),
        (_, Came::Up | Came::Rests) | (Role::Cold, Came::Gone) => Some(PAUSE_MIN),
        _ => None,
    }
}

/// Look at the place of one, on a thread that may hang.
fn attempt(
    service: &Arc<Service>,
    (role, away, rests): (Role, Away, bool),
    lag: Duration,
    turns: &Turns,
    stopping: &Arc<AtomicBool>,
) {
    let slot = away.slot;
    let (service, of_thread, stopping) = (service.clone(), turns.clone(), stopping.clone());
    let work = move || {
        let came = match rests && away.answers() {
            true => Came::Rests,
            false => follow(&service, &away, &stopping),
        };
        if let Some(turn) = of_thread.lock().get_mut(&slot) {
            turn.end(Instant::now(), role, &came, lag);
        }
    };
    if let Err(error) = std::thread::Builder::new().name(format!("follow-{slot}")).spawn(work) {
        log::error!("no thread for replica {slot}, which follows: {error}");
        if let Some(turn) = turns.lock().get_mut(&slot) {
            turn.end(Instant::now(), role, &Came::Failed, lag);
        }
    }
}

fn follow(service: &Service, away: &Away, stopping: &AtomicBool) -> Came {
    service.let_go(away);
    let opened = match away.open() {
        Ok(opened) => opened,
        Err(why) => {
            log::debug!("replica {} does not follow now: {why}", away.slot);
            service.note_unfollowed(away, &why);
            return Came::Gone;
        }
    };
    match service.follow(opened, &mut |_| !stopping.load(Ordering::Relaxed)) {
        Ok(report) => {
            log::debug!("{}", report.summary);
            Came::Up
        }
        Err(why) => {
            log::warn!("replica {} does not follow: {why}", away.slot);
            Came::Failed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_fails_rests_longer_each_time_and_who_follows_half_of_the_lag() {
        let now = Instant::now();
        let mut turn = Turn { next: now, pause: PAUSE_MIN, busy: true, rests_until: None };
        let lag = Duration::from_secs(10);
        let mut pauses = Vec::new();
        for came in [Came::Failed, Came::Gone, Came::Failed, Came::Up, Came::Failed] {
            turn.end(now, Role::Warm, &came, lag);
            pauses.push((turn.next - now).as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 5, 1]);
        turn.end(now, Role::Cold, &Came::Up, lag);
        assert_eq!((turn.next - now, turn.rests_until), (PAUSE_MIN, Some(now + COLD_AGAIN)));
        turn.end(now, Role::Cold, &Came::Rests, lag);
        assert!(turn.rests_until.is_some());
        turn.end(now, Role::Cold, &Came::Gone, lag);
        assert_eq!((turn.next - now, turn.rests_until), (PAUSE_MIN, None), "when it comes it follows at once");
    }
}
