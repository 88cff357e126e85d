//! `policy diff`: what would change between live pods, grouped; the same as asking about every pair and port.

mod common;

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::Key;
use common::{Cluster, documents};
use ctl::why::policy_diff::{Progress, difference};
use ctl::why::world::{States, World};
use policy::evaluate::{Packet, connection};

fn pods(count: usize, role: &str, first: usize) -> String {
    let pod = |n: usize| {
        format!(
            "WorkloadEndpoint shop/n1-k8s-{role}--{n}-eth0 {{orchestrator: k8s, node: n1, pod: {role}-{n}, endpoint: eth0, \
             ipNetworks: [192.168.1.{}/32], profiles: [kns.shop, role.{role}], interfaceName: cali{}}}\n",
            first + n,
            first + n
        )
    };
    let profile = format!("Profile role.{role} {{labelsToApply: {{role: {role}}}}}\n");
    profile + &(1..=count).map(pod).collect::<String>()
}

fn shop() -> String {
    format!(
        "Profile kns.shop {{ingress: [{{action: Allow}}], egress: [{{action: Allow}}]}}\n{}{}{}",
        pods(1, "db", 10),
        pods(2, "api", 20),
        pods(4, "web", 30)
    )
}

const DB: &str = r#"NetworkPolicy shop/db {selector: "role == 'db'", types: [Ingress], ingress: [{action: Allow, protocol: TCP, source: {selector: "role == 'api'"}, destination: {ports: [5432, "6000:6010"]}}]}"#;

#[test]
fn what_a_file_would_close_is_shown_in_groups() {
    let cluster = Cluster::with(&shop());
    let before = cluster.keys();
    let expected = "
Allow -> Deny; will be denied by the receiver's ingress: no rule of NetworkPolicy(shop/db) matches, and tier default ends with Deny
  shop/api-1, shop/api-2 -> shop/db-1: ICMP; TCP except 5432, 6000-6010; UDP
  4 pods of shop -> shop/db-1: ICMP; TCP; UDP

6 of 42 pairs of 7 pods change";
    cluster.check_with("policy diff -f -", &documents(DB), expected);
    assert_eq!(cluster.keys(), before, "nothing is written");
    cluster.put(DB);
    cluster.check_with("policy diff -f -", &documents(DB), "Nothing changes between 7 pods");
    cluster.check_with(
        "policy diff --delete -f -",
        &documents(DB),
        "
Deny -> Allow; was denied by the receiver's ingress: no rule of NetworkPolicy(shop/db) matches, and tier default ends with Deny
  shop/api-1, shop/api-2 -> shop/db-1: ICMP; TCP except 5432, 6000-6010; UDP
  4 pods of shop -> shop/db-1: ICMP; TCP; UDP

6 of 42 pairs of 7 pods change",
    );
    let narrower = DB.replace(r#"[5432, "6000:6010"]"#, "[5432]");
    cluster.check_with(
        "policy diff -f - -o yaml",
        &documents(&narrower),
        r#"
pods: 7
pairs: 2
ofPairs: 42
changes:
- before: Allow
  after: Deny
  deniedBy: "the receiver's ingress: no rule of NetworkPolicy(shop/db) matches, and tier default ends with Deny"
  between:
  - from: shop/api-1, shop/api-2
    to: shop/db-1
    ports:
    - TCP 6000-6010
    families:
    - IPv4"#,
    );
}

#[test]
fn what_staged_policies_would_change_is_shown() {
    let cluster = Cluster::with(&shop());
    cluster.check_with("policy diff --staged", "", "Nothing changes between 7 pods");
    let expected = "
Allow -> Deny; will be denied by the receiver's ingress: no rule of NetworkPolicy(shop/db) matches, and tier default ends with Deny
  shop/api-1, shop/api-2 -> shop/db-1: ICMP; TCP except 5432, 6000-6010; UDP
  4 pods of shop -> shop/db-1: ICMP; TCP; UDP

6 of 42 pairs of 7 pods change";
    let staged = DB.replace("NetworkPolicy", "StagedNetworkPolicy");
    cluster.check_with("policy diff --staged -f -", &documents(&staged), expected);
    cluster.check_with(
        "policy diff -f -",
        &documents(&staged),
        "Nothing changes between 7 pods",
    );
    cluster.put(&staged);
    cluster.check_with("policy diff --staged", "", expected);
    // The policy is there, and its end is rehearsed.
    cluster.put(DB);
    cluster.check_with("policy diff --staged", "", "Nothing changes between 7 pods");
    cluster.check_with(
        "policy diff --staged -f -",
        &documents("StagedNetworkPolicy shop/db {stagedAction: Delete}"),
        "
Deny -> Allow; was denied by the receiver's ingress: no rule of NetworkPolicy(shop/db) matches, and tier default ends with Deny
  shop/api-1, shop/api-2 -> shop/db-1: ICMP; TCP except 5432, 6000-6010; UDP
  4 pods of shop -> shop/db-1: ICMP; TCP; UDP

6 of 42 pairs of 7 pods change",
    );
}

#[test]
fn bad_input_is_refused_before_anything_is_compared() {
    let cluster = Cluster::with(&shop());
    cluster.check_with(
        "policy diff --delete -f -",
        &documents(DB),
        "error: NetworkPolicy(shop/db) does not exist\nexit 1",
    );
    cluster.check_with(
        "policy diff -f -",
        &documents("NetworkPolicy shop/p {tier: nowhere}"),
        "error: NetworkPolicy(shop/p): spec.tier: `nowhere` does not exist; give Tier(nowhere) with -f, too\nexit 1",
    );
    let wrong = cluster.run("policy diff -f -", &documents("NetworkPolicy shop/p {selector: a ==}"));
    assert!(
        wrong.contains("spec.selector: `a ==`") && wrong.ends_with("exit 1"),
        "{wrong}"
    );
    let none = cluster.run("policy diff", "");
    assert!(
        none.contains("required arguments were not provided") && none.ends_with("exit 2"),
        "{none}"
    );
    Cluster::unreachable().check_with("policy diff -f -", &documents(DB), "error: no store listens\nexit 1");
}

/// Every pair, many ports, asked one by one: `MARGAY_SEED` runs one world alone.
#[test]
fn groups_agree_with_asking_about_every_pair() {
    let given = std::env::var("MARGAY_SEED").ok().and_then(|text| text.parse().ok());
    let seeds = given.map_or(0..60, |seed: u64| seed..seed + 1);
    let mut changing = 0;
    for seed in seeds {
        let mut random = Random(seed);
        let [before, after] = [0, 1].map(|_| world(&mut random));
        let found = difference(&before, &after, &mut Progress::new());
        let expected = pairs(&before, &after);
        assert_eq!(found.pairs, expected, "MARGAY_SEED={seed} {found:?}");
        changing += usize::from(expected > 0);
    }
    assert!(given.is_some() || changing > 20, "most worlds differ: {changing}");
}

struct Random(u64);

impl Random {
    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        from[((mixed ^ mixed >> 31) % from.len() as u64) as usize]
    }
}

