//! The shape of a type as serde sees it: what [`crate::crd`] makes schemas of.
//!
//! A deserializer that holds nothing is asked by the type for what it expects, one place at a time: it follows a path of
//! steps into the type and notes what is asked for at its end. So a schema cannot differ from what is read.

use std::cell::RefCell;
use std::fmt;

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, Visitor};
use serde_json::Value;

/// What a type reads.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    /// true or false.
    Bool,
    /// A whole number from, to.
    Integer(i64, u64),
    /// A number.
    Number,
    /// Text.
    Text,
    /// One of these texts.
    Choice(&'static [&'static str]),
    /// A number or text: what our types ask for that take both.
    Either,
    /// The inner, or nothing.
    Optional(Box<Shape>),
    /// A list.
    List(Box<Shape>),
    /// Names to values.
    Map(Box<Shape>),
    /// Fields, in order.
    Struct(Vec<Field>),
}

/// A field of a [`Shape::Struct`].
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// Its name in documents.
    pub name: &'static str,
    /// What it holds.
    pub shape: Shape,
    /// Whether it must be there.
    pub required: bool,
}

/// The shape of `T`, which must not contain itself.
pub fn of<T: DeserializeOwned>() -> Shape {
    shape::<T>(&mut Vec::new())
}

fn shape<T: DeserializeOwned>(path: &mut Vec<Step>) -> Shape {
    let (asked, _) = trace::<T>(path, None);
    let mut inner = |step: Step| {
        path.push(step);
        let inner = shape::<T>(path);
        path.pop();
        Box::new(inner)
    };
    match asked {
        Asked::Leaf(leaf) => leaf,
        Asked::Optional => Shape::Optional(inner(Step::Some)),
        Asked::List => Shape::List(inner(Step::Item)),
        Asked::Map => Shape::Map(inner(Step::Value)),
        Asked::Struct(names) => {
            let shapes: Vec<Shape> = names.iter().map(|name| *inner(Step::Field(name))).collect();
            let required = required::<T>(path);
            let fields = names.iter().zip(shapes).map(|(name, shape)| Field {
                name,
                shape,
                required: required.contains(name),
            });
            Shape::Struct(fields.collect())
        }
    }
}

/// The fields without which the struct at the end of the path cannot be read: each that is missed is given a value that does,
/// until none is missed any more.
fn required<T: DeserializeOwned>(path: &[Step]) -> Vec<&'static str> {
    let likely = [
        Value::from("10.0.0.0/26"),
        Value::from("10.0.0.1"),
        Value::from("TCP"),
        Value::from("Allow"),
        Value::from("True"),
        Value::from("1970-01-01T00:00:00Z"),
        Value::from(1),
        Value::from(true),
        Value::Array(Vec::new()),
        Value::Object(serde_json::Map::new()),
    ];
    let mut required = Vec::new();
    let mut given = serde_json::Map::new();
    while let (_, Some(Stop::Missing(name))) = trace::<T>(path, Some(&given)) {
        if required.contains(&name) {
            break;
        }
        required.push(name);
        let fits = likely.iter().find(|value| {
            let mut with = given.clone();
            with.insert(name.to_owned(), (*value).clone());
            match trace::<T>(path, Some(&with)) {
                (_, Some(Stop::Missing(other))) => other != name,
                (_, Some(Stop::Whole)) => true,
                (_, Some(Stop::Here) | None) => false,
            }
        });
        if let Some(value) = fits {
            given.insert(name.to_owned(), value.clone());
        }
    }
    required
}

/// Follows the path and answers what is asked for at its end; with `given`, a struct there is read from that, and the answer
/// says how that ended too.
fn trace<T: DeserializeOwned>(path: &[Step], given: Option<&serde_json::Map<String, Value>>) -> (Asked, Option<Stop>) {
    let found = RefCell::new(None);
    let tracer = Tracer {
        path,
        found: &found,
        given,
    };
    let ended = T::deserialize(tracer).err();
    (found.into_inner().unwrap_or(Asked::Leaf(Shape::Either)), ended)
}

/// One step into a type.
#[derive(Clone, Copy)]
enum Step {
    /// What is there if something is.
    Some,
    /// An item of a list.
    Item,
    /// A value of a map.
    Value,
    /// A field of a struct.
    Field(&'static str),
}

/// What a type asks a deserializer for.
enum Asked {
    Leaf(Shape),
    Optional,
    List,
    Map,
    Struct(&'static [&'static str]),
}

/// Why reading ended.
#[derive(Debug)]
enum Stop {
    /// The end of the path, or a value that does not fit.
    Here,
    /// A field is not there.
    Missing(&'static str),
    /// The struct at the end of the path could be read.
    Whole,
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the end of the path")
    }
}

impl std::error::Error for Stop {}

impl de::Error for Stop {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Stop::Here
    }

    fn missing_field(name: &'static str) -> Self {
        Stop::Missing(name)
    }
}

