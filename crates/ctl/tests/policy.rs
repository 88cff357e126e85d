//! Policies, tiers, sets and host endpoints through the commands: columns, what is filled in, what is refused.

mod common;

use api::{Key, Kind, Resource};
use clap::CommandFactory;
use common::{Cluster, block_on, documents};
use datastore::Store;

const CLUSTER: &str = r#"
Tier security {order: 350.5, defaultAction: Pass}
Tier last {}
NetworkPolicy shop/allow-web {order: 100, selector: "role == 'web'", tier: security}
NetworkPolicy shop/plain {}
NetworkPolicy bank/security.deny {order: 2000000, selector: all(), tier: security}
GlobalNetworkPolicy guard {order: 0.5, selector: has(a), namespaceSelector: has(b)}
StagedNetworkPolicy shop/draft {order: 7, selector: has(x)}
StagedGlobalNetworkPolicy draft {order: -1, tier: last}
StagedKubernetesNetworkPolicy shop/draft {podSelector: {matchLabels: {app: web}, matchExpressions: [{key: env, operator: NotIn, values: [a, b]}]}}
StagedKubernetesNetworkPolicy shop/all {}
NetworkSet shop/partners {nets: [203.0.113.0/24, "2001:db8::/32"]}
GlobalNetworkSet many {nets: [10.0.0.0/16, 10.1.0.0/16, 10.2.0.0/16, 10.3.0.0/16, 10.4.0.0/16, 10.5.0.0/16, 10.6.0.0/16, 10.7.0.0/16]}
HostEndpoint a.eth0 {node: a, interfaceName: eth0, expectedIPs: [192.0.2.1, "2001:db8::1"], profiles: [p, q]}
HostEndpoint a.all {node: a, interfaceName: "*"}
KubernetesEndpointSlice shop/web-1 {service: web, addresses: [10.0.0.1, 10.0.0.2], ports: [{name: http, protocol: TCP, port: 80}, {protocol: UDP, port: 53}]}
"#;

#[test]
fn a_policy_says_what_is_wrong_with_it() {
    let cluster = Cluster::new();
    // As another program may have written them.
    for json in [
        r#"{"kind":"NetworkPolicy","metadata":{"name":"bad","namespace":"shop"},"spec":{"tier":"default","selector":"role =="}}"#,
        r#"{"kind":"NetworkPolicy","metadata":{"name":"lost.p","namespace":"shop"},"spec":{"tier":"lost","selector":"all()"}}"#,
        r#"{"kind":"NetworkPolicy","metadata":{"name":"good","namespace":"shop"},"spec":{"tier":"default","selector":"all()"}}"#,
        r#"{"kind":"NetworkPolicy","metadata":{"name":"there.p","namespace":"shop"},"spec":{"tier":"there","selector":"all()"}}"#,
        r#"{"kind":"Tier","metadata":{"name":"there"},"spec":{}}"#,
    ] {
        let resource = serde_json::from_str(json).expect("a resource");
        block_on(cluster.store.create(resource)).expect("it is new");
    }
    cluster.check(
        "get np -n shop -o wide",
        "
NAME      TIER      ORDER   SELECTOR   STATUS
bad       default   <nil>   role ==    denies
good      default   <nil>   all()      ok
lost.p    lost      <nil>   all()      denies
there.p   there     <nil>   all()      ok",
    );
    cluster.check(
        "get np -n shop bad lost.p",
        "NAME     TIER\nbad      default\nlost.p   lost",
    );
}

