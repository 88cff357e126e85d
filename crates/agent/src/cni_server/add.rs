//! ADD: intent; the veth pair while the address is allocated; the pod's routes and the WorkloadEndpoint side by side; then
//! the record that all is there.
//!
//! The intent reaches the disk while the rest goes on, and the answer waits for it: after a power failure no pod is left,
//! and the intent alone is enough to release the address.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::resource::WorkloadEndpoint;
use cni::journal::{Begun, Endpoint, Id, NetnsId, Phase};
use cni::protocol::{Request, Role};
use cni::{CniResult, Code, Error};
use futures::channel::oneshot;
use ipam::Preview;

use super::endpoint::{link_of, mac_text, pending_of, result_of};
use super::known::known;
use super::patience::within;
use super::ports::{AllocError, Given, LocalEndpoint, Readiness, Want};
use super::{CniServer, allocation_error, journal_error};

/// Where the half of ADD that writes tells the half that wires what was written.
type Tell = oneshot::Sender<(Endpoint, Option<WorkloadEndpoint>)>;

/// How long a young record waits for others, to get its file together with them.
const LINGER: Duration = Duration::from_millis(100);
/// The longest time until what could not be done about records is tried again: the disk may be full for hours.
const LONGEST_LINGER: Duration = Duration::from_secs(60);
/// How often it is asked again for an address that no pod of this node has.
const FORGETFUL: usize = 3;

impl CniServer {
    /// Attaches a container. The same request again answers the same, and repairs what is broken.
    pub(super) async fn add(&self, request: Request) -> Result<CniResult, Error> {
        let id = Id::new(&request.container_id, &request.ifname);
        let pod_mtu = match self.ready().await {
            Ok(pod_mtu) => pod_mtu,
            Err(error) => {
                let _attachment = self.hold_attachment(&id).await;
                self.note_unmade(&id);
                return Err(error);
            }
        };
        let mut endpoint = self.intent(&request, pod_mtu)?;
        let _attachment = self.hold_attachment(&id).await;
        let _device = self.hold_device(endpoint.host_device.as_deref()).await;
        self.finish_deletion_of(&id).await?;
        let mut kept = None;
        if let Some(existing) = self.recorded(&id) {
            if existing.phase == Phase::Attached && self.is_intact(&existing, &endpoint).await? {
                return Ok(result_of(&existing));
            }
            kept = self.addresses_to_keep(&existing).await?;
            if kept.is_none() {
                if let Err(problems) = self.remove(&existing).await {
                    // After a crash, too, it must not count as whole.
                    self.note_deletion(&pending_of(&existing)).await?;
                    return Err(unfinished_deletion(problems));
                }
                self.forget(&id).map_err(journal_error)?;
            }
        }
        let asks = self.asks(&request).await.inspect_err(|_| self.note_unmade(&id))?;
        if let Some(mac) = asks.mac {
            endpoint.mac = mac_text(mac);
        }
        endpoint.outside_ipam = kept.is_none() && asks.outside_ipam;
        let known = if endpoint.outside_ipam {
            Some(asks.addresses.clone())
        } else {
            kept
        };
        self.displace(&endpoint).await?;
        let mut want = self.naming().want(&endpoint, asks);
        want.endpoint = (!endpoint.wep_name.is_empty()).then(|| self.new_workload_endpoint(&endpoint));
        self.build(endpoint, known, want).await
    }

    /// An ADD has come to nothing before it began anything. So the DELs after it, of which runtimes send several for every attempt,
    /// have nothing to look for; in an outage each would have to wait for its end. To be called with the attachment held.
    fn note_unmade(&self, id: &Id) {
        let has_read = self.shared.records.get().is_some();
        if has_read && self.recorded(id).is_none() && matches!(self.journal().pending(id), Ok(None)) {
            self.shared.gone.note(id);
        }
    }

