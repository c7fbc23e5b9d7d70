//! Which thread does a request that may wait for a disk.
//!
//! *Guarantees*: at most `threads − 2` of the threads that read requests from the kernel are in such a request at once;
//! further ones go to workers of their own, so that lookups and the like are served while disks are slow or hang.
//! *Assumes*: the caller enters a lane before it waits. *Fails when*: more than [`QUEUED_BYTES_MAX`] of copied data wait: the caller
//! then does the work itself, and a thread is held (bounded memory goes first).
//! *Order*: the queue's lock is held for a push or pop only. *Not here*: which requests these are (`fuser`).

use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of WRITE data that may wait for a worker.
pub const QUEUED_BYTES_MAX: usize = 48 << 20;

type Job = Box<dyn FnOnce() + Send>;

struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
    waiting: AtomicUsize,
    inline_max: usize,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<(usize, Job)>,
    bytes: usize,
    closed: bool,
}

/// The lanes of one mount.
pub struct Lanes {
    shared: Arc<Shared>,
}

/// The right to wait on the calling thread.
pub struct Pass {
    shared: Arc<Shared>,
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Lanes {
    /// Lanes beside `threads` (at least 3) threads that read requests, with as many workers again.
    ///
    /// # Errors
    /// No threads can be started.
    pub fn start(threads: usize) -> std::io::Result<Lanes> {
        assert!(threads >= 3, "two threads stay free, one works");
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            filled: Condvar::new(),
            waiting: AtomicUsize::new(0),
            inline_max: threads - 2,
        });
        for number in 0..threads {
            let shared = shared.clone();
            std::thread::Builder::new().name(format!("lane-{number}")).spawn(move || work(&shared))?;
        }
        Ok(Lanes { shared })
    }

    /// Ask to wait on this thread; `None`: hand the work over with [`Lanes::push`].
    pub fn enter(&self) -> Option<Pass> {
        let entered = self.shared.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |waiting| {
            (waiting < self.shared.inline_max).then_some(waiting + 1)
        });
        entered.is_ok().then(|| Pass { shared: self.shared.clone() })
    }

    /// Whether `bytes` more of copied data may wait.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.shared.queue.lock().bytes + bytes <= QUEUED_BYTES_MAX
    }

    /// Hand work over that holds `bytes` of copied data.
    pub fn push(&self, bytes: usize, job: Job) {
        let mut queue = self.shared.queue.lock();
        queue.bytes += bytes;
        queue.jobs.push_back((bytes, job));
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
    loop {
        let mut queue = shared.queue.lock();
        let (bytes, job) = loop {
            if let Some(next) = queue.jobs.pop_front() {
                break next;
            }
            if queue.closed {
                return;
            }
            shared.filled.wait(&mut queue);
        };
        drop(queue);
        job();
        shared.queue.lock().bytes -= bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn two_threads_always_stay_free() {
        let lanes = Lanes::start(4).unwrap();
        let first = lanes.enter();
        let second = lanes.enter();
        assert!(first.is_some() && second.is_some());
        assert!(lanes.enter().is_none(), "a third of four threads may not wait");
        drop(first);
        assert!(lanes.enter().is_some());
    }

    #[test]
    fn handed_work_is_done_and_its_bytes_are_counted() {
        let lanes = Lanes::start(3).unwrap();
        let (held, hold) = mpsc::channel::<()>();
        let (done, finished) = mpsc::channel();
        let hold = Arc::new(Mutex::new(hold));
        for _ in 0..3 {
            let (hold, done) = (hold.clone(), done.clone());
            let job = move || {
                let _ = hold.lock().recv();
                let _ = done.send(());
            };
            lanes.push(QUEUED_BYTES_MAX / 3, Box::new(job));
        }
        assert!(lanes.has_room(0));
        assert!(!lanes.has_room(1 << 20), "the data of the three is still held");
        drop(held);
        for _ in 0..3 {
            finished.recv().unwrap();
        }
    }
}
