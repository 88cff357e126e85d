//! A policy's rule as nf_tables rules.
//!
//! All parts of a rule must match, as in nf_tables, so most rules become one. They become several where a part means "or": one
//! for each family if addresses matter, one for each protocol that has ports if none is named, one for each set of named ports
//! or services. Several nets become one interval set, which equal rules share.

use std::collections::{BTreeMap, BTreeSet};

use api::Action;
use ipnet::IpNet;
use kernel::IpFamily;
use kernel::nft::{End, Field, Match, Rule, SetName, Statement, Verdict};
use policy::{Family, PolicyId, SetId, Side};

use super::names;
use super::settings::{DenyAction, Settings};

/// Protocols whose header begins with two ports.
const PORTED: [u8; 4] = [6, 17, 132, 136];
const ICMP: [u8; 2] = [1, 58];
/// A comment in the kernel, in bytes.
pub(crate) const COMMENT: usize = 128;
/// What flow records say of a rule, in bytes: as much as the kernel copies.
const LONGEST_RECORD: usize = 127;

/// Where in the packet's way a rule is asked, which decides what "allow" does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// In the filter hooks.
    Normal,
    /// Before the destination is translated.
    PreDnat,
    /// Before connections are tracked.
    Untracked,
}

/// To or from an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    Ingress,
    Egress,
}

/// Whose rule it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Owner<'a> {
    Policy(&'a PolicyId, &'a str),
    Profile(&'a str),
}

/// Which sets there are, and what they look like in the kernel.
pub(crate) trait Sets {
    /// The nf_tables set of a policy's set; `Err`: why there is none.
    fn name(&self, id: &SetId, family: IpFamily) -> Result<SetName, String>;
}

/// Renders the rules of one chain, and collects the sets that their nets need.
pub(crate) struct Renderer<'a> {
    pub settings: &'a Settings,
    pub sets: &'a dyn Sets,
    pub stage: Stage,
    pub way: Way,
    pub nets: BTreeMap<SetName, (IpFamily, BTreeSet<IpNet>)>,
}

/// A value that one of a rule's protocols may have.
#[derive(Clone, Copy)]
enum Protocol {
    Is(u8),
    /// None of the rule's classes.
    Other,
}

