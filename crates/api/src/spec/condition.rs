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

impl Condition {
    /// Type of the condition that says whether an object can be followed as it is written. An object that never was wrong has none.
    pub const VALID: &'static str = "Valid";

    /// How the type of a condition ends that says whether one node enforces an object: `NODE/Enforced`. It is there, and false, while
    /// that node's kernel refuses what the object asks for.
    const ENFORCED: &'static str = "/Enforced";

    /// Type of the condition that says whether a node enforces an object.
    pub fn enforced(node: &str) -> String {
        format!("{node}{}", Self::ENFORCED)
    }

    /// The node that says it does not enforce the object; `None`: this is about something else.
    pub fn refused_by(&self) -> Option<&str> {
        let node = self.kind.strip_suffix(Self::ENFORCED)?;
        (self.status == ConditionStatus::False).then_some(node)
    }
}

/// A status that may have conditions.
pub trait Judged {
    /// Its conditions; none if it has no place for them.
    fn conditions(&self) -> &[Condition] {
        &[]
    }

    /// Its conditions, to change; `None` if it has no place for them.
    fn conditions_mut(&mut self) -> Option<&mut Vec<Condition>> {
        None
    }
}

/// Makes a status with a list of conditions one that has them.
macro_rules! judged {
    ($($status:ty)*) => {
        $(impl $crate::Judged for $status {
            fn conditions(&self) -> &[$crate::Condition] {
                &self.conditions
            }

            fn conditions_mut(&mut self) -> Option<&mut Vec<$crate::Condition>> {
                Some(&mut self.conditions)
            }
        })*
    };
}

pub(crate) use judged;

/// Status of kinds of which nothing else is said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConditionsStatus {
    /// `Valid`: whether the object can be followed as it is written.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

judged!(ConditionsStatus);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_names_the_node_that_refuses() {
        let check = |kind: &str, status, expected: Option<&str>| {
            let condition = Condition {
                kind: kind.into(),
                status,
                observed_generation: None,
                last_transition_time: Timestamp::UNIX_EPOCH,
                reason: String::new(),
                message: String::new(),
            };
            assert_eq!(condition.refused_by(), expected, "{kind} {status:?}");
        };
        check(&Condition::enforced("n1"), ConditionStatus::False, Some("n1"));
        check("n1/Enforced", ConditionStatus::False, Some("n1"));
        check("n1/Enforced", ConditionStatus::True, None);
        check(Condition::VALID, ConditionStatus::False, None);
    }
}
