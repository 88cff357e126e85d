//! Whole clusters on the live kernel: the walk-through, what survives what, and that nothing is left behind.
//! Checked with the distribution's own `ip` and `tcpdump`.

mod common;

use std::process::{Command, Stdio};

use common::{Lab, MARGAY, margay_lab, run, text, turn};

#[test]
fn the_walk_through_shows_what_its_reader_expects() {
    let Some(lab) = Lab::up("t-walk", &[]) else { return };
    let (near, far) = (lab.address("cni-1"), lab.address("cni-2"));

    // 5 and 6: the command line.
    let version = lab.ctl(&["--allow-version-mismatch", "version"]);
    assert!(
        version.contains("Client Version:") && version.contains("Cluster Type:"),
        "{version}"
    );
    let weps = lab.ctl(&["get", "workloadEndpoint", "-o", "wide", "-A"]);
    let header: Vec<&str> = weps.lines().next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(
        header,
        [
            "NAMESPACE",
            "NAME",
            "WORKLOAD",
            "NODE",
            "NETWORKS",
            "INTERFACE",
            "PROFILES",
            "NATS"
        ]
    );
    let row: Vec<&str> = row(&weps, "cni-1").split_whitespace().collect();
    let device = run(&["sh", "-c", "printf default.cni-1 | sha1sum"])[..11].to_string();
    let networks = format!("{near}/32");
    assert_eq!(
        row[1..5],
        ["k8s--125--node1-k8s-cni--1-eth0", "cni-1", "k8s-125-node1", &networks]
    );
    assert_eq!(row[5], format!("cali{device}"), "upstream's SHA-1 rule");
    assert_eq!(lab.ctl(&["get", "wep", "-o", "wide", "-A"]), weps, "short name");

    // 12 and 13: the pod's interface, and which of the node's it belongs to.
    let eth0 = lab.exec("cni-1", &["ip", "-o", "link", "show", "eth0"]);
    assert!(eth0.contains("mtu 1480"), "20 bytes less than the underlay: {eth0}");
    let statistics = lab.exec("cni-1", &["ethtool", "-S", "eth0"]);
    let peer = statistics
        .lines()
        .find_map(|line| line.trim().strip_prefix("peer_ifindex: "))
        .expect("peer_ifindex");
    let end = lab.exec("k8s-125-node1", &["ip", "-o", "link", "show", &format!("cali{device}")]);
    assert!(end.starts_with(&format!("{peer}: ")), "{peer} {end}");
    assert!(end.contains("link/ether ee:ee:ee:ee:ee:ee"), "{end}");

    // 14: the pod's routes.
    let routes = lab.exec("cni-1", &["ip", "route"]);
    assert!(routes.contains("default via 169.254.1.1 dev eth0"), "{routes}");
    assert!(routes.contains("169.254.1.1 dev eth0 scope link"), "{routes}");

    // 15: ARP without the permanent entry is answered too, by ee:ee:ee:ee:ee:ee.
    let asked = lab.exec(
        "cni-1",
        &[
            "sh",
            "-c",
            "ip neigh del 169.254.1.1 dev eth0; ping -c1 -W2 169.254.1.1 >/dev/null; ip neigh show 169.254.1.1",
        ],
    );
    assert!(asked.contains("lladdr ee:ee:ee:ee:ee:ee"), "{asked}");
    lab.exec(
        "cni-1",
        &[
            "ip",
            "neigh",
            "replace",
            "169.254.1.1",
            "lladdr",
            "ee:ee:ee:ee:ee:ee",
            "nud",
            "permanent",
            "dev",
            "eth0",
        ],
    );

    // 16: beside; TTL falls by one on the way and the reply comes with 63.
    let ping = lab.lab(&["ping", "c1", "cni-1"]);
    assert!(ping.contains("ttl=63") && ping.contains("0 lost"), "{ping}");

    // 17: the node's routes.
    let table = lab.exec("k8s-125-node1", &["ip", "route"]);
    let near_block = block(&near);
    let far_block = block(&far);
    assert!(
        table.contains(&format!(
            "{far_block} via 10.211.55.9 dev tunl0 proto 80 metric 1024 onlink"
        )),
        "{table}"
    );
    assert!(table.contains(&format!("blackhole {near_block} proto 80")), "{table}");
    assert!(
        table.contains(&format!("{near} dev cali{device} proto 80 scope link")),
        "{table}"
    );

    // 18: across nodes, seen by tcpdump.
    let seen = captured_by_tcpdump(&lab, "k8s-125-node1", &far);
    assert!(
        seen.contains("10.211.55.8 > 10.211.55.9: IP") && seen.contains(&format!("{near} > {far}: ICMP echo request")),
        "{seen}"
    );

    // 19: the agent's own words.
    let status = lab.exec("k8s-125-node1", &["calicoctl", "node", "status"]);
    assert!(
        status.contains("The node is ready.") && status.matches("Established").count() >= 2,
        "{status}"
    );

    // The tour shows all of it, read from the running cluster.
    let tour = lab.lab(&["tour"]);
    for part in [
        &near,
        &far,
        "protocol 4 (IP-in-IP)",
        "ee:ee:ee:ee:ee:ee",
        "onlink",
        "Established",
        "peer_ifindex",
    ] {
        assert!(tour.contains(part), "the tour lacks {part}:\n{tour}");
    }
    let again = margay_lab(&["up", "--name", lab.name]);
    assert!(
        again.status.success() && text(&again).contains("is up already"),
        "{}",
        text(&again)
    );
}

