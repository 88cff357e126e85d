//! Takes back what agents made in a node's kernel, and nothing else: for a node that leaves the cluster, or gets another agent.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use clap::Args;
use dataplane::Dataplane;
use dataplane::filter::TABLE;
use kernel::nft::{Change, NftError, TableName, Transaction};
use kernel::{IfName, KernelError, Link, Observation, Op, PROTOCOL_OURS, PolicyRule, Route, RouteKey, RouteTarget};
use linux::LiveKernel;
use linux::nft::LiveNft;

use crate::start::TUNNEL;
use crate::{AgentError, http, last_known};

/// Command line of `margay agent purge`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The pods' devices too: running pods lose their network
    #[arg(long)]
    pub pods: bool,

    /// Only say what would go
    #[arg(long)]
    pub dry_run: bool,

    /// Directory of the agent's sockets: none may answer there
    #[arg(long, env = "MARGAY_RUN_DIR", default_value = "/run/margay", value_name = "DIR")]
    pub run_dir: PathBuf,

    /// The agent's directory for what must survive a reboot
    #[arg(
        long,
        env = "MARGAY_STATE_DIR",
        default_value = "/var/lib/margay",
        value_name = "DIR"
    )]
    pub state_dir: PathBuf,

    /// First letters of the host side of pod interfaces
    #[arg(long, env = "FELIX_INTERFACEPREFIX", default_value = "cali", value_name = "PREFIX")]
    pub interface_prefix: String,
}

/// Every device of a pod that an agent made says so in its alias.
const POD_ALIAS: &str = "margay:";

/// Removes routes and rules of our protocol, the tunnel with its programs, and the packet filter's table; with `pods` the pods'
/// devices as well; and what was known of the cluster, from which an agent without its datastore would make all of it again.
///
/// Sysctls stay as they are: others may rely on them by now. So does the journal: container runtimes still detach their
/// pods. Prints what went, read from the kernel before and after. The error is the first of what did not work; the rest is
/// done all the same.
pub fn purge(options: &Options, out: &mut dyn Write) -> Result<(), AgentError> {
    let socket = http::socket(&options.run_dir);
    if UnixStream::connect(&socket).is_ok() {
        return Err(AgentError::Running(socket.display().to_string()));
    }
    let tunnel = IfName::from(TUNNEL);
    let mut kernel = LiveKernel::open()?;
    let known = last_known::path(&options.state_dir);
    let before = Seen::look(&mut kernel, &tunnel, &known)?;
    let ops = plan(&before.kernel, &options.interface_prefix, &tunnel, options.pods);
    let mut failed: Vec<AgentError> = Vec::new();
    let said = AgentError::io("standard output");
    let printed = if options.dry_run {
        let table = before.table.then(|| PACKET_FILTER.to_owned());
        let known = before.known.then(|| KNOWN.to_owned());
        let mut lines = ops.iter().map(shown).chain(table).chain(known);
        lines.try_for_each(|line| writeln!(out, "would remove {line}"))
    } else {
        let results = kernel.apply_now(&ops);
        failed.extend(results.into_iter().filter_map(Result::err).map(AgentError::from));
        if before.table {
            failed.extend(remove_table().err().map(AgentError::from));
        }
        if before.known {
            let what = format!("file {}", known.display());
            failed.extend(fs::remove_file(&known).map_err(AgentError::io(what)).err());
        }
        let after = Seen::look(&mut kernel, &tunnel, &known)?;
        print(&before, &after, out)
    };
    match printed {
        // Who no longer reads what went is no reason for an error.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => return Err(said(error)),
        _ => {}
    }
    match failed.into_iter().next() {
        None => Ok(()),
        Some(error) => Err(error),
    }
}

/// How the table is called when it goes.
const PACKET_FILTER: &str = "nf_tables table inet calico";

/// How the file of what was known is called when it goes.
const KNOWN: &str = "what was known of the cluster";

fn remove_table() -> Result<(), KernelError> {
    let broken = |error: NftError| KernelError::Broken(error.to_string());
    let transaction = Transaction {
        table: TableName(TABLE.to_owned()),
        changes: vec![Change::DeleteTable],
    };
    let nft = LiveNft::open().map_err(broken)?;
    nft.apply_now(&transaction).map(drop).map_err(broken)
}

