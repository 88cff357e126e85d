use super::*;
use crate::{BgpConfiguration, BgpPeer, Community};

#[test]
fn all_fields_of_a_configuration_survive() {
    survives(
        Kind::BGPConfiguration,
        "default",
        "{logSeverityScreen: Info, nodeToNodeMeshEnabled: true, asNumber: 64512, serviceLoadBalancerIPs: [{cidr: 10.0.0.0/24}], \
         serviceExternalIPs: [{cidr: 10.1.0.0/24}], serviceClusterIPs: [{cidr: 'fd00::/108'}], serviceLoadBalancerAggregation: Disabled, \
         communities: [{name: blue, value: '64512:1'}], prefixAdvertisements: [{cidr: 10.0.0.0/16, communities: [blue, '1:2:3']}], \
         listenPort: 1790, bindMode: NodeIP, ignoredInterfaces: [eth*], nodeMeshPassword: {secretKeyRef: {name: s, key: k, optional: true}}, \
         nodeMeshMaxRestartTime: 2m0s, localWorkloadPeeringIPV4: 169.254.1.2, localWorkloadPeeringIPV6: 'fe80::2', \
         programClusterRoutes: EnabledNoEncapOnly, ipv4NormalRoutePriority: 1024, ipv6NormalRoutePriority: 1024}",
    );
}

#[test]
fn what_only_the_default_configuration_may_say() {
    let kind = Kind::BGPConfiguration;
    check(kind, "node.n1", "{listenPort: 1790, logSeverityScreen: debug}", &[]);
    check(
        kind,
        "node.n1",
        "{asNumber: '1.1', nodeToNodeMeshEnabled: false}",
        &[
            "spec.nodeToNodeMeshEnabled: must be absent: only the BGPConfiguration `default` may set it",
            "spec.asNumber: must be absent: only the BGPConfiguration `default` may set it",
        ],
    );
    check(
        kind,
        "other",
        "{}",
        &["metadata.name: `other` must be `default`, or `node.` and the name of a node"],
    );
}

#[test]
fn what_is_wrong_with_a_configuration() {
    let kind = Kind::BGPConfiguration;
    check(
        kind,
        "default",
        "{asNumber: 4294967296}",
        &["spec.asNumber: `4294967296` must be an AS number: 0 to 4294967295, or two numbers of 16 bits with a dot"],
    );
    check(
        kind,
        "default",
        "{listenPort: 0, ignoredInterfaces: ['*', 'e th']}",
        &[
            "spec.listenPort: `0` must be from 1 to 65535",
            "spec.ignoredInterfaces[0]: `*` must be an interface, where `*` stands for some of it but not for all",
            "spec.ignoredInterfaces[1]: `e th` must be an interface, where `*` stands for some of it but not for all",
        ],
    );
    check(
        kind,
        "default",
        "{communities: [{name: blue, value: '1:65536'}]}",
        &[
            "spec.communities[0].value: `1:65536` must be a community: aa:nn of 16 bits each or aa:nn:mm of 32 bits each",
            "spec.communities: must be used by prefixAdvertisements",
        ],
    );
    check(
        kind,
        "default",
        "{prefixAdvertisements: [{cidr: 10.0.0.1/16, communities: [red]}, {cidr: x, communities: []}]}",
        &["spec.prefixAdvertisements[1].cidr: `x` must be an address range like 10.0.0.0/16 or fd00::/64"],
    );
    check(
        kind,
        "default",
        "{prefixAdvertisements: [{cidr: 10.0.0.1/16, communities: [red]}, {cidr: 10.0.0.0/8}]}",
        &[
            "spec.prefixAdvertisements[0].cidr: `10.0.0.1/16` must have no bits behind the prefix length; did you mean 10.0.0.0/16?",
            "spec.prefixAdvertisements[0].communities[0]: `red` must be the name of one of spec.communities, aa:nn or aa:nn:mm",
            "spec.prefixAdvertisements[1].communities: is required",
        ],
    );
    check(
        kind,
        "default",
        "{nodeToNodeMeshEnabled: false, nodeMeshPassword: {secretKeyRef: {key: k}}, nodeMeshMaxRestartTime: 1s}",
        &[
            "spec.nodeMeshPassword: must be absent while nodeToNodeMeshEnabled is false",
            "spec.nodeMeshMaxRestartTime: must be absent while nodeToNodeMeshEnabled is false",
        ],
    );
}

#[test]
fn communities_have_names() {
    let spec = "{communities: [{name: blue, value: '64512:1'}], prefixAdvertisements: [{cidr: 10.0.0.0/16, communities: [blue, '1:2:3']}]}";
    let configuration = BgpConfiguration::try_from(good(Kind::BGPConfiguration, "default", spec)).unwrap();
    let advertisement = &configuration.spec.prefix_advertisements[0];
    assert_eq!(
        configuration.spec.communities_of(advertisement),
        [Community::Standard(64512, 1), Community::Large(1, 2, 3)]
    );
}

#[test]
fn all_fields_of_a_peer_survive() {
    survives(
        Kind::BGPPeer,
        "a",
        "{nodeSelector: has(a), peerIP: '10.0.0.1:1790', asNumber: 65001, localASNumber: 65002, nextHopMode: Self, password: {secretKeyRef: \
         {name: s, key: k}}, sourceAddress: None, maxRestartTime: 30s, keepaliveTime: 10s, numAllowedLocalASNumbers: 1, ttlSecurity: 1, \
         reachableBy: 10.0.0.254, filters: [f], reversePeering: Manual}",
    );
    survives(
        Kind::BGPPeer,
        "a",
        "{node: n1, localWorkloadSelector: has(a), asNumber: 65001, keepOriginalNextHop: true}",
    );
}

