//! Object metadata: the subset of Kubernetes' ObjectMeta that upstream stores.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::names::{NameRule, is_subdomain};
use crate::problem::{FieldProblem, Problems};

/// Who an object is and what it is labelled with (Kubernetes `meta/v1.ObjectMeta`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// Name, unique in its kind (and namespace).
    pub name: String,
    /// Namespace of namespaced kinds; absent for cluster-wide ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Opaque revision of the stored object; set by the store, compared only for equality.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
    /// Identity of this incarnation of the object (UUID text).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// When the object was created, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<Timestamp>,
    /// When deletion was asked for, if finalizers hold it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletion_timestamp: Option<Timestamp>,
    /// Seconds of grace that came with the deletion.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletion_grace_period_seconds: Option<i64>,
    /// Counts changes of the spec.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// Prefix for a generated name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generate_name: Option<String>,
    /// Labels, matched by selectors.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations, at most 256 KiB together.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Names that must be removed before the object goes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub finalizers: Vec<String>,
    /// Objects whose deletion takes this one along.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub owner_references: Vec<OwnerReference>,
    /// What of the object that this one is made of could not be converted. Never stored.
    #[serde(skip)]
    pub left_out: Vec<FieldProblem>,
}

/// An object whose deletion takes another one along (Kubernetes `meta/v1.OwnerReference`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnerReference {
    /// Group and version of its kind.
    pub api_version: String,
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its identity.
    pub uid: String,
    /// Whether it is the one controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controller: Option<bool>,
    /// Whether its deletion waits for this object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_owner_deletion: Option<bool>,
}

impl Metadata {
    /// Metadata of a cluster-wide object with this name.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }

    /// Metadata of a namespaced object.
    pub fn namespaced(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            namespace: Some(namespace.into()),
            ..Self::default()
        }
    }

    pub(crate) fn check(&self, names: NameRule, problems: &mut Problems) {
        match names.check(&self.name) {
            Err(_) if self.name.is_empty() => problems.missing("name", "is required"),
            Err(message) => problems.report("name", &self.name, message),
            Ok(()) => {}
        }
        if let Some(namespace) = &self.namespace
            && !crate::names::is_label(namespace)
        {
            problems.report(
                "namespace",
                namespace,
                "must be a DNS label: at most 63 lower-case letters, digits and `-`",
            );
        }
        check_labels("labels", &self.labels, problems);
        check_annotations(&self.annotations, problems);
    }
}

/// Reports keys that are no annotations, and too many bytes of them.
pub(crate) fn check_annotations(annotations: &BTreeMap<String, String>, problems: &mut Problems) {
    problems.within("annotations", |problems| {
        for key in annotations.keys().filter(|key| !is_qualified_name(key, Capitals::No)) {
            problems.report("", key, QUALIFIED_NAME);
        }
        let total: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
        if total > 256 * 1024 {
            problems.report("", format!("{total} bytes"), "must be at most 262144 bytes together");
        }
    });
}

/// Reports keys and values that are no Kubernetes labels.
pub(crate) fn check_labels(field: &str, labels: &BTreeMap<String, String>, problems: &mut Problems) {
    problems.within(field, |problems| {
        for (key, value) in labels {
            if !is_label_key(key) {
                problems.report("", key, QUALIFIED_NAME);
            }
            if !is_label_value(value) {
                problems.report(key, value, LABEL_VALUE);
            }
        }
    });
}

const QUALIFIED_NAME: &str = "must be a key: at most 63 letters, digits, `-`, `_` and `.`, starting and ending with a \
    letter or digit, after an optional DNS name and `/`";
const LABEL_VALUE: &str =
    "must be at most 63 letters, digits, `-`, `_` and `.`, starting and ending with a letter or digit";

/// Whether a label may be called this.
pub fn is_label_key(key: &str) -> bool {
    is_qualified_name(key, Capitals::Yes)
}

/// Whether a label may have this value.
pub fn is_label_value(value: &str) -> bool {
    value.is_empty() || is_name_part(value)
}

/// Whether the DNS name in a key may have capitals: in a label's it may, in an annotation's not.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Capitals {
    Yes,
    No,
}

/// Whether `key` is a Kubernetes qualified name: `name` or `dns.name/name`.
fn is_qualified_name(key: &str, capitals: Capitals) -> bool {
    match key.split_once('/') {
        None => is_name_part(key),
        Some((domain, name)) if capitals == Capitals::Yes => is_subdomain(&domain.to_lowercase()) && is_name_part(name),
        Some((domain, name)) => is_subdomain(domain) && is_name_part(name),
    }
}

fn is_name_part(name: &str) -> bool {
    let end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    let inner = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    bytes.len() <= 63 && end(bytes.first()) && end(bytes.last()) && bytes.iter().all(inner)
}
