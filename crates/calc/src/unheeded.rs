//! Settings of an adopted cluster that ask this agent for something that it does not do: named, never ignored in silence.
//!
//! A setting whose value is upstream's default, or what this agent does anyway, asks for nothing.

use std::collections::BTreeMap;

use api::{FelixConfigurationSpec, Key, Kind};
use serde_json::Value;

use crate::problem::Problem;

/// Settings that are acted on.
#[cfg(test)]
const HEEDED: &[&str] = &[
    "allowIPIPPacketsFromWorkloads",
    "allowVXLANPacketsFromWorkloads",
    "defaultEndpointToHostAction",
    "disableConntrackInvalidCheck",
    "failsafeInboundHostPorts",
    "failsafeOutboundHostPorts",
    "floatingIPs",
    "flowLogsFlushInterval",
    "flowLogsLocalReporter",
    "interfacePrefix",
    "ipipEnabled",
    "ipipMTU",
    "iptablesFilterDenyAction",
    "iptablesMarkMask",
    "iptablesNATOutgoingInterfaceFilter",
    "ipv4NormalRoutePriority",
    "ipv6NormalRoutePriority",
    "logActionRateLimit",
    "logActionRateLimitBurst",
    "logPrefix",
    "logSeverityScreen",
    "natOutgoingAddress",
    "natOutgoingExclusions",
    "natPortRange",
    "nftablesFilterDenyAction",
    "nftablesMarkMask",
    "nodeSelector",
    "serviceLoopPrevention",
    "vxlanPort",
    "workloadSourceSpoofing",
];

/// Settings that are not: the values that ask for nothing, and what is so whatever they say.
const UNHEEDED: &[(&str, &[&str], &str)] = &[
    (
        "awsSrcDstCheck",
        &["DoNothing"],
        "EC2 is not asked to change its check of addresses",
    ),
    (
        "bpfEnabled",
        &["false"],
        "there is no eBPF dataplane: nf_tables enforces policy, and kube-proxy is needed",
    ),
    (
        "dataplaneDriver",
        &["calico-iptables-plugin"],
        "there are no external dataplanes",
    ),
    ("deviceRouteProtocol", &["3", "80"], "routes have protocol 80"),
    (
        "deviceRouteSourceAddress",
        &[""],
        "routes to pods name no source address",
    ),
    (
        "deviceRouteSourceAddressIPv6",
        &[""],
        "routes to pods name no source address",
    ),
    ("externalNodesList", &["[]"], "IP-in-IP is taken from nodes alone"),
    (
        "flowLogsGoldmaneServer",
        &[""],
        "flows are not sent to Goldmane: `margay node flows` shows them",
    ),
    (
        "healthHost",
        &["localhost", "127.0.0.1"],
        "where health is answered is the agent's flag --health-host",
    ),
    (
        "healthPort",
        &["9099"],
        "where health is answered is the agent's flag --health-port",
    ),
    ("ipForwarding", &["Enabled"], "the node forwards packets"),
    (
        "istioAmbientMode",
        &["Disabled"],
        "packets of Istio's ambient mesh are not marked",
    ),
    (
        "localSubnetL2Reachability",
        &["Disabled"],
        "no addresses of pods and services are answered for on the node's subnets",
    ),
    (
        "mtuIfacePattern",
        &["^((en|wl|ww|sl|ib)[Pcopsvx].*|(eth|wlan|wwan).*)"],
        "the MTU follows the device that has the node's address",
    ),
    (
        "nftablesFlowTableOffload",
        &["Disabled"],
        "established flows are not offloaded",
    ),
    ("nftablesMode", &["Auto", "Enabled"], "rules are in nf_tables"),
    ("openstackRegion", &[""], "there is no part for OpenStack"),
    (
        "policySyncPathPrefix",
        &[""],
        "no policy is handed to other programs on the node",
    ),
    (
        "prometheusMetricsEnabled",
        &["false"],
        "metrics are at /metrics on the health port",
    ),
    ("routeSource", &["CalicoIPAM"], "routes follow blocks"),
    ("routeSyncDisabled", &["false"], "the agent writes routes"),
    (
        "sidecarAccelerationEnabled",
        &["false"],
        "there is no such acceleration",
    ),
    (
        "useInternalDataplaneDriver",
        &["true"],
        "there are no external dataplanes",
    ),
    ("vxlanEnabled", &["false"], "there are no VXLAN tunnels"),
    (
        "wireguardEnabled",
        &["false"],
        "packets between nodes are NOT ENCRYPTED",
    ),
    (
        "wireguardEnabledV6",
        &["false"],
        "packets between nodes are NOT ENCRYPTED",
    ),
    (
        "wireguardHostEncryptionEnabled",
        &["false"],
        "packets between nodes are NOT ENCRYPTED",
    ),
];

