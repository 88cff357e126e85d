//! What policy costs a packet, beside connection tracking alone and plain routing: pod, node, node, pod. Needs root.
//!
//!     cargo bench -p linux --bench policy_path [-- ROUNDS]
//!
//! Ways take turns, so that what disturbs one disturbs its neighbours; a figure is the median of each turn's difference or
//! ratio. CPU is that of the sending thread, which over veth devices walks the whole way into the receiver's socket: through
//! both nodes. UDP that nobody answers never becomes established, so each packet of it is asked about as the first of a flow
//! is. Ends with exit code 1 if a bar is missed.
#![allow(clippy::unwrap_used, reason = "not production code")]

#[path = "../tests/ipip_support/mod.rs"]
mod ipip_support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use api::{Action, Key, Kind};
use dataplane::filter::{Filter, Settings, TABLE};
use ipip_support::*;
use kernel::IpipFlavour;
use kernel::nft::*;
use linux::nft::LiveNft;
use policy::{
    Direction, Endpoint, EndpointId, HostHook, Interface, Member, Policy, PolicyChange, PolicyId, Set, SetId, SetKind,
    Side, Tier, TierEnd,
};
use testkit::measure::{median, thread_cpu};

const PACKETS: u64 = 10_000;
/// Local pods of a node with much policy.
const PODS: usize = 110;
/// Policies of such a node, each with a set of its own.
const POLICIES: usize = 2_000;
/// Members of these sets together; half of them are in the measured pods' set.
const MEMBERS: u32 = 250_000;
/// The profile of pods without policies: allows everything.
const PROFILE: &str = "kns.default";
/// For a new flow, CPU us a node beyond connection tracking.
const NEW_BAR: f64 = 1.0;
/// For an established flow, ratio to a node on which no pod has a policy.
const ESTABLISHED_BAR: f64 = 1.02;

/// One way from pod to pod.
struct Way {
    name: &'static str,
    nodes: [Node; 2],
    /// CPU us a packet, by turn: of new flows, of established ones.
    turns: [Vec<f64>; 2],
}

fn main() -> ExitCode {
    let rounds = std::env::args().filter_map(|argument| argument.parse().ok()).next();
    let rounds: usize = rounds.unwrap_or(60);
    let mut ways = [
        ("plain routing", nothing as fn(&Ns)),
        ("connection tracking", tracking),
        ("no policy", no_policy),
        ("1 policy", one_policy),
        ("2,000 policies, 250,000 members, 1 for the pod", many_policies),
        ("2,000 policies, 250,000 members, 19 for the pod", many_for_the_pod),
    ]
    .map(|(name, program)| {
        let nodes = nodes();
        nodes.iter().for_each(|node| program(&node.ns));
        Way {
            name,
            nodes,
            turns: Default::default(),
        }
    });
    for round in 0..=rounds {
        // Each way follows each other one as often as it can.
        for at in 0..ways.len() {
            let count = ways.len();
            let way = &mut ways[(at + round) % count];
            for (figure, is_answered) in [false, true].into_iter().enumerate() {
                let value = udp(&way.nodes, is_answered);
                // The first round warms up.
                if round > 0 {
                    way.turns[figure].push(value);
                }
            }
        }
    }
    report(&ways)
}

