//! What we read of the kernel's answers is what netlink-packet-route reads of the same bytes: of real ones, and of such as
//! are nearly right, as far as it reads them. What it cannot read may be read here, for it knows more attributes.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::Parseable;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoPortData, InfoVxlan, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteType,
};

use super::*;
use crate::address::{Address, read_address};
use crate::link::read::read_link;
use crate::route::{by_next_hop, read_route};
use crate::{BridgeVlans, Link, Prefix, Route, RouteOptions, RouteProtocol, Vxlan};

/// The link that a message is about, as the codec has it.
fn link_of(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        kind: None,
        alias: None,
        master: None,
        hairpin: false,
        peer: None,
        promiscuous: message.header.flags.contains(LinkFlags::Promisc),
        all_multicast: message.header.flags.contains(LinkFlags::Allmulti),
        tx_queue_length: 0,
        vlans: BridgeVlans::default(),
        vxlan: None,
        netfilter: None,
        isolated: false,
        learning: false,
        flood: false,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(Mac),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias).filter(|a| !a.is_empty()),
            LinkAttribute::Link(index) => link.peer = Some(index).filter(|i| *i != 0),
            LinkAttribute::TxQueueLen(length) => link.tx_queue_length = length,
            LinkAttribute::Controller(index) => link.master = Some(index).filter(|i| *i != 0),
            LinkAttribute::LinkInfo(infos) => infos.into_iter().for_each(|i| info(&mut link, i)),
            _ => {}
        }
    }
    link
}

fn info(link: &mut Link, info: LinkInfo) {
    match info {
        LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
        LinkInfo::PortData(InfoPortData::BridgePort(port)) => {
            link.hairpin = port.contains(&InfoBridgePort::HairpinMode(true));
            link.isolated = port.contains(&InfoBridgePort::Isolated(true));
            link.learning = port.contains(&InfoBridgePort::Learning(true));
            link.flood = port.contains(&InfoBridgePort::UnicastFlood(true));
        }
        LinkInfo::Data(InfoData::Bridge(bridge)) => {
            (link.vlans, link.netfilter) = (BridgeVlans::default(), None);
            for info in bridge {
                match info {
                    InfoBridge::VlanFiltering(on) => link.vlans.filtered = on,
                    InfoBridge::VlanDefaultPvid(number) => link.vlans.default = number,
                    InfoBridge::NfCallIpTables(on) | InfoBridge::NfCallIp6Tables(on) => {
                        link.netfilter = Some(link.netfilter.unwrap_or(true) && on);
                    }
                    _ => {}
                }
            }
        }
        LinkInfo::Data(InfoData::Vxlan(data)) => link.vxlan = Some(vxlan_of(&data)),
        _ => {}
    }
}

fn vxlan_of(data: &[InfoVxlan]) -> Vxlan {
    let mut vxlan = Vxlan {
        vni: 0,
        port: 0,
        local: None,
        learning: false,
    };
    for info in data {
        match info {
            InfoVxlan::Id(vni) => vxlan.vni = *vni,
            InfoVxlan::Port(port) => vxlan.port = *port,
            InfoVxlan::Learning(on) => vxlan.learning = *on,
            InfoVxlan::Local(local) => vxlan.local = Some((*local).into()),
            InfoVxlan::Local6(local) => vxlan.local = Some((*local).into()),
            _ => {}
        }
    }
    vxlan
}

fn address_of(message: &AddressMessage) -> Option<Address> {
    let (mut local, mut address) = (None, None);
    for attribute in message.attributes.iter().rev() {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            _ => {}
        }
    }
    let header = &message.header;
    Some(Address {
        link: header.index,
        net: IpNet::new(local.or(address)?, header.prefix_len).ok()?,
        global: matches!(header.scope, AddressScope::Universe | AddressScope::Site),
        tentative: header.flags.contains(AddressHeaderFlags::Tentative),
        duplicate: header.flags.contains(AddressHeaderFlags::Dadfailed),
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

/// All routes that a message tells of, one for each next hop.
fn routes_of(message: &RouteMessage) -> Option<Vec<Route>> {
    let header = &message.header;
    if header.kind != RouteType::Unicast {
        return None;
    }
    let any: IpAddr = match header.address_family {
        AddressFamily::Inet => [0; 4].into(),
        AddressFamily::Inet6 => [0; 16].into(),
        _ => return None,
    };
    let (mut dst, mut next_hop, mut link, mut hops) = (any, None, None, None);
    let mut options = RouteOptions {
        onlink: header.flags.contains(RouteFlags::Onlink),
        ..RouteOptions::default()
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::PrefSource(address) => options.source = ip(address),
            RouteAttribute::Destination(address) => dst = ip(address)?,
            RouteAttribute::Gateway(address) => next_hop = ip(address),
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Priority(metric) => options.metric = Some(*metric),
            RouteAttribute::Table(table) => options.table = Some(*table),
            RouteAttribute::Metrics(metrics) => metrics.iter().for_each(|metric| match metric {
                RouteMetric::Mtu(mtu) => options.mtu = Some(*mtu),
                RouteMetric::Advmss(advmss) => options.advmss = Some(*advmss),
                _ => {}
            }),
            RouteAttribute::MultiPath(all) => hops = hops.or(Some(all)),
            _ => {}
        }
    }
    options.metric = options.metric.filter(|m| dst.is_ipv4() || *m != 1024);
    options.table = options.table.filter(|table| *table != 254);
    let cloned = header.flags.contains(RouteFlags::Cloned);
    let length = if cloned && dst.is_ipv4() {
        32
    } else {
        header.destination_prefix_length
    };
    let route = Route {
        dst: Prefix::containing(IpNet::new(dst, length).ok()?),
        next_hop,
        link,
        protocol: RouteProtocol(header.protocol.into()),
        options,
    };
    let Some(hops) = hops else {
        return Some(vec![route]);
    };
    let through = hops.iter().map(|hop| Route {
        next_hop: hop.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Gateway(address) => ip(address),
            _ => None,
        }),
        link: Some(hop.interface_index),
        ..route.clone()
    });
    Some(through.collect())
}

/// Compares all messages of a datagram; how many objects the codec could read.
fn compare(datagram: &[u8]) -> usize {
    let (mut rest, mut count) = (datagram, 0);
    while let Ok(Some(Received { kind, payload, .. })) = split_message(&mut rest) {
        match kind {
            message::NEW_LINK => {
                let Ok(theirs) = LinkMessage::parse(payload) else {
                    continue;
                };
                assert_eq!(read_link(payload), Some(link_of(theirs)), "{payload:?}");
            }
            message::NEW_ADDRESS => {
                let Ok(theirs) = AddressMessage::parse(payload) else {
                    continue;
                };
                assert_eq!(read_address(payload), address_of(&theirs), "{payload:?}");
            }
            message::NEW_ROUTE => {
                let Ok(theirs) = RouteMessage::parse(payload) else {
                    continue;
                };
                let ours = read_route(payload).map(|route| by_next_hop(route, payload));
                assert_eq!(ours, routes_of(&theirs), "{payload:?}");
            }
            _ => continue,
        }
        count += 1;
    }
    count
}

#[test]
fn answers_are_read_as_another_codec_reads_them() {
    let ns = TestNs::new();
    let corpus = corpus(&ns);
    let real: usize = corpus.iter().map(|datagram| compare(datagram)).sum();
    assert!(real >= 15, "{real}");
    let mut read = 0;
    fuzz::run(|seed| {
        let mut dice = Dice::new(seed);
        read += compare(&nearly(&corpus, 0, &mut dice));
    });
    println!("{real} real objects, and {read} that were nearly right");
}
