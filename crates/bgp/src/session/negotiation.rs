//! OPEN: what we offer, what we accept, what both sides then can do (RFC 4271 6.2, RFC 5492).

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::config::{Family, FamilySet, PeerConfig};
use crate::graceful::PeerRestart;
use crate::message::{AS_TRANS, AfiSafi, Capability, GracefulCapability, Notification, Open};
use crate::status::{Negotiated, OpenError};

/// What the speaker around a session says of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Local {
    pub(crate) asn: u32,
    pub(crate) router_id: Ipv4Addr,
    /// Restart time to announce.
    pub(crate) graceful_restart: Option<Duration>,
    /// R bit.
    pub(crate) restarted: bool,
    /// The forwarding table survived the start of this speaker.
    pub(crate) preserved: bool,
}

/// Our OPEN.
pub(super) fn open(config: &PeerConfig, local: &Local, established_before: bool) -> Open {
    let mut capabilities: Vec<_> = config
        .families
        .iter()
        .map(|family| Capability::Multiprotocol(AfiSafi::from(*family)))
        .collect();
    capabilities.push(Capability::RouteRefresh);
    if let Some(restart_time) = local.graceful_restart {
        // F: within the life of this speaker, or where the table outlived the last one, forwarding went on.
        let forwarding = local.preserved || established_before;
        capabilities.push(Capability::GracefulRestart(GracefulCapability {
            restarted: local.restarted,
            restart_time: u16::try_from(restart_time.as_secs()).unwrap_or(u16::MAX).min(4095),
            families: config
                .families
                .iter()
                .map(|family| (AfiSafi::from(*family), forwarding))
                .collect(),
        }));
    }
    capabilities.push(Capability::FourOctetAs(local.asn));
    Open {
        my_as: u16::try_from(local.asn).unwrap_or(AS_TRANS),
        hold_time: u16::try_from(config.hold_time.as_secs()).unwrap_or(u16::MAX),
        router_id: local.router_id,
        capabilities,
    }
}

/// RFC 4271 6.2: what both sides can do, or why we refuse.
pub(super) fn negotiate(config: &PeerConfig, local: &Local, open: &Open) -> Result<Negotiated, OpenError> {
    if open.asn() != config.asn {
        return Err(OpenError::BadPeerAs {
            expected: config.asn,
            got: open.asn(),
        });
    }
    let same_as = config.asn == local.asn;
    if open.router_id.is_unspecified() || (same_as && open.router_id == local.router_id) {
        return Err(OpenError::BadIdentifier(open.router_id));
    }
    if matches!(open.hold_time, 1 | 2) {
        return Err(OpenError::UnacceptableHoldTime(open.hold_time));
    }
    let families = common_families(config, open);
    if families.is_empty() {
        return Err(OpenError::NoCommonFamily);
    }
    let has = |wanted: fn(&Capability) -> bool| open.capabilities.iter().any(wanted);
    Ok(Negotiated {
        router_id: open.router_id,
        families,
        four_octet_as: has(|capability| matches!(capability, Capability::FourOctetAs(_))),
        route_refresh: has(|capability| matches!(capability, Capability::RouteRefresh)),
        hold_time: Duration::from_secs(u64::from(open.hold_time)).min(config.hold_time),
        restart: local.graceful_restart.and_then(|_| peer_restart(families, open)),
    })
}

/// RFC 4760 8: a peer that announces no family at all speaks IPv4 unicast.
fn common_families(config: &PeerConfig, open: &Open) -> FamilySet {
    let announced = open.capabilities.iter().filter_map(|capability| match capability {
        Capability::Multiprotocol(family) => Some(*family),
        _ => None,
    });
    let announced: Vec<_> = announced.collect();
    let theirs: FamilySet = match announced.is_empty() {
        true => [Family::Ipv4].into_iter().collect(),
        false => announced.into_iter().filter_map(AfiSafi::family).collect(),
    };
    theirs
        .iter()
        .filter(|family| config.families.contains(family))
        .collect()
}

fn peer_restart(families: FamilySet, open: &Open) -> Option<PeerRestart> {
    // RFC 4724 3: if it is there more than once, the last one counts.
    let graceful = open.capabilities.iter().rev().find_map(|capability| match capability {
        Capability::GracefulRestart(graceful) => Some(graceful),
        _ => None,
    })?;
    let ours = |(family, forwarding): &(AfiSafi, bool)| {
        family
            .family()
            .filter(|family| families.contains(*family))
            .map(|family| (family, *forwarding))
    };
    let preserved: Vec<_> = graceful.families.iter().filter_map(ours).collect();
    Some(PeerRestart {
        restarted: graceful.restarted,
        restart_time: Duration::from_secs(u64::from(graceful.restart_time)),
        families: preserved.iter().map(|(family, _)| *family).collect(),
        forwarding: preserved
            .iter()
            .filter(|(_, forwarding)| *forwarding)
            .map(|(family, _)| *family)
            .collect(),
    })
}

pub(super) fn refusal(error: &OpenError, config: &PeerConfig) -> Notification {
    match error {
        OpenError::BadPeerAs { .. } => Notification::BAD_PEER_AS,
        OpenError::BadIdentifier(_) => Notification::BAD_IDENTIFIER,
        OpenError::UnacceptableHoldTime(_) => Notification::UNACCEPTABLE_HOLD_TIME,
        OpenError::NoCommonFamily => {
            // RFC 5492 5: the data lists the capabilities that we miss.
            let missing = config.families.iter().flat_map(|family| {
                let AfiSafi { afi, safi } = AfiSafi::from(*family);
                [1, 4, 0, afi as u8, 0, safi]
            });
            Notification {
                data: missing.collect(),
                ..Notification::bare(2, 7)
            }
        }
    }
}
