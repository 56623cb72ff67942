//! Answers that make no sense: by hand, and by the thousand. They come through the socket, from another one in the same
//! namespace, and are there before the kernel's own.

mod codec;

use super::*;
use crate::testing::TestNs;
use crate::testing::fuzz::{self, Dice};
use crate::{Bandwidth, IfName, Mac, VethEnd, VethPair};

/// Who sends to another socket what the kernel would.
pub(crate) struct Impostor(Socket);

impl Impostor {
    pub(crate) fn new(protocol: isize) -> Self {
        let mut socket = Socket::new(protocol).unwrap();
        socket.bind(&SocketAddr::new(0, 0)).unwrap();
        Self(socket)
    }

    pub(crate) fn send(&self, to: &Socket, datagram: &[u8]) {
        let mut address = SocketAddr::new(0, 0);
        to.get_address(&mut address).unwrap();
        let address = SocketAddr::new(address.port_number(), 0);
        // An empty one the kernel does not deliver.
        if !datagram.is_empty() {
            self.0.send_to(datagram, &address, 0).unwrap();
        }
    }
}

/// A message with a header that is right.
pub(crate) fn message(kind: u16, flags: u16, (sequence, payload): (u32, &[u8])) -> Vec<u8> {
    let length = u32::try_from(HEADER + payload.len()).unwrap();
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(payload);
    bytes
}

/// A datagram that is nearly one of the kernel's: its number and its length are mostly right, for otherwise nothing would
/// be read.
pub(crate) fn nearly(corpus: &[Vec<u8>], sequence: u32, dice: &mut Dice) -> Vec<u8> {
    let other = &corpus[dice.below(corpus.len())];
    let mut bytes = corpus[dice.below(corpus.len())].clone();
    // A dump's datagram has several messages; the first few are enough.
    bytes.truncate(4096);
    fuzz::mutate(&mut bytes, other, dice);
    if dice.percent(95) {
        // All of the messages, as far as their lengths lead.
        let mut at = 0;
        while at + HEADER <= bytes.len() {
            let rest = bytes.len() - at;
            let length = u32_at(&bytes, at).map_or(0, |length| length as usize);
            let sound = (HEADER..=rest).contains(&length);
            let length = if sound { length } else { rest };
            if !sound && dice.percent(90) {
                fuzz::overwrite(&mut bytes, at, &(length as u32).to_ne_bytes());
            }
            fuzz::overwrite(&mut bytes, at + 8, &sequence.to_ne_bytes());
            at += length.next_multiple_of(4);
        }
    }
    bytes
}

fn names() -> [IfName; 3] {
    ["br0", "veth0", "veth1"].map(|name| name.parse().unwrap())
}

/// A request of that kind, with nothing in it but a header of so many bytes.
fn question(kind: u16, header: usize) -> Encoder {
    let mut question = Encoder::request(kind);
    question.plain(&vec![0; header]);
    question
}

/// A namespace with one of everything, and what the kernel answers about it.
fn corpus(ns: &TestNs) -> Vec<Vec<u8>> {
    let mut netlink = Netlink::open().unwrap();
    let [br0, veth0, veth1] = names();
    netlink.add_bridge(&br0, Mac::of_text(&["a"])).unwrap();
    let bridge = netlink.link(&br0).unwrap().index;
    let end = |name, text| VethEnd {
        name,
        mac: Mac::of_text(&[text]),
    };
    netlink
        .add_veth(&VethPair {
            host: end(&veth0, "b"),
            peer: end(&veth1, "c"),
            peer_netns: &Netns::current().unwrap(),
            master: Some(bridge),
            mtu: 1400,
        })
        .unwrap();
    for command in [
        "addr add 10.1.0.1/24 dev br0",
        "addr add fd00::1/64 dev br0 nodad",
        "link set veth0 up alias podspan:net/c1/eth0",
        "link set veth1 up",
        "route add 10.2.0.0/16 via 10.1.0.9 proto 112 metric 7 mtu 1300",
        "route add 10.3.0.0/16 nexthop via 10.1.0.8 nexthop via 10.1.0.9",
        "-6 route add fd01::/64 via fd00::9",
        "neigh add 10.1.0.7 lladdr 0a:00:00:00:00:01 dev br0",
        "link add vx0 type vxlan id 7 dstport 4789 local 10.1.0.1 nolearning",
    ] {
        ns.ip(command);
    }
    let rate = Bandwidth {
        rate: 1_000_000,
        burst: 100_000,
    };
    netlink.ensure_bandwidth(bridge, rate).unwrap();
    let questions = [
        (message::GET_LINK, 16),
        (message::GET_ADDRESS, 8),
        (message::GET_ROUTE, 12),
        (message::GET_NEIGHBOUR, 12),
        (message::GET_QDISC, 20),
    ];
    let mut corpus = Vec::new();
    for (kind, header) in questions {
        let mut question = question(kind, header);
        netlink.send(&mut question, NLM_F_DUMP).ok().unwrap();
        while receive_datagram(&netlink.socket, &mut netlink.buffer).is_ok() {
            corpus.push(netlink.buffer.clone());
        }
    }
    // A refusal with words, and an acknowledgement.
    let mut nobody = question(message::DELETE_LINK, 16);
    netlink.send(&mut nobody, NLM_F_ACK).ok().unwrap();
    receive_datagram(&netlink.socket, &mut netlink.buffer)
        .ok()
        .unwrap();
    corpus.push(netlink.buffer.clone());
    corpus.push(message(NLMSG_ERROR, 0, (0, &[0; 20])));
    assert!(corpus.len() >= 8, "{}", corpus.len());
    corpus
}

