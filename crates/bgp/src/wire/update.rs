//! UPDATE (RFC 4271 4.3, RFC 4760, RFC 4724 2).

use std::net::IpAddr;

use bytes::{BufMut, Bytes, BytesMut};
use ipnet::IpNet;

use super::attributes::{self as wire, Block};
use super::reader::Reader;
use super::{HEADER, MAX_MESSAGE};
use crate::attributes::Attributes;
use crate::config::{Family, FamilySet};
use crate::message::{Announcement, Fault, Notification, Remedy, Update};

/// What a session negotiated, as far as it changes the meaning of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpdateContext {
    /// Both sides have four-octet ASes (RFC 6793).
    pub four_octet_as: bool,
    /// The peer is in our AS.
    pub internal: bool,
    /// Families of the session; others are ignored.
    pub families: FamilySet,
}

/// Reads the body of an UPDATE.
pub fn decode_update(body: &[u8], context: &UpdateContext) -> Result<Update, Notification> {
    let malformed = || Notification::MALFORMED_ATTRIBUTE_LIST;
    let mut reader = Reader(body);
    let length = usize::from(reader.u16().ok_or_else(malformed)?);
    let withdrawn = reader.take(length).ok_or_else(malformed)?;
    let length = usize::from(reader.u16().ok_or_else(malformed)?);
    let block = reader.take(length).ok_or_else(malformed)?;
    let announced = reader.0;

    if withdrawn.is_empty() && block.is_empty() && announced.is_empty() {
        return Ok(Update {
            end_of_rib: Some(Family::Ipv4),
            ..Update::default()
        });
    }
    let network = || Notification::INVALID_NETWORK_FIELD;
    let mut withdrawn = wire::prefixes(Family::Ipv4, withdrawn).ok_or_else(network)?;
    let mut announced = wire::prefixes(Family::Ipv4, announced).ok_or_else(network)?;
    if !context.families.contains(Family::Ipv4) {
        withdrawn.clear();
        announced.clear();
    }
    let block = Block::decode(block, context)?;
    Ok(assemble(withdrawn, announced, block))
}

fn assemble(mut withdrawn: Vec<IpNet>, announced: Vec<IpNet>, mut block: Block) -> Update {
    let mut end_of_rib = None;
    if let Some(unreach) = block.unreach.take() {
        if unreach.prefixes.is_empty() && withdrawn.is_empty() && announced.is_empty() && block.only_unreach() {
            end_of_rib = Some(unreach.family);
        }
        withdrawn.extend(unreach.prefixes);
    }
    let (mp_next_hop, mp_announced) = match block.reach.take() {
        Some(reach) => (Some(reach.next_hop), reach.prefixes),
        None => (None, Vec::new()),
    };
    if !(announced.is_empty() && mp_announced.is_empty()) {
        // RFC 7606 3 d: a missing mandatory attribute.
        let missing = [wire::ORIGIN, wire::AS_PATH].into_iter().find(|code| !block.has(*code));
        let next_hop_missing = !announced.is_empty() && !block.has(wire::NEXT_HOP);
        if let Some(code) = missing.or(next_hop_missing.then_some(wire::NEXT_HOP)) {
            block.fault(code, Remedy::TreatAsWithdraw);
        }
    }
    let Block {
        attributes,
        classic_next_hop,
        faults,
        ..
    } = block;
    if faults
        .iter()
        .any(|fault: &Fault| fault.remedy == Remedy::TreatAsWithdraw)
    {
        withdrawn.extend(announced);
        withdrawn.extend(mp_announced);
        return Update {
            withdrawn,
            announced: Vec::new(),
            end_of_rib,
            faults,
        };
    }
    let sources = [
        (classic_next_hop.map(IpAddr::V4), announced),
        (mp_next_hop, mp_announced),
    ];
    let announced = sources
        .into_iter()
        .filter(|(_, prefixes)| !prefixes.is_empty())
        .filter_map(|(next_hop, prefixes)| {
            let attributes = Attributes {
                next_hop: next_hop?,
                ..attributes.clone()
            };
            Some(Announcement { attributes, prefixes })
        })
        .collect();
    Update {
        withdrawn,
        announced,
        end_of_rib,
        faults,
    }
}

