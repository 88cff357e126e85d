//! `explain`: which policy decides at both ends, what is said of the rules that did not match, exit codes, bad input.

mod common;

use common::Cluster;

/// A shop on two nodes: `db` lets `api` in on 5432, and a first tier keeps a range of addresses out.
const SHOP: &str = r#"
Node n1 {bgp: {ipv4Address: 10.0.0.1/24}}
Node n2 {bgp: {ipv4Address: 10.0.0.2/24}}
Profile kns.shop {ingress: [{action: Allow}], egress: [{action: Allow}]}
Profile role.api {labelsToApply: {role: api}}
Profile role.db {labelsToApply: {role: db}}
Tier security {order: 10}
WorkloadEndpoint shop/n1-k8s-api-eth0 {orchestrator: k8s, node: n1, pod: api, endpoint: eth0, ipNetworks: [192.168.1.10/32, "fd00::1:10/128"], profiles: [kns.shop, role.api], interfaceName: cali1}
WorkloadEndpoint shop/n1-k8s-web-eth0 {orchestrator: k8s, node: n1, pod: web, endpoint: eth0, ipNetworks: [192.168.1.11/32], profiles: [kns.shop], interfaceName: cali2}
WorkloadEndpoint shop/n2-k8s-db-eth0 {orchestrator: k8s, node: n2, pod: db, endpoint: eth0, ipNetworks: [192.168.2.10/32, "fd00::2:10/128"], profiles: [kns.shop, role.db], interfaceName: cali3, ports: [{name: sql, protocol: TCP, port: 5432}]}
WorkloadEndpoint bank/n2-k8s-db-eth0 {orchestrator: k8s, node: n2, pod: db, endpoint: eth0, ipNetworks: [192.168.2.11/32], profiles: [gone], interfaceName: cali4}
HostEndpoint n3.none {node: n3, interfaceName: eth0}
GlobalNetworkSet threats {nets: [203.0.113.0/24]}
GlobalNetworkPolicy security.threats {tier: security, order: 1, selector: "projectcalico.org/namespace == 'shop'", types: [Ingress], ingress: [{action: Deny, source: {nets: [203.0.113.0/24]}}, {action: Pass}]}
NetworkPolicy shop/db {order: 100, selector: "role == 'db'", types: [Ingress], ingress: [{action: Allow, protocol: TCP, source: {selector: "role == 'api'"}, destination: {ports: [5432]}}]}
"#;

#[test]
fn both_ends_are_asked_and_every_step_is_named() {
    let cluster = Cluster::with(SHOP);
    let allowed = r#"
TCP 192.168.1.10 -> 192.168.2.10:5432
  from pod shop/api (192.168.1.10) on node n1
  to   pod shop/db (192.168.2.10) on node n2

from pod shop/api on node n1: allowed
  profile kns.shop egress rule 0: Allow

to pod shop/db on node n2: allowed
  tier security: GlobalNetworkPolicy(security.threats) ingress rule 1: Pass; selects projectcalico.org/namespace == "shop"
  tier default: NetworkPolicy(shop/db) ingress rule 0: Allow; selects (projectcalico.org/namespace == "shop" && role == "db"); matched (projectcalico.org/namespace == "shop" && role == "api")

ALLOWED
"#;
    cluster.check("explain shop/api shop/db:5432", allowed);
    for same in [
        "explain api -> shop/db:5432/tcp",
        "explain -n shop api db:sql",
        "explain api->shop/db:5432/6",
        "explain 192.168.1.10 192.168.2.10:5432",
        "explain n1-k8s-api-eth0 -> 192.168.2.10:5432",
    ] {
        cluster.check(same, allowed);
    }
}

