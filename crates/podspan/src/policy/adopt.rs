//! Attachments that were made before policy was: they get the chains that ADD would have made, and the record by which DEL
//! removes them.
//!
//! Which pod an attachment is of says its address: the runtime named no pod when it was made, but the API does. One that a plugin
//! of somebody else made has nothing of ours that goes with its address; policy does not hold for it until its pod is made
//! anew, and that is told. But a pod whose attachment is gone has addresses in the API for about a second more, so that only who
//! was nobody's for longer is named.
//!
//! Each pod has a transaction of its own, and one that fails keeps no other from its chains. A DEL may come between the look and
//! the transaction, and then knew of nothing to remove: what was made for an attachment that is gone is removed here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use podspan_cni::attachment::{AttachmentId, NetworkName};
use podspan_cni::filter::Filter;
use podspan_cni::filter::policy::{self as plugin, PodName, Subject};
use podspan_kernel::nft::{Batch, Nft};
use podspan_kernel::{IfName, Mac, Netlink};

use super::model::Model;
use super::object::{Attached, Key, Pod, Text};
use super::program::Attachment;
use crate::list::{self, Row};

/// How many pods are named.
const NAMED: usize = 3;
/// Who has been nobody's for that long is named.
const STRANGE: Duration = Duration::from_secs(5);

/// Looks for pods without chains.
#[derive(Debug)]
pub struct Adoption {
    /// Where the plugin keeps addresses.
    data_dir: PathBuf,
    /// The pods that nobody of ours has attached, by their names and numbers, since when.
    strangers: BTreeMap<(Key, Text), Instant>,
}

impl Adoption {
    /// Of that directory of the plugin's.
    pub fn new(data_dir: &Path) -> Self {
        Self {
            data_dir: data_dir.to_owned(),
            strangers: BTreeMap::new(),
        }
    }

    /// Makes chains for the pods of this node that have none; says for whom policy does not hold and why, for people.
    pub fn look(
        &mut self,
        nft: &mut Nft,
        (model, attachments): (&Model, &BTreeMap<Attachment, Attached>),
        now: Instant,
    ) -> BTreeSet<String> {
        let missing = missing(model, attachments);
        if missing.is_empty() {
            self.strangers.clear();
            return BTreeSet::new();
        }
        match self.give_chains(nft, &missing, now) {
            Ok(problems) => problems,
            Err(error) => BTreeSet::from([format!(
                "policy: pods that were there before have no chains: {error:#}"
            )]),
        }
    }

    /// Goes on after a pod that cannot have any.
    ///
    /// # Errors
    /// What the kernel answered, or the file system, when it is not known which attachments there are.
    fn give_chains(
        &mut self,
        nft: &mut Nft,
        missing: &[&Pod],
        now: Instant,
    ) -> anyhow::Result<BTreeSet<String>> {
        let mut host = Netlink::open()?;
        let rows = list::rows(&mut host, &self.data_dir)?;
        let mut problems = BTreeSet::new();
        let before = std::mem::take(&mut self.strangers);
        for pod in missing {
            let of_pod = |row: &&Row| pod.addresses.iter().any(|ip| row.addresses.contains(&ip));
            let Some((veth, alias)) = rows.iter().find(of_pod).and_then(attachment) else {
                let stranger = (pod.key.clone(), pod.uid.clone());
                let since = before.get(&stranger).copied().unwrap_or(now);
                self.strangers.insert(stranger, since);
                continue;
            };
            if let Err(error) = take_in(&mut host, nft, (&veth, &alias), pod) {
                problems.insert(format!(
                    "policy does not hold for pod {} yet: {error:#}",
                    pod.key
                ));
            }
        }
        problems.extend(self.problem(now));
        Ok(problems)
    }

    fn problem(&self, now: Instant) -> Option<String> {
        let is_sure = |since: &Instant| now.saturating_duration_since(*since) >= STRANGE;
        let strangers = self.strangers.iter();
        let strangers: Vec<String> = strangers
            .filter(|(_, since)| is_sure(since))
            .map(|((key, _), _)| key.to_string())
            .collect();
        let (first, rest) = match strangers.split_at_checked(NAMED) {
            Some((first, rest)) => (first, rest.len()),
            None => (&strangers[..], 0),
        };
        if first.is_empty() {
            return None;
        }
        let more = match rest {
            0 => String::new(),
            rest => format!(" and {rest} more"),
        };
        Some(format!(
            "policy does not hold for pods that another plugin attached: {}{more}; kubectl delete pod makes each anew",
            first.join(", ")
        ))
    }
}

