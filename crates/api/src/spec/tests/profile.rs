use super::*;

const KIND: Kind = Kind::Profile;

#[test]
fn all_fields_survive() {
    survives(
        KIND,
        "kns.default",
        "{labelsToApply: {pcns.a: b}, egress: [{action: Allow}], ingress: [{action: Deny, ipVersion: 4, protocol: TCP, notProtocol: 17, \
         source: {nets: [10.0.0.0/8], notNets: [10.1.0.0/16], selector: \"a == 'b'\", notSelector: has(c), namespaceSelector: global(), \
         ports: [80, '8000:8999', http], notPorts: [81], serviceAccounts: {names: [a], selector: has(b)}}, \
         destination: {services: {name: s, namespace: ns}}, metadata: {annotations: {note: text}}}, \
         {action: Log, protocol: ICMP, icmp: {type: 8, code: 0}, notICMP: {type: 3}}, \
         {action: Allow, protocol: TCP, http: {methods: [GET], paths: [{exact: /a}, {prefix: /b}]}}, {action: Pass}]}",
    );
}

/// The problems of one ingress rule, paths from the rule.
#[track_caller]
fn rule(rule: &str, wanted: &[&str]) {
    let text = document(KIND, "a", &format!("{{ingress: [{rule}]}}"));
    let problems = read("-", &text).err().unwrap_or_default();
    let found: Vec<String> = problems
        .iter()
        .map(|problem| problem.problem.to_string().replacen("spec.ingress[0].", "", 1))
        .collect();
    assert_eq!(found, wanted, "{rule}");
}

#[test]
fn numeric_ports_need_a_protocol_that_has_ports() {
    for protocol in ["TCP", "UDP", "SCTP", "tcp", "6", "17", "132"] {
        rule(
            &format!("{{action: Allow, protocol: {protocol}, destination: {{ports: [80, '1:9', http]}}}}"),
            &[],
        );
    }
    for protocol in ["ICMP", "UDPLite", "1", "136"] {
        rule(
            &format!("{{action: Allow, protocol: {protocol}, destination: {{ports: [80]}}}}"),
            &["destination.ports: `80` needs protocol TCP, UDP or SCTP"],
        );
        rule(
            &format!("{{action: Allow, protocol: {protocol}, destination: {{ports: []}}}}"),
            &[],
        );
    }
    rule("{action: Allow, source: {notPorts: [http]}}", &[]);
    rule(
        "{action: Allow, source: {notPorts: [http, 80]}}",
        &["source.notPorts: `80` needs protocol TCP, UDP or SCTP"],
    );
    rule(
        "{action: Allow, protocol: TCP, source: {ports: [0, '0:5']}}",
        &[
            "source.ports[0]: `0` must be a port from 1 to 65535, a range like 8000:8999, or a name",
            "source.ports[1]: `0:5` must be a port from 1 to 65535, a range like 8000:8999, or a name",
        ],
    );
    let many = vec!["1"; 51].join(", ");
    rule(
        &format!("{{action: Allow, protocol: TCP, source: {{ports: [{many}]}}}}"),
        &["source.ports: `51 items` must have at most 50 items"],
    );
}

#[test]
fn protocols() {
    let right = "must be one of TCP, UDP, ICMP, ICMPv6, SCTP, UDPLite, or a number from 1 to 255";
    rule(
        "{action: Allow, protocol: QUIC}",
        &[&format!("protocol: `QUIC` {right}")],
    );
    rule(
        "{action: Allow, notProtocol: 0}",
        &[&format!("notProtocol: `0` {right}")],
    );
    rule("{action: Allow, protocol: 256}", &[&format!("protocol: `256` {right}")]);
    rule(
        "{action: Allow, protocol: ICMP, ipVersion: 6}",
        &["ipVersion: `6` must be 4 with protocol ICMP"],
    );
    rule(
        "{action: Allow, notProtocol: ICMPv6, ipVersion: 4}",
        &["ipVersion: `4` must be 6 with notProtocol ICMPv6"],
    );
    rule("{action: Allow, ipVersion: 5}", &["ipVersion: `5` must be 4 or 6"]);
    rule(
        "{action: allow}",
        &["action: `allow` must be one of Allow, Deny, Log, Pass; did you mean `Allow`?"],
    );
    rule("{protocol: TCP}", &["action: is required"]);
}

