//! Which thread does a request that may wait for a disk or for room.
//!
//! *Guarantees*: of the threads that read requests from the kernel, two are never in such a request, so that lookups and the
//! like are served while disks are slow or hang; further requests go to workers of their own. Changes of names pass by
//! file data: the kernel holds a directory's lock while one of them waits, and lookups in that directory with it.
//! *Assumes*: the caller enters a lane before it waits. *Fails when*: more than [`QUEUED_BYTES_MAX`] of copied data wait: the
//! caller then does the work itself, and a thread is held (bounded memory goes first).
//! *Order*: the queue's lock is held for a push or pop only. *Not here*: which requests these are (`fuser`).

use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of WRITE data that may wait for a worker.
pub const QUEUED_BYTES_MAX: usize = 128 << 20;
/// Threads that read requests and are never in one that waits.
const FREE: usize = 2;
/// Threads and workers that take no file data.
const NAMES_ONLY: usize = 2;

/// What a request that may wait is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Matter {
    /// Names and attributes.
    Names,
    /// Content of files.
    Data,
}

type Job = Box<dyn FnOnce() + Send>;

struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
    /// Threads that read requests and are in one that waits: [`Matter::unit`] for each.
    waiting: AtomicUsize,
    threads: usize,
}

#[derive(Default)]
struct Queue {
    names: VecDeque<Job>,
    data: VecDeque<(usize, Job)>,
    /// Bytes that data jobs hold, those at work included.
    bytes: usize,
    /// Workers in a data job.
    data_workers: usize,
    closed: bool,
}

/// The lanes of one mount.
pub struct Lanes {
    shared: Arc<Shared>,
}

/// The right to wait on the calling thread.
pub struct Pass {
    shared: Arc<Shared>,
    matter: Matter,
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.shared.waiting.fetch_sub(self.matter.unit(), Ordering::Relaxed);
    }
}

impl Matter {
    /// One thread in the word that counts both matters.
    fn unit(self) -> usize {
        match self {
            Matter::Names => 1,
            Matter::Data => 1 << 16,
        }
    }
}

impl Shared {
    /// The count with one thread more, if there may be one.
    fn with_one_more(&self, waiting: usize, matter: Matter) -> Option<usize> {
        let (names, data) = (waiting & 0xffff, waiting >> 16);
        let all_fit = names + data < self.threads - FREE;
        let data_fits = data + FREE + NAMES_ONLY < self.threads;
        (all_fit && (matter == Matter::Names || data_fits)).then(|| waiting + matter.unit())
    }
}

impl Lanes {
    /// Lanes beside `threads` (at least 3) threads that read requests, with as many workers again.
    ///
    /// # Errors
    /// No threads can be started.
    pub fn start(threads: usize) -> std::io::Result<Lanes> {
        assert!(threads > FREE, "two threads stay free, one works");
        let shared =
            Arc::new(Shared { queue: Mutex::default(), filled: Condvar::new(), waiting: AtomicUsize::new(0), threads });
        for number in 0..threads {
            let shared = shared.clone();
            std::thread::Builder::new().name(format!("lane-{number}")).spawn(move || work(&shared))?;
        }
        Ok(Lanes { shared })
    }

    /// Ask to wait on this thread; `None`: hand the work over with [`Lanes::push_names`] or [`Lanes::push_data`].
    pub fn enter(&self, matter: Matter) -> Option<Pass> {
        let more = |waiting| self.shared.with_one_more(waiting, matter);
        let entered = self.shared.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        entered.is_ok().then(|| Pass { shared: self.shared.clone(), matter })
    }

    /// Whether `bytes` more of copied data may wait.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.shared.queue.lock().bytes + bytes <= QUEUED_BYTES_MAX
    }

    /// Hand over work on names.
    pub fn push_names(&self, job: Job) {
        self.shared.queue.lock().names.push_back(job);
        self.shared.filled.notify_one();
    }

    /// Hand over work on file data that holds `bytes` of it.
    pub fn push_data(&self, bytes: usize, job: Job) {
        let mut queue = self.shared.queue.lock();
        queue.bytes += bytes;
        queue.data.push_back((bytes, job));
        drop(queue);
        self.shared.filled.notify_one();
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.filled.notify_all();
    }
}

fn work(shared: &Shared) {
    let data_workers_max = (shared.threads - NAMES_ONLY).max(1);
    loop {
        let mut queue = shared.queue.lock();
        let (data, job) = loop {
            if let Some(job) = queue.names.pop_front() {
                break (None, job);
            }
            if queue.data_workers < data_workers_max
                && let Some((bytes, job)) = queue.data.pop_front()
            {
                queue.data_workers += 1;
                break (Some(bytes), job);
            }
            if queue.closed && queue.data.is_empty() {
                return;
            }
            shared.filled.wait(&mut queue);
        };
        drop(queue);
        job();
        if let Some(bytes) = data {
            let mut queue = shared.queue.lock();
            queue.bytes -= bytes;
            queue.data_workers -= 1;
            drop(queue);
            shared.filled.notify_one(); // a data job may wait for just this
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn two_threads_always_stay_free_and_names_have_their_own() {
        for (threads, all, data) in [(3, 1, 0), (4, 2, 0), (8, 6, 4), (16, 14, 12)] {
            let lanes = Lanes::start(threads).unwrap();
            let take = |matter| -> Vec<Pass> { std::iter::from_fn(|| lanes.enter(matter)).take(100).collect() };
            let held = take(Matter::Data);
            assert_eq!(held.len(), data, "{threads} threads");
            assert_eq!(take(Matter::Names).len(), all - data, "beside data");
            drop(held);
            assert_eq!(take(Matter::Names).len(), all, "alone");
            assert!(all + FREE <= threads);
        }
    }

    #[test]
    fn data_is_counted_and_names_pass_by_it() {
        let lanes = Lanes::start(4).unwrap();
        let (held, hold) = mpsc::channel::<()>();
        let (done, finished) = mpsc::channel();
        let hold = Arc::new(Mutex::new(hold));
        for _ in 0..4 {
            let (hold, done) = (hold.clone(), done.clone());
            let job = move || {
                let _ = hold.lock().recv();
                let _ = done.send("data");
            };
            lanes.push_data(QUEUED_BYTES_MAX / 4, Box::new(job));
        }
        assert!(lanes.has_room(0));
        assert!(!lanes.has_room(1 << 20), "the data of all four is still held");
        lanes.push_names(Box::new(move || {
            let _ = done.send("names");
        }));
        assert_eq!(finished.recv(), Ok("names"), "while all data waits");
        drop(held);
        for _ in 0..4 {
            assert_eq!(finished.recv(), Ok("data"));
        }
    }
}
