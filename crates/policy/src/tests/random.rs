//! Random resources over few names, so that they meet.

use std::collections::BTreeMap;

use api::resource::WorkloadEndpoint;
use api::{Key, Resource};

use super::build;

/// Numbers that follow from a seed (SplitMix64).
pub(crate) struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % bound
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

pub(crate) const SELECTORS: [&str; 18] = [
    "",
    "all()",
    "role == 'web'",
    "role == 'db'",
    "role != 'web'",
    "has(env)",
    "!has(env)",
    "env in {'prod', 'test'}",
    "env not in {'prod'}",
    "role starts with 'w' || env == 'test'",
    "role == 'web' && env == 'prod'",
    "role == 'db' && !(env == 'prod')",
    "tint == 'red'",
    "env contains 'o'",
    "pcns.team == 'x'",
    "projectcalico.org/namespace == 'b'",
    "role ends with",
    "global()",
];
const NAMESPACE_SELECTORS: [&str; 7] = ["", "", "team == 'x'", "all()", "global()", "has(team)", "team =="];
const ACCOUNT_SELECTORS: [&str; 5] = ["", "", "trusted == 'yes'", "all()", "trusted == "];
const NETS: [&str; 12] = [
    "10.0.0.1/32",
    "10.0.0.2/32",
    "10.0.0.3/32",
    "10.0.0.0/24",
    "10.0.0.0/30",
    "10.0.0.0/8",
    "0.0.0.0/0",
    "10.0.1.1/24",
    "fd00::1/128",
    "fd00::2/128",
    "fd00::/64",
    "fd00::/120",
];
const ADDRESSES: [&str; 6] = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.1.1", "fd00::1", "fd00::2"];

pub(crate) fn resource(random: &mut Random) -> Resource {
    let resource = right(random);
    match random.one_in(10) {
        true => spoilt(random, &resource),
        false => resource,
    }
}

/// The same with something in it that cannot be read.
fn spoilt(random: &mut Random, resource: &Resource) -> Resource {
    let field = match resource.kind() {
        api::Kind::WorkloadEndpoint => random.pick(&["node", "ipNetworks", "ports", "profiles"]),
        api::Kind::HostEndpoint => random.pick(&["node", "expectedIPs", "profiles"]),
        api::Kind::NetworkSet | api::Kind::GlobalNetworkSet => "nets",
        api::Kind::Profile => random.pick(&["labelsToApply", "ingress"]),
        api::Kind::Tier => random.pick(&["order", "defaultAction"]),
        api::Kind::KubernetesEndpointSlice => random.pick(&["service", "addresses"]),
        _ => random.pick(&[
            "tier",
            "order",
            "selector",
            "types",
            "ingress",
            "egress",
            "doNotTrack",
            "stagedAction",
        ]),
    };
    let mut json = serde_json::to_value(resource).unwrap();
    match random.below(8) {
        0 => json["spec"] = 7.into(),
        1..=3 => json["spec"][field] = serde_json::json!(["x", { "action": "Alow" }]),
        _ => json["spec"][field] = serde_json::json!({ "odd": "x" }),
    }
    serde_json::from_value(json).unwrap()
}

