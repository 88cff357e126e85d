//! Flows on a live cluster: those that a new policy forbids end, others go on; what is dropped is counted by its cause, and
//! recorded if that is asked for.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use common::Lab;
use common::net::{self, L4, Servers};
use common::talk::{answers, apply, connect, echo, forbid, inside};
use common::told::{dropped, status};
use serde_json::Value;

/// How long a flow went on after now: until an answer did not come.
fn ends_after(stream: &mut TcpStream) -> Duration {
    let start = Instant::now();
    let mut last = start;
    while answers(stream) {
        last = Instant::now();
        assert!(last - start < Duration::from_secs(10), "the flow goes on");
    }
    last - start
}

const NEAR: &str = "k8s-125-master";
const FAR: &str = "k8s-125-node1";

#[test]
fn a_policy_ends_the_flows_that_it_forbids_and_no_others() {
    let Some(lab) = Lab::up("t-flows", &["--nodes", "2", "--pods-per-node", "2"]) else {
        return;
    };
    let (bad, good, server) = ("pod-0-1", "pod-0-2", "pod-1-1");
    let (bad_address, address) = (lab.address(bad), lab.address(server));
    echo(&lab, server, 5432);
    push(&lab, server, 5433);
    let mut forbidden = connect(&lab, bad, &address, 5432).expect("it is open");
    let mut allowed = connect(&lab, good, &address, 5432).expect("it is open");
    // One that only the server feeds: its packets must not pass for a new flow of the server's own.
    let mut fed = connect(&lab, bad, &address, 5433).expect("it is open");
    assert!(answers(&mut forbidden) && answers(&mut allowed) && is_fed(&mut fed));

    forbid(&lab, "cut", &bad_address, &[&address]);
    let (lasted, fed_for) = (ends_after(&mut forbidden), stops_after(&mut fed));
    println!("cut after {lasted:?}, {fed_for:?}");
    assert!(
        lasted < Duration::from_secs(1) && fed_for < Duration::from_secs(1),
        "{lasted:?} {fed_for:?}"
    );
    assert!((0..100).all(|_| answers(&mut allowed)), "its neighbour goes on");
    assert!(connect(&lab, bad, &address, 5432).is_err());

    // Counted by cause, and the sum goes on when the rules are written again.
    let cause = || dropped(&lab, FAR, "policy", Some("GlobalNetworkPolicy cut"));
    let before = cause();
    assert!(before > 0);
    let text = lab.exec(FAR, &["calicoctl", "node", "status"]);
    assert!(text.contains("  dropped      policy "), "{text}");
    forbid(&lab, "cut", "192.0.2.1", &[&address]);
    lab.eventually("the policy is written again", || {
        connect(&lab, bad, &address, 5432).is_ok()
    });
    assert!(cause() >= before, "{} < {before}", cause());
    assert!(status(&lab, FAR)["policy"]["flowsForbidden"].as_u64() >= Some(1));
    assert!((0..10).all(|_| answers(&mut allowed)));

    // A pod that goes takes its flows with it.
    let of_server = || {
        lab.exec(
            FAR,
            &[
                "sh",
                "-c",
                &format!("conntrack -L 2>/dev/null | grep -c {address} || true"),
            ],
        )
    };
    assert_ne!(of_server().trim(), "0");
    lab.lab(&["pod", "delete", server]);
    lab.eventually("the pod's flows are gone", || of_server().trim() == "0");
}

/// One flow, asked again and again: whether the next packet is answered.
type Flow = Box<dyn FnMut() -> bool>;

