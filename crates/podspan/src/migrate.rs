//! `podspan migrate`: a node goes over from another network to ours, and its pods keep their addresses and their links.
//!
//! Without `--apply` it only says what it would do, step by step, as the commands that one would type. Old pods stay on the
//! bridge, or the links, that they have, which are used as they are; new ones take their addresses from the same directory.
//! Each route is replaced in one step, so that no packet meets a node without one, and nothing of the other network's is
//! removed but by `--finish`, when all nodes have gone over: until then packets of those that have not come in by its tunnel.
//! What would surprise: a node may use our routes while its peers still use the old ones. That the way back is another one
//! is no harm, unless the kernel is told to be strict about it (`rp_filter`), which is an obstacle.

mod foreign;

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use podspan_kernel::nft::Nft;
use podspan_kernel::{Link, Netlink, Prefix, Route, RouteProtocol, sysctl};
use serde::Serialize;
use toml::Spanned;

use crate::apply::apply;
use crate::config::{Config, Role};
use crate::desired::{Desired, Sysctl};
use crate::look::look;
use crate::observe::list_allocations;
use crate::output::{Output, exit_code};
use crate::packet_filter::PacketFilter;
use crate::plan::{Change, NamedRoute};
use crate::registry::Registry;
use foreign::{Foreign, Kind, Leftover};

/// What to do.
#[derive(clap::Args)]
pub struct Arguments {
    /// The network that is expected here; another one is an error
    #[arg(long, value_enum)]
    from: Option<Kind>,
    /// Do it, instead of saying what would be done
    #[arg(long)]
    apply: bool,
    /// Remove the other network's tunnel, once `--apply` has been run on every node
    #[arg(long)]
    finish: bool,
}

/// One step, printed as the command that a person would type.
#[derive(Debug)]
enum Step {
    /// Set a key of the agent's configuration.
    SetKey {
        file: PathBuf,
        key: &'static str,
        value: String,
    },
    /// What the agent would change, with one difference: a route takes the place of somebody else's.
    Change(Change),
    /// Take the other network's conflist out of the runtime's sight.
    Move { from: PathBuf, to: PathBuf },
    /// Remove the other network's tunnel.
    RemoveLink(Link),
    /// Remove what the other network's daemon filtered, in the tables that iptables keeps.
    RemoveChain(Leftover),
}

/// What is to be done, or was done.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// The network that is here before ours; none when nothing is left to migrate.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    /// As commands.
    steps: Vec<String>,
    /// What forbids it; then nothing is done.
    obstacles: Vec<String>,
    /// What an operator should know.
    notes: Vec<String>,
    /// The steps were taken.
    applied: bool,
    /// What went wrong on the way.
    failed: Vec<String>,
}

/// Migrates this node, or says how; the exit status is 0 when nothing is left to do, and 1 when something is, failed or is in
/// the way.
///
/// # Errors
/// A node list or a conflist that cannot be used, or what the kernel answered; then nothing was changed.
pub fn run(config: Config, arguments: &Arguments, output: Output) -> anyhow::Result<ExitCode> {
    let mut netlink = Netlink::open()?;
    let mut draft = Draft::default();
    match arguments.finish {
        true => draft.finish(&mut netlink, &config)?,
        false => draft.go_over(&mut netlink, config, arguments.from)?,
    }
    let Draft { steps, mut report } = draft;
    report.steps = steps.iter().map(Step::to_string).collect();
    if arguments.apply && report.obstacles.is_empty() {
        report.failed = take(&mut netlink, steps);
        report.applied = true;
    }
    let is_done = report.obstacles.is_empty()
        && report.failed.is_empty()
        && (report.applied || report.steps.is_empty());
    output.print(&report, Report::to_text)?;
    Ok(exit_code(is_done))
}

#[derive(Default)]
struct Draft {
    steps: Vec<Step>,
    report: Report,
}

