//! Each check on made-up facts: what it finds, and that it finds nothing on a healthy node.

use podspan_kernel::IfName;
use podspan_kernel::nft::{ChainKind, Hook, ListedBase, ListedChain, ListedRule, Policy, Verdict};

use super::super::Level;
use super::super::facts::{Forward, NetworkManager, Plugin};
use super::*;
use crate::board::Usage;

fn name(text: &str) -> IfName {
    text.parse().unwrap()
}

fn link(index: u32, name: &str) -> Link {
    Link {
        index,
        name: name.to_owned(),
        mac: None,
        mtu: 1500,
        up: true,
        kind: None,
        alias: None,
        master: None,
        hairpin: false,
        isolated: false,
        learning: false,
        flood: false,
        peer: None,
        promiscuous: false,
        all_multicast: false,
        tx_queue_length: 0,
        vlans: podspan_kernel::BridgeVlans::default(),
        netfilter: None,
        vxlan: None,
    }
}

fn chain(family: Family, table: &str, name: &str) -> ListedChain {
    ListedChain {
        family,
        table: table.to_owned(),
        name: name.to_owned(),
        base: None,
    }
}

fn sysctls(facts: &mut Facts, values: &[(&str, &str)]) {
    for (key, value) in values {
        facts.sysctls.insert((*key).to_owned(), (*value).to_owned());
    }
}

