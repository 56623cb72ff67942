use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Command;
use std::sync::Arc;

use podspan_kernel::Errno;
use podspan_kernel::nft::Type;
use podspan_kernel::testing::TestNs;

use super::*;
use crate::policy::object::{Protocol, Text};
use crate::policy::program::Members;

/// The chains of one attachment as the plugin makes them.
fn attachment(name: &str) {
    let mut batch = Batch::new();
    batch.add_table(INET);
    for direction in [Direction::Ingress, Direction::Egress] {
        batch.add_chain(Chain::plain(INET, &own_chain(name, direction)));
    }
    Nft::open().unwrap().commit(batch).unwrap();
}

fn nft(words: &str) -> String {
    let output = Command::new("nft").args(words.split_whitespace()).output();
    let output = output.expect("nft of nftables is installed");
    let printed = [output.stdout, output.stderr].concat();
    String::from_utf8(printed).unwrap()
}

/// The rules of a chain as `nft` prints them.
fn rules(chain: &str) -> Vec<String> {
    let printed = nft(&format!("-s list chain inet podspan {chain}"));
    let lines = printed.lines().map(str::trim);
    lines
        .filter(|line| !line.contains('{') && *line != "}")
        .map(str::to_owned)
        .collect()
}

/// The elements of a set as `nft` prints them.
fn elements(set: &str) -> String {
    let printed = nft(&format!("-n list set inet podspan {set}"));
    let Some((_, list)) = printed.split_once("elements = {") else {
        return printed;
    };
    let list = list.split('}').next().unwrap();
    list.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn origin(rule: usize) -> Origin {
    let [namespace, name] = ["shop", "web"].map(Text::from);
    Origin::Rule(Key { namespace, name }, rule)
}

fn step(peers: Peers, ports: Ports, action: Action) -> Step {
    Step {
        peers,
        ports,
        action,
        origin: origin(0),
    }
}

fn addresses(all: &[&str]) -> Members {
    Members::Addresses(all.iter().map(|ip| ip.parse().unwrap()).collect())
}

fn known(ingress: Option<u32>, egress: Option<u32>) -> Verdict {
    let [namespace, name] = ["shop", "web-0"].map(Text::from);
    Verdict::Known {
        pod: Key { namespace, name },
        ingress: ingress.map(ProgramId),
        egress: egress.map(ProgramId),
    }
}

/// One program of each direction, with all that a step can be.
fn everything() -> Difference {
    let tcp = |first, last| Ports::Of(vec![(Protocol::Tcp, first, last)]);
    let ingress = Program {
        direction: Direction::Ingress,
        stages: vec![
            vec![
                step(Peers::In(SetId(1)), Ports::Any, Action::Pass),
                step(Peers::Anybody, tcp(22, 22), Action::Deny),
            ],
            vec![
                step(Peers::In(SetId(1)), tcp(80, 81), Action::Accept),
                step(Peers::In(SetId(2)), Ports::Any, Action::Accept),
            ],
        ],
        isolated_by: vec![Key {
            namespace: "shop".into(),
            name: "web".into(),
        }],
    };
    let all_udp = Ports::Of(vec![(Protocol::Udp, 0, u16::MAX)]);
    let egress = Program {
        direction: Direction::Egress,
        stages: vec![vec![
            step(Peers::Socket(SetId(3)), Ports::Any, Action::Accept),
            step(Peers::Anybody, all_udp, Action::Accept),
        ]],
        isolated_by: Vec::new(),
    };
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let ranges = vec![
        (ip("10.0.0.0"), ip("10.0.0.9")),
        (ip("fd00::"), ip("fd00::ffff")),
    ];
    let sockets = BTreeSet::from([
        (ip("10.1.0.9"), Protocol::Tcp, 8080),
        (ip("fd01::9"), Protocol::Sctp, 8081),
    ]);
    let sets = [
        (1, addresses(&["10.1.0.2", "10.1.0.3", "fd01::2"])),
        (2, Members::Ranges(ranges)),
        (3, Members::Sockets(sockets)),
    ];
    Difference {
        sets: sets
            .into_iter()
            .map(|(id, members)| (SetId(id), SetChange::New(members)))
            .collect(),
        programs: BTreeMap::from([
            (ProgramId(1), Some(Arc::new(ingress))),
            (ProgramId(2), Some(Arc::new(egress))),
        ]),
        attachments: BTreeMap::from([("a".into(), known(Some(1), Some(2)))]),
    }
}

#[test]
fn programs_are_chains_and_what_they_leave_undecided_is_decided_in_the_attachment_s_chain() {
    let _ns = TestNs::new();
    attachment("a");
    let mut dataplane = Dataplane::open(false).unwrap();
    dataplane.apply(&everything()).unwrap();

    let isolating = "NetworkPolicy shop/web";
    let [log, drop] = denying("pi_a", isolating);
    assert_eq!(rules("pi_a"), ["jump policy_0_1_0".to_owned(), log, drop]);
    assert_eq!(rules("pe_a"), ["jump policy_0_2_0"]);
    let said = "comment \"NetworkPolicy shop/web rule 1\"";
    assert_eq!(
        rules("policy_0_1_0"),
        [
            format!("ip saddr @policy_0_1_ip4 goto policy_0_1_1 {said}"),
            format!("ip6 saddr @policy_0_1_ip6 goto policy_0_1_1 {said}"),
            format!("tcp dport 22 return {said}"),
            "goto policy_0_1_1".to_owned(),
        ]
    );
    assert_eq!(
        rules("policy_0_1_1"),
        [
            format!("ip saddr @policy_0_1_ip4 tcp dport 80-81 accept {said}"),
            format!("ip6 saddr @policy_0_1_ip6 tcp dport 80-81 accept {said}"),
            format!("ip saddr @policy_0_2_ip4 accept {said}"),
            format!("ip6 saddr @policy_0_2_ip6 accept {said}"),
            "return".to_owned(),
        ]
    );
    let of_egress = rules("policy_0_2_0");
    assert!(of_egress[0].starts_with("ip daddr . meta l4proto . th dport @policy_0_3_ip4 accept"));
    assert!(
        of_egress[2].starts_with("meta l4proto udp accept")
            || of_egress[2].starts_with("meta l4proto 17 accept"),
        "{of_egress:?}"
    );
    assert_eq!(elements("policy_0_1_ip6"), "fd01::2");
    assert_eq!(elements("policy_0_2_ip4"), "10.0.0.0-10.0.0.9");
    assert_eq!(elements("policy_0_3_ip6"), "fd01::9 . 132 . 8081");
}

/// The rules that log and drop, as `nft` prints them.
fn denying(chain: &str, denier: &str) -> [String; 2] {
    let (attachment, direction) = match chain.split_once('_').unwrap() {
        ("pi", name) => (name, Direction::Ingress),
        (_, name) => (name, Direction::Egress),
    };
    let counted = Counted {
        attachment: attachment.into(),
        direction,
        denier: denier.into(),
    };
    let name = counted.name();
    [
        format!("limit rate 10/second burst 20 packets log prefix \"{name}\" group 112"),
        format!("counter name \"{name}\" drop"),
    ]
}

/// Which policy denies is said by the mark that nobody sees, and the last rule of the chain asks nothing.
#[test]
fn several_that_deny_are_told_apart_in_the_attachment_s_chain() {
    let deny = |policy: &str, rule: usize| Step {
        origin: Origin::ClusterRule(policy.into(), rule, None),
        ..step(
            Peers::Anybody,
            Ports::Of(vec![(Protocol::Tcp, 1, 9)]),
            Action::Deny,
        )
    };
    let pass = step(Peers::Anybody, Ports::Any, Action::Pass);
    let program = |isolated_by: &[Key]| Program {
        direction: Direction::Ingress,
        stages: vec![vec![
            deny("red", 0),
            deny("blue", 0),
            deny("red", 1),
            pass.clone(),
        ]],
        isolated_by: isolated_by.to_vec(),
    };
    let key = |name: &str| Key {
        namespace: "shop".into(),
        name: name.into(),
    };
    let laid = |isolated_by: &[Key]| {
        let _ns = TestNs::new();
        attachment("a");
        let difference = Difference {
            programs: [(ProgramId(1), Some(Arc::new(program(isolated_by))))].into(),
            attachments: [("a".into(), known(Some(1), None))].into(),
            ..Difference::default()
        };
        Dataplane::open(false).unwrap().apply(&difference).unwrap();
        let verdicts = rules("policy_0_1_0").into_iter();
        let verdicts = verdicts.map(|rule| rule.replace("tcp dport 1-9 ", ""));
        let verdicts = verdicts.map(|rule| rule.split(" comment").next().unwrap().to_owned());
        (rules("pi_a"), verdicts.collect::<Vec<_>>())
    };
    let marked = |mark: &str, denier: &str| {
        denying("pi_a", denier).map(|rule| format!("meta mark {mark} {rule}"))
    };
    let [red, blue] = ["ClusterNetworkPolicy red", "ClusterNetworkPolicy blue"];
    let jump = || vec!["jump policy_0_1_0".to_owned()];

    let (own, program) = laid(&[]);
    let expected = [
        jump(),
        marked("0x00000000", red).into(),
        denying("pi_a", blue).into(),
    ];
    assert_eq!(own, expected.concat());
    let set = |mark: u32| format!("meta mark set {mark:#010x} return");
    let expected = [
        set(0),
        set(1),
        set(0),
        "accept".to_owned(),
        "accept".to_owned(),
    ];
    assert_eq!(program, expected);

    let (own, program) = laid(&[key("a"), key("b")]);
    let both = "NetworkPolicy shop/a, NetworkPolicy shop/b";
    let expected = [
        jump(),
        marked("0x00000000", red).into(),
        marked("0x00000001", blue).into(),
        denying("pi_a", both).into(),
    ];
    assert_eq!(own, expected.concat());
    assert_eq!(program, [set(0), set(1), set(0), set(2), set(2)]);
}

fn counters() -> Vec<String> {
    let listed = Nft::open().unwrap().list_counters(INET).unwrap();
    let mut comments: Vec<_> = listed.into_iter().filter_map(|one| one.comment).collect();
    comments.sort();
    comments
}

#[test]
fn counters_stay_while_the_attachment_is_there_and_those_of_nobody_are_swept() {
    let _ns = TestNs::new();
    attachment("a");
    let mut dataplane = Dataplane::open(false).unwrap();
    dataplane.apply(&everything()).unwrap();
    assert_eq!(counters(), ["NetworkPolicy shop/web"]);
    let open = Difference {
        attachments: [("a".into(), known(None, None))].into(),
        ..Difference::default()
    };
    dataplane.apply(&open).unwrap();
    dataplane.sweep().unwrap();
    assert_eq!(counters(), ["NetworkPolicy shop/web"], "told on");
    assert_eq!(dataplane.changed_counters().unwrap().count(), 1);
    assert!(dataplane.changed_counters().is_none());

    // A new agent, with another policy: those of before go, but not while rules count with them.
    let closed = Difference {
        attachments: [("a".into(), Verdict::Unknown)].into(),
        ..Difference::default()
    };
    dataplane.apply(&closed).unwrap();
    let mut next = Dataplane::open(false).unwrap();
    next.sweep().unwrap();
    assert_eq!(counters(), ["not known yet"; 2]);
    next.apply(&everything()).unwrap();
    next.sweep().unwrap();
    assert_eq!(counters(), ["NetworkPolicy shop/web"]);
    next.forget("a");
    assert_eq!(next.changed_counters().unwrap().count(), 0);
    let mut batch = Batch::new();
    batch.delete_chain(Chain::plain(INET, "pi_a"));
    Nft::open().unwrap().commit(batch).unwrap();
    next.sweep().unwrap();
    assert!(counters().is_empty());
}

#[test]
fn members_come_and_go_and_what_nobody_asks_any_longer_goes() {
    let _ns = TestNs::new();
    attachment("a");
    let mut dataplane = Dataplane::open(false).unwrap();
    dataplane.apply(&everything()).unwrap();
    let moved = SetChange::Changed {
        added: addresses(&["10.1.0.4", "fd01::4"]),
        removed: addresses(&["10.1.0.2", "10.1.0.3", "fd01::2"]),
    };
    let difference = Difference {
        sets: BTreeMap::from([(SetId(1), moved)]),
        ..Difference::default()
    };
    dataplane.apply(&difference).unwrap();
    assert_eq!(elements("policy_0_1_ip4"), "10.1.0.4");
    assert_eq!(elements("policy_0_1_ip6"), "fd01::4");

    let gone = [1, 2, 3].map(|id| (SetId(id), SetChange::Gone));
    let difference = Difference {
        sets: gone.into(),
        programs: [1, 2].map(|id| (ProgramId(id), None)).into(),
        attachments: BTreeMap::from([("a".into(), known(None, None))]),
    };
    dataplane.apply(&difference).unwrap();
    assert!(!nft("list table inet podspan").contains("policy_"));
    assert!(rules("pi_a").is_empty() && rules("pe_a").is_empty());
}

#[test]
fn a_pod_that_is_not_known_is_closed_or_open_as_the_operator_says() {
    let _ns = TestNs::new();
    attachment("a");
    let unknown = Difference {
        attachments: BTreeMap::from([("a".into(), Verdict::Unknown)]),
        ..Difference::default()
    };
    Dataplane::open(false).unwrap().apply(&unknown).unwrap();
    for chain in ["pi_a", "pe_a"] {
        let closed = denying(chain, "not known yet");
        assert_eq!(
            rules(chain),
            closed.map(|rule| format!("{rule} comment \"closed\""))
        );
    }
    Dataplane::open(true).unwrap().apply(&unknown).unwrap();
    assert!(rules("pi_a").is_empty() && rules("pe_a").is_empty());
}

#[test]
fn an_attachment_that_is_gone_makes_all_of_it_fail_and_a_new_begin_replaces_everything() {
    let _ns = TestNs::new();
    attachment("a");
    let mut dataplane = Dataplane::open(false).unwrap();
    dataplane.apply(&everything()).unwrap();
    let before = nft("-s list table inet podspan");
    let difference = Difference {
        sets: BTreeMap::from([(SetId(4), SetChange::New(addresses(&["10.9.9.9"])))]),
        attachments: BTreeMap::from([("b".into(), known(None, None))]),
        ..Difference::default()
    };
    let refused = dataplane.apply(&difference).unwrap_err();
    assert_eq!(refused.errno(), Errno::NOENT);
    assert_eq!(nft("-s list table inet podspan"), before);

    for mut dataplane in [dataplane, Dataplane::open(false).unwrap()] {
        dataplane.begin_anew().unwrap();
        let epoch = dataplane.epoch;
        dataplane.apply(&everything()).unwrap();
        let printed = nft("-s list table inet podspan");
        assert_eq!(rules("pi_a")[0], format!("jump policy_{epoch}_1_0"));
        assert!(
            !printed.contains(&format!("policy_{}_", epoch - 1)),
            "{printed}"
        );
    }
}

#[test]
fn fifty_thousand_members_are_one_transaction() {
    let _ns = TestNs::new();
    attachment("a");
    let all = (0..50_000_u32).map(|n| IpAddr::from((0x0a00_0000 + n).to_be_bytes()));
    let difference = Difference {
        sets: BTreeMap::from([(SetId(1), SetChange::New(Members::Addresses(all.collect())))]),
        ..Difference::default()
    };
    let begin = std::time::Instant::now();
    Dataplane::open(false).unwrap().apply(&difference).unwrap();
    println!("50,000 members in {:?}", begin.elapsed());
    let set = Set::of(INET, "policy_0_1_ip4", &[Type::Ipv4]);
    assert_eq!(
        Nft::open().unwrap().list_elements(&set).unwrap().len(),
        50_000
    );
}

#[test]
fn policies_may_have_the_longest_names_that_there_are() {
    let _ns = TestNs::new();
    attachment("a");
    let key = Key {
        namespace: "n".repeat(63).into(),
        name: "p".repeat(253).into(),
    };
    let mut difference = everything();
    for program in difference.programs.values_mut().flatten() {
        let program = Arc::make_mut(program);
        program.stages.iter_mut().flatten().for_each(|step| {
            step.origin = Origin::Rule(key.clone(), 0);
        });
        let others = (0..9).map(|n| Key {
            name: format!("{n}{}", "q".repeat(252)).into(),
            ..key.clone()
        });
        program.isolated_by = others.collect();
    }
    Dataplane::open(false).unwrap().apply(&difference).unwrap();
    assert!(rules("policy_0_1_1")[0].contains("NetworkPolicy nnnn"));
}
