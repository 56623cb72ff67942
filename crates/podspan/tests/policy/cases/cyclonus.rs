//! The cases that cyclonus (now the policy assistant of network-policy-api) generates: a base policy of which one thing at a time is
//! another. It says nothing of what comes out.
//!
//! Blocks of addresses are two peers where it has one: one for each family that pods have.

mod conflicts;
mod steps;

use super::build::{
    all, around, blocks, having, key, named, namespaces, pods, pods_of, policy, port, rule, tcp,
    udp, within,
};
use super::cluster::NAME_LABEL;
use super::object::{NetworkPolicy, Peer, Port, Protocol, Rule};
use super::{Case, Cluster, Layout, Step};

use Protocol::{Sctp, Tcp, Udp};

/// A way in which the base policy is varied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Ingress,
    Egress,
}

impl Way {
    fn tag(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

const WAYS: [Way; 2] = [Way::Ingress, Way::Egress];

/// What is generated.
struct Generator<'a> {
    layout: &'a Layout<'a>,
    cluster: Cluster,
    group: &'static str,
    cases: Vec<Case>,
}

/// All cases.
pub fn cases(layout: &Layout<'_>) -> Vec<Case> {
    let mut generator = Generator {
        layout,
        cluster: Cluster::letters(layout),
        group: "",
        cases: Vec::new(),
    };
    generator.all();
    generator.cases
}

/// From pods b and c of x and y on TCP 80, to pods a and b of y and z on TCP 80, and names may be asked for.
fn base() -> NetworkPolicy {
    let from = pods_of(within("ns", ["x", "y"]), within("pod", ["b", "c"]));
    let to = pods_of(within("ns", ["y", "z"]), within("pod", ["a", "b"]));
    policy("x", "base")
        .pods(having([("pod", "a")]))
        .ingress([rule().peers([from]).ports([tcp(80)])])
        .egress([rule().peers([to]).ports([tcp(80)]), dns()])
}

fn dns() -> Rule {
    rule().ports([udp(53), tcp(53)])
}

fn rules_of(policy: &mut NetworkPolicy, way: Way) -> &mut Vec<Rule> {
    let rules = match way {
        Way::Ingress => &mut policy.ingress,
        Way::Egress => &mut policy.egress,
    };
    rules.get_or_insert_default()
}

/// The base policy with other peers in the first rule of that way.
fn with_peers(way: Way, peers: Vec<Peer>) -> NetworkPolicy {
    let mut policy = base();
    rules_of(&mut policy, way)[0].peers = peers;
    policy
}

/// The base policy with other ports in the first rule of that way.
fn with_ports(way: Way, ports: Vec<Port>) -> NetworkPolicy {
    let mut policy = base();
    rules_of(&mut policy, way)[0].ports = ports;
    policy
}

/// The tag above a tag.
fn above(tag: &str) -> &'static str {
    match tag {
        "target-namespace" | "target-pod-selector" => "target",
        "ingress" | "egress" => "direction",
        "deny-all"
        | "allow-all"
        | "any-peer"
        | "any-port-protocol"
        | "multi-peer"
        | "multi-port/protocol" => "rule",
        "all-pods"
        | "pods-by-label"
        | "all-namespaces"
        | "namespaces-by-label"
        | "policy-namespace"
        | "namespaces-by-default-label" => "peer-pods",
        "ip-block-no-except" | "ip-block-with-except" => "peer-ipblock",
        "any-port" | "numbered-port" | "named-port" | "end-port" => "port",
        "tcp" | "udp" | "sctp" => "protocol",
        "pathological" | "conflict" | "example" | "upstream-e2e" => "miscellaneous",
        _ => "action",
    }
}

fn protocol_tag(protocol: Protocol) -> &'static str {
    match protocol {
        Tcp => "tcp",
        Udp => "udp",
        Sctp => "sctp",
    }
}

/// A peer, which is two blocks where it is one of addresses, with its name and tags.
type NamedPeer = (&'static str, Vec<Peer>, Vec<&'static str>);

