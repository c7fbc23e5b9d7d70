//! Watches what a case takes: memory through the allocator, processor time through a guard thread.

#![allow(unsafe_code)] // An allocator cannot be written without.

use parking_lot::{Mutex, MutexGuard};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// Largest allocation at once, bytes.
pub const SINGLE_MAX: usize = 32 << 20;
/// Processor time after which a case counts as endless, s.
const GUARD_S: i64 = 60;

/// Most memory that a case may take at its peak: 64 MiB and twice its disk.
pub fn peak_max(blocks: u64) -> usize {
    (64 << 20) + 2 * 4096 * blocks as usize
}

/// The system's allocator, counted.
pub struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static SINGLE: AtomicUsize = AtomicUsize::new(0);

fn came(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Relaxed) + bytes;
    PEAK.fetch_max(live, Relaxed);
    SINGLE.fetch_max(bytes, Relaxed);
}

// SAFETY: every call is passed on to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        came(layout.size());
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        came(layout.size());
        // SAFETY: as the caller promised.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LIVE.fetch_sub(layout.size(), Relaxed);
        came(size);
        // SAFETY: as the caller promised.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// What a case took, bytes.
#[derive(Debug, Clone, Copy)]
pub struct Used {
    /// At its peak, above what there was before.
    pub peak: usize,
    /// In one allocation.
    pub single: usize,
}

/// Seed of the case that runs, plus one; 0: none.
static RUNNING: AtomicU64 = AtomicU64::new(0);
static BEGAN_S: AtomicU64 = AtomicU64::new(0);

fn processor_s() -> i64 {
    rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime).tv_sec
}

/// A case under watch.
pub struct Guarded {
    before: usize,
}

impl Guarded {
    /// Begin the case of `seed`.
    pub fn begin(seed: u64) -> Guarded {
        static GUARD: Once = Once::new();
        GUARD.call_once(|| drop(std::thread::spawn(guard)));
        let before = LIVE.load(Relaxed);
        PEAK.store(before, Relaxed);
        SINGLE.store(0, Relaxed);
        BEGAN_S.store(processor_s() as u64, Relaxed);
        RUNNING.store(seed + 1, Relaxed);
        Guarded { before }
    }
    /// It is over.
    pub fn end(self) -> Used {
        RUNNING.store(0, Relaxed);
        Used { peak: PEAK.load(Relaxed).saturating_sub(self.before), single: SINGLE.load(Relaxed) }
    }
}

/// End the program if a case takes too long or too much: its thread cannot be stopped.
fn guard() {
    loop {
        std::thread::sleep(Duration::from_millis(500));
        let running = RUNNING.load(Relaxed);
        let took_s = processor_s() - BEGAN_S.load(Relaxed) as i64;
        let much = LIVE.load(Relaxed) > 2 << 30;
        if running > 0 && (took_s > GUARD_S || much) && RUNNING.load(Relaxed) == running {
            eprintln!(
                "hostile seed {} (STABLEFS_SEEDS={}): {took_s} s, {} MiB: a loop",
                running - 1,
                running - 1,
                LIVE.load(Relaxed) >> 20
            );
            std::process::exit(101);
        }
    }
}

/// Cases count the memory of the whole program: one test at a time.
pub fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock()
}
