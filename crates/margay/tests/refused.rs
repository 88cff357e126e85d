//! A rule that a real kernel refuses: its policy is closed where that kernel is, everything else goes on, and whoever looks
//! anywhere is told.

mod common;

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use api::{Condition, Key, Kind};
use common::cluster::{Datastore, Pod, resource};
use common::net::{self, L4, Servers};
use common::told;
use common::{Lab, MARGAY};

/// The kernel takes no rule of more than 128 expressions, and each of these names is a look into a set of its own.
const NAMES: usize = 60;

fn policy(rule: &str) -> api::Resource {
    resource(&format!(
        "{{kind: GlobalNetworkPolicy, metadata: {{name: long}}, spec: {{selector: \"role == 'db'\", types: [Ingress], \
          ingress: [{rule}]}}}}"
    ))
}

/// What the policy says of nodes: type, reason and text of each condition.
fn said(store: &Datastore) -> Vec<(String, String, String)> {
    let policy = store.get(&Key::cluster(Kind::GlobalNetworkPolicy, "long"));
    let conditions = policy.map(|policy| policy.conditions()).unwrap_or_default();
    let of = |held: Condition| (held.kind, held.reason, held.message);
    conditions.into_iter().map(of).collect()
}

#[test]
fn a_rule_that_the_kernel_refuses_closes_its_policy_and_everybody_is_told() {
    let Some(lab) = Lab::up("t-refused", &["--nodes", "2", "--pods-per-node", "0"]) else {
        return;
    };
    let (store, nodes) = (Datastore::of(&lab), lab.nodes());
    let client = lab.add_pod("default", "client", &nodes[1], &[]);
    let db = lab.add_pod("default", "db", &nodes[0], &[("role", "db")]);
    let web = lab.add_pod("default", "web", &nodes[0], &[("role", "web")]);
    let ports = vec![(L4::Udp, 80), (L4::Udp, 81)];
    let _servers = Servers::start(&[(db.place.clone(), ports.clone()), (web.place.clone(), ports)]);
    let reaches = |pod: &Pod, port: u16, expected: bool| {
        let to: SocketAddr = (pod.address(false), port).into();
        net::reaches(&client.place, to, L4::Udp, expected)
    };
    assert!(reaches(&db, 80, true));

    let names: Vec<String> = (0..NAMES).map(|number| format!("p{number}")).collect();
    let names = names.join(", ");
    let refused = policy(&format!(
        "{{action: Allow, protocol: UDP, destination: {{notPorts: [{names}]}}}}"
    ));
    store.put(refused);
    lab.eventually("the policy says so", || !said(&store).is_empty());
    let before = said(&store);
    let [(kind, reason, message)] = before.as_slice() else {
        panic!("one node has such a pod: {before:?}")
    };
    assert_eq!(
        (kind, reason.as_str()),
        (&format!("{}/Enforced", nodes[0]), "RulesRefused")
    );
    assert!(
        message.contains("it denies what reaches it: the kernel refused add rule to chain cali-pi-gnp/long")
            && message.contains("Invalid argument"),
        "{message}"
    );
    assert!(!reaches(&db, 80, false), "a policy that is refused denies");
    assert!(reaches(&web, 80, true), "others are as they were");
    let closed = told::dropped(&lab, &nodes[0], "closed", Some("refused: GlobalNetworkPolicy long"));
    assert!(closed > 0, "{:?}", told::names(&lab, &nodes[0], "closed"));

    // Wherever one looks: from the other node, and on its own one.
    for node in &nodes {
        let shown = lab.exec(node, &["calicoctl", "get", "gnp", "long", "-o", "wide"]);
        assert!(shown.contains("refused"), "{node}: {shown}");
    }
    let status = lab.exec(&nodes[0], &["calicoctl", "node", "status"]);
    assert!(
        status.contains("GlobalNetworkPolicy(long): it denies what reaches it"),
        "{status}"
    );
    let explained = lab.try_lab(&["exec", &nodes[1], "--", "calicoctl", "explain", "client", "db:80/udp"]);
    let explained = common::text(&explained);
    assert!(
        explained.contains("DENIED") && explained.contains(&format!("on node {}, it denies", nodes[0])),
        "{explained}"
    );

    // It is tried again and again, and the log says it once.
    let tries = || {
        let metrics = told::metrics(&lab, &nodes[0]);
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix("margay_policy_transactions_total{result=\"refused\"} "));
        line.expect("a metric").parse::<u64>().expect("a number")
    };
    let first = tries();
    lab.eventually("it is tried again", || tries() > first);
    let log = lab.lab(&["logs", &nodes[0], "--lines", "10000"]);
    let warnings = log
        .lines()
        .filter(|line| line.contains(" WARN ") && line.contains("GlobalNetworkPolicy(long)"));
    assert_eq!(warnings.count(), 1, "{log}");

    // The node goes on: policies change, pods come.
    store.put(resource(
        "{kind: GlobalNetworkPolicy, metadata: {name: web}, spec: {selector: \"role == 'web'\", types: [Ingress], \
          ingress: [{action: Allow, protocol: UDP, destination: {ports: [81]}}]}}",
    ));
    lab.eventually("another policy is enforced", || !reaches(&web, 80, false));
    assert!(reaches(&web, 81, true));
    let later = lab.add_pod("default", "later", &nodes[0], &[("role", "db")]);
    let _more = Servers::start(&[(later.place.clone(), vec![(L4::Udp, 80)])]);
    assert!(!reaches(&later, 80, false), "the policy denies for a new pod too");

    // What was said stays as it was, over a restart and further tries.
    lab.lab(&["agent", "kill", &nodes[0]]);
    assert!(!reaches(&db, 80, false));
    lab.lab(&["agent", "start", &nodes[0]]);
    lab.lab(&["pod", "delete", "later"]);
    assert_eq!(said(&store), before);

    // A rule that the kernel takes: nothing is said any more.
    let long = Key::cluster(Kind::GlobalNetworkPolicy, "long");
    store.change(&long, |policy| {
        policy["spec"]["ingress"][0]["destination"] = serde_json::json!({ "ports": [80] });
    });
    lab.eventually("it is enforced", || reaches(&db, 80, true));
    assert!(!reaches(&db, 81, false));
    lab.eventually("it says nothing any more", || said(&store).is_empty());

    // What an agent said that found another kernel after its next start is taken back.
    lab.lab(&["agent", "kill", &nodes[0]]);
    store.change(&long, |policy| {
        policy["status"] = serde_json::json!({ "conditions": [{
            "type": format!("{}/Enforced", nodes[0]), "status": "False", "reason": "RulesRefused", "message": "x",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }] });
    });
    assert_eq!(said(&store).len(), 1);
    lab.lab(&["agent", "start", &nodes[0]]);
    lab.eventually("it is taken back", || said(&store).is_empty());
}

