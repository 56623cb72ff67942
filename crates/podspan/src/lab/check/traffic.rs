//! Real traffic: TCP connections from each place's own network namespace, whose server says whom it saw.
//!
//! Every place listens on a port of its own, in both families, and answers a connection with the client's address as it
//! sees it: what connects, and with which source address, is one measurement. Between pods of different nodes a datagram as
//! large as the pod's link lets through follows, which nobody on the way may part (DF), and comes back. All places try at
//! the same time. Nothing is judged here.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use podspan_kernel::{Errno, Netlink, Netns, errno_text};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::Shutdown;
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
};

use super::super::holder;
use super::super::layout::Machine;
use super::super::observe::Seen;
use super::super::pod::NETNS_DIRECTORY;

/// How long a connection may take; the kernel repeats a lost SYN after one second (RFC 6298).
const TIMEOUT: Duration = Duration::from_millis(1500);
/// After how many failures a place gives up: the cause is known then, and each may cost the timeout.
const FAILURES_MAX: usize = 3;
/// What of a packet is not a datagram's content, in bytes: UDP's header, with that of IPv4 or IPv6.
const HEADERS: [u32; 2] = [28, 48];
/// What is said of the connections that it gave up.
pub const NOT_TRIED: &str = "not tried after so many failures";
/// How many talk with how many at a time: of one node, they are 800 neighbours to each other.
const COMPANY: usize = 20;

/// Where connections begin and end: a node, or a pod of a node.
pub struct Place {
    /// The node.
    pub machine: Machine,
    /// The pod's name; none for the node itself.
    pub pod: Option<String>,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// The MTU of a pod's link, in bytes.
    mtu: Option<u32>,
    netns: Netns,
    /// The node's; for a node, its own again.
    node_netns: Netns,
}

/// A connection that was tried.
pub struct Attempt<'a> {
    /// From where.
    pub client: &'a Place,
    /// To where.
    pub server: &'a Place,
    /// To which of its addresses.
    pub to: IpAddr,
    /// The client's address as the server saw it, or why there was no connection.
    pub seen: Result<IpAddr, String>,
    /// Whether the largest packet passed both ways, where that was tried.
    pub full_size: Option<Result<(), String>>,
}

impl Place {
    /// The place's name: node1 or node1/pod1.
    pub fn name(&self) -> String {
        match &self.pod {
            Some(pod) => format!("{}/{pod}", self.machine),
            None => self.machine.to_string(),
        }
    }

    fn forget_neighbours(&self) -> Result<()> {
        for netns in [&self.netns, &self.node_netns] {
            netns.run(Netlink::open)??.forget_neighbours()?;
        }
        Ok(())
    }
}

/// The nodes among these machines and all their pods.
///
/// # Errors
/// When one of them does not run any more.
pub fn places(machines: &[(Machine, Seen)]) -> Result<Vec<Place>> {
    let mut places = Vec::new();
    for (machine, seen) in machines
        .iter()
        .filter(|(machine, _)| matches!(machine, Machine::Node(_)))
    {
        let process = holder::process_of(*machine)?;
        let directory = process
            .join("root")
            .join(NETNS_DIRECTORY.trim_start_matches('/'));
        let bridge = seen.bridge.iter().flat_map(|bridge| &bridge.addresses);
        places.push(Place {
            machine: *machine,
            pod: None,
            addresses: seen
                .uplink
                .iter()
                .chain(bridge)
                .map(|net| net.addr())
                .collect(),
            mtu: None,
            netns: Netns::open(process.join("ns/net"))?,
            node_netns: Netns::open(process.join("ns/net"))?,
        });
        for pod in &seen.pods {
            places.push(Place {
                machine: *machine,
                pod: Some(pod.name.clone()),
                addresses: pod.addresses.iter().map(|net| net.addr()).collect(),
                mtu: pod.host_veth.as_ref().map(|link| link.mtu),
                netns: Netns::open(directory.join(&pod.name))?,
                node_netns: Netns::open(process.join("ns/net"))?,
            });
        }
    }
    Ok(places)
}

