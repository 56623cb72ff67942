//! What the kernel says of a link, read. An attribute that is not known is passed over.

use netlink_packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoPortData, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};

use super::{BridgeVlans, Link};
use crate::names::Mac;
use crate::vxlan::read_vxlan;

/// The link that a message is about.
pub(super) fn read_link(message: LinkMessage) -> Link {
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
            LinkAttribute::LinkInfo(infos) => infos.into_iter().for_each(|info| match info {
                LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
                LinkInfo::PortData(InfoPortData::BridgePort(port)) => {
                    link.hairpin = port.contains(&InfoBridgePort::HairpinMode(true));
                    link.isolated = port.contains(&InfoBridgePort::Isolated(true));
                    link.learning = port.contains(&InfoBridgePort::Learning(true));
                    link.flood = port.contains(&InfoBridgePort::UnicastFlood(true));
                }
                LinkInfo::Data(InfoData::Bridge(bridge)) => {
                    link.vlans = read_vlans(&bridge);
                    link.netfilter = read_netfilter(&bridge);
                }
                LinkInfo::Data(InfoData::Vxlan(data)) => link.vxlan = Some(read_vxlan(&data)),
                _ => {}
            }),
            _ => {}
        }
    }
    link
}

fn read_vlans(bridge: &[InfoBridge]) -> BridgeVlans {
    let mut vlans = BridgeVlans::default();
    for info in bridge {
        match info {
            InfoBridge::VlanFiltering(on) => vlans.filtered = *on,
            InfoBridge::VlanDefaultPvid(number) => vlans.default = *number,
            _ => {}
        }
    }
    vlans
}

/// True when both families are filtered.
fn read_netfilter(bridge: &[InfoBridge]) -> Option<bool> {
    let calls = bridge.iter().filter_map(|info| match info {
        InfoBridge::NfCallIpTables(on) | InfoBridge::NfCallIp6Tables(on) => Some(*on),
        _ => None,
    });
    calls.reduce(|both, on| both && on)
}
