//! Operations that the kernel refuses. They are tried again every few seconds, and logged when they fail for the first time and when the
//! reason changes.

use std::collections::HashMap;

use kernel::{KernelError, Op};

/// How many are remembered. While one fails for ever, others that failed once and that nobody wants any more stay among them; when there
/// are too many all are forgotten, and those that still fail are logged once more.
const MOST: usize = 1024;

/// Those that fail, each with the reason that was logged.
#[derive(Default)]
pub(super) struct Refused(HashMap<String, KernelError>);

impl Refused {
    /// One has failed; whether that, or why, is news.
    pub fn failed(&mut self, op: &Op, why: &KernelError) -> bool {
        if self.0.len() >= MOST {
            self.0.clear();
        }
        let before = self.0.insert(format!("{op:?}"), why.clone());
        before.as_ref() != Some(why)
    }

    /// One has succeeded.
    pub fn done(&mut self, op: &Op) {
        if !self.0.is_empty() {
            self.0.remove(&format!("{op:?}"));
        }
    }

    /// Nothing fails any more: what nobody wants now is forgotten too.
    pub fn all_is_well(&mut self) {
        self.0.clear();
    }
}
