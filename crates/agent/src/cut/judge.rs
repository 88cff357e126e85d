//! Which endpoints a change of policy concerns, and whether a flow that is there would be let in today. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use linux::conntrack::{Detail, ENDED, EXPECTED, Flow};
use policy::evaluate::{Outcome, Packet, Way, evaluate};
use policy::{EndpointId, PolicyChange, PolicyState, Rule};

use super::Devices;
use super::host::{Guard, Side};

/// The endpoints that these changes concern: what they are, their policies, their profiles, or sets that these use; and host
/// endpoints that are gone.
pub fn concerned(state: &PolicyState, changes: &[PolicyChange]) -> BTreeSet<EndpointId> {
    let mut endpoints = BTreeSet::new();
    let (mut policies, mut profiles, mut sets) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for change in changes {
        match change {
            PolicyChange::Set(id, _) | PolicyChange::Members(id, ..) | PolicyChange::SetGone(id) => {
                sets.insert(id);
            }
            PolicyChange::Policy(id, _) => drop(policies.insert(id)),
            PolicyChange::Profile(name, _) => drop(profiles.insert(name)),
            PolicyChange::Endpoint(id, Some(_)) => drop(endpoints.insert(id.clone())),
            PolicyChange::Endpoint(id @ EndpointId::Host(_), None) => drop(endpoints.insert(id.clone())),
            PolicyChange::Endpoint(EndpointId::Workload(_), None) => {}
        }
    }
    let uses = |rules: &[Rule]| {
        rules
            .iter()
            .any(|rule| !sets.is_empty() && sets_of(rule).any(|set| sets.contains(set)))
    };
    for (id, policy) in &state.policies {
        if uses(&policy.ingress) || uses(&policy.egress) {
            policies.insert(id);
        }
    }
    for (name, profile) in &state.profiles {
        if uses(&profile.ingress) || uses(&profile.egress) {
            profiles.insert(name);
        }
    }
    for (id, endpoint) in &state.endpoints {
        let directions = [
            &endpoint.ingress,
            &endpoint.egress,
            &endpoint.forward.ingress,
            &endpoint.forward.egress,
            &endpoint.pre_dnat,
            &endpoint.untracked.ingress,
            &endpoint.untracked.egress,
        ];
        let asks = directions
            .into_iter()
            .flat_map(|direction| direction.tiers.iter())
            .flat_map(|tier| &tier.policies)
            .any(|policy| policies.contains(policy));
        if asks || endpoint.profiles.iter().any(|profile| profiles.contains(profile)) {
            endpoints.insert(id.clone());
        }
    }
    endpoints
}

fn sets_of(rule: &Rule) -> impl Iterator<Item = &policy::SetId> {
    [&rule.source, &rule.destination].into_iter().flat_map(|side| {
        let lists = [
            &side.sets,
            &side.not_sets,
            &side.named_ports,
            &side.not_named_ports,
            &side.services,
        ];
        lists.into_iter().flatten()
    })
}

/// What is to happen to flows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// Forbidden: to be ended.
    pub forbidden: Vec<Flow>,
    /// Ended, but no longer forbidden: to be forgotten, so that they can begin again.
    pub pardoned: Vec<Flow>,
}

/// Judges flows by what policy says now.
pub struct Judge<'a> {
    state: &'a PolicyState,
    pods: BTreeMap<IpAddr, &'a EndpointId>,
    /// Addresses of this host, whose packets pods always accept.
    own: &'a BTreeSet<IpAddr>,
    guard: &'a Guard,
    /// Where the ends of flows are.
    devices: &'a Devices,
}

impl<'a> Judge<'a> {
    /// A judge for the pods of this state on a host with these addresses, of flows whose ends are behind these devices.
    pub fn new(state: &'a PolicyState, own: &'a BTreeSet<IpAddr>, guard: &'a Guard, devices: &'a Devices) -> Self {
        let workloads = state
            .endpoints
            .iter()
            .filter(|(id, _)| matches!(id, EndpointId::Workload(_)));
        let pods = workloads.flat_map(|(id, endpoint)| endpoint.addresses.iter().map(move |address| (*address, id)));
        Self {
            state,
            pods: pods.collect(),
            own,
            guard,
            devices,
        }
    }

    /// Sorts out what has to change.
    pub fn judge(&self, flows: Vec<Flow>) -> Judged {
        let mut judged = Judged::default();
        for flow in flows {
            match (self.forbids(&flow), flow.status & ENDED != 0) {
                (true, false) => judged.forbidden.push(flow),
                (false, true) => judged.pardoned.push(flow),
                (true, true) | (false, false) => {}
            }
        }
        judged
    }

