//! NetworkPolicies: whom they select, what their rules mean.

use super::super::super::object::{Peer, Port, Protocol, Requirement, Selector};
use super::super::super::program::{Decision, Members, Peers, Ports, Program};
use super::made::*;

/// `one/web` is asked; `one/near` and `two/far` send.
fn three() -> super::super::Model {
    let mut model = model();
    model.local(pod("one/web", "app=web", "10.0.0.1 fd00::1"));
    model.pod(pod("one/near", "app=near", "10.0.0.2 fd00::2"));
    model.pod(pod("two/far", "app=far", "10.0.0.3 fd00::3"));
    model
}

fn passes(model: &super::super::Model, from: &str, port: Port) -> bool {
    model.fate(from, "10.0.0.1", port).1 == Some(true)
}

#[test]
fn nobody_is_asked_of_a_pod_that_no_policy_selects() {
    let mut model = three();
    assert_eq!(model.programs("web"), [None, None]);
    model.policy(policy("two/deny", Some(&[]), Some(&[])));
    assert_eq!(model.programs("web"), [None, None]);
    assert_eq!(
        model.fate("10.0.0.2", "10.0.0.1", tcp(80)),
        (Some(true), Some(true))
    );
    assert_eq!(
        model.fate("10.0.0.3", "10.0.0.1", tcp(80)),
        (Some(false), Some(true))
    );
}

#[test]
fn a_policy_isolates_in_the_directions_that_it_is_about() {
    let mut model = three();
    model.policy(policy("one/deny", Some(&[]), None));
    let [ingress, egress] = model.programs("web");
    assert_eq!(egress, None);
    let ingress = ingress.expect("a program");
    assert!(ingress.stages.is_empty());
    assert_eq!(ingress.isolated_by, [key("one/deny")]);
    assert_eq!(
        model.why("10.0.0.3", "10.0.0.1", tcp(80)),
        Decision::Isolated(vec![key("one/deny")])
    );
    // Also what has no ports.
    assert!(!passes(&model, "10.0.0.3", Port::Unknown));
}

#[test]
fn rules_of_all_policies_add_up_and_the_first_is_named() {
    let mut model = three();
    let near = Peer::Pods(selector("app=near"));
    model.policy(policy(
        "one/z",
        Some(&[rule(std::slice::from_ref(&near), &[tcp(80)])]),
        None,
    ));
    model.policy(policy(
        "one/a",
        Some(&[rule(&[], &[tcp(443)]), rule(&[near], &[tcp(80)])]),
        None,
    ));
    assert_eq!(
        model.why("10.0.0.2", "10.0.0.1", tcp(80)),
        met(true, "one/a", 1)
    );
    assert_eq!(
        model.why("10.0.0.3", "10.0.0.1", tcp(443)),
        met(true, "one/a", 0)
    );
    assert_eq!(
        model.why("10.0.0.3", "10.0.0.1", tcp(80)),
        Decision::Isolated(vec![key("one/a"), key("one/z")])
    );
    let [ingress, _] = model.programs("web");
    let steps = &ingress.expect("a program").stages[0];
    assert_eq!(
        steps.len(),
        2,
        "who says the same is not asked twice: {steps:?}"
    );
}

#[test]
fn pods_are_of_the_policys_namespace_or_of_selected_ones() {
    let mut model = three();
    let only = |peer: Peer| policy("one/allow", Some(&[rule(&[peer], &[])]), None);
    model.policy(only(Peer::Pods(Selector::default())));
    assert!(passes(&model, "10.0.0.2", tcp(80)) && !passes(&model, "10.0.0.3", tcp(80)));
    model.policy(only(Peer::PodsOf(
        selector("team=two"),
        Selector::default(),
    )));
    assert!(!passes(&model, "10.0.0.2", tcp(80)) && passes(&model, "10.0.0.3", tcp(80)));
    // Both in one element must hold.
    model.policy(only(Peer::PodsOf(
        selector("team=two"),
        selector("app=near"),
    )));
    assert!(!passes(&model, "10.0.0.2", tcp(80)) && !passes(&model, "10.0.0.3", tcp(80)));
    model.policy(only(Peer::PodsOf(Selector::default(), Selector::default())));
    assert!(passes(&model, "10.0.0.2", tcp(80)) && passes(&model, "fd00::3", Port::Unknown));
    // Nobody outside of the cluster is one of its pods.
    assert!(!passes(&model, "198.51.100.1", tcp(80)));
}

