//! Flows that policy forbids, where it is said aloud: with `nftablesFilterDenyAction: Reject` both ends hear of it.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use common::Lab;
use common::net::{self, L4, Servers};
use common::talk::{apply, connect, forbid, inside};
use common::told::dropped;

const FAR: &str = "k8s-125-node1";

/// Whether this end of a connection is told that it has ended.
fn is_reset(stream: &mut TcpStream) -> bool {
    let said = stream.write_all(b"ping").and_then(|()| stream.read(&mut [0; 64]));
    said.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

#[test]
fn what_policy_denies_is_refused_aloud_if_that_is_asked_for() {
    let Some(lab) = Lab::up("t-flows-loud", &["--nodes", "2", "--pods-per-node", "1", "--ipv6"]) else {
        return;
    };
    let (bad, server, port) = ("pod-0-1", "pod-1-1", 5432);
    let place = |pod: &str| format!("{}.pod-{pod}", lab.name);
    let _servers = Servers::start(&[(place(server), vec![(L4::Udp, port)])]);
    let listener = inside(&lab, server).run(move || TcpListener::bind(("::", port)));
    let listener = listener.expect("its namespace").expect("the port is free");
    apply(
        &lab,
        "FelixConfiguration",
        "default",
        r#"{"nftablesFilterDenyAction":"Reject"}"#,
    );
    for ipv6 in [false, true] {
        let [from, to] = [bad, server].map(|pod| lab.first_address(pod, "eth0", ipv6));
        let (from, to) = (from.to_string(), SocketAddr::new(to, port));
        let address = to.ip().to_string();
        let mut client = connect(&lab, bad, &address, port).expect("it is open");
        let (mut served, _) = listener.accept().expect("a connection");
        for stream in [&client, &served] {
            stream
                .set_read_timeout(Some(Duration::from_millis(20)))
                .expect("a socket");
        }
        assert!(net::reaches(&place(bad), to, L4::Udp, true));
        assert!(!is_reset(&mut client) && !is_reset(&mut served));

        forbid(&lab, "cut", &from, &[&address]);
        lab.eventually("the client is told", || is_reset(&mut client));
        lab.eventually("the server is told", || is_reset(&mut served));
        // A new flow of either protocol: by whoever listens it would be answered.
        let tcp = connect(&lab, bad, &address, port).expect_err("it is denied");
        assert_eq!(tcp.kind(), ErrorKind::ConnectionRefused, "{to}");
        let udp = net::inside(&place(bad), || {
            let socket = UdpSocket::bind((net::any(to.ip()), 0))?;
            socket.set_read_timeout(Some(Duration::from_secs(1)))?;
            socket.connect(to)?;
            socket.send(b"ping")?;
            socket.recv(&mut [0; 64])
        });
        // An administrator forbids it: to programs IPv4 and IPv6 say so differently.
        let prohibited = [ErrorKind::HostUnreachable, ErrorKind::PermissionDenied][usize::from(ipv6)];
        assert_eq!(udp.expect_err("it is denied").kind(), prohibited, "{to}");
    }
    assert!(dropped(&lab, FAR, "flow-cut", None) >= 4 && dropped(&lab, FAR, "policy", None) >= 4);
    // The next agent finds these rules as it would write them.
    let rules = || lab.exec(FAR, &["nft", "-s", "-a", "list", "table", "inet", "calico"]);
    let before = rules();
    assert!(before.contains("flow cut by policy"), "{before}");
    lab.lab(&["agent", "kill", FAR]);
    lab.lab(&["agent", "start", FAR]);
    assert_eq!(rules(), before);
}
