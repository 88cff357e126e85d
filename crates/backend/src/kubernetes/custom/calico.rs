//! Objects as a running Calico cluster has them in `crd.projectcalico.org/v1`: all are read, and what we write in their place is
//! what upstream's types take. Written by hand after upstream's formats; no cluster's copy.

use serde_json::json;

use super::*;

const V1: CalicoGroup = CalicoGroup::V1;
const UID: &str = "5d2b1c0e-8f64-4f0e-9a55-0d2f6f1c7b10";

/// An object as the API server answers it, with the metadata of the resource hidden in it.
fn stored(kind: &str, name: &str, hidden: Value, spec: Value) -> Value {
    let metadata = json!({
        "name": name,
        "uid": UID,
        "resourceVersion": "4711",
        "generation": 2,
        "creationTimestamp": "2026-03-01T08:00:00Z",
        "annotations": { METADATA: hidden.to_string() },
        "managedFields": [{ "manager": "calico-node", "operation": "Update" }],
    });
    json!({ "apiVersion": "crd.projectcalico.org/v1", "kind": kind, "metadata": metadata, "spec": spec })
}

fn user_made(labels: Value) -> Value {
    json!({ "uid": "9b1f8a52-3c6b-4a53-b6ab-2f7f0a3e9d21", "creationTimestamp": "2026-03-01T07:59:58Z", "labels": labels })
}

fn block() -> Value {
    let taken = |index: usize| (index < 3).then_some(index);
    let spec = json!({
        "affinity": "host:worker-1",
        "affinityClaimTime": "2026-03-01T08:00:00Z",
        "allocations": (0..64).map(taken).collect::<Vec<_>>(),
        "attributes": [
            { "handle_id": "ipip-tunnel-addr-worker-1",
              "secondary": { "node": "worker-1", "type": "ipipTunnelAddress" } },
            { "handle_id": "k8s-pod-network.1f3870be274f6c49b3e31a0c6728957f1f3870be274f6c49b3e31a0c6728957f",
              "secondary": { "namespace": "shop", "node": "worker-1", "pod": "cart-0",
                             "timestamp": "2026-03-01 08:01:02.003 +0000 UTC" } },
            { "handle_id": "k8s-pod-network.72b302bf297a228a75730123efef7c4172b302bf297a228a75730123efef7c41",
              "secondary": { "namespace": "shop", "node": "worker-1", "pod": "cart-1",
                             "timestamp": "2026-03-01 08:01:03.004 +0000 UTC" } },
        ],
        "cidr": "192.168.226.64/26",
        "deleted": false,
        "sequenceNumber": 1_772_352_000_123_456_789_u64,
        "sequenceNumberForAllocation": {
            "0": 1_772_352_000_123_456_701_u64, "1": 1_772_352_000_123_456_788_u64, "2": 1_772_352_000_123_456_788_u64 },
        "strictAffinity": false,
        "unallocated": (5..64).chain([4, 3]).collect::<Vec<u32>>(),
    });
    stored(
        "IPAMBlock",
        "192-168-226-64-26",
        json!({ "creationTimestamp": null }),
        spec,
    )
}

fn affinity() -> Value {
    let spec = json!({ "cidr": "192.168.226.64/26", "deleted": "false", "node": "worker-1", "state": "confirmed", "type": "host" });
    let hidden = json!({ "creationTimestamp": null, "labels": labels() });
    let mut affinity = stored("BlockAffinity", "worker-1-192-168-226-64-26", hidden, spec);
    affinity["metadata"]["labels"] = labels();
    affinity
}

/// `printf worker-1 | openssl dgst -sha3-256 -binary | base32`, without padding.
fn labels() -> Value {
    json!({ HOST_HASH: base32(&Sha3_256::digest("worker-1")), AFFINITY_TYPE: "host", IP_VERSION: "4" })
}

fn handle() -> Value {
    let id = "k8s-pod-network.1f3870be274f6c49b3e31a0c6728957f1f3870be274f6c49b3e31a0c6728957f";
    let spec = json!({ "block": { "192.168.226.64/26": 1 }, "deleted": false, "handleID": id });
    stored("IPAMHandle", id, json!({ "creationTimestamp": null }), spec)
}

