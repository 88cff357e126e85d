//! `ipam show`: how full pools and blocks are, who holds an address, which addresses are borrowed.

use std::io::Write;
use std::net::IpAddr;

use api::{IpPool, IpamBlock, IpamConfigurationSpec, Key, Kind, Resource};
use datastore::{Scope, SharedStore};
use ipnet::IpNet;

use crate::command::IpamShowArgs;
use crate::{CtlError, output};

/// Shows what the flags ask for.
pub async fn show(args: &IpamShowArgs, store: &SharedStore, out: &mut dyn Write) -> Result<(), CtlError> {
    let blocks: Vec<IpamBlock> = list(store, Kind::IPAMBlock).await?;
    if let Some(address) = args.ip {
        return who_holds(address, &blocks, out).map_err(CtlError::output);
    }
    if args.show_configuration {
        return configuration(store, out).await;
    }
    if args.show_borrowed {
        return borrowed(&blocks, out).map_err(CtlError::output);
    }
    let pools: Vec<IpPool> = list(store, Kind::IPPool).await?;
    let mut rows = vec![["GROUPING", "CIDR", "IPS TOTAL", "IPS IN USE", "IPS FREE"].map(String::from).to_vec()];
    for pool in &pools {
        let own: Vec<&IpamBlock> = blocks.iter().filter(|block| pool.spec.cidr.contains(&block.spec.cidr)).collect();
        rows.push(usage("IP Pool", pool.spec.cidr, own.iter().map(|block| in_use(block)).sum()));
        if args.show_blocks {
            rows.extend(own.into_iter().map(|block| usage("Block", block.spec.cidr, in_use(block))));
        }
    }
    output::grid(out, &rows).map_err(CtlError::output)
}

async fn list<T: TryFrom<Resource>>(store: &SharedStore, kind: Kind) -> Result<Vec<T>, CtlError> {
    let items = store.list(&Scope::Kind(kind)).await?.items;
    Ok(items.into_iter().filter_map(|stored| T::try_from(stored.resource).ok()).collect())
}

fn usage(what: &str, cidr: IpNet, used: u128) -> Vec<String> {
    let total = size(cidr);
    let free = total.saturating_sub(used);
    let percent = |part: u128| if total == 0 { 0 } else { (part as f64 * 100.0 / total as f64).round() as u128 };
    let count = |number: u128| if total > 1 << 40 { format!("{:.5e}", number as f64) } else { number.to_string() };
    vec![
        what.to_string(),
        cidr.to_string(),
        count(total),
        format!("{used} ({}%)", percent(used)),
        format!("{} ({}%)", count(free), percent(free)),
    ]
}

fn size(cidr: IpNet) -> u128 {
    1u128.checked_shl(u32::from(cidr.max_prefix_len() - cidr.prefix_len())).unwrap_or(u128::MAX)
}

fn in_use(block: &IpamBlock) -> u128 {
    block.spec.allocations.iter().flatten().count() as u128
}

fn who_holds(address: IpAddr, blocks: &[IpamBlock], out: &mut dyn Write) -> std::io::Result<()> {
    let holder = blocks.iter().find_map(|block| {
        let (_, attribute) = allocations(block).find(|(held, _)| *held == address)?;
        block.spec.attributes.get(attribute)
    });
    let Some(attribute) = holder else { return writeln!(out, "{address} is not assigned") };
    writeln!(out, "IP {address} is in use")?;
    writeln!(out, "Attributes:")?;
    if let Some(handle) = &attribute.handle_id {
        writeln!(out, "  handle: {handle}")?;
    }
    attribute.secondary.iter().try_for_each(|(name, value)| writeln!(out, "  {name}: {value}"))
}

fn borrowed(blocks: &[IpamBlock], out: &mut dyn Write) -> std::io::Result<()> {
    let mut rows = vec![["IP", "BORROWING-NODE", "BLOCK", "BLOCK OWNER", "TYPE", "ALLOCATED-TO"].map(String::from).to_vec()];
    for block in blocks {
        let owner = block.spec.affinity.as_deref().and_then(|affinity| affinity.strip_prefix("host:")).unwrap_or_default();
        for (address, attribute) in allocations(block) {
            let Some(attribute) = block.spec.attributes.get(attribute) else { continue };
            let get = |name: &str| attribute.secondary.get(name).cloned().unwrap_or_default();
            let node = get("node");
            if node.is_empty() || node == owner {
                continue;
            }
            let (kind, holder) = match get("type") {
                kind if kind.is_empty() => ("pod".to_string(), format!("{}/{}", get("namespace"), get("pod"))),
                kind => (kind, attribute.handle_id.clone().unwrap_or_default()),
            };
            rows.push(vec![address.to_string(), node, block.spec.cidr.to_string(), owner.to_string(), kind, holder]);
        }
    }
    output::grid(out, &rows)
}

/// Allocated addresses of a block with their attribute's index.
fn allocations(block: &IpamBlock) -> impl Iterator<Item = (IpAddr, usize)> {
    let base = block.spec.cidr.network();
    let at = move |ordinal: usize| match base {
        IpAddr::V4(base) => u32::from(base).checked_add(ordinal as u32).map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(base) => u128::from(base).checked_add(ordinal as u128).map(|bits| IpAddr::V6(bits.into())),
    };
    let allocated = block.spec.allocations.iter().enumerate();
    allocated.filter_map(move |(ordinal, attribute)| Some((at(ordinal)?, (*attribute)?)))
}

async fn configuration(store: &SharedStore, out: &mut dyn Write) -> Result<(), CtlError> {
    let stored = store.get(&Key::cluster(Kind::IPAMConfiguration, "default")).await?;
    let spec = match stored.map(|stored| stored.resource) {
        Some(Resource::IPAMConfiguration(config)) => config.spec,
        _ => IpamConfigurationSpec::default(),
    };
    let rows = vec![
        ["PROPERTY", "VALUE"].map(String::from).to_vec(),
        vec!["StrictAffinity".into(), spec.strict_affinity.to_string()],
        vec!["AutoAllocateBlocks".into(), spec.auto_allocate_blocks.to_string()],
        vec!["MaxBlocksPerHost".into(), spec.max_blocks_per_host.to_string()],
        vec!["IPCooldownSeconds".into(), spec.ip_cooldown_seconds.to_string()],
    ];
    output::grid(out, &rows).map_err(CtlError::output)
}
