use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};

use api::{
    Condition, ConditionStatus, HostEndpointSpec, IpPool, IpPoolSpec, IpPoolStatus, Key, Kind,
    KubeControllersConfiguration, Node, NodeSpec, Resource, Switch,
};
use datastore::{MemoryStore, Scope, Store};
use futures::future::{BoxFuture, FutureExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use super::*;
use crate::desk::Abilities;
use crate::leadership::{Left, Say, Term};
use crate::settings::Environment;

/// Leadership that the test gives and takes.
#[derive(Default)]
struct Given {
    holds: Arc<AtomicBool>,
    changed: Arc<Notify>,
    released: AtomicBool,
}

impl Given {
    fn set(&self, holds: bool) {
        self.holds.store(holds, Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    fn until(&self, wanted: bool) -> BoxFuture<'static, ()> {
        let (holds, changed) = (Arc::clone(&self.holds), Arc::clone(&self.changed));
        async move {
            loop {
                let change = changed.notified();
                if holds.load(Ordering::SeqCst) == wanted {
                    return;
                }
                change.await;
            }
        }
        .boxed()
    }
}

impl Leadership for Given {
    fn acquire<'a>(&'a self, _: Say<'a>) -> BoxFuture<'a, Term> {
        let holds = Arc::clone(&self.holds);
        let left: Left = Arc::new(move || holds.load(Ordering::SeqCst).then_some(Duration::MAX));
        let ended = self.until(false).map(|()| "it was taken".to_owned()).boxed();
        self.until(true).map(move |()| Term { left, ended }).boxed()
    }

    fn release(&self) -> BoxFuture<'_, ()> {
        self.released.store(true, Ordering::SeqCst);
        std::future::ready(()).boxed()
    }
}

struct Running {
    store: MemoryStore,
    leadership: Arc<Given>,
    questions: mpsc::UnboundedSender<Question>,
    settings: watch::Receiver<Settings>,
    stop: oneshot::Sender<()>,
    ended: tokio::task::JoinHandle<Result<(), String>>,
}

impl Running {
    fn start() -> Self {
        let store = MemoryStore::new();
        let leadership = Arc::new(Given::default());
        let environment = Environment::read(&|_| None).unwrap();
        let desk = Desk::new(Abilities::default(), environment);
        let (questions, inbox) = mpsc::unbounded_channel();
        let (settings_out, settings) = watch::channel(desk.settings().clone());
        let (stop, stopped) = oneshot::channel();
        let ended = tokio::spawn(run(Parts {
            store: Arc::new(store.clone()),
            leadership: leadership.clone(),
            desk,
            questions: inbox,
            settings: settings_out,
            stop: stopped.map(|_| ()).boxed(),
        }));
        Self {
            store,
            leadership,
            questions,
            settings,
            stop,
            ended,
        }
    }

    async fn report(&self) -> Report {
        let (reply, answer) = oneshot::channel();
        self.questions.send(reply).unwrap();
        answer.await.unwrap()
    }

    async fn names(&self, kind: Kind) -> Vec<String> {
        let items = self.store.list(&Scope::Kind(kind)).await.unwrap().items.into_iter();
        items.map(|stored| stored.resource.metadata().name.clone()).collect()
    }

    /// Waits for changes in the store until something is so.
    async fn until<F: Future<Output = bool>>(&self, what: &str, fine: impl Fn() -> F) {
        let mut changes = self.store.watch(Scope::All, None);
        let wait = async {
            while !fine().await {
                changes.next().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect(what);
    }

    async fn configure(&self, change: impl Fn(&mut KubeControllersConfiguration)) {
        let key = Key::cluster(Kind::KubeControllersConfiguration, "default");
        let edit = |config: Option<KubeControllersConfiguration>| {
            let mut config = config.expect("it is there");
            change(&mut config);
            Ok::<_, datastore::StoreError>((datastore::Edit::Put(config), ()))
        };
        datastore::modify(&self.store, &key, edit).await.unwrap();
    }
}

fn automatic(config: &mut KubeControllersConfiguration, on: Switch) {
    let node = config.spec.controllers.node.get_or_insert_default();
    node.host_endpoint.get_or_insert_default().auto_create = Some(on);
}

#[tokio::test]
async fn it_writes_while_it_leads_and_not_one_byte_more() {
    let running = Running::start();
    running
        .store
        .create(Node::new("n1", NodeSpec::default()).into())
        .await
        .unwrap();
    let standby = running.report().await;
    assert!(!standby.leads);
    assert_eq!(running.names(Kind::Tier).await, [""; 0]);

    running.leadership.set(true);
    let tiers = ["default", "kube-admin", "kube-baseline"];
    running
        .until("tiers", || async { running.names(Kind::Tier).await == tiers })
        .await;
    let status = || async {
        let key = Key::cluster(Kind::KubeControllersConfiguration, "default");
        let stored = running.store.get(&key).await.unwrap();
        matches!(stored.map(|stored| stored.resource), Some(Resource::KubeControllersConfiguration(config))
            if config.status.as_ref().is_some_and(|status| status.running_config.is_some()))
    };
    running.until("the running configuration", status).await;
    running.configure(|config| automatic(config, Switch::Enabled)).await;
    let there = || async { running.names(Kind::HostEndpoint).await == ["n1-auto-hep"] };
    running.until("a host endpoint", there).await;
    let report = running.report().await;
    assert!(report.leads && report.ready && report.hung.is_none(), "{report:?}");
    assert_eq!(report.actions["create-tier"].done, 3);

    running.leadership.set(false);
    while running.report().await.leads {
        tokio::task::yield_now().await;
    }
    running.configure(|config| automatic(config, Switch::Disabled)).await;
    running
        .store
        .create(Node::new("n2", NodeSpec::default()).into())
        .await
        .unwrap();
    // It has heard of the configuration, and does nothing about it.
    let mut settings = running.settings.clone();
    let heard = settings.wait_for(|settings| settings.node.as_ref().is_some_and(|node| !node.auto_create));
    tokio::time::timeout(Duration::from_secs(20), heard)
        .await
        .expect("it hears")
        .unwrap();
    assert!(!running.report().await.leads);
    assert_eq!(running.names(Kind::HostEndpoint).await, ["n1-auto-hep"]);

    running.leadership.set(true);
    running
        .until("no host endpoint", || async {
            running.names(Kind::HostEndpoint).await.is_empty()
        })
        .await;
}

#[tokio::test]
async fn told_to_stop_it_gives_leadership_back() {
    let running = Running::start();
    running.leadership.set(true);
    while !running.report().await.leads {
        tokio::task::yield_now().await;
    }
    let leadership = running.leadership.clone();
    running.stop.send(()).unwrap();
    assert_eq!(running.ended.await.unwrap(), Ok(()));
    assert!(leadership.released.load(Ordering::SeqCst));
}

#[tokio::test]
async fn nothing_is_given_back_that_has_run_out_with_a_write_under_way() {
    let check = async |left: Option<Option<Duration>>, expected: bool| {
        let (gate, leadership) = (Gate::default(), Given::default());
        if let Some(left) = left {
            gate.open(Arc::new(move || left));
        }
        farewell(&gate, &leadership).await;
        assert_eq!(leadership.released.load(Ordering::SeqCst), expected, "{left:?}");
    };
    check(None, true).await;
    check(Some(Some(Duration::from_secs(1))), true).await;
    check(Some(None), false).await;
}

#[tokio::test]
async fn pools_get_conditions_and_keep_everything_else() {
    let running = Running::start();
    for (name, cidr) in [("a", "10.0.0.0/16"), ("b", "10.0.1.0/24")] {
        let mut pool = IpPool::new(name, IpPoolSpec::new(cidr.parse().unwrap()));
        pool.status = Some(IpPoolStatus {
            conditions: vec![Condition {
                kind: "Other".into(),
                status: ConditionStatus::Unknown,
                observed_generation: None,
                last_transition_time: Timestamp::UNIX_EPOCH,
                reason: "X".into(),
                message: String::new(),
            }],
        });
        running.store.create(pool.into()).await.unwrap();
    }
    running.leadership.set(true);
    let reasons = || async {
        let items = running
            .store
            .list(&Scope::Kind(Kind::IPPool))
            .await
            .unwrap()
            .items
            .into_iter();
        let pools = items.filter_map(|stored| IpPool::try_from(stored.resource).ok());
        let reasons = pools.flat_map(|pool| pool.status.unwrap_or_default().conditions);
        reasons.map(|condition| condition.reason).collect::<Vec<_>>()
    };
    running
        .until("conditions", || async {
            reasons().await == ["X", "OK", "X", "CIDROverlap"]
        })
        .await;
    running
        .store
        .delete(&Key::cluster(Kind::IPPool, "a"), None)
        .await
        .unwrap();
    running
        .until("the other pool in force", || async { reasons().await == ["X", "OK"] })
        .await;
}

#[tokio::test]
async fn the_port_answers_and_moves_with_the_configuration() {
    let running = Running::start();
    let host = IpAddr::V4(Ipv4Addr::LOCALHOST);
    tokio::spawn(crate::http::serve(
        host,
        running.questions.clone(),
        running.settings.clone(),
    ));
    running.leadership.set(true);
    running
        .until("the configuration", || async {
            !running.names(Kind::KubeControllersConfiguration).await.is_empty()
        })
        .await;
    // Ports that were free a moment ago.
    let free = || TcpListener::bind((host, 0)).unwrap().local_addr().unwrap();
    let (first, second) = (free(), free());
    running
        .configure(|config| config.spec.prometheus_metrics_port = Some(first.port()))
        .await;
    assert_eq!(ask(first, "/liveness").await, "200 live\n");
    let ready = ask(first, "/readiness").await;
    assert!(ready.starts_with("200 Datastore     ok        InSync: "), "{ready}");
    assert!(
        ready.contains("Controllers   warning   NotInThisBuild: on, but not in this build: loadBalancer"),
        "{ready}"
    );
    assert!(ask(first, "/metrics").await.contains("margay_controllers_leader 1\n"));
    assert!(ask(first, "/status").await.contains("\"leads\":true"));
    running
        .configure(|config| {
            config.spec.prometheus_metrics_port = Some(second.port());
            config.spec.health_checks = Some(Switch::Disabled);
        })
        .await;
    assert!(ask(second, "/metrics").await.starts_with("200 "));
    assert!(ask(second, "/liveness").await.starts_with("404 "));
    assert!(
        tokio::net::TcpStream::connect(first).await.is_err(),
        "it answers on the old port too"
    );
}

/// The code and the body, once somebody listens.
async fn ask(address: SocketAddr, path: &str) -> String {
    let asked = async {
        let mut stream = loop {
            match tokio::net::TcpStream::connect(address).await {
                Ok(stream) => break stream,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        stream
            .write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        format!("{} {body}", head.split(' ').nth(1).unwrap())
    };
    tokio::time::timeout(Duration::from_secs(20), asked)
        .await
        .expect("an answer")
}

#[tokio::test]
async fn what_fails_is_tried_again_and_told() {
    // A host endpoint that somebody made by hand is in the way.
    let running = Running::start();
    running
        .store
        .create(Node::new("n1", NodeSpec::default()).into())
        .await
        .unwrap();
    let by_hand = api::HostEndpoint::new(
        "n1-auto-hep",
        HostEndpointSpec {
            node: "n1".into(),
            interface_name: "eth0".into(),
            ..HostEndpointSpec::default()
        },
    );
    running.store.create(by_hand.clone().into()).await.unwrap();
    running.leadership.set(true);
    running
        .until("the configuration", || async {
            !running.names(Kind::KubeControllersConfiguration).await.is_empty()
        })
        .await;
    running.configure(|config| automatic(config, Switch::Enabled)).await;
    let told = async {
        while running.report().await.problems.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), told)
        .await
        .expect("a problem");
    let report = running.report().await;
    assert!(
        report.problems[0].starts_with("HostEndpoint(n1-auto-hep) is in the way"),
        "{report:?}"
    );
    assert!(report.ready);
    let stored = running.store.get(&by_hand.key()).await.unwrap().unwrap().resource;
    let Resource::HostEndpoint(stored) = stored else {
        panic!()
    };
    assert_eq!(stored.spec, by_hand.spec);
}
