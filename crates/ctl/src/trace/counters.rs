//! What the kernel has counted for the rules that a packet meets.

use agent::policy_view::{DropView, EndpointView, PolicyView, RuleView, RulesView};
use policy::TierEnd;
use policy::evaluate::{Owner, Step, Way};

use super::hop::{Hop, Kind};
use crate::why::explain::{Said, Stage};
use crate::why::show::{ShownStage, shown_stage};

/// A stage with the counters of the node that it is on.
pub fn counted(stage: &Stage, view: Option<&PolicyView>) -> ShownStage {
    let mut shown = shown_stage(stage);
    let (Said::Policy(verdict, _), Some(view)) = (&stage.said, view) else {
        return shown;
    };
    let endpoint = find(view, &verdict.endpoint.to_string());
    for (shown, step) in shown.steps.iter_mut().zip(&verdict.trace) {
        shown.packets = of_step(view, endpoint, step);
    }
    shown
}

fn of_step(view: &PolicyView, endpoint: Option<&EndpointView>, step: &Step) -> Option<u64> {
    match step {
        Step::Rule(matched) => {
            let (all, id) = match &matched.owner {
                Owner::Policy { id, .. } => (&view.policies, id.to_string()),
                Owner::Profile(name) => (&view.profiles, format!("Profile({name})")),
            };
            let way = match matched.way {
                Way::Ingress => "ingress",
                Way::Egress => "egress",
            };
            let is_it = |rule: &&RuleView| rule.way == way && rule.index == matched.index;
            let rules: &RulesView = all.iter().find(|rules| rules.id == id)?;
            rules.rules.iter().find(is_it)?.packets
        }
        Step::TierEnd {
            tier,
            end: TierEnd::Deny,
        } => Some(dropped(&endpoint?.drops, |why| why == format!("end of tier {tier}"))),
        Step::NothingMatched | Step::NoProfile(_) => {
            Some(dropped(&endpoint?.drops, |why| why.starts_with("no profile allows")))
        }
        Step::Spoofed(_) => Some(dropped(&view.drops, |why| why == "source is not the pod's")),
        Step::TierEnd { .. } | Step::NoEndpoint | Step::Closed(_) | Step::NoPolicy(_) | Step::NothingApplies => None,
    }
}

fn find<'v>(view: &'v PolicyView, id: &str) -> Option<&'v EndpointView> {
    view.endpoints.iter().find(|endpoint| endpoint.id == id)
}

fn dropped(drops: &[DropView], is_it: impl Fn(&str) -> bool) -> u64 {
    let drops = drops.iter().filter(|drop| is_it(&drop.why));
    drops.map(|drop| drop.packets).sum()
}

/// Says so if the node does not enforce what it should about a stage's endpoint.
pub fn check_enforced(hop: &mut Hop, stage: &Stage, view: &PolicyView) {
    let Said::Policy(verdict, _) = &stage.said else { return };
    let id = verdict.endpoint.to_string();
    match find(view, &id) {
        Some(endpoint) if !endpoint.enforced => hop.find(
            Kind::Broken,
            format!("{id}: the kernel does not have its policy as it should be, and drops its packets until it has"),
            "see `margay node policy` and the problems in `margay node status` there",
        ),
        Some(_) => {}
        None => hop.find(
            Kind::Broken,
            format!("{id} is unknown to the agent of this node, which drops the packets of pods that it does not know"),
            "the pod is attached by the CNI plugin of this node; see the agent's log",
        ),
    }
}

/// What was dropped on a node by none of the policies: `3 invalid; 1 source is not the pod's`. `None`: nothing.
pub fn other_drops(view: &PolicyView) -> Option<String> {
    let is_policys = |why: &str| {
        ["deny ", "end of tier ", "no profile allows"]
            .iter()
            .any(|start| why.starts_with(start))
    };
    let others = view.drops.iter().filter(|drop| !is_policys(&drop.why));
    let shown: Vec<String> = others.map(|drop| format!("{} {}", drop.packets, drop.why)).collect();
    (!shown.is_empty()).then(|| shown.join("; "))
}

/// What was dropped since an earlier view, most first: `+3 deny NetworkPolicy default/db ingress 1`.
pub fn since(before: &PolicyView, now: &PolicyView) -> Vec<String> {
    let more = now.drops.iter().filter_map(|drop| {
        let more = drop
            .packets
            .saturating_sub(dropped(&before.drops, |why| why == drop.why));
        (more > 0).then_some((more, &drop.why))
    });
    let mut more: Vec<_> = more.collect();
    more.sort_by_key(|(more, _)| std::cmp::Reverse(*more));
    more.into_iter().map(|(more, why)| format!("+{more} {why}")).collect()
}
