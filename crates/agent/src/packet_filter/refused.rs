//! What is not enforced as it is said: for `node status`, and for the objects that it is about.

use api::{Key, Kind};
use dataplane::filter::{Concerns, Problem};
use policy::EndpointId;
use tokio::sync::watch;

use super::PacketFilter;
use crate::refusals::Refusals;

impl PacketFilter {
    /// What is refused, now and later; `None` as long as policy has not been tried.
    pub fn refusals(&self) -> watch::Receiver<Option<Refusals>> {
        self.refusals.subscribe()
    }

    pub(super) fn tell_refusals(&self) {
        // Before all of it has been tried, and while the kernel cannot be told anything, nobody knows.
        if !self.is_complete() || self.broken.is_some() {
            return;
        }
        let refused = Some(refusals(&self.name, &self.filter.problems()));
        self.refusals.send_if_modified(|told| {
            let is_news = *told != refused;
            if is_news {
                *told = refused;
            }
            is_news
        });
    }
}

/// By object. What is the table's own is said of the node.
fn refusals(node: &str, problems: &[Problem]) -> Refusals {
    let mut refused = Refusals::new();
    for problem in problems {
        let (key, text) = match (about(&problem.concerns), &problem.concerns) {
            (Some((key, follows)), _) => (key, format!("{follows}: {}", problem.reason)),
            // The policies that use it say so themselves.
            (None, Concerns::Set(_)) => continue,
            (None, _) => (Key::cluster(Kind::Node, node), shown(problem)),
        };
        let more = |held: &mut String| *held = format!("{held}; {text}");
        refused.entry(key).and_modify(more).or_insert(text.clone());
    }
    refused
}

/// The object that a problem is about, and what follows for it; `None`: it is about no object.
fn about(concerns: &Concerns) -> Option<(Key, &'static str)> {
    const DENIES: &str = "it denies what reaches it";
    const CLOSED: &str = "it is closed";
    match concerns {
        Concerns::Policy(key) => Some((key.clone(), DENIES)),
        Concerns::Profile(name) => Some((Key::cluster(Kind::Profile, name), DENIES)),
        Concerns::Endpoint(EndpointId::Workload(key)) => Some((key.clone(), CLOSED)),
        Concerns::Endpoint(EndpointId::Host(name)) => Some((Key::cluster(Kind::HostEndpoint, name), CLOSED)),
        Concerns::Set(_) | Concerns::Chain(_) | Concerns::Table => None,
    }
}

/// A problem for people.
pub(super) fn shown(problem: &Problem) -> String {
    let what = match (about(&problem.concerns), &problem.concerns) {
        (Some((key, follows)), _) => format!("{key}: {follows}"),
        (None, Concerns::Set(id)) => format!("set {}: policies that use it are closed", id.0),
        (None, Concerns::Chain(name)) => format!("chain {name} of the packet filter"),
        (None, _) => "the packet filter is as it was before the last change".to_owned(),
    };
    format!("{what}: {}", problem.reason)
}

#[cfg(test)]
mod tests {
    use policy::SetId;

    use super::*;

    #[test]
    fn each_object_hears_what_follows_for_it() {
        let problem = |concerns: Concerns| Problem {
            concerns,
            reason: "no memory".to_owned(),
        };
        let policy = Key::namespaced(Kind::NetworkPolicy, "shop", "db");
        let pod = Key::namespaced(Kind::WorkloadEndpoint, "shop", "n1-k8s-db-eth0");
        let problems = [
            Concerns::Policy(policy),
            Concerns::Policy(Key::cluster(Kind::GlobalNetworkPolicy, "all")),
            Concerns::Profile("kns.shop".into()),
            Concerns::Endpoint(EndpointId::Workload(pod)),
            Concerns::Endpoint(EndpointId::Host("eth0".into())),
            Concerns::Set(SetId("s1".into())),
            Concerns::Chain("filter-FORWARD".into()),
            Concerns::Table,
        ];
        let told: Vec<String> = refusals("n1", &problems.map(problem))
            .into_iter()
            .map(|(key, text)| format!("{key} {text}"))
            .collect();
        let expected = [
            "Node(n1) chain filter-FORWARD of the packet filter: no memory; the packet filter is as it was before the last change: no memory",
            "WorkloadEndpoint(shop/n1-k8s-db-eth0) it is closed: no memory",
            "Profile(kns.shop) it denies what reaches it: no memory",
            "NetworkPolicy(shop/db) it denies what reaches it: no memory",
            "GlobalNetworkPolicy(all) it denies what reaches it: no memory",
            "HostEndpoint(eth0) it is closed: no memory",
        ];
        assert_eq!(told, expected);
    }
}
