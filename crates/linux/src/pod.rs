//! The wiring of one pod: a veth pair, the pod's addresses and routes, and the host end's sysctls.
//!
//! The pod has `169.254.1.1 dev eth0` and a default route through it, and a permanent neighbour entry for that gateway, so
//! nothing has to answer for it; IPv6 uses the host end's link-local address in the same way. All calls block for about
//! a millisecond and may be repeated.
//!
//! Work in both namespaces is done by one fresh thread, which moves between them: starting threads and waiting for them costs
//! as much as the wiring itself. A netlink socket stays in the namespace where it was opened, so what is left to do in the
//! pod afterwards ([`Inside`]) needs no thread.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::thread;

use ipnet::IpNet;
use kernel::{
    Address, IfName, IpFamily, KernelError, Link, Mac, Neighbor, NextHop, Route, RouteKey, RouteTarget, Sysctl,
    TABLE_MAIN,
};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage as Message;
use nix::sched::{CloneFlags, setns};

use crate::link::{self, LinkDetails, LinkSettings, VethEnd};
use crate::live::read_netlink;
use crate::netns::{self, Netns};
use crate::request::{Request, Socket};
use crate::{encode, sysctl};

/// Hardware address of every host end.
pub const HOST_MAC: Mac = Mac([0xee; 6]);
/// The pod's gateway.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The pod's gateway: the link-local address that follows from [`HOST_MAC`].
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0xecee, 0xeeff, 0xfeee, 0xeeee);
/// `RTPROT_BOOT`, what `ip route add` writes: the pod's routes are nobody's to reconcile.
const PROTOCOL_BOOT: u8 = 3;

/// What a pod's interface should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodInterface {
    /// Path of the pod's network namespace.
    pub netns: PathBuf,
    /// Name inside, `eth0`.
    pub name: String,
    /// Name of the host end.
    pub host_device: IfName,
    /// At most one of each family is usual; each becomes a /32 or /128.
    pub addresses: Vec<IpAddr>,
    /// Bytes, both ends.
    pub mtu: u32,
    /// Hardware address inside; `None`: the kernel's choice.
    pub mac: Option<Mac>,
    /// What marks the host end as ours, `OWNER:CONTAINER/NAME`; devices of the same `OWNER:` are ours too.
    pub alias: String,
    /// Destinations to route through the gateway, usually `0.0.0.0/0` and `::/0`. Those of a family without an address
    /// are left out.
    pub default_routes: Vec<IpNet>,
    /// The pod may forward.
    pub ip_forward: bool,
}

/// What [`attach`] made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Number of the host end.
    pub host_index: u32,
    /// Number inside the pod.
    pub pod_index: u32,
    /// Hardware address inside.
    pub pod_mac: Mac,
}

/// Why a pod was not wired, sorted by what the caller does next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PodError {
    /// The pod is gone, or never was.
    #[error("network namespace {path}: {reason}")]
    NoNamespace {
        /// Its path.
        path: PathBuf,
        /// What opening it said.
        reason: String,
    },
    /// The pod has an interface of this name that is not ours.
    #[error("the pod already has an interface {name}")]
    InterfaceExists {
        /// Its name.
        name: String,
    },
    /// The host has a device of this name that is not ours.
    #[error("device {device} exists and is not ours: {holder}")]
    NameTaken {
        /// Its name.
        device: IfName,
        /// What it is.
        holder: String,
    },
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// Wires the pod. Finishes what an interrupted call began; replaces a stale host end of ours; on an error nothing that
/// this call made stays.
pub fn attach(pod: &PodInterface) -> Result<(Attached, Inside), PodError> {
    let threads = thread::scope(|scope| {
        let worker = thread::Builder::new().name("pod-attach".into());
        let handle = worker.spawn_scoped(scope, || attach_here(pod))?;
        handle.join().map_err(|panic| std::panic::resume_unwind(panic))
    });
    threads.map_err(broken)?
}

