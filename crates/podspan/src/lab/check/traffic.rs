//! Real traffic: TCP connections from each place's own network namespace, whose server says whom it saw.
//!
//! Every place listens on a port of its own, in both families, and answers a connection with the client's address as it
//! sees it: what connects, and with which source address, is one measurement. All places try at the same time. Nothing
//! is judged here.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use podspan_kernel::{Errno, Netlink, Netns, errno_text};
use rustix::net::Shutdown;

use super::super::holder;
use super::super::layout::Machine;
use super::super::observe::Seen;
use super::super::pod::NETNS_DIRECTORY;

/// How long a connection may take; the kernel repeats a lost SYN after one second (RFC 6298).
const TIMEOUT: Duration = Duration::from_millis(1500);
/// After how many failures a place gives up: the cause is known then, and each may cost the timeout.
const FAILURES_MAX: usize = 3;
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
        .filter(|(machine, _)| *machine != Machine::Router)
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
            netns: Netns::open(process.join("ns/net"))?,
            node_netns: Netns::open(process.join("ns/net"))?,
        });
        for pod in &seen.pods {
            places.push(Place {
                machine: *machine,
                pod: Some(pod.name.clone()),
                addresses: pod.addresses.iter().map(|net| net.addr()).collect(),
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
            // Wakes the server from accept(2), which then fails; it fails only if the server is gone already.
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
    port: u16,
}

impl<'a> Server<'a> {
    /// A socket stays in the namespace that it was opened in, and hears IPv4 too (`IPV6_V6ONLY` is off).
    fn listen(place: &'a Place) -> Result<Self> {
        let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
        let listener = place.netns.run(|| TcpListener::bind(any))?;
        let listener = listener.with_context(|| format!("listen on {}", place.name()))?;
        let port = listener.local_addr()?.port();
        Ok(Self {
            place,
            listener,
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

    /// Tells every client the address that it comes from.
    fn serve(&self) {
        while let Ok((mut connection, client)) = self.listener.accept() {
            // What the client does not get to read, it tells.
            let _ = write!(connection, "{}", client.ip().to_canonical());
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
        attempts.push(Attempt {
            client,
            server,
            to: to.ip(),
            seen,
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

fn words(error: &std::io::Error) -> String {
    match Errno::from_io_error(error) {
        Some(errno) => errno_text(errno),
        None => error.to_string(),
    }
}
