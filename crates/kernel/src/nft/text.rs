//! Rules as text, in the words of nft's own language: for people, documentation and tests. Nothing reads it back.

use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;

use ipnet::IpNet;

use super::*;

const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut words = matches(&self.matches);
        words.extend(self.actions.iter().map(Statement::to_string));
        words.extend(self.verdict.iter().map(Verdict::to_string));
        words.extend(self.comment.iter().map(|comment| format!("comment {comment:?}")));
        f.write_str(&words.join(" "))
    }
}

/// As nft does, the protocol is not written if what follows says it too: `tcp dport 80`.
fn matches(matches: &[Match]) -> Vec<String> {
    let protocol = matches.iter().find_map(|part| match part {
        Match::Protocol { negate: false, number } => Some(*number),
        _ => None,
    });
    let said_later = matches.iter().any(|part| match part {
        Match::Port { .. } => protocol.is_some_and(|number| port_header(Some(number)) != "th"),
        Match::Icmp { .. } => protocol.is_some_and(|number| [ICMP, ICMP_V6].contains(&number)),
        _ => false,
    });
    matches
        .iter()
        .filter(|part| !(said_later && matches!(part, Match::Protocol { negate: false, .. })))
        .map(|part| one_match(part, protocol))
        .collect()
}

fn one_match(part: &Match, protocol: Option<u8>) -> String {
    match part {
        Match::Interface { way, negate, name } => format!("{} {}\"{name}\"", interface(*way), not(*negate)),
        Match::NoInterface(Way::In) => "iif 0".into(),
        Match::NoInterface(Way::Out) => "oif 0".into(),
        Match::Family(IpFamily::V4) => "meta nfproto ipv4".into(),
        Match::Family(IpFamily::V6) => "meta nfproto ipv6".into(),
        Match::Protocol { negate, number } => format!("meta l4proto {}{}", not(*negate), protocol_name(*number)),
        Match::Net { end, negate, net } => {
            let family = IpFamily::of(&net.addr());
            format!("{} {}{}", address(family, *end), not(*negate), net_text(net))
        }
        Match::Port { end, negate, ranges } => {
            format!(
                "{} {} {}{}",
                port_header(protocol),
                port(*end),
                not(*negate),
                port_ranges(ranges)
            )
        }
        Match::Icmp { negate, kind, code } => {
            let name = if protocol == Some(ICMP_V6) { "icmpv6" } else { "icmp" };
            match code {
                None => format!("{name} type {}{kind}", not(*negate)),
                Some(code) => format!("{name} type . {name} code {}{{ {kind} . {code} }}", not(*negate)),
            }
        }
        Match::InSet { key, negate, set } => format!("{} {}@{set}", fields(key), not(*negate)),
        Match::Conntrack(states) => {
            let states: Vec<&str> = states.iter().map(|state| state_name(*state)).collect();
            format!("ct state {}", states.join(","))
        }
        Match::Translated => "ct status dnat".into(),
        // nft has no word for it.
        Match::Ended => "ct status 0x400".into(),
        Match::Mark { mask, value, negate } => {
            let relation = if *negate { "!=" } else { "==" };
            format!("meta mark & {mask:#010x} {relation} {value:#010x}")
        }
        Match::DestinationIsLocal => "fib daddr type local".into(),
        Match::SourceIsLocal => "fib saddr type local".into(),
    }
}

