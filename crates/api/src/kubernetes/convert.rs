//! Kubernetes' policies to ours, rule by rule.

use ipnet::IpNet;

use super::ports::Ports;
use super::selector::{all_pods, namespaces, pods};
use super::{
    ClusterAction, ClusterNetworkPolicy, ClusterTier, IpBlock, K8sNetworkPolicy, K8sNetworkPolicySpec, K8sPeer,
    LabelSelector, NETWORK_POLICY_ORDER, NamespacedPod,
};
use crate::names::{K8S_CLUSTER_POLICY_PREFIX, K8S_POLICY_PREFIX, derived_uid};
use crate::problem::Problems;
use crate::{
    Action, BuiltInTier, EntityRule, FieldProblem, GlobalNetworkPolicy, GlobalNetworkPolicySpec, Metadata,
    NetworkPolicy, NetworkPolicySpec, Object, Order, PolicyType, Rule, RuleMetadata,
};

impl K8sNetworkPolicy {
    /// The NetworkPolicy that it is, called `knp.default.` and its name, and what could not be converted.
    pub fn to_network_policy(&self) -> (NetworkPolicy, Vec<FieldProblem>) {
        let mut problems = Problems::new();
        let spec = problems.within("spec", |problems| self.spec.convert(problems));
        let policy = Object {
            metadata: Metadata {
                namespace: Some(self.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned())),
                ..derived(&self.metadata, K8S_POLICY_PREFIX.to_owned())
            },
            spec,
            status: None,
        };
        (policy, problems.into_vec())
    }
}

impl K8sNetworkPolicySpec {
    /// The spec that it is; problems' paths start below it.
    pub(crate) fn convert(&self, problems: &mut Problems) -> NetworkPolicySpec {
        let mut ingress = Vec::new();
        problems.each("ingress", &self.ingress, |problems, rule| {
            let ports = Ports::of_network_policy(&rule.ports, problems);
            let sources = peers("from", &rule.from, problems);
            ingress.extend(combined(Action::Allow, ports, sources, PolicyType::Ingress));
        });
        let mut egress = Vec::new();
        problems.each("egress", &self.egress, |problems, rule| {
            let ports = Ports::of_network_policy(&rule.ports, problems);
            let destinations = peers("to", &rule.to, problems);
            egress.extend(combined(Action::Allow, ports, destinations, PolicyType::Egress));
        });
        let selector = pods("podSelector", Some(&self.pod_selector), problems).unwrap_or_else(|| {
            // Whom it applies to is not known: nothing may come to or leave any pod of the namespace by it.
            ingress.clear();
            egress.clear();
            all_pods()
        });
        NetworkPolicySpec {
            tier: BuiltInTier::DEFAULT.name.to_owned(),
            order: NETWORK_POLICY_ORDER,
            selector,
            types: self.types(),
            ingress,
            egress,
            ..NetworkPolicySpec::default()
        }
    }

    /// The directions: as Kubernetes' API server fills them in if there are none.
    fn types(&self) -> Vec<PolicyType> {
        let has = |wanted| match self.policy_types.as_slice() {
            [] => wanted == PolicyType::Ingress || !self.egress.is_empty(),
            types => types.contains(&wanted),
        };
        let both = [PolicyType::Ingress, PolicyType::Egress];
        both.into_iter().filter(|direction| has(*direction)).collect()
    }
}

/// The other sides of a NetworkPolicy's rule; no peers are everything. `None` if one of them is wrong.
fn peers(field: &str, listed: &[K8sPeer], problems: &mut Problems) -> Option<Vec<EntityRule>> {
    if listed.is_empty() {
        return Some(vec![EntityRule::default()]);
    }
    let mut sides = Vec::new();
    problems.each(field, listed, |problems, listed| sides.push(peer(listed, problems)));
    sides.into_iter().collect()
}

fn peer(peer: &K8sPeer, problems: &mut Problems) -> Option<EntityRule> {
    match (&peer.ip_block, &peer.pod_selector, &peer.namespace_selector) {
        (Some(block), None, None) => problems.within("ipBlock", |problems| ip_block(block, problems)),
        (Some(_), _, _) => {
            problems.missing("ipBlock", "must stand alone, without selectors");
            None
        }
        // A peer of another version, perhaps: not everybody.
        (None, None, None) => {
            problems.missing("", "must have ipBlock, podSelector or namespaceSelector");
            None
        }
        (None, pod_selector, namespace_selector) => {
            let selector = pods("podSelector", pod_selector.as_ref(), problems);
            let namespace_selector = namespaces("namespaceSelector", namespace_selector.as_ref(), problems);
            Some(EntityRule {
                selector: selector?,
                namespace_selector: namespace_selector?,
                ..EntityRule::default()
            })
        }
    }
}

