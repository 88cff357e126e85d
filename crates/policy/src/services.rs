//! Addresses and ports behind Services, from their slices.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use api::KubernetesEndpointSliceSpec;

use crate::set_def::Service;

/// What one slice adds to its Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slice {
    pub addresses: Box<[IpAddr]>,
    /// Protocol number and port.
    pub ports: Box<[(u8, u16)]>,
}

/// All slices, by the Service that they belong to.
#[derive(Debug, Default)]
pub(crate) struct Services {
    /// By namespace and name of the slice.
    slices: BTreeMap<(String, String), (Service, Slice)>,
    of_service: BTreeMap<Service, BTreeSet<String>>,
    /// What changed slices were when they were last settled.
    before: BTreeMap<(String, String), Option<(Service, Slice)>>,
}

impl Slice {
    pub fn new(spec: &KubernetesEndpointSliceSpec) -> Self {
        let addresses: BTreeSet<IpAddr> = spec.addresses.iter().copied().collect();
        let ports = spec.ports.iter();
        let ports: BTreeSet<(u8, u16)> = ports
            .filter_map(|port| Some((port.protocol.number()?, port.port)))
            .collect();
        Self {
            addresses: addresses.into_iter().collect(),
            ports: ports.into_iter().collect(),
        }
    }
}

impl Services {
    /// Makes `spec` the slice of this namespace and name.
    pub fn set(&mut self, namespace: &str, name: &str, spec: Option<&KubernetesEndpointSliceSpec>) {
        let new = spec.map(|spec| {
            let service = Service {
                namespace: namespace.to_owned(),
                name: spec.service.clone(),
            };
            (service, Slice::new(spec))
        });
        let key = (namespace.to_owned(), name.to_owned());
        let old = self.slices.get(&key);
        if old == new.as_ref() {
            return;
        }
        self.before.entry(key.clone()).or_insert_with(|| old.cloned());
        if let Some((service, _)) = self.slices.remove(&key)
            && let Some(names) = self.of_service.get_mut(&service)
        {
            names.remove(&key.1);
            if names.is_empty() {
                self.of_service.remove(&service);
            }
        }
        if let Some(new) = new {
            self.of_service.entry(new.0.clone()).or_default().insert(key.1.clone());
            self.slices.insert(key, new);
        }
    }

    /// What changed since the last time: what it was, what it is.
    pub fn take_changes(&mut self) -> Vec<[Option<(Service, Slice)>; 2]> {
        let before = std::mem::take(&mut self.before).into_iter();
        before.map(|(key, old)| [old, self.slices.get(&key).cloned()]).collect()
    }

    /// The slices of a Service.
    pub fn slices(&self, service: &Service) -> Vec<&Slice> {
        let names = self.of_service.get(service).into_iter().flatten();
        names
            .filter_map(|name| self.slices.get(&(service.namespace.clone(), name.clone())))
            .map(|(_, slice)| slice)
            .collect()
    }
}
