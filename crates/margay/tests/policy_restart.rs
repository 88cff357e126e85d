//! Connections of pods and hosts while agents die and come back: what is established goes on, what is allowed begins, what is
//! denied does not. Over both families, with a host endpoint.

mod common;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::Lab;
use common::cluster::{Datastore, resource};
use common::load::Pulse;
use common::net::{self, L4, Receiver};
use common::talk::answers;
use nix::poll::poll;

const UNDERLAY: &str = "ens33";
/// Whether it is IPv6.
const FAMILIES: [bool; 2] = [false, true];
/// What policy allows, and what it does not.
const OPEN: u16 = 7777;
const CLOSED: u16 = 7778;
/// Fewer packets than these show nothing of six restarts, however quick.
const FEW: usize = 30;

/// Answers every connection of a namespace with what it hears.
fn echo(place: &str) {
    let listener = net::inside(place, || TcpListener::bind(("::", OPEN))).expect("the port is free");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || std::io::copy(&mut (&stream), &mut (&stream)));
        }
    });
}

/// A connection that is used all the time.
struct Talk {
    what: String,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<(usize, Duration), String>>,
}

impl Talk {
    fn start(what: &str, from: &str, to: SocketAddr) -> Self {
        let connect = || TcpStream::connect_timeout(&to, Duration::from_secs(3));
        let mut stream = net::inside(from, connect).unwrap_or_else(|error| panic!("{what} to {to}: {error}"));
        stream.set_read_timeout(Some(Duration::from_secs(3))).expect("a socket");
        stream.set_nodelay(true).expect("a socket");
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            let (mut rounds, mut longest) = (0_usize, Duration::ZERO);
            while !told.load(Ordering::Relaxed) {
                let asked = Instant::now();
                if !answers(&mut stream) {
                    return Err(format!("it ends after {rounds} answers"));
                }
                rounds += 1;
                longest = longest.max(asked.elapsed());
                // Nobody sends anything meanwhile.
                let _ = poll(&mut [], 2_u8);
            }
            Ok((rounds, longest))
        });
        Self {
            what: format!("{what} to {to}"),
            stop,
            thread,
        }
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        let outcome = self.thread.join().expect("the conversation");
        let (rounds, longest) = outcome.unwrap_or_else(|why| panic!("{}: {why}", self.what));
        assert!(
            rounds >= FEW,
            "{}: {rounds} answers are too few to see anything",
            self.what
        );
        println!("{}: {rounds} answers, the slowest after {longest:?}", self.what);
    }
}

#[test]
fn connections_of_pods_and_hosts_outlive_agents() {
    let Some(lab) = Lab::up("t-pol-talk", &["--nodes", "2", "--pods-per-node", "0", "--ipv6"]) else {
        return;
    };
    let nodes = lab.nodes();
    let friend = lab.add_pod("default", "friend", &nodes[1], &[("role", "friend")]);
    let server = lab.add_pod("default", "server", &nodes[0], &[("role", "server")]);
    lab.lab(&["node", "add", "outside", "--no-agent"]);
    let (host, outside) = (lab.node_place(&nodes[0]), lab.node_place("outside"));
    let address = |node: &str, ipv6: bool| lab.first_address(node, UNDERLAY, ipv6);
    let host_at = |ipv6: bool, port: u16| SocketAddr::from((address(&nodes[0], ipv6), port));
    let store = Datastore::of(&lab);
    let put = |yaml: &str| store.put(resource(yaml));
    put(&format!(
        "{{kind: HostEndpoint, metadata: {{name: guarded, labels: {{host: guarded}}}}, spec: {{node: {}, interfaceName: {UNDERLAY}}}}}",
        nodes[0]
    ));
    put(&format!(
        "{{kind: GlobalNetworkPolicy, metadata: {{name: hosts}}, spec: {{selector: \"host == 'guarded'\",
          ingress: [{{action: Allow, protocol: TCP, destination: {{ports: [{OPEN}]}}}}, {{action: Allow, protocol: UDP, destination: {{ports: [{OPEN}]}}}}],
          egress: [{{action: Allow, protocol: TCP, destination: {{ports: [{OPEN}]}}}}]}}}}"
    ));
    put(
        "{kind: NetworkPolicy, metadata: {name: friends, namespace: default}, spec: {selector: \"role == 'server'\",
          ingress: [{action: Allow, source: {selector: \"role == 'friend'\"}}]}}",
    );
    [&host, &outside, &server.place]
        .into_iter()
        .for_each(|place| echo(place));
    let (open, closed) = (Receiver::start(&host, OPEN), Receiver::start(&host, CLOSED));
    lab.eventually("policy is enforced", || {
        FAMILIES.iter().all(|ipv6| {
            net::reaches(&outside, host_at(*ipv6, OPEN), L4::Udp, true)
                && !net::reaches(&outside, host_at(*ipv6, CLOSED), L4::Udp, false)
        })
    });
    open.forget();
    closed.forget();

    let talks: Vec<Talk> = FAMILIES
        .into_iter()
        .flat_map(|ipv6| {
            let far = SocketAddr::from((address("outside", ipv6), OPEN));
            [
                Talk::start("a pod", &friend.place, (server.address(ipv6), OPEN).into()),
                Talk::start("into the host", &outside, host_at(ipv6, OPEN)),
                Talk::start("out of the host", &host, far),
            ]
        })
        .collect();
    let pulses = |port: u16| FAMILIES.map(|ipv6| Pulse::start(&outside, host_at(ipv6, port)));
    let (allowed, denied) = (pulses(OPEN), pulses(CLOSED));
    for round in 0..3 {
        for node in &nodes {
            match round {
                0 => drop(lab.lab(&["agent", "restart", node])),
                _ => {
                    lab.lab(&["agent", "kill", node]);
                    lab.lab(&["agent", "start", node]);
                }
            }
        }
    }
    for ((ipv6, allowed), denied) in FAMILIES.into_iter().zip(allowed).zip(denied) {
        let from = address("outside", ipv6);
        let (sent, lost) = allowed.end();
        assert!(lost.is_empty(), "of {sent} allowed ones, IPv6: {ipv6}, lost: {lost:?}");
        assert_eq!(open.heard(from).len(), sent, "allowed, IPv6: {ipv6}");
        let tried = denied.stop();
        assert_eq!(closed.heard(from).len(), 0, "of {tried} denied ones, IPv6: {ipv6}");
        assert!(
            sent >= FEW && tried >= FEW,
            "{sent}, {tried} are too few to see anything"
        );
    }
    talks.into_iter().for_each(Talk::end);
}
