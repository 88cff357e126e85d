//! Profile: labels and rules that endpoints inherit.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Rule;
use crate::metadata::check_labels;
use crate::problem::Problems;
use crate::resource::{NoStatus, Spec};
use crate::value::check;
use crate::{Kind, Metadata};

/// Spec of a Profile.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProfileSpec {
    /// Rules for packets to the endpoint, at most 1024.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<Rule>,
    /// Rules for packets from the endpoint, at most 1024.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<Rule>,
    /// Labels for endpoints with this profile.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels_to_apply: BTreeMap<String, String>,
}

impl Spec for ProfileSpec {
    const KIND: Kind = Kind::Profile;
    type Status = NoStatus;

    fn check(&self, _: &Metadata, problems: &mut Problems) {
        for (field, rules) in [("ingress", &self.ingress), ("egress", &self.egress)] {
            check::at_most(field, rules.len(), 1024, problems);
            problems.each(field, rules, |problems, rule| rule.check(problems));
        }
        check_labels("labelsToApply", &self.labels_to_apply, problems);
    }
}
