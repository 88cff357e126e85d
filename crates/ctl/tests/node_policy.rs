//! `node policy`: what the agent has compiled and the kernel counted, as people read it; what came since the last look.

use agent::policy_view::{DropView, EndpointView, HookView, PolicyView, RuleView, RulesView, SetView, TierView};

fn rule(index: usize, text: &str, kernel_rules: usize, packets: Option<u64>) -> RuleView {
    RuleView {
        way: "ingress".into(),
        index,
        text: text.into(),
        kernel_rules,
        packets,
        bytes: packets.map(|packets| packets * 60),
    }
}

fn view(denied: u64, ended: u64) -> PolicyView {
    let ends = vec![DropView {
        why: "end of tier default".into(),
        packets: ended,
        bytes: ended * 60,
    }];
    let mut drops = ends.clone();
    drops.push(DropView {
        why: "deny NetworkPolicy shop/db ingress 1".into(),
        packets: denied,
        bytes: denied * 60,
    });
    PolicyView {
        broken: None,
        endpoints: vec![
            EndpointView {
                id: "WorkloadEndpoint(shop/db)".into(),
                interface: "cali1".into(),
                addresses: vec!["192.168.1.10".into()],
                enforced: true,
                hooks: vec![HookView {
                    hook: "ingress".into(),
                    tiers: vec![TierView {
                        name: "default".into(),
                        policies: vec!["NetworkPolicy(shop/db)".into()],
                        staged: vec!["StagedNetworkPolicy(shop/next)".into()],
                        end: "Deny".into(),
                    }],
                }],
                profiles: vec!["kns.shop".into(), "gone".into()],
                drops: ends,
                ..EndpointView::default()
            },
            EndpointView {
                id: "HostEndpoint(n1.all)".into(),
                interface: "*".into(),
                closed: Some("GlobalNetworkPolicy(g) spec.tier: `t` is no tier that exists".into()),
                ..EndpointView::default()
            },
        ],
        policies: vec![RulesView {
            id: "NetworkPolicy(shop/db)".into(),
            tier: Some("default".into()),
            selector: Some("role == \"db\"".into()),
            missing: false,
            rules: vec![
                rule(0, "Allow TCP from role == \"api\" to port 5432", 2, None),
                rule(1, "Deny UDP", 1, Some(denied)),
                rule(2, "Deny IPv6 from 10.0.0.0/8", 0, None),
            ],
        }],
        profiles: vec![RulesView {
            id: "Profile(gone)".into(),
            missing: true,
            ..RulesView::default()
        }],
        sets: vec![SetView {
            id: "sAbc".into(),
            meaning: "role == \"api\"".into(),
            members: 12,
        }],
        drops,
        problems: vec!["chain x: the kernel refused it".into()],
    }
}

#[track_caller]
fn check(now: &PolicyView, before: Option<&PolicyView>, name: Option<&str>, expected: &str) {
    let mut out = Vec::new();
    ctl::node_policy::text(now, before, name, &mut out).expect("memory takes it");
    assert_eq!(String::from_utf8(out).expect("text"), expected.trim_start_matches('\n'));
}

#[test]
fn endpoints_come_first_then_rules_sets_and_drops() {
    check(
        &view(3, 20),
        None,
        None,
        r#"
1 of 2 endpoints enforced; 1 policy, 1 profile, 1 set with 12 members

WorkloadEndpoint(shop/db) (cali1, 192.168.1.10)
  ingress  tier default: NetworkPolicy(shop/db), StagedNetworkPolicy(shop/next) (staged); then Deny
  profiles kns.shop, gone
       20 dropped: end of tier default

HostEndpoint(n1.all) (*): NOT ENFORCED
  everything is denied: GlobalNetworkPolicy(g) spec.tier: `t` is no tier that exists
  profiles none

NetworkPolicy(shop/db), tier default, selects role == "db"
  ingress   0         -  Allow TCP from role == "api" to port 5432
  ingress   1         3  Deny UDP
  ingress   2 not in the kernel  Deny IPv6 from 10.0.0.0/8

Profile(gone) does not exist: it allows nothing

Sets
       12 sAbc  role == "api"

Dropped
       20 dropped: end of tier default
        3 dropped: deny NetworkPolicy shop/db ingress 1
problem: chain x: the kernel refused it
"#,
    );
}

#[test]
fn one_name_shows_what_came_since() {
    check(
        &view(5, 20),
        Some(&view(3, 20)),
        Some("NetworkPolicy(shop"),
        r#"
1 of 2 endpoints enforced; 1 policy, 1 profile, 1 set with 12 members

NetworkPolicy(shop/db), tier default, selects role == "db"
  ingress   0         -  Allow TCP from role == "api" to port 5432
  ingress   1    5 (+2)  Deny UDP
  ingress   2 not in the kernel  Deny IPv6 from 10.0.0.0/8
problem: chain x: the kernel refused it
"#,
    );
}