    /// Waits until ADD can be served, for a while. Answers the MTU for pods.
    async fn ready(&self) -> Result<u32, Error> {
        let mut readiness = self.shared.parts.readiness.clone();
        let wait = self.shared.settings.ready_wait;
        let ready = readiness.wait_for(|readiness| matches!(readiness, Readiness::Ready { .. }));
        // Whatever the outcome of the wait, what holds now decides.
        let _ = tokio::time::timeout(wait, ready).await;
        match readiness.borrow().clone() {
            Readiness::Ready { pod_mtu } => Ok(pod_mtu),
            Readiness::Waiting(why) => Err(Error::new(
                Code::TryAgain,
                "the agent is not ready",
                format!("waited {} s: {why}", wait.as_secs()),
            )),
        }
    }

    /// The record of what this request is about to make.
    fn intent(&self, request: &Request, pod_mtu: u32) -> Result<Endpoint, Error> {
        let mut endpoint = self.naming().intent(request)?;
        let netns = NetnsId::of(&endpoint.netns).map_err(|error| {
            let details = format!(
                "CNI_NETNS: {:?}: {error}; must be the path of a network namespace",
                endpoint.netns
            );
            Error::new(Code::InvalidEnv, "invalid environment", details)
        })?;
        endpoint.netns_id = Some(netns);
        endpoint.mtu = request.config.mtu.unwrap_or(pod_mtu);
        endpoint.ip_forward = request.config.allow_ip_forwarding;
        endpoint.bandwidth = request.config.runtime.bandwidth;
        endpoint.port_mappings = request.config.runtime.port_mappings.clone();
        if let Some(nodename) = request
            .config
            .nodename
            .as_deref()
            .filter(|name| *name != self.naming().node)
        {
            tracing::warn!(
                nodename,
                node = self.naming().node,
                "cni: the configuration names another node; ours is used"
            );
        }
        if !request.config.unknown.is_empty() {
            tracing::debug!(
                keys = request.config.unknown.join(", "),
                "cni: unknown keys in the configuration"
            );
        }
        for text in &request.config.unheeded {
            if is_new(text) {
                tracing::warn!("cni: the configuration's {text}");
            }
        }
        Ok(endpoint)
    }

    /// Whether what an earlier ADD made is as it should be; then only the host's routes and the WorkloadEndpoint are
    /// confirmed.
    async fn is_intact(&self, existing: &Endpoint, wanted: &Endpoint) -> Result<bool, Error> {
        if existing.netns_id != wanted.netns_id || existing.ipam_only != wanted.ipam_only {
            return Ok(false);
        }
        if existing.ipam_only {
            let held = self.held(&existing.handle).await?;
            return Ok(existing.addresses.iter().all(|address| held.contains(address)));
        }
        let Some(link) = link_of(existing) else {
            return Ok(false);
        };
        if let Err(difference) = self.shared.parts.pods.check(link).await {
            tracing::info!(id = %existing.id(), difference, "cni: attached before, but not intact: made anew");
            return Ok(false);
        }
        let stored = self.write_workload_endpoint(existing).await?;
        let local = self.naming().local(existing).map(|local| as_stored(local, stored));
        Ok(self.program(&existing.id(), local).await.is_ok())
    }

    /// The addresses of a broken endpoint, if it still holds them.
    async fn addresses_to_keep(&self, existing: &Endpoint) -> Result<Option<Vec<IpAddr>>, Error> {
        if existing.phase == Phase::Intent || existing.addresses.is_empty() || existing.outside_ipam {
            return Ok(None);
        }
        let held = self.held(&existing.handle).await?;
        let all = existing.addresses.iter().all(|address| held.contains(address));
        Ok(all.then(|| existing.addresses.clone()))
    }

