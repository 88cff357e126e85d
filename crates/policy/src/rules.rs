//! Rules as written to rules over sets: what selectors, names and namespaces in them come to.
//!
//! Facts are upstream's (`syncersv1/updateprocessors/rules.go`, `felix/calc/rule_scanner.go`): a rule of a namespaced policy
//! picks within its namespace as soon as it has any selector; `namespaceSelector` and service accounts are conditions on
//! labels that endpoints inherit (`pcns.`, `pcsa.`); a named port means TCP unless the rule says UDP or SCTP.

use std::collections::{BTreeMap, BTreeSet};

use api::selector::Expression;
use api::{EntityRule, FieldProblem, IcmpMatch, Port, Protocol, Selector, ServiceAccountMatch, ServiceMatch};
use ipnet::IpNet;

use crate::set_def::{Service, SetDef};
use crate::state::{Family, Rule, SetId, Side};

/// Label with the namespace of an endpoint or network set.
pub(crate) const NAMESPACE: &str = "projectcalico.org/namespace";
/// Label with the service account of a workload.
pub(crate) const SERVICE_ACCOUNT: &str = "projectcalico.org/serviceaccount";
/// Label with the orchestrator of a workload.
pub(crate) const ORCHESTRATOR: &str = "projectcalico.org/orchestrator";
/// In front of labels inherited from a namespace.
pub(crate) const FROM_NAMESPACE: &str = "pcns.";
/// In front of labels inherited from a service account.
pub(crate) const FROM_ACCOUNT: &str = "pcsa.";

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP_V6: u8 = 58;
const SCTP: u8 = 132;

/// Rules of one policy or profile, with the sets that they use.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    pub ingress: Vec<Rule>,
    pub egress: Vec<Rule>,
    pub sets: BTreeMap<SetId, SetDef>,
    /// Fields that cannot be understood.
    pub faults: Vec<Fault>,
    /// Fields that are understood and not enforced.
    pub ignored: Vec<Fault>,
}

/// A field, what stands there, what is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub field: String,
    pub value: String,
    pub text: String,
}

impl Fault {
    pub fn new(field: impl Into<String>, value: impl ToString, text: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            value: value.to_string(),
            text: text.into(),
        }
    }
}

impl From<&FieldProblem> for Fault {
    fn from(problem: &FieldProblem) -> Self {
        Self {
            field: problem.field.clone(),
            value: problem.value.clone().unwrap_or_default(),
            text: problem.message.clone(),
        }
    }
}

/// Translates the rules of a policy in `namespace` (`None`: of a global policy or a profile).
pub(crate) fn translate(ingress: &[api::Rule], egress: &[api::Rule], namespace: Option<&str>) -> Rules {
    translate_as(Purpose::Use, ingress, egress, namespace)
}

/// Only finds out what cannot be followed in rules. Most of a cluster's are never used on a node.
pub(crate) fn check(ingress: &[api::Rule], egress: &[api::Rule], namespace: Option<&str>) -> Rules {
    translate_as(Purpose::Check, ingress, egress, namespace)
}

/// What a translation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Use,
    /// Sets need no names.
    Check,
}

fn translate_as(purpose: Purpose, ingress: &[api::Rule], egress: &[api::Rule], namespace: Option<&str>) -> Rules {
    let mut rules = Rules::default();
    for (list, written) in [("ingress", ingress), ("egress", egress)] {
        let translated = written.iter().enumerate().map(|(index, rule)| {
            let mut translator = Translator {
                purpose,
                field: format!("spec.{list}[{index}]"),
                namespace,
                protocol: rule.protocol.as_ref().and_then(Protocol::number),
                out: &mut rules,
            };
            translator.rule(index, rule)
        });
        let translated = translated.collect();
        match list {
            "ingress" => rules.ingress = translated,
            _ => rules.egress = translated,
        }
    }
    rules
}

/// One rule's translation. What cannot be understood is noted, and then the result is not used.
struct Translator<'a> {
    purpose: Purpose,
    field: String,
    namespace: Option<&'a str>,
    protocol: Option<u8>,
    out: &'a mut Rules,
}

