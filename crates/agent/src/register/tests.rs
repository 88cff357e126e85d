use std::sync::Arc;

use api::{IpPool, NodeAddress, OrchRef, Resource};
use clap::Parser;
use datastore::{Listing, MemoryStore, Revision, Store, Stored, WatchEvent};
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use kernel::{Address, IfName, Link};

use super::*;
use crate::Options;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    options: Options,
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime").block_on(future)
}

fn config(flags: &str) -> Config {
    let words = ["agent", "--node-name", "me"]
        .into_iter()
        .chain(flags.split_whitespace());
    let options = Line::try_parse_from(words).expect("the flags are right").options;
    Config::from_options(&options, "").expect("the options are right")
}

/// A host with these addresses, `device address`, one after the other.
fn host(addresses: &[(&str, &str)]) -> Observation {
    let mut seen = Observation::default();
    for (index, (device, net)) in addresses.iter().enumerate() {
        let name = IfName::from(*device);
        let link = Link {
            index: index as u32 + 1,
            name: name.clone(),
            kind: String::new(),
            mtu: 1500,
            up: true,
            carrier: true,
            mac: None,
            alias: None,
            master: None,
        };
        seen.links.entry(name.clone()).or_insert(link);
        seen.addresses.insert(Address {
            device: name,
            net: net.parse().expect("a prefix"),
        });
    }
    seen
}

/// What is found on a host with `ens33` (10.0.0.7/24, fd00::7/64) and `ens34` (10.1.0.7/16): `IPv4 IPv6`, or the error.
#[track_caller]
fn check_own(flags: &str, internal: &[&str], expected: &str) {
    let seen = host(&[
        ("ens33", "10.0.0.7/24"),
        ("ens33", "fd00::7/64"),
        ("ens34", "10.1.0.7/16"),
    ]);
    let internal: Vec<IpAddr> = internal.iter().map(|ip| ip.parse().expect("an address")).collect();
    let got = match own_addresses(&config(flags), &seen, &internal) {
        Ok(own) => {
            let text = |net: Option<String>| net.unwrap_or("-".into());
            assert_eq!(own.why.len(), 2, "a sentence a family");
            format!(
                "{} {}",
                text(own.ipv4.map(|net| net.to_string())),
                text(own.ipv6.map(|net| net.to_string()))
            )
        }
        Err(error) => error.to_string(),
    };
    assert_eq!(got, expected, "{flags}");
}

#[test]
fn addresses_are_given_or_found() {
    check_own("", &[], "10.0.0.7/24 -");
    check_own("--ip6 autodetect", &[], "10.0.0.7/24 fd00::7/64");
    check_own("--ip none --ip6 autodetect", &[], "- fd00::7/64");
    check_own("--ip none --ip6 fd00::9/48", &[], "- fd00::9/48");
    // A bare address has the length that its interface has, if it is on one.
    check_own("--ip 10.0.0.7 --ip6 fd00::7", &[], "10.0.0.7/24 fd00::7/64");
    check_own("--ip 10.0.0.7/16", &[], "10.0.0.7/16 -");
    check_own("--ip 192.0.2.1", &[], "192.0.2.1/32 -");
    check_own(
        "--ip-autodetection-method kubernetes-internal-ip",
        &["10.1.0.7", "fd00::7"],
        "10.1.0.7/16 -",
    );
    check_own(
        "--ip-autodetection-method kubernetes-internal-ip",
        &[],
        "no IPv4 address for this node: method kubernetes-internal-ip: the Node resource has no spec.addresses of type \
         InternalIP (yet)",
    );
}

#[test]
fn internal_ips_are_those_of_the_node_resource() {
    let mut node = Node::new("me", NodeSpec::default());
    for (address, kind) in [
        ("10.0.0.1", Some("InternalIP")),
        ("10.0.0.2/24", Some("InternalIP")),
        ("1.2.3.4", Some("ExternalIP")),
        ("fd00::1", Some("InternalIP")),
        ("10.0.0.3", None),
    ] {
        node.spec.addresses.push(NodeAddress {
            address: address.into(),
            kind: kind.map(str::to_string),
        });
    }
    let expected: Vec<IpAddr> = ["10.0.0.1", "10.0.0.2", "fd00::1"]
        .map(|ip| ip.parse().expect("an address"))
        .to_vec();
    assert_eq!(internal_ips(&node), expected);
}