/// A flow of each kind from a pod to an address, all of them answered once.
fn flows(lab: &Lab, from: &str, to: &str) -> Vec<(String, Flow)> {
    let mut tcp = connect(lab, from, to, 5432).expect("it is open");
    tcp.set_read_timeout(Some(Duration::from_millis(200)))
        .expect("a socket");
    let place = format!("{}.pod-{from}", lab.name);
    let udp = net::inside(&place, || net::socket(&place, L4::Udp, to.parse().expect("an address")));
    udp.connect(&SocketAddr::new(to.parse().expect("an address"), 5432).into())
        .expect("UDP never waits");
    udp.set_nonblocking(false).expect("a socket");
    udp.set_read_timeout(Some(Duration::from_millis(200)))
        .expect("a socket");
    let (name, from, address) = (lab.name, from.to_owned(), to.to_owned());
    // All echo requests have one identifier, and so are one flow.
    let ping = move || {
        let asked = [
            "exec", "--name", name, &from, "--", "ping", "-n", "-c1", "-W1", "-e77", &address,
        ];
        common::margay_lab(&asked).status.success()
    };
    let mut flows: Vec<(String, Flow)> = vec![
        (format!("TCP to {to}"), Box::new(move || answers(&mut tcp))),
        (
            format!("UDP to {to}"),
            Box::new(move || udp.send(b"ping").is_ok() && (&udp).read(&mut [0; 64]).is_ok()),
        ),
        (format!("ICMP to {to}"), Box::new(ping)),
    ];
    for (what, answered) in &mut flows {
        assert!(answered(), "{what}");
    }
    flows
}

#[test]
fn flows_of_every_kind_are_cut_and_go_on_when_they_may() {
    let Some(lab) = Lab::up("t-cut", &["--nodes", "2", "--pods-per-node", "2", "--ipv6"]) else {
        return;
    };
    let (bad, good, server) = ("pod-0-1", "pod-0-2", "pod-1-1");
    let addresses = |pod: &str| [false, true].map(|ipv6| lab.first_address(pod, "eth0", ipv6).to_string());
    echo(&lab, server, 5432);
    let _servers = Servers::start(&[(format!("{}.pod-{server}", lab.name), vec![(L4::Udp, 5432)])]);
    let (senders, to) = (addresses(bad), addresses(server));
    for (from, to) in senders.iter().zip(&to) {
        let mut forbidden = flows(&lab, bad, to);
        let mut allowed = flows(&lab, good, to);
        forbid(&lab, "cut", from, &[to]);
        for (what, answered) in &mut forbidden {
            lab.eventually(&format!("{what} is cut"), || !answered());
            assert!(!answered(), "{what} stays cut");
        }
        for (what, answered) in &mut allowed {
            assert!(answered(), "a neighbour's {what}");
        }
        forbid(&lab, "cut", "192.0.2.1", &["192.0.2.2"]);
        for (what, answered) in forbidden.iter_mut().filter(|(what, _)| !what.starts_with("TCP")) {
            lab.eventually(&format!("{what} goes on"), answered);
        }
    }
    let cut = status(&lab, FAR)["policy"]["flowsForbidden"]
        .as_u64()
        .unwrap_or_default()
        + status(&lab, NEAR)["policy"]["flowsForbidden"]
            .as_u64()
            .unwrap_or_default();
    assert!(cut >= 6, "{cut} flows were cut");
}

/// One UDP flow between two places, asked again and again.
fn udp_flow(place: &str, to: SocketAddr) -> Flow {
    let socket = net::inside(place, || net::socket(place, L4::Udp, to.ip()));
    socket.connect(&to.into()).expect("UDP never waits");
    socket.set_nonblocking(false).expect("a socket");
    socket
        .set_read_timeout(Some(Duration::from_millis(200)))
        .expect("a socket");
    Box::new(move || socket.send(b"ping").is_ok() && (&socket).read(&mut [0; 64]).is_ok())
}

