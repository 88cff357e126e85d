//! `create`, `apply`, `replace`, `delete`, `validate`: everything is checked first, then written one by one.

use std::io::Write;

use api::{IpPool, Key, Kind, Resource};
use datastore::{Scope, SharedStore, StoreError};
use futures::future::BoxFuture;
use jiff::Timestamp;

use crate::command::{DeleteArgs, FileArgs, WriteArgs};
use crate::{CtlError, input};

/// What is done with the resources of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Must not exist.
    Create,
    /// May exist.
    Apply,
    /// Must exist.
    Replace,
}

/// Opens the datastore, once everything that needs none was checked.
pub type Open<'a> = &'a dyn Fn() -> BoxFuture<'static, Result<SharedStore, CtlError>>;

/// Writes the resources of some files.
pub async fn write(verb: Verb, args: &WriteArgs, open: Open<'_>, out: &mut dyn Write) -> Result<(), CtlError> {
    let Some(resources) = checked(&args.files)? else { return say_nothing_to_do(out) };
    let store = open().await?;
    let plan = plan(verb, args.skip_exists, resources, &store).await?;
    let total = plan.len();
    let kinds: Vec<Kind> = plan.iter().map(|step| step.resource.kind()).collect();
    let mut done = 0;
    for step in plan {
        match perform(verb, step, &store).await {
            Ok(()) => done += 1,
            Err(why) if done == 0 => return Err(why),
            Err(why) => return Err(CtlError::Partial { done, total, verb: verb.past(), why: Box::new(why) }),
        }
    }
    summary(verb.past(), &kinds, out)
}

/// Deletes the resources of some files, or by kind and names.
pub async fn delete(args: &DeleteArgs, open: Open<'_>, out: &mut dyn Write) -> Result<(), CtlError> {
    let keys: Vec<Key> = match &args.kind {
        Some(kind) => {
            let kind = input::kind(kind)?;
            let key = |name: &String| match kind.is_namespaced() {
                true => Key::namespaced(kind, &args.namespace, name),
                false => Key::cluster(kind, name),
            };
            args.names.iter().map(key).collect()
        }
        None => input::read(&args.filename, args.recursive, &args.namespace)?.iter().map(Resource::key).collect(),
    };
    refuse_internal(&keys)?;
    let store = open().await?;
    if !args.skip_not_exists {
        for key in &keys {
            if store.get(key).await?.is_none() {
                return Err(StoreError::NotFound(key.clone()).into());
            }
        }
    }
    let mut gone = Vec::new();
    for key in &keys {
        refuse_used_pool(key, &store).await?;
        match store.delete(key, None).await {
            Ok(_) => gone.push(key.kind),
            Err(StoreError::NotFound(_)) if args.skip_not_exists => {}
            Err(why) if gone.is_empty() => return Err(why.into()),
            Err(why) => {
                let why = Box::new(why.into());
                return Err(CtlError::Partial { done: gone.len(), total: keys.len(), verb: "deleted", why });
            }
        }
    }
    summary("deleted", &gone, out)
}

/// Checks files and writes nothing.
pub fn validate(args: &FileArgs, out: &mut dyn Write) -> Result<(), CtlError> {
    match checked(args)? {
        None => say_nothing_to_do(out),
        Some(resources) => summary("validated", &resources.iter().map(Resource::kind).collect::<Vec<_>>(), out),
    }
}

/// Reads and checks; `None` if there is nothing and that is allowed.
fn checked(args: &FileArgs) -> Result<Option<Vec<Resource>>, CtlError> {
    let resources = input::read(&args.filename, args.recursive, &args.namespace)?;
    if resources.is_empty() {
        let files = args.filename.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ");
        return if args.skip_empty { Ok(None) } else { Err(CtlError::Usage(format!("no resources in {files}; --skip-empty allows that"))) };
    }
    let keys: Vec<Key> = resources.iter().map(Resource::key).collect();
    refuse_internal(&keys)?;
    let mut seen = std::collections::BTreeSet::new();
    let twice: Vec<String> = keys.iter().filter(|key| !seen.insert(*key)).map(|key| format!("{key} stands twice in the input")).collect();
    if !twice.is_empty() {
        return Err(CtlError::Invalid(twice));
    }
    Ok(Some(resources))
}

/// A write that has passed every check that can be made before.
struct Step {
    resource: Resource,
    existing: Option<(Resource, datastore::Revision)>,
}

async fn plan(verb: Verb, skip_exists: bool, resources: Vec<Resource>, store: &SharedStore) -> Result<Vec<Step>, CtlError> {
    let mut problems = Vec::new();
    let mut steps = Vec::new();
    for resource in resources {
        let key = resource.key();
        let existing = store.get(&key).await?;
        match (verb, &existing) {
            (Verb::Create, Some(_)) if skip_exists => continue,
            (Verb::Create, Some(_)) => problems.push(StoreError::Exists(key.clone()).to_string()),
            (Verb::Replace, None) => problems.push(StoreError::NotFound(key.clone()).to_string()),
            (_, Some(old)) => {
                let changed = resource.problems_in_update(&old.resource);
                problems.extend(changed.iter().map(|problem| format!("{key}: {problem}")));
            }
            (_, None) => {}
        }
        steps.push(Step { resource, existing: existing.map(|stored| (stored.resource, stored.revision)) });
    }
    problems.extend(pool_overlaps(&steps, store).await?);
    if problems.is_empty() { Ok(steps) } else { Err(CtlError::Invalid(problems)) }
}

