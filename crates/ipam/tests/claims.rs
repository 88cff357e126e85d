//! The two-phase claim, crash point by crash point; what a steady allocation costs; limits, idle blocks, borrowing.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

mod support;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use api::{AffinityState, IpamConfigurationSpec, Key, Kind, Object};
use datastore::Update;
use ipam::{AssignIp, AutoAssign, Block, Ipam, IpamError, ReleaseAddress, ReleaseOutcome, Tunnel, TunnelKind};
use support::{Sim, at, crash_after, host, run};

fn request(node: &str, handle: &str) -> AutoAssign {
    let attributes = [("node".to_owned(), node.to_owned())].into();
    AutoAssign {
        host: node.into(),
        handle: handle.into(),
        attributes,
        ipv4: 1,
        ..AutoAssign::default()
    }
}

fn ready(pool: &str, block_size: u8, config: IpamConfigurationSpec) -> (Arc<Sim>, Ipam) {
    let sim = Sim::new(1, 0);
    sim.pool("pool", pool, block_size);
    sim.put(Object::new("default", config));
    let ipam = Ipam::new(sim.shared());
    (sim, ipam)
}

fn assign(ipam: &Ipam, now: i64, node: &str, handle: &str) -> Result<IpAddr, IpamError> {
    run(ipam.auto_assign(at(now), &request(node, handle))).map(|assigned| assigned.v4[0].addr())
}

/// What the store knows of the only block: affinities as `node:state`, then the block's owner.
fn claims(sim: &Sim) -> String {
    let affinities = sim.affinities();
    let mut words: Vec<String> = affinities.iter().map(|a| format!("{}:{:?}", a.node, a.state)).collect();
    words.extend(
        sim.blocks()
            .iter()
            .map(|block| block.affinity.clone().unwrap_or("nobody".into())),
    );
    words.join(" ")
}

/// Crashes after the n-th write of an operation on a pool of one block, for each n, and lets `next` find what was left.
fn at_each_crash(
    operation: impl Fn(&Ipam),
    polls: impl Fn(&Ipam, usize) -> bool,
    next: impl Fn(&Ipam, &Sim),
) -> Vec<String> {
    let mut seen: Vec<String> = Vec::new();
    for count in 1..200 {
        let (sim, ipam) = ready("10.0.0.0/30", 30, IpamConfigurationSpec::default());
        operation(&ipam);
        let finished = polls(&ipam, count);
        sim.check();
        let left = claims(&sim);
        if seen.last() != Some(&left) {
            seen.push(left);
        }
        next(&Ipam::new(sim.shared()), &sim);
        sim.check();
        if finished {
            return seen;
        }
    }
    panic!("the operation does not end");
}

#[test]
fn a_claim_that_was_cut_short_is_finished_by_the_same_host() {
    let seen = at_each_crash(
        |_| {},
        |ipam, polls| crash_after(polls, ipam.auto_assign(at(0), &request("a", "h1"))),
        |ipam, sim| {
            assert!(assign(ipam, 1, "a", "h2").is_ok());
            assert_eq!(claims(sim), "a:Confirmed host:a");
        },
    );
    assert_eq!(seen, ["", "a:Pending", "a:Pending host:a", "a:Confirmed host:a"]);
}

#[test]
fn a_claim_that_was_cut_short_does_not_stop_another_host() {
    at_each_crash(
        |_| {},
        |ipam, polls| crash_after(polls, ipam.auto_assign(at(0), &request("a", "h1"))),
        |ipam, sim| {
            // Borrows where the block is not idle yet, claims it where it is.
            assert!(assign(ipam, 1, "b", "h2").is_ok());
            run(ipam.release_handle(at(2), "h1")).unwrap();
            run(ipam.release_handle(at(2), "h2")).unwrap();
            assert_eq!(sim.handles(), []);
            run(ipam.repair(at(3), &host("a"))).unwrap();
            let confirmed = sim
                .affinities()
                .into_iter()
                .filter(|a| a.state == AffinityState::Confirmed)
                .count();
            assert_eq!(confirmed, 1, "{}", claims(sim));
        },
    );
}

