//! What the kernel refused: whose fault it is, and how the rest goes on.
//!
//! A policy that the kernel does not take denies what reaches it; a set that it does not take closes the policies that use it.
//! Both get another chance when they change, or by `retry`. If the kernel says that something is absent or there already, our
//! picture may be wrong, so the table is read first.

use std::collections::BTreeMap;
use std::fmt;

use kernel::nft::{Cause, Chain, ChainName, Match, NftError, Rule, SetName, Way};
use policy::{EndpointId, PolicyId, SetId};

use super::base::device;
use super::endpoint::drop;
use super::machine::Filter;
use super::rule::{Stage, full_name};
use super::wanted::{InFlight, Target};

/// Something that is not enforced as it is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What.
    pub concerns: Concerns,
    /// Why; the kernel's words, if it was the kernel.
    pub reason: String,
}

/// What a problem is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Concerns {
    /// A policy. It denies what reaches it.
    Policy(PolicyId),
    /// A profile. It denies what reaches it.
    Profile(String),
    /// An endpoint. It is closed.
    Endpoint(EndpointId),
    /// A set. Policies that use it are closed.
    Set(SetId),
    /// A chain that belongs to none of them. If it decides about pods, they are closed.
    Chain(ChainName),
    /// The table: nothing was changed since.
    Table,
}

/// Whose chain it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ChainOwner {
    Policy(PolicyId),
    Profile(String),
    Endpoint(EndpointId),
    Frame,
}

/// What is known to be refused, and what is uncertain.
#[derive(Clone, Debug, Default)]
pub(crate) struct Doubt {
    pub chains: BTreeMap<ChainName, (ChainOwner, String)>,
    pub sets: BTreeMap<SetId, String>,
    /// Nobody can be blamed: nothing is tried until something changes.
    stuck: Option<String>,
    look: bool,
    /// The table was read after a refusal, and nothing has succeeded since.
    looked: bool,
}

impl Doubt {
    /// What belongs to an owner gets another chance.
    pub fn changed(&mut self, owner: &ChainOwner) {
        self.chains.retain(|_, (of, _)| of != owner);
    }

    /// Something is different from what was refused.
    pub fn something_changed(&mut self) {
        self.stuck = None;
    }

    pub fn looked(&mut self) {
        self.looked = self.look;
        self.look = false;
    }

    pub fn succeeded(&mut self) {
        self.looked = false;
    }

    pub fn wants_look(&self) -> bool {
        self.look
    }

    /// Whether it makes no sense to try now.
    pub fn waits(&self) -> bool {
        self.look || self.stuck.is_some()
    }

    pub fn problems(&self) -> impl Iterator<Item = Problem> + '_ {
        let chains = self.chains.iter().map(|(name, (owner, reason))| Problem {
            concerns: match owner {
                ChainOwner::Policy(id) => Concerns::Policy(id.clone()),
                ChainOwner::Profile(name) => Concerns::Profile(name.clone()),
                ChainOwner::Endpoint(id) => Concerns::Endpoint(id.clone()),
                ChainOwner::Frame => Concerns::Chain(name.clone()),
            },
            reason: reason.clone(),
        });
        let sets = self.sets.iter().map(|(id, reason)| Problem {
            concerns: Concerns::Set(id.clone()),
            reason: reason.clone(),
        });
        let stuck = self.stuck.iter().map(|reason| Problem {
            concerns: Concerns::Table,
            reason: reason.clone(),
        });
        chains.chain(sets).chain(stuck)
    }
}

impl Filter {
    /// The kernel did not do a transaction.
    pub(super) fn refused(&mut self, sent: &InFlight, error: &NftError) {
        let target = error.change().and_then(|change| sent.targets.get(change)).cloned();
        let our_picture = matches!(error.cause(), Some(Cause::Absent | Cause::Exists | Cause::InUse));
        match error {
            // The shell tries again when it is time.
            NftError::Busy => {}
            NftError::Broken(_) => self.doubt.look = true,
            NftError::Refused { .. } if our_picture && !self.doubt.looked => self.doubt.look = true,
            NftError::Refused {
                cause: Cause::Forbidden,
                ..
            } => self.doubt.stuck = Some(error.to_string()),
            NftError::Invalid { .. } | NftError::Refused { .. } => self.isolate(target, &error.to_string()),
        }
    }

