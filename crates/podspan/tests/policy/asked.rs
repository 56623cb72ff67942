//! Questions of a case as packets: by whom, to which address, and what is expected.

use std::collections::BTreeMap;

use crate::cases::oracle::{FAMILIES, allows};
use crate::cases::{Cluster, Step};
use crate::object::Key;
use crate::prober::Question;

/// The name that a pod's server says.
pub fn name(pod: &Key) -> String {
    format!("{}/{}", pod.namespace, pod.name)
}

/// What each pod asks in that step, in both families as far as both ends have them.
pub fn questions(cluster: &Cluster, step: &Step) -> BTreeMap<Key, Vec<Question>> {
    let mut questions = BTreeMap::<_, Vec<_>>::new();
    for ask in step.asks(cluster) {
        let of = questions.entry(ask.from.clone()).or_default();
        for family in FAMILIES {
            let address = |pod| family.of(&cluster.pods[pod]);
            let (Some(_), Some(address)) = (address(&ask.from), address(&ask.to)) else {
                continue;
            };
            let (protocol, port) = ask.socket;
            of.push(Question {
                address,
                protocol,
                port,
                name: name(&ask.to),
                expected: allows(cluster, &ask, family),
            });
        }
    }
    questions
}
