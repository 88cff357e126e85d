//! Elements of sets, small: policy has hundreds of thousands of addresses.

use std::net::IpAddr;

use ipnet::IpNet;
use kernel::IpFamily;
use kernel::nft::{Element, ElementVerdict, Key, KeyType, SetName, SetSpec, Value};
use policy::{Member, SetKind};

/// An element of a set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Item {
    Net(IpNet),
    Port(IpAddr, u8, u16),
    Other(Box<Element>),
}

impl Item {
    pub fn of(element: &Element) -> Self {
        match (&element.key[..], &element.verdict) {
            ([Value::Address(address)], None) => Self::Net(IpNet::from(*address)),
            ([Value::Net(net)], None) => Self::Net(*net),
            ([Value::Address(address), Value::Protocol(protocol), Value::Port(port)], None) => {
                Self::Port(*address, *protocol, *port)
            }
            (_, verdict) => Self::Other(Box::new(Element {
                key: element.key.iter().map(one_address_is_no_net).collect(),
                verdict: verdict.clone(),
            })),
        }
    }

    /// One value without a verdict.
    pub fn key(key: impl Into<Key>) -> Self {
        Self::of(&Element {
            key: key.into(),
            verdict: None,
        })
    }

    /// What a device leads to.
    pub fn device(device: &str, verdict: ElementVerdict) -> Self {
        Self::of(&Element {
            key: Value::Interface(device.to_owned()).into(),
            verdict: Some(verdict),
        })
    }

    pub fn element(&self) -> Element {
        let key = match self {
            Self::Net(net) => one_address_is_no_net(&Value::Net(*net)).into(),
            Self::Port(address, protocol, port) => {
                [Value::Address(*address), Value::Protocol(*protocol), Value::Port(*port)].into()
            }
            Self::Other(element) => return (**element).clone(),
        };
        Element { key, verdict: None }
    }
}

impl From<&Member> for Item {
    fn from(member: &Member) -> Self {
        match member {
            Member::Net(net) => Self::Net(net.trunc()),
            Member::Port(address, protocol, port) => Self::Port(*address, *protocol, *port),
        }
    }
}

/// As the kernel reads it back.
fn one_address_is_no_net(value: &Value) -> Value {
    match value {
        Value::Net(net) if is_host(net) => Value::Address(net.addr()),
        other => other.clone(),
    }
}

/// Whether a prefix is one address.
pub(crate) fn is_host(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}

/// The family of a member.
pub(crate) fn family_of(member: &Member) -> IpFamily {
    match member {
        Member::Net(net) => IpFamily::of(&net.addr()),
        Member::Port(address, ..) => IpFamily::of(address),
    }
}

/// The nf_tables set for a policy's set.
pub(crate) fn spec(name: SetName, kind: SetKind, family: IpFamily, interval: bool) -> SetSpec {
    let key = match kind {
        SetKind::Nets => vec![KeyType::Address(family)],
        SetKind::Ports => vec![KeyType::Address(family), KeyType::Protocol, KeyType::Port],
    };
    SetSpec {
        name,
        key,
        interval,
        verdicts: false,
    }
}
