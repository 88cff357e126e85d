//! Objects say which nodes' kernels refuse what they ask for. The nodes' agents write that and take it back; of a node that is gone
//! nobody would.

use std::collections::BTreeSet;

use api::{Condition, Kind};

use crate::action::Action;
use crate::world::World;

/// Kinds on which agents say so.
const KINDS: [Kind; 3] = [Kind::NetworkPolicy, Kind::GlobalNetworkPolicy, Kind::HostEndpoint];

/// What to take away now.
pub fn decide(world: &World) -> Vec<Action> {
    let nodes: BTreeSet<&str> = world.of_kind(Kind::Node).map(|node| &*node.metadata().name).collect();
    let mut actions = Vec::new();
    for resource in KINDS.into_iter().flat_map(|kind| world.of_kind(kind)) {
        let conditions = resource.conditions();
        let said = conditions.iter().filter_map(Condition::refused_by);
        let of_nobody = said.filter(|node| !nodes.contains(node));
        actions.extend(of_nobody.map(|node| Action::ForgetNode {
            key: resource.key(),
            node: node.to_owned(),
        }));
    }
    actions
}

#[cfg(test)]
mod tests {
    use api::Resource;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_nodes_said_that_are_gone_is_taken_away() {
        let resource = |value| serde_json::from_value::<Resource>(value).expect("a resource");
        let condition = |kind: &str, status: &str| json!({ "type": kind, "status": status, "reason": "r", "lastTransitionTime": "2026-01-01T00:00:00Z" });
        let world: World = [
            resource(json!({ "kind": "Node", "metadata": { "name": "n1" }, "spec": {} })),
            resource(
                json!({ "kind": "GlobalNetworkPolicy", "metadata": { "name": "a" }, "spec": {}, "status": {
                "conditions": [
                    condition("Valid", "False"),
                    condition("n1/Enforced", "False"),
                    condition("n2/Enforced", "False"),
                ]
            } }),
            ),
            resource(
                json!({ "kind": "HostEndpoint", "metadata": { "name": "h" }, "spec": {}, "status": {
                "conditions": [condition("n3/Enforced", "False")]
            } }),
            ),
        ]
        .into_iter()
        .collect();
        let told: Vec<String> = decide(&world).iter().map(ToString::to_string).collect();
        let expected = [
            "forget-node n2 on GlobalNetworkPolicy(a)",
            "forget-node n3 on HostEndpoint(h)",
        ];
        assert_eq!(told, expected);
    }
}
