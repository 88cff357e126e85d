//! What people call the ends of a connection: pods, addresses, network sets, host endpoints, nodes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use api::resource::WorkloadEndpoint;
use api::{Key, Kind, Resource};
use ipnet::IpNet;

use super::world::World;
use crate::CtlError;

/// Something that packets come from or go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// For people: `pod shop/web`.
    pub name: String,
    /// The name is its own; otherwise it says what is known of an address.
    pub named: bool,
    /// Its addresses; of a network set one stands for all.
    pub addresses: Vec<IpAddr>,
    /// Whose they are.
    pub whose: Whose,
}

/// Whose an address is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    /// A pod's.
    Pod {
        /// Its WorkloadEndpoint.
        key: Key,
        /// Where it runs.
        node: String,
    },
    /// A node's.
    Host {
        /// Which.
        node: String,
        /// The host endpoint that was named, or has the address.
        endpoint: Option<String>,
    },
    /// Nobody's here.
    Elsewhere,
}

impl Place {
    /// What a word on the command line (`argument` names it) or in a file means.
    pub fn find(world: &World, argument: &str, word: &str, namespace: &str) -> Result<Self, CtlError> {
        if let Ok(address) = word.parse() {
            return Ok(Self::at(world, address));
        }
        let refuse = |why: String| CtlError::Invalid(vec![format!("{argument}: `{word}` {why}")]);
        let (within, name) = match word.split_once('/') {
            Some((within, name)) => (Some(within), name),
            None => (None, word),
        };
        if name.is_empty() || within.is_some_and(str::is_empty) || name.contains('/') {
            return Err(refuse(
                "is no name: write POD, NAMESPACE/POD, the name of a host endpoint, node or network set, or an address"
                    .into(),
            ));
        }
        let all = named(world, within, name);
        let preferred = |key: &Key| key.kind == Kind::WorkloadEndpoint && key.namespace.as_deref() == Some(namespace);
        let near: Vec<&(Key, Place)> = all.iter().filter(|(key, _)| preferred(key)).collect();
        let candidates = match near.is_empty() {
            true => all.iter().collect(),
            false => near,
        };
        match candidates.as_slice() {
            [] => Err(refuse(absent(world, name))),
            [(key, place)] => match place.addresses.is_empty() {
                true => Err(refuse(format!("is {key}, which has no address"))),
                false => Ok(place.clone()),
            },
            several => {
                let shown: Vec<String> = several.iter().map(|(_, place)| place.name.clone()).collect();
                Err(refuse(format!(
                    "may be any of {}: write NAMESPACE/POD, choose with -n, or give an address",
                    shown.join(", ")
                )))
            }
        }
    }

    /// Whose address it is.
    pub fn at(world: &World, address: IpAddr) -> Self {
        let owned = |place: Place| Place {
            addresses: vec![address],
            ..place
        };
        let mut pods = world.endpoints();
        if let Some((key, pod)) = pods.find(|(_, pod)| pod.spec.ip_networks.iter().any(|net| net.addr() == address)) {
            return owned(Self::pod(key, pod));
        }
        let hosts = world.resources().map(|(_, resource)| resource);
        let host = hosts.filter_map(|resource| match resource {
            Resource::HostEndpoint(host) if host.spec.expected_ips.contains(&address) => Some(Place {
                named: true,
                name: format!("host endpoint {}", host.metadata.name),
                addresses: Vec::new(),
                whose: Whose::Host {
                    node: host.spec.node.clone(),
                    endpoint: Some(host.metadata.name.clone()),
                },
            }),
            Resource::Node(_) => {
                let place = of_node(resource)?;
                place.addresses.contains(&address).then_some(place)
            }
            _ => None,
        });
        if let Some(place) = host.min_by_key(|place| place.name.clone()) {
            return owned(place);
        }
        let sets = world.resources().filter(|(_, resource)| {
            let nets = nets(resource).unwrap_or_default();
            nets.iter().any(|net| net.contains(&address))
        });
        let sets: Vec<String> = sets.map(|(key, _)| key.to_string()).collect();
        Self {
            named: false,
            name: match sets.is_empty() {
                true => "an address of no pod, host endpoint, node or network set".into(),
                false => format!("in {}", sets.join(", ")),
            },
            addresses: vec![address],
            whose: Whose::Elsewhere,
        }
    }

    /// It and its address: `203.0.113.7 (in GlobalNetworkSet(partners))`.
    pub fn with(&self, address: IpAddr) -> String {
        match self.named {
            true => format!("{} ({address})", self.name),
            false => format!("{address} ({})", self.name),
        }
    }

