//! What the datastore holds, as far as controllers look at it.

use std::collections::BTreeMap;

use api::{Key, Kind, Object, Resource, Spec};
use datastore::{Scope, Update};

/// The kinds that are followed.
const KINDS: [Kind; 24] = [
    Kind::IPPool,
    Kind::BGPConfiguration,
    Kind::BGPPeer,
    Kind::BGPFilter,
    Kind::FelixConfiguration,
    Kind::NetworkSet,
    Kind::GlobalNetworkSet,
    Kind::Node,
    Kind::WorkloadEndpoint,
    Kind::ClusterInformation,
    Kind::IPAMBlock,
    Kind::BlockAffinity,
    Kind::IPAMHandle,
    Kind::IPAMConfiguration,
    Kind::IPReservation,
    Kind::HostEndpoint,
    Kind::Tier,
    Kind::NetworkPolicy,
    Kind::GlobalNetworkPolicy,
    Kind::StagedNetworkPolicy,
    Kind::StagedGlobalNetworkPolicy,
    Kind::StagedKubernetesNetworkPolicy,
    Kind::KubeControllersConfiguration,
    Kind::CalicoNodeStatus,
];

/// The datastore's state now. Ordered, so that decisions come in the same order each time.
#[derive(Clone, Debug, Default)]
pub struct World {
    resources: BTreeMap<Key, Resource>,
}

impl World {
    /// What to follow in the datastore.
    pub fn scopes() -> Vec<Scope> {
        KINDS.into_iter().map(Scope::Kind).collect()
    }

    /// Takes what one resource is now.
    pub fn apply(&mut self, update: Update) {
        match update.value {
            Some(resource) => drop(self.resources.insert(update.key, resource)),
            None => drop(self.resources.remove(&update.key)),
        }
    }

    /// All objects of a kind, by key.
    pub fn all<'a, S: Spec>(&'a self) -> impl Iterator<Item = &'a Object<S>>
    where
        &'a Object<S>: TryFrom<&'a Resource>,
    {
        self.of_kind(S::KIND)
            .filter_map(|resource| <&Object<S>>::try_from(resource).ok())
    }

    /// Whether something of a kind is there that cannot be read: then nobody knows what else it says.
    pub fn has_wrong(&self, kind: Kind) -> bool {
        self.of_kind(kind)
            .any(|resource| matches!(resource, Resource::Wrong(_)))
    }

    /// All resources of a kind, by key.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Resource> {
        let first = Key {
            kind,
            namespace: None,
            name: String::new(),
        };
        let range = self.resources.range(first..);
        range
            .take_while(move |(key, _)| key.kind == kind)
            .map(|(_, resource)| resource)
    }

    /// What has this key.
    pub fn resource(&self, key: &Key) -> Option<&Resource> {
        self.resources.get(key)
    }

    /// A cluster-wide object.
    pub fn get<'a, S: Spec>(&'a self, name: &str) -> Option<&'a Object<S>>
    where
        &'a Object<S>: TryFrom<&'a Resource>,
    {
        let resource = self.resources.get(&Key::cluster(S::KIND, name))?;
        <&Object<S>>::try_from(resource).ok()
    }
}

/// A world of these resources, for tests.
#[cfg(test)]
impl FromIterator<Resource> for World {
    fn from_iter<T: IntoIterator<Item = Resource>>(resources: T) -> Self {
        let resources = resources.into_iter().map(|resource| (resource.key(), resource));
        Self {
            resources: resources.collect(),
        }
    }
}