fn report(ways: &[Way]) -> ExitCode {
    let [plain, tracking, no_policy, policies @ ..] = ways else {
        return ExitCode::FAILURE;
    };
    println!("load {}", std::fs::read_to_string("/proc/loadavg").unwrap().trim());
    println!(
        "| way | new flow, CPU us | to plain | beyond tracking, us a node | established, CPU us | to plain | to tracking | to no policy |\n|---|---|---|---|---|---|---|---|"
    );
    for way in ways {
        println!(
            "| {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.3} | {:.3} |",
            way.name,
            median(way.turns[0].clone()),
            way.ratio(0, plain),
            way.beyond(tracking),
            median(way.turns[1].clone()),
            way.ratio(1, plain),
            way.ratio(1, tracking),
            way.ratio(1, no_policy)
        );
    }
    let mut missed = false;
    let mut at_most = |what: String, value: f64, bar: f64| {
        let verdict = if value <= bar { "ok    " } else { "MISSED" };
        missed |= value > bar;
        println!("{verdict} {what}: {value:.3}, at most {bar}");
    };
    // What a pod's own policies cost is theirs: the last way has no bar.
    for way in &policies[..2] {
        at_most(
            format!("{}, new flow, us a node beyond tracking", way.name),
            way.beyond(tracking),
            NEW_BAR,
        );
        at_most(
            format!("{}, established, to no policy", way.name),
            way.ratio(1, no_policy),
            ESTABLISHED_BAR,
        );
    }
    if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

impl Way {
    fn ratio(&self, figure: usize, base: &Way) -> f64 {
        let pairs = self.turns[figure].iter().zip(&base.turns[figure]);
        median(pairs.map(|(own, base)| own / base).collect())
    }

    /// What a new flow costs each node more.
    fn beyond(&self, base: &Way) -> f64 {
        let pairs = self.turns[0].iter().zip(&base.turns[0]);
        median(pairs.map(|(own, base)| (own - base) / 2.0).collect())
    }
}

/// Nodes joined by a link, without any tunnel.
fn nodes() -> [Node; 2] {
    let a = Node::new(1, A, IpipFlavour::Bpf, 1500);
    let b = Node::new(2, B, IpipFlavour::Bpf, 1500);
    a.ns.wire("eth0", &b.ns, "eth0");
    for (node, far, net) in [(&a, &b, "192.168.2.0/26"), (&b, &a, "192.168.1.0/26")] {
        node.ns.sh(&format!("ip addr add {}/24 dev eth0", node.address));
        node.ns.sh(&format!("ip route add {net} via {}", far.address));
    }
    let mac = |ns: &Ns| ns.sh("ip -o link show eth0").split("link/ether ").nth(1).unwrap()[..17].to_owned();
    for (node, far) in [(&a, &b), (&b, &a)] {
        for (address, lladdr, device) in [
            (far.address, mac(&far.ns), "eth0"),
            (node.pod_address, mac(&node.pod), "cali1"),
        ] {
            node.ns.sh(&format!(
                "ip neigh replace {address} lladdr {lladdr} dev {device} nud permanent"
            ));
        }
    }
    [a, b]
}

fn nothing(_: &Ns) {}

/// One rule that asks for the state of a packet's flow.
fn tracking(node: &Ns) {
    let base = BaseChain {
        kind: ChainKind::Filter,
        hook: Hook::Forward,
        priority: 0,
        drop: false,
    };
    let chain = Chain {
        name: "forward".into(),
        base: Some(base),
    };
    let established = Rule {
        matches: vec![Match::Conntrack([CtState::Established, CtState::Related].into())],
        verdict: Some(Verdict::Accept),
        ..Rule::default()
    };
    let transaction = Transaction {
        table: TableName("tracking".into()),
        changes: vec![Change::AddChain(chain), Change::AddRule("forward".into(), established)],
    };
    node.run(|| LiveNft::open().unwrap().apply_now(&transaction).unwrap());
}

/// A node of ours on which no policy selects a pod: what any node has, with a profile that allows everything.
fn no_policy(node: &Ns) {
    program(node, 1, 0, 0, 0);
}

fn one_policy(node: &Ns) {
    program(node, 1, 1, 1, 2);
}

fn many_policies(node: &Ns) {
    program(node, PODS, POLICIES, 1, MEMBERS);
}

fn many_for_the_pod(node: &Ns) {
    program(node, PODS, POLICIES, 19, MEMBERS);
}

/// Policies for pods, `own` for the first of them, the others in equal shares. The first pod is there, and what allows its
/// packets is the last of its policies, whose set has half of the members.
fn program(node: &Ns, pods: usize, policies: usize, own: usize, members: u32) {
    let mut filter = Filter::new(Settings {
        cut_flows: true,
        ..Settings::default()
    });
    filter.observed(None);
    filter.in_sync();
    let measured = [1, 2].map(|number| IpAddr::from(Ipv4Addr::new(192, 168, number, 2)));
    let others = u32::try_from(policies.saturating_sub(1)).unwrap().max(1);
    let profile = policy::Profile {
        ingress: [allow(Side::default(), Side::default())].into(),
        egress: [allow(Side::default(), Side::default())].into(),
        missing: false,
    };
    filter.policy(PolicyChange::Profile(PROFILE.into(), Some(Arc::new(profile))));
    for number in 0..policies {
        // Addresses that no packet has, and in the first set those of both pods.
        let count = if number == 0 { members / 2 } else { members / 2 / others };
        let first = 0x0b00_0000 + u32::try_from(number).unwrap() * 0x1_0000;
        let addresses = (0..count).map(|at| IpAddr::from(Ipv4Addr::from(first + at)));
        let ours = measured.into_iter().filter(|_| number == 0);
        let set = Set {
            kind: SetKind::Nets,
            meaning: "role == 'peer'".into(),
            members: addresses
                .chain(ours)
                .map(|address| Member::Net(address.into()))
                .collect::<BTreeSet<_>>(),
        };
        let id = SetId(format!("s{number}"));
        filter.policy(PolicyChange::Set(id.clone(), set));
        filter.policy(PolicyChange::Policy(policy_id(number), Some(Arc::new(peers(&id)))));
    }
    for pod in 0..pods {
        let address = Ipv4Addr::new(10, 66, 0, u8::try_from(pod).unwrap()).into();
        let (addresses, numbers): (Vec<IpAddr>, Vec<usize>) = match pod {
            0 => (measured.to_vec(), (0..own).rev().collect()),
            _ => (vec![address], (own..policies).skip(pod - 1).step_by(pods - 1).collect()),
        };
        let ids = numbers.into_iter().map(policy_id).collect();
        let id = EndpointId::Workload(Key::namespaced(
            Kind::WorkloadEndpoint,
            "default",
            format!("n-k8s-{pod}-eth0"),
        ));
        filter.policy(PolicyChange::Endpoint(
            id,
            Some(Arc::new(endpoint(pod, addresses, ids))),
        ));
    }
    let nft = node.run(LiveNft::open).unwrap();
    while let Some(transaction) = filter.transaction() {
        assert_eq!(transaction.table.0, TABLE);
        filter.done(nft.apply_now(&transaction));
    }
    assert_eq!(filter.problems(), []);
}

fn policy_id(number: usize) -> PolicyId {
    Key::namespaced(Kind::NetworkPolicy, "default", format!("p{number}"))
}

/// Ports as most policies have them, from and to the members of a set.
fn peers(set: &SetId) -> Policy {
    let side = || Side {
        sets: vec![set.clone()],
        ..Side::default()
    };
    let ports = |side: Side| Side {
        ports: vec![(1024, 65535)],
        ..side
    };
    let rule = |source: Side, destination: Side| policy::Rule {
        protocol: Some(17),
        ..allow(source, ports(destination))
    };
    Policy {
        tier: "default".into(),
        selector: "all()".into(),
        ingress: [rule(side(), Side::default())].into(),
        egress: [rule(Side::default(), side())].into(),
    }
}

fn allow(source: Side, destination: Side) -> policy::Rule {
    policy::Rule {
        index: 0,
        action: Action::Allow,
        family: None,
        protocol: None,
        not_protocol: None,
        icmp: None,
        not_icmp: None,
        source,
        destination,
    }
}

/// One without policies has a profile.
fn endpoint(pod: usize, addresses: Vec<IpAddr>, policies: Vec<PolicyId>) -> Endpoint {
    let tier = Tier {
        name: "default".into(),
        policies: policies.clone(),
        staged: Vec::new(),
        end: TierEnd::Deny,
    };
    let direction = || Direction {
        tiers: Some(tier.clone())
            .into_iter()
            .filter(|_| !policies.is_empty())
            .collect(),
    };
    Endpoint {
        interface: Interface::Named(format!("cali{}", pod + 1)),
        labels: BTreeMap::new(),
        addresses,
        spoofable: Vec::new(),
        ingress: direction(),
        egress: direction(),
        forward: HostHook::default(),
        pre_dnat: Direction::default(),
        untracked: HostHook::default(),
        profiles: Some(PROFILE.to_owned())
            .into_iter()
            .filter(|_| policies.is_empty())
            .collect(),
        closed: None,
    }
}

/// CPU us of the sender for each packet of a flow. One that is answered once is established.
fn udp([a, b]: &[Node; 2], is_answered: bool) -> f64 {
    let receiver = b.pod.run(|| UdpSocket::bind((b.pod_address, 0)).unwrap());
    receiver.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let target = receiver.local_addr().unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 128];
            let mut is_first = true;
            while !stop.load(Ordering::Relaxed) {
                if let Ok((_, from)) = receiver.recv_from(&mut buffer)
                    && std::mem::take(&mut is_first)
                    && is_answered
                {
                    receiver.send_to(&buffer[..1], from).unwrap();
                }
            }
        });
        a.pod.run(|| {
            let sender = UdpSocket::bind((a.pod_address, 0)).unwrap();
            sender.connect(target).unwrap();
            sender.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let payload = [7; 64];
            sender.send(&payload).unwrap();
            if is_answered {
                sender.recv(&mut [0; 128]).expect("the first packet is answered");
            }
            let before = thread_cpu();
            for _ in 0..PACKETS {
                let _ = sender.send(&payload);
            }
            let cpu = thread_cpu() - before;
            stop.store(true, Ordering::Relaxed);
            cpu.as_secs_f64() * 1e6 / PACKETS as f64
        })
    })
}