/// A port of a rule, with its name and tags.
type TaggedPort = (String, Port, Vec<&'static str>);

fn tagged(protocol: Option<Protocol>, port: Port) -> TaggedPort {
    let mut tags = Vec::new();
    tags.extend(protocol.map(protocol_tag));
    let what = match &port {
        Port::Range(_, low, high) if low == high => {
            tags.push("numbered-port");
            low.to_string()
        }
        Port::Range(_, low, high) => {
            tags.extend(["numbered-port", "end-port"]);
            format!("{low} to {high}")
        }
        Port::Named(_, name) => {
            tags.push("named-port");
            name.to_string()
        }
        Port::All(_) | Port::Unknown => {
            tags.push("any-port");
            "any port".into()
        }
    };
    let protocol = protocol.map_or("no protocol", protocol_tag);
    (format!("{protocol} {what}"), port, tags)
}

/// What one rule is tried with. Without a protocol it is TCP, and that there is none is only seen in what is sent to the API.
fn tagged_ports() -> Vec<TaggedPort> {
    let mut ports = Vec::new();
    for said in [None, Some(Tcp), Some(Udp), Some(Sctp)] {
        let protocol = said.unwrap_or(Tcp);
        ports.push(tagged(said, Port::All(protocol)));
        ports.push(tagged(said, port(protocol, 80)));
        ports.push(tagged(said, port(protocol, 81)));
    }
    for protocol in [Tcp, Udp, Sctp] {
        let tag = protocol_tag(protocol);
        for number in [80, 81] {
            let port = named(protocol, &format!("serve-{number}-{tag}"));
            ports.push(tagged(Some(protocol), port));
        }
        for end in [80, 84] {
            ports.push(tagged(Some(protocol), Port::Range(protocol, 53, end)));
        }
    }
    ports
}

impl Generator<'_> {
    fn all(&mut self) {
        let groups: [(_, fn(&mut Self)); 9] = [
            ("target", Self::targets),
            ("rules", Self::rules),
            ("peers", Self::peers),
            ("port/protocol", Self::ports),
            ("example", Self::example),
            ("action", Self::actions),
            ("conflict", Self::conflicts),
            ("namespace", Self::namespaces),
            ("upstream", Self::upstream),
        ];
        for (group, make) in groups {
            self.group = group;
            make(self);
        }
    }

    fn add(&mut self, name: &str, tags: &[&'static str], steps: Vec<Step>) {
        let above = tags.iter().map(|tag| above(tag));
        self.cases.push(Case {
            name: format!("{}: {name}", self.group),
            group: self.group,
            tags: tags.iter().copied().chain(above).collect(),
            cluster: self.cluster.clone(),
            steps,
        });
    }

    /// A case of one policy.
    fn add_one(&mut self, name: &str, tags: &[&'static str], policy: NetworkPolicy) {
        self.add(name, tags, vec![Step::new([policy.put()])]);
    }

    fn targets(&mut self) {
        for namespace in ["x", "y", "z"] {
            let mut policy = base();
            policy.key = key(&format!("{namespace}/base"));
            self.add_one(
                &format!("namespace {namespace}"),
                &["target-namespace"],
                policy,
            );
        }
        for (name, selector) in [
            ("all pods", all()),
            ("pods a", having([("pod", "a")])),
            ("pods a and b", within("pod", ["a", "b"])),
        ] {
            self.add_one(name, &["target-pod-selector"], base().pods(selector));
        }
    }

    fn rules(&mut self) {
        for way in WAYS {
            for (tag, rules) in [("deny-all", vec![]), ("allow-all", vec![rule()])] {
                let mut policy = base();
                *rules_of(&mut policy, way) = rules;
                self.add_one(&format!("{} {tag}", way.tag()), &[way.tag(), tag], policy);
            }
        }
    }

    /// Pods by label or all of them, of the policy's namespace, of all or of one; and blocks around z/c.
    fn peer_kinds(&self) -> Vec<NamedPeer> {
        let c = || having([("pod", "c")]);
        let x = || having([("ns", "x")]);
        let address = &self.cluster.pod("z/c").addresses;
        let wide = around(address, (24, 120));
        let narrow = around(address, (28, 124));
        let (every, label) = ("all-pods", "pods-by-label");
        let (own, any, one) = ("policy-namespace", "all-namespaces", "namespaces-by-label");
        vec![
            ("all pods here", vec![pods(all())], vec![own, every]),
            ("pods c here", vec![pods(c())], vec![own, label]),
            ("all namespaces", vec![namespaces(all())], vec![any, every]),
            (
                "all pods of all namespaces",
                vec![pods_of(all(), all())],
                vec![any, every],
            ),
            (
                "pods c of all namespaces",
                vec![pods_of(all(), c())],
                vec![any, label],
            ),
            ("namespace x", vec![namespaces(x())], vec![one, every]),
            (
                "all pods of namespace x",
                vec![pods_of(x(), all())],
                vec![one, every],
            ),
            (
                "pods c of namespace x",
                vec![pods_of(x(), c())],
                vec![one, label],
            ),
            ("block", blocks(&wide, &[]), vec!["ip-block-no-except"]),
            (
                "block with except",
                blocks(&wide, &narrow),
                vec!["ip-block-with-except"],
            ),
        ]
    }

    fn peers(&mut self) {
        let kinds = self.peer_kinds();
        for way in WAYS {
            let tag = way.tag();
            self.add_one(
                &format!("{tag} nobody named"),
                &[tag, "any-peer"],
                with_peers(way, vec![]),
            );
            for (number, (name, peer, tags)) in kinds.iter().enumerate() {
                let with = [&tags[..], &[tag]].concat();
                self.add_one(
                    &format!("{tag} {name}"),
                    &with,
                    with_peers(way, peer.clone()),
                );
                for (other, more, of_other) in &kinds[number + 1..] {
                    let with = [&tags[..], of_other, &[tag, "multi-peer"]].concat();
                    let both = [&peer[..], more].concat();
                    self.add_one(
                        &format!("{tag} {name} and {other}"),
                        &with,
                        with_peers(way, both),
                    );
                }
            }
        }
    }

    fn ports(&mut self) {
        for way in WAYS {
            let tag = way.tag();
            self.add_one(
                &format!("{tag} none named"),
                &[tag, "any-port-protocol"],
                with_ports(way, vec![]),
            );
            for (name, port, tags) in tagged_ports() {
                let with = [&tags[..], &[tag]].concat();
                self.add_one(&format!("{tag} {name}"), &with, with_ports(way, vec![port]));
            }
            for (name, port, kind) in [
                (
                    "a name of another protocol",
                    named(Tcp, "serve-81-udp"),
                    "named-port",
                ),
                (
                    "a name that nobody serves",
                    named(Tcp, "serve-7981-udp"),
                    "named-port",
                ),
                ("a number that nobody serves", tcp(7981), "numbered-port"),
            ] {
                let with = [tag, "pathological", kind, "tcp"];
                self.add_one(&format!("{tag} {name}"), &with, with_ports(way, vec![port]));
            }
            self.port_pairs(way);
        }
    }

    fn port_pairs(&mut self, way: Way) {
        let unsaid = |port| tagged(None, port);
        for pair in [
            [unsaid(Port::All(Tcp)), unsaid(tcp(80))],
            [unsaid(Port::All(Tcp)), unsaid(named(Tcp, "serve-80-tcp"))],
            [unsaid(Port::All(Tcp)), tagged(Some(Udp), Port::All(Udp))],
            [unsaid(tcp(80)), unsaid(tcp(81))],
            [unsaid(tcp(80)), unsaid(named(Tcp, "serve-81-tcp"))],
            [
                unsaid(tcp(80)),
                tagged(Some(Udp), named(Udp, "serve-81-udp")),
            ],
            [
                tagged(Some(Udp), udp(80)),
                tagged(Some(Udp), named(Udp, "serve-81-udp")),
            ],
        ] {
            let tag = way.tag();
            let [(one, first, tags), (other, second, more)] = pair;
            let with = [&tags[..], &more, &[tag, "multi-port/protocol"]].concat();
            self.add_one(
                &format!("{tag} {one} and {other}"),
                &with,
                with_ports(way, vec![first, second]),
            );
        }
    }

    fn namespaces(&mut self) {
        for way in WAYS {
            let z = namespaces(having([(NAME_LABEL, "z")]));
            let tags = [way.tag(), "namespaces-by-default-label"];
            self.add_one(
                &format!("{} by its name", way.tag()),
                &tags,
                with_peers(way, vec![z]),
            );
        }
    }
}
