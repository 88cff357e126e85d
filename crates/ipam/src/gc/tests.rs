use super::*;
use crate::Reservations;

const GRACE: SignedDuration = SignedDuration::from_mins(15);

fn at(minutes: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + minutes * 60).unwrap()
}

/// Allocations as lines `handle key=value …`, in one block of node `n1`.
fn block(lines: &[&str]) -> IpamBlockSpec {
    let mut block = IpamBlockSpec::create("10.0.0.0/26".parse().unwrap(), &Owner::Host("n1".into()), at(0));
    for line in lines {
        let mut words = line.split_whitespace();
        let handle = words.next().map(str::to_owned);
        let secondary = words
            .map(|word| word.split_once('=').unwrap())
            .map(|(k, v)| (k.into(), v.into()))
            .collect();
        let holder = AllocationAttribute {
            handle_id: handle,
            secondary,
            ..AllocationAttribute::default()
        };
        block.take(1, &holder, &Reservations::default());
    }
    block
}

/// Nodes `n1`, `n2`; pods as lines `namespace/name node address…`.
fn evidence(pods: &[&str]) -> Evidence {
    let mut evidence = Evidence {
        nodes: ["n1".to_owned(), "n2".to_owned()].into(),
        ..Evidence::default()
    };
    for line in pods {
        let mut words = line.split_whitespace();
        let (namespace, name) = words.next().unwrap().split_once('/').unwrap();
        let node = words.next().map(str::to_owned);
        let addresses = words.map(|word| word.parse().unwrap()).collect();
        evidence
            .pods
            .entry((namespace.into(), name.into()))
            .or_default()
            .push(Pod { node, addresses });
    }
    evidence
}

/// What is released now, what after a minute, and what after the grace period.
fn check(lines: &[&str], pods: &[&str], at_once: &str, soon: &str, later: &str) {
    let (blocks, evidence) = ([block(lines)], evidence(pods));
    let seen = Snapshot {
        blocks: &blocks,
        handles: &[],
        cooldown: SignedDuration::ZERO,
    };
    let mut collector = Collector::default();
    for (now, expected) in [(at(0), at_once), (at(1), soon), (at(14), soon), (at(15), later)] {
        let decision = collector.decide(now, GRACE, seen, &evidence);
        let text: Vec<String> = (decision.addresses.iter())
            .map(|doomed| {
                let ordinal = blocks[0].ordinal(doomed.address.ip).unwrap().0;
                format!(
                    "{}:{ordinal}:{:?}",
                    doomed.address.handle.as_deref().unwrap(),
                    doomed.reason
                )
            })
            .collect();
        assert_eq!(text.join(" "), expected, "at {now}");
    }
}

const POD: &str = "h1 node=n1 namespace=default pod=a";

#[test]
fn a_pods_address_lives_while_the_pod_runs_there_and_has_it() {
    check(&[POD], &["default/a n1 10.0.0.0"], "", "", "");
    check(&[POD], &["default/a n1 10.0.0.9 10.0.0.0"], "", "", "");
    check(&[POD], &["default/a n1"], "", "", "");
    check(&[POD], &["default/a n1 10.0.0.9"], "", "", "h1:0:NotThePodsAddress");
    check(&[POD], &["default/a n2 10.0.0.0"], "", "", "h1:0:PodElsewhere");
    check(&[POD], &["default/a n2 10.0.0.9", "default/a n1 10.0.0.0"], "", "", "");
    check(
        &[POD],
        &["default/a n2 10.0.0.0", "default/a n1 10.0.0.9"],
        "",
        "",
        "h1:0:NotThePodsAddress",
    );
    check(&[POD], &[], "", "", "h1:0:PodGone");
}

#[test]
fn an_address_for_another_plugin_lives_as_long_as_anybody_knows_better() {
    let check = |line: &str, pods: &[&str], others_pods: bool, expected: &[Reason]| {
        let blocks = [block(&[line])];
        let evidence = Evidence {
            others_pods,
            ..evidence(pods)
        };
        let seen = Snapshot {
            blocks: &blocks,
            handles: &[],
            cooldown: SignedDuration::ZERO,
        };
        let mut collector = Collector::default();
        collector.decide(at(0), GRACE, seen, &evidence);
        let doomed = collector.decide(at(60), GRACE, seen, &evidence).addresses;
        let reasons: Vec<Reason> = doomed.iter().map(|doomed| doomed.reason).collect();
        assert_eq!(reasons, expected, "{line} {pods:?} {others_pods}");
        let still = still_leaked(&blocks, &doomed, &evidence);
        assert!(still, "what was judged is judged so again");
    };
    let (here, there) = ("h1 node=n1 address-alone=true", "h1 node=gone address-alone=true");
    let of = |line: &str| format!("{line} namespace=default pod=a");
    // Endpoints say nothing of such a pod.
    check(&of(here), &[], false, &[]);
    check(&of(here), &["default/a n1 10.0.0.9"], false, &[]);
    check(&of(there), &[], false, &[Reason::NodeGone]);
    // Kubernetes does, but not which addresses it has besides the first.
    check(&of(here), &["default/a n1 10.0.0.9"], true, &[]);
    check(&of(here), &["default/a n2 10.0.0.9"], true, &[Reason::PodElsewhere]);
    check(&of(here), &[], true, &[Reason::PodGone]);
    check(here, &[], true, &[]);
}

