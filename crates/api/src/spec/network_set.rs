//! NetworkSet and GlobalNetworkSet: address ranges with labels, which selectors of rules match like endpoints (upstream
//! `networkset.go`, `globalnetworkset.go`).

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::ConditionsStatus;
use crate::names::NAMESPACE_LABEL;
use crate::problem::Problems;
use crate::resource::Spec;
use crate::value::net;
use crate::{Kind, Metadata};

/// Spec of a NetworkSet: rules of its namespace's policies match it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkSetSpec {
    /// The ranges; bits behind a prefix length mean nothing.
    #[serde(skip_serializing_if = "Vec::is_empty", with = "net::many")]
    pub nets: Vec<IpNet>,
}

/// Spec of a GlobalNetworkSet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GlobalNetworkSetSpec {
    /// The ranges; bits behind a prefix length mean nothing.
    #[serde(skip_serializing_if = "Vec::is_empty", with = "net::many")]
    pub nets: Vec<IpNet>,
}

/// The label says in which namespace a thing is: it follows from where it is, and nobody sets it.
fn check_labels(metadata: &Metadata, problems: &mut Problems) {
    if let Some(value) = metadata.labels.get(NAMESPACE_LABEL) {
        let path = format!("metadata.labels.{NAMESPACE_LABEL}");
        problems.report_elsewhere(&path, value, "must be absent: the label follows from the namespace");
    }
}

impl Spec for NetworkSetSpec {
    const KIND: Kind = Kind::NetworkSet;
    type Status = ConditionsStatus;

    fn check(&self, metadata: &Metadata, problems: &mut Problems) {
        check_labels(metadata, problems);
    }
}

impl Spec for GlobalNetworkSetSpec {
    const KIND: Kind = Kind::GlobalNetworkSet;
    type Status = ConditionsStatus;

    fn check(&self, metadata: &Metadata, problems: &mut Problems) {
        check_labels(metadata, problems);
    }
}
