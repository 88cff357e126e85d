//! What selectors of rules can pick: who has which labels, profiles, addresses and named ports.

use std::borrow::Cow;
use std::collections::BTreeMap;

use api::resource::{GlobalNetworkSet, HostEndpoint, NetworkSet, WorkloadEndpoint};
use ipnet::IpNet;

use crate::rules::{FROM_ACCOUNT, FROM_NAMESPACE, NAMESPACE, ORCHESTRATOR, SERVICE_ACCOUNT};

/// In front of a namespace's name in the name of its profile.
const NAMESPACE_PROFILE: &str = "kns.";
/// Service accounts with longer names make no label.
const LONGEST_ACCOUNT: usize = 62;

/// An endpoint anywhere, or a network set.
#[derive(Clone, Debug)]
pub(crate) struct MemberFacts<'a> {
    /// Labels that follow from where it is.
    pub implied: [Option<(&'static str, &'a str)>; 3],
    labels: &'a BTreeMap<String, String>,
    forbidden: Forbidden,
    /// Profiles that it inherits labels from, the first one winning.
    pub profiles: Cow<'a, [String]>,
    /// Its addresses, masked.
    pub nets: Cow<'a, [IpNet]>,
    /// Its named ports.
    pub ports: Vec<NamedPort>,
}

/// Labels that nobody can claim for himself, besides those that are implied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Forbidden {
    /// None: only administrators write such a resource.
    Nothing,
    /// Those of namespaces and service accounts: it is in a namespace.
    Inherited,
    /// Also that of a service account, because its own makes none.
    InheritedAndAccount,
}

/// A port of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NamedPort {
    pub name: String,
    pub protocol: u8,
    pub port: u16,
}

impl MemberFacts<'_> {
    /// Its own labels, without those by which it would pretend to be somewhere else.
    pub fn own(&self) -> impl Iterator<Item = (&str, &str)> + Clone {
        let labels = self.labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        labels.filter(|(name, _)| {
            let mut implied = self.implied.iter().flatten();
            !self.forbidden.contains(name) && implied.all(|(label, _)| label != name)
        })
    }
}

impl Forbidden {
    fn contains(self, name: &str) -> bool {
        let is_inherited = || name.starts_with(FROM_NAMESPACE) || name.starts_with(FROM_ACCOUNT);
        match self {
            Forbidden::Nothing => false,
            Forbidden::Inherited => is_inherited(),
            Forbidden::InheritedAndAccount => is_inherited() || name == SERVICE_ACCOUNT,
        }
    }
}

impl<'a> From<&'a WorkloadEndpoint> for MemberFacts<'a> {
    fn from(WorkloadEndpoint { metadata, spec, .. }: &'a WorkloadEndpoint) -> Self {
        let account = spec.service_account_name.as_str();
        let named = spec.ports.iter().filter(|port| !port.name.is_empty());
        let ports = named.filter_map(|port| NamedPort::new(&port.name, &port.protocol, port.port));
        let (implied, forbidden) = match account.len() {
            0 => (None, Forbidden::Inherited),
            1..=LONGEST_ACCOUNT => (Some((SERVICE_ACCOUNT, account)), Forbidden::Inherited),
            _ => (None, Forbidden::InheritedAndAccount),
        };
        Self {
            implied: [
                metadata.namespace.as_deref().map(|namespace| (NAMESPACE, namespace)),
                Some((ORCHESTRATOR, spec.orchestrator.as_str())).filter(|(_, name)| !name.is_empty()),
                implied,
            ],
            labels: &metadata.labels,
            forbidden,
            profiles: Cow::Borrowed(&spec.profiles),
            nets: masked(&spec.ip_networks),
            ports: ports.collect(),
        }
    }
}

impl<'a> From<&'a HostEndpoint> for MemberFacts<'a> {
    fn from(HostEndpoint { metadata, spec, .. }: &'a HostEndpoint) -> Self {
        let ports = spec.ports.iter();
        Self {
            implied: [None; 3],
            labels: &metadata.labels,
            forbidden: Forbidden::Nothing,
            profiles: Cow::Borrowed(&spec.profiles),
            nets: spec.expected_ips.iter().map(|address| IpNet::from(*address)).collect(),
            ports: ports
                .filter_map(|port| NamedPort::new(&port.name, &port.protocol, port.port))
                .collect(),
        }
    }
}

impl<'a> From<&'a NetworkSet> for MemberFacts<'a> {
    fn from(set: &'a NetworkSet) -> Self {
        let namespace = set.metadata.namespace.as_deref();
        let profile = namespace.map(|namespace| format!("{NAMESPACE_PROFILE}{namespace}"));
        Self {
            implied: [namespace.map(|namespace| (NAMESPACE, namespace)), None, None],
            labels: &set.metadata.labels,
            forbidden: Forbidden::Inherited,
            profiles: profile.into_iter().collect(),
            nets: masked(&set.spec.nets),
            ports: Vec::new(),
        }
    }
}

impl<'a> From<&'a GlobalNetworkSet> for MemberFacts<'a> {
    fn from(set: &'a GlobalNetworkSet) -> Self {
        Self {
            implied: [None; 3],
            labels: &set.metadata.labels,
            forbidden: Forbidden::Nothing,
            profiles: Cow::Borrowed(&[]),
            nets: masked(&set.spec.nets),
            ports: Vec::new(),
        }
    }
}

impl NamedPort {
    fn new(name: &str, protocol: &api::Protocol, port: u16) -> Option<Self> {
        Some(Self {
            name: name.to_owned(),
            protocol: protocol.number()?,
            port,
        })
    }
}

fn masked(nets: &[IpNet]) -> Cow<'_, [IpNet]> {
    match nets.iter().all(|net| net.trunc() == *net) {
        true => Cow::Borrowed(nets),
        false => nets.iter().map(IpNet::trunc).collect(),
    }
}
