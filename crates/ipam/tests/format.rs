//! Byte for byte what upstream stores (the `spec` of its CRDs): both kinds of nodes read what the other has written.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

mod support;

use api::{IpamConfigurationSpec, Object, Spec};
use ipam::{AutoAssign, Ipam};
use support::{Sim, at, run};

/// The names and specs of all objects of a kind, as JSON.
fn stored<S: Spec>(sim: &Sim) -> String
where
    Object<S>: TryFrom<api::Resource, Error = api::Resource>,
{
    let objects = sim.all::<S>();
    let lines = objects
        .iter()
        .map(|o| format!("{} {}", o.metadata.name, serde_json::to_string(&o.spec).unwrap()));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn blocks_affinities_and_handles_are_stored_as_upstream_stores_them() {
    let sim = Sim::new(1, 0);
    sim.pool("pool", "10.65.0.0/29", 29);
    sim.put(Object::new(
        "default",
        IpamConfigurationSpec {
            ip_cooldown_seconds: 60,
            ..Default::default()
        },
    ));
    let ipam = Ipam::new(sim.shared());
    let request = |handle: &str, pod: &str| AutoAssign {
        host: "node1".into(),
        handle: handle.into(),
        attributes: [("namespace", "default"), ("node", "node1"), ("pod", pod)]
            .map(|(k, v)| (k.into(), v.into()))
            .into(),
        ipv4: 1,
        ..AutoAssign::default()
    };
    let assigned = run(ipam.auto_assign(at(0), &request("k8s-pod-network.ABC", "p1"))).unwrap();
    assert_eq!(assigned.v4[0].to_string(), "10.65.0.0/29");
    run(ipam.auto_assign(at(1), &request("k8s-pod-network.def", "p2"))).unwrap();
    run(ipam.release_handle(at(2), "k8s-pod-network.def")).unwrap();

    assert_eq!(
        stored::<api::BlockAffinitySpec>(&sim),
        r#"node1-10-65-0-0-29 {"state":"confirmed","node":"node1","type":"host","cidr":"10.65.0.0/29"}"#
    );
    assert_eq!(
        stored::<api::IpamHandleSpec>(&sim),
        r#"k8s-pod-network.abc {"handleID":"k8s-pod-network.ABC","block":{"10.65.0.0/29":1}}"#
    );
    let block = concat!(
        r#"10-65-0-0-29 {"cidr":"10.65.0.0/29","affinity":"host:node1","affinityClaimTime":"2023-11-14T22:13:20Z","#,
        r#""strictAffinity":false,"allocations":[0,1,null,null,null,null,null,null],"unallocated":[2,3,4,5,6,7],"#,
        r#""attributes":[{"handle_id":"k8s-pod-network.ABC","secondary":{"namespace":"default","node":"node1","pod":"p1"}},"#,
        r#"{"releasedAt":"2023-11-14T22:13:22Z"}],"sequenceNumber":1700000000000000003,"#,
        r#""sequenceNumberForAllocation":{"0":1700000000000000000,"1":1700000000000000002}}"#
    );
    assert_eq!(stored::<api::IpamBlockSpec>(&sim), block);
}

#[test]
fn a_block_that_upstream_has_written_is_understood() {
    let text = r#"{"cidr":"192.168.202.0/26","affinity":"host:k8s-125-node1","deleted":false,"strictAffinity":false,
        "allocations":[0,null],"unallocated":[1],"attributes":[{"handle_id":"ipip-tunnel-addr-k8s-125-node1",
        "secondary":{"node":"k8s-125-node1","type":"ipipTunnelAddress"}}],
        "sequenceNumber":1693472104321,"sequenceNumberForAllocation":{"0":1693472104320}}"#;
    let block: api::IpamBlockSpec = serde_json::from_str(text).unwrap();
    assert_eq!(
        ipam::Block::held_by(&block, "ipip-tunnel-addr-k8s-125-node1"),
        [ipam::Ordinal(0)]
    );
    assert_eq!(ipam::Block::sequence_of(&block, ipam::Ordinal(0)), 1_693_472_104_320);
}