impl Draft {
    /// All that makes this node's network ours.
    fn go_over(
        &mut self,
        netlink: &mut Netlink,
        mut config: Config,
        expected: Option<Kind>,
    ) -> anyhow::Result<()> {
        let Some(foreign) = foreign::find(conflist_directory(&config)?)? else {
            return Ok(());
        };
        let conflist = foreign.conflist.display();
        self.report.from = Some(format!("{:?}, by {conflist}", foreign.kind).to_lowercase());
        if expected.is_some_and(|expected| expected != foreign.kind) {
            bail!(
                "{conflist} is that of {:?}, not of {expected:?}",
                foreign.kind
            );
        }
        self.keys(&mut config, &foreign);
        let registry = Registry::read(&config.registry)?;
        let Some(cluster) = registry.cluster() else {
            bail!("{}", registry.problems().collect::<Vec<_>>().join("; "));
        };
        let found = look(netlink, &mut PacketFilter::default(), &config, cluster)?;
        let refused = registry.refusals().iter().chain(&found.plan.refusals);
        self.report.notes = refused
            .map(|refusal| format!("refused: {refusal}"))
            .collect();
        let Some((desired, _)) = &found.both else {
            bail!(
                "this node is not in the cluster: {}",
                self.report.notes.join("; ")
            );
        };
        self.check_addresses(desired, &foreign)?;
        let routes = netlink.list_routes(None)?;
        let names: BTreeMap<u32, String> = netlink
            .list_links()?
            .into_iter()
            .map(|link| (link.index, link.name))
            .collect();
        for change in found.plan.changes {
            if matches!(change, Change::WriteConflist { .. }) {
                self.lead_to_old_pods(desired, &foreign);
            }
            let change = self.take_the_place(change, &routes, &names);
            self.steps.push(Step::Change(change));
        }
        let mut to = foreign.conflist.clone().into_os_string();
        to.push(format!(".{}", foreign::MOVED));
        self.steps.push(Step::Move {
            from: foreign.conflist,
            to: to.into(),
        });
        Ok(())
    }

    /// The names that old pods live by become the agent's.
    fn keys(&mut self, config: &mut Config, foreign: &Foreign) {
        let file = config.file.clone();
        let Role::Node(role) = &mut config.role else {
            return;
        };
        let mut set = |key, value: String| {
            let file = file.clone();
            self.steps.push(Step::SetKey { file, key, value });
        };
        if role.network != foreign.network {
            set("network", foreign.network.to_string());
            role.network = foreign.network.clone();
        }
        if let Some(bridge) = foreign
            .bridge
            .as_ref()
            .filter(|bridge| **bridge != role.bridge)
        {
            set("bridge", bridge.to_string());
            role.bridge = bridge.clone();
        }
        if role.data_dir != foreign.data_dir {
            set("data_dir", foreign.data_dir.display().to_string());
            role.data_dir = foreign.data_dir.clone();
        }
    }

    /// Pods keep their addresses only where these are this node's.
    fn check_addresses(&mut self, desired: &Desired, foreign: &Foreign) -> anyhow::Result<()> {
        let gateways = desired.bridge.iter().flat_map(|bridge| &bridge.gateways);
        let own: Vec<_> = gateways.map(|net| Prefix::containing(*net)).collect();
        let mut strange = list_allocations(&foreign.data_dir, &foreign.network)?;
        strange.retain(|ip| !own.iter().any(|cidr| cidr.holds(*ip)));
        strange.sort();
        if own.is_empty() {
            self.obstacle("this node has no usable pod CIDR".to_owned());
        } else if !strange.is_empty() {
            let list = |items: Vec<String>| items.join(", ");
            self.obstacle(format!(
                "pods have addresses outside of this node's pod CIDRs ({}): {}; give the node the range that they are from, \
                 or move these pods away",
                list(own.iter().map(ToString::to_string).collect()),
                list(strange.iter().take(5).map(ToString::to_string).collect()),
            ));
        }
        Ok(())
    }

    /// New pods look for the old ones on the bridge, where these are not when each has a link of its own: the node answers for
    /// them, at once, as long as it has a route to them.
    fn lead_to_old_pods(&mut self, desired: &Desired, foreign: &Foreign) {
        let Some(bridge) = desired.bridge.as_ref().filter(|_| foreign.bridge.is_none()) else {
            return;
        };
        for (key, value) in [
            (format!("net/ipv4/conf/{}/proxy_arp", bridge.name), "1"),
            (format!("net/ipv4/neigh/{}/proxy_delay", bridge.name), "0"),
        ] {
            if sysctl::read(&key).as_deref() != Ok(value) {
                self.steps
                    .push(Step::Change(Change::SetSysctl(Sysctl { key, value })));
            }
        }
        if bridge.gateways.iter().any(|net| net.addr().is_ipv6()) {
            let note = "over IPv6, new pods do not reach old pods of this node until those are made anew: \
                        the kernel answers for others one address at a time there";
            self.report.notes.push(note.to_owned());
        }
    }

