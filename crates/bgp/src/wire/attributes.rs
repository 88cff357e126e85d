//! The path attributes of an UPDATE (RFC 4271 4.3), with the error handling of RFC 7606.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::{BufMut, BytesMut};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::reader::Reader;
use super::update::UpdateContext;
use crate::attributes::{Aggregator, AsPath, Attributes, Community, Origin, Segment, UnknownAttribute};
use crate::config::Family;
use crate::message::{AS_TRANS, AfiSafi, Fault, Notification, Remedy};

const OPTIONAL: u8 = 0x80;
const TRANSITIVE: u8 = 0x40;
const PARTIAL: u8 = 0x20;
const EXTENDED: u8 = 0x10;

pub(super) const ORIGIN: u8 = 1;
pub(super) const AS_PATH: u8 = 2;
pub(super) const NEXT_HOP: u8 = 3;
const MED: u8 = 4;
const LOCAL_PREF: u8 = 5;
const ATOMIC_AGGREGATE: u8 = 6;
const AGGREGATOR: u8 = 7;
const COMMUNITIES: u8 = 8;
const ORIGINATOR_ID: u8 = 9;
const CLUSTER_LIST: u8 = 10;
const MP_REACH: u8 = 14;
const MP_UNREACH: u8 = 15;
const EXTENDED_COMMUNITIES: u8 = 16;
const AS4_PATH: u8 = 17;
const AS4_AGGREGATOR: u8 = 18;
const LARGE_COMMUNITIES: u8 = 32;

/// The attributes of one UPDATE as far as they could be read.
#[derive(Debug)]
pub(super) struct Block {
    /// Without next hop: `classic_next_hop` or that of `reach` goes there.
    pub(super) attributes: Attributes,
    pub(super) classic_next_hop: Option<Ipv4Addr>,
    pub(super) reach: Option<MpReach>,
    pub(super) unreach: Option<MpUnreach>,
    pub(super) faults: Vec<Fault>,
    seen: Seen,
    as4_path: Option<AsPath>,
    as4_aggregator: Option<Aggregator>,
}

/// MP_REACH_NLRI of a negotiated family.
#[derive(Debug)]
pub(super) struct MpReach {
    pub(super) next_hop: IpAddr,
    pub(super) prefixes: Vec<IpNet>,
}

/// MP_UNREACH_NLRI of a negotiated family.
#[derive(Debug)]
pub(super) struct MpUnreach {
    pub(super) family: Family,
    pub(super) prefixes: Vec<IpNet>,
}

/// Which attribute types have occurred.
#[derive(Clone, Copy, Debug, Default)]
struct Seen([u64; 4]);

/// Why an attribute could not be taken.
enum Trouble {
    Tolerated(Remedy),
    Reset(Notification),
}

const WITHDRAW: Trouble = Trouble::Tolerated(Remedy::TreatAsWithdraw);
const DISCARD: Trouble = Trouble::Tolerated(Remedy::AttributeDiscard);

