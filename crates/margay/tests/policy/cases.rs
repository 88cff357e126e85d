//! The documented cases of Kubernetes' NetworkPolicy, and what each of them comes to.

use std::net::IpAddr;

use crate::common::matrix::Square;
use crate::common::net::L4;

/// What a square of the matrix has to be.
pub type Expected = Box<dyn Fn(Square<'_>) -> bool>;

/// Kubernetes policies as (namespace, name, spec), and who reaches whom then.
pub struct Case {
    pub what: &'static str,
    pub policies: Vec<(&'static str, &'static str, String)>,
    pub expected: Expected,
}

fn case(
    what: &'static str,
    policies: &[(&'static str, &'static str, &str)],
    expected: impl Fn(Square<'_>) -> bool + 'static,
) -> Case {
    Case {
        what,
        policies: policies
            .iter()
            .map(|(namespace, name, spec)| (*namespace, *name, (*spec).to_owned()))
            .collect(),
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

/// `ipBlock`, by addresses of pods: `address` is asked for a pod's, and whether the IPv6 one.
pub fn blocks_of_addresses(address: &dyn Fn(&str, bool) -> IpAddr) -> Vec<Case> {
    let (ya4, ya6, yb4) = (address("y/a", false), address("y/a", true), address("y/b", false));
    // All pods of that family are in a pool of this size.
    let pool = ipnet::IpNet::new(ya4, 16).expect("an IPv4 address").trunc();
    vec![
        case(
            "one address",
            &[(
                "x",
                "block",
                &format!("{{podSelector: {{}}, ingress: [{{from: [{{ipBlock: {{cidr: {ya4}/32}}}}]}}]}}"),
            )],
            |s| to_ns(&s) != "x" || (from(&s) == "y/a" && !s.ipv6),
        ),
        case(
            "a block with exceptions, in both families",
            &[(
                "x",
                "block",
                &format!(
                    "{{podSelector: {{}}, ingress: [{{from: [{{ipBlock: {{cidr: {pool}, except: [{ya4}/32, {yb4}/32]}}}}, {{ipBlock: {{cidr: '::/0', except: ['{ya6}/128']}}}}]}}]}}"
                ),
            )],
            |s| {
                to_ns(&s) != "x"
                    || match s.ipv6 {
                        false => !["y/a", "y/b"].contains(&from(&s)),
                        true => from(&s) != "y/a",
                    }
            },
        ),
        case(
            "egress to a block, and what one policy excepts another one allows",
            &[
                (
                    "x",
                    "block",
                    &format!(
                        "{{podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{{ipBlock: {{cidr: 0.0.0.0/0, except: [{ya4}/32]}}}}], ports: [{{port: 80}}]}}]}}"
                    ),
                ),
                (
                    "x",
                    "exception",
                    &format!(
                        "{{podSelector: {{matchLabels: {{pod: b}}}}, policyTypes: [Egress], egress: [{{to: [{{ipBlock: {{cidr: {ya4}/32}}}}]}}]}}"
                    ),
                ),
            ],
            |s| {
                from_ns(&s) != "x"
                    || (!s.ipv6 && to(&s) != "y/a" && s.port == 80 && s.l4 == L4::Tcp)
                    || (!s.ipv6 && from(&s) == "x/b" && to(&s) == "y/a")
            },
        ),
    ]
}

/// A label that changes: of a pod (`x/a`) or a namespace (`z`), to a value or to none.
pub struct Label {
    pub of: &'static str,
    pub key: &'static str,
    pub value: Option<&'static str>,
}

/// A step of [`labels_that_change`]: what it is, the labels that change, who reaches whom then.
pub type Step = (&'static str, Vec<Label>, Expected);

/// Pods and a namespace get other labels while one policy is there: the policy, and the steps.
pub fn labels_that_change() -> (Case, Vec<Step>) {
    let policy = case(
        "nobody has the labels",
        &[(
            "x",
            "p",
            "{podSelector: {matchLabels: {role: db}}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {role: api}}}, {namespaceSelector: {matchLabels: {team: blue}}}]}]}",
        )],
        |_| true,
    );
    let label = |of, key, value| Label { of, key, value };
    let steps: Vec<Step> = vec![
        (
            "a pod is selected from now on",
            vec![label("x/a", "role", Some("db"))],
            Box::new(|s| to(&s) != "x/a"),
        ),
        (
            "a pod is a peer from now on",
            vec![label("y/b", "role", Some("api"))],
            Box::new(|s| to(&s) != "x/a" || from(&s) == "y/b"),
        ),
        (
            "a namespace is a peer from now on",
            vec![label("z", "team", Some("blue"))],
            Box::new(|s| to(&s) != "x/a" || from(&s) == "y/b" || from_ns(&s) == "z"),
        ),
        (
            "neither is one any more",
            vec![label("y/b", "role", Some("other")), label("z", "team", None)],
            Box::new(|s| to(&s) != "x/a"),
        ),
        (
            "nobody is selected any more",
            vec![label("x/a", "role", None), label("y/b", "role", None)],
            Box::new(|_| true),
        ),
    ];
    (policy, steps)
}