    /// Whether the flow's first packet would be dropped today. One that another flow announced (FTP's data) was not let in by
    /// a rule, and is not judged by one.
    pub fn forbids(&self, flow: &Flow) -> bool {
        if flow.status & EXPECTED != 0 {
            return false;
        }
        let packet = first_packet(flow);
        let denies = |id: &EndpointId, way| evaluate(self.state, id, way, &packet).outcome == Outcome::Deny;
        let from = self.pods.get(&packet.source);
        let to = self
            .pods
            .get(&packet.destination)
            .filter(|_| !self.is_own(&packet.source));
        from.is_some_and(|id| denies(id, Way::Egress))
            || to.is_some_and(|id| denies(id, Way::Ingress))
            || self.host_denies(flow, &packet)
    }

    /// What this host exchanges with others (its own pods' packets meet only what is asked before routing), and what it
    /// forwards.
    fn host_denies(&self, flow: &Flow, packet: &Packet) -> bool {
        let (guard, state, before) = (self.guard, self.state, untranslated(flow));
        let ends = [packet.source, packet.destination];
        let sides = ends.map(|address| self.side(&address));
        match (ends.map(|address| self.is_own(&address)), sides) {
            ([true, true], _) | ([true, false], [_, Side::Pod]) => false,
            ([true, false], _) => guard.denies(state, Way::Egress, packet, &before),
            ([false, true], [Side::Device(_) | Side::Elsewhere, _]) => {
                guard.denies(state, Way::Ingress, packet, &before)
            }
            ([false, true], _) | ([false, false], _) => guard.denies_forwarded(state, sides, packet, &before),
        }
    }

    /// Where an address is.
    fn side(&self, address: &IpAddr) -> Side<'a> {
        match (self.pods.get(address), self.devices.get(address)) {
            (Some(_), _) => Side::Pod,
            (None, Some(device)) => Side::Device(device),
            (None, None) => Side::Elsewhere,
        }
    }

    fn is_own(&self, address: &IpAddr) -> bool {
        address.is_loopback() || self.own.contains(address)
    }
}

/// The first packet of a flow before its destination was translated.
fn untranslated(flow: &Flow) -> Packet {
    let detail = match flow.original.detail {
        Detail::Ports { destination, .. } => Some(destination),
        Detail::Icmp { .. } | Detail::None => None,
    };
    Packet {
        destination: flow.original.destination,
        destination_port: detail,
        ..first_packet(flow)
    }
}

