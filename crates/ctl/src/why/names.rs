//! What groups of pods are called: by their names if they are few, by what they have in common if they are many.

use std::collections::{BTreeMap, BTreeSet};

use api::Key;
use api::resource::WorkloadEndpoint;

use super::place::pod_name;
use super::world::World;

/// So many pods are named one by one.
const FEW: usize = 3;

/// Pods by key.
pub struct Names<'a> {
    pods: BTreeMap<&'a Key, &'a WorkloadEndpoint>,
}

impl<'a> Names<'a> {
    /// Of all pods.
    pub fn new(world: &'a World) -> Self {
        Self {
            pods: world.endpoints().collect(),
        }
    }

    /// A group: `shop/web-1, shop/web-2`, `12 pods of shop with app=web`, `40 pods of 3 namespaces`.
    pub fn of<'k>(&self, keys: impl Iterator<Item = &'k Key>) -> String {
        let keys: BTreeSet<&Key> = keys.collect();
        let namespaces: BTreeSet<&str> = keys.iter().filter_map(|key| key.namespace.as_deref()).collect();
        if keys.len() <= FEW {
            let name = |key: &&Key| {
                let namespace = key.namespace.as_deref().unwrap_or_default();
                let name = self.pods.get(*key).map_or(key.name.as_str(), |pod| pod_name(pod));
                format!("{namespace}/{name}")
            };
            return keys.iter().map(name).collect::<Vec<_>>().join(", ");
        }
        let mut shared: Option<BTreeMap<&str, &str>> = None;
        for pod in keys.iter().filter_map(|key| self.pods.get(*key)) {
            let own = pod.metadata.labels.iter();
            let own: BTreeMap<&str, &str> = own.map(|(name, value)| (name.as_str(), value.as_str())).collect();
            shared = Some(match shared {
                None => own,
                Some(mut shared) => {
                    shared.retain(|name, value| own.get(name) == Some(value));
                    shared
                }
            });
        }
        let is_own = |name: &str| !name.contains("projectcalico.org/") && name != "pod-template-hash";
        let labels = shared.unwrap_or_default().into_iter().filter(|(name, _)| is_own(name));
        let labels: Vec<String> = labels.map(|(name, value)| format!("{name}={value}")).collect();
        let mut names = namespaces.iter();
        let place = match (names.next(), names.len()) {
            (Some(only), 0) => (*only).to_owned(),
            _ => format!("{} namespaces", namespaces.len()),
        };
        match labels.is_empty() {
            true => format!("{} pods of {place}", keys.len()),
            false => format!("{} pods of {place} with {}", keys.len(), labels.join(", ")),
        }
    }
}
