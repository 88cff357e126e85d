//! Names that upstream derives from other values. Byte for byte the same, so that both can share a datastore and a node.

mod workload_endpoint;

use ipnet::IpNet;
use sha1::Sha1;
use sha2::{Digest, Sha224, Sha256};

pub use crate::metadata::{is_label_key, is_label_value};
pub use workload_endpoint::{
    NameError, WorkloadEndpointIds, parse_workload_endpoint_name, workload_endpoint_name, workload_endpoint_prefix,
};

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
    /// A DNS-1123 label of at most 63 characters, without dots.
    Label,
    /// A namespaced policy: a label, or two with a dot between; or `knp.default.` (from Kubernetes) or `ossg.default.` and
    /// any subdomain.
    Policy,
    /// A global policy: a label, or two with a dot between; or `kcnp.kube-admin.` or `kcnp.kube-baseline.` (from Kubernetes)
    /// and any subdomain.
    GlobalPolicy,
}

/// Label that endpoints and network sets have by being in a namespace.
pub const NAMESPACE_LABEL: &str = "projectcalico.org/namespace";
/// Label that a policy's tier is written to.
pub const TIER_LABEL: &str = "projectcalico.org/tier";
/// What the names of policies that come from Kubernetes' NetworkPolicies start with.
pub const K8S_POLICY_PREFIX: &str = "knp.default.";
/// What the names of policies that come from ClusterNetworkPolicies start with, before the tier.
pub const K8S_CLUSTER_POLICY_PREFIX: &str = "kcnp.";

impl NameRule {
    /// What is right for [`NameRule::Label`].
    pub(crate) const LABEL: &'static str =
        "must be a DNS label: at most 63 lower-case letters, digits and inner `-`, no dots";

    /// Whether `name` may be used; otherwise what would be right.
    pub fn check(self, name: &str) -> Result<(), &'static str> {
        const SUBDOMAIN: &str = "must be a DNS name of at most 253 characters: lower-case letters, digits, `-` and `.`, \
            starting and ending with a letter or digit";
        const POLICY: &str =
            "must be lower-case letters, digits and inner `-`, with one dot at most, 253 characters together";
        match self {
            NameRule::Label if !is_label(name) => Err(NameRule::LABEL),
            NameRule::Policy if starts_with(name, &[K8S_POLICY_PREFIX, "ossg.default."]) => Ok(()),
            NameRule::GlobalPolicy if is_from_kubernetes(name) && !name.starts_with(K8S_POLICY_PREFIX) => Ok(()),
            NameRule::Policy | NameRule::GlobalPolicy if !is_policy(name) => Err(POLICY),
            NameRule::Subdomain if !is_subdomain(name) => Err(SUBDOMAIN),
            NameRule::Default if name != "default" => Err("must be `default`"),
            NameRule::DefaultOrNode => match name.strip_prefix("node.") {
                Some(node) if is_subdomain(node) && name.len() <= 253 => Ok(()),
                _ if name == "default" => Ok(()),
                _ => Err("must be `default`, or `node.` and the name of a node"),
            },
            NameRule::Derived if name.is_empty() => Err("is required"),
            NameRule::Subdomain | NameRule::Default | NameRule::Derived => Ok(()),
            NameRule::Label | NameRule::Policy | NameRule::GlobalPolicy => Ok(()),
        }
    }
}

/// One label or two.
fn is_policy(name: &str) -> bool {
    is_subdomain(name) && name.matches('.').count() <= 1
}

/// Whether a policy is called as those are that are made of Kubernetes' policies: they are changed there.
pub fn is_from_kubernetes(policy: &str) -> bool {
    starts_with(policy, &[K8S_POLICY_PREFIX, "kcnp.kube-admin.", "kcnp.kube-baseline."])
}

/// Whether a name is one of these and a subdomain: each may be as long as a name may be.
fn starts_with(name: &str, prefixes: &[&str]) -> bool {
    let rest = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix));
    rest.is_some_and(is_subdomain)
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

