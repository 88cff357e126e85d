//! Tables as upstream prints them, and resources as documents.

use std::io::{self, Write};

use api::{EncapMode, Kind, Resource};

/// Prints columns three spaces apart, as upstream's tool does; an empty line ends the table.
pub fn columns(out: &mut dyn Write, rows: &[Vec<String>]) -> io::Result<()> {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..count).map(|column| width(column).unwrap_or(0) + 3).collect();
    for row in rows {
        let line: String = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(out, "{}", line.trim_end_matches(' ').to_string() + "   ")?;
    }
    writeln!(out)
}

/// Prints a table with borders, as upstream's `ipam show` and `node status` do.
pub fn grid(out: &mut dyn Write, rows: &[Vec<String>]) -> io::Result<()> {
    let Some(header) = rows.first() else { return Ok(()) };
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..header.len()).map(|column| width(column).unwrap_or(0)).collect();
    let border: String = widths.iter().map(|width| format!("+{}", "-".repeat(width + 2))).collect::<String>() + "+";
    writeln!(out, "{border}")?;
    for (number, row) in rows.iter().enumerate() {
        let cell = |(text, width): (&String, &usize)| {
            if number == 0 { format!("| {text:^width$} ", width = *width) } else { format!("| {text:<width$} ", width = *width) }
        };
        writeln!(out, "{}|", row.iter().zip(&widths).map(cell).collect::<String>())?;
        if number == 0 {
            writeln!(out, "{border}")?;
        }
    }
    writeln!(out, "{border}")
}

/// The columns of a kind: upstream's, with more if `wide`.
pub fn headings(kind: Kind, wide: bool, all_namespaces: bool) -> Vec<&'static str> {
    let mut headings = match (kind, wide) {
        (Kind::IPPool, false) => vec!["NAME", "CIDR", "SELECTOR"],
        (Kind::IPPool, true) => {
            vec!["NAME", "CIDR", "NAT", "IPIPMODE", "VXLANMODE", "DISABLED", "DISABLEBGPEXPORT", "SELECTOR"]
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
        (Resource::IPPool(pool), heading) => match heading {
            "CIDR" => pool.spec.cidr.to_string(),
            "SELECTOR" => pool.spec.node_selector.clone().unwrap_or_else(|| "all()".into()),
            "NAT" => pool.spec.nat_outgoing.to_string(),
            "IPIPMODE" => mode(pool.spec.ipip_mode),
            "VXLANMODE" => mode(pool.spec.vxlan_mode),
            "DISABLED" => pool.spec.disabled.to_string(),
            _ => pool.spec.disable_bgp_export.to_string(),
        },
        (Resource::BGPConfiguration(config), heading) => match heading {
            "MESHENABLED" => config.spec.node_to_node_mesh_enabled.unwrap_or(true).to_string(),
            "ASNUMBER" => optional(config.spec.as_number.as_ref()),
            _ => document_field(resource, "logSeverityScreen"),
        },
        (Resource::BGPPeer(peer), heading) => match heading {
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
                "ASN" => bgp.as_number.map_or_else(|| default_as.to_string(), |asn| asn.to_string()),
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
            let labels = profile.spec.labels_to_apply.iter().map(|(name, value)| format!("{name}={value}"));
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
            let blocks = handle.spec.block.iter().map(|(block, count)| format!("{block}:{count}"));
            blocks.collect::<Vec<_>>().join(",")
        }
        (Resource::IPAMConfiguration(config), heading) => match heading {
            "STRICTAFFINITY" => config.spec.strict_affinity.to_string(),
            "AUTOALLOCATEBLOCKS" => config.spec.auto_allocate_blocks.to_string(),
            _ => config.spec.max_blocks_per_host.to_string(),
        },
        (Resource::FelixConfiguration(_), _) => String::new(),
    }
}

fn mode(mode: EncapMode) -> String {
    match mode {
        EncapMode::Never => "Never",
        EncapMode::Always => "Always",
        EncapMode::CrossSubnet => "CrossSubnet",
    }
    .to_string()
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
