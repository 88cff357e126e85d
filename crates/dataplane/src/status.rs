//! What we tell people: how much is done, what is not and why.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnet::IpNet;
use kernel::{KernelError, PROTOCOL_BIRD, RouteKey};

use crate::dataplane::Dataplane;
use crate::decide::{MtuDecision, TunnelDecision};
use crate::ledger::{Ledger, Step};
use crate::resolve::Unresolved;

/// Which part wants a route; the first one wins where two want the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteClass {
    /// To a local endpoint.
    Local,
    /// The blackhole of a local block.
    Block,
    /// Learned by BGP.
    Bgp,
}

/// How far a kind of object has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Should be there.
    pub wanted: usize,
    /// Are there as they should be.
    pub programmed: usize,
    /// Could not be done.
    pub failed: usize,
}

/// Something that could not be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedItem {
    /// What it is, for people.
    pub what: String,
    /// Why not.
    pub why: KernelError,
}

/// A prefix that BGP knows and the kernel does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnresolvedRoute {
    /// The prefix.
    pub prefix: IpNet,
    /// Why.
    pub why: Unresolved,
}

/// The state of the dataplane at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The kernel has been looked at.
    pub observed: bool,
    /// Nothing is left to do, and nothing failed.
    pub in_sync: bool,
    /// Routes by the part that wants them.
    pub routes: BTreeMap<RouteClass, Counts>,
    /// Nodes known to the tunnel.
    pub tunnel_peers: Counts,
    /// Sysctls.
    pub sysctls: Counts,
    /// Queues that hold pods to their bandwidths.
    pub shapers: Counts,
    /// Bandwidths that the kernel does not hold pods to. They are the pods' matter: the node does its work without.
    pub unshaped: Vec<FailedItem>,
    /// Routes of ours that nobody wants, still there until it is certain.
    pub stale_routes: usize,
    /// Everything that failed.
    pub failed: Vec<FailedItem>,
    /// What BGP knows without a route.
    pub unresolved: Vec<UnresolvedRoute>,
    /// Destinations in the pools to which BIRD's routes lead: those of a Calico that ran here are kept up to date by nobody.
    pub birds: BTreeSet<IpNet>,
    /// The tunnel, and why.
    pub tunnel: TunnelDecision,
    /// Whether the tunnel is as decided.
    pub tunnel_programmed: bool,
    /// The MTU, and why.
    pub mtu: MtuDecision,
}

impl Dataplane {
    /// Where things stand as of the last plan.
    pub fn status(&self) -> Status {
        let mut routes: BTreeMap<RouteClass, Counts> = BTreeMap::new();
        let mut failed = Vec::new();
        for key in self.routes.all_wanted().keys() {
            let Some(class) = self.class_of(key) else { continue };
            let counts = routes.entry(class).or_default();
            counts.wanted += 1;
            if self.is_in_place(key) {
                counts.programmed += 1;
            } else if let Some(why) = self.route_error(key) {
                counts.failed += 1;
                failed.push(FailedItem {
                    what: route_name(key),
                    why,
                });
            }
        }
        let removals = self
            .routes
            .failed()
            .iter()
            .filter(|(key, _)| self.routes.wanted(key).is_none());
        failed.extend(removals.map(|(key, why)| item(format!("removal of {}", route_name(key)), why)));
        for (address, ids) in self.claims.iter().filter(|(_, ids)| ids.len() > 1) {
            let losers = ids.iter().skip(1);
            let lost = losers.filter_map(|id| Some((id, self.claim_lost(id, *address)?)));
            failed.extend(lost.map(|(id, why)| FailedItem {
                what: format!("address {address} of endpoint {id}"),
                why,
            }));
        }
        failed.extend(
            self.tunnel
                .failed()
                .iter()
                .map(|(name, why)| item(format!("tunnel {name}"), why)),
        );
        failed.extend(
            self.peers
                .failed()
                .iter()
                .map(|(peer, why)| item(format!("tunnel peer {peer}"), why)),
        );
        failed.extend(
            self.links
                .failed()
                .iter()
                .map(|(device, why)| item(format!("device {device}"), why)),
        );
        failed.extend(
            self.sysctls
                .failed()
                .iter()
                .map(|(path, why)| item(format!("sysctl {path}"), why)),
        );

        let unresolved = self.unresolved.iter().map(|(prefix, why)| UnresolvedRoute {
            prefix: *prefix,
            why: *why,
        });
        let stale_routes = self
            .routes
            .pending()
            .filter(|(_, step)| matches!(step, Step::Remove(_)))
            .count();
        let complete = routes.values().all(|counts| counts.programmed == counts.wanted);
        let tunnel_programmed = match self.tunnel_decision {
            TunnelDecision::Waiting(_) => true,
            _ => self.tunnel.agrees(&self.config.tunnel),
        };
        Status {
            observed: self.observed,
            in_sync: self.observed && complete && tunnel_programmed && stale_routes == 0 && failed.is_empty(),
            routes,
            tunnel_peers: counts(&self.peers),
            sysctls: counts(&self.sysctls),
            shapers: counts(&self.shapers),
            unshaped: self
                .shapers
                .failed()
                .iter()
                .map(|(key, why)| item(key.to_string(), why))
                .collect(),
            stale_routes,
            failed,
            unresolved: unresolved.collect(),
            birds: self.birds(),
            tunnel: self.tunnel_decision.clone(),
            tunnel_programmed,
            mtu: self.mtu.clone(),
        }
    }
}

impl Dataplane {
    /// One that says the same as ours in ours' place is as good as ours.
    fn birds(&self) -> BTreeSet<IpNet> {
        let foreign = self.view.foreign.iter();
        let birds = foreign.filter(|(key, route)| route.protocol == PROTOCOL_BIRD && !self.is_in_place(key));
        let destinations = birds.map(|(key, _)| key.destination);
        destinations
            .filter(|net| self.state.pools.keys().any(|pool| pool.contains(net)))
            .collect()
    }
}

fn counts<K: Ord + Clone, V: PartialEq>(ledger: &Ledger<K, V>) -> Counts {
    let programmed = ledger.all_wanted().keys().filter(|key| ledger.agrees(key)).count();
    Counts {
        wanted: ledger.all_wanted().len(),
        programmed,
        failed: ledger.failed().len(),
    }
}

fn item(what: String, why: &KernelError) -> FailedItem {
    FailedItem { what, why: why.clone() }
}

pub(crate) fn route_name(key: &RouteKey) -> String {
    format!("route to {}", key.destination)
}

impl fmt::Display for RouteClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "local endpoints",
            Self::Block => "local blocks",
            Self::Bgp => "BGP",
        })
    }
}
