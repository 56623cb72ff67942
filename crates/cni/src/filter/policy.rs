//! NetworkPolicy's place in the kernel: what comes from a pod or goes to it goes through a chain of that pod's own.
//!
//! Two base chains on the forward hook, one a direction, that all pods share; a verdict map leads from a pod's address to its
//! chain, `pe_` (from it) or `pi_` (to it) and the name of its host veth. Chains and elements are made by ADD in one
//! transaction and removed by DEL in one, before the address is free: an address never has the identity of who had it before.
//! They are made closed, and say who the pod is; what stands in them is the agent's, which never adds or removes them. What
//! has no chains is nobody's subject: pods of another plugin, and those of before, until the agent adopts them.
//! Neither the way from the node to its own pods nor the way back is forwarding, so both always pass. Replies pass by
//! conntrack.
//! Surprises: with `br_netfilter` the neighbour discovery between pods of one bridge comes here too, and passes where no
//! router has passed it on, as ARP does, which never comes here; and a pod's link-local address is one of its addresses,
//! because its neighbours on the bridge are reached by it. Groups and broadcasts go to nobody's chain, but come from one's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use podspan_kernel::nft::{
    Base, Batch, Chain, Compare, CtState, Data, Element, Field, Hook, ListedRule, Nft, Rule, Set,
    Type, Value, Verdict, priority,
};
use podspan_kernel::{IfName, Mac};

use super::{HostPorts, INET, Part, Plan, Wanted, record};

/// From a pod's address to the chain of what it sends.
const EGRESS4: Set<'static> = Set::verdict_map(INET, "policy_egress4", &[Type::Ipv4]);
const EGRESS6: Set<'static> = Set::verdict_map(INET, "policy_egress6", &[Type::Ipv6]);
/// From a pod's address to the chain of what it is sent.
const INGRESS4: Set<'static> = Set::verdict_map(INET, "policy_ingress4", &[Type::Ipv4]);
const INGRESS6: Set<'static> = Set::verdict_map(INET, "policy_ingress6", &[Type::Ipv6]);
const RULES: Set<'static> = Set::of(INET, "rules_policy_1", &[Type::Mark]);

/// All sets that a record may name.
pub(super) static SETS: [Set<'static>; 4] = [EGRESS4, EGRESS6, INGRESS4, INGRESS6];

/// Before the usual filters, and egress before ingress: `accept` in one goes on with the next.
const EGRESS: Chain<'static> = Chain::hooked(
    INET,
    "policy_egress",
    Base::filter(Hook::Forward, priority::FILTER - 20),
);
const INGRESS: Chain<'static> = Chain::hooked(
    INET,
    "policy_ingress",
    Base::filter(Hook::Forward, priority::FILTER - 19),
);
/// What the names of the chains begin with that packets from pods go through.
pub const EGRESS_OF: &str = "pe_";
/// The same of those that packets to pods go through.
pub const INGRESS_OF: &str = "pi_";

/// The comment of the rule that closes a chain until the agent knows the pod.
pub const CLOSED: &str = "closed";
/// Neighbour solicitation and advertisement (RFC 4861, section 4), and the hop limit that they must have.
const NEIGHBOUR_DISCOVERY: [u8; 2] = [135, 136];
const NOT_PASSED_ON: u8 = 255;

/// Who a pod is, as its runtime says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its number, which no other pod ever has; not every runtime says it.
    pub uid: Option<String>,
}

/// What policy needs of an attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The pod; none for a container that is nobody's.
    pub pod: Option<PodName>,
    /// Its addresses, the link-local one too.
    pub addresses: Vec<IpAddr>,
    /// It passes nothing until the agent knows the pod.
    pub closed: bool,
}

/// The names of an attachment's chains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainNames {
    /// What the pod sends goes through it.
    pub egress: String,
    /// What it is sent.
    pub ingress: String,
}

/// An attachment's chains, as they are in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachedChains {
    /// Its host veth.
    pub veth: IfName,
    /// The pod; none for a container that is nobody's.
    pub pod: Option<PodName>,
    /// The addresses that lead to the chains, sorted, without the link-local one.
    pub addresses: Vec<IpAddr>,
}

/// The chains of an attachment, by its host veth.
pub fn chains(veth: &IfName) -> ChainNames {
    ChainNames {
        egress: format!("{EGRESS_OF}{veth}"),
        ingress: format!("{INGRESS_OF}{veth}"),
    }
}

/// The host veth whose chain has that name, if it is one.
pub fn veth_of(chain: &str) -> Option<IfName> {
    let veth = [EGRESS_OF, INGRESS_OF]
        .iter()
        .find_map(|prefix| chain.strip_prefix(prefix))?;
    veth.parse().ok()
}

/// An attachment's chain by its name.
pub fn chain(name: &str) -> Chain<'_> {
    Chain::plain(INET, name)
}

/// Lays table, sets and base chains anew, whatever of it is there; nothing passes that did not before or does afterwards.
/// Elements, and chains of attachments, stay.
pub fn lay(batch: &mut Batch) {
    batch.add_table(INET);
    batch.add_set(&RULES);
    lay_part(batch);
}

