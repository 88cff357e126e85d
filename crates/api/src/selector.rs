//! Selectors: expressions over labels that pick endpoints, nodes, namespaces.
//!
//! ```text
//! role == "web" && env in {"prod", "stage"} || !has(legacy)
//! ```
//!
//! `!` binds to the comparison right of it, `&&` tighter than `||`. Texts stand in single or double quotes, without
//! escapes. The empty selector means `all()`. Space and tab separate; a newline is not allowed.

mod parse;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::str::FromStr;

use crate::names::unique_id;

/// Most characters that a selector in a resource may have (limit of upstream's CRDs).
pub const MOST_CHARACTERS: usize = 1024;

/// A parsed selector. Equal selectors have the same canonical text and the same id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    expression: Expression,
}

/// The parts of a selector.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Expression {
    /// `all()`: matches everything.
    All,
    /// `global()`: matches everything; as a rule's namespaceSelector, what is in no namespace.
    Global,
    /// `has(label)`.
    Has(String),
    /// `label == "text"`: the label is there and equal.
    Equals(String, String),
    /// `label != "text"`: the label is absent or different.
    Differs(String, String),
    /// `label contains "text"`.
    Contains(String, String),
    /// `label starts with "text"`.
    StartsWith(String, String),
    /// `label ends with "text"`.
    EndsWith(String, String),
    /// `label in {"a", "b"}`.
    In(String, BTreeSet<String>),
    /// `label not in {"a", "b"}`: the label is absent or none of these.
    NotIn(String, BTreeSet<String>),
    /// `!expression`.
    Not(Box<Expression>),
    /// `a && b && …`, two or more.
    And(Vec<Expression>),
    /// `a || b || …`, two or more.
    Or(Vec<Expression>),
}

/// Why a text is no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no selector: at character {}: {message}", .position + 1)]
pub struct SelectorError {
    /// Where: byte offset into the text.
    pub position: usize,
    /// What would be right there.
    pub message: String,
}

/// What a selector is evaluated against.
pub trait Labels {
    /// The value of a label, if it is there.
    fn label(&self, name: &str) -> Option<&str>;
}

impl Selector {
    /// The selector that matches everything.
    pub const ALL: Selector = Selector {
        expression: Expression::All,
    };

    /// Reads a selector; an empty one means `all()`.
    pub fn parse(text: &str) -> Result<Selector, SelectorError> {
        parse::parse(text).map(|expression| Selector { expression })
    }

    /// Whether it matches these labels.
    pub fn evaluate(&self, labels: &impl Labels) -> bool {
        self.expression.evaluate(labels)
    }

    /// Upstream's id of the selector: `s:` and a hash of the canonical text.
    pub fn unique_id(&self) -> String {
        unique_id("s", &self.to_string())
    }

    /// Its parts.
    pub fn expression(&self) -> &Expression {
        &self.expression
    }

    /// Whether it is `global()` and nothing else, the only legal use of that.
    pub fn is_global(&self) -> bool {
        self.expression == Expression::Global
    }

    /// Whether `global()` occurs in it.
    pub fn mentions_global(&self) -> bool {
        self.expression.any(&|part| *part == Expression::Global)
    }

    /// The same with `prefix` in front of every label, as for labels inherited from a namespace (`pcns.`).
    pub fn with_label_prefix(&self, prefix: &str) -> Selector {
        Selector {
            expression: self.expression.with_label_prefix(prefix),
        }
    }

    /// What matches both.
    pub fn and(self, other: Selector) -> Selector {
        Selector {
            expression: Expression::And(vec![self.expression, other.expression]),
        }
    }
}

impl From<Expression> for Selector {
    fn from(expression: Expression) -> Self {
        Selector { expression }
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        Selector::parse(text)
    }
}

/// The canonical text: parentheses around every `&&` and `||`, sorted sets, double quotes where they are possible.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.expression)
    }
}

impl Expression {
    fn evaluate(&self, labels: &impl Labels) -> bool {
        match self {
            Expression::All | Expression::Global => true,
            Expression::Has(name) => labels.label(name).is_some(),
            Expression::Equals(name, text) => labels.label(name) == Some(text),
            Expression::Differs(name, text) => labels.label(name) != Some(text),
            Expression::Contains(name, text) => labels.label(name).is_some_and(|value| value.contains(text)),
            Expression::StartsWith(name, text) => labels.label(name).is_some_and(|value| value.starts_with(text)),
            Expression::EndsWith(name, text) => labels.label(name).is_some_and(|value| value.ends_with(text)),
            Expression::In(name, texts) => labels.label(name).is_some_and(|value| texts.contains(value)),
            Expression::NotIn(name, texts) => labels.label(name).is_none_or(|value| !texts.contains(value)),
            Expression::Not(inner) => !inner.evaluate(labels),
            Expression::And(parts) => parts.iter().all(|part| part.evaluate(labels)),
            Expression::Or(parts) => parts.iter().any(|part| part.evaluate(labels)),
        }
    }

