//! What the server has, and how it became so: every change, each with the version that the server had then.

use std::collections::BTreeMap;

use serde_json::Value;

/// Where an object is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Index in [`super::served::SERVED`].
    pub resource: usize,
    pub namespace: Option<String>,
    pub name: String,
}

/// One change. Its word is the type of a watch's event.
#[derive(Clone, Debug)]
pub struct Change {
    pub version: u64,
    pub word: &'static str,
    pub place: Place,
    pub object: Value,
}

/// Everything.
#[derive(Debug)]
pub struct Data {
    /// That of the last change of anything.
    pub version: u64,
    /// Watches go on from this version on: what the server was told since it was started is in its memory.
    pub remembered: u64,
    /// Lists go on from this version on: what was before is forgotten.
    pub compacted: u64,
    history: Vec<Change>,
}

impl Data {
    /// Nothing, at this version.
    pub fn new(version: u64) -> Self {
        Self {
            version,
            remembered: 0,
            compacted: 0,
            history: Vec::new(),
        }
    }

    /// A change. The object gets its version and is answered.
    pub fn change(&mut self, word: &'static str, place: Place, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.history.push(Change {
            version: self.version,
            word,
            place,
            object: object.clone(),
        });
        object
    }

    /// What there was at a version.
    pub fn at(&self, version: u64) -> BTreeMap<&Place, &Value> {
        let mut there = BTreeMap::new();
        for change in self.history.iter().take_while(|change| change.version <= version) {
            match change.word {
                "DELETED" => there.remove(&change.place),
                _ => there.insert(&change.place, &change.object),
            };
        }
        there
    }

    /// Somebody else has written an object, whatever it was.
    pub fn touch(&mut self, place: &Place) {
        if let Some(held) = self.get(place).cloned() {
            self.change("MODIFIED", place.clone(), held);
        }
    }

    /// An object as it is now.
    pub fn get(&self, place: &Place) -> Option<&Value> {
        let last = self.history.iter().rfind(|change| change.place == *place)?;
        (last.word != "DELETED").then_some(&last.object)
    }

    /// Changes after a version.
    pub fn after(&self, version: u64) -> impl Iterator<Item = &Change> {
        self.history.iter().filter(move |change| change.version > version)
    }

    /// The version of the last change of a resource.
    pub fn last_of(&self, resource: usize) -> u64 {
        let last = self.history.iter().rfind(|change| change.place.resource == resource);
        last.map_or(0, |change| change.version)
    }
}
