//! Who is slow: each replica's times compared with those of its twin, for the same kind of work.
//!
//! *Guarantees*: a replica is slow only relative to a quicker one in sync, so never alone, never all of them, and not because the machine was
//! paused: that strikes both, and is one sample. A slow one gets no reads but those that only it can answer and a probe
//! now and then, takes all writes, and stays in sync. It is quick again when it was shown to be, in the kind of work that made it slow.
//! *Assumes*: how long a request took is told by the backing that answered it, so that it is deterministic where that is.
//! *Fails when*: never. *Order*: the lock here is a leaf; states are told after it is released, or under the table's lock.
//! *Not here*: one that does not answer at all within the deadline (`batch`, `read`).
//!
//! | from | to | by |
//! |---|---|---|
//! | quick | slow | of the last [`WINDOW`] samples of reads (or writes and flushes), [`SAMPLES_MIN`] at least, the median is [`FACTOR`] times the twin's and [`FLOOR`] more |
//! | slow | quick | since then [`SAMPLES_MIN`] samples of that kind: the median is less than half of that factor, or of that floor |
//! | slow | quick | it leaves, or is the only one left in sync |
//!
//! A median moves when more than half of the samples do. Samples of one kind of one replica do not overlap in time: sixty-four requests
//! that waited for the same hiccup are one sample.

use super::happened::{Happened, What};
use super::{Lane, Mirror, ReplicaState};
use crate::disk::backing::{Op, Ticket};
use crate::format::{Addr, REPLICAS_MAX};
use crate::sync::atomic::{AtomicU8, Ordering};
use crate::sync::{Instant, Mutex};
use std::collections::VecDeque;
use std::time::Duration;

/// Samples that are remembered.
pub const WINDOW: usize = 32;
/// Samples below which nothing is said.
pub const SAMPLES_MIN: usize = 16;
/// So many times slower than the twin.
pub const FACTOR: u32 = 4;
/// And so much slower at least.
pub const FLOOR: Duration = Duration::from_millis(10);
/// One of so many reads is also sent to a slow replica, to see.
const PROBE_EVERY: u64 = 16;
/// Longest read that is a sample: longer ones measure bandwidth.
const READ_BLOCKS_MAX: usize = 32;

/// How long requests take a replica, and its twin; medians.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pace {
    /// Slow since, ns since 1970; 0: it is not.
    pub slow_since_ns: u64,
    /// A small read.
    pub read: Option<Duration>,
    /// A write or a flush, as a whole.
    pub write: Option<Duration>,
    /// The same of the quickest other replica.
    pub twin_read: Option<Duration>,
    /// The same of the quickest other replica.
    pub twin_write: Option<Duration>,
}

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Reads,
    Writes,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Reads => "a read",
            Kind::Writes => "a write or flush",
        }
    }
}

/// When a request was sent, and how long it took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    /// `None`: where time is simulated.
    pub asked: Option<Instant>,
    pub took: Duration,
}

impl Sample {
    pub fn of(ticket: &Ticket) -> Option<Sample> {
        ticket.took().map(|took| Sample { asked: ticket.asked(), took })
    }
}

#[derive(Default)]
struct Samples {
    took: VecDeque<Duration>,
    /// When the last one ended.
    end: Option<Instant>,
    count: u64,
}

impl Samples {
    /// False: it overlaps with the one before.
    fn add(&mut self, sample: Sample) -> bool {
        if let (Some(asked), Some(end)) = (sample.asked, self.end)
            && asked < end
        {
            return false;
        }
        self.end = sample.asked.map(|asked| asked + sample.took);
        if self.took.len() == WINDOW {
            self.took.pop_front();
        }
        self.took.push_back(sample.took);
        self.count += 1;
        true
    }

    fn median(&self) -> Option<Duration> {
        if self.took.len() < SAMPLES_MIN {
            return None;
        }
        let mut sorted: Vec<Duration> = self.took.iter().copied().collect();
        let middle = sorted.len() / 2;
        Some(*sorted.select_nth_unstable(middle).1)
    }
}

/// What is known of one replica.
#[derive(Default)]
struct Track {
    reads: Samples,
    writes: Samples,
    /// Slow since, and what in.
    slow: Option<(u64, Kind)>,
    probe: Option<Ticket>,
}

impl Track {
    fn of(&self, kind: Kind) -> &Samples {
        match kind {
            Kind::Reads => &self.reads,
            Kind::Writes => &self.writes,
        }
    }
}

/// What is known of all.
pub(super) struct Paces {
    tracks: Mutex<Vec<Track>>,
    /// Bit i: slot i is slow.
    slow: AtomicU8,
    reads: crate::sync::atomic::AtomicU64,
}

impl Default for Paces {
    fn default() -> Paces {
        Paces {
            tracks: Mutex::new((0..=REPLICAS_MAX).map(|_| Track::default()).collect()),
            slow: AtomicU8::new(0),
            reads: crate::sync::atomic::AtomicU64::new(0),
        }
    }
}

impl Paces {
    pub fn is_slow(&self, slot: usize) -> bool {
        self.slow.load(Ordering::Relaxed) >> slot & 1 == 1
    }

    /// Another is in the slot, or it has another state: nothing is known. True: it was slow.
    pub fn forget(&self, slot: usize) -> bool {
        let mut tracks = self.tracks.lock();
        tracks[slot] = Track::default();
        self.slow.fetch_and(!(1 << slot), Ordering::Relaxed) >> slot & 1 == 1
    }

