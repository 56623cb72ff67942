//! In the place of `firewall`: the node forwards for the pods of the chain, whatever else it drops.
//!
//! It stands behind the plugin that made the links and answers that one's result as it is. What it does is in
//! [`crate::forwarding`] and [`crate::isolation`]: one transaction, and none where everything stands already. DEL and GC know
//! an attachment's rules by their comment, so that neither a result nor the configuration is needed.
//! Surprises: it asks for no addresses, unlike the reference plugin: a pod's link is known before its address. And it cannot
//! speak to firewalld, nor to iptables of the legacy kind, which netlink does not reach; it says so where it finds them.

use podspan_kernel::nft::{Batch, Family, Nft, Table};
use podspan_kernel::{Errno, IfName, LinkChange, Netlink};
use serde::Deserialize;
use serde_json::Value;

use crate::attachment::{AttachmentId, MARK};
use crate::error::Error;
use crate::forwarding::{self, Wanted, Way, comment_of};
use crate::isolation::{self, Ingress};
use crate::netconf::Input;
use crate::request::{PodRequest, Request};
use crate::result::CniResult;

/// What firewalld keeps.
const FIREWALLD: Table<'static> = Table {
    family: Family::Inet,
    name: "firewalld",
};
/// Where the kernel lists the tables of iptables of the legacy kind, and who changes them.
const LEGACY: [(&str, &str); 2] = [
    ("/proc/thread-self/net/ip_tables_names", "iptables-legacy"),
    ("/proc/thread-self/net/ip6_tables_names", "ip6tables-legacy"),
];
/// The longest name of a chain that iptables takes, in bytes (`XT_EXTENSION_MAXNAMELEN` less the final NUL).
const CHAIN_NAME_MAX: usize = 28;

/// The keys as they stand.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    backend: String,
    iptables_admin_chain_name: Option<String>,
    firewalld_zone: Option<String>,
    #[serde(default)]
    ingress_policy: String,
}

/// The configuration, checked.
struct Config {
    admin: String,
    zone: String,
    ingress: Ingress,
}

/// The links of an attachment that are on the node.
#[derive(Default)]
struct NodeSide {
    bridges: Vec<IfName>,
    /// Ports of a bridge: what comes in by them comes, for the node, by the bridge.
    ports: Vec<IfName>,
    /// Links that are one pod's alone.
    links: Vec<IfName>,
}

/// Serves any command; `tell` is given the result of an ADD.
///
/// # Errors
/// What is wrong with the configuration, or what the kernel answered; a failed ADD is undone. For CHECK all deviations.
pub(crate) fn serve_firewall(
    request: &Request,
    input: &Input,
    tell: impl FnOnce(CniResult) -> Result<(), Error>,
) -> Result<(), Error> {
    match request {
        Request::Add(pod) => add(pod, input, tell),
        Request::Del(pod) => forget(&pod.attachment, input),
        Request::Check(pod) => check(pod, input),
        Request::Gc => {
            let valid = input.valid_attachments()?;
            let is_gone = |comment: &str| {
                AttachmentId::from_alias(&format!("{MARK}{comment}"))
                    .is_some_and(|(network, id)| network == input.network && !valid.contains(&id))
            };
            forget_all(is_gone)
        }
        Request::Status => Config::parse(input).map(drop),
        Request::Version => Ok(()),
    }
}

fn add(
    pod: &PodRequest,
    input: &Input,
    tell: impl FnOnce(CniResult) -> Result<(), Error>,
) -> Result<(), Error> {
    let (config, result) = (Config::parse(input)?, input.chained_result()?);
    let mut host = Netlink::open()?;
    let node = NodeSide::of(&mut host, &result)?;
    config.require_bridge(&node)?;
    let wanted = wanted(&config, &node, (input, pod))?;
    let set_up = || {
        match open()? {
            Some(mut nft) => {
                nft.settle(|nft| {
                    let mut batch = Batch::new();
                    forwarding::allow(nft, &mut batch, &wanted)?;
                    isolation::isolate(nft, &mut batch, (&node.bridges, config.ingress))?;
                    Ok(batch)
                })?;
                tell_limits(&mut nft, &config, &wanted)?;
            }
            None => config.require_no_filter()?,
        }
        isolate_ports(&mut host, &config, &node)?;
        tell(result)
    };
    set_up().or_else(|error| {
        let undone = forget(&pod.attachment, input);
        Error::from_all([Some(error), undone.err()].into_iter().flatten().collect())
    })
}

