//! Profiles: the rules that an endpoint is left to when no tier has decided. (Their labels are in `population`.)

use std::collections::BTreeMap;

use api::{Action, Key, Kind, ProfileSpec};

use crate::policy_facts::{PackedRules, problems};
use crate::problem::{Effect, Problem};
use crate::rules::check;

/// Upstream's profile that allows everything. It exists without a resource.
const ALLOW_ALL: &str = "projectcalico-default-allow";

/// All profiles.
#[derive(Debug, Default)]
pub(crate) struct Profiles(BTreeMap<Box<str>, ProfileFacts>);

/// The rules of a profile, compact, and what is wrong with them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ProfileFacts {
    pub rules: PackedRules,
    pub problems: Vec<Problem>,
}

impl Profiles {
    /// Makes `facts` those of the profile; answers whether that is news.
    pub fn set(&mut self, name: &str, facts: Option<ProfileFacts>) -> bool {
        if self.0.get(name) == facts.as_ref() {
            return false;
        }
        match facts {
            Some(facts) => drop(self.0.insert(name.into(), facts)),
            None => drop(self.0.remove(name)),
        }
        true
    }

    /// The profile, if it exists.
    pub fn get(&self, name: &str) -> Option<ProfileFacts> {
        let built_in = || (name == ALLOW_ALL).then(ProfileFacts::allow_all);
        self.0.get(name).cloned().or_else(built_in)
    }

    /// What is wrong with them, by name.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.0.values().flat_map(|facts| &facts.problems)
    }
}

impl ProfileFacts {
    /// A profile that cannot be read as a whole, for these reasons.
    pub fn broken_for(problems: Vec<Problem>) -> Self {
        Self {
            rules: PackedRules::default(),
            problems,
        }
    }

    pub fn read(name: &str, spec: &ProfileSpec) -> Self {
        let key = Key::cluster(Kind::Profile, name);
        let rules = check(&spec.ingress, &spec.egress, None);
        let mut found = problems(&key, rules.faults, Effect::Closed);
        found.extend(problems(&key, rules.ignored, Effect::NotEnforced));
        Self {
            rules: PackedRules::new(&spec.ingress, &spec.egress),
            problems: found,
        }
    }

    fn allow_all() -> Self {
        let allow = [api::Rule::any(Action::Allow)];
        Self {
            rules: PackedRules::new(&allow, &allow),
            problems: Vec::new(),
        }
    }

    /// Why it cannot be followed, if so.
    pub fn broken(&self) -> Option<&Problem> {
        self.problems.iter().find(|problem| problem.effect == Effect::Closed)
    }
}
