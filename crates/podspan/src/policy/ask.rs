//! `podspan policy ask`: what policy says of packets, and which rule says it, without sending any.
//!
//! The answers come from the model of the policies as they are now, for pods of every node; `podspan explain` has its hops about policy
//! from here, and then sends packets. Whether the kernel has all of that in force already is what explain and the agent's
//! metrics tell.

use std::io::BufRead as _;
use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use serde::Serialize;

use super::model::{Judged, Model};
use super::object::{Key, Protocol};
use super::program::Direction;
use super::{command, words};
use crate::config::Config;
use crate::output::{Output, exit_code};

/// A port of a protocol; none for a packet without ports (ICMP).
pub type Port = Option<(Protocol, u16)>;

/// `podspan policy ask`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Who sends: a pod as namespace/name, or an address. Without any, questions come from standard input, a line each
    #[arg(requires = "to")]
    from: Option<String>,
    /// Who receives, likewise
    to: Option<String>,
    /// On which port: tcp/80, udp/53, sctp/9999, or 80 for TCP; without one, a packet that has none (ICMP)
    port: Option<String>,
    /// Over IPv6, where neither is an address
    #[arg(short = '6', long)]
    ipv6: bool,
}

/// What policy says of one packet.
#[derive(Debug, Serialize)]
pub struct Answer {
    from: IpAddr,
    to: IpAddr,
    port: Option<String>,
    /// Both sides let it through.
    passes: bool,
    /// The sender's side; none where it is no pod, or not subject to policy: a pod to its node or to itself.
    pub egress: Option<Said>,
    /// The receiver's side; none likewise, and of a node to its own pod.
    pub ingress: Option<Said>,
}

/// What one side says.
#[derive(Debug, Serialize)]
pub struct Said {
    /// It lets the packet through.
    pub passes: bool,
    /// Whose policy it is, and the rule of it that decides, or what is missing.
    pub why: String,
}

/// Prints what policy says. Exit status 0: all pass, 1: one does not.
///
/// # Errors
/// No policy here, the source out of reach; a question that cannot be read, with its line.
pub fn run(arguments: &Arguments, config: &Config, output: Output) -> anyhow::Result<ExitCode> {
    let (model, _) = command::model(config)?;
    let answers = match (&arguments.from, &arguments.to) {
        (Some(from), Some(to)) => {
            let words = [from, to].into_iter().chain(&arguments.port);
            let words: Vec<&str> = words.map(String::as_str).collect();
            vec![asked(&model, &words, arguments.ipv6)?]
        }
        _ => asked_by_lines(&model, arguments.ipv6)?,
    };
    output.print(&answers, |answers| {
        answers.iter().map(Answer::to_text).collect()
    })?;
    Ok(exit_code(answers.iter().all(|answer| answer.passes)))
}

/// The questions on standard input; what is empty or begins with `#` is none.
fn asked_by_lines(model: &Model, is_ipv6: bool) -> anyhow::Result<Vec<Answer>> {
    let mut answers = Vec::new();
    for (line, number) in std::io::stdin().lock().lines().zip(1..) {
        let line = line.context("read the questions from standard input")?;
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.first().is_none_or(|word| word.starts_with('#')) {
            continue;
        }
        let answer = asked(model, &words, is_ipv6);
        answers.push(answer.with_context(|| format!("standard input, line {number}"))?);
    }
    Ok(answers)
}

/// What policy says of the packet that the words name.
fn asked(model: &Model, words: &[&str], is_ipv6: bool) -> anyhow::Result<Answer> {
    let (from, to, port) = match *words {
        [from, to] => (from, to, None),
        [from, to, port] => (from, to, Some(read_port(port)?)),
        _ => bail!(
            "{:?}: must be who sends, who receives, and a port where the packet has one",
            words.join(" ")
        ),
    };
    // An address says which family is meant, whichever of the two it is given for.
    let mut addresses = [from, to].into_iter().filter_map(|name| name.parse().ok());
    let is_ipv4 = addresses
        .next()
        .map_or(!is_ipv6, |address: IpAddr| address.is_ipv4());
    let address = |name| address(model, name, is_ipv4);
    Ok(Answer::of(model, (address(from)?, address(to)?), port))
}

fn address(model: &Model, name: &str, is_ipv4: bool) -> anyhow::Result<IpAddr> {
    let family = if is_ipv4 { "IPv4" } else { "IPv6" };
    if let Ok(address) = name.parse::<IpAddr>() {
        if address.is_ipv4() != is_ipv4 {
            bail!("{address}: must be an {family} address, as the other one is");
        }
        return Ok(address);
    }
    let Some((namespace, pod)) = name.split_once('/') else {
        bail!("{name:?}: must be an address, or a pod as namespace/name");
    };
    let key = Key {
        namespace: namespace.into(),
        name: pod.into(),
    };
    let pod = model
        .pod_named(&key)
        .with_context(|| format!("there is no pod {name}"))?;
    let mut addresses = pod.addresses.iter();
    addresses
        .find(|address| address.is_ipv4() == is_ipv4)
        .with_context(|| format!("pod {name} has no {family} address"))
}

