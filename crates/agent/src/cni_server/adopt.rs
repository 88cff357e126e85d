//! Pods that another plugin attached on this node: taken over as they are.
//!
//! A node that ran Calico until a moment ago has pods whose devices, addresses and allocations are upstream's, and no journal of
//! ours knows of them. Where the datastore has a WorkloadEndpoint of this node with that device, the pod gets a record in the
//! journal, and its device our mark; from then on it is enforced and detached like one of our own. Its wiring, its address and its
//! handle stay what they are. What no WorkloadEndpoint names is left alone.
//!
//! A journal that got lost is made anew in the same way: the marks on the devices say which container they are for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use api::resource::WorkloadEndpoint;
use api::{Kind, annotations};
use cni::env::Args;
use cni::journal::{Endpoint, Pending, Phase};
use datastore::{Scope, StoreError};

use super::CniServer;
use super::add::as_stored;
use super::known::known;
use super::patience::within;
use super::ports::{AllocError, HostDevice, LocalEndpoint};

/// How long to wait before the datastore is asked again, at first.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest of these pauses, each of which is twice the one before.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The usual name of upstream's network: what a handle begins with where none is stored.
const NETWORK: &str = "k8s-pod-network";

impl CniServer {
    /// Takes over the pods of this node that are not in the journal, if there are devices of such. Waits for the datastore then,
    /// however long that takes; without such devices it asks nobody. `program` gets what the dataplane has to know of each,
    /// before anybody can detach it.
    pub async fn adopt(&self, mut program: impl FnMut(String, LocalEndpoint)) {
        let (mut said, mut pause) = (false, PAUSE);
        loop {
            match self.try_to_adopt(&mut program).await {
                Ok(()) => return,
                Err(why) if said => tracing::debug!(why, "cni: pods of another plugin wait to be taken over"),
                Err(why) => tracing::warn!(
                    why,
                    "cni: pods of another plugin cannot be taken over yet; trying again"
                ),
            }
            said = true;
            tokio::time::sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }

    async fn try_to_adopt(&self, program: &mut impl FnMut(String, LocalEndpoint)) -> Result<(), String> {
        // Devices first: whoever attaches remembers before it makes one.
        let devices = self.shared.parts.pods.devices(&self.naming().prefix).await?;
        let known: BTreeSet<String> = self
            .memory()
            .values()
            .filter_map(|endpoint| endpoint.host_device.clone())
            .collect();
        let unknown = devices.into_iter().filter(|device| !known.contains(&device.name));
        let mut unknown: BTreeMap<String, HostDevice> = unknown.map(|device| (device.name.clone(), device)).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let scope = Scope::Kind(Kind::WorkloadEndpoint);
        let listing = self.shared.parts.store.list(&scope);
        let listing = within(self.shared.settings.store_wait * 3, listing).await;
        for stored in listing.map_err(|error| error.to_string())?.items {
            let Ok(endpoint) = WorkloadEndpoint::try_from(stored.resource) else {
                continue;
            };
            if endpoint.spec.node != self.naming().node {
                continue;
            }
            if let Some(device) = unknown.remove(&endpoint.spec.interface_name) {
                self.adopt_one(&device, endpoint, program).await?;
            }
        }
        for device in unknown.keys() {
            tracing::warn!(
                device,
                "cni: looks like a pod's device, but no WorkloadEndpoint has it: left alone"
            );
        }
        Ok(())
    }

    /// Leaves it as it is if it cannot be taken over, or is another's by now. An error is one that passes.
    async fn adopt_one(
        &self,
        device: &HostDevice,
        found: WorkloadEndpoint,
        program: &mut impl FnMut(String, LocalEndpoint),
    ) -> Result<(), String> {
        let Some(endpoint) = self.record_of(device, &found).await? else {
            tracing::warn!(
                device = device.name, pod = %found.key(),
                "cni: this pod's container is not known, so it cannot be taken over: delete the pod, its successor will be ours"
            );
            return Ok(());
        };
        let id = endpoint.id();
        let _attachment = self.hold_attachment(&id).await;
        let _device = self.hold_device(endpoint.host_device.as_deref()).await;
        // A note that cannot be read is one of a deletion, too.
        let leaving = !matches!(self.journal().pending(&id), Ok(None));
        if leaving || self.recorded(&id).is_some() {
            return Ok(());
        }
        // The mark first: a device that has it and no record is found again.
        if let Err(why) = self.shared.parts.pods.mark(&device.name, &endpoint.alias).await {
            tracing::warn!(device = device.name, why, "cni: not taken over");
            return Ok(());
        }
        let begun = self.records().and_then(|records| records.begin(&endpoint));
        // Nobody waits for the disk: with the power the pod would be gone too, and after a crash it is found again.
        drop(begun.map_err(|error| error.to_string())?);
        self.remember(&endpoint);
        self.settle_records();
        tracing::info!(%id, device = device.name, handle = endpoint.handle, "cni: a pod of another plugin was taken over");
        if let Some(local) = self.naming().local(&endpoint) {
            program(id.to_string(), as_stored(local, Some(found)));
        }
        Ok(())
    }

    /// The record that an ADD would have left; `None` if nobody says which container it is.
    async fn record_of(&self, device: &HostDevice, found: &WorkloadEndpoint) -> Result<Option<Endpoint>, String> {
        let addresses: Vec<_> = found.spec.ip_networks.iter().map(|net| net.addr()).collect();
        let mut handle = None;
        for address in &addresses {
            let holder = self.shared.parts.allocator.holder(*address);
            match within(self.shared.settings.store_wait, holder).await {
                Ok(holder) => handle = handle.or(holder),
                Err(AllocError::TryAgain(why)) => return Err(why),
                Err(error) => {
                    tracing::warn!(device = device.name, %address, %error, "cni: who has this address cannot be told");
                }
            }
        }
        // Containers have no dot in their names; networks may have.
        let by_handle = handle.as_deref().and_then(|handle| handle.rsplit_once('.'));
        let is_own = by_handle.is_some_and(|(_, container)| container == found.spec.container_id);
        let outside_ipam = !is_own && self.is_outside_ipam(found, &addresses).await?;
        // What IPAM says of addresses that are none of its own is about somebody else.
        let by_handle = by_handle.filter(|_| !outside_ipam);
        let container_id = match found.spec.container_id.as_str() {
            "" => by_handle.map(|(_, container)| container.to_owned()),
            container => Some(container.to_owned()),
        };
        let Some(container_id) = container_id else {
            return Ok(None);
        };
        let network = match by_handle {
            Some((network, container)) if container == container_id => network,
            _ => NETWORK,
        };
        let pending = Pending {
            container_id,
            ifname: found.spec.endpoint.clone(),
            network: network.to_owned(),
            ipam_only: false,
            netns: None,
            args: Args {
                pod_name: Some(found.spec.pod.clone()).filter(|pod| !pod.is_empty()),
                pod_namespace: found.metadata.namespace.clone(),
                ..Args::default()
            },
        };
        let names = self.naming().endpoint(&pending);
        let mac = match found.spec.mac.as_str() {
            "" => names.mac.clone(),
            mac => mac.to_owned(),
        };
        Ok(Some(Endpoint {
            phase: Phase::Attached,
            addresses,
            outside_ipam,
            host_device: Some(device.name.clone()),
            mac,
            mtu: device.mtu,
            adopted: true,
            known: known(found.clone()),
            ..names
        }))
    }

    /// Whether a pod has named its addresses itself, and they are none of IPAM's.
    async fn is_outside_ipam(&self, found: &WorkloadEndpoint, addresses: &[IpAddr]) -> Result<bool, String> {
        let pod = Some(&found.spec.pod).filter(|pod| !pod.is_empty());
        let (Some(namespace), Some(pod)) = (&found.metadata.namespace, pod) else {
            return Ok(false);
        };
        let said = self.shared.parts.store.workload(namespace, pod, None);
        let said = match within(self.shared.settings.store_wait, said).await {
            Ok(said) => said.unwrap_or_default(),
            // Of a pod that is gone nothing is left to be told.
            Err(StoreError::NotFound(_) | StoreError::Refused(_)) => return Ok(false),
            Err(error) => return Err(error.to_string()),
        };
        let own = annotations::attachment(&said.annotations).0.addresses_no_ipam;
        Ok(!addresses.is_empty() && addresses.iter().all(|address| own.contains(address)))
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use datastore::Store;

    use super::super::fakes::World;
    use super::*;

    /// Takes over, and answers what the dataplane was told.
    async fn adopt(server: &CniServer) -> Vec<(String, LocalEndpoint)> {
        let mut adopted = Vec::new();
        server.adopt(|id, local| adopted.push((id, local))).await;
        adopted
    }

    /// What Calico has left on the node: a pod's device, its allocation and its WorkloadEndpoint. Answers the device.
    async fn calico_pod(world: &World, server: &CniServer, container: &str, pod: &str, address: [u8; 4]) -> String {
        let request = world.request(cni::protocol::Verb::Add, container, pod);
        let mut endpoint = server.naming().intent(&request).unwrap();
        endpoint.addresses = vec![address.into()];
        let device = endpoint.host_device.clone().unwrap();
        let mut wep = server.naming().workload_endpoint(&endpoint);
        wep.metadata.labels.insert("color".into(), "blue".into());
        world.store.create(wep.into()).await.unwrap();
        let mut state = world.state();
        state.held.insert(endpoint.handle.clone(), endpoint.addresses.clone());
        state
            .devices
            .insert(device.clone(), (String::new(), endpoint.addresses.clone()));
        device
    }

    #[tokio::test]
    async fn a_pod_of_another_plugin_is_taken_over_and_detached_as_ours() {
        let world = World::new(0);
        let server = world.server().await;
        let device = calico_pod(&world, &server, "c1", "p", [10, 0, 0, 7]).await;
        world
            .state()
            .devices
            .insert("cali-nobodys".into(), (String::new(), Vec::new()));

        let adopted = adopt(&server).await;
        let [(id, local)] = adopted.as_slice() else {
            panic!("{adopted:?}")
        };
        assert_eq!((id.as_str(), &local.device), ("c1/eth0", &device));
        assert_eq!(local.addresses, [IpAddr::from([10, 0, 0, 7])]);
        assert_eq!(
            local.resource.metadata.labels["color"], "blue",
            "as the datastore has it"
        );
        assert_eq!(world.state().devices[&device].0, "margay:c1/eth0");
        assert_eq!(
            world.state().devices["cali-nobodys"].0,
            "",
            "what nobody names is left alone"
        );
        assert_eq!(adopt(&server).await, [], "once is enough");

        // The next agent has it from the journal.
        let server = world.server().await;
        let recorded = server.endpoints();
        assert_eq!(recorded.len(), 1);
        assert_eq!((recorded[0].handle.as_str(), recorded[0].adopted), ("net.c1", true));
        assert_eq!(adopt(&server).await, []);

        world.del(&server, "c1", "p").await;
        world.state().devices.remove("cali-nobodys");
        world.assert_empty(&server).await;
    }

    #[tokio::test]
    async fn only_this_nodes_pods_that_can_be_named_are_taken_over() {
        let world = World::new(0);
        let server = world.server().await;
        let change = async |device: &str, change: &dyn Fn(&mut WorkloadEndpoint)| {
            let (_, mut wep) = (world.weps().await.into_iter())
                .find(|(_, wep)| wep.spec.interface_name == device)
                .unwrap();
            world.store.delete(&wep.key(), None).await.unwrap();
            change(&mut wep);
            wep.metadata.resource_version = None;
            world.store.create(wep.into()).await.unwrap();
        };
        let other = calico_pod(&world, &server, "c2", "q", [10, 0, 0, 8]).await;
        change(&other, &|wep| wep.spec.node = "n2".into()).await;
        // Its container stands in the handle of its address.
        let unnamed = calico_pod(&world, &server, "c3", "r", [10, 0, 0, 9]).await;
        change(&unnamed, &|wep| wep.spec.container_id.clear()).await;
        let unknown = calico_pod(&world, &server, "c4", "s", [10, 0, 0, 10]).await;
        change(&unknown, &|wep| wep.spec.container_id.clear()).await;
        world.state().held.remove("net.c4");
        // Marked for another container.
        let anothers = calico_pod(&world, &server, "c5", "t", [10, 0, 0, 11]).await;
        world.state().devices.get_mut(&anothers).unwrap().0 = "margay:c6/eth0".into();

        let adopted = adopt(&server).await;
        let ids: Vec<&str> = adopted.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(ids, ["c3/eth0"]);
        let alias = |device: &String| world.state().devices[device].0.clone();
        assert_eq!([alias(&other), alias(&unknown)], ["", ""]);
        assert_eq!(alias(&anothers), "margay:c6/eth0");
    }

    #[tokio::test]
    async fn addresses_that_a_pod_named_itself_are_not_taken_from_ipam() {
        // Who holds the address by IPAM; what the pod names; whether it is outside of IPAM.
        for (holder, named, outside) in [
            (None, Some("10.0.0.2"), true),
            (Some("net.other"), Some("10.0.0.2"), true),
            (Some("net.c1"), Some("10.0.0.2"), false),
            (None, Some("10.0.0.3"), false),
            (None, None, false),
        ] {
            let world = World::new(4);
            let server = world.server().await;
            calico_pod(&world, &server, "c1", "p", [10, 0, 0, 2]).await;
            world.forget("net.c1");
            if let Some(holder) = holder {
                world.hold(holder, [10, 0, 0, 2].into());
            }
            let annotation = |address| (annotations::IP_ADDRS_NO_IPAM.to_owned(), format!("[\"{address}\"]"));
            world.state().workload = Some(datastore::Workload {
                annotations: named.map(annotation).into_iter().collect(),
                ..datastore::Workload::default()
            });
            assert_eq!(adopt(&server).await.len(), 1);
            let adopted = server.endpoints().remove(0);
            let what = format!("{holder:?} {named:?}");
            assert_eq!(
                (adopted.outside_ipam, adopted.id().to_string()),
                (outside, "c1/eth0".into()),
                "{what}"
            );
            let forgotten = server.outside_of(&BTreeSet::new());
            assert_eq!(forgotten.is_empty(), outside, "{what}");
        }
    }

    #[tokio::test]
    async fn a_datastore_that_does_not_answer_is_asked_again() {
        for stuck in ["holder", "store"] {
            let world = World::new(4);
            let settings = super::super::Settings {
                store_wait: Duration::from_millis(10),
                ..world.settings()
            };
            let server = world.server_with(settings).await;
            calico_pod(&world, &server, "c1", "p", [10, 0, 0, 2]).await;
            world.forget("net.c1");
            world.stick(&[stuck]);
            let tried = server.try_to_adopt(&mut |_, _| {}).await;
            assert!(tried.is_err_and(|why| why.contains("answer")), "{stuck}");
        }
    }

    #[tokio::test]
    async fn a_lost_journal_is_made_anew() {
        let world = World::new(4);
        let server = world.server().await;
        world.add(&server, "a", "p").await.unwrap();
        while server.records().unwrap().settle().unwrap() {}
        drop(server);
        std::fs::remove_dir_all(world.journal().dir()).unwrap();
        let server = world.server().await;
        assert_eq!(server.endpoints(), []);
        let ids: Vec<String> = adopt(&server).await.into_iter().map(|(id, _)| id).collect();
        assert_eq!(ids, ["a/eth0"]);
        world.del(&server, "a", "p").await;
        world.assert_empty(&server).await;
    }

    #[tokio::test]
    async fn without_such_devices_nobody_is_asked() {
        let world = World::new(4);
        let server = world.server().await;
        world.add(&server, "a", "p").await.unwrap();
        world.fail(&["list", "holder"]);
        assert_eq!(adopt(&server).await, []);
    }
}
