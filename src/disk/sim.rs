//! Simulated disks: deterministic, seeded, in memory, with every fault of the fault model.
//!
//! *Guarantees*: equal seeds and equal requests give equal results. Requests are executed inside `submit`, so a
//! single-threaded caller never waits by the clock; a hung request is reported as frozen at once. All disks of one
//! [`World`] share one power supply and one count of writes and flushes, so the power can be cut at any of them.
//! *Assumes*: callers that want determinism use one thread.
//! *Fails when*: a fault strikes ([`Faults`], [`Rates`]), or the power is cut: `io::ErrorKind::Other`,
//! "power is cut", on all disks of the world and for ever on handles from before [`World::revive`].
//! *Order*: a disk's lock before the world's; none of them is held while a request is answered. They are real locks also
//! where interleavings are explored (`sync`): a request is one step there.
//! *Not here*: time; a slow disk only says how long it took ([`Faults::takes`]), and one can hang.

mod faults;
mod medium;
pub mod random;
mod tap;

pub use faults::{Counters, Fault, Faults, Rates};
pub use random::Random;
pub use tap::{Asked, Fate, Tap};

use super::backing::{Answer, Backing, BackingFacts, BackingKind, Done, Op, Ticket, request};
use crate::format::{Addr, BLOCK};
use medium::Medium;
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of one block.
pub type Block = [u8; BLOCK];
/// Content of a disk; blocks that are not in it are zero. Cloning costs nothing.
pub type Image = Arc<Blocks>;
/// Blocks by address.
pub type Blocks = HashMap<Addr, Arc<Block>, BuildHasherDefault<AddrHasher>>;

/// One multiplication: addresses are no attacker's, and a run is the same each time.
#[derive(Debug, Clone, Copy, Default)]
pub struct AddrHasher(u64);

impl Hasher for AddrHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }
    fn write_u64(&mut self, addr: u64) {
        let mixed = (self.0 ^ addr).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // The upper bits choose within a group, the lower ones the group.
        self.0 = mixed ^ mixed >> 32;
    }
}

/// Chunks of a disk to which the filesystem below has given space.
pub type Space = BTreeSet<u64>;

/// What a power cut does to writes that no flush covered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashPlan {
    /// All of them survive.
    KeepAll,
    /// None survives.
    DropAll,
    /// Each is lost with a chance of 80 to 100 %, else as `Random`.
    Lossy,
    /// By the seed: any subset, half of the times in any order, some torn at 512 bytes.
    Random,
}

struct Power {
    random: Random,
    io_count: u64,
    cut_at: Option<u64>,
    cut: bool,
    /// Counts revivals; handles of an older boot are dead.
    boot: u64,
}

/// Disks that share a power supply, a seed and a count of I/Os.
#[derive(Clone)]
pub struct World(Arc<WorldState>);

struct WorldState {
    power: Mutex<Power>,
    disks: Mutex<Vec<Arc<Shared>>>,
    tap: Mutex<Option<Tap>>,
}

/// What all handles of one disk share.
struct Shared {
    index: usize,
    medium: Mutex<Medium>,
    hung: Mutex<Vec<(Op, Answer)>>,
}

impl Shared {
    /// Whether what was to be written is there, and whether what was flushed is durable.
    fn holds(&self, op: &Op) -> bool {
        let medium = self.medium.lock();
        match op {
            Op::Write { addr, data } => {
                let blocks = data.iter().flat_map(|slice| slice.chunks_exact(BLOCK));
                (*addr..).zip(blocks).all(|(at, block)| medium.content(at).is_some_and(|held| held[..] == *block))
            }
            Op::Flush => medium.pending.is_empty(),
            _ => true,
        }
    }

    /// Answer what hangs, because the power is cut.
    fn fail_hung(&self) {
        let hung = std::mem::take(&mut *self.hung.lock());
        for (_, answer) in hung {
            answer.give(Err(power_is_cut()));
        }
    }
}

/// A handle of a simulated disk.
pub struct SimDisk {
    world: World,
    shared: Arc<Shared>,
    boot: u64,
    closed: AtomicBool,
    read_only: bool,
}

