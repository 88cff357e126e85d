use super::*;

const KIND: Kind = Kind::HostEndpoint;

#[test]
fn all_fields_survive() {
    survives(
        KIND,
        "node1.eth0",
        "{node: node1, interfaceName: eth0, expectedIPs: [10.0.0.1, 'fd00::1'], profiles: [a, kns.b], ports: [{name: ssh, \
         protocol: TCP, port: 22}, {name: dns, protocol: 17, port: 53}]}",
    );
    survives(KIND, "a", "{node: a, interfaceName: '*'}");
    survives(KIND, "a", "{node: a, expectedIPs: [10.0.0.1]}");
}

#[test]
fn what_is_wrong_with_a_host_endpoint() {
    check(
        KIND,
        "a",
        "{}",
        &[
            "spec.node: is required",
            "spec.expectedIPs: is required without interfaceName (an interface, or `*` for all)",
        ],
    );
    check(
        KIND,
        "a",
        "{node: A, interfaceName: eth*, profiles: [B]}",
        &[
            "spec.node: `A` must be a DNS name: lower-case letters, digits, `-` and `.`",
            "spec.interfaceName: `eth*` must be an interface: at most 15 letters, digits, `_`, `.` and `-`",
            "spec.profiles[0]: `B` must be a DNS name: lower-case letters, digits, `-` and `.`",
        ],
    );
    let name =
        "must be a port name: at most 15 lower-case letters, digits and single inner dashes, one letter at least";
    check(
        KIND,
        "a",
        "{node: a, interfaceName: eth0, ports: [{name: '22', protocol: ICMP, port: 0}, {name: ssh, protocol: TCP}]}",
        &["spec.ports[1].port: is required"],
    );
    check(
        KIND,
        "a",
        "{node: a, interfaceName: eth0, ports: [{name: '22', protocol: ICMP, port: 0}]}",
        &[
            "spec.ports[0].protocol: `ICMP` must be TCP, UDP or SCTP",
            "spec.ports[0].port: `0` must be from 1 to 65535",
            &format!("spec.ports[0].name: `22` {name}"),
        ],
    );
    check(
        KIND,
        "a",
        "{node: a, expectedIPs: [10.0.0.0/8]}",
        &["spec.expectedIPs[0]: `10.0.0.0/8` must be an address like 10.0.0.1 or fd00::1"],
    );
}