    pub fn pace(&self, slot: usize, in_sync: u8) -> Pace {
        let tracks = self.tracks.lock();
        let twin = |kind| quickest(&tracks, slot, in_sync, kind);
        Pace {
            slow_since_ns: tracks[slot].slow.map_or(0, |(since_ns, _)| since_ns),
            read: tracks[slot].reads.median(),
            write: tracks[slot].writes.median(),
            twin_read: twin(Kind::Reads),
            twin_write: twin(Kind::Writes),
        }
    }

    /// Take samples of `kind`; gives who has become slow or quick by them, with the reason.
    fn note(&self, kind: Kind, samples: &[(usize, Sample)], in_sync: u8, now_ns: u64) -> Vec<(usize, What, String)> {
        let mut tracks = self.tracks.lock();
        let mut moved = Vec::new();
        for (slot, sample) in samples {
            let track = &mut tracks[*slot];
            let samples = if kind == Kind::Reads { &mut track.reads } else { &mut track.writes };
            if !samples.add(*sample) {
                continue;
            }
        }
        for (slot, _) in samples {
            let Some((own, twin)) = tracks[*slot].of(kind).median().zip(quickest(&tracks, *slot, in_sync, kind)) else {
                continue;
            };
            let text = format!("{} takes it {own:.1?}, another replica {twin:.1?}", kind.name());
            match tracks[*slot].slow {
                None if own >= twin * FACTOR && own >= twin + FLOOR => {
                    let track = &mut tracks[*slot];
                    *track = Track { slow: Some((now_ns, kind)), ..Track::default() };
                    self.slow.fetch_or(1 << slot, Ordering::Relaxed);
                    moved.push((*slot, What::Slow, text));
                }
                Some((_, by)) if by == kind && (own < twin * FACTOR / 2 || own < twin + FLOOR / 2) => {
                    tracks[*slot].slow = None;
                    self.slow.fetch_and(!(1 << slot), Ordering::Relaxed);
                    moved.push((*slot, What::Quick, text));
                }
                _ => {}
            }
        }
        moved
    }
}

/// The median of the quickest other one in sync that is not slow itself.
fn quickest(tracks: &[Track], slot: usize, in_sync: u8, kind: Kind) -> Option<Duration> {
    let others = tracks.iter().enumerate().filter(|(other, track)| {
        *other != slot && in_sync.checked_shr(*other as u32).unwrap_or(0) & 1 == 1 && track.slow.is_none()
    });
    others.filter_map(|(_, track)| track.of(kind).median()).min()
}

impl Mirror {
    /// Whom to ask first: who is not slow, unless all are.
    pub(super) fn quick(&self, mut lanes: Vec<Lane>) -> Vec<Lane> {
        if lanes.iter().any(|lane| !self.paces.is_slow(lane.slot)) {
            lanes.retain(|lane| !self.paces.is_slow(lane.slot));
        }
        lanes
    }

    /// A read of `blocks` blocks was answered.
    pub(super) fn note_read(&self, slot: usize, blocks: usize, sample: Option<Sample>) {
        if blocks <= READ_BLOCKS_MAX
            && let Some(sample) = sample
        {
            self.note(Kind::Reads, &[(slot, sample)]);
        }
    }

    /// The same was written to, or flushed on, each of these.
    pub(super) fn note_writes(&self, samples: &[(usize, Sample)]) {
        // Only pairs say anything.
        if samples.len() > 1 {
            self.note(Kind::Writes, samples);
        }
    }

    fn note(&self, kind: Kind, samples: &[(usize, Sample)]) {
        let in_sync = self.members().in_sync;
        let samples: Vec<(usize, Sample)> =
            samples.iter().filter(|(slot, _)| in_sync >> slot & 1 == 1).copied().collect();
        for (slot, what, text) in self.paces.note(kind, &samples, in_sync, super::slot::wall_ns()) {
            log::warn!("replica {slot} is {}: {text}", if what == What::Slow { "slow" } else { "quick again" });
            self.tell_of(slot, Happened::new(what, &text));
        }
    }

    /// Now and then what is read is also asked of the slow ones; nobody waits for them.
    pub(super) fn probe_slow(&self, lanes: &[Lane], addr: Addr, blocks: usize) {
        if self.paces.slow.load(Ordering::Relaxed) == 0 || blocks > READ_BLOCKS_MAX {
            return;
        }
        let is_due = self.paces.reads.fetch_add(1, Ordering::Relaxed).is_multiple_of(PROBE_EVERY);
        self.probe(lanes, addr, blocks as u32, is_due);
    }

    /// The same where nothing is read: the root's first slot is always there.
    pub(super) fn probe_idle(&self) {
        if self.paces.slow.load(Ordering::Relaxed) != 0 {
            let lanes = self.lanes(|state| state == ReplicaState::InSync);
            self.probe(&lanes, crate::format::Root::addr(0), 1, true);
        }
    }

    fn probe(&self, lanes: &[Lane], addr: Addr, blocks: u32, is_due: bool) {
        for lane in lanes.iter().filter(|lane| self.paces.is_slow(lane.slot)) {
            let mut answered = None;
            {
                let mut tracks = self.paces.tracks.lock();
                let probe = &mut tracks[lane.slot].probe;
                if probe.as_ref().is_some_and(Ticket::is_done) {
                    answered = probe.take();
                }
            }
            if let Some(ticket) = answered {
                self.note_read(lane.slot, 1, Sample::of(&ticket));
            }
            let is_free = |paces: &Paces| paces.tracks.lock()[lane.slot].probe.is_none();
            // One at a time: if it hangs, the deadline of a write finds that out.
            if is_due && self.paces.is_slow(lane.slot) && is_free(&self.paces) {
                let ticket = lane.backing.submit(Op::Read { addr, blocks });
                self.paces.tracks.lock()[lane.slot].probe = Some(ticket);
            }
        }
    }
}
