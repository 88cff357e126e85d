//! Before routing: pods send from their own addresses alone, and host endpoints' policies that come before conntrack or before
//! destinations are translated.

use kernel::IpFamily;
use kernel::nft::*;

use super::base::{Frame, ICMP_V6, Rendered, UDP, base, device, established, protocol, regular};
use super::endpoint::{accept, drop, goto};
use super::names::{self, Prefix};
use super::rule::Stage;

const ROUTER_ADVERTISEMENT: u8 = 134;
const DHCP_SERVER: [(IpFamily, u16, &str); 2] = [
    (IpFamily::V4, 67, "DHCP server in a pod"),
    (IpFamily::V6, 547, "DHCPv6 server in a pod"),
];

/// Sets of device and address.
pub(crate) const SOURCES: &str = "sources";
pub(crate) const SPOOFABLE: &str = "spoofable";

impl Frame<'_> {
    pub(crate) fn early_chains(&self) -> Vec<Rendered> {
        // Nobody else's bit counts as ours.
        let bit = self.settings.accepted_bit();
        let forget = Rule {
            actions: vec![Statement::SetMark { mask: bit, value: 0 }],
            ..Rule::default()
        };
        let forget = self.has_early().then_some(forget);

        let mut prerouting: Vec<Rule> = forget.clone().into_iter().collect();
        prerouting.extend(self.pods(Way::In, "cali-rpf"));
        prerouting.extend(self.to_hosts(Prefix::FromHostUntracked));

        let mut output: Vec<Rule> = forget.into_iter().collect();
        output.extend(self.to_hosts(Prefix::ToHostUntracked));

        let mut mangle = Vec::new();
        if let Some(rule) = self.to_hosts(Prefix::FromHostPreDnat) {
            let loopback = accept(vec![device(Way::In, "lo")], Some("loopback"));
            let marked = Match::Mark {
                mask: bit,
                value: bit,
                negate: false,
            };
            let accepted = accept(vec![marked], Some("allowed by an early policy"));
            mangle.extend([established(), loopback, accepted, rule]);
        }
        vec![
            base("raw-PREROUTING", Hook::Prerouting, -300, prerouting),
            base("raw-OUTPUT", Hook::Output, -300, output),
            base("mangle-PREROUTING", Hook::Prerouting, -150, mangle),
            regular("cali-rpf", self.sources()),
            self.link_local(),
        ]
    }

    /// What pods may send: from their addresses, but no router's and no address server's words.
    fn sources(&self) -> Vec<Rule> {
        let drop = |matches, comment| drop(self.settings, Stage::Untracked, matches, comment);
        let advertisement = Match::Icmp {
            negate: false,
            kind: ROUTER_ADVERTISEMENT,
            code: None,
        };
        let mut rules = vec![drop(
            vec![protocol(ICMP_V6), advertisement],
            "router advertisement from a pod",
        )];
        for (family, port, comment) in DHCP_SERVER {
            let server = Match::Port {
                end: End::Source,
                negate: false,
                ranges: vec![(port, port)],
            };
            rules.push(drop(vec![Match::Family(family), protocol(UDP), server], comment));
        }
        for family in IpFamily::BOTH {
            rules.push(accept(vec![source_in(SOURCES, family)], None));
        }
        for family in self.spoofable {
            rules.push(accept(
                vec![source_in(SPOOFABLE, *family)],
                Some("allowed spoofed source"),
            ));
        }
        rules.push(goto(vec![Match::Family(IpFamily::V6)], "cali-rpf-v6"));
        rules.push(drop(Vec::new(), "source is not the pod's"));
        rules
    }

    /// Sources that every IPv6 interface has, or has not yet.
    fn link_local(&self) -> Rendered {
        let from = |net: &str, matches: Vec<Match>, comment| {
            let net = net.parse().expect("a constant prefix");
            let source = Match::Net {
                end: End::Source,
                negate: false,
                net,
            };
            accept(matches.into_iter().chain([source]).collect(), Some(comment))
        };
        let rules = vec![
            from("fe80::/64", Vec::new(), "link-local"),
            from("::/128", vec![protocol(ICMP_V6)], "duplicate address detection"),
            drop(self.settings, Stage::Untracked, Vec::new(), "source is not the pod's"),
        ];
        regular("cali-rpf-v6", rules)
    }
}

fn source_in(set: &str, family: IpFamily) -> Match {
    Match::InSet {
        key: vec![Field::Interface(Way::In), Field::Address(family, End::Source)],
        negate: false,
        set: names::of_family(set, family),
    }
}
