use super::*;
use crate::{Protocol, WorkloadEndpoint};

const KIND: Kind = Kind::WorkloadEndpoint;
const NAME: &str = "k8s--125--node1-k8s-cni--0-eth0";
const IDS: &str = "orchestrator: k8s, node: k8s-125-node1, pod: cni-0, endpoint: eth0, interfaceName: cali12345678901";

#[test]
fn all_fields_survive() {
    survives(
        KIND,
        NAME,
        &format!(
            "{{{IDS}, workload: w, containerID: c0ffee, serviceAccountName: default, ipNetworks: [192.168.36.73/32, 'fd00::73/128'], \
             ipNATs: [{{internalIP: 192.168.36.73, externalIP: 10.0.0.1}}], ipv4Gateway: 169.254.1.1, ipv6Gateway: 'fe80::1', \
             profiles: [kns.default, ksa.default.default], mac: 'ee:ee:ee:ee:ee:ee', ports: [{{name: http, protocol: TCP, port: 80, hostPort: 8080, hostIP: 10.0.0.1}}], \
             allowSpoofedSourcePrefixes: [10.0.0.0/8], qosControls: {{ingressBandwidth: 1000000, ingressBurst: 2000000, ingressPeakrate: 3000000, \
             ingressMinburst: 1500, egressBandwidth: 1000, egressBurst: 1000, egressPeakrate: 1010, egressMinburst: 1000, ingressPacketRate: 1, \
             ingressPacketBurst: 5, egressPacketRate: 10000, egressPacketBurst: 10000, ingressMaxConnections: 1, egressMaxConnections: 4294967295, dscp: 46}}}}"
        ),
    );
}

#[test]
fn upstreams_empty_values_are_none() {
    let spec = format!(
        "{{{IDS}, ipNetworks: [10.0.0.1], ipv4Gateway: '', ports: [{{name: a, protocol: udp, port: 1, hostPort: 0, hostIP: ''}}]}}"
    );
    let wep = WorkloadEndpoint::try_from(good(KIND, NAME, &spec)).unwrap().spec;
    assert_eq!(wep.ip_networks, ["10.0.0.1/32".parse().unwrap()]);
    assert_eq!(
        (wep.ipv4_gateway, wep.ports[0].host_port, wep.ports[0].host_ip),
        (None, None, None)
    );
    assert_eq!(wep.ports[0].protocol, Protocol::Name("UDP".to_owned()));
}

#[test]
fn the_name_follows_from_the_spec() {
    check(KIND, NAME, &format!("{{{IDS}}}"), &[]);
    check(
        KIND,
        "other",
        &format!("{{{IDS}}}"),
        &["metadata.name: `other` must be k8s--125--node1-k8s-cni--0-eth0, which follows from the spec"],
    );
    check(
        KIND,
        "a",
        "{orchestrator: k8s, node: n, interfaceName: cali1, endpoint: eth0}",
        &["spec.pod: is required: it is part of the name"],
    );
    check(
        KIND,
        "a",
        "{orchestrator: cni, node: n, containerID: a_b, interfaceName: cali1, endpoint: eth0-}",
        &[
            "spec.endpoint: `eth0-` must not start or end with a dash",
            "spec.endpoint: `eth0-` must be a DNS name: lower-case letters, digits, `-` and `.`",
            "spec.containerID: `a_b` must be letters, digits and `-`",
        ],
    );
}

#[test]
fn what_is_wrong_with_an_endpoint() {
    check(
        KIND,
        NAME,
        "{orchestrator: k8s, node: k8s-125-node1, pod: cni-0, endpoint: eth0, interfaceName: cali123456789012, ipNetworks: [10.0.0.0/24], \
         ipNATs: [{internalIP: 10.1.0.1, externalIP: 'fd00::1'}], ipv4Gateway: 'fd00::1', ipv6Gateway: 10.0.0.1, \
         allowSpoofedSourcePrefixes: [x], profiles: [A], mac: 'ee:ee', ports: [{protocol: TCP, port: 0}, {name: '80', protocol: ICMP, port: 1}], \
         qosControls: {ingressBandwidth: 999, egressPacketRate: 10001}}",
        &[
            "spec.ipNetworks[0]: `10.0.0.0/24` must be one address: /32 or /128",
            "spec.ipNATs[0].externalIP: `fd00::1` must be of the same family as internalIP",
            "spec.ipNATs[0].internalIP: `10.1.0.1` must be one of spec.ipNetworks",
            "spec.ipv4Gateway: `fd00::1` must be an IPv4 address",
            "spec.ipv6Gateway: `10.0.0.1` must be an IPv6 address",
            "spec.allowSpoofedSourcePrefixes[0]: `x` must be an address range like 10.0.0.0/16 or fd00::/64",
            "spec.profiles[0]: `A` must be a DNS name: lower-case letters, digits, `-` and `.`",
            "spec.interfaceName: `cali123456789012` must be an interface: at most 15 letters, digits, `_`, `.` and `-`",
            "spec.mac: `ee:ee` must be a MAC address like ee:ee:ee:ee:ee:ee",
            "spec.ports[0].port: `0` must be from 1 to 65535",
            "spec.ports[0].name: is required without hostPort",
            "spec.ports[1].protocol: `ICMP` must be TCP, UDP or SCTP",
            "spec.ports[1].name: `80` must be a port name: at most 15 lower-case letters, digits and single inner dashes, one letter at least",
            "spec.qosControls.ingressBandwidth: `999` must be from 1000 to 1000000000000000",
            "spec.qosControls.egressPacketRate: `10001` must be from 1 to 10000",
        ],
    );
    check(
        KIND,
        NAME,
        &format!(
            "{{{IDS}, qosControls: {{dscp: CS7}}, ipNetworks: [x, 10.0.0.1], ipNATs: [{{internalIP: 1.2.3, externalIP: 10.0.0.1}}]}}"
        ),
        &[
            "spec.ipNATs[0].internalIP: `1.2.3` must be an address like 10.0.0.1 or fd00::1",
            "spec.ipNetworks[0]: `x` must be an address range like 10.0.0.0/16 or fd00::/64",
            "spec.qosControls.dscp: `CS7` must be a DSCP value: 0 to 63, DF, EF, AF11 to AF43 or CS0 to CS6",
        ],
    );
}
