//! What is said of a pod, a route, a tunnel and a device: facts, and what is not as it should be.

use std::net::IpAddr;

use agent::path::{LinkView, NeighborView, PathView, PodView, Refusal, RouteView, TunnelView, WayView};

use super::hop::{Hop, Kind};

/// The table `main`.
const MAIN: u32 = 254;
/// Bytes of the outer header of IP-in-IP.
pub const OUTER: u32 = 20;

/// A pod at the packet's beginning (`sends`) or end, and what it has besides.
pub fn pod(hop: &mut Hop, pod: &PodView, address: IpAddr, sends: bool) {
    let interface = &pod.interface;
    if let Some(why) = &pod.closed {
        return hop.find(
            Kind::Broken,
            format!("its network namespace cannot be entered: {why}"),
            "its container must run",
        );
    }
    let Some(inside) = &pod.inside else {
        return hop.find(
            Kind::Broken,
            format!("it has no {interface}"),
            format!("the other end of {} on the node", pod.host_device),
        );
    };
    hop.fact(format!("{interface} {address}, MTU {}{}", inside.mtu, state(inside)));
    if !inside.up {
        return hop.find(
            Kind::Broken,
            format!("{interface} is down"),
            format!("`ip link set {interface} up` in the pod (its routes went with it: attach it again)"),
        );
    }
    if !pod.has_address {
        hop.find(
            Kind::Broken,
            format!("{interface} does not have the address {address}"),
            format!("`ip address add {address} dev {interface}` in the pod, as the CNI plugin did"),
        );
    }
    match (&pod.way.route, pod.way.refused, sends) {
        (Some(route), _, true) => {
            // Who made the routes of a pod is plain.
            hop.fact(route_text(&RouteView {
                protocol: None,
                ..route.clone()
            }));
            neighbor(hop, &pod.way);
        }
        (Some(_), _, false) => {}
        (None, _, true) => hop.find(
            Kind::Broken,
            format!("no route to the destination{}", why_refused(&pod.way)),
            "the default route of the CNI plugin: via 169.254.1.1 (IPv6: the node's link-local address)",
        ),
        (None, _, false) => hop.find(
            Kind::Broken,
            format!("no route for the answer{}", why_refused(&pod.way)),
            "the default route of the CNI plugin: via 169.254.1.1 (IPv6: the node's link-local address)",
        ),
    }
}

/// The node's end of a pod's link.
pub fn host_end(hop: &mut Hop, pod: &PodView) {
    let name = &pod.host_device;
    match &pod.host {
        None => hop.find(
            Kind::Broken,
            format!("{name} is not there: the pod hangs off nothing"),
            "the CNI plugin makes it: the pod must be attached again",
        ),
        Some(host) => {
            hop.fact(format!(
                "{name}, MTU {}{}: the node's end of the pod's link",
                host.mtu,
                state(host)
            ));
            if !host.up {
                hop.find(
                    Kind::Broken,
                    format!("{name} is down"),
                    format!("`ip link set {name} up`"),
                );
            }
        }
    }
}

/// Where the packet goes from a node. `expected`: which route would be right. `false`: it goes nowhere.
pub fn way(hop: &mut Hop, way: &WayView, expected: &str) -> bool {
    if let Some(route) = &way.route {
        hop.fact(route_text(route));
        return true;
    }
    let by = way.refused_by.map(|net| format!(" {net}")).unwrap_or_default();
    let what = match way.refused {
        Some(Refusal::Missing) | None => "there is no route to the destination".to_owned(),
        Some(Refusal::Blackhole) => format!("the route{by} is a blackhole: it drops what has no route of its own"),
        Some(Refusal::Unreachable) => format!("the route{by} says unreachable"),
        Some(Refusal::Prohibited) => format!("the route{by} prohibits it"),
        Some(Refusal::Source) => "its source is not expected by the device that it comes in by (rp_filter)".to_owned(),
    };
    hop.find(Kind::Broken, what, expected);
    false
}

