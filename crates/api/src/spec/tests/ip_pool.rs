use super::*;
use crate::{Condition, ConditionStatus, IpPool, IpPoolSpec, IpPoolStatus, Metadata};

const KIND: Kind = Kind::IPPool;

#[test]
fn all_fields_survive() {
    survives(
        KIND,
        "a",
        "{cidr: 10.0.0.0/16, ipipMode: CrossSubnet, vxlanMode: Never, natOutgoing: true, disabled: true, disableBGPExport: true, \
         blockSize: 24, nodeSelector: has(a), namespaceSelector: \"a == 'b'\", allowedUses: [Workload], assignmentMode: Manual}",
    );
}

#[test]
fn what_is_wrong_with_a_range() {
    check(
        KIND,
        "a",
        "{cidr: 10.0.0.1/16}",
        &["spec.cidr: `10.0.0.1/16` must have no bits behind the prefix length; did you mean 10.0.0.0/16?"],
    );
    check(
        KIND,
        "a",
        "{cidr: 169.254.1.0/24}",
        &["spec.cidr: `169.254.1.0/24` must not overlap the link-local addresses 169.254.0.0/16"],
    );
    check(
        KIND,
        "a",
        "{cidr: '::/0'}",
        &["spec.cidr: `::/0` must not overlap the link-local addresses fe80::/10"],
    );
    check(
        KIND,
        "a",
        "{cidr: 10.0.0.0/27}",
        &["spec.cidr: `10.0.0.0/27` must hold at least one block: /26 or larger"],
    );
    check(KIND, "a", "{cidr: 10.0.0.0/27, disabled: true}", &[]);
    check(KIND, "a", "{cidr: 10.0.0.1, blockSize: 32}", &[]);
    check(
        KIND,
        "a",
        "{cidr: 10.0.0.0/16, blockSize: 19}",
        &["spec.blockSize: `19` must be from 20 to 32"],
    );
    check(
        KIND,
        "a",
        "{cidr: 10.0.0.0/16, blockSize: 33}",
        &["spec.blockSize: `33` must be from 20 to 32"],
    );
    check(
        KIND,
        "a",
        "{cidr: 10.0.0.0/16, blockSize: 300}",
        &["spec.blockSize: `300` must be a whole number from 0 to 255"],
    );
    check(
        KIND,
        "a",
        "{cidr: 'fd00::/64', blockSize: 115}",
        &["spec.blockSize: `115` must be from 116 to 128"],
    );
    check(KIND, "a", "{cidr: 'fd00::/64', blockSize: 128}", &[]);
}

#[test]
fn a_pool_has_one_encapsulation_that_its_family_can_have() {
    check(
        KIND,
        "a",
        "{cidr: 10.0.0.0/16, ipipMode: Always, vxlanMode: CrossSubnet}",
        &["spec.ipipMode: `Always` must be Never with vxlanMode: a pool has one encapsulation"],
    );
    check(
        KIND,
        "a",
        "{cidr: 'fd00::/64', ipipMode: Always}",
        &["spec.ipipMode: `Always` must be Never in an IPv6 pool: IPIP carries IPv4"],
    );
    check(KIND, "a", "{cidr: 'fd00::/64', vxlanMode: Always}", &[]);
}

#[test]
fn a_wrong_range_does_not_hide_other_problems() {
    check(
        KIND,
        "a",
        "{cidr: 'fd00::/200', blockSize: 26, ipipMode: Always, nodeSelector: 'has('}",
        &[
            "spec.cidr: `fd00::/200` must be an address range like 10.0.0.0/16 or fd00::/64",
            "spec.blockSize: `26` must be from 116 to 128",
            "spec.ipipMode: `Always` must be Never in an IPv6 pool: IPIP carries IPv4",
            "spec.nodeSelector: `has(` is no selector: at character 5: expected the name of a label, `has(`, `all()`, `!` or `(`, found the end",
        ],
    );
}

#[test]
fn selectors_are_parsed() {
    check(
        KIND,
        "a",
        "{cidr: 10.0.0.0/16, nodeSelector: global()}",
        &["spec.nodeSelector: `global()` must not use global(): that is for the namespaceSelector of a rule"],
    );
    let long = "a".repeat(1025);
    check(
        KIND,
        "a",
        &format!("{{cidr: 10.0.0.0/16, nodeSelector: {long}}}"),
        &[&format!(
            "spec.nodeSelector: `{}…` must have at most 1024 characters",
            &long[..80]
        )],
    );
}

