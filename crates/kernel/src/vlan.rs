//! VLANs of bridges: making a bridge heed them, and saying which of them a port has.
//!
//! A kernel built without `CONFIG_BRIDGE_VLAN_FILTERING` answers all of this with EOPNOTSUPP. A surprise: these requests are
//! of the family `AF_BRIDGE` and find links by index only.

use crate::encode::{Attributes, Encoder, NLM_F_CREATE, NLM_F_EXCL};
use crate::error::Result;
use crate::link::AF_BRIDGE;
use crate::link::attribute::{
    Header, IFLA_ADDRESS, IFLA_AF_SPEC, IFLA_BR_VLAN_FILTERING, IFLA_EXT_MASK, IFLA_IFNAME,
    IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINKINFO,
};
use crate::names::{IfName, Mac};
use crate::netlink::{Netlink, message};

/// `IFLA_BRIDGE_VLAN_INFO` (linux/if_bridge.h), and the flags of `struct bridge_vlan_info`.
const IFLA_BRIDGE_VLAN_INFO: u16 = 2;
const PVID: u16 = 0x02;
const UNTAGGED: u16 = 0x04;
const RANGE_BEGIN: u16 = 0x08;
const RANGE_END: u16 = 0x10;
/// `RTEXT_FILTER_BRVLAN` (linux/rtnetlink.h).
const TELL_VLANS: u32 = 2;

/// VLANs of a bridge port that are next to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Vlans {
    /// The first one's number, from 1 on.
    pub first: u16,
    /// The last one's number, up to 4094; the same for one alone.
    pub last: u16,
    /// Frames without a tag are of this one, and its frames leave without a tag; for one alone.
    pub untagged: bool,
}

impl std::fmt::Display for Vlans {
    /// As one writes it behind `bridge vlan add dev <link>`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "vid {}", self.first)?;
        if self.last != self.first {
            write!(f, "-{}", self.last)?;
        }
        f.write_str(if self.untagged { " pvid untagged" } else { "" })
    }
}

impl Netlink {
    /// As [`Self::add_bridge`], with a bridge that heeds VLANs; none is made where the kernel cannot do that.
    ///
    /// # Errors
    /// EOPNOTSUPP; exists; or what the kernel answered.
    pub fn add_filtering_bridge(&mut self, name: &IfName, mac: Mac) -> Result<()> {
        let mut request = Header::UP.request(message::NEW_LINK);
        request.text(IFLA_IFNAME, name.as_str());
        write_filtering(&mut request);
        request.bytes_attribute(IFLA_ADDRESS, &mac.0);
        self.change(request, NLM_F_CREATE | NLM_F_EXCL, || {
            format!("add link {name} type bridge vlan_filtering 1")
        })
    }

    /// Makes a bridge heed VLANs; its ports then have the one that is the default.
    ///
    /// # Errors
    /// EOPNOTSUPP; not found; or what the kernel answered.
    pub fn filter_vlans(&mut self, bridge: u32) -> Result<()> {
        self.change(filtering_request(bridge), 0, || {
            format!("set link {bridge} type bridge vlan_filtering 1")
        })
    }

    /// Gives a bridge port these VLANs beside those that it has. Of those that name one VLAN, the last holds.
    ///
    /// # Errors
    /// EOPNOTSUPP, also when the link is no bridge port; not found; or what the kernel answered.
    pub fn add_vlans(&mut self, port: u32, vlans: &[Vlans]) -> Result<()> {
        let request = port_request(message::SET_LINK, port, vlans);
        self.change(request, 0, || {
            let all: Vec<_> = vlans.iter().map(ToString::to_string).collect();
            format!("add vlan dev {port} {}", all.join(", "))
        })
    }

