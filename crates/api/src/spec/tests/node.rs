use super::*;
use crate::Node;

const KIND: Kind = Kind::Node;

#[test]
fn all_fields_survive() {
    survives(
        KIND,
        "n1",
        "{bgp: {asNumber: 64512, ipv4Address: 10.211.55.7/24, ipv6Address: 'fd00::7/64', ipv4IPIPTunnelAddr: 192.168.36.64, \
         routeReflectorClusterID: 244.0.0.1}, ipv4VXLANTunnelAddr: 192.168.36.65, vxlanTunnelMACAddr: '66:00:00:00:00:01', \
         ipv6VXLANTunnelAddr: 'fd00::65', vxlanTunnelMACAddrV6: 66-00-00-00-00-02, orchRefs: [{nodeName: n1, orchestrator: k8s}], \
         wireguard: {interfaceIPv4Address: 192.168.36.66, interfaceIPv6Address: 'fd00::66'}, \
         addresses: [{address: 10.211.55.7/24, type: CalicoNodeIP}, {address: 'fd00::7'}], \
         interfaces: [{name: eth0, addresses: [10.211.55.7]}]}",
    );
}

#[test]
fn a_bare_address_is_a_whole_prefix_and_an_empty_one_is_none() {
    let node = Node::try_from(good(
        KIND,
        "n1",
        "{bgp: {ipv4Address: 10.0.0.1, ipv6Address: '', ipv4IPIPTunnelAddr: ''}}",
    ))
    .unwrap();
    let bgp = node.spec.bgp.unwrap();
    assert_eq!(
        (bgp.ipv4_address, bgp.ipv6_address, bgp.ipv4_ipip_tunnel_addr),
        (Some("10.0.0.1/32".parse().unwrap()), None, None)
    );
}

#[test]
fn what_is_wrong_with_a_node() {
    check(KIND, "n1", "{bgp: {}}", &["spec.bgp: must be absent rather than empty"]);
    check(
        KIND,
        "n1",
        "{bgp: {ipv4Address: 'fd00::1', ipv6Address: 10.0.0.1, routeReflectorClusterID: 1, asNumber: '64512.1.1'}, vxlanTunnelMACAddr: x, \
         addresses: [{address: x, type: Home}], interfaces: [{name: eth0, addresses: [y]}], orchRefs: [{nodeName: n}]}",
        &[
            "spec.bgp.asNumber: `64512.1.1` must be an AS number: 0 to 4294967295, or two numbers of 16 bits with a dot",
            "spec.bgp.ipv4Address: `fd00::1` must be an IPv4 address, with or without a prefix length: 10.0.0.1/24",
            "spec.bgp.ipv6Address: `10.0.0.1` must be an IPv6 address, with or without a prefix length: fd00::1/64",
            "spec.bgp.routeReflectorClusterID: `1` must be text: put it in quotes",
            "spec.orchRefs[0].orchestrator: is required",
            "spec.vxlanTunnelMACAddr: `x` must be a MAC address like ee:ee:ee:ee:ee:ee",
            "spec.addresses[0].address: `x` must be an address, with or without a prefix length",
            "spec.addresses[0].type: `Home` must be CalicoNodeIP, InternalIP or ExternalIP",
            "spec.interfaces[0].addresses[0]: `y` must be an address, with or without a prefix length",
        ],
    );
}

#[test]
fn keys_in_the_status_are_checked() {
    let check = |key: &str, wanted: usize| {
        let text = format!(
            "{}status: {{wireguardPublicKey: '{key}', podCIDRs: [10.0.0.0/24]}}\n",
            document(KIND, "n1", "{}")
        );
        assert_eq!(read("-", &text).err().unwrap_or_default().len(), wanted, "{key}");
    };
    check("", 0);
    check("jlkVyQYooZYzI2wFfNhSZez5eWh44yfq1wKVjLvSXgY=", 0);
    check("jlkVyQYooZYzI2wFfNhSZez5eWh44yfq1wKVjLvSXgY", 1);
}

#[test]
fn what_a_node_is_asked_to_say() {
    let kind = Kind::CalicoNodeStatus;
    survives(
        kind,
        "a",
        "{node: n1, classes: [Agent, BGP, Routes], updatePeriodSeconds: 30}",
    );
    survives(kind, "a", "{node: n1, classes: [BGP], updatePeriodSeconds: 0}");
    check(
        kind,
        "a",
        "{updatePeriodSeconds: 86401}",
        &[
            "spec.node: is required: the node that is to say how it is",
            "spec.classes: is required: what the node is to say, of Agent, BGP, Routes",
            "spec.updatePeriodSeconds: `86401` must be from 0 to 86400",
        ],
    );
    check(
        kind,
        "a",
        "{node: n1, classes: [BGP, BGP]}",
        &["spec.classes: `BGP` must be there once"],
    );
}
