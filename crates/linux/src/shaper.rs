//! Queues that hold pods' packets to a rate: Linux' token bucket filter (`tbf`), in both directions.
//!
//! ```text
//! to the pod      everything -> [tbf] cali1 =====> eth0 in the pod
//! from the pod    eth0 in the pod =====> cali1 -> [tbf] bwli1 -> as received on cali1: policy, routes
//! ```
//!
//! What a device receives has no queue, so it takes a detour: a filter of `clsact` redirects all of it to an `ifb` device, whose
//! queue it waits in, and that gives it back as received on the pod's device. Both queues are on the host, where the pod cannot
//! reach them. A device that goes takes its queue along; a detour whose way is gone holds nobody up, since nothing comes to it.
//! A detour that goes while packets are redirected to it would lose them: the filter goes first.
//!
//! All functions are synchronous and act on the calling thread's network namespace.

use std::collections::BTreeMap;

use kernel::{Direction, IfName, KernelError, Link, Mac, QueueCounters, Shaper, ShaperKey};

use crate::netns::Netns;
use crate::rtnl::{Change, Device, Qdisc, Rtnl, lacks, no_device};

/// Makes packets wait as described. On a shaper that already is so, changes nothing: its bucket is not filled again.
pub fn put(key: &ShaperKey, shaper: &Shaper) -> Result<(), KernelError> {
    let mut rtnl = Rtnl::open()?;
    let device = rtnl.device(&key.device.0)?.ok_or_else(|| no_device(&key.device.0))?;
    match key.direction {
        Direction::Ingress => put_root(&mut rtnl, &device, shaper),
        Direction::Egress => {
            let detour = ensure_detour(&mut rtnl, &key.device)?;
            let led = lead(&mut rtnl, &device, &detour, shaper);
            if led.is_err() && rtnl.redirection(device.index)? != Some(detour.index) {
                // Nothing stays behind that no packet takes.
                take_away(&mut rtnl, Some(&device), &detour)?;
            }
            led
        }
    }
}

/// Lets packets go as they come; absence is fine.
pub fn remove(key: &ShaperKey) -> Result<(), KernelError> {
    let mut rtnl = Rtnl::open()?;
    let device = rtnl.device(&key.device.0)?;
    if key.direction == Direction::Ingress {
        return match device {
            Some(device) if root(&mut rtnl, device.index)?.is_some_and(|root| root.shaper.is_some()) => {
                rtnl.delete_root(device.index)
            }
            _ => Ok(()),
        };
    }
    let detour = rtnl.device(&ShaperKey::detour(&key.device).0)?;
    let Some(detour) = detour.filter(|detour| serves(detour, &key.device)) else {
        return Ok(());
    };
    take_away(&mut rtnl, device.as_ref(), &detour)
}

/// All shapers of ours. `None`: a detour that packets do not take, or not in our queue.
pub fn observe() -> Result<BTreeMap<ShaperKey, Option<Shaper>>, KernelError> {
    let mut shapers = BTreeMap::new();
    let mut rtnl = Rtnl::open()?;
    let queues = Queues::read(&mut rtnl)?;
    for (device, root) in queues.with_roots() {
        let Some(pods) = whose(device) else {
            if let Some(shaper) = root.and_then(|root| root.shaper) {
                shapers.insert(to(device), Some(shaper));
            }
            continue;
        };
        let index = queues.devices.iter().find(|device| device.name == pods.0);
        let taken = match index {
            Some(of) => rtnl.redirection(of.index)? == Some(device.index),
            None => false,
        };
        let whole = taken && device.has(libc::IFF_UP);
        let shaper = root.and_then(|root| root.shaper).filter(|_| whole);
        shapers.insert(from(pods), shaper);
    }
    Ok(shapers)
}

/// What our shapers' queues have seen.
pub fn counters() -> Result<BTreeMap<ShaperKey, QueueCounters>, KernelError> {
    let queues = Queues::read(&mut Rtnl::open()?)?;
    let ours = queues.with_roots().filter_map(|(device, root)| {
        let root = root.filter(|root| root.shaper.is_some())?;
        Some((whose(device).map_or_else(|| to(device), from), root.counters))
    });
    Ok(ours.collect())
}

/// Finds out whether this kernel can hold pods to bandwidths, in a network namespace of its own. Modules may have been loaded then.
pub fn probe() -> Result<(), KernelError> {
    let broken = |error: std::io::Error| KernelError::Broken(format!("cannot make a network namespace: {error}"));
    Netns::unnamed().and_then(|netns| netns.run(try_both)).map_err(broken)?
}

fn try_both() -> Result<(), KernelError> {
    Rtnl::open()?.create_veth("probe0", "probe1", OWN, 1500)?;
    let shaper = Shaper::new(1_000_000, 0, None);
    for direction in Direction::BOTH {
        let device = IfName::from("probe0");
        put(&ShaperKey { device, direction }, &shaper)?;
    }
    Ok(())
}

