//! The live kernel as the place where pods are wired.

use std::net::IpAddr;
use std::sync::Arc;

use futures::FutureExt;
use futures::channel::oneshot as addresses;
use futures::future::BoxFuture;
use ipnet::IpNet;
use kernel::{IfName, Mac};
use linux::pod::PodInterface;
use tokio::sync::{Semaphore, oneshot};

use super::ports::{HostDevice, PodLink, Pods, Wired};

/// How many pods are wired at once. The kernel does one at a time anyway; each takes a thread.
pub(super) const WIRED_AT_ONCE: usize = 16;

/// The live kernel as the place where pods are wired.
pub struct LinuxPods {
    at_once: Arc<Semaphore>,
}

impl Default for LinuxPods {
    fn default() -> Self {
        Self {
            at_once: Arc::new(Semaphore::new(WIRED_AT_ONCE)),
        }
    }
}

impl LinuxPods {
    /// Runs blocking work on a thread of its own, a few at a time.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let done = async {
            let done = tokio::task::spawn_blocking(work).await;
            done.map_err(|error| error.to_string())?
        };
        self.among_few(done).await
    }

    /// Waits until fewer than [`WIRED_AT_ONCE`] others are at it.
    async fn among_few<T>(&self, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
        let _permit = self.at_once.acquire().await.map_err(|error| error.to_string())?;
        work.await
    }
}

impl Pods for LinuxPods {
    fn attach(
        &self,
        link: PodLink,
        later: Option<addresses::Receiver<Vec<IpAddr>>>,
    ) -> BoxFuture<'_, Result<(), String>> {
        async move {
            let mut pod = interface(link);
            let bare = pod.clone();
            let wire = async {
                let (done, attached) = oneshot::channel();
                // Who no longer waits undoes it.
                let attach = move || linux::pod::attach_here_then(&bare, |result| drop(done.send(result)));
                tokio::task::spawn_blocking(attach);
                let stopped = |_| "the thread that wires the pod has stopped".to_owned();
                attached.await.map_err(stopped)?.map_err(|error| error.to_string())
            };
            // What comes after waits for the datastore, and must not keep others from being detached.
            let (_, mut inside) = self.among_few(wire).await?;
            let Some(later) = later else { return Ok(()) };
            let Ok(addresses) = later.await else { return Ok(()) };
            pod.addresses = addresses;
            // A few messages to the kernel, as short as those for a route: no thread is worth it.
            inside.assign(&pod).map_err(|error| error.to_string())
        }
        .boxed()
    }

    fn detach(&self, wired: Wired) -> BoxFuture<'_, Result<(), String>> {
        let detach = move || {
            let device = IfName(wired.host_device);
            linux::pod::detach(wired.netns.as_deref(), &wired.ifname, &device, &wired.alias)
                .map_err(|error| error.to_string())
        };
        self.run(detach).boxed()
    }

    fn check(&self, link: PodLink) -> BoxFuture<'_, Result<(), String>> {
        let check = move || linux::pod::check(&interface(link)).map_err(|differences| differences.join("; "));
        self.run(check).boxed()
    }

    fn exists<'a>(&'a self, host_device: &'a str) -> BoxFuture<'a, Result<bool, String>> {
        let device = IfName::from(host_device);
        let exists = move || {
            let mut socket = linux::request::Socket::open().map_err(|error| error.to_string())?;
            let found = linux::link::find(&mut socket, &device).map_err(|error| error.to_string())?;
            Ok(found.is_some())
        };
        self.run(exists).boxed()
    }

    fn devices<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<HostDevice>, String>> {
        let prefix = prefix.to_owned();
        let devices = move || {
            let mut socket = linux::request::Socket::open().map_err(|error| error.to_string())?;
            let links = linux::link::list(&mut socket).map_err(|error| error.to_string())?;
            let looks_so = |link: &kernel::Link| link.kind == "veth" && link.up && link.name.0.starts_with(&prefix);
            let device = |link: kernel::Link| HostDevice {
                name: link.name.0,
                alias: link.alias,
                mtu: link.mtu,
            };
            Ok(links.into_iter().filter(looks_so).map(device).collect())
        };
        self.run(devices).boxed()
    }

    fn mark<'a>(&'a self, host_device: &'a str, alias: &'a str) -> BoxFuture<'a, Result<(), String>> {
        let (device, alias) = (IfName::from(host_device), alias.to_owned());
        let mark = move || linux::pod::mark(&device, &alias).map_err(|error| error.to_string());
        self.run(mark).boxed()
    }
}

fn interface(link: PodLink) -> PodInterface {
    let all = |address: IpAddr| IpNet::new(address, 0).expect("0 is a prefix length of both families");
    PodInterface {
        netns: link.netns,
        name: link.ifname,
        host_device: IfName(link.host_device),
        addresses: link.addresses,
        mtu: link.mtu,
        mac: Some(Mac(link.mac)),
        alias: link.alias,
        // Those of a family without an address are left out.
        default_routes: vec![all([0; 4].into()), all([0; 16].into())],
        ip_forward: link.ip_forward,
    }
}
