//! The packet filter's news: what somebody's transaction changed, by table and name.
//!
//! As with routes an event only says *look again*. But others change their tables all day (a Service proxy, every attachment
//! of a pod), so that what an event is about is read, and no more than that. A lost event counts as one about everything.

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use rustix::io::Errno;

use super::{Family, message};
use crate::encode::Attributes;
use crate::error::{Error, Result};
use crate::netlink::{RECEIVE_BUFFER, Refusal, split_message};

/// `NFNLGRP_NFTABLES` (linux/netfilter/nfnetlink.h).
const GROUP: u32 = 7;
/// `sizeof(struct nfgenmsg)`.
const GENERIC_HEADER: usize = 4;

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct News<'a> {
    /// The table's family.
    pub family: Family,
    /// The table's name.
    pub table: &'a str,
    /// The chain, or the chain of the rule, or the set, or the set of the element; none for a table.
    pub object: Option<&'a str>,
}

/// A subscription, in the network namespace of the thread that opened it.
pub struct NftMonitor {
    socket: Socket,
    buffer: Vec<u8>,
}

impl NftMonitor {
    /// Subscribes. What happens from now on is not missed.
    ///
    /// # Errors
    /// What `socket`, `bind` or `setsockopt` answered; EPROTONOSUPPORT from a kernel without nfnetlink.
    pub fn open() -> Result<Self> {
        let open = || -> std::io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind(&SocketAddr::new(0, 0))?;
            socket.add_membership(GROUP)?;
            Ok(socket)
        };
        let socket =
            open().map_err(|error| Error::from_io("subscribe to nftables' events", &error))?;
        Ok(Self {
            socket,
            buffer: Vec::with_capacity(RECEIVE_BUFFER),
        })
    }

    /// Waits for an event that `matters`, or for one that was lost.
    ///
    /// # Errors
    /// What `recv` answered, other than interruption and overrun.
    pub fn wait(&mut self, matters: impl Fn(&News<'_>) -> bool) -> Result<()> {
        loop {
            match self.receive(&matters) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                // Lost, or longer than the buffer.
                Err(refusal) if matches!(refusal.errno, Errno::NOBUFS | Errno::BADMSG) => {
                    return Ok(());
                }
                Err(refusal) if refusal.errno == Errno::INTR => {}
                Err(refusal) => return Err(refusal.into_error("wait for nftables' events".into())),
            }
        }
    }

    fn receive(
        &mut self,
        matters: impl Fn(&News<'_>) -> bool,
    ) -> std::result::Result<bool, Refusal> {
        self.buffer.clear();
        if let Err(error) = self.socket.recv(&mut self.buffer, 0) {
            return Err(Refusal::from_io(&error));
        }
        let mut rest = self.buffer.as_slice();
        while let Some(received) = split_message(&mut rest)? {
            if read(received.kind, received.payload).is_some_and(|news| matters(&news)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// What a message is about; none for one that is about nothing that is kept, such as a new generation.
fn read(kind: u16, payload: &[u8]) -> Option<News<'_>> {
    let attributes = Attributes(payload.get(GENERIC_HEADER..)?);
    let text = |attribute: u16| {
        let bytes = attributes.find(attribute)?;
        std::str::from_utf8(bytes.split(|byte| *byte == 0).next()?).ok()
    };
    // The table's name is attribute 1 of all of them (`NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, …).
    let object = match kind {
        message::NEW_TABLE | message::DELETE_TABLE => None,
        message::NEW_CHAIN | message::DELETE_CHAIN => Some(text(3)?), // NFTA_CHAIN_NAME
        // NFTA_RULE_CHAIN, NFTA_SET_NAME, NFTA_SET_ELEM_LIST_SET
        message::NEW_RULE
        | message::DELETE_RULE
        | message::NEW_SET
        | message::DELETE_SET
        | message::NEW_ELEMENT
        | message::DELETE_ELEMENT => Some(text(2)?),
        _ => return None,
    };
    Some(News {
        family: Family::from_number(*payload.first()?)?,
        table: text(1)?,
        object,
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Batch, Element, Nft, Set, Table, Type, Value};
    use super::*;
    use crate::testing::TestNs;

    fn nft(words: &str) {
        let status = std::process::Command::new("nft").arg(words).status();
        assert!(status.unwrap().success(), "nft {words}");
    }

    #[test]
    fn what_matters_is_told_by_table_and_name_and_nothing_else_wakes() {
        let _ns = TestNs::new();
        let mut monitor = NftMonitor::open().unwrap();
        nft("add table ip others; add chain ip others c");
        nft(
            "add table inet ours; add set inet ours s { type ipv4_addr; }; add chain inet ours c; add chain inet ours d",
        );
        nft("add element inet ours s { 10.0.0.1 }");
        nft("add rule inet ours c drop");
        nft("delete table ip others");
        nft("delete table inet ours");
        let seen = std::cell::RefCell::new(Vec::new());
        let last = |news: &News<'_>| {
            let object = news.object.unwrap_or("-");
            let text = format!("{} {} {object}", news.family, news.table);
            let mut seen = seen.borrow_mut();
            if seen.last() != Some(&text) {
                seen.push(text);
            }
            news.table == "ours" && news.object.is_none() && seen.len() > 9
        };
        monitor.wait(last).unwrap();
        let seen = seen.into_inner();
        for expected in [
            "ip others -",
            "ip others c",
            "inet ours -",
            "inet ours s",
            "inet ours c",
            "inet ours d",
        ] {
            assert!(seen.iter().any(|text| text == expected), "{seen:#?}");
        }
    }

    #[test]
    fn an_overrun_is_an_event() {
        let _ns = TestNs::new();
        let mut monitor = NftMonitor::open().unwrap();
        let table = Table {
            family: Family::Inet,
            name: "ours",
        };
        let set = Set::of(table, "s", &[Type::Mark]);
        let mut batch = Batch::new();
        batch.add_table(table);
        batch.add_set(&set);
        for number in 0..20_000 {
            batch.add_element(&set, &Element::new([Value::Mark(number)]));
        }
        Nft::open().unwrap().commit(batch).unwrap();
        monitor.wait(|_| false).unwrap();
    }
}
