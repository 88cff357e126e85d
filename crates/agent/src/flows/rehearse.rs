//! What staged policies would have decided about a packet that was recorded.

use dataplane::filter::short_name;
use kernel::IfName;
use linux::nflog::Logged;
use policy::evaluate::{Hook, Outcome, Owner, Packet, Step, Way, evaluate_rehearsed};
use policy::rehearsal::Rehearsed;
use policy::{Direction, EndpointId, PolicyState};
use serde::{Deserialize, Serialize};

use super::prefix::FlowVerdict;
use super::table::Kind;

/// A question about the record of this kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The record.
    pub(super) kind: Kind,
    /// The device of the endpoint that was asked.
    pub device: IfName,
    /// Whether about its own packets or others'.
    pub hook: Hook,
    /// To or from it.
    pub way: Way,
    /// The packet.
    pub packet: Packet,
}

/// What would have been decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rehearsal {
    /// What.
    pub verdict: FlowVerdict,
    /// The tier, unless it would have been a profile or none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tier: Option<String>,
    /// By which rule, or where no rule would have.
    pub policy: String,
}

/// The packet, as policy is asked about it.
pub(super) fn packet(logged: &Logged) -> Packet {
    Packet {
        source: logged.source,
        destination: logged.destination,
        protocol: logged.protocol,
        source_port: logged.ports.map(|(source, _)| source),
        destination_port: logged.ports.map(|(_, destination)| destination),
        icmp: logged.icmp,
    }
}

/// What staged policies would have decided; `None` if none of them concerns the endpoint.
pub fn rehearse(
    state: &PolicyState,
    rehearsed: &Rehearsed,
    endpoint: &EndpointId,
    question: &Question,
) -> Option<Rehearsal> {
    let known = state.endpoints.get(endpoint)?;
    let direction = match (question.hook, question.way) {
        (Hook::Normal, Way::Ingress) => &known.ingress,
        (Hook::Normal, Way::Egress) => &known.egress,
        (Hook::Forward, Way::Ingress) => &known.forward.ingress,
        (Hook::Forward, Way::Egress) => &known.forward.egress,
        (Hook::PreDnat | Hook::Untracked, _) => return None,
    };
    if !concerns(direction, rehearsed) {
        return None;
    }
    let verdict = evaluate_rehearsed(
        state,
        rehearsed,
        endpoint,
        question.hook,
        question.way,
        &question.packet,
    );
    let (tier, policy) = match verdict.trace.last()? {
        Step::Rule(matched) => match &matched.owner {
            Owner::Policy { tier, id, .. } => {
                let policy = format!("{} rule {}", short_name(id), matched.index);
                (Some(tier.clone()), policy)
            }
            Owner::Profile(name) => (None, format!("profile {name} rule {}", matched.index)),
        },
        Step::TierEnd { tier, .. } => (Some(tier.clone()), format!("end of tier {tier}")),
        Step::NothingApplies => (None, "no policy".to_owned()),
        Step::NothingMatched => (None, "no profile".to_owned()),
        other => (None, other.to_string()),
    };
    Some(Rehearsal {
        verdict: match verdict.outcome {
            // What nobody says anything about is forwarded.
            Outcome::Allow | Outcome::Undecided => FlowVerdict::Allow,
            Outcome::Deny => FlowVerdict::Deny,
        },
        tier,
        policy,
    })
}

fn concerns(direction: &Direction, rehearsed: &Rehearsed) -> bool {
    let mut tiers = direction.tiers.iter();
    tiers.any(|tier| !tier.staged.is_empty() || tier.policies.iter().any(|id| rehearsed.contains(id)))
}