#[test]
fn flows_of_a_host_are_cut_by_its_host_endpoint() {
    let Some(lab) = Lab::up("t-cuthost", &["--nodes", "2", "--pods-per-node", "1", "--ipv6"]) else {
        return;
    };
    let places = [NEAR, FAR].map(|node| lab.node_place(node));
    let _servers = Servers::start(
        &places
            .clone()
            .map(|place| (place, vec![(L4::Udp, 7777), (L4::Udp, 68)])),
    );
    let address = |node: &str, family: &str| lab.first_address(node, "ens33", family == "-6");
    let policy = |ingress: &str, egress: &str| {
        let spec = format!(r#"{{"selector":"host == 'near'","ingress":[{ingress}],"egress":[{egress}]}}"#);
        apply(&lab, "GlobalNetworkPolicy", "hosts", &spec);
    };
    let (allow, deny) = (r#"{"action":"Allow"}"#, r#"{"action":"Deny","protocol":"UDP"}"#);
    policy(allow, allow);
    let endpoint = serde_json::json!({
        "apiVersion": "projectcalico.org/v3", "kind": "HostEndpoint",
        "metadata": {"name": "near", "labels": {"host": "near"}},
        "spec": {"node": NEAR, "interfaceName": "ens33"},
    });
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), endpoint.to_string()).expect("written");
    lab.ctl(&["apply", "-f", &file.path().to_string_lossy()]);
    let mut into: Vec<Flow> = Vec::new();
    let (mut out, mut failsafe): (Vec<Flow>, Vec<Flow>) = (Vec::new(), Vec::new());
    for family in ["-4", "-6"] {
        into.push(udp_flow(&places[1], (address(NEAR, family), 7777).into()));
        out.push(udp_flow(&places[0], (address(FAR, family), 7777).into()));
        failsafe.push(udp_flow(&places[1], (address(NEAR, family), 68).into()));
    }
    lab.eventually("flows", || {
        let mut all = into.iter_mut().chain(&mut out).chain(&mut failsafe);
        all.all(|flow| flow())
    });
    let mut check = |what: &str, expected: [bool; 2]| {
        for (flows, expected) in [&mut into, &mut out].into_iter().zip(expected) {
            for flow in flows {
                lab.eventually(what, || flow() == expected);
            }
        }
        assert!(failsafe.iter_mut().all(|flow| flow()), "{what}: failsafe ports");
    };
    policy(&format!("{deny},{allow}"), allow);
    check("into the host", [false, true]);
    policy(allow, &format!("{deny},{allow}"));
    check("out of the host", [true, false]);
    policy(&format!("{deny},{allow}"), &format!("{deny},{allow}"));
    check("both", [false, false]);
    apply(
        &lab,
        "FelixConfiguration",
        "default",
        r#"{"flowLogsLocalReporter":"Enabled"}"#,
    );
    lab.eventually("its records name it", || {
        // A flow that was cut meets no rule of a policy any more.
        let mut fresh = udp_flow(&places[1], (address(NEAR, "-4"), 7777).into());
        assert!(!fresh());
        let shown = lab.exec(NEAR, &["calicoctl", "node", "flows"]);
        let mut lines = shown.lines();
        lines
            .any(|line| line.contains("DENY     HostEndpoint(near)") && line.contains("tier default: gnp/hosts rule 0"))
    });
    lab.ctl(&["delete", "hostendpoint", "near"]);
    check("without a host endpoint", [true, true]);
    assert!(lab.exec(NEAR, &["calicoctl", "node", "status"]).contains("Established"));
    lab.lab(&["ping", "pod-0-1", "pod-1-1"]);
}

