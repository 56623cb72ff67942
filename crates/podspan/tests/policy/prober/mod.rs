//! Asks many questions with packets at once: from many network namespaces, to many addresses, by TCP, UDP and SCTP.
//!
//! A question is answered when the name of who was asked comes back, so that an answer of somebody else is none. Who expects
//! silence waits for as long as the others need for their answers, and a while longer: what was let through by mistake has the same
//! way. No question is waited for alone, so that a thousand of which a third are denied take little longer than one.
//!
//! What would surprise: UDP and SCTP have source ports of their own count, because a connection that was allowed a moment ago is still
//! known to the kernel, and the next question must not be taken for a part of it.

mod sctp;
pub mod server;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use podspan_kernel::Netns;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_linger;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, connect, recv, recvfrom,
    send, sendto, socket_with,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sctp::{Chunk, Packet};

use super::object::Protocol;

/// How long at a time a thread sleeps that has heard nothing: others may be done meanwhile.
const NAP: Duration = Duration::from_millis(5);
/// After that time a datagram is sent again.
const AGAIN: Duration = Duration::from_millis(300);
/// Source ports of UDP and SCTP: above all that servers have but some, which are left out.
const FIRST_PORT: u16 = 10_000;
const SERVERS_PORTS: std::ops::Range<u16> = 36_000..36_100;
const FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);

/// Asks, from a network namespace.
pub struct Asker {
    netns: Netns,
    ports: AtomicU16,
}

/// A question, and what is expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Who is asked.
    pub address: IpAddr,
    /// By which protocol.
    pub protocol: Protocol,
    /// On which port.
    pub port: u16,
    /// The name that must come back.
    pub name: String,
    /// Whether an answer is expected. It decides how long is waited, not what comes out.
    pub expected: bool,
}

/// What became of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Who was asked said its name.
    Reached,
    /// Somebody else answered, or somebody without a name.
    Another(String),
    /// Somebody said no.
    Refused,
    /// Nobody said anything.
    Silent,
}

/// How long is waited.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For answers that are expected; who has all of them waits no longer.
    pub answers: Duration,
    /// For those that are not, after all others came.
    pub silence: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            answers: Duration::from_secs(3),
            silence: Duration::from_millis(150),
        }
    }
}

/// What all askers wait for together.
struct Hope {
    start: Instant,
    patience: Patience,
    missing: AtomicUsize,
    fulfilled: Mutex<Option<Instant>>,
}

impl Hope {
    fn settle_one(&self) {
        if self.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.fulfil();
        }
    }

    fn fulfil(&self) {
        let mut fulfilled = self
            .fulfilled
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *fulfilled = Some(Instant::now());
    }

    fn is_over(&self) -> bool {
        let fulfilled = *self
            .fulfilled
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match fulfilled {
            Some(time) => time.elapsed() >= self.patience.silence,
            None => self.start.elapsed() >= self.patience.answers,
        }
    }
}

/// Each question has a socket, and there are more at a time than the 1,024 that a process usually may have without asking.
fn allow_many_sockets() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: limit.maximum,
        ..limit
    };
    Ok(setrlimit(Resource::Nofile, most)?)
}

/// All askers ask their questions at once; the answers are in the questions' order.
///
/// # Errors
/// A socket that cannot be had.
pub fn ask(all: &[(&Asker, Vec<Question>)], patience: Patience) -> io::Result<Vec<Vec<Answer>>> {
    allow_many_sockets()?;
    let expected = all.iter().flat_map(|(_, questions)| questions);
    let missing = expected.filter(|question| question.expected).count();
    let hope = Hope {
        start: Instant::now(),
        patience,
        missing: AtomicUsize::new(missing),
        fulfilled: Mutex::new(None),
    };
    if missing == 0 {
        hope.fulfil();
    }
    let hope = &hope;
    std::thread::scope(|scope| {
        let ask = |asker: &Asker, questions: &[Question]| {
            asker.netns.enter().map_err(io::Error::other)?;
            let mut asking = Asking::start(asker, questions, hope)?;
            while !asking.is_done() {
                asking.listen()?;
            }
            Ok(asking.answers)
        };
        let threads: Vec<_> = all
            .iter()
            .map(|(asker, questions)| scope.spawn(move || ask(asker, questions)))
            .collect();
        let answers = threads.into_iter().map(|thread| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        answers.collect()
    })
}

impl Asker {
    /// From there.
    pub fn new(netns: Netns) -> Self {
        Self {
            netns,
            ports: AtomicU16::new(0),
        }
    }

    fn port(&self) -> u16 {
        let count = self.ports.fetch_add(1, Ordering::Relaxed);
        let port = FIRST_PORT + count % (u16::MAX - FIRST_PORT);
        if SERVERS_PORTS.contains(&port) {
            self.port()
        } else {
            port
        }
    }
}

/// One asker's questions while they are open.
struct Asking<'a> {
    questions: &'a [Question],
    hope: &'a Hope,
    answers: Vec<Answer>,
    settled: Vec<bool>,
    /// Of TCP and UDP, with the question's number.
    sockets: Vec<(usize, OwnedFd)>,
    /// Of SCTP, one of each family.
    raw: Vec<OwnedFd>,
    /// Of SCTP: the question's number, the source port and the tag.
    inits: Vec<(usize, u16, u32)>,
    sent: Instant,
}

