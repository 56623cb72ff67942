//! Every case with real packets: two nodes with the real agent, pods by the real plugin, and each question's packet meets the fate
//! that the oracle says, and the one that `podspan policy ask` says, from where `podspan explain` has its words. Of some explain itself is
//! asked.
//!
//! Here are all groups, and of the cases every so many; `PODSPAN_POLICY_ALL=1` asks all of them.

pub mod network;
pub mod witness;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::Child;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::asked;
use crate::cases::{Case, Cluster};
use crate::every_case;
use crate::object::{Change, Key, Pod, Protocol};
use crate::prober::{Answer, Patience, Question, ask};
use network::{Network, finish};

/// Of the cases of a group every so many, unless all are wanted.
const EVERY: usize = 4;
/// In every so many steps `podspan explain` is asked, too.
const EXPLAINED: usize = 80;
/// How many differences are told.
const TOLD: usize = 60;

/// All cases, or of each group the first and then every so many.
fn wanted_cases() -> Vec<Case> {
    let all = std::env::var_os("PODSPAN_POLICY_ALL").is_some_and(|value| value == "1");
    let mut counts = BTreeMap::new();
    let mut cases = every_case();
    cases.retain(|case| {
        let count: &mut usize = counts.entry(case.group).or_default();
        *count += 1;
        all || (*count - 1).is_multiple_of(EVERY)
    });
    cases
}

/// All pods that cases have at any time.
fn every_pod(cases: &[Case]) -> BTreeMap<Key, (&Cluster, &Pod)> {
    let mut pods = BTreeMap::new();
    for case in cases {
        let made = case.steps.iter().flat_map(|step| &step.changes);
        let made = made.filter_map(|change| match change {
            Change::Pod(_, pod) => pod.as_ref(),
            _ => None,
        });
        for pod in case.cluster.pods.values().chain(made) {
            let (_, known) = pods.entry(pod.key.clone()).or_insert((&case.cluster, pod));
            let place = |pod: &Pod| (pod.node.clone(), pod.uid.clone(), pod.addresses);
            assert_eq!(place(known), place(pod), "one place in all cases");
        }
    }
    pods
}

fn right(question: &Question) -> Answer {
    match question.expected {
        true => Answer::Reached,
        false => Answer::Silent,
    }
}

/// All questions at once: the answers that are other than expected, and what `podspan policy ask` says of a packet that had
/// another fate.
fn differences(
    network: &Network,
    cluster: &Cluster,
    questions: &BTreeMap<Key, Vec<Question>>,
) -> Vec<String> {
    let told = Told::ask(network, cluster, questions);
    let all: Vec<_> = questions
        .iter()
        .map(|(from, questions)| (&network.pods[from].asker, questions.clone()))
        .collect();
    let answers = ask(&all, Patience::default()).unwrap();
    let mut told = told.answers();
    let mut differences = Vec::new();
    for ((from, questions), answers) in questions.iter().zip(answers) {
        let node = network.node_of(&cluster.pods[from]).name;
        let told = told.get_mut(node).unwrap();
        for (question, answer) in questions.iter().zip(answers) {
            let told = told.next().unwrap();
            let from = asked::name(from);
            if answer != right(question) {
                differences.push(format!("{from}: {question:?}: {answer:?}"));
            }
            let passed = answer == Answer::Reached;
            if told["passes"] != passed || told["to"] != question.address.to_string() {
                differences.push(format!("{from}: {question:?}: {answer:?}, told {told}"));
            }
        }
    }
    differences
}

/// What `podspan policy ask` says on each node of all questions of the pods there; it needs no packet for it.
struct Told(Vec<(&'static str, Child)>);

impl Told {
    fn ask(network: &Network, cluster: &Cluster, all: &BTreeMap<Key, Vec<Question>>) -> Self {
        let mut lines = BTreeMap::<_, String>::new();
        for (from, questions) in all {
            let pod = &cluster.pods[from];
            let lines = lines.entry(network.node_of(pod).name).or_default();
            for question in questions {
                let from = own(pod, question);
                let Question {
                    address: to,
                    protocol,
                    port,
                    ..
                } = question;
                let protocol = format!("{protocol:?}").to_lowercase();
                *lines += &format!("{from} {to} {protocol}/{port}\n");
            }
        }
        let nodes = network.nodes.iter();
        let asked = nodes.filter_map(|node| Some((node.name, node.ask(lines.get(node.name)?))));
        Self(asked.collect())
    }

    /// In the order of the questions, by node.
    fn answers(self) -> BTreeMap<&'static str, std::vec::IntoIter<Value>> {
        let answers = |(node, child)| {
            let output = finish(child);
            let said: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
                panic!("{error}: {}", String::from_utf8_lossy(&output.stderr))
            });
            let all_pass = said.iter().all(|answer| answer["passes"] == true);
            assert_eq!(output.status.code(), Some(i32::from(!all_pass)));
            (node, said.into_iter())
        };
        self.0.into_iter().map(answers).collect()
    }
}

/// The address of who asks.
fn own(pod: &Pod, question: &Question) -> IpAddr {
    let mut own = pod.addresses.iter();
    let own = own.find(|own| own.is_ipv4() == question.address.is_ipv4());
    own.unwrap()
}

