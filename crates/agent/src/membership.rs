//! Keeps this node's entry in the datastore true: its address, its registration, its tunnel address.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::{EncapMode, Kind};
use datastore::{SharedStore, StoreError, Update};
use ipam::Ipam;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use kernel::{IfName, Kernel, Observation};
use tokio::sync::watch;

use crate::AgentError;
use crate::config::{AddressSource, Config};
use crate::register::{self, OwnAddresses};
use crate::run::Facts;
use crate::start::{found, set, wait};
use crate::status::Identity;

/// Changes of interfaces come in bursts (each pod is one): they are looked at together.
const BURST: Duration = Duration::from_millis(100);

/// What it works with.
pub struct Membership<K> {
    /// What this node was told.
    pub config: Config,
    /// Where it is registered.
    pub store: SharedStore,
    /// Gives the tunnel address.
    pub ipam: Ipam,
    /// Shows the node's own addresses.
    pub kernel: K,
    /// What the loop knows.
    pub facts: watch::Receiver<Facts>,
    /// Counts the updates that [`concerns`] it.
    pub changes: watch::Receiver<u64>,
    /// Where the outcome is told.
    pub identity: Arc<Mutex<Identity>>,
}

/// Whether a resource's change may change the registration: a pool may give tunnel addresses no longer, or the node's own
/// entry was written by somebody else.
pub fn concerns(node: &str, update: &Update) -> bool {
    match update.key.kind {
        Kind::IPPool => true,
        Kind::Node => update.key.name == node,
        _ => false,
    }
}

impl<K: Kernel> Membership<K> {
    /// Registers the node and follows what its registration depends on. Ends only with an error that the operator has to
    /// correct, or with the agent.
    pub async fn keep(mut self) -> Result<(), AgentError> {
        let mut done: Option<Cause> = None;
        let mut stands = Standing::default();
        let mut failures = 0;
        let mut told = None;
        loop {
            let cause = self.cause();
            if done.as_ref() == Some(&cause) {
                if self.changed().await.is_err() {
                    return Ok(());
                }
                tokio::time::sleep(BURST).await;
                continue;
            }
            match self.settle(&cause, &mut stands).await {
                Ok(()) => {
                    set(&self.identity, |identity| identity.registered = Ok(()));
                    (done, failures, told) = (Some(cause), 0, None);
                }
                Err(error @ AgentError::AddressTaken { .. }) => return Err(error),
                Err(error) => {
                    let why = error.to_string();
                    // Said once, not at each attempt.
                    if told.as_ref() != Some(&why) {
                        tracing::warn!(%error, "this node is not registered as it should be; trying again");
                    }
                    if !stands.after(&error) {
                        set(&self.identity, |identity| identity.registered = Err((&error).into()));
                    }
                    told = Some(why);
                    failures += 1;
                    tokio::select! {
                        () = tokio::time::sleep(wait(failures)) => {}
                        changed = self.changed() => if changed.is_err() { return Ok(()) },
                    }
                }
            }
        }
    }

    fn cause(&mut self) -> Cause {
        let changes = *self.changes.borrow_and_update();
        let facts = self.facts.borrow_and_update();
        let uses_ipip = |pool: &calc::PoolState| pool.ipip != EncapMode::Never;
        let pools = facts.state.pools.iter().filter(|(_, pool)| uses_ipip(pool));
        Cause {
            changes,
            addresses: facts.address_changes,
            pools: facts.synced.then(|| pools.map(|(cidr, _)| *cidr).collect()),
            registered: facts.state.this_node.is_some(),
        }
    }

    async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        tokio::select! {
            changed = self.facts.changed() => changed,
            changed = self.changes.changed() => changed,
        }
    }

    async fn settle(&mut self, cause: &Cause, stands: &mut Standing) -> Result<(), AgentError> {
        let looked = self.look().await;
        found(
            &self.identity,
            looked.as_ref().map(Clone::clone).map_err(ToString::to_string),
        );
        let own = looked?;
        stands.found(&own);
        let node = register::register(&self.config, &self.store, &own).await?;
        stands.written(&own);
        let Some(pools) = &cause.pools else { return Ok(()) };
        // IP-in-IP goes between IPv4 addresses: a node without one needs no tunnel.
        let pools = if own.ipv4.is_some() { pools.as_slice() } else { &[] };
        let settled = register::settle_tunnel_address(&self.ipam, &self.store, &node, pools).await;
        set(&self.identity, |identity| {
            identity.tunnel = settled.as_ref().map(|_| ()).map_err(ToString::to_string);
        });
        settled.map(|_| ())
    }

    /// Which addresses are ours.
    async fn look(&mut self) -> Result<OwnAddresses, AgentError> {
        let seen: Observation = self.kernel.observe(&IfName::from("tunl0")).await?;
        let internal = match asks_kubernetes(&self.config) {
            true => register::read_node(&self.store, &self.config.node_name).await?,
            false => None,
        };
        let internal = internal.as_ref().map(register::internal_ips).unwrap_or_default();
        let config = self.config.clone();
        // A name server may be asked, which blocks.
        let found = tokio::task::spawn_blocking(move || register::own_addresses(&config, &seen, &internal)).await;
        found.map_err(|error| AgentError::Ended {
            task: "address detection",
            why: error.to_string(),
        })?
    }
}

