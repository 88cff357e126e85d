use api::{
    ClusterInformation, ClusterInformationSpec, ControllersConfig, GlobalNetworkPolicy, GlobalNetworkPolicySpec,
    KubeControllersConfiguration, Node, NodeControllerConfig, NodeSpec,
};
use datastore::{Reason, StoreError};
use serde_json::json;

use super::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).unwrap()
}

fn desk() -> Desk {
    let environment = Environment::read(&|_| None).unwrap();
    Desk::new(Abilities::default(), environment)
}

fn put(desk: &mut Desk, resource: impl Into<Resource>) {
    let resource = resource.into();
    let update = Update {
        key: resource.key(),
        value: Some(resource),
    };
    desk.sync(SyncEvent::Updates(vec![update]));
}

fn verbs(actions: &[Action]) -> Vec<&'static str> {
    actions.iter().map(Action::verb).collect()
}

const FIRST: [&str; 4] = ["create-configuration", "create-tier", "create-tier", "create-tier"];

#[test]
fn nothing_is_decided_before_the_picture_is_whole_and_the_process_leads() {
    let mut desk = desk();
    let idle = |desk: &mut Desk, why: &str| {
        assert_eq!(desk.decide(at(0)), []);
        assert_eq!(desk.next_wakeup(), None);
        assert_eq!(desk.idle(), Some(why));
    };
    idle(&mut desk, "the datastore has not been read yet");
    desk.lead();
    idle(&mut desk, "the datastore has not been read yet");
    desk.follow();
    desk.sync(SyncEvent::InSync);
    idle(&mut desk, "another process leads");
    desk.lead();
    assert_eq!(verbs(&desk.decide(at(0))), FIRST);
    desk.sync(SyncEvent::Disconnected(StoreError::Unavailable("x".into())));
    idle(&mut desk, "the datastore cannot be used");
    desk.sync(SyncEvent::InSync);
    let info = |datastore_ready| {
        let spec = ClusterInformationSpec {
            datastore_ready,
            ..ClusterInformationSpec::default()
        };
        ClusterInformation::new("default", spec)
    };
    put(&mut desk, info(Some(false)));
    idle(&mut desk, "ClusterInformation says datastoreReady: false");
    put(&mut desk, info(None));
    assert_eq!(verbs(&desk.decide(at(5))), FIRST);
}

#[test]
fn what_is_being_deleted_with_its_definition_is_let_go() {
    let check = |reason: Reason, leads: bool, finalizers: bool, expected: &[&str]| {
        let abilities = Abilities {
            finalizers,
            ..Abilities::default()
        };
        let mut desk = Desk::new(abilities, Environment::read(&|_| None).unwrap());
        desk.sync(SyncEvent::InSync);
        desk.lead();
        desk.decide(at(0));
        let doomed = |kind: &str, name: &str, finalizer: &str| {
            let spec = if kind == "IPPool" {
                json!({ "cidr": "10.0.0.0/16" })
            } else {
                json!({})
            };
            let metadata =
                json!({ "name": name, "finalizers": [finalizer], "deletionTimestamp": "2026-01-02T03:04:05Z" });
            let resource = json!({ "kind": kind, "metadata": metadata, "spec": spec });
            serde_json::from_value::<Resource>(resource).unwrap()
        };
        put(&mut desk, doomed("IPPool", "p", IP_POOL_FINALIZER));
        put(&mut desk, doomed("IPPool", "theirs", "x/y"));
        put(&mut desk, doomed("Tier", "default", TIER_FINALIZER));
        if !leads {
            desk.follow();
        }
        desk.sync(SyncEvent::Disconnected(StoreError::unavailable(reason, "x")));
        assert_eq!(desk.decide(at(1)), []);
        let again = !expected.is_empty();
        assert_eq!(desk.next_wakeup(), again.then(|| at(6)), "{reason:?}");
        for seconds in [6, 11] {
            assert_eq!(desk.decide(at(seconds - 1)), []);
            let said: Vec<String> = desk.decide(at(seconds)).iter().map(ToString::to_string).collect();
            assert_eq!(said, expected, "{reason:?}");
            assert_eq!(desk.next_wakeup(), again.then(|| at(seconds + 5)), "{reason:?}");
        }
    };
    check(
        Reason::NotInstalled,
        true,
        true,
        &["hold-pool p false", "hold-tier default false"],
    );
    check(Reason::NotInstalled, false, true, &[]);
    check(Reason::NotInstalled, true, false, &[]);
    for other in [Reason::Unavailable, Reason::Forbidden, Reason::Unreachable] {
        check(other, true, true, &[]);
    }
}

#[test]
fn it_looks_again_after_a_change_a_failure_and_by_the_clock() {
    let mut desk = desk();
    desk.sync(SyncEvent::InSync);
    desk.lead();
    desk.decide(at(0));
    // Half the initial grace period is later than the initial period of five minutes.
    assert_eq!(desk.next_wakeup(), Some(at(300)));
    assert_eq!(desk.decide(at(1)), []);
    desk.failed(at(2));
    assert_eq!(desk.next_wakeup(), Some(at(7)));
    assert_eq!(verbs(&desk.decide(at(7))), FIRST);
    put(&mut desk, Node::new("n", NodeSpec::default()));
    assert_eq!(verbs(&desk.decide(at(12))), FIRST);
}

