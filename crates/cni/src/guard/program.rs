//! The program that a guard is: classic BPF, which looks at a frame and says whether it passes.
//!
//! MAC address, IPv4, ARP, IPv6 and neighbour discovery. No pod is a router: its advertisements are dropped. What a pod needs
//! for its link-local address passes: the detection of duplicates of its own addresses and the reports of its multicast
//! groups, which are sent from `::`. A pod without addresses of ours may have any, and is held to its MAC address.
//!
//! It is put together from blocks, each of which ends the program or goes on behind itself, so that there are no labels and
//! no jump can lead astray. Before anything is loaded, the frame is long enough for it: a load from behind its end would end
//! the program with 0, which lets the frame pass. Surprises: the kernel has put a frame's first VLAN tag aside, so that the
//! frame looks like one without; of a second one we know nothing, and drop it. Of extension headers [`HEADERS`] are passed;
//! what stands behind more is dropped, because it may be neighbour discovery.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podspan_kernel::{Instruction, Mac, Verdict};

use super::Guard;

/// What follows the Ethernet header (linux/if_ether.h).
const ETH_P_IP: u32 = 0x0800;
const ETH_P_ARP: u32 = 0x0806;
const ETH_P_IPV6: u32 = 0x86dd;
/// Tags of VLANs: IEEE 802.1Q and 802.1ad.
const TAGS: [u32; 2] = [0x8100, 0x88a8];
/// `IPPROTO_ICMPV6` (linux/in6.h).
const IPPROTO_ICMPV6: u32 = 58;
/// Extension headers of IPv6 (RFC 8200, section 4; RFC 4302). The length of the first three is in units of eight bytes beyond
/// the first eight; a fragment's is eight; that of an authentication header is in units of four bytes, less two.
const OPTIONS_OR_ROUTING: [u32; 3] = [0, 43, 60];
const FRAGMENT: u32 = 44;
const AUTHENTICATION: u32 = 51;
/// `IPPROTO_NONE`: nothing follows.
const NOTHING: u32 = 59;
/// The offset of a fragment, among the bits that it shares two bytes with; 0 for the first.
const FRAGMENT_OFFSET: u32 = 0xfff8;
/// Messages of neighbour discovery (RFC 4861, section 4).
const ROUTER_SOLICIT: u32 = 133;
const ROUTER_ADVERT: u32 = 134;
const NEIGHBOUR_SOLICIT: u32 = 135;
const NEIGHBOUR_ADVERT: u32 = 136;
/// Reports and departures of multicast listeners (RFC 2710, RFC 3810).
const LISTENER_REPORTS: [u32; 3] = [131, 132, 143];

/// How many extension headers of a packet are walked over. Each makes every pod's program longer; one that is sent for a
/// reason has one or two.
const HEADERS: u8 = 4;

/// Where fields are, in bytes from the begin of the frame.
const ETHER_SADDR: u32 = 6;
const ETHER_TYPE: u32 = 12;
const ETHER_END: u32 = 14;
const IP_SADDR: u32 = 26;
const IP_END: u32 = 34;
const ARP_SADDR_ETHER: u32 = 22;
const ARP_SADDR_IP: u32 = 28;
const ARP_END: u32 = 42;
const IP6_NEXT_HEADER: u32 = 20;
const IP6_SADDR: u32 = 22;
const IP6_END: u32 = 54;
/// And from the begin of a header.
const NEXT_HEADER: u32 = 0;
const HEADER_LENGTH: u32 = 1;
const FRAGMENT_AT: u32 = 2;
const HEADER_END: u32 = 8;
const ICMPV6_TYPE: u32 = 0;
const ICMPV6_TADDR: u32 = 8;
const ICMPV6_TADDR_END: u32 = 24;

/// Where the kind of the header that follows is kept meanwhile, and that of this one.
const NEXT: u32 = 0;
const KIND: u32 = 1;

/// Instructions that end the program, or go on behind their end.
type Block = Vec<Instruction>;

/// The guard as a program.
pub(super) fn of(guard: &Guard) -> Block {
    let mac = [must_be_long(ETHER_END), must_be_mac(ETHER_SADDR, guard.mac)];
    let addresses = guard.addresses.as_deref();
    let addresses = addresses.map(|addresses| of_addresses(guard.mac, addresses));
    [mac.concat(), addresses.unwrap_or_default(), vec![PASS]].concat()
}

fn of_addresses(mac: Mac, addresses: &[IpAddr]) -> Block {
    let (mut ipv4, mut ipv6) = (Vec::new(), Vec::new());
    for address in addresses {
        match address {
            IpAddr::V4(address) => ipv4.push(*address),
            IpAddr::V6(address) => ipv6.push(*address),
        }
    }
    ipv6.push(mac.link_local());
    [
        vec![load(Width::Two, At::Frame(ETHER_TYPE))],
        when(&[ETH_P_IP], of_ipv4(&ipv4)),
        when(&[ETH_P_IPV6], of_ipv6(&ipv6)),
        when(&[ETH_P_ARP], of_arp(mac, &ipv4)),
        when(&TAGS, vec![DROP]),
    ]
    .concat()
}

