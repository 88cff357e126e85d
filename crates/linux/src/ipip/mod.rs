//! The IP-in-IP device `tunl0`, in two flavours behind one name.
//!
//! *Native* is the kernel's `ipip` driver; a BPF program on the underlay lets in only what comes from known nodes. *BPF* is
//! for kernels without that driver: `tunl0` is one end of a veth pair, and the programs of `bpf/ipip.c` encapsulate at
//! its egress and decapsulate at the underlay's ingress. Routes are the same for both: `BLOCK via NODE dev tunl0 onlink`.
//!
//! All functions are synchronous and act on the calling thread's network namespace. There is at most one tunnel in a
//! namespace. Nothing depends on this process once it is set up: programs and maps live as long as they are attached, and
//! are found again through what is attached. Loading and finding them takes `CAP_SYS_ADMIN`.
//!
//! What the BPF flavour does not do: pass on "fragmentation needed" from a router between the nodes, put outer fragments
//! together, and show outgoing packets to a capture on `tunl0` (they are seen on the underlay, encapsulated). Changes of
//! the way to a peer come into force within a tenth of a second. A super-packet that was decapsulated stays marked as
//! tunnelled (no kernel lets a program change that so far): harmless on its way to pods, to the host and into another
//! tunnel, but a network card that segments IP-in-IP by itself could mistake it when such a packet is routed out again.

mod bpf;
mod native;
mod place;
mod probe;
mod program;
mod veth;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use kernel::{IfName, IpipCounters, IpipFlavour, IpipTunnel, KernelError};

pub use probe::{Probe, probe};

use place::Hook;
use program::{Attached, Config, Maps, Programs};

use crate::rtnl::{self, Change, Device, Rtnl, no_device};

/// Start of the alias of a tunnel of ours; the underlay's name follows.
const LABEL: &str = "margay ipip over ";

/// Makes the tunnel as described.
///
/// On a tunnel that already is so, changes nothing. Other constants or another version of the programs replace the old
/// ones between two packets, and keep the peers and the counters. An error leaves what was done so far; calling again
/// goes on from there.
pub fn put(tunnel: &IpipTunnel) -> Result<(), KernelError> {
    let mut rtnl = Rtnl::open()?;
    let underlay = rtnl
        .device(&tunnel.underlay.0)?
        .ok_or_else(|| no_device(&tunnel.underlay.0))?;
    if underlay.hardware != rtnl::ETHERNET {
        return Err(KernelError::Unsupported(format!(
            "IP-in-IP over {}, which is no Ethernet device",
            underlay.name
        )));
    }
    let device = match tunnel.flavour {
        IpipFlavour::Bpf => veth::ensure(&mut rtnl, &tunnel.name.0, tunnel.mtu)?,
        IpipFlavour::Native => native::ensure(&mut rtnl, &tunnel.name.0, tunnel.mtu)?,
    };
    put_address(&mut rtnl, &device, tunnel.address)?;
    let maps = attach(&mut rtnl, tunnel, &device, &underlay)?;
    if tunnel.flavour == IpipFlavour::Bpf {
        veth::put_missing_neighbors(&mut rtnl, &device, &maps.peers()?)?;
    }
    Ok(())
}

/// Removes the tunnel, its peers and its programs; absence is fine. A device of that name that is not ours stays.
pub fn remove(name: &IfName) -> Result<(), KernelError> {
    let mut rtnl = Rtnl::open()?;
    let device = rtnl.device(&name.0)?;
    let ours = device.filter(|device| veth::is_ours(device) || native::is_ours(device));
    for (index, found) in decapsulating(&mut rtnl)? {
        detach(&mut rtnl, index, &found.config)?;
    }
    match ours {
        Some(device) if veth::is_ours(&device) => {
            rtnl.delete_device(device.index)?;
            native::bring_back(&mut rtnl, &name.0).map(drop)
        }
        Some(device) => native::retire(&mut rtnl, &device),
        None => Ok(()),
    }
}

/// Allows a node as outer source and makes it reachable as next hop on the tunnel.
///
/// `NoDevice` if there is no working tunnel of that name.
pub fn put_peer(name: &IfName, peer: Ipv4Addr) -> Result<(), KernelError> {
    let mut rtnl = Rtnl::open()?;
    let Some(working) = Working::find(&mut rtnl, name)? else {
        return Err(KernelError::NoDevice(name.clone()));
    };
    working.maps.put_peer(peer)?;
    match working.flavour {
        IpipFlavour::Bpf => veth::put_neighbor(&mut rtnl, &working.device, peer),
        IpipFlavour::Native => Ok(()),
    }
}

