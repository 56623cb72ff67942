//! What `iptables-nft` and `nft` made is read, and what is made here `iptables-nft` reads as its own.

use super::*;
use crate::testing::TestNs;

const FILTER: Table<'static> = Table {
    family: Family::Ip,
    name: "filter",
};
const FORWARD: Chain<'static> = Chain::plain(FILTER, "FORWARD");
const PODS: Chain<'static> = Chain::plain(FILTER, "PODS");
const COMING: [CtState; 2] = [CtState::Related, CtState::Established];

/// Runs `iptables-nft`; what it printed.
fn iptables(words: &str) -> String {
    let output = Command::new("iptables-nft")
        .args(words.split_whitespace())
        .output()
        .expect("iptables-nft of iptables is installed");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "iptables {words}: {told}");
    String::from_utf8(output.stdout).unwrap()
}

fn comments(rules: &[ListedRule]) -> Vec<&str> {
    let comments = rules.iter().map(|rule| rule.comment.as_deref());
    comments.map(Option::unwrap_or_default).collect()
}

#[test]
fn iptables_reads_our_rules_as_its_own_and_keeps_them_through_save_and_restore() {
    let _ns = TestNs::new();
    iptables("-P FORWARD DROP");
    let mut nft = Nft::open().unwrap();
    assert!(nft.has_chain(FORWARD).unwrap() && !nft.has_chain(PODS).unwrap());
    let link = || port("a-name-of-15-by");
    let mut batch = Batch::new();
    batch.add_chain(PODS);
    batch.insert_rule(
        &Rule::of(FORWARD)
            .counter()
            .verdict(&Verdict::jump(&PODS))
            .comment("ours"),
    );
    let from = Rule::of(PODS).is(Field::IIFNAME, link()).counter();
    let to = Rule::of(PODS)
        .is(Field::OIFNAME, link())
        .xt_ct_state(&COMING)
        .counter();
    for rule in [from, to] {
        batch.add_rule(&rule.verdict(&Verdict::Accept).comment("a pod"));
    }
    nft.commit(batch).unwrap();
    let expected = "\
        -P FORWARD DROP\n\
        -A FORWARD -m comment --comment ours -j PODS\n";
    assert_eq!(iptables("-S FORWARD"), expected);
    let expected = "\
        -N PODS\n\
        -A PODS -i a-name-of-15-by -m comment --comment \"a pod\" -j ACCEPT\n\
        -A PODS -o a-name-of-15-by -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment \"a pod\" -j ACCEPT\n";
    assert_eq!(iptables("-S PODS"), expected);

    let before = nft.list_rules(PODS).unwrap();
    let saved = Command::new("iptables-nft-save").output().unwrap().stdout;
    let mut restore = Command::new("iptables-nft-restore")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    restore.stdin.take().unwrap().write_all(&saved).unwrap();
    assert!(restore.wait().unwrap().success());
    assert_eq!(iptables("-S PODS"), expected);
    let after = nft.list_rules(PODS).unwrap();
    assert!(before.iter().zip(&after).all(|(a, b)| a.handle != b.handle));
    assert_eq!(comments(&after), ["a pod", "a pod"], "the comment moved");
    iptables("-D FORWARD 1");
    iptables("-F PODS");
    iptables("-X PODS");
}

#[test]
fn rules_are_listed_in_order_inserted_at_the_head_and_deleted_one_by_one() {
    let _ns = TestNs::new();
    let mut nft = Nft::open().unwrap();
    assert!(!nft.has_chain(PODS).unwrap(), "no table at all");
    assert_eq!(nft.list_rules(PODS).unwrap(), []);
    iptables("-N PODS");
    iptables("-N OTHERS");
    iptables("-A OTHERS -j DROP");
    iptables("-A PODS -p tcp -m comment --comment theirs -j DROP");
    iptables("-A PODS -j OTHERS");
    iptables("-A PODS -p udp");
    let rule = |comment: &str, verdict: &Verdict| Rule::of(PODS).verdict(verdict).comment(comment);
    let mut batch = Batch::new();
    batch.add_rule(&rule("last", &Verdict::Return));
    batch.insert_rule(&rule("first", &Verdict::Accept));
    nft.commit(batch).unwrap();

    let rules = nft.list_rules(PODS).unwrap();
    assert_eq!(comments(&rules), ["first", "theirs", "", "", "last"]);
    let verdicts: Vec<_> = rules.iter().map(|rule| rule.verdict.clone()).collect();
    let expected = [
        Some(Verdict::Accept),
        Some(Verdict::Drop),
        Some(Verdict::Jump("OTHERS".into())),
        None,
        Some(Verdict::Return),
    ];
    assert_eq!(verdicts, expected);
    let mut batch = Batch::new();
    batch.delete_rule(PODS, rules[1].handle);
    batch.delete_rule(PODS, rules[4].handle);
    nft.commit(batch).unwrap();
    assert_eq!(
        comments(&nft.list_rules(PODS).unwrap()),
        ["first", "", ""],
        "and none of another chain"
    );
    let mut batch = Batch::new();
    batch.delete_rule(PODS, rules[1].handle);
    let error = nft.commit(batch).unwrap_err();
    assert!(error.is_not_found(), "{error}");
    let action = format!("delete rule {} from chain ip filter PODS", rules[1].handle);
    assert!(error.to_string().starts_with(&action), "{error}");
}

