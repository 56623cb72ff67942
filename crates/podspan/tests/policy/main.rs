//! The truth tables of NetworkPolicy and ClusterNetworkPolicy, without a cluster: what the suites say of their cases is
//! what the oracle says. And a prober that asks the same questions with packets.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

#[allow(dead_code, reason = "the cases need less than the model")]
#[path = "../../src/policy/object.rs"]
mod object;

mod asked;
mod away;
mod cases;
mod first;
mod flushed;
mod json;
mod packets;
mod prober;
mod wire;

use std::collections::{BTreeMap, BTreeSet};

use cases::oracle::{FAMILIES, allows};
use cases::{Case, Layout, Line, Socket, Step, cnp, cyclonus, netpol, no, yes};
use object::Protocol::{Sctp, Tcp, Udp};

fn every_case() -> Vec<Case> {
    let layout = Layout::two_nodes();
    [
        cyclonus::cases(&layout),
        netpol::cases(&layout),
        cnp::cases(&layout),
    ]
    .concat()
}

/// What the generator of cyclonus counts of itself, and the names in the sources of the other two suites.
#[test]
fn no_case_is_missing() {
    let mut groups = BTreeMap::new();
    for case in every_case() {
        *groups.entry(case.group).or_insert(0) += 1;
    }
    let of_cyclonus = [
        ("action", 6),
        ("conflict", 16),
        ("example", 1),
        ("namespace", 2),
        ("peers", 112),
        ("port/protocol", 70),
        ("rules", 4),
        ("target", 6),
        ("upstream", 13),
    ];
    assert_eq!(
        of_cyclonus.iter().map(|(_, count)| count).sum::<usize>(),
        230
    );
    let others = [("netpol", 42 + 3 + 3), ("cnp", 13 + 11)];
    assert_eq!(groups, of_cyclonus.into_iter().chain(others).collect());
}

/// As the generator tags its cases; a case has the tag above each of its tags, too.
#[test]
fn cases_of_cyclonus_are_tagged() {
    let cases = cyclonus::cases(&Layout::two_nodes());
    for (tag, count) in [
        ("any-peer", 2),
        ("multi-peer", 2 * 45),
        ("ip-block-with-except", 2 * (1 + 9)),
        ("any-port-protocol", 2),
        ("multi-port/protocol", 2 * 7),
        ("end-port", 2 * 3 * 2),
        ("pathological", 2 * 3),
        ("deny-all", 2 + 8 + 3),
        ("allow-all", 2 + 4 + 1),
        ("conflict", 16 + 1),
        ("upstream-e2e", 13),
        ("action", 6 + 1),
        ("target", 6),
        ("peer-ipblock", 2 * (2 + 8 * 2 + 1)),
    ] {
        let tagged = cases.iter().filter(|case| case.tags.contains(tag));
        assert_eq!(tagged.count(), count, "{tag}");
    }
}

#[test]
fn no_two_cases_have_one_name() {
    let mut names = BTreeSet::new();
    for case in every_case() {
        assert!(names.insert(case.name.clone()), "twice: {}", case.name);
    }
}

#[test]
fn what_the_suites_say_is_what_the_api_says() {
    let (mut cases, mut steps, mut said, mut asked, mut denied) = (0, 0, 0, 0, 0);
    for case in every_case() {
        cases += 1;
        let mut number = 0;
        case.walk(|cluster, step| {
            steps += 1;
            number += 1;
            let says_something = !step.said.is_empty();
            let mut lines = step.said.clone();
            for ask in step.asks(cluster) {
                let told = step.says(&ask);
                assert_eq!(
                    told.is_some(),
                    says_something,
                    "{}, step {number}: {ask}",
                    case.name
                );
                lines.retain(|line| !line.is_about(&ask));
                for family in FAMILIES {
                    let allowed = allows(cluster, &ask, family);
                    asked += 1;
                    denied += usize::from(!allowed);
                    let Some(told) = told else { continue };
                    said += 1;
                    assert_eq!(
                        allowed, told,
                        "{}, step {number}: {ask}, {family:?}",
                        case.name
                    );
                }
            }
            assert!(
                lines.is_empty(),
                "{}, step {number}: about nobody: {lines:?}",
                case.name
            );
        });
    }
    println!(
        "{cases} cases, {steps} steps, {asked} questions, {denied} of them denied; of {said} a suite says the answer"
    );
}

