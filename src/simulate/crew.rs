//! Hands that take cases until none is left: many worlds at once, each on one thread.
//!
//! *Guarantees*: each case that was taken is run once and its outcome handed over once, by one hand at a time; a panic is
//! an outcome. *Assumes*: cases share nothing. *Fails when*: never by itself.
//! *Order*: cases begin in their order and end in any. *Not here*: what a case is, and what is done about failures.

use super::Failure;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Cores of this machine.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

/// `one`, with a panic of it as the failure of `who`.
///
/// # Errors
/// Those of `one`, and panics.
pub fn caught<R>(who: &str, one: impl FnOnce() -> Result<R, Failure>) -> Result<R, Failure> {
    catch_unwind(AssertUnwindSafe(one)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        Err(Failure { text: format!("{who}: panic: {}", text.unwrap_or_default()) })
    })
}

fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Run `one` on each of `cases` with so many `hands`, until there are none or `take` says no; `take` gets each outcome.
pub fn crew<T: Send, R: Send>(
    hands: usize,
    cases: impl IntoIterator<Item = T, IntoIter: Send>,
    one: impl Fn(&T) -> Result<R, Failure> + Sync,
    take: impl FnMut(T, Result<R, Failure>) -> bool + Send,
) {
    let cases = Mutex::new(Some(cases.into_iter()));
    let take = Mutex::new(take);
    let work = || {
        loop {
            let Some(case) = hold(&cases).as_mut().and_then(Iterator::next) else { return };
            let outcome = caught("a case", || one(&case));
            let goes_on = (*hold(&take))(case, outcome);
            if !goes_on {
                *hold(&cases) = None;
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..hands {
            scope.spawn(work);
        }
        work();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes(hands: usize, stop_at: usize) -> Vec<(u32, Result<u32, String>)> {
        let one = |case: &u32| match case % 3 {
            0 => Ok(case * 2),
            1 => Err(Failure { text: format!("failed {case}") }),
            _ => panic!("panicked {case}"),
        };
        let mut all = Vec::new();
        crew(hands, 0..20, one, |case, outcome| {
            all.push((case, outcome.map_err(|failure| failure.text)));
            all.len() < stop_at
        });
        all.sort_by_key(|(case, _)| *case);
        all
    }

    #[test]
    fn each_case_is_run_once_and_a_panic_is_a_failure() {
        for hands in [1, 3] {
            let all = outcomes(hands, usize::MAX);
            assert_eq!(all.iter().map(|(case, _)| *case).collect::<Vec<_>>(), (0..20).collect::<Vec<_>>());
            assert_eq!(all[3].1, Ok(6));
            assert_eq!(all[4].1, Err("failed 4".into()));
            assert_eq!(all[5].1, Err("a case: panic: panicked 5".into()));
        }
    }

    #[test]
    fn nothing_is_taken_after_a_no() {
        assert_eq!(outcomes(1, 4).len(), 4);
        assert!(outcomes(3, 4).len() <= 6, "hands that have one finish it");
    }
}
