//! The store on a real API server. `tools/test-kube` starts one and runs these; without it they are ignored.

mod kubernetes_support;

use std::sync::Arc;

use api::Kind;
use backend::kubernetes::CalicoGroup;
use datastore::contract::{Subject, all};
use kubernetes_support::{Only, run, store};

const KINDS: &[Kind] = &[
    Kind::GlobalNetworkSet,
    Kind::NetworkSet,
    Kind::IPAMHandle,
    Kind::ClusterInformation,
    Kind::IPPool,
];

#[test]
#[ignore = "needs an API server: tools/test-kube"]
fn the_contract_is_kept_in_v3() {
    keeps_the_contract(CalicoGroup::V3);
}

#[test]
#[ignore = "needs an API server: tools/test-kube"]
fn the_contract_is_kept_in_v1() {
    keeps_the_contract(CalicoGroup::V1);
}

#[track_caller]
fn keeps_the_contract(group: CalicoGroup) {
    let mut wrong = Vec::new();
    for (name, check) in all() {
        let outcome = run(async {
            let store = Only {
                store: store(group),
                kinds: KINDS,
            };
            store.clear().await.map_err(|error| format!("clearing: {error}"))?;
            let outcome = check(Subject::new(Arc::new(store.clone())).that_names_its_objects()).await;
            store.clear().await.map_err(|error| format!("clearing: {error}"))?;
            outcome
        });
        if let Err(why) = outcome {
            wrong.push(format!("{name}: {why}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