#[test]
fn every_kind_has_upstreams_columns() {
    let cluster = Cluster::with(CLUSTER);
    cluster.check(
        "get np -A",
        "
NAMESPACE   NAME            TIER
bank        security.deny   security
shop        allow-web       security
shop        plain           default",
    );
    cluster.check(
        "get networkpolicy -n shop -o wide",
        "
NAME        TIER       ORDER   SELECTOR        STATUS
allow-web   security   100     role == 'web'   ok
plain       default    <nil>                   ok",
    );
    cluster.check(
        "get policy -n bank -o wide",
        "
NAME            TIER       ORDER   SELECTOR   STATUS
security.deny   security   2e+06   all()      ok",
    );
    cluster.check("get gnp", "NAME    TIER\nguard   default");
    cluster.check(
        "get globalNetworkPolicies -owide",
        "
NAME    TIER      ORDER   SELECTOR   STATUS
guard   default   0.5     has(a)     ok",
    );
    cluster.check("get snp -n shop", "NAME    TIER\ndraft   default");
    cluster.check(
        "get spol -n shop -o wide",
        "
NAME    TIER      ORDER   SELECTOR   STATUS
draft   default   7       has(x)     ok",
    );
    cluster.check(
        "get sgnp -o wide",
        "
NAME    TIER   ORDER   SELECTOR   STATUS
draft   last   -1                 ok",
    );
    cluster.check("get sknp -n shop", "NAME\nall\ndraft");
    cluster.check(
        "get skpol -A -o wide",
        "
NAMESPACE   NAME    PODSELECTOR               STATUS
shop        all     <none>                    ok
shop        draft   app=web,env notin (a,b)   ok",
    );
    cluster.check("get netsets -n shop", "NAME\npartners");
    cluster.check(
        "get networkset -n shop -o wide",
        "
NAME       NETS                           STATUS
partners   203.0.113.0/24,2001:db8::/32   ok",
    );
    cluster.check(
        "get gnetsets -o wide",
        "
NAME   NETS                                                                               STATUS
many   10.0.0.0/16,10.1.0.0/16,10.2.0.0/16,10.3.0.0/16,10.4.0.0/16,10.5.0.0/16,10.6....   ok",
    );
    cluster.check("get hep", "NAME     NODE\na.all    a\na.eth0   a");
    cluster.check(
        "get hostendpoints -o wide",
        "
NAME     NODE   INTERFACE   IPS                     PROFILES   STATUS
a.all    a      *                                              ok
a.eth0   a      eth0        192.0.2.1,2001:db8::1   p,q        ok",
    );
    cluster.check(
        "get kubernetesendpointslices -n shop",
        "
NAME    SERVICE   ADDRESSES           PORTS
web-1   web       10.0.0.1,10.0.0.2   80/TCP,53/UDP",
    );
}

#[test]
fn tiers_are_shown_in_their_order_with_those_that_always_exist() {
    let cluster = Cluster::with(CLUSTER);
    let all = "
NAME            ORDER
security        350.5
kube-admin      1000
default         1e+06
kube-baseline   1e+07
last            <nil>";
    cluster.check("get tier", all);
    let wide = "
NAME            ORDER   STATUS
security        350.5   ok
kube-admin      1000    ok
default         1e+06   ok
kube-baseline   1e+07   ok
last            <nil>   ok";
    cluster.check("get tiers -o wide", wide);
    cluster.check(
        "get tier default last",
        "NAME      ORDER\ndefault   1e+06\nlast      <nil>",
    );
    cluster.check("get tier other", "error: Tier(other) does not exist\nexit 1");
    let built_in = "
apiVersion: projectcalico.org/v3
kind: Tier
metadata:
  name: kube-admin
spec:
  defaultAction: Pass
  order: 1000";
    cluster.check("get tier kube-admin -o yaml", built_in);
    // One that is stored is shown once.
    cluster.check_with("apply -f -", built_in, "Successfully applied 1 'Tier' resource(s)");
    cluster.check("get tier", all);
}

#[test]
fn what_is_shown_can_be_applied_again() {
    let cluster = Cluster::with(CLUSTER);
    for kind in [
        "np -A",
        "gnp",
        "snp -A",
        "sgnp",
        "sknp -A",
        "tier",
        "netsets -A",
        "gnetsets",
        "hep",
    ] {
        for format in ["yaml", "json"] {
            let shown = cluster.run(&format!("get {kind} -o {format} --export"), "");
            for verb in ["apply", "replace"] {
                let answer = cluster.run(&format!("{verb} -f -"), &shown);
                assert!(answer.starts_with("Successfully"), "{kind} {format}: {answer}\n{shown}");
            }
        }
    }
}

#[test]
fn each_kind_goes_through_all_verbs() {
    let cluster = Cluster::new();
    let lines = "NetworkPolicy shop/a {ingress: [{action: Allow, protocol: TCP, source: {selector: has(b)}, destination: {ports: [80]}}]}\n\
                 GlobalNetworkPolicy a\nStagedNetworkPolicy shop/a\nStagedGlobalNetworkPolicy a\n\
                 StagedKubernetesNetworkPolicy shop/a\nTier a\nNetworkSet shop/a\nGlobalNetworkSet a\n\
                 HostEndpoint a {node: n, interfaceName: eth0}";
    for line in lines.lines() {
        let kind = line.split(' ').next().unwrap_or_default();
        let text = documents(line);
        for (verb, done) in [
            ("validate", "validated"),
            ("create", "created"),
            ("apply", "applied"),
            ("replace", "replaced"),
            ("delete", "deleted"),
        ] {
            cluster.check_with(
                &format!("{verb} -f -"),
                &text,
                &format!("Successfully {done} 1 '{kind}' resource(s)"),
            );
        }
    }
    assert!(cluster.keys().is_empty());
}

