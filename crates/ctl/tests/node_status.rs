//! `node status`: what the agent says of itself, as people read it.

use agent::status::{
    BgpPeerReport, BgpReport, Condition, DropReport, IpipReport, KernelClassReport, PolicyReport, Report,
};

fn peer(name: &str, address: &str, state: &str, info: Option<&str>) -> BgpPeerReport {
    BgpPeerReport {
        name: name.into(),
        address: address.into(),
        state: state.into(),
        since_seconds: 3725,
        info: info.map(str::to_string),
        received: 3,
        advertised: 1,
    }
}

fn condition(name: &str, ok: bool, required: bool) -> Condition {
    Condition {
        name: name.into(),
        ok,
        required,
        reason: "Reason".into(),
        message: "message".into(),
    }
}

fn drops(cause: &str, name: Option<&str>, packets: u64) -> DropReport {
    DropReport {
        cause: cause.into(),
        name: name.map(str::to_string),
        packets,
        bytes: packets * 60,
    }
}

#[test]
fn sessions_come_first_then_conditions_then_the_rest() {
    let peers = vec![
        peer("Mesh_10_0_0_8", "10.0.0.8", "Established", Some("an old error")),
        peer("Node_10_0_0_9", "10.0.0.9", "Active", Some("connect failed: no route")),
        peer("Global_10_0_0_1", "10.0.0.1", "Idle", None),
    ];
    let report = Report {
        policy: PolicyReport {
            drops: vec![
                drops("policy", Some("NetworkPolicy default/db"), 3),
                drops("policy", Some("NetworkPolicy default/web"), 4),
                drops("spoofed", None, 1),
            ],
            ..PolicyReport::default()
        },
        node: "a".into(),
        version: "1.2.3".into(),
        pid: 42,
        started: jiff::Timestamp::UNIX_EPOCH,
        ready: false,
        conditions: vec![
            condition("Datastore", true, true),
            condition("CNI", false, true),
            condition("BGP", false, false),
        ],
        addresses: agent::status::AddressReport {
            ipv4: Some("10.0.0.7/24".into()),
            ipv6: None,
            why: vec!["IPv4: 10.0.0.7/24, by first-found on ens33".into()],
        },
        ipip: IpipReport {
            flavour: "bpf".into(),
            why: "no driver".into(),
            ..IpipReport::default()
        },
        bgp: BgpReport {
            running: true,
            listen_error: None,
            peers,
            routes: 4,
            router_id: None,
            configured: None,
        },
        kernel: vec![KernelClassReport {
            class: "block routes".into(),
            wanted: 3,
            installed: 2,
            failed: 1,
        }],
        queues: Vec::new(),
        problems: vec!["route 10.1.0.0/26: no way".into()],
        pod_mtu: 1480,
    };
    let mut out = Vec::new();
    ctl::node_status::text(&report, &mut out).expect("memory takes it");
    let expected = "\
Margay agent is running: node a, version 1.2.3, pid 42.

IPv4 BGP status
+--------------+-------------------+-------+--------------+---------------------------------------+
| PEER ADDRESS |     PEER TYPE     | STATE |    SINCE     |                 INFO                  |
+--------------+-------------------+-------+--------------+---------------------------------------+
| 10.0.0.8     | node-to-node mesh | up    | 01:02:05 ago | Established; 3 received, 1 advertised |
| 10.0.0.9     | node specific     | start | 01:02:05 ago | Active: connect failed: no route      |
| 10.0.0.1     | global            | start | 01:02:05 ago | Idle                                  |
+--------------+-------------------+-------+--------------+---------------------------------------+

IPv6 BGP status
No IPv6 peers found.

The node is NOT ready.
  Datastore    ok         Reason: message
  CNI          NOT READY  Reason: message
  BGP          warning    Reason: message
  Address      IPv4: 10.0.0.7/24, by first-found on ens33
  tunl0        bpf: no driver
  Pod MTU      1480
  block routes 2 of 3 installed, 1 failed
  dropped      policy 7, spoofed 1 (packets)
  problem      route 10.1.0.0/26: no way
";
    assert_eq!(String::from_utf8(out).expect("text"), expected);
}