#[test]
fn peers_of_one_rule_are_one_set_of_pods_and_one_of_blocks() {
    let mut model = three();
    let peers = [
        Peer::Pods(selector("app=near")),
        block("198.51.100.0/24", &["198.51.100.128/25"]),
        Peer::PodsOf(selector("team=two"), Selector::default()),
        block("198.51.100.192/26", &[]),
    ];
    model.policy(policy("one/allow", Some(&[rule(&peers, &[])]), None));
    let [ingress, _] = model.programs("web");
    let ingress: Program = ingress.expect("a program");
    let [pods, blocks] = &ingress.stages[0][..] else {
        panic!("{ingress:?}");
    };
    let (Peers::In(pods), Peers::In(blocks)) = (pods.peers, blocks.peers) else {
        panic!("{ingress:?}");
    };
    let four = ["10.0.0.2", "fd00::2", "10.0.0.3", "fd00::3"].map(ip);
    assert_eq!(model.members(pods), Some(&Members::Addresses(four.into())));
    // What one block excepts another allows.
    let ranges = vec![
        (ip("198.51.100.0"), ip("198.51.100.127")),
        (ip("198.51.100.192"), ip("198.51.100.255")),
    ];
    assert_eq!(model.members(blocks), Some(&Members::Ranges(ranges)));
}

#[test]
fn blocks_are_ranges_whatever_is_excepted() {
    let mut model = three();
    let of = |peer| policy("one/allow", Some(&[rule(&[peer], &[])]), None);
    model.policy(of(block(
        "0.0.0.0/0",
        &["10.0.0.2/32", "255.255.255.255/32", "fd00::/8"],
    )));
    assert!(!passes(&model, "10.0.0.2", tcp(80)) && passes(&model, "10.0.0.3", tcp(80)));
    assert!(!passes(&model, "255.255.255.255", tcp(80)) && !passes(&model, "fd00::3", tcp(80)));
    model.policy(of(block("::/0", &["fd00::2/127"])));
    assert!(!passes(&model, "fd00::3", tcp(80)) && passes(&model, "fd00::4", tcp(80)));
    assert!(!passes(&model, "10.0.0.3", tcp(80)));
    // A block of which nothing is left, with bits of the host.
    model.policy(of(block("10.0.0.77/24", &["10.0.0.0/25", "10.0.0.128/25"])));
    assert!(!passes(&model, "10.0.0.3", tcp(80)));
    assert_eq!(
        model.programs("web")[0].as_ref().map(|it| it.stages.len()),
        Some(0)
    );
}

#[test]
fn ports_are_ranges_that_do_not_touch() {
    let mut model = three();
    let ports = [
        Port::Range(TCP, 90, 100),
        tcp(80),
        Port::Range(TCP, 81, 85),
        Port::Range(TCP, 95, 110),
        Port::All(UDP),
        // The last is before the first: no port.
        Port::Range(Protocol::Sctp, 9, 8),
    ];
    model.policy(policy("one/allow", Some(&[rule(&[], &ports)]), None));
    let [ingress, _] = model.programs("web");
    let step = &ingress.expect("a program").stages[0][0];
    assert_eq!(step.peers, Peers::Anybody);
    let merged = vec![(TCP, 80, 85), (TCP, 90, 110), (UDP, 0, 65535)];
    assert_eq!(step.ports, Ports::Of(merged));
    assert!(passes(&model, "10.0.0.2", tcp(110)) && !passes(&model, "10.0.0.2", tcp(111)));
    assert!(
        !passes(&model, "10.0.0.2", Port::Unknown),
        "nothing is said of what has no ports"
    );
}

#[test]
fn a_name_in_ingress_is_what_the_receiver_calls_so() {
    let mut model = model();
    let mut web = pod("one/web", "", "10.0.0.1");
    web.ports = [named("http", TCP, 80), named("http", UDP, 81)].into();
    let mut other = pod("one/other", "", "10.0.0.2");
    other.ports = [named("http", TCP, 8080)].into();
    model.local(web);
    model.local(other);
    model.local(pod("one/none", "", "10.0.0.4"));
    let ports = [Port::Named(Some(TCP), "http".into()), tcp(443)];
    model.policy(policy("one/allow", Some(&[rule(&[], &ports)]), None));
    let of = |model: &mut super::super::Model, name| {
        let [ingress, _] = model.programs(name);
        ingress.expect("a program").stages[0][0].ports.clone()
    };
    assert_eq!(
        of(&mut model, "web"),
        Ports::Of(vec![(TCP, 80, 80), (TCP, 443, 443)])
    );
    assert_eq!(
        of(&mut model, "other"),
        Ports::Of(vec![(TCP, 443, 443), (TCP, 8080, 8080)])
    );
    assert_eq!(of(&mut model, "none"), Ports::Of(vec![(TCP, 443, 443)]));
    model.policy(policy("one/allow", Some(&[rule(&[], &ports[..1])]), None));
    let [ingress, _] = model.programs("none");
    assert!(
        ingress.expect("a program").stages.is_empty(),
        "no port, no step"
    );
}

