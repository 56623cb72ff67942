//! The self-test of the ways to the other nodes' pods: from this node's gateway to each other node's gateway, which is the
//! way that the packets of pods take, by route or through a tunnel, there and back.
//!
//! A TCP handshake shows that small packets pass. Then a packet as large as pods send goes there unfragmented, is told of by
//! a small one, and comes back. That nobody listens is an answer too: the way is right, and only the size is not known. So is
//! that nobody answers what the other node's kernel has taken: its agent may be busy, and that is no fault of the way.
//! Nothing is learned from what ICMP says of the path, for it is the path that is tested: see [`podspan_kernel::socket`].
//!
//! The agent tests in turn ([`schedule`], [`watch`]) and answers ([`answer`]). A command that runs once calls
//! [`targets`] and [`test_all`], and needs no agent for it.

mod answer;
mod schedule;
mod told;
mod watch;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::StreamExt as _;
use ipnet::IpNet;
use podspan_kernel::{Errno, Prefix, errno_text, socket};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};

use crate::cluster::Cluster;
use crate::config::{Config, Role};
use crate::desired::Desired;

pub use told::{describe, way};
pub use watch::{Failing, run};

/// Where agents answer on their gateways: outside of the ranges of Prometheus's exporters and of node ports.
pub const PORT: u16 = 11270;
/// How long a handshake may take: a SYN that was lost is repeated after one second (RFC 6298).
const HANDSHAKE: Duration = Duration::from_secs(2);
/// How long a packet may take there, and as long back; what was lost is repeated after a fifth of a second.
const PACKET: Duration = Duration::from_millis(1500);
/// How many bytes the number takes with which a message begins.
const NUMBER: usize = size_of::<u16>();
/// How many bytes TCP's time stamps take of a packet.
const TIME_STAMPS: usize = 12;
/// How many are tested at a time.
const COMPANY: usize = 64;

/// What is to be tested.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Targets {
    /// This node's gateways, on which it answers.
    pub gateways: Vec<IpAddr>,
    /// The ways.
    pub peers: Vec<Arc<Peer>>,
    /// How large the packets of pods are at the most, in bytes; none is not known.
    pub mtu: Option<u32>,
}

/// A way to test.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// The other node's name.
    pub node: Arc<str>,
    /// Its gateway: the first address of a pod CIDR.
    pub gateway: IpAddr,
    /// Its address.
    pub address: Option<IpAddr>,
    /// Our gateway of the same family.
    pub source: IpAddr,
}

/// What a test found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Packets of every size pass, both ways; how long the handshake took.
    Passes(Duration),
    /// The way is right: the other node refused the connection, because no agent runs there. The size was not tested.
    Refused(Duration),
    /// The way is right, but somebody else is there, or an agent that has no time. The size was not tested.
    Foreign(Duration),
    /// Packets do not pass.
    Fails(Failure),
    /// The test could not be made here: this node's own gateway is not there yet.
    Untested,
}

/// Why packets do not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// This node has no route.
    NoRoute,
    /// Nobody answers: not the next hop, not the other node, or a machine on the way says that it does not reach it.
    Silent,
    /// Small packets pass, those of this many bytes do not.
    TooLarge {
        /// How large a packet was tried, in bytes.
        bytes: u32,
        /// Which way it was lost.
        lost: Direction,
    },
    /// The kernel knows that the path takes no packet as large as pods send.
    PathMtu {
        /// What the path takes, in bytes.
        path: u32,
        /// What pods send, in bytes.
        pods: u32,
    },
}

/// Which way a packet went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To the other node.
    There,
    /// From it.
    Back,
}

impl Outcome {
    /// In a word, for metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Passes(_) => "passes",
            Self::Refused(_) => "refused",
            Self::Foreign(_) => "foreign",
            Self::Untested => "untested",
            Self::Fails(failure) => failure.word(),
        }
    }

    /// How long the handshake took.
    pub fn round_trip(self) -> Option<Duration> {
        match self {
            Self::Passes(time) | Self::Refused(time) | Self::Foreign(time) => Some(time),
            Self::Fails(_) | Self::Untested => None,
        }
    }

    /// Why packets do not pass.
    pub fn failure(self) -> Option<Failure> {
        match self {
            Self::Fails(failure) => Some(failure),
            _ => None,
        }
    }
}