#[test]
fn down_leaves_nothing_behind() {
    let before = {
        let Some(_turn) = turn() else { return };
        machine("t-trace")
    };
    let Some(lab) = Lab::up("t-trace", &["--nodes", "2", "--pods-per-node", "1"]) else {
        return;
    };
    assert_ne!(machine("t-trace"), before, "the snapshot sees a lab");
    drop(lab);
    let Some(_turn) = turn() else { return };
    assert_eq!(machine("t-trace"), before);
}

#[test]
fn killing_an_agent_loses_no_packet() {
    let Some(lab) = Lab::up("t-kill", &[]) else { return };
    lab.no_packet_is_lost("cni-1", "cni-2", 1000, || {
        for node in ["k8s-125-node1", "k8s-125-node2"] {
            lab.lab(&["agent", "kill", node]);
            lab.lab(&["agent", "start", node]);
        }
        lab.lab(&["agent", "restart", "k8s-125-node1"]);
    });
    // Nothing was rewritten for it, and all is as before.
    lab.lab(&["ping", "cni-2", "c1"]);
}

#[test]
fn the_cluster_switches_encapsulation_without_losing_a_packet() {
    let Some(lab) = Lab::up("t-mode", &[]) else { return };
    let far_block = block(&lab.address("cni-2"));
    let route = || lab.exec("k8s-125-node1", &["ip", "route", "show", &far_block]);
    let pool = lab.ctl(&["get", "ippool", "default-ipv4-ippool", "-o", "yaml", "--export"]);
    assert!(pool.contains("ipipMode: Always"), "{pool}");
    lab.no_packet_is_lost("cni-1", "cni-2", 800, || {
        for (mode, device) in [
            ("Never", "dev ens33"),
            ("Always", "dev tunl0"),
            ("CrossSubnet", "dev ens33"),
            ("Always", "dev tunl0"),
        ] {
            apply(&lab, &pool.replace("ipipMode: Always", &format!("ipipMode: {mode}")));
            lab.eventually(&format!("ipipMode {mode}"), || route().contains(device));
        }
    });
    let both = apply_output(&lab, &pool.replace("vxlanMode: Never", "vxlanMode: Always"));
    assert!(
        !both.0 && both.1.contains("vxlanMode"),
        "IPIP and VXLAN together are refused: {}",
        both.1
    );
}

