//! The program, run as the kernel runs it, beside a plain account of what a pod may send.

use proptest::prelude::*;

use super::*;

const MAC: Mac = Mac([0x0a, 0x58, 10, 244, 1, 2]);
const OTHER_MAC: Mac = Mac([0x0a, 0x58, 10, 244, 1, 3]);
const IPV4: [u8; 4] = [10, 244, 1, 2];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn guard(addresses: Option<&[&str]>) -> Guard {
    Guard {
        mac: MAC,
        addresses: addresses.map(|all| all.iter().map(|text| ip(text)).collect()),
    }
}

fn dual() -> Guard {
    guard(Some(&["10.244.1.2", "fd00:10:244:1::2"]))
}

/// What the program returns; none where it loads what is not in the frame, which the kernel lets pass.
///
/// It panics where the kernel would have refused it (`bpf_check_classic`): a jump beyond the end, an unknown instruction, or
/// memory that nothing was kept in.
fn run(program: &[Instruction], frame: &[u8]) -> Option<Verdict> {
    let (mut at, mut a, mut x, mut memory) = (0usize, 0u32, 0u32, [None::<u32>; 16]);
    loop {
        let Instruction {
            code,
            jumps,
            operand: k,
        } = program[at];
        at += 1;
        let bytes = |from: u32, count: usize| -> Option<u32> {
            let from = from as usize;
            let bytes = frame.get(from..from.checked_add(count)?)?;
            Some(
                bytes
                    .iter()
                    .fold(0, |all, byte| all << 8 | u32::from(*byte)),
            )
        };
        let mut branch = |holds: bool| at += usize::from(jumps[usize::from(!holds)]);
        match code {
            0x20 => a = bytes(k, 4)?,
            0x28 => a = bytes(k, 2)?,
            0x30 => a = bytes(k, 1)?,
            0x40 => a = bytes(x.wrapping_add(k), 4)?,
            0x48 => a = bytes(x.wrapping_add(k), 2)?,
            0x50 => a = bytes(x.wrapping_add(k), 1)?,
            0x80 => a = u32::try_from(frame.len()).unwrap(),
            0x00 => a = k,
            0x01 => x = k,
            0x60 => a = memory[k as usize].unwrap(),
            0x02 => memory[k as usize] = Some(a),
            0x04 => a = a.wrapping_add(k),
            0x0c => a = a.wrapping_add(x),
            0x1c => a = a.wrapping_sub(x),
            0x64 => a = a.wrapping_shl(k),
            0x07 => x = a,
            0x05 => at += k as usize,
            0x15 => branch(a == k),
            0x35 => branch(a >= k),
            0x3d => branch(a >= x),
            0x45 => branch(a & k != 0),
            0x06 => return Some(Verdict(k)),
            other => panic!("instruction {other:#x}"),
        }
    }
}

fn passes(guard: &Guard, frame: &[u8]) -> bool {
    match run(&of(guard), frame) {
        Some(Verdict::NEXT) => true,
        Some(Verdict::DROP) => false,
        other => panic!("{other:?} for {frame:02x?}"),
    }
}

/// The same, said plainly; none for a frame that is too short to tell.
fn may_send(guard: &Guard, frame: &[u8]) -> Option<bool> {
    if frame.get(6..12)? != MAC.0 {
        return Some(false);
    }
    let Some(addresses) = &guard.addresses else {
        return Some(frame.len() >= 14);
    };
    let of_four = |bytes: &[u8]| {
        let octets: [u8; 4] = bytes.try_into().unwrap();
        addresses.contains(&IpAddr::from(octets))
    };
    let ether_type = u16::from_be_bytes(frame.get(12..14)?.try_into().unwrap());
    let packet = &frame[14..];
    Some(match ether_type {
        0x0800 => of_four(packet.get(..20)?.get(12..16)?),
        0x0806 => {
            let arp = packet.get(..28)?;
            arp[8..14] == MAC.0 && (arp[14..18] == [0; 4] || of_four(&arp[14..18]))
        }
        0x86dd => may_send_ipv6(guard, packet)?,
        0x8100 | 0x88a8 => false,
        _ => true,
    })
}

