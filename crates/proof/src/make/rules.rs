//! Rules with every field there is, in ways that validation allows.

use api::*;
use ipnet::IpNet;

use super::{NAMESPACES, PORT_NAMES, SERVICES};
use crate::packet::{ICMP, ICMP_V6, PORTS, QUESTIONS};
use crate::random::Random;

/// IPv4 and IPv6 prefixes in turn.
pub(super) const NETS: [&str; 20] = [
    "10.65.0.1/32",
    "fd65::1/128",
    "10.65.0.0/30",
    "fd65::/126",
    "10.65.0.0/24",
    "fd65::/120",
    "10.65.0.4/30",
    "fd65::4/126",
    "10.65.1.0/24",
    "fd65:1::/64",
    "10.65.1.2/32",
    "fd65:1::2/128",
    "192.0.2.0/24",
    "2001:db8::/64",
    "203.0.113.128/25",
    "2001:db8:5::/47",
    "172.16.0.0/16",
    "fd16::/32",
    "128.0.0.0/1",
    "2000::/3",
];
const EVERYTHING: [&str; 2] = ["0.0.0.0/0", "::/0"];
const SELECTORS: [&str; 17] = [
    "role == 'web'",
    "role == 'db'",
    "role != 'web'",
    "has(env)",
    "!has(env)",
    "all()",
    "env in {'prod', 'test'}",
    "env not in {'prod'}",
    "role starts with 'w' || env == 'test'",
    "role == 'web' && env == 'prod'",
    "!(role == 'db') && has(tint)",
    "tint == 'red'",
    "env contains 'o'",
    "tint ends with 'ue'",
    "projectcalico.org/namespace == 'b'",
    "has(host)",
    "pcns.team == 'x'",
];
const NAMESPACE_SELECTORS: [&str; 6] = [
    "team == 'x'",
    "team != 'x'",
    "all()",
    "global()",
    "has(team)",
    "!has(team)",
];
const ACCOUNT_SELECTORS: [&str; 3] = ["trusted == 'yes'", "trusted != 'yes'", "all()"];

pub(super) fn any_net(random: &mut Random) -> IpNet {
    random.pick(&NETS).parse().expect("a prefix")
}

pub(super) fn rules(random: &mut Random, may_pass: bool) -> Vec<Rule> {
    random.some(1, 4, |random| rule(random, may_pass))
}

fn rule(random: &mut Random, may_pass: bool) -> Rule {
    let actions = [Action::Allow, Action::Allow, Action::Deny, Action::Log, Action::Pass];
    let actions = if may_pass { &actions[..] } else { &actions[..4] };
    let mut rule = Rule::any(random.pick(actions));
    let names = [
        None,
        None,
        None,
        None,
        Some("TCP"),
        Some("TCP"),
        Some("UDP"),
        Some("SCTP"),
        Some("UDPLite"),
        Some("ICMP"),
        Some("ICMPv6"),
        Some("ICMP"),
        Some("ICMP"),
        Some("ICMPv6"),
        Some("ICMPv6"),
        Some("6"),
        Some("17"),
        Some("132"),
        Some("99"),
    ];
    rule.protocol = random.pick(&names).map(Protocol::from_text);
    if random.one_in(if rule.protocol.is_none() { 4 } else { 16 }) {
        let unwanted = random.pick(&["TCP", "UDP", "SCTP", "17", "99", "UDPLite"]);
        rule.not_protocol = Some(Protocol::from_text(unwanted));
    }
    let number = rule.protocol.as_ref().and_then(Protocol::number);
    let family = match number {
        Some(ICMP) => 0,
        Some(ICMP_V6) => 1,
        _ => random.below(2),
    };
    if matches!(number, Some(ICMP | ICMP_V6)) {
        let icmp = |random: &mut Random| IcmpMatch {
            kind: Some(random.pick(&QUESTIONS[family])),
            code: random.one_in(2).then(|| random.pick(&[0, 0, 1])),
        };
        if !random.one_in(3) {
            rule.icmp = Some(icmp(random));
        }
        if random.one_in(3) {
            rule.not_icmp = Some(icmp(random));
        }
    }
    if random.one_in(8) {
        rule.ip_version = Some([4, 6][family]);
    }
    let has_ports = rule.protocol.as_ref().is_some_and(Protocol::has_ports);
    rule.source = side(random, family, false, has_ports);
    rule.destination = side(random, family, true, has_ports);
    rule
}

