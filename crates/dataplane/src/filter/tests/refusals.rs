//! How little a change writes, what a start does, and what happens when the kernel says no.

use std::sync::Arc;

use api::Action;
use kernel::nft::{BaseChain, Cause, Change, FakeNft, NftError, Transaction};
use policy::*;

use super::build::*;
use super::path::open_pods;
use crate::filter::interpret::{Decision, journey};
use crate::filter::refused::Concerns;
use crate::filter::{Filter, Table};

/// The open pods, with a policy that lets `web` reach `cali1`, in the kernel.
fn settled() -> (Filter, FakeNft) {
    let mut state = open_pods();
    state
        .sets
        .insert(set("web"), nets(&["10.0.0.2", "10.0.0.3", "fd00::2"]));
    let web = Side {
        sets: vec![set("web")],
        ..Side::default()
    };
    let allow = Rule {
        source: web,
        ..rule(Action::Allow)
    };
    put_policy(&mut state, np("a"), policy(vec![allow], vec![]));
    let mut pod = Endpoint::clone(&state.endpoints[&wep("cali1")]);
    pod.ingress = tier("default", &[np("a")], TierEnd::Deny);
    state.endpoints.insert(wep("cali1"), Arc::new(pod));
    let (mut filter, kernel) = (filter(&state), FakeNft::new());
    settle(&mut filter, &kernel);
    (filter, kernel)
}

/// The changes that the filter makes now, in words.
fn check(filter: &mut Filter, kernel: &FakeNft, expected: &[&str]) {
    let done = settle(filter, kernel);
    let changes: Vec<String> = done
        .iter()
        .flat_map(|transaction| &transaction.changes)
        .map(ToString::to_string)
        .collect();
    assert_eq!(changes, expected);
    assert!(done.len() <= 1);
}

fn there(kernel: &FakeNft) -> Table {
    Table::seen(&kernel.seen(&table()).unwrap()).unwrap()
}

#[test]
fn a_member_more_touches_no_rule() {
    let (mut filter, kernel) = settled();
    filter.policy(PolicyChange::Members(
        set("web"),
        members(&["10.0.0.4"]),
        members(&["10.0.0.3"]),
    ));
    check(
        &mut filter,
        &kernel,
        &[
            "delete 1 elements from set cali-set4-web",
            "add 1 elements to set cali-set4-web",
        ],
    );
    check(&mut filter, &kernel, &[]);
}

#[test]
fn a_policys_rule_touches_its_chain_alone() {
    let (mut filter, kernel) = settled();
    let new = policy(vec![rule(Action::Deny)], vec![]);
    filter.policy(PolicyChange::Policy(np("a"), Some(Arc::new(new.clone()))));
    check(
        &mut filter,
        &kernel,
        &[
            "flush chain cali-pi-np/default/a",
            "add rule to chain cali-pi-np/default/a (deny NetworkPolicy default/a ingress 0)",
        ],
    );
    let more = policy(vec![rule(Action::Deny), rule(Action::Allow)], vec![]);
    filter.policy(PolicyChange::Policy(np("a"), Some(Arc::new(more))));
    check(
        &mut filter,
        &kernel,
        &["add rule to chain cali-pi-np/default/a (allow NetworkPolicy default/a ingress 1)"],
    );
    // Nothing that a packet would notice.
    let same = Policy {
        selector: "has(web)".to_owned(),
        ..policy(vec![rule(Action::Deny), rule(Action::Allow)], vec![])
    };
    filter.policy(PolicyChange::Policy(np("a"), Some(Arc::new(same))));
    check(&mut filter, &kernel, &[]);
}

#[test]
fn a_set_that_gets_a_prefix_becomes_another_in_the_same_transaction() {
    let (mut filter, kernel) = settled();
    let before = there(&kernel);
    filter.policy(PolicyChange::Members(
        set("web"),
        members(&["10.1.0.0/16"]),
        members(&[]),
    ));
    check(
        &mut filter,
        &kernel,
        &[
            "add set cali-nets4-web",
            "flush chain cali-pi-np/default/a",
            "add 3 elements to set cali-nets4-web",
            "add rule to chain cali-pi-np/default/a (allow NetworkPolicy default/a ingress 0)",
            "add rule to chain cali-pi-np/default/a (allow NetworkPolicy default/a ingress 0)",
            "delete set cali-set4-web",
        ],
    );
    filter.policy(PolicyChange::Members(
        set("web"),
        members(&[]),
        members(&["10.1.0.0/16"]),
    ));
    settle(&mut filter, &kernel);
    assert_eq!(there(&kernel), before);
}

