//! What pods and namespaces ask of the network by annotations (upstream's names and formats).
//!
//! What decides how a pod is attached counts when it is attached; floating addresses, sources and limits may change later.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::de::DeserializeOwned;

use crate::problem::{FieldProblem, Problems};
use crate::value::{net, quantity};
use crate::{Dscp, IpNat, QosControls};

mod qos;

/// These very addresses, from IPAM: `["10.0.0.1"]`, at most one of each family.
pub const IP_ADDRS: &str = "cni.projectcalico.org/ipAddrs";
/// These very addresses, whatever IPAM says.
pub const IP_ADDRS_NO_IPAM: &str = "cni.projectcalico.org/ipAddrsNoIpam";
/// Pools for the IPv4 address: `["name", "10.0.0.0/16"]`. Of pods and namespaces.
pub const IPV4_POOLS: &str = "cni.projectcalico.org/ipv4pools";
/// The same for IPv6.
pub const IPV6_POOLS: &str = "cni.projectcalico.org/ipv6pools";
/// Families to have an address of: `["IPv4", "IPv6"]`. Of pods and namespaces.
pub const IP_FAMILIES: &str = "cni.projectcalico.org/ipFamilies";
/// Addresses of others that lead to the pod: `["10.0.0.1"]`.
pub const FLOATING_IPS: &str = "cni.projectcalico.org/floatingIPs";
/// MAC address of the pod's interface.
pub const HW_ADDR: &str = "cni.projectcalico.org/hwAddr";
/// Sources that the pod may use besides its addresses: `["10.0.0.0/24"]`.
pub const ALLOWED_SOURCES: &str = "cni.projectcalico.org/allowedSourcePrefixes";
/// What annotations with limits and marks begin with.
pub const QOS: &str = "qos.projectcalico.org/";
/// Kubernetes' own limit of bits per second to the pod.
pub const INGRESS_BANDWIDTH: &str = "kubernetes.io/ingress-bandwidth";
/// Kubernetes' own limit of bits per second from the pod.
pub const EGRESS_BANDWIDTH: &str = "kubernetes.io/egress-bandwidth";

/// Whether an annotation is one that is read here.
pub fn is_ours(name: &str) -> bool {
    const CNI: [&str; 8] = [
        IP_ADDRS,
        IP_ADDRS_NO_IPAM,
        IPV4_POOLS,
        IPV6_POOLS,
        IP_FAMILIES,
        FLOATING_IPS,
        HW_ADDR,
        ALLOWED_SOURCES,
    ];
    CNI.contains(&name) || name.starts_with(QOS) || [INGRESS_BANDWIDTH, EGRESS_BANDWIDTH].contains(&name)
}

/// How a pod wants to be attached. `None` and empty: as it comes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attachment {
    /// These addresses, from IPAM; at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// These addresses, without asking IPAM; at most one of each family.
    pub addresses_no_ipam: Vec<IpAddr>,
    /// Pools for the IPv4 address, by name or range.
    pub ipv4_pools: Option<Vec<String>>,
    /// Pools for the IPv6 address, by name or range.
    pub ipv6_pools: Option<Vec<String>>,
    /// Families to have an address of: IPv4, IPv6.
    pub families: Option<(bool, bool)>,
    /// MAC address of its interface.
    pub mac: Option<[u8; 6]>,
}

/// What a pod asks for that may change while it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Running {
    /// Floating addresses.
    pub floating: Vec<IpAddr>,
    /// Sources that it may use besides its addresses, as text in the form of CIDRs.
    pub sources: Vec<String>,
    /// Limits and marks; `None`: none at all.
    pub qos: Option<QosControls>,
    /// What was understood, but in another way than written: values outside of their ranges.
    pub notes: Vec<FieldProblem>,
}

/// How a pod wants to be attached, and what is wrong with its annotations.
pub fn attachment(annotations: &BTreeMap<String, String>) -> (Attachment, Vec<FieldProblem>) {
    let mut reader = Reader::new(annotations);
    let asked = Attachment {
        addresses: reader.one_of_each_family(IP_ADDRS),
        addresses_no_ipam: reader.one_of_each_family(IP_ADDRS_NO_IPAM),
        ipv4_pools: reader.pools(IPV4_POOLS, true),
        ipv6_pools: reader.pools(IPV6_POOLS, false),
        families: reader.families(),
        mac: reader.mac(),
    };
    if !asked.addresses.is_empty() && !asked.addresses_no_ipam.is_empty() {
        let message = format!("cannot stand beside {IP_ADDRS}: remove one of them");
        reader.wrong(IP_ADDRS_NO_IPAM, &message);
    }
    (asked, reader.problems.into_vec())
}

/// What a pod asks for that may change while it runs, and what is wrong with its annotations. What is wrong is left out.
pub fn running(annotations: &BTreeMap<String, String>) -> (Running, Vec<FieldProblem>) {
    // Most pods ask for nothing.
    if !annotations.keys().any(|name| is_ours(name)) {
        return Default::default();
    }
    let mut reader = Reader::new(annotations);
    let floating = reader.list(FLOATING_IPS, "addresses, [\"10.0.0.1\"]", |text| text.parse().ok());
    let sources = reader.list(ALLOWED_SOURCES, "prefixes, [\"10.0.0.0/24\"]", |text| {
        <IpNet as net::Text>::parse(text).map(|net| net.trunc().to_string())
    });
    let (qos, notes) = reader.qos();
    let asked = Running {
        floating: floating.unwrap_or_default(),
        sources: sources.unwrap_or_default(),
        qos,
        notes,
    };
    (asked, reader.problems.into_vec())
}

