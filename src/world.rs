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
    state: crate::sync::Mutex<(u64, i64)>,
}

impl Seeded {
    /// The world of `seed`.
    pub fn new(seed: u64) -> Seeded {
        Seeded { state: crate::sync::Mutex::new((seed, 1_700_000_000_000_000_000)) }
    }
}

impl World for Seeded {
    fn now_ns(&self) -> i64 {
        let mut state = self.state.lock();
        state.1 += 1000;
        state.1
    }
    fn random(&self) -> u64 {
        splitmix(&mut self.state.lock().0)
    }
}

/// The next word of a splitmix64 generator.
pub fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// `ns` since 1970 as `2026-11-23 08:00:00 UTC` (proleptic Gregorian; Hinnant, "chrono-compatible low-level date algorithms").
pub fn utc(ns: u64) -> String {
    let seconds = ns / 1_000_000_000;
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(utc(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(utc(951_782_399_000_000_000), "2000-02-28 23:59:59 UTC");
        assert_eq!(utc(1_795_420_800_000_000_000), "2026-11-23 08:00:00 UTC");
    }
}
