use std::collections::BTreeSet;

use super::*;
use crate::{FelixConfiguration, FelixSettings, IptablesBackend, LogSeverity};

const KIND: Kind = Kind::FelixConfiguration;

#[test]
fn there_are_188_settings() {
    let names: BTreeSet<_> = FelixSettings::NAMES.iter().collect();
    assert_eq!((names.len(), FelixSettings::NAMES.len()), (188, 188));
}

#[test]
fn settings_of_every_type_survive() {
    survives(
        KIND,
        "default",
        "{bpfEnabled: false, goGCThreshold: -1, healthPort: 9099, deviceRouteProtocol: 80, iptablesMarkMask: 4294901760, ipipMTU: 1480, vxlanMTUV6: 0, \
         routeRefreshInterval: 1m30s, iptablesLockProbeInterval: 50ms, wireguardKeepAlive: 0s, logSeverityScreen: Warning, \
         logActionRateLimit: 10/second, iptablesBackend: NFT, deviceRouteSourceAddress: 10.0.0.1, deviceRouteSourceAddressIPv6: 'fd00::1', \
         natPortRange: '30000:40000', kubeNodePortRanges: [30000, '31000:32000'], istioDSCPMark: 23, externalNodesList: [10.0.0.0/8], \
         failsafeInboundHostPorts: [], failsafeOutboundHostPorts: [{protocol: UDP, port: 53, net: 10.0.0.0/8}, {port: 22}], \
         routeTableRanges: [{min: 1, max: 250}], healthTimeoutOverrides: [{name: Int Dataplane, timeout: 2m0s}], \
         bpfConntrackTimeouts: {tcpEstablished: 1h0m0s, tcpFinsSeen: Auto}, bpfLogFilters: {eth0: port 80}, \
         mtuIfacePattern: '^eth.*', interfaceExclude: '/^kube/,veth1', programClusterRoutes: EnabledIPIPOnly, bpfAttachType: Netkit}",
    );
}

#[test]
fn choices_are_read_in_any_case() {
    let felix =
        FelixConfiguration::try_from(good(KIND, "default", "{iptablesBackend: nft, logSeverityScreen: INFO}")).unwrap();
    assert_eq!(
        (felix.spec.iptables_backend, felix.spec.log_severity_screen),
        (Some(IptablesBackend::Nft), Some(LogSeverity::Info))
    );
}

#[test]
fn wrong_types_are_named_one_by_one() {
    check(
        KIND,
        "default",
        "{bpfEnabld: true, bpfEnabled: maybe, healthPort: 70000, ipipMTU: -1, routeRefreshInterval: 90, netlinkTimeout: 5 s, \
         logSeverityScreen: loud, natPortRange: 'b:a', deviceRouteSourceAddress: 'fd00::1', logActionRateLimit: 0/second, \
         bpfConntrackTimeouts: {udpTimeout: never, udpTimout: 1s}, failsafeInboundHostPorts: [{protocol: tcp}]}",
        &[
            "spec.bpfConntrackTimeouts.udpTimout: no such field; did you mean `udpTimeout`?",
            "spec.bpfEnabld: no such field; did you mean `bpfEnabled`?",
            "spec.bpfConntrackTimeouts.udpTimeout: `never` must be Auto or a duration like 90s or 1m30s",
            "spec.bpfEnabled: `maybe` must be true or false",
            "spec.deviceRouteSourceAddress: `fd00::1` must be an IPv4 address like 10.0.0.1",
            "spec.failsafeInboundHostPorts[0].port: is required",
            "spec.healthPort: `70000` must be a whole number from 0 to 65535",
            "spec.ipipMTU: `-1` must be a whole number from 0 to 4294967295",
            "spec.logActionRateLimit: `0/second` must be a rate of 1 to 9999: 10/second, 100/minute, …/hour or …/day",
            "spec.logSeverityScreen: `loud` must be one of Trace, Debug, Info, Warning, Error, Fatal",
            "spec.natPortRange: `b:a` must be a port from 1 to 65535, a range like 8000:8999, or a name",
            "spec.netlinkTimeout: `5 s` must be a duration like 90s, 1m30s or 500ms",
            "spec.routeRefreshInterval: `90` must be text: put it in quotes",
        ],
    );
}

