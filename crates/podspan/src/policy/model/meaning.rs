//! What a set means, in words that are equal when the sets are: the peers of a rule, put in order.

use std::net::IpAddr;

use super::super::object::{Labels, Node, Pod, Protocol, Selector, Text};
use super::range::{self, AddressRange};

/// Pods or nodes by their labels.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Pick {
    /// Pods of that namespace.
    Here(Text, Selector),
    /// Pods of namespaces.
    Of(Selector, Selector),
    /// Nodes.
    Nodes(Selector),
}

/// A port's name, and of which protocol; any where none is given.
pub(super) type Name = (Option<Protocol>, Text);

/// Whose sockets with a name are meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Whose {
    /// All pods'.
    Anybody,
    /// Those of the picked pods, and of pods whose address is in a range.
    Of(Vec<Pick>, Vec<AddressRange>),
}

/// What is in a set. All lists are sorted and have nothing twice.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Meaning {
    /// The addresses of what is picked.
    Addresses(Vec<Pick>),
    /// These.
    Ranges(Vec<AddressRange>),
    /// The sockets that pods call so.
    Sockets(Whose, Vec<Name>),
}

/// Who has an address.
#[derive(Debug, Clone)]
pub(super) struct Owner<'a> {
    pub(super) address: IpAddr,
    /// The pod of the network, and its namespace's labels where they are known.
    pub(super) pod: Option<(&'a Pod, Option<&'a Labels>)>,
    /// Nodes: one, but in a cluster that is not right.
    pub(super) nodes: Vec<&'a Node>,
}

impl Pick {
    fn means(&self, owner: &Owner<'_>) -> bool {
        match self {
            Self::Nodes(selector) => {
                let mut nodes = owner.nodes.iter();
                nodes.any(|node| selector.matches(&node.labels))
            }
            Self::Here(namespace, selector) => owner.pod.is_some_and(|(pod, _)| {
                pod.key.namespace == *namespace && selector.matches(&pod.labels)
            }),
            Self::Of(namespaces, pods) => owner.pod.is_some_and(|(pod, labels)| {
                pods.matches(&pod.labels) && labels.is_some_and(|labels| namespaces.matches(labels))
            }),
        }
    }

    /// False where no pod of that namespace can be meant.
    fn concerns(&self, name: &str, labels: Option<&Labels>) -> bool {
        match self {
            Self::Nodes(_) => false,
            Self::Here(namespace, _) => **namespace == *name,
            Self::Of(namespaces, _) => labels.is_some_and(|labels| namespaces.matches(labels)),
        }
    }
}

impl Meaning {
    /// True when the owner's address is in the set; of sockets: when its sockets may be.
    pub(super) fn means(&self, owner: &Owner<'_>) -> bool {
        let picked = |picks: &[Pick]| picks.iter().any(|pick| pick.means(owner));
        match self {
            Self::Addresses(picks) => picked(picks),
            Self::Ranges(ranges) => range::contains(ranges, owner.address),
            Self::Sockets(Whose::Anybody, _) => true,
            Self::Sockets(Whose::Of(picks, ranges), _) => {
                picked(picks) || range::contains(ranges, owner.address)
            }
        }
    }

    /// The sockets of the owner that are in the set.
    pub(super) fn sockets(&self, owner: &Owner<'_>) -> Vec<(IpAddr, Protocol, u16)> {
        let (Self::Sockets(_, names), Some((pod, _))) = (self, owner.pod) else {
            return Vec::new();
        };
        if pod.ports.is_empty() || !self.means(owner) {
            return Vec::new();
        }
        let named = resolve(names, pod);
        named
            .map(|(protocol, port)| (owner.address, protocol, port))
            .collect()
    }

    /// False where no pod of that namespace can be in the set.
    pub(super) fn concerns(&self, name: &str, labels: Option<&Labels>) -> bool {
        match self {
            Self::Ranges(_) => false,
            Self::Sockets(Whose::Anybody, _) => true,
            Self::Sockets(Whose::Of(_, ranges), _) if !ranges.is_empty() => true,
            Self::Addresses(picks) | Self::Sockets(Whose::Of(picks, _), _) => {
                picks.iter().any(|pick| pick.concerns(name, labels))
            }
        }
    }

    /// False where no node is meant.
    pub(super) fn concerns_nodes(&self) -> bool {
        let Self::Addresses(picks) = self else {
            return false;
        };
        picks.iter().any(|pick| matches!(pick, Pick::Nodes(_)))
    }

    /// The namespaces outside of which no pod and no node is meant; none where they are not known by name.
    pub(super) fn namespaces(&self) -> Option<Vec<Text>> {
        match self {
            Self::Ranges(_) => Some(Vec::new()),
            Self::Sockets(Whose::Of(_, ranges), _) if !ranges.is_empty() => None,
            Self::Sockets(Whose::Anybody, _) => None,
            Self::Addresses(picks) | Self::Sockets(Whose::Of(picks, _), _) => {
                let names = picks.iter().map(|pick| match pick {
                    Pick::Here(namespace, _) => Some(namespace.clone()),
                    Pick::Of(..) | Pick::Nodes(_) => None,
                });
                names.collect()
            }
        }
    }
}

/// What the pod calls so.
pub(super) fn resolve(names: &[Name], pod: &Pod) -> impl Iterator<Item = (Protocol, u16)> {
    let meant = pod.ports.iter().filter(|port| {
        let mut names = names.iter();
        names.any(|(protocol, name)| {
            *name == port.name && protocol.is_none_or(|protocol| protocol == port.protocol)
        })
    });
    meant.map(|port| (port.protocol, port.port))
}