impl Translator<'_> {
    fn rule(&mut self, index: usize, rule: &api::Rule) -> Rule {
        for (field, protocol) in [("protocol", &rule.protocol), ("notProtocol", &rule.not_protocol)] {
            if let Some(protocol) = protocol.as_ref().filter(|protocol| protocol.number().is_none()) {
                self.fault(field, protocol, "is no protocol");
            }
        }
        let version = match rule.ip_version {
            None => None,
            Some(4) => Some(Family::V4),
            Some(6) => Some(Family::V6),
            Some(other) => {
                self.fault("ipVersion", other, "must be 4 or 6");
                None
            }
        };
        if rule.http.is_some() {
            self.out.ignored.push(Fault::new(
                format!("{}.http", self.field),
                "http",
                "needs a proxy that looks into requests",
            ));
        }
        let icmp = self.icmp("icmp", rule.icmp.as_ref());
        let not_icmp = self.icmp("notICMP", rule.not_icmp.as_ref());
        let source = self.side("source", &rule.source);
        let destination = self.side("destination", &rule.destination);
        let of_icmp = match self.protocol.filter(|_| icmp.is_some() || not_icmp.is_some()) {
            Some(ICMP) => Some(Family::V4),
            Some(ICMP_V6) => Some(Family::V6),
            _ => None,
        };
        Rule {
            index,
            action: rule.action,
            family: version
                .or(of_icmp)
                .or_else(|| family_of(&source.nets))
                .or_else(|| family_of(&destination.nets))
                // As upstream: what is said about addresses of one family says nothing about the other.
                .or_else(|| family_of(&source.not_nets))
                .or_else(|| family_of(&destination.not_nets)),
            protocol: self.protocol,
            not_protocol: rule.not_protocol.as_ref().and_then(Protocol::number),
            icmp,
            not_icmp,
            source,
            destination,
        }
    }

    fn fault(&mut self, field: &str, value: impl ToString, text: impl Into<String>) {
        let field = format!("{}.{field}", self.field);
        self.out.faults.push(Fault::new(field, value, text));
    }

    fn icmp(&mut self, field: &str, icmp: Option<&IcmpMatch>) -> Option<(u8, Option<u8>)> {
        let icmp = icmp?;
        match icmp.kind {
            Some(kind) if matches!(self.protocol, Some(ICMP | ICMP_V6)) => return Some((kind, icmp.code)),
            Some(kind) => self.fault(field, kind, "needs protocol ICMP or ICMPv6"),
            None => {
                if let Some(code) = icmp.code {
                    self.fault(field, code, "needs a type");
                }
            }
        }
        None
    }

    fn side(&mut self, name: &str, entity: &EntityRule) -> Side {
        let is_source = name == "source";
        let outer = self.field.clone();
        self.field = format!("{outer}.{name}");
        let mut side = Side {
            nets: masked(&entity.nets),
            not_nets: masked(&entity.not_nets),
            ..Side::default()
        };
        let selector = self.selector(entity);
        if !entity.not_selector.is_empty() {
            let unwanted = self.parse("notSelector", &entity.not_selector);
            side.not_sets
                .extend(unwanted.map(|unwanted| self.set(SetDef::Selected(unwanted))));
        }
        (side.ports, side.named_ports) = self.ports("ports", &entity.ports, selector.as_ref());
        (side.not_ports, side.not_named_ports) = self.ports("notPorts", &entity.not_ports, selector.as_ref());
        // Members of named ports are picked by the same selector, so that a set of its own would decide nothing.
        let covered = side.ports.is_empty() && !side.named_ports.is_empty();
        if let Some(selector) = selector.filter(|_| !covered) {
            side.sets.push(self.set(SetDef::Selected(selector)));
        }
        if let Some(service) = entity.services.as_ref().and_then(|service| self.service(service)) {
            match is_source {
                true => side.sets.push(self.set(SetDef::Service(service))),
                false => side.services.push(self.set(SetDef::ServicePorts(service))),
            }
        }
        // Thousands of rules are kept; most of their lists have one element or none.
        for sets in [
            &mut side.sets,
            &mut side.not_sets,
            &mut side.named_ports,
            &mut side.services,
        ] {
            sets.shrink_to_fit();
        }
        self.field = outer;
        side
    }

    /// Everything positive that a side says about labels, as one selector.
    fn selector(&mut self, entity: &EntityRule) -> Option<Selector> {
        let own = match entity.selector.as_str() {
            "" => None,
            text => self.parse("selector", text),
        };
        let accounts = entity
            .service_accounts
            .as_ref()
            .and_then(|accounts| self.service_accounts(accounts));
        let picks = own.is_some() || accounts.is_some() || !entity.not_selector.is_empty();
        let namespace = match (entity.namespace_selector.as_str(), self.namespace) {
            ("", Some(namespace)) if picks => Some(in_namespace(namespace)),
            ("", _) => None,
            (text, _) => match Selector::parse(text) {
                Ok(selector) if selector.is_global() || !selector.mentions_global() => Some(of_namespaces(&selector)),
                Ok(_) => {
                    self.fault("namespaceSelector", text, "may use global() only alone");
                    None
                }
                Err(why) => {
                    self.fault("namespaceSelector", text, why.to_string());
                    None
                }
            },
        };
        all_of([namespace, accounts, own])
    }

    fn service_accounts(&mut self, accounts: &ServiceAccountMatch) -> Option<Selector> {
        let labelled = match accounts.selector.as_str() {
            "" => None,
            text => self
                .parse("serviceAccounts.selector", text)
                .map(|selector| selector.with_label_prefix(FROM_ACCOUNT)),
        };
        let names: BTreeSet<String> = accounts.names.iter().cloned().collect();
        let named = (!names.is_empty()).then(|| Expression::In(SERVICE_ACCOUNT.to_owned(), names).into());
        all_of([labelled, named])
    }

    fn parse(&mut self, field: &str, text: &str) -> Option<Selector> {
        match parse(text) {
            Ok(selector) => Some(selector),
            Err(why) => {
                self.fault(field, text, why);
                None
            }
        }
    }

    /// Numbers, and sets for names.
    fn ports(&mut self, field: &str, ports: &[Port], selector: Option<&Selector>) -> (Vec<(u16, u16)>, Vec<SetId>) {
        let (mut numbers, mut names) = (Vec::new(), Vec::new());
        for (index, port) in ports.iter().enumerate() {
            match port {
                Port::Range(first, last) => {
                    if first > last {
                        self.fault(&format!("{field}[{index}]"), port, "ends before it begins");
                    } else if !matches!(self.protocol, Some(TCP | UDP | SCTP)) {
                        self.fault(&format!("{field}[{index}]"), port, "needs protocol TCP, UDP or SCTP");
                    }
                    numbers.push((*first, *last));
                }
                Port::Named(name) => {
                    let protocol = self.protocol.filter(|number| matches!(*number, UDP | SCTP));
                    names.push(self.set(SetDef::NamedPort {
                        selector: selector.cloned().unwrap_or(Selector::ALL),
                        name: name.clone(),
                        protocol: protocol.unwrap_or(TCP),
                    }));
                }
            }
        }
        (numbers, names)
    }

    fn service(&mut self, service: &ServiceMatch) -> Option<Service> {
        let namespace = match service.namespace.as_str() {
            "" => self.namespace.unwrap_or_default(),
            namespace => namespace,
        };
        if service.name.is_empty() || namespace.is_empty() {
            let text = "needs a name, and a namespace where the policy has none";
            self.fault("services", format!("{namespace}/{}", service.name), text);
            return None;
        }
        Some(Service {
            namespace: namespace.to_owned(),
            name: service.name.clone(),
        })
    }

    fn set(&mut self, def: SetDef) -> SetId {
        if self.purpose == Purpose::Check {
            return SetId(String::new());
        }
        let id = def.id();
        self.out.sets.insert(id.clone(), def);
        id
    }
}

