//! Tells people of policies and profiles that this node's kernel refuses, and when it takes them again.
//!
//! As news of the object that name the node: a condition is the cluster's judgement, and the next node's kernel may take the same rules.
//! What an earlier agent told and did not take back is forgotten by the store's own time.

use std::collections::BTreeMap;
use std::time::Duration;

use api::Key;
use datastore::{News, SharedStore};
use tokio::sync::watch;

/// What the kernel refuses: resources, and its reasons.
pub type Refusals = BTreeMap<Key, String>;

/// Time before what could not be told is told again.
const PAUSE: Duration = Duration::from_secs(5);
/// Where news are forgotten after an hour, they are told again before.
const AGAIN: Duration = Duration::from_secs(40 * 60);

/// Tells what changes until nobody refuses anything any more.
pub async fn tell(node: String, store: SharedStore, mut refusals: watch::Receiver<Refusals>) {
    let mut told = Refusals::new();
    loop {
        let now = refusals.borrow_and_update().clone();
        let mut failed = false;
        for news in news(&node, &told, &now) {
            match store.tell(&news).await {
                Ok(()) => match now.get(&news.about) {
                    Some(reason) => drop(told.insert(news.about, reason.clone())),
                    None => drop(told.remove(&news.about)),
                },
                Err(error) => {
                    tracing::debug!(about = %news.about, %error, "news that could not be told");
                    failed = true;
                }
            }
        }
        let again = if failed { PAUSE } else { AGAIN };
        match tokio::time::timeout(again, refusals.changed()).await {
            Ok(Err(_)) => return,
            Ok(Ok(())) => {}
            Err(_) if failed => {}
            // Told again, before it is forgotten.
            Err(_) => told.clear(),
        }
    }
}

/// What to tell where `told` was told before.
fn news(node: &str, told: &Refusals, now: &Refusals) -> Vec<News> {
    let of = |about: &Key, is_warning: bool, reason: &str, message: String| News {
        about: about.clone(),
        is_warning,
        reason: reason.to_owned(),
        message,
        reporter: "margay-agent".to_owned(),
        node: Some(node.to_owned()),
    };
    let refused = now.iter().filter(|(key, reason)| told.get(*key) != Some(reason));
    let refused = refused.map(|(key, reason)| {
        let message =
            format!("the kernel of node {node} refuses its rules, so there it denies what reaches it: {reason}");
        of(key, true, "RulesRefused", message)
    });
    let taken = told.keys().filter(|key| !now.contains_key(*key));
    let taken = taken.map(|key| {
        let message = format!("the kernel of node {node} has its rules again");
        of(key, false, "RulesAccepted", message)
    });
    refused.chain(taken).collect()
}

#[cfg(test)]
mod tests {
    use api::Kind;

    use super::*;

    fn refusals(names: &str) -> Refusals {
        let one = |name: &str| (Key::cluster(Kind::GlobalNetworkPolicy, name), "no memory".to_owned());
        names.split_whitespace().map(one).collect()
    }

    #[test]
    fn only_what_changed_is_told() {
        let check = |told: &str, now: &str, expected: &[&str]| {
            let news = news("n1", &refusals(told), &refusals(now));
            let said: Vec<String> = news
                .iter()
                .map(|news| format!("{} {}", news.reason, news.about.name))
                .collect();
            assert_eq!(said, expected, "{told} -> {now}");
        };
        check("", "a b", &["RulesRefused a", "RulesRefused b"]);
        check("a b", "a b", &[]);
        check("a b", "b", &["RulesAccepted a"]);
        let [one] = news("n1", &refusals(""), &refusals("a")).try_into().expect("one");
        assert_eq!(
            one.message,
            "the kernel of node n1 refuses its rules, so there it denies what reaches it: no memory"
        );
    }
}
