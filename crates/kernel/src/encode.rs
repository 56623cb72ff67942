//! Netlink messages and attributes as bytes, out and in. It knows no message: what the numbers mean is the affair of the
//! rooms that write and read them.
//!
//! Numbers in netfilter's attributes are big-endian, rtnetlink's are as the machine has them. A length that a header field
//! cannot hold is written as the largest one, which the kernel refuses; nothing is cut silently.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::netlink::{u16_at, u32_at};

/// Flags of a message (linux/netlink.h).
pub(crate) const NLM_F_REQUEST: u16 = 0x1;
pub(crate) const NLM_F_ACK: u16 = 0x4;
pub(crate) const NLM_F_ECHO: u16 = 0x8;
/// A dump is not of one moment: something changed meanwhile.
pub(crate) const NLM_F_DUMP_INTR: u16 = 0x10;
/// Flags of a request for objects.
pub(crate) const NLM_F_DUMP: u16 = 0x300;
/// Flags of a request to make one.
pub(crate) const NLM_F_REPLACE: u16 = 0x100;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_APPEND: u16 = 0x800;
/// `NLA_F_NESTED` (linux/netlink.h): the attribute holds attributes.
const NLA_F_NESTED: u16 = 1 << 15;
/// `NLA_TYPE_MASK` (linux/netlink.h): the attribute's kind without its flags.
const NLA_TYPE_MASK: u16 = 0x3fff;
/// `NFTA_LIST_ELEM` (linux/netfilter/nf_tables.h): an element of a list.
pub(crate) const LIST_ELEM: u16 = 1;
/// `NFTA_DATA_VALUE`: plain bytes.
pub(crate) const DATA_VALUE: u16 = 1;
/// `sizeof(struct nlmsghdr)`.
const MESSAGE_HEADER: usize = 16;

/// The header of a message: `struct nlmsghdr` and `struct nfgenmsg` (linux/netfilter/nfnetlink.h).
#[derive(Clone, Copy)]
pub(crate) struct Header {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// `nfgen_family`.
    pub family: u8,
    /// `res_id`: the subsystem, for the messages that begin and end a batch.
    pub resource: u16,
}

/// Bytes being written.
#[derive(Debug, Clone, Default)]
pub(crate) struct Encoder(Vec<u8>);

impl Encoder {
    /// What was written.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Appends a message; its sequence number is 0 until [`Self::number`]. Gives where it begins.
    pub fn message(&mut self, header: Header, body: impl FnOnce(&mut Self)) -> usize {
        let begin = self.0.len();
        self.0.extend([0; 4]);
        self.0.extend(header.kind.to_ne_bytes());
        self.0.extend(header.flags.to_ne_bytes());
        self.0.extend([0; 8]);
        self.0.extend([header.family, 0]);
        self.0.extend(header.resource.to_be_bytes());
        body(self);
        let length = u32::try_from(self.0.len() - begin).unwrap_or(u32::MAX);
        self.overwrite(begin, &length.to_ne_bytes());
        begin
    }

    /// A message of rtnetlink, whose own header and attributes are still to be written; see [`Self::complete`].
    pub fn request(kind: u16) -> Self {
        let mut request = Self(vec![0; 4]);
        request.plain(&kind.to_ne_bytes());
        request.plain(&[0; 10]);
        request
    }

    /// Writes what only the sender of a request knows, and its length, into its header.
    pub fn complete(&mut self, flags: u16, sequence: u32) {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.overwrite(0, &length.to_ne_bytes());
        self.overwrite(6, &flags.to_ne_bytes());
        self.overwrite(8, &sequence.to_ne_bytes());
    }

