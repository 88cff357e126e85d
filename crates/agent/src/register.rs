//! The node's own entry in the datastore: found address, conflict check, registration, tunnel address.

use std::net::{IpAddr, Ipv4Addr};

use api::{ClusterInformation, ClusterInformationSpec, Key, Kind, Node, NodeBgp, NodeSpec};
use datastore::{Edit, Scope, SharedStore, StoreError, modify};
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

/// Finds the node's addresses among those that the kernel shows. May ask a name server, and wait for it: not for a thread
/// that has something else to do.
pub fn own_addresses(config: &Config, seen: &Observation, internal_ips: &[IpAddr]) -> Result<OwnAddresses, AgentError> {
    let host = Host {
        links: &seen.links,
        addresses: &seen.addresses,
        internal_ips,
        source_towards: &source_towards,
    };
    let mut why = Vec::new();
    let narrow_v4 = |net| if let IpNet::V4(net) = net { Some(net) } else { None };
    let narrow_v6 = |net| if let IpNet::V6(net) = net { Some(net) } else { None };
    let ipv4 = own_address(IpFamily::V4, &config.ipv4, &host, narrow_v4, &mut why)?;
    let ipv6 = own_address(IpFamily::V6, &config.ipv6, &host, narrow_v6, &mut why)?;
    Ok(OwnAddresses { ipv4, ipv6, why })
}

fn own_address<Net: Copy + Into<IpNet>>(
    family: IpFamily,
    source: &AddressSource<Net>,
    host: &Host<'_>,
    narrow: impl Fn(IpNet) -> Option<Net>,
    why: &mut Vec<String>,
) -> Result<Option<Net>, AgentError> {
    let name = match family {
        IpFamily::V4 => "IPv4",
        IpFamily::V6 => "IPv6",
    };
    match source {
        AddressSource::None => {
            why.push(format!("{name}: none, by configuration"));
            Ok(None)
        }
        AddressSource::Fixed(fixed) => {
            let fixed: IpNet = (*fixed).into();
            let held = host.addresses.iter().find(|held| held.net.addr() == fixed.addr());
            // A bare address takes the subnet's length from the interface that holds it, as upstream does.
            let net = match held {
                Some(held) if fixed.prefix_len() == fixed.max_prefix_len() => held.net,
                _ => fixed,
            };
            let place = held.map_or("no interface has it".to_string(), |held| format!("on {}", held.device));
            why.push(format!("{name}: {net}, by configuration, {place}"));
            Ok(narrow(net))
        }
        AddressSource::Detect(method) => {
            let choice = method
                .choose(family, host)
                .map_err(|reason| AgentError::NoAddress { family: name, reason })?;
            why.push(format!("{name}: {}, by {}", choice.net, choice.why));
            Ok(narrow(choice.net))
        }
    }
}

/// The addresses by which Kubernetes knows a node.
pub fn internal_ips(node: &Node) -> Vec<IpAddr> {
    let internal = node
        .spec
        .addresses
        .iter()
        .filter(|address| address.kind.as_deref() == Some("InternalIP"));
    let bare = |text: &str| text.split('/').next().and_then(|address| address.parse().ok());
    internal.filter_map(|address| bare(&address.address)).collect()
}

/// This node's own entry, if it has one.
pub async fn read_node(store: &SharedStore, name: &str) -> Result<Option<Node>, StoreError> {
    let stored = store.get(&Key::cluster(Kind::Node, name)).await?;
    Ok(stored.and_then(|stored| Node::try_from(stored.resource).ok()))
}