#[test]
fn to_settle_is_to_look_and_change_as_one_step_whoever_else_does() {
    let _ns = TestNs::new();
    iptables("-N PODS");
    let settle = || {
        let mut nft = Nft::open().unwrap();
        let added = nft.settle(|nft| {
            let mut batch = Batch::new();
            if nft.list_rules(PODS)?.is_empty() {
                batch.add_rule(&Rule::of(PODS).verdict(&Verdict::Accept));
            }
            Ok(batch)
        });
        added.unwrap();
    };
    // Threads are in the namespace of the one that starts them.
    std::thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(settle))));
    assert_eq!(iptables("-S PODS"), "-N PODS\n-A PODS -j ACCEPT\n");
}

#[test]
fn a_batch_for_a_state_that_has_passed_changes_nothing() {
    let _ns = TestNs::new();
    let (mut nft, mut other) = (Nft::open().unwrap(), Nft::open().unwrap());
    let table = || {
        let mut batch = Batch::new();
        batch.add_table(INET);
        batch
    };
    let seen = nft.generation().unwrap();
    nft.commit(table().only_at(seen)).unwrap();
    let seen = nft.generation().unwrap();
    other.commit(port_mappings()).unwrap();
    let before = listing();
    let error = nft.commit(masquerade().only_at(seen)).unwrap_err();
    assert_eq!(error.errno(), Errno::RESTART, "{error}");
    assert_eq!(listing(), before);
    let seen = nft.generation().unwrap();
    nft.commit(masquerade().only_at(seen)).unwrap();
}

#[test]
fn chains_are_listed_with_their_places_and_rules_with_what_they_ask_and_refuse() {
    let _ns = TestNs::new();
    iptables("-P FORWARD DROP");
    iptables("-A FORWARD -i podspan0 -j ACCEPT");
    iptables("-A FORWARD -m comment --comment last -j REJECT");
    iptables("-A FORWARD -p tcp -j REJECT --reject-with tcp-reset");
    nft(
        "-f -",
        "table inet fire {
            chain f {
                type filter hook forward priority 10; policy drop;
                oifname { \"a\", \"b\" } accept
                iifname \"podspan0\" oifname \"pod*\" counter accept
                iifname != \"other\" drop
                counter log reject with icmpx admin-prohibited
            }
            chain out { type nat hook postrouting priority 110; }
            chain plain { }
        }",
    );
    let mut nft = Nft::open().unwrap();
    let rules = nft.list_rules(FORWARD).unwrap();
    let told = |rules: &[ListedRule]| -> Vec<(bool, bool, usize)> {
        let told = rules.iter();
        told.map(|rule| (rule.refuses, rule.is_for_all, rule.links.len()))
            .collect()
    };
    let expected = [(false, false, 1), (true, true, 0), (true, false, 0)];
    assert_eq!(told(&rules), expected);
    assert_eq!(rules[0].links, [name("podspan0")]);
    let fire = Table {
        family: Family::Inet,
        name: "fire",
    };
    let rules = nft.list_rules(Chain::plain(fire, "f")).unwrap();
    let expected = [
        (false, false, 0),
        (false, false, 1),
        (true, false, 0),
        (true, true, 0),
    ];
    assert_eq!(told(&rules), expected);

    let chains = nft.list_chains(Family::Inet).unwrap();
    let names: Vec<_> = chains.iter().map(|chain| chain.name.as_str()).collect();
    assert_eq!(names, ["f", "out", "plain"]);
    let base = chains[0].base.unwrap();
    assert!(base.stands_as(&Base::filter(Hook::Forward, 10)) && base.policy == Policy::Drop);
    assert!(!base.stands_as(&Base::filter(Hook::Forward, 0)));
    let out = nft.find_chain(Chain::plain(fire, "out")).unwrap().unwrap();
    assert!(
        out.base
            .unwrap()
            .stands_as(&Base::nat(Hook::Postrouting, 110))
    );
    assert_eq!((chains[2].base, chains[2].table.as_str()), (None, "fire"));
    let ip = nft.list_chains(Family::Ip).unwrap();
    assert_eq!(ip.len(), 1);
    assert_eq!(ip[0].base.unwrap().policy, Policy::Drop);
    assert_eq!(nft.list_chains(Family::Ip6).unwrap(), []);
    assert_eq!(nft.find_chain(PODS).unwrap(), None);
}
