//! VXLAN devices, and their forwarding tables: which Ethernet address is behind which machine (RFC 7348).
//!
//! A device made here learns nothing and sends nothing of itself: what is not in its table is dropped, so that the table
//! is the whole truth about where frames go. A surprise: a device has an underlay of one family, that of its own address,
//! and a table entry that names an address of the other is taken and then drops what is sent by it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};

use crate::error::Result;
use crate::names::{IfName, Mac};
use crate::netlink::{Message, Netlink};

/// What cannot be changed about a VXLAN device, or is not worth it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vxlan {
    /// The VXLAN network identifier, 24 bits; only devices of one VNI hear each other.
    pub vni: u32,
    /// The UDP port that it hears, and sends to.
    pub port: u16,
    /// This machine's address, from which it sends; its family is the underlay's. None is IPv4, and the kernel chooses.
    pub local: Option<IpAddr>,
    /// Believes received frames about who is behind which machine.
    pub learning: bool,
}

impl Vxlan {
    /// How many bytes are put around an IP packet: Ethernet 14, VXLAN 8, UDP 8, and IPv4 20 or IPv6 40, as the
    /// underlay's address is.
    pub fn overhead(underlay: IpAddr) -> u32 {
        if underlay.is_ipv4() { 50 } else { 70 }
    }
}

impl std::fmt::Display for Vxlan {
    /// As one writes it behind `ip link add <link> type vxlan`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "id {} dstport {}", self.vni, self.port)?;
        if let Some(local) = self.local {
            write!(f, " local {local}")?;
        }
        if self.local.is_some_and(|local| local.is_ipv6()) {
            f.write_str(" udp6zerocsumrx")?;
        }
        f.write_str(if self.learning {
            " learning"
        } else {
            " nolearning"
        })
    }
}

/// A VXLAN device to be made.
#[derive(Debug, Clone, Copy)]
pub struct VxlanDevice<'a> {
    /// Its name.
    pub name: &'a IfName,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its MTU in bytes; none is that of Ethernet.
    pub mtu: Option<u32>,
    /// What it is.
    pub vxlan: Vxlan,
}

/// An entry of a VXLAN device's forwarding table: frames to that Ethernet address are sent to that machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FdbEntry {
    /// The Ethernet address.
    pub mac: Mac,
    /// The machine's address on the underlay.
    pub remote: IpAddr,
}

impl Netlink {
    /// Makes a VXLAN device, which is down.
    ///
    /// Its MAC address counts as set by us (`addr_assign_type` 3), so that no udev policy gives it another
    /// (systemd.link(5), `MACAddressPolicy=`). UDP checksums are the kernel's default, which is to have them: what the outer one
    /// covers need not be summed again (`lco_csum`), the receiver's card proves the inner packet with it, and NAT on the
    /// way keeps it right. Over IPv6 packets of others that have none are taken too (RFC 6935).
    ///
    /// # Errors
    /// Exists (the name, or another device with that VNI and port); EADDRINUSE when another program or a device of other
    /// kind has the port; EOPNOTSUPP where the kernel has no VXLAN; what the kernel answered.
    pub fn add_vxlan(&mut self, device: &VxlanDevice<'_>) -> Result<()> {
        let VxlanDevice { name, mac, mtu, .. } = device;
        let mut message = LinkMessage::default();
        message.attributes.extend([
            LinkAttribute::IfName(name.to_string()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vxlan),
                LinkInfo::Data(InfoData::Vxlan(parameters(&device.vxlan))),
            ]),
            LinkAttribute::Address(mac.0.to_vec()),
        ]);
        message.attributes.extend(mtu.map(LinkAttribute::Mtu));
        self.change(Message::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, || {
            format!("add link {name} type vxlan {}", device.vxlan)
        })
    }

    /// The forwarding table of that VXLAN device.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn list_fdb(&mut self, link: u32) -> Result<Vec<FdbEntry>> {
        let mut request = NeighbourMessage::default();
        request.header.family = AddressFamily::Bridge;
        // The kernel filters by it (strict checking); an older one gives all, hence the second look below.
        request.header.ifindex = link;
        let request = Message::GetNeighbour(request);
        self.dump(request, "list forwarding table", |message| match message {
            Message::NewNeighbour(entry) if entry.header.ifindex == link => read_entry(&entry),
            _ => None,
        })
    }

    /// Puts an entry into the table of a VXLAN device, in the place of that with the same Ethernet address.
    ///
    /// # Errors
    /// Not found; what the kernel answered.
    pub fn replace_fdb_entry(&mut self, link: u32, entry: FdbEntry) -> Result<()> {
        let message = Message::NewNeighbour(entry_message(link, entry));
        let FdbEntry { mac, remote } = entry;
        self.change(message, NLM_F_CREATE | NLM_F_REPLACE, || {
            format!("replace fdb entry {mac} dev {link} dst {remote}")
        })
    }

    /// Removes an entry from the table of a VXLAN device; that it is not there is fine.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn remove_fdb_entry(&mut self, link: u32, entry: FdbEntry) -> Result<()> {
        let message = Message::DelNeighbour(entry_message(link, entry));
        let FdbEntry { mac, remote } = entry;
        match self.change(message, 0, || {
            format!("remove fdb entry {mac} dev {link} dst {remote}")
        }) {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}