/// By which addresses this agent registered the node, if that still holds. A datastore that cannot be asked takes nothing from
/// it: what is wrong then is the datastore, which has a condition of its own.
#[derive(Default)]
struct Standing(Option<(Option<Ipv4Net>, Option<Ipv6Net>)>);

impl Standing {
    fn found(&mut self, own: &OwnAddresses) {
        self.0 = self.0.filter(|registered| *registered == (own.ipv4, own.ipv6));
    }

    fn written(&mut self, own: &OwnAddresses) {
        self.0 = Some((own.ipv4, own.ipv6));
    }

    /// Whether the registration holds after an attempt to renew it failed.
    fn after(&mut self, error: &AgentError) -> bool {
        self.0 = self
            .0
            .filter(|_| matches!(error, AgentError::Store(StoreError::Unavailable(_))));
        self.0.is_some()
    }
}

fn asks_kubernetes(config: &Config) -> bool {
    let asks = |method: &crate::autodetect::Method| matches!(method, crate::autodetect::Method::KubernetesInternalIp);
    let v4 = matches!(&config.ipv4, AddressSource::Detect(method) if asks(method));
    v4 || matches!(&config.ipv6, AddressSource::Detect(method) if asks(method))
}

/// All that a registration depends on: if nothing of it changes, it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cause {
    changes: u64,
    addresses: u64,
    /// Pools that use IP-in-IP; `None` until the datastore was read.
    pools: Option<Vec<IpNet>>,
    /// The datastore has this node with an address.
    registered: bool,
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Instant;

    use api::{IpPool, IpPoolSpec, Key, Node, Resource};
    use clap::Parser;
    use datastore::{Listing, MemoryStore, Reason, Revision, Scope, Store, Stored, WatchEvent};
    use futures::FutureExt;
    use futures::future::BoxFuture;
    use futures::stream::BoxStream;
    use jiff::Timestamp;
    use kernel::{Address, FakeKernel, Op};

    use super::*;
    use crate::Options;
    use crate::status::ProbeSummary;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    /// A node `me` with 10.0.0.7/24 and fd00::7/64 on ens33 whose loop is played by the test.
    struct World {
        memory: MemoryStore,
        /// The datastore cannot be asked.
        outage: Arc<AtomicBool>,
        kernel: FakeKernel,
        facts: watch::Sender<Facts>,
        changes: watch::Sender<u64>,
        identity: Arc<Mutex<Identity>>,
        task: tokio::task::JoinHandle<Result<(), AgentError>>,
    }

    fn start(flags: &str, nodes: &[Node]) -> World {
        let words = ["agent", "--node-name", "me"]
            .into_iter()
            .chain(flags.split_whitespace());
        let options = Line::try_parse_from(words).expect("the flags are right").options;
        let config = Config::from_options(&options, "").expect("the options are right");
        let memory = MemoryStore::new();
        let outage = Arc::new(AtomicBool::new(false));
        let store: SharedStore = Arc::new(Outages(memory.clone(), outage.clone()));
        for node in nodes {
            drop(now(memory.create(node.clone().into())));
        }
        let kernel = FakeKernel::new();
        let ens33 = IfName::from("ens33");
        kernel.add_link(ens33.clone(), "");
        kernel.change_link(&ens33, |link| link.up = true);
        for net in ["10.0.0.7/24", "fd00::7/64"] {
            put_address(&kernel, net);
        }
        let (facts, facts_in) = watch::channel(Facts::default());
        let (changes, changes_in) = watch::channel(0);
        let identity = Arc::new(Mutex::new(Identity::new(
            "me",
            Timestamp::UNIX_EPOCH,
            ProbeSummary::default(),
        )));
        let membership = Membership {
            config,
            ipam: Ipam::new(store.clone()),
            store,
            kernel: kernel.clone(),
            facts: facts_in,
            changes: changes_in,
            identity: identity.clone(),
        };
        World {
            memory,
            outage,
            kernel,
            facts,
            changes,
            identity,
            task: tokio::spawn(membership.keep()),
        }
    }

    /// A store with outages.
    struct Outages(MemoryStore, Arc<AtomicBool>);

    impl Outages {
        fn or<'a, T: Send + 'a>(
            &self,
            answer: BoxFuture<'a, Result<T, StoreError>>,
        ) -> BoxFuture<'a, Result<T, StoreError>> {
            match self.1.load(Ordering::Relaxed) {
                true => async { Err(StoreError::unavailable(Reason::Unauthorized, "expired")) }.boxed(),
                false => answer,
            }
        }
    }

    impl Store for Outages {
        fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Stored>, StoreError>> {
            self.or(self.0.get(key))
        }

        fn list<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<Listing, StoreError>> {
            self.or(self.0.list(scope))
        }

        fn create(&self, resource: Resource) -> BoxFuture<'_, Result<Stored, StoreError>> {
            self.or(self.0.create(resource))
        }

        fn update<'a>(&'a self, new: Resource, expected: &'a Revision) -> BoxFuture<'a, Result<Stored, StoreError>> {
            self.or(self.0.update(new, expected))
        }

        fn delete<'a>(
            &'a self,
            key: &'a Key,
            expected: Option<&'a Revision>,
        ) -> BoxFuture<'a, Result<Stored, StoreError>> {
            self.or(self.0.delete(key, expected))
        }

        fn watch(&self, scope: Scope, from: Option<Revision>) -> BoxStream<'static, Result<WatchEvent, StoreError>> {
            self.0.watch(scope, from)
        }
    }

    fn put_address(kernel: &FakeKernel, net: &str) {
        let address = Address {
            device: IfName::from("ens33"),
            net: net.parse().expect("a prefix"),
        };
        kernel.by_others(&Op::PutAddress(address)).expect("the device is there");
    }

    impl World {
        /// `IPv4 IPv6 tunnel` as registered, `-` for none.
        fn registered(&self) -> String {
            let node = now(self.memory.get(&Key::cluster(Kind::Node, "me"))).expect("memory answers");
            let node = node.and_then(|stored| Node::try_from(stored.resource).ok());
            let bgp = node.and_then(|node| node.spec.bgp).unwrap_or_default();
            let text = |part: Option<String>| part.unwrap_or("-".into());
            let tunnel = bgp.ipv4_ipip_tunnel_addr.map(|ip| ip.to_string());
            let (v4, v6) = (
                bgp.ipv4_address.map(|net| net.to_string()),
                bgp.ipv6_address.map(|net| net.to_string()),
            );
            format!("{} {} {}", text(v4), text(v6), text(tunnel))
        }

        /// Waits until the registration is as expected.
        async fn reaches(&self, expected: impl Fn(&str) -> bool) {
            self.until(|| expected(&self.registered())).await;
        }

        /// Waits for what the task on another thread makes true.
        async fn until(&self, is_so: impl Fn() -> bool) {
            let deadline = Instant::now() + Duration::from_secs(20);
            while !is_so() {
                let outcome = &self.identity.lock().expect("not poisoned").registered.clone();
                assert!(Instant::now() < deadline, "still {}, {outcome:?}", self.registered());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }

        fn changes_address(&self, old: &str, new: &str) {
            let device = IfName::from("ens33");
            let net = old.parse().expect("a prefix");
            let removal = Op::RemoveAddress(Address { device, net });
            self.kernel.by_others(&removal).expect("it is there");
            put_address(&self.kernel, new);
            self.facts.send_modify(|facts| facts.address_changes += 1);
        }

        fn pool(&self, cidr: &str, change: impl FnOnce(&mut IpPoolSpec)) {
            let cidr: IpNet = cidr.parse().expect("a range");
            let mut pool = IpPool::new("pool", IpPoolSpec::new(cidr));
            pool.spec.ipip_mode = EncapMode::Always;
            change(&mut pool.spec);
            let stored = now(self.memory.get(&pool.key())).expect("memory answers");
            match stored {
                Some(stored) => drop(now(self.memory.update(Resource::from(pool), &stored.revision))),
                None => drop(now(self.memory.create(pool.into()))),
            }
            self.facts.send_modify(|facts| {
                let state = calc::PoolState {
                    ipip: EncapMode::Always,
                    vxlan: EncapMode::Never,
                    nat_outgoing: false,
                    exported: true,
                };
                facts.synced = true;
                facts.state.pools.insert(cidr, state);
            });
            self.changes.send_modify(|count| *count += 1);
        }
    }

    /// Memory answers at once.
    fn now<T>(future: impl Future<Output = T>) -> T {
        futures::FutureExt::now_or_never(future).expect("memory answers at once")
    }

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(test);
    }

    #[test]
    fn the_registration_follows_addresses_and_pools() {
        run(async {
            let world = start("--ip6 autodetect", &[]);
            world.reaches(|got| got == "10.0.0.7/24 fd00::7/64 -").await;
            world.pool("192.168.0.0/16", |_| {});
            world
                .reaches(|got| got.starts_with("10.0.0.7/24 fd00::7/64 192.168."))
                .await;
            // A disabled pool gives no tunnel addresses, though the node's state does not change.
            world.pool("192.168.0.0/16", |spec| spec.disabled = true);
            world.reaches(|got| got == "10.0.0.7/24 fd00::7/64 -").await;
            world.pool("192.168.0.0/16", |_| {});
            world.reaches(|got| got.contains(" 192.168.")).await;
            world.changes_address("10.0.0.7/24", "10.0.0.9/24");
            world
                .reaches(|got| got.starts_with("10.0.0.9/24 fd00::7/64 192.168."))
                .await;
            // Somebody deletes the Node.
            drop(now(world.memory.delete(&Key::cluster(Kind::Node, "me"), None)));
            world.changes.send_modify(|count| *count += 1);
            world
                .reaches(|got| got.starts_with("10.0.0.9/24 fd00::7/64 192.168."))
                .await;
            assert_eq!(world.identity.lock().expect("not poisoned").registered, Ok(()));
        });
    }

    #[test]
    fn an_outage_takes_nothing_from_a_registration_that_still_holds() {
        let outcome = |world: &World| world.identity.lock().expect("not poisoned").registered.clone();
        run(async {
            let world = start("", &[]);
            world.reaches(|got| got == "10.0.0.7/24 - -").await;
            world.until(|| outcome(&world).is_ok()).await;
            world.outage.store(true, Ordering::Relaxed);
            // Somebody wrote the node before: what the agent makes of it cannot be written now.
            world.changes.send_modify(|count| *count += 1);
            let addresses = || world.identity.lock().expect("not poisoned").addresses.clone();
            world.identity.lock().expect("not poisoned").addresses = Err("to be looked for".into());
            world.until(|| addresses().is_ok()).await;
            assert_eq!(outcome(&world), Ok(()));
            // With another address the datastore is wrong about the node.
            world.changes_address("10.0.0.7/24", "10.0.0.9/24");
            world.until(|| outcome(&world).is_err()).await;
            assert_eq!(outcome(&world).map_err(|why| why.reason), Err("Unauthorized"));
            world.outage.store(false, Ordering::Relaxed);
            world.reaches(|got| got == "10.0.0.9/24 - -").await;
        });
    }

    #[test]
    fn a_node_without_ipv4_needs_no_tunnel() {
        run(async {
            let world = start("--ip none --ip6 autodetect", &[]);
            world.pool("192.168.0.0/16", |_| {});
            world.reaches(|got| got == "- fd00::7/64 -").await;
            drop(world.facts);
            assert!(world.task.await.expect("it ends").is_ok());
        });
    }

    #[test]
    fn kubernetes_addresses_come_from_the_node_and_may_come_late() {
        run(async {
            let world = start("--ip-autodetection-method kubernetes-internal-ip", &[]);
            let why = || {
                world
                    .identity
                    .lock()
                    .expect("not poisoned")
                    .registered
                    .clone()
                    .err()
                    .map(|unregistered| unregistered.why)
                    .unwrap_or_default()
            };
            world
                .until(|| why().contains("no spec.addresses of type InternalIP"))
                .await;
            let mut node = Node::new("me", api::NodeSpec::default());
            node.spec.addresses.push(api::NodeAddress {
                address: "10.0.0.7".into(),
                kind: Some("InternalIP".into()),
            });
            drop(now(world.memory.create(node.into())));
            world.changes.send_modify(|count| *count += 1);
            world.reaches(|got| got == "10.0.0.7/24 - -").await;
        });
    }

    #[test]
    fn an_address_of_another_node_ends_the_agent() {
        run(async {
            let mut other = Node::new("other", api::NodeSpec::default());
            other.spec.bgp.get_or_insert_default().ipv4_address = "10.0.0.7/24".parse().ok();
            let world = start("", &[other]);
            let ended = world.task.await.expect("it does not panic");
            assert!(matches!(ended, Err(AgentError::AddressTaken { .. })), "{ended:?}");
        });
    }

    #[test]
    fn only_pools_and_the_own_node_concern_it() {
        let check = |key: Key, expected: bool| {
            let update = Update { key, value: None };
            assert_eq!(concerns("me", &update), expected, "{update:?}");
        };
        check(Key::cluster(Kind::IPPool, "p"), true);
        check(Key::cluster(Kind::Node, "me"), true);
        check(Key::cluster(Kind::Node, "other"), false);
        check(Key::cluster(Kind::IPAMBlock, "b"), false);
    }
}
