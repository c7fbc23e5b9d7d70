//! What a run wrote, in order, and the disks as a power cut at each of these writes and flushes would leave them.
//!
//! *Guarantees*: [`Crashes`] gives, for each write and flush that was recorded, the images that a run cut there would
//! leave: the run up to there is the same, since nothing told it of the cut. *Assumes*: the run is deterministic, and its
//! disks had no faults. *Fails when*: never. *Order*: as recorded.
//! *Not here*: what a run answered to whom.

use crate::disk::backing::{Backing, Op};
use crate::disk::sim::{CrashPlan, Image, Random, SimDisk, World as Power};
use crate::sync::Mutex;
use std::sync::Arc;

/// Writes, flushes and punches of all disks, in order: disk and request.
pub type Events = Vec<(usize, Op)>;

/// Where they are collected.
pub type Tape = Arc<Mutex<Events>>;

/// Record what changes the disks of `power` from now on.
pub fn record(power: &Power) -> Tape {
    let tape = Tape::default();
    let heard = tape.clone();
    power.listen(Some(Arc::new(move |asked| {
        if matches!(asked.op, Op::Write { .. } | Op::Flush | Op::Punch { .. }) {
            heard.lock().push((asked.disk, asked.op.clone()));
        }
    })));
    tape
}

/// What becomes of what no flush covered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing of it survives.
    Drop,
    /// All of it survives.
    Keep,
    /// Only on this disk.
    KeepOn(usize),
    /// Any part of it, in any order, torn or whole.
    Random,
}

impl Outcome {
    /// All outcomes for two disks.
    pub const ALL: [Outcome; 5] =
        [Outcome::Drop, Outcome::Keep, Outcome::KeepOn(0), Outcome::KeepOn(1), Outcome::Random];

    /// All outcomes for so many disks.
    pub fn of(disks: usize) -> Vec<Outcome> {
        Outcome::ALL.into_iter().chain((2..disks).map(Outcome::KeepOn)).collect()
    }

    fn plan(self, disk: usize) -> CrashPlan {
        match self {
            Outcome::Drop => CrashPlan::DropAll,
            Outcome::Keep => CrashPlan::KeepAll,
            Outcome::KeepOn(kept) if kept == disk => CrashPlan::KeepAll,
            Outcome::KeepOn(_) => CrashPlan::DropAll,
            Outcome::Random => CrashPlan::Random,
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Outcome::Drop => f.write_str("drop"),
            Outcome::Keep => f.write_str("keep"),
            Outcome::KeepOn(disk) => write!(f, "keep{disk}"),
            Outcome::Random => f.write_str("random"),
        }
    }
}

/// Disks that the events are played to again.
pub struct Crashes<'a> {
    disks: Vec<Arc<SimDisk>>,
    events: &'a [(usize, Op)],
    next: usize,
}

impl<'a> Crashes<'a> {
    /// From `images` on.
    pub fn new(images: &[Image], blocks: u64, events: &'a [(usize, Op)]) -> Crashes<'a> {
        let power = Power::new(0);
        let disks = images.iter().map(|image| power.disk_from(blocks, image.clone())).collect();
        Crashes { disks, events, next: 0 }
    }

    fn run(&mut self) {
        let (disk, op) = &self.events[self.next];
        self.disks[*disk].submit(op.clone()).wait(None).expect("no faults").expect("no faults");
        self.next += 1;
    }

    /// Go on to event `index`, at which the power fails: a write may have landed, a flush has not. Only forwards;
    /// the number of events is the end.
    pub fn go_to(&mut self, index: usize) {
        while self.next < index {
            self.run();
        }
        if self.next == index && matches!(self.events.get(index), Some((_, Op::Write { .. }))) {
            self.run();
        }
    }

    /// What `outcome` leaves; `seed` says what is random in it.
    pub fn images(&self, outcome: Outcome, seed: u64) -> Vec<Image> {
        let mut random = Random::new(seed);
        self.disks.iter().enumerate().map(|(i, disk)| disk.crash_image(outcome.plan(i), &mut random)).collect()
    }
}

/// The same for images that hold the same blocks (not only equal ones), as long as both live.
pub fn fingerprint(images: &[Image]) -> u64 {
    let mix = |mut x: u64| {
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    let mut sum: u64 = 0;
    for (i, image) in images.iter().enumerate() {
        for (addr, block) in image.iter() {
            let block = Arc::as_ptr(block) as u64;
            sum = sum.wrapping_add(mix(mix(addr ^ ((i as u64) << 56)) ^ block));
        }
    }
    sum
}
