//! An explanation as text for people and as data for programs.

use std::io::{self, Write};

use api::Action;
use policy::evaluate::{Matched, Outcome, Owner, Packet, Step, Verdict, Way};
use policy::{EndpointId, PolicyState, Rule, TierEnd, misses, protocol_name};
use serde::Serialize;

use super::explain::{Explanation, Said, Stage};
use super::place::{Place, Whose};
use super::ports::Overview;

/// An explanation, for programs.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown {
    /// `Allow` or `Deny`.
    pub verdict: &'static str,
    /// The packet.
    pub packet: ShownPacket,
    /// Where it comes from.
    pub from: ShownPlace,
    /// Where it goes.
    pub to: ShownPlace,
    /// Stages in the packet's order.
    pub stages: Vec<ShownStage>,
    /// Which ports are open, if none was asked about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<ShownPorts>,
    /// What cannot be known, or is worth knowing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A packet.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ShownPacket {
    /// By name if it has one.
    pub protocol: String,
    /// Source address.
    pub source: String,
    /// Destination address.
    pub destination: String,
    /// Of protocols that have ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    /// Of protocols that have ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<u16>,
    /// Of ICMP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    /// Of ICMP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
}

/// A place.
#[derive(Clone, Debug, Serialize)]
pub struct ShownPlace {
    /// For people.
    pub name: String,
    /// Where it is, if it is here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// A stage.
#[derive(Clone, Debug, Serialize)]
pub struct ShownStage {
    /// Whose policy.
    pub at: String,
    /// On which node.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// `Ingress` or `Egress`.
    pub way: &'static str,
    /// `Allow`, `Deny`, or `Undecided`: it goes on.
    pub verdict: &'static str,
    /// What led to it; the last one decided.
    pub steps: Vec<ShownStep>,
}

/// A step.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ShownStep {
    /// In words.
    pub text: String,
    /// The tier, if one is concerned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    /// The policy or profile whose rule matched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule_of: Option<String>,
    /// Which rule, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<usize>,
    /// What it says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<Action>,
    /// Whom the policy selects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// The selectors of the rule that the packet matched.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub matched: Vec<String>,
    /// How many packets the kernel has counted here, if somebody has asked it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets: Option<u64>,
    /// Rules that were asked and did not match, if the packet was denied for want of one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missed: Vec<String>,
}

/// Which ports are open.
#[derive(Clone, Debug, Serialize)]
pub struct ShownPorts {
    /// Allowed.
    pub allowed: Vec<String>,
    /// Denied.
    pub denied: Vec<String>,
}

/// For programs.
pub fn data(explanation: &Explanation, overview: Option<&Overview>) -> Shown {
    let question = &explanation.question;
    let packet = &question.packet;
    let place = |place: &Place| ShownPlace {
        name: place.name.clone(),
        node: place.whose.node().filter(|node| !node.is_empty()).map(str::to_owned),
    };
    Shown {
        verdict: match explanation.is_allowed() {
            true => "Allow",
            false => "Deny",
        },
        packet: ShownPacket {
            protocol: protocol_name(packet.protocol),
            source: packet.source.to_string(),
            destination: packet.destination.to_string(),
            source_port: packet.source_port,
            destination_port: packet.destination_port,
            icmp_type: packet.icmp.map(|(kind, _)| kind),
            icmp_code: packet.icmp.map(|(_, code)| code),
        },
        from: place(&question.from),
        to: place(&question.to),
        stages: explanation.stages.iter().map(shown_stage).collect(),
        ports: overview.map(|overview| ShownPorts {
            allowed: overview.allowed(),
            denied: overview.denied(),
        }),
        notes: explanation.notes.clone(),
    }
}

