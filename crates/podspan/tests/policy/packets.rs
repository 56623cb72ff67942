//! The prober over a router between network namespaces: who answers, who refuses, and whom a rule of nftables silences.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Command, Stdio};
use std::time::Instant;

use podspan_kernel::Netns;
use podspan_kernel::testing::TestNs;

use crate::asked::{self, name};
use crate::cases::{self, Cluster, Layout};
use crate::object::Protocol::{self, Sctp, Tcp, Udp};
use crate::object::{Addresses, Key};
use crate::prober::server::Server;
use crate::prober::{Answer, Asker, Patience, Question, ask};

const SERVED: [(Protocol, u16); 6] = [
    (Tcp, 80),
    (Tcp, 81),
    (Udp, 80),
    (Udp, 81),
    (Sctp, 80),
    (Sctp, 81),
];

/// A namespace behind the router, with a server.
struct Pod {
    name: String,
    addresses: [IpAddr; 2],
    asker: Asker,
    _server: Server,
}

/// Feeds a program's standard input; it must succeed.
#[track_caller]
fn feed(program: &str, arguments: &[&str], text: &str) -> String {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{program}: {text}");
    String::from_utf8(output.stdout).unwrap()
}

fn addresses(number: u8) -> (Ipv4Addr, Ipv6Addr) {
    let v6 = Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, number.into());
    (Ipv4Addr::new(10, 0, 0, number), v6)
}

/// The router is the calling thread's namespace.
fn pod(number: u8, name: String) -> Pod {
    let (v4, v6) = addresses(number);
    let make = || {
        let _ns = TestNs::new();
        // Neighbours of IPv6 are asked from a link-local address, which must be usable at once.
        std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").unwrap();
        (Netns::current().unwrap(), Netns::current().unwrap())
    };
    let (netns, of_server) = std::thread::scope(|scope| scope.spawn(make).join()).unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(&netns));
    let path = format!("/proc/{}/fd/{fd}", std::process::id());
    let link = format!("pod{number}");
    feed(
        "ip",
        &["-batch", "-"],
        &format!(
            "link add {link} type veth peer name eth0 netns {path}\n\
         addr add 169.254.1.1/32 dev {link}\n\
         addr add fe80::1/64 dev {link} nodad\n\
         link set {link} up\n\
         route add {v4}/32 dev {link}\n\
         -6 route add {v6}/128 dev {link}\n",
        )
        .replace("-6 route", "route"),
    );
    netns
        .run(|| {
            feed(
                "ip",
                &["-batch", "-"],
                &format!(
                    "addr add {v4}/32 dev eth0\n\
         addr add {v6}/128 dev eth0 nodad\n\
         link set eth0 up\n\
         route add default via 169.254.1.1 dev eth0 onlink\n\
         route add ::/0 via fe80::1 dev eth0\n",
                ),
            )
        })
        .unwrap();
    let addresses = [v4.into(), v6.into()];
    let server = Server::start(of_server, &name, &addresses, &SERVED).unwrap();
    Pod {
        name,
        addresses,
        asker: Asker::new(netns),
        _server: server,
    }
}

fn router(pods: u8) -> (TestNs, Vec<Pod>) {
    let ns = TestNs::new();
    std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").unwrap();
    for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        std::fs::write(format!("/proc/sys/net/{key}"), "1").unwrap();
    }
    (
        ns,
        (1..=pods)
            .map(|number| pod(number, format!("pod {number}")))
            .collect(),
    )
}

fn nft(rules: &str) -> String {
    feed("nft", &["-f", "-"], rules)
}

/// The connections that come first are counted by what the rules say of them; a packet that is none is seen too.
const TABLE: &str = "
    table inet t {
      chain f {
        type filter hook forward priority 0
        ct state invalid counter comment invalid
        ct state established,related accept
        meta l4proto { tcp, udp, sctp } th dport 81 drop
      }
    }";

