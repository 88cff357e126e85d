//! The key of an element, small: policy has hundreds of thousands of addresses.

use std::fmt;
use std::ops::Deref;

use super::Value;

/// One value for each field of a set's key. The value of a single field lies in place; several are elsewhere.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Fields);

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Fields {
    One(Value),
    /// Never one.
    Several(Box<[Value]>),
}

impl Deref for Key {
    type Target = [Value];

    fn deref(&self) -> &[Value] {
        match &self.0 {
            Fields::One(value) => std::slice::from_ref(value),
            Fields::Several(values) => values,
        }
    }
}

impl From<Value> for Key {
    fn from(value: Value) -> Self {
        Self(Fields::One(value))
    }
}

impl FromIterator<Value> for Key {
    fn from_iter<I: IntoIterator<Item = Value>>(values: I) -> Self {
        let mut values = values.into_iter().fuse();
        match (values.next(), values.next()) {
            (Some(one), None) => one.into(),
            (first, second) => Self(Fields::Several(first.into_iter().chain(second).chain(values).collect())),
        }
    }
}

impl<const FIELDS: usize> From<[Value; FIELDS]> for Key {
    fn from(values: [Value; FIELDS]) -> Self {
        values.into_iter().collect()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_its_values_however_it_was_made() {
        for count in 0..4 {
            let values: Vec<Value> = (0..count).map(Value::Port).collect();
            let key: Key = values.iter().cloned().collect();
            assert_eq!(key[..], values[..]);
            assert_eq!(format!("{key:?}"), format!("{values:?}"));
        }
        let one = Value::Protocol(6);
        assert_eq!(Key::from(one.clone()), Key::from([one.clone()]));
        assert_eq!(Key::from(one.clone()), [one].into_iter().collect());
    }

    #[test]
    fn elements_of_one_field_are_one_piece_of_memory() {
        use crate::nft::Element;
        // A table of a hundred thousand pods is read whole: each byte here is a hundred thousand there.
        assert!(size_of::<Key>() <= size_of::<Value>());
        assert!(size_of::<Element>() <= 64);
    }
}
