//! `nft` lists what is made here as what it makes of the text.

use super::*;
use crate::testing::TestNs;

#[test]
fn masquerade_is_what_one_would_have_typed() {
    let _ns = TestNs::new();
    let mut batch = masquerade();
    let element = Element::new([ip("10.244.1.2")]).comment("0123abcd/eth0");
    batch.add_element(&MASQUERADE4, &element);
    for prefix in ["10.244.0.0/16", "224.0.0.0/3", "192.0.2.1/32"] {
        batch.add_element(&NO_MASQUERADE4, &Element::prefix(prefix.parse().unwrap()));
    }
    let text = r#"table inet podspan {
        set masquerade4 { type ipv4_addr; elements = { 10.244.1.2 comment "0123abcd/eth0" } }
        set no_masquerade4 { type ipv4_addr; flags interval; elements = { 10.244.0.0/16, 224.0.0.0/3, 192.0.2.1 } }
        chain postrouting {
            type nat hook postrouting priority srcnat; policy accept;
            ip saddr @masquerade4 ip daddr != @no_masquerade4 masquerade fully-random
        }
    }"#;
    assert_same(batch, text);
}

#[test]
fn port_mappings_are_what_one_would_have_typed() {
    let _ns = TestNs::new();
    let mut batch = port_mappings();
    let element = Element::new([Value::TCP, Value::Port(8080)])
        .to([ip("10.244.1.2"), Value::Port(80)])
        .comment("web");
    batch.add_element(&HOST_PORTS4, &element);
    let element = Element::new([ip("fd00::1"), Value::SCTP, Value::Port(9)])
        .to([ip("fd00:1::2"), Value::Port(8080)]);
    batch.add_element(&HOST_IP_PORTS6, &element);
    let rules = "
        dnat ip to ip daddr . meta l4proto . th dport map @host_ip_ports4
        dnat ip6 to ip6 daddr . meta l4proto . th dport map @host_ip_ports6
        fib daddr type local dnat ip to meta l4proto . th dport map @host_ports4
        fib daddr type local dnat ip6 to meta l4proto . th dport map @host_ports6";
    let text = format!(
        r#"table inet podspan {{
        map host_ports4 {{ type inet_proto . inet_service : ipv4_addr . inet_service
            elements = {{ tcp . 8080 comment "web" : 10.244.1.2 . 80 }} }}
        map host_ports6 {{ type inet_proto . inet_service : ipv6_addr . inet_service; }}
        map host_ip_ports4 {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
        map host_ip_ports6 {{ type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service
            elements = {{ fd00::1 . sctp . 9 : fd00:1::2 . 8080 }} }}
        chain prerouting {{ type nat hook prerouting priority dstnat; policy accept; {rules}
        }}
        chain output {{ type nat hook output priority -100; policy accept; {rules}
        }}
    }}"#
    );
    assert_same(batch, &text);
}

#[test]
fn a_verdict_map_jumps_by_port() {
    let _ns = TestNs::new();
    let map = Set::verdict_map(BRIDGE, "by_port", &[Type::IfName]);
    let mut batch = Batch::new();
    batch.add_table(BRIDGE);
    batch.add_chain(SPOOFS);
    batch.add_chain(GUARD);
    batch.add_set(&map);
    let elements = [
        Element::new([port("pod0")]).verdict(Verdict::jump(&SPOOFS)),
        Element::new([port("pod1")]).verdict(Verdict::Drop),
    ];
    for element in &elements {
        batch.add_element(&map, element);
    }
    batch.add_rule(&Rule::of(GUARD).verdict_by(&[Field::IIFNAME], &map));
    Nft::open().unwrap().commit(batch.clone()).unwrap();
    let mut listed = Nft::open().unwrap().list_elements(&map).unwrap();
    listed.sort_by_key(Element::to_string);
    assert_eq!(listed, elements);
    nft("flush ruleset", "");
    let text = r#"table bridge podspan {
        map by_port { type ifname : verdict; elements = { "pod0" : jump spoofs, "pod1" : drop } }
        chain spoofs { }
        chain prerouting {
            type filter hook prerouting priority -200; policy accept;
            iifname vmap @by_port
        }
    }"#;
    assert_same(batch, text);
}

