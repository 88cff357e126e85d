//! What is wrong with the agent's settings.

use std::collections::BTreeMap;

use ipnet::IpNet;
use regex::Regex;

use super::FelixSettings;
use crate::problem::Problems;
use crate::value::{Port, check, net::Text};

impl FelixSettings {
    /// Reports what is wrong with the settings, one by one.
    pub(super) fn check_values(&self, problems: &mut Problems) {
        self.check_texts(problems);
        self.check_lists(problems);
        self.check_numbers(problems);
    }

    fn check_texts(&self, problems: &mut Problems) {
        let patterns = [
            ("mtuIfacePattern", &self.mtu_iface_pattern),
            ("bpfDataIfacePattern", &self.bpf_data_iface_pattern),
            ("bpfDisableGROForIfaces", &self.bpf_disable_gro_for_ifaces),
            ("bpfL3IfacePattern", &self.bpf_l3_iface_pattern),
            ("logDebugFilenameRegex", &self.log_debug_filename_regex),
            (
                "nftablesFlowTableDataIfacePattern",
                &self.nftables_flow_table_data_iface_pattern,
            ),
        ];
        for (field, pattern) in patterns {
            if let Some(pattern) = pattern.as_ref().filter(|pattern| Regex::new(pattern).is_err()) {
                problems.report(field, pattern, "must be a regular expression");
            }
        }
        for item in self.interface_exclude.iter().flat_map(|list| list.split(',')) {
            let pattern = item.strip_prefix('/').and_then(|item| item.strip_suffix('/'));
            match pattern {
                Some(pattern) if Regex::new(pattern).is_ok() => {}
                None => check::interface("interfaceExclude", item, problems),
                Some(_) => problems.report(
                    "interfaceExclude",
                    item,
                    "must be a regular expression between the slashes",
                ),
            }
        }
        for prefix in self.interface_prefix.iter().flat_map(|list| list.split(',')) {
            if !check::is_interface(prefix, "_.-") {
                problems.report(
                    "interfacePrefix",
                    prefix,
                    "must be what interfaces start with: letters, digits, `_`, `.`, `-`",
                );
            }
        }
        let filter = |name: &&String| !check::is_interface(name, ":._+-");
        if let Some(name) = self.iptables_nat_outgoing_interface_filter.as_ref().filter(filter) {
            problems.report(
                "iptablesNATOutgoingInterfaceFilter",
                name,
                "must be an interface, `+` at its end for anything",
            );
        }
        let tracked = self.bpf_force_track_packets_from_ifaces.as_deref().unwrap_or_default();
        problems.each("bpfForceTrackPacketsFromIfaces", tracked, |problems, name| {
            if filter(&name) {
                problems.report("", name, "must be an interface, `+` at its end for anything");
            }
        });
        for (field, name) in [
            ("wireguardInterfaceName", &self.wireguard_interface_name),
            ("wireguardInterfaceNameV6", &self.wireguard_interface_name_v6),
        ] {
            check::interface(field, name.as_deref().unwrap_or_default(), problems);
        }
        for interface in self.bpf_log_filters.iter().flat_map(BTreeMap::keys) {
            check::interface("bpfLogFilters", interface, problems);
        }
        let is_prefix = |c: char| c.is_ascii_alphanumeric() || "%: /_-".contains(c);
        if let Some(prefix) = self.log_prefix.as_ref().filter(|prefix| !prefix.chars().all(is_prefix)) {
            problems.report(
                "logPrefix",
                prefix,
                "must have only letters, digits, `%`, `:`, `/`, `_`, `-` and space",
            );
        }
        let is_host =
            |host: &str| host.len() <= 64 && host.chars().all(|c| c.is_ascii_alphanumeric() || ":._+-".contains(c));
        if let Some(host) = self.prometheus_metrics_host.as_ref().filter(|host| !is_host(host)) {
            problems.report(
                "prometheusMetricsHost",
                host,
                "must be an address or name of at most 64 characters",
            );
        }
        // The region becomes part of a namespace's name, which is a DNS label.
        let is_region = |region: &str| region.is_empty() || region.len() <= 46 && crate::names::is_label(region);
        if let Some(region) = self.openstack_region.as_ref().filter(|region| !is_region(region)) {
            problems.report(
                "openstackRegion",
                region,
                "must be a DNS label of at most 46 characters",
            );
        }
    }

