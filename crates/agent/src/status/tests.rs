use dataplane::{Counts, Dataplane, FailedItem};
use datastore::Reason;
use kernel::{IfName, KernelError};

use super::*;

/// A node on which all is well but its one peer, with changes.
pub(crate) fn parts(
    change: impl FnOnce(&mut Identity, &mut DataplaneReport, &mut BgpReport),
) -> (Identity, DataplaneReport, BgpReport) {
    let mut identity = Identity::new("me", Timestamp::UNIX_EPOCH, ProbeSummary::default());
    identity.addresses = Ok(OwnAddresses::default());
    (identity.registered, identity.cni) = (Ok(()), Ok(()));
    let dataplane = Dataplane::new(dataplane::Config {
        node: "me".into(),
        interface_prefix: "cali".into(),
        tunnel: IfName::from("tunl0"),
        ipip_flavour: None,
    });
    let mut loops = DataplaneReport {
        sync: SyncState::InSync,
        synced: true,
        recalled: false,
        dataplane: dataplane.status(),
        filter: FilterReport {
            applied: crate::packet_filter::Applied {
                looks: 1,
                ..Default::default()
            },
            ..FilterReport::default()
        },
        problems: Vec::new(),
        applied: Applied {
            observations: 1,
            ..Applied::default()
        },
        work: Work::WithBgp,
        state: calc::NodeState::default(),
    };
    let mut bgp = BgpReport {
        running: true,
        listen_error: None,
        peers: vec![peer("Mesh_10_0_0_8", "Active")],
        routes: 5,
        ..BgpReport::default()
    };
    change(&mut identity, &mut loops, &mut bgp);
    (identity, loops, bgp)
}

pub(crate) fn report(change: impl FnOnce(&mut Identity, &mut DataplaneReport, &mut BgpReport)) -> Report {
    let (identity, loops, bgp) = parts(change);
    Report::assemble(&identity, loops, bgp, None, None)
}

pub(crate) fn peer(name: &str, state: &str) -> BgpPeerReport {
    BgpPeerReport {
        name: name.into(),
        address: "10.0.0.8".into(),
        state: state.into(),
        since_seconds: 3725,
        info: None,
        received: 3,
        advertised: 1,
    }
}

/// What a change makes of one condition, `ok reason: message` or `! reason: message`, and whether the node is ready then.
#[track_caller]
fn check(
    condition: &str,
    change: impl FnOnce(&mut Identity, &mut DataplaneReport, &mut BgpReport),
    expected: &str,
    ready: bool,
) {
    let report = report(change);
    let found = report
        .conditions
        .iter()
        .find(|found| found.name == condition)
        .expect("it is there");
    let got = format!(
        "{} {}: {}",
        if found.ok { "ok" } else { "!" },
        found.reason,
        found.message
    );
    assert_eq!((got.as_str(), report.ready), (expected, ready), "{condition}");
}

#[test]
fn sessions_that_are_down_are_no_reason_to_be_unready() {
    check("BGP", |_, _, _| {}, "! PeersDown: 0 of 1 sessions established", true);
    let up = |_: &mut Identity, _: &mut DataplaneReport, bgp: &mut BgpReport| bgp.peers[0].state = "Established".into();
    check("BGP", up, "ok Established: 1 of 1 sessions established", true);
    check(
        "BGP",
        |_, _, bgp| bgp.peers.clear(),
        "ok Established: 0 of 0 sessions established",
        true,
    );
    check(
        "BGP",
        |_, _, bgp| bgp.running = false,
        "! NotConfigured: the speaker has no configuration yet",
        true,
    );
    check(
        "BGP",
        |_, _, bgp| bgp.listen_error = Some("port taken".into()),
        "! CannotListen: port taken",
        true,
    );
}

