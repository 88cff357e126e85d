//! `create`, `apply`, `replace`, `delete`, `validate`: what is refused before anything is written, and what is written.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{AllowedUse, Key, Kind, Resource};
use common::{Cluster, block_on, documents};
use ipam::{AutoAssign, Ipam, Tunnel, TunnelKind};
use jiff::Timestamp;

const POOL: &str = "IPPool p {cidr: 10.0.0.0/16}";

#[test]
fn each_verb_has_its_own_idea_of_what_must_exist() {
    let cluster = Cluster::new();
    let pool = documents(POOL);
    let check = |line: &str, expected: &str| cluster.check_with(line, &pool, expected);
    check("replace -f -", "error: IPPool(p) does not exist\nexit 1");
    check("create -f -", "Successfully created 1 'IPPool' resource(s)");
    check("create -f -", "error: IPPool(p) already exists\nexit 1");
    check("create -f - --skip-exists", "Successfully created 0 resource(s)");
    check("apply -f -", "Successfully applied 1 'IPPool' resource(s)");
    check("replace -f -", "Successfully replaced 1 'IPPool' resource(s)");
    check("validate -f -", "Successfully validated 1 'IPPool' resource(s)");
    check("delete -f -", "Successfully deleted 1 'IPPool' resource(s)");
    check("delete -f -", "error: IPPool(p) does not exist\nexit 1");
    check("delete -f - -s", "Successfully deleted 0 resource(s)");
    check("apply -f -", "Successfully applied 1 'IPPool' resource(s)");
    cluster.check("delete pool p", "Successfully deleted 1 'IPPool' resource(s)");
}

#[test]
fn what_a_cluster_begins_with_leaves_out_pools_where_there_are_others() {
    let check = |there: &str, created: usize, pools: &[&str]| {
        let cluster = Cluster::new();
        if !there.is_empty() {
            let count = documents(there).matches("kind: IPPool").count();
            let expected = format!("Successfully created {count} 'IPPool' resource(s)");
            cluster.check_with("create -f -", &documents(there), &expected);
        }
        let first = "IPPool d4 {cidr: 10.0.0.0/16}\nIPPool d6 {cidr: \"fd00::/48\"}\nFelixConfiguration default {}";
        let kind = if created == 1 { "'FelixConfiguration' " } else { "" };
        let expected = format!("Successfully created {created} {kind}resource(s)");
        cluster.check_with("create -f - --first", &documents(first), &expected);
        let there = |name: &&str| cluster.resource(&Key::cluster(Kind::IPPool, *name)).is_some();
        let found: Vec<&str> = ["d4", "d6", "p4", "p6"].into_iter().filter(there).collect();
        assert_eq!(found, pools, "{created} created");
        // Once more: nothing is left to create.
        cluster.check_with(
            "create -f - --first",
            &documents(first),
            "Successfully created 0 resource(s)",
        );
    };
    check("", 3, &["d4", "d6"]);
    check("IPPool p4 {cidr: 10.9.0.0/16}", 2, &["d6", "p4"]);
    // One that has the default's range, under another name.
    check("IPPool p4 {cidr: 10.0.0.0/24}", 2, &["d6", "p4"]);
    check("IPPool p6 {cidr: \"fd00:9::/48\"}", 2, &["d4", "p6"]);
    check(
        "IPPool p4 {cidr: 10.9.0.0/16}\nIPPool p6 {cidr: \"fd00:9::/48\"}",
        1,
        &["p4", "p6"],
    );
}