/// The device that a packet leaves by, and whom it is handed to.
pub fn device(hop: &mut Hop, way: &WayView) {
    let Some(device) = &way.device else { return };
    if !device.up {
        hop.find(
            Kind::Broken,
            format!("{} is down", device.name),
            format!("`ip link set {} up`", device.name),
        );
    } else if !device.carrier {
        hop.find(
            Kind::Broken,
            format!("{} has no carrier: its other end is down", device.name),
            "",
        );
    }
    neighbor(hop, way);
}

fn neighbor(hop: &mut Hop, way: &WayView) {
    let Some(next) = way.next else { return };
    let on = way
        .device
        .as_ref()
        .map(|device| device.name.as_str())
        .unwrap_or_default();
    match &way.neighbor {
        None => hop.fact(format!("next hop {next} on {on}: not asked for yet")),
        Some(NeighborView { state, .. }) if ["failed", "incomplete"].contains(&state.as_str()) => hop.find(
            Kind::Broken,
            format!("next hop {next} does not answer on {on} ({state})"),
            format!("a host with {next} on the link of {on}"),
        ),
        Some(NeighborView { mac, state }) => {
            let mac = mac.as_deref().unwrap_or("no address");
            hop.fact(format!("next hop {next} on {on} is {mac} ({state})"));
        }
    }
}

/// The tunnel that a packet leaves by.
pub fn into_tunnel(hop: &mut Hop, view: &PathView) {
    let (Some(tunnel), Some(outer), Some(peer)) = (&view.tunnel, &view.outer, view.way.next) else {
        return;
    };
    let name = view
        .way
        .route
        .as_ref()
        .map(|route| route.device.as_str())
        .unwrap_or_default();
    if !works(hop, tunnel, name) {
        return;
    }
    let mtu = view.way.device.as_ref().map(|device| device.mtu).unwrap_or_default();
    let local = tunnel.local.map(|local| local.to_string()).unwrap_or_default();
    hop.fact(format!(
        "{name} ({}), MTU {mtu}: outer header {local} -> {peer}, IP-in-IP",
        flavour(tunnel)
    ));
    if tunnel.strangers.contains(&peer) {
        hop.find(
            Kind::Broken,
            format!("{name} does not know {peer}: it sends nothing there"),
            "it must be the address of a registered node (`margay get nodes -o wide`)",
        );
    }
    if let Some(device) = view.way.device.as_ref().filter(|device| !device.up) {
        hop.find(
            Kind::Broken,
            format!("{} is down", device.name),
            format!("`ip link set {} up`", device.name),
        );
    }
    match &outer.route {
        Some(route) => hop.fact(format!("outer {}", route_text(route))),
        None => hop.find(
            Kind::Broken,
            format!("no route for the outer header{}", why_refused(outer)),
            format!("a route to {peer} over {}", tunnel.underlay),
        ),
    }
    device(hop, outer);
    counts(hop, tunnel, name);
}

/// The tunnel that a packet comes in by, from a host.
pub fn out_of_tunnel(hop: &mut Hop, tunnel: &TunnelView, name: &str, from: Option<IpAddr>) {
    if !works(hop, tunnel, name) {
        return;
    }
    let sender = from.map(|from| format!(" from {from}")).unwrap_or_default();
    hop.fact(format!(
        "{name} ({}) takes it out of IP-in-IP{sender}, over {}",
        flavour(tunnel),
        tunnel.underlay
    ));
    if let Some(from) = from.filter(|from| tunnel.strangers.contains(from)) {
        hop.find(
            Kind::Broken,
            format!("{name} takes nothing from {from}: it is no node that this one knows"),
            "it must be the address of a registered node (`margay get nodes -o wide`)",
        );
    }
    counts(hop, tunnel, name);
}

fn works(hop: &mut Hop, tunnel: &TunnelView, name: &str) -> bool {
    if !tunnel.flavour.is_empty() {
        return true;
    }
    hop.find(
        Kind::Broken,
        format!("{name} is no working IP-in-IP tunnel"),
        "the agent makes it: see tunl0 and the problems in `margay node status` there",
    );
    false
}

fn flavour(tunnel: &TunnelView) -> &str {
    match tunnel.flavour.as_str() {
        "bpf" => "BPF",
        "native" => "the kernel's driver",
        other => other,
    }
}

