//! Whether a flow of this host itself, or one that it forwards for others, would be let through by its host endpoints today. Pure.
//!
//! A flow does not say which device its packets take. It is taken for the one that has the host's address of the flow; of an
//! address of loopback nobody knows, so only a host endpoint for all devices would judge it, and that one leaves loopback alone. What is
//! forwarded is taken to come in and to go out by the devices that the routes to its two ends name.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use dataplane::filter::{Failsafe, Settings};
use kernel::IfName;
use policy::evaluate::{Hook, Outcome, Packet, Way, evaluate, evaluate_at};
use policy::{Endpoint, EndpointId, Interface, PolicyState};

const TCP: u8 = 6;
const UDP: u8 = 17;
const IPIP: u8 = 4;
const BGP: u16 = 179;

/// What the protection of this host depends on besides policy.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Guard {
    /// Failsafe ports, and the port of VXLAN.
    pub settings: Settings,
    /// Addresses of all nodes.
    pub nodes: BTreeSet<IpAddr>,
    /// Addresses of this host's devices that are not pods'.
    pub links: BTreeMap<IfName, BTreeSet<IpAddr>>,
}

impl Guard {
    /// Addresses of this host, without loopback's.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let links = self.links.iter().filter(|(device, _)| device.0 != "lo");
        links.flat_map(|(_, addresses)| addresses.iter().copied())
    }

    /// Whether the packet, a flow's first one to or from this host, would be dropped. `before` is the packet before its
    /// destination was translated.
    pub fn denies(&self, state: &PolicyState, way: Way, packet: &Packet, before: &Packet) -> bool {
        let (own, other) = match way {
            Way::Ingress => (packet.destination, packet.source),
            Way::Egress => (packet.source, packet.destination),
        };
        if self.is_always_open(way, packet, other) {
            return false;
        }
        let Some(endpoint) = self.endpoint_of(state, own) else {
            return false;
        };
        let mut early = vec![evaluate_at(state, endpoint, Hook::Untracked, way, packet).outcome];
        if way == Way::Ingress {
            early.push(evaluate_at(state, endpoint, Hook::PreDnat, way, before).outcome);
        }
        match early.into_iter().find(|outcome| *outcome != Outcome::Undecided) {
            Some(outcome) => outcome == Outcome::Deny,
            None => evaluate(state, endpoint, way, packet).outcome == Outcome::Deny,
        }
    }

    /// Whether host endpoints would drop the packet, a flow's first one that this host forwards (or, to [`Side::Elsewhere`],
    /// takes from a pod of its own). `before` is the packet before its destination was translated.
    pub fn denies_forwarded(
        &self,
        state: &PolicyState,
        [from, to]: [Side<'_>; 2],
        packet: &Packet,
        before: &Packet,
    ) -> bool {
        let ask = |endpoint, hook, way, packet| evaluate_at(state, endpoint, hook, way, packet).outcome;
        let input = match from {
            // What pods send meets only early policies of one that is for all devices.
            Side::Pod => endpoint_for_all(state),
            Side::Device(device) => self.endpoint_at(state, device),
            Side::Elsewhere => None,
        };
        if let Some(endpoint) = input {
            let hooks: &[Hook] = match from {
                Side::Device(_) => &[Hook::Untracked, Hook::PreDnat, Hook::Forward],
                Side::Pod | Side::Elsewhere => &[Hook::PreDnat],
            };
            let is_failsafe = self.is_failsafe(Way::Ingress, before, before.source);
            for hook in hooks {
                let outcome = match hook {
                    Hook::Untracked | Hook::PreDnat if is_failsafe => Outcome::Undecided,
                    Hook::Untracked | Hook::PreDnat => ask(endpoint, *hook, Way::Ingress, before),
                    Hook::Forward | Hook::Normal => ask(endpoint, *hook, Way::Ingress, packet),
                };
                match outcome {
                    Outcome::Deny => return true,
                    Outcome::Allow => break,
                    Outcome::Undecided => {}
                }
            }
        }
        let Side::Device(device) = to else { return false };
        let output = self.endpoint_at(state, device);
        output.is_some_and(|endpoint| ask(endpoint, Hook::Forward, Way::Egress, packet) == Outcome::Deny)
    }

    /// What no policy of a host endpoint closes. What tunnels bring is judged for each packet.
    fn is_always_open(&self, way: Way, packet: &Packet, other: IpAddr) -> bool {
        packet.protocol == IPIP
            || is_to(packet, UDP, self.settings.vxlan_port)
            || (is_to(packet, TCP, BGP) && self.nodes.contains(&other))
            || self.is_failsafe(way, packet, other)
    }

    fn is_failsafe(&self, way: Way, packet: &Packet, other: IpAddr) -> bool {
        let failsafes = match way {
            Way::Ingress => &self.settings.failsafe_inbound,
            Way::Egress => &self.settings.failsafe_outbound,
        };
        let is_it = |failsafe: &Failsafe| {
            is_to(packet, failsafe.protocol, failsafe.port) && failsafe.net.is_none_or(|net| net.contains(&other))
        };
        failsafes.iter().any(is_it)
    }

    /// Devices that a host endpoint has, with its name for people.
    pub fn named(&self, state: &PolicyState) -> BTreeMap<IfName, String> {
        let links = self.links.iter().filter(|(device, _)| device.0 != "lo");
        let named = links.filter_map(|(device, addresses)| {
            let endpoint = endpoint_of_device(state, device, addresses)?;
            Some((device.clone(), endpoint.to_string()))
        });
        named.collect()
    }

    /// The host endpoint of the device that has an address.
    fn endpoint_of<'s>(&self, state: &'s PolicyState, own: IpAddr) -> Option<&'s EndpointId> {
        let mut links = self.links.iter();
        let (device, addresses) = links.find(|(device, addresses)| device.0 != "lo" && addresses.contains(&own))?;
        endpoint_of_device(state, device, addresses)
    }

    /// The host endpoint of a device, unless that is a pod's.
    pub fn endpoint_at<'s>(&self, state: &'s PolicyState, device: &IfName) -> Option<&'s EndpointId> {
        endpoint_of_device(state, device, self.links.get(device)?)
    }
}

