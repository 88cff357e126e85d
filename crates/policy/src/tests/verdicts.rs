//! What policies as users write them come to, asked packet by packet.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::resource::WorkloadEndpoint;
use api::{Key, Resource};
use datastore::Update;

use super::build;
use crate::evaluate::{Packet, Step, Verdict, connection};
use crate::{Graph, PolicyState, compute};

/// Namespace, name, address, labels, ports. All are on our node, and inherit from their namespace and service account.
const PODS: [&str; 5] = [
    "a web 10.0.0.1 role=web",
    "a db 10.0.0.2 role=db sql:TCP:5432,dns:UDP:53",
    "b web 10.0.1.1 role=web,env=prod http:TCP:8080",
    "b db 10.0.1.2 role=db sql:TCP:5433",
    "b six fd00::1 role=six",
];

/// Namespaces: a is of team x and open, b of team y and open.
const NAMESPACES: &str = r#"
apiVersion: projectcalico.org/v3
kind: Profile
metadata: {name: kns.a}
spec: {ingress: [{action: Allow}], egress: [{action: Allow}], labelsToApply: {pcns.team: x}}
---
apiVersion: projectcalico.org/v3
kind: Profile
metadata: {name: kns.b}
spec: {ingress: [{action: Allow}], egress: [{action: Allow}], labelsToApply: {pcns.team: y}}
---
apiVersion: projectcalico.org/v3
kind: Profile
metadata: {name: ksa.b.default}
spec: {labelsToApply: {pcsa.trusted: "yes"}}
"#;

#[test]
fn without_policy_profiles_decide() {
    check("", "a/web -> b/db TCP 1: allowed, profile kns.b ingress rule 0: Allow");
    check(
        "",
        "a/web -> 192.0.2.1 TCP 80: allowed, profile kns.a egress rule 0: Allow",
    );
}

#[test]
fn a_policy_of_a_namespace_picks_in_its_namespace() {
    let policy = policy(
        "a",
        "p",
        "role == 'db'",
        "{action: Allow, source: {selector: role == 'web'}}",
    );
    check(
        &policy,
        "a/web -> a/db TCP 1: allowed, tier default: NetworkPolicy(a/p) ingress rule 0: Allow
         b/web -> a/db TCP 1: denied, tier default: policies apply, no rule matched: denied at the end of the tier
         b/web -> b/db TCP 1: allowed, profile kns.b ingress rule 0: Allow
         a/db -> b/db TCP 1: allowed, profile kns.b ingress rule 0: Allow",
    );
}

#[test]
fn namespaces_and_accounts_are_picked_by_what_is_inherited() {
    let rule =
        "{action: Allow, source: {namespaceSelector: team == 'y', serviceAccounts: {selector: trusted == 'yes'}}}";
    check(
        &policy("a", "p", "all()", rule),
        "b/web -> a/db TCP 1: allowed, tier default: NetworkPolicy(a/p) ingress rule 0: Allow
         a/web -> a/db TCP 1: denied, tier default: policies apply, no rule matched: denied at the end of the tier",
    );
    let rule = "{action: Allow, source: {serviceAccounts: {names: [default]}}}";
    check(
        &policy("a", "p", "", rule),
        "a/web -> a/db TCP 1: allowed, tier default: NetworkPolicy(a/p) ingress rule 0: Allow
         b/web -> a/db TCP 1: denied, tier default: policies apply, no rule matched: denied at the end of the tier",
    );
}

#[test]
fn global_is_what_is_in_no_namespace() {
    let set = r#"
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkSet
metadata: {name: office, labels: {role: web}}
spec: {nets: [192.0.2.0/24, 192.0.2.7/32]}
"#;
    let rule = "{action: Allow, source: {namespaceSelector: global(), selector: role == 'web'}}";
    check(
        &(policy("a", "p", "all()", rule) + set),
        "192.0.2.9 -> a/db TCP 1: allowed, tier default: NetworkPolicy(a/p) ingress rule 0: Allow
         192.0.3.9 -> a/db TCP 1: denied, tier default: policies apply, no rule matched: denied at the end of the tier
         b/web -> a/db TCP 1: denied, tier default: policies apply, no rule matched: denied at the end of the tier",
    );
}

