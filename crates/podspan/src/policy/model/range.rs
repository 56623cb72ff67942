//! Address blocks and ports as ranges: sorted, not overlapping, not touching.

use std::net::IpAddr;

use ipnet::IpNet;

use super::super::object::Protocol;

/// A range of addresses of one family, both ends included.
pub(super) type AddressRange = (IpAddr, IpAddr);
/// A range of ports, both ends included.
pub(super) type PortRange = (Protocol, u16, u16);

/// What is in any of the blocks and in none of that block's exceptions. An address that one block excepts may be in another.
pub(super) fn of_blocks(blocks: &[(IpNet, &[IpNet])]) -> Vec<AddressRange> {
    let mut all = Vec::new();
    for v4 in [true, false] {
        let of_family = blocks.iter().filter(|(block, _)| is_v4(block) == v4);
        let pieces = of_family.flat_map(|(block, except)| without(block, except));
        let merged = merge(pieces.collect());
        all.extend(
            merged
                .into_iter()
                .map(|(first, last)| (address(first, v4), address(last, v4))),
        );
    }
    all
}

/// True when the address is in one of them.
pub(super) fn contains(ranges: &[AddressRange], address: IpAddr) -> bool {
    let behind = ranges.partition_point(|(first, _)| *first <= address);
    let range = behind.checked_sub(1).and_then(|at| ranges.get(at));
    // An IPv4 address is less than any of IPv6: it is in no range of the other family.
    range.is_some_and(|(_, last)| address <= *last)
}

/// Ranges of ports that touch or overlap become one.
pub(super) fn of_ports(mut ports: Vec<PortRange>) -> Vec<PortRange> {
    ports.sort_unstable();
    let mut merged: Vec<PortRange> = Vec::new();
    for (protocol, first, last) in ports {
        match merged.last_mut() {
            Some((same, _, end)) if *same == protocol && first <= end.saturating_add(1) => {
                *end = last.max(*end);
            }
            _ => merged.push((protocol, first, last)),
        }
    }
    merged
}

fn without(block: &IpNet, except: &[IpNet]) -> Vec<(u128, u128)> {
    let (mut from, last) = bounds(block);
    let of_family = except.iter().filter(|one| is_v4(one) == is_v4(block));
    let mut pieces = Vec::new();
    for (first, end) in merge(of_family.map(bounds).collect()) {
        if end < from || first > last {
            continue;
        }
        if first > from {
            pieces.push((from, first - 1));
        }
        if end >= last {
            return pieces;
        }
        from = end + 1;
    }
    pieces.push((from, last));
    pieces
}

fn merge(mut ranges: Vec<(u128, u128)>) -> Vec<(u128, u128)> {
    ranges.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => merged.push((first, last)),
        }
    }
    merged
}

fn is_v4(block: &IpNet) -> bool {
    matches!(block, IpNet::V4(_))
}

/// Where a block begins and ends, whatever bits of the host are set.
fn bounds(block: &IpNet) -> (u128, u128) {
    (number(block.network()), number(block.broadcast()))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// The number came of such an address.
fn address(number: u128, v4: bool) -> IpAddr {
    if v4 {
        IpAddr::V4((number as u32).into())
    } else {
        IpAddr::V6(number.into())
    }
}
