//! Stands for something longer: 128 bits of keyed hashes.
//!
//! Names and labels of a cluster as texts would take more memory than all else. That any two of a million agree in their
//! prints is less likely than 1 to 10^26, and nobody outside knows the keys, so that no two can be made to.

use std::borrow::Borrow;
use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};

use crate::table::{Mix, Seed};

/// The print of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Print([u32; 4]);

/// A list that is known by the print of what it was made from.
#[derive(Debug)]
pub(crate) struct Printed<T> {
    pub print: Print,
    pub list: Box<[T]>,
}

/// Makes prints. Only those of one maker can be compared.
#[derive(Debug, Default)]
pub(crate) struct Prints {
    strong: RandomState,
    quick: Seed,
}

/// Both hashes at once.
pub(crate) struct Printing {
    strong: DefaultHasher,
    quick: Mix,
}

impl Prints {
    /// The print of a value.
    pub fn of_value(&self, value: &impl Hash) -> Print {
        self.of(|printing| value.hash(printing))
    }

    /// The print of what is written.
    pub fn of(&self, write: impl FnOnce(&mut Printing)) -> Print {
        let mut printing = Printing {
            strong: self.strong.build_hasher(),
            quick: self.quick.build_hasher(),
        };
        write(&mut printing);
        let [a, b] = [printing.strong.finish(), printing.quick.finish()];
        Print([a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32])
    }
}

impl Print {
    /// Some bits of it, which are a hash already.
    pub fn bits(self) -> u64 {
        let Self([a, b, ..]) = self;
        u64::from(a) | u64::from(b) << 32
    }
}

impl<T> Borrow<Print> for Printed<T> {
    fn borrow(&self) -> &Print {
        &self.print
    }
}

impl<T> Hash for Printed<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Hash::hash(&self.print, state);
    }
}

impl Hasher for Printing {
    fn finish(&self) -> u64 {
        self.strong.finish()
    }

    fn write(&mut self, bytes: &[u8]) {
        self.strong.write(bytes);
        self.quick.write(bytes);
    }
}
