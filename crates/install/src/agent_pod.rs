//! The DaemonSet: the agent on every node, and the plugin that its first container installs.

use serde_json::{Value, json};

use crate::Settings;
use crate::manifest::{AGENT, NAMESPACE};
use crate::settings::Work;

/// What the agent may do in the kernel, each with its reason. Not privileged: `/proc/sys` is read-only in such a container, so
/// the node's own is mounted at another place.
pub(crate) const CAPABILITIES: [(&str, &str); 4] = [
    ("NET_ADMIN", "links, routes, packet filter, sysctls of the network"),
    ("SYS_ADMIN", "to enter pods' network namespaces; BPF"),
    ("NET_RAW", "to look at packets for `margay trace`"),
    ("NET_BIND_SERVICE", "BGP's port 179"),
];

/// Where the node's `/proc/sys` is in the agent's container.
const PROC_SYS: &str = "/host/proc/sys";

/// Directories of the node: name, where it is there, where in the container, whether mounts appear later.
const AGENT_DIRS: [(&str, &str, &str, bool); 4] = [
    ("run", "/run/margay", "/run/margay", false),
    ("state", "/var/lib/margay", "/var/lib/margay", false),
    // Pods' network namespaces: container runtimes mount them while the agent runs.
    ("netns", "/run/netns", "/run/netns", true),
    ("proc-sys", "/proc/sys", PROC_SYS, false),
];

/// What installing and removing the plugin needs of the node.
pub(crate) const PLUGIN_DIRS: [(&str, &str, &str); 2] = [
    ("cni-bin", "/opt/cni/bin", "/host/opt/cni/bin"),
    ("cni-conf", "/etc/cni/net.d", "/host/etc/cni/net.d"),
];

/// The DaemonSet.
pub(crate) fn daemon_set(settings: &Settings) -> Value {
    let mut install = vec![
        "cni",
        "install",
        "--bin-dir",
        PLUGIN_DIRS[0].2,
        "--conf-dir",
        PLUGIN_DIRS[1].2,
    ];
    // Host ports are the agent's work: `portmap` would do it again.
    install.push("--no-portmap");
    if settings.ipv6.is_some() {
        install.push("--ipv6");
    }
    for feature in &settings.cni_features {
        install.extend(["--feature", feature]);
    }
    let agent_mounts: Vec<Value> = AGENT_DIRS
        .iter()
        .map(|(name, _, inside, later)| match later {
            true => json!({ "name": name, "mountPath": inside, "mountPropagation": "HostToContainer" }),
            false => json!({ "name": name, "mountPath": inside }),
        })
        .collect();
    let mut volumes: Vec<Value> = AGENT_DIRS
        .iter()
        .map(|(name, outside, ..)| volume(name, outside))
        .collect();
    volumes.extend(PLUGIN_DIRS.iter().map(|(name, outside, _)| volume(name, outside)));
    let probe = |path: &str, delay: u32, failures: u32| {
        json!({ "httpGet": { "host": "127.0.0.1", "port": 9099, "path": path }, "initialDelaySeconds": delay,
            "periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": failures })
    };
    let mut readiness = probe("/readiness", 0, 3);
    readiness["periodSeconds"] = json!(2);
    let agent = json!({
        "name": "agent",
        "image": settings.image,
        "imagePullPolicy": "IfNotPresent",
        "args": ["agent"],
        "env": agent_environment(settings),
        "securityContext": agent_rights(),
        "resources": { "requests": { "cpu": "50m", "memory": "32Mi" } },
        "livenessProbe": probe("/liveness", 10, 6),
        "readinessProbe": readiness,
        "volumeMounts": agent_mounts,
    });
    let plugin = json!({
        "name": "plugin",
        "image": settings.image,
        "imagePullPolicy": "IfNotPresent",
        "args": install,
        "securityContext": file_rights(),
        "volumeMounts": plugin_mounts(),
    });
    let mut spec = pod_spec(AGENT);
    // The other plugin stays as it is.
    if settings.work != Work::PolicyOnly {
        spec["initContainers"] = json!([plugin]);
    }
    if let Some((key, value)) = &settings.node_selector {
        spec["nodeSelector"][key] = json!(value);
    }
    spec["containers"] = json!([agent]);
    spec["volumes"] = json!(volumes);
    // The agent itself lets pods that are being attached come to their end, for six seconds.
    spec["terminationGracePeriodSeconds"] = json!(10);
    object(AGENT, spec)
}

