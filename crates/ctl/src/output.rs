//! Tables as upstream prints them, and resources as documents.

use std::io::{self, Write};

use api::{Kind, Order, Resource};

/// Prints columns three spaces apart, as upstream's tool does; an empty line ends the table.
pub fn columns(out: &mut dyn Write, rows: &[Vec<String>]) -> io::Result<()> {
    let widths: Vec<usize> = widths(rows).into_iter().map(|width| (width + 3).max(5)).collect();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        writeln!(out, "{}", cells.collect::<String>())?;
    }
    writeln!(out)
}

/// Prints a table with borders, as upstream's `ipam show` and `node status` do: headings in the middle, numbers to the
/// right, all else to the left.
pub fn grid(out: &mut dyn Write, rows: &[Vec<String>]) -> io::Result<()> {
    let widths = widths(rows);
    let border: String = widths
        .iter()
        .map(|width| format!("+{}", "-".repeat(width + 2)))
        .collect();
    writeln!(out, "{border}+")?;
    for (number, row) in rows.iter().enumerate() {
        let cell = |(text, width): (&String, &usize)| match (number, text.parse::<f64>()) {
            (0, _) => format!("| {text:^width$} "),
            (_, Ok(_)) => format!("| {text:>width$} "),
            (_, Err(_)) => format!("| {text:<width$} "),
        };
        writeln!(out, "{}|", row.iter().zip(&widths).map(cell).collect::<String>())?;
        if number == 0 {
            writeln!(out, "{border}+")?;
        }
    }
    // Without rows the line below the headings is the last one.
    if rows.len() > 1 {
        writeln!(out, "{border}+")?;
    }
    Ok(())
}

/// Width of each column in characters.
fn widths(rows: &[Vec<String>]) -> Vec<usize> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell: &String| cell.chars().count())
            .max()
    };
    (0..columns).map(|column| width(column).unwrap_or(0)).collect()
}

/// A count in at most five digits, with an exponent if it has more (C's `%.5g`).
pub fn five_digits(count: u128) -> String {
    let rounded = format!("{:.4e}", count as f64);
    let (digits, exponent) = rounded.split_once('e').unwrap_or((&rounded, "0"));
    match exponent.parse::<usize>() {
        Ok(exponent) if exponent >= 5 => {
            let digits = digits.trim_end_matches('0').trim_end_matches('.');
            format!("{digits}e+{exponent:02}")
        }
        _ => count.to_string(),
    }
}

/// JSON for programs and people.
pub fn json(value: &impl serde::Serialize) -> String {
    // What is shown here has keys of text only, which is all that can go wrong.
    serde_json::to_string_pretty(value).expect("what is shown has a JSON form") + "\n"
}

