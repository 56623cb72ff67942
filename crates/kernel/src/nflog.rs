//! Packets that rules log to a group (nfnetlink_log): who sent them to whom, and what the rule says of them.
//!
//! A rule that logs to a group costs next to nothing while nobody listens there. One listens at a time: the kernel gives a
//! group to the first that asks, and takes it back when its socket is closed, however it ended. How much is logged is for the
//! rule to limit; what does not fit into the socket's buffer is lost, and that it was is told.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};

use crate::encode::{Attributes, Encoder, Header, NLM_F_ACK, NLM_F_REQUEST};
use crate::error::Result;
use crate::netlink::{Refusal, split_message, u16_at};
use crate::nfnetlink::Nfnetlink;

/// `NFNL_SUBSYS_ULOG` (linux/netfilter/nfnetlink.h).
const SUBSYSTEM: u16 = 4;
/// `NFULNL_MSG_PACKET` (linux/netfilter/nfnetlink_log.h).
const PACKET: u16 = SUBSYSTEM << 8;
/// `NFULNL_MSG_CONFIG`.
const CONFIG: u16 = SUBSYSTEM << 8 | 1;
/// `NFULNL_CFG_CMD_BIND`.
const BIND: u8 = 1;
/// `NFULNL_COPY_PACKET`.
const COPY_PACKET: u8 = 2;
/// How much of each packet is copied, in bytes: the IP header with what it may be extended by, and the ports.
const COPIED: u32 = 256;
/// `sizeof(struct nfgenmsg)`.
const GENERIC_HEADER: usize = 4;

/// What a packet is, of its outermost IP header and what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// Who sent it.
    pub source: IpAddr,
    /// Whom to.
    pub destination: IpAddr,
    /// What is in it (`IPPROTO_*`, linux/in.h).
    pub protocol: u8,
    /// The ports of the sender and of the receiver; none of a protocol without ports, and of a fragment that is not the first.
    pub ports: Option<(u16, u16)>,
}

/// A packet that a rule has logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedPacket {
    /// What the rule says.
    pub prefix: String,
    /// What it is; none where that cannot be read.
    pub ends: Option<Ends>,
}

/// What came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Logged {
    /// The packets, in their order.
    pub packets: Vec<LoggedPacket>,
    /// More came than the socket's buffer holds.
    pub lost: bool,
}

/// A listener to one group, in the network namespace of the thread that opened it.
pub struct PacketLog {
    link: Nfnetlink,
}

impl PacketLog {
    /// Listens to that group. What is logged from now on is not missed.
    ///
    /// # Errors
    /// EPERM or EBUSY when somebody else listens to it; what else the kernel answered, such as EINVAL from one without
    /// nfnetlink_log.
    pub fn open(group: u16) -> Result<Self> {
        let mut link = Nfnetlink::open("packet log")?;
        let header = Header {
            kind: CONFIG,
            flags: NLM_F_REQUEST | NLM_F_ACK,
            family: 0,
            resource: group,
        };
        let body = |to: &mut Encoder| {
            to.bytes_attribute(1, &[BIND]); // NFULA_CFG_CMD
            let [a, b, c, d] = COPIED.to_be_bytes();
            to.bytes_attribute(2, &[a, b, c, d, COPY_PACKET, 0]); // NFULA_CFG_MODE
            to.number32(5, 1); // NFULA_CFG_QTHRESH: each packet at once
        };
        link.ask(header, body, |_| {}).map_err(|refusal| {
            refusal.into_error(format!("listen to group {group} of the packet log"))
        })?;
        Ok(Self { link })
    }

    /// What has come; waits no longer than that for something to come.
    ///
    /// # Errors
    /// What `recv` or `setsockopt` answered, other than interruption, overrun and that nothing came.
    pub fn receive(&mut self, wait: Duration) -> Result<Logged> {
        self.try_receive(wait)
            .map_err(|refusal| refusal.into_error("read the packet log".to_owned()))
    }

    fn try_receive(&mut self, wait: Duration) -> std::result::Result<Logged, Refusal> {
        let mut logged = Logged::default();
        // None is for ever.
        let wait = wait.max(Duration::from_millis(1));
        sockopt::set_socket_timeout(&self.link.socket, Timeout::Recv, Some(wait))?;
        self.link.buffer.clear();
        if let Err(error) = self.link.socket.recv(&mut self.link.buffer, 0) {
            let refusal = Refusal::from_io(&error);
            return match refusal.errno {
                Errno::AGAIN | Errno::INTR => Ok(logged),
                Errno::NOBUFS => {
                    logged.lost = true;
                    Ok(logged)
                }
                _ => Err(refusal),
            };
        }
        let mut rest = self.link.buffer.as_slice();
        while let Some(message) = split_message(&mut rest)? {
            if message.kind == PACKET {
                logged.packets.extend(read(message.payload));
            }
        }
        Ok(logged)
    }
}

