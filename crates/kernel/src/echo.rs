//! ICMP echo: whether packets of a size reach an address, unfragmented, and what machines on the way say about it.
//!
//! A raw socket, not a connected one: what a router says comes from the router. The kernel's knowledge of the path is not
//! heeded (`IP_PMTUDISC_PROBE`), only the MTU of the link that a packet leaves by.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, recvfrom, sendto,
    socket_with,
};

use crate::error::{Error, Result};

/// Types of ICMP (RFC 792) and ICMPv6 (RFC 4443): echo, its answer, unreachable, and of ICMPv6 *packet too big*, which is the
/// fourth code of unreachable in ICMP.
const ECHO: (u8, u8) = (8, 128);
const ANSWER: (u8, u8) = (0, 129);
const UNREACHABLE: (u8, u8) = (3, 1);
const TOO_BIG_CODE: u8 = 4;
const TOO_BIG_V6: u8 = 2;
/// The header of an echo, and those of IPv4 without options and of IPv6, in bytes.
const ECHO_HEADER: usize = 8;
const IP_HEADER: (usize, usize) = (20, 40);

/// Asks one address, from the network namespace that it was opened in.
#[derive(Debug)]
pub struct Echo {
    socket: OwnedFd,
    to: IpAddr,
    /// Tells our echoes from those of others.
    id: u16,
    number: u16,
}

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// It came back, after that time.
    Answered(Duration),
    /// It was too large for a link: of this machine, or of one that says so, with the MTU that it names.
    TooLarge {
        /// Who says so; none is this machine itself.
        from: Option<IpAddr>,
        /// The MTU of that link in bytes, where it is told.
        mtu: Option<u32>,
    },
    /// Somebody says that the address is not reached; none is this machine itself.
    Unreachable(Option<IpAddr>),
    /// Nobody said anything.
    Silent,
}

impl Echo {
    /// Prepares to ask that address.
    ///
    /// # Errors
    /// EPERM without CAP_NET_RAW; what the kernel answered.
    pub fn open(to: IpAddr) -> Result<Self> {
        let action = || format!("open an ICMP socket for {to}");
        let failed = |errno| Error::new(action(), errno);
        let (family, protocol) = match to {
            IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
            IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(family, SocketType::RAW, flags, Some(protocol)).map_err(failed)?;
        match to {
            IpAddr::V4(_) => set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE),
            IpAddr::V6(_) => set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::PROBE),
        }
        .map_err(failed)?;
        let process = std::process::id().to_be_bytes();
        Ok(Self {
            socket,
            to,
            id: u16::from_be_bytes([process[2], process[3]]),
            number: 0,
        })
    }

    /// Sends a packet of that size in bytes, with all headers of IP, and waits for what becomes of it.
    ///
    /// # Errors
    /// What the kernel answered, other than that it does not go there.
    pub fn ask(&mut self, bytes: u32, patience: Duration) -> Result<Reply> {
        self.number = self.number.wrapping_add(1);
        let packet = self.packet(bytes);
        let begin = Instant::now();
        let failed = |errno| Error::new(format!("ask {} by ICMP", self.to), errno);
        let to = SocketAddr::new(self.to, 0);
        match sendto(&self.socket, &packet, SendFlags::empty(), &to) {
            Ok(_) => {}
            Err(Errno::MSGSIZE) => {
                let (from, mtu) = (None, None);
                return Ok(Reply::TooLarge { from, mtu });
            }
            Err(Errno::NETUNREACH | Errno::HOSTUNREACH) => return Ok(Reply::Unreachable(None)),
            Err(errno) => return Err(failed(errno)),
        }
        let mut answer = vec![0; 65536];
        loop {
            let left = patience.saturating_sub(begin.elapsed());
            let left = Timespec::try_from(left).unwrap_or_default();
            let mut wait = [PollFd::new(&self.socket, PollFlags::IN)];
            match poll(&mut wait, Some(&left)) {
                Ok(0) => return Ok(Reply::Silent),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(failed(errno)),
            }
            let (length, from) = match recvfrom(&self.socket, &mut answer, RecvFlags::empty()) {
                Ok((length, _, from)) => (length, from),
                Err(Errno::AGAIN | Errno::INTR) => continue,
                // An error about the packet, which this machine met itself.
                Err(Errno::HOSTUNREACH | Errno::NETUNREACH) => return Ok(Reply::Unreachable(None)),
                Err(errno) => return Err(failed(errno)),
            };
            let from = from.and_then(|from| SocketAddr::try_from(from).ok());
            let from = from.map(|from| from.ip());
            let read = answer
                .get(..length)
                .and_then(|answer| self.read(answer, from));
            if let Some(reply) = read {
                return Ok(match reply {
                    Reply::Answered(_) => Reply::Answered(begin.elapsed()),
                    other => other,
                });
            }
        }
    }

    fn is_v4(&self) -> bool {
        self.to.is_ipv4()
    }

    fn packet(&self, bytes: u32) -> Vec<u8> {
        let header = if self.is_v4() {
            IP_HEADER.0
        } else {
            IP_HEADER.1
        };
        let length = usize::try_from(bytes).unwrap_or(usize::MAX);
        let length = length.saturating_sub(header).clamp(ECHO_HEADER, 65_507);
        let kind = if self.is_v4() { ECHO.0 } else { ECHO.1 };
        let mut packet = vec![kind, 0, 0, 0];
        packet.extend(self.id.to_be_bytes());
        packet.extend(self.number.to_be_bytes());
        packet.resize(length, 0);
        // That of ICMPv6 covers the addresses; the kernel fills it in (RFC 3542, section 3.1).
        if self.is_v4() {
            let sum = checksum(&packet).to_be_bytes();
            for (byte, part) in packet.iter_mut().skip(2).zip(sum) {
                *byte = part;
            }
        }
        packet
    }

    /// None for what is not about our last packet.
    fn read(&self, answer: &[u8], from: Option<IpAddr>) -> Option<Reply> {
        // IPv4 gives its header too.
        let message = if self.is_v4() {
            behind_ipv4(answer)?
        } else {
            answer
        };
        let (kind, code) = (*message.first()?, *message.get(1)?);
        let of = |both: (u8, u8)| if self.is_v4() { both.0 } else { both.1 };
        if kind == of(ANSWER) {
            let is_ours = from == Some(self.to) && self.is_echo(message);
            return is_ours.then_some(Reply::Answered(Duration::ZERO));
        }
        let about = message.get(ECHO_HEADER..)?;
        let echo = if self.is_v4() {
            behind_ipv4(about)?
        } else {
            about.get(IP_HEADER.1..)?
        };
        if *echo.first()? != of(ECHO) || !self.is_echo(echo) {
            return None;
        }
        let word = |at: usize| -> Option<u32> {
            let bytes = message.get(at..at.checked_add(4)?)?;
            Some(u32::from_be_bytes(bytes.try_into().ok()?))
        };
        if self.is_v4() && (kind, code) == (UNREACHABLE.0, TOO_BIG_CODE) {
            // The MTU is in the lower half (RFC 1191, section 4); of old routers it is 0.
            let mtu = word(4).map(|word| word & 0xffff).filter(|mtu| *mtu != 0);
            return Some(Reply::TooLarge { from, mtu });
        }
        if !self.is_v4() && kind == TOO_BIG_V6 {
            return Some(Reply::TooLarge { from, mtu: word(4) });
        }
        (kind == of(UNREACHABLE)).then_some(Reply::Unreachable(from))
    }

    /// Has the number of our last one.
    fn is_echo(&self, message: &[u8]) -> bool {
        let [a, b] = self.id.to_be_bytes();
        let [c, d] = self.number.to_be_bytes();
        message.get(4..8) == Some(&[a, b, c, d])
    }
}

