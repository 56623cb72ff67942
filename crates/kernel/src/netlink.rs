//! A blocking rtnetlink socket: one request, its answers, nothing else.
//!
//! The socket belongs to the network namespace that it was opened in, for ever: open it there and use it from anywhere.
//! It never sends a message without reading the answer, never hands out a part of an interrupted dump, and never waits: the
//! kernel has answered when the request is sent (`netlink_unicast_kernel`), so that a lost answer is an error and no hang.
//! A surprise: `netlink_packet_route` must not be seen outside of this crate; its types change monthly.

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_ECHO, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, Parseable,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::tc::TcMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::net::netdevice::name_to_index;

use crate::error::{Error, Result};
use crate::names::IfName;
use crate::netns::Netns;

/// `NLMSG_ERROR`: an error, or an acknowledgement when its code is 0 (netlink(7)).
const NLMSG_ERROR: u16 = 2;
/// `NLMSG_DONE`: the end of a dump.
const NLMSG_DONE: u16 = 3;
/// Objects, as answers tell them (linux/rtnetlink.h).
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWNEIGH: u16 = 28;
const RTM_NEWQDISC: u16 = 36;
const RTM_NEWTFILTER: u16 = 44;
/// `NLMSGERR_ATTR_MSG`: the kernel's words about an error.
const NLMSGERR_ATTR_MSG: u16 = 1;
/// `sizeof(struct nlmsghdr)`.
const HEADER: usize = 16;
/// What the kernel fills at the most for one part of a dump (`NLMSG_GOODSIZE` grows up to 32 KiB).
pub(crate) const RECEIVE_BUFFER: usize = 64 * 1024;
/// How often an interrupted dump is begun again before it is an error.
pub(crate) const DUMP_TRIES: usize = 20;

/// A request's message to the kernel.
pub(crate) type Message = RouteNetlinkMessage;

/// A connection to the routing part of the kernel, in one network namespace.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

/// What one received message meant for the request that is waited for.
enum Answer {
    /// The kernel did as asked, or a dump is at its end.
    Done,
    /// One object; none when it is in a form that this version of the codec does not know.
    Object(Option<Message>),
}

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
        message: Message,
        flags: u16,
        action: impl FnOnce() -> String,
    ) -> Result<()> {
        let attempt = || {
            self.send(message, flags | NLM_F_ACK)?;
            self.receive(|_| ())
        };
        attempt().map_err(|refusal| refusal.into_error(action()))
    }

    /// Asks for one object.
    pub(crate) fn query(
        &mut self,
        message: Message,
        action: impl FnOnce() -> String,
    ) -> Result<Message> {
        let mut found = Err(Errno::NOENT);
        let attempt = || {
            // A question about a qdisc is answered only with NLM_F_ECHO; others do not mind it.
            self.send(message, NLM_F_ACK | NLM_F_ECHO)?;
            // What cannot be read is there all the same: it must not pass for not found.
            self.receive(|object| found = object.ok_or(Errno::BADMSG))?;
            Ok(found?)
        };
        attempt().map_err(|refusal: Refusal| refusal.into_error(action()))
    }

    /// Asks for all objects of a kind and keeps what `pick` makes of them.
    ///
    /// A dump that the kernel calls interrupted (`NLM_F_DUMP_INTR`: something changed meanwhile) is begun again.
    pub(crate) fn dump<T>(
        &mut self,
        message: Message,
        action: &str,
        mut pick: impl FnMut(Message) -> Option<T>,
    ) -> Result<Vec<T>> {
        for _ in 0..DUMP_TRIES {
            let mut picked = Vec::new();
            let mut attempt = || {
                self.send(message.clone(), NLM_F_DUMP)?;
                // A foreign object that cannot be read must not hide our own.
                self.receive(|object| picked.extend(object.and_then(&mut pick)))
            };
            match attempt() {
                Ok(()) => return Ok(picked),
                Err(refusal) if refusal.errno == Errno::INTR => {}
                Err(refusal) => return Err(refusal.into_error(action.to_owned())),
            }
        }
        Err(Error::new(action, Errno::INTR))
    }

    fn send(&mut self, message: Message, flags: u16) -> std::result::Result<(), Refusal> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        loop {
            match self.socket.send(&bytes, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Refusal::from_io(&error)),
            }
        }
    }

    /// Reads until the answer to the last request is complete.
    fn receive(
        &mut self,
        mut object: impl FnMut(Option<Message>),
    ) -> std::result::Result<(), Refusal> {
        let mut reply = Reply {
            sequence: self.sequence,
            interrupted: false,
        };
        loop {
            receive_datagram(&self.socket, &mut self.buffer)?;
            if reply.take(&self.buffer, &mut object)? {
                return Ok(());
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
    interrupted: bool,
}

impl Reply {
    /// Gives the objects of a datagram to `object`; true when the reply is at its end.
    fn take(
        &mut self,
        datagram: &[u8],
        object: &mut impl FnMut(Option<Message>),
    ) -> std::result::Result<bool, Refusal> {
        let mut rest = datagram;
        while let Some(message) = split_message(&mut rest)? {
            if message.sequence != self.sequence {
                continue;
            }
            self.interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
            match message.read()? {
                Answer::Done if self.interrupted => return Err(Refusal::from(Errno::INTR)),
                Answer::Done => return Ok(true),
                Answer::Object(found) => object(found),
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
    fn read(&self) -> std::result::Result<Answer, Refusal> {
        if let Some(outcome) = self.outcome() {
            return outcome.map(|()| Answer::Done);
        }
        Ok(Answer::Object(self.object()))
    }

    /// The object, where it is of a kind that is asked for here. The codec knows many more, which would all be in the
    /// executable.
    fn object(&self) -> Option<Message> {
        let bytes = self.payload;
        Some(match self.kind {
            RTM_NEWLINK => Message::NewLink(LinkMessage::parse(bytes).ok()?),
            RTM_NEWADDR => Message::NewAddress(AddressMessage::parse(bytes).ok()?),
            RTM_NEWROUTE => Message::NewRoute(RouteMessage::parse(bytes).ok()?),
            RTM_NEWNEIGH => Message::NewNeighbour(NeighbourMessage::parse(bytes).ok()?),
            RTM_NEWQDISC => Message::NewQueueDiscipline(TcMessage::parse(bytes).ok()?),
            RTM_NEWTFILTER => Message::NewTrafficFilter(TcMessage::parse(bytes).ok()?),
            _ => return None,
        })
    }

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
        let mut attributes = self.payload.get(4 + HEADER..)?;
        loop {
            let length = usize::from(u16_at(attributes, 0)?);
            if u16_at(attributes, 2)? == NLMSGERR_ATTR_MSG {
                let text = attributes.get(4..length)?;
                return Some(
                    String::from_utf8_lossy(text)
                        .trim_end_matches('\0')
                        .to_owned(),
                );
            }
            attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
        }
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
