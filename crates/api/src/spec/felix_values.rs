//! The values of the agent's settings.

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::problem::Problems;
use crate::value::{Duration, Protocol, check, choice, net};

choice! {
    /// On or off.
    pub enum Switch {
        /// On.
        Enabled = "Enabled",
        /// Off.
        Disabled = "Disabled",
    }
}

choice! {
    /// How bad something must be to be logged.
    pub enum LogSeverity {
        /// Everything.
        Trace = "Trace",
        /// Decisions.
        Debug = "Debug",
        /// Changes that one can see.
        Info = "Info",
        /// What someone should look at.
        Warning = "Warning",
        /// What went wrong.
        Error = "Error",
        /// What ends the process.
        Fatal = "Fatal",
    }
}

choice! {
    /// Which certificates clients must show.
    pub enum ClientAuth {
        /// One that we trust.
        RequireAndVerify = "RequireAndVerifyClientCert",
        /// Any.
        RequireAny = "RequireAnyClientCert",
        /// None, or one that we trust.
        VerifyIfGiven = "VerifyClientCertIfGiven",
        /// None.
        None = "NoClientCert",
    }
}

choice! {
    /// Where our rules stand in the kernel's chains.
    pub enum ChainInsertMode {
        /// Before others.
        Insert = "Insert",
        /// Behind others.
        Append = "Append",
    }
}

choice! {
    /// What happens to packets from workloads to their host.
    pub enum EndpointToHostAction {
        /// They are dropped.
        Drop = "Drop",
        /// They may pass.
        Accept = "Accept",
        /// The host's own rules decide.
        Return = "Return",
    }
}

choice! {
    /// What allowing a packet means.
    pub enum AllowAction {
        /// It may pass.
        Accept = "Accept",
        /// The host's own rules decide.
        Return = "Return",
    }
}

choice! {
    /// What denying a packet means.
    pub enum DenyAction {
        /// It disappears.
        Drop = "Drop",
        /// Its sender is told.
        Reject = "Reject",
    }
}

choice! {
    /// Where routes to workloads come from.
    pub enum RouteSource {
        /// Endpoints.
        WorkloadIps = "WorkloadIPs",
        /// IPAM's blocks.
        CalicoIpam = "CalicoIPAM",
    }
}

choice! {
    /// What happens to packets for services that do not exist.
    pub enum ServiceLoopPrevention {
        /// They disappear.
        Drop = "Drop",
        /// Their sender is told.
        Reject = "Reject",
        /// They may loop.
        Disabled = "Disabled",
    }
}

choice! {
    /// Whether workloads may ask to send from foreign addresses.
    pub enum WorkloadSourceSpoofing {
        /// They may not.
        Disabled = "Disabled",
        /// From any.
        Any = "Any",
    }
}

choice! {
    /// Destinations to which packets are not masqueraded.
    pub enum NatOutgoingExclusions {
        /// Pools.
        IpPoolsOnly = "IPPoolsOnly",
        /// Pools and hosts.
        IpPoolsAndHostIps = "IPPoolsAndHostIPs",
    }
}

choice! {
    /// For what ARP and NDP are answered in the host's subnet.
    pub enum LocalSubnetL2Reachability {
        /// For nothing.
        Disabled = "Disabled",
        /// For pods and load balancer addresses.
        PodsAndLoadBalancers = "PodsAndLoadBalancers",
    }
}

choice! {
    /// Which iptables is used.
    pub enum IptablesBackend {
        /// The old one.
        Legacy = "Legacy",
        /// The one on top of nftables.
        Nft = "NFT",
        /// What the host uses.
        Auto = "Auto",
    }
}

choice! {
    /// Whether nftables is used.
    pub enum NftablesMode {
        /// It is not.
        Disabled = "Disabled",
        /// It is.
        Enabled = "Enabled",
        /// If the host uses it.
        Auto = "Auto",
    }
}

choice! {
    /// How BPF programs are attached.
    pub enum BpfAttachType {
        /// By a queueing discipline.
        Tc = "TC",
        /// By TCX, else TC.
        Tcx = "TCX",
        /// By netkit, else TCX.
        Netkit = "Netkit",
    }
}

choice! {
    /// Connections that are balanced when made.
    pub enum BpfConnectTimeLoadBalancing {
        /// Those of TCP.
        Tcp = "TCP",
        /// All.
        Enabled = "Enabled",
        /// None.
        Disabled = "Disabled",
    }
}

choice! {
    /// Log of the cleaning of connections.
    pub enum BpfConntrackLogLevel {
        /// Nothing.
        Off = "Off",
        /// Everything.
        Debug = "Debug",
    }
}

choice! {
    /// Who cleans up connections.
    pub enum BpfConntrackMode {
        /// A program, if the kernel can.
        Auto = "Auto",
        /// The agent.
        Userspace = "Userspace",
        /// A program.
        BpfProgram = "BPFProgram",
    }
}

choice! {
    /// How strictly sources must be reachable.
    pub enum BpfEnforceRpf {
        /// Not at all.
        Disabled = "Disabled",
        /// Through the same interface.
        Strict = "Strict",
        /// Through some interface.
        Loose = "Loose",
    }
}

choice! {
    /// How connections from outside reach remote pods.
    pub enum BpfExternalServiceMode {
        /// By a tunnel, both ways.
        Tunnel = "Tunnel",
        /// By a tunnel, and straight back.
        Dsr = "DSR",
    }
}

choice! {
    /// Whether hardening of the BPF compiler may be relaxed.
    pub enum BpfJitHardening {
        /// From strict to normal.
        Auto = "Auto",
        /// It may not.
        Strict = "Strict",
    }
}

