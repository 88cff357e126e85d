//! News of objects as Kubernetes' events: where `kubectl describe` and `kubectl get events` show them.
//!
//! An event has a name that follows from what it says, so that saying it again refreshes it and makes no second one. The API server
//! forgets events after an hour.

use std::hash::{DefaultHasher, Hash, Hasher};

use datastore::{News, StoreError};
use jiff::{Timestamp, Unit};
use serde_json::{Value, json};

use super::client::Action;
use super::error::ApiError;
use super::group::Groups;
use super::table::{Row, Source};
use super::{Shared, convert};

/// Where events of cluster-wide objects are.
const CLUSTER: &str = "default";
/// Longest text of an event that the API server takes, bytes.
const LONGEST: usize = 1024;
/// Longest name of an object.
const LONGEST_NAME: usize = 253;

impl Shared {
    /// Tells people about an object, unless it is not there.
    pub(super) async fn tell(&self, news: &News) -> Result<(), StoreError> {
        let Some(row) = Row::of_key(&news.about) else {
            return Ok(());
        };
        let object = match self.get_object(*row, &news.about).await {
            Ok(object) => object,
            Err(ApiError::NotFound(_)) => return Ok(()),
            Err(error) => return Err(error.about(&news.about)),
        };
        let (api, groups) = self.link.ready().await?;
        let Some(event) = event(*row, &groups, &object, news, Timestamp::now()) else {
            return Ok(());
        };
        let namespace = event["metadata"]["namespace"].as_str().unwrap_or(CLUSTER).to_owned();
        let name = event["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let all = format!("/api/v1/namespaces/{namespace}/events");
        let at = event["lastTimestamp"].clone();
        match api.ask("events", &all, Action::Create(event)).await {
            Err(ApiError::Exists(_)) => {}
            done => return done.map(|_| ()).map_err(|error| error.about(&news.about)),
        }
        let one = format!("{all}/{name}");
        let refreshed = async {
            let held = api.ask("events", &one, Action::Get).await?;
            let count = held["count"].as_i64().unwrap_or(1).saturating_add(1);
            let patch = json!({ "count": count, "lastTimestamp": at });
            api.ask("events", &one, Action::Patch(patch)).await
        };
        refreshed.await.map(|_| ()).map_err(|error| error.about(&news.about))
    }
}

/// The event that says so of an object; `None` if the server has no such objects.
fn event(row: Row, groups: &Groups, object: &Value, news: &News, now: Timestamp) -> Option<Value> {
    let (group, version) = row.group_version(groups)?;
    let (namespace, name) = convert::place(row, &news.about)?;
    let api_version = match group {
        "" => version.to_owned(),
        group => format!("{group}/{version}"),
    };
    let kind = match row.source {
        Source::Custom => object["kind"].as_str().unwrap_or(row.kind.name()),
        Source::Pods => "Pod",
        Source::Nodes => "Node",
        Source::Namespaces => "Namespace",
        Source::ServiceAccounts => "ServiceAccount",
        Source::NetworkPolicies => "NetworkPolicy",
        Source::ClusterNetworkPolicies => "ClusterNetworkPolicy",
        Source::EndpointSlices => "EndpointSlice",
    };
    let mut hasher = DefaultHasher::new();
    let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
    (uid, &news.reason, &news.message, &news.node).hash(&mut hasher);
    let suffix = format!(".{:016x}", hasher.finish());
    let at = now.round(Unit::Second).unwrap_or(now).to_string();
    Some(json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": format!("{}{suffix}", shortened(&name, LONGEST_NAME - suffix.len())),
            "namespace": namespace.as_deref().unwrap_or(CLUSTER),
        },
        "involvedObject": {
            "apiVersion": api_version,
            "kind": kind,
            "namespace": namespace,
            "name": name,
            "uid": uid,
            "resourceVersion": object["metadata"]["resourceVersion"],
        },
        "type": if news.is_warning { "Warning" } else { "Normal" },
        "reason": news.reason,
        "message": shortened(&news.message, LONGEST),
        "source": { "component": news.reporter, "host": news.node.as_deref().unwrap_or_default() },
        "reportingComponent": news.reporter,
        "reportingInstance": news.node.as_deref().unwrap_or_default(),
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
    }))
}

/// The beginning of a text, of at most so many bytes.
fn shortened(text: &str, most: usize) -> &str {
    let end = text
        .char_indices()
        .map(|(at, c)| at + c.len_utf8())
        .take_while(|end| *end <= most)
        .last();
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use api::{Key, Kind};

    use super::super::group::CalicoGroup;
    use super::*;

    const GROUPS: Groups = Groups {
        calico: CalicoGroup::V1,
        endpoint_slices: None,
        cluster_policies: false,
    };

    /// Name, place and object of the event about something.
    #[track_caller]
    fn check(about: Key, message: &str, expected: &str) -> String {
        let row = Row::of_key(&about).expect("it has a row");
        let news = News {
            about,
            is_warning: true,
            reason: "Invalid".into(),
            message: message.into(),
            reporter: "margay-controllers".into(),
            node: None,
        };
        let object = json!({ "kind": "IPAMConfig", "metadata": { "uid": "u", "resourceVersion": "7" } });
        let event = event(*row, &GROUPS, &object, &news, Timestamp::UNIX_EPOCH).expect("an event");
        let (namespace, object) = (&event["metadata"]["namespace"], &event["involvedObject"]);
        let object = format!(
            "{} {} {} {}",
            object["apiVersion"], object["kind"], object["namespace"], object["name"]
        );
        assert_eq!(format!("{namespace} {object}").replace('"', ""), expected);
        assert!(
            event["message"]
                .as_str()
                .is_some_and(|message| message.len() <= LONGEST)
        );
        event["metadata"]["name"].as_str().expect("a name").to_owned()
    }

    #[test]
    fn an_event_is_where_its_object_is_and_the_same_news_have_the_same_name() {
        let key = Key::cluster(Kind::IPAMConfiguration, "default");
        let first = check(
            key.clone(),
            "a",
            "default crd.projectcalico.org/v1 IPAMConfig null default",
        );
        let second = check(
            key.clone(),
            "a",
            "default crd.projectcalico.org/v1 IPAMConfig null default",
        );
        assert_eq!(first, second);
        let long = "ä".repeat(LONGEST);
        let other = check(key, &long, "default crd.projectcalico.org/v1 IPAMConfig null default");
        assert!(first != other && other.starts_with("default."));
        let key = Key::namespaced(Kind::NetworkPolicy, "shop", "knp.default.db");
        check(key, "a", "shop networking.k8s.io/v1 NetworkPolicy shop db");
    }
}
