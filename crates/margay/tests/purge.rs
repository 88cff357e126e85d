//! What agents made goes, what others made stays. Checked with the distribution's own `ip` and `tc`.

mod common;

use common::{Lab, text};

const NODE: &str = "k8s-125-node1";

/// What a node's kernel has of ours or others, without what changes by itself.
fn everything(lab: &Lab) -> String {
    let show = |command: &str| lab.exec(NODE, &["sh", "-c", command]);
    [
        show("ip route show table all | sort"),
        show("ip -6 route show table all | sort"),
        show("ip rule"),
        show("ip -o link | cut -d: -f2 | cut -d@ -f1 | sort"),
        show("tc qdisc show dev ens33; tc filter show dev ens33 ingress"),
        show("nft list tables"),
    ]
    .join("\n---\n")
}

#[test]
fn a_purge_removes_what_is_ours_and_nothing_else() {
    let Some(lab) = Lab::up("t-purge", &["--nodes", "2", "--pods-per-node", "1", "--ipv6"]) else {
        return;
    };
    let foreign = [
        "ip route add 203.0.113.0/24 via 10.211.55.1",
        "ip -6 route add 2001:db8::/48 via fd00:10:211:55::1",
        "ip rule add from 203.0.113.0/24 table 77 priority 77",
        "ip link add calisomebody type veth peer name elsewhere",
        "ip link set calisomebody alias somebody:1",
        "nft add table inet somebody",
    ];
    for command in foreign {
        lab.exec(NODE, &["sh", "-c", command]);
    }
    lab.exec(
        NODE,
        &["sh", "-c", "ip rule add fwmark 0x99 table 88 priority 88 protocol 80"],
    );
    let address = lab.address("pod-1-1");

    let running = lab.try_lab(&["exec", NODE, "--", "margay", "agent", "purge"]);
    assert!(
        !running.status.success() && text(&running).contains("an agent runs on this node"),
        "{}",
        text(&running)
    );
    lab.lab(&["ping", "pod-0-1", "pod-1-1"]);

    lab.lab(&["agent", "stop", NODE]);
    let before = everything(&lab);
    let would = lab.exec(NODE, &["margay", "agent", "purge", "--dry-run"]);
    for words in [
        format!("route {address}/32"),
        "tunl0 with its BPF programs".into(),
        "rule 88 to table 88".into(),
        "nf_tables table inet calico".into(),
        "what was known of the cluster".into(),
    ] {
        assert!(would.contains(&format!("would remove {words}")), "{words}: {would}");
    }
    assert_eq!(everything(&lab), before, "a dry run changes nothing");

    let removed = lab.exec(NODE, &["margay", "agent", "purge"]);
    for words in [
        format!("removed route {address}/32 dev cali"),
        "via 10.211.55.7 dev tunl0".into(),
        "via fd00:10:211:55::7 dev ens33".into(),
        "blackhole".into(),
        "removed rule 88 to table 88".into(),
        "removed BPF program".into(),
        "removed device tunl0".into(),
        "removed nf_tables table inet calico".into(),
    ] {
        assert!(removed.contains(&words), "{words}: {removed}");
    }
    let after = everything(&lab);
    for gone in ["proto 80", "tunl0", "fwmark", "margay", "clsact", "table inet calico"] {
        assert!(!after.contains(gone), "{gone}: {after}");
    }
    for stays in [
        "203.0.113.0/24 via 10.211.55.1",
        "2001:db8::/48 via fd00:10:211:55::1",
        "lookup 77",
        "calisomebody",
        "table inet somebody",
        "default via 10.211.55.1",
    ] {
        assert!(after.contains(stays), "{stays}: {after}");
    }
    let pods = lab.exec(NODE, &["ip", "-o", "link"]);
    assert_eq!(
        pods.matches("margay:").count(),
        1,
        "the pod's device stays without --pods: {pods}"
    );
    let again = lab.exec(NODE, &["margay", "agent", "purge"]);
    assert_eq!(again.trim(), "nothing of an agent is in this kernel");

    // The next agent makes everything anew, for the pods that are still there.
    lab.lab(&["agent", "start", NODE]);
    for flag in ["-4", "-6"] {
        lab.eventually("all is as before", || {
            lab.try_lab(&["ping", "pod-0-1", "pod-1-1", flag, "-c", "1"])
                .status
                .success()
        });
    }

    lab.lab(&["agent", "stop", NODE]);
    let removed = lab.exec(NODE, &["margay", "agent", "purge", "--pods"]);
    assert!(
        removed.contains("removed device cali") && !removed.contains("calisomebody"),
        "{removed}"
    );
    let after = everything(&lab);
    assert!(
        after.contains("calisomebody") && after.matches("cali").count() == 1,
        "{after}"
    );
    // The runtime still gets rid of the pod, and the address comes back.
    lab.lab(&["pod", "delete", "pod-1-1"]);
    lab.lab(&["agent", "start", NODE]);
    lab.eventually("the address is free", || {
        !lab.ctl(&["get", "wep", "-A"]).contains("pod-1-1")
    });
}