/// In all steps of that case everybody reaches everybody, but as the lines say.
#[track_caller]
fn judge(cases: &[Case], name: &str, lines: &[Line]) {
    let case = cases.iter().find(|case| case.name == name);
    let case = case.unwrap_or_else(|| panic!("no case {name}"));
    case.walk(|cluster, step| {
        let by_hand = Step {
            said: [&[yes("*", "*")], lines].concat(),
            ..step.clone()
        };
        for ask in step.asks(cluster) {
            for family in FAMILIES {
                let allowed = allows(cluster, &ask, family);
                assert_eq!(
                    Some(allowed),
                    by_hand.says(&ask),
                    "{name}: {ask}, {family:?}"
                );
            }
        }
    });
}

/// Some generated cases by hand: who reaches whom on which ports, of all that the nine pods serve.
#[test]
fn some_generated_cases_by_hand() {
    let cases = every_case();
    let judge = |name: &str, lines: &[Line]| judge(&cases, name, lines);
    let on = |socket: Socket, line: Line| Line {
        socket: Some(socket),
        ..line
    };
    // What the base policy lets out of x/a, and into it.
    let out: Vec<_> = ["y/a", "y/b", "z/a", "z/b"]
        .into_iter()
        .map(|to| on((Tcp, 80), yes("x/a", to)))
        .collect();
    let friends = ["x/b", "x/c", "y/b", "y/c"];
    let from = |who: &[&'static str], sockets: &[Socket]| {
        let mut lines = [&[no("x/a", "*")], &out[..], &[no("*", "x/a")]].concat();
        for who in who {
            lines.extend(sockets.iter().map(|socket| on(*socket, yes(who, "x/a"))));
        }
        lines
    };
    judge("rules: ingress deny-all", &from(&[], &[]));
    judge(
        "namespace: ingress by its name",
        &from(&["z"], &[(Tcp, 80)]),
    );
    judge(
        "port/protocol: ingress a name of another protocol",
        &from(&[], &[]),
    );
    judge(
        "port/protocol: ingress a name that nobody serves",
        &from(&[], &[]),
    );
    judge(
        "port/protocol: ingress udp serve-81-udp",
        &from(&friends, &[(Udp, 81)]),
    );
    judge(
        "port/protocol: ingress sctp any port",
        &from(&friends, &[(Sctp, 80), (Sctp, 81)]),
    );
    judge(
        "port/protocol: ingress tcp 53 to 80",
        &from(&friends, &[(Tcp, 80)]),
    );
    judge(
        "port/protocol: ingress udp 53 to 84",
        &from(&friends, &[(Udp, 80), (Udp, 81)]),
    );
    judge("peers: ingress pods c here", &from(&["x/c"], &[(Tcp, 80)]));
    judge(
        "peers: ingress pods c of all namespaces",
        &from(&["x/c", "y/c", "z/c"], &[(Tcp, 80)]),
    );
    // Those of node 1, but not those of the same sixteen addresses as z/c.
    judge(
        "peers: ingress block",
        &from(&["x/c", "y/b", "z/a", "z/c"], &[(Tcp, 80)]),
    );
    judge(
        "peers: ingress block with except",
        &from(&["x/c", "y/b"], &[(Tcp, 80)]),
    );
    judge(
        "conflict: egress of x/b: nothing, egress of x/b: all by pod",
        &[],
    );
    judge(
        "conflict: ingress of x/b: none by address",
        &[no("*", "x/b")],
    );
    judge(
        "conflict: egress of x/b: nothing, ingress of y/c: everything",
        &[no("x/b", "*")],
    );
}
