//! Cases of more than one step, in which things come, change and go, and what was taken over from Kubernetes's own suite.

use super::super::build::{
    having, labels, named, namespaces, outside, pods, pods_of, policy, rule, tcp, udp, within,
};
use super::super::cluster::{namespace_gone, namespace_put, pod_gone, pod_labels, pod_put};
use super::super::object::Protocol::{Tcp, Udp};
use super::super::{Probe, Step};
use super::{Generator, Way, base, dns, with_peers, with_ports};

fn on_81(mut step: Step) -> Step {
    step.probe = Probe::Ports(vec![(Tcp, 81)]);
    step
}

impl Generator<'_> {
    pub(super) fn example(&mut self) {
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
            "a port by name, while others come and go",
            &["example"],
            steps,
        );
    }

    pub(super) fn actions(&mut self) {
        let put = || base().put();
        let other = with_ports(Way::Ingress, vec![named(Udp, "serve-81-udp")]);
        self.add(
            "a policy comes and goes",
            &["create-policy", "delete-policy"],
            vec![Step::new([put()]), Step::new([base().gone()])],
        );
        self.add(
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
            "a namespace comes and goes",
            &["create-namespace", "delete-namespace"],
            vec![
                Step::new([put()]),
                Step::new(made),
                Step::new([pod_gone("y-2/a"), pod_gone("y-2/b"), namespace_gone("y-2")]),
            ],
        );
        self.label_actions();
        let pod = self.layout.letter("x/d", labels([("pod", "d")]));
        self.add(
            "a pod comes and goes",
            &["create-pod", "delete-pod"],
            vec![
                Step::new([put()]),
                Step::new([pod_put(&pod)]),
                Step::new([pod_gone("x/d")]),
            ],
        );
    }

    fn label_actions(&mut self) {
        let marked = namespaces(having([("new-ns", "qrs")]));
        let y = labels([("ns", "y")]);
        self.add(
            "a namespace becomes a peer and is none again",
            &["set-namespace-labels"],
            vec![
                Step::new([with_peers(Way::Ingress, vec![marked]).put()]),
                Step::new([namespace_put("y", labels([("ns", "y"), ("new-ns", "qrs")]))]),
                Step::new([namespace_put("y", y)]),
            ],
        );
        let marked = pods_of(within("ns", ["y", "z"]), having([("new-label", "abc")]));
        let b = self.cluster.pod("y/b").clone();
        self.add(
            "a pod becomes a peer and is none again",
            &["set-pod-labels"],
            vec![
                Step::new([with_peers(Way::Ingress, vec![marked]).put()]),
                Step::new([pod_labels(&b, labels([("pod", "b"), ("new-label", "abc")]))]),
                Step::new([pod_put(&b)]),
            ],
        );
    }

    /// What was taken over from Kubernetes's own suite.
    pub(super) fn upstream(&mut self) {
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
        self.upstream_all();
        self.upstream_labels();
        self.upstream_both_ways();
        let deny = policy("x", "deny-all").ingress([]).egress([]);
        self.add_upstream(
            "a policy is gone",
            &["deny-all", "delete-policy"],
            vec![Step::new([deny.clone().put()]), Step::new([deny.gone()])],
        );
    }

    fn upstream_all(&mut self) {
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
    }

    fn add_upstream(&mut self, name: &str, tags: &[&'static str], steps: Vec<Step>) {
        self.add(name, &[&["upstream-e2e"], tags].concat(), steps);
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
