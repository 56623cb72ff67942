//! Chains of one owner each, entered through a verdict map: made, listed and deleted, with `nft -j` as the witness.

use super::*;
use crate::testing::TestNs;

const OWNERS: Set<'static> = Set::verdict_map(INET, "owners", &[Type::Ipv4]);
const FORWARD: Chain<'static> = Chain::hooked(
    INET,
    "forward",
    Base::filter(Hook::Forward, priority::FILTER - 20),
);
const A: Chain<'static> = Chain::plain(INET, "of_a").with_comment("web-0");
const B: Chain<'static> = Chain::plain(INET, "of_b");

fn to(chain: &Chain<'_>, address: &str) -> Element {
    Element::new([ip(address)])
        .verdict(Verdict::goto(chain))
        .comment("pod0")
}

fn closed(chain: Chain<'_>) -> Rule<'_> {
    Rule::of(chain)
        .counter()
        .verdict(&Verdict::Drop)
        .comment("closed")
}

/// Two owners, the first of whom is closed.
fn owners() -> Batch {
    let mut batch = Batch::new();
    batch.add_table(INET);
    batch.add_set(&OWNERS);
    batch.add_chain(FORWARD);
    batch.add_rule(&Rule::of(FORWARD).verdict_by(&[Field::IP_SADDR], &OWNERS));
    for chain in [A, B] {
        batch.create_chain(chain);
    }
    batch.add_rule(&closed(A));
    batch.create_element(&OWNERS, &to(&A, "10.0.0.1"));
    batch.create_element(&OWNERS, &to(&B, "10.0.0.2"));
    batch
}

fn commit(batch: Batch) -> Result<()> {
    Nft::open()?.commit(batch)
}

#[test]
fn chains_of_owners_are_what_nft_makes_of_the_text() {
    let _ns = TestNs::new();
    assert_same(
        owners(),
        r#"table inet podspan {
            map owners { type ipv4_addr : verdict
                elements = { 10.0.0.1 comment "pod0" : goto of_a, 10.0.0.2 comment "pod0" : goto of_b }
            }
            chain forward { type filter hook forward priority filter - 20; policy accept;
                ip saddr vmap @owners
            }
            chain of_a { comment "web-0"
                counter drop comment "closed"
            }
            chain of_b { }
        }"#,
    );
}

#[test]
fn neighbours_that_no_router_passed_on_are_told_apart_as_nft_writes_it() {
    let _ns = TestNs::new();
    let mut batch = Batch::new();
    batch.add_table(INET);
    batch.add_chain(FORWARD);
    let types = [135, 136].map(Value::Icmp6Type);
    let [first, last] = types;
    batch.add_rule(
        &Rule::of(FORWARD)
            .is(Field::IP6_HOPLIMIT, Value::Protocol(255))
            .between(Field::ICMPV6_TYPE, first, last)
            .verdict(&Verdict::Accept),
    );
    assert_same(
        batch,
        "table inet podspan { chain forward { type filter hook forward priority filter - 20; policy accept;
            ip6 hoplimit 255 icmpv6 type 135-136 accept
         }
         }",
    );
}

#[test]
fn a_chain_is_created_once_and_keeps_the_comment_that_it_was_made_with() {
    let _ns = TestNs::new();
    let mut nft = Nft::open().unwrap();
    assert_eq!(nft.list_chains_of(INET).unwrap(), []);
    commit(owners()).unwrap();
    nft_of_others();
    let again = commit({
        let mut batch = Batch::new();
        batch.create_chain(A);
        batch
    });
    let told = again.unwrap_err();
    assert!(told.is_exists());
    assert!(
        told.to_string()
            .starts_with("create chain inet podspan of_a: "),
        "{told}"
    );
    let mut batch = Batch::new();
    batch.add_chain(A.with_comment("somebody else"));
    commit(batch).unwrap();

    let chain = |name: &str, comment: Option<&str>| NamedChain {
        name: name.into(),
        comment: comment.map(str::to_owned),
    };
    let mut listed = nft.list_chains_of(INET).unwrap();
    listed.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(
        listed,
        [
            chain("forward", None),
            chain("of_a", Some("web-0")),
            chain("of_b", None)
        ]
    );
    let rules = nft.list_rules(A).unwrap();
    let texts = rules
        .iter()
        .map(|rule| (rule.comment.as_deref(), rule.refuses));
    assert_eq!(texts.collect::<Vec<_>>(), [(Some("closed"), true)]);
}