fn ip_block(block: &IpBlock, problems: &mut Problems) -> Option<EntityRule> {
    let cidr = prefix("cidr", &block.cidr, problems);
    let mut except = Vec::new();
    problems.each("except", &block.except, |problems, hole| {
        let read = prefix("", hole, problems);
        let outside = |cidr: &IpNet| read.is_some_and(|hole| !cidr.contains(&hole) || hole == *cidr);
        if cidr.as_ref().is_some_and(outside) {
            problems.report("", hole, format!("must lie within {} and not be all of it", block.cidr));
            except.push(None);
        } else {
            except.push(read);
        }
    });
    let not_nets: Option<Vec<IpNet>> = except.into_iter().collect();
    Some(EntityRule {
        nets: vec![cidr?],
        not_nets: not_nets?,
        ..EntityRule::default()
    })
}

/// A prefix as written with a length; bits behind it mean nothing.
fn prefix(field: &str, text: &str, problems: &mut Problems) -> Option<IpNet> {
    let net = text.parse().ok().map(|net: IpNet| net.trunc());
    if net.is_none() {
        problems.report(field, text, "must be an address range like 10.0.0.0/16 or fd00::/64");
    }
    net
}

/// A rule for each protocol and peer: whichever matches, the same is done. Nothing if one of both could not be read.
fn combined(action: Action, ports: Option<Ports>, sides: Option<Vec<EntityRule>>, direction: PolicyType) -> Vec<Rule> {
    let (Some(ports), Some(sides)) = (ports, sides) else {
        return Vec::new();
    };
    let mut rules = Vec::new();
    for (protocol, ports) in ports.rules() {
        for side in &sides {
            let mut rule = Rule::any(action);
            rule.protocol = protocol.clone();
            match direction {
                PolicyType::Ingress => rule.source = side.clone(),
                PolicyType::Egress => rule.destination = side.clone(),
            }
            rule.destination.ports = ports.clone();
            rules.push(rule);
        }
    }
    rules
}

impl ClusterNetworkPolicy {
    /// The GlobalNetworkPolicy that it is, called `kcnp.`, the tier, a dot and its name, and what could not be converted.
    pub fn to_global_network_policy(&self) -> (GlobalNetworkPolicy, Vec<FieldProblem>) {
        let mut problems = Problems::new();
        let tier = match self.spec.tier {
            ClusterTier::Admin => BuiltInTier::KUBE_ADMIN,
            ClusterTier::Baseline => BuiltInTier::KUBE_BASELINE,
        };
        let spec = problems.within("spec", |problems| self.converted_spec(tier.name, problems));
        let policy = Object {
            metadata: derived(&self.metadata, format!("{K8S_CLUSTER_POLICY_PREFIX}{}.", tier.name)),
            spec,
            status: None,
        };
        (policy, problems.into_vec())
    }

    fn converted_spec(&self, tier: &str, problems: &mut Problems) -> GlobalNetworkPolicySpec {
        let mut ingress = Vec::new();
        problems.each("ingress", &self.spec.ingress, |problems, rule| {
            let ports = Ports::of_cluster_network_policy(&rule.protocols, problems);
            let sides = sides("from", &rule.from, problems, |peer, problems| {
                cluster_peer(peer.namespaces.as_ref(), peer.pods.as_ref(), &[], problems)
            });
            let action = cluster_action(rule.action, problems);
            ingress.extend(cluster_rules(action, &rule.name, ports, sides, PolicyType::Ingress));
        });
        let mut egress = Vec::new();
        problems.each("egress", &self.spec.egress, |problems, rule| {
            let ports = Ports::of_cluster_network_policy(&rule.protocols, problems);
            let sides = sides("to", &rule.to, problems, |peer, problems| {
                cluster_peer(peer.namespaces.as_ref(), peer.pods.as_ref(), &peer.networks, problems)
            });
            let action = cluster_action(rule.action, problems);
            egress.extend(cluster_rules(action, &rule.name, ports, sides, PolicyType::Egress));
        });
        let subject = problems.within("subject", |problems| self.spec.subject_selectors(problems));
        let (namespace_selector, selector) = subject.unwrap_or_else(|| {
            // Whom it applies to is not known: what it denies is denied to every pod, what it accepts to none.
            ingress.retain(|rule| rule.action == Action::Deny);
            egress.retain(|rule| rule.action == Action::Deny);
            ("all()".to_owned(), all_pods())
        });
        // The tiers of these policies pass on what no rule matched, so a direction without rules is none.
        let used = [(PolicyType::Ingress, &ingress), (PolicyType::Egress, &egress)];
        let types = used
            .iter()
            .filter(|(_, rules)| !rules.is_empty())
            .map(|(kind, _)| *kind);
        GlobalNetworkPolicySpec {
            tier: tier.to_owned(),
            order: Order::whole(self.spec.priority),
            types: types.collect(),
            selector,
            namespace_selector,
            ingress,
            egress,
            ..GlobalNetworkPolicySpec::default()
        }
    }
}

