//! A plain tree to a typed value, strictly: every unknown field and every wrong value is a problem, and all are found.
//!
//! Serde stops at the first error. So the decoder notes where that was, leaves the place out (or puts a stand-in there)
//! and decodes again, until nothing is wrong or nothing is left.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, Visitor};
use serde_json::Value;

use super::tree::join;
use crate::problem::{FieldProblem, nearest, one_of, shortened};
use crate::value::net::Text;

/// Most problems of one document: nobody reads more at a time, and each costs another look at the document.
const MOST_PROBLEMS: usize = 100;

/// What came of decoding.
pub(crate) struct Decoded<T> {
    /// The value without the bad places; absent where it cannot be without them.
    pub value: Option<T>,
    /// Everything that was wrong, in the order of the document.
    pub problems: Vec<FieldProblem>,
    /// How many of these, the first ones, are fields that no type knows.
    pub unknown: usize,
    /// Paths that were left out or replaced: no judgement about these is fair.
    pub bad: BTreeSet<String>,
}

impl<T> Decoded<T> {
    /// The same for a value made of this one.
    pub fn map<U>(self, make: impl FnOnce(T) -> U) -> Decoded<U> {
        Decoded {
            value: self.value.map(make),
            problems: self.problems,
            unknown: self.unknown,
            bad: self.bad,
        }
    }
}

/// Decodes `value`. `stand_in` may give a harmless value for a required field, from its path and the wrong value.
pub(crate) fn decode<T: DeserializeOwned>(
    mut value: Value,
    stand_in: impl Fn(&str, &Value) -> Option<Value>,
) -> Decoded<T> {
    let mut problems: Vec<FieldProblem> = Vec::new();
    let mut replaced = BTreeSet::new();
    let mut log = Log::default();
    // Each round skips or replaces a place that was there before, so there are at most twice as many rounds as places.
    let decoded = loop {
        let error = match T::deserialize(Decoder {
            value: &value,
            path: &Path::Root,
            log: &log,
        }) {
            Ok(decoded) => break Some(decoded),
            Err(error) => error,
        };
        let (place, held) = log.failed.take().unwrap_or_default();
        let (field, held, message) = match error {
            DecodeError::Wrong(message) => (place.clone(), held, message),
            DecodeError::Missing(name) => (join(&place, name), Value::Null, "is required".to_owned()),
        };
        if !log.skip.contains(&field) && !replaced.contains(&field) {
            let value = (!held.is_null()).then(|| shown(&held));
            problems.push(FieldProblem {
                field: field.clone(),
                value,
                message,
            });
        }
        if problems.len() == MOST_PROBLEMS {
            let message = format!("has more problems than these {MOST_PROBLEMS}");
            problems.push(FieldProblem {
                field: String::new(),
                value: None,
                message,
            });
            break None;
        }
        let harmless = stand_in(&field, &held);
        if let Some(harmless) = harmless
            && replaced.insert(field.clone())
        {
            put(&mut value, &field, harmless);
        } else if place.is_empty() || !log.skip.insert(place) {
            break None;
        }
    };
    let mut unknown = log.unknown.into_inner();
    let count = unknown.len();
    unknown.extend(problems);
    Decoded {
        value: decoded,
        problems: unknown,
        unknown: count,
        bad: log.skip.into_iter().chain(replaced).collect(),
    }
}

/// Sets the field at a dotted path without lists; objects on the way that do not exist are made.
fn put(value: &mut Value, path: &str, new: Value) {
    let mut here = value;
    for field in path.split('.') {
        if !here.is_object() {
            *here = Value::Object(serde_json::Map::new());
        }
        let Value::Object(fields) = here else { return };
        here = fields.entry(field).or_insert(Value::Null);
    }
    *here = new;
}

/// What one or more rounds of decoding have noted.
#[derive(Default)]
struct Log {
    /// Places that are treated as absent.
    skip: BTreeSet<String>,
    /// The innermost place of the error that ended the round, and what it holds.
    failed: RefCell<Option<(String, Value)>>,
    /// Fields that no type knows.
    unknown: RefCell<Vec<FieldProblem>>,
}

#[derive(Debug)]
enum DecodeError {
    /// The place holds something that it must not; what would be right.
    Wrong(String),
    /// The place lacks this field.
    Missing(&'static str),
}

impl DecodeError {
    /// Says what would be right where a library only says what is wrong.
    fn clearer(self) -> Self {
        let clearer = match &self {
            DecodeError::Wrong(message) => match message.as_str() {
                "invalid IP address syntax" => IpAddr::RIGHT,
                "invalid IPv4 address syntax" => Ipv4Addr::RIGHT,
                "invalid IPv6 address syntax" => Ipv6Addr::RIGHT,
                _ => return self,
            },
            DecodeError::Missing(_) => return self,
        };
        DecodeError::Wrong(clearer.to_owned())
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecodeError::Wrong(message) => f.write_str(message),
            DecodeError::Missing(field) => write!(f, "{field} is required"),
        }
    }
}

