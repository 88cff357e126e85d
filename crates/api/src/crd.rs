//! CustomResourceDefinitions of our kinds, in both API groups: schemas from the types, the rest from a table.
//!
//! The schemas say what can be read. What is right beyond that is said by rules in CEL for the few mistakes that hurt most,
//! and by validation in the CLI and the agent for all.

use serde_json::{Map, Value, json};

use crate::document::yaml_of;
use crate::shape::{Field, Shape};
use crate::{Kind, Resource};

/// The API group that the definitions are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrdGroup {
    /// `crd.projectcalico.org/v1`, as existing Calico clusters have it.
    V1,
    /// `projectcalico.org/v3`.
    V3,
}

/// What a definition has besides its schema.
struct Row {
    kind: Kind,
    short: &'static [&'static str],
    /// Title, type and path of columns that `kubectl get` prints.
    columns: &'static [(&'static str, &'static str, &'static str)],
    /// Rules in CEL: the place (below the object, dotted), the rule, what is wrong otherwise.
    rules: &'static [(&'static str, &'static str, &'static str)],
}

const DEFAULT_ONLY: (&str, &str, &str) = ("", "self.metadata.name == 'default'", "the name must be default");
const DEFAULT_OR_NODE: (&str, &str, &str) = (
    "",
    "self.metadata.name == 'default' || self.metadata.name.startsWith('node.')",
    "the name must be default, or node. and the name of a node",
);
const TIER: (&str, &str, &str) = ("Tier", "string", ".spec.tier");
const ORDER: (&str, &str, &str) = ("Order", "number", ".spec.order");
const ACTION: (&str, &str, &str) = ("Staged Action", "string", ".spec.stagedAction");

