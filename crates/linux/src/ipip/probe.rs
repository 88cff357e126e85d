//! What this kernel can do for IP-in-IP, found out by doing it in a namespace of its own.

use std::net::Ipv4Addr;

use kernel::{IpipFlavour, KernelError};
use nix::sched::{CloneFlags, unshare};

use super::place::{self, Hook};
use super::program::{self, Config, Programs};
use super::veth;
use crate::rtnl::{Rtnl, no_device};

/// What the kernel can do for IP-in-IP, and what follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The kernel's own `ipip` device; `Err`: why not.
    pub native: Result<(), String>,
    /// Our BPF programs; `Err`: why not.
    pub bpf: Result<(), String>,
    /// The flavour to use; `None`: no IP-in-IP on this kernel.
    pub chosen: Option<IpipFlavour>,
    /// The reason, for people.
    pub why: String,
}

/// Finds out what this kernel can do. Leaves nothing behind, except that the `ipip` module may have been loaded.
pub fn probe() -> Probe {
    let attempt = || -> Result<_, String> {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|error| format!("cannot make a network namespace: {error}"))?;
        Ok((
            native().map_err(|error| error.to_string()),
            bpf().map_err(|error| error.to_string()),
        ))
    };
    let outcome = std::thread::spawn(attempt)
        .join()
        .unwrap_or_else(|_| Err("the probe panicked".to_string()));
    match outcome {
        Ok((native, bpf)) => Probe::decide(native, bpf),
        Err(why) => Probe {
            native: Err(why.clone()),
            bpf: Err(why.clone()),
            chosen: None,
            why,
        },
    }
}

impl Probe {
    /// Native needs the programs, too: they keep strangers out.
    fn decide(native: Result<(), String>, bpf: Result<(), String>) -> Self {
        let (chosen, why) = match (&native, &bpf) {
            (Ok(()), Ok(())) => (Some(IpipFlavour::Native), "the kernel has the ipip driver".to_string()),
            (Err(no), Ok(())) => (
                Some(IpipFlavour::Bpf),
                format!("the kernel's ipip driver is not usable: {no}"),
            ),
            (Ok(()), Err(no)) => (
                None,
                format!("the ipip driver needs a BPF filter on the underlay: {no}"),
            ),
            (Err(driver), Err(bpf)) => (None, format!("neither the ipip driver: {driver}; nor BPF: {bpf}")),
        };
        Self {
            native,
            bpf,
            chosen,
            why,
        }
    }
}

fn native() -> Result<(), KernelError> {
    let mut rtnl = Rtnl::open()?;
    // Documentation addresses (RFC 5737); a device with both ends set does not clash with the driver's own.
    let ends = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2));
    match rtnl.create_ipip("probe0", Some(ends))? {
        Err(refusal) if refusal.errno == libc::EOPNOTSUPP => Err(KernelError::Unsupported("no module ipip".into())),
        Err(refusal) => Err(refusal.into()),
        Ok(()) => match rtnl.device("probe0")? {
            Some(device) => rtnl.delete_device(device.index),
            None => Ok(()),
        },
    }
}

fn bpf() -> Result<(), KernelError> {
    let mut rtnl = Rtnl::open()?;
    let name = "probe1";
    let device = veth::ensure(&mut rtnl, name, 1480)?;
    let config = Config {
        build: program::build(),
        local: Ipv4Addr::new(192, 0, 2, 1),
        underlay: device.index,
        device: device.index,
        native: false,
        owns_clsact: false,
    };
    let programs = Programs::load(config, None)?;
    place::prepare(&mut rtnl, device.index)?;
    place::put(&mut rtnl, device.index, Hook::Egress, &programs.encap)?;
    place::put(&mut rtnl, device.index, Hook::Ingress, &programs.decap)?;
    let device = rtnl.device(name)?.ok_or_else(|| no_device(name))?;
    rtnl.delete_device(device.index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_is_preferred_where_strangers_can_be_kept_out() {
        let no = || Err::<(), String>("no".into());
        for (native, bpf, chosen) in [
            (Ok(()), Ok(()), Some(IpipFlavour::Native)),
            (no(), Ok(()), Some(IpipFlavour::Bpf)),
            (Ok(()), no(), None),
            (no(), no(), None),
        ] {
            assert_eq!(Probe::decide(native, bpf).chosen, chosen);
        }
    }
}