fn may_send_ipv6(guard: &Guard, packet: &[u8]) -> Option<bool> {
    let is_own = |bytes: &[u8]| {
        let octets: [u8; 16] = bytes.try_into().unwrap();
        let address = Ipv6Addr::from(octets);
        address == MAC.link_local() || guard.addresses.as_ref().unwrap().contains(&address.into())
    };
    let source = packet.get(..40)?.get(8..24)?;
    let (mut kind, mut rest, mut count) = (packet[6], &packet[40..], 0);
    while [0, 43, 60, 44, 51].contains(&kind) {
        count += 1;
        if count > 4 {
            return Some(false);
        }
        let header = rest.get(..8)?;
        let length = match kind {
            44 if u16::from_be_bytes([header[2], header[3]]) >> 3 != 0 => {
                return Some(is_own(source));
            }
            44 => 8,
            51 => (usize::from(header[1]) + 2) * 4,
            _ => (usize::from(header[1]) + 1) * 8,
        };
        kind = header[0];
        rest = rest.get(length..).unwrap_or_default();
    }
    if kind != 58 {
        return Some(is_own(source));
    }
    let is_nobody = source == [0; 16];
    Some(match rest.first()? {
        134 => false,
        136 => is_own(rest.get(8..24)?) && is_own(source),
        135 if is_nobody => is_own(rest.get(8..24)?),
        131 | 132 | 133 | 143 if is_nobody => true,
        _ => is_own(source),
    })
}

fn ethernet(source: Mac, ether_type: u16, packet: &[u8]) -> Vec<u8> {
    let head = [&[0x0a, 0x58, 10, 244, 1, 1][..], &source.0];
    [&head.concat()[..], &ether_type.to_be_bytes(), packet].concat()
}

fn ipv4(source: [u8; 4]) -> Vec<u8> {
    [
        &[0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0][..],
        &source,
        &[10, 244, 1, 3],
    ]
    .concat()
}

fn arp(mac: Mac, source: [u8; 4]) -> Vec<u8> {
    [&[0, 1, 8, 0, 6, 4, 0, 1][..], &mac.0, &source, &[0; 10]].concat()
}

/// A packet with these extension headers: kind, and bytes behind the kind of the next.
fn ipv6(source: IpAddr, headers: &[(u8, Vec<u8>)], (kind, payload): (u8, &[u8])) -> Vec<u8> {
    let IpAddr::V6(source) = source else {
        panic!("{source}")
    };
    let mut kinds: Vec<_> = headers
        .iter()
        .map(|(kind, _)| *kind)
        .chain([kind])
        .collect();
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, kinds.remove(0), 255];
    packet.extend(source.octets());
    packet.extend([0xff; 16]);
    for ((_, bytes), next) in headers.iter().zip(kinds) {
        packet.push(next);
        packet.extend(bytes);
    }
    [&packet, payload].concat()
}

/// A message of ICMPv6 about that address.
fn about(kind: u8, target: &str) -> Vec<u8> {
    let IpAddr::V6(target) = ip(target) else {
        panic!("{target}")
    };
    [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target.octets()].concat()
}

/// An extension header of that size in bytes.
fn header(kind: u8, size: usize) -> (u8, Vec<u8>) {
    let length = match kind {
        51 => size / 4 - 2,
        _ => size / 8 - 1,
    };
    let mut bytes = vec![0; size - 1];
    bytes[0] = u8::try_from(length).unwrap();
    (kind, bytes)
}

fn fragment(offset: u16) -> (u8, Vec<u8>) {
    let mut bytes = vec![0; 7];
    bytes[1..3].copy_from_slice(&(offset << 3 | 1).to_be_bytes());
    (44, bytes)
}

#[test]
fn ipv4_and_arp_are_of_the_pod_itself() {
    let dual = dual();
    let passes = |frame: Vec<u8>| passes(&dual, &frame);
    assert!(passes(ethernet(MAC, 0x0800, &ipv4(IPV4))));
    assert!(!passes(ethernet(OTHER_MAC, 0x0800, &ipv4(IPV4))));
    assert!(!passes(ethernet(MAC, 0x0800, &ipv4([10, 244, 1, 3]))));
    assert!(!passes(ethernet(MAC, 0x0800, &ipv4([0; 4]))));
    for (mac, source, expected) in [
        (MAC, IPV4, true),
        (MAC, [0; 4], true),
        (MAC, [10, 244, 1, 3], false),
        (OTHER_MAC, IPV4, false),
        (OTHER_MAC, [0; 4], false),
    ] {
        let seen = passes(ethernet(MAC, 0x0806, &arp(mac, source)));
        assert_eq!(seen, expected, "{mac} {source:?}");
    }
    // LLDP, and a frame whose type is its length.
    for ether_type in [0x88cc, 38, 0x8864] {
        assert!(passes(ethernet(MAC, ether_type, &[0; 50])));
        assert!(!passes(ethernet(OTHER_MAC, ether_type, &[0; 50])));
    }
    for tag in [0x8100, 0x88a8] {
        let tagged = [&[0, 7, 8, 0][..], &ipv4(IPV4)].concat();
        assert!(!passes(ethernet(MAC, tag, &tagged)));
    }
}