fn check(pod: &PodRequest, input: &Input) -> Result<(), Error> {
    let (config, result) = (Config::parse(input)?, input.chained_result()?);
    let mut host = Netlink::open()?;
    let node = NodeSide::of(&mut host, &result)?;
    let mut deviations = Vec::new();
    if let Some(mut nft) = open()? {
        let wanted = wanted(&config, &node, (input, pod))?;
        deviations = forwarding::missing(&mut nft, &wanted)?;
        if !isolation::stands(&mut nft, &node.bridges, config.ingress)? {
            let bridges: Vec<_> = node.bridges.iter().map(IfName::as_str).collect();
            deviations.push(format!(
                "the sets of table {} do not say ingressPolicy {} of {}",
                crate::filter::INET,
                config.ingress.name(),
                bridges.join(", ")
            ));
        }
    }
    if config.ingress == Ingress::Isolated {
        for port in &node.ports {
            if !host.link(port)?.isolated {
                deviations.push(format!("port {port} is not isolated"));
            }
        }
    }
    match deviations.is_empty() {
        true => Ok(()),
        false => Err(Error::Deviations(deviations)),
    }
}

/// Removes the rules of one attachment; that there are none is fine.
fn forget(id: &AttachmentId, input: &Input) -> Result<(), Error> {
    // One that is too long for an alias never had any.
    let Ok(alias) = id.alias(&input.network) else {
        return Ok(());
    };
    forget_all(|comment| comment == comment_of(&alias))
}

fn forget_all(is_gone: impl Fn(&str) -> bool) -> Result<(), Error> {
    let Some(mut nft) = open()? else {
        return Ok(());
    };
    Ok(nft.settle(|nft| {
        let mut batch = Batch::new();
        forwarding::forget(nft, &mut batch, &is_gone)?;
        Ok(batch)
    })?)
}

