//! The same matrix, where it comes from: Kubernetes' NetworkPolicies applied by kubectl, pods made by kubelets on two nodes, agents
//! installed by the manifest. `tools/test-kube policy` makes such a cluster and runs this; without it, it is ignored.

#[path = "policy/cases.rs"]
mod cases;
mod common;
#[path = "policy/kubelets.rs"]
mod kubelets;

use std::time::Instant;

use cases::Label;
use kubelets::Cluster;

#[test]
#[ignore = "needs a cluster with two kubelets: tools/test-kube policy"]
fn the_documented_cases_hold_for_every_pair_of_pods_of_kubelets() {
    let mut cluster = Cluster::up();
    let started = Instant::now();
    let (mut known, mut unknown): (Vec<_>, Vec<_>) = cases::cases()
        .into_iter()
        .partition(|case| case.policies.iter().all(|(_, _, spec)| cluster.knows(spec)));
    known.extend(cases::blocks_of_addresses(&|pod, ipv6| cluster.address(pod, ipv6)));
    let (labels, steps) = cases::labels_that_change();
    known.push(labels);
    for case in &known {
        cluster.only(&case.policies);
        cluster.check(case.what, &*case.expected);
    }
    for (what, labels, expected) in &steps {
        for Label { of, key, value } in labels {
            cluster.label(of, key, *value);
        }
        cluster.check(what, &**expected);
    }
    for case in unknown.drain(..) {
        println!("left out, this API server does not know its fields: {}", case.what);
    }
    println!(
        "{} cases and {} changes of labels, {} squares each, in {:?}; {} matrices were read too early",
        known.len(),
        steps.len(),
        cluster.squares(),
        started.elapsed(),
        cluster.early
    );
}
