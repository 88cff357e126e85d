//! `create`, `apply`, `replace`, `validate`: everything is checked first, then written one by one.

use std::collections::BTreeSet;
use std::io::{Read, Write};

use api::{IpPool, Key, Kind, Resource};
use datastore::modify::TRIES;
use datastore::{Revision, Scope, SharedStore, StoreError};
use futures::future::BoxFuture;
use jiff::Timestamp;

use crate::command::FileArgs;
use crate::{CtlError, input, tier};

/// What is done with the resources of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Must not exist.
    Create,
    /// What exists is left alone.
    CreateMissing,
    /// What exists is left alone. A pool is created only if there is none of its family: an operator who has made others does not want it.
    CreateFirst,
    /// May exist.
    Apply,
    /// Must exist.
    Replace,
}

/// Opens the datastore, once everything that needs none was checked.
pub type Open<'a> = &'a dyn Fn() -> BoxFuture<'static, Result<SharedStore, CtlError>>;

/// Writes the resources of some files.
pub async fn write(
    verb: Verb,
    files: &FileArgs,
    open: Open<'_>,
    stdin: &mut dyn Read,
    out: &mut dyn Write,
) -> Result<(), CtlError> {
    let Some(resources) = checked(files, stdin)? else {
        return say_nothing_to_do(out);
    };
    let store = open().await?;
    let plan = plan(verb, resources, &store).await?;
    let total = plan.len();
    let kinds: Vec<Kind> = plan.iter().map(|step| step.resource.kind()).collect();
    for (done, step) in plan.into_iter().enumerate() {
        perform(verb, step, &store)
            .await
            .map_err(|why| partial(done, total, verb.past(), why))?;
    }
    summary(verb.past(), &kinds, out)
}

/// Checks files and writes nothing.
pub fn validate(args: &FileArgs, stdin: &mut dyn Read, out: &mut dyn Write) -> Result<(), CtlError> {
    match checked(args, stdin)? {
        None => say_nothing_to_do(out),
        Some(resources) => summary(
            "validated",
            &resources.iter().map(Resource::kind).collect::<Vec<_>>(),
            out,
        ),
    }
}

/// Reads and checks; `None` if there is nothing and that is allowed.
fn checked(args: &FileArgs, stdin: &mut dyn Read) -> Result<Option<Vec<Resource>>, CtlError> {
    let resources = input::read(&args.filename, args.recursive, &args.namespace, stdin)?;
    if resources.is_empty() {
        let files = args.filename.iter().map(|file| file.display().to_string());
        let files = files.collect::<Vec<_>>().join(", ");
        return match args.skip_empty {
            true => Ok(None),
            false => Err(CtlError::Invalid(vec![format!(
                "no resources in {files}; --skip-empty allows that"
            )])),
        };
    }
    let keys: Vec<Key> = resources.iter().map(Resource::key).collect();
    let mut problems = internal(&keys);
    let mut seen = BTreeSet::new();
    let mut told = BTreeSet::new();
    let twice = keys.iter().filter(|key| !seen.insert(*key) && told.insert(*key));
    problems.extend(twice.map(|key| format!("{key} stands more than once in the input")));
    if problems.is_empty() {
        Ok(Some(resources))
    } else {
        Err(CtlError::Invalid(problems))
    }
}

/// A write that has passed every check that can be made before.
struct Step {
    resource: Resource,
    existing: Option<(Resource, Revision)>,
}

async fn plan(verb: Verb, resources: Vec<Resource>, store: &SharedStore) -> Result<Vec<Step>, CtlError> {
    let mut problems = Vec::new();
    let mut steps = Vec::new();
    let has_pool = match verb {
        Verb::CreateFirst => families(store).await?,
        Verb::Create | Verb::CreateMissing | Verb::Apply | Verb::Replace => [false; 2],
    };
    for resource in resources {
        let key = resource.key();
        let existing = store.get(&key).await?;
        match (verb, &existing) {
            (Verb::CreateMissing | Verb::CreateFirst, Some(_)) => continue,
            (Verb::CreateFirst, None) if <&IpPool>::try_from(&resource).is_ok_and(|pool| has_pool[family(pool)]) => {
                continue;
            }
            (Verb::Create, Some(_)) => problems.push(StoreError::Exists(key).to_string()),
            (Verb::Replace, None) => problems.push(StoreError::NotFound(key).to_string()),
            (_, Some(old)) => problems.extend(immutable(&resource, &old.resource)),
            (_, None) => {}
        }
        steps.push(Step {
            resource,
            existing: existing.map(|stored| (stored.resource, stored.revision)),
        });
    }
    problems.extend(pool_overlaps(&steps, store).await?);
    let resources: Vec<&Resource> = steps.iter().map(|step| &step.resource).collect();
    problems.extend(tier::unknown(&resources, store).await?);
    // Tiers before what is in them, otherwise as written.
    steps.sort_by_key(|step| step.resource.kind() != Kind::Tier);
    if problems.is_empty() {
        Ok(steps)
    } else {
        Err(CtlError::Invalid(problems))
    }
}

/// Fields that may not change, and would.
fn immutable(new: &Resource, old: &Resource) -> Vec<String> {
    let problems = new.problems_in_update(old);
    problems
        .iter()
        .map(|problem| format!("{}: {problem}", new.key()))
        .collect()
}

/// Of which families there are pools. One that cannot be understood may be of either.
async fn families(store: &SharedStore) -> Result<[bool; 2], CtlError> {
    let mut found = [false; 2];
    for stored in store.list(&Scope::Kind(Kind::IPPool)).await?.items {
        match IpPool::try_from(stored.resource) {
            Ok(pool) => found[family(&pool)] = true,
            Err(_) => found = [true; 2],
        }
    }
    Ok(found)
}