#[test]
fn drift_is_repaired_at_once() {
    let Some(lab) = Lab::up("t-drift", &[]) else { return };
    let node = "k8s-125-node1";
    let (near, far) = (lab.address("cni-1"), lab.address("cni-2"));
    let routes = || lab.exec(node, &["ip", "route"]);
    let good = routes();
    for broken in [
        format!("ip route del {}", block(&far)),
        format!("ip route del {near}"),
        format!("ip route del blackhole {}", block(&near)),
        format!(
            "ip route replace {} via 10.211.55.7 dev ens33 proto 80 metric 1024",
            block(&far)
        ),
        "ip link set tunl0 down".to_string(),
        "ip address flush dev tunl0".to_string(),
        "ip link del tunl0".to_string(),
    ] {
        lab.exec(node, &["sh", "-c", &broken]);
        lab.eventually(&broken, || routes() == good);
        lab.eventually(&broken, || {
            lab.try_lab(&["ping", "c1", "cni-2", "-c", "1"]).status.success()
        });
    }
    // What is not ours stays.
    lab.exec(node, &["ip", "route", "add", "203.0.113.0/24", "via", "10.211.55.1"]);
    lab.exec(node, &["ip", "route", "del", &near]);
    lab.eventually("the pod's route", || routes().contains(&near));
    assert!(routes().contains("203.0.113.0/24 via 10.211.55.1"));
}

#[test]
fn a_node_that_runs_bird_joins_the_mesh() {
    let Some(lab) = Lab::up("t-bird", &[]) else { return };
    let added = lab.lab(&["node", "add", "bird-node", "--no-agent"]);
    let address = added
        .split_whitespace()
        .find(|word| word.starts_with("10.211.55."))
        .expect("an address")
        .trim_end_matches(',')
        .to_string();
    apply(
        &lab,
        &format!(
            "{{apiVersion: projectcalico.org/v3, kind: Node, metadata: {{name: bird-node}}, spec: {{bgp: {{ipv4Address: {address}/24}}}}}}"
        ),
    );
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("bird.conf");
    let neighbours: String = ["10.211.55.7", "10.211.55.8", "10.211.55.9"]
        .iter()
        .enumerate()
        .map(|(i, neighbour)| {
            format!(
                "protocol bgp mesh{i} {{ local {address} as 64512; neighbor {neighbour} as 64512; graceful restart on;\n\
                 ipv4 {{ import all; export where source = RTS_STATIC; next hop self; }}; }}\n"
            )
        })
        .collect();
    let text = format!(
        "router id {address};\nprotocol device {{}}\nprotocol direct {{ ipv4; }}\nprotocol kernel {{ ipv4 {{ export all; }}; }}\n\
         protocol static {{ ipv4; route 192.168.77.64/26 blackhole; }}\n{neighbours}"
    );
    std::fs::write(&config, text).expect("the configuration");
    let socket = folder.path().join("bird.ctl");
    let netns = format!("{}.bird-node", lab.name);
    let bird = Command::new("ip")
        .args(["netns", "exec", &netns, "bird", "-f", "-c"])
        .arg(&config)
        .arg("-s")
        .arg(&socket)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("bird starts (package bird2)");
    let bird = Ended(bird);

    // BIRD's block reaches the agents' kernels, and the nodes' blocks reach BIRD's.
    let near_block = block(&lab.address("cni-1"));
    lab.eventually("BIRD's block on node1", || {
        lab.exec("k8s-125-node1", &["ip", "route"])
            .contains(&format!("192.168.77.64/26 via {address} dev tunl0 proto 80"))
    });
    lab.eventually("node1's block on BIRD's node", || {
        lab.exec("bird-node", &["ip", "route"])
            .contains(&format!("{near_block} via 10.211.55.8"))
    });
    let status = lab.exec("k8s-125-node1", &["calicoctl", "node", "status"]);
    assert!(
        status
            .lines()
            .any(|line| line.contains(&address) && line.contains("Established")),
        "{status}"
    );
    drop(bird);
}