#[test]
fn what_is_created_gets_an_identity_and_defaults_and_keeps_them() {
    let cluster = Cluster::new();
    let read = || match cluster.resource(&Key::cluster(Kind::IPPool, "p")) {
        Some(Resource::IPPool(pool)) => pool,
        other => panic!("{other:?}"),
    };
    cluster.check_with(
        "create -f -",
        &documents(POOL),
        "Successfully created 1 'IPPool' resource(s)",
    );
    let first = read();
    assert_eq!(
        (first.spec.block_size, first.spec.node_selector.as_deref()),
        (Some(26), Some("all()"))
    );
    assert!(first.metadata.uid.is_some() && first.metadata.creation_timestamp.is_some());
    let changed = "IPPool p {cidr: 10.0.0.0/16, disabled: true}";
    cluster.check_with(
        "apply -f -",
        &documents(changed),
        "Successfully applied 1 'IPPool' resource(s)",
    );
    let second = read();
    assert!(second.spec.disabled);
    assert_eq!(second.metadata.uid, first.metadata.uid);
    assert_eq!(second.metadata.creation_timestamp, first.metadata.creation_timestamp);
}

#[test]
fn a_revision_in_a_file_makes_its_write_conditional() {
    let cluster = Cluster::with(POOL);
    let before = cluster.run("get pool p -o yaml", "");
    cluster.check_with("apply -f -", &before, "Successfully applied 1 'IPPool' resource(s)");
    let late = "error: IPPool(p) was changed by someone else\nexit 1";
    cluster.check_with("apply -f -", &before, late);
    cluster.check_with("replace -f -", &before, late);
    let without = cluster.run("get pool p -o yaml --export", "");
    cluster.check_with("apply -f -", &without, "Successfully applied 1 'IPPool' resource(s)");
}

#[test]
fn applying_replaces_the_spec_and_keeps_the_status() {
    let cluster = Cluster::new();
    let node = "apiVersion: projectcalico.org/v3\nkind: Node\nmetadata: {name: a, labels: {rack: '1'}}\nspec: {bgp: \
                {ipv4Address: 10.0.0.1/24, ipv4IPIPTunnelAddr: 10.9.0.1}}\nstatus: {podCIDRs: [10.1.0.0/24]}\n";
    cluster.check_with("apply -f -", node, "Successfully applied 1 'Node' resource(s)");
    let next = documents("Node a {bgp: {ipv4Address: 10.0.0.1/24, asNumber: 65001}}");
    cluster.check_with("apply -f -", &next, "Successfully applied 1 'Node' resource(s)");
    cluster.check(
        "get node a -o yaml --export",
        "
apiVersion: projectcalico.org/v3
kind: Node
metadata:
  name: a
spec:
  bgp:
    asNumber: 65001
    ipv4Address: 10.0.0.1/24
status:
  podCIDRs:
  - 10.1.0.0/24",
    );
}

#[test]
fn all_problems_come_at_once_and_nothing_is_written() {
    let cluster = Cluster::with("IPPool old {cidr: 10.5.0.0/16}");
    cluster.file(
        "a.yaml",
        &documents("IPPool a {cidr: 10.0.0.0/33}\nIPPool b {cidr: 10.1.0.0/16, ipipmode: Always}"),
    );
    cluster.file("b.json", "{");
    cluster.file("c.yaml", &documents("Node fine"));
    let shown = cluster.run(
        "apply -f {dir}/a.yaml -f {dir}/b.json -f {dir}/missing.yaml -f {dir}/c.yaml",
        "",
    );
    for part in [
        "error: {dir}/a.yaml, document 1 (IPPool a): spec.cidr: `10.0.0.0/33` must be an address range",
        "error: {dir}/a.yaml, document 2 (IPPool b): spec.ipipmode: no such field; did you mean `ipipMode`?",
        "error: {dir}/b.json, document 1: ",
        "error: {dir}/missing.yaml: No such file or directory",
    ] {
        assert!(shown.contains(part), "{part}\n{shown}");
    }
    assert!(shown.ends_with("exit 1"), "{shown}");
    cluster.check_with(
        "create -f -",
        &documents(
            "IPPool old {cidr: 10.6.0.0/16}\nIPPool new {cidr: 10.5.3.0/24}\nIPPool twice {cidr: 10.5.3.0/25}\nNode fine",
        ),
        "
error: IPPool(old) already exists
error: IPPool(new): spec.cidr: `10.5.3.0/24` overlaps 10.5.0.0/16 of IPPool(old); choose another range
error: IPPool(twice): spec.cidr: `10.5.3.0/25` overlaps 10.5.3.0/24 of IPPool(new); choose another range
error: IPPool(twice): spec.cidr: `10.5.3.0/25` overlaps 10.5.0.0/16 of IPPool(old); choose another range
exit 1",
    );
    assert_eq!(cluster.keys(), ["IPPool(old)"]);
}

