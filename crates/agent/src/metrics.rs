//! The report as Prometheus text (format 0.0.4). Names that upstream has keep upstream's spelling.

use health::Metrics;
use kernel::QueueCounters;

use crate::status::{DropReport, PassReport, Report};

/// Renders the report.
pub fn text(report: &Report) -> String {
    let mut out = Metrics::default();
    out.family(
        "felix_resync_state",
        "gauge",
        "2 once the datastore has been read, 1 before.",
    );
    let synced = report
        .conditions
        .iter()
        .any(|c| c.name == "Datastore" && (c.ok || !c.required));
    out.sample("felix_resync_state", &[], if synced { 2 } else { 1 });

    out.family("margay_ready", "gauge", "1 if the node is ready.");
    out.sample("margay_ready", &[], u64::from(report.ready));
    out.conditions("margay_condition", &report.conditions);

    out.family(
        "margay_kernel_objects",
        "gauge",
        "Kernel objects by class: wanted, installed, failed.",
    );
    for class in &report.kernel {
        for (state, count) in [
            ("wanted", class.wanted),
            ("installed", class.installed),
            ("failed", class.failed),
        ] {
            out.sample(
                "margay_kernel_objects",
                &[("class", &class.class), ("state", state)],
                count as u64,
            );
        }
    }

    let policy = &report.policy;
    for (name, help, value) in [
        ("felix_active_local_endpoints", "Local endpoints.", policy.endpoints),
        (
            "felix_active_local_policies",
            "Policies that apply to a local endpoint.",
            policy.policies,
        ),
        (
            "felix_active_local_selectors",
            "Sets that their rules use.",
            policy.sets,
        ),
        ("margay_policy_set_members", "Members of these sets.", policy.members),
    ] {
        out.family(name, "gauge", help);
        out.sample(name, &[], value as u64);
    }
    out.family(
        "margay_policy_transactions_total",
        "counter",
        "Changes of the packet filter, by what the kernel said.",
    );
    for (result, count) in [("done", policy.transactions), ("refused", policy.failed)] {
        out.sample("margay_policy_transactions_total", &[("result", result)], count);
    }

    out.family(
        "margay_policy_flows_cut_total",
        "counter",
        "Established flows that were cut, by reason.",
    );
    for (reason, count) in [("forbidden", policy.flows_forbidden), ("pod-gone", policy.flows_gone)] {
        out.sample("margay_policy_flows_cut_total", &[("reason", reason)], count);
    }
    for (name, help, value) in [
        (
            "margay_policy_dropped_packets_total",
            "Packets that the packet filter dropped or refused, by cause.",
            (|drops| drops.packets) as fn(&DropReport) -> u64,
        ),
        ("margay_policy_dropped_bytes_total", "Their bytes.", |drops| drops.bytes),
    ] {
        out.family(name, "counter", help);
        for drops in &policy.drops {
            let labels = [
                ("cause", drops.cause.as_str()),
                ("name", drops.name.as_deref().unwrap_or_default()),
            ];
            out.sample(name, &labels, value(drops));
        }
    }

    for (name, help, value) in [
        (
            "margay_policy_passed_packets_total",
            "Packets that policies' rules let pass or logged, by policy: of a flow only the first.",
            (|passes| passes.packets) as fn(&PassReport) -> u64,
        ),
        ("margay_policy_passed_bytes_total", "Their bytes.", |passes| {
            passes.bytes
        }),
    ] {
        out.family(name, "counter", help);
        for passes in &policy.passes {
            let labels = [("action", passes.action.as_str()), ("name", passes.name.as_str())];
            out.sample(name, &labels, value(passes));
        }
    }

    for (name, kind, help, value) in [
        (
            "margay_pod_queue_packets_total",
            "counter",
            "Packets that went through the queue which holds a pod to a bandwidth.",
            (|queue| queue.packets) as fn(&QueueCounters) -> u64,
        ),
        ("margay_pod_queue_bytes_total", "counter", "Their bytes.", |queue| {
            queue.bytes
        }),
        (
            "margay_pod_queue_dropped_packets_total",
            "counter",
            "Packets dropped because such a queue was full.",
            |queue| queue.dropped,
        ),
        (
            "margay_pod_queue_waiting_bytes",
            "gauge",
            "Bytes that wait in such a queue.",
            |queue| queue.waiting,
        ),
    ] {
        out.family(name, kind, help);
        for queue in &report.queues {
            let labels = [
                ("device", queue.device.as_str()),
                ("direction", queue.direction.as_str()),
            ];
            out.sample(name, &labels, value(&queue.counters));
        }
    }

    out.family("margay_bgp_routes", "gauge", "Prefixes with a usable path.");
    out.sample("margay_bgp_routes", &[], report.bgp.routes as u64);
    out.family(
        "margay_bgp_peer_established",
        "gauge",
        "1 if the session is established.",
    );
    for peer in &report.bgp.peers {
        out.sample(
            "margay_bgp_peer_established",
            &[("peer", &peer.name)],
            u64::from(peer.state == "Established"),
        );
    }
    out.family(
        "margay_bgp_peer_prefixes",
        "gauge",
        "Prefixes received from and advertised to a peer.",
    );
    for peer in &report.bgp.peers {
        for (direction, count) in [("received", peer.received), ("advertised", peer.advertised)] {
            out.sample(
                "margay_bgp_peer_prefixes",
                &[("peer", &peer.name), ("direction", direction)],
                count as u64,
            );
        }
    }

    if let Some(counters) = report.ipip.counters {
        out.family(
            "margay_ipip_packets_total",
            "counter",
            "Packets through tunl0, and dropped by it, by cause.",
        );
        for (what, count) in [
            ("encapsulated", counters.encapsulated),
            ("decapsulated", counters.decapsulated),
            ("dropped_unknown_source", counters.dropped_unknown_source),
            ("dropped_no_peer", counters.dropped_no_peer),
            ("dropped_malformed", counters.dropped_malformed),
        ] {
            out.sample("margay_ipip_packets_total", &[("what", what)], count);
        }
    }
    out.into_text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::{peer, report};

    #[test]
    fn the_text_is_what_a_scraper_reads() {
        let mut report =
            report(|_, _, bgp| bgp.peers = vec![peer("Mesh_10_0_0_8", "Established"), peer("quo\"te\\", "Active")]);
        report.ipip.counters = Some(kernel::IpipCounters {
            encapsulated: 1,
            decapsulated: 2,
            dropped_unknown_source: 3,
            dropped_no_peer: 4,
            dropped_malformed: 5,
        });
        let egress = kernel::ShaperKey {
            device: "cali1".into(),
            direction: kernel::Direction::Egress,
        };
        let counters = QueueCounters {
            bytes: 6,
            packets: 7,
            dropped: 8,
            waiting: 9,
        };
        let report = report.with_queues([(egress, counters)].into());
        let got = text(&report);
        for line in [
            "# TYPE felix_resync_state gauge\nfelix_resync_state 2\n",
            "# TYPE margay_ready gauge\nmargay_ready 1\n",
            "margay_condition{condition=\"Datastore\",reason=\"InSync\"} 1\n",
            "margay_condition{condition=\"BGP\",reason=\"PeersDown\"} 0\n",
            "margay_kernel_objects{class=\"pod routes\",state=\"wanted\"} 0\n",
            "margay_bgp_routes 5\n",
            "margay_bgp_peer_established{peer=\"Mesh_10_0_0_8\"} 1\n",
            "margay_bgp_peer_established{peer=\"quo\\\"te\\\\\"} 0\n",
            "margay_bgp_peer_prefixes{peer=\"Mesh_10_0_0_8\",direction=\"received\"} 3\n",
            "# TYPE margay_ipip_packets_total counter\nmargay_ipip_packets_total{what=\"encapsulated\"} 1\n",
            "margay_ipip_packets_total{what=\"dropped_no_peer\"} 4\n",
            "margay_ipip_packets_total{what=\"dropped_malformed\"} 5\n",
            "margay_pod_queue_packets_total{device=\"cali1\",direction=\"egress\"} 7\n",
            "margay_pod_queue_dropped_packets_total{device=\"cali1\",direction=\"egress\"} 8\n",
            "# TYPE margay_pod_queue_waiting_bytes gauge\nmargay_pod_queue_waiting_bytes{device=\"cali1\",direction=\"egress\"} 9\n",
        ] {
            assert!(got.contains(line), "no {line} in\n{got}");
        }
        // Every sample belongs to the family above it, every family has help, and there is no family twice.
        let mut family = "";
        let mut seen = std::collections::BTreeSet::new();
        for line in got.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                family = rest.split(' ').next().unwrap_or_default();
                assert!(seen.insert(family), "{family} twice");
            } else if !line.starts_with('#') {
                assert_eq!(line.split(['{', ' ']).next(), Some(family), "{line}");
            }
        }
        assert!(got.ends_with('\n'));
    }
}
