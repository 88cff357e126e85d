//! Rules of policies and profiles (upstream `policy_common.go`).

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::metadata::check_annotations;
use crate::problem::Problems;
use crate::value::{Port, Protocol, check, net};

/// Matches packets; all its parts must match. The action decides what happens then.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// What happens to a packet that matches.
    pub action: Action,
    /// 4 or 6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_version: Option<u8>,
    /// The protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// ICMP type and code; the protocol must be ICMP or ICMPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<IcmpMatch>,
    /// Any other protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_protocol: Option<Protocol>,
    /// Any other ICMP type and code.
    #[serde(default, rename = "notICMP", skip_serializing_if = "Option::is_none")]
    pub not_icmp: Option<IcmpMatch>,
    /// Where the packet comes from.
    #[serde(default, skip_serializing_if = "EntityRule::is_any")]
    pub source: EntityRule,
    /// Where it goes.
    #[serde(default, skip_serializing_if = "EntityRule::is_any")]
    pub destination: EntityRule,
    /// The HTTP request in it; only with Allow, and TCP if any protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpMatch>,
    /// Notes on the rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<RuleMetadata>,
}

/// What happens to a packet that matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// It may pass; no further rule is asked.
    Allow,
    /// It is dropped.
    Deny,
    /// It is logged; the next rule is asked.
    Log,
    /// The next tier is asked; in the last one, the profiles.
    Pass,
}

/// An ICMP type, and perhaps a code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IcmpMatch {
    /// 0 to 254.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<u8>,
    /// 0 to 255; only with a type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<u8>,
}

/// One side of a packet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EntityRule {
    /// Its address is in one of these, at most 256.
    #[serde(skip_serializing_if = "Vec::is_empty", with = "net::many")]
    pub nets: Vec<IpNet>,
    /// It is an endpoint or network set with such labels.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub selector: String,
    /// It is in a namespace with such labels; `global()` for what is in none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace_selector: String,
    /// It is an endpoint of a Service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub services: Option<ServiceMatch>,
    /// Its port is one of these, at most 50.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// Its address is in none of these, at most 256.
    #[serde(skip_serializing_if = "Vec::is_empty", with = "net::many")]
    pub not_nets: Vec<IpNet>,
    /// It is no endpoint or network set with such labels.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub not_selector: String,
    /// Its port is none of these, at most 50.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_ports: Vec<Port>,
    /// It runs under one of these service accounts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_accounts: Option<ServiceAccountMatch>,
}

/// A Kubernetes Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceMatch {
    /// Its name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Its namespace; the policy's if empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
}

/// Kubernetes service accounts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceAccountMatch {
    /// By name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// By labels.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub selector: String,
}

/// HTTP requests: one of the methods and one of the paths.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HttpMatch {
    /// At most 20; empty means any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// At most 20; empty means any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<HttpPath>,
}

/// An HTTP path: exactly one of the two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HttpPath {
    /// The whole path.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub exact: String,
    /// How it starts.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub prefix: String,
}

/// Notes on a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RuleMetadata {
    /// Annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

const ICMP: u8 = 1;
const TCP: u8 = 6;
const ICMP_V6: u8 = 58;

impl Rule {
    /// A rule that does this to every packet.
    pub fn any(action: Action) -> Self {
        Self {
            action,
            ip_version: None,
            protocol: None,
            icmp: None,
            not_protocol: None,
            not_icmp: None,
            source: EntityRule::default(),
            destination: EntityRule::default(),
            http: None,
            metadata: None,
        }
    }

    /// Reports what is wrong with the rule; paths start below it.
    pub fn check(&self, problems: &mut Problems) {
        if let Some(version) = self.ip_version.filter(|version| ![4, 6].contains(version)) {
            problems.report("ipVersion", version, "must be 4 or 6");
        }
        self.check_protocol(problems);
        self.check_families(problems);
        let has_ports = self.protocol.as_ref().is_some_and(Protocol::has_ports);
        problems.within("source", |problems| self.source.check(has_ports, problems));
        problems.within("destination", |problems| {
            self.destination.check(has_ports, problems);
            if self.destination.services.is_some() {
                for (field, ports) in [
                    ("ports", &self.destination.ports),
                    ("notPorts", &self.destination.not_ports),
                ] {
                    if !ports.is_empty() {
                        problems.missing(field, "must be absent with services, which bring their ports");
                    }
                }
            }
        });
        if let Some(http) = &self.http {
            problems.within("http", |problems| http.check(problems));
            if self.action != Action::Allow {
                problems.missing("http", "must be absent: only rules with action Allow may look at HTTP");
            }
            if let Some(protocol) = self.protocol.as_ref().filter(|protocol| protocol.number() != Some(TCP)) {
                problems.report("protocol", protocol, "must be TCP or absent with http");
            }
        }
        if let Some(metadata) = &self.metadata {
            problems.within("metadata", |problems| {
                check_annotations(&metadata.annotations, problems)
            });
        }
    }

