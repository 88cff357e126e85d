//! Writes: by compare-and-swap, each a change that watches hear of, if it changes anything.

use serde_json::{Map, Value, json};

use super::data::{Data, Place};
use super::request::{Request, Target};
use super::served::{SERVED, Served};
use super::status::{Whole, about, bad_request, no_such_resource, not_served};

/// What others wrote in between.
const CHANGED: &str = "the object has been modified; please apply your changes to the latest version and try again";
/// There is no clock here.
const NOW: &str = "2026-01-01T00:00:00Z";

/// A request that is none to read.
pub fn write(data: &mut Data, request: &Request, target: &Target) -> Whole {
    let served = &SERVED[target.resource];
    if target.is_status && !served.has_status || served.is_namespaced && target.namespace.is_none() {
        return match served.is_ours() {
            true => not_served(),
            false => no_such_resource(),
        };
    }
    match (request.method.as_str(), &target.name) {
        ("POST", None) => create(data, served, target, &request.body),
        ("PUT" | "PATCH", Some(name)) => change(data, served, target, &target.place(name), request),
        ("DELETE", Some(name)) => delete(data, &target.place(name), &request.body),
        _ => bad_request("this server does not know what to do with that"),
    }
}

fn create(data: &mut Data, served: &Served, target: &Target, body: &Value) -> Whole {
    let Some(name) = body["metadata"]["name"].as_str() else {
        return bad_request("an object without a name");
    };
    let place = target.place(name);
    if let Some(namespace) = &target.namespace {
        let place = Place {
            resource: SERVED
                .iter()
                .position(|one| one.plural == "namespaces")
                .unwrap_or_default(),
            namespace: None,
            name: namespace.clone(),
        };
        if data.get(&place).is_none() {
            return about(&place, 404, "NotFound", "not found");
        }
    }
    if data.get(&place).is_some() {
        return about(&place, 409, "AlreadyExists", "already exists");
    }
    if let Some(invalid) = invalid(&place, body) {
        return invalid;
    }
    let mut object = body.clone();
    if served.has_status {
        without(&mut object, "status");
    }
    let metadata = &mut object["metadata"];
    metadata["uid"] = format!("{name}-{}", data.version).into();
    metadata["creationTimestamp"] = NOW.into();
    metadata["generation"] = 1.into();
    if let Some(namespace) = &target.namespace {
        metadata["namespace"] = namespace.clone().into();
    }
    Whole::json(201, &data.change("ADDED", place, object))
}

fn change(data: &mut Data, served: &Served, target: &Target, place: &Place, request: &Request) -> Whole {
    let Some(held) = data.get(place).cloned() else {
        return about(place, 404, "NotFound", "not found");
    };
    let version = request.body["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    let is_patch = request.method == "PATCH";
    if version.is_empty() && !is_patch {
        let what = "metadata.resourceVersion: Invalid value: 0x0: must be specified for an update";
        return about(place, 422, "Invalid", what);
    }
    if !version.is_empty() && held["metadata"]["resourceVersion"] != version {
        return about(place, 409, "Conflict", CHANGED);
    }
    let wanted = match is_patch {
        true => merged(held.clone(), &request.body),
        false => request.body.clone(),
    };
    if let Some(invalid) = invalid(place, &wanted) {
        return invalid;
    }
    let mut object = match target.is_status {
        true => held.clone(),
        false => wanted.clone(),
    };
    // Of Kubernetes' own kinds the status takes labels and annotations along.
    if target.is_status && !served.is_ours() {
        object["metadata"] = wanted["metadata"].clone();
    }
    // Each of the two has what it does not write from what is held.
    if served.has_status {
        let from = if target.is_status { &wanted } else { &held };
        without(&mut object, "status");
        if let Some(status) = from.get("status") {
            object["status"] = status.clone();
        }
    }
    for field in [
        "uid",
        "creationTimestamp",
        "generation",
        "deletionTimestamp",
        "resourceVersion",
    ] {
        without(&mut object["metadata"], field);
        if let Some(value) = held["metadata"].get(field) {
            object["metadata"][field] = value.clone();
        }
    }
    if object == held {
        return Whole::json(200, &held);
    }
    if said(&object) != said(&held) {
        let generation = held["metadata"]["generation"].as_u64().unwrap_or_default();
        object["metadata"]["generation"] = (generation + 1).into();
    }
    let is_gone = !object["metadata"]["deletionTimestamp"].is_null() && !is_held(&object);
    let word = if is_gone { "DELETED" } else { "MODIFIED" };
    Whole::json(200, &data.change(word, place.clone(), object))
}

fn delete(data: &mut Data, place: &Place, options: &Value) -> Whole {
    let Some(held) = data.get(place).cloned() else {
        return about(place, 404, "NotFound", "not found");
    };
    for field in ["uid", "resourceVersion"] {
        let wanted = &options["preconditions"][field];
        if !wanted.is_null() && *wanted != held["metadata"][field] {
            return about(place, 409, "Conflict", "Precondition failed");
        }
    }
    if is_held(&held) {
        if !held["metadata"]["deletionTimestamp"].is_null() {
            return Whole::json(200, &held);
        }
        let mut object = held;
        object["metadata"]["deletionTimestamp"] = NOW.into();
        return Whole::json(200, &data.change("MODIFIED", place.clone(), object));
    }
    let uid = held["metadata"]["uid"].clone();
    data.change("DELETED", place.clone(), held);
    let served = &SERVED[place.resource];
    let details = json!({ "name": place.name, "group": served.group, "kind": served.plural, "uid": uid });
    let success =
        json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details });
    Whole::json(200, &success)
}

/// The one rule of all definitions that is known here.
fn invalid(place: &Place, object: &Value) -> Option<Whole> {
    let spec = object.get("spec")?;
    let what = "spec: Invalid value: spec in body must be of type object";
    (!spec.is_object()).then(|| about(place, 422, "Invalid", what))
}

fn is_held(object: &Value) -> bool {
    object["metadata"]["finalizers"]
        .as_array()
        .is_some_and(|holders| !holders.is_empty())
}

/// What generations count changes of.
fn said(object: &Value) -> Value {
    let mut said = object.clone();
    without(&mut said, "metadata");
    without(&mut said, "status");
    said
}

fn without(object: &mut Value, field: &str) {
    if let Value::Object(fields) = object {
        fields.remove(field);
    }
}

/// RFC 7386.
fn merged(held: Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else {
        return patch.clone();
    };
    let mut fields = match held {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    for (name, value) in patch {
        let before = fields.remove(name).unwrap_or_default();
        if !value.is_null() {
            fields.insert(name.clone(), merged(before, value));
        }
    }
    Value::Object(fields)
}
