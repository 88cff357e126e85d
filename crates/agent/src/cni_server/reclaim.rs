//! Addresses that pods have and the datastore has forgotten, as after a backup was restored: they are taken again.
//!
//! The journal says which addresses the node's pods have. A block that lacks one of them would give it to somebody else.

use std::collections::BTreeSet;
use std::net::IpAddr;

use api::resource::IpamBlock;
use cni::journal::{Endpoint, Id, Phase};
use ipam::Block;
use ipnet::IpNet;

use super::CniServer;
use super::patience::within;
use super::ports::{AllocError, Want};

/// What came of taking an attachment's addresses again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reclaimed {
    /// It has them, or is on its way out.
    Whole,
    /// The datastore gives one to somebody else, or to nobody: the node's status says so.
    Contested,
    /// The datastore is away.
    NotNow,
}

impl CniServer {
    /// Who of this node has addresses that a block does not know of.
    pub(super) fn forgotten_in(&self, block: &IpamBlock) -> Vec<Id> {
        let is_forgotten = |endpoint: &Endpoint, address: &IpAddr| {
            let holder = block.spec.ordinal(*address).map(|ordinal| block.spec.holder(ordinal));
            let handle = holder.map(|holder| holder.and_then(|holder| holder.handle_id.as_deref()));
            handle.is_some_and(|handle| handle != Some(endpoint.handle.as_str()))
        };
        self.with_an_address(is_forgotten)
    }

    /// Who of this node has addresses that lie in none of these blocks.
    pub(super) fn outside_of(&self, blocks: &BTreeSet<IpNet>) -> Vec<Id> {
        self.with_an_address(|_, address| !blocks.iter().any(|block| block.contains(address)))
    }

    /// Attachments that have an address of IPAM's for which this holds.
    fn with_an_address(&self, holds: impl Fn(&Endpoint, &IpAddr) -> bool) -> Vec<Id> {
        let endpoints = self.endpoints().into_iter();
        let by_ipam = endpoints.filter(|endpoint| endpoint.phase == Phase::Attached && !endpoint.outside_ipam);
        let such = by_ipam.filter(|endpoint| endpoint.addresses.iter().any(|address| holds(endpoint, address)));
        such.map(|endpoint| endpoint.id()).collect()
    }

    /// The pod of this node, other than the one that was given them, that has one of these addresses.
    pub(super) fn owner_among(&self, addresses: &[IpAddr], given_to: &str) -> Option<Endpoint> {
        let mut endpoints = self.endpoints().into_iter();
        endpoints.find(|endpoint| {
            endpoint.handle != given_to
                && endpoint.addresses.iter().any(|address| addresses.contains(address))
                && self.stays(endpoint)
        })
    }

    /// Takes the addresses of one attachment again if it does not hold them. To be called with its lock held: what whoever
    /// detaches the container gives back is not forgotten.
    pub(super) async fn reclaim(&self, id: &Id) -> Reclaimed {
        let problems = &self.shared.problems;
        let Some(endpoint) = self.recorded(id).filter(|endpoint| self.stays(endpoint)) else {
            problems.say(id, None);
            return Reclaimed::Whole;
        };
        match self.take_again(&endpoint).await {
            Ok(()) => {
                problems.say(id, None);
                Reclaimed::Whole
            }
            Err(AllocError::TryAgain(why)) => {
                tracing::debug!(%id, why, "cni: whether the pod has its addresses cannot be found out now");
                Reclaimed::NotNow
            }
            Err(error) => {
                let whose = match endpoint.args.pod() {
                    Some((namespace, pod)) => format!("pod {namespace}/{pod}"),
                    None => format!("container {}", endpoint.container_id),
                };
                let addresses: Vec<String> = endpoint.addresses.iter().map(IpAddr::to_string).collect();
                let problem = format!(
                    "{whose} has {}, but not by the datastore: {error}; delete it, or whatever has its address now",
                    addresses.join(", ")
                );
                problems.say(id, Some(problem));
                Reclaimed::Contested
            }
        }
    }

    async fn take_again(&self, endpoint: &Endpoint) -> Result<(), AllocError> {
        let wait = self.shared.settings.store_wait;
        let allocator = &self.shared.parts.allocator;
        let held = within(wait, allocator.held(&endpoint.handle)).await?;
        let mut outcome = Ok(());
        for address in endpoint.addresses.iter().filter(|address| !held.contains(address)) {
            let unanswered = || Err(AllocError::TryAgain("there is no answer".into()));
            let wants = vec![self.again(endpoint, *address)];
            let taken = async { allocator.assign(wants).await.pop().unwrap_or_else(unanswered) };
            let taken = within(wait * 3, taken).await;
            if taken.is_ok() {
                let id = endpoint.id();
                tracing::warn!(
                    %id, %address,
                    "cni: the pod lives, but the datastore had forgotten its address: taken again"
                );
            }
            // One of two that is somebody else's is no reason to leave the other one.
            outcome = outcome.and(taken.map(drop));
        }
        outcome
    }

    /// Everybody's, but for containers on which somebody works just now. Waits for no lock: the caller has some, for which
    /// others wait.
    pub(super) async fn reclaim_all(&self) {
        for id in self.outside_of(&BTreeSet::new()) {
            let Some(_attachment) = self.try_hold_attachment(&id) else {
                continue;
            };
            if self.reclaim(&id).await == Reclaimed::NotNow {
                return;
            }
        }
    }

