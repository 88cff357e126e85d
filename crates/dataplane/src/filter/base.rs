//! The filter hooks: which chain decides about a packet, by the device it came from or goes to.
//!
//! A packet between two pods passes two base chains of the same hook: `filter-FORWARD` asks the sender's side,
//! `filter-FORWARD-to` the receiver's. `accept` ends one of them, so each can be understood alone.

use std::collections::{BTreeMap, BTreeSet};

use kernel::IpFamily;
use kernel::nft::*;

use super::endpoint::{accept, drop, goto, jump, mark_forwarded};
use super::limits::Limits;
use super::names::{self, Prefix};
use super::rule::Stage;
use super::settings::{Cluster, DenyAction, Nat, ServiceLoop, Settings, ToHost};

pub(crate) const ICMP_V6: u8 = 58;
const IPIP: u8 = 4;
const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
const BGP: u16 = 179;

/// ICMPv6 that pods may always send to their host: listener queries, reports, done; router and neighbour solicitation and
/// advertisement of neighbours (upstream's list).
const FROM_PODS: [u8; 6] = [130, 131, 132, 133, 135, 136];
/// ICMPv6 without which a host endpoint's IPv6 is dead: discovery of routers and neighbours.
const DISCOVERY: [u8; 4] = [133, 134, 135, 136];

/// Set of device and verdict for pods, by direction.
pub(crate) const FROM_ENDPOINT: &str = "cali-from-endpoint";
pub(crate) const TO_ENDPOINT: &str = "cali-to-endpoint";
/// Set of the addresses of pods of this host.
pub(crate) const LOCAL_PODS: &str = "local-pods";
/// Chain of the ICMPv6 that host endpoints never close.
pub(crate) const HOST_DISCOVERY: &str = "cali-host-nd";

/// All that the chains which belong to no endpoint depend on.
pub(crate) struct Frame<'a> {
    pub settings: &'a Settings,
    pub cluster: &'a Cluster,
    pub nat: &'a Nat,
    pub limits: &'a Limits,
    /// Families in which a pod may send from a prefix of its own.
    pub spoofable: &'a BTreeSet<IpFamily>,
    /// By prefix of its chains: each direction and stage of host endpoints that there is.
    pub hosts: &'a BTreeMap<Prefix, HostDispatch>,
}

/// Devices of host endpoints at one stage, in one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostDispatch {
    /// Devices that an endpoint names or has by address.
    pub devices: BTreeMap<String, ElementVerdict>,
    /// For every other device.
    pub any: Option<ChainName>,
}

/// A chain with its rules.
pub(crate) type Rendered = (Chain, Vec<Rule>);

/// The base chain that every table of an agent has, with rules in it: by it a table is known that an agent has made, of whatever version.
pub(super) const FORWARD: &str = "filter-FORWARD";

