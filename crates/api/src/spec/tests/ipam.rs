use super::*;

#[test]
fn stored_objects_survive() {
    survives(
        Kind::IPAMBlock,
        "10-0-0-0-30",
        "{cidr: 10.0.0.0/30, affinity: 'host:n1', affinityClaimTime: '2026-01-02T03:04:05Z', strictAffinity: false, \
         allocations: [0, null, null, null], unallocated: [1, 2, 3], attributes: [{handle_id: h, secondary: {node: n1}, \
         alternateOwnerAttrs: {pod: p}, releasedAt: '2026-01-02T03:04:05Z'}], sequenceNumber: 1700000000000000001, \
         sequenceNumberForAllocation: {'0': 1700000000000000001}}",
    );
    survives(
        Kind::BlockAffinity,
        "n1-10-0-0-0-26",
        "{cidr: 10.0.0.0/26, node: n1, state: confirmed, type: host}",
    );
    survives(Kind::IPAMHandle, "k8s.a", "{handleID: k8s.A, block: {10.0.0.0/26: 2}}");
    survives(
        Kind::IPAMConfiguration,
        "default",
        "{strictAffinity: true, autoAllocateBlocks: false, maxBlocksPerHost: 4, kubeVirtVMAddressPersistence: Disabled, ipCooldownSeconds: 1200}",
    );
}

#[test]
fn a_block_is_consistent() {
    let rest = "strictAffinity: false, sequenceNumber: 0, sequenceNumberForAllocation: {}";
    check(
        Kind::IPAMBlock,
        "b",
        &format!(
            "{{cidr: 10.0.0.0/31, allocations: [null, 1, null], unallocated: [1, 7], attributes: [{{}}], {rest}}}"
        ),
        &[
            "spec.allocations: `3 items` must be one for each address",
            "spec.allocations[1]: `1` must be the place of one of spec.attributes",
            "spec.unallocated[0]: `1` must be an address that is not allocated",
            "spec.unallocated[1]: `7` must be an address that is not allocated",
        ],
    );
}

#[test]
fn what_is_wrong_with_the_others() {
    check(
        Kind::BlockAffinity,
        "a",
        "{cidr: 10.0.0.1/26, node: '', state: sure, type: pod, deleted: true}",
        &[
            "spec.state: `sure` must be one of \"\", pending, confirmed, pendingDeletion",
            "spec.cidr: `10.0.0.1/26` must have no bits behind the prefix length; did you mean 10.0.0.0/26?",
            "spec.node: is required",
            "spec.type: `pod` must be host or virtual",
            "spec.deleted: `true` must be false: the datastore sets it when it deletes",
        ],
    );
    check(
        Kind::IPAMHandle,
        "a",
        "{block: {x: 1}}",
        &["spec.handleID: is required"],
    );
    check(
        Kind::IPAMHandle,
        "a",
        "{handleID: a, block: {x: 1}}",
        &["spec.block: `x` must be a block like 10.0.0.0/26"],
    );
    check(
        Kind::IPAMConfiguration,
        "default",
        "{maxBlocksPerHost: -1, ipCooldownSeconds: 1201, kubeVirtVMAddressPersistence: 'on'}",
        &[
            "spec.maxBlocksPerHost: `-1` must be a whole number from 0 to 4294967295",
            "spec.kubeVirtVMAddressPersistence: `on` must be Enabled or Disabled",
            "spec.ipCooldownSeconds: `1201` must be from 0 to 1200",
        ],
    );
}

#[test]
fn limits_of_blocks_need_hosts_that_do_not_borrow() {
    let limit = "spec.maxBlocksPerHost: `4` must be 0 unless strictAffinity is true: set strictAffinity to true, or leave \
                 this out";
    let no_claims = "spec.autoAllocateBlocks: `false` must be true unless strictAffinity is true: set strictAffinity to \
                     true, or leave this out";
    let cases: [(&str, &[&str]); 6] = [
        ("{maxBlocksPerHost: 4}", &[limit]),
        ("{strictAffinity: false, autoAllocateBlocks: false}", &[no_claims]),
        ("{maxBlocksPerHost: 4, autoAllocateBlocks: false}", &[limit, no_claims]),
        (
            "{strictAffinity: true, maxBlocksPerHost: 4, autoAllocateBlocks: false}",
            &[],
        ),
        (
            "{strictAffinity: false, maxBlocksPerHost: 0, autoAllocateBlocks: true}",
            &[],
        ),
        ("{}", &[]),
    ];
    for (spec, problems) in cases {
        check(Kind::IPAMConfiguration, "default", spec, problems);
    }
}