#[test]
fn a_denied_packet_hears_of_every_rule_that_did_not_match() {
    let cluster = Cluster::with(SHOP);
    cluster.check(
        "explain web shop/db:5432",
        r#"
TCP 192.168.1.11 -> 192.168.2.10:5432
  from pod shop/web (192.168.1.11) on node n1
  to   pod shop/db (192.168.2.10) on node n2

from pod shop/web on node n1: allowed
  profile kns.shop egress rule 0: Allow

to pod shop/db on node n2: denied
  tier security: GlobalNetworkPolicy(security.threats) ingress rule 1: Pass; selects projectcalico.org/namespace == "shop"
  tier default: policies apply, no rule matched: denied at the end of the tier
    NetworkPolicy(shop/db) selects (projectcalico.org/namespace == "shop" && role == "db")
    NetworkPolicy(shop/db) ingress rule 0 (Allow): source 192.168.1.11 is not in: (projectcalico.org/namespace == "shop" && role == "api")

DENIED to pod shop/db
exit 3"#,
    );
    cluster.check(
        "explain web bank/db:80/udp",
        r#"
UDP 192.168.1.11 -> 192.168.2.11:80
  from pod shop/web (192.168.1.11) on node n1
  to   pod bank/db (192.168.2.11) on node n2

from pod shop/web on node n1: allowed
  profile kns.shop egress rule 0: Allow

to pod bank/db on node n2: denied
  profile gone does not exist: it allows nothing
  no policy and no profile allowed it: denied

DENIED to pod bank/db
exit 3"#,
    );
}

#[test]
fn without_a_port_ping_is_explained_and_all_ports_are_listed() {
    Cluster::with(SHOP).check(
        "explain api shop/db -6",
        r#"
ICMPv6 echo request fd00::1:10 -> fd00::2:10
  from pod shop/api (fd00::1:10) on node n1
  to   pod shop/db (fd00::2:10) on node n2

from pod shop/api on node n1: allowed
  profile kns.shop egress rule 0: Allow

to pod shop/db on node n2: denied
  tier security: GlobalNetworkPolicy(security.threats) ingress rule 1: Pass; selects projectcalico.org/namespace == "shop"
  tier default: policies apply, no rule matched: denied at the end of the tier
    NetworkPolicy(shop/db) selects (projectcalico.org/namespace == "shop" && role == "db")
    NetworkPolicy(shop/db) ingress rule 0 (Allow): protocol ICMPv6 is not TCP; it has no destination port, which should be 5432

DENIED to pod shop/db
  allowed  TCP 5432
  denied   ICMP; TCP except 5432; UDP
exit 3"#,
    );
}

#[test]
fn programs_get_json_and_yaml() {
    let cluster = Cluster::with(SHOP);
    let json = cluster.run("explain 203.0.113.7 api:443 -o json", "");
    let (json, code) = json.rsplit_once("exit ").expect("it is denied");
    let read: serde_json::Value = serde_json::from_str(json).expect("it is JSON");
    let rule = &read["stages"][0]["steps"][0];
    assert_eq!(
        (
            code,
            &read["verdict"],
            &rule["ruleOf"],
            &rule["rule"],
            &rule["action"],
            &rule["tier"]
        ),
        (
            "3",
            &"Deny".into(),
            &"GlobalNetworkPolicy(security.threats)".into(),
            &0.into(),
            &"Deny".into(),
            &"security".into()
        )
    );
    assert_eq!(rule["selector"], "projectcalico.org/namespace == \"shop\"");
    cluster.check(
        "explain api 8.8.8.8:53/udp -o yaml",
        r#"
verdict: Allow
packet:
  protocol: UDP
  source: "192.168.1.10"
  destination: "8.8.8.8"
  sourcePort: 50000
  destinationPort: 53
from:
  name: pod shop/api
  node: n1
to:
  name: an address of no pod, host endpoint, node or network set
stages:
- at: pod shop/api
  node: n1
  way: Egress
  verdict: Allow
  steps:
  - text: "profile kns.shop egress rule 0: Allow"
    ruleOf: Profile(kns.shop)
    rule: 0
    action: Allow
notes:
- "TO is 8.8.8.8 (an address of no pod, host endpoint, node or network set): only FROM's policy is asked""#,
    );
}

/// Lines of text answers that begin with one of these words.
fn said(cluster: &Cluster, line: &str) -> String {
    let all = cluster.run(line, "");
    let said = all.lines().filter(|line| {
        let is_stage = (line.starts_with("from ") || line.starts_with("to ")) && line.contains(": ");
        let words = ["ALLOWED", "DENIED", "note: ", "problem: ", "error: "];
        is_stage
            || line.starts_with("  ") && !line.starts_with("  from ") && !line.starts_with("  to ")
            || words.iter().any(|word| line.starts_with(word))
    });
    said.map(|line| format!("{line}\n")).collect()
}

