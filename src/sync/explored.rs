//! The types of [`super`] for exploring interleavings: every operation lets the explorer choose who goes on.
//!
//! *Guarantees*: nothing depends on the machine's clock or its threads. Time stands still until a waiting thread times
//! out: the explorer runs a thread that is [`asleep`] to say that its time has passed, and the clock then stands at its
//! deadline. So a wait with a deadline ends when nobody else can run, or whenever the explorer wants it to.
//! *Assumes*: everything runs inside one execution of shuttle, in one thread of the machine; [`restart`] comes before.
//! *Fails when*: used outside of an execution: shuttle panics.
//! *Order*: a waiter stands in the list of its [`Condvar`] before it lets the mutex go: no wake-up is lost.
//! *Not here*: spurious wake-ups; fairness (a lock that is let go goes to the one that waits longest, as a mutex whose
//! waiters were late to ask; a condition variable wakes the oldest waiter, as parking_lot's does).

use shuttle::future::batch_semaphore::{BatchSemaphore, Fairness};
use std::cell::RefCell;
use std::hash::{BuildHasher, DefaultHasher};
use std::ops::{Add, Sub};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub use shuttle::sync::{atomic, mpsc};
pub use shuttle::thread_local;
pub use shuttle_parking_lot::{Mutex, MutexGuard, RwLock, RwLockWriteGuard};

/// Threads of the execution.
pub mod thread {
    pub use shuttle::thread::{Builder, JoinHandle, Result, Scope, ScopedJoinHandle, scope, spawn, yield_now};
    use std::time::Duration;

    /// Sleep: until the explorer says that the time has passed.
    pub fn sleep(time: Duration) {
        let waiter = super::Waiter::new();
        waiter.block_until(super::Instant::now() + time);
    }
}

#[derive(Default)]
struct Time {
    now_ns: u64,
    asleep: Vec<(usize, u64)>,
}

std::thread_local! {
    static TIME: RefCell<Time> = RefCell::default();
}

/// Forget the execution before.
pub fn restart() {
    TIME.take();
}

/// Tasks that wait with a deadline (ns since the execution began), in the order in which they fell asleep. To run one
/// is to let its time pass.
pub fn asleep() -> Vec<(usize, u64)> {
    TIME.with_borrow(|time| time.asleep.clone())
}

fn wake(task: usize) {
    TIME.with_borrow_mut(|time| time.asleep.retain(|(sleeper, _)| *sleeper != task));
}

fn me() -> usize {
    shuttle::current::me().into()
}

/// A moment of the execution's own clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// Now; each question takes a microsecond, so that a loop that looks at the clock ends.
    pub fn now() -> Instant {
        TIME.with_borrow_mut(|time| {
            time.now_ns += 1_000;
            Instant(time.now_ns)
        })
    }
    /// Time since then.
    pub fn elapsed(&self) -> Duration {
        Instant::now() - *self
    }
    /// Time from `earlier`, zero if it is later.
    pub fn saturating_duration_since(&self, earlier: Instant) -> Duration {
        *self - earlier
    }
    /// Time from `earlier`, zero if it is later.
    pub fn duration_since(&self, earlier: Instant) -> Duration {
        *self - earlier
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, time: Duration) -> Instant {
        Instant(self.0.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Instant> for Instant {
    type Output = Duration;
    fn sub(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Hashes the same way in each execution.
#[derive(Debug, Clone, Copy, Default)]
pub struct RandomState;

impl RandomState {
    /// The only one.
    pub fn new() -> RandomState {
        RandomState
    }
}

impl BuildHasher for RandomState {
    type Hasher = DefaultHasher;
    fn build_hasher(&self) -> DefaultHasher {
        DefaultHasher::new()
    }
}

/// One wait of one thread.
struct Waiter {
    task: usize,
    woken: AtomicBool,
    turn: BatchSemaphore,
}

impl Waiter {
    fn new() -> Arc<Waiter> {
        let turn = BatchSemaphore::new(0, Fairness::StrictlyFair);
        Arc::new(Waiter { task: me(), woken: AtomicBool::new(false), turn })
    }
    fn wake(&self) {
        self.woken.store(true, Ordering::SeqCst);
        wake(self.task);
        self.turn.release(1);
    }
    fn block(&self) {
        let _ = self.turn.acquire_blocking(1);
    }
    /// False: the deadline has passed.
    fn block_until(&self, deadline: Instant) -> bool {
        if !self.woken.load(Ordering::SeqCst) {
            TIME.with_borrow_mut(|time| time.asleep.push((self.task, deadline.0)));
            // The only scheduling point while asleep: whoever comes back unwoken has timed out.
            thread::yield_now();
        }
        let woken = self.woken.load(Ordering::SeqCst);
        if !woken {
            wake(self.task);
            TIME.with_borrow_mut(|time| time.now_ns = time.now_ns.max(deadline.0));
        }
        woken
    }
}

/// Whether a wait ended because of its deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    /// Whether it did.
    pub fn timed_out(&self) -> bool {
        self.0
    }
}

/// As parking_lot's, without spurious wake-ups (it has none either).
#[derive(Default)]
pub struct Condvar {
    waiters: std::sync::Mutex<Vec<Arc<Waiter>>>,
}

impl Condvar {
    /// One that nobody waits for.
    pub const fn new() -> Condvar {
        Condvar { waiters: std::sync::Mutex::new(Vec::new()) }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Waiter>>> {
        self.waiters.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn enter(&self) -> Arc<Waiter> {
        let waiter = Waiter::new();
        self.waiting().push(waiter.clone());
        waiter
    }

    /// Wake the oldest waiter.
    pub fn notify_one(&self) {
        shuttle::thread::sleep(Duration::ZERO);
        let first = {
            let mut waiting = self.waiting();
            if waiting.is_empty() { None } else { Some(waiting.remove(0)) }
        };
        first.iter().for_each(|waiter| waiter.wake());
    }

    /// Wake all waiters.
    pub fn notify_all(&self) {
        shuttle::thread::sleep(Duration::ZERO);
        let all = std::mem::take(&mut *self.waiting());
        all.iter().for_each(|waiter| waiter.wake());
    }

    /// Let the mutex go, wait to be woken, take it again.
    pub fn wait<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>) {
        let waiter = self.enter();
        MutexGuard::unlocked(guard, || waiter.block());
    }

    /// As [`Condvar::wait`], until `deadline` at most.
    pub fn wait_until<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>, deadline: Instant) -> WaitTimeoutResult {
        let waiter = self.enter();
        let woken = MutexGuard::unlocked(guard, || {
            let woken = waiter.block_until(deadline);
            if !woken {
                self.waiting().retain(|other| !Arc::ptr_eq(other, &waiter));
            }
            woken
        });
        WaitTimeoutResult(!woken)
    }

    /// As [`Condvar::wait`], for `time` at most.
    pub fn wait_for<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>, time: Duration) -> WaitTimeoutResult {
        self.wait_until(guard, Instant::now() + time)
    }
}
