//! Kubernetes's own suite, `Netpol` (test/e2e/network/netpol), with what it says of every step.
//!
//! The suite's newest version makes for each case only the pods that its table speaks of; here all nine are there, and where a
//! table left one out because of that, it is said as the suite's older version did. Rules for DNS, which those had, are not here: nobody
//! asks for a name.

use super::build::{
    all, around, blocks, having, labels_and, named, namespaces, outside, pods, pods_of, policy,
    rule, sctp, tcp, udp, within,
};
use super::cluster::{NAME_LABEL, namespace_put, pod_labels};
use super::object::{Change, NetworkPolicy, Port, Protocol, Selector};
use super::{Case, Cluster, Layout, Socket, Step, no, yes};

const TCP_80: Socket = (Protocol::Tcp, 80);
const TCP_81: Socket = (Protocol::Tcp, 81);

/// All cases of the suite.
pub fn cases(layout: &Layout<'_>) -> Vec<Case> {
    let cluster = Cluster::letters(layout);
    let steps = [
        defaults(),
        peers_by_pod(),
        peers_by_namespace(),
        peers_by_both(),
        ports(),
        updates(&cluster),
        ingress_and_egress(),
        stacks(),
        addresses(&cluster),
        protocols(),
        of_protocol(Protocol::Udp, "UDP"),
        of_protocol(Protocol::Sctp, "SCTP"),
    ];
    let case = |(name, steps)| Case {
        name,
        group: "netpol",
        tags: ["netpol"].into(),
        cluster: cluster.clone(),
        steps,
    };
    steps.into_iter().flatten().map(case).collect()
}

/// A case's name, and its steps.
type Steps = (String, Vec<Step>);

fn one(name: &str, step: Step) -> Steps {
    (name.into(), vec![step])
}

/// Pods a of namespace x, in a policy of that name.
fn for_a(name: &str) -> NetworkPolicy {
    policy("x", name).pods(having([("pod", "a")]))
}

fn namespace(name: &str) -> Selector {
    having([(NAME_LABEL, name)])
}

fn defaults() -> Vec<Steps> {
    let deny_in = policy("x", "deny-ingress").ingress([]);
    let deny = policy("x", "deny-all").ingress([]).egress([]);
    let everybody = rule().peers([pods_of(all(), all())]);
    let open_a = for_a("open-a").ingress([everybody]);
    let deny_out_a = for_a("deny-egress").egress([]);
    let deny_out = policy("x", "deny-egress").egress([]);
    let open = policy("x", "open").ingress([rule()]);
    vec![
        one(
            "should support a 'default-deny-ingress' policy",
            Step::new([deny_in.put()]).table(TCP_80, [no("*", "x")]),
        ),
        one(
            "should support a 'default-deny-all' policy",
            Step::new([deny.clone().put()]).table(TCP_80, [no("*", "x"), no("x", "*")]),
        ),
        one(
            "should enforce policy to allow ingress traffic for a target",
            Step::new([deny_in_named("deny").put(), open_a.put()])
                .table(TCP_80, [no("*", "x"), yes("*", "x/a")]),
        ),
        one(
            "should support allow-all policy",
            Step::new([open.put()]).table(TCP_80, []).table(TCP_81, []),
        ),
        one(
            "should deny egress from pods based on PodSelector",
            Step::new([deny_out_a.put()]).table(TCP_80, [no("x/a", "*")]),
        ),
        one(
            "should deny egress from all pods in a namespace",
            Step::new([deny_out.put()]).table(TCP_80, [no("x", "*")]),
        ),
        (
            "should stop enforcing policies after they are deleted".into(),
            vec![
                Step::new([deny.clone().put()]).table(TCP_80, [no("x", "*"), no("*", "x")]),
                Step::new([deny.gone()]).table(TCP_80, []),
            ],
        ),
    ]
}

fn deny_in_named(name: &str) -> NetworkPolicy {
    policy("x", name).ingress([])
}

