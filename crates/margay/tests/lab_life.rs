//! What can happen to a lab: killed halfway, two at once, pods and nodes that come and go, files that are wrong.

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use common::{Lab, MARGAY, margay_lab, run, text, turn};

/// Everything on this machine that carries a lab's name: namespaces, mounts, files, processes; and the machine's own links,
/// routes and rules.
fn traces(lab: &str) -> String {
    let named = |text: String| {
        let lines = text.lines().filter(|line| line.contains(lab));
        lines.map(|line| format!("{line}\n")).collect::<String>()
    };
    [
        run(&["ip", "-o", "link"]),
        run(&["ip", "rule"]),
        run(&["ip", "route", "show", "table", "all"]),
        named(run(&["ip", "netns", "list"])),
        named(run(&["cut", "-d ", "-f5", "/proc/self/mountinfo"])),
        named(run(&["find", "/run/margay-lab", "/run/netns", "-maxdepth", "2"])),
        named(run(&[
            "sh",
            "-c",
            "cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n' | grep MARGAY_LAB_PROCESS",
        ])),
    ]
    .join("\n---\n")
}

fn begin_up(name: &str) -> Child {
    Command::new(MARGAY)
        .args(["lab", "up", "--name", name, "--nodes", "2", "--pods-per-node", "1"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("margay runs")
}

fn down(name: &str) {
    let output = margay_lab(&["down", "--name", name]);
    assert!(output.status.success(), "{}", text(&output));
}

/// `up` is killed when it has come to each of these steps, seen in the file system, not by the clock.
#[test]
fn an_up_that_is_killed_anywhere_leaves_nothing_that_down_or_up_do_not_clean() {
    let Some(_turn) = turn() else { return };
    let name = "t-killed";
    let before = traces(name);
    let folder = format!("/run/margay-lab/{name}");
    let points = [
        "lab.json",
        "bin/margay",
        "bin/calico-ipam",
        "netns t-killed.margay-fabric",
        "netns t-killed.k8s-125-node1",
        "store.sock",
        "log/k8s-125-master.log",
        "nodes/k8s-125-master/run/agent.sock",
        "nodes/k8s-125-node1/run/cni.sock",
        "netns t-killed.pod-pod-0-1",
        "netns t-killed.pod-pod-1-1",
    ];
    for (number, point) in points.into_iter().enumerate() {
        let path = match point.strip_prefix("netns ") {
            Some(netns) => format!("/run/netns/{netns}"),
            None => format!("{folder}/{point}"),
        };
        let mut up = begin_up(name);
        while !std::path::Path::new(&path).exists() && matches!(up.try_wait(), Ok(None)) {
            std::thread::yield_now();
        }
        up.kill().expect("it is ours");
        up.wait().expect("it ends");
        if number % 2 == 0 {
            down(name);
            assert_eq!(traces(name), before, "after `down`, killed at {point}");
        } else {
            let again = begin_up(name).wait_with_output().expect("it ends");
            assert!(again.status.success(), "killed at {point}: {}", text(&again));
            let ping = margay_lab(&["ping", "--name", name, "pod-0-1", "pod-1-1"]);
            assert!(ping.status.success(), "killed at {point}: {}", text(&ping));
            down(name);
            assert_eq!(traces(name), before, "after another `up` and `down`, killed at {point}");
        }
    }
}

#[test]
fn a_down_that_is_killed_is_finished_by_the_next() {
    let Some(lab) = Lab::up("t-halfdown", &["--nodes", "2", "--pods-per-node", "1"]) else {
        return;
    };
    let mut down = Command::new(MARGAY)
        .args(["lab", "down", "--name", lab.name])
        .stdout(Stdio::null())
        .spawn()
        .expect("margay runs");
    let gone = format!("/run/netns/{}.k8s-125-master", lab.name);
    while std::path::Path::new(&gone).exists() {
        std::thread::yield_now();
    }
    down.kill().expect("it is ours");
    down.wait().expect("it ends");
    self::down(lab.name);
    let left = run(&["ip", "netns", "list"]);
    assert!(!left.contains("t-halfdown"), "{left}");
}

#[test]
fn two_ups_at_once_make_one_lab() {
    let Some(_turn) = turn() else { return };
    let name = "t-twice";
    let before = traces(name);
    let ups = [begin_up(name), begin_up(name)];
    let outputs = ups.map(|up| up.wait_with_output().expect("it ends"));
    for output in &outputs {
        assert!(output.status.success(), "{}", text(output));
    }
    let waited = outputs
        .iter()
        .filter(|output| text(output).contains("waiting for another command"));
    assert_eq!(waited.count(), 1, "one waited for the other");
    let ping = margay_lab(&["ping", "--name", name, "pod-0-1", "pod-1-1"]);
    assert!(ping.status.success(), "{}", text(&ping));
    // Another topology is refused as long as this one is up.
    let other = margay_lab(&["up", "--name", name, "--nodes", "3"]);
    assert!(
        !other.status.success() && text(&other).contains("another cluster that is up, of 2 nodes"),
        "{}",
        text(&other)
    );
    down(name);
    assert_eq!(traces(name), before);
}

#[test]
fn two_labs_live_side_by_side() {
    let Some(lab) = Lab::up("t-left", &["--nodes", "2", "--pods-per-node", "1"]) else {
        return;
    };
    let before = traces("t-right");
    let right = margay_lab(&[
        "up",
        "--name",
        "t-right",
        "--nodes",
        "2",
        "--pods-per-node",
        "1",
        "--ipv6",
    ]);
    assert!(right.status.success(), "{}", text(&right));
    for name in ["t-left", "t-right"] {
        let ping = margay_lab(&["ping", "--name", name, "pod-0-1", "pod-1-1"]);
        assert!(ping.status.success(), "{name}: {}", text(&ping));
    }
    down("t-right");
    assert_eq!(traces("t-right"), before);
    lab.lab(&["ping", "pod-0-1", "pod-1-1"]);
}

#[test]
fn a_pod_that_goes_while_its_agent_is_down_is_forgotten_when_the_agent_is_back() {
    let Some(lab) = Lab::up("t-gone", &["--nodes", "2", "--pods-per-node", "1"]) else {
        return;
    };
    let address = lab.address("pod-1-1");
    lab.lab(&["agent", "kill", "k8s-125-node1"]);
    lab.lab(&["pod", "delete", "pod-1-1"]);
    let status = lab.lab(&["status"]);
    assert!(!status.contains("pod-1-1") && status.contains("ended"), "{status}");
    let journal = format!("/run/margay-lab/{}/nodes/k8s-125-node1/state/cni", lab.name);
    let noted = run(&["find", &journal, "-type", "f", "-path", "*pend*"]);
    assert_eq!(noted.lines().count(), 1, "the deletion is noted: {noted}");
    assert!(lab.ctl(&["get", "wep", "-A"]).contains("pod-1-1"));

    lab.lab(&["agent", "start", "k8s-125-node1"]);
    lab.eventually("the endpoint goes", || {
        !lab.ctl(&["get", "wep", "-A"]).contains("pod-1-1")
    });
    lab.eventually("the address is free", || {
        !lab.ctl(&["ipam", "show", &format!("--ip={address}")])
            .contains("is in use")
    });
    lab.eventually("its route goes", || {
        !lab.exec("k8s-125-node1", &["ip", "route"])
            .contains(&format!("{address} "))
    });
    assert_eq!(run(&["find", &journal, "-type", "f", "-path", "*pend*"]), "");
    // The name is free again.
    lab.lab(&["pod", "add", "pod-1-1", "--node", "k8s-125-node1"]);
    lab.lab(&["ping", "pod-0-1", "pod-1-1"]);
}

#[test]
fn nodes_come_and_go() {
    let Some(lab) = Lab::up("t-grow", &["--nodes", "2", "--pods-per-node", "1", "--ipv6"]) else {
        return;
    };
    let added = lab.lab(&["node", "add", "late"]);
    assert!(added.contains("10.211.55.9,fd00:10:211:55::9"), "{added}");
    lab.lab(&["pod", "add", "web", "--node", "late"]);
    for flag in ["-4", "-6"] {
        lab.eventually("the new node's block", || {
            lab.try_lab(&["ping", "pod-0-1", "web", flag, "-c", "1"])
                .status
                .success()
        });
    }
    let again = lab.try_lab(&["node", "add", "late"]);
    assert!(
        text(&again).contains("node: `late` is in the lab already"),
        "{}",
        text(&again)
    );

    // A program that was left running there goes with it.
    lab.exec("late", &["sh", "-c", "sleep 1000 >/dev/null 2>&1 &"]);
    lab.lab(&["node", "delete", "late"]);
    let left = traces("t-grow");
    assert!(!left.contains("late") && !left.contains("pod-web"), "{left}");
    let nodes = lab.ctl(&["get", "nodes"]);
    assert!(!nodes.contains("late"), "{nodes}");
    lab.eventually("its session and its routes go", || {
        let table = lab.exec("k8s-125-master", &["ip", "route"]);
        !lab.ctl(&["node", "status"]).contains("10.211.55.9") && !table.contains("via 10.211.55.9")
    });
    lab.lab(&["ping", "pod-0-1", "pod-1-1"]);
    lab.lab(&["node", "delete", "k8s-125-node1"]);
    let last = lab.try_lab(&["node", "delete", "k8s-125-master"]);
    assert!(text(&last).contains("is the last one"), "{}", text(&last));
}

#[test]
fn a_file_is_a_topology() {
    let Some(_turn) = turn() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("own.yaml");
    let path_text = path.display().to_string();
    let up = |text: &str, more: &[&str]| {
        std::fs::write(&path, text).expect("the file is written");
        let all = [
            &["up", "--name", "t-file", "--from", &path_text, "--pods-per-node", "1"],
            more,
        ]
        .concat();
        margay_lab(&all)
    };
    let before = traces("t-file");
    let good = "\
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: left.example, labels: {rack: a}}
spec: {bgp: {ipv4Address: 10.211.55.40/24}}
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: right.example, labels: {rack: b}}
spec: {}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: a}
spec: {cidr: 10.65.0.0/16, blockSize: 28, ipipMode: CrossSubnet, nodeSelector: rack == 'a'}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: b}
spec: {cidr: 10.66.0.0/16, blockSize: 29, ipipMode: Never, nodeSelector: rack == 'b'}
---
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec: {asNumber: 64999}
";
    for (text, words) in [
        (
            good.replace("10.211.55.40/24", "10.9.9.9/24"),
            "document 1 (Node left.example): spec.bgp.ipv4Address: `10.9.9.9/24` is outside the lab's fabric",
        ),
        (
            good.replace("blockSize: 28", "blockSize: 99"),
            "document 3 (IPPool a): spec.blockSize: `99` must be from 20 to 32",
        ),
        (
            good.replace("blockSize", "blokSize"),
            "document 4 (IPPool b): spec.blokSize",
        ),
        (
            good.replace("rack == 'b'", "rack =="),
            "document 4 (IPPool b): spec.nodeSelector: `rack ==`",
        ),
        (
            good.replace("10.66.0.0/16", "10.211.0.0/16"),
            "document 4 (IPPool b): spec.cidr: `10.211.0.0/16` overlaps the lab's fabric",
        ),
        (good.replace("kind: IPPool", "kind: IPPol"), "kind: `IPPol`"),
    ] {
        let refused = up(&text, &[]);
        let printed = common::text(&refused);
        assert!(!refused.status.success(), "{words}");
        assert!(
            printed.contains(&path_text) && printed.contains(words),
            "{words}: {printed}"
        );
        assert_eq!(traces("t-file"), before, "nothing is half made");
    }

    let made = up(good, &[]);
    assert!(made.status.success(), "{}", text(&made));
    let lab = |args: &[&str]| {
        let (verb, rest) = args.split_first().expect("a verb");
        text(&margay_lab(&[&[*verb, "--name", "t-file"], rest].concat()))
    };
    let status = lab(&["status"]);
    for words in ["left.example", "10.211.55.40", "10.211.55.7", "10.65.", "10.66."] {
        assert!(status.contains(words), "{words}: {status}");
    }
    let ping = lab(&["ping", "pod-0-1", "pod-1-1"]);
    assert!(ping.contains("0 lost"), "{ping}");
    let table = lab(&["exec", "left.example", "--", "ip", "route"]);
    assert!(
        table.contains("10.66.") && table.contains("/29 via 10.211.55.7 dev ens33 proto 80"),
        "{table}"
    );
    let config = lab(&[
        "exec",
        "left.example",
        "--",
        "calicoctl",
        "get",
        "bgpconfig",
        "-o",
        "yaml",
    ]);
    assert!(config.contains("64999"), "{config}");
    down("t-file");
    assert_eq!(traces("t-file"), before);
}

