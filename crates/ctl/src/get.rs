//! `get`: resources as tables, documents or names.

use std::io::Write;

use api::{Key, Kind, Metadata, Resource};
use datastore::{Scope, SharedStore, StoreError};

use crate::command::{Format, GetArgs};
use crate::{CtlError, input, output};

/// Shows resources.
pub async fn get(args: &GetArgs, store: &SharedStore, out: &mut dyn Write) -> Result<(), CtlError> {
    let (kind, mut resources) = chosen(args, store).await?;
    if args.export {
        resources.iter_mut().for_each(|resource| export(resource.metadata_mut()));
    }
    let single = args.names.len() == 1 && resources.len() == 1;
    let text = match args.output {
        Format::Ps | Format::Wide => {
            return tables(args, kind, &resources, store, out).await;
        }
        Format::Name => {
            let line = |resource: &Resource| format!("{}/{}\n", resource.kind(), resource.metadata().name);
            resources.iter().map(line).collect()
        }
        Format::Yaml if single => api::document::to_yaml(&resources[0]),
        Format::Yaml => api::document::list_to_yaml(kind, &resources),
        Format::Json => {
            let value = if single { api::document::to_json(&resources[0]) } else { api::document::list_to_json(kind, &resources) };
            serde_json::to_string_pretty(&value).map_err(|error| CtlError::Usage(error.to_string()))? + "\n"
        }
    };
    out.write_all(text.as_bytes()).map_err(CtlError::output)
}

/// What the command line asks for, in order of keys.
async fn chosen(args: &GetArgs, store: &SharedStore) -> Result<(Option<Kind>, Vec<Resource>), CtlError> {
    if let Some(file) = &args.filename {
        let named = input::read(std::slice::from_ref(file), false, &args.namespace)?;
        let keys: Vec<Key> = named.iter().map(Resource::key).collect();
        return Ok((None, fetch(store, &keys).await?));
    }
    let Some(name) = &args.kind else {
        return Err(CtlError::Usage(format!("name a kind: {}", Kind::ALL.map(|kind| kind.plural()).join(", "))));
    };
    // `get ippool/default-ipv4-ippool` and `get ippool,node` are not upstream's; a comma there is a mistake to name.
    let kind = input::kind(name)?;
    if !args.names.is_empty() {
        let key = |name: &String| match kind.is_namespaced() {
            true => Key::namespaced(kind, &args.namespace, name),
            false => Key::cluster(kind, name),
        };
        return Ok((Some(kind), fetch(store, &args.names.iter().map(key).collect::<Vec<_>>()).await?));
    }
    let scope = match kind.is_namespaced() && !args.all_namespaces {
        true => Scope::Namespace(kind, args.namespace.clone()),
        false => Scope::Kind(kind),
    };
    let items = store.list(&scope).await?.items;
    Ok((Some(kind), items.into_iter().map(|stored| stored.resource).collect()))
}

async fn fetch(store: &SharedStore, keys: &[Key]) -> Result<Vec<Resource>, CtlError> {
    let mut found = Vec::new();
    for key in keys {
        match store.get(key).await? {
            Some(stored) => found.push(stored.resource),
            None => return Err(StoreError::NotFound(key.clone()).into()),
        }
    }
    Ok(found)
}

async fn tables(
    args: &GetArgs,
    kind: Option<Kind>,
    resources: &[Resource],
    store: &SharedStore,
    out: &mut dyn Write,
) -> Result<(), CtlError> {
    let wide = args.output == Format::Wide;
    let default_as = if wide && kind == Some(Kind::Node) { default_as(store).await? } else { String::new() };
    let kinds: Vec<Kind> = match kind {
        Some(kind) => vec![kind],
        None => Kind::ALL.into_iter().filter(|kind| resources.iter().any(|r| r.kind() == *kind)).collect(),
    };
    for kind in kinds {
        let headings = output::headings(kind, wide, args.all_namespaces);
        let row = |resource: &Resource| headings.iter().map(|heading| output::cell(resource, heading, &default_as)).collect();
        let mut rows: Vec<Vec<String>> = vec![headings.iter().map(ToString::to_string).collect()];
        rows.extend(resources.iter().filter(|resource| resource.kind() == kind).map(row));
        output::columns(out, &rows).map_err(CtlError::output)?;
    }
    Ok(())
}

/// Nodes without an AS of their own show the cluster's in parentheses, as upstream does.
async fn default_as(store: &SharedStore) -> Result<String, CtlError> {
    let stored = store.get(&Key::cluster(Kind::BGPConfiguration, "default")).await?;
    let configured = stored.and_then(|stored| match stored.resource {
        Resource::BGPConfiguration(config) => config.spec.as_number,
        _ => None,
    });
    Ok(format!("({})", configured.unwrap_or(api::AsNumber::DEFAULT)))
}

fn export(metadata: &mut Metadata) {
    *metadata = Metadata {
        name: std::mem::take(&mut metadata.name),
        namespace: metadata.namespace.take(),
        labels: std::mem::take(&mut metadata.labels),
        annotations: std::mem::take(&mut metadata.annotations),
        ..Metadata::default()
    };
}