impl Renderer<'_> {
    /// The nf_tables rules of a policy's rule; `Err`: a set is missing, so nobody can say what it matches.
    pub fn rule(&mut self, owner: &Owner<'_>, rule: &policy::Rule) -> Result<Vec<Rule>, String> {
        let mut rules = Vec::new();
        for family in families(rule) {
            let Some(addresses) = self.addresses(family, rule)? else {
                continue;
            };
            for protocol in protocols(rule) {
                let Some(transport) = transport(protocol, rule) else {
                    continue;
                };
                let source = self.ports(family, protocol, End::Source, &rule.source)?;
                let destination = self.ports(family, protocol, End::Destination, &rule.destination)?;
                for source in &source {
                    for destination in &destination {
                        let parts = [&transport, source, destination, &addresses];
                        let matches = parts.into_iter().flatten().cloned().collect();
                        rules.push(self.decision(owner, rule, with_family(family, matches)));
                    }
                }
            }
        }
        Ok(rules)
    }

    /// Conditions on addresses alone; `None`: nothing of this family can match.
    fn addresses(&mut self, family: Option<IpFamily>, rule: &policy::Rule) -> Result<Option<Vec<Match>>, String> {
        let Some(family) = family else {
            return Ok(Some(Vec::new()));
        };
        let mut matches = Vec::new();
        for (end, side) in [(End::Source, &rule.source), (End::Destination, &rule.destination)] {
            if !side.nets.is_empty() {
                match self.in_nets(family, end, &side.nets, false) {
                    Some(part) => matches.extend(part),
                    None => return Ok(None),
                }
            }
            let excluded = of_family(family, &side.not_nets);
            if excluded.iter().any(|net| net.prefix_len() == 0) {
                return Ok(None);
            }
            if !excluded.is_empty() {
                matches.extend(self.in_nets(family, end, &side.not_nets, true).flatten());
            }
            let sets = side.sets.iter().map(|id| (id, false));
            for (id, negate) in sets.chain(side.not_sets.iter().map(|id| (id, true))) {
                matches.push(Match::InSet {
                    key: vec![Field::Address(family, end)],
                    negate,
                    set: self.sets.name(id, family)?,
                });
            }
        }
        Ok(Some(matches))
    }

    /// One prefix is compared, several are a set. `None`: none is of this family. Everything needs no condition.
    fn in_nets(&mut self, family: IpFamily, end: End, nets: &[IpNet], negate: bool) -> Option<Option<Match>> {
        let nets = of_family(family, nets);
        if nets.iter().any(|net| net.prefix_len() == 0) {
            return Some(None);
        }
        match nets.len() {
            0 => None,
            1 => nets.first().map(|net| Some(Match::Net { end, negate, net: *net })),
            _ => {
                let set = names::rule_nets(family, &nets);
                self.nets.insert(set.clone(), (family, nets));
                let key = vec![Field::Address(family, end)];
                Some(Some(Match::InSet { key, negate, set }))
            }
        }
    }

    /// Conditions on ports and services of one side, each of which is enough. Empty: none can hold.
    fn ports(
        &self,
        family: Option<IpFamily>,
        protocol: Protocol,
        end: End,
        side: &Side,
    ) -> Result<Vec<Vec<Match>>, String> {
        let has_ports = matches!(protocol, Protocol::Is(number) if PORTED.contains(&number));
        let numbers = |negate: bool, ranges: &[(u16, u16)]| Match::Port {
            end,
            negate,
            ranges: merged(ranges),
        };
        let in_set = |id: &SetId, negate: bool| -> Result<Match, String> {
            let family = family.ok_or_else(|| format!("set {} without a family", id.0))?;
            Ok(Match::InSet {
                key: vec![Field::Address(family, end), Field::Protocol, Field::Port(end)],
                negate,
                set: self.sets.name(id, family)?,
            })
        };
        let mut always = Vec::new();
        if has_ports && !side.not_ports.is_empty() {
            always.push(numbers(true, &side.not_ports));
        }
        for id in &side.not_named_ports {
            always.push(in_set(id, true)?);
        }
        let mut ports: Vec<Vec<Match>> = Vec::new();
        if has_ports && !side.ports.is_empty() {
            ports.push(vec![numbers(false, &side.ports)]);
        }
        for id in &side.named_ports {
            ports.push(vec![in_set(id, false)?]);
        }
        if side.ports.is_empty() && side.named_ports.is_empty() {
            ports.push(Vec::new());
        }
        let mut services: Vec<Vec<Match>> = Vec::new();
        for id in &side.services {
            services.push(vec![in_set(id, false)?]);
        }
        if services.is_empty() {
            services.push(Vec::new());
        }
        let both = |port: &Vec<Match>| {
            let always = always.clone();
            let port = port.clone();
            services.clone().into_iter().map(move |service| {
                let parts = [port.clone(), always.clone(), service];
                parts.into_iter().flatten().collect()
            })
        };
        Ok(ports.iter().flat_map(both).collect())
    }

    fn decision(&self, owner: &Owner<'_>, rule: &policy::Rule, matches: Vec<Match>) -> Rule {
        let (accepted, passed) = (self.settings.accepted_bit(), self.settings.passed_bit());
        let set = |bit| Statement::SetMark { mask: bit, value: bit };
        // Of every rule, so that one can see which decide: some nanoseconds, for the first packet of a flow.
        let mut actions = vec![Statement::Counter];
        let verdict = match (rule.action, self.stage) {
            (Action::Log, _) => {
                actions.extend(self.settings.log_limit.map(|limit| Statement::Limit {
                    packets: limit.lines.into(),
                    per: limit.per,
                    burst: limit.burst.max(1).into(),
                }));
                let prefix = log_prefix(self.settings, owner);
                actions.push(Statement::Log { prefix });
                None
            }
            (Action::Allow, Stage::Normal) => Some(Verdict::Accept),
            (Action::Allow, Stage::PreDnat) => {
                actions.push(set(accepted));
                Some(Verdict::Accept)
            }
            (Action::Allow, Stage::Untracked) => {
                actions.extend([set(accepted), Statement::Notrack]);
                Some(Verdict::Accept)
            }
            (Action::Deny, _) => Some(Verdict::Drop),
            (Action::Pass, _) => {
                actions.push(set(passed));
                Some(Verdict::Return)
            }
        };
        if self.settings.flow_logs && rule.action != Action::Log {
            let letter = match rule.action {
                Action::Allow => 'A',
                Action::Deny => 'D',
                Action::Pass | Action::Log => 'P',
            };
            let (kind, tier, whose) = match owner {
                Owner::Policy(id, tier) => ('P', format!("{}|", names::shortened(tier, 63)), names::policy_name(id)),
                Owner::Profile(name) => ('R', String::new(), (*name).to_owned()),
            };
            let head = format!("{letter}{kind}{}{}|{tier}", self.way.letter(), rule.index);
            let whose = names::shortened(&whose, LONGEST_RECORD.saturating_sub(head.len()));
            actions.push(flow_log(self.way, &format!("{head}{whose}")));
        }
        let verdict = denied(self.settings, self.stage, &mut actions, verdict);
        let comment = Some(names::shortened(&comment(owner, self.way, rule), COMMENT));
        Rule {
            matches,
            actions,
            verdict,
            comment,
        }
    }
}

