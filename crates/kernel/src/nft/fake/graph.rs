//! The way of packets from base chains on: how deep it may go, and what may be met on it.

use std::collections::BTreeSet;

use super::state::{ChainHere, Table};
use super::*;

/// Chains that call each other, the base chain included.
const MOST_CHAINS: usize = 16;

type Refusal = (Cause, &'static str);

/// Translation has places of its own.
pub(super) fn may_exist(base: &BaseChain) -> Result<(), Refusal> {
    match (base.kind, base.hook) {
        (ChainKind::Nat, Hook::Forward) => Err((Cause::Unsupported, "no translation happens in forward")),
        // Connections are tracked at -200; before that there is nothing to translate.
        (ChainKind::Nat, _) if base.priority <= -200 => Err((Cause::Unsupported, "translation before tracking")),
        (ChainKind::Filter | ChainKind::Nat, _) => Ok(()),
    }
}

/// Walks all that packets can reach. What they cannot is not looked at, as in Linux.
pub(super) fn validate(table: &Table) -> Result<(), Refusal> {
    for chain in table.chains.values() {
        if let Some(base) = &chain.base {
            // Per base chain: how deep each chain was met already, so that shared chains are walked once.
            walk(table, chain, base, 1, &mut BTreeMap::new())?;
        }
    }
    Ok(())
}

fn walk<'t>(
    table: &'t Table,
    chain: &'t ChainHere,
    base: &BaseChain,
    depth: usize,
    met: &mut BTreeMap<&'t ChainName, usize>,
) -> Result<(), Refusal> {
    if depth > MOST_CHAINS {
        return Err((Cause::TooDeep, "chains call each other too deep, or in a circle"));
    }
    let mut next = BTreeSet::new();
    for here in &chain.rules {
        for action in &here.rule.actions {
            may_act(action, base)?;
        }
        next.extend(here.rule.chains());
        if let Some(Verdict::Map { map, .. }) = &here.rule.verdict {
            let elements = table.sets.get(map).into_iter().flat_map(|set| set.elements.values());
            next.extend(elements.filter_map(Element::target));
        }
    }
    for name in next {
        let Some(target) = table.chains.get(name) else {
            continue;
        };
        if met.get(name).is_some_and(|before| *before > depth) {
            continue;
        }
        met.insert(name, depth + 1);
        walk(table, target, base, depth + 1, met)?;
    }
    Ok(())
}

fn may_act(action: &Statement, base: &BaseChain) -> Result<(), Refusal> {
    let (kind, hooks): (Option<ChainKind>, &[Hook]) = match action {
        Statement::Masquerade { .. } => (Some(ChainKind::Nat), &[Hook::Postrouting]),
        Statement::SourceNat { .. } => (Some(ChainKind::Nat), &[Hook::Postrouting, Hook::Input]),
        Statement::DestinationNat { .. } => (Some(ChainKind::Nat), &[Hook::Prerouting, Hook::Output]),
        Statement::Reject => (None, &[Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output]),
        Statement::Counter
        | Statement::Limit { .. }
        | Statement::Over(_)
        | Statement::SetDscp { .. }
        | Statement::Log { .. }
        | Statement::Nflog { .. }
        | Statement::SetMark { .. }
        | Statement::Notrack => return Ok(()),
    };
    match kind.is_none_or(|kind| kind == base.kind) && hooks.contains(&base.hook) {
        true => Ok(()),
        false => Err((Cause::Unsupported, "this cannot be done at this hook")),
    }
}
