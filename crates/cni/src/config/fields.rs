//! Reads the keys of one JSON object, remembers which are known, and collects what is wrong.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Code, Error};

/// What was found wrong, and what nobody knows.
#[derive(Debug, Default)]
pub struct Findings {
    problems: Vec<String>,
    unsupported: Vec<String>,
    /// Full paths of unknown keys.
    pub unknown: Vec<String>,
}

impl Findings {
    /// One error with everything in it, if anything is wrong.
    pub fn into_error(self) -> Option<Error> {
        let code = match (self.problems.is_empty(), self.unsupported.is_empty()) {
            (true, true) => return None,
            (true, false) => Code::UnsupportedField,
            (false, _) => Code::InvalidConfig,
        };
        let msg = if code == Code::UnsupportedField {
            "unsupported field in network configuration"
        } else {
            "invalid network configuration"
        };
        let details: Vec<_> = self.problems.into_iter().chain(self.unsupported).collect();
        Some(Error::new(code, msg, details.join("; ")))
    }
}

/// The keys of one object. `null` counts as absent, as upstream's decoder has it.
pub struct Fields<'a> {
    prefix: String,
    map: &'a Map<String, Value>,
    known: BTreeSet<String>,
    findings: &'a mut Findings,
}

static EMPTY: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);

impl<'a> Fields<'a> {
    /// The keys of `object`, whose path ends in a dot unless it is the document itself.
    pub fn new(prefix: &str, object: &'a Value, findings: &'a mut Findings) -> Self {
        let map = object.as_object().unwrap_or(&EMPTY);
        Self {
            prefix: prefix.to_owned(),
            map,
            known: BTreeSet::new(),
            findings,
        }
    }

    /// A text.
    pub fn string(&mut self, key: &str) -> Option<String> {
        self.typed(key, "a string", |value| value.as_str().map(str::to_owned))
    }

    /// `true` or `false`.
    pub fn bool(&mut self, key: &str) -> Option<bool> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// `true`, `false`, or these as text: upstream writes the latter.
    pub fn bool_or_text(&mut self, key: &str) -> Option<bool> {
        self.typed(key, "true, false, \"true\" or \"false\"", |value| match value {
            Value::Bool(value) => Some(*value),
            Value::String(text) => text.parse().ok(),
            _ => None,
        })
    }

    /// A whole number in a range.
    pub fn integer(&mut self, key: &str, range: RangeInclusive<i64>) -> Option<i64> {
        let right = format!("an integer from {} to {}", range.start(), range.end());
        self.typed(key, &right, |value| {
            value.as_i64().filter(|number| range.contains(number))
        })
    }

    /// A number.
    pub fn number(&mut self, key: &str) -> Option<f64> {
        self.typed(key, "a number", Value::as_f64)
    }

    /// A list of texts.
    pub fn strings(&mut self, key: &str) -> Option<Vec<String>> {
        self.typed(key, "a list of strings", |value| {
            value
                .as_array()?
                .iter()
                .map(|item| item.as_str().map(str::to_owned))
                .collect()
        })
    }

    /// An absolute path.
    pub fn absolute_path(&mut self, key: &str) -> Option<PathBuf> {
        self.typed(key, "an absolute path", |value| {
            Some(PathBuf::from(value.as_str()?)).filter(|path| path.is_absolute())
        })
    }

    /// One of some texts, in any case.
    pub fn one_of(&mut self, key: &str, allowed: &[&str]) {
        let named: Vec<_> = allowed.iter().filter(|text| !text.is_empty()).copied().collect();
        self.typed(key, &format!("one of {}", named.join(", ")), |value| {
            let text = value.as_str()?.to_ascii_lowercase();
            allowed.contains(&text.as_str()).then_some(())
        });
    }

    /// Anything with a decoder.
    pub fn decoded<T: DeserializeOwned>(&mut self, key: &str, right: &str) -> Option<T> {
        self.typed(key, right, |value| T::deserialize(value).ok())
    }

    /// An object, read by `read`; also called for an absent one, so that demands on its keys are heard.
    pub fn object(&mut self, key: &str, read: impl FnOnce(&mut Fields)) {
        self.typed(key, "an object", |value| value.is_object().then_some(()));
        let object = self.map.get(key).unwrap_or(&Value::Null);
        read(&mut Fields::new(
            &format!("{}{key}.", self.prefix),
            object,
            self.findings,
        ));
    }

    /// Keys whose value is nobody's business here.
    pub fn accept(&mut self, keys: &[&str]) {
        self.known.extend(keys.iter().map(|key| (*key).to_owned()));
    }

    /// Keys that begin so, likewise.
    pub fn accept_prefix(&mut self, prefix: &str) {
        self.known
            .extend(self.map.keys().filter(|key| key.starts_with(prefix)).cloned());
    }

    /// Says that a key is wrong and what would be right.
    pub fn problem(&mut self, key: &str, right: &str) {
        let text = self.sentence(key, right);
        let told = format!("{}{key}: ", self.prefix);
        // A wrong type has been told already; one sentence a key is enough.
        if !self.findings.problems.iter().any(|problem| problem.starts_with(&told)) {
            self.findings.problems.push(text);
        }
    }

    /// Says that a value is understood but not supported.
    pub fn unsupported(&mut self, key: &str, right: &str) {
        let text = self.sentence(key, right);
        self.findings.unsupported.push(text);
    }

    /// Notes the keys that nobody has asked for.
    pub fn note_unknown(&mut self) {
        let unknown = self.map.keys().filter(|key| !self.known.contains(*key));
        self.findings
            .unknown
            .extend(unknown.map(|key| format!("{}{key}", self.prefix)));
    }

    fn typed<T>(&mut self, key: &str, right: &str, read: impl FnOnce(&'a Value) -> Option<T>) -> Option<T> {
        self.known.insert(key.to_owned());
        let value = self.map.get(key).filter(|value| !value.is_null())?;
        let read = read(value);
        if read.is_none() {
            self.problem(key, right);
        }
        read
    }

    fn sentence(&self, key: &str, right: &str) -> String {
        let found = self.map.get(key).map_or("missing".into(), shown);
        format!("{}{key}: {found}; must be {right}", self.prefix)
    }
}

/// A value as it appears in an error: short, whatever it is.
pub fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
