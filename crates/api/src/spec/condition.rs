//! Conditions in a status (Kubernetes `meta/v1.Condition`).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// One thing that is so, is not so, or is not known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What is judged.
    #[serde(rename = "type")]
    pub kind: String,
    /// The judgement.
    pub status: ConditionStatus,
    /// The generation of the object that was judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When the judgement last changed.
    pub last_transition_time: Timestamp,
    /// Why, in one word.
    pub reason: String,
    /// Why, in a sentence.
    #[serde(default)]
    pub message: String,
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConditionStatus {
    /// It does.
    True,
    /// It does not.
    False,
    /// Nobody knows.
    Unknown,
}
