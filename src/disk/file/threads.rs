//! The I/O threads of one replica: where it can hang without anybody else hanging.
//!
//! *Guarantees*: `submit` and `close` never block; a request owns its buffers until the kernel answers; nothing
//! joins a thread, so a hung one is left behind with its lock and nothing else (traps 1 and 2).
//! *Assumes*: these threads never log: their descriptor numbers are their own.
//! *Fails when*: opening takes longer than 10 s: [`OpenError::Timeout`]; what opens later closes itself.
//! *Order*: small requests (reads, flushes, small writes) before big ones, which get at least every fourth turn.
//! *Not here*: deadlines (`mirror`).

use super::container::Container;
use super::isolate::isolate;
use super::opening::{Caching, explain, open_container};
use super::{CreateOptions, Mode, OpenError};
use crate::disk::backing::{Answer, Backing, BackingFacts, Directory, Op, Ticket, request};
use crate::disk::buffer::Slice;
use crate::format::BLOCK;
use parking_lot::{Condvar, Mutex};
use rustix::fs::FileType;
use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Threads of one replica: queue depth 1 is three times slower than the disk.
const WORKERS: usize = 4;
/// How long opening may take.
const OPENING_MAX: Duration = Duration::from_secs(10);
/// Writes of at least so many blocks wait behind small requests.
const BULK_BLOCKS_MIN: u64 = 64;
/// Every so many requests a big one goes first.
const BULK_TURN: u32 = 4;

#[derive(Default)]
struct Queue {
    urgent: VecDeque<(Op, Answer)>,
    bulk: VecDeque<(Op, Answer)>,
    turn: u32,
    closing: bool,
}

impl Queue {
    fn push(&mut self, op: Op, answer: Answer) {
        let bulk = match &op {
            Op::Write { data, .. } => data.iter().map(Slice::blocks).sum::<u64>() >= BULK_BLOCKS_MIN,
            Op::Allocate { .. } | Op::Punch { .. } => true,
            Op::Read { .. } | Op::ReadMedium { .. } | Op::Flush | Op::Check => false,
        };
        if bulk { self.bulk.push_back((op, answer)) } else { self.urgent.push_back((op, answer)) }
    }

    fn pop(&mut self) -> Option<(Op, Answer)> {
        self.turn = self.turn.wrapping_add(1);
        let bulk_first = self.turn.is_multiple_of(BULK_TURN);
        let (first, second) =
            if bulk_first { (&mut self.bulk, &mut self.urgent) } else { (&mut self.urgent, &mut self.bulk) };
        first.pop_front().or_else(|| second.pop_front())
    }
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    ready: Condvar,
    in_flight: AtomicUsize,
    workers: AtomicUsize,
    closed: AtomicBool,
}

impl Shared {
    fn close(&self) {
        self.queue.lock().closing = true;
        self.ready.notify_all();
    }
}

/// A backing in the file system or a block device.
pub(super) struct FileBacking {
    shared: Arc<Shared>,
    facts: BackingFacts,
    directory: Option<Directory>,
    deleted: Arc<AtomicBool>,
}

/// What a worker thread holds; ends in the right order however the thread ends.
struct Worker {
    container: Option<Arc<Container>>,
    shared: Arc<Shared>,
}

impl Worker {
    fn new(container: Arc<Container>, shared: Arc<Shared>) -> Worker {
        shared.workers.fetch_add(1, Ordering::AcqRel);
        Worker { container: Some(container), shared }
    }

    fn work(self) {
        let Some(container) = self.container.clone() else { return };
        loop {
            let (op, answer) = {
                let mut queue = self.shared.queue.lock();
                loop {
                    if let Some(request) = queue.pop() {
                        break request;
                    }
                    if queue.closing {
                        return;
                    }
                    self.shared.ready.wait(&mut queue);
                }
            };
            let result = container.run(op);
            self.shared.in_flight.fetch_sub(1, Ordering::AcqRel);
            answer.give(result);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The descriptor must be closed in this table, and before anybody hears that the lock is free.
        self.container = None;
        if self.shared.workers.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.closed.store(true, Ordering::Release);
        }
    }
}

