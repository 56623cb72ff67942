//! Ports of the node that lead to a pod, as the runtime asks for them (`runtimeConfig.portMappings`, CONVENTIONS.md of CNI).
//!
//! Nothing here knows the pod's addresses or how a port is made to lead somewhere.

use std::fmt;
use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

use crate::error::Error;

/// Where it is asked for.
const KEY: &str = "runtimeConfig.portMappings";

/// A port of the node that leads to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortMapping {
    /// The transport protocol of both ports.
    pub protocol: Protocol,
    /// The node's addresses that have it.
    pub host: HostAddress,
    /// The node's port; not 0.
    pub host_port: u16,
    /// The pod's port; not 0.
    pub container_port: u16,
}

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp = 6,
    /// UDP.
    Udp = 17,
    /// SCTP.
    Sctp = 132,
}

/// Which of the node's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostAddress {
    /// All, of the families that the pod has addresses of.
    All,
    /// All of IPv4 (`0.0.0.0`).
    AllIpv4,
    /// All of IPv6 (`::`).
    AllIpv6,
    /// This one.
    One(IpAddr),
}

/// The keys as they stand; containerd writes them with capitals.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(alias = "HostPort", default)]
    host_port: i64,
    #[serde(alias = "ContainerPort", default)]
    container_port: i64,
    #[serde(alias = "Protocol", default)]
    protocol: Option<String>,
    #[serde(alias = "HostIP", alias = "hostIp", default, rename = "hostIP")]
    host_ip: Option<String>,
}

impl PortMapping {
    /// Reads the list; entries with host port 0 ask for nothing and are left out, and so is what stands there twice.
    ///
    /// # Errors
    /// [`Error::Config`] with key, value and what would be right.
    pub fn parse_all(value: &Value) -> Result<Vec<Self>, Error> {
        let raw: Option<Vec<Raw>> = serde_path_to_error::deserialize(value)
            .map_err(|error| Error::Config(format!("{KEY}{}: {}", error.path(), error.inner())))?;
        let mut mappings = Vec::new();
        for (number, raw) in raw.into_iter().flatten().enumerate() {
            if raw.host_port == 0 {
                continue;
            }
            let mapping = raw
                .checked()
                .map_err(|what| Error::Config(format!("{KEY}[{number}].{what}")))?;
            if !mappings.contains(&mapping) {
                mappings.push(mapping);
            }
        }
        Ok(mappings)
    }
}

impl Raw {
    /// The error is the key, its value and what would be right.
    fn checked(&self) -> Result<PortMapping, String> {
        let port = |key, number: i64| {
            u16::try_from(number)
                .ok()
                .filter(|port| *port != 0)
                .ok_or_else(|| format!("{key} is {number}; it must be from 1 to 65535"))
        };
        let protocol = self.protocol.as_deref().unwrap_or_default();
        let host_ip = self.host_ip.as_deref().unwrap_or_default();
        Ok(PortMapping {
            protocol: match protocol.to_ascii_lowercase().as_str() {
                "" | "tcp" => Protocol::Tcp,
                "udp" => Protocol::Udp,
                "sctp" => Protocol::Sctp,
                _ => {
                    return Err(format!(
                        "protocol is {protocol:?}; it must be tcp, udp or sctp"
                    ));
                }
            },
            host: host_address(host_ip)?,
            host_port: port("hostPort", self.host_port)?,
            container_port: port("containerPort", self.container_port)?,
        })
    }
}

fn host_address(text: &str) -> Result<HostAddress, String> {
    if text.is_empty() {
        return Ok(HostAddress::All);
    }
    let ip: IpAddr = text.parse().map_err(|_| {
        format!("hostIP is {text:?}; it must be an address of the node, or empty for all")
    })?;
    match ip.to_canonical() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ok(HostAddress::AllIpv4),
        IpAddr::V6(ip) if ip.is_unspecified() => Ok(HostAddress::AllIpv6),
        IpAddr::V6(ip) if ip.is_loopback() => Err(
            "hostIP is ::1, from where no packet leaves the node; 127.0.0.1 does, and other addresses of the node".into(),
        ),
        ip => Ok(HostAddress::One(ip)),
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

impl fmt::Display for PortMapping {
    /// `tcp 8080`, `udp 53 of 192.0.2.1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.protocol, self.host_port)?;
        match self.host {
            HostAddress::All => Ok(()),
            HostAddress::AllIpv4 => f.write_str(" of 0.0.0.0"),
            HostAddress::AllIpv6 => f.write_str(" of ::"),
            HostAddress::One(ip) => write!(f, " of {ip}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(value: Value) -> Result<Vec<String>, String> {
        let text = |mapping: &PortMapping| format!("{mapping} to {}", mapping.container_port);
        match PortMapping::parse_all(&value) {
            Ok(all) => Ok(all.iter().map(text).collect()),
            Err(error) => Err(format!("{} {error}", error.code())),
        }
    }

    #[test]
    fn what_runtimes_write_is_understood() {
        let mappings = json!([
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 8080, "containerPort": 80},
            {"HostPort": 53, "ContainerPort": 5353, "Protocol": "UDP", "HostIP": "192.0.2.1"},
            {"hostPort": 9, "containerPort": 9, "protocol": "SCTP", "hostIP": "::ffff:192.0.2.1"},
            {"hostPort": 1, "containerPort": 1, "hostIP": "0.0.0.0"},
            {"hostPort": 2, "containerPort": 2, "hostIP": "::", "protocol": ""},
            {"hostPort": 0, "containerPort": 99999, "protocol": "no"},
            {"hostPort": 3, "containerPort": 3, "hostIP": "127.0.0.1"},
        ]);
        let expected = [
            "tcp 8080 to 80",
            "udp 53 of 192.0.2.1 to 5353",
            "sctp 9 of 192.0.2.1 to 9",
            "tcp 1 of 0.0.0.0 to 1",
            "tcp 2 of :: to 2",
            "tcp 3 of 127.0.0.1 to 3",
        ];
        assert_eq!(parse(mappings), Ok(expected.map(str::to_owned).to_vec()));
        assert_eq!(parse(Value::Null), Ok(Vec::new()));
    }

    #[test]
    fn a_bad_value_names_key_and_value() {
        let refused = |mapping: Value| parse(json!([mapping])).unwrap_err();
        let key = "7 runtimeConfig.portMappings[0]";
        assert_eq!(
            refused(json!({"hostPort": 70000, "containerPort": 80})),
            format!("{key}.hostPort is 70000; it must be from 1 to 65535")
        );
        assert_eq!(
            refused(json!({"hostPort": 80})),
            format!("{key}.containerPort is 0; it must be from 1 to 65535")
        );
        assert_eq!(
            refused(json!({"hostPort": 80, "containerPort": 80, "protocol": "icmp"})),
            format!("{key}.protocol is \"icmp\"; it must be tcp, udp or sctp")
        );
        let of_host = |ip| refused(json!({"hostPort": 80, "containerPort": 80, "hostIP": ip}));
        assert!(of_host("host").starts_with(&format!("{key}.hostIP is \"host\"; it must be")));
        assert!(of_host("::1").starts_with(&format!("{key}.hostIP is ::1, from where")));
        assert!(
            refused(json!({"hostPort": "80"}))
                .starts_with(&format!("{key}.hostPort: invalid type"))
        );
    }
}
