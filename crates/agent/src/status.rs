//! What the agent tells people: one report, the same for `node status`, readiness and metrics.

use std::collections::BTreeMap;
use std::time::Instant;

use dataplane::RouteClass;
use dataplane::filter::{DropCause, Pass};
use datastore::{StoreError, Trouble};
pub use health::Condition;
use jiff::Timestamp;
use kernel::nft::Count;
use kernel::{Direction, IpipCounters, QueueCounters, ShaperKey};
use serde::{Deserialize, Serialize};

use crate::AgentError;
use crate::config::Work;
use crate::packet_filter::FilterReport;
use crate::register::OwnAddresses;
use crate::run::Applied;

/// How far the datastore has been read.
#[derive(Clone, Debug, PartialEq)]
pub enum SyncState {
    /// Not reached yet.
    Connecting,
    /// Everything was read; changes follow.
    InSync,
    /// Was read, cannot be reached now. What is programmed stays.
    Disconnected(StoreError),
}

/// The loop's part.
pub struct DataplaneReport {
    /// The datastore now.
    pub sync: SyncState,
    /// The datastore was read at least once.
    pub synced: bool,
    /// It has not, and what the last agent knew of it is used.
    pub recalled: bool,
    /// The kernel.
    pub dataplane: dataplane::Status,
    /// The packet filter.
    pub filter: FilterReport,
    /// Resources that are not used as written.
    pub problems: Vec<String>,
    /// Counters.
    pub applied: Applied,
    /// What the agent does beside enforcing policy.
    pub work: Work,
    /// The desired state.
    pub state: calc::NodeState,
}

/// The speaker's part.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpReport {
    /// It has a configuration.
    pub running: bool,
    /// Its BGP identifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router_id: Option<String>,
    /// When it was last configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configured: Option<Timestamp>,
    /// Why it does not listen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen_error: Option<String>,
    /// Its peers.
    pub peers: Vec<BgpPeerReport>,
    /// Prefixes with a usable path.
    pub routes: usize,
}

/// One peer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpPeerReport {
    /// `Mesh_10_211_55_8`.
    pub name: String,
    /// Its address.
    pub address: String,
    /// RFC 4271's state.
    pub state: String,
    /// Seconds in that state.
    pub since_seconds: u64,
    /// Why it is not up, or why it was last down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub info: Option<String>,
    /// Prefixes that it told us.
    pub received: usize,
    /// Prefixes that we told it.
    pub advertised: usize,
}

/// Everything, as `/status` answers it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Node.
    pub node: String,
    /// Version of the agent.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// When it started.
    pub started: Timestamp,
    /// Ready: datastore read, kernel programmed.
    pub ready: bool,
    /// Each part with its reason: `Address`, `Registered`, `Datastore`, `Dataplane`, `Policy`, `CNI`, `TunnelIP`, `BGP`.
    pub conditions: Vec<Condition>,
    /// Own addresses and why they were chosen.
    pub addresses: AddressReport,
    /// How packets are encapsulated.
    pub ipip: IpipReport,
    /// Sessions.
    pub bgp: BgpReport,
    /// Queues that hold pods to their bandwidths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queues: Vec<QueueReport>,
    /// Objects in the kernel: wanted, installed, failed.
    pub kernel: Vec<KernelClassReport>,
    /// Network policy on this node.
    #[serde(default)]
    pub policy: PolicyReport,
    /// Routes that cannot be installed, with reasons; objects that the kernel refused; resources not used as written.
    pub problems: Vec<String>,
    /// MTU of new pods.
    pub pod_mtu: u32,
}

/// Own addresses.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AddressReport {
    /// With the subnet's length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<String>,
    /// With the subnet's length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<String>,
    /// Why these.
    pub why: Vec<String>,
}

/// The tunnel.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpipReport {
    /// `native`, `bpf` or `none`.
    pub flavour: String,
    /// What the probe found.
    pub why: String,
    /// Its address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Packets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counters: Option<IpipCounters>,
}

/// One class of kernel objects.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelClassReport {
    /// `routes`, `addresses`, …
    pub class: String,
    /// Wanted.
    pub wanted: usize,
    /// Of these, there.
    pub installed: usize,
    /// Of these, refused.
    pub failed: usize,
}

