//! Order of policies and tiers: lower first, without one last.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde::{Serialize, Serializer};

/// Where a policy stands in its tier, or a tier among the tiers. Lower comes first; what has none comes last.
#[derive(Clone, Copy, Debug)]
pub struct Order(f64);

impl Order {
    /// Without an order: after everything that has one.
    pub const LAST: Order = Order(f64::INFINITY);

    /// This order; `None` for what is no number or not finite.
    pub fn new(number: f64) -> Option<Self> {
        // Adding zero turns -0 into 0, so that equal orders are equal in every respect.
        number.is_finite().then_some(Order(number + 0.0))
    }

    /// A whole number.
    pub const fn whole(number: i32) -> Self {
        Order(number as f64)
    }

    /// The number, if there is one.
    pub fn number(self) -> Option<f64> {
        (!self.is_last()).then_some(self.0)
    }

    /// Whether there is no number.
    pub fn is_last(&self) -> bool {
        self.0 == f64::INFINITY
    }
}

impl Default for Order {
    fn default() -> Self {
        Order::LAST
    }
}

impl PartialEq for Order {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Order {}

impl PartialOrd for Order {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Order {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl Hash for Order {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}

/// As upstream's tables print it (Go's `%v`): with an exponent from a million on, `<nil>` for none.
impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(number) = self.number() else {
            return f.write_str("<nil>");
        };
        let scientific = format!("{number:e}");
        let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
        match exponent.parse::<i32>() {
            Ok(exponent) if !(-4..6).contains(&exponent) => {
                let sign = if exponent < 0 { '-' } else { '+' };
                write!(f, "{digits}e{sign}{:02}", exponent.abs())
            }
            _ => write!(f, "{number}"),
        }
    }
}

impl Serialize for Order {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.number() {
            // Whole numbers have no `.0`, as in Go.
            Some(number) if number.fract() == 0.0 && number.abs() < 9_007_199_254_740_992.0 => {
                serializer.serialize_i64(number as i64)
            }
            Some(number) => serializer.serialize_f64(number),
            None => serializer.serialize_none(),
        }
    }
}

impl<'de> Deserialize<'de> for Order {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;

        impl Visitor<'_> for Number {
            type Value = Order;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number")
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Order, E> {
                self.visit_f64(number as f64)
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Order, E> {
                self.visit_f64(number as f64)
            }

            fn visit_f64<E: Error>(self, number: f64) -> Result<Order, E> {
                Order::new(number).ok_or_else(|| E::custom("must be a number"))
            }

            fn visit_unit<E: Error>(self) -> Result<Order, E> {
                Ok(Order::LAST)
            }
        }

        deserializer.deserialize_any(Number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_numbers_and_none_is_last() {
        let check = |json: &str, shown: &str, written: &str| {
            let order: Order = serde_json::from_str(json).unwrap();
            assert_eq!(
                (order.to_string(), serde_json::to_string(&order).unwrap()),
                (shown.to_owned(), written.to_owned())
            );
        };
        check("1000", "1000", "1000");
        check("1000.0", "1000", "1000");
        check("10.5", "10.5", "10.5");
        check("-3", "-3", "-3");
        check("-0.0", "0", "0");
        check("1000000", "1e+06", "1000000");
        check("10000000", "1e+07", "10000000");
        check("999999", "999999", "999999");
        check("1234567", "1.234567e+06", "1234567");
        check("0.00001", "1e-05", "0.00001");
        check("1e300", "1e+300", "1e+300");
        check("null", "<nil>", "null");
        assert!(serde_json::from_str::<Order>("\"10\"").is_err());
        assert_eq!((Order::new(f64::NAN), Order::new(f64::INFINITY)), (None, None));

        let mut orders = [Order::LAST, Order::whole(10), Order::whole(-1), Order::whole(9)];
        orders.sort();
        assert_eq!(
            orders,
            [Order::whole(-1), Order::whole(9), Order::whole(10), Order::LAST]
        );
        assert_eq!(Order::new(-0.0), Order::new(0.0));
    }
}