#[derive(Clone, Copy)]
struct Tracer<'a> {
    path: &'a [Step],
    found: &'a RefCell<Option<Asked>>,
    given: Option<&'a serde_json::Map<String, Value>>,
}

impl<'a> Tracer<'a> {
    fn note<T>(self, asked: Asked) -> Result<T, Stop> {
        *self.found.borrow_mut() = Some(asked);
        Err(Stop::Here)
    }

    fn leaf<T>(self, shape: Shape) -> Result<T, Stop> {
        self.note(Asked::Leaf(shape))
    }

    fn further(self) -> Option<(Step, Tracer<'a>)> {
        let (step, path) = self.path.split_first()?;
        Some((*step, Tracer { path, ..self }))
    }
}

macro_rules! leaves {
    ($($method:ident $shape:expr;)*) => {
        $(fn $method<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Stop> {
            self.leaf($shape)
        })*
    };
}

impl<'de> Deserializer<'de> for Tracer<'_> {
    type Error = Stop;

    leaves! {
        deserialize_any Shape::Either;
        deserialize_ignored_any Shape::Either;
        deserialize_bool Shape::Bool;
        deserialize_i8 Shape::Integer(i8::MIN.into(), i8::MAX as u64);
        deserialize_i16 Shape::Integer(i16::MIN.into(), i16::MAX as u64);
        deserialize_i32 Shape::Integer(i32::MIN.into(), i32::MAX as u64);
        deserialize_i64 Shape::Integer(i64::MIN, i64::MAX as u64);
        deserialize_u8 Shape::Integer(0, u8::MAX.into());
        deserialize_u16 Shape::Integer(0, u16::MAX.into());
        deserialize_u32 Shape::Integer(0, u32::MAX.into());
        deserialize_u64 Shape::Integer(0, u64::MAX);
        deserialize_f32 Shape::Number;
        deserialize_f64 Shape::Number;
        deserialize_char Shape::Text;
        deserialize_str Shape::Text;
        deserialize_string Shape::Text;
        deserialize_bytes Shape::Text;
        deserialize_byte_buf Shape::Text;
        deserialize_unit Shape::Struct(Vec::new());
        deserialize_identifier Shape::Text;
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        match self.further() {
            Some((_, inner)) => visitor.visit_some(inner),
            None => self.note(Asked::Optional),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Stop> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Stop> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        match self.further() {
            Some((_, inner)) => visitor.visit_seq(One(Some(inner), "")),
            None => self.note(Asked::List),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Stop> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Stop> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        match self.further() {
            Some((_, inner)) => visitor.visit_map(One(Some(inner), "name")),
            None => self.note(Asked::Map),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stop> {
        match (self.further(), self.given) {
            (Some((Step::Field(name), inner)), _) => visitor.visit_map(One(Some(inner), name)),
            (None, Some(given)) => {
                let fields = given.iter().map(|(name, value)| (name.as_str(), Given(value)));
                // What comes behind this place is of no interest.
                visitor.visit_map(MapDeserializer::new(fields)).and(Err(Stop::Whole))
            }
            _ => self.note(Asked::Struct(fields)),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Stop> {
        self.leaf(Shape::Choice(variants))
    }
}

/// One item, or one named value.
struct One<'a>(Option<Tracer<'a>>, &'static str);

impl<'de> de::SeqAccess<'de> for One<'_> {
    type Error = Stop;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Stop> {
        self.0.take().map(|tracer| seed.deserialize(tracer)).transpose()
    }
}

impl<'de> de::MapAccess<'de> for One<'_> {
    type Error = Stop;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Stop> {
        match self.0 {
            Some(_) => seed
                .deserialize(IntoDeserializer::<Stop>::into_deserializer(self.1))
                .map(Some),
            None => Ok(None),
        }
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Stop> {
        let tracer = self.0.take().ok_or(Stop::Here)?;
        seed.deserialize(tracer)
    }
}

/// A plain value.
#[derive(Clone, Copy)]
struct Given<'a>(&'a Value);

impl<'de> IntoDeserializer<'de, Stop> for Given<'_> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Given<'_> {
    type Error = Stop;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        match self.0 {
            Value::Bool(flag) => visitor.visit_bool(*flag),
            Value::Number(number) => visitor.visit_u64(number.as_u64().unwrap_or_default()),
            Value::String(text) => visitor.visit_str(text),
            Value::Array(items) => visitor.visit_seq(SeqDeserializer::new(items.iter().map(Given))),
            Value::Object(fields) => {
                let fields = fields.iter().map(|(name, value)| (name.as_str(), Given(value)));
                // What is missing in there is not missing at the end of the path.
                visitor.visit_map(MapDeserializer::new(fields)).map_err(|_| Stop::Here)
            }
            Value::Null => visitor.visit_unit(),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Stop> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stop> {
        let text = self.0.as_str().ok_or(Stop::Here)?;
        IntoDeserializer::<Stop>::into_deserializer(text).deserialize_enum(name, variants, visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct
        map struct identifier ignored_any
    }
}

#[cfg(test)]
mod tests;