fn own(ipv4: &str, ipv6: &str) -> OwnAddresses {
    OwnAddresses {
        ipv4: ipv4.parse().ok(),
        ipv6: ipv6.parse().ok(),
        why: Vec::new(),
    }
}

/// A store with nodes: `name IPv4 IPv6`, `-` for none; the oldest first.
fn cluster(nodes: &[(&str, &str, &str)]) -> (MemoryStore, SharedStore) {
    let memory = MemoryStore::new();
    let shared: SharedStore = Arc::new(memory.clone());
    for (age, (name, ipv4, ipv6)) in nodes.iter().enumerate() {
        let set = |node: &mut Node| {
            let bgp = node.spec.bgp.get_or_insert_default();
            (bgp.ipv4_address, bgp.ipv6_address) = (ipv4.parse().ok(), ipv6.parse().ok());
        };
        block_on(update_node(&shared, name, set)).expect("memory answers");
        let created = Timestamp::from_second(1_700_000_000 + age as i64).ok();
        let created = |node: &mut Node| node.metadata.creation_timestamp = created;
        block_on(update_node(&shared, name, created)).expect("memory answers");
    }
    (memory, shared)
}

fn me(store: &SharedStore) -> Option<Node> {
    block_on(read_node(store, "me")).expect("memory answers")
}

#[test]
fn registering_creates_or_changes_the_node_and_sets_up_the_cluster_once() {
    let (_, store) = cluster(&[("other", "10.0.0.8/24", "-")]);
    block_on(register(
        &config("--as 65001"),
        &store,
        &own("10.0.0.7/24", "fd00::7/64"),
    ))
    .expect("registered");
    let first = me(&store).expect("there");
    assert!(first.metadata.uid.is_some() && first.metadata.creation_timestamp.is_some());
    let bgp = first.spec.bgp.clone().expect("it routes");
    assert_eq!(
        bgp.addresses().map(|ip| ip.to_string()).collect::<Vec<_>>(),
        ["10.0.0.7", "fd00::7"]
    );
    assert_eq!(bgp.as_number.map(|asn| asn.0), Some(65001));
    let info = block_on(store.get(&Key::cluster(Kind::ClusterInformation, "default"))).expect("memory answers");
    assert!(info.is_some());

    // What others wrote into it stays; the AS too, if none is given now. Nothing is written that is there already.
    block_on(update_node(&store, "me", |node| {
        drop(node.metadata.labels.insert("rack".into(), "1".into()))
    }))
    .expect("written");
    let revision = |store: &SharedStore| me(store).and_then(|node| node.metadata.resource_version);
    block_on(register(&config(""), &store, &own("-", "fd00::7/64"))).expect("registered");
    let second = me(&store).expect("there");
    let bgp = second.spec.bgp.clone().expect("it routes");
    assert_eq!((bgp.ipv4_address, bgp.as_number.map(|asn| asn.0)), (None, Some(65001)));
    assert_eq!(
        (second.metadata.labels.len(), &second.metadata.uid),
        (1, &first.metadata.uid)
    );
    let before = revision(&store);
    block_on(register(&config(""), &store, &own("-", "fd00::7/64"))).expect("registered");
    assert_eq!(revision(&store), before);
    assert_eq!(
        block_on(store.get(&Key::cluster(Kind::ClusterInformation, "default"))).expect("memory answers"),
        info
    );
}