/// The pods of this node none of whose addresses has chains.
fn missing<'a>(model: &'a Model, attachments: &BTreeMap<Attachment, Attached>) -> Vec<&'a Pod> {
    let covered = attachments
        .values()
        .flat_map(|attached| attached.addresses.iter());
    let covered: BTreeSet<IpAddr> = covered.collect();
    let is_missing = |pod: &&Pod| {
        let mut addresses = pod.addresses.iter();
        addresses.next().is_some() && !pod.addresses.iter().any(|ip| covered.contains(&ip))
    };
    model.pods_here().filter(is_missing).collect()
}

/// Chains and a record for an attachment, unless it went meanwhile.
///
/// # Errors
/// What the kernel answered.
fn take_in(
    host: &mut Netlink,
    nft: &mut Nft,
    of: (&IfName, &str),
    pod: &Pod,
) -> anyhow::Result<()> {
    let mut batch = Batch::new();
    plugin::lay(&mut batch);
    plugin::adopt(&mut batch, of, subject(pod));
    nft.commit(batch)?;
    if host.find_link(of.0)?.is_none() {
        let removed = Filter::open()?.remove(host, of.0);
        removed.map_err(|error| anyhow::Error::msg(error.to_string()))?;
    }
    Ok(())
}

/// The host veth that is there, and its alias.
fn attachment(row: &Row) -> Option<(IfName, String)> {
    let veth = row.host_veth.as_ref()?.parse().ok()?;
    let network: NetworkName = row.network.parse().ok()?;
    let id = AttachmentId {
        container: row.container.parse().ok()?,
        ifname: row.interface.parse().ok()?,
    };
    Some((veth, id.alias(&network).ok()?))
}

