//! What a client of the API server may count on, and the store does: what every API server that tests meet has to pass, the fake one
//! and a real one alike. At the level of HTTP; our definitions have to be installed.
//!
//! What nothing here counts on is left out: watches from nowhere, lists as they begin a watch (`sendInitialEvents`), tables, protobuf.

mod http;
mod reading;
mod refusing;
mod watching;
mod writing;

use std::panic::{AssertUnwindSafe, catch_unwind};

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use serde_json::{Value, json};

pub use self::http::{Answer, Dial, Stream, Watch};

/// How names of objects begin that checks make.
const PREFIX: &str = "contract-";
/// The namespace of those that are in one.
const NAMESPACE: &str = "contract";
const POOLS: &str = "/apis/projectcalico.org/v3/ippools";
const SETS: &str = "/apis/projectcalico.org/v3/namespaces/contract/networksets";
const NAMESPACES: &str = "/api/v1/namespaces";

/// The server under examination.
pub struct Subject {
    /// How it is reached.
    pub dial: Dial,
    /// As it is called.
    pub host: String,
    /// Who comes with this token may do everything.
    pub token: String,
    /// Who comes with this token is known, and may do nothing.
    pub powerless: String,
    /// Has what it stores forget what was before this version, as happens every few minutes.
    pub compact: Box<dyn Fn(u64) -> LocalBoxFuture<'static, ()>>,
}

/// One check. It panics when the server does something else.
pub type Check = for<'a> fn(&'a Subject) -> LocalBoxFuture<'a, ()>;

macro_rules! checks {
    ($($module:ident: $($name:ident),* ;)*) => { vec![$($((stringify!($name), |at| $module::$name(at).boxed_local())),*),*] };
}

/// All of them.
pub fn all() -> Vec<(&'static str, Check)> {
    checks! {
        reading:
            discovery_names_groups_and_their_resources,
            what_is_not_served_is_told_from_what_is_not_there,
            a_missing_object_is_named_in_a_status,
            a_list_has_a_version_and_whole_objects,
            pages_are_of_one_version,
            one_object_is_picked_by_its_name,
            a_namespaces_list_has_no_others,
            a_list_is_as_new_as_what_was_written_before,
            a_connection_serves_one_request_after_the_other;
        writing:
            a_new_object_gets_an_identity,
            what_is_there_is_not_created_again,
            a_namespace_must_be_there_first,
            a_stale_version_is_a_conflict,
            an_update_says_of_which_version,
            what_changes_nothing_makes_no_version,
            status_and_the_rest_are_written_apart,
            a_patch_changes_what_it_names,
            a_pods_status_takes_its_annotations_along,
            what_is_not_there_cannot_be_changed,
            what_is_wrong_is_refused,
            a_deletion_may_say_of_what,
            finalizers_hold_an_object;
        watching:
            changes_come_in_their_order,
            a_watch_goes_on_after_a_version,
            a_namespaces_watch_has_no_others,
            a_watch_ends_when_its_time_is_up,
            a_forgotten_version_is_an_event,
            compaction_ends_lists_and_no_watches,
            a_version_that_is_still_to_come_is_waited_for,
            bookmarks_come_to_who_wants_them,
            no_bookmark_is_older_than_its_watch;
        refusing:
            a_wrong_token_is_unauthorized,
            who_has_no_right_is_forbidden;
    }
}

/// Runs all checks, each by `run` with a server of its own or the same again, and says which the server does not pass.
pub fn examine(mut run: impl FnMut(&str, Check)) {
    let wrong: Vec<&str> = all()
        .into_iter()
        .filter(|(name, check)| catch_unwind(AssertUnwindSafe(|| run(name, *check))).is_err())
        .map(|(name, _)| name)
        .collect();
    assert!(wrong.is_empty(), "not as said: {wrong:?}; why is above");
}

impl Subject {
    /// Makes the namespaces of the checks, and takes away what they left.
    pub async fn prepare(&self) {
        for name in [NAMESPACE, "default"] {
            let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
            let made = self.send("POST", NAMESPACES, &namespace).await;
            assert!([201, 409].contains(&made.code), "{made:?}");
        }
        for path in [POOLS, SETS, &SETS.replace("/contract/", "/default/")] {
            let list = self.get(path).await.json();
            for object in items(&list).iter().filter(|object| name(object).starts_with(PREFIX)) {
                let path = format!("{path}/{}", name(object));
                if !object["metadata"]["finalizers"].is_null() {
                    let patch = json!({ "metadata": { "finalizers": null } });
                    self.send("PATCH", &path, &patch).await;
                }
                self.send("DELETE", &path, &Value::Null).await;
            }
        }
    }

    /// Creates an object; what the server made of it.
    async fn create(&self, path: &str, object: &Value) -> Value {
        let answer = self.send("POST", path, object).await;
        assert_eq!(answer.code, 201, "{answer:?}");
        answer.json()
    }

    /// Changes an object; what the server made of it.
    async fn update(&self, path: &str, object: &Value) -> Value {
        let answer = self.send("PUT", path, object).await;
        assert_eq!(answer.code, 200, "{answer:?}");
        answer.json()
    }

    /// The version of a list of pools: as new as anything.
    async fn now(&self) -> u64 {
        version(&self.get(&format!("{POOLS}?limit=1")).await.json())
    }
}

/// A pool as a client would create it; names in the checks begin alike.
fn pool(name: &str) -> Value {
    json!({
        "apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": { "name": format!("{PREFIX}{name}") },
        "spec": { "cidr": "10.77.0.0/16", "natOutgoing": false },
    })
}

fn set(name: &str) -> Value {
    json!({
        "apiVersion": "projectcalico.org/v3", "kind": "NetworkSet",
        "metadata": { "name": format!("{PREFIX}{name}"), "namespace": NAMESPACE }, "spec": { "nets": ["10.78.0.0/16"] },
    })
}

fn path_of(object: &Value) -> String {
    format!("{POOLS}/{}", name(object))
}

fn items(list: &Value) -> &[Value] {
    list["items"]
        .as_array()
        .expect("a list has items, also when there are none")
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().expect("objects have names")
}

fn names(objects: &[Value]) -> Vec<&str> {
    objects
        .iter()
        .map(name)
        .filter(|name| name.starts_with(PREFIX))
        .collect()
}

#[track_caller]
fn version(object: &Value) -> u64 {
    let version = object["metadata"]["resourceVersion"]
        .as_str()
        .and_then(|text| text.parse().ok());
    version.unwrap_or_else(|| panic!("its version is no number: {object}"))
}

/// It is a `Status` of this code and reason.
#[track_caller]
fn assert_status(status: &Value, code: u16, reason: &str) {
    let found = [
        &status["kind"],
        &status["apiVersion"],
        &status["status"],
        &status["code"],
        &status["reason"],
    ];
    let expected = [
        json!("Status"),
        json!("v1"),
        json!("Failure"),
        json!(code),
        json!(reason),
    ];
    assert_eq!(found.map(Value::clone), expected, "{status}");
    assert!(
        status["metadata"].is_object() && status["message"].as_str().is_some_and(|text| !text.is_empty()),
        "{status}"
    );
}

/// The answer is one; and that.
#[track_caller]
fn refused(answer: &Answer, code: u16, reason: &str) -> Value {
    assert_eq!(
        (answer.code, answer.content.as_str()),
        (code, "application/json"),
        "{answer:?}"
    );
    assert_status(&answer.json(), code, reason);
    answer.json()
}