/// What `every_other_expression_is_what_one_would_have_typed` makes.
const EVERY_OTHER: &str = r#"table inet podspan {
        set masquerade4 { type ipv4_addr; }
        chain forward {
            type filter hook forward priority filter; policy drop;
            ct state established,related counter packets 0 bytes 0 accept comment "what is answered"
            tcp sport 1-1024 log prefix "low " group 3 return
            ip saddr @masquerade4 limit rate 10/minute burst 5 packets log prefix "pod " goto other
            meta mark & 0x000000ff == 0x00000007 oifname != "eth0" jump other
            ip daddr 10.0.16.0/20 drop
            ip6 saddr fd00::1 th dport > 1000 continue
            ct status dnat accept
            reject with icmpx admin-prohibited
        }
        chain other { }
        chain prerouting {
            type nat hook prerouting priority dstnat; policy accept;
            meta l4proto udp dnat ip to 10.0.0.9:53 persistent
        }
        chain postrouting {
            type nat hook postrouting priority srcnat; policy accept;
            ip6 saddr fd00::7 snat ip6 to fd00::9 random
        }
    }"#;

#[test]
fn every_other_expression_is_what_one_would_have_typed() {
    let _ns = TestNs::new();
    let base = Base {
        policy: Policy::Drop,
        ..Base::filter(Hook::Forward, priority::FILTER)
    };
    let chain = Chain::hooked(INET, "forward", base);
    let other = Chain::plain(INET, "other");
    let limit = Limit {
        rate: 10,
        seconds: 60,
        burst: 5,
        unit: LimitUnit::Packets,
        over: false,
    };
    let rule = || Rule::of(chain);
    let from_port = |first: u16| {
        rule().is(Field::L4PROTO, Value::TCP).between(
            Field::SPORT,
            Value::Port(first),
            Value::Port(1024),
        )
    };
    let post = rule().is_in(&[Field::IP_SADDR], &MASQUERADE4);
    let rules = [
        rule()
            .ct_state(&[CtState::Established, CtState::Related])
            .counter()
            .verdict(&Verdict::Accept)
            .comment("what is answered"),
        from_port(1).log_to(3, "low ").verdict(&Verdict::Return),
        post.limit(limit)
            .log("pod ")
            .verdict(&Verdict::goto(&other)),
        rule()
            .masked(Field::MARK, Value::Mark(0xff), Value::Mark(7))
            .is_not(Field::OIFNAME, &name("eth0"))
            .verdict(&Verdict::jump(&other)),
        rule()
            .masked(Field::IP_DADDR, ip("255.255.240.0"), ip("10.0.16.0"))
            .verdict(&Verdict::Drop),
        rule()
            .is(Field::IP6_SADDR, ip("fd00::1"))
            .compare(Field::DPORT, Compare::Greater, Value::Port(1000))
            .verdict(&Verdict::Continue),
        rule().is_dnat().verdict(&Verdict::Accept),
        rule().reject(Reject::AdminProhibited),
    ];
    let dnat = Rule::of(PREROUTING).is(Field::L4PROTO, Value::UDP).nat(
        Nat::Destination,
        ("10.0.0.9".parse().unwrap(), Some(53)),
        &[NatFlag::Persistent],
    );
    let snat = Rule::of(POSTROUTING)
        .is(Field::IP6_SADDR, ip("fd00::7"))
        .nat(
            Nat::Source,
            ("fd00::9".parse().unwrap(), None),
            &[NatFlag::Random],
        );
    let mut batch = Batch::new();
    batch.add_table(INET);
    batch.add_set(&MASQUERADE4);
    for chain in [chain, other, PREROUTING, POSTROUTING] {
        batch.add_chain(chain);
    }
    for rule in rules.iter().chain([&dnat, &snat]) {
        batch.add_rule(rule);
    }
    assert_same(batch, EVERY_OTHER);
}

