//! The connections that the kernel follows (ctnetlink): those to a port or all, forgetting one, and forgetting an address.
//!
//! A connection keeps the translation of its first packet for as long as packets come, so that a sender with a steady
//! source port never sees a new rule. Which connections are stale is the caller's affair. Only the default zone is looked
//! at, but for an address. A surprise: where a kernel before 5.8 lists all connections, they are sorted out here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::net::AddressFamily;

use crate::encode::{Attributes, Encoder, Header, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use crate::error::Result;
use crate::netlink::{Refusal, u16_at};
use crate::nfnetlink::Nfnetlink;

/// `NFNL_SUBSYS_CTNETLINK` (linux/netfilter/nfnetlink.h).
const SUBSYSTEM: u16 = 1;
/// `IPCTNL_MSG_CT_GET` (linux/netfilter/nfnetlink_conntrack.h).
const GET: u16 = SUBSYSTEM << 8 | 1;
/// `IPCTNL_MSG_CT_DELETE`.
const DELETE: u16 = SUBSYSTEM << 8 | 2;
/// `CTA_FILTER_F_CTA_PROTO_NUM | CTA_FILTER_F_CTA_PROTO_DST_PORT` (net/netfilter/nf_internals.h): what of the tuple in a
/// question counts.
const FILTER_PROTOCOL_AND_PORT: u32 = 1 << 3 | 1 << 5;

/// The attributes of a connection (`enum ctattr_type`) and of what is in them.
mod attribute {
    pub(super) const TUPLE_ORIG: u16 = 1;
    pub(super) const TUPLE_REPLY: u16 = 2;
    pub(super) const ID: u16 = 12;
    pub(super) const ZONE: u16 = 18;
    pub(super) const FILTER: u16 = 25;
    /// `CTA_FILTER_ORIG_FLAGS`.
    pub(super) const FILTER_ORIG_FLAGS: u16 = 1;
    /// `CTA_TUPLE_IP`.
    pub(super) const IP: u16 = 1;
    /// `CTA_TUPLE_PROTO`.
    pub(super) const PROTO: u16 = 2;
    pub(super) const IP_V4: [u16; 2] = [1, 2];
    pub(super) const IP_V6: [u16; 2] = [3, 4];
    pub(super) const PROTO_NUM: u16 = 1;
    pub(super) const PROTO_PORTS: [u16; 2] = [2, 3];
}

/// A connection to netfilter's table of connections, in the network namespace that it was opened in.
pub struct Conntrack {
    link: Nfnetlink,
}

/// A connection, by its first packet before anything was translated, and by who answers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// The transport protocol (`IPPROTO_*`, linux/in.h).
    pub protocol: u8,
    /// Who sent it.
    pub source: SocketAddr,
    /// Where it went.
    pub destination: SocketAddr,
    /// Who answers, which is another where the destination was translated.
    pub answered_by: SocketAddr,
    /// The kernel's own words for it: the tuple and the number.
    tuple: Vec<u8>,
    id: Vec<u8>,
}

impl Conntrack {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// What `socket`, `bind` or `setsockopt` answered; EPROTONOSUPPORT from a kernel without nfnetlink.
    pub fn open() -> Result<Self> {
        Ok(Self {
            link: Nfnetlink::open("conntrack")?,
        })
    }

