//! What one replica's medium is asked, and the answer that may come late or never.
//!
//! *Guarantees*: a request owns its buffers until the medium answers, however late; dropping its [`Ticket`]
//! abandons the answer, never the buffers. Each [`Answer`] is given exactly once: if the thread that held it
//! dies, the waiter gets an error and does not wait for ever.
//! *Assumes*: nothing of the medium; it may hang.
//! *Fails when*: the medium says so: the `io::Error` it gave, unchanged.
//! *Order*: requests are not ordered among each other. A flush covers the writes that were *answered* before it
//! was submitted, no others.
//! *Not here*: proof of content, deadlines, which replica to ask (`mirror`).

use super::buffer::{Buf, Slice};
use crate::format::Addr;
use crate::sync::Instant;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Condvar, Mutex};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// One request to a medium.
#[derive(Debug, Clone)]
pub enum Op {
    /// Read `blocks` blocks; beyond the end of a container that can grow they are zeros. Answer: data.
    Read {
        /// First block.
        addr: Addr,
        /// How many.
        blocks: u32,
    },
    /// As `Read`, but past every cache of this machine: what is proven is the medium.
    ReadMedium {
        /// First block.
        addr: Addr,
        /// How many.
        blocks: u32,
    },
    /// Write consecutive blocks from `addr`.
    Write {
        /// First block.
        addr: Addr,
        /// What to write.
        data: Vec<Slice>,
    },
    /// Make every write that was answered durable.
    Flush,
    /// Back the range with real space; extends a container. `StorageFull` if there is none.
    Allocate {
        /// First block.
        addr: Addr,
        /// How many.
        blocks: u64,
    },
    /// Give the space of a range back; may do nothing. The range reads as zeros or as before.
    Punch {
        /// First block.
        addr: Addr,
        /// How many.
        blocks: u64,
    },
    /// Path, device, inode, link count and size are still what they were. Answer: facts.
    Check,
}

/// What a medium answers.
#[derive(Debug)]
pub enum Done {
    /// Done, nothing to tell.
    Nothing,
    /// The bytes that were read.
    Data(Buf),
    /// The state of the backing.
    Facts(Facts),
}

/// What [`Op::Check`] finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Bytes that the filesystem below can still give us; `u64::MAX` where space is not shared (devices).
    pub bytes_free_below: u64,
    /// Length in bytes now.
    pub length: u64,
    /// Whether I/O goes past the page cache.
    pub direct: bool,
}

/// What a backing is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BackingKind {
    /// A directory with one container file in it.
    Directory,
    /// A regular file.
    File,
    /// A block device.
    Device,
    /// A simulated disk.
    Simulated,
}

impl BackingKind {
    /// Name used in reports.
    pub fn name(self) -> &'static str {
        match self {
            BackingKind::Directory => "directory",
            BackingKind::File => "file",
            BackingKind::Device => "device",
            BackingKind::Simulated => "simulated",
        }
    }
}

/// What was true when the backing was opened; asking costs no I/O.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackingFacts {
    /// Path as opened.
    pub path: String,
    /// What it is.
    pub kind: BackingKind,
    /// Whether I/O goes past the page cache.
    pub direct: bool,
    /// Blocks when it was opened. Directories and files grow by [`Op::Allocate`], devices do not.
    pub blocks: u64,
    /// `st_dev` of the filesystem that holds it; for block devices the device itself (`st_rdev`).
    pub device: u64,
    /// Opened for reading only.
    pub read_only: bool,
}

/// A directory that holds a container, told from every other one, also from one of a filesystem that took the device
/// number of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Directory {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
    /// When it was made, in seconds and ns, where its filesystem tells.
    pub born: Option<(i64, u32)>,
}

/// A replica's medium.
pub trait Backing: Send + Sync {
    /// Start `op`. Never blocks; the request owns its buffers until the medium answers.
    fn submit(&self, op: Op) -> Ticket;
    /// Facts from the time of opening; never touches the medium.
    fn facts(&self) -> BackingFacts;
    /// Requests that the medium has not answered, abandoned ones included.
    fn in_flight(&self) -> usize;
    /// Ask the I/O threads to answer what is queued, end, and release the lock. Never blocks.
    fn close(&self);
    /// Whether the lock has been released after [`Backing::close`].
    fn is_closed(&self) -> bool;
    /// The directory in which the container stood when it was opened, if an [`Op::Check`] has found that it was deleted there: no
    /// name leads to it any more (it was not moved away), and the directory is the same. Never touches the medium.
    fn deleted_from(&self) -> Option<Directory> {
        None
    }
}

/// Wakes a thread that waits for any of several tickets.
#[derive(Default)]
pub struct Bell {
    rung: Mutex<u64>,
    changed: Condvar,
}

impl Bell {
    /// A new bell.
    pub fn new() -> Arc<Bell> {
        Arc::default()
    }
    /// How often it has rung; give it to [`Bell::wait`].
    pub fn count(&self) -> u64 {
        *self.rung.lock()
    }
    fn ring(&self) {
        *self.rung.lock() += 1;
        self.changed.notify_all();
    }
    /// Wait until it has rung more than `seen` times, or until `deadline`.
    pub fn wait(&self, seen: u64, deadline: Option<Instant>) {
        let mut rung = self.rung.lock();
        while *rung <= seen {
            match deadline {
                Some(deadline) => {
                    if self.changed.wait_until(&mut rung, deadline).timed_out() {
                        return;
                    }
                }
                None => self.changed.wait(&mut rung),
            }
        }
    }
}

