//! What nodes there are, whoever says it: a nodes file, or the Kubernetes API.
//!
//! An entry that is wrong is refused and the rest goes on. Of two entries that exclude each other the later one is refused, on
//! every node alike, the node that it names included: were each node to prefer itself, two nodes would hand out the same
//! addresses. A source that is out of reach, broken, empty or without any usable node is a problem that changes nothing:
//! the last good cluster stays (an empty list must never take the routes of a whole cluster away).

pub mod gathered;
pub mod node_objects;
pub mod nodes_file;

use std::path::PathBuf;

use crate::cluster::Cluster;
use crate::config::RegistryConfig;
use crate::events::Sender;
use crate::kubernetes::policy::Sink;
use crate::kubernetes::{self, Follower};
use crate::refusal::Refusal;
use node_objects::NodeObjects;
use nodes_file::NodesFile;

/// What it said when it was last good, and what is wrong now.
#[derive(Debug)]
pub struct Registry {
    source: Source,
    good: Option<(Cluster, Vec<Refusal>)>,
    problem: Option<String>,
}

#[derive(Debug)]
enum Source {
    File(NodesFile),
    /// A watch, or what was listed once.
    Kubernetes(Option<Follower>, NodeObjects),
}

impl Registry {
    /// Of that configuration; whatever changes there sends an event. What `policy` needs goes there, where the source has it.
    ///
    /// # Errors
    /// No thread for it; never that the source is out of reach.
    pub fn follow(
        config: &RegistryConfig,
        events: &Sender,
        policy: Option<Sink>,
    ) -> anyhow::Result<Self> {
        Ok(Self::of(match config {
            RegistryConfig::File(file) => Source::File(NodesFile::new(file)),
            RegistryConfig::Kubernetes(config) => {
                let follower = kubernetes::follow(config, events, policy)?;
                Source::Kubernetes(Some(follower), NodeObjects::default())
            }
        }))
    }

    /// Of that configuration, read once.
    ///
    /// # Errors
    /// No thread for it; never that the source is out of reach.
    pub fn read(config: &RegistryConfig) -> anyhow::Result<Self> {
        let mut registry = match config {
            RegistryConfig::File(file) => Self::of(Source::File(NodesFile::new(file))),
            RegistryConfig::Kubernetes(config) => {
                let mut objects = NodeObjects::default();
                kubernetes::read(config)?
                    .into_iter()
                    .for_each(|news| objects.take(news));
                Self::of(Source::Kubernetes(None, objects))
            }
        };
        registry.look();
        Ok(registry)
    }

    fn of(source: Source) -> Self {
        Self {
            source,
            good: None,
            problem: None,
        }
    }

    /// Takes what is new.
    pub fn look(&mut self) {
        let news = match &mut self.source {
            Source::File(file) => file.news(),
            Source::Kubernetes(follower, objects) => {
                let news = follower.iter().flat_map(Follower::news);
                news.for_each(|news| objects.take(news));
                objects.cluster()
            }
        };
        match news {
            None => {}
            Some(Ok(good)) => {
                self.good = Some(good);
                self.problem = None;
            }
            Some(Err(error)) => {
                self.problem = Some(format!("{error:#}; nothing was changed for it"));
            }
        }
    }

    /// The last good cluster; none until there was one.
    pub fn cluster(&self) -> Option<&Cluster> {
        self.good.as_ref().map(|(cluster, _)| cluster)
    }

    /// The entries that the last good cluster lacks because they are refused.
    pub fn refusals(&self) -> &[Refusal] {
        self.good.as_ref().map_or(&[], |(_, refusals)| refusals)
    }

    /// Why the source as it is now is not followed, and what else it met.
    pub fn problems(&self) -> impl Iterator<Item = &str> {
        let others = match &self.source {
            Source::File(_) => None,
            Source::Kubernetes(_, objects) => Some(objects.problems()),
        };
        let own = self.problem.as_deref().into_iter();
        own.chain(others.into_iter().flatten())
    }

    /// Tells the API what this machine is like; nothing where there is none.
    pub fn report(&self, report: kubernetes::Report) {
        if let Source::Kubernetes(Some(follower), _) = &self.source {
            follower.report(report);
        }
    }

    /// What is read, in the words of a status.
    pub fn describe(&self) -> String {
        match &self.source {
            Source::File(file) => format!("nodes file {}", file.path().display()),
            Source::Kubernetes(..) => "Nodes of the Kubernetes API".to_owned(),
        }
    }
}

impl RegistryConfig {
    /// What mends a source that says nothing of use.
    pub fn mend(&self) -> Option<String> {
        self.file().map(|file| format!("write {}", file.display()))
    }

    /// The file that it lies in, where it does.
    pub fn file(&self) -> Option<PathBuf> {
        match self {
            Self::File(file) => Some(file.clone()),
            Self::Kubernetes(_) => None,
        }
    }
}

#[cfg(test)]
mod tests;
