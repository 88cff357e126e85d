//! Network policy on the live kernel: nine pods in three namespaces on two nodes, every pair of them, two ports, TCP and UDP,
//! IPv4 and IPv6. What is expected is written beside each policy as plain code.

mod cases;
#[path = "../common/mod.rs"]
mod common;

use std::time::Instant;

use cases::{cases, from, from_ns, to, to_ns};
use common::cluster::{Cluster, k8s, resource};
use common::net::L4;

#[test]
fn the_documented_cases_of_kubernetes_hold_for_every_pair() {
    let Some(mut cluster) = Cluster::up("t-policy") else {
        return;
    };
    let started = Instant::now();
    let cases = cases();
    for case in &cases {
        let policies = case
            .policies
            .iter()
            .map(|(namespace, name, spec)| k8s(namespace, name, spec));
        cluster.only(policies.collect());
        cluster.check(case.what, &*case.expected);
    }
    blocks_of_addresses(&mut cluster);
    labels_that_change(&mut cluster);
    tiers_and_order(&mut cluster);
    selectors_and_sets(&mut cluster);
    rehearsals(&mut cluster);
    println!(
        "{} cases of Kubernetes and the others in {:?}; {} matrices were read too early",
        cases.len(),
        started.elapsed(),
        cluster.early
    );
}

/// `ipBlock`, whose addresses are known only now.
fn blocks_of_addresses(cluster: &mut Cluster) {
    let address = |name: &str, ipv6: bool| cluster.pod(name).address(ipv6).to_string();
    let (ya4, ya6, yb4) = (address("y/a", false), address("y/a", true), address("y/b", false));
    cluster.only(vec![k8s(
        "x",
        "block",
        &format!("{{podSelector: {{}}, ingress: [{{from: [{{ipBlock: {{cidr: {ya4}/32}}}}]}}]}}"),
    )]);
    cluster.check("one address", &|s| to_ns(&s) != "x" || (from(&s) == "y/a" && !s.ipv6));

    cluster.only(vec![k8s(
        "x",
        "block",
        &format!(
            "{{podSelector: {{}}, ingress: [{{from: [{{ipBlock: {{cidr: 192.168.0.0/16, except: [{ya4}/32, {yb4}/32]}}}}, {{ipBlock: {{cidr: '::/0', except: ['{ya6}/128']}}}}]}}]}}"
        ),
    )]);
    cluster.check("a block with exceptions, in both families", &|s| {
        to_ns(&s) != "x"
            || match s.ipv6 {
                false => !["y/a", "y/b"].contains(&from(&s)),
                true => from(&s) != "y/a",
            }
    });

    cluster.only(vec![
        k8s(
            "x",
            "block",
            &format!(
                "{{podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{{ipBlock: {{cidr: 0.0.0.0/0, except: [{ya4}/32]}}}}], ports: [{{port: 80}}]}}]}}"
            ),
        ),
        k8s(
            "x",
            "exception",
            &format!("{{podSelector: {{matchLabels: {{pod: b}}}}, policyTypes: [Egress], egress: [{{to: [{{ipBlock: {{cidr: {ya4}/32}}}}]}}]}}"),
        ),
    ]);
    cluster.check(
        "egress to a block, and what one policy excepts another one allows",
        &|s| {
            from_ns(&s) != "x"
                || (!s.ipv6 && to(&s) != "y/a" && s.port == 80 && s.l4 == L4::Tcp)
                || (!s.ipv6 && from(&s) == "x/b" && to(&s) == "y/a")
        },
    );
}

/// A pod, and a namespace, get other labels while a policy is there.
fn labels_that_change(cluster: &mut Cluster) {
    cluster.only(vec![k8s(
        "x",
        "p",
        "{podSelector: {matchLabels: {role: db}}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {role: api}}}, {namespaceSelector: {matchLabels: {team: blue}}}]}]}",
    )]);
    cluster.check("nobody has the labels", &|_| true);
    let label = |cluster: &mut Cluster, pod: &str, value: Option<&str>| {
        let index = cluster.index(pod);
        cluster.change_pod(index, |endpoint| {
            match value {
                Some(value) => endpoint.metadata.labels.insert("role".to_owned(), value.to_owned()),
                None => endpoint.metadata.labels.remove("role"),
            };
        });
    };
    label(cluster, "x/a", Some("db"));
    cluster.check("a pod is selected from now on", &|s| to(&s) != "x/a");
    label(cluster, "y/b", Some("api"));
    cluster.check("a pod is a peer from now on", &|s| to(&s) != "x/a" || from(&s) == "y/b");
    let profile = |team: &str| {
        resource(&format!(
            "{{kind: Profile, metadata: {{name: kns.z}}, spec: {{ingress: [{{action: Allow}}], egress: [{{action: Allow}}], labelsToApply: {{pcns.projectcalico.org/name: z, pcns.kubernetes.io/metadata.name: z{team}}}}}}}"
        ))
    };
    cluster.put(profile(", pcns.team: blue"));
    cluster.check("a namespace is a peer from now on", &|s| {
        to(&s) != "x/a" || from(&s) == "y/b" || from_ns(&s) == "z"
    });
    label(cluster, "y/b", Some("other"));
    cluster.put(profile(""));
    cluster.check("neither is one any more", &|s| to(&s) != "x/a");
    label(cluster, "x/a", None);
    label(cluster, "y/b", None);
    cluster.check("nobody is selected any more", &|_| true);
}

