//! Says its name to whoever asks, in a network namespace, until it is dropped.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread::JoinHandle;

use podspan_kernel::Netns;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::AddressFamily;

use super::sctp::{Chunk, Packet};
use super::{Protocol, raw_socket, receive_sctp, send_sctp};

/// A server.
pub struct Server {
    // Its end is heard by the thread.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

/// What is served.
struct Sockets {
    name: String,
    stop: UnixStream,
    tcp: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
    sctp: Vec<OwnedFd>,
    sctp_ports: Vec<u16>,
    /// Who has the name already and may close.
    told: Vec<TcpStream>,
}

impl Server {
    /// It serves these ports on these addresses of the namespace, and answers when this returns.
    ///
    /// # Errors
    /// A socket that cannot be had.
    pub fn start(
        netns: Netns,
        name: &str,
        addresses: &[IpAddr],
        ports: &[(Protocol, u16)],
    ) -> io::Result<Self> {
        let (stop, stopped) = UnixStream::pair()?;
        let (ready, is_ready) = mpsc::channel();
        let (name, addresses, ports) = (name.to_owned(), addresses.to_vec(), ports.to_vec());
        let thread = std::thread::Builder::new().spawn(move || {
            netns.enter().map_err(io::Error::other)?;
            let mut sockets = Sockets::open(name, stopped, &addresses, &ports)?;
            // Nobody waits any longer when the other end is gone.
            let _ = ready.send(());
            while sockets.serve()? {}
            Ok(())
        })?;
        let mut server = Self {
            stop: Some(stop),
            thread: Some(thread),
        };
        match is_ready.recv() {
            Ok(()) => Ok(server),
            Err(_) => Err(server
                .end()
                .err()
                .unwrap_or_else(|| io::Error::other("the server ended"))),
        }
    }

    fn end(&mut self) -> io::Result<()> {
        drop(self.stop.take());
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the server panicked")))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            // Questions that went unanswered because of it are seen by who asked them.
            eprintln!("server: {error}");
        }
    }
}

impl Sockets {
    fn open(
        name: String,
        stop: UnixStream,
        addresses: &[IpAddr],
        ports: &[(Protocol, u16)],
    ) -> io::Result<Self> {
        let mut sockets = Self {
            name,
            stop,
            tcp: Vec::new(),
            udp: Vec::new(),
            sctp: Vec::new(),
            sctp_ports: Vec::new(),
            told: Vec::new(),
        };
        for &address in addresses {
            for &(protocol, port) in ports {
                let at = SocketAddr::new(address, port);
                match protocol {
                    Protocol::Tcp => {
                        let listener = TcpListener::bind(at)?;
                        listener.set_nonblocking(true)?;
                        sockets.tcp.push(listener);
                    }
                    Protocol::Udp => {
                        let socket = UdpSocket::bind(at)?;
                        socket.set_nonblocking(true)?;
                        sockets.udp.push(socket);
                    }
                    Protocol::Sctp => sockets.sctp_ports.push(port),
                }
            }
            // Also where no port is served: somebody must say no.
            let family = if address.is_ipv4() {
                AddressFamily::INET
            } else {
                AddressFamily::INET6
            };
            sockets.sctp.push(raw_socket(family, Some(address))?);
        }
        Ok(sockets)
    }

    /// Waits for questions and answers them; false when it must end.
    fn serve(&mut self) -> io::Result<bool> {
        let fds = std::iter::once(self.stop.as_fd())
            .chain(self.tcp.iter().map(AsFd::as_fd))
            .chain(self.udp.iter().map(AsFd::as_fd))
            .chain(self.sctp.iter().map(AsFd::as_fd))
            .chain(self.told.iter().map(AsFd::as_fd));
        let fds: Vec<BorrowedFd<'_>> = fds.collect();
        let mut polled: Vec<_> = fds
            .iter()
            .map(|fd| PollFd::new(fd, PollFlags::IN))
            .collect();
        match poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if !polled[0].revents().is_empty() {
            return Ok(false);
        }
        drop(polled);
        drop(fds);
        // Whoever closed needs no more.
        self.told.retain_mut(|client| {
            matches!(client.read(&mut [0; 16]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
        });
        for listener in &self.tcp {
            while let Ok((mut client, _)) = listener.accept() {
                let name = self.name.as_bytes();
                if client
                    .set_nonblocking(true)
                    .and_then(|()| client.write_all(name))
                    .is_ok()
                {
                    self.told.push(client);
                }
            }
        }
        for socket in &self.udp {
            while let Ok((_, from)) = socket.recv_from(&mut [0; 64]) {
                // It asks again.
                let _ = socket.send_to(self.name.as_bytes(), from);
            }
        }
        for raw in &self.sctp {
            while let Some((from, packet)) = receive_sctp(raw) {
                self.answer_sctp(raw, from, &packet);
            }
        }
        Ok(true)
    }

    fn answer_sctp(&self, raw: &OwnedFd, from: IpAddr, packet: &Packet) {
        let Chunk::Init(tag) = packet.chunk else {
            return;
        };
        let (theirs, ours) = packet.ports;
        let chunk = if self.sctp_ports.contains(&ours) {
            Chunk::InitAck(self.name.clone())
        } else {
            Chunk::Abort
        };
        let answer = Packet {
            ports: (ours, theirs),
            tag,
            chunk,
        };
        send_sctp(raw, from, &answer);
    }
}