/// What there is: the kernel's objects, the tunnel's programs, the packet filter, the file of what was known.
struct Seen {
    kernel: Observation,
    programs: Vec<u32>,
    table: bool,
    known: bool,
}

impl Seen {
    fn look(kernel: &mut LiveKernel, tunnel: &IfName, known: &Path) -> Result<Self, KernelError> {
        Ok(Self {
            kernel: kernel.observe_now(tunnel)?,
            programs: linux::ipip::programs(tunnel)?,
            // A kernel without nf_tables has no table either.
            table: LiveNft::open()
                .and_then(|nft| nft.read_now(&TableName(TABLE.to_owned())))
                .is_ok_and(|table| table.is_some()),
            known: known.exists(),
        })
    }
}

/// What is ours, in the order in which it can go.
fn plan(seen: &Observation, prefix: &str, tunnel: &IfName, pods: bool) -> Vec<Op> {
    let mut dataplane = Dataplane::new(dataplane::Config {
        interface_prefix: prefix.to_string(),
        tunnel: tunnel.clone(),
        ..dataplane::Config::new("", None)
    });
    dataplane.observed(seen.clone());
    let mut ops = dataplane.purge();
    // A tunnel that does not work any more is not seen as one; removing it touches nothing that is not ours.
    let remove = Op::RemoveTunnel(tunnel.clone());
    if seen.tunnel.is_none() && seen.links.contains_key(tunnel) && !used_by_others(seen, tunnel) {
        ops.push(remove);
    }
    let rules = seen.rules.iter().filter(|rule| rule.protocol == PROTOCOL_OURS);
    ops.extend(rules.cloned().map(Op::RemoveRule));
    if pods {
        let ours = |link: &&Link| {
            let labelled = link.alias.as_deref().is_some_and(|alias| alias.starts_with(POD_ALIAS));
            labelled && link.name.0.starts_with(prefix)
        };
        ops.extend(
            seen.links
                .values()
                .filter(ours)
                .map(|link| Op::RemoveLink(link.name.clone())),
        );
    }
    ops
}

fn used_by_others(seen: &Observation, device: &IfName) -> bool {
    let uses = |target: &RouteTarget| match target {
        RouteTarget::Link { device: used } => used == device,
        RouteTarget::Via(hops) => hops.iter().any(|hop| &hop.device == device),
        _ => false,
    };
    let foreign = |route: &&Route| !matches!(route.protocol, PROTOCOL_OURS | PROTOCOL_KERNEL);
    seen.routes.values().filter(foreign).any(|route| uses(&route.target))
}

/// RTPROT_KERNEL: what comes and goes with a device's addresses.
const PROTOCOL_KERNEL: u8 = 2;

fn print(before: &Seen, after: &Seen, out: &mut dyn Write) -> std::io::Result<()> {
    let ours = |seen: &Observation| -> BTreeMap<RouteKey, Route> {
        let ours = seen.routes.iter().filter(|(_, route)| route.protocol == PROTOCOL_OURS);
        ours.map(|(key, route)| (key.clone(), route.clone())).collect()
    };
    let (was, is) = (&before.kernel, &after.kernel);
    let left = ours(is);
    let mut lines: Vec<String> = Vec::new();
    for (key, route) in ours(was).iter().filter(|(key, _)| !left.contains_key(*key)) {
        lines.push(format!("route {}{}", key.destination, towards(&route.target)));
    }
    let rules: BTreeSet<&PolicyRule> = was.rules.difference(&is.rules).collect();
    lines.extend(rules.into_iter().map(rule));
    let attached: BTreeSet<u32> = after.programs.iter().copied().collect();
    let programs = before.programs.iter().filter(|number| !attached.contains(number));
    lines.extend(programs.map(|number| format!("BPF program {number}")));
    let gone = was.links.keys().filter(|name| !is.links.contains_key(*name));
    lines.extend(gone.map(|name| format!("device {name}")));
    let shapers = was.shapers.keys().filter(|key| !is.shapers.contains_key(key));
    lines.extend(shapers.map(ToString::to_string));
    if before.table && !after.table {
        lines.push(PACKET_FILTER.to_owned());
    }
    if before.known && !after.known {
        lines.push(KNOWN.to_owned());
    }
    if was.tunnel.is_some() && is.tunnel.is_none() && is.links.contains_key(&IfName::from(TUNNEL)) {
        lines.push(format!(
            "what was set up on {TUNNEL}; the kernel keeps the device itself"
        ));
    }
    if lines.is_empty() {
        return writeln!(out, "nothing of an agent is in this kernel");
    }
    lines.iter().try_for_each(|line| writeln!(out, "removed {line}"))
}

