//! Takes back what is in the cluster, and has the nodes clean themselves.

use std::io::Write;
use std::time::{Duration, Instant};

use api::{IP_POOL_FINALIZER, TIER_FINALIZER};
use backend::kubernetes::{Action, Api, ApiError, without_ended_agent};
use serde_json::{Value, json};

use super::{Options, UninstallError};
use crate::agent_pod::{PLUGIN_DIRS, agent_rights, object, plugin_mounts, pod_spec, volume};
use crate::manifest::{AGENT, CONTROLLERS, LABEL, NAMESPACE};

/// The DaemonSet that cleans nodes.
const CLEAN: &str = "margay-clean";
/// How often is looked whether something is done.
const PAUSE: Duration = Duration::from_millis(500);

/// What is cluster-wide and ours: path of the list, and its name in a role.
const CLUSTER_WIDE: [(&str, &str); 2] = [
    (
        "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
        "clusterrolebindings.rbac.authorization.k8s.io",
    ),
    (
        "/apis/rbac.authorization.k8s.io/v1/clusterroles",
        "clusterroles.rbac.authorization.k8s.io",
    ),
];
const CRDS: (&str, &str) = (
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
    "customresourcedefinitions.apiextensions.k8s.io",
);

struct Cluster<'a> {
    api: Api,
    /// For each thing that is waited for.
    seconds: u64,
    out: &'a mut dyn Write,
}

/// Ends controllers and agents, cleans nodes, deletes what has our label: the rest only when all nodes are clean, so that a second run can
/// finish the first.
pub async fn uninstall(options: &Options, out: &mut dyn Write) -> Result<(), UninstallError> {
    let mut cluster = Cluster {
        api: Api::connect(None).await?,
        seconds: options.timeout,
        out,
    };
    let namespace = format!("/api/v1/namespaces/{NAMESPACE}");
    // One that has our name but not our label is somebody else's, with all that is in it.
    let found = absent_is_none(cluster.api.ask("namespaces", &namespace, Action::Get).await)?;
    let ours = found.as_ref().is_some_and(is_ours);
    if ours {
        // First: they would put their finalizers on again, and take the end of the nodes for more than it is.
        cluster
            .end("deployments.apps", &deployment(CONTROLLERS), CONTROLLERS)
            .await?;
    }
    if ours && let Some(image) = cluster.image().await? {
        cluster.end("daemonsets.apps", &daemon_set(AGENT), AGENT).await?;
        cluster.clean_nodes(&image, options.pods).await?;
    }
    if ours {
        cluster.free_nodes().await?;
    }
    let crds = cluster.list(CRDS).await?;
    if !options.keep_crds && !crds.is_empty() {
        cluster.forget_nodes().await?;
        cluster.let_go(&crds).await?;
    }
    for (path, resource) in CLUSTER_WIDE {
        for name in cluster.list((path, resource)).await? {
            cluster.delete(resource, &format!("{path}/{name}"), &name).await?;
        }
    }
    // Before the definitions: who deletes what is in a namespace asks for every kind, and waits long after one that has just gone.
    if ours {
        cluster.end("namespaces", &namespace, NAMESPACE).await?;
    } else if found.is_some() {
        cluster.say(&format!(
            "left namespace {NAMESPACE}: it lacks our label {}={}",
            LABEL.0, LABEL.1
        ));
    }
    if !options.keep_crds {
        for name in crds {
            cluster.delete(CRDS.1, &format!("{}/{name}", CRDS.0), &name).await?;
        }
    }
    Ok(())
}