    /// A pod.
    pub fn pod(key: &Key, endpoint: &WorkloadEndpoint) -> Self {
        let namespace = key.namespace.as_deref().unwrap_or_default();
        Self {
            named: true,
            name: format!("pod {namespace}/{}", pod_name(endpoint)),
            addresses: endpoint.spec.ip_networks.iter().map(IpNet::addr).collect(),
            whose: Whose::Pod {
                key: key.clone(),
                node: endpoint.spec.node.clone(),
            },
        }
    }
}

impl Whose {
    /// The node that it is on.
    pub fn node(&self) -> Option<&str> {
        match self {
            Whose::Pod { node, .. } | Whose::Host { node, .. } => Some(node),
            Whose::Elsewhere => None,
        }
    }
}

/// What a pod is called.
pub fn pod_name(endpoint: &WorkloadEndpoint) -> &str {
    let spec = &endpoint.spec;
    let names = [&spec.pod, &spec.workload, &endpoint.metadata.name];
    names.into_iter().find(|name| !name.is_empty()).map_or("", |name| name)
}

/// Everything with this name, pods first. A pod's first interface stands for it.
fn named(world: &World, namespace: Option<&str>, name: &str) -> Vec<(Key, Place)> {
    let mut found = Vec::new();
    let mut pods = BTreeSet::new();
    for (key, pod) in world.endpoints() {
        let is_it = pod_name(pod) == name || key.name == name;
        let is_there = namespace.is_none_or(|namespace| key.namespace.as_deref() == Some(namespace));
        if is_it && is_there && pods.insert((&key.namespace, pod_name(pod))) {
            found.push((key.clone(), Place::pod(key, pod)));
        }
    }
    for (key, resource) in world.resources().filter(|(key, _)| key.name == name) {
        if namespace.is_some() && key.namespace.as_deref() != namespace {
            continue;
        }
        let place = match resource {
            Resource::HostEndpoint(host) => Some(Place {
                named: true,
                name: format!("host endpoint {name}"),
                addresses: match host.spec.expected_ips.is_empty() {
                    false => host.spec.expected_ips.clone(),
                    true => node_addresses(world, &host.spec.node),
                },
                whose: Whose::Host {
                    node: host.spec.node.clone(),
                    endpoint: Some(name.to_owned()),
                },
            }),
            Resource::Node(_) => of_node(resource),
            _ => nets(resource).map(|nets| Place {
                named: true,
                name: key.to_string(),
                addresses: nets.iter().map(first).collect(),
                whose: Whose::Elsewhere,
            }),
        };
        found.extend(place.map(|place| (key.clone(), place)));
    }
    found
}

fn of_node(resource: &Resource) -> Option<Place> {
    let Resource::Node(node) = resource else { return None };
    let bgp = node.spec.bgp.as_ref()?;
    let v4 = bgp.ipv4_address.as_ref().map(|net| IpAddr::from(net.addr()));
    let v6 = bgp.ipv6_address.as_ref().map(|net| IpAddr::from(net.addr()));
    Some(Place {
        named: true,
        name: format!("node {}", node.metadata.name),
        addresses: v4.into_iter().chain(v6).collect(),
        whose: Whose::Host {
            node: node.metadata.name.clone(),
            endpoint: None,
        },
    })
}

/// The addresses of a node.
pub fn node_addresses(world: &World, node: &str) -> Vec<IpAddr> {
    let place = world.get(&Key::cluster(Kind::Node, node)).and_then(of_node);
    place.map(|place| place.addresses).unwrap_or_default()
}

/// The addresses of a network set.
fn nets(resource: &Resource) -> Option<&[IpNet]> {
    match resource {
        Resource::NetworkSet(set) => Some(&set.spec.nets),
        Resource::GlobalNetworkSet(set) => Some(&set.spec.nets),
        _ => None,
    }
}

/// An address that stands for a range.
fn first(net: &IpNet) -> IpAddr {
    net.hosts().next().unwrap_or(net.addr())
}

/// Nothing is called so; what comes near.
fn absent(world: &World, name: &str) -> String {
    let pods = world.endpoints();
    let known: BTreeSet<String> = pods
        .map(|(key, pod)| format!("{}/{}", key.namespace.as_deref().unwrap_or_default(), pod_name(pod)))
        .collect();
    let near = known.iter().filter(|known| {
        known
            .rsplit('/')
            .next()
            .is_some_and(|pod| pod.contains(name) || name.contains(pod))
    });
    let near: Vec<&str> = near.take(3).map(String::as_str).collect();
    let hint = match (near.is_empty(), known.len()) {
        (false, _) => format!("; is it {}?", near.join(", ")),
        (true, 0) => "; there are no pods".into(),
        (true, count) => format!("; there are {count} pods (`get wep -A` shows them)"),
    };
    format!("is no pod, host endpoint, node or network set{hint}")
}
