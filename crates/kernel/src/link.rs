//! Links: looking at them, making bridges and veth pairs, changing and removing them.
//!
//! No request here fails or succeeds partly without saying so, and nothing is decided here: which link is whose is the
//! caller's affair. Surprises of the kernel are told where they are met.

pub(crate) mod attribute;
pub(crate) mod read;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;

use crate::encode::{Encoder, NLM_F_CREATE, NLM_F_EXCL, native32};
use crate::error::Result;
use crate::names::{IfName, Mac};
use crate::netlink::{Netlink, message};
use crate::netns::Netns;
use crate::vxlan::Vxlan;
use attribute::{
    Header, IFF_ALLMULTI, IFF_PROMISC, IFF_UP, IFLA_ADDRESS, IFLA_AF_SPEC,
    IFLA_BR_NF_CALL_IP6TABLES, IFLA_BR_NF_CALL_IPTABLES, IFLA_BRPORT_ISOLATED,
    IFLA_BRPORT_LEARNING, IFLA_BRPORT_MODE, IFLA_BRPORT_STATE, IFLA_BRPORT_UNICAST_FLOOD,
    IFLA_EXT_MASK, IFLA_GROUP, IFLA_IFALIAS, IFLA_IFNAME, IFLA_INET6_ADDR_GEN_MODE, IFLA_INFO_DATA,
    IFLA_INFO_KIND, IFLA_INFO_SLAVE_DATA, IFLA_INFO_SLAVE_KIND, IFLA_LINKINFO, IFLA_MASTER,
    IFLA_MTU, IFLA_NET_NS_FD, IFLA_NUM_RX_QUEUES, IFLA_NUM_TX_QUEUES, IFLA_PROTINFO, IFLA_TXQLEN,
    IN6_ADDR_GEN_MODE_NONE, VETH_INFO_PEER,
};
use read::read_link;

/// Families of addresses (linux/socket.h); that of bridges is the family of what they are asked themselves.
pub(crate) const AF_INET: u8 = 2;
pub(crate) const AF_BRIDGE: u8 = 7;
pub(crate) const AF_INET6: u8 = 10;
/// `RTEXT_FILTER_SKIP_STATS` (linux/rtnetlink.h): spares the kernel the counting, and us the reading.
const SKIP_STATISTICS: u32 = 8;
/// `BR_STATE_DISABLED` (linux/if_bridge.h).
const BR_STATE_DISABLED: u8 = 0;

/// A link as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number, unique in its network namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address, where it has one.
    pub mac: Option<Mac>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    /// `bridge`, `veth`, `vxlan` …; none for a physical device.
    pub kind: Option<String>,
    /// The text that its owner put on it; empty counts as none.
    pub alias: Option<String>,
    /// The index of the bridge that it is a port of.
    pub master: Option<u32>,
    /// For a bridge port: sends a frame back through the port that it came in by.
    pub hairpin: bool,
    /// For a bridge port: see [`LinkChange::isolated`].
    pub isolated: bool,
    /// For a bridge port: see [`LinkChange::learning`].
    pub learning: bool,
    /// For a bridge port: see [`LinkChange::flood`].
    pub flood: bool,
    /// For one end of a veth pair: the index of the other, in its own network namespace.
    pub peer: Option<u32>,
    /// Takes in every frame, as somebody asked for (`IFF_PROMISC`).
    pub promiscuous: bool,
    /// Takes in every multicast frame, as somebody asked for (`IFF_ALLMULTI`).
    pub all_multicast: bool,
    /// How many packets may wait to be sent, where the queueing discipline asks the link.
    pub tx_queue_length: u32,
    /// For a bridge: what it does about VLANs.
    pub vlans: BridgeVlans,
    /// For a VXLAN device: what it is.
    pub vxlan: Option<Vxlan>,
    /// For a bridge: see [`LinkChange::netfilter`]; none where the kernel knows no such thing.
    pub netfilter: Option<bool>,
}

/// What a bridge does about VLANs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BridgeVlans {
    /// It heeds them.
    pub filtered: bool,
    /// The one that a new port has; 0 is none.
    pub default: u16,
}