#[test]
fn values_have_limits() {
    check(
        KIND,
        "default",
        "{mtuIfacePattern: '(', interfaceExclude: 'a,/(/,e th', interfacePrefix: 'cali,', iptablesNATOutgoingInterfaceFilter: 'e*', logPrefix: 'a;b', \
         prometheusMetricsHost: 'a b', openstackRegion: A, featureDetectOverride: 'A=maybe', featureGates: nothing, \
         externalNodesList: ['fd00::/64', x], failsafeOutboundHostPorts: [{protocol: ICMP, port: 0}], kubeNodePortRanges: [http], \
         iptablesMarkMask: 127, logActionRateLimitBurst: 10000, bpfMapSizeConntrackCleanupQueue: 0, vxlanVNI: 16777216, \
         routeTableRange: {min: 0, max: 251}, routeTableRanges: [{min: 5, max: 4}, {min: 1, max: 65536}], nodeSelector: all()}",
        &[
            "spec.nodeSelector: `all()` must be absent in `default` and `node.<name>`",
            "spec.mtuIfacePattern: `(` must be a regular expression",
            "spec.interfaceExclude: `/(/` must be a regular expression between the slashes",
            "spec.interfaceExclude: `e th` must be an interface: at most 15 letters, digits, `_`, `.` and `-`",
            "spec.interfacePrefix: `` must be what interfaces start with: letters, digits, `_`, `.`, `-`",
            "spec.iptablesNATOutgoingInterfaceFilter: `e*` must be an interface, `+` at its end for anything",
            "spec.logPrefix: `a;b` must have only letters, digits, `%`, `:`, `/`, `_`, `-` and space",
            "spec.prometheusMetricsHost: `a b` must be an address or name of at most 64 characters",
            "spec.openstackRegion: `A` must be a DNS label of at most 46 characters",
            "spec.featureDetectOverride: `A=maybe` must be a list like Name=true,Other=false",
            "spec.featureGates: `nothing` must be a list like Name=true,Other=false",
            "spec.externalNodesList[0]: `fd00::/64` must be an IPv4 address range",
            "spec.externalNodesList[1]: `x` must be an address range like 10.0.0.0/16 or fd00::/64",
            "spec.failsafeOutboundHostPorts[0].protocol: `ICMP` must be TCP, UDP or SCTP",
            "spec.failsafeOutboundHostPorts[0].port: `0` must be from 1 to 65535",
            "spec.kubeNodePortRanges[0]: `http` must be a port from 1 to 65535 or a range like 30000:32767",
            "spec.iptablesMarkMask: `0x7f` must have at least 8 bits set",
            "spec.logActionRateLimitBurst: `10000` must be from 0 to 9999",
            "spec.bpfMapSizeConntrackCleanupQueue: `0` must be at least 1",
            "spec.vxlanVNI: `16777216` must be below 16777216",
            "spec.routeTableRange: must be absent with routeTableRanges, which replaces it",
            "spec.routeTableRange: `0 to 251` must be a range within 1 to 250",
            "spec.routeTableRanges[0]: `5 to 4` must be a range of route tables, from 1 on",
            "spec.routeTableRanges: `65536 tables` must be at most 65535 tables together",
        ],
    );
    check(KIND, "edge-nodes", "{nodeSelector: has(edge)}", &[]);
}

#[test]
fn a_nodes_settings_go_over_the_clusters() {
    let spec = |text| FelixConfiguration::try_from(good(KIND, "default", text)).unwrap().spec;
    let merged = spec("{ipipMTU: 1400, bpfEnabled: false}").over(spec("{ipipMTU: 1480, healthPort: 1}"));
    assert_eq!(merged, spec("{ipipMTU: 1400, bpfEnabled: false, healthPort: 1}"));
}
