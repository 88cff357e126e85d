//! A whole cluster: how fast it comes up, what an agent weighs, and how fast a route reaches the other nodes. Needs root.
//!
//!     cargo bench -p margay --bench cluster

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use ipnet::{IpNet, Ipv4Net};
use kernel::{Kernel, KernelEvent, RouteTarget};
use linux::LiveKernel;
use linux::netns::{self, Netns};
use support::memory::Memory;
use support::{Bars, Lab, Pod, Times, load, ms, ours};

/// Small blocks, so that every fourth pod claims one.
const BLOCK_LEN: u8 = 30;
/// Below the twenty blocks that a node may hold.
const CLAIMS_PER_NODE: usize = 15;

fn main() -> ExitCode {
    if !support::is_root() {
        return ExitCode::SUCCESS;
    }
    let mut bars = Bars::default();
    println!("| what | measured |\n|---|---|");
    start(&mut bars);
    propagation(&mut bars);
    crowd(&mut bars);
    bars.exit()
}

/// Start and tour of the three-node lab, and the memory of its agents.
fn start(bars: &mut Bars) {
    let (mut up, mut tour, mut heaviest) = (Times::default(), Times::default(), BTreeMap::new());
    let load = load();
    for _ in 0..5 {
        let lab = Lab::up("bench-start", &[]);
        up.push(lab.took);
        let started = Instant::now();
        lab.margay(&["lab", "tour"]);
        tour.push(started.elapsed());
        for (role, pid) in lab::processes::find(lab.folder.path()) {
            let now = Memory::of(pid.as_raw());
            let most: &mut Memory = heaviest.entry(role).or_default();
            *most = Memory {
                rss: most.rss.max(now.rss),
                pss: most.pss.max(now.pss),
            };
        }
    }
    println!(
        "| `lab up`, 3 nodes, 3 pods, p50 of {} (load {load}) | {:.2} s |",
        up.len(),
        up.p50().as_secs_f64()
    );
    println!(
        "| `lab tour`, p50 of {} | {:.2} s |",
        tour.len(),
        tour.p50().as_secs_f64()
    );
    for (role, memory) in &heaviest {
        println!(
            "| {role}: most RSS, most PSS | {:.1} MiB, {:.1} MiB |",
            memory.rss, memory.pss
        );
    }
    bars.at_most("lab up", up.p50().as_secs_f64(), 5.0, " s");
    bars.at_most("lab tour", tour.p50().as_secs_f64(), 15.0, " s");
    let agents = heaviest.iter().filter(|(role, _)| role.starts_with("agent/"));
    let most = agents.map(|(_, memory)| memory.rss).fold(0.0, f64::max);
    bars.at_most("RSS of the heaviest agent", most, 25.0, " MiB");
}

/// From the start of the ADD that makes a node claim a block until the kernels of all other nodes have the block's route.
fn propagation(bars: &mut Bars) {
    let load = load();
    let mut file = tempfile::Builder::new()
        .suffix(".yaml")
        .tempfile()
        .expect("a file can be made");
    let pool = |name: &str, cidr: &str| {
        format!(
            "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: {name}}}\nspec: {{cidr: {cidr}, blockSize: {BLOCK_LEN}, ipipMode: Always}}\n"
        )
    };
    file.write_all(pool("small", "10.65.0.0/16").as_bytes())
        .expect("a file can be written");
    let path = file.path().to_string_lossy().into_owned();
    let lab = Lab::up("bench-routes", &["--pods-per-node", "0", "--from", &path]);
    let nodes: Vec<Netns> = lab
        .record
        .nodes
        .iter()
        .map(|node| Netns::open(&netns::path(&node.netns)).expect("the node's namespace"))
        .collect();
    let watches: Vec<Watch> = nodes.iter().map(Watch::start).collect();
    let (mut last, mut answers, mut pods, mut known) =
        (Times::default(), Times::default(), Vec::new(), BTreeSet::new());
    let mut lost = 0;
    for round in 0..(1 + CLAIMS_PER_NODE) * (1 << (32 - BLOCK_LEN)) {
        for (at, node) in lab.record.nodes.iter().enumerate() {
            let pod = Pod::new("routes", round * nodes.len() + at);
            let plugin = ours(&lab, node, &nodes[at]);
            let started = Instant::now();
            let (took, printed) = plugin.run("ADD", &pod);
            let block = block_of(&printed);
            // The first block was claimed for the tunnel's address, as the node started.
            if known.insert(block) && round > 0 {
                let others = watches.iter().enumerate().filter(|(other, _)| *other != at);
                let seen: Option<Vec<Instant>> = others.map(|(_, watch)| watch.wait_for(block)).collect();
                match seen.and_then(|seen| seen.into_iter().max()) {
                    Some(seen) => last.push(seen.saturating_duration_since(started)),
                    None => lost += 1,
                }
                answers.push(took);
            }
            pods.push((at, pod));
        }
    }
    println!(
        "| ADD that claims a block, until all other kernels have the route: p50, p99 of {} (load {load}) | {:.1} ms, {:.1} ms |",
        last.len(),
        ms(last.p50()),
        ms(last.p99())
    );
    println!(
        "| the same ADDs, until answered: p50, p99 | {:.1} ms, {:.1} ms |",
        ms(answers.p50()),
        ms(answers.p99())
    );
    bars.at_most("routes that did not come", f64::from(lost), 0.0, "");
    bars.at_most(
        "claims too few to judge by",
        30_usize.saturating_sub(last.len()) as f64,
        0.0,
        "",
    );
    bars.at_most("route propagation p50", ms(last.p50()), 100.0, " ms");
    bars.at_most("route propagation p99", ms(last.p99()), 100.0, " ms");
}

