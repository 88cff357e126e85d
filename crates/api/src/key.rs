//! A resource's identity: kind, namespace, name.

use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::Kind;

/// Identifies one resource. Orders by kind, then namespace, then name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    /// What it is.
    pub kind: Kind,
    /// Where it is; `None` for cluster-wide kinds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// What it is called.
    pub name: String,
}

impl Key {
    /// The key of a cluster-wide resource.
    pub fn cluster(kind: Kind, name: impl Into<String>) -> Self {
        Self {
            kind,
            namespace: None,
            name: name.into(),
        }
    }

    /// The key of a namespaced resource.
    pub fn namespaced(kind: Kind, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            kind,
            namespace: Some(namespace.into()),
            name: name.into(),
        }
    }

    /// The key of the IPAM block that covers `cidr`.
    pub fn block(cidr: IpNet) -> Self {
        Self::cluster(Kind::IPAMBlock, crate::names::block_name(cidr))
    }

    /// The key of the affinity of `host` for the block `cidr`.
    pub fn affinity(host: &str, cidr: IpNet) -> Self {
        Self::cluster(Kind::BlockAffinity, crate::names::affinity_name(host, cidr))
    }

    /// The key of an IPAM handle. Upstream lower-cases handle names in CRDs; the id itself is kept in the spec.
    pub fn handle(id: &str) -> Self {
        Self::cluster(Kind::IPAMHandle, id.to_ascii_lowercase())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{}({namespace}/{})", self.kind, self.name),
            None => write!(f, "{}({})", self.kind, self.name),
        }
    }
}