#[track_caller]
fn check(resources: &str, line: &str, expected: &str) {
    let cluster = Cluster::with(&format!("{SHOP}\n{resources}"));
    let got = said(&cluster, line);
    assert_eq!(got.trim(), expected.trim(), "\n$ calicoctl {line}\n{got}");
}

#[test]
fn hosts_are_treated_as_the_packet_filter_treats_them() {
    check(
        "",
        "explain api n1:80",
        "
from pod shop/api on node n1: allowed
  profile kns.shop egress rule 0: Allow
to node n1: denied
  a pod to its own host: defaultEndpointToHostAction is Drop
DENIED to node n1",
    );
    check(
        "FelixConfiguration node.n1 {defaultEndpointToHostAction: Accept}",
        "explain api n1:80",
        "
from pod shop/api on node n1: allowed
  profile kns.shop egress rule 0: Allow
to node n1: allowed
  a pod to its own host: defaultEndpointToHostAction is Accept
ALLOWED",
    );
    check(
        "",
        "explain n1 api:80",
        "
to pod shop/api on node n1: allowed
  pods are not protected from their own host
ALLOWED",
    );
    check(
        "",
        "explain api api:80",
        "
from pod shop/api on node n1: allowed
  a pod to itself: the packet never leaves it
ALLOWED",
    );
    check(
        "",
        "explain 8.8.8.8 10.0.0.2:80",
        "
to node n2: allowed
  node n2 has no host endpoint, so policy leaves it alone
ALLOWED
note: FROM is 8.8.8.8 (an address of no pod, host endpoint, node or network set): only TO's policy is asked",
    );
}

const HOSTS: &str = r#"
HostEndpoint n2.eth0 {node: n2, interfaceName: eth0, expectedIPs: [10.0.0.2]}
GlobalNetworkPolicy hosts {selector: "!has(projectcalico.org/orchestrator)", applyOnForward: true, ingress: [{action: Allow, protocol: TCP, destination: {ports: [443]}}]}
"#;