/// Network policy on this node.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyReport {
    /// Local endpoints, host endpoints included.
    pub endpoints: usize,
    /// Policies that apply to one of them.
    pub policies: usize,
    /// Sets that their rules use.
    pub sets: usize,
    /// Members of these sets.
    pub members: usize,
    /// Transactions that the kernel took.
    pub transactions: u64,
    /// Transactions that it refused.
    pub failed: u64,
    /// How long the last one took, in microseconds.
    pub last_microseconds: u64,
    /// Flows cut because policy forbids them now.
    #[serde(default)]
    pub flows_forbidden: u64,
    /// Flows cut because their pod is gone.
    #[serde(default)]
    pub flows_gone: u64,
    /// What was dropped; empty if nothing was, or if nobody asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drops: Vec<DropReport>,
    /// What policies' rules let pass or logged: of a flow only the first packet. Empty if nothing was, or if nobody asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passes: Vec<PassReport>,
}

/// What a queue has seen that holds a pod to a bandwidth.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QueueReport {
    /// The pod's device on the host.
    pub device: String,
    /// `ingress` for what the pod receives, `egress` for what it sends.
    pub direction: String,
    /// Since the queue was made.
    #[serde(flatten)]
    pub counters: QueueCounters,
}

/// What was dropped for one cause.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DropReport {
    /// The cause as a word.
    pub cause: String,
    /// Which policy, profile or tier, if it was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What rules of one policy or profile let pass.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PassReport {
    /// `allow`, `pass` or `log`.
    pub action: String,
    /// Kind and full name.
    pub name: String,
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What start-up knows and the loops do not.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Node.
    pub node: String,
    /// When the agent started.
    pub started: Timestamp,
    /// Found addresses, or why there are none.
    pub addresses: Result<OwnAddresses, String>,
    /// What the probe found.
    pub probe: ProbeSummary,
    /// Registered in the datastore, or why not.
    pub registered: Result<(), Unregistered>,
    /// Has the tunnel address that it needs, or why not.
    pub tunnel: Result<(), String>,
    /// The CNI server answers, or why not.
    pub cni: Result<(), String>,
    /// What is wrong with single pods.
    pub pod_problems: Vec<String>,
}

/// Why a node is not registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unregistered {
    /// A word for programs: the datastore's, if it is the datastore that does not do it.
    pub reason: &'static str,
    /// A sentence for people.
    pub why: String,
}

impl From<&AgentError> for Unregistered {
    fn from(error: &AgentError) -> Self {
        let reason = match error {
            AgentError::Store(StoreError::Unavailable(trouble)) => trouble.reason.word(),
            _ => NOT_REGISTERED,
        };
        Self {
            reason,
            why: error.to_string(),
        }
    }
}

/// The reason where there is no better one.
const NOT_REGISTERED: &str = "NotRegistered";

/// What the IPIP probe found.
#[derive(Clone, Debug, Default)]
pub struct ProbeSummary {
    /// `native`, `bpf` or `none`.
    pub flavour: String,
    /// Why.
    pub why: String,
}

impl Identity {
    /// What is known when the agent starts: nothing has been done yet.
    pub fn new(node: &str, started: Timestamp, probe: ProbeSummary) -> Self {
        Self {
            node: node.to_string(),
            started,
            addresses: Err("not looked for yet".into()),
            probe,
            registered: Err(Unregistered {
                reason: NOT_REGISTERED,
                why: "not registered yet".into(),
            }),
            tunnel: Ok(()),
            cni: Err("not started yet".into()),
            pod_problems: Vec::new(),
        }
    }
}

impl Report {
    /// Puts the parts together.
    pub fn assemble(
        identity: &Identity,
        loops: DataplaneReport,
        bgp: BgpReport,
        counters: Option<IpipCounters>,
        trouble: Option<&Trouble>,
    ) -> Self {
        let addresses = match &identity.addresses {
            Ok(own) => AddressReport {
                ipv4: own.ipv4.map(|net| net.to_string()),
                ipv6: own.ipv6.map(|net| net.to_string()),
                why: own.why.clone(),
            },
            Err(why) => AddressReport {
                why: vec![why.clone()],
                ..AddressReport::default()
            },
        };
        let conditions = conditions(identity, &loops, &bgp, trouble);
        let tunnel = loops.state.this_node.as_ref().and_then(|node| node.ipip_tunnel);
        let mut problems = loops.problems;
        problems.extend(identity.pod_problems.iter().cloned());
        problems.extend(kernel_problems(&loops.dataplane));
        let filter = &loops.filter;
        problems.extend(filter.problems.iter().cloned());
        let policy = PolicyReport {
            endpoints: filter.endpoints,
            policies: filter.policies,
            sets: filter.sets,
            members: filter.members,
            transactions: filter.applied.transactions,
            failed: filter.applied.failed,
            last_microseconds: u64::try_from(filter.applied.last.as_micros()).unwrap_or(u64::MAX),
            flows_forbidden: filter.applied.flows_forbidden,
            flows_gone: filter.applied.flows_gone,
            drops: Vec::new(),
            passes: Vec::new(),
        };
        Self {
            node: identity.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_string(),
            pid: std::process::id(),
            started: identity.started,
            ready: conditions.iter().all(|condition| condition.ok || !condition.required),
            conditions,
            addresses,
            ipip: IpipReport {
                flavour: identity.probe.flavour.clone(),
                why: identity.probe.why.clone(),
                address: tunnel.map(|address| address.to_string()),
                counters,
            },
            kernel: kernel_classes(&loops.dataplane, &loops.filter),
            policy,
            problems,
            pod_mtu: loops.dataplane.mtu.pod,
            bgp,
            queues: Vec::new(),
        }
    }