choice! {
    /// Log of BPF programs.
    pub enum BpfLogLevel {
        /// Nothing.
        Off = "Off",
        /// Verdicts.
        Info = "Info",
        /// Everything.
        Debug = "Debug",
    }
}

choice! {
    /// Whether a full table grows.
    pub enum BpfMapScaling {
        /// It does not.
        Disabled = "Disabled",
        /// To twice its size.
        DoubleIfFull = "DoubleIfFull",
    }
}

choice! {
    /// Source of the host's packets into a tunnel.
    pub enum BpfOverlaySource {
        /// The tunnel's own address.
        TunnelAddress = "TunnelAddress",
        /// The node's address.
        HostAddress = "HostAddress",
    }
}

choice! {
    /// Whether packets go to workloads past the host's end.
    pub enum BpfRedirectToPeer {
        /// They do.
        Enabled = "Enabled",
        /// They do not.
        Disabled = "Disabled",
        /// Old name for enabled.
        L2Only = "L2Only",
    }
}

choice! {
    /// Whether changes of policy are judged for flows that go on.
    pub enum FlowLogsPolicyEvaluation {
        /// They are not.
        None = "None",
        /// They are.
        Continuous = "Continuous",
    }
}

choice! {
    /// What to do with a cloud instance's source and destination check.
    pub enum AwsSrcDstCheck {
        /// Nothing.
        DoNothing = "DoNothing",
        /// Switch it on.
        Enable = "Enable",
        /// Switch it off.
        Disable = "Disable",
    }
}

/// A port with its protocol, for some addresses or all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtoPort {
    /// TCP, UDP or SCTP; absent means TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// 1 to 65535.
    pub port: u16,
    /// The addresses; absent means all.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "net::optional")]
    pub net: Option<IpNet>,
}

impl ProtoPort {
    pub(super) fn check(&self, problems: &mut Problems) {
        if let Some(protocol) = self.protocol.as_ref().filter(|protocol| !protocol.has_ports()) {
            problems.report("protocol", protocol, "must be TCP, UDP or SCTP");
        }
        if self.port == 0 {
            problems.report("port", 0, "must be from 1 to 65535");
        }
        if let Some(net) = self.net {
            check::masked("net", net, problems);
        }
    }
}

/// Route tables, the first and the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteTableRange {
    /// First, from 1.
    pub min: u32,
    /// Last.
    pub max: u32,
}

impl fmt::Display for RouteTableRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.min, self.max)
    }
}

/// Another time without a sign of life for one part of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthTimeoutOverride {
    /// The part, as the log calls it.
    pub name: String,
    /// The time.
    pub timeout: Duration,
}

/// How often something may be logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRate {
    /// 1 to 9999.
    pub lines: u16,
    /// In which time.
    pub per: RateUnit,
}

/// The time of a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateUnit {
    /// A second.
    Second,
    /// A minute.
    Minute,
    /// An hour.
    Hour,
    /// A day.
    Day,
}

impl RateUnit {
    const ALL: [(RateUnit, &'static str); 4] = [
        (RateUnit::Second, "second"),
        (RateUnit::Minute, "minute"),
        (RateUnit::Hour, "hour"),
        (RateUnit::Day, "day"),
    ];
}

impl FromStr for LogRate {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rate = text.split_once('/').and_then(|(lines, unit)| {
            let (per, _) = RateUnit::ALL.into_iter().find(|(_, name)| *name == unit)?;
            let is_number = lines.bytes().all(|byte| byte.is_ascii_digit()) && !lines.starts_with('0');
            let lines = lines.parse().ok().filter(|lines| is_number && *lines <= 9999)?;
            Some(LogRate { lines, per })
        });
        rate.ok_or("must be a rate of 1 to 9999: 10/second, 100/minute, …/hour or …/day")
    }
}

impl fmt::Display for LogRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = RateUnit::ALL
            .iter()
            .find(|(unit, _)| *unit == self.per)
            .map_or("second", |(_, name)| name);
        write!(f, "{}/{unit}", self.lines)
    }
}

impl Serialize for LogRate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for LogRate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// How long connections without packets live in the BPF dataplane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BpfConntrackTimeouts {
    /// Grace for new ones; default 10s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creation_grace_period: Option<ConntrackTimeout>,
    /// TCP after the first SYN; default 20s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_syn_sent: Option<ConntrackTimeout>,
    /// TCP while established; default 1h.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_established: Option<ConntrackTimeout>,
    /// TCP after both FINs; default Auto.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_fins_seen: Option<ConntrackTimeout>,
    /// TCP after a RST; default 40s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_reset_seen: Option<ConntrackTimeout>,
    /// UDP; default 60s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp_timeout: Option<ConntrackTimeout>,
    /// Other protocols; default 10m.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generic_timeout: Option<ConntrackTimeout>,
    /// ICMP; default 5s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_timeout: Option<ConntrackTimeout>,
}

/// A time, or the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConntrackTimeout {
    /// What the kernel uses for its own connections.
    Auto,
    /// This.
    After(Duration),
}

impl Serialize for ConntrackTimeout {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            ConntrackTimeout::Auto => serializer.serialize_str("Auto"),
            ConntrackTimeout::After(duration) => duration.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for ConntrackTimeout {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "Auto" => Ok(ConntrackTimeout::Auto),
            text => match text.parse() {
                Ok(duration) => Ok(ConntrackTimeout::After(duration)),
                Err(_) => Err(serde::de::Error::custom("must be Auto or a duration like 90s or 1m30s")),
            },
        }
    }
}
