//! The lines of a row's watch as changes: what came already, and what is no news, comes only once.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use api::{Key, Resource};
use datastore::changes::Change;
use serde::Deserialize;
use serde_json::Value;

use super::super::error::{ApiError, Asked};
use super::super::group::Groups;
use super::super::table::{Row, Source};
use super::super::workload::Seen;
use super::super::{convert, derived};
use super::place;

/// What is known between the lines of a watch, and from one request to the next.
pub(super) struct Reader {
    /// Everything up to this version has been seen.
    pub at: u64,
    news: News,
    pub seen: Arc<Seen>,
}

impl Reader {
    /// One that has seen everything up to version `at`. What is seen of pods and namespaces is noted in `seen`.
    pub fn new(at: u64, seen: Arc<Seen>) -> Self {
        Self {
            at,
            news: News::default(),
            seen,
        }
    }

    /// What a line says that is new, at its places in the log.
    pub fn take(&mut self, row: Row, groups: &Groups, line: &[u8]) -> Result<Vec<Change<Resource>>, ApiError> {
        let event: Event =
            serde_json::from_slice(line).map_err(|error| ApiError::Half(format!("an event of a watch: {error}")))?;
        if event.kind == "ERROR" {
            let asked = Asked {
                verb: "watch",
                resource: row.resource(groups),
            };
            let code = event.object["code"].as_u64().and_then(|code| u16::try_from(code).ok());
            let body = event.object.to_string();
            return Err(ApiError::from_answer(&asked, code.unwrap_or(500), body.as_bytes()));
        }
        let number = convert::number(&event.object);
        let number = number.ok_or_else(|| ApiError::Half("an event without a resourceVersion".into()))?;
        if number < self.at {
            // The server's data are from an older snapshot: what we hold is from a future that never was.
            return Err(ApiError::WentBack {
                from: self.at,
                to: number,
            });
        }
        if number == self.at {
            return Ok(Vec::new());
        }
        self.at = number;
        if event.kind == "BOOKMARK" {
            return Ok(Vec::new());
        }
        let deleted = event.kind == "DELETED";
        self.seen.note(row, &event.object, number, deleted);
        let Some(key) = convert::key(row, &event.object) else {
            return Ok(Vec::new());
        };
        let value = match deleted {
            true => None,
            false => convert::resource(row, groups, event.object),
        };
        let former = derived::former_key(row.source, &key).map(|former| (place(number) - 1, former, None));
        let mut changes = Vec::new();
        for (revision, key, value) in former.into_iter().chain([(place(number), key, value)]) {
            let is_news = row.source == Source::Custom || self.news.is_news(&key, value.as_ref());
            // Also what had become nothing before it was deleted.
            if deleted {
                self.news.0.remove(&key);
            }
            if is_news {
                let size = line.len();
                changes.push(Change {
                    revision,
                    key,
                    value,
                    size,
                });
            }
        }
        Ok(changes)
    }
}

/// One line of a watch.
#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: Value,
}

/// What was last said of what is made of Kubernetes' objects. These change far more often than what is made of them: kubelet
/// writes a heartbeat into its Node, and a Pod's status passes through many states.
#[derive(Default)]
struct News(HashMap<Key, Option<u64>>);

impl News {
    /// Whether this was not said last time. Versions do not count.
    fn is_news(&mut self, key: &Key, value: Option<&Resource>) -> bool {
        let Some(value) = value else {
            return self.0.insert(key.clone(), None) != Some(None);
        };
        let mut value = value.clone();
        value.metadata_mut().resource_version = None;
        let mut hasher = DefaultHasher::new();
        serde_json::to_string(&value).unwrap_or_default().hash(&mut hasher);
        let now = Some(hasher.finish());
        self.0.insert(key.clone(), now) != Some(now)
    }
}

#[cfg(test)]
mod tests {
    use api::{Kind, Node, NodeSpec};
    use serde_json::json;

    use super::super::super::group::CalicoGroup;
    use super::super::version;
    use super::*;

    /// What a reader at version 10 makes of lines: keys with `+` or `-`, or how it ended.
    fn check(place: Key, lines: &[Value], expected: &str) {
        let row = Row::of_key(&place).expect("it has a row");
        let groups = Groups {
            calico: CalicoGroup::V3,
            endpoint_slices: None,
            cluster_policies: false,
        };
        let mut reader = Reader::new(10, Arc::default());
        let mut said = Vec::new();
        for line in lines {
            match reader.take(*row, &groups, line.to_string().as_bytes()) {
                Ok(changes) => said.extend(changes.into_iter().map(|change| {
                    let sign = if change.value.is_some() { '+' } else { '-' };
                    let half = if change.revision % 2 == 1 { "½" } else { "" };
                    format!("{sign}{}@{}{half}", change.key.name, version(change.revision))
                })),
                Err(error) => {
                    said.push(error.to_string());
                    break;
                }
            }
        }
        assert_eq!(said.join(" "), expected);
    }