enum Step {
    Go,
    /// The power fails at this request.
    CutHere,
    Dead,
}

fn power_is_cut() -> io::Error {
    io::Error::other("power is cut")
}

impl World {
    /// A world without disks.
    pub fn new(seed: u64) -> World {
        let power = Power { random: Random::new(seed), io_count: 0, cut_at: None, cut: false, boot: 0 };
        World(Arc::new(WorldState { power: Mutex::new(power), disks: Mutex::new(Vec::new()), tap: Mutex::default() }))
    }

    /// An empty disk of `blocks` blocks.
    pub fn disk(&self, blocks: u64) -> Arc<SimDisk> {
        self.disk_from(blocks, Image::default())
    }

    /// A disk of `blocks` blocks that holds `image`.
    pub fn disk_from(&self, blocks: u64, image: Image) -> Arc<SimDisk> {
        let mut disks = self.0.disks.lock();
        let random = self.0.power.lock().random.fork();
        let medium = Mutex::new(Medium::new(blocks, image, random));
        let shared = Arc::new(Shared { index: disks.len(), medium, hung: Mutex::default() });
        disks.push(shared.clone());
        drop(disks);
        self.handle(shared)
    }

    /// A fresh handle of the disk that was made as number `index`.
    pub fn disk_at(&self, index: usize) -> Arc<SimDisk> {
        let shared = self.0.disks.lock()[index].clone();
        self.handle(shared)
    }

    /// As `disk_at`, opened for reading only.
    pub fn disk_to_read(&self, index: usize) -> Arc<SimDisk> {
        let shared = self.0.disks.lock()[index].clone();
        let boot = self.0.power.lock().boot;
        Arc::new(SimDisk { world: self.clone(), shared, boot, closed: AtomicBool::new(false), read_only: true })
    }

    /// Another empty disk; returns its number.
    pub fn add(&self, blocks: u64) -> usize {
        self.disk(blocks).shared.index
    }

    /// Faults that struck, on all disks together.
    pub fn faults(&self) -> u64 {
        self.0.disks.lock().iter().map(|disk| disk.medium.lock().counters.faults).sum()
    }

    fn handle(&self, shared: Arc<Shared>) -> Arc<SimDisk> {
        let boot = self.0.power.lock().boot;
        Arc::new(SimDisk { world: self.clone(), shared, boot, closed: AtomicBool::new(false), read_only: false })
    }

    /// From now on `tap` (`None`: nobody) is told of every request to a disk of this world.
    pub fn listen(&self, tap: Option<Tap>) {
        *self.0.tap.lock() = tap;
    }

    fn tell(&self, disk: &Shared, op: &Op, fate: Fate) {
        let Some(tap) = self.0.tap.lock().clone() else { return };
        tap(&Asked { disk: disk.index, op, said: fate, shared: disk });
    }

    /// Writes and flushes that the world has seen.
    pub fn io_count(&self) -> u64 {
        self.0.power.lock().io_count
    }

    /// Cut the power when the count of writes and flushes reaches `count` (1 is the first ever); `None`: do not.
    pub fn cut_at(&self, count: Option<u64>) {
        self.0.power.lock().cut_at = count;
    }

    /// Cut the power now.
    pub fn cut_now(&self) {
        self.0.power.lock().cut = true;
    }

    /// Whether the power is cut.
    pub fn is_cut(&self) -> bool {
        self.0.power.lock().cut
    }

    /// Switch the power on again (cutting it first if it is on). All handles from before are dead. Returns fresh
    /// handles of all disks, in the order of their making, holding what survived; faults and rates stay.
    pub fn revive(&self, plan: CrashPlan) -> Vec<Arc<SimDisk>> {
        let disks: Vec<Arc<Shared>> = self.0.disks.lock().clone();
        for disk in &disks {
            let mut medium = disk.medium.lock();
            let mut random = self.0.power.lock().random.fork();
            medium.durable = medium.crashed(plan, &mut random);
            medium.pending.clear();
            medium.latest.clear();
            drop(medium);
            disk.fail_hung();
        }
        {
            let mut power = self.0.power.lock();
            power.boot += 1;
            power.cut = false;
            power.cut_at = None;
        }
        disks.into_iter().map(|disk| self.handle(disk)).collect()
    }

