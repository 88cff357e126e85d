//! CHECK and STATUS.

use cni::journal::{NetnsId, Phase};
use cni::protocol::Request;
use cni::{Code, Error};

use super::CniServer;
use super::endpoint::link_of;
use super::ports::Readiness;

impl CniServer {
    /// Whether an attachment is as ADD left it: the namespace, the wiring, the addresses and their owner, the host's routes.
    pub(super) async fn check(&self, request: Request) -> Result<(), Error> {
        let id = cni::journal::Id::new(&request.container_id, &request.ifname);
        let _attachment = self.hold_attachment(&id).await;
        let endpoint = self.recorded(&id).filter(|endpoint| endpoint.phase == Phase::Attached);
        let Some(endpoint) = endpoint else {
            return Err(Error::new(
                Code::UnknownContainer,
                "the container is not attached",
                format!("{id} is not in the journal"),
            ));
        };
        let differs = |details: String| Error::new(Code::CheckFailed, "the container is not as ADD left it", details);
        for ip in request.config.prev_result.iter().flat_map(|result| &result.ips) {
            // Plugins further down the chain may have added addresses to other interfaces.
            let ours = ip.interface.is_none_or(|index| {
                let interfaces = request.config.prev_result.iter().flat_map(|result| &result.interfaces);
                interfaces
                    .into_iter()
                    .nth(index)
                    .is_some_and(|interface| interface.name == id.ifname)
            });
            if ours && !endpoint.addresses.contains(&ip.address.addr()) {
                return Err(differs(format!(
                    "prevResult has {}, ADD assigned {:?}",
                    ip.address, endpoint.addresses
                )));
            }
        }
        if let Some(netns) = &request.netns
            && !endpoint.adopted
            && NetnsId::of(netns).ok() != endpoint.netns_id
        {
            return Err(differs(format!(
                "{} is not the network namespace of ADD",
                netns.display()
            )));
        }
        let held = match endpoint.outside_ipam {
            true => endpoint.addresses.clone(),
            false => self.held(&endpoint.handle).await?,
        };
        if let Some(lost) = endpoint.addresses.iter().find(|address| !held.contains(address)) {
            return Err(differs(format!("{lost} is not allocated to {}", endpoint.handle)));
        }
        if endpoint.ipam_only {
            return Ok(());
        }
        let Some(link) = link_of(&endpoint) else {
            return Err(differs(
                "a newer container of the same pod has taken its host device".into(),
            ));
        };
        // Another plugin's wiring is left as it is.
        if !endpoint.adopted {
            self.shared.parts.pods.check(link).await.map_err(differs)?;
        }
        self.program(&id, self.naming().local(&endpoint))
            .await
            .map_err(|why| differs(format!("routes: {why}")))
    }

    /// Whether ADD can be served now.
    pub(super) fn status(&self) -> Result<(), Error> {
        match &*self.shared.parts.readiness.borrow() {
            Readiness::Ready { .. } => Ok(()),
            Readiness::Waiting(why) => Err(Error::new(Code::NotAvailable, "the agent is not ready", why.clone())),
        }
    }
}
