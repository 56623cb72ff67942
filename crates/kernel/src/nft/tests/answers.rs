//! Answers that make no sense, and lists that change while they are told.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::*;
use crate::Netns;
use crate::encode::Encoder;
use crate::netlink::tests::{Impostor, message, nearly};
use crate::netlink::{RECEIVE_BUFFER, receive_datagram};
use crate::testing::TestNs;
use crate::testing::fuzz::{self, Dice};

const VERDICTS: Set<'static> = Set::verdict_map(INET, "verdicts", &[Type::IfName]);

/// Every kind of set with something in it.
fn filled() -> Batch {
    let mut batch = masquerade();
    for set in [&HOST_PORTS4, &HOST_IP_PORTS6, &VERDICTS] {
        batch.add_set(set);
    }
    let port = [Value::TCP, Value::Port(80)];
    let with_ip = [ip("fd00::1"), Value::UDP, Value::Port(53)];
    batch.add_element(
        &MASQUERADE4,
        &Element::new([ip("10.244.1.2")]).comment("net/c1/eth0"),
    );
    batch.add_element(
        &NO_MASQUERADE4,
        &Element::prefix("10.244.0.0/16".parse().unwrap()),
    );
    batch.add_element(
        &HOST_PORTS4,
        &Element::new(port).to([ip("10.244.1.2"), Value::Port(8080)]),
    );
    batch.add_element(
        &HOST_IP_PORTS6,
        &Element::new(with_ip).to([ip("fd00::2"), Value::Port(5353)]),
    );
    batch.add_element(
        &VERDICTS,
        &Element::new([Value::IfName(name("pod1"))]).verdict(Verdict::Drop),
    );
    batch
}

/// What the kernel says of all sets, of one that is not there, and of a batch.
fn corpus(nft: &mut Nft) -> Vec<Vec<u8>> {
    let header = |flags| encode::Header {
        kind: message::GET_ELEMENTS,
        flags: NLM_F_REQUEST | flags,
        family: Family::Inet as u8,
        resource: 0,
    };
    let absent = Set::of(INET, "absent", &[Type::Ipv4]);
    let mut corpus = Vec::new();
    for set in SETS.iter().chain([&absent]) {
        let mut question = Encoder::default();
        question.message(header(NLM_F_DUMP), |to| set.encode_name(to));
        nft.link.send(question.bytes()).ok().unwrap();
        while receive_datagram(&nft.link.socket, &mut nft.link.buffer).is_ok() {
            corpus.push(nft.link.buffer.clone());
        }
    }
    corpus.push(message(2, 0, (0, &[0; 20])));
    corpus
}

const SETS: [Set<'static>; 5] = [
    MASQUERADE4,
    NO_MASQUERADE4,
    HOST_PORTS4,
    HOST_IP_PORTS6,
    VERDICTS,
];

#[test]
fn no_answer_of_nf_tables_makes_it_panic_hang_or_grow() {
    let _ns = TestNs::new();
    let mut nft = Nft::open().unwrap();
    nft.commit(filled()).unwrap();
    let corpus = corpus(&mut nft);
    assert!(corpus.len() >= 8, "{}", corpus.len());
    let impostor = Impostor::new(netlink_sys::protocols::NETLINK_NETFILTER);
    let count = fuzz::run(|seed| {
        let mut dice = Dice::new(seed);
        let mut nft = Nft::open().unwrap();
        for _ in 0..=dice.below(3) {
            let sequence = nft.link.sequence.wrapping_add(1 + dice.below(2) as u32);
            impostor.send(&nft.link.socket, &nearly(&corpus, sequence, &mut dice));
        }
        match dice.below(8) {
            0 => drop(nft.has_table(INET)),
            1 => {
                let mut batch = Batch::new();
                batch.add_element(&MASQUERADE4, &Element::new([ip("10.244.1.2")]));
                drop(nft.commit(batch));
            }
            _ => drop(nft.list_elements(&dice.pick(&SETS))),
        }
        assert_eq!(nft.link.buffer.capacity(), RECEIVE_BUFFER);
    });
    println!("{count} answers of nf_tables");
}

#[test]
fn a_list_that_others_change_meanwhile_is_told_whole_or_not_at_all() {
    let _ns = TestNs::new();
    let mut nft = Nft::open().unwrap();
    let mut batch = masquerade();
    let stays = |number: u32| Element::new([Value::Ipv4((0x0a00_0000 + number).into())]);
    // More than one datagram holds.
    let count = 2_000;
    (0..count).for_each(|number| batch.add_element(&MASQUERADE4, &stays(number)));
    nft.commit(batch).unwrap();
    let (here, over) = (Netns::current().unwrap(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (here, over) = (&here, &over);
        scope.spawn(move || {
            here.enter().unwrap();
            let mut nft = Nft::open().unwrap();
            let comes_and_goes = Element::new([ip("192.0.2.1")]);
            while !over.load(Relaxed) {
                let mut batch = Batch::new();
                batch.add_element(&MASQUERADE4, &comes_and_goes);
                nft.commit(batch).unwrap();
                let mut batch = Batch::new();
                batch.delete_element(&MASQUERADE4, &comes_and_goes);
                nft.commit(batch).unwrap();
            }
        });
        /// Ends the other thread also when this one fails.
        struct Ending<'a>(&'a AtomicBool);
        impl Drop for Ending<'_> {
            fn drop(&mut self) {
                self.0.store(true, Relaxed);
            }
        }
        let _ending = Ending(over);
        let (mut whole, mut interrupted) = (0, 0);
        while whole < 50 || interrupted == 0 {
            let before = nft.link.sequence;
            match nft.list_elements(&MASQUERADE4) {
                Ok(listed) => {
                    whole += 1;
                    let mut keys: Vec<_> = listed.into_iter().map(|element| element.key).collect();
                    keys.retain(|key| *key != [ip("192.0.2.1")]);
                    let distinct: HashSet<_> = keys.iter().map(|key| format!("{key:?}")).collect();
                    let counts = (keys.len(), distinct.len());
                    assert_eq!(counts, (count as usize, count as usize));
                }
                Err(error) => assert_eq!(error.errno(), Errno::INTR),
            }
            interrupted += nft.link.sequence.wrapping_sub(before) - 1;
        }
        println!("{whole} lists whole, {interrupted} interrupted");
    });
}