#[test]
fn an_address_of_a_node_that_is_gone_goes_after_a_minute() {
    check(
        &["h1 node=gone namespace=default pod=a"],
        &[],
        "",
        "h1:0:NodeGone",
        "h1:0:NodeGone",
    );
}

#[test]
fn what_we_know_too_little_of_is_kept() {
    for line in [
        "h1",
        "h1 node=n1",
        "h1 node=gone",
        "h1 namespace=default pod=a",
        "windows-reserved-ipam-handle node=gone",
    ] {
        check(&[line], &[], "", "", "");
    }
    let mut evidence = evidence(&[]);
    evidence.nodes.clear();
    let blocks = [block(&[POD, "h2 node=gone namespace=x pod=y"])];
    let seen = Snapshot {
        blocks: &blocks,
        handles: &[],
        cooldown: SignedDuration::ZERO,
    };
    let mut collector = Collector::default();
    for minutes in [0, 60] {
        assert_eq!(
            collector.decide(at(minutes), GRACE, seen, &evidence),
            Decision::default()
        );
    }
}

#[test]
fn a_handle_goes_as_a_whole_or_not_at_all() {
    check(&[POD, POD], &["default/a n1 10.0.0.1"], "", "", "");
    check(&[POD, POD], &[], "", "", "h1:0:PodGone h1:1:PodGone");
}

#[test]
fn a_tunnel_address_outlives_its_node_until_the_last_pod_is_gone() {
    let tunnel = "t node=gone type=ipipTunnelAddress";
    check(
        &[tunnel, POD],
        &["default/a n1 10.0.0.1"],
        "t:0:NodeGone",
        "t:0:NodeGone",
        "t:0:NodeGone",
    );
    check(&[tunnel, "p node=gone"], &[], "", "", "");
    check(&["t node=n1 type=ipipTunnelAddress"], &[], "", "", "");
}

#[test]
fn an_address_that_was_taken_anew_has_its_own_grace() {
    let mut blocks = [block(&[POD])];
    let evidence = evidence(&[]);
    let mut collector = Collector::default();
    let decide = |collector: &mut Collector, blocks: &[IpamBlockSpec], minutes| {
        let seen = Snapshot {
            blocks,
            handles: &[],
            cooldown: SignedDuration::ZERO,
        };
        collector.decide(at(minutes), GRACE, seen, &evidence).addresses.len()
    };
    assert_eq!(decide(&mut collector, &blocks, 0), 0);
    let holder = blocks[0].holder(Ordinal(0)).unwrap().clone();
    blocks[0].bump();
    blocks[0].give_back(&[Ordinal(0)], at(10), SignedDuration::ZERO);
    let address = blocks[0].address(Ordinal(0));
    blocks[0].take_address(address, &holder).unwrap();
    assert_eq!(decide(&mut collector, &blocks, 15), 0);
    assert_eq!(decide(&mut collector, &blocks, 30), 1);
}

#[test]
fn empty_blocks_go_after_the_grace_period_but_never_the_last_one() {
    let host = Owner::Host("n1".into());
    let empty = |cidr: &str| IpamBlockSpec::create(cidr.parse().unwrap(), &host, at(0));
    let mut blocks = vec![
        empty("10.0.0.0/26"),
        empty("10.0.0.64/26"),
        empty("10.0.0.128/26"),
        empty("fd00::/122"),
    ];
    let evidence = evidence(&[]);
    let mut collector = Collector::default();
    let mut decide = |blocks: &[IpamBlockSpec], minutes| {
        let seen = Snapshot {
            blocks,
            handles: &[],
            cooldown: SignedDuration::ZERO,
        };
        collector.decide(at(minutes), GRACE, seen, &evidence).blocks
    };
    assert_eq!(decide(&blocks, 0), []);
    blocks[1].bump();
    assert_eq!(
        decide(&blocks, 15),
        [(host.clone(), blocks[0].cidr), (host.clone(), blocks[2].cidr)]
    );
    blocks.truncate(1);
    assert_eq!(decide(&blocks, 30), []);
}

