//! Who holds the deletion of pools and tiers: finalizers are put on and taken away by themselves, so that nothing else of an object
//! is written.

use api::{Key, Kind, Resource};
use datastore::modify::TRIES;
use datastore::{Listing, Reason, Scope, StoreError};

use super::{Done, Executor, Outcome};
use crate::pools::has_blocks;
use crate::tiers::{POLICIES, belongs};

impl Executor {
    /// Puts our finalizer on an object or takes it away. The last hold on one that is being deleted goes only if nothing needs it,
    /// as the store says now.
    pub(super) async fn hold(&self, key: &Key, finalizer: &str, hold: bool) -> Done {
        for _ in 0..TRIES {
            let Some(stored) = self.store.get(key).await? else {
                return Ok(Outcome::Nothing("it is not there any more"));
            };
            let metadata = stored.resource.metadata();
            let Some(finalizers) = with(&metadata.finalizers, finalizer, hold) else {
                return Ok(Outcome::Nothing("it is so already"));
            };
            if metadata.deletion_timestamp.is_some() {
                if hold {
                    return Ok(Outcome::Nothing("it is being deleted"));
                }
                if self.is_needed(&stored.resource).await? {
                    return Ok(Outcome::Nothing("something needs it again"));
                }
            }
            match self.store.set_finalizers(key, finalizers, &stored.revision).await {
                Ok(_) => return Ok(Outcome::Done),
                // Somebody has written it meanwhile, or it is gone.
                Err(StoreError::Conflict(_) | StoreError::NotFound(_)) => {}
                Err(other) => return Err(other.into()),
            }
        }
        Err(StoreError::Conflict(key.clone()).into())
    }

