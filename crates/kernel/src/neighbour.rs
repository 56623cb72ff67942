//! Neighbours: who has which address on a link. What the kernel has found out, and how to make it forget; and what is
//! written down, so that nothing need be found out.
//!
//! Only what was found out is forgotten: what somebody wrote down (`permanent`) stays, and so do the entries that need no
//! finding out (`noarp`). A surprise: each namespace sees its own, but the kernel counts those of all namespaces together
//! (`gc_entries` of `struct neigh_table`), and beyond `gc_thresh3` nobody on the machine finds a new one. What was
//! written down does not count (`exempt_from_gc`).

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};

use crate::error::Result;
use crate::link::family;
use crate::names::Mac;
use crate::netlink::{Message, Netlink};

/// Who has an address on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    /// The address.
    pub ip: IpAddr,
    /// The Ethernet address of who has it.
    pub mac: Mac,
}

/// What the kernel knows of a neighbour (`ndm_state`, rtnetlink(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reachability {
    /// Nobody has asked for it yet, or it was forgotten.
    Unknown,
    /// It is being asked for.
    Asked,
    /// It did not answer.
    Failed,
    /// Its Ethernet address is known.
    Known,
}

impl Netlink {
    /// What the kernel knows of who has that address on a link.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn reachability(&mut self, link: u32, ip: IpAddr) -> Result<Reachability> {
        let mut request = NeighbourMessage::default();
        request.header.family = family(ip);
        request.attributes = vec![NeighbourAttribute::IfIndex(link)];
        let request = Message::GetNeighbour(request);
        let states = self.dump(request, "list neighbours", |message| match message {
            Message::NewNeighbour(neighbour) if neighbour.header.ifindex == link => {
                is_of(&neighbour, ip).then_some(neighbour.header.state)
            }
            _ => None,
        })?;
        Ok(match states.first() {
            None | Some(NeighbourState::None) => Reachability::Unknown,
            Some(NeighbourState::Incomplete) => Reachability::Asked,
            Some(NeighbourState::Failed) => Reachability::Failed,
            Some(_) => Reachability::Known,
        })
    }

    /// The neighbours on that link that somebody wrote down, IPv4 first.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn list_permanent_neighbours(&mut self, link: u32) -> Result<Vec<Neighbour>> {
        let mut all = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = NeighbourMessage::default();
            request.header.family = family;
            // The kernel filters by it; the header's own index it refuses here (`neigh_valid_dump_req`).
            request.attributes = vec![NeighbourAttribute::IfIndex(link)];
            let request = Message::GetNeighbour(request);
            all.extend(
                self.dump(request, "list neighbours", |message| match message {
                    Message::NewNeighbour(neighbour) if neighbour.header.ifindex == link => {
                        read_permanent(&neighbour)
                    }
                    _ => None,
                })?,
            );
        }
        Ok(all)
    }

    /// Writes down who has an address on a link, in the place of what is known of that address.
    ///
    /// # Errors
    /// Not found; what the kernel answered.
    pub fn replace_neighbour(&mut self, link: u32, neighbour: Neighbour) -> Result<()> {
        let Neighbour { ip, mac } = neighbour;
        let mut message = about(link, ip);
        message.header.state = NeighbourState::Permanent;
        let address = NeighbourAttribute::LinkLayerAddress(mac.0.to_vec());
        message.attributes.push(address);
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.change(Message::NewNeighbour(message), flags, || {
            format!("replace neighbour {ip} lladdr {mac} dev {link}")
        })
    }

    /// Forgets who has an address on a link; that nothing is known of it is fine.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn remove_neighbour(&mut self, link: u32, ip: IpAddr) -> Result<()> {
        let message = Message::DelNeighbour(about(link, ip));
        match self.change(message, 0, || format!("remove neighbour {ip} dev {link}")) {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Forgets every neighbour that was found out, of both families.
    ///
    /// # Errors
    /// What the kernel answered; that one is gone already is fine.
    pub fn forget_neighbours(&mut self) -> Result<()> {
        let request = Message::GetNeighbour(NeighbourMessage::default());
        let found = self.dump(request, "list neighbours", |message| match message {
            Message::NewNeighbour(neighbour) if is_found_out(&neighbour) => Some(neighbour),
            _ => None,
        })?;
        for mut neighbour in found {
            neighbour
                .attributes
                .retain(|attribute| matches!(attribute, NeighbourAttribute::Destination(_)));
            let action = || "forget neighbour".to_owned();
            match self.change(Message::DelNeighbour(neighbour), 0, action) {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

fn about(link: u32, ip: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(ip);
    message.header.ifindex = link;
    message.attributes = vec![NeighbourAttribute::Destination(ip.into())];
    message
}

fn read_permanent(message: &NeighbourMessage) -> Option<Neighbour> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let (mut ip, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                ip = Some((*v4).into());
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                ip = Some((*v6).into());
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = bytes.as_slice().try_into().ok().map(Mac);
            }
            _ => {}
        }
    }
    Some(Neighbour { ip: ip?, mac: mac? })
}

fn is_of(neighbour: &NeighbourMessage, ip: IpAddr) -> bool {
    let address = match ip {
        IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
        IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
    };
    let wanted = NeighbourAttribute::Destination(address);
    neighbour.attributes.contains(&wanted)
}

fn is_found_out(neighbour: &NeighbourMessage) -> bool {
    use netlink_packet_route::AddressFamily::{Inet, Inet6};
    matches!(neighbour.header.family, Inet | Inet6)
        && !matches!(
            neighbour.header.state,
            NeighbourState::Permanent | NeighbourState::Noarp | NeighbourState::None
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestNs;

    #[test]
    fn what_is_known_of_a_neighbour_is_told() {
        let ns = TestNs::new();
        ns.ip("link add br0 up type bridge");
        ns.ip("address add 10.244.1.1/24 dev br0");
        for (last, state) in [(2, "stale"), (3, "failed"), (4, "permanent")] {
            let mac = if state == "failed" {
                ""
            } else {
                "lladdr 0a:58:0a:f4:01:02"
            };
            ns.ip(&format!(
                "neigh add 10.244.1.{last} {mac} dev br0 nud {state}"
            ));
        }
        let mut netlink = Netlink::open().unwrap();
        let br0 = netlink.link(&"br0".parse().unwrap()).unwrap().index;
        let known = [2, 3, 4, 5].map(|last: u8| {
            netlink
                .reachability(br0, [10, 244, 1, last].into())
                .unwrap()
        });
        use Reachability::{Failed, Known, Unknown};
        assert_eq!(known, [Known, Failed, Known, Unknown]);
    }

    #[test]
    fn what_was_found_out_is_forgotten_and_what_was_written_down_stays() {
        let ns = TestNs::new();
        ns.ip("link add br0 up type bridge");
        ns.ip("address add 10.244.1.1/24 dev br0");
        ns.ip("neigh add 10.244.1.2 lladdr 0a:58:0a:f4:01:02 dev br0 nud stale");
        ns.ip("neigh add fd00::2 lladdr 0a:58:0a:f4:01:02 dev br0 nud reachable");
        ns.ip("neigh add 10.244.1.3 lladdr 0a:58:0a:f4:01:03 dev br0 nud permanent");
        let mut netlink = Netlink::open().unwrap();
        netlink.forget_neighbours().unwrap();
        netlink.forget_neighbours().unwrap();
        let left = ns.ip("neigh show dev br0");
        let left: Vec<_> = left.as_array().unwrap().iter().map(|n| &n["dst"]).collect();
        assert_eq!(left, ["10.244.1.3"]);
    }
}