/// The columns of a kind: upstream's, with more if `wide`.
pub fn headings(kind: Kind, wide: bool, all_namespaces: bool) -> Vec<&'static str> {
    let mut headings = match (kind, wide) {
        (Kind::IPPool, false) => vec!["NAME", "CIDR", "SELECTOR"],
        (Kind::IPPool, true) => {
            vec![
                "NAME",
                "CIDR",
                "NAT",
                "IPIPMODE",
                "VXLANMODE",
                "DISABLED",
                "DISABLEBGPEXPORT",
                "SELECTOR",
            ]
        }
        (Kind::BGPConfiguration, _) => vec!["NAME", "LOGSEVERITY", "MESHENABLED", "ASNUMBER"],
        (Kind::BGPPeer, _) => vec!["NAME", "PEERIP", "NODE", "ASN"],
        (Kind::FelixConfiguration, _) => vec!["NAME"],
        (Kind::Node, false) => vec!["NAME"],
        (Kind::Node, true) => vec!["NAME", "ASN", "IPV4", "IPV6"],
        (Kind::WorkloadEndpoint, false) => vec!["WORKLOAD", "NODE", "NETWORKS", "INTERFACE"],
        (Kind::WorkloadEndpoint, true) => vec!["NAME", "WORKLOAD", "NODE", "NETWORKS", "INTERFACE", "PROFILES", "NATS"],
        (Kind::Profile, false) => vec!["NAME"],
        (Kind::Profile, true) => vec!["NAME", "LABELS"],
        (Kind::ClusterInformation, _) => vec!["NAME", "VERSION", "CLUSTERTYPE", "READY"],
        (Kind::IPAMBlock, _) => vec!["NAME", "CIDR", "AFFINITY", "INUSE"],
        (Kind::BlockAffinity, _) => vec!["NAME", "CIDR", "NODE", "STATE"],
        (Kind::IPAMHandle, _) => vec!["NAME", "BLOCKS"],
        (Kind::IPAMConfiguration, _) => vec!["NAME", "STRICTAFFINITY", "AUTOALLOCATEBLOCKS", "MAXBLOCKSPERHOST"],
        (
            Kind::NetworkPolicy
            | Kind::GlobalNetworkPolicy
            | Kind::StagedNetworkPolicy
            | Kind::StagedGlobalNetworkPolicy,
            false,
        ) => vec!["NAME", "TIER"],
        (
            Kind::NetworkPolicy
            | Kind::GlobalNetworkPolicy
            | Kind::StagedNetworkPolicy
            | Kind::StagedGlobalNetworkPolicy,
            true,
        ) => vec!["NAME", "TIER", "ORDER", "SELECTOR"],
        (Kind::StagedKubernetesNetworkPolicy, false) => vec!["NAME"],
        (Kind::StagedKubernetesNetworkPolicy, true) => vec!["NAME", "PODSELECTOR"],
        (Kind::Tier, _) => vec!["NAME", "ORDER"],
        (Kind::NetworkSet | Kind::GlobalNetworkSet, false) => vec!["NAME"],
        (Kind::NetworkSet | Kind::GlobalNetworkSet, true) => vec!["NAME", "NETS"],
        (Kind::HostEndpoint, false) => vec!["NAME", "NODE"],
        (Kind::HostEndpoint, true) => vec!["NAME", "NODE", "INTERFACE", "IPS", "PROFILES"],
        (Kind::KubernetesEndpointSlice, _) => vec!["NAME", "SERVICE", "ADDRESSES", "PORTS"],
        (Kind::KubeControllersConfiguration, _) => vec!["NAME"],
        (Kind::IPReservation, false) => vec!["NAME"],
        (Kind::IPReservation, true) => vec!["NAME", "CIDRS"],
        (Kind::CalicoNodeStatus, _) => vec!["NAME", "NODE", "CLASSES", "UPDATEINTERVAL", "LASTUPDATED"],
        (Kind::BGPFilter, false) => vec!["NAME"],
        (Kind::BGPFilter, true) => vec!["NAME", "EXPORTV4", "IMPORTV4", "EXPORTV6", "IMPORTV6"],
    };
    if all_namespaces && kind.is_namespaced() {
        headings.insert(0, "NAMESPACE");
    }
    headings
}

