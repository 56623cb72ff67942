//! `make bench-policies`: 10,000 NetworkPolicies over 50,000 pods in a real API server, and one node of it with 250 pods.
//!
//! The agent's memory, how long a label's change takes into the kernel, and what a packet between two pods of a node
//! costs there, beside a node that knows ten policies out of a file and one without any. The other 199 nodes
//! are objects alone.
//!
//! Packets are measured in rounds, each of which begins with another node; a ratio is the median of the ratios of all rounds.
//! Nothing is asserted about time. `--write` puts the figures into `docs/benchmarks.md`. As root, after `make kubernetes`.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    dead_code,
    reason = "a benchmark, with rooms of others"
)]

mod cluster;
#[path = "../paths/endpoint.rs"]
mod endpoint;
#[path = "../../tests/agent/machine.rs"]
mod machine;
mod node;
#[path = "../../../cni/benches/plugin/numbers.rs"]
mod numbers;
#[path = "../../../cni/benches/plugin/page.rs"]
mod page;
#[path = "../../tests/kubernetes/plane.rs"]
mod plane;
#[path = "../paths/world.rs"]
mod world;

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use kube::api::{Patch, PatchParams};
use kube::core::Request;
use podspan_cni::filter::INET;
use podspan_kernel::nft::NftMonitor;
use serde_json::json;

use cluster::{NAMESPACES, NODES, PODS, PODS_OF_A_NODE, POLICIES, Pod};
use endpoint::{End, Endpoint, Task};
use node::Node;
use numbers::{Series, digits};
use plane::Plane;

/// How many labels change, one after the other, of each kind.
const CHANGES: usize = 200;
/// Rounds that count, and those before them, which warm up.
const ROUNDS: usize = 21;
const WARM_UP: usize = 1;
/// How long traffic runs for one figure.
const TIME: Duration = Duration::from_millis(300);
/// The names of the nodes whose packets are compared.
const KINDS: [&str; 3] = ["none", "ten", "all"];

