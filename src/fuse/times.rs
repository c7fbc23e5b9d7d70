//! Between our times and the library's `SystemTime`.
//!
//! *Guarantees*: every time that the kernel can send arrives as it was sent, and goes back so.
//! *Assumes*: fuser 0.18 makes a time before 1970 as `epoch − seconds − nanoseconds`, although nanoseconds count
//! forward; [`received`] undoes exactly that. Its arithmetic wraps (Cargo.toml) for the seconds `i64::MIN`, which the kernel
//! sends with no nanoseconds.
//! *Fails when*: never. *Order*: none. *Not here*: clocks.

use crate::format::item::Time;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A time as the library made it from the kernel's seconds and nanoseconds.
pub fn received(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => Time { sec: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nsec: since.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            Time { sec: 0i64.saturating_sub_unsigned(before.as_secs()), nsec: before.subsec_nanos() }
        }
    }
}

/// A time for the library to send; it does this direction rightly.
pub fn sent(time: Time) -> SystemTime {
    let nanoseconds = Duration::from_nanos(time.nsec.into());
    let seconds = Duration::from_secs(time.sec.unsigned_abs());
    let whole = if time.sec < 0 { UNIX_EPOCH.checked_sub(seconds) } else { UNIX_EPOCH.checked_add(seconds) };
    whole.and_then(|whole| whole.checked_add(nanoseconds)).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What fuser does with the kernel's numbers.
    fn as_fuser(sec: i64, nsec: u32) -> SystemTime {
        if sec >= 0 {
            UNIX_EPOCH + Duration::new(sec as u64, nsec)
        } else {
            UNIX_EPOCH - Duration::new(sec.wrapping_neg() as u64, nsec)
        }
    }

    #[test]
    fn times_of_the_kernel_arrive_as_sent() {
        for (sec, nsec) in [
            (0, 0),
            (0, 999_999_999),
            (1_700_000_000, 123),
            (-1, 0),
            (-1, 1),
            (-2, 800_000_000),
            (-1_000_000_000, 999_999_999),
            (i64::MIN, 0),
            (i64::MAX, 0),
        ] {
            assert_eq!(received(as_fuser(sec, nsec)), Time { sec, nsec }, "{sec} {nsec}");
        }
    }

    #[test]
    fn times_go_out_as_they_are() {
        for (sec, nsec) in
            [(0, 5), (-1, 0), (-2, 800_000_000), (i64::MIN, 0), (i64::MAX, 0), (i64::MIN + 1, 999_999_999)]
        {
            let out = sent(Time { sec, nsec });
            let (back_sec, back_nsec) = match out.duration_since(UNIX_EPOCH) {
                Ok(since) => (since.as_secs() as i128, since.subsec_nanos()),
                Err(before) => {
                    let nanoseconds = -(before.duration().as_nanos() as i128);
                    (nanoseconds.div_euclid(1_000_000_000), nanoseconds.rem_euclid(1_000_000_000) as u32)
                }
            };
            assert_eq!((back_sec, back_nsec), (sec as i128, nsec));
        }
    }
}