/// A selector of endpoints, or what is wrong with it.
pub(crate) fn parse(text: &str) -> Result<Selector, String> {
    match Selector::parse(text) {
        Ok(selector) if selector.mentions_global() => {
            Err("may not use global(): it is for namespaceSelector of a rule".to_owned())
        }
        Ok(selector) => Ok(selector),
        Err(why) => Err(why.to_string()),
    }
}

/// What is in this namespace.
pub(crate) fn in_namespace(namespace: &str) -> Selector {
    Expression::Equals(NAMESPACE.to_owned(), namespace.to_owned()).into()
}

/// What is in a namespace with such labels: `all()` is in any, `global()` in none.
pub(crate) fn of_namespaces(selector: &Selector) -> Selector {
    let any = || Expression::Has(NAMESPACE.to_owned());
    let none = || Expression::Not(Box::new(any()));
    instead(selector.with_label_prefix(FROM_NAMESPACE).expression(), &any, &none).into()
}

/// What runs under a service account with such labels; `all()` is any.
pub(crate) fn of_accounts(selector: &Selector) -> Selector {
    let any = || Expression::Has(SERVICE_ACCOUNT.to_owned());
    instead(selector.with_label_prefix(FROM_ACCOUNT).expression(), &any, &any).into()
}

/// The same expression with other words for `all()` and `global()`.
fn instead(expression: &Expression, all: &dyn Fn() -> Expression, global: &dyn Fn() -> Expression) -> Expression {
    let each = |parts: &[Expression]| parts.iter().map(|part| instead(part, all, global)).collect();
    match expression {
        Expression::All => all(),
        Expression::Global => global(),
        Expression::Not(inner) => Expression::Not(Box::new(instead(inner, all, global))),
        Expression::And(parts) => Expression::And(each(parts)),
        Expression::Or(parts) => Expression::Or(each(parts)),
        other => other.clone(),
    }
}

