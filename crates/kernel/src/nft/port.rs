//! The port to nf_tables: one transaction in, success or an error out; the table as it is; who else touched it.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::BoxFuture;
use futures::stream::BoxStream;

use super::{BaseChain, ChainName, Elements, Rule, SetName, SetSpec, TableName, Transaction};

/// The number of the rule set of a network namespace: every transaction that changes something, whoever's it is, makes it
/// one more. As long as it is the same nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u32);

impl Generation {
    /// The one after this (0 is never used).
    pub fn next(self) -> Self {
        Self(self.0.wrapping_add(1).max(1))
    }
}

/// Rules by chain.
pub type Rules = BTreeMap<ChainName, Vec<RuleState>>;

/// nf_tables of a network namespace, which can be told and asked.
pub trait NftKernel: Send {
    /// Does all changes or none. (A transaction that changes nothing leaves the generation as it is.)
    fn apply<'a>(&'a mut self, transaction: &'a Transaction) -> BoxFuture<'a, Result<(), NftError>>;

    /// Reads a table as it was at one moment; `None`: there is no such table.
    fn read<'a>(&'a mut self, table: &'a TableName) -> BoxFuture<'a, Result<Option<TableState>, NftError>>;

    /// The rules of a table alone, without elements of named sets: far cheaper, for counters. It is read beside what this
    /// kernel is told meanwhile. If that is a lot, each chain is as it was at a moment of its own, and what a rule says may be
    /// missing; its number, its comment and its count are right.
    fn rules(&mut self, table: &TableName) -> BoxFuture<'static, Result<Rules, NftError>>;

    /// The rules of these chains alone, of those that exist: a question for each. What a rule says may be missing; its
    /// number, its comment and its count are right.
    fn rules_of<'a>(
        &'a mut self,
        table: &'a TableName,
        chains: &'a BTreeSet<ChainName>,
    ) -> BoxFuture<'a, Result<Rules, NftError>>;

    /// The generation now.
    fn generation(&mut self) -> BoxFuture<'_, Result<Generation, NftError>>;

    /// What others do from now on. What this kernel's own [`NftKernel::apply`] does is not announced.
    fn events(&mut self, table: &TableName) -> Result<BoxStream<'static, NftEvent>, NftError>;
}

/// Why a transaction or a question failed, sorted by what the caller does next. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NftError {
    /// A change makes no sense by itself, whatever is in the kernel (a name too long, a verdict after a verdict): it was
    /// not sent. Leave it out and tell whom it belongs to.
    #[error("change {change} ({what}) cannot be said: {reason}")]
    Invalid {
        /// Which change of the transaction.
        change: usize,
        /// The change in words.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The kernel refused. If it says that something is absent or there already, the caller's picture of the table is
    /// wrong: read it again. Else leave the change out.
    #[error("the kernel refused {what}: {reason} (errno {errno})")]
    Refused {
        /// Which change of the transaction; `None`: all of them together (jumps too deep or in circles).
        change: Option<usize>,
        /// The change in words.
        what: String,
        /// The reason as a value.
        cause: Cause,
        /// Extended error text, or the text of the number.
        reason: String,
        /// The number.
        errno: i32,
    },
    /// Others change the rule set faster than it can be read: try again later.
    #[error("others keep changing the rule set")]
    Busy,
    /// The channel to the kernel failed: open it again and read the table.
    #[error("talking to the kernel failed: {0}")]
    Broken(String),
}

/// Why the kernel refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// What is named is not there.
    Absent,
    /// It is there already, with other properties; or an interval overlaps another.
    Exists,
    /// Something refers to it.
    InUse,
    /// Jumps go in a circle or deeper than the kernel allows.
    TooDeep,
    /// The kernel does not understand it so.
    Malformed,
    /// Not in this place (network translation outside its chains), or not by this kernel.
    Unsupported,
    /// Out of memory or of room.
    Resources,
    /// Not allowed: no privilege, or the table belongs to another process.
    Forbidden,
    /// Anything else.
    Other,
}

impl Cause {
    /// What an error number of Linux means here.
    pub fn of(errno: i32) -> Self {
        match errno {
            1 | 13 => Self::Forbidden,            // EPERM, EACCES
            2 => Self::Absent,                    // ENOENT
            17 => Self::Exists,                   // EEXIST
            16 => Self::InUse,                    // EBUSY
            31 | 40 => Self::TooDeep,             // EMLINK, ELOOP
            22 | 34 | 75 | 36 => Self::Malformed, // EINVAL, ERANGE, EOVERFLOW, ENAMETOOLONG
            95 | 97 => Self::Unsupported,         // EOPNOTSUPP, EAFNOSUPPORT
            12 | 23 | 24 => Self::Resources,      // ENOMEM, ENFILE, EMFILE
            _ => Self::Other,
        }
    }
}

impl NftError {
    /// Which change is at fault, if one is.
    pub fn change(&self) -> Option<usize> {
        match self {
            Self::Invalid { change, .. } => Some(*change),
            Self::Refused { change, .. } => *change,
            Self::Busy | Self::Broken(_) => None,
        }
    }

    /// Why the kernel refused, if it did.
    pub fn cause(&self) -> Option<Cause> {
        match self {
            Self::Refused { cause, .. } => Some(*cause),
            Self::Invalid { .. } | Self::Busy | Self::Broken(_) => None,
        }
    }
}

/// A table as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableState {
    /// When.
    pub generation: Generation,
    /// Chains with their rules.
    pub chains: BTreeMap<ChainName, ChainState>,
    /// Sets and maps with their elements.
    pub sets: BTreeMap<SetName, SetState>,
}

impl TableState {
    /// Something in it cannot be said here: somebody else's.
    pub fn is_strange(&self) -> bool {
        let of_chain = |chain: &ChainState| chain.strange || chain.rules.iter().any(|rule| rule.rule.is_none());
        let of_set = |set: &SetState| set.spec.is_none() || set.strange != 0;
        self.chains.values().any(of_chain) || self.sets.values().any(of_set)
    }
}

/// A chain as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChainState {
    /// Where the kernel calls it; `None`: only rules do.
    pub base: Option<BaseChain>,
    /// The kernel calls it in a way that cannot be said here (another hook or kind): somebody else's.
    pub strange: bool,
    /// Its rules, in order.
    pub rules: Vec<RuleState>,
}

/// A rule as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleState {
    /// Its number in the table.
    pub handle: u64,
    /// What it says; `None`: nothing that can be said here, so somebody else wrote it.
    pub rule: Option<Rule>,
    /// Its comment, also if the rule is somebody else's.
    pub comment: Option<String>,
    /// What its counter says, if it has one.
    pub count: Option<Count>,
}

/// What a counter says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A set or map as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetState {
    /// Its properties; `None`: some that cannot be said here, so somebody else made it.
    pub spec: Option<SetSpec>,
    /// Its elements.
    pub elements: Elements,
    /// So many elements cannot be said here: somebody else's.
    pub strange: usize,
}

/// Something that others did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NftEvent {
    /// Somebody changed the table: read it again.
    Touched {
        /// The generation after it.
        generation: Generation,
        /// Name of the program, if the kernel says it.
        program: Option<String>,
    },
    /// Somebody changed other tables: this one is as it was.
    Elsewhere {
        /// The generation after it.
        generation: Generation,
    },
    /// Events were lost: read the table again.
    Resync,
}