/// Tiers with Pass, order, Deny before Allow, defaults of tiers.
fn tiers_and_order(cluster: &mut Cluster) {
    let tier = |name: &str, order: u32, more: &str| {
        resource(&format!(
            "{{kind: Tier, metadata: {{name: {name}}}, spec: {{order: {order}{more}}}}}"
        ))
    };
    let global = |name: &str, spec: &str| {
        resource(&format!(
            "{{kind: GlobalNetworkPolicy, metadata: {{name: {name}}}, spec: {{{spec}}}}}"
        ))
    };
    let in_x = "projectcalico.org/namespace == 'x'";
    cluster.only(vec![
        tier("security", 10, ""),
        global(
            "security.gate",
            &format!("tier: security, selector: \"{in_x}\", ingress: [{{action: Deny, protocol: UDP}}, {{action: Pass, source: {{selector: \"pod == 'a'\"}}}}]"),
        ),
        k8s("x", "p", "{podSelector: {matchLabels: {pod: b}}, ingress: [{ports: [{port: 80}]}]}"),
    ]);
    cluster.check("a tier denies, passes, and denies at its end", &|s| {
        to_ns(&s) != "x" || (s.l4 == L4::Tcp && s.from.pod == "a" && (to(&s) != "x/b" || s.port == 80))
    });

    cluster.only(vec![
        tier("security", 10, ", defaultAction: Pass"),
        global(
            "security.gate",
            &format!("tier: security, selector: \"{in_x}\", ingress: [{{action: Deny, protocol: UDP}}, {{action: Allow, source: {{selector: \"pod == 'c'\"}}}}]"),
        ),
        k8s("x", "p", "{podSelector: {matchLabels: {pod: b}}, ingress: [{ports: [{port: 80}]}]}"),
    ]);
    cluster.check("a tier that passes at its end", &|s| {
        to_ns(&s) != "x" || (s.l4 == L4::Tcp && (s.from.pod == "c" || to(&s) != "x/b" || s.port == 80))
    });

    // Pass, from the first tier to the last, and then to the profile; the one between has nothing for x/c.
    cluster.only(vec![
        tier("first", 10, ""),
        tier("second", 20, ""),
        global("first.p", &format!("tier: first, selector: \"{in_x}\", ingress: [{{action: Pass}}]")),
        global("second.p", &format!("tier: second, selector: \"{in_x} && pod != 'c'\", ingress: [{{action: Pass, protocol: TCP}}]")),
        global("allow-80", &format!("order: 5, selector: \"{in_x} && pod == 'a'\", ingress: [{{action: Allow, protocol: TCP, destination: {{ports: [80]}}}}]")),
    ]);
    cluster.check("Pass through tiers to a policy and to the profile", &|s| match to(&s) {
        "x/a" => s.l4 == L4::Tcp && s.port == 80,
        "x/b" => s.l4 == L4::Tcp,
        _ => true,
    });

    for (deny, allow) in [(1, 2), (2, 1)] {
        cluster.only(vec![
            global("zz-deny", &format!("order: {deny}, selector: \"{in_x}\", ingress: [{{action: Deny, protocol: TCP, destination: {{ports: [80]}}}}]")),
            global("aa-allow", &format!("order: {allow}, selector: \"{in_x}\", ingress: [{{action: Allow}}]")),
        ]);
        cluster.check("the lower order is asked first, whatever the names", &move |s| {
            to_ns(&s) != "x" || allow < deny || s.l4 == L4::Udp || s.port == 81
        });
    }
    cluster.only(Vec::new());
}

