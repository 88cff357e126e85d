//! DEL and GC, and the finishing of what they had to leave.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use cni::Error;
use cni::config::Attachment;
use cni::journal::{Endpoint, Id, Pending, Phase};
use cni::protocol::Request;

use super::add::{is_ipam, unfinished_deletion};
use super::endpoint::{pending_of, wired_of};
use super::patience::within;
use super::{CniServer, journal_error};

/// How long to wait after a first failure to finish deletions, and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How often it is said that some are still not finished.
const TOLD_AGAIN: Duration = Duration::from_secs(600);

impl CniServer {
    /// Detaches a container. Succeeds also if nothing is there, and if the rest has to wait for the datastore.
    pub(super) async fn del(&self, request: Request) -> Result<(), Error> {
        self.delete(Pending {
            ipam_only: is_ipam(&request),
            container_id: request.container_id,
            ifname: request.ifname,
            network: request.config.name,
            netns: request.netns,
            args: request.args,
        })
        .await
    }

    /// Detaches everything of this network that is not on the list. Attachments being made are left alone.
    pub(super) async fn gc(&self, request: Request) -> Result<(), Error> {
        let ipam_only = is_ipam(&request);
        // The plugin refuses a GC without a list; here, too, no list keeps everything.
        let Some(valid) = request.config.valid_attachments else {
            return Ok(());
        };
        let valid: BTreeSet<Attachment> = valid.into_iter().collect();
        let is_stale = |endpoint: &Endpoint| {
            let attachment = Attachment {
                container_id: endpoint.container_id.clone(),
                ifname: endpoint.ifname.clone(),
            };
            endpoint.phase == Phase::Attached
                && endpoint.network == request.config.name
                && endpoint.ipam_only == ipam_only
                && !valid.contains(&attachment)
        };
        let stale: Vec<_> = self
            .memory()
            .values()
            .filter(|endpoint| is_stale(endpoint))
            .map(pending_of)
            .collect();
        let mut outcome = Ok(());
        for pending in stale {
            tracing::info!(id = %pending.id(), "cni: not on the runtime's list");
            outcome = outcome.and(self.delete(pending).await);
        }
        outcome
    }

    async fn delete(&self, pending: Pending) -> Result<(), Error> {
        let id = pending.id();
        let _attachment = self.hold_attachment(&id).await;
        if self.shared.gone.has(&id) {
            return Ok(());
        }
        let expected = self.recorded(&id).unwrap_or_else(|| self.naming().endpoint(&pending));
        let _device = self.hold_device(expected.host_device.as_deref()).await;
        match self.remove(&self.known(&pending)).await {
            Ok(()) => {
                self.forget(&id).map_err(journal_error)?;
                tracing::info!(%id, "cni: detached");
                // Only here: what an ADD undoes may still be under way to the datastore, so the DEL after it looks again.
                self.shared.gone.note(&id);
                Ok(())
            }
            Err(problems) => {
                // Runtimes repeat a DEL for as long as the pod is not there again.
                let problems = problems.join("; ");
                match self.journal().pending(&id) {
                    Ok(Some(_)) => tracing::debug!(%id, problems, "cni: the rest of a DEL is still done later"),
                    _ => tracing::warn!(%id, problems, "cni: the rest of a DEL is done later"),
                }
                self.note_deletion(&pending).await
            }
        }
    }

    /// What is known of an attachment. To be asked with all locks held: a newer container may have taken the device.
    fn known(&self, pending: &Pending) -> Endpoint {
        self.recorded(&pending.id())
            .unwrap_or_else(|| self.naming().endpoint(pending))
    }

    /// Removes all that an endpoint has, and nothing that is another's: the device only with its alias, the WorkloadEndpoint
    /// only with its container, the addresses by its handle. All of it may be gone already. Answers what is left.
    pub(super) async fn remove(&self, endpoint: &Endpoint) -> Result<(), Vec<String>> {
        // Whatever comes of this, it is not whole any more: nobody may take again what it gives back.
        if let Some(known) = self.memory().get_mut(&endpoint.id()) {
            known.phase = Phase::Intent;
        }
        let mut problems = Vec::new();
        // First the route: an address must not be handed out while packets to it still go here.
        if endpoint.host_device.is_some()
            && let Err(why) = self.program(&endpoint.id(), None).await
        {
            problems.push(format!("routes: {why}"));
            // Routes go with their device, however the dataplane fares.
            if let Err(why) = self.detach(endpoint).await {
                problems.push(why);
                return Err(problems);
            }
        }
        let (detached, released, deleted) = futures::join!(
            self.detach(endpoint),
            self.release(&endpoint.handle),
            self.delete_workload_endpoint(endpoint)
        );
        problems.extend([detached, released, deleted].into_iter().filter_map(Result::err));
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }

