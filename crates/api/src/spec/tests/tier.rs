use super::*;
use crate::BuiltInTier;

const KIND: Kind = Kind::Tier;

#[test]
fn all_fields_survive() {
    survives(KIND, "a", "{order: 150, defaultAction: Pass}");
    survives(KIND, "a", "{order: 0.5, defaultAction: Deny}");
    survives(KIND, "a", "{}");
}

#[test]
fn a_tier_denies_at_its_end_unless_it_says_otherwise() {
    with_defaults(KIND, "a", "{order: 3}", "{order: 3, defaultAction: Deny}");
    with_defaults(KIND, "a", "{defaultAction: Pass}", "{defaultAction: Pass}");
}

#[test]
fn names_are_labels() {
    let right = "must be a DNS label: at most 63 lower-case letters, digits and inner `-`, no dots";
    for name in ["a.b", "A"] {
        check(KIND, name, "{}", &[&format!("metadata.name: `{name}` {right}")]);
    }
    let long = "a".repeat(64);
    check(KIND, &long, "{}", &[&format!("metadata.name: `{long}` {right}")]);
    check(KIND, &long[1..], "{}", &[]);
    check(
        KIND,
        "a",
        "{defaultAction: Allow}",
        &["spec.defaultAction: `Allow` must be one of Deny, Pass"],
    );
}

#[test]
fn three_tiers_are_as_they_are() {
    for (name, order, action, other) in [
        ("kube-admin", "1000", "Pass", "Deny"),
        ("default", "1000000", "Deny", "Pass"),
        ("kube-baseline", "10000000", "Pass", "Deny"),
    ] {
        let spec = format!("{{order: {order}, defaultAction: {action}}}");
        with_defaults(KIND, name, "{}", &spec);
        check(KIND, name, &spec, &[]);
        check(
            KIND,
            name,
            &format!("{{order: 5, defaultAction: {other}}}"),
            &[
                &format!("spec.order: `5` must be {order} for tier {name}"),
                &format!("spec.defaultAction: `{other}` must be {action} for tier {name}"),
            ],
        );
        let object: Resource = BuiltInTier::named(name).unwrap().object().into();
        assert_eq!(object, good(KIND, name, "{}").with_defaults());
    }
    let orders: Vec<_> = BuiltInTier::ALL.iter().map(|tier| tier.order).collect();
    assert!(orders.is_sorted());
    assert_eq!(BuiltInTier::named("a"), None);
}