#[test]
fn a_release_that_was_cut_short_is_finished_or_taken_back() {
    let seen = at_each_crash(
        |ipam| drop(assign(ipam, 0, "a", "h1").and_then(|_| run(ipam.release_handle(at(0), "h1")))),
        |ipam, polls| crash_after(polls, ipam.release_host_affinities(at(1), &host("a"), true)),
        |ipam, sim| {
            if claims(sim).is_empty() {
                return;
            }
            run(ipam.repair(at(2), &host("a"))).unwrap();
            assert_eq!(claims(sim), "a:Confirmed host:a");
            let outcome = run(ipam.release_host_affinities(at(3), &host("a"), true)).unwrap();
            assert_eq!(outcome[0].1, ReleaseOutcome::Deleted);
            assert_eq!(claims(sim), "");
        },
    );
    assert_eq!(
        seen,
        [
            "a:Confirmed host:a",
            "a:PendingDeletion host:a",
            "a:PendingDeletion",
            ""
        ]
    );
}

#[test]
fn a_block_in_use_is_disowned_and_goes_with_its_last_address() {
    let (sim, ipam) = ready("10.0.0.0/30", 30, IpamConfigurationSpec::default());
    assign(&ipam, 0, "a", "h1").unwrap();
    assert_eq!(
        run(ipam.release_host_affinities(at(1), &host("a"), true)).unwrap()[0].1,
        ReleaseOutcome::NotEmpty
    );
    assert_eq!(
        run(ipam.release_host_affinities(at(1), &host("a"), false)).unwrap()[0].1,
        ReleaseOutcome::Disowned
    );
    assert_eq!(claims(&sim), "nobody");
    assert_eq!(
        assign(&ipam, 2, "a", "h2").unwrap(),
        IpAddr::from([10, 0, 0, 1]),
        "borrowed from nobody"
    );
    run(ipam.release_handle(at(3), "h1")).unwrap();
    run(ipam.release_handle(at(3), "h2")).unwrap();
    assert_eq!(claims(&sim), "");
}

#[test]
fn a_lost_race_leaves_no_claim() {
    let (sim, ipam) = ready("10.0.0.0/30", 30, IpamConfigurationSpec::default());
    assign(&ipam, 0, "a", "h1").unwrap();
    let range = "10.0.0.0/30".parse().unwrap();
    assert_eq!(
        run(ipam.claim_affinity(at(1), "b", range)).unwrap(),
        (vec![], vec![range])
    );
    assert_eq!(claims(&sim), "a:Confirmed host:a");
}

#[test]
fn an_idle_block_changes_hands_after_a_minute_and_not_before() {
    let strict = IpamConfigurationSpec {
        strict_affinity: true,
        ..IpamConfigurationSpec::default()
    };
    let (sim, ipam) = ready("10.0.0.0/30", 30, strict);
    assign(&ipam, 0, "a", "h1").unwrap();
    assert!(
        matches!(assign(&ipam, 100, "b", "h2"), Err(IpamError::Exhausted { .. })),
        "in use"
    );
    run(ipam.release_handle(at(100), "h1")).unwrap();
    assert!(assign(&ipam, 100, "b", "h3").is_ok());
    assert_eq!(claims(&sim), "b:Confirmed host:b");
    run(ipam.release_handle(at(110), "h3")).unwrap();
    assert!(
        matches!(assign(&ipam, 159, "a", "h4"), Err(IpamError::Exhausted { .. })),
        "claimed 59 seconds ago"
    );
    assert!(assign(&ipam, 160, "a", "h5").is_ok());
    assert_eq!(sim.handles().len(), 1, "failed allocations leave no handle");
}

#[test]
fn a_host_at_its_limit_neither_claims_nor_borrows() {
    let config = IpamConfigurationSpec {
        max_blocks_per_host: 2,
        ..IpamConfigurationSpec::default()
    };
    let (_, ipam) = ready("10.0.0.0/28", 31, config);
    for handle in ["h1", "h2", "h3", "h4"] {
        assign(&ipam, 0, "a", handle).unwrap();
    }
    assert_eq!(assign(&ipam, 0, "a", "h5"), Err(IpamError::BlockLimit { limit: 2 }));
    let one = AutoAssign {
        max_blocks: 1,
        ..request("b", "h6")
    };
    let two = AutoAssign {
        ipv4: 3,
        handle: "h7".into(),
        ..one.clone()
    };
    run(ipam.auto_assign(at(0), &one)).unwrap();
    assert_eq!(
        run(ipam.auto_assign(at(0), &two)),
        Err(IpamError::BlockLimit { limit: 1 })
    );
    assert_eq!(
        run(ipam.ips_by_handle("h7")).unwrap(),
        [0u8; 0].map(|_| IpAddr::from([0; 4])),
        "all or nothing"
    );
}

