//! `podspan status` and `podspan plan`: is this machine right, and what would be changed. Both only look.
//!
//! Each line that is wrong ends with what mends it. The agent mends most of it by itself; what it cannot mend is what an
//! operator reads here for.

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;

use podspan_kernel::{FdbEntry, Neighbour, Netlink};
use serde::Serialize;

use crate::cluster::Cluster;
use crate::config::Config;
use crate::conflist;
use crate::desired::{Between, Desired, Sysctl, Tunnel};
use crate::http::{self, Answer};
use crate::look::{Look, look};
use crate::observe::Observed;
use crate::output::{Output, columns, exit_code};
use crate::packet_filter::PacketFilter;
use crate::plan::{Change, Plan, VxlanStep, isolation};
use crate::registry::Registry;

/// Whether this machine is right, thing by thing.
#[derive(Debug, Default, Serialize)]
pub struct Status {
    /// True when every line is.
    pub right: bool,
    /// In the order of a person's questions.
    pub lines: Vec<Line>,
}

/// One thing.
#[derive(Debug, Serialize)]
pub struct Line {
    /// True when it is as it should be.
    pub right: bool,
    /// What it is.
    pub what: String,
    /// What would mend it: a command where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

/// What would be changed.
#[derive(Debug, Default, Serialize)]
pub struct Pending {
    /// As commands that a person would type.
    pub changes: Vec<String>,
    /// What is not followed, and why.
    pub refusals: Vec<String>,
}

/// Prints whether this machine is right; the exit status says it too.
///
/// # Errors
/// What the kernel answered.
pub fn print_status(config: &Config, output: Output) -> anyhow::Result<ExitCode> {
    let status = status(config, &see(config)?);
    output.print(&status, Status::to_text)?;
    Ok(exit_code(status.right))
}

/// Prints what the agent would change; the exit status says whether there is anything.
///
/// # Errors
/// A nodes file that is not usable, or what the kernel answered.
pub fn print_plan(config: &Config, output: Output) -> anyhow::Result<ExitCode> {
    let pending = pending(config)?;
    output.print(&pending, Pending::to_text)?;
    Ok(exit_code(pending.changes.is_empty()))
}

/// What the agent sees now.
pub struct Seen {
    /// The registry, as far as it can be read.
    pub registry: Registry,
    /// This machine; none without a cluster.
    pub look: Option<Look>,
}

/// Looks at this machine as the agent does.
///
/// # Errors
/// What the kernel answered.
pub fn see(config: &Config) -> anyhow::Result<Seen> {
    let registry = Registry::read(&config.registry)?;
    let cluster = registry.cluster();
    let look = cluster
        .map(|cluster| look_once(config, cluster))
        .transpose()?;
    Ok(Seen { registry, look })
}

/// Describes what was seen, and asks the agent how it is.
pub fn status(config: &Config, seen: &Seen) -> Status {
    let mut status = Status::default();
    let registry = &seen.registry;
    for problem in registry.problems() {
        status.wrong(problem, config.registry.mend());
    }
    if let (Some(cluster), Some(look)) = (registry.cluster(), &seen.look) {
        let (nodes, unready) = (cluster.nodes.len(), cluster.unready.len());
        let beside = match unready {
            0 => String::new(),
            unready => format!(", {unready} more without pod CIDRs or address yet"),
        };
        status.right(format!("{}: {nodes} nodes{beside}", registry.describe()));
        for refusal in registry.refusals() {
            status.wrong(refusal.to_string(), None);
        }
        status.describe(look, cluster);
    }
    if let Some(address) = config.operation.listen {
        status.describe_answer(address, http::ask(address));
    }
    status.right = status.lines.iter().all(|line| line.right);
    status
}

/// One look with connections of its own.
fn look_once(config: &Config, cluster: &Cluster) -> anyhow::Result<Look> {
    look(
        &mut Netlink::open()?,
        &mut PacketFilter::default(),
        config,
        cluster,
    )
}

/// What the agent would change now.
fn pending(config: &Config) -> anyhow::Result<Pending> {
    let registry = Registry::read(&config.registry)?;
    let Some(cluster) = registry.cluster() else {
        let problems: Vec<_> = registry.problems().collect();
        anyhow::bail!("{}", problems.join("\n"));
    };
    let Plan { changes, refusals } = look_once(config, cluster)?.plan;
    let refused = registry.refusals().iter().chain(&refusals);
    Ok(Pending {
        // Whole, unlike the agent's log.
        changes: changes.iter().map(|change| format!("{change:#}")).collect(),
        refusals: refused.map(ToString::to_string).collect(),
    })
}

impl Status {
    fn right(&mut self, what: impl Into<String>) {
        self.lines.push(Line {
            right: true,
            what: what.into(),
            mend: None,
        });
    }

