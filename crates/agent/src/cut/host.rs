//! Whether a flow of this host itself would be let in or out today. Pure.
//!
//! A flow does not say which device its packets take. It is taken for the one that has the host's address of the flow; of an
//! address of loopback nobody knows, so only a host endpoint for all devices would judge it, and that one leaves loopback alone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use dataplane::filter::{Failsafe, Settings};
use kernel::IfName;
use policy::evaluate::{Hook, Outcome, Packet, Way, evaluate, evaluate_at};
use policy::{EndpointId, Interface, PolicyState};

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

    /// What no policy of a host endpoint closes. What tunnels bring is judged for each packet.
    fn is_always_open(&self, way: Way, packet: &Packet, other: IpAddr) -> bool {
        let failsafes = match way {
            Way::Ingress => &self.settings.failsafe_inbound,
            Way::Egress => &self.settings.failsafe_outbound,
        };
        let is = |protocol, port| packet.protocol == protocol && packet.destination_port == Some(port);
        let failsafe =
            |port: &Failsafe| is(port.protocol, port.port) && port.net.is_none_or(|net| net.contains(&other));
        packet.protocol == IPIP
            || is(UDP, self.settings.vxlan_port)
            || (is(TCP, BGP) && self.nodes.contains(&other))
            || failsafes.iter().any(failsafe)
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
}
