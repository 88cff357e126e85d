//! A transaction as one batch of messages, and which change each message belongs to.

use std::collections::HashMap;

use kernel::nft::{BaseChain, Chain, ChainKind, Change, Element, Hook, Rule, SetName, TableName, Transaction};
use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST};

use super::set::{self, FLAG_ANONYMOUS, FLAG_CONSTANT, Shape};
use super::{compile, expr};
use crate::nfnetlink::{Bytes, NFTABLES, Target};

/// Messages of one transaction.
pub(super) struct Batch {
    /// The datagram.
    pub bytes: Vec<u8>,
    /// The sequence number of the first message.
    pub first: u32,
    /// The change that each message belongs to; `None`: the batch itself, or the table.
    pub owners: Vec<Option<u32>>,
    /// The sequence number of the message that asks for an acknowledgement.
    pub last: u32,
    /// What is known of sets after it.
    pub learned: Learned,
}

/// What is known of the sets of a table; `None`: that there is no such set.
pub(super) type Sets = HashMap<SetName, Option<Shape>>;

/// What a transaction makes known of sets.
#[derive(Default)]
pub(super) struct Learned {
    /// What was known before counts no longer: the table was deleted.
    pub anew: bool,
    /// What is known instead of before.
    pub sets: Sets,
}

pub(super) const NEW_TABLE: u16 = 0;
pub(super) const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
pub(super) const GET_CHAIN: u16 = 4;
const DELETE_CHAIN: u16 = 5;
const NEW_RULE: u16 = 6;
pub(super) const GET_RULE: u16 = 7;
const DELETE_RULE: u16 = 8;
const NEW_SET: u16 = 9;
pub(super) const GET_SET: u16 = 10;
const DELETE_SET: u16 = 11;
const NEW_ELEMENTS: u16 = 12;
pub(super) const GET_ELEMENTS: u16 = 13;
const DELETE_ELEMENTS: u16 = 14;
pub(super) const NEW_GENERATION: u16 = 15;
pub(super) const GET_GENERATION: u16 = 16;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

/// `NFPROTO_INET`.
pub(super) const INET: u8 = 1;

/// A list of elements is an attribute, which ends at 64 KiB. One element takes at most some 500 bytes.
const LIST_BYTES: usize = 60_000;

/// Encodes a transaction that has been checked. `known` is what is known; of other sets it is asked by `ask`.
pub(super) fn transaction<E>(
    transaction: &Transaction,
    first: u32,
    known: Option<&Sets>,
    ask: impl FnMut(&SetName) -> Result<Option<Shape>, E>,
) -> Result<Batch, E> {
    let mut encoder = Encoder {
        bytes: Bytes(Vec::with_capacity(256 + 256 * transaction.changes.len())),
        table: &transaction.table,
        first,
        owners: Vec::with_capacity(3 + transaction.changes.len()),
        change: None,
        last_at: 0,
        set_number: 0,
        known,
        learned: Learned::default(),
        gone: false,
        ask,
    };
    encoder.batch(transaction)?;
    let last = first + encoder.owners.len() as u32 - 2;
    Ok(Batch {
        bytes: encoder.bytes.0,
        first,
        owners: encoder.owners,
        last,
        learned: encoder.learned,
    })
}

impl Batch {
    /// The change that a message belongs to.
    pub fn change(&self, sequence: u32) -> Option<usize> {
        let at = sequence.checked_sub(self.first)? as usize;
        self.owners.get(at).copied().flatten().map(|change| change as usize)
    }
}

struct Encoder<'t, F> {
    bytes: Bytes,
    table: &'t TableName,
    first: u32,
    owners: Vec<Option<u32>>,
    change: Option<u32>,
    last_at: usize,
    set_number: u32,
    known: Option<&'t Sets>,
    learned: Learned,
    /// The table was deleted and not made anew.
    gone: bool,
    ask: F,
}

