//! What is given out, shared, taken back, and listed anew.

use super::super::super::object::{Change, Kind, Peer};
use super::super::super::program::{Difference, Members, SetChange, Verdict};
use super::super::{Model, PolicyName};
use super::made::*;
use super::world::{HERE, KINDS};

/// Two pods under policies that mean the same peers.
fn pair() -> Model {
    let mut model = model();
    model.local(pod("one/a", "app=a", "10.0.0.1"));
    model.local(pod("one/b", "app=b", "10.0.0.2"));
    let twice = [Peer::Pods(selector("app=a")), Peer::Pods(selector("app=b"))];
    let back = [twice[1].clone(), twice[0].clone(), twice[1].clone()];
    model.policy(policy("one/x", Some(&[rule(&twice, &[tcp(80)])]), None));
    model.policy(policy("one/y", None, Some(&[rule(&back, &[])])));
    model
}

fn of_verdict(model: &Model, name: &str) -> Verdict {
    model.verdict(name).expect("an attachment").clone()
}

#[test]
fn nothing_is_said_until_every_kind_was_listed() {
    let mut model = Model::new(HERE);
    model.local(pod("one/a", "", "10.0.0.1"));
    for kind in KINDS {
        assert!(!model.is_synced());
        assert!(model.difference().is_empty());
        model.take(Change::Begin(kind));
        model.take(Change::End(kind));
    }
    assert!(model.is_synced());
    // The pod was told before its kind was listed, and did not come: it is gone. No policy can be about it.
    let difference = model.difference();
    let open = Verdict::Known {
        pod: key("one/a"),
        ingress: None,
        egress: None,
    };
    assert_eq!(difference.attachments.get("a"), Some(&open));
    assert!(model.difference().is_empty());
}

#[test]
fn equal_programs_and_sets_are_one() {
    let mut model = pair();
    let difference = model.difference();
    assert_eq!((difference.sets.len(), difference.programs.len()), (1, 2));
    let parts = |name| match of_verdict(&model, name) {
        Verdict::Known {
            ingress, egress, ..
        } => (ingress, egress),
        Verdict::Unknown => panic!("{name} is known"),
    };
    assert_eq!(parts("a"), parts("b"));
}

#[test]
fn a_pods_change_is_a_sets_change() {
    let mut model = pair();
    model.difference();
    model.pod(pod("one/c", "app=a", "10.0.0.3"));
    let Difference {
        sets,
        programs,
        attachments,
    } = model.difference();
    assert!(programs.is_empty() && attachments.is_empty());
    let changes: Vec<_> = sets.into_values().collect();
    let added = Members::Addresses([ip("10.0.0.3")].into());
    let removed = Members::Addresses([].into());
    assert_eq!(changes, [SetChange::Changed { added, removed }]);
    // What comes and goes in between is nothing.
    model.pod(pod("one/d", "app=a", "10.0.0.4"));
    model.take(Change::Pod(key("one/d"), None));
    assert!(model.difference().is_empty());
}

#[test]
fn what_nobody_uses_goes_and_its_number_never_comes_back() {
    let mut model = pair();
    let first = model.difference();
    for name in ["a", "b"] {
        model.detached(name);
    }
    let gone = model.difference();
    assert!(gone.attachments.is_empty(), "their chains went with them");
    assert!(gone.programs.values().all(Option::is_none));
    assert!(gone.sets.values().all(|it| *it == SetChange::Gone));
    assert!(gone.sets.keys().eq(first.sets.keys()));
    assert!(gone.programs.keys().eq(first.programs.keys()));
    model.attach("a", "one/a", Some("a"), "10.0.0.1");
    let again = model.difference();
    assert!(again.sets.keys().min() > first.sets.keys().max());
    assert!(again.programs.keys().min() > first.programs.keys().max());
}

#[test]
fn anew_is_everything_with_its_numbers() {
    let mut model = pair();
    let first = model.difference();
    assert!(model.difference().is_empty());
    model.anew();
    assert_eq!(model.difference(), first);
    assert!(model.difference().is_empty());
    // What went away in between is not named.
    model.take(Change::NetworkPolicy(key("one/x"), None));
    model.anew();
    let second = model.difference();
    assert!(second.programs.values().all(Option::is_some));
    assert_eq!(second.programs.len(), 1);
}

#[test]
fn what_does_not_come_again_is_gone() {
    let mut model = pair();
    model.difference();
    model.take(Change::Begin(Kind::NetworkPolicies));
    assert!(model.difference().is_empty(), "not before the end");
    model.policy(policy("one/y", None, Some(&[])));
    model.take(Change::End(Kind::NetworkPolicies));
    let names: Vec<_> = model.policies().into_iter().map(|it| it.policy).collect();
    assert_eq!(names, [PolicyName::Network(key("one/y"))]);
    model.take(Change::Begin(Kind::Pods));
    model.pod(pod("one/a", "app=a", "10.0.0.1"));
    model.take(Change::End(Kind::Pods));
    model.difference();
    assert_eq!(of_verdict(&model, "b"), Verdict::Unknown);
}

#[test]
fn only_pods_that_a_policy_selects_are_made_anew() {
    let mut model = pair();
    model.difference();
    let mut narrow = policy("one/n", Some(&[]), None);
    narrow.pods = selector("app=a");
    model.policy(narrow);
    let difference = model.difference();
    assert!(difference.attachments.keys().map(|it| &**it).eq(["a"]));
    let summary = model.policies();
    let counts: Vec<_> = summary
        .iter()
        .map(|it| (it.ingress, it.egress, it.pods))
        .collect();
    assert_eq!(
        counts,
        [(true, false, 1), (true, false, 2), (false, true, 2)]
    );
}

#[test]
fn texts_that_nobody_uses_are_forgotten() {
    let mut model = model();
    for number in 0..40_000 {
        let its = format!("number={number}");
        model.pod(pod("one/a", &its, "10.0.0.1"));
    }
    let kept = model.interner.len();
    assert!(kept < 10_000, "{kept}");
}