impl Block {
    /// Reads the attribute block; an error ends the session.
    pub(super) fn decode(bytes: &[u8], context: &UpdateContext) -> Result<Self, Notification> {
        let mut block = Self {
            attributes: Attributes::new(Origin::Igp, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            classic_next_hop: None,
            reach: None,
            unreach: None,
            faults: Vec::new(),
            seen: Seen::default(),
            as4_path: None,
            as4_aggregator: None,
        };
        let mut reader = Reader(bytes);
        while !reader.is_empty() {
            let Some((flags, code, value)) = next_attribute(&mut reader) else {
                // RFC 7606 4: an overrun makes the rest unreadable; the prefixes are still known.
                block.fault(0, Remedy::TreatAsWithdraw);
                break;
            };
            if !block.seen.insert(code) {
                // RFC 7606 3 g: the first one counts, except that a second MP attribute hides prefixes.
                if matches!(code, MP_REACH | MP_UNREACH) {
                    return Err(Notification::MALFORMED_ATTRIBUTE_LIST);
                }
                block.fault(code, Remedy::AttributeDiscard);
                continue;
            }
            if !flags_fit(flags, code) {
                block.fault(code, Remedy::TreatAsWithdraw);
            }
            match block.take(flags, code, value, context) {
                Ok(()) => {}
                Err(Trouble::Tolerated(remedy)) => block.fault(code, remedy),
                Err(Trouble::Reset(notification)) => return Err(notification),
            }
        }
        block.attributes.unknown.sort_by_key(|attribute| attribute.code);
        block.merge_four_octet_path(context);
        Ok(block)
    }

    /// Whether an attribute was there, readable or not.
    pub(super) fn has(&self, code: u8) -> bool {
        self.seen.contains(code)
    }

    /// Whether nothing but MP_UNREACH_NLRI was there.
    pub(super) fn only_unreach(&self) -> bool {
        let mut only = Seen::default();
        only.insert(MP_UNREACH);
        self.seen.0 == only.0
    }

    pub(super) fn fault(&mut self, code: u8, remedy: Remedy) {
        self.faults.push(Fault { code, remedy });
    }

    fn take(&mut self, flags: u8, code: u8, value: &[u8], context: &UpdateContext) -> Result<(), Trouble> {
        let attributes = &mut self.attributes;
        match code {
            ORIGIN => attributes.origin = origin(value).ok_or(WITHDRAW)?,
            AS_PATH => attributes.as_path = as_path(value, context.four_octet_as).ok_or(WITHDRAW)?,
            NEXT_HOP => self.classic_next_hop = Some(address(value).ok_or(WITHDRAW)?),
            MED => attributes.med = Some(number(value).ok_or(WITHDRAW)?),
            LOCAL_PREF if !context.internal => return Err(DISCARD),
            LOCAL_PREF => attributes.local_pref = Some(number(value).ok_or(WITHDRAW)?),
            ATOMIC_AGGREGATE if !value.is_empty() => return Err(DISCARD),
            ATOMIC_AGGREGATE => attributes.atomic_aggregate = true,
            AGGREGATOR => attributes.aggregator = Some(aggregator(value, context.four_octet_as).ok_or(DISCARD)?),
            COMMUNITIES => {
                attributes.communities = list(value, |word| Community(u32::from_be_bytes(word))).ok_or(WITHDRAW)?;
            }
            ORIGINATOR_ID | CLUSTER_LIST if !context.internal => return Err(DISCARD),
            ORIGINATOR_ID => attributes.originator_id = Some(address(value).ok_or(WITHDRAW)?),
            CLUSTER_LIST => {
                attributes.cluster_list = list(value, |word: [u8; 4]| Ipv4Addr::from(word)).ok_or(WITHDRAW)?;
            }
            MP_REACH => self.reach = mp_reach(value, context).map_err(Trouble::Reset)?,
            MP_UNREACH => self.unreach = mp_unreach(value, context).map_err(Trouble::Reset)?,
            EXTENDED_COMMUNITIES => attributes.extended_communities = list(value, |one| one).ok_or(WITHDRAW)?,
            LARGE_COMMUNITIES => attributes.large_communities = list(value, large_community).ok_or(WITHDRAW)?,
            // RFC 6793 4.1: a four-octet speaker never sends these to another one.
            AS4_PATH | AS4_AGGREGATOR if context.four_octet_as => return Err(DISCARD),
            AS4_PATH => self.as4_path = Some(as_path(value, true).ok_or(DISCARD)?),
            AS4_AGGREGATOR => self.as4_aggregator = Some(aggregator(value, true).ok_or(DISCARD)?),
            _ if flags & OPTIONAL == 0 => return Err(WITHDRAW),
            _ if flags & TRANSITIVE != 0 => attributes.unknown.push(UnknownAttribute {
                code,
                value: value.into(),
            }),
            _ => {}
        }
        Ok(())
    }

    /// RFC 6793 4.2.3: what a two-octet peer could not express itself comes beside it.
    fn merge_four_octet_path(&mut self, context: &UpdateContext) {
        if context.four_octet_as {
            return;
        }
        if let (Some(aggregator), Some(wide)) = (&mut self.attributes.aggregator, self.as4_aggregator) {
            if aggregator.asn != u32::from(AS_TRANS) {
                // A two-octet speaker aggregated on the way and left both behind: they are out of date.
                return;
            }
            *aggregator = wide;
        }
        let Some(wide) = self.as4_path.take() else { return };
        let Some(mut surplus) = self.attributes.as_path.length().checked_sub(wide.length()) else {
            return;
        };
        let mut merged = Vec::new();
        for segment in &self.attributes.as_path.0 {
            match segment {
                _ if surplus == 0 => break,
                Segment::Set(_) => {
                    surplus -= 1;
                    merged.push(segment.clone());
                }
                Segment::Sequence(ases) => {
                    let taken = surplus.min(ases.len());
                    surplus -= taken;
                    merged.push(Segment::Sequence(ases[..taken].to_vec()));
                }
            }
        }
        merged.extend(wide.0);
        self.attributes.as_path = AsPath(merged);
    }
}

impl Seen {
    /// False if it was there already.
    fn insert(&mut self, code: u8) -> bool {
        let (word, bit) = (usize::from(code / 64), 1u64 << (code % 64));
        let new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        new
    }