impl Frame<'_> {
    /// Every chain that belongs to no endpoint, policy or profile.
    pub fn chains(&self) -> Vec<Rendered> {
        let mut chains = self.early_chains();
        chains.extend(self.nat_chains());
        chains.extend(self.filter_chains());
        chains.extend(self.limit_chains());
        // The kernel would call one without rules for each packet.
        chains.retain(|(chain, rules)| chain.base.is_none() || !rules.is_empty());
        chains
    }

    fn filter_chains(&self) -> Vec<Rendered> {
        let mut chains = vec![
            base(FORWARD, Hook::Forward, 0, self.forward_from()),
            base("filter-FORWARD-to", Hook::Forward, 1, self.forward_to()),
            base("filter-INPUT", Hook::Input, 0, self.input()),
            base("filter-INPUT-to-host", Hook::Input, 1, self.input_to_host()),
            base("filter-OUTPUT", Hook::Output, 0, self.output()),
            base("mangle-POSTROUTING", Hook::Postrouting, -150, self.translated_output()),
            regular("cali-from-wl-dispatch", self.sent_by_pods()),
            regular("cali-to-wl-dispatch", self.to_pods()),
            regular("cali-wl-to-host", {
                let icmp = jump(vec![protocol(ICMP_V6)], "cali-wl-icmpv6".into());
                vec![icmp, goto(Vec::new(), "cali-from-wl-dispatch")]
            }),
            regular("cali-wl-icmpv6", FROM_PODS.map(icmp_v6).to_vec()),
        ];
        if !self.hosts.is_empty() {
            chains.push(regular(HOST_DISCOVERY, DISCOVERY.map(icmp_v6).to_vec()));
        }
        if self.hosts.contains_key(&Prefix::ToHost) {
            chains.push(regular("cali-from-this-host", self.sent_by_host()));
        }
        if self.blocks_services() {
            chains.push(regular("cali-cidr-block", self.service_block()));
        }
        if self.cluster.ipip {
            let reason = "IP-in-IP from a host that is no node";
            chains.push(regular("cali-ipip", self.sent_by_nodes(reason, &[IpFamily::V4])));
        }
        if self.cluster.vxlan {
            let reason = "VXLAN from a host that is no node";
            chains.push(regular("cali-vxlan", self.sent_by_nodes(reason, &IpFamily::BOTH)));
        }
        for prefix in self.hosts.keys() {
            chains.push(regular(dispatch_name(*prefix), self.host_dispatch(*prefix)));
        }
        chains
    }

    /// Forwarded packets, where they come from.
    fn forward_from(&self) -> Vec<Rule> {
        let mut rules = self.ended();
        rules.push(established());
        rules.extend(self.pods(Way::In, "cali-from-wl-dispatch"));
        rules.extend(self.accepted_early(Prefix::FromHostForward));
        rules.extend(self.to_hosts(Prefix::FromHostForward));
        rules
    }

    /// Forwarded packets, where they go.
    fn forward_to(&self) -> Vec<Rule> {
        let mut rules = vec![established()];
        if self.hosts.contains_key(&Prefix::FromHostForward) {
            rules.extend(mark_forwarded(self.settings, false));
        }
        rules.extend(self.pods(Way::Out, "cali-to-wl-dispatch"));
        if self.blocks_services() {
            rules.push(jump(Vec::new(), "cali-cidr-block".into()));
        }
        rules.extend(self.to_hosts(Prefix::ToHostForward));
        rules
    }

    /// Packets for this host: from pods their own egress policy, from elsewhere the host endpoint's.
    fn input(&self) -> Vec<Rule> {
        // What a tunnel brings is judged for each packet: an address that is no node's any more is refused at once.
        let mut rules = Vec::new();
        if self.cluster.ipip {
            rules.push(goto(vec![protocol(IPIP)], "cali-ipip"));
        }
        if self.cluster.vxlan {
            rules.push(goto(self.vxlan(), "cali-vxlan"));
        }
        rules.extend(self.ended());
        rules.push(established());
        rules.extend(self.pods(Way::In, "cali-wl-to-host"));
        rules.extend(self.accepted_early(Prefix::FromHost));
        if self.hosts.contains_key(&Prefix::FromHost) {
            rules.extend(self.bgp(End::Source));
        }
        rules.extend(self.to_hosts(Prefix::FromHost));
        rules
    }

    /// Packets from pods for this host, after policy.
    fn input_to_host(&self) -> Vec<Rule> {
        match self.settings.endpoint_to_host {
            ToHost::Accept | ToHost::Return => Vec::new(),
            ToHost::Drop => {
                let mut rules = vec![established()];
                for prefix in &self.settings.interface_prefixes {
                    let from_pod = || device(Way::In, &format!("{prefix}*"));
                    rules.push(jump(vec![from_pod(), protocol(ICMP_V6)], "cali-wl-icmpv6".into()));
                    let comment = "defaultEndpointToHostAction";
                    rules.push(drop(self.settings, Stage::Normal, vec![from_pod()], comment));
                }
                rules
            }
        }
    }

    /// Packets from this host. At this hook a packet whose destination was translated still has the device it would have taken
    /// without: it is asked about later, when the real one is known. There the kernel takes no refusals, so where packets are
    /// refused the old device has to do, except for pods of this host.
    fn output(&self) -> Vec<Rule> {
        let mut rules = self.ended();
        if self.settings.deny == DenyAction::Reject {
            // What tells somebody that the flow is cut, a reset or an error, is a packet of this host that belongs to the flow.
            let not_about_it = states(&[CtState::New, CtState::Established]);
            rules
                .iter_mut()
                .for_each(|rule| rule.matches.push(not_about_it.clone()));
        }
        if !self.hosts.contains_key(&Prefix::ToHost) {
            return rules;
        }
        rules.push(established());
        match self.settings.deny {
            DenyAction::Drop => rules.push(accept(
                vec![Match::Translated],
                Some("asked about in mangle-POSTROUTING"),
            )),
            DenyAction::Reject => rules.extend(IpFamily::BOTH.map(|family| {
                let to_pod = Match::InSet {
                    key: vec![Field::Address(family, End::Destination)],
                    negate: false,
                    set: names::of_family(LOCAL_PODS, family),
                };
                accept(vec![Match::Translated, to_pod], Some("to a pod of this host"))
            })),
        }
        rules.push(goto(Vec::new(), "cali-from-this-host"));
        rules
    }

    /// Packets from this host whose destination was translated.
    fn translated_output(&self) -> Vec<Rule> {
        if !self.hosts.contains_key(&Prefix::ToHost) || self.settings.deny == DenyAction::Reject {
            return Vec::new();
        }
        let ours = vec![Match::NoInterface(Way::In), Match::Translated];
        vec![established(), goto(ours, "cali-from-this-host")]
    }

    /// Pods are not protected from their own host, as upstream: probes must reach them.
    fn sent_by_host(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        for prefix in &self.settings.interface_prefixes {
            rules.push(accept(
                vec![device(Way::Out, &format!("{prefix}*"))],
                Some("to a pod of this host"),
            ));
        }
        rules.extend(self.accepted_early(Prefix::ToHost));
        let mut to_node = |conditions: Vec<Match>, family: IpFamily| {
            let matches = conditions.into_iter().chain([node(family, End::Destination)]).collect();
            rules.push(accept(matches, Some("tunnel to a node")));
        };
        if self.cluster.ipip {
            to_node(vec![protocol(IPIP)], IpFamily::V4);
        }
        if self.cluster.vxlan {
            IpFamily::BOTH
                .into_iter()
                .for_each(|family| to_node(self.vxlan(), family));
        }
        rules.extend(self.bgp(End::Destination));
        rules.extend(self.to_hosts(Prefix::ToHost));
        rules
    }

    fn sent_by_pods(&self) -> Vec<Rule> {
        let mut rules = self.invalid();
        let drop = |matches, comment| drop(self.settings, Stage::Untracked, matches, comment);
        if !self.settings.allow_ipip_from_pods {
            rules.push(drop(vec![protocol(IPIP)], "IP-in-IP from a pod"));
        }
        if !self.settings.allow_vxlan_from_pods {
            rules.push(drop(self.vxlan(), "VXLAN from a pod"));
        }
        rules.push(lookup(Way::In, FROM_ENDPOINT));
        rules.push(drop(Vec::new(), "pod without policy"));
        rules
    }

    fn to_pods(&self) -> Vec<Rule> {
        let mut rules = self.invalid();
        rules.push(lookup(Way::Out, TO_ENDPOINT));
        rules.push(drop(self.settings, Stage::Untracked, Vec::new(), "pod without policy"));
        rules
    }

    /// Flows that a change of policy has forbidden, both directions.
    fn ended(&self) -> Vec<Rule> {
        let ended = || drop(self.settings, Stage::Normal, vec![Match::Ended], "flow cut by policy");
        self.settings.cut_flows.then(ended).into_iter().collect()
    }

    /// Packets that conntrack can make no sense of.
    pub fn invalid(&self) -> Vec<Rule> {
        let invalid = || {
            drop(
                self.settings,
                Stage::Untracked,
                vec![states(&[CtState::Invalid])],
                "invalid",
            )
        };
        (!self.settings.disable_invalid_check)
            .then(invalid)
            .into_iter()
            .collect()
    }

    /// A destination that is a service's address should have been translated: it would come back for ever.
    fn service_block(&self) -> Vec<Rule> {
        let block = |family: IpFamily| {
            let to_service = Match::InSet {
                key: vec![Field::Address(family, End::Destination)],
                negate: false,
                set: names::of_family("services", family),
            };
            let mut rule = drop(self.settings, Stage::Untracked, vec![to_service], "service loop");
            if self.settings.service_loop == ServiceLoop::Reject {
                rule.actions.push(Statement::Reject);
                rule.verdict = None;
            }
            rule
        };
        IpFamily::BOTH.map(block).to_vec()
    }

    fn blocks_services(&self) -> bool {
        self.settings.service_loop != ServiceLoop::Disabled && !self.cluster.services.is_empty()
    }

    fn sent_by_nodes(&self, reason: &str, families: &[IpFamily]) -> Vec<Rule> {
        let from_node = |family: &IpFamily| accept(vec![node(*family, End::Source)], None);
        let mut rules: Vec<Rule> = families.iter().map(from_node).collect();
        rules.push(drop(self.settings, Stage::Untracked, Vec::new(), reason));
        rules
    }

    /// Sessions between nodes stay up whatever policy says of host endpoints.
    fn bgp(&self, other: End) -> Vec<Rule> {
        let port = Match::Port {
            end: End::Destination,
            negate: false,
            ranges: vec![(BGP, BGP)],
        };
        let open = |family| {
            accept(
                vec![protocol(TCP), port.clone(), node(family, other)],
                Some("BGP of a node"),
            )
        };
        IpFamily::BOTH.map(open).to_vec()
    }

    fn vxlan(&self) -> Vec<Match> {
        let port = self.settings.vxlan_port;
        vec![
            protocol(UDP),
            Match::Port {
                end: End::Destination,
                negate: false,
                ranges: vec![(port, port)],
            },
        ]
    }

    /// What an early policy of a host endpoint allowed is not asked about again.
    fn accepted_early(&self, prefix: Prefix) -> Option<Rule> {
        let bit = self.settings.accepted_bit();
        let marked = Match::Mark {
            mask: bit,
            value: bit,
            negate: false,
        };
        let asked = self.hosts.contains_key(&prefix) && self.has_early();
        asked.then(|| accept(vec![marked], Some("allowed by an early policy")))
    }

    /// Whether host endpoints have policies that are asked before routing.
    pub fn has_early(&self) -> bool {
        let early = [
            Prefix::FromHostPreDnat,
            Prefix::FromHostUntracked,
            Prefix::ToHostUntracked,
        ];
        early.iter().any(|prefix| self.hosts.contains_key(prefix))
    }

    /// One rule for each beginning of pods' device names.
    pub fn pods<'a>(&'a self, way: Way, chain: &'a str) -> impl Iterator<Item = Rule> + 'a {
        let prefixes = self.settings.interface_prefixes.iter();
        prefixes.map(move |prefix| goto(vec![device(way, &format!("{prefix}*"))], chain))
    }

    pub fn to_hosts(&self, prefix: Prefix) -> Option<Rule> {
        self.hosts
            .contains_key(&prefix)
            .then(|| goto(Vec::new(), dispatch_name(prefix)))
    }

    /// Endpoints that name a device, or have its address, before the one for all devices. The host's talk with itself is
    /// nobody's.
    fn host_dispatch(&self, prefix: Prefix) -> Vec<Rule> {
        let (way, map) = (way_of(prefix), dispatch_map(prefix));
        let mut rules = vec![lookup(way, map)];
        let any = self.hosts.get(&prefix).and_then(|dispatch| dispatch.any.as_ref());
        if let Some(chain) = any {
            rules.push(accept(vec![device(way, "lo")], Some("loopback")));
            rules.push(goto(Vec::new(), &chain.0));
        }
        rules
    }
}