/// One resource's cell below a heading.
pub fn cell(resource: &Resource, heading: &str, default_as: &str) -> String {
    let metadata = resource.metadata();
    match (resource, heading) {
        (_, "NAME") => metadata.name.clone(),
        (_, "NAMESPACE") => metadata.namespace.clone().unwrap_or_default(),
        (Resource::Wrong(wrong), heading) => {
            // A range that cannot be read has a stand-in.
            let is_known = heading != "CIDR" || !wrong.is_in_doubt("spec.cidr");
            let readable = wrong.readable().filter(|_| is_known);
            let readable = readable.map(|resource| cell(resource, heading, default_as));
            readable.unwrap_or_else(|| "?".to_owned())
        }
        (Resource::IPPool(pool), heading) => match heading {
            "CIDR" => pool.spec.cidr.to_string(),
            "SELECTOR" => pool.spec.node_selector.clone().unwrap_or_else(|| "all()".into()),
            "NAT" => pool.spec.nat_outgoing.to_string(),
            "IPIPMODE" => pool.spec.ipip_mode.to_string(),
            "VXLANMODE" => pool.spec.vxlan_mode.to_string(),
            "DISABLED" => pool.spec.disabled.to_string(),
            _ => pool.spec.disable_bgp_export.to_string(),
        },
        (Resource::BGPConfiguration(config), heading) => match heading {
            // Upstream's sign for what is not set here and comes from elsewhere.
            "MESHENABLED" => config
                .spec
                .node_to_node_mesh_enabled
                .map_or("-".into(), |on| on.to_string()),
            "ASNUMBER" => config.spec.as_number.map_or("-".into(), |asn| asn.to_string()),
            _ => document_field(resource, "logSeverityScreen"),
        },
        (Resource::BGPPeer(peer), heading) => match heading {
            "PEERIP" if peer.spec.peer_ip.is_empty() => peer.spec.peer_selector.clone(),
            "PEERIP" => peer.spec.peer_ip.clone(),
            "NODE" => match (peer.spec.node.as_str(), peer.spec.node_selector.as_str()) {
                ("", "") => "(global)".into(),
                ("", selector) => selector.to_string(),
                (node, _) => node.to_string(),
            },
            _ => peer.spec.as_number.map_or_else(String::new, |asn| asn.to_string()),
        },
        (Resource::Node(node), heading) => {
            let bgp = node.spec.bgp.clone().unwrap_or_default();
            match heading {
                "ASN" => bgp
                    .as_number
                    .map_or_else(|| default_as.to_string(), |asn| asn.to_string()),
                "IPV4" => optional(bgp.ipv4_address.as_ref()),
                _ => optional(bgp.ipv6_address.as_ref()),
            }
        }
        (Resource::WorkloadEndpoint(wep), heading) => match heading {
            "WORKLOAD" if !wep.spec.pod.is_empty() => wep.spec.pod.clone(),
            "WORKLOAD" if !wep.spec.workload.is_empty() => wep.spec.workload.clone(),
            "WORKLOAD" => wep.spec.container_id.clone(),
            "NODE" => wep.spec.node.clone(),
            "NETWORKS" => joined(&wep.spec.ip_networks),
            "INTERFACE" => wep.spec.interface_name.clone(),
            "PROFILES" => wep.spec.profiles.join(","),
            _ => joined(&wep.spec.ip_nats.iter().map(|nat| nat.external_ip).collect::<Vec<_>>()),
        },
        (Resource::Profile(profile), _) => {
            let labels = profile
                .spec
                .labels_to_apply
                .iter()
                .map(|(name, value)| format!("{name}={value}"));
            labels.collect::<Vec<_>>().join(",")
        }
        (Resource::ClusterInformation(info), heading) => match heading {
            "VERSION" => optional(info.spec.calico_version.as_ref()),
            "CLUSTERTYPE" => optional(info.spec.cluster_type.as_ref()),
            _ => optional(info.spec.datastore_ready.as_ref()),
        },
        (Resource::IPAMBlock(block), heading) => match heading {
            "CIDR" => block.spec.cidr.to_string(),
            "AFFINITY" => optional(block.spec.affinity.as_ref()),
            _ => {
                let used = block.spec.allocations.iter().flatten().count();
                format!("{used}/{}", block.spec.allocations.len())
            }
        },
        (Resource::BlockAffinity(affinity), heading) => match heading {
            "CIDR" => affinity.spec.cidr.to_string(),
            "NODE" => affinity.spec.node.clone(),
            _ => document_field(resource, "state"),
        },
        (Resource::IPAMHandle(handle), _) => {
            let blocks = handle
                .spec
                .block
                .iter()
                .map(|(block, count)| format!("{block}:{count}"));
            blocks.collect::<Vec<_>>().join(",")
        }
        (Resource::IPAMConfiguration(config), heading) => match heading {
            "STRICTAFFINITY" => config.spec.strict_affinity.to_string(),
            "AUTOALLOCATEBLOCKS" => config.spec.auto_allocate_blocks.to_string(),
            _ => config.spec.max_blocks_per_host.to_string(),
        },
        (Resource::NetworkPolicy(policy), heading) => {
            policy_cell(heading, policy.spec.tier(), policy.spec.order, &policy.spec.selector)
        }
        (Resource::GlobalNetworkPolicy(policy), heading) => {
            policy_cell(heading, policy.spec.tier(), policy.spec.order, &policy.spec.selector)
        }
        (Resource::StagedNetworkPolicy(policy), heading) => {
            policy_cell(heading, policy.spec.tier(), policy.spec.order, &policy.spec.selector)
        }
        (Resource::StagedGlobalNetworkPolicy(policy), heading) => {
            policy_cell(heading, policy.spec.tier(), policy.spec.order, &policy.spec.selector)
        }
        (Resource::StagedKubernetesNetworkPolicy(policy), _) => policy.spec.pod_selector.to_string(),
        (Resource::Tier(tier), _) => tier.spec.order.to_string(),
        (Resource::NetworkSet(set), _) => truncated(joined(&set.spec.nets)),
        (Resource::GlobalNetworkSet(set), _) => truncated(joined(&set.spec.nets)),
        (Resource::HostEndpoint(hep), heading) => match heading {
            "NODE" => hep.spec.node.clone(),
            "INTERFACE" => hep.spec.interface_name.clone(),
            "IPS" => joined(&hep.spec.expected_ips),
            _ => hep.spec.profiles.join(","),
        },
        (Resource::KubernetesEndpointSlice(slice), heading) => match heading {
            "SERVICE" => slice.spec.service.clone(),
            "ADDRESSES" => truncated(joined(&slice.spec.addresses)),
            _ => {
                let ports = slice.spec.ports.iter();
                let ports = ports.map(|port| format!("{}/{}", port.port, port.protocol));
                ports.collect::<Vec<_>>().join(",")
            }
        },
        (Resource::IPReservation(reservation), _) => truncated(joined(&reservation.spec.reserved_cidrs)),
        (Resource::CalicoNodeStatus(status), heading) => match heading {
            "NODE" => status.spec.node.clone(),
            "CLASSES" => joined(&status.spec.classes),
            "UPDATEINTERVAL" => format!("{}s", status.spec.period()),
            _ => optional(status.status.as_ref().and_then(|status| status.last_updated.as_ref())),
        },
        (Resource::BGPFilter(filter), heading) => match heading {
            "EXPORTV4" => filter.spec.export_v4.len(),
            "IMPORTV4" => filter.spec.import_v4.len(),
            "EXPORTV6" => filter.spec.export_v6.len(),
            _ => filter.spec.import_v6.len(),
        }
        .to_string(),
        (Resource::FelixConfiguration(_) | Resource::KubeControllersConfiguration(_), _) => String::new(),
    }
}

fn policy_cell(heading: &str, tier: &str, order: Order, selector: &str) -> String {
    match heading {
        "TIER" => tier.to_owned(),
        "ORDER" => order.to_string(),
        _ => selector.to_owned(),
    }
}

/// A list on one screen: upstream's 80 characters, of which three say that there is more.
fn truncated(list: String) -> String {
    match list.chars().count() {
        ..=80 => list,
        _ => list.chars().take(77).chain("...".chars()).collect(),
    }
}

fn optional<T: ToString>(value: Option<&T>) -> String {
    value.map(ToString::to_string).unwrap_or_default()
}

fn joined<T: ToString>(values: &[T]) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// A field of the spec as its document has it.
fn document_field(resource: &Resource, field: &str) -> String {
    match &api::document::to_json(resource)["spec"][field] {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Null => String::new(),
        other => other.to_string(),
    }
}