    fn check_protocol(&self, problems: &mut Problems) {
        for (field, protocol) in [("protocol", &self.protocol), ("notProtocol", &self.not_protocol)] {
            let Some(protocol) = protocol else { continue };
            let Some(number) = protocol.number() else {
                problems.report(field, protocol, Protocol::RIGHT);
                continue;
            };
            let version = match number {
                ICMP => 4,
                ICMP_V6 => 6,
                _ => continue,
            };
            if let Some(other) = self.ip_version.filter(|other| *other != version) {
                problems.report("ipVersion", other, format!("must be {version} with {field} {protocol}"));
            }
        }
        for (field, icmp) in [("icmp", &self.icmp), ("notICMP", &self.not_icmp)] {
            let Some(icmp) = icmp else { continue };
            problems.within(field, |problems| {
                if icmp.kind == Some(255) {
                    problems.report("type", 255, "must be from 0 to 254");
                }
                if let (Some(code), None) = (icmp.code, icmp.kind) {
                    problems.report("code", code, "must be absent without a type");
                }
            });
            let number = self.protocol.as_ref().and_then(Protocol::number);
            if field == "icmp" && number != Some(ICMP) && number != Some(ICMP_V6) {
                problems.missing("icmp", "must be absent unless protocol is ICMP or ICMPv6");
            }
        }
    }

    /// All prefixes of a rule are of one family, and of that of `ipVersion`.
    fn check_families(&self, problems: &mut Problems) {
        let lists = [
            ("source.nets", &self.source.nets),
            ("source.notNets", &self.source.not_nets),
            ("destination.nets", &self.destination.nets),
            ("destination.notNets", &self.destination.not_nets),
        ];
        let version = |net: &IpNet| if net.addr().is_ipv4() { 4 } else { 6 };
        let first = lists.iter().find_map(|(_, nets)| nets.first()).map(version);
        for (field, nets) in lists {
            if let Some(odd) = nets.iter().find(|net| Some(version(net)) != first) {
                problems.report(field, odd, "must be of the family of the rule's other prefixes");
            }
            if let Some(wanted) = self.ip_version
                && let Some(odd) = nets.iter().find(|net| version(net) != wanted)
            {
                problems.report(field, odd, format!("must be of ipVersion {wanted}"));
            }
        }
    }
}

impl EntityRule {
    /// Whether it matches every packet.
    pub fn is_any(&self) -> bool {
        *self == EntityRule::default()
    }

    fn check(&self, has_ports: bool, problems: &mut Problems) {
        for (field, nets) in [("nets", &self.nets), ("notNets", &self.not_nets)] {
            check::at_most(field, nets.len(), 256, problems);
            problems.each(field, nets, |problems, net| check::masked("", *net, problems));
        }
        problems.each("notNets", &self.not_nets, |problems, net| {
            if net.prefix_len() == 0 {
                problems.report("", net, "must not be every address: the rule would match nothing");
            }
        });
        check::selector("selector", &self.selector, problems);
        check::selector("notSelector", &self.not_selector, problems);
        check::namespace_selector("namespaceSelector", &self.namespace_selector, problems);
        for (field, ports) in [("ports", &self.ports), ("notPorts", &self.not_ports)] {
            check::at_most(field, ports.len(), 50, problems);
            problems.each(field, ports, |problems, port| {
                if let Some(right) = port.problem() {
                    problems.report("", port, right);
                }
            });
            // A named port brings its protocol along.
            if let Some(port) = ports.iter().find(|port| !port.is_named() && !has_ports) {
                problems.report(field, port, "needs protocol TCP, UDP or SCTP");
            }
        }
        if let Some(services) = &self.services {
            self.check_services(services, problems);
        }
        if let Some(accounts) = &self.service_accounts {
            problems.within("serviceAccounts", |problems| {
                check::selector("selector", &accounts.selector, problems)
            });
        }
    }

    fn check_services(&self, services: &ServiceMatch, problems: &mut Problems) {
        problems.within("services", |problems| {
            if services.name.is_empty() {
                problems.missing("name", "is required");
            }
            check::name("name", &services.name, problems);
            check::name("namespace", &services.namespace, problems);
        });
        let others = [
            ("selector", !self.selector.is_empty()),
            ("notSelector", !self.not_selector.is_empty()),
            ("namespaceSelector", !self.namespace_selector.is_empty()),
            ("nets", !self.nets.is_empty()),
            ("notNets", !self.not_nets.is_empty()),
            ("serviceAccounts", self.service_accounts.is_some()),
        ];
        for (field, _) in others.iter().filter(|(_, set)| *set) {
            problems.missing(field, "must be absent with services");
        }
    }
}

impl HttpMatch {
    fn check(&self, problems: &mut Problems) {
        check::at_most("methods", self.methods.len(), 20, problems);
        check::at_most("paths", self.paths.len(), 20, problems);
        let mut seen = BTreeSet::new();
        problems.each("methods", &self.methods, |problems, method| {
            if !seen.insert(method) {
                problems.report("", method, "must occur once");
            }
        });
        problems.each("paths", &self.paths, |problems, path| {
            let (field, text) = match (path.exact.as_str(), path.prefix.as_str()) {
                ("", "") => return problems.missing("", "must have `exact` or `prefix`"),
                (_, "") => ("exact", &path.exact),
                ("", _) => ("prefix", &path.prefix),
                _ => return problems.missing("", "must have only one of `exact` and `prefix`"),
            };
            // RFC 3986 section 3.3
            if !text.starts_with('/') || text.contains(['?', ' ', '#']) {
                problems.report(field, text, "must start with `/` and have no `?`, `#` or space");
            }
            if text.len() > 1024 {
                problems.report(field, text, "must have at most 1024 characters");
            }
        });
    }
}
