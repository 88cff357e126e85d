//! Nodes and their annotations.

use serde_json::json;

use super::*;

fn kubernetes(annotations: Value) -> Value {
    json!({
        "metadata": {
            "name": "n1", "resourceVersion": "5", "uid": "30316465-6365-4463-ad63-3564622d3638",
            "labels": { "zone": "a" }, "annotations": annotations,
        },
        "spec": { "podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"] },
        "status": { "addresses": [
            { "type": "InternalIP", "address": "10.210.0.11" }, { "type": "Hostname", "address": "n1" },
        ] },
    })
}

fn read_node(annotations: Value) -> Node {
    let resource = read(kubernetes(annotations)).expect("it is right");
    Node::try_from(resource).expect("it is a node")
}

#[test]
fn a_node_is_what_its_annotations_say() {
    let node = read_node(json!({
        "projectcalico.org/IPv4Address": "10.210.0.11/24",
        "projectcalico.org/IPv6Address": "fd00:210::11",
        "projectcalico.org/IPv4IPIPTunnelAddr": "192.168.1.1",
        "projectcalico.org/ASNumber": "64513",
        "projectcalico.org/labels": "{\"rack\":\"7\"}",
        "projectcalico.org/IPv4VXLANTunnelAddr": "",
        "unrelated": "x",
    }));
    assert_eq!(node.problems(), []);
    let bgp = node.spec.bgp.as_ref().expect("it has addresses");
    assert_eq!(
        bgp.ipv4_address.map(|net| net.to_string()).as_deref(),
        Some("10.210.0.11/24")
    );
    assert_eq!(
        bgp.ipv6_address.map(|net| net.to_string()).as_deref(),
        Some("fd00:210::11/128")
    );
    assert_eq!(bgp.as_number.map(|number| number.0), Some(64513));
    assert_eq!(node.metadata.labels.len(), 2);
    let addresses: Vec<&str> = node
        .spec
        .addresses
        .iter()
        .map(|address| address.address.as_str())
        .collect();
    assert_eq!(addresses, ["10.210.0.11/24", "fd00:210::11/128", "10.210.0.11"]);
    assert_eq!(node.status.as_ref().map(|status| status.pod_cidrs.len()), Some(1));
}

#[test]
fn a_node_nobody_set_up_has_no_bgp() {
    assert_eq!(read_node(json!({})).spec.bgp, None);
}

#[test]
fn a_wrong_annotation_is_named() {
    let why = read(kubernetes(json!({ "projectcalico.org/IPv4Address": "10.0.0" }))).expect_err("it is wrong");
    assert!(
        why.starts_with("annotation projectcalico.org/IPv4Address is 10.0.0: "),
        "{why}"
    );
}

#[test]
fn a_patch_has_what_changed_and_only_ours() {
    let held = json!({ "projectcalico.org/IPv4Address": "10.210.0.11/24", "projectcalico.org/ASNumber": "64513", "unrelated": "x" });
    let mut node = read_node(held.clone());
    let bgp = node.spec.bgp.get_or_insert_default();
    bgp.as_number = None;
    bgp.ipv4_ipip_tunnel_addr = Some("192.168.1.1".parse().expect("an address"));
    node.metadata.labels.insert("rack".into(), "7".into());
    let expected = json!({
        "metadata": {
            "resourceVersion": "5",
            "annotations": {
                "projectcalico.org/ASNumber": null,
                "projectcalico.org/IPv4Address": "10.210.0.11/24",
                "projectcalico.org/IPv4IPIPTunnelAddr": "192.168.1.1",
                "projectcalico.org/labels": "{\"rack\":\"7\"}",
            },
        },
    });
    assert_eq!(patch(&node, &kubernetes(held), "5"), expected);
}
