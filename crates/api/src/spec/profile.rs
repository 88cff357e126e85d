//! Profile: labels and rules that endpoints inherit.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Kind;
use crate::resource::{NoStatus, Spec};

/// Spec of a Profile.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProfileSpec {
    /// Labels for endpoints with this profile.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels_to_apply: BTreeMap<String, String>,
}

impl Spec for ProfileSpec {
    const KIND: Kind = Kind::Profile;
    type Status = NoStatus;
}
