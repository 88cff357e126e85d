//! Upstream's keys that have no effect here: whoever sets one to something of their own is told what counts instead.

use serde_json::Value;

/// Keys; values that upstream's templates write or that are upstream's defaults, as JSON, of which nothing is said; what counts
/// instead. `false`, `0`, an empty text, list or object are never told.
const UNHEEDED: [(&[&str], &[&str], &str); 13] = [
    (&["num_queues"], &["1"], "a pod's interface has one queue"),
    (
        &["include_default_routes"],
        &[],
        "pods always get default routes, and IPAM gives no others",
    ),
    (&["policy_setup_timeout_seconds"], &[], "ADD always waits for policy"),
    (&["readiness_gates"], &[], "the agent's own readiness counts"),
    (
        &["require_mtu_file", "nodename_file", "endpoint_status_dir"],
        &["\"/var/lib/calico/nodename\"", "\"/var/run/calico/endpoint-status\""],
        "the plugin asks the agent and reads no file",
    ),
    (
        &[
            "log_level",
            "log_file_path",
            "log_file_max_size",
            "log_file_max_age",
            "log_file_max_count",
        ],
        &["\"info\"", "\"/var/log/calico/cni/cni.log\"", "100", "30", "10"],
        "the agent logs: its --log and logSeverityScreen count",
    ),
    (&["qps", "burst"], &[], "the plugin asks no API server"),
    (&["calico_api_group"], &[], "the agent's CALICO_API_GROUP counts"),
    (&["mode"], &[], "pools say how packets cross the network"),
    (&["vxlan_mac_prefix", "vxlan_vni"], &[], "these are for Windows"),
    (&["ipam_lock_file"], &[], "the agent is alone on its node"),
    (
        &["datastore_type"],
        &["\"kubernetes\""],
        "the agent's DATASTORE_TYPE counts",
    ),
    (
        &[
            "etcd_endpoints",
            "etcd_authority",
            "etcd_scheme",
            "etcd_key_file",
            "etcd_cert_file",
            "etcd_ca_cert_file",
            "etcd_discovery_srv",
        ],
        &[],
        "the plugin asks no datastore",
    ),
];

/// A sentence for each such key of a document, in the order of the list above.
pub(super) fn of(document: &Value) -> Vec<String> {
    let mut told = Vec::new();
    for (keys, usual, instead) in UNHEEDED {
        for key in keys {
            let Some(value) = document.get(key).filter(|value| says_something(value)) else {
                continue;
            };
            let text = value.to_string();
            if !usual.iter().any(|usual| usual.eq_ignore_ascii_case(&text)) {
                told.push(format!("{key}: `{text}` has no effect: {instead}"));
            }
        }
    }
    let others = document["args"].as_object().into_iter().flatten();
    // Mesos' labels, for example. Those of CNI's own conventions are read.
    for (key, _) in others.filter(|(key, value)| *key != "cni" && says_something(value)) {
        told.push(format!("args.{key} has no effect: only args.cni is read"));
    }
    told
}

fn says_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(set) => *set,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(document: Value, expected: &[&str]) {
        assert_eq!(of(&document), expected, "{document}");
    }

    #[test]
    fn what_templates_write_is_nothing_to_tell() {
        check(
            json!({ "num_queues": 1, "log_level": "info", "log_file_path": "/var/log/calico/cni/cni.log", "log_file_max_size": 100,
                "nodename_file": "/var/lib/calico/nodename", "datastore_type": "kubernetes", "mode": "", "etcd_endpoints": "",
                "policy_setup_timeout_seconds": 0, "readiness_gates": [], "require_mtu_file": false, "qps": null,
                "args": { "cni": { "ips": [] }, "org.apache.mesos": {} } }),
            &[],
        );
    }

    #[test]
    fn what_somebody_set_is_told_with_what_counts_instead() {
        check(
            json!({ "num_queues": 4, "log_level": "Debug", "mode": "vxlan", "require_mtu_file": true, "qps": 20,
                "args": { "org.apache.mesos": { "network_info": 1 } } }),
            &[
                "num_queues: `4` has no effect: a pod's interface has one queue",
                "require_mtu_file: `true` has no effect: the plugin asks the agent and reads no file",
                "log_level: `\"Debug\"` has no effect: the agent logs: its --log and logSeverityScreen count",
                "qps: `20` has no effect: the plugin asks no API server",
                "mode: `\"vxlan\"` has no effect: pools say how packets cross the network",
                "args.org.apache.mesos has no effect: only args.cni is read",
            ],
        );
    }
}