#[test]
fn a_named_port_is_each_endpoints_own() {
    let rule = "{action: Allow, protocol: TCP, destination: {namespaceSelector: all(), ports: [sql, 80]}}";
    check(
        &egress("b", "p", "role == 'web'", rule),
        "b/web -> a/db TCP 5432: allowed, profile kns.a ingress rule 0: Allow
         b/web -> b/db TCP 5433: allowed, profile kns.b ingress rule 0: Allow
         b/web -> b/db TCP 80: allowed, profile kns.b ingress rule 0: Allow
         b/web -> b/db TCP 5432: denied, tier default: policies apply, no rule matched: denied at the end of the tier
         b/web -> b/db UDP 5433: denied, tier default: policies apply, no rule matched: denied at the end of the tier",
    );
}

#[test]
fn a_service_is_its_addresses_and_ports() {
    let slice = r#"
---
apiVersion: projectcalico.org/v3
kind: KubernetesEndpointSlice
metadata: {name: db-1, namespace: b}
spec: {service: db, addresses: [10.0.1.2], ports: [{protocol: TCP, port: 5433}]}
"#;
    let rule = "{action: Allow, destination: {services: {name: db, namespace: b}}}";
    check(
        &(egress("a", "p", "", rule) + slice),
        "a/web -> b/db TCP 5433: allowed, profile kns.b ingress rule 0: Allow
         a/web -> b/db TCP 5434: denied, tier default: policies apply, no rule matched: denied at the end of the tier
         a/web -> b/web TCP 5433: denied, tier default: policies apply, no rule matched: denied at the end of the tier",
    );
    let rule = "{action: Allow, source: {services: {name: db, namespace: b}}}";
    check(
        &(policy("a", "p", "", rule) + slice),
        "b/db -> a/web TCP 1: allowed, tier default: NetworkPolicy(a/p) ingress rule 0: Allow
         b/web -> a/web TCP 1: denied, tier default: policies apply, no rule matched: denied at the end of the tier",
    );
}

#[test]
fn tiers_come_in_their_order_and_pass_leaves_one() {
    let tiers = r#"
---
apiVersion: projectcalico.org/v3
kind: Tier
metadata: {name: security}
spec: {order: 100}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: first}
spec:
  tier: security
  order: 2
  selector: role == 'db'
  ingress: [{action: Deny, source: {selector: role == 'web'}}]
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: exception}
spec:
  tier: security
  order: 1
  selector: role == 'db'
  ingress: [{action: Log}, {action: Pass, source: {selector: env == 'prod'}}, {action: Deny, source: {nets: [10.0.0.2/32]}}]
"#;
    let after = policy(
        "b",
        "after",
        "role == 'db'",
        "{action: Allow, protocol: TCP, destination: {ports: [5433]}}",
    );
    check(
        &(after + tiers),
        "a/web -> b/db TCP 5433: denied, tier security: GlobalNetworkPolicy(first) ingress rule 0: Deny
         b/web -> b/db TCP 5433: allowed, tier default: NetworkPolicy(b/after) ingress rule 0: Allow
         b/web -> b/db TCP 5432: denied, tier default: policies apply, no rule matched: denied at the end of the tier
         b/web -> a/db TCP 5432: allowed, profile kns.a ingress rule 0: Allow
         a/db -> b/db TCP 5433: denied, tier security: GlobalNetworkPolicy(exception) ingress rule 2: Deny",
    );
}

#[test]
fn a_tier_that_passes_at_its_end_and_one_with_rehearsals_only_decide_nothing() {
    let tiers = r#"
---
apiVersion: projectcalico.org/v3
kind: Tier
metadata: {name: soft}
spec: {order: 1, defaultAction: Pass}
---
apiVersion: projectcalico.org/v3
kind: Tier
metadata: {name: hard}
spec: {order: 2, defaultAction: Deny}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: soft}
spec: {tier: soft, selector: role == 'db', ingress: [{action: Deny, source: {nets: [192.0.2.0/24]}}]}
---
apiVersion: projectcalico.org/v3
kind: StagedGlobalNetworkPolicy
metadata: {name: rehearsal}
spec: {tier: hard, selector: role == 'db', ingress: [{action: Deny}]}
"#;
    check(
        tiers,
        "a/web -> a/db TCP 1: allowed, profile kns.a ingress rule 0: Allow
         192.0.2.1 -> a/db TCP 1: denied, tier soft: GlobalNetworkPolicy(soft) ingress rule 0: Deny",
    );
}

