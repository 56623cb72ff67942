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
    let hand = |way| find(way, Maker::Hand);
    let ours = |way| find(way, Maker::Podspan);
    let (same, direct, vxlan) = (
        Way::SameNode,
        Way::OtherNode(Routing::Direct),
        Way::OtherNode(Routing::Vxlan),
    );
    let mut text =
        "| ratio, median of the rounds | stream | request | connections |\n|---|---:|---:|---:|\n"
            .to_owned();
    for (what, path, other) in [
        ("**on a node, to the same by hand**", ours(same), hand(same)),
        (
            "**across nodes, `direct`, to the same by hand**",
            ours(direct),
            hand(direct),
        ),
        (
            "**across nodes, `vxlan`, to the same by hand**",
            ours(vxlan),
            hand(vxlan),
        ),
        (
            "on a node, to a bare veth pair",
            ours(same),
            hand(Way::Bare),
        ),
        (
            "the same by hand, to a bare veth pair",
            hand(same),
            hand(Way::Bare),
        ),
        (
            "across nodes, `direct`, to host to host",
            ours(direct),
            hand(Way::Hosts),
        ),
        (
            "across nodes, `vxlan`, to host to host",
            ours(vxlan),
            hand(Way::Hosts),
        ),
    ] {
        let (Some(path), Some(other)) = (path, other) else {
            continue;
        };
        let cells = [0, 1, 2].map(|task| digits(ratio(path, other, task)));
        text += &format!("| {what} | {} |\n", cells.join(" | "));
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
        Maker::Hand => "by hand",
        Maker::Podspan => "Podspan",
    }
}

/// Requests and responses: what a path costs shows there best.
fn picture(results: &Results) -> Picture {
    let task = Task::Request;
    let mut groups: Vec<Group> = Vec::new();
    for path in &results.paths {
        let value = Series::new(path.figures[task as usize].clone()).median();
        let (name, colour) = match (path.maker, path.way) {
            (Maker::Podspan, _) => ("Podspan", Colour::Ours),
            (_, Way::Bare | Way::Hosts) => ("nothing between", Colour::Floor),
            (Maker::Hand, _) => ("by hand", Colour::Theirs),
        };
        let bar = Bar {
            name: name.into(),
            colour,
            value,
            text: digits(value),
        };
        let title = title(path.way).replace('`', "");
        match groups.last_mut().filter(|group| group.title == title) {
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
