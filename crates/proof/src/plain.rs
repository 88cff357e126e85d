//! Policy read as it is written, without sets, without anything worked out before: for each packet every rule asks every
//! endpoint and network set whether it is meant.
//!
//! This shares nothing with crate `policy` but the words of the question; what selectors mean is crate `api`'s.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::rc::Rc;

use api::{
    Action, EntityRule, IcmpMatch, Key, Order, PolicyType, Port, Protocol, Resource, Rule, Selector, TierAction,
};
use ipnet::IpNet;
use policy::EndpointId;
use policy::evaluate::{Hook, Outcome, Packet, Way};

use crate::case::Case;

mod read;

const NAMESPACE: &str = "projectcalico.org/namespace";
const ACCOUNT: &str = "projectcalico.org/serviceaccount";
/// Order of the tier that is always there.
const DEFAULT_TIER: (&str, Order) = ("default", Order::whole(1_000_000));
const TCP: u8 = 6;

/// A case, ready to be asked.
pub struct Plain<'a> {
    things: Vec<Thing>,
    policies: Vec<Policy<'a>>,
    tiers: BTreeMap<&'a str, (Order, TierAction)>,
    case: &'a Case,
    selectors: RefCell<HashMap<String, Rc<Option<Selector>>>>,
}

/// What selectors pick: an endpoint or a network set.
struct Thing {
    key: Key,
    labels: BTreeMap<String, String>,
    nets: Vec<IpNet>,
    ports: Vec<(String, u8, u16)>,
    profiles: Vec<String>,
    /// A host endpoint, for all interfaces or not.
    host: Option<bool>,
}

/// What is enforced of a policy.
struct Policy<'a> {
    name: &'a str,
    namespace: Option<&'a str>,
    tier: &'a str,
    order: Order,
    selector: &'a str,
    namespaces: &'a str,
    accounts: &'a str,
    types: Vec<PolicyType>,
    rules: [&'a [Rule]; 2],
    /// `doNotTrack`, `preDNAT`, `applyOnForward`.
    early: [bool; 3],
}