impl Link {
    /// True for a bridge.
    pub fn is_bridge(&self) -> bool {
        self.kind.as_deref() == Some("bridge")
    }

    /// True for one end of a veth pair.
    pub fn is_veth(&self) -> bool {
        self.kind.as_deref() == Some("veth")
    }
}

/// Which link: by index, or by name, which spares a look-up.
#[derive(Debug, Clone, Copy)]
pub enum LinkKey<'a> {
    /// Its number.
    Index(u32),
    /// Its name.
    Name(&'a IfName),
}

impl From<u32> for LinkKey<'_> {
    fn from(index: u32) -> Self {
        Self::Index(index)
    }
}

impl<'a> From<&'a IfName> for LinkKey<'a> {
    fn from(name: &'a IfName) -> Self {
        Self::Name(name)
    }
}

impl std::fmt::Display for LinkKey<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Index(index) => write!(f, "{index}"),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// What to change on a link; what is `None` or false stays as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct LinkChange<'a> {
    /// Set it up.
    pub up: bool,
    /// The new MTU in bytes.
    pub mtu: Option<u32>,
    /// The new alias.
    pub alias: Option<&'a str>,
    /// The new Ethernet address.
    pub mac: Option<Mac>,
    /// For a bridge port: the hairpin mode.
    pub hairpin: Option<bool>,
    /// For a bridge port: it exchanges packets only with ports that are not isolated, and with the bridge itself.
    pub isolated: Option<bool>,
    /// For a bridge port: the bridge learns from its frames who is behind it.
    pub learning: Option<bool>,
    /// For a bridge port: it is sent frames to Ethernet addresses that the bridge does not know. Groups and broadcast are
    /// another matter.
    pub flood: Option<bool>,
    /// Take in every frame, whomever it is for, or no longer.
    pub promiscuous: Option<bool>,
    /// Take in every multicast frame, or no longer.
    pub all_multicast: Option<bool>,
    /// The new length of the transmit queue in packets.
    pub tx_queue_length: Option<u32>,
    /// For a bridge: what it forwards passes the filters of IP too, as `net.bridge.bridge-nf-call-iptables` makes all bridges
    /// do. Without effect as long as the kernel has not loaded `br_netfilter`.
    pub netfilter: Option<bool>,
    /// Make no link-local IPv6 address (`addrgenmode none`), as for a bridge port, which needs none. On a link that is no
    /// port, before it is set up: in one request the kernel sets it up first (`do_setlink`). Where there is no IPv6, there is
    /// nothing to do.
    pub no_link_local: bool,
}

impl LinkChange<'_> {
    /// What it changes of a link as a bridge's port, in the words of ip(8).
    fn of_port(&self) -> [(&'static str, Option<bool>); 4] {
        [
            ("hairpin", self.hairpin),
            ("isolated", self.isolated),
            ("learning", self.learning),
            ("flood", self.flood),
        ]
    }

    fn is_of_port(&self) -> bool {
        self.of_port().iter().any(|(_, value)| value.is_some())
    }
}

impl std::fmt::Display for LinkChange<'_> {
    /// As one writes it behind `ip link set <link>`; each word with its space before it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(mtu) = self.mtu {
            write!(f, " mtu {mtu}")?;
        }
        if let Some(alias) = self.alias {
            write!(f, " alias {alias}")?;
        }
        if let Some(mac) = self.mac {
            write!(f, " address {mac}")?;
        }
        if self.no_link_local {
            f.write_str(" addrgenmode none")?;
        }
        if self.up {
            f.write_str(" up")?;
        }
        if let Some(length) = self.tx_queue_length {
            write!(f, " txqueuelen {length}")?;
        }
        let flags = [
            ("promisc", self.promiscuous),
            ("allmulticast", self.all_multicast),
        ];
        for (word, value) in flags {
            if let Some(on) = value {
                write!(f, " {word} {}", if on { "on" } else { "off" })?;
            }
        }
        if self.is_of_port() {
            f.write_str(" type bridge_slave")?;
        }
        for (word, value) in self.of_port() {
            if let Some(on) = value {
                write!(f, " {word} {}", if on { "on" } else { "off" })?;
            }
        }
        if let Some(on) = self.netfilter.map(u8::from) {
            write!(
                f,
                " type bridge nf_call_iptables {on} nf_call_ip6tables {on}"
            )?;
        }
        Ok(())
    }
}

