//! The result of ADD, and its form in each version of the specification.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::version::Version;

/// What ADD made, in the terms of the newest version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CniResult {
    /// Interfaces; empty in the result of an IPAM plugin.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<Ip>,
    /// Routes in the container.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// DNS settings, passed through.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub dns: Map<String, Value>,
}

/// An interface, on the host or in the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its MAC address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU; since 1.1.0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The network namespace; empty on the host.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ip {
    /// Index into `interfaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// With prefix length.
    pub address: IpNet,
    /// Its gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// A route in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub dst: IpNet,
    /// By which gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// MTU; since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

impl CniResult {
    /// The document a runtime of this version reads.
    pub fn to_json(&self, version: Version) -> Value {
        let mut document = Map::new();
        document.insert("cniVersion".into(), json!(version.text()));
        if !self.interfaces.is_empty() {
            let interfaces = self
                .interfaces
                .iter()
                .map(|interface| interface.to_json(version))
                .collect();
            document.insert("interfaces".into(), Value::Array(interfaces));
        }
        document.insert(
            "ips".into(),
            Value::Array(self.ips.iter().map(|ip| ip.to_json(version)).collect()),
        );
        if !self.routes.is_empty() {
            let routes = self.routes.iter().map(|route| route.to_json(version)).collect();
            document.insert("routes".into(), Value::Array(routes));
        }
        document.insert("dns".into(), Value::Object(self.dns.clone()));
        Value::Object(document)
    }
}

impl Interface {
    fn to_json(&self, version: Version) -> Value {
        let older = Interface {
            mtu: None,
            ..self.clone()
        };
        json!(if version < Version::V1_1_0 { &older } else { self })
    }
}

impl Ip {
    fn to_json(&self, version: Version) -> Value {
        let mut value = json!(self);
        if version < Version::V1_0_0 {
            value["version"] = json!(if self.address.addr().is_ipv4() { "4" } else { "6" });
        }
        value
    }
}

impl Route {
    fn to_json(&self, version: Version) -> Value {
        let older = Route {
            mtu: None,
            ..self.clone()
        };
        json!(if version < Version::V1_1_0 { &older } else { self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> CniResult {
        CniResult {
            interfaces: vec![
                Interface {
                    name: "cali0".into(),
                    mac: "ee:ee:ee:ee:ee:ee".into(),
                    ..Interface::default()
                },
                Interface {
                    name: "eth0".into(),
                    mtu: Some(1480),
                    sandbox: "/run/netns/a".into(),
                    ..Interface::default()
                },
            ],
            ips: vec![
                Ip {
                    interface: Some(1),
                    address: "192.168.0.1/32".parse().unwrap(),
                    gateway: None,
                },
                Ip {
                    interface: Some(1),
                    address: "fd00::1/128".parse().unwrap(),
                    gateway: None,
                },
            ],
            routes: vec![Route {
                dst: "0.0.0.0/0".parse().unwrap(),
                gw: Some([169, 254, 1, 1].into()),
                mtu: Some(1480),
            }],
            dns: Map::new(),
        }
    }

    fn check(version: Version, wanted: Value) {
        assert_eq!(sample().to_json(version), wanted, "{version}");
    }

    #[test]
    fn the_newest_version_has_everything() {
        check(
            Version::V1_1_0,
            json!({
                "cniVersion": "1.1.0",
                "interfaces": [
                    {"name": "cali0", "mac": "ee:ee:ee:ee:ee:ee"},
                    {"name": "eth0", "mtu": 1480, "sandbox": "/run/netns/a"},
                ],
                "ips": [{"interface": 1, "address": "192.168.0.1/32"}, {"interface": 1, "address": "fd00::1/128"}],
                "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1", "mtu": 1480}],
                "dns": {},
            }),
        );
    }

    #[test]
    fn version_1_0_has_no_mtu() {
        check(
            Version::V1_0_0,
            json!({
                "cniVersion": "1.0.0",
                "interfaces": [{"name": "cali0", "mac": "ee:ee:ee:ee:ee:ee"}, {"name": "eth0", "sandbox": "/run/netns/a"}],
                "ips": [{"interface": 1, "address": "192.168.0.1/32"}, {"interface": 1, "address": "fd00::1/128"}],
                "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}],
                "dns": {},
            }),
        );
    }

    #[test]
    fn older_versions_name_the_family() {
        for version in [Version::V0_3_0, Version::V0_3_1, Version::V0_4_0] {
            check(
                version,
                json!({
                    "cniVersion": version.text(),
                    "interfaces": [{"name": "cali0", "mac": "ee:ee:ee:ee:ee:ee"}, {"name": "eth0", "sandbox": "/run/netns/a"}],
                    "ips": [
                        {"version": "4", "interface": 1, "address": "192.168.0.1/32"},
                        {"version": "6", "interface": 1, "address": "fd00::1/128"},
                    ],
                    "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}],
                    "dns": {},
                }),
            );
        }
    }

    #[test]
    fn a_result_of_any_version_is_read_back() {
        for version in Version::ALL {
            let read: CniResult = serde_json::from_value(sample().to_json(version)).unwrap();
            assert_eq!(read.ips, sample().ips, "{version}");
        }
    }

    #[test]
    fn an_address_alone_is_an_ipam_result() {
        let result = CniResult {
            ips: sample().ips,
            ..CniResult::default()
        };
        let keys: Vec<_> = result
            .to_json(Version::V0_4_0)
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect();
        assert_eq!(keys, ["cniVersion", "dns", "ips"]);
    }
}
