//! Each field of a FelixConfiguration, as the packet filter takes it.

use serde_json::{Value, json};

use super::super::settings::{DenyAction, Failsafe, LogLimit, NatExclusions, ServiceLoop, Settings, ToHost};
use ipnet::IpNet;
use kernel::nft::Per;

/// What a spec says beyond the defaults is what `expected` makes of them.
#[track_caller]
fn check(spec: Value, expected: impl FnOnce(&mut Settings)) {
    let felix: api::FelixConfigurationSpec = serde_json::from_value(spec.clone()).expect("a spec");
    let mut settings = Settings::default();
    expected(&mut settings);
    assert_eq!(Settings::from(&felix), settings, "{spec}");
}

#[test]
fn without_a_word_upstream_s_defaults_count() {
    check(json!({}), |_| {});
    // Said, but nothing else.
    check(
        json!({
            "interfacePrefix": "cali", "defaultEndpointToHostAction": "Drop", "natOutgoingExclusions": "IPPoolsOnly",
            "serviceLoopPrevention": "Drop", "floatingIPs": "Disabled", "nftablesFilterDenyAction": "Drop",
            "iptablesNATOutgoingInterfaceFilter": "", "workloadSourceSpoofing": "Disabled", "vxlanPort": 4789,
        }),
        |_| {},
    );
}

#[test]
fn translations_follow_the_configuration() {
    for (range, expected) in [
        (json!("32768:65535"), Some((32768, 65535))),
        (json!("1000:1000"), Some((1000, 1000))),
        (json!(5000), Some((5000, 5000))),
    ] {
        check(json!({ "natPortRange": range }), |settings| {
            settings.nat_ports = expected
        });
    }
    check(json!({ "natOutgoingAddress": "203.0.113.9" }), |settings| {
        settings.nat_outgoing_address = Some([203, 0, 113, 9].into());
    });
    check(json!({ "natOutgoingExclusions": "IPPoolsAndHostIPs" }), |settings| {
        settings.nat_exclusions = NatExclusions::PoolsAndHosts;
    });
    for (name, expected) in [("eth0", Some("eth0")), ("eth+", Some("eth*")), ("+", None)] {
        check(json!({ "iptablesNATOutgoingInterfaceFilter": name }), |settings| {
            settings.nat_interface = expected.map(str::to_owned);
        });
    }
    check(json!({ "floatingIPs": "Enabled" }), |settings| {
        settings.floating_ips = true
    });
}

#[test]
fn what_is_denied_and_how() {
    for (action, to_host) in [("Accept", ToHost::Accept), ("Return", ToHost::Return)] {
        check(json!({ "defaultEndpointToHostAction": action }), |settings| {
            settings.endpoint_to_host = to_host;
        });
    }
    for (action, service_loop) in [("Reject", ServiceLoop::Reject), ("Disabled", ServiceLoop::Disabled)] {
        check(json!({ "serviceLoopPrevention": action }), |settings| {
            settings.service_loop = service_loop;
        });
    }
    let reject = |settings: &mut Settings| settings.deny = DenyAction::Reject;
    check(json!({ "nftablesFilterDenyAction": "Reject" }), reject);
    check(json!({ "iptablesFilterDenyAction": "Reject" }), reject);
    // The one for nf_tables counts.
    let both = json!({ "nftablesFilterDenyAction": "Drop", "iptablesFilterDenyAction": "Reject" });
    check(both, |_| {});
    check(json!({ "allowIPIPPacketsFromWorkloads": true }), |settings| {
        settings.allow_ipip_from_pods = true;
    });
    check(json!({ "allowVXLANPacketsFromWorkloads": true }), |settings| {
        settings.allow_vxlan_from_pods = true;
    });
    check(json!({ "vxlanPort": 8472 }), |settings| settings.vxlan_port = 8472);
    check(json!({ "disableConntrackInvalidCheck": true }), |settings| {
        settings.disable_invalid_check = true;
    });
    check(json!({ "workloadSourceSpoofing": "Any" }), |settings| {
        settings.source_spoofing = true;
    });
}

#[test]
fn failsafe_ports_are_those_that_are_named() {
    let net: IpNet = "10.0.0.0/8".parse().expect("a net");
    check(
        json!({ "failsafeInboundHostPorts": [
            {"port": 22}, {"protocol": "UDP", "port": 68}, {"protocol": "TCP", "port": 9, "net": "10.0.0.0/8"},
        ] }),
        |settings| {
            let guarded = Failsafe {
                net: Some(net),
                ..Failsafe::new(6, 9)
            };
            settings.failsafe_inbound = vec![Failsafe::new(6, 22), Failsafe::new(17, 68), guarded];
        },
    );
    check(json!({ "failsafeOutboundHostPorts": [] }), |settings| {
        settings.failsafe_outbound = Vec::new();
    });
}

#[test]
fn names_marks_and_lines_of_the_log() {
    check(json!({ "interfacePrefix": "cali, tap,," }), |settings| {
        settings.interface_prefixes = vec!["cali".into(), "tap".into()];
    });
    check(json!({ "nftablesMarkMask": 0xff00 }), |settings| {
        settings.mark_mask = 0xff00
    });
    check(json!({ "iptablesMarkMask": 0xf000 }), |settings| {
        settings.mark_mask = 0xf000
    });
    // Two bits are needed.
    check(json!({ "nftablesMarkMask": 0x100 }), |_| {});
    check(json!({ "logPrefix": "denied" }), |settings| {
        settings.log_prefix = "denied".into()
    });
    check(json!({ "flowLogsLocalReporter": "Enabled" }), |settings| {
        settings.flow_logs = true;
    });
    for (burst, expected) in [(Value::Null, 5), (json!(9), 9)] {
        let mut spec = json!({ "logActionRateLimit": "100/minute" });
        if !burst.is_null() {
            spec["logActionRateLimitBurst"] = burst;
        }
        check(spec, |settings| {
            settings.log_limit = Some(LogLimit {
                lines: 100,
                per: Per::Minute,
                burst: expected,
            });
        });
    }
}
