//! What runtimes see, and what is left after failures.

use cni::config::Attachment;
use cni::journal::{Pending, Phase};
use cni::protocol::{self, Reply, Role, Verb};
use cni::{Code, Version};
use datastore::Store;
use serde_json::json;

use super::fakes::World;
use super::ports::*;
use super::socket::bind;

#[tokio::test]
async fn add_answers_the_wiring_of_a_pod() {
    let world = World::new(4);
    let server = world.server().await;
    let mut result = world.add(&server, "abc", "p").await.unwrap().to_json(Version::V1_1_0);
    let mac = result["interfaces"][1]["mac"].take();
    assert!(mac.as_str().is_some_and(|mac| mac.len() == 17), "{mac}");
    let device = api::names::interface_name("cali", "ns", "p");
    let wanted = json!({
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": device, "mac": "ee:ee:ee:ee:ee:ee", "mtu": 1480},
            {"name": "eth0", "mac": null, "mtu": 1480, "sandbox": world.netns("abc")},
        ],
        "ips": [{"interface": 1, "address": "10.0.0.0/32"}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}],
        "dns": {},
    });
    assert_eq!(result, wanted);
    let weps = world.weps().await;
    let wep = &weps["n1-k8s-p-eth0"];
    assert_eq!(wep.metadata.namespace.as_deref(), Some("ns"));
    assert_eq!((wep.spec.orchestrator.as_str(), wep.spec.pod.as_str()), ("k8s", "p"));
    assert_eq!(wep.spec.profiles, ["kns.ns", "ksa.ns.default"]);
    assert_eq!(
        (&wep.spec.interface_name, wep.spec.mac.as_str()),
        (&device, mac.as_str().unwrap())
    );
    assert_eq!(wep.spec.ip_networks, ["10.0.0.0/32".parse().unwrap()]);
    world.assert_consistent(&server).await;
}

#[tokio::test]
async fn labels_of_the_pod_count_for_the_first_packet() {
    let world = World::new(4);
    let server = world.server().await;
    world.state().pod_labels.insert("role".into(), "db".into());
    world.add(&server, "new", "p").await.unwrap();
    let state = world.state();
    let told = &state.routes["new/eth0"].resource;
    assert_eq!(told.metadata.labels.get("role").map(String::as_str), Some("db"));
}

