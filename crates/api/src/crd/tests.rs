//! What the definitions must be for an API server and for kubectl.

use super::*;

const BOTH: [CrdGroup; 2] = [CrdGroup::V1, CrdGroup::V3];

/// kubectl keeps what it applied in an annotation, of which there may be 256 KiB.
#[test]
fn definitions_can_be_applied_by_the_client() {
    for group in BOTH {
        for definition in definitions(group, true) {
            let size = definition.to_string().len();
            assert!(size < 128 << 10, "{} has {size} bytes", definition["metadata"]["name"]);
        }
    }
}

/// A structural schema: a type everywhere (Kubernetes' documentation of CRDs).
#[test]
fn every_place_of_a_schema_has_a_type() {
    fn check(place: &str, schema: &Value) {
        let either = schema["x-kubernetes-int-or-string"] == true;
        assert!(either || schema["type"].is_string(), "{place}: {schema}");
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            check(&format!("{place}.{name}"), inner);
        }
        for inner in ["items", "additionalProperties"]
            .iter()
            .filter_map(|inner| schema.get(inner))
        {
            check(&format!("{place}[]"), inner);
        }
    }
    for definition in BOTH.into_iter().flat_map(|group| definitions(group, true)) {
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        check(&definition["metadata"]["name"].to_string(), schema);
    }
}

#[test]
fn rules_stand_at_places_that_there_are() {
    for row in ROWS {
        for (place, rule, _) in row.rules {
            let schema = object_schema(row.kind, CrdGroup::V3);
            let fields = place.split('.').filter(|field| !field.is_empty());
            let found = fields.fold(&schema, |here, field| &here["properties"][field]);
            assert!(found.is_object(), "{}: {place}: {rule}", row.kind);
        }
    }
}

#[test]
fn what_must_be_there_is_required() {
    let check = |kind: Kind, expected: &[&str]| {
        let schema = object_schema(kind, CrdGroup::V3);
        let required = schema["properties"]["spec"]["required"].clone();
        assert_eq!(required, json!(expected), "{kind}");
    };
    check(Kind::IPPool, &["cidr"]);
    check(Kind::IPAMBlock, &["cidr", "allocations", "unallocated", "attributes"]);
    check(Kind::BlockAffinity, &["node", "cidr"]);
    check(Kind::IPAMHandle, &["handleID"]);
}

#[test]
fn short_names_and_columns_are_there() {
    let pool = definition(&ROWS[0], CrdGroup::V3, true);
    assert_eq!(pool["metadata"]["name"], "ippools.projectcalico.org");
    assert_eq!(pool["spec"]["names"]["shortNames"], json!(["ipp", "pool"]));
    let version = &pool["spec"]["versions"][0];
    assert_eq!(version["additionalPrinterColumns"][0]["jsonPath"], ".spec.cidr");
    let cidr = &version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["cidr"];
    assert_eq!(cidr["x-kubernetes-validations"][0]["rule"], "self == oldSelf");
}

/// Each rule, by an interpreter of CEL: some object that it lets pass, and some that it does not.
#[test]
fn rules_say_what_they_mean() {
    let named = |name: &str| json!({ "metadata": { "name": name } });
    let spec = |spec: Value| json!({ "metadata": { "name": "any" }, "spec": spec });
    let cidr = |cidr: &str, size: u8| spec(json!({ "cidr": cidr, "blockSize": size }));
    let nothing = || spec(json!({}));
    // Before, after, and how many of the rules of that kind do not hold.
    let examples = [
        (Kind::IPPool, cidr("10.0.0.0/16", 26), cidr("10.0.0.0/16", 26), 0),
        (Kind::IPPool, cidr("10.0.0.0/16", 26), cidr("10.1.0.0/16", 26), 1),
        (Kind::IPPool, cidr("10.0.0.0/16", 26), cidr("10.0.0.0/16", 27), 1),
        (
            Kind::IPPool,
            nothing(),
            spec(json!({ "ipipMode": "Always", "vxlanMode": "Never" })),
            0,
        ),
        (Kind::IPPool, nothing(), spec(json!({ "vxlanMode": "CrossSubnet" })), 0),
        (
            Kind::IPPool,
            nothing(),
            spec(json!({ "ipipMode": "Always", "vxlanMode": "Always" })),
            1,
        ),
        (Kind::BGPConfiguration, nothing(), named("default"), 0),
        (Kind::BGPConfiguration, nothing(), named("node.one"), 0),
        (Kind::BGPConfiguration, nothing(), named("other"), 1),
        (Kind::BGPPeer, nothing(), nothing(), 0),
        (
            Kind::BGPPeer,
            nothing(),
            spec(json!({ "node": "one", "nodeSelector": "" })),
            0,
        ),
        (
            Kind::BGPPeer,
            nothing(),
            spec(json!({ "node": "one", "nodeSelector": "all()" })),
            1,
        ),
        (Kind::FelixConfiguration, nothing(), named("node.one"), 0),
        (Kind::FelixConfiguration, nothing(), named("other"), 1),
        (Kind::ClusterInformation, nothing(), named("default"), 0),
        (Kind::ClusterInformation, nothing(), named("node.one"), 1),
        (Kind::IPAMConfiguration, nothing(), named("default"), 0),
        (Kind::IPAMConfiguration, nothing(), named("other"), 1),
        (
            Kind::GlobalNetworkPolicy,
            nothing(),
            spec(json!({ "doNotTrack": true, "preDNAT": false })),
            0,
        ),
        (
            Kind::GlobalNetworkPolicy,
            nothing(),
            spec(json!({ "doNotTrack": true, "preDNAT": true })),
            1,
        ),
        (Kind::KubeControllersConfiguration, nothing(), named("default"), 0),
        (Kind::KubeControllersConfiguration, nothing(), named("other"), 1),
    ];
    let mut tried = std::collections::BTreeSet::new();
    for (kind, before, after, expected) in examples {
        let row = ROWS.iter().find(|row| row.kind == kind).expect("a definition");
        let broken: Vec<&str> = row
            .rules
            .iter()
            .filter_map(|(place, rule, _)| {
                let holds = holds(rule, at(&before, place), at(&after, place)?);
                tried.insert((kind, *rule, holds));
                (!holds).then_some(*rule)
            })
            .collect();
        assert_eq!(broken.len(), expected, "{kind}: {before} to {after}: {broken:?}");
    }
    for row in ROWS {
        for (_, rule, _) in row.rules {
            let both = [true, false].map(|holds| tried.contains(&(row.kind, *rule, holds)));
            assert_eq!(both, [true, true], "{}: {rule}: no example", row.kind);
        }
    }
}

fn at<'a>(object: &'a Value, place: &str) -> Option<&'a Value> {
    let mut fields = place.split('.').filter(|field| !field.is_empty());
    fields.try_fold(object, |here, field| here.get(field))
}

/// A server asks a rule that names the old value only if there is one.
fn holds(rule: &str, before: Option<&Value>, after: &Value) -> bool {
    let mut context = cel::Context::default();
    context.add_variable("self", after).expect("a value");
    if rule.contains("oldSelf") {
        let Some(before) = before else { return true };
        context.add_variable("oldSelf", before).expect("a value");
    }
    let program = cel::Program::compile(rule).unwrap_or_else(|error| panic!("{rule}: {error}"));
    let answer = program
        .execute(&context)
        .unwrap_or_else(|error| panic!("{rule}: {error}"));
    assert!(matches!(answer, cel::Value::Bool(_)), "{rule}: {answer:?}");
    answer == cel::Value::Bool(true)
}
