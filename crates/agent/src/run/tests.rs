//! The loop with fakes all around.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use api::resource::WorkloadEndpoint;
use dataplane::LocalEndpoint;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use kernel::nft::{
    ChainName, FakeNft, Generation, NftError, NftEvent, NftKernel, Rules, TableName, TableState, Transaction,
};
use kernel::{FakeKernel, IpipFlavour};
use tokio::sync::Semaphore;

use super::*;
use crate::packet_filter::Counted;
use crate::warnings::Warnings;

/// Reads rules only when it may.
struct SlowNft {
    fake: FakeNft,
    may: Arc<Semaphore>,
    readings: Arc<AtomicUsize>,
}

impl NftKernel for SlowNft {
    fn apply<'a>(&'a mut self, transaction: &'a Transaction) -> BoxFuture<'a, Result<(), NftError>> {
        self.fake.apply(transaction)
    }

    fn read<'a>(&'a mut self, table: &'a TableName) -> BoxFuture<'a, Result<Option<TableState>, NftError>> {
        self.fake.read(table)
    }

    fn rules(&mut self, table: &TableName) -> BoxFuture<'static, Result<Rules, NftError>> {
        self.readings.fetch_add(1, Ordering::Relaxed);
        let (rules, may) = (self.fake.rules(table), self.may.clone());
        Box::pin(async move {
            may.acquire().await.expect("it is never closed").forget();
            rules.await
        })
    }

    fn rules_of<'a>(
        &'a mut self,
        table: &'a TableName,
        chains: &'a BTreeSet<ChainName>,
    ) -> BoxFuture<'a, Result<Rules, NftError>> {
        self.fake.rules_of(table, chains)
    }

    fn generation(&mut self) -> BoxFuture<'_, Result<Generation, NftError>> {
        self.fake.generation()
    }

    fn events(&mut self, table: &TableName) -> Result<BoxStream<'static, NftEvent>, NftError> {
        self.fake.events(table)
    }
}

fn main_loop(nft: impl NftKernel + 'static, patient: bool, myself: mpsc::UnboundedSender<Event>) -> Loop<FakeKernel> {
    let tunnel = IfName::from("tunl0");
    let dataplane = Dataplane::new(dataplane::Config {
        node: "n1".into(),
        interface_prefix: "cali".into(),
        tunnel: tunnel.clone(),
        ipip_flavour: Some(IpipFlavour::Bpf),
    });
    let listeners = Listeners {
        bgp: mpsc::unbounded_channel().0,
        facts: watch::channel(Facts::default()).0,
        myself,
        cutter: mpsc::unbounded_channel().0,
    };
    let mut filter = PacketFilter::new("n1", Box::new(nft), tunnel.clone());
    if patient {
        filter.wait_for_strangers();
    }
    Loop::new(
        Graph::new("n1"),
        dataplane,
        filter,
        FakeKernel::default(),
        tunnel,
        listeners,
    )
}

#[tokio::test]
async fn reading_counters_keeps_nobody_waiting() {
    let (may, readings) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let nft = SlowNft {
        fake: FakeNft::default(),
        may: may.clone(),
        readings: readings.clone(),
    };
    let (events, inbox) = mpsc::unbounded_channel();
    let running = tokio::spawn(main_loop(nft, false, events.clone()).run(inbox));
    let ask = |event: Event| events.send(event).expect("the loop runs");
    let report = async || {
        let (reply, report) = oneshot::channel();
        ask(Event::Report(reply));
        report.await.expect("a report")
    };

    let (first, mut seen_first) = oneshot::channel();
    let (counted, mut seen_counted) = oneshot::channel();
    ask(Event::Policy(first));
    ask(Event::Counted(counted));
    // The loop answers others while the rules are being read.
    report().await;
    report().await;
    assert!(seen_first.try_recv().is_err() && seen_counted.try_recv().is_err());

    // Who asks later gets a later reading: the first one may have been before what he wants to see.
    let (second, mut seen_second) = oneshot::channel();
    ask(Event::Policy(second));
    report().await;
    assert_eq!(readings.load(Ordering::Relaxed), 1);
    may.add_permits(1);
    seen_first.await.expect("a view");
    assert_eq!(seen_counted.await.expect("counts"), Ok(Counted::default()));
    report().await;
    assert_eq!(readings.load(Ordering::Relaxed), 2);
    assert!(seen_second.try_recv().is_err());
    may.add_permits(1);
    seen_second.await.expect("a view");
    running.abort();
}

#[tokio::test]
async fn pods_of_another_plugin_are_not_closed_until_all_is_known() {
    let check = async |patient: bool, expected: [bool; 3]| {
        let (events, inbox) = mpsc::unbounded_channel();
        let running = tokio::spawn(main_loop(FakeNft::default(), patient, events.clone()).run(inbox));
        let ask = |event: Event| events.send(event).expect("the loop runs");
        let report = async || {
            let (reply, report) = oneshot::channel();
            ask(Event::Report(reply));
            report.await.expect("a report").filter.applied.transactions
        };
        // The second report comes after what the loop did about all that was before the first.
        let enforces = async || report().await + report().await > 0;
        let mut seen = [enforces().await, false, false];
        let turn = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("one");
        ask(Event::Sync(SyncEvent::InSync, turn));
        seen[1] = enforces().await;
        ask(Event::EndpointsLoaded { all: true });
        seen[2] = enforces().await;
        assert_eq!(seen, expected, "{patient}");
        running.abort();
    };
    check(false, [true; 3]).await;
    check(true, [false, false, true]).await;
}