fn parameters(vxlan: &Vxlan) -> Vec<InfoVxlan> {
    let mut data = vec![
        InfoVxlan::Id(vxlan.vni),
        InfoVxlan::Port(vxlan.port),
        InfoVxlan::Learning(vxlan.learning),
    ];
    match vxlan.local {
        Some(IpAddr::V4(local)) => data.push(InfoVxlan::Local(local)),
        Some(IpAddr::V6(local)) => {
            data.extend([InfoVxlan::Local6(local), InfoVxlan::UDPZeroCsumRX(true)]);
        }
        None => {}
    }
    data
}

/// What the kernel says of a VXLAN device.
pub(crate) fn read_vxlan(data: &[InfoVxlan]) -> Vxlan {
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

fn entry_message(link: u32, entry: FdbEntry) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = link;
    message.header.state = NeighbourState::Permanent;
    // In the device's own table, not in that of a bridge that it may be a port of.
    message.header.flags = NeighbourFlags::Own;
    message.attributes = vec![
        NeighbourAttribute::LinkLayerAddress(entry.mac.0.to_vec()),
        NeighbourAttribute::Destination(entry.remote.into()),
    ];
    message
}

fn read_entry(message: &NeighbourMessage) -> Option<FdbEntry> {
    let (mut mac, mut remote) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = bytes.as_slice().try_into().ok().map(Mac);
            }
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                remote = address(bytes);
            }
            _ => {}
        }
    }
    Some(FdbEntry {
        mac: mac?,
        remote: remote?,
    })
}

