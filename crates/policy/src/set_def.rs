//! What defines a set: a selector, a selector with a named port, or a Service.

use api::Selector;
use sha2::{Digest, Sha256};

use crate::state::{SetId, SetKind};

/// What a set stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum SetDef {
    /// Addresses of what the selector picks.
    Selected(Selector),
    /// Addresses of what the selector picks, each with the ports that it calls by this name.
    NamedPort {
        selector: Selector,
        name: String,
        protocol: u8,
    },
    /// Addresses behind a Service.
    Service(Service),
    /// Addresses and ports behind a Service.
    ServicePorts(Service),
}

/// A Kubernetes Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Service {
    pub namespace: String,
    pub name: String,
}

impl SetDef {
    /// What its members look like.
    pub fn kind(&self) -> SetKind {
        match self {
            SetDef::Selected(_) | SetDef::Service(_) => SetKind::Nets,
            SetDef::NamedPort { .. } | SetDef::ServicePorts(_) => SetKind::Ports,
        }
    }

    /// The selector, if it has one.
    pub fn selector(&self) -> Option<&Selector> {
        match self {
            SetDef::Selected(selector) | SetDef::NamedPort { selector, .. } => Some(selector),
            SetDef::Service(_) | SetDef::ServicePorts(_) => None,
        }
    }

    /// What it stands for, for people.
    pub fn meaning(&self) -> String {
        match self {
            SetDef::Selected(selector) => selector.to_string(),
            SetDef::NamedPort {
                selector,
                name,
                protocol,
            } => format!("port {name}/{protocol} of {selector}"),
            SetDef::Service(service) => format!("addresses of service {}/{}", service.namespace, service.name),
            SetDef::ServicePorts(service) => format!("service {}/{}", service.namespace, service.name),
        }
    }

    /// One letter and 18 digits and letters of a hash: long enough that nobody can make two selectors collide.
    pub fn id(&self) -> SetId {
        const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        let (letter, text) = match self {
            SetDef::Selected(selector) => ('s', selector.to_string()),
            SetDef::NamedPort {
                selector,
                name,
                protocol,
            } => ('n', format!("{protocol} {name} {selector}")),
            SetDef::Service(service) => ('a', format!("{}/{}", service.namespace, service.name)),
            SetDef::ServicePorts(service) => ('p', format!("{}/{}", service.namespace, service.name)),
        };
        let hash = Sha256::digest(format!("{letter} {text}"));
        let mut number = hash
            .iter()
            .take(16)
            .fold(0u128, |number, byte| number << 8 | u128::from(*byte));
        let mut id = String::with_capacity(19);
        id.push(letter);
        for _ in 0..18 {
            id.push(char::from(DIGITS[(number % 62) as usize]));
            number /= 62;
        }
        SetId(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_stable_short_and_follow_the_definition() {
        let selector = |text: &str| Selector::parse(text).unwrap();
        let service = Service {
            namespace: "a".into(),
            name: "b".into(),
        };
        let defs = [
            SetDef::Selected(selector("a == 'b'")),
            SetDef::Selected(selector("a == 'c'")),
            SetDef::NamedPort {
                selector: selector("a == 'b'"),
                name: "http".into(),
                protocol: 6,
            },
            SetDef::NamedPort {
                selector: selector("a == 'b'"),
                name: "http".into(),
                protocol: 17,
            },
            SetDef::Service(service.clone()),
            SetDef::ServicePorts(service),
        ];
        let ids: std::collections::BTreeSet<_> = defs.iter().map(SetDef::id).collect();
        assert_eq!(ids.len(), defs.len());
        assert!(
            ids.iter()
                .all(|id| id.0.len() == 19 && id.0.bytes().all(|b| b.is_ascii_alphanumeric()))
        );
        assert_eq!(SetDef::Selected(selector("a=='b'")).id(), defs[0].id());
        assert_eq!(defs[0].id(), SetId("sO4MRKbaTrtW58kQEAg".into()));
    }
}