#[test]
fn one_input_names_a_resource_once() {
    let cluster = Cluster::new();
    cluster.check_with(
        "apply -f -",
        &documents(&format!("{POOL}\nNode a\n{POOL}\n{POOL}")),
        "error: IPPool(p) stands more than once in the input\nexit 1",
    );
    assert!(cluster.keys().is_empty());
}

#[test]
fn immutable_fields_stay() {
    let cluster = Cluster::with("IPPool p {cidr: 10.0.0.0/16, blockSize: 26}");
    let shown = cluster.run("apply -f -", &documents("IPPool p {cidr: 10.1.0.0/16, blockSize: 28}"));
    for field in ["IPPool(p): spec.cidr: `10.1.0.0/16`", "IPPool(p): spec.blockSize: `28`"] {
        assert!(shown.contains(field), "{shown}");
    }
}

#[test]
fn ipams_own_objects_are_not_for_hands() {
    let cluster = Cluster::new();
    let block = documents("BlockAffinity a-10-0-0-0-26 {state: confirmed, node: a, cidr: 10.0.0.0/26}");
    let refused = "error: BlockAffinity(a-10-0-0-0-26): objects of this kind are written by IPAM alone\nexit 1";
    for line in [
        "create -f -",
        "apply -f -",
        "replace -f -",
        "delete -f -",
        "validate -f -",
    ] {
        cluster.check_with(line, &block, refused);
    }
    cluster.check(
        "delete ipamblock 10-0-0-0-26",
        "error: IPAMBlock(10-0-0-0-26): objects of this kind are written by IPAM alone\nexit 1",
    );
}

#[test]
fn namespaces_come_from_the_file_or_the_command_line() {
    let cluster = Cluster::new();
    let spec =
        "{orchestrator: k8s, node: a, pod: web, endpoint: eth0, interfaceName: cali0, ipNetworks: [10.0.0.1/32]}";
    let wep = documents(&format!(
        "WorkloadEndpoint a-k8s-web-eth0 {spec}\nWorkloadEndpoint own/a-k8s-web-eth0 {spec}"
    ));
    cluster.check_with(
        "create -f - -n mine",
        &wep,
        "Successfully created 2 'WorkloadEndpoint' resource(s)",
    );
    let expected = [
        "WorkloadEndpoint(mine/a-k8s-web-eth0)",
        "WorkloadEndpoint(own/a-k8s-web-eth0)",
    ];
    assert_eq!(cluster.keys(), expected);
    cluster.check(
        "delete wep a-k8s-web-eth0",
        "error: WorkloadEndpoint(default/a-k8s-web-eth0) does not exist\nexit 1",
    );
    cluster.check(
        "delete wep a-k8s-web-eth0 -n own",
        "Successfully deleted 1 'WorkloadEndpoint' resource(s)",
    );
    cluster.check_with("delete -f - -s", &wep, "Successfully deleted 0 resource(s)");
    assert_eq!(cluster.keys(), ["WorkloadEndpoint(mine/a-k8s-web-eth0)"]);
}

