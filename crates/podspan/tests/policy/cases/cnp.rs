//! The conformance suite of ClusterNetworkPolicy v1alpha2 (network-policy-api), with what it says of every step.
//!
//! Most of it is one pattern: of three houses one is let in whatever comes behind, of one a port is closed, and of one only a port is
//! open; rules that change their places show that the first one counts. In the baseline tier there is no Pass.

use super::build::{
    all, around, cluster_policy, cluster_rule, having, labels, namespaces, policy, port, rule,
};
use super::cluster::{HOUSES_NODES, NAME_LABEL, namespace_put};
use super::object::{
    Action, Change, ClusterPeer, ClusterPolicy, ClusterRule, Port, Protocol, Selector, Tier,
};
use super::{Case, Cluster, Layout, Line, Socket, Step, no, yes};

use Action::{Accept, Deny, Pass};
use Protocol::{Sctp, Tcp, Udp};
use Tier::{Admin, Baseline};

/// All cases of the suite.
pub fn cases(layout: &Layout<'_>) -> Vec<Case> {
    let cluster = Cluster::houses(layout);
    let mut cases = Vec::new();
    let mut add = |name: String, steps: Vec<Step>| {
        cases.push(Case {
            name,
            group: "cnp",
            tags: ["cnp"].into(),
            cluster: cluster.clone(),
            steps,
        });
    };
    for tier in [Admin, Baseline] {
        for pattern in patterns() {
            let way = if pattern.ingress { "Ingress" } else { "Egress" };
            let protocol = format!("{:?}", pattern.protocol).to_uppercase();
            add(
                format!("CNP{tier:?}Tier{way}{protocol}"),
                pattern.steps(tier),
            );
        }
        add(format!("CNP{tier:?}TierGress"), gress(tier));
        add(
            format!("CNP{tier:?}TierEgressInlineCIDRPeers"),
            networks(tier, &cluster),
        );
        add(
            format!("CNP{tier:?}TierIngressNamedPort"),
            named_port(tier, true),
        );
        add(
            format!("CNP{tier:?}TierEgressNamedPort"),
            named_port(tier, false),
        );
        add(format!("CNP{tier:?}TierEgressNodePeers"), nodes(tier));
    }
    add("CNPAdminTierIntegration".into(), integration());
    add("CNPAdminTierPriorityField".into(), priority());
    cases
}

/// A namespace by its name.
fn named(house: &str) -> Selector {
    having([(NAME_LABEL, house)])
}

/// What has that house's label.
fn house(house: &str) -> Selector {
    having([("conformance-house", house)])
}

/// All pods of a namespace that is meant by its name.
fn of(house: &str) -> ClusterPeer {
    ClusterPeer::Pods(named(house), all())
}

/// Pods of a house, by labels of the namespace and of the pods.
fn pods_of(name: &str) -> ClusterPeer {
    ClusterPeer::Pods(house(name), house(name))
}

/// A policy of that tier, with the priority that the suite gives one in it.
fn in_tier(tier: Tier, name: &str, priority: u16) -> ClusterPolicy {
    match tier {
        Admin => cluster_policy(name, tier, priority),
        Baseline => cluster_policy("default", tier, 10),
    }
}

/// One is let through whatever comes behind, to one the ports are closed, to one only the ports are open.
fn ordered(
    tier: Tier,
    through: &str,
    closed: (&str, &[Socket]),
    open: (&str, &[Socket]),
) -> Vec<ClusterRule> {
    let on = |sockets: &[Socket]| {
        sockets
            .iter()
            .map(|&(protocol, number)| port(protocol, number))
            .collect()
    };
    let rules = [
        cluster_rule(Accept, [of(through)]).named("accept all"),
        cluster_rule(Deny, [of(through)]).named("deny all"),
        cluster_rule(Pass, [of(through)]).named("pass all"),
        cluster_rule(Deny, [of(closed.0)])
            .ports(on(closed.1))
            .named("deny ports"),
        cluster_rule(Pass, [of(closed.0)])
            .ports(on(closed.1))
            .named("pass ports"),
        cluster_rule(Accept, [of(open.0)])
            .ports(on(open.1))
            .named("accept ports"),
        cluster_rule(Deny, [of(open.0)]).named("deny the rest"),
    ];
    let known = rules
        .into_iter()
        .filter(|rule| tier == Admin || rule.action != Pass);
    known.collect()
}

