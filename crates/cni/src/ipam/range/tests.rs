use serde_json::json;

use super::*;

fn parse(ipam: Value) -> Result<IpamConfig, String> {
    IpamConfig::from_json(&ipam, "/run/podspan/ipam").map_err(|err| err.to_string())
}

fn one_range(range: Value) -> Result<Range, String> {
    parse(json!({ "ranges": [[range]] })).map(|config| config.range_sets[0].0[0])
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn what_is_absent_follows_from_the_subnet() {
    for (range, text) in [
        (
            json!({"subnet": "10.244.1.0/24"}),
            "10.244.1.0/24 10.244.1.1-10.244.1.254 gateway 10.244.1.1",
        ),
        (
            json!({"subnet": "10.244.1.0/30", "rangeStart": "", "gateway": ""}),
            "10.244.1.0/30 10.244.1.1-10.244.1.2 gateway 10.244.1.1",
        ),
        (
            json!({"subnet": "fd00::/64"}),
            "fd00::/64 fd00::1-fd00::ffff:ffff:ffff:ffff gateway fd00::1",
        ),
        (
            json!({"subnet": "10.0.0.0/8", "rangeStart": "10.1.2.3", "rangeEnd": "::ffff:10.1.2.9", "gateway": "192.0.2.1"}),
            "10.0.0.0/8 10.1.2.3-10.1.2.9 gateway 192.0.2.1",
        ),
        (
            json!({"subnet": "0.0.0.0/0"}),
            "0.0.0.0/0 0.0.0.1-255.255.255.254 gateway 0.0.0.1",
        ),
    ] {
        assert_eq!(
            one_range(range).map(|range| range.to_string()),
            Ok(text.to_owned())
        );
    }
}

#[test]
fn a_bad_range_is_refused_by_key_value_and_what_would_be_right() {
    for (range, text) in [
        (
            json!({}),
            "ipam.ranges[0][0].subnet: is absent; give one, such as 10.244.1.0/24",
        ),
        (
            json!({"subnet": "10.244.1.1/24"}),
            "ipam.ranges[0][0].subnet: prefix 10.244.1.1/24 has host bits set; its network is 10.244.1.0/24",
        ),
        (
            json!({"subnet": "10.244.1.0/31"}),
            "ipam.ranges[0][0].subnet: 10.244.1.0/31 is too small; /30 is the smallest with addresses to give",
        ),
        (
            json!({"subnet": "10.244.1.0/32"}),
            "ipam.ranges[0][0].subnet: 10.244.1.0/32 is too small; /30 is the smallest with addresses to give",
        ),
        (
            json!({"subnet": "fd00::/127"}),
            "ipam.ranges[0][0].subnet: fd00::/127 is too small; /126 is the smallest with addresses to give",
        ),
        (
            json!({"subnet": "10.244.1.0/24", "rangeStart": "10.1.2.3"}),
            "ipam.ranges[0][0].rangeStart: 10.1.2.3 is not in subnet 10.244.1.0/24",
        ),
        (
            json!({"subnet": "10.244.1.0/24", "rangeEnd": "fd00::1"}),
            "ipam.ranges[0][0].rangeEnd: fd00::1 is not in subnet 10.244.1.0/24",
        ),
        (
            json!({"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.9", "rangeEnd": "10.244.1.8"}),
            "ipam.ranges[0][0].rangeEnd: 10.244.1.8 is before the start of the range, 10.244.1.9",
        ),
        (
            json!({"subnet": "10.244.1.0/24", "rangeStart": "10.244.1"}),
            "ipam.ranges[0][0].rangeStart: \"10.244.1\" is not an IP address, such as 10.244.1.7",
        ),
        (
            json!({"subnet": "10.244.1.0/24", "gateway": "fd00::1"}),
            "ipam.ranges[0][0].gateway: fd00::1 is not of the family of subnet 10.244.1.0/24",
        ),
        (
            json!({"subnet": "10.244.1.0/24", "rangeEnd": "10.244.1.1"}),
            "ipam.ranges[0][0]: 10.244.1.1-10.244.1.1 has only reserved addresses; widen it",
        ),
    ] {
        assert_eq!(one_range(range), Err(text.to_owned()));
    }
}

#[test]
fn ranges_that_contradict_each_other_are_refused() {
    for (ipam, text) in [
        (
            json!({}),
            "ipam.ranges: there is no range; give one, such as [[{\"subnet\": \"10.244.1.0/24\"}]]",
        ),
        (
            json!({"ranges": [[]]}),
            "ipam.ranges[0]: the set is empty; give a range, such as {\"subnet\": \"10.244.1.0/24\"}",
        ),
        (
            json!({"ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "fd00::/64"}]]}),
            "ipam.ranges[0][1].subnet: fd00::/64 is not of the family of 10.1.0.0/24; give each family a set of its own",
        ),
        (
            json!({"ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "10.1.0.0/25"}]]}),
            "ipam.ranges[0][1]: 10.1.0.1-10.1.0.126 overlaps ipam.ranges[0][0] (10.1.0.1-10.1.0.254)",
        ),
        (
            json!({"subnet": "10.1.0.0/16", "ranges": [[{"subnet": "10.1.3.0/24"}]]}),
            "ipam.ranges[0][0]: 10.1.3.1-10.1.3.254 overlaps ipam (10.1.0.1-10.1.255.254)",
        ),
        (
            json!({"ranges": [
                [{"subnet": "10.1.0.0/24", "rangeEnd": "10.1.0.99"}],
                [{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.100", "gateway": "10.1.0.50"}],
            ]}),
            "ipam.ranges[1][0].gateway: 10.1.0.50 is handed out by ipam.ranges[0][0]; leave it out of that range",
        ),
        (
            json!({"subnet": "10.1.0.0/24", "dataDir": "run/x"}),
            "ipam.dataDir: run/x is not absolute",
        ),
        (
            json!({"subnet": "10.1.0.0/24", "routes": [{"dst": "10.0.0.1/8"}]}),
            "ipam.routes[0].dst: prefix 10.0.0.1/8 has host bits set; its network is 10.0.0.0/8",
        ),
        (
            json!({"subnet": "10.1.0.0/24", "routes": [{"dst": "0.0.0.0/0", "gw": "fd00::1"}]}),
            "ipam.routes[0].gw: fd00::1 is not of the family of 0.0.0.0/0",
        ),
    ] {
        assert_eq!(parse(ipam), Err(text.to_owned()));
    }
    assert!(
        parse(json!({"ranges": "all"}))
            .unwrap_err()
            .starts_with("ipam: invalid type")
    );
}

#[test]
fn the_whole_block_of_host_local_is_read() {
    let ipam = json!({
        "type": "host-local", "unknown": {"key": 1}, "dataDir": "/var/lib/cni/networks", "resolvConf": "/etc/resolv.conf",
        "subnet": "10.244.1.0/24", "rangeStart": "10.244.1.20", "rangeEnd": "10.244.1.29", "gateway": "10.244.1.254",
        "ranges": [[{"subnet": "fd00::/64"}, {"subnet": "fd01::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "fd02::/32", "gw": "fd00::9", "mtu": 1400, "advmss": 1360, "priority": 5, "table": 7, "scope": 253}],
    });
    assert_eq!(
        data_dir(&ipam, "/run/podspan/ipam"),
        PathBuf::from("/var/lib/cni/networks")
    );
    let config = parse(ipam).unwrap();
    assert_eq!(config.data_dir, PathBuf::from("/var/lib/cni/networks"));
    assert_eq!(config.resolv_conf, Some(PathBuf::from("/etc/resolv.conf")));
    let sets: Vec<String> = config.range_sets.iter().map(RangeSet::to_string).collect();
    assert_eq!(
        sets,
        [
            "10.244.1.20-10.244.1.29",
            "fd00::1-fd00::ffff:ffff:ffff:ffff, fd01::1-fd01::ffff:ffff:ffff:ffff"
        ],
        "the legacy range comes first"
    );
    assert_eq!(config.routes[0].gw, None);
    assert_eq!(
        config.routes[1],
        IpamRoute {
            dst: "fd02::/32".parse().unwrap(),
            gw: Some(ip("fd00::9")),
            mtu: Some(1400),
            advmss: Some(1360),
            priority: Some(5),
            table: Some(7),
            scope: Some(253),
        }
    );
}

#[test]
fn the_data_directory_is_found_in_a_broken_block() {
    for (ipam, dir) in [
        (json!({"ranges": "broken", "dataDir": "/tmp/x"}), "/tmp/x"),
        (json!({"dataDir": ""}), "/run/podspan/ipam"),
        (json!({"dataDir": 7}), "/run/podspan/ipam"),
        (Value::Null, "/run/podspan/ipam"),
    ] {
        assert_eq!(data_dir(&ipam, "/run/podspan/ipam"), PathBuf::from(dir));
    }
}

#[test]
fn a_lap_meets_each_address_once_and_no_reserved_one() {
    let config = parse(json!({"ranges": [[
        {"subnet": "10.1.0.0/29", "rangeStart": "10.1.0.0", "rangeEnd": "10.1.0.7", "gateway": "10.1.0.3"},
        {"subnet": "10.2.0.0/30"},
    ]]}));
    let set = &config.unwrap().range_sets[0];
    let lap = [
        "10.1.0.1", "10.1.0.2", "10.1.0.4", "10.1.0.5", "10.1.0.6", "10.2.0.2",
    ]
    .map(ip);
    assert_eq!(set.total(), lap.len() as u128);
    assert_eq!(set.first(), Some(lap[0]));
    for (i, &here) in lap.iter().enumerate() {
        assert_eq!(
            set.after(here),
            Some(lap[(i + 1) % lap.len()]),
            "after {here}"
        );
    }
    assert_eq!(
        set.after(ip("10.1.0.0")),
        Some(lap[0]),
        "from a reserved address"
    );
    assert_eq!(set.after(ip("10.3.0.1")), None);
    let last: RangeSet = RangeSet(vec![
        one_range(
            json!({"subnet": "ffff::/16", "rangeStart": "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe"}),
        )
        .unwrap(),
    ]);
    assert_eq!(
        (
            last.total(),
            last.after(ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"))
        ),
        (2, last.first())
    );
}
