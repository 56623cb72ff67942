//! What was measured as Markdown and as a picture.

use crate::endpoint::Task;
use crate::numbers::{Series, digits};
use crate::picture::{Bar, Colour, Group, Picture};
use crate::world::{Maker, Routing, Way};
use crate::{Measured, Results, page};

/// # Errors
/// What cannot be written.
pub fn report(results: &Results, write: bool) -> Result<(), String> {
    let text = table(results) + "\n" + &ratios(results);
    println!("{text}");
    if write {
        page::fill(&[("paths", text)])?;
        page::draw("paths.svg", &picture(results).svg())?;
    }
    Ok(())
}

fn table(results: &Results) -> String {
    let mut text = format!(
        "{} rounds, {:.1} minutes in all, on processors that were {:.0} % idle before.\n\n| median | |",
        results.rounds,
        results.took.as_secs_f64() / 60.0,
        results.idle,
    );
    text += &Task::ALL
        .map(|task| format!(" {} |", task.title()))
        .concat();
    text += "\n|---|---|---:|---:|---:|\n";
    for path in &results.paths {
        let figures = path.figures.each_ref();
        let cells = figures.map(|figures| digits(Series::new(figures.clone()).median()));
        let (title, maker) = (title(path.way), maker(path.maker));
        text += &format!("| {title} | {maker} | {} |\n", cells.join(" | "));
    }
    text
}

/// Each of ours to the same by hand, and what each kind of path keeps of the shorter one.
fn ratios(results: &Results) -> String {
    let find = |way: Way, maker: Maker| {
        let mut paths = results.paths.iter();
        paths.find(|path| path.way == way && path.maker == maker)
    };
    let plain = Maker::Hand { masquerade: false };
    let ways = [
        ("on a node", Way::SameNode, ("a bare veth pair", Way::Bare)),
        (
            "across nodes, `direct`",
            Way::OtherNode(Routing::Direct),
            ("host to host", Way::Hosts),
        ),
        (
            "across nodes, `vxlan`",
            Way::OtherNode(Routing::Vxlan),
            ("host to host", Way::Hosts),
        ),
    ];
    let mut text =
        "| ratio, median of the rounds | stream | request | connections |\n|---|---:|---:|---:|\n"
            .to_owned();
    let mut row = |what: &str, path: Option<&Measured>, other: Option<&Measured>| {
        if let (Some(path), Some(other)) = (path, other) {
            let cells = [0, 1, 2].map(|task| digits(ratio(path, other, task)));
            text += &format!("| {what} | {} |\n", cells.join(" | "));
        }
    };
    for (title, way, _) in ways {
        for masquerade in [false, true] {
            let with = if masquerade {
                ", both masquerading"
            } else {
                ""
            };
            row(
                &format!("**{title}, to the same by hand{with}**"),
                find(way, Maker::Podspan { masquerade }),
                find(way, Maker::Hand { masquerade }),
            );
        }
    }
    for (title, way, (shorter, bare)) in ways {
        row(
            &format!("{title}, masquerading, to the same by hand without"),
            find(way, Maker::Podspan { masquerade: true }),
            find(way, plain),
        );
        row(
            &format!("{title}, by hand, to {shorter}"),
            find(way, plain),
            find(bare, plain),
        );
    }
    text
}

fn ratio(path: &Measured, other: &Measured, task: usize) -> f64 {
    let [path, other] = [path, other].map(|path| Series::new(path.figures[task].clone()));
    path.ratio_to(&other)
}

fn title(way: Way) -> &'static str {
    match way {
        Way::Bare => "a bare veth pair",
        Way::Hosts => "host to host",
        Way::SameNode => "pods of one node",
        Way::OtherNode(Routing::Direct) => "pods of two nodes, `direct`",
        Way::OtherNode(Routing::Vxlan) => "pods of two nodes, `vxlan`",
    }
}

fn maker(maker: Maker) -> &'static str {
    match maker {
        Maker::Hand { masquerade: false } => "by hand",
        Maker::Hand { masquerade: true } => "by hand, masquerading",
        Maker::Podspan { masquerade: false } => "Podspan, not masquerading",
        Maker::Podspan { masquerade: true } => "Podspan",
    }
}

/// Requests and responses: what a path costs shows there best.
fn picture(results: &Results) -> Picture {
    let task = Task::Request;
    let mut groups: Vec<Group> = Vec::new();
    for path in &results.paths {
        let value = Series::new(path.figures[task as usize].clone()).median();
        let (name, colour) = match (path.maker, path.way) {
            (maker @ Maker::Podspan { .. }, _) => (self::maker(maker), Colour::Ours),
            (_, Way::Bare | Way::Hosts) => ("nothing between", Colour::Floor),
            (maker, _) => (self::maker(maker), Colour::Theirs),
        };
        let bar = Bar {
            name: name.into(),
            colour,
            value,
            text: digits(value),
        };
        let title = title(path.way).replace('`', "");
        match groups.iter_mut().find(|group| group.title == title) {
            Some(group) => group.bars.push(bar),
            None => groups.push(Group {
                title,
                bars: vec![bar],
            }),
        }
    }
    Picture {
        title: "Requests and responses between pods".into(),
        subtitle: "A byte there and a byte back, thousand a second, client and server on one core; longer is better".into(),
        groups,
    }
}