#[test]
fn a_policy_is_stored_with_its_tier_types_and_label() {
    let cluster = Cluster::new();
    let text = documents("NetworkPolicy shop/a {egress: [{action: Deny}]}");
    cluster.check_with(
        "create -f -",
        &text,
        "Successfully created 1 'NetworkPolicy' resource(s)",
    );
    cluster.check(
        "get np -n shop a -o yaml --export",
        "
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata:
  labels:
    projectcalico.org/tier: default
  name: a
  namespace: shop
spec:
  egress:
  - action: Deny
  tier: default
  types:
  - Egress",
    );
}

#[test]
fn whoever_writes_an_object_has_no_say_in_its_status() {
    let cluster = Cluster::new();
    let plain = documents("GlobalNetworkPolicy a").replace("---\n", "");
    let status = |reason: &str| {
        format!(
            "status: {{conditions: [{{type: Valid, status: 'False', reason: {reason}, lastTransitionTime: \
             2026-01-02T03:04:05Z}}]}}\n"
        )
    };
    let key = Key::cluster(Kind::GlobalNetworkPolicy, "a");
    let said = |cluster: &Cluster| -> Vec<String> {
        let stored = cluster.resource(&key).expect("it is there");
        stored
            .conditions()
            .into_iter()
            .map(|condition| condition.reason)
            .collect()
    };
    let apply = |text: &str| {
        let done = "Successfully applied 1 'GlobalNetworkPolicy' resource(s)";
        cluster.check_with("apply -f -", text, done);
    };
    apply(&format!("{plain}{}", status("Mine")));
    assert!(said(&cluster).is_empty());
    let mut stored = block_on(cluster.store.get(&key))
        .expect("a store")
        .expect("it is there");
    let judged: Resource = serde_json::from_value(serde_json::json!({
        "kind": "GlobalNetworkPolicy", "metadata": { "name": "a" }, "spec": {},
        "status": { "conditions": [{
            "type": "Valid", "status": "False", "reason": "Invalid", "lastTransitionTime": "2026-01-02T03:04:05Z",
        }] },
    }))
    .expect("a policy");
    for condition in judged.conditions() {
        assert!(stored.resource.set_condition(condition));
    }
    block_on(cluster.store.update(stored.resource, &stored.revision)).expect("nobody else writes");
    for text in [plain.clone(), format!("{plain}{}", status("Mine"))] {
        apply(&text);
        assert_eq!(said(&cluster), ["Invalid"]);
    }
}

#[test]
fn a_policy_needs_its_tier() {
    let cluster = Cluster::new();
    let policies = "NetworkPolicy shop/a {tier: security}\nGlobalNetworkPolicy b {tier: security}\nStagedNetworkPolicy shop/c {tier: other}\n\
                    StagedGlobalNetworkPolicy d {tier: kube-admin}";
    let refused = "
error: NetworkPolicy(shop/a): spec.tier: `security` does not exist; create Tier(security) first
error: GlobalNetworkPolicy(b): spec.tier: `security` does not exist; create Tier(security) first
error: StagedNetworkPolicy(shop/c): spec.tier: `other` does not exist; create Tier(other) first
exit 1";
    cluster.check_with("create -f -", &documents(policies), refused);
    cluster.check_with("apply -f -", &documents(policies), refused);
    assert!(cluster.keys().is_empty());
    // The file itself may bring them, also further down.
    let both = format!("{policies}\nTier security\nTier other");
    cluster.check_with("apply -f -", &documents(&both), "Successfully applied 6 resource(s)");
    cluster.check_with(
        "replace -f -",
        &documents(policies),
        "Successfully replaced 4 resource(s)",
    );
}

