//! What is done in a lab that is up: by a child of the command that was typed, in the holder's namespaces.
//!
//! From there each machine is found by its process, and a pod by the file that its node has for it. For what is done in
//! one of them, the process moves there for good.

use std::fmt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use podspan_cni::attachment::ContainerId;
use podspan_kernel::namespaces::{self, Kind};
use podspan_kernel::{Invalid, Netns};
use serde::{Deserialize, Serialize};

use super::layout::Machine;
use super::{check, holder, pod, status};
use crate::output::Output;

/// What can be done in a lab.
#[derive(Debug, Serialize, Deserialize, clap::Subcommand)]
pub enum Action {
    /// Prove what the network promises, with real traffic; exit 1 when something does not hold
    Check,
    /// Draw the network and say whether its agents run; exit 1 when one does not
    Status,
    /// Run a command (a shell when none is given) on a node, on the router or in a pod
    Exec {
        /// Where: node1, node1/pod1, router or gateway
        place: Place,
        /// What to run
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Add a pod to a node
    Add {
        /// The pod, such as node1/pod3
        pod: Place,
    },
    /// Remove a pod from its node
    Del {
        /// The pod, such as node1/pod3
        pod: Place,
    },
}

/// A place in the lab, written as node1, node1/pod1, router or gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Place {
    machine: Machine,
    pod: Option<ContainerId>,
}

impl Place {
    /// The pod of that name on a machine.
    pub fn of_pod(machine: Machine, pod: ContainerId) -> Self {
        Self {
            machine,
            pod: Some(pod),
        }
    }

    /// Moves the process to the machine, for good.
    fn enter_machine(&self) -> Result<()> {
        let process = holder::process_of(self.machine)?;
        namespaces::enter(&process, &[Kind::Mount, Kind::Net, Kind::Uts])
            .with_context(|| format!("{} does not run any more", self.machine))
    }

    fn the_pod(&self) -> Result<&ContainerId> {
        let machine = self.machine;
        self.pod
            .as_ref()
            .with_context(|| format!("{machine} is not a pod; a pod is written {machine}/pod1"))
    }
}

impl FromStr for Place {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let invalid = || {
            Invalid(format!(
                "{text:?} is no place of a lab, such as node1, node1/pod1, router or gateway"
            ))
        };
        let (machine, pod) = match text.split_once('/') {
            Some((machine, pod)) => (machine, Some(pod.parse()?)),
            None => (text, None),
        };
        let machine = match machine.strip_prefix("node") {
            Some(number) => Machine::Node(number.parse().map_err(|_| invalid())?),
            None if machine == "router" && pod.is_none() => Machine::Router,
            None if machine == "gateway" && pod.is_none() => Machine::Gateway,
            None => return Err(invalid()),
        };
        Ok(Self { machine, pod })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.pod {
            Some(pod) => write!(f, "{}/{pod}", self.machine),
            None => self.machine.fmt(f),
        }
    }
}

impl TryFrom<String> for Place {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<Place> for String {
    fn from(place: Place) -> Self {
        place.to_string()
    }
}

/// Does it, in the holder's namespaces.
///
/// # Errors
/// When it cannot be done.
pub fn run(action: Action, output: Output) -> Result<ExitCode> {
    match action {
        Action::Check => check::run(output),
        Action::Status => status::run(output),
        Action::Exec { place, command } => exec(&place, &command),
        Action::Add { pod: place } => {
            place.enter_machine()?;
            pod::add(place.the_pod()?)?;
            Ok(ExitCode::SUCCESS)
        }
        Action::Del { pod: place } => {
            place.enter_machine()?;
            if !pod::netns_path(place.the_pod()?).exists() {
                bail!("there is no {place} in this lab");
            }
            pod::remove(place.the_pod()?)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Becomes the command, there.
fn exec(place: &Place, command: &[String]) -> Result<ExitCode> {
    place.enter_machine()?;
    if let Some(pod) = &place.pod {
        Netns::open(pod::netns_path(pod))
            .with_context(|| format!("there is no {place} in this lab"))?
            .enter()?;
        // A pod has a `/sys` of its own too, in which its own interfaces show.
        namespaces::unshare(&[Kind::Mount])?;
        super::machine::mount_where_allowed("sysfs", "/sys")?;
    }
    let program = std::env::current_exe().context("find this program's own file")?;
    let own = program.parent().unwrap_or(Path::new("/"));
    let path = std::env::var("PATH").unwrap_or_default();
    let shell = ["sh".to_owned()];
    let (name, arguments) = command
        .split_first()
        .or(shell.split_first())
        .context("no command")?;
    // An ordinary user's PATH may lack the directories where `ip` is.
    let error = Command::new(name)
        .args(arguments)
        .env("PATH", format!("{}:{path}:/usr/sbin:/sbin", own.display()))
        .env("CNI_PATH", own)
        .exec();
    Err(error).with_context(|| format!("run {name} on {place}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_node_a_pod_of_a_node_or_the_router() {
        for good in ["node1", "node20/pod1", "router", "gateway"] {
            assert_eq!(good.parse::<Place>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "node",
            "nodeX",
            "pod1",
            "router/pod1",
            "gateway/pod1",
            "node1/",
            "node1/../x",
            "node1/a/b",
        ] {
            assert!(bad.parse::<Place>().is_err(), "{bad:?}");
        }
    }
}
