//! What the runtime passes for one attachment inside the configuration: `runtimeConfig`, for the capabilities that the
//! configuration declares, and `args.cni` (CNI's conventions).

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::fields::Fields;

/// What the runtime asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Runtime {
    /// `ips`: these addresses, at most one of each family.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpAddr>,
    /// `mac`: the MAC address of the interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// `bandwidth`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// `portMappings`
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
}

/// Limits, under the convention's names or under containerd's, which begin with a capital. 0 means none, or the default beside a rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Bandwidth {
    /// Bits per second to the container.
    #[serde(alias = "IngressRate")]
    pub ingress_rate: u64,
    /// Burst to the container in bits.
    #[serde(alias = "IngressBurst")]
    pub ingress_burst: u64,
    /// Bits per second from the container.
    #[serde(alias = "EgressRate")]
    pub egress_rate: u64,
    /// Burst from the container in bits.
    #[serde(alias = "EgressBurst")]
    pub egress_burst: u64,
}

/// A port of the host that leads to one of the container; names as for [`Bandwidth`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// Port on the host.
    #[serde(alias = "HostPort")]
    pub host_port: u16,
    /// Port of the container.
    #[serde(alias = "ContainerPort")]
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`, in any case.
    #[serde(default = "tcp", alias = "Protocol")]
    pub protocol: String,
    /// Address on the host; empty: any.
    #[serde(
        default,
        rename = "hostIP",
        alias = "HostIP",
        skip_serializing_if = "String::is_empty"
    )]
    pub host_ip: String,
}

fn tcp() -> String {
    "tcp".into()
}

/// Reads `runtimeConfig` and `args`. The runtime's own word counts before the older convention's.
pub(super) fn read(fields: &mut Fields) -> Runtime {
    let mut runtime = Runtime::default();
    fields.object("runtimeConfig", |config| {
        runtime.ips = ips(config);
        runtime.mac = config.string("mac").filter(|mac| !mac.is_empty());
        if runtime.mac.as_deref().is_some_and(|mac| !is_mac(mac)) {
            config.problem("mac", "the MAC address of one interface, such as \"02:00:5e:00:53:01\"");
        }
        let right = "an object with ingressRate, ingressBurst, egressRate and egressBurst in bits, not negative";
        runtime.bandwidth = config
            .decoded("bandwidth", right)
            .filter(|limits| *limits != Bandwidth::default());
        let right =
            "a list of {\"hostPort\": 8080, \"containerPort\": 80, \"protocol\": \"tcp\", \"hostIP\": \"10.0.0.1\"}";
        runtime.port_mappings = config.decoded("portMappings", right).unwrap_or_default();
        // Docker's relatives list ports that are not published as port 0 of the host.
        runtime.port_mappings.retain(|mapping| mapping.host_port != 0);
        if !runtime.port_mappings.iter().all(PortMapping::is_right) {
            config.problem("portMappings", right);
        }
    });
    fields.object("args", |args| {
        args.object("cni", |cni| {
            let older = ips(cni);
            if runtime.ips.is_empty() {
                runtime.ips = older;
            }
        });
    });
    runtime
}

fn ips(fields: &mut Fields) -> Vec<IpAddr> {
    let right = "a list of addresses, at most one of each family, with or without a prefix length";
    let texts = fields.strings("ips").unwrap_or_default();
    let address = |text: &String| {
        let bare = || text.parse::<IpAddr>().ok();
        bare().or_else(|| text.parse::<IpNet>().ok().map(|net| net.addr()))
    };
    let addresses: Option<Vec<IpAddr>> = texts.iter().map(address).collect();
    let of_v4 = |all: &[IpAddr]| all.iter().filter(|address| address.is_ipv4()).count();
    match addresses.filter(|all| of_v4(all) <= 1 && all.len() - of_v4(all) <= 1) {
        Some(addresses) => addresses,
        None => {
            fields.problem("ips", right);
            Vec::new()
        }
    }
}

/// Six hexadecimal bytes, of one interface and not of a group.
pub(crate) fn is_mac(text: &str) -> bool {
    let bytes: Vec<&str> = text.split([':', '-']).collect();
    let is_byte = |byte: &&str| byte.len() == 2 && byte.bytes().all(|digit| digit.is_ascii_hexdigit());
    let odd = |digit: u8| {
        matches!(
            digit,
            b'1' | b'3' | b'5' | b'7' | b'9' | b'b' | b'd' | b'f' | b'B' | b'D' | b'F'
        )
    };
    bytes.len() == 6 && bytes.iter().all(is_byte) && !odd(bytes[0].as_bytes()[1])
}

impl PortMapping {
    fn is_right(&self) -> bool {
        let protocol = self.protocol.to_ascii_lowercase();
        let host = self.host_ip.is_empty() || self.host_ip.parse::<IpAddr>().is_ok();
        self.container_port != 0 && ["tcp", "udp", "sctp"].contains(&protocol.as_str()) && host
    }
}
