//! FelixConfiguration: the agent's settings, all of upstream's. Every field may be absent; then its default counts.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::{Deref, DerefMut};

use serde::{Deserialize, Serialize};

use super::felix_values::*;
use super::{ConditionsStatus, ProgramClusterRoutes, RouteTableRange};
use crate::problem::Problems;
use crate::resource::Spec;
use crate::value::{Dscp, Duration, Port, check};
use crate::{Kind, Metadata};

/// Spec of a FelixConfiguration: [`FelixSettings`], set apart because they are many and resources are moved a lot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FelixConfigurationSpec(Box<FelixSettings>);

impl FelixConfigurationSpec {
    /// These settings, and those of `general` that are absent here: a node's over the cluster's.
    #[must_use]
    pub fn over(self, general: Self) -> Self {
        Self(Box::new(self.0.over(*general.0)))
    }
}

impl From<FelixSettings> for FelixConfigurationSpec {
    fn from(settings: FelixSettings) -> Self {
        Self(Box::new(settings))
    }
}

impl Deref for FelixConfigurationSpec {
    type Target = FelixSettings;

    fn deref(&self) -> &FelixSettings {
        &self.0
    }
}

impl DerefMut for FelixConfigurationSpec {
    fn deref_mut(&mut self) -> &mut FelixSettings {
        &mut self.0
    }
}