impl<'a> Asking<'a> {
    fn start(asker: &Asker, questions: &'a [Question], hope: &'a Hope) -> io::Result<Self> {
        let mut asking = Self {
            questions,
            hope,
            answers: vec![Answer::Silent; questions.len()],
            settled: vec![false; questions.len()],
            sockets: Vec::new(),
            raw: Vec::new(),
            inits: Vec::new(),
            sent: Instant::now(),
        };
        if questions.iter().any(|one| one.protocol == Protocol::Sctp) {
            let families = [AddressFamily::INET, AddressFamily::INET6];
            let raw = families.map(|family| raw_socket(family, None));
            asking.raw = raw.into_iter().collect::<io::Result<_>>()?;
        }
        for (index, question) in questions.iter().enumerate() {
            let address = SocketAddr::new(question.address, question.port);
            let family = if address.is_ipv4() {
                AddressFamily::INET
            } else {
                AddressFamily::INET6
            };
            match question.protocol {
                Protocol::Tcp => {
                    asking.start_tcp(index, socket(family, SocketType::STREAM)?, address)
                }
                Protocol::Udp => {
                    let socket = socket(family, SocketType::DGRAM)?;
                    let any: IpAddr = if address.is_ipv4() {
                        [0; 4].into()
                    } else {
                        [0; 16].into()
                    };
                    bind(&socket, &SocketAddr::new(any, asker.port()))?;
                    asking.start_udp(index, socket, address);
                }
                Protocol::Sctp => {
                    let port = asker.port();
                    // Any tag but 0 that no other question of now has.
                    asking.inits.push((index, port, u32::from(port) << 16 | 1));
                }
            }
        }
        asking.send_inits();
        Ok(asking)
    }

    fn start_tcp(&mut self, index: usize, socket: OwnedFd, address: SocketAddr) {
        // Closing is a reset, so that no port has to wait for stragglers.
        let _ = set_socket_linger(&socket, Some(Duration::ZERO));
        match connect(&socket, &address) {
            Ok(()) | Err(Errno::INPROGRESS) => self.sockets.push((index, socket)),
            Err(_) => self.settle(index, Answer::Refused),
        }
    }

    fn start_udp(&mut self, index: usize, socket: OwnedFd, address: SocketAddr) {
        let sent =
            connect(&socket, &address).and_then(|()| send(&socket, b"?", SendFlags::empty()));
        match sent {
            Ok(_) => self.sockets.push((index, socket)),
            Err(_) => self.settle(index, Answer::Refused),
        }
    }

    fn settle(&mut self, index: usize, answer: Answer) {
        self.answers[index] = answer;
        if !std::mem::replace(&mut self.settled[index], true) && self.questions[index].expected {
            self.hope.settle_one();
        }
    }

    fn is_done(&self) -> bool {
        self.hope.is_over() || self.settled.iter().all(|settled| *settled)
    }

