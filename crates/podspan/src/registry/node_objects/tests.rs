use super::*;

/// A Node made in that minute, with an address and a pod CIDR of that number.
fn record(name: &str, minute: u32, number: u32) -> Record {
    Record {
        name: name.to_owned(),
        uid: format!("uid of {name}"),
        created: format!("2026-11-24T10:{minute:02}:00Z"),
        addresses: [format!("192.168.1.{number}").parse().unwrap()].into(),
        pod_cidrs: [format!("10.244.{number}.0/24").parse().unwrap()].into(),
        ..Record::default()
    }
}

fn all(records: &[Record]) -> News {
    News::All(records.iter().cloned().map(Arc::new).collect())
}

fn is(record: Record) -> News {
    News::Is(Arc::new(record))
}

/// The names of the nodes in their order, and the refusals.
fn outcome(objects: &mut NodeObjects) -> (Vec<String>, Vec<String>) {
    let (cluster, refusals) = objects.cluster().unwrap().unwrap();
    let names = cluster.nodes.into_iter().map(|node| node.name);
    (
        names.collect(),
        refusals.iter().map(ToString::to_string).collect(),
    )
}

#[test]
fn nothing_is_said_before_the_first_list_and_once_for_each_news() {
    let mut objects = NodeObjects::default();
    assert!(objects.cluster().is_none());
    objects.take(News::Problem(About::Nodes, Some("away".to_owned())));
    assert!(objects.cluster().is_none());
    assert_eq!(objects.problems().collect::<Vec<_>>(), ["away"]);
    objects.take(all(&[record("node1", 1, 11)]));
    objects.take(News::Problem(About::Nodes, None));
    assert_eq!(outcome(&mut objects).0, ["node1"]);
    assert!(objects.cluster().is_none());
    assert_eq!(objects.problems().count(), 0);
}

#[test]
fn changes_make_what_a_list_of_the_outcome_would() {
    let mut objects = NodeObjects::default();
    objects.take(all(&[
        record("a", 1, 11),
        record("b", 2, 12),
        record("c", 3, 13),
    ]));
    objects.take(News::Gone("b".to_owned()));
    objects.take(is(record("c", 3, 33)));
    objects.take(is(record("d", 0, 14)));
    // Made again under its name: another time.
    objects.take(is(record("a", 9, 11)));
    objects.take(News::Gone("never there".to_owned()));
    let mut listed = NodeObjects::default();
    listed.take(all(&[
        record("d", 0, 14),
        record("a", 9, 11),
        record("c", 3, 33),
    ]));
    assert_eq!(
        objects.cluster().unwrap().unwrap(),
        listed.cluster().unwrap().unwrap()
    );
}

#[test]
fn the_older_of_two_that_exclude_each_other_stays_whatever_came_first() {
    let (old, new) = (
        record("z", 1, 11),
        Record {
            pod_cidrs: record("z", 1, 11).pod_cidrs,
            ..record("a", 2, 12)
        },
    );
    let expected = "Node a: spec.podCIDRs = \"10.244.11.0/24\": overlaps 10.244.11.0/24 of Node z; give each node its own";
    for order in [[&old, &new], [&new, &old]] {
        let mut objects = NodeObjects::default();
        objects.take(all(&[]));
        order
            .into_iter()
            .for_each(|record| objects.take(is(record.clone())));
        assert_eq!(
            outcome(&mut objects),
            (vec!["z".to_owned()], vec![expected.to_owned()])
        );
    }
    // Of the same second, the name decides.
    let twins = [record("b", 1, 11), record("a", 1, 11)];
    let mut objects = NodeObjects::default();
    objects.take(all(&twins));
    let (names, refusals) = outcome(&mut objects);
    assert_eq!((names, refusals.len()), (vec!["a".to_owned()], 2));
    assert_eq!(
        refusals[0],
        "Node b: status.addresses = \"192.168.1.11\": is the address of Node a too; give each node its own"
    );
}

#[test]
fn a_node_that_is_not_ready_is_counted_and_what_runs_for_it_stays() {
    let unready = Record {
        addresses: [].into(),
        ..record("b", 2, 12)
    };
    let mut objects = NodeObjects::default();
    objects.take(all(&[record("a", 1, 11), unready.clone()]));
    let (cluster, refusals) = objects.cluster().unwrap().unwrap();
    assert_eq!(refusals, []);
    let expected = Unready {
        name: "b".to_owned(),
        lacks: "status.addresses",
    };
    assert_eq!(cluster.unready, [expected]);
    assert_eq!(cluster.refused, [unready.remains()]);
}

#[test]
fn an_empty_list_and_one_without_a_usable_node_are_problems() {
    let unready = Record {
        pod_cidrs: [].into(),
        ..record("b", 2, 12)
    };
    let table = [
        (vec![], "the Kubernetes API: no Node in it"),
        (
            vec![unready],
            "the Kubernetes API: none of its 1 Nodes is usable; Node b has no spec.podCIDRs yet",
        ),
    ];
    for (records, expected) in table {
        let mut objects = NodeObjects::default();
        objects.take(all(&records));
        assert_eq!(
            objects.cluster().unwrap().unwrap_err().to_string(),
            expected
        );
    }
}
