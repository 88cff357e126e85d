//! What makes no sense by itself, whatever is in the kernel. Both kernels ask before they do anything.

use super::*;

/// Bytes of a chain's or set's name.
const NAME_BYTES: usize = 127;
/// Bytes of a device's name.
const DEVICE_BYTES: usize = 15;
/// Bytes of a rule's comment.
const COMMENT_BYTES: usize = 128;
/// Bytes of a log line's beginning.
const PREFIX_BYTES: usize = 127;
/// Bytes of a key, each field padded to four.
const KEY_BYTES: usize = 64;
/// Fields of a key: what a set says of its own types has six bits for each.
const KEY_FIELDS: usize = 5;

impl Transaction {
    /// The first change that makes no sense by itself, as an error.
    pub fn check(&self) -> Result<(), NftError> {
        for (at, change) in self.changes.iter().enumerate() {
            change.check().map_err(|reason| NftError::Invalid {
                change: at,
                what: change.to_string(),
                reason,
            })?;
        }
        Ok(())
    }
}

impl Change {
    /// What is wrong with it.
    fn check(&self) -> Result<(), String> {
        match self {
            Self::DeleteTable => Ok(()),
            Self::AddChain(chain) => name(&chain.name.0),
            Self::FlushChain(chain) | Self::DeleteChain(chain) => name(&chain.0),
            Self::AddRule(chain, rule) => name(&chain.0).and_then(|()| rule.check()),
            Self::AddSet(spec) => {
                // The kernel names the sets of single rules so.
                if spec.name.0.starts_with("__") {
                    return Err(format!("a name that begins with __: {}", spec.name));
                }
                name(&spec.name.0).and_then(|()| key(spec.key.iter().copied()))
            }
            Self::FlushSet(set) | Self::DeleteSet(set) => name(&set.0),
            Self::AddElements(set, elements) | Self::DeleteElements(set, elements) => {
                name(&set.0)?;
                elements.iter().try_for_each(Element::check)
            }
        }
    }
}

impl Rule {
    /// What is wrong with it by itself.
    fn check(&self) -> Result<(), String> {
        if let Some(comment) = &self.comment {
            text("a comment", comment, COMMENT_BYTES)?;
        }
        self.matches.iter().try_for_each(Match::check)?;
        self.actions.iter().try_for_each(Statement::check)?;
        let verdicts = self.actions.iter().filter(|action| action.is_verdict()).count();
        let at_the_end = self.actions.last().is_some_and(Statement::is_verdict);
        match (verdicts, &self.verdict) {
            (0, Some(Verdict::Map { key: fields, map })) => {
                name(&map.0)?;
                key(fields.iter().map(Field::key_type))
            }
            (0, Some(Verdict::Jump(chain) | Verdict::Goto(chain))) => name(&chain.0),
            (0, _) => Ok(()),
            (1, None) if at_the_end => Ok(()),
            (1, None) => Err("an action that is a verdict is not the last one".into()),
            _ => Err("two verdicts".into()),
        }
    }
}

impl Statement {
    /// Does it decide over the packet?
    pub fn is_verdict(&self) -> bool {
        match self {
            Self::Masquerade { .. } | Self::SourceNat { .. } | Self::DestinationNat { .. } | Self::Reject => true,
            Self::Counter
            | Self::Limit { .. }
            | Self::Over(_)
            | Self::SetDscp { .. }
            | Self::Log { .. }
            | Self::Nflog { .. }
            | Self::SetMark { .. }
            | Self::Notrack => false,
        }
    }

    fn check(&self) -> Result<(), String> {
        match self {
            Self::Log { prefix } | Self::Nflog { prefix, .. } => text("a log prefix", prefix, PREFIX_BYTES),
            Self::SetMark { mask, value } => within(*mask, *value),
            Self::Masquerade { ports: Some(ports), .. } | Self::SourceNat { ports: Some(ports), .. } => range(*ports),
            Self::Limit { packets: 0, .. } | Self::Limit { burst: 0, .. } => {
                Err("a limit of 0 packets: at least 1".into())
            }
            Self::Over(threshold) => threshold.check(),
            Self::SetDscp { value: 64.., .. } => Err("a DSCP beyond 63".into()),
            Self::SetDscp { .. }
            | Self::Counter
            | Self::Limit { .. }
            | Self::Notrack
            | Self::Reject
            | Self::Masquerade { .. }
            | Self::SourceNat { .. }
            | Self::DestinationNat { .. } => Ok(()),
        }
    }
}