#[test]
fn twenty_blocks_are_the_limit_where_none_is_configured() {
    let (_, ipam) = ready("10.0.0.0/24", 32, IpamConfigurationSpec::default());
    for number in 0..20 {
        assign(&ipam, 0, "a", &format!("h{number}")).unwrap();
    }
    assert_eq!(assign(&ipam, 0, "a", "more"), Err(IpamError::BlockLimit { limit: 20 }));
}

/// Reads the costs of an operation.
fn cost<T>(sim: &Sim, operation: impl FnOnce() -> T) -> Vec<String> {
    sim.take_log();
    operation();
    sim.take_log()
}

fn feed(ipam: &Ipam) {
    ipam.note(&Update {
        key: Key::cluster(Kind::Node, "a"),
        value: None,
    });
}

#[test]
fn a_steady_allocation_is_one_handle_and_one_block_write_and_no_read() {
    let (sim, ipam) = ready("10.0.0.0/16", 26, IpamConfigurationSpec::default());
    feed(&ipam);
    assign(&ipam, 0, "a", "h1").unwrap();
    let log = cost(&sim, || assign(&ipam, 0, "a", "h2").unwrap());
    assert_eq!(log, ["create IPAMHandle", "update IPAMBlock"]);
    let log = cost(&sim, || run(ipam.release_handle(at(0), "h2")).unwrap());
    assert_eq!(log, ["get IPAMHandle", "update IPAMBlock", "delete IPAMHandle"]);
    let requests: Vec<AutoAssign> = (0..50).map(|number| request("a", &format!("n{number}"))).collect();
    let log = cost(&sim, || {
        assert!(run(ipam.auto_assign_many(at(0), &requests)).iter().all(Result::is_ok))
    });
    assert_eq!(log.iter().filter(|line| *line == "create IPAMHandle").count(), 50);
    assert_eq!(
        log.iter()
            .filter(|line| *line != "create IPAMHandle")
            .collect::<Vec<_>>(),
        ["update IPAMBlock"]
    );
}

#[test]
fn pools_are_remembered_only_while_changes_are_fed_and_until_one_of_them_changes() {
    let (sim, ipam) = ready("10.0.0.0/16", 26, IpamConfigurationSpec::default());
    assign(&ipam, 0, "a", "h1").unwrap();
    let reads = |log: Vec<String>| log.iter().filter(|line| *line == "list IPPool").count();
    assert_eq!(reads(cost(&sim, || assign(&ipam, 0, "a", "h2").unwrap())), 1);
    feed(&ipam);
    assert_eq!(reads(cost(&sim, || assign(&ipam, 0, "a", "h3").unwrap())), 1);
    assert_eq!(reads(cost(&sim, || assign(&ipam, 0, "a", "h4").unwrap())), 0);
    ipam.note(&Update {
        key: Key::cluster(Kind::IPPool, "pool"),
        value: None,
    });
    assert_eq!(reads(cost(&sim, || assign(&ipam, 0, "a", "h5").unwrap())), 1);
}

#[test]
fn a_block_that_others_wrote_costs_one_conflict_and_nothing_else() {
    let (sim, ipam) = ready("10.0.0.0/30", 30, IpamConfigurationSpec::default());
    assign(&ipam, 0, "a", "h1").unwrap();
    let other = Ipam::new(sim.shared());
    let theirs = assign(&other, 0, "b", "h2").unwrap();
    let ours = assign(&ipam, 0, "a", "h3").unwrap();
    assert_ne!(ours, theirs);
    sim.check();
    assert!(
        sim.handles()
            .iter()
            .all(|handle| handle.block.values().sum::<u32>() == 1),
        "{:?}",
        sim.handles()
    );
}