/// The block that an object name stands for, if it stands for one.
pub fn parse_block_name(name: &str) -> Option<IpNet> {
    let (address, length) = name.rsplit_once('-')?;
    let v4 = format!("{}/{length}", address.replace('-', ".")).parse().ok();
    let v6 = || format!("{}/{length}", address.replace('-', ":")).parse().ok();
    // Only one spelling names a block, and only its first address.
    v4.or_else(v6)
        .filter(|cidr: &IpNet| cidr.trunc() == *cidr && block_name(*cidr) == name)
}

/// The object name of a block affinity: `<host>-<block name>`. From 253 characters on the host is cut to make room for
/// 11 hex digits of SHA-256 over `<host>+<block name>` at the end (upstream `ipam_affinity_v1.go`).
pub fn affinity_name(host: &str, cidr: IpNet) -> String {
    let block = block_name(cidr);
    let name = format!("{host}-{block}");
    if name.len() < 253 {
        return name;
    }
    // 252 characters are left: the host, a dash, the block, a dash, the digits.
    let room = 252 - block.len() - 13;
    // Host names are ASCII; should one not be, it is cut at a character.
    let cut = host
        .char_indices()
        .map(|(at, c)| at + c.len_utf8())
        .take_while(|end| *end <= room)
        .last()
        .unwrap_or(0);
    let hash = hex(&Sha256::digest(format!("{host}+{block}")));
    format!("{}-{block}-{}", &host[..cut], &hash[..11])
}

/// The host side interface of a workload: prefix plus the first 11 hex digits of SHA-1 over `namespace.workload`
/// (upstream `workload_endpoint_default.go`).
pub fn interface_name(prefix: &str, namespace: &str, workload: &str) -> String {
    let hash = hex(&Sha1::digest(format!("{namespace}.{workload}")));
    format!("{prefix}{}", &hash[..11])
}

/// Upstream's id of something by its content: `<prefix>:` and unpadded base64url of SHA-224 over `<prefix>:<content>`
/// (upstream `lib/hash/id.go`).
pub fn unique_id(prefix: &str, content: &str) -> String {
    format!(
        "{prefix}:{}",
        base64_url(&Sha224::digest(format!("{prefix}:{content}")))
    )
}

