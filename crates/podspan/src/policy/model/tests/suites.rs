//! The cases of the suites: the model says of every question what the oracle of the cases says.

use super::super::super::cases::oracle::{FAMILIES, allows};
use super::super::super::cases::{Layout, cnp, cyclonus, netpol};
use super::super::Model;

#[test]
fn every_question_of_the_suites_is_judged_right() {
    let layout = Layout::two_nodes();
    let cases = [
        cyclonus::cases(&layout),
        netpol::cases(&layout),
        cnp::cases(&layout),
    ]
    .concat();
    let mut asked = 0;
    for case in &cases {
        // Told step by step, as a follower of the API tells it.
        let mut model = Model::new("node1");
        for change in case.cluster.told() {
            model.take(change);
        }
        let mut number = 0;
        case.walk(|cluster, step| {
            number += 1;
            for change in &step.changes {
                model.take(change.clone());
            }
            for ask in step.asks(cluster) {
                let (from, to) = (&cluster.pods[&ask.from], &cluster.pods[&ask.to]);
                for family in FAMILIES {
                    let (Some(from), Some(to)) = (family.of(from), family.of(to)) else {
                        continue;
                    };
                    let judgement = model.judge(from, to, Some(ask.socket));
                    let mut sides = judgement.egress.iter().chain(&judgement.ingress);
                    let allowed = sides.all(|judged| judged.decision.accepts());
                    let right = allows(cluster, &ask, family);
                    assert_eq!(
                        allowed, right,
                        "{}, step {number}: {ask}, {family:?}: {judgement:?}",
                        case.name
                    );
                    asked += 1;
                }
            }
        });
    }
    assert_eq!((cases.len(), asked), (302, 259_010));
}