#[test]
fn a_given_address_is_assigned_once_and_released_only_by_who_knows_it() {
    let (sim, ipam) = ready("10.0.0.0/28", 30, IpamConfigurationSpec::default());
    let ip = IpAddr::from([10, 0, 0, 6]);
    let wish = |handle: &str, ip| AssignIp {
        ip,
        host: "a".into(),
        handle: handle.into(),
        attributes: BTreeMap::new(),
        intended_use: api::AllowedUse::Workload,
    };
    assert_eq!(
        run(ipam.assign_ip(at(0), &wish("h1", ip))).unwrap().to_string(),
        "10.0.0.6/30"
    );
    let taken = IpamError::AlreadyAssigned {
        ip,
        by: Some("h1".into()),
    };
    assert_eq!(run(ipam.assign_ip(at(0), &wish("h2", ip))), Err(taken));
    let outside = IpAddr::from([10, 9, 0, 1]);
    assert_eq!(
        run(ipam.assign_ip(at(0), &wish("h2", outside))),
        Err(IpamError::NotInPool { ip: outside })
    );

    let block = sim.blocks().remove(0);
    let sequence = block.sequence_of(block.ordinal(ip).unwrap());
    let release = |handle: Option<&str>, sequence| {
        let address = ReleaseAddress {
            ip,
            handle: handle.map(Into::into),
            sequence,
        };
        run(ipam.release_ips(at(1), &[address])).unwrap()
    };
    for wrong in [release(Some("h2"), None), release(Some("h1"), Some(sequence + 1))] {
        assert_eq!(wrong.failed, [(ip, IpamError::SequenceMismatch { ip })]);
    }
    assert_eq!(release(Some("h1"), Some(sequence)).released, [ip]);
    assert_eq!(release(None, None).unallocated, [ip]);
    assert_eq!(sim.handles(), []);
}

#[test]
fn a_node_keeps_its_tunnel_address_and_gets_another_when_the_pool_goes() {
    let (sim, ipam) = ready("10.0.0.0/28", 30, IpamConfigurationSpec::default());
    sim.pool("second", "10.1.0.0/28", 30);
    let mut tunnel = Tunnel {
        kind: TunnelKind::Ipip,
        node: "a".into(),
        node_labels: BTreeMap::new(),
        current: None,
        pools: vec!["pool".into()],
    };
    let first = run(ipam.settle_tunnel(at(0), &tunnel)).unwrap();
    let block = sim.blocks().remove(0);
    assert_eq!(block.attributes[0].handle_id.as_deref(), Some("ipip-tunnel-addr-a"));
    assert_eq!(block.attributes[0].secondary["type"], "ipipTunnelAddress");
    tunnel.current = first;
    assert_eq!(run(ipam.settle_tunnel(at(1), &tunnel)).unwrap(), first);
    tunnel.pools = vec!["10.1.0.0/28".into()];
    let second = run(ipam.settle_tunnel(at(2), &tunnel)).unwrap().unwrap();
    assert!("10.1.0.0/28".parse::<ipnet::IpNet>().unwrap().contains(&second));
    tunnel.pools.clear();
    assert_eq!(run(ipam.settle_tunnel(at(3), &tunnel)).unwrap(), None);
    assert_eq!(sim.handles(), []);
}

#[test]
fn a_pool_that_may_not_give_a_tunnel_address_does_not_keep_others_from_it() {
    let (sim, ipam) = ready("10.0.0.0/28", 30, IpamConfigurationSpec::default());
    let change = |name: &str, cidr: &str, change: fn(&mut api::IpPoolSpec)| {
        let mut spec = api::IpPoolSpec::new(cidr.parse().unwrap());
        spec.block_size = Some(30);
        change(&mut spec);
        sim.put(api::resource::IpPool::new(name, spec));
    };
    change("disabled", "10.1.0.0/28", |spec| spec.disabled = true);
    change("elsewhere", "10.2.0.0/28", |spec| {
        spec.node_selector = Some("rack == 'b'".into())
    });
    change("workloads", "10.3.0.0/28", |spec| {
        spec.allowed_uses = vec![api::AllowedUse::Workload]
    });
    let unusable: Vec<String> = ["disabled", "elsewhere", "workloads"].map(String::from).into();
    let mut tunnel = Tunnel {
        kind: TunnelKind::Ipip,
        node: "a".into(),
        node_labels: BTreeMap::new(),
        current: None,
        pools: [unusable.clone(), vec!["pool".into()]].concat(),
    };
    let given = run(ipam.settle_tunnel(at(0), &tunnel)).unwrap().unwrap();
    assert!("10.0.0.0/28".parse::<ipnet::IpNet>().unwrap().contains(&given));
    tunnel.pools = unusable;
    assert_eq!(run(ipam.settle_tunnel(at(1), &tunnel)).unwrap(), None);
}