    fn check_lists(&self, problems: &mut Problems) {
        check_pairs(
            "featureDetectOverride",
            &self.feature_detect_override,
            &["", "true", "false"],
            problems,
        );
        check_pairs("featureGates", &self.feature_gates, &[], problems);
        let nets = [
            ("externalNodesList", &self.external_nodes_list, true),
            ("bpfDSROptoutCIDRs", &self.bpf_dsr_optout_cidrs, false),
            ("bpfExcludeCIDRsFromNAT", &self.bpf_exclude_cidrs_from_nat, false),
        ];
        for (field, nets, only_v4) in nets {
            problems.each(
                field,
                nets.as_deref().unwrap_or_default(),
                |problems, text| match IpNet::parse(text) {
                    None => problems.report("", text, IpNet::RIGHT),
                    Some(IpNet::V6(_)) if only_v4 => problems.report("", text, "must be an IPv4 address range"),
                    Some(_) => {}
                },
            );
        }
        let ports = [
            ("failsafeInboundHostPorts", &self.failsafe_inbound_host_ports),
            ("failsafeOutboundHostPorts", &self.failsafe_outbound_host_ports),
        ];
        for (field, ports) in ports {
            problems.each(field, ports.as_deref().unwrap_or_default(), |problems, port| {
                port.check(problems)
            });
        }
        let node_ports = self.kube_node_port_ranges.as_deref().unwrap_or_default();
        check::at_most("kubeNodePortRanges", node_ports.len(), 7, problems);
        problems.each("kubeNodePortRanges", node_ports, |problems, port| {
            check_numeric("", port, problems)
        });
        for (field, port) in [
            ("natPortRange", &self.nat_port_range),
            ("bpfPSNATPorts", &self.bpf_psnat_ports),
        ] {
            if let Some(port) = port {
                check_numeric(field, port, problems);
            }
        }
        let overrides = self.health_timeout_overrides.as_deref().unwrap_or_default();
        problems.each("healthTimeoutOverrides", overrides, |problems, item| {
            if item.name.is_empty()
                || !item
                    .name
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "_ -".contains(c))
            {
                problems.report("name", &item.name, "must be letters, digits, `_`, `-` and space");
            }
        });
    }

    fn check_numbers(&self, problems: &mut Problems) {
        for (field, mask) in [
            ("iptablesMarkMask", self.iptables_mark_mask),
            ("nftablesMarkMask", self.nftables_mark_mask),
        ] {
            if let Some(mask) = mask.filter(|mask| mask.count_ones() < 8) {
                problems.report(field, format!("{mask:#x}"), "must have at least 8 bits set");
            }
        }
        if let Some(burst) = self.log_action_rate_limit_burst.filter(|burst| *burst > 9999) {
            problems.report("logActionRateLimitBurst", burst, "must be from 0 to 9999");
        }
        if self.bpf_map_size_conntrack_cleanup_queue == Some(0) {
            problems.report("bpfMapSizeConntrackCleanupQueue", 0, "must be at least 1");
        }
        if let Some(vni) = self.vxlan_vni.filter(|vni| *vni >= 1 << 24) {
            problems.report("vxlanVNI", vni, "must be below 16777216");
        }
        if let Some(range) = &self.route_table_range {
            if self.route_table_ranges.is_some() {
                problems.missing(
                    "routeTableRange",
                    "must be absent with routeTableRanges, which replaces it",
                );
            }
            if !(1 <= range.min && range.min <= range.max && range.max <= 250) {
                problems.report("routeTableRange", range, "must be a range within 1 to 250");
            }
        }
        let ranges = self.route_table_ranges.as_deref().unwrap_or_default();
        problems.each("routeTableRanges", ranges, |problems, range| {
            if range.min == 0 || range.min > range.max {
                problems.report("", range, "must be a range of route tables, from 1 on");
            }
        });
        let tables: u64 = ranges
            .iter()
            .map(|range| (u64::from(range.max) + 1).saturating_sub(range.min.into()))
            .sum();
        if tables > 0xffff {
            problems.report(
                "routeTableRanges",
                format!("{tables} tables"),
                "must be at most 65535 tables together",
            );
        }
    }
}

/// A list of `key=value` with commas; the values one of `values`, if any are given.
fn check_pairs(field: &str, list: &Option<String>, values: &[&str], problems: &mut Problems) {
    for pair in list
        .iter()
        .flat_map(|list| list.split(','))
        .filter(|pair| !pair.trim().is_empty())
    {
        let right = pair.trim().split_once('=').is_some_and(|(key, value)| {
            let is_key = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
            !key.is_empty() && key.chars().all(is_key) && (values.is_empty() || values.contains(&value))
        });
        if !right {
            problems.report(field, pair, "must be a list like Name=true,Other=false");
        }
    }
}

fn check_numeric(field: &str, port: &Port, problems: &mut Problems) {
    if port.is_named() || port.problem().is_some() {
        problems.report(
            field,
            port,
            "must be a port from 1 to 65535 or a range like 30000:32767",
        );
    }
}