#[test]
fn a_new_pod_is_three_elements() {
    let (mut filter, kernel) = settled();
    let pod = Endpoint {
        profiles: vec!["open".into()],
        ..pod("cali3", &["10.0.0.3"])
    };
    filter.policy(PolicyChange::Endpoint(wep("cali3"), Some(Arc::new(pod))));
    assert!(!filter.is_enforced(&wep("cali3")));
    let elements = |did: &str| {
        let sets = ["cali-from-endpoint", "cali-sources4", "cali-to-endpoint"];
        sets.map(|set| format!("{did} set {set}"))
    };
    let come = elements("add 1 elements to");
    check(&mut filter, &kernel, &come.each_ref().map(String::as_str));
    assert!(filter.is_enforced(&wep("cali3")));
    filter.policy(PolicyChange::Endpoint(wep("cali3"), None));
    let go = elements("delete 1 elements from");
    check(&mut filter, &kernel, &go.each_ref().map(String::as_str));
}

#[test]
fn a_pod_has_a_chain_where_its_profile_does_not_decide_alone() {
    let (mut filter, kernel) = settled();
    let chains = |filter: &mut Filter| {
        let table = filter.table();
        let own = |name: &&kernel::nft::ChainName| name.0.starts_with("cali-fw-") || name.0.starts_with("cali-tw-");
        table
            .chains
            .keys()
            .filter(own)
            .map(|name| name.0.clone())
            .collect::<Vec<_>>()
    };
    // `cali1` has a policy for what comes in.
    assert_eq!(chains(&mut filter), ["cali-tw-cali1"]);
    let tcp = Rule {
        protocol: Some(6),
        ..rule(Action::Allow)
    };
    let profile = |egress: &[Rule]| Profile {
        ingress: [rule(Action::Allow)].into(),
        egress: egress.into(),
        ..Profile::default()
    };
    filter.policy(PolicyChange::Profile(
        "open".into(),
        Some(Arc::new(profile(std::slice::from_ref(&tcp)))),
    ));
    assert_eq!(chains(&mut filter), ["cali-fw-cali1", "cali-fw-cali2", "cali-tw-cali1"]);
    assert_eq!(settle(&mut filter, &kernel).len(), 1, "all at once");
    filter.policy(PolicyChange::Profile(
        "open".into(),
        Some(Arc::new(profile(&[tcp, rule(Action::Deny)]))),
    ));
    assert_eq!(chains(&mut filter), ["cali-tw-cali1"]);
    assert_eq!(settle(&mut filter, &kernel).len(), 1);
    filter.policy(PolicyChange::Profile("open".into(), None));
    assert_eq!(chains(&mut filter).len(), 4);
    assert_eq!(settle(&mut filter, &kernel).len(), 1);
    assert_eq!(there(&kernel), filter.table());
}

#[test]
fn a_start_without_a_table_closes_pods_until_policy_is_known() {
    let (mut filter, kernel) = (Filter::default(), FakeNft::new());
    assert_eq!(filter.transaction(), None);
    settle(&mut filter, &kernel);
    let packet = packet("cali1", "10.0.0.1", "cali2", "10.0.0.2", 80);
    assert_eq!(journey(&there(&kernel), &packet).decision, Decision::Dropped);
    changes(&open_pods())
        .into_iter()
        .for_each(|change| filter.policy(change));
    settle(&mut filter, &kernel);
    assert_eq!(journey(&there(&kernel), &packet).decision, Decision::Accepted);
}

#[test]
fn a_table_that_no_agent_has_made_counts_as_none_and_what_is_in_it_goes() {
    let chain = |name: &str, base: Option<BaseChain>| {
        let name = name.into();
        Change::AddChain(kernel::nft::Chain { name, base })
    };
    let hooked = BaseChain {
        kind: kernel::nft::ChainKind::Filter,
        hook: kernel::nft::Hook::Forward,
        priority: 0,
        drop: false,
    };
    for foreign in [
        vec![chain("mine", None), Change::DeleteChain("mine".into())],
        vec![chain("mine", Some(hooked))],
        // As ours are called, but the kernel never calls it, or there is no rule in it.
        vec![chain("filter-FORWARD", None)],
        vec![chain("filter-FORWARD", Some(hooked))],
    ] {
        let (mut filter, kernel) = (Filter::default(), FakeNft::new());
        let transaction = Transaction {
            table: table(),
            changes: foreign,
        };
        kernel.stranger().apply_now(&transaction).unwrap();
        filter.observed(kernel.seen(&table()).as_ref());
        assert_eq!(settle(&mut filter, &kernel).len(), 1, "{transaction:?}");
        assert_eq!(there(&kernel), filter.table(), "{transaction:?}");
        let packet = packet("cali1", "10.0.0.1", "cali2", "10.0.0.2", 80);
        assert_eq!(journey(&there(&kernel), &packet).decision, Decision::Dropped);
    }
}