fn of_ipv4(own: &[Ipv4Addr]) -> Block {
    let source = vec![load(Width::Four, At::Frame(IP_SADDR))];
    [must_be_long(IP_END), source, pass(own), vec![DROP]].concat()
}

/// A probe for an address that one would like to have (RFC 5227) is sent from 0.0.0.0 and tells nobody anything.
fn of_arp(mac: Mac, own: &[Ipv4Addr]) -> Block {
    [
        must_be_long(ARP_END),
        must_be_mac(ARP_SADDR_ETHER, mac),
        vec![load(Width::Four, At::Frame(ARP_SADDR_IP))],
        pass(own),
        pass(&[Ipv4Addr::UNSPECIFIED]),
        vec![DROP],
    ]
    .concat()
}

fn of_ipv6(own: &[Ipv6Addr]) -> Block {
    let passes = |ip: &Ipv6Addr| when_address(At::Frame(IP6_SADDR), *ip, vec![PASS]);
    [
        must_be_long(IP6_END),
        vec![index(IP6_END), load(Width::One, At::Frame(IP6_NEXT_HEADER))],
        behind_headers(HEADERS),
        when(&[IPPROTO_ICMPV6], of_icmpv6(own)),
        own.iter().flat_map(passes).collect(),
        vec![DROP],
    ]
    .concat()
}

/// The accumulator is the kind of a header that begins at the index. Behind this block both are of the first that is no
/// extension header, and so many are walked over.
fn behind_headers(count: u8) -> Block {
    let all = [&OPTIONS_OR_ROUTING[..], &[FRAGMENT, AUTHENTICATION]].concat();
    let Some(further) = count.checked_sub(1) else {
        return when(&all, vec![DROP]);
    };
    let length = load(Width::One, At::Index(HEADER_LENGTH));
    let fragment = [
        vec![load(Width::Two, At::Index(FRAGMENT_AT))],
        // What is in it goes on from an earlier one: there is no header.
        when_any_bit(FRAGMENT_OFFSET, vec![value(NOTHING), keep(NEXT)]),
        vec![value(HEADER_END)],
    ];
    let size = first_of(&[
        (&[FRAGMENT], fragment.concat()),
        (&[AUTHENTICATION], vec![length, add(2), shift_left(2)]),
        (&OPTIONS_OR_ROUTING, vec![length, add(1), shift_left(3)]),
    ]);
    let header = [
        vec![keep(KIND)],
        must_reach(HEADER_END),
        vec![
            load(Width::One, At::Index(NEXT_HEADER)),
            keep(NEXT),
            kept(KIND),
        ],
        size,
        vec![add_index(), to_index(), kept(NEXT)],
        behind_headers(further),
    ];
    when(&all, header.concat())
}

/// The message begins at the index. What goes on behind this block passes if its source may.
fn of_icmpv6(own: &[Ipv6Addr]) -> Block {
    let from_nowhere = |block| when_address(At::Frame(IP6_SADDR), Ipv6Addr::UNSPECIFIED, block);
    let target_is_own = [
        must_reach(ICMPV6_TADDR_END),
        must_be_one_of(own, At::Index(ICMPV6_TADDR)),
    ];
    let target_is_own = target_is_own.concat();
    let [first, second, third] = LISTENER_REPORTS;
    let messages = first_of(&[
        (&[ROUTER_ADVERT], vec![DROP]),
        (&[NEIGHBOUR_ADVERT], target_is_own.clone()),
        (
            &[NEIGHBOUR_SOLICIT],
            from_nowhere([target_is_own, vec![PASS]].concat()),
        ),
        (
            &[first, second, third, ROUTER_SOLICIT],
            from_nowhere(vec![PASS]),
        ),
    ]);
    let kind = vec![load(Width::One, At::Index(ICMPV6_TYPE))];
    [must_reach(1), kind, messages].concat()
}

/// Passes where the accumulator is one of these.
fn pass(own: &[Ipv4Addr]) -> Block {
    let passes = |ip: &Ipv4Addr| when(&[u32::from(*ip)], vec![PASS]);
    own.iter().flat_map(passes).collect()
}

/// Drops a frame that is not so long.
fn must_be_long(length: u32) -> Block {
    vec![frame_length(), at_least(length), DROP]
}

/// Drops a frame that does not reach so far beyond the index.
fn must_reach(length: u32) -> Block {
    vec![
        frame_length(),
        at_least_index(),
        DROP,
        subtract_index(),
        at_least(length),
        DROP,
    ]
}

fn must_be_mac(at: u32, Mac([a, b, c, d, e, f]): Mac) -> Block {
    let (begin, end) = ([a, b, c, d], [0, 0, e, f]);
    vec![
        load(Width::Four, At::Frame(at)),
        equal(u32::from_be_bytes(begin), [1, 0]),
        DROP,
        load(Width::Two, At::Frame(at + 4)),
        equal(u32::from_be_bytes(end), [1, 0]),
        DROP,
    ]
}

