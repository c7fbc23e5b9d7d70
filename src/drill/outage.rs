//! A time without a daemon, during which the applications stand still.
//!
//! *Guarantees*: when [`Outage::all_parked`] is true no application is inside a call or will begin one before
//! [`Outage::end`]. *Assumes*: each application comes by [`Outage::pass`] between any two turns.
//! *Fails when*: never. *Order*: [`Outage::begin`], the kill, all parked, the new mount, [`Outage::end`].
//! *Not here*: what the applications find afterwards (`verify`).

use parking_lot::{Condvar, Mutex};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[derive(Debug, Default)]
struct State {
    down: bool,
    parked: usize,
}

/// Whether there is a daemon.
#[derive(Debug, Default)]
pub struct Outage {
    state: Mutex<State>,
    changed: Condvar,
}

impl Outage {
    /// From now on applications stand still at their next turn.
    pub fn begin(&self) {
        self.state.lock().down = true;
    }
    /// They may go on.
    pub fn end(&self) {
        self.state.lock().down = false;
        self.changed.notify_all();
    }
    /// Whether there is no daemon.
    pub fn is_down(&self) -> bool {
        self.state.lock().down
    }
    /// Whether `count` applications stand still.
    pub fn all_parked(&self, count: usize) -> bool {
        self.state.lock().parked >= count
    }
    /// Stand still while there is no daemon, unless `stop` is set; true if there was none.
    pub fn pass(&self, stop: &AtomicBool) -> bool {
        let mut state = self.state.lock();
        if !state.down {
            return false;
        }
        state.parked += 1;
        while state.down && !stop.load(Ordering::SeqCst) {
            self.changed.wait_for(&mut state, Duration::from_millis(50));
        }
        state.parked -= 1;
        true
    }
}