impl Cluster<'_> {
    fn say(&mut self, what: &str) {
        let _ = writeln!(self.out, "{what}");
    }

    /// What is waited for from now on has until then. Each has its own time: one that took long leaves the next no less.
    fn deadline(&self) -> Instant {
        Instant::now() + Duration::from_secs(self.seconds)
    }

    /// The image of the agent, or of an earlier run's cleaning; `None`: neither is there.
    async fn image(&self) -> Result<Option<String>, UninstallError> {
        for name in [AGENT, CLEAN] {
            if let Some(set) = self.get(name).await? {
                let pod = &set["spec"]["template"]["spec"];
                return Ok(pod["containers"][0]["image"].as_str().map(str::to_owned));
            }
        }
        Ok(None)
    }

    async fn get(&self, name: &str) -> Result<Option<Value>, ApiError> {
        absent_is_none(self.api.ask("daemonsets.apps", &daemon_set(name), Action::Get).await)
    }

    async fn list(&self, (path, resource): (&str, &str)) -> Result<Vec<String>, ApiError> {
        let query = format!("{path}?labelSelector={}%3D{}", LABEL.0.replace('/', "%2F"), LABEL.1);
        let answer = self.api.ask(resource, &query, Action::List).await?;
        let items = answer["items"].as_array().cloned().unwrap_or_default();
        let name = |item: &Value| item["metadata"]["name"].as_str().map(str::to_owned);
        Ok(items.iter().filter_map(name).collect())
    }

    async fn delete(&mut self, resource: &str, path: &str, name: &str) -> Result<(), ApiError> {
        let how = json!({ "propagationPolicy": "Foreground" });
        if absent_is_none(self.api.ask(resource, path, Action::Delete(how)).await)?.is_some() {
            self.say(&format!("deleted {resource} {name}"));
        }
        Ok(())
    }

    /// With its Pods.
    async fn end(&mut self, resource: &str, path: &str, name: &str) -> Result<(), UninstallError> {
        self.delete(resource, path, name).await?;
        let deadline = self.deadline();
        while let Some(object) = absent_is_none(self.api.ask(resource, path, Action::Get).await)? {
            if Instant::now() > deadline {
                return Err(UninstallError::Remains {
                    what: format!("{resource} {name}"),
                    why: what_holds(&object),
                    seconds: self.seconds,
                });
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// A Pod on each node removes what was installed there; it is ready when that is done.
    async fn clean_nodes(&mut self, image: &str, pods: bool) -> Result<(), UninstallError> {
        let sets = format!("/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets");
        let created = self
            .api
            .ask("daemonsets.apps", &sets, Action::Create(cleaner(image, pods)))
            .await;
        match created {
            Err(ApiError::Exists(_)) => {}
            other => drop(other?),
        }
        let deadline = self.deadline();
        loop {
            let set = self.get(CLEAN).await?.unwrap_or_default();
            let number = |field: &str| set["status"][field].as_u64().unwrap_or_default();
            let (wanted, ready) = (number("desiredNumberScheduled"), number("numberReady"));
            let seen = set["status"]["observedGeneration"].is_u64();
            if seen && ready >= wanted {
                self.say(&format!("cleaned {ready} nodes"));
                return Ok(());
            }
            if Instant::now() > deadline {
                let seconds = self.seconds;
                return Err(UninstallError::Nodes { ready, wanted, seconds });
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Controllers hold pools and tiers until they have cleaned up after them. Nobody will any more. What others hold is theirs
    /// to let go.
    async fn let_go(&mut self, crds: &[String]) -> Result<(), UninstallError> {
        for crd in crds {
            let ours = match crd.split_once('.') {
                Some(("ippools", _)) => IP_POOL_FINALIZER,
                Some(("tiers", _)) => TIER_FINALIZER,
                _ => continue,
            };
            let (plural, group) = crd.split_once('.').unwrap_or_default();
            let version = if group == "projectcalico.org" { "v3" } else { "v1" };
            let path = format!("/apis/{group}/{version}/{plural}");
            let list = absent_is_none(self.api.ask(crd, &path, Action::List).await)?.unwrap_or_default();
            for object in list["items"].as_array().into_iter().flatten() {
                let Some(name) = object["metadata"]["name"].as_str() else {
                    continue;
                };
                let others = self.let_one_go(crd, &format!("{path}/{name}"), ours).await?;
                if !others.is_empty() {
                    self.say(&format!(
                        "{plural} {name} is held by {}: its definition goes when that is taken from it",
                        others.join(", ")
                    ));
                }
            }
        }
        Ok(())
    }

    /// Takes one finalizer from an object; the others that it has.
    async fn let_one_go(&self, crd: &str, path: &str, ours: &str) -> Result<Vec<String>, UninstallError> {
        let deadline = self.deadline();
        loop {
            let Some(object) = absent_is_none(self.api.ask(crd, path, Action::Get).await)? else {
                return Ok(Vec::new());
            };
            let (patch, others) = released(&object["metadata"], ours);
            let Some(patch) = patch else { return Ok(others) };
            match absent_is_none(self.api.ask(crd, path, Action::Patch(patch)).await) {
                Ok(_) => return Ok(others),
                // Somebody has written it meanwhile.
                Err(ApiError::Conflict(_)) if Instant::now() < deadline => tokio::time::sleep(PAUSE).await,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Agents have said that they ended: that would keep pods away until another network plugin says otherwise, and not all do.
    async fn free_nodes(&mut self) -> Result<(), UninstallError> {
        let nodes = self.api.ask("nodes", "/api/v1/nodes", Action::List).await?;
        for node in nodes["items"].as_array().into_iter().flatten() {
            let (Some(name), Some(patch)) = (node["metadata"]["name"].as_str(), without_ended_agent(node)) else {
                continue;
            };
            let path = format!("/api/v1/nodes/{name}/status");
            let merged = self.api.ask("nodes/status", &path, Action::Merge(patch)).await;
            if absent_is_none(merged)?.is_some() {
                self.say(&format!("removed the condition NetworkUnavailable from Node {name}"));
            }
        }
        Ok(())
    }

    /// Takes our annotations from the Nodes. Not where the definitions are another's: then the annotations are too.
    async fn forget_nodes(&mut self) -> Result<(), UninstallError> {
        let nodes = self.api.ask("nodes", "/api/v1/nodes", Action::List).await?;
        for node in nodes["items"].as_array().into_iter().flatten() {
            let patch = forgotten(&node["metadata"]["annotations"]);
            let Some(name) = node["metadata"]["name"].as_str().filter(|_| patch != json!({})) else {
                continue;
            };
            let patch = json!({ "metadata": { "annotations": patch } });
            let path = format!("/api/v1/nodes/{name}");
            self.api.ask("nodes", &path, Action::Patch(patch)).await?;
            let _ = writeln!(self.out, "removed our annotations from Node {name}");
        }
        Ok(())
    }
}

fn deployment(name: &str) -> String {
    format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{name}")
}

fn daemon_set(name: &str) -> String {
    format!("/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/{name}")
}

fn absent_is_none(answer: Result<Value, ApiError>) -> Result<Option<Value>, ApiError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(ApiError::NotFound(_) | ApiError::ResourceMissing(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a namespace says of its deletion, which takes what is in it first; others say nothing.
fn what_holds(object: &Value) -> String {
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    let is_about_it = |kind: &str| kind.starts_with("Namespace");
    let told = conditions.filter(|one| one["status"] == "True" && one["type"].as_str().is_some_and(is_about_it));
    told.filter_map(|condition| condition["message"].as_str())
        .map(|message| format!(": {message}"))
        .collect()
}

/// Whether `install` made an object.
fn is_ours(object: &Value) -> bool {
    object["metadata"]["labels"][LABEL.0] == LABEL.1
}

/// What takes one finalizer from an object, if it has it; and the others.
fn released(metadata: &Value, ours: &str) -> (Option<Value>, Vec<String>) {
    let all = metadata["finalizers"].as_array().into_iter().flatten();
    let all: Vec<&str> = all.filter_map(Value::as_str).collect();
    let others: Vec<String> = all
        .iter()
        .filter(|name| **name != ours)
        .map(|name| (*name).to_owned())
        .collect();
    // A merge writes the whole list: only over the one that was read.
    let patch = all
        .contains(&ours)
        .then(|| json!({ "metadata": { "finalizers": others, "resourceVersion": metadata["resourceVersion"] } }));
    (patch, others)
}

/// A merge patch that removes the annotations that agents write.
fn forgotten(annotations: &Value) -> Value {
    let names = annotations.as_object().into_iter().flat_map(|map| map.keys());
    let ours = names.filter(|name| name.starts_with("projectcalico.org/"));
    Value::Object(ours.map(|name| (name.clone(), Value::Null)).collect())
}

fn cleaner(image: &str, pods: bool) -> Value {
    let dirs = [("run", "/run/margay"), ("state", "/var/lib/margay")];
    let mut mounts = plugin_mounts();
    let mut volumes: Vec<Value> = PLUGIN_DIRS
        .iter()
        .map(|(name, outside, _)| volume(name, outside))
        .collect();
    for (name, path) in dirs {
        mounts.push(json!({ "name": name, "mountPath": path }));
        volumes.push(volume(name, path));
    }
    let container = |name: &str, more: &[&str]| {
        let mut args = vec![
            "uninstall",
            "--node",
            "--bin-dir",
            PLUGIN_DIRS[0].2,
            "--conf-dir",
            PLUGIN_DIRS[1].2,
        ];
        args.extend(more);
        args.extend(pods.then_some("--pods"));
        json!({ "name": name, "image": image, "imagePullPolicy": "IfNotPresent", "args": args,
            "securityContext": agent_rights(), "volumeMounts": mounts })
    };
    // Its account is the namespace's own, which may do nothing.
    let mut spec = pod_spec("default");
    spec["automountServiceAccountToken"] = json!(false);
    spec["initContainers"] = json!([container("clean", &[])]);
    spec["containers"] = json!([container("cleaned", &["--stay"])]);
    spec["volumes"] = json!(volumes);
    spec["terminationGracePeriodSeconds"] = json!(1);
    object(CLEAN, spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_of_others_stay() {
        let annotations = json!({ "projectcalico.org/IPv4Address": "10.0.0.1/24", "node.alpha/x": "1" });
        assert_eq!(
            forgotten(&annotations),
            json!({ "projectcalico.org/IPv4Address": null })
        );
        assert_eq!(forgotten(&Value::Null), json!({}));
    }

    #[test]
    fn finalizers_of_others_stay() {
        let check = |held: Value, patched: Option<Value>, others: &[&str]| {
            let metadata = json!({ "finalizers": held, "resourceVersion": "7" });
            let patch = patched.map(|list| json!({ "metadata": { "finalizers": list, "resourceVersion": "7" } }));
            assert_eq!(
                released(&metadata, "o/ours"),
                (patch, others.iter().map(ToString::to_string).collect())
            );
        };
        check(Value::Null, None, &[]);
        check(json!(["x/y"]), None, &["x/y"]);
        check(json!(["o/ours"]), Some(json!([])), &[]);
        check(json!(["x/y", "o/ours", "z"]), Some(json!(["x/y", "z"])), &["x/y", "z"]);
    }

    #[test]
    fn a_namespace_says_what_holds_it() {
        let condition = |kind: &str, status: &str| json!({ "type": kind, "status": status, "message": kind });
        let check = |conditions: &[Value], expected: &str| {
            assert_eq!(what_holds(&json!({ "status": { "conditions": conditions } })), expected);
        };
        let (failed, remains) = ("NamespaceDeletionDiscoveryFailure", "NamespaceContentRemaining");
        check(
            &[condition(failed, "False"), condition(remains, "True")],
            ": NamespaceContentRemaining",
        );
        check(
            &[condition(failed, "True"), condition(remains, "True")],
            ": NamespaceDeletionDiscoveryFailure: NamespaceContentRemaining",
        );
        check(&[condition("Available", "True")], "");
        assert_eq!(what_holds(&json!({})), "");
    }

    #[test]
    fn nodes_are_clean_before_the_pod_is_ready() {
        let pod = &cleaner("i:1", true)["spec"]["template"]["spec"];
        let args = &pod["initContainers"][0]["args"];
        assert_eq!(
            (&args[1], args[args.as_array().unwrap().len() - 1].as_str()),
            (&json!("--node"), Some("--pods"))
        );
        assert_eq!(pod["automountServiceAccountToken"], false);
    }
}