/// An address whose family only its length tells.
fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(|bytes| Ipv4Addr::from(bytes).into());
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(|bytes| Ipv6Addr::from(bytes).into()))
        .ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use serde_json::Value;

    use super::*;
    use crate::testing::TestNs;
    use crate::{LinkChange, Neighbour, Prefix, Route, RouteOptions, RouteProtocol};

    const MAC: Mac = Mac([0x0a, 0x58, 10, 244, 1, 0]);

    fn name() -> IfName {
        "vx4".parse().unwrap()
    }

    fn vxlan(local: &str) -> Vxlan {
        Vxlan {
            vni: 112,
            port: 8472,
            local: Some(local.parse().unwrap()),
            learning: false,
        }
    }

    fn device(name: &IfName, local: &str) -> (Netlink, u32) {
        let mut netlink = Netlink::open().unwrap();
        let device = VxlanDevice {
            name,
            mac: MAC,
            mtu: Some(1450),
            vxlan: vxlan(local),
        };
        netlink.add_vxlan(&device).unwrap();
        // Two requests: in one, the kernel sets it up first, and gives it the address.
        let before = LinkChange {
            no_link_local: true,
            alias: Some("test"),
            ..LinkChange::default()
        };
        let up = LinkChange {
            up: true,
            ..LinkChange::default()
        };
        for change in [before, up] {
            netlink.set_link(name, change).unwrap();
        }
        let index = netlink.link_index(name).unwrap();
        (netlink, index)
    }

    fn underlay() -> TestNs {
        let ns = TestNs::new();
        ns.ip("link add up0 up type bridge");
        ns.ip("addr add 192.168.1.11/24 dev up0");
        ns.ip("addr add fd00:192::11/64 dev up0 nodad");
        ns
    }

    fn bridge(arguments: &str) -> Value {
        let output = Command::new("bridge")
            .arg("-j")
            .args(arguments.split_whitespace())
            .output()
            .unwrap();
        assert!(output.status.success(), "bridge {arguments}");
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    #[test]
    fn a_device_learns_nothing_has_its_mac_pinned_and_no_address_of_its_own() {
        let ns = underlay();
        let (mut netlink, _) = device(&name(), "192.168.1.11");
        let seen = &ns.ip("-d link show vx4")[0];
        let data = &seen["linkinfo"]["info_data"];
        assert_eq!(
            [
                &data["id"],
                &data["port"],
                &data["local"],
                &data["learning"]
            ],
            [
                &Value::from(112),
                &8472.into(),
                &"192.168.1.11".into(),
                &false.into()
            ]
        );
        assert_eq!(data["udp_csum"], true);
        assert_eq!(
            (&seen["address"], &seen["mtu"]),
            (&"0a:58:0a:f4:01:00".into(), &1450.into())
        );
        assert_eq!(ns.ip("addr show vx4")[0]["addr_info"], Value::Array(vec![]));
        // NET_ADDR_SET: udev leaves it alone. /sys shows the namespace of whoever mounts it.
        let read = "mount -t sysfs sysfs /sys && cat /sys/class/net/vx4/addr_assign_type";
        let kind = Command::new("unshare")
            .args(["-m", "sh", "-c", read])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&kind.stdout), "3\n");
        let link = netlink.link(&name()).unwrap();
        assert_eq!(link.vxlan, Some(vxlan("192.168.1.11")));
        assert_eq!(netlink.list_fdb(link.index).unwrap(), []);
    }

    #[test]
    fn a_device_over_ipv6_takes_packets_without_checksum_too() {
        let ns = underlay();
        let name = "vx6".parse().unwrap();
        let (mut netlink, index) = device(&name, "fd00:192::11");
        let data = &ns.ip("-d link show vx6")[0]["linkinfo"]["info_data"];
        assert_eq!(
            (&data["local6"], &data["udp_zero_csum6_rx"]),
            (&"fd00:192::11".into(), &true.into())
        );
        let wanted = vxlan("fd00:192::11");
        assert_eq!(netlink.link(&name).unwrap().vxlan, Some(wanted));
        let entry = FdbEntry {
            mac: MAC,
            remote: "fd00:192::12".parse().unwrap(),
        };
        netlink.replace_fdb_entry(index, entry).unwrap();
        assert_eq!(netlink.list_fdb(index).unwrap(), [entry]);
    }

    #[test]
    fn a_wrong_device_is_told_from_a_right_one() {
        let ns = underlay();
        ns.ip("link add vx4 type vxlan id 7 dstport 4789 local 192.168.1.12");
        let seen = Netlink::open().unwrap().link(&name()).unwrap().vxlan;
        let expected = Vxlan {
            vni: 7,
            port: 4789,
            local: Some("192.168.1.12".parse().unwrap()),
            learning: true,
        };
        assert_eq!(seen, Some(expected));
        assert_eq!(
            expected.to_string(),
            "id 7 dstport 4789 local 192.168.1.12 learning"
        );
    }

    #[test]
    fn the_table_is_of_the_device_alone_and_an_entry_is_replaced_in_one_step() {
        let ns = underlay();
        let (mut netlink, index) = device(&name(), "192.168.1.11");
        ns.ip("link add other type vxlan id 7 dstport 8472 local 192.168.1.11");
        let add = "fdb add 0a:58:0a:f4:09:00 dev other dst 192.168.1.19 self permanent";
        bridge(add);
        let entry = |last: u8, remote: &str| FdbEntry {
            mac: Mac([0x0a, 0x58, 10, 244, last, 0]),
            remote: remote.parse().unwrap(),
        };
        for (last, remote) in [
            (2, "192.168.1.12"),
            (3, "192.168.1.13"),
            (2, "192.168.1.22"),
        ] {
            netlink
                .replace_fdb_entry(index, entry(last, remote))
                .unwrap();
        }
        let mut table = netlink.list_fdb(index).unwrap();
        table.sort();
        let expected = [entry(2, "192.168.1.22"), entry(3, "192.168.1.13")];
        assert_eq!(table, expected);
        let shown = bridge("fdb show dev vx4");
        let shown: Vec<_> = shown
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| (&entry["dst"], &entry["state"], &entry["flags"][0]))
            .collect();
        let permanent = |remote: &str| (Value::from(remote), "permanent".into(), "self".into());
        for remote in ["192.168.1.22", "192.168.1.13"] {
            let (dst, state, flag): (Value, Value, Value) = permanent(remote);
            assert!(shown.contains(&(&dst, &state, &flag)), "{shown:?}");
        }
        netlink
            .remove_fdb_entry(index, entry(3, "192.168.1.13"))
            .unwrap();
        netlink
            .remove_fdb_entry(index, entry(3, "192.168.1.13"))
            .unwrap();
        let left = [entry(2, "192.168.1.22")];
        assert_eq!(netlink.list_fdb(index).unwrap(), left);
        assert_eq!(bridge("fdb show dev other")[0]["dst"], "192.168.1.19");
    }

    #[test]
    fn neighbours_that_are_written_down_are_listed_of_the_device_alone() {
        let ns = underlay();
        let (mut netlink, index) = device(&name(), "192.168.1.11");
        ns.ip("neigh add 192.168.1.77 lladdr 02:00:00:00:00:77 dev up0 nud permanent");
        ns.ip("neigh add 10.244.7.0 lladdr 02:00:00:00:00:77 dev vx4 nud reachable");
        let neighbour = |ip: &str, last: u8| Neighbour {
            ip: ip.parse().unwrap(),
            mac: Mac([0x0a, 0x58, 10, 244, last, 0]),
        };
        let all = [neighbour("10.244.2.0", 2), neighbour("fe80::2", 2)];
        netlink
            .replace_neighbour(index, neighbour("10.244.2.0", 9))
            .unwrap();
        for neighbour in all {
            netlink.replace_neighbour(index, neighbour).unwrap();
        }
        assert_eq!(netlink.list_permanent_neighbours(index).unwrap(), all);
        let shown = &ns.ip("neigh show 10.244.2.0 dev vx4")[0];
        assert_eq!(
            (&shown["lladdr"], &shown["state"][0]),
            (&"0a:58:0a:f4:02:00".into(), &"PERMANENT".into())
        );
        for neighbour in all {
            netlink.remove_neighbour(index, neighbour.ip).unwrap();
            netlink.remove_neighbour(index, neighbour.ip).unwrap();
        }
        assert_eq!(netlink.list_permanent_neighbours(index).unwrap(), []);
        assert_eq!(
            ns.ip("neigh show dev up0")[0]["state"][0],
            "PERMANENT",
            "another device's stays"
        );
    }

    #[test]
    fn routes_through_the_device_take_the_place_of_others_in_one_step() {
        let ns = underlay();
        ns.ip("link add br0 up type bridge");
        ns.ip("addr add 10.244.1.1/24 dev br0");
        ns.ip("addr add fd00:10:244:1::1/64 dev br0 nodad");
        ns.ip("route add 10.244.2.0/24 via 192.168.1.12 proto 112");
        ns.ip("-6 route add fd00:10:244:2::/64 via fd00:192::12 proto 112");
        let (mut netlink, index) = device(&name(), "192.168.1.11");
        let route = |dst: &str, next_hop: &str, source: &str| {
            let next_hop: IpAddr = next_hop.parse().unwrap();
            Route {
                dst: dst.parse::<Prefix>().unwrap(),
                next_hop: Some(next_hop),
                link: Some(index),
                protocol: RouteProtocol::PODSPAN,
                options: RouteOptions {
                    onlink: next_hop.is_ipv4(),
                    source: Some(source.parse().unwrap()),
                    ..RouteOptions::default()
                },
            }
        };
        let all = [
            route("10.244.2.0/24", "10.244.2.0", "10.244.1.1"),
            route("fd00:10:244:2::/64", "fe80::2", "fd00:10:244:1::1"),
        ];
        for route in &all {
            netlink.replace_route(route).unwrap();
        }
        let seen = netlink.list_routes(RouteProtocol::PODSPAN).unwrap();
        assert_eq!(seen, all);
        let text = "10.244.2.0/24 via 10.244.2.0 onlink src 10.244.1.1 proto 112";
        assert_eq!(all[0].to_string(), text);
        let shown = &ns.ip("route show 10.244.2.0/24")[0];
        assert_eq!(
            (&shown["dev"], &shown["flags"][0], &shown["prefsrc"]),
            (&"vx4".into(), &"onlink".into(), &"10.244.1.1".into())
        );
    }
}