/// Of each node and family an allowed and a denied connection, as far as there are such; where in the list they begin is for the
/// number to say.
fn explained<'a>(
    network: &Network,
    cluster: &'a Cluster,
    questions: &'a BTreeMap<Key, Vec<Question>>,
    number: usize,
) -> Vec<(&'a Key, &'a Question)> {
    let of_pods = questions.iter().flat_map(|(from, questions)| {
        let questions = questions.iter().filter(|question| {
            question.protocol == Protocol::Tcp && question.name != asked::name(from)
        });
        questions.map(move |question| (from, question))
    });
    let is_node = |question: &Question| {
        let mut pods = cluster.pods.values().filter(|pod| pod.host_network);
        pods.any(|pod| asked::name(&pod.key) == question.name)
    };
    let asked: Vec<_> = of_pods
        .filter(|(from, question)| !cluster.pods[*from].host_network && !is_node(question))
        .collect();
    let mut kinds = BTreeMap::new();
    let start = number * 101 % asked.len().max(1);
    for (from, question) in asked.iter().skip(start).chain(asked.iter().take(start)) {
        let first = std::ptr::eq(network.node_of(&cluster.pods[*from]), &network.nodes[0]);
        kinds
            .entry((first, question.address.is_ipv4(), question.expected))
            .or_insert((*from, *question));
    }
    kinds.into_values().collect()
}

/// What `podspan explain` says of some questions and the packets do not, or the other way round, or in other words than
/// `podspan policy ask`.
fn explain(network: &Network, cluster: &Cluster, some: &[(&Key, &Question)]) -> Vec<String> {
    let started: Vec<_> = some
        .iter()
        .map(|(from, question)| {
            let pod = &cluster.pods[*from];
            let (from, to, port) = (own(pod, question), question.address, question.port);
            let node = network.node_of(pod);
            let asked = node.ask(&format!("{from} {to} tcp/{port}"));
            (asked, node.explain((from, to), port))
        })
        .collect();
    let mut differences = Vec::new();
    for ((from, question), (asked, child)) in some.iter().zip(started) {
        let told: Value = serde_json::from_slice(&finish(asked).stdout).unwrap_or_default();
        let told = ["egress", "ingress"].map(|side| told[0][side]["why"].clone());
        let output = finish(child);
        let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let hops = said["hops"].as_array().cloned().unwrap_or_default();
        let of_policy = hops.iter().filter(|hop| told.contains(&hop["what"]));
        let states: Vec<_> = of_policy.filter_map(|hop| hop["state"].as_str()).collect();
        let status = output.status.code();
        let allows = states == ["right", "right"];
        let verdict = said["verdict"].as_str().unwrap_or_default();
        let agrees = match question.expected {
            true => status == Some(0) && allows && verdict == "it should pass, and it does",
            false => {
                status == Some(1)
                    && states.contains(&"wrong")
                    && ["egress of ", "ingress of "]
                        .iter()
                        .any(|direction| verdict.contains(direction))
            }
        };
        if !agrees || states.len() != told.len() {
            let error = String::from_utf8_lossy(&output.stderr);
            differences.push(format!(
                "explain: {}: {question:?}: {status:?} {said:#} {error}",
                asked::name(from)
            ));
        }
    }
    differences
}

#[test]
fn each_packet_meets_the_fate_that_policy_says() {
    let cases = wanted_cases();
    let begin = Instant::now();
    let mut network = Network::up(&cases[0].cluster);
    for (cluster, pod) in every_pod(&cases).into_values() {
        network.add(cluster, pod);
    }
    println!("{} pods after {:?}", network.pods.len(), begin.elapsed());
    let (mut steps, mut asked, mut denied, mut judged) = (0, 0, 0, 0);
    let mut wrong = Vec::new();
    let (mut enforcing, mut asking) = (Duration::ZERO, Duration::ZERO);
    for case in &cases {
        let mut number = 0;
        case.walk(|cluster, step| {
            (number, steps) = (number + 1, steps + 1);
            let at = Instant::now();
            network.enforce(cluster);
            enforcing += at.elapsed();
            let at = Instant::now();
            let questions = asked::questions(cluster, step);
            let all = questions.values().flatten();
            asked += all.clone().count();
            denied += all.filter(|question| !question.expected).count();
            let mut found = differences(&network, cluster, &questions);
            asking += at.elapsed();
            if steps % EXPLAINED == EXPLAINED / 4 {
                let some = explained(&network, cluster, &questions, steps);
                judged += some.len();
                found.extend(explain(&network, cluster, &some));
            }
            wrong.extend(
                found
                    .into_iter()
                    .map(|difference| format!("{}, step {number}: {difference}", case.name)),
            );
        });
    }
    println!(
        "{} cases, {steps} steps, {asked} questions, {denied} of them denied, {judged} explained, after {:?}: {enforcing:?} \
         until in force, {asking:?} of questions",
        cases.len(),
        begin.elapsed()
    );
    for node in &network.nodes {
        let failures = node.metric("podspan_policy_failures_total");
        assert_eq!(failures, Some(0), "transactions that failed");
    }
    let told = wrong.iter().take(TOLD).cloned().collect::<Vec<_>>();
    assert!(
        wrong.is_empty(),
        "{} packets had another fate:\n{}",
        wrong.len(),
        told.join("\n")
    );
}
