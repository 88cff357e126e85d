//! Sets and their elements as bytes, both ways.
//!
//! A span of values is two elements in a set of one field (where it begins, and the first value behind it, marked as an end),
//! and one element with two keys in a set of several fields.

use kernel::IpFamily;
use kernel::nft::{
    ChainName, Element, ElementVerdict, ElementsBuilder, Key, KeyType, SetName, SetSpec, SetState, Span, Value,
};

use super::expr::{ACCEPT, DROP, GOTO, JUMP, read_verdict, write_verdict};
use crate::decode::Attributes;
use crate::nfnetlink::{Bytes, be32, text};

pub(super) const FLAG_ANONYMOUS: u32 = 1;
pub(super) const FLAG_CONSTANT: u32 = 2;
const FLAG_INTERVAL: u32 = 4;
const FLAG_MAP: u32 = 8;
const FLAG_CONCAT: u32 = 0x80;

/// The key type's number in `nft`, which alone reads it.
fn type_number(key: KeyType) -> u32 {
    match key {
        KeyType::Address(IpFamily::V4) => 7,
        KeyType::Address(IpFamily::V6) => 8,
        KeyType::Protocol => 12,
        KeyType::Port => 13,
        KeyType::Interface => 41,
    }
}

const KEY_TYPES: [KeyType; 5] = [
    KeyType::Address(IpFamily::V4),
    KeyType::Address(IpFamily::V6),
    KeyType::Protocol,
    KeyType::Port,
    KeyType::Interface,
];

/// Bits of a type's number among several.
const TYPE_BITS: u32 = 6;
const VERDICT_TYPE: u32 = 0xffff_ff00;

/// How elements of a set are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Elements are spans.
    pub interval: bool,
}

// === sets ===

/// The attributes of a new set behind its table.
pub(super) fn write_spec(bytes: &mut Bytes, spec: &SetSpec, name: &str, flags: u32, number: u32) {
    let spans_of_several = spec.key.len() > 1 && spec.interval;
    let mut flags = flags;
    if spec.interval {
        flags |= FLAG_INTERVAL;
    }
    if spans_of_several {
        flags |= FLAG_CONCAT;
    }
    if spec.verdicts {
        flags |= FLAG_MAP;
    }
    bytes.text(2, name);
    bytes.be32(3, flags);
    let kind = spec
        .key
        .iter()
        .fold(0, |number, key| number << TYPE_BITS | type_number(*key));
    bytes.be32(4, kind);
    bytes.be32(5, key_length(&spec.key) as u32);
    if spec.verdicts {
        bytes.be32(6, VERDICT_TYPE);
    }
    bytes.be32(10, number);
    if spans_of_several {
        bytes.nest(9, |bytes| {
            bytes.nest(2, |bytes| {
                for key in &spec.key {
                    bytes.nest(1, |bytes| bytes.be32(1, key.width() as u32));
                }
            });
        });
    }
    // For `nft` alone: the order of the key's bytes (1 the machine's, 2 the network's), or names are not shown.
    const KEY_BYTE_ORDER: u8 = 0;
    let order: u32 = if spec.key == [KeyType::Interface] { 1 } else { 2 };
    let mut note = vec![KEY_BYTE_ORDER, 4];
    note.extend_from_slice(&order.to_ne_bytes());
    bytes.put(13, &note);
}

fn key_length(key: &[KeyType]) -> usize {
    match key {
        [one] => one.width(),
        several => several.iter().map(|key| key.width().next_multiple_of(4)).sum(),
    }
}

/// A set as it was read, before its elements are.
pub(super) struct SetHere {
    pub name: String,
    pub flags: u32,
    /// `None`: not of ours.
    pub spec: Option<SetSpec>,
}

impl SetHere {
    pub fn is_anonymous(&self) -> bool {
        self.flags & FLAG_ANONYMOUS != 0
    }

    pub fn shape(&self) -> Shape {
        Shape {
            interval: self.flags & FLAG_INTERVAL != 0,
        }
    }
}

/// `NFT_MSG_NEWSET`; `None`: of another table.
pub(super) fn read_set(attributes: &[u8], table: &str) -> Option<SetHere> {
    let mut fields = [None; 11];
    let mut strange = false;
    for (kind, value) in Attributes(attributes) {
        match fields.get_mut(usize::from(kind)) {
            Some(place) => *place = Some(value),
            // Timeouts and statements of elements.
            None => strange |= matches!(kind, 11 | 12 | 15 | 17 | 18),
        }
    }
    (text(fields[1]?) == table).then_some(())?;
    let name = text(fields[2]?).to_owned();
    let flags = fields[3].and_then(be32).unwrap_or(0);
    let known = FLAG_ANONYMOUS | FLAG_CONSTANT | FLAG_INTERVAL | FLAG_MAP | FLAG_CONCAT;
    let key = fields[4].and_then(be32).and_then(key_of_number);
    let spec = key.and_then(|key| {
        let verdicts = flags & FLAG_MAP != 0;
        let as_we_do = !strange
            && flags & !known == 0
            && fields[5].and_then(be32) == Some(key_length(&key) as u32)
            && (!verdicts || fields[6].and_then(be32) == Some(VERDICT_TYPE));
        as_we_do.then(|| SetSpec {
            name: SetName(name.clone()),
            key,
            interval: flags & FLAG_INTERVAL != 0,
            verdicts,
        })
    });
    Some(SetHere { name, flags, spec })
}

