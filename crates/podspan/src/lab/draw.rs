//! The drawing of the network: boxes above and below the underlay for a few nodes, a line for each node for many.
//!
//! Pure: it draws what was observed, at most [`WIDTH`] columns wide.

use std::fmt::Write;
use std::net::IpAddr;

use super::layout::{Machine, UPLINK};
use super::observe::{Pod, Seen};

/// The width of the widest drawing, in columns.
pub const WIDTH: usize = 100;
/// How many boxes fit beside each other.
const BOXES: usize = 3;
/// The width of a box, with its frame.
const BOX: usize = 32;
/// How many pods are drawn in a box before the rest is only counted.
const PODS: usize = 6;

/// Draws the network of these machines.
pub fn network(machines: &[(Machine, Seen)]) -> String {
    let nodes = machines
        .iter()
        .filter(|(machine, _)| matches!(machine, Machine::Node(_)))
        .count();
    // Three in a row; then the rest, and the router, below the underlay.
    let above = if nodes > BOXES {
        nodes.div_ceil(2)
    } else {
        nodes
    };
    if above > BOXES || machines.len() - above > BOXES {
        return list(machines);
    }
    let (above, below) = machines.split_at(above);
    let above: Vec<_> = above
        .iter()
        .map(|(machine, seen)| Node::new(*machine, seen))
        .collect();
    let below: Vec<_> = below
        .iter()
        .map(|(machine, seen)| Node::new(*machine, seen))
        .collect();
    let mut lines = row(&above, Side::Above);
    lines.push(underlay(above.len(), below.len()));
    lines.extend(row(&below, Side::Below));
    lines
        .iter()
        .fold(String::new(), |all, line| all + line.trim_end() + "\n")
}

/// A box to be drawn: its title, and what is in it.
struct Node {
    title: String,
    lines: Vec<String>,
}

/// On which side of the underlay a box is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Above,
    Below,
}

impl Node {
    fn new(machine: Machine, seen: &Seen) -> Self {
        let mut lines = Vec::new();
        for (number, pod) in seen.pods.iter().take(PODS).enumerate() {
            let corner = if number == 0 { "┌" } else { "├" };
            let addresses = pod.addresses.iter().map(|net| net.addr());
            entry(&mut lines, [corner, "│"], &pod.name, addresses);
        }
        if let Some(more @ 1..) = seen.pods.len().checked_sub(PODS) {
            lines.push(format!("├ and {more} more"));
        }
        if let Some(bridge) = &seen.bridge {
            entry(
                &mut lines,
                ["", "│"],
                &bridge.name,
                bridge.addresses.iter().map(|net| net.addr()),
            );
        }
        let count = match seen.routes.len() {
            1 => "1 route".to_owned(),
            many => format!("{many} routes"),
        };
        lines.push(format!(
            "{:<10}{count}",
            if seen.bridge.is_some() { "│" } else { "" }
        ));
        entry(
            &mut lines,
            ["", ""],
            UPLINK,
            seen.uplink.iter().map(|net| net.addr()),
        );
        Self {
            title: machine.to_string(),
            lines,
        }
    }

    /// The box, padded to `height` lines inside.
    fn draw(&self, height: usize, side: Side) -> Vec<String> {
        let inside = BOX - 2;
        let (left, right) = (inside / 2, inside - inside / 2 - 1);
        let title = format!(" {} ", self.title);
        let top = format!("─{title:─<width$}", width = inside - 1);
        let top = match side {
            Side::Above => top,
            // The cable meets the box in its upper edge.
            Side::Below => top
                .chars()
                .enumerate()
                .map(|(column, sign)| if column == left { '┴' } else { sign })
                .collect(),
        };
        let bottom = match side {
            Side::Above => format!("{}┬{}", "─".repeat(left), "─".repeat(right)),
            Side::Below => "─".repeat(inside),
        };
        let empty = std::iter::repeat_n(String::new(), height.saturating_sub(self.lines.len()));
        let content = match side {
            Side::Above => empty.chain(self.lines.iter().cloned()).collect::<Vec<_>>(),
            Side::Below => self.lines.iter().cloned().chain(empty).collect(),
        };
        let mut drawn = vec![format!("┌{top}┐")];
        drawn.extend(
            content
                .iter()
                .map(|line| format!("│ {} │", fit(line, inside - 2))),
        );
        drawn.push(format!("└{bottom}┘"));
        drawn
    }
}

