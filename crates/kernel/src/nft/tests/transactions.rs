//! All or nothing, errors that name the change, and what a commit costs.

use std::time::{Duration, Instant};

use super::*;
use crate::testing::TestNs;

const SETS: [&str; 6] = ["s0", "s1", "s2", "s3", "s4", "s5"];

fn address(number: u32) -> Element {
    Element::new([Value::Ipv4((0x0af4_0000 + number).into())])
}

fn numbered(name: &'static str) -> Set<'static> {
    Set::of(INET, name, &[Type::Ipv4])
}

#[test]
fn a_batch_with_one_bad_change_changes_nothing_and_names_it() {
    let _ns = TestNs::new();
    let mut nft = Nft::open().unwrap();
    let mut batch = masquerade();
    batch.add_element(&MASQUERADE4, &address(1));
    nft.commit(batch).unwrap();
    let before = listing();

    let mut batch = Batch::new();
    batch.add_element(&MASQUERADE4, &address(2));
    batch.create_element(&MASQUERADE4, &address(1));
    batch.delete_element(&MASQUERADE4, &address(9));
    let error = nft.commit(batch).unwrap_err();
    assert!(error.is_exists(), "{error}");
    assert!(error.to_string().starts_with(
        "create element 10.244.0.1 to set inet podspan masquerade4: file exists (EEXIST)"
    ));
    let mut batch = Batch::new();
    batch.add_element(&MASQUERADE4, &address(2));
    batch.delete_element(&MASQUERADE4, &address(9));
    let error = nft.commit(batch).unwrap_err();
    assert!(error.is_not_found(), "{error}");
    assert!(
        error.to_string().starts_with(
            "delete element 10.244.0.9 from set inet podspan masquerade4: no such file"
        )
    );
    let mut batch = Batch::new();
    batch.add_element(&HOST_PORTS4, &address(1));
    batch.create_table(INET);
    let error = nft.commit(batch).unwrap_err();
    assert!(error.is_not_found(), "the first is told: {error}");
    let mut batch = Batch::new();
    batch.create_table(INET);
    assert!(nft.commit(batch).unwrap_err().is_exists());
    assert_eq!(listing(), before);
}

#[test]
fn what_leads_elsewhere_is_refused_and_what_is_the_same_is_fine() {
    let _ns = TestNs::new();
    let mut nft = Nft::open().unwrap();
    nft.commit(port_mappings()).unwrap();
    let mapped = |to: &str| {
        let key = [Value::TCP, Value::Port(80)];
        let mut batch = Batch::new();
        batch.add_element(
            &HOST_PORTS4,
            &Element::new(key).to([ip(to), Value::Port(80)]),
        );
        batch
    };
    nft.commit(mapped("10.0.0.1")).unwrap();
    nft.commit(mapped("10.0.0.1")).unwrap();
    let error = nft.commit(mapped("10.0.0.2")).unwrap_err();
    assert!(error.is_exists());
    assert!(error.to_string().starts_with(
        "add element tcp . 80 : 10.0.0.2 . 80 to map inet podspan host_ports4: file exists"
    ));
}

#[test]
fn removing_what_is_not_there_is_fine_and_a_foreign_table_stays() {
    let _ns = TestNs::new();
    let foreign =
        "table ip podspan { set masquerade4 { type ipv4_addr; elements = { 10.0.0.1 }; }; }
        table inet other { chain postrouting { type nat hook postrouting priority srcnat; }; }";
    nft("-f -", foreign);
    let before = listing();
    let mut nft = Nft::open().unwrap();
    assert!(!nft.has_table(INET).unwrap());
    nft.commit(masquerade()).unwrap();
    assert!(nft.has_table(INET).unwrap());
    let mut batch = Batch::new();
    batch.remove_element(&MASQUERADE4, &address(1));
    batch.flush_chain(POSTROUTING);
    nft.commit(batch).unwrap();
    for _ in 0..2 {
        let mut batch = Batch::new();
        batch.remove_table(INET);
        nft.commit(batch).unwrap();
        assert!(!nft.has_table(INET).unwrap());
    }
    nft.commit(Batch::new()).unwrap();
    assert_eq!(listing(), before);
}

#[test]
fn a_table_in_the_place_of_another_has_another_number() {
    let _ns = TestNs::new();
    let mut own = Nft::open().unwrap();
    assert_eq!(own.table_handle(INET).unwrap(), None);
    own.commit(masquerade()).unwrap();
    let first = own.table_handle(INET).unwrap();
    let listed = nft("-a list table inet podspan", "");
    let line = listed.lines().next().unwrap();
    let told: u64 = line.rsplit_once(' ').unwrap().1.parse().unwrap();
    assert_eq!(first, Some(told), "{line}");
    let mut batch = masquerade();
    batch.add_element(&MASQUERADE4, &address(1));
    own.commit(batch).unwrap();
    assert_eq!(own.table_handle(INET).unwrap(), first);
    nft("-f -", "flush ruleset; table inet podspan { }");
    let second = own.table_handle(INET).unwrap();
    assert!(second.is_some() && second != first, "{second:?}");
    nft("flush ruleset", "");
    assert_eq!(own.table_handle(INET).unwrap(), None);
}

#[test]
fn five_thousand_elements_fit_in_one_batch_and_so_do_their_refusals() {
    let _ns = TestNs::new();
    let mut nft = Nft::open().unwrap();
    let mut batch = masquerade();
    for number in 0..5000 {
        batch.create_element(&MASQUERADE4, &address(number));
    }
    let again = batch.clone();
    nft.commit(batch).unwrap();
    assert_eq!(nft.list_elements(&MASQUERADE4).unwrap().len(), 5000);
    // More refusals than the receive buffer holds; the first one is still told, and the socket still good.
    let error = nft.commit(again).unwrap_err();
    let words = "create element 10.244.0.0 to set inet podspan masquerade4: file exists";
    assert!(error.to_string().starts_with(words), "{error}");
    assert_eq!(nft.list_elements(&MASQUERADE4).unwrap().len(), 5000);
}

#[test]
fn a_comment_that_is_too_long_is_refused_and_not_cut() {
    let _ns = TestNs::new();
    let mut batch = masquerade();
    batch.add_element(
        &MASQUERADE4,
        &Element::new([ip("10.0.0.1")]).comment("x".repeat(300)),
    );
    let mut nft = Nft::open().unwrap();
    let error = nft.commit(batch).unwrap_err();
    assert!(error.to_string().starts_with("add element 10.0.0.1 to set"));
    assert!(!nft.has_table(INET).unwrap());
}

/// Prints the median times of commits: `cargo test -p podspan-kernel cost -- --nocapture`.
#[test]
fn the_cost_of_a_commit_does_not_grow_with_the_sets() {
    let _ns = TestNs::new();
    let mut nft = Nft::open().unwrap();
    nft.commit(masquerade()).unwrap();
    let mut batch = Batch::new();
    for name in SETS {
        batch.add_set(&numbered(name));
    }
    nft.commit(batch).unwrap();
    let small = measure(&mut nft);
    let mut batch = Batch::new();
    for name in SETS {
        (0..5000).for_each(|number| batch.add_element(&numbered(name), &address(number)));
    }
    let begin = Instant::now();
    nft.commit(batch).unwrap();
    println!("add 30,000 elements: {:?}", begin.elapsed());
    let large = measure(&mut nft);
    // Generous: this is a machine that does other things too.
    assert!(
        large < small * 20 + Duration::from_millis(20),
        "{small:?} {large:?}"
    );
}

/// The median time of adding one element to each of six sets; prints that and others.
fn measure(nft: &mut Nft) -> Duration {
    let batch = |change: fn(&mut Batch, &Set<'_>, &Element), sets: &[&'static str]| {
        let mut batch = Batch::new();
        for name in sets {
            change(&mut batch, &numbered(name), &address(60_000));
        }
        batch
    };
    let rule = {
        let mut batch = Batch::new();
        batch.add_rule(&Rule::of(POSTROUTING).counter());
        batch
    };
    let flush = {
        let mut batch = Batch::new();
        batch.flush_chain(POSTROUTING);
        batch
    };
    let plain = Chain::plain(INET, "plain");
    let hooked = Chain::hooked(INET, "hooked", Base::filter(Hook::Input, 0));
    let added = |chain: Chain<'static>| {
        let mut batch = Batch::new();
        batch.add_chain(chain);
        batch
    };
    let deleted = |chain: Chain<'static>| {
        let mut batch = Batch::new();
        batch.delete_chain(chain);
        batch
    };
    let pairs = [
        (
            "one element",
            batch(Batch::add_element, &SETS[..1]),
            batch(Batch::delete_element, &SETS[..1]),
        ),
        (
            "six elements",
            batch(Batch::add_element, &SETS),
            batch(Batch::delete_element, &SETS),
        ),
        ("a rule", rule, flush),
        ("a chain", added(plain), deleted(plain)),
        ("a base chain", added(hooked), deleted(hooked)),
    ];
    let mut six = Duration::ZERO;
    for (what, add, delete) in pairs {
        let (mut adding, mut deleting) = (Vec::new(), Vec::new());
        for _ in 0..25 {
            adding.push(timed(nft, &add));
            deleting.push(timed(nft, &delete));
        }
        let [add, delete] = [adding, deleting].map(median);
        println!("{what}: add {add:?}, delete {delete:?}");
        if what == "six elements" {
            six = add;
        }
    }
    six
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Prints what closing the socket costs: `cargo test -p podspan-kernel closing -- --nocapture`.
#[test]
fn closing_the_socket_waits_for_what_was_deleted_a_moment_ago() {
    let _ns = TestNs::new();
    Nft::open().unwrap().commit(masquerade()).unwrap();
    let closing = |change: fn(&mut Batch, &Set<'_>, &Element), busy: Duration, other: bool| {
        let mut times = Vec::new();
        for _ in 0..9 {
            let bystander = Nft::open().unwrap();
            let mut nft = Nft::open().unwrap();
            let mut batch = Batch::new();
            change(&mut batch, &MASQUERADE4, &address(1));
            nft.commit(batch).unwrap();
            std::thread::sleep(busy);
            let begin = Instant::now();
            if other {
                drop(bystander);
            } else {
                drop(nft);
            }
            times.push(begin.elapsed());
            let mut batch = Batch::new();
            batch.add_element(&MASQUERADE4, &address(1));
            Nft::open().unwrap().commit(batch).unwrap();
        }
        median(times)
    };
    let [none, busy] = [Duration::ZERO, Duration::from_millis(60)];
    let added = closing(Batch::add_element, none, false);
    println!("closing after adding: {added:?}");
    let later = closing(Batch::delete_element, busy, false);
    println!("closing 60 ms after deleting: {later:?}");
    for (who, other) in [("closing", false), ("another closing", true)] {
        let at_once = closing(Batch::delete_element, none, other);
        println!("{who} at once after deleting: {at_once:?}");
    }
    assert!(added < Duration::from_millis(2) && later < Duration::from_millis(2));
}

