//! Translated addresses: pods that leave the pools, floating IPs, ports of the host that lead to pods.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use kernel::IpFamily;
use kernel::nft::*;

use super::base::{Frame, Rendered, base, protocol, regular};
use super::endpoint::jump;
use super::names;
use super::settings::NatExclusions;

/// Protocols whose ports can be chosen.
const PORTED: [u8; 3] = [6, 17, 132];
/// After a service proxy, which has the first word about what it translated (upstream's place).
const AFTER_PROXY: i32 = 110;

impl Frame<'_> {
    pub(crate) fn nat_chains(&self) -> Vec<Rendered> {
        let floating = self.settings.floating_ips && !self.nat.floating_ips.is_empty();
        let ports = !self.nat.host_ports.is_empty();
        let outgoing = self.cluster.pools.iter().any(|pool| pool.nat_outgoing);
        let ask = |asked: bool, matches: Vec<Match>, chain: &str| asked.then(|| jump(matches, chain.into()));

        let destination: Vec<Rule> = [
            ask(floating, Vec::new(), "cali-fip-dnat"),
            ask(ports, vec![Match::DestinationIsLocal], "cali-host-ports"),
        ]
        .into_iter()
        .flatten()
        .collect();
        let source: Vec<Rule> = [
            ask(floating, Vec::new(), "cali-fip-snat"),
            ask(ports, vec![Match::Translated], "cali-host-ports-snat"),
            ask(outgoing, Vec::new(), "cali-nat-outgoing"),
        ]
        .into_iter()
        .flatten()
        .chain(self.tunnelled())
        .collect();

        let mut chains = vec![
            nat("nat-PREROUTING", Hook::Prerouting, -100, destination.clone()),
            nat("nat-OUTPUT", Hook::Output, -100, destination),
            nat("nat-POSTROUTING", Hook::Postrouting, AFTER_PROXY, source),
        ];
        if floating {
            chains.push(regular("cali-fip-dnat", self.floating_destinations()));
            chains.push(regular("cali-fip-snat", self.floating_sources()));
        }
        if ports {
            chains.push(regular("cali-host-ports", self.host_ports()));
            chains.push(regular("cali-host-ports-snat", self.hairpins()));
        }
        if outgoing {
            chains.push(regular("cali-nat-outgoing", self.outgoing()));
        }
        chains
    }

    /// From a pool that wants it to outside of all pools.
    fn outgoing(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        for family in IpFamily::BOTH {
            if !self
                .cluster
                .pools
                .iter()
                .any(|pool| pool.nat_outgoing && IpFamily::of(&pool.net.addr()) == family)
            {
                continue;
            }
            let in_set = |set: &str, end: End, negate: bool| Match::InSet {
                key: vec![Field::Address(family, end)],
                negate,
                set: names::of_family(set, family),
            };
            let mut matches = vec![
                in_set("masq-ipam-pools", End::Source, false),
                in_set("all-ipam-pools", End::Destination, true),
            ];
            if self.settings.nat_exclusions == NatExclusions::PoolsAndHosts {
                matches.push(in_set("nodes", End::Destination, true));
            }
            matches.extend(self.settings.nat_interface.iter().map(|name| out(name, false)));
            matches.extend(self.cluster.tunnels.iter().map(|tunnel| out(&tunnel.device.0, true)));
            rules.extend(self.translated(family, matches));
        }
        rules
    }

    /// Only protocols with ports can be told which ones to use.
    fn translated(&self, family: IpFamily, matches: Vec<Match>) -> Vec<Rule> {
        let address = self.settings.nat_outgoing_address.map(IpAddr::V4);
        let address = address.filter(|_| family == IpFamily::V4);
        let statement = |ports: Option<(u16, u16)>| match address {
            Some(address) => Statement::SourceNat {
                address,
                ports,
                random_fully: true,
            },
            None => Statement::Masquerade {
                ports,
                random_fully: true,
            },
        };
        let rule = |more: Option<u8>, ports: Option<(u16, u16)>| Rule {
            matches: matches.iter().cloned().chain(more.map(protocol)).collect(),
            actions: vec![statement(ports)],
            comment: Some("natOutgoing".into()),
            ..Rule::default()
        };
        let ported = self.settings.nat_ports.into_iter().flat_map(|ports| {
            let rule = &rule;
            PORTED.into_iter().map(move |number| rule(Some(number), Some(ports)))
        });
        ported.chain([rule(None, None)]).collect()
    }

    /// What this host sends into a tunnel from another of its addresses would be answered past the tunnel.
    fn tunnelled(&self) -> Vec<Rule> {
        let tunnels = self.cluster.tunnels.iter();
        let rule = |(device, address): (&str, IpAddr)| Rule {
            matches: vec![
                out(device, false),
                Match::SourceIsLocal,
                Match::Net {
                    end: End::Source,
                    negate: true,
                    net: IpNet::from(address),
                },
            ],
            actions: vec![masquerade()],
            comment: Some("from this host into a tunnel".into()),
            ..Rule::default()
        };
        tunnels
            .filter_map(|tunnel| tunnel.address.map(|address| (tunnel.device.0.as_str(), address)))
            .map(rule)
            .collect()
    }

    fn floating_destinations(&self) -> Vec<Rule> {
        let ips: BTreeSet<_> = self.nat.floating_ips.iter().collect();
        let rule = |external: IpAddr, pod: IpAddr| Rule {
            matches: vec![host(End::Destination, external)],
            actions: vec![Statement::DestinationNat {
                address: pod,
                port: None,
            }],
            comment: Some("floating IP".into()),
            ..Rule::default()
        };
        ips.into_iter().map(|ip| rule(ip.external, ip.pod)).collect()
    }

    /// A pod that calls itself by its floating IP must see the answer come from there.
    fn floating_sources(&self) -> Vec<Rule> {
        let ips: BTreeSet<_> = self.nat.floating_ips.iter().collect();
        let rule = |external: IpAddr, pod: IpAddr| Rule {
            matches: vec![host(End::Source, pod), host(End::Destination, pod)],
            actions: vec![Statement::SourceNat {
                address: external,
                ports: None,
                random_fully: false,
            }],
            comment: Some("floating IP of the pod itself".into()),
            ..Rule::default()
        };
        ips.into_iter().map(|ip| rule(ip.external, ip.pod)).collect()
    }

    fn host_ports(&self) -> Vec<Rule> {
        let ports: BTreeSet<_> = self.nat.host_ports.iter().collect();
        let rule = |port: &super::settings::HostPort| {
            let number = Match::Port {
                end: End::Destination,
                negate: false,
                ranges: vec![(port.port, port.port)],
            };
            let to = match port.host {
                Some(address) => host(End::Destination, address),
                None => Match::Family(IpFamily::of(&port.pod)),
            };
            Rule {
                matches: vec![protocol(port.protocol), number, to],
                actions: vec![Statement::DestinationNat {
                    address: port.pod,
                    port: Some(port.pod_port),
                }],
                comment: Some("host port".into()),
                ..Rule::default()
            }
        };
        ports.into_iter().map(rule).collect()
    }

    /// Whom the pod could not answer: itself, and the host's loopback.
    fn hairpins(&self) -> Vec<Rule> {
        let pods: BTreeSet<IpAddr> = self.nat.host_ports.iter().map(|port| port.pod).collect();
        let rule = |pod: IpAddr, source: Match| Rule {
            matches: vec![source, host(End::Destination, pod)],
            actions: vec![masquerade()],
            comment: Some("host port of the pod itself, or from loopback".into()),
            ..Rule::default()
        };
        let loopback: IpNet = "127.0.0.0/8".parse().expect("a constant prefix");
        let from_loopback = Match::Net {
            end: End::Source,
            negate: false,
            net: loopback,
        };
        pods.into_iter()
            .flat_map(|pod| {
                let own = rule(pod, host(End::Source, pod));
                let loopback = pod.is_ipv4().then(|| rule(pod, from_loopback.clone()));
                [Some(own), loopback].into_iter().flatten()
            })
            .collect()
    }
}

fn nat(name: &str, hook: Hook, priority: i32, rules: Vec<Rule>) -> Rendered {
    let (mut chain, rules) = base(name, hook, priority, rules);
    chain.base = chain.base.map(|base| BaseChain {
        kind: ChainKind::Nat,
        ..base
    });
    (chain, rules)
}

fn out(name: &str, negate: bool) -> Match {
    Match::Interface {
        way: Way::Out,
        negate,
        name: name.to_owned(),
    }
}

fn host(end: End, address: IpAddr) -> Match {
    Match::Net {
        end,
        negate: false,
        net: IpNet::from(address),
    }
}

fn masquerade() -> Statement {
    Statement::Masquerade {
        ports: None,
        random_fully: false,
    }
}
