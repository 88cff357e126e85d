//! BGPConfiguration: cluster-wide (`default`) and per-node (`node.<name>`) BGP settings.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{ConditionsStatus, LogSeverity, Switch};
use crate::names::NameRule;
use crate::problem::Problems;
use crate::resource::Spec;
use crate::value::{AsNumber, Duration, check, choice, net};
use crate::{Kind, Metadata};

/// Spec of a BGPConfiguration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BgpConfigurationSpec {
    /// Least severity of log lines; default Info.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_severity_screen: Option<LogSeverity>,
    /// Every node peers with every other; default true. Only in `default`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_to_node_mesh_enabled: Option<bool>,
    /// The cluster's AS; default 64512. Only in `default`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub as_number: Option<AsNumber>,
    /// Ranges of load balancer addresses to announce. Only in `default`.
    #[serde(rename = "serviceLoadBalancerIPs", skip_serializing_if = "Vec::is_empty")]
    pub service_load_balancer_ips: Vec<ServiceRange>,
    /// Ranges of external service addresses to announce. Only in `default`.
    #[serde(rename = "serviceExternalIPs", skip_serializing_if = "Vec::is_empty")]
    pub service_external_ips: Vec<ServiceRange>,
    /// Ranges of cluster service addresses to announce. Only in `default`.
    #[serde(rename = "serviceClusterIPs", skip_serializing_if = "Vec::is_empty")]
    pub service_cluster_ips: Vec<ServiceRange>,
    /// Whether whole ranges of load balancer addresses are announced (default), or single addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_load_balancer_aggregation: Option<Switch>,
    /// Names for communities, at most 500.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub communities: Vec<NamedCommunity>,
    /// Communities of announced prefixes, at most 500.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prefix_advertisements: Vec<PrefixAdvertisement>,
    /// TCP port to listen on; default 179.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen_port: Option<u16>,
    /// Addresses to listen on; default all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind_mode: Option<BindMode>,
    /// Interfaces whose routes are not announced; `*` stands for anything.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ignored_interfaces: Vec<String>,
    /// TCP-MD5 password of the mesh. Only with the mesh on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_mesh_password: Option<BgpPassword>,
    /// Graceful restart time of the mesh; default 120 s. Only with the mesh on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_mesh_max_restart_time: Option<Duration>,
    /// Address that pods peer with.
    #[serde(
        rename = "localWorkloadPeeringIPV4",
        skip_serializing_if = "Option::is_none",
        with = "net::optional"
    )]
    pub local_workload_peering_ipv4: Option<Ipv4Addr>,
    /// Address that pods peer with.
    #[serde(
        rename = "localWorkloadPeeringIPV6",
        skip_serializing_if = "Option::is_none",
        with = "net::optional"
    )]
    pub local_workload_peering_ipv6: Option<Ipv6Addr>,
    /// Which routes to other nodes' blocks BGP writes to the kernel; default `EnabledNoEncapOnly`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program_cluster_routes: Option<ProgramClusterRoutes>,
    /// Metric of ordinary IPv4 routes; default 1024; as in FelixConfiguration.
    #[serde(rename = "ipv4NormalRoutePriority", skip_serializing_if = "Option::is_none")]
    pub ipv4_normal_route_priority: Option<u32>,
    /// Metric of ordinary IPv6 routes; default 1024; as in FelixConfiguration.
    #[serde(rename = "ipv6NormalRoutePriority", skip_serializing_if = "Option::is_none")]
    pub ipv6_normal_route_priority: Option<u32>,
}

/// A range of service addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceRange {
    /// The range; without one the entry is ignored.
    #[serde(skip_serializing_if = "Option::is_none", with = "net::optional")]
    pub cidr: Option<IpNet>,
}

/// A community with a name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NamedCommunity {
    /// The name.
    pub name: String,
    /// `aa:nn` of 16 bits each or `aa:nn:mm` of 32 bits each.
    pub value: String,
}

/// The communities of a prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefixAdvertisement {
    /// The prefix.
    #[serde(with = "net::one")]
    pub cidr: IpNet,
    /// Names or values of communities, at most 50.
    #[serde(default)]
    pub communities: Vec<String>,
}

/// Where a password is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BgpPassword {
    /// A key of a Secret in the agent's namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<SecretKeyRef>,
}

/// A key of a Kubernetes Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretKeyRef {
    /// The Secret.
    #[serde(default)]
    pub name: String,
    /// The key in it.
    pub key: String,
    /// Whether it may be missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optional: Option<bool>,
}

choice! {
    /// Addresses that BGP listens on.
    pub enum BindMode {
        /// All.
        None = "None",
        /// Those of the node.
        NodeIp = "NodeIP",
    }
}

choice! {
    /// Which kernel routes to other nodes' blocks a part of the system writes.
    pub enum ProgramClusterRoutes {
        /// All.
        Enabled = "Enabled",
        /// None.
        Disabled = "Disabled",
        /// Those of IPIP pools.
        EnabledIpipOnly = "EnabledIPIPOnly",
        /// Those of pools without encapsulation.
        EnabledNoEncapOnly = "EnabledNoEncapOnly",
    }
}