fn configuration() -> Value {
    let spec = json!({ "autoAllocateBlocks": true, "maxBlocksPerHost": 0, "strictAffinity": false });
    stored("IPAMConfig", "default", json!({ "creationTimestamp": null }), spec)
}

/// What users and calico-node made.
fn others() -> Vec<(Kind, Value)> {
    let auto = json!({ "projectcalico.org/created-by": "calico-kube-controllers" });
    vec![
        (
            Kind::IPPool,
            stored(
                "IPPool",
                "default-ipv4-ippool",
                user_made(json!({})),
                json!({ "allowedUses": ["Workload", "Tunnel"], "blockSize": 26, "cidr": "192.168.0.0/16", "ipipMode": "Always",
                    "natOutgoing": true, "nodeSelector": "all()", "vxlanMode": "Never" }),
            ),
        ),
        (
            Kind::ClusterInformation,
            stored(
                "ClusterInformation",
                "default",
                user_made(json!({})),
                json!({ "calicoVersion": "v3.29.1", "clusterGUID": "0f1e2d3c4b5a69788796a5b4c3d2e1f0",
                    "clusterType": "k8s,bgp,kubeadm,kdd", "datastoreReady": true }),
            ),
        ),
        (
            Kind::BGPConfiguration,
            stored(
                "BGPConfiguration",
                "default",
                user_made(json!({})),
                json!({ "asNumber": 64512, "listenPort": 179, "logSeverityScreen": "Info", "nodeToNodeMeshEnabled": true,
                    "serviceLoadBalancerIPs": [{ "cidr": "203.0.113.0/24" }] }),
            ),
        ),
        (
            Kind::FelixConfiguration,
            stored(
                "FelixConfiguration",
                "default",
                user_made(json!({})),
                json!({ "bpfConnectTimeLoadBalancing": "TCP", "bpfHostNetworkedNATWithoutCTLB": "Enabled", "bpfLogLevel": "",
                    "floatingIPs": "Disabled", "logSeverityScreen": "Info", "nftablesMode": "Auto", "reportingInterval": "0s" }),
            ),
        ),
        (Kind::KubeControllersConfiguration, {
            let mut object = stored(
                "KubeControllersConfiguration",
                "default",
                user_made(json!({})),
                json!({ "controllers": {
                        "namespace": { "reconcilerPeriod": "5m0s" },
                        "node": { "hostEndpoint": { "autoCreate": "Disabled" }, "leakGracePeriod": "15m0s",
                            "reconcilerPeriod": "5m0s", "syncLabels": "Enabled" },
                        "policy": { "reconcilerPeriod": "5m0s" },
                        "serviceAccount": { "reconcilerPeriod": "5m0s" },
                        "workloadEndpoint": { "reconcilerPeriod": "5m0s" } },
                        "etcdV3CompactionPeriod": "10m0s", "healthChecks": "Enabled", "logSeverityScreen": "Info",
                        "prometheusMetricsPort": 9094 }),
            );
            object["status"] = json!({
                    "environmentVars": { "DATASTORE_TYPE": "kubernetes", "ENABLED_CONTROLLERS": "node" },
                    "runningConfig": { "controllers": { "node": { "leakGracePeriod": "15m0s", "syncLabels": "Disabled" } },
                        "etcdV3CompactionPeriod": "10m0s", "healthChecks": "Enabled", "logSeverityScreen": "Info" } });
            object
        }),
        (
            Kind::HostEndpoint,
            stored(
                "HostEndpoint",
                "worker-1-auto-hep",
                user_made(auto),
                json!({ "expectedIPs": ["10.0.0.5", "192.168.226.64"], "interfaceName": "*", "node": "worker-1",
                    "profiles": ["projectcalico-default-allow"] }),
            ),
        ),
        (
            Kind::GlobalNetworkPolicy,
            stored(
                "GlobalNetworkPolicy",
                "default.deny-metadata",
                json!({ "creationTimestamp": null }),
                json!({ "egress": [{ "action": "Deny", "destination": { "nets": ["169.254.169.254/32"] }, "source": {} },
                        { "action": "Allow", "destination": {}, "source": {} }],
                    "order": 500, "selector": "all()", "tier": "default", "types": ["Egress"] }),
            ),
        ),
        (Kind::NetworkPolicy, {
            let mut policy = stored(
                "NetworkPolicy",
                "default.cart",
                json!({ "creationTimestamp": null, "namespace": "shop" }),
                json!({ "ingress": [{ "action": "Allow", "destination": { "ports": [8080] }, "protocol": "TCP",
                        "source": { "selector": "app == 'front'" } }],
                    "selector": "app == 'cart'", "tier": "default", "types": ["Ingress"] }),
            );
            policy["metadata"]["namespace"] = "shop".into();
            policy
        }),
    ]
}

