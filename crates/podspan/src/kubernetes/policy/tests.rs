use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::server::Server;
use super::super::{Follower, News};
use super::*;
use crate::events;

mod memory;

const NODES: &str = "/api/v1/nodes";
const KINDS: [Kind; 5] = [
    Kind::Namespaces,
    Kind::Pods,
    Kind::Nodes,
    Kind::NetworkPolicies,
    Kind::ClusterPolicies,
];

fn all_paths() -> [&'static str; 5] {
    [
        NODES,
        NAMESPACES.path,
        PODS.path,
        NETWORK_POLICIES.path,
        CLUSTER_POLICIES.path,
    ]
}

/// Who takes the changes, and keeps of them what the contract says.
struct Taker {
    changes: Changes,
    /// How many were sent: each wakes.
    sent: Arc<AtomicUsize>,
    follower: Follower,
    objects: BTreeMap<(Kind, String), Change>,
    /// Of a list that has begun, what came of it.
    listing: BTreeMap<Kind, BTreeSet<String>>,
    begun: BTreeMap<Kind, usize>,
    ended: BTreeMap<Kind, usize>,
    problems: BTreeMap<About, String>,
    /// All that was ever told.
    told: Vec<String>,
    /// The registry's.
    nodes: BTreeSet<String>,
    _events: std::sync::mpsc::Receiver<events::Event>,
}

impl Taker {
    fn follow(server: &Server) -> Self {
        let (events, receiver) = std::sync::mpsc::sync_channel(16);
        let sent = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&sent);
        let wake = move || {
            count.fetch_add(1, Ordering::SeqCst);
        };
        let (mut sink, changes) = channel(wake);
        sink.absent = Duration::from_millis(100);
        let follower = super::super::follow(&server.config(), &events, Some(sink)).unwrap();
        Self {
            changes,
            sent,
            follower,
            objects: BTreeMap::new(),
            listing: BTreeMap::new(),
            begun: BTreeMap::new(),
            ended: BTreeMap::new(),
            problems: BTreeMap::new(),
            told: Vec::new(),
            nodes: BTreeSet::new(),
            _events: receiver,
        }
    }

    fn take(&mut self, change: Change) {
        let (kind, gone) = match &change {
            Change::Begin(kind) => {
                self.listing.insert(*kind, BTreeSet::new());
                *self.begun.entry(*kind).or_default() += 1;
                return;
            }
            Change::End(kind) => {
                let came = self.listing.remove(kind).unwrap();
                self.objects
                    .retain(|(of, name), _| of != kind || came.contains(name));
                *self.ended.entry(*kind).or_default() += 1;
                return;
            }
            Change::Namespace(_, it) => (Kind::Namespaces, it.is_none()),
            Change::Pod(_, it) => (Kind::Pods, it.is_none()),
            Change::Node(_, it) => (Kind::Nodes, it.is_none()),
            Change::NetworkPolicy(_, it) => (Kind::NetworkPolicies, it.is_none()),
            Change::ClusterPolicy(_, it) => (Kind::ClusterPolicies, it.is_none()),
        };
        let (_, name) = name(&change).unwrap();
        assert!(
            self.begun.contains_key(&kind),
            "before its list: {change:?}"
        );
        if let Some(listing) = self.listing.get_mut(&kind) {
            if gone {
                listing.remove(&name);
            } else {
                listing.insert(name.clone());
            }
        }
        if gone {
            self.objects.remove(&(kind, name));
        } else {
            self.objects.insert((kind, name), change);
        }
    }

    fn hear(&mut self) {
        for news in self.follower.news().collect::<Vec<_>>() {
            match news {
                News::All(nodes) => {
                    self.nodes = nodes.iter().map(|node| node.name.clone()).collect();
                }
                News::Is(node) => drop(self.nodes.insert(node.name.clone())),
                News::Gone(name) => drop(self.nodes.remove(&name)),
                News::Problem(about, Some(text)) => {
                    self.told.push(text.clone());
                    self.problems.insert(about, text);
                }
                News::Problem(about, None) => drop(self.problems.remove(&about)),
            }
        }
    }

    fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let begin = Instant::now();
        while !is_so(self) {
            assert!(
                begin.elapsed() < Duration::from_secs(30),
                "never {what}: {:?} {:?} {:?}",
                self.names(),
                self.ended,
                self.told
            );
            if let Ok(change) = self.changes.recv_timeout(Duration::from_millis(20)) {
                self.take(change);
            }
            self.hear();
        }
    }

    fn until_synced(&mut self) {
        self.until("synced", |taker| {
            KINDS.iter().all(|kind| taker.ended.contains_key(kind))
        });
    }

    fn names(&self) -> Vec<&str> {
        self.objects.keys().map(|(_, name)| name.as_str()).collect()
    }

    fn has(&self, kind: Kind, name: &str) -> bool {
        self.objects.contains_key(&(kind, name.to_owned()))
    }
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"namespace": "a", "name": name, "uid": format!("u-{name}")}})
}

