//! Clusters with IPv6, beside IPv4 and alone, on the live kernel. Checked with the distribution's own `ip`.

mod common;

use common::Lab;

/// The first IPv6 address of a pod's interface that others know.
fn v6_address(lab: &Lab, pod: &str) -> String {
    lab.exec(
        pod,
        &["ip", "-6", "-o", "address", "show", "dev", "eth0", "scope", "global"],
    )
    .split_whitespace()
    .find_map(|word| word.strip_suffix("/128"))
    .unwrap_or_else(|| panic!("pod {pod} has no /128"))
    .to_string()
}

/// The /122 around an address, as `ip` prints it.
fn block(address: &str) -> String {
    let address: std::net::Ipv6Addr = address.parse().expect("an IPv6 address");
    let base = std::net::Ipv6Addr::from(u128::from(address) & !0x3f);
    format!("{base}/122")
}

/// Pods' and nodes' routes of a lab whose nodes have IPv6 addresses.
fn v6_routes_are_right(lab: &Lab) {
    let (near, far) = (v6_address(lab, "cni-1"), v6_address(lab, "cni-2"));
    let routes = lab.exec("cni-1", &["ip", "-6", "route"]);
    assert!(
        routes.contains("default via fe80::ecee:eeff:feee:eeee dev eth0"),
        "{routes}"
    );
    let neighbours = lab.exec("cni-1", &["ip", "-6", "neighbour"]);
    assert!(
        neighbours.contains("fe80::ecee:eeff:feee:eeee dev eth0 lladdr ee:ee:ee:ee:ee:ee PERMANENT"),
        "{neighbours}"
    );

    let table = lab.exec("k8s-125-node1", &["ip", "-6", "route"]);
    let far_block = block(&far);
    assert!(
        table.contains(&format!(
            "{far_block} via fd00:10:211:55::9 dev ens33 proto 80 metric 1024"
        )),
        "the other node's block, by its IPv6 address: {table}"
    );
    assert!(
        table.contains(&format!("blackhole {} dev lo proto 80", block(&near))),
        "{table}"
    );
    let own = table.lines().find(|line| line.starts_with(&format!("{near} dev cali")));
    assert!(own.is_some_and(|line| line.contains("proto 80")), "{table}");
}

#[test]
fn pods_have_both_families_and_each_finds_its_way() {
    let Some(lab) = Lab::up("t-dual", &["--ipv6"]) else {
        return;
    };
    v6_routes_are_right(&lab);
    let v4 = lab.exec("k8s-125-node1", &["ip", "route"]);
    assert!(v4.contains("via 10.211.55.9 dev tunl0 proto 80"), "{v4}");

    for (flags, ttl) in [(vec!["-4"], "ttl=62"), (vec!["-6"], "ttl=62"), (vec![], "ttl=62")] {
        let ping = lab.lab(&[vec!["ping", "cni-1", "cni-2"], flags].concat());
        assert!(ping.contains(ttl) && ping.contains("3 answered, 0 lost"), "{ping}");
    }
    let literal = lab.lab(&["ping", "c1", &v6_address(&lab, "cni-2")]);
    assert!(literal.contains("0 lost"), "{literal}");
    let node = lab.lab(&["ping", "-6", "cni-2", "k8s-125-master"]);
    assert!(node.contains("to k8s-125-master (fd00:10:211:55::7)"), "{node}");

    // One session carries both (RFC 4760), and everyone shows it.
    let status = lab.exec("k8s-125-node1", &["calicoctl", "node", "status"]);
    assert!(status.contains("IPv6: fd00:10:211:55::8/64"), "{status}");
    assert!(status.matches("Established").count() >= 2, "{status}");
    let nodes = lab.lab(&["status"]);
    assert!(nodes.contains("10.211.55.8,fd00:10:211:55::8"), "{nodes}");
    let pools = lab.ctl(&["get", "ippool", "-o", "wide"]);
    assert!(
        pools.contains("default-ipv4-ippool") && pools.contains("fd00:192:168::/48"),
        "{pools}"
    );
    let weps = lab.ctl(&["get", "wep", "-o", "wide", "-A"]);
    assert!(weps.contains(&format!("{}/128", v6_address(&lab, "cni-1"))), "{weps}");

    let tour = lab.lab(&["tour"]);
    for part in [
        "protocol 4 (IP-in-IP)",
        "fe80::ecee:eeff:feee:eeee",
        "Ping across nodes with IPv6",
        "protocol 58 (ICMPv6)",
        "fd00:10:211:55::9 dev ens33 proto 80",
    ] {
        assert!(tour.contains(part), "the tour lacks {part}:\n{tour}");
    }
    assert!(!tour.contains("no packet from"), "{tour}");
}