    /// A route of somebody else's with the same destination is replaced, which the agent would never do.
    fn take_the_place(
        &mut self,
        change: Change,
        routes: &[Route],
        names: &BTreeMap<u32, String>,
    ) -> Change {
        let Change::AddRoute(wanted) = change else {
            return change;
        };
        let key = |route: &Route| (route.dst, route.options.metric, route.options.table);
        let is_old =
            |old: &&Route| key(old) == key(&wanted.route) && old.protocol != RouteProtocol::PODSPAN;
        let Some(old) = routes.iter().find(is_old) else {
            return Change::AddRoute(wanted);
        };
        if old.link != wanted.route.link && old.dst.is_ipv4() {
            for link in [old.link, wanted.route.link] {
                if let Some(name) = link.and_then(|link| names.get(&link)) {
                    self.check_reverse_path(name);
                }
            }
        }
        Change::ReplaceRoute(NamedRoute { ..wanted })
    }

    /// While some nodes have gone over and some have not, the way back is another one.
    fn check_reverse_path(&mut self, link: &str) {
        let strictness = |of: &str| {
            let value = sysctl::read(&format!("net/ipv4/conf/{of}/rp_filter"));
            value.ok().and_then(|value| value.parse::<u8>().ok())
        };
        // The greater of the two counts (ip-sysctl.rst, rp_filter): 1 is strict, 2 is loose.
        if strictness("all").max(strictness(link)) == Some(1) {
            let obstacle = format!(
                "{link} drops what comes in by another way than it would go out by, as some does while the nodes go over; \
                 first, on every node: sysctl -w net/ipv4/conf/{link}/rp_filter=2"
            );
            if !self.report.obstacles.contains(&obstacle) {
                self.obstacle(obstacle);
            }
        }
    }

    /// What is left of the other network, when no node uses it.
    fn finish(&mut self, netlink: &mut Netlink, config: &Config) -> anyhow::Result<()> {
        let directory = conflist_directory(config)?;
        if let Some(foreign) = foreign::find(directory)? {
            bail!(
                "{} is in use: this node has not gone over; first, on every node: podspan migrate --apply",
                foreign.conflist.display()
            );
        }
        let routes = netlink.list_routes(None)?;
        for link in netlink.list_links()? {
            if !Kind::Flannel.has_tunnel(&link) {
                continue;
            }
            let through = routes.iter().filter(|route| route.link == Some(link.index));
            for route in through.filter(|route| route.protocol != RouteProtocol::KERNEL) {
                self.obstacle(format!(
                    "{} leads through {} and would be lost; see podspan plan",
                    route.dst, link.name
                ));
            }
            self.steps.push(Step::RemoveLink(link));
        }
        // A kernel without nftables has none of it, and nothing that could answer.
        if let Ok(mut nft) = Nft::open()
            && nft.generation().is_ok()
        {
            let found = Leftover::find(&mut nft)?;
            self.steps.extend(found.into_iter().map(Step::RemoveChain));
        }
        for path in foreign::moved(directory) {
            let note = format!("{} is kept, for the way back", path.display());
            self.report.notes.push(note);
        }
        Ok(())
    }

    fn obstacle(&mut self, text: String) {
        self.report.obstacles.push(text);
    }
}

fn conflist_directory(config: &Config) -> anyhow::Result<&Path> {
    match &config.role {
        Role::Node(role) => Ok(role.conflist.parent().unwrap_or(Path::new("/"))),
        Role::Router => bail!("a router has no pods"),
    }
}

/// Takes the steps in their order, and tells what failed. The other network's conflist stays where ours could not take over.
fn take(netlink: &mut Netlink, steps: Vec<Step>) -> Vec<String> {
    let mut failed = Vec::new();
    let mut changes = Vec::new();
    let mut after = Vec::new();
    for step in steps {
        match step {
            Step::SetKey { file, key, value } => {
                if let Err(error) = set_key(&file, key, &value) {
                    // An agent that does not know it would make the node another network's again.
                    return vec![format!("{error:#}")];
                }
            }
            Step::Change(change) => changes.push(change),
            step @ (Step::Move { .. } | Step::RemoveLink(_) | Step::RemoveChain(_)) => {
                after.push(step);
            }
        }
    }
    let at = (&mut *netlink, &mut PacketFilter::default());
    apply(at, &changes, |_, outcome| {
        failed.extend(outcome.err().map(|error| format!("{error:#}")));
    });
    if !failed.is_empty() {
        return failed;
    }
    for step in after {
        let outcome = match &step {
            Step::Move { from, to } => std::fs::rename(from, to).map_err(Into::into),
            Step::RemoveLink(link) => netlink.remove_link(link.index).map_err(Into::into),
            Step::RemoveChain(leftover) => leftover.remove().map_err(Into::into),
            Step::SetKey { .. } | Step::Change(_) => Ok(()),
        };
        let outcome: anyhow::Result<()> = outcome;
        let told = outcome.with_context(|| step.to_string());
        failed.extend(told.err().map(|error| format!("{error:#}")));
    }
    failed
}