fn must_be_one_of(own: &[Ipv6Addr], at: At) -> Block {
    own.iter().rev().fold(vec![DROP], |others, ip| {
        [when_address(at, *ip, vec![pass_over(&others)]), others].concat()
    })
}

/// The block, where that address stands there.
fn when_address(at: At, address: Ipv6Addr, block: Block) -> Block {
    let [a, b, c, d, e, f, g, h] = address.segments();
    [(12, g, h), (8, e, f), (4, c, d), (0, a, b)]
        .into_iter()
        .fold(block, |block, (offset, left, right)| {
            let word = u32::from(left) << 16 | u32::from(right);
            let load = load(Width::Four, at.plus(offset));
            [vec![load], when(&[word], block)].concat()
        })
}

/// The first of the blocks whose values the accumulator is one of.
fn first_of(cases: &[(&[u32], Block)]) -> Block {
    cases
        .iter()
        .rev()
        .fold(Vec::new(), |others, (values, block)| {
            let block = [block.clone(), vec![pass_over(&others)]].concat();
            [when(values, block), others].concat()
        })
}

/// The block, where the accumulator is one of the values.
fn when(values: &[u32], block: Block) -> Block {
    let Some((last, others)) = values.split_last() else {
        return Vec::new();
    };
    let (last, over) = match u8::try_from(block.len()) {
        Ok(length) => (equal(*last, [0, length]), Vec::new()),
        Err(_) => (equal(*last, [1, 0]), vec![pass_over(&block)]),
    };
    let between = u8::from(!over.is_empty());
    let others = others.iter().rev().zip(between + 1..);
    let mut all: Block = others.map(|(value, far)| equal(*value, [far, 0])).collect();
    all.reverse();
    [all, vec![last], over, block].concat()
}

/// The block, where any of these bits is set in the accumulator.
fn when_any_bit(bits: u32, block: Block) -> Block {
    [vec![jump(0x40, bits, [1, 0]), pass_over(&block)], block].concat()
}

/// How many bytes, the first being the most significant one.
#[derive(Clone, Copy)]
enum Width {
    Four = 0x00,
    Two = 0x08,
    One = 0x10,
}

/// Where bytes are.
#[derive(Clone, Copy)]
enum At {
    /// So far from the begin of the frame.
    Frame(u32),
    /// So far from the index.
    Index(u32),
}

impl At {
    fn plus(self, further: u32) -> Self {
        match self {
            Self::Frame(at) => Self::Frame(at + further),
            Self::Index(at) => Self::Index(at + further),
        }
    }
}

// The instructions that are used (linux/bpf_common.h): the accumulator is what most of them are about.

const PASS: Instruction = instruction(0x06, Verdict::NEXT.0);
const DROP: Instruction = instruction(0x06, Verdict::DROP.0);

const fn instruction(code: u16, operand: u32) -> Instruction {
    Instruction {
        code,
        jumps: [0, 0],
        operand,
    }
}

/// `ld`, `ldh`, `ldb`.
fn load(width: Width, at: At) -> Instruction {
    match at {
        At::Frame(at) => instruction(0x20 | width as u16, at),
        At::Index(at) => instruction(0x40 | width as u16, at),
    }
}

/// `ld #value`.
fn value(value: u32) -> Instruction {
    instruction(0x00, value)
}

/// `ldx #value`.
fn index(value: u32) -> Instruction {
    instruction(0x01, value)
}

/// `ld #len`.
fn frame_length() -> Instruction {
    instruction(0x80, 0)
}

/// `st M[place]`.
fn keep(place: u32) -> Instruction {
    instruction(0x02, place)
}

/// `ld M[place]`.
fn kept(place: u32) -> Instruction {
    instruction(0x60, place)
}

/// `add #value`.
fn add(value: u32) -> Instruction {
    instruction(0x04, value)
}

/// `add x`.
fn add_index() -> Instruction {
    instruction(0x0c, 0)
}

/// `sub x`.
fn subtract_index() -> Instruction {
    instruction(0x1c, 0)
}

/// `lsh #bits`.
fn shift_left(bits: u32) -> Instruction {
    instruction(0x64, bits)
}

/// `tax`.
fn to_index() -> Instruction {
    instruction(0x07, 0)
}

/// `ja`, over the block.
fn pass_over(block: &[Instruction]) -> Instruction {
    instruction(0x05, u32::try_from(block.len()).unwrap_or(u32::MAX))
}

/// `jeq #value`.
fn equal(value: u32, jumps: [u8; 2]) -> Instruction {
    jump(0x10, value, jumps)
}

/// `jge #value`: passes over the next instruction.
fn at_least(value: u32) -> Instruction {
    jump(0x30, value, [1, 0])
}

/// `jge x`: passes over the next instruction.
fn at_least_index() -> Instruction {
    jump(0x38, 0, [1, 0])
}

fn jump(how: u16, operand: u32, jumps: [u8; 2]) -> Instruction {
    Instruction {
        code: 0x05 | how,
        jumps,
        operand,
    }
}

#[cfg(test)]
mod tests;
