//! The network configuration on standard input: upstream's keys with their types, and two of our own.
//!
//! Every problem is reported at once, with field, value and what would be right. Keys that nobody knows are allowed, as
//! everywhere in CNI, and listed in [`Config::unknown`] so that the agent can log them.

use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::env::Role;
use crate::error::{Code, Error};
use crate::result::CniResult;
use crate::version::Version;

mod fields;
mod runtime;
mod unheeded;

use fields::{Fields, Findings};
pub(crate) use runtime::is_mac;
pub use runtime::{Bandwidth, PortMapping, Runtime};

/// Where the agent listens unless `socket` says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/margay/cni.sock";
/// Where the journal is unless `state_dir` says otherwise.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/margay/cni";

/// A checked network configuration. Upstream's keys that make no sense without a datastore in the plugin (`etcd_*`,
/// `kubernetes`, `log_*`, …) are checked for their type and dropped: the agent has its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// `cniVersion`
    pub cni_version: Version,
    /// `name`: the network's name, first part of IPAM handles.
    pub name: String,
    /// `type`: the name of the plugin's binary.
    pub plugin_type: String,
    /// `socket`, ours: the agent's unix socket.
    pub socket: PathBuf,
    /// `state_dir`, ours: directory of the journal.
    pub state_dir: PathBuf,
    /// `mtu`, 68 to 65535; absent or 0: the agent decides.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// `nodename`, or `kubernetes.node_name`
    #[serde(default)]
    pub nodename: Option<String>,
    /// `ipam`
    #[serde(default)]
    pub ipam: Ipam,
    /// `container_settings.allow_ip_forwarding`
    #[serde(default)]
    pub allow_ip_forwarding: bool,
    /// `include_default_routes`: default routes also if IPAM gives routes of its own.
    #[serde(default)]
    pub include_default_routes: bool,
    /// `feature_control`
    #[serde(default)]
    pub feature_control: FeatureControl,
    /// `runtimeConfig`, and `args.cni`
    #[serde(default)]
    pub runtime: Runtime,
    /// `prevResult`: what ADD answered, for CHECK and DEL.
    #[serde(default)]
    pub prev_result: Option<CniResult>,
    /// `cni.dev/valid-attachments`: what GC must keep.
    #[serde(default)]
    pub valid_attachments: Option<Vec<Attachment>>,
    /// Keys that nobody knows.
    #[serde(default)]
    pub unknown: Vec<String>,
    /// Upstream's keys that say something and have no effect here: a sentence each, with what counts instead.
    #[serde(default)]
    pub unheeded: Vec<String>,
}

/// The `ipam` block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ipam {
    /// `assign_ipv4`, default true.
    pub assign_ipv4: bool,
    /// `assign_ipv6`, default false.
    pub assign_ipv6: bool,
    /// `ipv4_pools`: names or ranges; empty: every pool that may be used.
    pub ipv4_pools: Vec<String>,
    /// `ipv6_pools`
    pub ipv6_pools: Vec<String>,
}

impl Default for Ipam {
    fn default() -> Self {
        Self {
            assign_ipv4: true,
            assign_ipv6: false,
            ipv4_pools: Vec::new(),
            ipv6_pools: Vec::new(),
        }
    }
}

/// The `feature_control` block.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FeatureControl {
    /// `ip_addrs_no_ipam`
    pub ip_addrs_no_ipam: bool,
    /// `floating_ips`
    pub floating_ips: bool,
}

/// One attachment that GC must keep.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attachment {
    /// The container.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// Its interface.
    pub ifname: String,
}

impl Config {
    /// Reads a configuration; all problems come at once (code 7, or 2 if only unsupported values are in it). Input that is
    /// not a JSON object is code 6, a version we do not speak code 1.
    pub fn parse(input: &[u8], role: Role) -> Result<Config, Error> {
        let document = decode(input)?;
        let version = version(&document)?;
        let (config, findings) = read(&document, version, role);
        match findings.into_error() {
            Some(error) => Err(error),
            None => Ok(config),
        }
    }

    /// Reads what can be read, with defaults for the rest: a DEL must not fail because of a mistyped key.
    pub fn parse_leniently(input: &[u8], role: Role) -> Result<Config, Error> {
        let document = decode(input)?;
        Ok(read(&document, version(&document).unwrap_or(Version::LATEST), role).0)
    }
}

/// What a plugin's configuration says without effect: a sentence for each key, with what counts instead.
pub fn unheeded(plugin: &Value) -> Vec<String> {
    unheeded::of(plugin)
}