impl Way {
    /// As flow records write it.
    pub fn letter(self) -> char {
        match self {
            Way::Ingress => 'I',
            Way::Egress => 'E',
        }
    }

    fn word(self) -> &'static str {
        match self {
            Way::Ingress => "ingress",
            Way::Egress => "egress",
        }
    }
}

/// Turns a drop into a refusal where that is asked for. Before routing nobody can be told.
pub(crate) fn denied(
    settings: &Settings,
    stage: Stage,
    actions: &mut Vec<Statement>,
    verdict: Option<Verdict>,
) -> Option<Verdict> {
    let refuse = settings.deny == DenyAction::Reject && stage == Stage::Normal;
    if verdict == Some(Verdict::Drop) && refuse {
        actions.push(Statement::Reject);
        return None;
    }
    verdict
}

/// A copy of the packet for flow records, in upstream's groups.
pub(crate) fn flow_log(way: Way, prefix: &str) -> Statement {
    let group = match way {
        Way::Ingress => 1,
        Way::Egress => 2,
    };
    Statement::Nflog {
        group,
        prefix: names::shortened(prefix, LONGEST_RECORD),
        snaplen: 80,
    }
}

/// What the comment of a rule says, before it is cut to fit.
pub(crate) fn comment(owner: &Owner<'_>, way: Way, rule: &policy::Rule) -> String {
    let action = match rule.action {
        Action::Allow => "allow",
        Action::Deny => "deny",
        Action::Log => "log",
        Action::Pass => "pass",
    };
    let whose = match owner {
        Owner::Policy(id, _) => format!("{} {}", id.kind.name(), full_name(id)),
        Owner::Profile(name) => format!("Profile {name}"),
    };
    format!("{action} {whose} {} {}", way.word(), rule.index)
}

/// Namespace and name.
pub(crate) fn full_name(id: &PolicyId) -> String {
    match &id.namespace {
        Some(namespace) => format!("{namespace}/{}", id.name),
        None => id.name.clone(),
    }
}

fn log_prefix(settings: &Settings, owner: &Owner<'_>) -> String {
    let (tier, kind, name, full) = match owner {
        Owner::Policy(id, tier) => (*tier, names::short_kind(id.kind), id.name.as_str(), full_name(id)),
        Owner::Profile(name) => ("", "pro".to_owned(), *name, (*name).to_owned()),
    };
    let parts = [("%t", tier), ("%k", kind.as_str()), ("%n", name), ("%p", full.as_str())];
    let text = parts
        .into_iter()
        .fold(settings.log_prefix.clone(), |text, (sign, part)| {
            text.replace(sign, part)
        });
    names::shortened(&format!("{text}: "), 127)
}

