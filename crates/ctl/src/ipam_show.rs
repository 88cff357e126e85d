//! `ipam show`: how full pools and blocks are, who holds an address, which addresses are borrowed.

use std::io::{self, Write};
use std::net::IpAddr;

use api::{IpPool, IpamBlock, IpamBlockSpec, IpamConfigurationSpec, Key, Kind, Resource};
use datastore::{Scope, SharedStore};
use ipam::{Block, PoolUse, Reservations, utilization};

use crate::command::IpamShowArgs;
use crate::{CtlError, output};

/// Shows what the flags ask for.
pub async fn show(args: &IpamShowArgs, store: &SharedStore, out: &mut dyn Write) -> Result<(), CtlError> {
    if args.show_configuration {
        return configuration(store, out).await;
    }
    let blocks: Vec<IpamBlock> = list(store, Kind::IPAMBlock).await?;
    let blocks: Vec<IpamBlockSpec> = blocks.into_iter().map(|block| block.spec).collect();
    let shown = match (args.ip, args.show_borrowed) {
        (Some(address), _) => who_holds(address, &blocks, out),
        (None, true) => borrowed(&blocks, out),
        (None, false) => {
            let pools: Vec<IpPool> = list(store, Kind::IPPool).await?;
            let uses = utilization(&pools, &blocks, &Reservations::default());
            usage(&uses, args.show_blocks, out)
        }
    };
    shown.map_err(CtlError::output)
}

async fn list<T: TryFrom<Resource>>(store: &SharedStore, kind: Kind) -> Result<Vec<T>, CtlError> {
    let items = store.list(&Scope::Kind(kind)).await?.items;
    let typed = items.into_iter().filter_map(|stored| T::try_from(stored.resource).ok());
    Ok(typed.collect())
}

fn usage(pools: &[PoolUse], show_blocks: bool, out: &mut dyn Write) -> io::Result<()> {
    let mut rows = vec![row(["GROUPING", "CIDR", "IPS TOTAL", "IPS IN USE", "IPS FREE"])];
    for pool in pools {
        match &pool.name {
            Some(_) => rows.push(fill("IP Pool", &pool.cidr.to_string(), pool.capacity, pool.in_use)),
            // What was left behind by a pool that is gone. Its size is that of its blocks.
            None => {
                let capacity = pool.blocks.iter().map(|block| block.capacity).sum();
                rows.push(fill("No pool", "", capacity, pool.in_use));
            }
        }
        let blocks = pool.blocks.iter().filter(|_| show_blocks);
        rows.extend(blocks.map(|block| fill("Block", &block.cidr.to_string(), block.capacity, block.in_use)));
    }
    output::grid(out, &rows)
}

fn fill(what: &str, cidr: &str, total: u128, used: u128) -> Vec<String> {
    let share = |part: u128| {
        let percent = part as f64 * 100.0 / (total.max(1)) as f64;
        format!("{} ({percent:.0}%)", output::five_digits(part))
    };
    let free = total.saturating_sub(used);
    vec![
        what.into(),
        cidr.into(),
        output::five_digits(total),
        share(used),
        share(free),
    ]
}

fn who_holds(address: IpAddr, blocks: &[IpamBlockSpec], out: &mut dyn Write) -> io::Result<()> {
    let holder = blocks.iter().find_map(|block| block.holder(block.ordinal(address)?));
    let holder = match holder {
        None => return writeln!(out, "{address} is not assigned"),
        Some(holder) if holder.released_at.is_some() => {
            return writeln!(
                out,
                "{address} is not assigned: it was released and rests for ipCooldownSeconds"
            );
        }
        Some(holder) => holder,
    };
    writeln!(out, "IP {address} is in use")?;
    if holder.handle_id.is_none() && holder.secondary.is_empty() {
        return writeln!(out, "No attributes defined for {address}");
    }
    writeln!(out, "Attributes:")?;
    if let Some(handle) = &holder.handle_id {
        writeln!(out, "  handle: {handle}")?;
    }
    let mut attributes = holder.secondary.iter();
    attributes.try_for_each(|(name, value)| writeln!(out, "  {name}: {value}"))
}

fn borrowed(blocks: &[IpamBlockSpec], out: &mut dyn Write) -> io::Result<()> {
    let mut rows = vec![row([
        "IP",
        "BORROWING-NODE",
        "BLOCK",
        "BLOCK OWNER",
        "TYPE",
        "ALLOCATED-TO",
    ])];
    for block in blocks {
        let affinity = block.affinity.as_deref().unwrap_or_default();
        let owner = affinity.strip_prefix("host:").unwrap_or(affinity);
        for (ordinal, holder) in block.allocated() {
            let get = |name: &str| holder.secondary.get(name).cloned().unwrap_or_default();
            let node = get("node");
            if node.is_empty() || node == owner || holder.released_at.is_some() {
                continue;
            }
            let (kind, by) = match get("type") {
                kind if kind.is_empty() => ("pod".to_string(), format!("{}/{}", get("namespace"), get("pod"))),
                kind => (kind, holder.handle_id.clone().unwrap_or_default()),
            };
            let (address, block) = (block.address(ordinal).to_string(), block.cidr.to_string());
            rows.push(vec![address, node, block, owner.to_string(), kind, by]);
        }
    }
    output::grid(out, &rows)
}

async fn configuration(store: &SharedStore, out: &mut dyn Write) -> Result<(), CtlError> {
    let stored = store.get(&Key::cluster(Kind::IPAMConfiguration, "default")).await?;
    let spec = match stored.map(|stored| stored.resource) {
        Some(Resource::IPAMConfiguration(config)) => config.spec,
        _ => IpamConfigurationSpec::default(),
    };
    let rows = [
        row(["PROPERTY", "VALUE"]),
        row(["StrictAffinity", &spec.strict_affinity.to_string()]),
        row(["AutoAllocateBlocks", &spec.auto_allocate_blocks.to_string()]),
        row(["MaxBlocksPerHost", &spec.max_blocks_per_host.to_string()]),
        row(["IPCooldownSeconds", &spec.ip_cooldown_seconds.to_string()]),
    ];
    output::grid(out, &rows).map_err(CtlError::output)
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(String::from).to_vec()
}
