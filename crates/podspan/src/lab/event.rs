//! What the machines of a lab tell while they are built, and how that is shown.
//!
//! Holder, nodes and router share one pipe to `podspan lab up`, a line of JSON for each event. A line is written at once
//! and is shorter than `PIPE_BUF`, so that lines never mix (pipe(7)). The pipe's end, when all of them have closed it, is
//! the end of building. A line that is no event is something that a program said before it died: it is shown as it is.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::layout::{Layout, Machine, UNDERLAY};

/// The longest text of an event in bytes: `PIPE_BUF` is 4096, and JSON may need two bytes for one.
const TEXT_MAX: usize = 1800;

/// Something that a machine of the lab, or the underlay, tells.
#[derive(Debug, Serialize, Deserialize)]
pub struct Event {
    /// Who tells it.
    machine: String,
    /// What it tells.
    news: News,
}

/// What there is to tell.
#[derive(Debug, Serialize, Deserialize)]
enum News {
    /// What was done, as the command with which one does it by hand.
    Command(String),
    /// Built.
    Ready,
    /// Not built, and why.
    Failed(String),
}

/// Tells of one machine, on standard output.
pub struct Teller(String);

impl Teller {
    /// For the machine of that name.
    pub fn of(machine: impl ToString) -> Self {
        Self(machine.to_string())
    }

    /// What was done, as one does it by hand.
    ///
    /// # Errors
    /// When nobody listens any more: the lab is to end.
    pub fn command(&self, command: impl Into<String>) -> Result<()> {
        self.tell(News::Command(command.into()))
    }

    /// The outcome of building; afterwards nothing more can be told, for the streams lead nowhere.
    ///
    /// # Errors
    /// When nobody listens any more, and `built` itself.
    pub fn finish<T>(&self, built: Result<T>) -> Result<T> {
        let told = match &built {
            Ok(_) => self.tell(News::Ready),
            Err(error) => self.tell(News::Failed(format!("{error:#}"))),
        };
        let built = built?;
        told?;
        let nowhere = std::fs::File::options().write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdout(&nowhere)?;
        rustix::stdio::dup2_stderr(&nowhere)?;
        Ok(built)
    }

    fn tell(&self, news: News) -> Result<()> {
        let news = match news {
            News::Failed(text) => News::Failed(end_of(&text).to_owned()),
            news => news,
        };
        let machine = self.0.clone();
        let mut line = serde_json::to_vec(&Event { machine, news })?;
        line.push(b'\n');
        rustix::io::write(std::io::stdout(), &line).context("tell the progress")?;
        Ok(())
    }
}

/// The end of a text that is too long, which is where the cause stands.
fn end_of(text: &str) -> &str {
    let mut start = text.len().saturating_sub(TEXT_MAX);
    while !text.is_char_boundary(start) {
        start = start.saturating_add(1);
    }
    text.get(start..).unwrap_or_default()
}

/// What of the building is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// A line for each machine.
    Progress,
    /// Also each step, as the command with which one does it by hand.
    Commands,
}

/// Shows what the machines tell, until the whole lab is built.
///
/// # Errors
/// When one of them fails, or ends without a word.
pub fn follow(events: impl Read, layout: Layout, detail: Detail) -> Result<()> {
    let mut show = std::io::stdout();
    let mut waiting: BTreeMap<String, String> = layout
        .machines()
        .map(|machine| (machine.to_string(), description(layout, machine)))
        .chain([(
            UNDERLAY.to_owned(),
            "the switch between the nodes".to_owned(),
        )])
        .collect();
    let mut commands: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in BufReader::new(events).lines() {
        let line = line?;
        let Ok(Event { machine, news }) = serde_json::from_str(&line) else {
            writeln!(show, "{line}")?;
            continue;
        };
        match news {
            News::Command(command) => commands.entry(machine).or_default().push(command),
            News::Failed(why) => bail!("{machine}: {why}"),
            News::Ready => {
                // One machine after the other, though they are built all at once: to be read, and to be typed.
                let text = waiting.remove(&machine).unwrap_or_default();
                writeln!(show, "{machine:<8} {text}")?;
                for command in commands.remove(&machine).unwrap_or_default() {
                    if detail == Detail::Commands {
                        writeln!(show, "    {command}")?;
                    }
                }
            }
        }
    }
    if !waiting.is_empty() {
        let names: Vec<_> = waiting.into_keys().collect();
        bail!("ended without a word: {}", names.join(", "));
    }
    Ok(())
}

fn description(layout: Layout, machine: Machine) -> String {
    let addresses = layout.addresses(machine).into_iter();
    let addresses: Vec<_> = addresses.map(|net| net.addr().to_string()).collect();
    let addresses = addresses.join(" ");
    match machine {
        Machine::Gateway => format!("{addresses}, the way between the subnets"),
        Machine::Router => format!("{addresses}, the way to all pods"),
        Machine::Node(_) => {
            let pod_cidrs: Vec<_> = machine
                .pod_cidrs()
                .iter()
                .map(ToString::to_string)
                .collect();
            let pods = match layout.pods {
                1 => "1 pod".to_owned(),
                pods => format!("{pods} pods"),
            };
            format!("{addresses}, {pods} in {}", pod_cidrs.join(" "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::Routing;
    use super::*;

    const LAYOUT: Layout = Layout {
        nodes: 1,
        pods: 1,
        routing: Routing::Direct,
    };

    fn line(machine: &str, news: News) -> String {
        let machine = machine.to_owned();
        serde_json::to_string(&Event { machine, news }).unwrap() + "\n"
    }

    #[test]
    fn a_lab_is_built_when_every_machine_said_so() {
        let all = line("underlay", News::Ready) + &line("node1", News::Ready);
        follow(all.as_bytes(), LAYOUT, Detail::Progress).unwrap();
        let some = "thread panicked\n".to_owned() + &line("underlay", News::Ready);
        let error = follow(some.as_bytes(), LAYOUT, Detail::Progress).unwrap_err();
        assert_eq!(error.to_string(), "ended without a word: node1");
        let failed = line("node1", News::Failed("no such file".into()));
        let error = follow(failed.as_bytes(), LAYOUT, Detail::Progress).unwrap_err();
        assert_eq!(error.to_string(), "node1: no such file");
    }

    #[test]
    fn a_long_text_keeps_its_end_and_fits_a_pipe() {
        let text = "ä\"".repeat(2000) + "the cause";
        let event = line("node1", News::Failed(end_of(&text).to_owned()));
        assert!(
            event.len() < 4096 && event.contains("the cause"),
            "{}",
            event.len()
        );
    }
}
