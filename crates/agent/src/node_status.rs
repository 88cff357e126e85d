//! What this node says of itself in the datastore, where a CalicoNodeStatus asks for it.
//!
//! ```text
//!   the datastore's watch ─ what is wished ─> Wishes (when is it time?) ─> report, routes ─> status of the CalicoNodeStatus
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use api::resource::CalicoNodeStatus;
use api::{
    BgpDaemonStatus, CalicoNodeStatusSpec, CalicoNodeStatusStatus, Key, Kind, NodeAgentStatus, NodeBgpStatus,
    NodePeerStatus, NodeRoute, NodeRouteSource, NodeRouteStatus, NodeStatusClass,
};
use datastore::{SharedStore, StoreError, Update};
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use kernel::{PROTOCOL_OURS, Route, RouteTarget, TABLE_MAIN};
use tokio::sync::mpsc;

use crate::http::Sources;
use crate::speaker::Learnt;
use crate::status::Report;

/// How long to wait after the datastore, or a part of the agent, did not answer.
const PAUSE: Duration = Duration::from_secs(5);
/// An object of the datastore holds so many routes of a family; more are left out.
const MOST_ROUTES: usize = 2000;
/// `RTPROT_KERNEL`: what follows from the addresses of devices.
const PROTOCOL_KERNEL: u8 = 2;

/// What somebody wishes to be told: the object, or `None` once it is gone.
pub type Wish = (Key, Option<Box<CalicoNodeStatus>>);

/// What an update wishes.
pub fn wish(node: &str, update: &Update) -> Option<Wish> {
    if update.key.kind != Kind::CalicoNodeStatus {
        return None;
    }
    let wished = update
        .value
        .clone()
        .and_then(|value| CalicoNodeStatus::try_from(value).ok());
    let ours = wished.filter(|wished| wished.spec.node == node);
    Some((update.key.clone(), ours.map(Box::new)))
}

