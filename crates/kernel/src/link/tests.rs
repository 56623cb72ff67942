use super::*;
use crate::testing::TestNs;

fn name(text: &str) -> IfName {
    text.parse().unwrap()
}

fn pair<'a>(host: &'a IfName, peer: &'a IfName, peer_netns: &'a Netns) -> VethPair<'a> {
    let end = |name, last| VethEnd {
        name,
        mac: Mac([0x0a, 0x58, 0, 0, 0, last]),
    };
    VethPair {
        host: end(host, 1),
        peer: end(peer, 2),
        peer_netns,
        master: None,
        mtu: 1400,
    }
}

/// A namespace that no file names; it lives as long as the value.
fn other_netns() -> Netns {
    let make = || Netns::enter_new().and_then(|()| Netns::current());
    std::thread::scope(|scope| scope.spawn(make).join())
        .unwrap()
        .unwrap()
}

#[test]
fn one_bridge_s_packets_pass_the_filters_of_ip() {
    let ns = TestNs::new();
    let mut netlink = Netlink::open().unwrap();
    for bridge in ["br0", "br1"] {
        ns.ip(&format!("link add {bridge} type bridge"));
    }
    for on in [true, false] {
        let change = LinkChange {
            netfilter: Some(on),
            ..LinkChange::default()
        };
        netlink.set_link(&name("br0"), change).unwrap();
        let data = ns.ip("-d link show br0")[0]["linkinfo"]["info_data"].clone();
        let calls = [&data["nf_call_iptables"], &data["nf_call_ip6tables"]];
        assert_eq!(calls, [u8::from(on), u8::from(on)]);
        assert_eq!(netlink.link(&name("br0")).unwrap().netfilter, Some(on));
        assert_eq!(netlink.link(&name("br1")).unwrap().netfilter, Some(false));
    }
    assert_eq!(netlink.link(&name("lo")).unwrap().netfilter, None);
    let text = LinkChange {
        netfilter: Some(true),
        ..LinkChange::default()
    };
    assert_eq!(
        text.to_string(),
        " type bridge nf_call_iptables 1 nf_call_ip6tables 1"
    );
}

#[test]
fn a_bridge_keeps_its_own_mac_whatever_ports_it_gets() {
    let ns = TestNs::new();
    let mut netlink = Netlink::open().unwrap();
    let mac = Mac::of_ip("10.244.1.1".parse().unwrap());
    netlink.add_bridge(&name("br0"), mac).unwrap();
    let index = netlink.link(&name("br0")).unwrap().index;
    netlink
        .set_link(
            index,
            LinkChange {
                mtu: Some(1450),
                ..LinkChange::default()
            },
        )
        .unwrap();
    ns.ip("link add port0 address 02:00:00:00:00:01 type veth peer name x");
    ns.ip("link set port0 master br0 up");
    let seen = &ns.ip("-d link show br0")[0];
    assert_eq!(seen["address"], "0a:58:0a:f4:01:01");
    assert_eq!(seen["linkinfo"]["info_kind"], "bridge");
    assert!(
        seen["flags"]
            .as_array()
            .unwrap()
            .iter()
            .any(|flag| flag == "UP")
    );
    let bridge = netlink.link(&name("br0")).unwrap();
    assert!(bridge.is_bridge() && bridge.up && bridge.mac == Some(mac) && bridge.mtu == 1450);
    assert!(
        netlink
            .add_bridge(&name("br0"), mac)
            .unwrap_err()
            .is_exists()
    );
}

#[test]
fn a_veth_pair_is_made_in_one_step_with_its_peer_born_elsewhere() {
    let ns = TestNs::new();
    ns.ip("link add br0 type bridge");
    let mut netlink = Netlink::open().unwrap();
    let bridge = netlink.link(&name("br0")).unwrap();
    let (host, peer, elsewhere) = (name("pod0"), name("eth0"), other_netns());
    let pair = VethPair {
        master: Some(bridge.index),
        ..pair(&host, &peer, &elsewhere)
    };
    netlink.add_veth(&pair).unwrap();
    let seen = &ns.ip("-d link show pod0")[0];
    assert_eq!(
        (&seen["master"], &seen["mtu"]),
        (&"br0".into(), &1400.into())
    );
    assert_eq!(
        (&seen["num_tx_queues"], &seen["num_rx_queues"]),
        (&1.into(), &1.into())
    );
    let inside = elsewhere
        .run(|| Netlink::open()?.link(&name("eth0")))
        .unwrap()
        .unwrap();
    assert_eq!(
        (inside.mac, inside.mtu),
        (Some(Mac([0x0a, 0x58, 0, 0, 0, 2])), 1400)
    );

    let change = LinkChange {
        up: true,
        alias: Some("podspan:test"),
        hairpin: Some(true),
        learning: Some(false),
        flood: Some(false),
        no_link_local: true,
        ..LinkChange::default()
    };
    let before = netlink.link(&host).unwrap();
    assert!(before.learning && before.flood);
    netlink.set_link(&host, change).unwrap();
    let link = netlink.link(&host).unwrap();
    assert!(link.up && link.is_veth() && link.hairpin && link.master == Some(bridge.index));
    assert!(!link.learning && !link.flood);
    assert_eq!(
        change.to_string(),
        " alias podspan:test addrgenmode none up type bridge_slave hairpin on learning off flood off"
    );
    assert_eq!(link.alias.as_deref(), Some("podspan:test"));
    let seen = &ns.ip("-d link show pod0")[0];
    assert_eq!(seen["inet6_addr_gen_mode"], "none");
    let port = &seen["linkinfo"]["info_slave_data"];
    assert_eq!(port["hairpin"], true);
    assert_eq!(
        [&port["learning"], &port["flood"], &port["mcast_flood"]],
        [false, false, true]
    );

    netlink.remove_link(link.index).unwrap();
    netlink.remove_link(link.index).unwrap();
    assert_eq!(netlink.find_link(&host).unwrap(), None);
    let inside = elsewhere
        .run(|| Netlink::open()?.find_link(&name("eth0")))
        .unwrap()
        .unwrap();
    assert_eq!(inside, None, "one end takes the other with it");
}