#[test]
fn every_type_and_family_has_the_name_that_nft_knows() {
    let _ns = TestNs::new();
    let types = [
        (Type::Ipv4, "ipv4_addr"),
        (Type::Ipv6, "ipv6_addr"),
        (Type::EtherType, "ether_type"),
        (Type::Protocol, "inet_proto"),
        (Type::Port, "inet_service"),
        (Type::Mark, "mark"),
        (Type::IfIndex, "iface_index"),
        (Type::IfName, "ifname"),
    ];
    let mut batch = Batch::new();
    let families = [
        Family::Ip,
        Family::Ip6,
        Family::Inet,
        Family::Bridge,
        Family::Netdev,
    ];
    for family in families {
        batch.add_table(Table { family, name: "t" });
    }
    let table = Table {
        family: Family::Netdev,
        name: "t",
    };
    for (key, word) in &types {
        batch.add_set(&Set::of(table, word, std::slice::from_ref(key)));
    }
    let base = Base {
        device: Some("lo"),
        ..Base::filter(Hook::Ingress, 5)
    };
    batch.add_chain(Chain::hooked(table, "ingress", base));
    Nft::open().unwrap().commit(batch).unwrap();
    let listing = listing();
    for family in families {
        assert!(listing.contains(&format!("table {family} t")), "{listing}");
    }
    for (_, word) in types {
        assert!(
            listing.contains(&format!("set {word} {{\n\t\ttype {word}\n")),
            "{listing}"
        );
    }
    assert!(
        listing.contains("type filter hook ingress device"),
        "{listing}"
    );
}

#[test]
fn elements_are_listed_as_they_were_added_and_can_be_added_again() {
    let _ns = TestNs::new();
    let ranges = Set::of(INET, "ranges", &[Type::Ipv4, Type::Port]).with_intervals();
    let mut batch = masquerade();
    batch.add_set(&ranges);
    batch.add_set(&HOST_PORTS4);
    let cases: [(&Set<'_>, Vec<Element>); 4] = [
        (
            &MASQUERADE4,
            vec![Element::new([ip("10.0.0.1")]).comment("a")],
        ),
        (
            &NO_MASQUERADE4,
            vec![
                Element::prefix("10.0.0.0/8".parse().unwrap()).comment("b"),
                Element::new([ip("11.0.0.0")]),
                Element::new([ip("11.0.0.2")]).through([ip("11.0.0.9")]),
                Element::prefix("224.0.0.0/3".parse().unwrap()),
            ],
        ),
        (
            &ranges,
            vec![
                Element::new([ip("10.0.0.1"), Value::Port(1)])
                    .through([ip("10.0.0.9"), Value::Port(99)]),
            ],
        ),
        (
            &HOST_PORTS4,
            vec![
                Element::new([Value::UDP, Value::Port(53)])
                    .to([ip("10.0.0.1"), Value::Port(5353)])
                    .comment("c"),
            ],
        ),
    ];
    for (set, elements) in &cases {
        for element in elements {
            batch.add_element(set, element);
        }
    }
    let mut nft = Nft::open().unwrap();
    nft.commit(batch).unwrap();
    let mut again = Batch::new();
    for (set, elements) in &cases {
        let listed = nft.list_elements(set).unwrap();
        assert_eq!(&listed, elements);
        for element in &listed {
            again.add_element(set, element);
            again.delete_element(set, element);
        }
    }
    nft.commit(again).unwrap();
    for (set, _) in &cases {
        assert_eq!(nft.list_elements(set).unwrap(), [], "{set}");
    }
    let mistaken = Set::of(INET, "masquerade4", &[Type::Ipv6]);
    let mut batch = Batch::new();
    batch.add_element(&MASQUERADE4, &Element::new([ip("10.0.0.1")]));
    nft.commit(batch).unwrap();
    let error = nft.list_elements(&mistaken).unwrap_err();
    assert_eq!(error.errno(), Errno::BADMSG);
    let absent = Set::of(INET, "absent", &[Type::Ipv4]);
    let error = nft.list_elements(&absent).unwrap_err();
    assert!(error.is_not_found(), "{error}");
    assert!(
        error
            .to_string()
            .starts_with("list elements of set inet podspan absent: ")
    );
}
