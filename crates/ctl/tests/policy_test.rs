//! `policy test`: expectations met and not met, pods that are only described, files in place of what is stored, bad input.

mod common;

use common::{Cluster, documents};

const SHOP: &str = r#"
Profile kns.shop {ingress: [{action: Allow}], egress: [{action: Allow}], labelsToApply: {pcns.team: sales}}
Profile role.db {labelsToApply: {role: db}}
WorkloadEndpoint shop/n1-k8s-web-eth0 {orchestrator: k8s, node: n1, pod: web, endpoint: eth0, ipNetworks: [192.168.1.11/32], profiles: [kns.shop], interfaceName: cali1}
WorkloadEndpoint shop/n1-k8s-db-eth0 {orchestrator: k8s, node: n1, pod: db, endpoint: eth0, ipNetworks: [192.168.1.10/32], profiles: [kns.shop, role.db], interfaceName: cali2, ports: [{name: sql, protocol: TCP, port: 5432}]}
NetworkPolicy shop/db {selector: "role == 'db'", ingress: [{action: Allow, protocol: TCP, source: {selector: "role == 'api'"}, destination: {ports: [5432]}}]}
"#;

const MET: &str = "
- {name: the api reaches the database, from: {namespace: shop, labels: {role: api}}, to: shop/db, port: 5432, expect: Allow}
- {from: shop/web, to: shop/db, port: sql, expect: Deny}
- {from: {namespace: bank, labels: {role: api}}, to: {pod: shop/db}, port: [5432, 80], protocol: TCP, expect: deny}
- {from: {ip: 8.8.8.8}, to: shop/web, expect: Allow}
- {from: {namespace: shop}, to: {namespace: shop, labels: {role: db}, ports: {sql: 5432}}, port: sql, expect: Deny}
- {from: 192.168.1.11, to: shop/db, port: 53, protocol: UDP, expect: Deny}
- {from: shop/db, to: shop/web, protocol: 47, expect: Allow}
";

#[test]
fn expectations_are_met_by_pods_that_are_there_or_described() {
    let cluster = Cluster::with(SHOP);
    cluster.file("ok.yaml", MET);
    cluster.check("policy test {dir}/ok.yaml", "8 of 8 expectations are met");
    cluster.check_with("policy test -", MET, "8 of 8 expectations are met");
}

#[test]
fn what_is_not_met_is_explained() {
    let cluster = Cluster::with(SHOP);
    let wrong = "
- {name: web reads, from: web, to: db, port: 5432, expect: Allow}
- {from: web, to: 8.8.8.8, port: 53, protocol: udp, expect: Deny}
- {from: db, to: web, expect: Allow}";
    let expected = r#"
FAILED expectation 1 (web reads): expected Allow
  TCP 192.168.1.11 -> 192.168.1.10:5432
    from pod shop/web (192.168.1.11) on node n1
    to   pod shop/db (192.168.1.10) on node n1

  from pod shop/web on node n1: allowed
    profile kns.shop egress rule 0: Allow

  to pod shop/db on node n1: denied
    tier default: policies apply, no rule matched: denied at the end of the tier
      NetworkPolicy(shop/db) selects (projectcalico.org/namespace == "shop" && role == "db")
      NetworkPolicy(shop/db) ingress rule 0 (Allow): source 192.168.1.11 is not in: (projectcalico.org/namespace == "shop" && role == "api")

  DENIED to pod shop/db

FAILED expectation 2: expected Deny
  UDP 192.168.1.11 -> 8.8.8.8:53
    from pod shop/web (192.168.1.11) on node n1
    to   8.8.8.8 (an address of no pod, host endpoint, node or network set)

  from pod shop/web on node n1: allowed
    profile kns.shop egress rule 0: Allow

  ALLOWED
  note: TO is 8.8.8.8 (an address of no pod, host endpoint, node or network set): only FROM's policy is asked

1 of 3 expectations are met
error: 2 expectations are not met
exit 1"#;
    cluster.check_with("policy test -n shop -", wrong, expected);
    let json = cluster.run(
        "policy test - -o json",
        "[{from: shop/web, to: shop/db, port: 1, expect: Allow}]",
    );
    let (json, rest) = json.split_once("error: ").expect("it fails");
    let read: serde_json::Value = serde_json::from_str(json).expect("it is JSON");
    assert_eq!(rest, "1 expectation is not met\nexit 1");
    assert_eq!(read["failed"][0]["expected"], "Allow");
    assert_eq!(read["failed"][0]["explanation"]["verdict"], "Deny");
}