/// A name and its addresses, one below the other; `rail` stands before the first line and before the others.
fn entry(
    lines: &mut Vec<String>,
    rail: [&str; 2],
    name: &str,
    addresses: impl Iterator<Item = IpAddr>,
) {
    let [first, others] = rail;
    let name = match first {
        "" => fit(name, 9),
        corner => format!("{corner} {}", fit(name, 7)),
    };
    let mut addresses = addresses.map(|ip| ip.to_string());
    lines.push(format!(
        "{name} {}",
        addresses.next().unwrap_or("no address".into())
    ));
    lines.extend(addresses.map(|address| format!("{others:<10}{address}")));
}

/// The text in exactly that many columns.
fn fit(text: &str, columns: usize) -> String {
    if text.chars().count() > columns {
        let start: String = text.chars().take(columns.saturating_sub(1)).collect();
        return start + "…";
    }
    format!("{text:<columns$}")
}

fn row(boxes: &[Node], side: Side) -> Vec<String> {
    let height = boxes.iter().map(|node| node.lines.len()).max().unwrap_or(0);
    let cable: String = boxes
        .iter()
        .map(|_| {
            format!(
                "{:>width$}{:rest$}",
                "│",
                "",
                width = BOX / 2 + 1,
                rest = BOX - BOX / 2
            )
        })
        .collect();
    let drawn: Vec<_> = boxes.iter().map(|node| node.draw(height, side)).collect();
    let lines = (0..height + 2).map(|number| {
        let parts = drawn.iter().filter_map(|lines| lines.get(number));
        parts.map(|part| format!("{part} ")).collect::<String>()
    });
    match side {
        _ if boxes.is_empty() => Vec::new(),
        Side::Above => lines.chain([cable]).collect(),
        Side::Below => std::iter::once(cable.clone()).chain(lines).collect(),
    }
}

/// The underlay, with a knot for each cable.
fn underlay(above: usize, below: usize) -> String {
    let width = above.max(below) * (BOX + 1) - 1;
    let cable =
        |column: usize, count: usize| column % (BOX + 1) == BOX / 2 && column / (BOX + 1) < count;
    let line: String = (0..width)
        .map(
            |column| match (cable(column, above), cable(column, below)) {
                (true, true) => '╪',
                (true, false) => '╧',
                (false, true) => '╤',
                (false, false) => '═',
            },
        )
        .collect();
    let label = " underlay ";
    let head: String = line.chars().take(2).collect();
    let tail: String = line.chars().skip(2 + label.len()).collect();
    head + label + &tail
}

/// One line for each machine.
fn list(machines: &[(Machine, Seen)]) -> String {
    let mut drawing = String::from("underlay\n");
    for (number, (machine, seen)) in machines.iter().enumerate() {
        let branch = if number + 1 == machines.len() {
            "└─"
        } else {
            "├─"
        };
        let uplink = seen.uplink.first().map(|net| net.addr().to_string());
        let mut line = format!("{branch} {machine:<8} {:<14}", uplink.unwrap_or_default());
        let bridge = seen
            .bridge
            .iter()
            .flat_map(|bridge| &bridge.addresses)
            .next();
        match bridge {
            Some(net) => {
                let _ = write!(line, "{:<15}", net.to_string());
            }
            None => {
                let _ = write!(line, "{} routes", seen.routes.len());
            }
        }
        for (position, pod) in seen.pods.iter().enumerate() {
            let word = pod_word(pod);
            let left = seen.pods.len() - position;
            let more = format!(" and {left} more");
            let reserve = if left > 1 { more.len() } else { 0 };
            if line.chars().count() + word.chars().count() + reserve > WIDTH {
                line += &more;
                break;
            }
            line += &word;
        }
        let _ = writeln!(drawing, "{}", line.trim_end());
    }
    drawing
}

