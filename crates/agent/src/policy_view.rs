//! Network policy of this node for people: what the agent has compiled, and what the kernel's rules have counted.

use std::collections::{BTreeMap, BTreeSet};

use dataplane::filter::{endpoint_chains, policy_comment, profile_comment};
use kernel::nft::{Count, NftError, RuleState, Rules, Statement, Verdict};
use policy::evaluate::Way;
use policy::{Direction, Endpoint, EndpointId, Interface, PolicyState, Rule, Set, SetId, TierEnd, rule_text};
use serde::{Deserialize, Serialize};

use crate::packet_filter::FilterReport;

/// Everything, as `/policy` answers it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyView {
    /// Why the kernel cannot be told anything, or cannot say what it has.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub broken: Option<String>,
    /// Endpoints of this node.
    pub endpoints: Vec<EndpointView>,
    /// Policies that concern them.
    pub policies: Vec<RulesView>,
    /// Profiles that they name.
    pub profiles: Vec<RulesView>,
    /// Sets that rules use.
    pub sets: Vec<SetView>,
    /// Every rule of the table that has dropped something, by its comment.
    pub drops: Vec<DropView>,
    /// What cannot be followed, and what the kernel refused.
    pub problems: Vec<String>,
}

/// An endpoint.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointView {
    /// Its resource.
    pub id: String,
    /// Its device, `*`, or addresses of the device.
    pub interface: String,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// Its labels, inherited ones included.
    pub labels: BTreeMap<String, String>,
    /// The kernel has its policy as it should be.
    pub enforced: bool,
    /// Why everything is denied.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub closed: Option<String>,
    /// Where its policies are asked.
    pub hooks: Vec<HookView>,
    /// Profiles, asked after all tiers.
    pub profiles: Vec<String>,
    /// What was dropped here and by no policy's rule: ends of tiers, no profile.
    pub drops: Vec<DropView>,
}

/// Tiers of an endpoint at one place.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HookView {
    /// `ingress`, `egress`, `forward ingress`, `forward egress`, `preDNAT`, `untracked ingress`, `untracked egress`.
    pub hook: String,
    /// Tiers, the first one asked first.
    pub tiers: Vec<TierView>,
}

/// A tier of an endpoint.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TierView {
    /// Its name.
    pub name: String,
    /// Policies in order.
    pub policies: Vec<String>,
    /// Staged policies in order.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub staged: Vec<String>,
    /// What happens at its end: `Deny` or `Pass`.
    pub end: String,
}

/// A policy or profile.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RulesView {
    /// Its resource.
    pub id: String,
    /// Its tier.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tier: Option<String>,
    /// Whom it selects.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub selector: Option<String>,
    /// A profile that does not exist: it allows nothing.
    #[serde(default)]
    pub missing: bool,
    /// Ingress rules, then egress rules.
    pub rules: Vec<RuleView>,
}

/// A rule.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleView {
    /// `ingress` or `egress`.
    pub way: String,
    /// As written, from 0.
    pub index: usize,
    /// What it says.
    pub text: String,
    /// How many rules of the kernel it is; none: it can match nothing, or the policy is not asked for this direction.
    pub kernel_rules: usize,
    /// Packets that matched, if the kernel counts them.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub packets: Option<u64>,
    /// Their bytes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bytes: Option<u64>,
}

/// A set.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SetView {
    /// Its name, in the kernel's names too.
    pub id: String,
    /// What it stands for.
    pub meaning: String,
    /// How many members it has.
    pub members: usize,
}

/// Packets that were dropped for one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DropView {
    /// The rule's comment.
    pub why: String,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What the packet filter knows, as it was at one moment. Most of it is shared with the packet filter; making a view of it
/// takes time, and can be done on another thread.
#[derive(Debug)]
pub struct Known {
    /// Sets without their members.
    state: PolicyState,
    members: BTreeMap<SetId, usize>,
    enforced: BTreeSet<EndpointId>,
    problems: Vec<String>,
    broken: Option<String>,
}

impl Known {
    pub(crate) fn new(state: &PolicyState, enforced: BTreeSet<EndpointId>, report: FilterReport) -> Self {
        let without_members = |set: &Set| Set {
            kind: set.kind,
            meaning: set.meaning.clone(),
            members: BTreeSet::new(),
        };
        let sets = state.sets.iter();
        Self {
            members: sets.clone().map(|(id, set)| (id.clone(), set.members.len())).collect(),
            state: PolicyState {
                endpoints: state.endpoints.clone(),
                policies: state.policies.clone(),
                profiles: state.profiles.clone(),
                sets: sets.map(|(id, set)| (id.clone(), without_members(set))).collect(),
            },
            enforced,
            problems: report.problems,
            broken: report.broken,
        }
    }

