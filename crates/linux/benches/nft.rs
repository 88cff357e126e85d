//! nf_tables over netlink, with 2,000 sets of 100 addresses and 2,000 chains of 10 rules in place. Needs root.
//!
//!     cargo bench -p linux --bench nft [-- ROUNDS]
//!
//! Beside each figure stand the same transaction encoded before the clock starts and sent without our code, which is what the
//! kernel alone takes (they take turns), and the `nft` program doing the same. Ends with exit code 1 if a bar is missed.
#![allow(clippy::unwrap_used, reason = "not production code")]

use std::io::Write;
use std::net::Ipv4Addr;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use futures::StreamExt;
use kernel::IpFamily;
use kernel::nft::*;
use linux::nft::LiveNft;
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{UsageWho, getrusage};

const SETS: u32 = 2_000;
const ELEMENTS: u32 = 100;
const CHAINS: u32 = 2_000;
const RULES: u32 = 10;
/// Chains that are shared, in the last figure.
const SHARED: u32 = 100;

/// A line of the table.
struct Figure {
    name: &'static str,
    unit: &'static str,
    /// What is measured, and the most that it may be.
    values: Vec<(&'static str, f64, Option<f64>)>,
    /// The same for the kernel alone.
    raw: Vec<f64>,
    /// The same for the program `nft`: its p50.
    tool: Option<f64>,
}

fn main() -> ExitCode {
    let rounds = std::env::args()
        .filter_map(|argument| argument.parse().ok())
        .next()
        .unwrap_or(1000);
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let figures = runtime.block_on(measure(rounds));
    println!("| figure | ours | bar | kernel alone | nft |\n|---|---|---|---|---|");
    let mut missed = Vec::new();
    for figure in &figures {
        let alone = |at: usize| match figure.raw.get(at) {
            Some(value) => format!(" (the kernel alone: {value:.3})"),
            None => String::new(),
        };
        let join = |values: Vec<String>| values.join(", ");
        let ours = figure
            .values
            .iter()
            .map(|(what, value, _)| format!("{what} {value:.3}"))
            .collect();
        let bars = figure
            .values
            .iter()
            .filter_map(|(what, _, bar)| bar.map(|bar| format!("{what} {bar}")))
            .collect();
        let raw = figure.raw.iter().map(|value| format!("{value:.3}")).collect();
        println!(
            "| {} ({}) | {} | {} | {} | {} |",
            figure.name,
            figure.unit,
            join(ours),
            join(bars),
            join(raw),
            figure.tool.map(|tool| format!("{tool:.3}")).unwrap_or_default()
        );
        for (at, (what, value, bar)) in figure.values.iter().enumerate() {
            if bar.is_some_and(|bar| *value > bar) {
                missed.push(format!(
                    "{}, {what}: {value:.3} {}{}",
                    figure.name,
                    figure.unit,
                    alone(at)
                ));
            }
        }
    }
    missed.iter().for_each(|line| println!("MISSED: {line}"));
    if missed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

async fn measure(rounds: u32) -> Vec<Figure> {
    let mut kernel = LiveNft::open().unwrap();
    let mut figures = Vec::new();
    figures.push(from_nothing(&mut kernel).await);
    let command = |verb| format!("{verb} element inet margay cali-set-7 {{ 11.255.0.1 }}\n");
    figures.push(Figure {
        tool: Some(by_nft_and_back(&command("add"), &command("delete"))),
        ..one_element("one element added", &mut kernel, rounds).await
    });
    figures.push(one_entry("one map entry added", &mut kernel, rounds).await);
    figures.push(one_chain(&mut kernel, rounds).await);
    figures.extend(resync(&mut kernel).await);
    // A listener costs whoever changes something: the kernel writes each change down for it.
    let mut events = kernel.events(&table()).unwrap();
    figures.push(one_element("one element added, a listener open", &mut kernel, rounds).await);
    drop_table_and_share(&mut kernel);
    let shared = "one map entry added, 2,000 entries share 100 chains";
    figures.push(one_entry(shared, &mut kernel, rounds).await);
    assert!(
        futures::poll!(events.next()).is_pending(),
        "our own changes are not announced"
    );
    figures
}

async fn from_nothing(kernel: &mut LiveNft) -> Figure {
    let whole = transaction(whole());
    let mut taken = (Vec::new(), Vec::new());
    for _ in 0..5 {
        kernel.apply_now(&transaction(vec![Change::DeleteTable])).unwrap();
        let prepared = kernel.prepare(&whole).unwrap();
        let before = cpu();
        assert_eq!(kernel.send_prepared(&prepared).unwrap(), 0);
        taken.1.push((cpu() - before).as_secs_f64());
        kernel.apply_now(&transaction(vec![Change::DeleteTable])).unwrap();
        let before = cpu();
        kernel.apply(&whole).await.unwrap();
        taken.0.push((cpu() - before).as_secs_f64());
    }
    let listing = format!(
        "delete table inet margay\n{}",
        nft(&["list", "table", "inet", "margay"], "")
    );
    Figure {
        name: "whole state from nothing",
        unit: "CPU s",
        values: vec![("p50", quantile(&mut taken.0, 0.5), Some(0.6))],
        raw: vec![quantile(&mut taken.1, 0.5)],
        tool: Some(by_nft(&listing, 3, Unit::CpuSeconds)),
    }
}

async fn one_element(name: &'static str, kernel: &mut LiveNft, rounds: u32) -> Figure {
    let change = |round: u32, ours: bool| {
        let set = set_name(round * 7919 % SETS);
        let element = address(0x0b00_0000 + 2 * round + u32::from(ours));
        (
            transaction(vec![Change::AddElements(set.clone(), vec![element.clone()])]),
            transaction(vec![Change::DeleteElements(set, vec![element])]),
        )
    };
    let (mut ours, mut raw) = turns(kernel, rounds, change).await;
    latency(name, &mut ours, &mut raw, (0.2, 1.0))
}

/// A pod comes: an element of the map that leads to chains, so that the kernel looks at all jumps again.
async fn one_entry(name: &'static str, kernel: &mut LiveNft, rounds: u32) -> Figure {
    let change = |round: u32, ours: bool| {
        let element = Element {
            key: Value::Interface(format!("new{}", 2 * round + u32::from(ours))).into(),
            verdict: Some(ElementVerdict::Goto(chain_name(round % SHARED))),
        };
        (
            transaction(vec![Change::AddElements("dispatch".into(), vec![element.clone()])]),
            transaction(vec![Change::DeleteElements("dispatch".into(), vec![element])]),
        )
    };
    let (mut ours, mut raw) = turns(kernel, rounds, change).await;
    let mut figure = latency(name, &mut ours, &mut raw, (0.0, 0.0));
    figure.values.iter_mut().for_each(|(_, _, bar)| *bar = None);
    figure
}

async fn one_chain(kernel: &mut LiveNft, rounds: u32) -> Figure {
    let change = |round: u32, _| {
        let chain = round * 7919 % CHAINS;
        let mut changes = vec![Change::FlushChain(chain_name(chain))];
        changes.extend(rules(chain));
        (transaction(changes), transaction(vec![]))
    };
    let (mut ours, mut raw) = turns(kernel, rounds, change).await;
    let listing = nft(&["list", "chain", "inet", "margay", "cali-policy-7"], "");
    let command = format!("flush chain inet margay cali-policy-7\n{listing}");
    Figure {
        tool: Some(by_nft(&command, 20, Unit::Milliseconds)),
        ..latency("one chain of 10 rules rewritten", &mut ours, &mut raw, (1.0, 5.0))
    }
}

/// Milliseconds of a transaction, ours and prepared, which take turns; each is undone afterwards.
async fn turns(
    kernel: &mut LiveNft,
    rounds: u32,
    change: impl Fn(u32, bool) -> (Transaction, Transaction),
) -> (Vec<f64>, Vec<f64>) {
    let (mut ours, mut raw) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let (transaction, back) = change(round, true);
        let start = Instant::now();
        kernel.apply(&transaction).await.unwrap();
        ours.push(start.elapsed().as_secs_f64() * 1e3);
        kernel.apply(&back).await.unwrap();

        let (transaction, back) = change(round, false);
        let prepared = kernel.prepare(&transaction).unwrap();
        let start = Instant::now();
        assert_eq!(kernel.send_prepared(&prepared).unwrap(), 0);
        raw.push(start.elapsed().as_secs_f64() * 1e3);
        kernel.apply(&back).await.unwrap();
    }
    (ours, raw)
}

fn latency(name: &'static str, ours: &mut [f64], raw: &mut [f64], (p50, p99): (f64, f64)) -> Figure {
    Figure {
        name,
        unit: "ms",
        values: vec![
            ("p50", quantile(ours, 0.5), Some(p50)),
            ("p99", quantile(ours, 0.99), Some(p99)),
        ],
        raw: vec![quantile(raw, 0.5), quantile(raw, 0.99)],
        tool: None,
    }
}

/// Reading all of it back and comparing it, as the agent does when it was told that something has changed or may have.
async fn resync(kernel: &mut LiveNft) -> Vec<Figure> {
    let known = kernel.read(&table()).await.unwrap().unwrap();
    assert_eq!(known.sets.len(), SETS as usize + 1);
    let (mut whole, mut counted, mut listed) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()], Vec::new());
    for _ in 0..5 {
        let before = (cpu(), in_the_kernel());
        assert!(kernel.read(&table()).await.unwrap().unwrap() == known);
        since(before, &mut whole);
        let before = (cpu(), in_the_kernel());
        assert_eq!(kernel.rules(&table()).await.unwrap().len(), CHAINS as usize + 1);
        since(before, &mut counted);
    }
    for _ in 0..3 {
        let before = children();
        nft(&["-j", "list", "table", "inet", "margay"], "");
        listed.push((children() - before).as_secs_f64());
    }
    let figure = |name, [all, kernel]: &mut [Vec<f64>; 2], bar, tool| Figure {
        name,
        unit: "CPU s",
        values: vec![("p50", quantile(all, 0.5), bar)],
        raw: vec![quantile(kernel, 0.5)],
        tool,
    };
    let listed = Some(quantile(&mut listed, 0.5));
    vec![
        figure("resync without a change", &mut whole, Some(0.3), listed),
        figure("reading all rules and counters", &mut counted, None, None),
    ]
}

