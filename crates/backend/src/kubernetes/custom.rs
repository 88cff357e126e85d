//! Our own resources as custom resources, in both API groups.
//!
//! In `projectcalico.org/v3` the object is the resource. In `crd.projectcalico.org/v1` its metadata stand as JSON in the
//! annotation `projectcalico.org/metadata` (upstream `backend/k8s/resources/resources.go`), so that what users see has a UID
//! and labels of its own; what was written there without the annotation, by hand, counts as it is.

use api::names::derived_uid;
use api::{Kind, Resource};
use ipnet::IpNet;
use serde_json::{Map, Value, json};
use sha3::{Digest, Sha3_256};

use super::group::CalicoGroup;

/// Where v1 objects keep their metadata.
const METADATA: &str = "projectcalico.org/metadata";
/// Labels by which upstream looks up affinities; not part of the resource.
const HOST_HASH: &str = "projectcalico.org/hostname-hash";
const AFFINITY_TYPE: &str = "projectcalico.org/affinity-type";
const IP_VERSION: &str = "projectcalico.org/ip-version";
/// What the API server says of an object, and nobody else.
const SERVERS: [&str; 6] = [
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "generation",
    "managedFields",
    "selfLink",
];

/// The resource that an object is, if only a wrong one: the CRD lets more pass than we understand. `None` if it is marked as
/// deleted: whoever marked it is about to delete it.
///
/// # Errors
/// Why not even that: its metadata are no such.
pub fn read(kind: Kind, group: CalicoGroup, mut object: Value) -> Result<Option<Resource>, String> {
    if is_marked(&object) {
        return Ok(None);
    }
    let fields = object.as_object_mut().ok_or("it is no object")?;
    fields.insert("kind".into(), kind.name().into());
    fields.entry("spec").or_insert_with(|| json!({}));
    if fields
        .get("status")
        .is_some_and(|status| status.is_null() || *status == json!({}))
    {
        fields.remove("status");
    }
    // Settings that upstream's older types always wrote, and that say nothing.
    if is_settings(kind)
        && let Some(Value::Object(spec)) = fields.get_mut("spec")
    {
        spec.retain(|_, value| value.as_str() != Some(""));
    }
    let metadata = fields.remove("metadata").unwrap_or_default();
    let mut metadata = match metadata {
        Value::Object(metadata) if group == CalicoGroup::V1 => unfolded(metadata)?,
        Value::Object(metadata) => metadata,
        _ => return Err("it has no metadata".into()),
    };
    if kind == Kind::BlockAffinity {
        if let Some(Value::Object(labels)) = metadata.get_mut("labels") {
            labels.retain(|label, _| ![HOST_HASH, AFFINITY_TYPE, IP_VERSION].contains(&label.as_str()));
        }
        // v1 has it as text.
        if let Some(Value::Object(spec)) = fields.get_mut("spec") {
            spec.remove("deleted");
        }
    }
    fields.insert("metadata".into(), Value::Object(metadata));
    Resource::from_json(object).map(Some)
}

/// The object that a resource is, at the version it replaces.
pub fn write(resource: &Resource, group: CalicoGroup, replaces: Option<&str>) -> Value {
    let kind = resource.kind();
    let mut object = serde_json::to_value(resource).unwrap_or_default();
    let mut metadata = match object["metadata"].take() {
        Value::Object(metadata) => metadata,
        _ => Map::new(),
    };
    metadata.remove("resourceVersion");
    if group == CalicoGroup::V1 {
        metadata = folded(metadata);
    } else {
        metadata.remove("uid");
        metadata.retain(|field, _| !SERVERS.contains(&field.as_str()));
    }
    if let Resource::BlockAffinity(affinity) = resource {
        let labels = metadata.entry("labels").or_insert_with(|| json!({}));
        let host = &affinity.spec.node;
        labels[HOST_HASH] = base32(&Sha3_256::digest(host.as_bytes())).into();
        labels[AFFINITY_TYPE] = affinity
            .spec
            .affinity_type
            .as_deref()
            .filter(|kind| !kind.is_empty())
            .unwrap_or("host")
            .into();
        labels[IP_VERSION] = match affinity.spec.cidr {
            IpNet::V4(_) => "4".into(),
            IpNet::V6(_) => "6".into(),
        };
    }
    // Upstream always says that an object of IPAM is not deleted: as text in v1's affinities, which demand it.
    if group == CalicoGroup::V1 {
        match kind {
            Kind::BlockAffinity => object["spec"]["deleted"] = "false".into(),
            Kind::IPAMBlock | Kind::IPAMHandle => object["spec"]["deleted"] = false.into(),
            _ => {}
        }
    }
    if let Some(version) = replaces {
        metadata.insert("resourceVersion".into(), version.into());
    }
    object["metadata"] = Value::Object(metadata);
    object["apiVersion"] = format!("{}/{}", group.name(), group.version()).into();
    object["kind"] = match (kind, group) {
        (Kind::IPAMConfiguration, CalicoGroup::V1) => "IPAMConfig".into(),
        _ => kind.name().into(),
    };
    object
}

