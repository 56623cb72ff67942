//! Whose an address is, and whose an attachment.

use super::super::super::object::{Change, Peer, Selector};
use super::super::super::program::{Members, Peers, Verdict};
use super::super::Model;
use super::made::*;

/// All addresses of pods of namespace `one` by the set of a policy that `one/web` runs.
fn members(model: &mut Model) -> Vec<String> {
    let allow = rule(&[Peer::Pods(Selector::default())], &[]);
    model.policy(policy("one/allow", Some(&[allow]), None));
    let [ingress, _] = model.programs("web");
    let Peers::In(id) = ingress.expect("a program").stages[0][0].peers else {
        panic!("a set");
    };
    match model.members(id) {
        Some(Members::Addresses(all)) => all.iter().map(ToString::to_string).collect(),
        other => panic!("{other:?}"),
    }
}

fn web() -> Model {
    let mut model = model();
    model.local(pod("one/web", "", "10.0.0.1"));
    model
}

fn gone(model: &mut Model, name: &str) {
    model.take(Change::Pod(key(name), None));
}

#[test]
fn pods_of_the_nodes_network_are_neither_subjects_nor_peers() {
    let mut model = web();
    let mut host = pod("one/host", "", "192.0.2.9");
    host.host_network = true;
    model.local(host);
    assert_eq!(members(&mut model), ["10.0.0.1"]);
    assert_eq!(model.programs("host"), [None, None]);
    assert_eq!(
        model.fate("192.0.2.9", "10.0.0.1", tcp(80)),
        (None, Some(false))
    );
    // A block means them.
    let allow = rule(&[block("192.0.2.0/24", &[])], &[]);
    model.policy(policy("one/block", Some(&[allow]), None));
    assert_eq!(
        model.fate("192.0.2.9", "10.0.0.1", tcp(80)),
        (None, Some(true))
    );
}

#[test]
fn a_pod_without_an_address_is_no_member_until_its_attachment_has_one() {
    let mut model = web();
    model.pod(pod("one/late", "", ""));
    assert_eq!(members(&mut model), ["10.0.0.1"]);
    model.attach("late", "one/late", Some("late"), "10.0.0.2 fd00::2");
    assert_eq!(members(&mut model), ["10.0.0.1", "10.0.0.2", "fd00::2"]);
    model.detached("late");
    assert_eq!(members(&mut model), ["10.0.0.1"]);
    // One that has ended.
    model.pod(pod("one/late", "", "10.0.0.2"));
    assert_eq!(members(&mut model), ["10.0.0.1", "10.0.0.2"]);
    model.pod(pod("one/late", "", ""));
    assert_eq!(members(&mut model), ["10.0.0.1"]);
}

#[test]
fn an_address_is_the_later_pods_while_that_is_there() {
    let mut model = web();
    let (old, new) = (
        pod("one/old", "", "10.0.0.2"),
        pod("two/new", "", "10.0.0.2"),
    );
    model.pod(old.clone());
    assert_eq!(members(&mut model), ["10.0.0.1", "10.0.0.2"]);
    model.pod(new.clone());
    assert_eq!(members(&mut model), ["10.0.0.1"]);
    // It says the same once more.
    model.pod(pod("one/old", "app=old", "10.0.0.2"));
    assert_eq!(members(&mut model), ["10.0.0.1"]);
    gone(&mut model, "one/old");
    assert_eq!(
        model.fate("10.0.0.2", "10.0.0.1", tcp(80)),
        (Some(true), Some(false))
    );
    model.pod(old);
    assert_eq!(members(&mut model), ["10.0.0.1", "10.0.0.2"], "a new claim");
    gone(&mut model, "one/old");
    let fate = |model: &Model| model.fate("10.0.0.2", "10.0.0.1", tcp(80));
    assert_eq!(fate(&model), (Some(true), Some(false)), "two/new's again");
    gone(&mut model, "two/new");
    assert_eq!(fate(&model).0, None, "nobody's");
}

/// The first list comes by name: which of two came later is not to be seen.
#[test]
fn an_address_of_two_is_the_ones_that_is_left() {
    let mut model = web();
    model.pod(pod("one/a-new", "", "10.0.0.2"));
    model.pod(pod("two/z-old", "", "10.0.0.2"));
    assert_eq!(members(&mut model), ["10.0.0.1"]);
    gone(&mut model, "two/z-old");
    assert_eq!(members(&mut model), ["10.0.0.1", "10.0.0.2"]);
}

#[test]
fn what_an_attachment_proves_goes_over_what_is_said() {
    let mut model = web();
    model.pod(pod("two/other", "", "10.0.0.1"));
    assert_eq!(members(&mut model), ["10.0.0.1"], "it is web's still");
    gone(&mut model, "one/web");
    assert_eq!(
        model.fate("10.0.0.1", "198.51.100.1", tcp(80)).0,
        Some(true),
        "other's"
    );
}

#[test]
fn an_attachment_belongs_to_the_pod_of_its_uid() {
    let mut model = model();
    model.policy(policy("one/deny", Some(&[]), None));
    model.pod(pod("one/web", "", ""));
    model.attach("veth", "one/web", Some("next"), "10.0.0.1");
    model.difference();
    assert_eq!(model.verdict("veth"), Some(&Verdict::Unknown));
    assert_eq!(model.fate("10.0.0.2", "10.0.0.1", tcp(80)), (None, None));
    let mut next = pod("one/web", "", "");
    next.uid = "next".into();
    model.pod(next);
    assert!(model.programs("veth")[0].is_some());
    assert_eq!(model.fate("10.0.0.2", "10.0.0.1", tcp(80)).1, Some(false));
    // The runtime named none: it is this node's pod.
    model.attach("other", "one/web", None, "10.0.0.3");
    assert!(model.programs("other")[0].is_some());
    let mut elsewhere = pod("one/web", "", "");
    elsewhere.node = Some("node-b".into());
    model.pod(elsewhere);
    model.difference();
    assert_eq!(model.verdict("other"), Some(&Verdict::Unknown));
}

#[test]
fn a_pod_is_unknown_until_its_namespace_is_known() {
    let mut model = model();
    model.local(pod("three/web", "", "10.0.0.1"));
    // Whoever it is, nothing is about it.
    assert_eq!(model.programs("web"), [None, None]);
    model.policy(policy("three/deny", Some(&[]), None));
    model.difference();
    assert_eq!(model.verdict("web"), Some(&Verdict::Unknown));
    model.take(Change::Namespace("three".into(), Some(labels(""))));
    assert!(model.programs("web")[0].is_some());
}

#[test]
fn a_pods_own_node_and_itself_always_pass() {
    let mut model = web();
    model.node(super::world::HERE, "", "192.0.2.1");
    model.node("node-b", "", "192.0.2.2");
    model.policy(policy("one/deny", Some(&[]), Some(&[])));
    assert_eq!(model.fate("192.0.2.1", "10.0.0.1", tcp(80)), (None, None));
    assert_eq!(model.fate("10.0.0.1", "192.0.2.1", tcp(80)), (None, None));
    assert_eq!(model.fate("10.0.0.1", "10.0.0.1", tcp(80)), (None, None));
    assert_eq!(
        model.fate("192.0.2.2", "10.0.0.1", tcp(80)),
        (None, Some(false))
    );
}