/// As [`attach`], on the calling thread, which is moved into the pod's namespace and back: `done` gets the answer. If the
/// kernel does not let it back, which it has no reason for, the thread is given up: then this never returns.
pub fn attach_here_then(pod: &PodInterface, done: impl FnOnce(Result<(Attached, Inside), PodError>)) {
    let before = netns::current();
    done(attach_here(pod));
    match (before, netns::current()) {
        (Ok(before), Ok(after)) if before == after => {}
        _ => loop {
            thread::park();
        },
    }
}

/// Moves the calling thread into the pod's namespace and back. If an error leaves it there, it ends there.
fn attach_here(pod: &PodInterface) -> Result<(Attached, Inside), PodError> {
    let netns = open(&pod.netns)?;
    let host = Netns::current().map_err(broken)?;
    enter(&netns)?;
    let prepared = prepare(pod);
    enter(&host)?;
    let mut inside = prepared?;
    let mut socket = Socket::open().map_err(broken)?;
    let is_new = make_pair(pod, host.as_fd(), &mut socket, &mut inside)?;
    let wired = inside.wire(pod).and_then(|(pod_index, pod_mac)| {
        Ok(Attached {
            host_index: outside(pod, &mut socket)?,
            pod_index,
            pod_mac,
        })
    });
    match wired {
        Ok(attached) => Ok((attached, inside)),
        Err(error) => {
            if is_new {
                // The first error is the one to tell.
                let _ = remove(&mut socket, &pod.host_device);
            }
            Err(error)
        }
    }
}

/// What has to be done inside the pod's namespace.
fn prepare(pod: &PodInterface) -> Result<Inside, PodError> {
    for setting in pod_sysctls(pod) {
        write(&setting, pod)?;
    }
    Ok(Inside {
        socket: Socket::open().map_err(broken)?,
        name: IfName::from(pod.name.as_str()),
    })
}

fn enter(netns: &Netns) -> Result<(), PodError> {
    setns(netns, CloneFlags::CLONE_NEWNET).map_err(|errno| broken(errno.into()))
}

/// Makes the veth pair; `false` if an interrupted call has made it before. The kernel is asked for what is in the way only if
/// something is.
fn make_pair(
    pod: &PodInterface,
    host: BorrowedFd<'_>,
    outer: &mut Socket,
    inside: &mut Inside,
) -> Result<bool, PodError> {
    let inner = VethEnd {
        name: &inside.name,
        netns: None,
        mac: pod.mac,
        mtu: Some(pod.mtu),
    };
    let other = VethEnd {
        name: &pod.host_device,
        netns: Some(host),
        mac: Some(HOST_MAC),
        mtu: Some(pod.mtu),
    };
    match link::create_veth(&mut inside.socket, &inner, &other) {
        Err(KernelError::Refused {
            errno: libc::EEXIST, ..
        }) => {}
        made => return Ok(made.map(|()| true)?),
    }
    let half = match link::find(outer, &pod.host_device)? {
        Some(found) if found.link.alias.as_deref() == Some(&pod.alias) => Some(found),
        Some(found) if is_ours(&found.link, &pod.alias) => {
            remove(outer, &pod.host_device)?;
            None
        }
        Some(found) => {
            return Err(PodError::NameTaken {
                device: pod.host_device.clone(),
                holder: describe(&found.link),
            });
        }
        None => None,
    };
    match (link::find(&mut inside.socket, &inside.name)?, half) {
        (Some(inner), Some(outer)) if are_pair(&inner, &outer) => return Ok(false),
        (Some(_), _) => return Err(PodError::InterfaceExists { name: pod.name.clone() }),
        // Its other end is in a namespace that this pod has no more.
        (None, Some(_)) => remove(outer, &pod.host_device)?,
        (None, None) => {}
    }
    link::create_veth(&mut inside.socket, &inner, &other)?;
    Ok(true)
}