    /// Bytes that are no attribute.
    pub fn plain(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// Adds flags to the message that begins at `begin`.
    pub fn add_flags(&mut self, begin: usize, flags: u16) {
        let flags = flags | u16_at(&self.0, begin + 6).unwrap_or_default();
        self.overwrite(begin + 6, &flags.to_ne_bytes());
    }

    /// Numbers all messages, from `sequence` on.
    pub fn number(&mut self, mut sequence: u32) {
        let mut begin = 0;
        while let Some(length) = u32_at(&self.0, begin) {
            self.overwrite(begin + 8, &sequence.to_ne_bytes());
            sequence = sequence.wrapping_add(1);
            begin += usize::try_from(length)
                .unwrap_or(usize::MAX)
                .max(MESSAGE_HEADER);
        }
    }

    /// An attribute of plain bytes.
    pub fn bytes_attribute(&mut self, kind: u16, bytes: &[u8]) {
        self.attribute(kind, |inside| inside.0.extend(bytes));
    }

    /// An attribute with text, which ends with a NUL (`NLA_NUL_STRING`).
    pub fn text(&mut self, kind: u16, text: &str) {
        self.attribute(kind, |inside| {
            inside.0.extend(text.as_bytes());
            inside.0.push(0);
        });
    }

    /// A 32-bit attribute, big-endian.
    pub fn number32(&mut self, kind: u16, number: u32) {
        self.bytes_attribute(kind, &number.to_be_bytes());
    }

    /// A 64-bit attribute, big-endian.
    pub fn number64(&mut self, kind: u16, number: u64) {
        self.bytes_attribute(kind, &number.to_be_bytes());
    }

    /// An 8-bit attribute.
    pub fn byte(&mut self, kind: u16, number: u8) {
        self.bytes_attribute(kind, &[number]);
    }

    /// A 32-bit attribute, as the machine has its numbers.
    pub fn native32(&mut self, kind: u16, number: u32) {
        self.bytes_attribute(kind, &number.to_ne_bytes());
    }

    /// An attribute with the bytes of an address.
    pub fn ip(&mut self, kind: u16, ip: IpAddr) {
        match ip {
            IpAddr::V4(ip) => self.bytes_attribute(kind, &ip.octets()),
            IpAddr::V6(ip) => self.bytes_attribute(kind, &ip.octets()),
        }
    }

    /// An attribute that holds attributes, and does not say so: most of rtnetlink is older than the flag.
    pub fn list(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        self.attribute(kind, body);
    }

    /// An attribute that holds attributes.
    pub fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        self.attribute(kind | NLA_F_NESTED, body);
    }

    /// An attribute that holds attributes which are bytes already.
    pub fn nest_bytes(&mut self, kind: u16, attributes: &[u8]) {
        self.nest(kind, |inside| inside.0.extend(attributes));
    }

    /// An attribute with plain bytes as `struct nft_data` is written.
    pub fn data(&mut self, kind: u16, bytes: &[u8]) {
        self.nest(kind, |data| data.bytes_attribute(DATA_VALUE, bytes));
    }

    fn attribute(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let begin = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        body(self);
        let length = u16::try_from(self.0.len() - begin).unwrap_or(u16::MAX);
        self.overwrite(begin, &length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// Puts `bytes` in the place of those that were written at `at`.
    pub fn overwrite(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.0.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }
}

/// The 8-bit number of an attribute.
pub(crate) fn byte(payload: &[u8]) -> Option<u8> {
    <[u8; 1]>::try_from(payload).ok().map(|[byte]| byte)
}

/// The 16-bit number of an attribute, as the machine has its numbers.
pub(crate) fn native16(payload: &[u8]) -> Option<u16> {
    payload.try_into().ok().map(u16::from_ne_bytes)
}

/// The 32-bit number of an attribute, as the machine has its numbers.
pub(crate) fn native32(payload: &[u8]) -> Option<u32> {
    payload.try_into().ok().map(u32::from_ne_bytes)
}

/// The text of an attribute, which may end with a NUL.
pub(crate) fn text(payload: &[u8]) -> Option<&str> {
    str::from_utf8(payload.strip_suffix(&[0]).unwrap_or(payload)).ok()
}

/// The address of an attribute, whose family its length tells.
pub(crate) fn ip(payload: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(payload).map(|bytes| Ipv4Addr::from(bytes).into());
    v4.or_else(|_| <[u8; 16]>::try_from(payload).map(|bytes| Ipv6Addr::from(bytes).into()))
        .ok()
}

/// The attributes in some bytes: kind and payload of each. It ends at anything that cannot be an attribute.
#[derive(Clone, Copy)]
pub(crate) struct Attributes<'a>(pub &'a [u8]);

impl<'a> Attributes<'a> {
    /// The payload of the first attribute of that kind.
    pub fn find(mut self, kind: u16) -> Option<&'a [u8]> {
        self.find_map(|(found, payload)| (found == kind).then_some(payload))
    }

    /// True when there is an attribute of that kind with a byte that is not 0.
    pub fn is_on(mut self, kind: u16) -> bool {
        self.any(|(found, payload)| found == kind && byte(payload).is_some_and(|on| on != 0))
    }

    /// The attributes inside of the first attribute of that kind.
    pub fn inside(self, kind: u16) -> Option<Self> {
        self.find(kind).map(Attributes)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_at(self.0, 0)?);
        let kind = u16_at(self.0, 2)? & NLA_TYPE_MASK;
        let payload = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let mut encoder = Encoder::default();
        encoder.text(1, "abcd");
        encoder.nest(2, |inside| inside.number32(7, 0x0102_0304));
        let read = Attributes(encoder.bytes());
        assert_eq!(read.find(1), Some(b"abcd\0".as_slice()));
        assert_eq!(
            read.inside(2).unwrap().find(7),
            Some([1, 2, 3, 4].as_slice())
        );
        assert_eq!(read.count(), 2);
        for broken in [&[][..], &[3, 0, 1, 0], &[9, 0, 1, 0, 0, 0, 0, 0]] {
            assert_eq!(Attributes(broken).count(), 0, "{broken:?}");
        }
    }
}