    /// Takes the host device from older containers of the same pod. Their addresses stay theirs until their DEL.
    async fn displace(&self, endpoint: &Endpoint) -> Result<(), Error> {
        let Some(device) = &endpoint.host_device else {
            return Ok(());
        };
        let others: Vec<_> = self
            .memory()
            .values()
            .filter(|other| other.host_device.as_ref() == Some(device) && other.id() != endpoint.id())
            .cloned()
            .collect();
        for mut other in others {
            let same_pod = endpoint.args.pod().is_some() && other.args.pod() == endpoint.args.pod();
            if !same_pod || other.container_id == endpoint.container_id {
                let details = format!(
                    "host device {device} is {}'s; {} cannot have it too",
                    other.id(),
                    endpoint.id()
                );
                return Err(Error::new(Code::Interface, "the interface cannot be made", details));
            }
            tracing::info!(old = %other.id(), new = %endpoint.id(), device, "cni: a new container takes its pod's device");
            // Noted first: after a crash the old one must not come back.
            if !other.displaced {
                other.displaced = true;
                let noted = self.records().and_then(|records| records.progress(&other));
                noted.map_err(journal_error)?;
                self.remember(&other);
            }
            let refused = |why| Error::new(Code::TryAgain, "the old container's interface cannot be removed", why);
            self.program(&other.id(), None).await.map_err(refused)?;
            self.detach(&other).await.map_err(refused)?;
        }
        Ok(())
    }

    async fn build(&self, mut endpoint: Endpoint, known: Option<Vec<IpAddr>>, want: Want) -> Result<CniResult, Error> {
        let begun = self.records().and_then(|records| records.begin(&endpoint));
        let begun = begun.map_err(journal_error)?;
        self.remember(&endpoint);
        self.settle_records();
        match self.make(&mut endpoint, begun, known, want).await {
            Ok(()) => {
                self.remember(&endpoint);
                Ok(result_of(&endpoint))
            }
            Err(error) => {
                self.undo(&endpoint).await;
                Err(error)
            }
        }
    }

    async fn make(
        &self,
        endpoint: &mut Endpoint,
        begun: Begun,
        known: Option<Vec<IpAddr>>,
        want: Want,
    ) -> Result<(), Error> {
        // The disk is asked at once, so that the wait for it is over when the rest is done.
        let durable = self.make_durable(begun);
        let (made, durable) = futures::join!(self.make_visible(endpoint, known, want), durable);
        made.and(durable)?;
        endpoint.phase = Phase::Attached;
        let noted = self.records().and_then(|records| records.progress(endpoint));
        noted.map_err(journal_error)
    }

    async fn make_visible(&self, endpoint: &mut Endpoint, known: Option<Vec<IpAddr>>, want: Want) -> Result<(), Error> {
        if known.is_none() && is_ipv4_alone(&want) {
            return self.make_while_allocating(endpoint, want).await;
        }
        let given = match known {
            Some(addresses) => Given {
                addresses,
                endpoint: None,
            },
            None => self.allocate(want).await?,
        };
        endpoint.addresses = given.addresses;
        let wired = endpoint.clone();
        let (to_node, for_node) = oneshot::channel();
        let write = self.write_and_tell(given.endpoint, endpoint, to_node);
        let wire = async {
            self.attach(&wired, None).await?;
            self.route_when_known(for_node).await
        };
        let (written, wired) = futures::join!(write, wire);
        wired.and(written)
    }

    /// Only the pod's addresses, its routes and the WorkloadEndpoint have to wait for the allocation. Whoever waits for
    /// somebody else is started before whoever works here.
    async fn make_while_allocating(&self, endpoint: &mut Endpoint, mut want: Want) -> Result<(), Error> {
        let bare = endpoint.clone();
        want.preview = self.announcement(&bare);
        let (to_pod, for_pod) = oneshot::channel();
        let (to_node, for_node) = oneshot::channel();
        let write = async {
            let given = self.allocate(want).await?;
            endpoint.addresses = given.addresses;
            // Who no longer listens has failed, and says so itself.
            let _ = to_pod.send(endpoint.addresses.clone());
            self.write_and_tell(given.endpoint, endpoint, to_node).await
        };
        let wire = async {
            self.attach(&bare, Some(for_pod)).await?;
            self.route_when_known(for_node).await
        };
        // Both come to their end, also if one fails: what is undone then is not made afterwards.
        let (written, wired) = futures::join!(write, wire);
        wired.and(written)
    }

    /// Announces the endpoint when its addresses are chosen: its policy is prepared while they are being written.
    fn announcement(&self, bare: &Endpoint) -> Option<Preview> {
        let (id, local) = (bare.id().to_string(), self.naming().local(bare)?);
        let dataplane = self.shared.parts.dataplane.clone();
        Some(Preview::new(move |addresses| {
            let addresses = addresses.to_vec();
            dataplane.announce(
                id.clone(),
                LocalEndpoint {
                    addresses,
                    ..local.clone()
                },
            );
        }))
    }