    fn step(&self, op: &Op, boot: u64) -> Step {
        let mut power = self.0.power.lock();
        if power.cut || power.boot != boot {
            return Step::Dead;
        }
        if matches!(op, Op::Write { .. } | Op::Flush) {
            power.io_count += 1;
            if power.cut_at.is_some_and(|at| power.io_count >= at) {
                power.cut = true;
                return Step::CutHere;
            }
        }
        Step::Go
    }
}

impl SimDisk {
    /// A new handle of the same disk, as after the death of the daemon: nothing that was pending is lost.
    /// The old handle no longer reaches the disk.
    pub fn reopen(&self) -> Arc<SimDisk> {
        self.close();
        self.world.handle(self.shared.clone())
    }

    /// The world that it belongs to.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Blocks that it has.
    pub fn blocks(&self) -> u64 {
        self.shared.medium.lock().blocks
    }

    /// Chunks that have space below.
    pub fn space(&self) -> Space {
        self.shared.medium.lock().allocated.clone()
    }

    /// These chunks have space below.
    pub fn set_space(&self, space: Space) {
        self.shared.medium.lock().allocated = space;
    }

    /// Change its faults.
    pub fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.shared.medium.lock().faults);
    }

    /// Faults by chance from now on.
    pub fn set_rates(&self, rates: Rates) {
        self.shared.medium.lock().rates = rates;
    }

    /// No new faults; what is damaged stays so. `revive`: a disk that was dead answers again, with what it has.
    pub fn relieve(&self, revive: bool) {
        let mut medium = self.shared.medium.lock();
        medium.rates = Rates::default();
        let (gone, unreadable) = (medium.faults.gone, std::mem::take(&mut medium.faults.unreadable));
        medium.faults = Faults { gone: gone && !revive, unreadable, ..Faults::default() };
    }

    /// What it was asked so far.
    pub fn counters(&self) -> Counters {
        self.shared.medium.lock().counters
    }

    /// What reads would find now: durable and pending together.
    pub fn snapshot(&self) -> Image {
        let medium = self.shared.medium.lock();
        let mut image = medium.durable.clone();
        if !medium.latest.is_empty() {
            let blocks = Arc::make_mut(&mut image);
            blocks.extend(medium.latest.iter().map(|(addr, block)| (*addr, block.clone())));
        }
        image
    }

    /// What would survive if the power failed now; changes nothing.
    pub fn crash_image(&self, plan: CrashPlan, random: &mut Random) -> Image {
        self.shared.medium.lock().crashed(plan, random)
    }

    /// Replace everything that it holds, pending writes included (a disk back with old or foreign content).
    pub fn restore(&self, image: Image) {
        let mut medium = self.shared.medium.lock();
        medium.durable = image;
        medium.pending.clear();
        medium.latest.clear();
        medium.previous.clear();
    }

    /// What is pending becomes durable, although nobody asked for it.
    pub fn drain(&self) {
        self.shared.medium.lock().flush();
    }

    /// Addresses that were ever written, in order.
    pub fn addresses(&self) -> Vec<Addr> {
        self.shared.medium.lock().addresses()
    }

    /// The bytes at `addr`, past all faults.
    pub fn peek(&self, addr: Addr) -> Block {
        self.shared.medium.lock().content(addr).map_or([0; BLOCK], |block| **block)
    }

    /// Whether the block at `addr` is what a power cut makes of a write of `new`: each sector of it, or as it was before.
    pub fn is_torn(&self, addr: Addr, new: &Block) -> bool {
        let medium = self.shared.medium.lock();
        let zeros = [0; BLOCK];
        let held: &Block = medium.content(addr).map_or(&zeros, |block| block);
        let before: &Block = medium.previous.get(&addr).map_or(&zeros, |block| block);
        let sector = |at: usize| at..at + medium::SECTOR;
        (0..BLOCK)
            .step_by(medium::SECTOR)
            .map(sector)
            .all(|at| held[at.clone()] == new[at.clone()] || held[at.clone()] == before[at])
    }

    /// Put bytes at `addr` behind everybody's back.
    pub fn poke(&self, addr: Addr, block: Block) {
        self.shared.medium.lock().set(addr, Arc::new(block));
    }

    /// Flip bit `bit` of the block at `addr`.
    pub fn rot(&self, addr: Addr, bit: u64) {
        self.shared.medium.lock().rot(addr, bit);
    }

    /// Zero the block at `addr`.
    pub fn zero(&self, addr: Addr) {
        self.poke(addr, [0; BLOCK]);
    }

    /// Fill the block at `addr` with junk.
    pub fn junk(&self, addr: Addr) {
        let mut block = [0; BLOCK];
        let mut medium = self.shared.medium.lock();
        medium.random.fill(&mut block);
        medium.set(addr, Arc::new(block));
    }

    /// Bring back what stood at `addr` before its newest content (zeros if nothing did). False if that changes
    /// nothing.
    pub fn stale(&self, addr: Addr) -> bool {
        let mut medium = self.shared.medium.lock();
        let before = medium.previous.get(&addr).cloned().unwrap_or_else(|| Arc::new([0; BLOCK]));
        let changes = medium.content(addr).is_some_and(|now| **now != *before);
        medium.set(addr, before);
        changes
    }

    /// Let requests that hang land, oldest first, and answer them. Returns how many there were.
    pub fn release_hung(&self) -> usize {
        let hung = std::mem::take(&mut *self.shared.hung.lock());
        let count = hung.len();
        for (op, answer) in hung {
            let result: io::Result<Done> = match self.world.step(&op, self.boot) {
                Step::Go => self.shared.medium.lock().run(&op),
                Step::CutHere | Step::Dead => Err(power_is_cut()),
            };
            self.world.tell(&self.shared, &op, if result.is_ok() { Fate::Late } else { Fate::Failed });
            answer.give(result);
        }
        count
    }

    fn hangs(&self, op: &Op) -> bool {
        let mut medium = self.shared.medium.lock();
        let rate = medium.rates.hang;
        let hang = medium.faults.hang.strikes()
            || (matches!(op, Op::Flush) && medium.faults.hang_flushes.strikes())
            || medium.random.chance(rate);
        medium.counters.faults += u64::from(hang);
        hang
    }
}

