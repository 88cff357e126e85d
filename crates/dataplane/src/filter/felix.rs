//! FelixConfiguration to the packet filter's settings. What is absent there is upstream's default.

use api::{FelixConfigurationSpec, Port, ProtoPort, RateUnit};
use kernel::nft::Per;

use super::settings::{DenyAction, Failsafe, LogLimit, NatExclusions, ServiceLoop, Settings, ToHost};

/// Upstream's `logActionRateLimitBurst`.
const LOG_BURST: u16 = 5;

impl From<&FelixConfigurationSpec> for Settings {
    fn from(felix: &FelixConfigurationSpec) -> Self {
        let built_in = Settings::default();
        // Upstream's settings for its iptables dataplane count where there is none for nftables.
        let deny = felix.nftables_filter_deny_action.or(felix.iptables_filter_deny_action);
        let prefixes = felix.interface_prefix.as_ref().map(|list| {
            let parts = list.split(',').map(str::trim).filter(|part| !part.is_empty());
            parts.map(str::to_owned).collect()
        });
        Settings {
            interface_prefixes: prefixes.unwrap_or(built_in.interface_prefixes),
            mark_mask: felix
                .nftables_mark_mask
                .or(felix.iptables_mark_mask)
                .filter(|mask| mask.count_ones() >= 2)
                .unwrap_or(built_in.mark_mask),
            endpoint_to_host: match felix.default_endpoint_to_host_action {
                Some(api::EndpointToHostAction::Accept) => ToHost::Accept,
                Some(api::EndpointToHostAction::Return) => ToHost::Return,
                Some(api::EndpointToHostAction::Drop) | None => ToHost::Drop,
            },
            failsafe_inbound: failsafe(&felix.failsafe_inbound_host_ports, built_in.failsafe_inbound),
            failsafe_outbound: failsafe(&felix.failsafe_outbound_host_ports, built_in.failsafe_outbound),
            deny: match deny {
                Some(api::DenyAction::Reject) => DenyAction::Reject,
                Some(api::DenyAction::Drop) | None => DenyAction::Drop,
            },
            log_prefix: felix.log_prefix.clone().unwrap_or(built_in.log_prefix),
            log_limit: felix.log_action_rate_limit.map(|rate| LogLimit {
                lines: rate.lines,
                per: match rate.per {
                    RateUnit::Second => Per::Second,
                    RateUnit::Minute => Per::Minute,
                    RateUnit::Hour => Per::Hour,
                    RateUnit::Day => Per::Day,
                },
                burst: felix.log_action_rate_limit_burst.unwrap_or(LOG_BURST),
            }),
            flow_logs: felix.flow_logs_local_reporter == Some(api::Switch::Enabled),
            cut_flows: built_in.cut_flows,
            allow_ipip_from_pods: felix.allow_ipip_packets_from_workloads.unwrap_or_default(),
            allow_vxlan_from_pods: felix.allow_vxlan_packets_from_workloads.unwrap_or_default(),
            disable_invalid_check: felix.disable_conntrack_invalid_check.unwrap_or_default(),
            source_spoofing: felix.workload_source_spoofing == Some(api::WorkloadSourceSpoofing::Any),
            vxlan_port: felix.vxlan_port.unwrap_or(built_in.vxlan_port),
            nat_ports: felix.nat_port_range.as_ref().and_then(range),
            nat_outgoing_address: felix.nat_outgoing_address,
            nat_exclusions: match felix.nat_outgoing_exclusions {
                Some(api::NatOutgoingExclusions::IpPoolsAndHostIps) => NatExclusions::PoolsAndHosts,
                Some(api::NatOutgoingExclusions::IpPoolsOnly) | None => NatExclusions::PoolsOnly,
            },
            nat_interface: felix
                .iptables_nat_outgoing_interface_filter
                .as_deref()
                .and_then(interface),
            service_loop: match felix.service_loop_prevention {
                Some(api::ServiceLoopPrevention::Reject) => ServiceLoop::Reject,
                Some(api::ServiceLoopPrevention::Disabled) => ServiceLoop::Disabled,
                Some(api::ServiceLoopPrevention::Drop) | None => ServiceLoop::Drop,
            },
            floating_ips: felix.floating_ips == Some(api::Switch::Enabled),
        }
    }
}

fn failsafe(ports: &Option<Vec<ProtoPort>>, built_in: Vec<Failsafe>) -> Vec<Failsafe> {
    let Some(ports) = ports else { return built_in };
    let known = ports.iter().filter_map(|port| {
        Some(Failsafe {
            // Absent means TCP.
            protocol: port.protocol.as_ref().map_or(Some(6), |protocol| protocol.number())?,
            port: port.port,
            net: port.net,
        })
    });
    known.collect()
}

/// A name as the packet filter has it; `None`: any. A final `+` stands for anything, as in iptables.
fn interface(name: &str) -> Option<String> {
    let shown = match name.strip_suffix('+') {
        Some(beginning) => format!("{beginning}*"),
        None => name.to_owned(),
    };
    (!["", "*"].contains(&shown.as_str())).then_some(shown)
}

fn range(port: &Port) -> Option<(u16, u16)> {
    match port {
        Port::Range(first, last) => Some((*first, *last)),
        Port::Named(_) => None,
    }
}