/// A field, and what it must be.
type Demand = (&'static str, fn(&Value) -> bool);

/// What upstream's types demand of a spec in v1: fields that must be there, with what they are.
fn demanded(kind: Kind) -> &'static [Demand] {
    match kind {
        Kind::IPAMBlock => &[
            ("allocations", Value::is_array),
            ("attributes", Value::is_array),
            ("cidr", Value::is_string),
            ("deleted", Value::is_boolean),
            ("sequenceNumber", Value::is_u64),
            ("strictAffinity", Value::is_boolean),
            ("unallocated", Value::is_array),
        ],
        Kind::BlockAffinity => &[
            ("cidr", Value::is_string),
            ("deleted", Value::is_string),
            ("node", Value::is_string),
            ("state", Value::is_string),
        ],
        Kind::IPAMHandle => &[
            ("block", Value::is_object),
            ("deleted", Value::is_boolean),
            ("handleID", Value::is_string),
        ],
        Kind::IPAMConfiguration => &[
            ("autoAllocateBlocks", Value::is_boolean),
            ("strictAffinity", Value::is_boolean),
        ],
        _ => &[],
    }
}

fn all() -> Vec<(Kind, Value)> {
    let ipam = [
        (Kind::IPAMBlock, block()),
        (Kind::BlockAffinity, affinity()),
        (Kind::IPAMHandle, handle()),
        (Kind::IPAMConfiguration, configuration()),
    ];
    ipam.into_iter().chain(others()).collect()
}

/// What a field that is left out stands for.
fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_u64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(says_nothing),
        Value::Bool(true) => false,
    }
}

/// Where two values differ, but for fields that say nothing.
fn differences(path: &str, a: &Value, b: &Value, found: &mut Vec<String>) {
    match (a, b) {
        (Value::Object(one), Value::Object(other)) => {
            let names: std::collections::BTreeSet<&String> = one.keys().chain(other.keys()).collect();
            for name in names {
                let [a, b] = [one, other].map(|fields| fields.get(name).unwrap_or(&Value::Null));
                differences(&format!("{path}.{name}"), a, b, found);
            }
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            for (at, (a, b)) in one.iter().zip(other).enumerate() {
                differences(&format!("{path}[{at}]"), a, b, found);
            }
        }
        _ if a == b || says_nothing(a) && says_nothing(b) => {}
        _ => found.push(format!("{path}: {a} became {b}")),
    }
}