/// Where a flow that this host forwards comes from, or goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side<'a> {
    /// A pod of this host.
    Pod,
    /// Somewhere behind this device.
    Device(&'a IfName),
    /// This host, or nobody knows where.
    Elsewhere,
}

/// Whether a host endpoint decides about packets that are not its host's own, or would, were it not for others.
pub fn judges_others(endpoint: &Endpoint) -> bool {
    let directions = [
        &endpoint.forward.ingress,
        &endpoint.forward.egress,
        &endpoint.pre_dnat,
        &endpoint.untracked.ingress,
    ];
    endpoint.closed.is_some() || directions.iter().any(|direction| !direction.tiers.is_empty())
}

fn is_to(packet: &Packet, protocol: u8, port: u16) -> bool {
    packet.protocol == protocol && packet.destination_port == Some(port)
}

/// The host endpoint for all devices.
fn endpoint_for_all(state: &PolicyState) -> Option<&EndpointId> {
    let mut all = state.endpoints.iter();
    let is_it = |(id, endpoint): &(&EndpointId, &std::sync::Arc<Endpoint>)| {
        matches!(id, EndpointId::Host(_)) && endpoint.interface == Interface::All
    };
    all.find(is_it).map(|(id, _)| id)
}

/// The host endpoint of a device: one that names it, one that has one of its addresses, one for all.
fn endpoint_of_device<'s>(
    state: &'s PolicyState,
    device: &IfName,
    addresses: &BTreeSet<IpAddr>,
) -> Option<&'s EndpointId> {
    let hosts = || {
        let endpoints = state.endpoints.iter();
        endpoints.filter(|(id, _)| matches!(id, EndpointId::Host(_)))
    };
    let find = |fits: &dyn Fn(&Interface) -> bool| {
        let found = hosts().find(|(_, endpoint)| fits(&endpoint.interface));
        found.map(|(id, _)| id)
    };
    find(&|interface| *interface == Interface::Named(device.0.clone()))
        .or_else(|| {
            find(&|interface| match interface {
                Interface::WithAddress(known) => known.iter().any(|address| addresses.contains(address)),
                Interface::Named(_) | Interface::All => false,
            })
        })
        .or_else(|| find(&|interface| *interface == Interface::All))
}

#[cfg(test)]
mod tests {
    use api::Resource;
    use datastore::Update;

    use super::*;