/// The cluster's type, as the first agent writes it whose Node has these references.
#[track_caller]
fn check_cluster_type(orchestrators: &[&str], expected: &str) {
    let store: SharedStore = Arc::new(MemoryStore::new());
    let orch_refs = orchestrators.iter().map(|orchestrator| OrchRef {
        node_name: Some("me".into()),
        orchestrator: (*orchestrator).to_owned(),
    });
    block_on(update_node(&store, "me", |node| {
        node.spec.orch_refs = orch_refs.clone().collect()
    }))
    .expect("written");
    block_on(register(&config(""), &store, &own("10.0.0.7/24", "-"))).expect("registered");
    let info = block_on(store.get(&Key::cluster(Kind::ClusterInformation, "default"))).expect("memory answers");
    let Some(Resource::ClusterInformation(info)) = info.map(|stored| stored.resource) else {
        panic!("there is none");
    };
    assert_eq!(info.spec.cluster_type.as_deref(), Some(expected), "{orchestrators:?}");
}

#[test]
fn the_cluster_type_names_kubernetes_where_its_api_is_the_datastore() {
    check_cluster_type(&[], "bgp,margay");
    check_cluster_type(&["openstack"], "bgp,margay");
    check_cluster_type(&["k8s"], "k8s,bgp,kdd,margay");
}

/// Node `me` has these addresses registered and wants these; `other` has 10.0.0.8 and fd00::8. What the error says and
/// what stays registered of `me`.
#[track_caller]
fn check_taken(
    flags: &str,
    before: (&str, &str),
    wanted: (&str, &str),
    expected: Result<(), &str>,
    after: Option<(&str, &str)>,
) {
    let (_, store) = cluster(&[("other", "10.0.0.8/24", "fd00::8/64"), ("me", before.0, before.1)]);
    let got = block_on(register(&config(flags), &store, &own(wanted.0, wanted.1)));
    let got = got.map(|_| ()).map_err(|error| error.to_string());
    let taken = |ip: &str| {
        format!(
            "address {ip} is already used by node other; free it there, or choose another with IP or IP_AUTODETECTION_METHOD"
        )
    };
    assert_eq!(got, expected.map_err(taken), "{flags}");
    let text = |net: Option<String>| net.unwrap_or("-".into());
    let bgp = me(&store).expect("there").spec.bgp;
    let left = bgp.map(|bgp| {
        (
            text(bgp.ipv4_address.map(|net| net.to_string())),
            text(bgp.ipv6_address.map(|net| net.to_string())),
        )
    });
    assert_eq!(left, after.map(|(v4, v6)| (v4.to_string(), v6.to_string())), "{flags}");
}

#[test]
fn an_address_of_another_node_is_refused_in_both_families() {
    // Found: what is registered goes, if it is that address.
    check_taken("", ("10.0.0.8/24", "-"), ("10.0.0.8/24", "-"), Err("10.0.0.8"), None);
    check_taken(
        "",
        ("10.0.0.7/24", "-"),
        ("10.0.0.8/16", "-"),
        Err("10.0.0.8"),
        Some(("10.0.0.7/24", "-")),
    );
    check_taken(
        "--ip6 autodetect",
        ("10.0.0.7/24", "fd00::8/64"),
        ("10.0.0.7/24", "fd00::8/64"),
        Err("fd00::8"),
        Some(("10.0.0.7/24", "-")),
    );
    // Given: the operator's word stays.
    check_taken(
        "--ip 10.0.0.8/24",
        ("10.0.0.8/24", "-"),
        ("10.0.0.8/24", "-"),
        Err("10.0.0.8"),
        Some(("10.0.0.8/24", "-")),
    );
    check_taken(
        "--ip6 fd00::8/64",
        ("-", "fd00::8/64"),
        ("-", "fd00::8/64"),
        Err("fd00::8"),
        Some(("-", "fd00::8/64")),
    );
    // Allowed.
    check_taken(
        "--disable-node-ip-check",
        ("-", "-"),
        ("10.0.0.8/24", "-"),
        Ok(()),
        Some(("10.0.0.8/24", "-")),
    );
    check_taken(
        "",
        ("10.0.0.7/24", "-"),
        ("10.0.0.7/24", "fd00::7/64"),
        Ok(()),
        Some(("10.0.0.7/24", "fd00::7/64")),
    );
}

