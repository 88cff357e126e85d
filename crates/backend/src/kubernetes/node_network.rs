//! The condition `NetworkUnavailable` of a Node, as upstream's agents set it: the scheduler keeps pods from nodes where it is
//! true, and waits for it to become false where a cloud has set it.

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::client::{Action, Api};
use super::error::ApiError;

/// The condition's type.
const TYPE: &str = "NetworkUnavailable";
/// Its reasons.
const UP: &str = "CalicoIsUp";
const DOWN: &str = "CalicoIsDown";

/// Says of Nodes whether their pods get a network. Connects when it is first asked.
#[derive(Default)]
pub struct NodeNetwork {
    api: Mutex<Option<Api>>,
}

impl NodeNetwork {
    /// Sets the condition of a Node, unless it says so already.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn set(&self, node: &str, up: bool) -> Result<(), ApiError> {
        let api = self.api().await?;
        let path = format!("/api/v1/nodes/{node}");
        let held = api.ask("nodes", &path, Action::Get).await?;
        if let Some(patch) = change(&held, up, Timestamp::now()) {
            let path = format!("{path}/status");
            api.ask("nodes/status", &path, Action::Merge(patch)).await?;
        }
        Ok(())
    }

    async fn api(&self) -> Result<Api, ApiError> {
        let mut api = self.api.lock().await;
        match &*api {
            Some(api) => Ok(api.clone()),
            None => Ok(api.insert(Api::connect(None).await?).clone()),
        }
    }
}

/// What to merge into a Node's status; `None`: it says so already.
fn change(node: &Value, up: bool, now: Timestamp) -> Option<Value> {
    let (status, reason, message) = match up {
        true => ("False", UP, "the pod network's agent is running on this node"),
        false => ("True", DOWN, "the pod network's agent has ended on this node"),
    };
    if condition(node).is_some_and(|held| held["status"] == status && held["reason"] == reason) {
        return None;
    }
    // Seconds: all that Kubernetes keeps.
    let now = format!("{now:.0}");
    let wanted = json!({ "type": TYPE, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": now, "lastHeartbeatTime": now });
    Some(json!({ "status": { "conditions": [wanted] } }))
}

fn condition(node: &Value) -> Option<&Value> {
    let mut conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    conditions.find(|condition| condition["type"] == TYPE)
}

/// What to merge into the status of a Node whose agent has ended and will not come back: it keeps pods away for nobody. `None`:
/// it does not say so, or somebody else does.
pub fn without_ended_agent(node: &Value) -> Option<Value> {
    let ended = condition(node).is_some_and(|condition| condition["reason"] == DOWN);
    ended.then(|| json!({ "status": { "conditions": [{ "type": TYPE, "$patch": "delete" }] } }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(status: &str, reason: &str) -> Value {
        json!({ "status": { "conditions": [{ "type": "Ready", "status": "True", "reason": "KubeletReady" },
            { "type": TYPE, "status": status, "reason": reason }] } })
    }

    #[test]
    fn the_condition_is_written_only_where_it_says_something_else() {
        let check = |node: Value, up: bool, expected: Option<(&str, &str)>| {
            let patch = change(&node, up, Timestamp::UNIX_EPOCH);
            let condition = patch.as_ref().map(|patch| &patch["status"]["conditions"][0]);
            let said = condition.map(|said| (said["status"].as_str().unwrap(), said["reason"].as_str().unwrap()));
            assert_eq!(said, expected, "{node}");
            let time = condition.map(|said| &said["lastTransitionTime"]);
            assert!(time.is_none_or(|time| time == "1970-01-01T00:00:00Z"), "{time:?}");
        };
        check(json!({}), true, Some(("False", UP)));
        check(node("True", "NoRouteCreated"), true, Some(("False", UP)));
        check(node("False", UP), true, None);
        check(node("False", UP), false, Some(("True", DOWN)));
        check(node("True", DOWN), false, None);
    }

    #[test]
    fn only_what_an_ended_agent_has_said_is_taken_away() {
        assert!(without_ended_agent(&node("True", DOWN)).is_some());
        assert!(without_ended_agent(&node("False", UP)).is_none());
        assert!(without_ended_agent(&node("True", "NoRouteCreated")).is_none());
        assert!(without_ended_agent(&json!({})).is_none());
    }
}
