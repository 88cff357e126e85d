//! Names that upstream derives from other values. Byte for byte the same, so that both can share a datastore and a node.

use ipnet::IpNet;
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// What objects of a kind may be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// A DNS-1123 subdomain of at most 253 characters: lower-case letters, digits, `-` and `.`.
    Subdomain,
    /// Only `default`.
    Default,
    /// `default`, or `node.` and the name of a node.
    DefaultOrNode,
    /// Anything: the name is derived from an identifier that follows other rules.
    Derived,
}

impl NameRule {
    /// Whether `name` may be used; otherwise what would be right.
    pub fn check(self, name: &str) -> Result<(), &'static str> {
        const SUBDOMAIN: &str = "must be a DNS name of at most 253 characters: lower-case letters, digits, `-` and `.`, \
            starting and ending with a letter or digit";
        match self {
            NameRule::Subdomain if !is_subdomain(name) => Err(SUBDOMAIN),
            NameRule::Default if name != "default" => Err("must be `default`"),
            NameRule::DefaultOrNode => match name.strip_prefix("node.") {
                Some(node) if is_subdomain(node) && name.len() <= 253 => Ok(()),
                _ if name == "default" => Ok(()),
                _ => Err("must be `default`, or `node.` and the name of a node"),
            },
            NameRule::Derived if name.is_empty() => Err("is required"),
            NameRule::Subdomain | NameRule::Default | NameRule::Derived => Ok(()),
        }
    }
}

/// Whether `name` is a DNS-1123 subdomain: labels joined by dots, at most 253 characters.
pub fn is_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_label_like)
}

/// Whether `name` is a DNS-1123 label: lower-case letters, digits and inner dashes, at most 63 characters.
pub fn is_label(name: &str) -> bool {
    name.len() <= 63 && is_label_like(name)
}

fn is_label_like(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !name.is_empty() && name.bytes().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}

/// The object name of the block `cidr`: `10.0.0.0/26` is `10-0-0-0-26` (upstream `lib/names/cidr.go`).
pub fn block_name(cidr: IpNet) -> String {
    cidr.to_string().replace(['.', ':', '/'], "-")
}

/// The object name of a block affinity: `<host>-<block name>`, shortened with a hash past 252 characters
/// (upstream `ipam_affinity_v1.go`).
pub fn affinity_name(host: &str, cidr: IpNet) -> String {
    let cidr = block_name(cidr);
    let name = format!("{host}-{cidr}");
    if name.len() < 253 {
        return name;
    }
    let hash = hex(&Sha256::digest(format!("{host}{cidr}")));
    let room = 252 - cidr.len() - 1 - 12;
    let cut: String = host.chars().take(room).collect();
    format!("{cut}-{}-{cidr}", &hash[..11])
}

/// The host side interface of a workload: prefix plus the first 11 hex digits of SHA-1 over `namespace.workload`
/// (upstream `workload_endpoint_default.go`).
pub fn interface_name(prefix: &str, namespace: &str, workload: &str) -> String {
    let hash = hex(&Sha1::digest(format!("{namespace}.{workload}")));
    format!("{prefix}{}", &hash[..11])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
