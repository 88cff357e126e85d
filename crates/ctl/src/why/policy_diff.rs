//! `policy diff`: which pods could talk to each other after a file is applied or deleted, and could not before; or the other way
//! round. Nothing is written.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, Read, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use api::{Key, Resource};
use clap::Args;
use policy::PolicyState;
use policy::evaluate::{Outcome, Packet, Step, Verdict, Way, evaluate};
use policy::{EndpointId, TierEnd};

use super::classes::{Class, classes};
use super::names::Names;
use super::policy_test::unknown_tiers;
use super::ports::{Probe, words};
use super::world::{States, World};
use super::{AnswerFormat, write_data};
use crate::write::Open;
use crate::{CtlError, input};

/// Work that takes longer says how far it is.
const PATIENCE: Duration = Duration::from_secs(1);

/// Flags of `policy diff`.
#[derive(Args, Clone, Debug)]
pub struct DiffArgs {
    /// What would be applied: a file, a folder, or `-` for standard input; several times
    #[arg(short, long, value_name = "FILE", required_unless_present = "staged")]
    pub filename: Vec<PathBuf>,
    /// Folders inside folders too
    #[arg(short = 'R', long)]
    pub recursive: bool,
    /// What if the resources of the files were deleted
    #[arg(long)]
    pub delete: bool,
    /// What if all staged policies were real, those of the files too
    #[arg(long, conflicts_with = "delete")]
    pub staged: bool,
    /// Namespace of resources that name none
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    pub output: AnswerFormat,
}

/// What would change.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// Live pods.
    pub pods: usize,
    /// Ordered pairs of pods that would be judged otherwise, on some port at least.
    pub pairs: usize,
    /// All ordered pairs.
    pub of_pairs: usize,
    /// By reason.
    pub changes: Vec<Change>,
}

/// Changes with one reason.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// `Allow` or `Deny`.
    pub before: &'static str,
    /// `Deny` or `Allow`.
    pub after: &'static str,
    /// What denies it then, or denied it until now.
    pub denied_by: String,
    /// Who is concerned.
    pub between: Vec<Between>,
}

/// Pods between which something changes.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Between {
    /// Senders.
    pub from: String,
    /// Receivers.
    pub to: String,
    /// Ports.
    pub ports: Vec<String>,
    /// `IPv4`, `IPv6`, or both.
    pub families: Vec<&'static str>,
}

/// Shows what a file would change.
pub async fn diff(args: &DiffArgs, open: Open<'_>, stdin: &mut dyn Read, out: &mut dyn Write) -> Result<(), CtlError> {
    let resources = input::read(&args.filename, args.recursive, &args.namespace, stdin)?;
    let before = World::read(&open().await?).await?;
    let keys: Vec<Key> = resources.iter().map(Resource::key).collect();
    let mut after = before.clone();
    match args.delete {
        true => {
            let missing: Vec<Key> = keys.iter().filter(|key| !after.take(key)).cloned().collect();
            if !missing.is_empty() {
                return Err(CtlError::Missing(missing));
            }
        }
        false => {
            after.put(resources);
            let unknown = unknown_tiers(&after, &keys);
            if !unknown.is_empty() {
                return Err(CtlError::Invalid(unknown));
            }
        }
    }
    if args.staged {
        after.promote();
    }
    let difference = difference(&before, &after, &mut Progress::new());
    match args.output {
        AnswerFormat::Text => text(&difference, out).map_err(CtlError::output),
        AnswerFormat::Json | AnswerFormat::Yaml => write_data(&difference, args.output, out),
    }
}

/// Compares two worlds, over the pods that live in both.
pub fn difference(before: &World, after: &World, progress: &mut Progress) -> Difference {
    let pods = || before.endpoints().map(|(key, _)| key.clone());
    // Pods' policy is the same on every node.
    let (old, new) = (States::new(before, pods()).of(""), States::new(after, pods()).of(""));
    let classes = classes(&old, &new);
    let probes = Probe::all(&[&old, &new]);
    let mut found = Found::new();
    let compared = Compared { old: &old, new: &new };
    for (from, a) in classes.iter().enumerate() {
        progress.at(from, classes.len());
        for (to, b) in classes.iter().enumerate() {
            let Some((sender, receiver)) = pair(a, b, from == to) else {
                continue;
            };
            if !a.egress_differs && !b.ingress_differs {
                continue;
            }
            for probe in &probes {
                let packet = probe.packet(&blank(sender.1, receiver.1));
                if let Some(change) = compared.change(&sender.0, &receiver.0, &packet) {
                    let pairs = found.entry(change).or_default();
                    pairs.entry((from, to)).or_default().insert(*probe);
                }
            }
        }
    }
    progress.end();
    summed(before, &classes, &probes, found)
}

