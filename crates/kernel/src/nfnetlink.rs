//! A blocking nfnetlink socket: the netfilter parts of the kernel, each by its own kinds of messages.
//!
//! As `netlink` is for routing: it never sends a request without waiting for the answer, and never hands out a part of an
//! interrupted dump. The messages are written and read by the rooms that know them, with [`encode`](crate::encode).

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use rustix::io::Errno;
use rustix::net::sockopt;

use crate::encode::{Attributes, Encoder, Header, NLM_F_DUMP_INTR};
use crate::error::{Error, Result};
use crate::netlink::{
    DUMP_TRIES, RECEIVE_BUFFER, Received, Refusal, receive_datagram, split_message, u16_at,
};

/// `sizeof(struct nfgenmsg)`: what precedes the attributes of an answer.
const GENERIC_HEADER: usize = 4;
/// What the kernel keeps back of a send buffer (`netlink_sendmsg`).
const SEND_RESERVE: usize = 32;

/// A connection to netfilter, in the network namespace that it was opened in.
pub(crate) struct Nfnetlink {
    pub(crate) socket: Socket,
    /// The number of the last message sent.
    pub(crate) sequence: u32,
    pub(crate) buffer: Vec<u8>,
}

impl Nfnetlink {
    /// Opens a socket in the network namespace of the calling thread, for what `purpose` names.
    ///
    /// # Errors
    /// What `socket`, `bind` or `setsockopt` answered; EPROTONOSUPPORT from a kernel without nfnetlink.
    pub(crate) fn open(purpose: &str) -> Result<Self> {
        let open = || -> std::io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind(&SocketAddr::new(0, 0))?;
            // An error's answer then holds the kernel's words and not our own request again.
            socket.set_cap_ack(true)?;
            socket.set_ext_ack(true)?;
            Ok(socket)
        };
        let socket =
            open().map_err(|error| Error::from_io(format!("open {purpose} socket"), &error))?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: Vec::with_capacity(RECEIVE_BUFFER),
        })
    }

    /// Asks for all objects of a kind; `part` sees the attributes of each message, and none at a fresh beginning.
    ///
    /// A dump between whose parts a change came is begun again: the kernel finds its place by counting, and then skips others.
    /// It does not always call such a dump interrupted itself (`NLM_F_DUMP_INTR`).
    pub(crate) fn dump(
        &mut self,
        header: Header,
        body: impl Fn(&mut Encoder),
        mut part: impl FnMut(Option<Attributes<'_>>),
    ) -> std::result::Result<(), Refusal> {
        for _ in 0..DUMP_TRIES {
            part(None);
            match self.ask(header, &body, |attributes| part(Some(attributes))) {
                Err(refusal) if refusal.errno == Errno::INTR => {}
                outcome => return outcome,
            }
        }
        Err(Errno::INTR.into())
    }

    /// Sends one request and reads until its end; `object` sees the attributes of each answer.
    pub(crate) fn ask(
        &mut self,
        header: Header,
        body: impl FnOnce(&mut Encoder),
        mut object: impl FnMut(Attributes<'_>),
    ) -> std::result::Result<(), Refusal> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        let mut request = Encoder::default();
        request.message(header, body);
        request.number(sequence);
        self.send(request.bytes())?;
        let mut interrupted = false;
        let mut generation = None;
        loop {
            let ended = self.receive(|answer| {
                if answer.sequence != sequence {
                    return None;
                }
                interrupted |= answer.flags & NLM_F_DUMP_INTR != 0;
                let outcome = answer.outcome();
                if outcome.is_none() {
                    // Of nf_tables, `res_id` is the number of the last commit (`nft_base_seq`); of others it is 0.
                    let of_part = u16_at(answer.payload, 2);
                    interrupted |= *generation.get_or_insert(of_part) != of_part;
                    let payload = answer.payload.get(GENERIC_HEADER..);
                    object(Attributes(payload.unwrap_or_default()));
                }
                outcome
            })?;
            match ended {
                Some(Ok(())) if interrupted => return Err(Errno::INTR.into()),
                Some(outcome) => return outcome,
                None => {}
            }
        }
    }

    /// Sends bytes at once. The send buffer grows when the kernel says that they do not fit.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> std::result::Result<(), Refusal> {
        let mut grown = false;
        loop {
            let Err(error) = self.socket.send(bytes, 0) else {
                return Ok(());
            };
            let refusal = Refusal::from_io(&error);
            match refusal.errno {
                Errno::INTR => {}
                Errno::MSGSIZE if !grown => {
                    grown = true;
                    let size = bytes.len() + SEND_RESERVE;
                    // Beyond net.core.wmem_max only with the right to; otherwise as far as it goes.
                    sockopt::set_socket_send_buffer_size_force(&self.socket, size)
                        .or_else(|_| sockopt::set_socket_send_buffer_size(&self.socket, size))?;
                }
                _ => return Err(refusal),
            }
        }
    }

    /// Reads one datagram and gives each message in it to `look`, until that gives something.
    pub(crate) fn receive<T>(
        &mut self,
        mut look: impl FnMut(&Received<'_>) -> Option<T>,
    ) -> std::result::Result<Option<T>, Refusal> {
        receive_datagram(&self.socket, &mut self.buffer)?;
        let mut rest = self.buffer.as_slice();
        while let Some(message) = split_message(&mut rest)? {
            if let Some(found) = look(&message) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}
