//! How long to wait after a failure: longer each time, and never the same on two machines.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

/// After the first failure, about.
const FIRST: Duration = Duration::from_millis(250);
/// After many, about.
const LAST: Duration = Duration::from_secs(30);

/// The failures in a row.
#[derive(Debug, Default)]
pub struct Backoff {
    /// How many there were.
    pub failures: u32,
}

impl Backoff {
    /// One more: how long to wait, from half to one and a half of what is doubled each time.
    pub fn next(&mut self) -> Duration {
        let doubled = FIRST.saturating_mul(1 << self.failures.min(10));
        self.failures = self.failures.saturating_add(1);
        doubled.min(LAST).mul_f64(0.5 + random())
    }

    /// It went well.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// A number from 0 to 1, another each time: the keys of each [`RandomState`] are.
pub fn random() -> f64 {
    let bits = u32::try_from(RandomState::new().hash_one(0) >> 32).unwrap_or_default();
    f64::from(bits) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_up_to_the_last_and_begins_anew() {
        let mut backoff = Backoff::default();
        for round in 0..100 {
            let about = FIRST.saturating_mul(1 << round.min(10)).min(LAST);
            let wait = backoff.next();
            assert!(wait >= about.mul_f64(0.5) && wait <= about.mul_f64(1.5));
        }
        backoff.reset();
        assert!(backoff.next() <= FIRST.mul_f64(1.5));
    }
}
