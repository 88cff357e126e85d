//! The way of one packet through this node, as the kernel would send it now: devices, routes, tunnel, next hops.
//!
//! Facts alone, for `margay trace`, which puts the nodes' answers together and judges them. Reads, changes nothing, sends
//! nothing. Blocking: a few netlink questions here and in the pods that the packet concerns.

mod view;

use std::net::IpAddr;
use std::path::PathBuf;

use cni::journal::{Endpoint, Journal, Phase};
use kernel::{IfName, KernelError, Link};
use linux::lookup::{self, NoRoute, Query};
use linux::request::Socket;
use linux::{link, netns, sysctl};

pub use self::view::*;

/// Whose kernel is asked.
#[derive(Clone, Debug)]
pub struct Here {
    /// This node.
    pub node: String,
    /// Where the journal is.
    pub journal: PathBuf,
    /// The tunnel device.
    pub tunnel: IfName,
}

impl Here {
    /// Follows a packet through this node.
    pub fn look(&self, question: &PathQuestion) -> PathView {
        let mut view = PathView {
            node: self.node.clone(),
            ..PathView::default()
        };
        let pods = self.pods(&mut view.problems);
        let of = |address: IpAddr| pods.iter().find(|pod| pod.addresses.contains(&address));
        let (source, destination) = (of(question.source), of(question.destination));
        match Socket::open() {
            Ok(mut socket) => self
                .follow(&mut socket, question, source, destination, &mut view)
                .unwrap_or_else(|error| view.problems.push(error.to_string())),
            Err(error) => view.problems.push(format!("netlink: {error}")),
        }
        view
    }

    fn follow(
        &self,
        socket: &mut Socket,
        question: &PathQuestion,
        source: Option<&Endpoint>,
        destination: Option<&Endpoint>,
        view: &mut PathView,
    ) -> Result<(), KernelError> {
        let (from, to) = (question.source, question.destination);
        view.forwards = forwards(to);
        view.source = source.map(|pod| pod_view(socket, pod, from, to)).transpose()?;
        view.destination = destination.map(|pod| pod_view(socket, pod, to, from)).transpose()?;
        let arrives = match question.by {
            Arrival::Host => None,
            Arrival::Pod => view.source.as_ref().map(|pod| IfName(pod.host_device.clone())),
            Arrival::Tunnel => Some(self.tunnel.clone()),
            Arrival::Wire => match question.from {
                Some(host) => way(socket, &sent_by_us(host))?.route.map(|route| IfName(route.device)),
                None => None,
            },
        };
        let mut query = sent_by_us(to);
        if let Some(device) = arrives {
            view.arrives = link_view(socket, &device)?;
            if view.arrives.is_some() {
                (query.source, query.arrives) = (Some(from), Some(device));
            }
        }
        view.way = way(socket, &query)?;
        let leaves = view.way.route.as_ref().map(|route| route.device.as_str());
        let sends_to = view.way.next.filter(|_| leaves == Some(&self.tunnel.0));
        let takes_from = question.from.filter(|_| question.by == Arrival::Tunnel);
        if question.by == Arrival::Tunnel || sends_to.is_some() {
            view.tunnel = Some(self.tunnel(sends_to.into_iter().chain(takes_from))?);
        }
        if let Some(peer) = sends_to {
            view.outer = Some(way(socket, &sent_by_us(peer))?);
        }
        Ok(())
    }

    fn pods(&self, problems: &mut Vec<String>) -> Vec<Endpoint> {
        match Journal::new(&self.journal).endpoints() {
            Ok(loaded) => {
                let attached = |pod: &Endpoint| pod.phase == Phase::Attached && !pod.displaced && !pod.ipam_only;
                loaded.records.into_iter().filter(attached).collect()
            }
            Err(error) => {
                problems.push(format!("journal: {error}"));
                Vec::new()
            }
        }
    }

    fn tunnel(&self, ends: impl Iterator<Item = IpAddr>) -> Result<TunnelView, KernelError> {
        let Some((tunnel, peers)) = linux::ipip::observe(&self.tunnel)? else {
            return Ok(TunnelView::default());
        };
        Ok(TunnelView {
            flavour: format!("{:?}", tunnel.flavour).to_lowercase(),
            local: Some(tunnel.local.into()),
            underlay: tunnel.underlay.0,
            strangers: ends
                .filter(|end| !matches!(end, IpAddr::V4(end) if peers.contains(end)))
                .collect(),
            counters: linux::ipip::counters(&self.tunnel)?,
        })
    }
}

