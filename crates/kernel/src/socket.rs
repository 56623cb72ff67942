//! TCP sockets that find out how large a packet may be: segments of a size that is asked for, and never smaller ones.
//!
//! A surprise: the limit of a socket that listens is that of the sockets that it accepts, so set it there.

use std::ffi::{c_int, c_void};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, ip_mtu, ipv6_mtu, set_ip_mtu_discover,
    set_ipv6_mtu_discover,
};

use crate::error::{Error, Result};

/// What TCP lets a socket ask for at the least and at the most (`TCP_MIN_MSS` and `MAX_TCP_WINDOW`, include/net/tcp.h).
const SEGMENT: std::ops::RangeInclusive<u32> = 88..=32767;
/// The headers of IPv4 and TCP, and of IPv6 and TCP, without options, in bytes.
const HEADERS: (u32, u32) = (40, 60);

/// Lets the socket send packets of at most `mtu` bytes, all of them unfragmented, whatever it is told about the path; before
/// it connects or listens. `ip` is its own address or its peer's.
///
/// # Errors
/// What `setsockopt` answered.
pub fn send_full_size(socket: impl AsFd, ip: IpAddr, mtu: u32) -> Result<()> {
    let headers = if ip.is_ipv4() { HEADERS.0 } else { HEADERS.1 };
    let segment = mtu.saturating_sub(headers);
    let segment = segment
        .clamp(*SEGMENT.start(), *SEGMENT.end())
        .cast_signed();
    let size = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the option takes a pointer to an int and its size, and the int outlives the call (tcp(7)).
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_MAXSEG,
            (&raw const segment).cast::<c_void>(),
            size,
        )
    };
    checked(outcome, "limit the segments of a socket")?;
    let kept = match ip {
        IpAddr::V4(_) => set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE),
        IpAddr::V6(_) => set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::PROBE),
    };
    kept.map_err(|errno| Error::new("let a socket send full-size packets", errno))
}

/// How many bytes a full-size packet of a connected socket carries.
///
/// # Errors
/// What `getsockopt` answered.
pub fn segment(socket: impl AsFd) -> Result<usize> {
    let mut segment: c_int = 0;
    let mut size = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the option writes an int, whose size is given, and both outlive the call (tcp(7)).
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_MAXSEG,
            (&raw mut segment).cast::<c_void>(),
            &raw mut size,
        )
    };
    checked(outcome, "read the segment size of a socket")?;
    Ok(usize::try_from(segment).unwrap_or_default())
}

/// The MTU of the path of a connected socket in bytes: that of its route's link, or what the kernel was told on the way.
///
/// # Errors
/// What `getsockopt` answered.
pub fn path_mtu(socket: impl AsFd, ip: IpAddr) -> Result<u32> {
    let mtu = match ip {
        IpAddr::V4(_) => ip_mtu(&socket),
        IpAddr::V6(_) => ipv6_mtu(&socket),
    };
    mtu.map_err(|errno| Error::new("read the path MTU of a socket", errno))
}

/// How many bytes that were written to a connected socket its peer's kernel has not acknowledged yet, those that were not sent
/// among them. Whoever reads there, and whether anybody does, is nothing to that.
///
/// # Errors
/// What `ioctl` answered.
pub fn unacknowledged(socket: impl AsFd) -> Result<usize> {
    let mut bytes: c_int = 0;
    // SAFETY: `SIOCOUTQ`, which is the same number, writes an int, which outlives the call (tcp(7); `tcp_ioctl`, net/ipv4/tcp.c).
    let outcome =
        unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    checked(outcome, "read what a socket has not delivered")?;
    Ok(usize::try_from(bytes).unwrap_or_default())
}

fn checked(outcome: c_int, action: &str) -> Result<()> {
    if outcome == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    Err(Error::new(
        action,
        Errno::from_io_error(&error).unwrap_or(Errno::IO),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestNs;
    use rustix::net::{AddressFamily, SocketType, bind, connect, getsockname, listen, socket};
    use std::net::SocketAddr;

    #[test]
    fn a_packet_is_as_large_as_was_asked_for() {
        let _ns = TestNs::new();
        for (address, family) in [
            ("127.0.0.1:0", AddressFamily::INET),
            ("[::1]:0", AddressFamily::INET6),
        ] {
            let address: SocketAddr = address.parse().unwrap();
            let headers = if address.is_ipv4() { 40 } else { 60 };
            let server = socket(family, SocketType::STREAM, None).unwrap();
            bind(&server, &address).unwrap();
            listen(&server, 1).unwrap();
            let client = socket(family, SocketType::STREAM, None).unwrap();
            send_full_size(&client, address.ip(), 1400).unwrap();
            let there: SocketAddr = getsockname(&server).unwrap().try_into().unwrap();
            connect(&client, &there).unwrap();
            // Twelve bytes of it are the time stamps.
            assert_eq!(segment(&client).unwrap(), 1400 - headers - 12);
            assert!(path_mtu(&client, address.ip()).unwrap() >= 65535);
        }
    }

    #[test]
    fn what_nobody_reads_is_acknowledged_all_the_same() {
        let _ns = TestNs::new();
        let server = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        let address: SocketAddr = "127.0.0.1:0".parse().unwrap();
        bind(&server, &address).unwrap();
        listen(&server, 1).unwrap();
        let client = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        let there: SocketAddr = getsockname(&server).unwrap().try_into().unwrap();
        connect(&client, &there).unwrap();
        let send = |bytes: &[u8]| {
            rustix::io::write(&client, bytes).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(300));
            unacknowledged(&client).unwrap()
        };
        assert_eq!(send(b"nobody accepts"), 0);
        let hole = "add table ip hole; add chain ip hole in { type filter hook input priority 0; policy drop; }";
        let made = std::process::Command::new("nft").arg(hole).status();
        assert!(made.unwrap().success());
        assert_eq!(send(b"gone"), 4);
    }

    #[test]
    fn sizes_that_tcp_refuses_are_the_nearest_that_it_takes() {
        let _ns = TestNs::new();
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        for mtu in [0, 68, 65535, u32::MAX] {
            send_full_size(&socket, [127, 0, 0, 1].into(), mtu).unwrap();
        }
    }
}
