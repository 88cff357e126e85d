//! What is said of objects, and how often.

use serde_json::{Value, json};

use super::*;

fn at(minutes: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_mins(minutes)
}

fn resource(kind: &str, revision: i64, spec: Value) -> Resource {
    let mut metadata = json!({ "name": "a", "resourceVersion": revision.to_string(), "generation": revision });
    if Kind::ALL
        .iter()
        .any(|known| known.name() == kind && known.is_namespaced())
    {
        metadata["namespace"] = "shop".into();
    }
    serde_json::from_value(json!({ "kind": kind, "metadata": metadata, "spec": spec })).expect("a resource")
}

/// What is said of an object that nothing was said of before.
#[track_caller]
fn check(kind: &str, spec: Value, expected: &str) {
    let world: World = [resource(kind, 1, spec)].into_iter().collect();
    let said = said(&Validity::default().decide(at(0), &world));
    assert_eq!(said, expected);
}

fn said(actions: &[Action]) -> String {
    let text = |action: &Action| match action {
        Action::Judge { valid, .. } => format!("{} {}", valid.reason, valid.message),
        other => other.to_string(),
    };
    actions.iter().map(text).collect::<Vec<_>>().join("\n")
}

#[test]
fn what_is_wrong_is_named_with_what_follows() {
    check("GlobalNetworkPolicy", json!({ "selector": "all()" }), "");
    check(
        "GlobalNetworkPolicy",
        json!({ "selector": "role ==" }),
        "Invalid spec.selector: `role ==` is no selector: at character 8: expected a text in quotes, found the end: the policy denies what reaches it",
    );
    check(
        "NetworkPolicy",
        json!({ "tier": "lost" }),
        "Invalid spec.tier: `lost` is no tier that exists: the policy denies what reaches it",
    );
    check(
        "GlobalNetworkPolicy",
        json!({ "ingress": [{ "action": "Allow", "source": { "nets": ["10.0.0.0/33"] } }] }),
        "Invalid spec.ingress[0].source.nets[0]: `10.0.0.0/33` must be an address range like 10.0.0.0/16 or fd00::/64: the \
         policy denies what reaches it",
    );
    check(
        "StagedNetworkPolicy",
        json!({ "selector": "role ==" }),
        "Invalid spec.selector: `role ==` is no selector: at character 8: expected a text in quotes, found the end: this staged policy is left out",
    );
    check(
        "FelixConfiguration",
        json!({ "logSeverityScreen": "Loud" }),
        "Invalid spec.logSeverityScreen: `Loud` must be one of Trace, Debug, Info, Warning, Error, Fatal: what was in force stays so",
    );
    check(
        "NetworkSet",
        json!({ "nets": ["10.0.0.0/8", "ten"] }),
        "Invalid spec.nets[1]: `ten` must be an address range like 10.0.0.0/16 or fd00::/64: the rest is in force",
    );
    check(
        "BGPFilter",
        json!({ "importV4": [{ "action": "Accept", "cidr": "fd00::/8", "matchOperator": "In" }] }),
        "Invalid spec.importV4[0].cidr: `fd00::/8` must be of the family of its list",
    );
    check(
        "CalicoNodeStatus",
        json!({ "node": "n1", "classes": ["Agent", "Weather"] }),
        "Invalid spec.classes[1]: `Weather` must be one of Agent, BGP, Routes: no node says anything in it",
    );
}

#[test]
fn of_kubernetes_own_policies_what_could_not_be_converted_is_told() {
    let mut policy = resource("NetworkPolicy", 1, json!({ "order": 1000 }));
    policy.metadata_mut().name = "knp.default.db".into();
    let decide = |policy: &Resource| {
        let world: World = [policy.clone()].into_iter().collect();
        said(&Validity::default().decide(at(0), &world))
    };
    assert_eq!(decide(&policy), "");
    policy.metadata_mut().left_out = vec![FieldProblem {
        field: "spec.ingress[0].ports[0].port".into(),
        value: Some("0".into()),
        message: "must be from 1 to 65535".into(),
    }];
    let expected = "Invalid spec.ingress[0].ports[0].port: `0` must be from 1 to 65535: this part is not enforced";
    assert_eq!(decide(&policy), expected);
}

#[test]
fn all_that_people_write_is_followed() {
    let scopes = World::scopes();
    for kind in Kind::WRITTEN {
        assert!(scopes.contains(&datastore::Scope::Kind(kind)), "{kind}");
    }
}

