//! Agents that start while their datastore is away: what the last one knew keeps the node in the network, and its host endpoints
//! closed after a boot.

mod common;

use std::fs;
use std::net::{IpAddr, SocketAddr};

use common::Lab;
use common::cluster::{Datastore, resource};
use common::net::{self, L4, Servers};
use lab::processes;
use lab::record::Folder;
use nix::sys::signal::{Signal, kill};

const UNDERLAY: &str = "ens33";

/// What an agent has written down of the cluster.
fn last_known(lab: &Lab, node: &str) -> String {
    let file = Folder::of(lab.name).state_dir(node).join("last-known.jsonl");
    fs::read_to_string(file).unwrap_or_default()
}

/// The address of a node's underlay.
fn underlay(lab: &Lab, node: &str, family: &str) -> IpAddr {
    lab.first_address(node, UNDERLAY, family == "-6")
}

/// As after a boot: nobody remembers a flow, and nothing of ours is in the kernel's packet filter.
fn forget_filter(lab: &Lab, node: &str) {
    lab.exec(node, &["nft", "delete", "table", "inet", "calico"]);
    lab.exec(node, &["conntrack", "-F"]);
}

fn status(lab: &Lab, node: &str) -> String {
    let output = lab.try_lab(&["exec", node, "--", "calicoctl", "node", "status"]);
    common::text(&output)
}

#[test]
fn host_endpoints_are_closed_after_a_boot_until_policy_is_known() {
    let Some(lab) = Lab::up("t-boot", &["--nodes", "2", "--pods-per-node", "1", "--ipv6"]) else {
        return;
    };
    lab.lab(&["node", "add", "outside", "--no-agent"]);
    let nodes = lab.nodes();
    let (guarded, open) = (nodes[0].as_str(), nodes[1].as_str());
    let outside = lab.node_place("outside");
    let ports = [(L4::Tcp, 22), (L4::Tcp, 2022), (L4::Tcp, 7777), (L4::Tcp, 7778)].to_vec();
    let places = [guarded, open, "outside"].map(|node| (lab.node_place(node), ports.clone()));
    let _servers = Servers::start(&places);
    let reach = |from: &str, to: &str, port: u16, expected: bool| {
        ["-4", "-6"].map(|family| {
            let to = SocketAddr::from((underlay(&lab, to, family), port));
            net::reaches(from, to, L4::Tcp, expected)
        })
    };
    // What is said of each port holds for both families.
    let check = |when: &str, to: &str, expected: [(u16, bool); 4]| {
        for (port, expected) in expected {
            let got = reach(&outside, to, port, expected);
            assert_eq!(got, [expected; 2], "{when}: {to}, port {port}");
        }
    };
    let everything = [(22, true), (2022, true), (7777, true), (7778, true)];
    let by_policy = [(22, false), (2022, true), (7777, true), (7778, false)];
    let closed = [(22, false), (2022, true), (7777, false), (7778, false)];

    // The operator has moved SSH.
    let store = Datastore::of(&lab);
    store.put(resource(
        "{kind: FelixConfiguration, metadata: {name: default}, spec: {failsafeInboundHostPorts: [{protocol: tcp, port: 2022}]}}",
    ));
    store.put(resource(&format!(
        "{{kind: HostEndpoint, metadata: {{name: guarded, labels: {{host: guarded}}}}, spec: {{node: {guarded}, interfaceName: {UNDERLAY}}}}}"
    )));
    store.put(resource(
        "{kind: GlobalNetworkPolicy, metadata: {name: hosts}, spec: {selector: \"host == 'guarded'\", \
          ingress: [{action: Allow, protocol: TCP, destination: {ports: [7777]}}], egress: [{action: Allow}]}}",
    ));
    lab.eventually("policy is enforced", || {
        reach(&outside, guarded, 7778, false) == [false; 2]
    });
    check("by policy", guarded, by_policy);
    lab.eventually("it is written down", || {
        let known = last_known(&lab, guarded);
        known.contains("HostEndpoint") && known.contains("2022")
    });
    assert!(!last_known(&lab, open).contains("HostEndpoint"));

    // Both nodes boot while the datastore is away.
    lab.lab(&["store", "kill"]);
    for node in [guarded, open] {
        lab.lab(&["agent", "kill", node]);
        forget_filter(&lab, node);
        check("nobody protects it", node, everything);
        lab.lab(&["agent", "start", node, "--no-wait"]);
        lab.eventually("it has made its table", || {
            lab.exec(node, &["nft", "list", "tables"]).contains("calico")
        });
    }
    check("after a boot", guarded, closed);
    check("after a boot", open, everything);
    let host = lab.node_place(guarded);
    assert_eq!(
        reach(&host, "outside", 7778, true),
        [true; 2],
        "what the host begins is let out"
    );
    assert!(net::reaches(
        &host,
        "127.0.0.1:7777".parse().expect("an address"),
        L4::Tcp,
        true
    ));
    lab.eventually("status says so", || {
        status(&lab, guarded).contains("HostEndpoint(guarded): after a boot, closed")
    });
    // Another agent finds the table, and leaves it as it is.
    lab.lab(&["agent", "kill", guarded]);
    lab.lab(&["agent", "start", guarded, "--no-wait"]);
    lab.eventually("the next agent answers", || {
        status(&lab, guarded).contains("Unreachable")
    });
    check("after the next start", guarded, closed);

    lab.lab(&["store", "start"]);
    lab.eventually("policy is enforced again", || {
        reach(&outside, guarded, 7777, true) == [true; 2]
    });
    check("by policy again", guarded, by_policy);
    check("by policy again", open, everything);
    assert!(!status(&lab, guarded).contains("after a boot"));

    // A host endpoint that is gone when the datastore is back is gone.
    lab.lab(&["agent", "kill", guarded]);
    forget_filter(&lab, guarded);
    Datastore::of(&lab).delete(&api::Key::cluster(api::Kind::HostEndpoint, "guarded"));
    lab.lab(&["agent", "start", guarded]);
    lab.eventually("nothing is closed", || {
        reach(&outside, guarded, 7778, true) == [true; 2]
    });
    check("without a host endpoint", guarded, everything);
    let chains = lab.exec(guarded, &["nft", "list", "table", "inet", "calico"]);
    assert!(
        !chains.contains("guarded") && !chains.contains("until_policy"),
        "{chains}"
    );
}

