//! Routes against a real kernel, and its words when it refuses one.

use super::*;
use crate::testing::TestNs;

fn ours(dst: &str, next_hop: &str) -> Route {
    Route {
        dst: dst.parse().unwrap(),
        next_hop: Some(next_hop.parse().unwrap()),
        link: None,
        protocol: RouteProtocol::PODSPAN,
        options: RouteOptions::default(),
    }
}

fn underlay() -> (TestNs, Netlink) {
    let ns = TestNs::new();
    ns.ip("link add up0 up type bridge");
    ns.ip("addr add 192.168.1.11/24 dev up0");
    ns.ip("addr add fd00:192::11/64 dev up0 nodad");
    (ns, Netlink::open().unwrap())
}

#[test]
fn what_was_added_is_read_back_equal_in_both_families() {
    let (_ns, mut netlink) = underlay();
    let link = netlink.link(&"up0".parse().unwrap()).unwrap().index;
    let mut all = vec![];
    for (dst, next_hop) in [
        ("10.244.2.0/24", "192.168.1.12"),
        ("fd00:10:244:2::/64", "fd00:192::12"),
    ] {
        let mut route = Route {
            link: Some(link),
            ..ours(dst, next_hop)
        };
        netlink.add_route(&route).unwrap();
        all.push(route.clone());
        route.options = RouteOptions {
            metric: Some(7),
            mtu: Some(1400),
            ..route.options
        };
        netlink.add_route(&route).unwrap();
        all.push(route);
    }
    let mut seen = netlink.list_routes(RouteProtocol::PODSPAN).unwrap();
    seen.sort();
    all.sort();
    assert_eq!(seen, all);
    for route in all.iter().chain(&all) {
        netlink.remove_route(route).unwrap();
    }
    assert_eq!(netlink.list_routes(RouteProtocol::PODSPAN).unwrap(), []);
}

#[test]
fn only_routes_of_the_protocol_are_listed() {
    let (ns, mut netlink) = underlay();
    ns.ip("route add 10.9.0.0/16 via 192.168.1.99 proto static");
    ns.ip("route add 10.8.0.0/16 via 192.168.1.99 proto 112 table 100");
    ns.ip("-6 route add fd09::/64 via fd00:192::99 proto bgp");
    assert_eq!(netlink.list_routes(RouteProtocol::PODSPAN).unwrap(), []);
    let of_kernel = netlink.list_routes(RouteProtocol::KERNEL).unwrap();
    assert!(
        of_kernel
            .iter()
            .any(|route| route.dst.to_string() == "192.168.1.0/24")
    );
}

#[test]
fn adding_never_replaces_a_foreign_route_and_replacing_is_one_step() {
    let (ns, mut netlink) = underlay();
    ns.ip("route add 10.244.2.0/24 via 192.168.1.99 proto static");
    ns.ip("-6 route add fd00:10:244:2::/64 via fd00:192::99 proto static");
    for (dst, next_hop) in [
        ("10.244.2.0/24", "192.168.1.12"),
        ("fd00:10:244:2::/64", "fd00:192::12"),
    ] {
        let error = netlink.add_route(&ours(dst, next_hop)).unwrap_err();
        assert!(error.is_exists(), "{error}");
    }
    netlink
        .add_route(&ours("10.244.3.0/24", "192.168.1.13"))
        .unwrap();
    netlink
        .replace_route(&ours("10.244.3.0/24", "192.168.1.14"))
        .unwrap();
    netlink
        .add_route(&ours("fd00:10:244:3::/64", "fd00:192::13"))
        .unwrap();
    netlink
        .replace_route(&ours("fd00:10:244:3::/64", "fd00:192::14"))
        .unwrap();
    let hops: Vec<_> = netlink
        .list_routes(RouteProtocol::PODSPAN)
        .unwrap()
        .into_iter()
        .filter_map(|route| route.next_hop)
        .collect();
    assert_eq!(
        hops,
        [
            "192.168.1.14".parse::<IpAddr>().unwrap(),
            "fd00:192::14".parse().unwrap()
        ]
    );
    assert_eq!(
        ns.ip("route show proto static")[0]["gateway"],
        "192.168.1.99"
    );
}

