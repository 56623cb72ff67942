//! The lab: a whole cluster on one machine, each node a set of namespaces with the real agent in it.
//!
//! A lab is one process, the holder, and what descends from it ([`holder`], [`machine`]); the commands look at it from
//! outside ([`instance`]), and most of them go in to do their work ([`inside`]). The machine's own interfaces, routes and
//! files are never touched. What may surprise: this program starts itself again for each of these roles, for a namespace
//! is entered by a process, and a PID namespace only by its children.

mod by_hand;
mod check;
mod draw;
mod event;
mod holder;
mod inside;
mod instance;
mod layout;
mod machine;
mod observe;
mod pod;
mod status;

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use podspan_cni::attachment::NetworkName;

use crate::output::Output;
use event::Detail;
use inside::Action;
use instance::Instance;
use layout::{Layout, Routing};

/// How long something that takes a moment may take, on a slow machine with two hundred nodes.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// `podspan lab`.
#[derive(Debug, clap::Args)]
pub struct Command {
    /// The name of the lab; several can be up beside each other
    #[arg(
        long = "lab",
        value_name = "NAME",
        global = true,
        default_value = "lab"
    )]
    name: NetworkName,
    #[command(subcommand)]
    step: Step,
}

#[derive(Debug, clap::Subcommand)]
enum Step {
    /// Build a cluster of namespaces on this machine and draw it
    Up {
        /// How many nodes
        #[arg(long, default_value_t = 3)]
        nodes: u16,
        /// How many pods on each node
        #[arg(long, default_value_t = 2)]
        pods: u16,
        /// How packets find the node of a pod
        #[arg(long, value_enum, default_value = "direct")]
        routing: Routing,
        /// Show each step as the command with which one does it by hand
        #[arg(short, long)]
        verbose: bool,
    },
    /// End the lab; nothing is left of it
    Down,
    #[command(flatten)]
    Inside(Action),
    /// Be the lab's pid 1 (started by `up`)
    #[command(hide = true)]
    Hold {
        #[arg(value_parser = from_json::<Layout>)]
        layout: Layout,
    },
    /// Be a machine of the lab (started by the holder)
    #[command(hide = true)]
    Machine {
        #[arg(value_parser = from_json::<layout::Machine>)]
        machine: layout::Machine,
    },
    /// Do something in the lab (started by the command that was typed)
    #[command(hide = true, name = "inside")]
    Within { action: String },
}

/// Runs `podspan lab`.
///
/// # Errors
/// When it cannot be done, in words that say what would help.
pub fn run(command: Command, output: Output) -> Result<ExitCode> {
    let instance = || Instance::named(command.name.clone());
    match command.step {
        Step::Up {
            nodes,
            pods,
            routing,
            verbose,
        } => {
            let layout = Layout {
                nodes,
                pods,
                routing,
            };
            let detail = if verbose {
                Detail::Commands
            } else {
                Detail::Progress
            };
            up(&instance()?, layout.validate()?, detail)
        }
        Step::Down => down(&instance()?, &command.name),
        Step::Inside(action) => instance()?.run_inside(&serde_json::to_string(&action)?, output),
        Step::Hold { layout } => holder::hold(layout).map(|()| ExitCode::SUCCESS),
        Step::Machine { machine } => machine::run(machine).map(|()| ExitCode::SUCCESS),
        Step::Within { action } => inside::run(serde_json::from_str(&action)?, output),
    }
}

fn up(instance: &Instance, layout: Layout, detail: Detail) -> Result<ExitCode> {
    let begin = Instant::now();
    let (holder, events) = instance.start(&serde_json::to_string(&layout)?)?;
    if let Err(error) = event::follow(events, layout, detail) {
        instance.abandon(holder)?;
        return Err(error).context("the lab did not come up, and nothing is left of it");
    }
    writeln!(
        std::io::stdout(),
        "up after {:.1} s\n",
        begin.elapsed().as_secs_f64()
    )?;
    instance.run_inside(&serde_json::to_string(&Action::Status)?, Output::Text)
}

fn down(instance: &Instance, name: &NetworkName) -> Result<ExitCode> {
    let text = if instance.end()? {
        "is down"
    } else {
        "was not up"
    };
    writeln!(std::io::stdout(), "lab {:?} {text}", name.as_str())?;
    Ok(ExitCode::SUCCESS)
}

fn from_json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

/// Waits until that is so.
///
/// # Errors
/// When looking fails, and when it takes too long.
fn wait_until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let begin = Instant::now();
    while !is_so()? {
        if begin.elapsed() > PATIENCE {
            bail!("waited {} s for {what}", PATIENCE.as_secs());
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}
