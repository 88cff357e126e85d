//! Limits and marks of pods' packets. (How many bytes a second is not a matter of rules: packets wait for their turn, in queues.)
//!
//! What is beyond a limit is dropped: from a pod before anything else is decided, to a pod after everything was. So a pod's own
//! settings cannot undo it, the host's traffic counts too, and what policy denies does not. Marks are for packets that leave the
//! cluster, as upstream has it.

use std::collections::BTreeMap;

use api::QosControls;
use kernel::IpFamily;
use kernel::nft::*;

use super::base::{Frame, Rendered, base, lookup, regular, states};
use super::names::{self, Prefix};

/// Limits and marks by pods' devices.
pub type Limits = BTreeMap<String, QosControls>;

/// Maps of devices that have such chains.
pub(crate) const LIMIT_FROM: &str = "cali-limit-from";
pub(crate) const LIMIT_TO: &str = "cali-limit-to";
pub(crate) const MARK_FROM: &str = "cali-dscp-from";

/// Before destinations are translated, after the flow is known.
const EARLY: i32 = -140;
/// After sources were translated.
const LATE: i32 = 120;
/// What every filter chain decides comes before.
const BEHIND: i32 = 10;

/// Which chains a device has.
pub(crate) fn maps(controls: &QosControls) -> Vec<(&'static str, Prefix)> {
    let mut maps = Vec::new();
    if !sent(controls).is_empty() {
        maps.push((LIMIT_FROM, Prefix::LimitFrom));
    }
    if !received(controls).is_empty() {
        maps.push((LIMIT_TO, Prefix::LimitTo));
    }
    if controls.dscp.is_some() {
        maps.push((MARK_FROM, Prefix::MarkFrom));
    }
    maps
}

impl Frame<'_> {
    pub(crate) fn limit_chains(&self) -> Vec<Rendered> {
        let mut chains = Vec::new();
        for (name, hook, priority, way, map) in [
            ("limits-PREROUTING", Hook::Prerouting, EARLY, Way::In, LIMIT_FROM),
            ("limits-POSTROUTING", Hook::Postrouting, LATE, Way::Out, LIMIT_TO),
            ("dscp-FORWARD", Hook::Forward, BEHIND, Way::In, MARK_FROM),
        ] {
            let is_used = self.limits.values().flat_map(maps).any(|(used, _)| used == map);
            let rules = is_used.then(|| lookup(way, map)).into_iter().collect();
            chains.push(base(name, hook, priority, rules));
        }
        for (device, controls) in self.limits {
            for (map, prefix) in maps(controls) {
                let rules = match map {
                    LIMIT_FROM => sent(controls),
                    LIMIT_TO => received(controls),
                    _ => marks(controls),
                };
                chains.push(regular(&names::chain(prefix, device).0, rules));
            }
        }
        chains
    }
}

fn sent(controls: &QosControls) -> Vec<Rule> {
    direction(
        "egress",
        [controls.egress_packet_rate, controls.egress_packet_burst],
        controls.egress_max_connections,
    )
}

fn received(controls: &QosControls) -> Vec<Rule> {
    direction(
        "ingress",
        [controls.ingress_packet_rate, controls.ingress_packet_burst],
        controls.ingress_max_connections,
    )
}

fn direction(way: &str, packets: [u64; 2], flows: u64) -> Vec<Rule> {
    let mut rules = Vec::new();
    let mut limit = |what: &str, matches: Vec<Match>, threshold: Option<Threshold>| {
        rules.extend(threshold.map(|threshold| Rule {
            matches,
            actions: vec![Statement::Over(threshold), Statement::Counter],
            verdict: Some(Verdict::Drop),
            comment: Some(format!("limit {way}{what}")),
        }));
    };
    limit("PacketRate", Vec::new(), packets_a_second(packets));
    let flows = u32::try_from(flows).unwrap_or(u32::MAX);
    let threshold = (flows != 0).then_some(Threshold::Flows(flows));
    limit("MaxConnections", vec![states(&[CtState::New])], threshold);
    rules
}

fn packets_a_second([rate, burst]: [u64; 2]) -> Option<Threshold> {
    let burst = if burst == 0 {
        QosControls::DEFAULT_PACKET_BURST
    } else {
        burst
    };
    let number = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    (rate != 0).then(|| Threshold::Packets {
        per_second: number(rate),
        burst: number(burst),
    })
}

/// For packets that go neither to a pod nor to a node.
fn marks(controls: &QosControls) -> Vec<Rule> {
    let Some(dscp) = controls.dscp else { return Vec::new() };
    let outside = |set: &str, family: IpFamily| Match::InSet {
        key: vec![Field::Address(family, End::Destination)],
        negate: true,
        set: names::of_family(set, family),
    };
    let mark = |family: IpFamily| Rule {
        matches: vec![outside("all-ipam-pools", family), outside("nodes", family)],
        actions: vec![Statement::SetDscp {
            family,
            value: dscp.value(),
        }],
        verdict: None,
        comment: None,
    };
    IpFamily::BOTH.map(mark).to_vec()
}

#[cfg(test)]
mod tests;