    /// Takes what the kernel's queues have counted.
    pub fn with_queues(mut self, counters: BTreeMap<ShaperKey, QueueCounters>) -> Self {
        let report = |(key, counters): (ShaperKey, QueueCounters)| QueueReport {
            device: key.device.0,
            direction: match key.direction {
                Direction::Ingress => "ingress".into(),
                Direction::Egress => "egress".into(),
            },
            counters,
        };
        self.queues = counters.into_iter().map(report).collect();
        self
    }
}

impl DropReport {
    /// As people and programs are told.
    pub fn of(drops: &BTreeMap<DropCause, Count>) -> Vec<Self> {
        let report = |(cause, count): (&DropCause, &Count)| Self {
            cause: cause.word().to_owned(),
            name: cause.name().map(str::to_owned),
            packets: count.packets,
            bytes: count.bytes,
        };
        drops.iter().map(report).collect()
    }
}

impl PassReport {
    /// As people and programs are told.
    pub fn of(passes: &BTreeMap<Pass, Count>) -> Vec<Self> {
        let report = |(pass, count): (&Pass, &Count)| Self {
            action: pass.action.to_owned(),
            name: pass.name.clone(),
            packets: count.packets,
            bytes: count.bytes,
        };
        passes.iter().map(report).collect()
    }
}

/// What the datastore is, and why; a word and a sentence either way.
fn datastore(
    loops: &DataplaneReport,
    trouble: Option<&Trouble>,
) -> Result<(&'static str, String), (&'static str, String)> {
    match (&loops.sync, trouble) {
        (SyncState::InSync, None) => Ok(("InSync", "the datastore has been read; changes follow".to_string())),
        (SyncState::InSync, Some(trouble)) => {
            Err((trouble.reason.word(), format!("working from what was read: {trouble}")))
        }
        (SyncState::Disconnected(error), _) => {
            let from = match (loops.synced, loops.recalled) {
                (true, _) => "working from what was read: ",
                (false, true) => "going on from what an earlier agent knew: ",
                (false, false) => "",
            };
            Err((error.loss(loops.synced), format!("{from}{error}")))
        }
        (SyncState::Connecting, _) => Err(("Connecting", "the datastore has not been read yet".to_string())),
    }
}

