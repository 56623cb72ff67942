//! As much of SCTP (RFC 9260) as a question and an answer take: INIT, and the INIT ACK that it brings back. Raw sockets carry them,
//! so that no kernel needs to know the protocol at either end; what is between sees real packets.

/// `IPPROTO_SCTP`.
pub const PROTOCOL: u32 = 132;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;
/// The parameter of INIT ACK that carries what the answering side likes.
const STATE_COOKIE: u16 = 7;

/// A packet with one chunk.
#[derive(Debug, PartialEq, Eq)]
pub struct Packet {
    /// The ports that it comes from and goes to.
    pub ports: (u16, u16),
    /// What the receiver knows it by: 0 in INIT.
    pub tag: u32,
    /// What it carries.
    pub chunk: Chunk,
}

/// A chunk.
#[derive(Debug, PartialEq, Eq)]
pub enum Chunk {
    /// Who wants to talk, and the tag that it wants in the answer.
    Init(u32),
    /// The answer, with the answering side's name.
    InitAck(String),
    /// Nobody listens there.
    Abort,
}

impl Packet {
    /// As bytes, behind the IP header.
    pub fn bytes(&self) -> Vec<u8> {
        let fixed = |tag: u32| {
            let mut body = tag.to_be_bytes().to_vec();
            // A window, one stream each way, and a first number.
            body.extend([0, 0, 0xff, 0xff, 0, 1, 0, 1, 0, 0, 0, 1]);
            body
        };
        let (kind, body) = match &self.chunk {
            Chunk::Init(tag) => (INIT, fixed(*tag)),
            Chunk::InitAck(name) => {
                let mut body = fixed(1);
                body.extend(STATE_COOKIE.to_be_bytes());
                body.extend((4 + name.len() as u16).to_be_bytes());
                body.extend(name.as_bytes());
                (INIT_ACK, body)
            }
            Chunk::Abort => (ABORT, Vec::new()),
        };
        let mut bytes = self.ports.0.to_be_bytes().to_vec();
        bytes.extend(self.ports.1.to_be_bytes());
        bytes.extend(self.tag.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend([kind, 0]);
        bytes.extend((4 + body.len() as u16).to_be_bytes());
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let checksum = crc32c(&bytes);
        bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Of bytes behind the IP header; none for a packet that is none of these.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let two = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let four = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let chunk = match *bytes.get(12)? {
            INIT => Chunk::Init(four(16)?),
            INIT_ACK if two(32)? == STATE_COOKIE => {
                let end = 32 + usize::from(two(34)?);
                Chunk::InitAck(String::from_utf8(bytes.get(36..end)?.to_vec()).ok()?)
            }
            ABORT => Chunk::Abort,
            _ => return None,
        };
        Some(Self {
            ports: (two(0)?, two(2)?),
            tag: four(4)?,
            chunk,
        })
    }
}

/// The checksum of RFC 9260, appendix A.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 {
                crc >> 1 ^ 0x82f6_3b78
            } else {
                crc >> 1
            }
        })
    };
    !bytes.iter().fold(u32::MAX, step)
}

#[test]
fn packets_are_read_as_they_were_written() {
    // The check value of CRC-32C.
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    for chunk in [Chunk::Init(77), Chunk::InitAck("x/a".into()), Chunk::Abort] {
        let packet = Packet {
            ports: (40_000, 80),
            tag: 5,
            chunk,
        };
        let bytes = packet.bytes();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(Packet::parse(&bytes), Some(packet));
        for end in 0..bytes.len().min(32) {
            // Whatever is missing, nothing panics.
            Packet::parse(&bytes[..end]);
        }
    }
}