#[tokio::test]
async fn who_waits_for_a_pod_that_goes_is_told_and_nobody_is_kept() {
    let mut main = main_loop(FakeNft::default(), false, mpsc::unbounded_channel().0);
    let mut tell = |comes: bool| {
        let local = LocalEndpoint {
            device: "cali1".into(),
            addresses: vec![[10, 0, 0, 1].into()],
            fresh: false,
        };
        let endpoint = comes.then(|| Box::new((local, WorkloadEndpoint::new("n1-k8s-p-eth0", Default::default()))));
        let (done, outcome) = oneshot::channel();
        let id = "a/eth0".to_owned();
        main.take(Event::Endpoint { id, endpoint, done });
        (outcome, main.waiting.values().map(Vec::len).sum::<usize>())
    };
    // The kernel does not take it, and each who asks gives up after a while.
    for _ in 0..3 {
        assert_eq!(tell(true).1, 1);
    }
    let (patient, _) = tell(true);
    assert_eq!(tell(false).1, 0);
    let told = patient.await.expect("an answer");
    assert_eq!(told, Err("it was taken away meanwhile".to_owned()));
}

#[tokio::test]
async fn an_operation_that_fails_again_and_again_is_one_warning_for_each_reason() {
    let mut main = main_loop(FakeNft::default(), false, mpsc::unbounded_channel().0);
    main.settle().await;
    let warnings = Warnings::default();
    let _listens = warnings.listen();
    let kernel = main.kernel.clone();
    kernel.add_link("cali1", "veth");
    main.take(Event::Kernel(KernelEvent::Resync));
    let local = LocalEndpoint {
        device: "cali1".into(),
        addresses: vec![[10, 0, 0, 1].into()],
        fresh: false,
    };
    let endpoint = Some(Box::new((
        local,
        WorkloadEndpoint::new("n1-k8s-p-eth0", Default::default()),
    )));
    main.take(Event::Endpoint {
        id: "a/eth0".to_owned(),
        endpoint,
        done: oneshot::channel().0,
    });
    let refused = |reason: &str| KernelError::Refused {
        what: "it".to_owned(),
        reason: reason.to_owned(),
        errno: 22,
    };
    for (error, expected) in [(refused("x"), 1), (refused("x"), 1), (refused("y"), 2)] {
        kernel.heal();
        kernel.fail(usize::MAX, error, |op| matches!(op, Op::PutRoute(_)));
        let failed = main.applied.failed;
        for _ in 0..3 {
            main.take(Event::Retry);
            main.settle().await;
        }
        assert_eq!((main.applied.failed - failed, warnings.count()), (3, expected));
    }
    kernel.heal();
    main.take(Event::Retry);
    main.settle().await;
    assert!(!main.dataplane.has_failures());
    // It succeeded in between: that it fails is news again.
    kernel.fail(usize::MAX, refused("y"), |op| matches!(op, Op::PutRoute(_)));
    let key = kernel.seen().routes.keys().next().expect("the pod's route").clone();
    kernel.delete_route(&key);
    main.take(Event::Kernel(KernelEvent::Resync));
    main.settle().await;
    assert_eq!(warnings.count(), 3);
}

#[tokio::test]
async fn bandwidths_are_held_to_whoever_attached_the_pod() {
    let check = async |work: Work, expected: [usize; 2]| {
        let mut main = main_loop(FakeNft::default(), false, mpsc::unbounded_channel().0);
        main.does("n1", work);
        let kernel = main.kernel.clone();
        kernel.add_link("cali1", "veth");
        kernel.change_link(&"cali1".into(), |link| link.up = true);
        let local = LocalEndpoint {
            device: "cali1".into(),
            addresses: vec![[10, 0, 0, 1].into()],
            fresh: false,
        };
        let mut resource = WorkloadEndpoint::new("n1-k8s-p-eth0", Default::default());
        resource.metadata.namespace = Some("default".to_owned());
        resource.spec.node = "n1".to_owned();
        resource.spec.qos_controls = Some(api::QosControls {
            ingress_bandwidth: 8_000,
            egress_bandwidth: 8_000,
            ..Default::default()
        });
        main.take(Event::Endpoint {
            id: "a/eth0".to_owned(),
            endpoint: Some(Box::new((local, resource))),
            done: oneshot::channel().0,
        });
        main.take(Event::EndpointsLoaded { all: true });
        let turn = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("one");
        main.take(Event::Sync(SyncEvent::InSync, turn));
        main.settle().await;
        let seen = kernel.seen();
        assert_eq!([seen.shapers.len(), seen.routes.len()], expected, "{work:?}: {seen:?}");
    };
    check(Work::WithBgp, [2, 1]).await;
    check(Work::PolicyOnly, [2, 0]).await;
}