#[test]
fn negations_families_and_icmp() {
    let rules = "{action: Deny, notProtocol: ICMP, source: {notSelector: role == 'web', namespaceSelector: all()}},
        {action: Deny, protocol: ICMP, icmp: {type: 8}}, {action: Allow, ipVersion: 4}";
    check(
        &policy("a", "p", "role == 'db'", rules),
        "a/web -> a/db TCP 1: allowed, tier default: NetworkPolicy(a/p) ingress rule 2: Allow
         b/web -> a/db TCP 1: allowed, tier default: NetworkPolicy(a/p) ingress rule 2: Allow
         b/db -> a/db TCP 1: denied, tier default: NetworkPolicy(a/p) ingress rule 0: Deny
         a/web -> a/db ICMP 8: denied, tier default: NetworkPolicy(a/p) ingress rule 1: Deny
         b/db -> a/db ICMP 3: allowed, tier default: NetworkPolicy(a/p) ingress rule 2: Allow",
    );
    // Upstream: in a policy of a namespace, a negated selector too is about that namespace alone.
    check(
        &policy(
            "a",
            "p",
            "role == 'db'",
            "{action: Deny, source: {notSelector: role == 'web'}}, {action: Allow}",
        ),
        "b/db -> a/db TCP 1: allowed, tier default: NetworkPolicy(a/p) ingress rule 1: Allow",
    );
    check(
        &egress("b", "p", "", "{action: Allow, ipVersion: 4}"),
        "b/six -> fd00::9 TCP 1: denied, tier default: policies apply, no rule matched: denied at the end of the tier",
    );
}

#[test]
fn a_workload_sends_from_its_own_addresses_only() {
    let (state, _) = states("");
    let id = crate::EndpointId::Workload(Key::namespaced(api::Kind::WorkloadEndpoint, "a", "n1-web"));
    let packet = packet("10.0.0.2", "10.0.1.1", "TCP", 1);
    let verdict = crate::evaluate::evaluate_sent(&state, &id, &packet);
    assert_eq!(verdict.trace, [Step::Spoofed("10.0.0.2".parse().unwrap())]);
    assert!(
        verdict
            .to_string()
            .ends_with(": denied\n  10.0.0.2 is not an address of this workload\n")
    );
}

#[test]
fn a_verdict_reads_well() {
    let policy = policy(
        "a",
        "p",
        "role == 'db'",
        "{action: Log}, {action: Allow, source: {selector: role == 'web'}}",
    );
    let (state, _) = states(&policy);
    let connection = connection(&state, &packet("10.0.0.1", "10.0.0.2", "TCP", 5432));
    let wanted = r#"from WorkloadEndpoint(a/n1-web): allowed
  profile kns.a egress rule 0: Allow
to WorkloadEndpoint(a/n1-db): allowed
  tier default: NetworkPolicy(a/p) ingress rule 0: Log; selects (projectcalico.org/namespace == "a" && role == "db")
  tier default: NetworkPolicy(a/p) ingress rule 1: Allow; selects (projectcalico.org/namespace == "a" && role == "db"); matched (projectcalico.org/namespace == "a" && role == "web")
"#;
    assert_eq!(connection.to_string(), wanted);
}

