//! The laws of the plan on a model of the sets, and the same on the kernel with `nft` as the witness.

use podspan_kernel::testing::TestNs;
use proptest::prelude::*;

use super::*;

const STAYS_NOTHING: (fn(AddressRange) -> bool, fn(AddressRange) -> bool) = (|_| false, |_| false);

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn masquerade(pods: &[&str], inside: &[&str]) -> Masquerade {
    let pods: Vec<_> = pods.iter().map(|text| prefix(text)).collect();
    let inside = inside.iter().map(|text| prefix(text).into());
    Masquerade::of(&"podspan0".parse().unwrap(), &pods, inside)
}

fn texts(ranges: &[AddressRange]) -> Vec<String> {
    ranges.iter().map(ToString::to_string).collect()
}

/// What the kernel makes of a transaction: all or nothing, and no two ranges of a set that overlap.
fn model(seen: &mut Seen, transaction: &Transaction) {
    for step in &transaction.0 {
        match step {
            Step::AddTable => {}
            Step::AddSet(set) => {
                assert!(!seen.has(set));
                seen.sets.push(set.name.to_owned());
            }
            Step::DeleteSet(set) => {
                assert_eq!(seen.chain, SeenChain::Absent, "rules look at it");
                seen.sets.retain(|name| name != set.name);
            }
            Step::AddChain => seen.chain = SeenChain::Changed,
            Step::FlushChain => assert_eq!(seen.chain, SeenChain::Changed),
            Step::DeleteChain => seen.chain = SeenChain::Absent,
            Step::AddRules => seen.chain = SeenChain::Right,
            Step::AddRanges(set, ranges) => {
                assert!(seen.has(set), "{step}");
                let all = of(seen, set);
                for range in ranges {
                    assert!(!all.iter().any(|other| other.overlaps(*range)), "{step}");
                    all.push(*range);
                }
                all.sort();
            }
            Step::DeleteRanges(set, ranges) => {
                assert!(ranges.iter().all(|range| of(seen, set).contains(range)));
                of(seen, set).retain(|range| !ranges.contains(range));
            }
            Step::AddLinks(links) => seen.links.extend(links.clone()),
            Step::DeleteLinks(links) => seen.links.retain(|link| !links.contains(link)),
        }
    }
}

fn of<'a>(seen: &'a mut Seen, set: &Set<'_>) -> &'a mut Vec<AddressRange> {
    if set.name.contains("pods") {
        &mut seen.pods
    } else {
        &mut seen.inside
    }
}

fn any_prefix() -> impl Strategy<Value = Prefix> {
    (any::<u16>(), 8_u8..=32, any::<bool>()).prop_map(|(bits, length, is_ipv4)| {
        let net = if is_ipv4 {
            format!("10.{}.{}.0/{length}", bits >> 12, bits & 255)
        } else {
            format!("fd00:{:x}:{:x}::/{}", bits >> 12, bits & 255, length + 16)
        };
        Prefix::containing(net.parse().unwrap())
    })
}

fn any_masquerade() -> impl Strategy<Value = Masquerade> {
    let list = || prop::collection::vec(any_prefix(), 0..12);
    (list(), list()).prop_map(|(pods, inside)| {
        let inside = inside.into_iter().map(AddressRange::from);
        Masquerade::of(&"podspan0".parse().unwrap(), &pods, inside)
    })
}

/// What an earlier desire left, with some of it lost.
fn any_seen() -> impl Strategy<Value = Seen> {
    let chain = prop_oneof![
        Just(SeenChain::Absent),
        Just(SeenChain::Elsewhere),
        Just(SeenChain::Changed),
        Just(SeenChain::Right)
    ];
    (any_masquerade(), chain, any::<[bool; 5]>()).prop_map(|(earlier, chain, there)| {
        let is_there = |set: &Set<'_>| {
            let place = SETS.iter().position(|other| other == set);
            chain != SeenChain::Absent || there[place.unwrap()]
        };
        let keep = |ranges: Vec<AddressRange>, sets: [Set<'_>; 2]| -> Vec<AddressRange> {
            let [there4, there6] = sets.map(|set| is_there(&set));
            let ranges = ranges.into_iter();
            ranges
                .filter(|range| if range.is_ipv4() { there4 } else { there6 })
                .collect()
        };
        Seen {
            sets: SETS
                .iter()
                .filter(|set| is_there(set))
                .map(|set| set.name.to_owned())
                .collect(),
            chain,
            links: earlier
                .links
                .into_iter()
                .filter(|_| is_there(&LINKS))
                .collect(),
            pods: keep(earlier.pods, [PODS4, PODS6]),
            inside: keep(earlier.inside, [INSIDE4, INSIDE6]),
        }
    })
}