impl Backing for SimDisk {
    fn submit(&self, op: Op) -> Ticket {
        if self.closed.load(Ordering::Acquire) {
            return Ticket::answered(Err(io::Error::other("the simulated disk is closed")));
        }
        if self.read_only && !matches!(op, Op::Read { .. } | Op::ReadMedium { .. } | Op::Check) {
            return Ticket::answered(Err(io::Error::from_raw_os_error(libc::EBADF)));
        }
        match self.world.step(&op, self.boot) {
            Step::Go => {}
            Step::CutHere => {
                self.shared.medium.lock().write_cut(&op);
                // Nobody waits for a disk without power.
                let disks = self.world.0.disks.lock().clone();
                for disk in &disks {
                    disk.fail_hung();
                }
                self.world.tell(&self.shared, &op, Fate::Cut);
                return Ticket::answered(Err(power_is_cut()));
            }
            Step::Dead => return Ticket::answered(Err(power_is_cut())),
        }
        if self.hangs(&op) {
            let (ticket, answer) = request();
            answer.freeze();
            self.world.tell(&self.shared, &op, Fate::Hung);
            self.shared.hung.lock().push((op, answer));
            return ticket;
        }
        let result: io::Result<Done> = self.shared.medium.lock().run(&op);
        self.world.tell(&self.shared, &op, if result.is_ok() { Fate::Done } else { Fate::Failed });
        let took = self.shared.medium.lock().faults.takes;
        Ticket::answered_after(took, result)
    }

    fn facts(&self) -> BackingFacts {
        BackingFacts {
            path: format!("sim:{}", self.shared.index),
            kind: BackingKind::Simulated,
            direct: true,
            blocks: self.blocks(),
            device: self.shared.index as u64,
            read_only: self.read_only,
        }
    }

    fn in_flight(&self) -> usize {
        self.shared.hung.lock().len()
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests;
