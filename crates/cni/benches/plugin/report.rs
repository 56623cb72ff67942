//! What was measured as Markdown and as pictures, on standard output and, where that is wanted, in the page.

use crate::Measured;
use crate::Record;
use crate::burst::{Burst, PODS, WIDTHS};
use crate::contestant::{Contestant, Side, Verb, podspan};
use crate::machine;
use crate::numbers::{Series, digits, thousands};
use crate::page;
use crate::picture::{Bar, Colour, Group, Picture};

/// # Errors
/// What cannot be written.
pub fn report(measured: &Measured, write: bool) -> Result<(), String> {
    let texts = [
        ("machine", machine_and_run(measured)),
        (
            "commands",
            Verb::ALL.map(|verb| commands(measured, verb)).join("\n"),
        ),
        ("floor", floor(measured)),
        ("bursts", bursts(measured)),
        ("taken", taken(measured)),
    ];
    for (_, text) in &texts {
        println!("{text}");
    }
    if write {
        page::fill(&texts)?;
        page::draw("adding-a-pod.svg", &picture_of_add(measured).svg())?;
        page::draw("a-burst-of-pods.svg", &picture_of_bursts(measured).svg())?;
    }
    Ok(())
}

/// Podspan's and the reference's record, for each configuration that nobody else had addresses in.
fn pairs(measured: &Measured) -> impl Iterator<Item = (&Contestant, [&Record; 2])> {
    let pairs = measured
        .contestants
        .chunks(2)
        .filter(|pair| pair.len() == 2 && pair[0].0.taken == 0);
    pairs.map(|pair| (&pair[0].0, [&pair[0].1, &pair[1].1]))
}

/// Ours without its guard, beside the plain pair.
fn unguarded(measured: &Measured) -> Option<&Record> {
    let mut found = measured.contestants.iter();
    let found = found.find(|(contestant, _)| contestant.side == Side::Unguarded);
    found.map(|(_, record)| record)
}

fn machine_and_run(measured: &Measured) -> String {
    let size = std::fs::metadata(podspan()).map_or(0, |file| file.len());
    format!(
        "{}* the run: {} rounds, {:.1} minutes in all, on processors that were {:.0} % idle before; \
         `podspan-cni` has {:.2} MiB\n",
        machine::describe(),
        measured.rounds,
        measured.took.as_secs_f64() / 60.0,
        measured.idle,
        size as f64 / (1 << 20) as f64,
    )
}

/// One command in all configurations.
fn commands(measured: &Measured, verb: Verb) -> String {
    let mut table = format!(
        "| {} | | median, ms | p99, ms | processor, ms | system calls | programs | memory, MiB |\n\
         |---|---|---:|---:|---:|---:|---:|---:|\n",
        verb.word()
    );
    let mut objections = String::new();
    for (contestant, [guarded, reference]) in pairs(measured) {
        let is_plain = contestant.configuration.key == "plain";
        let unguarded = unguarded(measured).filter(|_| is_plain);
        let mut rows = vec![(Side::Podspan, guarded)];
        rows.extend(unguarded.map(|record| (Side::Unguarded, record)));
        rows.push((Side::Reference, reference));
        let mut title = contestant.configuration.title;
        for (side, record) in &rows {
            let cells = match record.objection.is_some() && verb == Verb::Check {
                false => figures(record, verb),
                true => "fails | | | | |".into(),
            };
            table += &format!("| {title} | {} | {cells} |\n", side.name());
            title = "";
        }
        if let Some(objection) = reference.objection.as_ref().filter(|_| verb == Verb::Check) {
            let said: Vec<&str> = objection.split_whitespace().collect();
            let said = said.join(" ");
            objections = format!("\nThe reference's CHECK of a pod that works: `{said}`\n");
            continue;
        }
        let theirs = &reference.costs[verb as usize];
        for (side, record) in rows.iter().filter(|(side, _)| *side != Side::Reference) {
            let ours = &record.costs[verb as usize];
            table += &format!(
                "| | **reference to {}** | **{}** | | **{}** | | | |\n",
                side.name(),
                digits(Series::wall(theirs).ratio_to(&Series::wall(ours))),
                digits(Series::processor(theirs).ratio_to(&Series::processor(ours))),
            );
        }
    }
    table + &objections
}