    /// It with the kernel's rules, or without if they could not be read.
    pub fn view(&self, rules: &Result<Rules, NftError>) -> PolicyView {
        let none = Rules::new();
        let (rules, unread) = match rules {
            Ok(rules) => (rules, None),
            Err(error) => (&none, Some(error.to_string())),
        };
        let state = &self.state;
        let counts = Counts::new(rules);
        let policies = state.policies.iter().map(|(id, policy)| RulesView {
            id: id.to_string(),
            tier: Some(policy.tier.clone()),
            selector: Some(policy.selector.clone()),
            missing: false,
            rules: counts.rules(state, &policy.ingress, &policy.egress, &|way, rule| {
                policy_comment(id, way, rule)
            }),
        });
        let profiles = state.profiles.iter().map(|(name, profile)| RulesView {
            id: format!("Profile({name})"),
            tier: None,
            selector: None,
            missing: profile.missing,
            rules: counts.rules(state, &profile.ingress, &profile.egress, &|way, rule| {
                profile_comment(name, way, rule)
            }),
        });
        let sets = state.sets.iter().map(|(id, set)| SetView {
            id: id.0.clone(),
            meaning: set.meaning.clone(),
            members: self.members.get(id).copied().unwrap_or_default(),
        });
        let endpoints = state.endpoints.iter();
        PolicyView {
            endpoints: endpoints
                .map(|(id, endpoint)| self.endpoint(id, endpoint, rules))
                .collect(),
            policies: policies.collect(),
            profiles: profiles.collect(),
            sets: sets.collect(),
            drops: drops(rules.values().flatten()),
            problems: self.problems.clone(),
            broken: self.broken.clone().or(unread),
        }
    }

    fn endpoint(&self, id: &EndpointId, endpoint: &Endpoint, rules: &Rules) -> EndpointView {
        let hooks = [
            ("ingress", &endpoint.ingress),
            ("egress", &endpoint.egress),
            ("forward ingress", &endpoint.forward.ingress),
            ("forward egress", &endpoint.forward.egress),
            ("preDNAT", &endpoint.pre_dnat),
            ("untracked ingress", &endpoint.untracked.ingress),
            ("untracked egress", &endpoint.untracked.egress),
        ];
        let chains = endpoint_chains(id, &endpoint.interface);
        let own = chains.iter().filter_map(|(_, chain)| rules.get(chain)).flatten();
        let list = |addresses: &[std::net::IpAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
        EndpointView {
            id: id.to_string(),
            interface: match &endpoint.interface {
                Interface::Named(name) => name.clone(),
                Interface::All => "*".into(),
                Interface::WithAddress(addresses) => list(addresses).join(","),
            },
            addresses: list(&endpoint.addresses),
            labels: endpoint.labels.clone(),
            enforced: self.enforced.contains(id),
            closed: endpoint.closed.clone(),
            hooks: hooks
                .into_iter()
                .filter_map(|(hook, direction)| hook_view(hook, direction))
                .collect(),
            profiles: endpoint.profiles.clone(),
            drops: drops(own),
        }
    }
}

fn hook_view(hook: &str, direction: &Direction) -> Option<HookView> {
    let tiers = direction.tiers.iter().map(|tier| TierView {
        name: tier.name.clone(),
        policies: tier.policies.iter().map(ToString::to_string).collect(),
        staged: tier.staged.iter().map(|staged| staged.id.to_string()).collect(),
        end: match tier.end {
            TierEnd::Deny => "Deny",
            TierEnd::Pass => "Pass",
        }
        .to_owned(),
    });
    (!direction.tiers.is_empty()).then(|| HookView {
        hook: hook.to_owned(),
        tiers: tiers.collect(),
    })
}

/// What rules dropped or refused, by comment; those that have dropped most first.
fn drops<'r>(rules: impl Iterator<Item = &'r RuleState>) -> Vec<DropView> {
    let mut sums: BTreeMap<&str, Count> = BTreeMap::new();
    for state in rules {
        // A rule that cannot be read whole: no rule of ours counts what it lets pass.
        let denies = state.rule.as_ref().is_none_or(|rule| {
            let refuses = |statement: &Statement| matches!(statement, Statement::Reject);
            rule.verdict == Some(Verdict::Drop) || rule.actions.iter().any(refuses)
        });
        if !denies {
            continue;
        }
        if let Some(count) = state.count.filter(|count| count.packets > 0) {
            let sum = sums
                .entry(state.comment.as_deref().unwrap_or("no comment"))
                .or_default();
            sum.packets += count.packets;
            sum.bytes += count.bytes;
        }
    }
    let view = |(why, count): (&str, Count)| DropView {
        why: why.to_owned(),
        packets: count.packets,
        bytes: count.bytes,
    };
    let mut drops: Vec<DropView> = sums.into_iter().map(view).collect();
    drops.sort_by_key(|drop| std::cmp::Reverse(drop.packets));
    drops
}

