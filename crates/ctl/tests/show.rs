//! `get`, `ipam show`, `version`: what is shown of what there is.

mod common;

use std::collections::BTreeMap;

use api::AllowedUse;
use common::{Cluster, block_on};
use ipam::{AssignIp, AutoAssign, Ipam};
use jiff::Timestamp;

const CLUSTER: &str = "
IPPool default-ipv4-ippool {cidr: 192.168.0.0/16, ipipMode: Always, natOutgoing: true, blockSize: 26}
IPPool small {cidr: 10.65.0.0/24, vxlanMode: CrossSubnet, disabled: true, disableBGPExport: true, nodeSelector: rack == '1'}
BGPConfiguration default {logSeverityScreen: Info, nodeToNodeMeshEnabled: false, asNumber: 64600}
BGPConfiguration node.a {listenPort: 1790}
BGPPeer all {peerIP: 10.0.0.1, asNumber: 65001}
BGPPeer by-label {peerSelector: has(rr), nodeSelector: \"!has(rr)\"}
BGPPeer of-one {node: a, peerIP: 10.0.0.2, asNumber: 65002}
FelixConfiguration default {}
Node a {bgp: {asNumber: 65010, ipv4Address: 10.211.55.7/24, ipv6Address: fd00::7/64}}
Node b {bgp: {ipv4Address: 10.211.55.8/24}}
Node c
WorkloadEndpoint default/a-k8s-web-eth0 {orchestrator: k8s, node: a, pod: web, endpoint: eth0, containerID: c1, interfaceName: cali0123456789a, ipNetworks: [192.168.36.65/32, \"fd00:1::1/128\"], profiles: [kns.default, ksa.default.default]}
WorkloadEndpoint other/a-k8s-db-eth0 {orchestrator: k8s, node: a, pod: db, endpoint: eth0, interfaceName: cali0123456789b, ipNetworks: [192.168.36.66/32], ipNATs: [{internalIP: 192.168.36.66, externalIP: 203.0.113.7}]}
WorkloadEndpoint other/b-vms-42-eth0 {orchestrator: vms, node: b, workload: \"42\", endpoint: eth0, interfaceName: cali0123456789c, ipNetworks: [192.168.36.67/32]}
Profile kns.default {labelsToApply: {a: x, b: y}}
ClusterInformation default {clusterType: \"bgp,margay\", calicoVersion: margay-0.1.0, datastoreReady: true}
IPAMConfiguration default {strictAffinity: true, autoAllocateBlocks: true, maxBlocksPerHost: 4}
";

#[test]
fn every_kind_has_upstreams_columns() {
    let cluster = Cluster::with(CLUSTER);
    cluster.check(
        "get ippool",
        "
NAME                  CIDR             SELECTOR
default-ipv4-ippool   192.168.0.0/16   all()
small                 10.65.0.0/24     rack == '1'",
    );
    cluster.check(
        "get ipp -o wide",
        "
NAME                  CIDR             NAT     IPIPMODE   VXLANMODE     DISABLED   DISABLEBGPEXPORT   SELECTOR      STATUS
default-ipv4-ippool   192.168.0.0/16   true    Always     Never         false      false              all()         ok
small                 10.65.0.0/24     false   Never      CrossSubnet   true       true               rack == '1'   ok",
    );
    cluster.check(
        "get bgpconfig",
        "
NAME      LOGSEVERITY   MESHENABLED   ASNUMBER
default   Info          false         64600
node.a                  -             -",
    );
    cluster.check(
        "get bgppeers",
        "
NAME       PEERIP     NODE       ASN
all        10.0.0.1   (global)   65001
by-label   has(rr)    !has(rr)
of-one     10.0.0.2   a          65002",
    );
    cluster.check("get felixconfig", "NAME\ndefault");
    cluster.check("get nodes", "NAME\na\nb\nc");
    cluster.check(
        "get node -owide",
        "
NAME   ASN       IPV4             IPV6
a      65010     10.211.55.7/24   fd00::7/64
b      (64600)   10.211.55.8/24
c      (64600)",
    );
    cluster.check("get profile", "NAME\nkns.default");
    cluster.check(
        "get profile -o wide",
        "NAME          LABELS    STATUS\nkns.default   a=x,b=y   ok",
    );
    cluster.check(
        "get clusterinfo",
        "
NAME      VERSION        CLUSTERTYPE   READY
default   margay-0.1.0   bgp,margay    true",
    );
    cluster.check(
        "get ipamconfig",
        "
NAME      STRICTAFFINITY   AUTOALLOCATEBLOCKS   MAXBLOCKSPERHOST
default   true             true                 4",
    );
}

#[test]
fn endpoints_are_shown_by_namespace() {
    let cluster = Cluster::with(CLUSTER);
    let ps = "
WORKLOAD   NODE   NETWORKS                         INTERFACE
web        a      192.168.36.65/32,fd00:1::1/128   cali0123456789a";
    for line in [
        "get wep",
        "get workloadEndpoint -n default",
        "get weps --namespace=default -o ps",
    ] {
        cluster.check(line, ps);
    }
    let wide = "
NAMESPACE   NAME             WORKLOAD   NODE   NETWORKS                         INTERFACE         PROFILES                          NATS
default     a-k8s-web-eth0   web        a      192.168.36.65/32,fd00:1::1/128   cali0123456789a   kns.default,ksa.default.default
other       a-k8s-db-eth0    db         a      192.168.36.66/32                 cali0123456789b                                     203.0.113.7
other       b-vms-42-eth0    42         b      192.168.36.67/32                 cali0123456789c";
    for line in [
        "get workloadEndpoint -o wide -A",
        "get wep -a --output=wide",
        "get wep -o wide --all-namespaces",
    ] {
        cluster.check(line, wide);
    }
    cluster.check("get wep -n nowhere", "WORKLOAD   NODE   NETWORKS   INTERFACE");
    cluster.check(
        "get wep -n other b-vms-42-eth0",
        "
WORKLOAD   NODE   NETWORKS           INTERFACE
42         b      192.168.36.67/32   cali0123456789c",
    );
    cluster.check(
        "get wep b-vms-42-eth0",
        "error: WorkloadEndpoint(default/b-vms-42-eth0) does not exist\nexit 1",
    );
    cluster.check("get wep -A b-vms-42-eth0 -o name", "WorkloadEndpoint/b-vms-42-eth0");
    cluster.check(
        "get wep -A nobody",
        "error: WorkloadEndpoint(nobody) does not exist\nexit 1",
    );
}

#[test]
fn tables_are_padded_as_upstream_pads_them() {
    let cluster = Cluster::with("IPPool p {cidr: 10.0.0.0/16}");
    assert_eq!(
        cluster.run("get pool", ""),
        "NAME   CIDR          SELECTOR   \np      10.0.0.0/16   all()      \n\n"
    );
}

#[test]
fn one_name_is_one_document_and_everything_else_a_list() {
    let cluster = Cluster::with("Profile kns.a {labelsToApply: {x: 'yes'}}\nProfile kns.b");
    let one = "
apiVersion: projectcalico.org/v3
kind: Profile
metadata:
  name: kns.a
  resourceVersion: \"1\"
spec:
  labelsToApply:
    x: \"yes\"";
    cluster.check("get profile kns.a -o yaml", one);
    let exported = one.replace("\n  resourceVersion: \"1\"", "");
    cluster.check("get profile kns.a -o yaml --export", &exported);
    let list = "
apiVersion: projectcalico.org/v3
items:
- apiVersion: projectcalico.org/v3
  kind: Profile
  metadata:
    name: kns.a
  spec:
    labelsToApply:
      x: \"yes\"
- apiVersion: projectcalico.org/v3
  kind: Profile
  metadata:
    name: kns.b
  spec: {}
kind: ProfileList
metadata: {}";
    cluster.check("get profile -o yaml --export", list);
    cluster.check("get profile kns.a kns.b -o yaml --export", list);
    // A list of one is a list: what comes out does not depend on how many there happen to be.
    let lone = Cluster::with("Profile kns.b");
    lone.check(
        "get profile -o json --export",
        r#"{
  "apiVersion": "projectcalico.org/v3",
  "items": [
    {
      "apiVersion": "projectcalico.org/v3",
      "kind": "Profile",
      "metadata": {
        "name": "kns.b"
      },
      "spec": {}
    }
  ],
  "kind": "ProfileList",
  "metadata": {}
}"#,
    );
    lone.check(
        "get profile kns.b -o json --export",
        r#"{
  "apiVersion": "projectcalico.org/v3",
  "kind": "Profile",
  "metadata": {
    "name": "kns.b"
  },
  "spec": {}
}"#,
    );
}

#[test]
fn what_is_shown_can_be_applied_again() {
    let cluster = Cluster::with(CLUSTER);
    for kind in [
        "ippool",
        "bgpconfig",
        "bgppeer",
        "felixconfig",
        "node",
        "profile",
        "clusterinfo",
        "ipamconfig",
    ] {
        for format in ["yaml", "json"] {
            let shown = cluster.run(&format!("get {kind} -o {format}"), "");
            let answer = cluster.run("apply -f -", &shown);
            assert!(
                answer.starts_with("Successfully applied"),
                "{kind} {format}: {answer}\n{shown}"
            );
        }
    }
    let shown = cluster.run("get wep -A -o yaml", "");
    cluster.check_with(
        "replace -f -",
        &shown,
        "Successfully replaced 3 'WorkloadEndpoint' resource(s)",
    );
}

#[test]
fn names_are_for_scripts() {
    let cluster = Cluster::with(CLUSTER);
    cluster.check("get nodes -o name", "Node/a\nNode/b\nNode/c");
    cluster.check("get node b -o name", "Node/b");
}

#[test]
fn what_is_missing_is_told_after_what_is_there() {
    let cluster = Cluster::with(CLUSTER);
    cluster.check(
        "get node x a y -o name",
        "Node/a\nerror: Node(x) does not exist\nerror: Node(y) does not exist\nexit 1",
    );
    cluster.check("get node x -o yaml", "error: Node(x) does not exist\nexit 1");
}

#[test]
fn a_file_names_what_to_get() {
    let cluster = Cluster::with(CLUSTER);
    cluster.file("one.yaml", &common::documents("Node b {}"));
    cluster.file(
        "two.yaml",
        &common::documents("Node b {}\nIPPool small {cidr: 1.0.0.0/16}"),
    );
    cluster.check("get -f {dir}/one.yaml -o name", "Node/b");
    assert!(
        cluster
            .run("get -f {dir}/one.yaml -o yaml", "")
            .starts_with("apiVersion: projectcalico.org/v3\nkind: Node")
    );
    assert!(
        cluster
            .run("get -f {dir}/two.yaml -o yaml", "")
            .contains("\nkind: List\n")
    );
    cluster.check(
        "get --filename={dir}/two.yaml",
        "
NAME    CIDR           SELECTOR
small   10.65.0.0/24   rack == '1'

NAME
b",
    );
}

#[test]
fn a_wrong_word_is_explained() {
    let cluster = Cluster::unreachable();
    cluster.check(
        "get ipool",
        "error: `ipool` is no kind of resource. Did you mean IPPool? There are IPPool, BGPConfiguration, BGPPeer, \
         FelixConfiguration, Node, WorkloadEndpoint, Profile, ClusterInformation, IPAMBlock, BlockAffinity, IPAMHandle, \
         IPAMConfiguration, NetworkPolicy, GlobalNetworkPolicy, StagedNetworkPolicy, StagedGlobalNetworkPolicy, \
         StagedKubernetesNetworkPolicy, Tier, NetworkSet, GlobalNetworkSet, HostEndpoint, KubernetesEndpointSlice, \
         KubeControllersConfiguration, IPReservation, CalicoNodeStatus, BGPFilter\nexit 2",
    );
    cluster.check(
        "get",
        "error: name a kind: ippools, bgpconfigurations, bgppeers, felixconfigurations, nodes, workloadendpoints, profiles, \
         clusterinformations, ipamblocks, blockaffinities, ipamhandles, ipamconfigurations, networkpolicies, \
         globalnetworkpolicies, stagednetworkpolicies, stagedglobalnetworkpolicies, stagedkubernetesnetworkpolicies, tiers, \
         networksets, globalnetworksets, hostendpoints, kubernetesendpointslices, \
         kubecontrollersconfigurations, ipreservations, caliconodestatuses, bgpfilters\nexit 2",
    );
    cluster.check(
        "get nodes -o xml",
        "error: invalid value 'xml' for '--output <OUTPUT>'\nexit 2",
    );
    cluster.check("got nodes", "error: unrecognized subcommand 'got'\nexit 2");
    cluster.check("get nodes", "error: no store listens\nexit 1");
}

#[test]
fn versions_are_this_programs_and_the_clusters() {
    let own = concat!("Client Version:    v", env!("CARGO_PKG_VERSION"));
    let cluster = Cluster::with(CLUSTER);
    let both = format!("{own}\nCluster Version:   margay-0.1.0\nCluster Type:      bgp,margay");
    for line in [
        "version",
        "--allow-version-mismatch version",
        "version --allow-version-mismatch",
    ] {
        cluster.check(line, &both);
    }
    cluster.check("version --client", own);
    let unknown = "unknown: no agent has set up the cluster yet";
    Cluster::new().check(
        "version",
        &format!("{own}\nCluster Version:   {unknown}\nCluster Type:      {unknown}"),
    );
    Cluster::unreachable().check("version --client", own);
    Cluster::unreachable().check("version", &format!("{own}\nerror: no store listens\nexit 1"));
}

/// Node `a` holds two addresses of its own block, node `b` one in `a`'s.
fn allocated() -> Cluster {
    let cluster = Cluster::with(
        "
IPPool p {cidr: 10.65.0.0/24, blockSize: 28}
IPPool six {cidr: \"fd00:65::/64\"}
Node a
Node b",
    );
    let ipam = Ipam::new(cluster.shared());
    let now = Timestamp::from_second(1_700_000_000).expect("a time");
    let assign = |ip: &str, host: &str, handle: &str, attributes: &[(&str, &str)]| {
        let attributes = attributes
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()));
        let request = AssignIp {
            ip: ip.parse().expect("an address"),
            host: host.into(),
            handle: handle.into(),
            attributes: attributes.collect(),
            intended_use: AllowedUse::Workload,
        };
        block_on(ipam.assign_ip(now, &request)).expect("it is free");
    };
    assign(
        "10.65.0.17",
        "a",
        "k8s-pod-network.c1",
        &[("node", "a"), ("namespace", "default"), ("pod", "web")],
    );
    assign(
        "10.65.0.18",
        "a",
        "ipip-tunnel-addr-a",
        &[("node", "a"), ("type", "ipipTunnelAddress")],
    );
    assign(
        "10.65.0.19",
        "b",
        "k8s-pod-network.c2",
        &[("node", "b"), ("namespace", "other"), ("pod", "db")],
    );
    assign("10.65.0.20", "a", "plain", &[]);
    let request = AutoAssign {
        host: "a".into(),
        handle: "six".into(),
        attributes: BTreeMap::from([("node".into(), "a".into())]),
        ipv6: 1,
        ..AutoAssign::default()
    };
    block_on(ipam.auto_assign(now, &request)).expect("the pool is empty");
    cluster
}

#[test]
fn ipam_show_tells_how_full_pools_and_blocks_are() {
    let cluster = allocated();
    cluster.check(
        "ipam show",
        "
+----------+--------------+------------+------------+-------------------+
| GROUPING |     CIDR     | IPS TOTAL  | IPS IN USE |     IPS FREE      |
+----------+--------------+------------+------------+-------------------+
| IP Pool  | 10.65.0.0/24 |        256 | 4 (2%)     | 252 (98%)         |
| IP Pool  | fd00:65::/64 | 1.8447e+19 | 1 (0%)     | 1.8447e+19 (100%) |
+----------+--------------+------------+------------+-------------------+",
    );
    let blocks = cluster.run("ipam show --show-blocks", "");
    assert!(blocks.contains("| Block    | 10.65.0.16/28 "), "{blocks}");
    assert!(
        blocks.contains("|         16 | 4 (25%)    | 12 (75%)          |"),
        "{blocks}"
    );
}

#[test]
fn ipam_show_tells_who_holds_an_address() {
    let cluster = allocated();
    cluster.check(
        "ipam show --ip=10.65.0.17",
        "
IP 10.65.0.17 is in use
Attributes:
  handle: k8s-pod-network.c1
  namespace: default
  node: a
  pod: web",
    );
    cluster.check(
        "ipam show --ip 10.65.0.20",
        "IP 10.65.0.20 is in use\nAttributes:\n  handle: plain",
    );
    cluster.check("ipam show --ip 10.65.0.21", "10.65.0.21 is not assigned");
    cluster.check("ipam show --ip 8.8.8.8", "8.8.8.8 is not assigned");
    let wrong = cluster.run("ipam show --ip 10.65.0", "");
    assert!(
        wrong.starts_with("error: invalid value '10.65.0' for '--ip") && wrong.ends_with("exit 2"),
        "{wrong}"
    );
}

#[test]
fn an_address_that_rests_is_not_in_use() {
    let cluster = allocated();
    cluster.put("IPAMConfiguration default {ipCooldownSeconds: 300}");
    let now = Timestamp::from_second(1_700_000_100).expect("a time");
    let ipam = Ipam::new(cluster.shared());
    block_on(ipam.release_handle(now, "plain")).expect("it is held");
    cluster.check(
        "ipam show --ip 10.65.0.20",
        "10.65.0.20 is not assigned: it was released and rests for ipCooldownSeconds",
    );
}

#[test]
fn ipam_show_tells_what_is_borrowed() {
    allocated().check(
        "ipam show --show-borrowed",
        "
+------------+----------------+---------------+-------------+------+--------------+
|     IP     | BORROWING-NODE |     BLOCK     | BLOCK OWNER | TYPE | ALLOCATED-TO |
+------------+----------------+---------------+-------------+------+--------------+
| 10.65.0.19 | b              | 10.65.0.16/28 | a           | pod  | other/db     |
+------------+----------------+---------------+-------------+------+--------------+",
    );
}

#[test]
fn ipam_show_tells_the_settings() {
    let defaults = "
+--------------------+-------+
|      PROPERTY      | VALUE |
+--------------------+-------+
| StrictAffinity     | false |
| AutoAllocateBlocks | true  |
| MaxBlocksPerHost   |     0 |
| IPCooldownSeconds  |     0 |
+--------------------+-------+";
    Cluster::new().check("ipam show --show-configuration", defaults);
    let set = Cluster::with(
        "IPAMConfiguration default {strictAffinity: true, autoAllocateBlocks: true, maxBlocksPerHost: 4}",
    );
    set.check(
        "ipam show --show-configuration",
        &defaults
            .replace("Affinity     | false", "Affinity     | true ")
            .replace("    0 |\n| IPC", "    4 |\n| IPC"),
    );
}

#[test]
fn ipams_own_objects_can_be_looked_at() {
    let cluster = allocated();
    let blocks = cluster.run("get ipamblocks", "");
    assert!(
        blocks.contains("10-65-0-16-28") && blocks.contains("host:a") && blocks.contains("4/16"),
        "{blocks}"
    );
    let affinities = cluster.run("get blockaffinity", "");
    assert!(affinities.contains("a      confirmed"), "{affinities}");
    let handles = cluster.run("get ipamhandle plain", "");
    assert!(handles.contains("10.65.0.16/28:1"), "{handles}");
}

#[test]
fn counts_have_five_digits() {
    for (count, shown) in [
        (0, "0"),
        (99_999, "99999"),
        (65_536, "65536"),
        (100_000, "1e+05"),
        (131_072, "1.3107e+05"),
        (16_777_216, "1.6777e+07"),
        (1 << 80, "1.2089e+24"),
    ] {
        assert_eq!(ctl::output::five_digits(count), shown);
    }
}
