//! `trace` on a live cluster: the way of packets across nodes and on one, what is wrong with it, and real packets on it.

mod common;

use std::io::{BufRead, BufReader, Read};
use std::net::UdpSocket;
use std::process::{Child, Command, Output, Stdio};

use common::cluster::Datastore;
use common::net::{self, L4, Servers};
use common::talk::{apply, connect, echo, forbid, inside};
use common::{Lab, MARGAY};
use serde_json::Value;

const NEAR: &str = "k8s-125-master";
const FAR: &str = "k8s-125-node1";

/// What `trace ARGS` says on a node, and how it ends.
fn trace(lab: &Lab, args: &[&str]) -> (Output, String) {
    let mut all = vec!["exec", NEAR, "--", "margay", "trace"];
    all.extend(args);
    let output = lab.try_lab(&all);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output, text)
}

/// The exit code, and what the text must have.
#[track_caller]
fn check(lab: &Lab, args: &[&str], code: i32, parts: &[&str]) {
    let (output, text) = trace(lab, args);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}\n{text}\n{complaint}");
    for part in parts {
        assert!(text.contains(part), "{args:?}: no `{part}` in\n{text}");
    }
}

/// A `trace --watch` that watches.
struct Watch(Child);

impl Watch {
    /// Starts it, and waits until no packet is missed.
    fn start(lab: &Lab, args: &[&str]) -> Self {
        let mut command = Command::new(MARGAY);
        command.args([
            "lab", "exec", "--name", lab.name, NEAR, "--", "margay", "trace", "--watch", "-o", "json",
        ]);
        command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut watch = Self(command.spawn().expect("it starts"));
        let errors = BufReader::new(watch.0.stderr.take().expect("it is a pipe"));
        let mut said = Vec::new();
        let mut lines = errors.lines().map_while(Result::ok);
        while let Some(line) = lines.next() {
            if line.ends_with("now send such a packet") {
                // It may say more, to somebody who listens.
                std::thread::spawn(move || lines.count());
                return watch;
            }
            said.push(line);
        }
        panic!("{args:?} does not watch: {said:?}")
    }

    /// Waits for its end: the exit code, what it says, and where the first packet was seen.
    fn end(mut self) -> (i32, Value, Vec<String>) {
        let mut text = String::new();
        let mut out = self.0.stdout.take().expect("it is a pipe");
        out.read_to_string(&mut text).expect("text");
        let code = self.0.wait().expect("it ends").code().expect("a code");
        let shown: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let passage = shown["passages"][0].clone();
        let seen = places(&passage);
        (code, shown, seen)
    }

    fn is_over(&mut self) -> bool {
        self.0.try_wait().expect("a child").is_some()
    }
}

