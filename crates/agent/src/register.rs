//! The node's own entry in the datastore: found address, conflict check, registration, tunnel address.

use std::net::{IpAddr, Ipv4Addr};

use api::{ClusterInformation, ClusterInformationSpec, Key, Kind, Node, NodeBgp, NodeSpec, Resource};
use datastore::{Scope, SharedStore, StoreError};
use ipam::{Ipam, Tunnel, TunnelKind};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use jiff::Timestamp;
use kernel::{IpFamily, Observation};

use crate::AgentError;
use crate::autodetect::{Host, source_towards};
use crate::config::{AddressSource, Config};

/// The node's own addresses and why they were chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnAddresses {
    /// With the subnet's length.
    pub ipv4: Option<Ipv4Net>,
    /// With the subnet's length.
    pub ipv6: Option<Ipv6Net>,
    /// For people, a sentence a family.
    pub why: Vec<String>,
}

/// Finds the node's addresses among those that the kernel shows.
pub fn own_addresses(config: &Config, seen: &Observation, internal_ips: &[IpAddr]) -> Result<OwnAddresses, AgentError> {
    let host = Host { links: &seen.links, addresses: &seen.addresses, internal_ips, source_towards: &source_towards };
    let mut own = OwnAddresses::default();
    match &config.ipv4 {
        AddressSource::None => own.why.push("IPv4: none, by configuration".into()),
        AddressSource::Fixed(net) => {
            own.why.push(format!("IPv4: {net}, by configuration"));
            own.ipv4 = Some(with_subnet(IpNet::V4(*net), seen, |net| match net {
                IpNet::V4(net) => Some(net),
                IpNet::V6(_) => None,
            }).unwrap_or(*net));
        }
        AddressSource::Detect(method) => {
            let choice = method.choose(IpFamily::V4, &host).map_err(|reason| AgentError::NoAddress { family: "IPv4", reason })?;
            own.why.push(format!("IPv4: {}, by {}", choice.net, choice.why));
            own.ipv4 = if let IpNet::V4(net) = choice.net { Some(net) } else { None };
        }
    }
    match &config.ipv6 {
        AddressSource::None => {}
        AddressSource::Fixed(net) => {
            own.why.push(format!("IPv6: {net}, by configuration"));
            own.ipv6 = Some(with_subnet(IpNet::V6(*net), seen, |net| match net {
                IpNet::V6(net) => Some(net),
                IpNet::V4(_) => None,
            }).unwrap_or(*net));
        }
        AddressSource::Detect(method) => {
            let choice = method.choose(IpFamily::V6, &host).map_err(|reason| AgentError::NoAddress { family: "IPv6", reason })?;
            own.why.push(format!("IPv6: {}, by {}", choice.net, choice.why));
            own.ipv6 = if let IpNet::V6(net) = choice.net { Some(net) } else { None };
        }
    }
    Ok(own)
}

/// A configured bare address takes the subnet's length from the interface that holds it, as upstream does.
fn with_subnet<N>(fixed: IpNet, seen: &Observation, family: impl Fn(IpNet) -> Option<N>) -> Option<N> {
    if fixed.prefix_len() < fixed.max_prefix_len() {
        return None;
    }
    seen.addresses.iter().find(|held| held.net.addr() == fixed.addr()).and_then(|held| family(held.net))
}

/// Registers the node: refuses an address that another node holds, creates or updates the Node.
pub async fn register(config: &Config, store: &SharedStore, own: &OwnAddresses) -> Result<Node, AgentError> {
    if config.check_address {
        refuse_taken_address(config, store, own).await?;
    }
    let node = update_node(store, &config.node_name, |node| {
        let bgp = node.spec.bgp.get_or_insert_with(NodeBgp::default);
        bgp.ipv4_address = own.ipv4;
        bgp.ipv6_address = own.ipv6;
        if let Some(as_number) = config.as_number {
            bgp.as_number = Some(as_number);
        }
    })
    .await?;
    ensure_cluster_information(store).await?;
    Ok(node)
}