/// A DaemonSet of a Pod.
pub(crate) fn object(name: &str, spec: Value) -> Value {
    let labels = json!({ "app.kubernetes.io/name": name });
    json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": { "name": name, "namespace": NAMESPACE },
        "spec": {
            "selector": { "matchLabels": labels },
            "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 1 } },
            "template": { "metadata": { "labels": labels }, "spec": spec },
        },
    })
}

/// What all Pods on nodes have: the node's network, every node, before everything else.
pub(crate) fn pod_spec(account: &str) -> Value {
    json!({
        "serviceAccountName": account,
        "hostNetwork": true,
        "priorityClassName": "system-node-critical",
        "nodeSelector": { "kubernetes.io/os": "linux" },
        "tolerations": [
            { "operator": "Exists", "effect": "NoSchedule" },
            { "operator": "Exists", "effect": "NoExecute" },
            { "operator": "Exists", "key": "CriticalAddonsOnly" },
        ],
    })
}

/// The variables with which a Pod finds the API server before there is a Service.
pub(crate) fn environment(settings: &Settings) -> Vec<Value> {
    let mut list = vec![
        json!({ "name": "DATASTORE_TYPE", "value": "kubernetes" }),
        json!({ "name": "CALICO_API_GROUP", "value": settings.group_name() }),
    ];
    if let Some((host, port)) = &settings.api_server {
        list.push(json!({ "name": "KUBERNETES_SERVICE_HOST", "value": host }));
        list.push(json!({ "name": "KUBERNETES_SERVICE_PORT", "value": port.to_string() }));
    }
    list
}

fn agent_environment(settings: &Settings) -> Vec<Value> {
    let mut list = environment(settings);
    list.push(json!({ "name": "NODENAME", "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } } }));
    list.push(json!({ "name": "MARGAY_PROC_SYS", "value": PROC_SYS }));
    list.push(json!({ "name": "IP_AUTODETECTION_METHOD", "value": settings.autodetection }));
    if settings.ipv6.is_some() {
        list.push(json!({ "name": "IP6", "value": "autodetect" }));
    }
    match settings.work {
        Work::WithBgp => {}
        Work::WithoutBgp => list.push(json!({ "name": "CALICO_NETWORKING_BACKEND", "value": "none" })),
        Work::PolicyOnly => {
            list.push(json!({ "name": "MARGAY_POLICY_ONLY", "value": "true" }));
            list.push(json!({ "name": "FELIX_INTERFACEPREFIX", "value": settings.interface_prefix }));
        }
    }
    list
}

/// For what changes the node's network.
pub(crate) fn agent_rights() -> Value {
    let add: Vec<&str> = CAPABILITIES.iter().map(|(name, _)| *name).collect();
    json!({ "readOnlyRootFilesystem": true, "runAsUser": 0, "capabilities": { "drop": ["ALL"], "add": add } })
}

/// For what only writes the node's files, which are root's.
pub(crate) fn file_rights() -> Value {
    json!({ "readOnlyRootFilesystem": true, "runAsUser": 0, "allowPrivilegeEscalation": false,
        "capabilities": { "drop": ["ALL"] } })
}

pub(crate) fn plugin_mounts() -> Vec<Value> {
    let mount = |(name, _, inside): &(&str, &str, &str)| json!({ "name": name, "mountPath": inside });
    PLUGIN_DIRS.iter().map(mount).collect()
}

/// A directory of the node.
pub(crate) fn volume(name: &str, path: &str) -> Value {
    let kind = if path.starts_with("/proc") {
        "Directory"
    } else {
        "DirectoryOrCreate"
    };
    json!({ "name": name, "hostPath": { "path": path, "type": kind } })
}