impl<E, F: FnMut(&SetName) -> Result<Option<Shape>, E>> Encoder<'_, F> {
    fn batch(&mut self, transaction: &Transaction) -> Result<(), E> {
        self.limit(BATCH_BEGIN, 0);
        if !matches!(transaction.changes.first(), Some(Change::DeleteTable)) {
            self.new_table();
        }
        for (at, change) in transaction.changes.iter().enumerate() {
            self.change = Some(at as u32);
            self.encode(change)?;
        }
        self.change = None;
        // Errors come regardless; one acknowledgement says that all was worked on.
        let flags = NLM_F_REQUEST | NLM_F_ACK | self.flags_of_last();
        self.bytes.0[self.last_at + 6..self.last_at + 8].copy_from_slice(&flags.to_ne_bytes());
        self.limit(BATCH_END, 0);
        Ok(())
    }

    fn encode(&mut self, change: &Change) -> Result<(), E> {
        if self.gone && *change != Change::DeleteTable {
            self.gone = false;
            let change = self.change.take();
            self.new_table();
            self.change = change;
        }
        match change {
            Change::DeleteTable => {
                // So that there is one to delete.
                self.new_table();
                self.message(DELETE_TABLE, 0, |_| ());
                self.gone = true;
                self.learned = Learned {
                    anew: true,
                    ..Learned::default()
                };
            }
            Change::AddChain(chain) => self.message(NEW_CHAIN, NLM_F_CREATE, |bytes| write_chain(bytes, chain)),
            Change::FlushChain(chain) => self.message(DELETE_RULE, 0, |bytes| bytes.text(2, &chain.0)),
            Change::DeleteChain(chain) => self.message(DELETE_CHAIN, 0, |bytes| bytes.text(3, &chain.0)),
            Change::AddRule(chain, rule) => self.rule(&chain.0, rule),
            Change::AddSet(spec) => {
                let number = self.number();
                self.message(NEW_SET, NLM_F_CREATE, |bytes| {
                    set::write_spec(bytes, spec, &spec.name.0, 0, number);
                });
                let shape = Shape {
                    interval: spec.interval,
                };
                self.learned.sets.insert(spec.name.clone(), Some(shape));
            }
            Change::FlushSet(set) => self.message(DELETE_ELEMENTS, 0, |bytes| bytes.text(2, &set.0)),
            Change::DeleteSet(set) => {
                self.message(DELETE_SET, 0, |bytes| bytes.text(2, &set.0));
                self.learned.sets.insert(set.clone(), None);
            }
            Change::AddElements(set, elements) => {
                let shape = self.shape(set)?;
                self.elements(NEW_ELEMENTS, NLM_F_CREATE, &set.0, None, elements, shape);
            }
            Change::DeleteElements(set, elements) => {
                let shape = self.shape(set)?;
                self.elements(DELETE_ELEMENTS, 0, &set.0, None, elements, shape);
            }
        }
        Ok(())
    }

    fn new_table(&mut self) {
        self.message(NEW_TABLE, NLM_F_CREATE, |_| ());
    }

    fn rule(&mut self, chain: &str, rule: &Rule) {
        let compiled = compile::rule(rule, |ranges| {
            let number = self.number();
            let (spec, elements) = set::port_set(ranges);
            self.message(NEW_SET, NLM_F_CREATE, |bytes| {
                set::write_spec(bytes, &spec, expr::ANONYMOUS, FLAG_ANONYMOUS | FLAG_CONSTANT, number);
            });
            let shape = Shape {
                interval: spec.interval,
            };
            self.elements(
                NEW_ELEMENTS,
                NLM_F_CREATE,
                expr::ANONYMOUS,
                Some(number),
                &elements,
                shape,
            );
            number
        });
        for exprs in compiled.rules {
            self.message(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, |bytes| {
                bytes.text(2, chain);
                bytes.nest(4, |bytes| exprs.iter().for_each(|expr| expr.write(bytes)));
                if let Some(comment) = &rule.comment {
                    bytes.put(7, &note(comment));
                }
            });
        }
    }

    /// Elements of one change, in as many messages as it takes.
    fn elements(
        &mut self,
        operation: u16,
        flags: u16,
        set: &str,
        number: Option<u32>,
        elements: &[Element],
        shape: Shape,
    ) {
        let mut rest = elements;
        while !rest.is_empty() {
            self.message(operation, flags, |bytes| {
                bytes.text(2, set);
                if let Some(number) = number {
                    bytes.be32(4, number);
                }
                bytes.nest(3, |bytes| {
                    let start = bytes.0.len();
                    while let Some((element, more)) = rest.split_first()
                        && bytes.0.len() - start < LIST_BYTES
                    {
                        set::write_element(bytes, element, shape, operation == NEW_ELEMENTS);
                        rest = more;
                    }
                });
            });
        }
    }

    fn shape(&mut self, set: &SetName) -> Result<Shape, E> {
        let before = || self.known.and_then(|known| known.get(set));
        let known = match self.learned.sets.get(set) {
            Some(shape) => Some(*shape),
            None if self.learned.anew => Some(None),
            None => before().copied(),
        };
        let shape = match known {
            Some(shape) => shape,
            None => {
                let asked = (self.ask)(set)?;
                self.learned.sets.insert(set.clone(), asked);
                asked
            }
        };
        // The kernel refuses what is said about a set that is not there, however it is said.
        Ok(shape.unwrap_or(Shape { interval: false }))
    }

    fn number(&mut self) -> u32 {
        self.set_number += 1;
        self.set_number
    }

    /// A message about the table, whose name comes first in all of them.
    fn message(&mut self, operation: u16, flags: u16, body: impl FnOnce(&mut Bytes)) {
        let sequence = self.first + self.owners.len() as u32;
        self.owners.push(self.change);
        self.last_at = self.bytes.0.len();
        let target = Target {
            subsystem: NFTABLES,
            operation,
            family: INET,
            resource: 0,
        };
        self.bytes.message(target, NLM_F_REQUEST | flags, sequence, |bytes| {
            bytes.text(1, &self.table.0);
            body(bytes);
        });
    }

    fn limit(&mut self, operation: u16, flags: u16) {
        let sequence = self.first + self.owners.len() as u32;
        self.owners.push(None);
        self.last_at = self.bytes.0.len();
        let target = Target {
            subsystem: 0,
            operation,
            family: 0,
            resource: NFTABLES,
        };
        self.bytes.message(target, NLM_F_REQUEST | flags, sequence, |_| ());
    }

    fn flags_of_last(&self) -> u16 {
        let flags = &self.bytes.0[self.last_at + 6..self.last_at + 8];
        u16::from_ne_bytes([flags[0], flags[1]])
    }
}

fn write_chain(bytes: &mut Bytes, chain: &Chain) {
    bytes.text(3, &chain.name.0);
    if let Some(base) = &chain.base {
        bytes.nest(4, |bytes| {
            bytes.be32(1, hook_number(base.hook));
            bytes.be32(2, base.priority as u32);
        });
        bytes.be32(5, u32::from(!base.drop));
        bytes.text(7, kind_name(base));
    }
}

fn kind_name(base: &BaseChain) -> &'static str {
    match base.kind {
        ChainKind::Filter => "filter",
        ChainKind::Nat => "nat",
    }
}

fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Forward => 2,
        Hook::Output => 3,
        Hook::Postrouting => 4,
    }
}

pub(super) const HOOKS: [Hook; 5] = [
    Hook::Prerouting,
    Hook::Input,
    Hook::Forward,
    Hook::Output,
    Hook::Postrouting,
];

/// A comment as `nft` keeps it: kind 0, length, text with a zero byte.
fn note(comment: &str) -> Vec<u8> {
    let mut note = vec![0, comment.len() as u8 + 1];
    note.extend_from_slice(comment.as_bytes());
    note.push(0);
    note
}