async fn refuse_taken_address(config: &Config, store: &SharedStore, own: &OwnAddresses) -> Result<(), AgentError> {
    let ours: Vec<IpAddr> =
        own.ipv4.map(|net| IpAddr::V4(net.addr())).into_iter().chain(own.ipv6.map(|net| IpAddr::V6(net.addr()))).collect();
    for stored in store.list(&Scope::Kind(Kind::Node)).await?.items {
        let Resource::Node(node) = stored.resource else { continue };
        if node.metadata.name == config.node_name {
            continue;
        }
        let taken = node.spec.bgp.iter().flat_map(NodeBgp::addresses).find(|address| ours.contains(address));
        if let Some(address) = taken {
            clear_detected_address(config, store).await?;
            return Err(AgentError::AddressTaken { address, other: node.metadata.name });
        }
    }
    Ok(())
}

/// An address that was found, not given, must not stay registered for the node that may not have it.
async fn clear_detected_address(config: &Config, store: &SharedStore) -> Result<(), AgentError> {
    if !matches!(config.ipv4, AddressSource::Detect(_)) {
        return Ok(());
    }
    let key = Key::cluster(Kind::Node, &config.node_name);
    if store.get(&key).await?.is_some() {
        update_node(store, &config.node_name, |node| {
            if let Some(bgp) = &mut node.spec.bgp {
                bgp.ipv4_address = None;
            }
        })
        .await?;
    }
    Ok(())
}

/// Creates the Node or changes it under compare-and-swap.
pub async fn update_node(store: &SharedStore, name: &str, change: impl Fn(&mut Node)) -> Result<Node, StoreError> {
    let key = Key::cluster(Kind::Node, name);
    loop {
        let written = match store.get(&key).await? {
            Some(stored) => {
                let Resource::Node(mut node) = stored.resource else {
                    return Err(StoreError::Refused(format!("{key} holds another kind")));
                };
                let before = node.clone();
                change(&mut node);
                if node == before {
                    return Ok(node);
                }
                store.update(node.into(), &stored.revision).await
            }
            None => {
                let mut node = Node::new(name, NodeSpec::default());
                change(&mut node);
                stamp(&mut node.metadata);
                store.create(node.into()).await
            }
        };
        match written {
            Ok(stored) => match stored.resource {
                Resource::Node(node) => return Ok(node),
                _ => return Err(StoreError::Refused(format!("{key} came back as another kind"))),
            },
            Err(StoreError::Conflict(_) | StoreError::Exists(_) | StoreError::NotFound(_)) => continue,
            Err(error) => return Err(error),
        }
    }
}

/// The first agent of a cluster writes what `version` shows.
async fn ensure_cluster_information(store: &SharedStore) -> Result<(), StoreError> {
    let key = Key::cluster(Kind::ClusterInformation, "default");
    if store.get(&key).await?.is_some() {
        return Ok(());
    }
    let mut info = ClusterInformation::new(
        "default",
        ClusterInformationSpec {
            cluster_guid: Some(uuid::Uuid::new_v4().simple().to_string()),
            cluster_type: Some("bgp,margay".into()),
            calico_version: Some(concat!("margay-", env!("CARGO_PKG_VERSION")).into()),
            datastore_ready: Some(true),
            variant: Some("Calico".into()),
        },
    );
    stamp(&mut info.metadata);
    match store.create(info.into()).await {
        Ok(_) | Err(StoreError::Exists(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

fn stamp(metadata: &mut api::Metadata) {
    metadata.creation_timestamp = Some(Timestamp::now());
    metadata.uid = Some(uuid::Uuid::new_v4().to_string());
}

/// Makes the node hold an IPIP tunnel address and say so in its Node, or hold none. `pools` are those that use IP-in-IP.
pub async fn settle_tunnel_address(
    ipam: &Ipam,
    store: &SharedStore,
    node: &Node,
    pools: &[IpNet],
) -> Result<Option<Ipv4Addr>, AgentError> {
    let name = node.metadata.name.as_str();
    let tunnel = Tunnel {
        kind: TunnelKind::Ipip,
        node: name.to_string(),
        node_labels: node.metadata.labels.clone(),
        current: node.spec.bgp.as_ref().and_then(|bgp| bgp.ipv4_ipip_tunnel_addr).map(IpAddr::V4),
        pools: pools.iter().map(ToString::to_string).collect(),
    };
    let wanted = match ipam.settle_tunnel(Timestamp::now(), &tunnel).await? {
        Some(IpAddr::V4(address)) => Some(address),
        _ => None,
    };
    update_node(store, name, |node| {
        if let Some(bgp) = &mut node.spec.bgp {
            bgp.ipv4_ipip_tunnel_addr = wanted;
        }
    })
    .await?;
    Ok(wanted)
}
