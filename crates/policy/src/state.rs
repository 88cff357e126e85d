//! Policy of one node after everything that has to do with labels, names and namespaces is worked out.
//!
//! Endpoints name policies and profiles, rules name sets; whoever enforces it never sees a selector. The same types are what
//! `explain` evaluates, so that it answers what the kernel would do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use api::{Action, Key};
use ipnet::IpNet;

/// All of it, for one node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicyState {
    /// Local endpoints.
    pub endpoints: BTreeMap<EndpointId, Arc<Endpoint>>,
    /// Policies that apply to one of them, staged ones included, and those that ask to be ready on every node.
    pub policies: BTreeMap<PolicyId, Arc<Policy>>,
    /// Profiles that one of them names; one that does not exist is here too and denies all.
    pub profiles: BTreeMap<String, Arc<Profile>>,
    /// Sets that a rule of these uses.
    pub sets: BTreeMap<SetId, Set>,
}

impl PolicyState {
    /// All rules of policies and profiles.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        let of_policies = self.policies.values().flat_map(|policy| policy.rules());
        let of_profiles = self.profiles.values().flat_map(|profile| profile.rules());
        of_policies.chain(of_profiles)
    }
}

/// One difference between two states. `None` means gone. In a list of changes referents come before what refers to them,
/// removals the other way round and last.
#[derive(Clone, Debug, PartialEq)]
pub enum PolicyChange {
    /// A set appeared, with its members.
    Set(SetId, Set),
    /// Members of a set that exists came (first) and went (second).
    Members(SetId, BTreeSet<Member>, BTreeSet<Member>),
    /// A set is not used any more.
    SetGone(SetId),
    /// A policy.
    Policy(PolicyId, Option<Arc<Policy>>),
    /// A profile.
    Profile(String, Option<Arc<Profile>>),
    /// A local endpoint.
    Endpoint(EndpointId, Option<Arc<Endpoint>>),
}

/// A local endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EndpointId {
    /// A pod's interface: the key of its WorkloadEndpoint.
    Workload(Key),
    /// The name of a HostEndpoint of this node.
    Host(String),
}

/// What applies to a local endpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// Where its packets are met.
    pub interface: Interface,
    /// Its labels, inherited ones included: for people.
    pub labels: BTreeMap<String, String>,
    /// Its addresses: a workload may send from these alone. Empty for host endpoints.
    pub addresses: Vec<IpAddr>,
    /// Further sources that a workload may send from (`allowSpoofedSourcePrefixes`).
    pub spoofable: Vec<IpNet>,
    /// Packets to the endpoint.
    pub ingress: Direction,
    /// Packets from the endpoint.
    pub egress: Direction,
    /// Host endpoints only: policies with `applyOnForward`, for packets that are forwarded through the interface. An empty
    /// direction lets them pass.
    pub forward: HostHook,
    /// Host endpoints only: `preDNAT` policies, ingress alone. Here and in `untracked` the end of a tier never denies: what
    /// no rule matches goes on to the other hooks.
    pub pre_dnat: Direction,
    /// Host endpoints only: `doNotTrack` policies.
    pub untracked: HostHook,
    /// Names of profiles, asked in this order if no tier has decided.
    pub profiles: Vec<String>,
    /// A selector, tier or rule that concerns this endpoint cannot be understood: everything is denied, for this reason.
    pub closed: Option<String>,
}

/// Which device an endpoint's packets pass.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Interface {
    /// This one.
    Named(String),
    /// Every device of the host that is not a workload's (`*`).
    All,
    /// The one that has one of these addresses (`expectedIPs` without `interfaceName`).
    WithAddress(Vec<IpAddr>),
}

/// Both directions of a host endpoint's hook.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostHook {
    /// To the endpoint.
    pub ingress: Direction,
    /// From the endpoint.
    pub egress: Direction,
}

/// The tiers that apply in one direction, in order. A tier none of whose policies applies here is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Direction {
    /// Tiers, the first one asked first. Endpoints with the same policies share them.
    pub tiers: Arc<[Tier]>,
}

/// The policies of one tier that apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tier {
    /// Its name.
    pub name: String,
    /// Enforced policies, in order. Empty if only staged ones apply; then the end is [`TierEnd::Pass`].
    pub policies: Vec<PolicyId>,
    /// Staged policies, in order: for reports alone.
    pub staged: Vec<Staged>,
    /// What happens to a packet that no rule of these policies matched.
    pub end: TierEnd,
}