/// The first packet of a flow as policy saw it: after its destination was translated, before its source was. The translated
/// destination is where answers come from.
fn first_packet(flow: &Flow) -> Packet {
    let ports = |detail| match detail {
        Detail::Ports { source, destination } => (Some(source), Some(destination)),
        Detail::Icmp { .. } | Detail::None => (None, None),
    };
    Packet {
        source: flow.original.source,
        destination: flow.reply.source,
        protocol: flow.original.protocol,
        source_port: ports(flow.original.detail).0,
        destination_port: ports(flow.reply.detail).0,
        icmp: match flow.original.detail {
            Detail::Icmp { kind, code, .. } => Some((kind, code)),
            Detail::Ports { .. } | Detail::None => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use api::{Action, Key, Kind};
    use linux::conntrack::Tuple;
    use policy::{Direction, Endpoint, HostHook, Interface, Member, Policy, Set, SetId, SetKind, Side, Tier, TierEnd};

    use super::*;

    fn wep(name: &str) -> EndpointId {
        EndpointId::Workload(Key::namespaced(Kind::WorkloadEndpoint, "default", name))
    }

    fn np(name: &str) -> Key {
        Key::namespaced(Kind::NetworkPolicy, "default", name)
    }

    fn pod(address: &str, ingress: Option<&str>) -> Arc<Endpoint> {
        let tier = |name| Tier {
            name: "default".into(),
            policies: vec![np(name)],
            staged: vec![],
            end: TierEnd::Deny,
        };
        Arc::new(Endpoint {
            interface: Interface::Named(format!("cali{address}")),
            labels: BTreeMap::new(),
            addresses: vec![address.parse().unwrap()],
            spoofable: vec![],
            ingress: Direction {
                tiers: ingress.map(tier).into_iter().collect(),
            },
            egress: Direction::default(),
            forward: HostHook::default(),
            pre_dnat: Direction::default(),
            untracked: HostHook::default(),
            profiles: vec!["open".into()],
            closed: None,
        })
    }

    fn allow(source: Side, ports: &[(u16, u16)]) -> Rule {
        Rule {
            index: 0,
            action: Action::Allow,
            family: None,
            protocol: None,
            not_protocol: None,
            icmp: None,
            not_icmp: None,
            source,
            destination: Side {
                ports: ports.to_vec(),
                ..Side::default()
            },
        }
    }

    /// `db` (10.0.0.2) is reached from members of set `web` at port 5432; 10.0.0.1 and 10.0.0.3 are open; 10.0.0.1 is in it.
    fn state() -> PolicyState {
        let mut state = PolicyState::default();
        for (name, address, ingress) in [
            ("web", "10.0.0.1", None),
            ("db", "10.0.0.2", Some("db")),
            ("other", "10.0.0.3", None),
        ] {
            state.endpoints.insert(wep(name), pod(address, ingress));
        }
        let from_web = Side {
            sets: vec![SetId("web".into())],
            ..Side::default()
        };
        let policy = Policy {
            ingress: [allow(from_web, &[(5432, 5432)])].into(),
            ..Policy::default()
        };
        state.policies.insert(np("db"), Arc::new(policy));
        let everything = || [allow(Side::default(), &[])].into();
        let open = policy::Profile {
            ingress: everything(),
            egress: everything(),
            missing: false,
        };
        state.profiles.insert("open".into(), Arc::new(open));
        let web = Set {
            kind: SetKind::Nets,
            meaning: "web".into(),
            members: [Member::Net("10.0.0.1/32".parse().unwrap())].into(),
        };
        state.sets.insert(SetId("web".into()), web);
        state
    }

    /// `10.0.0.1 > 10.96.0.1:80 = 10.0.0.2:5432`: from, to, and what the destination was translated to.
    fn flow(text: &str, status: u32) -> Flow {
        let (original, real) = text.split_once(" = ").unwrap_or((text, ""));
        let (source, to) = original.split_once(" > ").unwrap();
        let end = |text: &str| {
            let (address, port) = text.rsplit_once(':').unwrap();
            (address.parse::<IpAddr>().unwrap(), port.parse::<u16>().unwrap())
        };
        let source: IpAddr = source.parse().unwrap();
        let to = end(to);
        let real = if real.is_empty() { to } else { end(real) };
        let tuple = |from: (IpAddr, u16), to: (IpAddr, u16)| Tuple {
            source: from.0,
            destination: to.0,
            protocol: 6,
            detail: Detail::Ports {
                source: from.1,
                destination: to.1,
            },
        };
        Flow {
            original: tuple((source, 40000), to),
            reply: tuple(real, (source, 40000)),
            status,
            mark: 0,
            zone: 0,
            id: 1,
        }
    }

    #[test]
    fn flows_are_judged_as_their_first_packet() {
        let state = state();
        let own = BTreeSet::from(["192.0.2.1".parse().unwrap()]);
        let guard = Guard::default();
        let devices = Devices::new();
        let judge = Judge::new(&state, &own, &guard, &devices);
        for (text, status, forbidden) in [
            ("10.0.0.1 > 10.0.0.2:5432", 0, false),
            ("10.0.0.1 > 10.0.0.2:22", 0, true),
            ("10.0.0.3 > 10.0.0.2:5432", 0, true),
            // Not the other way round: an answer is no first packet.
            ("10.0.0.2 > 10.0.0.3:5432", 0, false),
            // To a service's address: what counts is the pod behind it.
            ("10.0.0.1 > 10.96.0.1:80 = 10.0.0.2:5432", 0, false),
            ("10.0.0.3 > 10.96.0.1:80 = 10.0.0.2:5432", 0, true),
            // The pod's own host reaches it; flows of others are not ours to judge.
            ("192.0.2.1 > 10.0.0.2:22", 0, false),
            ("198.51.100.7 > 10.0.0.2:22", 0, true),
            ("198.51.100.7 > 203.0.113.1:22", 0, false),
            // Announced by another flow.
            ("10.0.0.3 > 10.0.0.2:20", EXPECTED, false),
        ] {
            assert_eq!(judge.forbids(&flow(text, status)), forbidden, "{text}");
        }
    }

    /// A host endpoint for `eth0` that lets nothing through to port 81; `web` and `other` are pods.
    #[test]
    fn forwarded_flows_are_judged_where_they_pass() {
        let mut state = state();
        let mut host = Endpoint::clone(&pod("192.0.2.1", None));
        host.interface = Interface::Named("eth0".into());
        let deny = Rule {
            action: Action::Deny,
            ..allow(Side::default(), &[(81, 81)])
        };
        state.policies.insert(
            np("forward"),
            Arc::new(Policy {
                ingress: [deny.clone()].into(),
                egress: [deny].into(),
                ..Policy::default()
            }),
        );
        let direction = Direction {
            tiers: [Tier {
                name: "default".into(),
                policies: vec![np("forward")],
                staged: vec![],
                end: TierEnd::Pass,
            }]
            .into(),
        };
        host.forward = HostHook {
            ingress: direction.clone(),
            egress: direction,
        };
        state.endpoints.insert(EndpointId::Host("h".into()), Arc::new(host));
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let own = BTreeSet::from([address("192.0.2.1")]);
        let guard = Guard {
            links: [("eth0".into(), own.clone()), ("eth1".into(), BTreeSet::new())].into(),
            ..Guard::default()
        };
        let devices = Devices::from([
            (address("198.51.100.7"), "eth0".into()),
            (address("203.0.113.1"), "eth1".into()),
        ]);
        let judge = Judge::new(&state, &own, &guard, &devices);
        for (text, forbidden) in [
            ("10.0.0.1 > 198.51.100.7:80", false),
            ("10.0.0.1 > 198.51.100.7:81", true),
            ("198.51.100.7 > 10.0.0.3:81", true),
            ("203.0.113.1 > 198.51.100.7:81", true),
            ("198.51.100.7 > 203.0.113.1:81", true),
            ("203.0.113.1 > 10.0.0.3:81", false),
            ("10.0.0.1 > 10.0.0.3:81", false),
            // Through a service: where it really goes.
            ("198.51.100.7 > 192.0.2.1:30080 = 10.0.0.3:81", true),
            ("198.51.100.7 > 192.0.2.1:81 = 10.0.0.3:80", false),
            // Nobody knows where that is.
            ("192.0.2.99 > 10.0.0.3:81", false),
        ] {
            assert_eq!(judge.forbids(&flow(text, 0)), forbidden, "{text}");
        }
        let change = PolicyChange::Policy(np("forward"), None);
        let expected = BTreeSet::from([EndpointId::Host("h".into())]);
        assert_eq!(concerned(&state, &[change]), expected);
    }

    #[test]
    fn a_flow_is_ended_once_and_pardoned_when_it_may_be_again() {
        let state = state();
        let own = BTreeSet::new();
        let flows = [
            ("10.0.0.1 > 10.0.0.2:22", 0),
            ("10.0.0.3 > 10.0.0.2:22", ENDED),
            ("10.0.0.1 > 10.0.0.2:5432", ENDED),
            ("10.0.0.1 > 10.0.0.3:5432", 0),
        ];
        let [forbidden, ended, pardoned, fine] = flows.map(|(text, status)| flow(text, status));
        let guard = Guard::default();
        let devices = Devices::new();
        let flows = vec![forbidden.clone(), ended, pardoned.clone(), fine];
        let judged = Judge::new(&state, &own, &guard, &devices).judge(flows);
        let expected = Judged {
            forbidden: vec![forbidden],
            pardoned: vec![pardoned],
        };
        assert_eq!(judged, expected);
    }

    #[test]
    fn only_endpoints_that_a_change_concerns_are_looked_at() {
        let state = state();
        let check = |change: PolicyChange, expected: &[&str]| {
            let expected: BTreeSet<EndpointId> = expected.iter().map(|name| wep(name)).collect();
            assert_eq!(concerned(&state, std::slice::from_ref(&change)), expected, "{change:?}");
        };
        check(PolicyChange::Policy(np("db"), None), &["db"]);
        check(PolicyChange::Policy(np("elsewhere"), None), &[]);
        check(PolicyChange::Profile("open".into(), None), &["db", "other", "web"]);
        check(
            PolicyChange::Members(SetId("web".into()), BTreeSet::new(), BTreeSet::new()),
            &["db"],
        );
        check(PolicyChange::SetGone(SetId("nobody".into())), &[]);
        check(
            PolicyChange::Endpoint(wep("web"), Some(pod("10.0.0.1", None))),
            &["web"],
        );
        check(PolicyChange::Endpoint(wep("web"), None), &[]);
        let host = EndpointId::Host("h".into());
        let gone = PolicyChange::Endpoint(host.clone(), None);
        assert_eq!(concerned(&state, &[gone]), BTreeSet::from([host]), "its flows go on");
    }
}
