//! nf_tables as data: tables, chains, rules, sets and maps, and one atomic transaction of changes to them.
//!
//! A [`Transaction`] belongs to one table, so what is in that table is ours and nothing else can be touched. Names are at most
//! 127 bytes (chains, sets). Rules are an enum tree: one can ask a rule which chains and sets it needs. Everything that depends
//! on numbers the kernel gives out (handles, interface indexes) is the live kernel's business.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::IpFamily;

mod check;
pub mod contract;
mod describe;
mod elements;
mod fake;
mod key;
mod port;
mod span;
mod text;

pub use elements::{Elements, ElementsBuilder};
pub use fake::FakeNft;
pub use key::Key;
pub use port::*;
pub use span::Span;

/// A table of family `inet`, which sees both IPv4 and IPv6.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName(pub String);

/// A chain of the table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainName(pub String);

/// A set or map of the table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetName(pub String);

/// Changes to one table, in order: all of them happen, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// The table. It is created first if it does not exist, unless the first change deletes it.
    pub table: TableName,
    /// What to change.
    pub changes: Vec<Change>,
}

/// One change. Deleting what does not exist fails the whole transaction, as does adding a set or base chain that exists with
/// other properties (one with the same properties stays as it is; a base chain takes the new policy).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Deletes the table with everything in it, if it exists. Later changes create it anew.
    DeleteTable,
    /// Adds a chain.
    AddChain(Chain),
    /// Removes all rules of a chain.
    FlushChain(ChainName),
    /// Deletes a chain with its rules. Nothing may refer to it, but those rules themselves.
    DeleteChain(ChainName),
    /// Appends a rule to a chain.
    AddRule(ChainName, Rule),
    /// Adds a set or map.
    AddSet(SetSpec),
    /// Removes all elements.
    FlushSet(SetName),
    /// Deletes a set or map. Nothing may refer to it.
    DeleteSet(SetName),
    /// Adds elements. One that is there already with the same verdict is fine.
    AddElements(SetName, Vec<Element>),
    /// Deletes elements, which must be there.
    DeleteElements(SetName, Vec<Element>),
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: ChainName,
    /// Where the kernel calls it; `None`: only rules do.
    pub base: Option<BaseChain>,
}

/// Where the kernel calls a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaseChain {
    /// `filter` or `nat`.
    pub kind: ChainKind,
    /// The hook.
    pub hook: Hook,
    /// Lower first.
    pub priority: i32,
    /// What happens to a packet that no rule decided: dropped (`true`) or accepted.
    pub drop: bool,
}

/// What a base chain may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChainKind {
    /// Decide.
    Filter,
    /// Translate addresses: sees the first packet of a flow only.
    Nat,
}

/// Netfilter hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// All that arrives.
    Prerouting,
    /// For this host.
    Input,
    /// For others.
    Forward,
    /// From this host.
    Output,
    /// All that leaves.
    Postrouting,
}

