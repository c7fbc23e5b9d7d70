//! Time and randomness, as parameters of the core.
//!
//! *Guarantees*: everything below `fuse` asks only a [`World`] for the time and for random numbers, so that the whole
//! core can run in a deterministic simulator. *Assumes*: nothing. *Fails when*: never. *Order*: none.
//! *Not here*: waiting; the core never sleeps, its callers do.

use crate::format::Uuid;
use crate::format::item::Time;

/// Source of time and randomness.
pub trait World: Send + Sync {
    /// Wall clock, ns since 1970 (may step).
    fn now_ns(&self) -> i64;
    /// 64 random bits.
    fn random(&self) -> u64;

    /// A fresh identity.
    fn uuid(&self) -> Uuid {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.random().to_le_bytes());
        bytes[8..].copy_from_slice(&self.random().to_le_bytes());
        Uuid::from_random(bytes)
    }
    /// Wall clock as seconds and nanoseconds.
    fn now(&self) -> Time {
        let ns = self.now_ns();
        Time { sec: ns.div_euclid(1_000_000_000), nsec: ns.rem_euclid(1_000_000_000) as u32 }
    }
}

/// The machine's clock and random numbers.
#[derive(Debug, Default)]
pub struct Machine;

impl World for Machine {
    fn now_ns(&self) -> i64 {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
    }
    fn random(&self) -> u64 {
        let mut bytes = [0; 8];
        let mut filled = 0;
        while filled < bytes.len() {
            match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
                Ok(count) => filled += count,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => panic!("getrandom(2) cannot fail after boot: {error}"),
            }
        }
        u64::from_le_bytes(bytes)
    }
}

/// A seeded world: the clock moves one microsecond a question, randomness is splitmix64.
#[derive(Debug)]
pub struct Seeded {
    state: parking_lot::Mutex<(u64, i64)>,
}

impl Seeded {
    /// The world of `seed`.
    pub fn new(seed: u64) -> Seeded {
        Seeded { state: parking_lot::Mutex::new((seed, 1_700_000_000_000_000_000)) }
    }
}

impl World for Seeded {
    fn now_ns(&self) -> i64 {
        let mut state = self.state.lock();
        state.1 += 1000;
        state.1
    }
    fn random(&self) -> u64 {
        let mut state = self.state.lock();
        state.0 = state.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