/// What the layers of configuration, the more special ones last, ask for in vain.
pub(crate) fn unheeded<'a>(
    layers: impl DoubleEndedIterator<Item = (&'a str, &'a FelixConfigurationSpec)>,
) -> Vec<Problem> {
    let mut asked: BTreeMap<&str, (&str, String)> = BTreeMap::new();
    for (layer, spec) in layers {
        let Ok(Value::Object(fields)) = serde_json::to_value(spec) else {
            continue;
        };
        for (name, ..) in UNHEEDED {
            if let Some(value) = fields.get(*name) {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                asked.insert(name, (layer, text));
            }
        }
    }
    let problem = |(name, nothing, is_so): &(&str, &[&str], &str)| {
        let (layer, value) = asked
            .get(name)
            .filter(|(_, value)| !nothing.contains(&value.as_str()))?;
        let key = Key::cluster(Kind::FelixConfiguration, *layer);
        let text = format!("{value} has no effect: {is_so}");
        Some(Problem::new(key, &format!("spec.{name}"), text))
    };
    UNHEEDED.iter().filter_map(problem).collect()
}

#[cfg(test)]
mod tests {
    use api::FelixSettings;
    use serde_json::json;

    use super::*;

    /// Settings of what is not there, of a Go process, or of how often others look: nobody can tell whether they are heeded.
    const SILENT_PREFIXES: &[&str] = &[
        "bpf",
        "debug",
        "endpoint",
        "feature",
        "go",
        "ipsets",
        "iptables",
        "metadata",
        "prometheus",
        "reporting",
        "usage",
        "windows",
        "wireguard",
        "xdp",
    ];
    const SILENT: &[&str] = &[
        "cgroupV2Path",
        "chainInsertMode",
        "dataplaneWatchdogTimeout",
        "flowLogsCollectorDebugTrace",
        "flowLogsPolicyEvaluationMode",
        "genericXDPEnabled",
        "healthEnabled",
        "healthTimeoutOverrides",
        "interfaceExclude",
        "interfaceRefreshInterval",
        "ipv4ElevatedRoutePriority",
        "ipv6ElevatedRoutePriority",
        "ipv6Support",
        "istioDSCPMark",
        "kubeNodePortRanges",
        "liveMigrationRouteConvergenceTime",
        "localSubnetL2ReachabilityRefreshInterval",
        "logDebugFilenameRegex",
        "logFilePath",
        "logSeverityFile",
        "logSeveritySys",
        "maxIpsetSize",
        "netlinkTimeout",
        "nftablesFilterAllowAction",
        "nftablesFlowTableDataIfacePattern",
        "nftablesMangleAllowAction",
        "nftablesRefreshInterval",
        "programClusterRoutes",
        "removeExternalRoutes",
        "requireMTUFile",
        "routeRefreshInterval",
        "routeTableRange",
        "routeTableRanges",
        "vxlanMTU",
        "vxlanMTUV6",
        "vxlanVNI",
    ];

    #[test]
    fn every_setting_is_heeded_named_or_silent_on_purpose() {
        for name in FelixSettings::NAMES {
            let heeded = HEEDED.contains(name);
            let named = UNHEEDED.iter().any(|(unheeded, ..)| unheeded == name);
            let silent = SILENT.contains(name) || SILENT_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
            assert!(!(heeded && named), "{name}");
            assert!(heeded || named || silent, "{name}: what becomes of it?");
        }
        let all = HEEDED
            .iter()
            .chain(UNHEEDED.iter().map(|(name, ..)| name))
            .chain(SILENT);
        for name in all {
            assert!(FelixSettings::NAMES.contains(name), "{name} is no setting");
        }
    }

    #[test]
    fn what_asks_for_something_else_is_named_with_its_layer() {
        let spec = |value: Value| -> FelixConfigurationSpec { serde_json::from_value(value).expect("settings") };
        let check = |default: Value, node: Value, expected: &[&str]| {
            let (default, node) = (spec(default), spec(node));
            let said = unheeded([("default", &default), ("node.n1", &node)].into_iter());
            let said: Vec<String> = said.iter().map(ToString::to_string).collect();
            assert_eq!(said, expected);
        };
        check(
            json!({ "bpfEnabled": false, "nftablesMode": "Auto", "reportingInterval": "0s", "floatingIPs": "Disabled" }),
            json!({}),
            &[],
        );
        check(
            json!({ "wireguardEnabled": true }),
            json!({}),
            &[
                "FelixConfiguration(default) spec.wireguardEnabled: true has no effect: packets between nodes are NOT ENCRYPTED",
            ],
        );
        check(
            json!({ "wireguardEnabled": true }),
            json!({ "wireguardEnabled": false }),
            &[],
        );
        check(
            json!({}),
            json!({ "prometheusMetricsEnabled": true, "deviceRouteProtocol": 100 }),
            &[
                "FelixConfiguration(node.n1) spec.deviceRouteProtocol: 100 has no effect: routes have protocol 80",
                "FelixConfiguration(node.n1) spec.prometheusMetricsEnabled: true has no effect: metrics are at /metrics on \
                 the health port",
            ],
        );
    }
}