fn key_of_number(number: u32) -> Option<Vec<KeyType>> {
    let mut key = Vec::new();
    let mut rest = number;
    while rest != 0 {
        let one = rest & ((1 << TYPE_BITS) - 1);
        key.push(KEY_TYPES.into_iter().find(|key| type_number(*key) == one)?);
        rest >>= TYPE_BITS;
    }
    key.reverse();
    (!key.is_empty()).then_some(key)
}

// === elements into bytes ===

const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
const ELEMENT_FLAGS: u16 = 3;
const ELEMENT_KEY_END: u16 = 10;
const ELEMENT_IS_END: u32 = 1;

/// An element as an entry of a list; `data`: with its verdict.
pub(super) fn write_element(bytes: &mut Bytes, element: &Element, shape: Shape, data: bool) {
    let verdict = element.verdict.as_ref().filter(|_| data);
    if let [value] = &element.key[..] {
        let (key, span) = (value.key_type(), value.span());
        write_entry(bytes, verdict, |bytes| write_one(bytes, key, span.low));
        // A span up to the greatest value has no end.
        if shape.interval && span.high < key.greatest() {
            bytes.nest(1, |bytes| {
                bytes.be32(ELEMENT_FLAGS, ELEMENT_IS_END);
                write_one(bytes, key, span.high + 1);
            });
        }
        return;
    }
    write_entry(bytes, verdict, |bytes| {
        write_several(bytes, ELEMENT_KEY, &element.key, |span| span.low);
        if shape.interval {
            write_several(bytes, ELEMENT_KEY_END, &element.key, |span| span.high);
        }
    });
}

fn write_entry(bytes: &mut Bytes, verdict: Option<&ElementVerdict>, key: impl FnOnce(&mut Bytes)) {
    bytes.nest(1, |bytes| {
        key(bytes);
        let (code, chain) = match verdict {
            None => return,
            Some(ElementVerdict::Accept) => (ACCEPT, None),
            Some(ElementVerdict::Drop) => (DROP, None),
            Some(ElementVerdict::Jump(chain)) => (JUMP, Some(chain)),
            Some(ElementVerdict::Goto(chain)) => (GOTO, Some(chain)),
        };
        bytes.nest(ELEMENT_DATA, |bytes| {
            write_verdict(bytes, code, chain.map(|chain| chain.0.as_str()))
        });
    });
}

fn write_one(bytes: &mut Bytes, key: KeyType, number: u128) {
    let value = number.to_be_bytes();
    bytes.nest(ELEMENT_KEY, |bytes| bytes.put(1, &value[16 - key.width()..]));
}

fn write_several(bytes: &mut Bytes, kind: u16, key: &[Value], end: impl Fn(Span) -> u128) {
    let mut joined = [0; 64];
    let mut at = 0;
    for value in key {
        let (width, number) = (value.key_type().width(), end(value.span()).to_be_bytes());
        // Keys were checked to fit.
        if let Some(place) = joined.get_mut(at..at + width) {
            place.copy_from_slice(&number[16 - width..]);
        }
        at += width.next_multiple_of(4);
    }
    bytes.nest(kind, |bytes| bytes.put(1, &joined[..at.min(64)]));
}

/// Ranges of ports as elements of a set that belongs to a rule.
pub(super) fn port_set(ranges: &[(u16, u16)]) -> (SetSpec, Vec<Element>) {
    let spec = SetSpec {
        name: SetName(super::expr::ANONYMOUS.to_owned()),
        key: vec![KeyType::Port],
        interval: ranges.iter().any(|(low, high)| low != high),
        verdicts: false,
    };
    let elements = ranges.iter().map(|(low, high)| Element {
        key: Value::Ports(*low, *high).into(),
        verdict: None,
    });
    (spec, elements.collect())
}

// === elements from bytes ===

/// The elements of one set as the kernel lists them.
pub(super) struct Entries<'s> {
    /// `None`: not of ours, so that nothing in it can be said.
    spec: Option<&'s SetSpec>,
    elements: ElementsBuilder,
    /// Where spans of a single field begin and end, in any order.
    bounds: Vec<Bound>,
    /// So many elements cannot be said.
    strange: usize,
}

struct Bound {
    at: u128,
    is_end: bool,
    verdict: Option<Box<ElementVerdict>>,
    strange: bool,
}

impl<'s> Entries<'s> {
    pub fn of(spec: Option<&'s SetSpec>) -> Self {
        Self {
            spec,
            elements: ElementsBuilder::default(),
            bounds: Vec::new(),
            strange: 0,
        }
    }