#[test]
fn a_datastore_that_was_read_once_may_go() {
    check(
        "Datastore",
        |_, _, _| {},
        "ok InSync: the datastore has been read; changes follow",
        true,
    );
    let gone = || SyncState::Disconnected(StoreError::Unavailable("no route".into()));
    check(
        "Datastore",
        |_, loops, _| loops.sync = gone(),
        "! Disconnected: working from what was read: the datastore is not available: no route",
        true,
    );
    check(
        "Datastore",
        |_, loops, _| (loops.sync, loops.synced) = (gone(), false),
        "! Unreachable: the datastore is not available: no route",
        false,
    );
    let expired = || SyncState::Disconnected(StoreError::unavailable(Reason::Unauthorized, "expired"));
    check(
        "Datastore",
        |_, loops, _| loops.sync = expired(),
        "! Unauthorized: working from what was read: the datastore is not available: expired",
        true,
    );
    check(
        "Datastore",
        |_, loops, _| (loops.sync, loops.synced, loops.recalled) = (expired(), false, true),
        "! Unauthorized: going on from what an earlier agent knew: the datastore is not available: expired",
        false,
    );
    check(
        "Datastore",
        |_, loops, _| (loops.sync, loops.synced) = (SyncState::Connecting, false),
        "! Connecting: the datastore has not been read yet",
        false,
    );
}

#[test]
fn a_watch_that_is_broken_is_said_before_it_gives_up() {
    let (identity, loops, bgp) = parts(|_, _, _| {});
    let trouble = Trouble::new(Reason::TooSlow, "no answer");
    let report = Report::assemble(&identity, loops, bgp, None, Some(&trouble));
    let datastore = report.conditions.iter().find(|one| one.name == "Datastore");
    let datastore = datastore.expect("it is always there");
    assert_eq!(
        (datastore.reason.as_str(), datastore.message.as_str(), report.ready),
        ("TooSlow", "working from what was read: no answer", true)
    );
}

#[test]
fn the_kernel_must_be_as_wanted() {
    check(
        "Dataplane",
        |_, _, _| {},
        "ok Programmed: the kernel is as wanted",
        true,
    );
    check(
        "Dataplane",
        |_, loops, _| loops.applied.observations = 0,
        "! NotObserved: the kernel's state has not been read yet",
        false,
    );
    let failed = |_: &mut Identity, loops: &mut DataplaneReport, _: &mut BgpReport| {
        loops.dataplane.failed.push(FailedItem {
            what: "route to 10.0.0.0/26".into(),
            why: KernelError::Unsupported("blackholes".into()),
        });
    };
    check(
        "Dataplane",
        failed,
        "! OperationsFailed: 1 objects could not be programmed; see problems",
        false,
    );
    assert_eq!(
        report(failed).problems,
        ["route to 10.0.0.0/26: this kernel cannot: blackholes"]
    );
}

#[test]
fn what_start_up_has_to_do_is_required_but_for_the_tunnel() {
    check(
        "Address",
        |it, _, _| it.addresses = Err("none found".into()),
        "! NotFound: none found",
        false,
    );
    check(
        "Registered",
        |it, _, _| it.registered = Err((&AgentError::Connect("refused".into())).into()),
        "! NotRegistered: datastore: refused",
        false,
    );
    let forbidden = AgentError::Store(StoreError::unavailable(Reason::Forbidden, "no permission"));
    check(
        "Registered",
        |it, _, _| it.registered = Err((&forbidden).into()),
        "! Forbidden: datastore: the datastore is not available: no permission",
        false,
    );
    check(
        "CNI",
        |it, _, _| it.cni = Err("no socket".into()),
        "! NotServing: no socket",
        false,
    );
    check(
        "TunnelIP",
        |it, _, _| it.tunnel = Err("all pools are full".into()),
        "! NotSettled: all pools are full",
        true,
    );
    let fresh = |it: &mut Identity, _: &mut DataplaneReport, _: &mut BgpReport| {
        *it = Identity::new("me", Timestamp::UNIX_EPOCH, ProbeSummary::default());
    };
    check("Registered", fresh, "! NotRegistered: not registered yet", false);
}

#[test]
fn a_report_survives_the_wire() {
    let before = report(|_, loops, _| {
        loops.dataplane.routes.insert(
            RouteClass::Bgp,
            Counts {
                wanted: 3,
                programmed: 2,
                failed: 1,
            },
        );
    });
    let text = serde_json::to_string(&before).expect("it has a JSON form");
    let after: Report = serde_json::from_str(&text).expect("it reads back");
    assert_eq!(serde_json::to_string(&after).expect("it has a JSON form"), text);
    let class = after
        .kernel
        .iter()
        .find(|class| class.class == "bgp routes")
        .expect("it is there");
    assert_eq!((class.wanted, class.installed, class.failed), (3, 2, 1));
}