fn peers_by_pod() -> Vec<Steps> {
    let from = |selector| for_a("a-from-pods").ingress([rule().peers([pods(selector)])]);
    let either = rule().peers([pods(having([("pod", "b")])), pods(having([("pod", "c")]))]);
    let own = policy("x", "own-namespace").ingress([rule().peers([pods(all())])]);
    vec![
        one(
            "should enforce policy to allow traffic from pods within server namespace based on PodSelector",
            Step::new([from(having([("pod", "b")])).put()])
                .table(TCP_80, [no("*", "x/a"), yes("x/b", "x/a")]),
        ),
        one(
            "should enforce policy based on PodSelector with MatchExpressions",
            Step::new([from(within("pod", ["b"])).put()])
                .table(TCP_80, [no("*", "x/a"), yes("x/b", "x/a")]),
        ),
        one(
            "should enforce policy based on any PodSelectors",
            Step::new([for_a("a-from-either").ingress([either]).put()]).table(
                TCP_80,
                [no("*", "x/a"), yes("x/b", "x/a"), yes("x/c", "x/a")],
            ),
        ),
        one(
            "should deny ingress from pods on other namespaces",
            Step::new([own.put()]).table(TCP_80, [no("y", "x"), no("z", "x")]),
        ),
    ]
}

fn peers_by_namespace() -> Vec<Steps> {
    let from = |selector| {
        let rule = rule().peers([namespaces(selector)]);
        Step::new([for_a("a-from-namespaces").ingress([rule]).put()])
    };
    let only_y = || [no("x", "x/a"), no("z", "x/a")];
    let not_to_y = rule().peers([namespaces(outside(NAME_LABEL, ["y"]))]);
    vec![
        one(
            "should enforce policy to allow ingress traffic from pods in all namespaces",
            from(all()).table(TCP_80, []),
        ),
        one(
            "should enforce policy to allow traffic only from a different namespace, based on NamespaceSelector",
            from(namespace("y")).table(TCP_80, only_y()),
        ),
        one(
            "should enforce policy based on NamespaceSelector with MatchExpressions",
            from(within(NAME_LABEL, ["y"])).table(TCP_80, only_y()),
        ),
        one(
            "should enforce policy to allow traffic based on NamespaceSelector with MatchLabels using default ns label",
            from(namespace("y")).table(TCP_80, only_y()),
        ),
        one(
            "should enforce policy based on NamespaceSelector with MatchExpressions using default ns label",
            Step::new([for_a("a-not-to-y").egress([not_to_y]).put()])
                .table(TCP_80, [no("x/a", "y")]),
        ),
    ]
}

fn peers_by_both() -> Vec<Steps> {
    let elsewhere = || outside(NAME_LABEL, ["x"]);
    let b = || having([("pod", "b")]);
    let from = |peers| Step::new([for_a("a-from").ingress([peers]).put()]);
    let a_of_y = || pods_of(namespace("y"), having([("pod", "a")]));
    let to = rule().peers([a_of_y()]);
    vec![
        one(
            "should enforce policy based on PodSelector or NamespaceSelector",
            from(rule().peers([namespaces(elsewhere()), pods(b())]))
                .table(TCP_80, [no("x/a", "x/a"), no("x/c", "x/a")]),
        ),
        one(
            "should enforce policy based on PodSelector and NamespaceSelector",
            from(rule().peers([pods_of(elsewhere(), b())])).table(
                TCP_80,
                [no("*", "x/a"), yes("y/b", "x/a"), yes("z/b", "x/a")],
            ),
        ),
        one(
            "should enforce policy based on Multiple PodSelectors and NamespaceSelectors",
            from(rule().peers([pods_of(elsewhere(), within("pod", ["b", "c"]))]))
                .table(TCP_80, [no("x", "x/a"), no("y/a", "x/a"), no("z/a", "x/a")]),
        ),
        one(
            "should enforce policy to allow traffic only from a pod in a different namespace based on PodSelector and NamespaceSelector",
            from(rule().peers([a_of_y()])).table(TCP_80, [no("*", "x/a"), yes("y/a", "x/a")]),
        ),
        one(
            "should enforce egress policy allowing traffic to a server in a different namespace based on PodSelector and NamespaceSelector",
            Step::new([for_a("a-to").egress([to]).put()])
                .table(TCP_80, [no("x/a", "*"), yes("x/a", "y/a")]),
        ),
    ]
}

/// From namespace y to pods a of x on that port.
fn y_on(port: Port) -> NetworkPolicy {
    let rule = rule().peers([namespaces(namespace("y"))]).ports([port]);
    for_a("a-from-y").ingress([rule])
}