    fn contains(&self, code: u8) -> bool {
        self.0[usize::from(code / 64)] & (1 << (code % 64)) != 0
    }
}

fn next_attribute<'a>(reader: &mut Reader<'a>) -> Option<(u8, u8, &'a [u8])> {
    let [flags, code] = reader.array()?;
    let length = match flags & EXTENDED != 0 {
        true => usize::from(reader.u16()?),
        false => usize::from(reader.u8()?),
    };
    Some((flags, code, reader.take(length)?))
}

/// Whether the Optional and Transitive bits are those of the attribute's definition.
fn flags_fit(flags: u8, code: u8) -> bool {
    let wanted = match code {
        ORIGIN | AS_PATH | NEXT_HOP | LOCAL_PREF | ATOMIC_AGGREGATE => TRANSITIVE,
        MED | ORIGINATOR_ID | CLUSTER_LIST | MP_REACH | MP_UNREACH => OPTIONAL,
        AGGREGATOR | COMMUNITIES | EXTENDED_COMMUNITIES | AS4_PATH | AS4_AGGREGATOR | LARGE_COMMUNITIES => {
            OPTIONAL | TRANSITIVE
        }
        _ => return true,
    };
    flags & (OPTIONAL | TRANSITIVE) == wanted
}

fn origin(value: &[u8]) -> Option<Origin> {
    match value {
        [0] => Some(Origin::Igp),
        [1] => Some(Origin::Egp),
        [2] => Some(Origin::Incomplete),
        _ => None,
    }
}

fn as_path(value: &[u8], four_octet: bool) -> Option<AsPath> {
    let mut reader = Reader(value);
    let mut path = Vec::new();
    while !reader.is_empty() {
        let [kind, count] = reader.array()?;
        if count == 0 {
            return None;
        }
        let ases = (0..count)
            .map(|_| as_number(&mut reader, four_octet))
            .collect::<Option<Vec<_>>>()?;
        path.push(match kind {
            1 => Segment::Set(ases),
            2 => Segment::Sequence(ases),
            _ => return None,
        });
    }
    Some(AsPath(path))
}

fn as_number(reader: &mut Reader<'_>, four_octet: bool) -> Option<u32> {
    match four_octet {
        true => reader.u32(),
        false => reader.u16().map(u32::from),
    }
}

fn aggregator(value: &[u8], four_octet: bool) -> Option<Aggregator> {
    let mut reader = Reader(value);
    let asn = as_number(&mut reader, four_octet)?;
    let router_id = Ipv4Addr::from(reader.u32()?);
    reader.is_empty().then_some(Aggregator { asn, router_id })
}

fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

fn address(value: &[u8]) -> Option<Ipv4Addr> {
    number(value).map(Ipv4Addr::from)
}

/// A list of fixed-size items, at least one.
fn list<const N: usize, T>(value: &[u8], item: impl Fn([u8; N]) -> T) -> Option<Vec<T>> {
    let (items, rest) = value.as_chunks::<N>();
    (rest.is_empty() && !items.is_empty()).then(|| items.iter().map(|one| item(*one)).collect())
}