#[test]
fn a_restart_changes_nothing_before_it_knows_and_nothing_after_if_all_is_well() {
    let (old, kernel) = settled();
    let before = there(&kernel);
    drop(old);
    let mut filter = Filter::default();
    filter.observed(kernel.seen(&table()).as_ref());
    assert_eq!(filter.transaction(), None);
    let mut state = open_pods();
    let all = changes(&state);
    all.into_iter().for_each(|change| filter.policy(change));
    assert_eq!(filter.transaction(), None);
    assert_eq!(there(&kernel), before);
    // The policy has gone in the meantime: one transaction, and that is all.
    filter.in_sync();
    assert_eq!(settle(&mut filter, &kernel).len(), 1);

    let mut again = Filter::default();
    again.observed(kernel.seen(&table()).as_ref());
    state.endpoints.clear();
    changes(&open_pods())
        .into_iter()
        .for_each(|change| again.policy(change));
    again.in_sync();
    assert_eq!(again.transaction(), None);
}

#[test]
fn what_others_do_to_the_table_is_put_right_at_once() {
    let (mut filter, kernel) = settled();
    let before = there(&kernel);
    let stranger = |changes: Vec<Change>| {
        let transaction = Transaction {
            table: table(),
            changes,
        };
        kernel.stranger().apply_now(&transaction).unwrap();
    };
    stranger(vec![Change::DeleteTable]);
    filter.observed(None);
    assert_eq!(settle(&mut filter, &kernel).len(), 1);
    assert_eq!(there(&kernel), before);

    stranger(vec![
        Change::FlushChain("cali-tw-cali1".into()),
        Change::FlushSet("cali-set4-web".into()),
    ]);
    filter.observed(kernel.seen(&table()).as_ref());
    assert_eq!(settle(&mut filter, &kernel).len(), 1);
    assert_eq!(there(&kernel), before);
}

/// What a kernel answers that does not take a change.
fn refusal(transaction: &Transaction, picks: impl Fn(&Change) -> bool, cause: Cause) -> Option<NftError> {
    let change = transaction.changes.iter().position(picks)?;
    Some(NftError::Refused {
        change: Some(change),
        what: transaction.changes[change].to_string(),
        cause,
        reason: "Invalid argument".to_owned(),
        errno: 22,
    })
}

#[test]
fn a_policy_that_the_kernel_refuses_is_closed_alone() {
    let (mut filter, kernel) = settled();
    let bad = policy(vec![rule(Action::Allow)], vec![]);
    filter.policy(PolicyChange::Policy(np("a"), Some(Arc::new(bad))));
    filter.policy(PolicyChange::Members(set("web"), members(&["10.0.0.9"]), members(&[])));
    let transaction = filter.transaction().unwrap();
    let error = refusal(
        &transaction,
        |change| matches!(change, Change::AddRule(..)),
        Cause::Malformed,
    )
    .unwrap();
    filter.done(Err(error));
    settle(&mut filter, &kernel);
    let problems = filter.problems();
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].concerns, Concerns::Policy(np("a")));
    assert!(
        problems[0].reason.contains("Invalid argument"),
        "{}",
        problems[0].reason
    );
    let to = |device: &str, address: &str| packet("eth0", "10.0.0.3", device, address, 80);
    assert_eq!(
        journey(&there(&kernel), &to("cali1", "10.0.0.1")).decision,
        Decision::Dropped
    );
    assert_eq!(
        journey(&there(&kernel), &to("cali2", "10.0.0.2")).decision,
        Decision::Accepted
    );
    // It is written again, and the kernel likes it.
    let good = policy(vec![rule(Action::Allow), rule(Action::Allow)], vec![]);
    filter.policy(PolicyChange::Policy(np("a"), Some(Arc::new(good))));
    settle(&mut filter, &kernel);
    assert_eq!(filter.problems(), Vec::new());
    assert_eq!(
        journey(&there(&kernel), &to("cali1", "10.0.0.1")).decision,
        Decision::Accepted
    );
}

