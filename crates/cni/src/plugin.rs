//! The plugin from its standard input to its standard output: one command a process (CNI 1.1.0, section 2 and 4).

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::PathBuf;

use podspan_kernel::Netns;
use serde_json::{Value, json};

use crate::attach::{attach, require_foreign};
use crate::attachment::AttachmentId;
use crate::check::check;
use crate::detach::{self, collect_garbage, detach_pod};
use crate::error::Error;
use crate::host::Host;
use crate::netconf::{Input, Surroundings};
use crate::program::{
    Program, serve_bandwidth, serve_firewall, serve_host_local, serve_loopback, serve_portmap,
    serve_static, serve_tuning, undo_portmap,
};
use crate::request::{PodRequest, Request};
use crate::result::CniResult;
use crate::version::Version;

/// The world around the plugin.
pub struct Streams<I, O> {
    /// Where the configuration comes from.
    pub input: I,
    /// Where the result or the error goes, and nothing else (T9).
    pub output: O,
}

/// Serves the one command that the environment asks for.
///
/// Returns false when it failed; the error is then on the output. None means that no command was given.
pub fn serve<I: Read, O: Write>(
    program: Program,
    variable: impl Fn(&str) -> Option<OsString>,
    mut streams: Streams<I, O>,
) -> Option<bool> {
    let request = match Request::parse(&variable) {
        Ok(request) => request?,
        Err(error) => return Some(streams.fail(Version::NEWEST, &error)),
    };
    // Room for any usual configuration: it is then read by one call.
    let mut bytes = Vec::with_capacity(8192);
    if let Err(error) = streams.input.read_to_end(&mut bytes) {
        let error = Error::Io(format!(
            "read the network configuration from standard input: {error}"
        ));
        return Some(streams.fail(Version::NEWEST, &error));
    }
    if request == Request::Version {
        return Some(streams.answer_version(&bytes));
    }
    let input = match Input::parse(&bytes, surroundings(program, &variable)) {
        Ok(input) => input,
        Err(error) => return Some(streams.fail(version_in(&bytes), &error)),
    };
    let outcome = match require_version(&request, &input) {
        Err(error) => Err(error),
        Ok(()) => match program {
            Program::Podspan | Program::Bridge | Program::Ptp => {
                serve_bridge(&request, &input, &mut streams)
            }
            Program::HostLocal => serve_host_local(&request, &input)
                .and_then(|result| streams.tell(result, input.version))
                .or_else(|error| {
                    undo(&request, error, |id| {
                        input.address_store().give_back(&input.network, id)
                    })
                }),
            Program::Loopback => serve_loopback(&request, &input)
                .and_then(|result| streams.tell(result, input.version)),
            Program::Portmap => serve_portmap(&request, &input)
                .and_then(|result| streams.tell(result, input.version))
                .or_else(|error| undo(&request, error, |id| undo_portmap(&input, id))),
            Program::Static => serve_static(&request, &input)
                .and_then(|result| streams.tell(result, input.version)),
            Program::Bandwidth => serve_bandwidth(&request, &input, |result| {
                streams.tell(Some(result), input.version)
            }),
            Program::Firewall => serve_firewall(&request, &input, |result| {
                streams.tell(Some(result), input.version)
            }),
            Program::Tuning => serve_tuning(&request, &input, |result| {
                streams.tell(Some(result), input.version)
            }),
        },
    };
    Some(match outcome {
        Ok(()) => true,
        Err(error) => streams.fail(input.version, &error),
    })
}

/// Each command needs a version that has it (T15).
fn require_version(request: &Request, input: &Input) -> Result<(), Error> {
    match request {
        Request::Check(_) => input.require("CHECK", Version::V0_4_0),
        Request::Gc => input.require("GC", Version::V1_1_0),
        Request::Status => input.require("STATUS", Version::V1_1_0),
        Request::Add(_) | Request::Del(_) | Request::Version => Ok(()),
    }
}

fn serve_bridge<I, O: Write>(
    request: &Request,
    input: &Input,
    streams: &mut Streams<I, O>,
) -> Result<(), Error> {
    match request {
        Request::Add(pod) => add(input, pod, streams),
        Request::Del(pod) => del(input, pod),
        Request::Check(pod) => check_attachment(input, pod),
        Request::Gc => gc(input),
        Request::Status => status(input),
        Request::Version => Ok(()),
    }
}