    fn event(kind: &str, name: &str, version: u64) -> Value {
        let metadata = json!({ "name": name, "resourceVersion": version.to_string() });
        json!({ "type": kind, "object": { "metadata": metadata, "spec": { "nets": [] } } })
    }

    #[test]
    fn lines_become_changes() {
        let place = Key::cluster(Kind::GlobalNetworkSet, "a");
        let lines = [
            event("ADDED", "a", 11),
            event("BOOKMARK", "", 15),
            event("MODIFIED", "a", 16),
            event("DELETED", "a", 17),
        ];
        check(place, &lines, "+a@11 +a@16 -a@17");
    }

    #[test]
    fn what_came_already_comes_only_once() {
        let place = Key::cluster(Kind::GlobalNetworkSet, "a");
        check(place, &[event("MODIFIED", "a", 10), event("BOOKMARK", "", 10)], "");
        let lines = [
            event("ADDED", "n1", 11),
            event("MODIFIED", "n1", 12),
            event("DELETED", "n1", 13),
        ];
        check(Key::cluster(Kind::Node, "n1"), &lines, "+n1@11 -n1@13");
    }

    #[test]
    fn a_policy_that_moves_to_another_tier_leaves_the_one_it_was_in() {
        let place = Key::cluster(Kind::GlobalNetworkPolicy, "kcnp.kube-admin.a");
        let policy = |kind: &str, tier: &str, version: u64| {
            let metadata = json!({ "name": "a", "resourceVersion": version.to_string() });
            let spec = json!({ "tier": tier, "priority": 1, "subject": { "namespaces": {} } });
            json!({ "type": kind, "object": { "metadata": metadata, "spec": spec } })
        };
        let lines = [
            // From before the watch: nobody here has heard of it yet.
            policy("MODIFIED", "Baseline", 11),
            policy("MODIFIED", "Baseline", 12),
            policy("MODIFIED", "Admin", 13),
            policy("DELETED", "Admin", 14),
        ];
        check(
            place,
            &lines,
            "-kcnp.kube-admin.a@10½ +kcnp.kube-baseline.a@11 -kcnp.kube-baseline.a@12½ +kcnp.kube-admin.a@13 -kcnp.kube-admin.a@14",
        );
    }

    #[test]
    fn a_server_that_went_back_means_list_again() {
        let place = Key::cluster(Kind::GlobalNetworkSet, "a");
        let gone = "the API server went back from version 12 to 7: its data are from before";
        check(
            place.clone(),
            &[event("BOOKMARK", "", 12), event("ADDED", "a", 7)],
            gone,
        );
        check(
            place.clone(),
            &[event("BOOKMARK", "", 12), event("BOOKMARK", "", 7)],
            gone,
        );
        let status = json!({ "code": 410, "reason": "Expired", "message": "too old resource version: 10 (90)" });
        let lines = [json!({ "type": "ERROR", "object": status })];
        check(
            place,
            &lines,
            "the revision is no longer available: too old resource version: 10 (90)",
        );
    }

    #[test]
    fn what_is_no_event_is_half_an_answer() {
        let place = Key::cluster(Kind::GlobalNetworkSet, "a");
        let lines = [json!({ "type": "ADDED", "object": { "metadata": { "name": "a" } } })];
        let half = "the API server answered only half, or something else: an event without a resourceVersion";
        check(place.clone(), &lines, half);
        let half = "the API server answered only half, or something else: an event of a watch: ";
        check(
            place,
            &[json!("<html>")],
            &format!("{half}invalid type: string \"<html>\", expected struct Event at line 1 column 8"),
        );
    }

    #[test]
    fn a_heartbeat_is_no_news() {
        let mut news = News::default();
        let node = |version: &str, label: &str| {
            let mut node = Node::new("n1", NodeSpec::default());
            node.metadata.resource_version = Some(version.into());
            node.metadata.labels.insert("zone".into(), label.into());
            Resource::from(node)
        };
        let key = Key::cluster(Kind::Node, "n1");
        let mut check = |value: Option<Resource>, expected: bool| {
            assert_eq!(news.is_news(&key, value.as_ref()), expected, "{value:?}");
        };
        check(Some(node("1", "a")), true);
        check(Some(node("2", "a")), false);
        check(Some(node("3", "b")), true);
        check(None, true);
        check(None, false);
        check(Some(node("4", "b")), true);
    }
}