fn right(random: &mut Random) -> Resource {
    match random.below(20) {
        0..=5 => workload(random).1.into(),
        6 => {
            let name = random.pick(&["h1", "h2"]);
            let mut endpoint = build::host(name, random.pick(&["n1", "n1", "n2"]), random.pick(&["eth0", "*", ""]));
            endpoint.metadata.labels = labels(random);
            endpoint.spec.expected_ips = some(random, 3, |random| random.pick(&ADDRESSES).parse().unwrap());
            endpoint.spec.profiles = profiles(random);
            endpoint.spec.ports = some(random, 2, |random| {
                build::host_port(random.pick(&["http", "dns"]), random.pick(&["TCP", "UDP"]), 80)
            });
            endpoint.into()
        }
        7 => {
            let mut set = build::network_set(random.pick(&["a", "b"]), random.pick(&["s1", "s2"]));
            set.metadata.labels = labels(random);
            set.spec.nets = some(random, 4, |random| random.pick(&NETS).parse().unwrap());
            set.into()
        }
        8 => {
            let mut set = build::global_network_set(random.pick(&["g1", "g2"]));
            set.metadata.labels = labels(random);
            set.spec.nets = some(random, 4, |random| random.pick(&NETS).parse().unwrap());
            set.into()
        }
        9..=10 => {
            let name = random.pick(&["kns.a", "kns.b", "ksa.a.default", "extra"]);
            let inherited = labels_of(
                random,
                &[
                    ("pcns.team", &["x", "y"]),
                    ("pcsa.trusted", &["yes", "no"]),
                    ("role", &["web"]),
                    ("tint", &["red"]),
                    ("projectcalico.org/namespace", &["a"]),
                ],
            );
            build::profile(name, inherited, rules(random), rules(random)).into()
        }
        11 => build::tier(
            random.pick(&["t1", "t2", "default"]),
            random.pick(&[None, Some(1), Some(2), Some(2_000_000)]),
            random.pick(&[None, Some(api::TierAction::Pass), Some(api::TierAction::Deny)]),
        )
        .into(),
        12 => {
            let (name, service) = (random.pick(&["e1", "e2"]), random.pick(&["svc", "svc", "other"]));
            let mut slice = build::slice(random.pick(&["a", "b"]), name, service);
            slice.spec.addresses = some(random, 3, |random| random.pick(&ADDRESSES).parse().unwrap());
            slice.spec.ports = some(random, 2, |random| {
                build::slice_port(random.pick(&["TCP", "UDP", "odd"]), random.pick(&[80, 443]))
            });
            slice.into()
        }
        _ => policy(random),
    }
}

/// A workload of a node, and its key.
pub(crate) fn workload(random: &mut Random) -> (Key, WorkloadEndpoint) {
    let node = random.pick(&["n1", "n1", "n2"]);
    let namespace = random.pick(&["a", "b"]);
    let name = format!("{}-{}", random.pick(&["n1", "n2"]), random.pick(&["p1", "p2", "p3"]));
    let mut endpoint = build::workload(node, namespace, &name);
    endpoint.metadata.labels = labels(random);
    if random.one_in(8) {
        endpoint.metadata.labels.insert("pcns.team".into(), "x".into());
    }
    endpoint.spec.ip_networks = some(random, 3, |random| {
        random.pick(&ADDRESSES).parse::<std::net::IpAddr>().unwrap().into()
    });
    endpoint.spec.container_id = random.pick(&["", "c1", "c1", "c2"]).into();
    endpoint.spec.profiles = profiles(random);
    endpoint.spec.service_account_name = random.pick(&["", "default", "other"]).into();
    endpoint.spec.interface_name = random.pick(&["", "cali1", "cali2"]).into();
    endpoint.spec.ports = some(random, 3, |random| {
        let protocol = random.pick(&["TCP", "UDP", "odd"]);
        build::port(
            random.pick(&["http", "dns", ""]),
            protocol,
            random.pick(&[80, 53, 8080]),
        )
    });
    if random.one_in(6) {
        endpoint.spec.allow_spoofed_source_prefixes = vec!["10.9.0.1/16".into(), "nonsense".into()];
    }
    (endpoint.key(), endpoint)
}

