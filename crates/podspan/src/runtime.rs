//! `podspan add` and `podspan del`: run the installed conflist as a container runtime does.
//!
//! The plugins are run through the CNI protocol, exactly as containerd would run them; nothing is done here that they do.
//! ADD goes forwards through the chain, DEL backwards, with the result of ADD from the cache. A failed ADD is undone by
//! DEL. An attachment that is there already is refused before anything runs: the DEL after a failed second ADD would take
//! away the first.

mod chain;
mod plugin;
mod results;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use podspan_cni::attachment::{AttachmentId, ContainerId, NetworkName};
use podspan_kernel::{IfName, Netlink, Netns};
use serde_json::Value;

use self::chain::Chain;
use self::plugin::{Call, Plugins};
use self::results::{Cached, Results};
use crate::output::Output;

/// Where runtimes keep conflists, unless `NETCONFPATH` says otherwise (as for cnitool).
const CONF_DIR: &str = "/etc/cni/net.d";
/// Where plugins are, unless `CNI_PATH` says otherwise.
const PLUGIN_DIR: &str = "/opt/cni/bin";

/// What `add` and `del` take.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// The container's id: letters, digits, '_', '.' and '-'
    container: ContainerId,
    /// Its network namespace: a name under /run/netns, a path, or a pid
    namespace: String,
    /// The interface's name inside
    #[arg(long, default_value = "eth0")]
    ifname: IfName,
    /// The network's name [default: that of the first conflist]
    #[arg(long, value_name = "NAME")]
    network: Option<NetworkName>,
    /// Where the conflists are [default: $NETCONFPATH, else /etc/cni/net.d]
    #[arg(long, value_name = "DIR")]
    conf_dir: Option<PathBuf>,
}

/// Puts the container on the network and prints the result.
///
/// # Errors
/// It is there already, or what the plugin that failed said; then nothing is left of it.
pub fn add(arguments: Arguments, output: Output) -> anyhow::Result<ExitCode> {
    let runtime = Runtime::from_environment(&arguments);
    let chain = Chain::load(&runtime.conf_dir, arguments.network.as_ref())?;
    let result = runtime.add(&arguments, chain)?;
    output.print(&result, |result| describe(&arguments, result))?;
    Ok(ExitCode::SUCCESS)
}

/// Takes the container off the network; that it is not on it is fine.
///
/// # Errors
/// All that the plugins said.
pub fn del(arguments: Arguments, output: Output) -> anyhow::Result<ExitCode> {
    Runtime::from_environment(&arguments).del(&arguments)?;
    let done = serde_json::json!({"container": arguments.container.as_str(), "interface": arguments.ifname.as_str()});
    output.print(&done, |_| {
        format!("container {} is off the network", arguments.container)
    })?;
    Ok(ExitCode::SUCCESS)
}

struct Runtime {
    conf_dir: PathBuf,
    plugins: Plugins,
    results: Results,
}

impl Runtime {
    fn from_environment(arguments: &Arguments) -> Self {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let conf_dir = arguments
            .conf_dir
            .clone()
            .or_else(|| variable("NETCONFPATH").map(PathBuf::from));
        Self {
            conf_dir: conf_dir.unwrap_or(CONF_DIR.into()),
            plugins: Plugins::new(variable("CNI_PATH").unwrap_or(PLUGIN_DIR.into())),
            results: Results::new(Path::new("/run/podspan/results")),
        }
    }

    fn add(&self, arguments: &Arguments, chain: Chain) -> anyhow::Result<Value> {
        let id = arguments.id();
        let netns = namespace_path(&arguments.namespace)?;
        Netns::open(&netns)?;
        self.ensure_absent(&chain.network, &id)?;
        let call = Call {
            command: "ADD",
            id: &id,
            netns: Some(&netns),
        };
        let outcome = self.add_all(&chain, &call).and_then(|result| {
            let cached = Cached {
                conflist: chain.to_json(),
                result: result.clone(),
            };
            self.results.write(&chain.network, &id, &cached)?;
            Ok(result)
        });
        if outcome.is_err() {
            // What the runtime must do after a failed ADD (T22). What it cannot undo either is told by the plugin.
            let undo = Call {
                command: "DEL",
                ..call
            };
            for failure in self.del_all(&chain, &undo, None) {
                eprintln!("podspan: undo: {failure:#}");
            }
        }
        outcome
    }

