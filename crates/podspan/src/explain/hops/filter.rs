//! The packet filter on the way: what drops what the node forwards, and what may give it another source.
//!
//! Policies of chains are read. Rules are not followed: those that drop something are named, and whether they drop this packet,
//! real packets tell.

use podspan_cni::filter::INET;
use podspan_cni::forwarding::TABLES;
use podspan_kernel::nft::{
    Chain, ChainKind, Family, Hook, ListedBase, ListedChain, Nft, Policy, Table, Verdict,
};

use super::{Hop, State, Way};
use crate::desired::Desired;
use crate::forwarding;

/// So many chains are named.
const NAMED: usize = 3;
/// So many are looked into: those of a Service proxy may be very many.
const LOOKED_INTO: usize = 200;

impl Way<'_> {
    /// Where the node's packet filter may drop or translate what it forwards.
    pub(super) fn filters(&mut self, desired: &Desired) {
        let own = match self.to.ip.is_ipv4() {
            true => Family::Ip,
            false => Family::Ip6,
        };
        let chains = match list(own) {
            Ok(chains) => chains,
            Err(error) => {
                return self.on_node(State::Unseen, format!("the packet filter: {error}"));
            }
        };
        let is_outweighed = chains.iter().any(|chain| chain.name == forwarding::NAME);
        let before = self.hops.len();
        for (chain, base) in based(&chains) {
            if is_on_the_way(base) && base.policy == Policy::Drop {
                let hop = self.drop(chain, is_outweighed, desired);
                self.hops.push(hop);
            }
        }
        if self.hops.len() == before {
            let what = "no chain drops what this node forwards by its policy";
            self.on_node(State::Right, what);
        }
        let refusing = Nft::open().map(|mut nft| refusing(&mut nft, &chains));
        let refusing = refusing.unwrap_or_default();
        if !refusing.is_empty() {
            let more = refusing.len().saturating_sub(NAMED);
            let named = refusing.into_iter().take(NAMED).collect::<Vec<_>>();
            let more = match more {
                0 => String::new(),
                more => format!(", and of {more} more"),
            };
            let what = format!(
                "some packets are dropped by rules of {}{more}: nft list {}",
                named.join(", "),
                named.join("; nft list ")
            );
            self.on_node(State::Unseen, what);
        }
        for (chain, base) in based(&chains) {
            let translates = base.kind == Some(ChainKind::Nat) && base.hook == Hook::Postrouting;
            if translates && chain.table != INET.name {
                let place = place(chain);
                let what = format!("{place} may translate the source address: nft list {place}");
                self.on_node(State::Unseen, what);
            }
        }
        if desired.masquerade.is_some() {
            let what = "the source address is kept: the other pod is inside of the cluster";
            self.on_node(State::Right, what);
        }
    }

    /// A chain that drops what none of its rules accepts; ours outweighs that of iptables.
    fn drop(&self, chain: &ListedChain, is_outweighed: bool, desired: &Desired) -> Hop {
        let (family, table, name) = (chain.family, &chain.table, &chain.name);
        let place = place(chain);
        let mut iptables = TABLES.iter();
        let is_iptables = iptables.any(|known| known.family == family && known.name == table);
        if is_iptables && name == "FORWARD" && is_outweighed {
            let what = format!(
                "{place} drops what no rule accepts; {} accepts what pods send and get",
                forwarding::NAME
            );
            return self.node_hop(State::Right, what);
        }
        let link = desired.bridge.as_ref().map(|bridge| bridge.name.as_str());
        let link = link.unwrap_or_default();
        let what = format!("{place} drops what none of its rules accepts");
        let mend = format!(
            "nft list {place}; nft add rule {family} {table} {name} iifname {link} accept, and oifname {link}"
        );
        self.node_hop(State::Perhaps, what).mended_by(mend)
    }
}

/// The chains that packets of that family go through.
fn list(own: Family) -> podspan_kernel::Result<Vec<ListedChain>> {
    let mut nft = Nft::open()?;
    let mut chains = nft.list_chains(own)?;
    chains.extend(nft.list_chains(Family::Inet)?);
    Ok(chains)
}

fn based(chains: &[ListedChain]) -> impl Iterator<Item = (&ListedChain, ListedBase)> {
    chains.iter().filter_map(|chain| Some((chain, chain.base?)))
}

/// Where packets come that are forwarded.
fn is_on_the_way(base: ListedBase) -> bool {
    matches!(base.hook, Hook::Prerouting | Hook::Forward)
}

/// The chains on the way, and those that they lead to, which have rules that drop or reject something; ours, of which the policies
/// tell, are not among them.
fn refusing(nft: &mut Nft, chains: &[ListedChain]) -> Vec<String> {
    let on_the_way = based(chains).filter(|(chain, base)| {
        is_on_the_way(*base) && base.kind == Some(ChainKind::Filter) && chain.table != INET.name
    });
    let mut reached: Vec<ListedChain> = on_the_way.map(|(chain, _)| chain.clone()).collect();
    let mut refusing = Vec::new();
    let mut next = 0;
    while let Some(chain) = reached.get(next).cloned().filter(|_| next < LOOKED_INTO) {
        next += 1;
        let table = Table {
            family: chain.family,
            name: &chain.table,
        };
        // One that went meanwhile has none.
        let rules = nft
            .list_rules(Chain::plain(table, &chain.name))
            .unwrap_or_default();
        if rules.iter().any(|rule| rule.refuses) {
            refusing.push(place(&chain));
        }
        for rule in rules {
            if let Some(Verdict::Jump(name) | Verdict::Goto(name)) = rule.verdict {
                let led_to = ListedChain {
                    name,
                    ..chain.clone()
                };
                let is_known = |known: &ListedChain| place(known) == place(&led_to);
                if !reached.iter().any(is_known) {
                    reached.push(led_to);
                }
            }
        }
    }
    refusing
}

fn place(chain: &ListedChain) -> String {
    format!("chain {} {} {}", chain.family, chain.table, chain.name)
}