/// A staged policy that would be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Staged {
    /// Which.
    pub id: PolicyId,
    /// How many of the tier's enforced policies would be asked before it.
    pub after: usize,
    /// What would happen at the end of the tier.
    pub end: TierEnd,
}

/// What happens at the end of a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TierEnd {
    /// Dropped.
    Deny,
    /// The next tier is asked.
    Pass,
}

/// A policy by kind, namespace and name.
pub type PolicyId = Key;

/// The rules of a policy. Equal ones are shared.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    /// Its tier.
    pub tier: String,
    /// Its selector in canonical form: for people.
    pub selector: String,
    /// For packets to an endpoint, in order.
    pub ingress: Arc<[Rule]>,
    /// For packets from an endpoint, in order.
    pub egress: Arc<[Rule]>,
}

impl Policy {
    /// The rules of both directions.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.ingress.iter().chain(&*self.egress)
    }
}

/// The rules of a profile. They are the same kind of rules; `Pass` is not possible.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profile {
    /// For packets to an endpoint, in order.
    pub ingress: Arc<[Rule]>,
    /// For packets from an endpoint, in order.
    pub egress: Arc<[Rule]>,
    /// It does not exist: it has no rules, so what reaches it is denied at the end.
    pub missing: bool,
}

impl Profile {
    /// The rules of both directions.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.ingress.iter().chain(&*self.egress)
    }
}

/// One rule. All its parts must match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Which rule of the policy as written this comes from, from 0: some become several.
    pub index: usize,
    /// What happens to a packet that matches.
    pub action: Action,
    /// The family, if only one can match.
    pub family: Option<Family>,
    /// IP protocol number.
    pub protocol: Option<u8>,
    /// Any other protocol number.
    pub not_protocol: Option<u8>,
    /// ICMP or ICMPv6 (as `protocol` says) type, and code if given.
    pub icmp: Option<(u8, Option<u8>)>,
    /// No packet with this type, and code if given.
    pub not_icmp: Option<(u8, Option<u8>)>,
    /// Where the packet comes from.
    pub source: Side,
    /// Where it goes.
    pub destination: Side,
}

impl Rule {
    /// Whether there is no packet that it does not match.
    pub fn matches_everything(&self) -> bool {
        let Self {
            index: _,
            action: _,
            family,
            protocol,
            not_protocol,
            icmp,
            not_icmp,
            source,
            destination,
        } = self;
        let is_open = |side: &Side| *side == Side::default();
        let no_protocol = protocol.is_none() && not_protocol.is_none() && icmp.is_none() && not_icmp.is_none();
        family.is_none() && no_protocol && is_open(source) && is_open(destination)
    }
}

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// One side of a packet. All parts must match; an empty part matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Side {
    /// In one of these.
    pub nets: Vec<IpNet>,
    /// In none of these.
    pub not_nets: Vec<IpNet>,
    /// In every one of these ([`SetKind::Nets`]).
    pub sets: Vec<SetId>,
    /// In none of these ([`SetKind::Nets`]).
    pub not_sets: Vec<SetId>,
    /// The port is in one of these ranges (both ends included), or address, protocol and port are in one of `named_ports`.
    pub ports: Vec<(u16, u16)>,
    /// See `ports` ([`SetKind::Ports`]).
    pub named_ports: Vec<SetId>,
    /// The port is in none of these ranges.
    pub not_ports: Vec<(u16, u16)>,
    /// Address, protocol and port are in none of these ([`SetKind::Ports`]).
    pub not_named_ports: Vec<SetId>,
    /// Address, protocol and port are in one of these ([`SetKind::Ports`]): services as destination.
    pub services: Vec<SetId>,
}

/// A set, by what defines it: the same selector has the same id on every node and after every restart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetId(pub String);

/// Addresses, or addresses with ports, that labels or names stand for.
#[derive(Clone, Debug, PartialEq)]
pub struct Set {
    /// What its members look like.
    pub kind: SetKind,
    /// What it stands for, as text for people: the canonical selector, or the service.
    pub meaning: String,
    /// Its members. Those of [`SetKind::Nets`] never overlap: what lies in another member is left out.
    pub members: BTreeSet<Member>,
}

/// What the members of a set look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetKind {
    /// [`Member::Net`].
    Nets,
    /// [`Member::Port`].
    Ports,
}

/// One member of a set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Member {
    /// A prefix, masked.
    Net(IpNet),
    /// Address, protocol number, port.
    Port(IpAddr, u8, u16),
}
