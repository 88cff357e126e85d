//! IPReservation: addresses that are never handed out (upstream `ipreservation.go`).

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::ConditionsStatus;
use crate::problem::Problems;
use crate::resource::Spec;
use crate::value::net;
use crate::{Kind, Metadata};

/// Spec of an IPReservation. Addresses that are in use already stay in use; one that is asked for by itself is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IpReservationSpec {
    /// The ranges; bits behind a prefix length mean nothing.
    #[serde(rename = "reservedCIDRs", skip_serializing_if = "Vec::is_empty", with = "net::many")]
    pub reserved_cidrs: Vec<IpNet>,
}

impl Spec for IpReservationSpec {
    const KIND: Kind = Kind::IPReservation;
    type Status = ConditionsStatus;

    fn check(&self, _: &Metadata, problems: &mut Problems) {
        if self.reserved_cidrs.is_empty() {
            problems.missing("reservedCIDRs", "is required: the ranges that are reserved");
        }
    }
}
