//! Text to plain trees: one per document, with the duplicate keys that were found on the way.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// One document before it has a type.
#[derive(Debug)]
pub(super) struct Tree {
    /// Its content. Of keys that occur twice, the first value.
    pub value: Value,
    /// Paths of the keys that occur more than once.
    pub duplicates: Vec<String>,
}

/// The documents of a file up to the first that is not well formed, and what is wrong with that one.
pub(super) fn documents(text: &str) -> (Vec<Tree>, Option<String>) {
    let text = text.trim_start_matches('\u{feff}');
    // Every JSON document is YAML too, but a JSON parser gives the better message, and knows tabs.
    if text.trim_start().starts_with(['{', '[']) {
        let (trees, error) = json(text);
        match error {
            None => return (trees, None),
            Some(error) => match yaml(text) {
                (trees, None) => return (trees, None),
                _ => return (trees, Some(error)),
            },
        }
    }
    yaml(text)
}

fn json(text: &str) -> (Vec<Tree>, Option<String>) {
    let mut trees = Vec::new();
    for tree in serde_json::Deserializer::from_str(text).into_iter::<Tree>() {
        match tree {
            Ok(tree) if tree.value.is_null() => {}
            Ok(tree) => trees.push(tree),
            Err(error) => return (trees, Some(format!("is not JSON: {error}"))),
        }
    }
    (trees, None)
}

fn yaml(text: &str) -> (Vec<Tree>, Option<String>) {
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::PassThrough,
        // `yes` and `n` stay text; the decoder knows where a boolean is wanted.
        strict_booleans: true,
        with_snippet: false,
    };
    let mut trees = Vec::new();
    for tree in serde_saphyr::read_with_options::<_, Tree>(&mut text.as_bytes(), options) {
        match tree {
            Ok(tree) => trees.push(tree),
            Err(error) => return (trees, Some(format!("is not YAML: {error}"))),
        }
    }
    (trees, None)
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

impl From<Value> for Tree {
    fn from(value: Value) -> Self {
        Self {
            value,
            duplicates: Vec::new(),
        }
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Value::from(value).into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Value::from(value).into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Value::from(value).into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Tree, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("infinite and not-a-number are not allowed"))?;
        Ok(Value::Number(number).into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Value::from(value).into())
    }

    fn visit_string<E>(self, value: String) -> Result<Tree, E> {
        Ok(Value::from(value).into())
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Value::Null.into())
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Value::Null.into())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        Tree::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tree, A::Error> {
        let mut items = Vec::new();
        let mut duplicates = Vec::new();
        while let Some(tree) = seq.next_element::<Tree>()? {
            let here = format!("[{}]", items.len());
            duplicates.extend(tree.duplicates.iter().map(|path| join(&here, path)));
            items.push(tree.value);
        }
        Ok(Tree {
            value: Value::Array(items),
            duplicates,
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
        let mut fields = Map::new();
        let mut duplicates = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            let tree = map.next_value::<Tree>()?;
            duplicates.extend(tree.duplicates.iter().map(|path| join(&key, path)));
            if fields.contains_key(&key) {
                duplicates.push(key);
            } else {
                fields.insert(key, tree.value);
            }
        }
        Ok(Tree {
            value: Value::Object(fields),
            duplicates,
        })
    }
}

/// `a` and `b` as one path.
pub(super) fn join(a: &str, b: &str) -> String {
    match (a, b) {
        ("", b) => b.to_owned(),
        (a, "") => a.to_owned(),
        (a, b) if b.starts_with('[') => format!("{a}{b}"),
        (a, b) => format!("{a}.{b}"),
    }
}
