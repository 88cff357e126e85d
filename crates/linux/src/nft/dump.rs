//! Reading a table back.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use kernel::nft::{
    BaseChain, ChainKind, ChainName, ChainState, Element, Generation, RuleState, Rules, SetName, SetState, TableName,
    TableState, Value,
};

use super::chain::{Parsed, Reader};
use super::encode::*;
use super::expr;
use super::parse::PortSets;
use super::set::{Entries, SetHere, Shape, read_set};
use crate::decode::{Attributes, read_i32};
use crate::nfnetlink::{Bytes, GENERIC, NFTABLES, Socket, Target, be32, be64, text};
use crate::request::Failure;

/// A reading during which something changed is thrown away; so often, then the answer is that others are too busy.
const ATTEMPTS: usize = 20;
/// As [`ATTEMPTS`], where something can be done about it.
const ATTEMPTS_AT_ALL_RULES: usize = 2;

/// Why a table was not read.
pub(super) enum Unread {
    /// Something changed all the time.
    Busy,
    /// The channel failed.
    Failed(Failure),
}

impl From<Failure> for Unread {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// The generation now.
pub(super) fn generation(socket: &mut Socket) -> Result<Generation, Failure> {
    let read = |payload: &[u8]| attribute(payload, 1).and_then(be32).map(Generation);
    socket
        .get(target(GET_GENERATION, 0), |_| (), read)?
        .ok_or_else(|| Failure::Broken("the kernel did not say its generation".into()))
}

/// How elements of a set are written; `None`: there is no such set.
pub(super) fn shape(socket: &mut Socket, table: &TableName, set: &SetName) -> Result<Option<Shape>, Failure> {
    let ask = |bytes: &mut Bytes| {
        bytes.text(1, &table.0);
        bytes.text(2, &set.0);
    };
    socket.get(target(GET_SET, INET), ask, |payload| {
        read_set(payload.get(GENERIC..)?, &table.0).map(|set| set.shape())
    })
}

/// A whole table; `None`: there is none.
pub(super) fn table(socket: &mut Socket, table: &TableName) -> Result<Option<TableState>, Unread> {
    at_one_moment(ATTEMPTS, socket, |socket, generation| {
        if !exists(socket, table)? {
            return Ok(Some(None));
        }
        let Some(parts) = parts(socket, table)? else {
            return Ok(None);
        };
        let mut sets = BTreeMap::new();
        for set in parts.sets {
            let Some(state) = elements(socket, table, &set)? else {
                return Ok(None);
            };
            sets.insert(SetName(set.name), state);
        }
        Ok(Some(Some(TableState {
            generation,
            chains: parts.chains,
            sets,
        })))
    })
}

/// The rules of a table, by chain, also of chains without any. Where changes come faster than all of them can be read, each
/// chain is as it was at a moment of its own.
pub(super) fn rules(socket: &mut Socket, table: &TableName) -> Result<Rules, Unread> {
    match rules_at_one_moment(socket, table) {
        Err(Unread::Busy) => {
            let names = at_one_moment(ATTEMPTS, socket, |socket, _| chains(socket, table))?;
            Ok(rules_of_chains(socket, table, &names.into_keys().collect())?)
        }
        read => read,
    }
}

fn rules_at_one_moment(socket: &mut Socket, table: &TableName) -> Result<Rules, Unread> {
    at_one_moment(ATTEMPTS_AT_ALL_RULES, socket, |socket, _| {
        let chains = parts(socket, table)?.map(|parts| parts.chains.into_iter());
        Ok(chains.map(|chains| chains.map(|(name, chain)| (name, chain.rules)).collect()))
    })
}

/// The rules of these chains, without the sets of ports that belong to rules.
pub(super) fn rules_of_chains(
    socket: &mut Socket,
    table: &TableName,
    chains: &BTreeSet<ChainName>,
) -> Result<Rules, Failure> {
    let mut rules = BTreeMap::new();
    for chain in chains {
        let (here, _) = rules_of_chain(socket, table, chain, &|_| None)?;
        rules.insert(chain.clone(), here);
    }
    Ok(rules)
}

/// Reads until nothing changed meanwhile. `read` answers `None` if it noticed itself.
fn at_one_moment<T>(
    attempts: usize,
    socket: &mut Socket,
    read: impl Fn(&mut Socket, Generation) -> Result<Option<T>, Failure>,
) -> Result<T, Unread> {
    let mut before = generation(socket)?;
    for _ in 0..attempts {
        let seen = read(socket, before)?;
        let after = generation(socket)?;
        if let Some(seen) = seen
            && after == before
        {
            return Ok(seen);
        }
        before = after;
    }
    Err(Unread::Busy)
}

fn exists(socket: &mut Socket, table: &TableName) -> Result<bool, Failure> {
    let found = socket.get(target(GET_TABLE, INET), |bytes| bytes.text(1, &table.0), |_| Some(()))?;
    Ok(found.is_some())
}

/// A table without the elements of sets that have a name of their own.
struct Parts {
    chains: BTreeMap<ChainName, ChainState>,
    sets: Vec<SetHere>,
}

/// Chains without their rules. `None`: something changed meanwhile.
fn chains(socket: &mut Socket, table: &TableName) -> Result<Option<BTreeMap<ChainName, ChainState>>, Failure> {
    let mut chains = BTreeMap::new();
    let ask = |bytes: &mut Bytes| bytes.text(1, &table.0);
    let whole = socket.dump(
        target(GET_CHAIN, INET),
        ask,
        &mut chains,
        BTreeMap::clear,
        |chains, payload| {
            chains.extend(
                payload
                    .get(GENERIC..)
                    .and_then(|attributes| read_chain(attributes, &table.0)),
            );
        },
    )?;
    Ok(whole.then_some(chains))
}

/// `None`: something changed meanwhile.
fn parts(socket: &mut Socket, table: &TableName) -> Result<Option<Parts>, Failure> {
    let Some(mut chains) = chains(socket, table)? else {
        return Ok(None);
    };
    let ask = |bytes: &mut Bytes| bytes.text(1, &table.0);
    let mut sets = Vec::new();
    let whole = socket.dump(target(GET_SET, INET), ask, &mut sets, Vec::clear, |sets, payload| {
        sets.extend(
            payload
                .get(GENERIC..)
                .and_then(|attributes| read_set(attributes, &table.0)),
        );
    })?;
    if !whole {
        return Ok(None);
    }
    let (anonymous, sets): (Vec<SetHere>, Vec<SetHere>) = sets.into_iter().partition(SetHere::is_anonymous);
    let mut port_sets = HashMap::with_capacity(anonymous.len());
    for set in anonymous {
        let Some(state) = elements(socket, table, &set)? else {
            return Ok(None);
        };
        port_sets.insert(set.name, port_ranges(&state));
    }
    let ports = |name: &str| port_sets.get(name).cloned().flatten();
    // Chain by chain: the kernel begins a dump of all rules from the first one again for each datagram.
    for (name, chain) in &mut chains {
        let (rules, whole) = rules_of_chain(socket, table, name, &ports)?;
        if !whole {
            return Ok(None);
        }
        chain.rules = rules;
    }
    Ok(Some(Parts { chains, sets }))
}

/// The rules of one chain, and whether nothing changed meanwhile.
fn rules_of_chain(
    socket: &mut Socket,
    table: &TableName,
    chain: &ChainName,
    ports: &PortSets<'_>,
) -> Result<(Vec<RuleState>, bool), Failure> {
    let ask = |bytes: &mut Bytes| {
        bytes.text(1, &table.0);
        bytes.text(2, &chain.0);
    };
    let mut here = Reader::default();
    let whole = socket.dump(
        target(GET_RULE, INET),
        ask,
        &mut here,
        Reader::clear,
        |rules, payload| {
            let attributes = payload.get(GENERIC..).unwrap_or_default();
            if let Some(parsed) = read_rule(attributes, &table.0) {
                rules.add(parsed, ports);
            }
        },
    )?;
    Ok((here.rules(), whole))
}

/// `None`: something changed meanwhile.
fn elements(socket: &mut Socket, table: &TableName, set: &SetHere) -> Result<Option<SetState>, Failure> {
    let ask = |bytes: &mut Bytes| {
        bytes.text(1, &table.0);
        bytes.text(2, &set.name);
    };
    let empty = || Entries::of(set.spec.as_ref());
    let mut entries = empty();
    let whole = socket.dump(
        target(GET_ELEMENTS, INET),
        ask,
        &mut entries,
        |entries| *entries = empty(),
        |entries, payload| entries.read(payload.get(GENERIC..).unwrap_or_default()),
    )?;
    Ok(whole.then(|| entries.state()))
}

/// What a set of ports that belongs to a rule says; `None`: it is none.
fn port_ranges(set: &SetState) -> Option<Vec<(u16, u16)>> {
    let range = |element: Element| match &element.key[..] {
        [Value::Port(port)] => Some((*port, *port)),
        [Value::Ports(low, high)] => Some((*low, *high)),
        _ => None,
    };
    let mut ranges: Vec<(u16, u16)> = set.elements.iter().map(range).collect::<Option<_>>()?;
    ranges.sort_unstable();
    (set.strange == 0).then_some(ranges)
}

fn read_chain(attributes: &[u8], table: &str) -> Option<(ChainName, ChainState)> {
    let (mut name, mut hook, mut drop, mut kind) = (None, None, false, None);
    for (attribute, value) in Attributes(attributes) {
        match attribute {
            1 => (text(value) == table).then_some(())?,
            3 => name = Some(ChainName(text(value).to_owned())),
            4 => hook = Some(value),
            5 => drop = be32(value)? == 0,
            7 => kind = Some(text(value)),
            _ => {}
        }
    }
    let base = hook.map(|hook| {
        let find = |wanted| Attributes(hook).find(|(kind, _)| *kind == wanted);
        Some(BaseChain {
            kind: match kind? {
                "filter" => ChainKind::Filter,
                "nat" => ChainKind::Nat,
                _ => return None,
            },
            hook: *HOOKS.get(be32(find(1)?.1)? as usize)?,
            priority: read_i32(find(2)?.1, 0).map(i32::from_be)?,
            drop,
        })
    });
    let state = ChainState {
        strange: base == Some(None),
        base: base.flatten(),
        rules: Vec::new(),
    };
    Some((name?, state))
}

fn read_rule<'a>(attributes: &'a [u8], table: &str) -> Option<Parsed<'a>> {
    let (mut handle, mut exprs, mut comment) = (None, Some(Vec::new()), None);
    for (attribute, value) in Attributes(attributes) {
        match attribute {
            1 => (text(value) == table).then_some(())?,
            3 => handle = be64(value),
            4 => exprs = expr::read_all(value),
            7 => comment = read_note(value),
            _ => {}
        }
    }
    Some(Parsed {
        handle: handle?,
        comment,
        exprs,
    })
}

/// The comment among what `nft` keeps with a rule.
fn read_note(mut note: &[u8]) -> Option<String> {
    loop {
        let (kind, length) = (*note.first()?, usize::from(*note.get(1)?));
        let value = note.get(2..2 + length)?;
        if kind == 0 {
            return Some(text(value).to_owned());
        }
        note = &note[2 + length..];
    }
}

fn attribute(payload: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut attributes = Attributes(payload.get(GENERIC..)?);
    attributes.find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

fn target(operation: u16, family: u8) -> Target {
    Target {
        subsystem: NFTABLES,
        operation,
        family,
        resource: 0,
    }
}