#[test]
fn a_port_that_was_shut_stays_so() {
    let ns = TestNs::new();
    ns.ip("link add br0 up type bridge");
    ns.ip("link add v0 type veth peer name v1");
    ns.ip("link set v0 master br0 up");
    ns.ip("link set v1 up");
    let mut netlink = Netlink::open().unwrap();
    let port = netlink.link(&"v0".parse().unwrap()).unwrap().index;
    let state = || ns.ip("-d link show v0")[0]["linkinfo"]["info_slave_data"]["state"].clone();
    assert_eq!(state(), "forwarding");
    netlink.shut_port(port).unwrap();
    netlink.link(&"v0".parse().unwrap()).unwrap();
    assert_eq!(state(), "disabled");
    let other = netlink.link(&"v1".parse().unwrap()).unwrap().index;
    assert!(netlink.shut_port(other).is_err());
}

#[test]
fn two_links_go_together_and_no_other_with_them() {
    let ns = TestNs::new();
    let mut netlink = Netlink::open().unwrap();
    let mut make = |kind: &str, link: &str| {
        ns.ip(&format!("link add {link} type {kind}"));
        netlink.link(&name(link)).unwrap().index
    };
    let (a, b, c, d, e) = (
        make("bridge", "la"),
        make("ifb", "lb"),
        make("ifb", "lc"),
        make("veth", "ld"),
        make("bridge", "le"),
    );
    let _other = make("bridge", "other");
    let pair = netlink.group_links(vec![a, b]);
    netlink.remove_group(&pair).unwrap();
    netlink.remove_group(&pair).unwrap();
    // Chance put another link into the group.
    ns.ip(&format!("link set other group {}", REMOVAL_GROUPS | c));
    let pair = netlink.group_links(vec![c, d]);
    netlink.remove_group(&pair).unwrap();
    let alone = netlink.group_links(vec![e]);
    netlink.remove_group(&alone).unwrap();
    let nothing = netlink.group_links(Vec::new());
    netlink.remove_group(&nothing).unwrap();
    let left = netlink.list_links().unwrap();
    let left: Vec<_> = left.iter().map(|link| link.name.as_str()).collect();
    assert_eq!(left, ["lo", "other"]);
}

#[test]
fn a_name_that_is_taken_is_told_as_exists() {
    let ns = TestNs::new();
    ns.ip("link add pod0 type bridge");
    let mut netlink = Netlink::open().unwrap();
    let (host, peer, elsewhere) = (name("pod0"), name("eth0"), other_netns());
    let error = netlink
        .add_veth(&pair(&host, &peer, &elsewhere))
        .unwrap_err();
    assert!(error.is_exists(), "{error}");
    assert!(
        error
            .to_string()
            .starts_with("add link pod0 type veth peer eth0: file exists")
    );
}

#[test]
fn listing_reads_every_kind_of_link() {
    let ns = TestNs::new();
    ns.ip("link add br0 type bridge");
    ns.ip("link add vx0 type vxlan id 7 dstport 4789");
    ns.ip("link add v0 type veth peer name v1");
    let links = Netlink::open().unwrap().list_links().unwrap();
    let kinds: Vec<_> = links
        .iter()
        .map(|l| (l.name.as_str(), l.kind.as_deref()))
        .collect();
    for kind in [
        ("lo", None),
        ("br0", Some("bridge")),
        ("vx0", Some("vxlan")),
        ("v0", Some("veth")),
    ] {
        assert!(kinds.contains(&kind), "{kind:?} in {kinds:?}");
    }
}