    /// Whether a pool has blocks, or a tier that is not built in has policies.
    async fn is_needed(&self, resource: &Resource) -> Result<bool, StoreError> {
        match resource.kind() {
            Kind::IPPool => {
                let (pools, blocks) = (self.all(Kind::IPPool).await?, self.all(Kind::IPAMBlock).await?);
                Ok(has_blocks(resource, pools.iter(), blocks.iter()))
            }
            Kind::Tier => {
                let tier = &resource.metadata().name;
                if api::BuiltInTier::named(tier).is_some() {
                    return Ok(false);
                }
                for kind in POLICIES {
                    if self.all(kind).await?.iter().any(|policy| belongs(policy, tier)) {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            _ => Ok(true),
        }
    }

    async fn all(&self, kind: Kind) -> Result<Vec<Resource>, StoreError> {
        present(self.store.list(&Scope::Kind(kind)).await)
    }
}

/// What is listed. Of a kind without a definition there is nothing.
fn present(listed: Result<Listing, StoreError>) -> Result<Vec<Resource>, StoreError> {
    match listed {
        Ok(listing) => Ok(listing.items.into_iter().map(|stored| stored.resource).collect()),
        Err(StoreError::Unavailable(trouble)) if trouble.reason == Reason::NotInstalled => Ok(Vec::new()),
        Err(other) => Err(other),
    }
}

/// The finalizers with this one or without it; `None` if they are so already.
fn with(finalizers: &[String], finalizer: &str, hold: bool) -> Option<Vec<String>> {
    let mut next: Vec<String> = finalizers.iter().filter(|held| *held != finalizer).cloned().collect();
    if hold {
        next.push(finalizer.to_owned());
    }
    (next.len() != finalizers.len()).then_some(next)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use api::{IP_POOL_FINALIZER, TIER_FINALIZER};
    use datastore::{MemoryStore, Store};
    use futures::FutureExt;
    use serde_json::{Value, json};

    use super::*;

    fn put(memory: &MemoryStore, object: Value) -> Key {
        let right = json!({ "kind": object["kind"], "metadata": { "name": object["metadata"]["name"] },
            "spec": { "cidr": "10.9.0.0/16" } });
        let [right, wrong] = [right, object].map(|object| serde_json::from_value::<Resource>(object).unwrap());
        // Nobody makes a wrong one; one that is there may become so.
        let made = memory.create(right).now_or_never().unwrap().unwrap();
        let key = made.resource.key();
        memory.update(wrong, &made.revision).now_or_never().unwrap().unwrap();
        key
    }

    #[test]
    fn with_and_without() {
        let check = |held: &[&str], hold: bool, expected: Option<&[&str]>| {
            let held: Vec<String> = held.iter().map(ToString::to_string).collect();
            let expected: Option<Vec<String>> = expected.map(|names| names.iter().map(ToString::to_string).collect());
            assert_eq!(with(&held, "o/ours", hold), expected, "{held:?} {hold}");
        };
        check(&[], true, Some(&["o/ours"]));
        check(&["x/y"], true, Some(&["x/y", "o/ours"]));
        check(&["o/ours"], true, None);
        check(&["x/y", "o/ours", "z/z"], false, Some(&["x/y", "z/z"]));
        check(&["x/y"], false, None);
    }

    #[test]
    fn a_kind_without_a_definition_needs_nothing_and_other_trouble_is_no_answer() {
        let check = |reason: Reason, expected: bool| {
            let listed = present(Err(StoreError::unavailable(reason, "x")));
            assert_eq!(listed.is_ok_and(|all| all.is_empty()), expected, "{reason:?}");
        };
        check(Reason::NotInstalled, true);
        check(Reason::Unreachable, false);
        check(Reason::BadAnswer, false);
        check(Reason::Forbidden, false);
    }

    #[test]
    fn what_is_needed_again_is_not_let_go() {
        let check = |kind: &str, name: &str, spec: Value, needs: Option<Value>, expected: Outcome| {
            let memory = MemoryStore::new();
            let executor = Executor::new(Arc::new(memory.clone()));
            let finalizer = if kind == "Tier" {
                TIER_FINALIZER
            } else {
                IP_POOL_FINALIZER
            };
            let metadata =
                json!({ "name": name, "finalizers": ["x/y", finalizer], "deletionTimestamp": "2026-01-02T03:04:05Z" });
            let key = put(&memory, json!({ "kind": kind, "metadata": metadata, "spec": spec }));
            if let Some(needs) = needs {
                let needs: Resource = serde_json::from_value(needs).unwrap();
                memory.create(needs).now_or_never().unwrap().unwrap();
            }
            let done = executor.hold(&key, finalizer, false).now_or_never().unwrap().unwrap();
            assert_eq!(done, expected, "{kind} {name}");
            let left = memory.get(&key).now_or_never().unwrap().unwrap().unwrap().resource;
            let is_free = left.metadata().finalizers == ["x/y"];
            assert_eq!(is_free, done == Outcome::Done, "{kind} {name}: {left:?}");
        };
        let policy = json!({ "kind": "GlobalNetworkPolicy", "metadata": { "name": "t.p" }, "spec": { "tier": "t" } });
        let block = ipam_block("10.9.0.0/26");
        let needed = Outcome::Nothing("something needs it again");
        // One that can be read, and one that cannot.
        for spec in [json!({ "order": 1 }), json!({ "order": "first" })] {
            check("Tier", "t", spec.clone(), None, Outcome::Done);
            check("Tier", "t", spec.clone(), Some(policy.clone()), needed.clone());
            check("Tier", "u", spec.clone(), Some(policy.clone()), Outcome::Done);
        }
        check("Tier", "default", json!({ "order": "first" }), None, Outcome::Done);
        for spec in [
            json!({ "cidr": "10.9.0.0/16" }),
            json!({ "cidr": "10.9.0.0/16", "blockSize": "big" }),
            json!({ "cidr": "10.9.0.0/99" }),
        ] {
            check("IPPool", "a", spec.clone(), None, Outcome::Done);
            check("IPPool", "a", spec, Some(block.clone()), needed.clone());
        }
    }

    fn ipam_block(cidr: &str) -> Value {
        use ipam::{Block, Owner};
        let spec = api::IpamBlockSpec::create(
            cidr.parse().unwrap(),
            &Owner::Host("n".into()),
            jiff::Timestamp::UNIX_EPOCH,
        );
        json!(Resource::from(api::IpamBlock::new("10-9-0-0-26", spec)))
    }
}