/// Another program that owns a table called as ours, as long as it runs: the kernel lets nobody else change that.
struct Owner(Child);

impl Owner {
    fn start(lab: &Lab, node: &str) -> Self {
        let mut child = Command::new("ip")
            .args(["netns", "exec", &lab.node_place(node), "nft", "-i"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("nft starts");
        let stdin = child.stdin.as_mut().expect("piped");
        writeln!(stdin, "add table inet calico {{ flags owner; }}").expect("it reads");
        let owner = Self(child);
        lab.eventually("the table is somebody's", || {
            let tables = lab.exec(node, &["nft", "list", "tables"]);
            tables.contains("inet calico")
        });
        owner
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_table_that_another_program_owns_is_said_and_ours_is_written_when_that_has_ended() {
    let Some(lab) = Lab::up("t-owned", &["--nodes", "2", "--pods-per-node", "0"]) else {
        return;
    };
    let (store, nodes) = (Datastore::of(&lab), lab.nodes());
    let client = lab.add_pod("default", "client", &nodes[1], &[]);
    let db = lab.add_pod("default", "db", &nodes[0], &[("role", "db")]);
    let _servers = Servers::start(&[(db.place.clone(), vec![(L4::Udp, 80), (L4::Udp, 81)])]);
    store.put(policy("{action: Allow, protocol: UDP, destination: {ports: [81]}}"));
    let reaches = |port: u16, expected: bool| {
        let to: SocketAddr = (db.address(false), port).into();
        net::reaches(&client.place, to, L4::Udp, expected)
    };
    lab.eventually("policy is enforced", || !reaches(80, false));

    lab.lab(&["agent", "kill", &nodes[0]]);
    lab.exec(&nodes[0], &["nft", "delete", "table", "inet", "calico"]);
    let owner = Owner::start(&lab, &nodes[0]);
    // It waits until the agent is ready, which it is not before the other one has ended.
    let mut start = Command::new(MARGAY)
        .args(["lab", "agent", "start", &nodes[0], "--name", lab.name])
        .spawn()
        .expect("margay starts");
    let status = || common::text(&lab.try_lab(&["exec", &nodes[0], "--", "calicoctl", "node", "status"]));
    lab.eventually("it is said", || {
        let said = status();
        said.contains("The node is NOT ready") && said.contains("Operation not permitted")
    });
    assert!(reaches(80, true), "nobody enforces anything");

    drop(owner);
    lab.eventually("policy is enforced again", || !reaches(80, false));
    assert!(reaches(81, true));
    lab.eventually("the node is ready", || status().contains("The node is ready"));
    assert!(!status().contains("Operation not permitted"), "{}", status());
    start.wait().expect("it ends");
}
