//! Values that occur often, each kept once, counted, and named by a number.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState};
use std::sync::Arc;

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
#[derive(Debug)]
pub(crate) struct Table<T: ?Sized> {
    numbers: HashMap<Arc<T>, No, Seed>,
    entries: Vec<Entry<T>>,
    free: Vec<No>,
}

#[derive(Debug)]
struct Entry<T: ?Sized> {
    value: Option<Arc<T>>,
    holders: u32,
}

impl<T: ?Sized> Default for Table<T> {
    fn default() -> Self {
        Self {
            numbers: HashMap::default(),
            entries: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T: ?Sized + Hash + Eq> Table<T> {
    /// The number of a value, which the caller holds from now on; and whether the value is new.
    pub fn hold(&mut self, value: &T) -> (No, bool)
    where
        for<'a> Arc<T>: From<&'a T>,
    {
        if let Some(no) = self.numbers.get(value) {
            self.entries[*no as usize].holders += 1;
            return (*no, false);
        }
        let value: Arc<T> = value.into();
        let entry = Entry {
            value: Some(value.clone()),
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
        self.numbers.insert(value, no);
        (no, true)
    }

    /// Holds a number once more.
    pub fn hold_again(&mut self, no: No) {
        self.entries[no as usize].holders += 1;
    }

    /// Lets go of a number; the last one to do so gets the value back.
    pub fn release(&mut self, no: No) -> Option<Arc<T>> {
        let entry = &mut self.entries[no as usize];
        entry.holders -= 1;
        if entry.holders > 0 {
            return None;
        }
        let value = entry.value.take()?;
        self.numbers.remove(&value);
        self.free.push(no);
        Some(value)
    }

    /// The number of a value that somebody holds.
    pub fn find(&self, value: &T) -> Option<No> {
        self.numbers.get(value).copied()
    }

    /// All values, by number.
    pub fn iter(&self) -> impl Iterator<Item = (No, &T)> {
        let entries = self.entries.iter().enumerate();
        entries.filter_map(|(no, entry)| Some((no as No, entry.value.as_deref()?)))
    }

    /// The value of a number that the caller holds.
    pub fn get(&self, no: No) -> &T {
        let value = self.entries[no as usize].value.as_ref();
        value.expect("a number that is held has a value")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_lives_as_long_as_it_is_held() {
        let mut table: Table<str> = Table::default();
        let (a, new) = table.hold("a");
        assert!(new);
        assert_eq!(table.hold("a"), (a, false));
        let (b, _) = table.hold("b");
        assert_eq!((table.get(a), table.get(b)), ("a", "b"));
        assert!(table.release(a).is_none());
        assert_eq!(table.release(a).as_deref(), Some("a"));
        assert_eq!(table.find("a"), None);
        assert_eq!(table.hold("c"), (a, true));
    }
}