/// Fails the batch where what [`lay`] makes is not there or of another version.
pub fn require(batch: &mut Batch) {
    batch.require_set(&RULES);
}

fn lay_part(batch: &mut Batch) {
    for set in &SETS {
        batch.add_set(set);
    }
    for chain in [EGRESS, INGRESS] {
        batch.add_chain(chain);
        batch.flush_chain(chain);
    }
    let egress = [Field::IP_SADDR, Field::IP6_SADDR];
    let ingress = [Field::IP_DADDR, Field::IP6_DADDR];
    for (chain, [field4, field6], [map4, map6]) in [
        (EGRESS, egress, [&EGRESS4, &EGRESS6]),
        (INGRESS, ingress, [&INGRESS4, &INGRESS6]),
    ] {
        let [first, last] = NEIGHBOUR_DISCOVERY.map(Value::Icmp6Type);
        let rules = [
            Rule::of(chain)
                .ct_state(&[CtState::Established, CtState::Related])
                .verdict(&Verdict::Accept),
            Rule::of(chain).verdict_by(&[field4], map4),
            Rule::of(chain)
                .compare(
                    Field::IP6_HOPLIMIT,
                    Compare::Equal,
                    Value::Protocol(NOT_PASSED_ON),
                )
                .between(Field::ICMPV6_TYPE, first, last)
                .verdict(&Verdict::Accept),
            Rule::of(chain).verdict_by(&[field6], map6),
        ];
        for rule in &rules {
            batch.add_rule(rule);
        }
    }
}

/// Gives an attachment chains that was made without, by the configuration of before: what ADD would have made. It must have
/// none yet. That the host veth is there is to be seen behind the transaction, too: a DEL that came between knew of nothing
/// to remove, and [`super::Filter::remove`] does it then. `attachment` is the host veth's alias.
pub fn adopt(batch: &mut Batch, (veth, attachment): (&IfName, &str), subject: Subject) {
    let wanted = Wanted {
        record: veth.clone(),
        owner: attachment.to_owned(),
        link: Some(veth.clone()),
        towards: None,
        masquerade: Vec::new(),
        ports: HostPorts::default(),
        policy: Some(subject),
    };
    let plan = wanted.plan();
    record::extend(batch, &wanted, &plan);
    for chain in &plan.chains {
        chain.create(batch);
    }
    for (set, element) in &plan.own {
        batch.create_element(set, element);
    }
}

/// The addresses that policy is about: also the one that the pod's link makes of its MAC address.
pub fn with_link_local(ips: &[IpAddr], mac: Mac) -> Vec<IpAddr> {
    let link_local = IpAddr::from(mac.link_local());
    let mut all = ips.to_vec();
    if !all.contains(&link_local) {
        all.push(link_local);
    }
    all
}

/// A chain of an attachment's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OwnChain {
    pub name: String,
    comment: Option<String>,
    closed: bool,
}

impl OwnChain {
    pub(super) fn create(&self, batch: &mut Batch) {
        let Self {
            name,
            comment,
            closed,
        } = self;
        batch.create_chain(Chain {
            comment: comment.as_deref(),
            ..chain(name)
        });
        if *closed {
            let rule = Rule::of(chain(name)).counter().verdict(&Verdict::Drop);
            batch.add_rule(&rule.comment(CLOSED));
        }
    }
}

/// What policy needs.
pub(super) fn plan(wanted: &Wanted, plan: &mut Plan) {
    let Some(subject) = &wanted.policy else {
        return;
    };
    plan.parts.push(Part {
        rules: RULES,
        lay: lay_part,
    });
    let names = chains(&wanted.record);
    let pod = subject.pod.as_ref();
    // Together they have room for the longest names that there are: 255 bytes each.
    let place = |pod: &PodName| {
        let uid = pod.uid.as_deref().unwrap_or_default();
        format!("{} {uid}", pod.namespace).trim_end().to_owned()
    };
    for ip in &subject.addresses {
        let [egress, ingress] = match ip {
            IpAddr::V4(_) => [&EGRESS4, &INGRESS4],
            IpAddr::V6(_) => [&EGRESS6, &INGRESS6],
        };
        for (map, name) in [(egress, &names.egress), (ingress, &names.ingress)] {
            let element = Element::new([(*ip).into()]);
            plan.own
                .push((map, element.verdict(Verdict::goto(&chain(name)))));
        }
    }
    plan.chains.extend([
        OwnChain {
            name: names.egress,
            comment: pod.map(|pod| pod.name.clone()),
            closed: subject.closed,
        },
        OwnChain {
            name: names.ingress,
            comment: pod.map(place),
            closed: subject.closed,
        },
    ]);
}

/// The elements that lead to one of the chains, whoever made them.
///
/// # Errors
/// What the kernel answered, other than that there is no such map.
pub(super) fn elements_to(
    nft: &mut Nft,
    names: &[&str],
) -> podspan_kernel::Result<Vec<super::Entry>> {
    let mut entries = Vec::new();
    for map in &SETS {
        let elements = list(nft, map)?.into_iter();
        let leads =
            elements.filter(|element| leads_to(element).is_some_and(|to| names.contains(&to)));
        entries.extend(leads.map(|element| (map, element)));
    }
    Ok(entries)
}