#[test]
fn what_a_calico_cluster_has_is_read_and_written_back_the_same() {
    for (kind, object) in all() {
        let name = object["metadata"]["name"].to_string();
        let resource = read(kind, V1, object.clone()).unwrap_or_else(|why| panic!("{kind} {name}: {why}"));
        let resource = resource.unwrap_or_else(|| panic!("{kind} {name} counts as gone"));
        let problems = resource.problems();
        assert!(problems.is_empty(), "{kind} {name}: {problems:?}");
        let written = write(&resource, V1, Some("4711"));
        let mut found = Vec::new();
        for part in ["kind", "apiVersion", "spec", "status"] {
            differences(part, &object[part], &written[part], &mut found);
        }
        // Of other kinds the labels that are upstream's own may be on the object too.
        let labels = (kind == Kind::BlockAffinity).then_some("labels");
        for part in ["name", "namespace", "resourceVersion"].into_iter().chain(labels) {
            let [before, after] = [&object, &written].map(|object| &object["metadata"][part]);
            differences(part, before, after, &mut found);
        }
        assert!(found.is_empty(), "{kind} {name}: {found:#?}");
        for (field, is_right) in demanded(kind) {
            let value = &written["spec"][field];
            assert!(is_right(value), "{kind} spec.{field}: {value}");
        }
        // What users see of it: their labels, their UID, the time of its making.
        let [before, after] = [&object, &written].map(|object| {
            let text = object["metadata"]["annotations"][METADATA].as_str().unwrap_or("null");
            serde_json::from_str::<Value>(text).expect("it is JSON")
        });
        let no_labels = json!({});
        for (label, value) in before["labels"]
            .as_object()
            .unwrap_or(no_labels.as_object().expect("it is one"))
        {
            let ours = [HOST_HASH, AFFINITY_TYPE, IP_VERSION].contains(&label.as_str());
            assert!(ours || after["labels"][label] == *value, "{kind} {name}: {label}");
        }
        if before["uid"].is_string() {
            assert_eq!(after["uid"], before["uid"], "{kind} {name}");
        }
    }
}

#[test]
fn the_order_of_free_addresses_and_large_numbers_survive() {
    let before = block();
    let resource = read(Kind::IPAMBlock, V1, before.clone())
        .expect("it is right")
        .expect("it is there");
    let after = write(&resource, V1, None);
    for field in [
        "unallocated",
        "allocations",
        "attributes",
        "sequenceNumber",
        "sequenceNumberForAllocation",
    ] {
        assert_eq!(
            after["spec"][field].to_string(),
            before["spec"][field].to_string(),
            "{field}"
        );
    }
}

#[test]
fn a_full_block_and_a_free_one_still_have_their_lists() {
    let check = |change: &dyn Fn(&mut Value)| {
        let mut object = block();
        change(&mut object["spec"]);
        let resource = read(Kind::IPAMBlock, V1, object)
            .expect("it is right")
            .expect("it is there");
        let written = write(&resource, V1, None);
        for (field, is_right) in demanded(Kind::IPAMBlock) {
            assert!(is_right(&written["spec"][field]), "{field}: {}", written["spec"]);
        }
    };
    check(&|spec| {
        spec["unallocated"] = json!([]);
        spec["allocations"] = json!(vec![0; 64]);
    });
    check(&|spec| {
        spec["unallocated"] = json!((0..64).collect::<Vec<u32>>());
        spec["allocations"] = json!(vec![Value::Null; 64]);
        spec["attributes"] = json!([]);
        spec["sequenceNumberForAllocation"] = json!({});
        drop(spec.as_object_mut().expect("it is one").remove("affinity"));
    });
}

#[test]
fn what_older_versions_left_out_is_read() {
    let check = |kind: Kind, mut object: Value, without: &[&str]| {
        let spec = object["spec"].as_object_mut().expect("it is one");
        spec.retain(|field, _| !without.contains(&field.as_str()));
        object["metadata"]["annotations"] = json!({ METADATA: "{\"creationTimestamp\":null}" });
        object["metadata"].as_object_mut().expect("it is one").remove("labels");
        let read = read(kind, V1, object);
        assert!(matches!(read, Ok(Some(_))), "{kind} without {without:?}: {read:?}");
    };
    check(
        Kind::IPAMBlock,
        block(),
        &[
            "affinityClaimTime",
            "deleted",
            "sequenceNumber",
            "sequenceNumberForAllocation",
        ],
    );
    check(Kind::BlockAffinity, affinity(), &["type"]);
    check(Kind::IPAMHandle, handle(), &["deleted"]);
    check(Kind::IPAMConfiguration, configuration(), &["maxBlocksPerHost"]);
}

#[test]
fn what_calico_has_marked_is_gone() {
    let check = |kind: Kind, mut object: Value, mark: Value| {
        object["spec"]["deleted"] = mark;
        assert_eq!(read(kind, V1, object), Ok(None), "{kind}");
    };
    check(Kind::IPAMBlock, block(), true.into());
    check(Kind::IPAMHandle, handle(), true.into());
    check(Kind::BlockAffinity, affinity(), "true".into());
}
