//! Files, folders and standard input to resources, checked as a whole.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use api::{Key, Kind, Resource};

use crate::CtlError;

/// Reads all resources of some files; every problem of every file comes at once.
pub fn read(
    files: &[PathBuf],
    recursive: bool,
    namespace: &str,
    stdin: &mut dyn Read,
) -> Result<Vec<Resource>, CtlError> {
    let mut resources = Vec::new();
    let mut problems = Vec::new();
    for path in expand_all(files, recursive, &mut problems) {
        let (name, text) = text(&path, stdin);
        let read = match text {
            Ok(text) => {
                api::document::read(&name, &text).map_err(|found| found.iter().map(ToString::to_string).collect())
            }
            Err(error) => Err(vec![format!("{name}: {error}")]),
        };
        match read {
            Ok(read) => resources.extend(read.into_iter().map(|resource| in_namespace(resource, namespace))),
            Err(found) => problems.extend(found),
        }
    }
    if problems.is_empty() {
        Ok(resources)
    } else {
        Err(CtlError::Invalid(problems))
    }
}

/// A kind by any of its names.
pub fn kind(name: &str) -> Result<Kind, CtlError> {
    Kind::parse_name(name).map_err(|unknown| CtlError::Usage(unknown.to_string()))
}

/// The keys of resources that the command line names.
pub fn keys(kind: Kind, namespace: &str, names: &[String]) -> Vec<Key> {
    let key = |name: &String| match kind.is_namespaced() {
        true => Key::namespaced(kind, namespace, name),
        false => Key::cluster(kind, name),
    };
    names.iter().map(key).collect()
}

/// A namespaced resource that names no namespace gets the one of the command line.
fn in_namespace(mut resource: Resource, namespace: &str) -> Resource {
    if resource.kind().is_namespaced() && resource.metadata().namespace.is_none() {
        resource.metadata_mut().namespace = Some(namespace.to_string());
    }
    resource
}

/// A file's text, and what problems call the file.
pub(crate) fn text(path: &Path, stdin: &mut dyn Read) -> (String, io::Result<String>) {
    if path != Path::new("-") {
        return (path.display().to_string(), fs::read_to_string(path));
    }
    let mut text = String::new();
    let read = stdin.read_to_string(&mut text).map(|_| text);
    ("standard input".to_string(), read)
}

/// The files among files and folders, in order.
fn expand_all(paths: &[PathBuf], recursive: bool, problems: &mut Vec<String>) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for path in paths {
        if path == Path::new("-") || !path.is_dir() {
            files.push(path.clone());
        } else if let Err(error) = expand(path, recursive, &mut files) {
            problems.push(format!("{}: {error}", path.display()));
        }
    }
    files
}

/// A folder is its `.yaml`, `.yml` and `.json` files in order of their names. Links to folders are not followed, so there
/// is no way round in circles.
fn expand(folder: &Path, recursive: bool, files: &mut Vec<PathBuf>) -> io::Result<()> {
    let mut entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            if recursive {
                expand(&path, recursive, files)?;
            }
        } else if path.is_file()
            && path
                .extension()
                .is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
        {
            files.push(path);
        }
    }
    Ok(())
}