#[test]
fn icmp_has_types_up_to_254_and_codes_up_to_255() {
    rule("{action: Allow, protocol: ICMP, icmp: {type: 254, code: 255}}", &[]);
    rule(
        "{action: Allow, protocol: 58, icmp: {type: 255}}",
        &["icmp.type: `255` must be from 0 to 254"],
    );
    rule(
        "{action: Allow, protocol: ICMP, icmp: {code: 256}}",
        &["icmp.code: `256` must be a whole number from 0 to 255"],
    );
    rule(
        "{action: Allow, protocol: ICMP, icmp: {code: 1}}",
        &["icmp.code: `1` must be absent without a type"],
    );
    rule(
        "{action: Allow, protocol: TCP, icmp: {type: 8}}",
        &["icmp: must be absent unless protocol is ICMP or ICMPv6"],
    );
}

#[test]
fn prefixes_are_of_one_family_and_not_everything() {
    for all in ["0.0.0.0/0", "'::/0'", "'::0/0'", "'0:0:0::/0'"] {
        let value = if all.contains(':') { "::/0" } else { "0.0.0.0/0" };
        rule(
            &format!("{{action: Allow, source: {{notNets: [{all}]}}}}"),
            &[&format!(
                "source.notNets[0]: `{value}` must not be every address: the rule would match nothing"
            )],
        );
        rule(&format!("{{action: Allow, source: {{nets: [{all}]}}}}"), &[]);
    }
    rule(
        "{action: Allow, source: {nets: [10.0.0.0/8]}, destination: {notNets: ['fd00::/8']}}",
        &["destination.notNets: `fd00::/8` must be of the family of the rule's other prefixes"],
    );
    rule(
        "{action: Allow, ipVersion: 6, source: {nets: [10.0.0.1]}}",
        &["source.nets: `10.0.0.1/32` must be of ipVersion 6"],
    );
    rule(
        "{action: Allow, source: {nets: [10.0.0.1/8, x]}}",
        &["source.nets[1]: `x` must be an address range like 10.0.0.0/16 or fd00::/64"],
    );
    rule(
        "{action: Allow, source: {nets: [10.0.0.1/8]}}",
        &["source.nets[0]: `10.0.0.1/8` must have no bits behind the prefix length; did you mean 10.0.0.0/8?"],
    );
}

#[test]
fn global_stands_alone_in_a_namespace_selector() {
    rule("{action: Allow, source: {namespaceSelector: ' global( )'}}", &[]);
    rule(
        "{action: Allow, source: {namespaceSelector: global() && has(a)}}",
        &["source.namespaceSelector: `global() && has(a)` must use global() alone, not with other terms"],
    );
    rule(
        "{action: Allow, source: {selector: global()}}",
        &["source.selector: `global()` must not use global(): that is for the namespaceSelector of a rule"],
    );
    rule("{action: Allow, source: {selector: \"a == 'global()'\"}}", &[]);
}

#[test]
fn services_come_alone() {
    rule("{action: Allow, source: {services: {name: s}, ports: [http]}}", &[]);
    rule(
        "{action: Allow, destination: {services: {}, selector: has(a), nets: [10.0.0.0/8], serviceAccounts: {}, namespaceSelector: has(b), ports: [http]}}",
        &[
            "destination.services.name: is required",
            "destination.selector: must be absent with services",
            "destination.namespaceSelector: must be absent with services",
            "destination.nets: must be absent with services",
            "destination.serviceAccounts: must be absent with services",
            "destination.ports: must be absent with services, which bring their ports",
        ],
    );
}

#[test]
fn http_is_for_allowing_tcp() {
    rule("{action: Allow, http: {methods: [GET]}}", &[]);
    rule(
        "{action: Deny, protocol: UDP, http: {methods: [GET, GET], paths: [{}, {exact: /a, prefix: /b}, {exact: a}, {prefix: '/a?b'}]}}",
        &[
            "http.methods[1]: `GET` must occur once",
            "http.paths[0]: must have `exact` or `prefix`",
            "http.paths[1]: must have only one of `exact` and `prefix`",
            "http.paths[2].exact: `a` must start with `/` and have no `?`, `#` or space",
            "http.paths[3].prefix: `/a?b` must start with `/` and have no `?`, `#` or space",
            "http: must be absent: only rules with action Allow may look at HTTP",
            "protocol: `UDP` must be TCP or absent with http",
        ],
    );
}