/// Kinds in whose spec an empty text is as good as none.
fn is_settings(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::FelixConfiguration
            | Kind::BGPConfiguration
            | Kind::BGPPeer
            | Kind::IPPool
            | Kind::KubeControllersConfiguration
    )
}

/// Whether an object of IPAM is marked as deleted: a flag in v3, text in v1's affinities.
pub fn is_marked(object: &Value) -> bool {
    match &object["spec"]["deleted"] {
        Value::Bool(deleted) => *deleted,
        Value::String(deleted) => deleted == "true",
        _ => false,
    }
}

/// A v1 object's metadata as users see them.
fn unfolded(mut real: Map<String, Value>) -> Result<Map<String, Value>, String> {
    let kept = real.get_mut("annotations").and_then(Value::as_object_mut);
    let mut metadata = match kept.and_then(|annotations| annotations.remove(METADATA)) {
        None => Map::new(),
        Some(Value::String(text)) => {
            serde_json::from_str(&text).map_err(|error| format!("annotation {METADATA}: {error}"))?
        }
        Some(_) => return Err(format!("annotation {METADATA} is no text")),
    };
    // Upstream writes null for a time that it does not know.
    metadata.retain(|_, value: &mut Value| !value.is_null());
    for field in [
        "name",
        "namespace",
        "resourceVersion",
        "generation",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        metadata.remove(field);
    }
    // Without a status of its own an object's generation counts what is said of it, too.
    real.remove("generation");
    let uid = real.remove("uid");
    if !metadata.contains_key("uid")
        && let Some(uid) = uid.as_ref().and_then(Value::as_str).and_then(derived_uid)
    {
        metadata.insert("uid".into(), uid.into());
    }
    for (field, value) in real {
        match (metadata.get_mut(&field), value) {
            // What users wrote counts more than what lies on the object for lookups.
            (Some(Value::Object(held)), Value::Object(more)) => {
                for (name, value) in more {
                    held.entry(name).or_insert(value);
                }
            }
            (Some(_), _) => {}
            (None, value) => drop(metadata.insert(field, value)),
        }
    }
    Ok(metadata)
}

/// A resource's metadata as a v1 object has them.
fn folded(mut metadata: Map<String, Value>) -> Map<String, Value> {
    let mut real = Map::new();
    // What the API server acts by must be where it looks.
    for field in ["name", "namespace", "finalizers", "ownerReferences"] {
        real.extend(metadata.remove(field).map(|value| (field.to_owned(), value)));
    }
    for field in SERVERS {
        if field != "creationTimestamp" {
            metadata.remove(field);
        }
    }
    if let Some(Value::Object(labels)) = metadata.get("labels") {
        let ours = |(name, _): &(&String, &Value)| name.starts_with("projectcalico.org/");
        let ours: Map<_, _> = labels
            .iter()
            .filter(ours)
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if !ours.is_empty() {
            real.insert("labels".into(), Value::Object(ours));
        }
    }
    metadata.entry("creationTimestamp").or_insert(Value::Null);
    real.insert(
        "annotations".into(),
        json!({ METADATA: Value::Object(metadata).to_string() }),
    );
    real
}

/// RFC 4648 section 6, without padding.
fn base32(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut text = String::with_capacity(bytes.len().div_ceil(5) * 8);
    for group in bytes.chunks(5) {
        let bits = group
            .iter()
            .enumerate()
            .fold(0u64, |bits, (at, byte)| bits | u64::from(*byte) << (32 - 8 * at));
        for digit in 0..(group.len() * 8).div_ceil(5) {
            text.push(char::from(ALPHABET[(bits >> (35 - 5 * digit) & 31) as usize]));
        }
    }
    text
}

#[cfg(test)]
mod calico;
#[cfg(test)]
mod tests;