fn ports() -> Vec<Steps> {
    let serve_81 = rule().ports([named(Protocol::Tcp, "serve-81-tcp")]);
    let serve_80 = rule().ports([named(Protocol::Tcp, "serve-80-tcp")]);
    let only_y = || [no("*", "x/a"), yes("y", "x/a")];
    let mut also_80 = y_on(tcp(80));
    also_80.key.name = "a-from-y-80".into();
    vec![
        one(
            "should enforce policy based on Ports",
            Step::new([y_on(tcp(81)).put()]).table(TCP_81, only_y()),
        ),
        (
            "should enforce multiple, stacked policies with overlapping podSelectors".into(),
            vec![
                Step::new([y_on(tcp(81)).put()])
                    .table(TCP_81, only_y())
                    .table(TCP_80, [no("*", "x/a")]),
                Step::new([also_80.put()]).table(TCP_80, only_y()),
            ],
        ),
        one(
            "should allow ingress access on one named port",
            Step::new([policy("x", "named").ingress([serve_81]).put()])
                .table(TCP_81, [])
                .table(TCP_80, [no("*", "x")]),
        ),
        one(
            "should allow ingress access from namespace on one named port",
            Step::new([y_on(named(Protocol::Tcp, "serve-80-tcp")).put()])
                .table(TCP_80, only_y())
                .table(TCP_81, [no("*", "x/a")]),
        ),
        one(
            "should allow egress access on one named port",
            Step::new([policy("x", "named").egress([serve_80]).put()])
                .table(TCP_80, [])
                .table(TCP_81, [no("x", "*")]),
        ),
    ]
}

fn updates(cluster: &Cluster) -> Vec<Steps> {
    let open = policy("x", "changes").ingress([rule()]);
    let closed = policy("x", "changes").ingress([]);
    let marked = having([("pod", "b"), ("pod2", "updated")]);
    let from_marked = for_a("a-from-marked").ingress([rule().peers([pods(marked)])]);
    let from_namespace = rule().peers([namespaces(having([("ns2", "updated")]))]);
    let isolated = policy("x", "isolated")
        .pods(having([("target", "isolated")]))
        .ingress([]);
    let relabel = |pod: &str, key: &str, value: &str| -> Change {
        let pod = cluster.pod(pod);
        pod_labels(pod, labels_and(&pod.labels, key, value))
    };
    let y = labels_and(&cluster.namespaces["y"], "ns2", "updated");
    vec![
        (
            "should enforce updated policy".into(),
            vec![
                Step::new([open.put()]).table(TCP_81, []),
                Step::new([closed.put()]).table(TCP_81, [no("*", "x")]),
            ],
        ),
        (
            "should allow ingress access from updated namespace".into(),
            vec![
                Step::new([for_a("a-from-marked").ingress([from_namespace]).put()])
                    .table(TCP_80, [no("*", "x/a")]),
                Step::new([namespace_put("y", y)]).table(TCP_80, [no("*", "x/a"), yes("y", "x/a")]),
            ],
        ),
        (
            "should allow ingress access from updated pod".into(),
            vec![
                Step::new([from_marked.put()]).table(TCP_80, [no("*", "x/a")]),
                Step::new([relabel("x/b", "pod2", "updated")])
                    .table(TCP_80, [no("*", "x/a"), yes("x/b", "x/a")]),
            ],
        ),
        (
            "should deny ingress access to updated pod".into(),
            vec![
                Step::new([isolated.put()]).table(TCP_80, []),
                Step::new([relabel("x/a", "target", "isolated")]).table(TCP_80, [no("*", "x/a")]),
            ],
        ),
    ]
}

fn ingress_and_egress() -> Vec<Steps> {
    let from_b = rule().peers([pods(having([("pod", "b")]))]);
    let both = for_a("both")
        .ingress([from_b])
        .egress([rule().ports([tcp(80)])]);
    let a = || having([("pod", "a")]);
    let to_a_of_y = rule().peers([pods_of(namespace("y"), a())]);
    let client = for_a("to-a-of-y").egress([to_a_of_y]);
    let server = |pod: &str| {
        let from_a_of_x = rule().peers([pods_of(namespace("x"), a())]);
        let policy = policy("y", &format!("{pod}-from-a-of-x"));
        policy
            .pods(having([("pod", pod)]))
            .ingress([from_a_of_x])
            .put()
    };
    let out = for_a("out").egress([rule()]);
    let deny_in = for_a("deny-ingress").ingress([]);
    vec![
        one(
            "should work with Ingress, Egress specified together",
            Step::new([both.put()])
                .table(TCP_80, [no("*", "x/a"), yes("x/b", "x/a")])
                .table(TCP_81, [no("*", "x/a"), no("x/a", "*"), yes("x/b", "x/a")]),
        ),
        one(
            "should support denying of egress traffic on the client side (even if the server explicitly allows this traffic)",
            Step::new([client.put(), server("a"), server("b")]).table(
                TCP_80,
                [no("x/a", "*"), no("*", "y/a"), yes("x/a", "y/a"), no("*", "y/b")],
            ),
        ),
        (
            "should enforce policies to check ingress and egress policies can be controlled independently based on PodSelector".into(),
            vec![
                Step::new([out.put()]).table(TCP_80, []),
                Step::new([deny_in.put()]).table(TCP_80, [no("*", "x/a")]),
            ],
        ),
    ]
}

