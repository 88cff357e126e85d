//! Rules into expressions. [`super::parse`] is the way back: what is written here must be told apart there.

use std::net::IpAddr;

use ipnet::IpNet;
use kernel::IpFamily;
use kernel::nft::{Count, CtState, End, Field, KeyType, Match, Rule, Statement, Threshold, Verdict, Way};

use crate::conntrack::ENDED;

use super::expr::*;

/// A rule as the kernel has it: one, or two for what one cannot say.
pub(super) struct Compiled<'r> {
    /// Its expressions.
    pub rules: Vec<Vec<Expr<'r>>>,
}

/// The kernel's number of TCP, which alone is answered by a reset.
pub(super) const TCP: u8 = 6;

/// Compiles a rule. `ports` makes a set of port ranges that belongs to the rule and answers its number in the batch.
pub(super) fn rule(rule: &Rule, mut ports: impl FnMut(&[(u16, u16)]) -> u32) -> Compiled<'_> {
    let rules = if rule.actions.last() == Some(&Statement::Reject) {
        match is_tcp(&rule.matches) {
            Some(true) => vec![compile(rule, Some(Refuse::Reset), false, &mut ports)],
            Some(false) => vec![compile(rule, Some(Refuse::Prohibit), false, &mut ports)],
            None => vec![
                compile(rule, Some(Refuse::Reset), true, &mut ports),
                compile(rule, Some(Refuse::Prohibit), false, &mut ports),
            ],
        }
    } else {
        vec![compile(rule, None, false, &mut ports)]
    };
    Compiled { rules }
}

/// What refusing looks like to the sender.
#[derive(Clone, Copy)]
enum Refuse {
    Reset,
    Prohibit,
}

/// Do the matches say that it is TCP, or that it is not?
pub(super) fn is_tcp(matches: &[Match]) -> Option<bool> {
    matches.iter().find_map(|part| match part {
        Match::Protocol { number: TCP, negate } => Some(!negate),
        Match::Protocol { negate: false, .. } => Some(false),
        _ => None,
    })
}

fn compile<'r>(
    rule: &'r Rule,
    refuse: Option<Refuse>,
    tcp_alone: bool,
    ports: &mut impl FnMut(&[(u16, u16)]) -> u32,
) -> Vec<Expr<'r>> {
    let mut compiler = Compiler {
        exprs: Vec::with_capacity(4 + 4 * rule.matches.len()),
        family: None,
    };
    for part in &rule.matches {
        compiler.matches(part, ports);
    }
    if tcp_alone {
        compiler.protocol(false, TCP);
    }
    for action in &rule.actions {
        compiler.statement(action, refuse);
    }
    if let Some(verdict) = &rule.verdict {
        compiler.verdict(verdict);
    }
    compiler.exprs
}

struct Compiler<'r> {
    exprs: Vec<Expr<'r>>,
    /// The family that addresses before this point have made sure of.
    family: Option<IpFamily>,
}

/// The values of loads begin here.
const FIRST: Register = 0;