    fn isolate(&mut self, target: Option<Target>, reason: &str) {
        let isolated = match target {
            Some(Target::Chain(name)) => self.isolate_chain(&name, reason),
            Some(Target::Set(name)) => self.isolate_set(&name, reason),
            Some(Target::Table) | None => false,
        };
        if !isolated {
            self.doubt.stuck = Some(reason.to_owned());
        }
    }

    /// Answers whether that makes a difference.
    fn isolate_chain(&mut self, name: &ChainName, reason: &str) -> bool {
        let Some(owner) = self
            .owners
            .get(name)
            .cloned()
            .filter(|_| !self.doubt.chains.contains_key(name))
        else {
            return false;
        };
        match &owner {
            ChainOwner::Policy(id) => {
                self.dirty.policies.insert(id.clone());
            }
            ChainOwner::Profile(profile) => {
                self.dirty.profiles.insert(profile.clone());
            }
            ChainOwner::Endpoint(id) => {
                self.dirty.endpoints.insert(id.clone());
            }
            ChainOwner::Frame => (self.dirty.frame, self.dirty.rules) = (true, true),
        }
        self.doubt.chains.insert(name.clone(), (owner, reason.to_owned()));
        true
    }

    fn isolate_set(&mut self, name: &SetName, reason: &str) -> bool {
        if let Some(id) = self.set_of(name) {
            let is_new = self.doubt.sets.insert(id.clone(), reason.to_owned()).is_none();
            self.park(&id, true);
            self.render_users(&id);
            return is_new;
        }
        // A rule's own nets, or one of the frame's sets.
        let mut users: Vec<ChainName> = self.nets_users.get(name).into_iter().flatten().cloned().collect();
        if users.is_empty() {
            users = self.wanted.users(name);
        }
        let isolated: Vec<bool> = users.iter().map(|chain| self.isolate_chain(chain, reason)).collect();
        isolated.contains(&true)
    }

    /// What stands in for rules that the kernel refused.
    pub(super) fn stand_in(&self, chain: &Chain, owner: &ChainOwner) -> Vec<Rule> {
        let drop = |matches: Vec<Match>| drop(&self.settings, Stage::Untracked, matches, &format!("refused: {owner}"));
        let pods = |way: Way| {
            let prefixes = self.settings.interface_prefixes.iter();
            prefixes.map(move |prefix| device(way, &format!("{prefix}*")))
        };
        match (owner, chain.name.0.as_str()) {
            (ChainOwner::Policy(_) | ChainOwner::Profile(_) | ChainOwner::Endpoint(_), _) => vec![drop(Vec::new())],
            (ChainOwner::Frame, "filter-FORWARD" | "filter-INPUT") => {
                pods(Way::In).map(|pod| drop(vec![pod])).collect()
            }
            (ChainOwner::Frame, "filter-FORWARD-to") => pods(Way::Out).map(|pod| drop(vec![pod])).collect(),
            (ChainOwner::Frame, "cali-rpf" | "cali-rpf-v6" | "cali-from-wl-dispatch" | "cali-to-wl-dispatch") => {
                vec![drop(Vec::new())]
            }
            (ChainOwner::Frame, _) => Vec::new(),
        }
    }
}

impl fmt::Display for ChainOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChainOwner::Policy(id) => write!(f, "{} {}", id.kind.name(), full_name(id)),
            ChainOwner::Profile(name) => write!(f, "Profile {name}"),
            ChainOwner::Endpoint(EndpointId::Workload(key)) => write!(f, "WorkloadEndpoint {}", full_name(key)),
            ChainOwner::Endpoint(EndpointId::Host(name)) => write!(f, "HostEndpoint {name}"),
            ChainOwner::Frame => f.write_str("chain of the table itself"),
        }
    }
}
