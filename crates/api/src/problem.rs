//! What is wrong with a resource, as data: which field, what it holds, what would be right.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One thing wrong with one field of a resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FieldProblem {
    /// Path from the top of the document: `spec.ports[0].protocol`; empty for the document itself.
    pub field: String,
    /// What the field holds, as short text; absent where it holds nothing.
    pub value: Option<String>,
    /// What would be right.
    pub message: String,
}

impl fmt::Display for FieldProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.field.as_str(), &self.value) {
            ("", None) => write!(f, "{}", self.message),
            ("", Some(value)) => write!(f, "`{value}` {}", self.message),
            (field, None) => write!(f, "{field}: {}", self.message),
            (field, Some(value)) => write!(f, "{field}: `{value}` {}", self.message),
        }
    }
}

/// One thing wrong with one document of a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Problem {
    /// The file, as the reader was told: a path, or `-` for standard input.
    pub source: String,
    /// Which document of the file, from 1; absent where the file could not be split into documents.
    pub document: Option<usize>,
    /// What the document describes, as far as known: `IPPool default-ipv4-ippool`.
    pub subject: Option<String>,
    /// What is wrong. The path of a list's item starts with `items[n]`.
    pub problem: FieldProblem,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)?;
        if let Some(document) = self.document {
            write!(f, ", document {document}")?;
        }
        if let Some(subject) = &self.subject {
            write!(f, " ({subject})")?;
        }
        write!(f, ": {}", self.problem)
    }
}

impl std::error::Error for Problem {}

/// Collects problems while walking over a resource; knows where the walk is.
#[derive(Debug, Default)]
pub struct Problems {
    prefix: String,
    found: Vec<FieldProblem>,
}

impl Problems {
    /// Nothing found yet, at the top of the document.
    pub fn new() -> Self {
        Self::default()
    }

    /// A `field` here holds `value`, which is wrong; `message` says what would be right and reads after the value.
    pub fn report(&mut self, field: &str, value: impl fmt::Display, message: impl Into<String>) {
        let value = Some(shortened(value.to_string()));
        self.found.push(FieldProblem {
            field: self.path(field),
            value,
            message: message.into(),
        });
    }

    /// Like [`Problems::report`], for a field given by its whole path from the top of the document.
    pub fn report_elsewhere(&mut self, path: &str, value: impl fmt::Display, message: impl Into<String>) {
        let value = Some(shortened(value.to_string()));
        self.found.push(FieldProblem {
            field: path.to_owned(),
            value,
            message: message.into(),
        });
    }

    /// A `field` here holds nothing, but should, or something that must go.
    pub fn missing(&mut self, field: &str, message: impl Into<String>) {
        self.found.push(FieldProblem {
            field: self.path(field),
            value: None,
            message: message.into(),
        });
    }

    /// Walks into `field`.
    pub fn within<R>(&mut self, field: &str, walk: impl FnOnce(&mut Self) -> R) -> R {
        let outer = self.prefix.clone();
        self.prefix = self.path(field);
        let result = walk(self);
        self.prefix = outer;
        result
    }

    /// Walks into each item of the list `field`.
    pub fn each<'a, T>(&mut self, field: &str, items: &'a [T], mut walk: impl FnMut(&mut Self, &'a T)) {
        for (index, item) in items.iter().enumerate() {
            self.within(&format!("{field}[{index}]"), |problems| walk(problems, item));
        }
    }

    /// What was found, in the order of the walk.
    pub fn into_vec(self) -> Vec<FieldProblem> {
        self.found
    }

    fn path(&self, field: &str) -> String {
        match (self.prefix.as_str(), field) {
            ("", field) => field.to_owned(),
            (prefix, "") => prefix.to_owned(),
            (prefix, field) if field.starts_with('[') => format!("{prefix}{field}"),
            (prefix, field) => format!("{prefix}.{field}"),
        }
    }
}

/// Keeps a message on one screen, whatever the value was.
pub(crate) fn shortened(text: String) -> String {
    const MOST: usize = 80;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// The candidate that `word` was probably meant to be: equal but for case, or few edits away.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = word.to_lowercase();
    let most = (wanted.chars().count() / 3).clamp(1, 3);
    candidates
        .into_iter()
        .map(|candidate| (edits(&wanted, &candidate.to_lowercase()), candidate))
        .filter(|(edits, _)| *edits <= most)
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

/// `must be one of …`, with the one that was probably meant.
pub(crate) fn one_of(text: &str, known: &[&str]) -> String {
    let all = known
        .iter()
        .map(|name| if name.is_empty() { "\"\"" } else { name })
        .collect::<Vec<_>>()
        .join(", ");
    match nearest(text, known.iter().copied().filter(|name| !name.is_empty())) {
        Some(meant) => format!("must be one of {all}; did you mean `{meant}`?"),
        None => format!("must be one of {all}"),
    }
}

/// Levenshtein distance in characters.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replace = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_is_recognised() {
        let check = |word: &str, wanted: Option<&str>| {
            assert_eq!(
                nearest(word, ["blockSize", "cidr", "ipipMode", "vxlanMode"]),
                wanted,
                "{word}"
            );
        };
        check("blocksize", Some("blockSize"));
        check("blokSize", Some("blockSize"));
        check("cdir", None);
        check("cidrr", Some("cidr"));
        check("ipipmod", Some("ipipMode"));
        check("colour", None);
    }

    #[test]
    fn paths_join_with_dots_and_brackets() {
        let mut problems = Problems::new();
        problems.within("spec", |problems| {
            problems.each("ports", &[0, 70000], |problems, port| {
                if *port > 65535 {
                    problems.report("port", port, "must be at most 65535");
                }
            });
            problems.missing("cidr", "is required");
        });
        let shown: Vec<String> = problems.into_vec().iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "spec.ports[1].port: `70000` must be at most 65535",
                "spec.cidr: is required"
            ]
        );
    }
}
