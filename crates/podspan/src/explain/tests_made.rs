//! Real packets, from the pod's own network namespace: small and full-size ones by ICMP, and a connection by TCP. And what is
//! to be seen on this node when they do not arrive.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use podspan_kernel::echo::{Echo, Reply};
use podspan_kernel::{Errno, Netlink, Reachability, errno_text};
use serde::Serialize;

use super::hops::NextHop;
use super::pods::Pod;
use super::{Hop, State};
use crate::cluster::Cluster;
use crate::config::Config;
use crate::look::Look;
use crate::probe::{self, Targets};

/// How large a small packet is, in bytes: what `ping` sends.
const SMALL: u32 = 84;
/// What every path takes, in bytes (RFC 791, RFC 8200).
const LEAST: (u32, u32) = (576, 1280);
/// How long the first answer may take: a neighbour is asked for three times, a second apart.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long further ones may take, when small packets are answered.
const SHORT: Duration = Duration::from_millis(400);
/// Counters of the kernel that tell where packets end, and what they mean.
const COUNTERS: [(&str, &str, &str); 3] = [
    (
        "netstat",
        "IPReversePathFilter",
        "the reverse path filter of this node drops packets: see net.ipv4.conf.*.rp_filter, 2 lets them in",
    ),
    (
        "netstat",
        "InNoRoutes",
        "this node has no route for what comes in: see podspan status",
    ),
    (
        "snmp",
        "FragFails",
        "this node drops packets that are larger than the MTU of the link that they should leave by",
    ),
];

/// What became of packets.
#[derive(Debug, Serialize)]
pub struct Tests {
    /// A small packet and its answer.
    small: Answer,
    /// One as large as the pod may send; none when the small one was not answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    full: Option<Answer>,
    /// How large a full-size packet is, in bytes.
    full_size: u32,
    /// The largest that is answered, where full-size ones are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    largest: Option<u32>,
    /// A connection, where a port was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    connection: Option<Answer>,
    /// What this node says that it dropped meanwhile.
    #[serde(skip)]
    pub dropped: Vec<Hop>,
}

/// What became of one.
#[derive(Debug, Clone, Serialize)]
pub struct Answer {
    /// It was answered as it should be.
    passes: bool,
    /// In words.
    what: String,
}

impl Tests {
    /// What was asked for was answered as it should be. A connection that succeeds outweighs silence about ICMP: a policy
    /// that names ports lets no ICMP through.
    pub fn pass(&self) -> bool {
        let asked = self.connection.as_ref().unwrap_or(&self.small);
        asked.passes && self.full.as_ref().is_none_or(|full| full.passes)
    }

    /// What was not.
    pub fn what_fails(&self) -> &'static str {
        let fails = |answer: &Option<Answer>| answer.as_ref().is_some_and(|answer| !answer.passes);
        if !self.small.passes {
            "no answer"
        } else if fails(&self.full) {
            "small packets pass, large ones do not"
        } else {
            "packets pass, but the port does not answer"
        }
    }

    /// For people.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let mut line = |what: String, answer: &Answer| {
            let _ = writeln!(text, "tested: {what}: {}", answer.what);
        };
        line(format!("ICMP, {SMALL} bytes"), &self.small);
        if let Some(full) = &self.full {
            line(format!("ICMP, {} bytes unfragmented", self.full_size), full);
        }
        if let Some(connection) = &self.connection {
            line("TCP connection".to_owned(), connection);
        }
        if let Some(largest) = self.largest {
            let _ = writeln!(
                text,
                "tested: the largest packet that passes has {largest} bytes"
            );
        }
        text
    }
}

/// Sends packets from the pod; none where its namespace is not to be entered.
pub fn make(from: &Pod, to: &Pod, port: Option<u16>) -> Option<Tests> {
    let here = from.here.as_ref()?;
    let netns = here.netns.as_ref()?;
    let full_size = here.inside(to.ip)?.ok()?.link.mtu;
    let before = counters();
    let mut tests = netns.run(|| send(to.ip, port, full_size)).ok()?;
    let after = counters();
    for (((_, _, what), before), after) in COUNTERS.iter().zip(before).zip(after) {
        if before < after {
            tests
                .dropped
                .push(Hop::new(&from.node, State::Perhaps, *what));
        }
    }
    Some(tests)
}

fn send(to: IpAddr, port: Option<u16>, full_size: u32) -> Tests {
    let mut tests = Tests {
        small: Answer {
            passes: false,
            what: String::new(),
        },
        full: None,
        full_size,
        largest: None,
        connection: port.map(|port| connect(SocketAddr::new(to, port))),
        dropped: Vec::new(),
    };
    let mut echo = match Echo::open(to) {
        Ok(echo) => echo,
        Err(error) => {
            tests.small.what = error.to_string();
            return tests;
        }
    };
    let mut ask = |bytes, patience| match echo.ask(bytes, patience) {
        Ok(reply) => Answer::of(reply),
        Err(error) => Answer {
            passes: false,
            what: error.to_string(),
        },
    };
    tests.small = ask(SMALL, PATIENCE);
    if !tests.small.passes {
        // The first waited for its neighbour, which may be known now.
        tests.small = ask(SMALL, PATIENCE);
    }
    if tests.small.passes {
        let full = ask(full_size, SHORT);
        let full = if full.passes {
            full
        } else {
            ask(full_size, SHORT)
        };
        if !full.passes {
            let least = if to.is_ipv4() { LEAST.0 } else { LEAST.1 };
            tests.largest = largest(least, full_size, |bytes| ask(bytes, SHORT).passes);
        }
        tests.full = Some(full);
    }
    tests
}