#[test]
fn logs_are_shown_and_followed() {
    let Some(lab) = Lab::up("t-logs", &["--nodes", "1", "--pods-per-node", "0"]) else {
        return;
    };
    let whole = lab.lab(&["logs", "k8s-125-master"]);
    assert!(whole.contains("agent starts"), "{whole}");
    assert!(!whole.contains('\u{1b}'), "no colours in a file");
    assert_eq!(lab.lab(&["logs", "k8s-125-master", "-n", "1"]).lines().count(), 1);
    assert!(lab.lab(&["logs", "store"]).contains("store serves"));
    let unknown = lab.try_lab(&["logs", "nobody"]);
    assert!(
        text(&unknown).contains("the lab has no node `nobody`; it has: k8s-125-master"),
        "{}",
        text(&unknown)
    );
    let mut following = Command::new(MARGAY)
        .args(["lab", "logs", "--name", lab.name, "k8s-125-master", "-f"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("margay runs");
    let mut lines = BufReader::new(following.stdout.take().expect("a pipe")).lines();
    let mut comes = |words: &str| lines.any(|line| line.expect("text").contains(words));
    assert!(comes("agent starts"), "what was there comes first");
    lab.lab(&["pod", "add", "web", "--node", "k8s-125-master"]);
    assert!(comes("cni: attached"), "then what happens");
    // It ends with the lab.
    drop(lab);
    assert!(following.wait().expect("it ends").success());
}

#[test]
fn a_lab_needs_root() {
    let Some(_turn) = turn() else { return };
    // A copy where everyone may read it.
    let folder = tempfile::tempdir().expect("a folder");
    let binary = folder.path().join("margay");
    std::fs::copy(MARGAY, &binary).expect("a copy");
    run(&["chmod", "-R", "a+rx", &folder.path().display().to_string()]);
    // Looking needs it too: without, agents would seem to have ended.
    for verb in ["up", "down", "status", "tour", "env"] {
        let refused = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&binary)
            .args(["lab", verb, "--name", "t-nobody"])
            .output()
            .expect("setpriv (package util-linux)");
        assert!(!refused.status.success());
        let words = "the lab makes network namespaces and needs root: run it with sudo";
        assert!(text(&refused).contains(words), "{}", text(&refused));
    }
}

/// A kernel that has not what a lab needs, played by taking away the right to it.
#[test]
fn a_kernel_that_cannot_is_told_apart() {
    let Some(_turn) = turn() else { return };
    let before = traces("t-cannot");
    for (capabilities, words) in [
        (
            "-sys_admin",
            "this kernel cannot run the lab: it makes no network namespaces",
        ),
        ("-net_admin", "this kernel cannot run the lab: it makes no veth devices"),
    ] {
        let refused = Command::new("setpriv")
            .args(["--bounding-set", capabilities, "--inh-caps", capabilities])
            .arg(MARGAY)
            .args(["lab", "up", "--name", "t-cannot", "--nodes", "1"])
            .output()
            .expect("setpriv (package util-linux)");
        assert!(!refused.status.success());
        assert!(text(&refused).contains(words), "{words}: {}", text(&refused));
    }
    assert_eq!(traces("t-cannot"), before);
}