fn family(pool: &IpPool) -> usize {
    usize::from(matches!(pool.spec.cidr, ipnet::IpNet::V6(_)))
}

/// Pools must not overlap each other: addresses would have two owners.
async fn pool_overlaps(steps: &[Step], store: &SharedStore) -> Result<Vec<String>, CtlError> {
    let pools = steps.iter().filter_map(|step| <&IpPool>::try_from(&step.resource).ok());
    let new: Vec<&IpPool> = pools.collect();
    if new.is_empty() {
        return Ok(Vec::new());
    }
    let stored = store.list(&Scope::Kind(Kind::IPPool)).await?.items;
    let stored: Vec<IpPool> = stored
        .into_iter()
        .filter_map(|stored| IpPool::try_from(stored.resource).ok())
        .collect();
    let mut problems = Vec::new();
    for (i, pool) in new.iter().enumerate() {
        let others = new[..i].iter().copied().chain(&stored);
        for other in others.filter(|other| other.metadata.name != pool.metadata.name) {
            let (a, b) = (pool.spec.cidr, other.spec.cidr);
            if a.contains(&b) || b.contains(&a) {
                let (name, theirs) = (&pool.metadata.name, &other.metadata.name);
                problems.push(format!(
                    "IPPool({name}): spec.cidr: `{a}` overlaps {b} of IPPool({theirs}); choose another range"
                ));
            }
        }
    }
    Ok(problems)
}

async fn perform(verb: Verb, step: Step, store: &SharedStore) -> Result<(), CtlError> {
    let Step {
        mut resource,
        mut existing,
    } = step;
    resource.apply_defaults();
    let key = resource.key();
    let given = resource.metadata().resource_version.clone().map(Revision);
    for _ in 0..TRIES {
        let written = match &existing {
            None => store.create(fresh(resource.clone())).await,
            Some((old, revision)) => {
                let next = successor(resource.clone(), old);
                store.update(next, given.as_ref().unwrap_or(revision)).await
            }
        };
        // Somebody was faster. A revision in the file means that its author wants to know; otherwise look again.
        match (verb, written) {
            (_, Ok(_)) => return Ok(()),
            (Verb::Apply, Err(StoreError::Conflict(_) | StoreError::Exists(_) | StoreError::NotFound(_)))
            | (Verb::Replace, Err(StoreError::Conflict(_)))
                if given.is_none() => {}
            (_, Err(why)) => return Err(why.into()),
        }
        existing = store.get(&key).await?.map(|stored| (stored.resource, stored.revision));
        match &existing {
            Some((old, _)) => {
                let problems = immutable(&resource, old);
                if !problems.is_empty() {
                    return Err(CtlError::Invalid(problems));
                }
            }
            None if verb == Verb::Replace => return Err(StoreError::NotFound(key).into()),
            None => {}
        }
    }
    Err(StoreError::Conflict(key).into())
}

/// As it is stored for the first time.
fn fresh(mut resource: Resource) -> Resource {
    let metadata = resource.metadata_mut();
    metadata.creation_timestamp = Some(Timestamp::now());
    metadata.uid = Some(uuid::Uuid::new_v4().to_string());
    metadata.resource_version = None;
    resource.take_status_of(None);
    resource
}

/// As it is stored in place of `old`: its identity and its status stay.
fn successor(mut resource: Resource, old: &Resource) -> Resource {
    let before = old.metadata();
    let metadata = resource.metadata_mut();
    metadata.creation_timestamp = before.creation_timestamp;
    metadata.uid = before.uid.clone();
    resource.take_status_of(Some(old));
    resource
}

/// What is not for hands: a hand in IPAM's objects gives one address to two pods, and what Kubernetes says is said there.
pub(crate) fn internal(keys: &[Key]) -> Vec<String> {
    let why = |key: &Key| match key.kind {
        Kind::IPAMBlock | Kind::BlockAffinity | Kind::IPAMHandle => {
            Some("objects of this kind are written by IPAM alone")
        }
        Kind::KubernetesEndpointSlice => Some("objects of this kind follow Kubernetes' alone"),
        Kind::NetworkPolicy | Kind::GlobalNetworkPolicy if api::names::is_from_kubernetes(&key.name) => {
            Some("comes from Kubernetes: change the policy there")
        }
        _ => None,
    };
    let text = |key: &Key| why(key).map(|why| format!("{key}: {why}"));
    keys.iter().filter_map(text).collect()
}

/// A failure, with how far it had come.
pub(crate) fn partial(done: usize, total: usize, verb: &'static str, why: CtlError) -> CtlError {
    match done {
        0 => why,
        done => CtlError::Partial {
            done,
            total,
            verb,
            why: Box::new(why),
        },
    }
}

pub(crate) fn summary(verb: &str, kinds: &[Kind], out: &mut dyn Write) -> Result<(), CtlError> {
    let count = kinds.len();
    let text = match kinds {
        [first, rest @ ..] if rest.iter().all(|kind| kind == first) => {
            format!("Successfully {verb} {count} '{first}' resource(s)")
        }
        _ => format!("Successfully {verb} {count} resource(s)"),
    };
    writeln!(out, "{text}").map_err(CtlError::output)
}

fn say_nothing_to_do(out: &mut dyn Write) -> Result<(), CtlError> {
    writeln!(out, "No resources specified").map_err(CtlError::output)
}

impl Verb {
    fn past(self) -> &'static str {
        match self {
            Verb::Create | Verb::CreateMissing | Verb::CreateFirst => "created",
            Verb::Apply => "applied",
            Verb::Replace => "replaced",
        }
    }
}