/// The UID of what upstream makes of an object, from that object's: bits reversed in each byte, but for the bytes with
/// version and variant, so that no two objects share one (upstream `ConvertUID`). `None` if it is no UUID.
pub fn derived_uid(uid: &str) -> Option<String> {
    let dashes = [8, 13, 18, 23];
    let mut hex_digits = String::new();
    for (at, c) in uid.char_indices() {
        match dashes.contains(&at) {
            true if c == '-' => {}
            false if c.is_ascii_hexdigit() => hex_digits.push(c),
            _ => return None,
        }
    }
    let mut bytes = [0u8; 16];
    if hex_digits.len() != 32 {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        let held = u8::from_str_radix(&hex_digits[2 * index..2 * index + 2], 16).ok()?;
        *byte = if index == 6 || index == 8 {
            held
        } else {
            held.reverse_bits()
        };
    }
    let text = hex(&bytes);
    let parts = [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]];
    Some(parts.join("-"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// RFC 4648 section 5, without padding.
fn base64_url(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group
            .iter()
            .enumerate()
            .fold(0u32, |bits, (at, byte)| bits | u32::from(*byte) << (16 - 8 * at));
        for digit in 0..=group.len() {
            text.push(char::from(ALPHABET[(bits >> (18 - 6 * digit) & 63) as usize]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_have_names_and_names_have_blocks() {
        let check = |cidr: &str, name: &str| {
            let cidr: IpNet = cidr.parse().unwrap();
            assert_eq!(block_name(cidr), name);
            assert_eq!(parse_block_name(name), Some(cidr));
        };
        check("10.0.0.0/26", "10-0-0-0-26");
        check("192.168.36.64/26", "192-168-36-64-26");
        check("fd00::40/122", "fd00--40-122");
        check("2001:db8:1:2:3:4:5:0/122", "2001-db8-1-2-3-4-5-0-122");
        for name in [
            "",
            "10",
            "10-0-0-26",
            "10-0-0-1-26",
            "010-0-0-0-26",
            "fd00--0-122",
            "x-10-0-0-0-26",
        ] {
            assert_eq!(parse_block_name(name), None, "{name}");
        }
    }

    #[test]
    fn a_long_affinity_name_ends_in_a_hash() {
        let cidr: IpNet = "10.0.0.0/26".parse().unwrap();
        assert_eq!(affinity_name("node1", cidr), "node1-10-0-0-0-26");
        assert_eq!(
            affinity_name(&"n".repeat(240), cidr),
            format!("{}-10-0-0-0-26", "n".repeat(240))
        );
        assert_eq!(affinity_name(&"n".repeat(241), cidr).len(), 252);
        assert_eq!(
            affinity_name(&"n".repeat(250), cidr),
            format!("{}-10-0-0-0-26-f1d50507857", "n".repeat(228))
        );
        assert_eq!(affinity_name(&"é".repeat(200), cidr).len(), 252);
    }

    #[test]
    fn interfaces_are_named_by_sha1() {
        // `printf default.wep | sha1sum`
        assert_eq!(interface_name("cali", "default", "wep"), "caliafb0da86bf5");
        assert_eq!(interface_name("tap", "default", "c1"), "tap6419776c3a4");
    }

    #[test]
    fn what_is_made_of_an_object_has_another_uid() {
        let uid = "30316465-6365-4463-ad63-3564622d3638";
        let derived = derived_uid(uid).unwrap();
        assert_eq!(derived, "0c8c26a6-c6a6-44c6-adc6-ac2646b46c1c");
        assert_eq!(derived_uid(&derived).as_deref(), Some(uid), "twice is the first again");
        for bad in [
            "",
            "x",
            "30316465-6365-4463-ad63-3564622d363",
            "30316465x6365-4463-ad63-3564622d3638",
        ] {
            assert_eq!(derived_uid(bad), None, "{bad}");
        }
    }

    #[test]
    fn base64_is_rfc_4648() {
        let check = |bytes: &str, text: &str| assert_eq!(base64_url(bytes.as_bytes()), text);
        check("", "");
        check("f", "Zg");
        check("fo", "Zm8");
        check("foo", "Zm9v");
        check("foob", "Zm9vYg");
        assert_eq!(base64_url(&[0xfb, 0xff]), "-_8");
    }

    #[test]
    fn name_rules() {
        let check = |rule: NameRule, good: &[&str], bad: &[&str]| {
            for name in good {
                assert_eq!(rule.check(name), Ok(()), "{name}");
            }
            for name in bad {
                assert!(rule.check(name).is_err(), "{name}");
            }
        };
        let long = "a".repeat(254);
        check(
            NameRule::Subdomain,
            &["a", "a.b", "a--b", "1.2", &long[..253]],
            &["", "A", "a..b", "-a", "a-", "a_b", &long],
        );
        check(NameRule::Default, &["default"], &["", "other"]);
        check(
            NameRule::DefaultOrNode,
            &["default", "node.n1", "node.a.b"],
            &["", "n1", "node.", "node.A"],
        );
        check(NameRule::Derived, &["A_b"], &[""]);
        check(
            NameRule::Label,
            &["a", "a-1", &long[..63]],
            &["", "a.b", "A", &long[..64]],
        );
        let names = ["a", "default.a", "a.b", &long[..253]];
        check(
            NameRule::GlobalPolicy,
            &names,
            &["", "a.b.c", "knp.default.a", "A", "a..b", &long],
        );
        check(
            NameRule::Policy,
            &names,
            &["", "a.b.c", "A", "knp.default.", "knp.other.a", &long],
        );
        let reserved = ["knp.default.a", "knp.default.a.b.c", "ossg.default.a"];
        check(NameRule::Policy, &reserved, &["knp.default.A", "kcnp.kube-admin.a"]);
        let reserved = ["kcnp.kube-admin.a.b.c", "kcnp.kube-baseline.a"];
        check(
            NameRule::GlobalPolicy,
            &reserved,
            &["kcnp.other.a", "kcnp.kube-admin.", "ossg.default.a"],
        );
    }
}