proptest! {
    #[test]
    fn a_plan_gives_what_is_desired_and_then_nothing_is_left_to_do(
        desired in prop::option::of(any_masquerade()), mut seen in any_seen()
    ) {
        if let Some(transaction) = plan(desired.as_ref(), &seen, STAYS_NOTHING) {
            model(&mut seen, &transaction);
        }
        prop_assert_eq!(plan(desired.as_ref(), &seen, STAYS_NOTHING), None);
        match desired {
            Some(desired) => {
                prop_assert_eq!(seen.chain, SeenChain::Right);
                prop_assert_eq!((seen.links, seen.pods, seen.inside), (desired.links, desired.pods, desired.inside));
            }
            None => prop_assert_eq!((seen.sets.len(), seen.chain), (0, SeenChain::Absent)),
        }
    }

    #[test]
    fn what_stays_is_removed_only_for_what_overlaps_with_it(
        desired in any_masquerade(), mut seen in any_seen()
    ) {
        let before = seen.clone();
        let stays = (|_| true, |_| true);
        if let Some(transaction) = plan(Some(&desired), &seen, stays) {
            model(&mut seen, &transaction);
        }
        for (before, after, desired) in [
            (before.pods, seen.pods, desired.pods), (before.inside, seen.inside, desired.inside)
        ] {
            prop_assert!(desired.iter().all(|range| after.contains(range)));
            for range in before.iter().filter(|range| !after.contains(range)) {
                prop_assert!(desired.iter().any(|other| other.overlaps(*range)));
            }
        }
    }
}

#[test]
fn a_range_in_another_is_left_out_and_neighbours_stay_apart() {
    let wanted = masquerade(
        &["10.244.1.0/24"],
        &[
            "10.244.0.0/24",
            "10.244.1.0/24",
            "192.168.1.11/32",
            "192.168.0.0/16",
            "fd00::/64",
        ],
    );
    let expected = [
        "10.244.0.0/24",
        "10.244.1.0/24",
        "192.168.0.0/16",
        "224.0.0.0/4",
        "255.255.255.255",
        "fd00::/64",
        "ff00::/8",
    ];
    assert_eq!(texts(&wanted.inside), expected);
}

#[test]
fn a_node_that_changes_is_an_element_of_five_thousand() {
    let nodes = |moved: u32| -> Masquerade {
        let inside = (0..5000_u32).flat_map(|n| {
            let number = if n == 77 { moved } else { n };
            let pods = format!("10.{}.{}.0/24", n >> 8, n & 255);
            let address = format!("172.16.{}.{}/32", number >> 8, number & 255);
            [prefix(&pods).into(), prefix(&address).into()]
        });
        Masquerade::of(
            &"podspan0".parse().unwrap(),
            &[prefix("10.0.1.0/24")],
            inside,
        )
    };
    let mut seen = Seen::default();
    let all = plan(Some(&nodes(77)), &seen, STAYS_NOTHING).unwrap();
    model(&mut seen, &all);
    let moved = plan(Some(&nodes(6000)), &seen, STAYS_NOTHING).unwrap();
    let expected = "nft 'delete element inet podspan agent_inside4 { 172.16.0.77 }; \
                    add element inet podspan agent_inside4 { 172.16.23.112 }'";
    assert_eq!(moved.to_string(), expected);
    assert!(
        all.to_string().contains(", … and 9994 more }"),
        "{}",
        all.to_string()
    );
    assert!(format!("{all:#}").contains("10.19.135.0/24") && !format!("{all:#}").contains('…'));
}