fn of_name(name: &str) -> Value {
    json!({"metadata": {"name": name}})
}

fn network_policy(name: &str) -> Value {
    json!({"metadata": {"namespace": "a", "name": name}, "spec": {"podSelector": {}}})
}

fn cluster_policy(name: &str) -> Value {
    let spec = json!({"tier": "Admin", "priority": 5, "subject": {"namespaces": {}}});
    json!({"metadata": {"name": name}, "spec": spec})
}

fn one_of_each() -> Server {
    let server = Server::start(&all_paths());
    server.set(NODES, of_name("n1"));
    server.set(NAMESPACES.path, of_name("a"));
    server.set(PODS.path, pod("p1"));
    server.set(NETWORK_POLICIES.path, network_policy("np"));
    server.set(CLUSTER_POLICIES.path, cluster_policy("cnp"));
    server
}

#[test]
fn all_kinds_are_listed_and_followed_and_nodes_go_to_the_registry_too() {
    let server = one_of_each();
    let mut taker = Taker::follow(&server);
    taker.until_synced();
    assert_eq!(taker.names(), ["a", "a/p1", "n1", "a/np", "cnp"]);
    taker.until("in the registry", |taker| taker.nodes.len() == 1);

    server.set(
        NODES,
        json!({"metadata": {"name": "n1", "labels": {"zone": "x"}}, "status": {"addresses": [
            {"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "192.0.2.1"},
            {"type": "InternalIP", "address": "192.0.2.2"}, {"type": "ExternalIP", "address": "203.0.113.1"}]}}),
    );
    server.set(PODS.path, pod("p2"));
    server.delete(PODS.path, "a/p1");
    server.delete(NETWORK_POLICIES.path, "a/np");
    server.delete(CLUSTER_POLICIES.path, "cnp");
    server.set(
        NAMESPACES.path,
        json!({"metadata": {"name": "b", "labels": {"k": "v"}}}),
    );
    taker.until("changed", |taker| {
        taker.names() == ["a", "b", "a/p2", "n1"]
            && taker.objects.values().any(|change| {
                matches!(change, Change::Node(_, Some(node))
                    if node.labels.get("zone") == Some("x") && node.addresses.len() == 3)
            })
    });
    let of = |name: &str| taker.objects[&(Kind::Namespaces, name.to_owned())].clone();
    let Change::Namespace(_, Some(labels)) = of("b") else {
        panic!("{:?}", of("b"))
    };
    assert_eq!(labels.get("k"), Some("v"));

    server.delete(NODES, "n1");
    taker.until("gone", |taker| taker.names() == ["a", "b", "a/p2"]);
    taker.until("gone from the registry", |taker| taker.nodes.is_empty());
    assert!(taker.told.is_empty(), "{:?}", taker.told);
    assert!(KINDS.iter().all(|kind| taker.begun[kind] == 1));
    // One request a kind, and no second watch of the Nodes for policy.
    assert_eq!(server.requests().len(), 5, "{:?}", server.requests());
}

#[test]
fn what_is_no_news_of_a_node_is_not_passed_on_to_policy() {
    let server = one_of_each();
    let mut taker = Taker::follow(&server);
    taker.until_synced();
    let mut beaten = of_name("n1");
    for beat in 0..20 {
        beaten["status"] = json!({"conditions": [{"type": "Ready", "status": beat.to_string()}]});
        server.set(NODES, beaten.clone());
    }
    server.set(NODES, of_name("n2"));
    let mut came = Vec::new();
    let is_last = |change: &Change| name(change).is_some_and(|(_, name)| name == "n2");
    while !came.last().is_some_and(is_last) {
        came.push(taker.changes.recv_timeout(Duration::from_secs(30)).unwrap());
    }
    assert_eq!(came.len(), 1, "{came:?}");
}

#[test]
fn a_server_that_streams_no_lists_is_asked_for_pages() {
    let server = one_of_each();
    server.be_old();
    (10..259).for_each(|n| server.set(PODS.path, pod(&format!("p{n}"))));
    let mut taker = Taker::follow(&server);
    taker.until_synced();
    assert_eq!(taker.objects.len(), 4 + 250);
    taker.until("in the registry", |taker| taker.nodes.len() == 1);
    let is_page = |request: &&String| request.starts_with(PODS.path) && request.contains("limit=");
    let pages = server.requests().iter().filter(is_page).count();
    assert_eq!(pages, 3);
    server.delete(PODS.path, "a/p1");
    taker.until("gone", |taker| taker.objects.len() == 4 + 249);
    assert!(KINDS.iter().all(|kind| taker.ended[kind] == 1));
    assert!(taker.told.is_empty(), "{:?}", taker.told);
}

#[test]
fn a_watch_that_ends_goes_on_where_it_was() {
    let server = one_of_each();
    let mut taker = Taker::follow(&server);
    taker.until_synced();
    for n in 0..2 {
        server.cut();
        server.set(PODS.path, pod(&format!("new{n}")));
        server.set(NODES, of_name(&format!("new{n}")));
        taker.until("new", |taker| {
            let name = format!("new{n}");
            taker.has(Kind::Pods, &format!("a/{name}")) && taker.has(Kind::Nodes, &name)
        });
    }
    assert!(KINDS.iter().all(|kind| taker.begun[kind] == 1));
    assert!(taker.told.is_empty(), "{:?}", taker.told);
}

#[test]
fn a_version_that_is_forgotten_lists_again_and_what_is_gone_goes() {
    let mut server = one_of_each();
    let mut taker = Taker::follow(&server);
    taker.until_synced();
    server.kill();
    server.delete(PODS.path, "a/p1");
    server.delete(NODES, "n1");
    server.set(PODS.path, pod("p2"));
    server.forget();
    server.run();
    taker.until("listed again", |taker| {
        KINDS.iter().all(|kind| taker.ended[kind] == 2)
    });
    assert_eq!(taker.names(), ["a", "a/p2", "a/np", "cnp"]);
    taker.until("gone from the registry", |taker| taker.nodes.is_empty());
}

#[test]
fn a_list_that_breaks_off_begins_again_and_takes_nothing_away() {
    let server = one_of_each();
    (2..6).for_each(|n| server.set(PODS.path, pod(&format!("p{n}"))));
    let mut taker = Taker::follow(&server);
    taker.until_synced();
    server.break_list(PODS.path, 2);
    server.delete(PODS.path, "a/p4");
    server.forget();
    taker.until("listed again", |taker| taker.ended[&Kind::Pods] == 2);
    assert_eq!(taker.begun[&Kind::Pods], 3);
    let pods = |taker: &Taker| {
        let pods = taker.objects.keys().filter(|(kind, _)| *kind == Kind::Pods);
        pods.count()
    };
    assert_eq!(pods(&taker), 4);
}

#[test]
fn a_kind_that_is_not_there_has_no_objects_until_it_comes_and_none_when_it_is_gone() {
    let server = one_of_each();
    server.remove_kind(CLUSTER_POLICIES.path);
    let mut taker = Taker::follow(&server);
    taker.until_synced();
    let asked = |server: &Server| {
        let requests = server.requests();
        let asked = requests
            .iter()
            .filter(|request| request.starts_with(CLUSTER_POLICIES.path));
        asked.count()
    };
    taker.until("asked again", |_| asked(&server) > 3);
    // It was told once that there are none.
    assert_eq!(taker.ended[&Kind::ClusterPolicies], 1);

    server.add_kind(CLUSTER_POLICIES.path);
    server.set(CLUSTER_POLICIES.path, cluster_policy("late"));
    taker.until("there", |taker| taker.has(Kind::ClusterPolicies, "late"));

    // Away for a moment, as with a server that starts: nothing is taken away.
    let before = asked(&server);
    server.remove_kind(CLUSTER_POLICIES.path);
    taker.until("asked again", |_| asked(&server) > before + 1);
    assert!(taker.has(Kind::ClusterPolicies, "late"));
    taker.until("gone", |taker| !taker.has(Kind::ClusterPolicies, "late"));

    server.add_kind(CLUSTER_POLICIES.path);
    server.set(CLUSTER_POLICIES.path, cluster_policy("again"));
    taker.until("back", |taker| taker.has(Kind::ClusterPolicies, "again"));
    assert!(taker.told.is_empty(), "{:?}", taker.told);
    // The other watches did not mind.
    assert!(
        KINDS[..4].iter().all(|kind| taker.begun[kind] == 1),
        "{:?}",
        taker.begun
    );
}

#[test]
fn a_server_that_is_away_is_one_problem_and_all_is_caught_up() {
    let mut server = one_of_each();
    let mut taker = Taker::follow(&server);
    taker.until_synced();
    server.kill();
    taker.until("told", |taker| !taker.problems.is_empty());
    // Some more attempts of all kinds.
    let begin = Instant::now();
    taker.until("tried", |_| begin.elapsed() > Duration::from_secs(4));
    assert_eq!(taker.told.len(), 1, "{:?}", taker.told);
    assert!(taker.told[0].starts_with("watch Nodes at http://127.0.0.1:"));
    server.delete(PODS.path, "a/p1");
    server.run();
    taker.until("caught up", |taker| !taker.has(Kind::Pods, "a/p1"));
    taker.until("mended", |taker| taker.problems.is_empty());
    assert_eq!(taker.told.len(), 1, "{:?}", taker.told);
}

#[test]
fn a_kind_that_may_not_be_read_is_told_once_and_the_others_go_on() {
    let server = one_of_each();
    server.forbid(NETWORK_POLICIES.path, true);
    let mut taker = Taker::follow(&server);
    let about = About::Kind(Kind::NetworkPolicies);
    taker.until("told", |taker| taker.problems.contains_key(&about));
    let asked = server.requests().len();
    // More failures in a row than a client lasts.
    taker.until("asked", |_| server.requests().len() > asked + 5);
    server.set(PODS.path, pod("p2"));
    taker.until("followed", |taker| taker.has(Kind::Pods, "a/p2"));
    assert_eq!(taker.told.len(), 1, "{:?}", taker.told);
    assert!(taker.told[0].starts_with("watch NetworkPolicies at "));
    assert!(!taker.ended.contains_key(&Kind::NetworkPolicies));
    let nodes = server.requests();
    let nodes = nodes.iter().filter(|request| request.starts_with(NODES));
    assert_eq!(nodes.count(), 1);
    server.forbid(NETWORK_POLICIES.path, false);
    taker.until_synced();
    taker.until("mended", |taker| taker.problems.is_empty());
}

#[test]
fn who_takes_nothing_makes_the_pods_wait_and_nobody_else() {
    const PODS_THERE: usize = 5 * WAITING;
    let server = one_of_each();
    (1..PODS_THERE).for_each(|n| server.set(PODS.path, pod(&format!("p{}", n + 1))));
    let mut taker = Taker::follow(&server);
    let begin = Instant::now();
    let hear = |taker: &mut Taker, nodes: usize| {
        while taker.nodes.len() < nodes {
            assert!(
                begin.elapsed() < Duration::from_secs(30),
                "{:?}",
                taker.nodes
            );
            std::thread::sleep(Duration::from_millis(20));
            taker.hear();
        }
    };
    hear(&mut taker, 1);
    (2..=1000).for_each(|n| server.set(NODES, of_name(&format!("n{n}"))));
    hear(&mut taker, 1000);
    std::thread::sleep(Duration::from_millis(500));
    // The Nodes with the begin and the end of their list, and no more of all others than have room.
    let sent = taker.sent.load(Ordering::SeqCst);
    assert_eq!(sent, 1000 + 2 + WAITING);
    taker.until_synced();
    assert_eq!(taker.objects.len(), 1000 + 3 + PODS_THERE);
}

#[test]
fn what_is_wrong_in_an_object_is_told_until_it_is_right_or_gone() {
    let server = one_of_each();
    let faulty = |name: &str| {
        let mut policy = network_policy(name);
        policy["spec"]["ingress"] = json!([{"from": [{"ipBlock": {"cidr": "10.0.0.0/33"}}]}]);
        policy
    };
    server.set(NETWORK_POLICIES.path, faulty("np"));
    let mut taker = Taker::follow(&server);
    taker.until_synced();
    taker.until("told", |taker| !taker.problems.is_empty());
    let said = "NetworkPolicy a/np: spec.ingress[0].from[0].ipBlock.cidr = \"10.0.0.0/33\": \
        must be a CIDR such as 10.0.0.0/8 or fd00::/8";
    assert_eq!(taker.told, [said]);
    server.set(NETWORK_POLICIES.path, network_policy("np"));
    taker.until("right", |taker| taker.problems.is_empty());

    server.set(NETWORK_POLICIES.path, faulty("np"));
    taker.until("told again", |taker| taker.problems.len() == 1);
    server.delete(NETWORK_POLICIES.path, "a/np");
    taker.until("gone", |taker| taker.problems.is_empty());

    // Gone while the version was forgotten; and more of them than are told.
    (0..30).for_each(|n| server.set(NETWORK_POLICIES.path, faulty(&format!("np{n}"))));
    let is_there = |taker: &Taker, n: usize| taker.has(Kind::NetworkPolicies, &format!("a/np{n}"));
    taker.until("all there", |taker| is_there(taker, 29));
    taker.until("told", |taker| taker.problems.len() == 20);
    (0..15).for_each(|n| server.delete(NETWORK_POLICIES.path, &format!("a/np{n}")));
    server.forget();
    taker.until("fewer", |taker| taker.problems.len() == 15);
    let names: BTreeSet<_> = taker.problems.keys().cloned().collect();
    let expected =
        (15..30).map(|n| About::Object(Kind::NetworkPolicies, format!("a/np{n}").into()));
    assert_eq!(names, expected.collect());
}

/// Any JSON, with keys and words that mean something somewhere.
pub fn any_json() -> impl Strategy<Value = Value> {
    const WORDS: [&str; 24] = [
        "podSelector",
        "namespaceSelector",
        "matchLabels",
        "matchExpressions",
        "key",
        "operator",
        "values",
        "In",
        "ipBlock",
        "cidr",
        "except",
        "10.0.0.0/8",
        "::/0",
        "protocol",
        "TCP",
        "port",
        "endPort",
        "namespaces",
        "pods",
        "networks",
        "ports",
        "action",
        "Accept",
        "metadata",
    ];
    let word = prop_oneof![
        4 => proptest::sample::select(&WORDS[..]).prop_map(str::to_owned),
        1 => ".{0,6}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0..70000u32).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 4, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(word.clone(), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}
