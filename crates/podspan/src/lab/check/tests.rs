//! The tests of the judging; that a broken network is told is tested on real ones, in `tests/lab.rs`.

use super::super::layout::Routing;
use super::super::observe::Pod;
use super::*;

const LAYOUT: Layout = Layout {
    nodes: 2,
    pods: 1,
    routing: Routing::Direct,
};

fn node(number: u16, addresses: &[&str]) -> (Machine, Seen) {
    let machine = Machine::Node(number);
    let routes = LAYOUT.routes(machine).into_iter();
    let seen = Seen {
        uplink: LAYOUT.addresses(machine),
        bridge: None,
        tunnels: Vec::new(),
        routes: routes
            .map(|(dst, next_hop)| podspan_kernel::Route {
                dst,
                next_hop: Some(next_hop),
                link: Some(2),
                protocol: podspan_kernel::RouteProtocol::PODSPAN,
                options: podspan_kernel::RouteOptions::default(),
            })
            .collect(),
        pods: vec![Pod {
            name: "pod1".into(),
            addresses: addresses.iter().map(|net| net.parse().unwrap()).collect(),
            gateways: Vec::new(),
            host_veth: None,
        }],
        agent: None,
    };
    (machine, seen)
}

#[test]
fn a_promise_that_was_not_tried_is_not_kept() {
    let row = |tried, failures: &[&str]| Row {
        promise: "",
        tried,
        of: "",
        failures: failures.iter().map(ToString::to_string).collect(),
    };
    assert_eq!(row(1, &[]).outcome(), "PASS");
    assert_eq!(row(0, &[]).outcome(), "none");
    assert_eq!(row(0, &["why"]).outcome(), "FAIL");
}

#[test]
fn an_address_is_of_the_node_s_subnet_and_has_one_owner() {
    let good = node(1, &["10.244.1.2/24", "fd00:10:244:1::2/64"]);
    assert_eq!(addresses(&[good]).outcome(), "PASS");
    let lacking = node(1, &["10.244.1.2/24"]);
    let row = addresses(&[lacking]);
    assert_eq!(
        row.failures,
        ["node1/pod1 has not one address of fd00:10:244:1::/64, but [10.244.1.2/24]"]
    );
    let foreign = node(2, &["10.244.1.2/24", "fd00:10:244:2::2/64"]);
    let good = node(1, &["10.244.1.2/24", "fd00:10:244:1::2/64"]);
    let row = addresses(&[good, foreign]);
    assert_eq!(row.failures.len(), 2, "{:?}", row.failures);
    assert_eq!(
        row.failures[1],
        "node1/pod1 and node2/pod1 both have 10.244.1.2"
    );
}

#[test]
fn a_route_too_few_and_one_too_many_are_told() {
    let (one, two) = (node(1, &[]), node(2, &[]));
    assert_eq!(routes(LAYOUT, &[one, two]).outcome(), "PASS");
    let (mut one, two) = (node(1, &[]), node(2, &[]));
    one.1.routes[0].dst = "10.244.9.0/24".parse().unwrap();
    assert_eq!(
        routes(LAYOUT, &[one, two]).failures,
        [
            "node1 has no route 10.244.2.0/24 via 192.168.1.12",
            "node1 has a route too many: 10.244.9.0/24 via 192.168.1.12 proto 112",
        ]
    );
}
