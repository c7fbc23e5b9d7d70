//! How fast a resync goes: behind those who wait for an answer, and no faster than a person allows.
//!
//! *Guarantees*: while requests of others go to the replicas that it reads from, it leaves the disks alone for three times as
//! long as each of its own pieces took, its copiers one after the other; after some pieces without any it goes at full speed
//! again. A rest is short, so it never stands still, however busy the others are. Beside that it moves no more than `rate`
//! bytes a second on average.
//! *Assumes*: who reads through the mirror for a resync announces it ([`Pace::announce`]); so the rest are others' requests. Reads that
//! are answered from memory hurt nobody and are not counted. *Fails when*: never.
//! *Order*: takes its own lock, in which it rests: the other copiers rest, too. *Not here*: what is moved (`replace`), scrub's pauses.

use crate::disk::Mirror;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Instant, Mutex};
use std::time::Duration;

/// Rest after a piece while others are at work, in times that it took.
const REST_SHARE: u32 = 3;
/// Longest rest after one piece: something may be pinned meanwhile.
const REST_MAX: Duration = Duration::from_millis(100);
/// Pieces without a request of others until they are taken to be idle.
const QUIET: u32 = 8;

/// The pace of one resync.
pub(super) struct Pace {
    slot: usize,
    rate: u64,
    own: AtomicU64,
    state: Mutex<State>,
}

struct State {
    /// Most requests of others that were counted.
    others: u64,
    /// Pieces since that grew.
    quiet: u32,
    /// What `rate` has it wait for yet.
    owed: Duration,
    at: Instant,
}

impl Pace {
    /// Of the resync of the replica in `slot`, at most at `rate` bytes a second (0: as fast as it goes).
    pub fn new(mirror: &Mirror, slot: usize, rate: u64) -> Pace {
        let others = requests(mirror, slot);
        let state = State { others, quiet: QUIET, owed: Duration::ZERO, at: Instant::now() };
        Pace { slot, rate, own: AtomicU64::new(0), state: Mutex::new(state) }
    }

    /// A request is about to go through the mirror for this resync.
    pub fn announce(&self) {
        self.own.fetch_add(1, Ordering::Relaxed);
    }

    /// Rest, after a piece of `bytes` that took so long.
    pub fn rest(&self, mirror: &Mirror, bytes: u64, took: Duration) {
        let mut state = self.state.lock();
        let due = self.due(&mut state, mirror, bytes, took);
        if !due.is_zero() {
            crate::sync::thread::sleep(due);
        }
    }

    fn due(&self, state: &mut State, mirror: &Mirror, bytes: u64, took: Duration) -> Duration {
        // What was announced and is not counted yet must not hide others, or seem to be one of them later.
        let others = requests(mirror, self.slot).saturating_sub(self.own.load(Ordering::Relaxed));
        state.quiet = if others > state.others { 0 } else { state.quiet.saturating_add(1) };
        state.others = state.others.max(others);
        if let Some(ns) = (u128::from(bytes) * 1_000_000_000).checked_div(u128::from(self.rate)) {
            state.owed += Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX));
        }
        let behind = if state.quiet < QUIET { took * REST_SHARE } else { Duration::ZERO };
        behind.max(state.pay()).min(REST_MAX)
    }

    /// What is still to be waited for, where nothing is pinned and a person may say stop.
    pub fn owed(&self) -> Duration {
        self.state.lock().pay().min(REST_MAX)
    }
}

impl State {
    /// Time that has passed is paid.
    fn pay(&mut self) -> Duration {
        let now = Instant::now();
        self.owed = self.owed.saturating_sub(now.duration_since(self.at));
        self.at = now;
        self.owed
    }
}

/// Requests to the replicas beside the one in `slot`. Proofs are not counted as reads.
fn requests(mirror: &Mirror, slot: usize) -> u64 {
    let others = mirror.health().into_iter().filter(|health| health.slot != slot);
    others.map(|health| health.counters.reads + health.counters.writes + health.counters.flushes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::BLOCK;
    use crate::store::commit::Force;
    use crate::store::tests::{Rig, write};

    const TOOK: Duration = Duration::from_millis(2);

    fn due(pace: &Pace, mirror: &Mirror, bytes: u64) -> Duration {
        pace.due(&mut pace.state.lock(), mirror, bytes, TOOK)
    }

    #[test]
    fn it_rests_while_others_are_at_work_and_not_for_its_own_requests() {
        let rig = Rig::new(1, 2);
        let (store, _) = rig.open(false).unwrap();
        let mirror = store.mirror();
        // The one that is filled serves no reads.
        rig.disks[1].faults(|faults| faults.gone = true);
        store.commit(Force::Always).unwrap();
        let pace = Pace::new(mirror, 1, 0);
        assert_eq!(due(&pace, mirror, 4096), Duration::ZERO, "nobody is there");
        write(&store, 20, 0, 3, 1).unwrap();
        store.commit(Force::Always).unwrap();
        let rests = (0..2 * QUIET).filter(|_| due(&pace, mirror, 4096) == TOOK * REST_SHARE).count();
        assert_eq!(rests, QUIET as usize, "for a while after the last request");
        assert_eq!(due(&pace, mirror, 4096), Duration::ZERO);
        let (_, ptr) = store.durable_root().tree.unwrap();
        for _ in 0..50 {
            pace.announce();
            assert_eq!(mirror.read(ptr.addr, &[ptr.sum]).unwrap().len(), BLOCK);
            assert_eq!(due(&pace, mirror, 4096), Duration::ZERO, "its own reads are nobody else's");
        }
        mirror.read(ptr.addr, &[ptr.sum]).unwrap();
        assert_eq!(due(&pace, mirror, 4096), TOOK * REST_SHARE, "one read of others counts");
        let long = pace.due(&mut pace.state.lock(), mirror, 4096, Duration::from_secs(9));
        assert_eq!(long, REST_MAX, "it goes on, however slow the disk is");
    }

    #[test]
    fn a_rate_is_kept() {
        let rig = Rig::new(2, 2);
        let (store, _) = rig.open(false).unwrap();
        let pace = Pace::new(store.mirror(), 1, 1 << 20);
        assert_eq!(due(&pace, store.mirror(), 3600 << 20), REST_MAX);
        assert!(pace.state.lock().owed > Duration::from_secs(1800), "an hour's worth");
        assert_eq!(pace.owed(), REST_MAX);
        let free = Pace::new(store.mirror(), 1, 0);
        assert_eq!((due(&free, store.mirror(), 3600 << 20), free.owed()), (Duration::ZERO, Duration::ZERO));
    }
}