/// What is behind an IPv4 header, which has a length of its own.
fn behind_ipv4(packet: &[u8]) -> Option<&[u8]> {
    let words = usize::from(packet.first()? & 0x0f);
    packet.get(words.checked_mul(4)?..)
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        let high = u32::from(pair.first().copied().unwrap_or_default());
        let low = u32::from(pair.get(1).copied().unwrap_or_default());
        sum = sum.wrapping_add(high << 8 | low);
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestNs;

    const PATIENCE: Duration = Duration::from_secs(10);
    const SHORT: Duration = Duration::from_millis(100);

    #[test]
    fn what_reaches_an_address_comes_back_and_what_is_too_large_does_not() {
        let ns = TestNs::new();
        ns.ip("link set lo mtu 1500");
        for to in ["127.0.0.1", "::1"] {
            let mut echo = Echo::open(to.parse().unwrap()).unwrap();
            for bytes in [84, 1500] {
                let reply = echo.ask(bytes, PATIENCE).unwrap();
                assert!(
                    matches!(reply, Reply::Answered(_)),
                    "{to} {bytes} {reply:?}"
                );
            }
            let (from, mtu) = (None, None);
            let too_large = Reply::TooLarge { from, mtu };
            assert_eq!(echo.ask(1501, PATIENCE).unwrap(), too_large);
        }
    }

    #[test]
    fn what_goes_nowhere_is_told() {
        let ns = TestNs::new();
        ns.ip("link add br0 up type bridge");
        ns.ip("address add 10.0.0.1/24 dev br0");
        let ask = |to: &str| {
            Echo::open(to.parse().unwrap())
                .unwrap()
                .ask(84, SHORT)
                .unwrap()
        };
        assert_eq!(ask("192.0.2.1"), Reply::Unreachable(None));
        assert_eq!(ask("10.0.0.2"), Reply::Silent);
    }

    #[test]
    fn what_a_router_says_of_a_smaller_link_is_read() {
        let echo = Echo {
            socket: rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).unwrap(),
            to: "10.0.0.2".parse().unwrap(),
            id: 7,
            number: 9,
        };
        let router = "192.0.2.1".parse().ok();
        let header = [0x45; 1].iter().chain(&[0; 19]).copied();
        let about = [3, 4, 0, 0, 0, 0, 0x05, 0x78];
        let ours = [8, 0, 0, 0, 0, 7, 0, 9];
        let packet: Vec<u8> = header
            .clone()
            .chain(about)
            .chain(header.clone())
            .chain(ours)
            .collect();
        let reply = Reply::TooLarge {
            from: router,
            mtu: Some(1400),
        };
        assert_eq!(echo.read(&packet, router), Some(reply));
        let others = [8, 0, 0, 0, 0, 7, 0, 8];
        let packet: Vec<u8> = header
            .clone()
            .chain(about)
            .chain(header)
            .chain(others)
            .collect();
        assert_eq!(echo.read(&packet, router), None);
        for length in 0..packet.len() {
            assert_eq!(echo.read(&packet[..length], router), None);
        }
    }
}
