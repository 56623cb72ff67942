//! Cases of a property until the time is over.
//!
//! `PODSPAN_FUZZ_SECONDS` says how long each target runs, 10 seconds otherwise. A failure prints the least case that fails,
//! and the seed of its batch, which `PODSPAN_FUZZ_SEED` runs alone.

use podspan_kernel::testing::fuzz::run;
use proptest::prelude::Strategy;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestRunner};

/// Cases of one seed: enough that the clock does not matter, and few enough to look through.
const BATCH: u32 = 50;

/// Fails when the property does not hold.
pub fn holds<S: Strategy>(cases: &S, property: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let batches = run(|seed| {
        let config = Config {
            cases: BATCH,
            rng_seed: RngSeed::Fixed(seed),
            failure_persistence: None,
            max_shrink_iters: 20_000,
            ..Config::default()
        };
        if let Err(error) = TestRunner::new(config).run(cases, &property) {
            panic!("{error}");
        }
    });
    println!("{} cases", batches * u64::from(BATCH));
}