#[test]
fn nothing_is_decided_twice_in_a_row_however_often_things_change() {
    let mut desk = desk();
    desk.sync(SyncEvent::InSync);
    desk.lead();
    assert_eq!(verbs(&desk.decide(at(0))), FIRST);
    for seconds in 1..5 {
        put(&mut desk, Node::new("n", NodeSpec::default()));
        assert_eq!(desk.decide(at(seconds)), []);
    }
    // It is not forgotten either.
    let next = desk.next_wakeup().unwrap();
    assert!(next <= at(9), "{next}");
    assert_eq!(verbs(&desk.decide(next)), FIRST);
    // Who begins to lead anew knows nothing of it.
    desk.follow();
    desk.lead();
    assert_eq!(verbs(&desk.decide(next)), FIRST);
}

#[test]
fn what_was_not_said_of_an_object_is_said_soon() {
    let mut desk = desk();
    desk.sync(SyncEvent::InSync);
    desk.lead();
    let spec = GlobalNetworkPolicySpec {
        selector: "role ==".into(),
        ..GlobalNetworkPolicySpec::default()
    };
    put(&mut desk, GlobalNetworkPolicy::new("p", spec));
    let said = |actions: Vec<Action>| actions.into_iter().find(|action| action.verb() == "judge");
    let judgement = said(desk.decide(at(0))).unwrap();
    // It was another one by then, or the datastore could not be reached; and other things change meanwhile.
    desk.not_done(&judgement);
    put(&mut desk, Node::new("n", NodeSpec::default()));
    assert_eq!(said(desk.decide(at(1))), None);
    let next = desk.next_wakeup().unwrap();
    assert!(next <= at(6), "{next}");
    assert_eq!(said(desk.decide(next)), Some(judgement));
    // Once it is said, it is not said again.
    put(&mut desk, Node::new("m", NodeSpec::default()));
    assert_eq!(said(desk.decide(at(60))), None);
}

#[test]
fn the_configuration_is_live_and_its_status_is_written() {
    let mut desk = desk();
    desk.sync(SyncEvent::InSync);
    desk.lead();
    desk.decide(at(0));
    let grace = |seconds| {
        let spec = KubeControllersConfigurationSpec {
            controllers: ControllersConfig {
                node: Some(NodeControllerConfig {
                    leak_grace_period: Some(api::Duration::from_secs(seconds)),
                    ..NodeControllerConfig::default()
                }),
                ..ControllersConfig::default()
            },
            ..KubeControllersConfigurationSpec::default()
        };
        KubeControllersConfiguration::new("default", spec)
    };
    put(&mut desk, grace(20));
    let actions = desk.decide(at(6));
    let Some(Action::WriteConfigurationStatus(status)) = actions.first() else {
        panic!("{actions:?}");
    };
    assert_eq!(desk.next_wakeup(), Some(at(16)), "twice in a grace period");
    let mut told = grace(20);
    told.status = Some(status.clone());
    put(&mut desk, told);
    assert_eq!(desk.configuration(), []);
    put(&mut desk, grace(0));
    desk.decide(at(7));
    assert_eq!(desk.settings().node.as_ref().map(|node| node.grace), Some(None));
    put(
        &mut desk,
        KubeControllersConfiguration::new("default", KubeControllersConfigurationSpec::default()),
    );
    assert_eq!(desk.settings().node, None);
}

#[test]
fn a_configuration_that_cannot_be_read_changes_nothing() {
    let config = |spec: serde_json::Value| -> Resource {
        let object = serde_json::json!({ "kind": "KubeControllersConfiguration", "metadata": { "name": "default" }, "spec": spec });
        serde_json::from_value(object).unwrap()
    };
    let node = serde_json::json!({ "hostEndpoint": { "autoCreate": "Enabled" } });
    let right = config(serde_json::json!({ "controllers": { "node": node } }));
    let wrong = config(serde_json::json!({ "controllers": 5 }));
    assert!(matches!(wrong, Resource::Wrong(_)));
    let creates = |desk: &Desk| desk.settings().node.as_ref().map(|node| node.auto_create);
    let mut desk = self::desk();
    put(&mut desk, right.clone());
    desk.sync(SyncEvent::InSync);
    put(&mut desk, wrong.clone());
    assert_eq!((creates(&desk), desk.configuration()), (Some(true), vec![]));
    // Whoever starts with it does not know whether host endpoints are to be deleted.
    let mut desk = self::desk();
    put(&mut desk, wrong);
    desk.sync(SyncEvent::InSync);
    assert_eq!((creates(&desk), desk.configuration()), (None, vec![]));
    put(&mut desk, right);
    assert_eq!(creates(&desk), Some(true));
}

#[test]
fn what_would_have_nothing_to_do_is_not_missing() {
    let missing = |endpoints_are_stored| {
        let abilities = Abilities {
            finalizers: true,
            endpoints_are_stored,
        };
        Desk::new(abilities, Environment::read(&|_| None).unwrap()).missing()
    };
    assert_eq!(missing(false), ["loadBalancer"]);
    assert_eq!(missing(true).len(), 5);
}
