//! What can be wrong with a simulated disk.
//!
//! *Guarantees*: every fault of the fault model has a switch, a budget, or a rate here.
//! *Assumes*: nothing. *Fails when*: never. *Order*: none.
//! *Not here*: what each fault does (`medium`), power cuts (`sim`).

use crate::format::Addr;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

impl Faults {
    /// Whether this write of block `addr` is the one to be lost.
    pub(super) fn loses(&mut self, addr: Addr) -> bool {
        match self.lost_after.get_mut(&addr) {
            Some(0) => self.lost_after.remove(&addr).is_some(),
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }
}

/// How often a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    /// Not at all.
    #[default]
    Never,
    /// Each time.
    Always,
    /// The next so many times.
    Next(u32),
    /// Once, after so many requests without.
    Once(u32),
}

impl Fault {
    /// Whether it strikes now; uses up the budget.
    pub fn strikes(&mut self) -> bool {
        match self {
            Fault::Never => false,
            Fault::Always => true,
            Fault::Next(0) => {
                *self = Fault::Never;
                false
            }
            Fault::Next(left) => {
                *left -= 1;
                true
            }
            Fault::Once(0) => {
                *self = Fault::Never;
                true
            }
            Fault::Once(left) => {
                *left -= 1;
                false
            }
        }
    }
}

/// Faults of one disk that a test switches on.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Reads answer EIO.
    pub fail_reads: Fault,
    /// Writes answer EIO and change nothing.
    pub fail_writes: Fault,
    /// Flushes answer EIO; some of what was pending is lost.
    pub fail_flushes: Fault,
    /// Checks answer an error, as if the container had vanished.
    pub fail_checks: Fault,
    /// Writes answer Ok and change nothing.
    pub lost_writes: Fault,
    /// Writes answer Ok and land elsewhere.
    pub misdirected_writes: Fault,
    /// Reads answer with the bytes of another address.
    pub misdirected_reads: Fault,
    /// Writes answer Ok but each block is a mixture of old and new sectors.
    pub torn_writes: Fault,
    /// Flushes answer Ok and make nothing durable.
    pub lying_flushes: Fault,
    /// Requests get no answer until `release_hung`.
    pub hang: Fault,
    /// Only flushes get no answer until `release_hung`.
    pub hang_flushes: Fault,
    /// Each request takes so long; nobody waits for it, it only says so.
    pub takes: Duration,
    /// Blocks whose reading answers EIO until they are written again.
    pub unreadable: HashSet<Addr>,
    /// Blocks whose writing answers EIO.
    pub unwritable: HashSet<Addr>,
    /// Blocks on which writes answer Ok and change nothing (a stuck cell).
    pub stuck: HashSet<Addr>,
    /// Blocks of which one write is lost (answers Ok and changes nothing), after so many that land.
    pub lost_after: HashMap<Addr, u32>,
    /// Fail-stop: everything answers ENODEV.
    pub gone: bool,
    /// A write or flush at which it is gone from then on.
    pub dies: Fault,
    /// The filesystem below is full: `Allocate`, and writes to places never written, answer ENOSPC.
    pub full: bool,
    /// The filesystem below is read-only: writes, allocations, punches answer EROFS.
    pub read_only: bool,
}

/// Faults that strike by chance, each in so many of a million requests.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rates {
    /// EIO on a read.
    pub read_error: u32,
    /// EIO on a write.
    pub write_error: u32,
    /// EIO on a flush.
    pub flush_error: u32,
    /// A write that does nothing.
    pub lost_write: u32,
    /// A write that lands elsewhere.
    pub misdirected_write: u32,
    /// A read of another address.
    pub misdirected_read: u32,
    /// A write that mixes old and new sectors.
    pub torn_write: u32,
    /// A flush that makes nothing durable.
    pub lying_flush: u32,
    /// A bit of the stored block flips before it is read.
    pub bit_rot: u32,
    /// A request without an answer.
    pub hang: u32,
}

/// What a disk has been asked and what went wrong.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Read requests.
    pub reads: u64,
    /// Of these, past the cache.
    pub medium_reads: u64,
    /// Write requests.
    pub writes: u64,
    /// Blocks in them.
    pub blocks_written: u64,
    /// Flushes.
    pub flushes: u64,
    /// Allocations.
    pub allocates: u64,
    /// Faults that struck.
    pub faults: u64,
}