/// Says what is wished whenever it is time, for as long as the agent lives.
pub async fn keep(store: SharedStore, sources: Sources, mut wishes: mpsc::UnboundedReceiver<Wish>) {
    let mut wished = Wishes::default();
    loop {
        tokio::select! {
            wish = wishes.recv() => match wish {
                Some((key, object)) => wished.note(key, object.as_deref(), Instant::now()),
                // The datastore's watch has ended, and with it soon the agent.
                None => std::future::pending().await,
            },
            () = until(wished.due()) => {
                for (key, spec) in wished.at(Instant::now()) {
                    let said = say(&store, &sources, &key, &spec).await;
                    if let Err(why) = &said {
                        tracing::warn!(%key, why, "this node's status cannot be told; trying again");
                    }
                    wished.done(&key, said.is_ok(), Instant::now());
                }
            }
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

async fn say(store: &SharedStore, sources: &Sources, key: &Key, spec: &CalicoNodeStatusSpec) -> Result<(), String> {
    let status = gather(sources, spec).await?;
    for _ in 0..3 {
        let Some(stored) = store.get(key).await.map_err(|error| error.to_string())? else {
            return Ok(());
        };
        let Ok(mut object) = CalicoNodeStatus::try_from(stored.resource) else {
            return Ok(());
        };
        object.status = Some(status.clone());
        match store.update(object.into(), &stored.revision).await {
            Ok(_) | Err(StoreError::NotFound(_)) => return Ok(()),
            Err(StoreError::Conflict(_)) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Err("somebody else writes it all the time".into())
}

async fn gather(sources: &Sources, spec: &CalicoNodeStatusSpec) -> Result<CalicoNodeStatusStatus, String> {
    let now = Timestamp::now();
    let has = |class| spec.classes.contains(&class);
    let mut status = CalicoNodeStatusStatus {
        last_updated: Some(Timestamp::from_second(now.as_second()).unwrap_or(now)),
        ..CalicoNodeStatusStatus::default()
    };
    if has(NodeStatusClass::Agent) || has(NodeStatusClass::Bgp) {
        let report = sources.report().await?;
        if has(NodeStatusClass::Agent) {
            status.agent = Box::new(agent(&report));
        }
        if has(NodeStatusClass::Bgp) {
            status.bgp = sessions(&report, now);
        }
    }
    if has(NodeStatusClass::Routes) {
        let learnt = sources.learnt().await?;
        let kernel = sources.kernel_routes().await?;
        status.routes = routes(&kernel, &learnt);
    }
    Ok(status)
}

/// One speaker is both daemons; each is told of if the node has an address of its family.
fn agent(report: &Report) -> NodeAgentStatus {
    let ready = report.bgp.running && report.bgp.listen_error.is_none();
    let daemon = BgpDaemonStatus {
        state: if ready { "Ready" } else { "NotReady" }.to_owned(),
        version: format!("margay {}", report.version),
        router_id: report.bgp.router_id.clone().unwrap_or_default(),
        last_boot_time: written(report.started),
        last_reconfiguration_time: report.bgp.configured.map(written).unwrap_or_default(),
    };
    let of = |address: &Option<String>| address.as_ref().map(|_| daemon.clone()).unwrap_or_default();
    NodeAgentStatus {
        bird_v4: of(&report.addresses.ipv4),
        bird_v6: of(&report.addresses.ipv6),
    }
}

/// As upstream writes times here.
fn written(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

fn sessions(report: &Report, now: Timestamp) -> NodeBgpStatus {
    let mut status = NodeBgpStatus::default();
    for peer in &report.bgp.peers {
        let since = i64::try_from(peer.since_seconds).unwrap_or(i64::MAX);
        let since = now
            .checked_sub(SignedDuration::from_secs(since))
            .map(written)
            .unwrap_or_default();
        let said = NodePeerStatus {
            peer_ip: peer.address.clone(),
            kind: match peer.name.split('_').next() {
                Some("Mesh") => "NodeMesh",
                Some("Global") => "GlobalPeer",
                _ => "NodePeer",
            }
            .to_owned(),
            state: peer.state.clone(),
            since,
        };
        let (peers, up, down) = match peer.address.contains(':') {
            false => (
                &mut status.peers_v4,
                &mut status.established_v4,
                &mut status.not_established_v4,
            ),
            true => (
                &mut status.peers_v6,
                &mut status.established_v6,
                &mut status.not_established_v6,
            ),
        };
        *if peer.state == "Established" { up } else { down } += 1;
        peers.push(said);
    }
    status
}

/// What the kernel has, then what BGP knows beside it.
fn routes(kernel: &[Route], learnt: &[Learnt]) -> NodeRouteStatus {
    let mut all = Vec::new();
    for route in kernel.iter().filter(|route| route.key.table == TABLE_MAIN) {
        let hops: Vec<(String, String)> = match &route.target {
            RouteTarget::Via(hops) => hops
                .iter()
                .map(|hop| (hop.gateway.to_string(), hop.device.0.clone()))
                .collect(),
            RouteTarget::Link { device } => vec![("N/A".into(), device.0.clone())],
            RouteTarget::Blackhole => vec![("N/A".into(), "blackhole".into())],
            RouteTarget::Unreachable | RouteTarget::Prohibit => vec![("N/A".into(), "unreachable".into())],
            RouteTarget::Other(_) => continue,
        };
        for (gateway, interface) in hops {
            let learned_from = source(route, &gateway, learnt);
            let fib = |kind: &str| NodeRoute {
                kind: kind.to_owned(),
                destination: route.key.destination.to_string(),
                gateway: gateway.clone(),
                interface: interface.clone(),
                learned_from: learned_from.clone(),
            };
            all.push((route.key.destination, fib("FIB")));
        }
    }
    let in_kernel = |path: &Learnt| {
        let via = path.next_hop.to_string();
        all.iter()
            .any(|(prefix, route)| *prefix == path.prefix && route.gateway == via)
    };
    let beside: Vec<(IpNet, NodeRoute)> = (learnt.iter().filter(|path| !in_kernel(path)))
        .map(|path| {
            let route = NodeRoute {
                kind: "RIB".to_owned(),
                destination: path.prefix.to_string(),
                gateway: path.next_hop.to_string(),
                interface: String::new(),
                learned_from: peer(path),
            };
            (path.prefix, route)
        })
        .collect();
    all.extend(beside);
    all.sort();
    let mut status = NodeRouteStatus::default();
    for (prefix, route) in all {
        let routes = match prefix {
            IpNet::V4(_) => &mut status.routes_v4,
            IpNet::V6(_) => &mut status.routes_v6,
        };
        if routes.len() < MOST_ROUTES {
            routes.push(route);
        }
    }
    status
}

fn source(route: &Route, gateway: &str, learnt: &[Learnt]) -> NodeRouteSource {
    let said = learnt
        .iter()
        .find(|path| path.prefix == route.key.destination && path.next_hop.to_string() == gateway);
    let plain = |kind: &str| NodeRouteSource {
        source_type: kind.to_owned(),
        ..NodeRouteSource::default()
    };
    match (said, route.protocol, &route.target) {
        (Some(path), PROTOCOL_OURS, _) => peer(path),
        (_, PROTOCOL_OURS, RouteTarget::Blackhole) => plain("Static"),
        (_, PROTOCOL_KERNEL, _) => plain("Direct"),
        _ => plain("Kernel"),
    }
}

fn peer(path: &Learnt) -> NodeRouteSource {
    NodeRouteSource {
        source_type: if path.mesh { "NodeMesh" } else { "BGPPeer" }.to_owned(),
        peer_ip: path.peer.to_string(),
    }
}

/// Who wishes to be told what, and when it is time.
#[derive(Debug, Default)]
struct Wishes(BTreeMap<Key, Wished>);

#[derive(Debug)]
struct Wished {
    spec: CalicoNodeStatusSpec,
    due: Option<Instant>,
}

impl Wishes {
    /// Takes what an object wishes. What is told makes it come again: that is no new wish.
    fn note(&mut self, key: Key, object: Option<&CalicoNodeStatus>, now: Instant) {
        let Some(object) = object else {
            self.0.remove(&key);
            return;
        };
        let known = self.0.get(&key);
        if known.is_some_and(|known| known.spec == object.spec) {
            return;
        }
        let spec = object.spec.clone();
        let told = object
            .status
            .as_ref()
            .is_some_and(|status| status.last_updated.is_some());
        // Once is enough, also if that was an earlier agent.
        let enough = spec.period() == 0 && told && known.is_none();
        let due = (!enough).then_some(now);
        self.0.insert(key, Wished { spec, due });
    }

    fn due(&self) -> Option<Instant> {
        self.0.values().filter_map(|wished| wished.due).min()
    }

    fn at(&self, now: Instant) -> Vec<(Key, CalicoNodeStatusSpec)> {
        let due = |wished: &Wished| wished.due.is_some_and(|due| due <= now);
        let due = self.0.iter().filter(|(_, wished)| due(wished));
        due.map(|(key, wished)| (key.clone(), wished.spec.clone())).collect()
    }

    fn done(&mut self, key: &Key, well: bool, now: Instant) {
        let Some(wished) = self.0.get_mut(key) else { return };
        wished.due = match (well, wished.spec.period()) {
            (false, _) => Some(now + PAUSE),
            (true, 0) => None,
            (true, period) => Some(now + Duration::from_secs(u64::from(period))),
        };
    }
}

#[cfg(test)]
mod tests {
    use kernel::{IfName, NextHop, RouteKey};

    use super::*;

    fn object(period: u32, told: bool) -> CalicoNodeStatus {
        let spec = CalicoNodeStatusSpec {
            node: "n1".into(),
            classes: vec![NodeStatusClass::Bgp],
            update_period_seconds: Some(period),
        };
        let mut object = CalicoNodeStatus::new("a", spec);
        object.status = told.then(|| CalicoNodeStatusStatus {
            last_updated: Some(Timestamp::UNIX_EPOCH),
            ..CalicoNodeStatusStatus::default()
        });
        object
    }

    #[test]
    fn a_wish_is_met_at_once_and_then_at_its_period() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let key = object(10, false).key();
        let mut wishes = Wishes::default();
        wishes.note(key.clone(), Some(&object(10, false)), start);
        assert_eq!(wishes.due(), Some(start));
        assert_eq!(wishes.at(start).len(), 1);
        wishes.done(&key, true, start);
        assert_eq!(wishes.due(), Some(start + 10 * second));
        wishes.note(key.clone(), Some(&object(10, true)), start + second);
        assert_eq!(wishes.due(), Some(start + 10 * second), "its own echo is no wish");
        wishes.done(&key, false, start + 10 * second);
        assert_eq!(wishes.due(), Some(start + 10 * second + PAUSE));
        wishes.note(key.clone(), Some(&object(0, true)), start + 11 * second);
        assert_eq!(wishes.due(), Some(start + 11 * second), "another wish");
        wishes.done(&key, true, start + 11 * second);
        assert_eq!(wishes.due(), None, "a period of 0 is once");
        wishes.note(key.clone(), None, start);
        wishes.note(key.clone(), Some(&object(0, true)), start);
        assert_eq!(wishes.due(), None, "once, though by an earlier agent");
        wishes.note(key, Some(&object(1, true)), start);
        assert_eq!(wishes.due(), Some(start));
    }

    #[test]
    fn only_this_nodes_objects_are_wishes() {
        let check = |node: &str, expected: Option<bool>| {
            let mut object = object(10, false);
            object.spec.node = node.into();
            let update = Update {
                key: object.key(),
                value: Some(object.into()),
            };
            assert_eq!(wish("n1", &update).map(|(_, object)| object.is_some()), expected);
        };
        check("n1", Some(true));
        check("n2", Some(false));
        let other = Update {
            key: Key::cluster(Kind::Node, "n1"),
            value: None,
        };
        assert_eq!(wish("n1", &other).map(drop), None);
    }

    #[test]
    fn routes_say_who_told_them() {
        let route = |destination: &str, target: RouteTarget, protocol: u8| Route {
            key: RouteKey {
                table: TABLE_MAIN,
                destination: destination.parse().expect("a prefix"),
                metric: 1024,
            },
            target,
            protocol,
            source: None,
        };
        let via = |gateway: &str| {
            RouteTarget::Via(vec![NextHop {
                gateway: gateway.parse().expect("an address"),
                device: IfName::from("eth0"),
                onlink: false,
            }])
        };
        let link = |device: &str| RouteTarget::Link {
            device: IfName::from(device),
        };
        let learnt = |prefix: &str, next_hop: &str, mesh: bool| Learnt {
            prefix: prefix.parse().expect("a prefix"),
            next_hop: next_hop.parse().expect("an address"),
            peer: next_hop.parse().expect("an address"),
            mesh,
        };
        let kernel = [
            route("0.0.0.0/0", via("10.0.0.254"), 3),
            route("10.0.0.0/24", link("eth0"), PROTOCOL_KERNEL),
            route("192.168.1.0/26", RouteTarget::Blackhole, PROTOCOL_OURS),
            route("192.168.1.5/32", link("cali1"), PROTOCOL_OURS),
            route("192.168.2.0/26", via("10.0.0.2"), PROTOCOL_OURS),
            route("fd00:2::/122", via("fd00::2"), PROTOCOL_OURS),
        ];
        let learnt = [
            learnt("192.168.2.0/26", "10.0.0.2", true),
            learnt("192.168.9.0/26", "10.0.0.9", false),
            learnt("fd00:2::/122", "fd00::2", false),
        ];
        let said = routes(&kernel, &learnt);
        let lines: Vec<String> = (said.routes_v4.iter().chain(&said.routes_v6))
            .map(|route| {
                let NodeRoute {
                    kind,
                    destination,
                    gateway,
                    interface,
                    learned_from,
                } = route;
                let from = format!("{} {}", learned_from.source_type, learned_from.peer_ip);
                format!("{kind} {destination} {gateway} {interface} {from}")
                    .trim_end()
                    .to_owned()
            })
            .collect();
        assert_eq!(
            lines,
            [
                "FIB 0.0.0.0/0 10.0.0.254 eth0 Kernel",
                "FIB 10.0.0.0/24 N/A eth0 Direct",
                "FIB 192.168.1.0/26 N/A blackhole Static",
                "FIB 192.168.1.5/32 N/A cali1 Kernel",
                "FIB 192.168.2.0/26 10.0.0.2 eth0 NodeMesh 10.0.0.2",
                "RIB 192.168.9.0/26 10.0.0.9  BGPPeer 10.0.0.9",
                "FIB fd00:2::/122 fd00::2 eth0 BGPPeer fd00::2",
            ]
        );
    }
}