/// Registers the node: refuses an address that another node holds, creates or updates the Node.
///
/// Two nodes that register one address at the same time do not see each other when they look, so each looks again after it
/// wrote: the later one takes its address back.
pub async fn register(config: &Config, store: &SharedStore, own: &OwnAddresses) -> Result<Node, AgentError> {
    if config.check_address
        && let Some((address, other)) = holder(config, store, own).await?
    {
        if is_detected(config, address) {
            // What was found, not given, must not stay registered for the node that may not have it.
            withdraw(config, store, address).await?;
        }
        return Err(AgentError::AddressTaken { address, other });
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
    if config.check_address
        && let Some((address, other)) = holder(config, store, own).await?
    {
        withdraw(config, store, address).await?;
        return Err(AgentError::AddressTaken { address, other });
    }
    ensure_cluster_information(store, &node).await?;
    Ok(node)
}

/// Which of our addresses belongs to another node, and to which. Of two nodes that have one address registered it belongs to
/// the older one; an address that is not registered for us yet belongs to whoever has it.
async fn holder(
    config: &Config,
    store: &SharedStore,
    own: &OwnAddresses,
) -> Result<Option<(IpAddr, String)>, AgentError> {
    let v4 = own.ipv4.map(|net| IpAddr::V4(net.addr()));
    let v6 = own.ipv6.map(|net| IpAddr::V6(net.addr()));
    let ours: Vec<IpAddr> = v4.into_iter().chain(v6).collect();
    let items = store.list(&Scope::Kind(Kind::Node)).await?.items;
    let nodes: Vec<Node> = items
        .into_iter()
        .filter_map(|stored| Node::try_from(stored.resource).ok())
        .collect();
    let has = |node: &Node, address: &IpAddr| {
        node.spec
            .bgp
            .iter()
            .any(|bgp| bgp.addresses().any(|held| held == *address))
    };
    let us = nodes.iter().find(|node| node.metadata.name == config.node_name);
    for other in nodes.iter().filter(|node| node.metadata.name != config.node_name) {
        let stands = |address: &&IpAddr| us.is_some_and(|us| has(us, address) && age(us) < age(other));
        let lost = ours.iter().find(|address| has(other, address) && !stands(address));
        if let Some(address) = lost {
            return Ok(Some((*address, other.metadata.name.clone())));
        }
    }
    Ok(None)
}

/// Sorts the older first, those of unknown age last: the order in which all nodes grant an address.
fn age(node: &Node) -> (bool, Option<Timestamp>, &str) {
    let created = node.metadata.creation_timestamp;
    (created.is_none(), created, &node.metadata.name)
}

fn is_detected(config: &Config, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => matches!(config.ipv4, AddressSource::Detect(_)),
        IpAddr::V6(_) => matches!(config.ipv6, AddressSource::Detect(_)),
    }
}

/// Takes an address out of our Node.
async fn withdraw(config: &Config, store: &SharedStore, address: IpAddr) -> Result<(), AgentError> {
    if read_node(store, &config.node_name).await?.is_none() {
        return Ok(());
    }
    update_node(store, &config.node_name, |node| {
        if let Some(bgp) = &mut node.spec.bgp {
            bgp.ipv4_address.take_if(|net| IpAddr::V4(net.addr()) == address);
            bgp.ipv6_address.take_if(|net| IpAddr::V6(net.addr()) == address);
        }
        node.spec.bgp.take_if(|bgp| *bgp == NodeBgp::default());
    })
    .await?;
    Ok(())
}

/// Creates the Node or changes it under compare-and-swap; writes nothing if nothing changes.
pub async fn update_node(store: &SharedStore, name: &str, change: impl Fn(&mut Node)) -> Result<Node, StoreError> {
    let key = Key::cluster(Kind::Node, name);
    modify(store.as_ref(), &key, |stored: Option<Node>| {
        let mut node = stored.clone().unwrap_or_else(|| Node::new(name, NodeSpec::default()));
        change(&mut node);
        if stored.is_none() {
            stamp(&mut node.metadata);
        }
        let edit = match stored.as_ref() == Some(&node) {
            true => Edit::Keep,
            false => Edit::Put(node.clone()),
        };
        Ok((edit, node))
    })
    .await
}

/// The first agent of a cluster writes what `version` shows.
async fn ensure_cluster_information(store: &SharedStore, own: &Node) -> Result<(), StoreError> {
    let key = Key::cluster(Kind::ClusterInformation, "default");
    if store.get(&key).await?.is_some() {
        return Ok(());
    }
    let mut info = ClusterInformation::new(
        "default",
        ClusterInformationSpec {
            cluster_guid: Some(uuid::Uuid::new_v4().simple().to_string()),
            cluster_type: Some(cluster_type(own).to_owned()),
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

/// As upstream has it (`startup.go`): the orchestrator, which a node's references name, and `kdd` where its API is the datastore.
/// Only the Kubernetes API gives a Node its reference, so they come together.
fn cluster_type(own: &Node) -> &'static str {
    match own.spec.orch_refs.iter().any(|it| it.orchestrator == "k8s") {
        true => "k8s,bgp,kdd,margay",
        false => "bgp,margay",
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
        current: node
            .spec
            .bgp
            .as_ref()
            .and_then(|bgp| bgp.ipv4_ipip_tunnel_addr)
            .map(IpAddr::V4),
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

#[cfg(test)]
mod tests;