/// The chain that finds the host endpoint of a packet.
pub(crate) fn dispatch_name(prefix: Prefix) -> &'static str {
    match prefix {
        Prefix::FromHostForward => "cali-from-hep-forward",
        Prefix::ToHostForward => "cali-to-hep-forward",
        Prefix::FromHostPreDnat => "cali-from-hep-pre-dnat",
        Prefix::FromHostUntracked => "cali-from-hep-untracked",
        Prefix::ToHostUntracked => "cali-to-hep-untracked",
        Prefix::ToHost => "cali-to-host-endpoint",
        _ => "cali-from-host-endpoint",
    }
}

/// The map of that chain.
pub(crate) fn dispatch_map(prefix: Prefix) -> &'static str {
    match prefix {
        Prefix::FromHostForward => "cali-from-hep-forward-devices",
        Prefix::ToHostForward => "cali-to-hep-forward-devices",
        Prefix::FromHostPreDnat => "cali-from-hep-pre-dnat-devices",
        Prefix::FromHostUntracked => "cali-from-hep-untracked-devices",
        Prefix::ToHostUntracked => "cali-to-hep-untracked-devices",
        Prefix::ToHost => "cali-to-host-endpoint-devices",
        _ => "cali-from-host-endpoint-devices",
    }
}

fn way_of(prefix: Prefix) -> Way {
    match prefix {
        Prefix::ToHost | Prefix::ToHostForward | Prefix::ToHostUntracked => Way::Out,
        _ => Way::In,
    }
}