#[test]
fn host_endpoints_are_asked_with_their_failsafe_ports() {
    check(
        HOSTS,
        "explain 8.8.8.8 n2:443",
        "
to host endpoint n2.eth0 on node n2: allowed
  tier default: GlobalNetworkPolicy(hosts) ingress rule 0: Allow; selects !has(projectcalico.org/orchestrator)
ALLOWED
note: FROM is 8.8.8.8 (an address of no pod, host endpoint, node or network set): only TO's policy is asked",
    );
    check(
        HOSTS,
        "explain 8.8.8.8 n2:22",
        "
to node n2: allowed
  TCP 22 is a failsafe port (failsafeInboundHostPorts)
ALLOWED
note: FROM is 8.8.8.8 (an address of no pod, host endpoint, node or network set): only TO's policy is asked",
    );
    check(HOSTS, "explain web -> bank/db:443", "
from pod shop/web on node n1: allowed
  profile kns.shop egress rule 0: Allow
to pod bank/db on node n2: denied
  profile gone does not exist: it allows nothing
  no policy and no profile allowed it: denied
DENIED to pod bank/db
note: host endpoint n2.eth0 (applyOnForward) on node n2 is asked if the packet takes device eth0: allowed: tier default: GlobalNetworkPolicy(hosts) ingress rule 0: Allow; selects !has(projectcalico.org/orchestrator)");
    let pool = "IPPool p {cidr: 192.168.0.0/16, natOutgoing: true}";
    check(
        &format!("{HOSTS}\n{pool}"),
        "explain api n2.eth0:80",
        "
from pod shop/api on node n1: allowed
  profile kns.shop egress rule 0: Allow
to host endpoint n2.eth0 on node n2: denied
  tier default: policies apply, no rule matched: denied at the end of the tier
    GlobalNetworkPolicy(hosts) selects !has(projectcalico.org/orchestrator)
    GlobalNetworkPolicy(hosts) ingress rule 0 (Allow): destination port 80 is not 443
DENIED to host endpoint n2.eth0
note: its source becomes 10.0.0.1 on node n1 (natOutgoing): that is what TO's host endpoint sees",
    );
    let all = HOSTS.replace("interfaceName: eth0, expectedIPs: [10.0.0.2]", "interfaceName: '*'");
    check(
        &all,
        "explain web -> shop/db:80",
        r#"
from pod shop/web on node n1: allowed
  profile kns.shop egress rule 0: Allow
to host endpoint n2.eth0 (applyOnForward) on node n2: denied
  tier default: policies apply, no rule matched: denied at the end of the tier
    GlobalNetworkPolicy(hosts) selects !has(projectcalico.org/orchestrator)
    GlobalNetworkPolicy(hosts) ingress rule 0 (Allow): destination port 80 is not 443
to pod shop/db on node n2: denied
  tier security: GlobalNetworkPolicy(security.threats) ingress rule 1: Pass; selects projectcalico.org/namespace == "shop"
  tier default: policies apply, no rule matched: denied at the end of the tier
    NetworkPolicy(shop/db) selects (projectcalico.org/namespace == "shop" && role == "db")
    NetworkPolicy(shop/db) ingress rule 0 (Allow): source 192.168.1.11 is not in: (projectcalico.org/namespace == "shop" && role == "api"); destination port 80 is not 5432
DENIED to host endpoint n2.eth0 (applyOnForward)"#,
    );
}

#[test]
fn what_is_wrong_with_policies_is_told() {
    check(
        "NetworkPolicy shop/broken {tier: nowhere, ingress: [{action: Allow}]}",
        "explain web api:80",
        "
from pod shop/web on node n1: allowed
  profile kns.shop egress rule 0: Allow
to pod shop/api on node n1: denied
  tier nowhere: NetworkPolicy(shop/broken) ingress rule 0: Deny; selects projectcalico.org/namespace == \"shop\", but cannot be followed: spec.tier: `nowhere` is no tier that exists
DENIED to pod shop/api
problem: NetworkPolicy(shop/broken) spec.tier: `nowhere` is no tier that exists; it denies what reaches it",
    );
    let http = "NetworkPolicy shop/http {ingress: [{action: Allow, protocol: TCP, http: {methods: [GET]}}]}";
    check(
        http,
        "explain web api:80",
        r#"
from pod shop/web on node n1: allowed
  profile kns.shop egress rule 0: Allow
to pod shop/api on node n1: allowed
  tier security: GlobalNetworkPolicy(security.threats) ingress rule 1: Pass; selects projectcalico.org/namespace == "shop"
  tier default: NetworkPolicy(shop/http) ingress rule 0: Allow; selects projectcalico.org/namespace == "shop"
ALLOWED
problem: NetworkPolicy(shop/http) spec.ingress[0].http: `http` needs a proxy that looks into requests; this part is not enforced"#,
    );
}

#[test]
fn bad_input_names_the_argument_the_value_and_what_would_be_right() {
    let cluster = Cluster::with(SHOP);
    let right = "write FROM TO[:PORT[/PROTOCOL]], or 'FROM -> TO' in quotes";
    for (line, expected, code) in [
        ("explain api", &*format!("after FROM (`api`) TO is missing: {right}"), 2),
        ("explain api db web", &format!("`web` is one word too many: {right}"), 2),
        (
            "explain api -",
            &format!("`-` is no destination; the shell takes `>` for a redirection to a file: {right}"),
            2,
        ),
        (
            "explain nope api",
            "FROM: `nope` is no pod, host endpoint, node or network set; there are 4 pods (`get wep -A` shows them)",
            1,
        ),
        (
            "explain api shop/dbx",
            "TO: `shop/dbx` is no pod, host endpoint, node or network set; is it bank/db, shop/db?",
            1,
        ),
        (
            "explain api db",
            "TO: `db` may be any of pod bank/db, pod shop/db: write NAMESPACE/POD, choose with -n, or give an address",
            1,
        ),
        (
            "explain api shop/",
            "TO: `shop/` is no name: write POD, NAMESPACE/POD, the name of a host endpoint, node or network set, or an address",
            1,
        ),
        (
            "explain api n3.none:1",
            "TO: `n3.none` is HostEndpoint(n3.none), which has no address",
            1,
        ),
        (
            "explain fd00::1:10 web",
            "FROM and TO have no family in common: pod shop/api has fd00::1:10, pod shop/web has 192.168.1.11",
            1,
        ),
        ("explain api shop/db:0", "TO: `0` must have a port from 1 to 65535", 2),
        (
            "explain api shop/db:99999/udp",
            "TO: `99999/udp` must have a port from 1 to 65535",
            2,
        ),
        ("explain api shop/db:udp", "TO: `udp` needs a port, as 53/udp", 2),
        (
            "explain api shop/db:80/foo",
            "TO: `80/foo` has no protocol that is known; it is one of TCP, UDP, SCTP, UDPLite, ICMP, ICMPv6, or /1 to /255",
            2,
        ),
        (
            "explain api shop/db:80/47",
            "TO: `80/47` has a port, but its protocol has none",
            2,
        ),
        (
            "explain api shop/db:x/icmp",
            "TO: `x/icmp` must have a type of ICMP from 0 to 254, as 8/icmp",
            2,
        ),
        (
            "explain api shop/db:http",
            "TO: `http` is neither a port, nor a protocol, nor a TCP port of pod shop/db, which has sql",
            1,
        ),
        (
            "explain api:x shop/db:80",
            "FROM: `api:x` must have a source port from 1 to 65535, or none",
            2,
        ),
    ] {
        cluster.check(line, &format!("error: {expected}\nexit {code}"));
    }
    let wrong = cluster.run("explain api db -o table", "");
    assert!(
        wrong.starts_with("error: invalid value 'table' for '--output <OUTPUT>'"),
        "{wrong}"
    );
    Cluster::unreachable().check("explain a b", "error: no store listens\nexit 1");
}

#[test]
fn what_a_nodes_kernel_refuses_denies_there() {
    let cluster = Cluster::with(SHOP);
    let refuse = |key: &api::Key, node: &str| {
        let mut resource = cluster.resource(key).expect("it is there");
        let revision = datastore::Revision(resource.metadata().resource_version.clone().expect("stored"));
        assert!(resource.set_condition(api::Condition {
            kind: api::Condition::enforced(node),
            status: api::ConditionStatus::False,
            observed_generation: None,
            last_transition_time: jiff::Timestamp::UNIX_EPOCH,
            reason: "RulesRefused".into(),
            message: format!("on node {node}, it denies what reaches it: too long"),
        }));
        common::block_on(datastore::Store::update(&cluster.store, resource, &revision)).expect("written");
    };
    let policy = api::Key::namespaced(api::Kind::NetworkPolicy, "shop", "db");
    refuse(&policy, "n1");
    // The receiver is not there.
    assert!(cluster.run("explain shop/api shop/db:5432", "").contains("ALLOWED"));
    refuse(&policy, "n2");
    cluster.check(
        "explain shop/api shop/db:5432",
        r#"
TCP 192.168.1.10 -> 192.168.2.10:5432
  from pod shop/api (192.168.1.10) on node n1
  to   pod shop/db (192.168.2.10) on node n2

from pod shop/api on node n1: allowed
  profile kns.shop egress rule 0: Allow

to pod shop/db on node n2: denied
  tier security: GlobalNetworkPolicy(security.threats) ingress rule 1: Pass; selects projectcalico.org/namespace == "shop"
  tier default: NetworkPolicy(shop/db) ingress rule 0: Deny; selects (projectcalico.org/namespace == "shop" && role == "db")

DENIED to pod shop/db
problem: NetworkPolicy(shop/db): on node n1, it denies what reaches it: too long
problem: NetworkPolicy(shop/db): on node n2, it denies what reaches it: too long
exit 3"#,
    );
    let shown = cluster.run("get networkpolicy -n shop -o wide", "");
    assert!(shown.contains("refused"), "{shown}");
}
