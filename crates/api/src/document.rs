//! Documents that people write: YAML or JSON, several to a file, lists or single resources; strictly read.

mod decode;
mod tree;

use serde_json::{Map, Value};

pub(crate) use self::decode::{Decoded, decode};
use self::tree::{Tree, documents, join};
use crate::problem::{FieldProblem, Problem, nearest, shortened};
use crate::{Kind, Resource};

/// What `apiVersion` must say.
pub const API_VERSION: &str = "projectcalico.org/v3";

/// Reads every resource of a file. `source` is what problems call the file.
///
/// A file holds any number of YAML or JSON documents: resources, `List`s, or lists of one kind (`IPPoolList`). All
/// problems of all documents come at once: text that is no YAML, keys that occur twice, unknown fields, wrong types,
/// and what [`Resource::problems`] finds. No defaults are filled in.
pub fn read(source: &str, text: &str) -> Result<Vec<Resource>, Vec<Problem>> {
    let numbered = read_numbered(source, text)?;
    Ok(numbered.into_iter().map(|(_, resource)| resource).collect())
}

/// As [`read`], each resource with the number of its document, from 1: for those who find more to complain about.
pub fn read_numbered(source: &str, text: &str) -> Result<Vec<(usize, Resource)>, Vec<Problem>> {
    let (trees, error) = documents(text);
    let mut resources = Vec::new();
    let mut problems = Vec::new();
    let count = trees.len();
    for (index, tree) in trees.into_iter().enumerate() {
        let mut reader = Reader {
            source,
            document: index + 1,
            problems: &mut problems,
        };
        let mut found = Vec::new();
        reader.document(tree, &mut found);
        resources.extend(found.into_iter().map(|resource| (index + 1, resource)));
    }
    if let Some(message) = error {
        let problem = FieldProblem {
            field: String::new(),
            value: None,
            message,
        };
        problems.push(Problem {
            source: source.to_owned(),
            document: Some(count + 1),
            subject: None,
            problem,
        });
    }
    if problems.is_empty() {
        Ok(resources)
    } else {
        Err(problems)
    }
}

/// The v3 document of a resource: `apiVersion`, `kind`, `metadata`, `spec`, `status`.
pub fn to_json(resource: &Resource) -> Value {
    // Every key of a resource is text and every number finite, which is all that can go wrong here.
    let mut value = serde_json::to_value(resource).expect("a resource has an exact JSON form");
    let Value::Object(fields) = &mut value else {
        return value;
    };
    let mut document = Map::new();
    document.insert("apiVersion".to_owned(), API_VERSION.into());
    // Where maps keep the order of insertion, this is the order of the document; where they sort, so does it.
    for field in ["kind", "metadata", "spec", "status"] {
        if let Some(value) = fields.remove(field) {
            document.insert(field.to_owned(), value);
        }
    }
    Value::Object(document)
}

/// The v3 document of a resource as YAML, without a leading `---`.
pub fn to_yaml(resource: &Resource) -> String {
    yaml_of(&to_json(resource))
}

/// Several resources as one document: `<Kind>List` where `kind` is given, else a plain `List`.
pub fn list_to_json(kind: Option<Kind>, resources: &[Resource]) -> Value {
    let mut document = Map::new();
    document.insert("apiVersion".to_owned(), API_VERSION.into());
    document.insert("items".to_owned(), resources.iter().map(to_json).collect());
    document.insert(
        "kind".to_owned(),
        kind.map_or("List".to_owned(), |kind| format!("{kind}List")).into(),
    );
    document.insert("metadata".to_owned(), Value::Object(Map::new()));
    Value::Object(document)
}

/// Several resources as one YAML document.
pub fn list_to_yaml(kind: Option<Kind>, resources: &[Resource]) -> String {
    yaml_of(&list_to_json(kind, resources))
}

pub(crate) fn yaml_of(value: &Value) -> String {
    // Folded and block scalars would be right too, but hard to compare by eye.
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    serde_saphyr::to_string_with_options(value, options).expect("plain JSON has a YAML form")
}