impl<'r> Compiler<'r> {
    fn matches(&mut self, part: &'r Match, ports: &mut impl FnMut(&[(u16, u16)]) -> u32) {
        match part {
            Match::Interface { way, negate, name } => {
                self.meta(device_name(*way));
                let mut bytes = [0; 16];
                let data = match name.strip_suffix('*') {
                    Some(prefix) => Data::new(prefix.as_bytes()),
                    None => {
                        bytes[..name.len()].copy_from_slice(name.as_bytes());
                        Data::new(&bytes)
                    }
                };
                self.compare(!negate, data);
            }
            Match::NoInterface(way) => {
                self.meta(match way {
                    Way::In => META_IIF,
                    Way::Out => META_OIF,
                });
                self.compare(true, Data::native(0));
            }
            Match::Family(family) => self.is_family(*family),
            Match::Protocol { negate, number } => self.protocol(*negate, *number),
            Match::Net { end, negate, net } => self.net(*end, *negate, net),
            Match::Port { end, negate, ranges } => {
                self.load(Field::Port(*end), FIRST);
                match ranges.as_slice() {
                    [(low, high)] if low == high => self.compare(!negate, Data::new(&low.to_be_bytes())),
                    [(low, high)] => self.exprs.push(Expr::Range {
                        at: FIRST,
                        within: !negate,
                        low: Data::new(&low.to_be_bytes()),
                        high: Data::new(&high.to_be_bytes()),
                    }),
                    ranges => self.exprs.push(Expr::Lookup {
                        set: SetRef::New(ports(ranges)),
                        at: FIRST,
                        negate: *negate,
                        verdict: false,
                    }),
                }
            }
            Match::Icmp { negate, kind, code } => self.icmp(*negate, *kind, *code),
            Match::InSet { key, negate, set } => self.lookup(key, &set.0, *negate, false),
            Match::Conntrack(states) => {
                let bits = states.iter().fold(0, |bits, state| bits | state_bit(*state));
                self.flow(FLOW_STATE, bits);
            }
            Match::Translated => self.flow(FLOW_STATUS, STATUS_DESTINATION_TRANSLATED),
            Match::Ended => self.flow(FLOW_STATUS, ENDED),
            Match::Mark { mask, value, negate } => {
                self.meta(META_MARK);
                if *mask != u32::MAX {
                    self.mask(Data::native(*mask), Data::native(0));
                }
                self.compare(!negate, Data::native(*value));
            }
            Match::DestinationIsLocal => self.local(FIB_DESTINATION),
            Match::SourceIsLocal => self.local(FIB_SOURCE),
        }
    }

    fn statement(&mut self, action: &'r Statement, refuse: Option<Refuse>) {
        let expr = match action {
            Statement::Counter => Expr::Counter(Count::default()),
            Statement::Limit { packets, per, burst } => Expr::Limit {
                rate: (*packets).into(),
                seconds: per.seconds(),
                burst: *burst,
                bytes: false,
                over: false,
            },
            Statement::Over(Threshold::Packets { per_second, burst }) => Expr::Limit {
                rate: (*per_second).into(),
                seconds: 1,
                burst: *burst,
                bytes: false,
                over: true,
            },
            Statement::Over(Threshold::Flows(most)) => Expr::Flows {
                most: *most,
                over: true,
            },
            Statement::SetDscp { family, value } => {
                let (mask, bits) = dscp(*family, *value);
                self.exprs.push(Expr::Payload {
                    base: NETWORK,
                    offset: 0,
                    length: 2,
                    to: FIRST,
                });
                self.mask(Data::new(&mask), Data::new(&bits));
                Expr::SetPayload {
                    base: NETWORK,
                    offset: 0,
                    length: 2,
                    from: FIRST,
                    checksum: (*family == IpFamily::V4).then_some(CHECKSUM_V4),
                }
            }
            Statement::Log { prefix } => Expr::Log {
                group: None,
                prefix,
                snaplen: 0,
            },
            Statement::Nflog { group, prefix, snaplen } => Expr::Log {
                group: Some(*group),
                prefix,
                snaplen: *snaplen,
            },
            Statement::SetMark { mask, value } => {
                if *mask == u32::MAX {
                    self.immediate(FIRST, &value.to_ne_bytes());
                } else {
                    self.meta(META_MARK);
                    self.mask(Data::native(!mask), Data::native(*value));
                }
                Expr::SetMeta {
                    key: META_MARK,
                    from: FIRST,
                }
            }
            Statement::Notrack => Expr::Notrack,
            Statement::Masquerade { ports, random_fully } => Expr::Masquerade {
                ports: ports.map(|ports| self.ports(ports)),
                flags: random(*random_fully),
            },
            Statement::SourceNat {
                address,
                ports,
                random_fully,
            } => self.nat(true, address, *ports, random(*random_fully)),
            Statement::DestinationNat { address, port } => self.nat(false, address, port.map(|port| (port, port)), 0),
            Statement::Reject => match refuse {
                Some(Refuse::Reset) => Expr::Reject {
                    kind: REJECT_RESET,
                    code: 0,
                },
                Some(Refuse::Prohibit) | None => Expr::Reject {
                    kind: REJECT_ICMPX,
                    code: ADMIN_PROHIBITED,
                },
            },
        };
        self.exprs.push(expr);
    }

