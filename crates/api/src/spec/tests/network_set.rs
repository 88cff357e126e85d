use super::*;

const BOTH: [Kind; 2] = [Kind::NetworkSet, Kind::GlobalNetworkSet];

#[test]
fn all_fields_survive() {
    for kind in BOTH {
        survives(kind, "a.b", "{nets: [10.0.0.0/8, 'fd00::/64', 10.0.0.1/24]}");
        survives(kind, "a", "{}");
        // An address is a range of one.
        let set = good(kind, "a", "{nets: [10.0.0.1, 'fd00::1']}");
        let wanted = serde_json::json!({"nets": ["10.0.0.1/32", "fd00::1/128"]});
        assert_eq!(to_json(&set)["spec"], wanted);
    }
}

#[test]
fn what_is_wrong_with_a_set() {
    for kind in BOTH {
        check(
            kind,
            "a",
            "{nets: [10.0.0.0/33, x]}",
            &[
                "spec.nets[0]: `10.0.0.0/33` must be an address range like 10.0.0.0/16 or fd00::/64",
                "spec.nets[1]: `x` must be an address range like 10.0.0.0/16 or fd00::/64",
            ],
        );
        let text = document(kind, "a, labels: {projectcalico.org/namespace: b}", "{}");
        let problems = read("-", &text).unwrap_err();
        assert_eq!(
            problems[0].problem.to_string(),
            "metadata.labels.projectcalico.org/namespace: `b` must be absent: the label follows from the namespace"
        );
    }
}

#[test]
fn slices_of_services_are_resources_too() {
    let kind = Kind::KubernetesEndpointSlice;
    survives(
        kind,
        "web-abc",
        "{service: web, addresses: [10.0.0.1, 'fd00::1'], ports: [{name: http, protocol: TCP, port: 80}, {protocol: UDP, port: 53}]}",
    );
    check(
        kind,
        "a",
        "{ports: [{protocol: ICMP, port: 0}]}",
        &[
            "spec.service: is required",
            "spec.ports[0].protocol: `ICMP` must be TCP, UDP or SCTP",
            "spec.ports[0].port: `0` must be from 1 to 65535",
        ],
    );
}
