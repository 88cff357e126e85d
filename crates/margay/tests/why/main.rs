//! What `explain`, `policy diff` and `policy test` say of a live cluster, and what real packets then do: every pair of pods, two
//! ports, TCP and UDP, both families.

#[path = "../common/mod.rs"]
mod common;
mod explained;
mod resources;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use common::cluster::Pod;
use common::matrix::{self, PORTS, Square, squares};
use common::net::{L4, Servers};
use common::{Lab, MARGAY, text};
use resources::{DB, SECURITY, WIDER};
use serde_json::Value;

/// Two nodes with two pods each: so few that `policy diff` names every one.
struct World {
    lab: Lab,
    pods: Vec<Pod>,
    /// A machine that no agent knows.
    outside: String,
    _servers: Servers,
}

impl World {
    fn up(name: &'static str) -> Option<Self> {
        let lab = Lab::up(name, &["--nodes", "2", "--pods-per-node", "0", "--ipv6"])?;
        let nodes = lab.nodes();
        lab.lab(&["node", "add", "outside", "--no-agent"]);
        let pod =
            |namespace: &str, name: &str, node: usize| lab.add_pod(namespace, name, &nodes[node], &[("role", name)]);
        let pods = vec![
            pod("shop", "web", 0),
            pod("shop", "api", 1),
            pod("shop", "db", 0),
            pod("other", "guest", 1),
        ];
        let outside = lab.node_place("outside");
        let ports = PORTS.map(|port| [(L4::Tcp, port), (L4::Udp, port)]).concat();
        let places = pods.iter().map(|pod| &pod.place).chain([&outside]);
        let servers = Servers::start(&places.map(|place| (place.clone(), ports.clone())).collect::<Vec<_>>());
        Some(Self {
            lab,
            pods,
            outside,
            _servers: servers,
        })
    }

    /// The command on the lab's datastore, with this as its standard input.
    fn margay(&self, args: &[&str], input: &str) -> Output {
        let mut child = Command::new(MARGAY)
            .args(args)
            .env(
                "MARGAY_STORE_SOCKET",
                format!("/run/margay-lab/{}/store.sock", self.lab.name),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("margay starts");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(input.as_bytes()).expect("it reads");
        drop(stdin);
        child.wait_with_output().expect("margay ends")
    }

    fn fine(&self, args: &[&str], input: &str) -> String {
        let output = self.margay(args, input);
        assert!(output.status.success(), "{args:?}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Who reaches whom becomes this.
    fn packets_do(&self, what: &str, expected: &[bool]) {
        let all = squares(&self.pods);
        let wanted: BTreeMap<_, _> = all.iter().map(key).zip(expected).collect();
        let diagnose = || self.lab.lab(&["status"]);
        matrix::check(what, &self.pods, &|square| *wanted[&key(&square)], &diagnose);
    }

    /// Every square as an expectation.
    fn expectations(&self, expected: &[bool]) -> String {
        let line = |(square, passes): (&Square<'_>, &bool)| {
            format!(
                "- {{from: {}, to: \"{}\", port: {}, protocol: {}, expect: {}}}\n",
                square.from.name,
                square.to.address(square.ipv6),
                square.port,
                protocol(square.l4),
                word(*passes)
            )
        };
        squares(&self.pods).iter().zip(expected).map(line).collect()
    }
}

/// What tells squares apart.
fn key<'a>(square: &Square<'a>) -> (&'a str, &'a str, L4, u16, bool) {
    (&square.from.name, &square.to.name, square.l4, square.port, square.ipv6)
}

fn protocol(l4: L4) -> &'static str {
    match l4 {
        L4::Tcp => "TCP",
        L4::Udp => "UDP",
    }
}

fn word(passes: bool) -> &'static str {
    if passes { "Allow" } else { "Deny" }
}

/// What all four pods are called.
const ALL: &str = "4 pods of 2 namespaces";

/// Whether a list of names has this one.
fn names(list: &Value, name: &str) -> bool {
    let list = list.as_str().expect("names");
    let some = || list.split(", ").all(|it| it.contains('/'));
    assert!(list == ALL || some(), "so few pods are named one by one: {list}");
    list == ALL || list.split(", ").any(|it| it == name)
}

/// Whether `TCP`, `TCP 80`, `TCP except 80, 90-99` means this port.
fn means(ports: &str, l4: L4, port: u16) -> bool {
    let Some(rest) = ports.strip_prefix(protocol(l4)) else {
        return false;
    };
    let (rest, named) = match rest.strip_prefix(" except ") {
        Some(rest) => (rest, false),
        None => (rest.trim_start(), true),
    };
    let has = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let [first, last] = [first, last].map(|it| it.parse::<u16>().expect("a port"));
        (first..=last).contains(&port)
    };
    rest.is_empty() || rest.split(", ").any(has) == named
}