#[test]
fn files_stand_in_for_what_is_stored_and_nothing_is_written() {
    let cluster = Cluster::with(SHOP);
    cluster.file(
        "new/db.yaml",
        &documents(r#"NetworkPolicy shop/db {selector: "role == 'db'", ingress: [{action: Allow, source: {namespaceSelector: "team == 'sales'"}}]}"#),
    );
    cluster.file("t.yaml", "[{from: shop/web, to: shop/db, port: 1, expect: Allow}]");
    let before = cluster.keys();
    cluster.check("policy test {dir}/t.yaml -f {dir}/new", "1 of 1 expectations are met");
    assert_eq!(cluster.keys(), before);
    let refused = cluster.run("policy test {dir}/t.yaml", "");
    assert!(
        refused.ends_with("error: 1 expectation is not met\nexit 1"),
        "{refused}"
    );
}

#[test]
fn offline_no_store_is_asked() {
    let cluster = Cluster::unreachable();
    cluster.file(
        "policies/db.yaml",
        &documents(r#"NetworkPolicy shop/db {selector: "role == 'db'", ingress: [{action: Allow, source: {namespaceSelector: "team == 'sales'", selector: "role == 'api'"}}]}"#),
    );
    cluster.file(
        "t.yaml",
        "
- {from: {namespace: crm, namespaceLabels: {team: sales}, labels: {role: api}}, to: {namespace: shop, labels: {role: db}}, expect: Allow}
- {from: {namespace: crm, labels: {role: api}}, to: {namespace: shop, labels: {role: db}}, expect: Deny}
- {from: {namespace: shop, labels: {role: db}}, to: {namespace: crm}, port: 80, expect: Allow}",
    );
    cluster.check(
        "policy test {dir}/t.yaml --offline -f {dir}/policies",
        "3 of 3 expectations are met",
    );
    cluster.check("policy test {dir}/t.yaml", "error: no store listens\nexit 1");
    let without = cluster.run("policy test {dir}/t.yaml --offline", "");
    assert!(without.contains("required arguments were not provided"), "{without}");
}

#[test]
fn every_problem_of_a_file_comes_at_once() {
    let cluster = Cluster::with(SHOP);
    let at = "error: standard input, expectation";
    cluster.check_with(
        "policy test -",
        "
- {name: typo, from: shop/wep, to: shop/db, expect: Alow}
- {from: shop/web, port: 99999}
- {from: {pod: shop/web, ip: 1.2.3.4}, to: {labels: {a: 1}, nmespace: x}, expect: Deny}
- {from: shop/web, to: shop/db, protokoll: UDP, expect: Deny, port: {a: b}}
- 7
- {from: shop/web, to: fd00::1, expect: Deny}",
        &format!(
            "
{at} 1 (typo): from: `shop/wep` is no pod, host endpoint, node or network set; there are 2 pods (`get wep -A` shows them)
{at} 1 (typo): expect: `Alow` must be Allow or Deny
{at} 2: to is missing: a pod or an address
{at} 2: expect is missing: Allow or Deny
{at} 2: port: `99999/TCP` must have a port from 1 to 65535
{at} 3: from: `{{\"ip\":\"1.2.3.4\",\"pod\":\"shop/web\"}}` must have a pod, or an ip, or a namespace with labels
{at} 3: to.nmespace: `x` is no field of a pod; there are pod, ip, namespace, labels, namespaceLabels, serviceAccount, ports
{at} 3: to.labels.a: `1` must be text; write it in quotes
{at} 4: protokoll: `UDP` is no field here; there are name, from, to, port, protocol, expect
{at} 4: port: `{{\"a\":\"b\"}}` must be a number or a name, or a list of them
{at} 5: must have `from`, `to` and `expect`
{at} 6: FROM and TO have no family in common: pod shop/web has 192.168.1.11, an address of no pod, host endpoint, node or network set has fd00::1
exit 1"
        ),
    );
    for (text, expected) in [
        ("[]", "error: standard input: has no expectations\nexit 1"),
        (
            "from: a",
            "error: standard input: must be a list of expectations, each with `from`, `to` and `expect`\nexit 1",
        ),
    ] {
        cluster.check_with("policy test -", text, expected);
    }
    let no_yaml = cluster.run("policy test -", "[a: {");
    assert!(no_yaml.starts_with("error: standard input: is no YAML: "), "{no_yaml}");
    let absent = cluster.run("policy test {dir}/nothing.yaml", "");
    assert!(
        absent.starts_with("error: {dir}/nothing.yaml: No such file"),
        "{absent}"
    );
    cluster.check_with(
        "policy test - -f -",
        MET,
        "error: FILE and -f: only one of them can be standard input (`-`)\nexit 2",
    );
    cluster.file("p.yaml", &documents("NetworkPolicy shop/p {tier: nowhere}"));
    cluster.check_with(
        "policy test - -f {dir}/p.yaml",
        MET,
        "error: NetworkPolicy(shop/p): spec.tier: `nowhere` does not exist; give Tier(nowhere) with -f, too\nexit 1",
    );
}
