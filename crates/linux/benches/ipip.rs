//! `tunl0` beside plain routing and the kernel's VXLAN, in the same topology: pod, node, node, pod. Needs root.
//!
//!     cargo bench -p linux --bench ipip [-- ROUNDS]
//!
//! The machine may be busy, so the ways take turns and the table shows medians, and medians of each round's ratio to
//! plain routing. CPU is that of the sending thread: over veth devices it walks the whole way to the receiving socket.
#![allow(clippy::unwrap_used, reason = "not production code")]

#[path = "../tests/ipip_support/mod.rs"]
mod ipip_support;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ipip_support::*;
use kernel::IpipFlavour;

const UDP_PACKETS: u64 = 100_000;
const TCP_TIME: Duration = Duration::from_millis(700);
const ROUND_TRIPS: usize = 10_000;

/// One way from pod to pod.
struct Way {
    name: &'static str,
    nodes: [Node; 2],
    rounds: Vec<Figures>,
}

#[derive(Clone, Copy, Default)]
struct Figures {
    /// Sender's CPU, microseconds a packet of 64 bytes.
    udp: f64,
    /// Gbit/s.
    tcp: f64,
    /// Microseconds of CPU for each megabyte, sender and receiver.
    tcp_cpu: f64,
    /// Median round trip, microseconds.
    rr: f64,
    /// CPU of the asking side, microseconds a round trip.
    rr_cpu: f64,
}

fn main() {
    let rounds = std::env::args()
        .filter_map(|argument| argument.parse().ok())
        .next()
        .unwrap_or(7);
    let only = std::env::var("WAYS").unwrap_or_default();
    let mut ways = Vec::new();
    for (name, make) in [
        ("plain routing", plain as fn() -> Option<[Node; 2]>),
        ("tunl0, BPF", || Some(two_nodes([IpipFlavour::Bpf; 2], 1480))),
        ("tunl0, native", native),
        ("VXLAN", vxlan),
    ] {
        let wanted = only.is_empty() || only.split(',').any(|part| name.contains(part));
        match wanted.then(make).flatten() {
            Some(nodes) => ways.push(Way {
                name,
                nodes,
                rounds: Vec::new(),
            }),
            None => eprintln!("{name}: left out, or this kernel has no such device"),
        }
    }
    for way in &ways {
        assert_ping(&way.nodes[0].pod, way.nodes[1].pod_address, "-c 3 -i 0.05");
    }
    for round in 0..=rounds {
        for way in &mut ways {
            let figures = measure(&way.nodes);
            // The first round warms up.
            if round > 0 {
                way.rounds.push(figures);
            }
        }
    }
    let plain = ways[0].rounds.clone();
    let mut out = std::io::stdout().lock();
    let _ = writeln!(
        out,
        "| way | UDP 64 B, CPU us | TCP Gbit/s | TCP CPU us/MB | RR p50 us | RR CPU us |\n|---|---|---|---|---|---|"
    );
    for way in &ways {
        let cell = |field: fn(&Figures) -> f64| {
            let value = median(way.rounds.iter().map(field).collect());
            let ratio = median(
                way.rounds
                    .iter()
                    .zip(&plain)
                    .map(|(own, base)| field(own) / field(base))
                    .collect(),
            );
            format!("{value:.2} ({ratio:.2})")
        };
        let cells = [
            cell(|f| f.udp),
            cell(|f| f.tcp),
            cell(|f| f.tcp_cpu),
            cell(|f| f.rr),
            cell(|f| f.rr_cpu),
        ];
        let _ = writeln!(out, "| {} | {} |", way.name, cells.join(" | "));
    }
}

fn measure(nodes: &[Node; 2]) -> Figures {
    let [a, b] = nodes;
    let address = IpAddr::V4(b.pod_address);
    let udp = udp(a, b);
    if std::env::var_os("UDP_ONLY").is_some() {
        return Figures {
            udp,
            ..Figures::default()
        };
    }
    let (tcp, tcp_cpu) = tcp(a, b, address);
    let (rr, rr_cpu) = round_trips(a, b, address);
    Figures {
        udp,
        tcp,
        tcp_cpu,
        rr,
        rr_cpu,
    }
}

/// Sent as fast as it goes, to a reader that does what it can.
fn udp(a: &Node, b: &Node) -> f64 {
    let receiver = b.pod.run(|| UdpSocket::bind((b.pod_address, 0)).unwrap());
    receiver.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let target = receiver.local_addr().unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 128];
            while !stop.load(Ordering::Relaxed) {
                let _ = receiver.recv(&mut buffer);
            }
        });
        a.pod.run(|| {
            let sender = UdpSocket::bind((a.pod_address, 0)).unwrap();
            sender.connect(target).unwrap();
            let payload = [7; 64];
            let before = thread_cpu();
            for _ in 0..UDP_PACKETS {
                let _ = sender.send(&payload);
            }
            let cpu = thread_cpu() - before;
            stop.store(true, Ordering::Relaxed);
            cpu.as_secs_f64() * 1e6 / UDP_PACKETS as f64
        })
    })
}

