//! What the CNI server needs from others, as traits and plain data, so that tests can be the others.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use api::resource::WorkloadEndpoint;
use futures::channel::oneshot;
use futures::future::BoxFuture;
use ipam::Preview;

/// Hands out addresses. The real one is [`super::ipam_allocator::IpamAllocator`].
pub trait Allocator: Send + Sync {
    /// Serves some requests at once; as many answers, in the same order. A request is served in full or not at all, but
    /// after [`AllocError::TryAgain`] the handle may hold something: release it.
    fn assign(&self, wants: Vec<Want>) -> BoxFuture<'_, Vec<Result<Given, AllocError>>>;

    /// Releases all that a handle holds. Nothing held is fine.
    fn release<'a>(&'a self, handle: &'a str) -> BoxFuture<'a, Result<(), AllocError>>;

    /// The handle that holds an address; `None` if nobody does, or if it is in no pool.
    fn holder(&self, address: IpAddr) -> BoxFuture<'_, Result<Option<String>, AllocError>>;

    /// The addresses that a handle holds.
    fn held<'a>(&'a self, handle: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, AllocError>>;
}

/// A request for the addresses of one endpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Want {
    /// The handle that will hold them.
    pub handle: String,
    /// Pod, namespace and node, as upstream stores them with an allocation.
    pub attributes: BTreeMap<String, String>,
    /// One IPv4 address.
    pub ipv4: bool,
    /// One IPv6 address.
    pub ipv6: bool,
    /// Names or ranges of the only IPv4 pools to use; empty: any that may be used.
    pub ipv4_pools: Vec<String>,
    /// The same for IPv6.
    pub ipv6_pools: Vec<String>,
    /// These very addresses instead of any; at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// Labels of the pod's namespace; `None` if it has none.
    pub namespace_labels: Option<BTreeMap<String, String>>,
    /// Who asks for these addresses or pools, if not the network configuration: for errors.
    pub said_by: Vec<String>,
    /// The endpoint that they are for, complete but for its addresses: created with them, if that can be done in one go.
    pub endpoint: Option<WorkloadEndpoint>,
    /// Hears what it is about to be given.
    pub preview: Option<Preview>,
}

/// The answer to a [`Want`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Given {
    /// The addresses.
    pub addresses: Vec<IpAddr>,
    /// [`Want::endpoint`] as the datastore has it, if it was created with them.
    pub endpoint: Option<WorkloadEndpoint>,
}

/// Why there is no address, sorted by what the caller tells the runtime.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocError {
    /// A passing condition, such as a datastore that is away.
    #[error("{0}")]
    TryAgain(String),
    /// Every pool that may be used is full.
    #[error("{0}")]
    Exhausted(String),
    /// No pool may be used, or not the ones that were asked for.
    #[error("{0}")]
    NoPools(String),
    /// The address that was asked for cannot be had.
    #[error("{0}")]
    Invalid(String),
    /// Anything that will not go away by itself.
    #[error("{0}")]
    Refused(String),
}

/// Wires pods. The real one is [`super::linux_pods::LinuxPods`].
pub trait Pods: Send + Sync {
    /// Makes the veth pair, addresses and routes in the pod; replaces a host device of the same name. On failure nothing of
    /// it is left.
    ///
    /// IPv4 addresses that are being allocated come through `later`: all that can be is made meanwhile. If nothing comes, the
    /// pod stays without addresses.
    fn attach(&self, link: PodLink, later: Option<oneshot::Receiver<Vec<IpAddr>>>)
    -> BoxFuture<'_, Result<(), String>>;

    /// Removes the host device (and with it the pod's end) if it is this pod's. A device that is gone or somebody else's
    /// is fine.
    fn detach(&self, wired: Wired) -> BoxFuture<'_, Result<(), String>>;

    /// Says what differs from what `attach` made.
    fn check(&self, link: PodLink) -> BoxFuture<'_, Result<(), String>>;

    /// Whether a host device of this name exists. An error is no proof of anything.
    fn exists<'a>(&'a self, host_device: &'a str) -> BoxFuture<'a, Result<bool, String>>;

    /// The host devices that look like pods': of a pod's kind, up, and with this prefix.
    fn devices<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<HostDevice>, String>>;

    /// Puts an alias on a host device that has none. Nothing else of it is changed.
    fn mark<'a>(&'a self, host_device: &'a str, alias: &'a str) -> BoxFuture<'a, Result<(), String>>;
}

/// A device that looks like a pod's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDevice {
    /// Its name.
    pub name: String,
    /// Its alias, if it has one.
    pub alias: Option<String>,
    /// Its MTU.
    pub mtu: u32,
}

/// The wiring of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLink {
    /// Path of the pod's network namespace.
    pub netns: PathBuf,
    /// The interface in the pod.
    pub ifname: String,
    /// The interface on the host.
    pub host_device: String,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// MTU of both ends.
    pub mtu: u32,
    /// MAC address of the pod's end.
    pub mac: [u8; 6],
    /// Alias of the host device: it says whose it is.
    pub alias: String,
    /// The pod may forward packets.
    pub ip_forward: bool,
}

/// By what the wiring of a pod is recognised when it has to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wired {
    /// Path of the pod's network namespace, if it is known.
    pub netns: Option<PathBuf>,
    /// The interface in the pod.
    pub ifname: String,
    /// The interface on the host.
    pub host_device: String,
    /// Its alias; a device with another one is somebody else's.
    pub alias: String,
}

/// The agent's loop, which owns the host's routes.
pub trait Dataplane: Send + Sync {
    /// Tells of an endpoint that is being made, with addresses that it most likely gets: what gives nothing away, such as its
    /// policy, can be prepared. May come again, with others. [`Dataplane::program`] follows, with the endpoint or with `None`.
    fn announce(&self, id: String, endpoint: LocalEndpoint);

    /// Tells of an endpoint, or with `None` that it is gone. Answers when the kernel agrees, or why it cannot.
    fn program(&self, id: String, endpoint: Option<LocalEndpoint>) -> BoxFuture<'_, Result<(), String>>;
}

/// An endpoint as the dataplane sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalEndpoint {
    /// The interface on the host.
    pub device: String,
    /// The addresses behind it.
    pub addresses: Vec<IpAddr>,
    /// It has just been wired: its settings are in place.
    pub fresh: bool,
    /// What it is to policy, unless the datastore has more to say of it.
    pub resource: WorkloadEndpoint,
}

/// Whether ADD can be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Not yet; the reason is shown to the user.
    Waiting(String),
    /// Yes.
    Ready {
        /// MTU for pods, unless the network configuration says one.
        pod_mtu: u32,
    },
}
