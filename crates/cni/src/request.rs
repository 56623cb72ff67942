//! What the runtime asks for, read from the environment (CNI 1.1.0, section 2, "Parameters"; rules T1 to T8).
//!
//! Everything is parsed here, once; behind this room there are no environment variables.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::attachment::AttachmentId;
use crate::error::Error;

/// A CNI command with what it needs.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// Attach a container.
    Add(PodRequest),
    /// Detach a container.
    Del(PodRequest<Option<PathBuf>>),
    /// Is the attachment as ADD left it?
    Check(PodRequest),
    /// Free what belongs to no attachment that the runtime knows.
    Gc,
    /// Would ADD be accepted?
    Status,
    /// Which versions are spoken?
    Version,
}

/// A request about one attachment.
#[derive(Debug, PartialEq, Eq)]
pub struct PodRequest<N = PathBuf> {
    /// `CNI_CONTAINERID` and `CNI_IFNAME`.
    pub attachment: AttachmentId,
    /// `CNI_NETNS`; DEL goes without it.
    pub netns: N,
    /// `CNI_NETNS_OVERRIDE`: the plugin's own namespace is meant.
    pub own_netns_allowed: bool,
}

impl Request {
    /// Reads the request; none when there is no `CNI_COMMAND`, as when a person runs the plugin.
    ///
    /// `variable` looks an environment variable up; an empty one counts as absent.
    ///
    /// # Errors
    /// [`Error::Environment`], naming every variable that is missing (T7) or the one that is wrong and its value.
    pub fn parse(variable: impl Fn(&str) -> Option<OsString>) -> Result<Option<Self>, Error> {
        let environment = Environment {
            variable: &variable,
        };
        let Some(command) = environment.text("CNI_COMMAND")? else {
            return Ok(None);
        };
        let request = match command.as_str() {
            "ADD" => Self::Add(environment.pod_request("CNI_NETNS")?),
            "CHECK" => Self::Check(environment.pod_request("CNI_NETNS")?),
            "DEL" => Self::Del(PodRequest {
                attachment: environment.attachment(&[])?,
                netns: environment.value("CNI_NETNS").map(PathBuf::from),
                own_netns_allowed: environment.own_netns_allowed()?,
            }),
            "GC" => Self::Gc,
            "STATUS" => Self::Status,
            "VERSION" => Self::Version,
            other => {
                return Err(Error::Environment(format!(
                    "CNI_COMMAND is {other:?}; it must be ADD, DEL, CHECK, GC, STATUS or VERSION"
                )));
            }
        };
        Ok(Some(request))
    }
}

struct Environment<'a> {
    variable: &'a dyn Fn(&str) -> Option<OsString>,
}

impl Environment<'_> {
    fn value(&self, name: &str) -> Option<OsString> {
        (self.variable)(name).filter(|value| !value.is_empty())
    }

    fn text(&self, name: &str) -> Result<Option<String>, Error> {
        let not_text =
            |value: OsString| Error::Environment(format!("{name} is {value:?}, no UTF-8"));
        self.value(name)
            .map(|value| value.into_string().map_err(not_text))
            .transpose()
    }

    fn pod_request(&self, netns: &'static str) -> Result<PodRequest, Error> {
        Ok(PodRequest {
            attachment: self.attachment(&[netns])?,
            netns: self.value(netns).unwrap_or_default().into(),
            own_netns_allowed: self.own_netns_allowed()?,
        })
    }

    /// The attachment; what is missing of it and of `also` is told in one message.
    fn attachment(&self, also: &[&'static str]) -> Result<AttachmentId, Error> {
        let mut needed = vec!["CNI_CONTAINERID", "CNI_IFNAME"];
        needed.extend(also);
        needed.retain(|name| self.value(name).is_none());
        if !needed.is_empty() {
            let names = needed.join(",");
            return Err(Error::Environment(format!(
                "required env variables [{names}] missing"
            )));
        }
        let container = self.text("CNI_CONTAINERID")?.unwrap_or_default();
        let ifname = self.text("CNI_IFNAME")?.unwrap_or_default();
        let wrong = |name: &str, invalid| Error::Environment(format!("{name}: {invalid}"));
        Ok(AttachmentId {
            container: container
                .parse()
                .map_err(|invalid| wrong("CNI_CONTAINERID", invalid))?,
            ifname: ifname
                .parse()
                .map_err(|invalid| wrong("CNI_IFNAME", invalid))?,
        })
    }

    fn own_netns_allowed(&self) -> Result<bool, Error> {
        let name = "CNI_NETNS_OVERRIDE";
        match self.text(name)?.as_deref() {
            None | Some("0" | "false") => Ok(false),
            Some("1" | "true") => Ok(true),
            Some(other) => Err(Error::Environment(format!(
                "{name} is {other:?}; it must be true or false"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(variables: &[(&str, &str)]) -> Result<Option<Request>, String> {
        let find = |name: &str| {
            variables
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| value.into())
        };
        Request::parse(find).map_err(|error| format!("{} {error}", error.code()))
    }

    #[test]
    fn t1_commands_are_the_six_of_the_specification() {
        assert_eq!(parse(&[]), Ok(None));
        assert_eq!(
            parse(&[("CNI_COMMAND", "VERSION")]),
            Ok(Some(Request::Version))
        );
        assert_eq!(
            parse(&[("CNI_COMMAND", "STATUS")]),
            Ok(Some(Request::Status))
        );
        assert_eq!(
            parse(&[("CNI_COMMAND", "add")]),
            Err(
                "4 CNI_COMMAND is \"add\"; it must be ADD, DEL, CHECK, GC, STATUS or VERSION"
                    .into()
            )
        );
    }

    #[test]
    fn t2_t4_names_that_cannot_be_are_refused_with_variable_and_value() {
        let add = |container, ifname| {
            parse(&[
                ("CNI_COMMAND", "ADD"),
                ("CNI_CONTAINERID", container),
                ("CNI_IFNAME", ifname),
                ("CNI_NETNS", "/run/netns/a"),
            ])
        };
        assert!(add("c1", "eth0").is_ok());
        assert!(
            add("-c1", "eth0")
                .unwrap_err()
                .starts_with("4 CNI_CONTAINERID: container id \"-c1\"")
        );
        assert!(
            add("c1", "a/b")
                .unwrap_err()
                .starts_with("4 CNI_IFNAME: interface name \"a/b\"")
        );
    }

    #[test]
    fn t3_del_goes_without_a_network_namespace() {
        let del = parse(&[
            ("CNI_COMMAND", "DEL"),
            ("CNI_CONTAINERID", "c"),
            ("CNI_IFNAME", "eth0"),
        ]);
        assert!(matches!(
            del,
            Ok(Some(Request::Del(PodRequest { netns: None, .. })))
        ));
    }

    #[test]
    fn t7_all_missing_variables_are_named_in_one_message() {
        assert_eq!(
            parse(&[("CNI_COMMAND", "ADD"), ("CNI_IFNAME", "")]),
            Err("4 required env variables [CNI_CONTAINERID,CNI_IFNAME,CNI_NETNS] missing".into())
        );
    }
}
