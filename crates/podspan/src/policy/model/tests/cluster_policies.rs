//! ClusterNetworkPolicies: tiers, order, and what is not known.

use super::super::super::object::{
    Action, ClusterPeer, ClusterRule, Port, Requirement, Selector, Tier,
};
use super::super::super::program::Direction;
use super::super::Model;
use super::made::*;

const WEB: &str = "10.0.0.1";
const FAR: &str = "10.0.0.3";

fn two() -> Model {
    let mut model = model();
    model.local(pod("one/web", "app=web", WEB));
    model.pod(pod("two/far", "app=far", FAR));
    model
}

/// Whether web may be sent that by far.
fn passes(model: &Model, port: Port) -> bool {
    model.fate(FAR, WEB, port).1 == Some(true)
}

fn admin(model: &mut Model, rule: ClusterRule) {
    model.cluster_policy(cluster_policy("admin", Tier::Admin, &[rule]));
}

#[test]
fn the_tiers_decide_one_after_the_other() {
    let mut model = two();
    let deny = cluster_rule(Action::Deny, &[all_pods()], &[]);
    model.cluster_policy(cluster_policy(
        "base",
        Tier::Baseline,
        std::slice::from_ref(&deny),
    ));
    assert!(!passes(&model, tcp(80)));
    // Who is selected by a NetworkPolicy is not asked by the Baseline tier.
    model.policy(policy("one/allow", Some(&[rule(&[], &[tcp(80)])]), None));
    assert!(passes(&model, tcp(80)) && !passes(&model, tcp(81)));
    admin(
        &mut model,
        cluster_rule(Action::Accept, &[all_pods()], &[tcp(81)]),
    );
    assert!(passes(&model, tcp(81)));
    admin(&mut model, deny.clone());
    assert!(!passes(&model, tcp(80)));
    let pass = cluster_rule(Action::Pass, &[all_pods()], &[tcp(80)]);
    model.cluster_policy(cluster_policy("admin", Tier::Admin, &[pass, deny]));
    assert!(passes(&model, tcp(80)) && !passes(&model, tcp(81)));
}

#[test]
fn the_lower_priority_goes_first_and_of_equal_ones_the_name() {
    let mut model = two();
    let mut put = |name: &str, priority, action| {
        let rule = cluster_rule(action, &[all_pods()], &[]);
        let mut policy = cluster_policy(name, Tier::Admin, &[rule]);
        policy.priority = priority;
        model.cluster_policy(policy);
        passes(&model, tcp(80))
    };
    assert!(!put("m", 10, Action::Deny));
    assert!(!put("z", 10, Action::Accept));
    assert!(put("a", 10, Action::Accept));
    assert!(!put("z", 9, Action::Deny));
    assert!(put("z", 11, Action::Deny), "it moved");
}

#[test]
fn subjects_are_pods_of_selected_namespaces() {
    let mut model = two();
    let deny = cluster_rule(Action::Deny, &[all_pods()], &[]);
    let mut policy = cluster_policy("admin", Tier::Admin, &[deny]);
    policy.subject = (selector("team=one"), selector("app=web"));
    model.cluster_policy(policy.clone());
    assert!(!passes(&model, tcp(80)));
    assert_eq!(model.fate(WEB, FAR, tcp(80)).1, Some(true));
    policy.subject.0 = selector("team=two");
    model.cluster_policy(policy);
    assert!(passes(&model, tcp(80)));
    assert_eq!(model.programs("web"), [None, None]);
}

#[test]
fn nodes_and_networks_are_peers_of_egress() {
    let mut model = two();
    model.node("node-b", "zone=b", "192.0.2.2");
    let mut policy = cluster_policy("admin", Tier::Admin, &[]);
    let nodes = ClusterPeer::Nodes(selector("zone=b"));
    let networks = ClusterPeer::Networks(vec!["198.51.100.0/24".parse().expect("a block")]);
    policy.egress = vec![cluster_rule(Action::Deny, &[nodes, networks], &[])];
    model.cluster_policy(policy);
    let egress = |model: &Model, to| model.fate(WEB, to, tcp(80)).0;
    assert_eq!(egress(&model, "192.0.2.2"), Some(false));
    assert_eq!(egress(&model, "198.51.100.9"), Some(false));
    assert_eq!(egress(&model, FAR), Some(true));
    assert!(model.programs("web")[1].is_some());
    model.node("node-b", "zone=a", "192.0.2.2");
    assert_eq!(egress(&model, "192.0.2.2"), Some(true));
}

#[test]
fn a_peer_that_is_not_known_denies_everything_and_accepts_nothing() {
    let unknown = Selector([Requirement::Unknown].into());
    let peers = [
        ClusterPeer::Unknown,
        ClusterPeer::Pods(unknown.clone(), Selector::default()),
        ClusterPeer::Nodes(unknown),
        ClusterPeer::Networks(Vec::new()),
    ];
    for peer in peers {
        let mut model = two();
        let with = [peer, all_pods()];
        admin(&mut model, cluster_rule(Action::Accept, &with, &[]));
        assert_eq!(model.programs("web"), [None, None]);
        for action in [Action::Deny, Action::Pass] {
            admin(&mut model, cluster_rule(action, &with, &[tcp(80)]));
            assert!(!passes(&model, tcp(81)) && !passes(&model, Port::Unknown));
            assert_eq!(model.fate("198.51.100.1", WEB, tcp(80)).1, Some(false));
        }
    }
}

#[test]
fn a_port_that_is_not_known_is_any_of_what_denies_and_none_of_what_accepts() {
    let mut model = two();
    let far = [ClusterPeer::Pods(selector("team=two"), Selector::default())];
    for action in [Action::Deny, Action::Pass] {
        admin(&mut model, cluster_rule(action, &far, &[Port::Unknown]));
        assert!(!passes(&model, tcp(81)));
        assert_eq!(model.fate("198.51.100.1", WEB, tcp(80)).1, Some(true));
    }
    model.policy(policy("one/deny", Some(&[]), None));
    admin(
        &mut model,
        cluster_rule(Action::Accept, &far, &[Port::Unknown, tcp(80)]),
    );
    assert!(passes(&model, tcp(80)) && !passes(&model, tcp(81)));
}

#[test]
fn a_name_is_of_any_protocol() {
    let mut model = two();
    let mut web = pod("one/web", "", WEB);
    web.ports = [named("dns", TCP, 53), named("dns", UDP, 5353)].into();
    model.local(web);
    let dns = Port::Named(None, "dns".into());
    admin(
        &mut model,
        cluster_rule(Action::Deny, &[all_pods()], &[dns]),
    );
    assert!(!passes(&model, tcp(53)) && !passes(&model, Port::Range(UDP, 5353, 5353)));
    assert!(passes(&model, Port::Range(UDP, 53, 53)));
    let [ingress, _] = model.programs("web");
    assert_eq!(ingress.expect("a program").direction, Direction::Ingress);
}
