//! The addresses of links.
//!
//! An IPv6 address that we set skips duplicate address detection (`IFA_F_NODAD`) and is usable when the call returns.
//! Our addresses come from an allocation that has one owner, so there is no duplicate to detect. A surprise: even then the
//! kernel answers before packets to the address are taken in. Their route into the node follows from a work queue
//! (`addrconf_dad_work` in `net/ipv6/addrconf.c`), and on a busy node the first answer that comes for it would be lost.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rustix::io::Errno;

use crate::encode::{Attributes, Encoder, NLM_F_CREATE, NLM_F_EXCL, ip};
use crate::error::{Error, Result};
use crate::link::family;
use crate::netlink::{Netlink, message};

/// `sizeof(struct ifaddrmsg)`: family, length, flags, scope, link.
const HEADER: usize = 8;
/// Attributes (linux/if_addr.h).
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
/// `ifa_flags`.
const IFA_F_NODAD: u8 = 0x02;
const IFA_F_DADFAILED: u8 = 0x08;
const IFA_F_TENTATIVE: u8 = 0x40;
/// `RT_SCOPE_UNIVERSE` and `RT_SCOPE_SITE` (linux/rtnetlink.h).
const GLOBAL_SCOPES: [u8; 2] = [0, 200];

/// How long the kernel may take until packets to a new IPv6 address are taken in. It takes some 50 µs, and more than a
/// second was seen where forty attachments shared two busy processors.
const LOCAL_DEADLINE: Duration = Duration::from_secs(20);
/// How long to leave it alone after the first look, and at the most.
const LOCAL_PAUSE: Duration = Duration::from_micros(50);
const LOCAL_PAUSE_MAX: Duration = Duration::from_millis(5);

/// How long duplicate address detection may take: a link may need some seconds to come up.
const DETECTION_DEADLINE: Duration = Duration::from_secs(10);
/// How long to leave it alone between two looks.
const DETECTION_PAUSE: Duration = Duration::from_millis(20);

/// An address on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// The link's index.
    pub link: u32,
    /// The address with the length of its subnet.
    pub net: IpNet,
    /// Reachable from elsewhere: neither link-local nor loopback.
    pub global: bool,
    /// An IPv6 address that the kernel does not use yet, or will never, because of duplicate address detection.
    pub tentative: bool,
    /// Duplicate address detection found another that has it.
    pub duplicate: bool,
}

impl Netlink {
    /// All addresses, of both families.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn list_addresses(&mut self) -> Result<Vec<Address>> {
        let mut request = Encoder::request(message::GET_ADDRESS);
        request.plain(&[0; HEADER]);
        self.dump(request, "list addresses", read_address)
    }

    /// Gives the link that address; that it has it already is fine.
    ///
    /// # Errors
    /// What the kernel answered; ETIMEDOUT when it does not take packets to an IPv6 address within 20 seconds.
    pub fn ensure_address(&mut self, link: u32, net: IpNet) -> Result<()> {
        let request = about(message::NEW_ADDRESS, link, (net, own_flags(net)));
        let action = || format!("add address {net} to link {link}");
        match self.change(request, NLM_F_CREATE | NLM_F_EXCL, action) {
            Err(error) if error.is_exists() => Ok(()),
            Ok(()) if net.addr().is_ipv6() => self.wait_until_local(net.addr()),
            outcome => outcome,
        }
    }

    /// The same for an IPv6 address that others on the link are first asked about (RFC 4862, section 5.4), which takes the
    /// kernel one to two seconds.
    ///
    /// # Errors
    /// EADDRINUSE when another has it; ETIMEDOUT when the link does not come up; what the kernel answered.
    pub fn ensure_address_after_detection(&mut self, link: u32, net: IpNet) -> Result<()> {
        let request = about(message::NEW_ADDRESS, link, (net, 0));
        let action = || format!("add address {net} to link {link}");
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        match self.change(request, flags, action) {
            Err(error) if !error.is_exists() => return Err(error),
            _ => {}
        }
        let start = Instant::now();
        while start.elapsed() < DETECTION_DEADLINE {
            let all = self.list_addresses()?;
            match all
                .iter()
                .find(|address| address.link == link && address.net == net)
            {
                Some(address) if !address.tentative => return self.wait_until_local(net.addr()),
                Some(address) if !address.duplicate => std::thread::sleep(DETECTION_PAUSE),
                // A duplicate stays with its flag, or is taken away again.
                Some(_) | None => return Err(Error::new(action(), Errno::ADDRINUSE)),
            }
        }
        Err(Error::new(action(), Errno::TIMEDOUT))
    }

    /// Waits until packets to that address of ours are taken in.
    fn wait_until_local(&mut self, ip: IpAddr) -> Result<()> {
        let start = Instant::now();
        let mut pause = LOCAL_PAUSE;
        while !self.is_local(ip)? {
            if start.elapsed() > LOCAL_DEADLINE {
                return Err(Error::new(
                    format!("wait for address {ip}"),
                    Errno::TIMEDOUT,
                ));
            }
            std::thread::sleep(pause);
            // Whoever waits long waits because many work: that is no time to ask often.
            pause = LOCAL_PAUSE_MAX.min(pause * 2);
        }
        Ok(())
    }

    /// Takes that address from the link; that it does not have it is fine.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn remove_address(&mut self, link: u32, net: IpNet) -> Result<()> {
        let request = about(message::DELETE_ADDRESS, link, (net, own_flags(net)));
        match self.change(request, 0, || {
            format!("remove address {net} from link {link}")
        }) {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}

