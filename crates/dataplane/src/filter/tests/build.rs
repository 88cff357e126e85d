//! Short ways to say what tests need.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use api::{Action, Key, Kind};
use kernel::nft::{CtState, FakeNft, TableName, Transaction};
use policy::*;

use crate::filter::interpret::Packet;
use crate::filter::{Filter, TABLE};

pub fn wep(device: &str) -> EndpointId {
    EndpointId::Workload(Key::namespaced(
        Kind::WorkloadEndpoint,
        "default",
        format!("n1-k8s-{device}-eth0"),
    ))
}

pub fn hep(name: &str) -> EndpointId {
    EndpointId::Host(name.to_owned())
}

pub fn np(name: &str) -> PolicyId {
    Key::namespaced(Kind::NetworkPolicy, "default", name)
}

pub fn gnp(name: &str) -> PolicyId {
    Key::cluster(Kind::GlobalNetworkPolicy, name)
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn net(text: &str) -> ipnet::IpNet {
    text.parse().unwrap()
}

pub fn endpoint(interface: Interface) -> Endpoint {
    Endpoint {
        interface,
        labels: BTreeMap::new(),
        addresses: Vec::new(),
        spoofable: Vec::new(),
        ingress: Direction::default(),
        egress: Direction::default(),
        forward: HostHook::default(),
        pre_dnat: Direction::default(),
        untracked: HostHook::default(),
        profiles: Vec::new(),
        closed: None,
    }
}

pub fn pod(device: &str, addresses: &[&str]) -> Endpoint {
    Endpoint {
        addresses: addresses.iter().map(|address| ip(address)).collect(),
        ..endpoint(Interface::Named(device.to_owned()))
    }
}

pub fn tier(name: &str, policies: &[PolicyId], end: TierEnd) -> Direction {
    Direction {
        tiers: Arc::new([Tier {
            name: name.to_owned(),
            policies: policies.to_vec(),
            staged: Vec::new(),
            end,
        }]),
    }
}

pub fn rule(action: Action) -> Rule {
    Rule {
        index: 0,
        action,
        family: None,
        protocol: None,
        not_protocol: None,
        icmp: None,
        not_icmp: None,
        source: Side::default(),
        destination: Side::default(),
    }
}

pub fn policy(ingress: Vec<Rule>, egress: Vec<Rule>) -> Policy {
    let numbered = |rules: Vec<Rule>| {
        let rules = rules.into_iter().enumerate();
        rules.map(|(index, rule)| Rule { index, ..rule }).collect()
    };
    Policy {
        tier: "default".to_owned(),
        selector: "all()".to_owned(),
        ingress: numbered(ingress),
        egress: numbered(egress),
    }
}

pub fn set(id: &str) -> SetId {
    SetId(id.to_owned())
}

pub fn nets(members: &[&str]) -> Set {
    Set {
        kind: SetKind::Nets,
        meaning: String::new(),
        members: members.iter().map(|text| member(text)).collect(),
    }
}

pub fn ports(members: &[(&str, u8, u16)]) -> Set {
    Set {
        kind: SetKind::Ports,
        meaning: String::new(),
        members: members
            .iter()
            .map(|(address, protocol, port)| Member::Port(ip(address), *protocol, *port))
            .collect(),
    }
}

pub fn member(text: &str) -> Member {
    Member::Net(if text.contains('/') { net(text) } else { ip(text).into() })
}

pub fn members(texts: &[&str]) -> BTreeSet<Member> {
    texts.iter().map(|text| member(text)).collect()
}

/// The changes that make an empty state this one.
pub fn changes(state: &PolicyState) -> Vec<PolicyChange> {
    let sets = state
        .sets
        .iter()
        .map(|(id, set)| PolicyChange::Set(id.clone(), set.clone()));
    let policies = state
        .policies
        .iter()
        .map(|(id, policy)| PolicyChange::Policy(id.clone(), Some(policy.clone())));
    let profiles = state
        .profiles
        .iter()
        .map(|(name, profile)| PolicyChange::Profile(name.clone(), Some(profile.clone())));
    let endpoints = state
        .endpoints
        .iter()
        .map(|(id, endpoint)| PolicyChange::Endpoint(id.clone(), Some(endpoint.clone())));
    sets.chain(policies).chain(profiles).chain(endpoints).collect()
}

/// A filter that knows a state and has seen a kernel without our table.
pub fn filter(state: &PolicyState) -> Filter {
    let mut filter = Filter::default();
    filter.observed(None);
    filter.in_sync();
    changes(state).into_iter().for_each(|change| filter.policy(change));
    filter
}

pub fn table() -> TableName {
    TableName(TABLE.to_owned())
}

/// Does what the filter says until it says nothing more.
pub fn settle(filter: &mut Filter, kernel: &FakeNft) -> Vec<Transaction> {
    let mut done = Vec::new();
    for _ in 0..200 {
        if filter.wants_look() {
            filter.observed(kernel.seen(&table()).as_ref());
        }
        let Some(transaction) = filter.transaction() else {
            return done;
        };
        filter.done(kernel.apply_now(&transaction));
        done.push(transaction);
    }
    panic!("no end of transactions; problems: {:?}", filter.problems());
}

pub fn put_policy(state: &mut PolicyState, id: PolicyId, policy: Policy) {
    state.policies.insert(id, Arc::new(policy));
}

/// The first packet of a TCP flow from one device to another.
pub fn packet(in_device: &str, source: &str, out_device: &str, destination: &str, port: u16) -> Packet {
    let device = |name: &str| (!name.is_empty()).then(|| name.to_owned());
    Packet {
        in_device: device(in_device),
        out_device: device(out_device),
        source: ip(source),
        destination: ip(destination),
        protocol: 6,
        ports: Some((40000, port)),
        icmp: None,
        state: CtState::New,
        translated: false,
        mark: 0,
        from_here: in_device.is_empty(),
        to_here: out_device.is_empty(),
    }
}