fn figures(record: &Record, verb: Verb) -> String {
    let verb = verb as usize;
    let (wall, processor) = (
        Series::wall(&record.costs[verb]),
        Series::processor(&record.costs[verb]),
    );
    let calls = Series::counts(record.calls[verb].iter().map(|calls| calls.all));
    let programs = Series::counts(record.calls[verb].iter().map(|calls| calls.programs));
    let peak = Series::counts(record.peak[verb].iter().copied());
    format!(
        "{} | {} | {} | {} | {} | {}",
        digits(wall.median()),
        digits(wall.p99()),
        digits(processor.median()),
        thousands(calls.median() as usize),
        programs.median(),
        digits(peak.median() / 1024.0),
    )
}

/// What nobody can undercut, and how far from it the plain pod is.
fn floor(measured: &Measured) -> String {
    let bare = &measured.bare;
    let plain = pairs(measured).find(|(contestant, _)| contestant.configuration.key == "plain");
    let (Some((_, [guarded, _])), Some(unguarded)) = (plain, unguarded(measured)) else {
        return "The plain pod was not measured.\n".into();
    };
    let of = |record: &Record, verb: Verb| record.costs[verb as usize].clone();
    let mut table = "| | median, ms | p99, ms | processor, ms |\n|---|---:|---:|---:|\n".to_owned();
    let mut row = |what: &str, wall: &Series, processor: String| {
        let (median, p99) = (digits(wall.median()), digits(wall.p99()));
        table += &format!("| {what} | {median} | {p99} | {processor} |\n");
    };
    let attach = "the requests of ADD from a static process that does nothing else";
    for (what, costs) in [
        ("a static process that does nothing", &bare.nothing),
        ("VERSION of podspan-cni", &bare.version),
        (attach, &bare.attach),
        ("ADD, `antiSpoof` off", &of(unguarded, Verb::Add)),
        ("ADD", &of(guarded, Verb::Add)),
        ("DEL, `antiSpoof` off", &of(unguarded, Verb::Del)),
        ("DEL", &of(guarded, Verb::Del)),
    ] {
        let processor = digits(Series::processor(costs).median());
        row(what, &Series::wall(costs), processor);
    }
    let pair = Series::times(bare.remove_pair.iter().copied());
    let pod = Series::times(bare.remove_pod.iter().copied());
    let none = String::new;
    row(
        "deleting a bare veth pair, the request alone",
        &pair,
        none(),
    );
    row(
        "deleting a pod's veth pair, the request alone",
        &pod,
        none(),
    );
    table += "\n| ratio, median of the rounds | `antiSpoof` off | |\n|---|---:|---:|\n";
    let add = Series::wall(&bare.attach);
    for (what, verb, least) in [
        ("ADD to its requests alone", Verb::Add, &add),
        ("DEL to deleting a bare pair", Verb::Del, &pair),
        ("DEL to deleting a pod's pair", Verb::Del, &pod),
    ] {
        let ratio = |record| digits(Series::wall(&of(record, verb)).ratio_to(least));
        table += &format!("| {what} | {} | {} |\n", ratio(unguarded), ratio(guarded));
    }
    table
}

/// In seconds: wall and processor time of all ADDs, and of all DELs; of several bursts the most of each.
fn seconds(bursts: &[Burst]) -> [f64; 4] {
    let mut most = [0.0; 4];
    for Burst { add, del } in bursts {
        let times = [add.wall, add.processor, del.wall, del.processor];
        for (most, time) in most.iter_mut().zip(times) {
            *most = time.as_secs_f64().max(*most);
        }
    }
    most
}

