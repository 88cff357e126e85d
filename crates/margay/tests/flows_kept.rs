//! Agents that are told not to cut flows: a policy that forbids one stops new ones alone.

mod common;

use std::net::SocketAddr;

use common::Lab;
use common::net::{self, L4, Servers};
use common::talk::{answers, connect, echo, forbid};
use common::told::dropped;

const FAR: &str = "k8s-125-node1";

#[test]
fn established_flows_go_on_where_cutting_is_switched_off() {
    let off = [("MARGAY_CUT_FORBIDDEN_FLOWS", "false")];
    let Some(lab) = Lab::up_with("t-kept", &["--nodes", "2", "--pods-per-node", "1"], &off) else {
        return;
    };
    let (client, server) = ("pod-0-1", "pod-1-1");
    let (client_address, address) = (lab.address(client), lab.address(server));
    echo(&lab, server, 5432);
    let _servers = Servers::start(&[(format!("{}.pod-{server}", lab.name), vec![(L4::Udp, 5433)])]);
    let mut tcp = connect(&lab, client, &address, 5432).expect("it is open");
    let to: SocketAddr = format!("{address}:5433").parse().expect("an address");
    let mut udp = net::flow(&format!("{}.pod-{client}", lab.name), to);
    assert!(answers(&mut tcp) && udp());

    forbid(&lab, "cut", &client_address, &[&address]);
    lab.eventually("new flows are forbidden", || {
        connect(&lab, client, &address, 5432).is_err()
    });
    assert!(
        (0..100).all(|_| answers(&mut tcp) && udp()),
        "what is established goes on"
    );
    let table = || lab.exec(FAR, &["nft", "list", "table", "inet", "calico"]);
    assert!(!table().contains("flow cut by policy"), "{}", table());
    assert_eq!(dropped(&lab, FAR, "flow-cut", None), 0);

    // An agent that is not told so looks once at the flows that it finds.
    lab.lab(&["agent", "restart", FAR]);
    lab.eventually("the flows are cut", || !answers(&mut tcp) && !udp());
    assert!(table().contains("flow cut by policy"), "{}", table());
    assert!(dropped(&lab, FAR, "flow-cut", None) > 0);
}
