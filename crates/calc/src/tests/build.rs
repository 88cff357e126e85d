//! Resources from short texts.

use api::{
    AffinityState, AsNumber, BgpConfigurationSpec, BgpPeerSpec, BlockAffinitySpec, EncapMode, FelixConfigurationSpec,
    IpPoolSpec, NodeBgp, NodeSpec, Object, Resource, ServiceRange, Spec,
};

/// A node; `addresses` are `v4/len`, `v6/len` or nothing.
pub fn node(name: &str, addresses: &[&str]) -> Object<NodeSpec> {
    let mut bgp = NodeBgp::default();
    for address in addresses {
        match address.contains(':') {
            false => bgp.ipv4_address = Some(address.parse().unwrap()),
            true => bgp.ipv6_address = Some(address.parse().unwrap()),
        }
    }
    Object::new(
        name,
        NodeSpec {
            bgp: Some(bgp),
            ..NodeSpec::default()
        },
    )
}

/// The node's BGP section.
pub fn bgp_of(node: &mut Object<NodeSpec>) -> &mut NodeBgp {
    node.spec.bgp.get_or_insert_default()
}

pub fn labelled<S: Spec>(mut object: Object<S>, labels: &[(&str, &str)]) -> Object<S> {
    object.metadata.labels = labels
        .iter()
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .collect();
    object
}

/// An object created at this second.
pub fn created<S: Spec>(mut object: Object<S>, second: i64) -> Object<S> {
    let time = format!("2026-01-01T00:{:02}:{:02}Z", second / 60, second % 60);
    object.metadata.creation_timestamp = Some(time.parse().unwrap());
    object
}

pub fn pool(name: &str, cidr: &str, ipip: EncapMode) -> Object<IpPoolSpec> {
    Object::new(
        name,
        IpPoolSpec {
            ipip_mode: ipip,
            ..IpPoolSpec::new(cidr.parse().unwrap())
        },
    )
}

pub fn affinity(node: &str, cidr: &str, state: AffinityState) -> Object<BlockAffinitySpec> {
    let cidr = cidr.parse().unwrap();
    let spec = BlockAffinitySpec {
        state,
        node: node.into(),
        affinity_type: None,
        cidr,
        deleted: false,
    };
    Object::new(api::names::affinity_name(node, cidr), spec)
}

pub fn bgp(name: &str, change: impl FnOnce(&mut BgpConfigurationSpec)) -> Resource {
    let mut spec = BgpConfigurationSpec::default();
    change(&mut spec);
    Object::new(name, spec).into()
}

/// Ranges of services.
pub fn ranges(cidrs: &[&str]) -> Vec<ServiceRange> {
    let range = |cidr: &&str| ServiceRange {
        cidr: Some(cidr.parse().unwrap()),
    };
    cidrs.iter().map(range).collect()
}

pub fn peer(name: &str, change: impl FnOnce(&mut BgpPeerSpec)) -> Resource {
    let mut spec = BgpPeerSpec::default();
    change(&mut spec);
    Object::new(name, spec).into()
}

pub fn felix(name: &str, change: impl FnOnce(&mut FelixConfigurationSpec)) -> Object<FelixConfigurationSpec> {
    let mut spec = FelixConfigurationSpec::default();
    change(&mut spec);
    Object::new(name, spec)
}

pub fn asn(number: u32) -> Option<AsNumber> {
    Some(AsNumber(number))
}