    fn add_all(&self, chain: &Chain, call: &Call<'_>) -> anyhow::Result<Value> {
        let mut result = None;
        for plugin in &chain.plugins {
            let answer = self
                .plugins
                .run(call, &chain.netconf(plugin, result.as_ref()))?;
            result = Some(
                answer.with_context(|| format!("{} ADD printed no result", chain::kind(plugin)))?,
            );
        }
        result.context("the conflist has no plugins")
    }

    /// Backwards, and never stopping at a failure: what is left behind is worse than a second message.
    fn del_all(
        &self,
        chain: &Chain,
        call: &Call<'_>,
        result: Option<&Value>,
    ) -> Vec<anyhow::Error> {
        let plugins = chain.plugins.iter().rev();
        plugins
            .filter_map(|plugin| self.plugins.run(call, &chain.netconf(plugin, result)).err())
            .collect()
    }

    fn del(&self, arguments: &Arguments) -> anyhow::Result<()> {
        let id = arguments.id();
        let cached = self.results.find(arguments.network.as_ref(), &id)?;
        let (chain, result) = match cached {
            // The chain that made it, whatever is installed now.
            Some(cached) => (
                Chain::parse(&cached.conflist).context("cached conflist")?,
                Some(cached.result),
            ),
            None => (
                Chain::load(&self.conf_dir, arguments.network.as_ref())?,
                None,
            ),
        };
        // A namespace that is gone took the interface with it; the rest is to be freed all the same (T24).
        let netns = namespace_path(&arguments.namespace)
            .ok()
            .filter(|path| path.exists());
        let call = Call {
            command: "DEL",
            id: &id,
            netns: netns.as_deref(),
        };
        let failures = self.del_all(&chain, &call, result.as_ref());
        if failures.is_empty() {
            return self.results.remove(&chain.network, &id);
        }
        let lines: Vec<_> = failures
            .iter()
            .map(|failure| format!("{failure:#}"))
            .collect();
        bail!("{}", lines.join("\n"))
    }

    /// Refuses what is attached, by us or by a runtime.
    fn ensure_absent(&self, network: &NetworkName, id: &AttachmentId) -> anyhow::Result<()> {
        let alias = id.alias(network)?;
        let links = Netlink::open()?.list_links()?;
        let attached = links.iter().any(|link| link.alias.as_ref() == Some(&alias));
        ensure!(
            !attached && self.results.find(Some(network), id)?.is_none(),
            "container {} is on network {network} already; take it off first: podspan del {} <namespace>",
            id.container,
            id.container,
        );
        Ok(())
    }
}

impl Arguments {
    fn id(&self) -> AttachmentId {
        AttachmentId {
            container: self.container.clone(),
            ifname: self.ifname.clone(),
        }
    }
}

/// The file of a namespace that is given as a name under `/run/netns`, a path, or a pid.
fn namespace_path(namespace: &str) -> anyhow::Result<PathBuf> {
    ensure!(
        !namespace.is_empty(),
        "the namespace is empty; give a name under /run/netns, a path, or a pid"
    );
    if namespace.contains('/') {
        return std::path::absolute(namespace).with_context(|| format!("namespace {namespace}"));
    }
    if namespace.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(format!("/proc/{namespace}/ns/net").into());
    }
    Ok(Path::new("/run/netns").join(namespace))
}

/// The result in words: which container, which interface, which addresses.
fn describe(arguments: &Arguments, result: &Value) -> String {
    let text = |value: &Value, key: &str| {
        value
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or("-")
            .to_owned()
    };
    let list = |key: &str| {
        result
            .get(key)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
    };
    let mut words = format!(
        "container {} is on the network by {}\n",
        arguments.container, arguments.ifname
    );
    for ip in list("ips") {
        let _ = writeln!(
            words,
            "address {} gateway {}",
            text(ip, "address"),
            text(ip, "gateway")
        );
    }
    let outside = list("interfaces")
        .filter(|interface| interface.get("sandbox").is_none_or(|path| path == ""));
    let outside: Vec<_> = outside.map(|interface| text(interface, "name")).collect();
    if !outside.is_empty() {
        let _ = writeln!(words, "on this node {}", outside.join(" "));
    }
    words
}

#[cfg(test)]
mod tests;
