//! Autonomous system numbers.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use serde::de::{Deserialize, Deserializer, Error, Visitor};

/// An autonomous system number, 0 to 4294967295; text may be dotted (`1.10`, RFC 5396).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct AsNumber(pub u32);

impl AsNumber {
    /// Upstream's default for a cluster.
    pub const DEFAULT: AsNumber = AsNumber(64512);
}

const RIGHT: &str = "must be an AS number: 0 to 4294967295, or two numbers of 16 bits with a dot";

impl fmt::Display for AsNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for AsNumber {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = match text.split_once('.') {
            Some((high, low)) => decimal::<u16>(high)
                .zip(decimal::<u16>(low))
                .map(|(high, low)| (u32::from(high) << 16) | u32::from(low)),
            None => decimal(text),
        };
        number.map(AsNumber).ok_or_else(|| format!("`{text}` {RIGHT}"))
    }
}

/// Digits only: `+1` is a number for Rust, but not for people.
fn decimal<T: FromStr>(text: &str) -> Option<T> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())?
}

impl<'de> Deserialize<'de> for AsNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrText;

        impl Visitor<'_> for NumberOrText {
            type Value = AsNumber;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an AS number: 0 to 4294967295, or two numbers of 16 bits with a dot, in quotes")
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<AsNumber, E> {
                u32::try_from(number).map(AsNumber).map_err(|_| E::custom(RIGHT))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<AsNumber, E> {
                text.parse().map_err(|_| E::custom(RIGHT))
            }
        }

        deserializer.deserialize_any(NumberOrText)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_dotted_texts_are_taken() {
        let check = |json: &str, wanted: Option<u32>| {
            assert_eq!(
                serde_json::from_str::<AsNumber>(json).ok(),
                wanted.map(AsNumber),
                "{json}"
            );
        };
        check("64512", Some(64512));
        check("4294967295", Some(u32::MAX));
        check("\"64512\"", Some(64512));
        check("\"1.10\"", Some(65546));
        check("\"65535.65535\"", Some(u32::MAX));
        for json in [
            "4294967296",
            "-1",
            "1.5",
            "\"\"",
            "\"1.\"",
            "\"1.65536\"",
            "\"1.2.3\"",
            "\"+1\"",
            "true",
        ] {
            check(json, None);
        }
        assert_eq!(serde_json::to_string(&AsNumber(65546)).unwrap(), "65546");
    }
}