/// The largest size from `least` to below `most` that passes, which is known not to.
fn largest(least: u32, most: u32, mut passes: impl FnMut(u32) -> bool) -> Option<u32> {
    if least >= most || !passes(least) {
        return None;
    }
    let (mut passing, mut failing) = (least, most);
    while failing - passing > 1 {
        let middle = passing + (failing - passing) / 2;
        if passes(middle) {
            passing = middle;
        } else {
            failing = middle;
        }
    }
    Some(passing)
}

impl Answer {
    fn of(reply: Reply) -> Self {
        let who = |from: Option<IpAddr>| from.map_or("this pod".to_owned(), |ip| ip.to_string());
        let what = match reply {
            Reply::Answered(time) => format!("answered after {:.2} ms", time.as_secs_f64() * 1e3),
            Reply::Silent => "no answer".to_owned(),
            Reply::Unreachable(from) => format!("{} says that it is not reached", who(from)),
            Reply::TooLarge { from, mtu } => {
                let mtu = mtu.map(|mtu| format!(", the MTU is {mtu}"));
                let mtu = mtu.unwrap_or_default();
                format!("{} says that it is too large{mtu}", who(from))
            }
        };
        Self {
            passes: matches!(reply, Reply::Answered(_)),
            what,
        }
    }
}

fn connect(to: SocketAddr) -> Answer {
    let begin = Instant::now();
    let connected = TcpStream::connect_timeout(&to, PATIENCE);
    let what = match &connected {
        Ok(_) => format!(
            "connected after {:.2} ms",
            begin.elapsed().as_secs_f64() * 1e3
        ),
        Err(error) => match Errno::from_io_error(error) {
            Some(Errno::CONNREFUSED) => {
                "refused: packets arrive, and nobody listens there, or a rule rejects them"
                    .to_owned()
            }
            Some(errno) => errno_text(errno),
            None => "no answer".to_owned(),
        },
    };
    Answer {
        passes: connected.is_ok(),
        what,
    }
}

/// The counters of this node, in the order of [`COUNTERS`].
fn counters() -> [u64; 3] {
    COUNTERS.map(|(file, name, _)| {
        let text = fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        counter(&text.unwrap_or_default(), name).unwrap_or_default()
    })
}

/// A counter of `/proc/net/snmp` or `netstat`: a line with names, and behind it one with their values.
fn counter(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines();
    while let (Some(names), Some(values)) = (lines.next(), lines.next()) {
        let mut both = names.split(' ').zip(values.split(' '));
        if let Some((_, value)) = both.find(|(found, _)| *found == name) {
            return value.parse().ok();
        }
    }
    None
}

/// Which neighbours did not answer, now that packets have asked for them.
pub fn look_again(netlink: &mut Netlink, from: &Pod, next_hop: Option<NextHop>) -> Vec<Hop> {
    let mut hops = Vec::new();
    if let Some(NextHop {
        link,
        link_name,
        ip,
    }) = next_hop
    {
        let known = netlink.reachability(link, ip);
        if matches!(known, Ok(Reachability::Failed | Reachability::Asked)) {
            let what =
                format!("{ip}, the next hop, does not answer on {link_name}: is that machine up?");
            let mend = format!("ping {ip}, and ip neigh show {ip}");
            hops.push(Hop::new(&from.node, State::Wrong, what).mended_by(mend));
        }
    }
    hops
}

/// Whether the way between the two nodes is right by itself.
pub fn between_nodes(config: &Config, cluster: &Cluster, (look, to): (&Look, &Pod)) -> Option<Hop> {
    let (desired, _) = look.both.as_ref()?;
    let all = probe::targets(config, cluster, desired, &Targets::default());
    let holds = |peer: &&Arc<probe::Peer>| {
        *peer.node == to.node && peer.gateway.is_ipv4() == to.ip.is_ipv4()
    };
    let peer = Arc::clone(all.peers.iter().find(holds)?);
    let one = Targets {
        peers: vec![peer],
        ..all
    };
    let (peer, outcome) = probe::test_all(&one).ok()?.pop()?;
    let own = peer.source;
    let hop = match outcome.failure() {
        Some(failure) => {
            let way =
                Netlink::open().and_then(|mut netlink| probe::way(&mut netlink, peer.gateway));
            let way = way.ok().flatten();
            let what = probe::describe(&peer, failure, way.as_ref());
            Hop::new(&to.node, State::Wrong, format!("from {own} too: {what}"))
        }
        None if outcome == probe::Outcome::Untested => {
            let what = format!(
                "the way from {own} to its gateway {} could not be tested: {own} is not on this node yet",
                peer.gateway
            );
            Hop::new(&to.node, State::Unseen, what)
        }
        None => {
            let what = format!(
                "from {own} to its gateway {} packets pass ({})",
                peer.gateway,
                outcome.word()
            );
            Hop::new(&to.node, State::Right, what)
        }
    };
    Some(hop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_that_passes_is_found() {
        for limit in [576, 577, 1400, 1498, 1499] {
            assert_eq!(largest(576, 1500, |bytes| bytes <= limit), Some(limit));
        }
        assert_eq!(largest(576, 1500, |_| false), None);
        assert_eq!(largest(1280, 1280, |_| true), None);
    }

    #[test]
    fn a_counter_is_read_by_its_name() {
        let text = "TcpExt: A IPReversePathFilter\nTcpExt: 1 7\nIpExt: InNoRoutes B\nIpExt: 3 4\n";
        assert_eq!(counter(text, "IPReversePathFilter"), Some(7));
        assert_eq!(counter(text, "InNoRoutes"), Some(3));
        assert_eq!(counter(text, "C"), None);
    }
}