fn world(random: &mut Random) -> World {
    let mut lines = shop();
    let tier = random.pick(&["Deny", "Pass"]);
    lines.push_str(&format!("Tier first {{order: 1, defaultAction: {tier}}}\n"));
    for n in 0..3 {
        let selector = random.pick(&["role == 'db'", "role == 'web'", "role != 'api'", "all()"]);
        let mut rules = || {
            let rule = |random: &mut Random| {
                let action = random.pick(&["Allow", "Deny", "Pass"]);
                let side = random.pick(&["source", "destination"]);
                let who = random.pick(&[
                    "selector: role == 'api'",
                    "notSelector: role == 'web'",
                    "nets: [192.168.1.32/30]",
                    "notNets: [192.168.1.16/28]",
                    "",
                ]);
                let what = random.pick(&[
                    "",
                    "protocol: ICMP",
                    "notProtocol: TCP",
                    "protocol: UDP",
                    "protocol: TCP, destination: {ports: [80]}",
                    "protocol: TCP, destination: {ports: ['80:90', 443]}",
                    "protocol: TCP, destination: {notPorts: ['80:443']}",
                ]);
                match what.contains("destination") {
                    true => format!("{{action: {action}, {what}, source: {{{who}}}}}"),
                    false if what.is_empty() => format!("{{action: {action}, {side}: {{{who}}}}}"),
                    false => format!("{{action: {action}, {what}, {side}: {{{who}}}}}"),
                }
            };
            format!("[{}, {}]", rule(random), rule(random))
        };
        let (ingress, egress) = (rules(), rules());
        let types = random.pick(&["[Ingress]", "[Egress]", "[Ingress, Egress]"]);
        let tier = random.pick(&["first", "default"]);
        lines.push_str(&format!(
            "GlobalNetworkPolicy {tier}.p{n} {{tier: {tier}, selector: \"{selector}\", types: {types}, ingress: {ingress}, egress: {egress}}}\n"
        ));
    }
    let mut world = World::default();
    world.put(api::document::read("world", &documents(&lines)).expect("it is right"));
    world
}

fn pairs(before: &World, after: &World) -> usize {
    let pods: BTreeMap<Key, IpAddr> = before
        .endpoints()
        .map(|(key, pod)| (key.clone(), pod.spec.ip_networks[0].addr()))
        .collect();
    let states = [before, after].map(|world| States::new(world, pods.keys().cloned()).of(""));
    let mut packets = vec![(1, None, Some((8, 0)))];
    for protocol in [6, 17] {
        let ports = [1, 79, 80, 81, 90, 91, 442, 443, 444, 65535];
        packets.extend(ports.map(|port| (protocol, Some(port), None)));
    }
    let mut count = 0;
    for source in pods.values() {
        for destination in pods.values().filter(|other| *other != source) {
            let differs = packets.iter().any(|(protocol, port, icmp)| {
                let packet = Packet {
                    source: *source,
                    destination: *destination,
                    protocol: *protocol,
                    source_port: port.map(|_| 50_000),
                    destination_port: *port,
                    icmp: *icmp,
                };
                let [old, new] = [0, 1].map(|n: usize| connection(&states[n], &packet).is_allowed());
                old != new
            });
            count += usize::from(differs);
        }
    }
    count
}
