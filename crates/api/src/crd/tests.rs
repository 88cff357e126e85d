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
    assert_eq!(pool["spec"]["names"]["shortNames"], json!(["ipp"]));
    let version = &pool["spec"]["versions"][0];
    assert_eq!(version["additionalPrinterColumns"][0]["jsonPath"], ".spec.cidr");
    let cidr = &version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["cidr"];
    assert_eq!(cidr["x-kubernetes-validations"][0]["rule"], "self == oldSelf");
}