/// What all of these pick; `None` if there are none.
pub(crate) fn all_of<const N: usize>(parts: [Option<Selector>; N]) -> Option<Selector> {
    let mut parts: Vec<Expression> = parts
        .into_iter()
        .flatten()
        .map(|part| part.expression().clone())
        .collect();
    match parts.len() {
        0 => None,
        1 => parts.pop().map(Selector::from),
        _ => Some(Expression::And(parts).into()),
    }
}

fn masked(nets: &[IpNet]) -> Vec<IpNet> {
    nets.iter().map(IpNet::trunc).collect()
}

/// The family of all of these, if they have one and the same.
fn family_of(nets: &[IpNet]) -> Option<Family> {
    let family = |net: &IpNet| match net {
        IpNet::V4(_) => Family::V4,
        IpNet::V6(_) => Family::V6,
    };
    let first = family(nets.first()?);
    nets.iter().all(|net| family(net) == first).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_family_say_nothing_about_the_other() {
        let nets = |text: &[&str]| text.iter().map(|net| net.parse().unwrap()).collect::<Vec<IpNet>>();
        for (within, except, family) in [
            (&[][..], &[][..], None),
            (&["10.0.0.0/8"], &[], Some(Family::V4)),
            (&[], &["10.0.0.0/8"], Some(Family::V4)),
            (&[], &["fd00::/8", "fe80::/10"], Some(Family::V6)),
            (&[], &["fd00::/8", "10.0.0.0/8"], None),
        ] {
            let mut rule = api::Rule::any(api::Action::Allow);
            for side in 0..2 {
                let end = EntityRule {
                    nets: nets(within),
                    not_nets: nets(except),
                    ..EntityRule::default()
                };
                match side {
                    0 => rule.source = end,
                    _ => (rule.source, rule.destination) = (EntityRule::default(), end),
                }
                let rules = translate(std::slice::from_ref(&rule), &[], None);
                assert_eq!(rules.ingress[0].family, family, "{within:?} {except:?}");
            }
        }
    }
}
