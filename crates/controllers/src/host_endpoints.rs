//! Automatic host endpoints: which there are to be, and what is to be done so that there are.
//!
//! They are known by a label. One without it is somebody's own, whatever it is called, and is never touched.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::names::is_subdomain;
use api::{HostEndpoint, HostEndpointSpec, HostEndpointTemplate, Kind, Node, NodeSpec, Resource, Selector};
use ipnet::IpNet;
use sha2::{Digest, Sha256};

use crate::action::Action;
use crate::nodes::Attendance;
use crate::settings::NodeSettings;
use crate::world::World;

/// The label of automatic host endpoints, and its value (upstream's).
pub const CREATED_BY: (&str, &str) = ("projectcalico.org/created-by", "calico-kube-controllers");
/// The profile of automatic host endpoints: without policy everything passes.
const PROFILE: &str = "projectcalico-default-allow";
/// Longest name of an object.
const MOST_CHARACTERS: usize = 253;

/// What to do, and what cannot be done.
pub fn decide(settings: &NodeSettings, world: &World, attendance: &Attendance) -> (Vec<Action>, Vec<String>) {
    let (mut actions, mut problems) = (Vec::new(), Vec::new());
    let mut wanted = wanted(settings, world, &mut problems);
    for current in world.all::<HostEndpointSpec>() {
        let name = &current.metadata.name;
        let desired = wanted.remove(name);
        match (is_automatic(current), desired) {
            (false, None) => {}
            (false, Some(_)) => problems.push(format!(
                "HostEndpoint({name}) is in the way of an automatic one: rename it, or give it the label {}={}",
                CREATED_BY.0, CREATED_BY.1
            )),
            (true, Some(desired)) if differs(current, &desired) => {
                actions.push(Action::PutHostEndpoint(Box::new(desired)));
            }
            (true, Some(_)) => {}
            (true, None) => {
                let node = &current.spec.node;
                let is_there = world.get::<NodeSpec>(node).is_some();
                let gone = attendance.gone.contains_key(node);
                // Of a node that is neither there nor gone nothing is known yet.
                if settings.auto_create && !is_there && !gone {
                    continue;
                }
                actions.push(Action::DeleteHostEndpoint {
                    name: name.clone(),
                    gone: Some(node.clone()).filter(|_| settings.auto_create && gone),
                });
            }
        }
    }
    // Writing over one that cannot be read is refused.
    for current in world.of_kind(Kind::HostEndpoint) {
        let name = &current.metadata().name;
        if matches!(current, Resource::Wrong(_)) && wanted.remove(name).is_some() {
            problems.push(format!(
                "HostEndpoint({name}) cannot be read: put it right, or delete it"
            ));
        }
    }
    actions.extend(
        wanted
            .into_values()
            .map(|endpoint| Action::PutHostEndpoint(Box::new(endpoint))),
    );
    (actions, problems)
}

/// Whether a host endpoint is ours.
pub fn is_automatic(endpoint: &HostEndpoint) -> bool {
    endpoint.metadata.labels.get(CREATED_BY.0).map(String::as_str) == Some(CREATED_BY.1)
}

/// Whether a host endpoint is not as it is to be. What is not ours to say (ports) does not count.
pub fn differs(current: &HostEndpoint, wanted: &HostEndpoint) -> bool {
    let (now, then) = (&current.spec, &wanted.spec);
    current.metadata.labels != wanted.metadata.labels
        || !wanted
            .metadata
            .annotations
            .iter()
            .all(|(key, value)| current.metadata.annotations.get(key) == Some(value))
        || (&now.node, &now.interface_name, &now.expected_ips, &now.profiles)
            != (&then.node, &then.interface_name, &then.expected_ips, &then.profiles)
}

fn wanted(settings: &NodeSettings, world: &World, problems: &mut Vec<String>) -> BTreeMap<String, HostEndpoint> {
    let mut all = BTreeMap::new();
    if !settings.auto_create {
        return all;
    }
    for node in world.all::<NodeSpec>() {
        let mut endpoints = Vec::new();
        if settings.default_host_endpoint {
            endpoints.push(default_endpoint(node));
        }
        for template in &settings.templates {
            endpoints.extend(from_template(node, template, problems));
        }
        for endpoint in endpoints {
            let name = endpoint.metadata.name.clone();
            if let Some(other) = all.insert(name.clone(), endpoint) {
                problems.push(format!(
                    "HostEndpoint({name}) follows from more than one template, for {} and {}: give them other names",
                    other.spec.node, node.metadata.name
                ));
            }
        }
    }
    problems.sort();
    problems.dedup();
    all
}

fn default_endpoint(node: &Node) -> HostEndpoint {
    let spec = HostEndpointSpec {
        node: node.metadata.name.clone(),
        interface_name: HostEndpointSpec::ALL_INTERFACES.to_owned(),
        expected_ips: addresses(node),
        profiles: vec![PROFILE.to_owned()],
        ports: Vec::new(),
    };
    endpoint(&[&node.metadata.name], node, &BTreeMap::new(), spec)
}

