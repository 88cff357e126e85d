//! IP protocols, by name or number.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde::{Serialize, Serializer};

/// An IP protocol, by name or number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// By number, 1 to 255.
    Number(u8),
    /// By name: one of [`Protocol::NAMES`].
    Name(String),
}

impl Protocol {
    /// The names that may be used, with their numbers.
    pub const NAMES: [(&'static str, u8); 6] = [
        ("TCP", 6),
        ("UDP", 17),
        ("ICMP", 1),
        ("ICMPv6", 58),
        ("SCTP", 132),
        ("UDPLite", 136),
    ];

    /// The protocol that a text means: a number, a known name in any case, or an unknown name.
    pub fn from_text(text: &str) -> Self {
        let known = Self::NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
        match (known, text.parse()) {
            (Some((name, _)), _) => Protocol::Name((*name).to_owned()),
            (None, Ok(number)) => Protocol::Number(number),
            (None, Err(_)) => Protocol::Name(text.to_owned()),
        }
    }

    /// The number in packets; `None` for an unknown name and for 0, which names nothing.
    pub fn number(&self) -> Option<u8> {
        match self {
            Protocol::Number(0) => None,
            Protocol::Number(number) => Some(*number),
            Protocol::Name(name) => Self::NAMES
                .iter()
                .find(|(known, _)| known == name)
                .map(|(_, number)| *number),
        }
    }

    /// Whether packets of it have ports that rules can match: TCP, UDP, SCTP.
    pub fn has_ports(&self) -> bool {
        matches!(self.number(), Some(6 | 17 | 132))
    }

    /// What would be right where [`Protocol::number`] is `None`.
    pub(crate) const RIGHT: &'static str =
        "must be one of TCP, UDP, ICMP, ICMPv6, SCTP, UDPLite, or a number from 1 to 255";
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Protocol::Number(number) => number.fmt(f),
            Protocol::Name(name) => name.fmt(f),
        }
    }
}

impl Serialize for Protocol {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Protocol::Number(number) => serializer.serialize_u8(*number),
            Protocol::Name(name) => serializer.serialize_str(name),
        }
    }
}

impl<'de> Deserialize<'de> for Protocol {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrName;

        impl Visitor<'_> for NumberOrName {
            type Value = Protocol;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a protocol: TCP, UDP, ICMP, ICMPv6, SCTP, UDPLite, or a number from 1 to 255")
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Protocol, E> {
                u8::try_from(number)
                    .map(Protocol::Number)
                    .map_err(|_| E::custom(Protocol::RIGHT))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Protocol, E> {
                Ok(Protocol::from_text(text))
            }
        }

        deserializer.deserialize_any(NumberOrName)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_mean_protocols() {
        let check = |json: &str, shown: &str, number: Option<u8>, ports: bool| {
            let protocol: Protocol = serde_json::from_str(json).unwrap();
            assert_eq!(
                (protocol.to_string().as_str(), protocol.number(), protocol.has_ports()),
                (shown, number, ports)
            );
        };
        check("\"TCP\"", "TCP", Some(6), true);
        check("\"sctp\"", "SCTP", Some(132), true);
        check("\"icmpv6\"", "ICMPv6", Some(58), false);
        check("\"UDPLite\"", "UDPLite", Some(136), false);
        check("17", "17", Some(17), true);
        check("\"17\"", "17", Some(17), true);
        check("0", "0", None, false);
        check("\"quic\"", "quic", None, false);
        assert!(serde_json::from_str::<Protocol>("256").is_err());
        assert!(serde_json::from_str::<Protocol>("null").is_err());
    }
}
