//! Resources to objects and back, in both groups.

use api::{BlockAffinity, BlockAffinitySpec, Object, Resource};
use serde_json::json;

use super::*;

const BOTH: [CalicoGroup; 2] = [CalicoGroup::V1, CalicoGroup::V3];

fn affinity() -> BlockAffinity {
    let cidr = "10.0.0.0/26".parse().expect("a prefix");
    let spec = BlockAffinitySpec {
        state: api::AffinityState::Confirmed,
        node: "n1".into(),
        affinity_type: Some("host".into()),
        cidr,
        deleted: false,
    };
    let mut affinity = Object::new("n1-10-0-0-0-26", spec);
    affinity.metadata.labels.insert("color".into(), "blue".into());
    affinity.metadata.annotations.insert("note".into(), "kept".into());
    affinity.metadata.uid = Some("0b2e1f64-6d3b-4b52-9c8b-0a4f6f0f6a11".into());
    affinity
}

#[test]
fn a_resource_comes_back() {
    for group in BOTH {
        let mut expected: Resource = affinity().into();
        let mut object = write(&expected, group, Some("7"));
        // As the server does.
        if group == CalicoGroup::V3 {
            object["metadata"]["uid"] = "0b2e1f64-6d3b-4b52-9c8b-0a4f6f0f6a11".into();
        } else {
            object["metadata"]["uid"] = "11111111-1111-4111-9111-111111111111".into();
        }
        expected.metadata_mut().resource_version = Some("7".into());
        assert_eq!(read(Kind::BlockAffinity, group, object), Ok(Some(expected)));
    }
}

#[test]
fn an_affinity_can_be_found_by_its_host() {
    for group in BOTH {
        let object = write(&affinity().into(), group, None);
        let labels = &object["metadata"]["labels"];
        // `printf n1 | openssl dgst -sha3-256 -binary | base32`
        assert_eq!(
            labels[HOST_HASH],
            "DM7EHBDU4L3ELKRER4A46T6QMKAGARQI4CVWBO26S4I2IDAAW6CA"
        );
        assert_eq!(labels[AFFINITY_TYPE], "host");
        assert_eq!(labels[IP_VERSION], "4");
    }
}

#[test]
fn v1_hides_metadata_in_an_annotation() {
    let object = write(&affinity().into(), CalicoGroup::V1, None);
    assert_eq!(object["apiVersion"], "crd.projectcalico.org/v1");
    assert_eq!(object["spec"]["deleted"], "false");
    assert_eq!(
        object["metadata"]["labels"].get("color"),
        None,
        "labels are the resource's, not the object's"
    );
    let hidden = object["metadata"]["annotations"][METADATA]
        .as_str()
        .expect("it is text");
    let hidden: Value = serde_json::from_str(hidden).expect("it is JSON");
    assert_eq!(hidden["labels"], json!({ "color": "blue" }));
    assert_eq!(hidden["annotations"], json!({ "note": "kept" }));
    assert_eq!(hidden["uid"], "0b2e1f64-6d3b-4b52-9c8b-0a4f6f0f6a11");
}

#[test]
fn what_upstream_wrote_is_read() {
    let object = json!({
        "apiVersion": "crd.projectcalico.org/v1",
        "kind": "IPPool",
        "metadata": {
            "name": "default-ipv4-ippool",
            "uid": "30316465-6365-4463-ad63-3564622d3638",
            "resourceVersion": "12",
            "creationTimestamp": "2026-01-02T03:04:05Z",
            "generation": 3,
            "annotations": {
                "projectcalico.org/metadata": "{\"uid\":\"0b2e1f64-6d3b-4b52-9c8b-0a4f6f0f6a11\",\"creationTimestamp\":null,\"labels\":{\"a\":\"b\"}}",
            },
        },
        "spec": { "cidr": "192.168.0.0/16", "ipipMode": "Always", "natOutgoing": true, "nodeSelector": "all()" },
    });
    let read = read(Kind::IPPool, CalicoGroup::V1, object)
        .expect("it is right")
        .expect("it is there");
    let metadata = read.metadata();
    assert_eq!(metadata.uid.as_deref(), Some("0b2e1f64-6d3b-4b52-9c8b-0a4f6f0f6a11"));
    assert_eq!(metadata.labels.get("a").map(String::as_str), Some("b"));
    assert!(metadata.annotations.is_empty());
    assert_eq!(metadata.generation, None, "it counts what is said of the pool, too");
    assert_eq!(
        metadata.creation_timestamp.map(|time| time.to_string()).as_deref(),
        Some("2026-01-02T03:04:05Z")
    );
}

#[test]
fn what_was_written_by_hand_counts_as_it_is() {
    let object = json!({
        "metadata": {
            "name": "p",
            "uid": "30316465-6365-4463-ad63-3564622d3638",
            "labels": { "a": "b" },
            "annotations": { "note": "x" },
        },
        "spec": { "cidr": "192.168.0.0/16" },
    });
    let read = read(Kind::IPPool, CalicoGroup::V1, object)
        .expect("it is right")
        .expect("it is there");
    let metadata = read.metadata();
    assert_eq!(
        metadata.uid.as_deref(),
        Some("0c8c26a6-c6a6-44c6-adc6-ac2646b46c1c"),
        "not the object's own"
    );
    assert_eq!(metadata.labels.get("a").map(String::as_str), Some("b"));
    assert_eq!(metadata.annotations.get("note").map(String::as_str), Some("x"));
}

#[test]
fn what_is_marked_as_deleted_is_gone() {
    let check = |deleted: Value, gone: bool| {
        let mut object = write(&affinity().into(), CalicoGroup::V3, None);
        object["spec"]["deleted"] = deleted;
        let read = read(Kind::BlockAffinity, CalicoGroup::V3, object).expect("it is right");
        assert_eq!(read.is_none(), gone);
    };
    check("true".into(), true);
    check(true.into(), true);
    check("false".into(), false);
    check(false.into(), false);
    check(Value::Null, false);
}

#[test]
fn what_is_wrong_is_named() {
    let check = |object: Value, expected: &str| {
        let why = match read(Kind::IPPool, CalicoGroup::V1, object) {
            Ok(Some(Resource::Wrong(wrong))) => wrong.problems()[0].to_string(),
            Ok(right) => panic!("{right:?}"),
            Err(why) => why,
        };
        assert!(why.contains(expected), "{why}");
    };
    check(json!("text"), "no object");
    check(json!({ "spec": {} }), "no metadata");
    check(json!({ "metadata": { "name": "p" }, "spec": {} }), "cidr");
    let half = json!({ "metadata": { "name": "p", "annotations": { METADATA: "{" } }, "spec": {} });
    check(half, METADATA);
}

#[test]
fn base32_is_rfc_4648() {
    for (bytes, text) in [
        ("", ""),
        ("f", "MY"),
        ("fo", "MZXQ"),
        ("foo", "MZXW6"),
        ("foob", "MZXW6YQ"),
        ("fooba", "MZXW6YTB"),
    ] {
        assert_eq!(base32(bytes.as_bytes()), text);
    }
}