/// The kernel's rules by comment: how many, and what they counted.
struct Counts<'r> {
    by_comment: BTreeMap<&'r str, (usize, Option<Count>)>,
}

impl<'r> Counts<'r> {
    fn new(rules: &'r Rules) -> Self {
        let mut by_comment: BTreeMap<&str, (usize, Option<Count>)> = BTreeMap::new();
        for state in rules.values().flatten() {
            let Some(comment) = state.comment.as_deref() else {
                continue;
            };
            let (number, sum) = by_comment.entry(comment).or_default();
            *number += 1;
            if let Some(count) = state.count {
                let sum = sum.get_or_insert_default();
                sum.packets += count.packets;
                sum.bytes += count.bytes;
            }
        }
        Self { by_comment }
    }

    fn rules(
        &self,
        state: &PolicyState,
        ingress: &[Rule],
        egress: &[Rule],
        comment: &dyn Fn(Way, &Rule) -> String,
    ) -> Vec<RuleView> {
        let view = |way: Way, word: &str, rule: &Rule| {
            let (number, count) = self
                .by_comment
                .get(comment(way, rule).as_str())
                .copied()
                .unwrap_or_default();
            RuleView {
                way: word.to_owned(),
                index: rule.index,
                text: rule_text(state, rule),
                kernel_rules: number,
                packets: count.map(|count| count.packets),
                bytes: count.map(|count| count.bytes),
            }
        };
        let ingress = ingress.iter().map(|rule| view(Way::Ingress, "ingress", rule));
        let egress = egress.iter().map(|rule| view(Way::Egress, "egress", rule));
        ingress.chain(egress).collect()
    }
}

#[cfg(test)]
mod tests {
    use api::Resource;
    use datastore::Update;
    use kernel::IfName;
    use kernel::nft::FakeNft;

    use super::*;
    use crate::packet_filter::PacketFilter;

    const RESOURCES: &str = r#"
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  selector: all()
  types: [Ingress]
  ingress:
  - {action: Allow, protocol: TCP, source: {selector: role == "api"}, destination: {ports: [5432]}}
  - {action: Deny, protocol: UDP}
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: n1-k8s-db-eth0, namespace: shop}
spec: {orchestrator: k8s, node: n1, pod: db, endpoint: eth0, ipNetworks: [192.168.1.10/32], profiles: [gone], interfaceName: cali1}
"#;

    #[test]
    fn what_is_compiled_is_found_in_the_kernel_by_its_comments() {
        let kernel = FakeNft::default();
        let mut filter = PacketFilter::new("n1", Box::new(kernel), IfName::from("tunl0"));
        for mut resource in api::document::read("test", RESOURCES).expect("it is right") {
            resource.apply_defaults();
            if let Resource::WorkloadEndpoint(endpoint) = &resource {
                let local = dataplane::LocalEndpoint {
                    device: IfName::from("cali1"),
                    addresses: endpoint.spec.ip_networks.iter().map(|net| net.addr()).collect(),
                    fresh: false,
                };
                filter.endpoint("one", Some((&local, endpoint.clone())));
            }
            filter.apply(Update {
                key: resource.key(),
                value: Some(resource),
            });
        }
        filter.in_sync();
        filter.endpoints_loaded();
        block_on(filter.settle());
        let rules = block_on(filter.read_rules());
        let view = filter.known().view(&rules);
        assert_eq!(view.broken, None);
        let [endpoint] = &view.endpoints[..] else {
            panic!("{view:?}")
        };
        assert!(endpoint.enforced, "{endpoint:?}");
        assert_eq!(endpoint.hooks[0].tiers[0].policies, ["NetworkPolicy(shop/db)"]);
        let rules: Vec<_> = view.policies[0]
            .rules
            .iter()
            .map(|rule| (&*rule.text, rule.kernel_rules, rule.packets))
            .collect();
        assert_eq!(
            rules,
            [
                (
                    r#"Allow TCP from (projectcalico.org/namespace == "shop" && role == "api") to port 5432"#,
                    2,
                    Some(0)
                ),
                ("Deny UDP", 1, Some(0))
            ]
        );
        assert!(view.profiles[0].missing);
        assert_eq!((view.sets.len(), view.sets[0].members), (1, 0));
        let json = serde_json::to_string(&view).expect("it has a JSON form");
        let back: PolicyView = serde_json::from_str(&json).expect("it reads its own form");
        assert_eq!(serde_json::to_string(&back).expect("it has a JSON form"), json);
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.expect("a runtime").block_on(future)
    }
}
