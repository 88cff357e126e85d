//! Values of keys as spans of numbers: what overlaps, what is one value, and how many bytes it has.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Element, Field, KeyType, Value};
use crate::IpFamily;

/// The values from `low` to `high`, both included, as numbers in network byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// The first.
    pub low: u128,
    /// The last.
    pub high: u128,
}

impl Span {
    /// Have they a value in common?
    pub fn overlaps(&self, other: &Self) -> bool {
        self.low <= other.high && other.low <= self.high
    }

    fn one(value: u128) -> Self {
        Self {
            low: value,
            high: value,
        }
    }
}

impl KeyType {
    /// Bytes of a value, without padding.
    pub fn width(&self) -> usize {
        match self {
            Self::Interface => 16,
            Self::Address(IpFamily::V4) => 4,
            Self::Address(IpFamily::V6) => 16,
            Self::Protocol => 1,
            Self::Port => 2,
        }
    }

    /// The greatest value.
    pub fn greatest(&self) -> u128 {
        u128::MAX >> (128 - 8 * self.width())
    }
}

impl Field {
    /// The type of key that it is looked up as.
    pub fn key_type(&self) -> KeyType {
        match self {
            Self::Interface(_) => KeyType::Interface,
            Self::Address(family, _) => KeyType::Address(*family),
            Self::Protocol => KeyType::Protocol,
            Self::Port(_) => KeyType::Port,
        }
    }
}

impl Value {
    /// The type of key that it belongs to.
    pub fn key_type(&self) -> KeyType {
        match self {
            Self::Interface(_) => KeyType::Interface,
            Self::Address(address) => KeyType::Address(IpFamily::of(address)),
            Self::Net(net) => KeyType::Address(IpFamily::of(&net.addr())),
            Self::Protocol(_) => KeyType::Protocol,
            Self::Port(_) | Self::Ports(..) => KeyType::Port,
        }
    }

    /// The values that it stands for.
    pub fn span(&self) -> Span {
        match self {
            Self::Interface(name) => Span::one(name_number(name)),
            Self::Address(address) => Span::one(number(*address)),
            Self::Net(net) => Span {
                low: number(net.network()),
                high: number(net.broadcast()),
            },
            Self::Protocol(protocol) => Span::one((*protocol).into()),
            Self::Port(port) => Span::one((*port).into()),
            Self::Ports(low, high) => Span {
                low: (*low).into(),
                high: (*high).into(),
            },
        }
    }

    /// The value of a span; `None` if no value says that (a range of addresses that is no prefix).
    pub fn of(key: KeyType, span: Span) -> Option<Self> {
        let single = span.low == span.high;
        match key {
            KeyType::Interface if single => Some(Self::Interface(number_name(span.low)?)),
            KeyType::Protocol if single => Some(Self::Protocol(u8::try_from(span.low).ok()?)),
            KeyType::Interface | KeyType::Protocol => None,
            KeyType::Port => {
                let (low, high) = (u16::try_from(span.low).ok()?, u16::try_from(span.high).ok()?);
                Some(if single {
                    Self::Port(low)
                } else {
                    Self::Ports(low, high)
                })
            }
            KeyType::Address(family) if single => Some(Self::Address(address(family, span.low)?)),
            KeyType::Address(family) => {
                let host = span.low ^ span.high;
                let prefix_like = host & host.wrapping_add(1) == 0 && span.low & host == 0;
                let prefix = u8::try_from(8 * key.width() - host.count_ones() as usize).ok()?;
                let net = match address(family, span.low)? {
                    IpAddr::V4(v4) => IpNet::V4(Ipv4Net::new(v4, prefix).ok()?),
                    IpAddr::V6(v6) => IpNet::V6(Ipv6Net::new(v6, prefix).ok()?),
                };
                prefix_like.then_some(Self::Net(net))
            }
        }
    }

    /// As it reads back: one address is `Address`, one port is `Port`.
    pub fn canonical(&self) -> Self {
        match self {
            Self::Net(net) if net.prefix_len() == net.max_prefix_len() => Self::Address(net.addr()),
            Self::Ports(low, high) if low == high => Self::Port(*low),
            other => other.clone(),
        }
    }
}

impl Element {
    /// As it reads back.
    pub fn canonical(&self) -> Self {
        Self {
            key: self.key.iter().map(Value::canonical).collect(),
            verdict: self.verdict.clone(),
        }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn address(family: IpFamily, number: u128) -> Option<IpAddr> {
    Some(match family {
        IpFamily::V4 => IpAddr::V4(Ipv4Addr::from(u32::try_from(number).ok()?)),
        IpFamily::V6 => IpAddr::V6(Ipv6Addr::from(number)),
    })
}

/// A name of at most 15 bytes, padded with zero bytes.
fn name_number(name: &str) -> u128 {
    let mut bytes = [0; 16];
    for (place, byte) in bytes.iter_mut().zip(name.bytes()) {
        *place = byte;
    }
    u128::from_be_bytes(bytes)
}

fn number_name(number: u128) -> Option<String> {
    let bytes = number.to_be_bytes();
    let length = bytes.iter().position(|byte| *byte == 0)?;
    let padded = bytes[length..].iter().all(|byte| *byte == 0);
    padded
        .then(|| String::from_utf8(bytes[..length].to_vec()).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(value: Value) {
        let canonical = value.canonical();
        assert_eq!(Value::of(value.key_type(), value.span()), Some(canonical.clone()));
        assert_eq!(canonical.span(), value.span());
    }

    #[test]
    fn a_value_is_its_span() {
        for net in [
            "0.0.0.0/0",
            "::/0",
            "10.0.0.0/8",
            "10.1.2.3/32",
            "255.255.255.254/31",
            "::/1",
            "2001:db8::/64",
            "::1/128",
        ] {
            check(Value::Net(net.parse().unwrap()));
        }
        for address in ["0.0.0.0", "255.255.255.255", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"] {
            check(Value::Address(address.parse().unwrap()));
        }
        check(Value::Ports(0, 65535));
        check(Value::Ports(80, 80));
        check(Value::Port(443));
        check(Value::Protocol(6));
        check(Value::Interface("cali0123456789a".into()));
    }

    #[test]
    fn a_range_that_is_no_prefix_is_no_value() {
        let key = KeyType::Address(IpFamily::V4);
        for (low, high) in [(1, 2), (0, 2), (2, 5), (4, 8)] {
            assert_eq!(Value::of(key, Span { low, high }), None);
        }
    }
}
