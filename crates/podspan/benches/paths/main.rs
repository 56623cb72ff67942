//! `make bench-paths`: what packets between pods cost, beside the same path made by hand, a bare veth pair and the hosts.
//!
//! Rounds, in each of which every path is measured once of each kind of traffic; each round begins with another path and goes the
//! other way round than the one before. A machine's mood lasts seconds, so rounds are many and short: what is compared comes within
//! a tenth of a second. A ratio is the median of the ratios of all rounds. Nothing is asserted about time.
//!
//! Words: `--rounds N`; `--write` puts the figures into `docs/benchmarks.md`.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    dead_code,
    reason = "a benchmark, with rooms of the plugin's"
)]

mod endpoint;
#[path = "../../../cni/benches/plugin/machine.rs"]
mod machine;
#[path = "../../../cni/benches/plugin/numbers.rs"]
mod numbers;
#[path = "../../../cni/benches/plugin/page.rs"]
mod page;
#[path = "../../../cni/benches/plugin/picture.rs"]
mod picture;
mod report;
mod world;

use std::time::{Duration, Instant};

use endpoint::Task;
use world::{Maker, Run, Way};

/// Rounds that count, and those before them, which warm up.
const ROUNDS: usize = 100;
const WARM_UP: usize = 1;
/// How long traffic runs for one figure.
const TIME: Duration = Duration::from_millis(100);

/// What was measured of a path: for each [`Task`] a figure a round.
pub struct Measured {
    pub way: Way,
    pub maker: Maker,
    pub figures: [Vec<f64>; 3],
}

/// One whole run.
pub struct Results {
    pub paths: Vec<Measured>,
    pub rounds: usize,
    pub idle: f64,
    pub took: Duration,
}

fn main() {
    let words: Vec<String> = std::env::args().collect();
    if let [_, word, core, end] = &words[..]
        && word == endpoint::WORD
    {
        return endpoint::run(core, end).unwrap();
    }
    let value = |word: &str| {
        let place = words.iter().position(|known| known == word)?;
        words.get(place + 1).cloned()
    };
    // `cargo test --benches` must not measure.
    if words.iter().any(|word| word == "--test") {
        return;
    }
    let rounds = value("--rounds").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    let write = words.iter().any(|word| word == "--write");
    if let Err(error) = measure(rounds, write) {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

fn measure(rounds: usize, write: bool) -> Result<(), String> {
    endpoint::require(&world::podspan(), "make build")?;
    if !world::isolate()? {
        return Ok(());
    }
    let idle = machine::idle();
    let begun = Instant::now();
    // The last core: the first has the machine's interrupts more often.
    let core = std::thread::available_parallelism().map_or(0, |cores| cores.get() - 1);
    let mut runs = world::build(core);
    let mut paths: Vec<Measured> = runs.iter().map(Measured::of).collect();
    for round in 0..rounds + WARM_UP {
        for task in Task::ALL {
            for place in 0..runs.len() {
                let place = if round % 2 == 0 {
                    place
                } else {
                    runs.len() - 1 - place
                };
                let turn = (place + round / 2) % runs.len();
                let Run { client, server, .. } = &mut runs[turn];
                let per_second = client.drive(task, *server, TIME);
                if round >= WARM_UP {
                    paths[turn].figures[task as usize].push(task.scaled(per_second));
                }
            }
        }
    }
    let took = begun.elapsed();
    report::report(
        &Results {
            paths,
            rounds,
            idle,
            took,
        },
        write,
    )
}

impl Measured {
    fn of(run: &Run) -> Self {
        Self {
            way: run.way,
            maker: run.maker,
            figures: Default::default(),
        }
    }
}