/// A rule: all matches hold, then the actions happen, then the verdict counts. An action that is a verdict comes last, and
/// then there is no other verdict.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// All must match.
    pub matches: Vec<Match>,
    /// What is done besides, in order.
    pub actions: Vec<Statement>,
    /// What happens to the packet; `None`: the next rule.
    pub verdict: Option<Verdict>,
    /// What the rule stands for, at most 128 bytes; kept with the rule (`nft list` shows it as comment).
    pub comment: Option<String>,
}

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// Name of a device. A trailing `*` matches every name that begins so (`*` alone is refused: leave the match out).
    Interface {
        /// Where the packet came from or goes.
        way: Way,
        /// Any other device.
        negate: bool,
        /// The name, at most 15 bytes.
        name: String,
    },
    /// There is no such device: not yet, or never (input has no outgoing, output no incoming one).
    NoInterface(Way),
    /// IPv4 or IPv6.
    Family(IpFamily),
    /// IP protocol (the last one of an IPv6 header chain).
    Protocol {
        /// Any other.
        negate: bool,
        /// Its number.
        number: u8,
    },
    /// The address lies in a prefix. Includes the family.
    Net {
        /// Which address.
        end: End,
        /// Lies outside (still of the prefix's family).
        negate: bool,
        /// The prefix, masked.
        net: IpNet,
    },
    /// TCP, UDP, UDP-Lite or SCTP port. Does not include the protocol: match that first.
    Port {
        /// Which port.
        end: End,
        /// In none of the ranges.
        negate: bool,
        /// Ranges, both ends included: at least one, in ascending order. They do not overlap.
        ranges: Vec<(u16, u16)>,
    },
    /// ICMP or ICMPv6 type, and code. Does not include the protocol: match that first.
    Icmp {
        /// Any other type, or any other type and code.
        negate: bool,
        /// Type.
        kind: u8,
        /// Code.
        code: Option<u8>,
    },
    /// The packet's fields, concatenated, are an element of the set.
    InSet {
        /// What is looked up. Fields that exist in one family only include that family.
        key: Vec<Field>,
        /// Is no element (still of that family).
        negate: bool,
        /// The set.
        set: SetName,
    },
    /// State of the packet's flow.
    Conntrack(BTreeSet<CtState>),
    /// The flow's destination was translated.
    Translated,
    /// The flow has been ended: its entry has a fixed time to live, which nothing else here gives it.
    Ended,
    /// `mark & mask == value`; the value lies within the mask.
    Mark {
        /// Bits to look at.
        mask: u32,
        /// What they must be.
        value: u32,
        /// They must be something else.
        negate: bool,
    },
    /// The destination is an address of this host.
    DestinationIsLocal,
    /// The source is an address of this host.
    SourceIsLocal,
}

/// In or out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// Incoming device.
    In,
    /// Outgoing device.
    Out,
}

/// Source or destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum End {
    /// Source.
    Source,
    /// Destination.
    Destination,
}

/// State of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CtState {
    /// No packet of it was seen before.
    New,
    /// Seen in both directions.
    Established,
    /// Belongs to an established one (ICMP errors, FTP data).
    Related,
    /// Makes no sense.
    Invalid,
    /// Not tracked.
    Untracked,
}

/// A field of a packet, as part of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// Device name, 16 bytes.
    Interface(Way),
    /// Address, 4 or 16 bytes. Includes the family.
    Address(IpFamily, End),
    /// IP protocol, 1 byte.
    Protocol,
    /// Port, 2 bytes.
    Port(End),
}

/// The type of a field of a set's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyType {
    /// Device name.
    Interface,
    /// Address.
    Address(IpFamily),
    /// IP protocol.
    Protocol,
    /// Port.
    Port,
}

/// What is done to a packet besides the verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// Packets and bytes are counted.
    Counter,
    /// What stands behind it happens to so many packets of the rule only; the rest of the rule is skipped for the others.
    Limit {
        /// Packets in each span of time, at least 1.
        packets: u32,
        /// The span.
        per: Per,
        /// So many more at once, at least 1.
        burst: u32,
    },
    /// What stands behind it happens only beyond a threshold; the rest of the rule is skipped for packets that are within.
    Over(Threshold),
    /// The packet's DSCP (RFC 2474) becomes this, if it is of this family: match something that includes the family before.
    SetDscp {
        /// The family of the packets that come here.
        family: IpFamily,
        /// 0 to 63.
        value: u8,
    },
    /// A line in the kernel's log, prefix at most 127 bytes.
    Log {
        /// How it begins.
        prefix: String,
    },
    /// A copy to whoever listens to the group (NFLOG), prefix at most 127 bytes.
    Nflog {
        /// The group.
        group: u16,
        /// What the copy says.
        prefix: String,
        /// Bytes of the packet to copy; 0: all.
        snaplen: u32,
    },
    /// `mark = (mark & !mask) | value`; the value lies within the mask.
    SetMark {
        /// Bits to change.
        mask: u32,
        /// What they become.
        value: u32,
    },
    /// The packet is not tracked. Only in prerouting and output before -200.
    Notrack,
    /// The source becomes the outgoing device's address, with a port of the range if given. Nat chains alone; a verdict.
    Masquerade {
        /// Ports, both ends included.
        ports: Option<(u16, u16)>,
        /// Ports are chosen at random.
        random_fully: bool,
    },
    /// The source becomes this. Nat chains alone; a verdict.
    SourceNat {
        /// New source.
        address: IpAddr,
        /// Ports, both ends included.
        ports: Option<(u16, u16)>,
        /// Ports are chosen at random.
        random_fully: bool,
    },
    /// The destination becomes this. Nat chains alone; a verdict.
    DestinationNat {
        /// New destination.
        address: IpAddr,
        /// New port.
        port: Option<u16>,
    },
    /// The sender is told (ICMP administratively prohibited, TCP reset) and the packet dropped: a verdict.
    Reject,
}

