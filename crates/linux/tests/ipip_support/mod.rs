//! Two nodes with a pod each, in network namespaces that vanish with the test.
#![allow(
    clippy::unwrap_used,
    dead_code,
    reason = "test code, shared by binaries that use parts of it"
)]

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use kernel::{IfName, IpipFlavour, IpipTunnel};
use linux::ipip;
use nix::sched::{CloneFlags, setns, unshare};

pub const A: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
pub const B: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
/// A node behind a router, as seen from A.
pub const FAR: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);

/// A network namespace without a name.
pub struct Ns(OwnedFd);

impl Ns {
    pub fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            OwnedFd::from(File::open("/proc/thread-self/ns/net").unwrap())
        };
        let ns = Self(std::thread::spawn(make).join().unwrap());
        ns.sh("ip link set lo up");
        // What containers' nodes have; strict, so that a packet on the wrong device is noticed.
        ns.sysctl("ipv4/conf/all/rp_filter", "1");
        ns.sysctl("ipv4/conf/default/rp_filter", "1");
        ns
    }

    /// Runs in the namespace, on a thread of its own.
    pub fn run<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = || {
                setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                job()
            };
            scope.spawn(inside).join().unwrap()
        })
    }

    /// Exit status and all output of a shell command.
    pub fn try_sh(&self, script: &str) -> (bool, String) {
        let output = self.run(|| {
            Command::new("sh")
                .args(["-ec", script])
                .stdin(Stdio::null())
                .output()
                .unwrap()
        });
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    /// Output of a shell command that must succeed.
    pub fn sh(&self, script: &str) -> String {
        let (fine, text) = self.try_sh(script);
        assert!(fine, "{script}: {text}");
        text
    }

    pub fn start(&self, program: &str, arguments: &[&str]) -> Child {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        self.run(|| command.spawn().unwrap())
    }

    pub fn sysctl(&self, path: &str, value: &str) {
        self.run(|| std::fs::write(format!("/proc/sys/net/{path}"), value).unwrap());
    }

    /// Name for `ip link … netns`.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    pub fn wire(&self, name: &str, other: &Ns, other_name: &str) {
        self.sh(&format!(
            "ip link add {name} type veth peer name {other_name} netns {}",
            other.path()
        ));
        self.sh(&format!("ip link set {name} up"));
        other.sh(&format!("ip link set {other_name} up"));
    }

    /// Captures until `count` packets have come.
    pub fn capture(&self, device: &str, count: u32, filter: &str) -> Capture {
        let count = count.to_string();
        let child = self.start(
            "timeout",
            &[
                "-s",
                "INT",
                "20",
                "tcpdump",
                "-n",
                "-l",
                "--immediate-mode",
                "-v",
                "-i",
                device,
                "-c",
                &count,
                filter,
            ],
        );
        let mut capture = Capture(child);
        // tcpdump says when it begins to listen.
        let mut errors = BufReader::new(capture.0.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            assert_ne!(errors.read_line(&mut line).unwrap(), 0, "tcpdump did not start");
        }
        std::thread::spawn(move || errors.read_to_end(&mut Vec::new()));
        capture
    }
}

/// A running tcpdump.
pub struct Capture(Child);

impl Capture {
    pub fn text(mut self) -> String {
        let mut text = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        self.0.wait().unwrap();
        text
    }
}

/// A node: its namespace, its address, and its pod's.
pub struct Node {
    pub ns: Ns,
    pub pod: Ns,
    pub address: Ipv4Addr,
    pub pod_address: Ipv4Addr,
    pub tunnel_address: Ipv4Addr,
    pub flavour: IpipFlavour,
}

impl Node {
    /// Without underlay yet. `number` makes its addresses.
    pub fn new(number: u8, address: Ipv4Addr, flavour: IpipFlavour, pod_mtu: u32) -> Self {
        let node = Self {
            ns: Ns::new(),
            pod: Ns::new(),
            address,
            pod_address: Ipv4Addr::new(192, 168, number, 2),
            tunnel_address: Ipv4Addr::new(192, 168, number, 1),
            flavour,
        };
        node.ns.sysctl("ipv4/ip_forward", "1");
        node.ns.wire("cali1", &node.pod, "eth0");
        let pod = node.pod_address;
        node.pod.sh(&format!(
            "ip addr add {pod}/32 dev eth0; ip link set eth0 mtu {pod_mtu}
             ip route add 169.254.1.1 dev eth0 scope link; ip route add default via 169.254.1.1
             ip neigh add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent"
        ));
        node.ns.sh(&format!(
            "ip link set cali1 address ee:ee:ee:ee:ee:ee mtu {pod_mtu}; ip route add {pod}/32 dev cali1"
        ));
        node
    }

