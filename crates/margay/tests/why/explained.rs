//! `explain`: tier, policy, rule, and the packet that it speaks of.

use super::common::net::{self, L4, Servers};
use super::common::text;
use super::resources::{DB, HOST, SECURITY};
use super::{World, word};

impl World {
    /// `explain` says these lines, and that the packet passes or not; and the packet does.
    fn explained(&self, from: &str, to: &str, passes: bool, lines: &[String]) {
        let output = self.margay(&["explain", from, to], "");
        let said = text(&output);
        let exit = if passes { 0 } else { 3 };
        assert_eq!(output.status.code(), Some(exit), "{from} -> {to}: {said}");
        for line in lines {
            assert!(said.contains(line.as_str()), "{from} -> {to}: {line} is not in\n{said}");
        }
        // The packet that it speaks of: its first line.
        let first = said.lines().next().unwrap_or_default();
        let (l4, target) = match (first.split(' ').next(), first.rsplit(' ').next()) {
            (Some("TCP"), Some(target)) => (L4::Tcp, target),
            (Some("UDP"), Some(target)) => (L4::Udp, target),
            _ => panic!("{first}"),
        };
        let target = target
            .parse()
            .unwrap_or_else(|_| panic!("an address and a port: {first}"));
        let place = match self.pods.iter().find(|pod| pod.name == from) {
            Some(pod) => pod.place.clone(),
            None if self.lab.nodes().iter().any(|node| node == from) => self.lab.node_place(from),
            None => self.outside.clone(),
        };
        self.lab.eventually(&format!("{from} -> {to}: {}", word(passes)), || {
            net::reaches(&place, target, l4, passes) == passes
        });
    }
}

#[test]
fn explain_names_what_then_decides_about_the_packet() {
    let Some(world) = World::up("t-why-explain") else {
        return;
    };
    let [v4, v6] = [false, true].map(|ipv6| world.lab.first_address("outside", "ens33", ipv6));
    // The way back: nobody tells that machine where pods are.
    for pod in &world.pods {
        let node = if pod.pod == "web" || pod.pod == "db" { 0 } else { 1 };
        for ipv6 in [false, true] {
            let via = world
                .lab
                .first_address(&world.lab.nodes()[node], "ens33", ipv6)
                .to_string();
            let to = pod.address(ipv6).to_string();
            world.lab.exec("outside", &["ip", "route", "add", &to, "via", &via]);
        }
    }
    world.fine(
        &["apply", "-f", "-"],
        &SECURITY.replace("@OUTSIDE@", &format!("{v4}/32")),
    );
    world.fine(&["apply", "-f", "-"], DB);
    let (v4, v6) = (v4.to_string(), v6.to_string());
    let v6_port = format!("[{v6}]:80/udp");
    let tier = "tier security: GlobalNetworkPolicy(security.shop)";
    let cases: Vec<(&str, String, bool, Vec<String>)> = vec![
        // A rule of a NetworkPolicy allows it, after a tier has passed it on.
        (
            "shop/api",
            "shop/db:80".into(),
            true,
            vec![
                format!("{tier} ingress rule 2: Pass"),
                "tier default: NetworkPolicy(shop/db) ingress rule 0: Allow".into(),
            ],
        ),
        // No rule of it matches.
        (
            "shop/web",
            "shop/db:80".into(),
            false,
            vec![
                "tier default: policies apply, no rule matched: denied at the end of the tier".into(),
                "NetworkPolicy(shop/db) ingress rule 0 (Allow): source".into(),
                "DENIED to pod shop/db".into(),
            ],
        ),
        // A rule of it denies.
        (
            "shop/api",
            "shop/db:80/udp".into(),
            false,
            vec!["tier default: NetworkPolicy(shop/db) ingress rule 1: Deny".into()],
        ),
        // A rule of a GlobalNetworkPolicy in a tier does, for one port and not for the other.
        (
            "other/guest",
            "shop/api:80".into(),
            false,
            vec![format!("{tier} ingress rule 1: Deny")],
        ),
        (
            "other/guest",
            "shop/api:81".into(),
            true,
            vec![
                format!("{tier} ingress rule 2: Pass"),
                "profile kns.shop ingress rule 0: Allow".into(),
            ],
        ),
        // For one family and not for the other.
        (
            "shop/web",
            format!("[{}]:80/udp", world.pods[1].address(true)),
            false,
            vec![format!("{tier} ingress rule 0: Deny")],
        ),
        (
            "shop/web",
            format!("{}:80/udp", world.pods[1].address(false)),
            true,
            vec!["profile kns.shop ingress rule 0: Allow".into()],
        ),
        // To an address outside: the sender's policy alone.
        (
            "shop/api",
            format!("{v4}:80"),
            false,
            vec![format!("{tier} egress rule 0: Deny"), "DENIED from pod shop/api".into()],
        ),
        (
            "shop/api",
            v6_port,
            true,
            vec![
                format!("{tier} egress rule 1: Pass"),
                "profile kns.shop egress rule 0: Allow".into(),
            ],
        ),
        (
            "other/guest",
            format!("{v4}:81/udp"),
            true,
            vec!["profile kns.other egress rule 0: Allow".into()],
        ),
        // From outside.
        (
            v4.as_str(),
            "shop/db:81".into(),
            false,
            vec!["denied at the end of the tier".into()],
        ),
        (
            v4.as_str(),
            "shop/web:81".into(),
            true,
            vec!["profile kns.shop ingress rule 0: Allow".into()],
        ),
    ];
    for (from, to, passes, lines) in &cases {
        world.explained(from, to, *passes, lines);
    }

    // Packets for a node, and from it.
    let node = world.lab.nodes()[0].clone();
    let (http, more, ssh) = (format!("{node}:80"), format!("{node}:81"), format!("{node}:22"));
    let address = world.lab.first_address(&node, "ens33", false).to_string();
    let served = [80, 81, 22].map(|port| (L4::Tcp, port)).to_vec();
    let _servers = Servers::start(&[(world.lab.node_place(&node), served)]);
    world.fine(
        &["apply", "-f", "-"],
        &HOST.replace("@NODE@", &node).replace("@ADDRESS@", &address),
    );
    for (from, to, passes, line) in [
        (
            v4.as_str(),
            &http,
            true,
            "tier default: GlobalNetworkPolicy(hosts) ingress rule 0: Allow",
        ),
        (
            v4.as_str(),
            &more,
            false,
            "GlobalNetworkPolicy(hosts) ingress rule 0 (Allow): destination port 81 is not 80",
        ),
        (
            v4.as_str(),
            &ssh,
            true,
            "TCP 22 is a failsafe port (failsafeInboundHostPorts)",
        ),
        (
            "shop/web",
            &http,
            false,
            "a pod to its own host: defaultEndpointToHostAction is Drop",
        ),
        (
            node.as_str(),
            &"shop/db:81".to_owned(),
            true,
            "pods are not protected from their own host",
        ),
        (
            node.as_str(),
            &format!("{v4}:80"),
            false,
            "no policy and no profile allowed it",
        ),
    ] {
        world.explained(from, to, passes, &[line.to_owned()]);
    }
}
