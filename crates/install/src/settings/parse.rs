//! Values as users write them: each parser says what would be right.

use std::net::IpAddr;

use api::crd::CrdGroup;
use ipnet::{Ipv4Net, Ipv6Net};

use super::{V1, V3};

pub(super) fn ranges(text: &str) -> Result<(Option<Ipv4Net>, Option<Ipv6Net>), String> {
    if text == "none" {
        return Ok((None, None));
    }
    let (mut ipv4, mut ipv6) = (None, None);
    for part in text.split(',').map(str::trim) {
        let net: ipnet::IpNet = part
            .parse()
            .map_err(|_| format!("{part:?} is no range; write it like 192.168.0.0/16, or none"))?;
        if net.addr() != net.network() {
            return Err(format!(
                "{part} has bits behind its length: did you mean {}?",
                net.trunc()
            ));
        }
        let again = match net {
            ipnet::IpNet::V4(net) if net.prefix_len() > 30 => {
                return Err(format!("{net} is too small for a pool: /30 is the smallest"));
            }
            ipnet::IpNet::V6(net) if net.prefix_len() > 122 => {
                return Err(format!("{net} is smaller than one block, /122"));
            }
            ipnet::IpNet::V4(net) => ipv4.replace(net).is_some(),
            ipnet::IpNet::V6(net) => ipv6.replace(net).is_some(),
        };
        if again {
            return Err("must be at most one range of each family".into());
        }
    }
    match (ipv4, ipv6) {
        (None, Some(_)) => Err("IPv6 alone is not available: add an IPv4 range".into()),
        ranges => Ok(ranges),
    }
}

pub(super) fn block_size(text: &str) -> Result<u8, String> {
    let right = "must be a number from 20 to 32";
    text.trim_start_matches('/')
        .parse()
        .ok()
        .filter(|size| (20..=32).contains(size))
        .ok_or_else(|| right.into())
}

pub(super) fn bgp(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "enabled" => Ok(true),
        "disabled" => Ok(false),
        _ => Err("must be Enabled or Disabled".into()),
    }
}

pub(super) fn datastore(text: &str) -> Result<(), String> {
    match text {
        "kubernetes" => Ok(()),
        "etcdv3" => Err("is not available yet; must be kubernetes".into()),
        "embedded" => Err("serves one machine by a unix socket; on Kubernetes it must be kubernetes".into()),
        _ => Err("must be kubernetes".into()),
    }
}

pub(super) fn truth(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| "must be true or false".into())
}

/// 15 bytes of a device's name less the 11 of the hash.
pub(super) fn interface_prefix(text: &str) -> Result<String, String> {
    match (1..=4).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric()) {
        true => Ok(text.to_owned()),
        false => Err("must be one to four letters or digits: what the other plugin's devices begin with".into()),
    }
}

pub(super) fn node_selector(text: &str) -> Result<(String, String), String> {
    let part = |text: &str, more: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c));
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && part(key, "-_./") && part(value, "-_.") => {
            Ok((key.to_owned(), value.to_owned()))
        }
        _ => Err("must be one label of nodes: KEY=VALUE".into()),
    }
}

pub(super) fn api_group(text: &str) -> Result<CrdGroup, String> {
    match text.to_ascii_lowercase().as_str() {
        V3 => Ok(CrdGroup::V3),
        V1 => Ok(CrdGroup::V1),
        _ => Err(format!("must be {V3} or {V1}")),
    }
}

/// What a reference to an image may consist of; the runtime says the rest.
pub(super) fn part_of_image(text: &str) -> Result<String, String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
    let plain =
        !text.is_empty() && text.chars().all(fine) && !text.contains("//") && !text.starts_with(['/', ':', '@', '-']);
    match plain {
        true => Ok(text.to_owned()),
        false => Err("must be like registry.example:5000/network".into()),
    }
}

pub(super) fn image(text: &str) -> Result<String, String> {
    let name = part_of_image(text).map_err(|_| "must be like margay:1.0".to_owned())?;
    let last = name.rsplit('/').next().unwrap_or_default();
    match last.contains(':') && !last.ends_with(":latest") {
        true => Ok(name),
        false => Err("needs a tag that stays what it is, or a digest: margay:1.0".into()),
    }
}

pub(super) fn host(text: &str) -> Result<String, String> {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    match text.parse::<IpAddr>().is_ok() || (text.len() <= 253 && text.split('.').all(label)) {
        true => Ok(text.to_owned()),
        false => Err("must be an address or a host's name, without port and https://".into()),
    }
}

pub(super) fn port(text: &str) -> Result<u16, String> {
    let right = || "must be a port, 1 to 65535".to_owned();
    text.parse().ok().filter(|port| *port > 0).ok_or_else(right)
}

/// Those that `margay cni install --feature` knows.
pub(super) fn cni_features(text: &str) -> Result<Vec<&'static str>, String> {
    const KNOWN: [&str; 2] = ["ip_addrs_no_ipam", "floating_ips"];
    let mut features = Vec::new();
    for name in text.split(',').map(str::trim) {
        let known = KNOWN.into_iter().find(|known| *known == name);
        let known = known.ok_or_else(|| format!("must be some of {}, with commas between", KNOWN.join(", ")))?;
        if !features.contains(&known) {
            features.push(known);
        }
    }
    Ok(features)
}

pub(super) fn controllers(text: &str) -> Result<u8, String> {
    let number = text.parse().ok().filter(|number| *number <= 9);
    number.ok_or_else(|| "must be a number from 0 to 9".into())
}

pub(super) fn autodetection(text: &str) -> Result<String, String> {
    const PLAIN: [&str; 2] = ["first-found", "kubernetes-internal-ip"];
    const WITH: [&str; 4] = ["can-reach=", "interface=", "skip-interface=", "cidr="];
    let fine = PLAIN.contains(&text)
        || WITH
            .iter()
            .any(|name| text.strip_prefix(name).is_some_and(|rest| !rest.is_empty()));
    match fine {
        true => Ok(text.to_owned()),
        false => Err(
            "must be first-found, kubernetes-internal-ip, can-reach=HOST, interface=REGEX, skip-interface=REGEX or \
                      cidr=CIDR"
                .into(),
        ),
    }
}