/// Forgets a node; absence is fine, also of the tunnel.
pub fn remove_peer(name: &IfName, peer: Ipv4Addr) -> Result<(), KernelError> {
    let mut rtnl = Rtnl::open()?;
    let Some(working) = Working::find(&mut rtnl, name)? else {
        return Ok(());
    };
    if working.flavour == IpipFlavour::Bpf {
        rtnl.delete_neighbor(working.device.index, peer)?;
    }
    working.maps.remove_peer(peer)
}

/// The tunnel as it works now, with its peers; `None` if there is none of ours, or if anything about it is broken, so that
/// [`put`] is the next thing to do. A peer counts when all that it needs is in place.
pub fn observe(name: &IfName) -> Result<Option<(IpipTunnel, BTreeSet<Ipv4Addr>)>, KernelError> {
    let mut rtnl = Rtnl::open()?;
    let Some(working) = Working::find(&mut rtnl, name)? else {
        return Ok(None);
    };
    if working.config.build != program::build() {
        return Ok(None);
    }
    let mut peers = working.maps.peers()?;
    if working.flavour == IpipFlavour::Bpf {
        let neighbors = veth::neighbors(&mut rtnl, &working.device)?;
        peers.retain(|peer| neighbors.contains(peer));
    }
    let addresses = rtnl.addresses(working.device.index)?;
    let tunnel = IpipTunnel {
        name: name.clone(),
        flavour: working.flavour,
        local: working.config.local,
        underlay: IfName(working.underlay.name),
        address: addresses
            .iter()
            .find(|(_, prefix)| *prefix == 32)
            .map(|(address, _)| *address),
        mtu: working.device.mtu,
    };
    Ok(Some((tunnel, peers)))
}

/// Counters since the tunnel was set up; `None` if there is no working tunnel of ours.
pub fn counters(name: &IfName) -> Result<Option<IpipCounters>, KernelError> {
    let mut rtnl = Rtnl::open()?;
    let Some(working) = Working::find(&mut rtnl, name)? else {
        return Ok(None);
    };
    let counts = working.maps.counts()?;
    Ok(Some(IpipCounters {
        encapsulated: match working.flavour {
            IpipFlavour::Bpf => counts.encapsulated,
            IpipFlavour::Native => working.device.sent,
        },
        decapsulated: counts.decapsulated,
        dropped_unknown_source: counts.unknown_source,
        dropped_no_peer: counts.no_peer,
        dropped_malformed: counts.malformed,
    }))
}

/// Numbers of the attached programs (as `bpftool prog` shows them), encapsulation first; empty without a tunnel of ours.
pub fn programs(name: &IfName) -> Result<Vec<u32>, KernelError> {
    let mut rtnl = Rtnl::open()?;
    let Some(working) = Working::find(&mut rtnl, name)? else {
        return Ok(Vec::new());
    };
    let encap = place::find(&mut rtnl, working.device.index, Hook::Egress)?;
    let decap = place::find(&mut rtnl, working.underlay.index, Hook::Ingress)?;
    Ok([encap, decap].into_iter().flatten().collect())
}

/// A tunnel of ours with all its parts.
struct Working {
    flavour: IpipFlavour,
    device: Device,
    underlay: Device,
    config: Config,
    maps: Maps,
}

impl Working {
    fn find(rtnl: &mut Rtnl, name: &IfName) -> Result<Option<Self>, KernelError> {
        let Some(device) = rtnl.device(&name.0)? else {
            return Ok(None);
        };
        let flavour = match () {
            () if veth::works(&device) => IpipFlavour::Bpf,
            () if native::works(&device) => IpipFlavour::Native,
            () => return Ok(None),
        };
        let Some(underlay) = labelled(&device) else {
            return Ok(None);
        };
        let Some(underlay) = rtnl.device(underlay)? else {
            return Ok(None);
        };
        let Some(decap) = attached(rtnl, underlay.index, Hook::Ingress)? else {
            return Ok(None);
        };
        let native = flavour == IpipFlavour::Native;
        let expected = Config {
            underlay: underlay.index,
            device: device.index,
            native,
            ..decap.config
        };
        if decap.config != expected {
            return Ok(None);
        }
        if !native {
            let Some(encap) = attached(rtnl, device.index, Hook::Egress)? else {
                return Ok(None);
            };
            if !pairs(&encap, &decap) {
                return Ok(None);
            }
        }
        Ok(Some(Self {
            flavour,
            device,
            underlay,
            config: decap.config,
            maps: decap.maps,
        }))
    }
}