fn stacks() -> Vec<Steps> {
    let on_80 = || rule().ports([tcp(80)]);
    vec![
        (
            "should enforce multiple ingress policies with ingress allow-all policy taking precedence".into(),
            vec![
                Step::new([policy("x", "in-80").ingress([on_80()]).put()])
                    .table(TCP_81, [no("*", "x")]),
                Step::new([policy("x", "in").ingress([rule()]).put()]).table(TCP_81, []),
            ],
        ),
        (
            "should enforce multiple egress policies with egress allow-all policy taking precedence".into(),
            vec![
                Step::new([policy("x", "out-80").egress([on_80()]).put()])
                    .table(TCP_81, [no("x", "*")]),
                Step::new([policy("x", "out").egress([rule()]).put()]).table(TCP_81, []),
            ],
        ),
    ]
}

fn addresses(cluster: &Cluster) -> Vec<Steps> {
    let only = |pod: &str| around(&cluster.pod(pod).addresses, (32, 128));
    let to = |peers| for_a("to-block").egress([rule().blocks(peers)]);
    // Large enough for every pod.
    let large = around(&cluster.pod("x/b").addresses, (4, 4));
    let without_b = || to(blocks(&large, &only("x/b")));
    let to_b = to(blocks(&only("x/b"), &[]));
    vec![
        one(
            "should allow egress access to server in CIDR block",
            Step::new([to(blocks(&only("y/b"), &[])).put()])
                .table(TCP_80, [no("x/a", "*"), yes("x/a", "y/b")]),
        ),
        one(
            "should enforce except clause while egress access to server in CIDR block",
            Step::new([without_b().put()]).table(TCP_80, [no("x/a", "x/b")]),
        ),
        (
            "should ensure an IP overlapping both IPBlock.CIDR and IPBlock.Except is allowed"
                .into(),
            vec![
                Step::new([without_b().put()]).table(TCP_80, [no("x/a", "x/b")]),
                Step::new([to_b.put()]).table(TCP_80, [no("x/a", "*"), yes("x/a", "x/b")]),
            ],
        ),
    ]
}

fn protocols() -> Vec<Steps> {
    let on = |port| for_a("a-on").ingress([rule().ports([port])]).put();
    vec![
        one(
            "should enforce ingress policy allowing any port traffic to a server on a specific protocol",
            Step::new([on(Port::All(Protocol::Tcp))])
                .table(TCP_80, [])
                .table((Protocol::Udp, 80), [no("*", "x/a")]),
        ),
        one(
            "should not mistakenly treat 'protocol: SCTP' as 'protocol: TCP', even if the plugin doesn't support SCTP",
            Step::new([deny_in_named("deny-ingress").put(), on(sctp(81))])
                .table(TCP_81, [no("*", "x")]),
        ),
        one(
            "should properly isolate pods that are selected by a policy allowing SCTP, even if the plugin doesn't support SCTP",
            Step::new([on(sctp(80))]).table(TCP_81, [no("*", "x/a")]),
        ),
        one(
            "should not allow access by TCP when a policy specifies only UDP",
            Step::new([on(udp(81))]).table(TCP_81, [no("*", "x/a")]),
        ),
    ]
}

/// The three that the suite has once more for UDP and for SCTP.
fn of_protocol(protocol: Protocol, name: &str) -> Vec<Steps> {
    let port = |number| (protocol, number);
    let a_of_y = rule().peers([pods_of(namespace("y"), having([("pod", "a")]))]);
    let all = [
        one(
            "should support a 'default-deny-ingress' policy",
            Step::new([deny_in_named("deny-all").put()]).table(port(80), [no("*", "x")]),
        ),
        one(
            "should enforce policy based on Ports",
            Step::new([y_on(Port::Range(protocol, 81, 81)).put()])
                .table(port(81), [no("x", "x/a"), no("z", "x/a")]),
        ),
        one(
            "should enforce policy to allow traffic only from a pod in a different namespace based on PodSelector and NamespaceSelector",
            Step::new([for_a("a-from-a-of-y").ingress([a_of_y]).put()])
                .table(port(80), [no("*", "x/a"), yes("y/a", "x/a")]),
        ),
    ];
    all.map(|(case, steps)| (format!("using {name} {case}"), steps))
        .into()
}
