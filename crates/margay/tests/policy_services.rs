//! Packets for addresses of services that nobody translates: they do not go round between nodes, unless that is asked for.

mod common;

use common::Lab;
use common::cluster::{Datastore, resource};
use common::told::{dropped, metrics};

const NODES: [&str; 2] = ["k8s-125-master", "k8s-125-node1"];
const OUTSIDE: &str = "outside";
/// Ranges that both nodes route to each other, with an address that no service has, by family.
const SERVICES: [(&str, &str, &str); 2] = [
    ("-4", "10.96.0.0/16", "10.96.0.77"),
    ("-6", "fd00:96::/112", "fd00:96::77"),
];
/// Another range, which is added later.
const MORE: [(&str, &str, &str); 2] = [
    ("-4", "10.97.0.0/16", "10.97.0.77"),
    ("-6", "fd00:97::/112", "fd00:97::77"),
];

/// What becomes of a packet, as its sender learns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Nothing is heard of it.
    Silence,
    /// Somebody refuses it.
    Refused,
    /// It was forwarded until its time was up.
    WentRound,
}

fn fate(lab: &Lab, from: &str, family: &str, to: &str) -> Fate {
    let asked = ["exec", from, "--", "ping", "-n", "-c1", "-W1", family, to];
    let said = common::text(&lab.try_lab(&asked));
    match said {
        said if said.contains("Packet filtered") || said.contains("prohibited") => Fate::Refused,
        said if said.contains("Time to live exceeded") || said.contains("Hop limit") => Fate::WentRound,
        said if said.contains(" 0 received") => Fate::Silence,
        said => panic!("from {from} to {to}: {said}"),
    }
}

#[test]
fn packets_for_services_that_are_not_there_do_not_go_round() {
    let Some(lab) = Lab::up("t-pol-loop", &["--nodes", "2", "--pods-per-node", "1", "--ipv6"]) else {
        return;
    };
    lab.lab(&["node", "add", OUTSIDE, "--no-agent"]);
    for (from, via) in [(OUTSIDE, NODES[0]), (NODES[0], NODES[1]), (NODES[1], NODES[0])] {
        for (family, range, _) in SERVICES.iter().chain(&MORE) {
            let via = lab.first_address(via, "ens33", *family == "-6").to_string();
            lab.exec(from, &["ip", family, "route", "add", range, "via", &via]);
        }
        // Nobody says or believes that there is a shorter way, and every refusal is told.
        let on = |device: &str| format!("net.ipv4.conf.{device}.send_redirects=0");
        let others = [
            "net.ipv6.conf.ens33.accept_redirects=0",
            "net.ipv4.icmp_ratelimit=0",
            "net.ipv6.icmp.ratelimit=0",
        ];
        lab.exec(
            from,
            &[&["sysctl", "-qw", &on("all"), &on("ens33")][..], &others].concat(),
        );
    }
    let store = Datastore::of(&lab);
    let put = |kind: &str, spec: &str| {
        store.put(resource(&format!(
            "{{kind: {kind}, metadata: {{name: default}}, spec: {{{spec}}}}}"
        )));
    };
    let becomes = |what: &str, from: &str, services: &[(&str, &str, &str)], expected: Fate| {
        for (family, _, to) in services {
            lab.eventually(&format!("{what}: {to} from {from}"), || {
                fate(&lab, from, family, to) == expected
            });
        }
    };
    let counted = || dropped(&lab, NODES[0], "service-loop", None);
    let ranges = |more: &str| {
        let [(_, v4, _), (_, v6, _)] = SERVICES;
        put(
            "BGPConfiguration",
            &format!("serviceClusterIPs: [{{cidr: {v4}}}], serviceExternalIPs: [{{cidr: '{v6}'}}], {more}"),
        );
    };

    becomes("no range is known", OUTSIDE, &SERVICES, Fate::WentRound);
    assert_eq!(counted(), 0);
    ranges("");
    becomes("Drop is the default", OUTSIDE, &SERVICES, Fate::Silence);
    becomes("from a pod", "pod-0-1", &SERVICES, Fate::Silence);
    becomes("a range that is not named", OUTSIDE, &MORE, Fate::WentRound);
    let before = counted();
    assert!(before >= 4, "{before}");
    assert_eq!(fate(&lab, OUTSIDE, "-4", SERVICES[0].2), Fate::Silence);
    assert_eq!(counted(), before + 1, "each is counted once, where it came in");
    assert_eq!(dropped(&lab, NODES[1], "service-loop", None), 0, "and went no further");
    let metrics = metrics(&lab, NODES[0]);
    let sample = r#"margay_policy_dropped_packets_total{cause="service-loop",name=""} "#;
    assert!(metrics.contains(sample), "{metrics}");

    put("FelixConfiguration", "serviceLoopPrevention: Reject");
    becomes("refused", OUTSIDE, &SERVICES, Fate::Refused);
    becomes("refused from a pod", "pod-0-1", &SERVICES, Fate::Refused);
    assert!(counted() > before + 1, "what is refused is counted too");
    put("FelixConfiguration", "serviceLoopPrevention: Disabled");
    becomes("switched off", OUTSIDE, &SERVICES, Fate::WentRound);
    put("FelixConfiguration", "serviceLoopPrevention: Drop");
    becomes("dropped again", OUTSIDE, &SERVICES, Fate::Silence);

    // A range that comes, and one that goes, with nothing else changed.
    let [(_, v4, _), (_, v6, _)] = MORE;
    ranges(&format!("serviceLoadBalancerIPs: [{{cidr: {v4}}}, {{cidr: '{v6}'}}]"));
    becomes("one more range", OUTSIDE, &MORE, Fate::Silence);
    lab.lab(&["agent", "restart", NODES[0]]);
    becomes("after a restart", OUTSIDE, &MORE, Fate::Silence);
    ranges("");
    becomes("one range less", OUTSIDE, &MORE, Fate::WentRound);
    becomes("the others stay", OUTSIDE, &SERVICES, Fate::Silence);
    lab.lab(&["ping", "pod-0-1", "pod-1-1"]);
}