/// None on a kernel without nftables.
fn open() -> Result<Option<Nft>, Error> {
    match Nft::open().and_then(|mut nft| nft.generation().map(|_| nft)) {
        Ok(nft) => Ok(Some(nft)),
        Err(error)
            if matches!(
                error.errno(),
                Errno::PROTONOSUPPORT | Errno::OPNOTSUPP | Errno::INVAL
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn wanted(
    config: &Config,
    node: &NodeSide,
    (input, pod): (&Input, &PodRequest),
) -> Result<Wanted, Error> {
    let alias = pod.attachment.alias(&input.network)?;
    let way = |link: &IfName, owner: Option<&str>| Way {
        link: link.clone(),
        owner: owner.map(str::to_owned),
    };
    let bridges = node.bridges.iter().map(|link| way(link, None));
    let links = node.links.iter();
    let links = links.map(|link| way(link, Some(comment_of(&alias))));
    Ok(Wanted {
        admin: config.admin.clone(),
        ways: bridges.chain(links).collect(),
    })
}

/// Pods of such a bridge do not reach each other through it either.
fn isolate_ports(host: &mut Netlink, config: &Config, node: &NodeSide) -> Result<(), Error> {
    if config.ingress == Ingress::Isolated {
        for port in &node.ports {
            let change = LinkChange {
                isolated: Some(true),
                ..LinkChange::default()
            };
            host.set_link(port, change)?;
        }
    }
    Ok(())
}

/// Says what else filters on this node and cannot be told to let the pods through.
#[expect(
    clippy::print_stderr,
    reason = "standard output belongs to the protocol, and this is no failure"
)]
fn tell_limits(nft: &mut Nft, config: &Config, wanted: &Wanted) -> Result<(), Error> {
    let Some(Way { link, .. }) = wanted.ways.first() else {
        return Ok(());
    };
    if nft.has_table(FIREWALLD)? {
        let right = firewall_cmd(&config.zone, link.as_str());
        eprintln!(
            "podspan-cni: firewall: firewalld may drop what {link} forwards; to let it through: {right}"
        );
    }
    for (names, program) in LEGACY {
        let names = std::fs::read_to_string(names).unwrap_or_default();
        if names.lines().any(|table| table == "filter") {
            eprintln!(
                "podspan-cni: firewall: {program} may drop what {link} forwards; to let it through: \
                 {program} -I FORWARD -i {link} -j ACCEPT; \
                 {program} -I FORWARD -o {link} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
            );
        }
    }
    Ok(())
}

fn firewall_cmd(zone: &str, link: &str) -> String {
    format!(
        "firewall-cmd --permanent --zone={zone} --add-interface={link} && firewall-cmd --reload"
    )
}

impl Config {
    fn parse(input: &Input) -> Result<Self, Error> {
        let keys = Value::Object(input.keys().clone());
        let raw: Raw = serde_path_to_error::deserialize(keys)
            .map_err(|error| Error::Config(format!("{}: {}", error.path(), error.inner())))?;
        let named = |name: Option<String>, default: &str| {
            name.filter(|name| !name.is_empty())
                .unwrap_or_else(|| default.to_owned())
        };
        let admin = named(raw.iptables_admin_chain_name, "CNI-ADMIN");
        let zone = named(raw.firewalld_zone, "trusted");
        require_netlink(&raw.backend, &zone, input)?;
        require_chain_name(&admin)?;
        Ok(Self {
            admin,
            zone,
            ingress: Ingress::parse(&raw.ingress_policy)?,
        })
    }

    /// A policy that is not kept is worse than none.
    fn require_bridge(&self, node: &NodeSide) -> Result<(), Error> {
        if self.ingress == Ingress::Open || !node.bridges.is_empty() {
            return Ok(());
        }
        Err(Error::Config(format!(
            "ingressPolicy is {:?}, but prevResult has no bridge of this node; put firewall behind bridge, or leave the policy open",
            self.ingress.name()
        )))
    }

    fn require_no_filter(&self) -> Result<(), Error> {
        if self.ingress == Ingress::Open {
            return Ok(());
        }
        Err(Error::UnsupportedField(format!(
            "ingressPolicy: {:?} needs a kernel with nftables (CONFIG_NF_TABLES_INET)",
            self.ingress.name()
        )))
    }
}

/// That the backend is one that can be served without another program.
fn require_netlink(backend: &str, zone: &str, input: &Input) -> Result<(), Error> {
    match backend {
        "" | "iptables" | "nftables" => Ok(()),
        "firewalld" => {
            let before = input.prev_result().ok().flatten().unwrap_or_default();
            let of_node = before
                .interfaces
                .iter()
                .find(|link| link.sandbox.is_empty());
            let link = of_node.map_or("<bridge>", |link| &link.name);
            let right = firewall_cmd(zone, link);
            Err(Error::UnsupportedField(format!(
                "backend: \"firewalld\" is not served, which its own program alone changes; leave the key out and run, once: {right}"
            )))
        }
        other => Err(Error::Config(format!(
            "backend is {other:?}; it must be \"iptables\" or absent"
        ))),
    }
}

/// That iptables takes the name too, and that it is nobody else's.
fn require_chain_name(name: &str) -> Result<(), Error> {
    let is_taken = ["INPUT", "FORWARD", "OUTPUT", forwarding::NAME].contains(&name)
        || ["ACCEPT", "DROP", "QUEUE", "RETURN"].contains(&name);
    let is_name = (1..=CHAIN_NAME_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_graphic())
        && !name.starts_with(['-', '!']);
    if is_name && !is_taken {
        return Ok(());
    }
    Err(Error::Config(format!(
        "iptablesAdminChainName is {name:?}; it must be a chain's name of at most {CHAIN_NAME_MAX} letters, such as \"CNI-ADMIN\", and no chain or target that iptables has by itself"
    )))
}

impl NodeSide {
    /// The links of the result that are on the node and there; one that is not cannot forward.
    fn of(host: &mut Netlink, result: &CniResult) -> Result<Self, Error> {
        if result.interfaces.is_empty() {
            return Err(Error::Config(
                "prevResult has no interfaces, as before cniVersion 0.3.0; firewall lets a pod through by its bridge or link: use cniVersion 0.3.0 or later".into(),
            ));
        }
        let mut node = Self::default();
        let on_node = result.interfaces.iter();
        for interface in on_node.filter(|interface| interface.sandbox.is_empty()) {
            let Ok(name) = interface.name.parse::<IfName>() else {
                continue;
            };
            let Some(link) = host.find_link(&name)? else {
                continue;
            };
            let kind = match link.master {
                _ if link.is_bridge() => &mut node.bridges,
                Some(_) => &mut node.ports,
                None => &mut node.links,
            };
            if !kind.contains(&name) {
                kind.push(name);
            }
        }
        Ok(node)
    }
}

impl Ingress {
    const ALL: [Self; 3] = [Self::Open, Self::SameBridge, Self::Isolated];

    fn parse(text: &str) -> Result<Self, Error> {
        let named = Self::ALL.into_iter().find(|policy| policy.name() == text);
        named
            .or(Some(Self::Open).filter(|_| text.is_empty()))
            .ok_or_else(|| {
                let names = Self::ALL.map(Self::name).join(", ");
                Error::Config(format!(
                    "ingressPolicy is {text:?}; it must be one of {names}"
                ))
            })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::SameBridge => "same-bridge",
            Self::Isolated => "isolated",
        }
    }
}
