//! Counters with a name go on when the rules that count with them are replaced.

use std::net::UdpSocket;

use super::*;
use crate::testing::TestNs;

const TABLE: Table<'static> = Table {
    family: Family::Inet,
    name: "t",
};
const OUT: Chain<'static> =
    Chain::hooked(TABLE, "out", Base::filter(Hook::Output, priority::FILTER));
const ONE: Counter<'static> = Counter {
    comment: Some("NetworkPolicy shop/web"),
    ..Counter::of(TABLE, "one")
};

/// Replaces all rules by one that counts with `counter`.
fn lay(nft: &mut Nft, counter: &Counter<'_>) {
    let mut batch = Batch::new();
    batch.add_table(TABLE);
    batch.add_counter(counter);
    batch.add_chain(OUT);
    batch.flush_chain(OUT);
    let rule = Rule::of(OUT)
        .is(Field::DPORT, Value::Port(9))
        .counts_with(counter);
    batch.add_rule(&rule.verdict(&Verdict::Accept));
    nft.commit(batch).unwrap();
}

fn counted(nft: &mut Nft) -> Vec<(String, u64)> {
    let listed = nft.list_counters(TABLE).unwrap().into_iter();
    listed
        .map(|counter| (counter.name, counter.packets))
        .collect()
}

#[test]
fn a_counter_outlives_its_rules_and_says_what_it_counts() {
    let _ns = TestNs::new();
    let mut nft = Nft::open().unwrap();
    assert_eq!(nft.list_counters(TABLE).unwrap(), [], "no table");
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let send = || assert_eq!(socket.send_to(b"hello", "127.0.0.1:9").unwrap(), 5);
    lay(&mut nft, &ONE);
    send();
    lay(&mut nft, &ONE);
    // The first was answered by an ICMP error, which the socket tells.
    socket.take_error().unwrap();
    send();
    let listed = nft.list_counters(TABLE).unwrap();
    let expected = ListedCounter {
        name: "one".to_owned(),
        comment: Some("NetworkPolicy shop/web".to_owned()),
        packets: 2,
        bytes: 2 * (20 + 8 + 5),
    };
    assert_eq!(listed, [expected]);

    let mut batch = Batch::new();
    batch.delete_counter(&ONE);
    let refused = nft.commit(batch).unwrap_err();
    assert_eq!(refused.errno(), Errno::BUSY);
    assert!(
        refused
            .to_string()
            .starts_with("delete counter inet t one: "),
        "{refused}"
    );
    lay(&mut nft, &Counter::of(TABLE, "two"));
    let mut batch = Batch::new();
    batch.delete_counter(&ONE);
    nft.commit(batch).unwrap();
    assert_eq!(counted(&mut nft), [("two".to_owned(), 0)]);
    // Of all tables and objects, that table's counters.
    let status = Command::new("nft")
        .arg("add table inet other; add counter inet other c; add quota inet t q { over 5 mbytes ; }")
        .status();
    assert!(status.unwrap().success());
    assert_eq!(counted(&mut nft), [("two".to_owned(), 0)]);
}

#[test]
fn rules_with_counters_marks_and_logs_are_written_as_nft_writes_them() {
    let _ns = TestNs::new();
    let mut nft = Nft::open().unwrap();
    lay(&mut nft, &ONE);
    let mut batch = Batch::new();
    batch.add_rule(&Rule::of(OUT).set_mark(7).verdict(&Verdict::Return));
    batch.add_rule(&Rule::of(OUT).counts_with(&ONE));
    nft.commit(batch).unwrap();
    let printed = Command::new("nft")
        .args(["-s", "list", "table", "inet", "t"])
        .output()
        .unwrap();
    let printed = String::from_utf8(printed.stdout).unwrap();
    for line in [
        "comment \"NetworkPolicy shop/web\"",
        "th dport 9 counter name \"one\" accept",
        "meta mark set 0x00000007 return",
    ] {
        assert!(printed.contains(line), "{line} in {printed}");
    }
    let rules = nft.list_rules(OUT).unwrap();
    let for_all: Vec<_> = rules.iter().map(|rule| rule.is_for_all).collect();
    assert_eq!(for_all, [false, false, true]);
}

#[test]
fn the_counters_of_a_full_node_are_all_listed() {
    let _ns = TestNs::new();
    let mut nft = Nft::open().unwrap();
    let names: Vec<String> = (0..440).map(|n| format!("pi_pod_{n}")).collect();
    let mut batch = Batch::new();
    batch.add_table(TABLE);
    for name in &names {
        batch.add_counter(&Counter {
            comment: ONE.comment,
            ..Counter::of(TABLE, name)
        });
    }
    nft.commit(batch).unwrap();
    let begin = std::time::Instant::now();
    let listed = nft.list_counters(TABLE).unwrap();
    println!("{} counters in {:?}", listed.len(), begin.elapsed());
    assert_eq!(listed.len(), names.len());
}