#[test]
fn folders_are_read_in_order_and_only_as_deep_as_asked() {
    let cluster = Cluster::new();
    cluster.file("all/b.yml", &documents("Node b"));
    cluster.file(
        "all/a.json",
        r#"{"apiVersion": "projectcalico.org/v3", "kind": "Node", "metadata": {"name": "a"}}"#,
    );
    cluster.file("all/README.md", "not a resource");
    cluster.file("all/deep/c.yaml", &documents("IPPool p {cidr: 10.0.0.0/16}"));
    cluster.check("create -f {dir}/all", "Successfully created 2 'Node' resource(s)");
    cluster.check("apply -f {dir}/all -R", "Successfully applied 3 resource(s)");
    cluster.file("empty/x.txt", "");
    cluster.check(
        "apply -f {dir}/empty",
        "error: no resources in {dir}/empty; --skip-empty allows that\nexit 1",
    );
    cluster.check("apply -f {dir}/empty --skip-empty", "No resources specified");
    cluster.check("validate -f {dir}/empty --skip-empty", "No resources specified");
}

#[test]
fn several_files_and_standard_input_are_one_input() {
    let cluster = Cluster::new();
    cluster.file("a.yaml", &documents("Node a"));
    cluster.check_with(
        "create -f {dir}/a.yaml -f -",
        &documents("Node b"),
        "Successfully created 2 'Node' resource(s)",
    );
    cluster.check_with(
        "delete -f - -f {dir}/a.yaml",
        &documents("Node b"),
        "Successfully deleted 2 'Node' resource(s)",
    );
}

#[test]
fn checking_needs_no_datastore_and_a_wrong_file_is_told_without_one() {
    let cluster = Cluster::unreachable();
    cluster.check_with(
        "validate -f -",
        &documents(POOL),
        "Successfully validated 1 'IPPool' resource(s)",
    );
    cluster.check_with("apply -f -", &documents(POOL), "error: no store listens\nexit 1");
    let wrong = cluster.run("apply -f -", &documents("IPPool p {cidr: x}"));
    assert!(
        wrong.starts_with("error: standard input, document 1 (IPPool p): spec.cidr: `x`"),
        "{wrong}"
    );
}

#[test]
fn deletions_are_checked_before_the_first() {
    let cluster = Cluster::with("Node a\nNode b");
    cluster.check(
        "delete node a x y",
        "error: Node(x) does not exist\nerror: Node(y) does not exist\nexit 1",
    );
    cluster.check(
        "delete node a x --skip-not-exists",
        "Successfully deleted 1 'Node' resource(s)",
    );
    cluster.check("delete node b b", "Successfully deleted 1 'Node' resource(s)");
    let usage = cluster.run("delete node", "");
    assert!(usage.ends_with("exit 2"), "{usage}");
    let usage = cluster.run("apply", "");
    assert!(usage.ends_with("exit 2"), "{usage}");
}

#[test]
fn what_failed_halfway_says_how_far_it_came() {
    let cluster = Cluster::with("Node a");
    let stale = cluster.run("get node a -o yaml", "");
    cluster.check_with(
        "apply -f -",
        &documents("Node a {bgp: {asNumber: 65001}}"),
        "Successfully applied 1 'Node' resource(s)",
    );
    let both = format!("{}---\n{stale}", documents("Node b"));
    cluster.check_with(
        "apply -f -",
        &both,
        "error: 1 of 2 resources were applied; then: Node(a) was changed by someone else\nexit 1",
    );
}