fn read(payload: &[u8]) -> Option<LoggedPacket> {
    let attributes = Attributes(payload.get(GENERIC_HEADER..)?);
    let prefix = attributes.find(10).unwrap_or_default(); // NFULA_PREFIX
    let prefix = prefix.split(|byte| *byte == 0).next().unwrap_or_default();
    Some(LoggedPacket {
        prefix: String::from_utf8_lossy(prefix).into_owned(),
        ends: attributes.find(9).and_then(Ends::read), // NFULA_PAYLOAD
    })
}

impl Ends {
    /// Of the first bytes of a packet, from its IP header on (RFC 791, section 3.1; RFC 8200, section 3).
    fn read(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Self::read4(packet),
            6 => Self::read6(packet),
            _ => None,
        }
    }

    fn read4(packet: &[u8]) -> Option<Self> {
        let address = |at: usize| {
            let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
            Some(IpAddr::from(Ipv4Addr::from(bytes)))
        };
        let header = usize::from(packet.first()? & 0xf) * 4;
        let is_first = be16(packet, 6)? & 0x1fff == 0;
        let protocol = *packet.get(9)?;
        Some(Self {
            source: address(12)?,
            destination: address(16)?,
            protocol,
            ports: ports(protocol, packet.get(header..).filter(|_| is_first)),
        })
    }

    fn read6(packet: &[u8]) -> Option<Self> {
        let address = |at: usize| {
            let bytes: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
            Some(IpAddr::from(Ipv6Addr::from(bytes)))
        };
        let mut protocol = *packet.get(6)?;
        let mut rest = packet.get(40..);
        // Hop-by-hop options, routing, fragment, options of the destination: each says what is next, and how long it is.
        while let (0 | 43 | 44 | 60, Some([next, length, ..])) = (protocol, rest) {
            let is_fragment = protocol == 44;
            let is_later = is_fragment && be16(rest?, 2)? & 0xfff8 != 0;
            let header = match is_fragment {
                true => 8,
                false => (usize::from(*length) + 1) * 8,
            };
            protocol = *next;
            rest = rest?.get(header..).filter(|_| !is_later);
        }
        Some(Self {
            source: address(8)?,
            destination: address(24)?,
            protocol,
            ports: ports(protocol, rest),
        })
    }
}