#[test]
fn an_address_of_another_node_is_refused() {
    let Some(lab) = Lab::up("t-taken", &["--nodes", "2", "--pods-per-node", "1"]) else {
        return;
    };
    let refused = Command::new("ip")
        .args(["netns", "exec", &format!("{}.k8s-125-node1", lab.name), MARGAY, "agent"])
        .env(
            "MARGAY_STORE_SOCKET",
            format!("/run/margay-lab/{}/store.sock", lab.name),
        )
        .env("NODENAME", "intruder")
        .env("MARGAY_RUN_DIR", format!("/run/margay-lab/{}/intruder/run", lab.name))
        .env(
            "MARGAY_STATE_DIR",
            format!("/run/margay-lab/{}/intruder/state", lab.name),
        )
        .env("FELIX_HEALTHPORT", "0")
        .output()
        .expect("margay runs");
    assert!(!refused.status.success());
    assert!(
        text(&refused).contains("10.211.55.8 is already used by node k8s-125-node1"),
        "{}",
        text(&refused)
    );
    // The rightful owner noticed nothing.
    lab.lab(&["ping", "pod-0-1", "pod-1-1"]);
}

#[test]
fn a_shell_that_talks_to_the_lab_keeps_its_own_margay() {
    let Some(lab) = Lab::up("t-shell", &["--nodes", "1", "--pods-per-node", "0"]) else {
        return;
    };
    let script = format!(
        r#"eval "$({MARGAY} lab env --name {})"; calicoctl get nodes -o name; command -v margay; calicoctl --help"#,
        lab.name
    );
    let output = Command::new("sh")
        .args(["-c", &script])
        .env("PATH", "/usr/bin:/bin")
        .output();
    let shown = text(&output.expect("a shell"));
    assert!(
        shown.starts_with("Node/k8s-125-master\nThe command line tool"),
        "{shown}"
    );
}

#[test]
fn up_cleans_up_after_a_crash() {
    let Some(lab) = Lab::up("t-crash", &["--nodes", "2", "--pods-per-node", "1"]) else {
        return;
    };
    lab.lab(&["agent", "kill", "k8s-125-node1"]);
    run(&[
        "sh",
        "-c",
        &format!(
            "grep -l /run/margay-lab/{}:store /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3 | xargs -r kill -9",
            lab.name
        ),
    ]);
    // By the lab's own copy, which the cleaning up removes.
    let again = Command::new(format!("/run/margay-lab/{}/bin/margay", lab.name))
        .args(["lab", "up", "--name", lab.name, "--nodes", "2", "--pods-per-node", "1"])
        .output()
        .expect("the lab's copy runs");
    assert!(again.status.success(), "{}", text(&again));
    assert!(text(&again).contains("cleaning up"), "{}", text(&again));
    lab.lab(&["ping", "pod-0-1", "pod-1-1"]);
}

#[test]
fn what_is_in_use_is_refused_and_nothing_is_half_made() {
    let Some(_turn) = turn() else { return };
    let before = machine("t-used");
    run(&["ip", "netns", "add", "t-used.k8s-125-node1"]);
    let refused = margay_lab(&["up", "--name", "t-used"]);
    run(&["ip", "netns", "delete", "t-used.k8s-125-node1"]);
    assert!(!refused.status.success());
    assert!(
        text(&refused).contains("network namespace t-used.k8s-125-node1 is already in use"),
        "{}",
        text(&refused)
    );
    for (args, words) in [
        (
            vec!["--pool", "10.211.0.0/16", "--nodes", "1"],
            "pool 10.211.0.0/16 is already in use by the lab's fabric 10.211.55.0/24",
        ),
        (vec!["--nodes", "0"], "--nodes: `0` is out of range: 1 to 240"),
        (vec!["--from", "/nonexistent.yaml"], "/nonexistent.yaml: No such file"),
    ] {
        let refused = margay_lab(&[vec!["up", "--name", "t-used"], args].concat());
        assert!(
            !refused.status.success() && text(&refused).contains(words),
            "{words}: {}",
            text(&refused)
        );
    }
    assert_eq!(machine("t-used"), before);
}

