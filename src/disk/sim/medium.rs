//! The bytes of one simulated disk: what is durable, what is pending, and how requests change them.
//!
//! *Guarantees*: reads see pending writes; a flush makes durable what was pending; a crash keeps any subset of what
//! was pending, in any order, each block whole or torn at 512 bytes. All by the seed.
//! *Assumes*: one caller at a time (the lock of `SimDisk`).
//! *Fails when*: a fault strikes: `io::Error` with the code a real disk would give.
//! *Order*: none.
//! *Not here*: power and hanging requests (`sim`).

use super::faults::{Counters, Faults, Rates};
use super::random::Random;
use super::{Block, Blocks, CrashPlan, Image, Space};
use crate::disk::backing::{Done, Facts, Op};
use crate::disk::buffer::Buf;
use crate::format::{Addr, BLOCK, all_zero};
use std::io;
use std::sync::Arc;

pub(super) const SECTOR: usize = 512;
/// Blocks that the filesystem below allocates at once.
const CHUNK: u64 = 16;

pub(super) struct Medium {
    pub blocks: u64,
    /// What survives any crash.
    pub durable: Image,
    /// Answered writes that no flush covers, oldest first.
    pub pending: Vec<(Addr, Arc<Block>)>,
    /// Newest pending content by address.
    pub latest: Blocks,
    /// What stood at an address before its newest content.
    pub previous: Blocks,
    /// Chunks that have space below.
    pub allocated: Space,
    pub faults: Faults,
    pub rates: Rates,
    pub counters: Counters,
    pub random: Random,
    zeros: Arc<Block>,
}