fn main() {
    let words: Vec<String> = std::env::args().collect();
    if let [_, word, core, end] = &words[..]
        && word == endpoint::WORD
    {
        return endpoint::run(core, end).unwrap();
    }
    // `cargo test --benches` must not measure.
    if words.iter().any(|word| word == "--test") {
        return;
    }
    let outcome = endpoint::require(&node::bin("podspan"), "make build")
        .and_then(|()| world::isolate())
        .and_then(|inside| match inside {
            true => measure(words.iter().any(|word| word == "--write")),
            false => Ok(()),
        });
    if let Err(error) = outcome {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

fn measure(write: bool) -> Result<(), String> {
    let core = std::thread::available_parallelism().map_or(0, |cores| cores.get() - 1);
    let mut text = "| what | figure |\n|---|---|\n".to_owned();
    std::thread::scope(|scope| {
        // Each in a network namespace of its own thread, until the hand is dropped.
        let begin = |name: &'static str, config: &'static str| {
            let (sender, paths) = channel();
            let (hand, held) = channel();
            scope.spawn(move || beside((name, config), core, (&sender, &held)));
            (hand, paths.recv().unwrap())
        };
        let (_none, none) = begin(KINDS[0], "");
        let (_ten, ten) = begin(KINDS[1], "policy_file");
        let mut node = Node::new(KINDS[2]);
        let plane = Plane::start("127.0.0.1");
        fill(&plane);
        control(&mut node, &plane, &mut text);
        let mut paths = [none, ten, Path::of(&node, core)];
        packets(&mut paths, &mut text);
        memory(&node, "at the end", &mut text);
        let failures = node.metric("podspan_policy_failures_total");
        assert_eq!(failures, Some(0), "{}", node.machine.log());
    });
    println!("{text}");
    match write {
        true => page::fill(&[("policies", text)]),
        false => Ok(()),
    }
}

/// The cluster's objects are in the API.
fn fill(plane: &Plane) {
    for n in 1..=NODES as u32 {
        plane.create_node(n);
    }
    plane.store_all((0..NAMESPACES).map(|place| {
        let key = format!("/registry/namespaces/namespace-{place}");
        (key, cluster::namespace(place))
    }));
    plane.store_all((0..NAMESPACES * POLICIES).map(|number| {
        let (place, kind) = (number / POLICIES, number % POLICIES);
        let key = format!("/registry/networkpolicies/namespace-{place}/policy-{kind}");
        (key, cluster::policy(place, kind))
    }));
    plane.store_all((0..PODS).map(Pod).map(|pod| {
        let key = format!("/registry/pods/{}/{}", pod.namespace(), pod.name());
        (key, pod.object())
    }));
}

fn path_of(pod: Pod) -> String {
    format!("/api/v1/namespaces/{}/pods", pod.namespace())
}

/// The agent that follows the API: memory, and changes of labels.
fn control(node: &mut Node, plane: &Plane, text: &mut String) {
    let config = format!(
        "node = \"node1\"\nregistry = \"kubernetes\"\nkubeconfig = \"{}\"\nconflist = \"{}\"\n{}",
        plane.kubeconfig().display(),
        node.machine.path("net.d/10-podspan.conflist").display(),
        node.more()
    );
    std::fs::write(node.machine.path("agent.toml"), config).unwrap();
    let begin = Instant::now();
    node.start();
    node.until_in_force(PODS + NAMESPACES * (1 + POLICIES) + NODES);
    let synced = begin.elapsed().as_secs_f64();
    let _ = writeln!(
        text,
        "| from the start of the agent until it has listed everything | {synced:.1} s |"
    );
    memory(node, "after the list", text);
    let each = node.attach_all().as_secs_f64() * 1e3 / PODS_OF_A_NODE as f64;
    let _ = writeln!(
        text,
        "| ADD of a pod under these policies, mean of {PODS_OF_A_NODE} | {each:.1} ms |"
    );
    node.until("all known", |node| {
        node.metric("podspan_policy_pods{state=\"known\"}") == Some(PODS_OF_A_NODE)
    });
    let news = news();
    // A pod of another node, in a namespace that has pods here; one of two that has another label.
    let remote = |turn: usize| {
        let place = turn * 7 % (PODS_OF_A_NODE / 2);
        other_than(2 * (NAMESPACES + place), cluster::let_in(place))
    };
    let local = |turn: usize| {
        let place = turn * 7 % (PODS_OF_A_NODE / 2);
        other_than(2 * place, cluster::selected(place))
    };
    labels((plane, &news), "another node's pod", &remote, text);
    labels((plane, &news), "a pod of the node", &local, text);
    memory(node, "after these changes", text);
}

/// When the kernel took a change of our table.
fn news() -> Receiver<Instant> {
    let mut monitor = NftMonitor::open().unwrap();
    let (sender, news) = channel();
    std::thread::spawn(move || {
        loop {
            let ours = monitor.wait(|news| news.family == INET.family && news.table == INET.name);
            if ours.is_err() || sender.send(Instant::now()).is_err() {
                return;
            }
        }
    });
    news
}

/// That pod or the next, whichever is not `app` yet, and the label.
fn other_than(number: usize, app: String) -> (Pod, String) {
    let of_namespace = [Pod(number), Pod(number + 1)];
    let pod = of_namespace.into_iter().find(|pod| pod.app() != app);
    (pod.unwrap(), app)
}

/// A change gives a pod the label, the next takes it from it: each changes what is allowed here.
fn labels(
    (plane, news): (&Plane, &Receiver<Instant>),
    whose: &str,
    of: &dyn Fn(usize) -> (Pod, String),
    text: &mut String,
) {
    let change = |round: usize| {
        let (pod, label) = of(round / 2);
        let app = if round.is_multiple_of(2) {
            &*label
        } else {
            "another"
        };
        let patch = Patch::Merge(json!({"metadata": {"labels": {"app": app}}}));
        let request = Request::new(path_of(pod));
        let request = request
            .patch(&pod.name(), &PatchParams::default(), &patch)
            .unwrap();
        // What came before is over.
        while news.try_recv().is_ok() {}
        let begin = Instant::now();
        plane.send_all(std::iter::once(request));
        let taken = news.recv_timeout(Duration::from_secs(10));
        let taken = taken.unwrap_or_else(|_| panic!("{pod:?} with {app}: nothing changes"));
        // Not in step with anything that has a period.
        std::thread::sleep(Duration::from_millis(100 + (round * 37 % 100) as u64));
        taken.duration_since(begin)
    };
    let times = Series::times((0..CHANGES).map(change));
    let _ = writeln!(
        text,
        "| a label of {whose}, from the request to the API until the kernel tells of the change: median, p99 of {CHANGES} | {}, {} ms |",
        digits(times.median()),
        digits(times.p99())
    );
}

fn memory(node: &Node, when: &str, text: &mut String) {
    let _ = writeln!(
        text,
        "| resident memory {when}: now, at the most, of which the executable's pages | {:.1}, {:.1}, {:.1} MiB |",
        node.mib("VmRSS:"),
        node.mib("VmHWM:"),
        node.mib("RssFile:")
    );
}

/// Two pods of a node that policy lets talk.
struct Path {
    client: Endpoint,
    server: IpAddr,
    _server: Endpoint,
}

impl Path {
    fn of(node: &Node, core: usize) -> Self {
        Self {
            client: node.endpoint(Pod(0), End::Client, core),
            server: Pod(1).addresses()[0].parse().unwrap(),
            _server: node.endpoint(Pod(1), End::Server, core),
        }
    }
}

/// A node whose agent knows no API: with ten policies out of a file, or without policy.
fn beside(
    (name, policy): (&'static str, &str),
    core: usize,
    (ready, held): (&Sender<Path>, &Receiver<()>),
) {
    let mut node = Node::new(name);
    let mut more = node.more();
    if !policy.is_empty() {
        let file = node.machine.path("policy.json");
        std::fs::write(&file, cluster::ten_policies().to_string()).unwrap();
        let _ = writeln!(more, "{policy} = \"{}\"", file.display());
    }
    node.machine.configure(&more);
    node.start();
    if !policy.is_empty() {
        node.until_in_force(POLICIES + PODS_OF_A_NODE);
    }
    node.attach_all();
    ready.send(Path::of(&node, core)).unwrap();
    let _ = held.recv();
}

fn packets(paths: &mut [Path; 3], text: &mut String) {
    let tasks = [Task::Request, Task::Connect];
    let mut figures: [[Vec<f64>; 2]; 3] = Default::default();
    for round in 0..ROUNDS + WARM_UP {
        for place in 0..paths.len() {
            let turn = (place + round) % paths.len();
            for (number, task) in tasks.into_iter().enumerate() {
                let Path { client, server, .. } = &mut paths[turn];
                let figure = task.scaled(client.drive(task, *server, TIME));
                if round >= WARM_UP {
                    figures[turn][number].push(figure);
                }
            }
        }
    }
    let series = figures.map(|of_path| of_path.map(Series::new));
    let [none, ten, all] = &series;
    for (number, task) in tasks.into_iter().enumerate() {
        let medians = [none, ten, all].map(|of| digits(of[number].median()));
        let cost =
            |less: &[Series; 2], more: &[Series; 2]| digits(less[number].ratio_to(&more[number]));
        let policies = numbers::thousands(NAMESPACES * POLICIES);
        let _ = writeln!(
            text,
            "| {}, pods of one node: without policy, with 10, with {policies} policies | {} |\n\
             | what one costs then: with {policies} policies to 10, to none, and 10 to none | {}, {}, {} |",
            task.title(),
            medians.join(", "),
            cost(ten, all),
            cost(none, all),
            cost(none, ten),
        );
    }
}