fn shown(op: &Op) -> String {
    match op {
        Op::RemoveRoute(key, _) => format!("route {}", key.destination),
        Op::RemoveTunnel(name) => format!("{name} with its BPF programs"),
        Op::RemoveRule(removed) => rule(removed),
        Op::RemoveLink(name) => format!("device {name}"),
        Op::RemoveShaper(key) => key.to_string(),
        other => format!("{other:?}"),
    }
}

fn rule(rule: &PolicyRule) -> String {
    format!("rule {} to table {}", rule.priority, rule.table)
}

fn towards(target: &RouteTarget) -> String {
    match target {
        RouteTarget::Link { device } => format!(" dev {device}"),
        RouteTarget::Via(hops) => hops
            .iter()
            .map(|hop| format!(" via {} dev {}", hop.gateway, hop.device))
            .collect(),
        RouteTarget::Blackhole => " blackhole".into(),
        RouteTarget::Unreachable | RouteTarget::Prohibit | RouteTarget::Other(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use kernel::{Direction, IpFamily, ShaperKey, TABLE_MAIN};

    use super::*;

    fn link(name: &str, alias: Option<&str>) -> (IfName, Link) {
        let link = Link {
            index: 1,
            name: name.into(),
            kind: "veth".into(),
            mtu: 1500,
            up: true,
            carrier: true,
            mac: None,
            alias: alias.map(str::to_string),
            master: None,
        };
        (link.name.clone(), link)
    }

    fn route(net: &str, device: &str, protocol: u8) -> (RouteKey, Route) {
        let key = RouteKey {
            table: TABLE_MAIN,
            destination: net.parse().unwrap(),
            metric: 0,
        };
        let route = Route {
            key: key.clone(),
            target: RouteTarget::Link { device: device.into() },
            protocol,
            source: None,
        };
        (key, route)
    }

    fn rule_of(protocol: u8) -> PolicyRule {
        PolicyRule {
            family: IpFamily::V4,
            priority: 100 + u32::from(protocol),
            mark: None,
            invert: false,
            table: 9,
            protocol,
        }
    }

    fn check(seen: &Observation, pods: bool, expected: &[&str]) {
        let ops = plan(seen, "cali", &"tunl0".into(), pods);
        assert_eq!(ops.iter().map(shown).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn exactly_what_is_ours_goes() {
        let shaper = ShaperKey {
            device: "cali1".into(),
            direction: Direction::Egress,
        };
        let mut seen = Observation {
            links: BTreeMap::from([
                link("ens33", None),
                link("cali1", Some("margay:c1/eth0")),
                link("cali2", Some("somebody")),
                link("cali3", None),
                link("veth9", Some("margay:c1/eth0")),
                link("tunl0", Some("margay ipip over ens33")),
            ]),
            routes: BTreeMap::from([
                route("192.168.0.1/32", "cali1", PROTOCOL_OURS),
                route("192.168.0.2/32", "cali2", 3),
                route("fd00::1/128", "cali1", PROTOCOL_OURS),
                route("10.0.0.0/24", "tunl0", PROTOCOL_OURS),
            ]),
            rules: BTreeSet::from([rule_of(PROTOCOL_OURS), rule_of(2)]),
            shapers: BTreeMap::from([(shaper.clone(), None)]),
            ..Observation::default()
        };
        let routes = ["route 10.0.0.0/24", "route 192.168.0.1/32", "route fd00::1/128"];
        let rest = [
            "bandwidth from cali1",
            "tunl0 with its BPF programs",
            "rule 180 to table 9",
        ];
        check(&seen, false, &[&routes[..], &rest].concat());
        check(&seen, true, &[&routes[..], &rest, &["device cali1"]].concat());
        // Others' routes keep the tunnel.
        seen.routes.extend([route("10.9.0.0/24", "tunl0", 4)]);
        check(&seen, false, &[&routes[..], &[rest[0], rest[2]]].concat());
        check(&Observation::default(), true, &[]);
    }
}