impl std::fmt::Debug for Inside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inside")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// A way into an attached pod's namespace that needs no thread in it. The namespace lives at least as long as this.
pub struct Inside {
    socket: Socket,
    name: IfName,
}

impl Inside {
    /// Gives a pod that [`attach`] wired without addresses its IPv4 addresses and the routes that go with them: the little
    /// that has to wait for an allocation. May be repeated. For IPv6 call [`attach`], which prepares the namespace for it.
    pub fn assign(&mut self, pod: &PodInterface) -> Result<(), PodError> {
        self.wire(pod).map(drop)
    }

    fn wire(&mut self, pod: &PodInterface) -> Result<(u32, Mac), PodError> {
        wire(pod, &self.name, &mut self.socket)
    }
}

/// Takes the wiring away; what is gone already is fine. A host end that bears another alias is left alone: the pod's name
/// has been taken over by its successor, or it never was ours.
pub fn detach(netns: Option<&Path>, name: &str, host_device: &IfName, alias: &str) -> Result<(), PodError> {
    let mut socket = Socket::open().map_err(broken)?;
    let Some(found) = link::find(&mut socket, host_device)? else {
        return Ok(());
    };
    let ours = match &found.link.alias {
        Some(theirs) => theirs == alias,
        // Half-made: ours if it leads to that pod, or if there is no pod to look at.
        None => is_half_made(&found.link) && leads_to(&found, netns, name),
    };
    if ours {
        remove(&mut socket, host_device)?;
    }
    Ok(())
}

/// Marks a host end that another has made, so that it can be recognised; nothing else of it is changed. One that bears another
/// mark is left alone.
pub fn mark(host_device: &IfName, alias: &str) -> Result<(), PodError> {
    let mut socket = Socket::open().map_err(broken)?;
    let found = link::find(&mut socket, host_device)?.ok_or_else(|| KernelError::NoDevice(host_device.clone()))?;
    match found.link.alias.as_deref() {
        Some(theirs) if theirs == alias => Ok(()),
        Some(_) => Err(PodError::NameTaken {
            device: host_device.clone(),
            holder: describe(&found.link),
        }),
        None => {
            let alias = Some(alias.to_owned());
            let settings = LinkSettings {
                alias,
                ..LinkSettings::default()
            };
            Ok(link::set(&mut socket, host_device, &settings)?)
        }
    }
}

/// Compares the wiring with what it should be; every difference as text.
pub fn check(pod: &PodInterface) -> Result<(), Vec<String>> {
    let differences = differences(pod).unwrap_or_else(|error| vec![error.to_string()]);
    if differences.is_empty() {
        Ok(())
    } else {
        Err(differences)
    }
}

fn wire(pod: &PodInterface, name: &IfName, socket: &mut Socket) -> Result<(u32, Mac), PodError> {
    let index = link::index(socket, name)?;
    let settings = LinkSettings {
        up: Some(true),
        mtu: Some(pod.mtu),
        mac: pod.mac,
        ..LinkSettings::default()
    };
    let mut requests = vec![Request {
        message: Message::SetLink(encode::link(index, &settings)),
        flags: 0,
    }];
    for address in addresses(pod, name) {
        let message = Message::NewAddress(encode::address(&address, index));
        requests.push(Request {
            message,
            flags: NLM_F_CREATE | NLM_F_REPLACE,
        });
    }
    // Before the routes, so that no packet ever asks.
    for neighbor in neighbors(pod, name) {
        let message = Message::NewNeighbour(encode::neighbor(&neighbor, index));
        requests.push(Request {
            message,
            flags: NLM_F_CREATE | NLM_F_REPLACE,
        });
    }
    for route in routes(pod, name) {
        let message = Message::NewRoute(encode::route(&route, |_| Ok(index))?);
        requests.push(Request {
            message,
            flags: NLM_F_CREATE | NLM_F_REPLACE,
        });
    }
    link::all(socket, &requests, &format!("interface {name} of the pod"))?;
    let mac = match pod.mac {
        Some(mac) => Some(mac),
        None => link::find(socket, name)?.and_then(|found| found.link.mac),
    };
    Ok((index, mac.ok_or_else(|| KernelError::NoDevice(name.clone()))?))
}

