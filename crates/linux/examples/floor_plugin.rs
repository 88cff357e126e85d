//! The floor under a CNI plugin, for benchmarks: the smallest process that wires a pod by bare netlink.
//!
//! ADD makes a veth pair of which one end is born in the pod, gives the pod its address, two routes and a neighbour
//! entry, and the node a route to the pod. DEL deletes the pair. There is no agent, no datastore, no journal and no
//! allocation: the address comes from the configuration on standard input, and nothing is checked or undone.

use std::error::Error;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::path::PathBuf;

use ipnet::IpNet;
use kernel::{Address, IfName, Mac, Neighbor, NextHop, Route, RouteKey, RouteTarget, TABLE_MAIN};
use linux::link::{self, LinkSettings, VethEnd};
use linux::netns::Netns;
use linux::request::Socket;
use nix::sched::{CloneFlags, setns};

const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));
const HOST_MAC: Mac = Mac([0xee; 6]);
/// `RTPROT_BOOT`.
const PROTOCOL: u8 = 3;

fn main() -> Result<(), Box<dyn Error>> {
    let variable = |name: &str| std::env::var(name).map_err(|error| format!("{name}: {error}"));
    let container = variable("CNI_CONTAINERID")?;
    let device = IfName(format!("floor{}", container.get(..10).unwrap_or(&container)));
    let mut input = String::new();
    std::io::stdin().read_to_string(&mut input)?;
    match variable("CNI_COMMAND")?.as_str() {
        "ADD" => {
            let address: IpAddr = field(&input, "address")
                .ok_or("no address in the configuration")?
                .parse()?;
            let pod = Netns::open(&PathBuf::from(variable("CNI_NETNS")?))?;
            add(&pod, &device, &IfName(variable("CNI_IFNAME")?), address)?;
            println!(r#"{{"cniVersion":"1.0.0","ips":[{{"address":"{address}/32"}}]}}"#);
        }
        _ => {
            link::delete(&mut Socket::open()?, &device)?;
        }
    }
    Ok(())
}

fn add(pod: &Netns, outer: &IfName, inner: &IfName, address: IpAddr) -> Result<(), Box<dyn Error>> {
    let node = Netns::current()?;
    let mut outside = Socket::open()?;
    setns(pod, CloneFlags::CLONE_NEWNET)?;
    let mut inside = Socket::open()?;
    let end = |name, netns, mac| VethEnd {
        name,
        netns,
        mac,
        mtu: None,
    };
    link::create_veth(
        &mut inside,
        &end(inner, None, None),
        &end(outer, Some(node.as_fd()), Some(HOST_MAC)),
    )?;
    let up = LinkSettings {
        up: Some(true),
        ..LinkSettings::default()
    };
    link::set(&mut inside, inner, &up)?;
    link::add_address(
        &mut inside,
        &Address {
            device: inner.clone(),
            net: IpNet::from(address),
        },
    )?;
    link::put_neighbor(
        &mut inside,
        &Neighbor {
            device: inner.clone(),
            address: GATEWAY,
            mac: HOST_MAC,
        },
    )?;
    link::put_route(
        &mut inside,
        &route(IpNet::from(GATEWAY), RouteTarget::Link { device: inner.clone() }),
    )?;
    let hop = NextHop {
        gateway: GATEWAY,
        device: inner.clone(),
        onlink: false,
    };
    link::put_route(&mut inside, &route("0.0.0.0/0".parse()?, RouteTarget::Via(vec![hop])))?;
    link::set(&mut outside, outer, &up)?;
    link::put_route(
        &mut outside,
        &route(IpNet::from(address), RouteTarget::Link { device: outer.clone() }),
    )?;
    Ok(())
}

fn route(destination: IpNet, target: RouteTarget) -> Route {
    let key = RouteKey {
        table: TABLE_MAIN,
        destination,
        metric: 0,
    };
    Route {
        key,
        target,
        protocol: PROTOCOL,
        source: None,
    }
}

/// The text of one field of a flat JSON object that we wrote ourselves.
fn field<'a>(json: &'a str, name: &str) -> Option<&'a str> {
    let after = json.split_once(&format!("\"{name}\":\""))?.1;
    after.split_once('"').map(|(value, _)| value)
}