/// Pairs of classes, by number, with the packets that are judged otherwise.
type Pairs = BTreeMap<(usize, usize), BTreeSet<Probe>>;
/// By what they are afterwards (allowed or not) and what denies.
type Found = BTreeMap<(bool, String), Pairs>;
/// A pod with one of its addresses.
type Member = (Key, IpAddr);

/// Two different pods of two classes of one family.
fn pair<'c>(a: &'c Class, b: &'c Class, same: bool) -> Option<(&'c Member, &'c Member)> {
    let sender = a.members.first()?;
    let receiver = b.members.iter().find(|(key, _)| *key != sender.0);
    // A class of one pod may still be the other class's first pod.
    let (sender, receiver) = match (receiver, same) {
        (Some(receiver), _) => (sender, receiver),
        (None, true) => return None,
        (None, false) => {
            let receiver = b.members.first()?;
            (a.members.iter().find(|(key, _)| *key != receiver.0)?, receiver)
        }
    };
    (sender.1.is_ipv4() == receiver.1.is_ipv4()).then_some((sender, receiver))
}

fn blank(source: IpAddr, destination: IpAddr) -> Packet {
    Packet {
        source,
        destination,
        protocol: 0,
        source_port: None,
        destination_port: None,
        icmp: None,
    }
}

struct Compared<'a> {
    old: &'a PolicyState,
    new: &'a PolicyState,
}

impl Compared<'_> {
    /// Whether it is allowed afterwards, and what denies it then or denied it before; `None`: nothing changes.
    fn change(&self, from: &Key, to: &Key, packet: &Packet) -> Option<(bool, String)> {
        let denied = |state: &PolicyState| {
            let sent = evaluate(state, &EndpointId::Workload(from.clone()), Way::Egress, packet);
            if sent.outcome == Outcome::Deny {
                return Some(sent);
            }
            let received = evaluate(state, &EndpointId::Workload(to.clone()), Way::Ingress, packet);
            (received.outcome == Outcome::Deny).then_some(received)
        };
        match (denied(self.old), denied(self.new)) {
            (Some(_), Some(_)) | (None, None) => None,
            (None, Some(verdict)) => Some((false, reason(self.new, &verdict))),
            (Some(verdict), None) => Some((true, reason(self.old, &verdict))),
        }
    }
}

/// What denied, without the endpoint's name, so that many have the same.
fn reason(state: &PolicyState, verdict: &Verdict) -> String {
    let (way, list) = match verdict.way {
        Way::Ingress => ("the receiver's", "ingress"),
        Way::Egress => ("the sender's", "egress"),
    };
    let Some(last) = verdict.trace.last() else {
        return format!("{way} policy");
    };
    match last {
        Step::TierEnd {
            tier,
            end: TierEnd::Deny,
        } => {
            let endpoint = state.endpoints.get(&verdict.endpoint);
            let direction = endpoint.map(|endpoint| match verdict.way {
                Way::Ingress => &endpoint.ingress,
                Way::Egress => &endpoint.egress,
            });
            let tiers = direction.into_iter().flat_map(|direction| direction.tiers.iter());
            let policies = tiers.filter(|of| of.name == *tier).flat_map(|of| &of.policies);
            let policies: Vec<String> = policies.map(ToString::to_string).collect();
            format!(
                "{way} {list}: no rule of {} matches, and tier {tier} ends with Deny",
                policies.join(", ")
            )
        }
        other => format!("{way} {list}: {other}"),
    }
}

