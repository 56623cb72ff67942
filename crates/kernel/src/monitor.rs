//! The kernel's news: that something about links, addresses or routes changed. What changed is not told.
//!
//! An event only says *look again*; so a lost one is an event too (the socket's buffer overran: ENOBUFS), and nothing is
//! parsed.

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::error::{Error, Result};

/// `RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE` (linux/rtnetlink.h).
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

/// A subscription, in the network namespace of the thread that opened it.
pub struct Monitor {
    socket: Socket,
}

impl Monitor {
    /// Subscribes. What happens from now on is not missed.
    ///
    /// # Errors
    /// What `socket` or `bind` answered.
    pub fn open() -> Result<Self> {
        let open = || -> std::io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind(&SocketAddr::new(0, GROUPS))?;
            Ok(socket)
        };
        open()
            .map(|socket| Self { socket })
            .map_err(|error| Error::from_io("subscribe to the kernel's events", &error))
    }

    /// Waits until something changed.
    ///
    /// # Errors
    /// What `recv` answered, other than interruption and overrun.
    pub fn wait(&self) -> Result<()> {
        let mut ignored = [0_u8; 1];
        loop {
            match self.socket.recv(&mut ignored.as_mut_slice(), 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.raw_os_error() == Some(ENOBUFS) => return Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::from_io("wait for the kernel's events", &error)),
            }
        }
    }
}

/// The buffer overran and events were lost (netlink(7)).
const ENOBUFS: i32 = rustix::io::Errno::NOBUFS.raw_os_error();

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestNs;

    #[test]
    fn a_change_made_after_opening_is_never_missed() {
        let ns = TestNs::new();
        let monitor = Monitor::open().unwrap();
        ns.ip("link add br0 up type bridge");
        monitor.wait().unwrap();
        // More than the socket's buffer holds: an overrun is an event, not an error.
        let mut netlink = crate::Netlink::open().unwrap();
        let link = netlink.link(&"br0".parse().unwrap()).unwrap().index;
        for host in 1..=2000_u32 {
            let ip = std::net::Ipv4Addr::from_bits(0x0af4_0000 | host);
            netlink
                .ensure_address(link, ipnet::IpNet::new(ip.into(), 32).unwrap())
                .unwrap();
        }
        for _ in 0..50 {
            monitor.wait().unwrap();
        }
    }
}