    fn wrong(&mut self, what: impl Into<String>, mend: impl Into<Option<String>>) {
        self.lines.push(Line {
            right: false,
            what: what.into(),
            mend: mend.into(),
        });
    }

    fn describe(&mut self, look: &Look, cluster: &Cluster) {
        for refusal in &look.plan.refusals {
            self.wrong(refusal.to_string(), None);
        }
        let Some((desired, observed)) = &look.both else {
            return;
        };
        let changes = &look.plan.changes;
        let is_bridge = |change: &Change| {
            change.is_for_pods() || matches!(change, Change::RemoveAddress { .. })
        };
        if desired.bridge.is_some() && !changes.iter().any(is_bridge) {
            self.right(describe_bridge(desired, observed));
        }
        for tunnel in &desired.tunnels {
            let is_about = |change: &Change| matches!(change, Change::Vxlan { link, .. } if *link == tunnel.name);
            if !changes.iter().any(is_about) {
                self.right(describe_tunnel(tunnel));
            }
        }
        let is_route =
            |change: &&Change| matches!(change, Change::AddRoute(_) | Change::ReplaceRoute(_));
        let missing = changes.iter().filter(is_route).count();
        let through = desired.tunnels.iter().map(|tunnel| tunnel.routes.len());
        let wanted = desired.routes.len() + through.sum::<usize>();
        if missing == 0 {
            let nodes = cluster.nodes.len();
            self.right(format!("{wanted} routes for {nodes} nodes are there"));
        }
        let is_masquerade = |change: &Change| matches!(change, Change::SetMasquerade(_));
        if let (Some(masquerade), false) = (&desired.masquerade, changes.iter().any(is_masquerade))
            && observed.filter.is_ok()
        {
            let ranges = masquerade.inside.len();
            self.right(format!(
                "what leaves the cluster is masqueraded, what stays in its {ranges} ranges is not"
            ));
        }
        for change in changes {
            self.wrong(describe_change(change, observed), change.to_string());
        }
        if let Some(file) = &desired.conflist {
            self.describe_conflist(&file.path, observed);
        }
    }

    fn describe_conflist(&mut self, path: &Path, observed: &Observed) {
        if let conflist::Found::Ours(_) = observed.conflist {
            self.right(format!("conflist {}", path.display()));
        }
        for rival in conflist::rivals(path) {
            let rival = rival.display();
            let what = format!(
                "{rival} comes before {}: a runtime takes it instead of ours",
                path.display()
            );
            self.wrong(what, format!("mv {rival} {rival}.disabled"));
        }
    }

    /// Who answers where the agent should. Silence is no fault: the network is right without the agent.
    fn describe_answer(&mut self, address: SocketAddr, answer: Answer) {
        let port = address.port();
        match answer {
            Answer::None => {}
            Answer::Well => self.right(format!("the agent answers on {address}")),
            Answer::Ill(reason) => self.wrong(format!("the agent is not well: {reason}"), None),
            Answer::Foreign => self.wrong(
                format!("somebody else listens on {address}, where metrics and health should be"),
                format!("ss -ltnp sport = :{port} shows who; or set listen"),
            ),
        }
    }

