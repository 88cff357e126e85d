//! Files, folders and standard input to resources, checked as a whole.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use api::{Kind, Resource};

use crate::CtlError;

/// Reads all resources of some files; every problem of every file comes at once.
pub fn read(files: &[PathBuf], recursive: bool, namespace: &str) -> Result<Vec<Resource>, CtlError> {
    let mut resources = Vec::new();
    let mut problems = Vec::new();
    for (name, text) in texts(files, recursive)? {
        match api::document::read(&name, &text) {
            Ok(read) => resources.extend(read.into_iter().map(|resource| (name.clone(), resource))),
            Err(found) => problems.extend(found.iter().map(ToString::to_string)),
        }
    }
    if !problems.is_empty() {
        return Err(CtlError::Invalid(problems));
    }
    Ok(resources.into_iter().map(|(_, resource)| in_namespace(resource, namespace)).collect())
}

/// A namespaced resource that names no namespace gets the one of the command line.
fn in_namespace(mut resource: Resource, namespace: &str) -> Resource {
    if resource.kind().is_namespaced() && resource.metadata().namespace.is_none() {
        resource.metadata_mut().namespace = Some(namespace.to_string());
    }
    resource
}

/// A kind by any of its names.
pub fn kind(name: &str) -> Result<Kind, CtlError> {
    Kind::parse_name(name).map_err(|unknown| CtlError::Usage(unknown.to_string()))
}

fn texts(files: &[PathBuf], recursive: bool) -> Result<Vec<(String, String)>, CtlError> {
    let mut texts = Vec::new();
    for file in files {
        if file == Path::new("-") {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map_err(|source| CtlError::Io { what: "standard input".into(), source })?;
            texts.push(("standard input".to_string(), text));
            continue;
        }
        for path in expand(file, recursive)? {
            let name = path.display().to_string();
            let text = fs::read_to_string(&path).map_err(|source| CtlError::Io { what: name.clone(), source })?;
            texts.push((name, text));
        }
    }
    Ok(texts)
}

/// A file is itself; a folder is its `.yaml`, `.yml` and `.json` files in order of their names.
fn expand(path: &Path, recursive: bool) -> Result<Vec<PathBuf>, CtlError> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let entries = fs::read_dir(path).map_err(|source| CtlError::Io { what: path.display().to_string(), source })?;
    let mut entries: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    let mut found = Vec::new();
    for entry in entries {
        if entry.is_dir() {
            if recursive {
                found.extend(expand(&entry, recursive)?);
            }
        } else if entry.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json") {
            found.push(entry);
        }
    }
    Ok(found)
}