    fn verdict(&mut self, verdict: &'r Verdict) {
        let (code, chain) = match verdict {
            Verdict::Accept => (ACCEPT, None),
            Verdict::Drop => (DROP, None),
            Verdict::Return => (RETURN, None),
            Verdict::Jump(chain) => (JUMP, Some(chain.0.as_str())),
            Verdict::Goto(chain) => (GOTO, Some(chain.0.as_str())),
            Verdict::Map { key, map } => return self.lookup(key, &map.0, false, true),
        };
        self.exprs.push(Expr::Verdict { code, chain });
    }

    fn is_family(&mut self, family: IpFamily) {
        self.meta(META_NFPROTO);
        self.compare(true, Data::new(&[family_number(family)]));
    }

    /// Makes sure of the family, once for all addresses of a rule.
    fn need_family(&mut self, family: IpFamily) {
        if self.family != Some(family) {
            self.is_family(family);
            self.family = Some(family);
        }
    }

    fn protocol(&mut self, negate: bool, number: u8) {
        self.meta(META_L4PROTO);
        self.compare(!negate, Data::new(&[number]));
    }

    fn net(&mut self, end: End, negate: bool, net: &IpNet) {
        let (family, address) = match net.network() {
            IpAddr::V4(address) => (IpFamily::V4, Data::new(&address.octets())),
            IpAddr::V6(address) => (IpFamily::V6, Data::new(&address.octets())),
        };
        self.need_family(family);
        let prefix = usize::from(net.prefix_len());
        let (offset, width) = address_place(family, end);
        // Whole bytes are compared without a mask.
        let whole = prefix.is_multiple_of(8) && prefix > 0;
        let length = if whole { prefix / 8 } else { width };
        self.exprs.push(Expr::Payload {
            base: NETWORK,
            offset,
            length: length as u32,
            to: FIRST,
        });
        if !whole {
            let mut mask = [0; 16];
            for (at, byte) in mask.iter_mut().enumerate() {
                *byte = match prefix.saturating_sub(8 * at) {
                    0 => 0,
                    bits => !(0xff_u16 >> bits.min(8)) as u8,
                };
            }
            self.mask(Data::new(&mask[..width]), Data::new(&[0; 16][..width]));
        }
        self.compare(!negate, Data::new(&address.bytes()[..length]));
    }

    fn icmp(&mut self, negate: bool, kind: u8, code: Option<u8>) {
        let mut byte = |offset, length| {
            self.exprs.push(Expr::Payload {
                base: TRANSPORT,
                offset,
                length,
                to: FIRST,
            });
        };
        match code {
            None => {
                byte(0, 1);
                self.compare(!negate, Data::new(&[kind]));
            }
            Some(code) if !negate => {
                byte(0, 1);
                self.compare(true, Data::new(&[kind]));
                self.exprs.push(Expr::Payload {
                    base: TRANSPORT,
                    offset: 1,
                    length: 1,
                    to: FIRST,
                });
                self.compare(true, Data::new(&[code]));
            }
            Some(code) => {
                // Two bytes here would be a source port.
                byte(0, 4);
                self.mask(Data::new(&[0xff, 0xff, 0, 0]), Data::new(&[0; 4]));
                self.compare(false, Data::new(&[kind, code, 0, 0]));
            }
        }
    }

    fn lookup(&mut self, key: &[Field], set: &'r str, negate: bool, verdict: bool) {
        for field in key {
            if let KeyType::Address(family) = field.key_type() {
                self.need_family(family);
            }
        }
        let mut at = FIRST;
        for field in key {
            self.load(*field, at);
            at += (field.key_type().width() as u32).div_ceil(4);
        }
        self.exprs.push(Expr::Lookup {
            set: SetRef::Named(set),
            at: FIRST,
            negate,
            verdict,
        });
    }

    fn load(&mut self, field: Field, to: Register) {
        let expr = match field {
            Field::Interface(way) => Expr::Meta {
                key: device_name(way),
                to,
            },
            Field::Protocol => Expr::Meta { key: META_L4PROTO, to },
            Field::Address(family, end) => {
                let (offset, width) = address_place(family, end);
                Expr::Payload {
                    base: NETWORK,
                    offset,
                    length: width as u32,
                    to,
                }
            }
            Field::Port(end) => Expr::Payload {
                base: TRANSPORT,
                offset: match end {
                    End::Source => 0,
                    End::Destination => 2,
                },
                length: 2,
                to,
            },
        };
        self.exprs.push(expr);
    }

