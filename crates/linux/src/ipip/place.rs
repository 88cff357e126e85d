//! Where programs are attached: by TCX where the kernel has it (Linux 6.6), else as filters of a `clsact` discipline.
//!
//! Both outlive the process, replace a program between two packets, and let others' programs and filters be. TCX needs no
//! queueing discipline and costs a tenth of a microsecond a packet less.

use std::io;
use std::os::fd::OwnedFd;

use kernel::KernelError;

use super::bpf::{self, TcxHook};
use crate::rtnl::{CLSACT_EGRESS, CLSACT_INGRESS, FilterId, Rtnl};

/// A side of a device. Each has one program of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Packets that the device received: where the underlay's are decapsulated.
    Ingress,
    /// Packets that the device is about to send: where the tunnel's are encapsulated.
    Egress,
}

/// The number of our program in that place. `Foreign` if something else is exactly there.
pub fn find(rtnl: &mut Rtnl, device: u32, hook: Hook) -> Result<Option<u32>, KernelError> {
    match tcx(device, hook)? {
        Some(ours) => Ok(ours),
        None => rtnl.filter(device, hook.parent(), hook.filter()),
    }
}

/// Makes sure that programs can be attached to a device. `true`: a queueing discipline was made for that.
pub fn prepare(rtnl: &mut Rtnl, device: u32) -> Result<bool, KernelError> {
    match tcx(device, Hook::Ingress)? {
        Some(_) => Ok(false),
        None => rtnl.ensure_clsact(device),
    }
}

/// Attaches a program, in place of ours that may be there.
pub fn put(rtnl: &mut Rtnl, device: u32, hook: Hook, program: &OwnedFd) -> Result<(), KernelError> {
    match tcx(device, hook)? {
        Some(old) => bpf::tcx_attach(device, hook.tcx(), program, old).map_err(|error| refused("attach", hook, &error)),
        None => rtnl.put_filter(device, hook.parent(), hook.filter(), program),
    }
}

/// Detaches our program; absence is fine.
pub fn clear(rtnl: &mut Rtnl, device: u32, hook: Hook) -> Result<(), KernelError> {
    match tcx(device, hook)? {
        Some(Some(ours)) => bpf::tcx_detach(device, hook.tcx(), ours).map_err(|error| refused("detach", hook, &error)),
        Some(None) => Ok(()),
        None => match rtnl.filter(device, hook.parent(), hook.filter())? {
            Some(_) => rtnl.delete_filter(device, hook.parent(), hook.filter()),
            None => Ok(()),
        },
    }
}

impl Hook {
    /// The kernel's name of the program that belongs there.
    pub fn program(self) -> &'static str {
        match self {
            Hook::Ingress => "margay_decap",
            Hook::Egress => "margay_encap",
        }
    }

    fn tcx(self) -> TcxHook {
        match self {
            Hook::Ingress => TcxHook::Ingress,
            Hook::Egress => TcxHook::Egress,
        }
    }

    fn parent(self) -> u32 {
        match self {
            Hook::Ingress => CLSACT_INGRESS,
            Hook::Egress => CLSACT_EGRESS,
        }
    }

    fn filter(self) -> FilterId {
        // What is not encapsulated must not get out: every protocol at egress, IPv4 at ingress.
        let protocol = if self == Hook::Egress { 0x0003 } else { 0x0800 };
        FilterId {
            name: self.program(),
            priority: 40,
            handle: 0x6d61,
            protocol,
        }
    }
}

/// `None`: no TCX here. `Some(None)`: none of its programs is ours.
fn tcx(device: u32, hook: Hook) -> Result<Option<Option<u32>>, KernelError> {
    let find = || -> io::Result<Option<Option<u32>>> {
        let Some(programs) = bpf::tcx_programs(device, hook.tcx())? else {
            return Ok(None);
        };
        for id in programs {
            match bpf::program_info(id) {
                Ok(info) if info.name == hook.program() => return Ok(Some(Some(id))),
                Ok(_) => {}
                // Gone meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Some(None))
    };
    find().map_err(|error| refused("look for", hook, &error))
}

fn refused(verb: &str, hook: Hook, error: &io::Error) -> KernelError {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => KernelError::Unsupported(format!("BPF: {error}")),
        errno => KernelError::Refused {
            what: format!("{verb} BPF program {}", hook.program()),
            reason: error.to_string(),
            errno: errno.unwrap_or(0),
        },
    }
}