/// Network sets, negations, ICMP, global policies by namespace and account.
fn selectors_and_sets(cluster: &mut Cluster) {
    let global = |name: &str, spec: &str| {
        resource(&format!(
            "{{kind: GlobalNetworkPolicy, metadata: {{name: {name}}}, spec: {{{spec}}}}}"
        ))
    };
    let ya4 = cluster.pod("y/a").address(false);
    let z6 = cluster.pod("z/b").address(true);
    cluster.only(vec![
        resource(&format!(
            "{{kind: GlobalNetworkSet, metadata: {{name: known, labels: {{list: known}}}}, spec: {{nets: [{ya4}/32, '{z6}/128']}}}}"
        )),
        global("sets", "namespaceSelector: \"projectcalico.org/name == 'x'\", ingress: [{action: Allow, source: {selector: \"list == 'known'\"}}]"),
    ]);
    cluster.check("a global network set", &|s| {
        to_ns(&s) != "x" || (from(&s) == "y/a" && !s.ipv6) || (from(&s) == "z/b" && s.ipv6)
    });

    cluster.only(vec![
        resource(&format!(
            "{{kind: NetworkSet, metadata: {{name: known, namespace: x, labels: {{list: known}}}}, spec: {{nets: [{ya4}/32]}}}}"
        )),
        resource("{kind: NetworkPolicy, metadata: {name: p, namespace: x}, spec: {ingress: [{action: Allow, source: {selector: \"list == 'known'\"}}]}}"),
        resource("{kind: NetworkPolicy, metadata: {name: p, namespace: z}, spec: {ingress: [{action: Allow, source: {selector: \"list == 'known'\"}}]}}"),
    ]);
    cluster.check("a network set, for its own namespace alone", &|s| match to_ns(&s) {
        "x" => from(&s) == "y/a" && !s.ipv6,
        "z" => false,
        _ => true,
    });

    cluster.only(vec![global(
        "nots",
        &format!(
            "selector: \"pod in {{'a', 'b'}}\", namespaceSelector: \"projectcalico.org/name == 'x'\", \
             ingress: [{{action: Allow, notProtocol: UDP, source: {{notSelector: \"pod == 'c'\"}}, destination: {{notPorts: []}}}}, \
                       {{action: Allow, protocol: UDP, source: {{notNets: [{ya4}/32]}}, destination: {{notPorts: [80]}}}}]"
        ),
    )]);
    cluster.check("negations", &|s| {
        !["x/a", "x/b"].contains(&to(&s))
            || (s.l4 == L4::Tcp && s.from.pod != "c")
            || (s.l4 == L4::Udp && s.port == 81 && !s.ipv6 && from(&s) != "y/a")
    });

    cluster.only(vec![global(
        "account",
        "serviceAccountSelector: \"projectcalico.org/name == 'default'\", namespaceSelector: \"projectcalico.org/name in {'x', 'y'}\", types: [Egress], \
         egress: [{action: Allow, destination: {namespaceSelector: \"projectcalico.org/name == 'z'\"}}]",
    )]);
    cluster.check("by the labels of service accounts", &|s| {
        from_ns(&s) == "z" || to_ns(&s) == "z"
    });
    cluster.only(vec![global(
        "icmp",
        "namespaceSelector: \"projectcalico.org/name == 'x'\", ingress: [{action: Allow, protocol: ICMP, icmp: {type: 8}}, {action: Allow, protocol: TCP}]",
    )]);
    cluster.check("TCP and echo requests alone", &|s| to_ns(&s) != "x" || s.l4 == L4::Tcp);
    let ping = |family: &str, to: &str| {
        let target = cluster.pod(to).address(family == "-6").to_string();
        let output = cluster.lab.try_lab(&["ping", "y/a", &target, "-c", "1"]);
        output.status.success()
    };
    assert!(ping("-4", "x/a") && ping("-4", "z/a") && ping("-6", "z/a"));
    assert!(!ping("-6", "x/a"), "ICMPv6 is another protocol");
}

/// Staged policies change nothing. The policy that comes with them says when they have been heard.
fn rehearsals(cluster: &mut Cluster) {
    cluster.only(vec![
        resource("{kind: StagedGlobalNetworkPolicy, metadata: {name: all}, spec: {selector: all(), order: 1, types: [Ingress, Egress]}}"),
        resource("{kind: StagedNetworkPolicy, metadata: {name: all, namespace: x}, spec: {selector: all(), order: 1, ingress: [{action: Allow}]}}"),
        resource("{kind: StagedKubernetesNetworkPolicy, metadata: {name: all, namespace: 'y'}, spec: {podSelector: {}, policyTypes: [Ingress]}}"),
        k8s("x", "deny", "{podSelector: {}, policyTypes: [Ingress]}"),
    ]);
    cluster.check("staged policies", &|s| to_ns(&s) != "x");
    cluster.only(Vec::new());
    cluster.check("nothing again", &|_| true);
}