/// Kinds that are custom resources; the others are made of Kubernetes' own objects.
const ROWS: &[Row] = &[
    Row {
        kind: Kind::IPPool,
        short: &["ipp", "pool"],
        columns: &[
            ("CIDR", "string", ".spec.cidr"),
            ("IPIP", "string", ".spec.ipipMode"),
            ("VXLAN", "string", ".spec.vxlanMode"),
            ("NAT", "boolean", ".spec.natOutgoing"),
            ("Disabled", "boolean", ".spec.disabled"),
        ],
        rules: &[
            (
                "spec.cidr",
                "self == oldSelf",
                "the range of a pool cannot be changed: make a new pool",
            ),
            (
                "spec.blockSize",
                "self == oldSelf",
                "the block size of a pool cannot be changed: make a new pool",
            ),
            (
                "spec",
                "!has(self.ipipMode) || !has(self.vxlanMode) || self.ipipMode == 'Never' || self.vxlanMode == 'Never'",
                "ipipMode and vxlanMode cannot both be used",
            ),
        ],
    },
    Row {
        kind: Kind::BGPConfiguration,
        short: &["bgpconfig"],
        columns: &[
            ("Mesh", "boolean", ".spec.nodeToNodeMeshEnabled"),
            ("AS", "string", ".spec.asNumber"),
        ],
        rules: &[DEFAULT_OR_NODE],
    },
    Row {
        kind: Kind::BGPPeer,
        short: &["bgpp"],
        columns: &[
            ("Peer IP", "string", ".spec.peerIP"),
            ("Node", "string", ".spec.node"),
            ("AS", "string", ".spec.asNumber"),
        ],
        rules: &[(
            "spec",
            "!has(self.node) || !has(self.nodeSelector) || self.node == '' || self.nodeSelector == ''",
            "node and nodeSelector cannot both be given",
        )],
    },
    Row {
        kind: Kind::FelixConfiguration,
        short: &["felixconfig"],
        columns: &[],
        rules: &[DEFAULT_OR_NODE],
    },
    Row {
        kind: Kind::ClusterInformation,
        short: &["clusterinfo"],
        columns: &[
            ("Version", "string", ".spec.calicoVersion"),
            ("Ready", "boolean", ".spec.datastoreReady"),
        ],
        rules: &[DEFAULT_ONLY],
    },
    Row {
        kind: Kind::IPAMBlock,
        short: &[],
        columns: &[
            ("CIDR", "string", ".spec.cidr"),
            ("Affinity", "string", ".spec.affinity"),
        ],
        rules: &[],
    },
    Row {
        kind: Kind::BlockAffinity,
        short: &[],
        columns: &[
            ("CIDR", "string", ".spec.cidr"),
            ("Node", "string", ".spec.node"),
            ("State", "string", ".spec.state"),
        ],
        rules: &[],
    },
    Row {
        kind: Kind::IPAMHandle,
        short: &[],
        columns: &[("Handle", "string", ".spec.handleID")],
        rules: &[],
    },
    Row {
        kind: Kind::IPAMConfiguration,
        short: &["ipamconfig"],
        columns: &[
            ("Strict Affinity", "boolean", ".spec.strictAffinity"),
            ("Max Blocks", "integer", ".spec.maxBlocksPerHost"),
        ],
        rules: &[DEFAULT_ONLY],
    },
    Row {
        kind: Kind::NetworkPolicy,
        short: &["cnp", "caliconetworkpolicy"],
        columns: &[TIER, ORDER],
        rules: &[],
    },
    Row {
        kind: Kind::GlobalNetworkPolicy,
        short: &["gnp"],
        columns: &[TIER, ORDER],
        rules: &[(
            "spec",
            "!has(self.doNotTrack) || !has(self.preDNAT) || !self.doNotTrack || !self.preDNAT",
            "doNotTrack and preDNAT cannot both be true",
        )],
    },
    Row {
        kind: Kind::StagedNetworkPolicy,
        short: &["snp"],
        columns: &[TIER, ORDER, ACTION],
        rules: &[],
    },
    Row {
        kind: Kind::StagedGlobalNetworkPolicy,
        short: &["sgnp"],
        columns: &[TIER, ORDER, ACTION],
        rules: &[],
    },
    Row {
        kind: Kind::StagedKubernetesNetworkPolicy,
        short: &["sknp"],
        columns: &[ACTION],
        rules: &[],
    },
    Row {
        kind: Kind::Tier,
        short: &[],
        columns: &[ORDER, ("Default Action", "string", ".spec.defaultAction")],
        rules: &[],
    },
    Row {
        kind: Kind::NetworkSet,
        short: &["netset"],
        columns: &[],
        rules: &[],
    },
    Row {
        kind: Kind::GlobalNetworkSet,
        short: &["gnetset"],
        columns: &[],
        rules: &[],
    },
    Row {
        kind: Kind::HostEndpoint,
        short: &["hep"],
        columns: &[
            ("Node", "string", ".spec.node"),
            ("Interface", "string", ".spec.interfaceName"),
        ],
        rules: &[],
    },
    Row {
        kind: Kind::KubeControllersConfiguration,
        short: &["kcc", "kccs"],
        columns: &[],
        rules: &[DEFAULT_ONLY],
    },
    Row {
        kind: Kind::IPReservation,
        short: &[],
        columns: &[],
        rules: &[],
    },
    Row {
        kind: Kind::CalicoNodeStatus,
        short: &[],
        columns: &[
            ("Node", "string", ".spec.node"),
            ("Last Updated", "date", ".status.lastUpdated"),
        ],
        rules: &[],
    },
    Row {
        kind: Kind::BGPFilter,
        short: &[],
        columns: &[],
        rules: &[],
    },
];

/// The definitions, as documents. `rules`: with rules in CEL; an API server before 1.25 does not know them, and kubectl then
/// refuses the documents.
pub fn definitions(group: CrdGroup, rules: bool) -> Vec<Value> {
    ROWS.iter().map(|row| definition(row, group, rules)).collect()
}

/// The same as one file of YAML documents.
pub fn to_yaml(group: CrdGroup, rules: bool) -> String {
    let documents = definitions(group, rules);
    documents
        .iter()
        .map(|document| format!("---\n{}", yaml_of(document)))
        .collect()
}

