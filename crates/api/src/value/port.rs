//! Ports in rules: a number, a range, a name.

use std::fmt;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde::{Serialize, Serializer};

/// Ports that a rule matches.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Port {
    /// All from the first to the last, which may be the same; `8080` or `8000:8999`.
    Range(u16, u16),
    /// What an endpoint calls by this name.
    Named(String),
}

impl Port {
    /// What is wrong with it, if anything.
    pub(crate) fn problem(&self) -> Option<&'static str> {
        match self {
            Port::Range(first, last) if *first == 0 || first > last => Some(RIGHT),
            Port::Range(..) | Port::Named(_) => None,
        }
    }

    /// Whether it is a name.
    pub fn is_named(&self) -> bool {
        matches!(self, Port::Named(_))
    }
}

const RIGHT: &str = "must be a port from 1 to 65535, a range like 8000:8999, or a name";

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let is_name = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        let port = match text.split_once(':') {
            Some((first, last)) if digits(first) && digits(last) => first
                .parse()
                .ok()
                .zip(last.parse().ok())
                .map(|(first, last)| Port::Range(first, last)),
            Some(_) => None,
            None if digits(text) => text.parse().ok().map(|port| Port::Range(port, port)),
            None => {
                ((1..=128).contains(&text.len()) && text.chars().all(is_name)).then(|| Port::Named(text.to_owned()))
            }
        };
        port.filter(|port| !matches!(port, Port::Range(first, last) if first > last))
            .ok_or_else(|| RIGHT.to_owned())
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Port::Range(first, last) if first == last => first.fmt(f),
            Port::Range(first, last) => write!(f, "{first}:{last}"),
            Port::Named(name) => name.fmt(f),
        }
    }
}

impl Serialize for Port {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Port::Range(first, last) if first == last => serializer.serialize_u16(*first),
            other => serializer.collect_str(other),
        }
    }
}

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrText;

        impl Visitor<'_> for NumberOrText {
            type Value = Port;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port from 1 to 65535, a range like 8000:8999, or a name")
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Port, E> {
                u16::try_from(number)
                    .map(|port| Port::Range(port, port))
                    .map_err(|_| E::custom(RIGHT))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Port, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(NumberOrText)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_numbers_ranges_and_names() {
        let check = |json: &str, wanted: Port, written: &str| {
            let port: Port = serde_json::from_str(json).unwrap();
            assert_eq!(port, wanted, "{json}");
            assert_eq!(serde_json::to_string(&port).unwrap(), written);
        };
        check("80", Port::Range(80, 80), "80");
        check("\"80\"", Port::Range(80, 80), "80");
        check("\"80:90\"", Port::Range(80, 90), "\"80:90\"");
        check("\"80:80\"", Port::Range(80, 80), "80");
        check("\"http-2\"", Port::Named("http-2".to_owned()), "\"http-2\"");
        check("\"0\"", Port::Range(0, 0), "0");
        for json in [
            "65536",
            "-1",
            "\"\"",
            "\"90:80\"",
            "\"80:\"",
            "\"a:b\"",
            "\"a b\"",
            "\"80:70000\"",
        ] {
            assert!(serde_json::from_str::<Port>(json).is_err(), "{json}");
        }
        assert!(Port::Range(0, 5).problem().is_some());
        assert!(Port::Range(1, 65535).problem().is_none());
    }
}