/// The version to answer in, if the input says one that we speak.
pub fn answer_version(input: &[u8]) -> Version {
    decode(input)
        .and_then(|document| version(&document))
        .unwrap_or(Version::LATEST)
}

fn decode(input: &[u8]) -> Result<Value, Error> {
    match serde_json::from_slice::<Value>(input) {
        Ok(document) if document.is_object() => Ok(document),
        Ok(other) => Err(Error::new(
            Code::Decode,
            "cannot decode the network configuration",
            format!("standard input: found {}, must be a JSON object", fields::shown(&other)),
        )),
        Err(error) => Err(Error::new(
            Code::Decode,
            "cannot decode the network configuration",
            format!("standard input: {error}; must be a JSON object"),
        )),
    }
}

fn version(document: &Value) -> Result<Version, Error> {
    match document.get("cniVersion") {
        // The specification's first version had no such key.
        None | Some(Value::Null) => Version::parse("0.1.0"),
        Some(Value::String(text)) => Version::parse(text),
        Some(other) => Version::parse(&other.to_string()),
    }
}

fn read(document: &Value, version: Version, role: Role) -> (Config, Findings) {
    let mut findings = Findings::default();
    let mut fields = Fields::new("", document, &mut findings);
    fields.accept(&[
        "cniVersion",
        "capabilities",
        "disableCheck",
        "disableGC",
        "plugins",
        "ipMasq",
    ]);
    let name = fields.string("name").unwrap_or_default();
    if let Some(problem) = name_problem(&name) {
        fields.problem("name", problem);
    }
    let plugin_type = fields.string("type").unwrap_or_default();
    if plugin_type.is_empty() {
        fields.problem("type", "the name of the plugin's binary, such as \"calico\"");
    }
    let mut config = Config {
        cni_version: version,
        name,
        plugin_type,
        socket: fields.absolute_path("socket").unwrap_or_else(|| DEFAULT_SOCKET.into()),
        state_dir: fields
            .absolute_path("state_dir")
            .unwrap_or_else(|| DEFAULT_STATE_DIR.into()),
        mtu: None,
        nodename: None,
        ipam: Ipam::default(),
        allow_ip_forwarding: false,
        include_default_routes: false,
        feature_control: FeatureControl::default(),
        runtime: runtime::read(&mut fields),
        prev_result: fields.decoded("prevResult", "the result that ADD printed"),
        valid_attachments: fields.decoded(
            "cni.dev/valid-attachments",
            "a list of {\"containerID\": \"…\", \"ifname\": \"…\"}",
        ),
        unknown: Vec::new(),
        unheeded: Vec::new(),
    };
    // libcni writes the list under both names.
    let older_name = fields.decoded(
        "cni.dev/attachments",
        "a list of {\"containerID\": \"…\", \"ifname\": \"…\"}",
    );
    config.valid_attachments = config.valid_attachments.or(older_name);
    fields.object("ipam", |ipam| read_ipam(ipam, &mut config, role));
    // As an IPAM plugin we read another plugin's configuration: its keys are not ours to judge.
    if role == Role::Main {
        read_main(&mut fields, &mut config);
        fields.note_unknown();
        config.unheeded = unheeded::of(document);
    }
    config.unknown = std::mem::take(&mut findings.unknown);
    (config, findings)
}

fn name_problem(name: &str) -> Option<&'static str> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let right = name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(good);
    (!right).then_some("letters, digits, '_', '.' or '-', beginning with a letter or digit")
}

fn read_ipam(ipam: &mut Fields, config: &mut Config, role: Role) {
    let kind = ipam.string("type").unwrap_or_default();
    if role == Role::Main && kind != "calico-ipam" {
        ipam.unsupported("type", "\"calico-ipam\"");
    }
    let defaults = Ipam::default();
    config.ipam = Ipam {
        assign_ipv4: ipam.bool_or_text("assign_ipv4").unwrap_or(defaults.assign_ipv4),
        assign_ipv6: ipam.bool_or_text("assign_ipv6").unwrap_or(defaults.assign_ipv6),
        ipv4_pools: pools(ipam, "ipv4_pools", "IPv4"),
        ipv6_pools: pools(ipam, "ipv6_pools", "IPv6"),
    };
    if !config.ipam.assign_ipv4 && !config.ipam.assign_ipv6 {
        ipam.problem("assign_ipv4", "true unless assign_ipv6 is true: a pod needs an address");
    }
    // Belongs to upstream's host-local: with calico-ipam it means nothing, and templates carry it.
    ipam.string("subnet");
    ipam.accept(&["ranges", "routes"]);
    if role == Role::Ipam {
        if let Some(socket) = ipam.absolute_path("socket") {
            config.socket = socket;
        }
        if let Some(state_dir) = ipam.absolute_path("state_dir") {
            config.state_dir = state_dir;
        }
    }
    ipam.note_unknown();
}

