//! The cases that cyclonus (now the policy assistant of network-policy-api) generates: a base policy of which one thing at a time is
//! another. It says nothing of what comes out.
//!
//! Blocks of addresses are two peers where it has one: one for each family that pods have.

use super::build::{
    all, around, blocks, having, key, labels, named, namespaces, outside, pods, pods_of, policy,
    port, rule, tcp, udp, within,
};
use super::cluster::{NAME_LABEL, namespace_gone, namespace_put, pod_gone, pod_labels, pod_put};
use super::object::{Change, NetworkPolicy, Peer, Port, Protocol, Rule};
use super::{Case, Cluster, Layout, Probe, Step};

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
    cases: Vec<Case>,
}

/// All cases.
pub fn cases(layout: &Layout<'_>) -> Vec<Case> {
    let mut generator = Generator {
        layout,
        cluster: Cluster::letters(layout),
        cases: Vec::new(),
    };
    generator.targets();
    generator.rules();
    generator.peers();
    generator.ports();
    generator.example();
    generator.actions();
    generator.conflicts();
    generator.namespaces();
    generator.upstream();
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
    fn add(&mut self, group: &'static str, name: &str, tags: &[&'static str], steps: Vec<Step>) {
        let above = tags.iter().map(|tag| above(tag));
        self.cases.push(Case {
            name: format!("{group}: {name}"),
            group,
            tags: tags.iter().copied().chain(above).collect(),
            cluster: self.cluster.clone(),
            steps,
        });
    }

    /// A case of one policy.
    fn add_one(
        &mut self,
        group: &'static str,
        name: &str,
        tags: &[&'static str],
        policy: NetworkPolicy,
    ) {
        self.add(group, name, tags, vec![Step::new([policy.put()])]);
    }

    fn targets(&mut self) {
        for namespace in ["x", "y", "z"] {
            let mut policy = base();
            policy.key = key(&format!("{namespace}/base"));
            self.add_one(
                "target",
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
            self.add_one(
                "target",
                name,
                &["target-pod-selector"],
                base().pods(selector),
            );
        }
    }

    fn rules(&mut self) {
        for way in WAYS {
            for (tag, rules) in [("deny-all", vec![]), ("allow-all", vec![rule()])] {
                let mut policy = base();
                *rules_of(&mut policy, way) = rules;
                self.add_one(
                    "rules",
                    &format!("{} {tag}", way.tag()),
                    &[way.tag(), tag],
                    policy,
                );
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
                "peers",
                &format!("{tag} nobody named"),
                &[tag, "any-peer"],
                with_peers(way, vec![]),
            );
            for (number, (name, peer, tags)) in kinds.iter().enumerate() {
                let with = [&tags[..], &[tag]].concat();
                self.add_one(
                    "peers",
                    &format!("{tag} {name}"),
                    &with,
                    with_peers(way, peer.clone()),
                );
                for (other, more, of_other) in &kinds[number + 1..] {
                    let with = [&tags[..], of_other, &[tag, "multi-peer"]].concat();
                    let both = [&peer[..], more].concat();
                    self.add_one(
                        "peers",
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
                "port/protocol",
                &format!("{tag} none named"),
                &[tag, "any-port-protocol"],
                with_ports(way, vec![]),
            );
            for (name, port, tags) in tagged_ports() {
                let with = [&tags[..], &[tag]].concat();
                self.add_one(
                    "port/protocol",
                    &format!("{tag} {name}"),
                    &with,
                    with_ports(way, vec![port]),
                );
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
                self.add_one(
                    "port/protocol",
                    &format!("{tag} {name}"),
                    &with,
                    with_ports(way, vec![port]),
                );
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
                "port/protocol",
                &format!("{tag} {one} and {other}"),
                &with,
                with_ports(way, vec![first, second]),
            );
        }
    }

    fn example(&mut self) {
        let serve_81 = rule().ports([named(Tcp, "serve-81-tcp")]);
        let w = labels([("ns", "w")]);
        let pod = self.layout.letter("w/a", labels([("pod", "a")]));
        let steps = vec![
            Step::new([policy("x", "allow-all").ingress([serve_81]).put()]),
            Step::new([namespace_put("w", w), pod_put(&pod)]),
            Step::new([pod_gone("w/a")]),
            Step::new([namespace_gone("w")]),
            Step::new([]),
            on_81(Step::new([])),
            // By its name, which is the same one for every pod.
            on_81(Step::new([])),
        ];
        self.add(
            "example",
            "a port by name, while others come and go",
            &["example"],
            steps,
        );
    }

    fn actions(&mut self) {
        let put = || base().put();
        let other = with_ports(Way::Ingress, vec![named(Udp, "serve-81-udp")]);
        self.add(
            "action",
            "a policy comes and goes",
            &["create-policy", "delete-policy"],
            vec![Step::new([put()]), Step::new([base().gone()])],
        );
        self.add(
            "action",
            "a policy changes",
            &["create-policy", "update-policy"],
            vec![Step::new([put()]), Step::new([other.put()])],
        );
        let new = ["a", "b"].map(|name| {
            let pod = self
                .layout
                .letter(&format!("y-2/{name}"), labels([("pod", name)]));
            pod_put(&pod)
        });
        let made = std::iter::once(namespace_put("y-2", labels([("ns", "y")]))).chain(new);
        self.add(
            "action",
            "a namespace comes and goes",
            &["create-namespace", "delete-namespace"],
            vec![
                Step::new([put()]),
                Step::new(made),
                Step::new([pod_gone("y-2/a"), pod_gone("y-2/b"), namespace_gone("y-2")]),
            ],
        );
        let marked = namespaces(having([("new-ns", "qrs")]));
        let y = labels([("ns", "y")]);
        self.add(
            "action",
            "a namespace becomes a peer and is none again",
            &["set-namespace-labels"],
            vec![
                Step::new([with_peers(Way::Ingress, vec![marked]).put()]),
                Step::new([namespace_put("y", labels([("ns", "y"), ("new-ns", "qrs")]))]),
                Step::new([namespace_put("y", y)]),
            ],
        );
        let pod = self.layout.letter("x/d", labels([("pod", "d")]));
        self.add(
            "action",
            "a pod comes and goes",
            &["create-pod", "delete-pod"],
            vec![
                Step::new([put()]),
                Step::new([pod_put(&pod)]),
                Step::new([pod_gone("x/d")]),
            ],
        );
        let marked = pods_of(within("ns", ["y", "z"]), having([("new-label", "abc")]));
        let b = self.cluster.pod("y/b").clone();
        self.add(
            "action",
            "a pod becomes a peer and is none again",
            &["set-pod-labels"],
            vec![
                Step::new([with_peers(Way::Ingress, vec![marked]).put()]),
                Step::new([pod_labels(&b, labels([("pod", "b"), ("new-label", "abc")]))]),
                Step::new([pod_put(&b)]),
            ],
        );
    }

    fn namespaces(&mut self) {
        for way in WAYS {
            let z = namespaces(having([(NAME_LABEL, "z")]));
            let tags = [way.tag(), "namespaces-by-default-label"];
            self.add_one(
                "namespace",
                &format!("{} by its name", way.tag()),
                &tags,
                with_peers(way, vec![z]),
            );
        }
    }
}

fn on_81(mut step: Step) -> Step {
    step.probe = Probe::Ports(vec![(Tcp, 81)]);
    step
}

/// What two policies can say against one another: to or from whom rules are.
#[derive(Clone, Copy)]
enum Says {
    Everything,
    Nothing,
    AllByPod,
    AllByAddress,
    NoneByPod,
    NoneByAddress,
}

impl Says {
    fn rules(self) -> Vec<Rule> {
        let by_block = |texts: [&str; 2]| {
            let all = texts.map(|text| text.parse().unwrap());
            vec![rule().blocks(blocks(&all, &[]))]
        };
        let never = having([("this-will-never-happen", "qrs123")]);
        match self {
            Self::Everything => vec![rule()],
            Self::Nothing => vec![],
            Self::AllByPod => vec![rule().peers([namespaces(all())])],
            Self::AllByAddress => by_block(["0.0.0.0/0", "::/0"]),
            Self::NoneByPod => vec![rule().peers([namespaces(never)])],
            Self::NoneByAddress => by_block(["0.0.0.0/31", "::/127"]),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Everything => "everything",
            Self::Nothing => "nothing",
            Self::AllByPod => "all by pod",
            Self::AllByAddress => "all by address",
            Self::NoneByPod => "none by pod",
            Self::NoneByAddress => "none by address",
        }
    }

    fn tags(self) -> &'static [&'static str] {
        match self {
            Self::Everything => &["allow-all"],
            Self::Nothing => &["deny-all"],
            Self::AllByPod => &["all-pods", "all-namespaces"],
            Self::AllByAddress | Self::NoneByPod | Self::NoneByAddress => &[],
        }
    }
}

impl Generator<'_> {
    fn conflicts(&mut self) {
        use Says::{AllByAddress, AllByPod, Everything, NoneByAddress, NoneByPod, Nothing};
        use Way::{Egress, Ingress};
        let (source, receiver) = (("x", "b"), ("y", "c"));
        self.conflict(&[(source, Egress, Nothing), (receiver, Ingress, Everything)]);
        self.conflict(&[(source, Egress, Everything), (receiver, Ingress, Nothing)]);
        self.conflict(&[(source, Egress, Nothing), (source, Egress, Everything)]);
        self.conflict(&[
            (receiver, Ingress, Nothing),
            (receiver, Ingress, Everything),
        ]);
        // All others are about one pod, in both directions.
        for way in [Egress, Ingress] {
            for (one, other) in [
                (Nothing, AllByPod),
                (Nothing, AllByAddress),
                (NoneByAddress, AllByPod),
                (NoneByPod, AllByAddress),
            ] {
                self.conflict(&[(source, way, one), (source, way, other)]);
            }
            self.conflict(&[(source, way, NoneByAddress)]);
            self.conflict(&[(source, way, NoneByPod)]);
        }
    }

    /// Policies that say these things. Where one is about egress, names may be asked for.
    fn conflict(&mut self, all: &[((&str, &str), Way, Says)]) {
        let (mut tags, mut names, mut changes) =
            (vec!["conflict"], Vec::new(), Vec::<Change>::new());
        for (number, ((namespace, pod), way, says)) in all.iter().enumerate() {
            let mut policy =
                policy(namespace, &format!("conflict-{number}")).pods(having([("pod", pod)]));
            *rules_of(&mut policy, *way) = says.rules();
            changes.push(policy.put());
            tags.push(way.tag());
            tags.extend(says.tags());
            names.push(format!(
                "{} of {namespace}/{pod}: {}",
                way.tag(),
                says.name()
            ));
        }
        if tags.contains(&"egress") {
            changes.push(
                policy("x", "allow-dns")
                    .pods(having([("pod", "b")]))
                    .egress([dns()])
                    .put(),
            );
        }
        self.add(
            "conflict",
            &names.join(", "),
            &tags,
            vec![Step::new(changes)],
        );
    }

    /// What was taken over from Kubernetes's own suite.
    fn upstream(&mut self) {
        let a = |name| policy("x", name).pods(having([("pod", "a")]));
        let deny_in = policy("x", "deny-ingress").ingress([]);
        let deny = policy("x", "deny-all-allow-dns")
            .ingress([])
            .egress([dns()]);
        self.add_upstream(
            "deny ingress",
            &["ingress", "deny-all"],
            vec![Step::new([deny_in.put()])],
        );
        self.add_upstream("deny all", &["deny-all"], vec![Step::new([deny.put()])]);
        let several = rule().peers([pods_of(outside("ns", ["x"]), within("pod", ["b", "c"]))]);
        self.add_upstream(
            "several pods and namespaces",
            &[],
            vec![Step::new([a("several").ingress([several]).put()])],
        );
        let y_on = |number| {
            rule()
                .peers([namespaces(having([("ns", "y")]))])
                .ports([tcp(number)])
        };
        self.add_upstream(
            "policies one on the other",
            &[],
            vec![
                Step::new([a("y-81").ingress([y_on(81)]).put()]),
                Step::new([]),
                Step::new([a("y-80").ingress([y_on(80)]).put()]),
            ],
        );
        let open = || policy("x", "allow-all").ingress([rule()]);
        self.add_upstream(
            "allow all",
            &["allow-all"],
            vec![Step::new([open().put()]), Step::new([])],
        );
        let serve_81 = rule().ports([named(Tcp, "serve-81-tcp")]);
        self.add_upstream(
            "a port by its name",
            &["ingress", "named-port"],
            vec![
                on_81(Step::new([policy("x", "allow-all")
                    .ingress([serve_81])
                    .put()])),
                Step::new([]),
            ],
        );
        self.add_upstream(
            "a policy changes",
            &[],
            vec![
                Step::new([open().put()]),
                Step::new([policy("x", "allow-all").ingress([]).put()]),
            ],
        );
        self.upstream_labels();
        self.upstream_both_ways();
        let deny = policy("x", "deny-all").ingress([]).egress([]);
        self.add_upstream(
            "a policy is gone",
            &["deny-all", "delete-policy"],
            vec![Step::new([deny.clone().put()]), Step::new([deny.gone()])],
        );
    }

    fn add_upstream(&mut self, name: &str, tags: &[&'static str], steps: Vec<Step>) {
        self.add("upstream", name, &[&["upstream-e2e"], tags].concat(), steps);
    }

    fn upstream_labels(&mut self) {
        let a = |name| policy("x", name).pods(having([("pod", "a")]));
        let from_marked = rule().peers([namespaces(having([("ns2", "updated")]))]);
        self.add_upstream(
            "a namespace becomes a peer",
            &[],
            vec![
                Step::new([a("marked").ingress([from_marked]).put()]),
                Step::new([namespace_put(
                    "y",
                    labels([("ns", "y"), ("ns2", "updated")]),
                )]),
            ],
        );
        let marked = [("pod", "b"), ("pod2", "updated")];
        let from_marked = rule().peers([pods(having(marked))]);
        let b = pod_labels(self.cluster.pod("x/b"), labels(marked));
        self.add_upstream(
            "a pod becomes a peer",
            &[],
            vec![
                Step::new([a("marked").ingress([from_marked]).put()]),
                Step::new([b]),
            ],
        );
        let isolated = [("target", "isolated")];
        let closed = policy("x", "isolated").pods(having(isolated)).ingress([]);
        let a = pod_labels(self.cluster.pod("x/a"), labels(isolated));
        self.add_upstream(
            "a pod becomes isolated",
            &[],
            vec![Step::new([closed.put()]), Step::new([a])],
        );
    }

    fn upstream_both_ways(&mut self) {
        let a = || having([("pod", "a")]);
        let from_b = rule().peers([pods(having([("pod", "b")]))]);
        let both = policy("x", "both").pods(a()).ingress([from_b]);
        let both = both.egress([rule().ports([tcp(80), udp(53)])]);
        self.add_upstream(
            "both ways",
            &[],
            vec![Step::new([both.put()]), Step::new([])],
        );
        let ns = |name| having([("ns", name)]);
        let to_a_of_y = rule().peers([pods_of(ns("y"), a())]);
        let client = policy("x", "to-a-of-y").pods(a());
        let client = client.egress([to_a_of_y, rule().ports([udp(53)])]);
        let server = |pod| {
            let from_a_of_x = rule().peers([pods_of(ns("x"), a())]);
            let policy = policy("y", &format!("{pod}-from-a-of-x")).pods(having([("pod", pod)]));
            policy.ingress([from_a_of_x]).put()
        };
        let steps = vec![Step::new([client.put(), server("a"), server("b")])];
        self.add_upstream(
            "the client denies what the server allows",
            &["conflict"],
            steps,
        );
    }
}
