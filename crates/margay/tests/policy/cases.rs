//! The documented cases of Kubernetes' NetworkPolicy, and what each of them comes to.

use crate::common::cluster::Square;
use crate::common::net::L4;

/// What a square of the matrix has to be.
pub type Expected = Box<dyn Fn(Square<'_>) -> bool>;

/// Kubernetes policies as (namespace, name, spec), and who reaches whom then.
pub struct Case {
    pub what: &'static str,
    pub policies: Vec<(&'static str, &'static str, &'static str)>,
    pub expected: Expected,
}

fn case(
    what: &'static str,
    policies: &[(&'static str, &'static str, &'static str)],
    expected: impl Fn(Square<'_>) -> bool + 'static,
) -> Case {
    Case {
        what,
        policies: policies.to_vec(),
        expected: Box::new(expected),
    }
}

/// The pod as `x/a`.
pub fn from<'a>(square: &Square<'a>) -> &'a str {
    &square.from.name
}

pub fn to<'a>(square: &Square<'a>) -> &'a str {
    &square.to.name
}

pub fn from_ns<'a>(square: &Square<'a>) -> &'a str {
    &square.from.namespace
}

pub fn to_ns<'a>(square: &Square<'a>) -> &'a str {
    &square.to.namespace
}

/// The documented cases of NetworkPolicy.
pub fn cases() -> Vec<Case> {
    vec![
        case("nothing", &[], |_| true),
        case(
            "default deny of ingress",
            &[("x", "deny", "{podSelector: {}, policyTypes: [Ingress]}")],
            |s| to_ns(&s) != "x",
        ),
        case(
            "default deny of egress",
            &[("x", "deny", "{podSelector: {}, policyTypes: [Egress]}")],
            |s| from_ns(&s) != "x",
        ),
        case(
            "default deny of both",
            &[("y", "deny", "{podSelector: {}, policyTypes: [Ingress, Egress]}")],
            |s| from_ns(&s) != "y" && to_ns(&s) != "y",
        ),
        case(
            "default deny in every namespace",
            &[
                ("x", "deny", "{podSelector: {}, policyTypes: [Ingress, Egress]}"),
                ("y", "deny", "{podSelector: {}, policyTypes: [Ingress, Egress]}"),
                ("z", "deny", "{podSelector: {}, policyTypes: [Ingress, Egress]}"),
            ],
            |_| false,
        ),
        case(
            "an empty rule allows all, beside a deny",
            &[
                ("x", "deny", "{podSelector: {}, policyTypes: [Ingress]}"),
                ("x", "allow", "{podSelector: {}, ingress: [{}]}"),
                ("y", "deny", "{podSelector: {}, policyTypes: [Ingress]}"),
            ],
            |s| to_ns(&s) != "y",
        ),
        case(
            "an empty egress rule allows all, beside a deny",
            &[
                ("x", "deny", "{podSelector: {}, policyTypes: [Egress]}"),
                ("x", "allow", "{podSelector: {}, policyTypes: [Egress], egress: [{}]}"),
                ("z", "deny", "{podSelector: {}, policyTypes: [Egress]}"),
            ],
            |s| from_ns(&s) != "z",
        ),
        case(
            "peers by pod selector: of the policy's namespace alone",
            &[(
                "x",
                "p",
                "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]}",
            )],
            |s| to(&s) != "x/a" || from(&s) == "x/b",
        ),
        case(
            "peers by namespace selector",
            &[(
                "x",
                "p",
                "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: 'y'}}}]}]}",
            )],
            |s| to(&s) != "x/a" || from_ns(&s) == "y",
        ),
        case(
            "peers by an expression over namespaces",
            &[(
                "x",
                "p",
                "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: NotIn, values: [x]}]}}]}]}",
            )],
            |s| to_ns(&s) != "x" || from_ns(&s) != "x",
        ),
        case(
            "peers by namespace and pod selector in one",
            &[(
                "x",
                "p",
                "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: 'y'}}, podSelector: {matchLabels: {pod: b}}}]}]}",
            )],
            |s| to(&s) != "x/a" || from(&s) == "y/b",
        ),
        case(
            "the same as two peers: either",
            &[(
                "x",
                "p",
                "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: 'y'}}}, {podSelector: {matchLabels: {pod: b}}}]}]}",
            )],
            |s| to(&s) != "x/a" || from_ns(&s) == "y" || from(&s) == "x/b",
        ),
        case(
            "all namespaces, pods by expression",
            &[(
                "y",
                "p",
                "{podSelector: {matchExpressions: [{key: pod, operator: In, values: [a, b]}]}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchExpressions: [{key: pod, operator: NotIn, values: [c]}, {key: pod, operator: Exists}]}}]}]}",
            )],
            |s| !["y/a", "y/b"].contains(&to(&s)) || s.from.pod != "c",
        ),
        case(
            "a port by number: TCP by default",
            &[("x", "p", "{podSelector: {}, ingress: [{ports: [{port: 80}]}]}")],
            |s| to_ns(&s) != "x" || (s.port == 80 && s.l4 == L4::Tcp),
        ),
        case(
            "a port by number: UDP",
            &[(
                "x",
                "p",
                "{podSelector: {}, ingress: [{ports: [{port: 81, protocol: UDP}]}]}",
            )],
            |s| to_ns(&s) != "x" || (s.port == 81 && s.l4 == L4::Udp),
        ),
        case(
            "a protocol alone",
            &[("x", "p", "{podSelector: {}, ingress: [{ports: [{protocol: UDP}]}]}")],
            |s| to_ns(&s) != "x" || s.l4 == L4::Udp,
        ),
        case(
            "a port by name",
            &[(
                "x",
                "p",
                "{podSelector: {}, ingress: [{ports: [{port: serve-81-tcp}]}]}",
            )],
            |s| to_ns(&s) != "x" || (s.port == 81 && s.l4 == L4::Tcp),
        ),
        case(
            "a port by name, in egress: of whom it goes to",
            &[(
                "x",
                "p",
                "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: serve-80-udp, protocol: UDP}]}]}",
            )],
            |s| from_ns(&s) != "x" || (s.port == 80 && s.l4 == L4::Udp),
        ),
        case(
            "a name that nobody has",
            &[(
                "x",
                "p",
                "{podSelector: {}, ingress: [{ports: [{port: no-such-port}]}]}",
            )],
            |s| to_ns(&s) != "x",
        ),
        case(
            "a range of ports",
            &[(
                "x",
                "p",
                "{podSelector: {}, ingress: [{ports: [{port: 81, endPort: 90}]}]}",
            )],
            |s| to_ns(&s) != "x" || (s.port == 81 && s.l4 == L4::Tcp),
        ),
        case(
            "a range of ports, with both",
            &[(
                "x",
                "p",
                "{podSelector: {}, ingress: [{ports: [{port: 1, endPort: 81, protocol: UDP}]}]}",
            )],
            |s| to_ns(&s) != "x" || s.l4 == L4::Udp,
        ),
        case(
            "peers and ports in one rule, others in another",
            &[(
                "x",
                "p",
                "{podSelector: {matchLabels: {pod: b}}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}, {from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: z}}}], ports: [{port: 81}, {port: 81, protocol: UDP}]}]}",
            )],
            |s| {
                to(&s) != "x/b"
                    || (from_ns(&s) == "x" && s.port == 80 && s.l4 == L4::Tcp)
                    || (from_ns(&s) == "z" && s.port == 81)
            },
        ),
        case(
            "egress to a namespace, on one port",
            &[(
                "x",
                "p",
                "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: 'y'}}}], ports: [{port: 80}]}]}",
            )],
            |s| from(&s) != "x/a" || (to_ns(&s) == "y" && s.port == 80 && s.l4 == L4::Tcp),
        ),
        case(
            "both ends have to allow",
            &[
                (
                    "x",
                    "out",
                    "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: 'y'}}}]}]}",
                ),
                (
                    "y",
                    "in",
                    "{podSelector: {matchLabels: {pod: b}}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: z}}}]}]}",
                ),
            ],
            |s| (from(&s) != "x/a" || to_ns(&s) == "y") && (to(&s) != "y/b" || from_ns(&s) == "z"),
        ),
        case(
            "stacked policies add up",
            &[
                (
                    "x",
                    "one",
                    "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]}",
                ),
                (
                    "x",
                    "two",
                    "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: z}}}], ports: [{port: 80}]}]}",
                ),
            ],
            |s| {
                let by_two = from_ns(&s) == "z" && s.port == 80 && s.l4 == L4::Tcp;
                match to(&s) {
                    "x/a" => from(&s) == "x/b" || by_two,
                    "x/b" | "x/c" => by_two,
                    _ => true,
                }
            },
        ),
        case(
            "what is updated counts: the same name with another spec",
            &[(
                "x",
                "one",
                "{podSelector: {matchLabels: {pod: c}}, ingress: [{from: [{podSelector: {matchLabels: {pod: a}}}]}]}",
            )],
            |s| to(&s) != "x/c" || from(&s) == "x/a",
        ),
        case(
            "a policy that selects nobody",
            &[(
                "x",
                "none",
                "{podSelector: {matchLabels: {pod: nobody}}, policyTypes: [Ingress, Egress]}",
            )],
            |_| true,
        ),
        case(
            "a peer that is nobody",
            &[(
                "x",
                "p",
                "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {pod: nobody}}}]}]}",
            )],
            |s| to_ns(&s) != "x",
        ),
        case("what is deleted is gone", &[], |_| true),
    ]
}