impl<'a> Plain<'a> {
    /// Reads a case.
    pub fn new(case: &'a Case) -> Self {
        let resources = case.resources.values();
        let tier = |resource: &'a Resource| match resource {
            Resource::Tier(tier) => Some((&*tier.metadata.name, (tier.spec.order, tier.spec.action()))),
            _ => None,
        };
        let mut tiers: BTreeMap<&str, (Order, TierAction)> = resources.clone().filter_map(tier).collect();
        tiers.insert(DEFAULT_TIER.0, (DEFAULT_TIER.1, TierAction::Deny));
        Self {
            things: resources
                .clone()
                .filter_map(|resource| read::thing(case, resource))
                .collect(),
            policies: resources.filter_map(read::policy).collect(),
            tiers,
            case,
            selectors: RefCell::default(),
        }
    }

    /// What policy of an endpoint says about a packet. `None`: there is no such endpoint.
    pub fn outcome(&self, id: &EndpointId, hook: Hook, way: Way, packet: &Packet) -> Option<Outcome> {
        let endpoint = self.things.iter().find(|thing| match id {
            EndpointId::Workload(key) => thing.key == *key,
            EndpointId::Host(name) => thing.host.is_some() && thing.key.name == *name,
        })?;
        let mut policies: Vec<&Policy<'_>> = Vec::new();
        for policy in self.policies.iter().filter(|policy| policy.concerns(endpoint)) {
            if !self.applies(policy, endpoint) {
                continue;
            }
            let direction = match way {
                Way::Ingress => PolicyType::Ingress,
                Way::Egress => PolicyType::Egress,
            };
            if policy.is_asked_at(hook) && policy.types.contains(&direction) {
                policies.push(policy);
            }
        }
        let place = |policy: &&Policy<'_>| {
            (
                self.tiers.get(policy.tier).map(|(order, _)| *order),
                policy.tier.to_owned(),
                policy.order,
                policy.name.to_owned(),
            )
        };
        policies.sort_by(|a, b| place(a).partial_cmp(&place(b)).unwrap_or(std::cmp::Ordering::Equal));
        let is_final = matches!(hook, Hook::Normal | Hook::Forward);
        let deny = Rule::any(Action::Deny);
        for tier in policies.chunk_by(|a, b| a.tier == b.tier) {
            let rules = tier.iter().flat_map(|policy| {
                // What cannot be followed denies.
                let rules = match self.is_broken(policy) || !self.tiers.contains_key(policy.tier) {
                    true => std::slice::from_ref(&deny),
                    false => policy.rules[index(way)],
                };
                rules.iter().map(move |rule| (policy.namespace, rule))
            });
            match self.first(rules, packet) {
                Some(Action::Allow) => return Some(Outcome::Allow),
                Some(Action::Deny) => return Some(Outcome::Deny),
                Some(Action::Pass) => {}
                Some(Action::Log) | None => {
                    let end = self.tiers.get(tier[0].tier).map(|(_, end)| *end);
                    if is_final && end == Some(TierAction::Deny) {
                        return Some(Outcome::Deny);
                    }
                }
            }
        }
        if hook != Hook::Normal {
            return Some(Outcome::Undecided);
        }
        for name in &endpoint.profiles {
            let key = Key::cluster(api::Kind::Profile, name);
            let Some(Resource::Profile(profile)) = self.case.resources.get(&key) else {
                continue;
            };
            let rules = [&profile.spec.ingress, &profile.spec.egress][index(way)];
            match self.first(rules.iter().map(|rule| (None, rule)), packet) {
                Some(Action::Allow) => return Some(Outcome::Allow),
                Some(Action::Deny) => return Some(Outcome::Deny),
                Some(Action::Pass | Action::Log) | None => {}
            }
        }
        Some(Outcome::Deny)
    }

    /// The action of the first rule that matches and does not just log.
    fn first<'r>(&self, rules: impl Iterator<Item = (Option<&'r str>, &'r Rule)>, packet: &Packet) -> Option<Action> {
        let mut matching =
            rules.filter(|(namespace, rule)| rule.action != Action::Log && self.matches(*namespace, rule, packet));
        matching.next().map(|(_, rule)| rule.action)
    }

    fn selector(&self, text: &str) -> Rc<Option<Selector>> {
        let mut selectors = self.selectors.borrow_mut();
        let selector = selectors.entry(text.to_owned());
        selector.or_insert_with(|| Rc::new(Selector::parse(text).ok())).clone()
    }

    fn is_broken(&self, policy: &Policy<'_>) -> bool {
        let selectors = [policy.selector, policy.namespaces, policy.accounts];
        !selectors.into_iter().all(|text| self.can_be_read(text))
    }

    fn can_be_read(&self, text: &str) -> bool {
        text.is_empty() || self.selector(text).is_some()
    }

    /// Whether a policy's selectors pick an endpoint. One that cannot be read picks everything.
    fn applies(&self, policy: &Policy<'_>, endpoint: &Thing) -> bool {
        let namespace = endpoint.labels.get(NAMESPACE).map(String::as_str);
        if policy.namespace.is_some_and(|own| namespace != Some(own)) {
            return false;
        }
        (!self.can_be_read(policy.selector) || self.picks(policy.selector, endpoint))
            && (policy.namespaces.is_empty()
                || !self.can_be_read(policy.namespaces)
                || self.picks_by_namespace(policy.namespaces, endpoint))
            && match policy.accounts {
                "" => true,
                accounts if !self.can_be_read(accounts) => true,
                // In a namespace it means all of it, also what has no account.
                "all()" => policy.namespace.is_some() || endpoint.labels.contains_key(ACCOUNT),
                accounts => self.picks_prefixed("pcsa.", accounts, endpoint),
            }
    }

    fn picks(&self, selector: &str, thing: &Thing) -> bool {
        selector.is_empty()
            || (*self.selector(selector))
                .as_ref()
                .is_some_and(|selector| selector.evaluate(&thing.labels))
    }

    fn picks_by_namespace(&self, selector: &str, thing: &Thing) -> bool {
        let is_in_one = thing.labels.contains_key(NAMESPACE);
        match selector {
            "all()" => is_in_one,
            "global()" => !is_in_one,
            selector => self.picks_prefixed("pcns.", selector, thing),
        }
    }

    fn picks_prefixed(&self, prefix: &str, selector: &str, thing: &Thing) -> bool {
        let inherited = thing
            .labels
            .iter()
            .filter_map(|(name, value)| Some((name.strip_prefix(prefix)?.to_owned(), value.clone())));
        let labels: BTreeMap<String, String> = inherited.collect();
        (*self.selector(selector))
            .as_ref()
            .is_some_and(|selector| selector.evaluate(&labels))
    }

    fn matches(&self, namespace: Option<&str>, rule: &Rule, packet: &Packet) -> bool {
        let is_ipv4 = packet.source.is_ipv4();
        let is = |protocol: &Protocol| protocol.number() == Some(packet.protocol);
        let icmp = |icmp: &IcmpMatch| {
            let seen = packet.icmp.filter(|(kind, _)| Some(*kind) == icmp.kind);
            seen.is_some_and(|(_, code)| icmp.code.is_none_or(|asked| asked == code))
        };
        // What names addresses of one family says nothing about the other.
        let mut named = [&rule.source, &rule.destination]
            .into_iter()
            .flat_map(|side| side.nets.iter().chain(&side.not_nets));
        let number = rule.protocol.as_ref().and_then(Protocol::number);
        let end = |address, port, is_destination| End {
            plain: self,
            namespace,
            address,
            port,
            packet,
            named_protocol: number.filter(|number| [17, 132].contains(number)).unwrap_or(TCP),
            is_destination,
        };
        rule.ip_version.is_none_or(|version| (version == 4) == is_ipv4)
            && named.all(|net| matches!(net, IpNet::V4(_)) == is_ipv4)
            && rule.protocol.as_ref().is_none_or(is)
            && !rule.not_protocol.as_ref().is_some_and(is)
            && rule.icmp.as_ref().is_none_or(icmp)
            && !rule.not_icmp.as_ref().is_some_and(icmp)
            && end(packet.source, packet.source_port, false).matches(&rule.source)
            && end(packet.destination, packet.destination_port, true).matches(&rule.destination)
    }
}

