//! A blocking rtnetlink socket: one request, its answers, nothing else.
//!
//! The socket belongs to the network namespace that it was opened in, for ever: open it there and use it from anywhere.
//! It never sends a message without waiting for the answer, and never hands out a part of an interrupted dump.
//! A surprise: `netlink_packet_route` must not be seen outside of this crate; its types change monthly.

use std::ffi::c_void;
use std::os::fd::{FromRawFd, OwnedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_ECHO, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, ParseableParametrized,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl};
use rustix::net::netdevice::name_to_index;

use crate::error::{Error, Result};
use crate::names::IfName;
use crate::netns::Netns;

/// `NLMSG_ERROR`: an error, or an acknowledgement when its code is 0 (netlink(7)).
const NLMSG_ERROR: u16 = 2;
/// `NLMSG_DONE`: the end of a dump.
const NLMSG_DONE: u16 = 3;
/// `NLMSGERR_ATTR_MSG`: the kernel's words about an error.
const NLMSGERR_ATTR_MSG: u16 = 1;
/// `sizeof(struct nlmsghdr)`.
const HEADER: usize = 16;
/// What the kernel fills at the most for one part of a dump (`NLMSG_GOODSIZE` grows up to 32 KiB).
pub(crate) const RECEIVE_BUFFER: usize = 64 * 1024;
/// How often an interrupted dump is begun again before it is an error.
pub(crate) const DUMP_TRIES: usize = 20;

/// `SIOCGSKNS` (linux/sockios.h): a descriptor of the network namespace that a socket is in.
const SIOCGSKNS: Opcode = 0x894c;

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
    /// One object.
    Object(Message),
    /// Of another request, or of a kind that we cannot read: a foreign object's affair.
    Other,
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

    /// The network namespace that the socket is in, which need not be the calling thread's.
    ///
    /// # Errors
    /// What the kernel answered; EPERM without CAP_NET_ADMIN there.
    pub fn netns(&self) -> Result<Netns> {
        // SAFETY: the request takes no argument and answers a new descriptor, which nobody else owns.
        unsafe { ioctl(&self.socket, NewDescriptor::<SIOCGSKNS>) }
            .map(|file| Netns::from_file(file, "of a netlink socket"))
            .map_err(|errno| Error::new("find the network namespace of a netlink socket", errno))
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
        let mut found = None;
        let attempt = || {
            // A question about a qdisc is answered only with NLM_F_ECHO; others do not mind it.
            self.send(message, NLM_F_ACK | NLM_F_ECHO)?;
            self.receive(|object| found = Some(object))
        };
        let outcome = attempt();
        outcome
            .and_then(|()| found.ok_or(Refusal::from(Errno::NOENT)))
            .map_err(|refusal| refusal.into_error(action()))
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
                self.receive(|object| picked.extend(pick(object)))
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
    fn receive(&mut self, mut object: impl FnMut(Message)) -> std::result::Result<(), Refusal> {
        let mut interrupted = false;
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Refusal::from_io(&error)),
            }
            let mut rest = self.buffer.as_slice();
            while let Some((message, after)) = split_message(rest) {
                rest = after;
                if message.sequence != self.sequence {
                    continue;
                }
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.read()? {
                    Answer::Done if interrupted => return Err(Refusal::from(Errno::INTR)),
                    Answer::Done => return Ok(()),
                    Answer::Object(found) => object(found),
                    Answer::Other => {}
                }
            }
        }
    }
}

/// An `ioctl` without an argument that answers a new descriptor.
struct NewDescriptor<const OPCODE: Opcode>;

// SAFETY: nothing is read or written through the pointer, and the output is a descriptor that nobody owns yet.
unsafe impl<const OPCODE: Opcode> Ioctl for NewDescriptor<OPCODE> {
    type Output = OwnedFd;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        OPCODE
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(output: IoctlOutput, _: *mut c_void) -> rustix::io::Result<OwnedFd> {
        // SAFETY: the kernel just made it for us.
        Ok(unsafe { OwnedFd::from_raw_fd(output) })
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
    kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) payload: &'a [u8],
}

/// Splits the first message off; none at the end and at anything that cannot be a message.
pub(crate) fn split_message(bytes: &[u8]) -> Option<(Received<'_>, &[u8])> {
    let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
    let payload = bytes.get(HEADER..length)?;
    let message = Received {
        kind: u16_at(bytes, 4)?,
        flags: u16_at(bytes, 6)?,
        sequence: u32_at(bytes, 8)?,
        payload,
    };
    Some((
        message,
        bytes.get(length.next_multiple_of(4)..).unwrap_or_default(),
    ))
}

impl Received<'_> {
    fn read(&self) -> std::result::Result<Answer, Refusal> {
        if let Some(outcome) = self.outcome() {
            return outcome.map(|()| Answer::Done);
        }
        // A foreign object in a form that this version of the codec does not know must not hide our own.
        Ok(match Message::parse_with_param(self.payload, self.kind) {
            Ok(message) => Answer::Object(message),
            Err(_) => Answer::Other,
        })
    }

    /// How the request ended, when this is its end and not an object.
    pub(crate) fn outcome(&self) -> Option<std::result::Result<(), Refusal>> {
        // NLMSG_DONE carries an error too, when a dump failed half-way.
        if !matches!(self.kind, NLMSG_ERROR | NLMSG_DONE) {
            return None;
        }
        let code = u32_at(self.payload, 0).unwrap_or(0).cast_signed();
        Some(match code {
            0 => Ok(()),
            code => Err(Refusal {
                errno: Errno::from_raw_os_error(code.wrapping_neg()),
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

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_message_end_the_reading() {
        assert!(split_message(&[]).is_none());
        assert!(
            split_message(&[4, 0, 0, 0, 0, 0, 0, 0]).is_none(),
            "shorter than its own header"
        );
        assert!(
            split_message(&[0xff; 16]).is_none(),
            "longer than what came"
        );
        let words = Received {
            kind: NLMSG_ERROR,
            flags: 0,
            sequence: 1,
            payload: &[0; 20],
        }
        .words();
        assert_eq!(words, None);
    }
}