/// A BGP community.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Community {
    /// RFC 1997.
    Standard(u16, u16),
    /// RFC 8092.
    Large(u32, u32, u32),
}

impl FromStr for Community {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const RIGHT: &str = "must be a community: aa:nn of 16 bits each or aa:nn:mm of 32 bits each";
        fn number<T: FromStr>(text: &str) -> Result<T, &'static str> {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse().ok()).flatten().ok_or(RIGHT)
        }
        match *text.split(':').collect::<Vec<_>>() {
            [a, b] => Ok(Community::Standard(number(a)?, number(b)?)),
            [a, b, c] => Ok(Community::Large(number(a)?, number(b)?, number(c)?)),
            _ => Err(RIGHT),
        }
    }
}

impl BgpConfigurationSpec {
    /// Whether every node peers with every other.
    pub fn mesh_enabled(&self) -> bool {
        self.node_to_node_mesh_enabled.unwrap_or(true)
    }

    /// The communities of a prefix advertisement, names resolved; what has no meaning is left out.
    pub fn communities_of(&self, advertisement: &PrefixAdvertisement) -> Vec<Community> {
        let value = |text: &String| {
            self.communities
                .iter()
                .find(|named| named.name == *text)
                .map_or(text, |named| &named.value)
                .parse()
                .ok()
        };
        advertisement.communities.iter().filter_map(value).collect()
    }

    fn check_default_only(&self, problems: &mut Problems) {
        let here = [
            ("nodeToNodeMeshEnabled", self.node_to_node_mesh_enabled.is_some()),
            ("asNumber", self.as_number.is_some()),
            ("serviceLoadBalancerIPs", !self.service_load_balancer_ips.is_empty()),
            ("serviceExternalIPs", !self.service_external_ips.is_empty()),
            ("serviceClusterIPs", !self.service_cluster_ips.is_empty()),
            ("nodeMeshPassword", self.node_mesh_password.is_some()),
            ("nodeMeshMaxRestartTime", self.node_mesh_max_restart_time.is_some()),
        ];
        for (field, _) in here.iter().filter(|(_, set)| *set) {
            problems.missing(field, "must be absent: only the BGPConfiguration `default` may set it");
        }
    }

    fn check_communities(&self, problems: &mut Problems) {
        check::at_most("communities", self.communities.len(), 500, problems);
        check::at_most("prefixAdvertisements", self.prefix_advertisements.len(), 500, problems);
        problems.each("communities", &self.communities, |problems, community| {
            if community.name.is_empty() {
                problems.missing("name", "is required");
            }
            check::name("name", &community.name, problems);
            if let Err(right) = community.value.parse::<Community>() {
                problems.report("value", &community.value, right);
            }
        });
        if self.prefix_advertisements.is_empty() && !self.communities.is_empty() {
            problems.missing("communities", "must be used by prefixAdvertisements");
        }
        problems.each(
            "prefixAdvertisements",
            &self.prefix_advertisements,
            |problems, advertisement| {
                check::masked("cidr", advertisement.cidr, problems);
                check::at_most("communities", advertisement.communities.len(), 50, problems);
                if advertisement.communities.is_empty() {
                    problems.missing("communities", "is required");
                }
                problems.each("communities", &advertisement.communities, |problems, community| {
                    let is_name = self.communities.iter().any(|named| named.name == *community);
                    if !is_name && community.parse::<Community>().is_err() {
                        problems.report(
                            "",
                            community,
                            "must be the name of one of spec.communities, aa:nn or aa:nn:mm",
                        );
                    }
                });
            },
        );
    }
}

impl Spec for BgpConfigurationSpec {
    const KIND: Kind = Kind::BGPConfiguration;
    const NAMES: NameRule = NameRule::DefaultOrNode;
    type Status = ConditionsStatus;

    fn check(&self, metadata: &Metadata, problems: &mut Problems) {
        if metadata.name != "default" {
            self.check_default_only(problems);
        }
        let ranges = [
            ("serviceLoadBalancerIPs", &self.service_load_balancer_ips),
            ("serviceExternalIPs", &self.service_external_ips),
            ("serviceClusterIPs", &self.service_cluster_ips),
        ];
        for (field, ranges) in ranges {
            problems.each(field, ranges, |problems, range| {
                if let Some(cidr) = range.cidr {
                    check::masked("cidr", cidr, problems);
                }
            });
        }
        self.check_communities(problems);
        if self.listen_port == Some(0) {
            problems.report("listenPort", 0, "must be from 1 to 65535");
        }
        problems.each("ignoredInterfaces", &self.ignored_interfaces, |problems, interface| {
            if interface == "*" || !check::is_interface(interface, "_.*-") {
                problems.report(
                    "",
                    interface,
                    "must be an interface, where `*` stands for some of it but not for all",
                );
            }
        });
        if !self.mesh_enabled() {
            if self.node_mesh_password.is_some() {
                problems.missing(
                    "nodeMeshPassword",
                    "must be absent while nodeToNodeMeshEnabled is false",
                );
            }
            if self.node_mesh_max_restart_time.is_some() {
                problems.missing(
                    "nodeMeshMaxRestartTime",
                    "must be absent while nodeToNodeMeshEnabled is false",
                );
            }
        }
    }
}