    pub fn tunnel(&self) -> IpipTunnel {
        IpipTunnel {
            name: tunl0(),
            flavour: self.flavour,
            local: self.address,
            underlay: IfName::from("eth0"),
            address: Some(self.tunnel_address),
            mtu: 1480,
        }
    }

    pub fn put(&self) {
        self.ns.run(|| ipip::put(&self.tunnel())).unwrap();
    }

    /// The route to another node's pods, as the agent writes it, and the peer.
    pub fn join(&self, other: &Node) {
        let [a, b, c, _] = other.tunnel_address.octets();
        let (block, via) = (Ipv4Addr::new(a, b, c, 0), other.address);
        self.ns.sh(&format!(
            "ip route replace {block}/26 via {via} dev tunl0 onlink proto 80"
        ));
        self.ns.run(|| ipip::put_peer(&tunl0(), via)).unwrap();
    }

    pub fn counters(&self) -> kernel::IpipCounters {
        self.ns
            .run(|| ipip::counters(&tunl0()))
            .unwrap()
            .expect("a working tunnel")
    }

    pub fn programs(&self) -> Vec<u32> {
        self.ns.run(|| ipip::programs(&tunl0())).unwrap()
    }

    /// Whether the underlay has a `clsact` queueing discipline: the place of programs on kernels without TCX.
    pub fn has_clsact(&self) -> bool {
        self.ns.sh("tc qdisc show dev eth0").contains("clsact")
    }

    pub fn observe(&self) -> Option<(IpipTunnel, std::collections::BTreeSet<Ipv4Addr>)> {
        self.ns.run(|| ipip::observe(&tunl0())).unwrap()
    }
}

pub fn tunl0() -> IfName {
    IfName::from("tunl0")
}

/// Two nodes on one link, tunnels up, peers known.
pub fn two_nodes(flavours: [IpipFlavour; 2], pod_mtu: u32) -> [Node; 2] {
    let a = Node::new(1, A, flavours[0], pod_mtu);
    let b = Node::new(2, B, flavours[1], pod_mtu);
    a.ns.wire("eth0", &b.ns, "eth0");
    for node in [&a, &b] {
        node.ns.sh(&format!("ip addr add {}/24 dev eth0", node.address));
        node.put();
    }
    a.join(&b);
    b.join(&a);
    [a, b]
}

/// Two nodes with a router between them.
pub fn two_routed_nodes(flavours: [IpipFlavour; 2]) -> ([Node; 2], Ns) {
    let a = Node::new(1, A, flavours[0], 1480);
    let b = Node::new(2, FAR, flavours[1], 1480);
    let router = Ns::new();
    router.sysctl("ipv4/ip_forward", "1");
    a.ns.wire("eth0", &router, "left");
    b.ns.wire("eth0", &router, "right");
    router.sh("ip addr add 10.1.0.254/24 dev left; ip addr add 10.9.0.254/24 dev right");
    a.ns.sh(&format!(
        "ip addr add {A}/24 dev eth0; ip route add 10.9.0.0/24 via 10.1.0.254"
    ));
    b.ns.sh(&format!(
        "ip addr add {FAR}/24 dev eth0; ip route add 10.1.0.0/24 via 10.9.0.254"
    ));
    for node in [&a, &b] {
        node.put();
    }
    a.join(&b);
    b.join(&a);
    ([a, b], router)
}

pub fn ping(from: &Ns, to: Ipv4Addr, options: &str) -> (bool, String) {
    from.try_sh(&format!("ping -n -W 5 {options} {to}"))
}

#[track_caller]
pub fn assert_ping(from: &Ns, to: Ipv4Addr, options: &str) -> String {
    let (fine, text) = ping(from, to, options);
    assert!(fine && text.contains(" 0% packet loss"), "{text}");
    text
}

/// Moves some megabytes by TCP; `-R`: towards the client.
#[track_caller]
pub fn transfer(client: &Ns, server: &Ns, address: Ipv4Addr, direction: &str, megabytes: u32) {
    // With an end of its own, should the test fail before its client comes.
    let mut listener = server.start("timeout", &["90", "iperf3", "-s", "-1"]);
    // Connections are refused until it listens.
    let text = client.sh(&format!(
        "for try in $(seq 50); do
             timeout 60 iperf3 -c {address} -n {megabytes}M {direction} && exit
             ping -c 1 -W 0.1 {address} >&2
         done
         exit 1"
    ));
    assert!(text.contains("receiver"), "{direction}: {text}");
    listener.wait().unwrap();
}
