//! `make bench-plugin`: the plugin against the reference plugins of Debian, whole processes, interleaved in one run.
//!
//! Nothing is asserted about time. What makes it fair is in the rooms: both sides do the same job, which they show first
//! (`proof`), are run as a runtime runs them (`contestant`), each on a node of its own in namespaces of its own
//! (`world`), and every round begins with another one and goes the other way round than the one before. Counting system
//! calls and weighing memory are runs apart (`process`). What nobody can undercut is measured beside them (`bare`).
//!
//! Words: `--floor FILE`, the example `floor` built as the plugin is; keys of configurations, where not all are wanted;
//! `--rounds N`; `--write` puts the figures into `docs/benchmarks.md`.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a benchmark"
)]

mod bare;
mod burst;
mod contestant;
mod machine;
mod numbers;
mod page;
mod picture;
mod process;
mod proof;
mod report;
mod world;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bare::Bare;
use burst::{Burst, WIDTHS, burst};
use contestant::{CONFIGURATIONS, Configuration, Contestant, Pod, REFERENCE, Side, Verb};
use process::{Calls, Cost, Way};
use world::{Space, settle};

/// Rounds, each of which runs every contestant once; fewer where the time is over.
const ROUNDS: usize = 150;
/// For all rounds together.
const TIME: Duration = Duration::from_secs(170);
/// Rounds before those, which warm caches and are not counted.
const WARM_UP: usize = 3;
/// Runs that are counted and weighed.
const COUNTED: usize = 3;
/// Addresses that others have, besides none.
const TAKEN: [usize; 2] = [1000, 5000];

/// What one contestant did.
#[derive(Default)]
pub struct Record {
    /// A round's costs, by [`Verb`].
    pub costs: [Vec<Cost>; 3],
    /// System calls and programs, and the peak of memory in KiB, of the runs for that.
    pub calls: [Vec<Calls>; 3],
    pub peak: [Vec<usize>; 3],
    /// For each of [`WIDTHS`] all bursts.
    pub bursts: [Vec<Burst>; 2],
    /// What its CHECK says against a pod that works; CHECK is then not measured.
    pub objection: Option<String>,
}

/// All that was measured.
pub struct Measured {
    pub contestants: Vec<(Contestant, Record)>,
    pub bare: Bare,
    pub rounds: usize,
    /// Before anything was measured, in percent.
    pub idle: f64,
    pub took: Duration,
}

struct Wanted {
    configurations: Vec<Configuration>,
    rounds: usize,
    floor: PathBuf,
    write: bool,
}