/// The addresses that led to chains, each once, without link-local ones.
pub(super) fn addresses(entries: &[super::Entry]) -> Vec<IpAddr> {
    let policed = entries.iter().filter(|(set, _)| SETS.contains(set));
    let keys = policed.flat_map(|(_, element)| &element.key);
    let each: BTreeSet<IpAddr> = keys.filter_map(address).collect();
    each.into_iter().collect()
}

fn list(nft: &mut Nft, map: &Set<'_>) -> podspan_kernel::Result<Vec<Element>> {
    match nft.list_elements(map) {
        Err(error) if error.is_not_found() => Ok(Vec::new()),
        listed => listed,
    }
}

fn leads_to(element: &Element) -> Option<&str> {
    match &element.data {
        Data::Verdict(Verdict::Goto(chain) | Verdict::Jump(chain)) => Some(chain),
        _ => None,
    }
}

fn is_closing(rule: &ListedRule) -> bool {
    rule.comment.as_deref() == Some(CLOSED) && rule.refuses
}

/// True when one of the chains is as ADD made it. A chain that is not there is not closed.
///
/// # Errors
/// What the kernel answered.
pub fn is_closed(nft: &mut Nft, of: &ChainNames) -> podspan_kernel::Result<bool> {
    for name in [&of.egress, &of.ingress] {
        if nft.list_rules(chain(name))?.iter().any(is_closing) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// All attachments that have chains, sorted by their host veths; none where there is no table.
///
/// The lists that it is read from are not of one moment: of an attachment that was detached meanwhile some may be missing.
/// A batch [only at](Batch::only_at) a generation that was asked for before is sure of them.
///
/// # Errors
/// What the kernel answered.
pub fn attachments(nft: &mut Nft) -> podspan_kernel::Result<Vec<AttachedChains>> {
    // The name, namespace and number of each, by the comments of its two chains.
    let mut found: BTreeMap<IfName, [Option<String>; 2]> = BTreeMap::new();
    for listed in nft.list_chains_of(INET)? {
        let Some(veth) = veth_of(&listed.name) else {
            continue;
        };
        let [name, place] = found.entry(veth).or_default();
        match listed.name.starts_with(EGRESS_OF) {
            true => *name = listed.comment,
            false => *place = listed.comment,
        }
    }
    let mut addresses: BTreeMap<IfName, BTreeSet<IpAddr>> = BTreeMap::new();
    for map in &SETS {
        for element in list(nft, map)? {
            let (Some(veth), [value]) =
                (leads_to(&element).and_then(veth_of), element.key.as_slice())
            else {
                continue;
            };
            addresses.entry(veth).or_default().extend(address(value));
        }
    }
    let attachment = |(veth, [name, place]): (IfName, [Option<String>; 2])| AttachedChains {
        pod: pod_name(name, place),
        addresses: addresses.remove(&veth).into_iter().flatten().collect(),
        veth,
    };
    Ok(found.into_iter().map(attachment).collect())
}

/// None for a link-local address, which is its link's affair alone.
fn address(value: &Value) -> Option<IpAddr> {
    match value {
        Value::Ipv4(ip) => Some((*ip).into()),
        Value::Ipv6(ip) if !ip.is_unicast_link_local() => Some((*ip).into()),
        _ => None,
    }
}

fn pod_name(name: Option<String>, place: Option<String>) -> Option<PodName> {
    let place = place?;
    let (namespace, uid) = match place.split_once(' ') {
        Some((namespace, uid)) => (namespace, Some(uid.to_owned())),
        None => (place.as_str(), None),
    };
    Some(PodName {
        namespace: namespace.to_owned(),
        name: name?,
        uid,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_tell_whose_they_are() {
        let veth: IfName = "pod0123456789ab".parse().unwrap();
        let names = chains(&veth);
        assert_eq!(names.egress, "pe_pod0123456789ab");
        for name in [&names.egress, &names.ingress] {
            assert_eq!(veth_of(name), Some(veth.clone()));
        }
        assert_eq!(veth_of("policy_egress"), None);
        assert_eq!(veth_of("pg_1"), None);
    }

    #[test]
    fn a_pod_is_read_from_the_comments_of_its_chains() {
        let read = |name: Option<&str>, place: Option<&str>| {
            pod_name(name.map(Into::into), place.map(Into::into))
        };
        let pod = |uid: Option<&str>| PodName {
            namespace: "shop".into(),
            name: "web-0".into(),
            uid: uid.map(Into::into),
        };
        assert_eq!(read(Some("web-0"), Some("shop 17")), Some(pod(Some("17"))));
        assert_eq!(read(Some("web-0"), Some("shop")), Some(pod(None)));
        assert_eq!(read(Some("web-0"), None), None);
        assert_eq!(read(None, None), None);
    }
}
