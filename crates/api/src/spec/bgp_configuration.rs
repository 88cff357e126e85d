//! BGPConfiguration: cluster-wide (`default`) and per-node (`node.<name>`) BGP settings.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Kind;
use crate::resource::{NoStatus, Spec};

/// Spec of a BGPConfiguration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BgpConfigurationSpec {
    /// Every node peers with every other; default true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_to_node_mesh_enabled: Option<bool>,
    /// The cluster's AS; default 64512.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub as_number: Option<AsNumber>,
    /// TCP port to listen on; default 179.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen_port: Option<u16>,
}

/// An autonomous system number, 0 to 4294967295; text may be dotted (`1.10`, RFC 5396).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AsNumber(pub u32);

impl AsNumber {
    /// Upstream's default for a cluster.
    pub const DEFAULT: AsNumber = AsNumber(64512);
}

impl fmt::Display for AsNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for AsNumber {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = match text.split_once('.') {
            Some((high, low)) => high
                .parse::<u16>()
                .ok()
                .zip(low.parse::<u16>().ok())
                .map(|(high, low)| (u32::from(high) << 16) | u32::from(low)),
            None => text.parse().ok(),
        };
        number
            .map(AsNumber)
            .ok_or_else(|| format!("`{text}` is not an AS number: 0 to 4294967295, or two 16-bit numbers with a dot"))
    }
}

impl Spec for BgpConfigurationSpec {
    const KIND: Kind = Kind::BGPConfiguration;
    type Status = NoStatus;
}