#[test]
fn a_name_in_egress_is_a_set_of_sockets() {
    let mut model = three();
    let mut far = pod("two/far", "app=far", "10.0.0.3 fd00::3");
    far.ports = [named("http", TCP, 80), named("other", TCP, 81)].into();
    model.pod(far);
    let mut near = pod("one/near", "app=near", "10.0.0.2");
    near.ports = [named("http", TCP, 8080)].into();
    model.pod(near);
    let http = [Port::Named(Some(TCP), "http".into()), tcp(443)];
    let mut sockets = |peers: &[Peer]| {
        model.policy(policy("one/allow", None, Some(&[rule(peers, &http)])));
        let [_, egress] = model.programs("web");
        let steps = egress.expect("a program").stages.remove(0);
        let found = steps.iter().find_map(|step| match step.peers {
            Peers::Socket(id) => Some((id, step.ports.clone())),
            _ => None,
        });
        let (id, ports) = found.expect("a step of sockets");
        assert_eq!(ports, Ports::Any);
        let numeric = steps
            .iter()
            .filter(|step| step.ports == Ports::Of(vec![(TCP, 443, 443)]));
        assert_eq!(numeric.count(), steps.len() - 1);
        match model.members(id) {
            Some(Members::Sockets(sockets)) => sockets.iter().copied().collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        }
    };
    let near = (ip("10.0.0.2"), TCP, 8080);
    let (far, far6) = ((ip("10.0.0.3"), TCP, 80), (ip("fd00::3"), TCP, 80));
    assert_eq!(sockets(&[]), [near, far, far6]);
    assert_eq!(sockets(&[Peer::Pods(Selector::default())]), [near]);
    assert_eq!(sockets(&[block("10.0.0.3/32", &[])]), [far]);
    assert_eq!(
        sockets(&[block("::/0", &[]), Peer::Pods(selector("app=near"))]),
        [near, far6]
    );
    assert_eq!(sockets(&[block("10.0.0.0/8", &["10.0.0.3/32"])]), [near]);
}

#[test]
fn what_is_not_known_allows_nothing() {
    let mut model = three();
    let unknown = Selector([Requirement::Unknown].into());
    for peer in [
        Peer::Unknown,
        Peer::Pods(unknown.clone()),
        Peer::PodsOf(unknown, selector("")),
    ] {
        model.policy(policy("one/allow", Some(&[rule(&[peer], &[])]), None));
        assert!(!passes(&model, "10.0.0.2", tcp(80)));
        assert_eq!(
            model.programs("web")[0].as_ref().map(|it| it.stages.len()),
            Some(0)
        );
    }
    model.policy(policy(
        "one/allow",
        Some(&[rule(&[], &[Port::Unknown])]),
        None,
    ));
    assert!(!passes(&model, "10.0.0.2", tcp(80)));
    model.policy(policy(
        "one/allow",
        Some(&[rule(&[], &[Port::Unknown, tcp(80)])]),
        None,
    ));
    assert!(passes(&model, "10.0.0.2", tcp(80)) && !passes(&model, "10.0.0.2", tcp(81)));
}

#[test]
fn labels_that_change_are_in_force_at_once() {
    let mut model = three();
    let peer = Peer::PodsOf(selector("team=two"), selector("app=far"));
    model.policy(policy("one/allow", Some(&[rule(&[peer], &[])]), None));
    assert!(passes(&model, "10.0.0.3", tcp(80)));
    model.pod(pod("two/far", "app=other", "10.0.0.3"));
    assert!(!passes(&model, "10.0.0.3", tcp(80)));
    model.pod(pod("one/near", "app=far", "10.0.0.2"));
    let change = super::super::super::object::Change::Namespace;
    model.take(change("one".into(), Some(labels("team=two"))));
    assert!(passes(&model, "10.0.0.2", tcp(80)));
}
