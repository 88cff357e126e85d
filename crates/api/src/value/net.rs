//! Prefixes and addresses in upstream's spellings: a bare address is a whole prefix, an empty text is none.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A value with a text form that may be left empty.
pub(crate) trait Text: Sized {
    /// What would be right.
    const RIGHT: &'static str;

    fn parse(text: &str) -> Option<Self>;
}

impl Text for IpAddr {
    const RIGHT: &'static str = "must be an address like 10.0.0.1 or fd00::1";

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Text for Ipv4Addr {
    const RIGHT: &'static str = "must be an IPv4 address like 10.0.0.1";

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Text for Ipv6Addr {
    const RIGHT: &'static str = "must be an IPv6 address like fd00::1";

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Text for IpNet {
    const RIGHT: &'static str = "must be an address range like 10.0.0.0/16 or fd00::/64";

    fn parse(text: &str) -> Option<Self> {
        text.parse()
            .ok()
            .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
    }
}

impl Text for Ipv4Net {
    const RIGHT: &'static str = "must be an IPv4 address, with or without a prefix length: 10.0.0.1/24";

    fn parse(text: &str) -> Option<Self> {
        text.parse()
            .ok()
            .or_else(|| text.parse::<Ipv4Addr>().ok().map(Ipv4Net::from))
    }
}

impl Text for Ipv6Net {
    const RIGHT: &'static str = "must be an IPv6 address, with or without a prefix length: fd00::1/64";

    fn parse(text: &str) -> Option<Self> {
        text.parse()
            .ok()
            .or_else(|| text.parse::<Ipv6Addr>().ok().map(Ipv6Net::from))
    }
}

/// `#[serde(with = "net::optional")]`: an empty text is `None`.
pub(crate) mod optional {
    use super::*;

    pub fn serialize<T: Serialize, S: Serializer>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
        value.serialize(serializer)
    }

    pub fn deserialize<'de, T: Text, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
        match Option::<Cow<'de, str>>::deserialize(deserializer)? {
            Some(text) if !text.is_empty() => T::parse(&text)
                .map(Some)
                .ok_or_else(|| serde::de::Error::custom(T::RIGHT)),
            _ => Ok(None),
        }
    }
}

/// `#[serde(with = "net::one")]`: a prefix, or an address for a whole one.
pub(crate) mod one {
    use super::*;

    pub fn serialize<T: Serialize, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        value.serialize(serializer)
    }

    pub fn deserialize<'de, T: Text, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        T::parse(&text).ok_or_else(|| serde::de::Error::custom(T::RIGHT))
    }
}

/// `#[serde(with = "net::many")]`: a list of prefixes or addresses.
pub(crate) mod many {
    use super::*;

    #[derive(Deserialize)]
    struct One(#[serde(with = "one")] IpNet);

    pub fn serialize<S: Serializer>(values: &[IpNet], serializer: S) -> Result<S::Ok, S::Error> {
        values.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
        let items = Option::<Vec<One>>::deserialize(deserializer)?.unwrap_or_default();
        Ok(items.into_iter().map(|One(net)| net).collect())
    }
}
