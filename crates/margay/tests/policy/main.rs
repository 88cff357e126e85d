//! Network policy on the live kernel: nine pods in three namespaces on two nodes, every pair of them, two ports, TCP and UDP,
//! IPv4 and IPv6. What is expected is written beside each policy as plain code.

mod cases;
#[path = "../common/mod.rs"]
mod common;

use std::time::Instant;

use cases::{Case, Label, blocks_of_addresses, cases, from, from_ns, to, to_ns};
use common::cluster::{Cluster, k8s, resource};
use common::net::L4;

#[test]
fn the_documented_cases_of_kubernetes_hold_for_every_pair() {
    let Some(mut cluster) = Cluster::up("t-policy") else {
        return;
    };
    let started = Instant::now();
    let cases = cases();
    let blocks = blocks_of_addresses(&|pod, ipv6| cluster.pod(pod).address(ipv6));
    for case in cases.iter().chain(&blocks) {
        apply(&mut cluster, case);
    }
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

/// Makes a case's policies the only ones, and looks.
fn apply(cluster: &mut Cluster, case: &Case) {
    let policies = case
        .policies
        .iter()
        .map(|(namespace, name, spec)| k8s(namespace, name, spec));
    cluster.only(policies.collect());
    cluster.check(case.what, &*case.expected);
}

/// Pods, and a namespace, get other labels while a policy is there.
fn labels_that_change(cluster: &mut Cluster) {
    let (policy, steps) = cases::labels_that_change();
    apply(cluster, &policy);
    for (what, labels, expected) in &steps {
        for Label { of, key, value } in labels {
            match of.contains('/') {
                true => {
                    let index = cluster.index(of);
                    cluster.change_pod(index, |endpoint| {
                        match value {
                            Some(value) => endpoint.metadata.labels.insert((*key).to_owned(), (*value).to_owned()),
                            None => endpoint.metadata.labels.remove(*key),
                        };
                    });
                }
                false => {
                    let more = value.map(|value| format!(", pcns.{key}: {value}")).unwrap_or_default();
                    cluster.put(resource(&format!(
                        "{{kind: Profile, metadata: {{name: kns.{of}}}, spec: {{ingress: [{{action: Allow}}], egress: [{{action: Allow}}], labelsToApply: {{pcns.projectcalico.org/name: {of}, pcns.kubernetes.io/metadata.name: {of}{more}}}}}}}"
                    )));
                }
            }
        }
        cluster.check(what, &**expected);
    }
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
