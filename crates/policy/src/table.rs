//! Values that occur often, each kept once, counted, and named by a number.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState};

use hashbrown::HashTable;

/// Names a value of a [`Table`].
pub(crate) type No = u32;

/// A map by numbers that we gave ourselves: nobody outside chooses them, so they need no strong hash.
pub(crate) type ByNo<K, V> = HashMap<K, V, BuildHasherDefault<Mix>>;

/// Multiplies and folds, eight bytes at a time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mix(u64);

/// Begins hashes where nobody outside can know: texts that users choose cannot be made to collide.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seed(u64);

impl Default for Seed {
    fn default() -> Self {
        Self(RandomState::new().hash_one(0))
    }
}

impl BuildHasher for Seed {
    type Hasher = Mix;

    fn build_hasher(&self) -> Mix {
        Mix(self.0)
    }
}

impl Mix {
    fn mix(&mut self, number: u64) {
        let product = u128::from(self.0 ^ number ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }
}

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        let (chunks, rest) = bytes.as_chunks::<8>();
        chunks.iter().for_each(|chunk| self.mix(u64::from_le_bytes(*chunk)));
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.mix(u64::from_le_bytes(last) ^ (bytes.len() as u64) << 56);
    }

    fn write_u8(&mut self, number: u8) {
        self.mix(u64::from(number));
    }

    fn write_u32(&mut self, number: u32) {
        self.mix(u64::from(number));
    }

    fn write_usize(&mut self, number: usize) {
        self.mix(number as u64);
    }
}

/// Values by number. A value lives as long as somebody holds its number.
///
/// Values are looked up by what they borrow as, which must hash as they do.
#[derive(Debug)]
pub(crate) struct Table<V> {
    numbers: HashTable<No>,
    entries: Vec<Entry<V>>,
    free: Vec<No>,
    seed: Seed,
}

#[derive(Debug)]
struct Entry<V> {
    value: Option<V>,
    holders: u32,
}

impl<V> Default for Table<V> {
    fn default() -> Self {
        Self {
            numbers: HashTable::new(),
            entries: Vec::new(),
            free: Vec::new(),
            seed: Seed::default(),
        }
    }
}

impl<V: Hash> Table<V> {
    /// The number of a value, which the caller holds from now on; and whether the value is new.
    pub fn hold<Q: Hash + Eq + ?Sized>(&mut self, value: &Q) -> (No, bool)
    where
        V: Borrow<Q> + for<'a> From<&'a Q>,
    {
        self.hold_or(value, || value.into())
    }

    /// As [`Table::hold`], for values that are not made from their key alone.
    pub fn hold_or<Q: Hash + Eq + ?Sized>(&mut self, key: &Q, make: impl FnOnce() -> V) -> (No, bool)
    where
        V: Borrow<Q>,
    {
        let hash = self.seed.hash_one(key);
        if let Some(no) = self.place(hash, key) {
            self.hold_again(no);
            return (no, false);
        }
        let entry = Entry {
            value: Some(make()),
            holders: 1,
        };
        let no = match self.free.pop() {
            Some(no) => {
                self.entries[no as usize] = entry;
                no
            }
            None => {
                self.entries.push(entry);
                (self.entries.len() - 1) as No
            }
        };
        let Self {
            numbers, entries, seed, ..
        } = self;
        numbers.insert_unique(hash, no, |no| seed.hash_one(entries[*no as usize].value()));
        (no, true)
    }

    /// Holds a number once more.
    pub fn hold_again(&mut self, no: No) {
        self.entries[no as usize].holders += 1;
    }

    /// Lets go of a number; the last one to do so gets the value back.
    pub fn release(&mut self, no: No) -> Option<V> {
        let entry = &mut self.entries[no as usize];
        entry.holders -= 1;
        if entry.holders > 0 {
            return None;
        }
        let value = entry.value.take()?;
        if let Ok(place) = self
            .numbers
            .find_entry(self.seed.hash_one(&value), |other| *other == no)
        {
            place.remove();
        }
        self.free.push(no);
        Some(value)
    }

    /// The number of a value that somebody holds.
    pub fn find<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<No>
    where
        V: Borrow<Q>,
    {
        self.place(self.seed.hash_one(key), key)
    }

    /// All values, by number.
    pub fn iter(&self) -> impl Iterator<Item = (No, &V)> {
        let entries = self.entries.iter().enumerate();
        entries.filter_map(|(no, entry)| Some((no as No, entry.value.as_ref()?)))
    }

    /// The value of a number that the caller holds.
    pub fn get(&self, no: No) -> &V {
        self.entries[no as usize].value()
    }

    /// The value of a number that the caller holds. What it borrows as stays the same.
    pub fn get_mut(&mut self, no: No) -> &mut V {
        let value = self.entries[no as usize].value.as_mut();
        value.expect("a number that is held has a value")
    }

    fn place<Q: Eq + ?Sized>(&self, hash: u64, key: &Q) -> Option<No>
    where
        V: Borrow<Q>,
    {
        let is_it = |no: &No| self.entries[*no as usize].value().borrow() == key;
        self.numbers.find(hash, is_it).copied()
    }
}

impl<V> Entry<V> {
    fn value(&self) -> &V {
        self.value.as_ref().expect("a number that is held has a value")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_lives_as_long_as_it_is_held() {
        let mut table: Table<Box<str>> = Table::default();
        let (a, new) = table.hold("a");
        assert!(new);
        assert_eq!(table.hold("a"), (a, false));
        let (b, _) = table.hold("b");
        assert_eq!((&**table.get(a), &**table.get(b)), ("a", "b"));
        assert!(table.release(a).is_none());
        assert_eq!(table.release(a).as_deref(), Some("a"));
        assert_eq!(table.find("a"), None);
        assert_eq!(table.hold("c"), (a, true));
    }
}
