//! A Pod of the API as far as policy needs it: a real one has 5 to 10 KiB, of which this is a twentieth.

use std::net::IpAddr;

use serde::Deserialize;

use super::Read;
use super::labels::{Shared, labels, or_default};
use super::reader::{Fault, quoted};
use crate::kubernetes::watch::Object;
use crate::policy::object::{Addresses, Change, Key, Kind, Labels, NamedPort, Pod, Protocol};

/// What the API sends.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct PodObject {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    namespace: Shared,
    name: Shared,
    uid: Shared,
    resource_version: String,
    #[serde(deserialize_with = "labels")]
    labels: Labels,
    #[serde(deserialize_with = "or_default")]
    annotations: Annotations,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Annotations {
    #[serde(rename = "kubernetes.io/config.hash")]
    config_hash: Option<Shared>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    node_name: Option<Shared>,
    #[serde(deserialize_with = "or_default")]
    host_network: bool,
    #[serde(deserialize_with = "or_default")]
    containers: Vec<Container>,
    #[serde(deserialize_with = "or_default")]
    init_containers: Vec<Container>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    restart_policy: Option<String>,
    #[serde(deserialize_with = "or_default")]
    ports: Vec<ContainerPort>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ContainerPort {
    name: Option<Shared>,
    protocol: Option<String>,
    #[serde(deserialize_with = "or_default")]
    container_port: i64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    #[serde(deserialize_with = "or_default")]
    phase: String,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs", deserialize_with = "or_default")]
    pod_ips: Vec<PodIp>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct PodIp {
    #[serde(deserialize_with = "or_default")]
    ip: String,
}

impl Object for PodObject {
    fn version(&self) -> &str {
        &self.metadata.resource_version
    }
}

impl Read for PodObject {
    const KIND: Kind = Kind::Pods;

    fn read(self) -> (Change, Vec<Fault>) {
        let Self {
            metadata,
            spec,
            status,
        } = self;
        let mut faults = Vec::new();
        let key = Key {
            namespace: metadata.namespace.0,
            name: metadata.name.0,
        };
        let hash = metadata.annotations.config_hash;
        let hash = hash.filter(|hash| !hash.0.is_empty());
        let node = spec.node_name.map(|name| name.0);
        let pod = Pod {
            key: key.clone(),
            uid: hash.unwrap_or(metadata.uid).0,
            node: node.filter(|name| !name.is_empty()),
            labels: metadata.labels,
            addresses: addresses(status, &mut faults),
            ports: ports(spec.containers, spec.init_containers).into(),
            host_network: spec.host_network,
        };
        (Change::Pod(key, Some(pod)), faults)
    }

    fn gone(self) -> Change {
        let Metadata {
            namespace, name, ..
        } = self.metadata;
        let key = Key {
            namespace: namespace.0,
            name: name.0,
        };
        Change::Pod(key, None)
    }
}

/// None of a pod that has ended; one that is being deleted has them until then.
fn addresses(status: Status, faults: &mut Vec<Fault>) -> Addresses {
    let mut addresses = Addresses::default();
    if matches!(status.phase.as_str(), "Succeeded" | "Failed") {
        return addresses;
    }
    let one = status.pod_ip.filter(|_| status.pod_ips.is_empty());
    let (key, all) = match one {
        Some(ip) => ("status.podIP", vec![PodIp { ip }]),
        None => ("status.podIPs", status.pod_ips),
    };
    for PodIp { ip } in all.into_iter().filter(|pod| !pod.ip.is_empty()) {
        match ip.parse::<IpAddr>() {
            Ok(ip) => addresses.add(ip),
            Err(_) => faults.push(Fault {
                key: key.to_owned(),
                value: quoted(&ip),
                fix: "must be an IP address; the pod is nobody's peer by it".to_owned(),
            }),
        }
    }
    addresses
}

/// The ports with names, of containers and of those init containers that go on beside them.
fn ports(containers: Vec<Container>, init: Vec<Container>) -> Vec<NamedPort> {
    let is_sidecar = |container: &Container| container.restart_policy.as_deref() == Some("Always");
    let sidecars = init.into_iter().filter(is_sidecar);
    let mut ports: Vec<_> = containers
        .into_iter()
        .chain(sidecars)
        .flat_map(|container| container.ports)
        .filter_map(named)
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// None without a name, and none that nothing can be sent to.
fn named(port: ContainerPort) -> Option<NamedPort> {
    let name = port.name.filter(|name| !name.0.is_empty())?.0;
    let protocol = match port.protocol.as_deref() {
        None | Some("") => Protocol::Tcp,
        Some(protocol) => super::reader::protocol_named(protocol)?,
    };
    let port = u16::try_from(port.container_port).ok()?;
    (port != 0).then_some(NamedPort {
        name,
        protocol,
        port,
    })
}

#[cfg(test)]
mod tests;
