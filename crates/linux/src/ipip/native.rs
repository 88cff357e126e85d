//! The device of the native flavour: the `ipip` driver's own, one per namespace and without fixed ends.
//!
//! The driver makes a device `tunl0` in each namespace as it is loaded (unless `net.core.fb_tunnels_only_for_init_net`
//! forbids it), which cannot be deleted. That one is used where it exists.

use std::net::Ipv4Addr;

use kernel::KernelError;

use super::labelled;
use super::veth;
use crate::rtnl::{Change, Device, Rtnl, done, no_device};

const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

/// Whether a device is the driver's.
pub fn is_driver(device: &Device) -> bool {
    device.kind == "ipip"
}

/// Whether a device is the driver's and set up by us.
pub fn is_ours(device: &Device) -> bool {
    is_driver(device) && labelled(device).is_some()
}

/// Whether it is ours and can carry packets.
pub fn works(device: &Device) -> bool {
    is_ours(device) && device.has(libc::IFF_UP)
}

/// Makes the device: up, of that MTU. Loads the driver.
pub fn ensure(rtnl: &mut Rtnl, name: &str, mtu: u32) -> Result<Device, KernelError> {
    let device = match rtnl.device(name)? {
        Some(device) if is_driver(&device) => device,
        Some(device) if veth::is_ours(&device) => {
            rtnl.delete_device(device.index)?;
            create(rtnl, name)?
        }
        Some(_) => {
            return Err(KernelError::Foreign {
                what: format!("device {name}"),
            });
        }
        None => create(rtnl, name)?,
    };
    if device.has(libc::IFF_UP) && device.mtu == mtu {
        return Ok(device);
    }
    let up = Some((libc::IFF_UP, libc::IFF_UP));
    rtnl.change(
        device.index,
        &Change {
            flags: up,
            mtu: Some(mtu),
            ..Change::default()
        },
    )?;
    rtnl.device(name)?.ok_or_else(|| no_device(name))
}

/// Undoes [`ensure`]: the driver's undeletable device is left as it was born.
pub fn retire(rtnl: &mut Rtnl, device: &Device) -> Result<(), KernelError> {
    for (address, prefix) in rtnl.addresses(device.index)? {
        rtnl.delete_address(device.index, address, prefix)?;
    }
    rtnl.change(
        device.index,
        &Change {
            flags: Some((0, libc::IFF_UP)),
            alias: Some(""),
            ..Change::default()
        },
    )?;
    rtnl.delete_device(device.index)
}

/// Frees the name for the BPF flavour.
pub fn set_aside(rtnl: &mut Rtnl, device: &Device) -> Result<(), KernelError> {
    retire(rtnl, device)?;
    if rtnl.device_by_index(device.index)?.is_some() {
        rtnl.change(
            device.index,
            &Change {
                name: Some(&aside(&device.name)),
                ..Change::default()
            },
        )?;
    }
    Ok(())
}

/// Gives the driver's device its name back, if [`set_aside`] took it. `true`: there was one.
pub fn bring_back(rtnl: &mut Rtnl, name: &str) -> Result<bool, KernelError> {
    let Some(device) = rtnl.device(&aside(name))?.filter(is_driver) else {
        return Ok(false);
    };
    rtnl.change(
        device.index,
        &Change {
            name: Some(name),
            ..Change::default()
        },
    )?;
    Ok(true)
}

fn create(rtnl: &mut Rtnl, name: &str) -> Result<Device, KernelError> {
    if !bring_back(rtnl, name)? {
        match rtnl.create_ipip(name, Some((ANY, ANY)))? {
            Err(refusal) if refusal.errno == libc::EOPNOTSUPP => {
                return Err(KernelError::Unsupported(
                    "IP-in-IP by its own driver: no module ipip".into(),
                ));
            }
            // Loading the driver has just made the device.
            Err(refusal) if refusal.errno == libc::EEXIST => {}
            answer => done(answer)?,
        }
    }
    rtnl.device(name)?.ok_or_else(|| no_device(name))
}

/// Name of the driver's device while the BPF flavour has its own.
fn aside(name: &str) -> String {
    format!("{name}.k")
}