/// Where a packet was seen, as `PLACE DEVICE DIRECTION LAYERS`.
fn places(passage: &Value) -> Vec<String> {
    let place = |seen: &Value| {
        let place = seen["pod"].as_str().or(seen["node"].as_str()).unwrap_or_default();
        let device = seen["device"].as_str().unwrap_or_default();
        // Names of pods' devices are hashes.
        let device = if device.starts_with("cali") { "cali" } else { device };
        let outer = seen["packet"][0].as_str().is_some_and(|line| line.starts_with("outer"));
        let layers = if outer { " in IP-in-IP" } else { "" };
        format!(
            "{place} {device} {}{layers}",
            seen["direction"].as_str().unwrap_or_default()
        )
    };
    passage["seen"].as_array().into_iter().flatten().map(place).collect()
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Ended already, unless the test failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The way across the nodes as a capture sees it with the BPF tunnel, whose device does not show what goes out.
const ACROSS: [&str; 7] = [
    "default/pod-0-1 eth0 out",
    "k8s-125-master cali in",
    "k8s-125-master ens33 out in IP-in-IP",
    "k8s-125-node1 ens33 in in IP-in-IP",
    "k8s-125-node1 tunl0 in",
    "k8s-125-node1 cali out",
    "default/pod-1-1 eth0 in",
];

/// The tunnel of the kernel's own driver shows what goes out, too.
fn without_tunl0_out(seen: &[String]) -> Vec<&str> {
    let seen = seen.iter().map(String::as_str);
    seen.filter(|place| !place.ends_with(" tunl0 out")).collect()
}

/// The same way back.
const BACK: [&str; 7] = [
    "default/pod-1-1 eth0 out",
    "k8s-125-node1 cali in",
    "k8s-125-node1 ens33 out in IP-in-IP",
    "k8s-125-master ens33 in in IP-in-IP",
    "k8s-125-master tunl0 in",
    "k8s-125-master cali out",
    "default/pod-0-1 eth0 in",
];

#[test]
fn a_way_is_followed_and_real_packets_are_seen_on_it() {
    let args = ["--nodes", "2", "--pods-per-node", "2", "--ipv6"];
    let Some(lab) = Lab::up("t-trace", &args) else { return };
    let address = lab.address("pod-1-1");
    echo(&lab, "pod-1-1", 5432);

    // Across nodes, by name and by address.
    let outer = "outer header 10.211.55.7 -> 10.211.55.8, IP-in-IP";
    for to in ["pod-1-1:5432", &format!("{address}:5432")] {
        check(
            &lab,
            &["pod-0-1", to],
            0,
            &[
                "\n1. pod default/pod-0-1 on node k8s-125-master\n   eth0 192.168.",
                "\n   route default via 169.254.1.1 dev eth0\n   next hop 169.254.1.1 on eth0 is ee:ee:ee:ee:ee:ee (permanent)\n",
                "\n2. node k8s-125-master\n   cali",
                "profile kns.default egress rule 0: Allow [0 packets so far]",
                " via 10.211.55.8 dev tunl0 onlink (by the agent)\n",
                outer,
                "\n   outer route 10.211.55.0/24 dev ens33 (by the kernel, for the device's address)\n",
                ", 1500 with its outer header: fits ens33 (MTU 1500)\n",
                "\n3. node k8s-125-node1\n   tunl0 (",
                "takes it out of IP-in-IP from 10.211.55.7, over ens33\n",
                "profile kns.default ingress rule 0: Allow [0 packets so far]",
                "\n4. pod default/pod-1-1 on node k8s-125-node1\n   eth0 192.168.",
                "\nARRIVES\n",
            ],
        );
    }
    // On one node, and IPv6, which needs no tunnel.
    check(
        &lab,
        &["pod-0-1", "pod-0-2"],
        0,
        &["\n3. pod default/pod-0-2 on node k8s-125-master\n", "\nARRIVES\n"],
    );
    check(
        &lab,
        &["-6", "pod-0-1", "pod-1-1"],
        0,
        &[" via fd00:10:211:55::8 dev ens33 (by the agent)\n", "\nARRIVES\n"],
    );

    // What the rules count is there at once.
    drop(connect(&lab, "pod-0-1", &address, 5432).expect("it is open"));
    let counted = [
        "egress rule 0: Allow [1 packet so far]",
        "ingress rule 0: Allow [1 packet so far]",
    ];
    check(&lab, &["pod-0-1", "pod-1-1:5432"], 0, &counted);
    let policy = lab.exec(FAR, &["margay", "node", "policy", "-o", "json"]);
    let policy: Value = serde_json::from_str(&policy).expect("JSON");
    assert_eq!(policy["profiles"][0]["rules"][0]["packets"], 1, "{policy}");

    // Real packets: a connection, an echo request, a datagram.
    let watch = Watch::start(&lab, &["pod-0-1", "pod-1-1:5432"]);
    drop(connect(&lab, "pod-0-1", &address, 5432).expect("it is open"));
    let (code, shown, seen) = watch.end();
    assert_eq!((code, &*without_tunl0_out(&seen)), (0, &ACROSS[..]), "{shown}");
    let back = places(&shown["replies"][0]);
    assert_eq!(without_tunl0_out(&back), BACK, "{shown}");
    assert_eq!(shown["translations"], serde_json::json!([]));
    let wire = &shown["passages"][0]["seen"][seen
        .iter()
        .position(|place| place.ends_with("IP-in-IP"))
        .expect("it is there")];
    let headers: Vec<&str> = wire["packet"]
        .as_array()
        .expect("lines")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert!(
        headers[0].starts_with("outer  IPv4 10.211.55.7 -> 10.211.55.8  protocol 4 (IP-in-IP)"),
        "{headers:?}"
    );
    assert!(
        headers[1].contains(&format!("-> {address}  protocol 6 (TCP)")),
        "{headers:?}"
    );

    let watch = Watch::start(&lab, &["pod-0-1", "pod-1-1", "--count", "2"]);
    lab.exec("pod-0-1", &["ping", "-c", "2", "-i", "0.2", "-W", "1", &address]);
    let (code, passage, seen) = watch.end();
    assert_eq!((code, &*without_tunl0_out(&seen)), (0, &ACROSS[..]), "{passage}");

    let watch = Watch::start(&lab, &["pod-0-1", "pod-0-2:9/udp"]);
    let beside = lab.address("pod-0-2");
    let sent = inside(&lab, "pod-0-1").run(|| UdpSocket::bind("0.0.0.0:0")?.send_to(b"hello", (beside.as_str(), 9)));
    sent.expect("the pod's namespace").expect("it is sent");
    let (code, passage, seen) = watch.end();
    let beside = [
        "default/pod-0-1 eth0 out",
        "k8s-125-master cali in",
        "k8s-125-master cali out",
        "default/pod-0-2 eth0 in",
    ];
    assert_eq!(
        (code, &seen.iter().map(String::as_str).collect::<Vec<_>>()[..]),
        (0, &beside[..]),
        "{passage}"
    );

    // Nobody sends anything.
    let (output, text) = trace(&lab, &["--watch", "--timeout", "1", "pod-0-1", "pod-1-1:81"]);
    assert_eq!(output.status.code(), Some(5), "{text}");
    assert!(text.ends_with("NOT SEEN: no such packet came within 1 s\n"), "{text}");
}

#[test]
fn packets_are_followed_behind_translations_and_back() {
    let Some(lab) = Lab::up("t-trace-nat", &["--nodes", "2", "--pods-per-node", "0"]) else {
        return;
    };
    let web = lab.add_pod("default", "web", NEAR, &[]);
    let beside = lab.add_pod("default", "beside", FAR, &[]);
    let db = lab.add_pod("default", "db", FAR, &[]);
    let (address, node) = (db.addresses[0], "10.211.55.8");
    let _servers = Servers::start(&[(db.place.clone(), vec![(L4::Udp, 7777)])]);
    // A service proxy, and a host port and a floating IP.
    let proxy = format!(
        "add table ip proxy; add chain ip proxy nat {{ type nat hook prerouting priority dstnat; }}; \
         add rule ip proxy nat ip daddr 10.96.0.1 udp dport 80 dnat to {address}:7777"
    );
    lab.exec(NEAR, &["nft", &proxy]);
    apply(&lab, "FelixConfiguration", "default", r#"{"floatingIPs":"Enabled"}"#);
    Datastore::of(&lab).change_pod(&db, |endpoint| {
        let ports = serde_json::json!([{"name": "db", "protocol": "UDP", "port": 7777, "hostPort": 8053}]);
        endpoint.spec.ports = serde_json::from_value(ports).expect("ports");
        let nats = serde_json::json!([{"internalIP": address, "externalIP": "10.211.55.200"}]);
        endpoint.spec.ip_nats = serde_json::from_value(nats).expect("addresses");
    });
    // Packets of one flow, ten a second.
    let flow = |from: &str, to: &str| {
        let to: std::net::SocketAddr = to.parse().expect("an address");
        let socket = net::inside(from, || net::socket(from, L4::Udp, to.ip()));
        socket.connect(&to.into()).expect("UDP never waits");
        socket.set_nonblocking(false).expect("a socket");
        let tenth = Some(std::time::Duration::from_millis(100));
        socket.set_read_timeout(tenth).expect("a socket");
        move || {
            let is_sent = socket.send(b"ping").is_ok();
            let is_answered = (&socket).read(&mut [0; 64]).is_ok();
            // Nothing comes: the time until the next one.
            let _ = (&socket).read(&mut [0; 64]);
            is_sent && is_answered
        }
    };
    for (from, to) in [
        (&web, format!("{node}:8053")),
        (&beside, "10.211.55.200:7777".to_owned()),
    ] {
        // A flow that began before the rule is not translated any more.
        lab.eventually(&format!("{to} is translated"), || flow(&from.place, &to)());
    }
    let named = |places: &[&str]| -> Vec<String> {
        let named = |place: &&str| place.replace("pod-0-1", "web").replace("pod-1-1", "db");
        places.iter().map(named).collect()
    };
    // What is asked, where it is sent, and what is told: translations, the packet's way, and the answer's.
    let check = |from: &common::cluster::Pod, asked: &str, to: &str, told: &str, there: &[&str], back: &[&str]| {
        let mut watch = Watch::start(&lab, &[&from.pod, asked]);
        let send = flow(&from.place, to);
        while !watch.is_over() {
            send();
        }
        let (code, shown, seen) = watch.end();
        assert_eq!(
            (code, without_tunl0_out(&seen)),
            (0, named(there).iter().map(String::as_str).collect()),
            "{shown}"
        );
        let seen = places(&shown["replies"][0]);
        assert_eq!(without_tunl0_out(&seen), named(back), "{shown}");
        // Earlier flows may be known still.
        let translations = shown["translations"].as_array().into_iter().flatten();
        let mut translations = translations.map(|translated| {
            let text = |field: &str| translated[field].as_str().unwrap_or_default();
            format!("{} {} {} {}", text("from"), text("to"), text("node"), text("by"))
        });
        assert!(translations.any(|translated| translated == told), "{told}: {shown}");
    };
    let (service, real) = ("10.96.0.1:80", format!("{address}:7777"));
    let by_proxy = format!("{service} {real} {NEAR} conntrack");
    check(&web, "10.96.0.1:80/udp", service, &by_proxy, &ACROSS, &BACK);
    // A flow that is known before.
    check(&web, "10.96.0.1:80/udp", service, &by_proxy, &ACROSS, &BACK);
    check(&web, "db:7777/udp", service, &by_proxy, &ACROSS, &BACK);
    let port = format!("{node}:8053");
    check(
        &web,
        &format!("{port}/udp"),
        &port,
        &format!("{port} {real} {FAR} host port of pod default/db"),
        &[
            "default/pod-0-1 eth0 out",
            "k8s-125-master cali in",
            "k8s-125-master ens33 out",
            "k8s-125-node1 ens33 in",
            "k8s-125-node1 cali out",
            "default/pod-1-1 eth0 in",
        ],
        &[
            "default/pod-1-1 eth0 out",
            "k8s-125-node1 cali in",
            // Back through the tunnel, which nobody expected: such a device comes last.
            "k8s-125-node1 ens33 out in IP-in-IP",
            "k8s-125-master ens33 in in IP-in-IP",
            "k8s-125-master cali out",
            "default/pod-0-1 eth0 in",
            "k8s-125-master tunl0 in",
        ],
    );
    check(
        &beside,
        "10.211.55.200:7777/udp",
        "10.211.55.200:7777",
        &format!("10.211.55.200:7777 {real} {FAR} floating IP of pod default/db"),
        &[
            "default/beside eth0 out",
            "k8s-125-node1 cali in",
            "k8s-125-node1 cali out",
            "default/pod-1-1 eth0 in",
        ],
        &[
            "default/pod-1-1 eth0 out",
            "k8s-125-node1 cali in",
            "k8s-125-node1 cali out",
            "default/beside eth0 in",
        ],
    );
}

#[test]
fn what_is_wrong_on_the_way_is_named() {
    let Some(lab) = Lab::up("t-trace-bad", &["--nodes", "2", "--pods-per-node", "2"]) else {
        return;
    };
    let (from, address) = (lab.address("pod-0-1"), lab.address("pod-1-1"));
    echo(&lab, "pod-1-1", 5432);

    // An address of the other node's block that nobody has.
    let block: Vec<&str> = address.rsplitn(2, '.').collect();
    let nobody = format!(
        "{}.{}",
        block[1],
        block[0].parse::<u8>().expect("a number") / 64 * 64 + 60
    );
    let blackhole = "is a blackhole: it drops what has no route of its own\n";
    check(
        &lab,
        &["pod-0-1", &nobody],
        4,
        &["\nBROKEN at node k8s-125-node1: the route ", blackhole],
    );

    // Policy.
    forbid(&lab, "cut", &from, &[&address]);
    lab.eventually("the policy is enforced", || {
        connect(&lab, "pod-0-1", &address, 5432).is_err()
    });
    let denied = "GlobalNetworkPolicy(cut) ingress rule 0: Deny";
    check(
        &lab,
        &["pod-0-1", "pod-1-1:5432"],
        3,
        &[&format!("\nDENIED at node {FAR}: to pod default/pod-1-1: "), denied],
    );
    let counted = |text: &str| {
        let line = text.lines().find(|line| line.contains(denied)).expect("it is named");
        let number = line.rsplit_once('[').and_then(|(_, rest)| rest.split(' ').next());
        number
            .and_then(|number| number.parse::<u64>().ok())
            .expect("it is counted")
    };
    let before = counted(&trace(&lab, &["pod-0-1", "pod-1-1:5432"]).1);
    let watch = Watch::start(&lab, &["pod-0-1", "pod-1-1:5432", "--timeout", "3"]);
    assert!(connect(&lab, "pod-0-1", &address, 5432).is_err());
    let (code, passage, seen) = watch.end();
    assert_eq!((code, &*without_tunl0_out(&seen)), (3, &ACROSS[..5]), "{passage}");
    assert_eq!(
        (&passage["passages"][0]["arrived"], &passage["passages"][0]["missed"][1]),
        (&false.into(), &"eth0 of pod default/pod-1-1".into())
    );
    assert!(counted(&trace(&lab, &["pod-0-1", "pod-1-1:5432"]).1) > before);
    apply(
        &lab,
        "GlobalNetworkPolicy",
        "cut",
        r#"{"selector":"all()","types":["Ingress"],"ingress":[{"action":"Allow"}]}"#,
    );
    lab.eventually("the policy is open", || {
        connect(&lab, "pod-0-1", &address, 5432).is_ok()
    });

    // The node's end of a pod's link is too narrow.
    let device = lab.exec(FAR, &["ip", "route", "show", &address]);
    let device = device
        .split_whitespace()
        .skip_while(|word| *word != "dev")
        .nth(1)
        .expect("a device")
        .to_owned();
    let mtu = |mtu: &str| drop(lab.exec(FAR, &["ip", "link", "set", &device, "mtu", mtu]));
    mtu("1300");
    let narrow = format!("\nBROKEN at node {FAR}: {device} has MTU 1300, a full-size packet has 1480 bytes: ");
    check(&lab, &["pod-0-1", "pod-1-1:5432"], 4, &[&narrow]);
    mtu("1480");
    check(&lab, &["pod-0-1", "pod-1-1:5432"], 0, &["\nARRIVES\n"]);

    // Without the other agent: what can be seen, and the datastore's side.
    lab.lab(&["agent", "stop", FAR]);
    let unknown = format!(
        "\nUNKNOWN: nothing is wrong where one can look; node {FAR}: its agent cannot be asked: nobody answers on "
    );
    let allowed = "GlobalNetworkPolicy(cut) ingress rule 0: Allow";
    check(
        &lab,
        &["pod-0-1", "pod-1-1:5432"],
        5,
        &[" dev tunl0 onlink (by the agent)\n", allowed, &unknown],
    );
    let watch = Watch::start(&lab, &["pod-0-1", "pod-1-1:5432"]);
    connect(&lab, "pod-0-1", &address, 5432).expect("a stopped agent is in nobody's way");
    let (code, passage, seen) = watch.end();
    assert_eq!((code, &*without_tunl0_out(&seen)), (5, &ACROSS[..3]), "{passage}");
    lab.lab(&["agent", "start", FAR]);

    // The pod's own interface.
    lab.exec("pod-0-1", &["ip", "link", "set", "eth0", "down"]);
    check(
        &lab,
        &["pod-0-1", "pod-1-1:5432"],
        4,
        &[
            "\nBROKEN at pod default/pod-0-1: eth0 is down\n",
            "its other end is down",
        ],
    );
    lab.exec("pod-1-1", &["ip", "link", "set", "eth0", "down"]);
    let end = format!("\nBROKEN at node {FAR}: {device} has no carrier: its other end is down\n");
    check(&lab, &["pod-1-2", "pod-1-1:5432"], 4, &[&end]);
}