/// Asks one thing; what comes of it is not the point.
fn ask(netlink: &mut Netlink, dice: &mut Dice) {
    let [br0, veth0, _] = names();
    let anywhere = || "10.2.0.1".parse().unwrap();
    match dice.below(11) {
        0 => drop(netlink.list_links()),
        1 => drop(netlink.list_addresses()),
        2 => drop(netlink.list_routes(None)),
        3 => drop(netlink.route_to(anywhere())),
        4 => drop(netlink.is_local(anywhere())),
        5 => drop(netlink.link(&br0).map(|link| link.to_owned())),
        6 => drop(netlink.reachability(1, anywhere())),
        7 => drop(netlink.list_fdb(1)),
        8 => drop(netlink.redirect_of(1)),
        9 => drop(netlink.classifier(1)),
        _ => drop(netlink.set_link(&veth0, crate::LinkChange::default())),
    }
}

#[test]
fn no_answer_of_rtnetlink_makes_it_panic_hang_or_grow() {
    let ns = TestNs::new();
    let corpus = corpus(&ns);
    let impostor = Impostor::new(NETLINK_ROUTE);
    let count = fuzz::run(|seed| {
        let mut dice = Dice::new(seed);
        let mut netlink = Netlink::open().unwrap();
        for _ in 0..=dice.below(3) {
            let sequence = netlink.sequence.wrapping_add(1);
            impostor.send(&netlink.socket, &nearly(&corpus, sequence, &mut dice));
        }
        ask(&mut netlink, &mut dice);
        assert_eq!(netlink.buffer.capacity(), RECEIVE_BUFFER);
    });
    println!("{count} answers of rtnetlink");
}

/// What `question` comes to when `answer` is there before the kernel's own.
fn answered<T>(answer: &[u8], question: impl FnOnce(&mut Netlink) -> Result<T>) -> Result<T> {
    let mut netlink = Netlink::open().unwrap();
    Impostor::new(NETLINK_ROUTE).send(&netlink.socket, answer);
    question(&mut netlink)
}

#[test]
fn answers_that_make_no_sense_are_errors() {
    let _ns = TestNs::new();
    let lo: IfName = "lo".parse().unwrap();
    let find = |netlink: &mut Netlink| netlink.find_link(&lo);
    let is = |answer: &[u8], errno: Errno| {
        let error = answered(answer, find).unwrap_err();
        assert_eq!(error.errno(), errno, "{answer:?}");
    };
    let code = |code: i32| {
        let mut payload = code.to_ne_bytes().to_vec();
        payload.extend([0; HEADER]);
        message(NLMSG_ERROR, 0, (1, &payload))
    };
    is(&code(-105), Errno::NOBUFS);
    // No errno.
    for wrong in [5, -4096, i32::MIN, i32::MAX] {
        is(&code(wrong), Errno::BADMSG);
    }
    // An end without a code, and no message at all: shorter than its header, longer than what came.
    is(&message(NLMSG_ERROR, 0, (1, &[0; 3])), Errno::BADMSG);
    is(&message(NLMSG_DONE, 0, (1, &[])), Errno::BADMSG);
    is(&[4, 0, 0, 0, 0, 0, 0, 0], Errno::BADMSG);
    is(&[0xff; 16], Errno::BADMSG);
    is(&[0; 64], Errno::BADMSG);
    // A link in a form that cannot be read is no link that is not there.
    let new_link = 16;
    let unreadable = [message(new_link, 0, (1, &[0; 3])), code(0)].concat();
    is(&unreadable, Errno::BADMSG);
    // Of another request: not our affair.
    let foreign = message(NLMSG_ERROR, 0, (77, &[0xff; 20]));
    assert!(answered(&foreign, find).unwrap().is_some());
}