#[test]
fn forwarded_flows_are_cut_and_recorded_by_host_endpoints() {
    let Some(lab) = Lab::up("t-cutfwd", &["--nodes", "2", "--pods-per-node", "1", "--ipv6"]) else {
        return;
    };
    let pods = ["pod-0-1", "pod-1-1"];
    let places = pods.map(|pod| format!("{}.pod-{pod}", lab.name));
    let _servers = Servers::start(&places.clone().map(|place| (place, vec![(L4::Udp, 7777)])));
    let address = |pod: &str, family: &str| lab.first_address(pod, "eth0", family == "-6");
    let policy = |kind: &str, name: &str, order: u8, selector: &str, ingress: &str, egress: &str| {
        let spec = format!(
            r#"{{"order":{order},"selector":"{selector}","applyOnForward":true,"ingress":[{ingress}],"egress":[{egress}]}}"#
        );
        apply(&lab, kind, name, &spec);
    };
    let hosts = |ingress: &str, egress: &str| {
        policy("GlobalNetworkPolicy", "hosts", 9, "host == 'near'", ingress, egress);
    };
    let (allow, deny) = (r#"{"action":"Allow"}"#, r#"{"action":"Deny","protocol":"UDP"}"#);
    let denied = format!("{deny},{allow}");
    hosts(allow, allow);
    let endpoint = serde_json::json!({
        "apiVersion": "projectcalico.org/v3", "kind": "HostEndpoint",
        "metadata": {"name": "near", "labels": {"host": "near"}},
        "spec": {"node": NEAR, "interfaceName": "*"},
    });
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), endpoint.to_string()).expect("written");
    lab.ctl(&["apply", "-f", &file.path().to_string_lossy()]);
    // IPv4 goes through the tunnel, IPv6 by the wire.
    let between = |from: usize, to: usize| -> Vec<Flow> {
        let flow = |family| udp_flow(&places[from], (address(pods[to], family), 7777).into());
        ["-4", "-6"].map(flow).into()
    };
    let (mut out, mut into) = (between(0, 1), between(1, 0));
    lab.eventually("flows", || {
        let mut all = into.iter_mut().chain(&mut out);
        all.all(|flow| flow())
    });
    let mut check = |what: &str, expected: [bool; 2]| {
        for (flows, expected) in [&mut into, &mut out].into_iter().zip(expected) {
            for flow in flows {
                lab.eventually(what, || flow() == expected);
            }
        }
    };
    hosts(&denied, allow);
    check("into the node", [false, true]);
    hosts(allow, &denied);
    check("out of the node", [true, false]);
    hosts(&denied, &denied);
    check("both", [false, false]);

    // Whose verdict it is: one policy may be asked for the host endpoint and for the pod.
    apply(
        &lab,
        "FelixConfiguration",
        "default",
        r#"{"flowLogsLocalReporter":"Enabled"}"#,
    );
    let recorded = |endpoint: &str, direction: &str, verdict: &str, by: &str, staged: &str| {
        let text = lab.exec(NEAR, &["calicoctl", "node", "flows", "-o", "json"]);
        let report: Value = serde_json::from_str(&text).expect("JSON");
        let mut all = report["records"].as_array().into_iter().flatten();
        all.any(|record| {
            record["endpoint"] == endpoint
                && record["direction"] == direction
                && record["forwarded"].as_bool().unwrap_or_default() == endpoint.starts_with("HostEndpoint")
                && record["verdict"] == verdict
                && record["policy"] == by
                && record["port"] == 7777
                && record["staged"]["policy"].as_str().unwrap_or_default() == staged
        })
    };
    let host = "HostEndpoint(near)";
    lab.eventually("records of what is denied", || {
        between(0, 1).iter_mut().chain(&mut between(1, 0)).all(|flow| !flow())
            && recorded(host, "ingress", "deny", "gnp/hosts rule 0", "")
            && recorded(host, "egress", "deny", "gnp/hosts rule 0", "")
            && recorded("default/pod-0-1", "egress", "allow", "profile kns.default rule 0", "")
    });
    policy("GlobalNetworkPolicy", "both", 1, "all()", allow, allow);
    policy("StagedGlobalNetworkPolicy", "next", 0, "host == 'near'", deny, "");
    lab.eventually("records of both endpoints, and of what is staged for one", || {
        between(0, 1).iter_mut().chain(&mut between(1, 0)).all(|flow| flow())
            && recorded(host, "ingress", "allow", "gnp/both rule 0", "sgnp/next rule 0")
            && recorded("default/pod-0-1", "ingress", "allow", "gnp/both rule 0", "")
            && recorded("default/pod-0-1", "egress", "allow", "gnp/both rule 0", "")
            && recorded(host, "egress", "allow", "gnp/both rule 0", "")
    });
    let shown = lab.exec(NEAR, &["calicoctl", "node", "flows"]);
    assert!(shown.contains(" ingress-fwd "), "{shown}");
    lab.ctl(&["delete", "globalnetworkpolicy", "both"]);
    check("forbidden again", [false, false]);
    lab.ctl(&["delete", "hostendpoint", "near"]);
    check("without a host endpoint", [true, true]);
}

/// Sends to whoever connects, without being asked.
fn push(lab: &Lab, pod: &str, port: u16) {
    let listener = inside(lab, pod)
        .run(move || TcpListener::bind(("0.0.0.0", port)))
        .expect("the pod's namespace")
        .expect("the port is free");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || while stream.write_all(&[0; 1000]).is_ok() {});
        }
    });
}

fn is_fed(stream: &mut TcpStream) -> bool {
    stream.read_exact(&mut [0; 1000]).is_ok()
}

/// How long a flow went on after now: until nothing came.
fn stops_after(stream: &mut TcpStream) -> Duration {
    let start = Instant::now();
    let mut last = start;
    while is_fed(stream) {
        last = Instant::now();
        if last - start > Duration::from_secs(5) {
            break;
        }
    }
    last - start
}