#[test]
fn ipv6_and_neighbour_discovery_are_of_the_pod_itself() {
    let own = ["fd00:10:244:1::2", "fe80::858:aff:fef4:102"];
    assert_eq!(ip(own[1]), MAC.link_local());
    let other = "fd00:10:244:1::3";
    let dual = dual();
    let passes = |source: &str, headers: &[(u8, Vec<u8>)], payload: (u8, &[u8])| {
        let packet = ipv6(ip(source), headers, payload);
        passes(&dual, &ethernet(MAC, 0x86dd, &packet))
    };
    let many = |count| vec![header(60, 8); count];
    for headers in [
        vec![],
        vec![header(0, 8)],
        vec![header(60, 2048), header(43, 24)],
        vec![header(51, 24)],
        vec![fragment(0)],
        many(4),
    ] {
        let message =
            |source: &str, kind, target| passes(source, &headers, (58, &about(kind, target)));
        for source in own {
            assert!(passes(source, &headers, (17, b"x")));
            assert!(message(source, 128, other), "echo");
            assert!(message(source, 135, other), "asks");
            assert!(message(source, 136, own[0]) && message(source, 136, own[1]));
            assert!(!message(source, 136, other) && !message(source, 136, "::"));
            assert!(!message(source, 134, own[0]));
        }
        assert!(message("::", 135, own[0]) && message("::", 135, own[1]));
        assert!(!message("::", 135, other) && !message("::", 136, own[0]));
        for kind in [131, 132, 133, 143] {
            assert!(message("::", kind, other), "{kind}");
            assert!(!message(other, kind, other), "{kind}");
        }
        assert!(!message("::", 128, other) && !message("::", 134, other));
        for source in [other, "::", "fe80::1"] {
            assert!(!passes(source, &headers, (17, b"x")), "{source}");
        }
    }
    // Longer chains are dropped, whatever they lead to; behind a later fragment there is no header to look at.
    assert!(!passes(own[0], &many(5), (17, b"x")));
    assert!(passes(own[0], &[fragment(1)], (58, &about(134, other))));
    assert!(!passes("::", &[fragment(1)], (58, &about(143, other))));
    assert!(!passes(other, &[fragment(1)], (17, b"x")));
}

#[test]
fn a_pod_without_addresses_has_any_and_one_of_ipv4_has_its_link_local_one() {
    let any = guard(None);
    let frame = |mac, source| ethernet(mac, 0x0800, &ipv4(source));
    assert!(passes(&any, &frame(MAC, [1, 2, 3, 4])));
    assert!(!passes(&any, &frame(OTHER_MAC, IPV4)));
    assert!(passes(&any, &ethernet(MAC, 0x8100, &[0; 4])));
    let four = guard(Some(&["10.244.1.2"]));
    let six = |source: &str| ethernet(MAC, 0x86dd, &ipv6(ip(source), &[], (17, b"x")));
    assert!(passes(&four, &frame(MAC, IPV4)));
    assert!(passes(&four, &six("fe80::858:aff:fef4:102")));
    assert!(!passes(&four, &six("fd00:10:244:1::2")));
    let only_six = guard(Some(&["fd00:10:244:1::2"]));
    assert!(passes(&only_six, &six("fd00:10:244:1::2")));
    assert!(!passes(&only_six, &frame(MAC, IPV4)));
}

