//! What is said where, and what is not written.

use std::collections::BTreeMap;

use api::{GlobalNetworkPolicySpec, HostEndpointSpec, Object, ProfileSpec};
use datastore::{MemoryStore, Store, Stored};
use std::sync::Arc;

use super::*;

fn policy(name: &str) -> Key {
    Key::cluster(Kind::GlobalNetworkPolicy, name)
}

/// A store with a policy `a`, a host endpoint `h` and a profile `p`.
async fn store() -> Arc<MemoryStore> {
    let store = Arc::new(MemoryStore::new());
    let resources: [Resource; 3] = [
        Object::new("a", GlobalNetworkPolicySpec::default()).into(),
        Object::new("h", HostEndpointSpec::default()).into(),
        Object::new("p", ProfileSpec::default()).into(),
    ];
    for resource in resources {
        store.create(resource).await.expect("created");
    }
    store
}

fn teller(node: &str, store: &Arc<MemoryStore>) -> Teller {
    Teller {
        node: node.to_owned(),
        store: store.clone(),
        said: BTreeMap::new(),
        told: BTreeMap::new(),
        full: BTreeSet::new(),
    }
}

async fn get(store: &MemoryStore, key: &Key) -> Stored {
    store.get(key).await.expect("an answer").expect("it is there")
}

/// Conditions of an object, as `TYPE=STATUS REASON MESSAGE`.
async fn conditions(store: &MemoryStore, key: &Key) -> Vec<String> {
    let conditions = get(store, key).await.resource.conditions();
    let text = |held: Condition| format!("{}={:?} {} {}", held.kind, held.status, held.reason, held.message);
    conditions.into_iter().map(text).collect()
}

fn refused(keys: &[Key], why: &str) -> Refusals {
    keys.iter().map(|key| (key.clone(), why.to_owned())).collect()
}

#[tokio::test]
async fn an_object_says_which_node_refuses_until_it_does_no_more() {
    let store = store().await;
    let host = Key::cluster(Kind::HostEndpoint, "h");
    let keys = [policy("a"), host.clone()];
    let (mut one, mut two) = (teller("n1", &store), teller("n2", &store));
    assert!(one.say(&refused(&keys, "it denies: no memory")).await);
    assert!(two.say(&refused(&keys[..1], "it denies: too deep")).await);
    let first = "n1/Enforced=False RulesRefused on node n1, it denies: no memory";
    let second = "n2/Enforced=False RulesRefused on node n2, it denies: too deep";
    assert_eq!(conditions(&store, &keys[0]).await, [first, second]);
    assert_eq!(conditions(&store, &host).await, [first]);

    // Another reason takes its place; the same one is not written again.
    assert!(one.say(&refused(&keys[..1], "it denies: other")).await);
    let before = get(&store, &keys[0]).await.revision;
    assert!(one.say(&refused(&keys[..1], "it denies: other")).await);
    assert_eq!(get(&store, &keys[0]).await.revision, before);
    let other = "n1/Enforced=False RulesRefused on node n1, it denies: other";
    assert_eq!(conditions(&store, &keys[0]).await, [other, second]);
    assert!(conditions(&store, &host).await.is_empty());

    assert!(one.say(&Refusals::new()).await);
    assert_eq!(conditions(&store, &keys[0]).await, [second]);
}

#[tokio::test]
async fn a_node_that_refuses_nothing_reads_and_writes_nothing() {
    let store = store().await;
    let before = get(&store, &policy("a")).await;
    let mut teller = teller("n1", &store);
    teller.take(Said::of("n1", &update(&before)).expect("it has a place"));
    assert!(teller.say(&Refusals::new()).await);
    assert_eq!(get(&store, &policy("a")).await, before);
}

fn update(stored: &Stored) -> Update {
    Update {
        key: stored.resource.key(),
        value: Some(stored.resource.clone()),
    }
}

#[tokio::test]
async fn what_an_earlier_agent_said_is_taken_back() {
    let store = store().await;
    let key = policy("a");
    assert!(
        teller("n1", &store)
            .say(&refused(std::slice::from_ref(&key), "it denies"))
            .await
    );
    let mut next = teller("n1", &store);
    let said = Said::of("n1", &update(&get(&store, &key).await)).expect("it has a place");
    assert_eq!(said.text.as_deref(), Some("on node n1, it denies"));
    next.take(said);
    assert!(next.say(&Refusals::new()).await);
    assert!(conditions(&store, &key).await.is_empty());
}

#[tokio::test]
async fn what_somebody_took_away_is_said_again() {
    let store = store().await;
    let key = policy("a");
    let mut teller = teller("n1", &store);
    let now = refused(std::slice::from_ref(&key), "it denies");
    assert!(teller.say(&now).await);
    let mut stored = get(&store, &key).await;
    assert!(stored.resource.remove_condition("n1/Enforced"));
    let stored = store.update(stored.resource, &stored.revision).await.expect("written");
    teller.take(Said::of("n1", &update(&stored)).expect("it has a place"));
    assert!(teller.say(&now).await);
    assert_eq!(conditions(&store, &key).await.len(), 1);
}

#[tokio::test]
async fn not_more_than_some_nodes_write_on_one_object() {
    let store = store().await;
    let key = policy("a");
    let now = refused(std::slice::from_ref(&key), "it denies");
    for node in 0..MOST + 4 {
        assert!(teller(&format!("n{node}"), &store).say(&now).await);
    }
    assert_eq!(conditions(&store, &key).await.len(), MOST);
}

#[tokio::test]
async fn what_has_no_place_or_is_gone_is_no_failure() {
    let store = store().await;
    let keys = [
        Key::cluster(Kind::Profile, "p"),
        policy("gone"),
        Key::cluster(Kind::Node, "n1"),
        Key::namespaced(Kind::NetworkPolicy, "shop", "knp.default.db"),
    ];
    let mut teller = teller("n1", &store);
    assert!(teller.say(&refused(&keys, "it denies")).await);
    let told: Vec<String> = teller.told.keys().map(ToString::to_string).collect();
    assert_eq!(told, ["Node(n1)", "Profile(p)", "NetworkPolicy(shop/knp.default.db)"]);
    assert!(teller.say(&Refusals::new()).await);
    assert!(teller.told.is_empty());
}

#[tokio::test]
async fn a_long_reason_is_cut() {
    let store = store().await;
    let key = policy("a");
    assert!(
        teller("n1", &store)
            .say(&refused(std::slice::from_ref(&key), &"ä".repeat(LONGEST)))
            .await
    );
    let text = text_of("n1", &get(&store, &key).await.resource).expect("said");
    assert!(text.len() <= LONGEST && text.ends_with('ä'), "{text}");
}
