//! A blocking rtnetlink socket: one request, its answers, nothing else.
//!
//! The socket belongs to the network namespace that it was opened in, for ever: open it there and use it from anywhere.
//! It never sends a message without reading the answer, never hands out a part of an interrupted dump, and never waits: the
//! kernel has answered when the request is sent (`netlink_unicast_kernel`), so that a lost answer is an error and no hang.
//! What a request or an answer says is written and read by the rooms that know it, with [`encode`](crate::encode). A
//! surprise: the answer to a request for an object is of the kind that makes one, whose number is lower by two.

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::net::netdevice::name_to_index;

use crate::encode::{
    Attributes, Encoder, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_ECHO, NLM_F_REQUEST,
};
use crate::error::{Error, Result};
use crate::names::IfName;
use crate::netns::Netns;

/// `NLMSG_ERROR`: an error, or an acknowledgement when its code is 0 (netlink(7)).
const NLMSG_ERROR: u16 = 2;
/// `NLMSG_DONE`: the end of a dump.
const NLMSG_DONE: u16 = 3;
/// `NLMSGERR_ATTR_MSG`: the kernel's words about an error.
const NLMSGERR_ATTR_MSG: u16 = 1;
/// `sizeof(struct nlmsghdr)`, and where it has the kind.
const HEADER: usize = 16;
const KIND_AT: usize = 4;
/// What the kernel fills at the most for one part of a dump (`NLMSG_GOODSIZE` grows up to 32 KiB).
pub(crate) const RECEIVE_BUFFER: usize = 64 * 1024;
/// How often an interrupted dump is begun again before it is an error.
pub(crate) const DUMP_TRIES: usize = 20;

/// The kinds of messages (linux/rtnetlink.h).
pub(crate) mod message {
    pub(crate) const NEW_LINK: u16 = 16;
    pub(crate) const DELETE_LINK: u16 = 17;
    pub(crate) const GET_LINK: u16 = 18;
    pub(crate) const SET_LINK: u16 = 19;
    pub(crate) const NEW_ADDRESS: u16 = 20;
    pub(crate) const DELETE_ADDRESS: u16 = 21;
    pub(crate) const GET_ADDRESS: u16 = 22;
    pub(crate) const NEW_ROUTE: u16 = 24;
    pub(crate) const DELETE_ROUTE: u16 = 25;
    pub(crate) const GET_ROUTE: u16 = 26;
    pub(crate) const NEW_NEIGHBOUR: u16 = 28;
    pub(crate) const DELETE_NEIGHBOUR: u16 = 29;
    pub(crate) const GET_NEIGHBOUR: u16 = 30;
    pub(crate) const NEW_QDISC: u16 = 36;
    pub(crate) const DELETE_QDISC: u16 = 37;
    pub(crate) const GET_QDISC: u16 = 38;
    pub(crate) const NEW_FILTER: u16 = 44;
    pub(crate) const DELETE_FILTER: u16 = 45;
    pub(crate) const GET_FILTER: u16 = 46;
}
/// By how much the kind of a question is above that of its answer.
const QUESTION: u16 = message::GET_LINK - message::NEW_LINK;

/// A connection to the routing part of the kernel, in one network namespace.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

/// Takes an object that the kernel tells of; none when it is of another kind than was asked for.
type Take<'t> = &'t mut dyn FnMut(Option<&[u8]>);

