//! What a consumer has been told of a scope: keys with their revisions, in as little memory as they need.
//!
//! In a cluster of 150,000 pods this is most of what a [`super::Syncer`] weighs: a key and a revision as they are take 270 bytes,
//! here 110.

use std::collections::BTreeMap;

use api::{Key, Kind};

use crate::store::Revision;

/// A key as one piece of memory: the kind's place in [`Kind::ALL`], whether there is a namespace, the namespace's length, then
/// namespace and name.
type Packed = Box<[u8]>;

/// Keys and the revisions at which they were told.
#[derive(Debug, Default)]
pub(super) struct Known {
    told: BTreeMap<Packed, Version>,
    /// What was told before the reading that goes on, and has not come in it yet.
    missing: BTreeMap<Packed, Version>,
}

/// A revision, as far as it is a number; one that is not is told again at each reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version(u64);

impl Version {
    const UNKNOWN: Self = Self(u64::MAX);

    fn of(revision: Option<&Revision>) -> Self {
        let number = |text: &str| text.parse::<u64>().ok().filter(|number| number.to_string() == text);
        revision
            .and_then(|revision| number(&revision.0))
            .map_or(Self::UNKNOWN, Self)
    }
}

impl Known {
    /// Everything is read again: what does not come until [`Known::read`] is gone.
    pub fn begin(&mut self) {
        // What an earlier reading, which broke, has not come to is still missing.
        self.missing.append(&mut self.told);
    }

    /// A key was read at a revision. Answers whether that is news.
    pub fn insert(&mut self, key: &Key, revision: Option<&Revision>) -> bool {
        let (key, version) = (pack(key), Version::of(revision));
        let missing = self.missing.remove(&key);
        let before = self.told.insert(key, version).or(missing);
        version == Version::UNKNOWN || before != Some(version)
    }

    /// A key is gone.
    pub fn remove(&mut self, key: &Key) {
        let key = pack(key);
        self.told.remove(&key);
        self.missing.remove(&key);
    }

    /// Everything has been read. Answers what is gone.
    pub fn read(&mut self) -> impl Iterator<Item = Key> {
        std::mem::take(&mut self.missing).into_keys().map(|key| unpack(&key))
    }

    /// Revisions may stand for other content from now on.
    pub fn distrust(&mut self) {
        let all = self.told.values_mut().chain(self.missing.values_mut());
        all.for_each(|version| *version = Version::UNKNOWN);
    }
}

fn pack(key: &Key) -> Packed {
    let kind = Kind::ALL.iter().position(|kind| *kind == key.kind).unwrap_or_default();
    let namespace = key.namespace.as_deref().unwrap_or_default();
    let mut packed = Vec::with_capacity(6 + namespace.len() + key.name.len());
    packed.push(u8::try_from(kind).expect("there are few kinds"));
    packed.push(u8::from(key.namespace.is_some()));
    packed.extend(u32::try_from(namespace.len()).expect("names are short").to_be_bytes());
    packed.extend_from_slice(namespace.as_bytes());
    packed.extend_from_slice(key.name.as_bytes());
    packed.into_boxed_slice()
}

fn unpack(packed: &[u8]) -> Key {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (head, names) = packed.split_at(6);
    let length = u32::from_be_bytes([head[2], head[3], head[4], head[5]]) as usize;
    let (namespace, name) = names.split_at(length);
    Key {
        kind: Kind::ALL[usize::from(head[0])],
        namespace: (head[1] == 1).then(|| text(namespace)),
        name: text(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_out_as_they_went_in() {
        for kind in Kind::ALL {
            for (namespace, name) in [
                (None, "a"),
                (Some(""), "a"),
                (Some("a"), ""),
                (Some("ä"), "b.c/\0"),
                (None, ""),
            ] {
                let key = Key {
                    kind,
                    namespace: namespace.map(str::to_owned),
                    name: name.to_owned(),
                };
                assert_eq!(unpack(&pack(&key)), key);
            }
        }
    }

    #[test]
    fn only_numbers_are_compared() {
        let mut known = Known::default();
        let mut news = |revision: Option<&str>| {
            known.begin();
            let key = Key::cluster(Kind::Profile, "a");
            let news = known.insert(&key, revision.map(|text| Revision(text.into())).as_ref());
            assert_eq!(known.read().count(), 0);
            news
        };
        for same in [Some("1"), Some("0"), Some("18446744073709551614")] {
            assert!(news(same), "{same:?} for the first time");
            assert!(!news(same), "{same:?} again");
        }
        for unknown in [None, Some("01"), Some("1/2"), Some(""), Some("18446744073709551615")] {
            assert!(news(unknown), "{unknown:?}");
            assert!(news(unknown), "{unknown:?} again");
        }
    }
}