#[test]
fn a_tier_with_policies_stays() {
    let cluster = Cluster::with(CLUSTER);
    let before = cluster.keys();
    cluster.check(
        "delete tier security",
        "error: Tier(security): has 2 policies: NetworkPolicy(bank/security.deny), NetworkPolicy(shop/allow-web); delete what it \
         has or give it another tier first\nexit 1",
    );
    cluster.check(
        "delete tier last security -s",
        "
error: Tier(last): has 1 policy: StagedGlobalNetworkPolicy(draft); delete what it has or give it another tier first
error: Tier(security): has 2 policies: NetworkPolicy(bank/security.deny), NetworkPolicy(shop/allow-web); delete what it has or give it another tier first
exit 1",
    );
    assert_eq!(cluster.keys(), before, "nothing of it was done");
    // With everything that is in it, it goes.
    let whole = "Tier security\nNetworkPolicy shop/allow-web\nNetworkPolicy bank/security.deny";
    cluster.check_with("delete -f -", &documents(whole), "Successfully deleted 3 resource(s)");
    cluster.check(
        "delete sgnp draft",
        "Successfully deleted 1 'StagedGlobalNetworkPolicy' resource(s)",
    );
    cluster.check("delete tier last", "Successfully deleted 1 'Tier' resource(s)");

    let many: String = (0..5)
        .map(|n| format!("GlobalNetworkPolicy p{n} {{tier: t}}\n"))
        .collect();
    Cluster::with(&format!("Tier t\n{many}")).check(
        "delete tier t",
        "error: Tier(t): has 5 policies: GlobalNetworkPolicy(p0), GlobalNetworkPolicy(p1), GlobalNetworkPolicy(p2), …; delete what \
         it has or give it another tier first\nexit 1",
    );
}

#[test]
fn built_in_tiers_are_as_they_are() {
    let cluster = Cluster::new();
    cluster.check(
        "delete tier default kube-admin -s",
        "
error: Tier(default): is built in and cannot be deleted
error: Tier(kube-admin): is built in and cannot be deleted
exit 1",
    );
    cluster.check_with(
        "apply -f -",
        &documents("Tier default {order: 5, defaultAction: Pass}"),
        "
error: standard input, document 1 (Tier default): spec.order: `5` must be 1000000 for tier default
error: standard input, document 1 (Tier default): spec.defaultAction: `Pass` must be Deny for tier default
exit 1",
    );
    cluster.check_with(
        "apply -f -",
        &documents("Tier default"),
        "Successfully applied 1 'Tier' resource(s)",
    );
    cluster.check(
        "delete tier default",
        "error: Tier(default): is built in and cannot be deleted\nexit 1",
    );
}

#[test]
fn what_follows_kubernetes_is_changed_there() {
    let cluster =
        Cluster::with("NetworkPolicy shop/knp.default.a\nGlobalNetworkPolicy kcnp.kube-admin.a {tier: kube-admin}");
    let lines = "NetworkPolicy shop/knp.default.a\nGlobalNetworkPolicy kcnp.kube-admin.a\nKubernetesEndpointSlice shop/a {service: s}";
    let refused = "
error: NetworkPolicy(shop/knp.default.a): comes from Kubernetes: change the policy there
error: GlobalNetworkPolicy(kcnp.kube-admin.a): comes from Kubernetes: change the policy there
error: KubernetesEndpointSlice(shop/a): objects of this kind follow Kubernetes' alone
exit 1";
    for verb in ["create", "apply", "replace", "delete"] {
        cluster.check_with(&format!("{verb} -f -"), &documents(lines), refused);
    }
    cluster.check("get np -n shop", "NAME            TIER\nknp.default.a   default");
}

#[test]
fn shells_know_the_kinds() {
    #[derive(clap::Parser)]
    struct Line {
        #[command(subcommand)]
        _command: ctl::Command,
    }
    let line = Line::command();
    for verb in ["get", "delete"] {
        let command = line.find_subcommand(verb).expect("it is one");
        let kind = command.get_arguments().find(|argument| argument.get_id() == "kind");
        let names: Vec<String> = kind
            .expect("it has one")
            .get_possible_values()
            .iter()
            .map(|value| value.get_name().to_owned())
            .collect();
        assert_eq!(names.len(), Kind::ALL.len());
        for (name, kind) in names.iter().zip(Kind::ALL) {
            assert_eq!(Kind::parse_name(name), Ok(kind));
        }
    }
    // A name that shells do not offer is as good, and a wrong one has a better answer than theirs.
    Cluster::new().check("get GNPs", "NAME   TIER");
    let wrong = Cluster::new().run("get networkpolcy", "");
    assert!(
        wrong.starts_with("error: `networkpolcy` is no kind of resource. Did you mean NetworkPolicy?"),
        "{wrong}"
    );
}