    /// What comes within a nap, and what must be sent again.
    fn listen(&mut self) -> io::Result<()> {
        let sockets = self
            .sockets
            .iter()
            .map(|(_, socket)| socket)
            .chain(&self.raw);
        let mut polled: Vec<_> = sockets
            .map(|socket| PollFd::new(socket, PollFlags::IN))
            .collect();
        let nap = Timespec::try_from(NAP).map_err(io::Error::other)?;
        match poll(&mut polled, Some(&nap)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ready: Vec<_> = polled
            .iter()
            .map(|socket| !socket.revents().is_empty())
            .collect();
        let (of_sockets, of_raw) = ready.split_at(self.sockets.len());
        let mut heard = Vec::new();
        let mut number = 0;
        self.sockets.retain(|(index, socket)| {
            number += 1;
            let mut buffer = [0; 256];
            let answer = match of_sockets[number - 1]
                .then(|| recv(socket, &mut buffer[..], RecvFlags::empty()))
            {
                None | Some(Err(Errno::AGAIN)) => return true,
                Some(Ok((length, _))) => self.questions[*index].judge(&buffer[..length]),
                Some(Err(_)) => Answer::Refused,
            };
            heard.push((*index, answer));
            false
        });
        for (raw, ready) in self.raw.iter().zip(of_raw) {
            if *ready {
                self.hear_sctp(raw, &mut heard);
            }
        }
        for (index, answer) in heard {
            match answer {
                // A kernel that knows SCTP refuses beside the server that does not need it.
                Answer::Refused if self.questions[index].protocol == Protocol::Sctp => {
                    self.answers[index] = Answer::Refused;
                }
                answer => self.settle(index, answer),
            }
        }
        self.send_again();
        Ok(())
    }

    fn hear_sctp(&self, raw: &OwnedFd, heard: &mut Vec<(usize, Answer)>) {
        while let Some((from, packet)) = receive_sctp(raw) {
            let meant = |(index, port, tag): &&(usize, u16, u32)| {
                let question = &self.questions[*index];
                question.address == from
                    && packet.ports == (question.port, *port)
                    && packet.tag == *tag
            };
            let Some((index, ..)) = self.inits.iter().find(meant) else {
                continue;
            };
            match &packet.chunk {
                Chunk::InitAck(name) => {
                    heard.push((*index, self.questions[*index].judge(name.as_bytes())))
                }
                Chunk::Abort if !self.settled[*index] => heard.push((*index, Answer::Refused)),
                _ => {}
            }
        }
    }

    fn send_again(&mut self) {
        if self.sent.elapsed() < AGAIN {
            return;
        }
        self.sent = Instant::now();
        for (index, socket) in &self.sockets {
            if self.questions[*index].protocol == Protocol::Udp {
                // What went wrong is heard as the answer.
                let _ = send(socket, b"?", SendFlags::empty());
            }
        }
        self.send_inits();
    }

    fn send_inits(&self) {
        for (index, port, tag) in &self.inits {
            let question = &self.questions[*index];
            if self.settled[*index] {
                continue;
            }
            let init = Packet {
                ports: (*port, question.port),
                tag: 0,
                chunk: Chunk::Init(*tag),
            };
            let [v4, v6] = &self.raw[..] else { continue };
            let raw = if question.address.is_ipv4() { v4 } else { v6 };
            send_sctp(raw, question.address, &init);
        }
    }
}

impl Question {
    fn judge(&self, said: &[u8]) -> Answer {
        if said == self.name.as_bytes() {
            return Answer::Reached;
        }
        Answer::Another(String::from_utf8_lossy(said).into_owned())
    }
}

fn socket(family: AddressFamily, kind: SocketType) -> io::Result<OwnedFd> {
    Ok(socket_with(family, kind, FLAGS, None)?)
}

/// A raw socket of SCTP, which hears all packets that come to the address, or to this namespace.
fn raw_socket(family: AddressFamily, address: Option<IpAddr>) -> io::Result<OwnedFd> {
    let protocol = std::num::NonZeroU32::new(sctp::PROTOCOL).map(rustix::net::Protocol::from_raw);
    let socket = socket_with(family, SocketType::RAW, FLAGS, protocol)?;
    if let Some(address) = address {
        bind(&socket, &SocketAddr::new(address, 0))?;
    }
    Ok(socket)
}

/// The next packet and who sent it; none when there is none.
fn receive_sctp(raw: &OwnedFd) -> Option<(IpAddr, Packet)> {
    loop {
        let mut buffer = [0; 512];
        let (length, _, from) = recvfrom(raw, &mut buffer[..], RecvFlags::empty()).ok()?;
        let Ok(from) = SocketAddr::try_from(from?) else {
            continue;
        };
        // IPv4 comes with its header.
        let header = if from.is_ipv4() {
            usize::from(buffer[0] & 15) * 4
        } else {
            0
        };
        let packet = buffer.get(header..length).and_then(Packet::parse);
        if let Some(packet) = packet {
            return Some((from.ip(), packet));
        }
    }
}

/// What is lost is sent again, or missed.
fn send_sctp(raw: &OwnedFd, to: IpAddr, packet: &Packet) {
    let _ = sendto(
        raw,
        &packet.bytes(),
        SendFlags::empty(),
        &SocketAddr::new(to, 0),
    );
}
