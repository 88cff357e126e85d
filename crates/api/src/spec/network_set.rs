//! NetworkSet and GlobalNetworkSet: address ranges with labels, which selectors of rules match like endpoints (upstream
//! `networkset.go`, `globalnetworkset.go`).

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::Kind;
use crate::resource::{NoStatus, Spec};
use crate::value::net;

/// Spec of a NetworkSet: rules of its namespace's policies match it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkSetSpec {
    /// The ranges; bits behind a prefix length mean nothing.
    #[serde(skip_serializing_if = "Vec::is_empty", with = "net::many")]
    pub nets: Vec<IpNet>,
}

/// Spec of a GlobalNetworkSet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GlobalNetworkSetSpec {
    /// The ranges; bits behind a prefix length mean nothing.
    #[serde(skip_serializing_if = "Vec::is_empty", with = "net::many")]
    pub nets: Vec<IpNet>,
}

impl Spec for NetworkSetSpec {
    const KIND: Kind = Kind::NetworkSet;
    type Status = NoStatus;
}

impl Spec for GlobalNetworkSetSpec {
    const KIND: Kind = Kind::GlobalNetworkSet;
    type Status = NoStatus;
}
