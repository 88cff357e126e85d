//! What a restarted agent makes of its journal.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use cni::journal::{Endpoint, NetnsId, Phase, Records};

use super::CniServer;
use super::endpoint::pending_of;
use super::ports::LocalEndpoint;

/// After this time a half-written note of a deletion is nobody's any more.
const ABANDONED: Duration = Duration::from_secs(3600);

/// What the journal held.
#[derive(Debug, Default)]
pub struct Recovered {
    /// The endpoints of this node, by journal id: for the dataplane, all of them before it cleans up.
    pub endpoints: Vec<(String, LocalEndpoint)>,
    /// How many attachments are to be removed: interrupted, noted, or proven dead.
    pub to_remove: usize,
    /// How many records could not be read. They are logged and left.
    pub damaged: usize,
}

impl CniServer {
    /// Reads the journal; needs neither datastore nor dataplane. An ADD that did not come to its end is noted for deletion,
    /// and so is an endpoint that is proven dead; [`CniServer::serve`] finishes them. Nothing else is touched.
    pub async fn recover(&self) -> io::Result<Recovered> {
        self.open_records();
        self.journal().sweep(ABANDONED)?;
        let loaded = self.journal().endpoints()?;
        let mut recovered = Recovered {
            damaged: loaded.damaged.len(),
            ..Recovered::default()
        };
        for (path, why) in &loaded.damaged {
            tracing::error!(path = %path.display(), why, "cni: a record of the journal cannot be read");
        }
        let noted: BTreeSet<_> = self
            .journal()
            .all_pending()?
            .records
            .iter()
            .map(|pending| pending.id())
            .collect();
        recovered.to_remove = noted.len();
        for endpoint in loaded.records {
            self.remember(&endpoint);
            let id = endpoint.id();
            if noted.contains(&id) {
                continue;
            }
            let interrupted = endpoint.phase == Phase::Intent;
            if interrupted || self.is_dead(&endpoint).await {
                tracing::info!(%id, interrupted, "cni: left over from before the restart: removed");
                self.journal().write_pending(&pending_of(&endpoint))?;
                recovered.to_remove += 1;
            } else if let Some(local) = self.naming().local(&endpoint) {
                recovered.endpoints.push((id.to_string(), local));
            }
        }
        self.shared.unfinished.notify_one();
        tracing::info!(
            endpoints = recovered.endpoints.len(),
            to_remove = recovered.to_remove,
            damaged = recovered.damaged,
            "cni: journal read"
        );
        Ok(recovered)
    }

    /// Takes the endpoints' records over, those of an interrupted agent included.
    fn open_records(&self) {
        self.shared.records.get_or_init(|| {
            let (records, opened) = Records::open(self.journal().clone());
            if let Err(error) = opened {
                tracing::error!(%error, "cni: no file for young records; each endpoint's own file is waited for");
            }
            Arc::new(records)
        });
    }

    /// Proof of death: the namespace's path is gone or is another namespace's, and the host device is gone too. Anything
    /// that cannot be found out is no proof. An address alone has no device, so there is no such proof.
    async fn is_dead(&self, endpoint: &Endpoint) -> bool {
        if endpoint.ipam_only || !namespace_is_gone(endpoint) {
            return false;
        }
        match &endpoint.host_device {
            Some(device) => matches!(self.shared.parts.pods.exists(device).await, Ok(false)),
            None => true,
        }
    }
}

fn namespace_is_gone(endpoint: &Endpoint) -> bool {
    match NetnsId::of(&endpoint.netns) {
        Ok(found) => endpoint.netns_id.is_some_and(|id| id != found),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}