#[test]
fn killing_agents_loses_no_ipv6_packet() {
    let Some(lab) = Lab::up("t-dual-kill", &["--ipv6"]) else {
        return;
    };
    let far = v6_address(&lab, "cni-2");
    lab.no_packet_is_lost("cni-1", &far, 1000, || {
        for node in ["k8s-125-node1", "k8s-125-node2"] {
            lab.lab(&["agent", "kill", node]);
            lab.lab(&["agent", "start", node]);
        }
        lab.lab(&["agent", "restart", "k8s-125-node1"]);
    });
    v6_routes_are_right(&lab);
}

#[test]
fn ipv6_drift_is_repaired_and_what_is_foreign_stays() {
    let Some(lab) = Lab::up("t-dual-drift", &["--ipv6"]) else {
        return;
    };
    let node = "k8s-125-node1";
    let (near, far) = (v6_address(&lab, "cni-1"), v6_address(&lab, "cni-2"));
    // Lifetimes and the order of equal metrics are not ours to compare.
    let routes = || {
        let text = lab.exec(node, &["ip", "-6", "route", "show", "proto", "80"]);
        let mut lines: Vec<String> = text.lines().map(str::to_string).collect();
        lines.sort();
        lines
    };
    let good = routes();
    assert!(good.len() >= 4, "{good:?}");
    for broken in [
        format!("ip -6 route del {}", block(&far)),
        format!("ip -6 route del {near}"),
        format!("ip -6 route del blackhole {}", block(&near)),
    ] {
        lab.exec(node, &["sh", "-c", &broken]);
        lab.eventually(&broken, || routes() == good);
    }
    lab.exec(
        node,
        &[
            "ip",
            "-6",
            "route",
            "add",
            "2001:db8:5::/48",
            "via",
            "fd00:10:211:55::1",
        ],
    );
    lab.exec(node, &["ip", "-6", "route", "del", &near]);
    lab.eventually("the pod's route", || routes() == good);
    let all = lab.exec(node, &["ip", "-6", "route"]);
    assert!(all.contains("2001:db8:5::/48 via fd00:10:211:55::1"), "{all}");
}

#[test]
fn nodes_without_ipv4_work_alike() {
    let Some(lab) = Lab::up("t-six", &["--ipv6=only"]) else {
        return;
    };
    v6_routes_are_right(&lab);
    let v4 = lab.exec("k8s-125-node1", &["ip", "route"]);
    assert_eq!(v4.trim(), "", "not one IPv4 route");
    let ping = lab.lab(&["ping", "cni-1", "cni-2"]);
    assert!(ping.contains("ttl=62") && ping.contains("0 lost"), "{ping}");
    let status = lab.exec("k8s-125-node1", &["calicoctl", "node", "status"]);
    assert!(
        status.contains("fd00:10:211:55::9") && status.matches("Established").count() >= 2,
        "sessions over IPv6: {status}"
    );
    assert!(lab.lab(&["tour"]).contains("Ping across nodes with IPv6"));
    lab.lab(&["agent", "kill", "k8s-125-node2"]);
    lab.lab(&["agent", "start", "k8s-125-node2"]);
    lab.lab(&["pod", "add", "web", "--node", "k8s-125-node2"]);
    lab.eventually("the new pod", || {
        lab.try_lab(&["ping", "cni-1", "web"]).status.success()
    });
}