/// How much is too much. Every rule counts for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threshold {
    /// Packets each second, at least 1.
    Packets {
        /// How many.
        per_second: u32,
        /// So many more at once, at least 1.
        burst: u32,
    },
    /// Flows that are there at one time, at least 1.
    Flows(u32),
}

/// A span of time that packets are counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Per {
    /// A second.
    Second,
    /// A minute.
    Minute,
    /// An hour.
    Hour,
    /// A day.
    Day,
}

impl Per {
    /// How long it is.
    pub fn seconds(self) -> u64 {
        match self {
            Per::Second => 1,
            Per::Minute => 60,
            Per::Hour => 3600,
            Per::Day => 86400,
        }
    }

    /// The span of so many seconds.
    pub fn of_seconds(seconds: u64) -> Option<Self> {
        let all = [Per::Second, Per::Minute, Per::Hour, Per::Day];
        all.into_iter().find(|span| span.seconds() == seconds)
    }
}

/// What happens to a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Passes this hook's chain; later base chains still see it.
    Accept,
    /// Dropped.
    Drop,
    /// Back to the calling chain; in a base chain its policy.
    Return,
    /// Another chain is asked, then this one goes on.
    Jump(ChainName),
    /// Another chain is asked; when it ends, the one that called this one goes on.
    Goto(ChainName),
    /// What the map has for the packet's fields; if it has nothing, the next rule.
    Map {
        /// What is looked up.
        key: Vec<Field>,
        /// A map of verdicts.
        map: SetName,
    },
}

/// A set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetSpec {
    /// Its name.
    pub name: SetName,
    /// Types of the key's fields, concatenated if several.
    pub key: Vec<KeyType>,
    /// Elements are ranges or prefixes, which must not overlap.
    pub interval: bool,
    /// Elements carry verdicts.
    pub verdicts: bool,
}

/// An element of a set or map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Element {
    /// One value for each field of the set's key.
    pub key: Key,
    /// What a map of verdicts has for it: a chain to go to, or a decision.
    pub verdict: Option<ElementVerdict>,
}

/// A value of a field. One address is `Address` and one port is `Port` when they are read back, however they were written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// Device name, at most 15 bytes.
    Interface(String),
    /// One address.
    Address(IpAddr),
    /// A prefix, masked; interval sets alone.
    Net(IpNet),
    /// IP protocol.
    Protocol(u8),
    /// One port.
    Port(u16),
    /// Ports, both ends included; interval sets alone.
    Ports(u16, u16),
}

/// A verdict in a map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ElementVerdict {
    /// Accept.
    Accept,
    /// Drop.
    Drop,
    /// Jump to a chain, then go on after the rule that looked it up.
    Jump(ChainName),
    /// Go to a chain.
    Goto(ChainName),
}

impl Rule {
    /// Chains that this rule refers to by name. Elements of maps refer to others.
    pub fn chains(&self) -> impl Iterator<Item = &ChainName> {
        self.verdict.iter().filter_map(|verdict| match verdict {
            Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain),
            Verdict::Accept | Verdict::Drop | Verdict::Return | Verdict::Map { .. } => None,
        })
    }

    /// Sets and maps that this rule looks into.
    pub fn sets(&self) -> impl Iterator<Item = &SetName> {
        let matched = self.matches.iter().filter_map(|part| match part {
            Match::InSet { set, .. } => Some(set),
            _ => None,
        });
        let mapped = self.verdict.iter().filter_map(|verdict| match verdict {
            Verdict::Map { map, .. } => Some(map),
            _ => None,
        });
        matched.chain(mapped)
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for ChainName {
    fn from(name: &str) -> Self {
        Self(name.to_owned())
    }
}

impl From<&str> for SetName {
    fn from(name: &str) -> Self {
        Self(name.to_owned())
    }
}