fn nft(words: &[&str]) -> String {
    let output = std::process::Command::new("nft").args(words).output();
    let output = output.expect("nft of nftables is installed");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "nft {words:?}: {told}");
    String::from_utf8(output.stdout).unwrap()
}

/// Types what is printed, without the word `nft` and the quotes.
fn nft_types(transaction: &Transaction) {
    let text = format!("{transaction:#}");
    let typed = text
        .strip_prefix("nft '")
        .and_then(|text| text.strip_suffix('\''));
    nft(&[typed.unwrap()]);
}

#[test]
fn what_is_printed_does_what_is_done() {
    let desires = [
        Some(masquerade(
            &["10.244.1.0/24", "fd00:10:1::/64"],
            &["10.244.0.0/16", "192.168.1.11/32", "fd00:192::11/128"],
        )),
        Some(masquerade(
            &["10.244.1.0/24"],
            &["10.244.0.0/24", "::/0", "0.0.0.0/0"],
        )),
        None,
    ];
    let _ns = TestNs::new();
    let mut listings = Vec::new();
    for typed in [false, true] {
        let mut filter = PacketFilter::default();
        nft(&["add table inet podspan"]);
        for desired in &desires {
            let seen = filter.observe().unwrap();
            let transaction = plan(desired.as_ref(), &seen, STAYS_NOTHING).unwrap();
            if typed {
                nft_types(&transaction);
            } else {
                filter.commit(&transaction).unwrap();
            }
            listings.push(nft(&["list ruleset"]));
            let seen = filter.observe().unwrap();
            assert_eq!(
                plan(desired.as_ref(), &seen, STAYS_NOTHING),
                None,
                "{seen:?}"
            );
        }
        nft(&["flush ruleset"]);
    }
    let (done, typed) = listings.split_at(desires.len());
    assert_eq!(done, typed);
    assert!(done[0].contains("masquerade fully-random"), "{}", done[0]);
    assert_eq!(done[2].trim(), "table inet podspan {\n}");
}

#[test]
fn whatever_somebody_takes_away_is_seen_and_comes_back_and_the_rest_of_the_table_stays() {
    let _ns = TestNs::new();
    nft(&["add table inet podspan; add set inet podspan masquerade4 { type ipv4_addr; }"]);
    nft(&["add chain inet podspan postrouting { type nat hook postrouting priority 100; }"]);
    let desired = masquerade(&["10.244.1.0/24"], &["10.244.2.0/24"]);
    let mut filter = PacketFilter::default();
    let mut settle = |what: &str| {
        let seen = filter.observe().unwrap();
        let transaction = plan(Some(&desired), &seen, STAYS_NOTHING);
        let transaction = transaction.unwrap_or_else(|| panic!("{what}: nobody noticed"));
        filter.commit(&transaction).unwrap();
        let seen = filter.observe().unwrap();
        assert_eq!(plan(Some(&desired), &seen, STAYS_NOTHING), None, "{what}");
    };
    settle("begin");
    let whole = nft(&["list ruleset"]);
    let chain = "chain inet podspan agent_masquerade";
    for harm in [
        &format!("flush {chain}"),
        &format!("delete {chain}"),
        &format!("delete {chain}; add {chain} {{ type nat hook postrouting priority 100; }}"),
        &format!("delete {chain}; add {chain}"),
        &format!("add rule {} accept", chain.trim_start_matches("chain ")),
        "flush set inet podspan agent_inside4",
        "add element inet podspan agent_inside4 { 1.1.1.1-1.1.1.9 }",
        "delete element inet podspan agent_pods4 { 10.244.1.0/24 }",
        "add element inet podspan agent_links { \"eth0\" }",
        "flush chain inet podspan agent_masquerade; delete chain inet podspan agent_masquerade; \
         delete set inet podspan agent_links; delete set inet podspan agent_inside6",
    ] {
        nft(&[harm]);
        settle(harm);
        let sorted = |text: &str| {
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(sorted(&nft(&["list ruleset"])), sorted(&whole), "{harm}");
    }
    nft(&["delete table inet podspan"]);
    settle("the table is gone");
}
