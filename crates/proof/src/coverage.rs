//! Counts of what decided about packets, so that a test can show that nothing was left out.

use std::collections::BTreeMap;
use std::fmt;

use api::{Action, EntityRule, Port, Protocol, Resource, Rule};
use policy::TierEnd;
use policy::evaluate::{Hook, Outcome, Owner, Step, Verdict, Way};

use crate::case::Case;
use crate::journey::Journey;
use crate::packet::{ICMP, ICMP_V6, Packet, SCTP, TCP, UDP, UDPLITE, WITHOUT_PORTS};

/// Something that decided, or let a packet go on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A rule with this part matched and did this; by family of the packet, and direction.
    Part(&'static str, &'static str, bool, Way),
    /// An endpoint's hook came to this.
    Hook(Hook, Way, Outcome),
    /// Anything else.
    Other(String),
}

/// How often each reason was met.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    /// Packets.
    pub packets: u64,
    /// Those of them that arrive.
    pub arrived: u64,
    /// By reason.
    pub counts: BTreeMap<Reason, u64>,
}

const ACTIONS: [&str; 4] = ["allow", "deny", "pass", "log"];
/// Parts of rules besides their sides.
const WHOLE: [&str; 8] = [
    "anything",
    "ipVersion",
    "protocol by name",
    "protocol by number",
    "notProtocol",
    "icmp type",
    "icmp type and code",
    "notICMP",
];
const SOURCE: [&str; 12] = [
    "source nets",
    "source notNets",
    "source selector",
    "source notSelector",
    "source namespaceSelector",
    "source serviceAccounts",
    "source services",
    "source port",
    "source port range",
    "source named port",
    "source notPorts",
    "source named notPorts",
];
const DESTINATION: [&str; 12] = [
    "destination nets",
    "destination notNets",
    "destination selector",
    "destination notSelector",
    "destination namespaceSelector",
    "destination serviceAccounts",
    "destination services",
    "destination port",
    "destination port range",
    "destination named port",
    "destination notPorts",
    "destination named notPorts",
];

impl Coverage {
    /// Counts what happened to a packet.
    pub fn add(&mut self, case: &Case, packet: &Packet, journey: &Journey) {
        self.packets += 1;
        self.arrived += u64::from(journey.arrives);
        for verdict in &journey.verdicts {
            self.count(Reason::Hook(verdict.hook, verdict.way, verdict.outcome));
            self.steps(case, packet, verdict);
        }
        for besides in &journey.besides {
            self.other(besides);
        }
        self.count(protocol(packet.seen.protocol, packet.seen.source.is_ipv4()));
    }

    /// Takes over what another one has counted.
    pub fn merge(&mut self, other: Coverage) {
        self.packets += other.packets;
        self.arrived += other.arrived;
        for (reason, count) in other.counts {
            *self.counts.entry(reason).or_default() += count;
        }
    }

    /// What policies like ours must have met, and nobody did: with `each_action` every part of a rule in a rule of each action,
    /// which takes a hundred thousand packets; else in any rule.
    pub fn missing(&self, each_action: bool) -> Vec<String> {
        let met = |reason: &Reason| self.counts.contains_key(reason);
        let missing = required().into_iter().filter(|reason| !met(reason));
        let mut missing: Vec<String> = missing.map(|reason| reason.to_string()).collect();
        for part in WHOLE.into_iter().chain(SOURCE).chain(DESTINATION) {
            let rule = |action, is_ipv4, way| met(&Reason::Part(part, action, is_ipv4, way));
            for way in [Way::Ingress, Way::Egress] {
                // Validation: services as destination of egress rules, as source of ingress rules.
                let is_refused = matches!(
                    (part, way),
                    ("source services", Way::Egress) | ("destination services", Way::Ingress)
                );
                if is_refused {
                    continue;
                }
                for action in ACTIONS.into_iter().filter(|_| each_action) {
                    if !rule(action, true, way) && !rule(action, false, way) {
                        missing.push(format!("{way:?} rule, {action}, {part}"));
                    }
                }
                for is_ipv4 in [true, false] {
                    if !ACTIONS.iter().any(|action| rule(action, is_ipv4, way)) {
                        missing.push(format!("{way:?} rule, IPv{}, {part}", if is_ipv4 { 4 } else { 6 }));
                    }
                }
            }
        }
        missing
    }

    fn count(&mut self, reason: Reason) {
        *self.counts.entry(reason).or_default() += 1;
    }

    fn other(&mut self, text: &str) {
        self.count(Reason::Other(text.to_owned()));
    }

    fn steps(&mut self, case: &Case, packet: &Packet, verdict: &Verdict) {
        for step in &verdict.trace {
            match step {
                Step::Rule(matched) => {
                    let action = match matched.action {
                        Action::Allow => "allow",
                        Action::Deny => "deny",
                        Action::Pass => "pass",
                        Action::Log => "log",
                    };
                    if let Owner::Policy { selector, .. } = &matched.owner
                        && selector.contains("cannot be followed")
                    {
                        self.other("denied by what cannot be followed");
                        continue;
                    }
                    if let Owner::Profile(_) = matched.owner {
                        self.other("profile rule");
                    }
                    let Some(rule) = written(case, &matched.owner, matched.way, matched.index) else {
                        self.other("rule that nobody wrote");
                        continue;
                    };
                    for part in parts(rule) {
                        self.count(Reason::Part(part, action, packet.seen.source.is_ipv4(), matched.way));
                    }
                }
                Step::TierEnd { tier, end } => {
                    let end = match end {
                        TierEnd::Deny => "Deny",
                        TierEnd::Pass => "Pass",
                    };
                    self.other(&format!("end of tier {tier}: {end}"));
                }
                Step::Closed(_) => self.other("closed"),
                Step::NoProfile(_) => self.other("profile is missing"),
                Step::NothingMatched => self.other("nothing matched"),
                Step::NothingApplies => self.other("no policy applies in this hook"),
                Step::NoEndpoint | Step::Spoofed(_) | Step::NoPolicy(_) => self.other("what cannot be here"),
            }
        }
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} packets, {} arrive", self.packets, self.arrived)?;
        for (reason, count) in &self.counts {
            writeln!(f, "{count:>9} {reason}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Part(part, action, is_ipv4, way) => {
                let family = if *is_ipv4 { 4 } else { 6 };
                write!(f, "{way:?} rule, {action}, IPv{family}, {part}")
            }
            Reason::Hook(hook, way, outcome) => write!(f, "{way:?} {hook:?}: {outcome:?}"),
            Reason::Other(text) => f.write_str(text),
        }
    }
}