#[tokio::test]
async fn labels_that_the_datastore_has_already_count_for_the_first_packet() {
    let world = World::new(4);
    let server = world.server().await;
    world.add(&server, "old", "p").await.unwrap();
    let mut stored = world.weps().await["n1-k8s-p-eth0"].clone();
    stored.metadata.labels.insert("role".into(), "db".into());
    let revision = world.store.get(&stored.key()).await.unwrap().unwrap().revision;
    world.store.update(stored.into(), &revision).await.unwrap();
    world.add(&server, "new", "p").await.unwrap();
    let state = world.state();
    let told = &state.routes["new/eth0"].resource;
    assert_eq!(told.metadata.labels.get("role").map(String::as_str), Some("db"));
    assert_eq!(told.spec.container_id, "new");
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_read_whole_is_replaced_and_deleted_like_any_other() {
    let world = World::new(4);
    let server = world.server().await;
    let spoil = async |container: &str| {
        let stored = world.weps().await["n1-k8s-p-eth0"].clone();
        let revision = world.store.get(&stored.key()).await.unwrap().unwrap().revision;
        let mut json = serde_json::to_value(api::Resource::from(stored)).unwrap();
        json["spec"]["ipNetworks"] = json!(["ten"]);
        json["spec"]["containerID"] = json!(container);
        let wrong = api::Resource::from_json(json).unwrap();
        assert!(matches!(wrong, api::Resource::Wrong(_)), "{wrong:?}");
        world.store.update(wrong, &revision).await.unwrap();
    };
    world.add(&server, "old", "p").await.unwrap();
    spoil("old").await;
    world.add(&server, "new", "p").await.unwrap();
    world.assert_consistent(&server).await;
    world.del(&server, "old", "p").await;
    spoil("new").await;
    world.del(&server, "new", "p").await;
    world.assert_empty(&server).await;
    assert!(world.weps().await.is_empty());
}

#[tokio::test]
async fn a_container_without_a_pod_is_named_by_its_id() {
    let world = World::new(4);
    let server = world.server().await;
    let result = world.add(&server, "0123456789abcdef", "").await.unwrap();
    assert_eq!(result.interfaces[0].name, "cali0123456789a");
    let weps = world.weps().await;
    let wep = &weps["n1-cni-0123456789abcdef-eth0"];
    assert_eq!(
        (wep.spec.orchestrator.as_str(), wep.spec.container_id.as_str()),
        ("cni", "0123456789abcdef")
    );
    assert_eq!(wep.spec.profiles, ["net"]);
    assert_eq!(
        world.add(&server, "short", "").await.unwrap().interfaces[0].name,
        "calishort"
    );
}

#[tokio::test]
async fn add_again_answers_the_same() {
    let world = World::new(4);
    let server = world.server().await;
    let first = world.add(&server, "a", "p").await.unwrap();
    assert_eq!(world.add(&server, "a", "p").await.unwrap(), first);
    let restarted = world.server().await;
    assert_eq!(world.add(&restarted, "a", "p").await.unwrap(), first);
    assert_eq!(world.state().batches, [1]);
    world.assert_consistent(&restarted).await;
}

#[tokio::test]
async fn add_again_repairs_what_is_broken_and_keeps_the_address() {
    let world = World::new(4);
    let server = world.server().await;
    let first = world.add(&server, "a", "p").await.unwrap();
    world.state().devices.clear();
    world.state().routes.clear();
    assert_eq!(world.add(&server, "a", "p").await.unwrap(), first);
    world.assert_consistent(&server).await;
    // An address that was lost is not used again.
    world.state().held.clear();
    world.state().devices.clear();
    assert_ne!(world.add(&server, "a", "p").await.unwrap().ips, first.ips);
    world.assert_consistent(&server).await;
}

#[tokio::test]
async fn a_failed_add_leaves_nothing() {
    let cases = [
        ("assign", Code::TryAgain),
        ("attach", Code::Interface),
        ("address", Code::Interface),
        ("program", Code::Dataplane),
        ("store", Code::TryAgain),
    ];
    for (step, code) in cases {
        let world = World::new(4);
        let server = world.server().await;
        world.fail(&[step]);
        assert_eq!(world.add(&server, "a", "p").await.unwrap_err().code, code, "{step}");
        world.fail(&[]);
        assert_eq!(server.finish_deletions().await, 0);
        world.assert_empty(&server).await;
        world.add(&server, "a", "p").await.unwrap();
        world.assert_consistent(&server).await;
    }
}

#[tokio::test]
async fn what_cannot_be_undone_at_once_is_undone_later() {
    for undo in ["unprogram", "detach", "release", "store"] {
        let world = World::new(4);
        let server = world.server().await;
        world.fail(&["program", undo]);
        // A pod is let in when the datastore knows it.
        let code = match undo {
            "store" => Code::TryAgain,
            _ => Code::Dataplane,
        };
        assert_eq!(world.add(&server, "a", "p").await.unwrap_err().code, code);
        // It is in the way of the next one until it is done.
        if undo != "unprogram" {
            assert_eq!(
                world.add(&server, "a", "p").await.unwrap_err().code,
                Code::TryAgain,
                "{undo}"
            );
        }
        world.fail(&[]);
        let restarted = world.server().await;
        assert_eq!(restarted.finish_deletions().await, 0);
        world.assert_empty(&restarted).await;
    }
}

#[tokio::test]
async fn reasons_without_an_address_are_told_apart() {
    let cases = [
        (AllocError::Exhausted("pool a is full".into()), Code::NoAddress),
        (AllocError::NoPools("pool a is disabled".into()), Code::NoPool),
        (
            AllocError::TryAgain("the datastore is not available".into()),
            Code::TryAgain,
        ),
        (
            AllocError::Invalid("10.0.0.1 is already assigned".into()),
            Code::InvalidConfig,
        ),
        (AllocError::Refused("forbidden".into()), Code::Datastore),
    ];
    for (refusal, code) in cases {
        let world = World::new(0);
        let server = world.server().await;
        world.state().refusal = Some(refusal.clone());
        let error = world.add(&server, "a", "p").await.unwrap_err();
        assert_eq!((error.code, error.details), (code, refusal.to_string()));
        world.assert_empty(&server).await;
    }
}

#[tokio::test]
async fn bad_names_and_namespaces_are_refused_before_anything_is_made() {
    let world = World::new(4);
    let server = world.server().await;
    let mut request = world.request(Verb::Add, "a", "p");
    request.netns = Some("/nowhere/at/all".into());
    let Reply::Error(error) = server.handle(request).await else {
        panic!("there is no such namespace")
    };
    assert_eq!(error.code, Code::InvalidEnv);
    assert!(error.details.contains("/nowhere/at/all"), "{error}");
    assert_eq!(
        world.add(&server, "ends-with-", "").await.unwrap_err().code,
        Code::InvalidEnv
    );
    world.assert_empty(&server).await;
}

#[tokio::test]
async fn before_the_agent_is_ready_add_asks_to_try_again() {
    let world = World::new(4);
    world
        .readiness
        .send_replace(Readiness::Waiting("the datastore has not been read".into()));
    let server = world.server().await;
    let error = world.add(&server, "a", "p").await.unwrap_err();
    assert_eq!(error.code, Code::TryAgain);
    assert!(error.details.contains("the datastore has not been read"), "{error}");
    let Reply::Error(error) = server.handle(world.request(Verb::Status, "", "")).await else {
        panic!("not ready")
    };
    assert_eq!(error.code, Code::NotAvailable);
    world.readiness.send_replace(Readiness::Ready { pod_mtu: 1450 });
    assert_eq!(
        server.handle(world.request(Verb::Status, "", "")).await,
        Reply::Ok(None)
    );
    assert_eq!(
        world.add(&server, "a", "p").await.unwrap().interfaces[1].mtu,
        Some(1450)
    );
}

#[tokio::test]
async fn an_add_that_waits_goes_on_when_the_agent_is_ready() {
    let world = World::new(4);
    world.readiness.send_replace(Readiness::Waiting("starting".into()));
    let settings = super::Settings {
        ready_wait: std::time::Duration::from_secs(3600),
        ..world.settings()
    };
    let server = world.server_with(settings).await;
    let add = world.add(&server, "a", "p");
    let ready = async {
        tokio::task::yield_now().await;
        world.readiness.send_replace(Readiness::Ready { pod_mtu: 1480 });
    };
    futures::join!(add, ready).0.unwrap();
}

#[tokio::test]
async fn adds_that_wait_together_share_a_swap() {
    let world = World::new(100);
    let server = world.server().await;
    world.shuffle(1);
    let names: Vec<_> = (0..100).map(|number| format!("c{number}")).collect();
    let results = futures::future::join_all(names.iter().map(|name| world.add(&server, name, name))).await;
    assert!(results.iter().all(Result::is_ok));
    assert_eq!(world.state().batches.iter().sum::<usize>(), 100);
    assert!(world.state().batches.len() <= 3, "{:?}", world.state().batches);
    world.assert_consistent(&server).await;
}

#[tokio::test]
async fn del_removes_everything_and_may_be_repeated() {
    let world = World::new(4);
    let server = world.server().await;
    world.add(&server, "a", "p").await.unwrap();
    for _ in 0..2 {
        world.del(&server, "a", "p").await;
        world.assert_empty(&server).await;
    }
}

#[tokio::test]
async fn what_is_detached_is_asked_for_no_more() {
    let world = World::new(4);
    let server = world.server().await;
    world.add(&server, "a", "p").await.unwrap();
    world.fail(&["release"]);
    world.del(&server, "a", "p").await;
    world.fail(&[]);
    assert_eq!(server.finish_deletions().await, 0);
    let mut steps = [0; 3];
    for taken in &mut steps {
        world.state().steps = 0;
        world.del(&server, "a", "p").await;
        *taken = world.state().steps;
    }
    assert!(
        steps[0] > 0,
        "what was finished later is looked for by one DEL: {steps:?}"
    );
    assert_eq!(steps[1..], [0, 0]);

    // The same container once more.
    world.add(&server, "a", "p").await.unwrap();
    world.del(&server, "a", "p").await;
    world.assert_empty(&server).await;
    // An ADD that fails has left nothing, but its DEL makes sure of it.
    world.fail(&["attach"]);
    world.add(&server, "a", "p").await.unwrap_err();
    world.fail(&[]);
    world.state().steps = 0;
    world.del(&server, "a", "p").await;
    assert!(world.state().steps > 0);
}

/// A runtime tries a pod again with another container, and sends DELs for each: hours of that must not pile up.
#[tokio::test]
async fn an_add_that_began_nothing_has_nothing_to_delete() {
    let world = World::new(4);
    let server = world.server().await;
    let del = async |container: &str| {
        world.state().steps = 0;
        world.fail(&["release", "store"]);
        world.del(&server, container, "p").await;
        world.fail(&[]);
        world.state().steps
    };
    world.state().pod_uid = Some("another".into());
    let mut request = world.request(Verb::Add, "a", "p");
    request.args.pod_uid = Some("this".into());
    assert!(matches!(server.handle(request).await, Reply::Error(_)));
    world.state().pod_uid = None;
    assert_eq!(del("a").await, 0);
    world.readiness.send_replace(Readiness::Waiting("not yet".into()));
    world.add(&server, "b", "p").await.unwrap_err();
    assert_eq!(del("b").await, 0);
    assert_eq!(server.finish_deletions().await, 0, "nothing is noted");
    // Of one that had been made there is something, whatever comes of another ADD.
    world.readiness.send_replace(Readiness::Ready { pod_mtu: 1480 });
    world.add(&server, "c", "p").await.unwrap();
    world.readiness.send_replace(Readiness::Waiting("not any more".into()));
    world.add(&server, "c", "p").await.unwrap_err();
    assert!(del("c").await > 0);
    assert_eq!(server.finish_deletions().await, 0);
    world.assert_empty(&server).await;
}

#[tokio::test]
async fn del_without_a_journal_goes_by_names() {
    let world = World::new(4);
    world.add(&world.server().await, "a", "p").await.unwrap();
    std::fs::remove_dir_all(world.dir.path().join("state")).unwrap();
    let server = world.server().await;
    let mut request = world.request(Verb::Del, "a", "p");
    request.netns = None;
    assert_eq!(server.handle(request).await, Reply::Ok(None));
    world.assert_empty(&server).await;
}

#[tokio::test]
async fn del_succeeds_when_something_cannot_be_removed_yet() {
    for step in ["store", "release", "detach", "unprogram"] {
        let world = World::new(4);
        let server = world.server().await;
        world.add(&server, "a", "p").await.unwrap();
        world.fail(&[step]);
        world.del(&server, "a", "p").await;
        world.del(&server, "a", "p").await;
        assert_eq!(server.finish_deletions().await, 1, "{step}");
        world.fail(&[]);
        let restarted = world.server().await;
        assert_eq!(restarted.finish_deletions().await, 0);
        world.assert_empty(&restarted).await;
    }
}

#[tokio::test]
async fn what_the_plugin_noted_is_finished_at_the_start() {
    let world = World::new(4);
    let server = world.server().await;
    world.add(&server, "a", "p").await.unwrap();
    let request = world.request(Verb::Del, "a", "p");
    let noted = Pending {
        container_id: "a".into(),
        ifname: "eth0".into(),
        network: "net".into(),
        ipam_only: false,
        netns: None,
        args: request.args,
    };
    world.journal().write_pending(&noted).unwrap();
    let restarted = world.server().await;
    assert_eq!(world.state().routes.len(), 0, "it is no endpoint any more");
    assert_eq!(restarted.finish_deletions().await, 0);
    world.assert_empty(&restarted).await;
}

#[tokio::test]
async fn a_young_record_counts_for_the_next_agent_and_a_damaged_file_is_left() {
    for damaged in [false, true] {
        let world = World::new(4);
        let server = world.server().await;
        world.add(&server, "a", "p").await.unwrap();
        let endpoint = server.endpoints().remove(0);
        if damaged {
            server.records().unwrap().settle().unwrap();
            let endpoints = world.journal().dir().join("endpoints");
            std::fs::write(endpoints.join(endpoint.id().file_name()), "no record").unwrap();
        }
        drop(server);
        let restarted = world.server().await;
        assert_eq!(restarted.finish_deletions().await, 0);
        assert_eq!(world.state().held.len(), 1, "it is, or may be, a live pod's");
        assert_eq!(restarted.endpoints().len(), usize::from(!damaged));
    }
}

#[tokio::test]
async fn an_old_containers_del_does_not_harm_the_new_pod_of_the_same_name() {
    let world = World::new(4);
    let server = world.server().await;
    world.add(&server, "old", "p").await.unwrap();
    let new = world.add(&server, "new", "p").await.unwrap();
    world.assert_consistent(&server).await;
    let server = world.server().await;
    world.del(&server, "old", "p").await;
    world.assert_consistent(&server).await;
    assert_eq!(world.state().held.len(), 1);
    assert_eq!(world.add(&server, "new", "p").await.unwrap(), new);
    // And without a record of the old one.
    world.del(&server, "older", "p").await;
    world.assert_consistent(&server).await;
    world.del(&server, "new", "p").await;
    world.assert_empty(&server).await;
}

#[tokio::test]
async fn two_containers_whose_ids_begin_alike_do_not_take_each_others_device() {
    let world = World::new(4);
    let server = world.server().await;
    world.add(&server, "container-of-one", "").await.unwrap();
    let error = world.add(&server, "container-of-two", "").await.unwrap_err();
    assert_eq!(error.code, Code::Interface);
    assert!(error.details.contains("container-of-one/eth0"), "{error}");
    world.assert_consistent(&server).await;
    world.del(&server, "container-of-two", "").await;
    world.assert_consistent(&server).await;
    assert_eq!(server.endpoints().len(), 1);
}

#[tokio::test]
async fn gc_detaches_what_is_not_on_the_list() {
    let world = World::new(8);
    let server = world.server().await;
    for name in ["a", "b", "c"] {
        world.add(&server, name, name).await.unwrap();
    }
    let mut request = world.request(Verb::Gc, "", "");
    request.config.valid_attachments = None;
    assert_eq!(server.handle(request.clone()).await, Reply::Ok(None));
    request.config.valid_attachments = Some(vec![]);
    request.config.name = "other".into();
    assert_eq!(server.handle(request.clone()).await, Reply::Ok(None));
    assert_eq!(server.endpoints().len(), 3, "no list, or another network's");
    request.config.name = "net".into();
    request.config.valid_attachments = Some(vec![Attachment {
        container_id: "b".into(),
        ifname: "eth0".into(),
    }]);
    assert_eq!(server.handle(request).await, Reply::Ok(None));
    world.assert_consistent(&server).await;
    assert_eq!(server.endpoints()[0].container_id, "b");
}

#[tokio::test]
async fn check_says_what_differs() {
    let world = World::new(8);
    let server = world.server().await;
    let check = async |change: &dyn Fn(&World, &mut protocol::Request), wanted: Result<(), (Code, &str)>| {
        let result = world.add(&server, "a", "p").await.unwrap();
        let mut request = world.request(Verb::Check, "a", "p");
        request.config.prev_result = Some(result);
        change(&world, &mut request);
        match (server.handle(request).await, wanted) {
            (Reply::Ok(None), Ok(())) => {}
            (Reply::Error(error), Err((code, part))) => {
                assert_eq!(error.code, code);
                assert!(error.details.contains(part), "{part:?} not in {error}");
            }
            (got, wanted) => panic!("{got:?}, wanted {wanted:?}"),
        }
        world.fail(&[]);
        world.del(&server, "a", "p").await;
    };
    let differs = |part| Err((Code::CheckFailed, part));
    check(&|_, _| {}, Ok(())).await;
    check(
        &|_, request| request.container_id = "b".into(),
        Err((Code::UnknownContainer, "b/eth0")),
    )
    .await;
    check(
        &|world, request| request.netns = Some(world.netns("b")),
        differs("netns-b"),
    )
    .await;
    check(&|world, _| world.state().devices.clear(), differs("cali")).await;
    check(
        &|world, _| world.state().held.clear(),
        differs("not allocated to net.a"),
    )
    .await;
    check(&|world, _| world.fail(&["program"]), differs("routes")).await;
    check(&|world, _| world.fail(&["held"]), Err((Code::TryAgain, "held fails"))).await;
    let other = |_: &World, request: &mut protocol::Request| {
        request.config.prev_result.as_mut().unwrap().ips[0].address = "10.9.9.9/32".parse().unwrap();
    };
    check(&other, differs("10.9.9.9/32")).await;
}

#[tokio::test]
async fn as_ipam_plugin_only_the_address_is_ours() {
    let world = World::new(4);
    let server = world.server().await;
    let request = |verb| protocol::Request {
        role: Role::Ipam,
        ..world.request(verb, "a", "")
    };
    let Reply::Ok(Some(result)) = server.handle(request(Verb::Add)).await else {
        panic!("no address")
    };
    assert_eq!(
        result.to_json(Version::V1_0_0)["ips"],
        json!([{"address": "10.0.0.0/32"}])
    );
    assert_eq!(server.handle(request(Verb::Add)).await, Reply::Ok(Some(result)));
    assert_eq!(server.handle(request(Verb::Check)).await, Reply::Ok(None));
    world.assert_consistent(&server).await;
    assert!(world.state().devices.is_empty() && world.weps().await.is_empty());
    // So that nobody takes it for a leak because no endpoint has it.
    let attributes = server.naming().attributes(&server.endpoints()[0]);
    assert!(attributes.contains_key(ipam::ADDRESS_ALONE), "{attributes:?}");
    assert_eq!(server.handle(request(Verb::Del)).await, Reply::Ok(None));
    world.assert_empty(&server).await;
}

#[tokio::test]
async fn a_given_address_is_asked_for() {
    let world = World::new(8);
    let server = world.server().await;
    let mut request = world.request(Verb::Add, "a", "p");
    request.args.ip = Some([10, 0, 0, 5].into());
    let Reply::Ok(Some(result)) = server.handle(request).await else {
        panic!("no address")
    };
    assert_eq!(result.ips[0].address, "10.0.0.5/32".parse().unwrap());
}

#[tokio::test]
async fn only_proof_of_death_removes_an_endpoint() {
    let world = World::new(8);
    let server = world.server().await;
    for name in ["no-netns", "no-device", "other-netns", "dead", "no-wep", "reused"] {
        world.add(&server, name, name).await.unwrap();
    }
    let remove_netns = |name: &str| std::fs::remove_file(world.netns(name)).unwrap();
    let replace_netns = |name: &str| {
        // The old file must outlive the new one's creation, or its inode could be used again.
        let (path, aside) = (world.netns(name), world.dir.path().join(format!("aside-{name}")));
        std::fs::rename(&path, &aside).unwrap();
        std::fs::write(&path, "").unwrap();
    };
    let remove_device = |name: &str| {
        let device = api::names::interface_name("cali", "ns", name);
        world.state().devices.remove(&device).unwrap();
    };
    remove_netns("no-netns");
    remove_device("no-device");
    replace_netns("other-netns");
    remove_netns("dead");
    remove_device("dead");
    replace_netns("reused");
    remove_device("reused");
    let weps = world.weps().await;
    let key = weps["n1-k8s-no--wep-eth0"].key();
    datastore::Store::delete(&world.store, &key, None).await.unwrap();
    let restarted = world.server().await;
    let programmed: Vec<_> = world.state().routes.keys().cloned().collect();
    assert_eq!(
        programmed,
        ["no-device/eth0", "no-netns/eth0", "no-wep/eth0", "other-netns/eth0"]
    );
    assert_eq!(restarted.finish_deletions().await, 0);
    let left: Vec<_> = restarted
        .endpoints()
        .into_iter()
        .map(|endpoint| endpoint.container_id)
        .collect();
    assert_eq!(left, ["no-device", "no-netns", "no-wep", "other-netns"]);
    assert_eq!(world.state().held.len(), 4);
}

#[tokio::test]
async fn the_socket_is_roots_alone_and_replaces_a_dead_one() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run/cni.sock");
    drop(bind(&path).unwrap());
    assert!(path.exists(), "a dead agent's socket stays");
    let listener = bind(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(bind(&path).unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
    drop(listener);
    assert_eq!(std::fs::read_dir(dir.path().join("run")).unwrap().count(), 1);
}

#[tokio::test]
async fn the_plugins_client_is_served() {
    let world = World::new(4);
    let server = world.server().await;
    let path = world.dir.path().join("cni.sock");
    let listener = bind(&path).unwrap();
    let request = world.request(Verb::Add, "a", "p");
    let ask = async |bytes: Vec<u8>| {
        let path = path.clone();
        tokio::task::spawn_blocking(move || {
            use std::io::Write;
            let mut stream = std::os::unix::net::UnixStream::connect(path).unwrap();
            stream.write_all(&bytes).unwrap();
            protocol::read::<Reply>(&mut stream).unwrap()
        })
        .await
        .unwrap()
    };
    let asked = async {
        let Reply::Ok(Some(result)) = ask(protocol::encode(&request).unwrap()).await else {
            panic!("no result")
        };
        assert_eq!(result.ips.len(), 1);
        for bad in [&[0, 0, 0, 2, b'{', b'}'][..], &[0xff; 4]] {
            let Reply::Error(error) = ask(bad.to_vec()).await else {
                panic!("it cannot be decoded")
            };
            assert_eq!(error.code, Code::Decode);
        }
    };
    server.serve(listener, asked).await;
    assert_eq!(server.endpoints()[0].phase, Phase::Attached);
}