/// What `policy diff` says becomes of a square; `None`: it stays as it is.
fn becomes(difference: &Value, square: &Square<'_>, before: bool) -> Option<bool> {
    let family = if square.ipv6 { "IPv6" } else { "IPv4" };
    let list = |value: &Value| value.as_array().expect("a list").clone();
    let mut found = None;
    for change in list(&difference["changes"]) {
        for between in list(&change["between"]) {
            let is_meant = names(&between["from"], &square.from.name)
                && names(&between["to"], &square.to.name)
                && list(&between["families"]).iter().any(|it| it == family)
                && list(&between["ports"])
                    .iter()
                    .any(|it| means(it.as_str().expect("ports"), square.l4, square.port));
            if is_meant {
                assert_eq!(change["before"], word(before), "{:?}: {difference}", key(square));
                assert_eq!(found, None, "{:?} is named twice: {difference}", key(square));
                found = Some(change["after"] == "Allow");
            }
        }
    }
    found
}

#[test]
fn policy_diff_names_what_then_changes_and_policy_test_what_then_holds() {
    let Some(world) = World::up("t-why-diff") else { return };
    let all = squares(&world.pods);
    let mut passes = vec![true; all.len()];
    world.packets_do("without policies", &passes);
    let security = SECURITY.replace("@OUTSIDE@", "192.0.2.1/32");
    let steps = [
        // What happens, in which way; how many ordered pairs of pods change, of 12.
        ("a NetworkPolicy comes", DB, "apply", 3),
        ("a tier and its policy come", security.as_str(), "apply", 3),
        ("another text of the NetworkPolicy", WIDER, "apply", 10),
        (
            "the tier's policy goes",
            security.split("---").nth(1).expect("two documents"),
            "delete",
            3,
        ),
        ("the NetworkPolicy goes", WIDER, "delete", 10),
    ];
    for (what, file, verb, pairs) in steps {
        let mut diff = vec!["policy", "diff", "-f", "-", "-o", "json"];
        diff.extend((verb == "delete").then_some("--delete"));
        let difference: Value = serde_json::from_str(&world.fine(&diff, file)).expect("JSON");
        assert_eq!(
            (&difference["pairs"], &difference["ofPairs"]),
            (&pairs.into(), &12.into()),
            "{what}: {difference}"
        );
        world.packets_do(&format!("{what}: nothing is written yet"), &passes);
        let before = passes.clone();
        for (square, passes) in all.iter().zip(&mut passes) {
            *passes = becomes(&difference, square, *passes).unwrap_or(*passes);
        }
        assert_ne!(passes, before, "{what}");

        // Expectations of every square hold for the file, before it is applied, and not without it.
        let expectations = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(expectations.path(), world.expectations(&passes)).expect("written");
        let path = expectations.path().to_string_lossy();
        let all_met = format!("{0} of {0} expectations are met\n", all.len());
        if verb == "apply" {
            let said = world.fine(&["policy", "test", &path, "-f", "-"], file);
            assert_eq!(said, all_met, "{what}");
            let changed = before
                .iter()
                .zip(&passes)
                .filter(|(before, after)| before != after)
                .count();
            let stored = world.margay(&["policy", "test", &path], "");
            let unmet = match changed {
                1 => "1 expectation is not met".to_owned(),
                changed => format!("{changed} expectations are not met"),
            };
            assert_eq!(stored.status.code(), Some(1), "{what}: {}", text(&stored));
            assert!(text(&stored).contains(&unmet), "{what}: {unmet}: {}", text(&stored));
        }
        world.fine(&[verb, "-f", "-"], file);
        world.packets_do(what, &passes);
        assert_eq!(world.fine(&["policy", "test", &path], ""), all_met, "{what}");
    }
    assert!(passes.iter().all(|passes| *passes), "all is gone");

    // One that is only rehearsed changes nothing, and would change what the real one has changed above.
    let real = world.fine(&["policy", "diff", "-f", "-"], DB);
    world.fine(
        &["apply", "-f", "-"],
        &DB.replace("kind: NetworkPolicy", "kind: StagedNetworkPolicy"),
    );
    assert_eq!(world.fine(&["policy", "diff", "--staged"], ""), real);
    world.packets_do("a policy is rehearsed", &passes);
}
