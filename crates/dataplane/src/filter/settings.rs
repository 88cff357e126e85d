//! What the packet filter is told besides policy: settings of the agent, facts of the cluster, translations.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use kernel::IfName;
use kernel::nft::Per;

/// The agent's settings (FelixConfiguration) as far as they concern the packet filter. Defaults are upstream's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Devices whose names begin so lead to pods (`interfacePrefix`).
    pub interface_prefixes: Vec<String>,
    /// Bits of the packet mark that we may use (`nftablesMarkMask`). Two are needed, a third one for flow records: the lowest
    /// ones are taken.
    pub mark_mask: u32,
    /// What happens to a packet from a pod to this host that policy allows (`defaultEndpointToHostAction`).
    pub endpoint_to_host: ToHost,
    /// Ports of host endpoints that are never closed (`failsafeInboundHostPorts`).
    pub failsafe_inbound: Vec<Failsafe>,
    /// Ports elsewhere that host endpoints can always reach (`failsafeOutboundHostPorts`).
    pub failsafe_outbound: Vec<Failsafe>,
    /// How a packet is denied (`nftablesFilterDenyAction`).
    pub deny: DenyAction,
    /// How a line of the kernel's log begins (`logPrefix`). `%t`, `%k`, `%n`, `%p` stand for tier, kind, name,
    /// namespace and name.
    pub log_prefix: String,
    /// At most so many lines of the log for each rule (`logActionRateLimit`, `logActionRateLimitBurst`); `None`: all.
    pub log_limit: Option<LogLimit>,
    /// Copies of packets that policy decided go to NFLOG groups 1 (to an endpoint) and 2 (from one).
    pub flow_logs: bool,
    /// Packets of flows that were marked as ended are dropped (the agent's own setting).
    pub cut_flows: bool,
    /// `allowIPIPPacketsFromWorkloads`.
    pub allow_ipip_from_pods: bool,
    /// `allowVXLANPacketsFromWorkloads`.
    pub allow_vxlan_from_pods: bool,
    /// Packets that conntrack finds invalid are not dropped (`disableConntrackInvalidCheck`).
    pub disable_invalid_check: bool,
    /// Pods may send from the prefixes that their annotation names (`workloadSourceSpoofing` is `Any`).
    pub source_spoofing: bool,
    /// UDP port of VXLAN (`vxlanPort`).
    pub vxlan_port: u16,
    /// Ports for translated sources (`natPortRange`).
    pub nat_ports: Option<(u16, u16)>,
    /// Source of translated IPv4 packets (`natOutgoingAddress`); `None`: the outgoing device's.
    pub nat_outgoing_address: Option<Ipv4Addr>,
    /// Destinations that pods reach with their own address (`natOutgoingExclusions`).
    pub nat_exclusions: NatExclusions,
    /// Only packets through this device, or with a final `*` devices that begin so, are translated
    /// (`iptablesNATOutgoingInterfaceFilter`).
    pub nat_interface: Option<String>,
    /// What happens to packets for a service address that no service proxy took (`serviceLoopPrevention`).
    pub service_loop: ServiceLoop,
    /// Whether floating IPs are translated (`floatingIPs`).
    pub floating_ips: bool,
}

/// See [`Settings::log_limit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLimit {
    /// Lines in each span of time.
    pub lines: u16,
    /// The span.
    pub per: Per,
    /// So many more at once.
    pub burst: u16,
}

/// See [`Settings::endpoint_to_host`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToHost {
    /// Dropped.
    Drop,
    /// Accepted by our table; others still see it.
    Accept,
    /// Left to others. In a table of our own this is the same as `Accept`.
    Return,
}

/// How a packet is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenyAction {
    /// Without a word.
    Drop,
    /// The sender is told.
    Reject,
}

/// See [`Settings::nat_exclusions`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NatExclusions {
    /// Addresses of pools.
    PoolsOnly,
    /// Addresses of pools and of nodes.
    PoolsAndHosts,
}

/// See [`Settings::service_loop`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceLoop {
    /// Dropped.
    Drop,
    /// Refused.
    Reject,
    /// Forwarded.
    Disabled,
}