/// A list of pools; entries that look like ranges must be of the right family.
fn pools(ipam: &mut Fields, key: &'static str, family: &str) -> Vec<String> {
    let pools = ipam.strings(key).unwrap_or_default();
    let right = |range: &str| {
        range
            .parse::<IpNet>()
            .is_ok_and(|net| net.addr().is_ipv4() == (family == "IPv4"))
    };
    if pools
        .iter()
        .any(|entry| entry.is_empty() || (entry.contains('/') && !right(entry)))
    {
        ipam.problem(key, &format!("a list of names of pools or {family} ranges"));
    }
    pools
}

/// Upstream's keys (`cni-plugin/pkg/types/types.go`). Those whose value is dropped are named with their type only.
fn read_main(fields: &mut Fields, config: &mut Config) {
    config.mtu = fields
        .integer("mtu", 0..=65535)
        .filter(|mtu| *mtu != 0)
        .map(|mtu| mtu as u32);
    if config.mtu.is_some_and(|mtu| mtu < 68) {
        fields.problem("mtu", "an integer from 68 to 65535, or 0 to let the agent decide");
    }
    config.nodename = fields.string("nodename").filter(|name| !name.is_empty());
    config.include_default_routes = fields.bool("include_default_routes").unwrap_or(false);
    fields.object("container_settings", |settings| {
        config.allow_ip_forwarding = settings.bool("allow_ip_forwarding").unwrap_or(false);
        settings.note_unknown();
    });
    fields.object("feature_control", |features| {
        config.feature_control = FeatureControl {
            ip_addrs_no_ipam: features.bool("ip_addrs_no_ipam").unwrap_or(false),
            floating_ips: features.bool("floating_ips").unwrap_or(false),
        };
        features.note_unknown();
    });
    fields.object("kubernetes", |kubernetes| {
        for key in [
            "kubeconfig",
            "k8s_api_root",
            "k8s_client_certificate",
            "k8s_client_key",
            "k8s_certificate_authority",
        ] {
            kubernetes.string(key);
        }
        let name = kubernetes.string("node_name").filter(|name| !name.is_empty());
        config.nodename = config.nodename.take().or(name);
        kubernetes.note_unknown();
    });
    fields.object("policy", |policy| {
        policy.one_of("type", &["", "k8s", "default"]);
        for key in [
            "k8s_api_root",
            "k8s_auth_token",
            "k8s_client_certificate",
            "k8s_client_key",
        ] {
            policy.string(key);
        }
        policy.string("k8s_certificate_authority");
        policy.note_unknown();
    });
    fields.object("dataplane_options", |options| {
        if options
            .string("type")
            .is_some_and(|kind| !matches!(kind.as_str(), "" | "linux"))
        {
            options.unsupported("type", "absent or \"linux\"");
        }
    });
    if fields
        .string("device_type")
        .is_some_and(|kind| !matches!(kind.as_str(), "" | "veth"))
    {
        fields.unsupported("device_type", "absent or \"veth\"");
    }
    fields.one_of("datastore_type", &["", "kubernetes", "etcdv3", "embedded"]);
    let levels = [
        "", "none", "trace", "debug", "info", "warn", "warning", "error", "fatal", "panic",
    ];
    fields.one_of("log_level", &levels);
    for key in [
        "mode",
        "nodename_file",
        "ipam_lock_file",
        "log_file_path",
        "endpoint_status_dir",
        "calico_api_group",
        "etcd_endpoints",
        "etcd_authority",
        "etcd_scheme",
        "etcd_key_file",
        "etcd_cert_file",
        "etcd_ca_cert_file",
        "etcd_discovery_srv",
        "vxlan_mac_prefix",
        "hostname",
    ] {
        fields.string(key);
    }
    for key in ["nodename_file_optional", "require_mtu_file"] {
        fields.bool(key);
    }
    for key in [
        "log_file_max_size",
        "log_file_max_age",
        "log_file_max_count",
        "policy_setup_timeout_seconds",
        "num_queues",
        "vxlan_vni",
    ] {
        fields.integer(key, 0..=i64::from(u32::MAX));
    }
    for key in ["qps", "burst"] {
        fields.number(key);
    }
    fields.strings("readiness_gates");
    fields.object("dns", |_| {});
    fields.accept_prefix("windows_");
}

#[cfg(test)]
mod tests;
