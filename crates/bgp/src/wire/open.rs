//! OPEN and its capabilities (RFC 4271 4.2, RFC 5492, RFC 9072).

use std::net::Ipv4Addr;

use bytes::{BufMut, Bytes, BytesMut};

use super::reader::Reader;
use crate::message::{AfiSafi, Capability, GracefulCapability, Notification, Open};

const CAPABILITIES: u8 = 2;
const EXTENDED_LENGTH: u8 = 255;

const MULTIPROTOCOL: u8 = 1;
const REFRESH: u8 = 2;
const GRACEFUL_RESTART: u8 = 64;
const FOUR_OCTET_AS: u8 = 65;

/// Reads the body of an OPEN.
pub fn decode_open(body: &[u8]) -> Result<Open, Notification> {
    let malformed = || Notification::OPEN_MALFORMED;
    let mut reader = Reader(body);
    if reader.u8().ok_or_else(malformed)? != 4 {
        return Err(Notification::BAD_VERSION);
    }
    let my_as = reader.u16().ok_or_else(malformed)?;
    let hold_time = reader.u16().ok_or_else(malformed)?;
    let router_id = Ipv4Addr::from(reader.u32().ok_or_else(malformed)?);
    let capabilities = optional_parameters(reader)?;
    Ok(Open {
        my_as,
        hold_time,
        router_id,
        capabilities,
    })
}

fn optional_parameters(mut reader: Reader<'_>) -> Result<Vec<Capability>, Notification> {
    let malformed = || Notification::OPEN_MALFORMED;
    let mut length = usize::from(reader.u8().ok_or_else(malformed)?);
    // RFC 9072 2: a first parameter of type 255 announces two-octet lengths.
    let extended = length != 0 && reader.0.first() == Some(&EXTENDED_LENGTH);
    if extended {
        reader.u8();
        length = usize::from(reader.u16().ok_or_else(malformed)?);
    }
    if reader.0.len() != length {
        return Err(malformed());
    }
    let mut capabilities = Vec::new();
    while !reader.is_empty() {
        let kind = reader.u8().ok_or_else(malformed)?;
        let length = match extended {
            true => usize::from(reader.u16().ok_or_else(malformed)?),
            false => usize::from(reader.u8().ok_or_else(malformed)?),
        };
        let value = reader.take(length).ok_or_else(malformed)?;
        if kind != CAPABILITIES {
            return Err(Notification::UNSUPPORTED_PARAMETER);
        }
        let mut value = Reader(value);
        while !value.is_empty() {
            let code = value.u8().ok_or_else(malformed)?;
            let length = usize::from(value.u8().ok_or_else(malformed)?);
            capabilities.push(capability(code, value.take(length).ok_or_else(malformed)?));
        }
    }
    Ok(capabilities)
}

/// A known capability of the wrong length counts as one that we do not know (RFC 5492 leaves this open).
fn capability(code: u8, value: &[u8]) -> Capability {
    let known = match (code, value) {
        (MULTIPROTOCOL, &[high, low, _, safi]) => Some(Capability::Multiprotocol(AfiSafi {
            afi: u16::from_be_bytes([high, low]),
            safi,
        })),
        (REFRESH, []) => Some(Capability::RouteRefresh),
        (FOUR_OCTET_AS, &[a, b, c, d]) => Some(Capability::FourOctetAs(u32::from_be_bytes([a, b, c, d]))),
        (GRACEFUL_RESTART, value) => graceful(value).map(Capability::GracefulRestart),
        _ => None,
    };
    known.unwrap_or_else(|| Capability::Unknown {
        code,
        value: Bytes::copy_from_slice(value),
    })
}

fn graceful(value: &[u8]) -> Option<GracefulCapability> {
    let mut reader = Reader(value);
    let head = reader.u16()?;
    let mut families = Vec::new();
    while !reader.is_empty() {
        let [high, low, safi, flags] = reader.array()?;
        families.push((
            AfiSafi {
                afi: u16::from_be_bytes([high, low]),
                safi,
            },
            flags & 0x80 != 0,
        ));
    }
    Some(GracefulCapability {
        restarted: head & 0x8000 != 0,
        restart_time: head & 0x0fff,
        families,
    })
}

/// OPEN as bytes: one optional parameter with all capabilities.
///
/// Our own capabilities need under 60 bytes; those that would go beyond one parameter's 253 are left out.
pub fn encode_open(open: &Open) -> Bytes {
    let mut capabilities = BytesMut::new();
    for capability in &open.capabilities {
        let mut one = BytesMut::new();
        put_capability(&mut one, capability);
        if capabilities.len() + one.len() <= 253 {
            capabilities.put_slice(&one);
        }
    }
    super::framed(super::OPEN, |out| {
        out.put_u8(4);
        out.put_u16(open.my_as);
        out.put_u16(open.hold_time);
        out.put_u32(open.router_id.into());
        if capabilities.is_empty() {
            out.put_u8(0);
            return;
        }
        let length = u8::try_from(capabilities.len()).expect("kept to 253 bytes above");
        out.put_u8(length + 2);
        out.put_u8(CAPABILITIES);
        out.put_u8(length);
        out.put_slice(&capabilities);
    })
}

fn put_capability(out: &mut BytesMut, capability: &Capability) {
    let mut value = BytesMut::new();
    let code = match capability {
        Capability::Multiprotocol(family) => {
            value.put_u16(family.afi);
            value.put_u8(0);
            value.put_u8(family.safi);
            MULTIPROTOCOL
        }
        Capability::RouteRefresh => REFRESH,
        Capability::FourOctetAs(asn) => {
            value.put_u32(*asn);
            FOUR_OCTET_AS
        }
        Capability::GracefulRestart(graceful) => {
            let flags = if graceful.restarted { 0x8000 } else { 0 };
            value.put_u16(flags | (graceful.restart_time & 0x0fff));
            for (family, forwarding) in &graceful.families {
                value.put_u16(family.afi);
                value.put_u8(family.safi);
                value.put_u8(if *forwarding { 0x80 } else { 0 });
            }
            GRACEFUL_RESTART
        }
        Capability::Unknown { code, value: bytes } => {
            value.put_slice(bytes);
            *code
        }
    };
    let length = value.len().min(255);
    out.put_u8(code);
    out.put_u8(length as u8);
    out.put_slice(&value[..length]);
}