fn bursts(measured: &Measured) -> String {
    let mut table = format!(
        "| {PODS} pods | at a time | | ADD, s | processor, s | DEL, s | processor, s |\n\
         |---|---:|---|---:|---:|---:|---:|\n"
    );
    for (contestant, records) in pairs(measured) {
        let title = contestant.configuration.title;
        for (number, width) in WIDTHS.into_iter().enumerate() {
            let [ours, theirs] = records.map(|record| seconds(&record.bursts[number]));
            let ratios = [0, 1, 2, 3].map(|of| format!("**{}**", digits(theirs[of] / ours[of])));
            table += &format!(
                "| {title} | {width} | podspan-cni | {} |\n| | | reference | {} |\n| | | **ratio** | {} |\n",
                ours.map(digits).join(" | "),
                theirs.map(digits).join(" | "),
                ratios.join(" | "),
            );
        }
    }
    table
}

fn taken(measured: &Measured) -> String {
    let wall = |side: Side, taken: usize| {
        let mut plain = measured.contestants.iter().filter(|(contestant, _)| {
            contestant.configuration.key == "plain" && contestant.side == side
        });
        let found = plain.find(|(contestant, _)| contestant.taken == taken);
        found.map(|(_, record)| Series::wall(&record.costs[Verb::Add as usize]))
    };
    let mut table =
        "| addresses taken | podspan-cni, ADD, ms | to none | reference, ADD, ms | to none |\n\
                     |---:|---:|---:|---:|---:|\n"
            .to_owned();
    for taken in [0].into_iter().chain(crate::TAKEN) {
        let cells =
            [Side::Podspan, Side::Reference].map(|side| match (wall(side, taken), wall(side, 0)) {
                (Some(full), Some(empty)) => {
                    format!(
                        "{} | {}",
                        digits(full.median()),
                        digits(full.ratio_to(&empty))
                    )
                }
                _ => " | ".into(),
            });
        table += &format!("| {} | {} |\n", thousands(taken), cells.join(" | "));
    }
    table
}

fn bar(name: &str, colour: Colour, (value, unit): (f64, &str)) -> Bar {
    Bar {
        name: name.into(),
        colour,
        value,
        text: format!("{} {unit}", digits(value)),
    }
}

/// Both sides, and how many times longer the second takes.
fn compared(title: &str, unit: &str, [ours, theirs]: [f64; 2]) -> Group {
    let mut bars = vec![
        bar("podspan-cni", Colour::Ours, (ours, unit)),
        bar("reference plugins", Colour::Theirs, (theirs, unit)),
    ];
    bars[1].text += &format!(", {} times", digits(theirs / ours));
    Group {
        title: title.into(),
        bars,
    }
}

fn picture_of_add(measured: &Measured) -> Picture {
    let add = |record: &Record| Series::wall(&record.costs[Verb::Add as usize]).median();
    let mut groups: Vec<Group> = pairs(measured)
        .map(|(contestant, records)| {
            compared(contestant.configuration.title, "ms", records.map(add))
        })
        .collect();
    let attach = Series::wall(&measured.bare.attach).median();
    groups.insert(
        0,
        Group {
            title: "What nobody can undercut".into(),
            bars: vec![bar("ADD's requests alone", Colour::Floor, (attach, "ms"))],
        },
    );
    Picture {
        title: "Adding a pod".into(),
        subtitle: "Wall time of ADD, whole processes, median in milliseconds; shorter is better"
            .into(),
        groups,
    }
}

fn picture_of_bursts(measured: &Measured) -> Picture {
    let groups = pairs(measured).map(|(contestant, records)| {
        let add = |record: &Record| seconds(&record.bursts[0])[0];
        compared(contestant.configuration.title, "s", records.map(add))
    });
    Picture {
        title: format!("A burst of {PODS} pods, {} at a time", WIDTHS[0]),
        subtitle: "Wall time of all ADDs together, in seconds; shorter is better".into(),
        groups: groups.collect(),
    }
}