fn side(random: &mut Random, family: usize, is_destination: bool, has_ports: bool) -> EntityRule {
    let mut side = EntityRule::default();
    let nets = |random: &mut Random| -> Vec<IpNet> {
        random.some(1, 3, |random| {
            let index = 2 * random.below(NETS.len() / 2) + family;
            NETS[index].parse().expect("a prefix")
        })
    };
    match random.below(24) {
        0 => side.nets = nets(random),
        1 => side.not_nets = nets(random),
        2 => (side.nets, side.not_nets) = (nets(random), nets(random)),
        3 => side.nets = vec![EVERYTHING[family].parse().expect("a prefix")],
        4..=5 => side.selector = random.pick(&SELECTORS).into(),
        6 => side.not_selector = random.pick(&SELECTORS).into(),
        7 => (side.selector, side.not_selector) = (random.pick(&SELECTORS).into(), random.pick(&SELECTORS).into()),
        8 => side.namespace_selector = random.pick(&NAMESPACE_SELECTORS).into(),
        9 => {
            side.namespace_selector = random.pick(&NAMESPACE_SELECTORS).into();
            side.selector = random.pick(&SELECTORS).into();
        }
        10..=11 => side.service_accounts = Some(accounts(random)),
        16 if random.one_in(3) => {
            side.service_accounts = Some(accounts(random));
            side.nets = nets(random);
            side.not_selector = random.pick(&SELECTORS).into();
        }
        12..=14 => {
            side.services = Some(ServiceMatch {
                name: random.pick(&SERVICES).into(),
                namespace: random.pick(&NAMESPACES).into(),
            });
        }
        _ => {}
    }
    if side.services.is_some() && is_destination {
        return side;
    }
    if random.one_in(if is_destination { 3 } else { 5 }) {
        side.ports = random.some(1, 3, |random| port(random, has_ports));
    }
    if random.one_in(8) {
        side.not_ports = random.some(1, 2, |random| port(random, has_ports));
    }
    side
}

/// A name, and where numbers may be, mostly a number or a range.
fn port(random: &mut Random, has_ports: bool) -> Port {
    match random.below(if has_ports { 4 } else { 1 }) {
        0 => Port::Named(random.pick(&PORT_NAMES).into()),
        1 => {
            let (one, other) = (random.pick(&PORTS), random.pick(&PORTS));
            Port::Range(one.min(other), one.max(other))
        }
        _ => {
            let port = random.pick(&PORTS);
            Port::Range(port, port)
        }
    }
}

fn accounts(random: &mut Random) -> ServiceAccountMatch {
    let names = random.some(0, 2, |random| random.pick(&["default", "other"]).to_owned());
    let selector = match names.is_empty() || random.one_in(3) {
        true => random.pick(&ACCOUNT_SELECTORS).to_owned(),
        false => String::new(),
    };
    ServiceAccountMatch { names, selector }
}

/// A selector of the endpoints that a policy is for. Rarely one that cannot be read, which closes them.
pub(super) fn of_endpoints(random: &mut Random) -> String {
    match random.below(100) {
        0 => "role ends with".to_owned(),
        1..=40 => random.pick(&["", "all()"]).to_owned(),
        _ => random.pick(&SELECTORS).to_owned(),
    }
}

pub(super) fn of_namespaces(random: &mut Random) -> String {
    random.pick(&NAMESPACE_SELECTORS[..3]).to_owned()
}

pub(super) fn of_accounts(random: &mut Random) -> String {
    random.pick(&ACCOUNT_SELECTORS).to_owned()
}