fn sent_by_us(destination: IpAddr) -> Query {
    Query {
        source: None,
        destination,
        arrives: None,
    }
}

fn forwards(address: IpAddr) -> bool {
    let family = kernel::IpFamily::of(&address);
    let value = sysctl::read(&kernel::Sysctl::forwarding(family, true).path);
    matches!(value, Ok(Some(value)) if value != "0")
}

fn pod_view(socket: &mut Socket, pod: &Endpoint, own: IpAddr, other: IpAddr) -> Result<PodView, KernelError> {
    let host_device = pod.host_device.clone().unwrap_or_default();
    let mut view = PodView {
        name: pod_name(pod),
        host: link_view(socket, &IfName(host_device.clone()))?,
        host_device,
        interface: pod.ifname.clone(),
        ..PodView::default()
    };
    let interface = IfName(pod.ifname.clone());
    match netns::run_in(&pod.netns, || inside(&interface, own, other)) {
        Ok(Ok((inside, has_address, way))) => (view.inside, view.has_address, view.way) = (inside, has_address, way),
        Ok(Err(error)) => view.closed = Some(error.to_string()),
        Err(error) => view.closed = Some(format!("{}: {error}", pod.netns.display())),
    }
    Ok(view)
}

/// `NAMESPACE/POD`; of what is no pod, the container.
pub(crate) fn pod_name(pod: &Endpoint) -> String {
    match pod.args.pod() {
        Some((namespace, name)) => format!("{namespace}/{name}"),
        None => pod.container_id.clone(),
    }
}

/// The interface, whether it has the address, and where packets for the other end go.
fn inside(interface: &IfName, own: IpAddr, other: IpAddr) -> Result<(Option<LinkView>, bool, WayView), KernelError> {
    let mut socket = Socket::open().map_err(|error| KernelError::Broken(error.to_string()))?;
    let Some(details) = link::find(&mut socket, interface)? else {
        return Ok((None, false, WayView::default()));
    };
    let addresses = link::addresses(&mut socket, &details.link)?;
    let has_address = addresses.iter().any(|address| address.net.addr() == own);
    Ok((
        Some(shown(details.link)),
        has_address,
        way(&mut socket, &sent_by_us(other))?,
    ))
}

fn way(socket: &mut Socket, query: &Query) -> Result<WayView, KernelError> {
    let found = match lookup::route(socket, query)? {
        Ok(found) => found,
        Err(why) => {
            let (refused, named) = match why {
                NoRoute::Missing => (Refusal::Missing, false),
                NoRoute::Blackhole => (Refusal::Blackhole, true),
                NoRoute::Unreachable => (Refusal::Unreachable, true),
                NoRoute::Prohibited => (Refusal::Prohibited, true),
                NoRoute::Source => (Refusal::Source, false),
            };
            return Ok(WayView {
                refused: Some(refused),
                refused_by: match named {
                    true => lookup::longest(socket, query.destination)?,
                    false => None,
                },
                ..WayView::default()
            });
        }
    };
    let mut way = WayView {
        route: Some(RouteView {
            local: found.local,
            prefix: found.prefix,
            gateway: found.gateway,
            device: found.device.clone().map(|device| device.0).unwrap_or_default(),
            onlink: found.onlink,
            protocol: found.protocol,
            table: found.table,
            mtu: found.mtu,
        }),
        ..WayView::default()
    };
    if let Some(device) = found.device.filter(|_| !found.local) {
        let next = found.gateway.unwrap_or(query.destination);
        way.device = link_view(socket, &device)?;
        way.next = Some(next);
        way.neighbor = lookup::neighbor(socket, &device, next)?.map(|known| NeighborView {
            mac: known.mac.map(|mac| mac.to_string()),
            state: known.state.to_owned(),
        });
    }
    Ok(way)
}

fn link_view(socket: &mut Socket, name: &IfName) -> Result<Option<LinkView>, KernelError> {
    Ok(link::find(socket, name)?.map(|details| shown(details.link)))
}

fn shown(link: Link) -> LinkView {
    LinkView {
        name: link.name.0,
        mtu: link.mtu,
        up: link.up,
        carrier: link.carrier,
    }
}
