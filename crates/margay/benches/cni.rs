//! CNI ADD and DEL: ours, Debian's `ptp` with `host-local`, the netlink floor and a process that does nothing, by turns.
//! Needs root and `floor_plugin`; `tools/bench` prepares all.
//!
//!     cargo bench -p margay --bench cni
#![allow(clippy::expect_used, reason = "not production code")]

mod support;

use std::process::ExitCode;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use linux::netns::{self, Netns};
use support::{Bars, Lab, Plugin, Pod, Times, ms};

const ROUNDS: usize = 100;
const WARM_UP: usize = 5;
const AT_ONCE: usize = 100;

/// One kind of plugin and what was measured of it.
struct Contender<'a> {
    name: &'static str,
    plugin: Plugin<'a>,
    add: Times,
    del: Times,
}

fn main() -> ExitCode {
    if !support::is_root() {
        return ExitCode::SUCCESS;
    }
    let load = support::load();
    // One node: on a real cluster the other agents run on other machines.
    let lab = Lab::up("bench-cni", &["--nodes", "1", "--pods-per-node", "0"]);
    let node = &lab.record.nodes[0];
    let netns = Netns::open(&netns::path(&node.netns)).expect("the node has a namespace");
    let leases = std::env::temp_dir().join(format!("margay-bench-leases-{}", std::process::id()));
    let ptp = serde_json::json!({
        "cniVersion": "1.0.0", "name": "bench-ptp", "type": "ptp",
        "ipam": {"type": "host-local", "subnet": "10.77.0.0/16", "routes": [{"dst": "0.0.0.0/0"}], "dataDir": leases},
    });
    let contender = |name, plugin| Contender {
        name,
        plugin,
        add: Times::default(),
        del: Times::default(),
    };
    let mut contenders = [
        contender("margay", support::ours(&lab, node, &netns)),
        contender(
            "floor",
            Plugin {
                program: support::floor_program(),
                config: String::new(),
                node: &netns,
            },
        ),
        contender(
            "ptp",
            Plugin {
                program: format!("{}/ptp", support::STOCK).into(),
                config: ptp.to_string(),
                node: &netns,
            },
        ),
        contender(
            "no-op",
            Plugin {
                program: "/bin/true".into(),
                config: String::new(),
                node: &netns,
            },
        ),
    ];
    one_after_another(&mut contenders);
    let first = contenders[0].add.len();
    println!(
        "\nCNI, n = {first}, load {load}, ms\n\n| plugin | ADD best / p50 / p99 | DEL best / p50 / p99 |\n|---|---|---|"
    );
    for Contender { name, add, del, .. } in &contenders {
        let cell = |times: &Times| {
            format!(
                "{:.2} / {:.2} / {:.2}",
                ms(times.best()),
                ms(times.p50()),
                ms(times.p99())
            )
        };
        println!("| {name} | {} | {} |", cell(add), cell(del));
    }
    println!("\n| {AT_ONCE} ADDs at once | the last after, ms |\n|---|---|");
    let crowds: Vec<Duration> = contenders[..3].iter_mut().map(all_at_once).collect();
    for (contender, last) in contenders.iter().zip(&crowds) {
        println!("| {} | {:.0} |", contender.name, ms(*last));
    }
    println!();
    let [margay, floor, ptp, _] = &contenders;
    let ratio = |a: Duration, b: Duration| a.as_secs_f64() / b.as_secs_f64();
    let mut bars = Bars::default();
    bars.at_most("ADD p50 / floor", ratio(margay.add.p50(), floor.add.p50()), 1.5, "");
    bars.at_most("ADD p50 / ptp", ratio(margay.add.p50(), ptp.add.p50()), 0.35, "");
    bars.at_most("DEL p50 / floor", ratio(margay.del.p50(), floor.del.p50()), 1.1, "");
    bars.at_most("the last of 100 ADDs at once", crowds[0].as_secs_f64(), 1.0, " s");
    // What `host-local` remembers.
    let _ = std::fs::remove_dir_all(&leases);
    bars.exit()
}

/// ADD and DEL of each in turn, so that whatever else the machine does hits all alike; each round another begins.
fn one_after_another(contenders: &mut [Contender<'_>]) {
    for round in 0..WARM_UP + ROUNDS {
        let pods: Vec<Pod> = contenders.iter().map(|contender| pod(contender.name, round)).collect();
        let measure = |verb: &str, at: usize, contenders: &mut [Contender<'_>]| {
            let index = (at + round) % contenders.len();
            let contender = &mut contenders[index];
            let time = perform(contender, verb, &pods[index], round).0;
            if round >= WARM_UP {
                if verb == "ADD" {
                    contender.add.push(time)
                } else {
                    contender.del.push(time)
                }
            }
        };
        for verb in ["ADD", "DEL"] {
            for at in 0..contenders.len() {
                measure(verb, at, contenders);
            }
        }
    }
}

/// From the first start to the last end of so many ADDs.
fn all_at_once(contender: &mut Contender<'_>) -> Duration {
    let pods: Vec<Pod> = (0..AT_ONCE).map(|number| pod(contender.name, number)).collect();
    let (contender, ready) = (&*contender, Barrier::new(AT_ONCE + 1));
    let started = std::thread::scope(|scope| {
        for (number, pod) in pods.iter().enumerate() {
            let ready = &ready;
            scope.spawn(move || {
                ready.wait();
                perform(contender, "ADD", pod, number)
            });
        }
        ready.wait();
        Instant::now()
    });
    let took = started.elapsed();
    for (number, pod) in pods.iter().enumerate() {
        perform(contender, "DEL", pod, number);
    }
    took
}

fn perform(contender: &Contender<'_>, verb: &str, pod: &Pod, number: usize) -> (Duration, String) {
    if contender.name != "floor" {
        return contender.plugin.run(verb, pod);
    }
    let config = format!(r#"{{"address":"10.78.{}.{}"}}"#, number / 250, number % 250 + 1);
    let Plugin { program, node, .. } = &contender.plugin;
    Plugin {
        program: program.clone(),
        config,
        node,
    }
    .run(verb, pod)
}

fn pod(kind: &str, number: usize) -> Pod {
    Pod::new(kind, number)
}