#[test]
fn beside_others_means_the_newest_of_ipv4_and_a_further_next_hop_of_ipv6() {
    let (_ns, mut netlink) = underlay();
    for (dst, next_hop) in [
        ("10.244.2.0/24", "192.168.1.12"),
        ("10.244.2.0/24", "192.168.1.13"),
        ("fd00:10:244:2::/64", "fd00:192::12"),
        ("fd00:10:244:2::/64", "fd00:192::13"),
    ] {
        let route = ours(dst, next_hop);
        netlink.add_route_beside_others(&route).unwrap();
        let error = netlink.add_route_beside_others(&route).unwrap_err();
        assert!(error.is_exists(), "{error}");
    }
    let hops: Vec<_> = netlink
        .list_routes(RouteProtocol::PODSPAN)
        .unwrap()
        .into_iter()
        .filter_map(|route| route.next_hop)
        .map(|next_hop| next_hop.to_string())
        .collect();
    let expected = [
        "192.168.1.13",
        "192.168.1.12",
        "fd00:192::12",
        "fd00:192::13",
    ];
    assert_eq!(hops, expected);
    let taken = netlink.route_to("10.244.2.7".parse().unwrap()).unwrap();
    assert_eq!(taken.next_hop, Some("192.168.1.13".parse().unwrap()));
}

/// What a kernel without IPv6 tells when it is asked for IPv6.
#[test]
fn a_route_of_another_family_than_was_asked_for_is_not_listed() {
    for (dst, next_hop) in [
        ("10.244.2.0/24", "192.168.1.12"),
        ("fd00:10:244:2::/64", "fd00:192::12"),
    ] {
        let route = ours(dst, next_hop);
        let told = about(message::NEW_ROUTE, &route);
        // Behind `struct nlmsghdr`.
        let told = told.bytes().get(16..).unwrap();
        for any in [IpAddr::from([0; 4]), IpAddr::from([0; 16])] {
            let listed = of_main_table(told, (any, None));
            let is_of_family = any.is_ipv4() == route.dst.is_ipv4();
            assert_eq!(listed, is_of_family.then(|| vec![route.clone()]));
        }
    }
}

#[test]
fn the_kernel_s_own_words_are_told() {
    let (_ns, mut netlink) = underlay();
    let error = netlink
        .add_route(&ours("10.244.2.0/24", "203.0.113.1"))
        .unwrap_err();
    let text = "add route 10.244.2.0/24 via 203.0.113.1 proto 112: \
                network is unreachable (ENETUNREACH): Nexthop has invalid gateway";
    assert_eq!(error.to_string(), text);
}

#[test]
fn the_route_to_an_address_is_that_of_its_packets() {
    let (_ns, mut netlink) = underlay();
    netlink
        .add_route(&ours("10.244.2.0/24", "192.168.1.12"))
        .unwrap();
    let route = netlink.route_to("10.244.2.7".parse().unwrap()).unwrap();
    assert_eq!(route.next_hop, Some("192.168.1.12".parse().unwrap()));
    assert!(netlink.route_to("203.0.113.1".parse().unwrap()).is_err());
}

#[test]
fn the_route_of_somebody_s_packet_is_the_one_that_a_rule_leads_to() {
    let (ns, mut netlink) = underlay();
    netlink
        .add_route(&ours("10.244.2.0/24", "192.168.1.12"))
        .unwrap();
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    ns.ip("link add pods0 up type bridge");
    ns.ip("addr add 10.244.1.1/24 dev pods0");
    let pods = netlink.find_link(&"pods0".parse().unwrap()).unwrap();
    let pods = pods.unwrap().index;
    let [from, to] = ["10.244.1.9", "10.244.2.7"].map(|ip| ip.parse().unwrap());
    let route = netlink.route_from((from, pods), to).unwrap();
    assert_eq!(route.next_hop, Some("192.168.1.12".parse().unwrap()));
    ns.ip("rule add from 10.244.1.0/24 blackhole");
    assert!(netlink.route_from((from, pods), to).is_err());
    assert!(netlink.route_to(to).is_ok());
}