fn os_error(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

/// Sectors of `new` where `mask` has a bit, of `old` elsewhere.
fn torn(old: Option<&Arc<Block>>, new: &Block, mask: u64) -> Arc<Block> {
    let mut mixed = old.map_or([0; BLOCK], |old| **old);
    for sector in 0..BLOCK / SECTOR {
        if mask >> sector & 1 == 1 {
            let at = sector * SECTOR..(sector + 1) * SECTOR;
            mixed[at.clone()].copy_from_slice(&new[at]);
        }
    }
    Arc::new(mixed)
}

/// A block of its own, copied once.
fn block_of(bytes: &[u8]) -> Arc<Block> {
    Arc::<[u8]>::from(bytes).try_into().expect("chunks are blocks")
}

impl Medium {
    pub fn new(blocks: u64, durable: Image, random: Random) -> Medium {
        Medium {
            blocks,
            durable,
            pending: Vec::new(),
            latest: Blocks::default(),
            previous: Blocks::default(),
            allocated: Space::new(),
            faults: Faults::default(),
            rates: Rates::default(),
            counters: Counters::default(),
            random,
            zeros: Arc::new([0; BLOCK]),
        }
    }

    /// What a read finds at `addr`.
    pub fn content(&self, addr: Addr) -> Option<&Arc<Block>> {
        self.latest.get(&addr).or_else(|| self.durable.get(&addr))
    }

    /// Damage or set the medium itself, behind everybody's back: durable at once.
    pub fn set(&mut self, addr: Addr, block: Arc<Block>) {
        if let Some(latest) = self.latest.get_mut(&addr) {
            *latest = block.clone();
            for (at, pending) in &mut self.pending {
                if *at == addr {
                    *pending = block.clone();
                }
            }
        }
        Arc::make_mut(&mut self.durable).insert(addr, block);
    }

    /// Put a write into the pending list.
    fn stage(&mut self, addr: Addr, block: Arc<Block>) {
        if let Some(before) = self.content(addr).cloned() {
            self.previous.insert(addr, before);
        }
        self.faults.unreadable.remove(&addr);
        self.latest.insert(addr, block.clone());
        self.pending.push((addr, block));
    }

    pub fn flush(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let durable = Arc::make_mut(&mut self.durable);
        for (addr, block) in self.pending.drain(..) {
            durable.insert(addr, block);
        }
        self.latest.clear();
    }

    /// The image that a power cut would leave.
    pub fn crashed(&self, plan: CrashPlan, random: &mut Random) -> Image {
        let mut image = self.durable.clone();
        if self.pending.is_empty() || plan == CrashPlan::DropAll {
            return image;
        }
        let blocks = Arc::make_mut(&mut image);
        let mut order: Vec<usize> = (0..self.pending.len()).collect();
        // One chance for the whole crash, so that "nearly all" and "nearly none" both happen often.
        let keep = match plan {
            CrashPlan::KeepAll => 1_000_000,
            CrashPlan::Lossy => random.below(200_001) as u32,
            CrashPlan::DropAll | CrashPlan::Random => random.below(1_000_001) as u32,
        };
        let shuffled = matches!(plan, CrashPlan::Random | CrashPlan::Lossy);
        if shuffled && random.chance(500_000) {
            random.shuffle(&mut order);
        }
        for index in order {
            let (addr, block) = &self.pending[index];
            if keep < 1_000_000 && !random.chance(keep) {
                continue;
            }
            if shuffled && random.chance(200_000) {
                let mixed = torn(blocks.get(addr), block, random.bits());
                blocks.insert(*addr, mixed);
            } else {
                blocks.insert(*addr, block.clone());
            }
        }
        image
    }

    /// Addresses that hold something, in order, each once.
    pub fn addresses(&self) -> Vec<Addr> {
        let mut held: Vec<Addr> = self.durable.keys().chain(self.latest.keys()).copied().collect();
        held.sort_unstable();
        held.dedup();
        held
    }

    /// Any other address that holds something, so that misdirection does harm.
    fn elsewhere(&mut self, addr: Addr) -> Addr {
        let mut held = self.addresses();
        held.retain(|at| *at != addr);
        if held.is_empty() { addr ^ 1 } else { *self.random.pick(&held) }
    }

    fn struck(&mut self, yes: bool) -> bool {
        self.counters.faults += u64::from(yes);
        yes
    }

    fn check_range(&self, addr: Addr, blocks: u64) -> io::Result<()> {
        if addr.checked_add(blocks).is_none_or(|end| end > self.blocks) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "beyond the end of the simulated disk"));
        }
        Ok(())
    }

    pub fn run(&mut self, op: &Op) -> io::Result<Done> {
        if matches!(op, Op::Write { .. } | Op::Flush) && self.faults.dies.strikes() {
            self.faults.gone = true;
        }
        if self.faults.gone {
            self.counters.faults += 1;
            return Err(os_error(libc::ENODEV));
        }
        match op {
            Op::Read { addr, blocks } => self.read(*addr, *blocks),
            Op::ReadMedium { addr, blocks } => {
                self.counters.medium_reads += 1;
                self.read(*addr, *blocks)
            }
            Op::Write { addr, data } => self.write(*addr, data),
            Op::Flush => self.run_flush(),
            Op::Allocate { addr, blocks } => self.allocate(*addr, *blocks),
            Op::Punch { addr, blocks } => self.punch(*addr, *blocks),
            Op::Check => self.check(),
        }
    }

    fn read(&mut self, addr: Addr, blocks: u32) -> io::Result<Done> {
        self.counters.reads += 1;
        self.check_range(addr, u64::from(blocks))?;
        let by_chance = self.random.chance(self.rates.read_error);
        let ordered = self.faults.fail_reads.strikes();
        let sector = (addr..addr + u64::from(blocks)).any(|at| self.faults.unreadable.contains(&at));
        if self.struck(by_chance || ordered || sector) {
            return Err(os_error(libc::EIO));
        }
        let mut buf = Buf::zeroed(blocks as usize * BLOCK);
        for (i, out) in buf.chunks_exact_mut(BLOCK).enumerate() {
            let mut at = addr + i as u64;
            if self.random.chance(self.rates.bit_rot) {
                self.counters.faults += 1;
                let bit = self.random.below(BLOCK as u64 * 8);
                self.rot(at, bit);
            }
            let by_chance = self.random.chance(self.rates.misdirected_read);
            let ordered = self.faults.misdirected_reads.strikes();
            if self.struck(by_chance || ordered) {
                at = self.elsewhere(at);
            }
            if let Some(block) = self.content(at) {
                out.copy_from_slice(&block[..]);
            }
        }
        Ok(Done::Data(buf))
    }

    fn write(&mut self, addr: Addr, data: &[crate::disk::buffer::Slice]) -> io::Result<Done> {
        self.counters.writes += 1;
        let blocks: u64 = data.iter().map(|slice| slice.blocks()).sum();
        self.check_range(addr, blocks)?;
        self.counters.blocks_written += blocks;
        if self.struck(self.faults.read_only) {
            return Err(os_error(libc::EROFS));
        }
        let by_chance = self.random.chance(self.rates.write_error);
        let ordered = self.faults.fail_writes.strikes();
        let sector = (addr..addr + blocks).any(|at| self.faults.unwritable.contains(&at));
        if self.struck(by_chance || ordered || sector) {
            return Err(os_error(libc::EIO));
        }
        let no_room = self.faults.full && !self.has_space(addr, blocks);
        if self.struck(no_room) {
            return Err(os_error(libc::ENOSPC));
        }
        self.take_space(addr, blocks);
        let lost = self.random.chance(self.rates.lost_write) | self.faults.lost_writes.strikes();
        let tear = self.random.chance(self.rates.torn_write) | self.faults.torn_writes.strikes();
        let misdirect = self.random.chance(self.rates.misdirected_write) | self.faults.misdirected_writes.strikes();
        self.struck(lost || tear || misdirect);
        if lost {
            return Ok(Done::Nothing);
        }
        let base = if misdirect { self.elsewhere(addr) } else { addr };
        for (at, bytes) in (base..).zip(data.iter().flat_map(|slice| slice.chunks_exact(BLOCK))) {
            // Zeros are written by the hundred: all are one.
            let mut block = if all_zero(bytes) { self.zeros.clone() } else { block_of(bytes) };
            let target = at % self.blocks;
            if tear {
                // Neither all old nor all new: that would be a lost write or a good one.
                let mask = self.random.range(1, 255);
                block = torn(self.content(target), &block, mask);
            }
            if !self.faults.stuck.contains(&target) && !self.faults.loses(target) {
                self.stage(target, block);
            }
        }
        Ok(Done::Nothing)
    }

    /// The power fails during this write: any part of it may reach the medium. `crashed` does the rest.
    pub fn write_cut(&mut self, op: &Op) {
        if let Op::Write { addr, data } = op {
            for (i, bytes) in data.iter().flat_map(|slice| slice.chunks_exact(BLOCK)).enumerate() {
                let at = addr + i as u64;
                if at < self.blocks {
                    self.stage(at, block_of(bytes));
                }
            }
        }
    }

    fn run_flush(&mut self) -> io::Result<Done> {
        self.counters.flushes += 1;
        let failed = self.random.chance(self.rates.flush_error) | self.faults.fail_flushes.strikes();
        if self.struck(failed) {
            // As Linux does: what could not be written is forgotten, and the next flush says Ok.
            for (addr, block) in std::mem::take(&mut self.pending) {
                if self.random.chance(500_000) {
                    Arc::make_mut(&mut self.durable).insert(addr, block);
                }
            }
            self.latest.clear();
            return Err(os_error(libc::EIO));
        }
        let lie = self.random.chance(self.rates.lying_flush) | self.faults.lying_flushes.strikes();
        if !self.struck(lie) {
            self.flush();
        }
        Ok(Done::Nothing)
    }

    fn allocate(&mut self, addr: Addr, blocks: u64) -> io::Result<Done> {
        self.counters.allocates += 1;
        if self.struck(self.faults.read_only) {
            return Err(os_error(libc::EROFS));
        }
        let beyond = addr.checked_add(blocks).is_none_or(|end| end > self.blocks);
        let no_room = self.faults.full && !self.has_space(addr, blocks);
        if self.struck(no_room) || beyond {
            return Err(os_error(libc::ENOSPC));
        }
        self.take_space(addr, blocks);
        Ok(Done::Nothing)
    }

    /// Whether the filesystem below has given space to all of the range before.
    fn has_space(&self, addr: Addr, blocks: u64) -> bool {
        (addr..addr + blocks).all(|at| self.content(at).is_some() || self.allocated.contains(&(at / CHUNK)))
    }

    /// It does so in whole chunks.
    fn take_space(&mut self, addr: Addr, blocks: u64) {
        self.allocated.extend(addr / CHUNK..(addr + blocks).div_ceil(CHUNK));
    }

    fn punch(&mut self, addr: Addr, blocks: u64) -> io::Result<Done> {
        if self.struck(self.faults.read_only) {
            return Err(os_error(libc::EROFS));
        }
        let range = addr..addr.saturating_add(blocks);
        // Of a chunk that is punched in part the rest keeps its space.
        self.allocated.retain(|chunk| chunk * CHUNK < range.start || (chunk + 1) * CHUNK > range.end);
        self.pending.retain(|(at, _)| !range.contains(at));
        self.latest.retain(|at, _| !range.contains(at));
        Arc::make_mut(&mut self.durable).retain(|at, _| !range.contains(at));
        Ok(Done::Nothing)
    }

    fn check(&mut self) -> io::Result<Done> {
        let ordered = self.faults.fail_checks.strikes();
        if self.struck(ordered) {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the simulated container has vanished"));
        }
        let bytes_free_below = if self.faults.full { 0 } else { u64::MAX };
        Ok(Done::Facts(Facts { bytes_free_below, length: self.blocks * BLOCK as u64, direct: true }))
    }

    /// Flip a bit of the medium.
    pub fn rot(&mut self, addr: Addr, bit: u64) {
        let mut block = self.content(addr).map_or([0; BLOCK], |block| **block);
        let bit = bit as usize % (BLOCK * 8);
        block[bit / 8] ^= 1 << (bit % 8);
        self.set(addr, Arc::new(block));
    }
}
