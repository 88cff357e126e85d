use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use bgp::{Family, FibChange, LocalRoute, PeerConfig};
use testkit::netns::{in_netns, tool};

use super::*;
use crate::status::BgpPeerReport;

/// How long anything may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// A speaker behind its shell.
struct Running {
    commands: mpsc::UnboundedSender<Command>,
    events: mpsc::UnboundedReceiver<Event>,
    task: JoinHandle<()>,
}

fn start(restarted: bool) -> Running {
    let (commands, inbox) = mpsc::unbounded_channel();
    let (events_out, events) = mpsc::unbounded_channel();
    let task = tokio::spawn(run(inbox, events_out, restarted));
    Running { commands, events, task }
}

impl Running {
    fn configure(&self, config: bgp::Config) {
        self.commands
            .send(Command::Config(Box::new(config)))
            .expect("the shell runs");
    }

    async fn report(&self) -> BgpReport {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Report(reply)).expect("the shell runs");
        answer.await.expect("the shell answers")
    }

    /// Waits until the report is as it should be.
    async fn reaches(&self, what: &str, fine: impl Fn(&BgpReport) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let report = self.report().await;
            if fine(&report) {
                return;
            }
            assert!(Instant::now() < deadline, "not {what}: {report:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The next wishes for the forwarding table, as text.
    async fn fib(&mut self) -> Vec<String> {
        let next = async {
            loop {
                match self.events.recv().await.expect("the shell runs") {
                    Event::Fib(changes) => return changes,
                    _ => continue,
                }
            }
        };
        let changes = tokio::time::timeout(PATIENCE, next).await.expect("a change comes");
        let text = |change: FibChange| match change.route {
            Some(route) => format!("{} via {}", change.prefix, route.next_hops[0]),
            None => format!("{} gone", change.prefix),
        };
        changes.into_iter().map(text).collect()
    }
}

/// Speaker 127.0.0.`own` with a peer 127.0.0.`other`, originating `routes`.
fn config(own: u8, other: u8, routes: &[&str]) -> bgp::Config {
    let local = |last| Ipv4Addr::new(127, 0, 0, last);
    let mut peer = PeerConfig::new(format!("Mesh_{other}"), 64512, BTreeSet::from([Family::Ipv4]));
    peer.source = Some(IpAddr::V4(local(own)));
    bgp::Config {
        router_id: local(own),
        asn: 64512,
        listen_port: 1790,
        bind: Bind::OwnAddresses,
        address_v4: Some(local(own)),
        address_v6: None,
        cluster_id: None,
        graceful_restart: Some(Duration::from_secs(120)),
        peers: BTreeMap::from([(PeerId(SocketAddr::new(IpAddr::V4(local(other)), 1790)), peer)]),
        exportable: BTreeSet::new(),
        originated: routes
            .iter()
            .map(|route| (route.parse().expect("a prefix"), LocalRoute { metric: 1024 }))
            .collect(),
    }
}

fn established(report: &BgpReport) -> bool {
    !report.peers.is_empty()
        && report
            .peers
            .iter()
            .all(|peer: &BgpPeerReport| peer.state == "Established")
}

#[test]
fn two_shells_exchange_routes_follow_changes_and_survive_the_others_end() {
    in_netns(|| async {
        tool("ip link set lo up");
        let (mut a, mut b) = (start(false), start(false));
        a.configure(config(1, 2, &["10.1.0.0/26"]));
        b.configure(config(2, 1, &["10.2.0.0/26"]));
        assert_eq!(a.fib().await, ["10.2.0.0/26 via 127.0.0.2"]);
        assert_eq!(b.fib().await, ["10.1.0.0/26 via 127.0.0.1"]);
        a.reaches("established", established).await;

        // A route more and one less, over the same session.
        b.configure(config(2, 1, &["10.3.0.0/26"]));
        let mut changes = a.fib().await;
        while changes.len() < 2 {
            changes.extend(a.fib().await);
        }
        changes.sort();
        assert_eq!(changes, ["10.2.0.0/26 gone", "10.3.0.0/26 via 127.0.0.2"]);

        // b ends without a word, as an agent does: its routes stay while it may come back, and it does.
        b.task.abort();
        let _ = b.task.await;
        a.reaches("down", |report| !established(report)).await;
        assert_eq!(a.report().await.routes, 2);
        let b = start(true);
        b.configure(config(2, 1, &["10.3.0.0/26"]));
        a.reaches("up again", established).await;
        b.reaches("up again", |report| established(report) && report.routes == 2)
            .await;
        assert!(a.events.try_recv().is_err(), "the forwarding table did not change");

        // b says goodbye: its routes go at once.
        let (done, said) = oneshot::channel();
        b.commands.send(Command::Shutdown(done)).expect("the shell runs");
        said.await.expect("said");
        assert_eq!(a.fib().await, ["10.3.0.0/26 gone"]);
        a.reaches("told", |report| {
            report.peers[0]
                .info
                .as_deref()
                .is_some_and(|why| why.contains("notification"))
        })
        .await;
    });
}

#[test]
fn what_cannot_be_listened_on_is_told_and_tried_again() {
    in_netns(|| async {
        tool("ip link set lo up");
        let holder = std::net::TcpListener::bind("127.0.0.1:1790").expect("the namespace is new");
        let speaker = start(false);
        speaker.configure(config(1, 2, &[]));
        let why = speaker.report().await.listen_error.expect("it is told");
        assert!(
            why.starts_with("cannot listen on 127.0.0.1:1790: Address already in use"),
            "{why}"
        );
        drop(holder);
        speaker
            .reaches("listening", |report| report.listen_error.is_none())
            .await;
        assert!(std::net::TcpStream::connect("127.0.0.1:1790").is_ok());

        // A new port is listened on, the old one no more.
        let mut moved = config(1, 2, &[]);
        moved.listen_port = 1791;
        speaker.configure(moved);
        assert!(speaker.report().await.listen_error.is_none());
        assert!(std::net::TcpStream::connect("127.0.0.1:1791").is_ok());
        assert!(std::net::TcpStream::connect("127.0.0.1:1790").is_err());
    });
}

#[test]
fn it_listens_everywhere_or_on_its_own_addresses() {
    in_netns(|| async {
        tool("ip link set lo up");
        let answers = |address: &str| std::net::TcpStream::connect((address, 1790)).is_ok();
        let speaker = start(false);
        let reconfigure = async |bind, address_v6: Option<&str>| {
            let mut config = config(1, 2, &[]);
            config.bind = bind;
            config.address_v6 = address_v6.map(|address| address.parse().expect("an address"));
            speaker.configure(config);
            assert_eq!(speaker.report().await.listen_error, None);
        };
        reconfigure(Bind::OwnAddresses, None).await;
        assert!(answers("127.0.0.1") && !answers("127.0.0.9") && !answers("::1"));
        reconfigure(Bind::All, None).await;
        assert!(answers("127.0.0.1") && answers("127.0.0.9") && !answers("::1"));
        reconfigure(Bind::All, Some("::1")).await;
        assert!(answers("127.0.0.9") && answers("::1"));
        reconfigure(Bind::OwnAddresses, Some("::1")).await;
        assert!(answers("127.0.0.1") && !answers("127.0.0.9") && answers("::1"));
    });
}

#[test]
fn a_peer_that_takes_nothing_does_not_fill_the_memory() {
    in_netns(|| async {
        tool("ip link set lo up");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let stream = TcpStream::connect(listener.local_addr().expect("bound"))
            .await
            .expect("connected");
        let (_deaf, _) = listener.accept().await.expect("accepted");
        let (events, _events) = mpsc::unbounded_channel();
        let (traffic, _arrivals) = mpsc::channel(16);
        let mut shell = Shell::new(events, traffic, false);
        let conn = ConnId(1);
        shell.adopt(conn, stream);
        // One buffer, sent over and over: it is its length that counts.
        let megabyte = Bytes::from(vec![0; 1 << 20]);
        for _ in 0..=(MOST_QUEUED >> 20) {
            shell.perform(vec![Output::Send(conn, megabyte.clone())]);
            assert!(shell.connections.contains_key(&conn));
        }
        shell.perform(vec![Output::Send(conn, megabyte.clone()), Output::Send(conn, megabyte)]);
        assert!(shell.connections.is_empty());
    });
}