    fn again(&self, endpoint: &Endpoint, address: IpAddr) -> Want {
        Want {
            handle: endpoint.handle.clone(),
            attributes: self.naming().attributes(endpoint),
            ipv4: address.is_ipv4(),
            ipv6: address.is_ipv6(),
            addresses: vec![address],
            ..Want::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::super::fakes::World;
    use super::super::lost::tests::block;
    use super::*;

    /// As the keeper does it.
    async fn reclaim(server: &CniServer, id: &Id) -> Reclaimed {
        let _attachment = server.hold_attachment(id).await;
        server.reclaim(id).await
    }

    #[tokio::test]
    async fn what_a_block_forgot_is_taken_again() {
        let world = World::new(4);
        let server = world.server().await;
        world.add(&server, "a", "p").await.unwrap();
        world.add(&server, "b", "q").await.unwrap();
        let (a, b) = (server.endpoints()[0].clone(), server.endpoints()[1].clone());
        let (at_a, at_b) = (a.addresses[0].to_string(), b.addresses[0].to_string());
        let forgotten = |holders: &[(&str, &str)]| server.forgotten_in(&block("n1", holders));
        assert_eq!(forgotten(&[(&at_a, &a.handle), (&at_b, &b.handle)]), []);
        assert_eq!(forgotten(&[(&at_a, &a.handle)]), [b.id()]);
        assert_eq!(forgotten(&[(&at_a, &a.handle), (&at_b, "net.other")]), [b.id()]);

        world.forget(&b.handle);
        for id in [a.id(), b.id()] {
            assert_eq!(reclaim(&server, &id).await, Reclaimed::Whole);
        }
        world.assert_consistent(&server).await;
    }

    #[tokio::test]
    async fn blocks_that_are_not_there_are_forgotten_as_a_whole() {
        let world = World::new(4);
        let server = world.server().await;
        world.add(&server, "a", "p").await.unwrap();
        let check = |blocks: &[&str], expected: &[Id]| {
            let blocks = blocks.iter().map(|block| block.parse().unwrap()).collect();
            assert_eq!(server.outside_of(&blocks), expected, "{blocks:?}");
        };
        let all = [server.endpoints()[0].id()];
        check(&[], &all);
        check(&["10.0.1.0/26", "fd00::/122"], &all);
        check(&["10.0.1.0/26", "10.0.0.0/26"], &[]);
    }

    #[tokio::test]
    async fn a_new_pod_never_gets_what_a_living_one_has() {
        let world = World::new(4);
        let server = world.server().await;
        world.add(&server, "a", "p").await.unwrap();
        world.add(&server, "b", "q").await.unwrap();
        let handles: Vec<String> = server.endpoints().into_iter().map(|one| one.handle).collect();
        handles.iter().for_each(|handle| world.forget(handle));
        world.add(&server, "c", "r").await.unwrap();
        world.assert_consistent(&server).await;
    }

    #[tokio::test]
    async fn what_somebody_else_has_stays_his_and_is_said_until_it_is_given_back() {
        let world = World::new(4);
        let server = world.server().await;
        world.add(&server, "a", "p").await.unwrap();
        let a = server.endpoints()[0].clone();
        world.forget(&a.handle);
        world.hold("net.other", a.addresses[0]);
        assert_eq!(reclaim(&server, &a.id()).await, Reclaimed::Contested);
        assert_eq!(world.holder(a.addresses[0]).as_deref(), Some("net.other"));
        let problems = world.state().problems.clone();
        let start = format!("pod ns/p has {}, but not by the datastore: ", a.addresses[0]);
        assert!(problems.len() == 1 && problems[0].starts_with(&start), "{problems:?}");
        world.forget("net.other");
        assert_eq!(reclaim(&server, &a.id()).await, Reclaimed::Whole);
        assert_eq!(world.state().problems, Vec::<String>::new());
        world.assert_consistent(&server).await;
    }

    #[tokio::test]
    async fn what_a_container_gives_back_while_it_is_detached_is_not_taken_again() {
        let world = World::new(1);
        let server = world.server().await;
        world.add(&server, "a", "p").await.unwrap();
        let a = server.endpoints()[0].clone();
        // The address is free when the WorkloadEndpoint still waits to be deleted.
        world.stick(&["store"]);
        let mut del = pin!(world.del(&server, "a", "p"));
        while world.holder(a.addresses[0]).is_some() {
            assert!(futures::poll!(&mut del).is_pending());
        }
        assert_eq!(server.owner_among(&a.addresses, "net.b"), None, "a new pod may have it");
        server.reclaim_all().await;
        assert_eq!(world.holder(a.addresses[0]), None);
        world.stick(&[]);
        del.await;
        world.assert_empty(&server).await;
    }

    #[tokio::test]
    async fn two_do_not_take_the_same_address_again() {
        let world = World::new(4);
        let server = world.server().await;
        world.add(&server, "a", "p").await.unwrap();
        let a = server.endpoints()[0].clone();
        world.forget(&a.handle);
        world.stick(&["assign"]);
        let id = a.id();
        let mut keeper = pin!(reclaim(&server, &id));
        assert!(futures::poll!(&mut keeper).is_pending());
        let mut adder = pin!(server.reclaim_all());
        assert!(futures::poll!(&mut adder).is_ready(), "somebody works on it already");
        world.stick(&[]);
        assert_eq!(keeper.await, Reclaimed::Whole);
        world.assert_consistent(&server).await;
    }
}