/// Families to render; `None`: the rule does not look at addresses, so one rule does for both.
fn families(rule: &policy::Rule) -> Vec<Option<IpFamily>> {
    let looks = |side: &Side| {
        let sets = [
            &side.sets,
            &side.not_sets,
            &side.named_ports,
            &side.not_named_ports,
            &side.services,
        ];
        !side.nets.is_empty() || !side.not_nets.is_empty() || sets.iter().any(|sets| !sets.is_empty())
    };
    let only = rule.family.map(|family| match family {
        Family::V4 => IpFamily::V4,
        Family::V6 => IpFamily::V6,
    });
    match only {
        Some(family) => vec![Some(family)],
        None if looks(&rule.source) || looks(&rule.destination) => IpFamily::BOTH.map(Some).to_vec(),
        None => vec![None],
    }
}

/// Protocols to render: the rule's own, or each one that its ports and ICMP types can be of and the rest.
fn protocols(rule: &policy::Rule) -> Vec<Protocol> {
    if let Some(number) = rule.protocol {
        return vec![Protocol::Is(number)];
    }
    let classes = classes(rule)
        .into_iter()
        .filter(|number| Some(*number) != rule.not_protocol);
    classes.map(Protocol::Is).chain([Protocol::Other]).collect()
}

/// Protocols that the rule's parts treat in their own way.
fn classes(rule: &policy::Rule) -> Vec<u8> {
    let with_ports = |side: &Side| !side.ports.is_empty() || !side.not_ports.is_empty();
    let ports = with_ports(&rule.source) || with_ports(&rule.destination);
    let icmp = rule.icmp.is_some() || rule.not_icmp.is_some();
    let ports = PORTED.into_iter().filter(|_| ports);
    ports.chain(ICMP.into_iter().filter(|_| icmp)).collect()
}

/// Conditions on the protocol and on ICMP; `None`: they exclude each other.
fn transport(protocol: Protocol, rule: &policy::Rule) -> Option<Vec<Match>> {
    let is = |negate: bool, number: u8| Match::Protocol { negate, number };
    let mut matches = match protocol {
        Protocol::Is(number) => {
            if rule.not_protocol == Some(number) {
                return None;
            }
            vec![is(false, number)]
        }
        Protocol::Other => {
            let others: BTreeSet<u8> = classes(rule).into_iter().chain(rule.not_protocol).collect();
            others.into_iter().map(|number| is(true, number)).collect()
        }
    };
    let is_icmp = matches!(protocol, Protocol::Is(number) if ICMP.contains(&number));
    match rule.icmp {
        Some(_) if !is_icmp => return None,
        Some((kind, code)) => matches.push(Match::Icmp {
            negate: false,
            kind,
            code,
        }),
        None => {}
    }
    if let Some((kind, code)) = rule.not_icmp.filter(|_| is_icmp) {
        matches.push(Match::Icmp {
            negate: true,
            kind,
            code,
        });
    }
    Some(matches)
}

/// Says the family where no other condition does.
fn with_family(family: Option<IpFamily>, mut matches: Vec<Match>) -> Vec<Match> {
    let says = |part: &Match| match part {
        Match::Net { .. } => true,
        Match::InSet { key, .. } => key.iter().any(|field| matches!(field, Field::Address(..))),
        _ => false,
    };
    if let Some(family) = family.filter(|_| !matches.iter().any(says)) {
        matches.insert(0, Match::Family(family));
    }
    matches
}

/// The nets of one family, without those that lie in another one.
pub(crate) fn of_family(family: IpFamily, nets: &[IpNet]) -> BTreeSet<IpNet> {
    let nets = nets.iter().filter(|net| IpFamily::of(&net.addr()) == family);
    let sorted: BTreeSet<(u8, IpNet)> = nets.map(|net| (net.prefix_len(), net.trunc())).collect();
    let mut kept: BTreeSet<IpNet> = BTreeSet::new();
    for (_, net) in sorted {
        if !kept.iter().any(|there| there.contains(&net)) {
            kept.insert(net);
        }
    }
    kept
}

/// Ranges in order, those that touch made one.
fn merged(ranges: &[(u16, u16)]) -> Vec<(u16, u16)> {
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for (first, last) in sorted {
        match merged.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => merged.push((first, last)),
        }
    }
    merged
}