fn large_community(bytes: [u8; 12]) -> [u32; 3] {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
    [[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_be_bytes)
}

/// RFC 4760 3; `None` for a family that was not negotiated. An unreadable one hides prefixes: RFC 7606 5.3 and 7.11.
fn mp_reach(value: &[u8], context: &UpdateContext) -> Result<Option<MpReach>, Notification> {
    let malformed = || Notification::bare(3, 9);
    let mut reader = Reader(value);
    let family = AfiSafi {
        afi: reader.u16().ok_or_else(malformed)?,
        safi: reader.u8().ok_or_else(malformed)?,
    };
    let length = usize::from(reader.u8().ok_or_else(malformed)?);
    let next_hop = reader.take(length).ok_or_else(malformed)?;
    reader.u8().ok_or_else(malformed)?;
    let Some(family) = family.family().filter(|family| context.families.contains(*family)) else {
        return Ok(None);
    };
    let next_hop = match (family, next_hop.len()) {
        (Family::Ipv4, 4) => address(next_hop).map(IpAddr::V4),
        // RFC 2545 3: a link-local address may follow the global one.
        (Family::Ipv6, 16 | 32) => next_hop
            .first_chunk::<16>()
            .map(|bytes| IpAddr::V6(Ipv6Addr::from(*bytes))),
        _ => None,
    };
    let next_hop = next_hop.ok_or_else(malformed)?;
    let prefixes = prefixes(family, reader.0).ok_or_else(malformed)?;
    Ok(Some(MpReach { next_hop, prefixes }))
}

/// RFC 4760 4.
fn mp_unreach(value: &[u8], context: &UpdateContext) -> Result<Option<MpUnreach>, Notification> {
    let malformed = || Notification::bare(3, 9);
    let mut reader = Reader(value);
    let family = AfiSafi {
        afi: reader.u16().ok_or_else(malformed)?,
        safi: reader.u8().ok_or_else(malformed)?,
    };
    let Some(family) = family.family().filter(|family| context.families.contains(*family)) else {
        return Ok(None);
    };
    let prefixes = prefixes(family, reader.0).ok_or_else(malformed)?;
    Ok(Some(MpUnreach { family, prefixes }))
}

/// A list of prefixes (RFC 4271 4.3); bits beyond the length are ignored.
pub(super) fn prefixes(family: Family, bytes: &[u8]) -> Option<Vec<IpNet>> {
    let mut reader = Reader(bytes);
    let mut prefixes = Vec::with_capacity(bytes.len() / 4);
    while !reader.is_empty() {
        let length = reader.u8()?;
        let significant = reader.take(usize::from(length).div_ceil(8))?;
        let prefix = match family {
            Family::Ipv4 => {
                let mut octets = [0; 4];
                octets.get_mut(..significant.len())?.copy_from_slice(significant);
                IpNet::V4(Ipv4Net::new(octets.into(), length).ok()?)
            }
            Family::Ipv6 => {
                let mut octets = [0; 16];
                octets.get_mut(..significant.len())?.copy_from_slice(significant);
                IpNet::V6(Ipv6Net::new(octets.into(), length).ok()?)
            }
        };
        prefixes.push(prefix.trunc());
    }
    Some(prefixes)
}

/// Writes one prefix.
pub(super) fn put_prefix(out: &mut BytesMut, prefix: &IpNet) {
    out.put_u8(prefix.prefix_len());
    let significant = usize::from(prefix.prefix_len()).div_ceil(8);
    match prefix {
        IpNet::V4(prefix) => out.put_slice(&prefix.network().octets()[..significant]),
        IpNet::V6(prefix) => out.put_slice(&prefix.network().octets()[..significant]),
    }
}

/// Octets that a prefix takes.
pub(super) fn prefix_size(prefix: &IpNet) -> usize {
    1 + usize::from(prefix.prefix_len()).div_ceil(8)
}

/// Opens MP_REACH_NLRI; the caller appends prefixes and then calls [`close_mp`].
pub(super) fn open_mp_reach(out: &mut BytesMut, family: Family, next_hop: IpAddr) {
    open_mp(out, MP_REACH, family);
    match next_hop {
        IpAddr::V4(address) => {
            out.put_u8(4);
            out.put_slice(&address.octets());
        }
        IpAddr::V6(address) => {
            out.put_u8(16);
            out.put_slice(&address.octets());
        }
    }
    out.put_u8(0);
}

/// Opens MP_UNREACH_NLRI, as [`open_mp_reach`].
pub(super) fn open_mp_unreach(out: &mut BytesMut, family: Family) {
    open_mp(out, MP_UNREACH, family);
}

fn open_mp(out: &mut BytesMut, code: u8, family: Family) {
    out.put_u8(OPTIONAL | EXTENDED);
    out.put_u8(code);
    out.put_u16(0);
    let family = AfiSafi::from(family);
    out.put_u16(family.afi);
    out.put_u8(family.safi);
}

/// Fills in the length of an MP attribute that began at `start`.
pub(super) fn close_mp(out: &mut BytesMut, start: usize) {
    let length = u16::try_from(out.len() - start - 4).expect("a message has at most 4096 bytes");
    out[start + 2..start + 4].copy_from_slice(&length.to_be_bytes());
}

/// Writes everything but the MP attributes; NEXT_HOP only for the classic fields.
pub(super) fn put_attributes(out: &mut BytesMut, attributes: &Attributes, classic: bool, four_octet: bool) {
    let origin = match attributes.origin {
        Origin::Igp => 0,
        Origin::Egp => 1,
        Origin::Incomplete => 2,
    };
    put(out, TRANSITIVE, ORIGIN, &[origin]);
    put(
        out,
        TRANSITIVE,
        AS_PATH,
        &as_path_bytes(&attributes.as_path, four_octet),
    );
    if let (true, IpAddr::V4(next_hop)) = (classic, attributes.next_hop) {
        put(out, TRANSITIVE, NEXT_HOP, &next_hop.octets());
    }
    if let Some(med) = attributes.med {
        put(out, OPTIONAL, MED, &med.to_be_bytes());
    }
    if let Some(preference) = attributes.local_pref {
        put(out, TRANSITIVE, LOCAL_PREF, &preference.to_be_bytes());
    }
    if attributes.atomic_aggregate {
        put(out, TRANSITIVE, ATOMIC_AGGREGATE, &[]);
    }
    if let Some(aggregator) = attributes.aggregator {
        put(
            out,
            OPTIONAL | TRANSITIVE,
            AGGREGATOR,
            &aggregator_bytes(aggregator, four_octet),
        );
    }
    put_list(
        out,
        OPTIONAL | TRANSITIVE,
        COMMUNITIES,
        attributes.communities.iter().map(|one| one.0.to_be_bytes()),
    );
    if let Some(originator) = attributes.originator_id {
        put(out, OPTIONAL, ORIGINATOR_ID, &originator.octets());
    }
    put_list(
        out,
        OPTIONAL,
        CLUSTER_LIST,
        attributes.cluster_list.iter().map(Ipv4Addr::octets),
    );
    put_list(
        out,
        OPTIONAL | TRANSITIVE,
        EXTENDED_COMMUNITIES,
        attributes.extended_communities.iter().copied(),
    );
    if !four_octet {
        let wide = |asn: &u32| *asn > u32::from(u16::MAX);
        if attributes
            .as_path
            .0
            .iter()
            .any(|segment| segment.ases().iter().any(wide))
        {
            put(
                out,
                OPTIONAL | TRANSITIVE,
                AS4_PATH,
                &as_path_bytes(&attributes.as_path, true),
            );
        }
        if let Some(aggregator) = attributes.aggregator.filter(|aggregator| wide(&aggregator.asn)) {
            put(
                out,
                OPTIONAL | TRANSITIVE,
                AS4_AGGREGATOR,
                &aggregator_bytes(aggregator, true),
            );
        }
    }
    let large = attributes
        .large_communities
        .iter()
        .flatten()
        .map(|word| word.to_be_bytes());
    put_list(out, OPTIONAL | TRANSITIVE, LARGE_COMMUNITIES, large);
    for attribute in &attributes.unknown {
        put(out, OPTIONAL | TRANSITIVE | PARTIAL, attribute.code, &attribute.value);
    }
}

fn put(out: &mut BytesMut, flags: u8, code: u8, value: &[u8]) {
    match u8::try_from(value.len()) {
        Ok(length) => out.put_slice(&[flags, code, length]),
        Err(_) => {
            out.put_slice(&[flags | EXTENDED, code]);
            // What does not fit a message is refused by the caller, so a cut length is never sent.
            out.put_u16(u16::try_from(value.len()).unwrap_or(u16::MAX));
        }
    }
    out.put_slice(value);
}

/// Nothing for an empty list: RFC 7606 7.8 calls that malformed.
fn put_list<const N: usize>(out: &mut BytesMut, flags: u8, code: u8, items: impl Iterator<Item = [u8; N]>) {
    let value: Vec<u8> = items.flatten().collect();
    if !value.is_empty() {
        put(out, flags, code, &value);
    }
}

fn as_path_bytes(path: &AsPath, four_octet: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    for segment in &path.0 {
        let kind = match segment {
            Segment::Set(_) => 1,
            Segment::Sequence(_) => 2,
        };
        for ases in segment.ases().chunks(255) {
            bytes.extend([kind, ases.len() as u8]);
            ases.iter().for_each(|asn| put_as(&mut bytes, *asn, four_octet));
        }
    }
    bytes
}

fn aggregator_bytes(aggregator: Aggregator, four_octet: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_as(&mut bytes, aggregator.asn, four_octet);
    bytes.extend(aggregator.router_id.octets());
    bytes
}

fn put_as(bytes: &mut Vec<u8>, asn: u32, four_octet: bool) {
    match four_octet {
        true => bytes.extend(asn.to_be_bytes()),
        false => bytes.extend(u16::try_from(asn).unwrap_or(AS_TRANS).to_be_bytes()),
    }
}
