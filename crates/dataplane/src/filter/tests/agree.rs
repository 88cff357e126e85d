//! Rendered rules, run by the interpreter, decide as policy does: any state, any packet, both families.

use kernel::nft::CtState;
use policy::evaluate::{self, Hook, Outcome, Way, evaluate_at};
use policy::*;

use super::build::*;
use super::random::*;
use crate::filter::interpret::{Decision, Packet, journey};
use crate::filter::{Settings, Table, ToHost};

const STATES: u64 = 1_000;
const PACKETS: usize = 40;

#[test]
fn rules_decide_as_policy_does() {
    // A failure names its state: run only that one with MARGAY_SEED.
    let only = std::env::var("MARGAY_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = only.map_or(0..STATES, |seed| seed..seed + 1);
    let mut seen = Seen::default();
    for seed in seeds {
        println!("MARGAY_SEED={seed}");
        one_state(seed, &mut seen);
    }
    // A test in which everything is dropped would prove nothing.
    if only.is_none() {
        assert!(
            seen.accepted * 10 > seen.packets && seen.dropped * 10 > seen.packets,
            "{seen:?}"
        );
    }
}

#[derive(Debug, Default)]
struct Seen {
    packets: usize,
    accepted: usize,
    dropped: usize,
}

fn one_state(seed: u64, seen: &mut Seen) {
    let mut random = Random(seed);
    let state = state(&mut random);
    let mut filter = filter(&state);
    filter.settings(Settings {
        endpoint_to_host: ToHost::Accept,
        flow_logs: random.one_in(2),
        ..Settings::default()
    });
    let table = filter.table();
    assert_eq!(filter.problems(), Vec::new());
    for _ in 0..PACKETS {
        let packet = any_packet(&mut random);
        let outcome = journey(&table, &packet);
        let expected = expected(&state, &packet);
        let rules = outcome.path.join("\n  ");
        assert_eq!(outcome.decision, expected, "{packet:?}\n  {rules}\n{}", text(&table));
        seen.packets += 1;
        match expected {
            Decision::Accepted => seen.accepted += 1,
            Decision::Dropped => seen.dropped += 1,
        }
    }
}

/// From a pod, another device or this host, to one of them.
fn any_packet(random: &mut Random) -> Packet {
    let place = |random: &mut Random, index: usize| match random.below(10) {
        0..=5 => (Some(DEVICES[index].to_owned()), index),
        6 => (Some("eth0".to_owned()), 4),
        7 => (Some("eth1".to_owned()), 5),
        _ => (None, 4),
    };
    let (first, second) = (random.below(4), random.below(4));
    let (mut in_device, source) = place(random, first);
    let (out_device, destination) = place(random, second);
    if in_device.is_none() && out_device.is_none() {
        in_device = Some("eth0".to_owned());
    }
    let family = 6 * random.below(2);
    let source = if random.one_in(20) {
        address(random)
    } else {
        ip(ADDRESSES[source + family])
    };
    let destination = match random.one_in(20) {
        true => address(random),
        false => ip(ADDRESSES[destination + family]),
    };
    let source = if source.is_ipv4() == destination.is_ipv4() {
        source
    } else {
        destination
    };
    let packet = packet_of(random, source, destination);
    Packet {
        from_here: in_device.is_none(),
        to_here: out_device.is_none(),
        in_device,
        out_device,
        source: packet.source,
        destination: packet.destination,
        protocol: packet.protocol,
        ports: packet.source_port.zip(packet.destination_port),
        icmp: packet.icmp,
        state: CtState::New,
        translated: false,
        mark: if random.one_in(2) { 0 } else { 0xffff_ffff },
    }
}

/// What policy says of the whole way, one part after the other.
fn expected(state: &PolicyState, packet: &Packet) -> Decision {
    let asked = evaluate::Packet {
        source: packet.source,
        destination: packet.destination,
        protocol: packet.protocol,
        source_port: packet.ports.map(|ports| ports.0),
        destination_port: packet.ports.map(|ports| ports.1),
        icmp: packet.icmp,
    };
    let ask = |id: &EndpointId, hook: Hook, way: Way| evaluate_at(state, id, hook, way, &asked).outcome;
    let is_pod = |device: &str| device.starts_with("cali");
    let host = |device: &str| {
        let named = Some(hep(device)).filter(|id| state.endpoints.contains_key(id));
        named.or_else(|| Some(hep("all")).filter(|id| state.endpoints.contains_key(id)))
    };
    let mut accepted_early = false;

    if let Some(device) = &packet.in_device {
        if is_pod(device) {
            let own = state
                .endpoints
                .get(&wep(device))
                .is_some_and(|pod| pod.addresses.contains(&packet.source));
            if !own {
                return Decision::Dropped;
            }
        }
        if let Some(id) = host(device).filter(|id| *id != hep("all")) {
            match ask(&id, Hook::Untracked, Way::Ingress) {
                _ if is_failsafe(packet, Way::Ingress) || is_failsafe_reply(packet, Way::Ingress) => {}
                Outcome::Deny => return Decision::Dropped,
                Outcome::Allow => accepted_early = true,
                Outcome::Undecided => {}
            }
        }
        if let Some(id) = host(device).filter(|_| !accepted_early && !is_failsafe(packet, Way::Ingress)) {
            match ask(&id, Hook::PreDnat, Way::Ingress) {
                Outcome::Deny => return Decision::Dropped,
                Outcome::Allow => accepted_early = true,
                Outcome::Undecided => {}
            }
        }
    }
    let leaves_by = packet.out_device.as_ref().filter(|_| packet.in_device.is_none());
    if let Some(id) = leaves_by.and_then(|device| host(device)).filter(|id| *id != hep("all")) {
        match ask(&id, Hook::Untracked, Way::Egress) {
            _ if is_failsafe(packet, Way::Egress) || is_failsafe_reply(packet, Way::Egress) => {}
            Outcome::Deny => return Decision::Dropped,
            Outcome::Allow => accepted_early = true,
            Outcome::Undecided => {}
        }
    }

    let allowed = |id: EndpointId, hook: Hook, way: Way| ask(&id, hook, way) != Outcome::Deny;
    let passes = match (&packet.in_device, &packet.out_device) {
        (Some(from), Some(to)) => {
            let from_side = match is_pod(from) {
                true => allowed(wep(from), Hook::Normal, Way::Egress),
                false => accepted_early || host(from).is_none_or(|id| allowed(id, Hook::Forward, Way::Ingress)),
            };
            let to_side = match is_pod(to) {
                true => allowed(wep(to), Hook::Normal, Way::Ingress),
                false => host(to).is_none_or(|id| allowed(id, Hook::Forward, Way::Egress)),
            };
            from_side && to_side
        }
        (Some(from), None) if is_pod(from) => allowed(wep(from), Hook::Normal, Way::Egress),
        (Some(from), None) => {
            let host_allows = || host(from).is_none_or(|id| allowed(id, Hook::Normal, Way::Ingress));
            accepted_early || is_failsafe(packet, Way::Ingress) || host_allows()
        }
        (None, Some(to)) if is_pod(to) => true,
        (None, Some(to)) => {
            let host_allows = || host(to).is_none_or(|id| allowed(id, Hook::Normal, Way::Egress));
            accepted_early || is_failsafe(packet, Way::Egress) || host_allows()
        }
        (None, None) => true,
    };
    if passes { Decision::Accepted } else { Decision::Dropped }
}

fn is_failsafe(packet: &Packet, way: Way) -> bool {
    let port = packet.ports.map(|ports| ports.1);
    let settings = Settings::default();
    let open = match way {
        Way::Ingress => settings.failsafe_inbound,
        Way::Egress => settings.failsafe_outbound,
    };
    open.iter()
        .any(|failsafe| failsafe.protocol == packet.protocol && Some(failsafe.port) == port)
}

fn is_failsafe_reply(packet: &Packet, way: Way) -> bool {
    let turned = Packet {
        ports: packet.ports.map(|(source, destination)| (destination, source)),
        ..packet.clone()
    };
    is_failsafe(&turned, if way == Way::Ingress { Way::Egress } else { Way::Ingress })
}

/// A table as text.
pub fn text(table: &Table) -> String {
    let mut lines = Vec::new();
    for (name, set) in &table.sets {
        let elements: Vec<String> = set.elements.iter().map(|element| element.to_string()).collect();
        lines.push(format!(
            "set {name} {{ {} elements = {{ {} }} }}",
            set.spec,
            elements.join(", ")
        ));
    }
    for (name, chain) in &table.chains {
        let base = chain.base.map(|base| format!(" {base}")).unwrap_or_default();
        lines.push(format!("chain {name} {{{base}"));
        lines.extend(chain.rules.iter().map(|rule| format!("    {rule}")));
        lines.push("}".to_owned());
    }
    lines.join("\n")
}