/// The ports of TCP, UDP, SCTP, which all have them in the same place.
fn ports(protocol: u8, segment: Option<&[u8]>) -> Option<(u16, u16)> {
    let segment = segment.filter(|_| [6, 17, 132].contains(&protocol))?;
    Some((be16(segment, 0)?, be16(segment, 2)?))
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    u16_at(bytes, at).map(u16::from_be)
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, UdpSocket};

    use super::*;
    use crate::nft::{
        Base, Batch, Chain, Family, Field, Hook, Limit, LimitUnit, Nft, Rule, Table, Value,
        Verdict, priority,
    };
    use crate::testing::TestNs;

    const GROUP: u16 = 77;
    const SOON: Duration = Duration::from_secs(10);

    /// What goes to that port is dropped, and logged as often as `limit` says.
    fn drop_and_log(port: u16, rate: u64) {
        let table = Table {
            family: Family::Inet,
            name: "t",
        };
        let chain = Chain::hooked(table, "out", Base::filter(Hook::Output, priority::FILTER));
        let mut batch = Batch::new();
        batch.add_table(table);
        batch.add_chain(chain);
        let limit = Limit {
            rate,
            seconds: 3600,
            burst: 1,
            unit: LimitUnit::Packets,
            over: false,
        };
        let to = || Rule::of(chain).is(Field::DPORT, Value::Port(port));
        batch.add_rule(&to().limit(limit).log_to(GROUP, "denied by me"));
        batch.add_rule(&to().verdict(&Verdict::Drop));
        Nft::open().unwrap().commit(batch).unwrap();
    }

    /// Sends a datagram, which does not arrive; the port that it came from.
    fn send(to: &str) -> u16 {
        let to: SocketAddr = to.parse().unwrap();
        let any = if to.is_ipv4() {
            "127.0.0.1:0"
        } else {
            "[::1]:0"
        };
        let socket = UdpSocket::bind(any).unwrap();
        let refused = socket.send_to(b"hello", to).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
        socket.local_addr().unwrap().port()
    }

    fn told(log: &mut PacketLog) -> Option<LoggedPacket> {
        let mut logged = log.receive(SOON).unwrap();
        assert!(logged.packets.len() < 2 && !logged.lost);
        logged.packets.pop()
    }

    #[test]
    fn what_a_rule_logs_is_told_with_its_ends_and_the_rule_s_words() {
        let _ns = TestNs::new();
        drop_and_log(9, 3600 * 1000);
        send("127.0.0.1:9"); // Nobody listens.
        let mut log = PacketLog::open(GROUP).unwrap();
        for (ip, to) in [("127.0.0.1", "127.0.0.1:9"), ("::1", "[::1]:9")] {
            // A little later, for the limit of one at once.
            std::thread::sleep(Duration::from_millis(5));
            let port = send(to);
            let expected = LoggedPacket {
                prefix: "denied by me".to_owned(),
                ends: Some(Ends {
                    source: ip.parse().unwrap(),
                    destination: ip.parse().unwrap(),
                    protocol: 17,
                    ports: Some((port, 9)),
                }),
            };
            assert_eq!(told(&mut log), Some(expected));
        }
    }

    #[test]
    fn the_rule_s_limit_holds_and_that_nothing_came_is_no_error() {
        let _ns = TestNs::new();
        drop_and_log(9, 1);
        let mut log = PacketLog::open(GROUP).unwrap();
        let first = send("127.0.0.1:9");
        for _ in 0..50 {
            send("127.0.0.1:9");
        }
        let ends = told(&mut log).and_then(|packet| packet.ends).unwrap();
        assert_eq!(ends.ports, Some((first, 9)));
        let nothing = log.receive(Duration::from_millis(20)).unwrap();
        let nothing = [nothing, log.receive(Duration::ZERO).unwrap()];
        // The limit's burst may have let another through, but not fifty.
        let more: usize = nothing.iter().map(|logged| logged.packets.len()).sum();
        assert!(more <= 1, "{more}");
    }

    #[test]
    fn a_group_is_one_listener_s_until_it_ends() {
        let _ns = TestNs::new();
        let log = PacketLog::open(GROUP).unwrap();
        let refused = PacketLog::open(GROUP).err().unwrap();
        assert!(
            [Errno::PERM, Errno::BUSY].contains(&refused.errno()),
            "{refused}"
        );
        PacketLog::open(GROUP + 1).unwrap();
        drop(log);
        PacketLog::open(GROUP).unwrap();
    }

    #[test]
    fn headers_before_the_ports_are_passed_over_and_later_fragments_have_none() {
        let address: [u8; 16] = "fd00::2".parse::<Ipv6Addr>().unwrap().octets();
        let packet = |first: u8, headers: &[u8]| {
            let mut packet = vec![0x60, 0, 0, 0, 0, 0, first, 64];
            packet.extend([address, address].concat());
            packet.extend(headers);
            packet.extend([0x12, 0x34, 0x00, 0x50]);
            Ends::read(&packet).map(|ends| (ends.protocol, ends.ports))
        };
        let ports = Some((0x1234, 80));
        assert_eq!(packet(6, &[]), Some((6, ports)));
        let options = [60, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let fragment = |offset: u8| [132, 0, 0, offset, 0, 0, 0, 1];
        let destination = [44, 0, 0, 0, 0, 0, 0, 0];
        let all = |offset| [&options[..], &destination, &fragment(offset)].concat();
        assert_eq!(packet(0, &all(1)), Some((132, ports)));
        assert_eq!(packet(0, &all(8)), Some((132, None)));
        assert_eq!(packet(58, &[]), Some((58, None)));

        let mut packet4 = vec![0x46, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0];
        packet4.extend([10, 0, 0, 1, 10, 0, 0, 2, 1, 1, 1, 1, 0x12, 0x34, 0, 80]);
        let ends = Ends::read(&packet4).unwrap();
        assert_eq!(ends.source, IpAddr::from([10, 0, 0, 1]));
        assert_eq!((ends.protocol, ends.ports), (17, ports));
        packet4[7] = 1;
        assert_eq!(Ends::read(&packet4).unwrap().ports, None);
        for cut in 0..20 {
            assert_eq!(Ends::read(&packet4[..cut]), None, "{cut}");
        }
        assert_eq!(Ends::read(&[0x10; 60]), None);
    }
}
