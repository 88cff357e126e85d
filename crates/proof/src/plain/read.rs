//! What a plain reading takes from resources.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::{HostEndpointSpec, Key, PolicyType, Protocol, Resource, Rule};
use ipnet::IpNet;

use super::{ACCOUNT, NAMESPACE, Policy, Thing};
use crate::case::Case;

pub(super) fn policy(resource: &Resource) -> Option<Policy<'_>> {
    macro_rules! policy {
        ($policy:expr, $namespaces:expr, $early:expr) => {
            Some(Policy {
                name: &$policy.metadata.name,
                namespace: $policy.metadata.namespace.as_deref(),
                tier: &$policy.spec.tier,
                order: $policy.spec.order,
                selector: &$policy.spec.selector,
                namespaces: $namespaces,
                accounts: &$policy.spec.service_account_selector,
                types: types(&$policy.spec.types, &$policy.spec.ingress, &$policy.spec.egress),
                rules: [&$policy.spec.ingress, &$policy.spec.egress],
                early: $early,
            })
        };
    }
    match resource {
        Resource::NetworkPolicy(policy) => policy!(policy, "", [false; 3]),
        Resource::GlobalNetworkPolicy(policy) => {
            let spec = &policy.spec;
            let early = [spec.do_not_track, spec.pre_dnat, spec.apply_on_forward];
            policy!(policy, &spec.namespace_selector, early)
        }
        _ => None,
    }
}

/// The directions that have rules, and ingress if none has.
fn types(types: &[PolicyType], ingress: &[Rule], egress: &[Rule]) -> Vec<PolicyType> {
    if !types.is_empty() {
        return types.to_vec();
    }
    let has = [!ingress.is_empty() || egress.is_empty(), !egress.is_empty()];
    let all = [PolicyType::Ingress, PolicyType::Egress];
    all.into_iter()
        .zip(has)
        .filter(|(_, has)| *has)
        .map(|(direction, _)| direction)
        .collect()
}

pub(super) fn thing(case: &Case, resource: &Resource) -> Option<Thing> {
    let of_protocol = |protocol: &Protocol| protocol.number().unwrap_or_default();
    let host_net = |address: &IpAddr| IpNet::from(*address);
    let mut thing = Thing {
        key: resource.key(),
        labels: BTreeMap::new(),
        nets: Vec::new(),
        ports: Vec::new(),
        profiles: Vec::new(),
        host: None,
    };
    let (own, mut implied) = match resource {
        Resource::WorkloadEndpoint(pod) => {
            let spec = &pod.spec;
            thing.nets = spec.ip_networks.clone();
            thing.profiles = spec.profiles.clone();
            let ports = spec.ports.iter();
            thing.ports = ports
                .map(|port| (port.name.clone(), of_protocol(&port.protocol), port.port))
                .collect();
            (
                &pod.metadata.labels,
                vec![
                    ("projectcalico.org/orchestrator", &spec.orchestrator),
                    (ACCOUNT, &spec.service_account_name),
                ],
            )
        }
        Resource::HostEndpoint(host) => {
            let spec = &host.spec;
            thing.nets = spec.expected_ips.iter().map(host_net).collect();
            thing.profiles = spec.profiles.clone();
            let ports = spec.ports.iter();
            thing.ports = ports
                .map(|port| (port.name.clone(), of_protocol(&port.protocol), port.port))
                .collect();
            thing.host = Some(spec.interface_name == HostEndpointSpec::ALL_INTERFACES);
            (&host.metadata.labels, Vec::new())
        }
        Resource::NetworkSet(set) => {
            thing.nets = set.spec.nets.clone();
            thing.profiles = vec![format!("kns.{}", set.metadata.namespace.as_deref().unwrap_or_default())];
            (&set.metadata.labels, Vec::new())
        }
        Resource::GlobalNetworkSet(set) => {
            thing.nets = set.spec.nets.clone();
            (&set.metadata.labels, Vec::new())
        }
        _ => return None,
    };
    implied.extend(thing.key.namespace.as_ref().map(|namespace| (NAMESPACE, namespace)));
    // The first profile wins over later ones, what something says of itself over all of them.
    for name in thing.profiles.iter().rev() {
        let key = Key::cluster(api::Kind::Profile, name);
        if let Some(Resource::Profile(profile)) = case.resources.get(&key) {
            thing.labels.extend(profile.spec.labels_to_apply.clone());
        }
    }
    thing.labels.extend(own.clone());
    thing.labels.extend(
        implied
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.clone())),
    );
    Some(thing)
}
