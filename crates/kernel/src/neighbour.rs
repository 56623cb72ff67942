//! Neighbours: who has which address on a link. What the kernel has found out, and how to make it forget; and what is
//! written down, so that nothing need be found out.
//!
//! Only what was found out is forgotten: what somebody wrote down (`permanent`) stays, and so do the entries that need no
//! finding out (`noarp`). A surprise: each namespace sees its own, but the kernel counts those of all namespaces together
//! (`gc_entries` of `struct neigh_table`), and beyond `gc_thresh3` nobody on the machine finds a new one. What was
//! written down does not count (`exempt_from_gc`).

use std::net::IpAddr;

use crate::encode::{Attributes, Encoder, NLM_F_CREATE, NLM_F_REPLACE, ip};
use crate::error::Result;
use crate::link::{AF_INET, AF_INET6, family};
use crate::names::Mac;
use crate::netlink::{Netlink, message};

/// Attributes (linux/neighbour.h).
pub(crate) const NDA_DST: u16 = 1;
pub(crate) const NDA_LLADDR: u16 = 2;
const NDA_IFINDEX: u16 = 8;
/// `ndm_state`.
const NUD_NONE: u16 = 0;
const NUD_INCOMPLETE: u16 = 0x01;
const NUD_FAILED: u16 = 0x20;
pub(crate) const NUD_NOARP: u16 = 0x40;
pub(crate) const NUD_PERMANENT: u16 = 0x80;
/// `ndm_flags`: in the table of the link itself, in that of the bridge that it is a port of, and not to be moved.
pub(crate) const NTF_SELF: u8 = 0x02;
pub(crate) const NTF_MASTER: u8 = 0x04;
pub(crate) const NTF_STICKY: u8 = 0x40;

/// What matters of `struct ndmsg`, which is before the attributes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) family: u8,
    pub(crate) link: u32,
    pub(crate) state: u16,
    pub(crate) flags: u8,
}

impl Header {
    /// A request that begins with it.
    pub(crate) fn request(self, kind: u16) -> Encoder {
        let mut request = Encoder::request(kind);
        request.plain(&[self.family, 0, 0, 0]);
        request.plain(&self.link.to_ne_bytes());
        request.plain(&self.state.to_ne_bytes());
        request.plain(&[self.flags, 0]);
        request
    }

    /// Reads it, and gives the attributes behind it.
    pub(crate) fn read(message: &[u8]) -> Option<(Self, Attributes<'_>)> {
        let (header, attributes) = message.split_first_chunk::<12>()?;
        let [family, _, _, _, a, b, c, d, e, f, flags, _] = *header;
        let header = Self {
            family,
            link: u32::from_ne_bytes([a, b, c, d]),
            state: u16::from_ne_bytes([e, f]),
            flags,
        };
        Some((header, Attributes(attributes)))
    }
}

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
        let request = about_all(family(ip), link);
        let states = self.dump(request, "list neighbours", |neighbour| {
            let (header, attributes) = Header::read(neighbour)?;
            let is_it = header.link == link && destination(attributes) == Some(ip);
            is_it.then_some(header.state)
        })?;
        Ok(match states.first() {
            None | Some(&NUD_NONE) => Reachability::Unknown,
            Some(&NUD_INCOMPLETE) => Reachability::Asked,
            Some(&NUD_FAILED) => Reachability::Failed,
            Some(_) => Reachability::Known,
        })
    }

    /// The neighbours on that link that somebody wrote down, IPv4 first.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn list_permanent_neighbours(&mut self, link: u32) -> Result<Vec<Neighbour>> {
        let mut all = Vec::new();
        for family in [AF_INET, AF_INET6] {
            let request = about_all(family, link);
            all.extend(self.dump(request, "list neighbours", |neighbour| {
                let (header, attributes) = Header::read(neighbour)?;
                let is_it =
                    (header.family, header.link) == (family, link) && header.state == NUD_PERMANENT;
                read_neighbour(attributes).filter(|_| is_it)
            })?);
        }
        Ok(all)
    }

    /// Writes down who has an address on a link, in the place of what is known of that address.
    ///
    /// # Errors
    /// Not found; what the kernel answered.
    pub fn replace_neighbour(&mut self, link: u32, neighbour: Neighbour) -> Result<()> {
        let Neighbour { ip, mac } = neighbour;
        let mut request = about(message::NEW_NEIGHBOUR, (link, NUD_PERMANENT), ip);
        request.bytes_attribute(NDA_LLADDR, &mac.0);
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.change(request, flags, || {
            format!("replace neighbour {ip} lladdr {mac} dev {link}")
        })
    }

    /// Forgets who has an address on a link; that nothing is known of it is fine.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn remove_neighbour(&mut self, link: u32, ip: IpAddr) -> Result<()> {
        let request = about(message::DELETE_NEIGHBOUR, (link, NUD_NONE), ip);
        match self.change(request, 0, || format!("remove neighbour {ip} dev {link}")) {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Forgets every neighbour that was found out, of both families.
    ///
    /// # Errors
    /// What the kernel answered; that one is gone already is fine.
    pub fn forget_neighbours(&mut self) -> Result<()> {
        let request = Header::default().request(message::GET_NEIGHBOUR);
        let found = self.dump(request, "list neighbours", |neighbour| {
            let (header, attributes) = Header::read(neighbour)?;
            let ip = destination(attributes)?;
            is_found_out(header).then_some((header, ip))
        })?;
        for (header, ip) in found {
            let mut request = header.request(message::DELETE_NEIGHBOUR);
            request.ip(NDA_DST, ip);
            let action = || "forget neighbour".to_owned();
            match self.change(request, 0, action) {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// A question for the neighbours of a family on a link. The kernel filters by the attribute; the header's own index it refuses
/// here (`neigh_valid_dump_req`).
fn about_all(family: u8, link: u32) -> Encoder {
    let header = Header {
        family,
        ..Header::default()
    };
    let mut request = header.request(message::GET_NEIGHBOUR);
    request.native32(NDA_IFINDEX, link);
    request
}

fn about(kind: u16, (link, state): (u32, u16), ip: IpAddr) -> Encoder {
    let header = Header {
        family: family(ip),
        link,
        state,
        flags: 0,
    };
    let mut request = header.request(kind);
    request.ip(NDA_DST, ip);
    request
}

fn destination(attributes: Attributes<'_>) -> Option<IpAddr> {
    ip(attributes.find(NDA_DST)?)
}

fn read_neighbour(attributes: Attributes<'_>) -> Option<Neighbour> {
    Some(Neighbour {
        ip: destination(attributes)?,
        mac: attributes.find(NDA_LLADDR)?.try_into().ok().map(Mac)?,
    })
}

fn is_found_out(header: Header) -> bool {
    matches!(header.family, AF_INET | AF_INET6)
        && !matches!(header.state, NUD_PERMANENT | NUD_NOARP | NUD_NONE)
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