/// Reads one document; knows what to call it.
struct Reader<'a> {
    source: &'a str,
    document: usize,
    problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    fn document(&mut self, tree: Tree, resources: &mut Vec<Resource>) {
        let subject = subject(&tree.value);
        for field in tree.duplicates {
            self.report(subject.clone(), &field, None, "occurs more than once");
        }
        match list_of(&tree.value) {
            Some(kind) => self.list(kind, tree.value, resources),
            None => resources.extend(self.resource("", tree.value, None)),
        }
    }

    fn list(&mut self, kind: Option<Kind>, mut list: Value, resources: &mut Vec<Resource>) {
        let api_version = text(&list, "apiVersion");
        let right = if kind.is_none() {
            "must be v1 or projectcalico.org/v3"
        } else {
            "must be projectcalico.org/v3"
        };
        if api_version != Some(API_VERSION) && !(kind.is_none() && api_version == Some("v1")) {
            self.report(subject(&list), "apiVersion", api_version.map(str::to_owned), right);
        }
        match list.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) => {
                for (index, item) in items.into_iter().enumerate() {
                    resources.extend(self.resource(&format!("items[{index}]"), item, kind));
                }
            }
            None | Some(Value::Null) => {}
            Some(other) => self.report(subject(&list), "items", Some(other.to_string()), "must be a list"),
        }
    }

    /// The resource in `value`, if nothing is wrong with it. Items of a typed list may leave out version and kind.
    fn resource(&mut self, at: &str, mut value: Value, list_kind: Option<Kind>) -> Option<Resource> {
        let subject = subject(&value);
        let before = self.problems.len();
        let Value::Object(fields) = &mut value else {
            self.report(
                subject,
                at,
                Some(value.to_string()),
                "must be a resource: a mapping with apiVersion and kind",
            );
            return None;
        };
        match fields.remove("apiVersion") {
            Some(Value::String(version)) if version == API_VERSION => {}
            None if list_kind.is_some() => {}
            other => {
                let held = other.map(|held| held.as_str().map_or_else(|| held.to_string(), str::to_owned));
                self.report(
                    subject.clone(),
                    &join(at, "apiVersion"),
                    held,
                    "must be projectcalico.org/v3",
                );
            }
        }
        let kind = match fields.remove("kind") {
            None => list_kind.ok_or((None, format!("is required: {}", kinds()))),
            Some(held) => match held.as_str().and_then(exact_kind) {
                Some(kind) if list_kind.is_none_or(|list| list == kind) => Ok(kind),
                Some(kind) => Err((Some(kind.to_string()), "must be the kind of the list".to_owned())),
                None => {
                    let name = held.as_str().map_or_else(|| held.to_string(), str::to_owned);
                    let message = match nearest(&name, Kind::ALL.iter().map(|kind| kind.name())) {
                        Some(meant) => format!("is no known kind; did you mean `{meant}`?"),
                        None => format!("is no known kind; {}", kinds()),
                    };
                    Err((Some(name), message))
                }
            },
        };
        let kind = match kind {
            Ok(kind) => kind,
            Err((held, message)) => {
                self.report(subject, &join(at, "kind"), held, &message);
                return None;
            }
        };
        // Written by API servers, of no meaning to anyone else.
        if let Some(Value::Object(metadata)) = fields.get_mut("metadata") {
            metadata.remove("managedFields");
            metadata.remove("selfLink");
        }
        // An empty spec may be left out.
        fields.entry("spec").or_insert_with(|| Value::Object(Map::new()));
        let decoded = Resource::decode(kind, value);
        let fair = |problem: &FieldProblem| !decoded.bad.iter().any(|bad| spoils(bad, &problem.field));
        let mut found = decoded.problems;
        if let Some(resource) = &decoded.value {
            found.extend(resource.problems().into_iter().filter(fair));
        }
        for problem in found {
            self.report(
                subject.clone(),
                &join(at, &problem.field),
                problem.value,
                &problem.message,
            );
        }
        decoded.value.filter(|_| self.problems.len() == before)
    }

    fn report(&mut self, subject: Option<String>, field: &str, value: Option<String>, message: &str) {
        let problem = FieldProblem {
            field: field.to_owned(),
            value: value.map(shortened),
            message: message.to_owned(),
        };
        self.problems.push(Problem {
            source: self.source.to_owned(),
            document: Some(self.document),
            subject,
            problem,
        });
    }
}

/// Whether a judgement about `field` is unfair because `bad` was left out of the value that was judged.
pub(crate) fn spoils(bad: &str, field: &str) -> bool {
    let within = |inner: &str, outer: &str| {
        inner
            .strip_prefix(outer)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    // Leaving an item out of a list moves the ones behind it.
    let list = bad
        .strip_suffix(']')
        .and_then(|item| item.rfind('['))
        .map(|start| &bad[..start]);
    within(field, list.unwrap_or(bad)) || within(bad, field)
}

/// `IPPool default-ipv4-ippool`, `WorkloadEndpoint default/node1-…`, as far as the document says.
fn subject(value: &Value) -> Option<String> {
    let kind = text(value, "kind");
    let metadata = value.get("metadata");
    let name = metadata.and_then(|metadata| text(metadata, "name"));
    let namespace = metadata.and_then(|metadata| text(metadata, "namespace"));
    match (kind, namespace, name) {
        (Some(kind), Some(namespace), Some(name)) => Some(shortened(format!("{kind} {namespace}/{name}"))),
        (Some(one), _, None) | (None, _, Some(one)) => Some(shortened(one.to_owned())),
        (Some(kind), None, Some(name)) => Some(shortened(format!("{kind} {name}"))),
        (None, _, None) => None,
    }
}

/// Whether the document is a list, and if so, of which one kind.
fn list_of(value: &Value) -> Option<Option<Kind>> {
    let of = text(value, "kind")?.strip_suffix("List")?;
    if of.is_empty() {
        Some(None)
    } else {
        exact_kind(of).map(Some)
    }
}

fn exact_kind(name: &str) -> Option<Kind> {
    Kind::ALL.into_iter().find(|kind| kind.name() == name)
}

fn kinds() -> String {
    format!("one of {}", Kind::ALL.map(Kind::name).join(", "))
}

fn text<'a>(value: &'a Value, field: &str) -> Option<&'a str> {
    value.get(field).and_then(Value::as_str)
}

#[cfg(test)]
mod tests;