#[test]
fn blocks_of_another_size_are_never_overlapped() {
    let (sim, ipam) = ready("10.0.0.0/27", 28, IpamConfigurationSpec::default());
    assign(&ipam, 0, "a", "h1").unwrap();
    let old = sim.blocks()[0].cidr;
    support::now_or_never(datastore::Store::delete(
        &sim.inner,
        &Key::cluster(Kind::IPPool, "pool"),
        None,
    ))
    .unwrap();
    sim.pool("smaller", "10.0.0.0/27", 30);
    for number in 0..8 {
        assign(&ipam, 0, "b", &format!("b{number}")).unwrap();
    }
    assert!(
        sim.blocks()
            .iter()
            .skip(1)
            .all(|block| !old.contains(&block.cidr) || block.cidr == old)
    );
    sim.check();
}

#[test]
fn reserved_addresses_are_not_handed_out_unless_they_are_asked_for() {
    let (sim, ipam) = ready("10.0.0.0/30", 30, IpamConfigurationSpec::default());
    let reserved_cidrs = vec!["10.0.0.0/31".parse().unwrap()];
    sim.put(api::IpReservation::new("r", api::IpReservationSpec { reserved_cidrs }));
    let got = [2, 3].map(|number| assign(&ipam, 0, "a", &format!("h{number}")).unwrap().to_string());
    assert_eq!(got, ["10.0.0.2", "10.0.0.3"]);
    assert!(matches!(
        assign(&ipam, 0, "a", "h4"),
        Err(IpamError::Exhausted { .. } | IpamError::BlockLimit { .. })
    ));
    let asked = AssignIp {
        ip: "10.0.0.1".parse().unwrap(),
        host: "a".into(),
        handle: "h5".into(),
        attributes: BTreeMap::new(),
        intended_use: api::AllowedUse::Workload,
    };
    assert!(run(ipam.assign_ip(at(0), &asked)).is_ok());
    let uses = run(ipam.utilization(at(0))).unwrap();
    assert_eq!((uses[0].in_use, uses[0].reserved, uses[0].available), (3, 1, 0));

    // Who is fed with changes hears of a reservation that goes.
    let key = Key::cluster(Kind::IPReservation, "r");
    support::now_or_never(datastore::Store::delete(&sim.inner, &key, None)).unwrap();
    ipam.note(&Update { key, value: None });
    assert_eq!(assign(&ipam, 1, "a", "h6").unwrap().to_string(), "10.0.0.0");
}

#[test]
fn a_handle_goes_as_an_idle_one_only_if_it_holds_nothing() {
    let (sim, ipam) = ready("10.0.0.0/30", 30, IpamConfigurationSpec::default());
    let held = assign(&ipam, 0, "a", "h1").unwrap();
    let spec = api::IpamHandleSpec {
        handle_id: "idle".into(),
        block: [("10.0.0.0/30".to_owned(), 1), ("10.9.0.0/30".to_owned(), 1)].into(),
        deleted: false,
    };
    sim.put(api::resource::IpamHandle::new("idle", spec));
    let before = sim.blocks()[0].sequence_number;
    assert_eq!(run(ipam.release_idle_handle(at(1), "h1")), Ok(false));
    assert_eq!(run(ipam.release_idle_handle(at(1), "idle")), Ok(true));
    assert_eq!(run(ipam.release_idle_handle(at(1), "nobody")), Ok(true));
    assert_eq!(sim.handles().len(), 1);
    assert_eq!(run(ipam.ips_by_handle("h1")), Ok(vec![held]));
    assert!(
        sim.blocks()[0].sequence_number > before,
        "a write of the block that was under way fails"
    );
    sim.check();
}
