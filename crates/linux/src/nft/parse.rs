//! Expressions back into a rule: exactly what [`super::compile`] writes, nothing else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use kernel::IpFamily;
use kernel::nft::{CtState, End, Field, KeyType, Match, Per, Rule, SetName, Statement, Threshold, Verdict, Way};

use crate::conntrack::ENDED;

use super::compile::*;
use super::expr::*;

/// Ranges of ports in a set that belongs to one rule, by its name; `None`: not of ours.
pub(super) type PortSets<'a> = dyn Fn(&str) -> Option<Vec<(u16, u16)>> + 'a;

/// A rule without comment, and how it refuses, if it does.
pub(super) fn rule(exprs: &[Expr<'_>], ports: &PortSets<'_>) -> Option<(Rule, Option<u32>)> {
    let mut parser = Parser {
        rest: exprs,
        family: None,
        ports,
    };
    let mut rule = Rule::default();
    let mut refuses = None;
    while !parser.rest.is_empty() {
        if rule.verdict.is_some() || rule.actions.last().is_some_and(Statement::is_verdict) {
            return None;
        }
        if let Some(part) = parser.attempt(Parser::matches) {
            // Matches come before actions.
            rule.actions.is_empty().then_some(())?;
            rule.matches.push(part);
        } else if let Some((action, kind)) = parser.attempt(Parser::statement) {
            refuses = kind;
            rule.actions.push(action);
        } else {
            rule.verdict = Some(parser.attempt(Parser::verdict)?);
        }
    }
    Some((rule, refuses))
}

struct Parser<'a> {
    rest: &'a [Expr<'a>],
    /// The family that addresses before this point have made sure of.
    family: Option<IpFamily>,
    ports: &'a PortSets<'a>,
}

impl<'a> Parser<'a> {
    /// Parses something, or nothing at all.
    fn attempt<T>(&mut self, parse: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        let (rest, family) = (self.rest, self.family);
        let parsed = parse(self);
        if parsed.is_none() {
            (self.rest, self.family) = (rest, family);
        }
        parsed
    }

    fn next(&mut self) -> Option<&'a Expr<'a>> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    fn matches(&mut self) -> Option<Match> {
        // What needs a family of its own comes with it; if nothing does, the family is what was asked.
        if let Some(family) = self.attempt(Self::is_family) {
            if self.family != Some(family) {
                let with_address = self.attempt(|parser| {
                    parser.family = Some(family);
                    parser.of_family(family)
                });
                if let Some(part) = with_address {
                    return Some(part);
                }
                // The family may belong to a verdict map.
                if self.attempt(|parser| parser.map(Some(family))).is_some() {
                    return None;
                }
            }
            return Some(Match::Family(family));
        }
        if let Some(family) = self.family
            && let Some(part) = self.attempt(|parser| parser.of_family(family))
        {
            return Some(part);
        }
        self.attempt(Self::simple)
            .or_else(|| self.attempt(|parser| parser.in_set(None)))
    }

    fn is_family(&mut self) -> Option<IpFamily> {
        self.meta(META_NFPROTO)?;
        let (equal, data) = self.compare()?;
        let family = IpFamily::BOTH
            .into_iter()
            .find(|family| data.bytes() == [family_number(*family)]);
        family.filter(|_| equal)
    }

    /// A match with an address of this family.
    fn of_family(&mut self, family: IpFamily) -> Option<Match> {
        self.attempt(|parser| parser.net(family))
            .or_else(|| self.attempt(|parser| parser.in_set(Some(family))))
    }