#[test]
fn a_booted_host_lets_nothing_through_that_policies_judge_and_can_be_closed_before_its_agent_starts() {
    let Some(lab) = Lab::up("t-boot-first", &["--nodes", "2", "--pods-per-node", "0"]) else {
        return;
    };
    lab.lab(&["node", "add", "outside", "--no-agent"]);
    let nodes = lab.nodes();
    let (guarded, behind) = (nodes[0].as_str(), nodes[1].as_str());
    let outside = lab.node_place("outside");
    // What is behind the guarded node: packets from outside go through it, answers come straight back.
    let address = |node: &str| underlay(&lab, node, "-4").to_string();
    let (guarded_ip, behind_ip) = (address(guarded), address(behind));
    lab.exec(behind, &["ip", "address", "add", "10.99.0.1/32", "dev", "lo"]);
    lab.exec(guarded, &["ip", "route", "add", "10.99.0.1", "via", &behind_ip]);
    lab.exec("outside", &["ip", "route", "add", "10.99.0.1", "via", &guarded_ip]);
    let outside_ip = address("outside");
    lab.exec(
        behind,
        &["ip", "route", "add", &outside_ip, "dev", UNDERLAY, "src", "10.99.0.1"],
    );
    // Nobody is told of the shorter way.
    for device in ["all", UNDERLAY] {
        let setting = format!("net.ipv4.conf.{device}.send_redirects=0");
        lab.exec(guarded, &["sysctl", "-qw", &setting]);
    }
    let ports = [(L4::Udp, 7777), (L4::Tcp, 22), (L4::Tcp, 7777)].to_vec();
    let _servers = Servers::start(&[guarded, behind, "outside"].map(|node| (lab.node_place(node), ports.clone())));
    let through = |expected: bool| net::reaches(&outside, "10.99.0.1:7777".parse().expect("it"), L4::Udp, expected);
    let host = |port: u16, expected: bool| {
        let to = SocketAddr::new(underlay(&lab, guarded, "-4"), port);
        net::reaches(&outside, to, L4::Tcp, expected)
    };
    let check = |when: &str, expected: [bool; 3]| {
        let got = [host(22, expected[0]), host(7777, expected[1]), through(expected[2])];
        assert_eq!(got, expected, "{when}: SSH, another port, through");
    };

    let store = Datastore::of(&lab);
    store.put(resource(&format!(
        "{{kind: HostEndpoint, metadata: {{name: guarded, labels: {{host: guarded}}}}, spec: {{node: {guarded}, interfaceName: {UNDERLAY}}}}}"
    )));
    store.put(resource(
        "{kind: GlobalNetworkPolicy, metadata: {name: hosts}, spec: {selector: \"host == 'guarded'\", applyOnForward: true, \
          types: [Ingress, Egress], ingress: [{action: Allow, protocol: UDP, destination: {ports: [7777]}}], egress: [{action: Allow}]}}",
    ));
    lab.eventually("policy is enforced", || !host(7777, false));
    check("by policy", [true, false, true]);
    lab.eventually("it is written down", || {
        let known = last_known(&lab, guarded);
        known.contains("HostEndpoint") && known.contains("GlobalNetworkPolicy")
    });

    // A boot, as a unit before the network sees it: no agent, no datastore.
    lab.lab(&["store", "kill"]);
    lab.lab(&["agent", "kill", guarded]);
    forget_filter(&lab, guarded);
    check("nobody protects it", [true; 3]);
    let state_dir = Folder::of(lab.name).state_dir(guarded).display().to_string();
    let place = lab.node_place(guarded);
    let margay = env!("CARGO_BIN_EXE_margay");
    let boot = || {
        common::run(&[
            "ip",
            "netns",
            "exec",
            &place,
            margay,
            "agent",
            "boot",
            "--state-dir",
            &state_dir,
        ])
    };
    let said = boot();
    assert!(said.contains("HostEndpoint(guarded): after a boot, closed"), "{said}");
    check("closed before the agent", [true, false, false]);
    let out = SocketAddr::new(underlay(&lab, "outside", "-4"), 7777);
    assert!(
        net::reaches(&place, out, L4::Tcp, true),
        "what the host begins is let out"
    );
    let said = boot();
    assert!(said.contains("stays as it is"), "{said}");

    // A file that cannot be read: all devices.
    let file = Folder::of(lab.name).state_dir(guarded).join("last-known.jsonl");
    let known = last_known(&lab, guarded);
    forget_filter(&lab, guarded);
    fs::write(&file, &known[..known.len() / 2]).expect("written");
    let said = boot();
    assert!(said.contains("all devices: after a boot, closed"), "{said}");
    check("nothing is known", [true, false, false]);
    fs::write(&file, known).expect("written");

    // The agent leaves it so, says so, and opens when it knows policy.
    lab.lab(&["agent", "start", guarded, "--no-wait"]);
    lab.eventually("status says so", || {
        status(&lab, guarded).contains("HostEndpoint(guarded): after a boot, closed")
    });
    check("with an agent", [true, false, false]);
    lab.lab(&["store", "start"]);
    lab.eventually("policy is enforced again", || through(true));
    check("by policy again", [true, false, true]);
    assert!(!status(&lab, guarded).contains("after a boot"));
}