fn block_of(result: &str) -> Ipv4Net {
    let result: serde_json::Value = serde_json::from_str(result).expect("the plugin prints JSON");
    let address: Ipv4Addr = result["ips"][0]["address"]
        .as_str()
        .and_then(|net| net.split('/').next()?.parse().ok())
        .expect("the result has an IPv4 address");
    Ipv4Net::new(address, BLOCK_LEN).expect("the length fits").trunc()
}

/// A thread in a node's namespace that hears of every route as the kernel takes it.
struct Watch {
    routes: Receiver<(Instant, Ipv4Net)>,
}

impl Watch {
    fn start(node: &Netns) -> Watch {
        let (say, routes) = mpsc::channel();
        let (ready, begun) = mpsc::channel();
        let follow = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let mut kernel = LiveKernel::open().expect("a netlink socket");
                let mut events = kernel.events().expect("a subscription");
                let _ = ready.send(());
                while let Some(event) = events.next().await {
                    let KernelEvent::Route(route) = event else { continue };
                    if let (IpNet::V4(net), RouteTarget::Via(_)) = (route.key.destination, &route.target)
                        && say.send((Instant::now(), net)).is_err()
                    {
                        return;
                    }
                }
            });
        };
        // The thread ends with the process: nobody needs its end.
        drop(node.spawn("watch", follow).expect("a thread"));
        begun.recv().expect("the watch has begun");
        Watch { routes }
    }

    /// When the route came; `None` if it has not after ten seconds.
    fn wait_for(&self, block: Ipv4Net) -> Option<Instant> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match self
                .routes
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok((when, net)) if net == block => return Some(when),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
            }
        }
    }
}

/// Fifty nodes with two pods each. No bar for the time (a full mesh of 1,225 sessions on two cores), but they must come up.
fn crowd(bars: &mut Bars) {
    let load = load();
    let lab = match Lab::try_up("bench-crowd", &["--nodes", "50", "--pods-per-node", "2"]) {
        Ok(lab) => lab,
        Err(why) => {
            println!("| `lab up`, 50 nodes, 2 pods each (load {load}) | did not come up |\n{why}");
            return bars.at_most("labs of 50 nodes that did not come up", 1.0, 0.0, "");
        }
    };
    let agents = lab::processes::find(lab.folder.path())
        .into_iter()
        .filter(|(role, _)| role.starts_with("agent/"));
    let memory: Vec<Memory> = agents.map(|(_, pid)| Memory::of(pid.as_raw())).collect();
    let most = memory.iter().map(|memory| memory.rss).fold(0.0, f64::max);
    println!(
        "| `lab up`, 50 nodes, 2 pods each, every route everywhere (load {load}) | {:.1} s |",
        lab.took.as_secs_f64()
    );
    println!("| heaviest of its {} agents: RSS | {most:.1} MiB |", memory.len());
}
