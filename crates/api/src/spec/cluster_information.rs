//! ClusterInformation: facts about the cluster.

use serde::{Deserialize, Serialize};

use crate::Kind;
use crate::resource::{NoStatus, Spec};

/// Spec of the ClusterInformation `default`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterInformationSpec {
    /// 32 hexadecimal digits.
    #[serde(rename = "clusterGUID", skip_serializing_if = "Option::is_none")]
    pub cluster_guid: Option<String>,
    /// Comma-separated facts: `k8s,bgp,kdd`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_type: Option<String>,
    /// Version that set up the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calico_version: Option<String>,
    /// `false` stops CNI and agents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datastore_ready: Option<bool>,
    /// `Calico`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Spec for ClusterInformationSpec {
    const KIND: Kind = Kind::ClusterInformation;
    type Status = NoStatus;
}