fn from_template(node: &Node, template: &HostEndpointTemplate, problems: &mut Vec<String>) -> Vec<HostEndpoint> {
    let name = &template.generate_name;
    let selects = Selector::parse(&template.node_selector).map(|selector| selector.evaluate(&node.metadata.labels));
    let pattern = template.pattern();
    let (selects, pattern) = match (selects, pattern) {
        (Ok(selects), Ok(pattern)) => (selects, pattern),
        (Err(error), _) => {
            problems.push(format!("template {name}: nodeSelector {error}"));
            return Vec::new();
        }
        (_, Err(error)) => {
            problems.push(format!("template {name}: interfacePattern {error}"));
            return Vec::new();
        }
    };
    if !selects {
        return Vec::new();
    }
    let in_range = |address: &IpAddr| {
        let ranges = &template.interface_cidrs;
        ranges.is_empty() || ranges.iter().any(|range| range.contains(address))
    };
    let node_name = node.metadata.name.as_str();
    let build = |parts: &[&str], interface: &str, expected_ips: Vec<IpAddr>| {
        let spec = HostEndpointSpec {
            node: node_name.to_owned(),
            interface_name: interface.to_owned(),
            expected_ips,
            profiles: vec![PROFILE.to_owned()],
            ports: Vec::new(),
        };
        let mut built = endpoint(parts, node, &template.labels, spec);
        built.metadata.annotations = template.annotations.clone();
        built
    };
    let Some(pattern) = pattern else {
        let own: Vec<IpAddr> = addresses(node).into_iter().filter(in_range).collect();
        // Without addresses it would be no interface's.
        return match own.is_empty() {
            true => Vec::new(),
            false => vec![build(&[node_name, name], "", own)],
        };
    };
    let matching = node
        .spec
        .interfaces
        .iter()
        .filter(|interface| pattern.is_match(&interface.name));
    matching
        .filter_map(|interface| {
            let own: Vec<IpAddr> = interface
                .addresses
                .iter()
                .filter_map(|text| bare(text))
                .filter(in_range)
                .collect();
            let fits = template.interface_cidrs.is_empty() || !own.is_empty();
            fits.then(|| build(&[node_name, name, &interface.name], &interface.name, own))
        })
        .collect()
}

fn endpoint(parts: &[&str], node: &Node, labels: &BTreeMap<String, String>, spec: HostEndpointSpec) -> HostEndpoint {
    let mut endpoint = HostEndpoint::new(endpoint_name(parts), spec);
    endpoint.metadata.labels = node.metadata.labels.clone();
    endpoint.metadata.labels.extend(labels.clone());
    endpoint
        .metadata
        .labels
        .insert(CREATED_BY.0.to_owned(), CREATED_BY.1.to_owned());
    endpoint
}

/// `<node>-auto-hep`, `<node>-<template>-auto-hep`, `<node>-<template>-<interface>-auto-hep`. What no object may be called
/// (interfaces may have capitals and `_`) gets a hash in the place of what stands behind the node.
fn endpoint_name(parts: &[&str]) -> String {
    let plain = format!("{}-auto-hep", parts.join("-"));
    if is_subdomain(&plain) && plain.len() <= MOST_CHARACTERS {
        return plain;
    }
    let digest = Sha256::digest(parts.join("/").as_bytes());
    let hash: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let node = parts.first().copied().unwrap_or_default();
    let most = MOST_CHARACTERS - "--auto-hep".len() - hash.len();
    let node = node
        .get(..most.min(node.len()))
        .unwrap_or_default()
        .trim_end_matches(['-', '.']);
    format!("{node}-{hash}-auto-hep")
}

/// All addresses of a node that its host answers to, in upstream's order: its own, its tunnels', the internal ones.
fn addresses(node: &Node) -> Vec<IpAddr> {
    let spec = &node.spec;
    let bgp = spec.bgp.clone().unwrap_or_default();
    let wireguard = spec.wireguard.clone().unwrap_or_default();
    let known = [
        bgp.ipv4_address.map(|net| IpAddr::V4(net.addr())),
        bgp.ipv6_address.map(|net| IpAddr::V6(net.addr())),
        bgp.ipv4_ipip_tunnel_addr.map(IpAddr::V4),
        spec.ipv4_vxlan_tunnel_addr.map(IpAddr::V4),
        spec.ipv6_vxlan_tunnel_addr.map(IpAddr::V6),
        wireguard.interface_ipv4_address.map(IpAddr::V4),
        wireguard.interface_ipv6_address.map(IpAddr::V6),
    ];
    let internal = spec
        .addresses
        .iter()
        .filter(|address| address.kind.as_deref() == Some("InternalIP"));
    let internal = internal.filter_map(|address| bare(&address.address));
    let mut all: Vec<IpAddr> = Vec::new();
    for address in known.into_iter().flatten().chain(internal) {
        if !all.contains(&address) {
            all.push(address);
        }
    }
    all
}

/// An address, with or without a prefix length.
fn bare(text: &str) -> Option<IpAddr> {
    text.parse::<IpNet>()
        .map(|net| net.addr())
        .or_else(|_| text.parse())
        .ok()
}

#[cfg(test)]
mod tests;