/// For people. `problems`: what is wrong with the policies that were asked.
pub fn text(
    explanation: &Explanation,
    overview: Option<&Overview>,
    problems: &[String],
    out: &mut dyn Write,
) -> io::Result<()> {
    let question = &explanation.question;
    writeln!(out, "{}", packet_line(&question.packet))?;
    writeln!(out, "  from {}", place_line(&question.from, question.packet.source))?;
    writeln!(out, "  to   {}", place_line(&question.to, question.packet.destination))?;
    for stage in &explanation.stages {
        writeln!(out)?;
        write_stage(stage, "", out)?;
    }
    writeln!(out)?;
    match explanation.denied_at() {
        None => writeln!(out, "ALLOWED")?,
        Some(stage) => writeln!(out, "DENIED {} {}", stage.way, stage.at)?,
    }
    if let Some(overview) = overview {
        for (word, ports) in [("allowed", overview.allowed()), ("denied", overview.denied())] {
            if !ports.is_empty() {
                writeln!(out, "  {word:<8} {}", ports.join("; "))?;
            }
        }
    }
    for note in &explanation.notes {
        writeln!(out, "note: {note}")?;
    }
    for problem in problems {
        writeln!(out, "problem: {problem}")?;
    }
    Ok(())
}

/// One stage, every line behind `indent`.
pub fn write_stage(stage: &Stage, indent: &str, out: &mut dyn Write) -> io::Result<()> {
    write_shown(&shown_stage(stage), indent, out)
}

/// The same of what is shown of a stage.
pub fn write_shown(shown: &ShownStage, indent: &str, out: &mut dyn Write) -> io::Result<()> {
    let is_node = shown.at == format!("node {}", shown.node);
    let node = match shown.node.is_empty() || is_node {
        true => String::new(),
        false => format!(" on node {}", shown.node),
    };
    let way = match shown.way {
        "Ingress" => "to",
        _ => "from",
    };
    let said = match shown.verdict {
        "Allow" => "allowed",
        "Deny" => "denied",
        _ => "goes on",
    };
    writeln!(out, "{indent}{way} {}{node}: {said}", shown.at)?;
    for step in &shown.steps {
        let counted = match step.packets {
            Some(1) => " [1 packet so far]".to_owned(),
            Some(packets) => format!(" [{packets} packets so far]"),
            None => String::new(),
        };
        writeln!(out, "{indent}  {}{counted}", step.text)?;
        for missed in &step.missed {
            writeln!(out, "{indent}    {missed}")?;
        }
    }
    Ok(())
}

/// A stage as it is shown.
pub fn shown_stage(stage: &Stage) -> ShownStage {
    let (verdict, steps) = match &stage.said {
        Said::Fixed(passes, why) => {
            let step = ShownStep {
                text: why.clone(),
                ..ShownStep::default()
            };
            (if *passes { "Allow" } else { "Deny" }, vec![step])
        }
        Said::Policy(verdict, state) => {
            let word = match verdict.outcome {
                Outcome::Allow => "Allow",
                Outcome::Deny => "Deny",
                Outcome::Undecided => "Undecided",
            };
            let mut steps: Vec<ShownStep> = verdict.trace.iter().map(shown_step).collect();
            if let (Outcome::Deny, Some(last)) = (verdict.outcome, steps.last_mut()) {
                last.missed = missed(verdict, state, &stage.packet);
            }
            (word, steps)
        }
    };
    ShownStage {
        at: stage.at.clone(),
        node: stage.node.clone(),
        way: match stage.way {
            Way::Ingress => "Ingress",
            Way::Egress => "Egress",
        },
        verdict,
        steps,
    }
}

fn shown_step(step: &Step) -> ShownStep {
    let text = step.to_string();
    match step {
        Step::Rule(Matched {
            owner,
            index,
            action,
            found_in,
            ..
        }) => {
            let (tier, rule_of, selector) = match owner {
                Owner::Policy { tier, id, selector } => (Some(tier.clone()), id.to_string(), Some(selector.clone())),
                Owner::Profile(name) => (None, format!("Profile({name})"), None),
            };
            ShownStep {
                text,
                tier,
                rule_of: Some(rule_of),
                rule: Some(*index),
                action: Some(*action),
                selector,
                matched: found_in.clone(),
                ..ShownStep::default()
            }
        }
        Step::TierEnd { tier, .. } => ShownStep {
            text,
            tier: Some(tier.clone()),
            ..ShownStep::default()
        },
        Step::NoEndpoint
        | Step::Closed(_)
        | Step::Spoofed(_)
        | Step::NoPolicy(_)
        | Step::NoProfile(_)
        | Step::NothingMatched
        | Step::NothingApplies => ShownStep {
            text,
            ..ShownStep::default()
        },
    }
}