impl Display for Statement {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Statement::Counter => f.write_str("counter"),
            Statement::Limit { packets, per, burst } => {
                let span = match per {
                    Per::Second => "second",
                    Per::Minute => "minute",
                    Per::Hour => "hour",
                    Per::Day => "day",
                };
                write!(f, "limit rate {packets}/{span}")?;
                // nft does not say what is usual.
                if *burst == 5 {
                    Ok(())
                } else {
                    write!(f, " burst {burst} packets")
                }
            }
            Statement::Over(Threshold::Packets { per_second, burst }) => {
                write!(f, "limit rate over {per_second}/second burst {burst} packets")
            }
            Statement::Over(Threshold::Flows(most)) => write!(f, "ct count over {most}"),
            Statement::SetDscp { family, value } => {
                let header = match family {
                    IpFamily::V4 => "ip",
                    IpFamily::V6 => "ip6",
                };
                write!(f, "{header} dscp set {value}")
            }
            Statement::Log { prefix } => write!(f, "log prefix {prefix:?}"),
            Statement::Nflog { group, prefix, snaplen } => {
                write!(f, "log prefix {prefix:?} group {group}")?;
                if *snaplen > 0 {
                    write!(f, " snaplen {snaplen}")
                } else {
                    Ok(())
                }
            }
            Statement::SetMark { mask, value } => {
                write!(f, "meta mark set meta mark & {:#010x}", !mask)?;
                if *value > 0 {
                    write!(f, " | {value:#010x}")
                } else {
                    Ok(())
                }
            }
            Statement::Notrack => f.write_str("notrack"),
            Statement::Masquerade { ports, random_fully } => {
                f.write_str("masquerade")?;
                if let Some((first, last)) = ports {
                    write!(f, " to :{}", one_range(*first, *last))?;
                }
                f.write_str(random(*random_fully))
            }
            Statement::SourceNat {
                address,
                ports,
                random_fully,
            } => {
                let ports = ports.map(|(first, last)| one_range(first, last));
                write!(f, "snat {}{}", translated(address, ports), random(*random_fully))
            }
            Statement::DestinationNat { address, port } => {
                write!(f, "dnat {}", translated(address, port.map(|port| port.to_string())))
            }
            Statement::Reject => f.write_str("reject"),
        }
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Accept => f.write_str("accept"),
            Verdict::Drop => f.write_str("drop"),
            Verdict::Return => f.write_str("return"),
            Verdict::Jump(chain) => write!(f, "jump {chain}"),
            Verdict::Goto(chain) => write!(f, "goto {chain}"),
            Verdict::Map { key, map } => write!(f, "{} vmap @{map}", fields(key)),
        }
    }
}

impl Display for BaseChain {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            ChainKind::Filter => "filter",
            ChainKind::Nat => "nat",
        };
        let hook = match self.hook {
            Hook::Prerouting => "prerouting",
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
        };
        let policy = if self.drop { "drop" } else { "accept" };
        write!(
            f,
            "type {kind} hook {hook} priority {}; policy {policy};",
            self.priority
        )
    }
}

impl Display for SetSpec {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let key: Vec<&str> = self.key.iter().map(|part| key_type(*part)).collect();
        write!(f, "type {}", key.join(" . "))?;
        f.write_str(if self.verdicts { " : verdict;" } else { ";" })?;
        f.write_str(if self.interval { " flags interval;" } else { "" })
    }
}

impl Display for Element {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let key: Vec<String> = self.key.iter().map(Value::to_string).collect();
        f.write_str(&key.join(" . "))?;
        match &self.verdict {
            None => Ok(()),
            Some(verdict) => write!(f, " : {verdict}"),
        }
    }
}

impl Display for Value {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Value::Interface(name) => write!(f, "\"{name}\""),
            Value::Address(address) => address.fmt(f),
            Value::Net(net) => f.write_str(&net_text(net)),
            Value::Protocol(number) => f.write_str(&protocol_name(*number)),
            Value::Port(port) => port.fmt(f),
            Value::Ports(first, last) => f.write_str(&one_range(*first, *last)),
        }
    }
}

impl Display for ElementVerdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            ElementVerdict::Accept => f.write_str("accept"),
            ElementVerdict::Drop => f.write_str("drop"),
            ElementVerdict::Jump(chain) => write!(f, "jump {chain}"),
            ElementVerdict::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

fn not(negate: bool) -> &'static str {
    if negate { "!= " } else { "" }
}

fn random(fully: bool) -> &'static str {
    if fully { " fully-random" } else { "" }
}

fn interface(way: Way) -> &'static str {
    match way {
        Way::In => "iifname",
        Way::Out => "oifname",
    }
}

fn address(family: IpFamily, end: End) -> &'static str {
    match (family, end) {
        (IpFamily::V4, End::Source) => "ip saddr",
        (IpFamily::V4, End::Destination) => "ip daddr",
        (IpFamily::V6, End::Source) => "ip6 saddr",
        (IpFamily::V6, End::Destination) => "ip6 daddr",
    }
}

fn port(end: End) -> &'static str {
    match end {
        End::Source => "sport",
        End::Destination => "dport",
    }
}

/// Which header nft names for a port: any transport header has it at the same place.
fn port_header(protocol: Option<u8>) -> &'static str {
    match protocol {
        Some(6) => "tcp",
        Some(17) => "udp",
        Some(132) => "sctp",
        Some(136) => "udplite",
        Some(_) | None => "th",
    }
}

