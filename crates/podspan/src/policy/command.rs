//! `podspan policy list` and `podspan policy show`: what policies there are, and what they come to for a pod of this node.
//!
//! Both read the policies as the agent does, and make the same model of them; neither asks the agent.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use podspan_kernel::nft::Nft;
use serde::Serialize;

use super::chains;
use super::model::{Model, PolicyName};
use super::object::{Attached, Key};
use super::program::{Attachment, Direction, Verdict};
use super::{ask, log, source, words};
use crate::config::{Config, Role};
use crate::output::{Output, columns};

/// `podspan policy`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List all policies in the order in which they decide, and how many pods of this node each is about
    List,
    /// Show what policy comes to for a pod of this node: in each direction what passes, and which rule says so
    Show {
        /// The pod, as namespace/name
        pod: String,
    },
    /// Say of a packet, or of many, whether policy lets it through, and which rule says so; exit status 0: all pass, 1: one does not
    Ask(ask::Arguments),
    /// Tell the packets that policy denies from now on, some of each pod and policy a second
    Log(log::Arguments),
}

/// What policy comes to for a pod.
#[derive(Debug, Serialize)]
struct Shown {
    pod: String,
    ingress: Vec<String>,
    egress: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Row {
    policy: String,
    tier: Option<String>,
    priority: Option<u16>,
    ingress: bool,
    egress: bool,
    pods_here: usize,
}

/// Runs it.
///
/// # Errors
/// No policy here, the source out of reach, no such pod.
pub fn run(command: &Command, config: &Config, output: Output) -> anyhow::Result<ExitCode> {
    match command {
        Command::List => {
            let rows: Vec<Row> = model(config)?.0.policies().iter().map(Row::of).collect();
            output.print(&rows, |rows| table(rows))?;
        }
        Command::Show { pod } => {
            let shown = show(&model(config)?, pod)?;
            output.print(&shown, Shown::to_text)?;
        }
        Command::Ask(arguments) => return ask::run(arguments, config, output),
        Command::Log(arguments) => return log::run(arguments, config, output),
    }
    Ok(ExitCode::SUCCESS)
}

/// The model of the policies as they are now, with this node's attachments.
///
/// # Errors
/// No policy here, the source out of reach, what the kernel answered.
pub fn model(config: &Config) -> anyhow::Result<(Model, Vec<(Attachment, Attached)>)> {
    let Role::Node(role) = &config.role else {
        bail!("a router has no pods; run it on a node");
    };
    let Some(policy) = &role.policy else {
        bail!(
            "policy is not enforced here; see policy in {}",
            config.file.display()
        );
    };
    let mut model = Model::new(&role.name);
    for change in source::read(&config.registry, policy)? {
        model.take(change);
    }
    let attachments: Vec<_> = chains::attachments(&mut Nft::open()?)?
        .into_iter()
        .collect();
    for (name, attached) in &attachments {
        model.attached(name.clone(), attached.clone());
    }
    model.difference();
    Ok((model, attachments))
}

fn show(
    (model, attachments): &(Model, Vec<(Attachment, Attached)>),
    pod: &str,
) -> anyhow::Result<Shown> {
    let (namespace, name) = pod
        .split_once('/')
        .with_context(|| format!("{pod:?}: a pod is written namespace/name"))?;
    let key = Key {
        namespace: namespace.into(),
        name: name.into(),
    };
    let found = attachments.iter().find(|(_, attached)| attached.pod == key);
    let Some((attachment, _)) = found else {
        bail!(
            "no pod {pod} is attached on this node: kubectl get pod --namespace {namespace} {name} -o wide"
        );
    };
    let lines = |direction| match model.verdict(attachment) {
        None | Some(Verdict::Unknown) => {
            vec!["the API does not know this pod yet".to_owned()]
        }
        Some(Verdict::Known {
            ingress, egress, ..
        }) => {
            let program = match direction {
                Direction::Ingress => ingress,
                Direction::Egress => egress,
            };
            let program = program.and_then(|id| model.program(id));
            program.map_or_else(
                || vec!["everything passes: no policy is about it".to_owned()],
                |program| words::program(program, |set| model.members(set)),
            )
        }
    };
    Ok(Shown {
        pod: pod.to_owned(),
        ingress: lines(Direction::Ingress),
        egress: lines(Direction::Egress),
    })
}

impl Row {
    fn of(summary: &super::model::Summary) -> Self {
        let (tier, priority) = match &summary.policy {
            PolicyName::Cluster(tier, priority, _) => (Some(tier.to_string()), Some(*priority)),
            PolicyName::Network(_) => (None, None),
        };
        Self {
            policy: summary.policy.to_string(),
            tier,
            priority,
            ingress: summary.ingress,
            egress: summary.egress,
            pods_here: summary.pods,
        }
    }
}

fn table(rows: &[Row]) -> String {
    let head = ["policy", "tier", "priority", "directions", "pods here"];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    lines.extend(rows.iter().map(|row| {
        let directions = match (row.ingress, row.egress) {
            (true, true) => "ingress, egress",
            (true, false) => "ingress",
            (false, true) => "egress",
            (false, false) => "none",
        };
        vec![
            row.policy.clone(),
            row.tier.clone().unwrap_or_default(),
            row.priority
                .map(|priority| priority.to_string())
                .unwrap_or_default(),
            directions.to_owned(),
            row.pods_here.to_string(),
        ]
    }));
    columns(&lines)
}

impl Shown {
    fn to_text(&self) -> String {
        let part = |name: &str, lines: &[String]| {
            let lines: Vec<_> = lines.iter().map(|line| format!("  {line}")).collect();
            format!("{name}\n{}\n", lines.join("\n"))
        };
        let ingress = part("ingress", &self.ingress);
        format!(
            "{}\n\n{ingress}\n{}",
            self.pod,
            part("egress", &self.egress)
        )
    }
}