#[test]
fn a_pod_may_have_so_many_addresses_that_jumps_are_far() {
    let four = (0..100u8).map(|last| IpAddr::from([10, 0, 0, last]));
    let six = (0..100u16).map(|last| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, last]));
    let guard = Guard {
        mac: MAC,
        addresses: Some(four.chain(six).collect()),
    };
    let length = of(&guard).len();
    assert!(length < 4096, "{length}");
    for last in [0, 50, 99, 100] {
        let expected = last < 100;
        let frame = ethernet(MAC, 0x0800, &ipv4([10, 0, 0, last]));
        assert_eq!(passes(&guard, &frame), expected);
        let source = format!("fd00::{last:x}");
        for (source, message) in [
            (source.as_str(), (17, vec![0])),
            (source.as_str(), (58, about(136, &source))),
            ("::", (58, about(135, &source))),
        ] {
            let packet = ipv6(ip(source), &[header(0, 8)], (message.0, &message.1));
            let frame = ethernet(MAC, 0x86dd, &packet);
            assert_eq!(passes(&guard, &frame), expected, "{source} {last}");
        }
    }
    println!(
        "{} instructions for a pod of both families",
        of(&dual()).len()
    );
}

fn guards() -> impl Strategy<Value = Guard> {
    prop_oneof![
        Just(dual()),
        Just(guard(Some(&["10.244.1.2"]))),
        Just(guard(Some(&["fd00:10:244:1::2"]))),
        Just(guard(Some(&[
            "10.244.1.2",
            "10.244.1.9",
            "fd00:10:244:1::2",
            "fd00:10:244:1::9"
        ]))),
        Just(guard(None)),
    ]
}

fn addresses() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        3 => Just("fd00:10:244:1::2"),
        1 => Just("fd00:10:244:1::3"),
        1 => Just("fd00:10:244:1::9"),
        1 => Just("fe80::858:aff:fef4:102"),
        2 => Just("::"),
    ]
}

fn extension_headers() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
    let one = prop_oneof![
        (prop::sample::select(vec![0u8, 43, 60]), 1..20usize)
            .prop_map(|(kind, eights)| header(kind, 8 * eights)),
        (3..20usize).prop_map(|fours| header(51, 4 * fours)),
        prop_oneof![3 => Just(0u16), 1 => 1..100u16].prop_map(fragment),
        (any::<u8>(), prop::collection::vec(any::<u8>(), 7)),
    ];
    prop::collection::vec(one, 0..6)
}

fn packets_of_ipv6() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![
        3 => prop::sample::select(vec![128u8, 131, 132, 133, 134, 135, 136, 137, 143]),
        1 => any::<u8>(),
    ];
    let protocol = prop_oneof![4 => Just(58u8), 1 => any::<u8>()];
    (
        addresses(),
        extension_headers(),
        (protocol, kind, addresses()),
    )
        .prop_map(|(source, headers, (protocol, kind, target))| {
            ipv6(ip(source), &headers, (protocol, &about(kind, target)))
        })
}

fn frames() -> impl Strategy<Value = Vec<u8>> {
    let four = || prop::sample::select(vec![IPV4, [10, 244, 1, 9], [10, 244, 1, 3], [0; 4]]);
    let mac = || prop_oneof![5 => Just(MAC), 1 => Just(OTHER_MAC)];
    let bytes = || prop::collection::vec(any::<u8>(), 0..80);
    let packet = prop_oneof![
        4 => packets_of_ipv6().prop_map(|packet| (0x86dd, packet)),
        1 => four().prop_map(|source| (0x0800, ipv4(source))),
        1 => (mac(), four()).prop_map(|(mac, source)| (0x0806, arp(mac, source))),
        1 => (prop::sample::select(vec![0x0800, 0x0806, 0x86dd, 0x8100, 0x88a8]), bytes()),
        1 => (any::<u16>(), bytes()),
    ];
    (mac(), packet).prop_map(|(mac, (ether_type, packet))| ethernet(mac, ether_type, &packet))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn it_lets_pass_what_a_pod_may_send_and_no_part_of_another_frame(
        (guard, frame, length) in (guards(), frames()).prop_flat_map(|(guard, frame)| {
            let length = 0..=frame.len();
            (Just(guard), Just(frame), length)
        })
    ) {
        let whole = passes(&guard, &frame);
        prop_assert_eq!(whole, may_send(&guard, &frame).unwrap_or(false));
        let part = &frame[..length];
        let cut = passes(&guard, part);
        prop_assert_eq!(cut, may_send(&guard, part).unwrap_or(false));
        prop_assert!(whole || !cut, "a part passes, the whole does not");
    }
}
