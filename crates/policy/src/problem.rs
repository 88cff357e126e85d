//! What is wrong with a resource that we were given, and what follows, as data.

use std::fmt;

use api::Key;

/// A field of a resource that cannot be followed, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The resource.
    pub key: Key,
    /// Path of the field, `spec.ingress[0].source.selector`.
    pub field: String,
    /// What stands there.
    pub value: String,
    /// What is wrong, for people.
    pub text: String,
    /// What follows.
    pub effect: Effect,
}

/// What follows from a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    /// Everything to and from the endpoints concerned is denied.
    Closed,
    /// The resource is a policy: it denies whatever reaches it.
    Denies,
    /// The resource counts as absent.
    Absent,
    /// The resource, a rehearsal, is not reported on.
    NotReported,
    /// The field is not enforced; the rest is.
    NotEnforced,
}

impl Problem {
    /// What is wrong, without what follows.
    pub fn reason(&self) -> String {
        format!("{}{}", self.key, self.what())
    }

    /// Field, value and what is wrong, with a space in front; less where less is known.
    pub(crate) fn what(&self) -> String {
        match (self.field.as_str(), self.value.as_str()) {
            ("", "") => format!(": {}", self.text),
            ("", value) => format!(": `{value}` {}", self.text),
            (field, "") => format!(" {field}: {}", self.text),
            (field, value) => format!(" {field}: `{value}` {}", self.text),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason())?;
        f.write_str(match self.effect {
            Effect::Closed => "; everything is denied for the endpoints concerned",
            Effect::Denies => "; it denies what reaches it",
            Effect::Absent => "; it counts as absent",
            Effect::NotReported => "; this staged policy is left out",
            Effect::NotEnforced => "; this part is not enforced",
        })
    }
}