impl Failure {
    /// In a word, for metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::NoRoute => "no_route",
            Self::Silent => "silent",
            Self::TooLarge { .. } => "too_large",
            Self::PathMtu { .. } => "path_mtu",
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.node, self.gateway)
    }
}

/// What this node has to test: the gateway of each pod CIDR of the other nodes that it has a route for. Nothing on a router,
/// which is on no pod's side, and where it is switched off.
///
/// What is the same as in `last` is taken from there: a cluster has ten thousand of them.
pub fn targets(config: &Config, cluster: &Cluster, desired: &Desired, last: &Targets) -> Targets {
    let (Role::Node(role), Some(bridge)) = (&config.role, &desired.bridge) else {
        return Targets::default();
    };
    if !config.operation.probe {
        return Targets::default();
    }
    let gateways: Vec<IpAddr> = bridge.gateways.iter().map(IpNet::addr).collect();
    let routed = Routed::new(desired);
    let mut known = last.peers.iter();
    let mut peers = Vec::with_capacity(last.peers.len());
    for node in cluster.nodes.iter().filter(|node| node.name != role.name) {
        for pod_cidr in node.pod_cidrs.iter().filter(|cidr| routed.holds(**cidr)) {
            let is_same = |ip: &&IpAddr| ip.is_ipv4() == pod_cidr.is_ipv4();
            let source = gateways.iter().find(is_same);
            let (Some(gateway), Some(source)) = (pod_cidr.first_host(), source) else {
                continue;
            };
            let address = node.addresses.iter().find(is_same).copied();
            // In the order of the cluster, which seldom changes.
            let same = known.next().filter(|peer| {
                *peer.node == node.name
                    && (peer.gateway, peer.address, peer.source) == (gateway, address, *source)
            });
            peers.push(same.map_or_else(
                || {
                    Arc::new(Peer {
                        node: node.name.as_str().into(),
                        gateway,
                        address,
                        source: *source,
                    })
                },
                Arc::clone,
            ));
        }
    }
    Targets {
        gateways,
        peers,
        mtu: bridge.mtu,
    }
}

/// Where our routes lead.
struct Routed {
    destinations: BTreeSet<Prefix>,
    lengths: BTreeSet<u8>,
}

impl Routed {
    fn new(desired: &Desired) -> Self {
        let through_tunnels = desired.tunnels.iter().flat_map(|tunnel| &tunnel.routes);
        let routes = desired.routes.iter().chain(through_tunnels);
        let destinations = routes.map(|route| route.dst);
        let destinations: BTreeSet<Prefix> = destinations.collect();
        let lengths = destinations.iter().map(|prefix| prefix.length()).collect();
        Self {
            destinations,
            lengths,
        }
    }

    /// True when one of them leads to all of the prefix.
    fn holds(&self, prefix: Prefix) -> bool {
        let shorter = self.lengths.range(..=prefix.length());
        shorter
            .filter_map(|length| IpNet::new(prefix.addr(), *length).ok())
            .any(|around| self.destinations.contains(&Prefix::containing(around)))
    }
}

/// Tests all, some at a time, for a command that runs once.
///
/// # Errors
/// No async runtime.
pub fn test_all(targets: &Targets) -> anyhow::Result<Vec<(Arc<Peer>, Outcome)>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the async runtime")?;
    let tests = futures_util::stream::iter(&targets.peers)
        .map(|peer| async { (Arc::clone(peer), test(peer, targets.mtu).await) })
        .buffered(COMPANY);
    Ok(runtime.block_on(tests.collect()))
}

/// Tests one.
pub async fn test(peer: &Peer, mtu: Option<u32>) -> Outcome {
    let begin = Instant::now();
    let connected = match timeout(HANDSHAKE, connect(peer, mtu)).await {
        Ok(connected) => connected,
        Err(_) => return Outcome::Fails(Failure::Silent),
    };
    let took = begin.elapsed();
    let stream = match connected {
        Ok(stream) => stream,
        Err(error) => return without_connection(&error, took),
    };
    match exchange(stream, peer, mtu).await {
        Ok(None) => Outcome::Passes(took),
        Ok(Some(failure)) => Outcome::Fails(failure),
        Err(_) => Outcome::Foreign(took),
    }
}