/// Every question is `FROM -> TO PROTOCOL PORT: OUTCOME, LAST STEP`, with an end as `namespace/name` or an address.
fn check(resources: &str, questions: &str) {
    let (state, addresses) = states(resources);
    for question in questions.lines() {
        let (question, wanted) = question.trim().split_once(": ").unwrap();
        let (from, rest) = question.split_once(" -> ").unwrap();
        let [to, protocol, port] = rest.split(' ').collect::<Vec<_>>().try_into().unwrap();
        let address = |end: &str| addresses.get(end).cloned().unwrap_or_else(|| end.to_owned());
        let packet = packet(&address(from), &address(to), protocol, port.parse().unwrap());
        let connection = connection(&state, &packet);
        let decisive = |verdict: &Verdict| {
            let step = verdict.trace.last().unwrap().to_string();
            format!("{}, {}", verdict.outcome, step.split(';').next().unwrap())
        };
        let ends: Vec<&Verdict> = [&connection.from, &connection.to].into_iter().flatten().collect();
        let denied = ends
            .iter()
            .find(|verdict| verdict.outcome == crate::evaluate::Outcome::Deny);
        let shown = decisive(denied.unwrap_or(ends.last().unwrap()));
        assert_eq!(shown, wanted, "{question}\n{connection}");
    }
}

/// The state, by the graph and by the oracle, and the addresses of pods.
fn states(resources: &str) -> (PolicyState, BTreeMap<String, String>) {
    let text = format!("{NAMESPACES}\n{resources}");
    let resources: Vec<Resource> = api::document::read("test", &text).unwrap_or_else(|problems| panic!("{problems:?}"));
    let mut graph = Graph::new("n1");
    let mut locals = BTreeMap::new();
    let mut addresses = BTreeMap::new();
    for line in PODS {
        let (endpoint, address) = pod(line);
        let name = endpoint.metadata.name.trim_start_matches("n1-");
        addresses.insert(
            format!("{}/{name}", endpoint.metadata.namespace.as_ref().unwrap()),
            address,
        );
        graph.local(endpoint.key(), Some(endpoint.clone()));
        locals.insert(endpoint.key(), endpoint);
    }
    for resource in &resources {
        graph.apply(Update {
            key: resource.key(),
            value: Some(resource.clone()),
        });
    }
    graph.flush();
    assert_eq!(graph.state(), &compute("n1", &locals, resources.iter()));
    assert_eq!(graph.problems(), []);
    (graph.state().clone(), addresses)
}

fn pod(line: &str) -> (WorkloadEndpoint, String) {
    let words: Vec<&str> = line.split(' ').collect();
    let [namespace, name, address, labels] = words[..4].try_into().unwrap();
    let mut endpoint = build::workload("n1", namespace, &format!("n1-{name}"));
    for label in labels.split(',') {
        let (name, value) = label.split_once('=').unwrap();
        endpoint.metadata.labels.insert(name.into(), value.into());
    }
    endpoint.spec.service_account_name = "default".into();
    endpoint.spec.profiles = vec![format!("kns.{namespace}"), format!("ksa.{namespace}.default")];
    if namespace == "a" {
        endpoint.spec.profiles.truncate(1);
    }
    endpoint.spec.ip_networks = vec![address.parse::<IpAddr>().unwrap().into()];
    for port in words.get(4).iter().flat_map(|ports| ports.split(',')) {
        let [name, protocol, number] = port.split(':').collect::<Vec<_>>().try_into().unwrap();
        endpoint
            .spec
            .ports
            .push(build::port(name, protocol, number.parse().unwrap()));
    }
    (endpoint, address.to_owned())
}

fn packet(from: &str, to: &str, protocol: &str, number: u16) -> Packet {
    let protocol = api::Protocol::from_text(protocol).number().unwrap();
    let has_ports = protocol != 1;
    Packet {
        source: from.parse().unwrap(),
        destination: to.parse().unwrap(),
        protocol,
        source_port: has_ports.then_some(40_000),
        destination_port: has_ports.then_some(number),
        icmp: (!has_ports).then_some((number as u8, 0)),
    }
}

fn policy(namespace: &str, name: &str, selector: &str, rules: &str) -> String {
    written(namespace, name, selector, &format!("ingress: [{rules}]"))
}

fn egress(namespace: &str, name: &str, selector: &str, rules: &str) -> String {
    written(namespace, name, selector, &format!("egress: [{rules}]"))
}

fn written(namespace: &str, name: &str, selector: &str, rules: &str) -> String {
    format!(
        "\n---\napiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec:\n  selector: \"{selector}\"\n  {rules}\n"
    )
}
