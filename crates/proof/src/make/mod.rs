//! Random resources over few names, so that they meet.

mod endpoints;
mod policies;
mod rules;

use std::collections::BTreeMap;

use api::resource::WorkloadEndpoint;
use api::{Key, Metadata, Object, Resource, Spec};

use crate::random::Random;

const NAMESPACES: [&str; 2] = ["a", "b"];
/// Names of ports of endpoints.
const PORT_NAMES: [&str; 3] = ["http", "dns", "sig"];
const SERVICES: [&str; 2] = ["svc", "other"];
const PROFILES: [&str; 4] = ["kns.a", "kns.b", "ksa.a.default", "extra"];

/// Everything that is stored, and the pods of the node.
pub(crate) fn resources(random: &mut Random) -> (BTreeMap<Key, Resource>, BTreeMap<Key, WorkloadEndpoint>) {
    let locals = endpoints::local_pods(random);
    let mut resources: Vec<Resource> = locals.values().cloned().map(Resource::from).collect();
    resources.extend(endpoints::others(random));
    resources.extend(policies::profiles(random));
    resources.extend(policies::tiers(random));
    resources.extend(policies::policies(random));
    let keyed = resources.into_iter().map(|resource| (resource.key(), resource));
    (keyed.collect(), locals)
}

fn in_namespace<S: Spec>(namespace: &str, name: &str, spec: S) -> Object<S> {
    Object {
        metadata: Metadata::namespaced(namespace, name),
        spec,
        status: None,
    }
}

/// Some of these labels, each with one of its values.
fn labels(random: &mut Random, from: &[(&str, &[&str])]) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    for (name, values) in from {
        if !random.one_in(3) {
            labels.insert((*name).to_owned(), random.pick(values).to_owned());
        }
    }
    labels
}