/// A device's alias: that it is ours, and over what.
fn label(underlay: &str) -> String {
    format!("{LABEL}{underlay}")
}

/// The underlay's name in an alias of ours.
fn labelled(device: &Device) -> Option<&str> {
    device.alias.strip_prefix(LABEL)
}

/// Makes `address` the device's only one.
fn put_address(rtnl: &mut Rtnl, device: &Device, address: Option<Ipv4Addr>) -> Result<(), KernelError> {
    let present = rtnl.addresses(device.index)?;
    if let Some(address) = address
        && !present.contains(&(address, 32))
    {
        rtnl.add_address(device.index, address)?;
    }
    for (other, prefix) in present {
        if address != Some(other) || prefix != 32 {
            rtnl.delete_address(device.index, other, prefix)?;
        }
    }
    Ok(())
}

/// Makes sure that the right programs are attached with the right constants, here and nowhere else.
fn attach(rtnl: &mut Rtnl, tunnel: &IpipTunnel, device: &Device, underlay: &Device) -> Result<Maps, KernelError> {
    if labelled(device) != Some(&underlay.name) {
        rtnl.change(
            device.index,
            &Change {
                alias: Some(&label(&underlay.name)),
                ..Change::default()
            },
        )?;
    }
    let native = tunnel.flavour == IpipFlavour::Native;
    let decap = attached(rtnl, underlay.index, Hook::Ingress)?;
    let encap = if native {
        None
    } else {
        attached(rtnl, device.index, Hook::Egress)?
    };
    let mut config = Config {
        build: program::build(),
        local: tunnel.local,
        underlay: underlay.index,
        device: device.index,
        native,
        owns_clsact: decap.as_ref().is_some_and(|decap| decap.config.owns_clsact),
    };
    let decap = match (decap, &encap) {
        (Some(decap), _) if native && decap.config == config => return Ok(decap.maps),
        (Some(decap), Some(encap)) if decap.config == config && pairs(encap, &decap) => return Ok(decap.maps),
        (decap, _) => decap,
    };

    let mut strays = decapsulating(rtnl)?;
    strays.retain(|(index, _)| *index != underlay.index);
    let stray_configs: Vec<(u32, Config)> = strays.iter().map(|(index, stray)| (*index, stray.config)).collect();
    let old = decap.or(encap).or(strays.into_iter().next().map(|(_, stray)| stray));

    let made = place::prepare(rtnl, underlay.index)?;
    config.owns_clsact |= made;
    let loaded = Programs::load(config, old.map(|attached| attached.maps));
    if made && loaded.is_err() {
        rtnl.delete_clsact_if_empty(underlay.index)?;
    }
    let programs = loaded?;
    place::put(rtnl, underlay.index, Hook::Ingress, &programs.decap)?;
    if !native {
        place::prepare(rtnl, device.index)?;
        place::put(rtnl, device.index, Hook::Egress, &programs.encap)?;
    }
    for (index, config) in stray_configs {
        detach(rtnl, index, &config)?;
    }
    Ok(programs.maps)
}

/// Takes the program off an underlay, and `clsact` if we made it and nobody else uses it.
fn detach(rtnl: &mut Rtnl, index: u32, config: &Config) -> Result<(), KernelError> {
    place::clear(rtnl, index, Hook::Ingress)?;
    if config.owns_clsact {
        rtnl.delete_clsact_if_empty(index)
    } else {
        Ok(())
    }
}

/// Our program in that place, if there is one.
fn attached(rtnl: &mut Rtnl, index: u32, hook: Hook) -> Result<Option<Attached>, KernelError> {
    match place::find(rtnl, index, hook)? {
        Some(program) => Attached::read(program),
        None => Ok(None),
    }
}

/// All devices on whose ingress our program is.
fn decapsulating(rtnl: &mut Rtnl) -> Result<Vec<(u32, Attached)>, KernelError> {
    let mut found = Vec::new();
    for device in rtnl.devices()? {
        // Somebody else's filter in our place, on a device that is none of ours, is no concern.
        if let Ok(Some(attached)) = attached(rtnl, device.index, Hook::Ingress) {
            found.push((device.index, attached));
        }
    }
    Ok(found)
}

/// Whether two programs belong together.
fn pairs(encap: &Attached, decap: &Attached) -> bool {
    encap.config == decap.config && encap.maps.peers.id == decap.maps.peers.id
}