/// A table of somebody else's with names like ours.
fn nft_of_others() {
    nft(
        "-f -",
        "table inet other { chain of_a { comment \"theirs\"; counter accept; }; }",
    );
}

#[test]
fn elements_and_chain_go_together_and_the_chain_alone_does_not() {
    let _ns = TestNs::new();
    commit(owners()).unwrap();
    let mut alone = Batch::new();
    alone.delete_chain(A);
    assert_eq!(commit(alone).unwrap_err().errno(), Errno::BUSY);
    let mut nft = Nft::open().unwrap();
    assert_eq!(nft.list_rules(A).unwrap().len(), 1, "all or nothing");
    let found = nft.find_element(&OWNERS, &Element::new([ip("10.0.0.1")]));
    assert_eq!(found.unwrap(), Some(to(&A, "10.0.0.1")));

    let mut both = Batch::new();
    both.delete_element(&OWNERS, &to(&A, "10.0.0.1"));
    both.delete_chain(A);
    commit(both).unwrap();
    let listed = super::nft("-j list table inet podspan", "");
    assert!(
        !listed.contains("of_a") && !listed.contains("10.0.0.1"),
        "{listed}"
    );
    assert!(listed.contains("of_b"), "{listed}");
    // Who still names it fails as a whole.
    let mut late = Batch::new();
    late.flush_chain(B);
    late.add_rule(&closed(B));
    late.add_rule(&closed(A));
    assert!(commit(late).unwrap_err().is_not_found());
    assert_eq!(nft.list_rules(B).unwrap(), []);
}

#[test]
fn a_comment_of_the_longest_name_fits() {
    let _ns = TestNs::new();
    let long = "n".repeat(253);
    let mut batch = Batch::new();
    batch.add_table(INET);
    batch.create_chain(B.with_comment(&long));
    commit(batch).unwrap();
    let listed = Nft::open().unwrap().list_chains_of(INET).unwrap();
    assert_eq!(listed[0].comment.as_deref(), Some(long.as_str()));
    let shown = super::nft("-j list table inet podspan", "");
    assert!(shown.contains("of_b"), "nft still reads it: {shown}");
}

#[test]
fn comments_of_every_length_are_read_as_they_were_written() {
    let _ns = TestNs::new();
    let set = Set::of(INET, "record", &[Type::Mark]);
    let mut batch = Batch::new();
    batch.add_table(INET);
    batch.add_set(&set);
    let element = |length: u32| {
        let comment = "c".repeat(usize::try_from(length).unwrap());
        Element::new([Value::Mark(length)]).comment(comment)
    };
    for length in 1..=251 {
        batch.add_element(&set, &element(length));
    }
    commit(batch).unwrap();
    let mut nft = Nft::open().unwrap();
    let mut wrong = Vec::new();
    for length in 1..=251 {
        let found = nft.find_element(&set, &Element::new([Value::Mark(length)]));
        if found.unwrap() != Some(element(length)) {
            wrong.push(length);
        }
    }
    assert_eq!(wrong, Vec::<u32>::new());
    assert_eq!(nft.list_elements(&set).unwrap().len(), 251);
    for length in 252..=256 {
        let mut batch = Batch::new();
        batch.add_element(&set, &element(length));
        assert!(commit(batch).is_err(), "{length} is neither cut nor lost");
    }
}
