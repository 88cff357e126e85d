//! The node itself: kernel, sysctls, routes, other network plugins, ports.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use ipnet::IpNet;
use kernel::nft::TableName;
use linux::nft::LiveNft;

use super::Outcome::{Failed, Ok as Fine, Warning};
use super::{Check, routes};
use crate::settings::{Encapsulation, Settings, Work};

/// Kernel features, whatever is going to be installed.
pub(super) fn features() -> Vec<Check> {
    let mut list = vec![
        ipip(linux::ipip::probe()),
        nf_tables(),
        bandwidth(linux::shaper::probe()),
    ];
    for family in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        let path = Path::new("/proc/sys/net").join(family);
        // A kernel without IPv6 can do without.
        if family.starts_with("ipv4") || path.exists() {
            list.push(forwarding(family, &path));
        }
    }
    list
}

/// All of them.
pub(super) fn checks(settings: &Settings, conf_dir: &Path) -> Vec<Check> {
    let mut list = Vec::new();
    let encapsulated = |pool: crate::Pool| pool.encapsulation != Encapsulation::None;
    if settings.ipv4.is_some_and(encapsulated) {
        list.push(ipip(linux::ipip::probe()));
    }
    list.push(nf_tables());
    list.push(bandwidth(linux::shaper::probe()));
    list.push(forwarding(
        "ipv4/ip_forward",
        Path::new("/proc/sys/net/ipv4/ip_forward"),
    ));
    if settings.ipv6.is_some() {
        let name = "ipv6/conf/all/forwarding";
        list.push(forwarding(name, &Path::new("/proc/sys/net").join(name)));
    }
    let pools = [
        settings.ipv4.map(|pool| pool.cidr.into()),
        settings.ipv6.map(IpNet::from),
    ];
    match routes::read() {
        Ok(seen) => list.extend(pools.into_iter().flatten().map(|pool| routes::check(pool, &seen))),
        Err(error) => list.push(Check::new("pod-cidr", Failed, error.to_string())),
    }
    if settings.work != Work::PolicyOnly {
        list.push(plugins(conf_dir));
        list.extend(keys(conf_dir));
    }
    // The agent's own ports are busy where it runs.
    if std::os::unix::net::UnixStream::connect("/run/margay/agent.sock").is_err() {
        if settings.work == Work::WithBgp {
            list.push(port("BGP", Ipv4Addr::UNSPECIFIED, 179));
        }
        list.push(port("health", Ipv4Addr::LOCALHOST, 9099));
    }
    list
}

fn ipip(probe: linux::ipip::Probe) -> Check {
    match probe.chosen {
        Some(flavour) => {
            let flavour = format!("{flavour:?}").to_lowercase();
            Check::new("ipip", Fine, format!("tunl0 will be {flavour}: {}", probe.why))
        }
        None => {
            let hint = "load the ipip module, use a kernel with BPF, or install with --encapsulation None";
            Check::new("ipip", Failed, format!("{}: {hint}", probe.why))
        }
    }
}

fn nf_tables() -> Check {
    let table = TableName(dataplane::filter::TABLE.to_owned());
    match LiveNft::open().and_then(|nft| nft.read_now(&table)) {
        Ok(_) => Check::new("nf_tables", Fine, "the kernel answers"),
        Err(error) => Check::new(
            "nf_tables",
            Failed,
            format!("{error}: policy cannot be enforced; run as root, load nf_tables"),
        ),
    }
}

/// Only pods that ask for a bandwidth need it.
fn bandwidth(probe: Result<(), kernel::KernelError>) -> Check {
    match probe {
        Ok(()) => Check::new("bandwidth", Fine, "the kernel has queues for it"),
        Err(error) => Check::new(
            "bandwidth",
            Warning,
            format!(
                "{error}: pods cannot be held to a bandwidth; load sch_tbf, ifb, cls_u32 and act_mirred if they are to be"
            ),
        ),
    }
}

/// A switch for forwarding: the agent turns it on with its first route, if it may.
fn forwarding(name: &str, path: &Path) -> Check {
    let value = fs::read_to_string(path);
    let writable = fs::OpenOptions::new().write(true).open(path);
    match (value, writable) {
        (Ok(value), Ok(_)) => Check::new(
            "forwarding",
            Fine,
            format!("net/{name} is {}; the agent sets it to 1", value.trim()),
        ),
        (Ok(value), Err(_)) if value.trim() == "1" => Check::new(
            "forwarding",
            Warning,
            format!("net/{name} is 1 but cannot be written by this user"),
        ),
        (Ok(_), Err(error)) | (Err(error), _) => {
            Check::new("forwarding", Failed, format!("net/{name} cannot be set: {error}"))
        }
    }
}

