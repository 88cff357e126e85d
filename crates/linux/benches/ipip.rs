//! `tunl0` beside plain routing and the kernel's VXLAN, in the same topology: pod, node, node, pod. Needs root.
//!
//!     cargo bench -p linux --bench ipip [-- ROUNDS]
//!
//! The machine may be busy, so the ways take turns and the table shows medians, and medians of each turn's ratio to plain
//! routing. CPU is that of the sending thread: over veth devices it walks the whole way to the receiving socket. Ends with
//! exit code 1 if a bar is missed.
//!
//! `WAYS=BPF,VXLAN` measures only some (plain routing always), `UDP_ONLY=1` only the first column.
#![allow(clippy::unwrap_used, reason = "not production code")]

#[path = "../tests/ipip_support/mod.rs"]
mod ipip_support;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ipip_support::*;
use kernel::IpipFlavour;
use testkit::measure::{median, thread_cpu};

const UDP_PACKETS: u64 = 20_000;
/// Short turns, many of them: what disturbs one way disturbs its neighbours too, and the median forgets it.
const UDP_TURNS: usize = 5;
const TCP_TIME: Duration = Duration::from_millis(700);
const ROUND_TRIPS: usize = 10_000;

/// What is measured.
struct Figure {
    name: &'static str,
    /// What `tunl0` must not be worse than, as a ratio to plain routing.
    bar: Option<f64>,
    more_is_better: bool,
}

const FIGURES: [Figure; 5] = [
    Figure {
        name: "UDP 64 B, CPU us",
        bar: Some(1.10),
        more_is_better: false,
    },
    Figure {
        name: "TCP Gbit/s",
        bar: Some(0.95),
        more_is_better: true,
    },
    Figure {
        name: "TCP CPU us/MB",
        bar: Some(1.10),
        more_is_better: false,
    },
    Figure {
        name: "RR p50 us",
        bar: None,
        more_is_better: false,
    },
    Figure {
        name: "RR CPU us",
        bar: Some(1.10),
        more_is_better: false,
    },
];

const PLAIN: &str = "plain routing";
const VXLAN: &str = "VXLAN";

/// One way from pod to pod.
struct Way {
    name: &'static str,
    nodes: [Node; 2],
    /// Per figure, what each turn gave.
    turns: [Vec<f64>; FIGURES.len()],
}

impl Way {
    fn median(&self, figure: usize) -> f64 {
        median(self.turns[figure].clone())
    }

    /// To plain routing, turn by turn.
    fn ratio(&self, figure: usize, plain: &Way) -> f64 {
        let pairs = self.turns[figure].iter().zip(&plain.turns[figure]);
        median(pairs.map(|(own, base)| own / base).collect())
    }
}