/// An ADD that could not tell its result gives back what it took; one that failed otherwise took nothing.
fn undo(
    request: &Request,
    error: Error,
    give_back: impl FnOnce(&AttachmentId) -> Result<(), Error>,
) -> Result<(), Error> {
    let Request::Add(pod) = request else {
        return Err(error);
    };
    if !matches!(error, Error::Io(_)) {
        return Err(error);
    }
    let undone = give_back(&pod.attachment);
    Error::from_all([Some(error), undone.err()].into_iter().flatten().collect())
}

fn surroundings(program: Program, variable: impl Fn(&str) -> Option<OsString>) -> Surroundings {
    Surroundings {
        program,
        cni_path: variable("CNI_PATH"),
        cni_args: variable("CNI_ARGS").map(|text| text.to_string_lossy().into_owned()),
    }
}

fn add<I, O: Write>(
    input: &Input,
    pod: &PodRequest,
    streams: &mut Streams<I, O>,
) -> Result<(), Error> {
    let (conf, store) = (input.netconf()?, input.address_store());
    let before = input.prev_result()?;
    let mut host = Host::open()?;
    let result = attach(&mut host, &conf, &store, pod)?;
    let result = append(before.unwrap_or_default(), result);
    // A runtime that did not get the result does not know the pod's address: that is a failed ADD.
    let told = result
        .to_json(input.version)
        .and_then(|value| streams.write(&value));
    let Err(error) = told else {
        return Ok(());
    };
    let undone = detach::undo(&mut host, &conf.network, &pod.attachment, &store);
    Err(Error::Several(
        [Some(error), undone.err()].into_iter().flatten().collect(),
    ))
}

/// The previous result and what we did (T19); the indexes of our interfaces move behind those of the others.
fn append(mut before: CniResult, mut ours: CniResult) -> CniResult {
    let offset = before.interfaces.len();
    for ip in &mut ours.ips {
        ip.interface = ip.interface.map(|index| index + offset);
    }
    before.interfaces.append(&mut ours.interfaces);
    before.ips.append(&mut ours.ips);
    before.routes.append(&mut ours.routes);
    if !ours.dns.is_empty() {
        before.dns = ours.dns;
    }
    before
}

fn del(input: &Input, pod: &PodRequest<Option<PathBuf>>) -> Result<(), Error> {
    let mut host = Host::open()?;
    detach_pod(&mut host, (&input.network, pod), &input.address_store())?;
    // Everything is freed; a path that leads to the node itself is still worth telling (T8).
    match pod.netns.as_ref().map(Netns::open) {
        Some(Ok(netns)) => require_foreign(&netns, &host, pod.own_netns_allowed),
        Some(Err(_)) | None => Ok(()),
    }
}

fn check_attachment(input: &Input, pod: &PodRequest) -> Result<(), Error> {
    check(&input.netconf()?, pod, &input.chained_result()?)
}

fn gc(input: &Input) -> Result<(), Error> {
    let valid = input.valid_attachments()?;
    collect_garbage(&input.network, &valid, &input.address_store())
}

fn status(input: &Input) -> Result<(), Error> {
    input.netconf()?.addresses.status(&input.network)
}

impl<I, O: Write> Streams<I, O> {
    /// Writes the result, where there is one.
    fn tell(&mut self, result: Option<CniResult>, version: Version) -> Result<(), Error> {
        match result {
            Some(result) => self.write(&result.to_json(version)?),
            None => Ok(()),
        }
    }

    /// In one piece: standard output would otherwise be written line by line.
    fn write(&mut self, value: &Value) -> Result<(), Error> {
        let text = format!("{value:#}\n");
        let written = self
            .output
            .write_all(text.as_bytes())
            .and_then(|()| self.output.flush());
        written.map_err(|error| Error::Io(format!("write to standard output: {error}")))
    }

    /// Tells the error as CNI wants it; where even that fails, the exit code is all that is left.
    fn fail(&mut self, version: Version, error: &Error) -> bool {
        let object = json!({
            "cniVersion": version.to_string(),
            "code": error.code(),
            "msg": error.to_string(),
        });
        let _ = self.write(&object);
        false
    }

    /// `cniVersion` is the asking one's, where it is ours too; no configuration is fine (T12).
    fn answer_version(&mut self, bytes: &[u8]) -> bool {
        let answer = json!({
            "cniVersion": version_in(bytes).to_string(),
            "supportedVersions": Version::ALL.map(Version::as_str),
        });
        self.write(&answer).is_ok()
    }
}

/// The version that a configuration asks for, however wrong the rest of it is; the newest where that is none of ours.
fn version_in(bytes: &[u8]) -> Version {
    let asked: Value = serde_json::from_slice(bytes).unwrap_or_default();
    asked
        .get("cniVersion")
        .and_then(Value::as_str)
        .and_then(Version::parse)
        .unwrap_or(Version::NEWEST)
}