    fn flow(&mut self, key: u32, bits: u32) {
        self.exprs.push(Expr::Flow { key, to: FIRST });
        self.mask(Data::native(bits), Data::native(0));
        self.compare(false, Data::native(0));
    }

    fn local(&mut self, flags: u32) {
        self.exprs.push(Expr::Fib { flags, to: FIRST });
        self.compare(true, Data::native(LOCAL_ADDRESS));
    }

    fn nat(&mut self, source: bool, address: &IpAddr, ports: Option<(u16, u16)>, flags: u32) -> Expr<'r> {
        let family = IpFamily::of(address);
        match address {
            IpAddr::V4(address) => self.immediate(FIRST, &address.octets()),
            IpAddr::V6(address) => self.immediate(FIRST, &address.octets()),
        }
        Expr::Nat {
            source,
            family: family_number(family).into(),
            address: FIRST,
            ports: ports.map(|ports| self.ports(ports)),
            flags,
        }
    }

    fn ports(&mut self, (low, high): (u16, u16)) -> (Register, Register) {
        const LOW: Register = 4;
        const HIGH: Register = 8;
        self.immediate(LOW, &low.to_be_bytes());
        if low == high {
            return (LOW, LOW);
        }
        self.immediate(HIGH, &high.to_be_bytes());
        (LOW, HIGH)
    }

    fn immediate(&mut self, to: Register, bytes: &[u8]) {
        let data = Data::new(bytes);
        self.exprs.push(Expr::Immediate { to, data });
    }

    fn meta(&mut self, key: u32) {
        self.exprs.push(Expr::Meta { key, to: FIRST });
    }

    fn mask(&mut self, mask: Data, xor: Data) {
        self.exprs.push(Expr::Bitwise { at: FIRST, mask, xor });
    }

    fn compare(&mut self, equal: bool, data: Data) {
        self.exprs.push(Expr::Compare { at: FIRST, equal, data });
    }
}

/// Bit of a flow's status: `IPS_DST_NAT`.
pub(super) const STATUS_DESTINATION_TRANSLATED: u32 = 1 << 5;
pub(super) const FIB_SOURCE: u32 = 1;
pub(super) const FIB_DESTINATION: u32 = 2;
/// `RTN_LOCAL`.
pub(super) const LOCAL_ADDRESS: u32 = 2;

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
pub(super) fn family_number(family: IpFamily) -> u8 {
    match family {
        IpFamily::V4 => 2,
        IpFamily::V6 => 10,
    }
}

/// Where an address is in its header, and its bytes.
pub(super) fn address_place(family: IpFamily, end: End) -> (u32, usize) {
    match (family, end) {
        (IpFamily::V4, End::Source) => (12, 4),
        (IpFamily::V4, End::Destination) => (16, 4),
        (IpFamily::V6, End::Source) => (8, 16),
        (IpFamily::V6, End::Destination) => (24, 16),
    }
}

pub(super) fn state_bit(state: CtState) -> u32 {
    match state {
        CtState::Invalid => 1,
        CtState::Established => 2,
        CtState::Related => 4,
        CtState::New => 8,
        CtState::Untracked => 64,
    }
}

fn device_name(way: Way) -> u32 {
    match way {
        Way::In => META_IIFNAME,
        Way::Out => META_OIFNAME,
    }
}

fn random(fully: bool) -> u32 {
    if fully { NAT_RANDOM_FULLY } else { 0 }
}

/// Where an IPv4 header has its checksum.
pub(super) const CHECKSUM_V4: u32 = 10;

/// The first two bytes of a header: which bits are not the DSCP's, and what the others become.
pub(super) fn dscp(family: IpFamily, value: u8) -> ([u8; 2], [u8; 2]) {
    match family {
        // Version and length; then DSCP and ECN.
        IpFamily::V4 => ([0xff, 0x03], [0, value << 2]),
        // Version, then traffic class, then flow label, each at an odd place (RFC 8200 section 3).
        IpFamily::V6 => ([0xf0, 0x3f], [value >> 2, value << 6]),
    }
}