/// Runs `nft`, with commands from its standard input if there are arguments for that; what it prints.
fn nft(arguments: &[&str], input: &str) -> String {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "nft {arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

enum Unit {
    CpuSeconds,
    Milliseconds,
}

/// The median of what `nft -f` takes for these commands.
fn by_nft(commands: &str, rounds: u32, unit: Unit) -> f64 {
    let round = |_| {
        let (before, start) = (children(), Instant::now());
        nft(&["-f", "-"], commands);
        match unit {
            Unit::CpuSeconds => (children() - before).as_secs_f64(),
            Unit::Milliseconds => start.elapsed().as_secs_f64() * 1e3,
        }
    };
    quantile(&mut (0..rounds).map(round).collect::<Vec<_>>(), 0.5)
}

/// The same, in milliseconds, for commands that are undone by others each time.
fn by_nft_and_back(commands: &str, back: &str) -> f64 {
    let round = |_| {
        let taken = by_nft(commands, 1, Unit::Milliseconds);
        nft(&["-f", "-"], back);
        taken
    };
    quantile(&mut (0..20).map(round).collect::<Vec<_>>(), 0.5)
}

fn whole() -> Vec<Change> {
    let mut changes = Vec::new();
    for set in 0..SETS {
        changes.push(Change::AddSet(SetSpec {
            name: set_name(set),
            key: vec![KeyType::Address(IpFamily::V4)],
            interval: false,
            verdicts: false,
        }));
        let elements = (0..ELEMENTS)
            .map(|at| address(0x0a00_0000 + set * ELEMENTS + at))
            .collect();
        changes.push(Change::AddElements(set_name(set), elements));
    }
    for chain in 0..CHAINS {
        changes.push(Change::AddChain(Chain {
            name: chain_name(chain),
            base: None,
        }));
    }
    changes.extend((0..CHAINS).flat_map(rules));
    changes.push(Change::AddSet(SetSpec {
        name: "dispatch".into(),
        key: vec![KeyType::Interface],
        interval: false,
        verdicts: true,
    }));
    let entry = |chain| Element {
        key: Value::Interface(format!("cali{chain}")).into(),
        verdict: Some(ElementVerdict::Goto(chain_name(chain))),
    };
    changes.push(Change::AddElements("dispatch".into(), (0..CHAINS).map(entry).collect()));
    changes.push(Change::AddChain(Chain {
        name: "filter-forward".into(),
        base: Some(BaseChain {
            kind: ChainKind::Filter,
            hook: Hook::Forward,
            priority: 0,
            drop: false,
        }),
    }));
    changes.push(Change::AddRule(
        "filter-forward".into(),
        Rule {
            verdict: Some(Verdict::Map {
                key: vec![Field::Interface(Way::In)],
                map: "dispatch".into(),
            }),
            ..Rule::default()
        },
    ));
    changes
}

/// The same number of ways, but to few chains: does the kernel look at each chain once, or once for each way?
fn drop_table_and_share(kernel: &mut LiveNft) {
    let keep = |change: &Change| match change {
        Change::AddElements(name, _) => name.0 != "dispatch",
        _ => true,
    };
    let mut changes = vec![Change::DeleteTable];
    changes.extend(whole().into_iter().filter(keep));
    let entry = |entry| Element {
        key: Value::Interface(format!("cali{entry}")).into(),
        verdict: Some(ElementVerdict::Goto(chain_name(entry % SHARED))),
    };
    changes.push(Change::AddElements("dispatch".into(), (0..CHAINS).map(entry).collect()));
    kernel.apply_now(&transaction(changes)).unwrap();
}

/// What a policy looks like: who, which protocol and port, counted, with the rule's name.
fn rules(chain: u32) -> Vec<Change> {
    let rule = |at: u32| Rule {
        matches: vec![
            Match::InSet {
                key: vec![Field::Address(IpFamily::V4, End::Source)],
                negate: false,
                set: set_name((chain + at) % SETS),
            },
            Match::Protocol {
                negate: false,
                number: 6,
            },
            Match::Port {
                end: End::Destination,
                negate: false,
                ranges: vec![(8000 + at as u16, 8000 + at as u16)],
            },
        ],
        actions: vec![Statement::Counter],
        verdict: Some(Verdict::Accept),
        comment: Some(format!("policy default/chain-{chain} rule {at}")),
    };
    (0..RULES)
        .map(|at| Change::AddRule(chain_name(chain), rule(at)))
        .collect()
}

fn transaction(changes: Vec<Change>) -> Transaction {
    Transaction {
        table: table(),
        changes,
    }
}

fn table() -> TableName {
    TableName("margay".into())
}

fn set_name(number: u32) -> SetName {
    SetName(format!("cali-set-{number}"))
}

fn chain_name(number: u32) -> ChainName {
    ChainName(format!("cali-policy-{number}"))
}

fn address(number: u32) -> Element {
    Element {
        key: Value::Address(Ipv4Addr::from(number).into()).into(),
        verdict: None,
    }
}

/// What the process spent on processors, kernel work for it included.
fn cpu() -> Duration {
    spent(UsageWho::RUSAGE_SELF)
}

/// The part of it that is the kernel's.
fn in_the_kernel() -> Duration {
    length(getrusage(UsageWho::RUSAGE_SELF).unwrap().system_time())
}

/// What was spent in all and in the kernel since `before`.
fn since(before: (Duration, Duration), spent: &mut [Vec<f64>; 2]) {
    let now = (cpu(), in_the_kernel());
    spent[0].push((now.0 - before.0).as_secs_f64());
    spent[1].push((now.1 - before.1).as_secs_f64());
}

/// What the programs that it has run spent.
fn children() -> Duration {
    spent(UsageWho::RUSAGE_CHILDREN)
}

fn spent(who: UsageWho) -> Duration {
    let usage = getrusage(who).unwrap();
    length(usage.user_time()) + length(usage.system_time())
}

fn length(time: nix::sys::time::TimeVal) -> Duration {
    Duration::from_micros((time.tv_sec() * 1_000_000 + time.tv_usec()) as u64)
}

fn quantile(values: &mut [f64], at: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * at) as usize]
}