    /// Removes an endpoint's device, if it is still its own.
    pub(super) async fn detach(&self, endpoint: &Endpoint) -> Result<(), String> {
        let Some(wired) = wired_of(endpoint) else { return Ok(()) };
        let device = wired.host_device.clone();
        self.shared
            .parts
            .pods
            .detach(wired)
            .await
            .map_err(|why| format!("device {device}: {why}"))
    }

    pub(super) async fn release(&self, handle: &str) -> Result<(), String> {
        let released = self.shared.parts.allocator.release(handle);
        within(self.shared.settings.store_wait, released)
            .await
            .map_err(|error| format!("handle {handle}: {error}"))
    }

    /// Notes durably that an attachment has to go. From now on it is no endpoint of this node any more.
    pub(super) async fn note_deletion(&self, pending: &Pending) -> Result<(), Error> {
        let (journal, noted) = (self.journal().clone(), pending.clone());
        let written = tokio::task::spawn_blocking(move || journal.write_pending(&noted)).await;
        written
            .unwrap_or_else(|stopped| Err(stopped.into()))
            .map_err(journal_error)?;
        self.shared.unfinished.notify_one();
        Ok(())
    }

    /// Before an attachment is made anew, what it had before must be gone. To be called with its locks held.
    pub(super) async fn finish_deletion_of(&self, id: &Id) -> Result<(), Error> {
        let Some(pending) = self.journal().pending(id).map_err(journal_error)? else {
            return Ok(());
        };
        self.remove(&self.known(&pending)).await.map_err(unfinished_deletion)?;
        self.forget(id).map_err(journal_error)
    }

    /// Tries to finish every deletion that is noted. Answers how many are left.
    pub async fn finish_deletions(&self) -> usize {
        self.try_deletions().await.0
    }

    /// The same, with why one of them is left.
    async fn try_deletions(&self) -> (usize, Option<String>) {
        let noted = match self.journal().all_pending() {
            Ok(loaded) => {
                for (path, why) in &loaded.damaged {
                    tracing::error!(path = %path.display(), why, "cni: a noted deletion cannot be read");
                }
                loaded.records
            }
            Err(error) => {
                return (1, Some(error.to_string()));
            }
        };
        let mut left = 0;
        let mut why = None;
        // A few at a time: most of the work is waiting for the kernel or the datastore.
        for some in noted.chunks(16) {
            let finished = futures::future::join_all(some.iter().map(|pending| self.finish_deletion(pending))).await;
            for error in finished.into_iter().filter_map(Result::err) {
                left += 1;
                why = Some(error.to_string());
            }
        }
        (left, why)
    }

    async fn finish_deletion(&self, pending: &Pending) -> Result<(), Error> {
        let id = pending.id();
        let _attachment = self.hold_attachment(&id).await;
        let expected = self.known(pending);
        let _device = self.hold_device(expected.host_device.as_deref()).await;
        let finished = self.finish_deletion_of(&id).await;
        match &finished {
            Ok(()) => tracing::info!(%id, "cni: a deletion was finished"),
            Err(error) => tracing::debug!(%id, %error, "cni: a deletion is not finished"),
        }
        finished
    }

    /// Finishes deletions for as long as the agent lives: when one is noted, and again with growing pauses until none is
    /// left. Looks also without being told, for what a plugin may have noted.
    pub(super) async fn keep_finishing(&self) {
        let (first, longest) = RETRY;
        let mut pause = first;
        let mut told: Option<Instant> = None;
        loop {
            let (left, why) = self.try_deletions().await;
            if left == 0 {
                (pause, told) = (first, None);
                let _ = tokio::time::timeout(longest, self.shared.unfinished.notified()).await;
            } else {
                // For hours, maybe, and for many pods: not at each attempt.
                if told.is_none_or(|told| told.elapsed() > TOLD_AGAIN) {
                    let why = why.unwrap_or_default();
                    tracing::warn!(left, why, "cni: deletions are not finished; tried again until they are");
                    told = Some(Instant::now());
                }
                tokio::time::sleep(pause.mul_f64(rand::random_range(0.75..1.25))).await;
                pause = (pause * 2).min(longest);
            }
        }
    }
}
