//! Random states of policy, and packets that are likely to hit what they say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use api::Action;
use ipnet::IpNet;
use policy::*;

use super::build::*;

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((value ^ (value >> 31)) % limit as u64).unwrap()
    }

    pub fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    pub fn some<T: Clone>(&mut self, most: usize, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(most + 1)).map(|_| make(self)).collect()
    }
}

pub const DEVICES: [&str; 4] = ["cali1", "cali2", "cali3", "cali4"];
pub const ADDRESSES: [&str; 12] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "10.0.0.4",
    "10.0.1.1",
    "192.0.2.9",
    "fd00::1",
    "fd00::2",
    "fd00::3",
    "fd00::4",
    "fd00:1::1",
    "2001:db8::9",
];
const NETS: [&str; 12] = [
    "10.0.0.0/30",
    "10.0.0.0/24",
    "10.0.0.2/32",
    "10.0.1.0/24",
    "0.0.0.0/0",
    "192.0.2.0/24",
    "fd00::/126",
    "fd00::/64",
    "fd00::2/128",
    "fd00:1::/64",
    "::/0",
    "2001:db8::/32",
];
const PROTOCOLS: [u8; 7] = [6, 17, 132, 136, 1, 58, 47];
const PORTS: [u16; 6] = [1, 53, 80, 81, 443, 65535];
pub const NET_SETS: [&str; 3] = ["nets-a", "nets-b", "nets-c"];
pub const PORT_SETS: [&str; 3] = ["ports-a", "ports-b", "ports-c"];
pub const PROFILES: [&str; 3] = ["kns.default", "kns.other", "missing"];

pub fn policies() -> Vec<PolicyId> {
    vec![np("a"), np("b"), np("c"), gnp("d"), gnp("e"), gnp("f")]
}

pub fn address(random: &mut Random) -> IpAddr {
    let text = random.pick(&ADDRESSES);
    ip(text)
}

fn range(random: &mut Random) -> (u16, u16) {
    let (one, other) = (random.pick(&PORTS), random.pick(&PORTS));
    if random.one_in(2) {
        (one, one)
    } else {
        (one.min(other), one.max(other))
    }
}

/// Members that do not overlap.
pub fn set_of(random: &mut Random, id: &str) -> Set {
    if PORT_SETS.contains(&id) {
        let members = random.some(6, |random| {
            Member::Port(address(random), random.pick(&PROTOCOLS[..4]), random.pick(&PORTS))
        });
        return Set {
            kind: SetKind::Ports,
            meaning: id.to_owned(),
            members: members.into_iter().collect(),
        };
    }
    let hosts_only = random.one_in(2);
    let candidates: Vec<IpNet> = random.some(6, |random| match hosts_only {
        true => address(random).into(),
        false => net(random.pick(&NETS)),
    });
    Set {
        kind: SetKind::Nets,
        meaning: id.to_owned(),
        members: without_overlap(candidates),
    }
}

pub fn without_overlap(mut nets: Vec<IpNet>) -> BTreeSet<Member> {
    nets.sort_by_key(IpNet::prefix_len);
    let mut kept: Vec<IpNet> = Vec::new();
    for net in nets {
        if !kept.iter().any(|there| there.contains(&net)) {
            kept.push(net);
        }
    }
    kept.into_iter().map(Member::Net).collect()
}

fn side(random: &mut Random, ported: bool) -> Side {
    let mut side = Side::default();
    let rarely = |random: &mut Random| random.one_in(5);
    if rarely(random) {
        side.nets = random.some(3, |random| net(random.pick(&NETS)));
    }
    if rarely(random) {
        side.not_nets = random.some(2, |random| net(random.pick(&NETS)));
    }
    if rarely(random) {
        side.sets = random.some(2, |random| set(random.pick(&NET_SETS)));
    }
    if rarely(random) {
        side.not_sets = random.some(2, |random| set(random.pick(&NET_SETS)));
    }
    if ported && rarely(random) {
        side.ports = random.some(3, range);
    }
    if rarely(random) {
        side.named_ports = random.some(2, |random| set(random.pick(&PORT_SETS)));
    }
    if ported && rarely(random) {
        side.not_ports = random.some(2, range);
    }
    if rarely(random) {
        side.not_named_ports = random.some(2, |random| set(random.pick(&PORT_SETS)));
    }
    if random.one_in(9) {
        side.services = random.some(2, |random| set(random.pick(&PORT_SETS)));
    }
    side
}

pub fn rule_of(random: &mut Random) -> Rule {
    let action = random.pick(&[Action::Allow, Action::Allow, Action::Deny, Action::Pass, Action::Log]);
    let mut rule = rule(action);
    if random.one_in(4) {
        rule.family = Some(random.pick(&[Family::V4, Family::V6]));
    }
    // Validation asks for a protocol where there are port numbers; without one they still mean something.
    if random.one_in(2) {
        rule.protocol = Some(random.pick(&PROTOCOLS));
    }
    if random.one_in(5) {
        rule.not_protocol = Some(random.pick(&PROTOCOLS));
    }
    let icmp = |random: &mut Random| {
        let code = random.one_in(2).then_some(0);
        (random.pick(&[8, 128, 3]), code)
    };
    if random.one_in(8) {
        rule.icmp = Some(icmp(random));
    }
    if random.one_in(8) {
        rule.not_icmp = Some(icmp(random));
    }
    rule.source = side(random, true);
    rule.destination = side(random, true);
    rule
}