/// What must have been met besides parts of rules.
fn required() -> Vec<Reason> {
    let mut required = Vec::new();
    for hook in [Hook::Normal, Hook::Forward, Hook::PreDnat, Hook::Untracked] {
        for way in [Way::Ingress, Way::Egress] {
            for outcome in [Outcome::Allow, Outcome::Deny, Outcome::Undecided] {
                let is_impossible = matches!(
                    (hook, way, outcome),
                    (Hook::Normal, _, Outcome::Undecided) | (Hook::PreDnat, Way::Egress, _)
                );
                if !is_impossible {
                    required.push(Reason::Hook(hook, way, outcome));
                }
            }
        }
    }
    let others = [
        "denied by what cannot be followed",
        "no policy applies in this hook",
        "profile rule",
        "profile is missing",
        "nothing matched",
        "failsafe",
        "device without policy",
        "spoofed source",
        "spoofed source that is allowed",
        "defaultEndpointToHostAction",
        "no host endpoint",
        "from the host to its pod",
    ];
    required.extend(others.map(|text| Reason::Other(text.to_owned())));
    for tier in ["default", "security", "platform"] {
        let ends: &[&str] = if tier == "default" {
            &["Deny"]
        } else {
            &["Deny", "Pass"]
        };
        required.extend(
            ends.iter()
                .map(|end| Reason::Other(format!("end of tier {tier}: {end}"))),
        );
    }
    for is_ipv4 in [true, false] {
        let icmp = if is_ipv4 { ICMP } else { ICMP_V6 };
        let met = [TCP, UDP, SCTP, UDPLITE, icmp, WITHOUT_PORTS];
        required.extend(met.map(|number| protocol(number, is_ipv4)));
    }
    required
}

fn protocol(number: u8, is_ipv4: bool) -> Reason {
    let version = if is_ipv4 { 4 } else { 6 };
    Reason::Other(format!("protocol {number} in IPv{version}"))
}

/// A rule as it was written.
fn written<'a>(case: &'a Case, owner: &Owner, way: Way, index: usize) -> Option<&'a Rule> {
    let key = match owner {
        Owner::Policy { id, .. } => id.clone(),
        Owner::Profile(name) => api::Key::cluster(api::Kind::Profile, name),
    };
    let (ingress, egress) = match case.resources.get(&key)? {
        Resource::NetworkPolicy(policy) => (&policy.spec.ingress, &policy.spec.egress),
        Resource::GlobalNetworkPolicy(policy) => (&policy.spec.ingress, &policy.spec.egress),
        Resource::Profile(profile) => (&profile.spec.ingress, &profile.spec.egress),
        _ => return None,
    };
    match way {
        Way::Ingress => ingress.get(index),
        Way::Egress => egress.get(index),
    }
}

/// Which parts a rule has.
fn parts(rule: &Rule) -> Vec<&'static str> {
    let mut parts = Vec::new();
    let mut add = |is: bool, part: &'static str| {
        if is {
            parts.push(part);
        }
    };
    add(*rule == Rule::any(rule.action), "anything");
    add(rule.ip_version.is_some(), "ipVersion");
    add(matches!(rule.protocol, Some(Protocol::Name(_))), "protocol by name");
    add(matches!(rule.protocol, Some(Protocol::Number(_))), "protocol by number");
    add(rule.not_protocol.is_some(), "notProtocol");
    add(rule.icmp.is_some_and(|icmp| icmp.code.is_none()), "icmp type");
    add(rule.icmp.is_some_and(|icmp| icmp.code.is_some()), "icmp type and code");
    add(rule.not_icmp.is_some(), "notICMP");
    let is_single = |port: &Port| matches!(port, Port::Range(first, last) if first == last);
    let is_range = |port: &Port| matches!(port, Port::Range(first, last) if first != last);
    let mut side = |side: &EntityRule, names: &[&'static str; 12]| {
        let has = [
            !side.nets.is_empty(),
            !side.not_nets.is_empty(),
            !side.selector.is_empty(),
            !side.not_selector.is_empty(),
            !side.namespace_selector.is_empty(),
            side.service_accounts.is_some(),
            side.services.is_some(),
            side.ports.iter().any(is_single),
            side.ports.iter().any(is_range),
            side.ports.iter().any(Port::is_named),
            side.not_ports.iter().any(|port| !port.is_named()),
            side.not_ports.iter().any(Port::is_named),
        ];
        for (has, name) in has.into_iter().zip(names) {
            add(has, name);
        }
    };
    side(&rule.source, &SOURCE);
    side(&rule.destination, &DESTINATION);
    parts
}