/// Container runtimes use the first configuration by name.
fn plugins(dir: &Path) -> Check {
    let names = match fs::read_dir(dir) {
        Ok(entries) => entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Check::new("plugins", Failed, format!("{}: {error}", dir.display())),
    };
    let ours = fs::read(dir.join(cni::install::CONFLIST)).is_ok_and(|bytes| cni::install::is_our_conflist(&bytes));
    judge(names, ours)
}

fn judge(mut names: Vec<String>, ours: bool) -> Check {
    let ending = |name: &String| [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end));
    names.retain(ending);
    names.sort();
    let conflist = cni::install::CONFLIST;
    let (own, others): (Vec<String>, Vec<String>) = names.into_iter().partition(|name| name == conflist);
    let first: Vec<&String> = others.iter().filter(|name| name.as_str() < conflist).collect();
    if let Some(name) = first.first() {
        return Check::new(
            "plugins",
            Failed,
            format!("{name} comes before {conflist}, so pods get that network: remove it"),
        );
    }
    if !own.is_empty() && !ours {
        return Check::new(
            "plugins",
            Warning,
            format!(
                "{conflist} is Calico's: installing replaces it, and keeps it as {conflist}{} until uninstalling",
                cni::install::KEPT
            ),
        );
    }
    match others.as_slice() {
        [] => Check::new("plugins", Fine, "no other network is configured"),
        some => Check::new(
            "plugins",
            Warning,
            format!("{} stays, but {conflist} comes first", some.join(", ")),
        ),
    }
}

/// What the configuration that is there says without effect. `None`: nothing.
fn keys(dir: &Path) -> Option<Check> {
    let name = cni::install::CONFLIST;
    let list: serde_json::Value = serde_json::from_slice(&fs::read(dir.join(name)).ok()?).ok()?;
    let is_calico = |plugin: &&serde_json::Value| plugin["type"] == "calico";
    let told: Vec<String> = list["plugins"]
        .as_array()?
        .iter()
        .filter(is_calico)
        .flat_map(cni::config::unheeded)
        .collect();
    (!told.is_empty()).then(|| Check::new("keys", Warning, format!("{name}: {}", told.join("; "))))
}

fn port(name: &str, address: Ipv4Addr, port: u16) -> Check {
    match TcpListener::bind((address, port)) {
        Ok(_) => Check::new("port", Fine, format!("{port}, for {name}, is free")),
        Err(error) => Check::new(
            "port",
            Failed,
            format!("{port}, for {name}: {error}: does another agent or BGP daemon run?"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_configuration_by_name_counts() {
        let check = |names: &[&str], ours: bool, expected: super::super::Outcome| {
            let got = judge(names.iter().map(|name| name.to_string()).collect(), ours);
            assert_eq!(got.outcome, expected, "{names:?}: {}", got.reason);
        };
        check(&[], false, Fine);
        check(&["README", "05-x.conflist.bak"], false, Fine);
        check(&["10-calico.conflist"], true, Fine);
        check(&["10-calico.conflist"], false, Warning);
        check(&["10-flannel.conflist"], false, Warning);
        check(&["05-cilium.conflist"], false, Failed);
        check(&["00-multus.conf", "10-calico.conflist"], true, Failed);
    }

    #[test]
    fn keys_without_effect_are_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let check = |list: &str, expected: Option<&str>| {
            fs::write(dir.path().join(cni::install::CONFLIST), list).expect("a file");
            assert_eq!(
                keys(dir.path()).map(|check| check.reason).as_deref(),
                expected,
                "{list}"
            );
        };
        check(
            r#"{"plugins": [{"type": "calico", "num_queues": 1}, {"type": "portmap", "mode": "x"}]}"#,
            None,
        );
        check(
            r#"{"plugins": [{"type": "calico", "num_queues": 4}]}"#,
            Some("10-calico.conflist: num_queues: `4` has no effect: a pod's interface has one queue"),
        );
        check("{", None);
    }
}