/// A base chain of filter kind that accepts what no rule decides.
pub(crate) fn base(name: &str, hook: Hook, priority: i32, rules: Vec<Rule>) -> Rendered {
    let base = BaseChain {
        kind: ChainKind::Filter,
        hook,
        priority,
        drop: false,
    };
    let chain = Chain {
        name: name.into(),
        base: Some(base),
    };
    (chain, rules)
}

/// A chain that only rules call.
pub(crate) fn regular(name: &str, rules: Vec<Rule>) -> Rendered {
    let chain = Chain {
        name: name.into(),
        base: None,
    };
    (chain, rules)
}

/// What belongs to a flow that was allowed once.
pub(crate) fn established() -> Rule {
    accept(vec![states(&[CtState::Established, CtState::Related])], None)
}

pub(crate) fn states(states: &[CtState]) -> Match {
    Match::Conntrack(states.iter().copied().collect())
}

pub(crate) fn protocol(number: u8) -> Match {
    Match::Protocol { negate: false, number }
}

pub(crate) fn device(way: Way, name: &str) -> Match {
    Match::Interface {
        way,
        negate: false,
        name: name.to_owned(),
    }
}

/// Looks a device up in a map of verdicts.
pub(crate) fn lookup(way: Way, map: &str) -> Rule {
    Rule {
        verdict: Some(Verdict::Map {
            key: vec![Field::Interface(way)],
            map: map.into(),
        }),
        ..Rule::default()
    }
}

/// The address is a node's.
pub(crate) fn node(family: IpFamily, end: End) -> Match {
    Match::InSet {
        key: vec![Field::Address(family, end)],
        negate: false,
        set: names::of_family("nodes", family),
    }
}

fn icmp_v6(kind: u8) -> Rule {
    let icmp = Match::Icmp {
        negate: false,
        kind,
        code: None,
    };
    accept(vec![protocol(ICMP_V6), icmp], None)
}
