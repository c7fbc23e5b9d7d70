//! A look at one history: its replicas as a store that reads, and cannot write.
//!
//! *Guarantees*: nothing is written to a replica, also where it was opened for writing; what waits in its log is shown as if
//! it had been replayed. *Assumes*: the replicas are locked and not written meanwhile. *Fails when*: the history cannot be read.
//! *Order*: choice of its newest root → log, in memory. *Not here*: what is looked for (`changes`, `save`).

use crate::disk::backing::{Backing, BackingFacts, Op, Ticket};
use crate::store::recover::fork::Side;
use crate::store::recover::{self, Found, LogEnd, OpenStore, Present, Report};
use crate::store::{Store, StoreError, StoreOptions};
use crate::world::World;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// A backing through which nothing is written, and which stays open.
struct Glass(Arc<dyn Backing>);

impl Backing for Glass {
    fn submit(&self, op: Op) -> Ticket {
        match op {
            Op::Read { .. } | Op::ReadMedium { .. } | Op::Check => self.0.submit(op),
            Op::Flush => Ticket::answered(Ok(crate::disk::backing::Done::Nothing)),
            Op::Write { .. } | Op::Allocate { .. } | Op::Punch { .. } => {
                Ticket::answered(Err(io::ErrorKind::ReadOnlyFilesystem.into()))
            }
        }
    }
    fn facts(&self) -> BackingFacts {
        BackingFacts { read_only: true, ..self.0.facts() }
    }
    fn in_flight(&self) -> usize {
        0
    }
    fn close(&self) {}
    fn is_closed(&self) -> bool {
        true
    }
}

/// The store of `side`, for reading; and what its log lost, if that is so.
///
/// # Errors
/// No replica of it is in sync, or its newest state cannot be read.
pub(super) fn open(
    present: &[Present],
    side: &Side,
    deadline: Duration,
    world: &Arc<dyn World>,
) -> Result<(Arc<Store>, Option<String>), StoreError> {
    let open = || {
        let options = OpenStore {
            degraded: true,
            deadline,
            store: StoreOptions { read_only: true, ..StoreOptions::default() },
            on_shrink: None,
            hold: true,
        };
        let glass = |at: &usize| {
            let Present { path, backing, found } = &present[*at];
            let found: Found = found.clone();
            Present { path: path.clone(), backing: Arc::new(Glass(backing.clone())), found }
        };
        recover::open(side.replicas.iter().map(glass).collect(), options, world.clone())
    };
    let (store, mut report) = open()?;
    let Err(error) = store.resume(LogEnd::Proven, &mut report) else { return Ok((Arc::new(store), None)) };
    // What was replayed of it is forgotten.
    let (store, _) = open()?;
    store.resume(LogEnd::Accepted, &mut Report::default())?;
    Ok((Arc::new(store), Some(error.to_string())))
}