/// `tcp/80`, or `80`.
fn read_port(word: &str) -> anyhow::Result<(Protocol, u16)> {
    let (protocol, number) = word.split_once('/').unwrap_or(("tcp", word));
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "tcp" => Some(Protocol::Tcp),
        "udp" => Some(Protocol::Udp),
        "sctp" => Some(Protocol::Sctp),
        _ => None,
    };
    let number = number.parse::<u16>().ok().filter(|number| *number > 0);
    protocol.zip(number).with_context(|| {
        format!("{word:?}: must be a port: tcp/80, udp/53, sctp/9999, or 80 for TCP")
    })
}

impl Said {
    fn of(direction: Direction, judged: &Judged, port: Port) -> Self {
        Self {
            passes: judged.decision.accepts(),
            why: words::judged(direction, judged, port),
        }
    }
}

impl Answer {
    /// What the model says of a packet between two addresses.
    pub fn of(model: &Model, (from, to): (IpAddr, IpAddr), port: Port) -> Self {
        let judgement = model.judge(from, to, port);
        let said = |direction| move |judged: &_| Said::of(direction, judged, port);
        let egress = judgement.egress.as_ref().map(said(Direction::Egress));
        let ingress = judgement.ingress.as_ref().map(said(Direction::Ingress));
        Self {
            from,
            to,
            port: port.map(|(protocol, port)| format!("{protocol} {port}")),
            passes: egress.iter().chain(&ingress).all(|said| said.passes),
            egress,
            ingress,
        }
    }

    fn to_text(&self) -> String {
        let Self { from, to, port, .. } = self;
        let fate = if self.passes { "passes" } else { "DENIED" };
        let port = port.as_deref().unwrap_or("without a port");
        let mut text = format!("{fate}  {from} -> {to} {port}\n");
        for said in self.egress.iter().chain(&self.ingress) {
            text += &format!("        {}\n", said.why);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::cases::{Layout, cyclonus};
    use super::*;

    /// What the cluster of the generated cases says without a policy; its first case denies all ingress of x/a.
    fn ask(words: &str) -> anyhow::Result<Answer> {
        let cases = cyclonus::cases(&Layout::two_nodes());
        let case = cases
            .iter()
            .find(|case| case.name == "rules: ingress deny-all");
        let mut model = Model::new("node1");
        case.unwrap().walk(|cluster, _| {
            for change in cluster.told() {
                model.take(change);
            }
        });
        asked(&model, &words.split_whitespace().collect::<Vec<_>>(), false)
    }

    #[test]
    fn names_addresses_and_ports_are_understood() {
        for (words, port) in [
            ("x/a y/a tcp/80", Some("TCP 80")),
            ("x/a y/a TCP/80", Some("TCP 80")),
            ("x/a y/a 80", Some("TCP 80")),
            ("x/a y/a udp/53", Some("UDP 53")),
            ("x/a y/a sctp/9999", Some("SCTP 9999")),
            ("x/a y/a", None),
        ] {
            assert_eq!(ask(words).unwrap().port.as_deref(), port, "{words}");
        }
        // The address that is given says which family is meant, on either side.
        let v6 = ask("x/a 2001:db8::1 443").unwrap();
        assert!(v6.from.is_ipv6() && v6.egress.is_some() && v6.ingress.is_none());
        assert!(ask("203.0.113.7 x/a").unwrap().to.is_ipv4());
    }

    #[test]
    fn an_answer_names_the_rule_or_what_is_missing() {
        let denied = ask("y/a x/a tcp/80").unwrap();
        assert!(!denied.passes);
        let text = denied.to_text();
        assert!(text.starts_with("DENIED  "), "{text}");
        let why = "ingress of x/a: dropped, because NetworkPolicy x/";
        assert!(text.contains(why), "{text}");
        assert!(
            text.contains("egress of y/a: no policy is about it"),
            "{text}"
        );
        let passes = ask("x/b y/a udp/80").unwrap().to_text();
        assert!(passes.starts_with("passes  "), "{passes}");
    }

    #[test]
    fn what_is_no_question_is_refused_with_what_would_be_one() {
        for (words, wrong) in [
            (
                "x/a",
                "\"x/a\": must be who sends, who receives, and a port",
            ),
            ("x/a y/a tcp/80 now", "must be who sends"),
            ("x/a y/a tcp/0", "\"tcp/0\": must be a port: tcp/80"),
            ("x/a y/a icmp/8", "\"icmp/8\": must be a port"),
            ("x/a y/a 65536", "\"65536\": must be a port"),
            (
                "x y/a",
                "\"x\": must be an address, or a pod as namespace/name",
            ),
            ("x/a y/nobody", "there is no pod y/nobody"),
            ("10.0.0.1 fd00::1", "fd00::1: must be an IPv4 address"),
        ] {
            let error = ask(words).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(wrong), "{words}: {error}");
        }
    }
}
