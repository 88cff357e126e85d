//! Expressions of rules, the machine code of nf_tables, as values and as bytes.
//!
//! Only what our rules are made of; whatever else is read is no expression of ours.

use kernel::nft::Count;

use crate::decode::Attributes;
use crate::nfnetlink::{Bytes, be16, be32, be64, text};

/// A register of four bytes, 0 to 15. A longer value takes the next ones too.
pub(super) type Register = u32;

/// A value of at most 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Data {
    bytes: [u8; 16],
    length: u8,
}

/// One instruction; its texts are the rule's or the message's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expr<'a> {
    /// Loads what the kernel knows of a packet.
    Meta { key: u32, to: Register },
    /// Changes what the kernel knows of a packet.
    SetMeta { key: u32, from: Register },
    /// Loads bytes of a packet.
    Payload {
        base: u32,
        offset: u32,
        length: u32,
        to: Register,
    },
    /// Loads what is known of a packet's flow.
    Flow { key: u32, to: Register },
    /// Loads the kind of an address: of the source (1) or destination (2).
    Fib { flags: u32, to: Register },
    /// `value = (value & mask) ^ xor`.
    Bitwise { at: Register, mask: Data, xor: Data },
    /// Goes on if equal, or if not.
    Compare { at: Register, equal: bool, data: Data },
    /// Goes on if within, or if not.
    Range {
        at: Register,
        within: bool,
        low: Data,
        high: Data,
    },
    /// Goes on if an element is there, or if not; or does what a map says.
    Lookup {
        set: SetRef<'a>,
        at: Register,
        negate: bool,
        verdict: bool,
    },
    /// Loads a constant.
    Immediate { to: Register, data: Data },
    /// Decides.
    Verdict { code: i32, chain: Option<&'a str> },
    /// Counts.
    Counter(Count),
    /// Goes on for so many packets or bytes in so many seconds only, or for all but these.
    Limit {
        rate: u64,
        seconds: u64,
        burst: u32,
        bytes: bool,
        over: bool,
    },
    /// Goes on while there are more flows than this, or not more.
    Flows { most: u32, over: bool },
    /// Changes bytes of a packet, and the checksum at this place.
    SetPayload {
        base: u32,
        offset: u32,
        length: u32,
        from: Register,
        checksum: Option<u32>,
    },
    /// Writes to the log, or to a group of listeners.
    Log {
        group: Option<u16>,
        prefix: &'a str,
        snaplen: u32,
    },
    /// Does not track.
    Notrack,
    /// Translates the source to the device's address.
    Masquerade {
        ports: Option<(Register, Register)>,
        flags: u32,
    },
    /// Translates.
    Nat {
        source: bool,
        family: u32,
        address: Register,
        ports: Option<(Register, Register)>,
        flags: u32,
    },
    /// Drops and tells the sender.
    Reject { kind: u32, code: u8 },
}

/// How a rule names a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SetRef<'a> {
    /// By its name.
    Named(&'a str),
    /// By a number within the batch: a set that belongs to the rule.
    New(u32),
}

/// The name of a set that belongs to one rule; the kernel puts a number into it.
pub(super) const ANONYMOUS: &str = "__set%d";

pub(super) const META_MARK: u32 = 3;
pub(super) const META_IIF: u32 = 4;
pub(super) const META_OIF: u32 = 5;
pub(super) const META_IIFNAME: u32 = 6;
pub(super) const META_OIFNAME: u32 = 7;
pub(super) const META_NFPROTO: u32 = 15;
pub(super) const META_L4PROTO: u32 = 16;
pub(super) const NETWORK: u32 = 1;
pub(super) const TRANSPORT: u32 = 2;
pub(super) const FLOW_STATE: u32 = 0;
pub(super) const FLOW_STATUS: u32 = 2;
pub(super) const DROP: i32 = 0;
pub(super) const ACCEPT: i32 = 1;
pub(super) const JUMP: i32 = -3;
pub(super) const GOTO: i32 = -4;
pub(super) const RETURN: i32 = -5;
pub(super) const REJECT_RESET: u32 = 1;
pub(super) const REJECT_ICMPX: u32 = 2;
pub(super) const ADMIN_PROHIBITED: u8 = 3;
/// The kernel's flag of a translation to ports.
const NAT_PORTS: u32 = 2;
/// The kernel's flags of a translation that follow from its other attributes: addresses, ports.
const NAT_IMPLIED: u32 = 1 | NAT_PORTS;
pub(super) const NAT_RANDOM_FULLY: u32 = 16;

