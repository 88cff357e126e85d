//! Rules of policies and profiles in use, over sets. Equal ones are translated once and shared.

use std::collections::HashMap;
use std::sync::Arc;

use crate::policy_facts::PackedRules;
use crate::population::Population;
use crate::sets::Sets;
use crate::state::Rule;
use crate::table::{No, Seed};

/// By the rules as written and the namespace in which they are.
#[derive(Debug, Default)]
pub(super) struct ActiveRules(HashMap<Written, Active, Seed>);

/// Rules as written, and the namespace in which they are (`None`: in none).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Written {
    pub rules: PackedRules,
    pub namespace: Option<String>,
}

#[derive(Debug)]
struct Active {
    rules: SharedRules,
    /// Sets that they hold.
    sets: Box<[No]>,
    users: u32,
}

/// Rules over sets.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct SharedRules {
    pub ingress: Arc<[Rule]>,
    pub egress: Arc<[Rule]>,
}

impl ActiveRules {
    /// Something uses the rules.
    pub fn hold(&mut self, written: &Written, sets: &mut Sets, population: &mut Population) -> SharedRules {
        if let Some(active) = self.0.get_mut(written) {
            active.users += 1;
            return active.rules.clone();
        }
        let rules = written.rules.translate(written.namespace.as_deref());
        let held = rules.sets.iter().map(|(id, def)| sets.hold(id, def, population));
        let active = Active {
            sets: held.collect(),
            rules: SharedRules {
                ingress: rules.ingress.into(),
                egress: rules.egress.into(),
            },
            users: 1,
        };
        let shared = active.rules.clone();
        self.0.insert(written.clone(), active);
        shared
    }

    /// Something does not use the rules any more.
    pub fn release(&mut self, written: &Written, sets: &mut Sets) {
        let Some(active) = self.0.get_mut(written) else { return };
        active.users -= 1;
        if active.users == 0
            && let Some(active) = self.0.remove(written)
        {
            active.sets.iter().for_each(|set| sets.release(*set));
        }
    }
}