/// What the first I/O thread tells the opener.
struct Opened {
    backing: FileBacking,
    /// Why the threads share descriptors with the rest of the process, if they do.
    shared_because: Option<io::Error>,
}

pub(super) fn open(
    path: &Path,
    mode: Mode,
    create: Option<CreateOptions>,
    caching: Caching,
) -> Result<Arc<dyn Backing>, OpenError> {
    // Relative paths are made absolute here: the name in facts must mean the same for everybody.
    let path = std::path::absolute(path).map_err(|error| explain(path, error))?;
    let (tell, hear) = mpsc::sync_channel(1);
    let master_path = path.clone();
    let master = move || run_master(&master_path, mode, create, caching, &tell);
    thread::Builder::new().name("replica-io".into()).spawn(master).map_err(|error| explain(&path, error))?;
    match hear.recv_timeout(OPENING_MAX) {
        Ok(Ok(opened)) => {
            if let Some(error) = opened.shared_because {
                log::warn!("{}: a hung disk could keep the whole process alive: {error}", path.display());
            }
            Ok(Arc::new(opened.backing))
        }
        Ok(Err(error)) => Err(error),
        Err(mpsc::RecvTimeoutError::Timeout) => Err(OpenError::Timeout(path)),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            Err(OpenError::Io { path, source: io::Error::other("the I/O thread ended") })
        }
    }
}

/// The first I/O thread: opens, starts the others, becomes one of them.
fn run_master(
    path: &Path,
    mode: Mode,
    create: Option<CreateOptions>,
    caching: Caching,
    tell: &mpsc::SyncSender<Result<Opened, OpenError>>,
) {
    let shared_because = isolate().err();
    let container = match open_container(path, mode, create, caching) {
        Ok(container) => Arc::new(container),
        Err(error) => {
            let _ = tell.send(Err(error));
            return;
        }
    };
    let facts = match facts_of(path, &container) {
        Ok(facts) => facts,
        Err(error) => {
            drop(container);
            let _ = tell.send(Err(explain(path, error)));
            return;
        }
    };
    let (directory, deleted) = (container.directory, container.deleted.clone());
    let shared = Arc::new(Shared::default());
    let master = Worker::new(container.clone(), shared.clone());
    for _ in 1..WORKERS {
        // Started from here, so that they share this thread's table. Fewer are slower, not wrong.
        let worker = Worker::new(container.clone(), shared.clone());
        let _ = thread::Builder::new().name("replica-io".into()).spawn(move || worker.work());
    }
    drop(container);
    let backing = FileBacking { shared, facts, directory, deleted };
    if let Err(mpsc::SendError(Ok(unheard))) = tell.send(Ok(Opened { backing, shared_because })) {
        // The opener gave up; dropping the backing closes it.
        drop(unheard);
    }
    master.work();
}

fn facts_of(path: &Path, container: &Container) -> io::Result<BackingFacts> {
    let stat = rustix::fs::fstat(&container.fd)?;
    let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
    Ok(BackingFacts {
        path: path.display().to_string(),
        kind: container.kind,
        direct: container.direct,
        blocks: container.length / BLOCK as u64,
        device: if is_device { stat.st_rdev } else { stat.st_dev },
        read_only: container.read_only,
    })
}

impl Backing for FileBacking {
    fn submit(&self, op: Op) -> Ticket {
        let (ticket, answer) = request();
        let mut queue = self.shared.queue.lock();
        if queue.closing {
            drop(queue);
            answer.give(Err(io::Error::other("the backing is closed")));
            return ticket;
        }
        self.shared.in_flight.fetch_add(1, Ordering::AcqRel);
        queue.push(op, answer);
        drop(queue);
        self.shared.ready.notify_one();
        ticket
    }

    fn facts(&self) -> BackingFacts {
        self.facts.clone()
    }

    fn in_flight(&self) -> usize {
        self.shared.in_flight.load(Ordering::Acquire)
    }

    fn close(&self) {
        self.shared.close();
    }

    fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::Acquire)
    }

    fn deleted_from(&self) -> Option<Directory> {
        self.directory.filter(|_| self.deleted.load(Ordering::Acquire))
    }
}

impl Drop for FileBacking {
    fn drop(&mut self) {
        self.shared.close();
    }
}