/// Prefixes of one family with common attributes, in as few messages as possible.
///
/// IPv4 goes into the classic fields, IPv6 into MP_REACH_NLRI. `None` if the attributes leave no room for a prefix or
/// the next hop is of another family: such a path cannot be told.
pub fn encode_announcement(attributes: &Attributes, prefixes: &[IpNet], four_octet_as: bool) -> Option<Vec<Bytes>> {
    let family = Family::of(prefixes.first()?);
    let classic = match (family, attributes.next_hop) {
        (Family::Ipv4, IpAddr::V4(_)) => true,
        (Family::Ipv6, IpAddr::V6(_)) => false,
        (Family::Ipv4, IpAddr::V6(_)) | (Family::Ipv6, IpAddr::V4(_)) => return None,
    };
    let mut block = BytesMut::with_capacity(64);
    wire::put_attributes(&mut block, attributes, classic, four_octet_as);
    // Header, two lengths, and for IPv6 the attribute's header, AFI, SAFI, next hop with its length, reserved octet.
    let overhead = HEADER + 4 + block.len() + if classic { 0 } else { 4 + 3 + 17 + 1 };
    let room = MAX_MESSAGE.checked_sub(overhead).filter(|room| *room >= 17)?;

    let mut messages = Vec::new();
    for chunk in chunks(prefixes, room) {
        messages.push(super::framed(super::UPDATE, |out| {
            out.reserve(MAX_MESSAGE.min(overhead + 17 * chunk.len()));
            out.put_u16(0);
            out.put_u16(0);
            let start = out.len();
            if !classic {
                // RFC 7606 5.1: first, so that a broken attribute cannot hide the prefixes.
                wire::open_mp_reach(out, family, attributes.next_hop);
                chunk.iter().for_each(|prefix| wire::put_prefix(out, prefix));
                wire::close_mp(out, start);
            }
            out.put_slice(&block);
            set_length(out, start);
            if classic {
                chunk.iter().for_each(|prefix| wire::put_prefix(out, prefix));
            }
        }));
    }
    Some(messages)
}

/// Withdraws prefixes of one family.
pub fn encode_withdrawal(prefixes: &[IpNet]) -> Vec<Bytes> {
    let Some(family) = prefixes.first().map(Family::of) else {
        return Vec::new();
    };
    let room = MAX_MESSAGE - HEADER - 4 - 7;
    let message = |chunk: &[IpNet]| match family {
        Family::Ipv4 => super::framed(super::UPDATE, |out| {
            out.put_u16(0);
            let start = out.len();
            chunk.iter().for_each(|prefix| wire::put_prefix(out, prefix));
            set_length(out, start);
            out.put_u16(0);
        }),
        Family::Ipv6 => mp_withdrawal(chunk),
    };
    chunks(prefixes, room).map(message).collect()
}

/// Says that the initial update of a family is complete (RFC 4724 2).
pub fn encode_end_of_rib(family: Family) -> Bytes {
    match family {
        Family::Ipv4 => super::framed(super::UPDATE, |out| out.put_u32(0)),
        Family::Ipv6 => mp_withdrawal(&[]),
    }
}

fn mp_withdrawal(prefixes: &[IpNet]) -> Bytes {
    super::framed(super::UPDATE, |out| {
        out.put_u16(0);
        out.put_u16(0);
        let start = out.len();
        wire::open_mp_unreach(out, Family::Ipv6);
        prefixes.iter().for_each(|prefix| wire::put_prefix(out, prefix));
        wire::close_mp(out, start);
        set_length(out, start);
    })
}

/// Fills in the two-octet length just before `start`.
fn set_length(out: &mut BytesMut, start: usize) {
    let length = u16::try_from(out.len() - start).expect("a message has at most 4096 bytes");
    out[start - 2..start].copy_from_slice(&length.to_be_bytes());
}

/// Cuts a list so that each part takes at most `room` octets; `room` is at least one prefix.
fn chunks(mut prefixes: &[IpNet], room: usize) -> impl Iterator<Item = &[IpNet]> {
    std::iter::from_fn(move || {
        let mut used = 0;
        let fitting = prefixes
            .iter()
            .take_while(|prefix| {
                used += wire::prefix_size(prefix);
                used <= room
            })
            .count();
        let (chunk, rest) = prefixes.split_at(fitting);
        prefixes = rest;
        (!chunk.is_empty()).then_some(chunk)
    })
}
