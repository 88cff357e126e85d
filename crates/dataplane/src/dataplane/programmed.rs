//! Whether the kernel has what is wanted, and if not, why.

use std::net::IpAddr;

use ipnet::IpNet;
use kernel::{KernelError, Route, RouteKey, ShaperKey};

use super::Dataplane;
use crate::status::RouteClass;

impl Dataplane {
    /// Whether the kernel has refused anything that is still wanted.
    pub fn has_failures(&self) -> bool {
        let (routes, tunnel, peers) = (self.routes.failed(), self.tunnel.failed(), self.peers.failed());
        let (links, sysctls, shapers) = (self.links.failed(), self.sysctls.failed(), self.shapers.failed());
        let rest = links.is_empty() && sysctls.is_empty() && shapers.is_empty();
        !(routes.is_empty() && tunnel.is_empty() && peers.is_empty() && rest)
    }

    /// Whether the routes of an endpoint are in the kernel, and its packets wait where they should: `None` for not yet, or for an
    /// endpoint that is not known. A shaper that the kernel refuses keeps no pod from starting.
    pub fn is_programmed(&self, id: &str) -> Option<Result<(), KernelError>> {
        let endpoint = self.endpoints.get(id)?;
        let is_pending = |key: &ShaperKey| !self.shapers.agrees(key) && !self.shapers.failed().contains_key(key);
        if Self::shapers_of(&endpoint.device).iter().any(is_pending) {
            return None;
        }
        for address in &endpoint.addresses {
            if let Some(error) = self.claim_lost(id, *address) {
                return Some(Err(error));
            }
            let key = self.placed.get(&(RouteClass::Local, IpNet::from(*address)))?;
            if let Some(error) = self.route_error(key) {
                return Some(Err(error));
            }
            if !self.is_in_place(key) {
                return None;
            }
        }
        Some(Ok(()))
    }

    /// Why the endpoint does not have the route to one of its addresses, if another one has it.
    pub(crate) fn claim_lost(&self, id: &str, address: IpAddr) -> Option<KernelError> {
        let holder = self.claims.get(&address)?.first()?;
        (holder != id).then(|| KernelError::Foreign {
            what: format!("the route to {address} of endpoint {holder}"),
        })
    }

    /// Why a wanted route is not in the kernel.
    pub(crate) fn route_error(&self, key: &RouteKey) -> Option<KernelError> {
        if let Some(error) = self.routes.failed().get(key) {
            return Some(error.clone());
        }
        let foreign = self.in_the_way(key)?;
        let (net, metric, protocol) = (key.destination, key.metric, foreign.protocol);
        Some(KernelError::Foreign {
            what: format!("a route to {net} with metric {metric} and protocol {protocol}"),
        })
    }

    /// Another's route in the place of a wanted one. One that leads to the same place is as good as ours.
    pub(crate) fn in_the_way(&self, key: &RouteKey) -> Option<&Route> {
        let wanted = self.routes.wanted(key)?;
        self.view
            .foreign
            .get(key)
            .filter(|foreign| foreign.target != wanted.target)
    }

    /// Whether a wanted route is in the kernel, by whomever.
    pub(crate) fn is_in_place(&self, key: &RouteKey) -> bool {
        let by_another = || self.view.foreign.contains_key(key) && self.in_the_way(key).is_none();
        self.routes.wanted(key).is_some() && (self.routes.agrees(key) || by_another())
    }

    /// Which part wants the route.
    pub(crate) fn class_of(&self, key: &RouteKey) -> Option<RouteClass> {
        self.wishes.get(key)?.keys().next().copied()
    }
}
