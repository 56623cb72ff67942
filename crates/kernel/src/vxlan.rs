//! VXLAN devices, and their forwarding tables: which Ethernet address is behind which machine (RFC 7348).
//!
//! A device made here learns nothing and sends nothing of itself: what is not in its table is dropped, so that the table
//! is the whole truth about where frames go. A surprise: a device has an underlay of one family, that of its own address,
//! and a table entry that names an address of the other is taken and then drops what is sent by it.

use std::net::IpAddr;

use crate::encode::{
    Attributes, Encoder, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, byte, ip, native32,
};
use crate::error::Result;
use crate::link::AF_BRIDGE;
use crate::link::attribute::{
    Header, IFLA_ADDRESS, IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_MTU,
};
use crate::names::{IfName, Mac};
use crate::neighbour::{self, NDA_DST, NDA_LLADDR, NTF_SELF, NUD_PERMANENT};
use crate::netlink::{Netlink, message};

/// Attributes of a VXLAN device (linux/if_link.h).
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_LOCAL6: u16 = 17;
const IFLA_VXLAN_UDP_ZERO_CSUM6_RX: u16 = 20;

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
        let mut request = Header::default().request(message::NEW_LINK);
        request.text(IFLA_IFNAME, name.as_str());
        request.list(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "vxlan");
            info.list(IFLA_INFO_DATA, |data| write_vxlan(data, &device.vxlan));
        });
        request.bytes_attribute(IFLA_ADDRESS, &mac.0);
        if let Some(mtu) = mtu {
            request.native32(IFLA_MTU, *mtu);
        }
        self.change(request, NLM_F_CREATE | NLM_F_EXCL, || {
            format!("add link {name} type vxlan {}", device.vxlan)
        })
    }

    /// The forwarding table of that VXLAN device.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn list_fdb(&mut self, link: u32) -> Result<Vec<FdbEntry>> {
        // The kernel filters by the link (strict checking); an older one gives all, hence the second look below.
        let header = neighbour::Header {
            family: AF_BRIDGE,
            link,
            ..neighbour::Header::default()
        };
        let request = header.request(message::GET_NEIGHBOUR);
        self.dump(request, "list forwarding table", |entry| {
            let (header, attributes) = neighbour::Header::read(entry)?;
            read_entry(attributes).filter(|_| header.link == link)
        })
    }

    /// Puts an entry into the table of a VXLAN device, in the place of that with the same Ethernet address.
    ///
    /// # Errors
    /// Not found; what the kernel answered.
    pub fn replace_fdb_entry(&mut self, link: u32, entry: FdbEntry) -> Result<()> {
        let request = about(message::NEW_NEIGHBOUR, link, entry);
        let FdbEntry { mac, remote } = entry;
        self.change(request, NLM_F_CREATE | NLM_F_REPLACE, || {
            format!("replace fdb entry {mac} dev {link} dst {remote}")
        })
    }

    /// Removes an entry from the table of a VXLAN device; that it is not there is fine.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn remove_fdb_entry(&mut self, link: u32, entry: FdbEntry) -> Result<()> {
        let request = about(message::DELETE_NEIGHBOUR, link, entry);
        let FdbEntry { mac, remote } = entry;
        match self.change(request, 0, || {
            format!("remove fdb entry {mac} dev {link} dst {remote}")
        }) {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}

fn write_vxlan(to: &mut Encoder, vxlan: &Vxlan) {
    to.native32(IFLA_VXLAN_ID, vxlan.vni);
    to.bytes_attribute(IFLA_VXLAN_PORT, &vxlan.port.to_be_bytes());
    to.byte(IFLA_VXLAN_LEARNING, vxlan.learning.into());
    match vxlan.local {
        Some(local @ IpAddr::V4(_)) => to.ip(IFLA_VXLAN_LOCAL, local),
        Some(local @ IpAddr::V6(_)) => {
            to.ip(IFLA_VXLAN_LOCAL6, local);
            to.byte(IFLA_VXLAN_UDP_ZERO_CSUM6_RX, 1);
        }
        None => {}
    }
}

/// What the kernel says of a VXLAN device; none when it cannot be read.
pub(crate) fn read_vxlan(data: Attributes<'_>) -> Option<Vxlan> {
    let mut vxlan = Vxlan {
        vni: 0,
        port: 0,
        local: None,
        learning: false,
    };
    for (kind, payload) in data {
        match kind {
            IFLA_VXLAN_ID => vxlan.vni = native32(payload)?,
            IFLA_VXLAN_PORT => vxlan.port = u16::from_be_bytes(payload.try_into().ok()?),
            IFLA_VXLAN_LEARNING => vxlan.learning = byte(payload)? != 0,
            IFLA_VXLAN_LOCAL | IFLA_VXLAN_LOCAL6 => vxlan.local = Some(ip(payload)?),
            _ => {}
        }
    }
    Some(vxlan)
}

/// A request about an entry in the device's own table, not in that of a bridge that it may be a port of.
fn about(kind: u16, link: u32, entry: FdbEntry) -> Encoder {
    let header = neighbour::Header {
        family: AF_BRIDGE,
        link,
        state: NUD_PERMANENT,
        flags: NTF_SELF,
    };
    let mut request = header.request(kind);
    request.bytes_attribute(NDA_LLADDR, &entry.mac.0);
    request.ip(NDA_DST, entry.remote);
    request
}

fn read_entry(attributes: Attributes<'_>) -> Option<FdbEntry> {
    Some(FdbEntry {
        mac: attributes.find(NDA_LLADDR)?.try_into().ok().map(Mac)?,
        remote: ip(attributes.find(NDA_DST)?)?,
    })
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