/// A port that host endpoints never close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failsafe {
    /// IP protocol number.
    pub protocol: u8,
    /// The port.
    pub port: u16,
    /// Only from or to here; `None`: anywhere.
    pub net: Option<IpNet>,
}

/// Facts of the cluster and of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// All pools.
    pub pools: Vec<NatPool>,
    /// Addresses of all nodes, this one's too.
    pub nodes: BTreeSet<IpAddr>,
    /// Tunnel devices of this node.
    pub tunnels: Vec<Tunnel>,
    /// Some pool uses IP-in-IP.
    pub ipip: bool,
    /// Some pool uses VXLAN.
    pub vxlan: bool,
    /// Address ranges of services that the cluster announces.
    pub services: Vec<IpNet>,
}

/// A pool, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NatPool {
    /// Its addresses.
    pub net: IpNet,
    /// What leaves the pools from it gets another source (`natOutgoing`).
    pub nat_outgoing: bool,
}

/// A tunnel device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Its name.
    pub device: IfName,
    /// Its own address.
    pub address: Option<IpAddr>,
}

/// Destinations that are translated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nat {
    /// Floating IPs of local pods.
    pub floating_ips: Vec<FloatingIp>,
    /// Host ports of local pods.
    pub host_ports: Vec<HostPort>,
}

/// An address that leads to a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FloatingIp {
    /// The address that others use.
    pub external: IpAddr,
    /// The pod's address, of the same family.
    pub pod: IpAddr,
}

/// A port of this host that leads to a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// Only at this address of the host; `None`: at all of them.
    pub host: Option<IpAddr>,
    /// IP protocol number.
    pub protocol: u8,
    /// The host's port.
    pub port: u16,
    /// The pod's address.
    pub pod: IpAddr,
    /// The pod's port.
    pub pod_port: u16,
}

impl Default for Settings {
    fn default() -> Self {
        let (tcp, udp) = (|port| Failsafe::new(6, port), |port| Failsafe::new(17, port));
        let control = [179, 2379, 2380, 5473, 6443, 6666, 6667];
        Self {
            interface_prefixes: vec!["cali".into()],
            mark_mask: 0xffff_0000,
            endpoint_to_host: ToHost::Drop,
            failsafe_inbound: [tcp(22), udp(68)].into_iter().chain(control.map(tcp)).collect(),
            failsafe_outbound: [udp(53), udp(67)].into_iter().chain(control.map(tcp)).collect(),
            deny: DenyAction::Drop,
            log_prefix: "calico-packet".into(),
            log_limit: None,
            flow_logs: false,
            cut_flows: false,
            allow_ipip_from_pods: false,
            allow_vxlan_from_pods: false,
            disable_invalid_check: false,
            source_spoofing: false,
            vxlan_port: 4789,
            nat_ports: None,
            nat_outgoing_address: None,
            nat_exclusions: NatExclusions::PoolsOnly,
            nat_interface: None,
            service_loop: ServiceLoop::Drop,
            floating_ips: false,
        }
    }
}

impl Settings {
    /// The mark of a packet that an early policy of a host endpoint has allowed.
    pub(crate) fn accepted_bit(&self) -> u32 {
        self.mark_mask & self.mark_mask.wrapping_neg()
    }

    /// The mark of a packet that a policy has passed on to the next tier.
    pub(crate) fn passed_bit(&self) -> u32 {
        let rest = self.mark_mask & !self.accepted_bit();
        rest & rest.wrapping_neg()
    }

    /// With flow records: the mark of a packet while host endpoints are asked whether it may be forwarded. Rules of policies
    /// are the same there as for pods, so this tells in a record whose verdict it is. 0: the mask has no room for it.
    pub fn forwarded_bit(&self) -> u32 {
        let rest = self.mark_mask & !self.accepted_bit() & !self.passed_bit();
        rest & rest.wrapping_neg()
    }

    /// Whether a device leads to a pod, by its name.
    pub(crate) fn is_pod_device(&self, device: &str) -> bool {
        self.interface_prefixes.iter().any(|prefix| device.starts_with(prefix))
    }
}

impl Failsafe {
    /// A port from or to anywhere.
    pub fn new(protocol: u8, port: u16) -> Self {
        Self {
            protocol,
            port,
            net: None,
        }
    }
}
