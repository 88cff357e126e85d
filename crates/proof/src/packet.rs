//! Packets that are likely to meet what random policies say.

use std::net::IpAddr;

use api::{IcmpMatch, Port, Protocol, Resource, Rule};
use policy::evaluate;

use crate::case::Case;
use crate::random::Random;
use crate::world::{Place, ip};

/// The first packet of a flow, and its way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Packet {
    /// Where it comes from.
    pub from: Place,
    /// Where it goes.
    pub to: Place,
    /// What policy sees of it.
    pub seen: evaluate::Packet,
}

/// Ports that rules and packets speak of.
pub const PORTS: [u16; 10] = [22, 53, 80, 81, 443, 8080, 8081, 9000, 30000, 65535];
/// Those of them that have names.
pub const NAMED_PORTS: [u16; 3] = [53, 80, 8080];
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// SCTP.
pub const SCTP: u8 = 132;
/// UDP-Lite.
pub const UDPLITE: u8 = 136;
/// ICMP.
pub const ICMP: u8 = 1;
/// ICMPv6.
pub const ICMP_V6: u8 = 58;
/// A protocol without ports, of which nothing is known.
pub const WITHOUT_PORTS: u8 = 99;
/// Questions of ICMP and ICMPv6, which begin flows: echo, timestamp; echo, node information.
pub const QUESTIONS: [[u8; 2]; 2] = [[8, 13], [128, 139]];

/// A packet from one place to another, sometimes with a source that is not its sender's. Four of five are what some rule of
/// the case speaks of, as far as protocol, type and ports go.
pub fn any(random: &mut Random, case: &Case) -> Packet {
    let mut packet = anywhere(random);
    if !random.one_in(5) {
        let rules: Vec<&Rule> = case.resources.values().flat_map(rules_of).collect();
        if !rules.is_empty() {
            let rule = random.pick(&rules);
            aim(random, &mut packet.seen, rule);
            aim_at_service(random, case, &mut packet, rule);
        }
    }
    packet
}

fn rules_of(resource: &Resource) -> impl Iterator<Item = &Rule> {
    let (ingress, egress): (&[Rule], &[Rule]) = match resource {
        Resource::NetworkPolicy(policy) => (&policy.spec.ingress, &policy.spec.egress),
        Resource::GlobalNetworkPolicy(policy) => (&policy.spec.ingress, &policy.spec.egress),
        Resource::Profile(profile) => (&profile.spec.ingress, &profile.spec.egress),
        _ => (&[], &[]),
    };
    ingress.iter().chain(egress)
}

/// Gives a packet what a rule asks for, if its family has it.
fn aim(random: &mut Random, packet: &mut evaluate::Packet, rule: &Rule) {
    let Some(protocol) = rule.protocol.as_ref().and_then(Protocol::number) else {
        return;
    };
    let is_ipv6 = packet.source.is_ipv6();
    match protocol {
        ICMP | ICMP_V6 if is_ipv6 != (protocol == ICMP_V6) => {}
        ICMP | ICMP_V6 => {
            let any = (random.pick(&QUESTIONS[usize::from(is_ipv6)]), 0);
            let asked = rule
                .icmp
                .and_then(|IcmpMatch { kind, code }| Some((kind?, code.unwrap_or_default())));
            (packet.protocol, packet.icmp) = (protocol, Some(asked.unwrap_or(any)));
            (packet.source_port, packet.destination_port) = (None, None);
        }
        TCP | UDP | SCTP | UDPLITE => {
            let port = |random: &mut Random, ports: &[Port]| match ports.is_empty() {
                true => random.pick(&PORTS),
                false => match random.pick(ports) {
                    Port::Range(first, last) => random.pick(&[first, last]),
                    Port::Named(_) => random.pick(&NAMED_PORTS),
                },
            };
            (packet.protocol, packet.icmp) = (protocol, None);
            packet.source_port = Some(port(random, &rule.source.ports));
            packet.destination_port = Some(port(random, &rule.destination.ports));
        }
        _ => {
            (packet.protocol, packet.icmp) = (protocol, None);
            (packet.source_port, packet.destination_port) = (None, None);
        }
    }
}

/// Sends a packet to an endpoint of the service that a rule asks for.
fn aim_at_service(random: &mut Random, case: &Case, packet: &mut Packet, rule: &Rule) {
    let Some(service) = &rule.destination.services else {
        return;
    };
    let backends = case.resources.values().filter_map(|resource| match resource {
        Resource::KubernetesEndpointSlice(slice) if slice.spec.service == service.name => Some(&slice.spec),
        _ => None,
    });
    let backends = backends.flat_map(|slice| {
        let ports = move |address: &IpAddr| {
            slice.ports.iter().map({
                let address = *address;
                move |port| (address, port)
            })
        };
        slice.addresses.iter().flat_map(ports)
    });
    let source = packet.seen.source;
    let reachable = |address: &IpAddr| {
        let place = Place::of(*address).filter(|place| *place != packet.from && address.is_ipv4() == source.is_ipv4());
        place.map(|place| (place, *address))
    };
    let backends: Vec<_> = backends
        .filter_map(|(address, port)| Some((reachable(&address)?, port.protocol.number()?, port.port)))
        .collect();
    if backends.is_empty() {
        return;
    }
    let ((to, destination), protocol, port) = random.pick(&backends);
    packet.to = to;
    packet.seen = evaluate::Packet {
        source,
        destination,
        protocol,
        source_port: Some(packet.seen.source_port.unwrap_or_else(|| random.pick(&PORTS))),
        destination_port: Some(port),
        icmp: None,
    };
}

fn anywhere(random: &mut Random) -> Packet {
    let places = Place::all();
    let from = random.pick(&places);
    let mut to = random.pick(&places);
    while to == from || (to, from) == (Place::Host, Place::Host) {
        to = random.pick(&places);
    }
    let family = random.below(2);
    let address = |random: &mut Random, place: Place| ip(random.pick(&place.addresses())[family]);
    // Nobody but the node sends from the node's addresses: the kernel would not believe it.
    let pretended = Place::Pod(random.below(crate::world::PODS.len()));
    let sender = match from != Place::Host && random.one_in(16) {
        true => pretended,
        false => from,
    };
    let (source, destination) = (address(random, sender), address(random, to));
    Packet {
        from,
        to,
        seen: between(random, source, destination),
    }
}

/// Any packet between two addresses.
fn between(random: &mut Random, source: IpAddr, destination: IpAddr) -> evaluate::Packet {
    let mut protocol = random.pick(&[TCP, TCP, UDP, UDP, SCTP, UDPLITE, ICMP, WITHOUT_PORTS]);
    let family = usize::from(source.is_ipv6());
    if protocol == ICMP && source.is_ipv6() {
        protocol = ICMP_V6;
    }
    let has_ports = matches!(protocol, TCP | UDP | SCTP | UDPLITE);
    let is_icmp = matches!(protocol, ICMP | ICMP_V6);
    evaluate::Packet {
        source,
        destination,
        protocol,
        source_port: has_ports.then(|| random.pick(&PORTS)),
        destination_port: has_ports.then(|| random.pick(&PORTS)),
        icmp: is_icmp.then(|| (random.pick(&QUESTIONS[family]), random.pick(&[0, 0, 1]))),
    }
}
