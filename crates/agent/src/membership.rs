//! Keeps this node's entry in the datastore true: its address, its registration, its tunnel address.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use api::{EncapMode, Node};
use datastore::SharedStore;
use ipam::Ipam;
use ipnet::IpNet;
use kernel::{IfName, Kernel};
use linux::LiveKernel;
use tokio::sync::watch;

use crate::config::Config;
use crate::register::{self, OwnAddresses};
use crate::run::Facts;
use crate::start::{found, set, wait};
use crate::status::Identity;
use crate::AgentError;

/// Registers the node and follows what its registration depends on: addresses of interfaces, pools that use IPIP.
/// Ends only with an error that the operator has to correct.
pub async fn keep(
    config: Config,
    store: SharedStore,
    ipam: Ipam,
    mut facts: watch::Receiver<Facts>,
    identity: Arc<Mutex<Identity>>,
) -> Result<(), AgentError> {
    let mut done: Option<Settled> = None;
    let mut failures = 0;
    loop {
        let known = facts.borrow_and_update().clone();
        let wanted = wishes(&config, &known).await;
        let outcome = match wanted {
            Ok(wanted) if done.as_ref() == Some(&wanted) => Ok(wanted),
            Ok(wanted) => {
                found(&identity, Ok(wanted.own.clone()));
                settle(&config, &store, &ipam, &wanted).await.map(|()| wanted)
            }
            Err(error) => {
                found(&identity, Err(error.to_string()));
                Err(error)
            }
        };
        match outcome {
            Ok(settled) => {
                set(&identity, |identity| identity.registered = Ok(()));
                (done, failures) = (Some(settled), 0);
                if facts.changed().await.is_err() {
                    return Ok(());
                }
            }
            Err(error @ AgentError::AddressTaken { .. }) => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "this node is not registered as it should be; trying again");
                set(&identity, |identity| identity.registered = Err(error.to_string()));
                failures += 1;
                tokio::select! {
                    () = tokio::time::sleep(wait(failures)) => {}
                    changed = facts.changed() => if changed.is_err() { return Ok(()) },
                }
            }
        }
    }
}

/// What the registration should say.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Settled {
    own: OwnAddresses,
    /// Pools that may give a tunnel address; `None` until the datastore was read.
    pools: Option<Vec<IpNet>>,
    /// What the datastore says of us: if somebody else changes it, it is put right.
    registered: Option<calc::ThisNode>,
}

async fn wishes(config: &Config, facts: &Facts) -> Result<Settled, AgentError> {
    let seen = LiveKernel::open()?.observe(&IfName::from("tunl0")).await?;
    let internal: &[IpAddr] = &[];
    let own = register::own_addresses(config, &seen, internal)?;
    let uses_ipip = |pool: &calc::PoolState| pool.ipip != EncapMode::Never;
    let pools = facts.state.pools.iter().filter(|(_, pool)| uses_ipip(pool)).map(|(cidr, _)| *cidr).collect();
    let pools = facts.synced.then_some(pools);
    Ok(Settled { own, pools, registered: facts.state.this_node.clone() })
}

async fn settle(config: &Config, store: &SharedStore, ipam: &Ipam, wanted: &Settled) -> Result<(), AgentError> {
    let node: Node = register::register(config, store, &wanted.own).await?;
    if let Some(pools) = &wanted.pools {
        let address = register::settle_tunnel_address(ipam, store, &node, pools).await?;
        tracing::debug!(?address, "tunnel address settled");
    }
    Ok(())
}
