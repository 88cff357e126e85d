//! What is closed after a boot, from what was written down.

use kernel::nft::{FakeNft, NftKernel, TableName};
use kernel::{IfName, KernelEvent};
use serde_json::{Value, json};

use super::*;
use crate::last_known::Picture;

fn resource(value: Value) -> Resource {
    serde_json::from_value(value).expect("a resource")
}

fn host(spec: Value) -> Resource {
    let mut spec = spec;
    spec["node"] = "n1".into();
    resource(json!({ "kind": "HostEndpoint", "metadata": { "name": "h", "labels": { "host": "yes" } }, "spec": spec }))
}

fn eth0() -> Resource {
    host(json!({ "interfaceName": "eth0", "profiles": ["gone"] }))
}

fn policy_of(spec: Value) -> Resource {
    resource(json!({ "kind": "GlobalNetworkPolicy", "metadata": { "name": "p" }, "spec": spec }))
}

fn memory(resources: &[Resource]) -> Memory {
    let picture: Picture = resources
        .iter()
        .map(|resource| (resource.key(), resource.clone()))
        .collect();
    Memory::Picture(picture)
}

/// Each closed endpoint as `NAME INTERFACE`, with the ways that nothing is let through.
#[track_caller]
fn check(memory: &Memory, careful: bool, expected: &[&str]) {
    let hosts = LastRun::new("n1", memory, careful).map(|last| last.hosts);
    let shown = |(id, endpoint): (EndpointId, Endpoint)| {
        let EndpointId::Host(name) = id else {
            panic!("a host endpoint")
        };
        let way = |direction: &Direction, word: &str| match has_policies(direction) {
            true => format!(" {word}"),
            false => String::new(),
        };
        let ways = way(&endpoint.forward.ingress, "in") + &way(&endpoint.forward.egress, "out");
        assert!(endpoint.ingress.tiers.is_empty() && endpoint.egress.tiers.is_empty());
        let interface = match &endpoint.interface {
            Interface::Named(name) => name.clone(),
            Interface::All => "*".to_owned(),
            Interface::WithAddress(addresses) => format!("{addresses:?}"),
        };
        format!("{name} {interface}{ways}")
    };
    let shown: Vec<String> = hosts.into_iter().flatten().map(shown).collect();
    assert_eq!(shown, expected);
}

#[test]
fn host_endpoints_let_nothing_through_that_policies_would_be_asked_about() {
    let with = |spec: Value| memory(&[eth0(), policy_of(spec)]);
    check(&memory(&[eth0()]), false, &["h eth0"]);
    let forward = |rest: Value| {
        let mut spec = json!({ "selector": "has(host)", "applyOnForward": true });
        spec.as_object_mut()
            .expect("fields")
            .extend(rest.as_object().expect("fields").clone());
        with(spec)
    };
    let allow = json!([{ "action": "Allow" }]);
    check(&forward(json!({ "ingress": allow })), false, &["h eth0 in"]);
    check(&forward(json!({ "egress": allow })), false, &["h eth0 out"]);
    check(
        &forward(json!({ "types": ["Ingress", "Egress"] })),
        false,
        &["h eth0 in out"],
    );
    check(&forward(json!({ "tier": "not-in-the-picture" })), false, &["h eth0 in"]);
    check(
        &forward(json!({ "preDNAT": true, "ingress": allow })),
        false,
        &["h eth0 in"],
    );
    let untracked = json!({ "doNotTrack": true, "ingress": allow, "egress": allow });
    check(&forward(untracked), false, &["h eth0 in out"]);
    check(&forward(json!({ "selector": "!has(host)" })), false, &["h eth0"]);
    // A selector that cannot be read may have meant it.
    check(&forward(json!({ "selector": "has(" })), false, &["h eth0 in"]);
}

#[test]
fn what_is_not_known_is_closed_where_it_matters() {
    check(&Memory::Nothing, false, &[]);
    check(&memory(&[]), true, &[]);
    let all = ["(until policy is known) * in out"];
    check(&Memory::Nothing, true, &all);
    check(&Memory::Unreadable, false, &all);
}