#[test]
fn an_interrupted_dump_is_begun_again_and_the_half_never_used() {
    let ns = TestNs::new();
    ns.ip("link add br0 type bridge");
    // The first part of a list, in which nothing is, and then its end: as the kernel tells that something changed.
    let part = message(99, NLM_F_DUMP_INTR, (1, &[]));
    let end = |flags| message(NLMSG_DONE, flags, (1, &[0; 4]));
    for answer in [[part.clone(), end(0)].concat(), end(NLM_F_DUMP_INTR)] {
        let links = answered(&answer, Netlink::list_links).unwrap();
        let names: Vec<_> = links.iter().map(|link| link.name.as_str()).collect();
        assert_eq!(names, ["lo", "br0"]);
    }
    // The end alone would be an empty list.
    assert_eq!(answered(&end(0), Netlink::list_links).unwrap().len(), 0);
    // When it never comes to an end undisturbed, that is an error and no list.
    let mut netlink = Netlink::open().unwrap();
    let impostor = Impostor::new(NETLINK_ROUTE);
    for number in 1..=DUMP_TRIES {
        let sequence = u32::try_from(number).unwrap();
        let end = message(NLMSG_DONE, NLM_F_DUMP_INTR, (sequence, &[0; 4]));
        impostor.send(&netlink.socket, &end);
    }
    let error = netlink.list_links().unwrap_err();
    assert_eq!(error.errno(), Errno::INTR);
}

#[test]
fn links_that_cannot_be_removed_together_go_one_after_the_other() {
    let ns = TestNs::new();
    let mut netlink = Netlink::open().unwrap();
    let impostor = Impostor::new(NETLINK_ROUTE);
    let make = |netlink: &mut Netlink| {
        let links = ["la", "lb"].map(|name| {
            ns.ip(&format!("link add {name} type bridge"));
            netlink
                .link(&name.parse::<IfName>().unwrap())
                .unwrap()
                .index
        });
        (links, netlink.group_links(links.to_vec()))
    };
    let names = |netlink: &mut Netlink| {
        let links = netlink.list_links().unwrap();
        links.into_iter().map(|link| link.name).collect::<Vec<_>>()
    };
    // Something changes all the time.
    let (_, group) = make(&mut netlink);
    for sequence in (netlink.sequence + 1..).take(DUMP_TRIES) {
        let end = message(NLMSG_DONE, NLM_F_DUMP_INTR, (sequence, &[0; 4]));
        impostor.send(&netlink.socket, &end);
    }
    netlink.remove_group(&group).unwrap();
    assert_eq!(names(&mut netlink), ["lo"]);
    // They go just after they were seen.
    let (links, group) = make(&mut netlink);
    let sequence = netlink.sequence + 1;
    let mut seen = links.map(|link| {
        let mut payload = vec![0; 16];
        payload[4..8].copy_from_slice(&link.to_ne_bytes());
        // `IFLA_GROUP`.
        payload.extend([8_u16, 27].map(u16::to_ne_bytes).concat());
        payload.extend((0x7000_0000 | links[0]).to_ne_bytes());
        message(super::message::NEW_LINK, 0, (sequence, &payload))
    });
    let end = message(NLMSG_DONE, 0, (sequence, &[0; 4]));
    seen[1].extend(end);
    impostor.send(&netlink.socket, &seen.concat());
    for name in ["la", "lb"] {
        ns.ip(&format!("link del {name}"));
    }
    netlink.remove_group(&group).unwrap();
    assert_eq!(names(&mut netlink), ["lo"]);
}
