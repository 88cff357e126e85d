//! Attachments that have been detached whole, for the runtime asks more than once: kubelet stops a sandbox, stops it again, and has
//! what is left of it removed a minute later, each of which is a DEL.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cni::journal::Id;

/// How many are remembered. What is older is looked for again, which finds nothing.
const MOST: usize = 1024;

/// Attachments of which nothing is left.
#[derive(Default)]
pub struct Gone(Mutex<VecDeque<Id>>);

impl Gone {
    /// Nothing of it is left.
    pub fn note(&self, id: &Id) {
        self.forget(id);
        let mut gone = self.gone();
        gone.truncate(MOST - 1);
        gone.push_front(id.clone());
    }

    /// It is about to be made.
    pub fn forget(&self, id: &Id) {
        self.gone().retain(|gone| gone != id);
    }

    /// Whether nothing of it is left for certain.
    pub fn has(&self, id: &Id) -> bool {
        self.gone().contains(id)
    }

    fn gone(&self) -> MutexGuard<'_, VecDeque<Id>> {
        // No code that can panic runs while this is locked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_remembered_until_they_are_made_again() {
        let gone = Gone::default();
        let id = |number: usize| Id::new(number.to_string(), "eth0");
        (0..=MOST).for_each(|number| gone.note(&id(number)));
        let has = |numbers: [usize; 3]| numbers.map(|number| gone.has(&id(number)));
        assert_eq!(has([0, 1, MOST]), [false, true, true]);
        gone.note(&id(1));
        gone.note(&id(MOST + 1));
        assert_eq!(has([1, 2, MOST + 1]), [true, false, true]);
        gone.forget(&id(1));
        assert_eq!(has([1, 3, MOST]), [false, true, true]);
    }
}