/// All questions to a pod in both families.
fn questions(to: &Pod, ports: &[(Protocol, u16)], expected: impl Fn(u16) -> bool) -> Vec<Question> {
    let of = |address: &IpAddr| {
        let question = |&(protocol, port): &(Protocol, u16)| Question {
            address: *address,
            protocol,
            port,
            name: to.name.clone(),
            expected: expected(port),
        };
        ports.iter().map(question).collect::<Vec<_>>()
    };
    to.addresses.iter().flat_map(of).collect()
}

#[track_caller]
fn one_asks(from: &Pod, questions: Vec<Question>) -> Vec<(Question, Answer)> {
    let answers = ask(&[(&from.asker, questions.clone())], Patience::default()).unwrap();
    questions
        .into_iter()
        .zip(answers.into_iter().flatten())
        .collect()
}

#[test]
fn who_is_not_kept_from_it_is_reached() {
    let (_router, pods) = router(2);
    for (question, answer) in one_asks(&pods[0], questions(&pods[1], &SERVED, |_| true)) {
        assert_eq!(answer, Answer::Reached, "{question:?}");
    }
    // Oneself, too.
    for (question, answer) in one_asks(&pods[0], questions(&pods[0], &SERVED, |_| true)) {
        assert_eq!(answer, Answer::Reached, "{question:?}");
    }
    let not_served = [(Tcp, 82), (Udp, 82), (Sctp, 82)];
    // A no is an answer to wait for.
    for (question, answer) in one_asks(&pods[0], questions(&pods[1], &not_served, |_| true)) {
        assert_eq!(answer, Answer::Refused, "{question:?}");
    }
    let mut mistaken = questions(&pods[1], &SERVED, |_| true);
    for question in &mut mistaken {
        question.name = "somebody else".into();
    }
    for (question, answer) in one_asks(&pods[0], mistaken) {
        assert_eq!(answer, Answer::Another("pod 2".into()), "{question:?}");
    }
}

#[test]
fn a_rule_silences_and_opens() {
    let (_router, pods) = router(2);
    nft(TABLE);
    for open in [false, true, false] {
        if open {
            nft("add chain inet t f\nflush chain inet t f");
        } else {
            nft(&format!("add table inet t\ndelete table inet t\n{TABLE}"));
        }
        for expected in [open, false] {
            // What is expected decides how long is waited, not what comes out.
            let all = questions(&pods[1], &SERVED, |port| port == 80 || expected);
            for (question, answer) in one_asks(&pods[0], all) {
                let reached = question.port == 80 || open;
                let right = if reached {
                    Answer::Reached
                } else {
                    Answer::Silent
                };
                assert_eq!(answer, right, "open: {open}, {question:?}");
            }
        }
    }
    // Connection tracking takes every packet for a right one, those of SCTP with their checksums, too.
    let listed = feed("nft", &["list", "table", "inet", "t"], "");
    assert!(
        listed.contains("counter packets 0 bytes 0 comment"),
        "{listed}"
    );
}

#[test]
fn what_is_expected_and_does_not_come_is_silence() {
    let (_router, pods) = router(2);
    nft(TABLE);
    for (question, answer) in one_asks(
        &pods[0],
        questions(&pods[1], &[(Tcp, 81), (Udp, 81), (Sctp, 81)], |_| true),
    ) {
        assert_eq!(answer, Answer::Silent, "{question:?}");
    }
}