/// A veth pair to be made: one end here, the other born in another network namespace.
#[derive(Debug, Clone, Copy)]
pub struct VethPair<'a> {
    /// The end in the socket's own namespace.
    pub host: VethEnd<'a>,
    /// The end in `peer_netns`.
    pub peer: VethEnd<'a>,
    /// Where the peer is born.
    pub peer_netns: &'a Netns,
    /// The index of the bridge that the host's end becomes a port of.
    pub master: Option<u32>,
    /// The MTU of both ends in bytes.
    pub mtu: u32,
}

/// One end of a veth pair.
#[derive(Debug, Clone, Copy)]
pub struct VethEnd<'a> {
    /// Its name.
    pub name: &'a IfName,
    /// Its Ethernet address.
    pub mac: Mac,
}

impl Netlink {
    /// The link of that name or index.
    ///
    /// For a link whose carrier just came on, the answer comes after the kernel has let packets through
    /// (`linkwatch_sync_dev` in `rtnl_getlink`), so that asking is also waiting.
    ///
    /// # Errors
    /// Not found, or what the kernel answered.
    pub fn link<'k>(&mut self, link: impl Into<LinkKey<'k>>) -> Result<Link> {
        let link = link.into();
        let mut request = about(message::GET_LINK, link, Header::default());
        request.native32(IFLA_EXT_MASK, SKIP_STATISTICS);
        self.query(request, read_link, || format!("find link {link}"))
    }

    /// The link of that name, or none.
    ///
    /// # Errors
    /// Any but *not found*.
    pub fn find_link(&mut self, name: &IfName) -> Result<Option<Link>> {
        match self.link(name) {
            Ok(link) => Ok(Some(link)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All links.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn list_links(&mut self) -> Result<Vec<Link>> {
        self.dump(about_all(), "list links", read_link)
    }

    /// Makes a bridge that is up and whose MAC address is `mac` and stays so, whatever ports it gets.
    ///
    /// Its MTU follows its ports until [`Self::set_link`] sets one: an MTU in this message would not count as set
    /// (`BROPT_MTU_SET_BY_USER` in `net/bridge/br_device.c`).
    ///
    /// # Errors
    /// Exists, or what the kernel answered.
    pub fn add_bridge(&mut self, name: &IfName, mac: Mac) -> Result<()> {
        let mut request = about(message::NEW_LINK, name.into(), Header::UP);
        request.list(IFLA_LINKINFO, |info| info.text(IFLA_INFO_KIND, "bridge"));
        request.bytes_attribute(IFLA_ADDRESS, &mac.0);
        self.change(request, NLM_F_CREATE | NLM_F_EXCL, || {
            format!("add link {name} type bridge")
        })
    }

    /// Makes a veth pair in one step: the peer is born in its namespace with its name, MAC address and MTU.
    ///
    /// Both ends are down: a peer born up is refused (ENOTCONN). An alias cannot be given here; [`Self::set_link`] does.
    ///
    /// # Errors
    /// Exists (one of the names), or what the kernel answered.
    pub fn add_veth(&mut self, pair: &VethPair<'_>) -> Result<()> {
        let VethPair {
            host,
            peer,
            peer_netns,
            master,
            mtu,
        } = pair;
        let mut request = Header::default().request(message::NEW_LINK);
        write_veth_end(&mut request, host, *mtu);
        if let Some(master) = master {
            request.native32(IFLA_MASTER, *master);
        }
        request.list(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "veth");
            info.list(IFLA_INFO_DATA, |data| {
                data.list(VETH_INFO_PEER, |born| {
                    born.plain(&[0; attribute::HEADER]);
                    write_veth_end(born, peer, *mtu);
                    let netns = peer_netns.as_fd().as_raw_fd();
                    born.native32(IFLA_NET_NS_FD, netns.cast_unsigned());
                });
            });
        });
        self.change(request, NLM_F_CREATE | NLM_F_EXCL, || {
            format!("add link {} type veth peer {}", host.name, peer.name)
        })
    }

    /// Changes a link.
    ///
    /// # Errors
    /// Not found, or what the kernel answered.
    pub fn set_link<'k>(
        &mut self,
        link: impl Into<LinkKey<'k>>,
        change: LinkChange<'_>,
    ) -> Result<()> {
        let link = link.into();
        let action = || format!("set link {link}{change}");
        if change.no_link_local {
            let mut request = request_of(link, &change);
            request.list(IFLA_AF_SPEC, |families| {
                families.list(AF_INET6.into(), |inet6| {
                    inet6.byte(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE);
                });
            });
            match self.change(request, 0, action) {
                // The kernel, or a link of so small an MTU, has no IPv6, and so no such address. Nothing was changed: it looks
                // at this first (`validate_linkmsg`, `inet6_validate_link_af`).
                Err(error) if error.errno() == Errno::AFNOSUPPORT => {}
                outcome => return outcome,
            }
        }
        self.change(request_of(link, &change), 0, action)
    }

    /// Shuts a bridge's port: it neither takes in nor sends anything, until its carrier changes.
    ///
    /// By a request to the bridge, whose answer comes at once. As a change of the link it would not last: the kernel tells
    /// of such a change, and the bridge, hearing it, opens ports that have a carrier (`br_port_carrier_check`).
    ///
    /// # Errors
    /// EOPNOTSUPP when it is no bridge's port, ENETDOWN when it is down, or what the kernel answered.
    pub fn shut_port(&mut self, index: u32) -> Result<()> {
        let header = Header {
            family: AF_BRIDGE,
            index,
            ..Header::default()
        };
        let mut request = header.request(message::SET_LINK);
        request.nest(IFLA_PROTINFO, |port| {
            port.byte(IFLA_BRPORT_STATE, BR_STATE_DISABLED);
        });
        self.change(request, 0, || {
            format!("set link {index} type bridge_slave state 0")
        })
    }

    /// Prepares links for [`Self::remove_group`], which removes them with one wait: the kernel waits for RCU periods once a
    /// request, some 20 ms. They are given a group of their own, whose number follows from the first one's index.
    ///
    /// A surprise: this is a change of the links, so that the bridge opens their ports again; see [`Self::shut_port`].
    pub fn group_links(&mut self, links: Vec<u32>) -> LinkGroup {
        let group = LinkGroup { links };
        if let (Some(number), [_, _, ..]) = (group.number(), group.links.as_slice()) {
            for index in &group.links {
                let mut request = about(message::NEW_LINK, (*index).into(), Header::default());
                request.native32(IFLA_GROUP, number);
                let action = || format!("set link {index} group {number}");
                // One that is not in the group is removed by itself.
                let _ = self.change(request, 0, action);
            }
        }
        group
    }

    /// Removes links; that some are not there is fine. Where not just these are in the group, which only chance or an earlier
    /// failure can bring about, or where they cannot be removed together, they are removed one after the other.
    ///
    /// # Errors
    /// What the kernel answered; it does not stop at the first.
    pub fn remove_group(&mut self, group: &LinkGroup) -> Result<()> {
        let number = group.number().filter(|_| group.links.len() > 1);
        if let Some(number) = number
            && let Ok(members) = self.list_group(number)
            && members == BTreeSet::from_iter(group.links.iter().copied())
        {
            let mut request = Header::default().request(message::DELETE_LINK);
            request.native32(IFLA_GROUP, number);
            let action = || format!("remove links of group {number}");
            // It fails when they went meanwhile, too (ENODEV).
            if self.change(request, 0, action).is_ok() {
                return Ok(());
            }
        }
        let removed: Vec<_> = group.links.iter().map(|i| self.remove_link(*i)).collect();
        removed.into_iter().collect()
    }

    fn list_group(&mut self, number: u32) -> Result<BTreeSet<u32>> {
        let of_group = |link: &[u8]| {
            let (header, attributes) = Header::read(link)?;
            let group = native32(attributes.find(IFLA_GROUP)?)?;
            (group == number).then_some(header.index)
        };
        let members = self.dump(about_all(), "list links", of_group)?;
        Ok(members.into_iter().collect())
    }

    /// Removes a link; that it is not there is fine. Either end of a veth pair takes the other with it.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn remove_link(&mut self, index: u32) -> Result<()> {
        let request = about(message::DELETE_LINK, index.into(), Header::default());
        match self.change(request, 0, || format!("remove link {index}")) {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}

