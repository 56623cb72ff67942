//! The way to the API: who we are there, and what it answers when it does not do what it was asked.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Status;

use crate::config::KubernetesConfig;

/// How long an answer may take, its content included where it is short.
pub const REQUEST: Duration = Duration::from_secs(30);

/// A client and the server's address.
#[derive(Clone)]
pub struct Client {
    /// What speaks with it.
    pub kube: kube::Client,
    server: String,
}

/// What was tried and why it failed, as one text that stays the same when it fails so again.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    text: String,
    /// The answer's HTTP status; 0 when there was none.
    pub code: u16,
    /// The server was not reached, or did not answer in time, or the connection broke.
    unreachable: bool,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Failure {}

impl Failure {
    /// Of our own finding.
    pub fn of(text: String) -> Self {
        Self {
            text,
            code: 0,
            unreachable: false,
        }
    }

    /// What tells it from another one.
    pub fn kind(&self) -> FailureKind {
        match self.code {
            0 if self.unreachable => FailureKind::Unreachable,
            0 => FailureKind::Own(self.text.clone()),
            code => FailureKind::Answer(code),
        }
    }

    /// The version that we go on from is forgotten there: everything has to be listed again.
    pub fn is_expired(&self) -> bool {
        self.code == 410
    }

    /// What was to be made is there already.
    pub fn is_there_already(&self) -> bool {
        self.code == 409
    }

    /// What was asked for is not there.
    pub fn is_not_found(&self) -> bool {
        self.code == 404
    }

    /// The server was not reached, or did not answer in time, or the connection broke.
    pub fn is_unreachable(&self) -> bool {
        self.unreachable
    }

    /// The server cannot do what was asked for, or does not know it. Without a store that tells of its progress (etcd before
    /// 3.4.25) it answers a streamed list with 500.
    pub fn is_unsupported(&self) -> bool {
        matches!(self.code, 400 | 422 | 500 | 501)
    }
}

/// What tells one failure from another, however the words change with each attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FailureKind {
    /// The answer's HTTP status.
    Answer(u16),
    /// The server was not reached, or did not answer in time, or the connection broke.
    Unreachable,
    /// It is not about the server's answers: a file, a certificate, what we found out; in these words.
    Own(String),
}

/// As the configuration says; the files are read each time.
///
/// # Errors
/// A file that is missing or wrong.
pub async fn connect(config: &KubernetesConfig) -> Result<Client, Failure> {
    let made = match &config.kubeconfig {
        Some(file) => match Kubeconfig::read_from(file) {
            Ok(read) => kube::Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
                .await
                .map_err(|error| failure(&format!("kubeconfig {}", file.display()), &error)),
            Err(error) => Err(failure(&format!("kubeconfig {}", file.display()), &error)),
        },
        None => kube::Config::incluster().map_err(|error| {
            let what = "service account (set kubeconfig where this is no pod)";
            failure(what, &error)
        }),
    };
    let config = made?;
    let server = config.cluster_url.to_string();
    let server = server.trim_end_matches('/').to_owned();
    match kube::Client::try_from(config) {
        Ok(kube) => Ok(Client { kube, server }),
        Err(error) => Err(failure(&server, &error)),
    }
}

impl Client {
    /// What failed there, in our words.
    pub fn failure(&self, what: &str, error: &kube::Error) -> Failure {
        match error {
            kube::Error::Api(status) => self.refusal(what, status),
            error => Failure {
                unreachable: matches!(
                    error,
                    kube::Error::HyperError(_)
                        | kube::Error::Service(_)
                        | kube::Error::ReadEvents(_)
                ),
                ..failure(&format!("{what} at {}", self.server), error)
            },
        }
    }

    /// What the server answered in the place of what was asked for.
    pub fn refusal(&self, what: &str, status: &Status) -> Failure {
        let Status { code, message, .. } = status;
        Failure {
            code: *code,
            ..Failure::of(format!("{what} at {}: {message} ({code})", self.server))
        }
    }

    /// An answer that ended too early.
    pub fn cut_short(&self, what: &str) -> Failure {
        Failure {
            unreachable: true,
            ..Failure::of(format!(
                "{what} at {}: the answer ended too early",
                self.server
            ))
        }
    }

    /// Waits for an answer, no longer than [`REQUEST`].
    ///
    /// # Errors
    /// No answer, or not the one that was asked for.
    pub async fn wait<T>(
        &self,
        what: &str,
        answer: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(REQUEST, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.failure(what, &error)),
            Err(_) => Err(too_slow(&format!("{what} at {}", self.server), REQUEST)),
        }
    }
}

/// No answer in that time.
pub fn too_slow(what: &str, time: Duration) -> Failure {
    let seconds = time.as_secs();
    Failure {
        unreachable: true,
        ..Failure::of(format!("{what}: no answer within {seconds} s"))
    }
}

/// A request that cannot be built, which is none that we make.
pub fn no_request(what: &str, error: &kube::core::request::Error) -> Failure {
    failure(what, error)
}

/// The innermost cause: what is around it says the same in general words.
fn failure(what: &str, error: &(dyn Error + 'static)) -> Failure {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    Failure::of(format!("{what}: {cause}"))
}