fn definition(row: &Row, group: CrdGroup, rules: bool) -> Value {
    let (group_name, version) = match group {
        CrdGroup::V1 => ("crd.projectcalico.org", "v1"),
        CrdGroup::V3 => ("projectcalico.org", "v3"),
    };
    let (kind, plural) = match (row.kind, group) {
        (Kind::IPAMConfiguration, CrdGroup::V1) => ("IPAMConfig", "ipamconfigs"),
        (kind, _) => (kind.name(), kind.plural()),
    };
    let singular = kind.to_lowercase();
    let short: Vec<&&str> = row.short.iter().filter(|name| **name != singular).collect();
    let column = |(name, kind, path): &(&str, &str, &str)| json!({ "name": name, "type": kind, "jsonPath": path });
    let mut columns: Vec<Value> = row.columns.iter().map(column).collect();
    columns.push(column(&("Age", "date", ".metadata.creationTimestamp")));
    let mut schema = object_schema(row.kind, group);
    if rules {
        for (place, rule, message) in row.rules {
            add_rule(&mut schema, place, rule, message);
        }
    }
    let scope = if row.kind.is_namespaced() {
        "Namespaced"
    } else {
        "Cluster"
    };
    let mut served = json!({
        "name": version,
        "served": true,
        "storage": true,
        "additionalPrinterColumns": columns,
        "schema": { "openAPIV3Schema": schema },
    });
    // Upstream's definitions of v1 have none.
    if group == CrdGroup::V3
        && served["schema"]["openAPIV3Schema"]["properties"]
            .get("status")
            .is_some()
    {
        served["subresources"] = json!({ "status": {} });
    }
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{plural}.{group_name}") },
        "spec": {
            "group": group_name,
            "names": {
                "kind": kind,
                "listKind": format!("{kind}List"),
                "plural": plural,
                "singular": singular,
                "shortNames": short,
                "categories": ["calico"],
            },
            "scope": scope,
            "preserveUnknownFields": false,
            "versions": [served],
        },
    })
}

fn object_schema(kind: Kind, group: CrdGroup) -> Value {
    let (spec, status) = Resource::shapes(kind);
    let mut spec = schema(&spec);
    if kind == Kind::BlockAffinity && group == CrdGroup::V1 {
        // Upstream has it as text there.
        spec["properties"]["deleted"] = json!({ "type": "string" });
    }
    let mut properties = json!({
        "apiVersion": { "type": "string" },
        "kind": { "type": "string" },
        "metadata": { "type": "object" },
        "spec": spec,
    });
    if status != Shape::Struct(Vec::new()) {
        properties["status"] = schema(&status);
    }
    json!({ "type": "object", "properties": properties })
}

fn schema(shape: &Shape) -> Value {
    match shape {
        Shape::Bool => json!({ "type": "boolean" }),
        Shape::Number => json!({ "type": "number" }),
        Shape::Text => json!({ "type": "string" }),
        Shape::Choice(texts) => json!({ "type": "string", "enum": texts }),
        Shape::Either => {
            json!({ "anyOf": [{ "type": "integer" }, { "type": "string" }], "x-kubernetes-int-or-string": true })
        }
        Shape::Integer(least, most) => {
            let mut integer = json!({ "type": "integer", "format": "int64" });
            // 64 bits are the server's own limit.
            if *most < i64::MAX as u64 {
                integer["minimum"] = (*least).into();
                integer["maximum"] = (*most).into();
            }
            integer
        }
        Shape::Optional(inner) => {
            let mut inner = schema(inner);
            inner["nullable"] = true.into();
            inner
        }
        Shape::List(item) => json!({ "type": "array", "items": schema(item) }),
        Shape::Map(value) => json!({ "type": "object", "additionalProperties": schema(value) }),
        Shape::Struct(fields) => {
            let mut object = json!({ "type": "object" });
            let property = |field: &Field| (field.name.to_owned(), field_schema(field));
            if !fields.is_empty() {
                object["properties"] = Value::Object(fields.iter().map(property).collect::<Map<_, _>>());
            }
            let required: Vec<&str> = fields
                .iter()
                .filter(|field| field.required)
                .map(|field| field.name)
                .collect();
            if !required.is_empty() {
                object["required"] = required.into();
            }
            object
        }
    }
}

fn field_schema(field: &Field) -> Value {
    match field.name {
        // A number that may be null, and may have a point.
        "order" => json!({ "type": "number", "nullable": true }),
        _ => schema(&field.shape),
    }
}

fn add_rule(schema: &mut Value, place: &str, rule: &str, message: &str) {
    let mut here = schema;
    for field in place.split('.').filter(|field| !field.is_empty()) {
        here = &mut here["properties"][field];
    }
    let rule = json!({ "rule": rule, "message": message });
    match &mut here["x-kubernetes-validations"] {
        Value::Array(rules) => rules.push(rule),
        none => *none = json!([rule]),
    }
}

#[cfg(test)]
mod tests;