/// A request about that link, or one that is to have that name.
fn about(kind: u16, link: LinkKey<'_>, header: Header) -> Encoder {
    match link {
        LinkKey::Index(index) => Header { index, ..header }.request(kind),
        LinkKey::Name(name) => {
            let mut request = header.request(kind);
            request.text(IFLA_IFNAME, name.as_str());
            request
        }
    }
}

/// A question for all links.
fn about_all() -> Encoder {
    let mut request = Header::default().request(message::GET_LINK);
    request.native32(IFLA_EXT_MASK, SKIP_STATISTICS);
    request
}

/// The request for a change, but for link-local addresses.
fn request_of(link: LinkKey<'_>, change: &LinkChange<'_>) -> Encoder {
    let mut request = change_of(link, change);
    if change.is_of_port() {
        request.list(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_SLAVE_KIND, "bridge");
            info.list(IFLA_INFO_SLAVE_DATA, |port| write_port(port, change));
        });
    }
    if let Some(on) = change.netfilter {
        request.list(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "bridge");
            info.list(IFLA_INFO_DATA, |bridge| {
                bridge.byte(IFLA_BR_NF_CALL_IPTABLES, on.into());
                bridge.byte(IFLA_BR_NF_CALL_IP6TABLES, on.into());
            });
        });
    }
    request
}

