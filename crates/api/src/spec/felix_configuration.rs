//! FelixConfiguration: the agent's settings.

use serde::{Deserialize, Serialize};

use crate::Kind;
use crate::resource::{NoStatus, Spec};

/// Spec of a FelixConfiguration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FelixConfigurationSpec {
    /// MTU of `tunl0`; 0 or absent: from the underlay.
    #[serde(rename = "ipipMTU", skip_serializing_if = "Option::is_none")]
    pub ipip_mtu: Option<u32>,
    /// Whether IPIP is set up; absent: from the pools.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipip_enabled: Option<bool>,
    /// Interfaces whose MTU counts (regular expression).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu_iface_pattern: Option<String>,
    /// Protocol number of device routes; default 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_route_protocol: Option<u8>,
    /// Metric of ordinary IPv4 routes; default 1024.
    #[serde(rename = "ipv4NormalRoutePriority", skip_serializing_if = "Option::is_none")]
    pub ipv4_normal_route_priority: Option<u32>,
}

impl Spec for FelixConfigurationSpec {
    const KIND: Kind = Kind::FelixConfiguration;
    type Status = NoStatus;
}