    /// All connections of that transport protocol whose first packet went to that port, of both families.
    ///
    /// # Errors
    /// What the kernel answered; EINVAL from one that does not tell of connections (no `CONFIG_NF_CT_NETLINK`).
    pub fn list(&mut self, protocol: u8, port: u16) -> Result<Vec<Connection>> {
        let question = |to: &mut Encoder| {
            to.nest(attribute::TUPLE_ORIG, |tuple| {
                tuple.nest(attribute::PROTO, |to| {
                    to.bytes_attribute(attribute::PROTO_NUM, &[protocol]);
                    to.bytes_attribute(attribute::PROTO_PORTS[1], &port.to_be_bytes());
                });
            });
            to.nest(attribute::FILTER, |to| {
                // In the machine's own order, unlike everything else.
                let flags = FILTER_PROTOCOL_AND_PORT.to_ne_bytes();
                to.bytes_attribute(attribute::FILTER_ORIG_FLAGS, &flags);
            });
        };
        let wanted =
            |known: &Connection| known.protocol == protocol && known.destination.port() == port;
        let mut all = Vec::new();
        // A question is of one family.
        for family in [AddressFamily::INET, AddressFamily::INET6] {
            let found = self.dump(family, question, wanted).map_err(|refusal| {
                refusal.into_error(format!("list connections to port {port}"))
            })?;
            all.extend(found);
        }
        Ok(all)
    }

    /// All connections that are `wanted`, of both families, of protocols with ports.
    ///
    /// # Errors
    /// As with [`Self::list`].
    pub fn list_where(&mut self, wanted: impl Fn(&Connection) -> bool) -> Result<Vec<Connection>> {
        // One walk over the table, as in [`Self::forget`].
        self.dump(AddressFamily::UNSPEC, |_| {}, wanted)
            .map_err(|refusal| refusal.into_error("list connections".to_owned()))
    }

    fn dump(
        &mut self,
        family: AddressFamily,
        question: impl Fn(&mut Encoder),
        wanted: impl Fn(&Connection) -> bool,
    ) -> std::result::Result<Vec<Connection>, Refusal> {
        let mut found = Vec::new();
        let header = header(GET, NLM_F_DUMP, family);
        self.link.dump(header, question, |part| match part {
            None => found.clear(),
            Some(attributes) => {
                found.extend(Connection::read(attributes).filter(|known| wanted(known)));
            }
        })?;
        Ok(found)
    }

