//! ClusterInformation: facts about the cluster.

use serde::{Deserialize, Serialize};

use crate::names::NameRule;
use crate::problem::Problems;
use crate::resource::{NoStatus, Spec};
use crate::{Kind, Metadata};

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
    const NAMES: NameRule = NameRule::Default;
    type Status = NoStatus;

    fn check(&self, _: &Metadata, problems: &mut Problems) {
        let is_guid = |text: &str| text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if let Some(guid) = self
            .cluster_guid
            .as_ref()
            .filter(|guid| !guid.is_empty() && !is_guid(guid))
        {
            problems.report("clusterGUID", guid, "must be 32 hexadecimal digits");
        }
    }
}