fn conditions(
    identity: &Identity,
    loops: &DataplaneReport,
    bgp: &BgpReport,
    trouble: Option<&Trouble>,
) -> Vec<Condition> {
    let condition = |name: &str, required: bool, outcome: Result<(&str, String), (&str, String)>| {
        let (ok, (reason, message)) = match outcome {
            Ok(fine) => (true, fine),
            Err(wrong) => (false, wrong),
        };
        Condition {
            name: name.into(),
            ok,
            required,
            reason: reason.into(),
            message,
        }
    };
    let outcome = |result: &Result<(), String>, good: &'static str, fine: &str, bad: &'static str| match result {
        Ok(()) => Ok((good, fine.to_string())),
        Err(why) => Err((bad, why.clone())),
    };
    let datastore = datastore(loops, trouble);
    let failed = loops.dataplane.failed.len();
    let dataplane = match (loops.applied.observations, failed) {
        (0, _) => Err(("NotObserved", "the kernel's state has not been read yet".to_string())),
        (_, 0) => Ok(("Programmed", "the kernel is as wanted".to_string())),
        (_, n) => Err((
            "OperationsFailed",
            format!("{n} objects could not be programmed; see problems"),
        )),
    };
    let filter = &loops.filter;
    let policy = match &filter.broken {
        Some(why) => Err(("NotEnforced", format!("nf_tables: {why}"))),
        None if filter.applied.looks == 0 => Err(("NotObserved", "nf_tables has not been read yet".to_string())),
        None if filter.enforced < filter.endpoints => Err((
            "Programming",
            format!("{} of {} endpoints enforced", filter.enforced, filter.endpoints),
        )),
        None => Ok((
            "Enforced",
            format!("{} policies for {} endpoints", filter.policies, filter.endpoints),
        )),
    };
    let up = bgp.peers.iter().filter(|peer| peer.state == "Established").count();
    let sessions = match (bgp.running, &bgp.listen_error) {
        (false, _) if loops.work == Work::WithoutBgp => Ok((
            "Disabled",
            "routes to other nodes' blocks follow from the datastore".to_string(),
        )),
        (false, _) => Err(("NotConfigured", "the speaker has no configuration yet".to_string())),
        (true, Some(why)) => Err(("CannotListen", why.clone())),
        (true, None) if up == bgp.peers.len() => Ok(("Established", format!("{up} of {up} sessions established"))),
        (true, None) => Err(("PeersDown", format!("{up} of {} sessions established", bgp.peers.len()))),
    };
    let found = match &identity.addresses {
        Ok(_) => Ok(()),
        Err(why) => Err(why.clone()),
    };
    let all = vec![
        condition(
            "Address",
            true,
            outcome(&found, "Found", "this node's address is known", "NotFound"),
        ),
        condition(
            "Registered",
            true,
            match &identity.registered {
                Ok(()) => Ok(("Registered", "the Node is in the datastore".to_string())),
                Err(unregistered) => Err((unregistered.reason, unregistered.why.clone())),
            },
        ),
        // A node that has what it needs goes on without its datastore: then this is a warning.
        condition("Datastore", !loops.synced, datastore),
        condition("Dataplane", true, dataplane),
        condition("Policy", true, policy),
        condition(
            "CNI",
            true,
            outcome(&identity.cni, "Serving", "the CNI server answers", "NotServing"),
        ),
        condition(
            "TunnelIP",
            false,
            outcome(
                &identity.tunnel,
                "Settled",
                "the address of tunl0 is as the pools want it",
                "NotSettled",
            ),
        ),
        condition("BGP", false, sessions),
    ];
    // Where another plugin does the rest, there is no more to say than this.
    let said = |condition: &Condition| {
        loops.work != Work::PolicyOnly || ["Datastore", "Policy"].contains(&condition.name.as_str())
    };
    all.into_iter().filter(said).collect()
}

/// What is wanted and what is there, by class.
fn kernel_classes(status: &dataplane::Status, filter: &FilterReport) -> Vec<KernelClassReport> {
    let class = |class: &str, counts: dataplane::Counts| KernelClassReport {
        class: class.to_string(),
        wanted: counts.wanted,
        installed: counts.programmed,
        failed: counts.failed,
    };
    let counts = |of: RouteClass| status.routes.get(&of).copied().unwrap_or_default();
    vec![
        class("pod routes", counts(RouteClass::Local)),
        class("block routes", counts(RouteClass::Block)),
        class("bgp routes", counts(RouteClass::Bgp)),
        class("tunnel peers", status.tunnel_peers),
        class("sysctls", status.sysctls),
        class("shapers", status.shapers),
        KernelClassReport {
            class: "policy endpoints".into(),
            wanted: filter.endpoints,
            installed: filter.enforced,
            failed: 0,
        },
    ]
}

fn kernel_problems(status: &dataplane::Status) -> Vec<String> {
    let items = status.failed.iter().chain(&status.unshaped);
    let failed = items.map(|item| format!("{}: {}", item.what, item.why));
    let unresolved = status
        .unresolved
        .iter()
        .map(|route| format!("route {}: {}", route.prefix, route.why));
    let birds: Vec<String> = status.birds.iter().map(ToString::to_string).collect();
    let left = (!birds.is_empty()).then(|| {
        format!(
            "BIRD's routes lead to {}: nobody keeps them up to date, and they may count before ours; `ip route flush proto bird` \
             removes them",
            birds.join(", ")
        )
    });
    failed.chain(unresolved).chain(left).collect()
}

impl BgpReport {
    /// Reads a speaker's status.
    pub fn of(speaker: Option<&bgp::Speaker>, listen_error: Option<String>, now: Instant) -> Self {
        let Some(speaker) = speaker else {
            return Self {
                listen_error,
                ..Self::default()
            };
        };
        let report = |peer: bgp::PeerStatus| BgpPeerReport {
            name: peer.name,
            address: peer.peer.0.ip().to_string(),
            state: peer.state.to_string(),
            since_seconds: now.saturating_duration_since(peer.since).as_secs(),
            info: peer.last_error.map(|(_, error)| error.to_string()),
            received: peer.counters.prefixes_received,
            advertised: peer.counters.prefixes_advertised,
        };
        let peers = speaker.status().into_iter().map(report).collect();
        Self {
            running: true,
            listen_error,
            peers,
            routes: speaker.routes().count(),
            ..Self::default()
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