async fn connect(peer: &Peer, mtu: Option<u32>) -> std::io::Result<TcpStream> {
    let socket = match peer.gateway {
        IpAddr::V4(_) => TcpSocket::new_v4()?,
        IpAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if let Some(mtu) = mtu {
        let set = socket::send_full_size(&socket, peer.gateway, mtu);
        set.map_err(errno)?;
    }
    socket.bind(SocketAddr::new(peer.source, 0))?;
    let stream = socket.connect(SocketAddr::new(peer.gateway, PORT)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn without_connection(error: &std::io::Error, took: Duration) -> Outcome {
    match Errno::from_io_error(error) {
        Some(Errno::CONNREFUSED) => Outcome::Refused(took),
        Some(Errno::NETUNREACH) => Outcome::Fails(Failure::NoRoute),
        // Which of them comes depends on whether the kernel has given up the next hop already.
        Some(Errno::HOSTUNREACH | Errno::TIMEDOUT) => Outcome::Fails(Failure::Silent),
        // It was answered, only not by an agent.
        Some(Errno::CONNRESET | Errno::PIPE) => Outcome::Foreign(took),
        // EADDRNOTAVAIL for a gateway of ours that is not there; too many files.
        _ => Outcome::Untested,
    }
}

/// Sends a full-size packet there and back: in a small packet the number of bytes, its own two among them, and then as many as a
/// full-size one holds.
///
/// # Errors
/// The other one does not do its part.
async fn exchange(
    mut stream: TcpStream,
    peer: &Peer,
    mtu: Option<u32>,
) -> std::io::Result<Option<Failure>> {
    let (segment, path) = measure(&stream, peer)?;
    if let Some(pods) = mtu.filter(|pods| path < *pods) {
        return Ok(Some(Failure::PathMtu { path, pods }));
    }
    let headers = if peer.gateway.is_ipv4() { 40 } else { 60 };
    let bytes = u32::try_from(segment + headers + TIME_STAMPS).unwrap_or(u32::MAX);
    let too_large = |lost| Ok(Some(Failure::TooLarge { bytes, lost }));
    let length = (segment + NUMBER).min(answer::BYTES);
    let number = u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
    let mut packet = vec![0; length - NUMBER];
    let mut arrived = [0; NUMBER];
    let there = async {
        stream.write_all(&number).await?;
        stream.write_all(&packet).await?;
        // The first bytes of an answer are a small packet, sent when all has arrived.
        stream.read_exact(&mut arrived).await
    };
    if let Ok(outcome) = timeout(PACKET, there).await {
        outcome?;
    } else {
        let waiting = socket::unacknowledged(&stream).map_err(errno)?;
        let (now, _) = measure(&stream, peer)?;
        return match waiting {
            // Whoever should read it does not.
            0 if now >= segment => Err(std::io::ErrorKind::TimedOut.into()),
            // Not even the small one.
            _ if waiting == length => Ok(Some(Failure::Silent)),
            _ => too_large(Direction::There),
        };
    }
    if arrived != number {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let back = async {
        stream.read_exact(&mut arrived).await?;
        stream.read_exact(&mut packet).await
    };
    match timeout(PACKET, back).await {
        Ok(outcome) => drop(outcome?),
        Err(_) => return too_large(Direction::Back),
    }
    // A kernel that looks for holes (`tcp_mtu_probing`) sent smaller ones in the end.
    let (now, _) = measure(&stream, peer)?;
    if now < segment {
        return too_large(Direction::There);
    }
    Ok(None)
}

/// How many bytes a packet carries, and the path's MTU.
fn measure(stream: &TcpStream, peer: &Peer) -> std::io::Result<(usize, u32)> {
    let segment = socket::segment(stream).map_err(errno)?;
    let path = socket::path_mtu(stream, peer.gateway).map_err(errno)?;
    Ok((segment, path))
}

fn errno(error: podspan_kernel::Error) -> std::io::Error {
    error.errno().into()
}

/// An I/O error in the words of the kernel's errors.
fn words(error: &std::io::Error) -> String {
    errno_text(Errno::from_io_error(error).unwrap_or(Errno::IO))
}

#[cfg(test)]
mod tests;
