//! Durations as Go writes them: `1m30s`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A span of time, never negative. Text is Go's: numbers with units `h`, `m`, `s`, `ms`, `us` or `ns`, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(pub std::time::Duration);

impl Duration {
    /// Whole seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(std::time::Duration::from_secs(seconds))
    }

    /// Whole milliseconds.
    pub const fn from_millis(milliseconds: u64) -> Self {
        Self(std::time::Duration::from_millis(milliseconds))
    }
}

const UNITS: [(&str, u128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

impl FromStr for Duration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let nanoseconds = match text {
            "0" => Some(0),
            "" => None,
            _ => total(text),
        };
        // Go counts in 63 bits of nanoseconds, some 292 years.
        let nanoseconds = nanoseconds
            .and_then(|total| i64::try_from(total).ok())
            .and_then(|total| u64::try_from(total).ok());
        let duration = nanoseconds.map(std::time::Duration::from_nanos).map(Duration);
        duration.ok_or_else(|| "must be a duration like 90s, 1m30s or 500ms".to_owned())
    }
}

fn total(text: &str) -> Option<u128> {
    let mut rest = text;
    let mut total = 0u128;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(number_end);
        let unit_end = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit)?;
        total = total.checked_add(scaled(number, *scale)?)?;
        rest = after;
    }
    Some(total)
}

/// A decimal number of units, in nanoseconds; what is smaller is cut off.
fn scaled(number: &str, scale: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    // More than 18 digits are below a nanosecond in every unit.
    let digits = &fraction[..fraction.len().min(18)];
    let part: u128 = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    whole
        .checked_mul(scale)?
        .checked_add(part * scale / 10u128.pow(u32::try_from(digits.len()).ok()?))
}

impl fmt::Display for Duration {
    /// As Go prints it: `1h0m5s`, `2.5s`, `50ms`, `0s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.0.as_nanos();
        let decimal = |value: u128, scale: u128| {
            let digits = scale.ilog10() as usize;
            let text = format!("{}.{:0digits$}", value / scale, value % scale);
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        };
        match total {
            0 => f.write_str("0s"),
            1..1_000 => write!(f, "{total}ns"),
            1_000..1_000_000 => write!(f, "{}µs", decimal(total, 1_000)),
            1_000_000..1_000_000_000 => write!(f, "{}ms", decimal(total, 1_000_000)),
            _ => {
                let minutes = total / 60_000_000_000;
                let seconds = decimal(total % 60_000_000_000, 1_000_000_000);
                match (minutes / 60, minutes % 60) {
                    (0, 0) => write!(f, "{seconds}s"),
                    (0, minutes) => write!(f, "{minutes}m{seconds}s"),
                    (hours, minutes) => write!(f, "{hours}h{minutes}m{seconds}s"),
                }
            }
        }
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts_are_gos() {
        let check = |text: &str, nanoseconds: u64, printed: &str| {
            let duration: Duration = text.parse().unwrap();
            assert_eq!(duration.0.as_nanos(), u128::from(nanoseconds), "{text}");
            assert_eq!(duration.to_string(), printed);
        };
        check("0", 0, "0s");
        check("0s", 0, "0s");
        check("30s", 30_000_000_000, "30s");
        check("90s", 90_000_000_000, "1m30s");
        check("1h", 3_600_000_000_000, "1h0m0s");
        check("1.5h", 5_400_000_000_000, "1h30m0s");
        check("1h0.5s", 3_600_500_000_000, "1h0m0.5s");
        check("50ms", 50_000_000, "50ms");
        check("1.25ms", 1_250_000, "1.25ms");
        check("100us", 100_000, "100µs");
        check("7ns", 7, "7ns");
        check(".5s", 500_000_000, "500ms");
        for text in [
            "",
            "1",
            "s",
            "1x",
            "-1s",
            "1s1",
            "1..5s",
            ".s",
            "1 s",
            "9999999h",
            "99999999999999999999999999999999999999999h",
        ] {
            assert!(text.parse::<Duration>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(nanoseconds in 0..i64::MAX as u64) {
            let duration = Duration(std::time::Duration::from_nanos(nanoseconds));
            prop_assert_eq!(duration.to_string().parse(), Ok(duration));
        }
    }
}