fn policy(random: &mut Random) -> Resource {
    let kind = random.below(6);
    let mut parts = build::Parts {
        tier: random.pick(&["", "default", "t1", "t2", "t2"]).into(),
        order: random.pick(&[None, Some(1), Some(2)]),
        selector: selector(random),
        namespace_selector: sometimes(random, &NAMESPACE_SELECTORS),
        account_selector: sometimes(random, &ACCOUNT_SELECTORS),
        types: random
            .pick(&[&[][..], &[api::PolicyType::Ingress], &[api::PolicyType::Egress]])
            .to_vec(),
        ingress: rules(random),
        egress: rules(random),
        everywhere: random.one_in(12),
        ..build::Parts::default()
    };
    if random.one_in(3) {
        parts.apply_on_forward = true;
        parts.do_not_track = random.one_in(4);
        parts.pre_dnat = random.one_in(4);
    }
    let name = random.pick(&["x", "y", "z", "w"]);
    match kind {
        0..=2 => parts.namespaced(random.pick(&["a", "b"]), name),
        3..=4 => parts.global(name),
        _ => match random.below(2) {
            0 => parts.staged(random.pick(&["a", "b"]), name, random.one_in(4)),
            _ => parts.staged_global(name, random.one_in(4)),
        },
    }
}

fn rules(random: &mut Random) -> Vec<api::Rule> {
    some(random, 3, |random| {
        let action = random.pick(&[
            api::Action::Allow,
            api::Action::Deny,
            api::Action::Pass,
            api::Action::Log,
        ]);
        let mut rule = api::Rule::any(action);
        rule.protocol = random
            .pick(&[None, None, Some("TCP"), Some("UDP"), Some("ICMP")])
            .map(api::Protocol::from_text);
        rule.ip_version = random.pick(&[None, None, None, None, Some(4), Some(6)]);
        if random.one_in(40) {
            rule.ip_version = Some(5);
        }
        rule.source = entity(random, false);
        rule.destination = entity(random, true);
        rule
    })
}

fn entity(random: &mut Random, destination: bool) -> api::EntityRule {
    let mut entity = api::EntityRule::default();
    match random.below(8) {
        0..=1 => entity.nets = some(random, 3, |random| random.pick(&NETS).parse().unwrap()),
        2..=4 => {
            entity.selector = selector(random);
            entity.namespace_selector = sometimes(random, &NAMESPACE_SELECTORS);
        }
        5 => {
            entity.not_selector = selector(random);
            entity.service_accounts = random.one_in(2).then(|| api::ServiceAccountMatch {
                names: some(random, 2, |random| random.pick(&["default", "other"]).into()),
                selector: sometimes(random, &ACCOUNT_SELECTORS),
            });
        }
        6 => {
            entity.services = Some(api::ServiceMatch {
                name: random.pick(&["svc", "other"]).into(),
                namespace: random.pick(&["", "a", "b", "b"]).into(),
            });
        }
        _ => {}
    }
    if destination && random.one_in(4) {
        entity.ports = vec![api::Port::Named(random.pick(&["http", "dns"]).into())];
    }
    entity
}

/// Mostly one that can be read.
fn selector(random: &mut Random) -> String {
    match random.one_in(12) {
        true => random.pick(&SELECTORS).into(),
        false => random.pick(&SELECTORS[..16]).into(),
    }
}

fn sometimes(random: &mut Random, from: &[&str]) -> String {
    match random.one_in(4) {
        true => random.pick(from).into(),
        false => String::new(),
    }
}

fn profiles(random: &mut Random) -> Vec<String> {
    some(random, 3, |random| {
        random
            .pick(&[
                "kns.a",
                "kns.b",
                "ksa.a.default",
                "extra",
                "missing",
                "projectcalico-default-allow",
            ])
            .into()
    })
}

fn labels(random: &mut Random) -> BTreeMap<String, String> {
    labels_of(
        random,
        &[
            ("role", &["web", "db"]),
            ("env", &["prod", "test"]),
            ("tint", &["red", "blue"]),
            ("projectcalico.org/namespace", &["a", "c"]),
            ("projectcalico.org/serviceaccount", &["default"]),
        ],
    )
}

fn labels_of(random: &mut Random, from: &[(&str, &[&str])]) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    for (name, values) in from {
        if random.one_in(2) {
            labels.insert((*name).to_owned(), random.pick(values).to_owned());
        }
    }
    labels
}

fn some<T>(random: &mut Random, below: u64, mut make: impl FnMut(&mut Random) -> T) -> Vec<T> {
    (0..random.below(below)).map(|_| make(random)).collect()
}