#[test]
fn an_agent_without_its_datastore_is_part_of_the_network_as_before() {
    let Some(lab) = Lab::up("t-outage", &["--nodes", "3", "--pods-per-node", "1"]) else {
        return;
    };
    let store = Datastore::of(&lab);
    store.put(resource(
        "{kind: BGPConfiguration, metadata: {name: default}, spec: {nodeMeshMaxRestartTime: 5s}}",
    ));
    let nodes = lab.nodes();
    let node = nodes[1].as_str();
    lab.eventually("it is written down", || {
        last_known(&lab, node).contains("nodeMeshMaxRestartTime")
    });
    let sessions = |node: &str| status(&lab, node).matches("Established").count();
    lab.eventually("sessions", || sessions(node) >= 2);
    let known = last_known(&lab, node);

    // The datastore is gone. The pings go on for longer than the restart time that peers grant.
    lab.lab(&["store", "kill"]);
    let restarted = || {
        lab.lab(&["agent", "kill", node]);
        lab.lab(&["agent", "start", node, "--no-wait"]);
        lab.eventually("sessions without a datastore", || sessions(node) >= 2);
    };
    lab.no_packet_is_lost("pod-1-1", "pod-2-1", 800, restarted);
    assert!(status(&lab, node).contains("going on from what an earlier agent knew"));
    assert_eq!(last_known(&lab, node), known, "what is known stays known");
    for peer in [&nodes[0], &nodes[2]] {
        let routes = lab.exec(peer, &["ip", "route", "show", "proto", "80"]);
        assert!(
            routes.contains(&format!("via {}", underlay(&lab, node, "-4"))),
            "{peer}: {routes}"
        );
    }

    // A boot: routes and tunnel are gone too.
    lab.lab(&["agent", "kill", node]);
    forget_filter(&lab, node);
    lab.exec(node, &["ip", "route", "flush", "proto", "80"]);
    lab.exec(node, &["ip", "link", "delete", "tunl0"]);
    lab.lab(&["agent", "start", node, "--no-wait"]);
    lab.eventually("its routes are back", || {
        let routes = lab.exec(node, &["ip", "route", "show", "proto", "80"]);
        routes.matches("dev tunl0").count() >= 2
    });

    // What is gone when the datastore is back is gone: here a peer of which only the file knows.
    lab.lab(&["agent", "kill", node]);
    let peer = r#"{"kind":"BGPPeer","metadata":{"name":"gone"},"spec":{"peerIP":"10.211.55.99","asNumber":64999}}"#;
    let file = Folder::of(lab.name).state_dir(node).join("last-known.jsonl");
    fs::write(&file, format!("{known}{peer}\n")).expect("written");
    lab.lab(&["agent", "start", node, "--no-wait"]);
    lab.eventually("its peer", || status(&lab, node).contains("10.211.55.99"));
    lab.lab(&["store", "start"]);
    lab.eventually("its peer is gone", || {
        let status = status(&lab, node);
        status.contains("InSync") && !status.contains("10.211.55.99")
    });
    lab.eventually("the file is right again", || last_known(&lab, node) == known);
    lab.lab(&["ping", "pod-1-1", "pod-2-1"]);

    // Half a file is no picture: the agent says so and waits for the datastore.
    lab.lab(&["store", "kill"]);
    lab.lab(&["agent", "kill", node]);
    fs::write(&file, &known[..known.len() / 2]).expect("written");
    lab.lab(&["agent", "start", node, "--no-wait"]);
    lab.eventually("it is unreachable", || status(&lab, node).contains("Unreachable"));
    assert!(status(&lab, node).contains("the speaker has no configuration yet"));
    assert!(
        lab.lab(&["logs", node])
            .contains("the last known state of the cluster is not used")
    );

    // One that takes connections and says nothing: the agent waits for it, but not long. Peers grant it that.
    lab.lab(&["store", "start"]);
    let mesh = "{kind: BGPConfiguration, metadata: {name: default}, spec: {nodeMeshMaxRestartTime: 20s}}";
    Datastore::of(&lab).put(resource(mesh));
    lab.eventually("it is written down", || last_known(&lab, node).contains("20s"));
    lab.lab(&["agent", "restart", node]);
    lab.eventually("sessions", || sessions(node) >= 2);
    let pid = processes::find(Folder::of(lab.name).path())[processes::STORE];
    kill(pid, Signal::SIGSTOP).expect("it is ours");
    lab.no_packet_is_lost("pod-1-1", "pod-2-1", 900, restarted);
    kill(pid, Signal::SIGCONT).expect("it is ours");
    lab.eventually("in sync", || status(&lab, node).contains("InSync"));
    lab.lab(&["ping", "pod-1-1", "pod-2-1"]);
    let logged = lab.lab(&["logs", node]);
    assert!(!logged.contains("panicked"), "{logged}");
}