fn main() {
    // `cargo test --benches` must not measure.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    if let Err(error) = measure(&Wanted::from_words()) {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

fn measure(wanted: &Wanted) -> Result<(), String> {
    let begun = Instant::now();
    let floor = wanted.floor.as_path();
    require_built(floor)?;
    let shm = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut measured = Measured {
        contestants: contestants(wanted, shm.path())?,
        bare: Bare::new(floor),
        rounds: 0,
        idle: machine::idle(),
        took: Duration::ZERO,
    };
    count(&mut measured, floor, &shm.path().join("calls"))?;
    rounds(&mut measured, wanted.rounds)?;
    bursts(&mut measured)?;
    measured.took = begun.elapsed();
    report::report(&measured, wanted.write)
}

impl Wanted {
    fn from_words() -> Self {
        let mut wanted = Self {
            configurations: Vec::new(),
            rounds: ROUNDS,
            floor: PathBuf::new(),
            write: false,
        };
        // cargo adds `--bench`.
        let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
        while let Some(word) = words.next() {
            let named = CONFIGURATIONS.iter().find(|known| known.key == word);
            match (word.as_str(), named) {
                (_, Some(configuration)) => wanted.configurations.push(*configuration),
                ("--write", _) => wanted.write = true,
                ("--floor", _) => wanted.floor = words.next().unwrap().into(),
                ("--rounds", _) => wanted.rounds = words.next().unwrap().parse().unwrap(),
                (other, _) => {
                    let known = CONFIGURATIONS
                        .map(|configuration| configuration.key)
                        .join(", ");
                    panic!(
                        "{other}: --floor FILE, --rounds N, --write, or a configuration of {known}"
                    );
                }
            }
        }
        if wanted.configurations.is_empty() {
            wanted.configurations = CONFIGURATIONS.to_vec();
        }
        wanted
    }
}

/// Whether everything is there that is run.
fn require_built(floor: &Path) -> Result<(), String> {
    let reference = Path::new(REFERENCE).join("bridge");
    for (path, mend) in [
        (contestant::podspan().as_path(), "make build"),
        (floor, "make bench-plugin builds it and says where"),
        (&reference, "apt-get install containernetworking-plugins"),
    ] {
        if !path.exists() {
            return Err(format!("{} is missing: {mend}", path.display()));
        }
    }
    Ok(())
}

/// Pairs of ours and the reference's, each with its proof. The plain pair is there with others' addresses too, and ours once
/// more without its guard.
fn contestants(wanted: &Wanted, shm: &Path) -> Result<Vec<(Contestant, Record)>, String> {
    let mut lots = Vec::new();
    for configuration in &wanted.configurations {
        let full = TAKEN.iter().filter(|_| configuration.key == "plain");
        for taken in [0].iter().chain(full) {
            lots.push((Side::Podspan, *configuration, *taken));
            lots.push((Side::Reference, *configuration, *taken));
        }
    }
    // Behind all pairs.
    let plain = wanted
        .configurations
        .iter()
        .find(|known| known.key == "plain");
    lots.extend(plain.map(|plain| (Side::Unguarded, *plain, 0)));
    let mut all = Vec::new();
    for (side, configuration, taken) in lots {
        let contestant = Contestant::new(side, configuration, taken, shm);
        let objection = proof::prove(&contestant)?;
        let record = Record {
            objection,
            ..Record::default()
        };
        all.push((contestant, record));
    }
    settle();
    Ok(all)
}

/// System calls, programs and memory, in runs that are not timed.
fn count(measured: &mut Measured, floor: &Path, file: &Path) -> Result<(), String> {
    let empty = measured
        .contestants
        .iter_mut()
        .filter(|(contestant, _)| contestant.taken == 0);
    for (contestant, record) in empty {
        for way in [
            Way::Counted(file.to_owned()),
            Way::Weighed(floor.to_owned()),
        ] {
            for number in 0..COUNTED {
                let costs = life(contestant, (record, &Space::new()), (number, &way))?;
                for (verb, cost) in costs.into_iter().enumerate() {
                    match way {
                        Way::Counted(_) => record.calls[verb].push(cost.calls),
                        Way::Weighed(_) => record.peak[verb].push(cost.peak),
                        Way::Bare => {}
                    }
                }
            }
        }
    }
    // The floor is one only as long as it asks the kernel for the same.
    let plain = measured
        .contestants
        .iter()
        .find(|(contestant, _)| contestant.side == Side::Unguarded);
    let floors = measured.bare.calls(file).sent;
    match plain.map(|(_, record)| record.calls[Verb::Add as usize][0].sent) {
        Some(ours) if ours != floors => Err(format!(
            "ADD sends {ours} requests and its floor {floors}: make attach() of benches/plugin/floor.rs send the same"
        )),
        _ => Ok(()),
    }
}

/// ADD, CHECK and DEL of one pod.
fn life(
    contestant: &Contestant,
    (record, space): (&Record, &Space),
    (number, way): (usize, &Way),
) -> Result<[Cost; 3], String> {
    let pod = Pod {
        space,
        container: format!("bench{number}"),
        number: 0,
    };
    let (added, add) = contestant.command(Verb::Add, &pod, (None, way))?;
    let check = match record.objection {
        None => {
            contestant
                .command(Verb::Check, &pod, (Some(&added), way))?
                .1
        }
        Some(_) => Cost::default(),
    };
    let (_, del) = contestant.command(Verb::Del, &pod, (Some(&added), way))?;
    Ok([add, check, del])
}

/// Pods live until the round is over, and then there is a pause. A round begins with another contestant than the one before,
/// and goes the other way round, so that nobody always follows the same one.
fn rounds(measured: &mut Measured, rounds: usize) -> Result<(), String> {
    let (begun, count) = (Instant::now(), measured.contestants.len() + 2);
    for round in 0..rounds + WARM_UP {
        if begun.elapsed() > TIME {
            break;
        }
        let counts = round >= WARM_UP;
        let pods: Vec<_> = (0..count).map(|_| Space::new()).collect();
        for place in 0..count {
            let place = if round % 2 == 0 {
                place
            } else {
                count - 1 - place
            };
            let turn = (place + round / 2) % count;
            let Some((contestant, record)) = measured.contestants.get_mut(turn) else {
                match turn + 1 == count {
                    true => measured.bare.process(&pods[turn], counts),
                    false => measured.bare.pod(&pods[turn], counts),
                }
                continue;
            };
            let costs = life(contestant, (record, &pods[turn]), (round, &Way::Bare))?;
            for (verb, cost) in costs.into_iter().enumerate().filter(|_| counts) {
                record.costs[verb].push(cost);
            }
        }
        drop(pods);
        settle();
        measured.rounds += usize::from(counts);
    }
    Ok(())
}

/// Ours before and after the reference's, whose single burst takes longer than all others together.
fn bursts(measured: &mut Measured) -> Result<(), String> {
    for pair in measured
        .contestants
        .chunks_mut(2)
        .filter(|pair| pair.len() == 2 && pair[0].0.taken == 0)
    {
        for (number, width) in WIDTHS.into_iter().enumerate() {
            for turn in [0, 1, 0] {
                let (contestant, record) = &mut pair[turn];
                record.bursts[number].push(burst(contestant, width)?);
            }
        }
    }
    Ok(())
}
