//! Neighbours: what the kernel has found out about who has which address on a link, and how to make it forget.
//!
//! Only what was found out is forgotten: what somebody wrote down (`permanent`) stays, and so do the entries that need no
//! finding out (`noarp`). A surprise: each namespace sees its own, but the kernel counts those of all namespaces together
//! (`gc_entries` of `struct neigh_table`), and beyond `gc_thresh3` nobody on the machine finds a new one.

use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};

use crate::error::Result;
use crate::netlink::{Message, Netlink};

impl Netlink {
    /// Forgets every neighbour that was found out, of both families.
    ///
    /// # Errors
    /// What the kernel answered; that one is gone already is fine.
    pub fn forget_neighbours(&mut self) -> Result<()> {
        let request = Message::GetNeighbour(NeighbourMessage::default());
        let found = self.dump(request, "list neighbours", |message| match message {
            Message::NewNeighbour(neighbour) if is_found_out(&neighbour) => Some(neighbour),
            _ => None,
        })?;
        for mut neighbour in found {
            neighbour
                .attributes
                .retain(|attribute| matches!(attribute, NeighbourAttribute::Destination(_)));
            let action = || "forget neighbour".to_owned();
            match self.change(Message::DelNeighbour(neighbour), 0, action) {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

fn is_found_out(neighbour: &NeighbourMessage) -> bool {
    use netlink_packet_route::AddressFamily::{Inet, Inet6};
    matches!(neighbour.header.family, Inet | Inet6)
        && !matches!(
            neighbour.header.state,
            NeighbourState::Permanent | NeighbourState::Noarp | NeighbourState::None
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestNs;

    #[test]
    fn what_was_found_out_is_forgotten_and_what_was_written_down_stays() {
        let ns = TestNs::new();
        ns.ip("link add br0 up type bridge");
        ns.ip("address add 10.244.1.1/24 dev br0");
        ns.ip("neigh add 10.244.1.2 lladdr 0a:58:0a:f4:01:02 dev br0 nud stale");
        ns.ip("neigh add fd00::2 lladdr 0a:58:0a:f4:01:02 dev br0 nud reachable");
        ns.ip("neigh add 10.244.1.3 lladdr 0a:58:0a:f4:01:03 dev br0 nud permanent");
        let mut netlink = Netlink::open().unwrap();
        netlink.forget_neighbours().unwrap();
        netlink.forget_neighbours().unwrap();
        let left = ns.ip("neigh show dev br0");
        let left: Vec<_> = left.as_array().unwrap().iter().map(|n| &n["dst"]).collect();
        assert_eq!(left, ["10.244.1.3"]);
    }
}