fn pod_word(pod: &Pod) -> String {
    let address = pod
        .addresses
        .first()
        .map_or("no address".into(), |net| net.addr().to_string());
    format!(" {} {address}", pod.name)
}

#[cfg(test)]
mod tests {
    use super::super::layout::{Layout, Routing};
    use super::super::observe::Bridge;
    use super::*;
    use ipnet::IpNet;

    fn machines(nodes: u16, pods: u8, routing: Routing) -> Vec<(Machine, Seen)> {
        let layout = Layout {
            nodes,
            pods: pods.into(),
            routing,
        };
        let host = |prefix: IpNet, host: u128| -> IpNet {
            let ip = match prefix.addr() {
                IpAddr::V4(ip) => std::net::Ipv4Addr::from_bits(ip.to_bits() + host as u32).into(),
                IpAddr::V6(ip) => std::net::Ipv6Addr::from_bits(ip.to_bits() + host).into(),
            };
            IpNet::new(ip, prefix.prefix_len()).unwrap()
        };
        let seen = |machine: Machine| {
            let addresses = |number: u128| -> Vec<IpNet> {
                machine
                    .pod_cidrs()
                    .iter()
                    .map(|prefix| host(prefix.net(), number))
                    .collect()
            };
            let pod = |number: u8| Pod {
                name: format!("pod{number}"),
                addresses: addresses(u128::from(number) + 1),
                gateways: Vec::new(),
                host_veth: None,
            };
            let bridge = Bridge {
                name: "podspan0".into(),
                addresses: addresses(1),
            };
            Seen {
                uplink: layout.addresses(machine),
                bridge: matches!(machine, Machine::Node(_)).then_some(bridge),
                tunnels: Vec::new(),
                routes: Vec::new(),
                pods: (1..=pods)
                    .filter(|_| matches!(machine, Machine::Node(_)))
                    .map(pod)
                    .collect(),
                agent: None,
            }
        };
        layout
            .machines()
            .map(|machine| (machine, seen(machine)))
            .collect()
    }

    #[test]
    fn every_drawing_shows_every_node_and_fits_the_width() {
        for (nodes, pods, routing) in [
            (1, 0, Routing::Direct),
            (1, 1, Routing::Router),
            (3, 2, Routing::Direct),
            (4, 2, Routing::Router),
            (6, 20, Routing::Direct),
            (5, 1, Routing::Auto),
            (3, 1, Routing::Vxlan),
            (30, 3, Routing::Router),
            (200, 240, Routing::Direct),
        ] {
            let all = machines(nodes, pods, routing);
            let drawing = network(&all);
            let widest = drawing.lines().map(|line| line.chars().count()).max();
            assert!(
                widest <= Some(WIDTH),
                "{nodes} nodes: {widest:?}\n{drawing}"
            );
            for (machine, seen) in &all {
                assert!(
                    drawing.contains(&format!(" {machine} ")),
                    "{machine}\n{drawing}"
                );
                let address = seen.uplink[0].addr().to_string();
                assert!(drawing.contains(&address), "{address}\n{drawing}");
            }
            assert_eq!(drawing.contains("pod1 "), pods > 0);
        }
    }

    #[test]
    fn a_box_has_pods_bridge_and_uplink_and_hangs_on_the_underlay() {
        let expected = "\
┌─ node1 ──────────────────────┐
│ ┌ pod1    10.244.1.2         │
│ │         fd00:10:244:1::2   │
│ podspan0  10.244.1.1         │
│ │         fd00:10:244:1::1   │
│ │         0 routes           │
│ eth0      192.168.1.11       │
│           fd00:192:168:1::11 │
└───────────────┬──────────────┘
                │
══ underlay ════╪═══════════════
                │
┌─ router ──────┴──────────────┐
│           0 routes           │
│ eth0      192.168.1.1        │
│           fd00:192:168:1::1  │
└──────────────────────────────┘
";
        assert_eq!(network(&machines(1, 1, Routing::Router)), expected);
    }
}