/// The host's side: settings and the mark first, then up.
fn outside(pod: &PodInterface, socket: &mut Socket) -> Result<u32, PodError> {
    let index = link::index(socket, &pod.host_device)?;
    for setting in host_sysctls(pod) {
        if !is_by_netlink(&setting) {
            write(&setting, pod)?;
        }
    }
    let mut marked = encode::link(
        index,
        &LinkSettings {
            mtu: Some(pod.mtu),
            alias: Some(pod.alias.clone()),
            ..LinkSettings::default()
        },
    );
    marked.attributes.push(encode::ipv4_settings(HOST_IPV4));
    let up = LinkSettings {
        up: Some(true),
        ..LinkSettings::default()
    };
    let requests = [marked, encode::link(index, &up)].map(|message| Request {
        message: Message::SetLink(message),
        flags: 0,
    });
    link::all(socket, &requests, &format!("device {}", pod.host_device))?;
    Ok(index)
}

/// The IPv4 settings of a host end, by the kernel's numbers for them (`IPV4_DEVCONF_*`): one message sets all of them, a
/// file for each takes five times as long. [`host_sysctls`] has the same, for [`check`] to compare.
const HOST_IPV4: &[(encode::Ipv4Setting, u32)] = &[
    (encode::Ipv4Setting::RpFilter, 1),
    (encode::Ipv4Setting::RouteLocalnet, 1),
    (encode::Ipv4Setting::ProxyArp, 1),
    (encode::Ipv4Setting::Forwarding, 1),
];

fn is_by_netlink(setting: &Sysctl) -> bool {
    setting.path.starts_with("ipv4/conf/")
}

/// Deletes a device that has been found to be ours.
fn remove(socket: &mut Socket, device: &IfName) -> Result<(), PodError> {
    link::delete_and_go_on(socket, device)?;
    Ok(())
}

/// What each of the functions above wants, as data, so that [`check`] looks for the same.
fn addresses(pod: &PodInterface, name: &IfName) -> Vec<Address> {
    pod.addresses
        .iter()
        .map(|address| Address {
            device: name.clone(),
            net: IpNet::from(*address),
        })
        .collect()
}

fn neighbors(pod: &PodInterface, name: &IfName) -> Vec<Neighbor> {
    families(pod)
        .map(|family| Neighbor {
            device: name.clone(),
            address: gateway(family),
            mac: HOST_MAC,
        })
        .collect()
}

fn routes(pod: &PodInterface, name: &IfName) -> Vec<Route> {
    let route = |destination: IpNet, target: RouteTarget| {
        let metric = if destination.addr().is_ipv6() {
            encode::IPV6_DEFAULT_METRIC
        } else {
            0
        };
        let key = RouteKey {
            table: TABLE_MAIN,
            destination,
            metric,
        };
        Route {
            key,
            target,
            protocol: PROTOCOL_BOOT,
            source: None,
        }
    };
    let mut routes = Vec::new();
    for family in families(pod) {
        if family == IpFamily::V4 {
            routes.push(route(
                IpNet::from(gateway(family)),
                RouteTarget::Link { device: name.clone() },
            ));
        }
        for destination in &pod.default_routes {
            if IpFamily::of(&destination.addr()) == family {
                let hop = NextHop {
                    gateway: gateway(family),
                    device: name.clone(),
                    onlink: false,
                };
                routes.push(route(*destination, RouteTarget::Via(vec![hop])));
            }
        }
    }
    routes
}

