//! Where a policy's rules and an endpoint's own drops are found in the table: for those who read it back.

use kernel::nft::ChainName;
use policy::evaluate::Way;
use policy::{EndpointId, Interface, PolicyId};

use super::names::{self, Prefix};
use super::rule::{self, COMMENT, Owner};

/// The comment that the kernel's rules of a policy's rule have, without a mark of its tier: one rule may be several there.
pub fn policy_comment(id: &PolicyId, way: Way, rule: &policy::Rule) -> String {
    names::shortened(&rule::comment(&Owner::Policy(id, ""), way_of(way), rule), COMMENT)
}

/// The same for a profile's rule.
pub fn profile_comment(name: &str, way: Way, rule: &policy::Rule) -> String {
    names::shortened(&rule::comment(&Owner::Profile(name), way_of(way), rule), COMMENT)
}

/// The chains of one endpoint alone, with the way that packets take through them.
pub fn endpoint_chains(id: &EndpointId, interface: &Interface) -> Vec<(Way, ChainName)> {
    let prefixes: &[(Way, Prefix)] = match id {
        EndpointId::Workload(_) => &[(Way::Ingress, Prefix::ToWorkload), (Way::Egress, Prefix::FromWorkload)],
        EndpointId::Host(_) => &[
            (Way::Ingress, Prefix::FromHost),
            (Way::Egress, Prefix::ToHost),
            (Way::Ingress, Prefix::FromHostForward),
            (Way::Egress, Prefix::ToHostForward),
            (Way::Ingress, Prefix::FromHostPreDnat),
            (Way::Ingress, Prefix::FromHostUntracked),
            (Way::Egress, Prefix::ToHostUntracked),
        ],
    };
    let name = match (id, interface) {
        (EndpointId::Host(name), _) | (EndpointId::Workload(_), Interface::Named(name)) => name,
        (EndpointId::Workload(_), Interface::All | Interface::WithAddress(_)) => return Vec::new(),
    };
    let chains = prefixes.iter().map(|(way, prefix)| (*way, names::chain(*prefix, name)));
    chains.collect()
}

/// A policy as flow records name it: `np/default/web`.
pub fn short_name(id: &PolicyId) -> String {
    names::policy_name(id)
}

fn way_of(way: Way) -> rule::Way {
    match way {
        Way::Ingress => rule::Way::Ingress,
        Way::Egress => rule::Way::Egress,
    }
}