/// The pattern in one direction with one protocol.
struct Pattern {
    ingress: bool,
    protocol: Protocol,
    /// In the admin tier.
    priority: u16,
    subject: &'static str,
    /// The houses that are let through, have a port closed, and have a port open.
    houses: [&'static str; 3],
    /// The ports that are asked for; the second one is not spoken of.
    ports: [[u16; 2]; 3],
}

fn patterns() -> [Pattern; 6] {
    let make = |ingress, protocol, priority, subject| {
        let houses = match subject {
            "gryffindor" => ["ravenclaw", "slytherin", "hufflepuff"],
            "hufflepuff" => ["ravenclaw", "slytherin", "gryffindor"],
            _ => ["gryffindor", "slytherin", "hufflepuff"],
        };
        let ports = match protocol {
            Tcp if ingress => [[80, 8080], [80, 8080], [80, 8080]],
            Tcp => [[80, 8080], [80, 8080], [8080, 80]],
            Udp => [[53, 5353], [5353, 53], [53, 5353]],
            Sctp => [[9003, 9005], [9003, 9005], [9003, 9005]],
        };
        Pattern {
            ingress,
            protocol,
            priority,
            subject,
            houses,
            ports,
        }
    };
    [
        make(true, Tcp, 3, "gryffindor"),
        make(true, Udp, 4, "hufflepuff"),
        make(true, Sctp, 5, "ravenclaw"),
        make(false, Tcp, 6, "gryffindor"),
        make(false, Udp, 7, "hufflepuff"),
        make(false, Sctp, 8, "ravenclaw"),
    ]
}

/// Somebody of a house, by number.
fn person(house: &str, number: usize) -> &'static str {
    let two = match house {
        "gryffindor" => ["gryffindor/harry-potter-0", "gryffindor/harry-potter-1"],
        "slytherin" => ["slytherin/draco-malfoy-0", "slytherin/draco-malfoy-1"],
        "hufflepuff" => ["hufflepuff/cedric-diggory-0", "hufflepuff/cedric-diggory-1"],
        "ravenclaw" => ["ravenclaw/luna-lovegood-0", "ravenclaw/luna-lovegood-1"],
        _ => ["forbidden-forrest/centaur-0", "forbidden-forrest/centaur-1"],
    };
    two[number]
}

/// A line that says it is reached, or is not.
fn line(from: &'static str, to: &'static str, reaches: bool) -> Line {
    if reaches { yes(from, to) } else { no(from, to) }
}

impl Pattern {
    fn policy(&self, tier: Tier) -> ClusterPolicy {
        let [through, closed, open] = self.houses;
        let port = |index: usize| [(self.protocol, self.ports[index][0])];
        let rules = ordered(tier, through, (closed, &port(1)), (open, &port(2)));
        let policy = in_tier(tier, "ordered", self.priority).subject(named(self.subject), all());
        if self.ingress {
            policy.ingress(rules)
        } else {
            policy.egress(rules)
        }
    }

    /// Numbers 0 and 1 of the asking house ask one of the other house: the first on the first port, the second on the second one.
    fn ask(&self, step: Step, (house, server): (usize, usize), reaches: [bool; 2]) -> Step {
        let peer = self.houses[house];
        let (asking, asked) = if self.ingress {
            (peer, self.subject)
        } else {
            (self.subject, peer)
        };
        let server = person(asked, server);
        (0..2).fold(step, |step, number| {
            let socket = (self.protocol, self.ports[house][number]);
            step.ask(
                socket,
                line(person(asking, number), server, reaches[number]),
            )
        })
    }