impl Running {
    /// Which of the pod's addresses each floating address leads to. One of a family that the pod has no address of leads nowhere.
    pub fn translations(&self, addresses: &[IpAddr]) -> Vec<IpNat> {
        let inside = |external: &IpAddr| addresses.iter().find(|own| own.is_ipv4() == external.is_ipv4());
        let translation = |external: &IpAddr| {
            Some(IpNat {
                internal_ip: *inside(external)?,
                external_ip: *external,
            })
        };
        self.floating.iter().filter_map(translation).collect()
    }
}

struct Reader<'a> {
    annotations: &'a BTreeMap<String, String>,
    problems: Problems,
}

impl<'a> Reader<'a> {
    fn new(annotations: &'a BTreeMap<String, String>) -> Self {
        Self {
            annotations,
            problems: Problems::new(),
        }
    }

    /// The text of an annotation; an empty one is as good as none.
    fn text(&self, name: &str) -> Option<&'a str> {
        self.annotations
            .get(name)
            .map(|text| text.trim())
            .filter(|text| !text.is_empty())
    }

    fn wrong(&mut self, name: &str, message: &str) {
        let value = self.annotations.get(name).map_or("", String::as_str);
        self.problems.report(name, value, message);
    }

    fn json<T: DeserializeOwned>(&mut self, name: &str, right: &str) -> Option<T> {
        let read = serde_json::from_str(self.text(name)?);
        if read.is_err() {
            self.wrong(name, &format!("must be a JSON list of {right}"));
        }
        read.ok()
    }

    /// A JSON list of texts that all can be read.
    fn list<T>(&mut self, name: &str, right: &str, read: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
        let texts: Vec<String> = self.json(name, right)?;
        let read: Option<Vec<T>> = texts.iter().map(|text| read(text)).collect();
        if read.is_none() {
            self.wrong(name, &format!("must be a JSON list of {right}"));
        }
        read
    }

    fn one_of_each_family(&mut self, name: &str) -> Vec<IpAddr> {
        let right = "addresses, [\"10.0.0.1\"], at most one of each family";
        let usable = |text: &str| {
            let address: IpAddr = text.parse().ok()?;
            let usable = !address.is_unspecified() && !address.is_loopback() && !address.is_multicast();
            usable.then_some(address)
        };
        let Some(addresses) = self.list(name, right, usable) else {
            return Vec::new();
        };
        let of_v4 = addresses.iter().filter(|address| address.is_ipv4()).count();
        if addresses.is_empty() || of_v4 > 1 || addresses.len() - of_v4 > 1 {
            self.wrong(name, &format!("must be a JSON list of {right}, and one at least"));
            return Vec::new();
        }
        addresses
    }

    fn pools(&mut self, name: &str, ipv4: bool) -> Option<Vec<String>> {
        let right = match ipv4 {
            true => "names of pools or IPv4 ranges, [\"pool-a\", \"10.0.0.0/16\"]",
            false => "names of pools or IPv6 ranges, [\"pool-a\", \"fd00:10::/64\"]",
        };
        let usable = |text: &str| {
            let fits = match text.contains('/') {
                true => text.parse::<IpNet>().is_ok_and(|net| net.addr().is_ipv4() == ipv4),
                false => !text.is_empty(),
            };
            fits.then(|| text.to_owned())
        };
        self.list(name, right, usable).filter(|pools| !pools.is_empty())
    }

    fn families(&mut self) -> Option<(bool, bool)> {
        let right = "families: [\"IPv4\"], [\"IPv6\"] or both";
        let known = |text: &str| match text.to_ascii_lowercase().as_str() {
            "ipv4" => Some(true),
            "ipv6" => Some(false),
            _ => None,
        };
        let families = self.list(IP_FAMILIES, right, known)?;
        if families.is_empty() {
            self.wrong(IP_FAMILIES, &format!("must be a JSON list of {right}"));
            return None;
        }
        Some((families.contains(&true), families.contains(&false)))
    }

    fn mac(&mut self) -> Option<[u8; 6]> {
        let read = mac(self.text(HW_ADDR)?);
        if read.is_none() {
            self.wrong(
                HW_ADDR,
                "must be the MAC address of one interface, such as 02:00:5e:00:53:01",
            );
        }
        read
    }
}

/// A MAC address that one interface can have: six hexadecimal bytes with colons or dashes, not a group's.
pub fn mac(text: &str) -> Option<[u8; 6]> {
    let separator = if text.contains('-') { '-' } else { ':' };
    let bytes: Vec<u8> = text
        .split(separator)
        .map(|byte| {
            let digits = byte.len() == 2 && byte.bytes().all(|digit| digit.is_ascii_hexdigit());
            u8::from_str_radix(byte, 16).ok().filter(|_| digits)
        })
        .collect::<Option<_>>()?;
    let mac: [u8; 6] = bytes.try_into().ok()?;
    (mac[0] & 1 == 0 && mac != [0; 6]).then_some(mac)
}

#[cfg(test)]
mod tests;