/// Its chains are open until the next difference lays its programs: it was open before.
fn subject(pod: &Pod) -> Subject {
    let addresses: Vec<IpAddr> = pod.addresses.iter().collect();
    let mac = addresses.first().map(|ip| Mac::of_ip(*ip));
    Subject {
        pod: Some(PodName {
            namespace: pod.key.namespace.to_string(),
            name: pod.key.name.to_string(),
            uid: Some(pod.uid.to_string()),
        }),
        addresses: match mac {
            Some(mac) => plugin::with_link_local(&addresses, mac),
            None => addresses,
        },
        closed: false,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::process::Command;

    use podspan_cni::filter::INET;
    use podspan_kernel::testing::TestNs;

    use super::*;
    use crate::policy::object::{Addresses, Change, Kind, Labels};

    fn nft(commands: &str) {
        let status = Command::new("nft").arg(commands).status().unwrap();
        assert!(status.success(), "nft {commands}");
    }

    pub fn pod(name: &str, ip: &str) -> Pod {
        let mut addresses = Addresses::default();
        addresses.add(ip.parse().unwrap());
        Pod {
            key: Key {
                namespace: "shop".into(),
                name: name.into(),
            },
            uid: format!("uid-of-{name}").into(),
            node: Some("node1".into()),
            labels: Labels::default(),
            addresses,
            ports: [].into(),
            host_network: false,
        }
    }

    fn model(pods: &[Pod]) -> Model {
        let mut model = Model::new("node1");
        model.take(Change::Begin(Kind::Pods));
        for pod in pods {
            model.take(Change::Pod(pod.key.clone(), Some(pod.clone())));
        }
        model
    }

    /// The name of the host veth, and the alias.
    pub fn attachment_of(pod: &Pod) -> (IfName, String) {
        let network: NetworkName = "podspan".parse().unwrap();
        let id = AttachmentId {
            container: pod.key.name.parse().unwrap(),
            ifname: "eth0".parse().unwrap(),
        };
        (id.host_veth(&network), id.alias(&network).unwrap())
    }

    /// An attachment without chains, as an ADD without policy leaves it.
    pub fn attach(ns: &TestNs, data_dir: &Path, pod: &Pod) {
        let (veth, alias) = attachment_of(pod);
        ns.ip(&format!(
            "link add {veth} type veth peer name of-{}",
            pod.key.name
        ));
        ns.ip(&format!("link set {veth} alias {alias}"));
        let of_network = data_dir.join("podspan");
        std::fs::create_dir_all(&of_network).unwrap();
        for ip in pod.addresses.iter() {
            let file = of_network.join(ip.to_string());
            std::fs::write(file, format!("{}\r\neth0", pod.key.name)).unwrap();
        }
    }

    /// The pods that have chains.
    fn with_chains(nft: &mut Nft) -> BTreeMap<Attachment, Attached> {
        crate::policy::chains::attachments(nft).unwrap()
    }

    fn names(attachments: &BTreeMap<Attachment, Attached>) -> BTreeSet<&str> {
        let all = attachments.values();
        all.map(|attached| &*attached.pod.name).collect()
    }

    #[test]
    fn a_pod_that_cannot_be_taken_in_keeps_no_other_from_it_and_each_is_told() {
        let ns = TestNs::new();
        let directory = tempfile::tempdir().unwrap();
        let pods = [
            pod("a", "10.0.1.2"),
            pod("b", "10.0.1.3"),
            pod("c", "10.0.1.4"),
            pod("d", "10.0.1.5"),
        ];
        for pod in &pods[..3] {
            attach(&ns, directory.path(), pod);
        }
        // In the way of the first and of the last one of ours.
        let in_the_way =
            [&pods[0], &pods[2]].map(|pod| format!("{INET} pe_{}", attachment_of(pod).0));
        nft(&format!("add table {INET}"));
        for chain in &in_the_way {
            nft(&format!("add chain {chain}"));
        }
        let model = model(&pods);
        let mut kernel = Nft::open().unwrap();
        let mut adoption = Adoption::new(directory.path());
        let now = Instant::now();
        let mut tell = |now| {
            let before = with_chains(&mut kernel);
            let told = adoption.look(&mut kernel, (&model, &before), now);
            (told, with_chains(&mut kernel))
        };
        assert_eq!(tell(now).0.len(), 2, "nobody is called a stranger at once");
        let (told, there) = tell(now + STRANGE);
        assert_eq!(names(&there), BTreeSet::from(["b"]));
        let stranger = "policy does not hold for pods that another plugin attached: shop/d; \
                        kubectl delete pod makes each anew";
        let told: Vec<&str> = told.iter().map(String::as_str).collect();
        let [first, last, other] = told[..] else {
            panic!("{told:?}");
        };
        for (name, text) in [("a", first), ("c", last)] {
            let begins = format!("policy does not hold for pod shop/{name} yet: ");
            assert!(
                text.starts_with(&begins) && text.ends_with("file exists (EEXIST)"),
                "{text}"
            );
        }
        assert_eq!(other, stranger);

        for chain in &in_the_way {
            nft(&format!("delete chain {chain}"));
        }
        let (told, there) = tell(now + STRANGE);
        assert_eq!(names(&there), BTreeSet::from(["a", "b", "c"]));
        assert_eq!(told, BTreeSet::from([stranger.to_owned()]));
    }

    #[test]
    fn a_pod_whose_attachment_is_gone_is_no_stranger_while_the_api_still_has_its_address() {
        let _ns = TestNs::new();
        let directory = tempfile::tempdir().unwrap();
        let mut kernel = Nft::open().unwrap();
        let mut adoption = Adoption::new(directory.path());
        let mut tell = |pod: Option<&Pod>, now| {
            let model = model(pod.cloned().as_slice());
            let told = adoption.look(&mut kernel, (&model, &BTreeMap::new()), now);
            told.into_iter().collect::<Vec<_>>().join("\n")
        };
        let begin = Instant::now();
        let old = pod("web-0", "10.0.1.2");
        let mut new = pod("web-0", "10.0.1.3");
        new.uid = "another".into();
        let almost = STRANGE - Duration::from_millis(1);
        // However often it is looked.
        for at in [Duration::ZERO, STRANGE / 4, STRANGE / 2, almost] {
            assert_eq!(tell(Some(&old), begin + at), "");
        }
        // It goes, and so does the one that comes under its name.
        for at in [STRANGE, STRANGE + almost] {
            assert_eq!(tell(Some(&new), begin + at), "");
        }
        assert_eq!(tell(None, begin + 2 * STRANGE), "");
        // One that stays is none of ours.
        assert_eq!(tell(Some(&old), begin + 3 * STRANGE), "");
        let told = tell(Some(&old), begin + 4 * STRANGE);
        assert!(told.contains("shop/web-0; kubectl delete pod"), "{told}");
    }

    #[test]
    fn nothing_stays_of_an_attachment_that_went_between_the_look_and_the_transaction() {
        let ns = TestNs::new();
        let directory = tempfile::tempdir().unwrap();
        let pods = [pod("gone", "10.0.1.2"), pod("there", "10.0.1.3")];
        attach(&ns, directory.path(), &pods[1]);
        let (mut host, mut kernel) = (Netlink::open().unwrap(), Nft::open().unwrap());
        for pod in &pods {
            let (veth, alias) = attachment_of(pod);
            take_in(&mut host, &mut kernel, (&veth, &alias), pod).unwrap();
        }
        assert_eq!(names(&with_chains(&mut kernel)), BTreeSet::from(["there"]));
        let sets = kernel.list_sets(INET).unwrap();
        let has = |pod: &Pod| {
            let veth = attachment_of(pod).0;
            sets.iter().any(|set| set.name == veth.as_str())
        };
        assert!(!has(&pods[0]) && has(&pods[1]), "the records");
    }
}