fn filter(kernel: &FakeNft, memory: &Memory) -> PacketFilter {
    let mut filter = PacketFilter::new("n1", Box::new(kernel.clone()), IfName::from("tunl0"));
    filter.remember(LastRun::new("n1", memory, false).expect("a host endpoint"));
    filter
}

/// The rules of a chain, as comments; `None`: there is no such chain.
async fn chain(kernel: &FakeNft, name: &str) -> Option<Vec<String>> {
    let table = kernel
        .clone()
        .read(&TableName("calico".into()))
        .await
        .expect("it answers");
    let chain = table?.chains.remove(&name.into())?;
    Some(chain.rules.into_iter().filter_map(|rule| rule.comment).collect())
}

#[tokio::test]
async fn one_transaction_closes_and_one_opens_again() {
    let kernel = FakeNft::default();
    let forward = policy_of(json!({ "selector": "has(host)", "applyOnForward": true }));
    let memory = memory(&[eth0(), forward]);
    let mut first = filter(&kernel, &memory);
    first.settle().await;
    assert_eq!(first.report().applied.transactions, 1);
    let ports = chain(&kernel, "cali-fh-h").await.expect("a chain");
    assert!(ports.contains(&"failsafe".to_owned()), "{ports:?}");
    assert_eq!(ports.last().map(String::as_str), Some("no profile allows: h"));
    let through = chain(&kernel, "cali-fhfw-h").await.expect("a chain");
    assert_eq!(
        through.last().map(String::as_str),
        Some("end of tier (until policy is known)")
    );
    assert_eq!(chain(&kernel, "cali-thfw-h").await, None);

    // Another agent finds it so, says so, and leaves it.
    let mut second = filter(&kernel, &memory);
    second.settle().await;
    let told = second.report().problems;
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("HostEndpoint(h): after a boot, closed"), "{told:?}");
    assert_eq!(second.report().applied.transactions, 0);
    second.in_sync();
    second.endpoints_loaded();
    second.settle().await;
    assert_eq!(second.report().applied.transactions, 1);
    assert_eq!(chain(&kernel, "cali-fh-h").await, None);
    assert_eq!(second.report().problems, Vec::<String>::new());
}

#[tokio::test]
async fn a_device_that_is_not_there_yet_may_be_any() {
    let check = async |address: Option<&str>, expected: bool| {
        let kernel = FakeNft::default();
        let expected_ips = host(json!({ "expectedIPs": ["10.0.0.1"] }));
        let mut filter = filter(&kernel, &memory(&[expected_ips]));
        if let Some(net) = address {
            let address = kernel::Address {
                device: IfName::from("eth1"),
                net: net.parse().expect("a net"),
            };
            filter.kernel_event(&KernelEvent::Address(address, true), |_| false);
        }
        filter.settle().await;
        let table = kernel
            .clone()
            .read(&TableName("calico".into()))
            .await
            .expect("it answers");
        let table = table.expect("a table");
        assert!(table.chains.contains_key(&"cali-fh-h".into()));
        // What names no device is for any.
        let devices = table.sets.get(&"cali-from-host-endpoint-devices".into());
        let names_it = devices.is_some_and(|devices| format!("{:?}", devices.elements).contains("eth1"));
        assert_eq!(names_it, expected, "{address:?}");
    };
    check(Some("10.0.0.1/24"), true).await;
    check(None, false).await;
}

#[tokio::test]
async fn a_state_that_was_told_before_the_kernel_was_looked_at_counts_after_the_boot() {
    let mut filter = filter(&FakeNft::default(), &memory(&[eth0()]));
    let mut told = NodeState::default();
    told.this_node.get_or_insert_default().ipv4 = Some("192.0.2.1/24".parse().expect("an address"));
    filter.node(&told);
    filter.settle().await;
    assert!(matches!(filter.boot, Boot::Closed { .. }), "{:?}", filter.boot);
    filter.in_sync();
    filter.endpoints_loaded();
    filter.settle().await;
    assert!(matches!(filter.boot, Boot::Over), "{:?}", filter.boot);
    let nodes = &filter.guard.nodes;
    assert!(nodes.contains(&std::net::IpAddr::from([192, 0, 2, 1])), "{nodes:?}");
}
