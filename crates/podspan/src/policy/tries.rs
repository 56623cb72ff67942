//! Transactions that the kernel refused: when the next one is tried, and what is told of them. Pure: the time is passed in.
//!
//! Where an attachment went meanwhile the others need not wait, and it is no problem: the next try is at once. But what a kernel
//! lacks is answered in the same way (ENOENT), so that only some are at once.

use std::time::{Duration, Instant};

use podspan_kernel::Error;

/// After a failure the next try is not sooner than that.
const AGAIN: Duration = Duration::from_millis(200);
/// So many in a row may follow at once upon that something was not there.
const AT_ONCE: u32 = 10;

/// How the last transactions went.
#[derive(Debug, Default)]
pub struct Tries {
    failing: Option<Failing>,
}

/// What happened since the last success.
#[derive(Debug)]
struct Failing {
    /// The first failure.
    since: Instant,
    /// When the next try is due.
    again: Instant,
    /// How many were followed by a try at once.
    at_once: u32,
    /// Why, as far as it is told.
    problem: Option<String>,
}

impl Tries {
    /// What is in the kernel is as the model wants it.
    pub fn succeeded(&mut self) {
        self.failing = None;
    }

    /// It is not, and is to be laid anew.
    pub fn failed(&mut self, error: &Error, now: Instant) {
        let failing = self.failing.get_or_insert(Failing {
            since: now,
            again: now,
            at_once: 0,
            problem: None,
        });
        if error.is_not_found() && failing.at_once < AT_ONCE {
            failing.at_once += 1;
            failing.again = now;
        } else {
            failing.again = now + AGAIN;
            failing.problem = Some(error.to_string());
        }
    }

    /// The last one failed.
    pub fn are_failing(&self) -> bool {
        self.failing.is_some()
    }

    /// When the next try is due; none where the last one succeeded.
    pub fn again(&self) -> Option<Instant> {
        self.failing.as_ref().map(|failing| failing.again)
    }

    /// Why they fail, where that is worth telling.
    pub fn problem(&self) -> Option<&str> {
        self.failing.as_ref()?.problem.as_deref()
    }

    /// The problem, where they have been failing for that long.
    pub fn problem_since(&self, patience: Duration, now: Instant) -> Option<&str> {
        let since = self.failing.as_ref()?.since;
        let is_long = now.saturating_duration_since(since) >= patience;
        self.problem().filter(|_| is_long)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(errno: i32) -> Error {
        Error::from_io("add rule", &std::io::Error::from_raw_os_error(errno))
    }

    const ENOENT: i32 = 2;
    const EBUSY: i32 = 16;

    #[test]
    fn what_was_not_there_is_tried_again_at_once_but_not_for_ever_and_then_it_is_told() {
        let now = Instant::now();
        let mut tries = Tries::default();
        assert!(!tries.are_failing() && tries.again().is_none());
        for _ in 0..AT_ONCE {
            tries.failed(&error(ENOENT), now);
            assert_eq!((tries.again(), tries.problem()), (Some(now), None));
        }
        tries.failed(&error(ENOENT), now);
        assert_eq!(tries.again(), Some(now + AGAIN));
        let told = "add rule: no such file or directory (ENOENT)";
        assert_eq!(tries.problem(), Some(told));
        tries.succeeded();
        assert!(!tries.are_failing() && tries.problem().is_none());
        tries.failed(&error(ENOENT), now);
        assert_eq!((tries.again(), tries.problem()), (Some(now), None));
    }

    #[test]
    fn what_is_refused_is_told_and_tried_again_after_a_while() {
        let now = Instant::now();
        let mut tries = Tries::default();
        tries.failed(&error(EBUSY), now);
        assert_eq!(tries.again(), Some(now + AGAIN));
        let told = "add rule: device or resource busy (EBUSY)";
        assert_eq!(tries.problem(), Some(told));
        // That an attachment went besides does not take it back.
        tries.failed(&error(ENOENT), now + AGAIN);
        assert_eq!(tries.again(), Some(now + AGAIN));
        assert_eq!(tries.problem(), Some(told));
    }

    #[test]
    fn how_long_they_fail_is_since_the_last_success() {
        let begin = Instant::now();
        let patience = 5 * AGAIN;
        let mut tries = Tries::default();
        for round in 0..2 {
            let begin = begin + round * patience;
            for turn in 0..5 {
                let now = begin + turn * AGAIN;
                tries.failed(&error(EBUSY), now);
                assert!(tries.problem_since(Duration::ZERO, now).is_some());
                assert_eq!(tries.problem_since(patience, now), None);
            }
            let why = "add rule: device or resource busy (EBUSY)";
            assert_eq!(tries.problem_since(patience, begin + patience), Some(why));
            tries.succeeded();
            assert_eq!(tries.problem_since(Duration::ZERO, begin + patience), None);
        }
    }
}