#[test]
fn load_balancer_pools_are_only_that() {
    check(
        KIND,
        "a",
        "{cidr: 10.0.0.0/16, allowedUses: [LoadBalancer], nodeSelector: all( )}",
        &[],
    );
    check(
        KIND,
        "a",
        "{cidr: 10.0.0.0/16, allowedUses: [LoadBalancer, Workload], vxlanMode: Always, disableBGPExport: true, nodeSelector: has(a)}",
        &[
            "spec.allowedUses: must be LoadBalancer alone, or not at all",
            "spec.vxlanMode: `Always` must be Never with the use LoadBalancer",
            "spec.disableBGPExport: `true` must be false with the use LoadBalancer",
            "spec.nodeSelector: `has(a)` must be all() with the use LoadBalancer",
        ],
    );
    check(
        KIND,
        "a",
        "{cidr: 10.0.0.0/16, allowedUses: [Tunnel, Tunnel], namespaceSelector: has(a)}",
        &[
            "spec.allowedUses[1]: `Tunnel` must occur once",
            "spec.namespaceSelector: `has(a)` must be absent with the use Tunnel: tunnels have no namespace",
        ],
    );
}

#[test]
fn defaults() {
    with_defaults(
        KIND,
        "a",
        "{cidr: 10.0.0.0/16}",
        "{cidr: 10.0.0.0/16, blockSize: 26, ipipMode: Never, vxlanMode: Never, nodeSelector: all(), allowedUses: [Workload, Tunnel], assignmentMode: Automatic}",
    );
    with_defaults(
        KIND,
        "a",
        "{cidr: 'fd00::/64', namespaceSelector: has(a)}",
        "{cidr: 'fd00::/64', blockSize: 122, ipipMode: Never, vxlanMode: Never, nodeSelector: all(), namespaceSelector: has(a), allowedUses: [Workload], assignmentMode: Automatic}",
    );
}

#[test]
fn range_and_block_size_never_change() {
    let old = "{cidr: 10.0.0.0/16}";
    update(
        KIND,
        "a",
        old,
        "{cidr: 10.0.0.0/16, blockSize: 26, natOutgoing: true}",
        &[],
    );
    update(KIND, "a", "{cidr: 'fd00:0::/64'}", "{cidr: 'fd00::/64'}", &[]);
    update(
        KIND,
        "a",
        old,
        "{cidr: 10.1.0.0/16, blockSize: 24}",
        &[
            "spec.cidr: `10.1.0.0/16` must stay 10.0.0.0/16: make a new pool instead",
            "spec.blockSize: `24` must stay 26: make a new pool instead",
        ],
    );
    update(
        KIND,
        "a",
        "{cidr: 10.0.0.0/16, allowedUses: [LoadBalancer]}",
        old,
        &["spec.allowedUses: must stay LoadBalancer: make a new pool instead"],
    );
}

#[test]
fn a_condition_stops_allocation() {
    let mut pool = IpPool::new("a", IpPoolSpec::new("10.0.0.0/16".parse().unwrap()));
    assert!(pool.is_allocatable());
    let condition = |status, reason: &str| Condition {
        kind: IpPoolStatus::ALLOCATABLE.to_owned(),
        status,
        observed_generation: None,
        last_transition_time: "2026-01-02T03:04:05Z".parse().unwrap(),
        reason: reason.to_owned(),
        message: String::new(),
    };
    pool.status = Some(IpPoolStatus {
        conditions: vec![condition(ConditionStatus::True, IpPoolStatus::OK)],
    });
    assert!(pool.is_allocatable());
    let text = to_yaml(&pool.clone().into());
    assert_eq!(read("-", &text).unwrap(), [pool.clone().into()], "{text}");
    pool.status = Some(IpPoolStatus {
        conditions: vec![condition(ConditionStatus::False, IpPoolStatus::CIDR_OVERLAP)],
    });
    assert!(!pool.is_allocatable());
    // It may be from before the pool was enabled again.
    pool.status = Some(IpPoolStatus {
        conditions: vec![condition(ConditionStatus::False, IpPoolStatus::POOL_DISABLED)],
    });
    assert!(pool.is_allocatable());
    pool.status = None;
    pool.spec.disabled = true;
    assert!(!pool.is_allocatable());
    pool.spec.disabled = false;
    pool.metadata = Metadata {
        deletion_timestamp: Some("2026-01-02T03:04:05Z".parse().unwrap()),
        ..pool.metadata
    };
    assert!(!pool.is_allocatable());
}
