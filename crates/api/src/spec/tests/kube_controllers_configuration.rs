use super::*;
use crate::KubeControllersConfigurationSpec;

const KIND: Kind = Kind::KubeControllersConfiguration;

#[test]
fn all_fields_survive() {
    survives(KIND, "default", "{controllers: {}}");
    survives(
        KIND,
        "default",
        "{logSeverityScreen: Panic, healthChecks: Disabled, etcdV3CompactionPeriod: 0s, prometheusMetricsPort: 0, \
         debugProfilePort: 9095, controllers: {policy: {reconcilerPeriod: 5m0s}, workloadEndpoint: {}, serviceAccount: {}, \
         namespace: {}, loadBalancer: {assignIPs: RequestedServicesOnly}, policyMigration: {enabled: Enabled}, node: \
         {reconcilerPeriod: 1m0s, syncLabels: Disabled, leakGracePeriod: 0s, hostEndpoint: {autoCreate: Enabled, \
         createDefaultHostEndpoint: Disabled, templates: [{generateName: a, interfaceCIDRs: [10.0.0.0/8, 'fd00::/8'], \
         interfacePattern: '^eth[0-9]+$', labels: {x: z}, annotations: {a.b/c: d}, nodeSelector: has(x)}]}}}}",
    );
}

#[test]
fn the_initial_one_is_upstreams() {
    let spec = crate::document::to_json(
        &crate::KubeControllersConfiguration::new("default", KubeControllersConfigurationSpec::initial()).into(),
    );
    let wanted: serde_json::Value = serde_saphyr::from_str(
        "{logSeverityScreen: Info, healthChecks: Enabled, etcdV3CompactionPeriod: 10m0s, controllers: {node: \
         {reconcilerPeriod: 5m0s, syncLabels: Enabled, hostEndpoint: {autoCreate: Disabled, createDefaultHostEndpoint: \
         Enabled}, leakGracePeriod: 15m0s}, policy: {reconcilerPeriod: 5m0s}, workloadEndpoint: {reconcilerPeriod: 5m0s}, \
         serviceAccount: {reconcilerPeriod: 5m0s}, namespace: {reconcilerPeriod: 5m0s}, loadBalancer: {assignIPs: \
         AllServices}}}",
    )
    .unwrap();
    assert_eq!(spec["spec"], wanted);
}

#[test]
fn what_is_wrong_with_the_configuration() {
    check(KIND, "other", "{}", &["metadata.name: `other` must be `default`"]);
    check(
        KIND,
        "default",
        "{logSeverityScreen: Loud, prometheusMetricsPort: 65536, controllers: {nodes: {}}}",
        &[
            "spec.controllers.nodes: no such field; did you mean `node`?",
            "spec.logSeverityScreen: `Loud` must be one of None, Debug, Info, Warning, Error, Fatal, Panic",
            "spec.prometheusMetricsPort: `65536` must be a whole number from 0 to 65535",
        ],
    );
    let templates = "spec.controllers.node.hostEndpoint.templates";
    check(
        KIND,
        "default",
        "{controllers: {node: {hostEndpoint: {templates: [{}, {generateName: A, interfacePattern: '(', nodeSelector: a ==}, \
         {generateName: b, interfacePattern: b, labels: {'-': x}}, {generateName: b, interfaceCIDRs: [10.0.0.0/8]}]}}}}",
        &[
            &format!("{templates}[0].generateName: is required: it tells the template's host endpoints from others"),
            &format!("{templates}[0].interfaceCIDRs: is required without interfacePattern"),
            &format!("{templates}[1].generateName: `A` must be a DNS name: lower-case letters, digits, `-` and `.`"),
            &format!("{templates}[1].interfacePattern: `(` must be a regular expression: unclosed group"),
            &format!(
                "{templates}[1].nodeSelector: `a ==` is no selector: at character 5: expected a text in quotes, found the end"
            ),
            &format!(
                "{templates}[2].labels: `-` must be a key: at most 63 letters, digits, `-`, `_` and `.`, starting and \
                 ending with a letter or digit, after an optional DNS name and `/`"
            ),
            &format!("{templates}[3].generateName: `b` must be another one than those of the other templates"),
        ],
    );
}

#[test]
fn reservations() {
    let kind = Kind::IPReservation;
    survives(kind, "a", "{reservedCIDRs: [10.0.0.0/30, 'fd00::/127']}");
    check(
        kind,
        "a",
        "{}",
        &["spec.reservedCIDRs: is required: the ranges that are reserved"],
    );
    check(
        kind,
        "a",
        "{reservedCIDRs: [10.0.0.0/33]}",
        &["spec.reservedCIDRs[0]: `10.0.0.0/33` must be an address range like 10.0.0.0/16 or fd00::/64"],
    );
}