/// Declares the settings: documentation, field, type, upstream's name.
macro_rules! settings {
    ($($(#[$doc:meta])* $field:ident: $type:ty = $name:literal,)*) => {
        /// The agent's settings.
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct FelixSettings {
            $($(#[$doc])* #[serde(rename = $name, skip_serializing_if = "Option::is_none")] pub $field: Option<$type>,)*
        }

        impl FelixSettings {
            /// Upstream's names of all settings.
            pub const NAMES: &'static [&'static str] = &[$($name,)*];

            fn over(self, general: Self) -> Self {
                Self { $($field: self.$field.or(general.$field),)* }
            }
        }
    };
}

settings! {
    // Which nodes
    /// Nodes that it is for; only in a configuration that is called neither `default` nor `node.<name>`.
    node_selector: String = "nodeSelector",
    // Process
    /// Program the kernel from within the agent; default true.
    use_internal_dataplane_driver: bool = "useInternalDataplaneDriver",
    /// File name of an external dataplane driver; default `calico-iptables-plugin`.
    dataplane_driver: String = "dataplaneDriver",
    /// Time without a sign of life after which the dataplane is unhealthy; default 90s; `healthTimeoutOverrides` replaces it.
    dataplane_watchdog_timeout: Duration = "dataplaneWatchdogTimeout",
    /// Features that are not probed: `Name=true,Other=false`.
    feature_detect_override: String = "featureDetectOverride",
    /// Previews that are switched on: `Name=value,…`.
    feature_gates: String = "featureGates",
    /// Garbage collection of Go; default 40; of no meaning here.
    go_gc_threshold: i32 = "goGCThreshold",
    /// Threads of Go; default -1; of no meaning here.
    go_max_procs: i32 = "goMaxProcs",
    /// Memory limit of Go; default -1; of no meaning here.
    go_memory_limit_mb: i32 = "goMemoryLimitMB",
    /// Serve liveness and readiness; default false.
    health_enabled: bool = "healthEnabled",
    /// Address to serve health on; default `localhost`.
    health_host: String = "healthHost",
    /// Port to serve health on; default 9099.
    health_port: u16 = "healthPort",
    /// Other times without a sign of life, part by part.
    health_timeout_overrides: Vec<HealthTimeoutOverride> = "healthTimeoutOverrides",
    /// Most log lines by Log rules: `10/second`; default no limit.
    log_action_rate_limit: LogRate = "logActionRateLimit",
    /// Log lines that may exceed the rate, 0 to 9999; default 5.
    log_action_rate_limit_burst: u16 = "logActionRateLimitBurst",
    /// Source files whose debug lines are logged.
    log_debug_filename_regex: String = "logDebugFilenameRegex",
    /// Log file, `none` for none; default `/var/log/calico/felix.log`.
    log_file_path: String = "logFilePath",
    /// What lines of Log rules start with; `%t`, `%k`, `%n`, `%p` stand for tier, kind and names; default `calico-packet`.
    log_prefix: String = "logPrefix",
    /// Least severity in the log file; default Info.
    log_severity_file: LogSeverity = "logSeverityFile",
    /// Least severity on standard output; default Info.
    log_severity_screen: LogSeverity = "logSeverityScreen",
    /// Least severity for syslog; default Info.
    log_severity_sys: LogSeverity = "logSeveritySys",
    /// Metrics of the Go runtime; default true.
    prometheus_go_metrics_enabled: bool = "prometheusGoMetricsEnabled",
    /// Authority of clients' certificates.
    prometheus_metrics_ca_file: String = "prometheusMetricsCAFile",
    /// Certificate to serve metrics with.
    prometheus_metrics_cert_file: String = "prometheusMetricsCertFile",
    /// Which certificates clients must show; default NoClientCert.
    prometheus_metrics_client_auth: ClientAuth = "prometheusMetricsClientAuth",
    /// Serve metrics; default false.
    prometheus_metrics_enabled: bool = "prometheusMetricsEnabled",
    /// Address to serve metrics on; default all.
    prometheus_metrics_host: String = "prometheusMetricsHost",
    /// Key of the certificate.
    prometheus_metrics_key_file: String = "prometheusMetricsKeyFile",
    /// Port to serve metrics on; default 9091.
    prometheus_metrics_port: u16 = "prometheusMetricsPort",
    /// Metrics of the process; default true.
    prometheus_process_metrics_enabled: bool = "prometheusProcessMetricsEnabled",
    /// Metrics of WireGuard; default true.
    prometheus_wireguard_metrics_enabled: bool = "prometheusWireGuardMetricsEnabled",
    // Interfaces and packets of every dataplane
    /// Let workloads send IPIP packets; default false.
    allow_ipip_packets_from_workloads: bool = "allowIPIPPacketsFromWorkloads",
    /// Let workloads send VXLAN packets; default false.
    allow_vxlan_packets_from_workloads: bool = "allowVXLANPacketsFromWorkloads",
    /// Where the control groups are mounted.
    cgroup_v2_path: String = "cgroupV2Path",
    /// Whether our rules stand before (default) or behind others in the kernel's chains.
    chain_insert_mode: ChainInsertMode = "chainInsertMode",
    /// What happens to packets from workloads to their host; default Drop.
    default_endpoint_to_host_action: EndpointToHostAction = "defaultEndpointToHostAction",
    /// Protocol number of device routes; default 3.
    device_route_protocol: u8 = "deviceRouteProtocol",
    /// Source address of IPv4 routes; default the kernel's choice.
    device_route_source_address: Ipv4Addr = "deviceRouteSourceAddress",
    /// Source address of IPv6 routes; default the kernel's choice.
    device_route_source_address_ipv6: Ipv6Addr = "deviceRouteSourceAddressIPv6",
    /// Let packets pass that connection tracking calls invalid; default false.
    disable_conntrack_invalid_check: bool = "disableConntrackInvalidCheck",
    /// Directory for the status of endpoints; default `/var/run/calico`; empty for none.
    endpoint_status_path_prefix: String = "endpointStatusPathPrefix",
    /// Prefixes of nodes outside the cluster that may send us tunnelled packets.
    external_nodes_list: Vec<String> = "externalNodesList",
    /// Ports of the host that policy never closes; empty for none; default ssh, DHCP, BGP, etcd, the API.
    failsafe_inbound_host_ports: Vec<ProtoPort> = "failsafeInboundHostPorts",
    /// Ports that the host may always reach; empty for none; default DNS, DHCP, BGP, etcd, the API.
    failsafe_outbound_host_ports: Vec<ProtoPort> = "failsafeOutboundHostPorts",
    /// Program floating addresses; default Disabled.
    floating_ips: Switch = "floatingIPs",
    /// Switch on forwarding in the kernel; default Enabled.
    ip_forwarding: Switch = "ipForwarding",
    /// Metric of IPv4 routes of a workload that is moving; default 512.
    ipv4_elevated_route_priority: u32 = "ipv4ElevatedRoutePriority",
    /// Metric of ordinary IPv4 routes; default 1024.
    ipv4_normal_route_priority: u32 = "ipv4NormalRoutePriority",
    /// Metric of IPv6 routes of a workload that is moving; default 512.
    ipv6_elevated_route_priority: u32 = "ipv6ElevatedRoutePriority",
    /// Metric of ordinary IPv6 routes; default 1024.
    ipv6_normal_route_priority: u32 = "ipv6NormalRoutePriority",
    /// Interfaces that host endpoints never match: names, or patterns between slashes, with commas; default `kube-ipvs0`.
    interface_exclude: String = "interfaceExclude",
    /// What interfaces of workloads start with; several with commas; default `cali`.
    interface_prefix: String = "interfacePrefix",
    /// Time between readings of all interfaces; 0 for never; default 90s.
    interface_refresh_interval: Duration = "interfaceRefreshInterval",
    /// Handle IPv6; default true.
    ipv6_support: bool = "ipv6Support",
    /// Work together with Istio's ambient mode; default Disabled.
    istio_ambient_mode: Switch = "istioAmbientMode",
    /// Mark of packets to Istio's tunnel; default 23.
    istio_dscp_mark: Dscp = "istioDSCPMark",
    /// Time that a moved workload's routes stay preferred; default 30s.
    live_migration_route_convergence_time: Duration = "liveMigrationRouteConvergenceTime",
    /// Answer ARP and NDP for pods in the host's subnet; default Disabled.
    local_subnet_l2_reachability: LocalSubnetL2Reachability = "localSubnetL2Reachability",
    /// Time between announcements of these pods; 0 for never; default 120s.
    local_subnet_l2_reachability_refresh_interval: Duration = "localSubnetL2ReachabilityRefreshInterval",
    /// Interfaces whose MTU counts (regular expression); default the usual names of network cards.
    mtu_iface_pattern: String = "mtuIfacePattern",
    /// Source address of masqueraded packets; default that of the interface.
    nat_outgoing_address: Ipv4Addr = "natOutgoingAddress",
    /// Destinations that are not masqueraded; default IPPoolsOnly.
    nat_outgoing_exclusions: NatOutgoingExclusions = "natOutgoingExclusions",
    /// Source ports of masqueraded packets; default the kernel's choice.
    nat_port_range: Port = "natPortRange",
    /// Longest wait for the kernel; default 10s.
    netlink_timeout: Duration = "netlinkTimeout",
    /// Directory of sockets that tell policy to others; default none.
    policy_sync_path_prefix: String = "policySyncPathPrefix",
    /// Which routes to other nodes' blocks the agent writes beside VXLAN's; default EnabledIPIPOnly.
    program_cluster_routes: ProgramClusterRoutes = "programClusterRoutes",
    /// Remove foreign routes to workloads' interfaces; default true.
    remove_external_routes: bool = "removeExternalRoutes",
    /// Wait for the file with the MTU; default false.
    require_mtu_file: bool = "requireMTUFile",
    /// Time between readings of all routes; 0 for never; default 90s.
    route_refresh_interval: Duration = "routeRefreshInterval",
    /// Where routes to workloads come from; default CalicoIPAM.
    route_source: RouteSource = "routeSource",
    /// Leave routes alone; default false.
    route_sync_disabled: bool = "routeSyncDisabled",
    /// Route tables that may be used, 1 to 250; `routeTableRanges` replaces it.
    route_table_range: RouteTableRange = "routeTableRange",
    /// Route tables that may be used, 65535 together; default 1 to 250.
    route_table_ranges: Vec<RouteTableRange> = "routeTableRanges",
    /// What happens to packets for services that do not exist; default Drop.
    service_loop_prevention: ServiceLoopPrevention = "serviceLoopPrevention",
    /// Short cuts to sidecars; default false.
    sidecar_acceleration_enabled: bool = "sidecarAccelerationEnabled",
    /// Whether workloads may ask to send from foreign addresses; default Disabled.
    workload_source_spoofing: WorkloadSourceSpoofing = "workloadSourceSpoofing",
    // iptables
    /// Time between readings of all sets; 0 for never; default 90s.
    ipsets_refresh_interval: Duration = "ipsetsRefreshInterval",
    /// Which iptables; default Auto.
    iptables_backend: IptablesBackend = "iptablesBackend",
    /// What allowing means in the filter table; default Accept.
    iptables_filter_allow_action: AllowAction = "iptablesFilterAllowAction",
    /// What denying means in the filter table; default Drop.
    iptables_filter_deny_action: DenyAction = "iptablesFilterDenyAction",
    /// Time between attempts to get the lock of iptables; default 50ms.
    iptables_lock_probe_interval: Duration = "iptablesLockProbeInterval",
    /// What allowing means in the mangle table; default Accept.
    iptables_mangle_allow_action: AllowAction = "iptablesMangleAllowAction",
    /// Mark bits that may be used, at least 8; default 0xffff0000.
    iptables_mark_mask: u32 = "iptablesMarkMask",
    /// Interfaces on which is masqueraded; a final `+` stands for anything; default all.
    iptables_nat_outgoing_interface_filter: String = "iptablesNATOutgoingInterfaceFilter",
    /// Time after a write until it is read back; default 5s.
    iptables_post_write_check_interval: Duration = "iptablesPostWriteCheckInterval",
    /// Time between readings of all rules; 0 for never; default 180s.
    iptables_refresh_interval: Duration = "iptablesRefreshInterval",
    /// Ports of NodePort services, at most 7 ranges; default 30000:32767.
    kube_node_port_ranges: Vec<Port> = "kubeNodePortRanges",
    /// Most members of a set; default 1048576.
    max_ipset_size: u32 = "maxIpsetSize",
    // nftables
    /// What allowing means in the filter chains; default Accept.
    nftables_filter_allow_action: AllowAction = "nftablesFilterAllowAction",
    /// What denying means in the filter chains; default Drop.
    nftables_filter_deny_action: DenyAction = "nftablesFilterDenyAction",
    /// Interfaces between which established flows are offloaded.
    nftables_flow_table_data_iface_pattern: String = "nftablesFlowTableDataIfacePattern",
    /// Offload established flows; default Disabled.
    nftables_flow_table_offload: Switch = "nftablesFlowTableOffload",
    /// What allowing means in the mangle chains; default Accept.
    nftables_mangle_allow_action: AllowAction = "nftablesMangleAllowAction",
    /// Mark bits that may be used, at least 8; default 0xffff0000.
    nftables_mark_mask: u32 = "nftablesMarkMask",
    /// Whether nftables is used; default Auto.
    nftables_mode: NftablesMode = "nftablesMode",
    /// Time between readings of all rules; 0 for never; default 180s.
    nftables_refresh_interval: Duration = "nftablesRefreshInterval",
    // eBPF
    /// How programs are attached; default Netkit.
    bpf_attach_type: BpfAttachType = "bpfAttachType",
    /// What connect-time load balancing logs; `all` or nothing.
    bpf_ctlb_log_filter: String = "bpfCTLBLogFilter",
    /// Connections that are balanced when made; default TCP.
    bpf_connect_time_load_balancing: BpfConnectTimeLoadBalancing = "bpfConnectTimeLoadBalancing",
    /// Balance connections when made; `bpfConnectTimeLoadBalancing` replaces it.
    bpf_connect_time_load_balancing_enabled: bool = "bpfConnectTimeLoadBalancingEnabled",
    /// Log of the cleaning of connections; default Off.
    bpf_conntrack_log_level: BpfConntrackLogLevel = "bpfConntrackLogLevel",
    /// Who cleans up connections; default Auto.
    bpf_conntrack_mode: BpfConntrackMode = "bpfConntrackMode",
    /// How long idle connections live.
    bpf_conntrack_timeouts: BpfConntrackTimeouts = "bpfConntrackTimeouts",
    /// Prefixes of clients that never get direct server return.
    bpf_dsr_optout_cidrs: Vec<String> = "bpfDSROptoutCIDRs",
    /// Interfaces to the network (regular expression).
    bpf_data_iface_pattern: String = "bpfDataIfacePattern",
    /// Interfaces without generic receive offload (regular expression).
    bpf_disable_gro_for_ifaces: String = "bpfDisableGROForIfaces",
    /// Forbid BPF to others; default true.
    bpf_disable_unprivileged: bool = "bpfDisableUnprivileged",
    /// Use the BPF dataplane; default false.
    bpf_enabled: bool = "bpfEnabled",
    /// How strictly sources must be reachable; default Loose.
    bpf_enforce_rpf: BpfEnforceRpf = "bpfEnforceRPF",
    /// Services that the host translates by itself.
    bpf_exclude_cidrs_from_nat: Vec<String> = "bpfExcludeCIDRsFromNAT",
    /// Buffer for events; default 1.
    bpf_export_buffer_size_mb: u32 = "bpfExportBufferSizeMB",
    /// Mark of connections from outside to a local service; default 0.
    bpf_ext_to_service_connmark: u32 = "bpfExtToServiceConnmark",
    /// How connections from outside reach remote pods; default Tunnel.
    bpf_external_service_mode: BpfExternalServiceMode = "bpfExternalServiceMode",
    /// Interfaces whose packets the host tracks; default `docker+`.
    bpf_force_track_packets_from_ifaces: Vec<String> = "bpfForceTrackPacketsFromIfaces",
    /// Keep workloads' packets from the host's connection tracking; default false.
    bpf_host_conntrack_bypass: bool = "bpfHostConntrackBypass",
    /// Translate for processes of the host; default Enabled.
    bpf_host_networked_nat_without_ctlb: Switch = "bpfHostNetworkedNATWithoutCTLB",
    /// Longest wait for fragments; default the kernel's.
    bpf_ip_frag_timeout: Duration = "bpfIPFragTimeout",
    /// Put fragments from outside together; default true.
    bpf_ip_fragment_reassembly_enabled: bool = "bpfIPFragmentReassemblyEnabled",
    /// Whether hardening of the compiler may be relaxed; default Auto.
    bpf_jit_hardening: BpfJitHardening = "bpfJITHardening",
    /// Port for load balancers' health checks; 0 for none; default 10256.
    bpf_kube_proxy_healthz_port: u16 = "bpfKubeProxyHealthzPort",
    /// Remove kube-proxy's rules; default true.
    bpf_kube_proxy_iptables_cleanup_enabled: bool = "bpfKubeProxyIptablesCleanupEnabled",
    /// Least time between changes of services; default 1s.
    bpf_kube_proxy_min_sync_period: Duration = "bpfKubeProxyMinSyncPeriod",
    /// Further tunnel devices (regular expression).
    bpf_l3_iface_pattern: String = "bpfL3IfacePattern",
    /// Packet filters of debug logs, by interface, `all`, `weps` or `heps`.
    bpf_log_filters: BTreeMap<String, String> = "bpfLogFilters",
    /// Log of the programs; default Off.
    bpf_log_level: BpfLogLevel = "bpfLogLevel",
    /// Most endpoints of a Maglev service; default 100.
    bpf_maglev_max_endpoints_per_service: u32 = "bpfMaglevMaxEndpointsPerService",
    /// Most Maglev services; default 100.
    bpf_maglev_max_services: u32 = "bpfMaglevMaxServices",
    /// Most connections; default 512000.
    bpf_map_size_conntrack: u32 = "bpfMapSizeConntrack",
    /// Most connections waiting to be cleaned up, at least 1; default 100000.
    bpf_map_size_conntrack_cleanup_queue: u32 = "bpfMapSizeConntrackCleanupQueue",
    /// Whether a full table of connections grows; default DoubleIfFull.
    bpf_map_size_conntrack_scaling: BpfMapScaling = "bpfMapSizeConntrackScaling",
    /// Most members of all sets; default 1048576.
    bpf_map_size_ip_sets: u32 = "bpfMapSizeIPSets",
    /// Most interfaces; default 1000.
    bpf_map_size_if_state: u32 = "bpfMapSizeIfState",
    /// Most clients that stick to a backend; default 65536.
    bpf_map_size_nat_affinity: u32 = "bpfMapSizeNATAffinity",
    /// Most backends; default 262144.
    bpf_map_size_nat_backend: u32 = "bpfMapSizeNATBackend",
    /// Most addresses and ports of services; default 65536.
    bpf_map_size_nat_frontend: u32 = "bpfMapSizeNATFrontend",
    /// Most connections for each CPU; 0 for `bpfMapSizeConntrack`; default 0.
    bpf_map_size_per_cpu_conntrack: u32 = "bpfMapSizePerCpuConntrack",
    /// Most routes; default 262144.
    bpf_map_size_route: u32 = "bpfMapSizeRoute",
    /// Source of the host's packets into a tunnel; default TunnelAddress.
    bpf_overlay_host_source_ip: BpfOverlaySource = "bpfOverlayHostSourceIP",
    /// Source ports after a collision; default 20000:29999.
    bpf_psnat_ports: Port = "bpfPSNATPorts",
    /// Keep notes on policy programs; default true.
    bpf_policy_debug_enabled: bool = "bpfPolicyDebugEnabled",
    /// Profile programs; default Disabled.
    bpf_profiling: Switch = "bpfProfiling",
    /// Hand packets to workloads past the host's end; default Enabled.
    bpf_redirect_to_peer: BpfRedirectToPeer = "bpfRedirectToPeer",
    // Windows and OpenStack
    /// Open the metrics port in the firewall; default Disabled.
    windows_manage_firewall_rules: Switch = "windowsManageFirewallRules",
    /// Wait before the status of endpoints is stored; default 1s.
    endpoint_reporting_delay: Duration = "endpointReportingDelay",
    /// Store the status of endpoints; default false.
    endpoint_reporting_enabled: bool = "endpointReportingEnabled",
    /// Server of instance metadata, `none` for none; default 127.0.0.1.
    metadata_addr: String = "metadataAddr",
    /// Port of that server; default 8775.
    metadata_port: u16 = "metadataPort",
    /// Region of this node, a DNS label of at most 46 characters.
    openstack_region: String = "openstackRegion",
    /// Time between stored status reports; 0 for never; default 30s.
    reporting_interval: Duration = "reportingInterval",
    /// How long a status report lives; default 90s.
    reporting_ttl: Duration = "reportingTTL",
    // XDP
    /// Use XDP where the driver has none; default false.
    generic_xdp_enabled: bool = "genericXDPEnabled",
    /// Drop untracked packets by XDP; default true.
    xdp_enabled: bool = "xdpEnabled",
    /// Time between readings of XDP's state; 0 for never; default 90s.
    xdp_refresh_interval: Duration = "xdpRefreshInterval",
    // Overlays
    /// Whether VXLAN is set up; absent: from the pools.
    vxlan_enabled: bool = "vxlanEnabled",
    /// MTU of the IPv4 VXLAN device; 0 or absent: from the underlay.
    vxlan_mtu: u32 = "vxlanMTU",
    /// MTU of the IPv6 VXLAN device; 0 or absent: from the underlay.
    vxlan_mtu_v6: u32 = "vxlanMTUV6",
    /// UDP port of VXLAN; default 4789.
    vxlan_port: u16 = "vxlanPort",
    /// Network identifier of VXLAN, below 2^24; default 4096.
    vxlan_vni: u32 = "vxlanVNI",
    /// Whether IPIP is set up; absent: from the pools.
    ipip_enabled: bool = "ipipEnabled",
    /// MTU of `tunl0`; 0 or absent: from the underlay.
    ipip_mtu: u32 = "ipipMTU",
    /// Encrypt IPv4 between nodes; default false.
    wireguard_enabled: bool = "wireguardEnabled",
    /// Encrypt IPv6 between nodes; default false.
    wireguard_enabled_v6: bool = "wireguardEnabledV6",
    /// Encrypt packets between hosts too; default false.
    wireguard_host_encryption_enabled: bool = "wireguardHostEncryptionEnabled",
    /// Device for IPv4; default `wireguard.cali`.
    wireguard_interface_name: String = "wireguardInterfaceName",
    /// Device for IPv6; default `wg-v6.cali`.
    wireguard_interface_name_v6: String = "wireguardInterfaceNameV6",
    /// Time between keepalives; 0 for none; default 0.
    wireguard_keep_alive: Duration = "wireguardKeepAlive",
    /// UDP port for IPv4; default 51820.
    wireguard_listening_port: u16 = "wireguardListeningPort",
    /// UDP port for IPv6; default 51821.
    wireguard_listening_port_v6: u16 = "wireguardListeningPortV6",
    /// MTU of the IPv4 device; 0 or absent: from the underlay.
    wireguard_mtu: u32 = "wireguardMTU",
    /// MTU of the IPv6 device; 0 or absent: from the underlay.
    wireguard_mtu_v6: u32 = "wireguardMTUV6",
    /// Priority of the routing rule; default 99.
    wireguard_routing_rule_priority: u32 = "wireguardRoutingRulePriority",
    /// Threaded NAPI for the devices; default false.
    wireguard_threading_enabled: bool = "wireguardThreadingEnabled",
    // Flow logs
    /// Log the collector's work in full; default false.
    flow_logs_collector_debug_trace: bool = "flowLogsCollectorDebugTrace",
    /// Time between reports of flows; default 300s.
    flow_logs_flush_interval: Duration = "flowLogsFlushInterval",
    /// Server that flows are reported to; default none.
    flow_logs_goldmane_server: String = "flowLogsGoldmaneServer",
    /// Report flows on a local socket; default Disabled.
    flow_logs_local_reporter: Switch = "flowLogsLocalReporter",
    /// Whether changes of policy are judged for flows that go on; default Continuous.
    flow_logs_policy_evaluation_mode: FlowLogsPolicyEvaluation = "flowLogsPolicyEvaluationMode",
    // Clouds, debugging, usage
    /// What to do with the instance's source and destination check; default DoNothing.
    aws_src_dst_check: AwsSrcDstCheck = "awsSrcDstCheck",
    /// Wait rather than lose log lines; default false.
    debug_disable_log_dropping: bool = "debugDisableLogDropping",
    /// Address of the debug port; default `localhost`.
    debug_host: String = "debugHost",
    /// File for memory profiles.
    debug_memory_profile_path: String = "debugMemoryProfilePath",
    /// Debug port; default none.
    debug_port: u16 = "debugPort",
    /// For tests: time until calculation stops.
    debug_simulate_calc_graph_hang_after: Duration = "debugSimulateCalcGraphHangAfter",
    /// For tests: delay of every change of the kernel.
    debug_simulate_dataplane_apply_delay: Duration = "debugSimulateDataplaneApplyDelay",
    /// For tests: time until the dataplane stops.
    debug_simulate_dataplane_hang_after: Duration = "debugSimulateDataplaneHangAfter",
    /// Tell upstream version and size of the cluster; default true; never done here.
    usage_reporting_enabled: bool = "usageReportingEnabled",
    /// Wait before the first report; default 300s.
    usage_reporting_initial_delay: Duration = "usageReportingInitialDelay",
    /// Time between reports; default 86400s.
    usage_reporting_interval: Duration = "usageReportingInterval",
}

impl Spec for FelixConfigurationSpec {
    const KIND: Kind = Kind::FelixConfiguration;
    type Status = ConditionsStatus;

    fn check(&self, metadata: &Metadata, problems: &mut Problems) {
        if let Some(selector) = &self.node_selector {
            if metadata.name == "default" || metadata.name.starts_with("node.") {
                problems.report(
                    "nodeSelector",
                    selector,
                    "must be absent in `default` and `node.<name>`",
                );
            }
            check::selector("nodeSelector", selector, problems);
        }
        self.check_values(problems);
    }
}