const FIB_ADDRESS_TYPE: u32 = 3;
const LIMIT_BYTES: u32 = 1;
/// The sum of RFC 1071.
const CHECKSUM_INET: u32 = 1;
const LOG_LEVEL_WARNING: u32 = 4;

impl Data {
    /// At most 16 bytes.
    pub fn new(bytes: &[u8]) -> Self {
        Self::try_new(bytes).expect("no value of a field has more than 16 bytes")
    }

    fn try_new(bytes: &[u8]) -> Option<Self> {
        let mut data = Self {
            bytes: [0; 16],
            length: u8::try_from(bytes.len()).ok()?,
        };
        data.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(data)
    }

    /// In the machine's own order, as marks and flow states are.
    pub fn native(value: u32) -> Self {
        Self::new(&value.to_ne_bytes())
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    pub fn as_native(&self) -> Option<u32> {
        Some(u32::from_ne_bytes(self.bytes().try_into().ok()?))
    }

    pub fn as_byte(&self) -> Option<u8> {
        match self.bytes() {
            [byte] => Some(*byte),
            _ => None,
        }
    }

    pub fn as_port(&self) -> Option<u16> {
        Some(u16::from_be_bytes(self.bytes().try_into().ok()?))
    }
}

impl std::fmt::Debug for Data {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:02x?}", self.bytes())
    }
}

// === into bytes ===

impl Expr<'_> {
    /// As an element of a rule's list.
    pub fn write(&self, bytes: &mut Bytes) {
        let name = match self {
            Self::Meta { .. } | Self::SetMeta { .. } => "meta",
            Self::Payload { .. } | Self::SetPayload { .. } => "payload",
            Self::Flows { .. } => "connlimit",
            Self::Flow { .. } => "ct",
            Self::Fib { .. } => "fib",
            Self::Bitwise { .. } => "bitwise",
            Self::Compare { .. } => "cmp",
            Self::Range { .. } => "range",
            Self::Lookup { .. } => "lookup",
            Self::Immediate { .. } | Self::Verdict { .. } => "immediate",
            Self::Counter(_) => "counter",
            Self::Limit { .. } => "limit",
            Self::Log { .. } => "log",
            Self::Notrack => "notrack",
            Self::Masquerade { .. } => "masq",
            Self::Nat { .. } => "nat",
            Self::Reject { .. } => "reject",
        };
        bytes.nest(1, |bytes| {
            bytes.text(1, name);
            if *self != Self::Notrack {
                bytes.nest(2, |bytes| self.write_body(bytes));
            }
        });
    }

    fn write_body(&self, bytes: &mut Bytes) {
        let register = |at: &Register| 8 + at;
        match self {
            Self::Meta { key, to } => {
                bytes.be32(2, *key);
                bytes.be32(1, register(to));
            }
            Self::SetMeta { key, from } => {
                bytes.be32(2, *key);
                bytes.be32(3, register(from));
            }
            Self::Payload {
                base,
                offset,
                length,
                to,
            } => {
                bytes.be32(1, register(to));
                bytes.be32(2, *base);
                bytes.be32(3, *offset);
                bytes.be32(4, *length);
            }
            Self::Flow { key, to } => {
                bytes.be32(2, *key);
                bytes.be32(1, register(to));
            }
            Self::Fib { flags, to } => {
                bytes.be32(1, register(to));
                bytes.be32(2, FIB_ADDRESS_TYPE);
                bytes.be32(3, *flags);
            }
            Self::Bitwise { at, mask, xor } => {
                bytes.be32(1, register(at));
                bytes.be32(2, register(at));
                bytes.be32(3, mask.length.into());
                data(bytes, 4, mask);
                data(bytes, 5, xor);
            }
            Self::Compare { at, equal, data: value } => {
                bytes.be32(1, register(at));
                bytes.be32(2, u32::from(!equal));
                data(bytes, 3, value);
            }
            Self::Range { at, within, low, high } => {
                bytes.be32(1, register(at));
                bytes.be32(2, u32::from(!within));
                data(bytes, 3, low);
                data(bytes, 4, high);
            }
            Self::Lookup {
                set,
                at,
                negate,
                verdict,
            } => {
                match set {
                    SetRef::Named(name) => bytes.text(1, name),
                    SetRef::New(number) => {
                        bytes.text(1, ANONYMOUS);
                        bytes.be32(4, *number);
                    }
                }
                bytes.be32(2, register(at));
                if *verdict {
                    bytes.be32(3, 0);
                }
                if *negate {
                    bytes.be32(5, 1);
                }
            }
            Self::Immediate { to, data: value } => {
                bytes.be32(1, register(to));
                data(bytes, 2, value);
            }
            Self::Verdict { code, chain } => {
                bytes.be32(1, 0);
                bytes.nest(2, |bytes| write_verdict(bytes, *code, *chain));
            }
            Self::Counter(count) => {
                bytes.put(1, &count.bytes.to_be_bytes());
                bytes.put(2, &count.packets.to_be_bytes());
            }
            Self::Limit {
                rate,
                seconds,
                burst,
                bytes: of_bytes,
                over,
            } => {
                bytes.put(1, &rate.to_be_bytes());
                bytes.put(2, &seconds.to_be_bytes());
                bytes.be32(3, *burst);
                bytes.be32(4, if *of_bytes { LIMIT_BYTES } else { 0 });
                if *over {
                    bytes.be32(5, 1);
                }
            }
            Self::Flows { most, over } => {
                bytes.be32(1, *most);
                bytes.be32(2, u32::from(*over));
            }
            Self::SetPayload {
                base,
                offset,
                length,
                from,
                checksum,
            } => {
                bytes.be32(2, *base);
                bytes.be32(3, *offset);
                bytes.be32(4, *length);
                bytes.be32(5, register(from));
                if let Some(at) = checksum {
                    bytes.be32(6, CHECKSUM_INET);
                    bytes.be32(7, *at);
                }
            }
            Self::Log { group, prefix, snaplen } => {
                if let Some(group) = group {
                    bytes.be16(1, *group);
                }
                bytes.text(2, prefix);
                if *snaplen != 0 {
                    bytes.be32(3, *snaplen);
                }
            }
            Self::Notrack => {}
            Self::Masquerade { ports, flags } => {
                // Unlike with other translations, the kernel wants to be told that there are ports.
                let flags = if ports.is_some() { flags | NAT_PORTS } else { *flags };
                if flags != 0 {
                    bytes.be32(1, flags);
                }
                if let Some((low, high)) = ports {
                    bytes.be32(2, register(low));
                    if high != low {
                        bytes.be32(3, register(high));
                    }
                }
            }
            Self::Nat {
                source,
                family,
                address,
                ports,
                flags,
            } => {
                bytes.be32(1, u32::from(!source));
                bytes.be32(2, *family);
                bytes.be32(3, register(address));
                if let Some((low, high)) = ports {
                    bytes.be32(5, register(low));
                    if high != low {
                        bytes.be32(6, register(high));
                    }
                }
                if *flags != 0 {
                    bytes.be32(7, *flags);
                }
            }
            Self::Reject { kind, code } => {
                bytes.be32(1, *kind);
                if *kind != REJECT_RESET {
                    bytes.put(2, &[*code]);
                }
            }
        }
    }
}

