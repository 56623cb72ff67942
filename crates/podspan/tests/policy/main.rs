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

mod cases;
mod json;
mod packets;
mod prober;

use std::collections::{BTreeMap, BTreeSet};

use cases::oracle::{FAMILIES, allows};
use cases::{Case, Layout, cnp, cyclonus, netpol};

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
