//! What is made here is what `nft` makes of the text that one would have typed, and does it to real packets.

mod answers;
mod counters;
mod laws;
mod listing;
mod owners;
mod packets;
mod transactions;

use std::io::Write;
use std::process::{Command, Stdio};

use super::*;
use crate::IfName;

const INET: Table<'static> = Table {
    family: Family::Inet,
    name: "podspan",
};
const BRIDGE: Table<'static> = Table {
    family: Family::Bridge,
    name: "podspan",
};

/// Source addresses that are masqueraded, and destinations that they are not masqueraded for.
const MASQUERADE4: Set<'static> = Set::of(INET, "masquerade4", &[Type::Ipv4]);
const NO_MASQUERADE4: Set<'static> =
    Set::of(INET, "no_masquerade4", &[Type::Ipv4]).with_intervals();
const POSTROUTING: Chain<'static> = Chain::hooked(
    INET,
    "postrouting",
    Base::nat(Hook::Postrouting, priority::SRCNAT),
);

/// Ports of the host, of any of its addresses or of one.
const HOST_PORTS4: Set<'static> = Set::map(
    INET,
    "host_ports4",
    (&[Type::Protocol, Type::Port], &[Type::Ipv4, Type::Port]),
);
const HOST_PORTS6: Set<'static> = Set::map(
    INET,
    "host_ports6",
    (&[Type::Protocol, Type::Port], &[Type::Ipv6, Type::Port]),
);
const HOST_IP_PORTS4: Set<'static> = Set::map(
    INET,
    "host_ip_ports4",
    (
        &[Type::Ipv4, Type::Protocol, Type::Port],
        &[Type::Ipv4, Type::Port],
    ),
);
const HOST_IP_PORTS6: Set<'static> = Set::map(
    INET,
    "host_ip_ports6",
    (
        &[Type::Ipv6, Type::Protocol, Type::Port],
        &[Type::Ipv6, Type::Port],
    ),
);
const PREROUTING: Chain<'static> = Chain::hooked(
    INET,
    "prerouting",
    Base::nat(Hook::Prerouting, priority::DSTNAT),
);
const OUTPUT: Chain<'static> =
    Chain::hooked(INET, "output", Base::nat(Hook::Output, priority::DSTNAT));

/// What a bridge sees.
const GUARD: Chain<'static> = Chain::hooked(
    BRIDGE,
    "prerouting",
    Base::filter(Hook::Prerouting, priority::BRIDGE_FILTER),
);
const SPOOFS: Chain<'static> = Chain::plain(BRIDGE, "spoofs");

fn name(text: &str) -> IfName {
    text.parse().unwrap()
}

fn ip(text: &str) -> Value {
    text.parse::<std::net::IpAddr>().unwrap().into()
}

fn port(text: &str) -> Value {
    Value::IfName(name(text))
}

/// What `nft` prints for these words, or `nft -f -` for this text.
fn nft(words: &str, text: &str) -> String {
    let mut child = Command::new("nft")
        .args(words.split_whitespace())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("nft is installed");
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(text.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "nft {words}: {told}\n{text}");
    String::from_utf8(output.stdout).unwrap()
}

fn listing() -> String {
    nft("list ruleset", "")
}

/// The batch makes what the text makes: one listing for both.
fn assert_same(batch: Batch, text: &str) {
    Nft::open().unwrap().commit(batch).unwrap();
    let ours = listing();
    nft("flush ruleset", "");
    nft("-f -", text);
    assert_eq!(ours, listing());
}

/// `ip saddr @masquerade4 ip daddr != @no_masquerade4 masquerade fully-random`
fn masquerade() -> Batch {
    let mut batch = Batch::new();
    batch.add_table(INET);
    batch.add_set(&MASQUERADE4);
    batch.add_set(&NO_MASQUERADE4);
    batch.add_chain(POSTROUTING);
    batch.add_rule(
        &Rule::of(POSTROUTING)
            .is_in(&[Field::IP_SADDR], &MASQUERADE4)
            .is_not_in(&[Field::IP_DADDR], &NO_MASQUERADE4)
            .masquerade(&[NatFlag::FullyRandom]),
    );
    batch
}

fn port_mappings() -> Batch {
    let mut batch = Batch::new();
    batch.add_table(INET);
    for map in [HOST_PORTS4, HOST_PORTS6, HOST_IP_PORTS4, HOST_IP_PORTS6] {
        batch.add_set(&map);
    }
    let any = [Field::L4PROTO, Field::DPORT];
    let one4 = [Field::IP_DADDR, Field::L4PROTO, Field::DPORT];
    let one6 = [Field::IP6_DADDR, Field::L4PROTO, Field::DPORT];
    for chain in [PREROUTING, OUTPUT] {
        batch.add_chain(chain);
        for (fields, map) in [(one4, HOST_IP_PORTS4), (one6, HOST_IP_PORTS6)] {
            batch.add_rule(&Rule::of(chain).nat_by(Nat::Destination, &fields, &map));
        }
        for map in [HOST_PORTS4, HOST_PORTS6] {
            let local = Rule::of(chain).daddr_is_local();
            batch.add_rule(&local.nat_by(Nat::Destination, &any, &map));
        }
    }
    batch
}