fn data(bytes: &mut Bytes, kind: u16, data: &Data) {
    bytes.nest(kind, |bytes| bytes.put(1, data.bytes()));
}

/// A verdict as data, for a rule or an element.
pub(super) fn write_verdict(bytes: &mut Bytes, code: i32, chain: Option<&str>) {
    bytes.nest(2, |bytes| {
        bytes.put(1, &code.to_be_bytes());
        if let Some(chain) = chain {
            bytes.text(2, chain);
        }
    });
}

// === from bytes ===

/// The expressions of a rule; `None`: one of them is none of ours.
pub(super) fn read_all(list: &[u8]) -> Option<Vec<Expr<'_>>> {
    // As many as most rules have.
    let mut exprs = Vec::with_capacity(16);
    for (_, element) in Attributes(list) {
        exprs.push(read(element)?);
    }
    Some(exprs)
}

fn read(element: &[u8]) -> Option<Expr<'_>> {
    let (mut name, mut body) = (&[][..], &[][..]);
    for (kind, value) in Attributes(element) {
        match kind {
            1 => name = value.strip_suffix(b"\0").unwrap_or(value),
            2 => body = value,
            _ => {}
        }
    }
    let mut fields = [None; 9];
    for (kind, value) in Attributes(body) {
        *fields.get_mut(usize::from(kind))? = Some(value);
    }
    let number = |at: usize| fields[at].and_then(be32);
    let register = |at: usize| register_of(number(at)?);
    let value = |at: usize| value_of(fields[at]?);
    // One register for both ends may be said once.
    let range = |low: usize, high: usize| match (number(low), number(high)) {
        (None, None) => Some(None),
        (low, high) => Some(Some((register_of(low?)?, register_of(high.or(low)?)?))),
    };
    Some(match name {
        b"meta" => match number(3) {
            None => Expr::Meta {
                key: number(2)?,
                to: register(1)?,
            },
            Some(_) => Expr::SetMeta {
                key: number(2)?,
                from: register(3)?,
            },
        },
        b"payload" if fields[5].is_none() => Expr::Payload {
            base: number(2)?,
            offset: number(3)?,
            length: number(4)?,
            to: register(1)?,
        },
        b"payload" if number(6).unwrap_or(0) <= CHECKSUM_INET && number(8).unwrap_or(0) == 0 => Expr::SetPayload {
            base: number(2)?,
            offset: number(3)?,
            length: number(4)?,
            from: register(5)?,
            checksum: match number(6) {
                Some(CHECKSUM_INET) => Some(number(7)?),
                _ => None,
            },
        },
        b"connlimit" if number(2).unwrap_or(0) <= 1 => Expr::Flows {
            most: number(1)?,
            over: number(2) == Some(1),
        },
        b"ct" if fields[3].is_none() && fields[4].is_none() => Expr::Flow {
            key: number(2)?,
            to: register(1)?,
        },
        b"fib" if number(2)? == FIB_ADDRESS_TYPE => Expr::Fib {
            flags: number(3)?,
            to: register(1)?,
        },
        b"bitwise" if number(6).unwrap_or(0) == 0 && register(1)? == register(2)? => Expr::Bitwise {
            at: register(1)?,
            mask: value(4)?,
            xor: value(5)?,
        },
        b"cmp" if number(2)? <= 1 => Expr::Compare {
            at: register(1)?,
            equal: number(2)? == 0,
            data: value(3)?,
        },
        b"range" => Expr::Range {
            at: register(1)?,
            within: number(2)? == 0,
            low: value(3)?,
            high: value(4)?,
        },
        b"lookup" if matches!(number(3), None | Some(0)) => Expr::Lookup {
            set: SetRef::Named(text(fields[1]?)),
            at: register(2)?,
            negate: number(5).unwrap_or(0) & 1 != 0,
            verdict: number(3).is_some(),
        },
        b"immediate" if number(1)? == 0 => {
            let (code, chain) = read_verdict(fields[2]?)?;
            Expr::Verdict { code, chain }
        }
        b"immediate" => Expr::Immediate {
            to: register(1)?,
            data: value(2)?,
        },
        b"counter" => Expr::Counter(Count {
            bytes: be64(fields[1]?)?,
            packets: be64(fields[2]?)?,
        }),
        b"limit" if number(4).unwrap_or(0) <= LIMIT_BYTES && number(5).unwrap_or(0) <= 1 => Expr::Limit {
            rate: be64(fields[1]?)?,
            seconds: be64(fields[2]?)?,
            burst: number(3)?,
            bytes: number(4) == Some(LIMIT_BYTES),
            over: number(5) == Some(1),
        },
        b"log" => {
            let group = match fields[1] {
                Some(group) => Some(be16(group)?),
                None => None,
            };
            let plain = number(5).is_none_or(|level| level == LOG_LEVEL_WARNING) && number(6).unwrap_or(0) == 0;
            (plain && fields[4].is_none()).then_some(())?;
            Expr::Log {
                group,
                prefix: fields[2].map(text).unwrap_or_default(),
                snaplen: number(3).unwrap_or(0),
            }
        }
        b"notrack" => Expr::Notrack,
        b"masq" => Expr::Masquerade {
            ports: range(2, 3)?,
            flags: number(1).unwrap_or(0) & !NAT_IMPLIED,
        },
        b"nat" if number(3) == number(4) || number(4).is_none() => Expr::Nat {
            source: number(1)? == 0,
            family: number(2)?,
            address: register(3)?,
            ports: range(5, 6)?,
            flags: number(7).unwrap_or(0) & !NAT_IMPLIED,
        },
        b"reject" => Expr::Reject {
            kind: number(1)?,
            code: fields[2].and_then(|code| code.first().copied()).unwrap_or(0),
        },
        _ => return None,
    })
}

/// Registers of 16 bytes have numbers of their own, and the kernel prefers those where they say the same.
fn register_of(number: u32) -> Option<Register> {
    match number {
        1..=4 => Some((number - 1) * 4),
        8..=23 => Some(number - 8),
        _ => None,
    }
}

fn value_of(data: &[u8]) -> Option<Data> {
    let (_, value) = Attributes(data).find(|(kind, _)| *kind == 1)?;
    Data::try_new(value)
}

/// A verdict's code and chain.
pub(super) fn read_verdict(data: &[u8]) -> Option<(i32, Option<&str>)> {
    let (_, verdict) = Attributes(data).find(|(kind, _)| *kind == 2)?;
    let (mut code, mut chain) = (None, None);
    for (kind, value) in Attributes(verdict) {
        match kind {
            1 => code = be32(value).map(|code| code as i32),
            2 => chain = Some(text(value)),
            _ => {}
        }
    }
    Some((code?, chain))
}