#[test]
fn of_two_nodes_with_one_address_the_older_one_stands() {
    let (_, store) = cluster(&[("me", "10.0.0.8/24", "-"), ("other", "10.0.0.8/24", "-")]);
    block_on(register(&config(""), &store, &own("10.0.0.8/24", "-"))).expect("registered");
    // What is not registered for us yet is somebody else's, however young.
    let (_, store) = cluster(&[("me", "10.0.0.7/24", "-"), ("other", "10.0.0.8/24", "-")]);
    let refused = block_on(register(&config(""), &store, &own("10.0.0.8/24", "-")));
    assert!(matches!(refused, Err(AgentError::AddressTaken { .. })), "{refused:?}");
}

/// What a registration sees whose steps alternate with those of another one: both have looked before either writes, and
/// both have written before either looks again.
struct Alternating {
    memory: MemoryStore,
    lists: std::sync::atomic::AtomicUsize,
    step: Arc<tokio::sync::Barrier>,
}

impl Store for Alternating {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Stored>, StoreError>> {
        self.memory.get(key)
    }

    fn list<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<Listing, StoreError>> {
        async move {
            let first = self.lists.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0;
            if !first {
                self.step.wait().await;
            }
            let listing = self.memory.list(scope).await;
            if first {
                self.step.wait().await;
            }
            listing
        }
        .boxed()
    }

    fn create(&self, resource: Resource) -> BoxFuture<'_, Result<Stored, StoreError>> {
        self.memory.create(resource)
    }

    fn update<'a>(&'a self, resource: Resource, expected: &'a Revision) -> BoxFuture<'a, Result<Stored, StoreError>> {
        self.memory.update(resource, expected)
    }

    fn delete<'a>(&'a self, key: &'a Key, expected: Option<&'a Revision>) -> BoxFuture<'a, Result<Stored, StoreError>> {
        self.memory.delete(key, expected)
    }

    fn watch(&self, scope: Scope, from: Option<Revision>) -> BoxStream<'static, Result<WatchEvent, StoreError>> {
        self.memory.watch(scope, from)
    }
}

/// Nodes `a` and `b` register 10.0.0.7 at the same time, with these flags; nodes that are there already come oldest first.
/// Who has it then.
#[track_caller]
fn check_race(flags: &str, there: &[(&str, &str, &str)], expected: &[&str]) {
    let (memory, store) = cluster(there);
    let step = Arc::new(tokio::sync::Barrier::new(2));
    let registration = |name: &str| {
        let store: SharedStore = Arc::new(Alternating {
            memory: memory.clone(),
            lists: Default::default(),
            step: step.clone(),
        });
        let mut config = config(flags);
        config.node_name = name.into();
        async move { register(&config, &store, &own("10.0.0.7/24", "-")).await }
    };
    let (a, b) = block_on(futures::future::join(registration("a"), registration("b")));
    let outcomes = [("a", a), ("b", b)];
    let won = outcomes.iter().filter(|(_, outcome)| outcome.is_ok());
    let won: Vec<&str> = won.map(|(name, _)| *name).collect();
    assert!(expected.contains(&won.join(" ").as_str()), "{outcomes:?}");
    for (name, outcome) in &outcomes {
        let node = block_on(read_node(&store, name))
            .expect("memory answers")
            .expect("there");
        let has = node.spec.bgp.is_some_and(|bgp| bgp.ipv4_address.is_some());
        assert_eq!(has, outcome.is_ok(), "{name}");
    }
}

#[test]
fn of_two_nodes_that_register_one_address_at_once_one_withdraws() {
    for flags in ["", "--ip 10.0.0.7/24"] {
        check_race(flags, &[], &["a", "b"]);
        check_race(flags, &[("a", "-", "-"), ("b", "-", "-")], &["a"]);
        check_race(flags, &[("b", "-", "-"), ("a", "-", "-")], &["b"]);
    }
}

/// A store in which somebody else labels the node each time before it is written.
struct Busy(MemoryStore);

impl Store for Busy {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Stored>, StoreError>> {
        self.0.get(key)
    }

    fn list<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<Listing, StoreError>> {
        self.0.list(scope)
    }