fn pod_sysctls(pod: &PodInterface) -> Vec<Sysctl> {
    let forward = if pod.ip_forward { "1" } else { "0" };
    let mut settings = vec![setting("ipv4/ip_forward".into(), forward)];
    if families(pod).any(|family| family == IpFamily::V6) {
        // The new interface inherits `default`.
        for device in ["all", "default", "lo"] {
            settings.push(setting(format!("ipv6/conf/{device}/disable_ipv6"), "0"));
        }
        settings.push(setting("ipv6/conf/default/accept_dad".into(), "0"));
        settings.push(setting("ipv6/conf/default/accept_ra".into(), "0"));
        settings.push(setting("ipv6/conf/all/forwarding".into(), forward));
    }
    settings
}

fn host_sysctls(pod: &PodInterface) -> Vec<Sysctl> {
    let device = &pod.host_device;
    let mut settings = vec![
        // A pod's packets must come from addresses that are routed to it.
        setting(format!("ipv4/conf/{device}/rp_filter"), "1"),
        // Node ports are served from the loopback address.
        setting(format!("ipv4/conf/{device}/route_localnet"), "1"),
        setting(format!("ipv4/conf/{device}/proxy_arp"), "1"),
        setting(format!("ipv4/neigh/{device}/proxy_delay"), "0"),
        setting(format!("ipv4/conf/{device}/forwarding"), "1"),
        setting(format!("ipv6/conf/{device}/accept_ra"), "0"),
        setting(format!("ipv6/conf/{device}/accept_dad"), "0"),
    ];
    if families(pod).any(|family| family == IpFamily::V6) {
        // The gateway's address follows from the hardware address whatever the host prefers.
        settings.push(setting(format!("ipv6/conf/{device}/addr_gen_mode"), "0"));
        settings.push(setting(format!("ipv6/conf/{device}/disable_ipv6"), "0"));
        settings.push(setting(format!("ipv6/conf/{device}/proxy_ndp"), "1"));
        settings.push(setting(format!("ipv6/conf/{device}/forwarding"), "1"));
    }
    settings
}

fn setting(path: String, value: &str) -> Sysctl {
    Sysctl {
        path,
        value: value.to_string(),
    }
}

/// A kernel without IPv6 has no IPv6 settings; that matters only to a pod with an IPv6 address.
fn write(setting: &Sysctl, pod: &PodInterface) -> Result<(), PodError> {
    match sysctl::write(setting) {
        Err(_) if is_needless(setting, pod) => Ok(()),
        result => Ok(result?),
    }
}

fn is_needless(setting: &Sysctl, pod: &PodInterface) -> bool {
    setting.path.starts_with("ipv6/")
        && !families(pod).any(|family| family == IpFamily::V6)
        && !Path::new("/proc/sys/net/ipv6").exists()
}

fn families(pod: &PodInterface) -> impl Iterator<Item = IpFamily> {
    IpFamily::BOTH
        .into_iter()
        .filter(|family| pod.addresses.iter().any(|address| IpFamily::of(address) == *family))
}

fn gateway(family: IpFamily) -> IpAddr {
    match family {
        IpFamily::V4 => GATEWAY_V4.into(),
        IpFamily::V6 => GATEWAY_V6.into(),
    }
}

/// Whether a device that holds our name may be replaced.
fn is_ours(link: &Link, alias: &str) -> bool {
    let owner = alias.split_inclusive(':').next().filter(|owner| owner.ends_with(':'));
    match (&link.alias, owner) {
        (None, _) => is_half_made(link),
        (Some(theirs), Some(owner)) => theirs.starts_with(owner),
        (Some(_), None) => false,
    }
}

/// A host end whose maker was stopped before it could mark it. Nobody else makes such devices and leaves them down.
fn is_half_made(link: &Link) -> bool {
    link.kind == "veth" && link.mac == Some(HOST_MAC) && link.alias.is_none() && !link.up
}

fn are_pair(inner: &LinkDetails, outer: &LinkDetails) -> bool {
    inner.peer == Some(outer.link.index) && outer.peer == Some(inner.link.index)
}