    fn steps(&self, tier: Tier) -> Vec<Step> {
        let mut policy = self.policy(tier);
        let mut swapped = |one: usize, other: usize| {
            let rules = if self.ingress {
                &mut policy.ingress
            } else {
                &mut policy.egress
            };
            rules.swap(one, other);
            Step::new([policy.put()])
        };
        let nothing = || Step::new([]);
        let mut steps = vec![
            self.ask(swapped(0, 0), (0, 0), [true, true]),
            self.ask(nothing(), (2, 1), [true, false]),
            self.ask(swapped(0, 1), (0, 1), [false, false]),
            self.ask(nothing(), (1, 0), [false, true]),
        ];
        if tier == Admin {
            steps.push(self.ask(swapped(0, 2), (0, 0), [true, true]));
            steps.push(self.ask(swapped(3, 4), (1, 0), [true, true]));
        }
        steps
    }
}

/// The pattern in both directions with all protocols.
fn gress(tier: Tier) -> Vec<Step> {
    let closed = [(Tcp, 80), (Udp, 53), (Sctp, 9003)];
    let out = [(Tcp, 8080), (Udp, 5353), (Sctp, 9003)];
    let inside = [(Tcp, 80), (Udp, 5353), (Sctp, 9003)];
    let [through, some, few] = ["ravenclaw", "slytherin", "hufflepuff"];
    let mut policy = in_tier(tier, "gress", 15)
        .subject(named("gryffindor"), all())
        .ingress(ordered(tier, through, (some, &closed), (few, &inside)))
        .egress(ordered(tier, through, (some, &closed), (few, &out)));
    let mut swapped = |one: usize, other: usize| {
        policy.ingress.swap(one, other);
        policy.egress.swap(one, other);
        Step::new([policy.put()])
    };
    let everything = [(Tcp, 80), (Udp, 53), (Sctp, 9003)];
    let rest = [(Tcp, 8080), (Udp, 5353), (Sctp, 9005)];
    // The one port is open, the other one not.
    let rest_of = |open: [Socket; 3]| {
        let other = |(protocol, number)| match (protocol, number) {
            (Tcp, 80) => (Tcp, 8080),
            (Tcp, _) => (Tcp, 80),
            (Udp, _) => (Udp, 53),
            (Sctp, _) => (Sctp, 9005),
        };
        open.map(other)
    };
    let both_ways = |step, house, sockets: &[Socket], reaches| {
        let step = asks(step, ["gryffindor", house], sockets, reaches);
        asks(step, [house, "gryffindor"], sockets, reaches)
    };
    let nothing = || Step::new([]);
    let at_ports = asks(nothing(), ["gryffindor", few], &out, true);
    let at_ports = asks(at_ports, ["gryffindor", few], &rest_of(out), false);
    let at_ports = asks(at_ports, [few, "gryffindor"], &inside, true);
    let at_ports = asks(at_ports, [few, "gryffindor"], &rest_of(inside), false);
    let closed_ports = both_ways(nothing(), some, &closed, false);
    let mut steps = vec![
        both_ways(swapped(0, 0), through, &everything, true),
        at_ports,
        both_ways(swapped(0, 1), through, &everything, false),
        both_ways(closed_ports, some, &rest, true),
    ];
    if tier == Admin {
        steps.push(both_ways(swapped(0, 2), through, &everything, true));
        let passed = both_ways(swapped(3, 4), some, &closed, true);
        steps.push(both_ways(passed, some, &rest, true));
    }
    steps
}

/// Both pods of the one house ask both of the other on these ports.
fn asks(step: Step, [from, to]: [&str; 2], sockets: &[Socket], reaches: bool) -> Step {
    let pairs = [(0, 0), (0, 1), (1, 0), (1, 1)];
    sockets.iter().fold(step, |step, socket| {
        pairs.iter().fold(step, |step, (one, other)| {
            step.ask(
                *socket,
                line(person(from, *one), person(to, *other), reaches),
            )
        })
    })
}

/// One port of each protocol, which nobody speaks of.
const ANY: [Socket; 3] = [(Tcp, 80), (Udp, 53), (Sctp, 9003)];