    /// Writes the WorkloadEndpoint, unless it was created with the addresses, and tells what it is as the datastore has it: the
    /// labels that it has from there, those of its Pod in Kubernetes, count for the first packet already.
    async fn write_and_tell(
        &self,
        created: Option<WorkloadEndpoint>,
        endpoint: &mut Endpoint,
        tell: Tell,
    ) -> Result<(), Error> {
        let stored = match created {
            Some(created) => Some(created),
            None => self.write_workload_endpoint(endpoint).await?,
        };
        endpoint.known = stored.clone().and_then(known);
        // Who no longer listens has failed, and says so itself.
        let _ = tell.send((endpoint.clone(), stored));
        Ok(())
    }

    async fn route_when_known(
        &self,
        known: oneshot::Receiver<(Endpoint, Option<WorkloadEndpoint>)>,
    ) -> Result<(), Error> {
        match known.await {
            Ok((endpoint, stored)) => self.route(&endpoint, stored).await,
            // There are no addresses or no WorkloadEndpoint: the other half says why.
            Err(_) => Ok(()),
        }
    }

    /// Addresses that no pod of this node has: a datastore that was restored from a backup may have forgotten whose they are.
    async fn allocate(&self, want: Want) -> Result<Given, Error> {
        for _ in 0..FORGETFUL {
            let given = self.allocate_once(want.clone()).await?;
            let Some(owner) = self.owner_among(&given.addresses, &want.handle) else {
                return Ok(given);
            };
            tracing::warn!(owner = %owner.id(), "cni: the datastore gives an address that a pod of this node has");
            let again = |why| Error::new(Code::TryAgain, "the address given is another pod's", why);
            self.release(&want.handle).await.map_err(again)?;
            self.reclaim_all().await;
        }
        Err(Error::new(
            Code::TryAgain,
            "the datastore gives addresses that pods of this node have",
            String::new(),
        ))
    }

    async fn allocate_once(&self, want: Want) -> Result<Given, Error> {
        let wait = self.shared.settings.store_wait * 3;
        let said_by = want.said_by.join(", ");
        match within(wait, self.shared.batcher.assign(want)).await {
            Ok(given) if given.addresses.is_empty() => Err(allocation_error(AllocError::Exhausted(
                "no address was assigned".into(),
            ))),
            Ok(given) => Ok(given),
            Err(error) => {
                let is_about_it = !matches!(error, AllocError::TryAgain(_)) && !said_by.is_empty();
                let mut error = allocation_error(error);
                if is_about_it {
                    error.details.push_str(&format!(" (asked for by {said_by})"));
                }
                Err(error)
            }
        }
    }

    /// The veth pair, with the addresses as far as they are known.
    async fn attach(&self, endpoint: &Endpoint, later: Option<oneshot::Receiver<Vec<IpAddr>>>) -> Result<(), Error> {
        let Some(link) = link_of(endpoint) else { return Ok(()) };
        self.shared.parts.pods.attach(link, later).await.map_err(not_wired)
    }

    /// The host's routes to the pod, after its policy.
    async fn route(&self, endpoint: &Endpoint, stored: Option<WorkloadEndpoint>) -> Result<(), Error> {
        if link_of(endpoint).is_none() {
            return Ok(());
        }
        let local = self.naming().local(endpoint).map(|local| LocalEndpoint {
            fresh: true,
            ..as_stored(local, stored)
        });
        let programmed = self.program(&endpoint.id(), local).await;
        programmed.map_err(|why| Error::new(Code::Dataplane, "the routes cannot be programmed", why))
    }

    /// Makes the intent durable. The wait for the disk is on another thread.
    async fn make_durable(&self, begun: Begun) -> Result<(), Error> {
        let records = self.records().map_err(journal_error)?.clone();
        let durable = tokio::task::spawn_blocking(move || records.make_durable(begun));
        let stopped = |stopped: tokio::task::JoinError| Err(stopped.into());
        durable.await.unwrap_or_else(stopped).map_err(journal_error)
    }

