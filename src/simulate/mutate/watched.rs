//! A disk that counts what it is asked, and says when it was asked too much or too far.
//!
//! *Guarantees*: after [`REQUESTS_MAX`] requests everything is answered with an error, so that a loop that does I/O
//! ends; every write outside of the disk, and every write into the gaps between fixed places, is remembered.
//! *Assumes*: simulated disks below. *Fails when*: never; [`Watch::verdict`] tells. *Order*: none.
//! *Not here*: loops that ask no disk; the test program has a guard for these.

use crate::disk::backing::{Backing, BackingFacts, Op, Ticket};
use crate::disk::sim::SimDisk;
use crate::format::BLOCK;
use crate::format::geometry::{ROOT_STRIDE, SPACE_AT};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};
use std::io;
use std::sync::Arc;

/// Requests after which a case counts as endless: some thirty times what the dearest whole volume needs.
pub const REQUESTS_MAX: u64 = 80_000;

struct State {
    requests: AtomicU64,
    blocks: u64,
    read_only: bool,
    wrong: Mutex<Vec<String>>,
}

/// Watches all disks of a case.
#[derive(Clone)]
pub struct Watch(Arc<State>);

struct Watched {
    disk: Arc<SimDisk>,
    watch: Watch,
}

impl Watch {
    /// For disks of `blocks` blocks.
    pub fn new(blocks: u64) -> Watch {
        Watch(Arc::new(State { requests: AtomicU64::new(0), blocks, read_only: false, wrong: Mutex::default() }))
    }
    /// For disks that are opened for reading only: every change is wrong, and refused.
    pub fn read_only(blocks: u64) -> Watch {
        Watch(Arc::new(State { requests: AtomicU64::new(0), blocks, read_only: true, wrong: Mutex::default() }))
    }
    /// The disk, watched.
    pub fn watch(&self, disk: Arc<SimDisk>) -> Arc<dyn Backing> {
        Arc::new(Watched { disk, watch: self.clone() })
    }
    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.0.requests.load(Ordering::Relaxed)
    }
    /// What was wrong with what was asked.
    ///
    /// # Errors
    /// Something was.
    pub fn verdict(&self) -> Result<(), String> {
        if let Some(first) = self.0.wrong.lock().first() {
            return Err(first.clone());
        }
        match self.requests() {
            count if count > REQUESTS_MAX => Err(format!("{count} requests to the disks: a loop")),
            _ => Ok(()),
        }
    }

    fn look(&self, op: &Op) {
        let Op::Write { addr, data } = op else { return };
        let blocks: u64 = data.iter().map(|slice| slice.blocks()).sum();
        let end = addr.saturating_add(blocks);
        let gap = (*addr..end.min(SPACE_AT)).any(|at| at % ROOT_STRIDE != 0);
        // `format` zeroes everything before the first zone.
        let zeros = || data.iter().all(|slice| slice.chunks(BLOCK).all(crate::format::all_zero));
        if end > self.0.blocks || (gap && !zeros()) {
            self.0.wrong.lock().push(format!("a write of {blocks} blocks at block {addr}, outside of all structures"));
        }
    }
}

impl Backing for Watched {
    fn submit(&self, op: Op) -> Ticket {
        if self.watch.0.requests.fetch_add(1, Ordering::Relaxed) >= REQUESTS_MAX {
            return Ticket::answered(Err(io::Error::other("asked too often")));
        }
        let changes = matches!(op, Op::Write { .. } | Op::Allocate { .. } | Op::Punch { .. });
        if changes && self.watch.0.read_only {
            self.watch.0.wrong.lock().push("a change, although it was opened for reading only".into());
            return Ticket::answered(Err(io::ErrorKind::ReadOnlyFilesystem.into()));
        }
        self.watch.look(&op);
        self.disk.submit(op)
    }
    fn facts(&self) -> BackingFacts {
        BackingFacts { read_only: self.watch.0.read_only, ..self.disk.facts() }
    }
    fn in_flight(&self) -> usize {
        self.disk.in_flight()
    }
    fn close(&self) {
        self.disk.close();
    }
    fn is_closed(&self) -> bool {
        self.disk.is_closed()
    }
}