fn tcp(a: &Node, b: &Node, address: IpAddr) -> (f64, f64) {
    let listener = b.pod.run(|| TcpListener::bind((address, 0)).unwrap());
    let target = listener.local_addr().unwrap();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = vec![0; 1 << 18];
            let before = thread_cpu();
            let mut total = 0usize;
            loop {
                match stream.read(&mut buffer) {
                    Ok(0) | Err(_) => break (total, thread_cpu() - before),
                    Ok(length) => total += length,
                }
            }
        });
        let (elapsed, sending) = a.pod.run(|| {
            let mut stream = TcpStream::connect(target).unwrap();
            let buffer = vec![5; 1 << 17];
            let (start, before) = (Instant::now(), thread_cpu());
            while start.elapsed() < TCP_TIME {
                stream.write_all(&buffer).unwrap();
            }
            drop(stream);
            (start.elapsed(), thread_cpu() - before)
        });
        let (total, receiving) = reader.join().unwrap();
        let rate = total as f64 * 8.0 / elapsed.as_secs_f64() / 1e9;
        (rate, (sending + receiving).as_secs_f64() * 1e6 / (total as f64 / 1e6))
    })
}

fn round_trips(a: &Node, b: &Node, address: IpAddr) -> (f64, f64) {
    let listener = b.pod.run(|| TcpListener::bind((address, 0)).unwrap());
    let target = listener.local_addr().unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_nodelay(true).unwrap();
            let mut byte = [0];
            while !stop.load(Ordering::Relaxed) && stream.read_exact(&mut byte).is_ok() {
                stream.write_all(&byte).unwrap();
            }
        });
        a.pod.run(|| {
            let mut stream = TcpStream::connect(target).unwrap();
            stream.set_nodelay(true).unwrap();
            let mut times = Vec::with_capacity(ROUND_TRIPS);
            let mut byte = [1];
            let before = thread_cpu();
            for _ in 0..ROUND_TRIPS {
                let start = Instant::now();
                stream.write_all(&byte).unwrap();
                stream.read_exact(&mut byte).unwrap();
                times.push(start.elapsed().as_secs_f64() * 1e6);
            }
            let cpu = (thread_cpu() - before).as_secs_f64() * 1e6 / ROUND_TRIPS as f64;
            stop.store(true, Ordering::Relaxed);
            (median(times), cpu)
        })
    })
}

/// Time that the calling thread spent on a processor.
fn thread_cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Nodes joined by a link, without any tunnel.
fn bare() -> [Node; 2] {
    let a = Node::new(1, A, IpipFlavour::Bpf, 1480);
    let b = Node::new(2, B, IpipFlavour::Bpf, 1480);
    a.ns.wire("eth0", &b.ns, "eth0");
    for node in [&a, &b] {
        node.ns.sh(&format!("ip addr add {}/24 dev eth0", node.address));
    }
    [a, b]
}

fn plain() -> Option<[Node; 2]> {
    let [a, b] = bare();
    a.ns.sh(&format!("ip route add 192.168.2.0/26 via {B}"));
    b.ns.sh(&format!("ip route add 192.168.1.0/26 via {A}"));
    Some([a, b])
}

fn native() -> Option<[Node; 2]> {
    linux::ipip::probe().native.ok()?;
    Some(two_nodes([IpipFlavour::Native; 2], 1480))
}

/// As upstream sets it up: one device, routes to the other nodes' devices, neighbours and forwarding entries static.
fn vxlan() -> Option<[Node; 2]> {
    let nodes = bare();
    let mac = |number: u8| format!("66:00:00:00:00:{number:02x}");
    for (own, other, at) in [(1, 2, 0), (2, 1, 1)] {
        let (node, far): (&Node, Ipv4Addr) = (&nodes[at], nodes[1 - at].address);
        let (made, _) = node.ns.try_sh(&format!(
            "ip link add vxlan.calico type vxlan id 4096 dstport 4789 local {} dev eth0 nolearning
             ip link set vxlan.calico address {} mtu 1450 up; ip addr add 192.168.{own}.1/32 dev vxlan.calico
             bridge fdb add {} dev vxlan.calico dst {far}
             ip neigh add 192.168.{other}.1 lladdr {} dev vxlan.calico nud permanent
             ip route add 192.168.{other}.0/26 via 192.168.{other}.1 dev vxlan.calico onlink",
            node.address,
            mac(own),
            mac(other),
            mac(other),
        ));
        if !made {
            return None;
        }
        node.pod.sh("ip link set eth0 mtu 1450");
        node.ns.sh("ip link set cali1 mtu 1450");
    }
    Some(nodes)
}