/// What a lab of this name could leave: links and routes of the machine, and by name: namespaces, mounts, files, processes.
/// Other labs may come and go meanwhile.
fn machine(lab: &str) -> String {
    let named = |text: String| {
        text.lines()
            .filter(|line| line.contains(lab))
            .map(|line| format!("{line}\n"))
            .collect::<String>()
    };
    [
        run(&["ip", "-o", "link"]),
        run(&["ip", "-o", "address"]),
        run(&["ip", "rule"]),
        run(&["ip", "route", "show", "table", "all"]),
        named(run(&["ip", "netns", "list"])),
        named(run(&["cut", "-d ", "-f5", "/proc/self/mountinfo"])),
        named(run(&["find", "/run", "/tmp", "/var/lib/margay", "-maxdepth", "2"])),
        named(run(&[
            "sh",
            "-c",
            "cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n' | grep MARGAY_LAB_PROCESS",
        ])),
    ]
    .join("\n---\n")
}

fn row<'a>(table: &'a str, name: &str) -> &'a str {
    let has = |line: &&str| line.split_whitespace().any(|word| word == name);
    table
        .lines()
        .find(has)
        .unwrap_or_else(|| panic!("no row for {name} in\n{table}"))
}

/// The /26 around an address.
fn block(address: &str) -> String {
    let (rest, last) = address.rsplit_once('.').expect("an IPv4 address");
    let last: u8 = last.parse().expect("an IPv4 address");
    format!("{rest}.{}/26", last & 0xc0)
}

fn apply(lab: &Lab, document: &str) {
    let (done, text) = apply_output(lab, document);
    assert!(done, "{text}");
}

fn apply_output(lab: &Lab, document: &str) -> (bool, String) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), document).expect("the file is written");
    let output = Command::new(MARGAY)
        .args(["apply", "-f"])
        .arg(file.path())
        .env(
            "MARGAY_STORE_SOCKET",
            format!("/run/margay-lab/{}/store.sock", lab.name),
        )
        .output()
        .expect("margay runs");
    (output.status.success(), text(&output))
}

/// What tcpdump sees of a ping to `target` on a node's underlay.
fn captured_by_tcpdump(lab: &Lab, node: &str, target: &str) -> String {
    let script = format!(
        "tcpdump -n -i ens33 -c 2 --immediate-mode ip proto 4 2>/tmp/{name}.err >/tmp/{name}.out & \
         until grep -q listening /tmp/{name}.err; do :; done; wait",
        name = lab.name
    );
    let watching = Command::new(MARGAY)
        .args([
            "lab", "exec", "--name", lab.name, node, "--", "timeout", "10", "sh", "-c", &script,
        ])
        .spawn()
        .expect("tcpdump starts");
    let mut watching = Ended(watching);
    let listening =
        || std::fs::read_to_string(format!("/tmp/{}.err", lab.name)).is_ok_and(|text| text.contains("listening"));
    lab.eventually("tcpdump listens", listening);
    lab.lab(&["ping", "cni-1", target, "-c", "1"]);
    let _ = watching.0.wait();
    let seen = std::fs::read_to_string(format!("/tmp/{}.out", lab.name)).unwrap_or_default();
    for suffix in ["err", "out"] {
        let _ = std::fs::remove_file(format!("/tmp/{}.{suffix}", lab.name));
    }
    seen
}

/// A process that ends with the test.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