    fn create(&self, resource: Resource) -> BoxFuture<'_, Result<Stored, StoreError>> {
        self.0.create(resource)
    }

    fn update<'a>(&'a self, resource: Resource, expected: &'a Revision) -> BoxFuture<'a, Result<Stored, StoreError>> {
        async move {
            let now = self.0.get(&resource.key()).await?.expect("it is there");
            if now.resource.metadata().labels.len() < 3 {
                let mut theirs = now.resource.clone();
                let label = theirs.metadata().labels.len().to_string();
                theirs.metadata_mut().labels.insert(format!("l{label}"), label);
                self.0.update(theirs, &now.revision).await?;
            }
            self.0.update(resource, expected).await
        }
        .boxed()
    }

    fn delete<'a>(&'a self, key: &'a Key, expected: Option<&'a Revision>) -> BoxFuture<'a, Result<Stored, StoreError>> {
        self.0.delete(key, expected)
    }

    fn watch(&self, scope: Scope, from: Option<Revision>) -> BoxStream<'static, Result<WatchEvent, StoreError>> {
        self.0.watch(scope, from)
    }
}

#[test]
fn a_lost_race_keeps_what_the_others_wrote() {
    let (memory, store) = cluster(&[("me", "10.0.0.7/24", "-")]);
    let busy: SharedStore = Arc::new(Busy(memory));
    block_on(register(&config(""), &busy, &own("10.0.0.9/24", "-"))).expect("registered");
    let node = me(&store).expect("there");
    assert_eq!(node.metadata.labels.len(), 3);
    assert_eq!(
        node.spec
            .bgp
            .and_then(|bgp| bgp.ipv4_address)
            .map(|net| net.to_string())
            .as_deref(),
        Some("10.0.0.9/24")
    );
}

#[test]
fn the_tunnel_address_follows_the_pools() {
    let (memory, store) = cluster(&[("me", "10.0.0.7/24", "-")]);
    let put = |cidr: &str| {
        let pool = IpPool::new(
            cidr.replace(['.', '/'], "-"),
            api::IpPoolSpec::new(cidr.parse().expect("a range")),
        );
        block_on(memory.create(pool.into())).expect("it is new");
    };
    let ipam = Ipam::new(store.clone());
    let settle = |pools: &[&str]| {
        let pools: Vec<IpNet> = pools.iter().map(|pool| pool.parse().expect("a range")).collect();
        let node = me(&store).expect("there");
        let settled = block_on(settle_tunnel_address(&ipam, &store, &node, &pools)).expect("settled");
        let said = me(&store)
            .and_then(|node| node.spec.bgp)
            .and_then(|bgp| bgp.ipv4_ipip_tunnel_addr);
        let held = block_on(ipam.ips_by_handle("ipip-tunnel-addr-me")).expect("memory answers");
        assert_eq!(
            (said, held),
            (settled, settled.map(IpAddr::V4).into_iter().collect()),
            "{pools:?}"
        );
        settled
    };
    put("10.1.0.0/24");
    put("10.2.0.0/24");
    assert_eq!(settle(&[]), None, "no pool uses IP-in-IP");
    let first = settle(&["10.1.0.0/24"]).expect("allocated");
    assert_eq!(settle(&["10.1.0.0/24"]), Some(first), "kept");
    assert_eq!(settle(&["10.1.0.0/24", "10.2.0.0/24"]), Some(first), "kept");
    let second = settle(&["10.2.0.0/24"]).expect("moved");
    assert!(second.to_string().starts_with("10.2.0."), "{second}");
    // Somebody replaced the Node: the address that IPAM has for us is the one.
    block_on(update_node(&store, "me", |node| {
        node.spec.bgp.get_or_insert_default().ipv4_ipip_tunnel_addr = "10.2.0.99".parse().ok();
    }))
    .expect("written");
    assert_eq!(settle(&["10.2.0.0/24"]), Some(second));
    assert_eq!(settle(&[]), None, "given back");
    let left = block_on(store.list(&Scope::Kind(Kind::IPAMHandle))).expect("memory answers");
    assert!(left.items.is_empty());
}