fn leads_to(outer: &LinkDetails, netns: Option<&Path>, name: &str) -> bool {
    let Some(Ok(netns)) = netns.map(Netns::open) else {
        return true;
    };
    let inner = netns.run(|| link::find(&mut Socket::open().ok()?, &IfName::from(name)).ok()?);
    matches!(inner, Ok(Some(inner)) if are_pair(&inner, outer))
}

fn describe(link: &Link) -> String {
    let kind = if link.kind.is_empty() { "device" } else { &link.kind };
    match &link.alias {
        Some(alias) => format!("a {kind} with alias {alias:?}"),
        None => format!("a {kind} without alias"),
    }
}

fn differences(pod: &PodInterface) -> Result<Vec<String>, PodError> {
    let netns = open(&pod.netns)?;
    let name = IfName::from(pod.name.as_str());
    let mut socket = Socket::open().map_err(broken)?;
    let Some(outer) = link::find(&mut socket, &pod.host_device)? else {
        return Ok(vec![format!("device {} is missing", pod.host_device)]);
    };
    let mut found = Vec::new();
    let mut expect = |fine: bool, text: String| found.extend((!fine).then_some(text));
    let host = &outer.link;
    expect(host.up, format!("device {} is down", host.name));
    expect(
        host.alias.as_deref() == Some(&pod.alias),
        format!("device {} is {}", host.name, describe(host)),
    );
    expect(
        host.mac == Some(HOST_MAC),
        format!("device {} has not the address {HOST_MAC}", host.name),
    );
    expect(
        host.mtu == pod.mtu,
        format!("device {} has MTU {}, not {}", host.name, host.mtu, pod.mtu),
    );
    for setting in host_sysctls(pod) {
        let value = sysctl::read(&setting.path)?;
        let fine = value.as_ref() == Some(&setting.value) || is_needless(&setting, pod);
        expect(
            fine,
            format!(
                "sysctl {} is {}, not {}",
                setting.path,
                value.as_deref().unwrap_or("missing"),
                setting.value
            ),
        );
    }
    let inner = netns.run(|| -> Result<_, PodError> {
        let mut socket = Socket::open().map_err(broken)?;
        let details = link::find(&mut socket, &name)?;
        let seen = read_netlink(&mut socket).map_err(|failure| failure.about("reading the pod", None))?;
        Ok(details.map(|details| (details, seen)))
    });
    let Some((details, seen)) = inner.map_err(broken)?? else {
        expect(false, format!("the pod has no interface {name}"));
        return Ok(found);
    };
    let link = &details.link;
    expect(
        are_pair(&details, &outer),
        format!("{name} is not the other end of {}", host.name),
    );
    expect(link.up, format!("{name} is down"));
    expect(
        link.mtu == pod.mtu,
        format!("{name} has MTU {}, not {}", link.mtu, pod.mtu),
    );
    expect(
        pod.mac.is_none() || link.mac == pod.mac,
        format!("{name} has another hardware address"),
    );
    for address in addresses(pod, &name) {
        expect(
            seen.addresses.contains(&address),
            format!("{name} has no address {}", address.net),
        );
    }
    for neighbor in neighbors(pod, &name) {
        expect(
            seen.neighbors.contains(&neighbor),
            format!("no neighbour entry for {}", neighbor.address),
        );
    }
    for route in routes(pod, &name) {
        let fine = seen
            .routes
            .get(&route.key)
            .is_some_and(|there| there.target == route.target);
        expect(fine, format!("no route to {} as it should be", route.key.destination));
    }
    Ok(found)
}

fn open(path: &Path) -> Result<Netns, PodError> {
    Netns::open(path).map_err(|error| PodError::NoNamespace {
        path: path.to_path_buf(),
        reason: error.to_string(),
    })
}

fn broken(error: io::Error) -> PodError {
    PodError::Kernel(KernelError::Broken(error.to_string()))
}
