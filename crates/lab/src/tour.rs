//! A walk along a packet's way. Every line that is not explanation is read from the kernel or the agents while it is shown,
//! by the very commands that the reader can repeat.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ctl::command::{Command as Ctl, Format, GetArgs};
use futures::FutureExt;
use kernel::IpFamily;

use crate::capture::Tap;
use crate::cluster;
use crate::icmp::{self, Echo, Replies};
use crate::network::{UNDERLAY, inside};
use crate::record::{DEFAULT_NAME, Folder, PodRecord, Record};
use crate::{LabError, arp, exec, status};

/// Walks through the running lab.
pub fn walk(folder: &Folder, out: &mut dyn Write) -> Result<(), LabError> {
    let record = folder.read()?;
    if !record.complete {
        return Err(LabError::NotUp);
    }
    let stops = Stops::choose(&record)?;
    let mut tour = Tour {
        folder,
        record: &record,
        stops,
        out,
        step: 0,
    };
    tour.name()?;
    tour.nodes()?;
    tour.pods()?;
    tour.inside_a_pod()?;
    tour.the_pods_routes()?;
    tour.the_gateway()?;
    tour.the_nodes_routes()?;
    tour.sessions()?;
    tour.ping_beside()?;
    tour.ping_across()?;
    tour.what_next()
}

/// The pods that the tour visits: one, one beside it, one on another node.
struct Stops {
    here: PodRecord,
    beside: Option<PodRecord>,
    far: Option<PodRecord>,
}

impl Stops {
    fn choose(record: &Record) -> Result<Self, LabError> {
        let shared = |pod: &&PodRecord| {
            record
                .pods
                .iter()
                .any(|other| other.node == pod.node && other.name != pod.name)
        };
        let first = record.pods.iter().find(shared).or(record.pods.first());
        let here = first.cloned().ok_or_else(|| LabError::NotReady {
            what: "a tour".into(),
            why: "the lab has no pods; add one with `margay lab pod add NAME --node NODE`".into(),
        })?;
        let beside = record
            .pods
            .iter()
            .find(|pod| pod.node == here.node && pod.name != here.name)
            .cloned();
        let far = record.pods.iter().find(|pod| pod.node != here.node).cloned();
        Ok(Self { here, beside, far })
    }
}

struct Tour<'a> {
    folder: &'a Folder,
    record: &'a Record,
    stops: Stops,
    out: &'a mut dyn Write,
    step: usize,
}

