//! The device of the BPF flavour: one end of a veth pair, whose neighbours' MAC addresses spell peers.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use kernel::{KernelError, Mac};

use super::native;
use crate::rtnl::{Change, Device, Rtnl, no_device};

/// The tunnel's own MAC address, also the mark by which it is known: peer 0.0.0.0, whom nobody has.
const OWN: Mac = Mac([2, 2, 0, 0, 0, 0]);
/// First bytes of a peer's MAC address: `MAC_PREFIX` of `bpf/ipip.c`.
const PREFIX: [u8; 2] = [2, 2];

/// Whether a device is a tunnel that we made.
pub fn is_ours(device: &Device) -> bool {
    device.kind == "veth" && device.mac == Some(OWN)
}

/// Whether it is ours and can carry packets.
pub fn works(device: &Device) -> bool {
    is_ours(device) && device.has(libc::IFF_UP | libc::IFF_LOWER_UP | libc::IFF_NOARP)
}

/// Makes the device: up, without ARP, of that MTU.
pub fn ensure(rtnl: &mut Rtnl, name: &str, mtu: u32) -> Result<Device, KernelError> {
    let far_end = far_end(name);
    let device = match rtnl.device(name)? {
        Some(device) if is_ours(&device) => device,
        Some(device) if native::is_driver(&device) => {
            native::set_aside(rtnl, &device)?;
            create(rtnl, name, &far_end, mtu)?
        }
        Some(_) => {
            return Err(KernelError::Foreign {
                what: format!("device {name}"),
            });
        }
        None => create(rtnl, name, &far_end, mtu)?,
    };
    if works(&device) && device.mtu == mtu {
        return Ok(device);
    }
    let far = rtnl.device(&far_end)?.ok_or_else(|| no_device(&far_end))?;
    let up = Some((libc::IFF_UP | libc::IFF_NOARP, libc::IFF_UP | libc::IFF_NOARP));
    for (index, mtu) in [(far.index, None), (device.index, Some(mtu))] {
        rtnl.forbid_ipv6_link_local(index)?;
        rtnl.change(
            index,
            &Change {
                flags: up,
                mtu,
                ..Change::default()
            },
        )?;
    }
    rtnl.device(name)?.ok_or_else(|| no_device(name))
}

/// Makes a peer reachable as next hop.
pub fn put_neighbor(rtnl: &mut Rtnl, device: &Device, peer: Ipv4Addr) -> Result<(), KernelError> {
    rtnl.put_neighbor(device.index, peer, spell(peer))
}

/// The peers that are reachable as next hops.
pub fn neighbors(rtnl: &mut Rtnl, device: &Device) -> Result<BTreeSet<Ipv4Addr>, KernelError> {
    let all = rtnl.neighbors(device.index)?;
    Ok(all
        .into_iter()
        .filter(|(address, mac)| *mac == spell(*address))
        .map(|(address, _)| address)
        .collect())
}

/// Adds the neighbours of those peers that have none, as after the device was made anew.
pub fn put_missing_neighbors(rtnl: &mut Rtnl, device: &Device, peers: &BTreeSet<Ipv4Addr>) -> Result<(), KernelError> {
    let present = neighbors(rtnl, device)?;
    peers
        .difference(&present)
        .try_for_each(|peer| put_neighbor(rtnl, device, *peer))
}

fn create(rtnl: &mut Rtnl, name: &str, far_end: &str, mtu: u32) -> Result<Device, KernelError> {
    rtnl.create_veth(name, far_end, OWN, mtu)?;
    rtnl.device(name)?.ok_or_else(|| no_device(name))
}

/// The MAC address that tells the program where to.
fn spell(peer: Ipv4Addr) -> Mac {
    let [a, b, c, d] = peer.octets();
    Mac([PREFIX[0], PREFIX[1], a, b, c, d])
}

/// The end that nobody uses: a veth device needs one.
fn far_end(name: &str) -> String {
    format!("{name}.p")
}