/// The rules that were asked last, and why none matched.
pub fn missed(verdict: &Verdict, state: &PolicyState, packet: &Packet) -> Vec<String> {
    let Some(endpoint) = state.endpoints.get(&verdict.endpoint) else {
        return Vec::new();
    };
    let list = match verdict.way {
        Way::Ingress => "ingress",
        Way::Egress => "egress",
    };
    let of = |ingress: &[Rule], egress: &[Rule]| match verdict.way {
        Way::Ingress => ingress.to_vec(),
        Way::Egress => egress.to_vec(),
    };
    let mut lines = Vec::new();
    let mut add = |whose: String, about: &str, rules: Vec<Rule>| {
        match (about, rules.is_empty()) {
            ("", true) => lines.push(format!("{whose} has no {list} rules")),
            ("", false) => {}
            (about, true) => lines.push(format!("{whose} {about} and has no {list} rules")),
            (about, false) => lines.push(format!("{whose} {about}")),
        }
        for rule in rules {
            let why = misses(state, &rule, packet);
            if !why.is_empty() {
                let (index, action) = (rule.index, rule.action);
                lines.push(format!("{whose} {list} rule {index} ({action:?}): {}", why.join("; ")));
            }
        }
    };
    match verdict.trace.last() {
        Some(Step::TierEnd {
            tier,
            end: TierEnd::Deny,
        }) => {
            let direction = match (verdict.hook, verdict.way) {
                (policy::evaluate::Hook::Forward, Way::Ingress) => &endpoint.forward.ingress,
                (policy::evaluate::Hook::Forward, Way::Egress) => &endpoint.forward.egress,
                (_, Way::Ingress) => &endpoint.ingress,
                (_, Way::Egress) => &endpoint.egress,
            };
            for id in direction
                .tiers
                .iter()
                .filter(|of| of.name == *tier)
                .flat_map(|of| &of.policies)
            {
                if let Some(policy) = state.policies.get(id) {
                    let rules = of(&policy.ingress, &policy.egress);
                    add(id.to_string(), &format!("selects {}", policy.selector), rules);
                }
            }
        }
        Some(Step::NothingMatched) => {
            for name in &endpoint.profiles {
                if let Some(profile) = state.profiles.get(name).filter(|profile| !profile.missing) {
                    add(format!("profile {name}"), "", of(&profile.ingress, &profile.egress));
                }
            }
            if endpoint.profiles.is_empty() {
                let what = match &verdict.endpoint {
                    EndpointId::Workload(_) => "pod",
                    EndpointId::Host(_) => "host endpoint",
                };
                lines.push(format!("the {what} has no profile"));
            }
        }
        Some(_) | None => {}
    }
    lines
}

/// A packet in one line.
pub fn packet_line(packet: &Packet) -> String {
    let end = |address: std::net::IpAddr, port: Option<u16>| match (address, port) {
        (address, None) => address.to_string(),
        (address, Some(port)) => std::net::SocketAddr::new(address, port).to_string(),
    };
    let protocol = protocol_name(packet.protocol);
    let kind = match packet.icmp {
        Some((8 | 128, 0)) => " echo request".to_owned(),
        Some((kind, code)) => format!(" type {kind} code {code}"),
        None => String::new(),
    };
    let source = end(packet.source, None);
    format!(
        "{protocol}{kind} {source} -> {}",
        end(packet.destination, packet.destination_port)
    )
}

pub(crate) fn place_line(place: &Place, address: std::net::IpAddr) -> String {
    let name = &place.name;
    match &place.whose {
        Whose::Pod { node, .. } if !node.is_empty() => format!("{name} ({address}) on node {node}"),
        Whose::Host {
            node,
            endpoint: Some(_),
        } => format!("{name} ({address}) on node {node}"),
        Whose::Pod { .. } | Whose::Host { .. } => format!("{name} ({address})"),
        Whose::Elsewhere => place.with(address),
    }
}