/// Pools must not overlap each other: addresses would have two owners.
async fn pool_overlaps(steps: &[Step], store: &SharedStore) -> Result<Vec<String>, CtlError> {
    let new: Vec<&IpPool> = steps.iter().filter_map(|step| <&IpPool>::try_from(&step.resource).ok()).collect();
    if new.is_empty() {
        return Ok(Vec::new());
    }
    let stored = store.list(&Scope::Kind(Kind::IPPool)).await?.items;
    let stored: Vec<IpPool> = stored.into_iter().filter_map(|stored| IpPool::try_from(stored.resource).ok()).collect();
    let mut problems = Vec::new();
    for (i, pool) in new.iter().enumerate() {
        let others = new[..i].iter().copied().chain(&stored).filter(|other| other.metadata.name != pool.metadata.name);
        for other in others {
            let (a, b) = (pool.spec.cidr, other.spec.cidr);
            if a.contains(&b) || b.contains(&a) {
                let (name, theirs) = (&pool.metadata.name, &other.metadata.name);
                problems.push(format!("IPPool({name}): spec.cidr: `{a}` overlaps {b} of IPPool({theirs}); choose another range"));
            }
        }
    }
    Ok(problems)
}

async fn perform(verb: Verb, step: Step, store: &SharedStore) -> Result<(), CtlError> {
    let Step { mut resource, mut existing } = step;
    resource.apply_defaults();
    loop {
        let written = match &existing {
            None => {
                let mut fresh = resource.clone();
                let metadata = fresh.metadata_mut();
                metadata.creation_timestamp = Some(Timestamp::now());
                metadata.uid = Some(uuid::Uuid::new_v4().to_string());
                metadata.resource_version = None;
                store.create(fresh).await
            }
            Some((old, revision)) => {
                let mut next = resource.clone();
                let expected = next.metadata().resource_version.clone().map_or_else(|| revision.clone(), datastore::Revision);
                let (metadata, before) = (next.metadata_mut(), old.metadata());
                metadata.creation_timestamp = before.creation_timestamp;
                metadata.uid = before.uid.clone();
                store.update(next, &expected).await
            }
        };
        match written {
            Ok(_) => return Ok(()),
            // Somebody was faster. A revision in the file means that its author wants to know; otherwise look again.
            Err(StoreError::Conflict(_) | StoreError::Exists(_) | StoreError::NotFound(_))
                if verb == Verb::Apply && resource.metadata().resource_version.is_none() =>
            {
                existing = store.get(&resource.key()).await?.map(|stored| (stored.resource, stored.revision));
            }
            Err(why) => return Err(why.into()),
        }
    }
}

/// IPAM's own objects are written by IPAM: a hand in there gives one address to two pods.
fn refuse_internal(keys: &[Key]) -> Result<(), CtlError> {
    let internal = |key: &&Key| matches!(key.kind, Kind::IPAMBlock | Kind::BlockAffinity | Kind::IPAMHandle);
    let refused: Vec<String> =
        keys.iter().filter(internal).map(|key| format!("{key}: objects of this kind are written by IPAM alone")).collect();
    if refused.is_empty() { Ok(()) } else { Err(CtlError::Invalid(refused)) }
}

/// A pool with addresses in use would leave pods without routes: disable it, let the pods go, then delete it.
async fn refuse_used_pool(key: &Key, store: &SharedStore) -> Result<(), CtlError> {
    if key.kind != Kind::IPPool {
        return Ok(());
    }
    let Some(stored) = store.get(key).await? else { return Ok(()) };
    let Ok(pool) = IpPool::try_from(stored.resource) else { return Ok(()) };
    let blocks = store.list(&Scope::Kind(Kind::IPAMBlock)).await?.items;
    let used: usize = blocks
        .iter()
        .filter_map(|stored| <&api::IpamBlock>::try_from(&stored.resource).ok())
        .filter(|block| pool.spec.cidr.contains(&block.spec.cidr))
        .map(|block| block.spec.allocations.iter().flatten().count())
        .sum();
    if used == 0 {
        return Ok(());
    }
    Err(CtlError::Invalid(vec![format!(
        "{key}: {used} of its addresses are in use; set spec.disabled: true, delete the pods that have them, then delete the pool"
    )]))
}

fn summary(verb: &str, kinds: &[Kind], out: &mut dyn Write) -> Result<(), CtlError> {
    let text = match kinds {
        [] => format!("Successfully {verb} 0 resource(s)"),
        [first, rest @ ..] if rest.iter().all(|kind| kind == first) => {
            format!("Successfully {verb} {} '{first}' resource(s)", kinds.len())
        }
        _ => format!("Successfully {verb} {} resource(s)", kinds.len()),
    };
    writeln!(out, "{text}").map_err(CtlError::output)
}

fn say_nothing_to_do(out: &mut dyn Write) -> Result<(), CtlError> {
    writeln!(out, "No resources specified").map_err(CtlError::output)
}

impl Verb {
    fn past(self) -> &'static str {
        match self {
            Verb::Create => "created",
            Verb::Apply => "applied",
            Verb::Replace => "replaced",
        }
    }
}
