//! What is wrong with a resource that we were given, as data.

use std::fmt;

use api::Key;

/// A resource, or a field of one, that was left out, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The resource.
    pub key: Key,
    /// Path of the field, `spec.nodeSelector`.
    pub field: String,
    /// What is wrong and what follows, for people.
    pub text: String,
}

impl Problem {
    pub(crate) fn new(key: Key, field: &str, text: impl Into<String>) -> Self {
        Self {
            key,
            field: field.to_owned(),
            text: text.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field.as_str() {
            "" => write!(f, "{}: {}", self.key, self.text),
            field => write!(f, "{} {field}: {}", self.key, self.text),
        }
    }
}