    /// Takes a VLAN from a bridge port; that it does not have it is fine.
    ///
    /// # Errors
    /// As [`Self::add_vlans`].
    pub fn remove_vlan(&mut self, port: u32, number: u16) -> Result<()> {
        let vlan = Vlans {
            first: number,
            last: number,
            untagged: false,
        };
        let request = port_request(message::DELETE_LINK, port, &[vlan]);
        match self.change(request, 0, || format!("delete vlan dev {port} {vlan}")) {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// The VLANs of a bridge port, each by itself. Looks at all ports.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn list_vlans(&mut self, port: u32) -> Result<Vec<Vlans>> {
        let header = Header {
            family: AF_BRIDGE,
            ..Header::default()
        };
        let mut request = header.request(message::GET_LINK);
        request.native32(IFLA_EXT_MASK, TELL_VLANS);
        let all = self.dump(request, "list vlans", |link| {
            let (header, attributes) = Header::read(link)?;
            (header.index == port).then(|| read_vlans(attributes))
        })?;
        Ok(all.into_iter().flatten().collect())
    }
}

fn write_filtering(to: &mut Encoder) {
    to.list(IFLA_LINKINFO, |info| {
        info.text(IFLA_INFO_KIND, "bridge");
        info.list(IFLA_INFO_DATA, |bridge| {
            bridge.byte(IFLA_BR_VLAN_FILTERING, 1)
        });
    });
}

fn filtering_request(bridge: u32) -> Encoder {
    let header = Header {
        index: bridge,
        ..Header::default()
    };
    let mut request = header.request(message::NEW_LINK);
    write_filtering(&mut request);
    request
}

fn port_request(kind: u16, port: u32, vlans: &[Vlans]) -> Encoder {
    let header = Header {
        family: AF_BRIDGE,
        index: port,
        ..Header::default()
    };
    let mut request = header.request(kind);
    request.list(IFLA_AF_SPEC, |bridge| {
        let mut one = |flags: u16, number: u16| {
            let ([a, b], [c, d]) = (flags.to_ne_bytes(), number.to_ne_bytes());
            bridge.bytes_attribute(IFLA_BRIDGE_VLAN_INFO, &[a, b, c, d]);
        };
        for vlans in vlans {
            match vlans {
                Vlans {
                    first,
                    untagged: true,
                    ..
                } => one(PVID | UNTAGGED, *first),
                Vlans { first, last, .. } if first == last => one(0, *first),
                Vlans { first, last, .. } => {
                    one(RANGE_BEGIN, *first);
                    one(RANGE_END, *last);
                }
            }
        }
    });
    request
}

fn read_vlans(attributes: Attributes<'_>) -> Vec<Vlans> {
    let all = attributes.inside(IFLA_AF_SPEC).unwrap_or(Attributes(&[]));
    let infos = all.filter_map(|(kind, payload)| match (kind, payload) {
        (IFLA_BRIDGE_VLAN_INFO, [a, b, c, d]) => {
            let (flags, number) = (u16::from_ne_bytes([*a, *b]), u16::from_ne_bytes([*c, *d]));
            Some(Vlans {
                first: number,
                last: number,
                untagged: flags & (PVID | UNTAGGED) == PVID | UNTAGGED,
            })
        }
        _ => None,
    });
    infos.collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::io::Errno;

    use super::*;
    use crate::testing::TestNs;

    const ACCESS: Vlans = Vlans {
        first: 7,
        last: 7,
        untagged: true,
    };
    const TRUNK: Vlans = Vlans {
        first: 10,
        last: 12,
        untagged: false,
    };

    /// The payload of a message, behind its header of 16 bytes.
    fn bytes(request: &Encoder) -> Vec<u8> {
        request.bytes()[16..].to_vec()
    }

    /// `struct ifinfomsg` of that family and index, and the attributes.
    fn payload(family: u8, index: u8, attributes: &[u8]) -> Vec<u8> {
        let mut bytes = vec![family, 0, 0, 0, index, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend(attributes);
        bytes
    }

    /// What bridge(8) and ip(8) of iproute2 6.1 send for the same, as strace shows it (little endian).
    #[test]
    #[cfg(target_endian = "little")]
    fn requests_are_those_of_iproute2() {
        const AF_BRIDGE: u8 = 7;
        // bridge vlan add vid 7 pvid untagged
        let expected = payload(AF_BRIDGE, 9, &[12, 0, 26, 0, 8, 0, 2, 0, 6, 0, 7, 0]);
        assert_eq!(
            bytes(&port_request(message::SET_LINK, 9, &[ACCESS])),
            expected
        );
        // bridge vlan add vid 10-12
        let expected = [
            20, 0, 26, 0, 8, 0, 2, 0, 8, 0, 10, 0, 8, 0, 2, 0, 16, 0, 12, 0,
        ];
        let expected = payload(AF_BRIDGE, 9, &expected);
        assert_eq!(
            bytes(&port_request(message::SET_LINK, 9, &[TRUNK])),
            expected
        );
        // bridge vlan del vid 1
        let one = Vlans {
            first: 1,
            last: 1,
            untagged: false,
        };
        let expected = payload(AF_BRIDGE, 9, &[12, 0, 26, 0, 8, 0, 2, 0, 0, 0, 1, 0]);
        assert_eq!(
            bytes(&port_request(message::DELETE_LINK, 9, &[one])),
            expected
        );
        // ip link set type bridge vlan_filtering 1
        let data = [12, 0, 2, 0, 5, 0, 7, 0, 1, 0, 0, 0];
        let kind = [&[10, 0, 1, 0][..], b"bridge", &[0, 0]].concat();
        // The kind is a text with or without its final NUL (`nla_strscpy`).
        let seen = bytes(&filtering_request(9));
        let (head, rest) = seen.split_at(16);
        assert_eq!(head, payload(0, 9, &[]));
        assert_eq!(&rest[2..4], &[18, 0]);
        assert!(rest.ends_with(&data), "{rest:?}");
        assert_eq!(rest[6..14], kind[2..10]);
    }

    /// On a kernel that filters VLANs this shows them at work, and on another how it refuses.
    #[test]
    fn ports_have_their_vlans_or_the_kernel_says_that_it_has_none() {
        let ns = TestNs::new();
        let mut netlink = Netlink::open().unwrap();
        let (br0, br1) = ("br0".parse().unwrap(), "br1".parse().unwrap());
        netlink.add_bridge(&br0, Mac([2, 0, 0, 0, 0, 1])).unwrap();
        ns.ip("link add v0 type veth peer name v1");
        ns.ip("link set v0 master br0");
        let bridge = netlink.link(&br0).unwrap().index;
        let port = netlink.link(&"v0".parse().unwrap()).unwrap().index;
        let made = netlink.add_filtering_bridge(&br1, Mac([2, 0, 0, 0, 0, 2]));
        if let Err(error) = made {
            assert_eq!(error.errno(), Errno::OPNOTSUPP, "{error}");
            assert!(
                error
                    .to_string()
                    .starts_with("add link br1 type bridge vlan_filtering 1: ")
            );
            assert_eq!(
                netlink.find_link(&br1).unwrap(),
                None,
                "and nothing is made"
            );
            let refused = [
                netlink.filter_vlans(bridge),
                netlink.add_vlans(port, &[TRUNK, ACCESS]),
            ];
            assert_eq!(
                refused.map(|answer| answer.unwrap_err().errno()),
                [Errno::OPNOTSUPP; 2]
            );
            // To such a kernel there is nothing to remove.
            netlink.remove_vlan(port, 1).unwrap();
            assert!(!netlink.link(&br0).unwrap().vlans.filtered);
            assert_eq!(netlink.list_vlans(port).unwrap(), []);
            return;
        }
        netlink.filter_vlans(bridge).unwrap();
        for name in [&br0, &br1] {
            assert!(netlink.link(name).unwrap().vlans.filtered);
        }
        netlink.remove_vlan(port, 1).unwrap();
        netlink.remove_vlan(port, 1).unwrap();
        netlink.add_vlans(port, &[TRUNK, ACCESS]).unwrap();
        let shown = Command::new("bridge")
            .args(["-j", "vlan", "show", "dev", "v0"])
            .output()
            .unwrap();
        let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
        assert_eq!(
            shown[0]["vlans"],
            serde_json::json!([
            {"vlan": 7, "flags": ["PVID", "Egress Untagged"]}, {"vlan": 10}, {"vlan": 11}, {"vlan": 12}])
        );
        let alone = |number| Vlans {
            first: number,
            last: number,
            untagged: false,
        };
        let mut seen = netlink.list_vlans(port).unwrap();
        seen.sort();
        assert_eq!(seen, [ACCESS, alone(10), alone(11), alone(12)]);
    }
}