/// As many questions as nine pods have for one another, a third of them denied.
#[test]
fn nine_pods_ask_one_another() {
    let (_router, pods) = router(9);
    nft("
    table inet t {
      chain f {
        type filter hook forward priority 0
        ct state established,related accept
        ip daddr { 10.0.0.1, 10.0.0.2, 10.0.0.3 } drop
        ip6 daddr { fd00:10::1, fd00:10::2, fd00:10::3 } drop
      }
    }");
    for _ in 0..3 {
        let closed = |from: &Pod, to: &Pod| {
            from.name != to.name && ["pod 1", "pod 2", "pod 3"].contains(&&*to.name)
        };
        let all: Vec<_> = pods
            .iter()
            .map(|from| {
                let to = |to| questions(to, &SERVED, |_| !closed(from, to));
                (&from.asker, pods.iter().flat_map(to).collect::<Vec<_>>())
            })
            .collect();
        let start = Instant::now();
        let answers = ask(&all, Patience::default()).unwrap();
        let took = start.elapsed();
        let mut counts = [0, 0];
        for (question, answer) in all
            .iter()
            .flat_map(|(_, questions)| questions)
            .zip(answers.iter().flatten())
        {
            let right = if question.expected {
                Answer::Reached
            } else {
                Answer::Silent
            };
            assert_eq!(*answer, right, "{question:?}");
            counts[usize::from(question.expected)] += 1;
        }
        println!(
            "{} answers and {} silences in {took:?}",
            counts[1], counts[0]
        );
    }
}

/// A rule for each question that is to stay without an answer.
fn drops(cluster: &Cluster, questions: &BTreeMap<Key, Vec<Question>>) -> String {
    let mut rules = String::new();
    for (key, questions) in questions {
        let Addresses { v4, v6 } = cluster.pods[key].addresses;
        for question in questions.iter().filter(|question| !question.expected) {
            let ends = match question.address {
                IpAddr::V4(to) => format!("ip saddr {} ip daddr {to}", v4.unwrap()),
                IpAddr::V6(to) => format!("ip6 saddr {} ip6 daddr {to}", v6.unwrap()),
            };
            let protocol = format!("{:?}", question.protocol).to_lowercase();
            rules += &format!("{ends} {protocol} dport {} drop\n", question.port);
        }
    }
    rules
}

/// A case from its objects to its packets: the router drops what the oracle denies, step by step.
#[test]
fn a_case_is_asked_with_packets() {
    let (_router, _) = router(0);
    let numbers = |key: &Key| {
        let (namespace, pod) = (
            key.namespace.as_bytes()[0] - b'x',
            key.name.as_bytes()[0] - b'a',
        );
        let (v4, v6) = addresses(1 + namespace * 3 + pod);
        let (v4, v6) = (Some(v4), Some(v6));
        (0, Addresses { v4, v6 })
    };
    let layout = Layout {
        place: &numbers,
        ..Layout::two_nodes()
    };
    let cases = cases::netpol::cases(&layout);
    let case = cases
        .iter()
        .find(|case| case.name == "should allow ingress access from updated pod");
    let case = case.unwrap();
    let pods: BTreeMap<_, _> = (1..)
        .zip(case.cluster.pods.keys())
        .map(|(number, key)| (key.clone(), pod(number, name(key))))
        .collect();
    let mut denied_before = usize::MAX;
    case.walk(|cluster, step| {
        let questions = asked::questions(cluster, step);
        let drops = drops(cluster, &questions);
        let denied = drops.lines().count();
        nft(&format!(
            "add table inet t
            delete table inet t
            table inet t {{
              chain f {{
                type filter hook forward priority 0
                ct state established accept
                {drops}
              }}
            }}"
        ));
        // What was denied in the first step to the pod that changes is not in the second one.
        assert!(0 < denied && denied < denied_before);
        denied_before = denied;
        let all: Vec<_> = questions
            .iter()
            .map(|(key, questions)| (&pods[key].asker, questions.clone()))
            .collect();
        let answers = ask(&all, Patience::default()).unwrap();
        for (question, answer) in all
            .iter()
            .flat_map(|(_, questions)| questions)
            .zip(answers.iter().flatten())
        {
            let right = if question.expected {
                Answer::Reached
            } else {
                Answer::Silent
            };
            assert_eq!(*answer, right, "{question:?}");
        }
    });
}
