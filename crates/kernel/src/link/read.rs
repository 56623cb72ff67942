//! What the kernel says of a link, read. An attribute that is not known is passed over; a link with one that is known and
//! cannot be read is none.

use super::attribute::{
    Header, IFF_ALLMULTI, IFF_PROMISC, IFF_UP, IFLA_ADDRESS, IFLA_BR_NF_CALL_IP6TABLES,
    IFLA_BR_NF_CALL_IPTABLES, IFLA_BR_VLAN_DEFAULT_PVID, IFLA_BR_VLAN_FILTERING,
    IFLA_BRPORT_ISOLATED, IFLA_BRPORT_LEARNING, IFLA_BRPORT_MODE, IFLA_BRPORT_UNICAST_FLOOD,
    IFLA_IFALIAS, IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_INFO_SLAVE_DATA,
    IFLA_INFO_SLAVE_KIND, IFLA_LINK, IFLA_LINKINFO, IFLA_MASTER, IFLA_MTU, IFLA_TXQLEN,
};
use super::{BridgeVlans, Link};
use crate::encode::{Attributes, byte, native16, native32, text};
use crate::names::Mac;
use crate::vxlan::read_vxlan;

/// The link that a message is about.
pub(crate) fn read_link(message: &[u8]) -> Option<Link> {
    let (header, attributes) = Header::read(message)?;
    let has = |flag: u32| header.flags & flag != 0;
    let mut link = Link {
        index: header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: has(IFF_UP),
        kind: None,
        alias: None,
        master: None,
        hairpin: false,
        peer: None,
        promiscuous: has(IFF_PROMISC),
        all_multicast: has(IFF_ALLMULTI),
        tx_queue_length: 0,
        vlans: BridgeVlans::default(),
        vxlan: None,
        netfilter: None,
        isolated: false,
        learning: false,
        flood: false,
    };
    for (kind, payload) in attributes {
        match kind {
            IFLA_IFNAME => link.name = text(payload)?.to_owned(),
            IFLA_ADDRESS => link.mac = payload.try_into().ok().map(Mac),
            IFLA_MTU => link.mtu = native32(payload)?,
            IFLA_IFALIAS => link.alias = Some(text(payload)?.to_owned()).filter(|a| !a.is_empty()),
            IFLA_LINK => link.peer = Some(native32(payload)?).filter(|index| *index != 0),
            IFLA_TXQLEN => link.tx_queue_length = native32(payload)?,
            IFLA_MASTER => link.master = Some(native32(payload)?).filter(|index| *index != 0),
            IFLA_LINKINFO => read_info(&mut link, Attributes(payload))?,
            _ => {}
        }
    }
    Some(link)
}

/// What kind of link it is, and what is told only of that kind. The kernel tells the kind first.
fn read_info(link: &mut Link, info: Attributes<'_>) -> Option<()> {
    let mut port_of = None;
    for (kind, payload) in info {
        match kind {
            IFLA_INFO_KIND => link.kind = Some(text(payload)?.to_owned()),
            IFLA_INFO_SLAVE_KIND => port_of = text(payload),
            IFLA_INFO_DATA => match link.kind.as_deref() {
                Some("bridge") => {
                    (link.vlans, link.netfilter) = read_bridge(Attributes(payload))?;
                }
                Some("vxlan") => link.vxlan = Some(read_vxlan(Attributes(payload))?),
                _ => {}
            },
            IFLA_INFO_SLAVE_DATA if port_of == Some("bridge") => {
                let port = Attributes(payload);
                link.hairpin = port.is_on(IFLA_BRPORT_MODE);
                link.isolated = port.is_on(IFLA_BRPORT_ISOLATED);
                link.learning = port.is_on(IFLA_BRPORT_LEARNING);
                link.flood = port.is_on(IFLA_BRPORT_UNICAST_FLOOD);
            }
            _ => {}
        }
    }
    Some(())
}

/// What a bridge does about VLANs, and whether its packets pass the filters of IP: when they pass those of both families.
fn read_bridge(bridge: Attributes<'_>) -> Option<(BridgeVlans, Option<bool>)> {
    let (mut vlans, mut netfilter) = (BridgeVlans::default(), None);
    for (kind, payload) in bridge {
        match kind {
            IFLA_BR_VLAN_FILTERING => vlans.filtered = byte(payload)? != 0,
            IFLA_BR_VLAN_DEFAULT_PVID => vlans.default = native16(payload)?,
            IFLA_BR_NF_CALL_IPTABLES | IFLA_BR_NF_CALL_IP6TABLES => {
                netfilter = Some(byte(payload)? != 0 && netfilter.unwrap_or(true));
            }
            _ => {}
        }
    }
    Some((vlans, netfilter))
}