/// Connects every two places that are `wanted` (client, server), to each of the server's addresses.
///
/// Not all at once: the kernel has one table of neighbours for all namespaces of the machine, with room for 1,024
/// (`net.ipv4.neigh.default.gc_thresh3`, `gc_entries` in `net/core/neighbour.c`), and an overflow would hit the machine
/// itself. So some talk with some, and then forget each other.
///
/// # Errors
/// When a place cannot listen.
pub fn connect(
    places: &[Place],
    wanted: impl Fn(&Place, &Place) -> bool,
) -> Result<Vec<Attempt<'_>>> {
    let servers: Vec<_> = places.iter().map(Server::listen).collect::<Result<_>>()?;
    std::thread::scope(|scope| {
        for server in &servers {
            scope.spawn(|| server.serve());
        }
        let mut attempts = Vec::new();
        let mut patience = Patience::default();
        let outcome = servers.chunks(COMPANY).try_for_each(|clients| {
            servers.chunks(COMPANY).try_for_each(|company| {
                let tried = connect_company([clients, company], &wanted, &patience)?;
                tried.iter().for_each(|attempt| patience.learn(attempt));
                attempts.extend(tried);
                Ok(())
            })
        });
        for server in &servers {
            // Wakes the server from poll(2); it fails only if the server is gone already.
            let _ = rustix::net::shutdown(&server.listener, Shutdown::Both);
        }
        outcome.map(|()| attempts)
    })
}

/// Connects these clients with these servers, all clients at once.
fn connect_company<'a>(
    [clients, servers]: [&[Server<'a>]; 2],
    wanted: impl Fn(&Place, &Place) -> bool,
    patience: &Patience,
) -> Result<Vec<Attempt<'a>>> {
    let attempts = std::thread::scope(|scope| {
        let threads: Vec<_> = clients
            .iter()
            .map(|client| {
                let client = client.place;
                let meant = servers.iter().filter(|server| wanted(client, server.place));
                let targets: Vec<_> = meant.flat_map(Server::targets).collect();
                scope.spawn(move || try_all(client, &targets, patience))
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(anyhow!("a client died")))
            })
            .collect::<Result<Vec<_>>>()
    })?;
    for server in clients.iter().chain(servers) {
        server.place.forget_neighbours()?;
    }
    Ok(attempts.into_iter().flatten().collect())
}

/// A place that listens.
struct Server<'a> {
    place: &'a Place,
    listener: TcpListener,
    datagrams: UdpSocket,
    port: u16,
}

impl<'a> Server<'a> {
    /// A socket stays in the namespace that it was opened in, and hears IPv4 too (`IPV6_V6ONLY` is off).
    fn listen(place: &'a Place) -> Result<Self> {
        let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
        let listener = place.netns.run(|| TcpListener::bind(any))?;
        let listener = listener.with_context(|| format!("listen on {}", place.name()))?;
        let port = listener.local_addr()?.port();
        let any = SocketAddr::new(any.ip(), port);
        let datagrams = place.netns.run(|| unparted(any))?;
        let datagrams = datagrams.with_context(|| format!("listen on {}", place.name()))?;
        Ok(Self {
            place,
            listener,
            datagrams,
            port,
        })
    }

    fn targets(&self) -> impl Iterator<Item = (&'a Place, SocketAddr)> {
        let (place, port) = (self.place, self.port);
        place
            .addresses
            .iter()
            .map(move |ip| (place, SocketAddr::new(*ip, port)))
    }