    fn net(&mut self, family: IpFamily) -> Option<Match> {
        let Expr::Payload {
            base: NETWORK,
            offset,
            length,
            to: 0,
        } = *self.next()?
        else {
            return None;
        };
        let (end, width) = ENDS
            .into_iter()
            .map(|end| (end, address_place(family, end)))
            .find_map(|(end, (place, width))| (place == offset).then_some((end, width)))?;
        let length = usize::try_from(length).ok().filter(|length| *length <= width)?;
        let masked = self.attempt(Self::mask);
        let prefix = match masked {
            Some((mask, xor)) => {
                let zero = xor.bytes().iter().all(|byte| *byte == 0);
                let ones: u32 = mask.bytes().iter().map(|byte| byte.count_ones()).sum();
                (zero && mask.bytes().len() == width && length == width).then_some(ones as usize)?
            }
            None => 8 * length,
        };
        let (equal, data) = self.compare()?;
        (data.bytes().len() == length).then_some(())?;
        let mut bytes = [0; 16];
        bytes[..length].copy_from_slice(data.bytes());
        let address = match family {
            IpFamily::V4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(&bytes[..4]).ok()?)),
            IpFamily::V6 => IpAddr::V6(Ipv6Addr::from(bytes)),
        };
        let net = IpNet::new(address, u8::try_from(prefix).ok()?).ok()?;
        if let Some((mask, _)) = masked {
            let expected = u128::from_be_bytes({
                let mut padded = [0; 16];
                padded[..width].copy_from_slice(mask.bytes());
                padded
            });
            // Ones without a gap.
            (expected.leading_ones() as usize == prefix).then_some(())?;
        }
        (net.trunc() == net).then_some(Match::Net {
            end,
            negate: !equal,
            net,
        })
    }

    fn in_set(&mut self, family: Option<IpFamily>) -> Option<Match> {
        let key = self.key(family)?;
        match self.next()? {
            Expr::Lookup {
                set: SetRef::Named(name),
                at: 0,
                negate,
                verdict: false,
            } if !name.starts_with("__set") => Some(Match::InSet {
                key,
                negate: *negate,
                set: SetName((*name).to_owned()),
            }),
            _ => None,
        }
    }

    fn map(&mut self, family: Option<IpFamily>) -> Option<Verdict> {
        let key = self.key(family)?;
        match self.next()? {
            Expr::Lookup {
                set: SetRef::Named(name),
                at: 0,
                negate: false,
                verdict: true,
            } => Some(Verdict::Map {
                key,
                map: SetName((*name).to_owned()),
            }),
            _ => None,
        }
    }

    /// Fields, loaded one behind the other; with an address exactly if a family is given.
    fn key(&mut self, family: Option<IpFamily>) -> Option<Vec<Field>> {
        let mut key = Vec::new();
        let mut at = 0;
        while let Some(field) = self.attempt(|parser| parser.field(family, at)) {
            at += (field.key_type().width() as u32).div_ceil(4);
            key.push(field);
        }
        let addressed = key.iter().any(|field| matches!(field.key_type(), KeyType::Address(_)));
        (!key.is_empty() && addressed == family.is_some()).then_some(key)
    }

    fn field(&mut self, family: Option<IpFamily>, register: Register) -> Option<Field> {
        match *self.next()? {
            Expr::Meta { key, to } if to == register => match key {
                META_IIFNAME => Some(Field::Interface(Way::In)),
                META_OIFNAME => Some(Field::Interface(Way::Out)),
                META_L4PROTO => Some(Field::Protocol),
                _ => None,
            },
            Expr::Payload {
                base,
                offset,
                length,
                to,
            } if to == register => {
                let mut fields = ENDS.into_iter().filter_map(|end| {
                    let (field, place) = match base {
                        NETWORK => (Field::Address(family?, end), address_place(family?, end)),
                        TRANSPORT => (Field::Port(end), port_place(end)),
                        _ => return None,
                    };
                    (place == (offset, length as usize)).then_some(field)
                });
                fields.next()
            }
            _ => None,
        }
    }

    /// A match that needs no family.
    fn simple(&mut self) -> Option<Match> {
        match *self.next()? {
            Expr::Meta { key, to: 0 } => self.of_meta(key),
            Expr::Payload {
                base: TRANSPORT,
                offset,
                length,
                to: 0,
            } => self.of_transport(offset, length),
            Expr::Flow { key, to: 0 } => {
                let (mask, xor) = self.mask()?;
                let (equal, data) = self.compare()?;
                (!equal && data.as_native() == Some(0) && xor.as_native() == Some(0)).then_some(())?;
                let bits = mask.as_native()?;
                match key {
                    FLOW_STATUS => match bits {
                        STATUS_DESTINATION_TRANSLATED => Some(Match::Translated),
                        ENDED => Some(Match::Ended),
                        _ => None,
                    },
                    FLOW_STATE => {
                        let states = STATES.into_iter().filter(|state| bits & state_bit(*state) != 0);
                        let known = STATES.into_iter().fold(0, |bits, state| bits | state_bit(state));
                        (bits & !known == 0).then_some(Match::Conntrack(states.collect()))
                    }
                    _ => None,
                }
            }
            Expr::Fib { flags, to: 0 } => {
                let (equal, data) = self.compare()?;
                (equal && data.as_native() == Some(LOCAL_ADDRESS)).then_some(())?;
                match flags {
                    FIB_DESTINATION => Some(Match::DestinationIsLocal),
                    FIB_SOURCE => Some(Match::SourceIsLocal),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    fn of_meta(&mut self, key: u32) -> Option<Match> {
        let masked = self.attempt(Self::mask);
        let (equal, data) = self.compare()?;
        if key == META_MARK {
            let mask = match masked {
                None => u32::MAX,
                Some((mask, xor)) => (xor.as_native()? == 0).then_some(mask.as_native()?)?,
            };
            return Some(Match::Mark {
                mask,
                value: data.as_native()?,
                negate: !equal,
            });
        }
        masked.is_none().then_some(())?;
        match key {
            META_IIFNAME | META_OIFNAME => {
                let name = match data.bytes() {
                    full if full.len() == 16 => {
                        let end = full.iter().position(|byte| *byte == 0)?;
                        std::str::from_utf8(&full[..end]).ok()?.to_owned()
                    }
                    prefix => format!("{}*", std::str::from_utf8(prefix).ok()?),
                };
                Some(Match::Interface {
                    way: if key == META_IIFNAME { Way::In } else { Way::Out },
                    negate: !equal,
                    name,
                })
            }
            META_IIF | META_OIF if equal && data.as_native() == Some(0) => {
                let way = if key == META_IIF { Way::In } else { Way::Out };
                Some(Match::NoInterface(way))
            }
            META_L4PROTO => Some(Match::Protocol {
                negate: !equal,
                number: data.as_byte()?,
            }),
            _ => None,
        }
    }

    fn of_transport(&mut self, offset: u32, length: u32) -> Option<Match> {
        match (offset, length) {
            (0, 1) => {
                let (equal, kind) = self.compare()?;
                let code = if equal { self.attempt(Self::icmp_code) } else { None };
                Some(Match::Icmp {
                    negate: !equal,
                    kind: kind.as_byte()?,
                    code,
                })
            }
            (0, 4) => {
                let (mask, xor) = self.mask()?;
                let (equal, data) = self.compare()?;
                (mask.bytes() == [0xff, 0xff, 0, 0] && xor.bytes() == [0; 4] && !equal).then_some(())?;
                match data.bytes() {
                    [kind, code, 0, 0] => Some(Match::Icmp {
                        negate: true,
                        kind: *kind,
                        code: Some(*code),
                    }),
                    _ => None,
                }
            }
            place => {
                let end = ENDS
                    .into_iter()
                    .find(|end| (place.0, place.1 as usize) == port_place(*end))?;
                let (negate, ranges) = match self.next()? {
                    Expr::Compare { at: 0, equal, data } => (!equal, vec![(data.as_port()?, data.as_port()?)]),
                    Expr::Range {
                        at: 0,
                        within,
                        low,
                        high,
                    } => (!within, vec![(low.as_port()?, high.as_port()?)]),
                    Expr::Lookup {
                        set: SetRef::Named(name),
                        at: 0,
                        negate,
                        verdict: false,
                    } => (*negate, (self.ports)(name)?),
                    _ => return None,
                };
                Some(Match::Port { end, negate, ranges })
            }
        }
    }

    fn icmp_code(&mut self) -> Option<u8> {
        match *self.next()? {
            Expr::Payload {
                base: TRANSPORT,
                offset: 1,
                length: 1,
                to: 0,
            } => {}
            _ => return None,
        }
        let (equal, code) = self.compare()?;
        code.as_byte().filter(|_| equal)
    }

    /// An action, and how it refuses, if it does.
    fn statement(&mut self) -> Option<(Statement, Option<u32>)> {
        let action = match self.next()? {
            Expr::Counter(_) => Statement::Counter,
            Expr::Limit {
                rate,
                seconds,
                burst,
                bytes: false,
                over: false,
            } => Statement::Limit {
                packets: u32::try_from(*rate).ok()?,
                per: Per::of_seconds(*seconds)?,
                burst: *burst,
            },
            Expr::Limit {
                rate,
                seconds: 1,
                burst,
                bytes: false,
                over: true,
            } => Statement::Over(Threshold::Packets {
                per_second: u32::try_from(*rate).ok()?,
                burst: *burst,
            }),
            Expr::Flows { most, over: true } => Statement::Over(Threshold::Flows(*most)),
            Expr::Payload {
                base: NETWORK,
                offset: 0,
                length: 2,
                to: 0,
            } => self.sets_dscp()?,
            Expr::Log {
                group: None,
                prefix,
                snaplen: 0,
            } => Statement::Log {
                prefix: (*prefix).to_owned(),
            },
            Expr::Log {
                group: Some(group),
                prefix,
                snaplen,
            } => Statement::Nflog {
                group: *group,
                prefix: (*prefix).to_owned(),
                snaplen: *snaplen,
            },
            Expr::Notrack => Statement::Notrack,
            Expr::Reject { kind, code } => {
                let known = (*kind, *code) == (REJECT_ICMPX, ADMIN_PROHIBITED) || *kind == REJECT_RESET;
                return known.then_some((Statement::Reject, Some(*kind)));
            }
            Expr::Meta { key: META_MARK, to: 0 } => {
                let (mask, xor) = self.mask()?;
                self.sets_mark()?;
                Statement::SetMark {
                    mask: !mask.as_native()?,
                    value: xor.as_native()?,
                }
            }
            Expr::Immediate { to, data } => self.with_immediate((*to, *data))?,
            Expr::Masquerade { ports: None, flags } => Statement::Masquerade {
                ports: None,
                random_fully: random(*flags)?,
            },
            _ => return None,
        };
        Some((action, None))
    }

    fn sets_dscp(&mut self) -> Option<Statement> {
        let (mask, bits) = self.mask()?;
        let Expr::SetPayload {
            base: NETWORK,
            offset: 0,
            length: 2,
            from: 0,
            checksum,
        } = self.next()?
        else {
            return None;
        };
        let checksum = *checksum;
        IpFamily::BOTH.into_iter().find_map(|family| {
            let [first, second] = bits.bytes().try_into().ok()?;
            let value = match family {
                IpFamily::V4 => second >> 2,
                IpFamily::V6 => first << 2 | second >> 6,
            };
            let expected = dscp(family, value);
            let has_sum = (family == IpFamily::V4).then_some(CHECKSUM_V4) == checksum;
            let same = (mask.bytes(), [first, second]) == (&expected.0[..], expected.1);
            (value < 64 && has_sum && same).then_some(Statement::SetDscp { family, value })
        })
    }

    fn with_immediate(&mut self, first: (Register, Data)) -> Option<Statement> {
        let mut loaded = vec![first];
        while let Some(more) = self.attempt(Self::immediate) {
            loaded.push(more);
        }
        let value = |register: Register| loaded.iter().find(|(at, _)| *at == register).map(|(_, data)| data);
        let range = |ports: &Option<(Register, Register)>| match ports {
            None => Some(None),
            Some((low, high)) => Some(Some((value(*low)?.as_port()?, value(*high)?.as_port()?))),
        };
        match self.next()? {
            Expr::SetMeta { key: META_MARK, from } => Some(Statement::SetMark {
                mask: u32::MAX,
                value: value(*from)?.as_native()?,
            }),
            Expr::Masquerade { ports, flags } => Some(Statement::Masquerade {
                ports: range(ports)?,
                random_fully: random(*flags)?,
            }),
            Expr::Nat {
                source,
                family,
                address,
                ports,
                flags,
            } => {
                let address = match value(*address)?.bytes() {
                    bytes if bytes.len() == 4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
                    bytes => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
                };
                (u32::from(family_number(IpFamily::of(&address))) == *family).then_some(())?;
                match (source, range(ports)?) {
                    (true, ports) => Some(Statement::SourceNat {
                        address,
                        ports,
                        random_fully: random(*flags)?,
                    }),
                    (false, ports) if *flags == 0 && ports.is_none_or(|(low, high)| low == high) => {
                        Some(Statement::DestinationNat {
                            address,
                            port: ports.map(|(port, _)| port),
                        })
                    }
                    (false, _) => None,
                }
            }
            _ => None,
        }
    }

    fn verdict(&mut self) -> Option<Verdict> {
        if let Expr::Verdict { code, chain } = self.rest.first()? {
            self.next()?;
            return Some(match (*code, chain.map(kernel::nft::ChainName::from)) {
                (ACCEPT, None) => Verdict::Accept,
                (DROP, None) => Verdict::Drop,
                (RETURN, None) => Verdict::Return,
                (JUMP, Some(chain)) => Verdict::Jump(chain),
                (GOTO, Some(chain)) => Verdict::Goto(chain),
                _ => return None,
            });
        }
        let family = self.attempt(Self::is_family).or(self.family);
        self.attempt(|parser| parser.map(family))
            .or_else(|| self.attempt(|parser| parser.map(None)))
    }

    fn meta(&mut self, wanted: u32) -> Option<()> {
        match self.next()? {
            Expr::Meta { key, to: 0 } if *key == wanted => Some(()),
            _ => None,
        }
    }

    fn sets_mark(&mut self) -> Option<()> {
        match self.next()? {
            Expr::SetMeta {
                key: META_MARK,
                from: 0,
            } => Some(()),
            _ => None,
        }
    }

    fn mask(&mut self) -> Option<(Data, Data)> {
        match self.next()? {
            Expr::Bitwise { at: 0, mask, xor } => Some((*mask, *xor)),
            _ => None,
        }
    }

    fn compare(&mut self) -> Option<(bool, Data)> {
        match self.next()? {
            Expr::Compare { at: 0, equal, data } => Some((*equal, *data)),
            _ => None,
        }
    }

    fn immediate(&mut self) -> Option<(Register, Data)> {
        match self.next()? {
            Expr::Immediate { to, data } => Some((*to, *data)),
            _ => None,
        }
    }
}

const ENDS: [End; 2] = [End::Source, End::Destination];
const STATES: [CtState; 5] = [
    CtState::New,
    CtState::Established,
    CtState::Related,
    CtState::Invalid,
    CtState::Untracked,
];

/// Where a port is in its header, and its bytes.
fn port_place(end: End) -> (u32, usize) {
    match end {
        End::Source => (0, 2),
        End::Destination => (2, 2),
    }
}

/// `None`: other flags than ours.
fn random(flags: u32) -> Option<bool> {
    match flags {
        0 => Some(false),
        NAT_RANDOM_FULLY => Some(true),
        _ => None,
    }
}