impl super::ClusterNetworkPolicySpec {
    /// Namespace selector and selector of the pods that it applies to, if that is known.
    fn subject_selectors(&self, problems: &mut Problems) -> Option<(String, String)> {
        match (&self.subject.namespaces, &self.subject.pods) {
            (Some(selector), None) => namespaces("namespaces", Some(selector), problems).zip(Some(all_pods())),
            (None, Some(both)) => problems.within("pods", |problems| namespaced_pods(both, problems)),
            (None, None) | (Some(_), Some(_)) => {
                problems.missing("", "must have one of namespaces and pods");
                None
            }
        }
    }
}

/// The other sides of a ClusterNetworkPolicy's rule. `None` if there are none or one of them is wrong.
fn sides<P>(
    field: &str,
    peers: &[P],
    problems: &mut Problems,
    mut read: impl FnMut(&P, &mut Problems) -> Option<EntityRule>,
) -> Option<Vec<EntityRule>> {
    if peers.is_empty() {
        problems.missing(field, "is required: at least one");
        return None;
    }
    let mut sides = Vec::new();
    problems.each(field, peers, |problems, peer| sides.push(read(peer, problems)));
    sides.into_iter().collect()
}

fn cluster_peer(
    in_namespaces: Option<&LabelSelector>,
    both: Option<&NamespacedPod>,
    networks: &[String],
    problems: &mut Problems,
) -> Option<EntityRule> {
    match (in_namespaces, both, networks) {
        (Some(selector), None, []) => {
            let namespace_selector = namespaces("namespaces", Some(selector), problems)?;
            Some(EntityRule {
                namespace_selector,
                ..EntityRule::default()
            })
        }
        (None, Some(both), []) => {
            let (namespace_selector, selector) = problems.within("pods", |problems| namespaced_pods(both, problems))?;
            Some(EntityRule {
                selector,
                namespace_selector,
                ..EntityRule::default()
            })
        }
        (None, None, [_, ..]) => {
            let mut nets = Vec::new();
            problems.each("networks", networks, |problems, network| {
                nets.push(prefix("", network, problems));
            });
            let nets: Option<Vec<IpNet>> = nets.into_iter().collect();
            Some(EntityRule {
                nets: nets?,
                ..EntityRule::default()
            })
        }
        // Nodes, domain names, and what later versions have.
        _ => {
            problems.missing("", "must have one of namespaces, pods and (in `to`) networks");
            None
        }
    }
}

/// Namespace selector and selector.
fn namespaced_pods(both: &NamespacedPod, problems: &mut Problems) -> Option<(String, String)> {
    let namespace_selector = namespaces("namespaceSelector", Some(&both.namespace_selector), problems);
    let selector = pods("podSelector", Some(&both.pod_selector), problems);
    namespace_selector.zip(selector)
}

/// The rules that a ClusterNetworkPolicy's rule is. One that cannot be read denies everything, unless it accepts: then
/// it is left out.
fn cluster_rules(
    action: Option<Action>,
    name: &str,
    ports: Option<Ports>,
    sides: Option<Vec<EntityRule>>,
    direction: PolicyType,
) -> Vec<Rule> {
    let is_right = ports.is_some() && sides.is_some();
    let mut rules = match action {
        Some(action) if is_right => by_family(combined(action, ports, sides, direction)),
        // A Pass that is left out would let the rules after it accept what it takes away from them.
        Some(Action::Deny | Action::Pass) => return vec![Rule::any(Action::Deny)],
        Some(Action::Allow | Action::Log) | None => return Vec::new(),
    };
    if !name.is_empty() {
        for rule in &mut rules {
            let mut metadata = RuleMetadata::default();
            metadata.annotations.insert("name".to_owned(), name.to_owned());
            rule.metadata = Some(metadata);
        }
    }
    rules
}

/// What a rule does, if that is known.
fn cluster_action(action: ClusterAction, problems: &mut Problems) -> Option<Action> {
    match action {
        ClusterAction::Accept => Some(Action::Allow),
        ClusterAction::Deny => Some(Action::Deny),
        ClusterAction::Pass => Some(Action::Pass),
        ClusterAction::Unknown => {
            problems.missing("action", "must be one of Accept, Deny, Pass");
            None
        }
    }
}

/// A rule whose prefixes are of both families is two: one rule has those of one family alone.
fn by_family(rules: Vec<Rule>) -> Vec<Rule> {
    let mut split = Vec::new();
    for rule in rules {
        let (v4, v6): (Vec<IpNet>, Vec<IpNet>) = rule.destination.nets.iter().partition(|net| net.addr().is_ipv4());
        if v4.is_empty() || v6.is_empty() {
            split.push(rule);
            continue;
        }
        for nets in [v4, v6] {
            let mut one = rule.clone();
            one.destination.nets = nets;
            split.push(one);
        }
    }
    split
}

/// Metadata of what is made of an object.
fn derived(metadata: &Metadata, prefix: String) -> Metadata {
    Metadata {
        name: prefix + &metadata.name,
        creation_timestamp: metadata.creation_timestamp,
        uid: metadata.uid.as_deref().and_then(derived_uid),
        resource_version: metadata.resource_version.clone(),
        ..Metadata::default()
    }
}
