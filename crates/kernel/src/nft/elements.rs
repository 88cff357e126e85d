//! The elements of a set, small: policy has hundreds of thousands of addresses, and all of them are read back at once.

use std::fmt;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Element, Value};

/// Elements of a set, each once and in an order of their own. A prefix of one address is that address.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Elements {
    /// Addresses and prefixes alone, without a verdict.
    v4: Box<[Ipv4Net]>,
    /// The same of the other family.
    v6: Box<[Ipv6Net]>,
    /// All others.
    others: Box<[Element]>,
}

/// Makes [`Elements`] one by one.
#[derive(Default)]
pub struct ElementsBuilder {
    v4: Vec<Ipv4Net>,
    v6: Vec<Ipv6Net>,
    others: Vec<Element>,
}

impl ElementsBuilder {
    /// One more, in any order.
    pub fn push(&mut self, element: Element) {
        let net = match (&element.key[..], &element.verdict) {
            ([Value::Address(address)], None) => IpNet::from(*address),
            ([Value::Net(net)], None) => *net,
            _ => return self.others.push(element),
        };
        match net {
            IpNet::V4(net) => self.v4.push(net),
            IpNet::V6(net) => self.v6.push(net),
        }
    }

    /// All of them.
    pub fn build(self) -> Elements {
        Elements {
            v4: in_order(self.v4),
            v6: in_order(self.v6),
            others: in_order(self.others),
        }
    }
}

fn in_order<T: Ord>(mut values: Vec<T>) -> Box<[T]> {
    values.sort_unstable();
    values.dedup();
    values.into_boxed_slice()
}

impl Elements {
    /// How many.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len() + self.others.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = Element> {
        let v4 = self.v4.iter().map(|net| IpNet::V4(*net));
        let v6 = self.v6.iter().map(|net| IpNet::V6(*net));
        let nets = v4.chain(v6).map(|net| Element {
            key: Value::Net(net).canonical().into(),
            verdict: None,
        });
        nets.chain(self.others.iter().cloned())
    }
}

impl FromIterator<Element> for Elements {
    fn from_iter<I: IntoIterator<Item = Element>>(elements: I) -> Self {
        let mut builder = ElementsBuilder::default();
        elements.into_iter().for_each(|element| builder.push(element));
        builder.build()
    }
}

impl<const COUNT: usize> From<[Element; COUNT]> for Elements {
    fn from(elements: [Element; COUNT]) -> Self {
        elements.into_iter().collect()
    }
}

impl fmt::Debug for Elements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::{ElementVerdict, Key};

    fn element(key: impl Into<Key>, verdict: Option<ElementVerdict>) -> Element {
        Element {
            key: key.into(),
            verdict,
        }
    }

    fn check(words: &[&str], expected: &str) {
        let of = |word: &&str| match (word.parse(), word.parse(), word.strip_suffix(" drop")) {
            (Ok(address), _, _) => element(Value::Address(address), None),
            (_, Ok(net), _) => element(Value::Net(net), None),
            (_, _, Some(address)) => {
                let address = address.parse().unwrap();
                element(Value::Address(address), Some(ElementVerdict::Drop))
            }
            _ => element([Value::Interface((*word).into()), Value::Port(80)], None),
        };
        let elements: Elements = words.iter().map(of).collect();
        let shown: Vec<String> = elements.iter().map(|element| element.to_string()).collect();
        assert_eq!(shown.join(", "), expected);
        assert_eq!(elements.len(), shown.len());
        assert_eq!(elements.is_empty(), shown.is_empty());
        // However they come.
        assert_eq!(elements, words.iter().rev().chain(words).map(of).collect());
        assert_eq!(elements, elements.iter().collect());
        assert_ne!(elements, words.iter().skip(1).chain(&["192.0.2.77"]).map(of).collect());
    }

    #[test]
    fn elements_are_in_order_and_each_once() {
        check(&[], "");
        check(
            &["10.0.0.9", "10.0.0.0/29", "9.255.0.0/16", "10.0.0.9/32", "10.0.0.10"],
            "9.255.0.0/16, 10.0.0.0/29, 10.0.0.9, 10.0.0.10",
        );
        check(
            &["::2", "fd00::/64", "::1/128", "10.0.0.1"],
            "10.0.0.1, ::1, ::2, fd00::/64",
        );
        check(&["b", "a", "10.0.0.1"], "10.0.0.1, \"a\" . 80, \"b\" . 80");
        // With a verdict and without are two.
        check(
            &["10.0.0.2 drop", "10.0.0.1 drop", "10.0.0.1"],
            "10.0.0.1, 10.0.0.1 : drop, 10.0.0.2 : drop",
        );
    }
}
