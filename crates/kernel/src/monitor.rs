//! The kernel's news: that something about links, addresses, routes or forwarding changed, or about neighbours on links that
//! were named. What changed is not told. Of sysctls the kernel tells forwarding, `rp_filter` and few others.
//!
//! An event only says *look again*; so a lost one is an event too (the socket's buffer overran: ENOBUFS). Neighbours come
//! and go all the time on links that others have: of a message about one, the link is read, and nothing else is parsed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::error::{Error, Result};
use crate::netlink::{u16_at, u32_at};

/// `RTMGRP_LINK | RTMGRP_NEIGH | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE`
/// (linux/rtnetlink.h), and what is set of forwarding and filters by source: `RTNLGRP_IPV4_NETCONF`, `RTNLGRP_IPV6_NETCONF`.
const GROUPS: u32 = 0x1 | 0x4 | 0x10 | 0x40 | 0x100 | 0x400 | 1 << (24 - 1) | 1 << (25 - 1);
/// `RTM_NEWNEIGH`, `RTM_DELNEIGH`: neighbours, and entries of forwarding tables.
const NEIGHBOUR_KINDS: [u16; 2] = [28, 29];
/// Where a message has its kind (`struct nlmsghdr`), and one about a neighbour its link (`struct ndmsg` behind it).
const KIND_AT: usize = 4;
const LINK_AT: usize = 20;
/// As much of a message as is read.
const HEAD: usize = 24;

/// The links whose neighbours matter, shared between who knows them and who waits. At most two.
#[derive(Debug, Clone, Default)]
pub struct LinkSet(Arc<[AtomicU32; 2]>);

impl LinkSet {
    /// From now on these, by index.
    pub fn set(&self, links: impl IntoIterator<Item = u32>) {
        let mut links = links.into_iter();
        for place in self.0.iter() {
            place.store(links.next().unwrap_or(0), Ordering::Relaxed);
        }
    }

    fn holds(&self, link: u32) -> bool {
        self.0
            .iter()
            .any(|place| place.load(Ordering::Relaxed) == link)
    }
}

/// A subscription, in the network namespace of the thread that opened it.
pub struct Monitor {
    socket: Socket,
    neighbours_of: LinkSet,
}

impl Monitor {
    /// Subscribes. What happens from now on is not missed; of neighbours, what happens to those on the links of
    /// `neighbours_of` when it does.
    ///
    /// # Errors
    /// What `socket` or `bind` answered.
    pub fn open(neighbours_of: LinkSet) -> Result<Self> {
        let open = || -> std::io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind(&SocketAddr::new(0, GROUPS))?;
            Ok(socket)
        };
        open()
            .map(|socket| Self {
                socket,
                neighbours_of,
            })
            .map_err(|error| Error::from_io("subscribe to the kernel's events", &error))
    }

    /// Waits until something changed.
    ///
    /// # Errors
    /// What `recv` answered, other than interruption and overrun.
    pub fn wait(&self) -> Result<()> {
        let mut head = [0_u8; HEAD];
        loop {
            match self.socket.recv(&mut head.as_mut_slice(), 0) {
                Ok(_) if self.matters(&head) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(ENOBUFS) => return Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::from_io("wait for the kernel's events", &error)),
            }
        }
    }
}

impl Monitor {
    fn matters(&self, head: &[u8; HEAD]) -> bool {
        match (u16_at(head, KIND_AT), u32_at(head, LINK_AT)) {
            (Some(kind), Some(link)) if NEIGHBOUR_KINDS.contains(&kind) => {
                self.neighbours_of.holds(link)
            }
            _ => true,
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
        let monitor = Monitor::open(LinkSet::default()).unwrap();
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

    #[test]
    fn that_forwarding_or_a_filter_by_source_is_another_is_told() {
        let _ns = TestNs::new();
        let monitor = Monitor::open(LinkSet::default()).unwrap();
        for (sysctl, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv4/conf/lo/rp_filter", "1"),
            ("ipv6/conf/all/forwarding", "1"),
        ] {
            std::fs::write(format!("/proc/sys/net/{sysctl}"), value).unwrap();
            monitor.wait().unwrap();
            monitor.socket.set_non_blocking(true).unwrap();
            while monitor.wait().is_ok() {}
            monitor.socket.set_non_blocking(false).unwrap();
        }
    }

    #[test]
    fn of_neighbours_those_on_the_named_links_are_told_and_no_others() {
        let ns = TestNs::new();
        for link in ["br0", "br1"] {
            ns.ip(&format!("link add {link} up type bridge"));
        }
        ns.ip("link add vx0 up type vxlan id 7 dstport 8472 local 127.0.0.1");
        let index = |name: &str| {
            let name = name.parse().unwrap();
            crate::Netlink::open().unwrap().link_index(&name).unwrap()
        };
        let ours = LinkSet::default();
        let monitor = Monitor::open(ours.clone()).unwrap();
        let drained = |monitor: &Monitor| {
            monitor.socket.set_non_blocking(true).unwrap();
            let mut told = 0;
            while monitor.wait().is_ok() {
                told += 1;
            }
            told
        };
        let change = |link: &str| {
            let add = "lladdr 02:00:00:00:00:01 nud permanent";
            ns.ip(&format!("neigh replace 10.9.9.9 dev {link} {add}"));
            ns.ip(&format!("neigh del 10.9.9.9 dev {link}"));
        };
        // What the making of the links has still to tell.
        std::thread::sleep(std::time::Duration::from_millis(300));
        drained(&monitor);
        change("br0");
        assert_eq!(drained(&monitor), 0);
        ours.set([index("br0"), index("vx0")]);
        change("br1");
        assert_eq!(drained(&monitor), 0);
        change("br0");
        assert!(drained(&monitor) >= 2);
        let entry = "fdb add 02:00:00:00:00:02 dev vx0 dst 127.0.0.2";
        let bridge = std::process::Command::new("bridge")
            .args(entry.split(' '))
            .status();
        assert!(bridge.unwrap().success());
        assert!(drained(&monitor) >= 1);
    }
}
