//! Which of a host's addresses is the node's own: upstream's six methods, as a pure choice over what the kernel shows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, ToSocketAddrs, UdpSocket};

use ipnet::IpNet;
use kernel::{Address, IfName, IpFamily, Link};
use regex::Regex;

/// How the address is found (`IP_AUTODETECTION_METHOD`).
#[derive(Clone, Debug)]
pub enum Method {
    /// The first address of the first interface that is no container's, bridge's or tunnel's.
    FirstFound,
    /// The source address towards a host.
    CanReach(String),
    /// Interfaces that match one of these, in the order of the patterns.
    Interface(Vec<Regex>),
    /// As first-found, without these interfaces too.
    SkipInterface(Vec<Regex>),
    /// An address inside one of these ranges.
    Cidr(Vec<IpNet>),
    /// The `InternalIP` of the Kubernetes node.
    KubernetesInternalIp,
}

/// Interfaces that are never the node's own (upstream's list): those of containers, bridges, tunnels.
const EXCLUDED: &str = "^(docker.*|cbr.*|dummy.*|podman.*|virbr.*|lxcbr.*|veth.*|lo|br-.*|cali.*|tunl.*|flannel.*|kube-ipvs.*|cni.*|vxlan\\.calico.*|vxlan-v6\\.calico.*|wireguard\\.cali.*|wg-v6\\.cali.*|nodelocaldns.*)$";

/// What a choice is made from.
pub struct Host<'a> {
    /// Devices by name.
    pub links: &'a BTreeMap<IfName, Link>,
    /// Their addresses.
    pub addresses: &'a BTreeSet<Address>,
    /// The `InternalIP`s in this node's Node resource; none if there are none, or no Node.
    pub internal_ips: &'a [IpAddr],
    /// Answers with the source address towards a host.
    pub source_towards: &'a dyn Fn(&str, IpFamily) -> Result<IpAddr, String>,
}

/// An address and why it was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The address with its subnet's length.
    pub net: IpNet,
    /// Its device.
    pub device: IfName,
    /// For people.
    pub why: String,
}

impl Method {
    /// Reads upstream's text form; the error says what would be right.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        match (name, value) {
            ("first-found" | "", "") => Ok(Method::FirstFound),
            ("kubernetes-internal-ip", "") => Ok(Method::KubernetesInternalIp),
            ("can-reach", host) if !host.is_empty() => Ok(Method::CanReach(host.to_string())),
            ("interface", list) if !list.is_empty() => patterns(list).map(Method::Interface),
            ("skip-interface", list) if !list.is_empty() => patterns(list).map(Method::SkipInterface),
            ("cidr", list) if !list.is_empty() => list
                .split(',')
                .map(|cidr| cidr.trim().parse().map_err(|_| format!("has `{cidr}`, which is not a CIDR")))
                .collect::<Result<_, _>>()
                .map(Method::Cidr),
            _ => Err("is none of first-found, can-reach=HOST, interface=REGEX[,…], skip-interface=REGEX[,…], cidr=CIDR[,…], \
                      kubernetes-internal-ip"
                .to_string()),
        }
    }

    /// Chooses an address of a family, or says why there is none.
    pub fn choose(&self, family: IpFamily, host: &Host<'_>) -> Result<Choice, String> {
        let candidates = candidates(family, host);
        let found = match self {
            Method::FirstFound => candidates.into_iter().find(|c| !excluded(&c.device)),
            Method::SkipInterface(skip) => candidates
                .into_iter()
                .find(|c| !excluded(&c.device) && !skip.iter().any(|re| re.is_match(&c.device.0))),
            Method::Interface(patterns) => patterns
                .iter()
                .find_map(|re| candidates.iter().find(|c| re.is_match(&c.device.0)).cloned()),
            Method::Cidr(cidrs) => candidates
                .into_iter()
                .find(|c| cidrs.iter().any(|cidr| cidr.contains(&c.net.addr()))),
            Method::CanReach(target) => {
                let source = (host.source_towards)(target, family)?;
                candidates.into_iter().find(|c| c.net.addr() == source)
            }
            Method::KubernetesInternalIp => candidates
                .into_iter()
                .find(|c| host.internal_ips.contains(&c.net.addr())),
        };
        found
            .map(|choice| Choice {
                why: format!("{self} on {}", choice.device),
                ..choice
            })
            .ok_or_else(|| self.nothing(host))
    }

    fn nothing(&self, host: &Host<'_>) -> String {
        if matches!(self, Method::KubernetesInternalIp) && host.internal_ips.is_empty() {
            return format!("method {self}: the Node resource has no spec.addresses of type InternalIP (yet)");
        }
        let seen: Vec<String> = host
            .addresses
            .iter()
            .map(|a| format!("{} {}", a.device, a.net))
            .collect();
        format!(
            "method {self} matched none of: {}",
            if seen.is_empty() {
                "(no addresses)".into()
            } else {
                seen.join(", ")
            }
        )
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let join = |patterns: &[Regex]| patterns.iter().map(Regex::as_str).collect::<Vec<_>>().join(",");
        match self {
            Method::FirstFound => f.write_str("first-found"),
            Method::CanReach(host) => write!(f, "can-reach={host}"),
            Method::Interface(patterns) => write!(f, "interface={}", join(patterns)),
            Method::SkipInterface(patterns) => write!(f, "skip-interface={}", join(patterns)),
            Method::Cidr(cidrs) => {
                write!(
                    f,
                    "cidr={}",
                    cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
                )
            }
            Method::KubernetesInternalIp => f.write_str("kubernetes-internal-ip"),
        }
    }
}

