//! What is wrong with single pods, for the node's status.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use cni::journal::Id;

/// Hears of all problems, sentences for people, whenever they change.
pub type Tell = Arc<dyn Fn(Vec<String>) + Send + Sync>;

/// Problems by attachment.
pub struct Problems {
    said: Mutex<BTreeMap<Id, String>>,
    tell: Tell,
}

impl Problems {
    /// None yet.
    pub fn new(tell: Tell) -> Self {
        Self {
            said: Mutex::default(),
            tell,
        }
    }

    /// Says what is wrong with an attachment, or that nothing is any more.
    pub fn say(&self, id: &Id, problem: Option<String>) {
        // No code that can panic runs while this is locked.
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.get(id) == problem.as_ref() {
            return;
        }
        match problem {
            Some(problem) => {
                tracing::error!(%id, problem, "cni");
                said.insert(id.clone(), problem);
            }
            None => drop(said.remove(id)),
        }
        let all = said.values().cloned().collect();
        drop(said);
        (self.tell)(all);
    }
}