fn protocol_name(number: u8) -> String {
    match number {
        ICMP => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        ICMP_V6 => "ipv6-icmp".into(),
        132 => "sctp".into(),
        136 => "udplite".into(),
        other => other.to_string(),
    }
}

fn state_name(state: CtState) -> &'static str {
    match state {
        CtState::New => "new",
        CtState::Established => "established",
        CtState::Related => "related",
        CtState::Invalid => "invalid",
        CtState::Untracked => "untracked",
    }
}

fn key_type(part: KeyType) -> &'static str {
    match part {
        KeyType::Interface => "ifname",
        KeyType::Address(IpFamily::V4) => "ipv4_addr",
        KeyType::Address(IpFamily::V6) => "ipv6_addr",
        KeyType::Protocol => "inet_proto",
        KeyType::Port => "inet_service",
    }
}

fn fields(key: &[Field]) -> String {
    let field = |field: &Field| match field {
        Field::Interface(way) => interface(*way).to_owned(),
        Field::Address(family, end) => address(*family, *end).to_owned(),
        Field::Protocol => "meta l4proto".to_owned(),
        Field::Port(end) => format!("th {}", port(*end)),
    };
    key.iter().map(field).collect::<Vec<_>>().join(" . ")
}

fn net_text(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() {
        net.addr().to_string()
    } else {
        net.to_string()
    }
}

fn one_range(first: u16, last: u16) -> String {
    if first == last {
        first.to_string()
    } else {
        format!("{first}-{last}")
    }
}

fn port_ranges(ranges: &[(u16, u16)]) -> String {
    let texts: Vec<String> = ranges.iter().map(|(first, last)| one_range(*first, *last)).collect();
    match texts.as_slice() {
        [one] => one.clone(),
        several => format!("{{ {} }}", several.join(", ")),
    }
}

fn translated(address: &IpAddr, port: Option<String>) -> String {
    match (address, port) {
        (IpAddr::V4(address), None) => format!("ip to {address}"),
        (IpAddr::V4(address), Some(port)) => format!("ip to {address}:{port}"),
        (IpAddr::V6(address), None) => format!("ip6 to {address}"),
        (IpAddr::V6(address), Some(port)) => format!("ip6 to [{address}]:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_read_as_nft_writes_them() {
        let tcp = Match::Protocol {
            negate: false,
            number: 6,
        };
        let port = Match::Port {
            end: End::Destination,
            negate: false,
            ranges: vec![(80, 80), (8000, 8100)],
        };
        check(
            vec![tcp.clone(), port],
            vec![Statement::Counter],
            Verdict::Drop,
            "tcp dport { 80, 8000-8100 } counter drop",
        );
        let set = Match::InSet {
            key: vec![
                Field::Address(IpFamily::V6, End::Destination),
                Field::Protocol,
                Field::Port(End::Destination),
            ],
            negate: true,
            set: "s".into(),
        };
        check(
            vec![tcp, set],
            vec![],
            Verdict::Goto("c".into()),
            "meta l4proto tcp ip6 daddr . meta l4proto . th dport != @s goto c",
        );
        let ping = Match::Icmp {
            negate: false,
            kind: 128,
            code: Some(0),
        };
        check(
            vec![
                Match::Protocol {
                    negate: false,
                    number: 58,
                },
                ping,
            ],
            vec![Statement::SetMark {
                mask: 0x20000,
                value: 0x20000,
            }],
            Verdict::Return,
            "icmpv6 type . icmpv6 code { 128 . 0 } meta mark set meta mark & 0xfffdffff | 0x00020000 return",
        );
        check(
            vec![Match::Interface {
                way: Way::Out,
                negate: true,
                name: "tunl0".into(),
            }],
            vec![Statement::Masquerade {
                ports: Some((1000, 2000)),
                random_fully: true,
            }],
            Verdict::Map {
                key: vec![Field::Interface(Way::In)],
                map: "m".into(),
            },
            "oifname != \"tunl0\" masquerade to :1000-2000 fully-random iifname vmap @m",
        );
    }

    fn check(matches: Vec<Match>, actions: Vec<Statement>, verdict: Verdict, text: &str) {
        let rule = Rule {
            matches,
            actions,
            verdict: Some(verdict),
            comment: None,
        };
        assert_eq!(rule.to_string(), text);
    }
}