#[test]
fn what_is_wrong_with_a_peer() {
    let kind = Kind::BGPPeer;
    check(kind, "a", "{}", &[]);
    check(
        kind,
        "a",
        "{node: n, nodeSelector: all()}",
        &["spec.node: `n` must be absent with nodeSelector"],
    );
    check(
        kind,
        "a",
        "{peerIP: 10.0.0.1, asNumber: 1, peerSelector: all()}",
        &[
            "spec.peerIP: `10.0.0.1` must be absent with peerSelector",
            "spec.asNumber: `1` must be absent with peerSelector: the nodes' is used",
        ],
    );
    check(
        kind,
        "a",
        "{localWorkloadSelector: all(), peerSelector: all(), peerIP: '::1'}",
        &[
            "spec.peerIP: `::1` must be absent with peerSelector",
            "spec.peerIP: `::1` must be absent with localWorkloadSelector",
            "spec.peerSelector: `all()` must be absent with localWorkloadSelector",
            "spec.asNumber: is required with localWorkloadSelector",
        ],
    );
    for address in ["10.0.0.1:0", "10.0.0.1:65536", "10.0.0", "host", "'[::1]'", "'[::1]:0'"] {
        let value = address.trim_matches('\'');
        check(
            kind,
            "a",
            &format!("{{peerIP: {address}}}"),
            &[&format!(
                "spec.peerIP: `{value}` must be an address, `<IPv4>:<port>` or `[<IPv6>]:<port>`"
            )],
        );
    }
    check(
        kind,
        "a",
        "{peerIP: 10.0.0.1, reachableBy: '::1'}",
        &["spec.reachableBy: `::1` must be of the same family as peerIP"],
    );
    check(
        kind,
        "a",
        "{reachableBy: 10.0.0.1}",
        &["spec.reachableBy: `10.0.0.1` must be absent without peerIP"],
    );
    check(
        kind,
        "a",
        "{keepOriginalNextHop: true, nextHopMode: Auto}",
        &["spec.keepOriginalNextHop: `true` must be absent with nextHopMode, which replaces it"],
    );
    check(
        kind,
        "a",
        "{nextHopMode: Slef, maxRestartTime: 30}",
        &[
            "spec.maxRestartTime: `30` must be text: put it in quotes",
            "spec.nextHopMode: `Slef` must be one of Auto, Self, Keep",
        ],
    );
}

#[test]
fn a_peer_may_have_a_port() {
    for (text, address, port) in [
        ("10.0.0.1", "10.0.0.1", None),
        ("10.0.0.1:179", "10.0.0.1", Some(179)),
        ("fd00::1", "fd00::1", None),
        ("[fd00::1]:1790", "fd00::1", Some(1790)),
    ] {
        let peer = BgpPeer::try_from(good(Kind::BGPPeer, "a", &format!("{{peerIP: '{text}'}}"))).unwrap();
        assert_eq!(peer.spec.peer_address(), Some((address.parse().unwrap(), port)));
    }
}

#[test]
fn filters() {
    let kind = Kind::BGPFilter;
    survives(
        kind,
        "a",
        "{exportV4: [{action: Accept, cidr: 10.0.0.0/16, matchOperator: In, prefixLength: {min: 24, max: 26}, peerType: eBGP, \
         source: RemotePeers, interface: 'eth*', communities: {values: ['65000:1']}, asPathPrefix: [65001], priority: 100, \
         operations: [{addCommunity: {value: '65000:1:2'}}, {prependASPath: {prefix: [65001, 65002]}}, {setPriority: {value: 5}}]}, \
         {action: Reject}], importV6: [{action: Reject, cidr: 'fd00::/8', matchOperator: NotIn}]}",
    );
    survives(kind, "a", "{}");
    check(
        kind,
        "a",
        "{exportV4: [{action: Accept, cidr: 'fd00::/8', matchOperator: In}, {action: Reject, cidr: 10.0.0.0/8, operations: \
         [{setPriority: {value: 5}}]}, {action: Accept, matchOperator: In, interface: 'a b', communities: {values: []}}], \
         importV4: [{action: Accept, operations: [{}, {setPriority: {value: 0}}, {addCommunity: {value: x}}, {prependASPath: {}}]}]}",
        &[
            "spec.exportV4[0].cidr: `fd00::/8` must be of the family of its list",
            "spec.exportV4[1].matchOperator: is required with cidr: Equal, NotEqual, In or NotIn",
            "spec.exportV4[1].operations: `1` must be absent with action Reject",
            "spec.exportV4[2].matchOperator: `In` must be absent without cidr",
            "spec.exportV4[2].interface: `a b` must be the name of a device, at most 15 of letters, digits, `_`, `.`, `-` and `*`",
            "spec.exportV4[2].communities.values: `` must be exactly one",
            "spec.importV4[0].operations[0]: must be exactly one of addCommunity, prependASPath, setPriority",
            "spec.importV4[0].operations[1].setPriority.value: `0` must be from 1 to 2147483647",
            "spec.importV4[0].operations[2].addCommunity.value: `x` must be a community: aa:nn of 16 bits each or aa:nn:mm of 32 \
             bits each",
            "spec.importV4[0].operations[3].prependASPath.prefix: is required: one to ten ASes",
        ],
    );
    check(
        kind,
        "a",
        "{exportV4: [{cidr: 10.0.0.0/8, matchOperator: Within}]}",
        &[
            "spec.exportV4[0].matchOperator: `Within` must be one of Equal, NotEqual, In, NotIn",
            "spec.exportV4[0].action: is required",
        ],
    );
}