enum State {
    /// The medium is at it.
    Pending,
    /// A simulated disk will not answer by itself: waiting by the clock is useless.
    Frozen,
    Answered(io::Result<Done>),
    Taken,
}

struct Shared {
    state: Mutex<(State, Option<Arc<Bell>>)>,
    answered: Condvar,
    /// When it was submitted; `None`: its time is simulated.
    asked: Option<Instant>,
    /// How long it took, ns; set before it is answered.
    took_ns: AtomicU64,
}

/// The waiting half of a request.
pub struct Ticket(Arc<Shared>);

/// The answering half of a request. Dropped without an answer it answers with an error.
pub struct Answer(Option<Arc<Shared>>);

/// The two halves of a new request.
pub fn request() -> (Ticket, Answer) {
    request_at(Some(Instant::now()))
}

fn request_at(asked: Option<Instant>) -> (Ticket, Answer) {
    let state = Mutex::new((State::Pending, None));
    let shared = Arc::new(Shared { state, answered: Condvar::new(), asked, took_ns: AtomicU64::new(0) });
    (Ticket(shared.clone()), Answer(Some(shared)))
}

impl Answer {
    /// Answer.
    pub fn give(mut self, result: io::Result<Done>) {
        self.complete(result);
    }
    /// Simulated hang: waiters are told at once that no answer will come for now.
    pub fn freeze(&self) {
        if let Some(shared) = &self.0 {
            shared.state.lock().0 = State::Frozen;
            shared.answered.notify_all();
        }
    }
    fn complete(&mut self, result: io::Result<Done>) {
        let Some(shared) = self.0.take() else { return };
        if let Some(asked) = shared.asked {
            shared.took_ns.store(asked.elapsed().as_nanos() as u64, Ordering::Relaxed);
        }
        let bell = {
            let mut state = shared.state.lock();
            state.0 = State::Answered(result);
            state.1.take()
        };
        shared.answered.notify_all();
        if let Some(bell) = bell {
            bell.ring();
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.complete(Err(io::Error::other("the I/O thread ended without an answer")));
    }
}

impl Ticket {
    /// A ticket that is already answered.
    pub fn answered(result: io::Result<Done>) -> Ticket {
        Ticket::answered_after(Duration::ZERO, result)
    }

    /// The same; it says that it took so long.
    pub fn answered_after(took: Duration, result: io::Result<Done>) -> Ticket {
        let (ticket, answer) = request_at(None);
        ticket.0.took_ns.store(took.as_nanos() as u64, Ordering::Relaxed);
        answer.give(result);
        ticket
    }

    /// When it was submitted; `None`: its time is simulated.
    pub fn asked(&self) -> Option<Instant> {
        self.0.asked
    }

    /// How long it took, if it is answered.
    pub fn took(&self) -> Option<Duration> {
        self.is_done().then(|| Duration::from_nanos(self.0.took_ns.load(Ordering::Relaxed)))
    }

    /// The answer, waiting for it until `deadline` (`None`: without end). `None` means not answered yet; it can be
    /// asked again. On a simulated hang it is `None` at once.
    ///
    /// # Panics
    /// If the answer has been taken before: our bug.
    pub fn wait(&self, deadline: Option<Instant>) -> Option<io::Result<Done>> {
        let mut state = self.0.state.lock();
        loop {
            match &state.0 {
                State::Answered(_) => {
                    let State::Answered(result) = std::mem::replace(&mut state.0, State::Taken) else { unreachable!() };
                    return Some(result);
                }
                State::Frozen => return None,
                State::Taken => panic!("an answer is taken once"),
                State::Pending => {}
            }
            match deadline {
                Some(deadline) => {
                    let late = self.0.answered.wait_until(&mut state, deadline).timed_out();
                    if late && !matches!(state.0, State::Answered(_)) {
                        return None;
                    }
                }
                None => self.0.answered.wait(&mut state),
            }
        }
    }

    /// Whether the answer is there (also after it was taken).
    pub fn is_done(&self) -> bool {
        matches!(self.0.state.lock().0, State::Answered(_) | State::Taken)
    }

    /// Whether a simulated disk hangs on it, so that waiting by the clock is useless.
    pub fn is_frozen(&self) -> bool {
        matches!(self.0.state.lock().0, State::Frozen)
    }

    /// Ring `bell` when the answer comes, at once if it is there.
    pub fn listen(&self, bell: &Arc<Bell>) {
        let mut state = self.0.state.lock();
        match state.0 {
            State::Answered(_) | State::Taken => {
                drop(state);
                bell.ring();
            }
            State::Pending | State::Frozen => state.1 = Some(bell.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_answered_late_or_not_at_all() {
        let (ticket, answer) = request();
        assert!(ticket.wait(Some(Instant::now())).is_none());
        let bell = Bell::new();
        ticket.listen(&bell);
        answer.give(Ok(Done::Nothing));
        bell.wait(0, None);
        assert!(ticket.is_done());
        assert!(matches!(ticket.wait(None), Some(Ok(Done::Nothing))));
    }

    #[test]
    fn a_dead_io_thread_answers_with_an_error() {
        let (ticket, answer) = request();
        drop(answer);
        assert!(matches!(ticket.wait(None), Some(Err(_))));
    }

    #[test]
    fn a_frozen_ticket_is_not_waited_for() {
        let (ticket, answer) = request();
        answer.freeze();
        assert!(ticket.wait(Some(Instant::now() + Duration::from_secs(3600))).is_none());
        assert!(ticket.is_frozen() && !ticket.is_done());
        answer.give(Ok(Done::Nothing));
        assert!(matches!(ticket.wait(None), Some(Ok(_))));
    }
}