impl Netlink {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// What `socket`, `bind` or `setsockopt` answered.
    pub fn open() -> Result<Self> {
        let open = || -> std::io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind(&SocketAddr::new(0, 0))?;
            // An error's answer then holds the kernel's words and not our own request again.
            socket.set_cap_ack(true)?;
            socket.set_ext_ack(true)?;
            // A dump then gives only what its header asks for (Linux 4.20); older kernels give all, and we filter too.
            let _ = socket.set_netlink_get_strict_chk(true);
            Ok(socket)
        };
        let socket = open().map_err(|error| Error::from_io("open netlink socket", &error))?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: Vec::with_capacity(RECEIVE_BUFFER),
        })
    }

    /// The network namespace that it reaches, wherever the calling thread is.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn netns(&self) -> Result<Netns> {
        Netns::of_socket(&self.socket)
    }

    /// The index of the link of that name, which costs a tenth of [`Self::link`].
    ///
    /// # Errors
    /// Not found, or what the kernel answered.
    pub fn link_index(&self, name: &IfName) -> Result<u32> {
        name_to_index(&self.socket, name.as_str())
            .map_err(|errno| Error::new(format!("find link {name}"), errno))
    }

    /// Sends a request that changes something and waits until the kernel has done it.
    ///
    /// `flags` are `NLM_F_CREATE` and its like; `action` names operation and object for the error.
    pub(crate) fn change(
        &mut self,
        mut request: Encoder,
        flags: u16,
        action: impl FnOnce() -> String,
    ) -> Result<()> {
        self.ask(&mut request, flags | NLM_F_ACK, &mut |_| ())
            .map_err(|refusal| refusal.into_error(action()))
    }

    /// Asks for one object, which `read` makes something of.
    pub(crate) fn query<T>(
        &mut self,
        mut request: Encoder,
        read: impl Fn(&[u8]) -> Option<T>,
        action: impl FnOnce() -> String,
    ) -> Result<T> {
        let mut found = Err(Errno::NOENT);
        // What cannot be read is there all the same: it must not pass for not found.
        let mut take = |object: Option<&[u8]>| found = object.and_then(&read).ok_or(Errno::BADMSG);
        // A question about a qdisc is answered only with NLM_F_ECHO; others do not mind it.
        let asked = self.ask(&mut request, NLM_F_ACK | NLM_F_ECHO, &mut take);
        asked
            .and_then(|()| Ok(found?))
            .map_err(|refusal| refusal.into_error(action()))
    }

    /// Asks for all objects of a kind and keeps what `pick` makes of them.
    ///
    /// A dump that the kernel calls interrupted (`NLM_F_DUMP_INTR`: something changed meanwhile) is begun again.
    pub(crate) fn dump<T>(
        &mut self,
        mut request: Encoder,
        action: &str,
        mut pick: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>> {
        for _ in 0..DUMP_TRIES {
            let mut picked = Vec::new();
            // A foreign object that cannot be read must not hide our own.
            let mut take = |object: Option<&[u8]>| picked.extend(object.and_then(&mut pick));
            match self.ask(&mut request, NLM_F_DUMP, &mut take) {
                Ok(()) => return Ok(picked),
                Err(refusal) if refusal.errno == Errno::INTR => {}
                Err(refusal) => return Err(refusal.into_error(action.to_owned())),
            }
        }
        Err(Error::new(action, Errno::INTR))
    }

    /// Sends a request and reads its answer to the end.
    fn ask(
        &mut self,
        request: &mut Encoder,
        flags: u16,
        take: Take<'_>,
    ) -> std::result::Result<(), Refusal> {
        self.send(request, flags)?;
        let kind = u16_at(request.bytes(), KIND_AT).unwrap_or_default();
        let mut reply = Reply {
            sequence: self.sequence,
            kind: kind.wrapping_sub(QUESTION),
            interrupted: false,
        };
        loop {
            receive_datagram(&self.socket, &mut self.buffer)?;
            if reply.take(&self.buffer, take)? {
                return Ok(());
            }
        }
    }

    fn send(&mut self, request: &mut Encoder, flags: u16) -> std::result::Result<(), Refusal> {
        self.sequence = self.sequence.wrapping_add(1);
        request.complete(NLM_F_REQUEST | flags, self.sequence);
        loop {
            match self.socket.send(request.bytes(), 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Refusal::from_io(&error)),
            }
        }
    }
}

/// Reads one datagram into `buffer`, whose capacity bounds it.
pub(crate) fn receive_datagram(
    socket: &Socket,
    buffer: &mut Vec<u8>,
) -> std::result::Result<(), Refusal> {
    loop {
        buffer.clear();
        match socket.recv(buffer, RecvFlags::DONTWAIT.bits().cast_signed()) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            // All that the kernel had to say was read, and it was no end.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                return Err(Refusal::from(Errno::NOMSG));
            }
            Err(error) => return Err(Refusal::from_io(&error)),
        }
    }
}