    /// Forgets a connection; that it is not there is fine. Its next packet is the first of a new one.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn remove(&mut self, connection: &Connection) -> Result<()> {
        let family = match connection.source {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let asked = self.link.ask(
            header(DELETE, NLM_F_ACK, family),
            |to| {
                to.nest_bytes(attribute::TUPLE_ORIG, &connection.tuple);
                to.bytes_attribute(attribute::ID, &connection.id);
            },
            |_| {},
        );
        let action = || {
            let Connection {
                source,
                destination,
                ..
            } = connection;
            format!("remove connection from {source} to {destination}")
        };
        match asked.map_err(|refusal| refusal.into_error(action())) {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}

impl Conntrack {
    /// Forgets all connections that begin at one of the addresses or are answered by one, of all protocols and zones; that
    /// there are none is fine.
    ///
    /// One walk over all connections: the kernel's table has so many rows that a walk costs ten milliseconds however few
    /// there are, and of IPv6 it chooses just those that it should not (`ctnetlink_filter_match_tuple`, seen with 6.18).
    ///
    /// # Errors
    /// What the kernel answered, after all that could be forgotten was; EINVAL from one that does not tell of connections.
    pub fn forget(&mut self, ips: &[IpAddr]) -> Result<()> {
        let mut found: Vec<Known> = Vec::new();
        let all_families = AddressFamily::UNSPEC;
        let listed = self.link.dump(
            header(GET, NLM_F_DUMP, all_families),
            |_| {},
            |part| match part {
                None => found.clear(),
                Some(attributes) => found.extend(Known::read(attributes, ips)),
            },
        );
        listed.map_err(|refusal| refusal.into_error("list connections".into()))?;
        let mut outcome = Ok(());
        for known in found {
            let asked = self.link.ask(
                header(DELETE, NLM_F_ACK, known.family),
                |to| known.encode(to),
                |_| {},
            );
            match asked.map_err(|refusal| refusal.into_error("remove a connection".into())) {
                Err(error) if !error.is_not_found() => outcome = Err(error),
                _ => {}
            }
        }
        outcome
    }
}

/// A connection in the kernel's own words.
struct Known {
    family: AddressFamily,
    tuple: Vec<u8>,
    id: Vec<u8>,
    zone: Option<Vec<u8>>,
}

impl Known {
    /// None for one that neither begins at one of the addresses nor is answered by one.
    fn read(attributes: Attributes<'_>, ips: &[IpAddr]) -> Option<Self> {
        let tuples = [attribute::TUPLE_ORIG, attribute::TUPLE_REPLY];
        let mut sources = tuples.iter().filter_map(|tuple| source(attributes, *tuple));
        let ip = sources.find(|ip| ips.contains(ip))?;
        Some(Self {
            family: match ip {
                IpAddr::V4(_) => AddressFamily::INET,
                IpAddr::V6(_) => AddressFamily::INET6,
            },
            tuple: attributes.find(attribute::TUPLE_ORIG)?.to_vec(),
            id: attributes.find(attribute::ID)?.to_vec(),
            zone: attributes.find(attribute::ZONE).map(<[u8]>::to_vec),
        })
    }

    fn encode(&self, to: &mut Encoder) {
        to.nest_bytes(attribute::TUPLE_ORIG, &self.tuple);
        to.bytes_attribute(attribute::ID, &self.id);
        if let Some(zone) = &self.zone {
            to.bytes_attribute(attribute::ZONE, zone);
        }
    }
}

/// Who sent the first packet, or the first answer, by the tuple's kind.
fn source(attributes: Attributes<'_>, tuple: u16) -> Option<IpAddr> {
    let ip = attributes.inside(tuple)?.inside(attribute::IP)?;
    match ip.find(attribute::IP_V4[0]) {
        Some(bytes) => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        None => {
            let bytes = ip.find(attribute::IP_V6[0])?;
            Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into())
        }
    }
}

impl Connection {
    /// None for a connection of another zone, or of a protocol without ports.
    fn read(attributes: Attributes<'_>) -> Option<Self> {
        if attributes.find(attribute::ZONE).is_some() {
            return None;
        }
        let tuple = attributes.find(attribute::TUPLE_ORIG)?;
        let (protocol, [source, destination]) = read_tuple(Attributes(tuple))?;
        let reply = Attributes(attributes.find(attribute::TUPLE_REPLY)?);
        let (_, [answered_by, _]) = read_tuple(reply)?;
        Some(Self {
            protocol,
            source,
            destination,
            answered_by,
            tuple: tuple.to_vec(),
            id: attributes.find(attribute::ID)?.to_vec(),
        })
    }
}

/// The transport protocol, and both ends.
fn read_tuple(tuple: Attributes<'_>) -> Option<(u8, [SocketAddr; 2])> {
    let (ip, proto) = (
        tuple.inside(attribute::IP)?,
        tuple.inside(attribute::PROTO)?,
    );
    let address = |end: usize| -> Option<IpAddr> {
        let [v4, v6] = [attribute::IP_V4, attribute::IP_V6].map(|kinds| kinds.get(end).copied());
        match ip.find(v4?) {
            Some(bytes) => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
            None => Some(Ipv6Addr::from(<[u8; 16]>::try_from(ip.find(v6?)?).ok()?).into()),
        }
    };
    let port = |end: usize| {
        let bytes = proto.find(*attribute::PROTO_PORTS.get(end)?)?;
        u16_at(bytes, 0).map(u16::from_be)
    };
    let protocol = *proto.find(attribute::PROTO_NUM)?.first()?;
    let end = |end| Some(SocketAddr::new(address(end)?, port(end)?));
    Some((protocol, [end(0)?, end(1)?]))
}

fn header(kind: u16, flags: u16, family: AddressFamily) -> Header {
    Header {
        kind,
        flags: NLM_F_REQUEST | flags,
        // AF_INET and AF_INET6 are small numbers.
        family: family.as_raw().try_into().unwrap_or_default(),
        resource: 0,
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::nft::{
        Base, Batch, Chain, CtState, Family, Hook, Nft, Rule, Table, Verdict, priority,
    };
    use crate::testing::TestNs;

    const UDP: u8 = 17;

    /// Connections are followed only where somebody asks for their state.
    fn follow() {
        let table = Table {
            family: Family::Inet,
            name: "t",
        };
        let chain = Chain::hooked(table, "c", Base::filter(Hook::Output, priority::FILTER));
        let mut batch = Batch::new();
        batch.add_table(table);
        batch.add_chain(chain);
        batch.add_rule(
            &Rule::of(chain)
                .ct_state(&[CtState::New])
                .verdict(&Verdict::Accept),
        );
        Nft::open().unwrap().commit(batch).unwrap();
    }

    #[test]
    fn connections_to_a_port_are_listed_and_forgotten_and_others_stay() {
        let _ns = TestNs::new();
        follow();
        let send = |from: &str, to: &str| {
            let socket = UdpSocket::bind(from).unwrap();
            socket.send_to(b"x", to).unwrap();
            socket.local_addr().unwrap()
        };
        let four = send("127.0.0.1:0", "127.0.0.1:53");
        let six = send("[::1]:0", "[::1]:53");
        send("127.0.0.1:0", "127.0.0.1:54");
        let mut conntrack = Conntrack::open().unwrap();
        let found = conntrack.list(UDP, 53).unwrap();
        let ends: Vec<_> = found
            .iter()
            .map(|c| (c.source, c.destination.to_string()))
            .collect();
        assert_eq!(
            ends,
            [
                (four, "127.0.0.1:53".to_owned()),
                (six, "[::1]:53".to_owned())
            ]
        );
        for connection in &found {
            conntrack.remove(connection).unwrap();
            conntrack.remove(connection).unwrap();
        }
        assert_eq!(conntrack.list(UDP, 53).unwrap(), []);
        assert_eq!(conntrack.list(6, 54).unwrap(), []);
        let all = conntrack
            .list_where(|known| known.source.is_ipv4())
            .unwrap();
        let ends: Vec<_> = all
            .iter()
            .map(|known| (known.destination, known.answered_by))
            .collect();
        let other = "127.0.0.1:54".parse().unwrap();
        assert_eq!(ends, [(other, other)]);
        assert_eq!(conntrack.list(UDP, 54).unwrap().len(), 1);
    }

    #[test]
    fn what_begins_at_an_address_or_is_answered_by_it_is_forgotten_and_nothing_else() {
        let _ns = TestNs::new();
        follow();
        let socket = |at: &str| UdpSocket::bind(at).unwrap();
        let ends = [
            ("127.0.0.1:0", "127.0.0.2:53"),
            ("127.0.0.2:0", "127.0.0.3:53"),
            ("127.0.0.1:0", "127.0.0.3:53"),
            ("[::1]:0", "[::1]:53"),
        ];
        for (from, to) in ends {
            socket(from).send_to(b"x", to).unwrap();
        }
        let mut conntrack = Conntrack::open().unwrap();
        let count = |conntrack: &mut Conntrack| conntrack.list(UDP, 53).unwrap().len();
        assert_eq!(count(&mut conntrack), 4);
        for _ in 0..2 {
            conntrack.forget(&["127.0.0.2".parse().unwrap()]).unwrap();
            let left = conntrack.list(UDP, 53).unwrap();
            let ends: Vec<_> = left
                .iter()
                .map(|c| (c.source.ip().to_string(), c.destination.to_string()))
                .collect();
            let four = ("127.0.0.1".to_owned(), "127.0.0.3:53".to_owned());
            assert_eq!(ends, [four, ("::1".to_owned(), "[::1]:53".to_owned())]);
        }
        let both = ["::1", "127.0.0.9"].map(|ip| ip.parse().unwrap());
        conntrack.forget(&both).unwrap();
        assert_eq!(count(&mut conntrack), 1);
    }
}