/// One end of a packet, for a rule of a policy in a namespace.
struct End<'a> {
    plain: &'a Plain<'a>,
    namespace: Option<&'a str>,
    address: IpAddr,
    port: Option<u16>,
    packet: &'a Packet,
    /// What named ports mean.
    named_protocol: u8,
    is_destination: bool,
}

impl End<'_> {
    fn matches(&self, side: &EntityRule) -> bool {
        let within = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&self.address));
        let unwanted = |thing: &Thing| self.is(thing) && self.plain.picks(&side.not_selector, thing);
        let things = &self.plain.things;
        (side.nets.is_empty() || within(&side.nets))
            && !within(&side.not_nets)
            && (!self.asks_for_things(side) || things.iter().any(|thing| self.is(thing) && self.is_meant(side, thing)))
            && (side.not_selector.is_empty() || !things.iter().any(unwanted))
            && (side.ports.is_empty() || self.has_port(side, &side.ports))
            && !self.has_port(side, &side.not_ports)
            && self.is_served(side)
    }

    /// Whether a side asks for endpoints or network sets with such labels. In a namespace, a selector of what is not meant
    /// asks for something there as well.
    fn asks_for_things(&self, side: &EntityRule) -> bool {
        !side.selector.is_empty()
            || !side.namespace_selector.is_empty()
            || side.service_accounts.is_some()
            || (self.namespace.is_some() && !side.not_selector.is_empty())
    }

    fn is(&self, thing: &Thing) -> bool {
        thing.nets.iter().any(|net| net.contains(&self.address))
    }

    /// Whether everything that a side says about labels is true for one thing.
    fn is_meant(&self, side: &EntityRule, thing: &Thing) -> bool {
        let by_namespace = match (side.namespace_selector.as_str(), self.namespace) {
            ("", Some(own)) if self.asks_for_things(side) => {
                thing.labels.get(NAMESPACE).is_some_and(|namespace| namespace == own)
            }
            ("", _) => true,
            (selector, _) => self.plain.picks_by_namespace(selector, thing),
        };
        let by_account = side.service_accounts.as_ref().is_none_or(|accounts| {
            let named = thing
                .labels
                .get(ACCOUNT)
                .is_some_and(|account| accounts.names.contains(account));
            let selected = match accounts.selector.as_str() {
                "" | "all()" => true,
                selector => self.plain.picks_prefixed("pcsa.", selector, thing),
            };
            (accounts.names.is_empty() || named) && selected
        });
        by_namespace && by_account && self.plain.picks(&side.selector, thing)
    }

    fn has_port(&self, side: &EntityRule, ports: &[Port]) -> bool {
        let Some(port) = self.port else { return false };
        let named = |name: &String| {
            let protocol = self.named_protocol;
            let is = |thing: &Thing| {
                let mut own = thing.ports.iter();
                self.packet.protocol == protocol
                    && own.any(|(called, of, number)| called == name && *of == protocol && *number == port)
                    && self.is(thing)
                    && self.is_meant(side, thing)
            };
            self.plain.things.iter().any(is)
        };
        ports.iter().any(|asked| match asked {
            Port::Range(first, last) => (*first..=*last).contains(&port),
            Port::Named(name) => named(name),
        })
    }

    fn is_served(&self, side: &EntityRule) -> bool {
        let Some(service) = &side.services else { return true };
        self.plain.case.resources.values().any(|resource| {
            let Resource::KubernetesEndpointSlice(slice) = resource else {
                return false;
            };
            let namespace = slice.metadata.namespace.as_deref();
            let is_its = slice.spec.service == service.name && namespace == Some(service.namespace.as_str());
            let mut ports = slice.spec.ports.iter();
            let serves = |port: &api::SlicePort| {
                port.protocol.number() == Some(self.packet.protocol) && Some(port.port) == self.port
            };
            is_its && slice.spec.addresses.contains(&self.address) && (!self.is_destination || ports.any(serves))
        })
    }
}

impl Policy<'_> {
    /// Whether a policy can be for an endpoint at all.
    fn concerns(&self, endpoint: &Thing) -> bool {
        let [do_not_track, pre_dnat, _] = self.early;
        match endpoint.host {
            None => !do_not_track && !pre_dnat,
            Some(is_for_all) => !(do_not_track && is_for_all),
        }
    }

    fn is_asked_at(&self, hook: Hook) -> bool {
        let [do_not_track, pre_dnat, forward] = self.early;
        match hook {
            Hook::Normal => !do_not_track && !pre_dnat,
            Hook::Forward => !do_not_track && !pre_dnat && forward,
            Hook::PreDnat => pre_dnat,
            Hook::Untracked => do_not_track,
        }
    }
}

fn index(way: Way) -> usize {
    match way {
        Way::Ingress => 0,
        Way::Egress => 1,
    }
}
