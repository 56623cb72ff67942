//! One pod of the API, asked for by name when a person names it.

use std::net::IpAddr;

use anyhow::{Context as _, bail};
use kube::api::ListParams;
use kube::core::Request;
use serde::Deserialize;

use super::client::{self, no_request};
use crate::config::KubernetesConfig;

/// The pods of that name: one or none.
#[derive(Debug, Deserialize)]
struct Pods {
    items: Vec<PodObject>,
}

/// What is read of a pod.
#[derive(Debug, Default, Deserialize)]
struct PodObject {
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    #[serde(rename = "podIPs")]
    pod_ips: Vec<PodIp>,
}

#[derive(Debug, Deserialize)]
struct PodIp {
    ip: IpAddr,
}

/// The addresses of the pod `<namespace>/<name>`.
///
/// # Errors
/// No such pod, one without addresses yet, no right to ask for it, or the API out of reach.
pub fn addresses(config: &KubernetesConfig, pod: &str) -> anyhow::Result<Vec<IpAddr>> {
    let (namespace, name) = pod
        .split_once('/')
        .filter(|(namespace, name)| is_label(namespace) && name.split('.').all(is_label))
        .with_context(|| format!("{pod:?}: a pod of Kubernetes is written namespace/name"))?;
    let what = format!("read pod {pod}");
    // The agent's account may list pods, and no more.
    let list = ListParams::default().fields(&format!("metadata.name={name}"));
    let read: anyhow::Result<Pods> = super::runtime()?.block_on(async {
        let client = client::connect(config).await?;
        let pods = Request::new(format!("/api/v1/namespaces/{namespace}/pods"));
        let request = pods.list(&list);
        let request = request.map_err(|error| no_request(&what, &error))?;
        Ok(client.wait(&what, client.kube.request(request)).await?)
    });
    let found = read.with_context(|| {
        format!(
            "name it by its address instead: kubectl get pod --namespace {namespace} {name} -o wide"
        )
    })?;
    let Some(pod_object) = found.items.first() else {
        bail!("there is no pod {pod}: kubectl get pod --namespace {namespace}");
    };
    let addresses: Vec<_> = pod_object.status.pod_ips.iter().map(|pod| pod.ip).collect();
    if addresses.is_empty() {
        bail!("pod {pod} has no address yet: kubectl describe pod --namespace {namespace} {name}");
    }
    Ok(addresses)
}

/// A DNS label (RFC 1123), as names of namespaces and the parts of names of pods are.
fn is_label(text: &str) -> bool {
    let is_of = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !text.is_empty() && text.chars().all(is_of)
}