/// A node that is right, with much of everything that the checks look at.
fn healthy() -> Facts {
    let mut pod = link(4, "pod0123456789ab");
    pod.alias = Some("podspan:podspan/web/eth0".to_owned());
    pod.master = Some(3);
    let mut facts = Facts {
        config_file: "agent.toml".into(),
        bridge: Some(name("podspan0")),
        links: vec![link(1, "lo"), link(2, "eth0"), link(3, "podspan0"), pod],
        ways: [2].into(),
        uplinks: [2].into(),
        peers: 10,
        pods: 1,
        conflists: vec![(
            "/etc/cni/net.d/10-podspan.conflist".into(),
            vec!["podspan-cni".to_owned()],
        )],
        plugin: Some(Plugin {
            file: "/opt/cni/bin/podspan-cni".into(),
            version: Ok(env!("CARGO_PKG_VERSION").to_owned()),
        }),
        pod_cidrs: Usage::of(&["10.244.1.1/24".parse().unwrap()], &[]),
        chains: vec![chain(Family::Ip, "filter", "FORWARD")],
        ..Facts::default()
    };
    sysctls(
        &mut facts,
        &[
            ("net/ipv4/conf/all/rp_filter", "1"),
            ("net/ipv4/conf/eth0/rp_filter", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv6/conf/eth0/accept_ra", "1"),
            ("net/bridge/bridge-nf-call-iptables", "1"),
            ("net/netfilter/nf_conntrack_count", "1000"),
            ("net/netfilter/nf_conntrack_max", "262144"),
            ("net/ipv4/neigh/default/gc_thresh3", "1024"),
        ],
    );
    facts
}

/// All that is found, as level and text.
fn found(facts: &Facts) -> Vec<(Level, String)> {
    let found = ALL.iter().flat_map(|check| check(facts));
    let text = |found: Finding| {
        let (why, mend) = (found.why.unwrap(), found.mend.unwrap());
        assert!(!why.is_empty() && !mend.is_empty());
        (found.level, format!("{}; to mend it: {mend}", found.what))
    };
    found.map(text).collect()
}

/// The one thing that is found after this change of a healthy node.
fn ill(change: impl FnOnce(&mut Facts)) -> (Level, String) {
    let mut facts = healthy();
    change(&mut facts);
    let mut found = found(&facts);
    assert_eq!(found.len(), 1, "{found:#?}");
    found.remove(0)
}

fn well(change: impl FnOnce(&mut Facts)) {
    let mut facts = healthy();
    change(&mut facts);
    assert_eq!(found(&facts), []);
}

#[test]
fn a_healthy_node_has_nothing() {
    well(|_| {});
    assert_eq!(
        found(&Facts::default()),
        [],
        "nor one of which nothing is known"
    );
}

fn rule(verdict: Option<Verdict>, links: &[&str]) -> ListedRule {
    ListedRule {
        handle: 1,
        comment: None,
        refuses: verdict == Some(Verdict::Drop),
        verdict,
        is_for_all: links.is_empty(),
        links: links.iter().map(|link| name(link)).collect(),
    }
}

fn forward(place: (Family, &str, &str), policy: Policy, rules: Vec<ListedRule>) -> Forward {
    let (family, table, name) = place;
    let base = ListedBase {
        kind: Some(ChainKind::Filter),
        hook: Hook::Forward,
        priority: 0,
        policy,
    };
    Forward {
        chain: ListedChain {
            base: Some(base),
            ..chain(family, table, name)
        },
        rules,
        names_bridge: false,
    }
}

const IPTABLES: (Family, &str, &str) = (Family::Ip, "filter", "FORWARD");
const FIREWALLD: (Family, &str, &str) = (Family::Inet, "firewalld", "filter_FORWARD");
const OWN: (Family, &str, &str) = (Family::Inet, "filter", "forward");

#[test]
fn a_drop_of_what_is_forwarded_is_found_unless_pods_pass_before_it() {
    let jump = |to: &str| rule(Some(Verdict::Jump(to.to_owned())), &[]);
    let drop = || rule(Some(Verdict::Drop), &[]);
    let accept = || rule(Some(Verdict::Accept), &["podspan0"]);
    let drops = |forward: Forward| ill(|facts| facts.forward.push(forward));
    let passes = |forward: Forward| well(|facts| facts.forward.push(forward));
    // The agent outweighs this policy; that its rule is missing would be told as one of its changes.
    passes(forward(IPTABLES, Policy::Drop, vec![]));
    passes(forward(IPTABLES, Policy::Drop, vec![jump("PODSPAN-AGENT")]));
    passes(forward(
        IPTABLES,
        Policy::Accept,
        vec![jump("PODSPAN-FORWARD"), drop()],
    ));
    passes(forward(
        IPTABLES,
        Policy::Accept,
        vec![rule(Some(Verdict::Drop), &["docker0"])],
    ));
    let (level, text) = drops(forward(
        IPTABLES,
        Policy::Drop,
        vec![drop(), jump("PODSPAN-AGENT")],
    ));
    assert_eq!(level, Level::Wrong);
    assert!(
        text.contains(
            "iptables -I FORWARD -i podspan0 -j ACCEPT && iptables -I FORWARD -o podspan0 -j ACCEPT"
        ),
        "{text}"
    );
    let (_, text) = drops(forward(
        FIREWALLD,
        Policy::Accept,
        vec![jump("zones"), drop()],
    ));
    assert!(
        text.starts_with("chain inet firewalld filter_FORWARD drops what"),
        "{text}"
    );
    assert!(
        text.contains("firewall-cmd --permanent --zone=trusted --add-interface=podspan0"),
        "{text}"
    );
    let named = forward(FIREWALLD, Policy::Accept, vec![jump("zones"), drop()]);
    passes(Forward {
        names_bridge: true,
        ..named
    });
    let (_, text) = drops(forward(OWN, Policy::Drop, vec![]));
    assert!(
        text.contains("nft insert rule inet filter forward iifname podspan0 accept"),
        "{text}"
    );
    passes(forward(OWN, Policy::Drop, vec![accept()]));
    passes(forward(OWN, Policy::Accept, vec![accept(), drop()]));
    let (_, text) = drops(forward(OWN, Policy::Accept, vec![drop(), accept()]));
    assert!(text.contains("nft insert rule"), "{text}");
    // A router has no bridge, and nobody outweighs anything there.
    let router = |forward: Forward| {
        ill(|facts| {
            facts.bridge = None;
            facts.forward.push(forward);
        })
    };
    let (level, text) = router(forward(IPTABLES, Policy::Drop, vec![]));
    assert!(
        level == Level::Wrong && text.contains("iptables -P FORWARD ACCEPT"),
        "{text}"
    );
}

#[test]
fn strict_reverse_path_bites_where_the_way_back_is_another_link() {
    let two = |facts: &mut Facts| {
        facts.links.push(link(5, "eth1"));
        facts.uplinks = [5].into();
    };
    let (level, text) = ill(two);
    assert_eq!(level, Level::Wrong);
    assert!(
        text.starts_with(
            "rp_filter of eth1 is strict, and the routes to other nodes' pods leave by eth0"
        ),
        "{text}"
    );
    assert!(
        text.ends_with("sysctl -w net.ipv4.conf.eth1.rp_filter=2"),
        "{text}"
    );
    well(|facts| {
        two(facts);
        sysctls(facts, &[("net/ipv4/conf/eth1/rp_filter", "2")]);
    });
    well(|facts| {
        two(facts);
        facts.ways.insert(5);
    });
}

#[test]
fn services_need_the_filters_of_ip_on_the_bridge_or_a_node_that_routes() {
    for (family, table, name) in [
        (Family::Ip, "nat", "KUBE-SERVICES"),
        (Family::Ip6, "kube-proxy", "services"),
    ] {
        let proxy = |facts: &mut Facts| facts.chains.push(chain(family, table, name));
        well(proxy);
        let absent = |facts: &mut Facts| {
            proxy(facts);
            facts.sysctls.remove(BR_NETFILTER);
            // The kernel stores what nobody heeds.
            facts.links[2].netfilter = Some(true);
        };
        let (level, _) = ill(absent);
        assert_eq!(level, Level::Wrong);
        well(|facts| {
            absent(facts);
            facts.between = Some(Between::Node { can_filter: false });
        });
        let off = [(BR_NETFILTER, "0")];
        let (_, text) = ill(|facts| {
            proxy(facts);
            sysctls(facts, &off);
            facts.links[2].netfilter = Some(false);
        });
        assert!(
            text.contains("set bridge_netfilter = true in agent.toml"),
            "{text}"
        );
        well(|facts| {
            proxy(facts);
            sysctls(facts, &off);
            facts.links[2].netfilter = Some(true);
        });
    }
    well(|facts| drop(facts.sysctls.remove(BR_NETFILTER)));
}

#[test]
fn a_default_route_by_advertisement_ends_on_a_machine_that_forwards() {
    let advertised = |facts: &mut Facts| facts.advertised = [2].into();
    let (level, text) = ill(advertised);
    assert!(
        level == Level::Warning && text.contains("net.ipv6.conf.eth0.accept_ra=2"),
        "{text}"
    );
    for right in [
        ("net/ipv6/conf/eth0/accept_ra", "2"),
        ("net/ipv6/conf/all/forwarding", "0"),
    ] {
        well(|facts| {
            advertised(facts);
            sysctls(facts, &[right]);
        });
    }
}

#[test]
fn ways_that_fail_are_found_with_what_mends_them() {
    let line = "peer node2 (10.244.2.1) does not answer on eth0; see whether the node is up: ping 192.168.1.12";
    let (level, text) = ill(|facts| facts.failing.push(line.to_owned()));
    assert_eq!(level, Level::Wrong);
    let expected = "peer node2 (10.244.2.1) does not answer on eth0; to mend it: see whether the node is up: ping 192.168.1.12";
    assert_eq!(text, expected);
}

#[test]
fn the_plugin_must_be_there_and_of_our_version() {
    let with = |version: Result<&str, &str>| {
        ill(|facts| {
            facts.plugin.as_mut().unwrap().version =
                version.map(str::to_owned).map_err(str::to_owned);
        })
    };
    let (level, text) = with(Err("it is not there"));
    assert!(
        level == Level::Wrong && text.ends_with("podspan-cni install /opt/cni/bin"),
        "{text}"
    );
    let (level, text) = with(Ok("0.0.1"));
    assert!(
        level == Level::Warning && text.contains("is version 0.0.1"),
        "{text}"
    );
}

#[test]
fn addresses_that_nobody_can_have_are_found() {
    let usage = |used: u32| {
        let pods: Vec<_> = (0..used)
            .map(|n| std::net::Ipv4Addr::from_bits(0x0af4_0102 + n).into())
            .collect();
        ill(|facts| facts.pod_cidrs = Usage::of(&["10.244.1.1/24".parse().unwrap()], &pods))
    };
    let (level, text) = usage(230);
    assert!(
        level == Level::Warning && text.contains("10.244.1.0/24 is nearly full"),
        "{text}"
    );
    assert_eq!(usage(253).0, Level::Wrong);
    let (level, text) = ill(|facts| {
        let id = podspan_cni::attachment::AttachmentId {
            container: "gone".parse().unwrap(),
            ifname: name("eth0"),
        };
        facts.orphans = (2..9)
            .map(|n| (std::net::Ipv4Addr::new(10, 244, 1, n).into(), id.clone()))
            .collect();
    });
    assert_eq!(level, Level::Warning);
    assert!(
        text.starts_with("7 addresses belong to containers without a link: 10.244.1.2, "),
        "{text}"
    );
    assert!(
        text.contains("10.244.1.6 and 2 more; to mend it: podspan del gone /none --ifname eth0"),
        "{text}"
    );
    let (_, text) = ill(|facts| {
        facts
            .damaged
            .push("/run/podspan/ipam/podspan/10.244.1.7".into())
    });
    assert!(
        text.ends_with("rm /run/podspan/ipam/podspan/10.244.1.7"),
        "{text}"
    );
}

#[test]
fn pods_that_began_with_a_larger_mtu_are_found() {
    let (level, text) = ill(|facts| facts.links[2].mtu = 1450);
    assert_eq!(level, Level::Warning);
    assert!(
        text.starts_with(
            "pods have a larger MTU than bridge podspan0 with its 1450: pod0123456789ab 1500"
        ),
        "{text}"
    );
    // Smaller ones have always been right; others' ports are others' affair.
    well(|facts| facts.links[2].mtu = 9000);
    well(|facts| {
        facts.links[2].mtu = 1450;
        facts.links[3].alias = Some("theirs".to_owned());
    });
}

#[test]
fn tables_of_the_kernel_that_come_to_their_end_are_found() {
    let count =
        |count: &str| ill(|facts| sysctls(facts, &[("net/netfilter/nf_conntrack_count", count)]));
    let (level, text) = count("230000");
    assert!(
        level == Level::Warning && text.ends_with("nf_conntrack_max=524288"),
        "{text}"
    );
    assert_eq!(count("262144").0, Level::Wrong);
    let peers = |peers| ill(|facts| facts.peers = peers);
    let (level, text) = peers(900);
    assert!(
        level == Level::Warning && text.contains("901 neighbours"),
        "{text}"
    );
    let (level, text) = peers(5000);
    assert_eq!(level, Level::Wrong);
    assert!(text.ends_with("sysctl -w net.ipv4.neigh.default.gc_thresh3=32768 net.ipv4.neigh.default.gc_thresh2=16384"), "{text}");
}

#[test]
fn network_manager_is_to_leave_our_links_alone() {
    let manager = |runs, is_told| NetworkManager { runs, is_told };
    let (level, text) = ill(|facts| facts.network_manager = manager(true, false));
    assert_eq!(level, Level::Warning);
    assert!(
        text.contains("unmanaged-devices=interface-name:podspan0;interface-name:pod*"),
        "{text}"
    );
    assert!(
        text.contains("/etc/NetworkManager/conf.d/podspan.conf"),
        "{text}"
    );
    well(|facts| facts.network_manager = manager(true, true));
    well(|facts| facts.network_manager = manager(false, false));
}

#[test]
fn both_kinds_of_iptables_at_once_are_found() {
    let (level, text) = ill(|facts| facts.legacy = [true, false]);
    assert!(
        level == Level::Warning
            && text.starts_with("there are rules of iptables-legacy and of iptables-nft"),
        "{text}"
    );
    let (level, text) = ill(|facts| {
        facts.legacy = [true, false];
        facts.chains.clear();
    });
    assert!(
        level == Level::Warning
            && text.starts_with("there are rules of iptables-legacy, which are not looked into")
            && text.contains("iptables-legacy -I FORWARD -i podspan0 -j ACCEPT"),
        "{text}"
    );
    well(|facts| facts.legacy = [false, false]);
}

#[test]
fn what_another_network_left_is_found_and_our_own_bridge_is_not() {
    for left in [
        "cni0",
        "flannel.1",
        "cali0123",
        "cilium_host",
        "kube-bridge",
        "weave",
    ] {
        let (level, text) = ill(|facts| facts.links.push(link(9, left)));
        assert!(
            level == Level::Warning && text.ends_with(&format!("ip link del {left}")),
            "{text}"
        );
    }
    well(|facts| {
        facts.links[2].name = "cni0".to_owned();
        facts.bridge = Some(name("cni0"));
    });
    let (_, text) = ill(|facts| {
        facts
            .chains
            .push(chain(Family::Ip, "nat", "FLANNEL-POSTRTG"))
    });
    assert!(text.contains("ip nat FLANNEL-POSTRTG; to mend it: iptables-save | grep -v FLANNEL- | iptables-restore"), "{text}");
    let (_, text) = ill(|facts| {
        let types = vec!["flannel".to_owned(), "portmap".to_owned()];
        facts
            .conflists
            .push(("/etc/cni/net.d/20-flannel.conflist".into(), types));
    });
    assert!(
        text.contains("(flannel, portmap); to mend it: mv /etc/cni/net.d/20-flannel.conflist "),
        "{text}"
    );
}