/// Sets a key of a TOML file's top level, all else staying as it is, by temporary file, fsync and rename.
fn set_key(file: &Path, key: &str, value: &str) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let new = with_key(&text, key, value).with_context(|| format!("read {}", file.display()))?;
    let draft = file.with_extension("toml.new");
    let write = || -> std::io::Result<()> {
        let mut to = std::fs::File::create(&draft)?;
        to.write_all(new.as_bytes())?;
        to.sync_all()?;
        std::fs::rename(&draft, file)
    };
    write().with_context(|| {
        format!(
            "set {key} = \"{value}\" in {}; where the file is a ConfigMap's, set the value of the chart, and nothing is \
             changed until then",
            file.display()
        )
    })
}

/// The text with the key: its value in the place of the one that it has, or a line before all else.
///
/// # Errors
/// Text that is not TOML.
fn with_key(text: &str, key: &str, value: &str) -> Result<String, toml::de::Error> {
    let value = toml::Value::from(value);
    // Where a key is in the text is for the parser to say: the same words may stand in a comment, a table or a longer value.
    let keys: BTreeMap<String, Spanned<toml::Value>> = toml::from_str(text)?;
    let Some(old) = keys.get(key) else {
        return Ok(format!("{key} = {value}\n{text}"));
    };
    let mut new = text.to_owned();
    new.replace_range(old.span(), &value.to_string());
    Ok(new)
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetKey { file, key, value } => {
                write!(f, "set {key} = \"{value}\" in {}", file.display())
            }
            Self::Change(change) => change.fmt(f),
            Self::Move { from, to } => write!(f, "mv {} {}", from.display(), to.display()),
            Self::RemoveLink(link) => write!(f, "ip link del {}", link.name),
            Self::RemoveChain(leftover) => leftover.fmt(f),
        }
    }
}

impl Report {
    /// For people: the steps, and what stands in the way.
    fn to_text(&self) -> String {
        let mut text = String::new();
        let mut line = |line: String| text += &(line + "\n");
        match &self.from {
            Some(from) => line(format!("# from {from}")),
            None if self.steps.is_empty() => line("# nothing to migrate".to_owned()),
            None => {}
        }
        self.steps.iter().for_each(|step| line(step.clone()));
        for (word, lines) in [
            ("note", &self.notes),
            ("IN THE WAY", &self.obstacles),
            ("FAILED", &self.failed),
        ] {
            lines
                .iter()
                .for_each(|told| line(format!("# {word}: {told}")));
        }
        if self.applied && self.failed.is_empty() {
            line("# done".to_owned());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_set_in_its_place_or_before_all_else() {
        for (text, expected) in [
            ("", "bridge = \"cni0\"\n"),
            ("mtu = 1\n", "bridge = \"cni0\"\nmtu = 1\n"),
            (
                "a = 1\nbridge=\"x\" # why\nbridges = 2\n",
                "a = 1\nbridge=\"cni0\" # why\nbridges = 2\n",
            ),
            // The line of the key stands in a comment first.
            (
                "# bridge = \"x\"\nbridge = \"x\"\r\n",
                "# bridge = \"x\"\nbridge = \"cni0\"\r\n",
            ),
            ("\"bridge\" = 'x'", "\"bridge\" = \"cni0\""),
            // What is not of the top level is another key.
            (
                "[lab]\nbridge = \"x\"\n",
                "bridge = \"cni0\"\n[lab]\nbridge = \"x\"\n",
            ),
            (
                "a = \"\"\"\nbridge = \"x\"\n\"\"\"\nbridge = \"x\"\n[lab]\nbridge = \"x\"\n",
                "a = \"\"\"\nbridge = \"x\"\n\"\"\"\nbridge = \"cni0\"\n[lab]\nbridge = \"x\"\n",
            ),
        ] {
            assert_eq!(with_key(text, "bridge", "cni0").unwrap(), expected);
        }
        assert_eq!(with_key("", "k", "a\"b").unwrap(), "k = 'a\"b'\n");
        assert!(with_key("bridge = ", "bridge", "cni0").is_err());
    }
}