#[test]
fn a_set_that_the_kernel_refuses_closes_its_users_and_keeps_its_members() {
    let (mut filter, kernel) = settled();
    let before = there(&kernel);
    filter.policy(PolicyChange::Members(set("web"), members(&["10.0.0.9"]), members(&[])));
    let transaction = filter.transaction().unwrap();
    let error = refusal(
        &transaction,
        |change| matches!(change, Change::AddElements(..)),
        Cause::Resources,
    )
    .unwrap();
    filter.done(Err(error));
    settle(&mut filter, &kernel);
    let concerns: Vec<Concerns> = filter.problems().into_iter().map(|problem| problem.concerns).collect();
    assert_eq!(concerns, [Concerns::Policy(np("a")), Concerns::Set(set("web"))]);
    assert!(!there(&kernel).sets.contains_key(&"cali-set4-web".into()));
    let packet = packet("eth0", "10.0.0.3", "cali1", "10.0.0.1", 80);
    assert_eq!(journey(&there(&kernel), &packet).decision, Decision::Dropped);
    filter.policy(PolicyChange::Members(set("web"), members(&[]), members(&["10.0.0.9"])));
    settle(&mut filter, &kernel);
    assert_eq!(filter.problems(), Vec::new());
    assert_eq!(there(&kernel), before);
}

#[test]
fn a_picture_that_may_be_wrong_is_looked_at_first() {
    let (mut filter, kernel) = settled();
    filter.policy(PolicyChange::Members(set("web"), members(&["10.0.0.9"]), members(&[])));
    let is_add = |change: &Change| matches!(change, Change::AddElements(..));
    let transaction = filter.transaction().unwrap();
    filter.done(Err(refusal(&transaction, is_add, Cause::Absent).unwrap()));
    assert!(filter.wants_look());
    assert_eq!(filter.transaction(), None);
    filter.observed(kernel.seen(&table()).as_ref());
    let transaction = filter.transaction().unwrap();
    filter.done(Err(refusal(&transaction, is_add, Cause::Absent).unwrap()));
    // Now it is certain.
    assert!(!filter.wants_look());
    settle(&mut filter, &kernel);
    assert_eq!(filter.problems().len(), 2);
    filter.retry();
    settle(&mut filter, &kernel);
    assert_eq!(filter.problems(), Vec::new());
}

#[test]
fn if_nobody_can_be_blamed_nothing_is_tried_until_something_changes() {
    let (mut filter, kernel) = settled();
    filter.policy(PolicyChange::Members(set("web"), members(&["10.0.0.9"]), members(&[])));
    assert!(filter.transaction().is_some());
    filter.done(Err(NftError::Refused {
        change: None,
        what: "all of it".to_owned(),
        cause: Cause::TooDeep,
        reason: "Too many links".to_owned(),
        errno: 31,
    }));
    assert_eq!(filter.transaction(), None);
    assert_eq!(filter.problems()[0].concerns, Concerns::Table);
    filter.policy(PolicyChange::Members(set("web"), members(&["10.0.0.8"]), members(&[])));
    assert_eq!(settle(&mut filter, &kernel).len(), 1);
    assert_eq!(filter.problems(), Vec::new());
}

#[test]
fn a_chain_of_the_table_that_the_kernel_refuses_closes_pods_but_not_the_host() {
    let (mut filter, kernel) = (super::build::filter(&open_pods()), FakeNft::new());
    let transaction = filter.transaction().unwrap();
    let is_it = |change: &Change| matches!(change, Change::AddRule(chain, _) if chain.0 == "filter-FORWARD");
    filter.done(Err(refusal(&transaction, is_it, Cause::Unsupported).unwrap()));
    settle(&mut filter, &kernel);
    assert_eq!(filter.problems()[0].concerns, Concerns::Chain("filter-FORWARD".into()));
    let forward = |from: &str| journey(&there(&kernel), &packet(from, "10.0.0.1", "eth1", "192.0.2.9", 80)).decision;
    assert_eq!(forward("cali1"), Decision::Dropped);
    assert_eq!(forward("eth0"), Decision::Accepted);
    let bases: Vec<BaseChain> = there(&kernel).chains.values().filter_map(|chain| chain.base).collect();
    assert!(bases.iter().all(|base| !base.drop));
}

#[test]
fn a_device_that_two_endpoints_claim_is_whose_address_the_journal_says() {
    let mut state = PolicyState::default();
    let other = EndpointId::Workload(api::Key::namespaced(api::Kind::WorkloadEndpoint, "default", "z"));
    state
        .endpoints
        .insert(wep("cali1"), Arc::new(pod("cali1", &["10.0.0.1"])));
    state
        .endpoints
        .insert(other.clone(), Arc::new(pod("cali1", &["10.0.0.2"])));
    let mut filter = filter(&state);
    filter.table();
    assert_eq!(filter.problems()[0].concerns, Concerns::Endpoint(other));
    let local = crate::LocalEndpoint {
        device: kernel::IfName::from("cali1"),
        addresses: vec![ip("10.0.0.2")],
        fresh: false,
    };
    filter.endpoint("pod".into(), Some(local));
    filter.table();
    assert_eq!(filter.problems()[0].concerns, Concerns::Endpoint(wep("cali1")));
}
