//! What is not enforced as it is said: for `node status`, and for the objects that it is about.

use std::collections::BTreeMap;

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

    /// Says what is refused: in the log, and to who writes it on objects.
    pub(super) fn tell_refusals(&mut self) {
        // What is tried again and cannot be said to the kernel is refused as before.
        if self.broken.is_none() {
            for (is_refused, line) in self.logged.news(&self.filter.problems()) {
                match is_refused {
                    true => tracing::warn!("packet filter: {line}"),
                    false => tracing::info!("packet filter: {line}"),
                }
            }
        }
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

/// What was logged. What is refused is tried again every few seconds, and logged when it begins, when its reason changes and when it
/// ends.
#[derive(Debug, Default)]
pub(super) struct Logged {
    refused: BTreeMap<Concerns, String>,
    broken: Option<String>,
}

impl Logged {
    /// Lines about what differs from what was logged; `true`: of something that is refused.
    fn news(&mut self, problems: &[Problem]) -> Vec<(bool, String)> {
        let mut now: BTreeMap<Concerns, String> = BTreeMap::new();
        for problem in problems {
            let more = |held: &mut String| *held = format!("{held}; {}", problem.reason);
            let reason = now.entry(problem.concerns.clone());
            reason.and_modify(more).or_insert_with(|| problem.reason.clone());
        }
        let ended = self.refused.keys().filter(|concerns| !now.contains_key(concerns));
        let mut lines: Vec<(bool, String)> = ended
            .map(|concerns| (false, format!("no more refused: {}", what(concerns).0)))
            .collect();
        let news = now
            .iter()
            .filter(|(concerns, reason)| self.refused.get(concerns) != Some(reason));
        lines.extend(news.map(|(concerns, reason)| (true, format!("{}: {reason}; trying again", followed(concerns)))));
        self.refused = now;
        lines
    }

    /// The kernel cannot be asked or told anything; whether that, or why, is news.
    pub fn broke(&mut self, why: &str) -> bool {
        let is_news = self.broken.as_deref() != Some(why);
        self.broken = Some(why.to_owned());
        is_news
    }

    /// It can again, and there is nothing left to tell it.
    pub fn works(&mut self) {
        self.broken = None;
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
    format!("{}: {}", followed(&problem.concerns), problem.reason)
}

/// What a problem is about, with what follows.
fn followed(concerns: &Concerns) -> String {
    let (what, follows) = what(concerns);
    match follows {
        Some(follows) => format!("{what}: {follows}"),
        None => what,
    }
}

/// What a problem is about; and what follows, unless that says it already.
fn what(concerns: &Concerns) -> (String, Option<&'static str>) {
    match (about(concerns), concerns) {
        (Some((key, follows)), _) => (key.to_string(), Some(follows)),
        (None, Concerns::Set(id)) => (format!("set {}", id.0), Some("policies that use it are closed")),
        (None, Concerns::Chain(name)) => (format!("chain {name} of the packet filter"), None),
        (None, _) => ("the packet filter is as it was before the last change".to_owned(), None),
    }
}

#[cfg(test)]
mod tests {
    use kernel::IfName;
    use kernel::nft::{Cause, FakeNft, NftError};
    use policy::SetId;

    use super::*;
    use crate::warnings::Warnings;

    #[tokio::test]
    async fn what_is_tried_in_vain_again_and_again_is_one_line_for_each_reason() {
        let refused = |reason: &str| NftError::Refused {
            change: None,
            what: "all of it".to_owned(),
            cause: Cause::TooDeep,
            reason: reason.to_owned(),
            errno: 31,
        };
        let broken = || NftError::Broken("no buffer".to_owned());
        let warnings = Warnings::default();
        let _listens = warnings.listen();
        let kernel = FakeNft::default();
        let mut filter = PacketFilter::new("n1", Box::new(kernel.clone()), IfName::from("tunl0"));
        let (mut said, mut failed) = (0, 0);
        for (error, lines) in [
            (refused("too deep"), 1),
            (refused("too deep"), 0),
            (refused("in a circle"), 1),
            (broken(), 1),
            (broken(), 0),
        ] {
            kernel.heal();
            kernel.fail(usize::MAX, error.clone(), |_| true);
            for _ in 0..3 {
                filter.retry();
                filter.settle().await;
            }
            said += lines;
            assert_eq!(warnings.count(), said, "{error}");
            // It is tried all the same.
            assert!(filter.report().applied.failed >= failed + 3, "{error}");
            failed = filter.report().applied.failed;
        }
        kernel.heal();
        filter.retry();
        filter.settle().await;
        assert_eq!(filter.report().applied.transactions, 1);
        assert_eq!(filter.report().problems, Vec::<String>::new());
        assert_eq!(warnings.count(), said);
    }

    #[test]
    fn what_is_refused_is_logged_when_it_begins_changes_and_ends() {
        let mut logged = Logged::default();
        let policy = |name: &str| Concerns::Policy(Key::cluster(Kind::GlobalNetworkPolicy, name));
        let mut check = |refused: &[(Concerns, &str)], expected: &[&str]| {
            let problem = |(concerns, reason): &(Concerns, &str)| Problem {
                concerns: concerns.clone(),
                reason: (*reason).to_owned(),
            };
            let problems: Vec<Problem> = refused.iter().map(problem).collect();
            let lines = logged.news(&problems).into_iter();
            let level = |warns| if warns { "WARN" } else { "INFO" };
            let lines: Vec<String> = lines.map(|(warns, line)| format!("{} {line}", level(warns))).collect();
            assert_eq!(lines, expected, "{refused:?}");
        };
        check(&[], &[]);
        let first = "WARN GlobalNetworkPolicy(a): it denies what reaches it: no memory; trying again";
        check(&[(policy("a"), "no memory")], &[first]);
        check(&[(policy("a"), "no memory")], &[]);
        let other = "WARN GlobalNetworkPolicy(b): it denies what reaches it: no memory; trying again";
        check(&[(policy("a"), "no memory"), (policy("b"), "no memory")], &[other]);
        // One that has two chains.
        let both = "WARN GlobalNetworkPolicy(a): it denies what reaches it: too many; no memory; trying again";
        let ended = "INFO no more refused: GlobalNetworkPolicy(b)";
        check(&[(policy("a"), "too many"), (policy("a"), "no memory")], &[ended, both]);
        let table = "WARN the packet filter is as it was before the last change: not permitted; trying again";
        let ended = "INFO no more refused: GlobalNetworkPolicy(a)";
        check(&[(Concerns::Table, "not permitted")], &[ended, table]);
        let ended = "INFO no more refused: the packet filter is as it was before the last change";
        check(&[], &[ended]);
        check(&[(policy("a"), "no memory")], &[first]);
    }

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
