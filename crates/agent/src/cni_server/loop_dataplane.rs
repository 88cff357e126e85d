//! The agent's loop, which owns the host's routes, as the CNI server's dataplane.

use api::resource::WorkloadEndpoint;
use futures::FutureExt;
use futures::future::BoxFuture;
use kernel::IfName;
use tokio::sync::{mpsc, oneshot};

use super::ports::{Dataplane, LocalEndpoint};
use crate::run::Event;

/// The agent's loop as the owner of the host's routes.
pub struct LoopDataplane {
    /// To the loop.
    pub events: mpsc::UnboundedSender<Event>,
}

impl Dataplane for LoopDataplane {
    fn announce(&self, id: String, endpoint: LocalEndpoint) {
        let endpoint = Box::new(local(endpoint));
        // An agent that is stopping prepares nothing.
        let _ = self.events.send(Event::Announced { id, endpoint });
    }

    fn program(&self, id: String, endpoint: Option<LocalEndpoint>) -> BoxFuture<'_, Result<(), String>> {
        async move {
            let (done, outcome) = oneshot::channel();
            let stopping = |_| "the agent is stopping".to_owned();
            let event = Event::Endpoint {
                id,
                endpoint: endpoint.map(|endpoint| Box::new(local(endpoint))),
                done,
            };
            self.events
                .send(event)
                .map_err(|_| "the agent is stopping".to_owned())?;
            outcome.await.map_err(stopping)?
        }
        .boxed()
    }
}

/// Tells the loop of endpoints that are there already.
pub fn hand_over(endpoints: Vec<(String, LocalEndpoint)>, events: &mpsc::UnboundedSender<Event>) {
    for (id, endpoint) in endpoints {
        // Nobody waits for these: they are most likely in place already.
        let (done, _) = oneshot::channel();
        let _ = events.send(Event::Endpoint {
            id,
            endpoint: Some(Box::new(local(endpoint))),
            done,
        });
    }
}

fn local(endpoint: LocalEndpoint) -> (dataplane::LocalEndpoint, WorkloadEndpoint) {
    let local = dataplane::LocalEndpoint {
        device: IfName(endpoint.device),
        addresses: endpoint.addresses,
        fresh: endpoint.fresh,
    };
    (local, endpoint.resource)
}
