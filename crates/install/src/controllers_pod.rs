//! The Deployment: what one process does for the whole cluster.
//!
//! In the network of its node, so that it works before there is a pod network, and however that fares.

use serde_json::{Value, json};

use crate::Settings;
use crate::agent_pod::environment;
use crate::manifest::{CONTROLLERS, NAMESPACE};

/// Where the metrics are unless the configuration says otherwise.
const METRICS_PORT: u16 = 9094;
/// Where kubelet asks on the node: the metrics' port can change while they run.
const HEALTH_PORT: u16 = 9097;
/// Nobody's number on the node.
const USER: u32 = 65532;

/// The Deployment; none if there are to be no controllers.
pub(crate) fn deployment(settings: &Settings) -> Option<Value> {
    let labels = json!({ "app.kubernetes.io/name": CONTROLLERS });
    // Processes of one node would want the same ports: a new one waits until an old one is gone.
    let strategy = json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 0, "maxUnavailable": 1 } });
    let object = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": CONTROLLERS, "namespace": NAMESPACE },
        "spec": {
            "replicas": settings.controllers,
            "selector": { "matchLabels": labels },
            "strategy": strategy,
            "template": { "metadata": { "labels": labels }, "spec": pod(settings) },
        },
    });
    (settings.controllers > 0).then_some(object)
}

fn pod(settings: &Settings) -> Value {
    let mut env = environment(settings);
    env.push(json!({ "name": "MARGAY_CONTROLLERS_LEASE", "value": format!("{NAMESPACE}/{CONTROLLERS}") }));
    env.push(json!({ "name": "MARGAY_CONTROLLERS_IDENTITY",
        "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } }));
    env.push(json!({ "name": "MARGAY_CONTROLLERS_HEALTH", "value": format!("127.0.0.1:{HEALTH_PORT}") }));
    let probe = |path: &str, delay: u32, failures: u32| {
        json!({ "httpGet": { "host": "127.0.0.1", "port": HEALTH_PORT, "path": path }, "initialDelaySeconds": delay,
            "periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": failures })
    };
    let container = json!({
        "name": "controllers",
        "image": settings.image,
        "imagePullPolicy": "IfNotPresent",
        "args": ["controllers"],
        "env": env,
        "ports": [
            { "name": "metrics", "containerPort": METRICS_PORT },
            { "name": "health", "containerPort": HEALTH_PORT },
        ],
        "securityContext": { "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"] } },
        "resources": { "requests": { "cpu": "20m", "memory": "32Mi" } },
        "livenessProbe": probe("/liveness", 10, 6),
        "readinessProbe": probe("/readiness", 0, 3),
    });
    json!({
        "serviceAccountName": CONTROLLERS,
        "hostNetwork": true,
        "priorityClassName": "system-cluster-critical",
        "nodeSelector": { "kubernetes.io/os": "linux" },
        "tolerations": tolerations(),
        "securityContext": { "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
            "seccompProfile": { "type": "RuntimeDefault" } },
        // The last write may take eight seconds, and giving the Lease back four.
        "terminationGracePeriodSeconds": 20,
        "containers": [container],
    })
}

/// Nodes whose network is not up yet, and those that run the cluster. From a node that does not answer it goes elsewhere soon.
fn tolerations() -> Value {
    let any = |key: &str| json!({ "key": key, "operator": "Exists" });
    json!([
        any("node.kubernetes.io/not-ready"),
        any("node.kubernetes.io/network-unavailable"),
        any("node-role.kubernetes.io/control-plane"),
        any("node-role.kubernetes.io/master"),
        any("CriticalAddonsOnly"),
        { "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30 },
    ])
}