impl std::error::Error for DecodeError {}

impl de::Error for DecodeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        DecodeError::Wrong(message.to_string())
    }

    fn missing_field(field: &'static str) -> Self {
        DecodeError::Missing(field)
    }

    fn invalid_type(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        DecodeError::Wrong(format!("must be {expected}"))
    }

    fn invalid_value(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        DecodeError::Wrong(format!("must be {expected}"))
    }
}

/// Where a decoder is; rendered only when something is to be said.
enum Path<'a> {
    Root,
    Field(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl Path<'_> {
    fn text(&self) -> String {
        match self {
            Path::Root => String::new(),
            Path::Field(parent, name) => join(&parent.text(), name),
            Path::Index(parent, index) => format!("{}[{index}]", parent.text()),
        }
    }
}

#[derive(Clone, Copy)]
struct Decoder<'de, 'p> {
    value: &'de Value,
    path: &'p Path<'p>,
    log: &'p Log,
}

impl<'de> Decoder<'de, '_> {
    /// Notes the place of an error, unless a place further in has been noted.
    fn noting<T>(self, result: Result<T, DecodeError>) -> Result<T, DecodeError> {
        if result.is_err() {
            self.log
                .failed
                .borrow_mut()
                .get_or_insert_with(|| (self.path.text(), self.value.clone()));
        }
        result
    }

    fn wrong<T>(self, message: impl Into<String>) -> Result<T, DecodeError> {
        self.noting(Err(DecodeError::Wrong(message.into())))
    }

    fn skips(self, path: &Path<'_>) -> bool {
        !self.log.skip.is_empty() && self.log.skip.contains(&path.text())
    }

    fn sequence<V: Visitor<'de>>(self, items: &'de [Value], visitor: V) -> Result<V::Value, DecodeError> {
        self.noting(visitor.visit_seq(Items {
            decoder: self,
            items: items.iter().enumerate(),
        }))
    }

    fn mapping<V: Visitor<'de>>(
        self,
        fields: &'de serde_json::Map<String, Value>,
        known: Option<&'static [&'static str]>,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        let fields = Fields {
            decoder: self,
            fields: fields.iter(),
            known,
            next: None,
        };
        self.noting(visitor.visit_map(fields))
    }

    fn signed<V: Visitor<'de>>(self, least: i64, most: i64, visitor: V) -> Result<V::Value, DecodeError> {
        match self.value.as_i64().filter(|number| (least..=most).contains(number)) {
            Some(number) => self.noting(visitor.visit_i64(number)),
            None => self.wrong(format!("must be a whole number from {least} to {most}")),
        }
    }

    fn unsigned<V: Visitor<'de>>(self, most: u64, visitor: V) -> Result<V::Value, DecodeError> {
        match self.value.as_u64().filter(|number| *number <= most) {
            Some(number) => self.noting(visitor.visit_u64(number)),
            None => self.wrong(format!("must be a whole number from 0 to {most}")),
        }
    }
}

impl<'de> Deserializer<'de> for Decoder<'de, '_> {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.value {
            Value::Null => self.noting(visitor.visit_unit()),
            Value::Bool(flag) => self.noting(visitor.visit_bool(*flag)),
            Value::String(text) => self.noting(visitor.visit_borrowed_str(text)),
            Value::Array(items) => self.sequence(items, visitor),
            Value::Object(fields) => self.mapping(fields, None, visitor),
            Value::Number(number) => self.noting(match (number.as_u64(), number.as_i64(), number.as_f64()) {
                (Some(number), _, _) => visitor.visit_u64(number),
                (_, Some(number), _) => visitor.visit_i64(number),
                (_, _, Some(number)) => visitor.visit_f64(number),
                (None, None, None) => Err(DecodeError::Wrong("must be a number of 64 bits".to_owned())),
            }),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.value {
            Value::Bool(flag) => self.noting(visitor.visit_bool(*flag)),
            // YAML 1.1's words for it, which the YAML of Go still takes.
            Value::String(word) => match word.to_ascii_lowercase().as_str() {
                "yes" | "on" => self.noting(visitor.visit_bool(true)),
                "no" | "off" => self.noting(visitor.visit_bool(false)),
                _ => self.wrong("must be true or false"),
            },
            _ => self.wrong("must be true or false"),
        }
    }

