//! Differentiated services code points (RFC 2474).

use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use serde::de::{Deserialize, Deserializer, Error, Visitor};

/// A code point, 0 to 63. Text may be a name: `DF`, `EF`, `AF11` to `AF43`, `CS0` to `CS6`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Dscp(u8);

impl Dscp {
    /// The code point, if it is one: 0 to 63.
    pub fn new(value: u8) -> Option<Self> {
        (value < 64).then_some(Self(value))
    }

    /// 0 to 63.
    pub fn value(self) -> u8 {
        self.0
    }
}

const RIGHT: &str = "must be a DSCP value: 0 to 63, DF, EF, AF11 to AF43 or CS0 to CS6";

impl FromStr for Dscp {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let upper = text.to_ascii_uppercase();
        let value = match upper.as_bytes() {
            b"DF" => Some(0),
            b"EF" => Some(46),
            // RFC 2474: class selectors; RFC 2597: assured forwarding, class and drop precedence.
            [b'C', b'S', class @ b'0'..=b'6'] => Some((class - b'0') * 8),
            [b'A', b'F', class @ b'1'..=b'4', drop @ b'1'..=b'3'] => Some((class - b'0') * 8 + (drop - b'0') * 2),
            digits if !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) => upper.parse().ok(),
            _ => None,
        };
        value.and_then(Dscp::new).ok_or_else(|| RIGHT.to_owned())
    }
}

impl<'de> Deserialize<'de> for Dscp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrName;

        impl Visitor<'_> for NumberOrName {
            type Value = Dscp;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a DSCP value: 0 to 63, DF, EF, AF11 to AF43 or CS0 to CS6")
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Dscp, E> {
                u8::try_from(number)
                    .ok()
                    .and_then(Dscp::new)
                    .ok_or_else(|| E::custom(RIGHT))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Dscp, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(NumberOrName)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_values() {
        for (text, value) in [
            ("DF", 0),
            ("EF", 46),
            ("AF11", 10),
            ("af43", 38),
            ("CS0", 0),
            ("CS6", 48),
            ("63", 63),
            ("0", 0),
        ] {
            assert_eq!(text.parse::<Dscp>().map(Dscp::value), Ok(value), "{text}");
        }
        for text in ["", "CS7", "AF14", "AF51", "64", "-1", "x"] {
            assert!(text.parse::<Dscp>().is_err(), "{text}");
        }
    }
}