/// What the kernel's datagrams have told of one request so far.
struct Reply {
    sequence: u32,
    /// That of the objects which were asked for.
    kind: u16,
    interrupted: bool,
}

impl Reply {
    /// Gives the objects of a datagram to `take`; true when the reply is at its end.
    fn take(&mut self, datagram: &[u8], take: Take<'_>) -> std::result::Result<bool, Refusal> {
        let mut rest = datagram;
        while let Some(message) = split_message(&mut rest)? {
            if message.sequence != self.sequence {
                continue;
            }
            self.interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
            match message.outcome() {
                Some(Ok(())) if self.interrupted => return Err(Refusal::from(Errno::INTR)),
                Some(outcome) => return outcome.map(|()| true),
                None => take(Some(message.payload).filter(|_| message.kind == self.kind)),
            }
        }
        Ok(false)
    }
}

/// An errno with the kernel's words about it, before it is known which operation it belongs to.
pub(crate) struct Refusal {
    pub(crate) errno: Errno,
    detail: Option<String>,
}

impl Refusal {
    pub(crate) fn from_io(error: &std::io::Error) -> Self {
        Self::from(Errno::from_io_error(error).unwrap_or(Errno::IO))
    }

    pub(crate) fn into_error(self, action: String) -> Error {
        Error::new(action, self.errno).with_detail(self.detail)
    }
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self {
            errno,
            detail: None,
        }
    }
}

/// One message as it came: the fields of `struct nlmsghdr` that matter, and the payload.
pub(crate) struct Received<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) payload: &'a [u8],
}

/// Splits the first message off; none at the end. EBADMSG for anything that cannot be a message: what is behind it is lost,
/// and with it perhaps the answer.
pub(crate) fn split_message<'a>(
    rest: &mut &'a [u8],
) -> std::result::Result<Option<Received<'a>>, Refusal> {
    if rest.is_empty() {
        return Ok(None);
    }
    let read = |bytes: &'a [u8]| {
        let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
        let message = Received {
            kind: u16_at(bytes, 4)?,
            flags: u16_at(bytes, 6)?,
            sequence: u32_at(bytes, 8)?,
            payload: bytes.get(HEADER..length)?,
        };
        let after = bytes.get(length.next_multiple_of(4)..);
        Some((message, after.unwrap_or_default()))
    };
    let (message, after) = read(rest).ok_or(Refusal::from(Errno::BADMSG))?;
    *rest = after;
    Ok(Some(message))
}

impl Received<'_> {
    /// How the request ended, when this is its end and not an object.
    pub(crate) fn outcome(&self) -> Option<std::result::Result<(), Refusal>> {
        // NLMSG_DONE carries an error too, when a dump failed half-way.
        if !matches!(self.kind, NLMSG_ERROR | NLMSG_DONE) {
            return None;
        }
        Some(match u32_at(self.payload, 0).map(u32::cast_signed) {
            None => Err(Errno::BADMSG.into()),
            Some(0) => Ok(()),
            Some(code) => Err(Refusal {
                errno: errno(code),
                detail: self.words(),
            }),
        })
    }

    /// The kernel's words about an error: the attributes follow the code and the (capped) header of our request.
    fn words(&self) -> Option<String> {
        let attributes = Attributes(self.payload.get(4 + HEADER..)?);
        let words = String::from_utf8_lossy(attributes.find(NLMSGERR_ATTR_MSG)?);
        Some(words.trim_end_matches('\0').to_owned())
    }
}

/// The errno in an answer, where it is negative; EBADMSG for what is no errno (`MAX_ERRNO`, linux/err.h).
fn errno(code: i32) -> Errno {
    match code {
        -4095..=-1 => Errno::from_raw_os_error(-code),
        _ => Errno::BADMSG,
    }
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
pub(crate) mod tests;