    /// Young records get their files when nobody is in a hurry: whoever flushes at the same time would wait for it.
    pub(super) fn settle_records(&self) {
        if self.shared.settling.swap(true, Ordering::Relaxed) {
            return;
        }
        let shared = Arc::downgrade(&self.shared);
        tokio::spawn(async move {
            let mut pause = LINGER;
            loop {
                tokio::time::sleep(pause).await;
                let Some(shared) = shared.upgrade() else { return };
                shared.settling.store(false, Ordering::Relaxed);
                let Some(records) = shared.records.get().cloned() else {
                    return;
                };
                let settled = tokio::task::spawn_blocking(move || records.settle()).await;
                let settled = settled.unwrap_or_else(|stopped| Err(stopped.into()));
                pause = pause_after(pause, settled.is_ok());
                match settled {
                    Ok(false) => return,
                    Ok(true) => {}
                    Err(error) => {
                        tracing::error!(%error, again = ?pause, "cni: endpoints have no files yet; trying again")
                    }
                }
                if shared.settling.swap(true, Ordering::Relaxed) {
                    return;
                }
            }
        });
    }

    /// Undoes a failed ADD; what cannot be undone now is noted and undone later.
    async fn undo(&self, endpoint: &Endpoint) {
        if let Err(problems) = self.remove(endpoint).await {
            tracing::warn!(id = %endpoint.id(), problems = problems.join("; "), "cni: a failed ADD is undone later");
            if let Err(error) = self.note_deletion(&pending_of(endpoint)).await {
                // The intent is still in the journal: the next ADD, DEL or start undoes it.
                tracing::error!(id = %endpoint.id(), %error, "cni: cannot note it");
            }
        } else if let Err(error) = self.forget(&endpoint.id()) {
            tracing::error!(id = %endpoint.id(), %error, "cni: cannot remove the record of a failed ADD");
        }
    }
}

/// How long records wait after a try that worked or not.
fn pause_after(pause: Duration, worked: bool) -> Duration {
    match worked {
        true => LINGER,
        false => (pause * 2).min(LONGEST_LINGER),
    }
}

/// With the WorkloadEndpoint as the datastore has it, where there is one; which of its versions it is does not matter.
pub(super) fn as_stored(local: LocalEndpoint, stored: Option<WorkloadEndpoint>) -> LocalEndpoint {
    let Some(mut resource) = stored else { return local };
    let metadata = &mut resource.metadata;
    (metadata.uid, metadata.resource_version, metadata.creation_timestamp) = (None, None, None);
    LocalEndpoint { resource, ..local }
}

/// IPv6 has to be prepared in the pod before its interface is there, so such a pod is wired when its addresses are known.
fn is_ipv4_alone(want: &Want) -> bool {
    match want.addresses.is_empty() {
        true => !want.ipv6,
        false => want.addresses.iter().all(IpAddr::is_ipv4),
    }
}

fn not_wired(why: String) -> Error {
    Error::new(Code::Interface, "the interface cannot be made", why)
}

pub(super) fn unfinished_deletion(problems: Vec<String>) -> Error {
    Error::new(
        Code::TryAgain,
        "what this container had before cannot be removed yet",
        problems.join("; "),
    )
}

/// Whether a request is about an address alone.
pub(super) fn is_ipam(request: &Request) -> bool {
    request.role == Role::Ipam
}

/// Whether this was not said since the agent started: every ADD brings the same configuration.
fn is_new(text: &str) -> bool {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    SAID.lock().is_ok_and(|mut said| said.insert(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_takes_nothing_is_asked_less_and_less() {
        let (mut pause, mut waited) = (LINGER, Duration::ZERO);
        for _ in 0..20 {
            pause = pause_after(pause, false);
            waited += pause;
        }
        assert_eq!(pause, LONGEST_LINGER);
        assert!(waited > LONGEST_LINGER * 10, "{waited:?}");
        assert_eq!(pause_after(pause, true), LINGER);
    }
}