    fn deserialize_i8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.signed(i8::MIN.into(), i8::MAX.into(), visitor)
    }

    fn deserialize_i16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.signed(i16::MIN.into(), i16::MAX.into(), visitor)
    }

    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.signed(i32::MIN.into(), i32::MAX.into(), visitor)
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.signed(i64::MIN, i64::MAX, visitor)
    }

    fn deserialize_u8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.unsigned(u8::MAX.into(), visitor)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.unsigned(u16::MAX.into(), visitor)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.unsigned(u32::MAX.into(), visitor)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.unsigned(u64::MAX, visitor)
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.value.as_f64() {
            Some(number) => self.noting(visitor.visit_f64(number)),
            None => self.wrong("must be a number"),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.value {
            Value::String(text) => self.noting(visitor.visit_borrowed_str(text).map_err(DecodeError::clearer)),
            Value::Bool(_) | Value::Number(_) => self.wrong("must be text: put it in quotes"),
            Value::Null | Value::Array(_) | Value::Object(_) => self.wrong("must be text"),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.value {
            Value::Null => self.noting(visitor.visit_none()),
            _ => self.noting(visitor.visit_some(self)),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, DecodeError> {
        self.noting(visitor.visit_newtype_struct(self))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.value {
            Value::Array(items) => self.sequence(items, visitor),
            _ => self.wrong("must be a list"),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.value {
            Value::Object(fields) => self.mapping(fields, None, visitor),
            _ => self.wrong("must be a mapping of keys to values"),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match self.value {
            Value::Object(fields) => self.mapping(fields, Some(known), visitor),
            _ => self.wrong("must be a mapping of fields"),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match self.value {
            Value::String(text) if known.contains(&text.as_str()) => {
                self.noting(visitor.visit_enum(text.as_str().into_deserializer()))
            }
            Value::String(text) => self.wrong(one_of(text, known)),
            _ => self.wrong(one_of("", known)),
        }
    }

    serde::forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

/// The items of a list.
struct Items<'de, 'p> {
    decoder: Decoder<'de, 'p>,
    items: std::iter::Enumerate<std::slice::Iter<'de, Value>>,
}

impl<'de> de::SeqAccess<'de> for Items<'de, '_> {
    type Error = DecodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, DecodeError> {
        let Decoder { path, log, .. } = self.decoder;
        for (index, value) in self.items.by_ref() {
            let path = Path::Index(path, index);
            if !self.decoder.skips(&path) {
                return in_place(seed, value, &path, log).map(Some);
            }
        }
        Ok(None)
    }
}

/// The fields of an object. A `null` in a struct counts as absent, as it does for Go.
struct Fields<'de, 'p> {
    decoder: Decoder<'de, 'p>,
    fields: serde_json::map::Iter<'de>,
    known: Option<&'static [&'static str]>,
    next: Option<(&'de str, &'de Value)>,
}

impl<'de> de::MapAccess<'de> for Fields<'de, '_> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, DecodeError> {
        let Decoder { path, log, .. } = self.decoder;
        for (key, value) in self.fields.by_ref() {
            let path = Path::Field(path, key);
            if self.decoder.skips(&path) {
                continue;
            }
            if let Some(known) = self.known {
                if !known.contains(&key.as_str()) {
                    note_unknown(log, &path, key, known);
                    continue;
                }
                if value.is_null() {
                    continue;
                }
            }
            self.next = Some((key, value));
            let key: de::value::BorrowedStrDeserializer<'de, DecodeError> =
                de::value::BorrowedStrDeserializer::new(key);
            return seed.deserialize(key).map(Some);
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, DecodeError> {
        let Some((key, value)) = self.next.take() else {
            return Err(DecodeError::Wrong("has a value without a key".to_owned()));
        };
        in_place(seed, value, &Path::Field(self.decoder.path, key), self.decoder.log)
    }
}

/// Decodes `value`, whose path lives only as long as this call.
fn in_place<'de, T: DeserializeSeed<'de>>(
    seed: T,
    value: &'de Value,
    path: &Path<'_>,
    log: &Log,
) -> Result<T::Value, DecodeError> {
    let decoder = Decoder { value, path, log };
    // A type may refuse a value after the decoder has delivered it.
    decoder.noting(seed.deserialize(decoder))
}

fn note_unknown(log: &Log, path: &Path<'_>, key: &str, known: &[&str]) {
    let message = match nearest(key, known.iter().copied()) {
        Some(meant) => format!("no such field; did you mean `{meant}`?"),
        None if known.len() <= 20 => format!("no such field; there are {}", known.join(", ")),
        None => "no such field".to_owned(),
    };
    let problem = FieldProblem {
        field: path.text(),
        value: None,
        message,
    };
    let mut unknown = log.unknown.borrow_mut();
    if !unknown.contains(&problem) {
        unknown.push(problem);
    }
}

/// A value as short text.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => shortened(text.clone()),
        other => shortened(other.to_string()),
    }
}