#[test]
fn a_handle_that_holds_nothing_and_does_not_change_goes() {
    let blocks = [block(&[POD])];
    let handle = |id: &str, count| IpamHandleSpec {
        handle_id: id.into(),
        block: [("10.0.0.0/26".to_owned(), count)].into(),
        deleted: false,
    };
    let mut collector = Collector::default();
    let mut decide = |handles: &[IpamHandleSpec], minutes| {
        let seen = Snapshot {
            blocks: &blocks,
            handles,
            cooldown: SignedDuration::ZERO,
        };
        collector
            .decide(at(minutes), GRACE, seen, &evidence(&["default/a n1 10.0.0.0"]))
            .handles
    };
    assert_eq!(
        decide(&[handle("H1", 1), handle("idle", 1), handle("busy", 1)], 0),
        [""; 0]
    );
    assert_eq!(
        decide(&[handle("H1", 1), handle("idle", 1), handle("busy", 2)], 15),
        ["idle"]
    );
}

#[test]
fn a_node_that_is_gone_loses_its_claims_when_nothing_of_it_is_kept() {
    let mut blocks = [block(&[POD])];
    blocks[0].affinity = Some("host:gone".into());
    let decide = |blocks: &[IpamBlockSpec]| {
        let seen = Snapshot {
            blocks,
            handles: &[],
            cooldown: SignedDuration::ZERO,
        };
        Collector::default()
            .decide(at(0), GRACE, seen, &evidence(&["default/a n1 10.0.0.0"]))
            .owners
    };
    assert_eq!(decide(&blocks), [Owner::Host("gone".into())]);
    blocks[0].attributes[0].secondary = [("node".to_owned(), "gone".to_owned())].into();
    assert_eq!(decide(&blocks), []);
}

#[test]
fn rested_addresses_and_empty_blocks_of_nobody_are_cold() {
    let mut resting = block(&[POD]);
    resting.give_back(&[Ordinal(0)], at(0), SignedDuration::from_secs(60));
    let mut nobodys = IpamBlockSpec::create("10.0.1.0/26".parse().unwrap(), &Owner::Host("n1".into()), at(0));
    nobodys.affinity = None;
    let blocks = [resting, nobodys];
    let seen = Snapshot {
        blocks: &blocks,
        handles: &[],
        cooldown: SignedDuration::from_secs(60),
    };
    let cold = |now| Collector::default().decide(now, GRACE, seen, &evidence(&[])).cold;
    assert_eq!(cold(at(0)), [blocks[1].cidr]);
    assert_eq!(cold(at(1)), [blocks[0].cidr, blocks[1].cidr]);
}

#[test]
fn the_last_look_judges_by_fresh_evidence_and_sequence_number_alone() {
    let mut blocks = [block(&[POD, POD])];
    let seen = Snapshot {
        blocks: &blocks,
        handles: &[],
        cooldown: SignedDuration::ZERO,
    };
    let mut collector = Collector::default();
    collector.decide(at(0), GRACE, seen, &evidence(&[]));
    let decision = collector.decide(at(15), GRACE, seen, &evidence(&[]));
    let doomed = decision.addresses;
    assert_eq!((doomed.len(), decision.suspects.len()), (2, 2));
    assert_eq!(decision.suspects[0].since, at(0));
    let leaked = |blocks: &[IpamBlockSpec], pods: &[&str]| still_leaked(blocks, &doomed, &evidence(pods));
    assert!(leaked(&blocks, &[]));
    assert!(leaked(&blocks, &["other/a n1 10.0.0.0"]));
    assert!(!leaked(&blocks, &["default/a n1 10.0.0.1"]));
    assert!(!leaked(&blocks, &["default/a n1"]));
    assert!(!leaked(&[], &[]));
    let holder = blocks[0].holder(Ordinal(0)).unwrap().clone();
    blocks[0].bump();
    blocks[0].give_back(&[Ordinal(0)], at(16), SignedDuration::ZERO);
    blocks[0].take_address("10.0.0.0".parse().unwrap(), &holder).unwrap();
    assert!(!leaked(&blocks, &[]), "it was given out anew");
}

#[test]
fn no_more_than_the_limit_goes_at_once_and_no_handle_is_cut_in_two() {
    let doomed = |handle: usize| Doomed {
        address: ReleaseAddress {
            ip: IpAddr::from([10, 0, 0, 0]),
            handle: Some(handle.to_string()),
            sequence: None,
        },
        block: "10.0.0.0/26".parse().unwrap(),
        node: "n1".into(),
        reason: Reason::PodGone,
    };
    let pairs: Vec<Doomed> = (0..MOST_AT_ONCE + 5).map(|n| doomed(n / 3)).collect();
    assert_eq!(cut(&pairs), MOST_AT_ONCE - MOST_AT_ONCE % 3);
    assert_eq!(cut(&pairs[..7]), 7);
}