fn timed(nft: &mut Nft, batch: &Batch) -> Duration {
    let batch = batch.clone();
    let begin = Instant::now();
    nft.commit(batch).unwrap();
    begin.elapsed()
}

#[test]
fn a_set_of_one_owner_is_made_found_by_its_comment_and_deleted() {
    let _ns = TestNs::new();
    let mut nft = Nft::open().unwrap();
    let set = Set::of(INET, "pod0", &[Type::Mark]).with_comment("net/c1/eth0");
    let commit = |nft: &mut Nft, change: &dyn Fn(&mut Batch)| {
        let mut batch = Batch::new();
        change(&mut batch);
        nft.commit(batch)
    };
    assert_eq!(nft.list_sets(INET).unwrap(), []);
    let create = |batch: &mut Batch| batch.create_set(&set);
    assert!(commit(&mut nft, &create).unwrap_err().is_not_found());
    commit(&mut nft, &|batch| {
        batch.add_table(INET);
        batch.add_set(&MASQUERADE4);
        batch.create_set(&set);
        batch.add_element(
            &set,
            &Element::new([Value::Mark(3)]).comment("masquerade4 10.0.0.1"),
        );
    })
    .unwrap();
    assert!(commit(&mut nft, &create).unwrap_err().is_exists());
    commit(&mut nft, &|batch| batch.require_set(&set)).unwrap();
    let other = Set::of(INET, "pod1", &[Type::Mark]);
    let error = commit(&mut nft, &|batch| batch.require_set(&other)).unwrap_err();
    assert!(error.is_not_found(), "{error}");

    let named = |name: &str, comment: Option<&str>| NamedSet {
        name: name.into(),
        comment: comment.map(str::to_owned),
    };
    let expected = [
        named("masquerade4", None),
        named("pod0", Some("net/c1/eth0")),
    ];
    assert_eq!(nft.list_sets(INET).unwrap(), expected);
    assert!(
        listing().contains("comment \"net/c1/eth0\""),
        "nft reads it"
    );
    let key = |number| Element::new([Value::Mark(number)]);
    let found = nft.find_element(&set, &key(3)).unwrap().unwrap();
    assert_eq!(found.comment.as_deref(), Some("masquerade4 10.0.0.1"));
    assert_eq!(nft.find_element(&set, &key(4)).unwrap(), None);
    assert_eq!(nft.find_element(&other, &key(3)).unwrap(), None);

    let longest = "c".repeat(247);
    let long = other.with_comment(&longest);
    commit(&mut nft, &|batch| batch.create_set(&long)).unwrap();
    commit(&mut nft, &|batch| {
        batch.delete_set(&set);
        batch.delete_set(&other);
    })
    .unwrap();
    assert_eq!(nft.list_sets(INET).unwrap(), expected[..1]);
}
