//! Profiles, tiers and policies.

use api::*;

use super::rules::{of_accounts, of_endpoints, of_namespaces, rules};
use super::{NAMESPACES, PROFILES, in_namespace, labels};
use crate::random::Random;

const TIERS: [&str; 3] = ["default", "security", "platform"];

/// Profiles as upstream's controllers make them, with more rules than these have.
pub(super) fn profiles(random: &mut Random) -> Vec<Resource> {
    let mut profiles = Vec::new();
    for name in PROFILES {
        let inherited = match name {
            "extra" => labels(random, &[("tint", &["red"]), ("env", &["prod"])]),
            name if name.starts_with("ksa") => labels(random, &[("pcsa.trusted", &["yes", "no"])]),
            _ => labels(random, &[("pcns.team", &["x", "y"])]),
        };
        let list = |random: &mut Random| match random.below(4) {
            0..=1 => vec![Rule::any(Action::Allow)],
            2 => rules(random, false),
            _ => Vec::new(),
        };
        let spec = ProfileSpec {
            ingress: list(random),
            egress: list(random),
            labels_to_apply: inherited,
        };
        profiles.push(Object::new(name, spec).into());
    }
    profiles
}

pub(super) fn tiers(random: &mut Random) -> Vec<Resource> {
    let mut tiers = Vec::new();
    for name in ["security", "platform"] {
        let order = random.pick(&[Order::whole(1), Order::whole(2), Order::whole(2_000_000), Order::LAST]);
        let default_action = random.pick(&[
            None,
            Some(TierAction::Deny),
            Some(TierAction::Pass),
            Some(TierAction::Pass),
        ]);
        tiers.push(Object::new(name, TierSpec { order, default_action }).into());
    }
    tiers
}

/// The fields that all kinds of policies have.
macro_rules! spec {
    ($random:expr, $spec:ident { $($own:tt)* }) => {{
        let random: &mut Random = $random;
        let types = random.pick(&[
            &[][..],
            &[PolicyType::Ingress],
            &[PolicyType::Egress],
            &[PolicyType::Ingress, PolicyType::Egress],
        ]);
        $spec {
            // Rarely a tier that does not exist, which closes.
            tier: if random.one_in(100) { "unknown".into() } else { random.pick(&TIERS).into() },
            order: random.pick(&[Order::LAST, Order::whole(1), Order::whole(2)]),
            selector: of_endpoints(random),
            service_account_selector: if random.one_in(8) { of_accounts(random) } else { String::new() },
            types: types.to_vec(),
            ingress: if random.one_in(8) { Vec::new() } else { rules(random, true) },
            egress: if random.one_in(8) { Vec::new() } else { rules(random, true) },
            performance_hints: Vec::new(),
            $($own)*
        }
    }};
}

pub(super) fn policies(random: &mut Random) -> Vec<Resource> {
    let mut policies: Vec<Resource> = Vec::new();
    for name in ["v", "w", "x", "y", "z", "q"] {
        let policy = match random.below(8) {
            0..=2 => {
                let spec = spec!(random, NetworkPolicySpec {});
                in_namespace(random.pick(&NAMESPACES), name, spec).into()
            }
            3 => {
                let staged_action = random.one_in(4).then_some(StagedAction::Delete);
                let spec = spec!(random, StagedNetworkPolicySpec { staged_action });
                in_namespace(random.pick(&NAMESPACES), name, spec).into()
            }
            4..=5 => global(random, name),
            _ => of_hosts(random, name),
        };
        policies.push(policy);
    }
    policies
}

fn global(random: &mut Random, name: &str) -> Resource {
    let spec = spec!(
        random,
        GlobalNetworkPolicySpec {
            namespace_selector: if random.one_in(4) {
                of_namespaces(random)
            } else {
                String::new()
            },
            apply_on_forward: random.one_in(3),
            do_not_track: false,
            pre_dnat: false,
        }
    );
    Object::new(name, spec).into()
}

/// A policy that is asked early, or about forwarded packets.
fn of_hosts(random: &mut Random, name: &str) -> Resource {
    let hook = random.below(3);
    let mut spec = spec!(
        random,
        GlobalNetworkPolicySpec {
            namespace_selector: String::new(),
            apply_on_forward: true,
            do_not_track: hook == 1,
            pre_dnat: hook == 2,
        }
    );
    if random.one_in(2) {
        spec.selector = "has(host)".into();
    }
    if spec.pre_dnat {
        spec.egress.clear();
        spec.types = vec![PolicyType::Ingress];
    }
    Object::new(name, spec).into()
}