    /// For people: a line each, the wrong ones with what mends them.
    fn to_text(&self) -> String {
        let rows = self.lines.iter().map(|line| {
            let word = if line.right { "right" } else { "WRONG" };
            let text = match &line.mend {
                Some(mend) => format!("{}; to mend it: {mend}", line.what),
                None => line.what.clone(),
            };
            vec![word.to_owned(), text]
        });
        columns(&rows.collect::<Vec<_>>())
    }
}

impl Pending {
    /// For people: the commands, and behind them what is refused.
    fn to_text(&self) -> String {
        let refusals = self
            .refusals
            .iter()
            .map(|refusal| format!("# refused: {refusal}\n"));
        let changes = self.changes.iter().map(|change| format!("{change}\n"));
        changes.chain(refusals).collect()
    }
}

fn describe_bridge(desired: &Desired, observed: &Observed) -> String {
    let Some(bridge) = &desired.bridge else {
        return String::new();
    };
    let addresses: Vec<_> = bridge.gateways.iter().map(ToString::to_string).collect();
    let foreign = observed
        .bridge
        .as_ref()
        .is_some_and(|seen| !seen.is_ours(bridge.mac));
    let whose = if foreign {
        ", somebody else's, used as it is"
    } else {
        ""
    };
    let between = match bridge.between {
        Between::Bridge | Between::Filters => "",
        Between::Node { .. } => "; the node routes between its pods",
    };
    format!(
        "bridge {} with {}{whose}{between}",
        bridge.name,
        addresses.join(" and ")
    )
}

fn describe_tunnel(tunnel: &Tunnel) -> String {
    let Tunnel {
        name,
        vxlan,
        mtu,
        fdb,
        ..
    } = tunnel;
    let local = vxlan.local.map(|ip| format!(" from {ip}"));
    format!(
        "vxlan device {name}{} to {} nodes, VNI {}, UDP port {}, MTU {mtu}",
        local.unwrap_or_default(),
        fdb.len(),
        vxlan.vni,
        vxlan.port
    )
}

fn describe_change(change: &Change, observed: &Observed) -> String {
    match change {
        Change::SetSysctl(wanted) => describe_sysctl(wanted, observed),
        Change::AddBridge { name, .. } => format!("bridge {name} is missing"),
        Change::SetBridge { name, change } => format!("bridge {name} is not{change}"),
        Change::SetPort { name, isolated } => {
            format!("port {name} is not{}", isolation(*isolated))
        }
        Change::AddAddress { link, net } => format!("bridge {link} lacks the gateway {net}"),
        Change::RemoveAddress { link, net } => format!("bridge {link} has the stale gateway {net}"),
        Change::Vxlan { link, step } => {
            format!("vxlan device {link} {}", describe_step(step, observed))
        }
        Change::AddRoute(route) => format!("route {route} is missing"),
        Change::ReplaceRoute(route) => format!("route {route} leads elsewhere"),
        Change::RemoveRoute(route) => format!("route {route} is left over"),
        Change::SetMasquerade(_) => "masquerading is not as it should be".to_owned(),
        Change::SetForwarding(_) => {
            "what the node forwards is dropped, or no longer, and the rule for pods is not as it should be"
                .to_owned()
        }
        Change::WriteConflist { path, .. } => {
            format!("conflist {} is missing or outdated", path.display())
        }
    }
}

fn describe_sysctl(wanted: &Sysctl, observed: &Observed) -> String {
    let seen = observed.sysctls.get(&wanted.key);
    let seen = seen.map_or("missing", String::as_str);
    format!("sysctl {} is {seen}, not {}", wanted.key, wanted.value)
}

/// What is wrong about a VXLAN device, behind its name.
fn describe_step(step: &VxlanStep, observed: &Observed) -> String {
    match step {
        VxlanStep::Make(_) => "is missing".to_owned(),
        VxlanStep::Remake(_) => "is another".to_owned(),
        VxlanStep::Correct(change) => format!("is not{change}"),
        VxlanStep::Remove => "is left over".to_owned(),
        VxlanStep::SetSysctl(wanted) => format!("has {}", describe_sysctl(wanted, observed)),
        VxlanStep::AddAddress(net) => format!("lacks its address {net}"),
        VxlanStep::RemoveAddress(net) => format!("has the stale address {net}"),
        VxlanStep::SetEntry(FdbEntry { mac, remote }) => {
            format!("does not know that {mac} is behind {remote}")
        }
        VxlanStep::RemoveEntry(FdbEntry { mac, remote }) => {
            format!("has the stale entry {mac} behind {remote}")
        }
        VxlanStep::SetNeighbour(Neighbour { ip, mac }) => {
            format!("does not know that {ip} is {mac}")
        }
        VxlanStep::RemoveNeighbour(ip) => format!("has the stale neighbour {ip}"),
    }
}
