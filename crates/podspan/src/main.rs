//! The pod network's executable: the agent, the router, and the operator's commands.
//!
//! Every subcommand is a room of its own; this is the table of contents.

mod agent;
mod apply;
mod beside;
mod board;
mod cleanup;
mod cluster;
mod config;
mod conflist;
mod desired;
mod doctor;
mod events;
mod explain;
mod fields;
mod forwarding;
mod http;
mod kubernetes;
mod lab;
mod list;
mod log;
mod look;
mod masquerade;
mod metrics;
mod migrate;
mod observe;
mod output;
mod packet_filter;
mod plan;
mod policy;
mod probe;
mod refusal;
mod registry;
mod runtime;
mod status;
mod told;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, RoleName};
use crate::output::Output;

/// A pod network: every pod an address, plain routes between the nodes.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    /// How to print
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Keep this node's bridge, routes and conflist right, until SIGTERM
    Agent(ConfigFile),
    /// Keep the routes to all nodes right on the router, until SIGTERM
    Router(ConfigFile),
    /// Print what the agent would change; exit status 0: nothing, 1: something, 2: error
    Plan(Machine),
    /// Tell whether this machine is right; exit status 0: yes, 1: no, 2: error
    Status(Machine),
    /// Find out what keeps pods from working here, and what mends it; exit status 0: nothing, 1: something, 2: error
    Doctor(Machine),
    /// Follow a packet from a pod of this node to another pod; exit status 0: it passes, 1: it does not, 2: error
    Explain {
        #[command(flatten)]
        packet: explain::Arguments,
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Say who may talk to whom: the policies, and what they come to for a pod of this node
    Policy {
        #[command(subcommand)]
        command: policy::command::Command,
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Remove all that is marked as ours from this machine; stop the agent first
    Cleanup(cleanup::Arguments),
    /// Put a container on the network, as a runtime does
    Add(runtime::Arguments),
    /// Take a container off the network, as a runtime does
    Del(runtime::Arguments),
    /// Go over from flannel, kindnet or the bridge plugin; its pods keep their addresses
    Migrate {
        #[command(flatten)]
        file: ConfigFile,
        #[command(flatten)]
        arguments: migrate::Arguments,
    },
    /// List the attachments of this node
    List(ConfigFile),
    /// Have a whole cluster on this machine: nodes, pods and a router as namespaces
    Lab(lab::Command),
}

#[derive(Args)]
struct ConfigFile {
    /// The configuration [default: /etc/podspan/agent.toml, for the router router.toml]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// This node's name, in the place of the configuration's
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        env = "NODE_NAME",
        hide_env_values = true
    )]
    node: Option<String>,
}

#[derive(Args)]
struct Machine {
    #[command(flatten)]
    file: ConfigFile,
    /// What this machine is
    #[arg(long, value_enum, default_value = "node")]
    role: RoleName,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command, cli.output) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("podspan: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(command: Command, output: Output) -> anyhow::Result<ExitCode> {
    match command {
        Command::Agent(file) => agent::run(&file.read(RoleName::Node)?),
        Command::Router(file) => agent::run(&file.read(RoleName::Router)?),
        Command::Plan(machine) => status::print_plan(&machine.read()?, output),
        Command::Status(machine) => status::print_status(&machine.read()?, output),
        Command::Doctor(machine) => doctor::print_report(&machine.read()?, output),
        Command::Explain { packet, file } => {
            explain::run(&packet, &file.read(RoleName::Node)?, output)
        }
        Command::Policy { command, file } => {
            policy::command::run(&command, &file.read(RoleName::Node)?, output)
        }
        Command::Cleanup(arguments) => cleanup::run(&arguments, output),
        Command::Add(arguments) => runtime::add(arguments, output),
        Command::Del(arguments) => runtime::del(arguments, output),
        Command::Migrate { file, arguments } => {
            migrate::run(file.read(RoleName::Node)?, &arguments, output)
        }
        Command::List(file) => list::print_list(file.config.as_deref(), output),
        Command::Lab(command) => lab::run(command, output),
    }
}

impl ConfigFile {
    fn read(&self, role: RoleName) -> anyhow::Result<Config> {
        let node = self.node.as_deref().filter(|name| !name.is_empty());
        let config = Config::read(role, self.config.as_deref(), node)?;
        podspan_kernel::sysctl::use_root(&config.proc_sys)?;
        Ok(config)
    }
}

impl Machine {
    fn read(&self) -> anyhow::Result<Config> {
        self.file.read(self.role)
    }
}