pub fn policy_of(random: &mut Random) -> Policy {
    policy(random.some(4, rule_of), random.some(4, rule_of))
}

pub fn profile_of(random: &mut Random) -> Profile {
    let rules = |random: &mut Random| {
        let rules = random.some(2, rule_of).into_iter();
        rules.filter(|rule| rule.action != Action::Pass).collect()
    };
    Profile {
        ingress: rules(random),
        egress: rules(random),
        missing: false,
    }
}

/// Tiers, in each of which a policy is asked once.
fn direction(random: &mut Random, may_deny: bool, ids: &[PolicyId]) -> Direction {
    let ids = ids.to_vec();
    let tiers = random.some(3, |random| {
        let policies: BTreeSet<PolicyId> = random.some(3, |random| random.pick(&ids)).into_iter().collect();
        let end = match may_deny && !policies.is_empty() && random.one_in(2) {
            true => TierEnd::Deny,
            false => TierEnd::Pass,
        };
        (policies.into_iter().collect::<Vec<_>>(), end)
    });
    let tier = |(index, (policies, end)): (usize, (Vec<PolicyId>, TierEnd))| Tier {
        name: format!("tier{index}"),
        policies,
        staged: Vec::new(),
        end,
    };
    Direction {
        tiers: tiers.into_iter().enumerate().map(tier).collect(),
    }
}

pub fn pod_of(random: &mut Random, index: usize) -> Endpoint {
    let ids = policies();
    let mut endpoint = pod(DEVICES[index], &[ADDRESSES[index], ADDRESSES[index + 6]]);
    endpoint.ingress = direction(random, true, &ids);
    endpoint.egress = direction(random, true, &ids);
    endpoint.profiles = random.some(2, |random| random.pick(&PROFILES).to_owned());
    if random.one_in(12) {
        endpoint.closed = Some("a selector cannot be read".to_owned());
    }
    endpoint
}

pub fn host_of(random: &mut Random, interface: Interface) -> Endpoint {
    let ids = policies();
    let mut endpoint = endpoint(interface);
    endpoint.ingress = direction(random, true, &ids);
    endpoint.egress = direction(random, true, &ids);
    if random.one_in(2) {
        endpoint.forward = HostHook {
            ingress: direction(random, true, &ids),
            egress: direction(random, true, &ids),
        };
    }
    if random.one_in(2) {
        endpoint.pre_dnat = direction(random, false, &ids);
    }
    if random.one_in(2) {
        endpoint.untracked = HostHook {
            ingress: direction(random, false, &ids),
            egress: direction(random, false, &ids),
        };
    }
    endpoint.profiles = random.some(2, |random| random.pick(&PROFILES).to_owned());
    endpoint
}

/// A whole state in which every name leads somewhere.
pub fn state(random: &mut Random) -> PolicyState {
    let sets = NET_SETS
        .iter()
        .chain(&PORT_SETS)
        .map(|id| (set(id), set_of(random, id)))
        .collect();
    let policies = policies()
        .into_iter()
        .map(|id| (id, Arc::new(policy_of(random))))
        .collect();
    let mut profiles: BTreeMap<String, Arc<Profile>> = BTreeMap::new();
    for name in &PROFILES[..2] {
        profiles.insert((*name).to_owned(), Arc::new(profile_of(random)));
    }
    let missing = Profile {
        missing: true,
        ..Profile::default()
    };
    profiles.insert(PROFILES[2].to_owned(), Arc::new(missing));
    let mut endpoints: BTreeMap<EndpointId, Arc<Endpoint>> = BTreeMap::new();
    for (index, device) in DEVICES.iter().enumerate() {
        if !random.one_in(4) {
            endpoints.insert(wep(device), Arc::new(pod_of(random, index)));
        }
    }
    if random.one_in(2) {
        endpoints.insert(hep("eth0"), Arc::new(host_of(random, Interface::Named("eth0".into()))));
    }
    if random.one_in(3) {
        endpoints.insert(hep("all"), Arc::new(host_of(random, Interface::All)));
    }
    PolicyState {
        endpoints,
        policies,
        profiles,
        sets,
    }
}

/// A packet as policy sees it, from one of some addresses to one of its family.
pub fn packet_of(random: &mut Random, source: IpAddr, destination: IpAddr) -> evaluate::Packet {
    let protocol = random.pick(&PROTOCOLS);
    let has_ports = PROTOCOLS[..4].contains(&protocol);
    let is_icmp = [1, 58].contains(&protocol);
    evaluate::Packet {
        source,
        destination,
        protocol,
        source_port: has_ports.then(|| random.pick(&PORTS)),
        destination_port: has_ports.then(|| random.pick(&PORTS)),
        icmp: is_icmp.then(|| (random.pick(&[8, 128, 3]), random.pick(&[0, 1]))),
    }
}