/// The source address that the kernel would use towards `target`. A connected UDP socket sends nothing.
pub fn source_towards(target: &str, family: IpFamily) -> Result<IpAddr, String> {
    let any = if family == IpFamily::V4 { "0.0.0.0:0" } else { "[::]:0" };
    let remote = (target, 80)
        .to_socket_addrs()
        .map_err(|error| format!("can-reach={target}: {error}"))?
        .find(|address| IpFamily::of(&address.ip()) == family)
        .ok_or_else(|| format!("can-reach={target}: it has no address of this family"))?;
    let socket = UdpSocket::bind(any).and_then(|socket| socket.connect(remote).map(|()| socket));
    socket
        .and_then(|socket| socket.local_addr())
        .map(|local| local.ip())
        .map_err(|error| format!("can-reach={target}: {error}"))
}

/// Usable addresses of devices that are up, in the order of the devices' numbers.
fn candidates(family: IpFamily, host: &Host<'_>) -> Vec<Choice> {
    let mut links: Vec<&Link> = host.links.values().filter(|link| link.up).collect();
    links.sort_by_key(|link| link.index);
    let of = |link: &Link| {
        let name = link.name.clone();
        let own = host.addresses.iter().filter(move |a| a.device == name);
        own.map(|a| Choice {
            net: a.net,
            device: a.device.clone(),
            why: String::new(),
        })
        .collect::<Vec<_>>()
    };
    let usable = |net: &IpNet| IpFamily::of(&net.addr()) == family && is_usable(&net.addr());
    links
        .into_iter()
        .flat_map(of)
        .filter(|choice| usable(&choice.net))
        .collect()
}

fn is_usable(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_unspecified(),
    }
}

fn excluded(device: &IfName) -> bool {
    static PATTERN: std::sync::OnceLock<Regex> = std::sync::OnceLock::new();
    PATTERN
        .get_or_init(|| Regex::new(EXCLUDED).expect("the constant is a valid expression"))
        .is_match(&device.0)
}

fn patterns(list: &str) -> Result<Vec<Regex>, String> {
    list.split(',')
        .map(|text| Regex::new(text.trim()).map_err(|error| format!("has `{text}`: {error}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `host` is `index name[!] address…` lines; `!` marks a device that is down. Expected: device, or part of the error.
    fn check(method: &str, family: IpFamily, expected: Result<&str, &str>) {
        let host = "1 lo 127.0.0.1/8 ::1/128\n2 docker0 172.17.0.1/16\n3 eth9! 10.9.9.9/24\n4 ens33 10.211.55.7/24 fd00::7/64 fe80::1/64\n5 ens34 10.1.0.7/16\n6 cali123 169.254.3.3/32";
        let (links, addresses) = parse(host);
        let towards = |_: &str, _: IpFamily| Ok("10.1.0.7".parse().unwrap());
        let internal: &[IpAddr] = &["10.1.0.7".parse().unwrap()];
        let internal = if family == IpFamily::V4 { internal } else { &[] };
        let host = Host {
            links: &links,
            addresses: &addresses,
            internal_ips: internal,
            source_towards: &towards,
        };
        let got = Method::parse(method).and_then(|method| method.choose(family, &host));
        match (got, expected) {
            (Ok(choice), Ok(device)) => assert_eq!(choice.device.0, device, "{method}"),
            (Err(error), Err(part)) => assert!(error.contains(part), "{method}: {error}"),
            (got, expected) => panic!("{method}: got {got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn each_method_finds_its_address() {
        check("first-found", IpFamily::V4, Ok("ens33"));
        check("first-found", IpFamily::V6, Ok("ens33"));
        check("interface=ens34,ens.*", IpFamily::V4, Ok("ens34"));
        check("interface=docker.*", IpFamily::V4, Ok("docker0"));
        check("skip-interface=ens33", IpFamily::V4, Ok("ens34"));
        check("cidr=10.1.0.0/16", IpFamily::V4, Ok("ens34"));
        check("can-reach=192.0.2.1", IpFamily::V4, Ok("ens34"));
        check("kubernetes-internal-ip", IpFamily::V4, Ok("ens34"));
    }

    #[test]
    fn no_match_lists_what_was_seen() {
        check("cidr=192.0.2.0/24", IpFamily::V4, Err("ens33 10.211.55.7/24"));
        check("interface=eth9", IpFamily::V4, Err("matched none"));
        check(
            "kubernetes-internal-ip",
            IpFamily::V6,
            Err("no spec.addresses of type InternalIP"),
        );
        check("skip-interface=ens.*", IpFamily::V6, Err("matched none"));
    }

    #[test]
    fn a_wrong_method_says_what_would_be_right() {
        check("fastest", IpFamily::V4, Err("is none of first-found"));
        check(
            "cidr=10.0.0.0/40",
            IpFamily::V4,
            Err("`10.0.0.0/40`, which is not a CIDR"),
        );
        check("interface=(", IpFamily::V4, Err("has `(`"));
    }

    fn parse(text: &str) -> (BTreeMap<IfName, Link>, BTreeSet<Address>) {
        let mut links = BTreeMap::new();
        let mut addresses = BTreeSet::new();
        for line in text.lines() {
            let mut words = line.split(' ');
            let index = words.next().unwrap().parse().unwrap();
            let word = words.next().unwrap();
            let name = IfName::from(word.trim_end_matches('!'));
            let up = !word.ends_with('!');
            let link = Link {
                index,
                name: name.clone(),
                kind: String::new(),
                mtu: 1500,
                up,
                carrier: up,
                mac: None,
                alias: None,
                master: None,
            };
            links.insert(name.clone(), link);
            addresses.extend(words.map(|net| Address {
                device: name.clone(),
                net: net.parse().unwrap(),
            }));
        }
        (links, addresses)
    }
}