    fn any(&self, wanted: &impl Fn(&Expression) -> bool) -> bool {
        wanted(self)
            || match self {
                Expression::Not(inner) => inner.any(wanted),
                Expression::And(parts) | Expression::Or(parts) => parts.iter().any(|part| part.any(wanted)),
                _ => false,
            }
    }

    fn with_label_prefix(&self, prefix: &str) -> Expression {
        let long = |name: &String| format!("{prefix}{name}");
        let all = |parts: &[Expression]| parts.iter().map(|part| part.with_label_prefix(prefix)).collect();
        match self {
            Expression::All => Expression::All,
            Expression::Global => Expression::Global,
            Expression::Has(name) => Expression::Has(long(name)),
            Expression::Equals(name, text) => Expression::Equals(long(name), text.clone()),
            Expression::Differs(name, text) => Expression::Differs(long(name), text.clone()),
            Expression::Contains(name, text) => Expression::Contains(long(name), text.clone()),
            Expression::StartsWith(name, text) => Expression::StartsWith(long(name), text.clone()),
            Expression::EndsWith(name, text) => Expression::EndsWith(long(name), text.clone()),
            Expression::In(name, texts) => Expression::In(long(name), texts.clone()),
            Expression::NotIn(name, texts) => Expression::NotIn(long(name), texts.clone()),
            Expression::Not(inner) => Expression::Not(Box::new(inner.with_label_prefix(prefix))),
            Expression::And(parts) => Expression::And(all(parts)),
            Expression::Or(parts) => Expression::Or(all(parts)),
        }
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expression::All => f.write_str("all()"),
            Expression::Global => f.write_str("global()"),
            Expression::Has(name) => write!(f, "has({name})"),
            Expression::Equals(name, text) => write!(f, "{name} == {}", Quoted(text)),
            Expression::Differs(name, text) => write!(f, "{name} != {}", Quoted(text)),
            Expression::Contains(name, text) => write!(f, "{name} contains {}", Quoted(text)),
            Expression::StartsWith(name, text) => write!(f, "{name} starts with {}", Quoted(text)),
            Expression::EndsWith(name, text) => write!(f, "{name} ends with {}", Quoted(text)),
            Expression::In(name, texts) => write!(f, "{name} in {}", Set(texts)),
            Expression::NotIn(name, texts) => write!(f, "{name} not in {}", Set(texts)),
            Expression::Not(inner) => write!(f, "!{inner}"),
            Expression::And(parts) => joined(f, parts, " && "),
            Expression::Or(parts) => joined(f, parts, " || "),
        }
    }
}

fn joined(f: &mut fmt::Formatter<'_>, parts: &[Expression], with: &str) -> fmt::Result {
    f.write_str("(")?;
    for (index, part) in parts.iter().enumerate() {
        f.write_str(if index == 0 { "" } else { with })?;
        write!(f, "{part}")?;
    }
    f.write_str(")")
}

/// A text in the quotes that it does not contain.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quote = if self.0.contains('"') { '\'' } else { '"' };
        write!(f, "{quote}{}{quote}", self.0)
    }
}

struct Set<'a>(&'a BTreeSet<String>);

impl fmt::Display for Set<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (index, text) in self.0.iter().enumerate() {
            write!(f, "{}{}", if index == 0 { "" } else { ", " }, Quoted(text))?;
        }
        f.write_str("}")
    }
}

impl Labels for BTreeMap<String, String> {
    fn label(&self, name: &str) -> Option<&str> {
        self.get(name).map(String::as_str)
    }
}

impl Labels for HashMap<String, String> {
    fn label(&self, name: &str) -> Option<&str> {
        self.get(name).map(String::as_str)
    }
}

impl<L: Labels> Labels for &L {
    fn label(&self, name: &str) -> Option<&str> {
        (*self).label(name)
    }
}

/// Own labels first, then inherited ones.
impl<A: Labels, B: Labels> Labels for (A, B) {
    fn label(&self, name: &str) -> Option<&str> {
        self.0.label(name).or_else(|| self.1.label(name))
    }
}

#[cfg(test)]
mod tests;