/// The part of a change that every link can have.
fn change_of(link: LinkKey<'_>, change: &LinkChange<'_>) -> Encoder {
    let mut header = Header::default();
    let flags = [
        (IFF_UP, Some(true).filter(|_| change.up)),
        (IFF_PROMISC, change.promiscuous),
        (IFF_ALLMULTI, change.all_multicast),
    ];
    for (flag, value) in flags {
        header.flags |= if value == Some(true) { flag } else { 0 };
        header.change |= if value.is_some() { flag } else { 0 };
    }
    let mut request = about(message::NEW_LINK, link, header);
    let numbers = [
        (IFLA_MTU, change.mtu),
        (IFLA_TXQLEN, change.tx_queue_length),
    ];
    for (kind, value) in numbers {
        if let Some(number) = value {
            request.native32(kind, number);
        }
    }
    if let Some(alias) = change.alias {
        request.text(IFLA_IFALIAS, alias);
    }
    if let Some(mac) = change.mac {
        request.bytes_attribute(IFLA_ADDRESS, &mac.0);
    }
    request
}

fn write_port(to: &mut Encoder, change: &LinkChange<'_>) {
    let port = [
        (IFLA_BRPORT_MODE, change.hairpin),
        (IFLA_BRPORT_ISOLATED, change.isolated),
        (IFLA_BRPORT_LEARNING, change.learning),
        (IFLA_BRPORT_UNICAST_FLOOD, change.flood),
    ];
    for (kind, value) in port {
        if let Some(on) = value {
            to.byte(kind, on.into());
        }
    }
}

/// Groups of links that are to be removed together begin here, far from those that people give.
const REMOVAL_GROUPS: u32 = 0x7000_0000;

/// Links that are to be removed together.
#[derive(Debug)]
pub struct LinkGroup {
    links: Vec<u32>,
}

impl LinkGroup {
    fn number(&self) -> Option<u32> {
        self.links.first().map(|first| REMOVAL_GROUPS | first)
    }
}

/// One queue each way: a veth otherwise takes one for each of the machine's processors.
fn write_veth_end(to: &mut Encoder, end: &VethEnd<'_>, mtu: u32) {
    to.text(IFLA_IFNAME, end.name.as_str());
    to.bytes_attribute(IFLA_ADDRESS, &end.mac.0);
    to.native32(IFLA_MTU, mtu);
    to.native32(IFLA_NUM_TX_QUEUES, 1);
    to.native32(IFLA_NUM_RX_QUEUES, 1);
}

/// The family that an address belongs to.
pub(crate) fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { AF_INET } else { AF_INET6 }
}

#[cfg(test)]
mod tests;