/// An object through its life: each step is a minute, what it is by then, and what is said.
#[track_caller]
fn check_life(keeps_conditions: bool, steps: &[(i64, &str, &str)]) {
    let mut validity = Validity::default();
    let mut held: Option<Condition> = None;
    let mut spec = "";
    let mut revision = 0;
    for (minute, selector, expected) in steps {
        if spec != *selector {
            spec = selector;
            revision += 1;
        }
        let mut object = resource("GlobalNetworkPolicy", revision, json!({ "selector": selector }));
        if let Some(held) = &held {
            assert!(object.set_condition(held.clone()));
        }
        let world: World = [object].into_iter().collect();
        let actions = validity.decide(at(*minute), &world);
        let reason = said(&actions).split(' ').next().unwrap_or_default().to_owned();
        assert_eq!(reason, *expected, "minute {minute}");
        for action in actions {
            let Action::Judge { valid, .. } = action else { continue };
            held = keeps_conditions.then(|| Condition {
                kind: Condition::VALID.into(),
                status: valid.status,
                observed_generation: Some(revision),
                last_transition_time: at(*minute),
                reason: valid.reason.into(),
                message: valid.message,
            });
        }
    }
}

#[test]
fn a_condition_is_written_when_something_changed_and_never_for_what_was_always_right() {
    let steps = [
        (0, "all()", ""),
        (1, "a ==", "Invalid"),
        (2, "a ==", ""),
        (90, "a ==", ""),
        (91, "b ==", "Invalid"),
        (92, "all()", "Valid"),
        (93, "all()", ""),
    ];
    check_life(true, &steps);
}

#[test]
fn without_a_place_for_conditions_it_is_told_again_before_it_is_forgotten() {
    let steps = [
        (0, "all()", ""),
        (1, "a ==", "Invalid"),
        (2, "a ==", ""),
        (40, "a ==", ""),
        (41, "a ==", "Invalid"),
        (42, "all()", "Valid"),
        (43, "all()", ""),
        (99, "all()", ""),
    ];
    check_life(false, &steps);
}

#[test]
fn what_was_not_said_is_said_again() {
    let world: World = [resource("Tier", 1, json!({ "defaultAction": "Reject" }))]
        .into_iter()
        .collect();
    let mut validity = Validity::default();
    assert_eq!(validity.decide(at(0), &world).len(), 1);
    assert_eq!(validity.decide(at(0), &world).len(), 0);
    validity.failed(&Key::cluster(Kind::Tier, "a"));
    assert_eq!(validity.decide(at(0), &world).len(), 1);
}

#[test]
fn a_policy_and_its_tier_say_the_same() {
    let check = |name: &str, spec: Value, policy: &str, tier: &str| {
        let mut of_name = resource("Tier", 1, spec);
        of_name.metadata_mut().name = name.to_owned();
        let belonging = resource("GlobalNetworkPolicy", 1, json!({ "tier": name }));
        let world: World = [of_name, belonging].into_iter().collect();
        let actions = Validity::default().decide(at(0), &world);
        let about = |kind: Kind| {
            let of_kind = |action: &&Action| matches!(action, Action::Judge { key, .. } if key.kind == kind);
            said(&actions.iter().filter(of_kind).cloned().collect::<Vec<_>>())
        };
        assert_eq!(
            (about(Kind::GlobalNetworkPolicy), about(Kind::Tier)),
            (policy.into(), tier.into())
        );
    };
    check("t", json!({ "order": 1 }), "", "");
    check(
        "t",
        json!({ "defaultAction": "Reject" }),
        "Invalid spec.tier: the tier `t` cannot be read: the policy denies what reaches it",
        "Invalid spec.defaultAction: `Reject` must be one of Deny, Pass: its policies deny",
    );
    check(
        "default",
        json!({ "defaultAction": "Reject" }),
        "",
        "Invalid spec.defaultAction: `Reject` must be one of Deny, Pass: the tier is as it always is",
    );
}

#[test]
fn a_message_fits_where_it_is_told() {
    let check = |problems: &[String], begins: &str, ends: &str| {
        let message = judgement(problems).message;
        assert!(message.len() <= 1024, "{} bytes", message.len());
        assert!(message.starts_with(begins) && message.ends_with(ends), "{message}");
    };
    let long = format!("spec.selector: `{}` is no selector: it denies", "ä ==".repeat(30_000));
    check(&["a: b".into()], "a: b", "a: b");
    check(
        std::slice::from_ref(&long),
        "spec.selector: `ä ==",
        "is no selector: it denies",
    );
    check(
        &[long.clone(), long.clone(), long],
        "spec.selector: `ä ==",
        "is no selector: it denies; 2 more",
    );
    let short: Vec<String> = (0..200).map(|field| format!("spec.nets[{field}]: no")).collect();
    check(&short, "spec.nets[0]: no; spec.nets[1]: no", " more");
}