    /// Tells every client the address that it comes from, and sends datagrams back.
    fn serve(&self) {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let mut ready = [
                PollFd::new(&self.listener, PollFlags::IN),
                PollFd::new(&self.datagrams, PollFlags::IN),
            ];
            if !matches!(poll(&mut ready, None), Ok(_) | Err(Errno::INTR)) {
                return;
            }
            let [connections, datagrams] = ready.map(|fd| !fd.revents().is_empty());
            if connections {
                let Ok((mut connection, client)) = self.listener.accept() else {
                    return;
                };
                // What the client does not get to read, it tells.
                let _ = write!(connection, "{}", client.ip().to_canonical());
            }
            if datagrams && let Ok((length, client)) = self.datagrams.recv_from(&mut buffer) {
                let _ = (self.datagrams).send_to(buffer.get(..length).unwrap_or_default(), client);
            }
        }
    }
}

/// Which clients failed too often to be asked again: on their own node, and with the others.
#[derive(Default)]
struct Patience(BTreeMap<(String, bool), usize>);

impl Patience {
    fn failures(&self, client: &Place, server: &Place) -> usize {
        let key = (client.name(), client.machine == server.machine);
        self.0.get(&key).copied().unwrap_or(0)
    }

    fn learn(&mut self, attempt: &Attempt<'_>) {
        if attempt.seen.is_err() {
            let key = (
                attempt.client.name(),
                attempt.client.machine == attempt.server.machine,
            );
            *self.0.entry(key).or_default() += 1;
        }
    }
}

fn try_all<'a>(
    client: &'a Place,
    targets: &[(&'a Place, SocketAddr)],
    patience: &Patience,
) -> Result<Vec<Attempt<'a>>> {
    client.netns.enter()?;
    let mut attempts: Vec<Attempt<'a>> = Vec::new();
    for (server, to) in targets {
        let here = |attempt: &&Attempt<'_>| {
            attempt.seen.is_err()
                && (attempt.server.machine == client.machine) == (server.machine == client.machine)
        };
        let failures = patience.failures(client, server) + attempts.iter().filter(here).count();
        let seen = if failures < FAILURES_MAX {
            ask(*to).map_err(|error| words(&error))
        } else {
            Err(NOT_TRIED.to_owned())
        };
        let full_size = match (client.mtu, server.mtu) {
            (Some(mtu), Some(_)) if client.machine != server.machine && seen.is_ok() => {
                Some(send_full_size(*to, mtu).map_err(|error| words(&error)))
            }
            _ => None,
        };
        attempts.push(Attempt {
            client,
            server,
            to: to.ip(),
            seen,
            full_size,
        });
    }
    Ok(attempts)
}

/// The address that the server at `to` sees us come from.
fn ask(to: SocketAddr) -> std::io::Result<IpAddr> {
    let mut connection = TcpStream::connect_timeout(&to, TIMEOUT)?;
    connection.set_read_timeout(Some(TIMEOUT))?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    answer
        .parse()
        .map_err(|_| std::io::Error::other(format!("answer {answer:?}")))
}

/// Sends one datagram that fills a packet of that size, and waits until it comes back.
fn send_full_size(to: SocketAddr, mtu: u32) -> std::io::Result<()> {
    let any = match to {
        SocketAddr::V4(_) => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
        SocketAddr::V6(_) => SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0),
    };
    let [v4, v6] = HEADERS;
    let room = mtu.saturating_sub(if to.is_ipv4() { v4 } else { v6 });
    let content = vec![7; room as usize];
    let socket = unparted(any)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.connect(to)?;
    socket.send(&content)?;
    let mut answer = vec![0; content.len().saturating_add(1)];
    match socket.recv(&mut answer)? {
        length if length == content.len() => Ok(()),
        length => Err(std::io::Error::other(format!("{length} bytes came back"))),
    }
}

/// A socket whose datagrams are sent as they are, or not at all, whatever was heard of the way (`IP_PMTUDISC_PROBE`).
fn unparted(local: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind(local)?;
    if local.is_ipv6() {
        set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::PROBE)?;
    }
    // A socket of IPv6 sends to IPv4 too.
    set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?;
    Ok(socket)
}

fn words(error: &std::io::Error) -> String {
    match Errno::from_io_error(error) {
        Some(errno) => errno_text(errno),
        None => error.to_string(),
    }
}
