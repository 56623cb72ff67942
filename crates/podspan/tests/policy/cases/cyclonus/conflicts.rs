//! Policies of one pod, or of the two ends of a connection, that say one thing and its contrary.

use super::super::Step;
use super::super::build::{all, blocks, having, namespaces, policy, rule};
use super::super::object::{Change, Rule};
use super::{Generator, Way, dns, rules_of};

/// What two policies can say against one another: to or from whom rules are.
#[derive(Clone, Copy)]
enum Says {
    Everything,
    Nothing,
    AllByPod,
    AllByAddress,
    NoneByPod,
    NoneByAddress,
}

impl Says {
    fn rules(self) -> Vec<Rule> {
        let by_block = |texts: [&str; 2]| {
            let all = texts.map(|text| text.parse().unwrap());
            vec![rule().blocks(blocks(&all, &[]))]
        };
        let never = having([("this-will-never-happen", "qrs123")]);
        match self {
            Self::Everything => vec![rule()],
            Self::Nothing => vec![],
            Self::AllByPod => vec![rule().peers([namespaces(all())])],
            Self::AllByAddress => by_block(["0.0.0.0/0", "::/0"]),
            Self::NoneByPod => vec![rule().peers([namespaces(never)])],
            Self::NoneByAddress => by_block(["0.0.0.0/31", "::/127"]),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Everything => "everything",
            Self::Nothing => "nothing",
            Self::AllByPod => "all by pod",
            Self::AllByAddress => "all by address",
            Self::NoneByPod => "none by pod",
            Self::NoneByAddress => "none by address",
        }
    }

    fn tags(self) -> &'static [&'static str] {
        match self {
            Self::Everything => &["allow-all"],
            Self::Nothing => &["deny-all"],
            Self::AllByPod => &["all-pods", "all-namespaces"],
            Self::AllByAddress | Self::NoneByPod | Self::NoneByAddress => &[],
        }
    }
}

impl Generator<'_> {
    pub(super) fn conflicts(&mut self) {
        use Says::{AllByAddress, AllByPod, Everything, NoneByAddress, NoneByPod, Nothing};
        use Way::{Egress, Ingress};
        let (source, receiver) = (("x", "b"), ("y", "c"));
        self.conflict(&[(source, Egress, Nothing), (receiver, Ingress, Everything)]);
        self.conflict(&[(source, Egress, Everything), (receiver, Ingress, Nothing)]);
        self.conflict(&[(source, Egress, Nothing), (source, Egress, Everything)]);
        self.conflict(&[
            (receiver, Ingress, Nothing),
            (receiver, Ingress, Everything),
        ]);
        // All others are about one pod, in both directions.
        for way in [Egress, Ingress] {
            for (one, other) in [
                (Nothing, AllByPod),
                (Nothing, AllByAddress),
                (NoneByAddress, AllByPod),
                (NoneByPod, AllByAddress),
            ] {
                self.conflict(&[(source, way, one), (source, way, other)]);
            }
            self.conflict(&[(source, way, NoneByAddress)]);
            self.conflict(&[(source, way, NoneByPod)]);
        }
    }

    /// Policies that say these things. Where one is about egress, names may be asked for.
    fn conflict(&mut self, all: &[((&str, &str), Way, Says)]) {
        let (mut tags, mut names, mut changes) =
            (vec!["conflict"], Vec::new(), Vec::<Change>::new());
        for (number, ((namespace, pod), way, says)) in all.iter().enumerate() {
            let mut policy =
                policy(namespace, &format!("conflict-{number}")).pods(having([("pod", pod)]));
            *rules_of(&mut policy, *way) = says.rules();
            changes.push(policy.put());
            tags.push(way.tag());
            tags.extend(says.tags());
            names.push(format!(
                "{} of {namespace}/{pod}: {}",
                way.tag(),
                says.name()
            ));
        }
        if tags.contains(&"egress") {
            changes.push(
                policy("x", "allow-dns")
                    .pods(having([("pod", "b")]))
                    .egress([dns()])
                    .put(),
            );
        }
        self.add(&names.join(", "), &tags, vec![Step::new(changes)]);
    }
}