/// An IPv6 address of ours has no duplicate.
fn own_flags(net: IpNet) -> u8 {
    if net.addr().is_ipv4() { 0 } else { IFA_F_NODAD }
}

/// A request about an address with these flags on a link.
fn about(kind: u16, link: u32, (net, flags): (IpNet, u8)) -> Encoder {
    let mut request = Encoder::request(kind);
    request.plain(&[family(net.addr()), net.prefix_len(), flags, 0]);
    request.plain(&link.to_ne_bytes());
    request.ip(IFA_LOCAL, net.addr());
    if let IpNet::V4(v4) = net {
        request.ip(IFA_ADDRESS, net.addr());
        if net.prefix_len() < 31 {
            request.ip(IFA_BROADCAST, v4.broadcast().into());
        }
    }
    request
}

pub(crate) fn read_address(message: &[u8]) -> Option<Address> {
    let (header, attributes) = message.split_first_chunk::<HEADER>()?;
    let [_family, length, flags, scope, link @ ..] = *header;
    let attributes = Attributes(attributes);
    // IPv4 has its own address in IFA_LOCAL and the peer's in IFA_ADDRESS; IPv6 only IFA_ADDRESS, unless it has a peer.
    let local = attributes.find(IFA_LOCAL);
    let address = ip(local.or_else(|| attributes.find(IFA_ADDRESS))?)?;
    Some(Address {
        link: u32::from_ne_bytes(link),
        net: IpNet::new(address, length).ok()?,
        global: GLOBAL_SCOPES.contains(&scope),
        tentative: flags & IFA_F_TENTATIVE != 0,
        duplicate: flags & IFA_F_DADFAILED != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestNs;

    #[test]
    fn addresses_of_both_families_are_usable_at_once_and_twice_is_once() {
        let ns = TestNs::new();
        ns.ip("link add br0 up type bridge");
        let mut netlink = Netlink::open().unwrap();
        let link = netlink.link(&"br0".parse().unwrap()).unwrap().index;
        let nets: [IpNet; 2] = [
            "10.244.1.1/24".parse().unwrap(),
            "fd00:10:244:1::1/64".parse().unwrap(),
        ];
        for net in nets.iter().chain(&nets) {
            netlink.ensure_address(link, *net).unwrap();
        }
        let all = netlink.list_addresses().unwrap();
        for net in nets {
            let expected = Address {
                link,
                net,
                global: true,
                tentative: false,
                duplicate: false,
            };
            assert_eq!(
                all.iter().filter(|seen| **seen == expected).count(),
                1,
                "{net}: {all:?}"
            );
        }
        let seen = &ns.ip("-4 addr show br0")[0]["addr_info"][0];
        assert_eq!(
            (&seen["local"], &seen["broadcast"]),
            (&"10.244.1.1".into(), &"10.244.1.255".into())
        );
        for net in nets.iter().chain(&nets) {
            netlink.remove_address(link, *net).unwrap();
        }
        let left = netlink.list_addresses().unwrap();
        assert!(
            !left.iter().any(|address| nets.contains(&address.net)),
            "{left:?}"
        );
    }
}
