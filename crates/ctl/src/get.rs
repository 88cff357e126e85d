//! `get`: resources as tables, documents or names.

use std::io::{Read, Write};

use api::{Key, Kind, Metadata, Resource};
use datastore::{Scope, SharedStore};

use crate::command::{Format, GetArgs};
use crate::problems::Problems;
use crate::write::Open;
use crate::{CtlError, input, output, problems, tier};

/// The column that says how a policy is.
const STATUS: &str = "STATUS";

/// Shows resources. Those that are asked for by name and are not there are reported after the others.
pub async fn get(args: &GetArgs, open: Open<'_>, stdin: &mut dyn Read, out: &mut dyn Write) -> Result<(), CtlError> {
    let request = request(args, stdin)?;
    let store = &open().await?;
    let mut answer = answer(request, store).await?;
    if args.export {
        let each = answer.resources.iter_mut();
        each.for_each(|resource| export(resource.metadata_mut()));
    }
    let problems = problems::of(&answer.resources, store, &args.run_dir).await?;
    if !answer.resources.is_empty() || answer.missing.is_empty() {
        show(args, &answer, &problems, store, out).await?;
    }
    // Beside the answer, whatever its format: programs that read it are not disturbed.
    for note in problems.values().flatten() {
        let _ = writeln!(std::io::stderr(), "problem: {}", note.text);
    }
    if answer.missing.is_empty() {
        Ok(())
    } else {
        Err(CtlError::Missing(answer.missing))
    }
}

/// What the command line asks for.
enum Request {
    /// These, of this kind or of several.
    Keys(Option<Kind>, Vec<Key>),
    /// All of a kind in a scope that have one of these names, or any if there are none.
    List(Kind, Scope, Vec<String>),
}

/// What there is of it.
struct Answer {
    /// The one kind, if it is one.
    kind: Option<Kind>,
    /// In the order asked for, otherwise by key.
    resources: Vec<Resource>,
    /// Asked for and not there.
    missing: Vec<Key>,
    /// One resource was asked for, not a list that may have one.
    single: bool,
}

fn request(args: &GetArgs, stdin: &mut dyn Read) -> Result<Request, CtlError> {
    if let Some(file) = &args.filename {
        let named = input::read(std::slice::from_ref(file), false, &args.namespace, stdin)?;
        return Ok(Request::Keys(None, named.iter().map(Resource::key).collect()));
    }
    let Some(name) = &args.kind else {
        let kinds = Kind::ALL.map(Kind::plural).join(", ");
        return Err(CtlError::Usage(format!("name a kind: {kinds}")));
    };
    let kind = input::kind(name)?;
    let namespaced = kind.is_namespaced();
    Ok(match (namespaced && args.all_namespaces, args.names.is_empty()) {
        (false, false) => Request::Keys(Some(kind), input::keys(kind, &args.namespace, &args.names)),
        (false, true) if namespaced => Request::List(kind, Scope::Namespace(kind, args.namespace.clone()), Vec::new()),
        _ => Request::List(kind, Scope::Kind(kind), args.names.clone()),
    })
}

async fn answer(request: Request, store: &SharedStore) -> Result<Answer, CtlError> {
    let (kind, scope, names) = match request {
        Request::Keys(kind, keys) => return fetch(store, kind, &keys).await,
        Request::List(kind, scope, names) => (kind, scope, names),
    };
    let items = store.list(&scope).await?.items;
    let wanted = |resource: &Resource| names.is_empty() || names.contains(&resource.metadata().name);
    let found = items.into_iter().map(|stored| stored.resource).filter(wanted);
    let mut resources: Vec<Resource> = found.collect();
    if kind == Kind::Tier {
        resources = tier::all(resources);
    }
    let absent = |name: &&String| !resources.iter().any(|resource| resource.metadata().name == **name);
    let missing = names
        .iter()
        .filter(absent)
        .map(|name| Key::cluster(kind, name))
        .collect();
    Ok(Answer {
        kind: Some(kind),
        missing,
        resources,
        single: false,
    })
}

async fn fetch(store: &SharedStore, kind: Option<Kind>, keys: &[Key]) -> Result<Answer, CtlError> {
    let (mut resources, mut missing) = (Vec::new(), Vec::new());
    for key in keys {
        let stored = store.get(key).await?.map(|stored| stored.resource);
        match stored.or_else(|| tier::built_in(key)) {
            Some(resource) => resources.push(resource),
            None => missing.push(key.clone()),
        }
    }
    let single = keys.len() == 1;
    Ok(Answer {
        kind,
        resources,
        missing,
        single,
    })
}

async fn show(
    args: &GetArgs,
    answer: &Answer,
    problems: &Problems,
    store: &SharedStore,
    out: &mut dyn Write,
) -> Result<(), CtlError> {
    let one = answer.resources.first().filter(|_| answer.single);
    let text = match (args.output, one) {
        (Format::Ps | Format::Wide, _) => return tables(args, answer, problems, store, out).await,
        (Format::Name, _) => {
            let line = |resource: &Resource| format!("{}/{}\n", resource.kind(), resource.metadata().name);
            answer.resources.iter().map(line).collect()
        }
        (Format::Yaml, Some(one)) => api::document::to_yaml(one),
        (Format::Yaml, None) => api::document::list_to_yaml(answer.kind, &answer.resources),
        (Format::Json, Some(one)) => output::json(&api::document::to_json(one)),
        (Format::Json, None) => output::json(&api::document::list_to_json(answer.kind, &answer.resources)),
    };
    out.write_all(text.as_bytes()).map_err(CtlError::output)
}

async fn tables(
    args: &GetArgs,
    answer: &Answer,
    problems: &Problems,
    store: &SharedStore,
    out: &mut dyn Write,
) -> Result<(), CtlError> {
    let wide = args.output == Format::Wide;
    let has = |kind: &Kind| answer.resources.iter().any(|resource| resource.kind() == *kind);
    let kinds: Vec<Kind> = match answer.kind {
        Some(kind) => vec![kind],
        None => Kind::ALL.into_iter().filter(has).collect(),
    };
    let default_as = match wide && kinds.contains(&Kind::Node) {
        true => default_as(store).await?,
        false => String::new(),
    };
    for kind in kinds {
        let mut headings = output::headings(kind, wide, args.all_namespaces);
        if wide && problems::concerns(kind) {
            headings.push(STATUS);
        }
        let cell = |resource: &Resource, heading| match heading {
            STATUS => problems::cell(problems, &resource.key()),
            _ => output::cell(resource, heading, &default_as),
        };
        let row = |resource: &Resource| headings.iter().map(|heading| cell(resource, heading)).collect();
        let mut rows: Vec<Vec<String>> = vec![headings.iter().map(ToString::to_string).collect()];
        rows.extend(
            answer
                .resources
                .iter()
                .filter(|resource| resource.kind() == kind)
                .map(row),
        );
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