impl Tour<'_> {
    /// Commands below are shown as for the default lab.
    fn name(&mut self) -> Result<(), LabError> {
        match self.folder.name.as_str() {
            DEFAULT_NAME => Ok(()),
            name => self.line(&format!(
                "To repeat the commands below, first: export MARGAY_LAB={name}"
            )),
        }
    }

    fn nodes(&mut self) -> Result<(), LabError> {
        let count = self.record.nodes.len();
        self.title("Nodes")?;
        self.explain(&format!(
            "Each of the {count} nodes is a network namespace with one network card, {UNDERLAY}, on a common fabric. Each runs \
             an agent. Interfaces of the node that runs {}:",
            self.stops.here.name
        ))?;
        let node = self.stops.here.node.clone();
        self.run(&node, &["ip", "-brief", "address"])
    }

    fn pods(&mut self) -> Result<(), LabError> {
        self.title("Pods, as the datastore knows them")?;
        let blocks = self.for_families("/26", "/122");
        self.explain(&format!(
            "An address comes from a {blocks} block that the pod's node has claimed. INTERFACE is the node's end of the pod's link."
        ))?;
        self.command("calicoctl get workloadEndpoint -o wide -A")?;
        let get = Ctl::Get(GetArgs {
            kind: Some("workloadendpoint".into()),
            names: Vec::new(),
            output: Format::Wide,
            namespace: "default".into(),
            all_namespaces: true,
            filename: None,
            export: false,
            run_dir: self.folder.run_dir(&self.stops.here.node),
        });
        self.ctl(&get)
    }

    fn inside_a_pod(&mut self) -> Result<(), LabError> {
        let pod = self.stops.here.clone();
        self.title(&format!("Inside pod {}", pod.name))?;
        let lengths = self.for_families("/32", "/128");
        self.explain(&format!(
            "The pod has one interface with a {lengths}: nobody is its neighbour."
        ))?;
        if pod.address(IpFamily::V4).is_some() {
            self.explain("Where IP-in-IP is used, its MTU leaves room for the outer header (20 bytes).")?;
        }
        self.run(&pod.name, &["ip", "address", "show", "eth0"])?;
        self.explain("peer_ifindex is the number of the node's end, which the pods' table named:")?;
        self.run(&pod.name, &["ethtool", "-S", "eth0"])?;
        let device = pod.host_device.clone().unwrap_or_default();
        self.run(&pod.node, &["ip", "link", "show", &device])
    }

    fn the_pods_routes(&mut self) -> Result<(), LabError> {
        let pod = self.stops.here.clone();
        self.title("The pod's routes")?;
        if pod.address(IpFamily::V4).is_some() {
            self.explain("Everything goes to 169.254.1.1, an address that no machine has. The node answers for it.")?;
            self.run(&pod.name, &["ip", "route"])?;
        }
        if pod.address(IpFamily::V6).is_some() {
            self.explain(
                "In IPv6 everything goes to the link-local address that follows from the MAC of the node's end.",
            )?;
            self.run(&pod.name, &["ip", "-6", "route"])?;
        }
        Ok(())
    }

    fn the_gateway(&mut self) -> Result<(), LabError> {
        let pod = self.stops.here.clone();
        let Some(IpAddr::V4(own)) = pod.address(IpFamily::V4) else {
            return Ok(());
        };
        self.title("Who answers for 169.254.1.1")?;
        self.explain(
            "The pod asks by ARP; the node's end of the link answers at once, with proxy ARP and its own MAC:",
        )?;
        let answer = inside(&pod.netns, || {
            arp::who_has("eth0", own, GATEWAY, Duration::from_secs(2))
        })?;
        let answer = answer.map_err(LabError::io("asking by ARP"))?;
        match answer {
            Some((mac, time)) => {
                self.line(&format!("  {own} asked: who has {GATEWAY}?"))?;
                self.line(&format!(
                    "  answer: {GATEWAY} is at {mac}, after {:.3} ms",
                    time.as_secs_f64() * 1000.0
                ))?;
            }
            None => self.line("  no answer within 2 s")?,
        }
        self.explain("The pod need not even ask: it has a permanent entry, so its first packet waits for nothing.")?;
        self.run(&pod.name, &["ip", "neighbour"])
    }

    fn the_nodes_routes(&mut self) -> Result<(), LabError> {
        let node = self.stops.here.node.clone();
        let families = self.record.families();
        self.title(&format!("Routes of node {node}"))?;
        if families.contains(&IpFamily::V4) {
            self.explain(
                "A /32 to each of its own pods; `blackhole` for the rest of its own block, so that packets to addresses nobody \
                 has end here; the other nodes' blocks through tunl0, onlink: the next hop is the node that owns the block.",
            )?;
            self.run(&node, &["ip", "route"])?;
        }
        if families.contains(&IpFamily::V6) {
            self.explain(
                "IPv6: a /128 to each of its own pods, `blackhole` for the rest of its block; other nodes' blocks go straight to \
                 their nodes, in no tunnel.",
            )?;
            self.run(&node, &["ip", "-6", "route"])?;
        }
        Ok(())
    }

    fn sessions(&mut self) -> Result<(), LabError> {
        let node = self.stops.here.node.clone();
        self.title("How the routes came: BGP")?;
        self.explain("Every node peers with every other and announces its blocks. The agent speaks BGP itself.")?;
        self.command(&format!("margay lab exec {node} -- calicoctl node status"))?;
        let record = self.record.node(&node)?;
        match status::report(self.folder, record) {
            Some(report) => ctl::node_status::text(&report, self.out).map_err(LabError::io("standard output")),
            None => self.line("the agent does not answer"),
        }
    }

    fn ping_beside(&mut self) -> Result<(), LabError> {
        let Some(beside) = self.stops.beside.clone() else {
            return Ok(());
        };
        let here = self.stops.here.clone();
        self.title(&format!("Ping on one node: {} to {}", beside.name, here.name))?;
        self.explain(
            "Both hang off the same node, yet the packet is routed, not bridged: TTL falls from 64 to 63 on the way.",
        )?;
        self.command(&format!("margay lab ping {} {}", beside.name, here.name))?;
        let replies = self.ping(&beside, self.record.first_address(&here.name)?)?;
        self.replies(&replies)
    }

    fn ping_across(&mut self) -> Result<(), LabError> {
        for family in self.record.families() {
            let (here, far) = (self.stops.here.clone(), self.stops.far.clone());
            let Some(far) = far else { continue };
            if let (Some(from), Some(to)) = (here.address(family), far.address(family)) {
                self.ping_between(&here, &far, from, to)?;
            }
        }
        Ok(())
    }

    fn ping_between(&mut self, here: &PodRecord, far: &PodRecord, from: IpAddr, to: IpAddr) -> Result<(), LabError> {
        let (near_node, far_node) = (
            self.record.node(&here.node)?.clone(),
            self.record.node(&far.node)?.clone(),
        );
        let (which, flag) = if from.is_ipv4() {
            ("", "")
        } else {
            (" with IPv6", " -6")
        };
        self.title(&format!("Ping across nodes{which}: {} to {}", here.name, far.name))?;
        // The first hop of the route to the other pod's address is the truth; pools may say otherwise meanwhile.
        let route = exec::output(self.folder, &near_node.name, &["ip", "route", "get", &to.to_string()])?;
        let tunnel = if route.contains("dev tunl0") { "tunl0 -> " } else { "" };
        let host_device = |pod: &PodRecord| pod.host_device.clone().unwrap_or_default();
        self.explain(&format!(
            "eth0 of {} -> {} -> {tunnel}{UNDERLAY} of {} -> {UNDERLAY} of {} -> {tunnel}{} -> eth0 of {}. Captured on {UNDERLAY} of {}:",
            here.name,
            host_device(here),
            near_node.name,
            far_node.name,
            host_device(far),
            far.name,
            near_node.name
        ))?;
        self.command(&format!(
            "margay lab ping {} {}{flag}; margay lab capture {}",
            here.name, far.name, near_node.name
        ))?;
        let tap = Tap::open(&near_node.netns, UNDERLAY)?;
        let replies = self.ping(here, to)?;
        for (source, destination) in [(from, to), (to, from)] {
            let wanted = |captured: &crate::capture::Captured| {
                let innermost = captured.packet.innermost();
                innermost.source == source && innermost.destination == destination
            };
            match tap.find(Duration::from_secs(2), wanted) {
                Some(captured) => {
                    let direction = if captured.outgoing { "leaves" } else { "comes in" };
                    self.line(&format!("  {direction}:"))?;
                    captured
                        .packet
                        .lines()
                        .iter()
                        .try_for_each(|line| self.line(&format!("    {line}")))?;
                }
                None => self.line(&format!(
                    "  no packet from {source} to {destination} was seen on {UNDERLAY}"
                ))?,
            }
        }
        self.replies(&replies)
    }

    /// What goes for the families that the lab has.
    fn for_families(&self, v4: &str, v6: &str) -> String {
        let of = |family: &IpFamily| match family {
            IpFamily::V4 => format!("{v4} (IPv4)"),
            IpFamily::V6 => format!("{v6} (IPv6)"),
        };
        match self.record.families().as_slice() {
            [IpFamily::V4] => v4.to_string(),
            [IpFamily::V6] => v6.to_string(),
            both => both.iter().map(of).collect::<Vec<_>>().join(" or "),
        }
    }

    fn what_next(&mut self) -> Result<(), LabError> {
        self.title("Look further")?;
        let (pod, node) = (self.stops.here.name.clone(), self.stops.here.node.clone());
        for line in [
            "  margay lab status                                   nodes, sessions, pods".to_string(),
            format!("  margay lab exec {pod} -- bash                       a shell in a pod; nodes work too"),
            format!("  margay lab capture {node}                 packets as they pass"),
            format!("  margay lab logs {node} -f                 what its agent says"),
            format!("  margay lab agent kill {node}              does a running ping notice?"),
            "  eval \"$(margay lab env)\"; calicoctl get ippool -o yaml   the command line on the lab's datastore"
                .to_string(),
            "  margay lab down                                     take it down; nothing is left behind".to_string(),
        ] {
            self.line(&line)?;
        }
        Ok(())
    }

    fn ping(&mut self, from: &PodRecord, target: IpAddr) -> Result<Replies, LabError> {
        let echo = Echo {
            target,
            count: 3,
            interval: Duration::from_millis(100),
            patience: Duration::from_secs(1),
        };
        inside(&from.netns, || icmp::ping(&echo, &mut |_| {}))?.map_err(LabError::io("sending echo requests"))
    }

    fn replies(&mut self, replies: &Replies) -> Result<(), LabError> {
        for reply in &replies.replies {
            let time = reply.time.as_secs_f64() * 1000.0;
            self.line(&format!(
                "  {} bytes: seq={} ttl={} time={time:.3} ms",
                reply.length, reply.sequence, reply.ttl
            ))?;
        }
        self.line(&format!("  {} sent, {} lost", replies.sent, replies.lost()))
    }

    fn ctl(&mut self, command: &Ctl) -> Result<(), LabError> {
        cluster::runtime()?.block_on(async {
            let store = cluster::store(self.folder).await?;
            let connect = || futures::future::ready(Ok(store.clone())).boxed();
            let done = ctl::command::perform(command, &connect, self.out).await;
            done.map_err(|error| LabError::Refused(error.to_string()))
        })
    }

    /// Runs a program where a pod or node is and shows what it printed.
    fn run(&mut self, place: &str, command: &[&str]) -> Result<(), LabError> {
        self.command(&format!("margay lab exec {place} -- {}", command.join(" ")))?;
        let text = match exec::output(self.folder, place, command) {
            Ok(text) => text,
            // The tour goes on without a tool that the machine lacks.
            Err(LabError::Io { what, source }) if source.kind() == io::ErrorKind::NotFound => {
                format!("({what}: not installed)")
            }
            Err(error) => return Err(error),
        };
        text.lines()
            .try_for_each(|line| self.line(&format!("  {}", line.trim_end())))
    }

    fn title(&mut self, title: &str) -> Result<(), LabError> {
        self.step += 1;
        let step = self.step;
        self.line("")?;
        self.line(&format!("{step}. {title}"))?;
        self.line(&"-".repeat(title.len() + 3))
    }

    fn explain(&mut self, text: &str) -> Result<(), LabError> {
        let mut line = String::new();
        for word in text.split(' ') {
            if !line.is_empty() && line.len() + word.len() >= 100 {
                self.line(&line)?;
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        self.line(&line)
    }

    fn command(&mut self, command: &str) -> Result<(), LabError> {
        self.line(&format!("$ {command}"))
    }

    fn line(&mut self, line: &str) -> Result<(), LabError> {
        writeln!(self.out, "{line}").map_err(LabError::io("standard output"))
    }
}

const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