/// Classes to names, changes to groups.
fn summed(world: &World, classes: &[Class], probes: &[Probe], found: Found) -> Difference {
    let names = Names::new(world);
    let pods: BTreeSet<&Key> = classes
        .iter()
        .flat_map(|class| &class.members)
        .map(|(key, _)| key)
        .collect();
    let mut pairs: BTreeSet<(&Key, &Key)> = BTreeSet::new();
    let mut changes = Vec::new();
    for ((allowed, denied_by), between) in found {
        for (from, to) in between.keys() {
            let (a, b) = (&classes[*from].members, &classes[*to].members);
            for (sender, _) in a {
                pairs.extend(b.iter().map(|(receiver, _)| (sender, receiver)).filter(|(a, b)| a != b));
            }
        }
        let mut merged: Vec<Between> = Vec::new();
        for Block { from, to, chosen } in blocks(classes, between) {
            let is_v6 = from.iter().any(|class| classes[*class].is_v6());
            let family = if is_v6 { "IPv6" } else { "IPv4" };
            let name = |group: &BTreeSet<usize>| {
                let members = group.iter().flat_map(|class| &classes[*class].members);
                names.of(members.map(|(key, _)| key))
            };
            let (from, to, ports) = (name(&from), name(&to), words(probes, &chosen));
            let same = |other: &&mut Between| other.from == from && other.to == to && other.ports == ports;
            match merged.iter_mut().find(same) {
                Some(other) if !other.families.contains(&family) => other.families.push(family),
                Some(_) | None => merged.push(Between {
                    from,
                    to,
                    ports,
                    families: vec![family],
                }),
            }
        }
        let word = |allowed: bool| if allowed { "Allow" } else { "Deny" };
        changes.push(Change {
            before: word(!allowed),
            after: word(allowed),
            denied_by,
            between: merged,
        });
    }
    Difference {
        pods: pods.len(),
        pairs: pairs.len(),
        of_pairs: pods.len() * pods.len().saturating_sub(1),
        changes,
    }
}

/// Every class of one group to every class of another, by the same packets.
struct Block {
    from: BTreeSet<usize>,
    to: BTreeSet<usize>,
    chosen: BTreeSet<Probe>,
}

/// Pairs of classes as few blocks: all who reach a class by the same packets, then all classes that the same ones reach.
fn blocks(classes: &[Class], between: Pairs) -> Vec<Block> {
    let mut senders: BTreeMap<(usize, BTreeSet<Probe>), BTreeSet<usize>> = BTreeMap::new();
    for ((from, to), chosen) in between {
        senders.entry((to, chosen)).or_default().insert(from);
    }
    let mut receivers: BTreeMap<(BTreeSet<usize>, BTreeSet<Probe>), BTreeSet<usize>> = BTreeMap::new();
    for ((to, chosen), mut from) in senders {
        // A pod alone in its class has no pair with itself, which is no reason to tell it apart.
        if classes[to].is_one_pod() {
            from.insert(to);
        }
        receivers.entry((from, chosen)).or_default().insert(to);
    }
    let block = |((mut from, chosen), to): ((BTreeSet<usize>, _), BTreeSet<usize>)| {
        let itself = to
            .first()
            .filter(|class| to.len() == 1 && classes[**class].is_one_pod());
        if let Some(itself) = itself {
            from.remove(itself);
        }
        Block { from, to, chosen }
    };
    let mut blocks: Vec<Block> = receivers.into_iter().map(block).collect();
    blocks.sort_by(|a, b| (&a.to, &a.from).cmp(&(&b.to, &b.from)));
    blocks
}

fn text(difference: &Difference, out: &mut dyn Write) -> std::io::Result<()> {
    let families = difference.changes.iter().flat_map(|change| &change.between);
    let families: BTreeSet<&str> = families.flat_map(|between| between.families.iter().copied()).collect();
    for change in &difference.changes {
        let (before, after) = (change.before, change.after);
        let word = if after == "Deny" { "will be" } else { "was" };
        writeln!(out, "{before} -> {after}; {word} denied by {}", change.denied_by)?;
        for between in &change.between {
            let only = match families.len() > between.families.len() {
                true => format!(" ({})", between.families.join(", ")),
                false => String::new(),
            };
            writeln!(
                out,
                "  {} -> {}: {}{only}",
                between.from,
                between.to,
                between.ports.join("; ")
            )?;
        }
        writeln!(out)?;
    }
    match difference.pairs {
        0 => writeln!(out, "Nothing changes between {} pods", difference.pods),
        pairs => writeln!(
            out,
            "{pairs} of {} pairs of {} pods change",
            difference.of_pairs, difference.pods
        ),
    }
}

/// Says on a terminal how far it is, if it takes longer.
pub struct Progress {
    started: Instant,
    said: Option<Instant>,
    is_seen: bool,
}

impl Progress {
    /// Begins now.
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            said: None,
            is_seen: std::io::stderr().is_terminal(),
        }
    }

    fn at(&mut self, done: usize, all: usize) {
        let last = self.said.unwrap_or(self.started);
        if !self.is_seen || last.elapsed() < PATIENCE {
            return;
        }
        self.said = Some(Instant::now());
        let percent = done * 100 / all.max(1);
        let _ = write!(std::io::stderr(), "\r{percent} % of {all} groups of pods compared ");
    }

    fn end(&mut self) {
        if self.said.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}