    fn state(resources: &[&str]) -> PolicyState {
        let mut graph = policy::Graph::new("n1");
        for json in resources {
            let resource: Resource = serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}"));
            graph.apply(Update {
                key: resource.key(),
                value: Some(resource),
            });
        }
        graph.flush();
        graph.state().clone()
    }

    fn guard() -> Guard {
        let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        Guard {
            settings: Settings::default(),
            nodes: addresses(&["192.0.2.1", "192.0.2.2"]),
            links: [
                ("eth0".into(), addresses(&["192.0.2.1", "2001:db8::1"])),
                ("eth1".into(), addresses(&["198.51.100.1"])),
                ("lo".into(), addresses(&["127.0.0.1", "203.0.113.1"])),
            ]
            .into(),
        }
    }

    /// `192.0.2.9 > 192.0.2.1 TCP 80`.
    fn packet(text: &str) -> Packet {
        let words: Vec<&str> = text.split(' ').collect();
        Packet {
            source: words[0].parse().unwrap(),
            destination: words[2].parse().unwrap(),
            protocol: match words[3] {
                "TCP" => 6,
                "UDP" => 17,
                other => other.parse().unwrap(),
            },
            source_port: Some(40000),
            destination_port: words.get(4).map(|port| port.parse().unwrap()),
            icmp: None,
        }
    }

    const NAMED: &str = r#"{"kind":"HostEndpoint","metadata":{"name":"named","labels":{"host":"a"}},"spec":{"node":"n1","interfaceName":"eth0"}}"#;
    const FOUND: &str = r#"{"kind":"HostEndpoint","metadata":{"name":"found","labels":{"host":"a"}},"spec":{"node":"n1","expectedIPs":["198.51.100.1"]}}"#;
    const ALL: &str = r#"{"kind":"HostEndpoint","metadata":{"name":"all","labels":{"host":"b"}},"spec":{"node":"n1","interfaceName":"*"}}"#;
    const POLICY: &str = r#"{"kind":"GlobalNetworkPolicy","metadata":{"name":"p"},"spec":{"selector":"host == 'a'","types":["Ingress","Egress"],"ingress":[{"action":"Allow","protocol":"TCP","destination":{"ports":[80]}}]}}"#;
    const EARLY: &str = r#"{"kind":"GlobalNetworkPolicy","metadata":{"name":"e"},"spec":{"selector":"host == 'a'","preDNAT":true,"applyOnForward":true,"ingress":[{"action":"Deny","protocol":"TCP","destination":{"ports":[80]}},{"action":"Allow","protocol":"TCP","destination":{"ports":[8080]}}]}}"#;

    #[test]
    fn flows_of_the_host_are_judged_by_its_endpoint() {
        let (into, out) = (Way::Ingress, Way::Egress);
        let check = |resources: &[&str], way, text: &str, denied: bool| {
            let packet = packet(text);
            assert_eq!(
                guard().denies(&state(resources), way, &packet, &packet),
                denied,
                "{resources:?}: {text}"
            );
        };
        check(&[], into, "192.0.2.9 > 192.0.2.1 TCP 81", false);
        for (way, text, denied) in [
            (into, "192.0.2.9 > 192.0.2.1 TCP 80", false),
            (into, "192.0.2.9 > 192.0.2.1 TCP 81", true),
            (into, "2001:db8::9 > 2001:db8::1 TCP 81", true),
            (into, "192.0.2.9 > 192.0.2.1 TCP 22", false),
            (into, "192.0.2.2 > 192.0.2.1 TCP 179", false),
            (into, "192.0.2.2 > 192.0.2.1 4", false),
            (out, "192.0.2.1 > 192.0.2.9 TCP 80", true),
            (out, "192.0.2.1 > 192.0.2.9 UDP 53", false),
            // Another device, which no host endpoint has; nobody knows which device loopback's addresses use.
            (into, "192.0.2.9 > 198.51.100.1 TCP 81", false),
            (into, "192.0.2.9 > 203.0.113.1 TCP 81", false),
        ] {
            check(&[NAMED, POLICY], way, text, denied);
        }
        let named = guard().named(&state(&[NAMED, ALL, POLICY]));
        let named: Vec<String> = named.iter().map(|(device, name)| format!("{device} {name}")).collect();
        assert_eq!(named, ["eth0 HostEndpoint(named)", "eth1 HostEndpoint(all)"]);
        check(&[FOUND, POLICY], into, "192.0.2.9 > 198.51.100.1 TCP 81", true);
        check(&[FOUND, POLICY], into, "192.0.2.9 > 192.0.2.1 TCP 81", false);
        // The device's own endpoint before the one for all.
        check(&[NAMED, ALL, POLICY], into, "192.0.2.9 > 192.0.2.1 TCP 80", false);
        check(&[NAMED, ALL, POLICY], into, "192.0.2.9 > 198.51.100.1 TCP 80", true);
        check(&[NAMED, POLICY, EARLY], into, "192.0.2.9 > 192.0.2.1 TCP 80", true);
        check(&[NAMED, POLICY, EARLY], into, "192.0.2.9 > 192.0.2.1 TCP 8080", false);
    }

    const FORWARD: &str = r#"{"kind":"GlobalNetworkPolicy","metadata":{"name":"f"},"spec":{"selector":"host == 'a'","applyOnForward":true,"types":["Ingress","Egress"],"ingress":[{"action":"Deny","protocol":"TCP","destination":{"ports":[81,8080]}},{"action":"Allow"}],"egress":[{"action":"Deny","protocol":"UDP"},{"action":"Allow"}]}}"#;
    const FORWARD_ALL: &str = r#"{"kind":"GlobalNetworkPolicy","metadata":{"name":"fa"},"spec":{"selector":"host == 'b'","applyOnForward":true,"types":["Egress"],"egress":[{"action":"Deny","protocol":"UDP"},{"action":"Allow"}]}}"#;
    const EARLY_ALL: &str = r#"{"kind":"GlobalNetworkPolicy","metadata":{"name":"ea"},"spec":{"selector":"host == 'b'","preDNAT":true,"applyOnForward":true,"ingress":[{"action":"Deny","protocol":"TCP","destination":{"ports":[80,22]}}]}}"#;

    #[test]
    fn forwarded_flows_are_judged_by_the_endpoints_of_their_devices() {
        let (eth0, eth1, pod, cali): (IfName, IfName, Side<'_>, IfName) =
            ("eth0".into(), "eth1".into(), Side::Pod, "cali1".into());
        let [eth0, eth1, cali] = [&eth0, &eth1, &cali].map(Side::Device);
        let check = |resources: &[&str], sides: [Side<'_>; 2], text: &str, denied: bool| {
            let packet = packet(text);
            let said = guard().denies_forwarded(&state(resources), sides, &packet, &packet);
            assert_eq!(said, denied, "{resources:?}: {sides:?} {text}");
        };
        let to = |port: u16| format!("203.0.113.9 > 10.0.0.2 TCP {port}");
        let udp = "203.0.113.9 > 10.0.0.2 UDP 53";
        for (sides, text, denied) in [
            ([eth0, pod], &to(80)[..], false),
            ([eth0, pod], &to(81), true),
            // Failsafe ports are the host's own matter; where it goes out, the other direction's rules are asked.
            ([pod, eth0], &to(81), false),
            ([pod, eth0], udp, true),
            ([eth0, eth1], udp, false),
            ([eth1, eth0], udp, true),
            ([eth1, pod], &to(81), false),
            // A pod's device that policy does not know, and what no route leads to.
            ([eth0, cali], udp, false),
            ([Side::Elsewhere, pod], &to(81), false),
        ] {
            check(&[NAMED, FORWARD], sides, text, denied);
            // A policy that is not for what is forwarded says nothing; nor does one that is only staged.
            check(&[NAMED, POLICY], sides, text, false);
            check(
                &[NAMED, &FORWARD.replace("GlobalNetwork", "StagedGlobalNetwork")],
                sides,
                text,
                false,
            );
        }
        // What an early policy decides before its destination is translated is not asked about again where it comes in.
        let translated = |before: u16, after: u16, sides, denied: bool| {
            let (before, packet) = (packet(&to(before)), packet(&to(after)));
            let said = guard().denies_forwarded(&state(&[NAMED, EARLY, FORWARD]), sides, &packet, &before);
            assert_eq!(said, denied, "{before:?} {packet:?} {sides:?}");
        };
        translated(80, 5432, [eth0, pod], true);
        translated(8080, 81, [eth0, pod], false);
        translated(5432, 81, [eth0, pod], true);
        // For all devices: the tunnel's too, and the early ones see what pods send, failsafe ports excepted.
        check(&[ALL, FORWARD_ALL], [pod, eth1], udp, true);
        check(&[NAMED, ALL, FORWARD_ALL], [pod, eth0], udp, false);
        check(&[ALL, EARLY_ALL], [pod, eth1], &to(80), true);
        check(&[ALL, EARLY_ALL], [pod, Side::Elsewhere], &to(80), true);
        check(&[ALL, EARLY_ALL], [pod, eth1], &to(22), false);
        check(&[ALL, EARLY_ALL], [eth1, pod], &to(80), true);
        check(&[NAMED, EARLY], [pod, eth1], &to(80), false);
        let judges = |resources: &[&str]| state(resources).endpoints.values().any(|it| judges_others(it));
        assert!(judges(&[NAMED, FORWARD]) && judges(&[ALL, EARLY_ALL]) && !judges(&[NAMED, POLICY]));
    }
}
