use std::sync::Arc;

use super::nodes_file::tests::GOOD;
use super::*;
use crate::kubernetes::object::Record;
use crate::kubernetes::{About, News};

#[test]
fn the_last_good_cluster_stays_whatever_becomes_of_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("nodes.toml");
    let mut registry = Registry::of(Source::File(NodesFile::new(&file)));
    registry.look();
    assert!(registry.cluster().is_none());
    assert!(
        registry.problems().next().unwrap().contains("No such file"),
        "{registry:?}"
    );
    std::fs::write(&file, GOOD).unwrap();
    registry.look();
    let good = registry.cluster().unwrap().clone();
    assert_eq!(registry.problems().next(), None);
    for bad in [&b""[..], b"[[nodes", b"\xff\xfe"] {
        std::fs::write(&file, bad).unwrap();
        registry.look();
        assert_eq!(registry.cluster(), Some(&good));
        assert!(
            registry
                .problems()
                .next()
                .unwrap()
                .ends_with("nothing was changed for it")
        );
    }
    std::fs::remove_file(&file).unwrap();
    registry.look();
    assert_eq!(registry.cluster(), Some(&good));
    std::fs::write(&file, GOOD).unwrap();
    registry.look();
    assert_eq!(registry.problems().next(), None);
}

#[test]
fn the_last_good_cluster_stays_whatever_becomes_of_the_api() {
    let mut registry = Registry::of(Source::Kubernetes(None, NodeObjects::default()));
    let take = |registry: &mut Registry, news| {
        if let Source::Kubernetes(_, objects) = &mut registry.source {
            objects.take(news);
        }
        registry.look();
    };
    let away = || News::Problem(About::Nodes, Some("away".to_owned()));
    take(&mut registry, away());
    assert_eq!(registry.cluster(), None);
    assert_eq!(registry.problems().collect::<Vec<_>>(), ["away"]);
    take(&mut registry, News::Problem(About::Nodes, None));
    let node = Record {
        name: "node1".to_owned(),
        addresses: ["192.168.1.11".parse().unwrap()].into(),
        pod_cidrs: ["10.244.1.0/24".parse().unwrap()].into(),
        ..Record::default()
    };
    take(&mut registry, News::All(vec![Arc::new(node.clone())]));
    let good = registry.cluster().unwrap().clone();
    assert_eq!((good.nodes.len(), registry.problems().count()), (1, 0));
    let unready = Record {
        pod_cidrs: [].into(),
        ..node.clone()
    };
    for (bad, problem) in [
        (away(), "away"),
        (
            News::All(vec![]),
            "the Kubernetes API: no Node in it; nothing was changed for it",
        ),
        (
            News::Is(Arc::new(unready)),
            "the Kubernetes API: none of its 1 Nodes is usable; Node node1 has no spec.podCIDRs yet; nothing was changed for it",
        ),
        (
            News::Gone("node1".to_owned()),
            "the Kubernetes API: no Node in it; nothing was changed for it",
        ),
    ] {
        take(&mut registry, bad);
        assert_eq!(registry.cluster(), Some(&good));
        assert!(
            registry.problems().any(|told| told == problem),
            "{registry:?}"
        );
    }
    take(&mut registry, News::Problem(About::Nodes, None));
    take(&mut registry, News::Is(Arc::new(node)));
    assert_eq!(
        (registry.cluster(), registry.problems().count()),
        (Some(&good), 0)
    );
}