fn main() -> ExitCode {
    let rounds = std::env::args()
        .filter_map(|argument| argument.parse().ok())
        .next()
        .unwrap_or(15);
    let only = std::env::var("WAYS").unwrap_or_default();
    let figures = if std::env::var_os("UDP_ONLY").is_some() {
        0..1
    } else {
        0..FIGURES.len()
    };
    let mut ways = Vec::new();
    for (name, make) in [
        (PLAIN, plain as fn() -> Option<[Node; 2]>),
        ("tunl0, BPF", || Some(two_nodes([IpipFlavour::Bpf; 2], 1480))),
        ("tunl0, native", native),
        (VXLAN, vxlan),
    ] {
        let wanted = only.is_empty() || name == PLAIN || only.split(',').any(|part| name.contains(part));
        match wanted.then(make).flatten() {
            Some(nodes) => ways.push(Way {
                name,
                nodes,
                turns: Default::default(),
            }),
            None => eprintln!("{name}: left out, or this kernel has no such device"),
        }
    }
    for way in &ways {
        introduce(&way.nodes);
        assert_ping(&way.nodes[0].pod, way.nodes[1].pod_address, "-c 3 -i 0.05");
    }
    for round in 0..=rounds {
        for _ in 0..UDP_TURNS {
            for way in &mut ways {
                let value = udp(&way.nodes);
                way.turns[0].push(value);
            }
        }
        if figures.len() > 1 {
            for way in &mut ways {
                let (rate, rate_cpu) = tcp(&way.nodes);
                let (trip, trip_cpu) = round_trips(&way.nodes);
                for (turns, value) in way.turns[1..].iter_mut().zip([rate, rate_cpu, trip, trip_cpu]) {
                    turns.push(value);
                }
            }
        }
        // The first round warms up.
        if round == 0 {
            ways.iter_mut().flat_map(|way| &mut way.turns).for_each(Vec::clear);
        }
    }
    let measured = &FIGURES[figures];
    print_table(&ways, measured);
    let missed = missed_bars(&ways, measured);
    for line in &missed {
        println!("MISSED: {line}");
    }
    if missed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn print_table(ways: &[Way], figures: &[Figure]) {
    let head: Vec<&str> = figures.iter().map(|figure| figure.name).collect();
    println!("| way | {} |\n|---|{}", head.join(" | "), "---|".repeat(figures.len()));
    for way in ways {
        let cell = |at| format!("{:.2} ({:.2})", way.median(at), way.ratio(at, &ways[0]));
        let cells: Vec<String> = (0..figures.len()).map(cell).collect();
        println!("| {} | {} |", way.name, cells.join(" | "));
    }
}

/// A line for each bar that `tunl0` does not reach: ratios to plain routing, and to be ahead of VXLAN.
fn missed_bars(ways: &[Way], figures: &[Figure]) -> Vec<String> {
    let mut missed = Vec::new();
    let vxlan = ways.iter().find(|way| way.name == VXLAN);
    for way in ways.iter().filter(|way| way.name.starts_with("tunl0")) {
        for (at, figure) in figures.iter().enumerate() {
            // As printed: a bar of 1.10 is kept by 1.104.
            let ratio = (way.ratio(at, &ways[0]) * 100.0).round() / 100.0;
            let worse = |than: f64| {
                if figure.more_is_better {
                    ratio < than
                } else {
                    ratio > than
                }
            };
            let mut say = |what: &str, bar: f64| {
                missed.push(format!(
                    "{}, {}: {ratio:.2} of plain routing, {what} {bar:.2}",
                    way.name, figure.name
                ));
            };
            if let Some(bar) = figure.bar
                && worse(bar)
            {
                say("the bar is", bar);
            }
            if let Some(other) = vxlan.map(|other| other.ratio(at, &ways[0]))
                && worse(other)
            {
                say("VXLAN has", other);
            }
        }
    }
    missed
}

/// Tells each node the hardware addresses around it. The kernel bounds the neighbours that it learns for all namespaces
/// together, so that a big cluster on the same machine could crowd ours out.
fn introduce(nodes: &[Node; 2]) {
    let mac = |ns: &Ns| {
        let text = ns.sh("ip -o link show eth0");
        text.split("link/ether ").nth(1).unwrap()[..17].to_string()
    };
    for (node, far) in [(&nodes[0], &nodes[1]), (&nodes[1], &nodes[0])] {
        for (address, lladdr, device) in [
            (far.address, mac(&far.ns), "eth0"),
            (node.pod_address, mac(&node.pod), "cali1"),
        ] {
            node.ns.sh(&format!(
                "ip neigh replace {address} lladdr {lladdr} dev {device} nud permanent"
            ));
        }
    }
}

/// Sent as fast as it goes, to a reader that does what it can.
fn udp([a, b]: &[Node; 2]) -> f64 {
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

/// Rate, and the CPU of sender and receiver for each megabyte.
fn tcp([a, b]: &[Node; 2]) -> (f64, f64) {
    let address = IpAddr::V4(b.pod_address);
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

/// Median round trip, and the CPU of the asking side for each.
fn round_trips([a, b]: &[Node; 2]) -> (f64, f64) {
    let address = IpAddr::V4(b.pod_address);
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
