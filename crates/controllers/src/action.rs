//! What a decision asks for, as data. Whoever does it looks at the store once more before.

use std::fmt;

use api::{BuiltInTier, Condition, ConditionStatus, HostEndpoint, Key, KubeControllersConfigurationStatus};
use ipam::{Doomed, Owner};
use ipnet::IpNet;
use jiff::Timestamp;

/// One thing to do. Each may fail by itself, and may be done twice.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Write the initial KubeControllersConfiguration.
    CreateConfiguration,
    /// Say what is in force.
    WriteConfigurationStatus(KubeControllersConfigurationStatus),
    /// Free all addresses of a handle.
    FreeAddresses(Vec<Doomed>),
    /// Delete a handle that holds nothing.
    DeleteIdleHandle(String),
    /// Give an empty block of a living node back.
    ReleaseIdleBlock(Owner, IpNet),
    /// Give all claims of a node back that is gone.
    ReleaseNode(String),
    /// Free addresses whose rest is over; delete the block if it is empty and nobody's.
    CollectBlock(IpNet),
    /// Delete the WorkloadEndpoint of a node that is gone.
    DeleteEndpoint {
        /// Which.
        key: Key,
        /// The node.
        node: String,
    },
    /// Make an automatic host endpoint so.
    PutHostEndpoint(Box<HostEndpoint>),
    /// Delete an automatic host endpoint.
    DeleteHostEndpoint {
        /// Its name.
        name: String,
        /// Only if this node is gone.
        gone: Option<String>,
    },
    /// Say whether a pool's addresses may be handed out.
    JudgePool {
        /// The pool.
        name: String,
        /// The generation that was judged.
        generation: Option<i64>,
        /// The condition.
        allocatable: Judgement,
    },
    /// Put our finalizer on a pool or take it away.
    HoldPool {
        /// The pool.
        name: String,
        /// On it, or not.
        hold: bool,
    },
    /// Give all claims in a pool back that is being deleted.
    RetirePool {
        /// The pool.
        name: String,
        /// Its range.
        cidr: IpNet,
    },
    /// Write a tier that must exist.
    CreateTier(BuiltInTier),
    /// Say whether a tier is ready.
    JudgeTier {
        /// The tier.
        name: String,
        /// The generation that was judged.
        generation: Option<i64>,
        /// The condition.
        ready: Judgement,
    },
    /// Say of an object whether it can be followed as it is written.
    Judge {
        /// Which.
        key: Key,
        /// The revision that was judged.
        revision: Option<String>,
        /// The condition.
        valid: Judgement,
    },
    /// Take away what an object says of a node that is gone.
    ForgetNode {
        /// Which object.
        key: Key,
        /// The node.
        node: String,
    },
    /// Put our finalizer on a tier or take it away.
    HoldTier {
        /// The tier.
        name: String,
        /// On it, or not.
        hold: bool,
    },
}

/// A condition without its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why, in one word.
    pub reason: &'static str,
    /// Why, in a sentence.
    pub message: String,
}

impl Judgement {
    /// It as a condition.
    pub fn condition(&self, kind: &str, generation: Option<i64>, since: Timestamp) -> Condition {
        Condition {
            kind: kind.to_owned(),
            status: self.status,
            observed_generation: generation,
            last_transition_time: since,
            reason: self.reason.to_owned(),
            message: self.message.clone(),
        }
    }

    /// Whether a condition says so, of this generation.
    pub fn is_said_by(&self, held: &Condition, generation: Option<i64>) -> bool {
        held.status == self.status
            && held.reason == self.reason
            && held.message == self.message
            && held.observed_generation == generation
    }
}

impl Action {
    /// What kind of action it is, for metrics and logs.
    pub fn verb(&self) -> &'static str {
        match self {
            Action::CreateConfiguration => "create-configuration",
            Action::WriteConfigurationStatus(_) => "write-configuration-status",
            Action::FreeAddresses(_) => "free-addresses",
            Action::DeleteIdleHandle(_) => "delete-idle-handle",
            Action::ReleaseIdleBlock(..) => "release-idle-block",
            Action::ReleaseNode(_) => "release-node",
            Action::CollectBlock(_) => "collect-block",
            Action::DeleteEndpoint { .. } => "delete-endpoint",
            Action::PutHostEndpoint(_) => "put-host-endpoint",
            Action::DeleteHostEndpoint { .. } => "delete-host-endpoint",
            Action::JudgePool { .. } => "judge-pool",
            Action::HoldPool { .. } => "hold-pool",
            Action::RetirePool { .. } => "retire-pool",
            Action::CreateTier(_) => "create-tier",
            Action::JudgeTier { .. } => "judge-tier",
            Action::Judge { .. } => "judge",
            Action::ForgetNode { .. } => "forget-node",
            Action::HoldTier { .. } => "hold-tier",
        }
    }
}

/// What it is about, for people.
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.verb())?;
        match self {
            Action::CreateConfiguration | Action::WriteConfigurationStatus(_) => Ok(()),
            Action::FreeAddresses(doomed) => {
                let handle = doomed.first().and_then(|doomed| doomed.address.handle.as_deref());
                write!(f, " of {}:", handle.unwrap_or_default())?;
                let mut all = doomed.iter();
                all.try_for_each(|doomed| write!(f, " {} ({:?})", doomed.address.ip, doomed.reason))
            }
            Action::DeleteIdleHandle(handle) => write!(f, " {handle}"),
            Action::ReleaseIdleBlock(owner, cidr) => write!(f, " {cidr} of {owner}"),
            Action::ReleaseNode(node) => write!(f, " {node}"),
            Action::CollectBlock(cidr) => write!(f, " {cidr}"),
            Action::DeleteEndpoint { key, .. } => write!(f, " {key}"),
            Action::PutHostEndpoint(endpoint) => write!(f, " {}", endpoint.metadata.name),
            Action::CreateTier(tier) => write!(f, " {}", tier.name),
            Action::JudgePool { name, allocatable, .. } => write!(f, " {name} {}", allocatable.reason),
            Action::Judge { key, valid, .. } => write!(f, " {key} {}", valid.reason),
            Action::ForgetNode { key, node } => write!(f, " {node} on {key}"),
            Action::JudgeTier { name, ready, .. } => write!(f, " {name} {}", ready.reason),
            Action::HoldPool { name, hold } | Action::HoldTier { name, hold } => write!(f, " {name} {hold}"),
            Action::DeleteHostEndpoint { name, .. } | Action::RetirePool { name, .. } => write!(f, " {name}"),
        }
    }
}