    /// `NFT_MSG_NEWSETELEM`, of the set that was asked about.
    pub fn read(&mut self, attributes: &[u8]) {
        for (_, list) in Attributes(attributes).filter(|(kind, _)| *kind == 3) {
            for (_, entry) in Attributes(list) {
                self.entry(read_entry(entry));
            }
        }
    }

    fn entry(&mut self, entry: Entry<'_>) {
        let Some(spec) = self.spec else {
            self.strange += 1;
            return;
        };
        let key = match spec.key.as_slice() {
            [key] => {
                let at = number(entry.low, key.width());
                if spec.interval {
                    self.bounds.push(Bound {
                        at: at.unwrap_or(0),
                        is_end: entry.is_end,
                        verdict: entry.verdict.map(Box::new),
                        strange: entry.strange || at.is_none(),
                    });
                    return;
                }
                at.and_then(|at| Value::of(*key, Span { low: at, high: at }))
                    .map(Key::from)
            }
            several => several_values(entry.low, entry.high.unwrap_or(entry.low), several),
        };
        self.add(key, entry.verdict, entry.strange || entry.is_end);
    }

    fn add(&mut self, key: Option<Key>, verdict: Option<ElementVerdict>, strange: bool) {
        match key {
            Some(key) if !strange => self.elements.push(Element { key, verdict }),
            _ => self.strange += 1,
        }
    }

    /// The set with its elements.
    pub fn state(mut self) -> SetState {
        if let Some([key]) = self.spec.map(|spec| spec.key.as_slice()) {
            self.spans(*key);
        }
        SetState {
            spec: self.spec.cloned(),
            elements: self.elements.build(),
            strange: self.strange,
        }
    }

    /// Pairs where spans begin with where they end.
    fn spans(&mut self, key: KeyType) {
        let mut bounds = std::mem::take(&mut self.bounds);
        // Where one ends another may begin.
        bounds.sort_unstable_by_key(|bound| (bound.at, !bound.is_end));
        let mut bounds = bounds.into_iter().peekable();
        while let Some(bound) = bounds.next() {
            if bound.is_end {
                // An end without a beginning; `nft` puts one at zero, which means nothing.
                self.strange += usize::from(bound.at != 0);
                continue;
            }
            let high = match bounds.peek() {
                None => Some(key.greatest()),
                Some(next) if next.is_end => Some(next.at.saturating_sub(1)),
                Some(_) => None,
            };
            let value = high.and_then(|high| Value::of(key, Span { low: bound.at, high }));
            bounds.next_if(|next| next.is_end);
            self.add(
                value.map(Key::from),
                bound.verdict.map(|verdict| *verdict),
                bound.strange,
            );
        }
    }
}

/// An entry of a list.
#[derive(Default)]
struct Entry<'a> {
    low: &'a [u8],
    /// Where it is another than `low`.
    high: Option<&'a [u8]>,
    is_end: bool,
    verdict: Option<ElementVerdict>,
    /// Something about it cannot be said.
    strange: bool,
}

fn read_entry(entry: &[u8]) -> Entry<'_> {
    let mut read = Entry::default();
    for (kind, value) in Attributes(entry) {
        match kind {
            ELEMENT_KEY => read.low = raw(value),
            ELEMENT_KEY_END => read.high = Some(raw(value)),
            ELEMENT_FLAGS => {
                let flags = be32(value).unwrap_or(0);
                read.is_end = flags & ELEMENT_IS_END != 0;
                read.strange |= flags & !ELEMENT_IS_END != 0;
            }
            ELEMENT_DATA => {
                read.verdict = read_verdict(value).and_then(verdict_of);
                read.strange |= read.verdict.is_none();
            }
            // Timeouts, statements.
            4 | 5 | 7 | 9 | 11 => read.strange = true,
            _ => {}
        }
    }
    read
}

fn verdict_of((code, chain): (i32, Option<&str>)) -> Option<ElementVerdict> {
    let chain = chain.map(|chain| ChainName(chain.to_owned()));
    match (code, chain) {
        (ACCEPT, None) => Some(ElementVerdict::Accept),
        (DROP, None) => Some(ElementVerdict::Drop),
        (JUMP, Some(chain)) => Some(ElementVerdict::Jump(chain)),
        (GOTO, Some(chain)) => Some(ElementVerdict::Goto(chain)),
        _ => None,
    }
}

/// The values of several fields, each padded to four bytes.
fn several_values(low: &[u8], high: &[u8], key: &[KeyType]) -> Option<Key> {
    let mut at = 0;
    let value = |key: &KeyType| {
        let width = key.width();
        let span = Span {
            low: number(low.get(at..at + width)?, width)?,
            high: number(high.get(at..at + width)?, width)?,
        };
        at += width.next_multiple_of(4);
        Value::of(*key, span)
    };
    key.iter().map(value).collect()
}

fn number(bytes: &[u8], width: usize) -> Option<u128> {
    (bytes.len() == width).then(|| bytes.iter().fold(0, |number, byte| number << 8 | u128::from(*byte)))
}

fn raw(data: &[u8]) -> &[u8] {
    Attributes(data)
        .find(|(kind, _)| *kind == 1)
        .map_or(&[], |(_, value)| value)
}