impl Threshold {
    fn check(&self) -> Result<(), String> {
        match self {
            Self::Packets { per_second: 0, .. } | Self::Packets { burst: 0, .. } => {
                Err("a threshold of 0 packets: at least 1".into())
            }
            Self::Flows(0) => Err("a threshold of 0 flows: at least 1".into()),
            Self::Packets { .. } | Self::Flows(_) => Ok(()),
        }
    }
}

impl Match {
    fn check(&self) -> Result<(), String> {
        match self {
            Self::Interface { name, .. } => match name.strip_suffix('*') {
                Some("") => Err("`*` matches every device: leave the match out".into()),
                Some(prefix) => device(prefix),
                None => device(name),
            },
            Self::Net { net, .. } => masked(net),
            Self::Port { ranges, .. } => {
                if ranges.is_empty() {
                    return Err("no ports".into());
                }
                ranges.iter().copied().try_for_each(range)?;
                match ranges.windows(2).find(|pair| pair[0].1 >= pair[1].0) {
                    Some(pair) => Err(format!("ports {:?} do not come before {:?}", pair[0], pair[1])),
                    None => Ok(()),
                }
            }
            Self::InSet { key: fields, set, .. } => {
                name(&set.0)?;
                key(fields.iter().map(Field::key_type))
            }
            Self::Mark { mask, value, .. } => within(*mask, *value),
            Self::NoInterface(_)
            | Self::Family(_)
            | Self::Protocol { .. }
            | Self::Icmp { .. }
            | Self::Conntrack(_)
            | Self::Translated
            | Self::Ended
            | Self::DestinationIsLocal
            | Self::SourceIsLocal => Ok(()),
        }
    }
}

impl Element {
    fn check(&self) -> Result<(), String> {
        key(self.key.iter().map(Value::key_type))?;
        self.key.iter().try_for_each(|value| match value {
            Value::Interface(name) => device(name),
            Value::Net(net) => masked(net),
            Value::Ports(low, high) => range((*low, *high)),
            Value::Address(_) | Value::Protocol(_) | Value::Port(_) => Ok(()),
        })?;
        match &self.verdict {
            Some(ElementVerdict::Jump(chain) | ElementVerdict::Goto(chain)) => name(&chain.0),
            Some(ElementVerdict::Accept | ElementVerdict::Drop) | None => Ok(()),
        }
    }
}

fn name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("an empty name".into());
    }
    text("a name", name, NAME_BYTES)
}

fn device(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("an empty device name".into());
    }
    text("a device name", name, DEVICE_BYTES)
}

fn text(what: &str, text: &str, most: usize) -> Result<(), String> {
    if text.contains('\0') {
        return Err(format!("{what} with a zero byte: {text:?}"));
    }
    match text.len() {
        length if length > most => Err(format!("{what} of {length} bytes, {most} are the most: {text:?}")),
        _ => Ok(()),
    }
}

fn key(key: impl ExactSizeIterator<Item = KeyType>) -> Result<(), String> {
    if key.len() == 0 {
        return Err("a key without fields".into());
    }
    if key.len() > KEY_FIELDS {
        return Err(format!("a key of {} fields, {KEY_FIELDS} are the most", key.len()));
    }
    match key.map(|field| field.width().next_multiple_of(4)).sum::<usize>() {
        bytes if bytes > KEY_BYTES => Err(format!("a key of {bytes} bytes, {KEY_BYTES} are the most")),
        _ => Ok(()),
    }
}

fn range((low, high): (u16, u16)) -> Result<(), String> {
    if low <= high {
        Ok(())
    } else {
        Err(format!("ports from {low} to {high}"))
    }
}

fn masked(net: &IpNet) -> Result<(), String> {
    if net.trunc() == *net {
        Ok(())
    } else {
        Err(format!("{net} has bits behind its prefix"))
    }
}

fn within(mask: u32, value: u32) -> Result<(), String> {
    if value & !mask == 0 {
        Ok(())
    } else {
        Err(format!("mark {value:#x} is not within its mask {mask:#x}"))
    }
}