/// `harry-potter-1` asks these on one port of each protocol.
fn harry_asks(step: Step, to: &[&'static str], reaches: bool) -> Step {
    to.iter().fold(step, |step, to| {
        ANY.iter().fold(step, |step, socket| {
            step.ask(*socket, line("gryffindor/harry-potter-1", to, reaches))
        })
    })
}

fn networks(tier: Tier, cluster: &Cluster) -> Vec<Step> {
    let everywhere = ["0.0.0.0/0", "::/0"].map(|net| net.parse().unwrap()).into();
    let policy = in_tier(tier, "networks", 85);
    let mut policy = match tier {
        Admin => policy.subject(house("gryffindor"), house("gryffindor")),
        Baseline => policy.subject(named("gryffindor"), all()),
    };
    policy.egress = vec![
        cluster_rule(Accept, [pods_of("slytherin")]).named("accept slytherin"),
        cluster_rule(Deny, [ClusterPeer::Networks(everywhere)]).named("deny everywhere"),
    ];
    let (draco, luna, cedric) = (
        "slytherin/draco-malfoy-0",
        "ravenclaw/luna-lovegood-0",
        "hufflepuff/cedric-diggory-0",
    );
    let relabelled = |name: &str| namespace_put("slytherin", labels([("conformance-house", name)]));
    let first = harry_asks(Step::new([policy.put()]), &[luna, cedric], false);
    let mut steps = vec![
        harry_asks(first, &[draco], true),
        harry_asks(
            Step::new([relabelled("denied-namespace-label")]),
            &[draco],
            false,
        ),
        harry_asks(Step::new([relabelled("slytherin")]), &[draco], true),
    ];
    let only = |pod: &str| around(&cluster.pod(pod).addresses, (32, 128));
    let two = ClusterPeer::Networks([only(luna), only(cedric)].concat());
    policy
        .egress
        .insert(0, cluster_rule(Accept, [two]).named("accept two addresses"));
    let step = harry_asks(Step::new([policy.put()]), &[luna, cedric], true);
    let others = ["ravenclaw/luna-lovegood-1", "hufflepuff/cedric-diggory-1"];
    steps.push(harry_asks(step, &others, false));
    steps
}

/// The pattern with a name in place of the open port.
fn named_port(tier: Tier, ingress: bool) -> Vec<Step> {
    let protocol = match (tier, ingress) {
        (Admin, true) | (Baseline, false) => Udp,
        _ => Tcp,
    };
    let (name, open, closed) = match protocol {
        Udp => ("dns", 53, 5353),
        _ => ("web", 80, 8080),
    };
    let patterns = patterns();
    let pattern = patterns
        .iter()
        .find(|pattern| pattern.ingress == ingress && pattern.protocol == protocol);
    let pattern = pattern.unwrap();
    let mut policy = pattern.policy(tier);
    let rules = if ingress {
        &mut policy.ingress
    } else {
        &mut policy.egress
    };
    let rule = rules.iter_mut().rev().nth(1).unwrap();
    rule.ports = vec![Port::Named(None, name.into())];
    let peer = pattern.houses[2];
    let [from, to] = if ingress {
        [peer, pattern.subject]
    } else {
        [pattern.subject, peer]
    };
    let step = Step::new([policy.put()]);
    let step = step.ask((protocol, open), yes(person(from, 0), person(to, 1)));
    vec![step.ask((protocol, closed), no(person(from, 1), person(to, 1)))]
}

fn nodes(tier: Tier) -> Vec<Step> {
    let [tcp, other_tcp, udp, other_udp, sctp, _] = HOUSES_NODES;
    let linux = || ClusterPeer::Nodes(having([("kubernetes.io/os", "linux")]));
    let everywhere =
        ClusterPeer::Networks(["0.0.0.0/0", "::/0"].map(|net| net.parse().unwrap()).into());
    let on = |(protocol, low): Socket, (_, high): Socket| vec![Port::Range(protocol, low, high)];
    let policy = in_tier(tier, "nodes", 75);
    let to_centaur = |number, reaches| {
        line(
            person("gryffindor", number),
            "forbidden-forrest/centaur-1",
            reaches,
        )
    };
    if tier == Baseline {
        let policy = policy.subject(named("gryffindor"), all()).egress(vec![
            cluster_rule(Accept, [linux()]).ports(on(tcp, other_tcp)),
            cluster_rule(Deny, [linux(), everywhere]),
        ]);
        let step = Step::new([policy.put()]).ask(tcp, to_centaur(0, true));
        let step = step
            .ask(other_tcp, to_centaur(1, true))
            .ask(other_udp, to_centaur(1, false));
        return vec![step.ask(sctp, to_centaur(1, false))];
    }
    let policy = policy
        .subject(house("gryffindor"), house("gryffindor"))
        .egress(vec![
            cluster_rule(Accept, [linux()]).ports(on(tcp, tcp)),
            cluster_rule(Pass, [linux()]).ports(on(udp, udp)),
            cluster_rule(Deny, [pods_of("slytherin"), linux(), everywhere]),
        ]);
    let step = Step::new([policy.put()])
        .ask(tcp, to_centaur(1, true))
        .ask(udp, to_centaur(1, true));
    let step = step
        .ask(other_tcp, to_centaur(1, false))
        .ask(other_udp, to_centaur(1, false));
    vec![step.ask(sctp, to_centaur(1, false))]
}

/// From slytherin to gryffindor, or the other way: the first on TCP 80, the second on 8080.
fn across(step: Step, [from, to]: [&str; 2], reaches: bool) -> Step {
    let step = step.ask((Tcp, 80), line(person(from, 0), person(to, 0), reaches));
    step.ask((Tcp, 8080), line(person(from, 1), person(to, 0), reaches))
}

const IN: [&str; 2] = ["slytherin", "gryffindor"];
const OUT: [&str; 2] = ["gryffindor", "slytherin"];

fn integration() -> Vec<Step> {
    let deny = |name: &str, tier| {
        let rules = vec![cluster_rule(
            Deny,
            [ClusterPeer::Pods(house("slytherin"), all())],
        )];
        let policy = cluster_policy(name, tier, 10).subject(house("gryffindor"), all());
        policy.ingress(rules.clone()).egress(rules)
    };
    let mut admin = deny("passes-later", Admin);
    let baseline = deny("default", Baseline);
    let slytherin = || rule().peers([namespaces(house("slytherin"))]);
    let allow = policy("gryffindor", "slytherin-both-ways")
        .ingress([slytherin()])
        .egress([slytherin()]);
    let all: [Change; 3] = [admin.put(), allow.clone().put(), baseline.put()];
    let mut steps = vec![
        across(Step::new(all), IN, false),
        across(Step::new([]), OUT, false),
    ];
    admin.ingress[0].action = Pass;
    // What goes to slytherin is denied still.
    steps.push(across(Step::new([admin.put()]), IN, true));
    admin.egress[0].action = Pass;
    steps.push(across(Step::new([admin.put()]), OUT, true));
    steps.push(across(Step::new([allow.gone()]), IN, false));
    steps.push(across(Step::new([]), OUT, false));
    steps
}

fn priority() -> Vec<Step> {
    let make = |name: &str, tier, priority, action| {
        let rules = vec![cluster_rule(action, [pods_of("slytherin")])];
        let policy = cluster_policy(name, tier, priority);
        let policy = policy.subject(house("gryffindor"), house("gryffindor"));
        policy.ingress(rules.clone()).egress(rules)
    };
    let deny = make("denies-at-50", Admin, 50, Deny);
    let mut pass = make("passes-at-60-then-at-40", Admin, 60, Pass);
    let accept = make("default", Baseline, 10, Accept);
    let first = across(Step::new([deny.put(), pass.put(), accept.put()]), IN, false);
    pass.priority = 40;
    let last = across(Step::new([pass.put()]), IN, true);
    vec![
        first,
        across(Step::new([]), OUT, false),
        across(last, OUT, true),
    ]
}