/// What a device receives takes the detour, and waits there.
fn lead(rtnl: &mut Rtnl, device: &Device, detour: &Device, shaper: &Shaper) -> Result<(), KernelError> {
    put_root(rtnl, detour, shaper)?;
    if rtnl.redirection(device.index)? == Some(detour.index) {
        return Ok(());
    }
    rtnl.delete_redirection(device.index)?;
    rtnl.ensure_clsact(device.index)?;
    rtnl.put_redirection(device.index, detour.index)
}

fn take_away(rtnl: &mut Rtnl, device: Option<&Device>, detour: &Device) -> Result<(), KernelError> {
    if let Some(device) = device {
        if rtnl.redirection(device.index)? == Some(detour.index) {
            rtnl.delete_redirection(device.index)?;
        }
        rtnl.delete_clsact_if_empty(device.index)?;
    }
    rtnl.delete_device(detour.index)
}

struct Queues {
    devices: Vec<Device>,
    roots: BTreeMap<u32, Qdisc>,
}

impl Queues {
    fn read(rtnl: &mut Rtnl) -> Result<Self, KernelError> {
        let roots = rtnl.root_qdiscs()?;
        Ok(Self {
            devices: rtnl.devices()?,
            roots: roots.into_iter().map(|root| (root.index, root)).collect(),
        })
    }

    fn with_roots(&self) -> impl Iterator<Item = (&Device, Option<&Qdisc>)> {
        let devices = self.devices.iter();
        devices.map(|device| (device, self.roots.get(&device.index)))
    }
}

/// The shaper whose queue is the root of that device.
pub(crate) fn key(link: &Link) -> ShaperKey {
    let alias = link.alias.as_deref().filter(|_| link.kind == "ifb");
    match alias.and_then(ShaperKey::of_alias) {
        Some(pods) => from(pods),
        None => ShaperKey {
            device: link.name.clone(),
            direction: Direction::Ingress,
        },
    }
}

fn to(device: &Device) -> ShaperKey {
    ShaperKey {
        device: IfName(device.name.clone()),
        direction: Direction::Ingress,
    }
}

fn from(device: IfName) -> ShaperKey {
    ShaperKey {
        device,
        direction: Direction::Egress,
    }
}

/// Of every detour, from its creation on; its alias comes a moment later.
const OWN: Mac = Mac([0x02, 0x4d, 0x61, 0x72, 0x67, 0x71]);

/// Whose packets take this detour, if it is one of ours. One that nobody came to label is known by the end of its name alone, which
/// is enough to remove it.
fn whose(device: &Device) -> Option<IfName> {
    if device.kind != "ifb" || device.mac != Some(OWN) {
        return None;
    }
    if device.alias.is_empty() {
        return device.name.strip_prefix("bw").map(IfName::from);
    }
    ShaperKey::of_alias(&device.alias)
}

fn serves(detour: &Device, device: &IfName) -> bool {
    whose(detour).is_some_and(|whose| whose == *device || detour.alias.is_empty())
}

fn root(rtnl: &mut Rtnl, index: u32) -> Result<Option<Qdisc>, KernelError> {
    Ok(rtnl.root_qdiscs()?.into_iter().find(|root| root.index == index))
}

fn put_root(rtnl: &mut Rtnl, device: &Device, shaper: &Shaper) -> Result<(), KernelError> {
    match root(rtnl, device.index)? {
        Some(root) if root.foreign => Err(KernelError::Foreign {
            what: format!("a queueing discipline of {}", device.name),
        }),
        Some(root) if root.shaper.as_ref() == Some(shaper) => Ok(()),
        _ => rtnl.put_tbf(device.index, shaper),
    }
}

fn ensure_detour(rtnl: &mut Rtnl, device: &IfName) -> Result<Device, KernelError> {
    let name = ShaperKey::detour(device);
    let detour = match rtnl.device(&name.0)? {
        Some(detour) => detour,
        None => {
            rtnl.create_ifb(&name.0, OWN)?
                .map_err(|refusal| lacks(refusal, "queues for what pods send (ifb)"))?;
            rtnl.device(&name.0)?.ok_or_else(|| no_device(&name.0))?
        }
    };
    if !serves(&detour, device) {
        return Err(KernelError::Foreign {
            what: format!("device {name}"),
        });
    }
    if !detour.has(libc::IFF_UP) || detour.alias.is_empty() {
        rtnl.forbid_ipv6_link_local(detour.index)?;
        let change = Change {
            flags: Some((libc::IFF_UP, libc::IFF_UP)),
            alias: Some(&ShaperKey::alias(device)),
            ..Change::default()
        };
        rtnl.change(detour.index, &change)?;
    }
    Ok(detour)
}