fn counts(hop: &mut Hop, tunnel: &TunnelView, name: &str) {
    let Some(counted) = &tunnel.counters else { return };
    let dropped = [
        ("unknown source", counted.dropped_unknown_source),
        ("no peer", counted.dropped_no_peer),
        ("malformed", counted.dropped_malformed),
    ];
    let dropped = dropped.into_iter().filter(|(_, count)| *count > 0);
    let dropped: Vec<String> = dropped.map(|(why, count)| format!("{count} dropped ({why})")).collect();
    let mut text = format!(
        "{name} has counted {} encapsulated, {} decapsulated",
        counted.encapsulated, counted.decapsulated
    );
    for part in dropped {
        text.push_str(", ");
        text.push_str(&part);
    }
    hop.fact(text);
}

/// Whether the longest packet that the sender makes (`full` bytes) passes what it leaves a node by.
pub fn fits(hop: &mut Hop, full: u32, view: &PathView) {
    let mut ok = narrow(hop, full, full, &view.way, "");
    let mut text = format!("a full-size packet has {full} bytes");
    if let Some(outer) = &view.outer {
        ok &= narrow(hop, full, full + OUTER, outer, " with its outer header");
        text.push_str(&format!(", {} with its outer header", full + OUTER));
    }
    let last = view.outer.as_ref().unwrap_or(&view.way);
    if let (true, Some(device)) = (ok, &last.device) {
        hop.fact(format!("{text}: fits {} (MTU {})", device.name, device.mtu));
    }
}

/// `full` bytes are `length` here.
fn narrow(hop: &mut Hop, full: u32, length: u32, way: &WayView, with: &str) -> bool {
    let Some(device) = &way.device else { return true };
    let told = way
        .route
        .as_ref()
        .and_then(|route| route.mtu)
        .filter(|mtu| *mtu < device.mtu);
    let (mtu, what) = match told {
        Some(mtu) => (mtu, format!("the path through {}", device.name)),
        None => (device.mtu, device.name.clone()),
    };
    if length <= mtu {
        return true;
    }
    hop.find(
        Kind::Broken,
        format!(
            "{what} has MTU {mtu}, a full-size packet has {length} bytes{with}: small packets pass, large ones must be fragmented or are refused"
        ),
        format!("an MTU of at least {length} there, or of at most {} in the pod", mtu.saturating_sub(length - full)),
    );
    false
}

/// A route in one line.
pub fn route_text(route: &RouteView) -> String {
    if route.local {
        return "the address is this node's own".to_owned();
    }
    let prefix = match route.prefix {
        Some(net) if net.prefix_len() == 0 => "default".to_owned(),
        Some(net) => net.to_string(),
        None => String::new(),
    };
    let via = route
        .gateway
        .map(|gateway| format!(" via {gateway}"))
        .unwrap_or_default();
    let onlink = match route.onlink {
        true => " onlink",
        false => "",
    };
    let by = match route.protocol {
        Some(80) => " (by the agent)".to_owned(),
        Some(2) => " (by the kernel, for the device's address)".to_owned(),
        Some(3 | 4) => " (by hand)".to_owned(),
        Some(12) => " (by BIRD)".to_owned(),
        Some(number) => format!(" (protocol {number})"),
        None => String::new(),
    };
    let table = match route.table {
        0 | MAIN => String::new(),
        other => format!(" table {other}"),
    };
    format!("route {prefix}{via} dev {}{onlink}{table}{by}", route.device)
}

fn why_refused(way: &WayView) -> &'static str {
    match way.refused {
        Some(Refusal::Blackhole) => ": a blackhole",
        Some(Refusal::Unreachable) => ": unreachable",
        Some(Refusal::Prohibited) => ": prohibited",
        Some(Refusal::Source) => ": its source is refused",
        Some(Refusal::Missing) | None => "",
    }
}

fn state(link: &LinkView) -> &'static str {
    match (link.up, link.carrier) {
        (true, true) => ", up",
        (true, false) => ", up, but its other end is down",
        (false, _) => ", down",
    }
}