/// A pool from which node `a` has given out one address to a pod and, if `tunnel`, one to its tunnel.
fn used_pool(tunnel: bool) -> (Cluster, Ipam, Timestamp) {
    let cluster =
        Cluster::with("IPPool p {cidr: 10.0.0.0/16, ipipMode: Always}\nIPPool q {cidr: 10.1.0.0/16}\nNode a\nNode b");
    let ipam = Ipam::new(cluster.shared());
    let now = Timestamp::from_second(1_700_000_000).expect("a time");
    let request = |host: &str, handle: &str, pool: &str| AutoAssign {
        host: host.into(),
        handle: handle.into(),
        attributes: BTreeMap::from([("node".into(), host.into())]),
        ipv4: 1,
        pools_v4: vec![pool.into()],
        intended_use: AllowedUse::Workload,
        ..AutoAssign::default()
    };
    block_on(ipam.auto_assign(now, &request("a", "pod", "p"))).expect("the pool is empty");
    block_on(ipam.auto_assign(now, &request("b", "gone", "p"))).expect("the pool has room");
    block_on(ipam.release_handle(now, "gone")).expect("it is held");
    block_on(ipam.auto_assign(now, &request("a", "other", "q"))).expect("the pool is empty");
    if tunnel {
        let tunnel = Tunnel {
            kind: TunnelKind::Ipip,
            node: "a".into(),
            node_labels: BTreeMap::new(),
            current: None,
            pools: vec!["p".into()],
        };
        block_on(ipam.settle_tunnel(now, &tunnel)).expect("the pool has room");
    }
    (cluster, ipam, now)
}

#[test]
fn a_pool_in_use_is_not_deleted() {
    let (cluster, ipam, now) = used_pool(true);
    let before = cluster.keys();
    cluster.check(
        "delete ippool p",
        "error: IPPool(p): 2 of its addresses are in use; set spec.disabled: true, delete the pods that have them, then \
         delete the pool\nexit 1",
    );
    // Nothing of a request is done if a part of it cannot be.
    assert!(cluster.run("delete ippool q p", "").ends_with("exit 1"));
    assert_eq!(cluster.keys(), before);
    block_on(ipam.release_handle(now, "pod")).expect("it is held");
    cluster.check(
        "delete ippool p",
        "error: IPPool(p): 1 of its addresses are in use by nodes' tunnels; set spec.disabled: true, then the nodes give \
         them back\nexit 1",
    );
}

#[test]
fn a_pools_blocks_and_claims_go_with_it() {
    let (cluster, ipam, now) = used_pool(false);
    assert_eq!(
        cluster.keys().iter().filter(|key| key.contains("10-0-")).count(),
        4,
        "{:?}",
        cluster.keys()
    );
    block_on(ipam.release_handle(now, "pod")).expect("it is held");
    cluster.check("delete ippool p", "Successfully deleted 1 'IPPool' resource(s)");
    let left = cluster.keys();
    assert!(left.iter().all(|key| !key.contains("10-0-")), "{left:?}");
    assert_eq!(
        left.iter().filter(|key| key.contains("10-1-")).count(),
        2,
        "the other pool's stay: {left:?}"
    );
}

#[test]
fn a_pool_from_which_an_address_is_taken_meanwhile_goes_back_to_work() {
    let (cluster, ipam, now) = used_pool(false);
    block_on(ipam.release_handle(now, "pod")).expect("it is held");
    // Somebody allocates when the deletion has already made its first check: at the moment at which it disables the pool.
    let racing: datastore::SharedStore = Arc::new(common::Racing::new(cluster.store.clone()));
    let shown = cluster.run_on("delete ippool p", racing);
    assert!(
        shown.contains("of its addresses are in use") && shown.ends_with("exit 1"),
        "{shown}"
    );
    match cluster.resource(&Key::cluster(Kind::IPPool, "p")) {
        Some(Resource::IPPool(pool)) => assert!(!pool.spec.disabled),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_nodes_tunnel_address_and_empty_blocks_go_with_it() {
    let (cluster, ipam, now) = used_pool(true);
    cluster.check("delete node a b", "Successfully deleted 2 'Node' resource(s)");
    let left = cluster.keys();
    assert!(
        left.iter()
            .all(|key| !key.contains("tunnel") && !key.contains("BlockAffinity(b")),
        "{left:?}"
    );
    // Where pods have addresses the block stays theirs.
    assert_eq!(
        left.iter().filter(|key| key.starts_with("BlockAffinity(a")).count(),
        2,
        "{left:?}"
    );
    block_on(ipam.release_handle(now, "pod")).expect("it is held");
}