#[test]
fn flows_are_recorded_while_that_is_asked_for() {
    let Some(lab) = Lab::up("t-record", &["--nodes", "1", "--pods-per-node", "3"]) else {
        return;
    };
    let (bad, good, server) = ("pod-0-1", "pod-0-2", "pod-0-3");
    let (bad_address, address) = (lab.address(bad), lab.address(server));
    echo(&lab, server, 5432);
    forbid(&lab, "guard", &bad_address, &[&address]);
    let records = || -> Value {
        let text = lab.exec(NEAR, &["calicoctl", "node", "flows", "-o", "json"]);
        serde_json::from_str(&text).expect("JSON")
    };
    let has = |endpoint: &str, direction: &str, verdict: &str, policy: &str| {
        let report = records();
        let mut all = report["records"].as_array().into_iter().flatten();
        all.any(|record| {
            record["endpoint"] == format!("default/{endpoint}")
                && record["direction"] == direction
                && record["verdict"] == verdict
                && record["policy"] == policy
                && (record["tier"] == "default") == policy.starts_with("gnp")
                && record["destination"] == address
                && record["port"] == 5432
                && record["protocol"] == 6
                && record["packets"].as_u64() >= Some(1)
        })
    };
    lab.eventually("the policy is enforced", || connect(&lab, bad, &address, 5432).is_err());
    assert_eq!(records()["records"], serde_json::json!([]), "nobody asked for records");

    apply(
        &lab,
        "FelixConfiguration",
        "default",
        r#"{"flowLogsLocalReporter":"Enabled"}"#,
    );
    lab.eventually("the denied flow is recorded", || {
        assert!(connect(&lab, bad, &address, 5432).is_err());
        has(server, "ingress", "deny", "gnp/guard rule 0")
    });
    connect(&lab, good, &address, 5432).expect("it is open");
    lab.eventually("the allowed flow is recorded at both ends", || {
        has(server, "ingress", "allow", "gnp/guard rule 1")
            && has(good, "egress", "allow", "profile kns.default rule 0")
    });
    let staged = |endpoint: &str, verdict: &str, policy: &str| {
        let report = records();
        let mut all = report["records"].as_array().into_iter().flatten();
        all.any(|record| {
            record["endpoint"] == format!("default/{endpoint}")
                && record["direction"] == "ingress"
                && record["staged"]["verdict"] == verdict
                && record["staged"]["policy"] == policy
        })
    };
    assert!(!records().to_string().contains("staged"), "nothing is staged");
    // A policy that would deny, and the end of one that denies.
    let good_address = lab.address(good);
    let deny = format!(
        r#"{{"selector":"all()","order":1,"types":["Ingress"],"ingress":[{{"action":"Deny","source":{{"nets":["{good_address}/32"]}}}}]}}"#
    );
    apply(&lab, "StagedGlobalNetworkPolicy", "next", &deny);
    lab.eventually("it would be denied", || {
        connect(&lab, good, &address, 5432).expect("it is only staged");
        staged(server, "deny", "sgnp/next rule 0")
    });
    apply(
        &lab,
        "StagedGlobalNetworkPolicy",
        "next",
        r#"{"stagedAction":"Delete"}"#,
    );
    apply(
        &lab,
        "StagedGlobalNetworkPolicy",
        "guard",
        r#"{"stagedAction":"Delete"}"#,
    );
    lab.eventually("it would be allowed", || {
        assert!(connect(&lab, bad, &address, 5432).is_err(), "it is only staged");
        staged(server, "allow", "profile kns.default rule 0")
    });
    for name in ["next", "guard"] {
        lab.ctl(&["delete", "stagedglobalnetworkpolicy", name]);
    }
    lab.eventually("nothing is staged any more", || {
        connect(&lab, good, &address, 5432).expect("it is open");
        assert!(connect(&lab, bad, &address, 5432).is_err());
        !staged(server, "deny", "sgnp/next rule 0") && !staged(server, "allow", "profile kns.default rule 0")
    });
    let text = lab.exec(NEAR, &["calicoctl", "node", "flows"]);
    assert!(
        text.lines()
            .any(|line| line.contains("DENY") && line.contains(&bad_address)),
        "{text}"
    );

    apply(
        &lab,
        "FelixConfiguration",
        "default",
        r#"{"flowLogsLocalReporter":"Disabled"}"#,
    );
    lab.eventually("recording ends", || records()["enabled"] == false);
    let last = records()["number"].clone();
    assert!(connect(&lab, bad, &address, 5432).is_err());
    assert_eq!(records()["number"], last);
}
